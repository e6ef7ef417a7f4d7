//! What lies between the layers: our own operators, movements, and single operations of floats.

use std::collections::HashMap;

use larvatus_graph::op::{Axis, Op, Spread, Step};
use larvatus_graph::{Kind, Source};
use larvatus_kernels::local::chain::{self, Operand};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::DimLike;
use tract_onnx::tract_core::ops::array::{Gather, MultiBroadcastTo, Slice, TypedConcat};
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cast::Cast;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::source::TypedSource;

use super::builder::axes_of;
use super::{Lowered, Lowering, WholeError};
use crate::model::local::{LocalOp, Work, binary};
use crate::model::rounds::Segment;
use crate::model::{engine, guarded, replaced};
use crate::plan::PlanError;

/// A node on its way, with what its inputs became.
struct At<'a> {
    name: &'a str,
    node: &'a TypedNode,
    inputs: Vec<Option<Lowered>>,
    /// The shape of its only output.
    shape: Vec<usize>,
}

impl At<'_> {
    fn refused(&self, why: &'static str) -> WholeError {
        WholeError::Operator {
            name: self.name.to_owned(),
            operator: self.node.op().name().to_string(),
            why,
        }
    }

    fn input(&self, slot: usize) -> Result<Lowered, WholeError> {
        let found = self.inputs.get(slot).cloned().flatten();
        found.ok_or_else(|| self.refused("an operand that is not of floats or integers"))
    }
}

impl Lowering {
    /// Local work between two rounds.
    pub(super) fn segment(&mut self, segment: &Segment) -> Result<(), WholeError> {
        let source = segment.source.clone();
        let graph = guarded(|| replaced(source).map_err(|err| engine(&err)));
        let graph = graph.map_err(PlanError::from)?;
        let order = graph.eval_order().map_err(|err| engine(&err));
        let order = order.map_err(PlanError::from)?;
        let mut made: HashMap<OutletId, Option<Lowered>> = HashMap::new();
        for (outlet, slot) in graph.inputs.iter().zip(&segment.inputs) {
            made.insert(*outlet, self.slots.get(slot).cloned());
        }
        for id in order {
            let node = graph.node(id);
            if node.op_is::<TypedSource>() {
                continue;
            }
            let outlet = OutletId::new(id, 0);
            if let Some(constant) = node.op_as::<Const>() {
                let value = constant.val();
                let lowered = self.builder.tensor(value).map(|source| Lowered {
                    source,
                    shape: value.shape().to_vec(),
                });
                made.insert(outlet, lowered);
                continue;
            }
            let inputs = node.inputs.iter();
            let inputs = inputs.map(|input| made.get(input).cloned().flatten());
            let mut at = At {
                name: &node.name,
                inputs: inputs.collect(),
                node,
                shape: Vec::new(),
            };
            let shape = graph.outlet_fact(outlet).ok();
            let shape = shape.and_then(|fact| fact.shape.as_concrete());
            let shape = shape.ok_or_else(|| at.refused("its shape depends on the data"))?;
            at.shape = shape.to_vec();
            if node.outputs.len() != 1 {
                return Err(at.refused("several outputs"));
            }
            let source = self.operator(&at)?;
            let shape = at.shape;
            made.insert(outlet, Some(Lowered { source, shape }));
        }
        for (outlet, slot) in graph.outputs.iter().zip(&segment.outputs) {
            if let Some(Some(lowered)) = made.get(outlet) {
                self.slots.insert(*slot, lowered.clone());
            }
        }
        Ok(())
    }

    fn operator(&mut self, at: &At<'_>) -> Result<Source, WholeError> {
        let node = at.node;
        if let Some(op) = node.op_as::<LocalOp>() {
            return self.local(at, op.work());
        }
        if let Some(axis) = node.op_as::<AxisOp>() {
            let input = at.input(0)?;
            if axis.only_shape() {
                return Ok(input.source);
            }
            let AxisOp::Move(from, to) = *axis else {
                return Err(at.refused("an unknown movement of axes"));
            };
            let mut axes = axes_of(&input.shape);
            if from >= axes.len() || to >= axes.len() {
                return Err(at.refused("an axis that is not there"));
            }
            let moved = axes.remove(from);
            axes.insert(to, moved);
            return Ok(self.view(at, input.source, 0, axes));
        }
        if let Some(slice) = node.op_as::<Slice>() {
            let input = at.input(0)?;
            let start = slice.start.to_usize();
            let start = start.map_err(|_| at.refused("a start that depends on the data"))?;
            let mut axes = axes_of(&input.shape);
            let axis = axes.get_mut(slice.axis);
            let axis = axis.ok_or_else(|| at.refused("an axis that is not there"))?;
            let first = start * axis.stride;
            axis.len = at.shape[slice.axis];
            return Ok(self.view(at, input.source, first, axes));
        }
        if node.op_is::<MultiBroadcastTo>() {
            let input = at.input(0)?;
            let axes = repeated(&input.shape, &at.shape);
            let axes = axes.ok_or_else(|| at.refused("a shape that does not repeat"))?;
            return Ok(self.view(at, input.source, 0, axes));
        }
        if let Some(concat) = node.op_as::<TypedConcat>() {
            let inner: usize = at.shape.iter().skip(concat.axis + 1).product();
            let outer = at.shape.iter().take(concat.axis).product();
            let parts = (0..node.inputs.len()).map(|slot| {
                let part = at.input(slot)?;
                Ok((part.source, part.shape[concat.axis] * inner))
            });
            let parts = parts.collect::<Result<Vec<_>, WholeError>>()?;
            if let [(only, _)] = parts[..] {
                return Ok(only);
            }
            return Ok(self
                .builder
                .node(at.name, Op::Concat { outer, parts })
                .into());
        }
        if let Some(gather) = node.op_as::<Gather>() {
            return self.gather(at, gather);
        }
        if let Some(cast) = node.op_as::<Cast>() {
            let input = at.input(0)?;
            return match (self.builder.of(input.source).0, cast.to) {
                (Kind::F32, DatumType::F32) | (Kind::I64, DatumType::I64) => Ok(input.source),
                (Kind::I64, DatumType::F32) => {
                    let input = input.source;
                    Ok(self.builder.node(at.name, Op::Cast { input }).into())
                }
                _ => Err(at.refused("types other than i64 to f32")),
            };
        }
        if let Some(op) = node.op_as::<TypedBinOp>() {
            return self.operation(at, op);
        }
        Err(at.refused("the graph engine's own"))
    }

    fn view(&mut self, at: &At<'_>, input: Source, start: usize, axes: Vec<Axis>) -> Source {
        let op = Op::View { input, start, axes };
        self.builder.node(at.name, op).into()
    }

    /// Rows of a table by tensor, or of a tensor by one number.
    fn gather(&mut self, at: &At<'_>, gather: &Gather) -> Result<Source, WholeError> {
        let (data, indices) = (at.input(0)?, at.input(1)?);
        let len = *data
            .shape
            .get(gather.axis)
            .ok_or_else(|| at.refused("an axis that is not there"))?;
        let rest: usize = data.shape.iter().skip(gather.axis + 1).product();
        if let Some(numbers) = self.builder.integers(indices.source) {
            let [number] = numbers[..] else {
                return Err(at.refused("several constant numbers"));
            };
            let row = if number < 0 {
                number + i64::try_from(len).unwrap_or(i64::MAX)
            } else {
                number
            };
            let row = usize::try_from(row).ok().filter(|row| *row < len);
            let row = row.ok_or_else(|| at.refused("a row that is not there"))?;
            let outer: usize = data.shape.iter().take(gather.axis).product();
            let axes = vec![
                Axis {
                    len: outer,
                    stride: len * rest,
                },
                Axis {
                    len: rest,
                    stride: 1,
                },
            ];
            return Ok(self.view(at, data.source, row * rest, axes));
        }
        let Source::Constant(table) = data.source else {
            return Err(at.refused("a table that depends on the input"));
        };
        if gather.axis != 0 || self.builder.of(data.source).0 != Kind::F32 {
            return Err(at.refused("a table of another form"));
        }
        let op = Op::Gather {
            table,
            cols: rest,
            indices: indices.source,
        };
        Ok(self.builder.node(at.name, op).into())
    }

    /// One operation of two tensors, the smaller one repeated.
    fn operation(&mut self, at: &At<'_>, op: &TypedBinOp) -> Result<Source, WholeError> {
        let (a, b) = (at.input(0)?, at.input(1)?);
        let floats = |lowered: &Lowered| self.builder.of(lowered.source).0 == Kind::F32;
        if op.1.is_some() || !floats(&a) || !floats(&b) {
            return Err(at.refused("operands that are not of floats"));
        }
        let full = |lowered: &Lowered| {
            lowered.shape.iter().product::<usize>() == at.shape.iter().product::<usize>()
        };
        let swapped = !full(&a) && full(&b);
        let (main, other) = if swapped { (b, a) } else { (a, b) };
        let binary = binary(op, swapped);
        let binary = binary.ok_or_else(|| at.refused("an operation that we do not have"))?;
        let main = self.spread_out(at, &main)?;
        let spread = match run(&other.shape, &at.shape) {
            Some(run) => Spread {
                source: other.source,
                run,
            },
            None => Spread {
                source: self.spread_out(at, &other)?,
                run: 1,
            },
        };
        let op = Op::Chain {
            input: main,
            steps: vec![Step::Binary(binary, spread)],
        };
        Ok(self.builder.node(at.name, op).into())
    }

    /// The tensor repeated to the node's shape.
    fn spread_out(&mut self, at: &At<'_>, lowered: &Lowered) -> Result<Source, WholeError> {
        if lowered.shape.iter().product::<usize>() == at.shape.iter().product::<usize>() {
            return Ok(lowered.source);
        }
        let axes = repeated(&lowered.shape, &at.shape);
        let axes = axes.ok_or_else(|| at.refused("shapes that do not repeat"))?;
        Ok(self.view(at, lowered.source, 0, axes))
    }

    /// An operator of ours.
    fn local(&mut self, at: &At<'_>, work: &Work) -> Result<Source, WholeError> {
        let input = at.input(0)?.source;
        let op = match work {
            Work::Attention {
                shape,
                batches,
                advance,
            } => Op::Attention {
                shape: shape.clone(),
                batches: *batches,
                advance: *advance,
                inputs: [input, at.input(1)?.source, at.input(2)?.source],
                mask: match at.inputs.len() {
                    3 => None,
                    _ => Some(at.input(3)?.source),
                },
            },
            Work::Products {
                shape,
                batches,
                advance,
            } => Op::Products {
                shape: shape.clone(),
                batches: *batches,
                advance: *advance,
                inputs: [input, at.input(1)?.source],
            },
            Work::Chain(steps) => Op::Chain {
                input,
                steps: self.steps(at, steps)?,
            },
            Work::Depthwise {
                windows,
                filters,
                bias,
            } => Op::Depthwise {
                input,
                windows: windows.clone(),
                filters: self
                    .builder
                    .constant(larvatus_graph::Data::F32(filters.clone())),
                bias: Some(
                    self.builder
                        .constant(larvatus_graph::Data::F32(bias.clone())),
                ),
            },
            Work::LayerNorm { norm, cols } => {
                let mut vector = |values: &Option<Vec<f32>>| {
                    let data = values.clone().map(larvatus_graph::Data::F32);
                    data.map(|data| self.builder.constant(data))
                };
                Op::LayerNorm {
                    input,
                    cols: *cols,
                    epsilon: norm.epsilon,
                    gamma: vector(&norm.gamma),
                    beta: vector(&norm.beta),
                }
            }
            Work::MaxPool(windows) => Op::MaxPool {
                input,
                windows: windows.clone(),
            },
            Work::Softmax { cols } => Op::Softmax { input, cols: *cols },
            Work::SumPool { windows, divisor } => Op::SumPool {
                input,
                windows: windows.clone(),
                divisor: *divisor,
            },
            Work::SumRows { cols, factor } => Op::SumRows {
                input,
                cols: *cols,
                factor: *factor,
            },
            Work::Thin {
                input: [height, width],
                stride: [down, across],
            } => {
                let plane = height * width;
                let planes = self.builder.of(input).1 / plane;
                let axis = |len, stride| Axis { len, stride };
                let axes = vec![
                    axis(planes, plane),
                    axis(height.div_ceil(*down), down * width),
                    axis(width.div_ceil(*across), *across),
                ];
                return Ok(self.view(at, input, 0, axes));
            }
        };
        let made = self.builder.node(at.name, op);
        if let [images, channels, lines, width] = at.shape[..] {
            let order = larvatus_graph::Order::lines(images, channels, lines, width);
            if matches!(
                work,
                Work::Depthwise { .. } | Work::MaxPool(_) | Work::SumPool { .. } | Work::Chain(_)
            ) {
                self.builder.hint(made, order, false);
            }
        }
        Ok(made.into())
    }

    fn steps(&mut self, at: &At<'_>, steps: &[chain::Step]) -> Result<Vec<Step>, WholeError> {
        let mut constant = |values: Vec<f32>| {
            let data = larvatus_graph::Data::F32(values);
            Source::Constant(self.builder.constant(data))
        };
        let each = steps.iter().map(|step| match step {
            chain::Step::Activation(activation) => Ok(Step::Activation(*activation)),
            chain::Step::Binary(op, operand) => {
                let (source, run) = match operand {
                    Operand::Number(number) => (constant(vec![*number]), 1),
                    Operand::Columns(values) => (constant(values.clone()), 1),
                    Operand::Runs { values, run } => (constant(values.clone()), *run),
                    // The first input is what the steps change.
                    Operand::Input(index) => (at.input(index + 1)?.source, 1),
                };
                Ok(Step::Binary(*op, Spread { source, run }))
            }
        });
        each.collect()
    }
}

/// The axes that repeat a tensor to a shape of the same rank or a higher one.
fn repeated(from: &[usize], to: &[usize]) -> Option<Vec<Axis>> {
    let missing = to.len().checked_sub(from.len())?;
    let own = axes_of(from);
    let axes = to.iter().enumerate().map(|(axis, len)| {
        let own = axis.checked_sub(missing).and_then(|axis| own.get(axis));
        match own {
            Some(own) if own.len == *len => Some(*own),
            Some(own) if own.len != 1 => None,
            _ => Some(Axis {
                len: *len,
                stride: 0,
            }),
        }
    });
    axes.collect()
}

/// Neighbours that share a value, where a tensor varies along neighbouring axes alone.
fn run(from: &[usize], to: &[usize]) -> Option<usize> {
    let missing = to.len().checked_sub(from.len())?;
    let to = &to[missing..];
    let Some(first) = from.iter().position(|len| *len != 1) else {
        return Some(1);
    };
    let end = from.iter().rposition(|len| *len != 1)? + 1;
    (from[first..end] == to[first..end]).then(|| to[end..].iter().product())
}
