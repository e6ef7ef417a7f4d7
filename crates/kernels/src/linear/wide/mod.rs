//! Exact linear layers whose weights are whole field elements: `y = L(x) mod p` for any weights in [0, p).
//!
//! This is what each of two workers computes when the weights W are split, W = W₁ + W₂ mod p with W₁ uniform: a
//! [`Share`] of weights says nothing about W, and has no structure that would make it cheaper. [`Split`] makes the
//! two, [`adjoint_of_share`] the vector that checks one worker's answers by themselves. ("Wide weights" of a policy
//! are something else: model weights of up to 12 bits in two planes.)
//!
//! Words and weights are taken as centred residues, |v| < 2³⁰. A product is below 2⁶⁰, so eight of them and what
//! a fold leaves stay inside 64 bits; 2³¹ ≡ 1 makes a fold a shift and an addition. So no limbs are cut: one multiplication
//! of 32 bits takes the place of sixteen of bytes. The method of tiles (see [`super::Linear`]) serves here too, as its
//! weights at the points are field elements in any case.
//!
//! Source: additive secret sharing in a field; two workers as in VeriSplit (arXiv 2406.00586, Fig. 4), there with floats.

#[cfg(target_arch = "x86_64")]
mod lines;
#[cfg(target_arch = "x86_64")]
mod pixels;
mod scalar;
mod share;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod words;

use std::fmt;

pub use share::{Share, Split};

#[cfg(target_arch = "x86_64")]
use super::Packed;
use super::adjoint::{Adjoint, transpose_share};
#[cfg(target_arch = "x86_64")]
use super::jobs;
use super::shape::{Shape, ShapeError};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
pub(super) use lines::{FOLD, WholeWords, centre};
#[cfg(target_arch = "x86_64")]
use pixels::WholePixels;
#[cfg(target_arch = "x86_64")]
use tiles::WholeTiles;
#[cfg(target_arch = "x86_64")]
use words::WholeRows;

/// A linear layer with full-width weights, packed for one instruction set.
///
/// Used like [`super::Linear`]. The packed weights are overwritten when it is dropped; [`super::wipe`] overwrites what
/// it left of x in the buffers of threads.
pub struct WideLinear {
    shape: Shape,
    isa: Isa,
    kernel: Kernel,
}

enum Kernel {
    Scalar(Share),
    #[cfg(target_arch = "x86_64")]
    Packed(Box<dyn Packed>),
}

impl WideLinear {
    /// Packs `weights` for the fastest instruction set of this CPU.
    ///
    /// Errors: `weights` has another length than `shape`.
    pub fn new(shape: Shape, weights: &Share) -> Result<Self, ShapeError> {
        Self::with_isa(Isa::best(), shape, weights)
    }

    /// Packs `weights` for `isa`; [`Isa::Scalar`] is the definition, and what [`Isa::Portable`] takes.
    ///
    /// Errors: `weights` has another length than `shape`.
    pub fn with_isa(isa: Isa, shape: Shape, weights: &Share) -> Result<Self, ShapeError> {
        fits(&shape, weights)?;
        let kernel = match isa {
            Isa::Scalar | Isa::Portable => Kernel::Scalar(weights.copy()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => Kernel::Packed(pack(token, &shape, weights)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => Kernel::Packed(match &shape {
                Shape::Conv(conv) => match WholeTiles::new(token, conv, weights) {
                    Some(tiles) => Box::new(tiles),
                    None => pack(token, &shape, weights),
                },
                Shape::MatMul(_) => pack(token, &shape, weights),
            }),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2(_) | Isa::Avx512(_) => Kernel::Scalar(weights.copy()),
        };
        Ok(Self { shape, isa, kernel })
    }

    /// `y = L(x) mod p`.
    ///
    /// Shapes: `x` and `y` have [`Shape::inputs`] and [`Shape::outputs`] words, laid out as the shape says.
    /// Domain: any words x, canonical or not; y is canonical.
    /// Exactness: exact, for any weights and any number of terms. With the feature `parallel`, the current rayon
    /// pool shares the work and the result is the same.
    /// Panics: `x` or `y` has another length; check what a peer sends before.
    pub fn apply(&self, x: &[u32], y: &mut [u32]) {
        self.apply_many(&[x], &mut [y]);
    }

    /// `y[i] = L(x[i]) mod p` for several inputs: each answer is what [`WideLinear::apply`] gives for it alone.
    ///
    /// Shapes, domain, exactness: as [`WideLinear::apply`], for each pair.
    /// Panics: `x` and `y` differ in number, or one has another length.
    pub fn apply_many(&self, x: &[&[u32]], y: &mut [&mut [u32]]) {
        assert_eq!(x.len(), y.len(), "as many answers as inputs");
        let lengths = (self.shape.inputs(), self.shape.outputs());
        for (x, y) in x.iter().zip(&*y) {
            assert_eq!(
                (x.len(), y.len()),
                lengths,
                "x and y have the shape's lengths"
            );
        }
        match &self.kernel {
            Kernel::Scalar(weights) => {
                for (x, y) in x.iter().zip(y) {
                    scalar::apply(&self.shape, weights.words(), x, y);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Packed(packed) if !x.is_empty() => {
                let macs = self.shape.macs().saturating_mul(x.len() as u64);
                packed.apply(jobs::wanted(macs), x, y);
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Packed(_) => {}
        }
    }

    /// What this layer computes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The instruction set that the weights are packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Memory that the weights take, packed.
    pub fn bytes(&self) -> usize {
        match &self.kernel {
            Kernel::Scalar(weights) => size_of_val(weights.words()),
            #[cfg(target_arch = "x86_64")]
            Kernel::Packed(packed) => packed.bytes(),
        }
    }
}

impl fmt::Debug for WideLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WideLinear({:?}, {})", self.shape, self.isa.name())
    }
}

/// `Lᵀ (outer ⊗ inner)` mod p for a layer with full-width weights, on the fastest instruction set.
///
/// Shapes, domain, exactness, panics: as [`super::adjoint()`], of which it is the counterpart.
/// Errors: `weights` has another length than `shape`.
/// Source: as there. Each share has an adjoint of its own, so that each worker's answer is checked before answers
/// are added.
pub fn adjoint_of_share(
    shape: &Shape,
    weights: &Share,
    outer: &[u32],
    inner: &[u32],
) -> Result<Adjoint, ShapeError> {
    adjoint_of_share_with(Isa::best(), shape, weights, outer, inner)
}

/// [`adjoint_of_share`] on a given instruction set; the result is the same.
pub fn adjoint_of_share_with(
    isa: Isa,
    shape: &Shape,
    weights: &Share,
    outer: &[u32],
    inner: &[u32],
) -> Result<Adjoint, ShapeError> {
    fits(shape, weights)?;
    Ok(transpose_share(isa, shape, weights.words(), outer, inner))
}

fn fits(shape: &Shape, weights: &Share) -> Result<(), ShapeError> {
    let (expected, got) = (shape.weights(), weights.words().len());
    if expected == got {
        Ok(())
    } else {
        Err(ShapeError::WeightCount { expected, got })
    }
}

#[cfg(target_arch = "x86_64")]
fn pack<V: WholeWords>(isa: V, shape: &Shape, weights: &Share) -> Box<dyn Packed> {
    match shape {
        Shape::Conv(conv) => Box::new(WholePixels::new(isa, conv, weights.words())),
        Shape::MatMul(matmul) => Box::new(WholeRows::new(isa, matmul, weights.words())),
    }
}

#[cfg(test)]
mod tests;
