//! Every variant against the definition, the two shares against the whole, the adjoint law, and extremes.

use super::*;
use crate::field::{Fp, P};
use crate::linear::tests::{
    EXTREMES, Words, any_conv, any_depthwise, any_matmul, conv, defined, isas, same,
};
use crate::linear::{Conv, Linear, MatMul, wipe};

/// Full-width weights, extreme ones more often than by chance.
fn share(rng: &mut Words, count: usize) -> Share {
    let extremes = [0, 1, P - 1, P / 2, P / 2 + 1];
    let weight = |_| match rng.below(8) {
        0 => rng.pick(&extremes),
        _ => Fp::from_u64(rng.word().into()).word(),
    };
    Share::new((0..count).map(weight).collect()).unwrap()
}

fn all(word: u32, count: usize) -> Share {
    Share::new(vec![word; count]).unwrap()
}

fn matmul(groups: usize, rows: usize, inner: usize, columns: usize) -> Shape {
    Shape::matmul(MatMul {
        groups,
        rows,
        inner,
        columns,
    })
    .unwrap()
}

fn assert_variants(shape: &Shape, weights: &Share, x: &[u32]) {
    let mut expected = vec![0; shape.outputs()];
    scalar::apply(shape, weights.words(), x, &mut expected);
    for isa in isas() {
        let linear = WideLinear::with_isa(isa, shape.clone(), weights).unwrap();
        let mut y = vec![u32::MAX; shape.outputs()];
        linear.apply(x, &mut y);
        let wrong = y.iter().zip(&expected).position(|(y, e)| y != e);
        assert_eq!(wrong, None, "{} at {shape:?}", isa.name());
    }
}

#[test]
fn the_definition_is_a_sum_of_products() {
    let shape = matmul(1, 1, 2, 2);
    let weights = Share::new(vec![P - 1, 2, 3, P / 2]).unwrap();
    let mut y = [0; 2];
    scalar::apply(&shape, weights.words(), &[5, u32::MAX], &mut y);
    // 2³² − 1 = 2p + 1 ≡ 1.
    assert_eq!(y, [P - 5 + 3, 10 + P / 2]);
    let shape = Shape::conv(Conv {
        pad_begin: [0, 1],
        ..conv(1, [1, 1], [1, 2], [1, 2])
    })
    .unwrap();
    let weights = Share::new(vec![1 << 30, 3]).unwrap();
    scalar::apply(&shape, weights.words(), &[2, 7], &mut y);
    // 2³⁰·2 = 2³¹ ≡ 1.
    assert_eq!(y, [6, 1 + 21]);
}

#[test]
fn random_shapes_equal_the_definition() {
    let mut rng = Words(11);
    for round in 0..600 {
        let shape = match round % 4 {
            0 => any_matmul(&mut rng),
            1 => any_depthwise(&mut rng),
            _ => any_conv(&mut rng),
        };
        let weights = share(&mut rng, shape.weights());
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
    }
}

#[test]
fn network_shapes_equal_the_definition() {
    let mut rng = Words(12);
    for conv in [
        same(1, [3, 13], 30, 7, 2),
        same(1, [16, 20], 14, 3, 2),
        same(1, [64, 33], 7, 3, 1),
        same(1, [150, 33], 9, 3, 1),
        same(1, [64, 33], 14, 1, 2),
        same(1, [64, 33], 14, 1, 3),
        same(4, [32, 48], 9, 3, 1),
        same(24, [24, 24], 28, 3, 2),
        same(24, [24, 48], 7, 5, 1),
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
        conv(1, [10, 6], [1, 1], [1, 1]),
        conv(1, [4, 6], [20, 2], [1, 1]),
        // By tiles, with channels and sides that fill neither vectors nor tiles.
        same(1, [32, 32], 12, 3, 1),
        same(1, [33, 64], 13, 3, 1),
        same(1, [100, 33], 14, 3, 1),
        Conv {
            pad_begin: [0, 2],
            pad_end: [1, 0],
            ..conv(1, [32, 47], [15, 18], [3, 3])
        },
    ] {
        let shape = Shape::conv(conv).unwrap();
        let weights = share(&mut rng, shape.weights());
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
    }
    for [rows, inner, columns] in [
        [1, 300, 1000],
        [7, 64, 33],
        [50, 129, 31],
        [2, 1, 1],
        [200, 1500, 3],
        [13, 1025, 70],
    ] {
        let shape = matmul(1, rows, inner, columns);
        let weights = share(&mut rng, shape.weights());
        assert_variants(&shape, &weights, &rng.words(shape.inputs()));
    }
}

#[test]
fn extreme_words_and_weights_do_not_overflow() {
    for terms in [
        1, 7, 8, 9, 15, 16, 17, 1023, 1024, 1025, 4608, 25_088, 100_352,
    ] {
        let product = matmul(1, 1, terms, 17);
        let pixel = Shape::conv(conv(1, [terms, 2], [1, 3], [1, 1])).unwrap();
        for weight in [1, P / 2, P / 2 + 1, P - 1] {
            for word in EXTREMES {
                if terms > 5000 && ![P / 2, P / 2 + 1].contains(&word) {
                    continue;
                }
                for shape in [&product, &pixel] {
                    let weights = all(weight, shape.weights());
                    assert_variants(shape, &weights, &vec![word; shape.inputs()]);
                }
            }
        }
    }
    let tiles = Shape::conv(same(1, [64, 32], 14, 3, 1)).unwrap();
    for weight in [P / 2, P / 2 + 1, P - 1] {
        for word in EXTREMES {
            let weights = all(weight, tiles.weights());
            assert_variants(&tiles, &weights, &vec![word; tiles.inputs()]);
        }
    }
}

#[test]
fn small_weights_give_what_small_weights_give() {
    let mut rng = Words(13);
    for shape in [
        Shape::conv(same(1, [32, 40], 14, 3, 1)).unwrap(),
        Shape::conv(same(3, [6, 9], 9, 3, 2)).unwrap(),
        matmul(2, 5, 70, 40),
    ] {
        let weights = rng.weights(shape.weights(), 2);
        let lifted = (0..weights.len()).map(|i| Fp::from_signed(weights.value(i)).word());
        let lifted = Share::new(lifted.collect()).unwrap();
        let x = rng.words(shape.inputs());
        let mut y = vec![0; shape.outputs()];
        WideLinear::new(shape.clone(), &lifted)
            .unwrap()
            .apply(&x, &mut y);
        assert_eq!(y, defined(&shape, &weights, &x), "{shape:?}");
    }
}

#[test]
fn answers_of_both_shares_add_up() {
    let mut rng = Words(14);
    let split = Split::new([7; 32]);
    for (layer, planes) in [(0, 1), (1, 2), (u64::MAX, 1)] {
        let shape = Shape::conv(same(1, [40, 50], 13, 3, 1)).unwrap();
        let weights = rng.weights(shape.weights(), planes);
        let first = split.first(layer, shape.weights());
        let second = split.second(layer, &weights);
        let x = rng.words(shape.inputs());
        let answer = |share: &Share| {
            let mut y = vec![0; shape.outputs()];
            let linear = WideLinear::new(shape.clone(), share).unwrap();
            linear.apply(&x, &mut y);
            y
        };
        let sum = |(&a, b): (&u32, u32)| Fp::from_u64(u64::from(a) + u64::from(b)).word();
        let both: Vec<u32> = answer(&first)
            .iter()
            .zip(answer(&second))
            .map(sum)
            .collect();
        let mut y = vec![0; shape.outputs()];
        let linear = Linear::new(shape.clone(), &weights).unwrap();
        linear.apply(&x, &mut y);
        assert_eq!(both, y);
    }
}

#[test]
fn several_inputs_are_answered_like_each_alone() {
    let mut rng = Words(15);
    for shape in [
        Shape::conv(same(1, [32, 48], 13, 3, 1)).unwrap(),
        Shape::conv(same(6, [6, 12], 9, 3, 1)).unwrap(),
        matmul(3, 2, 2500, 40),
    ] {
        let weights = share(&mut rng, shape.weights());
        let x: Vec<Vec<u32>> = (0..5).map(|_| rng.words(shape.inputs())).collect();
        let x: Vec<&[u32]> = x.iter().map(Vec::as_slice).collect();
        for isa in isas() {
            let linear = WideLinear::with_isa(isa, shape.clone(), &weights).unwrap();
            let mut y = vec![vec![u32::MAX; shape.outputs()]; x.len()];
            let mut slices: Vec<&mut [u32]> = y.iter_mut().map(Vec::as_mut_slice).collect();
            linear.apply_many(&x, &mut slices);
            for (x, y) in x.iter().zip(&y) {
                let mut alone = vec![0; shape.outputs()];
                linear.apply(x, &mut alone);
                assert_eq!(*y, alone, "{} at {shape:?}", isa.name());
            }
            linear.apply_many(&[], &mut []);
        }
    }
}

#[test]
fn adjoint_is_the_transpose() {
    let mut rng = Words(16);
    let product = |a: u32, b: u32| Fp::from_u64(u64::from(a) * u64::from(b));
    let dot = |v: &[u32], y: &[u32]| -> Fp { v.iter().zip(y).map(|(&v, &y)| product(v, y)).sum() };
    let spread = |outer: &[u32], inner: &[u32]| -> Vec<u32> {
        let row = |&o: &u32| inner.iter().map(move |&i| product(o, i).word());
        outer.iter().flat_map(row).collect()
    };
    let fixed = [
        matmul(2, 1, 3, 600),
        matmul(1, 2, 50, 95),
        Shape::conv(conv(1, [2, 600], [1, 40], [1, 33])).unwrap(),
    ];
    for round in 0..300 {
        let shape = match round % 4 {
            0 => any_matmul(&mut rng),
            1 => Shape::conv(same(1, [1 + round, 7], 9, 1, 1)).unwrap(),
            2 if round < 12 => fixed[round / 4].clone(),
            _ => any_conv(&mut rng),
        };
        let (rows, cols) = shape.output_rows_cols();
        let mut cases = vec![(
            share(&mut rng, shape.weights()),
            rng.words(rows),
            rng.words(cols),
        )];
        if round < 12 {
            let largest = |count| vec![P - 1; count];
            cases.push((all(P - 1, shape.weights()), largest(rows), largest(cols)));
        }
        let x = rng.words(shape.inputs());
        for (weights, outer, inner) in cases {
            let mut y = vec![0; shape.outputs()];
            scalar::apply(&shape, weights.words(), &x, &mut y);
            let expected = dot(&spread(&outer, &inner), &y);
            for isa in isas() {
                let a = adjoint_of_share_with(isa, &shape, &weights, &outer, &inner).unwrap();
                let a = match a {
                    Adjoint::Dense(a) => a,
                    Adjoint::RankOne { outer, inner } => spread(&outer, &inner),
                };
                assert!(a.len() == shape.inputs() && a.iter().all(|&word| word < P));
                assert_eq!(dot(&a, &x), expected, "{} at {shape:?}", isa.name());
            }
        }
    }
}

#[test]
fn weights_that_do_not_fit_are_refused() {
    use crate::keystream::NotCanonical;
    for wrong in [P, P + 1, u32::MAX] {
        let refused = Share::new(vec![1, wrong]).err();
        assert_eq!(refused, Some(NotCanonical));
    }
    let shape = matmul(1, 1, 2, 3);
    let error = ShapeError::WeightCount {
        expected: 6,
        got: 5,
    };
    let linear = WideLinear::new(shape.clone(), &all(1, 5)).map(|_| ());
    assert_eq!(linear, Err(error.clone()));
    let a = adjoint_of_share(&shape, &all(1, 5), &[1], &[1; 3]);
    assert_eq!(a, Err(error));
}

#[test]
fn neither_share_nor_layer_can_be_printed() {
    let shape = matmul(1, 1, 1, 1);
    let share = all(123_456, 1);
    let linear = WideLinear::new(shape, &share).unwrap();
    let text = format!("{share:?} {linear:?} {:?}", Split::new([9; 32]));
    assert!(
        !text.contains("123456") && text.contains("Split(..)"),
        "{text}"
    );
}

#[cfg(target_arch = "x86_64")]
#[test]
fn wiping_leaves_no_word_behind() {
    use crate::linear::vectors::Vectors;
    let held = || -> usize {
        let of = |isa| match isa {
            Isa::Scalar | Isa::Portable => 0,
            Isa::Avx2(token) => token.scratch(|scratch| scratch.lines.len()),
            Isa::Avx512(token) => token.scratch(|scratch| scratch.lines.len()),
        };
        Isa::available().into_iter().map(of).sum()
    };
    for shape in [
        matmul(1, 3, 40, 40),
        Shape::conv(same(1, [5, 6], 9, 3, 2)).unwrap(),
    ] {
        assert_variants(&shape, &all(3, shape.weights()), &vec![5; shape.inputs()]);
        assert_eq!(held() > 0, Isa::available().len() > 2);
        wipe();
        assert_eq!(held(), 0);
    }
}

#[cfg(feature = "parallel")]
#[test]
fn parallel_equals_sequential() {
    let mut rng = Words(17);
    let pools = [1, 2, 5].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    for shape in [
        Shape::conv(same(1, [64, 50], 28, 3, 1)).unwrap(),
        Shape::conv(same(1, [128, 100], 7, 3, 1)).unwrap(),
        Shape::conv(same(96, [96, 96], 56, 3, 1)).unwrap(),
        Shape::conv(same(4, [64, 64], 28, 3, 1)).unwrap(),
        matmul(1, 100, 128, 200),
        matmul(1, 1, 2000, 1000),
    ] {
        assert!(shape.macs() > 1 << 20, "large enough to be shared");
        let weights = share(&mut rng, shape.weights());
        let x = rng.words(shape.inputs());
        for isa in isas().into_iter().filter(|&isa| isa != Isa::Scalar) {
            let linear = WideLinear::with_isa(isa, shape.clone(), &weights).unwrap();
            let [one, rest @ ..] = pools.each_ref().map(|pool| {
                let mut y = vec![0; shape.outputs()];
                pool.install(|| linear.apply(&x, &mut y));
                y
            });
            let same = rest.iter().all(|y| *y == one);
            assert!(same, "{} at {shape:?}", isa.name());
        }
    }
}
