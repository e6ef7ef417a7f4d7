//! Values at the bounds, through both sides, against an evaluation in wide integers.

use std::sync::Arc;

use larvatus::error::{InferError, InputError};
use larvatus::exact::{LayerTrace, LocalError, run_exact, run_exact_observed};
use larvatus::model::linear::StaysLocal;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Policy};
use larvatus::session::Session;
use larvatus::tensor::{Tensor, floats};
use larvatus_kernels::field::{Fp, HALF};
use larvatus_kernels::linear::Shape;
use larvatus_proto::program::LayerId;
use larvatus_testkit::chance::Chance;
use larvatus_testkit::models::{self, Kind, Network, Random};
use larvatus_testkit::pair::Pair;
use proptest::prelude::*;

fn bits(tensors: &[Arc<Tensor>]) -> Vec<Vec<u32>> {
    let bits = |tensor: &Arc<Tensor>| {
        floats(tensor)
            .unwrap()
            .iter()
            .map(|x| x.to_bits())
            .collect()
    };
    tensors.iter().map(bits).collect()
}

/// The largest bound of any layer.
const LARGEST: i64 = (1 << 15) - 1;

/// The integers that words stand for.
fn integers(words: &[u32]) -> Vec<i64> {
    words
        .iter()
        .map(|word| i64::from(Fp::from_canonical(*word).unwrap().centred()))
        .collect()
}

/// A layer's answer in 64-bit integers, straight from the definition of its shape.
fn evaluate(trace: &LayerTrace<'_>, x: &[i64]) -> Vec<i64> {
    let w = |ix| trace.weights.value(ix);
    let mut y = Vec::new();
    for x in x.chunks_exact(trace.spec.shape.inputs()) {
        match &trace.spec.shape {
            Shape::MatMul(m) => {
                for (group, row) in (0..m.groups).flat_map(|g| (0..m.rows).map(move |r| (g, r))) {
                    let x = &x[(group * m.rows + row) * m.inner..][..m.inner];
                    y.extend((0..m.columns).map(|column| -> i64 {
                        let w = |k| w((group * m.inner + k) * m.columns + column);
                        x.iter().enumerate().map(|(k, x)| x * w(k)).sum()
                    }));
                }
            }
            Shape::Conv(c) => {
                let [height, width] = trace.spec.shape.output_spatial();
                let (ins, outs) = (c.in_channels / c.groups, c.out_channels / c.groups);
                for out in 0..c.out_channels {
                    for (oy, ox) in (0..height).flat_map(|y| (0..width).map(move |x| (y, x))) {
                        let mut sum = 0;
                        for (i, (ky, kx)) in (0..ins).flat_map(|i| {
                            let taps = (0..c.kernel[0])
                                .flat_map(|y| (0..c.kernel[1]).map(move |x| (y, x)));
                            taps.map(move |tap| (i, tap))
                        }) {
                            let iy =
                                (oy * c.stride[0] + ky * c.dilation[0]).checked_sub(c.pad_begin[0]);
                            let ix =
                                (ox * c.stride[1] + kx * c.dilation[1]).checked_sub(c.pad_begin[1]);
                            let (Some(iy), Some(ix)) = (iy, ix) else {
                                continue;
                            };
                            if iy < c.input[0] && ix < c.input[1] {
                                let channel = out / outs * ins + i;
                                let x = x[(channel * c.input[0] + iy) * c.input[1] + ix];
                                sum +=
                                    x * w(((out * ins + i) * c.kernel[0] + ky) * c.kernel[1] + kx);
                            }
                        }
                        y.push(sum);
                    }
                }
            }
        }
    }
    y
}

/// Runs a network here and split, hidden and not; every layer is held against [`evaluate`], and
/// `look` is shown its integers and its largest Σ|w|. Returns the outputs.
fn everywhere(
    network: &Network,
    input: &[Tensor],
    look: impl Fn(&[i64], &[i64], i64),
) -> Vec<Vec<u32>> {
    let [field, clear] = [Hiding::Field, Hiding::Clear].map(|hiding| network.plan(hiding));
    let mut layers = 0;
    let local = run_exact_observed(&field, input.to_vec(), |trace| {
        let (x, y) = (integers(trace.input), integers(trace.output));
        assert_eq!(evaluate(&trace, &x), y, "{} {}", network.name, trace.name);
        let l1 = trace.spec.shape.max_l1(trace.weights).unwrap();
        look(&x, &y, i64::try_from(l1).unwrap());
        layers += 1;
    });
    let local = bits(&local.unwrap());
    assert!(layers > 0, "{}: nothing is offloaded", network.name);
    for plan in [&field, &clear] {
        let split = Pair::honest(plan).infer(input.to_vec()).unwrap();
        assert_eq!(bits(&split.tensors), local, "{}", network.name);
    }
    local
}

/// An input at ±A everywhere meets weights of its own signs: the answer reaches its bound.
fn reaches_the_bound(network: &Network, signs: &[f32]) {
    for sign in [1.0, -1.0] {
        let input: Vec<f32> = signs.iter().map(|x| sign * x).collect();
        everywhere(network, &network.tensor(&input), |x, y, l1| {
            let half = i64::from(HALF);
            let bound = (half / l1).min(LARGEST);
            assert!(
                x.iter().all(|x| x.abs() == bound),
                "{}: not at ±{bound}",
                network.name
            );
            let most = y.iter().map(|y| y.abs()).max().unwrap();
            assert_eq!(most, bound * l1, "{}", network.name);
            assert!(
                most <= half && (most > half - l1 || bound == LARGEST),
                "{}",
                network.name
            );
        });
    }
}

#[test]
fn every_kind_of_layer_reaches_its_bound_and_does_not_wrap() {
    for kind in Kind::ALL {
        let (network, signs) = models::aligned(kind);
        reaches_the_bound(&network, &signs);
    }
}

#[test]
fn sums_at_and_beyond_the_accumulators_limit_are_exact() {
    for inner in [66_311, 66_312] {
        let (network, signs) = models::long_sum(inner);
        reaches_the_bound(&network, &signs);
    }
}

#[test]
fn a_sum_too_long_for_useful_precision_stays_home() {
    let (network, _) = models::long_sum(70_000);
    let plan = network.plan(Hiding::Field);
    assert_eq!(plan.round_trips(), 0);
    assert_eq!(
        plan.kept()[0].why,
        StaysLocal::Range {
            bound: 120,
            least: 127
        }
    );
}

#[test]
fn weights_that_are_all_zero_give_the_bias() {
    let network = models::zero_weights();
    for input in [
        network.filled(1.0),
        network.filled(-f32::MAX),
        network.filled(0.0),
    ] {
        let output = everywhere(&network, &input, |_, y, l1| {
            assert_eq!(l1, 0);
            assert!(y.iter().all(|y| *y == 0));
        });
        assert!(output[0].iter().all(|bits| f32::from_bits(*bits) == 0.0));
    }
}

#[test]
fn zeros_subnormals_and_the_largest_numbers_are_the_same_here_and_split() {
    let tiny = f32::MIN_POSITIVE;
    for network in [
        models::small_cnn(1),
        models::attention(),
        models::two_images(),
    ] {
        for value in [0.0, -0.0, 1e-45, 1e-40, tiny, tiny * 4.0, 1e-30, 1e12] {
            everywhere(&network, &network.filled(value), |_, _, _| {});
        }
    }
}

#[test]
fn numbers_that_overflow_inside_are_the_same_error_here_and_split() {
    // Scores of 10⁶⁰ are infinite, and their softmax is no number; so are sums of the largest.
    let cases = [
        (models::attention(), 1e30, 3),
        (models::small_cnn(1), f32::MAX, 1),
    ];
    for (network, value, layer) in cases {
        let plan = network.plan(Hiding::Field);
        let expected = InferError::NotFinite {
            layer: LayerId(layer),
        };
        let here = run_exact(&plan, network.filled(value)).unwrap_err();
        assert!(matches!(here, LocalError::Infer(why) if why == expected));
        let split = Pair::honest(&plan)
            .infer(network.filled(value))
            .unwrap_err();
        assert_eq!(split, expected, "{}", network.name);
    }
}

fn begin(plan: &Arc<Plan>, input: Vec<Tensor>) -> (InputError, usize) {
    let mut pair = Pair::honest(plan);
    let session: &mut Session = pair.session();
    let why = session.begin(input, std::time::Duration::ZERO).unwrap_err();
    let pending = session.pending();
    (why, pending)
}

#[test]
fn an_input_that_is_no_number_is_refused_with_its_place() {
    let network = models::small_cnn(1);
    let plan = network.plan(Hiding::Field);
    for (index, value) in [(0, f32::NAN), (77, f32::INFINITY), (146, f32::NEG_INFINITY)] {
        let mut values = vec![0.5; network.elements()];
        values[index] = value;
        let (why, pending) = begin(&plan, network.tensor(&values));
        let InputError::NotFinite {
            input,
            index: at,
            value: got,
        } = why
        else {
            panic!("{why}")
        };
        assert_eq!(
            (input.as_str(), at, got.to_bits()),
            ("x", index, value.to_bits())
        );
        assert_eq!(pending, 0);
    }
}

#[test]
fn inputs_of_another_number_shape_or_type_are_refused() {
    let network = models::small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let (why, _) = begin(&plan, Vec::new());
    assert_eq!(
        why,
        InputError::Count {
            expected: 1,
            got: 0,
            names: vec!["x".into()]
        }
    );
    let (why, _) = begin(&plan, models::two_branches().random(0));
    let (expected, got) = (vec![1, 3, 7, 7], vec![1, 2, 5, 5]);
    assert_eq!(
        why,
        InputError::Shape {
            input: "x".into(),
            expected,
            got
        }
    );
    let (why, _) = begin(
        &plan,
        vec![Tensor::from_shape(&[1, 3, 7, 7], &[1_i64; 147]).unwrap()],
    );
    let (expected, got) = ("f32".into(), "i64".into());
    assert_eq!(
        why,
        InputError::Datum {
            input: "x".into(),
            expected,
            got
        }
    );
}

#[test]
fn a_product_whose_size_depends_on_the_data_stays_home() {
    let network = models::non_zero();
    let plan = network.plan(Hiding::Field);
    assert_eq!(plan.round_trips(), 1, "the other product is offloaded");
    let kept: Vec<_> = plan.kept().iter().map(|kept| kept.why.clone()).collect();
    assert_eq!(kept, [StaysLocal::OpenShape]);
    let run = |input: Vec<Tensor>| {
        let split = bits(&Pair::honest(&plan).infer(input.clone()).unwrap().tensors);
        assert_eq!(split, bits(&run_exact(&plan, input).unwrap()));
        split[1].len()
    };
    assert_eq!(run(network.filled(1.0)), 8 * 4);
    assert_eq!(
        run(network.tensor(&[0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0, 0.0])),
        2 * 4
    );
}

fn random() -> impl Strategy<Value = Random> {
    let sizes = (1..3_usize, 1..5_usize, 1..4_usize, 1..9_usize, 1..9_usize);
    let window = (1..4_usize, 1..4_usize, 1..3_i64, 0..3_i64, 1..3_i64);
    (sizes, window, any::<u64>(), any::<[bool; 4]>()).prop_map(|(sizes, window, seed, flags)| {
        let (images, groups, channels, height, width) = sizes;
        let (kernel_height, kernel_width, stride, pad, dilation) = window;
        Random {
            images,
            groups,
            // One channel in all is a scale: nothing to offload.
            channels: if groups == 1 { channels + 1 } else { channels },
            input: [height, width],
            kernel: [kernel_height, kernel_width],
            stride,
            pad,
            dilation,
            seed,
            residual: flags[0],
            tokens: flags[1],
            bias: flags[2],
            wide_range: flags[3],
        }
    })
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn random_networks_are_bit_equal_here_split_and_in_wide_integers(random in random()) {
        let network = random.network();
        let mut chance = Chance::new(random.seed ^ 1);
        let exponents = if random.wide_range { 60 } else { 1 };
        let value = |_| chance.float() * 2_f32.powi(chance.below(exponents) as i32);
        let values: Vec<f32> = (0..network.elements()).map(value).collect();
        everywhere(&network, &network.tensor(&values), |_, _, _| {});
    }

    #[test]
    fn wide_weights_are_bit_equal_here_and_split(seed in any::<u64>()) {
        let network = models::small_cnn(seed);
        let policy = Policy::from_toml("weights = \"wide\"").unwrap();
        let plan = network.plan_for(&policy);
        let split = Pair::honest(&plan).infer(network.random(seed)).unwrap();
        let local = run_exact(&plan, network.random(seed)).unwrap();
        prop_assert_eq!(bits(&split.tensors), bits(&local));
    }
}
