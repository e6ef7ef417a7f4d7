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

use core::fmt;
use core::ops::Range;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::field::{Fp, P};
use crate::fixed::{Bound, quantise_lanes, quantise_one};
use crate::isa::Isa;
use crate::isa::vector::{AHEAD, Pass, Vector, load, load_f, store};
use crate::keystream::Stream;
use crate::{WrongLength, erase};

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
            for (sum, fold) in sums.iter_mut().zip(folds) {
                let tile_sum = match *fold {
                    View::Dense(a) => dot(v, q, &a[start..start + len]),
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
        for (dot, sum) in dots.iter_mut().zip(sums) {
            *dot = Fp::from_u64(v.sum_w(sum));
        }
        erase(&mut steps[..used]);
        if mask.is_some() {
            erase(&mut pads[..Stream::room(used)]);
        }
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
            let inverse = v.splat_f(inverse);
            let out = &mut out[..x.len()];
            let mut at = 0;
            while at + V::LANES <= x.len() {
                let steps = quantise_lanes(v, v.load_f(x, at), inverse, limit);
                v.store(steps, out, at);
                at += V::LANES;
            }
            if at < x.len() {
                let steps = quantise_lanes(v, v.load_part_f(x, at), inverse, limit);
                v.store_part(steps, out, at);
            }
        }
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
mod tests {
    use super::{Activations, Folded, View, hide, hide_with, quantise_with};
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
                let expected: Vec<Fp> =
                    folds.iter().map(|fold| wide_dot(*fold, &q, cols)).collect();
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
    fn a_check_vector_is_not_printed() {
        assert_eq!(format!("{:?}", Folded::Dense(vec![12345])), "Dense(..)");
    }
}
