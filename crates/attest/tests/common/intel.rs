//! SGX quotes of a platform, by a quoting enclave and under a root whose keys are known.

use std::sync::OnceLock;

use dcap_qvl::QuoteCollateralV3;
use larvatus_attest::evidence::Evidence;
use larvatus_attest::platform::Platform;
use larvatus_attest::statement::Statement;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateRevocationListParams,
    CustomExtension, DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use serde_json::{Value, json};

use super::testdata;

pub(crate) const FMSPC: &str = "00906ED50000";

/// A policy that the quote of [`Parts::good`] satisfies.
pub(crate) const POLICY: &str = "[sgx]
minimum-evaluation = 17
[[sgx.image]]
mr-enclave = \"0909090909090909090909090909090909090909090909090909090909090909\"
";

/// Root, intermediate and leaves, made once a process.
pub(crate) struct Makers {
    root: Entity,
    platform: Entity,
    pck: Entity,
    tcb: Entity,
    other_root: Entity,
    attestation: KeyPair,
}

struct Entity {
    params: CertificateParams,
    key: KeyPair,
    certificate: Certificate,
}

impl Entity {
    fn new(name: &str, serial: u64, ca: bool, issuer: Option<&Self>, sgx: bool) -> Self {
        let mut params = CertificateParams::default();
        params.not_before = date_time_ymd(2024, 1, 1);
        params.not_after = date_time_ymd(2034, 1, 1);
        params.serial_number = Some(SerialNumber::from(serial));
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        if ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        } else {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
        if sgx {
            let extension =
                CustomExtension::from_oid_content(&[1, 2, 840, 113_741, 1, 13, 1], sgx_extension());
            params.custom_extensions.push(extension);
        }
        let key = KeyPair::generate().unwrap();
        let certificate = match issuer {
            None => params.self_signed(&key),
            Some(issuer) => params.signed_by(&key, &issuer.issuer()),
        };
        Self {
            certificate: certificate.unwrap(),
            params,
            key,
        }
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }

    fn crl(&self, revoked: &[u64], until: i32) -> Vec<u8> {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 6, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer()).unwrap().der().to_vec()
    }

    fn pem(&self) -> String {
        super::pem(self.certificate.der())
    }

    fn sign(&self, message: &[u8]) -> Vec<u8> {
        sign(&self.key, message)
    }
}

fn sign(key: &KeyPair, message: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let der = key.serialize_der();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der, &random).unwrap();
    key.sign(&random, message).unwrap().as_ref().to_vec()
}

impl Makers {
    pub(crate) fn get() -> &'static Self {
        static MAKERS: OnceLock<Makers> = OnceLock::new();
        MAKERS.get_or_init(|| {
            let root = Entity::new("Test root, not Intel", 1, true, None, false);
            let platform = Entity::new("Test platform CA", 2, true, Some(&root), false);
            let pck = Entity::new("Test PCK", 3, false, Some(&platform), true);
            let tcb = Entity::new("Test TCB signing", 4, false, Some(&root), false);
            let other_root = Entity::new("Test root, not Intel", 1, true, None, false);
            Self {
                root,
                platform,
                pck,
                tcb,
                other_root,
                attestation: KeyPair::generate().unwrap(),
            }
        })
    }

    pub(crate) fn root_der(&self) -> Vec<u8> {
        self.root.certificate.der().to_vec()
    }

    pub(crate) fn other_root_der(&self) -> Vec<u8> {
        self.other_root.certificate.der().to_vec()
    }
}

/// Type, length, value; short lengths and two bytes of long ones.
fn tlv(tag: u8, value: &[u8]) -> Vec<u8> {
    let length = value.len();
    let mut bytes = match u8::try_from(length) {
        Ok(short) if short < 128 => vec![tag, short],
        Ok(long) => vec![tag, 0x81, long],
        Err(_) => {
            let [high, low] = u16::try_from(length).unwrap().to_be_bytes();
            vec![tag, 0x82, high, low]
        }
    };
    bytes.extend_from_slice(value);
    bytes
}

/// What a PCK certificate says of its platform: every SVN is 5, the PCE's 11.
fn sgx_extension() -> Vec<u8> {
    let oid = |tail: &[u8]| {
        let base = [0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01];
        tlv(6, &[&base[..], tail].concat())
    };
    let entry = |tail: &[u8], value: Vec<u8>| tlv(0x30, &[oid(tail), value].concat());
    let mut tcb: Vec<Vec<u8>> = (1..=16).map(|i| entry(&[2, i], vec![2, 1, 5])).collect();
    tcb.push(entry(&[2, 17], vec![2, 1, 11]));
    tcb.push(entry(&[2, 18], tlv(4, &[5; 16])));
    let all = [
        entry(&[1], tlv(4, &[0x11; 16])),
        entry(&[2], tlv(0x30, &tcb.concat())),
        entry(&[3], tlv(4, &[0, 0])),
        entry(&[4], tlv(4, &hex::decode(FMSPC).unwrap())),
        entry(&[5], vec![0x0a, 1, 0]),
    ];
    tlv(0x30, &all.concat())
}

/// All that goes into a quote and its collateral, to be spoiled before it is signed.
pub(crate) struct Parts {
    pub(crate) body: Vec<u8>,
    pub(crate) qe_report: Vec<u8>,
    pub(crate) tcb_info: Value,
    pub(crate) qe_identity: Value,
    pub(crate) revoked_by_platform: Vec<u64>,
    pub(crate) revoked_by_root: Vec<u64>,
    pub(crate) crl_until: i32,
    /// Spoil after signing.
    pub(crate) spoil: Spoil,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spoil {
    Nothing,
    Chain,
    Quote(usize),
    TcbInfo,
    QeIdentity,
    QeReportSignature,
    AttestationKey,
}

impl Parts {
    pub(crate) fn good(statement: &Statement) -> Self {
        let mut body = vec![0; 384];
        body[..16].copy_from_slice(&[5; 16]);
        body[48] = 5; // INIT and MODE64BIT
        body[64..96].copy_from_slice(&[9; 32]);
        body[128..160].copy_from_slice(&[8; 32]);
        body[256..258].copy_from_slice(&77u16.to_le_bytes());
        body[258..260].copy_from_slice(&4u16.to_le_bytes());
        body[320..].copy_from_slice(&statement.report_data().0);
        let real: Value =
            serde_json::from_slice(&testdata("real/sgx_quote_collateral.json")).unwrap();
        let part = |name: &str| -> Value {
            let mut part: Value = serde_json::from_str(real[name].as_str().unwrap()).unwrap();
            part["issueDate"] = json!("2025-12-20T00:00:00Z");
            part["nextUpdate"] = json!("2026-01-20T00:00:00Z");
            part
        };
        let mut tcb_info = part("tcb_info");
        tcb_info["fmspc"] = json!(FMSPC);
        let components: Vec<Value> = (0..16).map(|_| json!({ "svn": 5 })).collect();
        tcb_info["tcbLevels"] = json!([{
            "tcb": { "sgxtcbcomponents": components, "pcesvn": 11 },
            "tcbDate": "2025-01-01T00:00:00Z",
            "tcbStatus": "UpToDate",
        }]);
        // The quoting enclave is the real one's twin; only what it vouches for is another.
        let qe_report = testdata("real/sgx_quote")[48 + 384 + 4 + 128..][..384].to_vec();
        Self {
            body,
            qe_report,
            tcb_info,
            qe_identity: part("qe_identity"),
            revoked_by_platform: Vec::new(),
            revoked_by_root: Vec::new(),
            crl_until: 2034,
            spoil: Spoil::Nothing,
        }
    }

    pub(crate) fn level(&mut self, status: &str, advisories: &[&str]) {
        let level = &mut self.tcb_info["tcbLevels"][0];
        level["tcbStatus"] = json!(status);
        level["advisoryIDs"] = json!(advisories);
    }

    pub(crate) fn evidence(self, statement: &Statement) -> Evidence {
        let makers = Makers::get();
        let mut header = vec![3, 0, 2, 0];
        header.extend([0; 4]);
        header.extend([8, 0, 11, 0]);
        header.extend(dcap_qvl::INTEL_QE_VENDOR_ID);
        header.extend([0; 20]);
        let signed = [&header[..], &self.body].concat();

        let public = &makers.attestation.public_key_raw()[1..];
        let auth_data = [0x20; 32];
        let mut qe_report = self.qe_report;
        let bound = digest(&SHA256, &[public, &auth_data].concat());
        qe_report[320..352].copy_from_slice(bound.as_ref());
        qe_report[352..].fill(0);
        if self.spoil == Spoil::AttestationKey {
            qe_report[320] ^= 1;
        }
        let mut qe_signature = makers.pck.sign(&qe_report);
        if self.spoil == Spoil::QeReportSignature {
            qe_signature[40] ^= 1;
        }
        let chain = match self.spoil {
            Spoil::Chain => [&makers.pck, &makers.other_root, &makers.root],
            _ => [&makers.pck, &makers.platform, &makers.root],
        };
        let chain: String = chain.iter().map(|entity| entity.pem()).collect();
        let mut auth = sign(&makers.attestation, &signed);
        auth.extend_from_slice(public);
        auth.extend_from_slice(&qe_report);
        auth.extend_from_slice(&qe_signature);
        auth.extend((auth_data.len() as u16).to_le_bytes());
        auth.extend(auth_data);
        auth.extend([5, 0]);
        auth.extend((chain.len() as u32).to_le_bytes());
        auth.extend_from_slice(chain.as_bytes());
        let mut quote = signed;
        quote.extend((auth.len() as u32).to_le_bytes());
        quote.extend_from_slice(&auth);
        if let Spoil::Quote(at) = self.spoil {
            quote[at] ^= 1;
        }

        let mut tcb_info = self.tcb_info.to_string();
        let tcb_info_signature = makers.tcb.sign(tcb_info.as_bytes());
        let mut qe_identity = self.qe_identity.to_string();
        let qe_identity_signature = makers.tcb.sign(qe_identity.as_bytes());
        if self.spoil == Spoil::TcbInfo {
            tcb_info.push(' ');
        }
        if self.spoil == Spoil::QeIdentity {
            qe_identity.push(' ');
        }
        let issuers = makers.tcb.pem() + &makers.root.pem();
        let collateral = QuoteCollateralV3 {
            pck_crl_issuer_chain: makers.platform.pem(),
            root_ca_crl: makers.root.crl(&self.revoked_by_root, 2034),
            pck_crl: makers
                .platform
                .crl(&self.revoked_by_platform, self.crl_until),
            tcb_info_issuer_chain: issuers.clone(),
            tcb_info,
            tcb_info_signature,
            qe_identity_issuer_chain: issuers,
            qe_identity,
            qe_identity_signature,
            pck_certificate_chain: None,
        };
        Evidence::new(Platform::Sgx, *statement, quote).with_collateral(collateral)
    }
}
