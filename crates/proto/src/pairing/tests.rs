//! Honest ends, and whoever sits between them.

use std::time::Duration;

use super::*;

const SOON: Now = Duration::from_secs(10);

const DEVICE: Key = Key([1; 32]);
const WORKER: Key = Key([2; 32]);
/// Whoever sits between, as the device sees it and as the worker does.
const FALSE_WORKER: Key = Key([3; 32]);
const FALSE_DEVICE: Key = Key([4; 32]);

/// 32 bytes of this number.
fn nonce(number: u64) -> Nonce {
    let mut random = [0; 32];
    random[..8].copy_from_slice(&number.to_le_bytes());
    Nonce::new(random)
}

fn both(first: u64, second: u64) -> (Pairing, Pairing) {
    (
        Pairing::device(DEVICE, WORKER, nonce(first), SOON),
        Pairing::worker(WORKER, DEVICE, nonce(second), SOON),
    )
}

/// Moves what one has to say to the other, until neither has any more.
fn talk(one: &mut Pairing, two: &mut Pairing) {
    loop {
        let (there, back) = (one.transmit(Now::ZERO), two.transmit(Now::ZERO));
        if there.is_none() && back.is_none() {
            return;
        }
        there
            .into_iter()
            .for_each(|frame| two.receive(frame, Now::ZERO));
        back.into_iter()
            .for_each(|frame| one.receive(frame, Now::ZERO));
    }
}

/// The one frame that an end has to say.
fn said(by: &mut Pairing) -> Frame {
    let frame = by.transmit(Now::ZERO).expect("something to say");
    assert_eq!(by.transmit(Now::ZERO), None);
    frame
}

fn tell(to: &mut Pairing, frame: Frame) {
    to.receive(frame, Now::ZERO);
}

fn failed(end: &Pairing) -> PairingError {
    end.outcome().expect("an end").unwrap_err()
}

#[test]
fn two_ends_that_confirm_the_same_code_know_each_other() {
    let (mut device, mut worker) = both(5, 6);
    talk(&mut device, &mut worker);
    let code = device.code().unwrap();
    assert_eq!(worker.code(), Some(code));
    worker.confirm(code);
    talk(&mut device, &mut worker);
    // One yes is not enough for either.
    assert_eq!((device.outcome(), worker.outcome()), (None, None));
    device.confirm(code.to_string().parse().unwrap());
    talk(&mut device, &mut worker);
    assert_eq!(device.outcome().unwrap().unwrap().with(), WORKER);
    assert_eq!(worker.outcome().unwrap().unwrap().with(), DEVICE);
    assert!(device.finished() && worker.finished());
}

#[test]
fn another_code_is_refused_on_both_ends() {
    for who in 0..2 {
        let (mut device, mut worker) = both(5, 6);
        talk(&mut device, &mut worker);
        let right = device.code().unwrap();
        let wrong = Code((right.0 + 1) % 1_000_000);
        let ends = [&mut device, &mut worker];
        for (at, end) in ends.into_iter().enumerate() {
            end.confirm(if at == who { wrong } else { right });
        }
        talk(&mut device, &mut worker);
        let (refuses, hears) = match who {
            0 => (&device, &worker),
            _ => (&worker, &device),
        };
        assert_eq!(failed(refuses), PairingError::OtherCode);
        assert_eq!(failed(hears), PairingError::Refused);
    }
}

/// What an attacker gets who ends both links and plays honestly in each: two codes of its own.
fn between(seed: u64) -> (Code, Code) {
    let mut device = Pairing::device(DEVICE, FALSE_WORKER, nonce(4 * seed), SOON);
    let mut to_device = Pairing::worker(FALSE_WORKER, DEVICE, nonce(4 * seed + 1), SOON);
    talk(&mut device, &mut to_device);
    let mut worker = Pairing::worker(WORKER, FALSE_DEVICE, nonce(4 * seed + 2), SOON);
    let mut to_worker = Pairing::device(FALSE_DEVICE, WORKER, nonce(4 * seed + 3), SOON);
    talk(&mut to_worker, &mut worker);
    (device.code().unwrap(), worker.code().unwrap())
}

#[test]
fn whoever_sits_between_has_two_codes() {
    // One guess an attempt: 0.2 are expected among 200 000, and more than five come once in 10⁷ runs of this test.
    let equal = (0..200_000).filter(|seed| {
        let (one, two) = between(*seed);
        one == two
    });
    assert!(equal.count() <= 5);
}

#[test]
fn codes_are_spread_evenly() {
    let mut tens = [0_u32; 10];
    for seed in 0..50_000 {
        let (one, two) = between(seed);
        for code in [one, two] {
            assert!(code.0 < 1_000_000);
            *tens.get_mut(code.0 as usize / 100_000).unwrap() += 1;
        }
    }
    // 10⁴ of 10⁵ each, and a standard deviation of 95.
    assert!(
        tens.iter().all(|count| count.abs_diff(10_000) < 570),
        "{tens:?}"
    );
}

/// The nonces are passed on, so that only the keys differ: what was committed to does not fit.
#[test]
fn a_relay_between_two_other_keys_is_refused() {
    let mut device = Pairing::device(DEVICE, FALSE_WORKER, nonce(5), SOON);
    let mut worker = Pairing::worker(WORKER, FALSE_DEVICE, nonce(6), SOON);
    talk(&mut device, &mut worker);
    assert_eq!(failed(&worker), PairingError::Commitment);
    assert_eq!(failed(&device), PairingError::Refused);
}

/// An attacker that learns the device's code first and then looks for a nonce that yields it again at the worker.
#[test]
fn a_nonce_chosen_afterwards_is_refused() {
    let keys = Keys {
        device: FALSE_DEVICE,
        worker: WORKER,
    };
    let wanted = between(1).0;
    let mut worker = Pairing::worker(WORKER, FALSE_DEVICE, nonce(6), SOON);
    let mut liar = Pairing::device(FALSE_DEVICE, WORKER, nonce(7), SOON);
    tell(&mut worker, said(&mut liar));
    let Ok(Message::Nonce(theirs)) = Message::from_frame(said(&mut worker), Role::Device) else {
        panic!("no nonce");
    };
    // Some 10⁶ tries find one.
    let mut tries = (0_u64..).map(|number| nonce(number).0);
    let chosen = tries
        .find(|ours| Code::of(keys, ours, &theirs) == wanted)
        .unwrap();
    tell(
        &mut worker,
        Message::Opening(chosen).into_frame(Role::Device),
    );
    assert_eq!(failed(&worker), PairingError::Commitment);
    assert_eq!(worker.code(), None);
}

/// A worker's nonce that was told is a guess that was made: whoever does not like the code cannot try again unseen.
#[test]
fn a_told_nonce_is_spent() {
    let (mut device, mut worker) = both(5, 6);
    assert!(!worker.spent());
    tell(&mut worker, said(&mut device));
    assert!(worker.spent());
    worker.disconnected(LinkEnd::Closed, Now::ZERO);
    assert_eq!(failed(&worker), PairingError::Disconnected);
    assert!(worker.spent());
    // What is no pairing at all tells the stranger nothing.
    let (_, mut worker) = both(5, 6);
    tell(
        &mut worker,
        Frame {
            kind: 1,
            head: vec![0; 6],
            words: Words::default(),
        },
    );
    assert!(matches!(failed(&worker), PairingError::Malformed(_)));
    assert!(!worker.spent());
}

#[test]
fn a_recorded_conversation_is_of_no_use() {
    let (mut device, mut worker) = both(5, 6);
    let commitment = said(&mut device);
    tell(&mut worker, commitment.clone());
    tell(&mut device, said(&mut worker));
    let opening = said(&mut device);
    let code = device.code().unwrap();
    device.confirm(code);
    let yes = said(&mut device);
    // The same bytes, to the same worker with another nonce: another code, and no yes of its owner.
    let mut worker = Pairing::worker(WORKER, DEVICE, nonce(8), SOON);
    for frame in [commitment, opening, yes] {
        tell(&mut worker, frame);
    }
    assert_ne!(worker.code(), Some(code));
    assert_eq!(worker.outcome(), None);
}

#[test]
fn a_message_out_of_turn_ends_it() {
    let yes = |role| Message::Verdict { yes: true }.into_frame(role);
    let (mut device, mut worker) = both(5, 6);
    // A yes before there is a code, on either side.
    tell(&mut device, yes(Role::Worker));
    tell(&mut worker, yes(Role::Device));
    assert_eq!(failed(&device), PairingError::OutOfTurn);
    assert_eq!(failed(&worker), PairingError::OutOfTurn);
    let (mut device, mut worker) = both(5, 6);
    let commitment = said(&mut device);
    tell(&mut worker, commitment.clone());
    tell(&mut worker, commitment);
    assert_eq!(failed(&worker), PairingError::OutOfTurn);
    // A second nonce, when the first has been answered by the opening.
    let (mut device, mut worker) = both(5, 6);
    talk(&mut device, &mut worker);
    let nonce = Message::Nonce([9; 32]).into_frame(Role::Worker);
    tell(&mut device, nonce);
    assert_eq!(failed(&device), PairingError::OutOfTurn);
    assert_eq!(device.code(), None);
    // What the device says is not what a worker may say to it.
    let (mut device, _) = both(5, 6);
    let own = said(&mut device);
    tell(&mut device, own);
    assert!(matches!(failed(&device), PairingError::Malformed(_)));
}

#[test]
fn time_and_keys_and_versions_are_looked_at() {
    let (mut device, _) = both(5, 6);
    assert_eq!(device.deadline(), Some(SOON));
    device.tick(SOON);
    assert_eq!(failed(&device), PairingError::TimedOut);
    assert_eq!(device.deadline(), None);
    let mirror = Pairing::device(DEVICE, DEVICE, nonce(5), SOON);
    assert_eq!(failed(&mirror), PairingError::OwnKey);
    assert!(mirror.finished());
    let (_, mut worker) = both(5, 6);
    let next = Message::Commitment {
        version: VERSION + 1,
        commitment: Digest([0; 32]),
    };
    tell(&mut worker, next.into_frame(Role::Device));
    let (ours, theirs) = (VERSION, VERSION + 1);
    assert_eq!(failed(&worker), PairingError::Version { ours, theirs });
    assert!(!worker.spent());
}

#[test]
fn every_message_has_one_encoding() {
    let messages = [
        (
            Role::Device,
            Message::Commitment {
                version: 1,
                commitment: Digest([7; 32]),
            },
        ),
        (Role::Worker, Message::Nonce([8; 32])),
        (Role::Device, Message::Opening([9; 32])),
        (Role::Device, Message::Verdict { yes: true }),
        (Role::Worker, Message::Verdict { yes: false }),
    ];
    for (says, message) in messages {
        let hears = match says {
            Role::Device => Role::Worker,
            Role::Worker => Role::Device,
        };
        let frame = message.clone().into_frame(says);
        assert!(frame.head.len() <= HEAD);
        assert_eq!(Message::from_frame(frame.clone(), hears), Ok(message));
        assert!(Message::from_frame(frame.clone(), says).is_err());
        for length in 0..frame.head.len() {
            let mut short = frame.clone();
            short.head.truncate(length);
            assert!(Message::from_frame(short, hears).is_err());
        }
        let mut long = frame.clone();
        long.head.push(0);
        assert!(Message::from_frame(long, hears).is_err());
        let mut payload = frame;
        payload.words = vec![0].into();
        assert!(Message::from_frame(payload, hears).is_err());
    }
}

#[test]
fn codes_are_read_as_people_type_them() {
    assert_eq!("001 234".parse(), Ok(Code(1234)));
    assert_eq!(" 001234\n".parse(), Ok(Code(1234)));
    assert_eq!(Code(1234).to_string(), "001 234");
    for text in ["", "12345", "1234567", "12345a", "+12345", "yes", "١٢٣٤٥٦"] {
        assert_eq!(text.parse::<Code>(), Err(NoCode), "{text}");
    }
}
