//! Hiding and its clear form against their definitions.

use super::{Activations, Folded, View, hide, hide_with, quantise_short_with, quantise_with};
use crate::WrongLength;
use crate::field::{Fp, P};
use crate::fixed::Bound;
use crate::isa::Isa;
use crate::keystream::{Key, Purpose};
use crate::testing::{LENGTHS, Random};

const SHAPES: [(usize, usize); 14] = [
    (1, 1),
    (3, 1),
    (1200, 1),
    (700, 3),
    (5, 16),
    (2048, 9),
    (64, 49),
    (65, 50),
    (21, 196),
    (3, 1023),
    (3, 1024),
    (3, 1025),
    (2, 3136),
    (0, 5),
];

fn folds(rows: usize, cols: usize, random: &mut Random) -> Vec<Folded> {
    vec![
        Folded::Dense(random.words(rows * cols)),
        Folded::RankOne {
            outer: random.words(rows),
            inner: random.words(cols),
        },
        Folded::RankOne {
            outer: vec![P - 1; rows],
            inner: vec![P - 1; cols],
        },
    ]
}

/// ⟨a, q⟩ in wide integers.
fn wide_dot(fold: View<'_>, q: &[i32], cols: usize) -> Fp {
    let a = |at: usize| match fold {
        View::Dense(a) => i128::from(a[at]),
        View::RankOne { outer, inner } => {
            i128::from(outer[at / cols]) * i128::from(inner[at % cols])
        }
    };
    let sum: i128 = q
        .iter()
        .enumerate()
        .map(|(at, &q)| a(at) * i128::from(q))
        .sum();
    Fp::from_signed((sum % i128::from(P)) as i64)
}

#[test]
fn every_instruction_set_hides_alike() {
    let mut random = Random::new(4);
    let key = Key::new([7; 32]);
    let lengths = LENGTHS
        .map(|len| (1, len))
        .into_iter()
        .filter(|&(_, len)| len > 0);
    let random_shapes = [(); 12].map(|()| (1 + random.below(60), 1 + random.below(300)));
    let random_shapes = random_shapes.map(|(rows, cols)| (rows as usize, cols as usize));
    for (rows, cols) in SHAPES.into_iter().chain(lengths).chain(random_shapes) {
        let mut x = random.floats(rows * cols);
        if let [first, .., last] = &mut x[..] {
            (*first, *last) = (f32::NAN, f32::INFINITY);
        }
        let folds = folds(rows, cols, &mut random);
        let folds: Vec<View<'_>> = folds.iter().map(Folded::view).collect();
        let per_row = random.floats(rows).iter().map(|x| x * 5000.0).collect();
        let bound = Bound::new(2000).unwrap();
        for inverse in [vec![3000.0], per_row] {
            let acts = Activations::new(&x, rows, cols, &inverse, bound).unwrap();
            let mut q = vec![0; x.len()];
            quantise_with(Isa::Scalar, &acts, &mut q);
            assert!(q.iter().all(|q| q.abs() <= 2000));
            let stream = key.stream(1, 2, Purpose::Mask);
            for (mask, first) in [(None, 0), (Some(&stream), 0), (Some(&stream), 4093)] {
                let mut pad = vec![0; x.len()];
                if let Some(mask) = mask {
                    mask.fill(first, &mut pad);
                }
                let expected: Vec<u32> = q
                    .iter()
                    .zip(&pad)
                    .map(|(&q, &r)| Fp::from_signed(i64::from(q) + i64::from(r)).word())
                    .collect();
                for isa in Isa::available() {
                    for count in 0..=folds.len() {
                        let (mut out, mut dots) = (vec![9; x.len()], vec![Fp::ONE; count]);
                        let folds = &folds[..count];
                        hide_with(isa, &acts, mask, first, folds, &mut out, &mut dots);
                        assert!(out == expected, "{} {rows}x{cols} {first}", isa.name());
                        for (dot, fold) in dots.iter().zip(folds) {
                            let wide = wide_dot(*fold, &q, cols);
                            assert_eq!(*dot, wide, "{} {rows}x{cols} {fold:?}", isa.name());
                        }
                    }
                }
            }
            for isa in Isa::available() {
                let mut own = vec![1; x.len()];
                quantise_with(isa, &acts, &mut own);
                assert_eq!(own, q, "{} {rows}x{cols}", isa.name());
                let (mut short, mut dots) = (vec![9; x.len()], vec![Fp::ONE; folds.len()]);
                quantise_short_with(isa, &acts, &folds, &mut short, &mut dots);
                assert!(short.iter().copied().map(i32::from).eq(q.iter().copied()));
                for (dot, fold) in dots.iter().zip(&folds) {
                    let wide = wide_dot(*fold, &q, cols);
                    assert_eq!(*dot, wide, "{} {rows}x{cols} {fold:?}", isa.name());
                }
            }
        }
    }
}

#[test]
fn sums_are_exact_at_the_bound() {
    let steps = 1 << 21;
    for (rows, cols) in [(1, 448 * 448), (448 * 448 / 49, 49), (448, 448)] {
        let len = rows * cols;
        // All +A, all −A, alternating in pairs so that either parity of lanes gets one sign.
        for signs in [0b0000, 0b1111, 0b0101] {
            let sign = |at: usize| {
                if signs >> (at % 4) & 1 == 1 {
                    -1.0
                } else {
                    1.0
                }
            };
            let x: Vec<f32> = (0..len).map(sign).collect();
            let inverse = [2.0 * steps as f32];
            let acts = Activations::new(&x, rows, cols, &inverse, Bound::LARGEST).unwrap();
            let q: Vec<i32> = x.iter().map(|&x| x as i32 * steps).collect();
            let folds = [
                Folded::Dense(vec![P - 1; len]),
                Folded::RankOne {
                    outer: vec![P - 1; rows],
                    inner: vec![P - 1; cols],
                },
                Folded::RankOne {
                    outer: vec![P - 1; rows],
                    inner: vec![P / 2; cols],
                },
            ];
            let folds: Vec<View<'_>> = folds.iter().map(Folded::view).collect();
            let expected: Vec<Fp> = folds.iter().map(|fold| wide_dot(*fold, &q, cols)).collect();
            for isa in Isa::available() {
                let (mut out, mut dots) = (vec![0; len], vec![Fp::ZERO; folds.len()]);
                hide_with(isa, &acts, None, 0, &folds, &mut out, &mut dots);
                assert_eq!(dots, expected, "{} {rows}x{cols} {signs:b}", isa.name());
            }
        }
    }
}

#[test]
fn a_retried_mask_word_is_used_at_every_tile_edge() {
    // Word 347444590 of this stream is p in the first retry lane (see the keystream's tests).
    let key = Key::new(core::array::from_fn(|byte| byte as u8));
    let stream = key.stream(7, 3, Purpose::Mask);
    let x = vec![-1.0; 40 * 49];
    let acts = Activations::new(&x, 40, 49, &[1.0], Bound::LARGEST).unwrap();
    for isa in Isa::available() {
        // Twenty rows of 49 make a tile.
        for at in [0_usize, 1, 48, 49, 979, 980, 1959] {
            let mut out = vec![0; x.len()];
            hide_with(
                isa,
                &acts,
                Some(&stream),
                347_444_590 - at as u64,
                &[],
                &mut out,
                &mut [],
            );
            assert_eq!(out[at], 852_052_211 - 1, "{} {at}", isa.name());
        }
    }
}

#[test]
fn shapes_are_checked() {
    let bound = Bound::LARGEST;
    let wrong = Activations::new(&[0.0; 6], 2, 4, &[1.0], bound).unwrap_err();
    assert_eq!(
        wrong,
        WrongLength {
            expected: 8,
            got: 6
        }
    );
    let wrong = Activations::new(&[0.0; 8], 4, 2, &[1.0; 3], bound).unwrap_err();
    assert_eq!(
        wrong,
        WrongLength {
            expected: 4,
            got: 3
        }
    );
    assert!(Activations::new(&[0.0; 8], usize::MAX, 2, &[1.0], bound).is_err());
}

#[test]
#[should_panic(expected = "different shapes")]
fn a_check_vector_of_another_shape_is_refused() {
    let acts = Activations::new(&[0.0; 8], 4, 2, &[1.0], Bound::LARGEST).unwrap();
    let fold = Folded::RankOne {
        outer: vec![0; 2],
        inner: vec![0; 4],
    };
    hide(&acts, None, 0, &[fold.view()], &mut [0; 8], &mut [Fp::ZERO]);
}

#[test]
#[should_panic(expected = "beyond 16 bits")]
fn short_activations_have_a_bound() {
    let acts = Activations::new(&[1.0], 1, 1, &[1.0], Bound::new(32_768).unwrap()).unwrap();
    quantise_short_with(Isa::Scalar, &acts, &[], &mut [0], &mut []);
}

#[test]
fn a_check_vector_is_not_printed() {
    assert_eq!(format!("{:?}", Folded::Dense(vec![12345])), "Dense(..)");
}
