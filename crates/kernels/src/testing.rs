//! What the tests of this crate share: boundary lengths and a small deterministic generator.
#![forbid(unsafe_code)]

use crate::field::P;
use crate::local::pool::Windows;

/// Lengths below, at and above a vector, a batch of keystream and a tile.
pub(crate) const LENGTHS: [usize; 24] = [
    0, 1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49, 50, 64, 127, 196, 1000, 1023, 1024, 1025,
    3136,
];

/// SplitMix64. Statistical quality is all that tests need of it.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    pub(crate) fn below(&mut self, limit: u32) -> u32 {
        ((u128::from(self.bits()) * u128::from(limit)) >> 64) as u32
    }

    /// Canonical words, with the extremes more often than by chance.
    pub(crate) fn words(&mut self, len: usize) -> Vec<u32> {
        let word = |_| match self.below(8) {
            0 => P - 1 - self.below(2),
            1 => self.below(2),
            _ => self.below(P),
        };
        (0..len).map(word).collect()
    }

    /// Floats in (−1, 1).
    pub(crate) fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0)
            .collect()
    }
}

/// Windows over planes: (input, kernel, stride, padding before, padding after).
pub(crate) type WindowCase = ([usize; 2], [usize; 2], [usize; 2], [usize; 2], [usize; 2]);

/// The windows of a case over so many planes.
pub(crate) fn windows(
    planes: usize,
    (input, kernel, stride, before, after): WindowCase,
) -> Windows {
    let output = core::array::from_fn(|axis| {
        (input[axis] + before[axis] + after[axis] - kernel[axis]) / stride[axis] + 1
    });
    Windows {
        planes,
        input,
        output,
        kernel,
        stride,
        before,
    }
}
