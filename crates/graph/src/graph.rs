//! A network as a list of nodes over numbered tensors, well formed by construction.

use larvatus_proto::commit::{CommitError, Layout};
use larvatus_proto::program::MAX_WORDS;
use larvatus_proto::wire::DecodeError;

use crate::op::{Lookup, Made, Op};
use crate::tensor::{Kind, Order, Source, TensorId, TensorSpec, Values};
use crate::units::{Grain, Units};

/// Most nodes of a graph.
pub const MAX_NODES: usize = 1 << 14;
/// Most inputs, and most outputs.
pub const MAX_PORTS: usize = 1 << 8;
/// Most units.
pub const MAX_UNITS: u32 = 1 << 24;
/// Most axes of an input's or output's shape.
pub const MAX_RANK: usize = 16;
/// Most bytes of a name.
pub const MAX_NAME: usize = 256;

/// What is wrong with a node or a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Problem(pub &'static str);

/// Why a graph is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphError {
    /// The bytes are not the one encoding of a graph.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A node does not fit what it reads.
    #[error("node {node} ({name}): {problem}")]
    Node {
        /// Its number.
        node: usize,
        /// Its name.
        name: String,
        /// What does not fit.
        problem: &'static str,
    },
    /// An input, an output or the list of constants does not fit.
    #[error("graph: {problem}")]
    Ports {
        /// What does not fit.
        problem: &'static str,
    },
    /// The trace would be too large.
    #[error("trace: {0}")]
    Trace(#[from] CommitError),
}

fn ports(problem: &'static str) -> GraphError {
    GraphError::Ports { problem }
}

/// What a constant or tensor holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Signed bytes: weights.
    I8,
    /// IEEE-754 binary32.
    F32,
    /// 64-bit integers.
    I64,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::I8 => 1,
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }
}

/// A constant's type and size; its elements lie outside of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConstantSpec {
    /// What its elements are.
    pub element: Element,
    /// How many.
    pub elements: usize,
}

impl ConstantSpec {
    /// Its bytes.
    pub fn bytes(&self) -> u64 {
        self.elements as u64 * self.element.bytes() as u64
    }
}

/// Something that goes in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name.
    pub name: String,
    /// Its shape, for people and for checking; the elements are dense and row-major.
    pub shape: Vec<usize>,
    /// The tensor.
    pub spec: TensorSpec,
}

/// Something that comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// The tensor, which a node makes.
    pub tensor: TensorId,
}

/// One operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name, for people.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// The order in which its result is committed to.
    pub order: Order,
}

/// A network with one meaning: the same inputs give the same tensors, bit for bit, on every machine.
#[derive(Clone, Debug)]
pub struct Graph {
    inputs: Vec<Input>,
    constants: Vec<ConstantSpec>,
    nodes: Vec<Node>,
    outputs: Vec<Output>,
    /// Inputs, then what the nodes make.
    tensors: Vec<TensorSpec>,
    /// Cost of each node.
    costs: Vec<u64>,
    /// Where each tensor stands in the trace.
    places: Vec<u32>,
    layout: Layout,
    grain: Grain,
    units: Units,
}

/// Equal graphs have equal encodings; the rest follows.
impl PartialEq for Graph {
    fn eq(&self, other: &Self) -> bool {
        (&self.inputs, &self.constants, &self.nodes, &self.outputs)
            == (
                &other.inputs,
                &other.constants,
                &other.nodes,
                &other.outputs,
            )
    }
}

/// What is known while nodes are checked one after the other.
struct Known<'a> {
    tensors: &'a [TensorSpec],
    constants: &'a [ConstantSpec],
}

impl Lookup for Known<'_> {
    fn source(&self, source: Source) -> Result<(Element, usize), Problem> {
        match source {
            Source::Tensor(id) => self.tensors.get(id.index()).map(|spec| {
                let element = match spec.kind {
                    Kind::F32 => Element::F32,
                    Kind::I64 => Element::I64,
                };
                (element, spec.elements)
            }),
            Source::Constant(id) => {
                let spec = self.constants.get(id.index());
                spec.map(|spec| (spec.element, spec.elements))
            }
        }
        .ok_or(Problem("an operand that is not there"))
    }
}

impl Graph {
    /// Puts a graph together.
    ///
    /// # Errors
    /// [`GraphError`] where a count exceeds its limit, a node reads what is not there or does not fit it, an output is
    /// no node's or stands twice, or the constants are not numbered as nodes name them first.
    pub fn new(
        inputs: Vec<Input>,
        constants: Vec<ConstantSpec>,
        nodes: Vec<Node>,
        outputs: Vec<Output>,
    ) -> Result<Self, GraphError> {
        if inputs.len() > MAX_PORTS || outputs.len() > MAX_PORTS || nodes.len() > MAX_NODES {
            return Err(ports("too many inputs, outputs or nodes"));
        }
        if inputs.is_empty() || outputs.is_empty() {
            return Err(ports("nothing goes in or comes out"));
        }
        let mut tensors = Vec::with_capacity(inputs.len() + nodes.len());
        for input in &inputs {
            check_port(&input.name, &input.shape, input.spec.elements)?;
            input.spec.check().map_err(|problem| ports(problem.0))?;
            tensors.push(input.spec);
        }
        for constant in &constants {
            if constant.elements == 0 || constant.elements > MAX_WORDS {
                return Err(ports("a constant that is empty or too large"));
            }
        }
        let mut costs = Vec::with_capacity(nodes.len());
        let mut named = 0_u32;
        for (index, node) in nodes.iter().enumerate() {
            let refused = |problem: Problem| GraphError::Node {
                node: index,
                name: node.name.clone(),
                problem: problem.0,
            };
            check_name(&node.name).map_err(refused)?;
            let known = Known {
                tensors: &tensors,
                constants: &constants,
            };
            let Made {
                kind,
                elements,
                cost,
            } = node.op.check(&known).map_err(refused)?;
            for source in node.op.sources() {
                if let Source::Constant(id) = source {
                    if id.0 > named {
                        return Err(refused(Problem("a constant out of its turn")));
                    }
                    named = named.max(id.0 + 1);
                }
            }
            let spec = TensorSpec {
                kind,
                elements,
                order: node.order,
            };
            spec.check().map_err(refused)?;
            tensors.push(spec);
            costs.push(cost);
        }
        if named as usize != constants.len() {
            return Err(ports("a constant that no node reads"));
        }
        let places = places(inputs.len(), tensors.len(), &outputs)?;
        for output in &outputs {
            let spec = tensors.get(output.tensor.index());
            let elements = spec.map_or(0, |spec| spec.elements);
            check_port(&output.name, &output.shape, elements)?;
        }
        let mut lengths = vec![0; tensors.len()];
        for (spec, place) in tensors.iter().zip(&places) {
            if let Some(length) = lengths.get_mut(*place as usize) {
                *length = spec.bytes();
            }
        }
        let layout = Layout::new(lengths)?;
        let grain = Grain::default();
        let units = Units::new(grain, &inputs, &nodes, &tensors).map_err(|err| ports(err.0))?;
        Ok(Self {
            inputs,
            constants,
            nodes,
            outputs,
            tensors,
            costs,
            places,
            layout,
            grain,
            units,
        })
    }

    /// The same with units of another size.
    ///
    /// # Errors
    /// [`GraphError`] where that makes more than [`MAX_UNITS`] of them.
    pub fn with_grain(mut self, grain: Grain) -> Result<Self, GraphError> {
        let units = Units::new(grain, &self.inputs, &self.nodes, &self.tensors);
        self.units = units.map_err(|err| ports(err.0))?;
        self.grain = grain;
        Ok(self)
    }

    /// How large units are.
    pub fn grain(&self) -> Grain {
        self.grain
    }

    /// What goes in: the first tensors of the trace.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// What comes out: the last tensors of the trace.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// The constants, in the order of their bytes.
    pub fn constants(&self) -> &[ConstantSpec] {
        &self.constants
    }

    /// The nodes, in the order in which they run.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All tensors: inputs, then what each node makes.
    pub fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    /// The tensor that a node makes.
    pub fn made_by(&self, node: usize) -> TensorId {
        TensorId(u32::try_from(self.inputs.len() + node).unwrap_or(u32::MAX))
    }

    /// The node that makes a tensor; `None` for inputs.
    pub fn maker(&self, tensor: TensorId) -> Option<usize> {
        tensor.index().checked_sub(self.inputs.len())
    }

    /// Lengths of the committed tensors: inputs, what nodes make in their order, and outputs at the end.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where a tensor stands in the trace.
    pub fn place(&self, tensor: TensorId) -> u32 {
        self.places.get(tensor.index()).copied().unwrap_or(u32::MAX)
    }

    /// Bytes of a trace.
    pub fn trace_bytes(&self) -> u64 {
        self.layout.lengths().iter().sum()
    }

    /// Bytes of the constants.
    pub fn weight_bytes(&self) -> u64 {
        self.constants.iter().map(ConstantSpec::bytes).sum()
    }

    /// Multiplications of linear maps and products, and elements of everything else.
    pub fn cost(&self) -> u64 {
        self.costs
            .iter()
            .fold(0, |all, cost| all.saturating_add(*cost))
    }

    /// The cost of one node.
    pub fn node_cost(&self, node: usize) -> u64 {
        self.costs.get(node).copied().unwrap_or(0)
    }

    /// A bound on the bytes that a run takes: its trace, and what its largest node needs beside that.
    pub fn memory(&self) -> u64 {
        let scratch = |node: &Node| match &node.op {
            Op::Linear(linear) => {
                let spec = &linear.spec;
                // Integers in, words out, what is pooled later, and the limbs of a kernel.
                8 * (spec.inputs() as u64) + 8 * (spec.outputs() as u64)
            }
            op => op
                .sources()
                .iter()
                .map(|source| match source {
                    Source::Tensor(id) => self.tensors.get(id.index()).map_or(0, TensorSpec::bytes),
                    Source::Constant(id) => self
                        .constants
                        .get(id.index())
                        .map_or(0, ConstantSpec::bytes),
                })
                .fold(0, u64::saturating_add),
        };
        let most = self.nodes.iter().map(scratch).max().unwrap_or(0);
        self.trace_bytes().saturating_add(most)
    }

    pub(crate) fn units_table(&self) -> &Units {
        &self.units
    }

    /// Inputs as they are committed to, one after the other: the first leaves, and what travels.
    ///
    /// `None` where they are not those of the graph.
    pub fn pack_inputs(&self, inputs: &[Values]) -> Option<Vec<u8>> {
        let specs = self.inputs.iter().map(|input| &input.spec);
        pack(specs, inputs)
    }

    /// Inputs from their committed bytes.
    ///
    /// `None` where there are more or fewer.
    pub fn unpack_inputs(&self, bytes: &[u8]) -> Option<Vec<Values>> {
        unpack(self.inputs.iter().map(|input| &input.spec), bytes)
    }

    /// Outputs as they are committed to, one after the other: the last leaves, and what travels.
    ///
    /// `None` where they are not those of the graph.
    pub fn pack_outputs(&self, outputs: &[Values]) -> Option<Vec<u8>> {
        pack(self.output_specs(), outputs)
    }

    /// Outputs from their committed bytes.
    ///
    /// `None` where there are more or fewer.
    pub fn unpack_outputs(&self, bytes: &[u8]) -> Option<Vec<Values>> {
        unpack(self.output_specs(), bytes)
    }

    fn output_specs(&self) -> impl Iterator<Item = &TensorSpec> {
        let outputs = self.outputs.iter();
        outputs.filter_map(|output| self.tensors.get(output.tensor.index()))
    }
}

fn pack<'a>(specs: impl Iterator<Item = &'a TensorSpec>, values: &[Values]) -> Option<Vec<u8>> {
    let mut values = values.iter();
    let mut all = Vec::new();
    for spec in specs {
        all.extend(values.next()?.pack(spec)?);
    }
    values.next().is_none().then_some(all)
}

fn unpack<'a>(specs: impl Iterator<Item = &'a TensorSpec>, bytes: &[u8]) -> Option<Vec<Values>> {
    let mut rest = bytes;
    let mut all = Vec::new();
    for spec in specs {
        let (now, later) = rest.split_at_checked(usize::try_from(spec.bytes()).ok()?)?;
        all.push(Values::unpack(spec, now)?);
        rest = later;
    }
    rest.is_empty().then_some(all)
}

fn check_name(name: &str) -> Result<(), Problem> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(Problem("a name that is too long or not printable"));
    }
    Ok(())
}

fn check_port(name: &str, shape: &[usize], elements: usize) -> Result<(), GraphError> {
    check_name(name).map_err(|problem| ports(problem.0))?;
    let product = shape
        .iter()
        .try_fold(1_usize, |all, side| all.checked_mul(*side));
    if shape.len() > MAX_RANK || product != Some(elements) {
        return Err(ports("a shape that is not its tensor's"));
    }
    Ok(())
}

/// Where each tensor stands in the trace: outputs last, the others in their order.
fn places(inputs: usize, tensors: usize, outputs: &[Output]) -> Result<Vec<u32>, GraphError> {
    let mut places = vec![u32::MAX; tensors];
    let first = u32::try_from(tensors.saturating_sub(outputs.len()))
        .map_err(|_| ports("too many tensors"))?;
    for (output, place) in outputs.iter().zip(first..) {
        let index = output.tensor.index();
        match places.get_mut(index) {
            Some(free) if index >= inputs && *free == u32::MAX => *free = place,
            _ => return Err(ports("an output that no node makes, or twice")),
        }
    }
    let mut next = 0;
    for place in &mut places {
        if *place == u32::MAX {
            *place = next;
            next += 1;
        }
    }
    Ok(places)
}
