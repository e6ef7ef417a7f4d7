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

use core::fmt;
use core::ops::Range;

use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::WrongLength;
use crate::activation::{self, Activation};
use crate::field::{Fp, HALF, P};
use crate::fixed::{MAGNITUDE, MaxAbs};
use crate::isa::Isa;
use crate::isa::vector::{AHEAD, OneLane, Pass, Vector, load, load_f, store_f};

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

struct Finish<'a> {
    epilogue: &'a Epilogue<'a>,
    out: &'a mut [f32],
    row_max: &'a mut [MaxAbs],
}

/// Returns the largest word of the claim.
struct Reveal<'a> {
    claim: &'a Claim<'a>,
    v: &'a [Factors<'a>],
    finish: Option<Finish<'a>>,
    dots: &'a mut [Fp],
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

#[cfg(test)]
mod tests {
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
}
