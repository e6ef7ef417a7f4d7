//! What an instruction set brings to products of whole words.
//!
//! Both factors lie in lines of sixteen centred words. A *left* line holds sixteen terms of one row, to be broadcast
//! one by one; a *right* line holds one term of sixteen columns. Convolutions have weights on the left and pixels on
//! the right, matrix products rows of x on the left and weights on the right.

use std::ops::Range;

use crate::field::P;
use crate::linear::tiles::{LANES, Line};
use crate::linear::vectors::{Store, Vectors};

/// An instruction set with exact products of whole words. Implemented by its token.
pub(in crate::linear) trait WholeWords: Vectors {
    /// Most rows of a tile.
    const ROWS: usize;
    /// Most lines of columns of a tile.
    const LINES: usize;

    /// Writes the words of a row, centred, to every `every`-th line; the last line is filled up with zeros.
    fn centre_row(self, x: &[u32], every: usize, out: &mut [Line]);

    /// Writes terms `terms` of a panel, centred, to part `place[0]` of every `place[1]`-th line, a part being
    /// [`Vectors::LANES`] words.
    ///
    /// Terms are numbered as in [`Vectors::pack_pixels`]; `x` holds `channels` whole planes.
    fn centre_pixels(
        self,
        x: &[u32],
        channels: usize,
        panel: &Self::Panel,
        terms: Range<usize>,
        place: [usize; 2],
        out: &mut [Line],
    );

    /// `rows[r][store] (+)= Σ left[r]·right` over `terms` terms.
    ///
    /// `left` is `[sixteen terms][row]`, `right` `[term][line]`; at most [`WholeWords::ROWS`] rows and as many lines as
    /// `store` has columns, at most [`WholeWords::LINES`].
    fn whole_tile(
        self,
        left: &[Line],
        right: &[Line],
        terms: usize,
        store: Store,
        rows: &mut [&mut [u32]],
    );
}

/// Terms that meet between two folds: their sum and what the fold before left stay inside 64 bits.
pub(in crate::linear) const FOLD: usize = 8;

/// The largest product of two centred words, and the largest magnitude that a fold leaves.
const PRODUCT: i128 = (P as i128 / 2) * (P as i128 / 2);
const FOLDED: i128 = (1 << 31) + (1 << 32);
const _: () = assert!(FOLD as i128 * PRODUCT + FOLDED < 1 << 63);

/// The representative of `word` mod p in [−(p − 1)/2, (p − 1)/2], as two's complement.
#[inline(always)]
pub(in crate::linear) fn centre(word: u32) -> u32 {
    let word = (word & P) + (word >> 31);
    word.wrapping_sub(if word > P / 2 { P } else { 0 })
}

/// Packed weights; overwritten when dropped.
pub(super) struct Packed(pub(super) Vec<Line>);

impl Packed {
    pub(super) fn new(lines: usize) -> Self {
        Self(vec![Line([0; LANES]); lines])
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        for line in &mut self.0 {
            line.0.fill(0);
        }
        std::hint::black_box(&mut self.0);
    }
}

/// Splits `terms` into equal blocks of at most [`BLOCK`], each but the last a multiple of a line.
pub(super) fn blocks(terms: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    let size = terms
        .div_ceil(terms.div_ceil(BLOCK))
        .next_multiple_of(LANES);
    (0..terms)
        .step_by(size)
        .map(move |first| first..terms.min(first + size))
}

/// Most terms of a block: two lines of them stay in a second-level cache beside a tile of rows in the first.
const BLOCK: usize = 1024;
