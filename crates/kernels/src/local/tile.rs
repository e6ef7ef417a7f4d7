//! Products of small float matrices, each sum in the order of its terms.
//!
//! The right operand is packed in panels of a few vectors, the left is read where it lies; a tile of the product stays in
//! registers. Element (i, j) is ((0 + a₀·b₀) + a₁·b₁) + …, one rounding for each operation, so the number of
//! lanes does not matter. The error is at most k·2⁻²³·Σ|a·b| for k terms.

use crate::isa::vector::Vector;

/// Rows of a tile.
pub(super) const ROWS: usize = 6;

/// A matrix in a larger buffer: element (i, j) lies at `start + i·row + j·column`.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) data: &'a [f32],
    pub(super) start: usize,
    pub(super) row: usize,
    pub(super) column: usize,
}

impl View<'_> {
    pub(super) fn at(&self, i: usize, j: usize) -> f32 {
        self.data[self.start + i * self.row + j * self.column]
    }
}

/// Vectors of a panel.
const fn vectors<V: Vector>() -> usize {
    if V::LANES == 16 { 4 } else { 2 }
}

/// Columns of all but the last panel.
const fn panel<V: Vector>() -> usize {
    vectors::<V>() * V::LANES
}

/// Room for a packed right operand on any instruction set.
pub(super) const fn right_room(inner: usize, cols: usize) -> usize {
    inner * cols.next_multiple_of(16)
}

/// Columns of the panel that starts at column `from`, whole vectors.
#[inline(always)]
fn width<V: Vector>(from: usize, cols: usize) -> usize {
    (cols - from).next_multiple_of(V::LANES).min(panel::<V>())
}

/// Packs an `inner` × `cols` matrix: panel by panel, row by row, zeros beyond the last column.
#[inline(always)]
pub(super) fn pack_right<V: Vector>(
    _v: V,
    b: View<'_>,
    inner: usize,
    cols: usize,
    packed: &mut [f32],
) {
    let mut packed = packed;
    let mut from = 0;
    while from < cols {
        let width = width::<V>(from, cols);
        let (lines, rest) = packed.split_at_mut(inner * width);
        let used = width.min(cols - from);
        if b.column == 1 {
            for (i, line) in lines.chunks_exact_mut(width).enumerate() {
                let start = b.start + i * b.row + from;
                line[..used].copy_from_slice(&b.data[start..start + used]);
                line[used..].fill(0.0);
            }
        } else if b.row == 1 {
            for j in 0..width {
                if j < used {
                    let start = b.start + (from + j) * b.column;
                    let column = &b.data[start..start + inner];
                    for (line, x) in lines.chunks_exact_mut(width).zip(column) {
                        line[j] = *x;
                    }
                } else {
                    lines.chunks_exact_mut(width).for_each(|line| line[j] = 0.0);
                }
            }
        } else {
            for (i, line) in lines.chunks_exact_mut(width).enumerate() {
                for (j, x) in line.iter_mut().enumerate() {
                    *x = if j < used { b.at(i, from + j) } else { 0.0 };
                }
            }
        }
        packed = rest;
        from += width;
    }
}

/// Up to [`ROWS`] rows of `inner` neighbours: those of the matrix, or copies in `space` if its columns are apart. Missing
/// rows are the first once more.
#[inline(always)]
pub(super) fn left_rows<'a>(
    a: View<'a>,
    first: usize,
    rows: usize,
    inner: usize,
    space: &'a mut [f32],
) -> [&'a [f32]; ROWS] {
    let of = |r: usize| if r < rows { r } else { 0 };
    if a.column == 1 {
        return core::array::from_fn(|r| {
            let start = a.start + (first + of(r)) * a.row;
            &a.data[start..start + inner]
        });
    }
    for r in 0..rows {
        for (j, x) in space[r * inner..(r + 1) * inner].iter_mut().enumerate() {
            *x = a.at(first + r, j);
        }
    }
    let space = &*space;
    core::array::from_fn(|r| &space[of(r) * inner..(of(r) + 1) * inner])
}

/// The product of rows of `inner` elements and a packed operand.
#[inline(always)]
pub(super) fn multiply<V: Vector>(
    v: V,
    left: [&[f32]; ROWS],
    right: &[f32],
    inner: usize,
    out: Rows<'_>,
) {
    let mut right = right;
    let mut from = 0;
    while from < out.cols {
        let width = width::<V>(from, out.cols);
        let (lines, rest) = right.split_at(inner * width);
        let out = Rows {
            data: &mut *out.data,
            start: out.start + from,
            cols: out.cols - from,
            ..out
        };
        match width / V::LANES {
            1 => out.store(v, tile::<V, 1>(v, left, lines, inner)),
            2 => out.store(v, tile::<V, 2>(v, left, lines, inner)),
            3 => out.store(v, tile::<V, 3>(v, left, lines, inner)),
            _ => out.store(v, tile::<V, 4>(v, left, lines, inner)),
        }
        right = rest;
        from += width;
    }
}

#[inline(always)]
fn tile<V: Vector, const N: usize>(
    v: V,
    left: [&[f32]; ROWS],
    right: &[f32],
    inner: usize,
) -> [[V::F; N]; ROWS] {
    let left = left.map(|row| &row[..inner]);
    let mut sums = [[v.splat_f(0.0); N]; ROWS];
    for (k, b) in right.chunks_exact(N * V::LANES).take(inner).enumerate() {
        let mut lines = [v.splat_f(0.0); N];
        for (n, line) in lines.iter_mut().enumerate() {
            *line = v.load_f(b, n * V::LANES);
        }
        for r in 0..ROWS {
            let x = v.splat_f(left[r][k]);
            for n in 0..N {
                sums[r][n] = v.add_f(sums[r][n], v.mul_f(x, lines[n]));
            }
        }
    }
    sums
}

/// Where up to [`ROWS`] rows of a product go.
pub(super) struct Rows<'a> {
    pub(super) data: &'a mut [f32],
    /// Of the first element.
    pub(super) start: usize,
    /// From one row to the next.
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) cols: usize,
}

impl Rows<'_> {
    #[inline(always)]
    fn store<V: Vector, const N: usize>(self, v: V, sums: [[V::F; N]; ROWS]) {
        for (r, sums) in sums.into_iter().take(self.rows).enumerate() {
            let start = self.start + r * self.stride;
            let used = self.cols.min(N * V::LANES);
            let row = &mut self.data[start..start + used];
            for (n, sum) in sums.into_iter().enumerate() {
                let at = n * V::LANES;
                if at + V::LANES <= used {
                    v.store_f(sum, row, at);
                } else if at < used {
                    v.store_part_f(sum, row, at);
                }
            }
        }
    }
}
