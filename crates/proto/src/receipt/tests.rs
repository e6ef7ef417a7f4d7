//! What is signed holds, and nothing else does.

use super::*;

fn signer(byte: u8) -> Signer {
    Signer::new([byte; 32])
}

fn digest(byte: u8) -> Digest {
    Digest([byte; 32])
}

fn statement() -> Statement {
    Statement {
        model: digest(1),
        plan: digest(2),
        counter: 0x0102_0304_0506_0708,
        input: Salted::input(&[3; 32], b"input"),
        output: Salted::output(&[4; 32], b"output"),
        trace: Root(digest(5)),
        trusted: signer(6).public(),
        worker: signer(7).public(),
    }
}

fn receipt(verdict: Verdict) -> Receipt {
    let claim = statement().claim(&signer(7)).unwrap();
    claim.receipt(&statement(), verdict, &signer(6)).unwrap()
}

fn verify(receipt: Receipt) -> Result<Verified, ReceiptError> {
    receipt.verify(signer(6).public(), signer(7).public())
}

const VERDICTS: [Verdict; 3] = [Verdict::Pending, Verdict::Settled, Verdict::Rejected];

#[test]
fn keys_are_those_of_the_standard() {
    // RFC 8032, 7.1, test 1.
    let hex = |text: &str| -> [u8; 32] {
        std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap())
    };
    let seed = hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60");
    let public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    let signer = Signer::new(seed);
    assert_eq!(signer.public().to_string(), public);
    let signature = signer.sign(b"");
    assert_eq!(
        signature[..32],
        hex("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")
    );
    assert_eq!(
        signature[32..],
        hex("5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b")
    );
}

#[test]
fn what_both_signed_holds_and_is_small() {
    for verdict in VERDICTS {
        let receipt = receipt(verdict);
        let bytes = receipt.encode();
        assert_eq!(bytes.len(), RECEIPT);
        let decoded = Receipt::decode(&bytes).unwrap();
        assert_eq!(decoded, receipt);
        let verified = verify(decoded).unwrap();
        assert_eq!(verified.statement(), &statement());
        assert_eq!(verified.verdict(), verdict);
    }
    let claim = statement().claim(&signer(7)).unwrap();
    assert_eq!(claim.encode().len(), CLAIM);
    assert_eq!(Claim::decode(&claim.encode()), Ok(claim));
}

#[test]
fn every_changed_byte_is_refused() {
    let bytes = receipt(Verdict::Pending).encode();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let refused = match Receipt::decode(&changed) {
                Ok(decoded) => verify(decoded).unwrap_err(),
                Err(error) => {
                    let early = at < 4 && matches!(error, DecodeError::Magic { .. });
                    let tag = matches!(error, DecodeError::UnknownTag { .. });
                    assert!(early || tag && at == 4 + CLAIM, "{at}: {error:?}");
                    continue;
                }
            };
            // In the order of the encoding: fields, keys, the worker's signature, the verdict, the other's.
            let keys = 4 + STATEMENT - 64;
            let party = if at < keys + 64 + 64 {
                Party::Worker
            } else {
                Party::Trusted
            };
            match refused {
                ReceiptError::Key { party, got, .. } => {
                    let (from, key) = match party {
                        Party::Trusted => (keys, signer(6).public()),
                        Party::Worker => (keys + 32, signer(7).public()),
                    };
                    assert!((from..from + 32).contains(&at) && got != key);
                }
                refused => assert_eq!(refused, ReceiptError::Signature { party }, "byte {at}"),
            }
        }
    }
}

#[test]
fn signatures_do_not_stand_for_others() {
    // A verdict under the signature for another one.
    let mut changed = receipt(Verdict::Pending);
    changed.verdict = Verdict::Settled;
    let party = Party::Trusted;
    assert_eq!(verify(changed), Err(ReceiptError::Signature { party }));
    // The worker's signature in the place of the trusted side's, even with one key for both.
    let both = Statement {
        trusted: signer(7).public(),
        ..statement()
    };
    let claim = both.clone().claim(&signer(7)).unwrap();
    let mut changed = claim
        .clone()
        .receipt(&both, Verdict::Pending, &signer(7))
        .unwrap();
    changed.signature = claim.signature;
    let key = signer(7).public();
    let refused = changed.verify(key, key);
    assert_eq!(refused, Err(ReceiptError::Signature { party }));
    // A claim for another inference.
    let mut changed = receipt(Verdict::Pending);
    let next = Statement {
        counter: 9,
        ..statement()
    };
    changed.claim.signature = next.claim(&signer(7)).unwrap().signature;
    let party = Party::Worker;
    assert_eq!(verify(changed), Err(ReceiptError::Signature { party }));
}

#[test]
fn a_key_of_small_order_signs_nothing() {
    // With the neutral element for a key, R = the same and s = 0 satisfy the equation for any message.
    let mut neutral = [0; 32];
    neutral[0] = 1;
    let mut forged = receipt(Verdict::Pending);
    forged.claim.statement.worker = PublicKey(neutral);
    forged.claim.signature = [0; 64];
    forged.claim.signature[0] = 1;
    let refused = forged.verify(signer(6).public(), PublicKey(neutral));
    let party = Party::Worker;
    assert_eq!(refused, Err(ReceiptError::Signature { party }));
}

#[test]
fn keys_must_be_those_that_are_trusted() {
    let refused = |trusted: u8, worker: u8| {
        let (trusted, worker) = (signer(trusted).public(), signer(worker).public());
        receipt(Verdict::Settled).verify(trusted, worker)
    };
    let error = |party, expected: u8, got: u8| {
        let (expected, got) = (signer(expected).public(), signer(got).public());
        Err(ReceiptError::Key {
            party,
            expected,
            got,
        })
    };
    assert_eq!(refused(8, 7), error(Party::Trusted, 8, 6));
    assert_eq!(refused(6, 8), error(Party::Worker, 8, 7));
    assert_eq!(refused(7, 6), error(Party::Trusted, 7, 6));
    let other = statement().claim(&signer(8));
    assert_eq!(
        other.map(|_| ()),
        error(Party::Worker, 8, 7).map(|_: Verified| ())
    );
    let claim = statement().claim(&signer(7)).unwrap();
    let other = claim.receipt(&statement(), Verdict::Pending, &signer(8));
    assert_eq!(
        other.map(|_| ()),
        error(Party::Trusted, 8, 6).map(|_: Verified| ())
    );
}

#[test]
fn only_the_expected_statement_becomes_a_receipt() {
    type Change = fn(&mut Statement);
    let changes: [(&str, Change); 8] = [
        ("model", |s| s.model = digest(9)),
        ("plan", |s| s.plan = digest(9)),
        ("counter", |s| s.counter += 1),
        ("input", |s| s.input = Salted::output(&[3; 32], b"input")),
        ("output", |s| s.output = Salted::output(&[3; 32], b"output")),
        ("trace", |s| s.trace = Root(digest(9))),
        ("trusted side's key", |s| s.trusted = signer(9).public()),
        ("worker's key", |s| s.worker = signer(9).public()),
    ];
    for (field, change) in changes {
        let mut expected = statement();
        change(&mut expected);
        let claim = statement().claim(&signer(7)).unwrap();
        let refused = claim.receipt(&expected, Verdict::Pending, &signer(6));
        assert_eq!(refused, Err(ReceiptError::Statement { field }));
    }
    let mut claim = statement().claim(&signer(7)).unwrap();
    claim.signature[5] ^= 1;
    let refused = claim.receipt(&statement(), Verdict::Pending, &signer(6));
    let party = Party::Worker;
    assert_eq!(refused, Err(ReceiptError::Signature { party }));
}

#[test]
fn only_a_pending_verdict_changes() {
    for verdict in [Verdict::Settled, Verdict::Rejected] {
        let concluded = receipt(Verdict::Pending)
            .conclude(verdict, &signer(6))
            .unwrap();
        assert_eq!(concluded, receipt(verdict));
        assert_eq!(verify(concluded.clone()).unwrap().verdict(), verdict);
        for next in VERDICTS {
            let refused = concluded.clone().conclude(next, &signer(6));
            assert_eq!(refused, Err(ReceiptError::Final { verdict }));
        }
    }
    let refused = receipt(Verdict::Pending).conclude(Verdict::Settled, &signer(7));
    let (expected, got) = (signer(7).public(), signer(6).public());
    let party = Party::Trusted;
    assert_eq!(
        refused,
        Err(ReceiptError::Key {
            party,
            expected,
            got
        })
    );
}

#[test]
fn contents_are_told_with_their_salt() {
    let verified = verify(receipt(Verdict::Settled)).unwrap();
    assert_eq!(verified.has_input(&[3; 32], b"input"), Ok(()));
    assert_eq!(verified.has_output(&[4; 32], b"output"), Ok(()));
    let what = "input";
    for (salt, bytes) in [
        ([3; 32], &b"inpux"[..]),
        ([4; 32], b"input"),
        ([3; 32], b""),
    ] {
        let refused = verified.has_input(&salt, bytes);
        assert_eq!(refused, Err(ReceiptError::Content { what }));
    }
    let what = "output";
    let refused = verified.has_output(&[3; 32], b"input");
    assert_eq!(refused, Err(ReceiptError::Content { what }));
}

#[test]
fn ten_thousand_mutations_are_refused() {
    let mut state = 1_u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        (state >> 33) as usize % limit
    };
    let original = receipt(Verdict::Settled).encode();
    let mut decoded = 0;
    for _ in 0..10_000 {
        let mut bytes = original.clone();
        for _ in 0..1 + below(3) {
            let at = below(bytes.len());
            match below(8) {
                0 => bytes.truncate(at.max(1)),
                1 => bytes.insert(at, below(256) as u8),
                2 | 3 => bytes[at] = below(256) as u8,
                4 | 5 => {
                    let other = below(bytes.len());
                    bytes.swap(at, other);
                }
                _ => bytes[at] ^= 1 << below(8),
            }
        }
        if bytes == original {
            continue;
        }
        if let Ok(receipt) = Receipt::decode(&bytes) {
            decoded += 1;
            assert_eq!(receipt.encode(), bytes, "one form");
            assert!(verify(receipt).is_err());
        }
    }
    assert!(decoded > 1000, "{decoded} reached the verifier");
}
