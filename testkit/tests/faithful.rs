//! The float mode: near the network in floats, masks that serve once, lies that audits find, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use larvatus::error::{InferError, WorkerMisbehaved};
use larvatus::exact::FloatNetwork;
use larvatus::faithful::{
    Demand, Fraction, Output, Plan, Preset, Session, Settings, Sharing, Times, undetected,
};
use larvatus::model::Model;
use larvatus::secret::Entropy;
use larvatus::session::InferenceId;
use larvatus::shares::Apart;
use larvatus::tensor::floats;
use larvatus_proto::frame::{Frame, FrameLimits, Reply, Request, Seed};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::{Form, Held, LayerId, Program, WorkerModel};
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
    workers: &mut [Watched],
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
        let (Some(lie), Ok(Reply::Answer { call, words })) =
            (self.lie, Reply::from_frame(frame.clone()))
        else {
            return Some(frame);
        };
        let mut words = words.to_vec();
        lie(call, &mut words);
        let words = words.into();
        Some(Reply::Answer { call, words }.into_frame())
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

/// Adds one to the third float of the second answer of every inference of `small_cnn`, which has five.
const ADD_ONE: Lie = |call, words| {
    if call % 5 == 1 {
        words[2] = (f32::from_bits(words[2]) + 1.0).to_bits();
    }
};

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
        assert_eq!(output.drawn, plan.auditable());
        let mut settled = 0;
        while let Some(provisional) = session.take_provisional() {
            let found = provisional.settle().unwrap();
            assert!(found.used <= 1.0);
            settled += 1;
        }
        assert_eq!(settled, output.drawn, "{}", network.name);
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

#[test]
fn a_lie_is_believed_at_first_and_refuted_with_the_exact_error() {
    let network = small_cnn(1);
    for (sharing, liar) in [
        (Sharing::Whole, 0),
        (Sharing::TwoWorkers(times(16)), 0),
        (Sharing::TwoWorkers(times(16)), 1),
    ] {
        let demand = Demand::new(Some(times(64)), sharing, Some(every())).unwrap();
        let plan = plan(&network, &demand);
        let mut session = session(&plan, 1);
        let mut workers = crew(&plan);
        workers[liar] = Watched::lying(ADD_ONE);
        infer(&network, &mut session, &mut workers, 1).unwrap();
        let mut lies = Vec::new();
        while let Some(provisional) = session.take_provisional() {
            assert_eq!(provisional.inference(), InferenceId(0));
            let line = provisional.line();
            lies.extend(provisional.settle().err().map(|what| (line, what)));
        }
        let lie = WorkerMisbehaved::BeyondRounding {
            layer: LayerId(1),
            image: 0,
            output: 2,
        };
        assert_eq!(lies, [(liar, lie)]);
    }
}

#[test]
fn audits_find_a_lie_as_often_as_their_share_says() {
    let network = small_cnn(1);
    let share = Fraction::new(0.25).unwrap();
    let demand = Demand::new(None, Sharing::Whole, Some(share)).unwrap();
    let plan = plan(&network, &demand);
    let mut session = session(&plan, 1);
    let mut workers = vec![Watched::lying(ADD_ONE)];
    let (mut caught, mut drawn) = (0, 0);
    for seed in 0..400 {
        drawn += infer(&network, &mut session, &mut workers, seed)
            .unwrap()
            .drawn;
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
        (program.form(), program.held()),
        (Form::Words, Held::Floats)
    );
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
