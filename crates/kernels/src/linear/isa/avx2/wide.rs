//! Products of whole words: `vpmuldq` (32 × 32 → 64 bits), even and odd columns apart.

use std::arch::x86_64::*;
use std::ops::Range;

use super::{LANES, Panel, Tap, once, write};
use crate::field::P;
use crate::isa::Avx2;
use crate::linear::tiles::Line;
use crate::linear::vectors::Store;
use crate::linear::wide::{FOLD, WholeWords, centre};

/// Rows of a tile. With both halves of a line, even and odd, they fill 12 registers of 16.
const ROWS: usize = 3;

/// Words of a line.
const WORDS: usize = crate::linear::tiles::LANES;

/// Halves of a line.
const HALVES: usize = WORDS / LANES;

impl WholeWords for Avx2 {
    const ROWS: usize = ROWS;
    const LINES: usize = 1;

    fn centre_row(self, x: &[u32], every: usize, out: &mut [Line]) {
        for (line, words) in out.iter_mut().step_by(every).zip(x.chunks(WORDS)) {
            line.0.fill(0);
            for (to, &word) in line.0.iter_mut().zip(words) {
                *to = centre(word);
            }
        }
    }

    fn centre_pixels(
        self,
        x: &[u32],
        channels: usize,
        panel: &Panel,
        terms: Range<usize>,
        [part, every]: [usize; 2],
        out: &mut [Line],
    ) {
        // SAFETY: `self` exists only where `detect` saw AVX2.
        unsafe { pixels(x, channels, panel, terms, [part, every], out) }
    }

    fn whole_tile(
        self,
        left: &[Line],
        right: &[Line],
        terms: usize,
        store: Store,
        rows: &mut [&mut [u32]],
    ) {
        // SAFETY: the token as above.
        unsafe {
            match rows.len() {
                1 => tile::<1>(left, right, terms, store, rows),
                2 => tile::<2>(left, right, terms, store, rows),
                _ => tile::<ROWS>(left, right, terms, store, rows),
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn pixels(
    x: &[u32],
    channels: usize,
    panel: &Panel,
    terms: Range<usize>,
    [part, every]: [usize; 2],
    out: &mut [Line],
) {
    let mut out = out.iter_mut().step_by(every);
    let mut term = terms.start;
    while term < terms.end {
        let (tap, channel) = (&panel.taps[term / channels], term % channels);
        let run = (channels - channel).min(terms.end - term);
        term += run;
        let planes = x.chunks_exact(panel.plane).skip(channel).take(run);
        for (plane, line) in planes.zip(&mut out) {
            let words = match tap {
                Tap::Consecutive(first) => plane[*first..].first_chunk::<LANES>().copied(),
                Tap::Scattered(at) => Some(at.map(|at| plane.get(at).copied().unwrap_or(0))),
            };
            let words = words.unwrap_or([0; LANES]).map(centre);
            line.0[part * LANES..][..LANES].copy_from_slice(&words);
        }
    }
}

#[target_feature(enable = "avx2")]
fn tile<const R: usize>(
    left: &[Line],
    right: &[Line],
    terms: usize,
    store: Store,
    rows: &mut [&mut [u32]],
) {
    let sums = sums::<R>(left, &right[..terms]);
    for (row, sums) in rows.iter_mut().zip(sums) {
        let row = &mut row[store.column..][..store.count];
        for (row, sum) in row.chunks_mut(LANES).zip(sums) {
            write(sum, 0, store.first, row);
        }
    }
}

/// Σ left·right of R rows and one line, canonical.
#[inline]
#[target_feature(enable = "avx2")]
fn sums<const R: usize>(left: &[Line], right: &[Line]) -> [[__m256i; HALVES]; R] {
    let mut sums = [[[_mm256_setzero_si256(); 2]; HALVES]; R];
    for (left, right) in left.as_chunks::<R>().0.iter().zip(right.chunks(WORDS)) {
        for (part, right) in right.chunks(FOLD).enumerate() {
            for (term, right) in right.iter().enumerate() {
                let term = (part * FOLD + term) % WORDS;
                for (half, words) in right.0.as_chunks::<LANES>().0.iter().enumerate() {
                    let even: __m256i = bytemuck::cast(*words);
                    let odd = _mm256_srli_epi64::<32>(even);
                    for (sums, row) in sums.iter_mut().zip(left) {
                        let word = _mm256_set1_epi32(row.0[term] as i32);
                        let [a, b] = &mut sums[half];
                        *a = _mm256_add_epi64(*a, _mm256_mul_epi32(even, word));
                        *b = _mm256_add_epi64(*b, _mm256_mul_epi32(odd, word));
                    }
                }
            }
            // Not by `map`, which is not inlined and takes the sums through memory.
            for sum in sums.as_flattened_mut().as_flattened_mut() {
                *sum = fold(*sum);
            }
        }
    }
    let mut words = [[_mm256_setzero_si256(); HALVES]; R];
    for (words, sums) in words.iter_mut().zip(sums) {
        for (word, sums) in words.iter_mut().zip(sums) {
            *word = reduce(sums);
        }
    }
    words
}

/// A number that is congruent mod p, between −2³² and 2³² + 2³¹.
#[inline]
#[target_feature(enable = "avx2")]
fn fold(sum: __m256i) -> __m256i {
    // There is no arithmetic shift of 64 bits: 2⁶³ more before a logical one is 2³² more after it.
    let moved = _mm256_xor_si256(sum, _mm256_set1_epi64x(i64::MIN));
    let high = _mm256_sub_epi64(_mm256_srli_epi64::<31>(moved), _mm256_set1_epi64x(1 << 32));
    _mm256_add_epi64(_mm256_and_si256(sum, _mm256_set1_epi64x(P.into())), high)
}

/// The canonical words of folded sums of even and odd columns.
#[inline]
#[target_feature(enable = "avx2")]
fn reduce(sums: [__m256i; 2]) -> __m256i {
    // Now between −2 and p + 3, then between 0 and p.
    let [even, odd] = [fold(fold(sums[0])), fold(fold(sums[1]))];
    once(_mm256_or_si256(even, _mm256_slli_epi64::<32>(odd)))
}
