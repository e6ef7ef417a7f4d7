//! Products by rows: lanes are output columns, the words of a few rows are broadcast.
//!
//! A panel of weight columns stays in cache while all rows of a block pass by it; with a single row every
//! weight byte is read once, in order.

use std::ops::Range;

use super::Packed;
use super::jobs::{self, Grid, Job};
use super::shape::MatMul;
use super::vectors::{Scratch, Store, Vectors, WORD_ROWS, WORD_VECTORS, blocks, room, steps};
use super::weights::Weights;

/// A matrix product with packed weights.
pub(super) struct Words<V: Vectors> {
    isa: V,
    shape: MatMul,
    /// Each plane: `[group][block][panel of columns][step][vector]`, with its binary places.
    planes: Vec<(Vec<V::Weights>, u32)>,
}

impl<V: Vectors> Words<V> {
    pub(super) fn new(isa: V, shape: &MatMul, weights: &Weights) -> Self {
        let pack = |plane: &[i8]| {
            let mut packed = Vec::new();
            for group in plane.chunks_exact(shape.inner * shape.columns) {
                pack::<V>(group, shape.columns, &mut packed);
            }
            packed
        };
        let planes = weights
            .places()
            .map(|(plane, place)| (pack(plane), place))
            .collect();
        Self {
            isa,
            shape: shape.clone(),
            planes,
        }
    }

    fn work(&self, x: &[&[u32]], mut job: Job<'_>, scratch: &mut Scratch<V>) {
        let MatMul { inner, columns, .. } = self.shape;
        let vectors = columns.div_ceil(V::LANES);
        let per_group: usize = blocks::<V>(inner)
            .map(|block| steps::<V>(block.len()))
            .sum();
        let x = &x[job.row..][..job.rows.len()];
        let longest = blocks::<V>(inner)
            .next()
            .map_or(0, |block| steps::<V>(block.len()));
        let most = (CACHED / (longest * size_of::<V::Words>())).max(WORD_ROWS);
        let parts = job.rows.len().div_ceil(most);
        let height = job.rows.len().div_ceil(parts).next_multiple_of(WORD_ROWS);
        for (part, rows) in job.rows.chunks_mut(height).enumerate() {
            let x = &x[part * height..][..rows.len()];
            let mut first = job.group * vectors * per_group;
            for block in blocks::<V>(inner) {
                let steps = steps::<V>(block.len());
                let overwrite = block.start == 0;
                self.pack_rows(x, block, &mut scratch.words);
                let at = first + job.column / V::LANES * steps;
                for (index, (plane, place)) in self.planes.iter().enumerate() {
                    let store = Store {
                        column: 0,
                        count: 0,
                        place: *place,
                        first: overwrite && index == 0,
                    };
                    self.multiply(&scratch.words, &plane[at..], steps, store, rows);
                }
                first += vectors * steps;
            }
        }
    }

    /// Packs terms `block` of every row of `x` as `[tile of rows][step][row]`.
    fn pack_rows(&self, x: &[&[u32]], block: Range<usize>, words: &mut Vec<V::Words>) {
        let steps = steps::<V>(block.len());
        room(words, x.len() * steps);
        words.resize(x.len() * steps, V::NO_WORDS);
        let tiles = x.chunks(WORD_ROWS).zip(words.chunks_mut(WORD_ROWS * steps));
        for (x, words) in tiles {
            for (row, words_of) in x.iter().enumerate() {
                let words = &mut words[row..];
                self.isa
                    .pack_words(&words_of[block.clone()], x.len(), words);
            }
        }
    }

    fn multiply(
        &self,
        words: &[V::Words],
        weights: &[V::Weights],
        steps: usize,
        store: Store,
        rows: &mut [&mut [u32]],
    ) {
        let columns = rows[0].len();
        let mut weights = weights;
        for column in (0..columns).step_by(WORD_VECTORS * V::LANES) {
            let count = (columns - column).min(WORD_VECTORS * V::LANES);
            let (panel, rest) = weights.split_at(count.div_ceil(V::LANES) * steps);
            weights = rest;
            let store = Store {
                column,
                count,
                ..store
            };
            for (words, rows) in words
                .chunks(WORD_ROWS * steps)
                .zip(rows.chunks_mut(WORD_ROWS))
            {
                self.isa.word_tile(words, panel, store, rows);
            }
        }
    }
}

impl<V: Vectors> Packed for Words<V> {
    fn bytes(&self) -> usize {
        self.planes
            .iter()
            .map(|(words, _)| size_of_val(words.as_slice()))
            .sum()
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        let MatMul {
            groups,
            rows,
            inner,
            columns,
        } = self.shape;
        // One product for each group: the rows of all images, one under the other.
        let images = x.len();
        let group = |g: usize| {
            x.iter()
                .flat_map(move |x| x[g * rows * inner..][..rows * inner].chunks_exact(inner))
        };
        let x: Vec<Vec<&[u32]>> = (0..groups).map(|g| group(g).collect()).collect();
        let mut y_rows: Vec<Vec<&mut [u32]>> = (0..groups)
            .map(|_| Vec::with_capacity(images * rows))
            .collect();
        for y in y.iter_mut() {
            for (y, to) in y.chunks_exact_mut(rows * columns).zip(&mut y_rows) {
                to.extend(y.chunks_exact_mut(columns));
            }
        }
        let rows = images * rows;
        let grid = Grid {
            rows,
            columns,
            step: [WORD_ROWS, WORD_VECTORS * V::LANES],
            columns_first: rows < ROWS_FIRST,
        };
        let jobs = grid.cut_rows(y_rows, wanted);
        jobs::share(wanted, jobs, |job| {
            let x = &x[job.group];
            self.isa.scratch(|scratch| self.work(x, job, scratch));
        });
    }
}

/// Packs one group's `[term][column]`.
fn pack<V: Vectors>(group: &[i8], columns: usize, packed: &mut Vec<V::Weights>) {
    let terms = group.len() / columns;
    for block in blocks::<V>(terms) {
        for panel in (0..columns).step_by(WORD_VECTORS * V::LANES) {
            let end = columns.min(panel + WORD_VECTORS * V::LANES);
            for first in block.clone().step_by(V::STEP) {
                for vector in (panel..end).step_by(V::LANES) {
                    packed.push(V::weights(|lane, term| {
                        let (term, column) = (first + term, vector + lane);
                        if term < block.end && column < columns {
                            group[term * columns + column]
                        } else {
                            0
                        }
                    }));
                }
            }
        }
    }
}

/// Bytes of packed words that stay in a second-level cache beside a panel of weights.
const CACHED: usize = 512 << 10;

/// From this many rows on, threads share rows rather than columns.
const ROWS_FIRST: usize = 48;
