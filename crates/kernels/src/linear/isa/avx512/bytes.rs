//! Convolutions over bytes; see [`crate::linear::bytes`].

use std::arch::x86_64::*;

use super::lines::{AHEAD, load, store};
use super::{START, cut, once, recombine, start};
use crate::isa::Avx512;
use crate::linear::bytes::{Input, Layout, Limbs, MOVED, STEP};
use crate::linear::tiles::Line;
use crate::linear::window::Window;

const LANES: usize = 16;

impl Limbs<u32> for Avx512 {
    fn bytes_in(self, window: &Window, layout: &Layout, row: usize, x: &[u32], out: &mut [u8]) {
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { take_apart(window, layout, row, x, out) }
    }

    fn bytes_multiply(
        self,
        image: &[u8],
        layout: &Layout,
        offsets: &[usize],
        weights: &[Line],
        _moved: &[Line],
        lines: &mut [Line],
    ) {
        // SAFETY: the token as above.
        unsafe { multiply::<4, 3>(image, layout, offsets, weights, None, lines) }
    }
}

impl Limbs<i16> for Avx512 {
    fn bytes_in(self, window: &Window, layout: &Layout, row: usize, x: &[i16], out: &mut [u8]) {
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { take_apart(window, layout, row, x, out) }
    }

    fn bytes_multiply(
        self,
        image: &[u8],
        layout: &Layout,
        offsets: &[usize],
        weights: &[Line],
        moved: &[Line],
        lines: &mut [Line],
    ) {
        // SAFETY: the token as above.
        unsafe { multiply::<2, 6>(image, layout, offsets, weights, Some(moved), lines) }
    }
}

impl Avx512 {
    /// Takes a row of a product apart: two limbs of `limb` bytes each.
    pub(in crate::linear) fn token_in(self, limb: usize, x: &[i16], out: &mut [u8]) {
        #[target_feature(enable = "avx512f,avx512bw")]
        fn run(limb: usize, x: &[i16], out: &mut [u8]) {
            let (low, high) = out.split_at_mut(limb);
            for ((&x, low), high) in x.iter().zip(low).zip(high) {
                [*low, *high] = (x.cast_unsigned() ^ MOVED as u16).to_le_bytes();
            }
        }
        // SAFETY: `self` exists only where `detect` saw AVX-512.
        unsafe { run(limb, x, out) }
    }
}

/// Words that can be loaded.
trait Load: Input {
    /// The bytes of a zero, by limb.
    const ZERO: [u8; 2];

    /// At most sixteen words; those of 16 bits moved to be positive.
    ///
    /// # Safety
    /// The CPU has AVX-512 F and BW.
    unsafe fn load(words: &[Self]) -> __m512i;
}

impl Load for u32 {
    const ZERO: [u8; 2] = [0, 0];

    #[inline(always)]
    unsafe fn load(words: &[Self]) -> __m512i {
        // SAFETY: the instructions as stated; as many lanes as the slice has words.
        unsafe { _mm512_maskz_loadu_epi32(lanes(words.len()), words.as_ptr().cast()) }
    }
}

impl Load for i16 {
    const ZERO: [u8; 2] = [MOVED as u8, (MOVED >> 8) as u8];

    #[inline(always)]
    unsafe fn load(words: &[Self]) -> __m512i {
        // SAFETY: the instructions as stated; as many lanes as the slice has words.
        unsafe {
            let words = _mm256_maskz_loadu_epi16(lanes(words.len()), words.as_ptr());
            _mm512_add_epi32(
                _mm512_cvtepi16_epi32(words),
                _mm512_set1_epi32(MOVED as i32),
            )
        }
    }
}

/// The first `count` of sixteen.
#[inline(always)]
fn lanes(count: usize) -> __mmask16 {
    ((1u32 << count.min(LANES)) - 1) as __mmask16
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn take_apart<T: Load>(window: &Window, layout: &Layout, row: usize, x: &[T], out: &mut [u8]) {
    let Layout {
        channels,
        pixel,
        limb,
        columns,
        ..
    } = *layout;
    let zero = |limb: usize| if T::LIMBS == 2 { T::ZERO[limb] } else { 0 };
    let row = row.checked_add_signed(window.shift(0, 0));
    let left = window.shift(1, 0).unsigned_abs().min(columns);
    let inside = match row {
        Some(row) if row < window.input[0] => window.input[1].min(columns - left),
        _ => 0,
    };
    let first = row.unwrap_or(0) * window.input[1];
    for column in (0..inside).step_by(LANES) {
        let count = LANES.min(inside - column);
        let read = |channel: usize| {
            if channel >= channels {
                return _mm512_setzero_si512();
            }
            let words = &x[channel * window.plane() + first + column..][..count];
            // The hardware does not follow many planes.
            _mm_prefetch::<_MM_HINT_T0>(words.as_ptr().wrapping_add(AHEAD).cast());
            // SAFETY: the features are enabled here.
            unsafe { T::load(words) }
        };
        let at = (left + column) * pixel;
        for channel in (0..channels).step_by(LANES) {
            let mut quads = [[_mm512_setzero_si512(); 4]; 4];
            for (index, quad) in quads.iter_mut().enumerate() {
                let channel = channel + index * STEP;
                if channel < channels {
                    *quad = cut([
                        read(channel),
                        read(channel + 1),
                        read(channel + 2),
                        read(channel + 3),
                    ]);
                }
            }
            for (index, out) in out.chunks_exact_mut(limb).enumerate() {
                let quads = [
                    quads[0][index],
                    quads[1][index],
                    quads[2][index],
                    quads[3][index],
                ];
                write(
                    quads,
                    count,
                    pixel,
                    channels - channel,
                    &mut out[at + channel..],
                );
            }
        }
    }
    for (index, out) in out.chunks_exact_mut(limb).enumerate() {
        let inner = left * pixel..(left + inside) * pixel;
        out[..inner.start].fill(zero(index));
        out[inner.end..].fill(zero(index));
    }
}

/// One limb of `count` pixels of up to sixteen channels, four channels to a vector, `pixel` bytes apart.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn write(quads: [__m512i; 4], count: usize, pixel: usize, channels: usize, out: &mut [u8]) {
    if pixel == 3 {
        let dense = _mm_set_epi8(-1, -1, -1, -1, 14, 13, 12, 10, 9, 8, 6, 5, 4, 2, 1, 0);
        let dense = _mm512_shuffle_epi8(quads[0], _mm512_broadcast_i32x4(dense));
        let quarters = quarters(dense).into_iter().take(count.div_ceil(4));
        for (quarter, out) in quarters.zip(out.as_chunks_mut::<12>().0) {
            out.copy_from_slice(&quarter[..12]);
        }
        return;
    }
    let [a, b, c, d] = quads;
    if channels < LANES {
        for (index, quad) in quads.into_iter().enumerate().take(channels.div_ceil(STEP)) {
            let quad: [[u8; 4]; LANES] = bytes(quad);
            for (quad, out) in quad.iter().zip(out.chunks_mut(pixel)).take(count) {
                out[index * STEP..][..STEP].copy_from_slice(quad);
            }
        }
        return;
    }
    let (ab, cd) = (
        [_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b)],
        [_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d)],
    );
    let every = [
        quarters(_mm512_unpacklo_epi64(ab[0], cd[0])),
        quarters(_mm512_unpackhi_epi64(ab[0], cd[0])),
        quarters(_mm512_unpacklo_epi64(ab[1], cd[1])),
        quarters(_mm512_unpackhi_epi64(ab[1], cd[1])),
    ];
    for (index, out) in out.chunks_mut(pixel).take(count).enumerate() {
        out[..LANES].copy_from_slice(&every[index % 4][index / 4]);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(v: __m512i) -> [[u8; LANES]; 4] {
    bytes(v)
}

/// The bytes of a vector.
#[inline(always)]
fn bytes<T: Copy>(v: __m512i) -> T {
    const { assert!(size_of::<T>() == size_of::<__m512i>()) };
    // SAFETY: only used for arrays of bytes, of the same size.
    unsafe { std::mem::transmute_copy(&v) }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn multiply<const L: usize, const R: usize>(
    image: &[u8],
    layout: &Layout,
    offsets: &[usize],
    weights: &[Line],
    moved: Option<&[Line]>,
    lines: &mut [Line],
) {
    let wide = lines.len() > offsets.len();
    let count = offsets.len();
    for (index, offsets) in offsets.chunks(R).enumerate() {
        // A shorter run repeats its last pixel.
        let at = std::array::from_fn(|row| offsets[row.min(offsets.len() - 1)]);
        let lines = &mut lines[index * R..];
        if wide {
            pixels::<L, R, 2>(
                image,
                layout,
                at,
                weights,
                moved,
                [count, offsets.len()],
                lines,
            );
        } else {
            pixels::<L, R, 1>(
                image,
                layout,
                at,
                weights,
                moved,
                [count, offsets.len()],
                lines,
            );
        }
    }
}

/// R pixels by V vectors of output channels.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
fn pixels<const L: usize, const R: usize, const V: usize>(
    image: &[u8],
    layout: &Layout,
    at: [usize; R],
    weights: &[Line],
    moved: Option<&[Line]>,
    [count, used]: [usize; 2],
    lines: &mut [Line],
) {
    let Layout {
        limb,
        kernel,
        apart,
        steps,
        ..
    } = *layout;
    let down = apart * L * limb;
    let last = (kernel - 1) * down + (L - 1) * limb + steps * STEP;
    assert!(
        at.iter().all(|at| at + last <= image.len()),
        "the taps lie in the image"
    );
    let short = kernel * steps * STEP <= super::SHORT && L == 4;
    let mut sums = [[start(short); V]; R];
    if L == 2 {
        sums = [[[START[0], START[1], START[2], START[3]].map(|start| _mm512_set1_epi32(start)); V];
            R];
    }
    let mut weights = weights.as_chunks::<V>().0.iter();
    for row in 0..kernel {
        let bases = at.map(|at| image[at + row * down..].as_ptr());
        for (step, weights) in weights.by_ref().take(steps).enumerate() {
            let weights = weights.each_ref().map(|weights| load(weights));
            for (sums, base) in sums.iter_mut().zip(bases) {
                for j in 0..L {
                    // SAFETY: within the image, as asserted.
                    let word = unsafe {
                        base.add(j * limb + step * STEP)
                            .cast::<i32>()
                            .read_unaligned()
                    };
                    let word = _mm512_set1_epi32(word);
                    for (sums, &weight) in sums.iter_mut().zip(&weights) {
                        sums[j] = _mm512_dpbusd_epi32(sums[j], word, weight);
                    }
                }
            }
        }
    }
    for (row, sums) in sums.into_iter().take(used).enumerate() {
        for (vector, sums) in sums.into_iter().enumerate() {
            let mut v = recombine(sums, short);
            if let Some(moved) = moved {
                v = once(_mm512_add_epi32(v, load(&moved[vector])));
            }
            store(&mut lines[vector * count + row], v);
        }
    }
}
