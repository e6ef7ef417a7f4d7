//! Where a graph can be cut in two: every set of tensors that separates a front from the rest.
//!
//! A *front* is a set of nodes that holds, with each node, all that it is computed from, and no output of the graph. What of
//! it (and of the inputs) the rest still reads is *live*: whoever runs the rest sees these tensors together, however many
//! there are. Residual, dense and concatenating networks have cuts of several tensors, and looking at one of them alone
//! says little.
//!
//! Nodes that no output needs do not count, and maxima ([`Op::Maxima`]) belong to whoever reads them. So a front and its live
//! set determine each other: every node of a front leads to an output, which is in the rest, hence through a live tensor.

use std::collections::HashSet;

use crate::graph::Graph;
use crate::op::Op;
use crate::tensor::{Source, TensorId};

/// A cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    tensors: Vec<TensorId>,
    front: Vec<bool>,
    bytes: u64,
    front_cost: u64,
    linears: usize,
}

impl Cut {
    /// The live tensors, in ascending order.
    pub fn tensors(&self) -> &[TensorId] {
        &self.tensors
    }

    /// Which nodes are in front.
    pub fn front(&self) -> &[bool] {
        &self.front
    }

    /// Bytes that are live, which is what crosses.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The cost of the front, as [`Graph::cost`] counts.
    pub fn front_cost(&self) -> u64 {
        self.front_cost
    }

    /// Linear maps with weights in the front: how deep it is.
    pub fn linears(&self) -> usize {
        self.linears
    }
}

/// The cuts of a graph.
#[derive(Clone, Debug)]
pub struct Cuts {
    /// From the inputs on, by the cost of the front.
    pub all: Vec<Cut>,
    /// Whether these are all; a graph with many parallel branches can have more than anybody wants to look at.
    pub complete: bool,
}

/// The graph without maxima and without what no output needs.
struct Plain {
    /// What each node reads, maxima replaced by what they are of.
    reads: Vec<Vec<TensorId>>,
    counted: Vec<bool>,
    /// Makes an output.
    last: Vec<bool>,
}

impl Plain {
    fn new(graph: &Graph) -> Self {
        let nodes = graph.nodes();
        let mut reads: Vec<Vec<TensorId>> = Vec::with_capacity(nodes.len());
        for node in nodes {
            let mut of = Vec::new();
            for source in node.op.sources() {
                let Source::Tensor(id) = source else { continue };
                of.push(behind(graph, id));
            }
            of.sort_unstable();
            of.dedup();
            reads.push(of);
        }
        let mut last = vec![false; nodes.len()];
        let mut counted = vec![false; nodes.len()];
        for output in graph.outputs() {
            if let Some(node) = graph.maker(output.tensor) {
                (last[node], counted[node]) = (true, true);
            }
        }
        for node in (0..nodes.len()).rev() {
            if counted[node] {
                for maker in reads[node].iter().filter_map(|id| graph.maker(*id)) {
                    counted[maker] = true;
                }
            }
        }
        for (node, counted) in counted.iter_mut().enumerate() {
            *counted &= last[node] || !matches!(nodes[node].op, Op::Maxima { .. });
        }
        Self {
            reads,
            counted,
            last,
        }
    }

    /// The cut behind a front.
    fn cut(&self, graph: &Graph, front: &[bool]) -> Cut {
        let inside = |id: TensorId| graph.maker(id).is_none_or(|node| front[node]);
        let rest = (0..front.len()).filter(|node| self.counted[*node] && !front[*node]);
        let mut tensors: Vec<TensorId> = rest.flat_map(|node| &self.reads[node]).copied().collect();
        tensors.retain(|id| inside(*id));
        tensors.sort_unstable();
        tensors.dedup();
        let specs = tensors
            .iter()
            .filter_map(|id| graph.tensors().get(id.index()));
        let made = (0..front.len()).filter(|node| front[*node]);
        let linear = |node: &usize| matches!(graph.nodes()[*node].op, Op::Linear(_));
        Cut {
            bytes: specs.map(|spec| spec.bytes()).sum(),
            front_cost: made.clone().map(|node| graph.node_cost(node)).sum(),
            linears: made.filter(linear).count(),
            front: front.to_vec(),
            tensors,
        }
    }
}

/// The tensor itself, or what it holds the maxima of.
fn behind(graph: &Graph, id: TensorId) -> TensorId {
    let node = graph.maker(id).and_then(|node| graph.nodes().get(node));
    match node.map(|node| &node.op) {
        Some(Op::Maxima { input, .. }) => behind(graph, *input),
        _ => id,
    }
}

/// A set of nodes, as words of bits.
fn packed(front: &[bool]) -> Box<[u64]> {
    let word = |bits: &[bool]| {
        let each = bits.iter().enumerate();
        each.fold(0_u64, |all, (bit, set)| all | u64::from(*set) << bit)
    };
    front.chunks(64).map(word).collect()
}

impl Graph {
    /// All cuts, the inputs themselves first; at most `limit` of them, those of the smallest fronts.
    pub fn cuts(&self, limit: usize) -> Cuts {
        let plain = Plain::new(self);
        let nodes = self.nodes().len();
        let mut seen = HashSet::new();
        let mut now = vec![vec![false; nodes]];
        let (mut all, mut complete) = (Vec::new(), true);
        // Fronts of one node more each time.
        while !now.is_empty() && complete {
            let mut next = Vec::new();
            for front in now {
                if all.len() >= limit {
                    complete = false;
                    break;
                }
                for node in 0..nodes {
                    let free = plain.counted[node] && !plain.last[node] && !front[node];
                    let inside = |id: &TensorId| self.maker(*id).is_none_or(|made| front[made]);
                    if free && plain.reads[node].iter().all(inside) {
                        let mut more = front.clone();
                        more[node] = true;
                        if seen.insert(packed(&more)) {
                            next.push(more);
                        }
                    }
                }
                all.push(plain.cut(self, &front));
            }
            now = next;
        }
        all.sort_by_key(|cut| (cut.front_cost, cut.bytes));
        Cuts { all, complete }
    }

    /// The cut with these live tensors, in any order; none where nothing has just these.
    pub fn cut_at(&self, tensors: &[TensorId]) -> Option<Cut> {
        let plain = Plain::new(self);
        let mut front = vec![false; self.nodes().len()];
        for id in tensors {
            if id.index() >= self.tensors().len() {
                return None;
            }
            if let Some(node) = self.maker(*id) {
                front[node] = true;
            }
        }
        for node in (0..front.len()).rev() {
            if front[node] {
                if !plain.counted[node] || plain.last[node] {
                    return None;
                }
                for maker in plain.reads[node].iter().filter_map(|id| self.maker(*id)) {
                    front[maker] = true;
                }
            }
        }
        let cut = plain.cut(self, &front);
        let mut wanted = tensors.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        (cut.tensors == wanted).then_some(cut)
    }

    /// The cut before the head: the last linear map with weights, and whatever needs it.
    ///
    /// None where there is no such map, or all of the graph needs it.
    pub fn head(&self) -> Option<Cut> {
        let plain = Plain::new(self);
        let linear = |node: &usize| matches!(self.nodes()[*node].op, Op::Linear(_));
        let counted = |node: &usize| plain.counted[*node];
        let nodes = 0..self.nodes().len();
        let last = nodes.clone().rev().filter(counted).find(linear)?;
        let mut after = vec![false; self.nodes().len()];
        after[last] = true;
        for node in last + 1..after.len() {
            let makers = plain.reads[node].iter().filter_map(|id| self.maker(*id));
            after[node] = plain.last[node] || makers.clone().any(|maker| after[maker]);
        }
        let front: Vec<bool> = nodes
            .map(|node| plain.counted[node] && !after[node] && !plain.last[node])
            .collect();
        front
            .iter()
            .any(|inside| *inside)
            .then(|| plain.cut(self, &front))
    }
}
