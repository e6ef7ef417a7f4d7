//! What kind of machine evidence comes from.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of trusted execution environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Platform {
    /// AWS Nitro Enclaves.
    Nitro,
    /// AMD SEV-SNP.
    SevSnp,
    /// Intel SGX, by DCAP quotes.
    Sgx,
    /// No protection at all: anybody can make this evidence. For development.
    #[serde(rename = "simulated-not-a-tee")]
    SimulatedNotATee,
    /// Intel TDX, by DCAP quotes.
    Tdx,
}

impl Platform {
    /// The name in policies, evidence and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nitro => "nitro",
            Self::SevSnp => "sev-snp",
            Self::Sgx => "sgx",
            Self::SimulatedNotATee => "simulated-not-a-tee",
            Self::Tdx => "tdx",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
