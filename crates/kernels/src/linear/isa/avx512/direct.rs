//! Convolutions without packing: halves of words, `vpdpwssd` (i16 × i16 → i32) with one weight a time.
//!
//! Halves are moved to [−2¹⁵, 2¹⁵) for the signed product; the sums start from what that takes away.

use std::arch::x86_64::*;

use super::reads::{GATHER, ONE_RUN, Panel, RUNS_OF_ONE, RUNS_OF_TWO, every_second, find, read};
use super::{HALVES, LANES, add, once, rotate, write};
use crate::linear::direct::{Direct, Plane};
use crate::linear::window::Window;

/// Output channels from `first` on; see [`Direct::work`].
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(super) fn direct(
    layer: &Direct,
    x: &[u32],
    first: usize,
    y: &mut [u32],
    panels: &mut Vec<Panel>,
) {
    let window = &layer.window;
    if layer.in_group == 1 && window.dilation == [1, 1] {
        match (window.kernel, window.stride) {
            ([3, 3], [1, 1]) => return by_strips::<3, 1, 4>(layer, x, first, y),
            ([3, 3], [2, 2]) => return by_strips::<3, 2, 4>(layer, x, first, y),
            ([5, 5], [1, 1]) => return by_strips::<5, 1, 2>(layer, x, first, y),
            ([5, 5], [2, 2]) => return by_strips::<5, 2, 2>(layer, x, first, y),
            _ => {}
        }
    }
    by_panels(layer, x, first, y, panels);
}

/// Depthwise K×K with stride S: H output rows by sixteen columns at a time, so that each input word is read once
/// per horizontal tap and serves several rows.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn by_strips<const K: usize, const S: usize, const H: usize>(
    layer: &Direct,
    x: &[u32],
    first: usize,
    y: &mut [u32],
) {
    let window = &layer.window;
    let [height, width] = window.output;
    let columns: Vec<_> = (0..width)
        .step_by(LANES)
        .map(|column| Columns::<K>::new(window, column))
        .collect();
    for (out, y) in y.chunks_exact_mut(height * width).enumerate() {
        let x = layer.inputs(x, first + out);
        for (index, plane) in layer.planes.iter().enumerate() {
            for (strip, y) in y.chunks_mut(H * width).enumerate() {
                // The first input row of the strip; rows above the image have wrapped to huge numbers.
                let row = (strip * H * S).wrapping_add_signed(window.shift(0, 0));
                for (column, columns) in columns.iter().enumerate() {
                    let sums = strip_sums::<K, S, H>(x, window, columns, row, plane, first + out);
                    for (y, [low, high]) in y.chunks_exact_mut(width).zip(sums) {
                        let from = column * LANES;
                        let y = &mut y[from..width.min(from + LANES)];
                        let v = once(add(low, rotate::<16, 15>(high)));
                        write(v, plane.place, index == 0, y);
                    }
                }
            }
        }
    }
}

/// The two sums of H rows of sixteen outputs, the first input row being `row`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn strip_sums<const K: usize, const S: usize, const H: usize>(
    x: &[u32],
    window: &Window,
    columns: &Columns<K>,
    row: usize,
    plane: &Plane,
    out: usize,
) -> [[__m512i; 2]; H] {
    let (weights, moved) = plane.weights(out, K * K);
    let (weights, _) = weights.as_chunks::<K>();
    let weights = weights.first_chunk::<K>().expect("K·K weights");
    let flip = _mm512_set1_epi32(0x8000_8000_u32 as i32);
    let start = HALVES.map(|half| _mm512_set1_epi32(half + moved));
    let mut sums = [start; H];
    let [height, width] = window.input;
    for step in 0..(H - 1) * S + K {
        let row = row.wrapping_add(step);
        let line = if row < height {
            &x[row * width..][..width]
        } else {
            &[]
        };
        let words = columns
            .read::<S>(line)
            .map(|words| _mm512_xor_si512(words, flip));
        for (h, [low, high]) in sums.iter_mut().enumerate() {
            // Past the last tap or, wrapped, before the first.
            let Some(weights) = weights.get(step.wrapping_sub(h * S)) else {
                continue;
            };
            for (&words, weight) in words.iter().zip(weights) {
                *low = _mm512_dpwssd_epi32(*low, words, _mm512_set1_epi32(weight[0]));
                *high = _mm512_dpwssd_epi32(*high, words, _mm512_set1_epi32(weight[1]));
            }
        }
    }
    sums
}

/// Where sixteen output columns read in a row, for each of K horizontal taps.
struct Columns<const K: usize> {
    /// Words of a row; all that is read lies below.
    width: usize,
    /// The index that lane 0 reads, and which words from there on (and sixteen later) are read.
    taps: [(isize, [__mmask16; 2]); K],
}

impl<const K: usize> Columns<K> {
    fn new(window: &Window, first: usize) -> Self {
        let width = window.input[1];
        let count = LANES.min(window.output[1] - first);
        let stride = window.stride[1] as isize;
        let mut taps = [(0, [0; 2]); K];
        for (tap, (at, words)) in taps.iter_mut().enumerate() {
            *at = first as isize * stride + window.shift(1, tap);
            let reads =
                |lane: &usize| (0..width as isize).contains(&(*at + *lane as isize * stride));
            let lanes = (0..count)
                .filter(reads)
                .fold(0, |lanes, lane| lanes | 1 << lane);
            *words = if stride == 2 {
                [every_second(lanes), every_second(lanes >> 8)]
            } else {
                [lanes, 0]
            };
        }
        Self { width, taps }
    }

    /// The words of `line` at each tap; 0 outside of it, and everywhere if it is empty.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn read<const S: usize>(&self, line: &[u32]) -> [__m512i; K] {
        let mut read = [_mm512_setzero_si512(); K];
        if line.len() < self.width {
            return read;
        }
        for (read, &(at, words)) in read.iter_mut().zip(&self.taps) {
            let at = line.as_ptr().cast::<i32>().wrapping_offset(at);
            // SAFETY: words that are masked off are not accessed, and the others lie within `width` words.
            unsafe {
                *read = _mm512_maskz_loadu_epi32(words[0], at);
                if S == 2 {
                    let even =
                        _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
                    let high = _mm512_maskz_loadu_epi32(words[1], at.wrapping_add(LANES));
                    *read = _mm512_permutex2var_epi32(*read, even, high);
                }
            }
        }
        read
    }
}

/// Any other kernel: sixteen pixels at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn by_panels(layer: &Direct, x: &[u32], first: usize, y: &mut [u32], panels: &mut Vec<Panel>) {
    let pixels = layer.window.pixels();
    for start in (0..pixels).step_by(AT_ONCE * LANES) {
        let end = pixels.min(start + AT_ONCE * LANES);
        panels.resize_with(AT_ONCE, Panel::default);
        for (panel, pixel) in panels.iter_mut().zip((start..end).step_by(LANES)) {
            find(&layer.window, pixel, LANES.min(end - pixel), panel);
        }
        for (out, y) in y.chunks_exact_mut(pixels).enumerate() {
            let x = layer.inputs(x, first + out);
            for (panel, y) in panels.iter().zip(y[start..end].chunks_mut(LANES)) {
                match panel.mode {
                    ONE_RUN => direct_panel::<ONE_RUN>(layer, panel, x, first + out, y),
                    RUNS_OF_ONE => direct_panel::<RUNS_OF_ONE>(layer, panel, x, first + out, y),
                    RUNS_OF_TWO => direct_panel::<RUNS_OF_TWO>(layer, panel, x, first + out, y),
                    _ => direct_panel::<GATHER>(layer, panel, x, first + out, y),
                }
            }
        }
    }
}

/// One panel of output channel `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn direct_panel<const MODE: u8>(
    layer: &Direct,
    panel: &Panel,
    x: &[u32],
    out: usize,
    y: &mut [u32],
) {
    let flip = _mm512_set1_epi32(0x8000_8000_u32 as i32);
    for (index, plane) in layer.planes.iter().enumerate() {
        let (weights, moved) = plane.weights(out, layer.terms());
        let mut low = _mm512_set1_epi32(HALVES[0] + moved);
        let mut high = _mm512_set1_epi32(HALVES[1] + moved);
        for channel in 0..layer.in_group {
            let x = &x[channel * panel.plane..][..panel.plane];
            let weights = &weights[channel * layer.window.taps()..][..layer.window.taps()];
            let mut taps = panel.taps.as_slice();
            for weight in weights {
                let runs;
                (runs, taps) = taps.split_at(panel.count);
                // SAFETY: `x` has as many words as the panel's planes.
                let words = unsafe { read::<MODE>(runs, panel.base, x.as_ptr().cast()) };
                let words = _mm512_xor_si512(words, flip);
                low = _mm512_dpwssd_epi32(low, words, _mm512_set1_epi32(weight[0]));
                high = _mm512_dpwssd_epi32(high, words, _mm512_set1_epi32(weight[1]));
            }
        }
        let v = once(add(low, rotate::<16, 15>(high)));
        write(v, plane.place, index == 0, y);
    }
}

/// Panels found before the channels pass by them: few enough for the first-level cache, enough for a channel's
/// rows to be read in order.
const AT_ONCE: usize = 64;
