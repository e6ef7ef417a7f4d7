//! SGX and TDX quotes: `dcap-qvl` verifies them against Intel's collateral, offline and at a given
//! time; what to think of the result is decided here.
//!
//! `dcap-qvl` gives its errors as text. [`reason`] sorts them; whatever it does not know is
//! [`QuoteFault::Malformed`], refused like the rest. The version is pinned exactly for that.
//!
//! Source: Intel SGX/TDX DCAP quote generation and verification libraries, API references.

use dcap_qvl::TcbStatus;
use dcap_qvl::quote::{EnclaveReport, Quote, Report, TDReport10};
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::{QuoteCollateralV3, QuotePolicy};

use crate::platform::Platform;
use crate::policy::{Policy, Sgx, SgxImage, Tdx, TdxImage};
use crate::statement::UnixTime;
use crate::verify::{QuoteFault, Refused};

/// The bit of an enclave's attributes that opens it to debuggers.
const SGX_DEBUG: u8 = 1 << 1;

/// The bit of a trust domain's attributes that opens it to its host.
const TDX_DEBUG: u8 = 1;

/// What a quote says, and what Intel says about its platform.
#[derive(Debug)]
pub(super) struct Claims {
    status: TcbStatus,
    advisories: Vec<String>,
    evaluation: u32,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Sgx(EnclaveReport),
    Tdx(TDReport10),
}

impl Body {
    fn of(report: &Report) -> Self {
        match report {
            Report::SgxEnclave(report) => Self::Sgx(*report),
            Report::TD10(report) => Self::Tdx(*report),
            Report::TD15(report) => Self::Tdx(report.base),
            Report::TD15Ex(report) => Self::Tdx(report.base.base),
        }
    }

    fn platform(&self) -> Platform {
        match self {
            Self::Sgx(_) => Platform::Sgx,
            Self::Tdx(_) => Platform::Tdx,
        }
    }

    fn debug(&self) -> bool {
        match self {
            Self::Sgx(report) => report.attributes[0] & SGX_DEBUG != 0,
            Self::Tdx(report) => report.td_attributes[0] & TDX_DEBUG != 0,
        }
    }
}

/// Verifies everything but the policy.
pub(super) fn genuine(
    said: Platform,
    quote: &[u8],
    collateral: &QuoteCollateralV3,
    root: Option<&[u8]>,
    now: UnixTime,
) -> Result<Claims, Refused> {
    let parsed = Quote::parse(quote).map_err(|_| Refused::Quote(QuoteFault::Malformed))?;
    // Before any signature, so that a debug enclave is called one. The verifier refuses them too.
    let body = Body::of(&parsed.report);
    if body.platform() != said || parsed.header.is_sgx() != (said == Platform::Sgx) {
        return Err(Refused::QuoteKind { said });
    }
    if body.debug() {
        return Err(Refused::Debug { platform: said });
    }
    let verifier = match root {
        Some(der) => QuoteVerifier::new(der.to_vec()),
        None => QuoteVerifier::new_prod(),
    };
    // The verdict on status, advisories and evaluation is in `appraise`.
    let take_all = QuotePolicy::claims_only(now.0);
    let claims = verifier
        .verify_with_policy(quote, collateral, now.0, &take_all)
        .map_err(|error| Refused::Quote(reason(&format!("{error:#}"))))?;
    let mut advisories = claims.tcb.advisory_ids;
    let current = claims.platform.current_tcb_level.into_iter();
    advisories.extend(current.flat_map(|level| level.advisory_ids));
    Ok(Claims {
        status: claims.tcb.status,
        advisories,
        evaluation: claims.tcb.eval_data_number,
        body: Body::of(&claims.report),
    })
}

/// What an error of `dcap-qvl` 0.7.1 means.
fn reason(text: &str) -> QuoteFault {
    use QuoteFault as Fault;
    let known = [
        ("CrlExpired", Fault::CrlExpired),
        ("CRL expired", Fault::CrlExpired),
        ("CertRevoked", Fault::CertificateRevoked),
        ("certificate was revoked", Fault::CertificateRevoked),
        ("CertExpired", Fault::CertificateExpired),
        ("CertNotValidYet", Fault::CertificateExpired),
        ("TCBInfo expired", Fault::TcbInfoExpired),
        ("TCBInfo issue date", Fault::TcbInfoExpired),
        ("QE Identity expired", Fault::QeIdentityExpired),
        ("QE Identity issue date", Fault::QeIdentityExpired),
        ("Signature is invalid for tcb_info", Fault::TcbInfoSignature),
        (
            "Signature is invalid for qe_identity",
            Fault::QeIdentitySignature,
        ),
        (
            "Signature is invalid for qe_report",
            Fault::QeReportSignature,
        ),
        ("QE report hash mismatch", Fault::QeReportData),
        (
            "ISV enclave report signature is invalid",
            Fault::EnclaveSignature,
        ),
        ("Failed to parse root CA CRL", Fault::CrlMalformed),
        ("Failed to parse PCK CRL", Fault::CrlMalformed),
        ("Failed to verify certificate chain", Fault::Chain),
        ("must be issued directly by the root", Fault::Chain),
        ("Fmspc mismatch", Fault::Fmspc),
        ("quote with non-", Fault::Fmspc),
        ("No matching TCB level", Fault::NoTcbLevel),
        ("TCB status is invalid: Revoked", Fault::Revoked),
        ("TDX module", Fault::TdxModule),
        ("QE MRSIGNER", Fault::QuotingEnclave),
        ("QE ISVPRODID", Fault::QuotingEnclave),
        ("QE MISCSELECT", Fault::QuotingEnclave),
        ("QE ATTRIBUTES", Fault::QuotingEnclave),
        ("QE ISVSVN", Fault::QuotingEnclave),
        ("QE report validation failed", Fault::QuotingEnclave),
        ("Unknown QE vendor", Fault::QuotingEnclave),
        ("TD profiling is enabled", Fault::TdAttributes),
        ("TD migration is enabled", Fault::TdAttributes),
        ("SERVTD_EXT is enabled", Fault::TdAttributes),
        ("SEPT_VE_DISABLE is not", Fault::TdAttributes),
        ("Reserved bits in TD attributes", Fault::TdAttributes),
        ("Invalid MR service TD", Fault::TdAttributes),
        ("Unsupported", Fault::Unsupported),
        ("must have version", Fault::Unsupported),
    ];
    let found = known.iter().find(|(words, _)| text.contains(words));
    found.map_or(Fault::Malformed, |(_, fault)| *fault)
}

impl Claims {
    pub(super) fn platform(&self) -> Platform {
        self.body.platform()
    }

    pub(super) fn report_data(&self) -> &[u8; 64] {
        match &self.body {
            Body::Sgx(report) => &report.report_data,
            Body::Tdx(report) => &report.report_data,
        }
    }

    pub(super) fn measurement(&self) -> &[u8] {
        match &self.body {
            Body::Sgx(report) => &report.mr_enclave,
            Body::Tdx(report) => &report.mr_td,
        }
    }

    pub(super) fn level(&self) -> String {
        let mut level = self.status.to_string();
        for advisory in &self.advisories {
            level.push_str(", ");
            level.push_str(advisory);
        }
        level
    }

    pub(super) fn appraise(&self, policy: &Policy) -> Result<(), Refused> {
        let platform = self.platform();
        let unnamed = Refused::PlatformNotNamed { platform };
        if self.body.debug() {
            return Err(Refused::Debug { platform });
        }
        match &self.body {
            Body::Sgx(report) => {
                let Sgx {
                    status,
                    advisories,
                    minimum_evaluation,
                    image,
                } = policy.sgx.as_ref().ok_or(unnamed)?;
                self.up_to_date(status, advisories, *minimum_evaluation)?;
                sgx_image(report, image)
            }
            Body::Tdx(report) => {
                let Tdx {
                    status,
                    advisories,
                    minimum_evaluation,
                    image,
                } = policy.tdx.as_ref().ok_or(unnamed)?;
                self.up_to_date(status, advisories, *minimum_evaluation)?;
                tdx_image(report, image)
            }
        }
    }

    fn up_to_date(
        &self,
        status: &[TcbStatus],
        advisories: &[String],
        minimum_evaluation: u32,
    ) -> Result<(), Refused> {
        let platform = self.platform();
        if !status.contains(&self.status) {
            return Err(Refused::QuoteStatus {
                platform,
                status: self.status.to_string(),
            });
        }
        if let Some(advisory) = self.advisories.iter().find(|id| !advisories.contains(id)) {
            return Err(Refused::QuoteAdvisory {
                platform,
                advisory: advisory.clone(),
            });
        }
        if self.evaluation < minimum_evaluation {
            return Err(Refused::QuoteEvaluation {
                platform,
                least: minimum_evaluation,
                got: self.evaluation,
            });
        }
        Ok(())
    }
}

fn sgx_image(report: &EnclaveReport, images: &[SgxImage]) -> Result<(), Refused> {
    let mut why = Refused::Measurement {
        platform: Platform::Sgx,
        measurement: hex::encode(report.mr_enclave),
    };
    for image in images {
        let SgxImage {
            mr_enclave,
            mr_signer,
            product,
            minimum_svn,
        } = image;
        if mr_enclave.is_some_and(|wanted| wanted.0 == report.mr_enclave) {
            return Ok(());
        }
        let (Some(signer), Some(product), Some(least)) = (mr_signer, product, minimum_svn) else {
            continue;
        };
        if signer.0 == report.mr_signer && *product == report.isv_prod_id {
            if report.isv_svn >= *least {
                return Ok(());
            }
            why = Refused::SgxSvn {
                least: *least,
                got: report.isv_svn,
            };
        }
    }
    Err(why)
}

fn tdx_image(report: &TDReport10, images: &[TdxImage]) -> Result<(), Refused> {
    let platform = Platform::Tdx;
    let mut why = Refused::Measurement {
        platform,
        measurement: hex::encode(report.mr_td),
    };
    for image in images {
        let TdxImage {
            mr_td,
            rtmr0,
            rtmr1,
            rtmr2,
            rtmr3,
            mr_config_id,
            mr_owner,
            mr_owner_config,
        } = image;
        if mr_td.0 != report.mr_td {
            continue;
        }
        let fits = |wanted: &Option<crate::policy::Hex<48>>, got: &[u8; 48]| {
            wanted.is_none_or(|wanted| &wanted.0 == got)
        };
        let parts = [
            ("rtmr0", rtmr0.allows(&report.rt_mr0)),
            ("rtmr1", rtmr1.allows(&report.rt_mr1)),
            ("rtmr2", rtmr2.allows(&report.rt_mr2)),
            ("rtmr3", fits(rtmr3, &report.rt_mr3)),
            ("mr-config-id", fits(mr_config_id, &report.mr_config_id)),
            ("mr-owner", fits(mr_owner, &report.mr_owner)),
            (
                "mr-owner-config",
                fits(mr_owner_config, &report.mr_owner_config),
            ),
        ];
        match parts.into_iter().find(|(_, fits)| !fits) {
            None => return Ok(()),
            Some((part, _)) => why = Refused::ImagePart { platform, part },
        }
    }
    Err(why)
}
