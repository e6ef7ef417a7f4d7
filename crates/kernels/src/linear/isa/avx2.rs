//! AVX2: centred words in two signed halves of 16 bits, `vpmaddwd` (i16 × i16 → i32) two terms at a time.
//!
//! `vpmaddubsw` would take four limbs at once but saturates, so it is not used.

mod wide;

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use crate::field::P;
use crate::isa::Avx2;
use crate::linear::adjoint;
use crate::linear::direct::Direct;
use crate::linear::vectors::{PIXEL_ROWS, Scratch, Store, Vectors, WORD_ROWS};
use crate::linear::window::Window;

const LANES: usize = 8;
const STEP: usize = 2;

/// Terms of one accumulator: |half·weight| ≤ 2¹⁵·2⁷, so that 508 of them stay 2²⁴ below 2³¹.
const BLOCK: usize = 508;
const _: () = assert!(BLOCK as i64 * (1 << 22) <= (1 << 31) - (1 << 24));

/// What the two sums start from: ≡ 0 when recombined as b₀ + b₁·2¹⁶, 2³¹ ≤ b < 2³¹ + 2¹⁶, so that sums are
/// unsigned.
const START: [i32; 2] = {
    let missing = P as u64 - (0x8000_0000u64 * 0x0001_0001) % P as u64;
    [
        (0x8000_0000 + (missing & 0xffff)) as u32 as i32,
        (0x8000_0000 + (missing >> 16)) as u32 as i32,
    ]
};

/// Where eight output pixels read.
#[derive(Default)]
pub(in crate::linear) struct Panel {
    plane: usize,
    taps: Vec<Tap>,
}

/// Where they read through one tap.
enum Tap {
    /// Consecutive words from this index on.
    Consecutive(usize),
    /// These words; `OUTSIDE` is zero.
    Scattered([usize; LANES]),
}

const OUTSIDE: usize = usize::MAX;

thread_local! {
    static SCRATCH: RefCell<Scratch<Avx2>> = RefCell::default();
}

impl Vectors for Avx2 {
    const LANES: usize = LANES;
    const STEP: usize = STEP;
    const BLOCK: usize = BLOCK;
    type Panel = Panel;
    type Pixels = [__m256i; 2];
    type Words = [i32; 2];
    const NO_WORDS: [i32; 2] = [0; 2];
    type Weights = __m128i;

    fn scratch<R>(self, work: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
        SCRATCH.with_borrow_mut(work)
    }

    fn broadcast(weights: &[i8]) -> i32 {
        let weight = |term| weights.get(term).copied().map_or(0, i16::from);
        pair(
            weight(0).cast_unsigned().into(),
            weight(1).cast_unsigned().into(),
        )
    }

    fn weights(weight: impl Fn(usize, usize) -> i8) -> __m128i {
        let mut bytes = [0i8; 16];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = weight(at / STEP, at % STEP);
        }
        bytemuck::cast(bytes)
    }

    fn panel(self, window: &Window, first: usize, count: usize, panel: &mut Panel) {
        panel.plane = window.plane();
        let pixels = window.run::<LANES>(first, count);
        panel.taps.clear();
        panel.taps.extend((0..window.taps()).map(|tap| {
            let at = pixels.map(|pixel| window.reads(pixel, tap).unwrap_or(OUTSIDE));
            let consecutive = at
                .windows(2)
                .all(|pair| pair[0] != OUTSIDE && pair[1] == pair[0] + 1);
            if consecutive {
                Tap::Consecutive(at[0])
            } else {
                Tap::Scattered(at)
            }
        }));
    }

    fn pack_pixels(
        self,
        x: &[u32],
        channels: usize,
        panel: &Panel,
        terms: Range<usize>,
        out: &mut Vec<[__m256i; 2]>,
    ) {
        // SAFETY: `self` exists only where `detect` saw AVX2.
        unsafe { pack(x, channels, panel, terms, out) }
    }

    fn pack_words(self, x: &[u32], every: usize, out: &mut [[i32; 2]]) {
        // SAFETY: the token as above.
        unsafe { cut_row(x, every, out) }
    }

    fn pixel_tile(
        self,
        pixels: &[[__m256i; 2]],
        weights: &[i32],
        store: Store,
        rows: &mut [&mut [u32]],
    ) {
        // SAFETY: the token as above.
        unsafe {
            match rows.len() {
                1 => pixel_tile::<1>(pixels, weights, store, rows),
                2 => pixel_tile::<2>(pixels, weights, store, rows),
                3 => pixel_tile::<3>(pixels, weights, store, rows),
                4 => pixel_tile::<4>(pixels, weights, store, rows),
                5 => pixel_tile::<5>(pixels, weights, store, rows),
                _ => pixel_tile::<PIXEL_ROWS>(pixels, weights, store, rows),
            }
        }
    }

    fn word_tile(
        self,
        words: &[[i32; 2]],
        weights: &[__m128i],
        store: Store,
        rows: &mut [&mut [u32]],
    ) {
        let wide = store.count > LANES;
        // SAFETY: the token as above.
        unsafe {
            match (rows.len(), wide) {
                (1, false) => word_tile::<1, 1>(words, weights, store, rows),
                (2, false) => word_tile::<2, 1>(words, weights, store, rows),
                (_, false) => word_tile::<WORD_ROWS, 1>(words, weights, store, rows),
                (1, true) => word_tile::<1, 2>(words, weights, store, rows),
                (2, true) => word_tile::<2, 2>(words, weights, store, rows),
                (_, true) => word_tile::<WORD_ROWS, 2>(words, weights, store, rows),
            }
        }
    }
}

impl Avx2 {
    /// [`Direct::work`].
    pub(in crate::linear) fn direct(self, layer: &Direct, x: &[u32], first: usize, y: &mut [u32]) {
        #[target_feature(enable = "avx2")]
        fn run(layer: &Direct, x: &[u32], first: usize, y: &mut [u32]) {
            layer.work(x, first, y);
        }
        // SAFETY: the token as above.
        unsafe { run(layer, x, first, y) }
    }

    pub(in crate::linear) fn contract_columns(
        self,
        w: &[i8],
        s: &[u32],
        place: u32,
        z: &mut [u32],
    ) {
        #[target_feature(enable = "avx2")]
        fn run(w: &[i8], s: &[u32], place: u32, z: &mut [u32]) {
            adjoint::contract_columns_body(w, s, place, z);
        }
        // SAFETY: the token as above.
        unsafe { run(w, s, place, z) }
    }

    pub(in crate::linear) fn contract_rows(
        self,
        w: &[i8],
        columns: usize,
        s: &[u32],
        place: u32,
        z: &mut [u32],
    ) {
        #[target_feature(enable = "avx2")]
        fn run(w: &[i8], columns: usize, s: &[u32], place: u32, z: &mut [u32]) {
            adjoint::contract_rows_body(w, columns, s, place, z);
        }
        // SAFETY: the token as above.
        unsafe { run(w, columns, s, place, z) }
    }

    pub(in crate::linear) fn contract_words(self, w: &[u32], s: &[u32], z: &mut [u32]) {
        #[target_feature(enable = "avx2")]
        fn run(w: &[u32], s: &[u32], z: &mut [u32]) {
            adjoint::contract_words_body(w, s, z);
        }
        // SAFETY: the token as above.
        unsafe { run(w, s, z) }
    }

    pub(in crate::linear) fn combine(self, z: &[u32], rows: &[u32], out: &mut [u32]) {
        #[target_feature(enable = "avx2")]
        fn run(z: &[u32], rows: &[u32], out: &mut [u32]) {
            adjoint::combine_body(z, rows, out);
        }
        // SAFETY: the token as above.
        unsafe { run(z, rows, out) }
    }
}

/// Packs terms `terms`; see [`Vectors::pack_pixels`].
#[target_feature(enable = "avx2")]
fn pack(
    x: &[u32],
    channels: usize,
    panel: &Panel,
    terms: Range<usize>,
    out: &mut Vec<[__m256i; 2]>,
) {
    let mut held = None;
    let mut term = terms.start;
    while term < terms.end {
        let (tap, channel) = (&panel.taps[term / channels], term % channels);
        let run = (channels - channel).min(terms.end - term);
        term += run;
        for plane in x.chunks_exact(panel.plane).skip(channel).take(run) {
            let words = match tap {
                Tap::Consecutive(first) => plane[*first..].first_chunk::<LANES>().copied(),
                Tap::Scattered(at) => Some(at.map(|at| plane.get(at).copied().unwrap_or(0))),
            };
            let words = words.unwrap_or([0; LANES]).map(centre);
            match held.take() {
                None => held = Some(words),
                Some(before) => out.push(halves(before, words)),
            }
        }
    }
    if let Some(last) = held {
        out.push(halves(last, [0; LANES]));
    }
}

/// Two terms of each lane, side by side, in low and high halves.
#[inline]
#[target_feature(enable = "avx2")]
fn halves(a: [u32; LANES], b: [u32; LANES]) -> [__m256i; 2] {
    let (mut low, mut high) = ([0; LANES], [0; LANES]);
    for lane in 0..LANES {
        low[lane] = pair(a[lane], b[lane]);
        high[lane] = pair(upper(a[lane]), upper(b[lane]));
    }
    [bytemuck::cast(low), bytemuck::cast(high)]
}

/// The low halves of two words.
#[inline(always)]
fn pair(a: u32, b: u32) -> i32 {
    (a & 0xffff | b << 16) as i32
}

/// The upper half once the lower is taken as signed.
#[inline(always)]
fn upper(word: u32) -> u32 {
    word.wrapping_add(0x8000) >> 16
}

/// The representative of `word` mod p in [−2³⁰, 2³⁰), as two's complement.
#[inline(always)]
fn centre(word: u32) -> u32 {
    let word = (word & P) + (word >> 31);
    word.wrapping_sub(if word > P / 2 { P } else { 0 })
}

#[target_feature(enable = "avx2")]
fn cut_row(x: &[u32], every: usize, out: &mut [[i32; 2]]) {
    for (out, words) in out.iter_mut().step_by(every).zip(x.chunks(STEP)) {
        let a = centre(words[0]);
        let b = words.get(1).copied().map_or(0, centre);
        *out = [pair(a, b), pair(upper(a), upper(b))];
    }
}

#[target_feature(enable = "avx2")]
fn pixel_tile<const R: usize>(
    pixels: &[[__m256i; 2]],
    weights: &[i32],
    store: Store,
    rows: &mut [&mut [u32]],
) {
    let mut sums = [START.map(|start| _mm256_set1_epi32(start)); R];
    for (pixels, weights) in pixels.iter().zip(weights.as_chunks::<R>().0) {
        for (sums, &weight) in sums.iter_mut().zip(weights) {
            let weight = _mm256_set1_epi32(weight);
            for (sum, &half) in sums.iter_mut().zip(pixels) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(half, weight));
            }
        }
    }
    for (row, sums) in rows.iter_mut().zip(sums) {
        write(
            recombine(sums),
            store.place,
            store.first,
            &mut row[store.column..][..store.count],
        );
    }
}

#[target_feature(enable = "avx2")]
fn word_tile<const R: usize, const V: usize>(
    words: &[[i32; 2]],
    weights: &[__m128i],
    store: Store,
    rows: &mut [&mut [u32]],
) {
    let mut sums = [[START.map(|start| _mm256_set1_epi32(start)); V]; R];
    for (words, weights) in words
        .as_chunks::<R>()
        .0
        .iter()
        .zip(weights.as_chunks::<V>().0)
    {
        let weights = weights.map(|weights| _mm256_cvtepi8_epi16(weights));
        for (sums, words) in sums.iter_mut().zip(words) {
            for (half, &word) in words.iter().enumerate() {
                let word = _mm256_set1_epi32(word);
                for (sums, &weights) in sums.iter_mut().zip(&weights) {
                    sums[half] = _mm256_add_epi32(sums[half], _mm256_madd_epi16(word, weights));
                }
            }
        }
    }
    for (row, sums) in rows.iter_mut().zip(sums) {
        let row = &mut row[store.column..][..store.count];
        for (row, sums) in row.chunks_mut(LANES).zip(sums) {
            write(recombine(sums), store.place, store.first, row);
        }
    }
}

/// `a + b·2¹⁶` mod p, canonical, for unsigned sums.
#[inline]
#[target_feature(enable = "avx2")]
fn recombine([a, b]: [__m256i; 2]) -> __m256i {
    let p = _mm256_set1_epi32(P as i32);
    // At most p + 1 before `once`, at most p after.
    let fold = |v| {
        once(_mm256_add_epi32(
            _mm256_and_si256(v, p),
            _mm256_srli_epi32::<31>(v),
        ))
    };
    let b = fold(b);
    let up = _mm256_and_si256(_mm256_slli_epi32::<16>(b), p);
    let b = _mm256_or_si256(up, _mm256_srli_epi32::<15>(b));
    once(once(_mm256_add_epi32(fold(a), b)))
}

/// Subtracts p if that does not go below zero.
#[inline]
#[target_feature(enable = "avx2")]
fn once(v: __m256i) -> __m256i {
    _mm256_min_epu32(v, _mm256_sub_epi32(v, _mm256_set1_epi32(P as i32)))
}

/// `row (+)= 2^place·v` mod p for canonical v and at most eight words.
#[inline]
#[target_feature(enable = "avx2")]
fn write(mut v: __m256i, place: u32, first: bool, row: &mut [u32]) {
    if place > 0 {
        let up = _mm256_sll_epi32(v, _mm_cvtsi32_si128(place as i32));
        let down = _mm256_srl_epi32(v, _mm_cvtsi32_si128(31 - place as i32));
        v = _mm256_or_si256(_mm256_and_si256(up, _mm256_set1_epi32(P as i32)), down);
    }
    let mut words = [0u32; LANES];
    if !first {
        words[..row.len()].copy_from_slice(row);
        v = once(_mm256_add_epi32(v, bytemuck::cast(words)));
    }
    words = bytemuck::cast(v);
    row.copy_from_slice(&words[..row.len()]);
}
