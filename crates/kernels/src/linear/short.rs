//! The same layers for signed inputs of 16 bits: clear activations, where nothing is hidden.
//!
//! Two limbs take the place of four, so that most layers need half the work. A 3×3 convolution that is computed by
//! tiles stays with words, which takes less still.

use std::fmt;

use super::Linear;
use super::shape::{Shape, ShapeError};
use super::weights::Weights;
use crate::field::P;
use crate::isa::Isa;

/// A linear layer for inputs of 16 bits, weights packed for one instruction set.
///
/// AVX-512 has a form of its own for it; other instruction sets compute with words.
pub struct ShortLinear {
    shape: Shape,
    kernel: Kernel,
}

enum Kernel {
    Words(Linear),
    #[cfg(target_arch = "x86_64")]
    Planar(super::bytes::Bytes),
    #[cfg(target_arch = "x86_64")]
    Tokens(super::bytes::Bytes),
}

impl ShortLinear {
    /// Packs `weights` for the fastest instruction set of this CPU.
    ///
    /// Errors: `weights` has another length than `shape`.
    pub fn new(shape: Shape, weights: &Weights) -> Result<Self, ShapeError> {
        Self::with_isa(Isa::best(), shape, weights)
    }

    /// Packs `weights` for `isa`.
    ///
    /// Errors: `weights` has another length than `shape`.
    pub fn with_isa(isa: Isa, shape: Shape, weights: &Weights) -> Result<Self, ShapeError> {
        shape.fits(weights)?;
        let kernel = match own(isa, &shape, weights) {
            Some(kernel) => kernel,
            None => Kernel::Words(Linear::with_isa(isa, shape.clone(), weights)?),
        };
        Ok(Self { shape, kernel })
    }

    /// `y = L(x) mod p`.
    ///
    /// Shapes: `x` and `y` have [`Shape::inputs`] and [`Shape::outputs`] elements, laid out as the shape says.
    /// Domain: any x; y is canonical. Exactness: exact, as [`Linear::apply`].
    /// Panics: `x` or `y` has another length.
    pub fn apply(&self, x: &[i16], y: &mut [u32]) {
        let lengths = (self.shape.inputs(), self.shape.outputs());
        assert_eq!(
            (x.len(), y.len()),
            lengths,
            "x and y have the shape's lengths"
        );
        match &self.kernel {
            Kernel::Words(linear) => linear.apply(&words(x), y),
            #[cfg(target_arch = "x86_64")]
            Kernel::Planar(bytes) => bytes.run(super::jobs::wanted(self.shape.macs()), x, y),
            #[cfg(target_arch = "x86_64")]
            Kernel::Tokens(bytes) => bytes.run_tokens(super::jobs::wanted(self.shape.macs()), x, y),
        }
    }

    /// Memory that the packed weights take, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.kernel {
            Kernel::Words(linear) => linear.bytes(),
            #[cfg(target_arch = "x86_64")]
            Kernel::Planar(bytes) | Kernel::Tokens(bytes) => super::Packed::bytes(bytes),
        }
    }

    /// What this layer computes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
}

impl fmt::Debug for ShortLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShortLinear({:?})", self.shape)
    }
}

/// The form that an instruction set has for short inputs alone.
fn own(isa: Isa, shape: &Shape, weights: &Weights) -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    if let Isa::Avx512(token) = isa {
        return match shape {
            Shape::Conv(conv) if super::Tiles::new(token, conv, weights).is_some() => None,
            Shape::Conv(conv) => super::bytes::Bytes::new(token, conv, weights).map(Kernel::Planar),
            Shape::MatMul(matmul) => {
                super::bytes::Bytes::tokens(token, matmul, weights).map(Kernel::Tokens)
            }
        };
    }
    let _ = (isa, shape, weights);
    None
}

/// Elements of 16 bits that travel two to a word, the first in the low half.
pub fn halves(words: &[u32]) -> &[i16] {
    bytemuck::cast_slice(words)
}

/// [`halves`], to be written.
pub fn halves_mut(words: &mut [u32]) -> &mut [i16] {
    bytemuck::cast_slice_mut(words)
}

#[cfg(not(target_endian = "little"))]
compile_error!("halves of words lie in memory as they travel on little-endian machines only");

/// Signed numbers as field elements.
fn words(x: &[i16]) -> Vec<u32> {
    let word = |&x: &i16| i32::from(x).rem_euclid(P as i32) as u32;
    x.iter().map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{Conv, MatMul, scalar};
    use super::*;

    fn conv(channels: [usize; 2], side: usize, kernel: usize, stride: usize) -> Shape {
        Shape::conv(Conv {
            groups: 1,
            in_channels: channels[0],
            out_channels: channels[1],
            input: [side, side + 2],
            kernel: [kernel; 2],
            stride: [stride; 2],
            dilation: [1; 2],
            pad_begin: [kernel / 2; 2],
            pad_end: [kernel / 2; 2],
        })
        .unwrap()
    }

    fn product(groups: usize, rows: usize, inner: usize, columns: usize) -> Shape {
        Shape::matmul(MatMul {
            groups,
            rows,
            inner,
            columns,
        })
        .unwrap()
    }

    #[test]
    fn short_inputs_equal_the_definition() {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(0x915f_77f5).wrapping_add(12345);
            state >> 16
        };
        for shape in [
            conv([3, 20], 30, 7, 2),
            conv([3, 40], 20, 3, 1),
            conv([40, 33], 14, 1, 1),
            conv([33, 70], 9, 3, 2),
            conv([17, 16], 7, 3, 1),
            conv([32, 32], 12, 3, 1),
            conv([16, 48], 9, 1, 2),
            product(1, 1, 1000, 100),
            product(1, 70, 65, 33),
            product(2, 5, 40, 20),
            product(1, 2, 33_000, 17),
        ] {
            let random: Vec<i8> = (0..shape.weights()).map(|_| next() as i8).collect();
            let inputs: Vec<i16> = (0..shape.inputs()).map(|_| next() as i16).collect();
            for (plane, x) in [
                (random, inputs),
                (vec![-128; shape.weights()], vec![i16::MIN; shape.inputs()]),
                (vec![127; shape.weights()], vec![i16::MAX; shape.inputs()]),
            ] {
                let weights = Weights::new(vec![plane], 0).unwrap();
                let mut expected = vec![0; shape.outputs()];
                scalar::apply(&shape, &weights, &words(&x), &mut expected);
                for isa in Isa::available() {
                    let short = ShortLinear::with_isa(isa, shape.clone(), &weights).unwrap();
                    let mut y = vec![u32::MAX; shape.outputs()];
                    short.apply(&x, &mut y);
                    assert!(y == expected, "{} at {shape:?}", isa.name());
                }
            }
        }
    }
}
