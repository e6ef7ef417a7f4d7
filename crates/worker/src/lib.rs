//! The untrusted engine: holds models by their digest and computes the rounds that it is asked for, or runs whole graphs,
//! commits to all that they compute and signs it.
//!
//! * [`backend`]: what an engine must do; [`cpu`] is the one for processors,
//! * [`attention`]: whether new work is taken,
//! * [`limits`]: what a peer may make a worker hold or compute,
//! * [`store`]: the models, shared by all connections, whose calls of the same round are computed together,
//! * [`service`]: one connection, a state machine without sockets or clocks,
//! * [`training`]: one connection of a peer that trains, alike.
//!
//! Nobody trusts what this crate computes: the other side checks every answer. What it promises
//! is to its own host: a peer, whatever it sends, makes it neither panic nor hold more than
//! [`Limits`] allow. It never links the trusted side.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod attention;
pub mod backend;
pub mod cpu;
pub mod limits;
mod queue;
pub mod service;
pub mod store;
mod traces;
pub mod training;

pub use attention::Attention;
pub use backend::{Backend, BackendError, Loaded, LoadedGraph};
pub use cpu::Cpu;
pub use limits::Limits;
pub use queue::Batches;
pub use service::Service;
pub use store::Store;
pub use training::Trainer;
