//! Weights as integers.
//!
//! Symmetric per output channel: `w ≈ scale · q`, `scale = max|w| / limit`, `q = round(w / scale)`
//! with ties to even, all in f32, clamped to `[−limit, limit]`. One int8 plane has limit 127. Wide weights have up to
//! 12 bits in two planes, `q = high·2⁶ + low`, so that each plane fits the workers' int8 units;
//! the fewest bits that keep [`LEAST_STEPS`] for activations win.

use larvatus_kernels::fixed::{Bound, activation_bound};
use larvatus_kernels::linear::{Shape, ShapeError, Weights};

use crate::model::linear::StaysLocal;
use crate::policy::WeightBits;

/// Fewest steps of an activation, on each side of zero, that a plan accepts.
pub(crate) const LEAST_STEPS: u32 = 127;

/// Where a float's last digit is one: sums with it are whole.
const ROUND: f32 = 1.5 * (1 << 23) as f32;

/// Distance of the two planes of a wide weight, in bits.
const WIDE_SHIFT: u32 = 6;

/// A layer's integer weights.
#[derive(Clone, Debug)]
pub(crate) struct Quantised {
    pub(crate) weights: Weights,
    /// One per output channel.
    pub(crate) scales: Vec<f32>,
    /// Activations are clamped to ±this; no product wraps.
    pub(crate) bound: Bound,
    /// Bits of a weight, its sign included.
    pub(crate) bits: u32,
}

/// Rounds a layer's weights, in the layout's order.
pub(crate) fn quantise(
    shape: &Shape,
    weights: &[f32],
    bits: WeightBits,
) -> Result<Quantised, StaysLocal> {
    let most = match bits {
        WeightBits::Int8 => return with_bits(shape, weights, 8),
        WeightBits::Wide => 12,
    };
    let mut result = with_bits(shape, weights, most);
    for fewer in (9..most).rev() {
        match result {
            Err(StaysLocal::Range { .. }) => result = with_bits(shape, weights, fewer),
            other => return other,
        }
    }
    result.or_else(|_| with_bits(shape, weights, 8))
}

fn with_bits(shape: &Shape, weights: &[f32], bits: u32) -> Result<Quantised, StaysLocal> {
    if !weights.iter().all(|w| w.is_finite()) {
        return Err(StaysLocal::NotFinite);
    }
    let limit = ((1_i32 << (bits - 1)) - 1) as f32;
    let channels = Channels::of(shape);
    let mut peaks = vec![0.0_f32; channels.count];
    for (ix, w) in weights.iter().enumerate() {
        let peak = &mut peaks[channels.of_weight(ix)];
        *peak = peak.max(w.abs());
    }
    // A subnormal peak counts as zero, so that every scale and its inverse are normal.
    let scales: Vec<f32> = peaks
        .iter()
        .map(|peak| peak / limit)
        .map(|scale| {
            if scale < f32::MIN_POSITIVE {
                0.0
            } else {
                scale
            }
        })
        .collect();
    let steps: Vec<i32> = weights
        .iter()
        .enumerate()
        .map(|(ix, w)| match scales[channels.of_weight(ix)] {
            0.0 => 0,
            scale => {
                // Adding and taking away 1.5·2²³ rounds to even, without a call for each weight.
                let steps = (*w / scale + ROUND) - ROUND;
                steps.clamp(-limit, limit) as i32
            }
        })
        .collect();
    let weights = planes(&steps, bits)?;
    let size = |err: ShapeError| StaysLocal::Size {
        problem: err.to_string(),
    };
    let l1 = shape.max_l1(&weights).map_err(size)?;
    // 16 bits for all plans: what goes out in clear fits half a word, and equals what is hidden.
    let bound = activation_bound(l1).min(Bound::SHORT);
    if bound.steps() < LEAST_STEPS {
        return Err(StaysLocal::Range {
            bound: bound.steps(),
            least: LEAST_STEPS,
        });
    }
    Ok(Quantised {
        weights,
        scales,
        bound,
        bits,
    })
}

fn planes(steps: &[i32], bits: u32) -> Result<Weights, StaysLocal> {
    let byte = |step: i32| {
        i8::try_from(step).map_err(|_| StaysLocal::Size {
            problem: "a weight beyond int8".into(),
        })
    };
    let whole = |step: &i32| byte(*step);
    // Balanced halves: low in [−32, 31], so high stays in [−32, 32].
    let low = |step: &i32| {
        ((step + (1 << (WIDE_SHIFT - 1))) & ((1 << WIDE_SHIFT) - 1)) - (1 << (WIDE_SHIFT - 1))
    };
    let planes = if bits <= 8 {
        vec![steps.iter().map(whole).collect::<Result<_, _>>()?]
    } else {
        vec![
            steps
                .iter()
                .map(|step| byte(low(step)))
                .collect::<Result<_, _>>()?,
            steps
                .iter()
                .map(|step| byte((step - low(step)) >> WIDE_SHIFT))
                .collect::<Result<_, _>>()?,
        ]
    };
    let shift = if bits <= 8 { 0 } else { WIDE_SHIFT };
    Weights::new(planes, shift).map_err(|err| StaysLocal::Size {
        problem: err.to_string(),
    })
}

/// Which output channel a weight belongs to.
pub(crate) struct Channels {
    count: usize,
    /// Weights of one channel that lie side by side (planar), or 0 (tokens).
    run: usize,
    columns: usize,
    group: usize,
}

impl Channels {
    pub(crate) fn of(shape: &Shape) -> Self {
        match shape {
            Shape::Conv(conv) => Self {
                count: conv.out_channels,
                run: shape.weights() / conv.out_channels,
                columns: 0,
                group: 0,
            },
            Shape::MatMul(matmul) => Self {
                count: matmul.groups * matmul.columns,
                run: 0,
                columns: matmul.columns,
                group: matmul.inner * matmul.columns,
            },
        }
    }

    pub(crate) fn of_weight(&self, ix: usize) -> usize {
        match self.run {
            0 => ix / self.group * self.columns + ix % self.columns,
            run => ix / run,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use larvatus_kernels::linear::MatMul;

    fn token(inner: usize, columns: usize) -> Shape {
        Shape::matmul(MatMul {
            groups: 1,
            rows: 1,
            inner,
            columns,
        })
        .expect("a shape")
    }

    #[test]
    fn int8_reaches_both_ends_and_rounds_to_even() {
        let q = quantise(&token(4, 1), &[127.0, -127.0, 0.5, 1.5], WeightBits::Int8).expect("fits");
        assert_eq!(q.weights.planes()[0], [127, -127, 0, 2]);
        assert_eq!((q.scales[0], q.bits), (1.0, 8));
    }

    #[test]
    fn wide_planes_add_up_to_the_steps() {
        for step in -2047_i32..=2047 {
            let weights = planes(&[step], 12).expect("two planes");
            let [low, high] = weights.planes() else {
                panic!("two planes")
            };
            assert_eq!(
                i32::from(low[0]) + (i32::from(high[0]) << weights.shift()),
                step
            );
        }
    }

    #[test]
    fn a_zero_channel_keeps_scale_zero_and_the_whole_range() {
        let q = quantise(&token(3, 1), &[0.0; 3], WeightBits::Int8).expect("fits");
        assert_eq!((q.scales[0], q.bound), (0.0, Bound::SHORT));
    }

    #[test]
    fn a_weight_that_is_no_number_stays_home() {
        let why = quantise(&token(2, 1), &[1.0, f32::NAN], WeightBits::Int8).unwrap_err();
        assert_eq!(why, StaysLocal::NotFinite);
    }

    #[test]
    fn wide_weights_give_up_bits_before_they_give_up_range() {
        let inner = 25_088;
        let q = quantise(&token(inner, 1), &vec![1.0; inner], WeightBits::Wide);
        let why = q.as_ref().map(|q| (q.bits, q.bound.steps() >= LEAST_STEPS));
        assert!(matches!(why, Ok((bits, true)) if bits < 12), "{why:?}");
    }
}
