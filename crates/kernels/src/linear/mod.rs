//! Exact linear layers modulo p = 2³¹ − 1: `y = L(x)` for small integer weights and any words x.
//!
//! [`Shape`] says what is computed, [`Weights`] with what, [`Linear`] is the two packed for an instruction set.
//! The map includes its zero padding, so `L(q + r) = L(q) + L(r)` holds at every border. [`adjoint`] gives the
//! transposed map that a check needs. Every variant equals the definition bit for bit.
//!
//! A word is cut into limbs, limb products with eight-bit weights are summed in 32 bits by the machine's own
//! multiply-accumulate, and one reduction at the end recombines the limbs: 2³¹ ≡ 1 makes that a few rotations.
//! [`ShortLinear`] is the same for clear inputs of 16 bits, which have fewer limbs, [`WideLinear`] for weights that are
//! whole field elements.
//!
//! Source: limb decomposition as in exact integer GEMM; the field as in Slalom (ICLR 2019, §3), with another p.

mod adjoint;
#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod direct;
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod isa;
#[cfg(target_arch = "x86_64")]
mod jobs;
#[cfg(target_arch = "x86_64")]
mod pixels;
mod scalar;
mod shape;
mod short;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vectors;
mod weights;
mod wide;
#[cfg(target_arch = "x86_64")]
mod window;
#[cfg(target_arch = "x86_64")]
mod words;

use std::fmt;

pub use adjoint::{Adjoint, adjoint, adjoint_with};
pub use shape::{
    Conv, MAX_ELEMENTS, MAX_KERNEL, MAX_MACS, MatMul, Quantity, Shape, ShapeError, Valid,
};
pub use short::{ShortLinear, halves, halves_mut};
pub use weights::{Plane, Weights};
pub use wide::{Share, Split, WideLinear, adjoint_of_share, adjoint_of_share_with};

#[cfg(target_arch = "x86_64")]
use crate::isa::Avx512;
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use bytes::Bytes;
#[cfg(target_arch = "x86_64")]
use direct::Direct;
#[cfg(target_arch = "x86_64")]
use pixels::Pixels;
#[cfg(target_arch = "x86_64")]
use tiles::Tiles;
#[cfg(target_arch = "x86_64")]
use words::Words;

/// A linear layer, prepared: weights packed for one instruction set.
///
/// Made once per model by [`Linear::new`], then [`Linear::apply`] per image, from any thread. Buffers belong to
/// the calling threads, which keep them; they hold limbs of x until [`wipe`].
pub struct Linear {
    shape: Shape,
    isa: Isa,
    kernel: Kernel,
}

enum Kernel {
    Scalar(Weights),
    #[cfg(target_arch = "x86_64")]
    Packed(Box<dyn Packed>),
}

/// Packed weights of one layer.
#[cfg(target_arch = "x86_64")]
trait Packed: Send + Sync {
    /// `y = L(x)` for each image, in at least `wanted` jobs where the layer can be cut so far.
    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]);

    /// Memory of the weights.
    fn bytes(&self) -> usize;
}

impl Linear {
    /// Packs `weights` for the fastest instruction set of this CPU.
    ///
    /// Errors: `weights` has another length than `shape`.
    pub fn new(shape: Shape, weights: &Weights) -> Result<Self, ShapeError> {
        Self::with_isa(Isa::best(), shape, weights)
    }

    /// Packs `weights` for `isa`; [`Isa::Scalar`] is the definition, and what
    /// [`Isa::Portable`] takes, which has no multiply-accumulate of bytes.
    ///
    /// Errors: `weights` has another length than `shape`.
    pub fn with_isa(isa: Isa, shape: Shape, weights: &Weights) -> Result<Self, ShapeError> {
        shape.fits(weights)?;
        let kernel = match isa {
            Isa::Scalar | Isa::Portable => Kernel::Scalar(weights.clone()),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(token) => Kernel::Packed(pack(isa, token, &shape, weights)),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(token) => Kernel::Packed(match &shape {
                Shape::Conv(conv) => pack_wide(token, conv, weights)
                    .unwrap_or_else(|| pack(isa, token, &shape, weights)),
                Shape::MatMul(_) => pack(isa, token, &shape, weights),
            }),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2(_) | Isa::Avx512(_) => Kernel::Scalar(weights.clone()),
        };
        Ok(Self { shape, isa, kernel })
    }

    /// `y = L(x) mod p`.
    ///
    /// Shapes: `x` and `y` have [`Shape::inputs`] and [`Shape::outputs`] words, laid out as the shape says.
    /// Domain: any words x, canonical or not; y is canonical.
    /// Exactness: exact, for every weight in [−128, 127] and any number of terms. With the feature `parallel`,
    /// the current rayon pool shares the work and the result is the same.
    /// Panics: `x` or `y` has another length; check what a peer sends before.
    pub fn apply(&self, x: &[u32], y: &mut [u32]) {
        self.apply_many(&[x], &mut [y]);
    }

    /// `y[i] = L(x[i]) mod p` for several inputs, of one caller or of many: each answer is what
    /// [`Linear::apply`] gives for it alone.
    ///
    /// Weights are read once for all rows of all inputs where the layer is a matrix product, and once for all
    /// tiles of a block where it is a 3×3 convolution; both are bound by that for a single small input.
    ///
    /// Shapes, domain, exactness: as [`Linear::apply`], for each pair.
    /// Panics: `x` and `y` differ in number, or one has another length.
    pub fn apply_many(&self, x: &[&[u32]], y: &mut [&mut [u32]]) {
        assert_eq!(x.len(), y.len(), "as many answers as inputs");
        let (inputs, outputs) = (self.shape.inputs(), self.shape.outputs());
        for (x, y) in x.iter().zip(&*y) {
            assert_eq!(
                (x.len(), y.len()),
                (inputs, outputs),
                "x and y have the shape's lengths"
            );
        }
        match &self.kernel {
            Kernel::Scalar(weights) => {
                for (x, y) in x.iter().zip(y) {
                    scalar::apply(&self.shape, weights, x, y);
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
            Kernel::Scalar(weights) => weights.planes().iter().map(|plane| plane.len()).sum(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Packed(packed) => packed.bytes(),
        }
    }
}

impl fmt::Debug for Linear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Linear({:?}, {})", self.shape, self.isa.name())
    }
}

/// Overwrites what [`Linear::apply`] left of x in the buffers of this thread and, with the feature `parallel`, of
/// the current rayon pool.
///
/// For callers whose x is secret, a one-time pad say: once after the last of them.
pub fn wipe() {
    #[cfg(feature = "parallel")]
    rayon::broadcast(|_| wipe_thread());
    wipe_thread();
}

fn wipe_thread() {
    #[cfg(target_arch = "x86_64")]
    bytes::wipe_thread();
    #[cfg(target_arch = "x86_64")]
    tiles::wipe_thread();
    #[cfg(target_arch = "x86_64")]
    for isa in Isa::available() {
        match isa {
            Isa::Scalar | Isa::Portable => {}
            Isa::Avx2(token) => vectors::Vectors::scratch(token, vectors::Scratch::wipe),
            Isa::Avx512(token) => vectors::Vectors::scratch(token, vectors::Scratch::wipe),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn pack<V: vectors::Vectors>(
    isa: Isa,
    token: V,
    shape: &Shape,
    weights: &Weights,
) -> Box<dyn Packed> {
    match shape {
        Shape::Conv(conv) if Direct::suits(conv, shape.taps()) => {
            Box::new(Direct::new(isa, conv, weights))
        }
        Shape::Conv(conv) => Box::new(Pixels::new(token, conv, weights)),
        Shape::MatMul(matmul) => Box::new(Words::new(token, matmul, weights)),
    }
}

/// The forms that only AVX-512 has, where one suits.
#[cfg(target_arch = "x86_64")]
fn pack_wide(token: Avx512, conv: &Valid<Conv>, weights: &Weights) -> Option<Box<dyn Packed>> {
    if let Some(tiles) = Tiles::new(token, conv, weights) {
        return Some(Box::new(tiles));
    }
    let bytes = Bytes::suits(conv).then(|| Bytes::new(token, conv, weights));
    Some(Box::new(bytes??))
}

#[cfg(test)]
mod tests;
