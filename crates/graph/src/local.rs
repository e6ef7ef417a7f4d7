//! Operators as they are computed, for all of a tensor or for a part of it.
//!
//! With the feature `parallel`, passes over rows are shared among the threads of the current rayon pool; each row is computed by itself, so the result is the
//! same.

use std::ops::Range;

use larvatus_kernels::WrongLength;
use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::{Bound, MaxAbs, max_abs_with, scale};
use larvatus_kernels::hide::{Activations, quantise_short_with};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::attention::{Attention, Inputs, attention_with};
use larvatus_kernels::local::chain::{self, Operand, chain_with};
use larvatus_kernels::local::norm::{LayerNorm, layer_norm_with};
use larvatus_kernels::local::pool::{Windows, max_pool_with};
use larvatus_kernels::reveal::{Bias, Claim, Epilogue, reveal_with};

#[cfg(feature = "parallel")]
use rayon::prelude::*;

use crate::op::{Axis, Step};

/// What surrounds the integers of a linear map: one image of it.
pub(crate) struct Around<'a> {
    pub(crate) isa: Isa,
    pub(crate) shape: &'a Shape,
    pub(crate) bound: Bound,
    pub(crate) factor: &'a [f32],
    pub(crate) bias: Option<&'a [f32]>,
    pub(crate) pre: Activation,
    pub(crate) post: Activation,
    pub(crate) pool: Option<&'a Windows>,
}

impl Around<'_> {
    /// The integers of the input. `maxima`: one, or one for each row of a product.
    pub(crate) fn quantise(
        &self,
        x: &[f32],
        maxima: &[f32],
        out: &mut [i16],
    ) -> Result<(), WrongLength> {
        let (rows, cols) = self.shape.input_rows_cols();
        same_length(rows * cols, x.len())?;
        same_length(rows * cols, out.len())?;
        let inverse = maxima
            .iter()
            .map(|max| scale(MaxAbs::of(*max), self.bound).inverse);
        let inverse: Vec<f32> = inverse.collect();
        let height = band(rows, cols);
        let bands = x.chunks(height * cols).zip(out.chunks_mut(height * cols));
        share(bands.enumerate(), |(band, (x, out))| {
            let (first, rows) = (band * height, x.len() / cols);
            let inverse = match inverse.len() {
                1 => &inverse[..],
                _ => inverse.get(first..first + rows).unwrap_or_default(),
            };
            let x = Activations::new(x, rows, cols, inverse, self.bound)?;
            quantise_short_with(self.isa, &x, &[], out, &mut []);
            Ok(())
        })
    }

    /// What follows the exact answer `words`. `room` is for what is pooled afterwards.
    pub(crate) fn finish(
        &self,
        words: &[u32],
        maxima: &[f32],
        residual: Option<&[f32]>,
        room: &mut Vec<f32>,
        y: &mut [f32],
        row_max: &mut [MaxAbs],
    ) -> Result<(), WrongLength> {
        let Some(windows) = self.pool else {
            return self.reveal(words, maxima, residual, y, row_max);
        };
        let (rows, cols) = self.shape.output_rows_cols();
        same_length(windows.planes, rows)?;
        room.resize(rows * cols, 0.0);
        self.reveal(words, maxima, residual, room, row_max)?;
        let (height, pooled) = (band(rows, cols), y.len() / rows);
        let bands = room
            .chunks(height * cols)
            .zip(y.chunks_mut(height * pooled))
            .zip(row_max.chunks_mut(height));
        share(bands, |((x, y), row_max)| {
            let windows = Windows {
                planes: row_max.len(),
                ..windows.clone()
            };
            max_pool_with(self.isa, &windows, x, y)?;
            for (max, row) in row_max.iter_mut().zip(y.chunks_exact(pooled)) {
                let pooled = max_abs_with(self.isa, row);
                *max = if max.is_finite() { pooled } else { *max };
            }
            Ok(())
        })
    }

    fn reveal(
        &self,
        words: &[u32],
        maxima: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        row_max: &mut [MaxAbs],
    ) -> Result<(), WrongLength> {
        let (rows, cols) = self.shape.output_rows_cols();
        for len in [words.len(), y.len()]
            .into_iter()
            .chain(residual.map(<[f32]>::len))
        {
            same_length(rows * cols, len)?;
        }
        same_length(rows, row_max.len())?;
        let steps = maxima
            .iter()
            .map(|max| scale(MaxAbs::of(*max), self.bound).step);
        let steps: Vec<f32> = steps.collect();
        let matmul = match &self.shape {
            Shape::Conv(_) => {
                let step = steps.first().copied().unwrap_or(0.0);
                let factors: Vec<f32> = self.factor.iter().map(|f| f * step).collect();
                let bias = self.bias.map_or(Bias::None, Bias::PerRow);
                let epilogue = self.epilogue(&factors, None, bias, residual);
                return self.bands(cols, &epilogue, words, y, row_max);
            }
            Shape::MatMul(matmul) => matmul,
        };
        let each = matmul.rows * cols;
        let groups = words
            .chunks_exact(each)
            .zip(y.chunks_exact_mut(each))
            .zip(row_max.chunks_exact_mut(matmul.rows));
        for (group, ((words, y), row_max)) in groups.enumerate() {
            let columns = group * cols..(group + 1) * cols;
            let steps = steps.get(group * matmul.rows..(group + 1) * matmul.rows);
            let factor = self.factor.get(columns.clone());
            let bias = self.bias.and_then(|bias| bias.get(columns));
            let bias = bias.map_or(Bias::None, Bias::PerColumn);
            let residual = residual.and_then(|all| all.get(group * each..(group + 1) * each));
            let epilogue = self.epilogue(steps.unwrap_or_default(), factor, bias, residual);
            self.bands(cols, &epilogue, words, y, row_max)?;
        }
        Ok(())
    }

    fn epilogue<'a>(
        &self,
        rows: &'a [f32],
        columns: Option<&'a [f32]>,
        bias: Bias<'a>,
        residual: Option<&'a [f32]>,
    ) -> Epilogue<'a> {
        Epilogue {
            factor_row: Some(rows),
            factor_col: columns,
            bias,
            pre: self.pre,
            residual,
            post: self.post,
        }
    }

    /// The reveal pass over bands of rows.
    fn bands(
        &self,
        cols: usize,
        whole: &Epilogue<'_>,
        words: &[u32],
        y: &mut [f32],
        row_max: &mut [MaxAbs],
    ) -> Result<(), WrongLength> {
        let height = band(row_max.len(), cols);
        let bands = words
            .chunks(height * cols)
            .zip(y.chunks_mut(height * cols))
            .zip(row_max.chunks_mut(height));
        share(bands.enumerate(), |(band, ((words, y), row_max))| {
            let rows = band * height..band * height + row_max.len();
            let all = rows.start * cols..rows.end * cols;
            let some = |values: &[f32], range: &Range<usize>| match values.get(range.clone()) {
                Some(_) => Ok(()),
                None => Err(WrongLength {
                    expected: range.end,
                    got: values.len(),
                }),
            };
            let factors = whole.factor_row.unwrap_or_default();
            some(factors, &rows)?;
            let epilogue = Epilogue {
                factor_row: factors.get(rows.clone()),
                bias: match whole.bias {
                    Bias::PerRow(bias) => {
                        some(bias, &rows)?;
                        Bias::PerRow(bias.get(rows).unwrap_or_default())
                    }
                    other => other,
                },
                residual: whole.residual.and_then(|residual| residual.get(all)),
                ..*whole
            };
            let claim = Claim::new(words, None, row_max.len(), cols)?;
            let _ = reveal_with(self.isa, &claim, &[], &epilogue, y, row_max);
            Ok(())
        })
    }
}

/// Rows that one thread takes of so many, where there are enough for several.
fn band(rows: usize, cols: usize) -> usize {
    let threads = threads();
    if threads == 1 || rows.saturating_mul(cols) < SMALL {
        return rows.max(1);
    }
    rows.div_ceil(threads).max(1)
}

#[cfg(feature = "parallel")]
fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(not(feature = "parallel"))]
fn threads() -> usize {
    1
}

/// Does the work for each item, on several threads where there are any.
fn share<T: Send>(
    items: impl Iterator<Item = T>,
    work: impl Fn(T) -> Result<(), WrongLength> + Sync + Send,
) -> Result<(), WrongLength> {
    let items: Vec<T> = items.collect();
    #[cfg(feature = "parallel")]
    if items.len() > 1 {
        return items.into_par_iter().try_for_each(work);
    }
    items.into_iter().try_for_each(work)
}

/// Elements that one thread passes over faster than it finds another.
const SMALL: usize = 1 << 15;

fn same_length(expected: usize, got: usize) -> Result<(), WrongLength> {
    if expected == got {
        Ok(())
    } else {
        Err(WrongLength { expected, got })
    }
}

/// Attention; queries are shared among threads where those of all heads lie together.
pub(crate) fn attend(
    isa: Isa,
    shape: &Attention,
    inputs: Inputs<'_>,
    y: &mut [f32],
) -> Result<(), WrongLength> {
    let row = shape.out.row;
    let together = shape.out.matrix.saturating_mul(shape.heads - 1) + shape.width <= row;
    let work = shape
        .keys
        .saturating_mul(shape.heads * (shape.depth + shape.width));
    let height = band(shape.queries, work);
    if !together || height >= shape.queries {
        return attention_with(isa, shape, inputs, y);
    }
    let end = y.len().min(shape.queries.saturating_mul(row));
    let y = y.get_mut(..end).unwrap_or_default();
    let bands = y.chunks_mut(height.saturating_mul(row));
    share(bands.enumerate(), |(band, y)| {
        let first = band * height;
        let mask = shape.mask.map_or(0, |mask| mask.row);
        let part = Attention {
            queries: height.min(shape.queries - first),
            ..shape.clone()
        };
        let inputs = Inputs {
            q: inputs.q.get(first * shape.q.row..).unwrap_or_default(),
            mask: inputs.mask.get(first * mask..).unwrap_or_default(),
            ..inputs
        };
        attention_with(isa, &part, inputs, y)
    })
}

/// Layer normalisation, rows shared among threads.
pub(crate) fn normalise(
    isa: Isa,
    norm: &LayerNorm,
    cols: usize,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    same_length(x.len(), y.len())?;
    let height = band(x.len() / cols.max(1), cols);
    let bands = x.chunks(height * cols).zip(y.chunks_mut(height * cols));
    share(bands, |(x, y)| layer_norm_with(isa, norm, cols, x, y))
}

/// Applies steps to `y`, whose first element is element `first` of `len`. `others` are the values of the binary
/// steps' operands, in their order: all of them, or those at the same places where they are `aligned`.
pub(crate) fn steps(
    isa: Isa,
    steps: &[Step],
    others: &[&[f32]],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    let mut others = others.iter();
    let mut inputs: Vec<&[f32]> = Vec::new();
    let mut all = Vec::with_capacity(steps.len());
    for step in steps {
        all.push(match step {
            Step::Activation(activation) => chain::Step::Activation(*activation),
            Step::Binary(op, spread) => {
                let values = others.next().copied().unwrap_or_default();
                let operand = match values {
                    [number] => Operand::Number(*number),
                    _ if spread.run == 1 && values.len() == y.len() => {
                        inputs.push(values);
                        Operand::Input(inputs.len() - 1)
                    }
                    _ if spread.run == 1 => Operand::Columns(values.to_vec()),
                    _ => Operand::Runs {
                        values: values.to_vec(),
                        run: spread.run,
                    },
                };
                chain::Step::Binary(*op, operand)
            }
        });
    }
    chain_with(isa, &all, &inputs, y)
}

/// Copies the elements that the axes reach.
pub(crate) fn view<T: Copy>(start: usize, axes: &[Axis], x: &[T], y: &mut [T]) {
    let (outer, inner) = match axes.split_last() {
        Some((inner, outer)) => (outer, *inner),
        None => (&[][..], Axis { len: 1, stride: 1 }),
    };
    let mut index = vec![0_usize; outer.len()];
    let mut base = start;
    for row in y.chunks_exact_mut(inner.len.max(1)) {
        let from = x.get(base..).unwrap_or_default();
        match inner.stride {
            1 => {
                if let Some(from) = from.get(..row.len()) {
                    row.copy_from_slice(from);
                }
            }
            0 => {
                if let Some(value) = from.first() {
                    row.fill(*value);
                }
            }
            stride => {
                let from = from.iter().step_by(stride);
                row.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
        }
        for (at, axis) in index.iter_mut().zip(outer).rev() {
            *at += 1;
            base += axis.stride;
            if *at < axis.len {
                break;
            }
            base -= axis.len * axis.stride;
            *at = 0;
        }
    }
}

/// The source element of an element of a view.
pub(crate) fn view_element(start: usize, axes: &[Axis], mut element: usize) -> usize {
    let mut at = start;
    for axis in axes.iter().rev() {
        at += element % axis.len * axis.stride;
        element /= axis.len;
    }
    at
}

/// Puts pieces of each part side by side, `outer` times.
pub(crate) fn concat<T: Copy>(outer: usize, parts: &[(&[T], usize)], y: &mut [T]) {
    let inner: usize = parts.iter().map(|part| part.1).sum();
    for (index, row) in y.chunks_exact_mut(inner.max(1)).take(outer).enumerate() {
        let mut rest = row;
        for (part, len) in parts {
            let (now, later) = rest.split_at_mut((*len).min(rest.len()));
            if let Some(from) = part.get(index * len..index * len + now.len()) {
                now.copy_from_slice(from);
            }
            rest = later;
        }
    }
}

/// The row that a number names; negative ones count from the end.
pub(crate) fn row(index: i64, rows: usize) -> Option<usize> {
    let index = if index < 0 {
        index.checked_add_unsigned(rows as u64)?
    } else {
        index
    };
    usize::try_from(index).ok().filter(|row| *row < rows)
}

/// An integer as a float.
pub(crate) fn cast(x: i64) -> f32 {
    x as f32
}
