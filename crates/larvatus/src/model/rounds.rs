//! Cutting the graph: local segments between rounds of linear calls.
//!
//! The *level* of a tensor is the number of rounds that must be over before it can be known. A
//! linear call travels in the round of its input's level, so calls that are ready together share
//! one request, and the number of rounds is the longest chain of calls: no schedule has fewer.

use std::collections::{BTreeSet, HashMap, HashSet};

use larvatus_kernels::fixed::Bound;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::konst::Const;
use tract_onnx::tract_core::ops::source::TypedSource;

use super::fold::{Tail, tail};
use super::linear::Linear;
use super::{ModelError, engine, guarded, runnable};

/// A place for a tensor of one inference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Slot(pub(crate) usize);

/// A linear call with what rides along and where its tensors lie.
#[derive(Clone, Debug)]
pub(crate) struct Placed {
    pub(crate) linear: Linear,
    pub(crate) tail: Tail,
    pub(crate) round: usize,
    /// Activations are clamped to ± this many steps.
    pub(crate) bound: Bound,
    pub(crate) input: Slot,
    pub(crate) residual: Option<Slot>,
    pub(crate) output: Slot,
}

/// Local work between two rounds.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) plan: Arc<TypedSimplePlan>,
    /// The same work before the engine made it ready.
    pub(crate) source: TypedModel,
    pub(crate) inputs: Vec<Slot>,
    pub(crate) outputs: Vec<Slot>,
}

/// A graph cut into rounds.
#[derive(Clone)]
pub(crate) struct Cut {
    pub(crate) calls: Vec<Placed>,
    /// One more than rounds: the work before each, and after the last.
    pub(crate) segments: Vec<Option<Segment>>,
    pub(crate) slots: usize,
    pub(crate) inputs: Vec<Slot>,
    pub(crate) outputs: Vec<Slot>,
    /// Tensors that are known when the plan is made.
    pub(crate) constants: Vec<(Slot, Arc<Tensor>)>,
    /// For every slot, the step after which nobody reads it: `2·round` for the segment before a
    /// round, `2·round + 1` for the round itself.
    pub(crate) last_use: Vec<usize>,
}

impl Cut {
    pub(crate) fn rounds(&self) -> usize {
        self.segments.len() - 1
    }

    /// Cuts `graph` at the given linear nodes.
    pub(crate) fn new(
        graph: &TypedModel,
        linears: Vec<(Linear, Bound)>,
    ) -> Result<Self, ModelError> {
        let order = graph.eval_order().map_err(|err| engine(&err))?;
        let called: HashSet<usize> = linears.iter().map(|(linear, _)| linear.node).collect();
        let mut level = vec![0_usize; graph.nodes.len()];
        for &id in &order {
            let node = graph.node(id);
            let known = node
                .inputs
                .iter()
                .map(|input| level[input.node])
                .max()
                .unwrap_or(0);
            level[id] = known + usize::from(called.contains(&id));
        }
        let mut slots = Slots::default();
        let mut folded: HashSet<usize> = called;
        let mut calls = Vec::new();
        for (linear, bound) in linears {
            let round = level[linear.node] - 1;
            let tail = tail(graph, &linear, |outlet| level[outlet.node] <= round);
            folded.extend(&tail.nodes);
            calls.push(Placed {
                round,
                bound,
                input: slots.of(linear.input),
                residual: tail.residual.map(|outlet| slots.of(outlet)),
                output: slots.of(tail.output),
                linear,
                tail,
            });
        }
        let rounds = calls.iter().map(|call| call.round + 1).max().unwrap_or(0);
        let inputs: Vec<Slot> = graph
            .inputs
            .iter()
            .map(|outlet| slots.of(*outlet))
            .collect();
        let outputs: Vec<Slot> = graph
            .outputs
            .iter()
            .map(|outlet| slots.of(*outlet))
            .collect();

        // Walk backwards from what is wanted to the local nodes that make it.
        let given: HashSet<OutletId> = calls
            .iter()
            .map(|call| call.tail.output)
            .chain(graph.inputs.iter().copied())
            .collect();
        let mut wanted: Vec<OutletId> = graph.outputs.clone().into_iter().collect();
        for call in &calls {
            wanted.push(call.linear.input);
            wanted.extend(call.tail.residual);
        }
        let mut local: BTreeSet<usize> = BTreeSet::new();
        while let Some(outlet) = wanted.pop() {
            if !given.contains(&outlet) && local.insert(outlet.node) {
                wanted.extend(&graph.node(outlet.node).inputs);
            }
        }
        let mut constants = Vec::new();
        for outlet in graph
            .outputs
            .iter()
            .copied()
            .chain(calls.iter().map(|c| c.linear.input))
            .chain(calls.iter().filter_map(|c| c.tail.residual))
        {
            if graph.node(outlet.node).op_is::<Const>()
                && let Some(value) = graph.outlet_fact(outlet).ok().and_then(|f| f.konst.clone())
            {
                constants.push((slots.of(outlet), value));
            }
        }
        let mut segments = Vec::new();
        for round in 0..=rounds {
            let nodes: Vec<usize> = order
                .iter()
                .copied()
                .filter(|id| local.contains(id) && level[*id] == round && !folded.contains(id))
                .filter(|id| {
                    !graph.node(*id).op_is::<Const>() && !graph.node(*id).op_is::<TypedSource>()
                })
                .collect();
            segments.push(Pieces { nodes });
        }
        let segments = segments
            .iter()
            .map(|pieces| pieces.compile(graph, &local, &given, &mut slots))
            .collect::<Result<Vec<_>, _>>()?;
        let mut cut = Self {
            calls,
            segments,
            slots: slots.count,
            inputs,
            outputs,
            constants,
            last_use: vec![],
        };
        cut.last_use = cut.last_uses();
        Ok(cut)
    }

    fn last_uses(&self) -> Vec<usize> {
        let mut last = vec![0; self.slots];
        let mut touch = |slot: Slot, step: usize| last[slot.0] = last[slot.0].max(step);
        for (round, segment) in self.segments.iter().enumerate() {
            let slots = segment
                .iter()
                .flat_map(|s| s.inputs.iter().chain(&s.outputs));
            slots.for_each(|slot| touch(*slot, 2 * round));
        }
        for call in &self.calls {
            let slots = [call.input, call.output].into_iter().chain(call.residual);
            slots.for_each(|slot| touch(slot, 2 * call.round + 1));
        }
        self.outputs
            .iter()
            .for_each(|slot| touch(*slot, usize::MAX));
        last
    }
}

/// Numbers tensors as they are met.
#[derive(Default)]
struct Slots {
    of: HashMap<OutletId, Slot>,
    count: usize,
}

impl Slots {
    fn of(&mut self, outlet: OutletId) -> Slot {
        *self.of.entry(outlet).or_insert_with(|| {
            self.count += 1;
            Slot(self.count - 1)
        })
    }
}

/// The nodes of one segment.
struct Pieces {
    nodes: Vec<usize>,
}

impl Pieces {
    fn compile(
        &self,
        graph: &TypedModel,
        local: &BTreeSet<usize>,
        given: &HashSet<OutletId>,
        slots: &mut Slots,
    ) -> Result<Option<Segment>, ModelError> {
        if self.nodes.is_empty() {
            return Ok(None);
        }
        let own: HashSet<usize> = self.nodes.iter().copied().collect();
        let mut model = TypedModel {
            symbols: graph.symbols.clone(),
            ..TypedModel::default()
        };
        let mut wires: HashMap<OutletId, OutletId> = HashMap::new();
        let mut inputs = Vec::new();
        let wire = || -> TractResult<(TypedModel, Vec<OutletId>)> {
            for &id in &self.nodes {
                let node = graph.node(id);
                let mut taken = TVec::new();
                for &input in &node.inputs {
                    if let Some(wire) = wires.get(&input) {
                        taken.push(*wire);
                        continue;
                    }
                    let source = graph.node(input.node);
                    let fact = graph.outlet_fact(input)?;
                    let wire = match (source.op_as::<Const>(), &fact.konst) {
                        (Some(constant), _) => {
                            model.wire_node(source.name.clone(), constant.clone(), &[])?[0]
                        }
                        (None, Some(value)) => model.add_const(&source.name, value.clone())?,
                        (None, None) => {
                            inputs.push(input);
                            let name = format!("{}.{}", source.name, input.slot);
                            model.add_source(name, fact.without_value())?
                        }
                    };
                    wires.insert(input, wire);
                    taken.push(wire);
                }
                let outlets = model.wire_node(node.name.clone(), node.op.clone(), &taken)?;
                for (slot, outlet) in outlets.into_iter().enumerate() {
                    wires.insert(OutletId::new(id, slot), outlet);
                }
            }
            // What leaves: read by somebody outside, or wanted as a tensor.
            let mut leaving = Vec::new();
            for &id in &self.nodes {
                for slot in 0..graph.node(id).outputs.len() {
                    let outlet = OutletId::new(id, slot);
                    let read = graph
                        .outlet_successors(outlet)
                        .iter()
                        .any(|reader| !own.contains(&reader.node) && local.contains(&reader.node));
                    if (read || slots.of.contains_key(&outlet)) && !given.contains(&outlet) {
                        leaving.push(outlet);
                    }
                }
            }
            let outputs: Vec<OutletId> = leaving
                .iter()
                .filter_map(|outlet| wires.get(outlet).copied())
                .collect();
            model.select_output_outlets(&outputs)?;
            Ok((model, leaving))
        };
        let (model, leaving) = guarded(|| wire().map_err(|err| engine(&err)))?;
        if leaving.is_empty() {
            return Ok(None);
        }
        let plan = runnable(model.clone())?;
        Ok(Some(Segment {
            plan,
            source: model,
            inputs: inputs.iter().map(|outlet| slots.of(*outlet)).collect(),
            outputs: leaving.iter().map(|outlet| slots.of(*outlet)).collect(),
        }))
    }
}
