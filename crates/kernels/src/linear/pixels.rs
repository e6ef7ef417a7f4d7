//! Planar products: lanes are output pixels, weights are broadcast.
//!
//! The words that a vector of pixels reads are cut into limbs once and meet every output channel of the group.

use super::Packed;
use super::jobs::{self, Grid, Job};
use super::shape::{Conv, Valid};
use super::vectors::{PIXEL_ROWS, Scratch, Store, Vectors, blocks, steps};
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
        panels.resize_with(panels.len().max(1), V::Panel::default);
        let panel = &mut panels[0];
        let Self {
            isa,
            window,
            in_group,
            ..
        } = self;
        let terms = in_group * window.taps();
        let per_group: usize = blocks::<V>(terms)
            .map(|block| steps::<V>(block.len()))
            .sum();
        let x = &x[job.group * in_group * window.plane()..][..in_group * window.plane()];
        let columns = job.rows[0].len();
        for column in (0..columns).step_by(V::LANES) {
            let count = V::LANES.min(columns - column);
            isa.panel(window, job.column + column, count, panel);
            let mut first = job.group * self.out_group * per_group;
            for block in blocks::<V>(terms) {
                let steps = steps::<V>(block.len());
                let overwrite = block.start == 0;
                isa.pack_pixels(x, *in_group, panel, block, pixels);
                for (index, (plane, place)) in self.planes.iter().enumerate() {
                    let store = Store {
                        column,
                        count,
                        place: *place,
                        first: overwrite && index == 0,
                    };
                    let mut at = first + job.row * steps;
                    for rows in job.rows.chunks_mut(PIXEL_ROWS) {
                        let weights = &plane[at..][..rows.len() * steps];
                        isa.pixel_tile(pixels, weights, store, rows);
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

    fn apply(&self, wanted: usize, x: &[u32], y: &mut [u32]) {
        let grid = Grid {
            rows: self.out_group,
            columns: self.window.pixels(),
            step: [PIXEL_ROWS, V::LANES],
            columns_first: true,
        };
        let jobs = grid.cut(y, wanted);
        jobs::run(jobs, |job| {
            self.isa.scratch(|scratch| self.work(x, job, scratch))
        });
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
