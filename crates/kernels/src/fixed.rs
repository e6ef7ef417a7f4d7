//! Fixed point: how activations become integers that no weight row can make wrap.
//!
//! An activation x becomes q = round(x · inverse), |q| ≤ A, where A is chosen from the weights alone so that
//! |Σ w·q| ≤ (p − 1)/2 for any input whatever. The scale follows the data and never leaves the trusted side.
//!
//! Source: the bound is the triangle inequality; clamping makes it independent of float rounding.
#![forbid(unsafe_code)]

use crate::field::HALF;
use crate::isa::Isa;
use crate::isa::vector::{Pass, Vector, load_f};

/// A, the largest magnitude of a quantised activation.
///
/// At most 2²¹: then every quantised value is a float exactly, and the sums of the check have the room they are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound(
    /// At most [`Self::LARGEST`].
    u32,
);

impl Bound {
    /// The largest bound, 2²¹.
    pub const LARGEST: Self = Self(1 << 21);

    /// The largest bound of activations in 16 bits.
    pub const SHORT: Self = Self(i16::MAX as u32);

    /// A bound of this many steps; `None` beyond [`Self::LARGEST`].
    pub const fn new(steps: u32) -> Option<Self> {
        if steps <= Self::LARGEST.0 {
            Some(Self(steps))
        } else {
            None
        }
    }

    /// The number of steps.
    pub const fn steps(self) -> u32 {
        self.0
    }
}

/// The bound A for a layer: the largest such that no input wraps, min(2²¹, ⌊((p − 1)/2) / max_c Σ|w_c|⌋).
///
/// `max_row_l1` is the largest sum of absolute weights that meet in one output. Zero weights allow 2²¹. A result
/// below 127 tells the planner to split the layer or keep it at home; 0 means that every input would be sent as zero.
pub fn activation_bound(max_row_l1: u64) -> Bound {
    let fitting = (HALF as u64).checked_div(max_row_l1);
    let largest = u64::from(Bound::LARGEST.0);
    Bound(fitting.map_or(largest, |steps| steps.min(largest)) as u32)
}

/// The largest magnitude in a buffer, as bits, so that it is exact on every instruction set: NaN > ∞ > finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaxAbs(
    /// The bits of a non-negative float. All NaN are one: the quiet one without payload.
    u32,
);

impl MaxAbs {
    /// The magnitude of one number.
    pub fn of(x: f32) -> Self {
        Self::from_bits(x.to_bits() & MAGNITUDE)
    }

    /// From the bits of a magnitude.
    pub(crate) fn from_bits(bits: u32) -> Self {
        if bits > f32::INFINITY.to_bits() {
            Self(f32::NAN.to_bits())
        } else {
            Self(bits)
        }
    }

    /// Whether no element is infinite or NaN.
    pub fn is_finite(self) -> bool {
        self.0 < f32::INFINITY.to_bits()
    }

    /// The magnitude.
    pub fn value(self) -> f32 {
        f32::from_bits(self.0)
    }
}

/// All bits but the sign.
pub(crate) const MAGNITUDE: u32 = 0x7fff_ffff;

/// The largest magnitude of `x`, 0 for none.
///
/// **Exactness**: exact.
pub fn max_abs(x: &[f32]) -> MaxAbs {
    max_abs_with(Isa::best(), x)
}

/// [`max_abs`] with a given instruction set.
pub fn max_abs_with(isa: Isa, x: &[f32]) -> MaxAbs {
    isa.run(LargestMagnitude(x))
}

struct LargestMagnitude<'a>(&'a [f32]);

impl Pass for LargestMagnitude<'_> {
    type Output = MaxAbs;

    fn scalar(self) -> MaxAbs {
        self.0
            .iter()
            .copied()
            .map(MaxAbs::of)
            .max()
            .unwrap_or_default()
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) -> MaxAbs {
        let Self(x) = self;
        let magnitude = v.splat(MAGNITUDE);
        let mut largest = v.splat(0);
        let mut at = 0;
        while at + V::LANES <= x.len() {
            largest = v.max(
                largest,
                v.and(v.bits(load_f::<V, false>(v, x, at)), magnitude),
            );
            at += V::LANES;
        }
        largest = v.max(
            largest,
            v.and(v.bits(load_f::<V, true>(v, x, at)), magnitude),
        );
        MaxAbs::from_bits(v.largest(largest))
    }
}

/// The size of a quantisation step, and what to multiply with to count steps.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Scale {
    /// One step, positive and normal: x ≈ q · step.
    pub step: f32,
    /// Steps per unit: q = round(x · inverse). Zero if nothing is to be sent but zeros.
    pub inverse: f32,
}

/// The scale at which `max_abs` just reaches the bound.
///
/// A maximum below the smallest normal counts as zero, and so does one that is not finite: every element then
/// quantises to 0 (step 1, inverse 0), so that what is sent does not tell. The caller who must know asks
/// [`MaxAbs::is_finite`]. Neither number overflows: a step is at least the smallest normal, and a maximum so small
/// that more would be needed uses fewer steps than the bound.
pub fn scale(max_abs: MaxAbs, bound: Bound) -> Scale {
    let largest = max_abs.value();
    if !max_abs.is_finite() || largest < f32::MIN_POSITIVE || bound.0 == 0 {
        return Scale {
            step: 1.0,
            inverse: 0.0,
        };
    }
    let steps = bound.0 as f32;
    let step = largest / steps;
    if step < f32::MIN_POSITIVE {
        return Scale {
            step: f32::MIN_POSITIVE,
            inverse: 1.0 / f32::MIN_POSITIVE,
        };
    }
    Scale {
        step,
        inverse: steps / largest,
    }
}

/// One activation in steps: round(x · inverse) to nearest, ties to even, clamped to ±A; 0 for NaN. The definition.
pub(crate) fn quantise_one(x: f32, inverse: f32, bound: Bound) -> i32 {
    let steps = x * inverse;
    let limit = bound.0 as f32;
    if steps.is_nan() {
        0
    } else {
        steps.clamp(-limit, limit).round_ties_even() as i32
    }
}

/// [`quantise_one`] in vectors; negative numbers in two's complement.
#[inline(always)]
pub(crate) fn quantise_lanes<V: Vector>(v: V, x: V::F, inverse: V::F, limit: V::F) -> V::I {
    let steps = v.drop_nan(v.mul_f(x, inverse));
    let low = v.sub_f(v.splat_f(0.0), limit);
    v.nearest(v.min_f(limit, v.max_f(low, steps)))
}

#[cfg(test)]
mod tests {
    use super::{Bound, MaxAbs, activation_bound, max_abs, max_abs_with, quantise_one, scale};
    use crate::field::HALF;
    use crate::isa::Isa;
    use crate::testing::{LENGTHS, Random};

    #[test]
    fn the_bound_is_the_largest_that_cannot_wrap() {
        assert_eq!(activation_bound(0), Bound::LARGEST);
        assert_eq!(activation_bound(1), Bound::LARGEST);
        for l1 in [
            127_u64,
            511,
            512,
            513,
            9 * 127,
            4608 * 127,
            25088 * 127,
            u64::from(u32::MAX),
        ] {
            let steps = u64::from(activation_bound(l1).steps());
            assert!(steps * l1 <= HALF as u64, "{l1}");
            let larger = steps + 1;
            assert!(larger * l1 > HALF as u64 || steps == 1 << 21, "{l1}");
        }
        assert_eq!(activation_bound(u64::MAX).steps(), 0);
        assert_eq!(Bound::new((1 << 21) + 1), None);
    }

    #[test]
    fn the_maximum_reaches_the_bound_and_nothing_exceeds_it() {
        let mut random = Random::new(1);
        for steps in [1, 127, 4096, 1 << 21] {
            let bound = Bound::new(steps).unwrap();
            for _ in 0..1000 {
                // Finite, normal, and large enough to use all steps.
                let largest = f32::from_bits(random.below(0x7f80_0000 - (24 << 23)) + (24 << 23));
                let scale = scale(MaxAbs::of(largest), bound);
                assert!(scale.step.is_normal() && scale.inverse > 0.0 && scale.inverse.is_finite());
                assert_eq!(
                    quantise_one(largest, scale.inverse, bound),
                    steps as i32,
                    "{largest}"
                );
                assert_eq!(
                    quantise_one(-largest, scale.inverse, bound),
                    -(steps as i32)
                );
                assert_eq!(quantise_one(f32::MAX, scale.inverse, bound), steps as i32);
            }
        }
    }

    #[test]
    fn extreme_maxima_give_usable_scales() {
        let bound = Bound::LARGEST;
        for unusable in [0.0, f32::MIN_POSITIVE / 2.0, f32::INFINITY, f32::NAN] {
            let scale = scale(MaxAbs::of(unusable), bound);
            assert_eq!((scale.step, scale.inverse), (1.0, 0.0), "{unusable}");
            assert_eq!(quantise_one(unusable, scale.inverse, bound), 0);
        }
        // The smallest normal: not enough for 2²¹ steps, but not lost.
        let tiny = scale(MaxAbs::of(f32::MIN_POSITIVE), bound);
        assert_eq!(
            (tiny.step, tiny.inverse),
            (f32::MIN_POSITIVE, 1.0 / f32::MIN_POSITIVE)
        );
        assert_eq!(quantise_one(f32::MIN_POSITIVE, tiny.inverse, bound), 1);
        let huge = scale(MaxAbs::of(f32::MAX), bound);
        assert_eq!(quantise_one(f32::MAX, huge.inverse, bound), 1 << 21);
        assert_eq!(scale(MaxAbs::of(1.0), Bound::new(0).unwrap()).inverse, 0.0);
    }

    #[test]
    fn ties_round_to_even_and_nan_is_zero() {
        let bound = Bound::new(127).unwrap();
        let cases = [
            (0.5, 0),
            (1.5, 2),
            (2.5, 2),
            (-0.5, 0),
            (-1.5, -2),
            (126.5, 126),
            (127.5, 127),
        ];
        for (x, expected) in cases {
            assert_eq!(quantise_one(x, 1.0, bound), expected, "{x}");
        }
        assert_eq!(quantise_one(f32::NAN, 1.0, bound), 0);
        assert_eq!(quantise_one(f32::NEG_INFINITY, 1.0, bound), -127);
        assert_eq!(quantise_one(f32::INFINITY, 0.0, bound), 0);
    }

    #[test]
    fn the_maximum_orders_nan_above_infinity_above_all_else() {
        assert_eq!(max_abs(&[]), MaxAbs::default());
        assert_eq!(max_abs(&[1.0, -3.0, 2.0]).value(), 3.0);
        assert_eq!(
            max_abs(&[f32::MAX, f32::NEG_INFINITY]).value(),
            f32::INFINITY
        );
        assert!(max_abs(&[f32::INFINITY, -f32::NAN]).value().is_nan());
        assert!(max_abs(&[f32::MAX]).is_finite());
        assert!(!max_abs(&[f32::INFINITY]).is_finite());
    }

    #[test]
    fn every_instruction_set_finds_the_same_maximum() {
        let mut random = Random::new(2);
        for isa in Isa::available() {
            for len in LENGTHS {
                let mut x = random.floats(len);
                for at in [0, len / 2, len.saturating_sub(1)] {
                    assert_eq!(
                        max_abs_with(isa, &x),
                        max_abs_with(Isa::Scalar, &x),
                        "{isa:?} {len}"
                    );
                    if let Some(x) = x.get_mut(at) {
                        *x = [-1e30, f32::INFINITY, f32::from_bits(0xffc0_1234)]
                            [random.below(3) as usize];
                    }
                }
                assert_eq!(
                    max_abs_with(isa, &x),
                    max_abs_with(Isa::Scalar, &x),
                    "{isa:?} {len}"
                );
            }
        }
    }
}
