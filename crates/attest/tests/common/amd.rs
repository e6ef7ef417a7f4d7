//! SEV-SNP reports by a chip whose key is in `testdata/amd`.

use larvatus_attest::evidence::Evidence;
use larvatus_attest::platform::Platform;
use larvatus_attest::statement::Statement;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};

use super::testdata;

/// A policy that the report of [`Report::good`] satisfies.
pub(crate) const POLICY: &str = "[sev-snp]
minimum-tcb = { bootloader = 3, tee = 0, snp = 8, microcode = 115 }
minimum-guest-svn = 2
[[sev-snp.image]]
measurement = \"0707070707070707070707070707070707070707070707070707070707070707070707070707070707070707070707ff\"
";

#[derive(Clone)]
pub(crate) struct Report(pub(crate) Vec<u8>);

impl Report {
    pub(crate) fn good(statement: &Statement) -> Self {
        let mut report = Self(vec![0; 1184]);
        report.put(0, &2u32.to_le_bytes());
        report.put(4, &2u32.to_le_bytes());
        report.put(8, &(0x0002_0000u64 | 0x0133).to_le_bytes());
        report.put(0x34, &1u32.to_le_bytes());
        report.put(0x50, &statement.report_data().0);
        report.put(0x90, &[7; 47]);
        report.put(0x90 + 47, &[0xff]);
        for at in [0x38, 0x180, 0x1e0, 0x1f0] {
            report.put(at, &[3, 0, 0, 0, 0, 0, 8, 115]);
        }
        let chip: Vec<u8> = (0..64).collect();
        report.put(0x1a0, &chip);
        report
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn with(mut self, at: usize, bytes: &[u8]) -> Self {
        self.put(at, bytes);
        self
    }

    pub(crate) fn signed(mut self) -> Vec<u8> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P384_SHA384_FIXED_SIGNING,
            &testdata("amd/vcek.pk8"),
            &random,
        );
        let signature = key.unwrap().sign(&random, &self.0[..0x2a0]).unwrap();
        for (half, at) in signature.as_ref().chunks(48).zip([0x2a0, 0x2a0 + 72]) {
            let little: Vec<u8> = half.iter().rev().copied().collect();
            self.put(at, &little);
        }
        self.0
    }

    pub(crate) fn evidence(self, statement: &Statement, vcek: &str) -> Evidence {
        let evidence = Evidence::new(Platform::SevSnp, *statement, self.signed());
        evidence.with_vcek(testdata(&format!("amd/{vcek}.der")))
    }
}
