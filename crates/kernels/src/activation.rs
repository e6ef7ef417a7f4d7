//! The functions between linear layers that the reveal pass applies on its way.
//!
//! Written once over float lanes, without fused multiply-add and without a branch on data, so that all instruction sets
//! give the same bits for everything but NaN, which stays NaN. Errors against the exact function are measured by the
//! tests of this module over a grid of all magnitudes.
#![forbid(unsafe_code)]

use crate::isa::Isa;
use crate::isa::vector::{Floats, OneLane, Pass, Vector, load_f, store_f};

/// A function of one number.
///
/// NaN gives NaN, and so may −∞ where the limit is a product 0 · ∞. Errors are in units in the last place (ULP) of the
/// exact result where its magnitude is at least 2⁻¹¹⁸; below, the error is at most 2⁻¹¹⁹: exponentials that would not
/// be normal numbers are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// x. Exact.
    #[default]
    None,
    /// 0 for x < 0, else x. Exact.
    Relu,
    /// `slope`·x for x < 0, else x. Correctly rounded.
    LeakyRelu {
        /// The factor for negative numbers.
        slope: f32,
    },
    /// x, at least `low` and then at most `high`. Exact. (ReLU6 is 0, 6.)
    Clip {
        /// The smallest result.
        low: f32,
        /// The largest result.
        high: f32,
    },
    /// `slope`·x + `offset`, at least 0 and at most 1. Each operation correctly rounded.
    HardSigmoid {
        /// The factor.
        slope: f32,
        /// The summand.
        offset: f32,
    },
    /// x · HardSigmoid(x) with slope 1/6 and offset 1/2. Each operation correctly rounded.
    HardSwish,
    /// 1 / (1 + exp(−x)). ≤ 3 ULP.
    Sigmoid,
    /// x / (1 + exp(−x)), also called swish. ≤ 4 ULP.
    Silu,
    /// x · Φ(x) with Φ the normal distribution function, the form with erf. ≤ 8 ULP.
    Gelu,
    /// x · σ(√(8/π) · (x + 0.044715 x³)), the form with tanh; an approximation of Gelu by design. ≤ 64 ULP for
    /// |x| ≤ 4 (the argument of the exponential is rounded), ≤ 256 beyond.
    GeluTanh,
}

impl Activation {
    /// Whether this is a function of an exponential, and so many times as costly as the others.
    pub(crate) const fn is_transcendental(self) -> bool {
        match self {
            Self::Sigmoid | Self::Silu | Self::Gelu | Self::GeluTanh => true,
            Self::None
            | Self::Relu
            | Self::LeakyRelu { .. }
            | Self::Clip { .. }
            | Self::HardSigmoid { .. }
            | Self::HardSwish => false,
        }
    }
}

/// Applies a function in place.
pub fn activate(activation: Activation, x: &mut [f32]) {
    activate_with(Isa::best(), activation, x);
}

/// [`activate`] with a given instruction set.
pub fn activate_with(isa: Isa, activation: Activation, x: &mut [f32]) {
    isa.run(Activate { activation, x });
}

struct Activate<'a> {
    activation: Activation,
    x: &'a mut [f32],
}

impl Pass for Activate<'_> {
    type Output = ();

    fn scalar(self) {
        for x in self.x {
            *x = lanes(OneLane, self.activation, *x);
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self { activation, x } = self;
        let mut at = 0;
        while at + V::LANES <= x.len() {
            let y = lanes(v, activation, load_f::<V, false>(v, x, at));
            store_f::<V, false>(v, y, x, at);
            at += V::LANES;
        }
        let y = lanes(v, activation, load_f::<V, true>(v, x, at));
        store_f::<V, true>(v, y, x, at);
    }
}

/// The definition, for any number of lanes.
#[inline(always)]
pub(crate) fn lanes<S: Floats>(s: S, activation: Activation, x: S::F) -> S::F {
    match activation {
        Activation::Sigmoid => sigmoid(s, x),
        Activation::Silu => s.mul_f(x, sigmoid(s, x)),
        Activation::Gelu => gelu(s, x),
        Activation::GeluTanh => {
            let cube = s.mul_f(s.mul_f(x, x), x);
            let inner = s.add_f(x, s.mul_f(cube, s.splat_f(0.044_715)));
            s.mul_f(x, sigmoid(s, s.mul_f(inner, s.splat_f(1.595_769))))
        }
        Activation::None
        | Activation::Relu
        | Activation::LeakyRelu { .. }
        | Activation::Clip { .. }
        | Activation::HardSigmoid { .. }
        | Activation::HardSwish => algebraic_lanes(s, activation, x),
    }
}

/// [`lanes`] for functions that are not transcendental; those are left out, so that a loop with little room need not
/// hold their constants.
#[inline(always)]
pub(crate) fn algebraic_lanes<S: Floats>(s: S, activation: Activation, x: S::F) -> S::F {
    debug_assert!(!activation.is_transcendental());
    match activation {
        Activation::Relu => s.max_f(s.splat_f(0.0), x),
        Activation::LeakyRelu { slope } => s.where_negative(x, s.mul_f(x, s.splat_f(slope)), x),
        Activation::Clip { low, high } => clip(s, x, low, high),
        Activation::HardSigmoid { slope, offset } => hard_sigmoid(s, x, slope, offset),
        Activation::HardSwish => s.mul_f(x, hard_sigmoid(s, x, 1.0 / 6.0, 0.5)),
        Activation::None
        | Activation::Sigmoid
        | Activation::Silu
        | Activation::Gelu
        | Activation::GeluTanh => x,
    }
}

#[inline(always)]
fn clip<S: Floats>(s: S, x: S::F, low: f32, high: f32) -> S::F {
    s.min_f(s.splat_f(high), s.max_f(s.splat_f(low), x))
}

#[inline(always)]
fn hard_sigmoid<S: Floats>(s: S, x: S::F, slope: f32, offset: f32) -> S::F {
    clip(
        s,
        s.add_f(s.mul_f(x, s.splat_f(slope)), s.splat_f(offset)),
        0.0,
        1.0,
    )
}

/// 1 / (1 + e^−x), by e^−|x| so that small results keep their precision.
#[inline(always)]
fn sigmoid<S: Floats>(s: S, x: S::F) -> S::F {
    let e = exp(s, negative_magnitude(s, x), s.splat_f(0.0));
    let one = s.splat_f(1.0);
    s.div_f(s.where_negative(x, e, one), s.add_f(one, e))
}

/// x · Φ(x).
///
/// With z = |x|: Φ(−z) = exp(−z²/2) · R(z), where R falls smoothly from 1/2 as 1/z, and Φ(z) = 1 − Φ(−z).
/// R(z) = g(t) / (z + 4), t = (z − 4)/(z + 4); g is a polynomial of degree 10 interpolating at Chebyshev points
/// (relative error 2⁻²⁸ on 0 ≤ z ≤ 15, beyond which the result underflows). z² is split in an exact and a small part, since
/// an error of one part in 2²⁴ of a large exponent would be large.
#[inline(always)]
fn gelu<S: Floats>(s: S, x: S::F) -> S::F {
    let z = s.min_f(
        s.splat_f(15.0),
        s.float_of_bits(s.and(s.bits(x), s.splat(0x7fff_ffff))),
    );
    let four = s.splat_f(4.0);
    let w = s.div_f(s.splat_f(1.0), s.add_f(z, four));
    let t = s.mul_f(s.sub_f(z, four), w);
    let mut g = s.splat_f(MILLS[10]);
    for c in MILLS[..10].iter().rev() {
        g = s.add_f(s.mul_f(g, t), s.splat_f(*c));
    }
    // Twelve significant bits: the square is exact.
    let head = s.float_of_bits(s.and(s.bits(z), s.splat(0xffff_f000)));
    let half = s.splat_f(-0.5);
    let square = s.mul_f(s.mul_f(head, head), half);
    let rest = s.mul_f(s.mul_f(s.sub_f(z, head), s.add_f(z, head)), half);
    let tail = s.mul_f(exp(s, square, rest), s.mul_f(g, w));
    let phi = s.where_negative(x, tail, s.sub_f(s.splat_f(1.0), tail));
    s.mul_f(x, phi)
}

/// Coefficients of g, the constant first.
const MILLS: [f32; 11] = [
    7.552_851_4e-1,
    -6.078_967e-1,
    3.871_373_5e-1,
    -1.865_212_8e-1,
    6.039_753e-2,
    -7.545_268e-3,
    -3.489_317_4e-3,
    1.645_219_3e-3,
    1.710_546e-4,
    -2.317_986_8e-4,
    -5.155_659e-5,
];

/// −|x|
#[inline(always)]
fn negative_magnitude<S: Floats>(s: S, x: S::F) -> S::F {
    s.sub_f(
        s.splat_f(0.0),
        s.float_of_bits(s.and(s.bits(x), s.splat(0x7fff_ffff))),
    )
}

/// e^(x + small), for x ≤ 0 and |small| ≤ 0.11.
///
/// k = round(x / ln 2), e^x = 2^k · e^r with |r| ≤ 0.35 + 0.11; e^r = 1 + r + r²·h(r), h a polynomial of degree 5
/// interpolating at Chebyshev points (relative error 2⁻²⁸). ln 2 is subtracted in two parts, the first of ten bits, so that
/// its multiples are exact. Zero for k ≤ −127.
#[inline(always)]
pub(crate) fn exp<S: Floats>(s: S, x: S::F, small: S::F) -> S::F {
    // Here k = −127, which stands for zero. NaN stays.
    let x = s.max_f(s.splat_f(-88.0), x);
    let k = s.float(s.nearest(s.mul_f(x, s.splat_f(core::f32::consts::LOG2_E))));
    let r = s.sub_f(x, s.mul_f(k, s.splat_f(0.693_359_4)));
    let r = s.sub_f(r, s.mul_f(k, s.splat_f(-2.121_944_4e-4)));
    let r = s.add_f(r, small);
    let mut h = s.splat_f(EXP[5]);
    for c in EXP[..5].iter().rev() {
        h = s.add_f(s.mul_f(h, r), s.splat_f(*c));
    }
    let y = s.add_f(s.add_f(s.mul_f(s.mul_f(r, r), h), r), s.splat_f(1.0));
    s.mul_f(y, power_of_two(s, s.nearest(k)))
}

/// 2^k for −126 ≤ k ≤ 127, and 0 for k = −127.
#[inline(always)]
fn power_of_two<S: Floats>(s: S, k: S::I) -> S::F {
    s.float_of_bits(s.shift_to_exponent(s.add(k, s.splat(127))))
}

/// Coefficients of h, the constant first.
const EXP: [f32; 6] = [
    0.5,
    1.666_666_7e-1,
    4.166_604e-2,
    8.333_264e-3,
    1.396_781_8e-3,
    1.992_892_6e-4,
];

#[cfg(test)]
mod tests {
    use super::{Activation, activate, activate_with};
    use crate::isa::Isa;
    use crate::testing::{LENGTHS, Random};

    /// Every 4001st float, the zeros, the smallest normals and the infinities.
    fn grid() -> Vec<f32> {
        let all = (0..=u32::MAX)
            .step_by(4001)
            .map(f32::from_bits)
            .filter(|x| !x.is_nan());
        all.chain([
            0.0,
            -0.0,
            f32::MIN_POSITIVE,
            -f32::MIN_POSITIVE,
            88.0,
            -88.0,
        ])
        .collect()
    }

    /// Φ(−z) for z ≥ 0: the series of erf near 0, its continued fraction beyond.
    fn upper_tail(z: f64) -> f64 {
        let density = (-z * z / 2.0).exp() / (2.0 * core::f64::consts::PI).sqrt();
        if z < 2.0 {
            let (mut term, mut sum) = (z, z);
            for n in 1..60 {
                term *= z * z / f64::from(2 * n + 1);
                sum += term;
            }
            return 0.5 - density * sum;
        }
        density / (1..400).rev().fold(z, |tail, n| z + f64::from(n) / tail)
    }

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    fn exact(activation: Activation, x: f64) -> f64 {
        match activation {
            Activation::None => x,
            Activation::Relu => x.max(0.0),
            Activation::LeakyRelu { slope } => x * if x < 0.0 { slope.into() } else { 1.0 },
            Activation::Clip { low, high } => x.max(low.into()).min(high.into()),
            Activation::HardSigmoid { slope, offset } => {
                (x * f64::from(slope) + f64::from(offset)).clamp(0.0, 1.0)
            }
            Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            Activation::Sigmoid => sigmoid(x),
            Activation::Silu => x * sigmoid(x),
            Activation::Gelu => {
                x * if x < 0.0 {
                    upper_tail(-x)
                } else {
                    1.0 - upper_tail(x)
                }
            }
            Activation::GeluTanh => {
                x * sigmoid((8.0 / core::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x))
            }
        }
    }

    /// The largest error in ULP over a part of the grid.
    fn worst(activation: Activation, part: impl Fn(f32) -> bool) -> (f64, f32) {
        let x: Vec<f32> = grid()
            .into_iter()
            .filter(|&x| x.is_finite() && part(x))
            .collect();
        let mut y = x.clone();
        activate(activation, &mut y);
        let mut worst = (0.0, 0.0);
        for (&x, y) in x.iter().zip(y) {
            let exact = exact(activation, x.into());
            let error = (f64::from(y) - exact).abs();
            if exact.abs() < (-118_f64).exp2() {
                assert!(
                    error <= (-119_f64).exp2(),
                    "{activation:?} {x:e}: {y:e} {exact:e}"
                );
                continue;
            }
            if exact.abs() > f64::from(f32::MAX) {
                continue;
            }
            let ulp = exact.abs().log2().floor().exp2() * f64::from(f32::EPSILON);
            if error / ulp > worst.0 {
                worst = (error / ulp, x);
            }
        }
        worst
    }

    #[test]
    fn errors_stay_within_what_is_stated() {
        let all: fn(f32) -> bool = |_| true;
        // Where the sum cancels, errors are those of the summands.
        let no_cancelling: fn(f32) -> bool = |x| (x + 3.0).abs() > 1.0;
        let near: fn(f32) -> bool = |x| x.abs() <= 4.0;
        let cases = [
            (Activation::None, all, 0.0),
            (Activation::Relu, all, 0.0),
            (Activation::LeakyRelu { slope: 0.01 }, all, 0.5),
            (
                Activation::Clip {
                    low: -1.0,
                    high: 6.0,
                },
                all,
                0.0,
            ),
            (
                Activation::HardSigmoid {
                    slope: 1.0 / 6.0,
                    offset: 0.5,
                },
                no_cancelling,
                3.0,
            ),
            (Activation::HardSwish, no_cancelling, 4.0),
            (Activation::Sigmoid, all, 3.0),
            (Activation::Silu, all, 4.0),
            (Activation::Gelu, all, 8.0),
            (Activation::GeluTanh, near, 64.0),
            (Activation::GeluTanh, all, 256.0),
        ];
        for (activation, part, allowed) in cases {
            let (error, x) = worst(activation, part);
            println!("{activation:?}: {error:.2} ULP at {x:e}");
            assert!(error <= allowed, "{activation:?}: {error} ULP at {x:e}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let activations = [
            Activation::None,
            Activation::Relu,
            Activation::LeakyRelu { slope: 0.01 },
            Activation::Clip {
                low: -1.0,
                high: 6.0,
            },
            Activation::HardSigmoid {
                slope: 0.2,
                offset: 0.5,
            },
            Activation::HardSwish,
            Activation::Sigmoid,
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
        ];
        let mut random = Random::new(8);
        for activation in activations {
            let inputs = LENGTHS
                .map(|len| random.floats(len))
                .into_iter()
                .chain([grid()]);
            for x in inputs {
                let mut expected = x.clone();
                activate_with(Isa::Scalar, activation, &mut expected);
                for isa in Isa::available() {
                    let mut got = x.clone();
                    activate_with(isa, activation, &mut got);
                    for ((x, got), expected) in x.iter().zip(got).zip(&expected) {
                        let same = got.to_bits() == expected.to_bits()
                            || got.is_nan() && expected.is_nan();
                        assert!(
                            same,
                            "{activation:?} {}: {x:e} {got:e} {expected:e}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn nan_stays_nan() {
        for activation in [
            Activation::Relu,
            Activation::LeakyRelu { slope: 0.1 },
            Activation::Clip {
                low: -1.0,
                high: 1.0,
            },
            Activation::HardSigmoid {
                slope: 0.2,
                offset: 0.5,
            },
            Activation::HardSwish,
            Activation::Sigmoid,
            Activation::Silu,
            Activation::Gelu,
            Activation::GeluTanh,
        ] {
            for isa in Isa::available() {
                let mut x = [f32::NAN; 17];
                activate_with(isa, activation, &mut x);
                assert!(
                    x.iter().all(|x| x.is_nan()),
                    "{activation:?} {}",
                    isa.name()
                );
            }
        }
    }
}
