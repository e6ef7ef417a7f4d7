//! Lines of sixteen words, and their way from channels side by side to planes.

use std::arch::x86_64::*;

use crate::isa::Avx512;
use crate::linear::tiles::{LANES, Line};

/// Words that are fetched ahead of being rearranged.
pub(super) const AHEAD: usize = 6 * LANES;

impl Avx512 {
    /// Fetches what [`Avx512::lines_out`] is going to write: the hardware does not follow many rows.
    pub(in crate::linear) fn expect_lines(
        self,
        count: usize,
        first: usize,
        rows: &mut [&mut [u32]],
    ) {
        for row in rows {
            for line in row[first..][..count].chunks(LANES) {
                // SAFETY: a prefetch accesses nothing, and every x86-64 CPU has it.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
            }
        }
    }

    /// Writes `[vector of channels][pixel]` of `count` pixels to rows of channels, from word `first` on.
    pub(in crate::linear) fn lines_out(
        self,
        lines: &[Line],
        count: usize,
        first: usize,
        rows: &mut [&mut [u32]],
    ) {
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { lines_out(lines, count, first, rows) }
    }
}

#[target_feature(enable = "avx512f")]
fn lines_out(lines: &[Line], count: usize, first: usize, rows: &mut [&mut [u32]]) {
    for (lines, rows) in lines.chunks_exact(count).zip(rows.chunks_mut(LANES)) {
        for (index, lines) in lines.chunks(LANES).enumerate() {
            let mut words = [_mm512_setzero_si512(); LANES];
            for (word, line) in words.iter_mut().zip(lines) {
                *word = load(line);
            }
            let mask = ((1u32 << lines.len()) - 1) as __mmask16;
            for (word, row) in transpose(words).into_iter().zip(&mut *rows) {
                let to = &mut row[first + index * LANES..][..lines.len()];
                // SAFETY: as many lanes as the slice has words.
                unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, word) };
            }
        }
    }
}

/// Sixteen rows of sixteen words, columns and rows exchanged.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(mut v: [__m512i; LANES]) -> [__m512i; LANES] {
    // Words, then pairs of them, within each quarter; then the quarters.
    for i in 0..8 {
        let (a, b) = (v[2 * i], v[2 * i + 1]);
        v[2 * i] = _mm512_unpacklo_epi32(a, b);
        v[2 * i + 1] = _mm512_unpackhi_epi32(a, b);
    }
    let mut w = v;
    for i in 0..4 {
        let [a, b, c, d] = [v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]];
        w[4 * i] = _mm512_unpacklo_epi64(a, c);
        w[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        w[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        w[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for i in 0..4 {
        let [a, b, c, d] = [w[i], w[4 + i], w[8 + i], w[12 + i]];
        let (ab, cd) = (
            [
                _mm512_shuffle_i32x4::<0x88>(a, b),
                _mm512_shuffle_i32x4::<0xdd>(a, b),
            ],
            [
                _mm512_shuffle_i32x4::<0x88>(c, d),
                _mm512_shuffle_i32x4::<0xdd>(c, d),
            ],
        );
        v[i] = _mm512_shuffle_i32x4::<0x88>(ab[0], cd[0]);
        v[8 + i] = _mm512_shuffle_i32x4::<0xdd>(ab[0], cd[0]);
        v[4 + i] = _mm512_shuffle_i32x4::<0x88>(ab[1], cd[1]);
        v[12 + i] = _mm512_shuffle_i32x4::<0xdd>(ab[1], cd[1]);
    }
    v
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn load(line: &Line) -> __m512i {
    // SAFETY: a line is sixteen words, aligned like a vector.
    unsafe { _mm512_load_si512((&raw const *line).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(line: &mut Line, v: __m512i) {
    // SAFETY: as above.
    unsafe { _mm512_store_si512((&raw mut *line).cast(), v) }
}
