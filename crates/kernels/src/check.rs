//! What equal sums prove: Freivalds' check of a linear map, with preprocessing.
//!
//! A worker claims y = L(x) for a public linear map L over F_p. The trusted side has drawn a secret v and knows a = Lᵀv. It
//! accepts iff ⟨v, y⟩ = ⟨a, x⟩, for each of several independent v. An honest answer always passes, as
//! ⟨v, L(x)⟩ = ⟨Lᵀv, x⟩. A wrong one, y = L(x) + d with d ≠ 0, passes iff ⟨v, d⟩ = 0.
//!
//! Here v is of rank one, v = t ⊗ s with t and s uniform, so ⟨v, d⟩ = tᵀDs is a polynomial of degree two in secrets, and not zero
//! as D ≠ 0. For D of rank k, Ds = 0 with probability p⁻ᵏ, and otherwise tᵀ(Ds) = 0 with probability 1/p:
//!
//! > Pr[a wrong answer passes] = p⁻ᵏ + (1 − p⁻ᵏ)/p ≤ (2p − 1)/p² < 2/p for each repetition,
//!
//! at most 2^-59.99 for two with p = 2³¹ − 1, whatever the worker knows but v and a. It holds for an answer fixed before v is
//! known, and for each image and layer by itself: sums over several under one v prove less. Words must be canonical, else
//! one element has two encodings. After a reject, v is redrawn, since a reject tells the worker one inequation in v.
//!
//! Source: Freivalds (1977); with preprocessing in Slalom (ICLR 2019) §3.2. Rank-one v: Schwartz-Zippel, exact form above.
#![forbid(unsafe_code)]

use subtle::{Choice, ConstantTimeEq};

use crate::field::Fp;

/// Whether all sums agree, in time independent of which do not.
///
/// No sums at all prove nothing, and neither do lists of different lengths: both are refused.
pub fn agree(expected: &[Fp], got: &[Fp]) -> Choice {
    if expected.is_empty() || expected.len() != got.len() {
        return Choice::from(0);
    }
    let pairs = expected.iter().zip(got);
    pairs.fold(Choice::from(1), |all, (x, y)| {
        all & x.word().ct_eq(&y.word())
    })
}

#[cfg(test)]
mod tests {
    use super::agree;
    use crate::field::{Fp, P};
    use crate::testing::Random;

    #[test]
    fn only_equal_and_present_sums_agree() {
        let [x, y] = [1, P - 1].map(|word| Fp::from_canonical(word).unwrap());
        let cases: [(&[Fp], &[Fp], bool); 6] = [
            (&[x], &[x], true),
            (&[x, y], &[x, y], true),
            (&[x, y], &[x, x], false),
            (&[x, y], &[y, y], false),
            (&[], &[], false),
            (&[x], &[x, x], false),
        ];
        for (expected, got, agrees) in cases {
            assert_eq!(
                bool::from(agree(expected, got)),
                agrees,
                "{expected:?} {got:?}"
            );
        }
    }

    /// Matrices over a field so small that lies pass often enough to be counted.
    mod tiny {
        use crate::testing::Random;

        pub(super) type Matrix = Vec<Vec<u32>>;

        pub(super) fn random(p: u32, rows: usize, cols: usize, random: &mut Random) -> Matrix {
            (0..rows)
                .map(|_| (0..cols).map(|_| random.below(p)).collect())
                .collect()
        }

        pub(super) fn product(p: u32, x: &Matrix, y: &Matrix) -> Matrix {
            let cols = y[0].len();
            let entry = |row: &Vec<u32>, col: usize| {
                row.iter()
                    .zip(y)
                    .fold(0, |sum, (&x, y)| (sum + x * y[col]) % p)
            };
            x.iter()
                .map(|row| (0..cols).map(|col| entry(row, col)).collect())
                .collect()
        }

        pub(super) fn transpose(x: &Matrix) -> Matrix {
            (0..x[0].len())
                .map(|col| x.iter().map(|row| row[col]).collect())
                .collect()
        }

        pub(super) fn rank(p: u32, mut x: Matrix) -> usize {
            let mut rank = 0;
            for col in 0..x[0].len() {
                let Some(pivot) = (rank..x.len()).find(|&row| x[row][col] != 0) else {
                    continue;
                };
                x.swap(rank, pivot);
                let inverse = (1..p).find(|i| i * x[rank][col] % p == 1).unwrap();
                let pivot: Vec<u32> = x[rank].iter().map(|e| e * inverse % p).collect();
                for row in &mut x[rank + 1..] {
                    let factor = p - row[col];
                    for (e, pivot) in row.iter_mut().zip(&pivot) {
                        *e = (*e + factor * pivot) % p;
                    }
                }
                rank += 1;
            }
            rank
        }

        /// A matrix of exactly this rank.
        pub(super) fn of_rank(
            p: u32,
            k: usize,
            rows: usize,
            cols: usize,
            random: &mut Random,
        ) -> Matrix {
            loop {
                let left = self::random(p, rows, k, random);
                let error = product(p, &left, &self::random(p, k, cols, random));
                if rank(p, error.clone()) == k {
                    return error;
                }
            }
        }
    }

    #[test]
    fn lies_pass_as_often_as_theory_says() {
        const TRIALS: u32 = 400_000;
        let mut random = Random::new(3);
        // y = W·x with W rows × inner and x inner × cols; v = t ⊗ s; a = Wᵀ t ⊗ s.
        let (rows, inner, cols) = (4, 3, 5);
        for p in [7, 13, 31] {
            for k in 1..=3 {
                let w = tiny::random(p, rows, inner, &mut random);
                let x = tiny::random(p, inner, cols, &mut random);
                let honest = tiny::product(p, &w, &x);
                let error = tiny::of_rank(p, k, rows, cols, &mut random);
                let add = |(&y, &d): (&u32, &u32)| (y + d) % p;
                let claim: tiny::Matrix = (honest.iter().zip(&error))
                    .map(|(y, d)| y.iter().zip(d).map(add).collect())
                    .collect();
                let (mut passed, mut honest_passed) = (0, 0);
                for _ in 0..TRIALS {
                    let t = tiny::random(p, 1, rows, &mut random);
                    let s = tiny::transpose(&tiny::random(p, 1, cols, &mut random));
                    let a = tiny::product(p, &t, &w);
                    let expected = tiny::product(p, &tiny::product(p, &a, &x), &s);
                    let sum = |y| tiny::product(p, &tiny::product(p, &t, y), &s);
                    passed += u32::from(sum(&claim) == expected);
                    honest_passed += u32::from(sum(&honest) == expected);
                }
                assert_eq!(honest_passed, TRIALS);
                let all_zero = f64::from(p).powi(-(k as i32));
                let theory = all_zero + (1.0 - all_zero) / f64::from(p);
                let rate = f64::from(passed) / f64::from(TRIALS);
                let deviation = (theory * (1.0 - theory) / f64::from(TRIALS)).sqrt();
                println!("p {p} rank {k}: {rate:.5}, theory {theory:.5}");
                assert!(
                    (rate - theory).abs() < 5.0 * deviation,
                    "p {p} rank {k}: {rate} {theory}"
                );
                assert!(theory < 2.0 / f64::from(p));
            }
        }
    }
}
