//! Training of which a worker does the most and learns of each image no more than an account says.
//!
//! Each image is transformed (a public, orthonormal one: blocks of 4×4 pixels by the discrete cosine transform, 16 channels), and split
//! by itself into a part of low rank and a residual. The part stays. The residual is clipped, gets noise and is **released once**; so
//! is the label, by randomized response. All that the worker ever sees follows from that: it trains a network of its own on the
//! released images, on activations, gradients and weights in clear ([`Mode::Clear`](crate::split::Mode)). Here a network learns from
//! the low-rank parts and the true labels, and nothing of it leaves. At the end log-probabilities are added, the worker's with a
//! weight that images which neither network has seen decide. It may be 0: then the worker adds nothing, and that is reported.
//!
//! Exact hiding instead of noise would need products of two secrets (dW), so multiplication triples from a dealer; with dW kept here
//! a worker takes two of three products, so the gain stays below 3.
//!
//! Source: the split of Niu et al. (PETS 2022); releasing once, and one network for each part, as in Niu et al., *Delta* (CVPR 2024),
//! whose noise is another one.

use rayon::prelude::*;

use candle_core::Tensor;

use crate::TrainError;
use crate::data::Dataset;
use crate::lowrank::{Rank, Splitter};
use crate::net::Network;
use crate::privacy::{Coins, Ledger, Release};

/// Side of a block.
const BLOCK: usize = 4;

/// What is released, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct Terms {
    /// Rank of what stays.
    pub rank: usize,
    /// Norm that residuals of images in [0, 1] are clipped to.
    pub clip: f32,
    /// Noise, in multiples of the clip.
    pub multiplier: f64,
    /// e^ε of the randomized response for labels.
    pub odds: u32,
}

/// A data set in two: what stays, and what was released.
#[derive(Debug)]
pub struct Halves {
    /// Low-rank parts with their labels.
    pub kept: Dataset,
    /// Noisy residuals, with noisy labels where they were asked for.
    pub released: Dataset,
    /// Part of the images' energy that the residuals had, before clip and noise.
    pub energy: f64,
    /// Part of the residuals that were longer than the clip.
    pub clipped: f64,
}

/// Rows of the orthonormal cosine transform of `BLOCK` values.
fn cosines() -> [[f32; BLOCK]; BLOCK] {
    let mut rows = [[0.0; BLOCK]; BLOCK];
    for (k, row) in rows.iter_mut().enumerate() {
        let scale = if k == 0 { 1.0 } else { 2.0 } / BLOCK as f64;
        for (i, value) in row.iter_mut().enumerate() {
            let angle = std::f64::consts::PI * (i as f64 + 0.5) * k as f64 / BLOCK as f64;
            *value = (scale.sqrt() * angle.cos()) as f32;
        }
    }
    rows
}

/// An image of one channel as 16 channels of blocks, or back: the transform's matrix is orthogonal.
fn transform(x: &[f32], [rows, columns]: [usize; 2], back: bool) -> Vec<f32> {
    let basis = cosines();
    let across = columns / BLOCK;
    let blocks = rows / BLOCK * across;
    let mut y = vec![0.0; x.len()];
    for block in 0..blocks {
        let corner = block / across * BLOCK * columns + block % across * BLOCK;
        for frequency in 0..BLOCK * BLOCK {
            let at = frequency * blocks + block;
            for pixel in 0..BLOCK * BLOCK {
                let place = corner + pixel / BLOCK * columns + pixel % BLOCK;
                let weight = basis[frequency / BLOCK][pixel / BLOCK]
                    * basis[frequency % BLOCK][pixel % BLOCK];
                match back {
                    true => y[place] += weight * x[at],
                    false => y[at] += weight * x[place],
                }
            }
        }
    }
    y
}

/// Power steps for an image by itself.
const STEPS: usize = 4;

/// U·V and the residual of one image, which depend on no other image.
fn split(image: &[f32], size: [usize; 2], rank: usize) -> (Vec<f32>, Vec<f32>) {
    let whole = transform(image, size, false);
    let channels = BLOCK * BLOCK;
    let mut splitter = Splitter::new(channels, whole.len() / channels, Rank::Fixed(rank), 0, true);
    let mut residual = Vec::new();
    for _ in 0..STEPS {
        residual.clone_from(&whole);
        splitter.split(&mut residual);
    }
    let kept = whole.iter().zip(&residual).map(|(x, r)| x - r).collect();
    (kept, residual)
}

fn byte(value: f32) -> u8 {
    // Saturates; what is not a number becomes 0.
    (value * 255.0).round() as u8
}

/// Splits and releases a data set. With `labels`, labels are released, too; otherwise the released half keeps the true ones, which
/// is for testing alone. What was spent is booked, once for each image.
///
/// # Errors
/// [`TrainError::Module`] where images have several channels or no whole number of blocks; the system's, where it gives no entropy.
pub fn release(
    data: &Dataset,
    terms: Terms,
    labels: bool,
    ledger: &mut Ledger,
) -> Result<Halves, TrainError> {
    let [channels, rows, columns] = data.shape();
    if channels != 1 || rows % BLOCK != 0 || columns % BLOCK != 0 {
        let why = format!(
            "images of {:?}: one channel, and sides that {BLOCK} divides, are wanted",
            data.shape()
        );
        return Err(TrainError::module("private", why));
    }
    let size = [rows, columns];
    let release = Release::new(terms.clip, terms.multiplier);
    let range = 4.0 * release.sigma as f32 * release.step;
    let coins = || Coins::new().map_err(candle_core::Error::wrap);
    let all: Vec<usize> = (0..data.len()).collect();
    let parts: Result<Vec<_>, TrainError> = all
        .par_chunks(500)
        .map(|chunk| {
            let mut coins = coins()?;
            let (mut kept, mut sent) = (Vec::new(), Vec::new());
            let mut sums = [0.0, 0.0, 0.0];
            for at in chunk {
                let image = data.image(*at).unwrap_or_default();
                let image: Vec<f32> = image.iter().map(|x| f32::from(*x) / 255.0).collect();
                let (low, residual) = split(&image, size, terms.rank);
                let left = crate::lowrank::energy(&residual);
                sums[0] += crate::lowrank::energy(&image);
                sums[1] += left;
                sums[2] += f64::from(u8::from(left > f64::from(terms.clip).powi(2)));
                kept.extend(transform(&low, size, true).into_iter().map(byte));
                let noisy = release.noisy(&residual, &mut coins);
                let noisy = transform(&noisy, size, true).into_iter();
                sent.extend(noisy.map(|x| byte(0.5 + 0.5 * x / range)));
            }
            Ok((kept, sent, sums))
        })
        .collect();
    let (mut kept, mut sent, mut sums) = (Vec::new(), Vec::new(), [0.0; 3]);
    for (a, b, part) in parts? {
        kept.extend(a);
        sent.extend(b);
        sums.iter_mut()
            .zip(part)
            .for_each(|(sum, part)| *sum += part);
    }
    ledger.release("residuals, released once", release.rho(), 1);
    let mut told = data.labels().to_vec();
    if labels {
        let mut coins = coins()?;
        let classes = u8::try_from(data.classes()).unwrap_or(u8::MAX);
        told.iter_mut()
            .for_each(|label| *label = coins.respond(*label, classes, terms.odds));
        ledger.pure("labels, by randomized response", f64::from(terms.odds).ln());
    }
    let set = |pixels, labels| {
        Dataset::new(data.shape(), pixels, labels)
            .ok_or_else(|| TrainError::module("private", "an image for each label"))
    };
    Ok(Halves {
        kept: set(kept, data.labels().to_vec())?,
        released: set(sent, told)?,
        energy: sums[1] / sums[0].max(f64::MIN_POSITIVE),
        clipped: sums[2] / data.len().max(1) as f64,
    })
}

/// Log-probabilities of a batch by two networks, the second's with a weight; how many classes are right for each weight.
///
/// # Errors
/// [`TrainError::Tensor`] where a batch does not fit its network.
pub fn together(
    (one, images): (&mut Network, &Dataset),
    (two, released): (&mut Network, &Dataset),
    weights: &[f64],
) -> Result<Vec<f64>, TrainError> {
    let all: Vec<usize> = (0..images.len()).collect();
    let mut right = vec![0usize; weights.len()];
    for batch in all.chunks(250) {
        let (x, labels) = images.batch(batch)?;
        let a = log_softmax(&one.forward(&x, false)?)?;
        let (x, _) = released.batch(batch)?;
        let b = log_softmax(&two.forward(&x, false)?)?;
        for (weight, right) in weights.iter().zip(&mut right) {
            let sum = (&a + (&b * *weight)?)?;
            let best: Vec<u32> = sum.argmax(1)?.to_vec1()?;
            *right += best.iter().zip(&labels).filter(|(a, b)| a == b).count();
        }
    }
    let count = images.len().max(1) as f64;
    Ok(right
        .into_iter()
        .map(|right| right as f64 / count)
        .collect())
}

fn log_softmax(x: &Tensor) -> candle_core::Result<Tensor> {
    let x = x.broadcast_sub(&x.max_keepdim(1)?)?;
    x.broadcast_sub(&x.exp()?.sum_keepdim(1)?.log()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_sum_to_the_image_and_each_image_is_split_by_itself() {
        let size = [8, 12];
        let image: Vec<f32> = (0..96).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
        let there = transform(&image, size, false);
        assert!(
            (crate::lowrank::energy(&there) / crate::lowrank::energy(&image) - 1.0).abs() < 1e-5
        );
        let (low, residual) = split(&image, size, 2);
        let whole: Vec<f32> = low.iter().zip(&residual).map(|(a, b)| a + b).collect();
        for (back, x) in transform(&whole, size, true).iter().zip(&image) {
            assert!((back - x).abs() < 1e-5);
        }
        let pixels: Vec<u8> = (0..2 * 96).map(|i| (i * 7 % 256) as u8).collect();
        let set = |pixels: Vec<u8>| Dataset::new([1, 8, 12], pixels, vec![0, 1]).expect("a set");
        let terms = Terms {
            rank: 1,
            clip: 1.0,
            multiplier: 0.6,
            odds: 20,
        };
        let mut ledger = Ledger::default();
        let both = release(&set(pixels.clone()), terms, true, &mut ledger).expect("released");
        let mut other = pixels;
        other[96..].fill(9);
        let changed = release(&set(other), terms, false, &mut Ledger::default()).expect("released");
        assert_eq!(both.kept.image(0), changed.kept.image(0));
        assert_ne!(both.released.image(0), changed.released.image(0));
        let rho = Release::new(1.0, 0.6).rho();
        assert!((ledger.rho() - rho).abs() < 1e-12 && ledger.is_whole());
        let added = crate::privacy::epsilon(rho, 1e-5) + 20f64.ln();
        assert!((ledger.epsilon(1e-5) - added).abs() < 1e-9);
    }
}
