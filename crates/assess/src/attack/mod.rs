//! Attackers that reconstruct the input from what crosses a cut.
//!
//! * [`decoder`]: a network trained on pairs of images and what crosses; needs to run the front, not to know it,
//! * [`inversion`]: gradient descent on the picture until the front gives what was seen; needs the front's weights.

pub mod decoder;
pub mod inversion;
mod patches;

use candle_core::{Tensor, Var, backprop::GradStore};

use crate::Result;

/// Adam (Kingma and Ba, 2015) over a list of variables.
struct Adam {
    variables: Vec<(Var, Tensor, Tensor)>,
    steps: i32,
}

impl Adam {
    fn new(variables: Vec<Var>) -> Result<Self> {
        let each = variables.into_iter().map(|variable| {
            let zeros = variable.as_tensor().zeros_like()?;
            Ok((variable, zeros.clone(), zeros))
        });
        Ok(Self {
            variables: each.collect::<Result<_>>()?,
            steps: 0,
        })
    }

    fn step(&mut self, gradients: &GradStore, rate: f64) -> Result<()> {
        const FIRST: f64 = 0.9;
        const SECOND: f64 = 0.999;
        self.steps += 1;
        let (one, two) = (1.0 - FIRST.powi(self.steps), 1.0 - SECOND.powi(self.steps));
        for (variable, mean, square) in &mut self.variables {
            let Some(gradient) = gradients.get(variable.as_tensor()) else {
                continue;
            };
            let gradient = gradient.detach();
            *mean = ((&*mean * FIRST)? + (&gradient * (1.0 - FIRST))?)?;
            *square = ((&*square * SECOND)? + (gradient.sqr()? * (1.0 - SECOND))?)?;
            let slope = ((&*square / two)?.sqrt()? + 1e-8)?;
            let change = ((&*mean * (rate / one))? / slope)?;
            variable.set(&(variable.as_tensor() - change)?.detach())?;
        }
        Ok(())
    }
}

/// x where it is positive, a fifth of it elsewhere.
fn leaky(x: &Tensor) -> candle_core::Result<Tensor> {
    (x.relu()? * 0.8)? + (x * 0.2)?
}

/// 1 / (1 + exp(−x)), by tanh: the exponential of a large number would make the gradient one that is none.
fn sigmoid(x: &Tensor) -> candle_core::Result<Tensor> {
    ((x * 0.5)?.tanh()? * 0.5)? + 0.5
}

/// The pictures of a tensor of images × elements.
fn pictures(x: &Tensor) -> Result<Vec<Vec<f32>>> {
    Ok(x.flatten_from(1)?.to_vec2::<f32>()?)
}
