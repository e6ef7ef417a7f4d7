//! Effects: links, pumps, clock and entropy. Everything else in Larvatus is computation.
//!
//! * [`address`], [`listener`] and [`link`]: where a peer listens, and a connected stream to it,
//! * `tls` (a feature): links that are encrypted, between keys that know each other,
//! * `discovery` (a feature): who announces itself on the local network,
//! * [`framing`]: frames on a stream, limited before anything is allocated,
//! * `shared` and `memory`: payloads in memory that both processes map; `memory` is the one place
//!   with `unsafe`,
//! * [`pump`]: drives a [`Machine`](larvatus_proto::machine::Machine) over a link,
//! * [`inprocess`]: drives two machines against each other without a link,
//! * [`mod@serve`]: a thread and a machine for each connection of a listener,
//! * [`store`]: a folder for one process, with files that are whole or not there,
//! * [`load`]: how much others want this machine,
//! * [`clock`]: time, CPU time and entropy; [`resident`]: memory in use.
//!
//! This crate does not know which side of the protocol it carries: both use the same code. A
//! link over TCP or a virtual socket is neither encrypted nor authenticated; one over TLS is both.

#![deny(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::indexing_slicing))]

pub mod address;
pub mod clock;
#[cfg(feature = "discovery")]
pub mod discovery;
pub mod framing;
mod inbox;
pub mod inprocess;
pub mod link;
pub mod listener;
pub mod load;
mod memory;
pub mod pump;
pub mod resident;
pub mod serve;
mod shared;
pub mod store;
mod stream;
#[cfg(feature = "tls")]
pub mod tls;

pub use address::{Address, Pin};
pub use clock::{Clock, entropy, process_cpu, thread_cpu};
pub use framing::LinkError;
pub use inprocess::Pair;
pub use link::{Link, OpenError};
pub use listener::Listener;
pub use pump::{Options, Progress, Pump, Traffic};
pub use resident::{forget_peak_resident, peak_resident};
pub use serve::serve;
