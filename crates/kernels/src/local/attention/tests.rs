use super::{Attention, Inputs, Products, Strides, attention, attention_with, products_with};
use crate::isa::Isa;
use crate::testing::Random;

const fn strides(matrix: usize, row: usize, column: usize) -> Strides {
    Strides {
        matrix,
        row,
        column,
    }
}

/// Heads interleaved as layers leave them, K as given or transposed.
fn shape(heads: usize, queries: usize, keys: usize, depth: usize, width: usize) -> Attention {
    Attention {
        heads,
        queries,
        keys,
        depth,
        width,
        q: strides(depth, heads * depth, 1),
        k: if keys.is_multiple_of(2) {
            strides(depth, heads * depth, 1)
        } else {
            strides(depth * keys, 1, keys)
        },
        v: strides(width, heads * width, 1),
        out: strides(width, heads * width, 1),
        scale: queries.is_multiple_of(2).then_some(0.37),
        mask: keys.is_multiple_of(3).then_some(strides(0, keys, 1)),
    }
}

const CASES: [(usize, usize, usize, usize, usize); 6] = [
    (1, 1, 1, 1, 1),
    (2, 5, 3, 7, 2),
    (3, 24, 33, 16, 17),
    (1, 25, 64, 64, 65),
    (2, 31, 197, 64, 64),
    (2, 6, 130, 3, 130),
];

fn buffers(random: &mut Random, shape: &Attention) -> [Vec<f32>; 4] {
    let Attention {
        heads,
        queries,
        keys,
        depth,
        width,
        ..
    } = *shape;
    let mask = if shape.mask.is_some() {
        queries * keys
    } else {
        0
    };
    [
        heads * queries * depth,
        heads * keys * depth,
        heads * keys * width,
        mask,
    ]
    .map(|len| random.floats(len).iter().map(|x| 2.0 * x).collect())
}

#[test]
fn every_instruction_set_gives_the_same_bits() {
    let mut random = Random::new(51);
    for (heads, queries, keys, depth, width) in CASES {
        let shape = shape(heads, queries, keys, depth, width);
        let [q, k, v, mask] = &buffers(&mut random, &shape);
        let inputs = Inputs { q, k, v, mask };
        let mut expected = vec![0.0; heads * queries * width];
        attention_with(Isa::Scalar, &shape, inputs, &mut expected).expect("lengths agree");
        for isa in Isa::available() {
            let mut out = vec![0.0; expected.len()];
            attention_with(isa, &shape, inputs, &mut out).expect("lengths agree");
            let same = out
                .iter()
                .zip(&expected)
                .all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "{} {shape:?}", isa.name());
        }
    }
}

#[test]
fn products_are_the_same_on_every_instruction_set_and_close_to_exact() {
    let mut random = Random::new(52);
    for (matrices, rows, inner, cols) in [
        (1, 1, 1, 1),
        (3, 7, 5, 9),
        (2, 13, 300, 70),
        (1, 6, 64, 200),
        (2, 3, 2, 16),
    ] {
        for flipped in [false, true] {
            let shape = Products {
                matrices,
                rows,
                inner,
                cols,
                a: strides(rows * inner, inner, 1),
                b: if flipped {
                    strides(inner * cols, 1, inner)
                } else {
                    strides(cols, matrices * cols, 1)
                },
                out: strides(cols, matrices * cols, 1),
            };
            let (a, b) = (
                random.floats(matrices * rows * inner),
                random.floats(matrices * inner * cols),
            );
            for isa in Isa::available() {
                let mut out = vec![0.0; matrices * rows * cols];
                products_with(isa, &shape, &a, &b, &mut out).expect("lengths agree");
                let mut expected = vec![0.0; out.len()];
                products_with(Isa::Scalar, &shape, &a, &b, &mut expected).expect("lengths agree");
                assert_eq!(out, expected, "{} {shape:?}", isa.name());
                for (index, got) in out.iter().enumerate() {
                    let (i, m, j) = (
                        index / cols / matrices,
                        index / cols % matrices,
                        index % cols,
                    );
                    let mut exact = (0.0, 0.0);
                    for t in 0..inner {
                        let b = b[m * shape.b.matrix + t * shape.b.row + j * shape.b.column];
                        let term = f64::from(a[(m * rows + i) * inner + t]) * f64::from(b);
                        exact = (exact.0 + term, exact.1 + term.abs());
                    }
                    let allowed = inner as f64 * f64::from(f32::EPSILON) * exact.1;
                    assert!(
                        (f64::from(*got) - exact.0).abs() <= allowed,
                        "{shape:?} {index}"
                    );
                }
            }
        }
    }
}

#[test]
fn attention_is_close_to_exact() {
    let mut random = Random::new(53);
    let mut worst = 0.0_f64;
    for (heads, queries, keys, depth, width) in CASES {
        let shape = shape(heads, queries, keys, depth, width);
        let [q, k, v, mask] = &buffers(&mut random, &shape);
        let mut out = vec![0.0; heads * queries * width];
        attention(&shape, Inputs { q, k, v, mask }, &mut out).expect("lengths agree");
        for head in 0..heads {
            for i in 0..queries {
                let at = |s: Strides, x: &[f32], row, column| {
                    f64::from(x[head * s.matrix + row * s.row + column * s.column])
                };
                let score = |j| {
                    let dot: f64 = (0..depth)
                        .map(|t| at(shape.q, q, i, t) * at(shape.k, k, j, t))
                        .sum();
                    let scaled = dot * f64::from(shape.scale.unwrap_or(1.0));
                    scaled + shape.mask.map_or(0.0, |s| at(s, mask, i, j))
                };
                let scores: Vec<f64> = (0..keys).map(score).collect();
                let max = scores.iter().fold(f64::MIN, |a, b| a.max(*b));
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                for c in 0..width {
                    let exact: f64 = (0..keys)
                        .map(|j| (scores[j] - max).exp() / sum * at(shape.v, v, j, c))
                        .sum();
                    let got = f64::from(out[head * width + i * heads * width + c]);
                    worst = worst.max((got - exact).abs());
                }
            }
        }
    }
    // Values lie within ±2, scores within ±260.
    println!("{worst:e}");
    assert!(worst <= 2e-5, "{worst:e}");
}

#[test]
fn buffers_that_are_too_short_are_refused() {
    let shape = shape(2, 3, 4, 5, 6);
    let (q, k, v) = ([0.0; 30], [0.0; 40], [0.0; 48]);
    let inputs = Inputs {
        q: &q,
        k: &k,
        v: &v,
        mask: &[],
    };
    let mut out = [0.0; 36];
    assert!(attention(&shape, inputs, &mut out).is_ok());
    assert!(attention(&shape, inputs, &mut out[1..]).is_err());
    assert!(
        attention(
            &shape,
            Inputs {
                q: &q[1..],
                ..inputs
            },
            &mut out
        )
        .is_err()
    );
    assert!(
        attention(
            &shape,
            Inputs {
                k: &k[1..],
                ..inputs
            },
            &mut out
        )
        .is_err()
    );
    assert!(
        attention(
            &shape,
            Inputs {
                v: &v[1..],
                ..inputs
            },
            &mut out
        )
        .is_err()
    );
    let masked = Attention {
        mask: Some(strides(0, 4, 1)),
        ..shape
    };
    assert!(attention(&masked, inputs, &mut out).is_err());
}
