//! How well anybody can do where noise is added to what crosses: the Fisher-information bound.
//!
//! What crosses is e(x) + N(0, σ²I) for an image x of d pixels from 0 to 1, J the derivative of e at x. The information of
//! an observation about x is JᵀJ/σ²; dFIL is its trace over d. Then:
//!
//! * an attacker who is *unbiased* at x is off by at least 1/dFIL in the mean square of a pixel,
//! * an attacker who knows a prior of which the mean information is π for each pixel is off by at least 1/(mean dFIL + π)
//!   in the mean over that prior (van Trees).
//!
//! Without noise the information is infinite and the bound is 0: it promises nothing. Real images have no prior whose
//! information is known, so a report states the first form, which binds unbiased attackers only, and says so.
//!
//! Source: Maeng et al., "Bounding the Invertibility of Privacy-preserving Instance Encoding using Fisher Information"
//! (NeurIPS 2023, arXiv 2305.04146); the trace of the information bounds the trace of its inverse from below (d²/tr).

use candle_core::{Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use super::Stat;
use crate::Result;
use crate::front::Front;
use crate::rng::Rng;
use crate::subject::Subject;

/// The bound at a cut.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fisher {
    /// Deviation of the noise, in units of what crosses.
    pub noise: f64,
    /// The same over the deviation of what crosses.
    pub relative: f64,
    /// Information about a pixel.
    pub dfil: Stat,
    /// 1/dFIL: no unbiased attacker has a smaller mean square error, in the mean over these images.
    pub least_mse: f64,
    /// What the best attacker here was off by with this noise, where one was run.
    pub best_mse: Option<f64>,
}

/// dFIL of an image at a cut whose noise has deviation `noise`, estimated with `probes` random directions (unbiased).
///
/// # Errors
/// [`crate::AssessError::Framework`].
pub fn dfil(
    subject: &Subject,
    front: &Front,
    pixels: &[f32],
    noise: f64,
    probes: usize,
    seed: u64,
) -> Result<f64> {
    let affine = subject.affine();
    let plane = pixels.len() / affine.len();
    let x = Var::from_vec(subject.fed(pixels), (1, pixels.len()), &Device::Cpu)?;
    let mut rng = Rng::new(seed);
    let made = front.forward(x.as_tensor())?;
    let mut trace = 0.0;
    for _ in 0..probes {
        let mut sum: Option<Tensor> = None;
        for tensor in &made {
            let signs =
                (0..tensor.elem_count()).map(|_| if rng.next() & 1 == 0 { 1.0_f32 } else { -1.0 });
            let signs = Tensor::from_vec(signs.collect(), tensor.shape(), &Device::Cpu)?;
            let part = (tensor * signs)?.sum_all()?;
            sum = Some(match sum {
                None => part,
                Some(sum) => (sum + part)?,
            });
        }
        let Some(sum) = sum else { continue };
        if let Some(gradient) = sum.backward()?.get(x.as_tensor()) {
            let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
            for (at, value) in gradient.iter().enumerate() {
                // From what the network takes back to pixels.
                trace += f64::from(value * affine[at / plane].0).powi(2);
            }
        }
    }
    Ok(trace / probes.max(1) as f64 / (noise * noise) / pixels.len() as f64)
}
