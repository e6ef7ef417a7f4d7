//! What a layer costs here and there.
//!
//! The figures are order-of-magnitude constants of one AVX-512 core, stated so that a reader can
//! judge them; they decide nothing unless the policy says `offload = "paying"`.

use super::{Layer, Plan};
use crate::engine::Engine;
use crate::model::linear::Linear;
use crate::policy::{Hiding, Integrity, Policy};

/// Nanoseconds of one float multiply-accumulate of a local convolution or product.
const LOCAL_MAC: f64 = 0.02;
/// Nanoseconds of one multiply-accumulate of a local depthwise convolution, which is bound by
/// memory.
const LOCAL_DEPTHWISE_MAC: f64 = 0.15;
/// Nanoseconds to quantise one element and put it on a link.
const SEND: f64 = 0.5;
/// Nanoseconds to hide one element.
const HIDE: f64 = 0.3;
/// Nanoseconds to take one element off a link and scale it.
const TAKE: f64 = 0.5;
/// Nanoseconds to check one element.
const CHECK: f64 = 0.1;

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

/// What a plan is expected to cost the trusted side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Milliseconds of the offloaded layers if they ran here, in float.
    pub local_ms: f64,
    /// Milliseconds to hide, check and reveal them instead.
    pub trusted_ms: f64,
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
}

pub(super) fn pays(linear: &Linear, policy: &Policy) -> bool {
    let inputs = linear.images * linear.shape.inputs();
    let outputs = linear.images * linear.shape.outputs();
    trusted_ns(inputs, outputs, policy) < local_ns(linear)
}

fn local_ns(linear: &Linear) -> f64 {
    let mac = match linear.kind {
        crate::model::linear::Kind::Depthwise => LOCAL_DEPTHWISE_MAC,
        crate::model::linear::Kind::Conv | crate::model::linear::Kind::MatMul => LOCAL_MAC,
    };
    mac * linear.macs() as f64
}

fn trusted_ns(inputs: usize, outputs: usize, policy: &Policy) -> f64 {
    let hide = match policy.hiding() {
        Hiding::Clear => 0.0,
        Hiding::Field => HIDE,
    };
    let check = match policy.integrity() {
        Integrity::Unverified => 0.0,
        Integrity::Checked { .. } => CHECK,
    };
    (SEND + hide + check) * inputs as f64 + (TAKE + check) * outputs as f64
}

/// Memory of the weights that a plan keeps, in bytes. An inference itself needs none of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightBytes {
    /// The worker's upload, kept to send it and to send it again.
    pub upload: u64,
    /// The same integers by layer, from which a session's check vectors and the engine are made.
    pub integers: u64,
    /// Packed for this machine, once it has made tickets or run the integer network itself.
    pub engine: u64,
}

impl Plan {
    /// What the plan keeps of the model's weights.
    pub fn weight_bytes(&self) -> WeightBytes {
        let planes = self
            .layers()
            .iter()
            .flat_map(|layer| layer.weights.planes());
        WeightBytes {
            upload: self.worker_model().blob().len() as u64,
            integers: planes.map(|plane| plane.len() as u64).sum(),
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

    /// What the plan is expected to cost the trusted side.
    pub fn estimate(&self) -> Estimate {
        let local: f64 = self
            .layers()
            .iter()
            .map(|layer| local_ns(&layer.placed.linear))
            .sum();
        let up: usize = self.uploads().map(super::Upload::elements).sum();
        let down: usize = self.layers().iter().map(|layer| layer.spec.outputs()).sum();
        Estimate {
            local_ms: local / 1e6,
            trusted_ms: trusted_ns(up, down, self.policy()) / 1e6,
        }
    }
}
