//! The weights, from the requests of one worker: it sees what goes into a layer and, in its next request, what came out.
//!
//! With x and h = relu(W·x + b) in clear, each output that is not zero is an equation for a row of W, whatever the worker itself holds. With masks both
//! sides are noisy, by B²A²/3 in the square, which the attacker knows: he takes it away from what he sees of the covariance of x, and the noise of
//! the rest falls with the number of rows. Then he finds W up to a factor for each output (for inputs that are normal; about, for others).
//!
//! Source: least squares; errors in variables; Stein's lemma for the factor.

use anyhow::{Context, Result};
use larvatus::faithful::{Demand, Sharing, Times};
use larvatus::policy::Preset;
use larvatus::tensor::from_floats;
use larvatus_testkit::chance::Chance;
use larvatus_testkit::onnx::Graph;

use crate::stats::{cosine, solve};
use crate::view::{Home, Mode};

/// Rows of an inference, inputs and outputs of the layer.
const ROWS: usize = 64;
const IN: usize = 32;
const OUT: usize = 48;

/// How well the weights were found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Rows of the layer's input that the worker saw.
    pub rows: usize,
    /// ‖Ŵ − W‖ / ‖W‖ with the best factor for each output: 0 is all, 1 nothing.
    pub error: f64,
}

fn weights() -> Vec<f32> {
    Chance::new(8).floats(IN * OUT)
}

fn network() -> Vec<u8> {
    let mut chance = Chance::new(9);
    Graph::new()
        .input("x", &[ROWS, IN])
        .floats("w", &[IN, OUT], &weights())
        .floats("b", &[OUT], &chance.floats(OUT))
        .floats("v", &[OUT, 4], &chance.floats(OUT * 4))
        .node("MatMul", &["x", "w"], "m", &[])
        .node("Add", &["m", "b"], "a", &[])
        .node("Relu", &["a"], "h", &[])
        .node("MatMul", &["h", "v"], "y", &[])
        .output("y", &[ROWS, 4])
        .model()
}

/// The modes of the table.
///
/// # Errors
/// Never for these sizes.
pub fn modes() -> Result<Vec<(&'static str, Mode)>> {
    let times = |times| Times::new(times).context("a power of two");
    let shares = |data, weights| {
        let sharing = Sharing::TwoWorkers(times(weights)?);
        anyhow::Ok(Demand::new(Some(times(data)?), sharing, None)?)
    };
    Ok(vec![
        (
            "clear",
            Mode::Floats(Demand::new(None, Sharing::Whole, None)?),
        ),
        (
            "two shares, clear inputs (figure 4 alone)",
            Mode::Floats(shares(8, 64)?.danger().clear_input()),
        ),
        ("two shares, B = 2", Mode::Floats(shares(2, 64)?)),
        ("two shares, B = 8", Mode::Floats(shares(8, 64)?)),
        ("two shares, B = 64", Mode::Floats(shares(64, 64)?)),
        ("slalom", Mode::Exact(Preset::Slalom)),
        ("verisplit-exact", Mode::Exact(Preset::VerisplitExact)),
    ])
}

/// Runs so many inferences and solves for the weights.
///
/// # Errors
/// Where a session fails.
pub fn run(mode: &Mode, inferences: usize, seed: u8) -> Result<Found> {
    let mut chance = Chance::new(u64::from(seed) + 77);
    let mut home = Home::new(&network(), mode, seed)?;
    let masked = match mode {
        Mode::Exact(_) => true,
        Mode::Floats(demand) => demand.masks().is_some(),
    };
    let width = IN + 1;
    // Of every output by itself where its equations hold only where it is not zero.
    let sets = if masked { 1 } else { OUT };
    let mut squares = vec![vec![0.0; width * width]; sets];
    let mut products = vec![vec![0.0; width]; OUT];
    let mut noise = 0.0;
    for _ in 0..inferences {
        let input = from_floats(&[ROWS, IN], &chance.floats(ROWS * IN)).context("a shape")?;
        home.infer(input)?;
        let requests = home.take(0);
        let [first, second] = &requests[..] else {
            anyhow::bail!("{} requests where two were expected", requests.len());
        };
        let (x, h) = (
            home.values(first, ROWS * IN),
            home.values(second, ROWS * OUT),
        );
        if let Mode::Floats(demand) = mode {
            // The inputs' bound is 1.
            let b = demand.masks().map_or(0.0, |times| f64::from(times.get()));
            noise += ROWS as f64 * b * b / 3.0;
        }
        for (x, h) in x.chunks_exact(IN).zip(h.chunks_exact(OUT)) {
            let mut row = [1.0; IN + 1];
            row[..IN].copy_from_slice(x);
            for (set, squares) in squares.iter_mut().enumerate() {
                if masked || h[set] > 0.0 {
                    for (place, left) in squares.chunks_exact_mut(width).zip(row) {
                        place
                            .iter_mut()
                            .zip(row)
                            .for_each(|(sum, right)| *sum += left * right);
                    }
                }
            }
            for (output, products) in products.iter_mut().enumerate() {
                if masked || h[output] > 0.0 {
                    products
                        .iter_mut()
                        .zip(row)
                        .for_each(|(sum, x)| *sum += x * h[output]);
                }
            }
        }
    }
    if masked {
        (0..IN).for_each(|at| squares[0][at * width + at] -= noise);
    }
    let truth = weights();
    let (mut wrong, mut whole) = (0.0, 0.0);
    for (output, products) in products.into_iter().enumerate() {
        let squares = squares[if masked { 0 } else { output }].clone();
        let found = solve(squares, products, width);
        let row: Vec<f64> = (0..IN)
            .map(|at| f64::from(truth[at * OUT + output]))
            .collect();
        let norm: f64 = row.iter().map(|w| w * w).sum();
        let cosine = cosine(&row, &found[..IN]).max(0.0);
        wrong += norm * (1.0 - cosine * cosine);
        whole += norm;
    }
    Ok(Found {
        rows: inferences * ROWS,
        error: f64::max(wrong / whole, 0.0).sqrt(),
    })
}
