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

/// Which nodes an output needs, maxima left out.
pub(crate) fn counted(graph: &Graph) -> Vec<bool> {
    Plain::new(graph).counted
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use larvatus_kernels::activation::Activation;
    use larvatus_kernels::fixed::Bound;
    use larvatus_kernels::linear::{MatMul, Shape};
    use larvatus_kernels::local::chain::Binary;
    use larvatus_proto::program::LayerSpec;

    use super::*;
    use crate::op::{Linear, Spread, Step};
    use crate::{
        ConstantId, Data, Input, Kind, Model, Node, Order, Output, Part, Prepared, TensorSpec,
        Values,
    };

    struct Lcg(u64);

    impl Lcg {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % end
        }
    }

    fn node(op: Op) -> Node {
        Node {
            name: String::new(),
            op,
            order: Order::Flat,
        }
    }

    /// A random network over tensors of four floats: sums, activations, products with weights; one or two outputs.
    fn random(seed: u64) -> Model {
        let mut rng = Lcg(seed);
        let mut next = || rng.below(1 << 20);
        let inputs = 1 + next() % 2;
        let (mut nodes, mut data): (Vec<Node>, Vec<Data>) = (Vec::new(), Vec::new());
        let mut plain: Vec<TensorId> = (0..inputs as u32).map(TensorId).collect();
        let mut maxima: BTreeMap<TensorId, TensorId> = BTreeMap::new();
        for _ in 0..3 + next() % 5 {
            // Mostly what was made last, so that networks are deep.
            let len = plain.len();
            let input = plain[len - 1 - next() % len.min(3)];
            let other = plain[next() % len];
            let made = |nodes: &Vec<Node>| TensorId((inputs + nodes.len()) as u32);
            let op = match next() % 3 {
                0 => Op::Chain {
                    input: input.into(),
                    steps: vec![Step::Binary(
                        Binary::Add,
                        Spread {
                            source: other.into(),
                            run: 1,
                        },
                    )],
                },
                1 => Op::Chain {
                    input: input.into(),
                    steps: vec![Step::Activation(Activation::Relu)],
                },
                _ => {
                    let maxima = *maxima.entry(input).or_insert_with(|| {
                        let id = made(&nodes);
                        nodes.push(node(Op::Maxima { input, count: 1 }));
                        id
                    });
                    let shape = Shape::matmul(MatMul {
                        groups: 1,
                        rows: 1,
                        inner: 4,
                        columns: 4,
                    });
                    let first = ConstantId(data.len() as u32);
                    data.push(Data::I8(
                        (0..16).map(|_| (next() % 21) as i8 - 10).collect(),
                    ));
                    data.push(Data::F32(vec![0.05; 4]));
                    Op::Linear(Box::new(Linear {
                        spec: LayerSpec {
                            shape: shape.expect("a small product"),
                            images: 1,
                            planes: 1,
                            shift: 0,
                        },
                        input,
                        maxima,
                        weights: first,
                        bound: Bound::SHORT,
                        factor: ConstantId(first.0 + 1),
                        bias: None,
                        pre: Activation::None,
                        residual: (next() % 3 == 0).then(|| other.into()),
                        post: Activation::None,
                        pool: None,
                    }))
                }
            };
            plain.push(made(&nodes));
            nodes.push(node(op));
        }
        let mut ends = BTreeSet::from([plain[plain.len() - 1]]);
        if next() % 3 == 0 && plain.len() > inputs + 1 {
            ends.insert(plain[inputs + next() % (plain.len() - inputs - 1)]);
        }
        let spec = TensorSpec {
            kind: Kind::F32,
            elements: 4,
            order: Order::Flat,
        };
        let input = |at: usize| Input {
            name: format!("x{at}"),
            shape: vec![4],
            spec,
        };
        let output = |tensor: TensorId| Output {
            name: format!("y{}", tensor.0),
            shape: vec![4],
            tensor,
        };
        let specs = data.iter().map(Data::spec).collect();
        let outputs = ends.into_iter().map(output).collect();
        let graph = Graph::new((0..inputs).map(input).collect(), specs, nodes, outputs);
        Model::new(graph.expect("a network"), &data).expect("its constants")
    }

    /// By the definition: every set of nodes is looked at.
    fn brute(graph: &Graph) -> BTreeSet<Vec<TensorId>> {
        let nodes = graph.nodes().len();
        let through = |id: TensorId| match graph.maker(id).map(|node| &graph.nodes()[node].op) {
            Some(Op::Maxima { input, .. }) => *input,
            _ => id,
        };
        let reads = |node: usize| -> BTreeSet<TensorId> {
            let sources = graph.nodes()[node].op.sources();
            let tensors = sources.into_iter().filter_map(|source| match source {
                Source::Tensor(id) => Some(through(id)),
                Source::Constant(_) => None,
            });
            tensors.collect()
        };
        let outputs: Vec<TensorId> = graph.outputs().iter().map(|output| output.tensor).collect();
        let mut useful = BTreeSet::new();
        let mut waiting = outputs.clone();
        while let Some(id) = waiting.pop() {
            if let Some(node) = graph.maker(id)
                && useful.insert(node)
            {
                waiting.extend(reads(node));
            }
        }
        let mut all = BTreeSet::new();
        for bits in 0_u32..1 << nodes {
            let inside = |node: usize| bits >> node & 1 == 1;
            let known = |id: TensorId| graph.maker(id).is_none_or(inside);
            let front: Vec<usize> = (0..nodes).filter(|node| inside(*node)).collect();
            let fits = front.iter().all(|node| {
                useful.contains(node)
                    && !outputs.contains(&graph.made_by(*node))
                    && reads(*node).into_iter().all(known)
            });
            if fits {
                let rest = useful.iter().filter(|node| !inside(**node));
                let live: BTreeSet<TensorId> = rest.flat_map(|node| reads(*node)).collect();
                all.insert(live.into_iter().filter(|id| known(*id)).collect());
            }
        }
        all
    }

    #[test]
    fn cuts_are_those_of_the_definition() {
        let mut several = 0;
        for seed in 0..300 {
            let model = random(seed);
            let graph = model.graph();
            let found = graph.cuts(100_000);
            let live: BTreeSet<Vec<TensorId>> =
                found.all.iter().map(|cut| cut.tensors.clone()).collect();
            assert!(found.complete);
            assert_eq!(live.len(), found.all.len(), "seed {seed}: a cut twice");
            assert_eq!(live, brute(graph), "seed {seed}");
            for cut in &found.all {
                assert_eq!(
                    graph.cut_at(&cut.tensors).as_ref(),
                    Some(cut),
                    "seed {seed}"
                );
                several += usize::from(cut.tensors.len() > 1);
            }
        }
        assert!(
            several > 300,
            "only {several} cuts of several tensors: the networks are too simple"
        );
    }

    #[test]
    fn a_limit_is_said() {
        let model = random(3);
        let cuts = model.graph().cuts(1);
        assert!(!cuts.complete && cuts.all.len() == 1);
    }

    fn run(part: &Part, known: &mut BTreeMap<TensorId, Values>) {
        let inputs = part.inputs().iter().map(|id| known[id].clone()).collect();
        let prepared = Prepared::new(part.model()).expect("weights");
        let outputs = prepared.run(inputs, &mut ()).expect("a run");
        for (id, values) in part.outputs().iter().zip(outputs) {
            known.insert(*id, values);
        }
    }

    #[test]
    fn parts_one_after_the_other_give_the_bits_of_the_whole() {
        let mut tried = 0;
        for seed in 0..120 {
            let model = random(seed);
            let graph = model.graph();
            let value = |at: usize| ((at * 7 + seed as usize) % 11) as f32 / 3.0 - 1.5;
            let input =
                |at: usize| Values::from((0..4).map(|i| value(4 * at + i)).collect::<Vec<f32>>());
            let inputs: Vec<Values> = (0..graph.inputs().len()).map(input).collect();
            let whole = Prepared::new(&model).expect("weights");
            let whole = whole.run(inputs.clone(), &mut ()).expect("a run");
            let cuts = graph.cuts(1000).all;
            for (at, first) in cuts.iter().enumerate().skip(1) {
                for second in cuts.iter().skip(at + 1) {
                    let behind = first.front.iter().zip(&second.front).all(|(a, b)| !a || *b);
                    let middle = model.part(Some(first), Some(second));
                    assert_eq!(behind, middle.is_ok(), "seed {seed}: {middle:?}");
                    let Ok(middle) = middle else { continue };
                    let mut known: BTreeMap<TensorId, Values> =
                        (0..).map(TensorId).zip(inputs.iter().cloned()).collect();
                    run(&model.part(None, Some(first)).expect("a front"), &mut known);
                    run(&middle, &mut known);
                    run(&model.part(Some(second), None).expect("a head"), &mut known);
                    for (output, whole) in graph.outputs().iter().zip(&whole) {
                        let (got, whole) = (known[&output.tensor].floats(), whole.floats());
                        let bits = |x: Option<&[f32]>| -> Vec<u32> {
                            x.expect("floats").iter().map(|x| x.to_bits()).collect()
                        };
                        assert_eq!(bits(got), bits(whole), "seed {seed}");
                    }
                    tried += 1;
                }
            }
        }
        assert!(tried > 300, "{tried}");
    }
}
