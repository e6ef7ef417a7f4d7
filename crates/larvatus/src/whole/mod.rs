//! The whole network as one program that a worker can run by itself: [`larvatus_graph::Graph`].
//!
//! A plan is lowered as it stands: the same layers, integers, scales and folded chains as every other preset has, and
//! between them the same operators of ours. So the program's outputs are those of [`run_exact`](crate::exact::run_exact) bit for
//! bit. What the graph engine would run by itself is taken only where it is a movement of data or a single operation of
//! IEEE-754 floats; anything else has no fixed meaning and is refused by name ([`WholeError::Operator`]).

mod builder;
mod segment;

use std::collections::HashMap;

use larvatus_graph::op::{Axis, Linear, Op};
use larvatus_graph::{
    Data, GraphError, Input, Kind, ModelError as GraphModelError, Order, Output, Source, TensorId,
    TensorSpec, Values,
};
use larvatus_kernels::linear::Shape;
use larvatus_proto::program::LayerId;
use tract_onnx::prelude::DatumType;

use crate::error::InputError;
use crate::model::rounds::Slot;
use crate::model::{Model, Port};
use crate::plan::{Layer, Plan, PlanError, Upload};
use crate::policy::Policy;
use crate::tensor::{Tensor, check_inputs, floats};
use builder::{Builder, axes_of};

/// Why a network is no program with one meaning.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WholeError {
    /// No plan can be made.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An operator that is the graph engine's own: what it gives depends on the machine.
    #[error("{name}: {operator} has no fixed meaning here ({why})")]
    Operator {
        /// The node's name.
        name: String,
        /// What it is.
        operator: String,
        /// What is not supported about it.
        why: &'static str,
    },
    /// An input or output that is neither of floats nor of 64-bit integers, or whose shape is open.
    #[error("{name} is {datum}; a whole network takes and gives f32, and takes i64")]
    Port {
        /// Its name.
        name: String,
        /// Its type.
        datum: String,
    },
    /// The graph is refused.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The graph and its constants are refused.
    #[error(transparent)]
    Constants(#[from] GraphModelError),
}

/// Where a tensor of the plan stands in the program.
#[derive(Clone, Debug)]
struct Lowered {
    source: Source,
    shape: Vec<usize>,
}

/// A network as a program, with what goes in and comes out.
#[derive(Clone, Debug)]
pub struct Whole {
    model: larvatus_graph::Model,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

impl Whole {
    /// Plans a model under a policy and lowers the plan.
    ///
    /// # Errors
    /// [`WholeError`].
    pub fn new(model: &Model, policy: &Policy) -> Result<Self, WholeError> {
        let plan = Plan::new(model, policy)?;
        Self::of_plan(&plan)
    }

    /// Lowers a plan. Hiding and checks make no difference to it.
    ///
    /// # Errors
    /// [`WholeError`].
    pub fn of_plan(plan: &Plan) -> Result<Self, WholeError> {
        let mut lowering = Lowering::new(plan)?;
        let cut = plan.cut();
        for (round, segment) in cut.segments.iter().enumerate() {
            if let Some(segment) = segment {
                lowering.segment(segment)?;
            }
            let Some(round) = plan.rounds().get(round) else {
                continue;
            };
            for (id, upload) in &round.calls {
                lowering.call(plan, *id, &round.uploads[*upload])?;
            }
        }
        let model = lowering.finish(plan)?;
        Ok(Self {
            model,
            inputs: plan.inputs().to_vec(),
            outputs: plan.outputs().to_vec(),
        })
    }

    /// The program with its constants.
    pub fn model(&self) -> &larvatus_graph::Model {
        &self.model
    }

    /// The model's inputs.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// The model's outputs.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// Inputs as the program takes them.
    ///
    /// # Errors
    /// [`InputError`] where they are not those of the model.
    pub fn values(&self, inputs: &[Tensor]) -> Result<Vec<Values>, InputError> {
        check_inputs(&self.inputs, inputs)?;
        let values = inputs.iter().map(|input| match floats(input) {
            Some(values) => Values::from(values.to_vec()),
            None => {
                let plain = input.try_as_plain_ram().ok();
                let integers = plain
                    .as_ref()
                    .and_then(|plain| plain.as_slice::<i64>().ok());
                Values::from(integers.unwrap_or_default().to_vec())
            }
        });
        Ok(values.collect())
    }

    /// What the program gives, as the model's outputs; `None` where it is not that.
    pub fn tensors(&self, outputs: &[Values]) -> Option<Vec<Tensor>> {
        let ports = self.model.graph().outputs();
        if ports.len() != outputs.len() {
            return None;
        }
        let tensors = ports
            .iter()
            .zip(outputs)
            .map(|(port, values)| match values {
                Values::F32(values) => Tensor::from_shape(&port.shape, values).ok(),
                Values::I64(values) => Tensor::from_shape(&port.shape, values).ok(),
            });
        tensors.collect()
    }
}

/// A plan on its way to a graph.
struct Lowering {
    builder: Builder,
    slots: HashMap<Slot, Lowered>,
    inputs: Vec<Input>,
}

impl Lowering {
    fn new(plan: &Plan) -> Result<Self, WholeError> {
        let (mut inputs, mut slots) = (Vec::new(), HashMap::new());
        for (port, slot) in plan.inputs().iter().zip(&plan.cut().inputs) {
            let refused = || WholeError::Port {
                name: port.name.clone(),
                datum: format!("{:?}", port.datum).to_lowercase(),
            };
            let kind = match port.datum {
                DatumType::F32 => Kind::F32,
                DatumType::I64 => Kind::I64,
                _ => return Err(refused()),
            };
            let shape = port.shape.clone().ok_or_else(refused)?;
            let tensor = TensorId(u32::try_from(inputs.len()).unwrap_or(u32::MAX));
            inputs.push(Input {
                name: builder::printable(&port.name),
                spec: TensorSpec {
                    kind,
                    elements: shape.iter().product(),
                    order: Order::Flat,
                },
                shape: shape.clone(),
            });
            let source = Source::Tensor(tensor);
            slots.insert(*slot, Lowered { source, shape });
        }
        let kinds = inputs
            .iter()
            .map(|input| (input.spec.kind, input.spec.elements));
        let mut lowering = Self {
            builder: Builder::new(kinds.collect()),
            slots,
            inputs,
        };
        for (slot, value) in &plan.cut().constants {
            if let Some(source) = lowering.builder.tensor(value) {
                let shape = value.shape().to_vec();
                lowering.slots.insert(*slot, Lowered { source, shape });
            }
        }
        Ok(lowering)
    }

    fn slot(&self, slot: Slot, name: &str) -> Result<Lowered, WholeError> {
        let found = self.slots.get(&slot).cloned();
        found.ok_or_else(|| WholeError::Operator {
            name: name.to_owned(),
            operator: "an operand".to_owned(),
            why: "a tensor of a type that a whole network does not have",
        })
    }

    /// A layer that other presets send to a worker.
    fn call(&mut self, plan: &Plan, id: LayerId, upload: &Upload) -> Result<(), WholeError> {
        let layer: &Layer = &plan.layers()[id.index()];
        let linear = &layer.placed.linear;
        let tail = &layer.placed.tail;
        let name = builder::printable(&linear.name);
        let input = self.slot(layer.placed.input, &name)?;
        let mut source = input.source;
        if let Some(order) = &linear.input_order {
            source = self.reorder(&format!("{name}.in"), source, &order.axes());
        }
        let input = self.builder.as_tensor(&name, source);
        let scales = match &linear.shape {
            Shape::Conv(conv) => {
                if conv.input[0] > 1 {
                    let [lines, width] = conv.input;
                    let order = Order::lines(linear.images, conv.in_channels, lines, width);
                    self.builder.hint(input, order, true);
                }
                linear.images
            }
            Shape::MatMul(_) => linear.images * linear.shape.input_rows_cols().0,
        };
        let maxima = self.builder.maxima(&name, input, scales);
        let residual = layer.placed.residual.map(|slot| self.slot(slot, &name));
        let residual = residual.transpose()?.map(|residual| residual.source);
        let planes = layer.weights.planes().iter().flat_map(|plane| &**plane);
        let planes = planes.copied().collect();
        let weights = self.builder.constant(Data::I8(planes));
        let factor = self.builder.constant(Data::F32(layer.factor.clone()));
        let bias = tail.bias.clone();
        let bias = bias.map(|bias| self.builder.constant(Data::F32(bias)));
        let op = Op::Linear(Box::new(Linear {
            spec: layer.spec.clone(),
            input,
            maxima,
            weights,
            bound: upload.bound,
            factor,
            bias,
            pre: tail.pre,
            residual,
            post: tail.post,
            pool: tail.pool.clone(),
        }));
        let made = self.builder.node(&name, op);
        if let Shape::Conv(conv) = &linear.shape {
            let mut plane = tail
                .pool
                .as_ref()
                .map_or_else(|| conv.output(), |pool| pool.output);
            // What the engine made a product of knows its lines from its shape alone.
            if plane[0] == 1
                && let [.., channels, height, width] = tail.shape[..]
                && (channels, height * width) == (conv.out_channels, plane[1])
            {
                plane = [height, width];
            }
            let order = Order::lines(linear.images, conv.out_channels, plane[0], plane[1]);
            self.builder.hint(made, order, false);
        }
        let mut source = Source::Tensor(made);
        if let Some(order) = &linear.output_order {
            source = self.reorder(&format!("{name}.out"), source, &order.axes());
        }
        let shape = tail.shape.clone();
        self.slots
            .insert(layer.placed.output, Lowered { source, shape });
        Ok(())
    }

    fn reorder(&mut self, name: &str, input: Source, axes: &[(usize, usize)]) -> Source {
        let axes = axes.iter().map(|&(len, stride)| Axis { len, stride });
        let axes = axes.collect();
        let op = Op::View {
            input,
            start: 0,
            axes,
        };
        self.builder.node(name, op).into()
    }

    fn finish(mut self, plan: &Plan) -> Result<larvatus_graph::Model, WholeError> {
        let mut outputs: Vec<Output> = Vec::new();
        for (port, slot) in plan.outputs().iter().zip(&plan.cut().outputs) {
            let name = builder::printable(&port.name);
            let Lowered { source, shape } = self.slot(*slot, &name)?;
            let given = match source {
                Source::Tensor(id) if id.index() >= self.inputs.len() => Some(id),
                _ => None,
            };
            let tensor = given.filter(|id| outputs.iter().all(|other| other.tensor != *id));
            // An output is a node's, and one of its own.
            let tensor = tensor.unwrap_or_else(|| {
                let axes = axes_of(&[shape.iter().product()]);
                let copy = Op::View {
                    input: source,
                    start: 0,
                    axes,
                };
                self.builder.node(&name, copy)
            });
            outputs.push(Output {
                name,
                shape,
                tensor,
            });
        }
        for (input, order) in self.inputs.iter_mut().zip(self.builder.orders()) {
            input.spec.order = order;
        }
        let (constants, nodes) = self.builder.finish();
        let specs = constants.iter().map(Data::spec).collect();
        let graph = larvatus_graph::Graph::new(self.inputs, specs, nodes, outputs)?;
        Ok(larvatus_graph::Model::new(graph, &constants)?)
    }
}
