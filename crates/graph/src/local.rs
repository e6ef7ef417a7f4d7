//! Operators as they are computed, for all of a tensor or for a part of it.

use larvatus_kernels::WrongLength;
use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::{Bound, MaxAbs, max_abs_with, scale};
use larvatus_kernels::hide::{Activations, quantise_short_with};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::chain::{self, Operand, chain_with};
use larvatus_kernels::local::pool::{Windows, max_pool_with};
use larvatus_kernels::reveal::{Bias, Claim, Epilogue, reveal_with};

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
        let inverse = maxima
            .iter()
            .map(|max| scale(MaxAbs::of(*max), self.bound).inverse);
        let inverse: Vec<f32> = inverse.collect();
        let x = Activations::new(x, rows, cols, &inverse, self.bound)?;
        quantise_short_with(self.isa, &x, &[], out, &mut []);
        Ok(())
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
        room.resize(rows * cols, 0.0);
        self.reveal(words, maxima, residual, room, row_max)?;
        max_pool_with(self.isa, windows, room, y)?;
        let pooled = y.chunks_exact(y.len() / rows);
        for (max, row) in row_max.iter_mut().zip(pooled) {
            *max = if max.is_finite() {
                max_abs_with(self.isa, row)
            } else {
                *max
            };
        }
        Ok(())
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
        let steps = maxima
            .iter()
            .map(|max| scale(MaxAbs::of(*max), self.bound).step);
        let steps: Vec<f32> = steps.collect();
        match &self.shape {
            Shape::Conv(_) => {
                let step = steps.first().copied().unwrap_or(0.0);
                let factors: Vec<f32> = self.factor.iter().map(|f| f * step).collect();
                let epilogue = Epilogue {
                    factor_row: Some(&factors),
                    factor_col: None,
                    bias: self.bias.map_or(Bias::None, Bias::PerRow),
                    pre: self.pre,
                    residual,
                    post: self.post,
                };
                let claim = Claim::new(words, None, rows, cols)?;
                let _ = reveal_with(self.isa, &claim, &[], &epilogue, y, row_max);
            }
            Shape::MatMul(matmul) => {
                let height = matmul.rows;
                for group in 0..matmul.groups {
                    let here = group * height..(group + 1) * height;
                    let all = here.start * cols..here.end * cols;
                    let columns = group * cols..(group + 1) * cols;
                    let epilogue = Epilogue {
                        factor_row: steps.get(here.clone()),
                        factor_col: self.factor.get(columns.clone()),
                        bias: self
                            .bias
                            .and_then(|bias| bias.get(columns))
                            .map_or(Bias::None, Bias::PerColumn),
                        pre: self.pre,
                        residual: residual.and_then(|residual| residual.get(all.clone())),
                        post: self.post,
                    };
                    let part = |len: usize| WrongLength {
                        expected: all.end,
                        got: len,
                    };
                    let words = words.get(all.clone()).ok_or(part(words.len()))?;
                    let claim = Claim::new(words, None, height, cols)?;
                    let len = y.len();
                    let y = y.get_mut(all.clone()).ok_or(part(len))?;
                    let row_max = row_max.get_mut(here).ok_or(part(len))?;
                    let _ = reveal_with(self.isa, &claim, &[], &epilogue, y, row_max);
                }
            }
        }
        Ok(())
    }
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
