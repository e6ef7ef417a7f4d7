//! SEV-SNP reports: the chain from AMD's root to the chip's certificate, the signature over the
//! report's very bytes, validity in time, the list of revoked certificates, the chip and the versions
//! that the VCEK was made for, and the guest's policy. x509-parser parses certificates, ring verifies.
//!
//! Source: AMD 56860 (SEV-SNP ABI), AMD 57230 (VCEK certificates and key service).

mod chain;
mod report;

use ring::signature::{ECDSA_P384_SHA384_FIXED, UnparsedPublicKey};
use x509_parser::prelude::X509Certificate;
use x509_parser::time::ASN1Time;

pub(super) use chain::Issuer;
use chain::{issuer_of, not_revoked, parse};
use report::{CHIP, Report, SIGNED, Tcb};

use crate::platform::Platform;
use crate::policy::{Crl, Product, Snp, SnpImage};
use crate::statement::UnixTime;
use crate::verify::{Refused, TcbPart};

/// Bytes of each half of the signature, little-endian; those above 48 are zero.
const HALF: usize = 72;

/// OIDs of a VCEK's extensions, under 1.3.6.1.4.1.3704.1.
mod oid {
    pub(super) const BOOTLOADER: &str = "1.3.6.1.4.1.3704.1.3.1";
    pub(super) const TEE: &str = "1.3.6.1.4.1.3704.1.3.2";
    pub(super) const SNP: &str = "1.3.6.1.4.1.3704.1.3.3";
    pub(super) const MICROCODE: &str = "1.3.6.1.4.1.3704.1.3.8";
    pub(super) const FMC: &str = "1.3.6.1.4.1.3704.1.3.9";
    pub(super) const CHIP: &str = "1.3.6.1.4.1.3704.1.4";
}

/// What a chip signed.
#[derive(Debug)]
pub(super) struct Claims {
    report: Box<Report>,
    product: Product,
    crl: bool,
}

/// Verifies everything but the policy.
pub(super) fn genuine(
    bytes: &[u8],
    vcek: &[u8],
    crls: &[Vec<u8>],
    issuers: &[Issuer],
    now: UnixTime,
) -> Result<Claims, Refused> {
    let report = Report::read(bytes)?;
    if report.algorithm != 1 {
        return Err(Refused::SnpAlgorithm {
            got: report.algorithm,
        });
    }
    if report.key.masked() {
        return Err(Refused::SnpKeyMasked);
    }
    if report.key.kind() != 0 {
        return Err(Refused::SnpSigningKey {
            got: report.key.kind(),
        });
    }

    let certificate = parse(vcek)?;
    let issuer = issuer_of(&certificate, issuers)?;
    issuer.signed(vcek)?;
    let at = moment(now)?;
    for valid in [&certificate, &issuer.ask()?, &issuer.ark()?] {
        if !valid.validity().is_valid_at(at) {
            return Err(Refused::VcekExpired);
        }
    }
    let crl = not_revoked(issuer, crls, at)?;

    signed_by_chip(bytes, &certificate)?;
    if extension(&certificate, oid::CHIP).and_then(chip) != Some(report.chip_id) {
        return Err(Refused::SnpChip);
    }
    let product = issuer.product();
    if report.product.is_some_and(|named| named != product) {
        return Err(Refused::SnpChip);
    }
    made_for(&certificate, &Tcb::read(report.reported_tcb, product))?;
    Ok(Claims {
        report: Box::new(report),
        product,
        crl,
    })
}

fn moment(now: UnixTime) -> Result<ASN1Time, Refused> {
    let seconds = i64::try_from(now.0).map_err(|_| Refused::VcekExpired)?;
    ASN1Time::from_timestamp(seconds).map_err(|_| Refused::VcekExpired)
}

/// The signature over the bytes as they came, not over what a parser made of them.
fn signed_by_chip(report: &[u8], vcek: &X509Certificate<'_>) -> Result<(), Refused> {
    let (signed, signature) = report.split_at(SIGNED);
    let mut fixed = [0; 96];
    for (half, to) in signature.chunks_exact(HALF).zip(fixed.chunks_exact_mut(48)) {
        let (number, above) = half.split_at(48);
        if above.iter().any(|byte| *byte != 0) {
            return Err(Refused::SnpSignature);
        }
        for (to, from) in to.iter_mut().zip(number.iter().rev()) {
            *to = *from;
        }
    }
    let key = &vcek.public_key().subject_public_key.data;
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, key)
        .verify(signed, &fixed)
        .map_err(|_| Refused::SnpSignature)
}

fn extension<'a>(certificate: &'a X509Certificate<'_>, oid: &str) -> Option<&'a [u8]> {
    let mut found = None;
    for extension in certificate.extensions() {
        if extension.oid.to_id_string() == oid {
            if found.is_some() {
                return None;
            }
            found = Some(extension.value);
        }
    }
    found
}

/// A chip's id: 64 bytes (Turin: 8, then zeros), as they are or as an octet string.
fn chip(value: &[u8]) -> Option<[u8; 64]> {
    let id = match value {
        [4, 64, id @ ..] if id.len() == 64 => id,
        [4, 8, id @ ..] if id.len() == 8 => id,
        id if id.len() == 64 || id.len() == 8 => id,
        _ => return None,
    };
    let mut chip = [0; 64];
    chip[..id.len()].copy_from_slice(id);
    Some(chip)
}

/// A version: an INTEGER from 0 to 255 in DER.
fn version(value: &[u8]) -> Option<u8> {
    match *value {
        [2, 1, version] if version < 128 => Some(version),
        [2, 2, 0, version] if version >= 128 => Some(version),
        _ => None,
    }
}

/// The versions of a report, by part; of the ones that its generation has.
fn parts(tcb: &Tcb) -> impl Iterator<Item = (TcbPart, &'static str, u8)> {
    let fmc = tcb.fmc.map(|version| (TcbPart::Fmc, oid::FMC, version));
    let others = [
        (TcbPart::Bootloader, oid::BOOTLOADER, tcb.bootloader),
        (TcbPart::Tee, oid::TEE, tcb.tee),
        (TcbPart::Snp, oid::SNP, tcb.snp),
        (TcbPart::Microcode, oid::MICROCODE, tcb.microcode),
    ];
    fmc.into_iter().chain(others)
}

/// The chip derives its key from its versions, so key and report must agree on them.
fn made_for(vcek: &X509Certificate<'_>, tcb: &Tcb) -> Result<(), Refused> {
    for (part, oid, reported) in parts(tcb) {
        let value = extension(vcek, oid).ok_or(Refused::VcekMalformed)?;
        let certified = version(value).ok_or(Refused::VcekMalformed)?;
        if reported != certified {
            return Err(Refused::SnpTcbMismatch {
                part,
                reported,
                certified,
            });
        }
    }
    Ok(())
}

/// Whether a certificate is of the chip that a report names. Neither is verified.
pub(super) fn is_of_chip(vcek: &[u8], report: &[u8]) -> bool {
    let named = parse(vcek).ok().and_then(|certificate| {
        let value = extension(&certificate, oid::CHIP)?;
        chip(value)
    });
    named.is_some_and(|chip| report.get(CHIP) == Some(&chip[..]))
}

impl Claims {
    pub(super) fn report_data(&self) -> &[u8; 64] {
        &self.report.report_data
    }

    pub(super) fn measurement(&self) -> &[u8; 48] {
        &self.report.measurement
    }

    pub(super) fn level(&self) -> String {
        let reported = Tcb::read(self.report.reported_tcb, self.product);
        let versions = parts(&reported).map(|(part, _, v)| format!("{part} {v}"));
        versions.collect::<Vec<_>>().join(", ")
    }

    pub(super) fn appraise(&self, policy: &Snp) -> Result<(), Refused> {
        let Snp {
            products,
            minimum_tcb: _,
            minimum_guest_svn,
            crl,
            chips,
            vmpl,
            allow_smt,
            allow_migration,
            image: _,
        } = policy;
        let report = &self.report;
        if report.policy.debug() {
            return Err(Refused::Debug {
                platform: Platform::SevSnp,
            });
        }
        if *crl == Crl::Required && !self.crl {
            return Err(Refused::CrlMissing);
        }
        if !products.contains(&self.product) {
            return Err(Refused::SnpProduct { got: self.product });
        }
        if !chips.is_empty() && chips.iter().all(|chip| chip.0 != report.chip_id) {
            return Err(Refused::SnpChipNotNamed);
        }
        self.new_enough(policy)?;
        if report.vmpl != *vmpl {
            return Err(Refused::SnpVmpl {
                expected: *vmpl,
                got: report.vmpl,
            });
        }
        if report.policy.migration() && !allow_migration {
            return Err(Refused::SnpMigration);
        }
        if report.policy.smt() && !allow_smt {
            return Err(Refused::SnpSmt);
        }
        if report.guest_svn < *minimum_guest_svn {
            return Err(Refused::SnpGuestSvn {
                least: *minimum_guest_svn,
                got: report.guest_svn,
            });
        }
        self.image(policy)
    }

    /// Versions that are reported, that run and that the firmware will not go below.
    fn new_enough(&self, policy: &Snp) -> Result<(), Refused> {
        let least = &policy.minimum_tcb;
        for tcb in [
            self.report.reported_tcb,
            self.report.current_tcb,
            self.report.committed_tcb,
        ] {
            for (part, _, got) in parts(&Tcb::read(tcb, self.product)) {
                let least = match part {
                    TcbPart::Bootloader => least.bootloader,
                    TcbPart::Fmc => least.fmc,
                    TcbPart::Microcode => least.microcode,
                    TcbPart::Snp => least.snp,
                    TcbPart::Tee => least.tee,
                };
                if got < least {
                    return Err(Refused::SnpTcbTooOld { part, least, got });
                }
            }
        }
        Ok(())
    }

    fn image(&self, policy: &Snp) -> Result<(), Refused> {
        let platform = Platform::SevSnp;
        let mut why = Refused::Measurement {
            platform,
            measurement: hex::encode(self.report.measurement),
        };
        for image in &policy.image {
            let SnpImage {
                measurement,
                host_data,
                id_key_digest,
            } = image;
            if measurement.0 != self.report.measurement {
                continue;
            }
            let host = host_data.is_none_or(|data| data.0 == self.report.host_data);
            let key = id_key_digest.is_none_or(|digest| digest.0 == self.report.id_key_digest);
            match (host, key) {
                (true, true) => return Ok(()),
                (false, _) => {
                    why = Refused::ImagePart {
                        platform,
                        part: "host-data",
                    };
                }
                (true, false) => {
                    why = Refused::ImagePart {
                        platform,
                        part: "id-key-digest",
                    };
                }
            }
        }
        Err(why)
    }
}
