//! Nitro documents: `nitro_attest` verifies signature, chain, root and times; the rest is here.
//!
//! An enclave in debug mode has registers of zeros, which `nitro_attest` leaves out: one without
//! PCR0 is therefore refused as a debug enclave.

use std::collections::BTreeMap;

use nitro_attest::{Error, UnparsedAttestationDoc};
use time::OffsetDateTime;

use crate::platform::Platform;
use crate::policy::{Nitro, NitroImage};
use crate::statement::UnixTime;
use crate::verify::Refused;

#[derive(Debug)]
pub(super) struct Claims {
    pub(super) pcrs: BTreeMap<u16, Vec<u8>>,
    pub(super) user_data: Option<Vec<u8>>,
}

pub(super) fn genuine(document: &[u8], now: UnixTime, limit: u64) -> Result<Claims, Refused> {
    let seconds = i64::try_from(now.0).map_err(|_| Refused::NitroNotYetValid)?;
    let at = OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| Refused::NitroExpired)?;
    let verified = UnparsedAttestationDoc::from(document)
        .parse_and_verify(at)
        .map_err(|error| reason(&error))?;
    let age = seconds.saturating_sub(verified.timestamp.unix_timestamp());
    if age.unsigned_abs() > limit {
        return Err(Refused::NitroStale { limit, age });
    }
    let pcrs = verified.pcrs.into_iter();
    Ok(Claims {
        pcrs: pcrs.map(|(index, pcr)| (index, pcr.value)).collect(),
        user_data: verified.user_data.map(|data| data.into_vec()),
    })
}

fn reason(error: &Error) -> Refused {
    match error {
        Error::CertificateRootInvalid { .. } => Refused::NitroRoot,
        Error::CertificateSignatureInvalid { .. }
        | Error::CertificateUnexpectedAlgorithm { .. } => Refused::NitroChain,
        Error::CertificateExpired { .. } => Refused::NitroExpired,
        Error::CertificateNotYetValid { .. } => Refused::NitroNotYetValid,
        Error::CoseSignatureVerificationFailed() => Refused::NitroSignature,
        Error::CommonNameMalformed(_)
        | Error::CommonNameMissing
        | Error::CoseSignatureMalformed(_)
        | Error::CosePayloadMissing
        | Error::CosePayloadMalformed { .. }
        | Error::CertificateMalformed { .. }
        | Error::CertificateMalformedStructure { .. }
        | Error::NoCertificatesFound
        | Error::CoseTimestampInvalid { .. } => Refused::NitroMalformed,
    }
}

impl Claims {
    pub(super) fn report_data(&self) -> Result<&[u8], Refused> {
        self.user_data.as_deref().ok_or(Refused::NitroNoData)
    }

    pub(super) fn pcr0(&self) -> &[u8] {
        self.pcrs.get(&0).map_or(&[], Vec::as_slice)
    }

    pub(super) fn appraise(&self, policy: &Nitro) -> Result<(), Refused> {
        let platform = Platform::Nitro;
        if self.pcr0().is_empty() {
            return Err(Refused::Debug { platform });
        }
        let mut why = Refused::Measurement {
            platform,
            measurement: hex::encode(self.pcr0()),
        };
        for image in &policy.image {
            match self.is(image) {
                None => return Ok(()),
                Some(0) => {}
                Some(index) => why = Refused::NitroPcr { index },
            }
        }
        Err(why)
    }

    /// The first register that differs from the image's.
    fn is(&self, image: &NitroImage) -> Option<u16> {
        let differs = |(index, wanted): (u16, &[u8; 48])| {
            let same = self.pcrs.get(&index).is_some_and(|pcr| pcr == wanted);
            (!same).then_some(index)
        };
        image.demanded().into_iter().find_map(differs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::Policy;

    fn claims(pcrs: &[(u16, u8)]) -> Claims {
        let pcrs = pcrs.iter().map(|(index, byte)| (*index, vec![*byte; 48]));
        Claims {
            pcrs: pcrs.collect(),
            user_data: None,
        }
    }

    fn policy() -> Nitro {
        let digits = |byte: &str| byte.repeat(48);
        let text = format!(
            "version = 1\nfreshness = 60\n[[nitro.image]]\npcr0 = \"{}\"\npcr1 = \"{}\"\n\
             pcr2 = \"danger-any\"\npcr8 = \"{}\"\n",
            digits("aa"),
            digits("bb"),
            digits("cc"),
        );
        Policy::from_toml(&text).unwrap().nitro.unwrap()
    }

    #[test]
    fn registers_are_held_against_the_policy() {
        let policy = policy();
        let fits = claims(&[(0, 0xaa), (1, 0xbb), (2, 1), (8, 0xcc)]);
        assert_eq!(fits.appraise(&policy), Ok(()));
        let platform = Platform::Nitro;
        let debug = claims(&[]);
        assert_eq!(debug.appraise(&policy), Err(Refused::Debug { platform }));
        let other = claims(&[(0, 0xab), (1, 0xbb), (8, 0xcc)]);
        let measurement = "ab".repeat(48);
        let why = Refused::Measurement {
            platform,
            measurement,
        };
        assert_eq!(other.appraise(&policy), Err(why));
        let kernel = claims(&[(0, 0xaa), (1, 0xbc), (8, 0xcc)]);
        assert_eq!(
            kernel.appraise(&policy),
            Err(Refused::NitroPcr { index: 1 })
        );
        let unsigned = claims(&[(0, 0xaa), (1, 0xbb)]);
        assert_eq!(
            unsigned.appraise(&policy),
            Err(Refused::NitroPcr { index: 8 })
        );
    }

    #[test]
    fn a_document_without_user_data_is_about_nothing() {
        assert_eq!(claims(&[]).report_data(), Err(Refused::NitroNoData));
    }
}
