//! Which linear layers go and which stay, before costs are looked at.

use tract_onnx::prelude::TypedModel;

use super::{Kept, PlanError};
use crate::model::linear::{Linear, StaysLocal, recognise};

/// The layers that go, each with what was made of it, and those that stay.
pub(crate) type Placing<T> = (Vec<(Linear, T)>, Vec<Kept>);

/// All linear layers of a graph in the order of its nodes: those that go, with what `place` makes of them, and those that
/// stay, with why. Layers named in `keep` stay.
///
/// # Errors
/// [`PlanError::NoSuchLayer`] where `keep` names none of them.
pub(crate) fn place_all<T>(
    graph: &TypedModel,
    order: &[usize],
    keep: &[String],
    place: impl Fn(&mut Linear) -> Result<T, StaysLocal>,
) -> Result<Placing<T>, PlanError> {
    let (mut found, mut kept): Placing<T> = (Vec::new(), Vec::new());
    for &id in order {
        let node = graph.node(id);
        let before = found.len();
        let stays = |kind, macs, why| Kept {
            name: node.name.clone(),
            kind,
            macs,
            why,
            before,
        };
        match recognise(graph, node) {
            Ok(None) => {}
            Err((kind, why)) => kept.push(stays(kind, None, why)),
            Ok(Some(mut linear)) => {
                let placed = match keep.contains(&linear.name) {
                    true => Err(StaysLocal::Policy),
                    false => place(&mut linear),
                };
                match placed {
                    Ok(placed) => found.push((linear, placed)),
                    Err(why) => kept.push(stays(linear.kind, Some(linear.macs()), why)),
                }
            }
        }
    }
    let known = |name: &String| {
        kept.iter().any(|kept| kept.name == *name)
            || found.iter().any(|(linear, _)| linear.name == *name)
    };
    match keep.iter().find(|name| !known(name)) {
        Some(name) => Err(PlanError::NoSuchLayer { name: name.clone() }),
        None => Ok((found, kept)),
    }
}
