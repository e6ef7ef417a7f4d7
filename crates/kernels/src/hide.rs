//! Hiding: activations to masked field elements, and the sums that a later check expects, in one pass.
//!
//! For activations x in fixed point q, |q| ≤ A, the pass writes q + r mod p for a uniform mask r, and computes ⟨a, q⟩ in F_p
//! for every check vector a = Lᵀv of the layers that read this upload. What is written is uniform whatever q is, and
//! independent of it.
//!
//! The pass goes tile by tile, a tile being at most 1024 elements: whole short rows, or a piece of one long row. So
//! keystream and quantised values stay in the first-level cache, and the accumulators of the check get a fold period
//! that does not depend on the shapes:
//! a tile adds at most 1024/8 = 2⁷ products to a 64-bit lane, each below A·p ≤ 2²¹·(2³¹ − 1) in magnitude, so a lane stays
//! below 2⁵⁹, two lanes together below 2⁶⁰; folded to 32 bits, a tile's rows (at most 1024) are multiplied by their
//! factors, 1024 ≤ 2048 multiply-adds; folded again, a tile adds less than 2³² to the total, and the
//! keystream ends after 2²⁴ + 1 full tiles.
//!
//! Source: one-time pad in a field, and a = Lᵀv computed beforehand, as in Slalom (ICLR 2019) §3; the check is
//! Freivalds (1977), see [`crate::check`].
#![forbid(unsafe_code)]

mod clear;

use core::fmt;
use core::ops::Range;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::field::{Fp, P};
use crate::fixed::{Bound, quantise_lanes, quantise_one};
use crate::isa::Isa;
use crate::isa::vector::{AHEAD, Pass, Vector, load, load_f, store};
use crate::keystream::Stream;
use crate::{WrongLength, erase};

pub use clear::{quantise_short, quantise_short_with};

/// A matrix of activations and how to quantise it.
#[derive(Clone, Copy, Debug)]
pub struct Activations<'a> {
    /// `rows` × `cols`, row-major.
    x: &'a [f32],
    rows: usize,
    cols: usize,
    /// One for all, or one a row.
    inverse: &'a [f32],
    bound: Bound,
}

impl<'a> Activations<'a> {
    /// Activations `x` (`rows` × `cols`, row-major), q = round(x · inverse) clamped to the bound; `inverse` holds one
    /// number for all rows or one for each.
    ///
    /// **Errors**: [`WrongLength`] if lengths disagree.
    pub fn new(
        x: &'a [f32],
        rows: usize,
        cols: usize,
        inverse: &'a [f32],
        bound: Bound,
    ) -> Result<Self, WrongLength> {
        WrongLength::check_product(rows, cols, x.len())?;
        if inverse.len() != 1 {
            WrongLength::check(rows, inverse.len())?;
        }
        Ok(Self {
            x,
            rows,
            cols,
            inverse,
            bound,
        })
    }

    /// The inverse scale of a row.
    #[inline(always)]
    fn row_inverse(&self, row: usize) -> f32 {
        self.inverse[if self.inverse.len() == 1 { 0 } else { row }]
    }
}

/// The transposed check vector a = Lᵀv over a layer's input, in canonical words.
///
/// Secret: who knows a learns v and can forge answers. Overwritten when dropped, and never printed.
#[derive(Zeroize, ZeroizeOnDrop)]
#[non_exhaustive]
pub enum Folded {
    /// One word for each element of the input, row-major.
    Dense(Vec<u32>),
    /// `a[r, c] = outer[r] · inner[c]`, as it is for products and for 1×1 convolutions.
    RankOne {
        /// One word a row.
        outer: Vec<u32>,
        /// One word a column.
        inner: Vec<u32>,
    },
}

impl Folded {
    /// The vector, borrowed.
    pub fn view(&self) -> View<'_> {
        match self {
            Self::Dense(a) => View::Dense(a),
            Self::RankOne { outer, inner } => View::RankOne { outer, inner },
        }
    }
}

/// A transposed check vector or a band of its rows, borrowed.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub enum View<'a> {
    /// As [`Folded::Dense`].
    Dense(&'a [u32]),
    /// As [`Folded::RankOne`].
    RankOne {
        /// One word a row.
        outer: &'a [u32],
        /// One word a column.
        inner: &'a [u32],
    },
}

impl View<'_> {
    /// The same for some rows of an input of `cols` columns.
    ///
    /// # Panics
    /// If there are no such rows.
    #[must_use]
    pub fn rows(self, rows: Range<usize>, cols: usize) -> Self {
        match self {
            Self::Dense(a) => View::Dense(&a[rows.start * cols..rows.end * cols]),
            Self::RankOne { outer, inner } => View::RankOne {
                outer: &outer[rows],
                inner,
            },
        }
    }

    fn assert_shape(self, rows: usize, cols: usize) {
        let fits = match self {
            Self::Dense(a) => a.len() == rows * cols,
            Self::RankOne { outer, inner } => outer.len() == rows && inner.len() == cols,
        };
        assert!(fits, "check vector and activations have different shapes");
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense(_) => "Dense(..)",
            Self::RankOne { .. } => "RankOne(..)",
        })
    }
}

impl fmt::Debug for Folded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense(_) => "Dense(..)",
            Self::RankOne { .. } => "RankOne(..)",
        })
    }
}

/// Writes q + r mod p to `out` and ⟨a, q⟩ for each check vector to `dots`.
///
/// **Shapes**: `out` has one word for each activation, `dots` one element for each of `folds`, whose shape is that of the
/// activations. Words `first`, `first` + 1, .. of `mask` are r; without a mask r = 0 (nothing is hidden).
/// **Domain**: `out` canonical; the words of `folds` must be. **Exactness**: exact, equal on every instruction set.
///
/// # Panics
/// If lengths disagree, or the mask ends before the activations do: both are settled when a plan is made.
pub fn hide(
    acts: &Activations<'_>,
    mask: Option<&Stream<'_>>,
    first: u64,
    folds: &[View<'_>],
    out: &mut [u32],
    dots: &mut [Fp],
) {
    hide_with(Isa::best(), acts, mask, first, folds, out, dots);
}

/// [`hide()`] with a given instruction set.
///
/// # Panics
/// As [`hide()`] does.
pub fn hide_with(
    isa: Isa,
    acts: &Activations<'_>,
    mask: Option<&Stream<'_>>,
    first: u64,
    folds: &[View<'_>],
    out: &mut [u32],
    dots: &mut [Fp],
) {
    assert_eq!(
        out.len(),
        acts.x.len(),
        "output and activations differ in length"
    );
    assert_eq!(dots.len(), folds.len(), "one sum for each check vector");
    for fold in folds {
        fold.assert_shape(acts.rows, acts.cols);
    }
    if let Some(mask) = mask {
        mask.assert_range(first, out.len());
    }
    isa.run(Hide {
        acts,
        mask,
        first,
        folds,
        out,
        dots,
    });
}

/// Writes q to `out`: the fixed-point activations themselves, for work that stays on the trusted side.
///
/// **Exactness**: the same q that [`hide()`] masks.
///
/// # Panics
/// If lengths disagree.
pub fn quantise(acts: &Activations<'_>, out: &mut [i32]) {
    quantise_with(Isa::best(), acts, out);
}

/// [`quantise`] with a given instruction set.
///
/// # Panics
/// As [`quantise`] does.
pub fn quantise_with(isa: Isa, acts: &Activations<'_>, out: &mut [i32]) {
    assert_eq!(
        out.len(),
        acts.x.len(),
        "output and activations differ in length"
    );
    isa.run(Quantise { acts, out });
}

/// Elements of a tile.
const TILE: usize = 1024;

struct Hide<'a> {
    acts: &'a Activations<'a>,
    mask: Option<&'a Stream<'a>>,
    first: u64,
    folds: &'a [View<'a>],
    out: &'a mut [u32],
    dots: &'a mut [Fp],
}

impl Pass for Hide<'_> {
    type Output = ();

    fn scalar(self) {
        let Self {
            acts,
            mask,
            first,
            folds,
            out,
            dots,
        } = self;
        match mask {
            Some(mask) => mask.fill_with(Isa::Scalar, first, out),
            None => out.fill(0),
        }
        dots.fill(Fp::ZERO);
        for row in 0..acts.rows {
            let inverse = acts.row_inverse(row);
            for col in 0..acts.cols {
                let at = row * acts.cols + col;
                let q = Fp::from_signed(quantise_one(acts.x[at], inverse, acts.bound).into());
                out[at] = (q + Fp::from_u64(out[at].into())).word();
                for (dot, fold) in dots.iter_mut().zip(folds) {
                    let a = match *fold {
                        View::Dense(a) => u64::from(a[at]),
                        View::RankOne { outer, inner } => {
                            u64::from(outer[row]) * u64::from(inner[col])
                        }
                    };
                    *dot += Fp::from_u64(a) * q;
                }
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self {
            acts,
            mask,
            first,
            folds,
            out,
            dots,
        } = self;
        let mut pads = [0; Stream::room(TILE)];
        let mut steps = [0; TILE];
        let mut used = 0;
        let mut sums = vec![v.zero_w(); folds.len()];
        for tile in Tiles::new(acts.rows, acts.cols) {
            let (start, len) = (tile.row * acts.cols + tile.col, tile.rows * tile.cols);
            let x = &acts.x[start..start + len];
            let out = &mut out[start..start + len];
            let q = &mut steps[..len];
            used = used.max(len);
            let pad = match mask {
                Some(mask) => mask.tile(v, first + start as u64, len, &mut pads),
                None => &pads[..len],
            };
            if acts.inverse.len() == 1 {
                hide_run(v, x, acts.inverse[0], acts.bound, pad, q, out);
            } else {
                for row in 0..tile.rows {
                    let (from, to) = (row * tile.cols, (row + 1) * tile.cols);
                    let inverse = acts.inverse[tile.row + row];
                    let (x, pad) = (&x[from..to], &pad[from..to]);
                    hide_run(
                        v,
                        x,
                        inverse,
                        acts.bound,
                        pad,
                        &mut q[from..to],
                        &mut out[from..to],
                    );
                }
            }
            add_tile(v, &tile, start, q, folds, &mut sums);
        }
        for (dot, sum) in dots.iter_mut().zip(sums) {
            *dot = Fp::from_u64(v.sum_w(sum));
        }
        erase(&mut steps[..used]);
        if mask.is_some() {
            erase(&mut pads[..Stream::room(used)]);
        }
    }
}

/// Adds ⟨a, q⟩ over a tile that begins at `start` to the sum of each check vector.
#[inline(always)]
fn add_tile<V: Vector>(
    v: V,
    tile: &Tile,
    start: usize,
    q: &[u32],
    folds: &[View<'_>],
    sums: &mut [V::W],
) {
    for (sum, fold) in sums.iter_mut().zip(folds) {
        let tile_sum = match *fold {
            View::Dense(a) => dot(v, q, &a[start..start + q.len()]),
            View::RankOne { outer, inner } => {
                let outer = &outer[tile.row..tile.row + tile.rows];
                let inner = &inner[tile.col..tile.col + tile.cols];
                let mut rows = v.zero_acc();
                for (row, &factor) in outer.iter().enumerate() {
                    let q = &q[row * tile.cols..(row + 1) * tile.cols];
                    rows = v.mul_add_w(rows, dot(v, q, inner), v.splat(factor));
                }
                v.fold(rows)
            }
        };
        *sum = v.add_w(*sum, tile_sum);
    }
}

/// Quantises a run of elements to `q` (two's complement) and `out` (masked).
#[inline(always)]
fn hide_run<V: Vector>(
    v: V,
    x: &[f32],
    inverse: f32,
    bound: Bound,
    pad: &[u32],
    q: &mut [u32],
    out: &mut [u32],
) {
    let len = x.len();
    let (pad, q, out) = (&pad[..len], &mut q[..len], &mut out[..len]);
    let (inverse, limit) = (v.splat_f(inverse), v.splat_f(bound.steps() as f32));
    let mut at = 0;
    while at + V::LANES <= len {
        hide_step::<V, false>(v, at, x, inverse, limit, pad, q, out);
        at += V::LANES;
    }
    if at < len {
        hide_step::<V, true>(v, at, x, inverse, limit, pad, q, out);
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)] // One step of the loop above, for whole and for part vectors.
fn hide_step<V: Vector, const PART: bool>(
    v: V,
    at: usize,
    x: &[f32],
    inverse: V::F,
    limit: V::F,
    pad: &[u32],
    q: &mut [u32],
    out: &mut [u32],
) {
    let p = v.splat(P);
    v.prefetch(x, at + AHEAD);
    let steps = quantise_lanes(v, load_f::<V, PART>(v, x, at), inverse, limit);
    store::<V, PART>(v, steps, q, at);
    // Of x and x ± p as unsigned words the smaller is the canonical one.
    let word = v.min(steps, v.add(steps, p));
    let sum = v.add(word, load::<V, PART>(v, pad, at));
    store::<V, PART>(v, v.min(sum, v.sub(sum, p)), out, at);
}

/// ⟨a, q⟩ modulo p over at most a tile, in lanes below 2³².
#[inline(always)]
fn dot<V: Vector>(v: V, q: &[u32], a: &[u32]) -> V::W {
    let len = q.len();
    let a = &a[..len];
    let mut sum = [v.zero_w(); 2];
    let mut at = 0;
    while at + V::LANES <= len {
        v.prefetch(a, at + AHEAD);
        sum = v.mul_add_signed(sum, v.load(q, at), v.load(a, at));
        at += V::LANES;
    }
    if at < len {
        sum = v.mul_add_signed(sum, v.load_part(q, at), v.load_part(a, at));
    }
    v.fold_signed(sum)
}

struct Quantise<'a> {
    acts: &'a Activations<'a>,
    out: &'a mut [i32],
}

impl Pass for Quantise<'_> {
    type Output = ();

    fn scalar(self) {
        let Self { acts, out } = self;
        let cols = acts.cols.max(1);
        for (row, (out, x)) in out.chunks_mut(cols).zip(acts.x.chunks(cols)).enumerate() {
            let inverse = acts.row_inverse(row);
            for (out, &x) in out.iter_mut().zip(x) {
                *out = quantise_one(x, inverse, acts.bound);
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self { acts, out } = self;
        let out: &mut [u32] = bytemuck::cast_slice_mut(out);
        let limit = v.splat_f(acts.bound.steps() as f32);
        // One inverse: the matrix is one row.
        let row_len = if acts.inverse.len() == 1 {
            acts.x.len()
        } else {
            acts.cols
        }
        .max(1);
        let rows = out.chunks_mut(row_len).zip(acts.x.chunks(row_len));
        for ((out, x), &inverse) in rows.zip(acts.inverse) {
            quantise_run(v, x, inverse, limit, &mut out[..x.len()]);
        }
    }
}

/// Quantises a run of elements to `q` (two's complement).
#[inline(always)]
fn quantise_run<V: Vector>(v: V, x: &[f32], inverse: f32, limit: V::F, q: &mut [u32]) {
    let inverse = v.splat_f(inverse);
    let mut at = 0;
    while at + V::LANES <= x.len() {
        v.prefetch(x, at + AHEAD);
        let steps = quantise_lanes(v, v.load_f(x, at), inverse, limit);
        v.store(steps, q, at);
        at += V::LANES;
    }
    if at < x.len() {
        let steps = quantise_lanes(v, v.load_part_f(x, at), inverse, limit);
        v.store_part(steps, q, at);
    }
}

/// A piece of a matrix that is contiguous in memory: whole rows, or a piece of one row.
struct Tile {
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
}

/// All tiles of a matrix in memory order, each of at most [`TILE`] elements.
struct Tiles {
    rows: usize,
    cols: usize,
    /// Rows of a tile.
    height: usize,
    row: usize,
    col: usize,
}

impl Tiles {
    fn new(rows: usize, cols: usize) -> Self {
        let height = TILE.checked_div(cols).unwrap_or(1).max(1);
        Self {
            rows: if cols == 0 { 0 } else { rows },
            cols,
            height,
            row: 0,
            col: 0,
        }
    }
}

impl Iterator for Tiles {
    type Item = Tile;

    fn next(&mut self) -> Option<Tile> {
        let (row, col) = (self.row, self.col);
        let rows = self.height.min(self.rows - row);
        if rows == 0 {
            return None;
        }
        let cols = (self.cols - col).min(TILE);
        self.col += cols;
        if self.col == self.cols {
            self.col = 0;
            self.row += rows;
        }
        Some(Tile {
            row,
            rows,
            col,
            cols,
        })
    }
}

#[cfg(test)]
mod tests;
