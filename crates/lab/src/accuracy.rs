//! What masks in floats cost: the result under masks against the network in floats, with nobody's help.

use anyhow::{Context, Result};
use larvatus::exact::FloatNetwork;
use larvatus::faithful::{Demand, Sharing, Times};
use larvatus::model::Model;
use larvatus::tensor::{Tensor, floats};

use crate::bend::leaders;
use crate::view::{Home, Mode, Recorder, Seen};

/// How far results are off.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The mean of ‖y′ − y‖ / ‖y‖ over the inputs.
    pub error: f64,
    /// Inputs whose most likely class is another.
    pub other_class: usize,
}

/// Masks of the data and of the weights, so many times as large; no masks of the weights, one worker.
///
/// # Errors
/// Where a session fails.
pub fn run(model: &Model, inputs: &[Tensor], data: u32, weights: Option<u32>) -> Result<Cost> {
    let times = |times| Times::new(times).context("a power of two");
    let sharing = match weights {
        Some(weights) => Sharing::TwoWorkers(times(weights)?),
        None => Sharing::Whole,
    };
    let mode = Mode::Floats(Demand::new(Some(times(data)?), sharing, None)?);
    let seen: Vec<Seen> = (0..mode.workers()).map(|_| Seen::default()).collect();
    let backends = seen.iter().map(|seen| {
        let backend: Box<dyn larvatus_worker::Backend> = Box::new(Recorder::new(seen)?);
        anyhow::Ok(backend)
    });
    let backends = backends.collect::<Result<_>>()?;
    let mut home = Home::with(model, &mode, [4; 32], seen, backends)?;
    let network = FloatNetwork::new(model)?;
    let (mut error, mut other_class) = (0.0, 0);
    for input in inputs {
        let values = |tensors: Vec<std::sync::Arc<Tensor>>| -> Result<Vec<f64>> {
            let first = tensors.first().context("an output")?;
            let values = floats(first).context("floats")?;
            Ok(values.iter().map(|value| f64::from(*value)).collect())
        };
        let truth = values(network.run(vec![input.clone()])?)?;
        let masked = values(home.infer(input.clone())?)?;
        (0..home.workers()).for_each(|line| drop(home.take(line)));
        let apart = truth.iter().zip(&masked).map(|(a, b)| (a - b) * (a - b));
        let norm: f64 = truth.iter().map(|a| a * a).sum();
        error += (apart.sum::<f64>() / norm).sqrt() / inputs.len() as f64;
        other_class += usize::from(leaders(&truth).0 != leaders(&masked).0);
    }
    Ok(Cost { error, other_class })
}
