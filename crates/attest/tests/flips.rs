//! Every single bit of what is signed matters.
//!
//! In the test set a share of the bits is flipped; all of them by
//! `cargo test -p larvatus-attest --test flips -- --ignored --nocapture`.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::{Real, any_policy, real, statement, testdata};
use dcap_qvl::QuoteCollateralV3;
use larvatus_attest::evidence::Evidence;
use larvatus_attest::platform::Platform;
use larvatus_attest::verify::Verifier;

/// Flips bits of `bytes`, every `step`th, and counts; `build` makes evidence of what is left, or
/// nothing where it cannot even be written down.
fn flip(
    verifier: &Verifier,
    real: &Real,
    part: &str,
    bytes: &[u8],
    step: usize,
    build: impl Fn(Vec<u8>) -> Option<Evidence> + Sync,
) -> usize {
    assert!(
        verifier
            .genuine(&build(bytes.to_vec()).unwrap(), real.at)
            .is_ok(),
        "{} {part}: unchanged",
        real.name
    );
    let next = AtomicUsize::new(0);
    let tried = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let bit = next.fetch_add(step, Ordering::Relaxed);
                    if bit >= bytes.len() * 8 {
                        break;
                    }
                    let mut changed = bytes.to_vec();
                    changed[bit / 8] ^= 1 << (bit % 8);
                    let Some(evidence) = build(changed) else {
                        continue;
                    };
                    let verdict = verifier.genuine(&evidence, real.at);
                    assert!(verdict.is_err(), "{} {part}: bit {bit}", real.name);
                    tried.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let tried = tried.into_inner();
    println!(
        "{:18} {part:24} {:6} bytes {tried:7} flips refused",
        real.name,
        bytes.len()
    );
    tried
}

fn pem(ders: &[Vec<u8>]) -> String {
    ders.iter().map(|der| common::pem(der)).collect()
}

fn unpem(text: &str) -> Vec<Vec<u8>> {
    let blocks = text.split("-----BEGIN CERTIFICATE-----").skip(1);
    blocks
        .map(|block| {
            let body = block.split("-----END").next().unwrap();
            let digits: String = body.split_whitespace().collect();
            STANDARD.decode(digits).unwrap()
        })
        .collect()
}

/// A quote without its chain of certificates, which the chain in the collateral replaces.
fn quotes(verifier: &Verifier, real: &Real, step: usize) -> usize {
    let quote = real.evidence.report().to_vec();
    let platform = real.evidence.platform();
    let collateral = testdata(&format!("real/{}_collateral.json", real.name));
    let mut collateral: QuoteCollateralV3 = serde_json::from_slice(&collateral).unwrap();
    let begin = quote
        .windows(27)
        .position(|w| w == b"-----BEGIN CERTIFICATE-----");
    let chain = match &collateral.pck_certificate_chain {
        Some(chain) => unpem(chain),
        None => unpem(&String::from_utf8_lossy(&quote[begin.unwrap()..])),
    };
    collateral.pck_certificate_chain = Some(pem(&chain));
    let make = |quote: Vec<u8>, collateral: &QuoteCollateralV3| {
        Evidence::new(platform, statement(), quote).with_collateral(collateral.clone())
    };

    // What the attestation key signs, its signature, itself, and the report that vouches for it.
    let length = |at: usize| usize::from(quote[at]) | usize::from(quote[at + 1]) << 8;
    let body = if platform == Platform::Sgx {
        384
    } else if quote[0] == 4 {
        584
    } else {
        6 + length(50)
    };
    let signed = 48 + body;
    let wrap = if platform == Platform::Sgx { 0 } else { 6 };
    let qe = signed + 4 + 128 + wrap;
    let auth = qe + 384 + 64;
    let mut tried = 0;
    for (part, range) in [
        ("header and body", 0..signed),
        ("signature and key", signed + 4..signed + 4 + 128),
        ("quoting enclave's report", qe..qe + 384 + 64),
        ("authentication data", auth + 2..auth + 2 + length(auth)),
    ] {
        let build = |changed: Vec<u8>| {
            let mut quote = quote.clone();
            quote[range.clone()].copy_from_slice(&changed);
            Some(make(quote, &collateral))
        };
        tried += flip(verifier, real, part, &quote[range.clone()], step, build);
    }
    for (index, part) in ["PCK certificate", "PCK issuer"].into_iter().enumerate() {
        let build = |changed: Vec<u8>| {
            let mut chain = chain.clone();
            chain[index] = changed;
            let mut collateral = collateral.clone();
            collateral.pck_certificate_chain = Some(pem(&chain));
            Some(make(quote.clone(), &collateral))
        };
        tried += flip(verifier, real, part, &chain[index], step, build);
    }
    type Field = fn(&mut QuoteCollateralV3) -> &mut Vec<u8>;
    let binary: [(&str, Field); 4] = [
        ("TCB info's signature", |c| &mut c.tcb_info_signature),
        ("QE identity's signature", |c| &mut c.qe_identity_signature),
        ("root's CRL", |c| &mut c.root_ca_crl),
        ("PCK issuer's CRL", |c| &mut c.pck_crl),
    ];
    for (part, field) in binary {
        let build = |changed| {
            let mut collateral = collateral.clone();
            *field(&mut collateral) = changed;
            Some(make(quote.clone(), &collateral))
        };
        let bytes = field(&mut collateral.clone()).clone();
        tried += flip(verifier, real, part, &bytes, step, build);
    }
    type Text = fn(&mut QuoteCollateralV3) -> &mut String;
    let text: [(&str, Text); 2] = [
        ("TCB info", |c| &mut c.tcb_info),
        ("QE identity", |c| &mut c.qe_identity),
    ];
    for (part, field) in text {
        let build = |changed| {
            let mut collateral = collateral.clone();
            *field(&mut collateral) = String::from_utf8(changed).ok()?;
            Some(make(quote.clone(), &collateral))
        };
        let bytes = field(&mut collateral.clone()).clone().into_bytes();
        tried += flip(verifier, real, part, &bytes, step, build);
    }
    let signers = unpem(&collateral.tcb_info_issuer_chain);
    let build = |changed| {
        let mut collateral = collateral.clone();
        let mut signers = signers.clone();
        signers[0] = changed;
        collateral.tcb_info_issuer_chain = pem(&signers);
        collateral.qe_identity_issuer_chain = pem(&signers);
        Some(make(quote.clone(), &collateral))
    };
    tried
        + flip(
            verifier,
            real,
            "TCB info's signer",
            &signers[0],
            step,
            build,
        )
}

fn all(step: usize) -> usize {
    let verifier = Verifier::new(any_policy()).unwrap();
    let mut tried = 0;
    for real in real() {
        let report = real.evidence.report();
        tried += match real.evidence.platform() {
            Platform::SevSnp => {
                let vcek = testdata("real/vcek_milan.der");
                let make = |report: Vec<u8>, vcek: Vec<u8>| {
                    let evidence = Evidence::new(Platform::SevSnp, statement(), report);
                    Some(evidence.with_vcek(vcek))
                };
                let report = report.to_vec();
                flip(
                    &verifier,
                    &real,
                    "report and signature",
                    &report,
                    step,
                    |changed| make(changed, vcek.clone()),
                ) + flip(&verifier, &real, "VCEK", &vcek, step, |changed| {
                    make(report.clone(), changed)
                })
            }
            Platform::Nitro => {
                // The second byte of the map of unprotected headers is outside of what is signed.
                let make = |changed| Some(Evidence::new(Platform::Nitro, statement(), changed));
                flip(&verifier, &real, "document", report, step, make)
            }
            _ => quotes(&verifier, &real, step),
        };
    }
    println!("{tried} flips, all refused");
    tried
}

#[test]
fn what_is_cut_is_refused_and_never_a_panic() {
    let verifier = Verifier::new(any_policy()).unwrap();
    for real in real() {
        let encoded = real.evidence.encode();
        let again = Evidence::decode(&encoded).unwrap();
        assert_eq!(again, real.evidence, "{}", real.name);
        for length in (0..encoded.len()).step_by(97) {
            assert!(Evidence::decode(&encoded[..length]).is_err());
        }
        // What follows the quote's certificates is padding.
        let report = real.evidence.report();
        let quote = matches!(real.evidence.platform(), Platform::Sgx | Platform::Tdx);
        let end = report.len() - if quote { 2000 } else { 0 };
        for length in (0..end).step_by(13) {
            let cut = real.evidence.clone().with_report(report[..length].to_vec());
            assert!(
                verifier.genuine(&cut, real.at).is_err(),
                "{} {length}",
                real.name
            );
        }
    }
}

#[test]
fn a_share_of_all_flips_is_refused() {
    assert!(all(23) >= 10_000);
}

#[test]
#[ignore = "takes minutes"]
fn every_single_flip_is_refused() {
    assert!(all(1) >= 100_000);
}
