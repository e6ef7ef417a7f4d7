//! The numbers of Larvatus: exact arithmetic modulo p = 2³¹ − 1, and the passes of the trusted side over its data.
//!
//! Every pass has a plain scalar definition and variants for the instruction sets that this CPU turns out to have.
//! Variants equal the definition bit for bit; where floats are involved, they use the same operations in the same
//! order, never a fused multiply-add.
//!
//! `unsafe` is confined to [`isa`] and `linear/isa` and justified there by capability tokens.
//!
//! - [`field`]: the field F_p;
//! - [`fixed`]: activations as integers that cannot wrap;
//! - [`keystream`]: uniform field elements from a key;
//! - [`hide`](mod@hide): quantise, mask and take the sums that the check expects;
//! - [`reveal`](mod@reveal): unmask, take the sums of the answer, scale and apply what follows the layer;
//! - [`activation`]: the functions that follow a layer;
//! - [`check`]: what equal sums prove;
//! - [`linear`]: exact convolutions and matrix products, and their transposes;
//! - [`float`]: the same in IEEE floats, and how far they may be off;
//! - [`local`]: float operators that stay on the trusted side;
//! - [`isa`]: which instruction sets may be used, as unforgeable tokens.
#![deny(unsafe_code)]

use core::fmt;

pub mod activation;
pub mod check;
pub mod field;
pub mod fixed;
pub mod float;
pub mod hide;
#[allow(unsafe_code)]
pub mod isa;
pub mod keystream;
pub mod linear;
pub mod local;
#[cfg(feature = "training")]
pub mod product;
pub mod reveal;
#[cfg(test)]
mod testing;

/// A buffer is not as long as the shape it goes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrongLength {
    /// Elements that the shape has, `usize::MAX` if that does not fit.
    pub expected: usize,
    /// Elements that the buffer has.
    pub got: usize,
}

impl WrongLength {
    fn check(expected: usize, got: usize) -> Result<(), Self> {
        if expected == got {
            Ok(())
        } else {
            Err(Self { expected, got })
        }
    }

    fn check_product(rows: usize, cols: usize, got: usize) -> Result<(), Self> {
        Self::check(rows.saturating_mul(cols), got)
    }
}

impl fmt::Display for WrongLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "buffer of {} elements for a shape of {}",
            self.got, self.expected
        )
    }
}

impl core::error::Error for WrongLength {}

/// Overwrites secret words with zeros at the speed of memory.
///
/// What is overwritten counts as read afterwards, which keeps compilers from dropping the writes
/// (as far as [`core::hint::black_box`] does); writes that are each kept apart cost as much as a
/// pass of the arithmetic.
pub fn erase(words: &mut [u32]) {
    words.fill(0);
    core::hint::black_box(words);
}
