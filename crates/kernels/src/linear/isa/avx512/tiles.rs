//! Tiles of 3×3 convolutions: points, products and outputs; see [`crate::linear::tiles`].
//!
//! Lanes are channels. Images are transposed on the way in and out, sixteen pixels of sixteen channels at a time.
//! Words between the stages lie in [0, p].

use std::arch::x86_64::*;

use super::lines::{AHEAD, load, store, transpose};
use super::wide::centre;
use super::{add, once, rotate};
use crate::field::P;
use crate::isa::Avx512;
use crate::linear::tiles::{At, IN, LANES, Line, OUT, PAIRS, POINTS, Run};
use crate::linear::window::Window;

/// Tiles that meet a pair of weight vectors together.
const ROWS: usize = 6;

/// What remains to be divided out of an output: 24² but for what [`outputs`] left as powers of two.
const SCALES: [[u32; OUT]; OUT] = {
    // 1/576 = 1/9 · 2⁻⁶, and halving is a rotation by 30.
    let ninth = (P as u64 * 8 + 1) / 9;
    assert!((ninth * 9) % P as u64 == 1);
    let left = [0, 1, 2, 2];
    let mut scales = [[0; OUT]; OUT];
    let mut at = 0;
    while at < OUT * OUT {
        let places = 31 - 6 + left[at / OUT] + left[at % OUT];
        scales[at / OUT][at % OUT] = ((ninth << places) % P as u64) as u32;
        at += 1;
    }
    scales
};

impl Avx512 {
    /// Writes the points of the tiles of `run` into `[point][tile]` of a block, `x` being planes of up to sixteen
    /// channels: whole centred words, or eight pairs of low halves, then eight of high ones.
    pub(in crate::linear) fn tiles_in<const WHOLE: bool>(
        self,
        window: &Window,
        run: &Run,
        x: &[u32],
        lines: &mut Vec<Line>,
        points: &mut [Line],
    ) {
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { tiles_in::<WHOLE>(window, run, x, lines, points) }
    }

    /// `products[vector][tile] = Σ points·weights` at one point, in [0, p].
    ///
    /// `points` is `[sixteen inputs][point][tile]`, `weights` `[sixteen inputs][pair][vector]`.
    pub(in crate::linear) fn tiles_multiply(
        self,
        points: &[Line],
        weights: &[Line],
        at: At,
        products: &mut [Line],
    ) {
        // SAFETY: the token as above.
        unsafe { multiply(points, weights, at, products) }
    }

    /// Writes the outputs of the tiles of `run` into planes of up to sixteen channels.
    ///
    /// `products` is `[point][vector][tile]` of `[vectors, tiles]`, from the vector on that is meant.
    pub(in crate::linear) fn tiles_out(
        self,
        window: &Window,
        run: &Run,
        products: &[Line],
        sizes: [usize; 2],
        lines: &mut Vec<Line>,
        y: &mut [u32],
    ) {
        // SAFETY: the token as above.
        unsafe { tiles_out(window, run, products, sizes, lines, y) }
    }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn tiles_in<const WHOLE: bool>(
    window: &Window,
    run: &Run,
    x: &[u32],
    lines: &mut Vec<Line>,
    points: &mut [Line],
) {
    let columns = OUT * run.count + IN - OUT;
    lines.resize(IN * columns, Line([0; LANES]));
    let [top, left] = [
        (OUT * run.row) as isize + window.shift(0, 0),
        (OUT * run.first) as isize + window.shift(1, 0),
    ];
    for (row, lines) in lines.chunks_exact_mut(columns).enumerate() {
        read_row(window, [top + row as isize, left], x, lines);
    }
    let tiles = points.len() / POINTS;
    for tile in 0..run.count {
        let mut half = [[_mm512_setzero_si512(); IN]; IN];
        for column in 0..IN {
            let mut words = [_mm512_setzero_si512(); IN];
            for (row, word) in words.iter_mut().enumerate() {
                *word = load(&lines[row * columns + OUT * tile + column]);
            }
            for (half, word) in half.iter_mut().zip(inputs(words)) {
                half[column] = word;
            }
        }
        let mut points = points[run.at + tile..].iter_mut().step_by(tiles);
        for words in half {
            for word in inputs(words) {
                if let Some(point) = points.next() {
                    store(point, if WHOLE { centre(word) } else { halves(word) });
                }
            }
        }
    }
}

/// Bᵀ along one axis, two of its rows negated.
#[inline]
#[target_feature(enable = "avx512f")]
fn inputs(d: [__m512i; IN]) -> [__m512i; IN] {
    let a = sub(rotate::<2, 29>(d[2]), d[4]);
    let b = sub(rotate::<2, 29>(d[1]), d[3]);
    let c = sub(d[4], d[2]);
    let e = rotate::<1, 30>(sub(d[3], d[1]));
    let first = rotate::<2, 29>(sub(d[0], d[2]));
    let last = sub(d[5], d[3]);
    [
        add(first, c),
        add(a, b),
        sub(a, b),
        add(c, e),
        sub(c, e),
        sub(last, rotate::<1, 30>(e)),
    ]
}

/// Aᵀ along one axis, but for factors of 24 and 1, 2, 4, 4.
#[inline]
#[target_feature(enable = "avx512f")]
fn outputs(m: [__m512i; IN]) -> [__m512i; OUT] {
    let (s, d) = (add(m[1], m[2]), sub(m[1], m[2]));
    let (t, e) = (add(m[3], m[4]), sub(m[3], m[4]));
    [
        add(rotate::<1, 30>(add(m[0], rotate::<1, 30>(s))), t),
        add(rotate::<1, 30>(d), e),
        add(s, t),
        add(d, rotate::<1, 30>(add(e, m[5]))),
    ]
}

/// Sixteen words of [0, p] as eight pairs of low halves, then eight pairs of high ones, both signed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn halves(v: __m512i) -> __m512i {
    let p = _mm512_set1_epi32(P as i32);
    let above = _mm512_cmpgt_epi32_mask(v, _mm512_set1_epi32((P / 2) as i32));
    let v = _mm512_mask_sub_epi32(v, above, v, p);
    let upper = _mm512_add_epi32(v, _mm512_set1_epi32(0x8000));
    let select = _mm512_set_epi16(
        63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 30, 28, 26, 24, 22, 20, 18,
        16, 14, 12, 10, 8, 6, 4, 2, 0,
    );
    _mm512_permutex2var_epi16(v, select, upper)
}

/// A row of pixels from column `left` on, which may lie outside, in lines of sixteen channels, in [0, p].
#[target_feature(enable = "avx512f,avx512bw")]
fn read_row(window: &Window, [row, left]: [isize; 2], x: &[u32], lines: &mut [Line]) {
    let [height, width] = window.input;
    let row = usize::try_from(row).ok().filter(|&row| row < height);
    let inside = row.map_or(0..0, |_| {
        let from = usize::try_from(-left).unwrap_or(0).min(lines.len());
        let to = (width as isize - left).clamp(from as isize, lines.len() as isize);
        from..to as usize
    });
    lines[..inside.start].fill(Line([0; LANES]));
    lines[inside.end..].fill(Line([0; LANES]));
    let first = row.map_or(0, |row| row * width).wrapping_add_signed(left);
    for column in inside.clone().step_by(LANES) {
        let count = LANES.min(inside.end - column);
        let mask = ((1u32 << count) - 1) as __mmask16;
        let mut words = [_mm512_setzero_si512(); LANES];
        for (words, plane) in words.iter_mut().zip(x.chunks_exact(window.plane())) {
            let from = &plane[first.wrapping_add(column)..][..count];
            // The hardware does not follow sixteen planes.
            _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(AHEAD).cast());
            // SAFETY: as many lanes as the slice has words.
            let read = unsafe { _mm512_maskz_loadu_epi32(mask, from.as_ptr().cast()) };
            let p = _mm512_set1_epi32(P as i32);
            let folded = _mm512_add_epi32(_mm512_and_si512(read, p), _mm512_srli_epi32::<31>(read));
            *words = once(folded);
        }
        for (line, word) in lines[column..][..count].iter_mut().zip(transpose(words)) {
            store(line, word);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply(points: &[Line], weights: &[Line], at: At, products: &mut [Line]) {
    let wide = products.len() > at.tiles;
    // Rows as equal as can be, since a few alone would wait for their loads.
    let rows = at.tiles.div_ceil(at.tiles.div_ceil(ROWS));
    for first in (0..at.tiles).step_by(rows) {
        let products = &mut products[first..];
        match (rows.min(at.tiles - first), wide) {
            (1, false) => rows_by_vectors::<1, 1>(points, weights, at, first, products),
            (2, false) => rows_by_vectors::<2, 1>(points, weights, at, first, products),
            (3, false) => rows_by_vectors::<3, 1>(points, weights, at, first, products),
            (4, false) => rows_by_vectors::<4, 1>(points, weights, at, first, products),
            (5, false) => rows_by_vectors::<5, 1>(points, weights, at, first, products),
            (_, false) => rows_by_vectors::<ROWS, 1>(points, weights, at, first, products),
            (1, true) => rows_by_vectors::<1, 2>(points, weights, at, first, products),
            (2, true) => rows_by_vectors::<2, 2>(points, weights, at, first, products),
            (3, true) => rows_by_vectors::<3, 2>(points, weights, at, first, products),
            (4, true) => rows_by_vectors::<4, 2>(points, weights, at, first, products),
            (5, true) => rows_by_vectors::<5, 2>(points, weights, at, first, products),
            (_, true) => rows_by_vectors::<ROWS, 2>(points, weights, at, first, products),
        }
    }
}

/// R tiles from `first` on by V vectors of output channels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn rows_by_vectors<const R: usize, const V: usize>(
    points: &[Line],
    weights: &[Line],
    at: At,
    first: usize,
    products: &mut [Line],
) {
    let mut sums = [[[_mm512_setzero_si512(); 2]; V]; R];
    let mut unfolded = 0;
    let sixteens = points.chunks_exact(POINTS * at.tiles);
    for (points, weights) in sixteens.zip(weights.chunks_exact(PAIRS * V)) {
        if unfolded == at.period {
            sums = sums.map(|sums| sums.map(|sums| fold(sums)));
            unfolded = 0;
        }
        unfolded += 1;
        let Some(rows) = points[at.point * at.tiles + first..].first_chunk::<R>() else {
            return;
        };
        let Some(pairs) = weights.as_chunks::<V>().0.first_chunk::<PAIRS>() else {
            return;
        };
        for (pair, weights) in pairs.iter().enumerate() {
            let weights = weights.each_ref().map(|weights| load(weights));
            for (sums, row) in sums.iter_mut().zip(rows) {
                let low = _mm512_set1_epi32(row.0[pair] as i32);
                let high = _mm512_set1_epi32(row.0[PAIRS + pair] as i32);
                for (sums, &weight) in sums.iter_mut().zip(&weights) {
                    sums[0] = _mm512_dpwssd_epi32(sums[0], low, weight);
                    sums[1] = _mm512_dpwssd_epi32(sums[1], high, weight);
                }
            }
        }
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (vector, sums) in sums.into_iter().enumerate() {
            store(&mut products[vector * at.tiles + row], recombine(sums));
        }
    }
}

/// The same value in sums that are small again: at most 2¹⁷ in magnitude, and in [0, 2¹⁵).
#[inline]
#[target_feature(enable = "avx512f")]
fn fold([low, high]: [__m512i; 2]) -> [__m512i; 2] {
    let high = _mm512_add_epi32(high, _mm512_srai_epi32::<16>(low));
    let low = _mm512_and_si512(low, _mm512_set1_epi32(0xffff));
    // 2¹⁶·2¹⁵ ≡ 1.
    [
        _mm512_add_epi32(low, _mm512_srai_epi32::<15>(high)),
        _mm512_and_si512(high, _mm512_set1_epi32(0x7fff)),
    ]
}

/// `low + high·2¹⁶` mod p in [0, p], for sums above −2³¹.
#[inline]
#[target_feature(enable = "avx512f")]
fn recombine([low, high]: [__m512i; 2]) -> __m512i {
    let p = _mm512_set1_epi32(P as i32);
    // A negative number is its low 31 bits less 2³¹ ≡ 1, and those bits are not all 0.
    let residue = |v| _mm512_add_epi32(_mm512_and_si512(v, p), _mm512_srai_epi32::<31>(v));
    add(residue(low), rotate::<16, 15>(residue(high)))
}

#[target_feature(enable = "avx512f")]
fn tiles_out(
    window: &Window,
    run: &Run,
    products: &[Line],
    [vectors, tiles]: [usize; 2],
    lines: &mut Vec<Line>,
    y: &mut [u32],
) {
    let columns = OUT * run.count;
    lines.resize(OUT * columns, Line([0; LANES]));
    for tile in 0..run.count {
        let mut half = [[_mm512_setzero_si512(); IN]; OUT];
        let products = &products[run.at + tile..];
        for column in 0..IN {
            let mut words = [_mm512_setzero_si512(); IN];
            for (row, word) in words.iter_mut().enumerate() {
                *word = load(&products[(row * IN + column) * vectors * tiles]);
            }
            for (half, word) in half.iter_mut().zip(outputs(words)) {
                half[column] = word;
            }
        }
        for (row, words) in half.into_iter().enumerate() {
            let lines = &mut lines[row * columns + OUT * tile..][..OUT];
            for ((line, word), scale) in lines.iter_mut().zip(outputs(words)).zip(SCALES[row]) {
                store(line, times(word, scale));
            }
        }
    }
    let [height, width] = window.output;
    let (top, left) = (OUT * run.row, OUT * run.first);
    let pixels = window.pixels();
    for (row, lines) in lines.chunks_exact(columns).take(height - top).enumerate() {
        let inside = columns.min(width - left);
        for (index, lines) in lines[..inside].chunks(LANES).enumerate() {
            let mut words = [_mm512_setzero_si512(); LANES];
            for (word, line) in words.iter_mut().zip(lines) {
                *word = load(line);
            }
            let mask = ((1u32 << lines.len()) - 1) as __mmask16;
            let first = (top + row) * width + left + index * LANES;
            for (word, plane) in transpose(words).into_iter().zip(y.chunks_exact_mut(pixels)) {
                let to = &mut plane[first..][..lines.len()];
                // SAFETY: as many lanes as the slice has words.
                unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), mask, word) };
            }
        }
    }
}

/// `v·scale` mod p, canonical, for v in [0, p] and a scale below p.
#[inline]
#[target_feature(enable = "avx512f")]
fn times(v: __m512i, scale: u32) -> __m512i {
    let (scale, p) = (_mm512_set1_epi64(scale.into()), _mm512_set1_epi64(P.into()));
    // Both parts of a product below p² are at most p, not both p.
    let fold = |v| _mm512_add_epi64(_mm512_and_si512(v, p), _mm512_srli_epi64::<31>(v));
    let even = fold(_mm512_mul_epu32(v, scale));
    let odd = fold(_mm512_mul_epu32(_mm512_srli_epi64::<32>(v), scale));
    once(_mm512_or_si512(even, _mm512_slli_epi64::<32>(odd)))
}

/// `a − b` mod p in [0, p], for a and b in [0, p].
#[inline]
#[target_feature(enable = "avx512f")]
fn sub(a: __m512i, b: __m512i) -> __m512i {
    let v = _mm512_sub_epi32(a, b);
    _mm512_min_epu32(v, _mm512_add_epi32(v, _mm512_set1_epi32(P as i32)))
}
