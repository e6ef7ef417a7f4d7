//! Constants that the engine would compute again in every inference.
//!
//! It folds what depends on constants only, but not where the result takes more memory than what it is made of: weights
//! kept in 8 bits would be widened in every inference. Here they are widened once.

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::dummy::Dummy;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_hir::internal::DimLike;

/// How many times the memory of its inputs a constant may take: an i8 becomes an f32, or an f64.
const WIDENED: usize = 8;

/// Computes a node of constants.
pub(super) fn constant(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let made = node.op_is::<Const>() || node.op_is::<Dummy>() || node.inputs.is_empty();
    if made || node.outputs.len() != 1 {
        return Ok(None);
    }
    let inputs = model.node_input_facts(node.id)?;
    let Some(inputs) = inputs
        .iter()
        .map(|fact| fact.konst.clone())
        .collect::<Option<Vec<_>>>()
    else {
        return Ok(None);
    };
    let bytes = |fact: &TypedFact| fact.mem_size().to_usize().ok();
    let given: usize = inputs
        .iter()
        .map(|tensor| {
            tensor
                .volume()
                .saturating_mul(tensor.datum_type().size_of())
        })
        .sum();
    if bytes(&node.outputs[0].fact).is_none_or(|bytes| bytes > WIDENED * given) {
        return Ok(None);
    }
    let inputs = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
    // A node that cannot be computed alone, or not at all, is left for the inference to say so.
    let Ok(Some(results)) = node.op.eval_out_of_plan(inputs) else {
        return Ok(None);
    };
    let Some(result) = results.into_iter().next() else {
        return Ok(None);
    };
    let mut patch = TypedModelPatch::default();
    let made = patch.add_const(&node.name, result.into_arc_tensor())?;
    patch.shunt_outside(model, node.id.into(), made)?;
    Ok(Some(patch))
}
