//! Why evidence is refused: one variant for each reason.

use std::fmt;

use crate::platform::Platform;
use crate::policy::Product;
use crate::statement::{KeyHash, ModelId};

/// Why evidence is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    // -- the statement ---------------------------------------------------------------------
    /// The clock shows a time before the challenge.
    #[error("the clock went back since the challenge was issued")]
    ClockWentBack,
    /// The verdict comes too long after the challenge.
    #[error("the evidence came {age} s after the challenge; the policy allows {limit} s")]
    TooLate {
        /// Seconds allowed.
        limit: u64,
        /// Seconds passed.
        age: u64,
    },
    /// The evidence answers another challenge: an old one, played again.
    #[error("the evidence answers another nonce: it is stale, or another's")]
    StaleNonce,
    /// The evidence is about another TLS key than that of the connection.
    #[error(
        "the evidence is about key {got}, the connection has key {expected}: somebody sits between"
    )]
    OtherKey {
        /// The connection's key.
        expected: KeyHash,
        /// The key named.
        got: KeyHash,
    },
    /// The evidence is about another connection: genuine evidence, passed on by somebody between.
    #[error("the evidence is about another TLS connection: it was relayed")]
    OtherConnection,
    /// The evidence is about another model.
    #[error("the evidence asks for model {got}, not for {expected}")]
    OtherModel {
        /// The model that is to be released.
        expected: ModelId,
        /// The model named.
        got: ModelId,
    },
    /// The evidence was made for another purpose.
    #[error("the evidence is for the purpose {got}, not for {expected}")]
    OtherPurpose {
        /// The purpose wanted.
        expected: &'static str,
        /// The purpose named.
        got: &'static str,
    },
    /// The platform signed other data than the digest of the statement.
    #[error("the platform signed other data than this statement: the evidence is another's")]
    OtherData,

    // -- the policy ------------------------------------------------------------------------
    /// The policy has no section for the platform.
    #[error("the policy does not name the platform {platform}")]
    PlatformNotNamed {
        /// The platform.
        platform: Platform,
    },
    /// No image of the policy has this measurement.
    #[error("{platform}: no image of the policy has the measurement {measurement}")]
    Measurement {
        /// The platform.
        platform: Platform,
        /// What was measured.
        measurement: String,
    },
    /// An image has the measurement but differs in something else that the policy names.
    #[error("{platform}: the image's {part} is not the policy's")]
    ImagePart {
        /// The platform.
        platform: Platform,
        /// The part, as the policy calls it.
        part: &'static str,
    },
    /// The image runs in a mode in which its host may look into it.
    #[error("{platform}: debug mode is on")]
    Debug {
        /// The platform.
        platform: Platform,
    },

    // -- SEV-SNP ---------------------------------------------------------------------------
    /// An SNP report has 1184 bytes.
    #[error("an SNP report has 1184 bytes, not {got}")]
    SnpLength {
        /// The bytes.
        got: usize,
    },
    /// The report has a form that is not known.
    #[error("the SNP report cannot be read")]
    SnpReport,
    /// The report is signed by another algorithm than ECDSA P-384 with SHA-384.
    #[error("the SNP report names signature algorithm {got}, not 1 (ECDSA P-384, SHA-384)")]
    SnpAlgorithm {
        /// The number.
        got: u32,
    },
    /// The host has the firmware hide the chip's key; nothing signs the report.
    #[error("the SNP report is not signed: the host masks the chip's key")]
    SnpKeyMasked,
    /// The report is signed by another key than a chip's own (VCEK).
    #[error("the SNP report is signed by a key of kind {got}; only VCEKs (kind 0) are known")]
    SnpSigningKey {
        /// The kind: 1 is a VLEK, 7 none.
        got: u32,
    },
    /// No VCEK came with the evidence, and none was given.
    #[error(
        "the chip's certificate (VCEK) is missing; it is at AMD's key service, by chip id and versions"
    )]
    VcekMissing,
    /// The VCEK is not a certificate as AMD makes them.
    #[error("the VCEK is no certificate of the expected form")]
    VcekMalformed,
    /// None of the roots issued the VCEK.
    #[error("the VCEK names an issuer that is not known")]
    VcekIssuer,
    /// The VCEK's signature is not its issuer's.
    #[error("the VCEK is not signed by AMD's signing key")]
    VcekSignature,
    /// The VCEK, or a certificate above it, is expired or not yet valid.
    #[error("a certificate of the chain of the VCEK is not valid at this time")]
    VcekExpired,
    /// AMD revoked the signing key above the VCEK.
    #[error("the key that signed the VCEK is revoked")]
    VcekRevoked,
    /// The policy demands a list of revoked certificates, and none for this chain was given.
    #[error("the policy demands AMD's list of revoked certificates, and none was given")]
    CrlMissing,
    /// A list of revoked certificates cannot be read.
    #[error("the list of revoked certificates cannot be read")]
    CrlMalformed,
    /// The list is not signed by the root.
    #[error("the list of revoked certificates is not signed by AMD's root")]
    CrlSignature,
    /// The list is out of date, or from the future.
    #[error("the list of revoked certificates is not valid at this time")]
    CrlExpired,
    /// The report's signature is not the VCEK's.
    #[error("the SNP report is not signed by the VCEK")]
    SnpSignature,
    /// The report is about another chip than the VCEK.
    #[error("the SNP report is of another chip than the VCEK")]
    SnpChip,
    /// The report's versions are not those that the VCEK was derived for.
    #[error("the SNP report says {part} {reported}, the VCEK is for {certified}")]
    SnpTcbMismatch {
        /// The part.
        part: TcbPart,
        /// In the report.
        reported: u8,
        /// In the certificate.
        certified: u8,
    },
    /// A part of the platform is older than the policy allows.
    #[error("{part} has version {got}, the policy demands {least}")]
    SnpTcbTooOld {
        /// The part.
        part: TcbPart,
        /// Demanded.
        least: u8,
        /// Found.
        got: u8,
    },
    /// The processor is of a generation that the policy does not name.
    #[error("the policy does not name {got:?} processors")]
    SnpProduct {
        /// The generation.
        got: Product,
    },
    /// The policy names chips, and this is none of them.
    #[error("the policy does not name this chip")]
    SnpChipNotNamed,
    /// The report was asked for at another privilege level.
    #[error("the SNP report is of VMPL {got}, the policy demands {expected}")]
    SnpVmpl {
        /// Demanded.
        expected: u32,
        /// Found.
        got: u32,
    },
    /// The guest may be migrated by an agent.
    #[error("the SNP guest may be migrated by an agent, and the policy does not allow that")]
    SnpMigration,
    /// The machine may run two threads on a core.
    #[error("the SNP guest may share cores with other threads, and the policy does not allow that")]
    SnpSmt,
    /// The guest's own version is too low.
    #[error("the SNP guest has version {got}, the policy demands {least}")]
    SnpGuestSvn {
        /// Demanded.
        least: u32,
        /// Found.
        got: u32,
    },

    // -- SGX and TDX -----------------------------------------------------------------------
    /// No collateral came with the quote, and none was given.
    #[error("what Intel says about the platform (collateral) is missing")]
    CollateralMissing,
    /// The quote is of the other kind than the evidence says.
    #[error("the evidence says {said}, the quote is of another kind")]
    QuoteKind {
        /// What the evidence says.
        said: Platform,
    },
    /// The quote or its collateral does not verify.
    #[error("{0}")]
    Quote(QuoteFault),
    /// Intel's verdict on the platform is not one that the policy allows.
    #[error("{platform}: Intel says {status}, and the policy does not allow that")]
    QuoteStatus {
        /// The platform.
        platform: Platform,
        /// Intel's word.
        status: String,
    },
    /// An advisory applies that the policy does not put up with.
    #[error("{platform}: {advisory} applies, and the policy does not allow that")]
    QuoteAdvisory {
        /// The platform.
        platform: Platform,
        /// Intel's number.
        advisory: String,
    },
    /// The collateral is from an older evaluation than the policy demands.
    #[error("{platform}: the collateral is of evaluation {got}, the policy demands {least}")]
    QuoteEvaluation {
        /// The platform.
        platform: Platform,
        /// Demanded.
        least: u32,
        /// Found.
        got: u32,
    },
    /// An SGX enclave's own version is too low.
    #[error("the SGX enclave has version {got}, the policy demands {least}")]
    SgxSvn {
        /// Demanded.
        least: u16,
        /// Found.
        got: u16,
    },

    // -- Nitro -----------------------------------------------------------------------------
    /// The document is not one.
    #[error("the Nitro document cannot be read")]
    NitroMalformed,
    /// The chain does not end in AWS's root.
    #[error("the Nitro document's chain does not end in AWS's root")]
    NitroRoot,
    /// A certificate is not signed by the one above it.
    #[error("a certificate of the Nitro document is not signed by the one above it")]
    NitroChain,
    /// A certificate is expired.
    #[error("a certificate of the Nitro document is expired")]
    NitroExpired,
    /// A certificate is not valid yet.
    #[error("a certificate of the Nitro document is not valid yet")]
    NitroNotYetValid,
    /// The document's signature is wrong.
    #[error("the Nitro document is not signed by its certificate")]
    NitroSignature,
    /// The document is older than the policy allows, or from the future.
    #[error("the Nitro document is {age} s old, the policy allows {limit} s")]
    NitroStale {
        /// Seconds allowed.
        limit: u64,
        /// Seconds; negative if it is from the future.
        age: i64,
    },
    /// The document carries no user data, so it is about nothing.
    #[error("the Nitro document carries no user data")]
    NitroNoData,
    /// A register is not the one that the policy demands.
    #[error("PCR{index} is not the policy's")]
    NitroPcr {
        /// Which register.
        index: u16,
    },

    // -- simulated -------------------------------------------------------------------------
    /// Not a simulated report.
    #[error("the simulated report cannot be read")]
    SimulatedMalformed,
}

/// Parts of an SEV-SNP platform that have versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TcbPart {
    /// The boot loader of the security processor.
    Bootloader,
    /// The firmware of the memory controller (Turin).
    Fmc,
    /// The processor's microcode.
    Microcode,
    /// The SNP firmware.
    Snp,
    /// The operating system of the security processor.
    Tee,
}

impl fmt::Display for TcbPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bootloader => "bootloader",
            Self::Fmc => "fmc",
            Self::Microcode => "microcode",
            Self::Snp => "snp",
            Self::Tee => "tee",
        })
    }
}

/// Why a quote or its collateral does not verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteFault {
    /// A certificate is expired or not yet valid.
    #[error("a certificate of the quote or its collateral is not valid at this time")]
    CertificateExpired,
    /// A certificate is revoked.
    #[error("a certificate of the quote or its collateral is revoked")]
    CertificateRevoked,
    /// A certificate does not lead to the root.
    #[error("a certificate of the quote or its collateral does not lead to Intel's root")]
    Chain,
    /// A list of revoked certificates is out of date.
    #[error("a list of revoked certificates in the collateral is out of date")]
    CrlExpired,
    /// A list of revoked certificates cannot be read, or is another issuer's.
    #[error("a list of revoked certificates in the collateral is none of the expected form")]
    CrlMalformed,
    /// The enclave's signature over the quote is wrong.
    #[error("the quote is not signed by its attestation key")]
    EnclaveSignature,
    /// The collateral is of another kind of processor.
    #[error("the collateral is for another kind of processor than the quote")]
    Fmspc,
    /// The quote or the collateral cannot be read.
    #[error("the quote or its collateral cannot be read")]
    Malformed,
    /// No level of the TCB info fits the platform.
    #[error("the platform is older than any that Intel lists")]
    NoTcbLevel,
    /// The quoting enclave's identity is not signed by Intel.
    #[error("the identity of the quoting enclave is not signed by Intel")]
    QeIdentitySignature,
    /// The quoting enclave's identity is out of date, or from the future.
    #[error("the identity of the quoting enclave is out of date")]
    QeIdentityExpired,
    /// The quoting enclave is not Intel's.
    #[error("the quote was made by another quoting enclave than Intel's")]
    QuotingEnclave,
    /// The attestation key is not the quoting enclave's.
    #[error("the quote's attestation key is not the quoting enclave's")]
    QeReportData,
    /// The quoting enclave's report is not signed by the platform.
    #[error("the report of the quoting enclave is not signed by the platform's key")]
    QeReportSignature,
    /// Intel revoked the platform.
    #[error("Intel revoked the platform")]
    Revoked,
    /// The TCB info is out of date, or from the future.
    #[error("Intel's TCB info is out of date")]
    TcbInfoExpired,
    /// The TCB info is not signed by Intel.
    #[error("Intel's TCB info is not signed by Intel")]
    TcbInfoSignature,
    /// A setting of the trust domain weakens it.
    #[error(
        "the trust domain has a setting that weakens it: profiling, migration or a service domain"
    )]
    TdAttributes,
    /// The TDX module is not Intel's.
    #[error("the TDX module is not one that Intel vouches for")]
    TdxModule,
    /// The quote has a form that is not known.
    #[error("the quote is of a version or kind that is not known")]
    Unsupported,
}
