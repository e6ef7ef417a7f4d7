//! The same outputs in binary64, and how far binary32 may be off.

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

/// What a layer makes of an input, in binary64: the definition that binary32 is held against.
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
        let shape = layer.shape();
        assert_eq!(x.len(), shape.inputs(), "x has the shape's length");
        let mut pairs = vec![(0.0, 0.0); shape.outputs()];
        match shape {
            Shape::Conv(conv) => convolve(layer, conv, x, &mut pairs),
            Shape::MatMul(matmul) => multiply(layer, matmul, x, &mut pairs),
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

fn convolve(layer: &FloatLinear, conv: &Conv, x: &[f32], y: &mut [(f64, f64)]) {
    let pixels = y.len() / conv.out_channels;
    for (channel, plane) in y.chunks_exact_mut(pixels).enumerate() {
        let bias = f64::from(layer.bias()[channel]);
        plane.fill((bias, bias.abs()));
        runs(layer.shape(), conv, channel, |run| {
            let weight = f64::from(layer.weights()[run.weight]);
            run.add(x, &mut plane[run.to.clone()], |y, x| {
                let product = weight * f64::from(x);
                *y = (y.0 + product, y.1 + product.abs());
            });
        });
    }
}

fn multiply(layer: &FloatLinear, matmul: &MatMul, x: &[f32], y: &mut [(f64, f64)]) {
    let MatMul {
        rows,
        inner,
        columns,
        ..
    } = *matmul;
    let lines = x.chunks_exact(inner).zip(y.chunks_exact_mut(columns));
    for (row, (x, y)) in lines.enumerate() {
        let group = row / rows;
        let bias = &layer.bias()[group * columns..(group + 1) * columns];
        for (y, bias) in y.iter_mut().zip(bias) {
            *y = (f64::from(*bias), f64::from(bias.abs()));
        }
        let weights = &layer.weights()[group * inner * columns..(group + 1) * inner * columns];
        for (x, weights) in x.iter().zip(weights.chunks_exact(columns)) {
            let x = f64::from(*x);
            for (y, weight) in y.iter_mut().zip(weights) {
                let product = f64::from(*weight) * x;
                *y = (y.0 + product, y.1 + product.abs());
            }
        }
    }
}
