//! Freivalds checks of what a worker says that it computed in floats.
//!
//! For y = W∗x and normal random s, ⟨s, y⟩ is held against ⟨Wᵀ∗s, x⟩, which costs two convolutions of one image for a whole batch. An
//! honest y is within γ(n)·(|W|∗|x|) of the exact result, and so is our own product, so the two differ by no more than
//! (γ(n) + γ(m) + 2⁻⁴⁰)·⟨|W|ᵀ∗|s|, |x|⟩. An error e of a wrong y passes with probability at most 2·√(2/π)·tolerance/‖e‖: errors
//! near rounding pass, large ones do not. s depends on nothing that the worker learns but that nothing was refused.
//!
//! Source: Freivalds (1977); Higham, Accuracy and Stability of Numerical Algorithms (2002), §3.1.

use larvatus_kernels::WrongLength;
use larvatus_kernels::float::gamma;
use larvatus_kernels::float::images::Convolution;

use crate::random::Random;

/// A worker's answer is not what it should be.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{what} of image {image} is off by {off:e}, {tolerance:e} may be rounding")]
pub struct Lie {
    /// Which map.
    pub what: &'static str,
    /// Which image; 0 for sums over images.
    pub image: usize,
    /// How far the two sums are apart.
    pub off: f64,
    /// How far they may be.
    pub tolerance: f64,
}

/// Why an answer is not accepted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// It is wrong.
    #[error(transparent)]
    Lie(#[from] Lie),
    /// It is not as long as it should be.
    #[error(transparent)]
    Length(#[from] WrongLength),
}

/// Numbers that a check has accepted. Only this module makes it.
#[derive(Debug)]
pub struct Checked(Vec<f32>);

impl Checked {
    /// The numbers.
    pub fn into_inner(self) -> Vec<f32> {
        self.0
    }
}

/// Of sums in binary64 of products of binary32.
const SUMS: f64 = 9.1e-13;

fn magnitudes(x: &[f32]) -> Vec<f32> {
    x.iter().map(|x| x.abs()).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    let products = a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b));
    products.sum()
}

fn judge(what: &'static str, image: usize, sums: [f64; 2], tolerance: f64) -> Result<(), Lie> {
    let off = (sums[0] - sums[1]).abs();
    // What is not a number is never within it.
    match off <= tolerance {
        true => Ok(()),
        false => Err(Lie {
            what,
            image,
            off,
            tolerance,
        }),
    }
}

/// Of how many terms sums forward and back are, at the most.
fn terms(convolution: &Convolution) -> (f64, f64) {
    let [inputs, outputs, kernel, ..] = convolution.extents();
    (
        gamma(inputs * kernel * kernel + 1),
        gamma(outputs * kernel * kernel + 1),
    )
}

/// Accepts y = W∗x.
///
/// # Errors
/// [`Refusal`].
pub fn forward(
    convolution: &Convolution,
    weights: &[f32],
    x: &[f32],
    y: Vec<f32>,
    random: &mut Random,
) -> Result<Checked, Refusal> {
    let probe = random.normals(convolution.output_len(), 1.0);
    let mut expected = vec![0.0; convolution.input_len()];
    convolution.input_gradient(weights, &probe, &mut expected)?;
    let mut bound = vec![0.0; convolution.input_len()];
    convolution.input_gradient(&magnitudes(weights), &magnitudes(&probe), &mut bound)?;
    compare(
        "an answer",
        &probe,
        (&expected, &bound),
        x,
        &y,
        terms(convolution),
    )?;
    Ok(Checked(y))
}

/// Accepts dx = Wᵀ∗dy.
///
/// # Errors
/// [`Refusal`].
pub fn input_gradient(
    convolution: &Convolution,
    weights: &[f32],
    dy: &[f32],
    dx: Vec<f32>,
    random: &mut Random,
) -> Result<Checked, Refusal> {
    let probe = random.normals(convolution.input_len(), 1.0);
    let mut expected = vec![0.0; convolution.output_len()];
    convolution.forward(&probe, weights, &mut expected)?;
    let mut bound = vec![0.0; convolution.output_len()];
    convolution.forward(&magnitudes(&probe), &magnitudes(weights), &mut bound)?;
    compare(
        "a gradient",
        &probe,
        (&expected, &bound),
        dy,
        &dx,
        terms(convolution),
    )?;
    Ok(Checked(dx))
}

/// ⟨probe, made⟩ = ⟨expected, given⟩ for each image, up to the tolerance.
fn compare(
    what: &'static str,
    probe: &[f32],
    (expected, bound): (&[f32], &[f32]),
    given: &[f32],
    made: &[f32],
    (one, other): (f64, f64),
) -> Result<(), Refusal> {
    let images = given.len() / expected.len();
    if made.len() != images * probe.len() {
        return Err(Refusal::Length(WrongLength {
            expected: images * probe.len(),
            got: made.len(),
        }));
    }
    let pairs = given
        .chunks_exact(expected.len())
        .zip(made.chunks_exact(probe.len()));
    for (image, (given, made)) in pairs.enumerate() {
        // The bound itself was summed in binary32.
        let most = dot(bound, &magnitudes(given)) * (1.0 + other + one);
        let tolerance = (one + other + SUMS) * most;
        judge(
            what,
            image,
            [dot(probe, made), dot(expected, given)],
            tolerance,
        )?;
    }
    Ok(())
}

/// Accepts dW = Σ dy·xᵀ, by two probes of rank one, each of which takes two output channels' work. A product of two normal numbers is
/// small more often than one: an error e in one place passes with probability about (q·ln(1/q))², q = tolerance/|e|.
///
/// # Errors
/// [`Refusal`].
pub fn weight_gradient(
    convolution: &Convolution,
    x: &[f32],
    dy: &[f32],
    dw: Vec<f32>,
    random: &mut Random,
) -> Result<Checked, Refusal> {
    let [inputs, outputs, kernel, ..] = convolution.extents();
    let taps = inputs * kernel * kernel;
    if dw.len() != convolution.weights() {
        return Err(Refusal::Length(WrongLength {
            expected: convolution.weights(),
            got: dw.len(),
        }));
    }
    for _ in 0..2 {
        let probe = (random.normals(outputs, 1.0), random.normals(taps, 1.0));
        probe_weights(convolution, (x, dy), &dw, probe)?;
    }
    Ok(Checked(dw))
}

/// ⟨dW, down ⊗ across⟩ against what it should be.
fn probe_weights(
    convolution: &Convolution,
    (x, dy): (&[f32], &[f32]),
    dw: &[f32],
    (down, across): (Vec<f32>, Vec<f32>),
) -> Result<(), Refusal> {
    let [inputs, outputs, ..] = convolution.extents();
    let taps = across.len();
    let single = convolution
        .with_channels(inputs, 1)
        .map_err(|_| WrongLength {
            expected: 1,
            got: outputs,
        })?;
    let images = x.len() / convolution.input_len();
    let pixels = single.output_len();
    let mut seen = vec![0.0; images * pixels];
    single.forward(x, &across, &mut seen)?;
    let mut most = vec![0.0; images * pixels];
    single.forward(&magnitudes(x), &magnitudes(&across), &mut most)?;
    let (mut sum, mut bound) = (0.0, 0.0);
    let lines = seen.chunks_exact(pixels).zip(most.chunks_exact(pixels));
    for (dy, (seen, most)) in dy.chunks_exact(convolution.output_len()).zip(lines) {
        for (dy, factor) in dy.chunks_exact(pixels).zip(&down) {
            sum += f64::from(*factor) * dot(dy, seen);
            bound += f64::from(factor.abs()) * dot(&magnitudes(dy), most);
        }
    }
    let mut claimed = 0.0;
    for (row, factor) in dw.chunks_exact(taps).zip(&down) {
        claimed += f64::from(*factor) * dot(row, &across);
    }
    let (one, other) = (gamma(taps + 1), gamma(images * pixels + 1));
    let tolerance = (one + other + SUMS) * bound * (1.0 + one);
    judge("a weight gradient", 0, [claimed, sum], tolerance)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn honest_answers_pass_and_a_lie_a_hundred_times_rounding_does_not() {
        let c = Convolution::new([8, 12, 3, 1, 1, 10, 10]).expect("a convolution");
        let mut random = Random::new(5, 5);
        for _ in 0..50 {
            let x = random.normals(3 * c.input_len(), 1.0);
            let w = random.normals(c.weights(), 0.1);
            let dy = random.normals(3 * c.output_len(), 1.0);
            let (mut y, mut dx) = (vec![0.0; dy.len()], vec![0.0; x.len()]);
            let mut dw = vec![0.0; w.len()];
            c.forward(&x, &w, &mut y).expect("lengths");
            c.input_gradient(&w, &dy, &mut dx).expect("lengths");
            c.weight_gradient(&x, &dy, &mut dw).expect("lengths");
            let bend = |values: &[f32], at: usize, by: f32| {
                let mut bent = values.to_vec();
                bent[at] += by;
                bent
            };
            assert!(forward(&c, &w, &x, y.clone(), &mut random).is_ok());
            assert!(input_gradient(&c, &w, &dy, dx.clone(), &mut random).is_ok());
            assert!(weight_gradient(&c, &x, &dy, dw.clone(), &mut random).is_ok());
            let lie = forward(&c, &w, &x, bend(&y, 1300, 30.0), &mut random);
            assert!(
                matches!(lie, Err(Refusal::Lie(Lie { image: 1, .. }))),
                "{lie:?}"
            );
            assert!(input_gradient(&c, &w, &dy, bend(&dx, 7, 30.0), &mut random).is_err());
            assert!(weight_gradient(&c, &x, &dy, bend(&dw, 7, 600.0), &mut random).is_err());
            let nan = forward(&c, &w, &x, bend(&y, 0, f32::NAN), &mut random);
            assert!(matches!(nan, Err(Refusal::Lie(_))));
            assert!(matches!(
                forward(&c, &w, &x, y[1..].to_vec(), &mut random),
                Err(Refusal::Length(_))
            ));
        }
    }
}
