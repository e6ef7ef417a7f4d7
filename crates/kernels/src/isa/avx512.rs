//! The vector vocabulary in AVX-512: sixteen lanes, 52-bit multiply-add for the check, VAES for the keystream.

use core::arch::x86_64::*;

use zeroize::Zeroizing;

use super::Avx512;
use super::vector::{Floats, Pass, Vector};
use crate::field::P;
use crate::keystream::{Counter, Schedule};

impl Avx512 {
    /// Runs a pass compiled for this instruction set.
    pub(super) fn run<P: Pass>(self, pass: P) -> P::Output {
        #[target_feature(enable = "avx2,aes,vaes,avx512f,avx512bw,avx512dq,avx512vl,avx512ifma")]
        fn inner<P: Pass>(token: Avx512, pass: P) -> P::Output {
            pass.vector(token)
        }
        // SAFETY: `self` exists only where `detect` saw all these features.
        unsafe { inner(self, pass) }
    }
}

/// The expanded key, round by round.
pub(crate) type RoundKeys = [[u8; 16]; 15];

/// Expands an AES-256 key with the CPU's key-generation instruction, in time independent of the key.
///
/// Source: FIPS 197 §5.2.
pub(crate) fn expand_key(_token: Avx512, key: &[u8; 32], out: &mut RoundKeys) {
    #[target_feature(enable = "aes,avx2")]
    fn inner(key: &[u8; 32], out: &mut RoundKeys) {
        /// a, a^b, a^b^c, .. over the four words.
        #[target_feature(enable = "aes,avx2")]
        fn prefix_xor(x: __m128i) -> __m128i {
            let x = _mm_xor_si128(x, _mm_slli_si128::<4>(x));
            _mm_xor_si128(x, _mm_slli_si128::<8>(x))
        }
        #[target_feature(enable = "aes,avx2")]
        fn even<const RCON: i32>(even: __m128i, odd: __m128i) -> __m128i {
            let word = _mm_shuffle_epi32::<0xff>(_mm_aeskeygenassist_si128::<RCON>(odd));
            _mm_xor_si128(prefix_xor(even), word)
        }
        #[target_feature(enable = "aes,avx2")]
        fn odd(odd: __m128i, even: __m128i) -> __m128i {
            let word = _mm_shuffle_epi32::<0xaa>(_mm_aeskeygenassist_si128::<0>(even));
            _mm_xor_si128(prefix_xor(odd), word)
        }
        let (low, high) = key.split_at(16);
        // SAFETY: each half of the key, and each round key, is 16 bytes; the accesses need no alignment.
        let mut a = unsafe { _mm_loadu_si128(low.as_ptr().cast()) };
        let mut b = unsafe { _mm_loadu_si128(high.as_ptr().cast()) };
        let mut round = 0;
        let mut push = |x: __m128i| {
            let bytes: &mut [u8; 16] = &mut out[round];
            // SAFETY: as above.
            unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), x) };
            round += 1;
        };
        push(a);
        push(b);
        macro_rules! rounds {
            ($($rcon:literal)*) => {$(
                a = even::<$rcon>(a, b);
                push(a);
                b = odd(b, a);
                push(b);
            )*};
        }
        rounds!(0x01 0x02 0x04 0x08 0x10 0x20);
        a = even::<0x40>(a, b);
        push(a);
    }
    // SAFETY: the token proves AES-NI and AVX2.
    unsafe { inner(key, out) }
}

/// Blocks a vector of counters holds.
const BLOCKS: usize = 4;
/// Vectors in flight, to hide the latency of a round.
const FLIGHT: usize = 8;

/// Words of one flight.
const CHUNK: usize = 4 * BLOCKS * FLIGHT;

/// [`Vector::keystream`].
#[target_feature(enable = "avx2,aes,vaes,avx512f,avx512bw,avx512dq,avx512vl")]
fn keystream(rounds: &RoundKeys, counter: Counter, first_block: u32, out: &mut [u32]) -> u32 {
    let load = |bytes: &[u8; 16]| {
        // SAFETY: sixteen bytes are read.
        _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) })
    };
    let mut round_keys = [_mm512_setzero_si512(); 15];
    for (vector, key) in round_keys.iter_mut().zip(rounds) {
        *vector = load(key);
    }
    let prefix = load(&counter.block(0));
    // The last word of a block is big-endian: reverse its bytes, leave the others.
    let reverse = load(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 14, 13, 12]);
    let ramp = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3);
    let mask = _mm512_set1_epi32(P as i32);
    let mut largest = _mm512_setzero_si512();
    let mut encrypt = |block: u32, out: &mut [u32; CHUNK]| {
        let mut state = [_mm512_setzero_si512(); FLIGHT];
        for (index, state) in state.iter_mut().enumerate() {
            let block = block.wrapping_add((BLOCKS * index) as u32);
            let number = _mm512_add_epi32(_mm512_maskz_set1_epi32(0x8888, block as i32), ramp);
            let block = _mm512_or_si512(prefix, _mm512_shuffle_epi8(number, reverse));
            *state = _mm512_xor_si512(block, round_keys[0]);
        }
        for key in &round_keys[1..14] {
            for state in &mut state {
                *state = _mm512_aesenc_epi128(*state, *key);
            }
        }
        for (state, out) in state.iter().zip(out.as_chunks_mut::<16>().0) {
            let words = _mm512_aesenclast_epi128(*state, round_keys[14]);
            let words = _mm512_and_si512(words, mask);
            largest = _mm512_max_epu32(largest, words);
            // SAFETY: sixteen words are written.
            unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), words) };
        }
    };
    let mut block = first_block;
    let (chunks, rest) = out.as_chunks_mut::<CHUNK>();
    for chunk in chunks {
        encrypt(block, chunk);
        block = block.wrapping_add((BLOCKS * FLIGHT) as u32);
    }
    if !rest.is_empty() {
        let mut chunk = Zeroizing::new([0; CHUNK]);
        encrypt(block, &mut chunk);
        rest.copy_from_slice(&chunk[..rest.len()]);
    }
    _mm512_reduce_max_epu32(largest)
}

/// The mask of the first `len` lanes.
#[inline(always)]
fn part(len: usize) -> u16 {
    debug_assert!(len < 16);
    ((1u32 << len.min(16)) - 1) as u16
}

/// Sums of a·b, split at bit 52 by the instruction; even and odd words apart.
///
/// With a < 2³² and b < 2³¹ a low half grows by < 2⁵² and a high half by < 2¹¹, so that 4096 additions fit 64 bits;
/// folding adds two of each, so 2048 calls are allowed.
#[derive(Clone, Copy)]
pub(crate) struct Split {
    low: [__m512i; 2],
    high: [__m512i; 2],
}

// SAFETY of every block in the two implementations: the token proves the instructions; memory accesses are within the
// slice by the assertion or mask beside them.

impl Floats for Avx512 {
    type F = __m512;
    type I = __m512i;

    #[inline(always)]
    fn splat_f(self, x: f32) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn splat(self, x: u32) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    fn add_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    fn sub_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    fn mul_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn div_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    fn max_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    fn min_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    fn where_negative(self, sign: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_mask_blend_ps(_mm512_movepi32_mask(_mm512_castps_si512(sign)), b, a) }
    }
    #[inline(always)]
    fn nearest(self, x: __m512) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_cvtps_epi32(x) }
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn bits(self, x: __m512) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_castps_si512(x) }
    }
    #[inline(always)]
    fn float_of_bits(self, x: __m512i) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_castsi512_ps(x) }
    }
    #[inline(always)]
    fn add(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    fn sub(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_sub_epi32(a, b) }
    }
    #[inline(always)]
    fn and(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_and_si512(a, b) }
    }
    #[inline(always)]
    fn shift_to_exponent(self, x: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_slli_epi32::<23>(x) }
    }
}

impl Vector for Avx512 {
    type W = __m512i;
    type Acc = Split;

    const LANES: usize = 16;

    #[inline(always)]
    fn keystream(self, key: &Schedule, counter: Counter, first_block: u32, out: &mut [u32]) -> u32 {
        // SAFETY: the token.
        unsafe { keystream(key.rounds(self), counter, first_block, out) }
    }

    #[inline(always)]
    fn load(self, x: &[u32], at: usize) -> __m512i {
        let x = &x[at..at + 16];
        // SAFETY: the token; the slice has 16 words.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_part(self, x: &[u32], at: usize) -> __m512i {
        let x = &x[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm512_maskz_loadu_epi32(part(x.len()), x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn load_f(self, x: &[f32], at: usize) -> __m512 {
        let x = &x[at..at + 16];
        // SAFETY: the token; the slice has 16 numbers.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn load_part_f(self, x: &[f32], at: usize) -> __m512 {
        let x = &x[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm512_maskz_loadu_ps(part(x.len()), x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m512i, out: &mut [u32], at: usize) {
        let out = &mut out[at..at + 16];
        // SAFETY: the token; the slice has 16 words.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn store_part(self, x: __m512i, out: &mut [u32], at: usize) {
        let out = &mut out[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm512_mask_storeu_epi32(out.as_mut_ptr().cast(), part(out.len()), x) }
    }
    #[inline(always)]
    fn store_f(self, x: __m512, out: &mut [f32], at: usize) {
        let out = &mut out[at..at + 16];
        // SAFETY: the token; the slice has 16 numbers.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn store_part_f(self, x: __m512, out: &mut [f32], at: usize) {
        let out = &mut out[at..];
        // SAFETY: the token; lanes beyond the slice are masked and not accessed.
        unsafe { _mm512_mask_storeu_ps(out.as_mut_ptr(), part(out.len()), x) }
    }

    #[inline(always)]
    fn evens_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe {
            let from = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            _mm512_permutex2var_ps(a, from, b)
        }
    }
    #[inline(always)]
    fn odds_f(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe {
            let from = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            _mm512_permutex2var_ps(a, from, b)
        }
    }
    #[inline(always)]
    fn prefetch<T>(self, x: &[T], at: usize) {
        // SAFETY: SSE is part of the architecture; a prefetch has no effect at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(x.as_ptr().wrapping_add(at).cast()) }
    }
    #[inline(always)]
    fn min(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_min_epu32(a, b) }
    }
    #[inline(always)]
    fn max(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_max_epu32(a, b) }
    }
    #[inline(always)]
    fn where_greater(self, a: __m512i, limit: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_maskz_mov_epi32(_mm512_cmpgt_epi32_mask(a, limit), b) }
    }
    #[inline(always)]
    fn drop_nan(self, x: __m512) -> __m512 {
        // SAFETY: the token.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(x, x), x) }
    }
    #[inline(always)]
    fn first_lanes(self, x: __m512i, len: usize) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_maskz_mov_epi32(part(len), x) }
    }
    #[inline(always)]
    fn largest(self, x: __m512i) -> u32 {
        // SAFETY: the token.
        unsafe { _mm512_reduce_max_epu32(x) }
    }

    #[inline(always)]
    fn zero_w(self) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_setzero_si512() }
    }
    #[inline(always)]
    fn add_w(self, a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: the token.
        unsafe { _mm512_add_epi64(a, b) }
    }
    #[inline(always)]
    fn sum_w(self, x: __m512i) -> u64 {
        // SAFETY: the token.
        unsafe { _mm512_reduce_add_epi64(x) as u64 }
    }
    #[inline(always)]
    fn mul_add_signed(self, sum: [__m512i; 2], a: __m512i, b: __m512i) -> [__m512i; 2] {
        // SAFETY: the token.
        unsafe {
            let odd = _mm512_mul_epi32(_mm512_srli_epi64::<32>(a), _mm512_srli_epi64::<32>(b));
            [
                _mm512_add_epi64(sum[0], _mm512_mul_epi32(a, b)),
                _mm512_add_epi64(sum[1], odd),
            ]
        }
    }
    #[inline(always)]
    fn fold_signed(self, sum: [__m512i; 2]) -> __m512i {
        // SAFETY: the token.
        unsafe {
            let offset = _mm512_set1_epi64(i64::from(P) << 29);
            fold_once(_mm512_add_epi64(_mm512_add_epi64(sum[0], sum[1]), offset))
        }
    }

    #[inline(always)]
    fn zero_acc(self) -> Split {
        Split {
            low: [self.zero_w(); 2],
            high: [self.zero_w(); 2],
        }
    }
    #[inline(always)]
    fn mul_add(self, acc: Split, a: __m512i, b: __m512i) -> Split {
        // SAFETY: the token.
        unsafe {
            let word = _mm512_set1_epi64(0xffff_ffff);
            let (a0, a1) = (_mm512_and_si512(a, word), _mm512_srli_epi64::<32>(a));
            let (b0, b1) = (_mm512_and_si512(b, word), _mm512_srli_epi64::<32>(b));
            Split {
                low: [
                    _mm512_madd52lo_epu64(acc.low[0], a0, b0),
                    _mm512_madd52lo_epu64(acc.low[1], a1, b1),
                ],
                high: [
                    _mm512_madd52hi_epu64(acc.high[0], a0, b0),
                    _mm512_madd52hi_epu64(acc.high[1], a1, b1),
                ],
            }
        }
    }
    #[inline(always)]
    fn mul_add_w(self, acc: Split, a: __m512i, b: __m512i) -> Split {
        // SAFETY: the token.
        unsafe {
            let b = _mm512_and_si512(b, _mm512_set1_epi64(0xffff_ffff));
            Split {
                low: [_mm512_madd52lo_epu64(acc.low[0], a, b), acc.low[1]],
                high: [_mm512_madd52hi_epu64(acc.high[0], a, b), acc.high[1]],
            }
        }
    }
    #[inline(always)]
    fn fold(self, acc: Split) -> __m512i {
        // SAFETY: the token.
        unsafe {
            // low < 2⁶³, high < 2²³, and 2⁵² ≡ 2²¹.
            let low = _mm512_add_epi64(acc.low[0], acc.low[1]);
            let high = _mm512_add_epi64(acc.high[0], acc.high[1]);
            let low = fold_once(low);
            let sum = _mm512_add_epi64(low, _mm512_slli_epi64::<21>(high));
            fold_once(sum)
        }
    }
}

/// Modulo p: below 2³² + 2³¹ for any x, below 2³² for x < 2⁶².
///
/// # Safety
/// The CPU has AVX-512 F.
#[inline(always)]
unsafe fn fold_once(x: __m512i) -> __m512i {
    // SAFETY: by this function's condition.
    unsafe {
        let low = _mm512_and_si512(x, _mm512_set1_epi64(i64::from(P)));
        _mm512_add_epi64(low, _mm512_srli_epi64::<31>(x))
    }
}
