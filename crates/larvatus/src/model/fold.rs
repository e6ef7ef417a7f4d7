//! What rides along in the pass that reveals a layer's answer.
//!
//! Behind a linear node stand, in practice, a bias, a folded batch-norm, an activation, a residual
//! add, a pooling. Each would cost a pass of its own over the tensor; in the reveal pass they are free. A
//! chain is followed while each tensor has one reader and is no output of the model.

use larvatus_kernels::activation::Activation;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::pool::Windows;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::{math, nn};

use super::linear::{Linear, floats, resolve_views};
use super::local::max_windows;

/// What follows `y = L(x)`: `pool(post(pre(y·factor + bias) + residual))`.
#[derive(Clone, Debug)]
pub(crate) struct Tail {
    /// One per output channel.
    pub(crate) factor: Vec<f32>,
    /// One per output channel.
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) pre: Activation,
    /// A tensor of the output's size that is known before the answer is.
    pub(crate) residual: Option<OutletId>,
    pub(crate) post: Activation,
    /// Maxima over windows of each channel, behind everything else.
    pub(crate) pool: Option<Windows>,
    /// The tensor that the whole chain yields.
    pub(crate) output: OutletId,
    pub(crate) shape: Vec<usize>,
    /// Nodes that the chain replaces.
    pub(crate) nodes: Vec<usize>,
}

impl Tail {
    /// Operations that ride along, for display.
    pub(crate) fn describe(&self) -> String {
        let add = self.residual.map(|_| "add");
        let pool = self.pool.as_ref().map(|_| "maxpool");
        let (pre, post) = (activation_name(&self.pre), activation_name(&self.post));
        let parts = [pre, add, post, pool];
        parts.into_iter().flatten().collect::<Vec<_>>().join("+")
    }
}

fn activation_name(activation: &Activation) -> Option<&'static str> {
    match activation {
        Activation::None => None,
        Activation::Relu => Some("relu"),
        Activation::LeakyRelu { .. } => Some("leakyrelu"),
        Activation::Clip { .. } => Some("clip"),
        Activation::HardSigmoid { .. } => Some("hardsigmoid"),
        Activation::HardSwish => Some("hardswish"),
        Activation::Sigmoid => Some("sigmoid"),
        Activation::Silu => Some("silu"),
        Activation::Gelu => Some("gelu"),
        Activation::GeluTanh => Some("gelu-tanh"),
        _ => Some("activation"),
    }
}

/// Follows the chain behind a layer. `known_before(outlet)` tells whether a tensor is computed
/// before this layer's answer arrives.
pub(crate) fn tail(
    graph: &TypedModel,
    linear: &Linear,
    known_before: impl Fn(OutletId) -> bool,
) -> Tail {
    let mut tail = Tail {
        factor: vec![1.0; linear.channels()],
        bias: linear.bias.clone(),
        pre: Activation::None,
        residual: None,
        post: Activation::None,
        pool: None,
        output: OutletId::new(linear.node, 0),
        shape: linear.output_shape.clone(),
        nodes: Vec::new(),
    };
    // A view at the end of the chain stays outside, so that readers find the tensor itself.
    let mut whole = tail.clone();
    while let Some(step) = step(graph, linear, &tail, &known_before) {
        step(&mut tail);
        let last = tail.nodes.last().map(|id| graph.node(*id));
        if last.is_some_and(|node| node.op_as::<AxisOp>().is_none()) {
            whole = tail.clone();
        }
    }
    whole
}

type Step = Box<dyn FnOnce(&mut Tail)>;

fn step(
    graph: &TypedModel,
    linear: &Linear,
    tail: &Tail,
    known_before: &impl Fn(OutletId) -> bool,
) -> Option<Step> {
    let [reader] = graph.outlet_successors(tail.output) else {
        return None;
    };
    if graph.outputs.contains(&tail.output) {
        return None;
    }
    let node = graph.node(reader.node);
    let output = OutletId::new(node.id, 0);
    if tail.pool.is_some() {
        return None;
    }
    if let Some(windows) = planes(graph, node, linear) {
        let shape = graph
            .outlet_fact(output)
            .ok()?
            .shape
            .as_concrete()?
            .to_vec();
        return Some(Box::new(move |tail| {
            tail.pool = Some(windows);
            tail.nodes.push(output.node);
            tail.output = output;
            tail.shape = shape;
        }));
    }
    let fact = graph.outlet_fact(output).ok()?;
    let shape = fact.shape.as_concrete()?.to_vec();
    let same_size = fact.datum_type == DatumType::F32
        && node.outputs.len() == 1
        && shape.iter().product::<usize>() == tail.shape.iter().product::<usize>();
    if !same_size {
        return None;
    }
    let advance = move |tail: &mut Tail| {
        tail.nodes.push(output.node);
        tail.output = output;
        tail.shape = shape;
    };
    if node.op_as::<AxisOp>().is_some_and(AxisOp::only_shape) {
        return Some(Box::new(advance));
    }
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        let activation = elementwise(op)?;
        return activate(tail, activation, advance);
    }
    let op = node.op_as::<TypedBinOp>()?;
    let slot = 1 - reader.slot.min(1);
    let other = *node.inputs.get(slot)?;
    let constant = graph.outlet_fact(other).ok()?.konst.clone();
    let Some(constant) = constant else {
        let addable = op.0.is::<math::Add>()
            && tail.residual.is_none()
            && matches!(tail.post, Activation::None)
            && linear.output_order.is_none()
            && graph.outlet_fact(other).ok()?.shape.as_concrete() == Some(&tail.shape[..]);
        let residual = resolve_views(graph, other);
        if !addable || !known_before(residual) {
            return None;
        }
        return Some(Box::new(move |tail| {
            tail.residual = Some(residual);
            advance(tail);
        }));
    };
    if let Some(activation) = clamp(op, &constant) {
        return activate(tail, activation, advance);
    }
    let open = matches!(tail.pre, Activation::None) && tail.residual.is_none();
    if !open || !matches!(tail.post, Activation::None) {
        return None;
    }
    let values = per_channel(linear, &constant, &tail.shape)?;
    let affine = Affine::of(op, slot == 0)?;
    Some(Box::new(move |tail| {
        affine.apply(tail, &values);
        advance(tail);
    }))
}

/// The windows of a pooling of this layer's channels, if a node is one.
fn planes(graph: &TypedModel, node: &TypedNode, linear: &Linear) -> Option<Windows> {
    let Shape::Conv(_) = linear.shape else {
        return None;
    };
    let (rows, cols) = linear.shape.output_rows_cols();
    let windows = max_windows(graph, node)?;
    let fits = windows.planes == linear.images * rows
        && windows.input.iter().product::<usize>() == cols
        && windows.output.iter().all(|side| *side > 0)
        && linear.output_order.is_none();
    fits.then_some(windows)
}

/// Puts an activation where the chain has room for one.
fn activate(
    tail: &Tail,
    activation: Activation,
    advance: impl FnOnce(&mut Tail) + 'static,
) -> Option<Step> {
    let place = if tail.residual.is_none() {
        &tail.pre
    } else {
        &tail.post
    };
    let merged = match (place, activation) {
        (Activation::None, new) => new,
        // Max then Min of a clip arrive one after the other.
        (Activation::Relu, Activation::Clip { low, high }) => Activation::Clip {
            low: low.max(0.0),
            high,
        },
        (
            Activation::Clip { low, high },
            Activation::Clip {
                low: floor,
                high: ceiling,
            },
        ) => Activation::Clip {
            low: low.max(floor),
            high: high.min(ceiling),
        },
        (Activation::Clip { low, high }, Activation::Relu) => Activation::Clip {
            low: low.max(0.0),
            high: *high,
        },
        _ => return None,
    };
    if let Activation::Clip { low, high } = merged
        && low > high
    {
        return None;
    }
    Some(Box::new(move |tail| {
        *(if tail.residual.is_none() {
            &mut tail.pre
        } else {
            &mut tail.post
        }) = merged;
        advance(tail);
    }))
}

/// The activation that an elementwise node applies.
pub(super) fn elementwise(op: &ElementWiseOp) -> Option<Activation> {
    if op.1.is_some() {
        return None;
    }
    let op = &op.0;
    if op.is::<nn::HardSwish>() {
        Some(Activation::HardSwish)
    } else if op.is::<nn::Silu>() {
        Some(Activation::Silu)
    } else if op.is::<nn::GeluExact>() {
        Some(Activation::Gelu)
    } else if op.is::<nn::Sigmoid>() {
        Some(Activation::Sigmoid)
    } else if op
        .downcast_ref::<nn::GeluApproximate>()
        .is_some_and(|gelu| !gelu.fast_impl)
    {
        Some(Activation::GeluTanh)
    } else {
        op.downcast_ref::<nn::LeakyRelu>()
            .map(|relu| Activation::LeakyRelu { slope: relu.alpha })
    }
}

fn clamp(op: &TypedBinOp, constant: &Tensor) -> Option<Activation> {
    let [bound, ..] = floats(constant)? else {
        return None;
    };
    if !bound.is_finite() || !floats(constant)?.iter().all(|other| other == bound) {
        return None;
    }
    if op.0.is::<math::Max>() {
        return Some(if *bound == 0.0 {
            Activation::Relu
        } else {
            Activation::Clip {
                low: *bound,
                high: f32::INFINITY,
            }
        });
    }
    let high = *bound;
    op.0.is::<math::Min>().then_some(Activation::Clip {
        low: f32::NEG_INFINITY,
        high,
    })
}

/// An operation with one constant per channel.
#[derive(Clone, Copy)]
enum Affine {
    Add,
    Sub,
    SubFrom,
    Mul,
    Div,
}

impl Affine {
    /// `constant_first`: the constant is the left operand.
    fn of(op: &TypedBinOp, constant_first: bool) -> Option<Self> {
        let op = &op.0;
        if op.is::<math::Add>() {
            Some(Self::Add)
        } else if op.is::<math::Mul>() {
            Some(Self::Mul)
        } else if op.is::<math::Sub>() {
            Some(if constant_first {
                Self::SubFrom
            } else {
                Self::Sub
            })
        } else if op.is::<math::Div>() && !constant_first {
            Some(Self::Div)
        } else {
            None
        }
    }

    fn apply(self, tail: &mut Tail, values: &[f32]) {
        let bias = tail.bias.get_or_insert_with(|| vec![0.0; values.len()]);
        for ((factor, bias), value) in tail.factor.iter_mut().zip(bias).zip(values) {
            match self {
                Self::Add => *bias += value,
                Self::Sub => *bias -= value,
                Self::SubFrom => (*factor, *bias) = (-*factor, value - *bias),
                Self::Mul => (*factor, *bias) = (*factor * value, *bias * value),
                Self::Div => (*factor, *bias) = (*factor / value, *bias / value),
            }
        }
    }
}

/// The constant as one value per output channel, if it is one.
fn per_channel(linear: &Linear, constant: &Tensor, shape: &[usize]) -> Option<Vec<f32>> {
    let values = floats(constant)?;
    if !values.iter().all(|value| value.is_finite()) {
        return None;
    }
    if let [one] = values {
        return Some(vec![*one; linear.channels()]);
    }
    if values.len() != linear.channels() {
        return None;
    }
    let spread = constant.broadcast_to_shape(shape).ok()?;
    let spread = floats(&spread)?;
    let mut channel_of: Vec<u32> = (0..spread.len())
        .map(|ix| u32::try_from(linear.channel_of(ix)).ok())
        .collect::<Option<_>>()?;
    if let Some(order) = &linear.output_order {
        let layout = channel_of.clone();
        order.apply(&layout, &mut channel_of);
    }
    let mut found = vec![f32::NAN; linear.channels()];
    for (value, channel) in spread.iter().zip(channel_of) {
        let seen = found.get_mut(channel as usize)?;
        if seen.is_nan() {
            *seen = *value;
        } else if seen.to_bits() != value.to_bits() {
            return None;
        }
    }
    Some(found)
}
