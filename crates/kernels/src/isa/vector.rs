//! What a pass needs of an instruction set: a small vocabulary of vector operations.
//!
//! A pass is written once over [`Vector`] and compiled for each instruction set by [`Isa::run`]; its scalar definition
//! is separate, plain code. Every method is inlined into a function compiled for the token's instruction set.
//!
//! Floats: operations are the IEEE ones, rounded to nearest even, never contracted. Minimum and maximum are the
//! x86 ones, stated in their documentation, because they decide what happens to NaN and to signed zeros.

use super::Isa;
use super::portable::Portable;
use crate::keystream::{Counter, Schedule};

/// A computation over whole buffers, with a definition and a vector form that equals it bit for bit.
pub(crate) trait Pass: Sized {
    /// What the pass returns beside the buffers it fills.
    type Output;
    /// The definition.
    fn scalar(self) -> Self::Output;
    /// The same with vectors. Implementations are `#[inline(always)]`, and so is what they call per element.
    fn vector<V: Vector>(self, v: V) -> Self::Output;
}

impl Isa {
    /// Runs a pass with this instruction set: the only dispatch, once a call.
    pub(crate) fn run<P: Pass>(self, pass: P) -> P::Output {
        match self {
            Self::Scalar => pass.scalar(),
            Self::Portable => Portable.run(pass),
            Self::Avx2(token) => token.run(pass),
            Self::Avx512(token) => token.run(pass),
        }
    }
}

/// Lanes of `f32` and of their bit patterns: what activations are made of. One lane for the definition.
pub(crate) trait Floats: Copy {
    /// Lanes of `f32`.
    type F: Copy;
    /// Lanes of 32-bit integers.
    type I: Copy;

    /// The same number in every lane.
    fn splat_f(self, x: f32) -> Self::F;
    /// The same word in every lane.
    fn splat(self, x: u32) -> Self::I;
    /// a + b
    fn add_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// a − b
    fn sub_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// a · b
    fn mul_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// a / b
    fn div_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: NaN in `b` stays, NaN in `a` goes.
    fn max_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: NaN in `b` stays, NaN in `a` goes.
    fn min_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a` where the sign bit of `sign` is set, else `b`.
    fn where_negative(self, sign: Self::F, a: Self::F, b: Self::F) -> Self::F;
    /// The nearest integer, ties to even. Domain: |x| ≤ 2²²; anything, without harm, for other x.
    fn nearest(self, x: Self::F) -> Self::I;
    /// The nearest float to a signed integer.
    fn float(self, x: Self::I) -> Self::F;
    /// Bit patterns of floats.
    fn bits(self, x: Self::F) -> Self::I;
    /// Floats of bit patterns.
    fn float_of_bits(self, x: Self::I) -> Self::F;
    /// a + b, wrapping.
    fn add(self, a: Self::I, b: Self::I) -> Self::I;
    /// a − b, wrapping.
    fn sub(self, a: Self::I, b: Self::I) -> Self::I;
    /// a & b
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// x · 2²³, wrapping: moves an integer to the exponent field.
    fn shift_to_exponent(self, x: Self::I) -> Self::I;
}

/// All vector operations of one instruction set. Implemented by tokens, so a call needs one.
pub(crate) trait Vector: Floats {
    /// 64-bit lanes, half as many.
    type W: Copy;
    /// Sums of products of words, each 64-bit lane a number modulo p.
    type Acc: Copy;

    /// The number of 32-bit lanes.
    const LANES: usize;

    /// Fills `out` with masked keystream words of `counter`, from block `first_block` on, without the retry of words
    /// equal to p. Returns the largest of them.
    fn keystream(self, key: &Schedule, counter: Counter, first_block: u32, out: &mut [u32]) -> u32;

    /// `LANES` words from `x[at..]`; panics unless they are there.
    fn load(self, x: &[u32], at: usize) -> Self::I;
    /// The words of `x[at..]`, fewer than `LANES`, then zeros.
    fn load_part(self, x: &[u32], at: usize) -> Self::I;
    /// `LANES` numbers from `x[at..]`; panics unless they are there.
    fn load_f(self, x: &[f32], at: usize) -> Self::F;
    /// The numbers of `x[at..]`, fewer than `LANES`, then zeros.
    fn load_part_f(self, x: &[f32], at: usize) -> Self::F;
    /// Stores all lanes to `out[at..]`; panics unless there is room.
    fn store(self, x: Self::I, out: &mut [u32], at: usize);
    /// Stores as many lanes as `out[at..]` has, fewer than `LANES`.
    fn store_part(self, x: Self::I, out: &mut [u32], at: usize);
    /// Stores all lanes to `out[at..]`; panics unless there is room.
    fn store_f(self, x: Self::F, out: &mut [f32], at: usize);
    /// Stores as many lanes as `out[at..]` has, fewer than `LANES`.
    fn store_part_f(self, x: Self::F, out: &mut [f32], at: usize);

    /// The lanes of even number of `a`, then those of `b`.
    fn evens_f(self, a: Self::F, b: Self::F) -> Self::F;
    /// The lanes of odd number of `a`, then those of `b`.
    fn odds_f(self, a: Self::F, b: Self::F) -> Self::F;

    /// Hints that `x[at]` is read soon; it may lie beyond the slice.
    fn prefetch<T>(self, x: &[T], at: usize);

    /// The smaller of unsigned words.
    fn min(self, a: Self::I, b: Self::I) -> Self::I;
    /// The larger of unsigned words.
    fn max(self, a: Self::I, b: Self::I) -> Self::I;
    /// `b` where a > limit as signed words, else 0.
    fn where_greater(self, a: Self::I, limit: Self::I, b: Self::I) -> Self::I;
    /// 0 where x is NaN, else x.
    fn drop_nan(self, x: Self::F) -> Self::F;
    /// The first `len` lanes of x, fewer than `LANES`, then zeros.
    fn first_lanes(self, x: Self::I, len: usize) -> Self::I;
    /// The largest of the unsigned words.
    fn largest(self, x: Self::I) -> u32;

    /// Zero in every lane.
    fn zero_w(self) -> Self::W;
    /// a + b, wrapping.
    fn add_w(self, a: Self::W, b: Self::W) -> Self::W;
    /// The sum of the lanes, wrapping.
    fn sum_w(self, x: Self::W) -> u64;
    /// `sum + a·b` for signed words, half of the lanes to the first, half to the second.
    fn mul_add_signed(self, sum: [Self::W; 2], a: Self::I, b: Self::I) -> [Self::W; 2];
    /// The first plus the second modulo p, each lane < 2³².
    /// Domain: the two lanes added are in (−2⁶⁰ + 2²⁹, 2⁶⁰).
    fn fold_signed(self, sum: [Self::W; 2]) -> Self::W;

    /// No products yet.
    fn zero_acc(self) -> Self::Acc;
    /// `acc + a·b`. Domain: b < 2³¹, and at most 2048 calls (of this and the next) between folds.
    fn mul_add(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc;
    /// `acc + a·b`, with a < 2³² in 64-bit lanes.
    fn mul_add_w(self, acc: Self::Acc, a: Self::W, b: Self::I) -> Self::Acc;
    /// The sum modulo p, each lane < 2³².
    fn fold(self, acc: Self::Acc) -> Self::W;
}

/// How many elements ahead to prefetch what a pass reads once: 2 KB, which makes up for the pauses that arithmetic leaves
/// in a stream from memory.
pub(crate) const AHEAD: usize = 512;

/// `load` or `load_part`, chosen when compiling.
#[inline(always)]
pub(crate) fn load<V: Vector, const PART: bool>(v: V, x: &[u32], at: usize) -> V::I {
    if PART {
        v.load_part(x, at)
    } else {
        v.load(x, at)
    }
}

/// `load_f` or `load_part_f`, chosen when compiling.
#[inline(always)]
pub(crate) fn load_f<V: Vector, const PART: bool>(v: V, x: &[f32], at: usize) -> V::F {
    if PART {
        v.load_part_f(x, at)
    } else {
        v.load_f(x, at)
    }
}

/// `store` or `store_part`, chosen when compiling.
#[inline(always)]
pub(crate) fn store<V: Vector, const PART: bool>(v: V, x: V::I, out: &mut [u32], at: usize) {
    if PART {
        v.store_part(x, out, at)
    } else {
        v.store(x, out, at)
    }
}

/// `store_f` or `store_part_f`, chosen when compiling.
#[inline(always)]
pub(crate) fn store_f<V: Vector, const PART: bool>(v: V, x: V::F, out: &mut [f32], at: usize) {
    if PART {
        v.store_part_f(x, out, at)
    } else {
        v.store_f(x, out, at)
    }
}

/// One lane, for the definitions of float functions.
#[derive(Clone, Copy)]
pub(crate) struct OneLane;

impl Floats for OneLane {
    type F = f32;
    type I = u32;

    fn splat_f(self, x: f32) -> f32 {
        x
    }
    fn splat(self, x: u32) -> u32 {
        x
    }
    fn add_f(self, a: f32, b: f32) -> f32 {
        a + b
    }
    fn sub_f(self, a: f32, b: f32) -> f32 {
        a - b
    }
    fn mul_f(self, a: f32, b: f32) -> f32 {
        a * b
    }
    fn div_f(self, a: f32, b: f32) -> f32 {
        a / b
    }
    fn max_f(self, a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
    fn min_f(self, a: f32, b: f32) -> f32 {
        if a < b { a } else { b }
    }
    fn where_negative(self, sign: f32, a: f32, b: f32) -> f32 {
        if sign.is_sign_negative() { a } else { b }
    }
    fn nearest(self, x: f32) -> u32 {
        x.round_ties_even() as i32 as u32
    }
    fn float(self, x: u32) -> f32 {
        x as i32 as f32
    }
    fn bits(self, x: f32) -> u32 {
        x.to_bits()
    }
    fn float_of_bits(self, x: u32) -> f32 {
        f32::from_bits(x)
    }
    fn add(self, a: u32, b: u32) -> u32 {
        a.wrapping_add(b)
    }
    fn sub(self, a: u32, b: u32) -> u32 {
        a.wrapping_sub(b)
    }
    fn and(self, a: u32, b: u32) -> u32 {
        a & b
    }
    fn shift_to_exponent(self, x: u32) -> u32 {
        x << 23
    }
}
