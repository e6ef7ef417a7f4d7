//! 3×3 convolutions of stride 1 with full-width weights by tiles of 4×4 outputs; see [`crate::linear::tiles`].
//!
//! Weights at the points are field elements like any others, so there is nothing to keep small.

use super::lines::{self, centre};
use crate::field::Fp;
use crate::isa::Avx512;
use crate::linear::Packed;
use crate::linear::shape::{Conv, Valid};
use crate::linear::tiles::{self, LANES, Layer, Line, POINTS, VECTORS};
use crate::linear::wide::Share;

/// A convolution with its weights at the points.
pub(super) struct WholeTiles {
    isa: Avx512,
    layer: Layer,
    /// `[point][pair of vectors][input][vector]`.
    weights: lines::Packed,
}

impl WholeTiles {
    /// The layer, if this way suits it.
    pub(super) fn new(isa: Avx512, conv: &Valid<Conv>, weights: &Share) -> Option<Self> {
        let layer = Layer::new(conv)?;
        let vectors = layer.vectors();
        let mut packed = lines::Packed::new(POINTS * vectors * conv.in_channels);
        for (index, kernel) in weights.words().as_chunks::<9>().0.iter().enumerate() {
            let [out, input] = [index / conv.in_channels, index % conv.in_channels];
            let (vector, lane) = (out / LANES, out % LANES);
            let pair = vector / VECTORS * VECTORS;
            let together = VECTORS.min(vectors - pair);
            for point in 0..POINTS {
                let sum = tiles::at_point(point, |tap| i64::from(kernel[tap]));
                let at = (point * vectors + pair) * conv.in_channels
                    + input * together
                    + (vector - pair);
                packed.0[at].0[lane] = centre(Fp::from_signed(sum).word());
            }
        }
        Some(Self {
            isa,
            layer,
            weights: packed,
        })
    }
}

impl Packed for WholeTiles {
    fn bytes(&self) -> usize {
        size_of_val(&*self.weights.0)
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        let (layer, inputs) = (&self.layer, self.layer.in_channels);
        let multiply = |points: &[Line], point: usize, tiles: usize, products: &mut [Line]| {
            let weights = &self.weights.0[point * layer.vectors() * inputs..];
            let weights = weights.chunks(VECTORS * inputs);
            for (weights, products) in weights.zip(products.chunks_mut(VECTORS * tiles)) {
                let weights = &weights[..products.len() / tiles * inputs];
                let points = &points[point * tiles..];
                self.isa
                    .whole_tiles(points, POINTS * tiles, weights, tiles, products);
            }
        };
        layer.apply::<true>(self.isa, wanted, x, y, multiply);
    }
}
