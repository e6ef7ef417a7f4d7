//! Products of whole words: `vpmuldq` (32 × 32 → 64 bits), even and odd columns apart.

use std::arch::x86_64::*;
use std::ops::Range;

use super::lines::{AHEAD, load, store};
use super::reads::{GATHER, ONE_RUN, Panel, RUNS_OF_ONE, RUNS_OF_TWO, read};
use super::{LANES, once, write};
use crate::field::P;
use crate::isa::Avx512;
use crate::linear::tiles::Line;
use crate::linear::vectors::Store;
use crate::linear::wide::{FOLD, WholeWords};

/// Rows of a tile. With two lines, even and odd, they fill 24 registers of 32.
const ROWS: usize = 6;

impl WholeWords for Avx512 {
    const ROWS: usize = ROWS;
    const LINES: usize = 2;

    fn centre_row(self, x: &[u32], every: usize, out: &mut [Line]) {
        #[target_feature(enable = "avx512f")]
        fn run(x: &[u32], every: usize, out: &mut [Line]) {
            for (line, words) in out.iter_mut().step_by(every).zip(x.chunks(LANES)) {
                let lanes = ((1u32 << words.len()) - 1) as __mmask16;
                // SAFETY: as many lanes as the slice has words.
                let words = unsafe { _mm512_maskz_loadu_epi32(lanes, words.as_ptr().cast()) };
                store(line, centre(words));
            }
        }
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { run(x, every, out) }
    }

    fn centre_pixels(
        self,
        x: &[u32],
        channels: usize,
        panel: &Panel,
        terms: Range<usize>,
        [_, every]: [usize; 2],
        out: &mut [Line],
    ) {
        // SAFETY: the token as above.
        unsafe {
            match panel.mode {
                ONE_RUN => pixels::<ONE_RUN>(x, channels, panel, terms, every, out),
                RUNS_OF_ONE => pixels::<RUNS_OF_ONE>(x, channels, panel, terms, every, out),
                RUNS_OF_TWO => pixels::<RUNS_OF_TWO>(x, channels, panel, terms, every, out),
                _ => pixels::<GATHER>(x, channels, panel, terms, every, out),
            }
        }
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
            match (rows.len(), store.count > LANES) {
                (1, false) => tile::<1, 1>(left, right, terms, store, rows),
                (2, false) => tile::<2, 1>(left, right, terms, store, rows),
                (3, false) => tile::<3, 1>(left, right, terms, store, rows),
                (4, false) => tile::<4, 1>(left, right, terms, store, rows),
                (5, false) => tile::<5, 1>(left, right, terms, store, rows),
                (_, false) => tile::<ROWS, 1>(left, right, terms, store, rows),
                (1, true) => tile::<1, 2>(left, right, terms, store, rows),
                (2, true) => tile::<2, 2>(left, right, terms, store, rows),
                (3, true) => tile::<3, 2>(left, right, terms, store, rows),
                (4, true) => tile::<4, 2>(left, right, terms, store, rows),
                (5, true) => tile::<5, 2>(left, right, terms, store, rows),
                (_, true) => tile::<ROWS, 2>(left, right, terms, store, rows),
            }
        }
    }
}

impl Avx512 {
    /// `products[vector][tile] = Σ points·weights` at one point, canonical.
    ///
    /// Sixteen inputs of the tiles lie every `apart` lines; `weights` is `[input][vector]`.
    pub(in crate::linear) fn whole_tiles(
        self,
        points: &[Line],
        apart: usize,
        weights: &[Line],
        tiles: usize,
        products: &mut [Line],
    ) {
        // SAFETY: the token as above.
        unsafe { multiply(points, apart, weights, tiles, products) }
    }
}

/// The representatives of sixteen words mod p in [−(p − 1)/2, (p − 1)/2].
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn centre(v: __m512i) -> __m512i {
    let p = _mm512_set1_epi32(P as i32);
    let v = _mm512_add_epi32(_mm512_and_si512(v, p), _mm512_srli_epi32::<31>(v));
    let above = _mm512_cmpgt_epu32_mask(v, _mm512_set1_epi32((P / 2) as i32));
    _mm512_mask_sub_epi32(v, above, v, p)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn pixels<const MODE: u8>(
    x: &[u32],
    channels: usize,
    panel: &Panel,
    terms: Range<usize>,
    every: usize,
    out: &mut [Line],
) {
    let plane = panel.plane;
    assert!(x.len() >= channels * plane, "x holds whole planes");
    let mut out = out.iter_mut().step_by(every);
    let mut term = terms.start;
    while term < terms.end {
        let runs = &panel.taps[term / channels * panel.count..][..panel.count];
        let first = term % channels;
        let end = channels.min(first + terms.end - term);
        term += end - first;
        for (channel, line) in (first..end).zip(&mut out) {
            let words = x[channel * plane..].as_ptr().cast::<i32>();
            // SAFETY: `x` holds `channels` planes and `channel` is below that; a prefetch accesses nothing.
            unsafe {
                if panel.taps.len() == 1 {
                    // The hardware does not follow many planes.
                    let ahead = words.wrapping_offset(runs[0].at).wrapping_add(AHEAD);
                    _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                }
                store(line, centre(read::<MODE>(runs, panel.base, words)));
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
fn tile<const R: usize, const V: usize>(
    left: &[Line],
    right: &[Line],
    terms: usize,
    store: Store,
    rows: &mut [&mut [u32]],
) {
    let sums = sums::<R, V>(left, R, right, terms);
    for (row, sums) in rows.iter_mut().zip(sums) {
        let row = &mut row[store.column..][..store.count];
        for (row, sum) in row.chunks_mut(LANES).zip(sums) {
            write(sum, 0, store.first, row);
        }
    }
}

#[target_feature(enable = "avx512f")]
fn multiply(points: &[Line], apart: usize, weights: &[Line], tiles: usize, products: &mut [Line]) {
    let wide = products.len() > tiles;
    // Rows as equal as can be, since a few alone would wait for their loads.
    let rows = tiles.div_ceil(tiles.div_ceil(ROWS));
    for first in (0..tiles).step_by(rows) {
        let (points, products) = (&points[first..], &mut products[first..]);
        match (rows.min(tiles - first), wide) {
            (1, false) => at_point::<1, 1>(points, apart, weights, tiles, products),
            (2, false) => at_point::<2, 1>(points, apart, weights, tiles, products),
            (3, false) => at_point::<3, 1>(points, apart, weights, tiles, products),
            (4, false) => at_point::<4, 1>(points, apart, weights, tiles, products),
            (5, false) => at_point::<5, 1>(points, apart, weights, tiles, products),
            (_, false) => at_point::<ROWS, 1>(points, apart, weights, tiles, products),
            (1, true) => at_point::<1, 2>(points, apart, weights, tiles, products),
            (2, true) => at_point::<2, 2>(points, apart, weights, tiles, products),
            (3, true) => at_point::<3, 2>(points, apart, weights, tiles, products),
            (4, true) => at_point::<4, 2>(points, apart, weights, tiles, products),
            (5, true) => at_point::<5, 2>(points, apart, weights, tiles, products),
            (_, true) => at_point::<ROWS, 2>(points, apart, weights, tiles, products),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn at_point<const R: usize, const V: usize>(
    points: &[Line],
    apart: usize,
    weights: &[Line],
    tiles: usize,
    products: &mut [Line],
) {
    let sums = sums::<R, V>(points, apart, weights, weights.len() / V);
    for (row, sums) in sums.into_iter().enumerate() {
        for (vector, sum) in sums.into_iter().enumerate() {
            store(&mut products[vector * tiles + row], sum);
        }
    }
}

/// Σ left·right of R rows and V lines, canonical; sixteen terms of the rows lie every `apart` lines.
#[inline]
#[target_feature(enable = "avx512f")]
fn sums<const R: usize, const V: usize>(
    left: &[Line],
    apart: usize,
    right: &[Line],
    terms: usize,
) -> [[__m512i; V]; R] {
    let mut sums = [[[_mm512_setzero_si512(); 2]; V]; R];
    let right = &right.as_chunks::<V>().0[..terms];
    for (index, right) in right.chunks(LANES).enumerate() {
        let Some(left) = left[index * apart..].first_chunk::<R>() else {
            break;
        };
        for (half, right) in right.chunks(FOLD).enumerate() {
            if let Some(right) = right.first_chunk::<FOLD>() {
                for (term, right) in right.iter().enumerate() {
                    add_term(left, half * FOLD + term, right, &mut sums);
                }
            } else {
                for (term, right) in right.iter().enumerate() {
                    add_term(left, half * FOLD + term, right, &mut sums);
                }
            }
            // Not by `map`, which is not inlined and takes the sums through memory.
            for sum in sums.as_flattened_mut().as_flattened_mut() {
                *sum = fold(*sum);
            }
        }
    }
    let mut words = [[_mm512_setzero_si512(); V]; R];
    for (words, sums) in words.iter_mut().zip(sums) {
        for (word, sums) in words.iter_mut().zip(sums) {
            *word = reduce(sums);
        }
    }
    words
}

#[inline]
#[target_feature(enable = "avx512f")]
fn add_term<const R: usize, const V: usize>(
    left: &[Line; R],
    term: usize,
    right: &[Line; V],
    sums: &mut [[[__m512i; 2]; V]; R],
) {
    let (mut even, mut odd) = ([_mm512_setzero_si512(); V], [_mm512_setzero_si512(); V]);
    for (v, line) in right.iter().enumerate() {
        even[v] = load(line);
        odd[v] = _mm512_srli_epi64::<32>(even[v]);
    }
    for (sums, row) in sums.iter_mut().zip(left) {
        let word = _mm512_set1_epi32(row.0[term % LANES] as i32);
        for (v, sums) in sums.iter_mut().enumerate() {
            sums[0] = _mm512_add_epi64(sums[0], _mm512_mul_epi32(even[v], word));
            sums[1] = _mm512_add_epi64(sums[1], _mm512_mul_epi32(odd[v], word));
        }
    }
}

/// A number that is congruent mod p, between −2³² and 2³² + 2³¹.
#[inline]
#[target_feature(enable = "avx512f")]
fn fold(sum: __m512i) -> __m512i {
    let p = _mm512_set1_epi64(P.into());
    _mm512_add_epi64(_mm512_and_si512(sum, p), _mm512_srai_epi64::<31>(sum))
}

/// The canonical words of folded sums of even and odd columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduce(sums: [__m512i; 2]) -> __m512i {
    // Now between −2 and p + 3, then between 0 and p.
    let [even, odd] = [fold(fold(sums[0])), fold(fold(sums[1]))];
    once(_mm512_or_si512(even, _mm512_slli_epi64::<32>(odd)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::wide::centre as centre_word;

    #[test]
    fn vectors_are_centred_as_words_are() {
        let Some(_token) = Avx512::detect() else {
            println!("skipped: avx512 (this CPU lacks it)");
            return;
        };
        let mut line = Line([0; LANES]);
        for (place, word) in line.0.iter_mut().zip([
            0,
            1,
            P / 2,
            P / 2 + 1,
            P - 1,
            P,
            P + 1,
            P + P / 2,
            P + P / 2 + 1,
            u32::MAX - 1,
            u32::MAX,
        ]) {
            *place = word;
        }
        let expected = line.0.map(centre_word);
        // SAFETY: detected above.
        unsafe {
            let v = centre(load(&line));
            store(&mut line, v);
        }
        assert_eq!(line.0, expected);
    }
}
