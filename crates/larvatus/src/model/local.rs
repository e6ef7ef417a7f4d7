//! Our own operators for what stays on the trusted side.
//!
//! Before the engine compiles a graph, [`replace`] puts operators of [`larvatus_kernels::local`] in the place of nodes, or of
//! the pieces that the engine makes of one ONNX operator, that they can stand for: f32 tensors of fixed shapes, axes in
//! the order that the kernels want. Whatever does not fit stays the engine's. Results differ from the engine's by
//! roundings, as the kernels state; every run of a plan uses the same operators, so runs stay equal bit for bit.

mod chain;
mod constants;
mod op;
mod products;
#[cfg(test)]
mod tests;

use larvatus_kernels::local::norm::LayerNorm;
use larvatus_kernels::local::pool::{Divisor, Windows};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::Downsample;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{
    Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool,
};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{
    DataFormat, Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind, gelu_approximate,
};

use super::linear::{floats, resolve_views};
pub(crate) use chain::binary;
pub(crate) use op::{LocalOp, Work};

/// A piece of a graph that something else can stand for.
type Rule = fn(&TypedModel, &TypedNode) -> TractResult<Option<TypedModelPatch>>;

/// Puts our operators where they fit.
pub(super) fn replace(model: &mut TypedModel) -> TractResult<()> {
    const RULES: [Rule; 11] = [
        constants::constant,
        layer_norm,
        products::attention,
        products::product,
        softmax,
        max_pool,
        sum_pool,
        sum_rows,
        thin,
        depthwise,
        chain::chain,
    ];
    RULES.iter().try_for_each(|rule| apply(model, *rule))
}

/// Gives functions that come in pieces the engine's name, so that they can ride along in a reveal pass.
pub(super) fn name_functions(model: &mut TypedModel) -> TractResult<()> {
    apply(model, gelu_by_tanh)
}

fn apply(model: &mut TypedModel, rule: Rule) -> TractResult<()> {
    let mut changed = false;
    for id in model.eval_order()? {
        if let Some(patch) = rule(model, model.node(id))? {
            patch.apply(model)?;
            changed = true;
        }
    }
    if changed {
        model.compact()?;
    }
    Ok(())
}

/// A patch that makes the tensor `output` with an operator.
fn replace_with(
    model: &TypedModel,
    op: impl Into<Box<dyn TypedOp>>,
    inputs: &[OutletId],
    output: OutletId,
) -> TractResult<Option<TypedModelPatch>> {
    let mut patch = TypedModelPatch::default();
    let taps = patch.taps(model, inputs)?;
    let name = &model.node(output.node).name;
    let made = patch.wire_node(name, op, &taps)?;
    patch.shunt_outside(model, output, made[0])?;
    Ok(Some(patch))
}

/// The shape of an f32 tensor, if it is fixed and not empty.
fn floats_of(model: &TypedModel, outlet: OutletId) -> Option<Vec<usize>> {
    let fact = model.outlet_fact(outlet).ok()?;
    let shape = fact.shape.as_concrete()?;
    let usable = fact.datum_type == DatumType::F32 && fact.is_plain() && !shape.contains(&0);
    usable.then(|| shape.to_vec())
}

/// The elements of a constant.
fn constant(model: &TypedModel, outlet: OutletId) -> Option<Vec<f32>> {
    let constant = model.outlet_fact(outlet).ok()?.konst.as_ref()?;
    floats(constant).map(<[f32]>::to_vec)
}

/// The one number that a constant holds.
fn number(model: &TypedModel, outlet: OutletId) -> Option<f32> {
    match constant(model, outlet)?[..] {
        [x] => Some(x),
        _ => None,
    }
}

/// The only reader of a tensor that is no output of the graph.
fn next(model: &TypedModel, outlet: OutletId) -> Option<&TypedNode> {
    match model.outlet_successors(outlet) {
        [reader] if !model.outputs.contains(&outlet) => Some(model.node(reader.node)),
        _ => None,
    }
}

/// An input that nobody else reads.
fn own_input(model: &TypedModel, node: &TypedNode, slot: usize) -> Option<OutletId> {
    let input = *node.inputs.get(slot)?;
    next(model, input).map(|_| input)
}

/// An operation of `outlet`, its only reader, with a constant: the reader and the constant's place.
fn next_binary<O: tract_onnx::tract_core::ops::binary::BinMiniOp>(
    model: &TypedModel,
    outlet: OutletId,
) -> Option<(&TypedNode, OutletId)> {
    let node = next(model, outlet)?;
    let [a, b] = node.inputs[..] else { return None };
    let other = if a == outlet { b } else { a };
    let fits = node.op_as::<TypedBinOp>()?.0.is::<O>() && other != outlet;
    fits.then_some((node, other))
}

/// A constant along the last axis alone.
fn last_axis(model: &TypedModel, outlet: OutletId, cols: usize) -> Option<Vec<f32>> {
    let shape = floats_of(model, outlet)?;
    let along = shape.last() == Some(&cols) && shape.iter().product::<usize>() == cols;
    constant(model, outlet).filter(|_| along)
}

/// Layer normalisation as the engine writes it: x less its mean, then `RmsNorm`, then factor and summand if any.
fn layer_norm(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let rms = node.op_as::<RmsNorm>()?;
        let shape = floats_of(model, node.id.into())?;
        let axis = shape.len().checked_sub(1)?;
        let cols = shape[axis];
        let binary = |id: usize| Some((model.node(id), model.node(id).op_as::<TypedBinOp>()?));
        let (difference, sub) = binary(node.inputs.first()?.node)?;
        let [x, mean] = difference.inputs[..] else {
            return None;
        };
        let (mean, mul) = binary(mean.node)?;
        let sum = mean
            .inputs
            .iter()
            .find(|input| model.node(input.node).op_is::<Reduce>())?;
        let share = mean.inputs.iter().find_map(|input| number(model, *input))?;
        let reduce = model.node(sum.node).op_as::<Reduce>()?;
        let fits = rms.axis == axis
            && sub.0.is::<math::Sub>()
            && mul.0.is::<math::Mul>()
            && share == 1.0 / cols as f32
            && reduce.reducer == Reducer::Sum
            && reduce.axes[..] == [axis]
            && model.node(sum.node).inputs[..] == [x];
        if !fits || floats_of(model, x)? != shape {
            return None;
        }
        let [epsilon] = floats(&rms.eps)? else {
            return None;
        };
        let (mut last, mut gamma, mut beta) = (OutletId::from(node.id), None, None);
        if let Some((scaled, other)) = next_binary::<math::Mul>(model, last)
            && let Some(values) = last_axis(model, other, cols)
        {
            (last, gamma) = (scaled.id.into(), Some(values));
        }
        if let Some((moved, other)) = next_binary::<math::Add>(model, last)
            && let Some(values) = last_axis(model, other, cols)
        {
            (last, beta) = (moved.id.into(), Some(values));
        }
        let norm = LayerNorm {
            epsilon: *epsilon,
            gamma,
            beta,
        };
        let op = LocalOp::new(Work::LayerNorm { norm, cols }, &floats_of(model, last)?);
        Some((op, resolve_views(model, x), last))
    };
    found().map_or(Ok(None), |(op, x, last)| {
        replace_with(model, op, &[x], last)
    })
}

/// Softmax along the last axis.
fn softmax(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let softmax = node.op_as::<Softmax>()?;
        let shape = floats_of(model, *node.inputs.first()?)?;
        let fits = softmax.kind == SoftmaxKind::Softmax
            && softmax.quant_output_dt.is_none()
            && softmax.axes[..] == [shape.len().checked_sub(1)?];
        let work = Work::Softmax {
            cols: *shape.last()?,
        };
        fits.then(|| LocalOp::new(work, &shape))
    };
    found().map_or(Ok(None), |op| {
        replace_with(model, op, &node.inputs, node.id.into())
    })
}

/// A window over planes, if that is what a specification describes.
fn windows(model: &TypedModel, node: &TypedNode, spec: &PoolSpec) -> Option<Windows> {
    let shape = floats_of(model, *node.inputs.first()?)?;
    let planar = matches!(spec.data_format, DataFormat::NCHW | DataFormat::CHW);
    if !planar || spec.dilations().iter().any(|dilation| *dilation != 1) {
        return None;
    }
    let (planes, sides) = shape.split_at(shape.len().checked_sub(spec.rank())?);
    let padding = spec.computed_padding(sides);
    // A row is a plane of height one.
    let two = |sides: &[usize], missing: usize| match *sides {
        [width] => Some([missing, width]),
        [height, width] => Some([height, width]),
        _ => None,
    };
    let output: Vec<usize> = padding.iter().map(|side| side.convoluted).collect();
    let before: Vec<usize> = padding.iter().map(|side| side.pad_before).collect();
    Some(Windows {
        planes: planes.iter().product(),
        input: two(sides, 1)?,
        output: two(&output, 1)?,
        kernel: two(&spec.kernel_shape, 1)?,
        stride: two(&spec.strides(), 1)?,
        before: two(&before, 0)?,
    })
}

/// The windows of a maximum pooling, if a node is one.
pub(super) fn max_windows(model: &TypedModel, node: &TypedNode) -> Option<Windows> {
    let pool = node.op_as::<MaxPool>()?;
    if pool.with_index_outputs.is_some() {
        return None;
    }
    windows(model, node, &pool.pool_spec)
}

fn max_pool(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let work = Work::MaxPool(max_windows(model, node)?);
        Some(LocalOp::new(work, &floats_of(model, node.id.into())?))
    };
    found().map_or(Ok(None), |op| {
        replace_with(model, op, &node.inputs, node.id.into())
    })
}

fn sum_pool(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let pool = node.op_as::<SumPool>()?;
        // Where windows may go beyond the padding, what counts is a matter of its own.
        if matches!(pool.pool_spec.padding, PaddingSpec::ExplicitOnnxPool(..)) {
            return None;
        }
        let divisor = match (pool.normalize, pool.count_include_pad) {
            (false, _) => Divisor::One,
            (true, true) => Divisor::Window,
            (true, false) => Divisor::Present,
        };
        let windows = windows(model, node, &pool.pool_spec)?;
        let work = Work::SumPool { windows, divisor };
        Some(LocalOp::new(work, &floats_of(model, node.id.into())?))
    };
    found().map_or(Ok(None), |op| {
        replace_with(model, op, &node.inputs, node.id.into())
    })
}

/// Sums over the last axes, times a number if one follows: global average pooling.
fn sum_rows(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let reduce = node.op_as::<Reduce>()?;
        let shape = floats_of(model, *node.inputs.first()?)?;
        let first = *reduce.axes.first()?;
        let axes: Vec<usize> = (first..shape.len()).collect();
        if reduce.reducer != Reducer::Sum || reduce.axes[..] != axes[..] {
            return None;
        }
        let (mut last, mut factor) = (OutletId::from(node.id), 1.0);
        if let Some((scaled, other)) = next_binary::<math::Mul>(model, last)
            && let Some(value) = number(model, other)
        {
            (last, factor) = (scaled.id.into(), value);
        }
        let work = Work::SumRows {
            cols: shape[first..].iter().product(),
            factor,
        };
        Some((LocalOp::new(work, &floats_of(model, last)?), last))
    };
    found().map_or(Ok(None), |(op, last)| {
        replace_with(model, op, &node.inputs, last)
    })
}

/// Every n-th element along the last axis, and along the one before if that comes first.
fn thin(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let stride = |node: &TypedNode, from_last: usize| {
            let op = node.op_as::<Downsample>()?;
            let rank = floats_of(model, *node.inputs.first()?)?.len();
            let fits = op.axis + from_last == rank && op.modulo == 0;
            usize::try_from(op.stride).ok().filter(|_| fits)
        };
        let columns = stride(node, 1)?;
        let mut input = *node.inputs.first()?;
        let mut rows = 1;
        if let Some(own) = own_input(model, node, 0)
            && let Some(stride) = stride(model.node(own.node), 2)
        {
            (input, rows) = (*model.node(own.node).inputs.first()?, stride);
        }
        let shape = floats_of(model, input)?;
        let [.., height, width] = shape[..] else {
            return None;
        };
        let work = Work::Thin {
            input: [height, width],
            stride: [rows, columns],
        };
        Some((
            LocalOp::new(work, &floats_of(model, node.id.into())?),
            input,
        ))
    };
    found().map_or(Ok(None), |(op, input)| {
        replace_with(model, op, &[input], node.id.into())
    })
}

/// A convolution of one channel with one filter.
fn depthwise(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let conv = node.op_as::<Conv>()?;
        let channels = conv.group;
        let windows = windows(model, node, &conv.pool_spec)?;
        let fits = conv.q_params.is_none()
            && conv.kernel_fmt == KernelFormat::OIHW
            && conv.pool_spec.input_channels == channels
            && conv.pool_spec.output_channels == channels
            && windows.stride[1] <= 2;
        let [_, filters, bias] = node.inputs[..] else {
            return None;
        };
        let filters = constant(model, filters).filter(|_| fits)?;
        let mut bias = constant(model, bias)?;
        if let [all] = bias[..] {
            bias = vec![all; channels];
        }
        if filters.len() != channels * windows.kernel[0] * windows.kernel[1]
            || bias.len() != channels
        {
            return None;
        }
        let work = Work::Depthwise {
            windows,
            filters,
            bias,
        };
        Some(LocalOp::new(work, &floats_of(model, node.id.into())?))
    };
    found().map_or(Ok(None), |op| {
        replace_with(model, op, &node.inputs[..1], node.id.into())
    })
}

/// x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), found from the tanh. The engine looks for a general power and misses
/// the cube, which it has a node of its own for.
fn gelu_by_tanh(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        if !node.op_as::<ElementWiseOp>()?.0.is::<math::Tanh>() {
            return None;
        }
        // Back to x.
        let scaled = factor(model, node.inputs.first()?.node, 0.797_884_6)?;
        let sum = model.node(scaled.node);
        let [a, b] = sum.inputs[..] else { return None };
        if !sum.op_as::<TypedBinOp>()?.0.is::<math::Add>() {
            return None;
        }
        let cubed = |term: OutletId, x: OutletId| {
            let cube = model.node(factor(model, term.node, 0.044_715)?.node);
            let power = cube
                .op_as::<ElementWiseOp>()?
                .0
                .downcast_ref::<math::PowConst>()?;
            (power.exponent == 3.0 && cube.inputs[..] == [x]).then_some(x)
        };
        let x = cubed(b, a).or_else(|| cubed(a, b))?;
        // On to the product with x/2, or with x and then 1/2.
        let (plus, one) = next_binary::<math::Add>(model, node.id.into())?;
        if number(model, one)? != 1.0 {
            return None;
        }
        let (mut last, other) = next_binary::<math::Mul>(model, plus.id.into())?;
        if other == x {
            let (halved, half) = next_binary::<math::Mul>(model, last.id.into())?;
            if number(model, half)? != 0.5 {
                return None;
            }
            last = halved;
        } else if factor(model, other.node, 0.5)? != x {
            return None;
        }
        Some((x, last.id))
    };
    let gelu = || gelu_approximate::gelu_approximate(false);
    found().map_or(Ok(None), |(x, last)| {
        replace_with(model, gelu(), &[x], last.into())
    })
}

/// What a node multiplies by the number `wanted`, to the last few bits.
fn factor(model: &TypedModel, node: usize, wanted: f32) -> Option<OutletId> {
    let node = model.node(node);
    let [a, b] = node.inputs[..] else { return None };
    let is = |outlet| number(model, outlet).is_some_and(|x| (x / wanted - 1.0).abs() < 1e-6);
    if !node.op_as::<TypedBinOp>()?.0.is::<math::Mul>() {
        return None;
    }
    if is(b) { Some(a) } else { is(a).then_some(b) }
}
