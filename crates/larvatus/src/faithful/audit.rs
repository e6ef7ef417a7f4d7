//! Answers that are believed first and recomputed later.
//!
//! The session draws them after they have come, so the worker cannot know which. They are recomputed here, from the very request and
//! with the very weights that the worker had, in binary64; an honest answer in binary32 lies within a bound that is derived, not
//! measured ([`Witness`]). Inside that bound a liar is free.

use std::sync::Arc;

use larvatus_kernels::float::Witness;
use larvatus_proto::program::{LayerId, WorkerModel};

use super::plan::Plan;
use crate::error::WorkerMisbehaved;
use crate::session::InferenceId;

/// An answer to one call that was used before it was checked. It is worth nothing until it is settled.
#[derive(Debug)]
pub struct Provisional {
    pub(super) inference: InferenceId,
    pub(super) line: usize,
    pub(super) layer: LayerId,
    pub(super) models: Arc<Vec<WorkerModel>>,
    pub(super) request: Vec<f32>,
    pub(super) answer: Vec<f32>,
}

/// An answer that was recomputed and found within rounding of what it should have been.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settled {
    /// The inference that used it.
    pub inference: InferenceId,
    /// The worker that gave it.
    pub line: usize,
    /// The layer.
    pub layer: LayerId,
    /// The largest of its deviations, as a fraction of what was allowed there.
    pub used: f64,
}

impl Provisional {
    /// The inference that used it.
    pub fn inference(&self) -> InferenceId {
        self.inference
    }

    /// The worker that gave it.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        4 * (self.request.len() + self.answer.len()) as u64
    }

    /// Recomputes it: about as much work as the layer, in binary64.
    ///
    /// # Errors
    /// [`WorkerMisbehaved::BeyondRounding`].
    pub fn settle(self) -> Result<Settled, WorkerMisbehaved> {
        let layer = self.models[self.line].float_layer(self.layer);
        let layer = layer.expect("the plan's own layer");
        let shape = layer.shape();
        let images = self.request.chunks_exact(shape.inputs());
        let answers = self.answer.chunks_exact(shape.outputs());
        let mut used = 0.0_f64;
        for (image, (x, y)) in images.zip(answers).enumerate() {
            let witness = Witness::new(&layer, x);
            if let Some(output) = witness.refutes(y) {
                return Err(WorkerMisbehaved::BeyondRounding {
                    layer: self.layer,
                    image,
                    output,
                });
            }
            let deviations = y.iter().zip(&witness.sums).enumerate();
            let part = |(output, (y, sum)): (usize, (&f32, &f64))| {
                (f64::from(*y) - sum).abs() / witness.tolerance(output)
            };
            used = deviations.map(part).fold(used, f64::max);
        }
        Ok(Settled {
            inference: self.inference,
            line: self.line,
            layer: self.layer,
            used,
        })
    }
}

impl Plan {
    /// Answers of one inference that may be drawn for an audit: one a call and worker.
    pub fn auditable(&self) -> usize {
        self.layers().len() * self.workers()
    }
}
