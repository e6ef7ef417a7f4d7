//! Sealed models, their keys, and sealed requests.

mod common;

use common::NOW;
use larvatus_attest::attester::{Attester, Simulated};
use larvatus_attest::mailbox::{Inbox, MailError, Target, WINDOW, seal_request};
use larvatus_attest::memory::{Memory, Unlocked};
use larvatus_attest::policy::{Policy, PolicyError};
use larvatus_attest::release::{Grant, Recipient, ReleaseError, release};
use larvatus_attest::seal::{ContentKey, HEADER, Header, OwnerKey, SealError, open, seal};
use larvatus_attest::statement::{Challenge, Mailbox, ModelId, Nonce, UnixTime};
use larvatus_attest::verify::{Attested, Verifier};

const MIB: usize = 1 << 20;

fn memory() -> Memory {
    Memory::protect(Unlocked::Allow).unwrap()
}

fn verifier() -> Verifier {
    let measurement = "07".repeat(48);
    let text = format!("[[simulated-not-a-tee.image]]\nmeasurement = \"{measurement}\"\n");
    Verifier::new(common::policy(&text)).unwrap()
}

fn model(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| (i * 7 + i / 251) as u8).collect()
}

fn sealed(bytes: &[u8], owner: &OwnerKey) -> Vec<u8> {
    let mut out = Vec::new();
    seal(&mut &bytes[..], bytes.len() as u64, &mut out, owner, |_| {}).unwrap();
    out
}

fn unseal(file: &[u8], owner: &OwnerKey) -> Result<Vec<u8>, SealError> {
    let mut from = file;
    let header = Header::read(&mut from)?;
    let key = owner.unwrap(&header)?;
    let opened = open(&header, &mut from, &key, file.len() as u64, memory())?;
    Ok(opened.to_vec())
}

#[test]
fn what_was_sealed_opens_whatever_its_length() {
    let owner = OwnerKey::fresh().unwrap();
    for bytes in [0, 1, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB + 5] {
        let model = model(bytes);
        let file = sealed(&model, &owner);
        assert_eq!(unseal(&file, &owner).unwrap(), model, "{bytes} bytes");
        let again = OwnerKey::from_text(&owner.to_text()).unwrap();
        assert_eq!(unseal(&file, &again).unwrap(), model);
        assert!(bytes < 64 || !file.windows(64).any(|w| w == &model[..64]));
    }
    let none = seal(&mut &b"abc"[..], 4, &mut Vec::new(), &owner, |_| {});
    assert!(matches!(none, Err(SealError::Length { expected: 4 })));
    let more = seal(&mut &b"abcde"[..], 4, &mut Vec::new(), &owner, |_| {});
    assert!(matches!(more, Err(SealError::Length { expected: 4 })));
}

#[test]
fn a_changed_sealed_model_does_not_open() {
    let owner = OwnerKey::fresh().unwrap();
    let file = sealed(&model(2 * MIB + 100), &owner);
    let chunk = MIB + 16;
    let at = |index: usize| HEADER + index * chunk;

    // Cut anywhere, and lengthened.
    for length in [0, 7, HEADER - 1] {
        assert!(matches!(
            unseal(&file[..length], &owner),
            Err(SealError::NotSealed)
        ));
    }
    for length in [HEADER, at(1), at(2), file.len() - 1] {
        let cut = unseal(&file[..length], &owner);
        assert!(matches!(cut, Err(SealError::FileLength { .. })), "{length}");
    }
    let longer = [&file[..], b"x"].concat();
    assert!(matches!(
        unseal(&longer, &owner),
        Err(SealError::FileLength { .. })
    ));

    // Cut at a chunk, with a header that says so.
    let mut shorter = file[..at(2)].to_vec();
    shorter[16..24].copy_from_slice(&(2 * MIB as u64).to_le_bytes());
    assert!(matches!(unseal(&shorter, &owner), Err(SealError::Wrap)));

    // Two chunks of one length exchanged, one repeated, one of another file.
    let mut swapped = file.clone();
    swapped[at(0)..at(1)].copy_from_slice(&file[at(1)..at(2)]);
    swapped[at(1)..at(2)].copy_from_slice(&file[at(0)..at(1)]);
    assert!(matches!(
        unseal(&swapped, &owner),
        Err(SealError::Chunk { chunk: 0 })
    ));
    let mut repeated = file.clone();
    repeated.copy_within(at(0)..at(1), at(1));
    assert!(matches!(
        unseal(&repeated, &owner),
        Err(SealError::Chunk { chunk: 1 })
    ));
    let other = sealed(&model(2 * MIB + 100), &owner);
    let mut foreign = file.clone();
    foreign[at(1)..at(2)].copy_from_slice(&other[at(1)..at(2)]);
    assert!(matches!(
        unseal(&foreign, &owner),
        Err(SealError::Chunk { chunk: 1 })
    ));
    let mut foreign = file.clone();
    foreign[..HEADER].copy_from_slice(&other[..HEADER]);
    assert!(matches!(
        unseal(&foreign, &owner),
        Err(SealError::Chunk { chunk: 0 })
    ));

    // Another key.
    let stranger = OwnerKey::fresh().unwrap();
    assert!(matches!(
        unseal(&file, &stranger),
        Err(SealError::OtherOwner)
    ));
    let small = sealed(b"a model", &owner);
    let elsewhere = sealed(b"a model", &owner);
    let header = Header::read(&mut &elsewhere[..]).unwrap();
    let wrong: ContentKey = owner.unwrap(&header).unwrap();
    let header = Header::read(&mut &small[..]).unwrap();
    let length = small.len() as u64;
    let opened = open(&header, &mut &small[HEADER..], &wrong, length, memory());
    assert!(matches!(opened, Err(SealError::Chunk { chunk: 0 })));

    // Every single bit.
    for bit in 0..small.len() * 8 {
        let mut flipped = small.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(unseal(&flipped, &owner).is_err(), "bit {bit}");
    }
}

/// Somebody attested, for a nonce.
fn recipient(model: ModelId, nonce: u8) -> (Recipient, Challenge) {
    let nonce = Nonce([nonce; 32]);
    let recipient = Recipient::fresh(model, nonce).unwrap();
    (recipient, Challenge::new(nonce, NOW))
}

#[test]
fn a_key_goes_to_the_attested_recipient_and_to_nobody_else() {
    let verifier = verifier();
    let owner = OwnerKey::fresh().unwrap();
    let model = model(1000);
    let file = sealed(&model, &owner);
    let header = Header::read(&mut &file[..]).unwrap();
    let id = header.model();
    let attester = Simulated::new([7; 48]);

    let (service, challenge) = recipient(id, 1);
    let evidence = attester.attest(&service.statement()).unwrap();
    let attested = verifier.release(&evidence, challenge, id, NOW).unwrap();
    let key = owner.unwrap(&header).unwrap();
    let grant = release(&attested, &key).unwrap();
    let got = service.accept(&grant, memory()).unwrap();
    let length = file.len() as u64;
    let opened = open(&header, &mut &file[HEADER..], &got, length, memory()).unwrap();
    assert_eq!(*opened, model);

    // Another key, another model's key, another nonce: none of them opens it.
    let (stranger, _) = recipient(id, 1);
    let no = |who: &Recipient, grant: &Grant| who.accept(grant, memory()).unwrap_err();
    assert_eq!(no(&stranger, &grant), ReleaseError::DoesNotOpen);
    for bit in 64..grant.as_bytes().len() * 8 {
        let mut bytes = grant.as_bytes().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let flipped = Grant::from_bytes(&bytes).unwrap();
        assert_eq!(
            no(&service, &flipped),
            ReleaseError::DoesNotOpen,
            "bit {bit}"
        );
    }
    let cut = Grant::from_bytes(&grant.as_bytes()[1..]);
    assert_eq!(cut, Err(ReleaseError::NotAGrant { got: 87 }));
}

fn mailbox() -> (Inbox, Attested<Mailbox>) {
    let inbox = Inbox::fresh(memory()).unwrap();
    let challenge = Challenge::fresh(NOW).unwrap();
    let statement = inbox.statement(challenge.nonce());
    let evidence = Simulated::new([7; 48]).attest(&statement).unwrap();
    let attested = verifier().mailbox(&evidence, challenge, NOW).unwrap();
    (inbox, attested)
}

const TARGET: Target<'static> = Target {
    method: "POST",
    path: "/v2/models/m/infer",
    model: "m",
};

#[test]
fn a_request_and_its_response_open_at_their_ends_only() {
    let (inbox, attested) = mailbox();
    let (request, wait) = seal_request(&attested, &TARGET, b"an input", NOW).unwrap();
    let (body, reply) = inbox.open(&TARGET, &request, NOW).unwrap();
    assert_eq!(&body[..], b"an input");
    let response = reply.seal(200, b"an answer").unwrap();
    assert_eq!(wait.open(200, &response).unwrap(), b"an answer");
    println!(
        "{} bytes more in a request, {} in a response",
        request.len() - 8,
        response.len() - 9
    );

    // Another status, another request's response, and every bit.
    let exchange = |sent: u16, read: u16, bit: Option<usize>| {
        let (request, wait) = seal_request(&attested, &TARGET, b"x", NOW).unwrap();
        let (_, reply) = inbox.open(&TARGET, &request, NOW).unwrap();
        let mut response = reply.seal(sent, b"y").unwrap();
        if let Some(bit) = bit {
            response[bit / 8] ^= 1 << (bit % 8);
        }
        wait.open(read, &response)
    };
    assert_eq!(exchange(200, 200, None).unwrap(), b"y");
    assert_eq!(exchange(503, 200, None), Err(MailError::DoesNotOpen));
    for bit in 0..25 * 8 {
        assert!(exchange(200, 200, Some(bit)).is_err(), "bit {bit}");
    }
    let (_, wait) = seal_request(&attested, &TARGET, b"x", NOW).unwrap();
    assert_eq!(wait.open(200, &response), Err(MailError::DoesNotOpen));
}

#[test]
fn a_request_is_taken_once_in_its_time_and_for_its_target() {
    let (inbox, attested) = mailbox();
    let (request, _) = seal_request(&attested, &TARGET, b"an input", NOW).unwrap();
    let refused = |inbox: &Inbox, target: &Target<'_>, request: &[u8], now: u64| {
        inbox.open(target, request, UnixTime(now)).unwrap_err()
    };
    for target in [
        Target {
            method: "GET",
            ..TARGET
        },
        Target {
            path: "/v2/models/n/infer",
            ..TARGET
        },
        Target {
            model: "n",
            ..TARGET
        },
        Target {
            path: "/v2/models/m/infer?",
            ..TARGET
        },
    ] {
        let why = refused(&inbox, &target, &request, NOW.0);
        assert_eq!(why, MailError::DoesNotOpen, "{target:?}");
    }
    for bit in 64..request.len() * 8 {
        let mut flipped = request.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(inbox.open(&TARGET, &flipped, NOW).is_err(), "bit {bit}");
    }
    let late = NOW.0 + WINDOW + 1;
    assert_eq!(
        refused(&inbox, &TARGET, &request, late),
        MailError::OutsideWindow
    );
    let early = NOW.0 - WINDOW - 1;
    assert_eq!(
        refused(&inbox, &TARGET, &request, early),
        MailError::OutsideWindow
    );
    assert_eq!(
        refused(&inbox, &TARGET, &request[..20], NOW.0),
        MailError::Malformed
    );
    let (other, _) = mailbox();
    assert_eq!(
        refused(&other, &TARGET, &request, NOW.0),
        MailError::DoesNotOpen
    );

    assert!(
        inbox
            .open(&TARGET, &request, UnixTime(NOW.0 - WINDOW))
            .is_ok()
    );
    for now in [NOW.0 - WINDOW, NOW.0, NOW.0 + WINDOW] {
        assert_eq!(refused(&inbox, &TARGET, &request, now), MailError::Replayed);
    }
}

#[test]
fn policies_fail_closed() {
    let image = "[[nitro.image]]\npcr0 = \"danger-any\"\n";
    let text = |rest: &str| Policy::from_toml(&format!("version = 1\nfreshness = 60\n{rest}"));
    assert!(matches!(text(""), Err(PolicyError::NoPlatform)));
    assert!(matches!(
        text("[nitro]\n"),
        Err(PolicyError::NoImage { .. })
    ));
    assert!(matches!(text(image), Err(PolicyError::Malformed(_))));
    let simulated = format!(
        "[[simulated-not-a-tee.image]]\nmeasurement = \"{}\"\n",
        "00".repeat(48)
    );
    assert!(text(&simulated).unwrap().names_simulated());
    let misspelt = format!("{simulated}mesurement = 1\n");
    let why = text(&misspelt).unwrap_err().to_string();
    assert!(why.contains("mesurement"), "{why}");
    for (version, freshness) in [(2, 60), (1, 0), (1, 100_000)] {
        let text = format!("version = {version}\nfreshness = {freshness}\n{simulated}");
        assert!(Policy::from_toml(&text).is_err(), "{text}");
    }
    let half = format!("[[sgx.image]]\nmr-signer = \"{}\"\n", "00".repeat(32));
    assert!(matches!(
        text(&half),
        Err(PolicyError::SgxImage { index: 0 })
    ));
    let revoked = format!(
        "[sgx]\nstatus = [\"Revoked\"]\n[[sgx.image]]\nmr-enclave = \"{}\"\n",
        "00".repeat(32)
    );
    assert!(matches!(text(&revoked), Err(PolicyError::Status { .. })));
    let snp = format!("[[sev-snp.image]]\nmeasurement = \"{}\"\n", "00".repeat(48));
    let why = text(&snp).unwrap_err().to_string();
    assert!(why.contains("minimum-tcb"), "{why}");
}
