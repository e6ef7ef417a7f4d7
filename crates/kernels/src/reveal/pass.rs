//! The pass itself, piece by piece of a row.

use super::{Claim, Epilogue, Factors};
use crate::activation::{self, Activation};
use crate::field::{Fp, HALF, P};
use crate::fixed::{MAGNITUDE, MaxAbs};
use crate::isa::vector::{AHEAD, OneLane, Pass, Vector, load, load_f, store_f};

/// What becomes of the elements besides their sums.
pub(super) struct Finish<'a> {
    pub(super) epilogue: &'a Epilogue<'a>,
    pub(super) out: &'a mut [f32],
    pub(super) row_max: &'a mut [MaxAbs],
}

/// Returns the largest word of the claim.
pub(super) struct Reveal<'a> {
    pub(super) claim: &'a Claim<'a>,
    pub(super) v: &'a [Factors<'a>],
    pub(super) finish: Option<Finish<'a>>,
    pub(super) dots: &'a mut [Fp],
}

impl Pass for Reveal<'_> {
    type Output = u32;

    fn scalar(self) -> u32 {
        let Self {
            claim,
            v,
            mut finish,
            dots,
        } = self;
        let mut largest = 0;
        for row in 0..claim.rows {
            for col in 0..claim.cols {
                let at = row * claim.cols + col;
                largest = largest.max(claim.words[at]);
                let mut y = claim.words[at];
                if let Some(u) = claim.u {
                    let difference = y.wrapping_sub(u[at]);
                    y = difference.min(difference.wrapping_add(P));
                }
                for (dot, v) in dots.iter_mut().zip(v) {
                    let v = u64::from(v.outer[row]) * u64::from(v.inner[col]);
                    *dot += Fp::from_u64(v) * Fp::from_u64(y.into());
                }
                let Some(finish) = &mut finish else { continue };
                let centred = y as i32;
                let centred = if centred > HALF {
                    centred - P as i32
                } else {
                    centred
                };
                let x = finish.epilogue.apply(centred, row, col, at);
                finish.out[at] = x;
                let slot = if finish.row_max.len() == 1 { 0 } else { row };
                finish.row_max[slot] = finish.row_max[slot].max(MaxAbs::of(x));
            }
        }
        largest
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) -> u32 {
        let Self {
            claim,
            v: vectors,
            finish,
            dots,
        } = self;
        let (pair, rest) = vectors.split_at(vectors.len().min(2));
        let (pair_dots, rest_dots) = dots.split_at_mut(pair.len());
        let largest = match finish {
            None => sums(v, claim, pair, pair_dots),
            Some(finish) => match *pair {
                [] => finished::<V, 0>(v, claim, [], finish, pair_dots),
                [a] => finished::<V, 1>(v, claim, [a], finish, pair_dots),
                [a, b, ..] => finished::<V, 2>(v, claim, [a, b], finish, pair_dots),
            },
        };
        for (pair, dots) in rest.chunks(2).zip(rest_dots.chunks_mut(2)) {
            sums(v, claim, pair, dots);
        }
        largest
    }
}

impl Epilogue<'_> {
    /// The definition for one element.
    fn apply(&self, centred: i32, row: usize, col: usize, at: usize) -> f32 {
        let (factor, bias) = self.row(row);
        let mut x = centred as f32 * factor;
        if let Some(factor) = self.factor_col {
            x *= factor[col];
        }
        x += self.column_bias().map_or(bias, |bias| bias[col]);
        x = activation::lanes(OneLane, self.pre, x);
        if let Some(residual) = self.residual {
            x += residual[at];
        }
        activation::lanes(OneLane, self.post, x)
    }
}

/// Sums and output for `N` vectors.
#[inline(always)]
fn finished<V: Vector, const N: usize>(
    v: V,
    claim: &Claim<'_>,
    vectors: [Factors<'_>; N],
    finish: Finish<'_>,
    dots: &mut [Fp],
) -> u32 {
    let Epilogue { pre, post, .. } = finish.epilogue;
    if pre.is_transcendental() || post.is_transcendental() {
        rows::<V, N, APART>(v, claim, vectors, finish, dots)
    } else {
        rows::<V, N, FUSED>(v, claim, vectors, finish, dots)
    }
}

/// The sums for at most two vectors, and nothing else.
#[inline(always)]
fn sums<V: Vector>(v: V, claim: &Claim<'_>, vectors: &[Factors<'_>], dots: &mut [Fp]) -> u32 {
    let epilogue = &Epilogue::default();
    let none = Finish {
        epilogue,
        out: &mut [],
        row_max: &mut [],
    };
    match *vectors {
        [] => rows::<V, 0, SUMS>(v, claim, [], none, dots),
        [a] => rows::<V, 1, SUMS>(v, claim, [a], none, dots),
        [a, b, ..] => rows::<V, 2, SUMS>(v, claim, [a, b], none, dots),
    }
}

/// Elements of a row taken together.
const PIECE: usize = 1024;
/// Pieces whose sums are added before a fold.
const PIECES: usize = 1024;

/// Mode of a loop: no output.
const SUMS: u8 = 0;
/// Mode of a loop: what follows the affine part is applied on the way.
const FUSED: u8 = 1;
/// Mode of a loop: what follows is applied by a loop of its own, which has the registers that transcendental functions
/// need, to a piece's worth of elements while they are in the first-level cache.
const APART: u8 = 2;

/// All rows for `N` vectors.
#[inline(always)]
fn rows<V: Vector, const N: usize, const MODE: u8>(
    v: V,
    claim: &Claim<'_>,
    vectors: [Factors<'_>; N],
    finish: Finish<'_>,
    dots: &mut [Fp],
) -> u32 {
    let Finish {
        epilogue,
        out,
        row_max,
    } = finish;
    let Claim {
        words,
        u,
        rows,
        cols,
    } = *claim;
    let column_bias = epilogue.column_bias();
    let mut largest = v.splat(0);
    let mut top = v.splat(0);
    // Elements to which what follows has been applied, where that is done apart.
    let mut finished = 0;
    let by_row = row_max.len() == rows;
    let mut totals = [v.zero_w(); N];
    let mut sums = [v.zero_acc(); N];
    let mut pieces = 0;
    for row in 0..rows {
        let (factor, bias) = epilogue.row(row);
        let (factor, bias) = (v.splat_f(factor), v.splat_f(bias));
        let mut col = 0;
        while col < cols {
            let end = cols.min(col + PIECE);
            let (from, to) = (row * cols + col, row * cols + end);
            let mut piece = Piece {
                words: &words[from..to],
                u: u.map(|u| &u[from..to]),
                inner: vectors.map(|v| &v.inner[col..end]),
                factor,
                bias,
                factor_col: epilogue.factor_col.map(|factor| &factor[col..end]),
                bias_col: column_bias.map(|bias| &bias[col..end]),
                out: if MODE != SUMS {
                    &mut out[from..to]
                } else {
                    &mut []
                },
                sums: [v.zero_acc(); N],
                follow: Follow::of(epilogue, from, to),
                largest,
                top,
            };
            piece.run::<MODE>(v);
            (largest, top) = (piece.largest, piece.top);
            for (j, vector) in vectors.iter().enumerate() {
                let sum = v.fold(piece.sums[j]);
                sums[j] = v.mul_add_w(sums[j], sum, v.splat(vector.outer[row]));
            }
            pieces += 1;
            if pieces == PIECES {
                pieces = 0;
                for (total, sum) in totals.iter_mut().zip(&mut sums) {
                    *total = v.add_w(*total, v.fold(*sum));
                    *sum = v.zero_acc();
                }
            }
            col = end;
            if MODE == APART && (by_row || to - finished >= PIECE) {
                let follow = Follow::of(epilogue, finished, to);
                top = v.max(top, follow.run(v, &mut out[finished..to]));
                finished = to;
            }
        }
        if MODE != SUMS
            && by_row
            && let Some(slot) = row_max.get_mut(row)
        {
            *slot = MaxAbs::from_bits(v.largest(top));
            top = v.splat(0);
        }
    }
    if MODE != SUMS && !by_row {
        if MODE == APART {
            let follow = Follow::of(epilogue, finished, words.len());
            top = v.max(top, follow.run(v, &mut out[finished..]));
        }
        row_max[0] = MaxAbs::from_bits(v.largest(top));
    }
    for ((dot, total), sum) in dots.iter_mut().zip(totals).zip(sums) {
        *dot = Fp::from_u64(v.sum_w(v.add_w(total, v.fold(sum))));
    }
    v.largest(largest)
}

/// A piece of a row, and what is kept in registers over it.
struct Piece<'a, V: Vector, const N: usize> {
    words: &'a [u32],
    u: Option<&'a [u32]>,
    inner: [&'a [u32]; N],
    factor: V::F,
    bias: V::F,
    factor_col: Option<&'a [f32]>,
    bias_col: Option<&'a [f32]>,
    follow: Follow<'a>,
    out: &'a mut [f32],
    sums: [V::Acc; N],
    /// The largest word, lane by lane.
    largest: V::I,
    /// The largest magnitude of the output, lane by lane.
    top: V::I,
}

impl<V: Vector, const N: usize> Piece<'_, V, N> {
    #[inline(always)]
    fn run<const MODE: u8>(&mut self, v: V) {
        let len = self.words.len();
        let mut at = 0;
        while at + V::LANES <= len {
            self.step::<MODE, false>(v, at);
            at += V::LANES;
        }
        if at < len {
            self.step::<MODE, true>(v, at);
        }
    }

    #[inline(always)]
    fn step<const MODE: u8, const PART: bool>(&mut self, v: V, at: usize) {
        let mut y = load::<V, PART>(v, self.words, at);
        self.largest = v.max(self.largest, y);
        let p = v.splat(P);
        v.prefetch(self.words, at + AHEAD);
        if let Some(u) = self.u {
            v.prefetch(u, at + AHEAD);
            let difference = v.sub(y, load::<V, PART>(v, u, at));
            y = v.min(difference, v.add(difference, p));
        }
        for (sum, inner) in self.sums.iter_mut().zip(self.inner) {
            *sum = v.mul_add(*sum, y, load::<V, PART>(v, inner, at));
        }
        if MODE == SUMS {
            return;
        }
        let centred = v.sub(y, v.where_greater(y, v.splat(HALF as u32), p));
        let mut x = v.mul_f(v.float(centred), self.factor);
        if let Some(factor) = self.factor_col {
            x = v.mul_f(x, load_f::<V, PART>(v, factor, at));
        }
        let bias = self.bias_col.map(|bias| load_f::<V, PART>(v, bias, at));
        x = v.add_f(x, bias.unwrap_or(self.bias));
        if MODE == FUSED {
            x = self.follow.algebraic::<V, PART>(v, x, at);
            let magnitude = magnitude::<V, PART>(v, x, self.words.len() - at);
            self.top = v.max(self.top, magnitude);
        }
        store_f::<V, PART>(v, x, self.out, at);
    }
}

/// What follows the affine part, over a run of elements.
#[derive(Clone, Copy)]
struct Follow<'a> {
    pre: Activation,
    residual: Option<&'a [f32]>,
    post: Activation,
}

impl<'a> Follow<'a> {
    #[inline(always)]
    fn of(epilogue: &Epilogue<'a>, from: usize, to: usize) -> Self {
        let residual = epilogue.residual.map(|residual| &residual[from..to]);
        Follow {
            pre: epilogue.pre,
            residual,
            post: epilogue.post,
        }
    }

    #[inline(always)]
    fn algebraic<V: Vector, const PART: bool>(self, v: V, x: V::F, at: usize) -> V::F {
        let mut x = activation::algebraic_lanes(v, self.pre, x);
        if let Some(residual) = self.residual {
            x = v.add_f(x, load_f::<V, PART>(v, residual, at));
        }
        activation::algebraic_lanes(v, self.post, x)
    }

    #[inline(always)]
    fn any<V: Vector, const PART: bool>(self, v: V, x: V::F, at: usize) -> V::F {
        let mut x = activation::lanes(v, self.pre, x);
        if let Some(residual) = self.residual {
            x = v.add_f(x, load_f::<V, PART>(v, residual, at));
        }
        activation::lanes(v, self.post, x)
    }

    /// In place over a run. Returns the largest magnitudes, lane by lane.
    #[inline(always)]
    fn run<V: Vector>(self, v: V, out: &mut [f32]) -> V::I {
        let mut top = v.splat(0);
        let mut at = 0;
        while at + V::LANES <= out.len() {
            let x = self.any::<V, false>(v, v.load_f(out, at), at);
            v.store_f(x, out, at);
            top = v.max(top, magnitude::<V, false>(v, x, V::LANES));
            at += V::LANES;
        }
        if at < out.len() {
            let x = self.any::<V, true>(v, v.load_part_f(out, at), at);
            v.store_part_f(x, out, at);
            top = v.max(top, magnitude::<V, true>(v, x, out.len() - at));
        }
        top
    }
}

/// Magnitudes of floats, of the first `len` if that is a part.
#[inline(always)]
fn magnitude<V: Vector, const PART: bool>(v: V, x: V::F, len: usize) -> V::I {
    let magnitude = v.and(v.bits(x), v.splat(MAGNITUDE));
    if PART {
        v.first_lanes(magnitude, len)
    } else {
        magnitude
    }
}
