//! Attention: softmax(Q·Kᵀ·scale + mask)·V for each head, and plain products of stacks of matrices.
//!
//! Operands are read where they lie, by strides, so heads that are interleaved need no transposition. Between the two
//! products only a few rows of scores exist.

use super::softmax::{row, row_scalar};
use super::tile::{ROWS, Rows, View, left_rows, multiply, pack_right, right_room};
use crate::WrongLength;
use crate::isa::Isa;
use crate::isa::vector::{Pass, Vector, load_f, store_f};

/// Where the elements of a stack of matrices lie: (matrix, row, column) at the sum of the products with these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Strides {
    /// From one matrix to the next.
    pub matrix: usize,
    /// From one row to the next.
    pub row: usize,
    /// From one column to the next.
    pub column: usize,
}

impl Strides {
    /// The length of a buffer that just holds all elements, `usize::MAX` if that does not fit.
    fn span(self, matrices: usize, rows: usize, columns: usize) -> usize {
        if matrices == 0 || rows == 0 || columns == 0 {
            return 0;
        }
        let last = |count: usize, stride: usize| (count - 1).checked_mul(stride);
        let sum = || {
            last(matrices, self.matrix)?
                .checked_add(last(rows, self.row)?)?
                .checked_add(last(columns, self.column)?)?
                .checked_add(1)
        };
        sum().unwrap_or(usize::MAX)
    }

    fn view(self, data: &[f32], matrix: usize) -> View<'_> {
        View {
            data,
            start: matrix * self.matrix,
            row: self.row,
            column: self.column,
        }
    }

    fn check(
        self,
        matrices: usize,
        rows: usize,
        columns: usize,
        got: usize,
    ) -> Result<(), WrongLength> {
        let expected = self.span(matrices, rows, columns);
        if got >= expected {
            Ok(())
        } else {
            Err(WrongLength { expected, got })
        }
    }
}

/// The geometry of a stack of products `out = a·b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Products {
    /// How many.
    pub matrices: usize,
    /// Rows of `a`.
    pub rows: usize,
    /// Columns of `a` and rows of `b`.
    pub inner: usize,
    /// Columns of `b`.
    pub cols: usize,
    /// Of `a`: rows × inner.
    pub a: Strides,
    /// Of `b`: inner × cols.
    pub b: Strides,
    /// Of the result: rows × cols. The columns are neighbours.
    pub out: Strides,
}

/// Multiplies matrices.
///
/// **Shapes**: as the geometry says; `out` is written where it has elements.
/// **Exactness**: terms are added in their order; error ≤ inner·2⁻²³·Σ|a·b|.
/// **Errors**: [`WrongLength`] if a buffer is too short, a side is 0, or the columns of `out` are not neighbours.
pub fn products(
    shape: &Products,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
) -> Result<(), WrongLength> {
    products_with(Isa::best(), shape, a, b, out)
}

/// [`products`] with a given instruction set.
pub fn products_with(
    isa: Isa,
    shape: &Products,
    a: &[f32],
    b: &[f32],
    out: &mut [f32],
) -> Result<(), WrongLength> {
    let Products {
        matrices,
        rows,
        inner,
        cols,
        ..
    } = *shape;
    shape.a.check(matrices, rows, inner, a.len())?;
    shape.b.check(matrices, inner, cols, b.len())?;
    shape.out.check(matrices, rows, cols, out.len())?;
    WrongLength::check(1, shape.out.column)?;
    WrongLength::check(1, matrices.min(rows).min(inner).min(cols).min(1))?;
    isa.run(Multiply { shape, a, b, out });
    Ok(())
}

struct Multiply<'a> {
    shape: &'a Products,
    a: &'a [f32],
    b: &'a [f32],
    out: &'a mut [f32],
}

impl Pass for Multiply<'_> {
    type Output = ();

    fn scalar(self) {
        let Self { shape, a, b, out } = self;
        for matrix in 0..shape.matrices {
            let (a, b) = (shape.a.view(a, matrix), shape.b.view(b, matrix));
            for i in 0..shape.rows {
                for j in 0..shape.cols {
                    let dot = (0..shape.inner).fold(0.0, |sum, k| sum + a.at(i, k) * b.at(k, j));
                    out[matrix * shape.out.matrix + i * shape.out.row + j] = dot;
                }
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self { shape, a, b, out } = self;
        let Products {
            rows, inner, cols, ..
        } = *shape;
        let mut space = vec![0.0; ROWS * inner];
        let mut right = vec![0.0; right_room(inner, cols)];
        for matrix in 0..shape.matrices {
            pack_right(v, shape.b.view(b, matrix), inner, cols, &mut right);
            for i in (0..rows).step_by(ROWS) {
                let some = ROWS.min(rows - i);
                let left = left_rows(shape.a.view(a, matrix), i, some, inner, &mut space);
                let out = Rows {
                    data: &mut *out,
                    start: matrix * shape.out.matrix + i * shape.out.row,
                    stride: shape.out.row,
                    rows: some,
                    cols,
                };
                multiply(v, left, &right, inner, out);
            }
        }
    }
}

/// The geometry of attention.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    /// How many.
    pub heads: usize,
    /// Rows of Q and of the result.
    pub queries: usize,
    /// Rows of K and V.
    pub keys: usize,
    /// Columns of Q and K.
    pub depth: usize,
    /// Columns of V and of the result.
    pub width: usize,
    /// Of Q: queries × depth.
    pub q: Strides,
    /// Of K: keys × depth.
    pub k: Strides,
    /// Of V: keys × width.
    pub v: Strides,
    /// Of the result: queries × width. The columns are neighbours.
    pub out: Strides,
    /// The factor of the scores, if any.
    pub scale: Option<f32>,
    /// Of the mask: queries × keys, 0 where it repeats. The columns are neighbours.
    pub mask: Option<Strides>,
}

/// What attention reads.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Q
    pub q: &'a [f32],
    /// K
    pub k: &'a [f32],
    /// V
    pub v: &'a [f32],
    /// Added to the scores; empty where the geometry has none.
    pub mask: &'a [f32],
}

/// Attention of all heads.
///
/// **Shapes**: as the geometry says; `out` is written where it has elements.
/// **Exactness**: scores and results as [`products`], weights as [`softmax`](fn@super::softmax::softmax); scale and mask
/// correctly rounded.
/// **Errors**: [`WrongLength`] if a buffer is too short, a side is 0, or columns of the result or mask are not neighbours.
///
/// Allocates the packed K and V of one head and a few rows of scores. **Source**: Vaswani et al. (2017), equation 1.
pub fn attention(
    shape: &Attention,
    inputs: Inputs<'_>,
    out: &mut [f32],
) -> Result<(), WrongLength> {
    attention_with(Isa::best(), shape, inputs, out)
}

/// [`attention`](fn@attention) with a given instruction set.
pub fn attention_with(
    isa: Isa,
    shape: &Attention,
    inputs: Inputs<'_>,
    out: &mut [f32],
) -> Result<(), WrongLength> {
    let Attention {
        heads,
        queries,
        keys,
        depth,
        width,
        ..
    } = *shape;
    shape.q.check(heads, queries, depth, inputs.q.len())?;
    shape.k.check(heads, keys, depth, inputs.k.len())?;
    shape.v.check(heads, keys, width, inputs.v.len())?;
    shape.out.check(heads, queries, width, out.len())?;
    WrongLength::check(1, shape.out.column)?;
    let least = heads.min(queries).min(keys).min(depth).min(width);
    WrongLength::check(1, least.min(1))?;
    if let Some(mask) = shape.mask {
        mask.check(heads, queries, keys, inputs.mask.len())?;
        WrongLength::check(1, mask.column)?;
    }
    isa.run(Attend { shape, inputs, out });
    Ok(())
}

struct Attend<'a> {
    shape: &'a Attention,
    inputs: Inputs<'a>,
    out: &'a mut [f32],
}

impl Attend<'_> {
    /// The mask's row for a query.
    fn mask(
        shape: &Attention,
        mask: &[f32],
        head: usize,
        query: usize,
    ) -> Option<core::ops::Range<usize>> {
        let strides = shape.mask?;
        let start = head * strides.matrix + query * strides.row;
        debug_assert!(start + shape.keys <= mask.len());
        Some(start..start + shape.keys)
    }
}

/// Rows of scores that exist at a time.
const BLOCK: usize = 4 * ROWS;

impl Pass for Attend<'_> {
    type Output = ();

    fn scalar(self) {
        let Self { shape, inputs, out } = self;
        let mut scores = vec![0.0; shape.keys];
        for head in 0..shape.heads {
            let q = shape.q.view(inputs.q, head);
            let k = shape.k.view(inputs.k, head);
            let values = shape.v.view(inputs.v, head);
            for i in 0..shape.queries {
                let mask = Self::mask(shape, inputs.mask, head, i);
                for (j, score) in scores.iter_mut().enumerate() {
                    *score = (0..shape.depth).fold(0.0, |sum, t| sum + q.at(i, t) * k.at(j, t));
                    if let Some(scale) = shape.scale {
                        *score *= scale;
                    }
                    if let Some(mask) = &mask {
                        *score += inputs.mask[mask.start + j];
                    }
                }
                row_scalar(&mut scores);
                for c in 0..shape.width {
                    let terms = scores.iter().enumerate();
                    let dot = terms.fold(0.0, |sum, (j, weight)| sum + weight * values.at(j, c));
                    out[head * shape.out.matrix + i * shape.out.row + c] = dot;
                }
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self { shape, inputs, out } = self;
        let Attention {
            queries,
            keys,
            depth,
            width,
            ..
        } = *shape;
        let mut space = vec![0.0; ROWS * depth.max(keys)];
        let mut packed_k = vec![0.0; right_room(depth, keys)];
        let mut packed_v = vec![0.0; right_room(keys, width)];
        let mut scores = vec![0.0; BLOCK * keys];
        for head in 0..shape.heads {
            let k = shape.k.view(inputs.k, head);
            let transposed = View {
                row: k.column,
                column: k.row,
                ..k
            };
            pack_right(v, transposed, depth, keys, &mut packed_k);
            pack_right(v, shape.v.view(inputs.v, head), keys, width, &mut packed_v);
            for first in (0..queries).step_by(BLOCK) {
                let block = BLOCK.min(queries - first);
                for i in (0..block).step_by(ROWS) {
                    let some = ROWS.min(block - i);
                    let q = shape.q.view(inputs.q, head);
                    let left = left_rows(q, first + i, some, depth, &mut space);
                    let out = Rows {
                        data: &mut scores,
                        start: i * keys,
                        stride: keys,
                        rows: some,
                        cols: keys,
                    };
                    multiply(v, left, &packed_k, depth, out);
                }
                for (i, scores) in scores.chunks_exact_mut(keys).take(block).enumerate() {
                    let mask = Self::mask(shape, inputs.mask, head, first + i);
                    let mask = mask.and_then(|mask| inputs.mask.get(mask));
                    adjust(v, scores, shape.scale, mask);
                    row(v, scores);
                }
                let weights = View {
                    data: &scores,
                    start: 0,
                    row: keys,
                    column: 1,
                };
                for i in (0..block).step_by(ROWS) {
                    let some = ROWS.min(block - i);
                    let left = left_rows(weights, i, some, keys, &mut space);
                    let out = Rows {
                        data: &mut *out,
                        start: head * shape.out.matrix + (first + i) * shape.out.row,
                        stride: shape.out.row,
                        rows: some,
                        cols: width,
                    };
                    multiply(v, left, &packed_v, keys, out);
                }
            }
        }
    }
}

/// Scale and mask of a row of scores.
#[inline(always)]
fn adjust<V: Vector>(v: V, scores: &mut [f32], scale: Option<f32>, mask: Option<&[f32]>) {
    if scale.is_none() && mask.is_none() {
        return;
    }
    let mut at = 0;
    while at + V::LANES <= scores.len() {
        adjust_at::<V, false>(v, scores, scale, mask, at);
        at += V::LANES;
    }
    adjust_at::<V, true>(v, scores, scale, mask, at);
}

#[inline(always)]
fn adjust_at<V: Vector, const PART: bool>(
    v: V,
    scores: &mut [f32],
    scale: Option<f32>,
    mask: Option<&[f32]>,
    at: usize,
) {
    let mut score = load_f::<V, PART>(v, scores, at);
    if let Some(scale) = scale {
        score = v.mul_f(score, v.splat_f(scale));
    }
    if let Some(mask) = mask {
        score = v.add_f(score, load_f::<V, PART>(v, mask, at));
    }
    store_f::<V, PART>(v, score, scores, at);
}

#[cfg(test)]
mod tests;
