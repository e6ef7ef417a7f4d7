//! The transposed map on a rank-one vector: what the check of a layer multiplies the input with.
//!
//! `a = Lᵀ v` for `v = outer ⊗ inner` over the output matrix of [`Shape::output_rows_cols`], so that
//! ⟨v, L x⟩ = ⟨a, x⟩ in F_p. The output channels are contracted first and the result is spread over the input
//! pixels once per tap, which costs |w| + taps·|x| instead of a full transposed convolution.
//!
//! v and a are secrets of the checking side: neither type prints its contents, intermediate vectors are erased,
//! and erasing what is returned is the caller's part.

use std::fmt;

use zeroize::Zeroizing;

use super::shape::{Conv, MatMul, Shape, ShapeError, Valid};
use super::weights::Weights;
use crate::field::{Fp, P};
use crate::isa::Isa;

/// `a = Lᵀ v` over the input matrix of [`Shape::input_rows_cols`]; canonical words.
#[derive(Clone, PartialEq, Eq)]
pub enum Adjoint {
    /// Every element, row by row.
    Dense(Vec<u32>),
    /// `a[r, c] = outer[r]·inner[c]`.
    RankOne {
        /// One word a row of the input matrix.
        outer: Vec<u32>,
        /// One word a column.
        inner: Vec<u32>,
    },
}

impl fmt::Debug for Adjoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dense(_) => "Dense(..)",
            Self::RankOne { .. } => "RankOne(..)",
        })
    }
}

/// `Lᵀ (outer ⊗ inner)` mod p, on the fastest instruction set.
///
/// Shapes: `outer` and `inner` have the rows and columns of [`Shape::output_rows_cols`].
/// Domain: any words. Exactness: exact in F_p, canonical. A 1×1 convolution without groups, of any stride, and a
/// product without groups stay rank one; anything else is dense.
/// Errors: `weights` has another length than `shape`.
/// Panics: `outer` or `inner` has the wrong length.
/// Source: Freivalds (1977), with the preprocessing of Slalom (ICLR 2019, §3.2).
pub fn adjoint(
    shape: &Shape,
    weights: &Weights,
    outer: &[u32],
    inner: &[u32],
) -> Result<Adjoint, ShapeError> {
    adjoint_with(Isa::best(), shape, weights, outer, inner)
}

/// [`adjoint`] on a given instruction set; the result is the same.
pub fn adjoint_with(
    isa: Isa,
    shape: &Shape,
    weights: &Weights,
    outer: &[u32],
    inner: &[u32],
) -> Result<Adjoint, ShapeError> {
    shape.fits(weights)?;
    assert_eq!(
        (outer.len(), inner.len()),
        shape.output_rows_cols(),
        "v has the output's shape"
    );
    let (outer, inner) = (canonical(outer), canonical(inner));
    Ok(match shape {
        Shape::Conv(conv) => {
            let taps = shape.taps();
            let out_group = conv.out_channels / conv.groups;
            // z[group][channel in group][tap], which is z[channel][tap].
            let mut z = Zeroizing::new(vec![0; conv.groups * taps]);
            for (plane, place) in weights.places() {
                let per_group = plane
                    .chunks_exact(out_group * taps)
                    .zip(outer.chunks_exact(out_group));
                for ((plane, outer), z) in per_group.zip(z.chunks_exact_mut(taps)) {
                    contract_columns(isa, plane, outer, place, z);
                }
            }
            transpose_conv(isa, conv, z, inner)
        }
        Shape::MatMul(matmul) => {
            let mut z = Zeroizing::new(vec![0; matmul.groups * matmul.inner]);
            for (plane, place) in weights.places() {
                contract_rows(isa, plane, matmul.columns, &inner, place, &mut z);
            }
            transpose_matmul(isa, matmul, z, outer)
        }
    })
}

/// [`adjoint`] for full-width weights, which must be canonical and have the shape's length.
pub(super) fn transpose_share(
    isa: Isa,
    shape: &Shape,
    weights: &[u32],
    outer: &[u32],
    inner: &[u32],
) -> Adjoint {
    assert_eq!(
        (outer.len(), inner.len()),
        shape.output_rows_cols(),
        "v has the output's shape"
    );
    let (outer, inner) = (canonical(outer), canonical(inner));
    match shape {
        Shape::Conv(conv) => {
            let taps = shape.taps();
            let out_group = conv.out_channels / conv.groups;
            let mut z = Zeroizing::new(vec![0; conv.groups * taps]);
            let per_group = weights
                .chunks_exact(out_group * taps)
                .zip(outer.chunks_exact(out_group));
            for ((weights, outer), z) in per_group.zip(z.chunks_exact_mut(taps)) {
                combine(isa, outer, weights, z);
            }
            transpose_conv(isa, conv, z, inner)
        }
        Shape::MatMul(matmul) => {
            let mut z = Zeroizing::new(vec![0; matmul.groups * matmul.inner]);
            contract_words(isa, weights, &inner, &mut z);
            transpose_matmul(isa, matmul, z, outer)
        }
    }
}

/// Spreads `z[channel][tap]`, the weights contracted with the outputs, over the input pixels.
fn transpose_conv(
    isa: Isa,
    conv: &Valid<Conv>,
    z: Zeroizing<Vec<u32>>,
    inner: Zeroizing<Vec<u32>>,
) -> Adjoint {
    let Conv {
        groups,
        in_channels,
        kernel,
        ..
    } = **conv;
    let pixels = conv.input[0] * conv.input[1];
    let spread = Spread::new(conv);
    if kernel == [1, 1] && groups == 1 {
        // Every channel is read at the same pixels; those that nobody reads get 0.
        let mut read = vec![0; pixels];
        spread.fill(0, 0, &inner, &mut read);
        return Adjoint::RankOne {
            outer: take(z),
            inner: read,
        };
    }
    let spatial = kernel[0] * kernel[1];
    let mut dense = vec![0; in_channels * pixels];
    // Fewer pixels at a time under a large kernel.
    let block = (MOST_TAPS / spatial).clamp(1, BLOCK).min(pixels);
    let mut taps_of = Zeroizing::new(vec![0; spatial * block]);
    for first in (0..pixels).step_by(block) {
        let width = block.min(pixels - first);
        for (tap, row) in taps_of.chunks_exact_mut(width).take(spatial).enumerate() {
            spread.fill(tap, first, &inner, row);
        }
        let rows = dense.chunks_exact_mut(pixels).zip(z.chunks_exact(spatial));
        for (row, z) in rows {
            combine(
                isa,
                z,
                &taps_of[..spatial * width],
                &mut row[first..first + width],
            );
        }
    }
    Adjoint::Dense(dense)
}

/// The product of `outer` and `z[group][inner]`, the weights contracted with the columns.
fn transpose_matmul(
    isa: Isa,
    matmul: &MatMul,
    z: Zeroizing<Vec<u32>>,
    outer: Zeroizing<Vec<u32>>,
) -> Adjoint {
    let MatMul {
        groups,
        rows,
        inner: depth,
        ..
    } = *matmul;
    if groups == 1 {
        return Adjoint::RankOne {
            outer: take(outer),
            inner: take(z),
        };
    }
    let mut dense = vec![0; groups * rows * depth];
    for (row, (dense, &outer)) in dense.chunks_exact_mut(depth).zip(outer.iter()).enumerate() {
        combine(isa, &[outer], &z[row / rows * depth..][..depth], dense);
    }
    Adjoint::Dense(dense)
}

/// Which output pixel reads an input pixel through a tap: computed, as a table would have an entry for every tap and
/// coordinate.
struct Spread<'a> {
    conv: &'a Conv,
    /// Width of the output.
    width: usize,
    /// Height of the output.
    height: usize,
}

impl<'a> Spread<'a> {
    fn new(conv: &'a Valid<Conv>) -> Self {
        let [height, width] = conv.output();
        Self {
            conv,
            width,
            height,
        }
    }

    /// `row[i] = inner[output pixel that reads input pixel first + i through tap]`, 0 where none does.
    fn fill(&self, tap: usize, first: usize, inner: &[u32], row: &mut [u32]) {
        let in_width = self.conv.input[1];
        let (down, across) = (tap / self.conv.kernel[1], tap % self.conv.kernel[1]);
        let (mut iy, mut ix) = (first / in_width, first % in_width);
        let mut rest = row;
        while !rest.is_empty() {
            let run = rest.len().min(in_width - ix);
            let (line, tail) = rest.split_at_mut(run);
            line.fill(0);
            if let Some(oy) = self.reader(iy, down) {
                self.fill_line(across, ix, &inner[oy * self.width..][..self.width], line);
            }
            (iy, ix, rest) = (iy + 1, 0, tail);
        }
    }

    /// The output row that reads input row `iy` through tap row `down`.
    fn reader(&self, iy: usize, down: usize) -> Option<usize> {
        let ahead = (iy + self.conv.pad_begin[0]).checked_sub(down * self.conv.dilation[0])?;
        let stride = self.conv.stride[0];
        (ahead.is_multiple_of(stride) && ahead / stride < self.height).then(|| ahead / stride)
    }

    /// A part of an input row, from column `ix` on, from the output row that reads it.
    fn fill_line(&self, across: usize, ix: usize, source: &[u32], line: &mut [u32]) {
        let (stride, reach) = (self.conv.stride[1], across * self.conv.dilation[1]);
        // Output column o reads input column o·stride + reach − padding.
        let wanted = ix + self.conv.pad_begin[1];
        let first = wanted.saturating_sub(reach).div_ceil(stride);
        let start = first * stride + reach - wanted;
        let places = line.iter_mut().skip(start).step_by(stride);
        for (place, word) in places.zip(source.get(first..).unwrap_or_default()) {
            *place = *word;
        }
    }
}

/// `z[j] += 2^place · Σ_i s[i]·w[i][j]`.
fn contract_columns(isa: Isa, w: &[i8], s: &[u32], place: u32, z: &mut [u32]) {
    match isa {
        Isa::Scalar | Isa::Portable => contract_columns_body(w, s, place, z),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => isa.contract_columns(w, s, place, z),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => isa.contract_columns(w, s, place, z),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2(_) | Isa::Avx512(_) => contract_columns_body(w, s, place, z),
    }
}

/// `z[i] += 2^place · Σ_j w[i][j]·s[j]`, rows of `columns`.
fn contract_rows(isa: Isa, w: &[i8], columns: usize, s: &[u32], place: u32, z: &mut [u32]) {
    match isa {
        Isa::Scalar | Isa::Portable => contract_rows_body(w, columns, s, place, z),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => isa.contract_rows(w, columns, s, place, z),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => isa.contract_rows(w, columns, s, place, z),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2(_) | Isa::Avx512(_) => contract_rows_body(w, columns, s, place, z),
    }
}

/// `z[i] = Σ_j w[i][j]·s[j]` for canonical words, rows of `s.len()`.
fn contract_words(isa: Isa, w: &[u32], s: &[u32], z: &mut [u32]) {
    match isa {
        Isa::Scalar | Isa::Portable => contract_words_body(w, s, z),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => isa.contract_words(w, s, z),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => isa.contract_words(w, s, z),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2(_) | Isa::Avx512(_) => contract_words_body(w, s, z),
    }
}

/// `out[i] = Σ_t z[t]·rows[t][i]`, rows of `out.len()`.
fn combine(isa: Isa, z: &[u32], rows: &[u32], out: &mut [u32]) {
    match isa {
        Isa::Scalar | Isa::Portable => combine_body(z, rows, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2(isa) => isa.combine(z, rows, out),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512(isa) => isa.combine(z, rows, out),
        #[cfg(not(target_arch = "x86_64"))]
        Isa::Avx2(_) | Isa::Avx512(_) => combine_body(z, rows, out),
    }
}

// The bodies are inlined into one function per instruction set, and vectorised there.

#[inline(always)]
pub(super) fn contract_columns_body(w: &[i8], s: &[u32], place: u32, z: &mut [u32]) {
    let taps = z.len();
    for (block, z) in z.chunks_mut(BLOCK).enumerate() {
        let first = block * BLOCK;
        for (rows, s) in w.chunks(FOLD * taps).zip(s.chunks(FOLD)) {
            let mut low = [0i32; BLOCK];
            let mut high = [0i32; BLOCK];
            for (row, &s) in rows.chunks_exact(taps).zip(s) {
                let halves = split(s);
                let row = &row[first..first + z.len()];
                for ((low, high), &w) in low.iter_mut().zip(&mut high).zip(row) {
                    *low += halves.0 * i32::from(w);
                    *high += halves.1 * i32::from(w);
                }
            }
            for ((z, low), high) in z.iter_mut().zip(low).zip(high) {
                *z = add_halves(*z, low, high, place);
            }
        }
    }
}

#[inline(always)]
pub(super) fn contract_rows_body(w: &[i8], columns: usize, s: &[u32], place: u32, z: &mut [u32]) {
    let s: Zeroizing<Vec<(i32, i32)>> = Zeroizing::new(s.iter().map(|&s| split(s)).collect());
    let low: Zeroizing<Vec<i32>> = Zeroizing::new(s.iter().map(|s| s.0).collect());
    let high: Zeroizing<Vec<i32>> = Zeroizing::new(s.iter().map(|s| s.1).collect());
    for (row, z) in w.chunks_exact(columns).zip(z) {
        let blocks = row
            .chunks(FOLD)
            .zip(low.chunks(FOLD))
            .zip(high.chunks(FOLD));
        for ((row, low), high) in blocks {
            let (mut sum_low, mut sum_high) = (0, 0);
            for ((&w, low), high) in row.iter().zip(low).zip(high) {
                sum_low += low * i32::from(w);
                sum_high += high * i32::from(w);
            }
            *z = add_halves(*z, sum_low, sum_high, place);
        }
    }
}

#[inline(always)]
pub(super) fn contract_words_body(w: &[u32], s: &[u32], z: &mut [u32]) {
    // Sums of every sixteenth product; three products below 2⁶² and a sum below 2³⁴ stay below 2⁶⁴.
    const LANES: usize = 16;
    let (whole, rest) = s.as_chunks::<{ 3 * LANES }>();
    for (row, z) in w.chunks_exact(s.len()).zip(z) {
        let mut sums = [0u64; LANES];
        let (row, row_rest) = row.as_chunks::<{ 3 * LANES }>();
        for (w, s) in row.iter().zip(whole) {
            for (lane, sum) in sums.iter_mut().enumerate() {
                let product = |at: usize| u64::from(w[at + lane]) * u64::from(s[at + lane]);
                let full = *sum + product(0) + product(LANES) + product(2 * LANES);
                *sum = (full & u64::from(P)) + (full >> 31);
            }
        }
        let rest = row_rest.iter().zip(rest);
        let rest = rest.map(|(&w, &s)| Fp::from_u64(u64::from(w) * u64::from(s)));
        *z = (sums.into_iter().map(Fp::from_u64).sum::<Fp>() + rest.sum::<Fp>()).word();
    }
}

#[inline(always)]
pub(super) fn combine_body(z: &[u32], rows: &[u32], out: &mut [u32]) {
    let width = out.len();
    let mut sums = [0u64; BLOCK];
    for (block, out) in out.chunks_mut(BLOCK).enumerate() {
        let sums = &mut sums[..out.len()];
        sums.fill(0);
        // Three products below 2⁶² and a sum below 2³⁴ stay below 2⁶⁴.
        for (z, rows) in z.chunks(3).zip(rows.chunks(3 * width)) {
            let z = |t| z.get(t).copied().unwrap_or(0);
            let row = |t: usize| {
                let row = rows
                    .get(t * width..(t + 1) * width)
                    .unwrap_or(&rows[..width]);
                &row[block * BLOCK..][..sums.len()]
            };
            let (z, rows) = ([0, 1, 2].map(z), [0, 1, 2].map(row));
            for (((sum, &a), &b), &c) in sums.iter_mut().zip(rows[0]).zip(rows[1]).zip(rows[2]) {
                let [a, b, c] = [a, b, c].map(u64::from);
                let [p, q, r] = z.map(u64::from);
                let full = *sum + a * p + b * q + c * r;
                *sum = (full & u64::from(P)) + (full >> 31);
            }
        }
        for (out, &sum) in out.iter_mut().zip(sums.iter()) {
            *out = Fp::from_u64(sum).word();
        }
    }
}

/// The 16-bit halves of a word.
#[inline(always)]
fn split(word: u32) -> (i32, i32) {
    ((word & 0xffff) as i32, (word >> 16) as i32)
}

/// `z + 2^place·(low + 2¹⁶·high)`.
#[inline(always)]
fn add_halves(z: u32, low: i32, high: i32, place: u32) -> u32 {
    let sum = Fp::from_signed(i64::from(low) + (i64::from(high) << 16));
    let placed = u64::from(sum.word()) << place;
    Fp::from_u64(u64::from(z) + placed).word()
}

fn canonical(words: &[u32]) -> Zeroizing<Vec<u32>> {
    Zeroizing::new(
        words
            .iter()
            .map(|&word| Fp::from_u64(word.into()).word())
            .collect(),
    )
}

fn take(mut words: Zeroizing<Vec<u32>>) -> Vec<u32> {
    std::mem::take(&mut *words)
}

/// Input pixels, or taps, worked on at a time.
const BLOCK: usize = 1024;

/// Products summed before a fold: 255 · 65535 · 128 < 2³¹.
const FOLD: usize = 255;

/// Words of taps worked on at a time: 16 MiB, so four pixels under the largest kernel.
const MOST_TAPS: usize = 1 << 22;
