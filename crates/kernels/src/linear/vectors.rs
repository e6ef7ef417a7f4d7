//! What an instruction set brings to the exact products; the loops around it are the same for all.
//!
//! A word is cut into limbs whose products with eight-bit weights sum in 32-bit lanes. One *step* is as many
//! terms of the sum as one instruction adds up. Two layouts: *pixels*, where lanes are output pixels and
//! weights are broadcast, for planar outputs; *words*, where lanes are output columns and the words of one row
//! are broadcast.

use std::ops::Range;

use zeroize::Zeroize;

use super::tiles::Line;
use super::window::Window;

/// An instruction set with exact multiply-accumulate. Implemented by its token.
pub(super) trait Vectors: Copy + Send + Sync + 'static {
    /// Outputs in one vector.
    const LANES: usize;
    /// Terms in one step.
    const STEP: usize;
    /// Terms that a 32-bit accumulator holds; a multiple of `STEP`.
    const BLOCK: usize;
    /// Where a run of output pixels reads; reused from run to run.
    type Panel: Default;
    /// One step of `LANES` pixels, all limbs.
    type Pixels: Copy;
    /// One step of one row, all limbs, to be broadcast.
    type Words: Copy;
    /// A step of zeros.
    const NO_WORDS: Self::Words;
    /// One step of `LANES` columns of weights.
    type Weights: Copy + Send + Sync;

    /// Lends this thread's buffers.
    fn scratch<R>(self, work: impl FnOnce(&mut Scratch<Self>) -> R) -> R;

    /// One step of one output's weights, to be broadcast; absent ones are zero.
    fn broadcast(weights: &[i8]) -> i32;

    /// One step of weights, `weight(lane, term)`.
    fn weights(weight: impl Fn(usize, usize) -> i8) -> Self::Weights;

    /// Finds where output pixels `first..first + count` read, `count ≤ LANES`.
    fn panel(self, window: &Window, first: usize, count: usize, panel: &mut Self::Panel);

    /// Appends terms `terms` of a panel, numbered tap by tap and channel by channel within a tap.
    ///
    /// `x` holds `channels` whole planes.
    fn pack_pixels(
        self,
        x: &[u32],
        channels: usize,
        panel: &Self::Panel,
        terms: Range<usize>,
        out: &mut Vec<Self::Pixels>,
    );

    /// Writes the steps of one row's words to every `every`-th place of `out`.
    fn pack_words(self, x: &[u32], every: usize, out: &mut [Self::Words]);

    /// `rows[r][store] (+)= Σ pixels·weights[..][r]`; at most [`PIXEL_ROWS`] rows.
    fn pixel_tile(
        self,
        pixels: &[Self::Pixels],
        weights: &[i32],
        store: Store,
        rows: &mut [&mut [u32]],
    );

    /// `rows[r][store] (+)= Σ words[..][r]·weights[..][v]`; at most [`WORD_ROWS`] rows and
    /// [`WORD_VECTORS`] vectors.
    fn word_tile(
        self,
        words: &[Self::Words],
        weights: &[Self::Weights],
        store: Store,
        rows: &mut [&mut [u32]],
    );
}

/// Buffers of one thread.
pub(super) struct Scratch<V: Vectors> {
    pub(super) panels: Vec<V::Panel>,
    pub(super) pixels: Vec<V::Pixels>,
    pub(super) words: Vec<V::Words>,
    pub(super) lines: Vec<Line>,
}

impl<V: Vectors> Default for Scratch<V> {
    fn default() -> Self {
        Self {
            panels: Vec::new(),
            pixels: Vec::new(),
            words: Vec::new(),
            lines: Vec::new(),
        }
    }
}

impl<V: Vectors> Scratch<V> {
    /// Overwrites all limbs, those of longer runs before the last one too.
    pub(super) fn wipe(&mut self) {
        wipe(&mut self.pixels);
        wipe(&mut self.words);
        wipe(&mut self.lines);
    }
}

pub(super) fn wipe<T>(limbs: &mut Vec<T>) {
    limbs.clear();
    limbs.spare_capacity_mut().zeroize();
}

/// Makes room for `count` entries; memory that is too small is overwritten before it is given back.
pub(super) fn room<T>(limbs: &mut Vec<T>, count: usize) {
    if limbs.capacity() < count {
        wipe(limbs);
        limbs.reserve_exact(count);
    }
}

/// Where a tile goes, and how.
#[derive(Clone, Copy)]
pub(super) struct Store {
    /// First column of the rows that are handed in.
    pub(super) column: usize,
    /// Columns to write.
    pub(super) count: usize,
    /// The sum is multiplied by 2^place.
    pub(super) place: u32,
    /// Overwrite instead of adding to what is there.
    pub(super) first: bool,
}

/// Rows of a pixel tile.
pub(super) const PIXEL_ROWS: usize = 6;

/// Rows of a word tile.
pub(super) const WORD_ROWS: usize = 3;

/// Vectors of a word tile.
pub(super) const WORD_VECTORS: usize = 2;

/// Splits `terms` into equal blocks of at most `V::BLOCK`, each but the last a multiple of a step.
pub(super) fn blocks<V: Vectors>(terms: usize) -> impl Iterator<Item = Range<usize>> {
    let count = terms.div_ceil(V::BLOCK);
    let size = terms.div_ceil(count).next_multiple_of(V::STEP);
    (0..terms)
        .step_by(size)
        .map(move |first| first..terms.min(first + size))
}

/// Steps in `terms` terms.
pub(super) fn steps<V: Vectors>(terms: usize) -> usize {
    terms.div_ceil(V::STEP)
}
