//! The prime field F_p, p = 2³¹ − 1.
//!
//! A Mersenne prime: 2³¹ ≡ 1, so reduction is a shift and an add, and a word fits 32 bits with one to spare, so that
//! the sum of two canonical words does not overflow.
//!
//! Operations take the same time whatever the values are: words here are masks, check vectors and activations.
//! Source: Mersenne arithmetic is folklore; the choice of p is argued in the design of the exact path.
#![forbid(unsafe_code)]

use core::fmt;
use core::ops::{Add, AddAssign, Mul, Neg, Sub};

use zeroize::DefaultIsZeroes;

/// The characteristic of the field, 2³¹ − 1.
pub const P: u32 = (1 << 31) - 1;

/// The largest centred residue, (p − 1)/2; the smallest is its negative.
pub const HALF: i32 = (P / 2) as i32;

/// An element of Z/p.
///
/// Deliberately not a plain-old-data type: bytes of a peer become an `Fp` through [`Fp::from_canonical`] only.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Fp(
    /// Canonical: always `< P`, so `==` on the word is equality in the field.
    u32,
);

impl Fp {
    /// The neutral element of addition.
    pub const ZERO: Self = Self(0);
    /// The neutral element of multiplication.
    pub const ONE: Self = Self(1);

    /// Decodes a canonical residue; `None` if `word >= P` (a second encoding of some element).
    pub const fn from_canonical(word: u32) -> Option<Self> {
        if word < P { Some(Self(word)) } else { None }
    }

    /// The residue of any integer.
    pub const fn from_u64(value: u64) -> Self {
        // 2³¹ ≡ 1: add the 31-bit digits. Three of them leave at most 2·(2³¹ − 1) + 3, one more pass at most p.
        const P64: u64 = P as u64;
        let folded = (value & P64) + ((value >> 31) & P64) + (value >> 62);
        let folded = ((folded & P64) + (folded >> 31)) as u32;
        Self::subtract_if_needed(folded)
    }

    /// The residue of any signed integer.
    pub const fn from_signed(value: i64) -> Self {
        // 2⁶³ ≡ 2, so flipping the sign bit adds 2.
        let offset = Self::from_u64((value as u64) ^ (1 << 63)).0;
        Self::subtract_if_needed(offset + (P - 2))
    }

    /// The canonical word, `< P`.
    pub const fn word(self) -> u32 {
        self.0
    }

    /// The representative in [−(p − 1)/2, (p − 1)/2].
    pub const fn centred(self) -> i32 {
        let word = self.0 as i32;
        // All ones iff the word exceeds HALF.
        let above = (HALF - word) >> 31;
        word - (above & P as i32)
    }

    /// Reduces `word < 2P`, without a branch.
    const fn subtract_if_needed(word: u32) -> Self {
        let reduced = word.wrapping_sub(P);
        // Borrow iff `word < P`; then the top bit of the difference is set, as `P < 2³¹`.
        let borrow = (reduced >> 31).wrapping_neg();
        Self(reduced.wrapping_add(borrow & P))
    }
}

/// Overwritten with zero; sums of secrets are secrets.
impl DefaultIsZeroes for Fp {}

impl fmt::Debug for Fp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fp({})", self.0)
    }
}

impl Add for Fp {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self::subtract_if_needed(self.0 + other.0)
    }
}

impl Sub for Fp {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        Self::subtract_if_needed(self.0 + (P - other.0))
    }
}

impl Neg for Fp {
    type Output = Self;
    fn neg(self) -> Self {
        Self::subtract_if_needed(P - self.0)
    }
}

impl Mul for Fp {
    type Output = Self;
    fn mul(self, other: Self) -> Self {
        Self::from_u64(u64::from(self.0) * u64::from(other.0))
    }
}

impl AddAssign for Fp {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl core::iter::Sum for Fp {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

#[cfg(test)]
mod tests {
    use super::{Fp, HALF, P};

    const EDGES: [u64; 16] = [
        0,
        1,
        2,
        3,
        P as u64 / 2,
        P as u64 / 2 + 1,
        P as u64 - 1,
        P as u64,
        P as u64 + 1,
        2 * P as u64 - 1,
        2 * P as u64,
        u32::MAX as u64,
        1 << 62,
        (P as u64) << 31,
        u64::MAX - 1,
        u64::MAX,
    ];

    fn residue(value: i128) -> u32 {
        u32::try_from(value.rem_euclid(i128::from(P))).unwrap()
    }

    #[test]
    fn only_canonical_words_decode() {
        assert_eq!(Fp::from_canonical(P - 1).map(Fp::word), Some(P - 1));
        for word in [P, P + 1, u32::MAX] {
            assert_eq!(Fp::from_canonical(word), None, "{word}");
        }
    }

    #[test]
    fn integers_reduce_as_wide_arithmetic_does() {
        for value in EDGES {
            assert_eq!(Fp::from_u64(value).word(), residue(value.into()), "{value}");
            let signed = value as i64;
            assert_eq!(
                Fp::from_signed(signed).word(),
                residue(signed.into()),
                "{signed}"
            );
        }
    }

    #[test]
    fn field_operations_equal_wide_arithmetic() {
        for x in EDGES.map(Fp::from_u64) {
            for y in EDGES.map(Fp::from_u64) {
                let (a, b) = (i128::from(x.word()), i128::from(y.word()));
                assert_eq!((x + y).word(), residue(a + b), "{x:?} + {y:?}");
                assert_eq!((x - y).word(), residue(a - b), "{x:?} - {y:?}");
                assert_eq!((x * y).word(), residue(a * b), "{x:?} * {y:?}");
            }
            assert_eq!(x + -x, Fp::ZERO);
            assert_eq!(x * Fp::ONE, x);
        }
    }

    #[test]
    fn centred_is_the_nearest_representative() {
        for (word, expected) in [
            (0, 0),
            (1, 1),
            (HALF as u32, HALF),
            (HALF as u32 + 1, -HALF),
            (P - 1, -1),
        ] {
            let element = Fp::from_canonical(word).unwrap();
            assert_eq!(element.centred(), expected);
            assert_eq!(Fp::from_signed(expected.into()), element);
        }
    }
}
