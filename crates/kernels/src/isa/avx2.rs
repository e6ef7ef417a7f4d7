//! The vector vocabulary in AVX2: eight lanes; the keystream by AES-NI where the CPU has it.

use core::arch::x86_64::*;

use super::Avx2;
use super::vector::{Floats, Pass, Vector};
use crate::field::P;
use crate::keystream::{Counter, Schedule};

impl Avx2 {
    /// Runs a pass compiled for this instruction set.
    pub(super) fn run<P: Pass>(self, pass: P) -> P::Output {
        #[target_feature(enable = "avx2")]
        fn inner<P: Pass>(token: Avx2, pass: P) -> P::Output {
            pass.vector(token)
        }
        // SAFETY: `self` exists only where `detect` saw AVX2.
        unsafe { inner(self, pass) }
    }
}

/// The mask of the first `len` lanes: all ones in each.
#[inline(always)]
fn part(_token: Avx2, len: usize) -> __m256i {
    debug_assert!(len < 8);
    // SAFETY: the token.
    unsafe {
        let lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(len.min(8) as i32), lanes)
    }
}

impl Floats for Avx2 {
    type F = __m256;
    type I = __m256i;

    #[inline(always)]
    fn splat_f(self, x: f32) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    fn splat(self, x: u32) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_set1_epi32(x as i32) }
    }
    #[inline(always)]
    fn add_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    fn max_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    fn min_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    fn where_negative(self, sign: __m256, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_blendv_ps(b, a, sign) }
    }
    #[inline(always)]
    fn nearest(self, x: __m256) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_cvtps_epi32(x) }
    }
    #[inline(always)]
    fn float(self, x: __m256i) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn bits(self, x: __m256) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_castps_si256(x) }
    }
    #[inline(always)]
    fn float_of_bits(self, x: __m256i) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_castsi256_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_and_si256(a, b) }
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_slli_epi32::<23>(x) }
    }
}

impl Vector for Avx2 {
    type W = __m256i;
    /// Even and odd words apart; each product below 2⁶³ adds less than 2³¹ + 2³².
    type Acc = [__m256i; 2];

    const LANES: usize = 8;

    #[inline(always)]
    fn keystream(self, key: &Schedule, counter: Counter, first_block: u32, out: &mut [u32]) -> u32 {
        key.keystream(counter, first_block, out)
    }

    #[inline(always)]
    fn load(self, x: &[u32], at: usize) -> __m256i {
        let x = &x[at..at + 8];
        // SAFETY: the token; the slice has 8 of them.
        unsafe { _mm256_loadu_si256(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_part(self, x: &[u32], at: usize) -> __m256i {
        let x = &x[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm256_maskload_epi32(x.as_ptr().cast(), part(self, x.len())) }
    }
    #[inline(always)]
    fn load_f(self, x: &[f32], at: usize) -> __m256 {
        let x = &x[at..at + 8];
        // SAFETY: the token; the slice has 8 of them.
        unsafe { _mm256_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_part_f(self, x: &[f32], at: usize) -> __m256 {
        let x = &x[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm256_maskload_ps(x.as_ptr(), part(self, x.len())) }
    }
    #[inline(always)]
    fn store(self, x: __m256i, out: &mut [u32], at: usize) {
        let out = &mut out[at..at + 8];
        // SAFETY: the token; the slice has 8 of them.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn store_part(self, x: __m256i, out: &mut [u32], at: usize) {
        let out = &mut out[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm256_maskstore_epi32(out.as_mut_ptr().cast(), part(self, out.len()), x) }
    }
    #[inline(always)]
    fn store_f(self, x: __m256, out: &mut [f32], at: usize) {
        let out = &mut out[at..at + 8];
        // SAFETY: the token; the slice has 8 of them.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn store_part_f(self, x: __m256, out: &mut [f32], at: usize) {
        let out = &mut out[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm256_maskstore_ps(out.as_mut_ptr(), part(self, out.len()), x) }
    }

    #[inline(always)]
    fn evens_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { in_order(_mm256_shuffle_ps::<0x88>(a, b)) }
    }
    #[inline(always)]
    fn odds_f(self, a: __m256, b: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { in_order(_mm256_shuffle_ps::<0xdd>(a, b)) }
    }
    #[inline(always)]
    fn prefetch<T>(self, x: &[T], at: usize) {
        // SAFETY: SSE is part of the architecture; a prefetch has no effect at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast()) }
    }
    #[inline(always)]
    fn min(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_min_epu32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_max_epu32(a, b) }
    }
    #[inline(always)]
    fn where_greater(self, a: __m256i, limit: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_and_si256(_mm256_cmpgt_epi32(a, limit), b) }
    }
    #[inline(always)]
    fn drop_nan(self, x: __m256) -> __m256 {
        // SAFETY: the token.
        unsafe { _mm256_and_ps(x, _mm256_cmp_ps::<_CMP_ORD_Q>(x, x)) }
    }
    #[inline(always)]
    fn first_lanes(self, x: __m256i, len: usize) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_and_si256(x, part(self, len)) }
    }
    #[inline(always)]
    fn largest(self, x: __m256i) -> u32 {
        let mut lanes = [0; 8];
        self.store(x, &mut lanes, 0);
        lanes.into_iter().fold(0, u32::max)
    }

    #[inline(always)]
    fn zero_w(self) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_setzero_si256() }
    }
    #[inline(always)]
    fn add_w(self, a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: the token.
        unsafe { _mm256_add_epi64(a, b) }
    }
    #[inline(always)]
    fn sum_w(self, x: __m256i) -> u64 {
        let mut lanes = [0u64; 4];
        // SAFETY: the token; four lanes are 32 bytes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), x) };
        lanes.into_iter().fold(0, u64::wrapping_add)
    }
    #[inline(always)]
    fn mul_add_signed(self, sum: [__m256i; 2], a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: the token.
        unsafe {
            let odd = _mm256_mul_epi32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
            [
                _mm256_add_epi64(sum[0], _mm256_mul_epi32(a, b)),
                _mm256_add_epi64(sum[1], odd),
            ]
        }
    }
    #[inline(always)]
    fn fold_signed(self, sum: [__m256i; 2]) -> __m256i {
        // SAFETY: the token.
        unsafe {
            let offset = _mm256_set1_epi64x(i64::from(P) << 29);
            fold_once(_mm256_add_epi64(_mm256_add_epi64(sum[0], sum[1]), offset))
        }
    }

    #[inline(always)]
    fn zero_acc(self) -> [__m256i; 2] {
        [self.zero_w(); 2]
    }
    #[inline(always)]
    fn mul_add(self, acc: [__m256i; 2], a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: the token.
        unsafe {
            let even = _mm256_mul_epu32(a, b);
            let odd = _mm256_mul_epu32(_mm256_srli_epi64::<32>(a), _mm256_srli_epi64::<32>(b));
            [
                _mm256_add_epi64(acc[0], fold_once(even)),
                _mm256_add_epi64(acc[1], fold_once(odd)),
            ]
        }
    }
    #[inline(always)]
    fn mul_add_w(self, acc: [__m256i; 2], a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: the token.
        unsafe {
            [
                _mm256_add_epi64(acc[0], fold_once(_mm256_mul_epu32(a, b))),
                acc[1],
            ]
        }
    }
    #[inline(always)]
    fn fold(self, acc: [__m256i; 2]) -> __m256i {
        // SAFETY: the token; 2048 calls leave less than 2⁴⁶.
        unsafe { fold_once(_mm256_add_epi64(acc[0], acc[1])) }
    }
}

/// Modulo p: below 2³¹ + 2³² for x < 2⁶³, below 2³² for x < 2⁶².
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn fold_once(x: __m256i) -> __m256i {
    // SAFETY: by this function's condition.
    unsafe {
        let low = _mm256_and_si256(x, _mm256_set1_epi64x(i64::from(P)));
        _mm256_add_epi64(low, _mm256_srli_epi64::<31>(x))
    }
}

/// Pairs of lanes that a shuffle within halves left as a, b, a, b: those of a first.
///
/// # Safety
/// The CPU has AVX2.
#[inline(always)]
unsafe fn in_order(x: __m256) -> __m256 {
    // SAFETY: by this function's condition.
    unsafe { _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(_mm256_castps_pd(x))) }
}
