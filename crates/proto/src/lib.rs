//! What the trusted side and a worker must agree on.
//!
//! * [`program`]: the linear layers a worker holds and the rounds in which they are called,
//! * [`digest`]: the address of a program with its weights,
//! * [`commit`]: trees of digests over what a worker computed, and openings of parts of it,
//! * [`pairing`]: how two ends learn each other's key by a code that people compare,
//! * [`receipt`]: what was computed and how it was judged, signed by both sides,
//! * [`order`]: what the trusted side asks of a worker that runs a whole graph, signed,
//! * [`training`]: what is asked of a worker that convolves for a training,
//! * [`wire`] and [`frame`]: the canonical, length-limited encoding of every message,
//! * [`words`]: payloads, in memory of our own or in a link's,
//! * [`machine`]: the shape of both sides, state machines without sockets or clocks.
//!
//! Everything here is reachable from a peer's bytes: lengths are limited before anything is
//! allocated, and no function panics on what a peer sent.

#![forbid(unsafe_code)]
#![warn(clippy::indexing_slicing)]

pub mod commit;
pub mod digest;
pub mod frame;
pub mod machine;
pub mod order;
pub mod pairing;
pub mod program;
pub mod receipt;
pub mod training;
pub mod wire;
pub mod words;

/// The protocol's version; both sides must speak the same one.
pub const VERSION: u16 = 5;
