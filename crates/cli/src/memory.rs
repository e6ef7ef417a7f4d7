//! What the trusted side holds in memory, for reports.

use larvatus::plan::Plan;
use larvatus::session;
use larvatus_host::peak_resident;
use serde::Serialize;

use crate::table::bytes;

/// Bytes, each at the most so far.
#[derive(Serialize, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// The whole process, by the system's count; null where it does not tell.
    pub(crate) peak_resident: Option<u64>,
    /// Check vectors of all layers.
    pub(crate) checks: u64,
    /// u of the tickets at hand and in flight.
    pub(crate) tickets: u64,
    /// Buffers of activations.
    pub(crate) activations: u64,
    /// The largest round's words up and down.
    pub(crate) largest_round: u64,
    /// Weights, to upload them and to make check vectors and the engine from.
    pub(crate) weights_integers: u64,
    /// Weights packed to compute u here.
    pub(crate) weights_engine: u64,
}

impl Memory {
    /// Of a plan and a session that is over or about to be.
    pub(crate) fn of(plan: &Plan, session: session::Memory) -> Self {
        let weights = plan.weight_bytes();
        Self {
            peak_resident: peak_resident(),
            checks: session.checks,
            tickets: session.tickets,
            activations: session.activations,
            largest_round: plan.largest_round(),
            weights_integers: weights.integers,
            weights_engine: weights.engine,
        }
    }

    /// Of a run that sends nothing away.
    pub(crate) fn of_process() -> Self {
        Self {
            peak_resident: peak_resident(),
            ..Self::default()
        }
    }

    /// One line for people.
    pub(crate) fn sentence(&self) -> String {
        let Self {
            checks,
            tickets,
            activations,
            largest_round,
            ..
        } = *self;
        let weights = self.weights_integers + self.weights_engine;
        let peak = self.peak_resident.map_or_else(|| "?".to_owned(), bytes);
        if largest_round == 0 {
            return format!("memory: {peak} at the most");
        }
        format!(
            "memory: {peak} at the most; of these {} check vectors, {} u of tickets, {} activations \
             (largest round {}), {} weights, kept for uploading and for u",
            bytes(checks),
            bytes(tickets),
            bytes(activations),
            bytes(largest_round),
            bytes(weights)
        )
    }
}
