//! Every variant against the definition, the adjoint law, and the extremes of each accumulator.

use super::*;
use crate::field::{Fp, P};

/// A small generator of reproducible words.
pub(super) struct Words(pub(super) u64);

impl Words {
    pub(super) fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 32) as u32
    }

    pub(super) fn below(&mut self, limit: usize) -> usize {
        self.word() as usize % limit
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    pub(super) fn words(&mut self, count: usize) -> Vec<u32> {
        (0..count).map(|_| self.word()).collect()
    }

    pub(super) fn weights(&mut self, count: usize, planes: usize) -> Weights {
        let mut plane = || (0..count).map(|_| self.word() as i8).collect::<Vec<i8>>();
        let shift = if planes == 1 { 0 } else { 7 };
        Weights::new((0..planes).map(|_| plane()).collect(), shift).unwrap()
    }
}

pub(super) fn isas() -> Vec<Isa> {
    let available = Isa::available();
    for name in ["avx2", "avx512"] {
        if !available.iter().any(|isa| isa.name() == name) {
            println!("skipped: {name} (this CPU lacks it)");
        }
    }
    available
}

pub(super) fn defined(shape: &Shape, weights: &Weights, x: &[u32]) -> Vec<u32> {
    let mut y = vec![0; shape.outputs()];
    scalar::apply(shape, weights, x, &mut y);
    y
}

fn assert_variants(shape: &Shape, weights: &Weights, x: &[u32]) {
    let expected = defined(shape, weights, x);
    for isa in isas() {
        let linear = Linear::with_isa(isa, shape.clone(), weights).unwrap();
        let mut y = vec![u32::MAX; shape.outputs()];
        linear.apply(x, &mut y);
        let wrong = y
            .iter()
            .zip(&expected)
            .position(|(y, expected)| y != expected);
        assert_eq!(wrong, None, "{} at {shape:?}", isa.name());
    }
}

pub(super) fn conv(
    groups: usize,
    channels: [usize; 2],
    input: [usize; 2],
    kernel: [usize; 2],
) -> Conv {
    Conv {
        groups,
        in_channels: channels[0],
        out_channels: channels[1],
        input,
        kernel,
        stride: [1, 1],
        dilation: [1, 1],
        pad_begin: [0, 0],
        pad_end: [0, 0],
    }
}

pub(super) fn same(
    groups: usize,
    channels: [usize; 2],
    side: usize,
    kernel: usize,
    stride: usize,
) -> Conv {
    let pad = [kernel / 2; 2];
    let conv = conv(groups, channels, [side; 2], [kernel; 2]);
    Conv {
        stride: [stride; 2],
        pad_begin: pad,
        pad_end: pad,
        ..conv
    }
}

/// A random valid convolution with few multiplications.
pub(super) fn any_conv(rng: &mut Words) -> Shape {
    loop {
        let groups = rng.pick(&[1, 1, 1, 2, 3, 8]);
        let channels = if rng.below(4) == 0 {
            [1, 1]
        } else {
            [1 + rng.below(9), 1 + rng.below(15)]
        };
        let mut pair = |limit: usize| [rng.below(limit), rng.below(limit)];
        let conv = Conv {
            groups,
            in_channels: groups * channels[0],
            out_channels: groups * channels[1],
            input: pair(24).map(|n| n + 1),
            kernel: pair(5).map(|n| n + 1),
            stride: pair(4).map(|n| n + 1),
            dilation: pair(3).map(|n| n + 1),
            pad_begin: pair(4),
            pad_end: pair(4),
        };
        let shape = Shape::conv(conv).ok();
        if let Some(shape) = shape.filter(|shape| shape.macs() < 200_000) {
            return shape;
        }
    }
}

/// A random depthwise convolution of a common kernel.
pub(super) fn any_depthwise(rng: &mut Words) -> Shape {
    loop {
        let (kernel, stride, groups) = (rng.pick(&[3, 5]), rng.pick(&[1, 2]), 1 + rng.below(4));
        let mut pair = |limit: usize| [rng.below(limit), rng.below(limit)];
        let input = pair(40).map(|n| n + 1);
        let (pad_begin, pad_end) = (pair(7), pair(7));
        let out_channels = groups * (1 + rng.below(2));
        let conv = conv(groups, [groups, out_channels], input, [kernel; 2]);
        if let Ok(shape) = Shape::conv(Conv {
            stride: [stride; 2],
            pad_begin,
            pad_end,
            ..conv
        }) {
            return shape;
        }
    }
}

pub(super) fn any_matmul(rng: &mut Words) -> Shape {
    let mut upto = |limit: usize| 1 + rng.below(limit);
    let matmul = MatMul {
        groups: upto(3),
        rows: upto(9),
        inner: upto(70),
        columns: upto(70),
    };
    Shape::matmul(matmul).unwrap()
}

#[test]
fn random_shapes_equal_the_definition() {
    let mut rng = Words(1);
    for round in 0..600 {
        let shape = match round % 4 {
            0 => any_matmul(&mut rng),
            1 => any_depthwise(&mut rng),
            _ => any_conv(&mut rng),
        };
        let planes = rng.pick(&[1, 1, 2, 3]);
        let weights = rng.weights(shape.weights(), planes);
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
    }
}

#[test]
fn network_shapes_equal_the_definition() {
    let mut rng = Words(2);
    let transposed = |conv: &Conv| Conv {
        input: [conv.input[1], conv.input[0]],
        kernel: [conv.kernel[1], conv.kernel[0]],
        pad_begin: [conv.pad_begin[1], conv.pad_begin[0]],
        pad_end: [conv.pad_end[1], conv.pad_end[0]],
        ..conv.clone()
    };
    let wide = Conv {
        pad_begin: [0, 3],
        pad_end: [0, 3],
        ..conv(1, [5, 7], [1, 40], [1, 7])
    };
    for conv in [
        same(1, [3, 13], 30, 7, 2),
        same(1, [16, 20], 14, 3, 1),
        same(1, [16, 20], 14, 3, 2),
        same(1, [64, 33], 7, 3, 1),
        same(1, [64, 33], 7, 1, 1),
        same(1, [64, 33], 14, 1, 2),
        same(4, [32, 48], 9, 3, 1),
        same(24, [24, 24], 28, 3, 1),
        same(24, [24, 24], 28, 3, 2),
        same(5, [5, 5], 37, 3, 2),
        same(5, [5, 5], 33, 5, 1),
        same(5, [5, 10], 41, 5, 2),
        same(5, [5, 5], 3, 5, 2),
        same(24, [24, 48], 7, 5, 1),
        same(6, [6, 6], 15, 9, 1),
        same(6, [6, 6], 24, 13, 1),
        Conv {
            stride: [16, 16],
            ..conv(1, [3, 24], [48, 48], [16, 16])
        },
        Conv {
            dilation: [6, 6],
            pad_begin: [6, 6],
            pad_end: [6, 6],
            ..conv(1, [9, 7], [13, 13], [3, 3])
        },
        transposed(&wide),
        wide,
        conv(1, [10, 6], [1, 1], [1, 1]),
        conv(2, [10, 6], [5, 1], [2, 1]),
        conv(1, [4, 6], [20, 2], [1, 1]),
    ] {
        let shape = Shape::conv(conv).unwrap();
        let weights = rng.weights(shape.weights(), 1);
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
    }
    for (rows, inner, columns) in [
        (1, 300, 1000),
        (7, 64, 33),
        (50, 129, 31),
        (2, 1, 1),
        (200, 1500, 3),
    ] {
        let shape = Shape::matmul(MatMul {
            groups: 1,
            rows,
            inner,
            columns,
        })
        .unwrap();
        let weights = rng.weights(shape.weights(), 1);
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
    }
}

#[test]
fn tiles_equal_the_definition() {
    let mut rng = Words(6);
    let uneven = Conv {
        pad_begin: [0, 2],
        pad_end: [1, 0],
        ..conv(1, [32, 47], [15, 18], [3, 3])
    };
    let apart = Conv {
        pad_begin: [3, 3],
        pad_end: [6, 7],
        ..conv(1, [35, 80], [9, 3], [3, 3])
    };
    for conv in [
        same(1, [32, 32], 12, 3, 1),
        same(1, [33, 64], 13, 3, 1),
        same(1, [32, 40], 28, 3, 1),
        same(1, [100, 33], 14, 3, 1),
        uneven,
        apart,
    ] {
        let shape = Shape::conv(conv).unwrap();
        let mut small = |limit: usize| -> Vec<i8> {
            let weight = |_| (rng.below(2 * limit + 1) as isize - limit as isize) as i8;
            (0..shape.weights()).map(weight).collect()
        };
        // Few folds, many, and weights that cannot be taken to the points.
        let planes = [small(3), small(127), vec![-128; shape.weights()]];
        for plane in planes {
            let weights = Weights::new(vec![plane], 0).unwrap();
            assert_variants(&shape, &weights, &rng.words(shape.inputs()));
            let extremes = (0..shape.inputs())
                .map(|_| rng.pick(&EXTREMES))
                .collect::<Vec<_>>();
            assert_variants(&shape, &weights, &extremes);
        }
    }
}

#[test]
fn several_inputs_are_answered_like_each_alone() {
    let mut rng = Words(7);
    for shape in [
        Shape::conv(same(1, [32, 48], 13, 3, 1)).unwrap(),
        Shape::conv(same(1, [20, 40], 7, 3, 1)).unwrap(),
        Shape::conv(same(1, [20, 40], 9, 1, 2)).unwrap(),
        Shape::conv(same(6, [6, 12], 9, 3, 1)).unwrap(),
        Shape::matmul(MatMul {
            groups: 3,
            rows: 2,
            inner: 5000,
            columns: 40,
        })
        .unwrap(),
    ] {
        let plane = (0..shape.weights()).map(|_| rng.below(41) as i8 - 20);
        let weights = Weights::new(vec![plane.collect::<Vec<i8>>()], 0).unwrap();
        let x: Vec<Vec<u32>> = (0..5).map(|_| rng.words(shape.inputs())).collect();
        let x: Vec<&[u32]> = x.iter().map(Vec::as_slice).collect();
        let expected: Vec<Vec<u32>> = x.iter().map(|x| defined(&shape, &weights, x)).collect();
        for isa in isas() {
            let linear = Linear::with_isa(isa, shape.clone(), &weights).unwrap();
            let mut y = vec![vec![u32::MAX; shape.outputs()]; x.len()];
            let mut slices: Vec<&mut [u32]> = y.iter_mut().map(Vec::as_mut_slice).collect();
            linear.apply_many(&x, &mut slices);
            assert_eq!(y, expected, "{} at {shape:?}", isa.name());
            linear.apply_many(&[], &mut []);
        }
    }
}

#[test]
fn images_in_bytes_equal_the_definition() {
    let mut rng = Words(8);
    let cropped = Conv {
        stride: [2, 3],
        ..conv(1, [5, 50], [12, 11], [3, 4])
    };
    let apart = Conv {
        dilation: [2, 1],
        pad_begin: [4, 0],
        pad_end: [0, 3],
        ..conv(1, [19, 16], [7, 7], [3, 3])
    };
    for conv in [
        same(1, [48, 40], 7, 3, 1),
        same(1, [16, 17], 7, 1, 1),
        same(1, [21, 70], 7, 3, 2),
        same(1, [3, 20], 41, 7, 2),
        same(1, [3, 70], 33, 7, 1),
        same(1, [600, 4], 5, 3, 1),
        cropped,
        apart,
    ] {
        let shape = Shape::conv(conv).unwrap();
        let weights = rng.weights(shape.weights(), 1);
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
        let least = Weights::new(vec![vec![-128; shape.weights()]], 0).unwrap();
        assert_variants(&shape, &least, &vec![u32::MAX; shape.inputs()]);
    }
}

/// Words whose limbs, halves or centred halves are extreme.
pub(super) const EXTREMES: [u32; 10] = [
    0,
    1,
    P - 1,
    P,
    P + 1,
    u32::MAX,
    P / 2,
    P / 2 + 1,
    0x3fff_8000,
    0x7fff_7fff,
];

#[test]
fn extreme_words_and_weights_do_not_overflow() {
    let lengths = [
        1, 3, 4, 120, 121, 124, 125, 507, 508, 509, 4096, 4097, 66_311, 66_312, 100_352,
    ];
    for terms in lengths {
        let product = Shape::matmul(MatMul {
            groups: 1,
            rows: 1,
            inner: terms,
            columns: 17,
        })
        .unwrap();
        let pixel = Shape::conv(conv(1, [terms, 2], [1, 3], [1, 1])).unwrap();
        let row = Shape::conv(conv(1, [1, 1], [1, terms + 1], [1, terms])).unwrap();
        for weight in [-128, -127, 127] {
            for word in EXTREMES {
                if terms > 5000 && ![P - 1, u32::MAX, 0x7fff_7fff].contains(&word) {
                    continue;
                }
                for shape in [&product, &pixel, &row] {
                    if terms > 5000 && shape == &row {
                        continue;
                    }
                    let weights = Weights::new(vec![vec![weight; shape.weights()]], 0).unwrap();
                    assert_variants(shape, &weights, &vec![word; shape.inputs()]);
                }
            }
        }
    }
}

#[test]
fn depthwise_extremes_do_not_overflow() {
    for kernel in [3, 5, 10] {
        let shape = Shape::conv(same(4, [4, 4], 18, kernel, 1)).unwrap();
        for weight in [-128, 127] {
            for word in EXTREMES {
                let weights = Weights::new(vec![vec![weight; shape.weights()]; 2], 8).unwrap();
                assert_variants(&shape, &weights, &vec![word; shape.inputs()]);
            }
        }
    }
}

#[test]
fn zero_weights_give_zero() {
    for shape in [
        Shape::conv(same(1, [5, 9], 6, 3, 1)).unwrap(),
        Shape::conv(same(5, [5, 5], 6, 3, 1)).unwrap(),
        Shape::matmul(MatMul {
            groups: 2,
            rows: 3,
            inner: 9,
            columns: 20,
        })
        .unwrap(),
    ] {
        let weights = Weights::new(vec![vec![0; shape.weights()]], 0).unwrap();
        for isa in isas() {
            let mut y = vec![1; shape.outputs()];
            let linear = Linear::with_isa(isa, shape.clone(), &weights).unwrap();
            linear.apply(&vec![P - 1; shape.inputs()], &mut y);
            assert!(
                y.iter().all(|&word| word == 0),
                "{} at {shape:?}",
                isa.name()
            );
        }
    }
}

#[test]
fn adjoint_is_the_transpose() {
    let mut rng = Words(3);
    let dot = |v: &[u32], y: &[u32]| {
        let product = |(&v, &y): (&u32, &u32)| Fp::from_u64(u64::from(v) * u64::from(y));
        v.iter()
            .zip(y)
            .map(product)
            .fold(Fp::ZERO, |sum, term| sum + term)
    };
    let spread = |outer: &[u32], inner: &[u32]| -> Vec<u32> {
        let product = |o: u32, i: u32| Fp::from_u64(u64::from(o) * u64::from(i)).word();
        outer
            .iter()
            .flat_map(|&o| inner.iter().map(move |&i| product(o, i)))
            .collect()
    };
    for round in 0..300 {
        let shape = match round % 4 {
            0 => any_matmul(&mut rng),
            1 => Shape::conv(same(1, [1 + round, 7], 9, 1, 1 + round / 4 % 4)).unwrap(),
            _ => any_conv(&mut rng),
        };
        let planes = rng.pick(&[1, 2]);
        let weights = rng.weights(shape.weights(), planes);
        let (rows, cols) = shape.output_rows_cols();
        let (outer, inner) = (rng.words(rows), rng.words(cols));
        let x = rng.words(shape.inputs());
        let expected = dot(&spread(&outer, &inner), &defined(&shape, &weights, &x));
        for isa in isas() {
            let a = match adjoint_with(isa, &shape, &weights, &outer, &inner).unwrap() {
                Adjoint::Dense(a) => a,
                Adjoint::RankOne { outer, inner } => {
                    assert_eq!((outer.len(), inner.len()), shape.input_rows_cols());
                    assert!(outer.iter().chain(&inner).all(|&word| word < P));
                    spread(&outer, &inner)
                }
            };
            assert!(a.len() == shape.inputs() && a.iter().all(|&word| word < P));
            assert_eq!(dot(&a, &x), expected, "{} at {shape:?}", isa.name());
        }
    }
}

#[test]
fn adjoint_keeps_rank_one_where_it_is_exact() {
    let ones = |shape: &Shape| Weights::new(vec![vec![1; shape.weights()]], 0).unwrap();
    for (shape, rank_one) in [
        (
            Shape::matmul(MatMul {
                groups: 1,
                rows: 2,
                inner: 3,
                columns: 4,
            })
            .unwrap(),
            true,
        ),
        (
            Shape::matmul(MatMul {
                groups: 2,
                rows: 2,
                inner: 3,
                columns: 4,
            })
            .unwrap(),
            false,
        ),
        (Shape::conv(same(1, [2, 3], 4, 1, 1)).unwrap(), true),
        (Shape::conv(same(2, [2, 4], 4, 1, 1)).unwrap(), false),
        (Shape::conv(same(1, [2, 3], 5, 1, 2)).unwrap(), true),
        (Shape::conv(same(2, [2, 4], 5, 1, 2)).unwrap(), false),
        (Shape::conv(same(1, [2, 3], 4, 3, 1)).unwrap(), false),
    ] {
        let (rows, cols) = shape.output_rows_cols();
        let a = adjoint(&shape, &ones(&shape), &vec![1; rows], &vec![1; cols]).unwrap();
        assert_eq!(matches!(a, Adjoint::RankOne { .. }), rank_one, "{shape:?}");
    }
}

#[test]
fn adjoint_extremes_do_not_overflow() {
    // 300 terms exceed one fold of the contraction, 33 taps three of the spreading.
    for shape in [
        Shape::matmul(MatMul {
            groups: 2,
            rows: 1,
            inner: 3,
            columns: 600,
        })
        .unwrap(),
        Shape::conv(conv(1, [2, 600], [1, 40], [1, 33])).unwrap(),
    ] {
        let weights = Weights::new(vec![vec![-128; shape.weights()]], 0).unwrap();
        let (rows, cols) = shape.output_rows_cols();
        let v = |count| vec![u32::MAX - 1; count]; // 2p ≡ 0
        let p_minus_one = |count| vec![P - 1; count];
        for isa in isas() {
            let zero = adjoint_with(isa, &shape, &weights, &v(rows), &v(cols)).unwrap();
            let Adjoint::Dense(zero) = zero else {
                panic!("dense")
            };
            assert!(zero.iter().all(|&word| word == 0));
            let a = adjoint_with(
                isa,
                &shape,
                &weights,
                &p_minus_one(rows),
                &p_minus_one(cols),
            )
            .unwrap();
            let b = adjoint_with(isa, &shape, &weights, &vec![1; rows], &vec![1; cols]).unwrap();
            assert_eq!(a, b, "(−1)·(−1) = 1 on {}", isa.name());
        }
    }
}

#[test]
fn wrong_weight_counts_are_refused() {
    let shape = Shape::matmul(MatMul {
        groups: 1,
        rows: 1,
        inner: 2,
        columns: 3,
    })
    .unwrap();
    let weights = Weights::new(vec![vec![0; 5]], 0).unwrap();
    let error = ShapeError::WeightCount {
        expected: 6,
        got: 5,
    };
    assert_eq!(
        Linear::new(shape.clone(), &weights).map(|_| ()),
        Err(error.clone())
    );
    assert_eq!(adjoint(&shape, &weights, &[1], &[1, 1, 1]), Err(error));
}

#[cfg(feature = "parallel")]
#[test]
fn parallel_equals_sequential() {
    let mut rng = Words(4);
    let pool = |threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
    };
    let pools = [1, 2, 5].map(pool);
    for shape in [
        Shape::conv(same(1, [64, 50], 28, 3, 1)).unwrap(),
        Shape::conv(same(1, [128, 100], 7, 3, 1)).unwrap(),
        Shape::conv(same(96, [96, 96], 56, 3, 1)).unwrap(),
        Shape::conv(same(4, [64, 64], 28, 3, 1)).unwrap(),
        Shape::matmul(MatMul {
            groups: 1,
            rows: 100,
            inner: 128,
            columns: 200,
        })
        .unwrap(),
        Shape::matmul(MatMul {
            groups: 1,
            rows: 1,
            inner: 2000,
            columns: 1000,
        })
        .unwrap(),
    ] {
        assert!(
            jobs::wanted(shape.macs()) > 0 && shape.macs() > 1 << 20,
            "large enough to be shared"
        );
        let weights = rng.weights(shape.weights(), 1);
        let x = rng.words(shape.inputs());
        for isa in isas().into_iter().filter(|&isa| isa != Isa::Scalar) {
            let linear = Linear::with_isa(isa, shape.clone(), &weights).unwrap();
            let results = pools.each_ref().map(|pool| {
                let mut y = vec![0; shape.outputs()];
                pool.install(|| linear.apply(&x, &mut y));
                y
            });
            assert!(
                results[0] == results[1] && results[0] == results[2],
                "{} at {shape:?}",
                isa.name()
            );
        }
    }
}
