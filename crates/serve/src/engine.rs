//! What computes: the server knows neither models nor workers, it is given both as objects.

use std::path::Path;
use std::time::Instant;

use crate::tensor::{Port, Tensor};

/// Why an inference has no outputs.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The inputs are not what the model takes; the client's fault.
    #[error("{0}")]
    Input(String),
    /// The deadline passed on the way.
    #[error("not done by its deadline")]
    Deadline,
    /// The model cannot be used for now: its worker is gone, say. Later may be different.
    #[error("{0}")]
    Unavailable(String),
    /// The model must not be used any more: a worker lied. It is taken out of service.
    #[error("{0}")]
    Broken(String),
    /// Anything else that went wrong here.
    #[error("{0}")]
    Failed(String),
}

/// A loaded model. Called from several threads at once, never from the threads that speak with clients.
pub trait Engine: Send + Sync {
    /// What it takes, in its order.
    fn inputs(&self) -> &[Port];

    /// What it gives, in its order.
    fn outputs(&self) -> &[Port];

    /// What runs it, as metadata say: `larvatus_slalom`, say.
    fn platform(&self) -> &str;

    /// What clients should know beyond that: guarantees, places.
    fn properties(&self) -> Vec<(String, String)> {
        Vec::new()
    }

    /// One inference. `inputs` are in the order of [`inputs`](Self::inputs) and of their types and shapes.
    ///
    /// # Errors
    /// [`EngineError`].
    fn infer(&self, inputs: Vec<Tensor>, deadline: Instant) -> Result<Vec<Tensor>, EngineError>;
}

/// Makes engines of files.
pub trait Loader: Send + Sync {
    /// The name of the model that a file of the repository holds; `None` for other files.
    fn name(&self, file: &Path) -> Option<String>;

    /// Loads it. Takes seconds.
    ///
    /// # Errors
    /// One sentence: what is wrong and what to do. Clients with the right to load models see it.
    fn load(&self, file: &Path) -> Result<Box<dyn Engine>, String>;
}
