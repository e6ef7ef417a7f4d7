//! What a layer costs here and there, by the policy's [`Rates`](super::Rates).
//!
//! The figures decide nothing unless the policy says `offload = "paying"`.

use larvatus_kernels::linear::{Conv, Shape};

use super::{Layer, Plan, Rates};
use crate::engine::Engine;
use crate::model::linear::{Kind, Linear};
use crate::policy::{Hiding, Integrity, Policy, WeightBits};

/// What a layer costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cost {
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// Bytes to the worker; a shared upload counts at its first reader.
    pub up: u64,
    /// Bytes back.
    pub down: u64,
}

/// What the offloaded layers of a plan are expected to cost, milliseconds of one inference. Check
/// vectors that every inference draws anew come on top.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The same layers here, in float.
    pub local_ms: f64,
    /// Processor time here to hide, send, take, check and reveal instead.
    pub trusted_ms: f64,
    /// Elapsed time of the passes that hide and check.
    pub passes_ms: f64,
    /// Elapsed time of the link.
    pub link_ms: f64,
    /// Elapsed time of the worker.
    pub worker_ms: f64,
}

impl Estimate {
    /// How many times less the trusted side does.
    pub fn gain(&self) -> f64 {
        if self.trusted_ms > 0.0 {
            self.local_ms / self.trusted_ms
        } else {
            1.0
        }
    }

    /// Elapsed time of the offloaded layers, one after the other.
    pub fn away_ms(&self) -> f64 {
        self.passes_ms + self.link_ms + self.worker_ms
    }
}

/// What goes over the link, in elements.
#[derive(Default)]
pub(super) struct Traffic {
    /// To the worker.
    up: usize,
    /// Back.
    down: usize,
    /// To the worker, once for each reader whose check has two factors.
    checked: usize,
    /// The same where the check has a word for each element.
    checked_dense: usize,
    calls: usize,
    rounds: usize,
}

impl Traffic {
    /// So many requests with nothing in them yet.
    pub(super) fn of_rounds(rounds: usize) -> Self {
        Self {
            rounds,
            ..Self::default()
        }
    }

    /// Adds what a layer reads.
    pub(super) fn upload(&mut self, linear: &Linear) {
        self.up += linear.images * linear.shape.inputs();
    }

    /// Adds a layer's call and answer.
    pub(super) fn call(&mut self, linear: &Linear) {
        let inputs = linear.images * linear.shape.inputs();
        if dense_check(&linear.shape) {
            self.checked_dense += inputs;
        } else {
            self.checked += inputs;
        }
        self.down += linear.images * linear.shape.outputs();
        self.calls += 1;
    }

    /// Elapsed time of the passes that hide and check.
    pub(super) fn passes_ns(&self, policy: &Policy) -> f64 {
        let rates = &policy.rates.trusted;
        let hide = match policy.hiding() {
            Hiding::Clear => 0.0,
            Hiding::Field => rates.hide_ns,
        };
        let checks = rates.check_ns * (self.checked + self.down) as f64
            + rates.check_dense_ns * self.checked_dense as f64;
        hide * self.up as f64
            + match policy.integrity() {
                Integrity::Unverified => 0.0,
                Integrity::Checked { .. } => checks,
            }
    }

    /// Processor time of the trusted side.
    pub(super) fn trusted_ns(&self, policy: &Policy) -> f64 {
        let rates = &policy.rates.trusted;
        self.passes_ns(policy)
            + rates.send_ns * self.up as f64
            + rates.take_ns * self.down as f64
            + 1e3 * (rates.round_us * self.rounds as f64 + rates.call_us * self.calls as f64)
    }

    pub(super) fn link_ns(&self, policy: &Policy) -> f64 {
        let rates = &policy.rates;
        // As `Plan`'s form of requests: what is not hidden has 16 bits.
        let up_bytes = match policy.hiding() {
            Hiding::Clear => 2.0,
            Hiding::Field => 4.0,
        };
        up_bytes * rates.link.up_ns * self.up as f64
            + 4.0 * rates.link.down_ns * self.down as f64
            + 1e3
                * (rates.link.round_trip_us * self.rounds as f64
                    + rates.trusted.call_us * self.calls as f64)
    }
}

pub(super) fn local_ns(linear: &Linear, rates: &Rates) -> f64 {
    let local = &rates.local;
    let mac = match (linear.kind, &linear.shape) {
        (Kind::Depthwise, _) => local.depthwise_ns,
        (_, Shape::Conv(conv)) if conv.kernel != [1, 1] => {
            local.conv_ns_at(linear.shape.output_rows_cols().1)
        }
        _ => local.product_ns,
    };
    (mac * linear.macs() as f64).max(local.weight_ns * weights(linear))
}

pub(super) fn worker_ns(linear: &Linear, policy: &Policy) -> f64 {
    let worker = &policy.rates.worker;
    let planes = match policy.weights {
        WeightBits::Int8 => 1.0,
        WeightBits::Wide => 2.0,
    };
    let mac = match (linear.kind, &linear.shape) {
        (Kind::Depthwise, _) => worker.depthwise_ns,
        (_, Shape::Conv(conv)) if tiled(conv) => worker.conv_ns,
        _ => worker.product_ns,
    };
    let work = (mac * linear.macs() as f64).max(worker.weight_ns * weights(linear));
    planes * work + 1e3 * worker.call_us
}

/// Whether a worker computes a convolution with fewer products than its definition has.
fn tiled(conv: &Conv) -> bool {
    conv.kernel == [3, 3]
        && conv.stride == [1, 1]
        && conv.dilation == [1, 1]
        && conv.groups == 1
        && conv.in_channels.min(conv.out_channels) >= 32
}

/// Whether the check reads a word for each element of the input, as `larvatus_kernels`' adjoint
/// makes it.
fn dense_check(shape: &Shape) -> bool {
    match shape {
        Shape::MatMul(product) => product.groups > 1,
        Shape::Conv(conv) => {
            let padded = conv.pad_begin != [0, 0] || conv.pad_end != [0, 0];
            conv.groups > 1 || conv.kernel != [1, 1] || conv.stride != [1, 1] || padded
        }
    }
}

fn weights(linear: &Linear) -> f64 {
    linear.shape.weights() as f64
}

/// Memory of the weights that a plan keeps, in bytes. An inference itself needs none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightBytes {
    /// As integers: kept to upload them, and to make check vectors and the engine from.
    pub integers: u64,
    /// Packed for this machine, once it has made tickets or run the integer network itself.
    pub engine: u64,
}

impl Plan {
    /// What the plan keeps of the model's weights.
    pub fn weight_bytes(&self) -> WeightBytes {
        WeightBytes {
            integers: self.worker_model().blob().len() as u64,
            engine: self.prepared().map_or(0, Engine::bytes),
        }
    }

    /// Bytes of the largest round: what goes up and what comes back, as words or as floats.
    pub fn largest_round(&self) -> u64 {
        let program = self.worker_model().program();
        let rounds = program.rounds().iter();
        let words = rounds.map(|round| program.request_words(round) + program.answer_words(round));
        4 * words.max().unwrap_or(0) as u64
    }

    /// Bytes of the u of one inference; none where nothing is hidden.
    pub fn ticket_bytes(&self) -> u64 {
        let answers = self
            .layers()
            .iter()
            .map(|layer| layer.spec.outputs() as u64);
        match self.policy().hiding() {
            Hiding::Clear => 0,
            Hiding::Field => 4 * answers.sum::<u64>(),
        }
    }

    /// What each offloaded layer costs, in the order of the layers.
    pub fn costs(&self) -> Vec<Cost> {
        let form = self.worker_model().program().form();
        let first_reader = |index: usize| {
            self.uploads()
                .any(|upload| upload.readers.first().is_some_and(|id| id.index() == index))
        };
        let cost = |(index, layer): (usize, &Layer)| Cost {
            macs: layer.placed.linear.macs(),
            up: if first_reader(index) {
                4 * form.words(layer.spec.inputs()) as u64
            } else {
                0
            },
            down: 4 * layer.spec.outputs() as u64,
        };
        self.layers().iter().enumerate().map(cost).collect()
    }

    /// What the offloaded layers are expected to cost, by the rates of the policy.
    pub fn estimate(&self) -> Estimate {
        self.estimate_by(&self.policy().rates)
    }

    /// What the offloaded layers are expected to cost by these rates.
    pub fn estimate_by(&self, rates: &Rates) -> Estimate {
        let mut policy = self.policy().clone();
        policy.rates = *rates;
        let policy = &policy;
        let linears = || self.layers().iter().map(|layer| &layer.placed.linear);
        let mut traffic = Traffic::of_rounds(self.round_trips());
        linears().for_each(|linear| traffic.call(linear));
        let first = |upload: &super::Upload| upload.readers.first().copied();
        for id in self.uploads().filter_map(first) {
            traffic.upload(&self.layers()[id.index()].placed.linear);
        }
        // Unlike `sum`, which of nothing makes −0.
        let total = |of: &dyn Fn(&Linear) -> f64| linears().fold(0.0, |sum, layer| sum + of(layer));
        let local = total(&|layer| local_ns(layer, &policy.rates));
        let worker = total(&|layer| worker_ns(layer, policy));
        Estimate {
            local_ms: local / 1e6,
            trusted_ms: traffic.trusted_ns(policy) / 1e6,
            passes_ms: traffic.passes_ns(policy) / 1e6,
            link_ms: traffic.link_ns(policy) / 1e6,
            worker_ms: worker / 1e6,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::model::Model;
    use crate::plan::{Plan, Rates};
    use crate::policy::{Offload, Policy};

    fn paying(rates: Rates) -> std::sync::Arc<Plan> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../testkit/models/tiny-cnn.onnx"
        );
        let model = Model::load(&std::fs::read(path).unwrap(), &[]).unwrap();
        let mut policy = Policy::default();
        policy.offload = Offload::Paying;
        policy.rates = rates;
        Plan::new(&model, &policy).unwrap()
    }

    /// A machine that is slow at products, so that every layer pays in processor time.
    fn slow_here() -> Rates {
        let mut rates = Rates::default();
        rates.local.conv_ns = 1e3;
        rates.local.product_ns = 1e3;
        rates.local.depthwise_ns = 1e3;
        rates
    }

    #[test]
    fn a_slow_machine_sends_every_layer_away() {
        let plan = paying(slow_here());
        assert!(plan.kept().is_empty(), "{:?}", plan.kept());
        let estimate = plan.estimate();
        assert!(estimate.away_ms() < estimate.local_ms);
    }

    #[test]
    fn a_slow_link_keeps_every_layer_though_processor_time_would_be_saved() {
        let mut rates = slow_here();
        rates.link.round_trip_us = 1e9;
        assert_eq!(paying(rates).round_trips(), 0);
    }

    #[test]
    fn dear_passes_keep_every_layer_though_it_would_be_faster() {
        let mut rates = slow_here();
        rates.trusted.round_us = 1e9;
        assert_eq!(paying(rates).round_trips(), 0);
    }

    #[test]
    fn a_narrower_link_never_makes_a_prediction_shorter() {
        let plan = paying(slow_here());
        let narrower: [fn(&mut Rates, f64); 3] = [
            |rates, ns| rates.link.up_ns = ns,
            |rates, ns| rates.link.down_ns = ns,
            |rates, ns| rates.link.round_trip_us = ns,
        ];
        for narrow in narrower {
            let mut rates = slow_here();
            let mut predicted = |ns: f64| {
                narrow(&mut rates, ns);
                plan.estimate_by(&rates).away_ms()
            };
            let times = [0.0, 0.1, 1.0, 26.7, 1e3].map(&mut predicted);
            assert!(times.is_sorted_by(|a, b| a < b), "{times:?}");
        }
    }

    #[test]
    fn a_check_with_a_word_for_each_element_costs_what_it_reads() {
        let plan = paying(slow_here());
        let mut rates = slow_here();
        rates.trusted.check_dense_ns += 1.0;
        let more = plan.estimate_by(&rates).passes_ms - plan.estimate().passes_ms;
        // All but the pointwise convolution and the product read 8·256 words at most.
        let dense = |row: &crate::plan::Row| row.shape.contains("3×3");
        let up: u64 = plan
            .rows()
            .iter()
            .filter(|row| dense(row))
            .map(|row| row.up)
            .sum();
        assert!(up > 0);
        assert!((more - up as f64 / 4.0 / 1e6).abs() < 1e-9, "{more} {up}");
    }
}
