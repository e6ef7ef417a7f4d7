//! Nodes of a run, one after the other.

use std::fmt;
use std::sync::Arc;

use larvatus_kernels::WrongLength;
use larvatus_kernels::fixed::{MaxAbs, max_abs_with};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::local::attention::{Inputs, products_with};
use larvatus_kernels::local::depthwise::depthwise_with;
use larvatus_kernels::local::norm::LayerNorm;
use larvatus_kernels::local::pool::{Windows, max_pool_with, sum_pool_with, sum_rows_with};
use larvatus_kernels::local::softmax::softmax_with;

use super::{Alter, Changing, Constant, Prepared, RunError};
use crate::local::{self, Around};
use crate::op::{Linear, Op};
use crate::pool::Floats;
use crate::tensor::{ConstantId, Kind, Source, TensorId, Values};

/// A tensor that is alive, with the largest magnitudes of equal runs of it where they are known.
pub(super) struct Live {
    pub(super) values: Values,
    pub(super) maxima: Vec<MaxAbs>,
}

impl Live {
    pub(super) fn change(&mut self, id: TensorId, alter: &mut Alter<'_>) {
        match &mut self.values {
            Values::F32(values) => {
                if let Some(values) = Arc::get_mut(values) {
                    alter(id, Changing::F32(values));
                }
            }
            Values::I64(values) => {
                if let Some(values) = Arc::get_mut(values) {
                    alter(id, Changing::I64(values));
                }
            }
        }
        self.maxima.clear();
    }

    /// The largest magnitudes of `count` equal runs.
    fn maxima(&self, isa: Isa, count: usize) -> Vec<f32> {
        let x = self.values.floats().unwrap_or_default();
        if !self.maxima.is_empty() && self.maxima.len().is_multiple_of(count) {
            let each = self.maxima.chunks_exact(self.maxima.len() / count);
            let each = each.filter_map(|run| run.iter().max());
            return each.map(|max| max.value()).collect();
        }
        let each = x.chunks_exact((x.len() / count).max(1));
        each.map(|run| max_abs_with(isa, run).value()).collect()
    }
}

/// Memory that is used again from node to node.
#[derive(Default)]
pub(super) struct Scratch {
    /// The last input in integers, and what it was made from.
    halves: Vec<i16>,
    of: Option<(TensorId, TensorId, u32, usize, usize)>,
    words: Vec<u32>,
    room: Vec<f32>,
}

impl Scratch {
    /// What it holds is another run's.
    pub(super) fn forget(&mut self) {
        self.of = None;
    }
}

pub(super) struct Run<'a> {
    pub(super) prepared: &'a Prepared,
    pub(super) values: Vec<Option<Live>>,
    pub(super) scratch: Scratch,
}

impl Run<'_> {
    fn live(&self, id: TensorId) -> Option<&Live> {
        self.values.get(id.index())?.as_ref()
    }

    fn floats(&self, source: Source) -> &[f32] {
        match source {
            Source::Tensor(id) => self.live(id).and_then(|live| live.values.floats()),
            Source::Constant(id) => self.constant(id),
        }
        .unwrap_or_default()
    }

    fn constant(&self, id: ConstantId) -> Option<&[f32]> {
        match self.prepared.constants.get(id.index())? {
            Constant::F32(values) => Some(values),
            Constant::I64(_) | Constant::Weights => None,
        }
    }

    fn integers(&self, source: Source) -> &[i64] {
        match source {
            Source::Tensor(id) => self.live(id).and_then(|live| live.values.integers()),
            Source::Constant(id) => match self.prepared.constants.get(id.index()) {
                Some(Constant::I64(values)) => Some(&values[..]),
                _ => None,
            },
        }
        .unwrap_or_default()
    }

    /// Nothing that is not a number is committed to, and no maximum that is not finite.
    pub(super) fn check(&self, index: usize, made: &Live) -> Result<(), RunError> {
        let graph = &self.prepared.graph;
        let Some(values) = made.values.floats() else {
            return Ok(());
        };
        let node = graph.nodes().get(index);
        let is_maxima = node.is_some_and(|node| matches!(node.op, Op::Maxima { .. }));
        let good = if made.maxima.is_empty() || made.maxima.iter().any(|max| !max.is_finite()) {
            let largest = max_abs_with(self.prepared.isa, values);
            largest.is_finite() || !is_maxima && !largest.value().is_nan()
        } else {
            true
        };
        if good {
            return Ok(());
        }
        Err(RunError::NotFinite {
            node: index,
            name: node.map(|node| node.name.clone()).unwrap_or_default(),
        })
    }

    pub(super) fn forget(&mut self, index: usize) {
        let last = &self.prepared.last_use;
        for (value, last) in self.values.iter_mut().zip(last) {
            if *last == Some(index) {
                *value = None;
            }
        }
    }

    pub(super) fn node(&mut self, index: usize) -> Result<Live, RunError> {
        let graph = Arc::clone(&self.prepared.graph);
        let broken = |problem: &dyn fmt::Display| RunError::Kernel {
            node: index,
            problem: problem.to_string(),
        };
        let missing = || broken(&"a node that is not there");
        let node = graph.nodes().get(index).ok_or_else(missing)?;
        let spec = graph.tensors().get(graph.made_by(index).index());
        let spec = spec.ok_or_else(missing)?;
        if spec.kind == Kind::I64 {
            let mut y = vec![0; spec.elements];
            match &node.op {
                Op::View { input, start, axes } => {
                    local::view(*start, axes, self.integers(*input), &mut y);
                }
                Op::Concat { outer, parts } => {
                    let parts: Vec<_> = parts
                        .iter()
                        .map(|(source, len)| (self.integers(*source), *len))
                        .collect();
                    local::concat(*outer, &parts, &mut y);
                }
                _ => return Err(broken(&"integers that no operator makes")),
            }
            return Ok(Live {
                values: y.into(),
                maxima: Vec::new(),
            });
        }
        let mut y = self.prepared.pool.take(spec.elements);
        let mut maxima = Vec::new();
        let done = match &node.op {
            Op::Linear(linear) => self.linear(index, linear, &mut y, &mut maxima),
            Op::Gather {
                table,
                cols,
                indices,
            } => {
                let table = self.constant(*table).unwrap_or_default();
                let rows = table.len() / cols;
                for (y, number) in y.chunks_exact_mut(*cols).zip(self.integers(*indices)) {
                    let row = local::row(*number, rows)
                        .and_then(|row| table.get(row * cols..(row + 1) * cols));
                    y.copy_from_slice(row.ok_or_else(|| RunError::Row {
                        node: index,
                        name: node.name.clone(),
                        index: *number,
                    })?);
                }
                Ok(())
            }
            op => self.local(op, &mut y),
        };
        done.map_err(|err| broken(&err))?;
        Ok(Live {
            values: Values::F32(Arc::new(y)),
            maxima,
        })
    }

    fn local(&self, op: &Op, y: &mut Floats) -> Result<(), WrongLength> {
        match op {
            Op::Linear(_) | Op::Gather { .. } => {}
            Op::Maxima { input, count } => {
                let maxima = self
                    .live(*input)
                    .map(|live| live.maxima(self.prepared.isa, *count));
                let maxima = maxima.unwrap_or_default();
                y.iter_mut().zip(maxima).for_each(|(y, max)| *y = max);
            }
            Op::Attention {
                shape,
                batches,
                advance,
                inputs: [q, k, v],
                mask,
            } => {
                let mask = mask.map_or(&[][..], |mask| self.floats(mask));
                for batch in 0..*batches {
                    let part = |x, at: usize| from(x, batch * advance[at]);
                    let inputs = Inputs {
                        q: part(self.floats(*q), 0),
                        k: part(self.floats(*k), 1),
                        v: part(self.floats(*v), 2),
                        mask: part(mask, 3),
                    };
                    let out = y.get_mut(batch * advance[4]..).unwrap_or_default();
                    local::attend(self.prepared.isa, shape, inputs, out)?;
                }
            }
            Op::Products {
                shape,
                batches,
                advance,
                inputs: [a, b],
            } => {
                for batch in 0..*batches {
                    let a = from(self.floats(*a), batch * advance[0]);
                    let b = from(self.floats(*b), batch * advance[1]);
                    let out = y.get_mut(batch * advance[2]..).unwrap_or_default();
                    products_with(self.prepared.isa, shape, a, b, out)?;
                }
            }
            Op::Chain { input, steps } => {
                copy(self.floats(*input), y);
                let others: Vec<&[f32]> = op
                    .sources()
                    .iter()
                    .skip(1)
                    .map(|source| self.floats(*source))
                    .collect();
                local::steps(self.prepared.isa, steps, &others, y)?;
            }
            Op::Depthwise {
                input,
                windows,
                filters,
                bias,
            } => {
                let filters = self.constant(*filters).unwrap_or_default();
                let bias = bias
                    .and_then(|bias| self.constant(bias))
                    .unwrap_or_default();
                depthwise_with(
                    self.prepared.isa,
                    windows,
                    filters,
                    bias,
                    self.floats(*input),
                    y,
                )?;
            }
            Op::LayerNorm {
                input,
                cols,
                epsilon,
                gamma,
                beta,
            } => {
                let vector = |id: &Option<ConstantId>| {
                    let values = id.and_then(|id| self.constant(id));
                    values.map(<[f32]>::to_vec)
                };
                let norm = LayerNorm {
                    epsilon: *epsilon,
                    gamma: vector(gamma),
                    beta: vector(beta),
                };
                local::normalise(self.prepared.isa, &norm, *cols, self.floats(*input), y)?;
            }
            Op::Softmax { input, cols } => {
                copy(self.floats(*input), y);
                softmax_with(self.prepared.isa, *cols, y)?;
            }
            Op::MaxPool { input, windows } => {
                max_pool_with(self.prepared.isa, windows, self.floats(*input), y)?
            }
            Op::SumPool {
                input,
                windows,
                divisor,
            } => sum_pool_with(self.prepared.isa, windows, *divisor, self.floats(*input), y)?,
            Op::SumRows {
                input,
                cols,
                factor,
            } => sum_rows_with(self.prepared.isa, *cols, *factor, self.floats(*input), y)?,
            Op::View { input, start, axes } => {
                local::view(*start, axes, self.floats(*input), y);
            }
            Op::Concat { outer, parts } => {
                let parts: Vec<_> = parts
                    .iter()
                    .map(|(source, len)| (self.floats(*source), *len))
                    .collect();
                local::concat(*outer, &parts, y);
            }
            Op::Cast { input } => {
                let x = self.integers(*input);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = local::cast(*x));
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        index: usize,
        linear: &Linear,
        y: &mut [f32],
        maxima: &mut Vec<MaxAbs>,
    ) -> Result<(), WrongLength> {
        let wrong = |expected: usize| WrongLength { expected, got: 0 };
        let mut scratch = std::mem::take(&mut self.scratch);
        let layer = self.prepared.linears.get(index).and_then(Option::as_ref);
        let layer = layer.ok_or(wrong(1))?;
        let spec = &linear.spec;
        let around = Around {
            isa: self.prepared.isa,
            shape: &spec.shape,
            bound: linear.bound,
            factor: self.constant(linear.factor).unwrap_or_default(),
            bias: linear.bias.and_then(|bias| self.constant(bias)),
            pre: linear.pre,
            post: linear.post,
            pool: None,
        };
        let (inputs, outputs) = (spec.shape.inputs(), spec.shape.outputs());
        let (rows, cols) = spec.shape.input_rows_cols();
        let x = self.floats(linear.input.into());
        let scales = self.floats(linear.maxima.into());
        let each = scales.len() / spec.images;
        let of = (
            linear.input,
            linear.maxima,
            linear.bound.steps(),
            rows,
            cols,
        );
        if scratch.of != Some(of) {
            scratch.of = None;
            scratch.halves.resize(spec.inputs(), 0);
            let images = x.chunks_exact(inputs).zip(scales.chunks_exact(each));
            for ((x, scales), halves) in images.zip(scratch.halves.chunks_exact_mut(inputs)) {
                around.quantise(x, scales, halves)?;
            }
            scratch.of = Some(of);
        }
        if scratch.words.len() < outputs {
            scratch.words.resize(outputs, 0);
        }
        let words = scratch.words.get_mut(..outputs).ok_or(wrong(outputs))?;
        let out_rows = spec.shape.output_rows_cols().0;
        *maxima = vec![MaxAbs::default(); spec.images * out_rows];
        let pool = linear.pool.as_ref().map(|windows| Windows {
            planes: out_rows,
            ..windows.clone()
        });
        let around = Around {
            pool: pool.as_ref(),
            ..around
        };
        let residual = linear.residual.map(|residual| self.floats(residual));
        let images = scratch
            .halves
            .chunks_exact(inputs)
            .zip(scales.chunks_exact(each));
        let results = y
            .chunks_exact_mut(y.len() / spec.images)
            .zip(maxima.chunks_exact_mut(out_rows));
        for (image, ((halves, scales), (y, maxima))) in images.zip(results).enumerate() {
            layer.apply(halves, words);
            let residual = residual.and_then(|all| all.get(image * outputs..(image + 1) * outputs));
            around.finish(words, scales, residual, &mut scratch.room, y, maxima)?;
        }
        self.scratch = scratch;
        Ok(())
    }
}

fn from(x: &[f32], start: usize) -> &[f32] {
    x.get(start..).unwrap_or_default()
}

fn copy(x: &[f32], y: &mut [f32]) {
    if x.len() == y.len() {
        y.copy_from_slice(x);
    }
}
