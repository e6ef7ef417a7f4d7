//! Evidence, sealed models and attested channels.
//!
//! A client, or the owner of a model, wants to know what code runs at the far end before a byte of
//! value goes there. This crate verifies what a trusted execution environment says about itself,
//! offline, against a policy and at a time that the caller gives; and it builds on that verdict:
//!
//! * [`verify`]: [`Evidence`](evidence::Evidence) and a [`Policy`](policy::Policy) become
//!   [`Attested`](verify::Attested), or a [`Refused`](verify::Refused) that says why. Keys are
//!   released, requests sealed and connections used only where there is an `Attested`.
//! * [`attester`]: has the platform sign a [`Statement`](statement::Statement).
//! * [`channel`]: TLS whose key, nonce and exporter are in the evidence.
//! * [`mailbox`]: single requests, sealed end to end, for clients behind a proxy.
//! * [`seal`] and [`release`]: sealed models, and their keys for attested services alone.
//! * [`memory`]: locked memory, no core dumps; secrets need its witness.
//! * [`service`]: all that a server needs of these, behind two paths.
//!
//! Nothing here reads a clock, opens a socket or logs. The README of the crate shows the calls.

#![forbid(unsafe_code)]

pub mod attester;
pub mod channel;
pub mod evidence;
pub mod http;
pub mod mailbox;
pub mod memory;
pub mod platform;
pub mod policy;
pub mod release;
pub mod seal;
pub mod service;
pub mod statement;
pub mod verify;
