//! Reading the words of sixteen output pixels, wherever they lie in their planes.
//!
//! Neighbouring pixels mostly read neighbouring words, so a vector is one masked load or a few; only odd strides
//! and very narrow images gather.

use std::arch::x86_64::*;

use super::LANES;
use crate::linear::window::Window;

/// Runs of lanes that read consecutive words (or every second one), at most this many; else words are gathered.
const RUNS: usize = 4;

// How a panel is read.
pub(super) const ONE_RUN: u8 = 0;
pub(super) const RUNS_OF_ONE: u8 = 1;
pub(super) const RUNS_OF_TWO: u8 = 2;
pub(super) const GATHER: u8 = 3;

/// Where sixteen output pixels read.
pub(in crate::linear) struct Panel {
    pub(super) mode: u8,
    /// Words of a plane; all that is read lies below.
    pub(super) plane: usize,
    /// What every lane reads at the tap of offset 0, modulo 2³².
    pub(super) base: __m512i,
    /// Runs of each tap.
    pub(super) count: usize,
    /// `[tap][run]`.
    pub(super) taps: Vec<Run>,
}

/// Lanes that read at a fixed distance from one another.
#[derive(Clone, Copy, Default)]
pub(in crate::linear) struct Run {
    /// The index that lane 0 would read; the tap's offset where words are gathered.
    pub(super) at: isize,
    /// Words from there on that are read, and sixteen words later; lanes where words are gathered.
    words: [__mmask16; 2],
}

impl Default for Panel {
    fn default() -> Self {
        // SAFETY: any 64 bytes are a vector.
        let base = unsafe { std::mem::transmute::<[i32; LANES], __m512i>([0; LANES]) };
        Self {
            mode: GATHER,
            plane: 0,
            base,
            count: 1,
            taps: Vec::new(),
        }
    }
}

/// Fills `panel` for output pixels `first..first + count`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn find(window: &Window, first: usize, count: usize, panel: &mut Panel) {
    let Window {
        input,
        output,
        kernel,
        stride,
        ..
    } = *window;
    let [oy, ox] = window.coordinates(first);
    let lanes = ((1u32 << count) - 1) as __mmask16;
    // A product of coordinates that matters is below 2³¹; the others belong to lanes that are masked off.
    let each = |value: usize| _mm512_set1_epi32(value as i32);
    let iota = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    let (mut y, mut x) = (each(oy), _mm512_add_epi32(each(ox), iota));
    loop {
        let past = _mm512_cmpge_epu32_mask(x, each(output[1]));
        if past == 0 {
            break;
        }
        x = _mm512_mask_sub_epi32(x, past, x, each(output[1]));
        y = _mm512_mask_add_epi32(y, past, y, each(1));
    }
    let mut runs = [(0, 0); RUNS];
    panel.mode = match stride[1] {
        1 => RUNS_OF_ONE,
        2 => RUNS_OF_TWO,
        _ => GATHER,
    };
    // A row of output continues the one before where a row of input does.
    let joined = stride[0] * input[1] == stride[1] * output[1];
    let starts = if joined {
        1
    } else {
        (1 | _mm512_cmpeq_epi32_mask(x, each(0))) & lanes
    };
    panel.count = starts.count_ones() as usize;
    if panel.mode == GATHER || panel.count > RUNS {
        (panel.mode, panel.count) = (GATHER, 1);
        runs[0] = (lanes, 0);
    } else {
        let mut rest = starts;
        for (row, run) in runs.iter_mut().enumerate().take(panel.count) {
            let lane = rest.trailing_zeros() as usize;
            rest &= rest - 1;
            let next = rest.trailing_zeros().min(LANES as u32);
            let pixel = if row == 0 { [oy, ox] } else { [oy + row, 0] };
            let until = ((1u32 << next) - 1) as __mmask16;
            *run = (
                lanes & until & !0 << lane,
                window.base(pixel) - (lane * stride[1]) as isize,
            );
        }
        if panel.mode == RUNS_OF_ONE && panel.count == 1 {
            panel.mode = ONE_RUN;
        }
    }
    let (y, x) = (
        _mm512_mullo_epi32(y, each(stride[0])),
        _mm512_mullo_epi32(x, each(stride[1])),
    );
    panel.plane = window.plane();
    panel.base = _mm512_add_epi32(_mm512_mullo_epi32(y, each(input[1])), x);
    panel.taps.clear();
    if panel.mode != GATHER && panel.count == 1 && interior(window, [oy, ox], count) {
        let words = match panel.mode {
            RUNS_OF_TWO => [every_second(lanes), every_second(lanes >> 8)],
            _ => [lanes, 0],
        };
        for ky in 0..kernel[0] {
            let row = runs[0].1 + window.shift(0, ky) * input[1] as isize;
            let at = |kx| row + window.shift(1, kx);
            panel
                .taps
                .extend((0..kernel[1]).map(|kx| Run { at: at(kx), words }));
        }
        return;
    }
    for ky in 0..kernel[0] {
        let down = window.shift(0, ky);
        let row = _mm512_add_epi32(y, _mm512_set1_epi32(down as i32));
        let rows = _mm512_mask_cmplt_epu32_mask(lanes, row, each(input[0]));
        for kx in 0..kernel[1] {
            let right = window.shift(1, kx);
            let column = _mm512_add_epi32(x, _mm512_set1_epi32(right as i32));
            let inside = _mm512_mask_cmplt_epu32_mask(rows, column, each(input[1]));
            let offset = down * input[1] as isize + right;
            for &(lanes, at) in &runs[..panel.count] {
                let lanes = lanes & inside;
                let words = match panel.mode {
                    RUNS_OF_TWO => [every_second(lanes), every_second(lanes >> 8)],
                    _ => [lanes, 0],
                };
                panel.taps.push(Run {
                    at: at + offset,
                    words,
                });
            }
        }
    }
}

/// Whether `count` pixels from `pixel` on lie in one row and read no padding.
fn interior(window: &Window, pixel: [usize; 2], count: usize) -> bool {
    let last = [pixel[0], pixel[1] + count - 1];
    last[1] < window.output[1]
        && (0..2).all(|axis| {
            let first = (pixel[axis] * window.stride[axis]) as isize + window.shift(axis, 0);
            let last = (last[axis] * window.stride[axis]) as isize
                + window.shift(axis, window.kernel[axis] - 1);
            first >= 0 && last < window.input[axis] as isize
        })
}

/// The words of `plane` at one tap of a panel, 0 in lanes that lie outside.
///
/// # Safety
/// `runs` are those of one tap of a panel of mode `MODE`, `base` is that panel's, and `plane` points at as many
/// words as its planes have.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn read<const MODE: u8>(
    runs: &[Run],
    base: __m512i,
    plane: *const i32,
) -> __m512i {
    let mut read = _mm512_setzero_si512();
    // SAFETY: masked-off words are not accessed; the others lie within the plane (see `find`). Pointers are
    // formed with wrapping arithmetic, since that of lane 0 may lie outside.
    unsafe {
        match MODE {
            ONE_RUN => {
                let Run { at, words } = runs[0];
                read = _mm512_maskz_loadu_epi32(words[0], plane.wrapping_offset(at));
            }
            RUNS_OF_ONE => {
                for &Run { at, words } in runs {
                    read = _mm512_mask_loadu_epi32(read, words[0], plane.wrapping_offset(at));
                }
            }
            RUNS_OF_TWO => {
                let even =
                    _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
                for &Run { at, words } in runs {
                    let at = plane.wrapping_offset(at);
                    let low = _mm512_maskz_loadu_epi32(words[0], at);
                    let high = _mm512_maskz_loadu_epi32(words[1], at.wrapping_add(LANES));
                    read = _mm512_or_si512(read, _mm512_permutex2var_epi32(low, even, high));
                }
            }
            _ => {
                let Run { at, words } = runs[0];
                let index = _mm512_add_epi32(base, _mm512_set1_epi32(at as i32));
                read = _mm512_mask_i32gather_epi32::<4>(read, words[0], index, plane);
            }
        }
    }
    read
}

/// Bit i of the low eight becomes bit 2i.
#[inline]
pub(super) fn every_second(lanes: __mmask16) -> __mmask16 {
    let bits = lanes & 0xff;
    let bits = (bits | bits << 4) & 0x0f0f;
    let bits = (bits | bits << 2) & 0x3333;
    (bits | bits << 1) & 0x5555
}
