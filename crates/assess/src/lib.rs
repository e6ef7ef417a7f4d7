//! How much of an input can be got back from what crosses a cut of a network: a laboratory of attacks, and its report.
//!
//! A network is cut in two; whoever runs the rest sees the tensors that cross. This crate tries to reconstruct the input
//! from them, on real labelled images, and says how well that went, cut by cut:
//!
//! * [`data`]: labelled images, those that attackers learn from apart from those that are scored,
//! * [`subject`]: the network, as it is run: the integers that a worker would get,
//! * [`front`]: the same up to a cut in floats, differentiable,
//! * [`attack`]: attackers that reconstruct,
//! * [`measure`]: scores, and measures without reconstruction,
//! * [`assess`]: all of it, resumable,
//! * [`verdict`]: a policy, and the cut that meets it, or none,
//! * [`report`]: the file that machines read, and the page that people read.
//!
//! **Promised**: what a report calls a score was reached by an attack that was run. **Not promised**: that a better attack
//! does worse. A low score is evidence about the attackers of this report, never a proof; [`measure::fisher`] states the one
//! bound there is, and only where noise is added.
//!
//! Source: the measure [`measure::legacy`] is that of "Confidential Inference via Ternary Model Partitioning"
//! (arXiv 1807.00969); the others answer what is known against it.

#![forbid(unsafe_code)]

pub mod assess;
pub mod attack;
pub mod data;
pub mod front;
pub mod measure;
pub mod report;
mod rng;
pub mod subject;
pub mod verdict;

/// Why an assessment cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssessError {
    /// The network is not one that takes an image and gives scores.
    #[error(
        "the network {0}; an assessment needs one input of an image [1, C, H, W] and scores of classes"
    )]
    Network(String),
    /// An operator that cannot be differentiated here.
    #[error(
        "node {node} ({operator}) cannot be differentiated here; the white-box attack needs that"
    )]
    Operator {
        /// Its name.
        node: String,
        /// What it is.
        operator: &'static str,
    },
    /// The images are not usable.
    #[error("{0}")]
    Data(String),
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The network's run failed.
    #[error(transparent)]
    Run(#[from] larvatus_graph::RunError),
    /// The network's weights are refused.
    #[error(transparent)]
    Model(#[from] larvatus_graph::ModelError),
    /// The framework failed.
    #[error("autodiff: {0}")]
    Framework(#[from] candle_core::Error),
    /// A report of another form.
    #[error("report: {0}")]
    Json(#[from] serde_json::Error),
    /// An attacker's numbers left the finite ones: it has no score, and a report without it would look better than it is.
    #[error("the {0} diverged; try another --seed")]
    Diverged(report::AttackKind),
    /// Somebody asked to stop; what is done is kept.
    #[error("stopped")]
    Stopped,
}

pub(crate) type Result<T, E = AssessError> = std::result::Result<T, E>;
