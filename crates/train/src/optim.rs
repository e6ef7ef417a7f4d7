//! Stochastic gradient descent with momentum, and the schedule of its rate.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use larvatus_kernels::float::images::Descent;

use crate::TrainError;
use crate::net::Network;
use crate::ops::read;

/// v ← μ·v + g + λ·w, w ← w − η·v. Only what is multiplied (not norms and biases) decays.
#[derive(Debug)]
pub struct Sgd {
    momentum: f32,
    decay: f32,
    speeds: BTreeMap<String, Vec<f32>>,
}

impl Sgd {
    /// With this momentum μ and weight decay λ.
    pub fn new(momentum: f32, decay: f32) -> Self {
        Self {
            momentum,
            decay,
            speeds: BTreeMap::new(),
        }
    }

    /// The step that a parameter of this name takes at the rate η.
    pub fn descent(&self, name: &str, rate: f32) -> Descent {
        Descent {
            rate,
            momentum: self.momentum,
            decay: if name.ends_with(".weight") {
                self.decay
            } else {
                0.0
            },
        }
    }

    /// One step at the rate η. Parameters without a gradient stay as they are.
    ///
    /// # Errors
    /// [`TrainError::Tensor`] where a gradient has another shape than its parameter.
    pub fn step(
        &mut self,
        network: &Network,
        gradients: &GradStore,
        rate: f64,
    ) -> Result<(), TrainError> {
        for (name, parameter) in network.parameters() {
            let Some(gradient) = gradients.get(parameter.as_tensor()) else {
                continue;
            };
            let descent = self.descent(name, rate as f32);
            let mut weights = read(parameter.as_tensor(), <[f32]>::to_vec)?;
            let speed = self.speeds.entry(name.clone());
            let speed = speed.or_insert_with(|| vec![0.0; weights.len()]);
            read(gradient, |gradient| {
                descent.step(&mut weights, speed, gradient)
            })?
            .map_err(candle_core::Error::wrap)?;
            let weights = Tensor::from_vec(weights, parameter.shape(), parameter.device())?;
            parameter.set(&weights)?;
        }
        Ok(())
    }

    /// What a checkpoint must keep: v of each parameter that has been moved.
    pub fn speeds(&self) -> &BTreeMap<String, Vec<f32>> {
        &self.speeds
    }

    /// Takes v from a checkpoint.
    pub fn resume(&mut self, speeds: BTreeMap<String, Vec<f32>>) {
        self.speeds = speeds;
    }
}

/// From `first` down to `last` along half a cosine, at step `at` of `of`.
pub fn cosine(first: f64, last: f64, at: usize, of: usize) -> f64 {
    let done = (at as f64 / of.max(1) as f64).min(1.0);
    last + (first - last) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
}
