//! The definition: plain loops over integers, reduced once. Every variant equals it bit for bit.

use super::shape::{Conv, MatMul, Shape, Valid};
use super::weights::Weights;
use crate::field::P;

/// `y = L(x) mod p`, canonical.
///
/// Shapes: `x` and `y` as `shape` says; lengths are the caller's to get right.
/// Domain: any words x. Exactness: exact; a sum of at most 2³¹ products below 2⁷⁰ stays inside i128.
pub(super) fn apply(shape: &Shape, weights: &Weights, x: &[u32], y: &mut [u32]) {
    match shape {
        Shape::Conv(conv) => convolve(conv, weights, x, y),
        Shape::MatMul(matmul) => multiply(matmul, weights, x, y),
    }
}

fn convolve(conv: &Valid<Conv>, weights: &Weights, x: &[u32], y: &mut [u32]) {
    let ([height, width], [out_height, out_width]) = (conv.input, conv.output());
    let in_group = conv.in_channels / conv.groups;
    let out_group = conv.out_channels / conv.groups;
    let mut places = y.iter_mut();
    for out in 0..conv.out_channels {
        for oy in 0..out_height {
            for ox in 0..out_width {
                let mut sum = 0i128;
                for channel in 0..in_group {
                    let plane = (out / out_group * in_group + channel) * height * width;
                    for ky in 0..conv.kernel[0] {
                        let Some(iy) = source(conv, 0, oy, ky) else {
                            continue;
                        };
                        for kx in 0..conv.kernel[1] {
                            let Some(ix) = source(conv, 1, ox, kx) else {
                                continue;
                            };
                            let weight = ((out * in_group + channel) * conv.kernel[0] + ky)
                                * conv.kernel[1]
                                + kx;
                            sum += i128::from(x[plane + iy * width + ix])
                                * i128::from(weights.value(weight));
                        }
                    }
                }
                if let Some(place) = places.next() {
                    *place = reduce(sum);
                }
            }
        }
    }
}

/// The input coordinate under tap `k` at output coordinate `o`; `None` in the padding.
pub(super) fn source(conv: &Conv, axis: usize, o: usize, k: usize) -> Option<usize> {
    let padded = o * conv.stride[axis] + k * conv.dilation[axis];
    padded
        .checked_sub(conv.pad_begin[axis])
        .filter(|&i| i < conv.input[axis])
}

fn multiply(matmul: &MatMul, weights: &Weights, x: &[u32], y: &mut [u32]) {
    let MatMul {
        groups: _,
        rows,
        inner,
        columns,
    } = *matmul;
    for (row, (x, y)) in x
        .chunks_exact(inner)
        .zip(y.chunks_exact_mut(columns))
        .enumerate()
    {
        let first = row / rows * inner * columns;
        for (column, y) in y.iter_mut().enumerate() {
            let weight = |k| i128::from(weights.value(first + k * columns + column));
            *y = reduce(
                x.iter()
                    .enumerate()
                    .map(|(k, &x)| i128::from(x) * weight(k))
                    .sum(),
            );
        }
    }
}

fn reduce(sum: i128) -> u32 {
    sum.rem_euclid(i128::from(P)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn border_taps_read_zero() {
        let conv = Conv {
            groups: 1,
            in_channels: 1,
            out_channels: 1,
            input: [2, 2],
            kernel: [3, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pad_begin: [1, 1],
            pad_end: [1, 1],
        };
        let shape = Shape::conv(conv).unwrap();
        let weights = Weights::new(vec![vec![1, 2, 3, 4, 5, 6, 7, 8, 9]], 0).unwrap();
        let mut y = [0; 4];
        apply(&shape, &weights, &[1, 10, 100, 1000], &mut y);
        assert_eq!(y, [9865, 8754, 6532, 5421]);
    }

    #[test]
    fn negative_sums_and_large_words_reduce_to_canonical() {
        let shape = Shape::matmul(MatMul {
            groups: 1,
            rows: 1,
            inner: 1,
            columns: 3,
        })
        .unwrap();
        let weights = Weights::new(vec![vec![-1, 1, -128]], 0).unwrap();
        let mut y = [0; 3];
        apply(&shape, &weights, &[P], &mut y);
        assert_eq!(y, [0, 0, 0]);
        apply(&shape, &weights, &[u32::MAX], &mut y); // 2³² − 1 = 2p + 1
        assert_eq!(y, [P - 1, 1, P - 128]);
    }
}
