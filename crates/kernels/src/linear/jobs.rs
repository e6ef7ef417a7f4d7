//! Splits an output matrix into disjoint rectangles, one job each.

/// A rectangle of the output of one group.
pub(super) struct Job<'a> {
    pub(super) group: usize,
    /// First row, within the group.
    pub(super) row: usize,
    /// First column.
    pub(super) column: usize,
    /// The rectangle's part of each row; never empty.
    pub(super) rows: Vec<&'a mut [u32]>,
}

/// How an output may be cut.
pub(super) struct Grid {
    /// Rows of one group.
    pub(super) rows: usize,
    /// Columns of every row.
    pub(super) columns: usize,
    /// Cuts fall on multiples of these many rows and columns.
    pub(super) step: [usize; 2],
    /// Whether cutting columns repeats no work, so that it is preferred to cutting rows.
    pub(super) columns_first: bool,
}

impl Grid {
    /// Cuts `y`, a whole number of groups, into at least `wanted` rectangles where the steps allow it.
    pub(super) fn cut<'a>(&self, y: &'a mut [u32], wanted: usize) -> Vec<Job<'a>> {
        let groups = y.chunks_exact_mut(self.rows * self.columns);
        let rows = groups.map(|y| y.chunks_exact_mut(self.columns).collect());
        self.cut_rows(rows.collect(), wanted)
    }

    /// The same for groups whose rows lie apart.
    pub(super) fn cut_rows<'a>(
        &self,
        groups: Vec<Vec<&'a mut [u32]>>,
        wanted: usize,
    ) -> Vec<Job<'a>> {
        let wanted = wanted.div_ceil(groups.len());
        let most = |extent: usize, step: usize, wanted: usize| wanted.min(extent.div_ceil(step));
        let (row_cuts, column_cuts) = if self.columns_first {
            let columns = most(self.columns, self.step[1], wanted);
            (
                most(self.rows, self.step[0], wanted.div_ceil(columns)),
                columns,
            )
        } else {
            let rows = most(self.rows, self.step[0], wanted);
            (
                rows,
                most(self.columns, self.step[1], wanted.div_ceil(rows)),
            )
        };
        let height = self.rows.div_ceil(row_cuts).next_multiple_of(self.step[0]);
        let width = self
            .columns
            .div_ceil(column_cuts)
            .next_multiple_of(self.step[1]);
        let mut jobs: Vec<Job<'a>> = Vec::with_capacity(groups.len() * row_cuts * column_cuts);
        for (group, rows) in groups.into_iter().enumerate() {
            let mut start = jobs.len();
            for (index, row) in rows.into_iter().enumerate() {
                if index % height == 0 {
                    start = jobs.len();
                    jobs.extend((0..self.columns).step_by(width).map(|column| Job {
                        group,
                        row: index,
                        column,
                        rows: Vec::with_capacity(height.min(self.rows - index)),
                    }));
                }
                for (job, part) in jobs[start..].iter_mut().zip(row.chunks_mut(width)) {
                    job.rows.push(part);
                }
            }
        }
        jobs
    }
}

/// Runs `work` on every job: one after the other, or on the current rayon pool.
#[cfg(not(feature = "parallel"))]
pub(super) fn run<T>(jobs: Vec<T>, work: impl Fn(T)) {
    jobs.into_iter().for_each(work);
}

/// Runs `work` on every job: one after the other, or on the current rayon pool.
#[cfg(feature = "parallel")]
pub(super) fn run<T: Send>(jobs: Vec<T>, work: impl Fn(T) + Send + Sync) {
    use rayon::iter::{IntoParallelIterator, ParallelIterator};
    if jobs.len() == 1 {
        jobs.into_iter().for_each(work);
    } else {
        jobs.into_par_iter().for_each(work);
    }
}

/// Runs `work` on every job, one after the other unless several were wanted.
#[cfg(not(feature = "parallel"))]
pub(super) fn share<T>(_wanted: usize, jobs: Vec<T>, work: impl Fn(T)) {
    run(jobs, work);
}

/// Runs `work` on every job, one after the other unless several were wanted.
#[cfg(feature = "parallel")]
pub(super) fn share<T: Send>(wanted: usize, jobs: Vec<T>, work: impl Fn(T) + Send + Sync) {
    if wanted == 1 {
        jobs.into_iter().for_each(work);
    } else {
        run(jobs, work);
    }
}

/// Jobs worth making for a layer of `macs` multiplications.
pub(super) fn wanted(macs: u64) -> usize {
    #[cfg(feature = "parallel")]
    if macs >= PARALLEL_FROM {
        let threads = rayon::current_num_threads();
        return if threads == 1 { 1 } else { 4 * threads };
    }
    let _ = macs;
    1
}

/// Below this a layer takes about as long as waking a thread.
#[cfg(feature = "parallel")]
const PARALLEL_FROM: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rectangles_cover_every_word_once() {
        for (groups, rows, columns, step, columns_first) in [
            (1, 7, 50, [6, 16], true),
            (3, 13, 1, [3, 32], false),
            (2, 1, 100, [3, 32], false),
        ] {
            for wanted in [1, 2, 5, 64] {
                let mut y = vec![0; groups * rows * columns];
                let grid = Grid {
                    rows,
                    columns,
                    step,
                    columns_first,
                };
                let jobs = grid.cut(&mut y, wanted);
                for job in jobs {
                    assert_eq!((job.row % step[0], job.column % step[1]), (0, 0));
                    for (r, row) in job.rows.into_iter().enumerate() {
                        for (c, word) in row.iter_mut().enumerate() {
                            let at = (job.group * rows + job.row + r) * columns + job.column + c;
                            *word += at as u32 + 1;
                        }
                    }
                }
                assert!(
                    y.iter().zip(1..).all(|(&word, at)| word == at),
                    "{rows}x{columns} in {wanted}"
                );
            }
        }
    }
}
