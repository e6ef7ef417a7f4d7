//! Elementwise nodes in a row, as one pass over the tensor.

use larvatus_kernels::local::chain::{Binary, Operand, Step};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::Conv;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;

use super::op::{LocalOp, Work};
use super::{constant, floats_of, next, replace_with};
use crate::model::fold::elementwise;
use crate::model::linear::resolve_views;

/// From the first node that can start a chain as far as each tensor has one reader.
///
/// What follows a product or convolution of the engine directly, the engine applies while it stores the
/// result; only a second tensor makes a pass of its own worthwhile there. A function by itself is the engine's too: its
/// own is as fast or faster.
pub(super) fn chain(model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let shape = floats_of(model, node.id.into())?;
        let start = node.inputs.iter().copied().find(|input| {
            let constant = model
                .outlet_fact(*input)
                .is_ok_and(|fact| fact.konst.is_some());
            !constant && floats_of(model, *input).as_ref() == Some(&shape)
        })?;
        let (mut at, mut last) = (node, start);
        let (mut steps, mut inputs) = (Vec::new(), vec![start]);
        while let Some((step, other)) = step(model, at, last, &shape, inputs.len() - 1) {
            steps.push(step);
            inputs.extend(other);
            last = at.id.into();
            match next(model, last) {
                Some(after) => at = after,
                None => break,
            }
        }
        let from = model.node(resolve_views(model, start).node);
        let fused = from.op_is::<EinSum>() || from.op_is::<Conv>();
        if inputs.len() == 1 && (fused || steps.len() < 2) {
            return None;
        }
        Some((LocalOp::new(Work::Chain(steps), &shape), inputs, last))
    };
    found().map_or(Ok(None), |(op, inputs, last)| {
        replace_with(model, op, &inputs, last)
    })
}

/// What a node does to `main`, and the second tensor that it reads, which gets the number `index`.
fn step(
    model: &TypedModel,
    node: &TypedNode,
    main: OutletId,
    shape: &[usize],
    index: usize,
) -> Option<(Step, Option<OutletId>)> {
    if floats_of(model, node.id.into())? != shape {
        return None;
    }
    if let Some(op) = node.op_as::<ElementWiseOp>() {
        return Some((Step::Activation(elementwise(op)?), None));
    }
    let op = node.op_as::<TypedBinOp>().filter(|op| op.1.is_none())?;
    let [a, b] = node.inputs[..] else { return None };
    let (other, swapped) = if a == main { (b, false) } else { (a, true) };
    let op = binary(op, swapped)?;
    if model.outlet_fact(other).ok()?.konst.is_some() {
        let operand = broadcast(constant(model, other)?, &floats_of(model, other)?, shape)?;
        return Some((Step::Binary(op, operand), None));
    }
    if floats_of(model, other)? != shape {
        return None;
    }
    Some((Step::Binary(op, Operand::Input(index)), Some(other)))
}

/// The operation of a node; `swapped` where its operands stand the other way round.
pub(crate) fn binary(op: &TypedBinOp, swapped: bool) -> Option<Binary> {
    let op = &op.0;
    if op.is::<math::Add>() {
        Some(Binary::Add)
    } else if op.is::<math::Mul>() {
        Some(Binary::Mul)
    } else if op.is::<math::Max>() {
        Some(Binary::Max)
    } else if op.is::<math::Min>() {
        Some(Binary::Min)
    } else if op.is::<math::Sub>() {
        Some(if swapped {
            Binary::SubFrom
        } else {
            Binary::Sub
        })
    } else {
        (op.is::<math::Div>() && !swapped).then_some(Binary::Div)
    }
}

/// A constant as an operand, if it varies along neighbouring axes alone.
fn broadcast(values: Vec<f32>, own: &[usize], shape: &[usize]) -> Option<Operand> {
    if let [number] = values[..] {
        return Some(Operand::Number(number));
    }
    if own.len() != shape.len() {
        return None;
    }
    let first = own.iter().position(|len| *len != 1)?;
    let end = own.iter().rposition(|len| *len != 1)? + 1;
    if own[first..end] != shape[first..end] {
        return None;
    }
    let run: usize = shape[end..].iter().product();
    Some(if run == 1 {
        Operand::Columns(values)
    } else {
        Operand::Runs { values, run }
    })
}
