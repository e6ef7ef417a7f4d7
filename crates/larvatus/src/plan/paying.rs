//! Which layers go where a policy says `offload = "paying"`.
//!
//! All layers that could go are taken together, so that what several of them share, an upload or a
//! round trip, is paid once. Then what does not pay stays, until the rest pays: single layers, the
//! readers of one tensor, whole rounds. In the end the whole is held against sending nothing. It
//! pays to send something away if that saves latency and processor time here, both.
//!
//! The choice follows from model, policy and rates alone: it does not look at a clock.

use std::collections::HashMap;

use larvatus_kernels::linear::Shape;
use tract_onnx::prelude::TypedModel;

use super::cost::{Traffic, local_ns, worker_ns};
use crate::model::linear::Linear;
use crate::policy::Policy;

/// Share of what the linear layers cost here that a plan must promise to save. Rates miss by more
/// than that now and then, and a plan that changes next to nothing is not worth a worker.
const LEAST_GAIN: f64 = 0.1;

/// Which of `linears`, given in the order of the graph, go. `order` are all nodes, each after
/// those that it reads.
pub(super) fn choose(
    graph: &TypedModel,
    order: &[usize],
    linears: &[&Linear],
    policy: &Policy,
) -> Vec<bool> {
    let weighing = Weighing::new(graph, order, linears, policy);
    let mut away = vec![true; linears.len()];
    loop {
        let before = weighing.cost(&away);
        // A unit that does not pay beside all the others never does: with fewer, less is shared.
        let losses: Vec<usize> = weighing
            .units(&away)
            .into_iter()
            .find_map(|units| {
                let loses = |unit: &Vec<usize>| {
                    let mut without = away.clone();
                    unit.iter().for_each(|ix| without[*ix] = false);
                    !before.saves(&weighing.cost(&without), 0.0)
                };
                let losses: Vec<usize> = units.into_iter().filter(loses).flatten().collect();
                (!losses.is_empty()).then_some(losses)
            })
            .unwrap_or_default();
        if losses.is_empty() {
            break;
        }
        losses.into_iter().for_each(|ix| away[ix] = false);
    }
    let nothing = vec![false; linears.len()];
    if weighing
        .cost(&away)
        .saves(&weighing.cost(&nothing), LEAST_GAIN)
    {
        away
    } else {
        nothing
    }
}

/// What all linear layers cost, wherever they are: nanoseconds.
struct Costs {
    wall: f64,
    cpu: f64,
}

impl Costs {
    /// Whether this is less than `other` in both by more than a share of it.
    fn saves(&self, other: &Self, share: f64) -> bool {
        self.wall < (1.0 - share) * other.wall && self.cpu < (1.0 - share) * other.cpu
    }
}

/// What it takes to weigh choices quickly.
struct Weighing<'a> {
    linears: &'a [&'a Linear],
    policy: &'a Policy,
    local: Vec<f64>,
    worker: Vec<f64>,
    /// Number of the upload that each layer reads.
    upload: Vec<usize>,
    /// Of every node in their order: what it reads, and the layer that it is.
    nodes: Vec<(Vec<usize>, Option<usize>)>,
}

impl<'a> Weighing<'a> {
    fn new(
        graph: &TypedModel,
        order: &[usize],
        linears: &'a [&'a Linear],
        policy: &'a Policy,
    ) -> Self {
        let mut place = vec![0; graph.nodes.len()];
        let mut layer = vec![None; graph.nodes.len()];
        order.iter().zip(0..).for_each(|(id, at)| place[*id] = at);
        linears
            .iter()
            .zip(0..)
            .for_each(|(linear, ix)| layer[linear.node] = Some(ix));
        let node = |id: &usize| {
            let reads = graph.node(*id).inputs.iter();
            (reads.map(|input| place[input.node]).collect(), layer[*id])
        };
        Self {
            linears,
            policy,
            local: linears
                .iter()
                .map(|linear| local_ns(linear, &policy.rates))
                .collect(),
            worker: linears
                .iter()
                .map(|linear| worker_ns(linear, policy))
                .collect(),
            upload: uploads(linears),
            nodes: order.iter().map(node).collect(),
        }
    }

    fn cost(&self, away: &[bool]) -> Costs {
        let rounds = self.rounds(away).into_iter().max().unwrap_or(0);
        let mut traffic = Traffic::of_rounds(rounds);
        let mut sent = vec![false; self.linears.len()];
        let (mut here, mut there) = (0.0, 0.0);
        for (ix, linear) in self.linears.iter().enumerate() {
            if !away[ix] {
                here += self.local[ix];
                continue;
            }
            there += self.worker[ix];
            traffic.call(linear);
            if !std::mem::replace(&mut sent[self.upload[ix]], true) {
                traffic.upload(linear);
            }
        }
        let link = traffic.passes_ns(self.policy) + traffic.link_ns(self.policy);
        Costs {
            wall: here + there + link,
            cpu: here + traffic.trusted_ns(self.policy),
        }
    }

    /// Of each layer, the number of rounds that are over when its answer is there.
    fn rounds(&self, away: &[bool]) -> Vec<usize> {
        let mut level = vec![0; self.nodes.len()];
        let mut rounds = vec![0; self.linears.len()];
        for (at, (reads, layer)) in self.nodes.iter().enumerate() {
            level[at] = reads.iter().map(|from| level[*from]).max().unwrap_or(0);
            if let Some(layer) = layer.filter(|layer| away[*layer]) {
                level[at] += 1;
                rounds[layer] = level[at];
            }
        }
        rounds
    }

    /// The layers that are away, one by one, by upload and by round.
    fn units(&self, away: &[bool]) -> [Vec<Vec<usize>>; 3] {
        let rounds = self.rounds(away);
        let gone = || (0..away.len()).filter(|ix| away[*ix]);
        let by = |of: &dyn Fn(usize) -> usize| {
            let mut units = vec![Vec::new(); away.len() + 1];
            gone().for_each(|ix| units[of(ix)].push(ix));
            units.retain(|unit| !unit.is_empty());
            units
        };
        [
            gone().map(|ix| vec![ix]).collect(),
            by(&|ix| self.upload[ix]),
            by(&|ix| rounds[ix]),
        ]
    }
}

/// Numbers of the uploads: layers that read the same tensor in the same way share one.
pub(super) fn uploads(linears: &[&Linear]) -> Vec<usize> {
    let mut numbers = HashMap::new();
    let mut number = |linear: &&Linear| {
        let key = (
            linear.input,
            linear.input_order.clone(),
            linear.images,
            linear.shape.input_rows_cols(),
            matches!(linear.shape, Shape::MatMul(_)),
        );
        let next = numbers.len();
        *numbers.entry(key).or_insert(next)
    };
    linears.iter().map(&mut number).collect()
}
