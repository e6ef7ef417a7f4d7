//! Masks that are combinations of a few vectors: whoever has seen a few more requests than there are vectors knows their span.
//!
//! The camera does not move, so differences of requests are combinations of the vectors alone. What is orthogonal to all of them is the
//! scene but for its part in their span, a few of its many dimensions. Fresh masks have no such span.
//!
//! Source: the attack on precomputed noise of arXiv 2602.11088, reduced to one linear layer.

use anyhow::{Context, Result};
use larvatus::faithful::{Demand, MaskSource, Sharing, Times};

use crate::average::stretched;
use crate::scene::{Picture, house, network, tensor};
use crate::stats::{correlation, dot, fitted, psnr};
use crate::view::{Home, Mode};

/// What the attacker has.
#[derive(Clone, Debug)]
pub struct Found {
    /// Dimensions of the span that he found.
    pub span: usize,
    /// Signal-to-noise ratio of his picture, in decibels; for pads over the field of the one that fits best.
    pub psnr: f64,
    /// Correlation with the scene.
    pub correlation: f64,
    /// His picture.
    pub picture: Picture,
}

/// Masks of this size from so many vectors, or fresh ones.
///
/// # Errors
/// Where the size is no power of two.
pub fn masked(times: u32, vectors: Option<usize>) -> Result<Mode> {
    let times = Times::new(times).context("a power of two")?;
    let demand = Demand::new(Some(times), Sharing::Whole, None)?;
    let source = vectors.map_or(MaskSource::Fresh, MaskSource::Pool);
    Ok(Mode::Floats(demand.danger().masks_from(source)))
}

/// Looks at the house for so many frames.
///
/// # Errors
/// Where a session fails.
pub fn run(mode: &Mode, frames: usize, seed: u8) -> Result<Found> {
    let scene = house();
    let mut home = Home::new(&network(), mode, seed)?;
    let mut seen: Vec<Vec<f64>> = Vec::new();
    for _ in 0..frames {
        home.infer(tensor(&scene)?)?;
        for request in home.take(0) {
            seen.push(home.values(&request, scene.len()));
        }
    }
    let (first, others) = seen.split_first().context("a frame")?;
    let mut span: Vec<Vec<f64>> = Vec::new();
    for other in others {
        let mut difference: Vec<f64> = other.iter().zip(first).map(|(a, b)| a - b).collect();
        let before = dot(&difference, &difference).sqrt();
        // Twice, so that rounding leaves nothing.
        for _ in 0..2 {
            span.iter().for_each(|known| remove(&mut difference, known));
        }
        let norm = dot(&difference, &difference).sqrt();
        if norm > 1e-4 * before {
            difference.iter_mut().for_each(|value| *value /= norm);
            span.push(difference);
        }
    }
    let mut picture = first.clone();
    for _ in 0..2 {
        span.iter().for_each(|known| remove(&mut picture, known));
    }
    let shown = match mode {
        Mode::Floats(_) => picture.clone(),
        Mode::Exact(_) => fitted(&scene, &picture),
    };
    Ok(Found {
        span: span.len(),
        psnr: psnr(&scene, &shown),
        correlation: correlation(&scene, &picture),
        picture: match mode {
            Mode::Floats(_) => picture,
            Mode::Exact(_) => stretched(&picture),
        },
    })
}

/// Takes the part along a unit vector away.
fn remove(from: &mut [f64], along: &[f64]) {
    let part = dot(from, along);
    from.iter_mut()
        .zip(along)
        .for_each(|(value, along)| *value -= part * along);
}
