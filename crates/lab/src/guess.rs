//! Which of two inputs was it? The attacker knows both, and sees one request.
//!
//! He rules out an input where no mask could have made what he sees of it. With fresh masks in floats that happens at the edges: an
//! element whose mask would have to lie outside [−B, B] for the other input, which has a chance of |Δ|/2B. Masks on a coarse grid add more:
//! where x + ε is small, its low bits are those of x. Where neither input is ruled out, or both, he tosses a coin. So he is right with a chance of
//! 1 − ½·∏(1 − |Δᵢ|/2B). Pads over the field rule nothing out; there he takes the input that the words correlate with more.

use anyhow::{Context, Result};
use larvatus::faithful::{Demand, MaskSource, Sharing, Times};
use larvatus::tensor::from_floats;
use larvatus_testkit::chance::Chance;
use larvatus_testkit::onnx::{Attribute, Graph};

use crate::stats::{Rate, correlation};
use crate::view::{Home, Mode};

/// Elements of an input: 3×16×16.
pub const ELEMENTS: usize = 768;

const SHAPE: [usize; 4] = [1, 3, 16, 16];

/// Two inputs.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The inputs.
    pub inputs: [Vec<f32>; 2],
}

impl Pair {
    /// Inputs that differ by at most `most` in each element.
    pub fn apart_by(most: f32, seed: u64) -> Self {
        let mut chance = Chance::new(seed);
        let mut first = chance.floats(ELEMENTS);
        // So that both have the same bound, A = 1.
        first.iter_mut().for_each(|value| *value *= 0.4);
        first[0] = 0.9;
        let mut second: Vec<f32> = first
            .iter()
            .map(|value| value + most * chance.float())
            .collect();
        second[0] = 0.9;
        Self {
            inputs: [first, second],
        }
    }

    /// The chance of a right guess from the edges alone, with masks B = `times`.
    pub fn theory(&self, times: f64) -> f64 {
        let [first, second] = &self.inputs;
        let apart = first
            .iter()
            .zip(second)
            .map(|(a, b)| f64::from((a - b).abs()));
        let not: f64 = apart.map(|apart| 1.0 - apart / (2.0 * times)).product();
        1.0 - 0.5 * not
    }
}

fn network() -> Vec<u8> {
    let weights = Chance::new(6).floats(3);
    Graph::new()
        .input("x", &SHAPE)
        .floats("w", &[1, 3, 1, 1], &weights)
        .node("Conv", &["x", "w"], "y", &[Attribute::int("group", 1)])
        .output("y", &[1, 1, 16, 16])
        .model()
}

/// Masks so many times as large as the data, from this source.
///
/// # Errors
/// Where that is no power of two.
pub fn masked(times: u32, source: MaskSource) -> Result<Mode> {
    let times = Times::new(times).context("a power of two")?;
    let demand = Demand::new(Some(times), Sharing::Whole, None)?;
    Ok(Mode::Floats(demand.danger().masks_from(source)))
}

/// Plays the game so often.
///
/// # Errors
/// Where a session fails.
pub fn run(mode: &Mode, pair: &Pair, trials: u32, seed: u8) -> Result<Rate> {
    let mut chance = Chance::new(u64::from(seed) + 1000);
    let mut home = Home::new(&network(), mode, seed)?;
    let mut hits = 0;
    for _ in 0..trials {
        let secret = chance.below(2);
        let input = from_floats(&SHAPE, &pair.inputs[secret]).context("a shape")?;
        home.infer(input)?;
        let requests = home.take(0);
        let request = requests.first().context("a request")?;
        let verdict = match mode {
            Mode::Floats(demand) => {
                let times = f64::from(demand.masks().context("masks")?.get());
                let coarse = demand.source() == MaskSource::Coarse;
                let seen: Vec<f32> = request.words.iter().map(|w| f32::from_bits(*w)).collect();
                let out = pair
                    .inputs
                    .each_ref()
                    .map(|x| impossible(x, &seen, times, coarse));
                out[1].cmp(&out[0])
            }
            Mode::Exact(_) => {
                let seen = home.values(request, ELEMENTS);
                let score = pair.inputs.each_ref().map(|x| {
                    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
                    correlation(&x, &seen)
                });
                score[0].total_cmp(&score[1])
            }
        };
        let guess = match verdict {
            std::cmp::Ordering::Greater => 0,
            std::cmp::Ordering::Less => 1,
            std::cmp::Ordering::Equal => chance.below(2),
        };
        hits += u32::from(guess == secret);
    }
    Ok(Rate { hits, trials })
}

/// Elements that no mask explains, if this was the input (whose A is 1).
fn impossible(x: &[f32], seen: &[f32], times: f64, coarse: bool) -> usize {
    let explained = |(x, z): (&f32, &f32)| {
        let mask = f64::from(*z) - f64::from(*x);
        if coarse {
            // The masks there are, and the sum as it is taken.
            const STEPS: f64 = (1 << 23) as f64;
            let near = (mask / times * STEPS).round();
            // Where the sum is rounded, several masks give it.
            let reach = (2.0 + f64::from(z.abs()) * f64::from(f32::EPSILON) / times * STEPS) as i32;
            return (-reach..=reach).any(|step| {
                let unit = (near + f64::from(step)) / STEPS;
                unit.abs() <= 1.0 && (x + (times * unit) as f32).to_bits() == z.to_bits()
            });
        }
        // Half a unit in the last place may be rounding.
        mask.abs() <= times + f64::from(z.abs()) * f64::from(f32::EPSILON) / 2.0
    };
    x.iter().zip(seen).filter(|pair| !explained(*pair)).count()
}
