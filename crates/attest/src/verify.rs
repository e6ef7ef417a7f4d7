//! From evidence to a witness.
//!
//! Three things must hold, in this order, and each has errors of its own ([`Refused`]):
//!
//! 1. **Statement**: what the evidence says it is about is what the verifier asked: its nonce, the
//!    key and the connection that it sees itself.
//! 2. **Genuine**: a maker's root signed for the platform, nothing on the way is expired or revoked,
//!    and the platform signed this report ([`Genuine`]). The report's data is the digest of that
//!    statement.
//! 3. **Policy**: the platform is named, and image, versions and settings are those demanded.
//!
//! What comes out is [`Attested`], which is built here alone. Keys are handed, requests sent and
//! channels opened to an `Attested` and to nothing else.

mod intel;
mod nitro;
mod refused;
mod simulated;
mod snp;

use std::fmt;

use subtle::ConstantTimeEq;

pub use refused::{QuoteFault, Refused, TcbPart};
pub(crate) use simulated::MAGIC as SIMULATED_MAGIC;

use crate::evidence::Evidence;
use crate::platform::Platform;
use crate::policy::{Policy, Product};
use crate::statement::{
    Challenge, Channel, Mailbox, ModelId, Release, ReportData, Statement, UnixTime,
};

/// Who may sign for hardware. The makers, unless a test says otherwise.
#[derive(Debug)]
pub struct Roots {
    /// Intel's own where there is none.
    intel: Option<Vec<u8>>,
    amd: Vec<snp::Issuer>,
}

/// Why roots cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("a root of trust cannot be used: {why}")]
pub struct RootError {
    why: String,
}

impl Roots {
    /// Intel's SGX root, AMD's for Milan, Genoa and Turin. (AWS's is fixed in `nitro_attest`.)
    ///
    /// # Errors
    /// [`RootError`]; the roots that are built in always load.
    pub fn makers() -> Result<Self, RootError> {
        Ok(Self {
            intel: None,
            amd: snp::Issuer::makers()?,
        })
    }

    /// Roots of one's own choice, for tests: whoever has their keys can make any evidence.
    ///
    /// # Errors
    /// [`RootError`] where AMD's root does not sign itself and its signing key.
    pub fn danger_others(
        intel: Vec<u8>,
        product: Product,
        ark: &[u8],
        ask: &[u8],
    ) -> Result<Self, RootError> {
        Ok(Self {
            intel: Some(intel),
            amd: vec![snp::Issuer::new(product, ark, ask)?],
        })
    }
}

/// Verifies evidence against one policy.
#[derive(Debug)]
pub struct Verifier {
    policy: Policy,
    roots: Roots,
    crls: Vec<Vec<u8>>,
    vceks: Vec<Vec<u8>>,
    collateral: Option<dcap_qvl::QuoteCollateralV3>,
}

impl Verifier {
    /// A verifier with the makers' roots.
    ///
    /// # Errors
    /// [`RootError`]; see [`Roots::makers`].
    pub fn new(policy: Policy) -> Result<Self, RootError> {
        Ok(Self::with_roots(policy, Roots::makers()?))
    }

    /// A verifier with roots of one's own choice.
    pub fn with_roots(policy: Policy, roots: Roots) -> Self {
        Self {
            policy,
            roots,
            crls: Vec::new(),
            vceks: Vec::new(),
            collateral: None,
        }
    }

    /// Adds a list of revoked certificates of AMD's (DER).
    #[must_use]
    pub fn with_amd_crl(mut self, der: Vec<u8>) -> Self {
        self.crls.push(der);
        self
    }

    /// Adds a VCEK (DER), for evidence that brings none.
    #[must_use]
    pub fn with_vcek(mut self, der: Vec<u8>) -> Self {
        self.vceks.push(der);
        self
    }

    /// Takes Intel's collateral from here instead of from the evidence.
    #[must_use]
    pub fn with_collateral(mut self, collateral: dcap_qvl::QuoteCollateralV3) -> Self {
        self.collateral = Some(collateral);
        self
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether the far end of a TLS connection is what the policy demands. `channel` is what this
    /// end of the connection knows.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn channel(
        &self,
        evidence: &Evidence,
        challenge: Challenge,
        channel: Channel,
        now: UnixTime,
    ) -> Result<Attested<Channel>, Refused> {
        let wanted = Statement::channel(&channel, challenge.nonce);
        self.verify(evidence, &challenge, &wanted, channel, now)
    }

    /// Whether the key in the evidence is one to which requests may be sealed.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn mailbox(
        &self,
        evidence: &Evidence,
        challenge: Challenge,
        now: UnixTime,
    ) -> Result<Attested<Mailbox>, Refused> {
        let Statement::Mailbox { key, .. } = *evidence.statement() else {
            return Err(Refused::OtherPurpose {
                expected: "mailbox",
                got: evidence.statement().purpose(),
            });
        };
        let mailbox = Mailbox { key };
        let wanted = Statement::mailbox(&mailbox, challenge.nonce);
        self.verify(evidence, &challenge, &wanted, mailbox, now)
    }

    /// Whether the key in the evidence is one to which this model's key may be released.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn release(
        &self,
        evidence: &Evidence,
        challenge: Challenge,
        model: ModelId,
        now: UnixTime,
    ) -> Result<Attested<Release>, Refused> {
        let Statement::Release { key, .. } = *evidence.statement() else {
            return Err(Refused::OtherPurpose {
                expected: "release",
                got: evidence.statement().purpose(),
            });
        };
        let release = Release { key, model };
        let wanted = Statement::release(&release, challenge.nonce);
        self.verify(evidence, &challenge, &wanted, release, now)
    }

    fn verify<S>(
        &self,
        evidence: &Evidence,
        challenge: &Challenge,
        wanted: &Statement,
        statement: S,
        now: UnixTime,
    ) -> Result<Attested<S>, Refused> {
        let age = now
            .0
            .checked_sub(challenge.issued.0)
            .ok_or(Refused::ClockWentBack)?;
        if age > self.policy.freshness() {
            return Err(Refused::TooLate {
                limit: self.policy.freshness(),
                age,
            });
        }
        evidence.statement().hold_against(wanted)?;
        let platform = evidence.platform();
        if !self.policy.names(platform) {
            return Err(Refused::PlatformNotNamed { platform });
        }
        let genuine = self.genuine(evidence, now)?;
        genuine.says(&wanted.report_data())?;
        genuine.appraise(&self.policy)?;
        Ok(Attested {
            statement,
            nonce: challenge.nonce,
            platform: genuine.platform(),
            measurement: genuine.measurement(),
            level: genuine.level(),
            at: now,
        })
    }

    /// Whether a platform that a maker vouches for signed this report, whatever it says and whatever
    /// the policy is. This is not enough to trust anything; see [`Genuine::appraise`] and
    /// [`Genuine::says`].
    ///
    /// # Errors
    /// [`Refused`].
    pub fn genuine(&self, evidence: &Evidence, now: UnixTime) -> Result<Genuine, Refused> {
        let report = evidence.report();
        let claims = match evidence.platform() {
            Platform::SevSnp => {
                let given = evidence.vcek().or_else(|| self.vcek_for(report));
                let vcek = given.ok_or(Refused::VcekMissing)?;
                Claims::Snp(snp::genuine(
                    report,
                    vcek,
                    &self.crls,
                    &self.roots.amd,
                    now,
                )?)
            }
            platform @ (Platform::Tdx | Platform::Sgx) => {
                let own = self.collateral.as_ref();
                let given = own.or_else(|| evidence.collateral());
                let collateral = given.ok_or(Refused::CollateralMissing)?;
                Claims::Intel(Box::new(intel::genuine(
                    platform,
                    report,
                    collateral,
                    self.roots.intel.as_deref(),
                    now,
                )?))
            }
            Platform::Nitro => Claims::Nitro(nitro::genuine(report, now, self.policy.freshness())?),
            Platform::SimulatedNotATee => Claims::Simulated(simulated::read(report)?),
        };
        Ok(Genuine { claims })
    }

    /// One of the VCEKs that were given, by the chip that the report names.
    fn vcek_for(&self, report: &[u8]) -> Option<&[u8]> {
        let mut vceks = self.vceks.iter().map(Vec::as_slice);
        vceks.find(|vcek| snp::is_of_chip(vcek, report))
    }
}

/// What a platform signed, if a maker vouches for the platform. Not yet what anybody asked for.
#[derive(Debug)]
pub struct Genuine {
    claims: Claims,
}

#[derive(Debug)]
enum Claims {
    Intel(Box<intel::Claims>),
    Nitro(nitro::Claims),
    Simulated(simulated::Claims),
    Snp(snp::Claims),
}

impl Genuine {
    /// Whether the report carries this data.
    ///
    /// # Errors
    /// [`Refused::OtherData`].
    pub fn says(&self, data: &ReportData) -> Result<(), Refused> {
        let carried: &[u8] = match &self.claims {
            Claims::Intel(claims) => claims.report_data(),
            Claims::Nitro(claims) => claims.report_data()?,
            Claims::Simulated(claims) => &claims.report_data,
            Claims::Snp(claims) => claims.report_data(),
        };
        if bool::from(carried.ct_eq(&data.0)) {
            Ok(())
        } else {
            Err(Refused::OtherData)
        }
    }

    /// Whether image, versions and settings are those that a policy demands.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn appraise(&self, policy: &Policy) -> Result<(), Refused> {
        let unnamed = Refused::PlatformNotNamed {
            platform: self.platform(),
        };
        match &self.claims {
            Claims::Intel(claims) => claims.appraise(policy),
            Claims::Nitro(claims) => claims.appraise(policy.nitro.as_ref().ok_or(unnamed)?),
            Claims::Simulated(claims) => {
                claims.appraise(policy.simulated_not_a_tee.as_ref().ok_or(unnamed)?)
            }
            Claims::Snp(claims) => claims.appraise(policy.sev_snp.as_ref().ok_or(unnamed)?),
        }
    }

    /// The platform.
    pub fn platform(&self) -> Platform {
        match &self.claims {
            Claims::Intel(claims) => claims.platform(),
            Claims::Nitro(_) => Platform::Nitro,
            Claims::Simulated(_) => Platform::SimulatedNotATee,
            Claims::Snp(_) => Platform::SevSnp,
        }
    }

    /// The main measurement of the image, in hexadecimal: `MEASUREMENT`, `MRTD`, `MRENCLAVE`, PCR0.
    pub fn measurement(&self) -> String {
        match &self.claims {
            Claims::Intel(claims) => hex::encode(claims.measurement()),
            Claims::Nitro(claims) => hex::encode(claims.pcr0()),
            Claims::Simulated(claims) => hex::encode(claims.measurement),
            Claims::Snp(claims) => hex::encode(claims.measurement()),
        }
    }

    /// How up to date the platform is, in the maker's words.
    pub fn level(&self) -> String {
        match &self.claims {
            Claims::Intel(claims) => claims.level(),
            Claims::Nitro(_) => "none reported".to_owned(),
            Claims::Simulated(_) => "NOT A TEE: anybody can make this evidence".to_owned(),
            Claims::Snp(claims) => claims.level(),
        }
    }
}

/// Proof that evidence about a statement was verified against a policy. Built by [`Verifier`] alone.
pub struct Attested<S> {
    statement: S,
    nonce: crate::statement::Nonce,
    platform: Platform,
    measurement: String,
    level: String,
    at: UnixTime,
}

impl<S> Attested<S> {
    /// What was attested.
    pub fn statement(&self) -> &S {
        &self.statement
    }

    /// The nonce that it was attested over.
    pub fn nonce(&self) -> crate::statement::Nonce {
        self.nonce
    }

    /// The platform.
    pub fn platform(&self) -> Platform {
        self.platform
    }

    /// The image's main measurement, in hexadecimal.
    pub fn measurement(&self) -> &str {
        &self.measurement
    }

    /// How up to date the platform is, in the maker's words.
    pub fn level(&self) -> &str {
        &self.level
    }

    /// When it was verified.
    pub fn at(&self) -> UnixTime {
        self.at
    }
}

impl<S: fmt::Debug> fmt::Debug for Attested<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attested")
            .field("statement", &self.statement)
            .field("platform", &self.platform)
            .field("measurement", &self.measurement)
            .finish_non_exhaustive()
    }
}
