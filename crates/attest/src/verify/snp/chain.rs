//! From AMD's root (ARK) by its signing key (ASK) to a VCEK: RSA-PSS with SHA-384, a salt of 48 bytes
//! and nothing else, over the signed bytes as they came.
//!
//! Source: AMD 57230 (VCEK certificates and key service), RFC 5280, RFC 4055 (RSASSA-PSS parameters).

use ring::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use x509_parser::asn1_rs::{Any, Oid, oid};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::time::ASN1Time;
use x509_parser::x509::{AlgorithmIdentifier, SubjectPublicKeyInfo};

use crate::policy::Product;
use crate::verify::{Refused, RootError};

const RSA: Oid<'static> = oid!(1.2.840.113549.1.1.1);
const PSS: Oid<'static> = oid!(1.2.840.113549.1.1.10);
const MGF1: Oid<'static> = oid!(1.2.840.113549.1.1.8);
const SHA384: Oid<'static> = oid!(2.16.840.1.101.3.4.2.2);

/// AMD's certificates; `roots/README.md` says where they are from.
const MAKERS: [(Product, &[u8], &[u8]); 3] = [
    (
        Product::Milan,
        include_bytes!("../../../roots/milan-ark.der"),
        include_bytes!("../../../roots/milan-ask.der"),
    ),
    (
        Product::Genoa,
        include_bytes!("../../../roots/genoa-ark.der"),
        include_bytes!("../../../roots/genoa-ask.der"),
    ),
    (
        Product::Turin,
        include_bytes!("../../../roots/turin-ark.der"),
        include_bytes!("../../../roots/turin-ask.der"),
    ),
];

/// Who issues the VCEKs of one generation: root (ARK) and signing key (ASK), which sign themselves
/// and each other as they should.
#[derive(Debug)]
pub(in crate::verify) struct Issuer {
    product: Product,
    ark_der: Vec<u8>,
    ask_der: Vec<u8>,
}

impl Issuer {
    pub(in crate::verify) fn makers() -> Result<Vec<Self>, RootError> {
        let makers = MAKERS.into_iter();
        makers
            .map(|(product, ark, ask)| Self::new(product, ark, ask))
            .collect()
    }

    pub(in crate::verify) fn new(
        product: Product,
        ark: &[u8],
        ask: &[u8],
    ) -> Result<Self, RootError> {
        let unusable = |why: &str| RootError {
            why: why.to_owned(),
        };
        let root = parse(ark).map_err(|_| unusable("the ARK is no certificate"))?;
        for (der, own, by) in [
            (
                ark,
                "the ARK has another form",
                "the ARK does not sign itself",
            ),
            (
                ask,
                "the ASK has another form",
                "the ARK does not sign the ASK",
            ),
        ] {
            match signed(der, root.public_key()) {
                Ok(()) => {}
                Err(Unsigned::Form) => return Err(unusable(own)),
                Err(Unsigned::Signature) => return Err(unusable(by)),
            }
        }
        Ok(Self {
            product,
            ark_der: ark.to_vec(),
            ask_der: ask.to_vec(),
        })
    }

    pub(super) fn product(&self) -> Product {
        self.product
    }

    pub(super) fn ark(&self) -> Result<X509Certificate<'_>, Refused> {
        parse(&self.ark_der)
    }

    pub(super) fn ask(&self) -> Result<X509Certificate<'_>, Refused> {
        parse(&self.ask_der)
    }

    /// Whether the signing key signed this certificate.
    pub(super) fn signed(&self, vcek: &[u8]) -> Result<(), Refused> {
        match signed(vcek, self.ask()?.public_key()) {
            Ok(()) => Ok(()),
            Err(Unsigned::Form) => Err(Refused::VcekMalformed),
            Err(Unsigned::Signature) => Err(Refused::VcekSignature),
        }
    }
}

/// A certificate and nothing after it.
pub(super) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Refused> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Refused::VcekMalformed),
    }
}

pub(super) fn issuer_of<'a>(
    certificate: &X509Certificate<'_>,
    issuers: &'a [Issuer],
) -> Result<&'a Issuer, Refused> {
    for issuer in issuers {
        if issuer.ask()?.subject().as_raw() == certificate.issuer().as_raw() {
            return Ok(issuer);
        }
    }
    Err(Refused::VcekIssuer)
}

/// Whether a list of the issuer's root says that the issuer's signing key holds. AMD's lists are of
/// what the root issued; VCEKs are not on them, old ones are refused by their versions.
pub(super) fn not_revoked(
    issuer: &Issuer,
    crls: &[Vec<u8>],
    at: ASN1Time,
) -> Result<bool, Refused> {
    let (ark, ask) = (issuer.ark()?, issuer.ask()?);
    let mut looked = false;
    for der in crls {
        let Ok(([], crl)) = CertificateRevocationList::from_der(der) else {
            return Err(Refused::CrlMalformed);
        };
        if crl.issuer().as_raw() != ark.subject().as_raw() {
            continue;
        }
        let whole = crl.signature_value.unused_bits == 0;
        if !whole || crl.signature_algorithm != crl.tbs_cert_list.signature {
            return Err(Refused::CrlMalformed);
        }
        let key = &ark.public_key().subject_public_key.data;
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key)
            .verify(crl.tbs_cert_list.as_ref(), &crl.signature_value.data)
            .map_err(|_| Refused::CrlSignature)?;
        let next = crl.next_update().ok_or(Refused::CrlExpired)?;
        if at < crl.last_update() || at > next {
            return Err(Refused::CrlExpired);
        }
        let mut revoked = crl.iter_revoked_certificates();
        if revoked.any(|revoked| revoked.user_certificate == ask.tbs_certificate.serial) {
            return Err(Refused::VcekRevoked);
        }
        looked = true;
    }
    Ok(looked)
}

/// Why a certificate is not signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsigned {
    /// It is no certificate, or not in the one form that DER gives it, or of another algorithm.
    Form,
    /// The signature is not the key's, or the key is no RSA key.
    Signature,
}

/// Whether a key signed a certificate. What is signed is verified as it came; what is around it must
/// be as DER has it, and name the algorithm by the bytes that are signed.
fn signed(der: &[u8], key: &SubjectPublicKeyInfo<'_>) -> Result<(), Unsigned> {
    let certificate = parse(der).map_err(|_| Unsigned::Form)?;
    let tbs = certificate.tbs_certificate.as_ref();
    let signature = certificate.signature_value.data.as_ref();
    let algorithm = named(tbs).ok_or(Unsigned::Form)?;
    if !is_pss_sha384(&certificate.signature_algorithm)
        || enveloped(tbs, algorithm, signature).as_deref() != Some(der)
    {
        return Err(Unsigned::Form);
    }
    let parameters = key.algorithm.parameters.as_ref();
    let null = parameters.is_some_and(|any| any.as_null().is_ok());
    if key.algorithm.algorithm != RSA || !null || key.subject_public_key.unused_bits != 0 {
        return Err(Unsigned::Signature);
    }
    UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, &key.subject_public_key.data)
        .verify(tbs, signature)
        .map_err(|_| Unsigned::Signature)
}

/// The bytes of the algorithm's identifier inside of what is signed: after version and serial number.
fn named(tbs: &[u8]) -> Option<&[u8]> {
    let (_, sequence) = Any::from_der(tbs).ok()?;
    let (rest, _version) = Any::from_der(sequence.data).ok()?;
    let (from, _serial) = Any::from_der(rest).ok()?;
    let (after, _algorithm) = Any::from_der(from).ok()?;
    from.get(..from.len().checked_sub(after.len())?)
}

/// The one DER form of a certificate of these parts, if it is as long as RSA signatures make it.
fn enveloped(tbs: &[u8], algorithm: &[u8], signature: &[u8]) -> Option<Vec<u8>> {
    let long = |tag: u8, length: usize| {
        let length = u16::try_from(length).ok().filter(|length| *length >= 256)?;
        let [high, low] = length.to_be_bytes();
        Some([tag, 0x82, high, low])
    };
    let bits = long(3, 1 + signature.len())?;
    let content = [tbs, algorithm, &bits, &[0], signature].concat();
    Some([&long(0x30, content.len())?[..], &content].concat())
}

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384, a salt of 48 bytes and the usual trailer.
fn is_pss_sha384(algorithm: &AlgorithmIdentifier<'_>) -> bool {
    if algorithm.algorithm != PSS {
        return false;
    }
    let parameters = algorithm.parameters.as_ref();
    let Some(parameters) = parameters.and_then(|any| RsaSsaPssParams::try_from(any).ok()) else {
        return false;
    };
    let mask = parameters.mask_gen_algorithm();
    let mask = mask.is_ok_and(|mask| mask.mgf == MGF1 && mask.hash == SHA384);
    mask && *parameters.hash_algorithm_oid() == SHA384
        && parameters.salt_length() == 48
        && parameters.trailer_field() == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where AMD's ARK ends its signed part, and where its signature begins.
    fn ark() -> (Vec<u8>, usize) {
        let der = MAKERS[0].1.to_vec();
        let end = 4 + parse(&der).unwrap().tbs_certificate.as_ref().len();
        (der, end)
    }

    fn by_itself(der: &[u8]) -> Result<(), Unsigned> {
        signed(der, parse(MAKERS[0].1).unwrap().public_key())
    }

    #[test]
    fn roots_sign_their_own_generation_only() {
        assert_eq!(Issuer::makers().unwrap().len(), 3);
        for (product, ark, _) in MAKERS {
            for (other, _, ask) in MAKERS {
                let issuer = Issuer::new(product, ark, ask);
                assert_eq!(issuer.is_ok(), product == other, "{product:?} {other:?}");
            }
        }
    }

    #[test]
    fn what_surrounds_the_signed_part_has_one_form() {
        let (good, end) = ark();
        assert_eq!(by_itself(&good), Ok(()));
        // Every bit of the algorithm's name and of the signature's header, which nothing signs.
        let header = good.len() - 512 - 5;
        for at in (0..4).chain(end..header + 5) {
            for bit in 0..8 {
                let mut changed = good.clone();
                changed[at] ^= 1 << bit;
                assert_eq!(by_itself(&changed), Err(Unsigned::Form), "{at} {bit}");
            }
        }
        // The same lengths, in a byte more than DER allows.
        let mut longer = good.clone();
        longer.splice(header + 1..header + 2, [0x83, 0]);
        let length = u16::try_from(longer.len() - 4).unwrap();
        longer[2..4].copy_from_slice(&length.to_be_bytes());
        assert_eq!(by_itself(&longer), Err(Unsigned::Form));
        let mut longer = good.clone();
        longer.splice(1..2, [0x83, 0]);
        assert_eq!(by_itself(&longer), Err(Unsigned::Form));
        let mut more = good.clone();
        more.push(0);
        assert_eq!(by_itself(&more), Err(Unsigned::Form));
        let mut signature = good;
        *signature.last_mut().unwrap() ^= 1;
        assert_eq!(by_itself(&signature), Err(Unsigned::Signature));
    }

    #[test]
    fn other_parameters_of_the_signature_are_another_form() {
        let (good, end) = ark();
        let algorithm = &good[end..good.len() - 512 - 5];
        let is = |der: &[u8]| match AlgorithmIdentifier::from_der(der) {
            Ok(([], algorithm)) => is_pss_sha384(&algorithm),
            _ => false,
        };
        assert!(is(algorithm));
        let hash = [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
        let hashes = algorithm.windows(9).enumerate();
        let mut spoil: Vec<usize> = hashes
            .filter(|(_, window)| *window == hash)
            .map(|(at, _)| at + 8)
            .collect();
        assert_eq!(spoil.len(), 2);
        let salt = algorithm.windows(5).position(|w| w == [0xa2, 3, 2, 1, 48]);
        let trailer = algorithm.windows(5).position(|w| w == [0xa3, 3, 2, 1, 1]);
        spoil.extend([salt.unwrap() + 4, trailer.unwrap() + 4]);
        for at in spoil {
            let mut changed = algorithm.to_vec();
            changed[at] += 1;
            assert!(!is(&changed), "{at}");
        }
        // RSA with SHA-384, PKCS #1 v1.5.
        let rsa = [
            0x30, 13, 6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12, 5, 0,
        ];
        assert!(!is(&rsa));
    }
}
