//! A part of a graph as a graph of its own: what lies between two cuts.
//!
//! A part has the same nodes over the same constants, so running the parts one after the other gives the tensors of the
//! whole, bit for bit. Maxima are computed again in every part that reads them.

use std::collections::{BTreeSet, HashMap};

use crate::cut::{Cut, counted};
use crate::graph::{Element, Graph, Input, Node, Output};
use crate::model::{Data, Model, ModelError};
use crate::op::{Op, Step};
use crate::tensor::{ConstantId, Source, TensorId};

/// Why a graph has no such part.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PartError {
    /// The second cut does not lie behind the first.
    #[error("the second cut is not behind the first: node {node} is in front of the first alone")]
    Order {
        /// A node that shows it.
        node: usize,
    },
    /// The part is empty.
    #[error("there is nothing between the cuts")]
    Empty,
    /// The part is refused as a graph.
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// A part of a graph.
#[derive(Clone, Debug)]
pub struct Part {
    model: Model,
    inputs: Vec<TensorId>,
    outputs: Vec<TensorId>,
}

impl Part {
    /// The part as a graph.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The tensors of the whole that go in, in the order of the part's inputs.
    pub fn inputs(&self) -> &[TensorId] {
        &self.inputs
    }

    /// The tensors of the whole that come out.
    pub fn outputs(&self) -> &[TensorId] {
        &self.outputs
    }
}

impl Model {
    /// The nodes behind `from` (the inputs, where none is given) and in front of `to` (the outputs, where none is given).
    ///
    /// # Errors
    /// [`PartError`].
    pub fn part(&self, from: Option<&Cut>, to: Option<&Cut>) -> Result<Part, PartError> {
        let graph = self.graph();
        let behind = |node: usize| from.is_some_and(|cut| cut.front()[node]);
        let before = |node: usize| to.is_none_or(|cut| cut.front()[node]);
        let mut taken = BTreeSet::new();
        // What no output needs would have a part read what does not cross.
        for (node, counted) in counted(graph).into_iter().enumerate() {
            if behind(node) && !before(node) {
                return Err(PartError::Order { node });
            }
            if counted && !behind(node) && before(node) {
                taken.insert(node);
            }
        }
        let wanted: Vec<TensorId> = match to {
            Some(cut) => cut.tensors().to_vec(),
            None => graph.outputs().iter().map(|output| output.tensor).collect(),
        };
        taken.extend(maxima_of(graph, &taken, &wanted));
        if taken.is_empty() {
            return Err(PartError::Empty);
        }
        let (mut reads, mut outputs) = (BTreeSet::new(), Vec::new());
        for node in &taken {
            for source in graph.nodes()[*node].op.sources() {
                if let Source::Tensor(id) = source
                    && graph.maker(id).is_none_or(|made| !taken.contains(&made))
                {
                    reads.insert(id);
                }
            }
        }
        let inputs: Vec<TensorId> = reads.into_iter().collect();
        for id in wanted {
            if graph.maker(id).is_some_and(|made| taken.contains(&made)) {
                outputs.push(id);
            }
        }
        let model = self.assemble(&taken, &inputs, &outputs)?;
        Ok(Part {
            model,
            inputs,
            outputs,
        })
    }

    fn assemble(
        &self,
        taken: &BTreeSet<usize>,
        inputs: &[TensorId],
        outputs: &[TensorId],
    ) -> Result<Self, PartError> {
        let graph = self.graph();
        let mut numbers: HashMap<TensorId, TensorId> = HashMap::new();
        let made = taken.iter().map(|node| graph.made_by(*node));
        for (new, old) in (0..).zip(inputs.iter().copied().chain(made)) {
            numbers.insert(old, TensorId(new));
        }
        let number = |id: TensorId| numbers.get(&id).copied().unwrap_or(id);
        let mut constants: HashMap<ConstantId, ConstantId> = HashMap::new();
        let (mut nodes, mut data) = (Vec::new(), Vec::new());
        for node in taken.iter().map(|node| &graph.nodes()[*node]) {
            for source in node.op.sources() {
                if let Source::Constant(id) = source
                    && !constants.contains_key(&id)
                {
                    let next = ConstantId(u32::try_from(data.len()).unwrap_or(u32::MAX));
                    constants.insert(id, next);
                    data.push(self.data(id));
                }
            }
            let mut op = node.op.clone();
            rewire(&mut op, number);
            op.renumber(|id| constants.get(&id).copied().unwrap_or(id));
            nodes.push(Node { op, ..node.clone() });
        }
        let ports = inputs.iter().filter_map(|id| {
            let spec = *graph.tensors().get(id.index())?;
            let own = graph.inputs().get(id.index());
            let shape = own.map_or_else(|| vec![spec.elements], |input| input.shape.clone());
            let name = own.map_or_else(|| name_of(graph, *id), |input| input.name.clone());
            Some(Input { name, shape, spec })
        });
        let results = outputs.iter().filter_map(|id| {
            let own = graph.outputs().iter().find(|output| output.tensor == *id);
            let elements = graph.tensors().get(id.index())?.elements;
            Some(Output {
                name: own.map_or_else(|| name_of(graph, *id), |output| output.name.clone()),
                shape: own.map_or_else(|| vec![elements], |output| output.shape.clone()),
                tensor: number(*id),
            })
        });
        let specs = data.iter().map(Data::spec).collect();
        let part = Graph::new(ports.collect(), specs, nodes, results.collect());
        let part = part.and_then(|part| part.with_grain(graph.grain()));
        Ok(Self::new(part.map_err(ModelError::from)?, &data)?)
    }

    /// A constant's elements; empty where there is none of this number.
    pub fn data(&self, id: ConstantId) -> Data {
        let constants = self.constants();
        let Some(spec) = constants.spec(id) else {
            return Data::F32(Vec::new());
        };
        match spec.element {
            Element::I8 => {
                let bytes = constants.bytes(id).iter();
                Data::I8(bytes.map(|byte| byte.cast_signed()).collect())
            }
            Element::F32 => Data::F32(constants.all_floats(id)),
            Element::I64 => Data::I64(constants.integers(id, 0..spec.elements)),
        }
    }
}

impl Graph {
    /// Most bytes of tensors that are alive at one time, where each is dropped after its last reader.
    pub fn peak(&self) -> u64 {
        let mut last = vec![0; self.tensors().len()];
        for (node, each) in self.nodes().iter().enumerate() {
            for source in each.op.sources() {
                if let Source::Tensor(id) = source {
                    last[id.index()] = node;
                }
            }
        }
        for output in self.outputs() {
            last[output.tensor.index()] = usize::MAX;
        }
        let mut alive: u64 = self.inputs().iter().map(|input| input.spec.bytes()).sum();
        let mut most = alive;
        for node in 0..self.nodes().len() {
            let made = self.made_by(node).index();
            alive += self.tensors()[made].bytes();
            most = most.max(alive);
            let over = (0..=made).filter(|id| last[*id] == node);
            alive -= over.map(|id| self.tensors()[id].bytes()).sum::<u64>();
        }
        most
    }
}

/// What makes a tensor.
fn name_of(graph: &Graph, id: TensorId) -> String {
    let node = graph.maker(id).and_then(|node| graph.nodes().get(node));
    node.map(|node| node.name.clone()).unwrap_or_default()
}

/// The maxima that the nodes read or that are wanted.
fn maxima_of(graph: &Graph, taken: &BTreeSet<usize>, wanted: &[TensorId]) -> Vec<usize> {
    let read = taken
        .iter()
        .flat_map(|node| graph.nodes()[*node].op.sources());
    let read = read.filter_map(|source| match source {
        Source::Tensor(id) => Some(id),
        Source::Constant(_) => None,
    });
    let mut waiting: Vec<TensorId> = read.chain(wanted.iter().copied()).collect();
    let mut found = Vec::new();
    while let Some(id) = waiting.pop() {
        if let Some(node) = graph.maker(id)
            && let Op::Maxima { input, .. } = graph.nodes()[node].op
            && !found.contains(&node)
        {
            found.push(node);
            waiting.push(input);
        }
    }
    found
}

/// Numbers the tensors that an operator reads anew.
fn rewire(op: &mut Op, number: impl Fn(TensorId) -> TensorId) {
    let source = |source: &mut Source| {
        if let Source::Tensor(id) = source {
            *id = number(*id);
        }
    };
    match op {
        Op::Linear(linear) => {
            linear.input = number(linear.input);
            linear.maxima = number(linear.maxima);
            linear.residual.iter_mut().for_each(source);
        }
        Op::Maxima { input, .. } => *input = number(*input),
        Op::Attention { inputs, mask, .. } => inputs.iter_mut().chain(mask).for_each(source),
        Op::Products { inputs, .. } => inputs.iter_mut().for_each(source),
        Op::Chain { input, steps } => {
            source(input);
            for step in steps {
                if let Step::Binary(_, spread) = step {
                    source(&mut spread.source);
                }
            }
        }
        Op::Depthwise { input, .. }
        | Op::LayerNorm { input, .. }
        | Op::Softmax { input, .. }
        | Op::MaxPool { input, .. }
        | Op::SumPool { input, .. }
        | Op::SumRows { input, .. }
        | Op::View { input, .. }
        | Op::Cast { input } => source(input),
        Op::Concat { parts, .. } => parts.iter_mut().for_each(|part| source(&mut part.0)),
        Op::Gather { indices, .. } => source(indices),
    }
}
