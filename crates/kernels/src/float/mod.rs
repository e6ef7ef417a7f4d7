//! Linear layers in IEEE floats: y = W·x + b, for the mode that masks with floats.
//!
//! Nothing here is exact. A sum of n products in binary32, in any order, with or without fused multiply-adds, is off by
//! at most γ(n) = n·u / (1 − n·u) times the sum of the magnitudes of its terms, u = 2⁻²⁴, while nothing overflows.
//! [`FloatLinear`] is such a sum, on matrices for speed; [`Witness`] computes the same outputs in binary64 together with that sum of
//! magnitudes, so that whoever holds both can tell rounding from a lie up to [`Witness::tolerance`].
//!
//! Source: Higham, Accuracy and Stability of Numerical Algorithms (2002), §3.1 and §4.2.
#![forbid(unsafe_code)]

#[cfg(feature = "training")]
pub mod images;
mod witness;

use std::ops::Range;

use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};

use crate::WrongLength;
use crate::linear::{Conv, MatMul, Shape};

pub use witness::{Witness, gamma};

/// Words as the floats whose bits they are.
pub fn floats(words: &[u32]) -> &[f32] {
    bytemuck::cast_slice(words)
}

/// Words as the floats whose bits they are, to be written.
pub fn floats_mut(words: &mut [u32]) -> &mut [f32] {
    bytemuck::cast_slice_mut(words)
}

/// Values a layer's bias has: one for each output channel.
pub fn channels(shape: &Shape) -> usize {
    match shape {
        Shape::Conv(conv) => conv.out_channels,
        Shape::MatMul(matmul) => matmul.groups * matmul.columns,
    }
}

/// y = W·x + b in binary32.
#[derive(Clone, Debug)]
pub struct FloatLinear {
    shape: Shape,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

/// Elements of the patches that are made at a time: 1 MiB, which the second-level cache holds.
const PATCHES: usize = 1 << 18;

/// Where a group has fewer output channels, or a product fewer rows, than this, matrices do not pay.
const FEW: usize = 4;

impl FloatLinear {
    /// A layer with these weights, laid out as `shape` says, and one bias for each output channel.
    ///
    /// # Errors
    /// [`WrongLength`] where there are not as many of either.
    pub fn new(shape: Shape, weights: Vec<f32>, bias: Vec<f32>) -> Result<Self, WrongLength> {
        WrongLength::check(shape.weights(), weights.len())?;
        WrongLength::check(channels(&shape), bias.len())?;
        Ok(Self {
            shape,
            weights,
            bias,
        })
    }

    /// Its shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Its weights.
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// Its bias.
    pub fn bias(&self) -> &[f32] {
        &self.bias
    }

    /// Memory of its weights.
    pub fn bytes(&self) -> usize {
        4 * (self.weights.len() + self.bias.len())
    }

    /// y = W·x + b for one image.
    ///
    /// Shapes: `x` and `y` have [`Shape::inputs`] and [`Shape::outputs`] elements. Domain: any floats. Exactness: within
    /// [`Witness::tolerance`] of the exact result; the same bits on the same machine.
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn apply(&self, x: &[f32], y: &mut [f32]) {
        let per_channel = y.len() / self.bias.len();
        match &self.shape {
            Shape::Conv(_) => {
                for (plane, bias) in y.chunks_exact_mut(per_channel).zip(&self.bias) {
                    plane.fill(*bias);
                }
            }
            Shape::MatMul(matmul) => {
                let groups = y.chunks_exact_mut(matmul.rows * matmul.columns);
                for (y, bias) in groups.zip(self.bias.chunks_exact(matmul.columns)) {
                    y.chunks_exact_mut(matmul.columns)
                        .for_each(|row| row.copy_from_slice(bias));
                }
            }
        }
        self.accumulate(x, y);
    }

    /// y = W·x, as [`apply`](Self::apply).
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn apply_without_bias(&self, x: &[f32], y: &mut [f32]) {
        y.fill(0.0);
        self.accumulate(x, y);
    }

    /// y += W·x.
    fn accumulate(&self, x: &[f32], y: &mut [f32]) {
        let lengths = (self.shape.inputs(), self.shape.outputs());
        assert_eq!(
            (x.len(), y.len()),
            lengths,
            "x and y have the shape's lengths"
        );
        match &self.shape {
            Shape::Conv(conv) => self.convolve(conv, x, y),
            Shape::MatMul(matmul) => self.multiply(matmul, x, y),
        }
    }

    fn convolve(&self, conv: &Conv, x: &[f32], y: &mut [f32]) {
        let pixels = y.len() / conv.out_channels;
        let each = conv.out_channels / conv.groups;
        if each < FEW {
            let planes = y.chunks_exact_mut(pixels).enumerate();
            return for_each(planes.collect(), |(channel, plane): (usize, &mut [f32])| {
                runs(&self.shape, conv, channel, |run| {
                    let weight = self.weights[run.weight];
                    let y = &mut plane[run.to.clone()];
                    run.add(x, y, |y, x| *y += weight * x);
                });
            });
        }
        let taps = self.shape.taps();
        let image = x.len() / conv.groups;
        let pointwise = conv.kernel == [1, 1]
            && conv.stride == [1, 1]
            && conv.pad_begin == [0, 0]
            && conv.pad_end == [0, 0];
        let band = (PATCHES / taps).clamp(16, pixels.max(16));
        for (group, y) in y.chunks_exact_mut(each * pixels).enumerate() {
            let weights = &self.weights[group * each * taps..(group + 1) * each * taps];
            let weights = matrix(each, taps, weights);
            let x = &x[group * image..(group + 1) * image];
            let mut y = matrix_mut(each, pixels, y);
            let bands: Vec<_> = y.axis_chunks_iter_mut(Axis(1), band).enumerate().collect();
            for_each(bands, |(index, mut y): (usize, ArrayViewMut2<'_, f32>)| {
                let at = index * band..index * band + y.ncols();
                if pointwise {
                    let x = matrix(taps, pixels, x);
                    let x = x.slice_axis(Axis(1), Slice::from(at));
                    general_mat_mul(1.0, &weights, &x, 1.0, &mut y);
                } else {
                    let patches = patches(&self.shape, conv, x, at);
                    let patches = matrix(taps, y.ncols(), &patches);
                    general_mat_mul(1.0, &weights, &patches, 1.0, &mut y);
                }
            });
        }
    }

    fn multiply(&self, matmul: &MatMul, x: &[f32], y: &mut [f32]) {
        let MatMul {
            rows,
            inner,
            columns,
            ..
        } = *matmul;
        let width = columns.div_ceil(threads()).next_multiple_of(64);
        let groups = y.chunks_exact_mut(rows * columns).enumerate();
        for (group, y) in groups {
            let x = &x[group * rows * inner..(group + 1) * rows * inner];
            let weights = &self.weights[group * inner * columns..(group + 1) * inner * columns];
            if rows < FEW {
                for (x, y) in x.chunks_exact(inner).zip(y.chunks_exact_mut(columns)) {
                    let parts = y.chunks_mut(width).enumerate().collect();
                    for_each(parts, |(index, y): (usize, &mut [f32])| {
                        let first = index * width;
                        for (x, weights) in x.iter().zip(weights.chunks_exact(columns)) {
                            let weights = &weights[first..first + y.len()];
                            y.iter_mut().zip(weights).for_each(|(y, w)| *y += w * x);
                        }
                    });
                }
                continue;
            }
            let (x, weights) = (matrix(rows, inner, x), matrix(inner, columns, weights));
            let mut y = matrix_mut(rows, columns, y);
            let parts: Vec<_> = y.axis_chunks_iter_mut(Axis(1), width).enumerate().collect();
            for_each(parts, |(index, mut y): (usize, ArrayViewMut2<'_, f32>)| {
                let at = index * width..index * width + y.ncols();
                let weights = weights.slice_axis(Axis(1), Slice::from(at));
                general_mat_mul(1.0, &x, &weights, 1.0, &mut y);
            });
        }
    }
}

fn matrix(rows: usize, columns: usize, values: &[f32]) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, columns), values).expect("as many values as the matrix has")
}

fn matrix_mut(rows: usize, columns: usize, values: &mut [f32]) -> ArrayViewMut2<'_, f32> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("as many values as the matrix has")
}

#[cfg(feature = "parallel")]
fn for_each<T: Send>(items: Vec<T>, work: impl Fn(T) + Send + Sync) {
    use rayon::prelude::*;
    items.into_par_iter().for_each(work);
}

#[cfg(not(feature = "parallel"))]
fn for_each<T>(items: Vec<T>, work: impl Fn(T)) {
    items.into_iter().for_each(work);
}

#[cfg(feature = "parallel")]
fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(not(feature = "parallel"))]
fn threads() -> usize {
    1
}

/// Elements that one weight of a convolution meets, side by side in an output row.
struct Run {
    /// Place of the weight.
    weight: usize,
    /// In the output plane.
    to: Range<usize>,
    /// First element of the input, and the step to the next.
    from: usize,
    step: usize,
}

impl Run {
    /// The part of it that lies in these elements of the output plane, if any does.
    fn within(&self, wanted: &Range<usize>) -> Option<Self> {
        let to = self.to.start.max(wanted.start)..self.to.end.min(wanted.end);
        (!to.is_empty()).then(|| Self {
            weight: self.weight,
            from: self.from + (to.start - self.to.start) * self.step,
            to,
            step: self.step,
        })
    }

    #[inline(always)]
    fn add<T>(&self, x: &[f32], y: &mut [T], mut work: impl FnMut(&mut T, f32)) {
        let x = &x[self.from..];
        if self.step == 1 {
            y.iter_mut().zip(x).for_each(|(y, x)| work(y, *x));
        } else {
            let x = x.iter().step_by(self.step);
            y.iter_mut().zip(x).for_each(|(y, x)| work(y, *x));
        }
    }
}

/// All runs of an output channel; zero padding has none. `from` counts from the first element of the image.
#[inline(always)]
fn runs(shape: &Shape, conv: &Conv, channel: usize, mut work: impl FnMut(&Run)) {
    let inputs = conv.in_channels / conv.groups;
    let first = channel / (conv.out_channels / conv.groups) * inputs;
    let taps = shape.taps();
    for tap in 0..taps {
        let plane = first + tap / (conv.kernel[0] * conv.kernel[1]);
        tap_runs(shape, conv, tap, plane, |run| {
            run.weight = channel * taps + tap;
            work(run);
        });
    }
}

/// The runs of one tap over one plane of the input.
#[inline(always)]
fn tap_runs(shape: &Shape, conv: &Conv, tap: usize, plane: usize, mut work: impl FnMut(&mut Run)) {
    let [out_height, out_width] = shape.output_spatial();
    let [height, width] = conv.input;
    let (ky, kx) = (tap / conv.kernel[1] % conv.kernel[0], tap % conv.kernel[1]);
    let (dy, dx) = (ky * conv.dilation[0], kx * conv.dilation[1]);
    // Output columns whose input lies inside.
    let columns = inside(dx, conv.pad_begin[1], conv.stride[1], width, out_width);
    if columns.is_empty() {
        return;
    }
    let from = columns.start * conv.stride[1] + dx - conv.pad_begin[1];
    for row in inside(dy, conv.pad_begin[0], conv.stride[0], height, out_height) {
        let line = row * conv.stride[0] + dy - conv.pad_begin[0];
        work(&mut Run {
            weight: tap,
            to: row * out_width + columns.start..row * out_width + columns.end,
            from: (plane * height + line) * width + from,
            step: conv.stride[1],
        });
    }
}

/// The outputs `o` of `count` for which 0 ≤ o·stride + offset − pad < extent.
fn inside(offset: usize, pad: usize, stride: usize, extent: usize, count: usize) -> Range<usize> {
    let start = pad.saturating_sub(offset).div_ceil(stride);
    let end = (extent + pad).saturating_sub(offset).div_ceil(stride);
    start.min(count)..end.min(count).max(start.min(count))
}

/// The patches under the output pixels `at`, one column each.
fn patches(shape: &Shape, conv: &Conv, x: &[f32], at: Range<usize>) -> Vec<f32> {
    let taps = shape.taps();
    let columns = at.len();
    let mut patches = vec![0.0; taps * columns];
    for (tap, row) in patches.chunks_exact_mut(columns).enumerate() {
        let plane = tap / (conv.kernel[0] * conv.kernel[1]);
        tap_runs(shape, conv, tap, plane, |run| {
            let to = run.to.start.max(at.start)..run.to.end.min(at.end);
            if to.is_empty() {
                return;
            }
            run.from += (to.start - run.to.start) * run.step;
            let y = &mut row[to.start - at.start..to.end - at.start];
            run.add(x, y, |y, x| *y = x);
        });
    }
    patches
}

#[cfg(test)]
mod tests;
