//! A liar who stays within the rounding that audits allow: how far can he push a result?
//!
//! He computes honestly, and then moves every output by a part of [`Witness::tolerance`], all in one direction or each in its own. An audit
//! of all answers lets him pass; what is measured is how far the network's result moves.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::{Context, Result};
use larvatus::faithful::{Demand, Fraction, Sharing, Times};
use larvatus::model::Model;
use larvatus::tensor::{Tensor, floats};
use larvatus_kernels::float::{self, FloatLinear, Witness};
use larvatus_proto::program::{Program, WorkerModel};
use larvatus_testkit::chance::Chance;
use larvatus_worker::{Backend, BackendError, Cpu, Loaded};

use crate::view::{Home, Mode, Seen};

/// Where the liar pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    /// Nowhere.
    Not,
    /// Every output of every layer up.
    Up,
    /// Each output up or down, drawn once.
    Scattered,
    /// Only outputs of the last layer: one up, all others down.
    Class(usize),
}

struct Bender {
    cpu: Cpu,
    push: Push,
    part: f64,
}

struct Bending {
    inner: Box<dyn Loaded>,
    layers: Vec<FloatLinear>,
    program: Program,
    push: Push,
    part: f64,
}

impl Backend for Bender {
    fn name(&self) -> String {
        "one that bends".to_owned()
    }

    fn load(&self, model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError> {
        Ok(Box::new(Bending {
            inner: self.cpu.load(model)?,
            layers: model.floats().map_err(BackendError::Weights)?,
            program: model.program().clone(),
            push: self.push,
            part: self.part,
        }))
    }
}

impl Loaded for Bending {
    fn call(&self, round: u32, words: &[u32]) -> Result<Vec<u32>, BackendError> {
        let mut answer = self.inner.call(round, words)?;
        let rounds = self.program.rounds();
        let last = round as usize + 1 == rounds.len();
        let aims = match self.push {
            Push::Not => false,
            Push::Up | Push::Scattered => true,
            Push::Class(_) => last,
        };
        let (Some(steps), true) = (rounds.get(round as usize), aims) else {
            return Ok(answer);
        };
        let x = float::floats(words);
        let y = float::floats_mut(&mut answer);
        let mut at = 0;
        for call in &steps.calls {
            let from: usize = steps.uploads[..usize::from(call.upload)].iter().sum();
            let layer = &self.layers[call.layer.index()];
            let spec = &self.program.layers()[call.layer.index()];
            for image in 0..spec.images {
                let inputs = spec.shape.inputs();
                let x = &x[from + image * inputs..from + (image + 1) * inputs];
                let y = &mut y[at..at + spec.shape.outputs()];
                at += y.len();
                self.bend(&Witness::new(layer, x), y, u64::from(call.layer.0));
            }
        }
        Ok(answer)
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}

impl Bending {
    fn bend(&self, witness: &Witness, y: &mut [f32], layer: u64) {
        let mut chance = Chance::new(layer);
        for (output, y) in y.iter_mut().enumerate() {
            let up = match self.push {
                Push::Not => return,
                Push::Up => true,
                Push::Scattered => chance.bits() & 1 == 1,
                Push::Class(class) => output == class,
            };
            let sign = if up { 1.0 } else { -1.0 };
            let (sum, most) = (witness.sums[output], self.part * witness.tolerance(output));
            // From the exact sum, and rounded towards it.
            *y = (sum + sign * most) as f32;
            while y.is_finite() && (f64::from(*y) - sum).abs() > most && f64::from(*y) != sum {
                *y = if f64::from(*y) > sum {
                    y.next_down()
                } else {
                    y.next_up()
                };
            }
        }
    }
}

/// What a push did to a result.
#[derive(Clone, Debug)]
pub struct Bent {
    /// ‖y′ − y‖ / ‖y‖ of the model's first output against that of the honest run with the same masks.
    pub moved: f64,
    /// The class that was most likely, before and after.
    pub classes: [usize; 2],
    /// Lead of the most likely class before, and how much the lead over the honest second fell, in units of the lead.
    pub lead_lost: f64,
    /// Answers that the audit recomputed and let pass.
    pub settled: usize,
    /// The largest deviation that it saw, as a part of what is allowed.
    pub used: f64,
}

/// Runs a model honestly and with a liar who uses this part of the tolerance; all answers are audited.
///
/// # Errors
/// Where a session fails or an audit refutes an answer.
pub fn run(
    model: &Model,
    input: &Tensor,
    masks: Option<Times>,
    push: Push,
    part: f64,
) -> Result<Bent> {
    let every = Fraction::new(1.0).context("a fraction")?;
    let mode = Mode::Floats(Demand::new(masks, Sharing::Whole, Some(every))?);
    let run = |push| {
        let cpu = Cpu::new(NonZeroUsize::MIN)?;
        let backend: Box<dyn Backend> = Box::new(Bender { cpu, push, part });
        let mut home = Home::with(model, &mode, [3; 32], vec![Seen::default()], vec![backend])?;
        let output: Vec<Arc<Tensor>> = home.infer(input.clone())?;
        let first = output.first().context("an output")?;
        let values = floats(first).context("floats")?;
        let values: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        anyhow::Ok((values, home.settle()?))
    };
    let (honest, _) = run(Push::Not)?;
    let (bent, (settled, used)) = run(push)?;
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let apart: Vec<f64> = honest.iter().zip(&bent).map(|(a, b)| a - b).collect();
    let (best, second) = leaders(&honest);
    let lead = honest[best] - honest[second];
    Ok(Bent {
        moved: norm(&apart) / norm(&honest),
        classes: [best, leaders(&bent).0],
        lead_lost: 1.0 - (bent[best] - bent[second]) / lead,
        settled,
        used,
    })
}

/// The two most likely classes.
pub fn leaders(values: &[f64]) -> (usize, usize) {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*b].total_cmp(&values[*a]));
    let first = order.first().copied().unwrap_or(0);
    (first, order.get(1).copied().unwrap_or(first))
}
