//! Convolutions with very few output channels per group, depthwise ones above all: no packing.
//!
//! Words are cut into 16-bit halves; each half times an eight-bit weight is summed in 32 bits.

use zeroize::Zeroizing;

use super::Packed;
use super::jobs;
use super::shape::{Conv, Valid};
use super::weights::Weights;
use super::window::Window;
use crate::field::P;
use crate::isa::Isa;

/// Most products in one output: 2³⁰ ± 127·2¹⁵·2⁸ stays a 31-bit number.
pub(super) const MAX_TERMS: usize = 120;

/// Most output channels per group for which packing would not pay.
pub(super) const MAX_CHANNELS: usize = 3;

/// A convolution that is read where it lies.
pub(super) struct Direct {
    isa: Isa,
    pub(super) window: Window,
    pub(super) in_group: usize,
    /// First word that each output channel reads.
    first_words: Vec<usize>,
    pub(super) planes: Vec<Plane>,
}

/// One plane of weights.
pub(super) struct Plane {
    /// `[out channel][channel][tap]` as (w in the low half, w in the high half).
    weights: Vec<[i32; 2]>,
    /// 2¹⁵·Σw of each output channel: what is missing if every half of x is taken 2¹⁵ too small.
    moved: Vec<i32>,
    /// Binary places.
    pub(super) place: u32,
}

impl Plane {
    fn new(plane: &[i8], terms: usize, place: u32) -> Self {
        let halves = |&w: &i8| [i32::from(w) & 0xffff, i32::from(w) << 16];
        let sum = |row: &[i8]| row.iter().map(|&w| i32::from(w)).sum::<i32>() << 15;
        Self {
            weights: plane.iter().map(halves).collect(),
            moved: plane.chunks_exact(terms).map(sum).collect(),
            place,
        }
    }

    /// The `terms` weights of an output channel, and their part of `moved`.
    #[inline(always)]
    pub(super) fn weights(&self, out: usize, terms: usize) -> (&[[i32; 2]], i32) {
        (&self.weights[out * terms..][..terms], self.moved[out])
    }
}

impl Direct {
    /// Whether this way suits `conv`.
    pub(super) fn suits(conv: &Conv, terms: usize) -> bool {
        terms <= MAX_TERMS && conv.out_channels / conv.groups <= MAX_CHANNELS
    }

    pub(super) fn new(isa: Isa, conv: &Valid<Conv>, weights: &Weights) -> Self {
        let (window, in_group) = (Window::new(conv), conv.in_channels / conv.groups);
        let terms = in_group * window.taps();
        let out_group = conv.out_channels / conv.groups;
        let first_word = |out| out / out_group * in_group * window.plane();
        let first_words = (0..conv.out_channels).map(first_word).collect();
        Self {
            isa,
            window,
            in_group,
            first_words,
            planes: weights
                .places()
                .map(|(plane, place)| Plane::new(plane, terms, place))
                .collect(),
        }
    }

    /// The planes of x that output channel `out` reads.
    #[inline(always)]
    pub(super) fn inputs<'x>(&self, x: &'x [u32], out: usize) -> &'x [u32] {
        &x[self.first_words[out]..][..self.in_group * self.window.plane()]
    }

    /// Terms of one output.
    #[inline(always)]
    pub(super) fn terms(&self) -> usize {
        self.in_group * self.window.taps()
    }

    /// Output channels from `first` on, row by row, for the compiler to vectorise.
    #[inline(always)]
    pub(super) fn work(&self, x: &[u32], first: usize, y: &mut [u32]) {
        let Self {
            window, in_group, ..
        } = self;
        let width = window.output[1];
        let mut low = Zeroizing::new(vec![0; width]);
        let mut high = Zeroizing::new(vec![0; width]);
        for (index, row) in y.chunks_exact_mut(width).enumerate() {
            let (out, oy) = (first + index / window.output[0], index % window.output[0]);
            let x = self.inputs(x, out);
            row.fill(0);
            for plane in &self.planes {
                low.fill(0);
                high.fill(0);
                let (weights, _) = plane.weights(out, self.terms());
                for (channel, x) in x.chunks_exact(window.plane()).take(*in_group).enumerate() {
                    let taps = &weights[channel * window.taps()..][..window.taps()];
                    for (tap, w) in taps.iter().enumerate() {
                        self.add_tap(x, oy, tap, w[1] >> 16, &mut low, &mut high);
                    }
                }
                for ((word, &low), &high) in row.iter_mut().zip(low.iter()).zip(high.iter()) {
                    *word = place_halves(*word, low, high, plane.place);
                }
            }
        }
    }

    /// Adds one tap's products to a row of sums.
    #[inline(always)]
    fn add_tap(&self, x: &[u32], oy: usize, tap: usize, w: i32, low: &mut [i32], high: &mut [i32]) {
        let [_, stride] = self.window.stride;
        let [height, width] = self.window.input;
        let columns = self.window.kernel[1];
        let (down, right) = (
            self.window.shift(0, tap / columns),
            self.window.shift(1, tap % columns),
        );
        let iy = (oy * self.window.stride[0]) as isize + down;
        let Some(iy) = usize::try_from(iy).ok().filter(|&iy| iy < height) else {
            return;
        };
        // First output column whose word lies inside, and the word it reads.
        let start = usize::try_from(-right).map_or(0, |left| left.div_ceil(stride));
        let from = (start * stride) as isize + right;
        let Some(from) = usize::try_from(from).ok().filter(|&from| from < width) else {
            return;
        };
        let line = &x[iy * width..][from..width];
        let (Some(low), Some(high)) = (low.get_mut(start..), high.get_mut(start..)) else {
            return;
        };
        let add = |word: u32, low: &mut i32, high: &mut i32| {
            *low += (word & 0xffff) as i32 * w;
            *high += (word >> 16) as i32 * w;
        };
        let sums = low.iter_mut().zip(high.iter_mut());
        if stride == 1 {
            line.iter()
                .zip(sums)
                .for_each(|(&word, (low, high))| add(word, low, high));
        } else {
            let line = line.iter().step_by(stride);
            line.zip(sums)
                .for_each(|(&word, (low, high))| add(word, low, high));
        }
    }
}

impl Packed for Direct {
    fn bytes(&self) -> usize {
        let bytes = |plane: &Plane| size_of_val(&*plane.weights) + size_of_val(&*plane.moved);
        self.planes.iter().map(bytes).sum()
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        let channels = self.first_words.len().div_ceil(wanted);
        let mut bands = Vec::new();
        for (&x, y) in x.iter().zip(y) {
            let parts = y.chunks_mut(channels * self.window.pixels()).enumerate();
            bands.extend(parts.map(|(band, y)| (x, band * channels, y)));
        }
        jobs::run(bands, |(x, first, y)| match self.isa {
            Isa::Scalar | Isa::Portable => self.work(x, first, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2(isa) => isa.direct(self, x, first, y),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512(isa) => isa.direct(self, x, first, y),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2(_) | Isa::Avx512(_) => self.work(x, first, y),
        });
    }
}

/// `y + 2^place·(low + 2¹⁶·high)` mod p, canonical; branch-free, for the compiler to vectorise.
#[inline(always)]
fn place_halves(y: u32, low: i32, high: i32, place: u32) -> u32 {
    // A multiple of p that makes the sum positive: |low + 2¹⁶·high| < 2⁴⁸.
    let sum = i64::from(low) + (i64::from(high) << 16) + (i64::from(P) << 17);
    let once = (sum as u64 & u64::from(P)) + (sum as u64 >> 31);
    let sum = u64::from(y) + (once << place);
    let once = (sum & u64::from(P)) + (sum >> 31);
    let twice = ((once & u64::from(P)) + (once >> 31)) as u32;
    twice.min(twice.wrapping_sub(P))
}
