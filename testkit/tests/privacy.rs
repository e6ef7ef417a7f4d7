//! What a worker sees: uniform words, in a conversation whose shape no input changes.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::time::Duration;

use larvatus::error::InferError;
use larvatus::policy::{Hiding, Policy};
use larvatus::secret::{Entropy, Seed, Ticket, TicketSet};
use larvatus::session::Settings;
use larvatus::tensor::Tensor;
use larvatus_kernels::field::P;
use larvatus_kernels::keystream::Key;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, Request};
use larvatus_proto::program::LayerId;
use larvatus_testkit::models::{Network, attention, branch_on_data, small_cnn, square_root};
use larvatus_testkit::pair::{Conditions, Pair, Peer, Setup, honest};

/// The words of all calls, in order.
fn uploads<W: Peer>(pair: &Pair<W>) -> Vec<Vec<u32>> {
    let request = |frame: &Frame| Request::from_frame(frame.clone()).ok();
    let words = |request| match request {
        Request::Call { words, .. } => Some(words.into_vec()),
        _ => None,
    };
    pair.sent()
        .iter()
        .filter_map(request)
        .filter_map(words)
        .collect()
}

/// How far the bytes of words are from uniform, lane by lane: Pearson's statistic over its limit.
///
/// A field element has 31 bits, so the top lane has 128 values. The limit is the quantile that
/// uniform words exceed with a chance of 3·10⁻⁷ (z = 5), by the approximation of Wilson and Hilferty
/// (1931); runs repeat exactly, so it is met or not for good.
fn excess(words: &[u32]) -> f64 {
    let lane = |lane: usize| {
        let cells = if lane == 3 { 128 } else { 256 };
        let mut counts = vec![0_u32; cells];
        words
            .iter()
            .for_each(|word| counts[usize::from(word.to_le_bytes()[lane]) % cells] += 1);
        let expected = words.len() as f64 / cells as f64;
        assert!(expected >= 20.0, "too few words");
        let square = |count: &u32| (f64::from(*count) - expected).powi(2) / expected;
        let statistic: f64 = counts.iter().map(square).sum();
        let degrees = (cells - 1) as f64;
        let spread = 2.0 / (9.0 * degrees);
        statistic / (degrees * (1.0 - spread + 5.0 * spread.sqrt()).powi(3))
    };
    (0..4).map(lane).fold(0.0, f64::max)
}

/// Inputs that a mask must hide as well as any.
fn extremes(network: &Network) -> Vec<(&'static str, Vec<Tensor>)> {
    let mut one_hot = vec![0.0; network.elements()];
    one_hot[3] = 1.0;
    vec![
        ("zeros", network.filled(0.0)),
        ("ones", network.filled(1.0)),
        ("minus ones", network.filled(-1.0)),
        ("one-hot", network.tensor(&one_hot)),
        ("subnormal", network.filled(1e-40)),
        ("largest", network.filled(f32::MAX)),
        ("smallest", network.filled(f32::MIN)),
        ("random", network.random(1)),
    ]
}

#[test]
fn uploads_are_uniform_in_every_byte_lane_for_extreme_inputs() {
    for network in [small_cnn(1), attention(), square_root()] {
        let plan = network.plan(Hiding::Field);
        for (name, input) in extremes(&network) {
            let mut pair = Pair::honest(&plan);
            // Two at a time, so that differences can be taken between equal rounds.
            let (mut words, mut differences) = (Vec::new(), Vec::new());
            while words.len() < 16_000 {
                let _ = pair.run_many(vec![input.clone(), input.clone()]);
                let calls = uploads(&pair);
                let last = &calls[calls.len() - 2 * plan.round_trips()..];
                for (one, other) in last.chunks_exact(2).map(|pair| (&pair[0], &pair[1])) {
                    let difference = |(x, y): (&u32, &u32)| (x + (P - y)) % P;
                    differences.extend(one.iter().zip(other).map(difference));
                    words.extend(one.iter().chain(other));
                }
            }
            assert!(words.iter().all(|word| *word < P));
            let (one, two) = (excess(&words), excess(&differences));
            assert!(
                one < 1.0 && two < 1.0,
                "{} {name}: {one:.2} {two:.2}",
                network.name
            );
        }
    }
}

#[test]
fn uploads_that_are_not_hidden_are_far_from_uniform() {
    let network = small_cnn(1);
    let mut pair = Pair::honest(&network.plan(Hiding::Clear));
    let results = pair.run_many((0..16).map(|seed| network.random(seed)).collect());
    assert!(results.iter().all(Result::is_ok));
    assert!(excess(&uploads(&pair).concat()) > 100.0);
}

/// Kind, head and payload length of every frame, both ways.
fn shape<W: Peer>(pair: &Pair<W>) -> Vec<(u8, Vec<u8>, usize)> {
    let frames = pair.sent().iter().chain(pair.received());
    frames
        .map(|frame| (frame.kind, frame.head.clone(), frame.words.len()))
        .collect()
}

#[test]
fn no_input_changes_the_shape_of_the_conversation() {
    for network in [small_cnn(1), attention(), square_root()] {
        let plan = network.plan(Hiding::Field);
        let of = |input| {
            let mut pair = Pair::honest(&plan);
            let _ = pair.infer(input);
            shape(&pair)
        };
        let expected = of(network.random(1));
        assert!(expected.len() >= 6 + 2 * plan.round_trips());
        for (name, input) in extremes(&network) {
            assert_eq!(of(input), expected, "{} {name}", network.name);
        }
    }
}

#[test]
fn a_branch_on_data_does_not_show() {
    let network = branch_on_data();
    let plan = network.plan(Hiding::Field);
    let of = |input| {
        let mut pair = Pair::honest(&plan);
        let output = pair.infer(input).unwrap();
        (shape(&pair), output)
    };
    let ((yes, one), (no, other)) = (of(network.filled(1.0)), of(network.filled(-1.0)));
    assert_ne!(one.tensors, other.tensors);
    assert_eq!(yes, no);
}

#[test]
fn a_value_inside_that_is_no_number_goes_through_the_whole_plan_and_is_then_an_error() {
    let network = square_root();
    let plan = network.plan(Hiding::Field);
    let mut pair = Pair::honest(&plan);
    assert!(pair.infer(network.filled(1.0)).is_ok());
    let calls = uploads(&pair).len();
    let why = pair.infer(network.filled(-1.0)).unwrap_err();
    assert_eq!(why, InferError::NotFinite { layer: LayerId(1) });
    assert_eq!(uploads(&pair).len(), 2 * calls);
    assert!(
        pair.infer(network.filled(1.0)).is_ok(),
        "the session goes on"
    );
}

/// Uploads of one inference under a policy.
fn seen(network: &Network, policy: &Policy, entropy: [u8; 32]) -> Vec<Vec<u32>> {
    let setup = Setup {
        entropy,
        ..Setup::default()
    };
    let mut pair = Pair::new(&network.plan_for(policy), honest(), setup);
    pair.infer(network.filled(0.5)).unwrap();
    uploads(&pair)
}

/// Words that stand at the same place in both.
fn shared(one: &[Vec<u32>], other: &[Vec<u32>]) -> usize {
    let (one, other) = (one.concat(), other.concat());
    assert_eq!(one.len(), other.len());
    one.iter().zip(&other).filter(|(x, y)| x == y).count()
}

#[test]
fn a_clone_of_a_process_that_draws_its_own_entropy_repeats_no_word() {
    let (network, policy) = (small_cnn(1), Policy::default());
    let first = seen(&network, &policy, [1; 32]);
    assert_eq!(shared(&first, &seen(&network, &policy, [2; 32])), 0);
    // The same plan and entropy would: this is what the contract of `Entropy` forbids.
    assert_eq!(first, seen(&network, &policy, [1; 32]));
}

#[test]
fn another_plan_has_other_pads_even_from_the_same_entropy() {
    let (network, policy) = (small_cnn(1), Policy::default());
    let other = Policy::from_toml("lifetime = 2_000_000").unwrap();
    let [one, two] = [&policy, &other].map(|policy| seen(&network, policy, [1; 32]));
    assert_eq!(shared(&one, &two), 0);
}

#[test]
fn the_same_input_has_new_pads_in_every_inference_provisioned_or_not() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let mut pair = Pair::honest(&plan);
    pair.session().provision(3);
    for _ in 0..6 {
        pair.infer(network.filled(0.5)).unwrap();
    }
    let calls = uploads(&pair);
    let inferences: Vec<_> = calls.chunks_exact(plan.round_trips()).collect();
    assert_eq!(inferences.len(), 6);
    for (index, one) in inferences.iter().enumerate() {
        for other in &inferences[..index] {
            assert_eq!(shared(one, other), 0);
        }
    }
}

#[test]
fn a_retry_sends_the_same_bytes() {
    let network = small_cnn(1);
    let settings = Settings {
        window: 4,
        answer_within: Duration::from_secs(3600),
        retry_after: Some(Duration::from_millis(100)),
        ..Settings::default()
    };
    let setup = Setup {
        settings,
        conditions: Conditions::ROUGH,
        ..Setup::default()
    };
    let mut pair = Pair::new(&network.plan(Hiding::Field), honest(), setup);
    let results = pair.run_many((0..16).map(|seed| network.random(seed)).collect());
    assert!(results.iter().all(Result::is_ok));
    let mut first = BTreeMap::new();
    let mut retries = 0;
    for frame in pair.sent() {
        if let Ok(Request::Call { call, .. }) = Request::from_frame(frame.clone()) {
            let original = first.entry(call).or_insert(frame);
            retries += usize::from(!std::ptr::eq(*original, frame));
            assert_eq!(*original, frame, "call {call}");
        }
    }
    assert!(retries > 0, "nothing was lost");
}

/// Tells whether a type can be printed or copied: the constants of the type itself come first.
struct Probe<T>(PhantomData<T>);

impl<T: Debug> Probe<T> {
    const PRINTS: bool = true;
}

impl<T: Clone> Probe<T> {
    const COPIES: bool = true;
}

trait Secret {
    const PRINTS: bool = false;
    const COPIES: bool = false;
}

impl<T> Secret for Probe<T> {}

#[test]
fn secrets_cannot_be_printed_or_copied() {
    const {
        assert!(
            Probe::<Digest>::PRINTS && Probe::<Digest>::COPIES,
            "the probe sees nothing"
        )
    }
    const { assert!(!Probe::<Entropy>::PRINTS && !Probe::<Entropy>::COPIES) }
    const { assert!(!Probe::<Ticket>::PRINTS && !Probe::<Ticket>::COPIES) }
    const { assert!(!Probe::<TicketSet>::PRINTS && !Probe::<TicketSet>::COPIES) }
    const { assert!(!Probe::<Seed>::PRINTS && !Probe::<Seed>::COPIES) }
    const { assert!(!Probe::<Key>::COPIES) }
    assert_eq!(format!("{:?}", Key::new([0xab; 32])), "Key(..)");
    let printed = format!("{:?}", small_cnn(1).plan(Hiding::Field));
    assert!(
        printed.starts_with("Plan { digest: ") && printed.len() < 100,
        "{printed}"
    );
}
