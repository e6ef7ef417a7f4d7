//! A whole network as a program with one meaning.
//!
//! A [`Graph`] is a list of operators over numbered tensors of fixed shapes. Linear maps are exact in integers, every other
//! operator is IEEE-754 binary32 arithmetic in a stated order; so the same inputs give the same tensors, bit for bit, on every
//! machine. A worker can therefore run all of it, commit to every tensor once, and anybody can take any part of
//! the run, recompute it from what was opened, and compare with `==`.
//!
//! * [`op`]: what operators there are and when one is well formed,
//! * [`graph`]: the graph, its encoding and its limits,
//! * [`tensor`]: tensors, and in which order their bytes are committed to,
//! * [`model`]: a graph with its constants, as it is uploaded,
//! * [`cut`]: where it can be cut in two,
//! * [`part`]: what lies between two cuts, as a graph of its own,
//! * [`run`]: running it,
//! * [`trace`]: what is shown of a run, and a recorder that commits to it,
//! * [`units`]: the parts of a run that can be audited, what each needs, which are drawn,
//! * [`replay`]: recomputing a part and comparing,
//! * [`pool`]: buffers that are kept for the next use.
//!
//! A graph comes from a peer: sizes, places and limits are checked before anything is allocated, and nothing panics on its
//! bytes.

#![forbid(unsafe_code)]

pub mod cut;
pub mod encode;
pub mod graph;
mod local;
pub mod model;
pub mod op;
pub mod part;
pub mod pool;
pub mod replay;
pub mod run;
pub mod tensor;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod units;

pub use cut::{Cut, Cuts};
pub use graph::{Graph, GraphError, Input, Node, Output};
pub use model::{Data, Model, ModelError};
pub use op::{Linear, Op};
pub use part::{Part, PartError};
pub use replay::Mismatch;
pub use run::{Prepared, RunError};
pub use tensor::{ConstantId, Kind, Order, Source, TensorId, TensorSpec, Values};
pub use trace::{Collector, Digester, Recorder, Trace};
pub use units::{Grain, UnitId};
