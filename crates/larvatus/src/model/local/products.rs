//! Products of two tensors that both depend on the input, alone or as attention.

use larvatus_kernels::local::attention::{Attention, Products, Strides};
use tract_onnx::prelude::*;
use tract_onnx::tract_core::axes::Axis;
use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{Softmax, SoftmaxKind};

use super::op::{LocalOp, Work};
use super::{floats_of, next, number, own_input, replace_with};
use crate::model::linear::resolve_views;

/// A product as the engine writes it, with what is needed to find elements.
struct Product<'a> {
    op: &'a EinSum,
    inputs: [OutletId; 2],
    /// Of both inputs, then the output.
    shapes: [Vec<usize>; 3],
}

/// How far apart neighbours along an axis are in both inputs and the output, where they have it.
type Steps = [Option<usize>; 3];

impl<'a> Product<'a> {
    fn of(model: &TypedModel, node: &'a TypedNode) -> Option<Self> {
        let op = node.op_as::<EinSum>()?;
        let [a, b] = node.inputs[..] else { return None };
        let constant = |outlet| {
            model
                .outlet_fact(outlet)
                .ok()
                .map(|fact| fact.konst.is_some())
        };
        if op.q_params.is_some() || constant(a)? || constant(b)? {
            return None;
        }
        let shape = |outlet| floats_of(model, outlet);
        Some(Self {
            op,
            inputs: [a, b],
            shapes: [shape(a)?, shape(b)?, shape(node.id.into())?],
        })
    }

    /// The axes longer than one, with their lengths and steps; `None` where a tensor has an axis twice.
    fn axes(&self) -> Option<Vec<(&'a Axis, usize, Steps)>> {
        let mut axes = Vec::new();
        for axis in self.op.axes.iter_all_axes() {
            let places = [&axis.inputs[0], &axis.inputs[1], &axis.outputs[0]];
            let mut steps = [None; 3];
            let mut len = 1;
            for ((step, places), shape) in steps.iter_mut().zip(places).zip(&self.shapes) {
                let [place] = places[..] else {
                    if places.is_empty() {
                        continue;
                    }
                    return None;
                };
                let here = *shape.get(place)?;
                if here != 1 {
                    len = here;
                    *step = Some(shape.get(place + 1..)?.iter().product());
                }
            }
            if len != 1 {
                axes.push((axis, len, steps));
            }
        }
        Some(axes)
    }
}

/// At most one axis: its length and steps, or 1 and zeros.
fn single(axes: &[(usize, Steps)]) -> Option<(usize, [usize; 3])> {
    match axes {
        [] => Some((1, [0; 3])),
        [(len, steps)] => Some((*len, steps.map(Option::unwrap_or_default))),
        _ => None,
    }
}

/// At most two axes: the outer, then the inner.
fn double(axes: &[(usize, Steps)]) -> Option<[(usize, [usize; 3]); 2]> {
    match axes {
        [] | [_] => Some([(1, [0; 3]), single(axes)?]),
        [outer, inner] => Some([single(&[*outer])?, single(&[*inner])?]),
        _ => None,
    }
}

/// A product by itself.
pub(super) fn product(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let product = Product::of(model, node)?;
        let (mut rows, mut cols, mut inner, mut batch) = (vec![], vec![], vec![], vec![]);
        for (_, len, steps) in product.axes()? {
            match steps {
                [Some(_), None, Some(_)] => rows.push((len, steps)),
                [None, Some(_), Some(_)] => cols.push((len, steps)),
                [Some(_), Some(_), None] => inner.push((len, steps)),
                [Some(_), Some(_), Some(_)] => batch.push((len, steps)),
                _ => return None,
            }
        }
        // The columns of the result are neighbours; if its rows are, the operands change places.
        let flipped = cols.first().is_none_or(|(_, steps)| steps[2] != Some(1))
            && rows.first().is_some_and(|(_, steps)| steps[2] == Some(1));
        let (a, b) = if flipped { (1, 0) } else { (0, 1) };
        if flipped {
            std::mem::swap(&mut rows, &mut cols);
        }
        let (rows, cols, inner) = (single(&rows)?, single(&cols)?, single(&inner)?);
        let [outer, matrix] = double(&batch)?;
        if cols.0 > 1 && cols.1[2] != 1 {
            return None;
        }
        let strides = |tensor: usize, row: usize, column: usize| Strides {
            matrix: matrix.1[tensor],
            row,
            column,
        };
        let shape = Products {
            matrices: matrix.0,
            rows: rows.0,
            inner: inner.0,
            cols: cols.0,
            a: strides(a, rows.1[a], inner.1[a]),
            b: strides(b, inner.1[b], cols.1[b]),
            out: strides(2, rows.1[2], 1),
        };
        let work = Work::Products {
            shape,
            batches: outer.0,
            advance: [outer.1[a], outer.1[b], outer.1[2]],
        };
        let inputs =
            [product.inputs[a], product.inputs[b]].map(|input| resolve_views(model, input));
        Some((LocalOp::new(work, &product.shapes[2]), inputs))
    };
    found().map_or(Ok(None), |(op, inputs)| {
        replace_with(model, op, &inputs, node.id.into())
    })
}

/// softmax(Q·Kᵀ·scale + mask)·V, found from the softmax.
pub(super) fn attention(
    model: &TypedModel,
    node: &TypedNode,
) -> TractResult<Option<TypedModelPatch>> {
    let found = || {
        let softmax = node.op_as::<Softmax>()?;
        let scores = floats_of(model, node.id.into())?;
        let rank = scores.len();
        if softmax.kind != SoftmaxKind::Softmax || softmax.axes[..] != [rank.checked_sub(1)?] {
            return None;
        }
        // Back to the product of Q and K.
        let mut at = model.node(own_input(model, node, 0)?.node);
        let mut mask = None;
        if let Some(op) = at.op_as::<TypedBinOp>()
            && op.0.is::<math::Add>()
        {
            let is_score = |slot: usize| {
                let outlet = own_input(model, at, slot)?;
                let before = model.node(outlet.node);
                let is = before.op_is::<EinSum>() || scale_of(model, before).is_some();
                (is && floats_of(model, outlet)? == scores).then_some(slot)
            };
            let slot = is_score(0).or_else(|| is_score(1))?;
            mask = Some(at.inputs[1 - slot]);
            at = model.node(at.inputs[slot].node);
        }
        let scaled = scale_of(model, at);
        if let Some((_, slot)) = scaled {
            at = model.node(own_input(model, at, slot)?.node);
        }
        let qk = Product::of(model, at)?;
        // On to the product with V.
        let after = next(model, node.id.into())?;
        let pv = Product::of(model, after)?;
        let p = pv
            .inputs
            .iter()
            .position(|input| *input == node.id.into())?;
        if qk.shapes[2] != scores || pv.inputs[1 - p] == node.id.into() {
            return None;
        }
        let geometry = Geometry::of(&qk, &pv, p, rank)?;
        let mask_strides = match mask {
            None => None,
            Some(mask) => Some(mask_steps(&floats_of(model, mask)?, &scores)?),
        };
        let work = geometry.work(&scores, scaled.map(|(scale, _)| scale), mask_strides)?;
        let (q, k) = if geometry.flipped { (1, 0) } else { (0, 1) };
        let mut inputs = vec![qk.inputs[q], qk.inputs[k], pv.inputs[1 - p]];
        inputs.extend(mask);
        inputs
            .iter_mut()
            .for_each(|input| *input = resolve_views(model, *input));
        Some((LocalOp::new(work, &pv.shapes[2]), inputs, after.id))
    };
    found().map_or(Ok(None), |(op, inputs, last)| {
        replace_with(model, op, &inputs, last.into())
    })
}

/// The factor of a product with a number, and the slot of the other operand.
fn scale_of(model: &TypedModel, node: &TypedNode) -> Option<(f32, usize)> {
    let op = node.op_as::<TypedBinOp>()?;
    let [a, b] = node.inputs[..] else { return None };
    if !op.0.is::<math::Mul>() {
        return None;
    }
    number(model, b)
        .map(|x| (x, 0))
        .or_else(|| number(model, a).map(|x| (x, 1)))
}

/// The mask's step along each axis of the scores, 0 where it repeats.
fn mask_steps(mask: &[usize], scores: &[usize]) -> Option<Vec<usize>> {
    if mask.len() != scores.len() || mask.last() != scores.last() {
        return None;
    }
    let mut steps = vec![0; mask.len()];
    let mut step = 1;
    for (axis, (len, full)) in mask.iter().zip(scores).enumerate().rev() {
        if len == full {
            steps[axis] = step;
        } else if *len != 1 {
            return None;
        }
        step *= len;
    }
    Some(steps)
}

/// Steps of Q, K, V and the output along the axes of attention. Axes of length one have none.
struct Geometry {
    /// K comes first in its product.
    flipped: bool,
    /// Of Q and K.
    depth: (usize, [usize; 2]),
    /// Of V and the output.
    width: (usize, [usize; 2]),
    /// For every axis of the scores: of Q, K, V and the output.
    scores: Vec<[usize; 4]>,
}

impl Geometry {
    fn of(qk: &Product<'_>, pv: &Product<'_>, p: usize, rank: usize) -> Option<Self> {
        let (row, column) = (rank.checked_sub(2)?, rank - 1);
        let place = |axis: &Axis| axis.outputs[0].first().copied();
        let axes = qk.axes()?;
        // Queries belong to the first operand, or both operands change places.
        let belongs = |at: usize, operand: usize| {
            let axis = axes.iter().find(|(axis, ..)| place(axis) == Some(at));
            axis.map(|(_, _, steps)| steps[operand].is_some() && steps[1 - operand].is_none())
        };
        let flipped = belongs(row, 1)
            .or_else(|| belongs(column, 0))
            .unwrap_or(false);
        let (q, k) = if flipped { (1, 0) } else { (0, 1) };
        if belongs(row, q) == Some(false) || belongs(column, k) == Some(false) {
            return None;
        }
        let mut found = Self {
            flipped,
            depth: (1, [0; 2]),
            width: (1, [0; 2]),
            scores: vec![[0; 4]; rank],
        };
        for (axis, len, steps) in &axes {
            match (place(axis), steps) {
                (None, [Some(_), Some(_), None]) if found.depth.0 == 1 => {
                    found.depth = (*len, [steps[q]?, steps[k]?]);
                }
                (Some(at), _) => {
                    let own = found.scores.get_mut(at)?;
                    own[0] = steps[q].unwrap_or(0);
                    own[1] = steps[k].unwrap_or(0);
                }
                _ => return None,
            }
        }
        for (axis, len, steps) in pv.axes()? {
            match axis.inputs[p].first() {
                Some(at) => {
                    let contracted = *at == column;
                    if contracted == steps[2].is_some() || (*at == row && steps[1 - p].is_some()) {
                        return None;
                    }
                    let own = found.scores.get_mut(*at)?;
                    own[2] = steps[1 - p].unwrap_or(0);
                    own[3] = steps[2].unwrap_or(0);
                }
                None if found.width.0 == 1 => found.width = (len, [steps[1 - p]?, steps[2]?]),
                None => return None,
            }
        }
        (found.width.0 == 1 || found.width.1[1] == 1).then_some(found)
    }

    fn work(&self, scores: &[usize], scale: Option<f32>, mask: Option<Vec<usize>>) -> Option<Work> {
        let rank = scores.len();
        let (row, column) = (rank - 2, rank - 1);
        let mask_at = |axis: usize| mask.as_ref().map_or(0, |steps| steps[axis]);
        let batch: Vec<usize> = (0..row).filter(|axis| scores[*axis] != 1).collect();
        let (outer, head) = match batch[..] {
            [] => (None, None),
            [head] => (None, Some(head)),
            [outer, head] => (Some(outer), Some(head)),
            _ => return None,
        };
        let step =
            |axis: Option<usize>, tensor: usize| axis.map_or(0, |axis| self.scores[axis][tensor]);
        let strides = |tensor: usize, row: usize, column: usize| Strides {
            matrix: step(head, tensor),
            row,
            column,
        };
        let (at_row, at_column) = (self.scores[row], self.scores[column]);
        let shape = Attention {
            heads: head.map_or(1, |axis| scores[axis]),
            queries: scores[row],
            keys: scores[column],
            depth: self.depth.0,
            width: self.width.0,
            q: strides(0, at_row[0], self.depth.1[0]),
            k: strides(1, at_column[1], self.depth.1[1]),
            v: strides(2, at_column[2], self.width.1[0]),
            out: strides(3, at_row[3], 1),
            scale,
            mask: mask.as_ref().map(|_| Strides {
                matrix: head.map_or(0, mask_at),
                row: mask_at(row),
                column: 1,
            }),
        };
        Some(Work::Attention {
            shape,
            batches: outer.map_or(1, |axis| scores[axis]),
            advance: [
                step(outer, 0),
                step(outer, 1),
                step(outer, 2),
                outer.map_or(0, mask_at),
                step(outer, 3),
            ],
        })
    }
}
