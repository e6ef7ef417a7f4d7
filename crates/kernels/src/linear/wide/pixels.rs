//! Convolutions with full-width weights: lanes are output pixels, weights are broadcast.

use super::lines::{self, WholeWords, blocks, centre};
use crate::linear::Packed;
use crate::linear::jobs::{self, Grid, Job};
use crate::linear::shape::{Conv, Valid};
use crate::linear::tiles::{LANES, Line};
use crate::linear::vectors::{Scratch, Store, room};
use crate::linear::window::Window;

/// A convolution with packed weights.
pub(super) struct WholePixels<V> {
    isa: V,
    window: Window,
    in_group: usize,
    out_group: usize,
    /// `[group][block][tile of rows][sixteen terms][row]`.
    weights: lines::Packed,
}

impl<V: WholeWords> WholePixels<V> {
    pub(super) fn new(isa: V, conv: &Valid<Conv>, weights: &[u32]) -> Self {
        let window = Window::new(conv);
        let (in_group, out_group) = (
            conv.in_channels / conv.groups,
            conv.out_channels / conv.groups,
        );
        let taps = window.taps();
        let terms = in_group * taps;
        let mut packed = lines::Packed::new(conv.out_channels * deep(terms));
        let mut places = packed.0.iter_mut();
        for group in weights.chunks_exact(out_group * terms) {
            for block in blocks(terms) {
                for tile in group.chunks(V::ROWS * terms) {
                    for first in block.clone().step_by(LANES) {
                        let end = block.end.min(first + LANES);
                        for (row, line) in tile.chunks_exact(terms).zip(&mut places) {
                            for (word, term) in line.0.iter_mut().zip(first..end) {
                                *word = centre(row[term % in_group * taps + term / in_group]);
                            }
                        }
                    }
                }
            }
        }
        Self {
            isa,
            window,
            in_group,
            out_group,
            weights: packed,
        }
    }

    /// Jobs of several groups have one extent; where pixels read is found once for all of them.
    fn work(&self, x: &[u32], jobs: &mut [Job<'_>], scratch: &mut Scratch<V>) {
        let Scratch { panels, lines, .. } = scratch;
        let (isa, window, in_group) = (self.isa, &self.window, self.in_group);
        let terms = in_group * window.taps();
        let [column, columns] = match jobs {
            [job, ..] => [job.column, job.rows[0].len()],
            [] => return,
        };
        let longest = blocks(terms).next().map_or(1, |block| block.len());
        let at_once = (CACHED / (longest * size_of::<Line>())).clamp(V::LINES, MOST_LINES);
        let at_once = at_once / V::LINES * V::LINES * LANES;
        for start in (0..columns).step_by(at_once) {
            let pixels = at_once.min(columns - start);
            panels.resize_with(pixels.div_ceil(V::LANES), V::Panel::default);
            for (index, panel) in panels.iter_mut().enumerate() {
                let first = index * V::LANES;
                let count = V::LANES.min(pixels - first);
                isa.panel(window, column + start + first, count, panel);
            }
            for job in &mut *jobs {
                let x = &x[job.group * in_group * window.plane()..][..in_group * window.plane()];
                let mut first = job.group * self.out_group * deep(terms);
                for block in blocks(terms) {
                    right(isa, x, in_group, panels, block.clone(), lines);
                    let deep = deep(block.len());
                    let mut at = first + job.row * deep;
                    for rows in job.rows.chunks_mut(V::ROWS) {
                        let left = &self.weights.0[at..][..rows.len() * deep];
                        let tiles = lines.chunks(V::LINES * block.len());
                        for (right, tile) in tiles.zip((0..pixels).step_by(V::LINES * LANES)) {
                            let store = Store {
                                column: start + tile,
                                count: (V::LINES * LANES).min(pixels - tile),
                                place: 0,
                                first: block.start == 0,
                            };
                            isa.whole_tile(left, right, block.len(), store, rows);
                        }
                        at += left.len();
                    }
                    first += self.out_group * deep;
                }
            }
        }
    }
}

/// Packs terms `terms` of all panels as `[tile of lines][term][line]`.
fn right<V: WholeWords>(
    isa: V,
    x: &[u32],
    channels: usize,
    panels: &[V::Panel],
    terms: std::ops::Range<usize>,
    lines: &mut Vec<Line>,
) {
    let parts = LANES / V::LANES;
    let count = panels.len().div_ceil(parts);
    room(lines, count * terms.len());
    lines.resize(count * terms.len(), Line([0; LANES]));
    let tiles = lines.chunks_mut(V::LINES * terms.len());
    for (tile, panels) in tiles.zip(panels.chunks(V::LINES * parts)) {
        let every = tile.len() / terms.len();
        for (index, panel) in panels.iter().enumerate() {
            let tile = &mut tile[index / parts..];
            let place = [index % parts, every];
            isa.centre_pixels(x, channels, panel, terms.clone(), place, tile);
        }
    }
}

/// Left lines of one row.
fn deep(terms: usize) -> usize {
    terms.div_ceil(LANES)
}

impl<V: WholeWords> Packed for WholePixels<V> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.weights.0)
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        let grid = Grid {
            rows: self.out_group,
            columns: self.window.pixels(),
            step: [V::ROWS, V::LINES * LANES],
            columns_first: true,
        };
        for (x, y) in x.iter().zip(y) {
            let groups = y.len() / (grid.rows * grid.columns);
            let mut jobs = grid.cut(y, wanted);
            let together = if jobs.len() == groups {
                groups.div_ceil(wanted)
            } else {
                1
            };
            jobs::run(jobs.chunks_mut(together).collect(), |jobs| {
                self.isa.scratch(|scratch| self.work(x, jobs, scratch));
            });
        }
    }
}

/// Bytes of packed words that stay in a second-level cache.
const CACHED: usize = 512 << 10;

/// Most lines of pixels that are packed before the weights pass by them.
const MOST_LINES: usize = 16;
