//! Evidence on its way: one JSON object with a fixed set of keys.
//!
//! ```json
//! { "version": 1, "platform": "sev-snp",
//!   "statement": { "purpose": "channel", "nonce": "…", "key": "…", "exporter": "…" },
//!   "report": "base64", "vcek": "base64", "collateral": null }
//! ```
//!
//! `report` is what the platform signed: an SNP report, a quote, or a Nitro document. `vcek` (DER) and
//! `collateral` (Intel's, as `dcap-qvl` writes it) may come along; both are signed by the makers
//! of the hardware, so it does not matter who brings them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dcap_qvl::QuoteCollateralV3;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::platform::Platform;
use crate::statement::Statement;

/// The most bytes that encoded evidence may have.
pub const MAX_ENCODED: usize = 512 << 10;

/// The version of the envelope.
const VERSION: u32 = 1;

/// Evidence that nobody has verified.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    version: u32,
    platform: Platform,
    statement: Statement,
    #[serde(with = "as_base64")]
    report: Vec<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vcek: Option<Blob>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    collateral: Option<Box<QuoteCollateralV3>>,
}

/// Bytes that are written in base64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Blob(#[serde(with = "as_base64")] Vec<u8>);

/// Why bytes are no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// Longer than any evidence is.
    #[error("evidence has {got} bytes, more than {limit}")]
    TooLong {
        /// The limit.
        limit: usize,
        /// The bytes.
        got: usize,
    },
    /// Not the JSON that evidence is.
    #[error("evidence is not what it should be: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Of another version.
    #[error("evidence has version {got}; this program knows version {VERSION}")]
    Version {
        /// The version named.
        got: u32,
    },
}

impl Evidence {
    /// What an attester made of a statement.
    pub fn new(platform: Platform, statement: Statement, report: Vec<u8>) -> Self {
        Self {
            version: VERSION,
            platform,
            statement,
            report,
            vcek: None,
            collateral: None,
        }
    }

    /// Adds the certificate of the key that signed an SNP report (DER).
    #[must_use]
    pub fn with_vcek(mut self, der: Vec<u8>) -> Self {
        self.vcek = Some(Blob(der));
        self
    }

    /// Adds what Intel says about a quote's platform.
    #[must_use]
    pub fn with_collateral(mut self, collateral: QuoteCollateralV3) -> Self {
        self.collateral = Some(Box::new(collateral));
        self
    }

    /// The same with another report, as somebody on the way may make of it.
    #[must_use]
    pub fn with_report(mut self, report: Vec<u8>) -> Self {
        self.report = report;
        self
    }

    /// Reads evidence.
    ///
    /// # Errors
    /// [`EvidenceError`]. Nothing is verified here.
    pub fn decode(bytes: &[u8]) -> Result<Self, EvidenceError> {
        if bytes.len() > MAX_ENCODED {
            return Err(EvidenceError::TooLong {
                limit: MAX_ENCODED,
                got: bytes.len(),
            });
        }
        let evidence: Self = serde_json::from_slice(bytes)?;
        if evidence.version != VERSION {
            return Err(EvidenceError::Version {
                got: evidence.version,
            });
        }
        Ok(evidence)
    }

    /// Writes evidence.
    ///
    /// # Panics
    /// Never: all keys are text.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers only")
    }

    /// The platform that it says it is from.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// What it says it is about.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// What the platform signed.
    pub fn report(&self) -> &[u8] {
        &self.report
    }

    pub(crate) fn vcek(&self) -> Option<&[u8]> {
        self.vcek.as_ref().map(|blob| blob.0.as_slice())
    }

    pub(crate) fn collateral(&self) -> Option<&QuoteCollateralV3> {
        self.collateral.as_deref()
    }
}

mod as_base64 {
    use super::{Deserialize, Deserializer, Engine, STANDARD, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}
