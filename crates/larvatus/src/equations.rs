//! Freivalds' check of one layer by itself: ⟨v, y⟩ = ⟨a, x⟩ with a = Lᵀv, for whole words x and y.
//!
//! This is what checks a party whose answer is not opened in the same pass: a dealer's u against its pad,
//! one worker's share of an answer against the hidden request.

use larvatus_kernels::check::agree;
use larvatus_kernels::field::Fp;
use larvatus_kernels::reveal::{Claim, Factors, RankOne, check_sums};
use larvatus_proto::words::Words;
use zeroize::Zeroizing;

use crate::claim::{add, bands};

/// v and a of each repetition. Whoever knows them can forge; cleared when dropped, as [`RankOne`] is.
pub(crate) struct Equations {
    v: Vec<RankOne>,
    a: Vec<RankOne>,
}

/// Why an answer is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// A word is p or more.
    NotCanonical,
    /// An equation does not hold.
    Product {
        /// The first that does not.
        repetition: usize,
    },
}

impl Equations {
    /// From pairs of v and a = Lᵀv. All a have one form.
    pub(crate) fn new(pairs: impl Iterator<Item = (RankOne, RankOne)>) -> Self {
        let (v, a) = pairs.unzip();
        Self { v, a }
    }

    /// Memory of the vectors.
    pub(crate) fn bytes(&self) -> u64 {
        let words = |v: &RankOne| v.outer.len() + v.inner.len();
        4 * self.v.iter().chain(&self.a).map(words).sum::<usize>() as u64
    }

    /// ⟨a, x⟩ of each repetition, for one image of canonical words.
    pub(crate) fn expect(&self, x: &[u32]) -> Zeroizing<Vec<Fp>> {
        let factors: Vec<Factors<'_>> = self.a.iter().map(RankOne::factors).collect();
        Zeroizing::new(check_sums(&claim(x, &self.a), &factors).dots)
    }

    /// Whether one image's answer is what was expected. Every word and repetition is looked at.
    ///
    /// # Errors
    /// [`Wrong`].
    pub(crate) fn holds(&self, y: &[u32], expected: &[Fp]) -> Result<(), Wrong> {
        let factors: Vec<Factors<'_>> = self.v.iter().map(RankOne::factors).collect();
        let found = check_sums(&claim(y, &self.v), &factors);
        judge(found.canonical, &found.dots, expected)
    }

    /// The same for an answer of `count` words that is copied from `words`, from the length of `own` on, to the end of `own`: by
    /// bands of rows, so that it is still in the cache when it is looked at. What is looked at is the copy.
    ///
    /// # Errors
    /// [`Wrong`].
    pub(crate) fn take(
        &self,
        (words, count): (&Words, usize),
        own: &mut Vec<u32>,
        expected: &[Fp],
    ) -> Result<(), Wrong> {
        let cols = self.v.first().map_or(count, |v| v.inner.len()).max(1);
        let mut dots = Zeroizing::new(vec![Fp::ZERO; self.v.len()]);
        let mut canonical = true;
        for band in bands(count / cols, cols, false) {
            let start = own.len();
            own.resize(start + band.len() * cols, 0);
            words.read(start, &mut own[start..]);
            let factors = self.v.iter().map(|v| v.factors().rows(band.clone()));
            let factors: Vec<Factors<'_>> = factors.collect();
            let claim = Claim::new(&own[start..], None, band.len(), cols);
            let claim = claim.expect("a band has its rows");
            let found = check_sums(&claim, &factors);
            canonical &= found.canonical;
            add(&mut dots, &found.dots);
        }
        judge(canonical, &dots, expected)
    }
}

/// What follows from the sums of one image.
fn judge(canonical: bool, found: &[Fp], expected: &[Fp]) -> Result<(), Wrong> {
    let equal = bool::from(agree(expected, found));
    if !canonical {
        return Err(Wrong::NotCanonical);
    }
    if !equal {
        let differs = |(dot, expected)| dot != expected;
        let first = found.iter().zip(expected).position(differs);
        let repetition = first.unwrap_or(0);
        return Err(Wrong::Product { repetition });
    }
    Ok(())
}

/// Words in the form of the vectors that they are multiplied with.
fn claim<'a>(words: &'a [u32], vectors: &[RankOne]) -> Claim<'a> {
    let (rows, cols) = vectors
        .first()
        .map_or((1, words.len()), |v| (v.outer.len(), v.inner.len()));
    Claim::new(words, None, rows, cols).expect("vectors are made for their layer")
}
