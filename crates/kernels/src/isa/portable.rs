//! The vector vocabulary in arrays, for CPUs without a variant of their own: the compiler makes of it what the target has.

use super::vector::{Floats, Pass, Vector};
use crate::field::P;
use crate::keystream::{Counter, Schedule};

/// The token; every CPU has this one.
#[derive(Clone, Copy)]
pub(super) struct Portable;

impl Portable {
    /// Runs a pass.
    pub(super) fn run<P: Pass>(self, pass: P) -> P::Output {
        pass.vector(self)
    }
}

const LANES: usize = 8;
const HALF: usize = LANES / 2;

/// One function on all lanes.
#[inline(always)]
fn map<A: Copy, B: Copy, R, const N: usize>(a: [A; N], b: [B; N], f: impl Fn(A, B) -> R) -> [R; N] {
    core::array::from_fn(|lane| f(a[lane], b[lane]))
}

/// 1.5 · 2²³: added to a number of magnitude ≤ 2²², it leaves the nearest integer in the low bits.
const ROUND: f32 = 12_582_912.0;

impl Floats for Portable {
    type F = [f32; LANES];
    type I = [u32; LANES];

    #[inline(always)]
    fn splat_f(self, x: f32) -> [f32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn splat(self, x: u32) -> [u32; LANES] {
        [x; LANES]
    }
    #[inline(always)]
    fn add_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map(a, b, |a, b| a + b)
    }
    #[inline(always)]
    fn sub_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map(a, b, |a, b| a - b)
    }
    #[inline(always)]
    fn mul_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map(a, b, |a, b| a * b)
    }
    #[inline(always)]
    fn div_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map(a, b, |a, b| a / b)
    }
    #[inline(always)]
    fn max_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map(a, b, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn min_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        map(a, b, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    fn where_negative(self, sign: [f32; LANES], a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        let mask = sign.map(|x| (x.to_bits() as i32 >> 31) as u32);
        let a = map(mask, a, |mask, a| mask & a.to_bits());
        let b = map(mask, b, |mask, b| !mask & b.to_bits());
        map(a, b, |a, b| f32::from_bits(a | b))
    }
    #[inline(always)]
    fn nearest(self, x: [f32; LANES]) -> [u32; LANES] {
        x.map(|x| (x + ROUND).to_bits().wrapping_sub(ROUND.to_bits()))
    }
    #[inline(always)]
    fn float(self, x: [u32; LANES]) -> [f32; LANES] {
        x.map(|x| x as i32 as f32)
    }
    #[inline(always)]
    fn bits(self, x: [f32; LANES]) -> [u32; LANES] {
        x.map(f32::to_bits)
    }
    #[inline(always)]
    fn float_of_bits(self, x: [u32; LANES]) -> [f32; LANES] {
        x.map(f32::from_bits)
    }
    #[inline(always)]
    fn add(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        map(a, b, u32::wrapping_add)
    }
    #[inline(always)]
    fn sub(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        map(a, b, u32::wrapping_sub)
    }
    #[inline(always)]
    fn and(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        map(a, b, |a, b| a & b)
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: [u32; LANES]) -> [u32; LANES] {
        x.map(|x| x << 23)
    }
}

impl Vector for Portable {
    type W = [u64; HALF];
    /// Each product below 2⁶³ adds less than 2³¹ + 2³².
    type Acc = [[u64; HALF]; 2];

    const LANES: usize = LANES;

    #[inline(always)]
    fn keystream(self, key: &Schedule, counter: Counter, first_block: u32, out: &mut [u32]) -> u32 {
        key.keystream(counter, first_block, out)
    }

    #[inline(always)]
    fn load(self, x: &[u32], at: usize) -> [u32; LANES] {
        *x[at..].first_chunk().expect("a vector within the slice")
    }
    #[inline(always)]
    fn load_part(self, x: &[u32], at: usize) -> [u32; LANES] {
        let x = &x[at..];
        let mut lanes = [0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        lanes
    }
    #[inline(always)]
    fn store(self, x: [u32; LANES], out: &mut [u32], at: usize) {
        out[at..at + LANES].copy_from_slice(&x);
    }
    #[inline(always)]
    fn store_part(self, x: [u32; LANES], out: &mut [u32], at: usize) {
        let out = &mut out[at..];
        out.copy_from_slice(&x[..out.len()]);
    }
    #[inline(always)]
    fn load_f(self, x: &[f32], at: usize) -> [f32; LANES] {
        *x[at..].first_chunk().expect("a vector within the slice")
    }
    #[inline(always)]
    fn load_part_f(self, x: &[f32], at: usize) -> [f32; LANES] {
        let x = &x[at..];
        let mut lanes = [0.0; LANES];
        lanes[..x.len()].copy_from_slice(x);
        lanes
    }
    #[inline(always)]
    fn store_f(self, x: [f32; LANES], out: &mut [f32], at: usize) {
        out[at..at + LANES].copy_from_slice(&x);
    }
    #[inline(always)]
    fn store_part_f(self, x: [f32; LANES], out: &mut [f32], at: usize) {
        let out = &mut out[at..];
        out.copy_from_slice(&x[..out.len()]);
    }
    #[inline(always)]
    fn evens_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        core::array::from_fn(|lane| {
            let from = 2 * (lane % HALF);
            if lane < HALF { a[from] } else { b[from] }
        })
    }
    #[inline(always)]
    fn odds_f(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
        core::array::from_fn(|lane| {
            let from = 2 * (lane % HALF) + 1;
            if lane < HALF { a[from] } else { b[from] }
        })
    }
    #[inline(always)]
    fn prefetch<T>(self, _x: &[T], _at: usize) {}

    #[inline(always)]
    fn min(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        map(a, b, u32::min)
    }
    #[inline(always)]
    fn max(self, a: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        map(a, b, u32::max)
    }
    #[inline(always)]
    fn where_greater(self, a: [u32; LANES], limit: [u32; LANES], b: [u32; LANES]) -> [u32; LANES] {
        let mask = map(a, limit, |a, limit| {
            u32::from(a as i32 > limit as i32).wrapping_neg()
        });
        map(mask, b, |mask, b| mask & b)
    }
    #[inline(always)]
    fn drop_nan(self, x: [f32; LANES]) -> [f32; LANES] {
        x.map(|x| if x.is_nan() { 0.0 } else { x })
    }
    #[inline(always)]
    fn first_lanes(self, x: [u32; LANES], len: usize) -> [u32; LANES] {
        core::array::from_fn(|lane| if lane < len { x[lane] } else { 0 })
    }
    #[inline(always)]
    fn largest(self, x: [u32; LANES]) -> u32 {
        x.into_iter().fold(0, u32::max)
    }

    #[inline(always)]
    fn zero_w(self) -> [u64; HALF] {
        [0; HALF]
    }
    #[inline(always)]
    fn add_w(self, a: [u64; HALF], b: [u64; HALF]) -> [u64; HALF] {
        map(a, b, u64::wrapping_add)
    }
    #[inline(always)]
    fn sum_w(self, x: [u64; HALF]) -> u64 {
        x.into_iter().fold(0, u64::wrapping_add)
    }
    #[inline(always)]
    fn mul_add_signed(self, sum: [Self::W; 2], a: Self::I, b: Self::I) -> [Self::W; 2] {
        core::array::from_fn(|half| {
            core::array::from_fn(|lane| {
                let at = HALF * half + lane;
                let product = i64::from(a[at] as i32) * i64::from(b[at] as i32);
                sum[half][lane].wrapping_add(product as u64)
            })
        })
    }
    #[inline(always)]
    fn fold_signed(self, sum: [Self::W; 2]) -> Self::W {
        let offset = u64::from(P) << 29;
        map(sum[0], sum[1], |a, b| {
            fold_once(a.wrapping_add(b).wrapping_add(offset))
        })
    }

    #[inline(always)]
    fn zero_acc(self) -> Self::Acc {
        [[0; HALF]; 2]
    }
    #[inline(always)]
    fn mul_add(self, acc: Self::Acc, a: Self::I, b: Self::I) -> Self::Acc {
        core::array::from_fn(|half| {
            core::array::from_fn(|lane| {
                let at = HALF * half + lane;
                acc[half][lane] + fold_once(u64::from(a[at]) * u64::from(b[at]))
            })
        })
    }
    #[inline(always)]
    fn mul_add_w(self, acc: Self::Acc, a: Self::W, b: Self::I) -> Self::Acc {
        let product = |lane| fold_once(a[lane] * u64::from(b[lane]));
        [
            core::array::from_fn(|lane| acc[0][lane] + product(lane)),
            acc[1],
        ]
    }
    #[inline(always)]
    fn fold(self, acc: Self::Acc) -> Self::W {
        map(acc[0], acc[1], |a, b| fold_once(a + b))
    }
}

/// Modulo p: below 2³¹ + 2³³ for any x, below 2³² for x < 2⁶².
#[inline(always)]
fn fold_once(x: u64) -> u64 {
    (x & u64::from(P)) + (x >> 31)
}
