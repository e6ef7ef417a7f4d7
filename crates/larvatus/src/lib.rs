//! Trusted side.
#![forbid(unsafe_code)]
pub(crate) mod claim;
pub(crate) mod engine;
pub mod error;
pub mod exact;
pub(crate) mod inference;
pub mod model;
pub mod plan;
pub mod policy;
pub(crate) mod quantise;
pub mod secret;
pub mod session;
pub mod tensor;
