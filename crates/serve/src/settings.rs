//! How a server behaves.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

/// How a server behaves; every limit is held before memory is taken for what it limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where it listens. Every address speaks HTTP/1.1 and HTTP/2, REST and gRPC.
    pub listen: Vec<SocketAddr>,
    /// Where it listens for TLS that ends in this process. With evidence only, and these addresses alone take inputs that
    /// are not sealed then.
    pub listen_tls: Vec<SocketAddr>,
    /// The folder of models.
    pub models: PathBuf,
    /// The models that are loaded at the start; all where `None`.
    pub load: Option<Vec<String>>,
    /// Whether clients may load and unload models.
    pub model_control: bool,
    /// Inferences that are computed at the same time.
    pub lanes: NonZeroUsize,
    /// Requests taken on and not yet answered, in whatever state; further ones are sent away at once. With
    /// [`max_request`](Self::max_request) this bounds the memory that requests hold.
    pub admit: usize,
    /// Bytes of the largest request.
    pub max_request: usize,
    /// How long a request may take from its head to its answer, whatever it asks for.
    pub deadline: Duration,
    /// How long the server waits for requests that have begun when it is told to stop.
    pub drain: Duration,
    /// Connections at the same time; further ones wait in the system's queue.
    pub connections: usize,
    /// Whether no page of this process is swapped out; metadata and metrics show it.
    pub memory_locked: bool,
}
