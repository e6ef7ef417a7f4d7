//! The numbers of Larvatus: exact arithmetic modulo p = 2³¹ − 1, and the passes of the trusted side over its data.
//!
//! Every pass has a plain scalar definition and variants for the instruction sets that this CPU turns out to have.
//! Variants equal the definition bit for bit; where floats are involved, they use the same operations in the same
//! order, never a fused multiply-add.
//!
//! `unsafe` is confined to [`isa`] and `linear/isa` and justified there by capability tokens.
//!
//! - [`field`]: the field F_p;
//! - [`isa`]: which instruction sets may be used, as unforgeable tokens;
//! - [`linear`]: exact convolutions and matrix products, and their transposes.
#![deny(unsafe_code)]

pub mod field;
#[allow(unsafe_code)]
pub mod isa;
pub mod linear;
