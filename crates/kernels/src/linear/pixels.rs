//! Planar products: lanes are output pixels, weights are broadcast.
//!
//! The words that a vector of pixels reads are cut into limbs once and meet every output channel of the group.

use super::Packed;
use super::jobs::{self, Grid, Job};
use super::shape::{Conv, Valid};
use super::vectors::{PIXEL_ROWS, Scratch, Store, Vectors, blocks, room, steps};
use super::weights::Weights;
use super::window::Window;

/// A convolution with packed weights.
pub(super) struct Pixels<V> {
    isa: V,
    window: Window,
    in_group: usize,
    out_group: usize,
    /// Each plane: `[group][block][tile of rows][step][row]`, with its binary places.
    planes: Vec<(Vec<i32>, u32)>,
}

impl<V: Vectors> Pixels<V> {
    pub(super) fn new(isa: V, conv: &Valid<Conv>, weights: &Weights) -> Self {
        let window = Window::new(conv);
        let (in_group, out_group) = (
            conv.in_channels / conv.groups,
            conv.out_channels / conv.groups,
        );
        let pack = |plane: &[i8]| {
            let mut packed = Vec::new();
            for group in plane.chunks_exact(out_group * in_group * window.taps()) {
                pack::<V>(group, in_group, window.taps(), &mut packed);
            }
            packed
        };
        let planes = weights
            .places()
            .map(|(plane, place)| (pack(plane), place))
            .collect();
        Self {
            isa,
            window,
            in_group,
            out_group,
            planes,
        }
    }

    fn work(&self, x: &[u32], mut job: Job<'_>, scratch: &mut Scratch<V>) {
        let Scratch { panels, pixels, .. } = scratch;
        let Self {
            isa,
            window,
            in_group,
            ..
        } = self;
        let terms = in_group * window.taps();
        let longest = blocks::<V>(terms)
            .map(|block| steps::<V>(block.len()))
            .max();
        let per_group: usize = blocks::<V>(terms)
            .map(|block| steps::<V>(block.len()))
            .sum();
        // Several vectors of pixels at a time, so that every row of weights and of outputs is visited seldom.
        let vectors = CACHED / (longest.unwrap_or(1) * size_of::<V::Pixels>());
        let at_once = vectors.clamp(1, MOST_VECTORS) * V::LANES;
        let x = &x[job.group * in_group * window.plane()..][..in_group * window.plane()];
        let columns = job.rows[0].len();
        for start in (0..columns).step_by(at_once) {
            let end = columns.min(start + at_once);
            panels.resize_with((end - start).div_ceil(V::LANES), V::Panel::default);
            let starts = (start..end).step_by(V::LANES);
            for (panel, column) in panels.iter_mut().zip(starts.clone()) {
                let count = V::LANES.min(end - column);
                isa.panel(window, job.column + column, count, panel);
            }
            let mut first = job.group * self.out_group * per_group;
            for block in blocks::<V>(terms) {
                let steps = steps::<V>(block.len());
                let overwrite = block.start == 0;
                pixels.clear();
                room(pixels, panels.len() * steps);
                for panel in panels.iter() {
                    isa.pack_pixels(x, *in_group, panel, block.clone(), pixels);
                }
                for (index, (plane, place)) in self.planes.iter().enumerate() {
                    let mut at = first + job.row * steps;
                    for rows in job.rows.chunks_mut(PIXEL_ROWS) {
                        let weights = &plane[at..][..rows.len() * steps];
                        for (pixels, column) in pixels.chunks_exact(steps).zip(starts.clone()) {
                            let store = Store {
                                column,
                                count: V::LANES.min(end - column),
                                place: *place,
                                first: overwrite && index == 0,
                            };
                            isa.pixel_tile(pixels, weights, store, rows);
                        }
                        at += weights.len();
                    }
                }
                first += self.out_group * steps;
            }
        }
    }
}

impl<V: Vectors> Packed for Pixels<V> {
    fn bytes(&self) -> usize {
        self.planes
            .iter()
            .map(|(words, _)| words.len() * size_of::<i32>())
            .sum()
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        let grid = Grid {
            rows: self.out_group,
            columns: self.window.pixels(),
            step: [PIXEL_ROWS, V::LANES],
            columns_first: true,
        };
        for (x, y) in x.iter().zip(y) {
            let jobs = grid.cut(y, wanted);
            jobs::run(jobs, |job| {
                self.isa.scratch(|scratch| self.work(x, job, scratch))
            });
        }
    }
}

/// Packs one group's `[row][channel][tap]`.
fn pack<V: Vectors>(group: &[i8], channels: usize, taps: usize, packed: &mut Vec<i32>) {
    let terms = channels * taps;
    let mut step = Vec::with_capacity(V::STEP);
    for block in blocks::<V>(terms) {
        for tile in group.chunks(PIXEL_ROWS * terms) {
            for first in block.clone().step_by(V::STEP) {
                for row in tile.chunks_exact(terms) {
                    step.clear();
                    let terms = first..block.end.min(first + V::STEP);
                    step.extend(terms.map(|term| row[term % channels * taps + term / channels]));
                    packed.push(V::broadcast(&step));
                }
            }
        }
    }
}

/// Bytes of packed words that stay in a first-level cache beside the weights of a tile.
const CACHED: usize = 24 << 10;

/// Most vectors of pixels that are packed before the weights pass by them.
const MOST_VECTORS: usize = 8;
