use super::{Bias, Claim, Epilogue, Factors, RankOne, Revealed, check_sums_with, reveal_with};
use crate::WrongLength;
use crate::activation::Activation;
use crate::check::agree;
use crate::field::{Fp, HALF, P};
use crate::fixed::{Bound, MaxAbs};
use crate::hide::{Activations, Folded, View, hide_with};
use crate::isa::Isa;
use crate::keystream::{Key, Purpose};
use crate::testing::{LENGTHS, Random};

const SHAPES: [(usize, usize); 12] = [
    (1, 1),
    (1100, 1),
    (700, 3),
    (5, 16),
    (64, 49),
    (65, 50),
    (21, 196),
    (3, 1023),
    (3, 1025),
    (2, 3136),
    (0, 5),
    (5, 0),
];

fn vectors(count: usize, rows: usize, cols: usize, random: &mut Random) -> Vec<RankOne> {
    let vector = |_| RankOne {
        outer: random.words(rows),
        inner: random.words(cols),
    };
    (0..count).map(vector).collect()
}

fn run(
    isa: Isa,
    claim: &Claim<'_>,
    v: &[Factors<'_>],
    epilogue: &Epilogue<'_>,
    maxima: usize,
) -> (Revealed, Vec<u32>, Vec<MaxAbs>) {
    let mut out = vec![7.0; claim.words.len()];
    let mut row_max = vec![MaxAbs::of(99.0); maxima];
    let revealed = reveal_with(isa, claim, v, epilogue, &mut out, &mut row_max);
    (
        revealed,
        out.into_iter().map(f32::to_bits).collect(),
        row_max,
    )
}

#[test]
fn every_instruction_set_reveals_alike() {
    let mut random = Random::new(5);
    let activations = [
        Activation::None,
        Activation::Relu,
        Activation::LeakyRelu { slope: 0.1 },
        Activation::Clip {
            low: -1.0,
            high: 6.0,
        },
        Activation::HardSigmoid {
            slope: 0.2,
            offset: 0.5,
        },
        Activation::HardSwish,
        Activation::Sigmoid,
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
    ];
    let lengths = LENGTHS.map(|len| (2, len));
    for (case, (rows, cols)) in SHAPES.into_iter().chain(lengths).enumerate() {
        let words = random.words(rows * cols);
        let u = random.words(rows * cols);
        let (residual, by_row, by_col) = (
            random.floats(rows * cols),
            random.floats(rows),
            random.floats(cols),
        );
        let small: Vec<f32> = by_row.iter().map(|x| x * 1e-8).collect();
        let v = vectors(5, rows, cols, &mut random);
        let v: Vec<Factors<'_>> = v.iter().map(RankOne::factors).collect();
        let (pre, post) = (activations[case % 10], activations[(case / 2) % 10]);
        let epilogues = [
            Epilogue::default(),
            Epilogue {
                factor_row: Some(&small),
                bias: Bias::PerRow(&by_row),
                pre,
                ..Epilogue::default()
            },
            Epilogue {
                factor_col: Some(&by_col),
                bias: Bias::PerColumn(&by_col),
                pre,
                ..Epilogue::default()
            },
            Epilogue {
                factor_row: Some(&small),
                factor_col: Some(&by_col),
                bias: Bias::PerColumn(&by_col),
                pre: post,
                residual: Some(&residual),
                post: pre,
            },
        ];
        for epilogue in &epilogues {
            for u in [None, Some(&u[..])] {
                for (count, maxima) in [(0, 1), (1, rows), (2, rows), (5, 1)] {
                    let (claim, v) = (Claim::new(&words, u, rows, cols).unwrap(), &v[..count]);
                    let expected = run(Isa::Scalar, &claim, v, epilogue, maxima);
                    assert!(expected.0.canonical);
                    for isa in Isa::available() {
                        let got = run(isa, &claim, v, epilogue, maxima);
                        assert!(got == expected, "{} {rows}x{cols} {epilogue:?}", isa.name());
                        assert_eq!(check_sums_with(isa, &claim, v), expected.0);
                    }
                }
            }
        }
    }
}

#[test]
fn what_was_hidden_is_revealed_and_its_sums_agree() {
    // The identity as the linear map: the answer is the upload, u is the mask, and a = v.
    let mut random = Random::new(6);
    let key = Key::new([3; 32]);
    for (rows, cols) in [(64, 49), (7, 1500)] {
        let x = random.floats(rows * cols);
        let acts = Activations::new(&x, rows, cols, &[4096.0], Bound::LARGEST).unwrap();
        let v = vectors(2, rows, cols, &mut random);
        let folds = v.iter().map(|v| Folded::RankOne {
            outer: v.outer.clone(),
            inner: v.inner.clone(),
        });
        let folds: Vec<Folded> = folds.collect();
        let folds: Vec<View<'_>> = folds.iter().map(Folded::view).collect();
        let v: Vec<Factors<'_>> = v.iter().map(RankOne::factors).collect();
        let mask = key.stream(1, 1, Purpose::Mask);
        let mut u = vec![0; x.len()];
        mask.fill(0, &mut u);
        let factor = vec![1.0 / 4096.0; rows];
        let epilogue = Epilogue {
            factor_row: Some(&factor),
            ..Epilogue::default()
        };
        for isa in Isa::available() {
            let (mut upload, mut expected) = (vec![0; x.len()], [Fp::ZERO; 2]);
            hide_with(
                isa,
                &acts,
                Some(&mask),
                0,
                &folds,
                &mut upload,
                &mut expected,
            );
            let answer = Claim::new(&upload, Some(&u), rows, cols).unwrap();
            let (revealed, out, _) = run(isa, &answer, &v, &epilogue, rows);
            assert!(revealed.canonical && bool::from(agree(&expected, &revealed.dots)));
            for (x, out) in x.iter().zip(out) {
                assert!((x - f32::from_bits(out)).abs() <= 0.5 / 4096.0);
            }
            // One unit in one word, and the sums no longer agree.
            for at in [0, 48, rows * cols - 1] {
                let mut lie = upload.clone();
                lie[at] = (Fp::from_u64(lie[at].into()) + Fp::ONE).word();
                let lie = Claim::new(&lie, Some(&u), rows, cols).unwrap();
                let revealed = check_sums_with(isa, &lie, &v);
                assert!(
                    !bool::from(agree(&expected, &revealed.dots)),
                    "{} {at}",
                    isa.name()
                );
            }
        }
    }
}

#[test]
fn a_word_that_is_not_canonical_is_found_anywhere() {
    let mut random = Random::new(7);
    for isa in Isa::available() {
        for len in LENGTHS.into_iter().filter(|&len| len > 0) {
            for at in [0, len / 2, len - 1] {
                for bad in [P, P + 1, u32::MAX] {
                    let mut words = random.words(len);
                    words[at] = bad;
                    let u = random.words(len);
                    let v = vectors(2, 1, len, &mut random);
                    let v: Vec<Factors<'_>> = v.iter().map(RankOne::factors).collect();
                    let claim = Claim::new(&words, Some(&u), 1, len).unwrap();
                    let epilogue = Epilogue::default();
                    let got = run(isa, &claim, &v, &epilogue, 1);
                    assert!(!got.0.canonical, "{} {len} {at}", isa.name());
                    assert!(got == run(Isa::Scalar, &claim, &v, &epilogue, 1));
                    assert!(!check_sums_with(isa, &claim, &v).canonical);
                }
            }
        }
    }
}

#[test]
fn sums_are_exact_at_the_bound() {
    // Every word p − 1 ≡ −1, the number of rows beyond a fold, and rows beyond a piece.
    for (rows, cols) in [(448, 448), (3000, 49), (1, 448 * 448), (2100, 1)] {
        let words = vec![P - 1; rows * cols];
        let v = RankOne {
            outer: vec![P - 1; rows],
            inner: vec![P - 1; cols],
        };
        let claim = Claim::new(&words, None, rows, cols).unwrap();
        let minus = -Fp::from_u64((rows * cols) as u64);
        for isa in Isa::available() {
            let revealed = check_sums_with(isa, &claim, &[v.factors(); 3]);
            assert_eq!(revealed.dots, [minus; 3], "{} {rows}x{cols}", isa.name());
        }
    }
}

#[test]
fn the_epilogue_is_what_it_says() {
    // Rows 2, columns 2: 3·f + b, clipped, + residual, ReLU.
    let half = HALF as u32;
    let words = [3, P - 4, half, half + 1];
    let claim = Claim::new(&words, None, 2, 2).unwrap();
    let plain = |value: i32| value as f32;
    let out = run(Isa::best(), &claim, &[], &Epilogue::default(), 2);
    assert_eq!(
        out.1,
        [3.0, -4.0, plain(HALF), plain(-HALF)].map(f32::to_bits)
    );
    assert_eq!(out.2, [MaxAbs::of(4.0), MaxAbs::of(plain(HALF))]);
    let epilogue = Epilogue {
        factor_row: Some(&[0.5, 0.0]),
        factor_col: Some(&[2.0, 10.0]),
        bias: Bias::PerRow(&[1.0, -2.0]),
        pre: Activation::Clip {
            low: -15.0,
            high: 3.0,
        },
        residual: Some(&[0.25, 20.0, 1.0, 3.0]),
        post: Activation::Relu,
    };
    for isa in Isa::available() {
        let out = run(isa, &claim, &[], &epilogue, 1);
        // 3·½·2 + 1 = 4 → 3 → 3.25; −4·½·10 + 1 = −19 → −15 → 5; −2 + 1 → 0; −2 + 3 = 1.
        assert_eq!(
            out.1,
            [3.25, 5.0, 0.0, 1.0].map(f32::to_bits),
            "{}",
            isa.name()
        );
        assert_eq!(out.2, [MaxAbs::of(5.0)]);
    }
}

#[test]
fn what_is_not_finite_shows_in_the_maximum() {
    let claim = Claim::new(&[1, 1], None, 1, 2).unwrap();
    for bad in [f32::INFINITY, f32::NAN] {
        let residual = [0.0, bad];
        let post = Activation::Relu;
        let epilogue = Epilogue {
            residual: Some(&residual),
            post,
            ..Epilogue::default()
        };
        for isa in Isa::available() {
            assert!(
                !run(isa, &claim, &[], &epilogue, 1).2[0].is_finite(),
                "{}",
                isa.name()
            );
        }
    }
}

#[test]
fn lengths_of_a_claim_are_checked() {
    let wrong = Claim::new(&[0; 6], None, 2, 4).unwrap_err();
    assert_eq!(
        wrong,
        WrongLength {
            expected: 8,
            got: 6
        }
    );
    let wrong = Claim::new(&[0; 8], Some(&[0; 7]), 2, 4).unwrap_err();
    assert_eq!(
        wrong,
        WrongLength {
            expected: 8,
            got: 7
        }
    );
}
