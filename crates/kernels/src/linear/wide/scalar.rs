//! The definition: plain loops, every product and every sum reduced. Every variant equals it bit for bit.

use crate::field::Fp;
use crate::linear::scalar::source;
use crate::linear::shape::{Conv, MatMul, Shape, Valid};

/// `y = L(x) mod p`, canonical.
///
/// Shapes: `weights`, `x` and `y` as `shape` says; lengths are the caller's to get right.
/// Domain: any words. Exactness: exact.
pub(super) fn apply(shape: &Shape, weights: &[u32], x: &[u32], y: &mut [u32]) {
    match shape {
        Shape::Conv(conv) => convolve(conv, weights, x, y),
        Shape::MatMul(matmul) => multiply(matmul, weights, x, y),
    }
}

fn product(a: u32, b: u32) -> Fp {
    Fp::from_u64(u64::from(a) * u64::from(b))
}

fn convolve(conv: &Valid<Conv>, weights: &[u32], x: &[u32], y: &mut [u32]) {
    let ([height, width], [out_height, out_width]) = (conv.input, conv.output());
    let in_group = conv.in_channels / conv.groups;
    let out_group = conv.out_channels / conv.groups;
    let [down, across] = conv.kernel;
    let pixels = out_height * out_width;
    for (index, y) in y.iter_mut().enumerate() {
        let (out, oy, ox) = (
            index / pixels,
            index % pixels / out_width,
            index % out_width,
        );
        let mut sum = Fp::ZERO;
        for channel in 0..in_group {
            let plane = (out / out_group * in_group + channel) * height * width;
            let kernel = (out * in_group + channel) * down * across;
            for tap in 0..down * across {
                let at = [
                    source(conv, 0, oy, tap / across),
                    source(conv, 1, ox, tap % across),
                ];
                if let [Some(iy), Some(ix)] = at {
                    sum += product(x[plane + iy * width + ix], weights[kernel + tap]);
                }
            }
        }
        *y = sum.word();
    }
}

fn multiply(matmul: &MatMul, weights: &[u32], x: &[u32], y: &mut [u32]) {
    let MatMul {
        groups: _,
        rows,
        inner,
        columns,
    } = *matmul;
    let pairs = x.chunks_exact(inner).zip(y.chunks_exact_mut(columns));
    for (row, (x, y)) in pairs.enumerate() {
        let weights = &weights[row / rows * inner * columns..][..inner * columns];
        for (column, y) in y.iter_mut().enumerate() {
            let of_column = weights[column..].iter().step_by(columns);
            let terms = x.iter().zip(of_column).map(|(&x, &w)| product(x, w));
            *y = terms.sum::<Fp>().word();
        }
    }
}
