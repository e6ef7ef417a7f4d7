//! Depthwise convolution: each channel with a filter of its own.
//!
//! Each plane is copied once into a buffer with its border of zeros, columns of equal remainder by the stride apart;
//! then every tap of a filter is one load of neighbours, whatever the stride.

use crate::WrongLength;
use crate::isa::Isa;
use crate::isa::vector::{Pass, Vector};
use crate::local::pool::Windows;

/// Convolves each plane with the filter of its channel; pixels beyond the border are zero.
///
/// **Shapes**: `x` planes × input, `y` planes × output, filters channels × kernel, row-major; `bias` one for each channel
/// or empty; plane i has channel i mod channels.
/// **Exactness**: the sum starts with the bias and takes the taps in their order, one rounding for each operation;
/// error ≤ (taps + 1)·2⁻²⁴·(|bias| + Σ|w·x|).
/// **Errors**: [`WrongLength`] if lengths disagree, or the horizontal stride is neither 1 nor 2.
pub fn depthwise(
    windows: &Windows,
    filters: &[f32],
    bias: &[f32],
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    depthwise_with(Isa::best(), windows, filters, bias, x, y)
}

/// [`depthwise`] with a given instruction set.
pub fn depthwise_with(
    isa: Isa,
    windows: &Windows,
    filters: &[f32],
    bias: &[f32],
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    windows.check(x.len(), y.len())?;
    WrongLength::check(windows.stride[1].clamp(1, 2), windows.stride[1])?;
    let taps = windows.kernel[0].saturating_mul(windows.kernel[1]);
    let channels = filters.len().checked_div(taps).unwrap_or(0);
    WrongLength::check(1, channels.min(1))?;
    WrongLength::check_product(channels, taps, filters.len())?;
    if !bias.is_empty() {
        WrongLength::check(channels, bias.len())?;
    }
    if !y.is_empty() {
        isa.run(Convolve {
            windows,
            filters,
            bias,
            channels,
            x,
            y,
        });
    }
    Ok(())
}

struct Convolve<'a> {
    windows: &'a Windows,
    filters: &'a [f32],
    bias: &'a [f32],
    channels: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Pass for Convolve<'_> {
    type Output = ();

    fn scalar(self) {
        let Windows {
            planes,
            input,
            output,
            kernel,
            stride,
            before,
        } = *self.windows;
        let taps = kernel[0] * kernel[1];
        let pixel = |plane: usize, row: usize, column: usize| {
            let row = row.checked_sub(before[0]).filter(|row| *row < input[0]);
            let column = column
                .checked_sub(before[1])
                .filter(|column| *column < input[1]);
            row.zip(column).map_or(0.0, |(row, column)| {
                self.x[(plane * input[0] + row) * input[1] + column]
            })
        };
        for (index, y) in self.y.iter_mut().enumerate() {
            let (plane, j) = (index / output[1] / output[0], index % output[1]);
            let i = index / output[1] % output[0];
            debug_assert!(plane < planes);
            let channel = plane % self.channels;
            let filter = &self.filters[channel * taps..(channel + 1) * taps];
            *y = self.bias.get(channel).copied().unwrap_or(0.0);
            for (tap, w) in filter.iter().enumerate() {
                let (r, c) = (tap / kernel[1], tap % kernel[1]);
                *y += w * pixel(plane, i * stride[0] + r, j * stride[1] + c);
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        match (self.windows.kernel, self.windows.stride) {
            ([3, 3], [1, 1]) => self.fixed::<V, 3, 1>(v),
            ([3, 3], [2, 2]) => self.fixed::<V, 3, 2>(v),
            ([5, 5], [1, 1]) => self.fixed::<V, 5, 1>(v),
            ([5, 5], [2, 2]) => self.fixed::<V, 5, 2>(v),
            (_, [_, 1]) => self.fixed::<V, 0, 1>(v),
            _ => self.fixed::<V, 0, 2>(v),
        }
    }
}

/// Rows of results that are computed together: an element of the input is loaded once for all that it is part of.
const ROWS: usize = 4;

impl Convolve<'_> {
    /// For square kernels of K and a stride of STEP both ways; for any kernel and vertical stride if K is 0.
    #[inline(always)]
    fn fixed<V: Vector, const K: usize, const STEP: usize>(self, v: V) {
        let Windows {
            input,
            output,
            kernel,
            stride,
            before,
            ..
        } = *self.windows;
        let taps = kernel[0] * kernel[1];
        let padded = Padded::new::<V>(self.windows);
        let mut space = vec![0.0; padded.len()];
        let planes = self.x.chunks_exact((input[0] * input[1]).max(1));
        let outs = self.y.chunks_exact_mut(output[0] * output[1]);
        for (plane, (x, y)) in planes.zip(outs).enumerate() {
            padded.fill::<V, STEP>(v, before, input, x, &mut space);
            let channel = plane % self.channels;
            let filter = &self.filters[channel * taps..(channel + 1) * taps];
            let bias = self.bias.get(channel).copied().unwrap_or(0.0);
            let mut i = 0;
            while i < output[0] {
                let space = &space[i * stride[0] * STEP * padded.pitch..];
                let rest = &mut y[i * output[1]..];
                i += if K == 0 {
                    any_row::<V, STEP>(
                        v,
                        filter,
                        bias,
                        kernel,
                        padded.pitch,
                        space,
                        &mut rest[..output[1]],
                    );
                    1
                } else if i + ROWS <= output[0] {
                    rows::<V, K, STEP, ROWS>(v, filter, bias, padded.pitch, output[1], space, rest);
                    ROWS
                } else {
                    rows::<V, K, STEP, 1>(v, filter, bias, padded.pitch, output[1], space, rest);
                    1
                };
            }
        }
    }
}

/// A plane with its border: row by row, first the columns of even number and then the odd ones if the stride is 2.
struct Padded {
    rows: usize,
    /// From the even columns of a row to the odd ones, or to the next row; room for the last vector.
    pitch: usize,
    step: usize,
}

impl Padded {
    fn new<V: Vector>(windows: &Windows) -> Self {
        let reach =
            |axis: usize| (windows.output[axis] - 1) * windows.stride[axis] + windows.kernel[axis];
        let step = windows.stride[1];
        let line = reach(1).max(windows.before[1] + windows.input[1]);
        let columns = windows.output[1].next_multiple_of(V::LANES) + windows.kernel[1];
        Self {
            rows: reach(0),
            // A vector may be stored from the last column on.
            pitch: columns
                .max(line.div_ceil(step) + 2 * V::LANES)
                .next_multiple_of(V::LANES),
            step,
        }
    }

    fn len(&self) -> usize {
        self.rows * self.step * self.pitch
    }

    /// Writes a plane within the border, which stays zero.
    #[inline(always)]
    fn fill<V: Vector, const STEP: usize>(
        &self,
        v: V,
        before: [usize; 2],
        input: [usize; 2],
        x: &[f32],
        space: &mut [f32],
    ) {
        let inside = before[0]..(before[0] + input[0]).min(self.rows);
        for (row, x) in inside.zip(x.chunks_exact(input[1])) {
            let start = row * STEP * self.pitch;
            if STEP == 1 {
                copy(v, x, &mut space[start + before[1]..][..input[1]]);
                continue;
            }
            // After an odd border, columns of even number are odd ones of the padded row.
            let (first, second) = space[start..start + 2 * self.pitch].split_at_mut(self.pitch);
            let (evens, odds) = if before[1].is_multiple_of(2) {
                (first, second)
            } else {
                (second, first)
            };
            let (evens, odds) = (
                &mut evens[before[1] / 2..],
                &mut odds[before[1].div_ceil(2)..],
            );
            let mut at = 0;
            while 2 * at < x.len() {
                let (a, b) = (some(v, x, 2 * at), some(v, x, 2 * at + V::LANES));
                v.store_f(v.evens_f(a, b), evens, at);
                v.store_f(v.odds_f(a, b), odds, at);
                at += V::LANES;
            }
        }
    }
}

/// A vector from `x[at..]`, zeros beyond its end.
#[inline(always)]
fn some<V: Vector>(v: V, x: &[f32], at: usize) -> V::F {
    if at + V::LANES <= x.len() {
        v.load_f(x, at)
    } else if at < x.len() {
        v.load_part_f(x, at)
    } else {
        v.splat_f(0.0)
    }
}

/// A copy of a few elements, without a call.
#[inline(always)]
fn copy<V: Vector>(v: V, x: &[f32], y: &mut [f32]) {
    let mut at = 0;
    while at + V::LANES <= x.len() {
        v.store_f(v.load_f(x, at), y, at);
        at += V::LANES;
    }
    if at < x.len() {
        v.store_part_f(v.load_part_f(x, at), y, at);
    }
}

/// N rows of `cols` results with a K × K kernel.
#[inline(always)]
fn rows<V: Vector, const K: usize, const STEP: usize, const N: usize>(
    v: V,
    filter: &[f32],
    bias: f32,
    pitch: usize,
    cols: usize,
    space: &[f32],
    y: &mut [f32],
) {
    let filter = &filter[..K * K];
    let mut at = 0;
    while at < cols {
        let mut sums = [v.splat_f(bias); N];
        // For each result the taps still come in their order.
        for row in 0..(N - 1) * STEP + K {
            for c in 0..K {
                let x = v.load_f(space, (row * STEP + c % STEP) * pitch + c / STEP + at);
                for n in 0..N {
                    if n * STEP <= row && row < n * STEP + K {
                        let w = v.splat_f(filter[(row - n * STEP) * K + c]);
                        sums[n] = v.add_f(sums[n], v.mul_f(w, x));
                    }
                }
            }
        }
        for (sum, y) in sums.into_iter().zip(y.chunks_exact_mut(cols)) {
            store(v, sum, y, at);
        }
        at += V::LANES;
    }
}

/// One row of results with any kernel.
#[inline(always)]
fn any_row<V: Vector, const STEP: usize>(
    v: V,
    filter: &[f32],
    bias: f32,
    kernel: [usize; 2],
    pitch: usize,
    space: &[f32],
    y: &mut [f32],
) {
    let mut at = 0;
    while at < y.len() {
        let mut sum = v.splat_f(bias);
        for r in 0..kernel[0] {
            for c in 0..kernel[1] {
                let x = v.load_f(space, (r * STEP + c % STEP) * pitch + c / STEP + at);
                sum = v.add_f(sum, v.mul_f(v.splat_f(filter[r * kernel[1] + c]), x));
            }
        }
        store(v, sum, y, at);
        at += V::LANES;
    }
}

#[inline(always)]
fn store<V: Vector>(v: V, x: V::F, y: &mut [f32], at: usize) {
    if at + V::LANES <= y.len() {
        v.store_f(x, y, at);
    } else {
        v.store_part_f(x, y, at);
    }
}

#[cfg(test)]
mod tests {
    use super::{Windows, depthwise_with};
    use crate::isa::Isa;
    use crate::testing::{Random, WindowCase, windows};

    const CASES: [WindowCase; 9] = [
        ([7, 7], [3, 3], [1, 1], [1, 1], [1, 1]),
        ([28, 28], [5, 5], [1, 1], [2, 2], [2, 2]),
        ([112, 112], [3, 3], [2, 2], [1, 1], [1, 1]),
        ([15, 33], [5, 5], [2, 2], [1, 1], [2, 2]),
        ([14, 14], [3, 3], [2, 2], [0, 0], [1, 1]),
        ([9, 40], [7, 1], [1, 1], [3, 0], [3, 0]),
        ([6, 19], [2, 4], [3, 2], [0, 3], [0, 1]),
        ([1, 1], [1, 1], [1, 1], [0, 0], [0, 0]),
        ([4, 5], [4, 5], [1, 2], [0, 0], [0, 0]),
    ];

    #[test]
    fn every_instruction_set_gives_the_same_bits_and_close_to_exact_ones() {
        let mut random = Random::new(71);
        for case in CASES {
            let w = windows(6, case);
            let taps = w.kernel[0] * w.kernel[1];
            let x = random.floats(6 * w.input[0] * w.input[1]);
            let filters = random.floats(3 * taps);
            for bias in [random.floats(3), vec![]] {
                let run = |isa| {
                    let mut y = vec![0.0; 6 * w.output[0] * w.output[1]];
                    depthwise_with(isa, &w, &filters, &bias, &x, &mut y).expect("lengths agree");
                    y
                };
                let expected = run(Isa::Scalar);
                for isa in Isa::available() {
                    let same = run(isa)
                        .iter()
                        .zip(&expected)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{} {case:?}", isa.name());
                }
                for (index, y) in expected.into_iter().enumerate() {
                    let (exact, size) = exact(&w, &filters, &bias, &x, index);
                    let allowed = (taps + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size;
                    assert!(
                        (f64::from(y) - exact).abs() <= allowed,
                        "{case:?} {index} {y} {exact}"
                    );
                }
            }
        }
    }

    /// A result and the sum of the magnitudes of its terms, from the definition.
    fn exact(w: &Windows, filters: &[f32], bias: &[f32], x: &[f32], index: usize) -> (f64, f64) {
        let (plane, j) = (index / w.output[1] / w.output[0], index % w.output[1]);
        let i = index / w.output[1] % w.output[0];
        let channel = plane % 3;
        let start = bias.get(channel).map_or(0.0, |bias| f64::from(*bias));
        let (mut sum, mut size) = (start, start.abs());
        for r in 0..w.kernel[0] {
            for c in 0..w.kernel[1] {
                let row = (i * w.stride[0] + r).checked_sub(w.before[0]);
                let column = (j * w.stride[1] + c).checked_sub(w.before[1]);
                if let (Some(row), Some(column)) = (row, column)
                    && row < w.input[0]
                    && column < w.input[1]
                {
                    let weight = filters[(channel * w.kernel[0] + r) * w.kernel[1] + c];
                    let x = x[(plane * w.input[0] + row) * w.input[1] + column];
                    sum += f64::from(weight) * f64::from(x);
                    size += (f64::from(weight) * f64::from(x)).abs();
                }
            }
        }
        (sum, size)
    }

    #[test]
    fn shapes_that_make_no_sense_are_refused() {
        let w = windows(6, CASES[0]);
        let (x, filters, mut y) = (vec![0.0; 294], vec![0.0; 27], vec![0.0; 294]);
        let isa = Isa::best();
        assert!(depthwise_with(isa, &w, &filters, &[], &x, &mut y).is_ok());
        assert!(depthwise_with(isa, &w, &filters[1..], &[], &x, &mut y).is_err());
        assert!(depthwise_with(isa, &w, &[], &[], &x, &mut y).is_err());
        assert!(depthwise_with(isa, &w, &filters, &[0.0], &x, &mut y).is_err());
        assert!(depthwise_with(isa, &w, &filters, &[], &x[1..], &mut y).is_err());
        let far = Windows {
            stride: [1, 3],
            ..w
        };
        assert!(depthwise_with(isa, &far, &filters, &[], &x, &mut y).is_err());
    }
}
