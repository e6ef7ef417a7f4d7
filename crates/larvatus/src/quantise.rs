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
    for (run, whose) in channels.runs(weights) {
        match whose {
            Run::One(channel) => {
                peaks[channel] = run.iter().fold(0.0, |peak: f32, w| peak.max(w.abs()));
            }
            Run::Each(first) => {
                let peaks = peaks[first..].iter_mut().zip(run);
                peaks.for_each(|(peak, w)| *peak = peak.max(w.abs()));
            }
        }
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
    let step = |w: f32, scale: f32| {
        // Adding and taking away 1.5·2²³ rounds to even, without a call for each weight.
        let steps = (w / scale + ROUND) - ROUND;
        let steps = steps.clamp(-limit, limit) as i32;
        if scale == 0.0 { 0 } else { steps }
    };
    let mut planes = Planes::new(bits, weights.len());
    for (run, whose) in channels.runs(weights) {
        match whose {
            Run::One(channel) => planes.push(run.iter().map(|w| step(*w, scales[channel]))),
            Run::Each(first) => {
                let each = run.iter().zip(&scales[first..]);
                planes.push(each.map(|(w, scale)| step(*w, *scale)));
            }
        }
    }
    let weights = planes.finish()?;
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

/// Steps on their way to planes.
struct Planes {
    low: Vec<i8>,
    /// Where the weights are wide.
    high: Option<Vec<i8>>,
}

impl Planes {
    fn new(bits: u32, count: usize) -> Self {
        Self {
            low: Vec::with_capacity(count),
            high: (bits > 8).then(|| Vec::with_capacity(count)),
        }
    }

    /// Adds steps that fit the bits.
    fn push(&mut self, steps: impl Iterator<Item = i32>) {
        let Some(high) = &mut self.high else {
            self.low.extend(steps.map(|step| step as i8));
            return;
        };
        for step in steps {
            // Balanced halves: low in [−32, 31], so high stays in [−32, 32].
            let half = 1 << (WIDE_SHIFT - 1);
            let low = ((step + half) & ((1 << WIDE_SHIFT) - 1)) - half;
            self.low.push(low as i8);
            high.push(((step - low) >> WIDE_SHIFT) as i8);
        }
    }

    fn finish(self) -> Result<Weights, StaysLocal> {
        let shift = self.high.as_ref().map_or(0, |_| WIDE_SHIFT);
        let planes = [Some(self.low), self.high].into_iter().flatten().collect();
        Weights::new(planes, shift).map_err(|err| StaysLocal::Size {
            problem: err.to_string(),
        })
    }
}

/// Which output channel a weight belongs to.
pub(crate) struct Channels {
    count: usize,
    /// Weights that lie side by side and are of one channel, or one of each of so many channels.
    run: usize,
    /// Runs that are of the same channels; 0 where a run is of one channel.
    rows: usize,
}

/// Whose weights a run has.
enum Run {
    /// This channel's.
    One(usize),
    /// One of each channel from this one on.
    Each(usize),
}

impl Channels {
    pub(crate) fn of(shape: &Shape) -> Self {
        match shape {
            Shape::Conv(conv) => Self {
                count: conv.out_channels,
                run: shape.weights() / conv.out_channels,
                rows: 0,
            },
            Shape::MatMul(matmul) => Self {
                count: matmul.groups * matmul.columns,
                run: matmul.columns,
                rows: matmul.inner,
            },
        }
    }

    pub(crate) fn of_weight(&self, ix: usize) -> usize {
        match self.whose(ix / self.run) {
            Run::One(channel) => channel,
            Run::Each(first) => first + ix % self.run,
        }
    }

    fn whose(&self, run: usize) -> Run {
        match self.rows {
            0 => Run::One(run),
            rows => Run::Each(run / rows * self.run),
        }
    }

    /// All runs, with whose weights they have.
    fn runs<'a>(&self, weights: &'a [f32]) -> impl Iterator<Item = (&'a [f32], Run)> {
        let runs = weights.chunks_exact(self.run.max(1)).enumerate();
        runs.map(|(ix, run)| (run, self.whose(ix)))
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
        assert_eq!(*q.weights.planes()[0], [127, -127, 0, 2]);
        assert_eq!((q.scales[0], q.bits), (1.0, 8));
    }

    #[test]
    fn wide_planes_add_up_to_the_steps() {
        for step in -2047_i32..=2047 {
            let mut planes = Planes::new(12, 1);
            planes.push([step].into_iter());
            let weights = planes.finish().expect("two planes");
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
