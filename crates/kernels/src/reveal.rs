//! Revealing: a worker's answer to the layer's output, and the sums that tell whether to believe it, in one pass.
//!
//! For an answer y' and u = L(r) the pass computes y = y' − u mod p, the sums ⟨v, y⟩ in F_p for each secret v = outer ⊗ inner,
//! and the output ((centred(y) · row factor) · column factor) + bias, activation, + residual, activation. The output goes
//! to a buffer of its own, which the caller drops when the sums are not those expected: until then it is a peer's word.
//! No branch and no memory access depends on data.
//!
//! Any 32-bit words are accepted and give the same result on every instruction set, but only canonical ones mean
//! anything: [`Revealed::canonical`] must be true for the sums to count.
//!
//! Fold periods: a piece of a row, at most 1024 elements, makes at most 1024/8 multiply-adds a lane; its sum, below 2³² a
//! lane, is multiplied by the row's factor, and at most 1024 such are added before the next fold. Both are within the
//! 2048 that the accumulators allow.
//!
//! Source: unblinding fused with the check of Slalom (ICLR 2019) §3; Freivalds (1977), see [`crate::check`].
#![forbid(unsafe_code)]

mod pass;
#[cfg(test)]
mod tests;

use core::fmt;
use core::ops::Range;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::WrongLength;
use crate::activation::Activation;
use crate::field::{Fp, P};
use crate::fixed::MaxAbs;
use crate::isa::Isa;
use pass::{Finish, Reveal};

/// A worker's unverified answer, and what masks it.
#[derive(Clone, Copy)]
pub struct Claim<'a> {
    /// The peer's, unchecked: any words.
    words: &'a [u32],
    /// The trusted side's u = L(r), canonical.
    u: Option<&'a [u32]>,
    rows: usize,
    cols: usize,
}

impl<'a> Claim<'a> {
    /// An answer of `rows` × `cols` words, row-major, masked by `u` unless the upload was not.
    ///
    /// **Errors**: [`WrongLength`] if lengths disagree.
    pub fn new(
        words: &'a [u32],
        u: Option<&'a [u32]>,
        rows: usize,
        cols: usize,
    ) -> Result<Self, WrongLength> {
        WrongLength::check_product(rows, cols, words.len())?;
        if let Some(u) = u {
            WrongLength::check(words.len(), u.len())?;
        }
        Ok(Self {
            words,
            u,
            rows,
            cols,
        })
    }
}

impl fmt::Debug for Claim<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({} x {})", self.rows, self.cols)
    }
}

/// A secret check vector, `v[r, c] = outer[r] · inner[c]`, in canonical words, uniform.
///
/// Overwritten when dropped, and never printed.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct RankOne {
    /// One word a row of the answer.
    pub outer: Vec<u32>,
    /// One word a column of the answer.
    pub inner: Vec<u32>,
}

impl fmt::Debug for RankOne {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RankOne(..)")
    }
}

impl RankOne {
    /// The vector, borrowed.
    pub fn factors(&self) -> Factors<'_> {
        Factors {
            outer: &self.outer,
            inner: &self.inner,
        }
    }
}

/// A check vector or a band of its rows, borrowed.
#[derive(Clone, Copy)]
pub struct Factors<'a> {
    outer: &'a [u32],
    inner: &'a [u32],
}

impl Factors<'_> {
    /// The same for some rows of the answer.
    ///
    /// # Panics
    /// If there are no such rows.
    #[must_use]
    pub fn rows(self, rows: Range<usize>) -> Self {
        Self {
            outer: &self.outer[rows],
            inner: self.inner,
        }
    }
}

impl fmt::Debug for Factors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Factors(..)")
    }
}

/// What follows the linear map. The default does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// The first factor, one a row (1 if absent).
    pub factor_row: Option<&'a [f32]>,
    /// The second factor, one a column (1 if absent).
    pub factor_col: Option<&'a [f32]>,
    /// What is added next.
    pub bias: Bias<'a>,
    /// What is applied next.
    pub pre: Activation,
    /// What is added next, one number an element.
    pub residual: Option<&'a [f32]>,
    /// What is applied last.
    pub post: Activation,
}

/// A summand.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Bias<'a> {
    /// Positive zero.
    #[default]
    None,
    /// One a row.
    PerRow(&'a [f32]),
    /// One a column.
    PerColumn(&'a [f32]),
}

impl Epilogue<'_> {
    fn assert_shape(&self, rows: usize, cols: usize) {
        let Self {
            factor_row,
            factor_col,
            bias,
            pre: _,
            residual,
            post: _,
        } = self;
        let bias = match bias {
            Bias::None => true,
            Bias::PerRow(bias) => bias.len() == rows,
            Bias::PerColumn(bias) => bias.len() == cols,
        };
        let fits = bias
            && factor_row.is_none_or(|factor| factor.len() == rows)
            && factor_col.is_none_or(|factor| factor.len() == cols)
            && residual.is_none_or(|residual| residual.len() == rows * cols);
        assert!(fits, "epilogue and claim have different shapes");
    }

    /// Row factor and row bias, with what stands for their absence.
    #[inline(always)]
    fn row(&self, row: usize) -> (f32, f32) {
        let factor = self.factor_row.map_or(1.0, |factor| factor[row]);
        let bias = if let Bias::PerRow(bias) = self.bias {
            bias[row]
        } else {
            0.0
        };
        (factor, bias)
    }

    #[inline(always)]
    fn column_bias(&self) -> Option<&[f32]> {
        if let Bias::PerColumn(bias) = self.bias {
            Some(bias)
        } else {
            None
        }
    }
}

/// What a pass over a claim found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[must_use = "an answer is worth nothing before its sums are compared"]
pub struct Revealed {
    /// ⟨v, y⟩ for each v.
    pub dots: Vec<Fp>,
    /// Whether every word of the peer is below p. If not, the sums mean nothing and the claim is a lie.
    pub canonical: bool,
}

/// Writes the layer's output to `out` and the largest magnitudes to `row_max`, and returns the sums.
///
/// **Shapes**: `out` has one number for each word of the claim; `row_max` one for each row, or one for all.
/// **Exactness**: sums exact; floats by correctly rounded operations in the order given in the module's head (see
/// [`Activation`] for those), the same bits on every instruction set where they are not NaN.
///
/// # Panics
/// If lengths disagree: all but the claim's, which its constructor checks, are settled when a plan is made.
pub fn reveal(
    claim: &Claim<'_>,
    v: &[Factors<'_>],
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    row_max: &mut [MaxAbs],
) -> Revealed {
    reveal_with(Isa::best(), claim, v, epilogue, out, row_max)
}

/// [`reveal()`] with a given instruction set.
///
/// # Panics
/// As [`reveal()`] does.
pub fn reveal_with(
    isa: Isa,
    claim: &Claim<'_>,
    v: &[Factors<'_>],
    epilogue: &Epilogue<'_>,
    out: &mut [f32],
    row_max: &mut [MaxAbs],
) -> Revealed {
    epilogue.assert_shape(claim.rows, claim.cols);
    assert_eq!(
        out.len(),
        claim.words.len(),
        "output and claim differ in length"
    );
    assert!(
        row_max.len() == 1 || row_max.len() == claim.rows,
        "one maximum, or one a row"
    );
    row_max.fill(MaxAbs::default());
    run(
        isa,
        claim,
        v,
        Some(Finish {
            epilogue,
            out,
            row_max,
        }),
    )
}

/// The sums alone: ⟨v, y⟩ for y = y' − u. Used when a dealer's u is checked on arrival.
///
/// # Panics
/// If the lengths of `v` disagree with the claim's.
pub fn check_sums(claim: &Claim<'_>, v: &[Factors<'_>]) -> Revealed {
    check_sums_with(Isa::best(), claim, v)
}

/// [`check_sums`] with a given instruction set.
///
/// # Panics
/// As [`check_sums`] does.
pub fn check_sums_with(isa: Isa, claim: &Claim<'_>, v: &[Factors<'_>]) -> Revealed {
    run(isa, claim, v, None)
}

fn run(isa: Isa, claim: &Claim<'_>, v: &[Factors<'_>], finish: Option<Finish<'_>>) -> Revealed {
    for v in v {
        let fits = v.outer.len() == claim.rows && v.inner.len() == claim.cols;
        assert!(fits, "check vector and claim have different shapes");
    }
    let mut dots = vec![Fp::ZERO; v.len()];
    let largest = isa.run(Reveal {
        claim,
        v,
        finish,
        dots: &mut dots,
    });
    Revealed {
        dots,
        canonical: largest < P,
    }
}
