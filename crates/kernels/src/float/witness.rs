//! The same outputs in binary64, and how far binary32 may be off.

use std::ops::Range;

use super::{FloatLinear, runs};
use crate::linear::{Conv, MatMul, Shape};

/// Unit roundoff of binary32.
const ROUNDOFF: f64 = 1.0 / (1 << 24) as f64;

/// γ(n) = n·u / (1 − n·u), u = 2⁻²⁴: how far a sum of n products in binary32 may be off, relative to the sum of their
/// magnitudes.
///
/// Source: Higham (2002), lemma 3.1; it holds for every order of summation.
pub fn gamma(terms: usize) -> f64 {
    let nu = terms as f64 * ROUNDOFF;
    if nu < 1.0 {
        nu / (1.0 - nu)
    } else {
        f64::INFINITY
    }
}

/// What a layer makes of an input, in binary64: the definition that binary32 is held against. Of all outputs, or of some that
/// lie side by side; indices count from the first of them.
#[derive(Clone, Debug)]
pub struct Witness {
    /// Σ w·x + b.
    pub sums: Vec<f64>,
    /// Σ |w|·|x| + |b|.
    pub magnitudes: Vec<f64>,
    /// Summands of each output, the bias included.
    terms: usize,
}

impl Witness {
    /// Computes it for one image.
    ///
    /// # Panics
    /// If `x` is not as long as the layer's input.
    pub fn new(layer: &FloatLinear, x: &[f32]) -> Self {
        Self::of(layer, x, 0..layer.shape().outputs())
    }

    /// Computes these outputs of one image.
    ///
    /// # Panics
    /// If `x` is not as long as the layer's input, or the layer has not so many outputs.
    pub fn of(layer: &FloatLinear, x: &[f32], outputs: Range<usize>) -> Self {
        let shape = layer.shape();
        assert_eq!(x.len(), shape.inputs(), "x has the shape's length");
        assert!(outputs.end <= shape.outputs(), "outputs of the shape");
        let mut pairs = vec![(0.0, 0.0); outputs.len()];
        match shape {
            Shape::Conv(conv) => convolve(layer, conv, x, outputs, &mut pairs),
            Shape::MatMul(matmul) => multiply(layer, matmul, x, outputs, &mut pairs),
        }
        let (sums, magnitudes) = pairs.into_iter().unzip();
        Self {
            sums,
            magnitudes,
            terms: shape.taps() + 1,
        }
    }

    /// How far an honest answer in binary32 may be from `sums[output]`: γ(K + 1) · Σ|w||x|, and what products that are
    /// too small for binary32 lose. The rounding of binary64 is 2⁻²⁹ of that and covered by a part in 2²⁰.
    pub fn tolerance(&self, output: usize) -> f64 {
        let underflow = self.terms as f64 * f64::from(f32::from_bits(1));
        gamma(self.terms) * self.magnitudes[output] * (1.0 + 1.0 / (1 << 20) as f64) + underflow
    }

    /// The first output where an answer is farther off than rounding explains; values that are not finite are.
    ///
    /// # Panics
    /// If `y` is not as long as the layer's output.
    pub fn refutes(&self, y: &[f32]) -> Option<usize> {
        assert_eq!(y.len(), self.sums.len(), "y has the shape's length");
        let mut all = y.iter().zip(&self.sums).enumerate();
        let within = |index, y: f32, sum: f64| (f64::from(y) - sum).abs() <= self.tolerance(index);
        all.position(|(index, (y, sum))| !within(index, *y, *sum))
    }
}

/// The lines of `each` elements that `range` touches: the line's number, and which of its elements.
fn lines(range: Range<usize>, each: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let last = range.end.div_ceil(each);
    (range.start / each..last).map(move |line| {
        let at = |end: usize| end.saturating_sub(line * each).min(each);
        (line, at(range.start)..at(range.end))
    })
}

fn convolve(
    layer: &FloatLinear,
    conv: &Conv,
    x: &[f32],
    outputs: Range<usize>,
    mut y: &mut [(f64, f64)],
) {
    let pixels = layer.shape().outputs() / conv.out_channels;
    for (channel, wanted) in lines(outputs, pixels) {
        let (plane, rest) = y.split_at_mut(wanted.len());
        y = rest;
        let bias = f64::from(layer.bias()[channel]);
        plane.fill((bias, bias.abs()));
        runs(layer.shape(), conv, channel, |run| {
            let Some(run) = run.within(&wanted) else {
                return;
            };
            let weight = f64::from(layer.weights()[run.weight]);
            let to = run.to.start - wanted.start..run.to.end - wanted.start;
            run.add(x, &mut plane[to], |y, x| {
                let product = weight * f64::from(x);
                *y = (y.0 + product, y.1 + product.abs());
            });
        });
    }
}

fn multiply(
    layer: &FloatLinear,
    matmul: &MatMul,
    x: &[f32],
    outputs: Range<usize>,
    mut y: &mut [(f64, f64)],
) {
    let MatMul {
        rows,
        inner,
        columns,
        ..
    } = *matmul;
    for (row, wanted) in lines(outputs, columns) {
        let (line, rest) = y.split_at_mut(wanted.len());
        y = rest;
        let group = row / rows;
        let bias = &layer.bias()[group * columns..(group + 1) * columns];
        for (y, bias) in line.iter_mut().zip(&bias[wanted.clone()]) {
            *y = (f64::from(*bias), f64::from(bias.abs()));
        }
        let weights = &layer.weights()[group * inner * columns..(group + 1) * inner * columns];
        let x = &x[row * inner..(row + 1) * inner];
        for (x, weights) in x.iter().zip(weights.chunks_exact(columns)) {
            let x = f64::from(*x);
            for (y, weight) in line.iter_mut().zip(&weights[wanted.clone()]) {
                let product = f64::from(*weight) * x;
                *y = (y.0 + product, y.1 + product.abs());
            }
        }
    }
}
