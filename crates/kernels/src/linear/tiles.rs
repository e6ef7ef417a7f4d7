//! 3×3 convolutions of stride 1 by tiles of 4×4 outputs: 36 products instead of 144, exact in the field.
//!
//! The map is evaluated at the points 0, ±1, ±2 and ∞ along both axes: `y = Aᵀ((G w Gᵀ) ⊙ (Bᵀ x B))A`. With floats
//! the fractions in A and G cost accuracy; in F_p they are numbers like others. G is scaled to integers,
//! `(3,0,0) (1,±1,1) (1,±2,4) (0,0,3)`, so that a weight of eight bits gives one of at most 49·128, in 16 bits, and
//! what was scaled is divided out of the outputs. At each of the 36 points there remains a matrix product: tiles by
//! channels by channels.
//!
//! Words at a point are cut into two signed halves, |half| ≤ 2¹⁵. Sums stay in 32 bits for as many terms as the
//! weights at that point allow, then are folded; a layer whose weights would need folding too often is refused.
//!
//! Source: Winograd, *Arithmetic Complexity of Computations* (1980); Lavin and Gray, arXiv 1509.09308, for the points.

use std::cell::Cell;

use super::Packed;
use super::jobs;
use super::shape::{Conv, Valid};
use super::vectors::{Vectors, room, wipe};
use super::weights::Weights;
use super::window::Window;
use crate::isa::Avx512;

/// Outputs of a tile along one axis.
pub(super) const OUT: usize = 4;

/// Inputs of a tile along one axis, and points.
pub(super) const IN: usize = 6;

/// Points of both axes.
pub(super) const POINTS: usize = IN * IN;

/// Channels side by side.
pub(super) const LANES: usize = 16;

/// Terms of a sum that lie side by side, in pairs.
pub(super) const PAIRS: usize = LANES / 2;

/// Vectors of output channels that meet a tile together.
pub(super) const VECTORS: usize = 2;

/// Largest Σ|w| between two folds: 2¹⁵ times it and the 2¹⁷ that a fold leaves stay below 2³¹.
const MOST: u32 = 65_531;
const _: () = assert!((MOST as u64) * (1 << 15) + (1 << 17) < 1 << 31);

/// G, one row for each point.
const POINT: [[i32; 3]; IN] = [
    [3, 0, 0],
    [1, 1, 1],
    [1, -1, 1],
    [1, 2, 4],
    [1, -2, 4],
    [0, 0, 3],
];

/// Sixteen words, a cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Line(pub(super) [u32; LANES]);

impl Line {
    const ZERO: Self = Self([0; LANES]);
}

/// Tiles of one row of one image.
pub(super) struct Run {
    image: usize,
    /// Row of tiles, and the first of its tiles.
    pub(super) row: usize,
    pub(super) first: usize,
    pub(super) count: usize,
    /// Number of the first within its block.
    pub(super) at: usize,
}

/// Which products are wanted of a block of tiles.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) point: usize,
    /// Tiles of the block.
    pub(super) tiles: usize,
    /// Sums are folded after so many sixteens of inputs.
    pub(super) period: usize,
}

/// A convolution that this way suits.
pub(super) struct Layer {
    window: Window,
    pub(super) in_channels: usize,
    out_channels: usize,
}

impl Layer {
    /// The layer, if this way suits it.
    pub(super) fn new(conv: &Valid<Conv>) -> Option<Self> {
        let window = Window::new(conv);
        let ([1, 1], [1, 1], [3, 3], 1) = (conv.stride, conv.dilation, conv.kernel, conv.groups)
        else {
            return None;
        };
        let least = conv.in_channels.min(conv.out_channels);
        if least < LEAST_CHANNELS || tiles(&window) < LEAST_TILES {
            return None;
        }
        Some(Self {
            window,
            in_channels: conv.in_channels,
            out_channels: conv.out_channels,
        })
    }

    /// Sixteens of input channels.
    fn inputs(&self) -> usize {
        self.in_channels.div_ceil(LANES)
    }

    /// Sixteens of output channels.
    pub(super) fn vectors(&self) -> usize {
        self.out_channels.div_ceil(LANES)
    }

    /// Tiles worth computing together: enough that weights are read seldom, few enough for the caches.
    fn at_once(&self) -> usize {
        (CACHED / (POINTS * (self.inputs() + self.vectors()) * size_of::<Line>()))
            .max(LEAST_AT_ONCE)
    }

    /// `y = L(x)` for each image, `multiply(points, point, tiles, products)` being the products at one point.
    ///
    /// Points are whole centred words, or their halves.
    pub(super) fn apply<const WHOLE: bool>(
        &self,
        isa: Avx512,
        wanted: usize,
        x: &[&[u32]],
        y: &mut [&mut [u32]],
        multiply: impl Fn(&[Line], usize, usize, &mut [Line]) + Send + Sync,
    ) {
        let (inputs, vectors) = (self.inputs(), self.vectors());
        let per_image = tiles(&self.window);
        let all = x.len() * per_image;
        // Odd, so that the lines of one tile do not fall into the same sets of a cache.
        let size = (all.div_ceil(all.div_ceil(self.at_once())) | 1).min(all);
        let mut buffers = BUFFERS.take();
        for first in (0..all).step_by(size) {
            let size = size.min(all - first);
            let runs = runs(&self.window, first, size);
            let [points, products] = &mut buffers;
            room(points, inputs * POINTS * size);
            points.resize(inputs * POINTS * size, Line::ZERO);
            room(products, POINTS * vectors * size);
            products.resize(POINTS * vectors * size, Line::ZERO);
            let jobs: Vec<_> = points.chunks_exact_mut(POINTS * size).enumerate().collect();
            jobs::share(wanted, jobs, |(block, points)| {
                let first = block * LANES * self.window.plane();
                for run in &runs {
                    let x = &x[run.image][first..];
                    isa.scratch(|scratch| {
                        let lines = &mut scratch.lines;
                        isa.tiles_in::<WHOLE>(&self.window, run, x, lines, points)
                    });
                }
            });
            let jobs: Vec<_> = products
                .chunks_exact_mut(vectors * size)
                .enumerate()
                .collect();
            jobs::share(wanted, jobs, |(point, products)| {
                multiply(points, point, size, products);
            });
            let mut jobs: Vec<(usize, Vec<&mut [u32]>)> =
                (0..vectors).map(|vector| (vector, Vec::new())).collect();
            for y in y.iter_mut() {
                for ((_, job), y) in jobs
                    .iter_mut()
                    .zip(y.chunks_mut(LANES * self.window.pixels()))
                {
                    job.push(y);
                }
            }
            jobs::share(wanted, jobs, |(vector, mut y)| {
                for run in &runs {
                    let products = &products[vector * size..];
                    let y = &mut *y[run.image];
                    isa.scratch(|scratch| {
                        isa.tiles_out(
                            &self.window,
                            run,
                            products,
                            [vectors, size],
                            &mut scratch.lines,
                            y,
                        )
                    });
                }
            });
        }
        BUFFERS.set(buffers);
    }
}

/// A convolution with its weights at the points.
pub(super) struct Tiles {
    isa: Avx512,
    layer: Layer,
    /// `[point][pair of vectors][sixteen inputs][pair of inputs][vector]`: two weights for each output channel.
    weights: Vec<Line>,
    /// Sixteens of inputs between two folds, at each point.
    periods: Vec<usize>,
}

impl Tiles {
    /// The layer, if this way suits it.
    pub(super) fn new(isa: Avx512, conv: &Valid<Conv>, weights: &Weights) -> Option<Self> {
        let [plane] = weights.planes() else {
            return None;
        };
        let mut layer = Self {
            isa,
            layer: Layer::new(conv)?,
            weights: Vec::new(),
            periods: Vec::new(),
        };
        let (inputs, vectors) = (layer.layer.inputs(), layer.layer.vectors());
        layer.weights = vec![Line::ZERO; POINTS * vectors * inputs * PAIRS];
        // Σ|w| over sixteen inputs, the sums that the periods follow from.
        let mut sums = vec![0u32; POINTS * inputs * vectors * LANES];
        for (index, kernel) in plane.as_chunks::<9>().0.iter().enumerate() {
            let [out, input] = [index / conv.in_channels, index % conv.in_channels];
            let (vector, lane) = (out / LANES, out % LANES);
            let (block, pair, half) = (input / LANES, input % LANES / 2, input % 2);
            for (point, weight) in at_points(kernel).into_iter().enumerate() {
                let at = layer.weight_lines(point, vector)
                    + (block * PAIRS + pair) * layer.together(vector);
                let line = &mut layer.weights[at + vector % VECTORS];
                line.0[lane] |= u32::from(weight.cast_unsigned()) << (16 * half);
                sums[((point * vectors + vector) * LANES + lane) * inputs + block] +=
                    u32::from(weight.unsigned_abs());
            }
        }
        for sums in sums.chunks_exact(vectors * LANES * inputs) {
            layer.periods.push(period(sums, inputs)?);
        }
        Some(layer)
    }

    /// Vectors that lie together with `vector`.
    fn together(&self, vector: usize) -> usize {
        VECTORS.min(self.layer.vectors() - vector / VECTORS * VECTORS)
    }

    /// The first line of weights of the vectors that lie together with `vector`.
    fn weight_lines(&self, point: usize, vector: usize) -> usize {
        (point * self.layer.vectors() + vector / VECTORS * VECTORS) * self.layer.inputs() * PAIRS
    }
}

impl Packed for Tiles {
    fn bytes(&self) -> usize {
        size_of_val(&*self.weights)
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        let multiply = |points: &[Line], point: usize, tiles: usize, products: &mut [Line]| {
            for (vector, products) in products.chunks_mut(VECTORS * tiles).enumerate() {
                let from = self.weight_lines(point, vector * VECTORS);
                let lines = products.len() / tiles * self.layer.inputs() * PAIRS;
                let period = self.periods[point];
                let at = At {
                    point,
                    tiles,
                    period,
                };
                self.isa
                    .tiles_multiply(points, &self.weights[from..][..lines], at, products);
            }
        };
        self.layer.apply::<false>(self.isa, wanted, x, y, multiply);
    }
}

thread_local! {
    /// Points and products of a block. Taken while in use: a thread that waits for others may start another layer.
    static BUFFERS: Cell<[Vec<Line>; 2]> = const { Cell::new([Vec::new(), Vec::new()]) };
}

/// Overwrites this thread's points and products.
pub(super) fn wipe_thread() {
    let mut buffers = BUFFERS.take();
    buffers.iter_mut().for_each(wipe);
    BUFFERS.set(buffers);
}

/// Tiles of one image.
fn tiles(window: &Window) -> usize {
    window.output[0].div_ceil(OUT) * window.output[1].div_ceil(OUT)
}

/// Tiles `first..first + count` of all images, by rows.
fn runs(window: &Window, first: usize, count: usize) -> Vec<Run> {
    let [rows, columns] = window.output.map(|extent| extent.div_ceil(OUT));
    let mut runs = Vec::new();
    let mut at = 0;
    while at < count {
        let tile = first + at;
        let column = tile % columns;
        let run = (columns - column).min(count - at);
        runs.push(Run {
            image: tile / (rows * columns),
            row: tile / columns % rows,
            first: column,
            count: run,
            at,
        });
        at += run;
    }
    runs
}

/// `G w Gᵀ`; at most 49·128 in magnitude.
fn at_points(kernel: &[i8; 9]) -> [i16; POINTS] {
    std::array::from_fn(|point| at_point(point, |tap| kernel[tap].into()) as i16)
}

/// `G w Gᵀ` at one point; at most 49 times the largest weight in magnitude.
pub(super) fn at_point(point: usize, weight: impl Fn(usize) -> i64) -> i64 {
    let (down, right) = (POINT[point / IN], POINT[point % IN]);
    (0..9)
        .map(|tap| i64::from(down[tap / 3] * right[tap % 3]) * weight(tap))
        .sum()
}

/// The most sixteens of inputs between two folds, given Σ|w| of each sixteen, `inputs` for each output channel.
fn period(sums: &[u32], inputs: usize) -> Option<usize> {
    let fits = |period: usize| {
        let mut blocks = sums
            .chunks_exact(inputs)
            .flat_map(|sums| sums.chunks(period));
        blocks.all(|block| block.iter().sum::<u32>() <= MOST)
    };
    (LEAST_PERIOD.min(inputs)..=inputs)
        .rev()
        .find(|&period| fits(period))
}

/// With fewer channels on either side the tiles cost more to make than they save.
const LEAST_CHANNELS: usize = 32;

/// With fewer tiles the weights, eight times as many bytes as before, take too long to read.
const LEAST_TILES: usize = 9;

/// Below this the folds cost what the points save.
const LEAST_PERIOD: usize = 2;

/// Bytes of points and products that stay in a cache.
const CACHED: usize = 768 << 10;

/// Each weight meets at least so many tiles when it is read.
const LEAST_AT_ONCE: usize = 48;
