//! The float mode: near the network in floats, masks that serve once, lies that audits find, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use larvatus::error::{InferError, WorkerFailed, WorkerMisbehaved};
use larvatus::exact::FloatNetwork;
use larvatus::faithful::{
    Demand, Fraction, Output, Plan, Preset, Session, Settings, Settled, Sharing, Times, undetected,
};
use larvatus::model::Model;
use larvatus::secret::Entropy;
use larvatus::session::InferenceId;
use larvatus::shares::Apart;
use larvatus::tensor::floats;
use larvatus_proto::commit::{LeafId, OpenError};
use larvatus_proto::frame::{Frame, FrameLimits, Reply, Request, Seed};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::{Form, Held, LayerId, Program, WorkerModel};
use larvatus_proto::wire::DecodeError;
use larvatus_testkit::adversary::{EXCUSE, FloatLiar, FloatLie};
use larvatus_testkit::chance::Chance;
use larvatus_testkit::models::{self, Network, small_cnn};
use larvatus_testkit::pair::{converse, honest, honest_dealer};
use larvatus_worker::Service;

const NOW: Now = Duration::ZERO;

fn times(times: u32) -> Times {
    Times::new(times).unwrap()
}

fn every() -> Fraction {
    Fraction::new(1.0).unwrap()
}

fn plan(network: &Network, demand: &Demand) -> Arc<Plan> {
    let model = Model::load(&network.bytes, &[]).unwrap();
    Plan::new(&model, demand).unwrap()
}

fn session(plan: &Arc<Plan>, entropy: u8) -> Session {
    let settings = Settings {
        apart: Some(Apart::danger_believed()),
        ..Settings::default()
    };
    Session::new(Arc::clone(plan), &Entropy::new([entropy; 32]), &settings).unwrap()
}

/// Runs one inference with these workers.
fn infer(
    network: &Network,
    session: &mut Session,
    workers: &mut [impl Machine],
    seed: u64,
) -> Result<Output, InferError> {
    session.begin(network.random(seed), NOW).unwrap();
    for _ in 0..1000 {
        for (line, worker) in workers.iter_mut().enumerate() {
            converse(&mut session.line(line), worker, NOW);
        }
        if let Some((_, result)) = session.poll() {
            return result;
        }
    }
    panic!("the inference does not end");
}

/// Draws, has opened, and settles.
fn audit(
    session: &mut Session,
    workers: &mut [impl Machine],
    draw: u8,
) -> Vec<Result<Settled, WorkerMisbehaved>> {
    session.audit(&Entropy::new([draw; 32]), NOW);
    for (line, worker) in workers.iter_mut().enumerate() {
        converse(&mut session.line(line), worker, NOW);
    }
    let mut found = Vec::new();
    while let Some(provisional) = session.take_provisional() {
        found.push(provisional.settle());
    }
    found
}

/// A worker that keeps its calls, and may lie.
struct Watched {
    inner: Service,
    calls: Vec<Vec<u32>>,
    /// What it makes of the answer to a call.
    lie: Option<Lie>,
}

type Lie = fn(u64, &mut Vec<u32>);

impl Watched {
    fn new() -> Self {
        Self {
            inner: honest(),
            calls: Vec::new(),
            lie: None,
        }
    }

    fn lying(lie: Lie) -> Self {
        Self {
            lie: Some(lie),
            ..Self::new()
        }
    }
}

impl Machine for Watched {
    fn limits(&self) -> FrameLimits {
        self.inner.limits()
    }
    fn receive(&mut self, frame: Frame, now: Now) {
        if let Ok(Request::Call { words, .. }) = Request::from_frame(frame.clone()) {
            self.calls.push(words.to_vec());
        }
        self.inner.receive(frame, now);
    }
    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let frame = self.inner.transmit(now)?;
        let (Some(lie), Ok(reply)) = (self.lie, Reply::from_frame(frame.clone())) else {
            return Some(frame);
        };
        let (Reply::Answer { call, words } | Reply::Committed { call, words, .. }) = &reply else {
            return Some(frame);
        };
        let mut altered = words.to_vec();
        lie(*call, &mut altered);
        let words = altered.into();
        let (call, root) = match reply {
            Reply::Committed { call, root, .. } => (call, Some(root)),
            _ => (*call, None),
        };
        Some(match root {
            Some(root) => Reply::Committed { call, root, words }.into_frame(),
            None => Reply::Answer { call, words }.into_frame(),
        })
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

fn crew(plan: &Plan) -> Vec<Watched> {
    (0..plan.workers()).map(|_| Watched::new()).collect()
}

#[test]
fn every_service_gives_about_what_the_network_gives_and_honest_answers_settle() {
    let demands = [
        Demand::new(Some(times(64)), Sharing::Whole, Some(every())),
        Demand::new(
            Some(times(64)),
            Sharing::TwoWorkers(times(16)),
            Some(every()),
        ),
        Demand::new(None, Sharing::Whole, Some(every())),
    ];
    for (network, demand) in models::all()
        .iter()
        .flat_map(|network| demands.iter().map(move |demand| (network, demand)))
    {
        let demand = demand.as_ref().unwrap();
        let plan = plan(network, demand);
        let mut session = session(&plan, 1);
        let mut workers = crew(&plan);
        let model = Model::load(&network.bytes, &[]).unwrap();
        let here = FloatNetwork::new(&model)
            .unwrap()
            .run(network.random(3))
            .unwrap();
        let truth = floats(&here[0]).unwrap();
        if network.name == models::square_root().name {
            // A root of a negative number: the worker sees all rounds, and the inference fails.
            let why = infer(network, &mut session, &mut workers, 3).unwrap_err();
            assert!(matches!(why, InferError::NotFinite { .. }), "{why}");
            assert_eq!(workers[0].calls.len(), plan.round_trips());
            continue;
        }
        let output = infer(network, &mut session, &mut workers, 3).unwrap();
        let masked = floats(&output.run.tensors[0]).unwrap();
        let most = truth.iter().fold(1e-3_f32, |most, y| most.max(y.abs()));
        let allowed = most * 2.0_f32.powi(7 - demand.bits_left() as i32);
        for (y, truth) in masked.iter().zip(truth) {
            assert!(
                (y - truth).abs() <= allowed,
                "{}: {y} {truth}",
                network.name
            );
        }
        assert_eq!(output.blocks, plan.auditable());
        let found = audit(&mut session, &mut workers, 1);
        let found: Vec<_> = found.into_iter().map(Result::unwrap).collect();
        assert!(found.iter().all(|found| found.used <= 1.0));
        let settled: usize = found.iter().map(|found| found.blocks).sum();
        assert_eq!(settled, plan.auditable(), "{}", network.name);
        assert_eq!(session.owed(), 0);
    }
}

#[test]
fn masks_serve_once_and_both_workers_see_the_same() {
    let network = small_cnn(1);
    let demand = Demand::new(Some(times(64)), Sharing::TwoWorkers(times(16)), None).unwrap();
    let plan = plan(&network, &demand);
    let mut session = session(&plan, 1);
    let mut workers = crew(&plan);
    for _ in 0..2 {
        infer(&network, &mut session, &mut workers, 7).unwrap();
    }
    assert_eq!(workers[0].calls, workers[1].calls);
    let [first, again] = [0, 5].map(|call| &workers[0].calls[call]);
    assert!(first.iter().zip(again).all(|(a, b)| a != b));
    let largest = first.iter().map(|word| f32::from_bits(*word).abs());
    let largest = largest.fold(0.0, f32::max);
    assert!(largest > 32.0 && largest <= 65.0, "{largest}");
}

/// The lies of the catalogue about the answers of `small_cnn`, whose third call makes one leaf and its second 294 floats.
const COMPUTES: FloatLie = FloatLie::Computes { round: 1, float: 2 };

#[test]
fn a_lie_is_believed_at_first_and_refuted_with_the_exact_error() {
    let network = small_cnn(1);
    let leaf = |tensor, leaf| LeafId { tensor, leaf };
    let beyond = WorkerMisbehaved::BeyondRounding {
        layer: LayerId(1),
        image: 0,
        output: 2,
    };
    let another = |tensor| WorkerMisbehaved::OtherAnswer {
        layer: LayerId(tensor),
        leaf: leaf(tensor, 0),
    };
    let sends = |round| FloatLie::SendsAnother { round, float: 0 };
    type Expected = fn(&WorkerMisbehaved) -> bool;
    let root: Expected = |lie| matches!(lie, WorkerMisbehaved::Opening(OpenError::Root { .. }));
    let cut: Expected = |lie| {
        matches!(
            lie,
            WorkerMisbehaved::Malformed(DecodeError::Truncated { .. })
        )
    };
    let fewer: Expected = |lie| {
        matches!(
            lie,
            WorkerMisbehaved::Malformed(DecodeError::Inconsistent { .. })
        )
    };
    for (sharing, liar) in [
        (Sharing::Whole, 0),
        (Sharing::TwoWorkers(times(16)), 0),
        (Sharing::TwoWorkers(times(16)), 1),
    ] {
        let demand = Demand::new(Some(times(64)), sharing, Some(every())).unwrap();
        let plan = plan(&network, &demand);
        let lies = |lie| {
            let mut session = session(&plan, 1);
            let mut workers: Vec<FloatLiar> = (0..plan.workers())
                // The honest one of two is a liar whose lie never comes to its turn.
                .map(|_| FloatLiar::new(sends(u32::MAX)))
                .collect();
            workers[liar] = FloatLiar::new(lie);
            infer(&network, &mut session, &mut workers, 1).unwrap();
            session.audit(&Entropy::new([1; 32]), NOW);
            for (line, worker) in workers.iter_mut().enumerate() {
                converse(&mut session.line(line), worker, NOW);
            }
            let mut lies = Vec::new();
            while let Some(provisional) = session.take_provisional() {
                assert_eq!(provisional.inference(), InferenceId(0));
                let line = provisional.line();
                lies.extend(provisional.settle().err().map(|what| (line, what)));
            }
            lies
        };
        assert_eq!(lies(COMPUTES), [(liar, beyond.clone())]);
        for round in [0, 4] {
            assert_eq!(lies(sends(round)), [(liar, another(round))]);
        }
        for (lie, expected) in [
            (FloatLie::OtherRoot, root),
            (FloatLie::OpensOtherBytes, root),
            (FloatLie::OpensFewer, fewer),
        ] {
            let found = lies(lie);
            let [(line, what)] = &found[..] else {
                panic!("{lie:?}: {found:?}");
            };
            assert!(*line == liar && expected(what), "{lie:?}: {what}");
        }
    }
    // Where some leaves are drawn, there is a path, and there are others to open.
    let some = Fraction::new(0.3).unwrap();
    let demand = Demand::new(None, Sharing::Whole, Some(some)).unwrap();
    let plan = plan(&network, &demand);
    for (lie, expected) in [(FloatLie::ForgesPath, root), (FloatLie::CutsPath, cut)] {
        let mut session = session(&plan, 1);
        let mut workers = [FloatLiar::new(lie)];
        infer(&network, &mut session, &mut workers, 1).unwrap();
        let found = audit(&mut session, &mut workers, 2);
        let [Err(what)] = &found[..] else {
            panic!("{lie:?}: {found:?}");
        };
        assert!(expected(what), "{lie:?}: {what}");
    }
    // The last and smallest answer, in the place of those that are drawn.
    let (mut others, mut fewer) = (0, 0);
    for draw in 0..32 {
        let mut session = session(&plan, 1);
        let mut workers = [FloatLiar::new(FloatLie::OpensAnother { tensor: 4 })];
        infer(&network, &mut session, &mut workers, 1).unwrap();
        for found in audit(&mut session, &mut workers, draw) {
            match found {
                Ok(settled) => assert_eq!(settled.blocks, 1),
                Err(WorkerMisbehaved::Opening(OpenError::NotAsked { got, .. })) => {
                    assert_eq!(got, leaf(4, 0));
                    others += 1;
                }
                Err(WorkerMisbehaved::Opening(OpenError::Count { got: 1, .. })) => fewer += 1,
                Err(what) => panic!("{what}"),
            }
        }
    }
    assert!(others > 4 && fewer > 4, "{others} {fewer}");
}

#[test]
fn a_root_comes_with_the_last_answer_and_with_no_other() {
    let network = small_cnn(1);
    let demand = Demand::new(None, Sharing::Whole, Some(every())).unwrap();
    let plan = plan(&network, &demand);
    for (lie, message) in [
        (FloatLie::NoRoot, "an answer alone"),
        (FloatLie::EarlyRoot, "a root"),
    ] {
        let mut session = session(&plan, 1);
        let why = infer(&network, &mut session, &mut [FloatLiar::new(lie)], 1).unwrap_err();
        let InferError::Worker(WorkerMisbehaved::OutOfTurn { message: got, .. }) = why else {
            panic!("{why}");
        };
        assert_eq!(got, message);
        assert_eq!(session.audit(&Entropy::new([1; 32]), NOW), 0);
    }
}

#[test]
fn a_worker_that_does_not_open_has_failed_and_nothing_is_settled() {
    let network = small_cnn(1);
    let demand = Demand::new(None, Sharing::Whole, Some(every())).unwrap();
    let plan = plan(&network, &demand);
    let within = Settings::default().answer_within;
    for (lie, expected) in [
        (
            FloatLie::NeverOpens,
            WorkerFailed::TimedOut {
                awaited: "an opening",
                within,
            },
        ),
        (
            FloatLie::RefusesToOpen,
            WorkerFailed::Refused {
                message: EXCUSE.to_owned(),
            },
        ),
    ] {
        let mut session = session(&plan, 1);
        let mut workers = [FloatLiar::new(lie)];
        infer(&network, &mut session, &mut workers, 1).unwrap();
        assert_eq!(session.line(0).deadline(), None);
        assert!(audit(&mut session, &mut workers, 1).is_empty());
        if lie == FloatLie::NeverOpens {
            let mut line = session.line(0);
            assert_eq!(line.deadline(), Some(within));
            line.tick(within - Duration::from_millis(1));
            assert!(session.failure().is_none());
            session.line(0).tick(within);
        }
        let why = session.failure().cloned();
        assert_eq!(why, Some(InferError::Failed(expected)), "{lie:?}");
        assert_eq!(session.owed(), plan.auditable());
        assert!(session.take_provisional().is_none());
    }
}

#[test]
fn audits_may_come_late_and_a_worker_keeps_what_it_committed_to() {
    let network = small_cnn(1);
    let demand = Demand::new(Some(times(64)), Sharing::Whole, Some(every())).unwrap();
    let plan = plan(&network, &demand);
    let mut session = session(&plan, 1);
    let mut workers = crew(&plan);
    for seed in 0..3 {
        infer(&network, &mut session, &mut workers, seed).unwrap();
    }
    let found = audit(&mut session, &mut workers, 1);
    let inferences = found.iter().map(|found| found.as_ref().unwrap().inference);
    let inferences: Vec<_> = inferences.collect();
    assert_eq!(inferences, [0, 1, 2].map(InferenceId));
    // A worker keeps sixteen; the first of eighteen are refused.
    for seed in 0..18 {
        infer(&network, &mut session, &mut workers, seed).unwrap();
    }
    assert!(audit(&mut session, &mut workers, 1).is_empty());
    let why = session.failure().map(ToString::to_string);
    assert!(
        why.as_deref().is_some_and(|why| why.contains("no trace")),
        "{why:?}"
    );
}

#[test]
fn audits_find_a_lie_as_often_as_their_share_says() {
    let network = small_cnn(1);
    let share = Fraction::new(0.25).unwrap();
    let demand = Demand::new(None, Sharing::Whole, Some(share)).unwrap();
    let plan = plan(&network, &demand);
    let mut session = session(&plan, 1);
    let mut workers = [FloatLiar::new(COMPUTES)];
    let (mut caught, mut drawn) = (0, 0);
    for seed in 0..400_u64 {
        infer(&network, &mut session, &mut workers, seed).unwrap();
        let mut entropy = [0; 32];
        entropy[..8].copy_from_slice(&seed.to_le_bytes());
        drawn += session.audit(&Entropy::new(entropy), NOW);
        converse(&mut session.line(0), &mut workers[0], NOW);
        while let Some(provisional) = session.take_provisional() {
            caught += usize::from(provisional.settle().is_err());
        }
    }
    // Within 4.5 standard deviations.
    let within =
        |count: usize, of: f64| (count as f64 - of * 0.25).abs() < 4.5 * (of * 0.1875).sqrt();
    assert!(
        within(drawn, 2000.0) && within(caught, 400.0),
        "{drawn} {caught}"
    );
    assert_eq!(undetected(share, 2), 0.5625);
}

#[test]
fn an_answer_of_another_length_ends_the_session() {
    let network = small_cnn(1);
    let demand = Demand::new(Some(times(64)), Sharing::Whole, None).unwrap();
    let plan = plan(&network, &demand);
    let lies: [(Lie, usize); 3] = [
        (|_, words| words.truncate(293), 293),
        (|_, words| words.clear(), 0),
        (|_, words| words.truncate(1), 1),
    ];
    for (lie, got) in lies {
        let mut session = session(&plan, 1);
        let why = infer(&network, &mut session, &mut [Watched::lying(lie)], 1).unwrap_err();
        let expected = WorkerMisbehaved::AnswerLength {
            round: 0,
            expected: 294,
            got,
        };
        assert_eq!(why, InferError::Worker(expected));
        assert_eq!(session.ended_by(), Some(0));
        session.begin(network.random(2), NOW).unwrap();
        assert_eq!(session.poll().unwrap().1.unwrap_err(), why);
    }
}

#[test]
fn answers_that_are_no_numbers_stay_in_the_session() {
    let network = small_cnn(1);
    let demand = Demand::new(Some(times(64)), Sharing::Whole, None).unwrap();
    let plan = plan(&network, &demand);
    let mut session = session(&plan, 1);
    let mut workers = [Watched::lying(|call, words| {
        if call == 0 {
            words.fill(f32::NAN.to_bits());
        }
    })];
    let why = infer(&network, &mut session, &mut workers, 1).unwrap_err();
    assert_eq!(why, InferError::NotFinite { layer: LayerId(1) });
    // The worker sees all rounds, of masks around nothing.
    assert_eq!(workers[0].calls.len(), plan.round_trips());
    let finite = |word: &u32| f32::from_bits(*word).is_finite();
    assert!(workers[0].calls.iter().flatten().all(finite));
    // The session goes on.
    assert!(infer(&network, &mut session, &mut workers, 2).is_ok());
}

#[test]
fn shares_go_to_workers_that_are_apart_only() {
    let network = small_cnn(1);
    let demand = Preset::All.demand(times(64), times(64), every());
    let plan = plan(&network, &demand);
    let entropy = Entropy::new([1; 32]);
    let why = Session::new(plan, &entropy, &Settings::default())
        .err()
        .unwrap();
    assert!(why.to_string().contains("known to be apart"), "{why}");
}

#[test]
fn programs_in_floats_have_one_encoding_and_no_dealer() {
    let network = small_cnn(1);
    let demand = Preset::Integrity.demand(times(64), times(64), every());
    let plan = plan(&network, &demand);
    let program = plan.program();
    assert_eq!(
        (program.form(), program.held(), program.commits()),
        (Form::Words, Held::Floats, true)
    );
    // Nothing is committed to where nothing is audited, nor where there are no floats.
    let unaudited = Preset::Privacy.demand(times(64), times(64), every());
    assert!(!self::plan(&network, &unaudited).program().commits());
    assert!(!program.with_held(Held::Words).commits());
    let encoded = program.encode();
    assert_eq!(Program::decode(&encoded).as_ref(), Ok(program));
    // Requests of floats in halves; two planes.
    let mut halves = encoded.clone();
    halves[0] = 2;
    assert!(Program::decode(&halves).is_err());
    // Floats of another number.
    let mut chance = Chance::new(1);
    let layers: Vec<(Vec<f32>, Vec<f32>)> = program
        .layers()
        .iter()
        .map(|layer| {
            let weights = layer.shape.weights();
            (
                chance.floats(weights),
                chance.floats(layer.float_count() - weights),
            )
        })
        .collect();
    let floats = || {
        layers
            .iter()
            .map(|(weights, bias)| (&weights[..], &bias[..]))
    };
    assert!(WorkerModel::of_floats(program, floats().skip(1)).is_err());
    assert!(WorkerModel::of_floats(program, floats().chain(floats().take(1))).is_err());
    let model = WorkerModel::of_floats(program, floats()).unwrap();
    assert!(model.weights().is_err() && model.shares().is_err());
    for (id, (weights, bias)) in (0..).zip(floats()) {
        let layer = model.float_layer(LayerId(id)).unwrap();
        assert_eq!((layer.weights(), layer.bias()), (weights, bias));
    }
    assert!(model.float_layer(LayerId(5)).is_err());
    let mut dealer = honest_dealer();
    let mut said = Vec::new();
    let requests = [
        Request::Hello {
            version: larvatus_proto::VERSION,
        },
        Request::Offer {
            model: model.digest(),
            program: u32::try_from(model.program_bytes()).unwrap(),
            total: model.blob().len() as u64,
        },
        Request::Chunk {
            offset: 0,
            bytes: model.blob().to_vec(),
        },
        Request::Deal {
            call: 0,
            round: 0,
            ticket: 0,
            seed: Seed([1; 32]),
        },
    ];
    for request in requests {
        dealer.receive(request.into_frame(), NOW);
        while let Some(frame) = dealer.transmit(NOW) {
            said.push(Reply::from_frame(frame).unwrap());
        }
    }
    let Some(Reply::Failed { call, message }) = said.last() else {
        panic!("{said:?}");
    };
    assert_eq!(*call, Some(0));
    assert!(message.contains("computes with floats"), "{message}");
}
