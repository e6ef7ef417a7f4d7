//! What the tests of Larvatus are made of; unpublished.
//!
//! * [`models`]: small networks as ONNX bytes, written by [`onnx`], which shares no code with what
//!   reads them,
//! * [`pair`]: a session and a worker in virtual time, over links that delay, lose and repeat,
//! * [`shared`]: the same over a real link with shared memory,
//! * [`whole`]: small whole graphs, run and audited without a socket,
//! * [`adversary`]: workers that lie, each in its own way,
//! * [`inputs`]: made-up inputs for models,
//! * [`fuzzing`]: what fuzz targets do with bytes,
//! * [`conformance`]: the operator cases of the ONNX project,
//! * [`chance`]: numbers that look random and are the same in every run.

#![forbid(unsafe_code)]

pub mod adversary;
pub mod chance;
pub mod conformance;
pub mod fuzzing;
pub mod inputs;
pub mod models;
pub mod onnx;
pub mod pair;
pub mod shared;
pub mod whole;
