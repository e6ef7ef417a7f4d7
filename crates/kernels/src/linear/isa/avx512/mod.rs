//! AVX-512: words in four unsigned limbs of 8 bits, `vpdpbusd` (u8 × s8 → i32) four terms at a time.
//!
//! The four sums l₀..l₃ start from constants near 2³⁰ whose total Σ bⱼ·2⁸ʲ is 0 mod p, so that they stay
//! non-negative 31-bit numbers; multiplication by 2⁸ʲ mod p is then a rotation of 31 bits.

mod bytes;
mod direct;
mod lines;
mod reads;
mod tiles;
mod wide;

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use crate::field::P;
use crate::isa::Avx512;
use crate::linear::adjoint;
use crate::linear::direct::{Direct, MAX_TERMS};
use crate::linear::vectors::{PIXEL_ROWS, Scratch, Store, Vectors, WORD_ROWS};
use crate::linear::window::Window;
use direct::direct;
use lines::AHEAD;
use reads::{GATHER, ONE_RUN, Panel, RUNS_OF_ONE, RUNS_OF_TWO, find, read};

const LANES: usize = 16;
const STEP: usize = 4;

/// Terms of one accumulator: 4096·255·128 < 2²⁷, far from 2³⁰; more would only enlarge the buffers.
const BLOCK: usize = 4096;

/// What the limb sums start from: ≡ 0 when recombined, and 2³⁰ ≤ b < 2³⁰ + 256.
const START: [i32; 4] = {
    let sum = (0x4000_0000u64 * 0x0101_0101) % P as u64;
    let missing = P as u64 - sum;
    let mut start = [0; 4];
    let mut limb = 0;
    while limb < 4 {
        start[limb] = 0x4000_0000 + ((missing >> (8 * limb)) & 0xff) as i32;
        limb += 1;
    }
    start
};
const _: () = assert!(BLOCK as i64 * 255 * 128 + 255 < 1 << 30);

/// Up to so many terms l₀ + l₁·2⁸ and l₂ + l₃·2⁸ fit as well, and only these two are recombined.
const SHORT: usize = 124;
const _: () = assert!(SHORT as i64 * 255 * 128 * 257 + 0xffff < 1 << 30);

/// The same for two halves, of short sums or of the direct products: b₀ + b₁·2¹⁶ ≡ 0, 2³⁰ ≤ b < 2³⁰ + 2¹⁶.
const HALVES: [i32; 2] = {
    let missing = P as u64 - (0x4000_0000u64 * 0x0001_0001) % P as u64;
    [
        0x4000_0000 + (missing & 0xffff) as i32,
        0x4000_0000 + (missing >> 16) as i32,
    ]
};
const _: () = assert!(MAX_TERMS as i64 * 0xffff * 128 + 0xffff < 1 << 30);

thread_local! {
    static SCRATCH: RefCell<Scratch<Avx512>> = RefCell::default();
}

impl Vectors for Avx512 {
    const LANES: usize = LANES;
    const STEP: usize = STEP;
    const BLOCK: usize = BLOCK;
    type Panel = Panel;
    type Pixels = [__m512i; 4];
    type Words = [i32; 4];
    const NO_WORDS: [i32; 4] = [0; 4];
    type Weights = __m512i;

    fn scratch<R>(self, work: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
        SCRATCH.with_borrow_mut(work)
    }

    fn broadcast(weights: &[i8]) -> i32 {
        let mut bytes = [0; STEP];
        for (byte, &weight) in bytes.iter_mut().zip(weights) {
            *byte = weight as u8;
        }
        i32::from_le_bytes(bytes)
    }

    fn weights(weight: impl Fn(usize, usize) -> i8) -> __m512i {
        let mut bytes = [0i8; 64];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = weight(at / STEP, at % STEP);
        }
        // SAFETY: any 64 bytes are a vector, and the type is no larger.
        unsafe { std::mem::transmute::<[i8; 64], __m512i>(bytes) }
    }

    fn panel(self, window: &Window, first: usize, count: usize, panel: &mut Panel) {
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { find(window, first, count, panel) }
    }

    fn pack_pixels(
        self,
        x: &[u32],
        channels: usize,
        panel: &Panel,
        terms: Range<usize>,
        out: &mut Vec<[__m512i; 4]>,
    ) {
        // SAFETY: the token as above.
        unsafe {
            match panel.mode {
                ONE_RUN => pack::<ONE_RUN>(x, channels, panel, terms, out),
                RUNS_OF_ONE => pack::<RUNS_OF_ONE>(x, channels, panel, terms, out),
                RUNS_OF_TWO => pack::<RUNS_OF_TWO>(x, channels, panel, terms, out),
                _ => pack::<GATHER>(x, channels, panel, terms, out),
            }
        }
    }

    fn pack_words(self, x: &[u32], every: usize, out: &mut [[i32; 4]]) {
        // SAFETY: the token as above.
        unsafe { cut_row(x, every, out) }
    }

    fn pixel_tile(
        self,
        pixels: &[[__m512i; 4]],
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
        words: &[[i32; 4]],
        weights: &[__m512i],
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

impl Avx512 {
    /// [`Direct::work`].
    pub(in crate::linear) fn direct(self, layer: &Direct, x: &[u32], first: usize, y: &mut [u32]) {
        // SAFETY: the token as above.
        self.scratch(|scratch| unsafe { direct(layer, x, first, y, &mut scratch.panels) });
    }

    pub(in crate::linear) fn contract_columns(
        self,
        w: &[i8],
        s: &[u32],
        place: u32,
        z: &mut [u32],
    ) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
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
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn run(w: &[i8], columns: usize, s: &[u32], place: u32, z: &mut [u32]) {
            adjoint::contract_rows_body(w, columns, s, place, z);
        }
        // SAFETY: the token as above.
        unsafe { run(w, columns, s, place, z) }
    }

    pub(in crate::linear) fn contract_words(self, w: &[u32], s: &[u32], z: &mut [u32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn run(w: &[u32], s: &[u32], z: &mut [u32]) {
            adjoint::contract_words_body(w, s, z);
        }
        // SAFETY: the token as above.
        unsafe { run(w, s, z) }
    }

    pub(in crate::linear) fn combine(self, z: &[u32], rows: &[u32], out: &mut [u32]) {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn run(z: &[u32], rows: &[u32], out: &mut [u32]) {
            adjoint::combine_body(z, rows, out);
        }
        // SAFETY: the token as above.
        unsafe { run(z, rows, out) }
    }
}

/// Packs terms `terms`; see [`Vectors::pack_pixels`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pack<const MODE: u8>(
    x: &[u32],
    channels: usize,
    panel: &Panel,
    terms: Range<usize>,
    out: &mut Vec<[__m512i; 4]>,
) {
    let plane = panel.plane;
    assert!(x.len() >= channels * plane, "x holds whole planes");
    let mut held = [_mm512_setzero_si512(); STEP];
    let mut holding = 0;
    let mut term = terms.start;
    while term < terms.end {
        let runs = &panel.taps[term / channels * panel.count..][..panel.count];
        let first = term % channels;
        let end = channels.min(first + terms.end - term);
        term += end - first;
        let mut channel = first;
        while channel < end {
            let words = x[channel * plane..].as_ptr().cast::<i32>();
            // SAFETY: `x` holds `channels` planes, `channel` is below that, four are read only if four are left.
            unsafe {
                if holding == 0 && end - channel >= STEP {
                    if panel.taps.len() == 1 {
                        // The hardware does not follow many planes.
                        let ahead = words.wrapping_offset(runs[0].at).wrapping_add(AHEAD);
                        for channel in 0..STEP {
                            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(channel * plane).cast());
                        }
                    }
                    out.push(cut([
                        read::<MODE>(runs, panel.base, words),
                        read::<MODE>(runs, panel.base, words.add(plane)),
                        read::<MODE>(runs, panel.base, words.add(2 * plane)),
                        read::<MODE>(runs, panel.base, words.add(3 * plane)),
                    ]));
                    channel += STEP;
                    continue;
                }
                held[holding] = read::<MODE>(runs, panel.base, words);
            }
            holding += 1;
            channel += 1;
            if holding == STEP {
                out.push(cut(held));
                holding = 0;
            }
        }
    }
    if holding > 0 {
        held[holding..].fill(_mm512_setzero_si512());
        out.push(cut(held));
    }
}

/// Four words in each lane become four limbs: byte j of result i is byte i of word j.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn cut(words: [__m512i; 4]) -> [__m512i; 4] {
    let [a, b, c, d] = words;
    // Swaps the bytes of each half-word, and the half-words of each word.
    let bytes = _mm512_set1_epi64(0x0607_0405_0203_0001);
    let bytes = lane_offsets(bytes);
    let halves = _mm512_set1_epi64(0x0504_0706_0100_0302);
    let halves = lane_offsets(halves);
    let odd = 0xaaaa_aaaa_aaaa_aaaa;
    let high = 0xcccc_cccc_cccc_cccc;
    let ab02 = _mm512_mask_shuffle_epi8(a, odd, b, bytes);
    let ab13 = _mm512_mask_shuffle_epi8(b, !odd, a, bytes);
    let cd02 = _mm512_mask_shuffle_epi8(c, odd, d, bytes);
    let cd13 = _mm512_mask_shuffle_epi8(d, !odd, c, bytes);
    [
        _mm512_mask_shuffle_epi8(ab02, high, cd02, halves),
        _mm512_mask_shuffle_epi8(ab13, high, cd13, halves),
        _mm512_mask_shuffle_epi8(cd02, !high, ab02, halves),
        _mm512_mask_shuffle_epi8(cd13, !high, ab13, halves),
    ]
}

/// Shuffle indices count within 128 bits: adds 8 to those of every upper half.
#[inline]
#[target_feature(enable = "avx512f")]
fn lane_offsets(indices: __m512i) -> __m512i {
    let upper = 0x0808_0808_0808_0808;
    _mm512_add_epi64(
        indices,
        _mm512_set_epi64(upper, 0, upper, 0, upper, 0, upper, 0),
    )
}

/// Four words of a row become four limbs of four terms each.
#[target_feature(enable = "avx512f,avx512bw")]
fn cut_row(x: &[u32], every: usize, out: &mut [[i32; 4]]) {
    let transpose = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
    let (steps, rest) = x.as_chunks::<STEP>();
    let mut last = [0; STEP];
    last[..rest.len()].copy_from_slice(rest);
    let tail = (!rest.is_empty()).then_some(&last);
    for (out, words) in out.iter_mut().step_by(every).zip(steps.iter().chain(tail)) {
        let [a, b, c, d] = words.map(|word| word as i32);
        *out = bytemuck::cast(_mm_shuffle_epi8(_mm_setr_epi32(a, b, c, d), transpose));
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pixel_tile<const R: usize>(
    pixels: &[[__m512i; 4]],
    weights: &[i32],
    store: Store,
    rows: &mut [&mut [u32]],
) {
    let short = pixels.len() * STEP <= SHORT;
    let mut sums = [start(short); R];
    for (pixels, weights) in pixels.iter().zip(weights.as_chunks::<R>().0) {
        for (sums, &weight) in sums.iter_mut().zip(weights) {
            let weight = _mm512_set1_epi32(weight);
            for (sum, &limb) in sums.iter_mut().zip(pixels) {
                *sum = _mm512_dpbusd_epi32(*sum, limb, weight);
            }
        }
    }
    for (row, sums) in rows.iter_mut().zip(sums) {
        let row = &mut row[store.column..][..store.count];
        write(recombine(sums, short), store.place, store.first, row);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn word_tile<const R: usize, const V: usize>(
    words: &[[i32; 4]],
    weights: &[__m512i],
    store: Store,
    rows: &mut [&mut [u32]],
) {
    let short = words.len() * STEP <= SHORT * R;
    let mut sums = [[start(short); V]; R];
    for (words, weights) in words
        .as_chunks::<R>()
        .0
        .iter()
        .zip(weights.as_chunks::<V>().0)
    {
        for (sums, words) in sums.iter_mut().zip(words) {
            for (limb, &word) in words.iter().enumerate() {
                let word = _mm512_set1_epi32(word);
                for (sums, &weight) in sums.iter_mut().zip(weights) {
                    sums[limb] = _mm512_dpbusd_epi32(sums[limb], word, weight);
                }
            }
        }
    }
    for (row, sums) in rows.iter_mut().zip(sums) {
        let row = &mut row[store.column..][..store.count];
        for (row, sums) in row.chunks_mut(LANES).zip(sums) {
            write(recombine(sums, short), store.place, store.first, row);
        }
    }
}

/// What the sums of four limbs start from.
#[inline]
#[target_feature(enable = "avx512f")]
fn start(short: bool) -> [__m512i; 4] {
    let start = if short {
        [HALVES[0], 0, HALVES[1], 0]
    } else {
        START
    };
    start.map(|start| _mm512_set1_epi32(start))
}

/// Σ sumⱼ·2⁸ʲ mod p, canonical, for sums that began with [`start`].
#[inline]
#[target_feature(enable = "avx512f")]
fn recombine(sums: [__m512i; 4], short: bool) -> __m512i {
    let [a, b, c, d] = sums;
    if short {
        let low = _mm512_add_epi32(a, _mm512_slli_epi32::<8>(b));
        let high = _mm512_add_epi32(c, _mm512_slli_epi32::<8>(d));
        return once(add(low, rotate::<16, 15>(high)));
    }
    let low = add(a, rotate::<8, 23>(b));
    let high = add(rotate::<16, 15>(c), rotate::<24, 7>(d));
    once(add(low, high))
}

/// `v·2^LEFT` mod p for v in [0, 2³¹), LEFT + RIGHT = 31.
#[inline]
#[target_feature(enable = "avx512f")]
fn rotate<const LEFT: u32, const RIGHT: u32>(v: __m512i) -> __m512i {
    const AND_OR: i32 = 0xea;
    let (up, down) = (_mm512_slli_epi32::<LEFT>(v), _mm512_srli_epi32::<RIGHT>(v));
    _mm512_ternarylogic_epi32::<AND_OR>(up, _mm512_set1_epi32(P as i32), down)
}

/// `a + b` mod p in [0, p], for a and b in [0, p].
#[inline]
#[target_feature(enable = "avx512f")]
fn add(a: __m512i, b: __m512i) -> __m512i {
    once(_mm512_add_epi32(a, b))
}

/// Subtracts p if that does not go below zero.
#[inline]
#[target_feature(enable = "avx512f")]
fn once(v: __m512i) -> __m512i {
    _mm512_min_epu32(v, _mm512_sub_epi32(v, _mm512_set1_epi32(P as i32)))
}

/// `row (+)= 2^place·v` mod p for canonical v and at most sixteen words.
#[inline]
#[target_feature(enable = "avx512f")]
fn write(mut v: __m512i, place: u32, first: bool, row: &mut [u32]) {
    if place > 0 {
        let up = _mm512_sll_epi32(v, _mm_cvtsi32_si128(place as i32));
        let down = _mm512_srl_epi32(v, _mm_cvtsi32_si128(31 - place as i32));
        v = _mm512_or_si512(_mm512_and_si512(up, _mm512_set1_epi32(P as i32)), down);
    }
    let lanes = ((1u32 << row.len()) - 1) as __mmask16;
    let words = row.as_mut_ptr().cast();
    // SAFETY: as many lanes as `row` has words.
    unsafe {
        if !first {
            v = once(_mm512_add_epi32(v, _mm512_maskz_loadu_epi32(lanes, words)));
        }
        _mm512_mask_storeu_epi32(words, lanes, v);
    }
}
