//! Nodes in their order, constants as they come.

use std::collections::HashMap;

use larvatus_graph::op::{Axis, Op};
use larvatus_graph::{ConstantId, Data, Kind, Node, Order, Source, TensorId};
use larvatus_proto::commit::LEAF;
use tract_onnx::prelude::{DatumType, Tensor};

use crate::tensor::floats;

/// Leaves of an image that is opened whole.
const FEW: usize = 4;

/// Axes of a dense tensor of this shape.
pub(super) fn axes_of(shape: &[usize]) -> Vec<Axis> {
    let step = |axis: usize| shape.iter().skip(axis + 1).product();
    let axes = shape.iter().enumerate();
    axes.map(|(axis, len)| Axis {
        len: *len,
        stride: step(axis),
    })
    .collect()
}

/// A name as a graph takes it.
pub(super) fn printable(name: &str) -> String {
    let clean = name.chars().filter(|c| !c.is_control());
    let mut out = String::new();
    for c in clean {
        if out.len() + c.len_utf8() > larvatus_graph::graph::MAX_NAME {
            break;
        }
        out.push(c);
    }
    out
}

/// A graph that grows.
pub(super) struct Builder {
    /// Kind and elements of all tensors.
    tensors: Vec<(Kind, usize)>,
    nodes: Vec<Node>,
    constants: Vec<Data>,
    /// The order of a tensor, and whether a reader asked for it.
    hints: HashMap<TensorId, (Order, bool)>,
    maxima: HashMap<(TensorId, usize), TensorId>,
    inputs: usize,
}

impl Builder {
    pub(super) fn new(inputs: Vec<(Kind, usize)>) -> Self {
        Self {
            inputs: inputs.len(),
            tensors: inputs,
            nodes: Vec::new(),
            constants: Vec::new(),
            hints: HashMap::new(),
            maxima: HashMap::new(),
        }
    }

    /// Kind and elements of a source.
    pub(super) fn of(&self, source: Source) -> (Kind, usize) {
        match source {
            Source::Tensor(id) => self.tensors[id.index()],
            Source::Constant(id) => match &self.constants[id.index()] {
                Data::I8(values) => (Kind::F32, values.len()),
                Data::F32(values) => (Kind::F32, values.len()),
                Data::I64(values) => (Kind::I64, values.len()),
            },
        }
    }

    pub(super) fn constant(&mut self, data: Data) -> ConstantId {
        self.constants.push(data);
        ConstantId(u32::try_from(self.constants.len() - 1).unwrap_or(u32::MAX))
    }

    /// A tensor that is known when the plan is made, if it is of floats or integers.
    pub(super) fn tensor(&mut self, value: &Tensor) -> Option<Source> {
        let data = match floats(value) {
            Some(values) => Data::F32(values.to_vec()),
            None => {
                let wide = match value.datum_type() {
                    DatumType::I64 | DatumType::I32 | DatumType::TDim => {
                        value.cast_to::<i64>().ok()?
                    }
                    _ => return None,
                };
                let plain = wide.try_as_plain_ram().ok()?;
                Data::I64(plain.as_slice::<i64>().ok()?.to_vec())
            }
        };
        Some(Source::Constant(self.constant(data)))
    }

    /// The integers of a constant.
    pub(super) fn integers(&self, source: Source) -> Option<&[i64]> {
        match source {
            Source::Constant(id) => match self.constants.get(id.index())? {
                Data::I64(values) => Some(values),
                _ => None,
            },
            Source::Tensor(_) => None,
        }
    }

    /// Appends a node and returns what it makes.
    pub(super) fn node(&mut self, name: &str, op: Op) -> TensorId {
        let made = self.size(&op);
        self.tensors.push(made);
        self.nodes.push(Node {
            name: printable(name),
            op,
            order: Order::Flat,
        });
        TensorId(u32::try_from(self.tensors.len() - 1).unwrap_or(u32::MAX))
    }

    fn size(&self, op: &Op) -> (Kind, usize) {
        let elements = match op {
            Op::Linear(linear) => {
                let spec = &linear.spec;
                let pooled = linear.pool.as_ref();
                pooled.map_or_else(
                    || spec.outputs(),
                    |pool| pool.planes * pool.output[0] * pool.output[1],
                )
            }
            Op::Maxima { count, .. } => *count,
            Op::Attention { shape, batches, .. } => {
                batches * shape.heads * shape.queries * shape.width
            }
            Op::Products { shape, batches, .. } => {
                batches * shape.matrices * shape.rows * shape.cols
            }
            Op::Chain { input, .. }
            | Op::LayerNorm { input, .. }
            | Op::Softmax { input, .. }
            | Op::Cast { input } => self.of(*input).1,
            Op::Depthwise { windows, .. }
            | Op::MaxPool { windows, .. }
            | Op::SumPool { windows, .. } => windows.planes * windows.output[0] * windows.output[1],
            Op::SumRows { input, cols, .. } => self.of(*input).1 / cols,
            Op::View { input, axes, .. } => {
                let elements = axes.iter().map(|axis| axis.len).product();
                return (self.of(*input).0, elements);
            }
            Op::Concat { outer, parts } => {
                let inner: usize = parts.iter().map(|part| part.1).sum();
                let kind = parts.first().map_or(Kind::F32, |part| self.of(part.0).0);
                return (kind, outer * inner);
            }
            Op::Gather { cols, indices, .. } => self.of(*indices).1 * cols,
        };
        (Kind::F32, elements)
    }

    /// The source as a tensor of the run.
    pub(super) fn as_tensor(&mut self, name: &str, source: Source) -> TensorId {
        match source {
            Source::Tensor(id) => id,
            Source::Constant(_) => {
                let axes = axes_of(&[self.of(source).1]);
                let copy = Op::View {
                    input: source,
                    start: 0,
                    axes,
                };
                self.node(name, copy)
            }
        }
    }

    /// The maxima of equal runs of a tensor, made once.
    pub(super) fn maxima(&mut self, name: &str, input: TensorId, count: usize) -> TensorId {
        if let Some(made) = self.maxima.get(&(input, count)) {
            return *made;
        }
        let made = self.node(&format!("{name}.max"), Op::Maxima { input, count });
        self.maxima.insert((input, count), made);
        made
    }

    /// Proposes an order for a tensor; a reader's wins over its maker's, and the first of equals. Images of few leaves stay
    /// as they lie: to open them whole costs little, and to gather their short lines costs the worker more.
    pub(super) fn hint(&mut self, tensor: TensorId, order: Order, reader: bool) {
        let fits = match order {
            Order::Flat => false,
            Order::Lines {
                images,
                channels,
                lines,
                width,
            } => {
                let image = channels * lines * width;
                images * image == self.tensors[tensor.index()].1 && 4 * image > FEW * LEAF
            }
        };
        let known = self
            .hints
            .get(&tensor)
            .is_some_and(|known| known.1 || !reader);
        if fits && !known {
            self.hints.insert(tensor, (order, reader));
        }
    }

    /// Orders of the inputs.
    pub(super) fn orders(&self) -> Vec<Order> {
        let order = |id: u32| {
            self.hints
                .get(&TensorId(id))
                .map_or(Order::Flat, |hint| hint.0)
        };
        (0..).map(order).take(self.inputs).collect()
    }

    /// Constants as nodes name them first, and the nodes.
    pub(super) fn finish(mut self) -> (Vec<Data>, Vec<Node>) {
        let mut numbers: HashMap<ConstantId, ConstantId> = HashMap::new();
        for (index, node) in self.nodes.iter_mut().enumerate() {
            let id = TensorId(u32::try_from(self.inputs + index).unwrap_or(u32::MAX));
            if let Some((order, _)) = self.hints.get(&id) {
                node.order = *order;
            }
            for source in node.op.sources() {
                if let Source::Constant(id) = source {
                    let next = ConstantId(u32::try_from(numbers.len()).unwrap_or(u32::MAX));
                    numbers.entry(id).or_insert(next);
                }
            }
            node.op
                .renumber(|id| numbers.get(&id).copied().unwrap_or(id));
        }
        let mut constants: Vec<Option<Data>> = Vec::new();
        constants.resize_with(numbers.len(), || None);
        for (index, data) in (0..).map(ConstantId).zip(self.constants) {
            if let Some(place) = numbers.get(&index)
                && let Some(slot) = constants.get_mut(place.index())
            {
                *slot = Some(data);
            }
        }
        (constants.into_iter().flatten().collect(), self.nodes)
    }
}
