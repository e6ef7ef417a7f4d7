//! The laboratory: attacks on what workers see and on what audits let through, run against every mode.
//!
//! Each attack works on the requests that a real session sent to a real worker in the same process ([`view`]). They succeed against
//! masks in floats exactly where theory says; against pads over the field they must score at chance, and tests hold them to both.
//! What only exists to be broken is asked for by the word `danger`.
//!
//! * [`average`]: a camera that does not move, one fresh mask a frame,
//! * [`guess`]: which of two inputs was it?
//! * [`recover`]: the weights by least squares, from one worker's requests,
//! * [`basis`]: masks that are combinations of a few vectors,
//! * [`bend`]: a liar who stays within the rounding that audits allow,
//! * [`accuracy`]: what masks in floats cost.
//!
//! Source: the attacks are folklore but for `basis`, which follows arXiv 2602.11088.

#![forbid(unsafe_code)]

pub mod accuracy;
pub mod average;
pub mod basis;
pub mod bend;
pub mod guess;
pub mod recover;
pub mod scene;
pub mod stats;
pub mod view;
