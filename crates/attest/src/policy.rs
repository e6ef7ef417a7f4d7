//! What evidence must say: a TOML file that names platforms, images and the least that they must be.
//!
//! ```toml
//! version = 1
//! freshness = 60                      # seconds from the challenge to the verdict
//!
//! [sev-snp]
//! products = ["milan", "genoa", "turin"]   # all, where nothing is said
//! minimum-tcb = { bootloader = 3, tee = 0, snp = 8, microcode = 115 }
//! crl = "required"                    # or "if-given", where nothing is said
//! [[sev-snp.image]]
//! measurement = "…96 digits…"         # host-data, id-key-digest: optional
//!
//! [tdx]
//! status = ["UpToDate"]               # where nothing is said
//! advisories = []                     # those that are put up with
//! [[tdx.image]]
//! mr-td = "…"                         # and rtmr0, rtmr1, rtmr2: digits, or "danger-any"
//!
//! [[sgx.image]]
//! mr-enclave = "…64 digits…"          # or mr-signer, product and minimum-svn
//!
//! [[nitro.image]]
//! pcr0 = "…"                          # and pcr1, pcr2: digits, or "danger-any"
//!
//! [[simulated-not-a-tee.image]]
//! measurement = "…"                   # proves nothing; for development
//! ```
//!
//! A platform that has no section is refused. Debug modes are always refused. An unknown key is an
//! error, and so is a section without an image.

use std::collections::BTreeMap;
use std::fmt;

use dcap_qvl::TcbStatus;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::platform::Platform;

/// The only version of the file.
const VERSION: u32 = 1;

/// The longest freshness that a policy may ask for: a day.
const LONGEST: u64 = 24 * 3600;

/// What evidence must satisfy.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    version: u32,
    freshness: u64,
    pub(crate) sev_snp: Option<Snp>,
    pub(crate) tdx: Option<Tdx>,
    pub(crate) sgx: Option<Sgx>,
    pub(crate) nitro: Option<Nitro>,
    pub(crate) simulated_not_a_tee: Option<Simulated>,
}

/// Why a file is no policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// Not the TOML that a policy is; the text says where.
    #[error("not a policy for evidence: {0}")]
    Malformed(#[from] toml::de::Error),
    /// Of another version.
    #[error("version {got} of policies for evidence; this program knows version {VERSION}")]
    Version {
        /// The version named.
        got: u32,
    },
    /// No platform is named, so nothing could pass.
    #[error(
        "the policy names no platform; add a section such as [sev-snp] with an [[sev-snp.image]]"
    )]
    NoPlatform,
    /// A platform without images, so nothing could pass.
    #[error("[{platform}] names no image; add an [[{platform}.image]] with its measurement")]
    NoImage {
        /// The section.
        platform: Platform,
    },
    /// Freshness outside of 1 second to a day.
    #[error("freshness = {got}: a number of seconds from 1 to {LONGEST} is wanted")]
    Freshness {
        /// The number given.
        got: u64,
    },
    /// An SGX image that says neither or both of what it is known by.
    #[error(
        "sgx image {index}: give either mr-enclave, or all of mr-signer, product and minimum-svn"
    )]
    SgxImage {
        /// Which one, from 0.
        index: usize,
    },
    /// A revoked platform cannot be allowed.
    #[error("[{platform}] status: {status} cannot be allowed")]
    Status {
        /// The section.
        platform: Platform,
        /// The status.
        status: String,
    },
}

impl Policy {
    /// Reads a policy file.
    ///
    /// # Errors
    /// [`PolicyError`].
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let policy: Self = toml::from_str(text)?;
        if policy.version != VERSION {
            return Err(PolicyError::Version {
                got: policy.version,
            });
        }
        if !(1..=LONGEST).contains(&policy.freshness) {
            return Err(PolicyError::Freshness {
                got: policy.freshness,
            });
        }
        policy.sections()?;
        Ok(policy)
    }

    fn sections(&self) -> Result<(), PolicyError> {
        let Self {
            version: _,
            freshness: _,
            sev_snp,
            tdx,
            sgx,
            nitro,
            simulated_not_a_tee,
        } = self;
        let images = [
            (Platform::SevSnp, sev_snp.as_ref().map(|s| s.image.len())),
            (Platform::Tdx, tdx.as_ref().map(|s| s.image.len())),
            (Platform::Sgx, sgx.as_ref().map(|s| s.image.len())),
            (Platform::Nitro, nitro.as_ref().map(|s| s.image.len())),
            (
                Platform::SimulatedNotATee,
                simulated_not_a_tee.as_ref().map(|s| s.image.len()),
            ),
        ];
        if images.iter().all(|(_, count)| count.is_none()) {
            return Err(PolicyError::NoPlatform);
        }
        for (platform, count) in images {
            if count == Some(0) {
                return Err(PolicyError::NoImage { platform });
            }
        }
        for (platform, status) in [
            (Platform::Tdx, tdx.as_ref().map(|s| &s.status)),
            (Platform::Sgx, sgx.as_ref().map(|s| &s.status)),
        ] {
            if status.is_some_and(|status| status.contains(&TcbStatus::Revoked)) {
                return Err(PolicyError::Status {
                    platform,
                    status: TcbStatus::Revoked.to_string(),
                });
            }
        }
        for (index, image) in sgx.iter().flat_map(|sgx| &sgx.image).enumerate() {
            let signer = [
                image.mr_signer.is_some(),
                image.product.is_some(),
                image.minimum_svn.is_some(),
            ];
            let by_signer = signer.iter().all(|given| *given);
            let no_signer = signer.iter().all(|given| !given);
            if !(image.mr_enclave.is_some() && no_signer || image.mr_enclave.is_none() && by_signer)
            {
                return Err(PolicyError::SgxImage { index });
            }
        }
        Ok(())
    }

    /// Seconds from the challenge to the verdict, at most.
    pub fn freshness(&self) -> u64 {
        self.freshness
    }

    /// Whether there is a section for a platform.
    pub(crate) fn names(&self, platform: Platform) -> bool {
        match platform {
            Platform::Nitro => self.nitro.is_some(),
            Platform::SevSnp => self.sev_snp.is_some(),
            Platform::Sgx => self.sgx.is_some(),
            Platform::SimulatedNotATee => self.simulated_not_a_tee.is_some(),
            Platform::Tdx => self.tdx.is_some(),
        }
    }

    /// Whether evidence that proves nothing passes. Whoever shows this policy should say so loudly.
    pub fn names_simulated(&self) -> bool {
        self.simulated_not_a_tee.is_some()
    }
}

/// AMD SEV-SNP.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Snp {
    #[serde(default = "Product::all")]
    pub(crate) products: Vec<Product>,
    pub(crate) minimum_tcb: SnpTcb,
    #[serde(default)]
    pub(crate) minimum_guest_svn: u32,
    #[serde(default)]
    pub(crate) crl: Crl,
    /// If given, only these chips.
    #[serde(default)]
    pub(crate) chips: Vec<Hex<64>>,
    #[serde(default)]
    pub(crate) vmpl: u32,
    /// Whether the machine may run two threads on a core.
    #[serde(default = "yes")]
    pub(crate) allow_smt: bool,
    #[serde(default)]
    pub(crate) allow_migration: bool,
    #[serde(default)]
    pub(crate) image: Vec<SnpImage>,
}

fn yes() -> bool {
    true
}

/// Generations of processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Product {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004.
    Genoa,
    /// EPYC 9005.
    Turin,
}

impl Product {
    fn all() -> Vec<Self> {
        vec![Self::Milan, Self::Genoa, Self::Turin]
    }
}

/// The least versions of the parts of a platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SnpTcb {
    #[serde(default)]
    pub(crate) fmc: u8,
    pub(crate) bootloader: u8,
    pub(crate) tee: u8,
    pub(crate) snp: u8,
    pub(crate) microcode: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Crl {
    #[default]
    IfGiven,
    Required,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SnpImage {
    pub(crate) measurement: Hex<48>,
    pub(crate) host_data: Option<Hex<32>>,
    pub(crate) id_key_digest: Option<Hex<48>>,
}

/// Intel TDX.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Tdx {
    #[serde(default = "up_to_date")]
    pub(crate) status: Vec<TcbStatus>,
    #[serde(default)]
    pub(crate) advisories: Vec<String>,
    #[serde(default)]
    pub(crate) minimum_evaluation: u32,
    #[serde(default)]
    pub(crate) image: Vec<TdxImage>,
}

fn up_to_date() -> Vec<TcbStatus> {
    vec![TcbStatus::UpToDate]
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct TdxImage {
    pub(crate) mr_td: Hex<48>,
    pub(crate) rtmr0: OrAny<48>,
    pub(crate) rtmr1: OrAny<48>,
    pub(crate) rtmr2: OrAny<48>,
    pub(crate) rtmr3: Option<Hex<48>>,
    pub(crate) mr_config_id: Option<Hex<48>>,
    pub(crate) mr_owner: Option<Hex<48>>,
    pub(crate) mr_owner_config: Option<Hex<48>>,
}

/// Intel SGX.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Sgx {
    #[serde(default = "up_to_date")]
    pub(crate) status: Vec<TcbStatus>,
    #[serde(default)]
    pub(crate) advisories: Vec<String>,
    #[serde(default)]
    pub(crate) minimum_evaluation: u32,
    #[serde(default)]
    pub(crate) image: Vec<SgxImage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SgxImage {
    pub(crate) mr_enclave: Option<Hex<32>>,
    pub(crate) mr_signer: Option<Hex<32>>,
    pub(crate) product: Option<u16>,
    pub(crate) minimum_svn: Option<u16>,
}

/// AWS Nitro Enclaves.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Nitro {
    #[serde(default)]
    pub(crate) image: Vec<NitroImage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct NitroImage {
    pub(crate) pcr0: Hex<48>,
    pub(crate) pcr1: OrAny<48>,
    pub(crate) pcr2: OrAny<48>,
    pub(crate) pcr3: Option<Hex<48>>,
    pub(crate) pcr4: Option<Hex<48>>,
    pub(crate) pcr8: Option<Hex<48>>,
}

impl NitroImage {
    /// The registers that are demanded.
    pub(crate) fn demanded(&self) -> BTreeMap<u16, &[u8; 48]> {
        let fixed = [
            (0, Some(&self.pcr0)),
            (1, self.pcr1.wanted()),
            (2, self.pcr2.wanted()),
            (3, self.pcr3.as_ref()),
            (4, self.pcr4.as_ref()),
            (8, self.pcr8.as_ref()),
        ];
        fixed
            .into_iter()
            .filter_map(|(index, value)| Some((index, &value?.0)))
            .collect()
    }
}

/// What is no TEE.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Simulated {
    #[serde(default)]
    pub(crate) image: Vec<SimulatedImage>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct SimulatedImage {
    pub(crate) measurement: Hex<48>,
}

/// So many bytes, written in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hex<const N: usize>(pub(crate) [u8; N]);

impl<const N: usize> Hex<N> {
    fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; N];
        hex::decode_to_slice(text, &mut bytes).ok()?;
        Some(Self(bytes))
    }
}

impl<const N: usize> fmt::Debug for Hex<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl<'de, const N: usize> Deserialize<'de> for Hex<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        Self::parse(&text).ok_or_else(|| {
            D::Error::custom(format!("{} hexadecimal digits are wanted here", 2 * N))
        })
    }
}

/// A value, or the word that gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OrAny<const N: usize> {
    Is(Hex<N>),
    DangerAny,
}

impl<const N: usize> OrAny<N> {
    pub(crate) fn wanted(&self) -> Option<&Hex<N>> {
        match self {
            Self::Is(value) => Some(value),
            Self::DangerAny => None,
        }
    }

    pub(crate) fn allows(&self, value: &[u8; N]) -> bool {
        self.wanted().is_none_or(|wanted| &wanted.0 == value)
    }
}

impl<'de, const N: usize> Deserialize<'de> for OrAny<N> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        if text == "danger-any" {
            return Ok(Self::DangerAny);
        }
        Hex::parse(&text).map(Self::Is).ok_or_else(|| {
            D::Error::custom(format!(
                "{} hexadecimal digits, or \"danger-any\", are wanted here",
                2 * N
            ))
        })
    }
}
