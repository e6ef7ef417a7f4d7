//! An activation as a part of low rank and a residual: X = U·V + R, X of channels × pixels.
//!
//! Block power iteration from a warm start: the start is the dominant channel basis of the images before, which each batch moves by
//! one power step of its own covariance. All products are of matrices. With one half step, V = orth(Qᵀ·X) and U = X·Vᵀ: 3·r·C·P
//! multiplications with the residual; with two, U = orth(X·(Qᵀ·X)ᵀ) and V = Uᵀ·X: 4·r·C·P.
//!
//! Source: Halko, Martinsson and Tropp (2011) for the iteration; Niu, Ali and Avestimehr (PETS 2022) for what it is used for.

use larvatus_kernels::product::{Matrix, product};
use rayon::prelude::*;

use crate::random::Random;

/// How a rank is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a command line names each")]
pub enum Rank {
    /// The same for all layers.
    Fixed(usize),
    /// 2 for the first split layer, then twice as much for each, up to 32.
    Doubling,
    /// As much as leaves this part of a batch's energy in the residual: more after a batch that left more, less after one that left
    /// much less.
    Energy(f64),
}

/// How an activation was split.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Part {
    /// U: channels × rank.
    pub left: Vec<f32>,
    /// V: rank × pixels.
    pub right: Vec<f32>,
}

/// Splits the activations of one layer, and remembers where to start.
#[derive(Clone, Debug)]
pub struct Splitter {
    channels: usize,
    pixels: usize,
    rule: Rank,
    rank: usize,
    /// Q: channels × rank, orthonormal columns.
    start: Vec<f32>,
    half_steps: usize,
    /// Part of the energy that the last batch left in the residual.
    left_over: f64,
}

/// The rank that the rule of doubling ends at.
const LARGEST_DOUBLED: usize = 32;

impl Splitter {
    /// For the layer of this number among those that are split, with one or two half steps for each image.
    pub fn new(channels: usize, pixels: usize, rule: Rank, number: usize, two: bool) -> Self {
        let most = channels.min(pixels).max(1);
        let rank = match rule {
            Rank::Fixed(rank) => rank,
            Rank::Doubling => LARGEST_DOUBLED.min(2 << number.min(8)),
            Rank::Energy(_) => 2,
        };
        let rank = rank.clamp(1, most);
        let mut splitter = Self {
            channels,
            pixels,
            rule,
            rank,
            start: Vec::new(),
            half_steps: if two { 2 } else { 1 },
            left_over: 1.0,
        };
        splitter.start = splitter.fresh(rank);
        splitter
    }

    fn fresh(&self, rank: usize) -> Vec<f32> {
        let mut start = Random::new(11, rank as u64).normals(self.channels * rank, 1.0);
        orthonormalise(&mut start, rank, Along::Columns);
        start
    }

    /// The rank of the next batch.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Part of the energy of the last batch that its residual has.
    pub fn residual_energy(&self) -> f64 {
        self.left_over
    }

    /// Multiplications for one image, the residual among them.
    pub fn macs(&self) -> u64 {
        ((self.half_steps + 2) * self.rank * self.channels * self.pixels) as u64
    }

    /// Splits each image of a batch; `x` becomes the residual. U and V of each image.
    ///
    /// # Panics
    /// If `x` is no whole number of images.
    pub fn split(&mut self, x: &mut [f32]) -> Vec<Part> {
        let (channels, pixels, rank) = (self.channels, self.pixels, self.rank);
        assert_eq!(x.len() % (channels * pixels), 0, "whole images are split");
        let before: f64 = energy(x);
        let start = Matrix::new(&self.start, channels, rank).transposed();
        let half_steps = self.half_steps;
        let done: Vec<(Part, Vec<f32>)> = x
            .par_chunks_exact_mut(channels * pixels)
            .map(|x| {
                let seen = Matrix::new(x, channels, pixels);
                let mut right = vec![0.0; rank * pixels];
                product(0.0, start, seen, &mut right);
                let mut moved = vec![0.0; channels * rank];
                let mut left = Vec::new();
                if half_steps == 1 {
                    // What the start becomes needs V as it was; L takes the orthonormal rows back to it.
                    let mixed = right.clone();
                    orthonormalise(&mut right, rank, Along::Rows);
                    left = vec![0.0; channels * rank];
                    let right = Matrix::new(&right, rank, pixels);
                    product(0.0, seen, right.transposed(), &mut left);
                    let mut mix = vec![0.0; rank * rank];
                    product(
                        0.0,
                        Matrix::new(&mixed, rank, pixels),
                        right.transposed(),
                        &mut mix,
                    );
                    let mix = Matrix::new(&mix, rank, rank).transposed();
                    product(0.0, Matrix::new(&left, channels, rank), mix, &mut moved);
                } else {
                    let old = Matrix::new(&right, rank, pixels).transposed();
                    product(0.0, seen, old, &mut moved);
                    left.extend(&moved);
                    orthonormalise(&mut left, rank, Along::Columns);
                    let left = Matrix::new(&left, channels, rank);
                    product(0.0, left.transposed(), seen, &mut right);
                }
                let mut taken = vec![0.0; channels * pixels];
                let factors = (
                    Matrix::new(&left, channels, rank),
                    Matrix::new(&right, rank, pixels),
                );
                product(0.0, factors.0, factors.1, &mut taken);
                x.iter_mut().zip(&taken).for_each(|(x, taken)| *x -= taken);
                (Part { left, right }, moved)
            })
            .collect();
        let mut start = vec![0.0; channels * rank];
        let mut parts = Vec::with_capacity(done.len());
        for (part, moved) in done {
            start
                .iter_mut()
                .zip(&moved)
                .for_each(|(s, moved)| *s += moved);
            parts.push(part);
        }
        self.left_over = energy(x) / before.max(f64::MIN_POSITIVE);
        if energy(&start).is_finite() {
            orthonormalise(&mut start, rank, Along::Columns);
            self.start = start;
        }
        self.choose();
        parts
    }

    /// The next batch's rank.
    fn choose(&mut self) {
        let Rank::Energy(wanted) = self.rule else {
            return;
        };
        let most = self.channels.min(self.pixels);
        let rank = match self.left_over / wanted.max(f64::MIN_POSITIVE) {
            over if over > 1.0 => self.rank + self.rank.div_ceil(4),
            over if over < 0.7 => self.rank - 1,
            _ => self.rank,
        };
        let rank = rank.clamp(1, most.max(1));
        if rank != self.rank {
            let mut start = self.fresh(rank);
            for (new, old) in start
                .chunks_exact_mut(rank)
                .zip(self.start.chunks_exact(self.rank))
            {
                let kept = rank.min(self.rank);
                new[..kept].copy_from_slice(&old[..kept]);
            }
            orthonormalise(&mut start, rank, Along::Columns);
            self.rank = rank;
            self.start = start;
        }
    }
}

/// Σx².
pub fn energy(x: &[f32]) -> f64 {
    x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()
}

#[derive(Clone, Copy, PartialEq)]
enum Along {
    Rows,
    Columns,
}

/// Makes `count` rows or columns orthonormal, twice, by Gram and Schmidt; what depends on those before becomes zero.
fn orthonormalise(x: &mut [f32], count: usize, along: Along) {
    let length = x.len() / count.max(1);
    let turned = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
        (0..rows * columns)
            .map(|at| x[at % rows * columns + at / rows])
            .collect()
    };
    let mut rows = match along {
        Along::Rows => x.to_vec(),
        Along::Columns => turned(x, length, count),
    };
    for at in 0..count {
        let (before, rest) = rows.split_at_mut(at * length);
        let row = &mut rest[..length];
        let whole = energy(row).sqrt();
        for _ in 0..2 {
            for other in before.chunks_exact(length) {
                let along: f32 = row.iter().zip(other).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
            }
        }
        let norm = energy(row).sqrt();
        let scale = if norm > 1e-6 * whole {
            (1.0 / norm) as f32
        } else {
            0.0
        };
        row.iter_mut().for_each(|a| *a *= scale);
    }
    match along {
        Along::Rows => x.copy_from_slice(&rows),
        Along::Columns => x.copy_from_slice(&turned(&rows, count, length)),
    }
}

/// Singular values of a matrix of `rows` × …, the largest first, by Jacobi's rotations of X·Xᵀ (or Xᵀ·X, where that is smaller) in
/// binary64.
///
/// # Panics
/// If `x` is no whole number of rows.
pub fn singular_values(x: &[f32], rows: usize) -> Vec<f64> {
    assert_eq!(x.len() % rows.max(1), 0, "whole rows");
    let columns = x.len() / rows.max(1);
    let count = rows.min(columns);
    let at = |i: usize, j: usize| {
        let (row, column) = if rows <= columns { (i, j) } else { (j, i) };
        f64::from(x[row * columns + column])
    };
    let mut gram = vec![0.0; count * count];
    for i in 0..count {
        for j in 0..=i {
            let sum: f64 = (0..rows.max(columns)).map(|k| at(i, k) * at(j, k)).sum();
            gram[i * count + j] = sum;
            gram[j * count + i] = sum;
        }
    }
    for _ in 0..30 {
        let mut off = 0.0;
        for p in 0..count {
            for q in p + 1..count {
                let (app, aqq, apq) = (
                    gram[p * count + p],
                    gram[q * count + q],
                    gram[p * count + q],
                );
                off += apq * apq;
                if apq == 0.0 {
                    continue;
                }
                let theta = (aqq - app) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..count {
                    let (a, b) = (gram[k * count + p], gram[k * count + q]);
                    gram[k * count + p] = c * a - s * b;
                    gram[k * count + q] = s * a + c * b;
                }
                for k in 0..count {
                    let (a, b) = (gram[p * count + k], gram[q * count + k]);
                    gram[p * count + k] = c * a - s * b;
                    gram[q * count + k] = s * a + c * b;
                }
            }
        }
        let trace: f64 = (0..count).map(|i| gram[i * count + i]).sum();
        if off <= 1e-24 * trace * trace {
            break;
        }
    }
    let mut values: Vec<f64> = (0..count)
        .map(|i| gram[i * count + i].max(0.0).sqrt())
        .collect();
    values.sort_by(|a, b| b.total_cmp(a));
    values
}

/// The SVD-channel entropy μ = −log₂ Σ (sᵢ / Σs)²; 2^μ is the effective number of channels.
pub fn channel_entropy(singular: &[f64]) -> f64 {
    let sum: f64 = singular.iter().sum();
    let squares: f64 = singular.iter().map(|s| (s / sum) * (s / sum)).sum();
    -squares.log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of `channels` × `pixels` with singular values near i^−1 and a common basis of channels.
    fn images(count: usize, channels: usize, pixels: usize, seed: u64) -> Vec<f32> {
        let mut random = Random::new(3, 1);
        let mut basis = random.normals(channels * channels, 1.0);
        orthonormalise(&mut basis, channels, Along::Columns);
        let mut random = Random::new(4, seed);
        let mut all = Vec::new();
        for _ in 0..count {
            let mut rows = random.normals(channels * pixels, 1.0);
            for (i, row) in rows.chunks_exact_mut(pixels).enumerate() {
                row.iter_mut().for_each(|x| *x /= (i + 1) as f32);
            }
            let mut image = vec![0.0; channels * pixels];
            let basis = Matrix::new(&basis, channels, channels);
            product(0.0, basis, Matrix::new(&rows, channels, pixels), &mut image);
            all.extend(image);
        }
        all
    }

    #[test]
    fn a_warm_start_comes_within_three_per_cent_of_the_best() {
        let (channels, pixels, rank) = (24, 100, 4);
        let mut splitter = Splitter::new(channels, pixels, Rank::Fixed(rank), 0, true);
        for seed in 0..4 {
            splitter.split(&mut images(8, channels, pixels, seed));
        }
        let x = images(8, channels, pixels, 9);
        let mut residual = x.clone();
        let parts = splitter.split(&mut residual);
        let mut best = 0.0;
        for ((x, residual), part) in x
            .chunks_exact(channels * pixels)
            .zip(residual.chunks_exact(channels * pixels))
            .zip(&parts)
        {
            let tail = singular_values(x, channels);
            best += tail[rank..].iter().map(|s| s * s).sum::<f64>();
            let mut whole = vec![0.0; x.len()];
            let right = Matrix::new(&part.right, rank, pixels);
            product(
                0.0,
                Matrix::new(&part.left, channels, rank),
                right,
                &mut whole,
            );
            for ((whole, residual), x) in whole.iter().zip(residual).zip(x) {
                assert!((whole + residual - x).abs() <= 1e-5);
            }
        }
        let over = splitter.residual_energy() * energy(&x) / best;
        assert!((1.0..1.03).contains(&over), "{over}");
        // A cold start is worse: the bound above says something.
        let mut cold = Splitter::new(channels, pixels, Rank::Fixed(rank), 0, true);
        cold.split(&mut x.clone());
        assert!(cold.residual_energy() * energy(&x) / best > 1.03);
    }

    #[test]
    fn a_rank_follows_the_energy_that_may_be_left() {
        let mut splitter = Splitter::new(24, 100, Rank::Energy(0.1), 0, false);
        for seed in 0..20 {
            splitter.split(&mut images(4, 24, 100, seed));
        }
        assert!(
            (0.05..0.13).contains(&splitter.residual_energy()),
            "{splitter:?}"
        );
        assert!((3..12).contains(&splitter.rank()));
        assert_eq!(Splitter::new(24, 100, Rank::Doubling, 2, false).rank(), 8);
        assert_eq!(Splitter::new(24, 100, Rank::Doubling, 99, false).rank(), 24);
    }

    #[test]
    fn singular_values_and_entropy_are_those_known() {
        let x = [3.0, 0.0, 0.0, 0.0, 0.0, 4.0];
        assert_eq!(singular_values(&x, 2), [4.0, 3.0]);
        assert_eq!(singular_values(&x, 3).len(), 2);
        assert!((channel_entropy(&[1.0, 1.0, 1.0, 1.0]) - 2.0).abs() < 1e-12);
        assert_eq!(channel_entropy(&[5.0, 0.0]), 0.0);
        // Every shift of a set of channels of rank r has rank r, so a k × k convolution of it has at most k²·r.
        let image = images(1, 6, 64, 0);
        let low: Vec<f32> = image[..64].iter().cycle().take(6 * 64).copied().collect();
        let c =
            larvatus_kernels::float::images::Convolution::new([6, 16, 3, 1, 1, 8, 8]).expect("one");
        let mut y = vec![0.0; c.output_len()];
        c.forward(&low, &Random::new(1, 2).normals(c.weights(), 1.0), &mut y)
            .expect("lengths");
        let values = singular_values(&y, 16);
        assert!(
            values[8] > 1e-3 * values[0] && values[9] < 1e-5 * values[0],
            "{values:?}"
        );
    }
}
