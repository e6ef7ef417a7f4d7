//! The network up to a cut, in floats and differentiable: what an attacker who has the weights differentiates.
//!
//! Each operator of the program becomes one of candle's. Weights are the deployed integers times their factors; what differs
//! from the deployed network is the rounding of activations to 16 bits at each linear map. Networks of convolutions and
//! products with weights are covered; attention, normalisation of rows and tables are refused by name.

mod kernels;
mod rows;

pub(crate) use rows::slice;

use std::sync::Arc;

use candle_core::{Device, Tensor};
use larvatus_graph::op::{Linear, Op, Spread, Step};
use larvatus_graph::{ConstantId, Cut, Data, Model, Source, TensorId};
use larvatus_kernels::activation::Activation;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::chain::Binary;

use crate::{AssessError, Result};
use kernels::{Convolution, Elementwise, Gather, Largest, Matrix, Sums, Unary};
use rows::{Kernel, Rows};

/// The front of a network.
pub struct Front {
    model: Model,
    nodes: Vec<Option<Made>>,
    wanted: Vec<TensorId>,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Front of {} nodes", self.nodes.iter().flatten().count())
    }
}

type Step1 = Arc<dyn Kernel>;

/// How a node's result is made.
enum Made {
    /// From one tensor, one operator after the other; between them operations with other tensors.
    Steps(Source, Vec<Then>),
    /// Parts side by side.
    Concat(usize, Vec<(Source, usize)>),
}

enum Then {
    Kernel(Step1),
    Other(Binary, TensorId, Option<Vec<u32>>),
}

impl Front {
    /// The front of a cut.
    ///
    /// # Errors
    /// [`AssessError::Operator`].
    pub fn new(model: &Model, cut: &Cut) -> Result<Self> {
        let graph = model.graph();
        let mut nodes = Vec::with_capacity(graph.nodes().len());
        for (index, node) in graph.nodes().iter().enumerate() {
            let made = match cut.front()[index] {
                false => None,
                true => Some(
                    translate(model, index).ok_or_else(|| AssessError::Operator {
                        node: node.name.clone(),
                        operator: node.op.kind(),
                    })?,
                ),
            };
            nodes.push(made);
        }
        Ok(Self {
            model: model.clone(),
            nodes,
            wanted: cut.tensors().to_vec(),
        })
    }

    /// The tensors of the cut, images × elements, for images × elements of the network's input.
    ///
    /// # Errors
    /// [`AssessError::Framework`].
    pub fn forward(&self, x: &Tensor) -> Result<Vec<Tensor>> {
        let graph = self.model.graph();
        let mut known: Vec<Option<Tensor>> = vec![None; graph.tensors().len()];
        if let Some(first) = known.first_mut() {
            *first = Some(x.clone());
        }
        for (index, made) in self.nodes.iter().enumerate() {
            let Some(made) = made else { continue };
            let of = |source: Source| match source {
                Source::Tensor(id) => known.get(id.index()).cloned().flatten(),
                Source::Constant(_) => None,
            };
            let missing =
                || candle_core::Error::Msg("a tensor that the front does not make".to_owned());
            let result = match made {
                Made::Steps(input, steps) => {
                    let mut now = of(*input).ok_or_else(missing)?;
                    for step in steps {
                        now = match step {
                            Then::Kernel(kernel) => Rows::apply(kernel, &now)?,
                            Then::Other(binary, other, spread) => {
                                let other = of((*other).into()).ok_or_else(missing)?;
                                let other = match spread {
                                    None => other,
                                    Some(at) => {
                                        let at = Tensor::from_slice(at, at.len(), &Device::Cpu)?;
                                        other.index_select(&at, 1)?
                                    }
                                };
                                operation(*binary, &now, &other)?
                            }
                        };
                    }
                    now
                }
                Made::Concat(outer, parts) => {
                    let mut all = Vec::with_capacity(parts.len());
                    for (source, len) in parts {
                        let part = of(*source).ok_or_else(missing)?;
                        let images = part.dim(0)?;
                        all.push(part.reshape((images, *outer, *len))?);
                    }
                    Tensor::cat(&all, 2)?.flatten_from(1)?
                }
            };
            if let Some(slot) = known.get_mut(graph.made_by(index).index()) {
                *slot = Some(result);
            }
        }
        let wanted = self.wanted.iter();
        let found = wanted.map(|id| known.get(id.index()).cloned().flatten());
        let found: Option<Vec<Tensor>> = found.collect();
        found.ok_or_else(|| {
            AssessError::Network("has a cut that its front does not make".to_owned())
        })
    }
}

fn operation(binary: Binary, a: &Tensor, b: &Tensor) -> candle_core::Result<Tensor> {
    match binary {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::SubFrom => b - a,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => a.maximum(b),
        Binary::Min => a.minimum(b),
    }
}

fn floats(model: &Model, id: ConstantId) -> Option<Vec<f32>> {
    match model.data(id) {
        Data::F32(values) => Some(values),
        _ => None,
    }
}

fn elements(model: &Model, source: Source) -> usize {
    match source {
        Source::Tensor(id) => {
            let spec = model.graph().tensors().get(id.index());
            spec.map_or(0, |spec| spec.elements)
        }
        Source::Constant(_) => 0,
    }
}

/// A node as operators of the framework; none where there is none for it.
fn translate(model: &Model, index: usize) -> Option<Made> {
    let graph = model.graph();
    let node = &graph.nodes()[index];
    let one = |input: Source, kernel: Step1| {
        let tensor = matches!(input, Source::Tensor(_));
        tensor.then(|| Made::Steps(input, vec![Then::Kernel(kernel)]))
    };
    match &node.op {
        Op::Linear(linear) => self::linear(model, linear),
        Op::Chain { input, steps } => {
            let count = elements(model, *input);
            let mut then = Vec::new();
            for step in steps {
                match step {
                    Step::Activation(activation) => then.extend(unary(*activation, count)?),
                    Step::Binary(binary, spread) => {
                        then.push(self::binary(model, *binary, *spread, count)?)
                    }
                }
            }
            let tensor = matches!(input, Source::Tensor(_));
            tensor.then_some(Made::Steps(*input, then))
        }
        Op::Depthwise {
            input,
            windows,
            filters,
            bias,
        } => {
            let weights = floats(model, *filters)?;
            let channels = weights.len() / (windows.kernel[0] * windows.kernel[1]);
            if channels != windows.planes {
                return None;
            }
            let bias = match bias {
                Some(bias) => floats(model, *bias)?,
                None => vec![0.0; channels],
            };
            one(
                *input,
                Arc::new(Convolution::depthwise(windows, weights, bias)),
            )
        }
        Op::MaxPool { input, windows } => one(*input, Arc::new(Largest(windows.clone()))),
        Op::SumPool {
            input,
            windows,
            divisor,
        } => one(*input, Arc::new(Sums::windows(windows.clone(), *divisor))),
        Op::SumRows {
            input,
            cols,
            factor,
        } => one(
            *input,
            Arc::new(Sums::rows(elements(model, *input), *cols, *factor)),
        ),
        Op::View { input, start, axes } => {
            let gather = Gather::new(elements(model, *input), *start, axes);
            one(*input, Arc::new(gather))
        }
        Op::Concat { outer, parts } => {
            let tensors = parts.iter().all(|part| matches!(part.0, Source::Tensor(_)));
            tensors.then(|| Made::Concat(*outer, parts.clone()))
        }
        Op::Attention { .. }
        | Op::Products { .. }
        | Op::LayerNorm { .. }
        | Op::Softmax { .. }
        | Op::Gather { .. }
        | Op::Cast { .. }
        | Op::Maxima { .. } => None,
    }
}

/// An activation; nothing where it is the identity, none where it has no derivative here.
fn unary(activation: Activation, count: usize) -> Option<Option<Then>> {
    match activation {
        Activation::None => Some(None),
        Activation::Gelu | Activation::GeluTanh => None,
        other => Some(Some(Then::Kernel(Arc::new(Unary(other, count))))),
    }
}

fn binary(model: &Model, op: Binary, spread: Spread, count: usize) -> Option<Then> {
    let place = |at: usize, len: usize| at / spread.run % len.max(1);
    match spread.source {
        Source::Constant(id) => {
            let values = floats(model, id)?;
            let each = (0..count).map(|at| values[place(at, values.len())]);
            Some(Then::Kernel(Arc::new(Elementwise(op, each.collect()))))
        }
        Source::Tensor(id) => {
            let len = elements(model, spread.source);
            let spread = (len != count || spread.run != 1).then(|| {
                let places = (0..count).map(|at| place(at, len));
                places
                    .map(|at| u32::try_from(at).unwrap_or(u32::MAX))
                    .collect()
            });
            Some(Then::Other(op, id, spread))
        }
    }
}

/// A linear map with what follows it: `pool(post(pre(y·factor + bias) + residual))`.
fn linear(model: &Model, linear: &Linear) -> Option<Made> {
    let spec = &linear.spec;
    if spec.images != 1 {
        return None;
    }
    let Data::I8(planes) = model.data(linear.weights) else {
        return None;
    };
    let each = spec.shape.weights();
    let factor = floats(model, linear.factor)?;
    let bias = match linear.bias {
        Some(bias) => floats(model, bias)?,
        None => vec![0.0; factor.len()],
    };
    let weight = |at: usize| {
        let parts = planes.iter().skip(at).step_by(each);
        let parts = parts
            .zip(0..)
            .map(|(part, plane)| i64::from(*part) << (u32::from(spec.shift) * plane));
        parts.sum::<i64>() as f32
    };
    let kernel: Step1 = match &spec.shape {
        Shape::Conv(conv) => {
            let taps = spec.shape.taps();
            let weights = (0..each).map(|at| weight(at) * factor[at / taps]);
            Arc::new(Convolution::new(conv, weights.collect(), bias))
        }
        Shape::MatMul(matmul) => {
            let column = |at: usize| {
                at / (matmul.inner * matmul.columns) * matmul.columns + at % matmul.columns
            };
            let weights = (0..each).map(|at| weight(at) * factor[column(at)]);
            Arc::new(Matrix::new(matmul, weights.collect(), bias))
        }
    };
    let outputs = spec.outputs();
    let mut then = vec![Then::Kernel(kernel)];
    then.extend(unary(linear.pre, outputs)?);
    if let Some(residual) = linear.residual {
        let spread = Spread {
            source: residual,
            run: 1,
        };
        then.push(binary(model, Binary::Add, spread, outputs)?);
    }
    then.extend(unary(linear.post, outputs)?);
    if let Some(pool) = &linear.pool {
        then.push(Then::Kernel(Arc::new(Largest(pool.clone()))));
    }
    Some(Made::Steps(linear.input.into(), then))
}
