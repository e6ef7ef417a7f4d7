//! Matrix products with full-width weights: lanes are output columns, the words of a few rows are broadcast.

use super::lines::{self, WholeWords, blocks, centre};
use crate::linear::Packed;
use crate::linear::jobs::{self, Grid, Job};
use crate::linear::shape::MatMul;
use crate::linear::tiles::{LANES, Line};
use crate::linear::vectors::{Scratch, Store, room};

/// A matrix product with packed weights.
pub(super) struct WholeRows<V> {
    isa: V,
    shape: MatMul,
    /// `[group][block][tile of lines][term][line]`.
    weights: lines::Packed,
}

impl<V: WholeWords> WholeRows<V> {
    pub(super) fn new(isa: V, shape: &MatMul, weights: &[u32]) -> Self {
        let MatMul {
            groups,
            inner,
            columns,
            ..
        } = *shape;
        let lines = columns.div_ceil(LANES);
        let mut packed = lines::Packed::new(groups * inner * lines);
        let mut places = packed.0.iter_mut();
        for group in weights.chunks_exact(inner * columns) {
            for block in blocks(inner) {
                for tile in (0..columns).step_by(V::LINES * LANES) {
                    for term in group
                        .chunks_exact(columns)
                        .take(block.end)
                        .skip(block.start)
                    {
                        let tile = &term[tile..columns.min(tile + V::LINES * LANES)];
                        for (words, line) in tile.chunks(LANES).zip(&mut places) {
                            for (word, &weight) in line.0.iter_mut().zip(words) {
                                *word = centre(weight);
                            }
                        }
                    }
                }
            }
        }
        Self {
            isa,
            shape: shape.clone(),
            weights: packed,
        }
    }

    fn work(&self, x: &[&[u32]], mut job: Job<'_>, scratch: &mut Scratch<V>) {
        let MatMul { inner, columns, .. } = self.shape;
        let lines = columns.div_ceil(LANES);
        let x = &x[job.row..][..job.rows.len()];
        let longest = blocks(inner).next().map_or(0, |block| block.len());
        let most = (CACHED / (longest * size_of::<u32>())).max(V::ROWS);
        let parts = job.rows.len().div_ceil(most);
        let height = job.rows.len().div_ceil(parts).next_multiple_of(V::ROWS);
        let left = &mut scratch.lines;
        for (part, rows) in job.rows.chunks_mut(height).enumerate() {
            let x = &x[part * height..][..rows.len()];
            let mut first = job.group * inner * lines;
            for block in blocks(inner) {
                let deep = block.len().div_ceil(LANES);
                room(left, rows.len() * deep);
                left.resize(rows.len() * deep, Line([0; LANES]));
                for (x, left) in x.chunks(V::ROWS).zip(left.chunks_mut(V::ROWS * deep)) {
                    for (row, words) in x.iter().enumerate() {
                        let words = &words[block.clone()];
                        self.isa.centre_row(words, x.len(), &mut left[row..]);
                    }
                }
                let mut weights = &self.weights.0[first + job.column / LANES * block.len()..];
                let columns = rows[0].len();
                for column in (0..columns).step_by(V::LINES * LANES) {
                    let count = (columns - column).min(V::LINES * LANES);
                    let right;
                    (right, weights) = weights.split_at(count.div_ceil(LANES) * block.len());
                    let store = Store {
                        column,
                        count,
                        place: 0,
                        first: block.start == 0,
                    };
                    let tiles = left.chunks(V::ROWS * deep).zip(rows.chunks_mut(V::ROWS));
                    for (left, rows) in tiles {
                        self.isa.whole_tile(left, right, block.len(), store, rows);
                    }
                }
                first += lines * block.len();
            }
        }
    }
}

impl<V: WholeWords> Packed for WholeRows<V> {
    fn bytes(&self) -> usize {
        size_of_val(&*self.weights.0)
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
            step: [V::ROWS, V::LINES * LANES],
            columns_first: rows < ROWS_FIRST,
        };
        jobs::share(wanted, grid.cut_rows(y_rows, wanted), |job| {
            let x = &x[job.group];
            self.isa.scratch(|scratch| self.work(x, job, scratch));
        });
    }
}

/// Bytes of packed words that stay in a second-level cache beside the weights of a tile.
const CACHED: usize = 512 << 10;

/// From this many rows on, threads share rows rather than columns.
const ROWS_FIRST: usize = 48;
