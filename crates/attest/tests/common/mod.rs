//! What several tests need: real evidence, and platforms whose keys are known.

#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod amd;
pub(crate) mod intel;

use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use larvatus_attest::evidence::Evidence;
use larvatus_attest::platform::Platform;
use larvatus_attest::policy::{Policy, Product};
use larvatus_attest::statement::{
    Challenge, Channel, Exporter, KeyHash, Nonce, Statement, UnixTime,
};
use larvatus_attest::verify::{Roots, Verifier};

/// 2026-01-01.
pub(crate) const NOW: UnixTime = UnixTime(1_767_225_600);

pub(crate) fn testdata(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("testdata")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A certificate as PEM has it.
pub(crate) fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

/// A connection with known ends.
pub(crate) fn channel() -> Channel {
    Channel {
        key: KeyHash([1; 32]),
        exporter: Exporter([2; 32]),
    }
}

pub(crate) fn challenge() -> Challenge {
    Challenge::new(Nonce([3; 32]), NOW)
}

pub(crate) fn statement() -> Statement {
    Statement::channel(&channel(), Nonce([3; 32]))
}

pub(crate) fn policy(text: &str) -> Policy {
    Policy::from_toml(&format!("version = 1\nfreshness = 60\n{text}")).unwrap()
}

/// A verifier that takes the known keys for the makers'.
pub(crate) fn verifier(text: &str) -> Verifier {
    let roots = Roots::danger_others(
        intel::Makers::get().root_der(),
        Product::Milan,
        &testdata("amd/ark.der"),
        &testdata("amd/ask.der"),
    );
    Verifier::with_roots(policy(text), roots.unwrap())
}

/// A piece of real evidence.
pub(crate) struct Real {
    pub(crate) name: &'static str,
    pub(crate) evidence: Evidence,
    pub(crate) at: UnixTime,
}

/// All that the crates ship and that can be verified, each at a time at which it was valid.
pub(crate) fn real() -> Vec<Real> {
    let quote = |name: &'static str, platform, at| {
        let collateral = testdata(&format!("real/{name}_collateral.json"));
        let collateral = serde_json::from_slice(&collateral).unwrap();
        let quote = testdata(&format!("real/{name}"));
        Real {
            name,
            evidence: Evidence::new(platform, statement(), quote).with_collateral(collateral),
            at: UnixTime(at),
        }
    };
    let report = hex::decode(testdata("real/report_milan.hex").trim_ascii()).unwrap();
    let snp = Evidence::new(Platform::SevSnp, statement(), report);
    let document = testdata("real/nitro_attestation.cose");
    vec![
        quote("sgx_quote", Platform::Sgx, 1_751_328_000), // 2025-07-01
        quote("tdx_quote", Platform::Tdx, 1_751_328_000),
        quote("tdx_quote_td15ex", Platform::Tdx, 1_792_022_400), // 2026-10-15
        Real {
            name: "report_milan",
            evidence: snp.with_vcek(testdata("real/vcek_milan.der")),
            at: NOW,
        },
        Real {
            name: "nitro_attestation",
            evidence: Evidence::new(Platform::Nitro, statement(), document),
            at: UnixTime(1_736_179_625),
        },
    ]
}

/// A policy for simulated evidence, which the makers' roots do not matter to.
pub(crate) fn any_policy() -> Policy {
    let measurement = "00".repeat(48);
    policy(&format!(
        "[[simulated-not-a-tee.image]]\nmeasurement = \"{measurement}\"\n"
    ))
}
