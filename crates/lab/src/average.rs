//! A camera that does not move: every frame has a fresh mask, and the mean of many frames has almost none.
//!
//! A mask uniform on [−B, B] has a variance of B²/3, so that the mean of N frames is off by B²/3N in the square: a signal-to-noise ratio of
//! −10·log₁₀(B²/3N) for values in [0, 1]. Pads over the field are uniform whatever they hide, and so is the mean of what they hide.

use anyhow::{Context, Result};
use larvatus::faithful::{Demand, Sharing, Times};
use larvatus::policy::Preset;
use larvatus_testkit::chance::Chance;

use crate::scene::{Picture, house, network, seen, tensor};
use crate::stats::{correlation, fitted, psnr};
use crate::view::{Home, Mode};

/// Standard deviation of the sensor's noise.
pub const NOISE: f64 = 0.01;

/// What the mean of so many frames shows.
#[derive(Clone, Debug)]
pub struct Mean {
    /// Frames.
    pub frames: u32,
    /// Signal-to-noise ratio of what the attacker makes of them, in decibels.
    pub psnr: f64,
    /// What theory says, where it says something.
    pub theory: Option<f64>,
    /// Correlation with the scene.
    pub correlation: f64,
    /// The picture.
    pub picture: Picture,
}

/// Masks so many times as large as the data.
///
/// # Errors
/// Where that is no power of two.
pub fn masked(times: u32) -> Result<Mode> {
    let times = Times::new(times).context("a power of two")?;
    Ok(Mode::Floats(Demand::new(
        Some(times),
        Sharing::Whole,
        None,
    )?))
}

/// Looks at a house for so many frames each, which must rise.
///
/// For pads over the field the attacker does not know the scale of what is hidden; the picture is then fitted to the truth, which is more than
/// an attacker could do.
///
/// # Errors
/// Where a session fails.
pub fn run(mode: &Mode, frames: &[u32], seed: u8) -> Result<Vec<Mean>> {
    let scene = house();
    let mut chance = Chance::new(u64::from(seed));
    let mut home = Home::new(&network(), mode, seed)?;
    let mut sum = vec![0.0; scene.len()];
    let mut means = Vec::new();
    let most = frames.iter().copied().max().unwrap_or(0);
    for frame in 1..=most {
        home.infer(tensor(&seen(&scene, NOISE, &mut chance))?)?;
        for request in home.take(0) {
            let values = home.values(&request, scene.len());
            sum.iter_mut()
                .zip(values)
                .for_each(|(sum, value)| *sum += value);
        }
        if frames.contains(&frame) {
            let mean: Picture = sum.iter().map(|sum| sum / f64::from(frame)).collect();
            let (theory, picture) = match mode {
                Mode::Floats(demand) => {
                    let b = demand.masks().map_or(0.0, |times| f64::from(times.get()));
                    let error = (b * b / 3.0 + NOISE * NOISE) / f64::from(frame);
                    (Some(-10.0 * error.log10()), mean.clone())
                }
                Mode::Exact(_) => (None, fitted(&scene, &mean)),
            };
            means.push(Mean {
                frames: frame,
                psnr: psnr(&scene, &picture),
                theory,
                correlation: correlation(&scene, &mean),
                picture: match mode {
                    Mode::Floats(_) => picture,
                    // As the attacker sees it.
                    Mode::Exact(_) => stretched(&mean),
                },
            });
        }
    }
    Ok(means)
}

/// The ratio of a picture of one grey: what knowing nothing but the mean gives.
pub fn grey() -> f64 {
    let scene = house();
    psnr(&scene, &fitted(&scene, &vec![0.0; scene.len()]))
}

/// Stretched to [0, 1], as whoever does not know the scale looks at it.
pub fn stretched(values: &[f64]) -> Picture {
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = (high - low).max(f64::MIN_POSITIVE);
    values.iter().map(|value| (value - low) / range).collect()
}

/// The modes of the table.
///
/// # Errors
/// Never for these sizes.
pub fn modes() -> Result<Vec<(&'static str, Mode)>> {
    Ok(vec![
        ("clear", Mode::Exact(Preset::Clear)),
        ("floats, B = 8", masked(8)?),
        ("floats, B = 64", masked(64)?),
        ("floats, B = 1024", masked(1024)?),
        ("slalom", Mode::Exact(Preset::Slalom)),
        ("verisplit-exact", Mode::Exact(Preset::VerisplitExact)),
    ])
}
