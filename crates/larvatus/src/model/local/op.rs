//! An operator of ours in the engine's graph.

use std::borrow::Cow;
use std::sync::Arc;

use larvatus_kernels::local::attention::{Attention, Inputs, Products, attention, products};
use larvatus_kernels::local::chain::{Step, chain};
use larvatus_kernels::local::depthwise::depthwise;
use larvatus_kernels::local::norm::{LayerNorm, layer_norm};
use larvatus_kernels::local::pool::{Divisor, Windows, max_pool, sum_pool, sum_rows, thin};
use larvatus_kernels::local::softmax::softmax;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;

use crate::model::linear::floats;

/// What an operator does. Shapes are fixed.
#[derive(Debug)]
pub(crate) enum Work {
    /// Q, K, V and the mask if there is one; `batches` times, each input and the output advancing by its step.
    Attention {
        shape: Attention,
        batches: usize,
        /// Of Q, K, V, the mask and the output.
        advance: [usize; 5],
    },
    /// Elementwise steps on the first input.
    Chain(Vec<Step>),
    Depthwise {
        windows: Windows,
        filters: Vec<f32>,
        bias: Vec<f32>,
    },
    LayerNorm {
        norm: LayerNorm,
        cols: usize,
    },
    MaxPool(Windows),
    /// As for attention: `batches` times.
    Products {
        shape: Products,
        batches: usize,
        /// Of both operands and the output.
        advance: [usize; 3],
    },
    Softmax {
        cols: usize,
    },
    SumPool {
        windows: Windows,
        divisor: Divisor,
    },
    SumRows {
        cols: usize,
        factor: f32,
    },
    /// Every n-th pixel.
    Thin {
        input: [usize; 2],
        stride: [usize; 2],
    },
}

/// An operator that makes one f32 tensor of a fixed shape.
#[derive(Clone, Debug)]
pub(crate) struct LocalOp {
    work: Arc<Work>,
    shape: Vec<usize>,
}

impl LocalOp {
    pub(super) fn new(work: Work, shape: &[usize]) -> Self {
        Self {
            work: Arc::new(work),
            shape: shape.to_vec(),
        }
    }

    /// What it does.
    pub(crate) fn work(&self) -> &Work {
        &self.work
    }

    /// Whether the first input becomes the output.
    fn is_in_place(&self) -> bool {
        matches!(&*self.work, Work::Softmax { .. } | Work::Chain(_))
    }

    /// Makes `y`, which holds the first input if that becomes the output; `inputs` are the others.
    fn run(&self, inputs: &[&[f32]], y: &mut [f32]) -> TractResult<()> {
        let input = |index: usize| inputs.get(index).copied().unwrap_or_default();
        let x = input(0);
        match &*self.work {
            Work::Attention {
                shape,
                batches,
                advance,
            } => {
                for batch in 0..*batches {
                    let part = |index: usize| from(input(index), batch * advance[index]);
                    let inputs = Inputs {
                        q: part(0),
                        k: part(1),
                        v: part(2),
                        mask: part(3),
                    };
                    let out = y.get_mut(batch * advance[4]..).unwrap_or_default();
                    attention(shape, inputs, out)?;
                }
            }
            Work::Chain(steps) => chain(steps, inputs, y)?,
            Work::Depthwise {
                windows,
                filters,
                bias,
            } => depthwise(windows, filters, bias, x, y)?,
            Work::LayerNorm { norm, cols } => layer_norm(norm, *cols, x, y)?,
            Work::MaxPool(windows) => max_pool(windows, x, y)?,
            Work::Products {
                shape,
                batches,
                advance,
            } => {
                for batch in 0..*batches {
                    let part = |index: usize| from(input(index), batch * advance[index]);
                    let out = y.get_mut(batch * advance[2]..).unwrap_or_default();
                    products(shape, part(0), part(1), out)?;
                }
            }
            Work::Softmax { cols } => softmax(*cols, y)?,
            Work::SumPool { windows, divisor } => sum_pool(windows, *divisor, x, y)?,
            Work::SumRows { cols, factor } => sum_rows(*cols, *factor, x, y)?,
            Work::Thin { input, stride } => thin(*input, *stride, x, y)?,
        }
        Ok(())
    }
}

/// The elements from `start` on, none where that is beyond the end.
fn from(x: &[f32], start: usize) -> &[f32] {
    x.get(start..).unwrap_or_default()
}

/// The same operator, not an equal one.
impl PartialEq for LocalOp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.work, &other.work) && self.shape == other.shape
    }
}

impl Eq for LocalOp {}

impl Op for LocalOp {
    fn name(&self) -> StaticName {
        Cow::Borrowed(match &*self.work {
            Work::Attention { .. } => "Larvatus.Attention",
            Work::Chain(_) => "Larvatus.Chain",
            Work::Depthwise { .. } => "Larvatus.Depthwise",
            Work::LayerNorm { .. } => "Larvatus.LayerNorm",
            Work::MaxPool(_) => "Larvatus.MaxPool",
            Work::Products { .. } => "Larvatus.Products",
            Work::Softmax { .. } => "Larvatus.Softmax",
            Work::SumPool { .. } => "Larvatus.SumPool",
            Work::SumRows { .. } => "Larvatus.SumRows",
            Work::Thin { .. } => "Larvatus.Thin",
        })
    }

    op_as_typed_op!();
}

impl EvalOp for LocalOp {
    op_out_of_plan!();

    fn eval(
        &self,
        _context: &EvalContext<'_>,
        mut inputs: TVec<TValue>,
    ) -> TractResult<TVec<TValue>> {
        // A tensor that nobody else reads is not copied.
        let mut y = if self.is_in_place() && !inputs.is_empty() {
            inputs.remove(0).into_tensor()
        } else {
            Tensor::zero::<f32>(&self.shape)?
        };
        ensure!(
            y.shape() == self.shape,
            "shape {:?}, not {:?}",
            y.shape(),
            self.shape
        );
        let others: Option<TVec<&[f32]>> = inputs.iter().map(|input| floats(input)).collect();
        let others = others.context("an input that is not f32")?;
        self.run(&others, y.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?)?;
        Ok(tvec!(y.into_tvalue()))
    }
}

impl TypedOp for LocalOp {
    fn output_facts(&self, _inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(DatumType::F32.fact(&self.shape[..])))
    }

    as_op!();
}
