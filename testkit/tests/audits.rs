//! Workers that run whole graphs: every lie ends in the exact verdict, and audits catch as often as they say.

use std::sync::Arc;
use std::time::Duration;

use larvatus::audit::{
    CannotOpen, Evidence, JudgeKey, JudgeSecret, Lie, Outcome, Provisional, Remote, RemoteSettings,
};
use larvatus::error::{InferError, WorkerFailed, WorkerMisbehaved};
use larvatus::secret::Entropy;
use larvatus_graph::{Mismatch, UnitId};
use larvatus_proto::commit::{LeafId, OpenError};
use larvatus_proto::machine::Machine;
use larvatus_proto::receipt::{Party, PublicKey, ReceiptError, Signer, Verdict};
use larvatus_testkit::adversary::{Crooked, EXCUSE, NO_MODEL, WholeLiar, WholeLie, Wrong};
use larvatus_testkit::chance::Chance;
use larvatus_testkit::pair::converse;
use larvatus_testkit::whole::{
    ROWS, WORKER, agreed, audit, input, run, service, store, terms, tower, trusted,
};
use larvatus_worker::{Cpu, Service};

const FLOORS: usize = 18;
/// Units of a tower: maxima, product, floors.
const UNITS: u32 = 2 + FLOORS as u32;

fn worker_key() -> PublicKey {
    Signer::new(WORKER).public()
}

fn cpu() -> Cpu {
    Cpu::new(std::num::NonZeroUsize::MIN).unwrap()
}

fn honest() -> Service {
    service(&store(Box::new(cpu())))
}

fn crooked(wrong: Wrong) -> Service {
    service(&store(Box::new(Crooked(wrong))))
}

/// One run with a peer, and its audit of everything.
fn full_audit(peer: &mut dyn Machine) -> Outcome {
    let model = tower(FLOORS, 1);
    let terms = terms(&model, 1.0);
    let mut remote = agreed(&terms, peer).unwrap();
    let record = run(&mut remote, peer, 7, input(&model, 3)).unwrap();
    audit(&terms, &mut remote, peer, record, [4; 32])
}

#[test]
fn an_honest_worker_is_settled_with_a_receipt_of_both() {
    let Outcome::Settled(settled) = full_audit(&mut honest()) else {
        panic!("not settled");
    };
    assert_eq!(settled.units(), UNITS as usize);
    let receipt = settled.receipt().clone();
    let verified = receipt.verify(trusted().public(), worker_key()).unwrap();
    assert_eq!(verified.verdict(), Verdict::Settled);
    assert_eq!(verified.statement().counter, 7);
}

#[test]
fn the_output_is_that_of_the_graph_whoever_runs_it() {
    let model = tower(FLOORS, 1);
    let terms = terms(&model, 0.1);
    let mut peer = honest();
    let mut remote = agreed(&terms, &mut peer).unwrap();
    let record = run(&mut remote, &mut peer, 0, input(&model, 5)).unwrap();
    let values = model.graph().unpack_inputs(&input(&model, 5)).unwrap();
    let prepared = larvatus_graph::Prepared::new(&model).unwrap();
    let expected = prepared.run(values, &mut ()).unwrap();
    assert_eq!(
        record.output(),
        model.graph().pack_outputs(&expected).unwrap()
    );
}

/// A lie in what is computed: rejected for this unit, and anybody can see it.
fn unit_is_caught(wrong: Wrong, expected: u32, tensor: u32, element: usize) {
    let Outcome::Rejected(rejected) = full_audit(&mut crooked(wrong)) else {
        panic!("{wrong:?} is not rejected");
    };
    let Lie::Unit { unit, mismatch } = rejected.lie() else {
        panic!("{wrong:?}: {:?}", rejected.lie());
    };
    let Mismatch::Differs {
        tensor: at_tensor,
        element: at,
        ..
    } = mismatch
    else {
        panic!("{wrong:?}: {mismatch:?}");
    };
    assert_eq!(
        (unit.0, *at_tensor, *at),
        (expected, tensor, element),
        "{wrong:?}"
    );
    let receipt = rejected.receipt().clone();
    let verified = receipt.verify(trusted().public(), worker_key()).unwrap();
    assert_eq!(verified.verdict(), Verdict::Rejected);
    // As a file, at somebody else's.
    let bytes = rejected.evidence().unwrap().encode();
    let evidence = Evidence::decode(&bytes).unwrap();
    assert_eq!(evidence.encode(), bytes);
    let shown = evidence.judge(worker_key(), &tower(FLOORS, 1)).unwrap();
    assert_eq!(shown.unit(), Some(&(*unit, mismatch.clone())));
    assert!(!shown.disclosed().is_empty());
    assert_eq!(shown.statement(), rejected.receipt().unverified());
}

#[test]
fn a_lie_in_one_node_that_is_continued_is_caught_there() {
    let wrong = Wrong::Made {
        tensor: 5,
        element: 9,
    };
    unit_is_caught(wrong, 4, 5, 9);
}

#[test]
fn a_lie_in_a_scale_is_caught_there() {
    let wrong = Wrong::Made {
        tensor: 1,
        element: ROWS - 1,
    };
    unit_is_caught(wrong, 0, 1, ROWS - 1);
}

#[test]
fn a_lie_in_what_is_committed_and_not_in_the_output_is_caught() {
    let wrong = Wrong::Committed {
        place: 6,
        element: 2,
    };
    unit_is_caught(wrong, 5, 6, 2);
}

#[test]
fn a_lie_in_the_committed_output_is_caught_as_a_unit() {
    let last = UNITS;
    let wrong = Wrong::Made {
        tensor: last,
        element: 0,
    };
    unit_is_caught(wrong, last - 1, last, 0);
}

/// What becomes of a run, or of its audit.
fn of_lie(lie: WholeLie) -> Result<Outcome, InferError> {
    let model = tower(FLOORS, 1);
    let terms = terms(&model, 1.0);
    let mut peer = WholeLiar::new(honest(), lie);
    let mut remote = agreed(&terms, &mut peer)?;
    let mut record = run(&mut remote, &mut peer, 7, input(&model, 3))?;
    if lie == WholeLie::Stale {
        record = run(&mut remote, &mut peer, 8, input(&model, 4))?;
    }
    Ok(audit(&terms, &mut remote, &mut peer, record, [4; 32]))
}

fn rejected(lie: WholeLie) -> (Lie, Option<Evidence>) {
    match of_lie(lie) {
        Ok(Outcome::Rejected(rejected)) => (rejected.lie().clone(), rejected.evidence().cloned()),
        other => panic!("{lie:?}: {other:?}"),
    }
}

#[test]
fn sealed_evidence_opens_for_its_judge_only_and_as_it_was() {
    let evidence = rejected(WholeLie::OutputOnly).1.expect("evidence");
    let (judge, other) = (JudgeSecret::new(&[1; 32]), JudgeSecret::new(&[2; 32]));
    let (to, key) = (judge.public(), other.public());
    let sealed = evidence.seal(to, &Entropy::new([3; 32])).unwrap();
    assert_eq!(Evidence::unseal(&sealed, &judge).as_ref(), Ok(&evidence));
    // Equal evidence sealed with other randomness has no byte in common but by chance.
    let again = evidence.seal(to, &Entropy::new([4; 32])).unwrap();
    let same = sealed.iter().zip(&again).skip(36);
    let same = same.filter(|(a, b)| a == b).count();
    assert!(same < sealed.len() / 32, "{same} of {}", sealed.len());
    let plain = evidence.encode();
    assert!(!sealed.windows(32).any(|bytes| bytes == &plain[4..36]));

    let refused = |bytes: &[u8], judge| Evidence::unseal(bytes, judge).unwrap_err();
    assert_eq!(refused(&sealed, &other), CannotOpen::OtherJudge { to, key });
    // Renamed to another judge, who has not the key either.
    let mut renamed = sealed.clone();
    let to_other = evidence.seal(key, &Entropy::new([3; 32])).unwrap();
    renamed[4..36].copy_from_slice(&to_other[4..36]);
    assert_eq!(refused(&renamed, &other), CannotOpen::Altered);
    // Every bit of the head and of the tag, and some in between.
    let bytes = sealed.len();
    let places = (36..80)
        .chain((80..bytes - 16).step_by(997))
        .chain(bytes - 16..bytes);
    for (place, bit) in places.flat_map(|place| (0..8).map(move |bit| (place, bit))) {
        // The last bit of an X25519 public key is not read.
        if (place, bit) == (67, 7) {
            continue;
        }
        let mut flipped = sealed.clone();
        flipped[place] ^= 1 << bit;
        assert_eq!(refused(&flipped, &judge), CannotOpen::Altered, "{place}");
    }
    for length in [68, 69, bytes / 2, bytes - 16, bytes - 1] {
        assert_eq!(refused(&sealed[..length], &judge), CannotOpen::Altered);
    }
    for length in [0, 3, 4, 35, 67] {
        let why = refused(&sealed[..length], &judge);
        assert!(matches!(why, CannotOpen::Malformed(_)), "{length}: {why}");
    }
    let longer = [&sealed[..], &[0]].concat();
    assert_eq!(refused(&longer, &judge), CannotOpen::Altered);
    assert!(matches!(refused(&plain, &judge), CannotOpen::Malformed(_)));
    // A key of small order agrees on nothing secret.
    let zero: JudgeKey = "00".repeat(32).parse().unwrap();
    assert!(evidence.seal(zero, &Entropy::new([3; 32])).is_err());
    assert!("00".parse::<JudgeKey>().is_err());
}

#[test]
fn another_output_than_the_computed_one_is_evidence() {
    let (lie, evidence) = rejected(WholeLie::OutputOnly);
    let leaf = LeafId {
        tensor: UNITS,
        leaf: 0,
    };
    assert_eq!(lie, Lie::Output { leaf });
    let evidence = Evidence::decode(&evidence.unwrap().encode()).unwrap();
    let shown = evidence.judge(worker_key(), &tower(FLOORS, 1)).unwrap();
    assert_eq!(shown.unit(), None);
    assert_eq!(shown.disclosed().len(), 1);
}

#[test]
fn the_run_of_another_input_is_evidence() {
    let (lie, evidence) = rejected(WholeLie::Stale);
    let leaf = LeafId { tensor: 0, leaf: 0 };
    assert_eq!(lie, Lie::Input { leaf });
    let evidence = evidence.unwrap();
    let shown = evidence.judge(worker_key(), &tower(FLOORS, 1)).unwrap();
    assert_eq!(shown.disclosed()[0].name, "input x");
}

#[test]
fn what_is_signed_must_be_what_was_asked() {
    let statement = |field| ReceiptError::Statement { field };
    for (lie, expected) in [
        (WholeLie::OutputUnsigned, statement("output")),
        (WholeLie::SignsAnotherModel, statement("model")),
        (WholeLie::SignsAnotherInput, statement("input")),
        (WholeLie::SignsAnotherCounter, statement("counter")),
        (WholeLie::SignsWithAnotherKey, statement("worker's key")),
        (
            WholeLie::DoesNotSign,
            ReceiptError::Signature {
                party: Party::Worker,
            },
        ),
    ] {
        let expected = InferError::Worker(WorkerMisbehaved::Claim(expected));
        assert_eq!(of_lie(lie).unwrap_err(), expected, "{lie:?}");
    }
}

#[test]
fn a_worker_that_does_not_answer_or_open_in_time_is_never_settled() {
    let within = Duration::from_secs(60);
    let late = |awaited| WorkerFailed::TimedOut { awaited, within };
    let never = of_lie(WholeLie::NeverRuns).unwrap_err();
    assert_eq!(never, InferError::Failed(late("the result of a run")));
    for (lie, expected) in [
        (
            WholeLie::RefusesToOpen,
            WorkerFailed::Refused {
                message: EXCUSE.into(),
            },
        ),
        (WholeLie::NeverOpens, late("an opening")),
    ] {
        let Ok(Outcome::Unopened(unopened)) = of_lie(lie) else {
            panic!("{lie:?}");
        };
        assert_eq!(unopened.why(), &expected);
        let receipt = unopened.receipt().clone();
        let verified = receipt.verify(trusted().public(), worker_key()).unwrap();
        assert_eq!(verified.verdict(), Verdict::Pending);
    }
}

#[test]
fn openings_that_are_not_those_asked_for_are_rejected_without_evidence() {
    for lie in [
        WholeLie::OpensOtherBytes,
        WholeLie::OutputThenSilence,
        WholeLie::OpensFewer,
        WholeLie::OpensRenamed,
        WholeLie::OpensGarbage,
        WholeLie::OpensTruncated,
        WholeLie::AnswersOtherwise,
    ] {
        let (what, evidence) = rejected(lie);
        assert_eq!(evidence, None, "{lie:?}");
        let right = match lie {
            WholeLie::OpensOtherBytes | WholeLie::OutputThenSilence => {
                matches!(what, Lie::Opening(OpenError::Root { .. }))
            }
            WholeLie::OpensFewer => {
                let (expected, got) = (UNITS as usize - 1, UNITS as usize - 2);
                what == Lie::Opening(OpenError::Count { expected, got })
            }
            WholeLie::OpensRenamed | WholeLie::OpensGarbage | WholeLie::OpensTruncated => {
                matches!(what, Lie::Malformed(_))
            }
            _ => matches!(what, Lie::Protocol(WorkerMisbehaved::OutOfTurn { .. })),
        };
        assert!(right, "{lie:?}: {what:?}");
    }
}

#[test]
fn the_opening_of_another_unit_is_rejected() {
    let model = tower(FLOORS, 1);
    let terms = terms(&model, 0.05);
    let mut peer = WholeLiar::new(honest(), WholeLie::OpensOthers);
    let mut remote = agreed(&terms, &mut peer).unwrap();
    let record = run(&mut remote, &mut peer, 7, input(&model, 3)).unwrap();
    // A draw of one floor in the middle.
    let middle = |seed: &[u8; 32]| matches!(model.graph().draw(*seed, 0.05)[..], [UnitId(4..=9)]);
    let seed = (0..=u8::MAX).map(|byte| [byte; 32]).find(middle).unwrap();
    let unit = model.graph().draw(seed, 0.05)[0].0;
    let Outcome::Rejected(rejected) = audit(&terms, &mut remote, &mut peer, record, seed) else {
        panic!("not rejected");
    };
    let leaf = |tensor| LeafId { tensor, leaf: 0 };
    let (expected, got) = (leaf(unit), leaf(unit + 1));
    assert_eq!(
        rejected.lie(),
        &Lie::Opening(OpenError::NotAsked { expected, got })
    );
    assert_eq!(rejected.evidence(), None);
}

#[test]
fn a_worker_must_sign_for_the_graph_it_was_offered_and_with_the_key_it_is_known_by() {
    let model = tower(FLOORS, 1);
    let terms = terms(&model, 1.0);
    let mut liar = WholeLiar::new(honest(), WholeLie::SignsForAnother);
    let other = WorkerMisbehaved::OtherModel {
        offered: model.digest(),
        got: NO_MODEL,
    };
    assert_eq!(agreed(&terms, &mut liar).unwrap_err(), other.into());

    let expected = Signer::new([8; 32]).public();
    let settings = RemoteSettings {
        answer_within: Duration::from_secs(60),
        worker: Some(expected),
    };
    let mut remote = Remote::new(terms, trusted(), settings);
    converse(&mut remote, &mut honest(), Duration::ZERO);
    let got = worker_key();
    let other = InferError::Failed(WorkerFailed::OtherKey { expected, got });
    assert_eq!(remote.failure(), Some(&other));
}

#[test]
fn a_worker_keeps_the_last_traces_and_opens_them_for_who_asked_only() {
    let model = tower(FLOORS, 1);
    let terms = terms(&model, 1.0);
    let limits = larvatus_worker::Limits {
        traces: 2,
        ..larvatus_worker::Limits::default()
    };
    let store = larvatus_worker::Store::signing(Box::new(cpu()), limits, Signer::new(WORKER));
    let mut peer = service(&store);
    let mut remote = agreed(&terms, &mut peer).unwrap();
    let mut records: Vec<Provisional> = (0..3)
        .map(|number| run(&mut remote, &mut peer, number, input(&model, number)).unwrap())
        .collect();
    let gone = |record: &Provisional| {
        let trace = record.statement().trace;
        format!("no trace {trace} is kept here for who asks; a worker keeps the last ones only")
    };

    // Another trusted side, on another connection, that has learned the root.
    let settings = RemoteSettings {
        answer_within: Duration::from_secs(60),
        worker: None,
    };
    let stranger = Arc::new(Signer::new([77; 32]));
    let mut other = Remote::new(Arc::clone(&terms), stranger, settings);
    let mut second = service(&store);
    converse(&mut other, &mut second, Duration::ZERO);
    let trace = records[2].statement().trace;
    let leaf = LeafId { tensor: 0, leaf: 0 };
    other
        .open(trace, vec![leaf], vec![], Duration::ZERO)
        .unwrap();
    converse(&mut other, &mut second, Duration::ZERO);
    let Some(larvatus::audit::Done::Refused { why, .. }) = other.poll() else {
        panic!("opened for a stranger");
    };
    let message = gone(&records[2]);
    assert_eq!(why, WorkerFailed::Refused { message });

    // The last two are there, also on another connection; the first has made way.
    for record in records.split_off(1) {
        let mut third = service(&store);
        let mut remote = agreed(&terms, &mut third).unwrap();
        let outcome = audit(&terms, &mut remote, &mut third, record, [4; 32]);
        assert!(matches!(outcome, Outcome::Settled(_)), "{outcome:?}");
    }
    let first = records.remove(0);
    let message = gone(&first);
    let Outcome::Unopened(unopened) = audit(&terms, &mut remote, &mut peer, first, [4; 32]) else {
        panic!("opened what is gone");
    };
    assert_eq!(unopened.why(), &WorkerFailed::Refused { message });
}

#[test]
fn a_worker_without_a_key_runs_no_graphs() {
    let model = tower(2, 1);
    let mut peer = larvatus_testkit::pair::honest();
    let refused = agreed(&terms(&model, 1.0), &mut peer).unwrap_err();
    let message = "this worker has no receipt key, so it runs no whole graphs".to_owned();
    assert_eq!(
        refused,
        InferError::Failed(WorkerFailed::Refused { message })
    );
}

/// Records of a lie in one unit, audited again and again with other draws: caught iff the draw has the unit, and so as
/// often as α says.
#[test]
fn audits_catch_a_lie_in_one_unit_as_often_as_they_say() {
    const AUDITS: u64 = 3000;
    const TOGETHER: usize = 3;
    let model = tower(FLOORS, 1);
    for part in [0.05, 0.2] {
        let terms = terms(&model, part);
        let wrong = Wrong::Made {
            tensor: 5,
            element: 9,
        };
        let mut peer = crooked(wrong);
        let mut remote = agreed(&terms, &mut peer).unwrap();
        let record = run(&mut remote, &mut peer, 7, input(&model, 3)).unwrap();
        let record = record.encode();
        let mut chance = Chance::new(11);
        let mut caught = Vec::new();
        for _ in 0..AUDITS {
            let seed = chance.bytes();
            let again = Provisional::decode(&record, trusted().public()).unwrap();
            let outcome = audit(&terms, &mut remote, &mut peer, again, seed);
            let drawn = model.graph().draw(seed, part).contains(&UnitId(4));
            assert_eq!(
                matches!(outcome, Outcome::Rejected(_)),
                drawn,
                "{outcome:?}"
            );
            assert_eq!(matches!(outcome, Outcome::Settled(_)), !drawn);
            caught.push(drawn);
        }
        let rate = |caught: usize, of: usize| caught as f64 / of as f64;
        // Five standard deviations.
        let near = |seen: f64, p: f64, of: usize| {
            let spread = 5.0 * (p * (1.0 - p) / of as f64).sqrt();
            assert!(
                (seen - p).abs() <= spread,
                "{seen} where {p} ± {spread} is expected"
            );
        };
        let alpha = terms.alpha();
        assert!((alpha - part).abs() < 1e-9, "{alpha}");
        let one = caught.iter().filter(|caught| **caught).count();
        near(rate(one, caught.len()), alpha, caught.len());
        let groups = caught.chunks_exact(TOGETHER);
        let of = groups.len();
        let any = groups.filter(|group| group.contains(&true)).count();
        near(rate(any, of), 1.0 - terms.undetected(TOGETHER as u64), of);
    }
}

#[test]
fn a_draw_is_made_once() {
    let model = tower(2, 1);
    let terms = terms(&model, 0.5);
    let mut peer = honest();
    let mut remote = agreed(&terms, &mut peer).unwrap();
    let mut record = run(&mut remote, &mut peer, 7, input(&model, 3)).unwrap();
    assert_eq!(record.draw([1; 32]), Ok(()));
    assert_eq!(record.draw([2; 32]), Err(larvatus::audit::Redrawn));
    let kept = Provisional::decode(&record.encode(), trusted().public()).unwrap();
    assert_eq!(kept.seed(), Some([1; 32]));
}

#[test]
fn a_record_of_another_key_or_other_content_is_refused() {
    let model = tower(2, 1);
    let terms = terms(&model, 0.5);
    let mut peer = honest();
    let mut remote = agreed(&terms, &mut peer).unwrap();
    let record = run(&mut remote, &mut peer, 7, input(&model, 3)).unwrap();
    let bytes = record.encode();
    let own = trusted().public();
    assert_eq!(Provisional::decode(&bytes, own).unwrap().encode(), bytes);
    assert!(Provisional::decode(&bytes, worker_key()).is_err());
    let mut chance = Chance::new(6);
    let (mut refused, mut changed) = (0, 0);
    for at in 0..bytes.len() {
        let mut other = bytes.clone();
        other[at] ^= 1 << chance.below(8);
        changed += 1;
        refused += usize::from(Provisional::decode(&other, own).is_err());
    }
    // The fraction is the trusted side's own setting, and no signature covers it: eight bytes.
    assert!(changed - refused <= 8, "{refused} of {changed}");
}
