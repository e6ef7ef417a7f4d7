//! What an engine must do: load a model, compute its rounds.

use larvatus_graph::Model;
use larvatus_graph::trace::Recorded;
use larvatus_kernels::linear::ShapeError;
use larvatus_proto::commit::CommitError;
use larvatus_proto::program::WorkerModel;
use larvatus_proto::wire::DecodeError;

/// An engine that computes linear layers: exactly, modulo p = 2³¹ − 1, or in IEEE floats where a program says so.
pub trait Backend: Send + Sync {
    /// What it calls itself, for people: `cpu avx512, 2 threads`.
    fn name(&self) -> String;

    /// Prepares a model for calls. The model's bytes are not needed afterwards.
    ///
    /// # Errors
    /// [`BackendError`] where the engine refuses a layer or lacks the memory.
    fn load(&self, model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError>;

    /// Prepares a whole graph for runs.
    ///
    /// # Errors
    /// [`BackendError::NoGraphs`] where the engine runs none, otherwise as [`Backend::load`].
    fn load_graph(&self, model: &Model) -> Result<Box<dyn LoadedGraph>, BackendError> {
        let _ = model;
        Err(BackendError::NoGraphs)
    }
}

/// A whole graph that an engine is ready to run; shared by connections and threads.
pub trait LoadedGraph: Send + Sync {
    /// Runs it on inputs as they are committed to, and keeps all that it commits to.
    ///
    /// Exactness: the graph's one meaning, bit for bit.
    ///
    /// # Errors
    /// [`BackendError::Run`] where the graph has no result for this input.
    fn run(&self, input: &[u8]) -> Result<Recorded, BackendError>;

    /// Bytes of memory that it holds.
    fn bytes(&self) -> u64;
}

/// A model that an engine is ready to compute; shared by connections and threads.
pub trait Loaded: Send + Sync {
    /// Computes all calls of a round.
    ///
    /// Shapes: `words` are the round's uploads one after the other, the result its calls'
    /// answers one after the other, images in order within each.
    /// Domain: any words. Exactness: exact, answers canonical (below p); with weights in floats, sums of products in
    /// binary32 in any order.
    ///
    /// # Errors
    /// [`BackendError::Round`] and [`BackendError::Words`] where the program has no such round;
    /// [`BackendError::Memory`] where the answer does not fit.
    fn call(&self, round: u32, words: &[u32]) -> Result<Vec<u32>, BackendError>;

    /// Computes the same round for several requests, of one connection or of many.
    ///
    /// Each answer is what [`Loaded::call`] gives for that request alone; an engine may read its weights once for
    /// all of them.
    ///
    /// # Errors
    /// As [`Loaded::call`]; the first that any request meets is that of all.
    fn call_many(&self, round: u32, requests: &[&[u32]]) -> Result<Vec<Vec<u32>>, BackendError> {
        let answers = requests.iter().map(|words| self.call(round, words));
        answers.collect()
    }

    /// The most calls of a round that it is worth computing together; others that wait go one after the other.
    fn together(&self, round: u32) -> usize {
        let _ = round;
        usize::MAX
    }

    /// Bytes of memory that it holds.
    fn bytes(&self) -> u64;
}

/// Why an engine did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The weights are not those of the program.
    #[error("weights of the model")]
    Weights(#[source] DecodeError),
    /// A share of weights goes with hidden requests only: with clear ones it gives the weights away.
    #[error("a share of the weights with requests in clear")]
    ShareInClear,
    /// A layer that the engine refuses.
    #[error("layer {layer} is refused: {source}")]
    Layer {
        /// Index in the program.
        layer: usize,
        /// Why.
        source: ShapeError,
    },
    /// The program has fewer rounds.
    #[error("round {round} of a program of {rounds}")]
    Round {
        /// The round asked for.
        round: u32,
        /// Rounds there are.
        rounds: usize,
    },
    /// The uploads of a round have another length.
    #[error("round {round} takes {expected} words, {got} came")]
    Words {
        /// The round asked for.
        round: u32,
        /// Words of its uploads.
        expected: usize,
        /// Words that came.
        got: usize,
    },
    /// The engine runs no whole graphs.
    #[error("this engine runs no whole graphs")]
    NoGraphs,
    /// A graph that the engine refuses.
    #[error("the graph is refused: {source}")]
    Graph {
        /// Why.
        source: larvatus_graph::ModelError,
    },
    /// A run without a result.
    #[error("the graph cannot run on this input: {source}")]
    Run {
        /// Why.
        source: larvatus_graph::RunError,
    },
    /// The engine's trace is not that of the graph.
    #[error("the engine's trace is not that of the graph: {source}")]
    Trace {
        /// What is wrong with it.
        source: CommitError,
    },
    /// Memory that the system does not give.
    #[error("no memory for {words} words")]
    Memory {
        /// Words wanted.
        words: usize,
    },
    /// The engine panicked, or did not answer every call.
    #[error("the engine broke down at this call")]
    Panicked,
    /// The system gives no threads.
    #[error("cannot start {threads} threads: {reason}")]
    Threads {
        /// Threads wanted.
        threads: usize,
        /// The system's reason.
        reason: String,
    },
}
