//! Weights hidden from both workers: what each sees is uniform, each is caught by itself, and the sum is
//! the network, bit for bit.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use larvatus::error::{InferError, SupplyError, WorkerFailed, WorkerMisbehaved};
use larvatus::exact::{LocalError, run_exact};
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Preset};
use larvatus::secret::{Entropy, Identity};
use larvatus::session::{Output, Session, Settings};
use larvatus::shares::{Apart, SameParty};
use larvatus::tensor::{Tensor, floats};
use larvatus_kernels::field::P;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, FrameLimits, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::{LayerId, WorkerModel};
use larvatus_testkit::adversary::{At, EXCUSE, Liar, Lie, Second, Tamper};
use larvatus_testkit::models::{self, Network, small_cnn};
use larvatus_testkit::pair::{converse, honest};
use larvatus_worker::Service;

const NOW: Now = Duration::ZERO;

fn plan(network: &Network) -> Arc<Plan> {
    network.plan_for(&Preset::VerisplitExact.policy())
}

fn session(plan: &Arc<Plan>, entropy: u8) -> Session {
    let settings = Settings {
        apart: Some(Apart::danger_believed()),
        ..Settings::default()
    };
    Session::new(Arc::clone(plan), Entropy::new([entropy; 32]), settings)
}

/// Runs a session with two workers until none has more to say.
fn exchange(session: &mut Session, workers: &mut [&mut dyn Machine; 2]) {
    // The second round takes what the first line's answers brought for the other.
    for _ in 0..64 {
        for (line, worker) in workers.iter_mut().enumerate() {
            converse(&mut session.line(line), *worker, NOW);
        }
    }
}

fn results(session: &mut Session) -> Vec<Result<Output, InferError>> {
    std::iter::from_fn(|| session.poll())
        .map(|(_, result)| result)
        .collect()
}

/// Two inferences with these workers.
fn infer(
    network: &Network,
    session: &mut Session,
    workers: &mut [&mut dyn Machine; 2],
) -> Vec<Result<Output, InferError>> {
    for seed in 1..3 {
        session.begin(network.random(seed), NOW).unwrap();
    }
    exchange(session, workers);
    results(session)
}

fn bits(tensors: &[Arc<Tensor>]) -> Vec<Vec<u32>> {
    let bits = |tensor: &Arc<Tensor>| {
        let floats = floats(tensor).unwrap();
        floats.iter().map(|x| x.to_bits()).collect()
    };
    tensors.iter().map(bits).collect()
}

/// A worker that keeps what it was told, and may alter the first word of its first answer.
struct Watched {
    inner: Service,
    chunks: Vec<u8>,
    offer: Option<(Digest, u32)>,
    /// Words of the calls, in order.
    calls: Vec<Vec<u32>>,
    /// Added to the first word of the first answer, as a function of the share.
    add: Option<Error>,
}

/// An error as a function of the share.
type Error = fn(&[u32]) -> u32;

impl Watched {
    fn new() -> Self {
        Self {
            inner: honest(),
            chunks: Vec::new(),
            offer: None,
            calls: Vec::new(),
            add: None,
        }
    }

    fn adding(add: Error) -> Self {
        Self {
            add: Some(add),
            ..Self::new()
        }
    }

    fn model(&self) -> WorkerModel {
        let (digest, program) = self.offer.unwrap();
        WorkerModel::from_blob(self.chunks.clone(), program as usize, digest).unwrap()
    }
}

impl Machine for Watched {
    fn limits(&self) -> FrameLimits {
        self.inner.limits()
    }
    fn receive(&mut self, frame: Frame, now: Now) {
        match Request::from_frame(frame.clone()).unwrap() {
            Request::Offer { model, program, .. } => self.offer = Some((model, program)),
            Request::Chunk { bytes, .. } => self.chunks.extend(bytes),
            Request::Call { words, .. } => self.calls.push(words.to_vec()),
            _ => {}
        }
        self.inner.receive(frame, now);
    }
    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let frame = self.inner.transmit(now)?;
        match (Reply::from_frame(frame.clone()), self.add) {
            (Ok(Reply::Answer { call: 0, words }), Some(add)) => {
                let mut words = words.to_vec();
                let share = self.model().shares().unwrap();
                let more = u64::from(add(share[0].words()));
                words[0] = ((u64::from(words[0]) + more) % u64::from(P)) as u32;
                let words = words.into();
                Some(Reply::Answer { call: 0, words }.into_frame())
            }
            _ => Some(frame),
        }
    }
    fn deadline(&self) -> Option<Now> {
        self.inner.deadline()
    }
    fn tick(&mut self, now: Now) {
        self.inner.tick(now);
    }
    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.inner.disconnected(why, now);
    }
    fn finished(&self) -> bool {
        self.inner.finished()
    }
}

#[test]
fn two_shares_give_the_bits_of_the_network_run_here() {
    for network in models::all() {
        let plan = plan(&network);
        let mut session = session(&plan, 1);
        let (mut first, mut second) = (honest(), honest());
        let results = infer(&network, &mut session, &mut [&mut first, &mut second]);
        assert_eq!(results.len(), 2, "{}", network.name);
        for (result, seed) in results.iter().zip(1..) {
            let exact = run_exact(&network.plan(Hiding::Field), network.random(seed));
            match (result, exact) {
                (Ok(output), Ok(exact)) => {
                    assert_eq!(bits(&output.tensors), bits(&exact), "{}", network.name);
                }
                // A root of a negative number: refused alike.
                (Err(why), Err(LocalError::Infer(here))) => assert_eq!(*why, here),
                (result, exact) => panic!("{}: {result:?}, {exact:?}", network.name),
            }
        }
    }
}

#[test]
fn each_worker_is_caught_by_itself_with_the_exact_error() {
    let network = small_cnn(1);
    let at = At::cell(1, 2);
    let wrong = WorkerMisbehaved::ProductMismatch {
        layer: LayerId(0),
        image: 0,
        repetition: 0,
    };
    let encoded = WorkerMisbehaved::NotCanonical {
        layer: LayerId(0),
        image: 0,
    };
    let plan = plan(&network);
    let words = plan.worker_model().program().layers()[0].outputs();
    let length = |got| WorkerMisbehaved::AnswerLength {
        round: 0,
        expected: words,
        got,
    };
    let lies: Vec<(Tamper, WorkerMisbehaved)> = vec![
        (Tamper::Add(vec![(at, 1)]), wrong.clone()),
        (
            Tamper::Add(vec![(at, 1), (At::cell(2, 2), -1)]),
            wrong.clone(),
        ),
        (Tamper::Rank { call: 0, rank: 1 }, wrong.clone()),
        (Tamper::Rank { call: 0, rank: 2 }, wrong.clone()),
        (Tamper::SwapRows(0, 1), wrong.clone()),
        (Tamper::SwapCols(3, 4), wrong.clone()),
        (Tamper::Border, wrong.clone()),
        (Tamper::Zero, wrong.clone()),
        (Tamper::Echo, wrong.clone()),
        (Tamper::NotCanonical(at, Second::P), encoded.clone()),
        (Tamper::NotCanonical(at, Second::PlusP), encoded.clone()),
        (Tamper::NotCanonical(at, Second::Largest), encoded),
        (Tamper::Truncated(1), length(words - 1)),
        (Tamper::Empty, length(0)),
    ];
    for (how, expected) in lies {
        for liar in [0, 1] {
            let mut session = session(&plan, 2);
            let lie = Lie::Answer {
                nth: 0,
                how: how.clone(),
            };
            let mut lying = Liar::new(plan.worker_model(), lie);
            let mut other = honest();
            let mut workers: [&mut dyn Machine; 2] = [&mut lying, &mut other];
            workers.rotate_right(liar);
            let results = infer(&network, &mut session, &mut workers);
            assert_eq!(results.len(), 2);
            for result in results {
                assert_eq!(result.unwrap_err(), expected.clone().into(), "{how:?}");
            }
            assert_eq!(session.ended_by(), Some(liar), "{how:?}");
        }
    }
}

/// The guess of a weight: one worker adds W₁ᵢⱼ to a word of its answer, the other W₂ᵢⱼ − g. The sum is right
/// iff W₁ᵢⱼ + W₂ᵢⱼ = g, so a check of the sum alone would say whether the guess was right.
#[test]
fn guessing_a_weight_in_common_ends_alike_whether_it_is_right_or_not() {
    let network = small_cnn(1);
    let plan = plan(&network);
    let take_first = |share: &[u32]| share[0];
    let cases: [(Error, bool); 2] = [
        (|share| share[0], false),
        (
            // The right guess: computed from the model, which the workers do not have.
            |share| {
                let guess = small_cnn(1).plan(Hiding::Field);
                let weight = guess.worker_model().weights().unwrap()[0].planes()[0][0];
                let g = i64::from(weight).rem_euclid(i64::from(P)) as u32;
                (share[0] + (P - g)) % P
            },
            true,
        ),
    ];
    let mut ends = Vec::new();
    for (second, right) in cases {
        let mut session = session(&plan, 3);
        let (mut one, mut two) = (Watched::adding(take_first), Watched::adding(second));
        let results = infer(&network, &mut session, &mut [&mut one, &mut two]);
        let shares = [&one, &two].map(|worker| worker.model().shares().unwrap()[0].words()[0]);
        let error = [take_first(&shares[..1]), second(&shares[1..])]
            .iter()
            .fold(0, |sum, add| (sum + add) % P);
        assert_eq!(error == 0, right, "what a check of the sum would say");
        ends.push(
            results
                .into_iter()
                .map(Result::unwrap_err)
                .collect::<Vec<_>>(),
        );
        // Whichever answered first.
        assert_eq!(session.ended_by(), Some(1));
    }
    assert_eq!(ends[0], ends[1]);
}

/// Pearson's statistic of each byte lane over its limit (z = 5), as for uploads under pads.
fn excess(words: &[u32]) -> f64 {
    let lane = |lane: usize| {
        let cells = if lane == 3 { 128 } else { 256 };
        let mut counts = vec![0_u32; cells];
        for word in words {
            counts[usize::from(word.to_le_bytes()[lane]) % cells] += 1;
        }
        let expected = words.len() as f64 / cells as f64;
        assert!(expected >= 5.0, "too few words");
        let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
        let statistic: f64 = counts.iter().map(square).sum();
        let degrees = (cells - 1) as f64;
        let spread = 2.0 / (9.0 * degrees);
        statistic / (degrees * (1.0 - spread + 5.0 * spread.sqrt()).powi(3))
    };
    (0..4).map(lane).fold(0.0, f64::max)
}

#[test]
fn what_each_worker_sees_is_uniform_and_fresh_in_every_session() {
    let (network, _) = models::long_sum(4000);
    let plan = plan(&network);
    let mut seen: Vec<[WorkerModel; 2]> = Vec::new();
    for entropy in [4, 5] {
        let mut session = session(&plan, entropy);
        let (mut one, mut two) = (Watched::new(), Watched::new());
        let results = infer(&network, &mut session, &mut [&mut one, &mut two]);
        assert!(results.iter().all(Result::is_ok));
        // Both see the same hidden requests, and nothing else but their share.
        assert_eq!(one.calls, two.calls);
        assert!(excess(&one.calls.concat()) < 1.0);
        for worker in [&one, &two] {
            let shares = worker.model().shares().unwrap();
            let words: Vec<u32> = shares
                .iter()
                .flat_map(|share| share.words().to_vec())
                .collect();
            assert!(excess(&words) < 1.0);
        }
        let (first, second) = (one.model(), two.model());
        // One is sent a seed, the other a word for each weight.
        assert_eq!(first.blob().len() - first.program_bytes(), 32);
        assert_eq!(
            second.blob().len() - second.program_bytes(),
            4 * plan.worker_model().program().weight_bytes() as usize
        );
        seen.push([first, second]);
    }
    // A worker of both sessions holds shares that say nothing together: no word is at its place twice.
    for role in [0, 1] {
        let words = |session: usize| -> Vec<u32> {
            let shares = seen[session][role].shares().unwrap();
            shares
                .iter()
                .flat_map(|share| share.words().to_vec())
                .collect()
        };
        let same = words(0)
            .iter()
            .zip(words(1))
            .filter(|(a, b)| **a == *b)
            .count();
        assert!(same <= 1, "{same}");
    }
    let digests: BTreeMap<_, _> = seen.iter().flatten().map(|m| (m.digest(), ())).collect();
    assert_eq!(digests.len(), 4);
    assert!(!digests.contains_key(&plan.worker_model().digest()));
}

#[test]
fn a_plan_that_hides_weights_runs_with_two_parties_only() {
    let network = small_cnn(1);
    let plan = plan(&network);
    let key = Identity([1; 32]);
    assert_eq!(Apart::known(key, key), Err(SameParty));
    assert!(Apart::known(key, Identity([2; 32])).is_ok());
    let mut alone = Session::new(
        Arc::clone(&plan),
        Entropy::new([6; 32]),
        Settings::default(),
    );
    let mut worker = Watched::new();
    alone.begin(network.random(1), NOW).unwrap();
    converse(&mut alone, &mut worker, NOW);
    let why = results(&mut alone).remove(0).unwrap_err();
    assert!(why.to_string().contains("two workers"), "{why}");
    assert!(worker.offer.is_none() && worker.calls.is_empty());
}

#[test]
fn a_dealer_is_refused_because_it_would_learn_the_weights() {
    use larvatus::dealer::{Dealing, Settings as Dealt};
    use larvatus_testkit::pair::honest_dealer;
    let plan = plan(&small_cnn(1));
    let dealer = Identity([0xdd; 32]);
    let entropy = Entropy::new([7; 32]);
    let mut dealing = Dealing::new(Arc::clone(&plan), dealer, entropy, Dealt::default());
    dealing.order(1);
    converse(&mut dealing, &mut honest_dealer(), NOW);
    assert!(dealing.poll().is_none());
    let why = dealing.failure().unwrap().to_string();
    assert!(why.contains("hides the weights"), "{why}");
    assert_eq!(
        SupplyError::SecretWeights.to_string(),
        "tickets of a dealer, who needs the weights, for a plan that hides them"
    );
}

#[test]
fn a_worker_that_fails_ends_the_session_for_both() {
    let network = small_cnn(1);
    let plan = plan(&network);
    for failing in [0, 1] {
        for (lie, expected) in [
            (
                Lie::LeavesMidAnswer,
                WorkerFailed::Disconnected {
                    awaited: "an answer",
                },
            ),
            (
                Lie::Refuses,
                WorkerFailed::Refused {
                    message: EXCUSE.to_owned(),
                },
            ),
        ] {
            let mut session = session(&plan, 8);
            let mut bad = Liar::new(plan.worker_model(), lie);
            let mut good = honest();
            let mut workers: [&mut dyn Machine; 2] = [&mut bad, &mut good];
            workers.rotate_right(failing);
            for result in infer(&network, &mut session, &mut workers) {
                assert_eq!(result.unwrap_err(), expected.clone().into());
            }
            assert_eq!(session.ended_by(), Some(failing));
            assert!((0..2).all(|line| session.line(line).finished()));
        }
    }
}

#[test]
fn a_silent_worker_runs_out_of_time_while_the_other_has_answered() {
    let network = small_cnn(1);
    let plan = plan(&network);
    for silent in [0, 1] {
        let mut session = session(&plan, 9);
        let mut bad = Liar::new(plan.worker_model(), Lie::NeverAnswers);
        let mut good = honest();
        let mut workers: [&mut dyn Machine; 2] = [&mut bad, &mut good];
        workers.rotate_right(silent);
        assert!(infer(&network, &mut session, &mut workers).is_empty());
        assert!(session.line(1 - silent).deadline().is_none());
        let late = session.line(silent).deadline().unwrap();
        session.line(silent).tick(late);
        let within = Settings::default().answer_within;
        let expected = WorkerFailed::TimedOut {
            awaited: "an answer",
            within,
        };
        for result in results(&mut session) {
            assert_eq!(result.unwrap_err(), expected.clone().into());
        }
        assert_eq!(session.ended_by(), Some(silent));
    }
}
