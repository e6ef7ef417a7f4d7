//! Everything here: the network in float, or with its linear layers in integers.

use std::sync::Arc;

use crate::claim::{Cover, Scratch, hide_upload, open};
use crate::error::{InferError, InputError};
use crate::inference::{Inference, Next};
use crate::model::{Model, ModelError, engine, guarded, runnable, runnable_by_engine};
use crate::plan::{Plan, PlannedRound};
use crate::pool::Pool;
use crate::secret::Checks;
use crate::tensor::{Tensor, check_inputs};
use larvatus_proto::program::Form;
use larvatus_proto::words::Words;
use tract_onnx::prelude::{IntoTValue, TypedSimplePlan};
use tract_onnx::tract_core::plan::eval;

/// Why a local run has no output.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocalError {
    /// The input is refused.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The inference failed.
    #[error(transparent)]
    Infer(#[from] InferError),
}

/// The whole network in float: the preset `local`.
pub struct FloatNetwork {
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<crate::model::Port>,
}

impl FloatNetwork {
    /// Prepares a model.
    ///
    /// # Errors
    /// [`ModelError`] where the engine does not take it.
    pub fn new(model: &Model) -> Result<Self, ModelError> {
        Ok(Self {
            plan: runnable(model.graph().clone())?,
            inputs: model.inputs().to_vec(),
        })
    }

    /// Prepares a model with the engine's own operators only: what ours are measured against.
    ///
    /// # Errors
    /// As [`FloatNetwork::new`].
    pub fn of_engine(model: &Model) -> Result<Self, ModelError> {
        Ok(Self {
            plan: runnable_by_engine(model.graph().clone())?,
            inputs: model.inputs().to_vec(),
        })
    }

    /// Its work with these inputs, for measuring it.
    ///
    /// # Errors
    /// [`InputError`] where they do not fit.
    pub fn trace(&self, inputs: Vec<Tensor>) -> Result<LocalTrace, InputError> {
        check_inputs(&self.inputs, &inputs)?;
        Ok(LocalTrace {
            plan: Arc::clone(&self.plan),
            inputs: inputs.into_iter().map(Arc::new).collect(),
        })
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`LocalError`].
    pub fn run(&self, inputs: Vec<Tensor>) -> Result<Vec<Arc<Tensor>>, LocalError> {
        check_inputs(&self.inputs, &inputs)?;
        let inputs = inputs.into_iter().map(IntoTValue::into_tvalue).collect();
        let outputs =
            guarded(|| self.plan.run(inputs).map_err(|err| engine(&err))).map_err(|err| {
                InferError::Local {
                    message: err.to_string(),
                }
            })?;
        Ok(outputs
            .iter()
            .filter_map(|output| output.as_arc_tensor().cloned())
            .collect())
    }
}

/// The integer network of a plan, all of it here: the preset `local-exact`.
///
/// A split run of the same plan equals it bit for bit.
///
/// # Errors
/// [`LocalError`].
pub fn run_exact(plan: &Arc<Plan>, inputs: Vec<Tensor>) -> Result<Vec<Arc<Tensor>>, LocalError> {
    run_exact_observed(plan, inputs, |_| {})
}

/// The local work between two rounds with the tensors that one run gave it, for measuring it alone.
pub struct LocalTrace {
    plan: Arc<TypedSimplePlan>,
    inputs: Vec<Arc<Tensor>>,
}

impl LocalTrace {
    /// Does the work once more, and drops what comes out. `after` hears the name of each operator when it is done.
    ///
    /// # Errors
    /// [`InferError::Local`].
    pub fn replay(&self, mut after: impl FnMut(&str)) -> Result<(), InferError> {
        let inputs = self
            .inputs
            .iter()
            .map(|tensor| Arc::clone(tensor).into_tvalue())
            .collect();
        let work = || {
            let mut state = self.plan.spawn()?;
            state.run_plan_with_eval(inputs, |context, op_state, node, inputs| {
                let outputs = eval(context, op_state, node, inputs);
                after(&node.op().name());
                outputs
            })
        };
        guarded(|| work().map_err(|err| engine(&err)))
            .map(drop)
            .map_err(|err| InferError::Local {
                message: err.to_string(),
            })
    }
}

/// The local segments of [`run_exact`], in their order.
///
/// # Errors
/// [`LocalError`].
pub fn local_work(plan: &Arc<Plan>, inputs: Vec<Tensor>) -> Result<Vec<LocalTrace>, LocalError> {
    let mut inference = Inference::new(Arc::clone(plan), inputs, Pool::default())?;
    let mut traces = Vec::new();
    loop {
        if let Some(segment) = inference.segment() {
            traces.push(LocalTrace {
                plan: Arc::clone(&segment.plan),
                inputs: inference.inputs_of(segment)?,
            });
        }
        match inference.advance()? {
            Next::Done(_) => return Ok(traces),
            Next::Round(round) => {
                let round = &plan.rounds()[round];
                exact_round(plan, round, &mut inference, &mut |_| {})?;
            }
        }
    }
}

/// One integer linear layer of a run, for independent evaluation.
pub struct LayerTrace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its specification: shape, images, planes.
    pub spec: &'a larvatus_proto::program::LayerSpec,
    /// Its weights, plane by plane.
    pub weights: &'a larvatus_kernels::linear::Weights,
    /// What goes in, as words mod p.
    pub input: &'a [u32],
    /// What comes out, as words mod p.
    pub output: &'a [u32],
}

/// [`run_exact`], showing every linear layer to `observe`.
///
/// # Errors
/// [`LocalError`].
pub fn run_exact_observed(
    plan: &Arc<Plan>,
    inputs: Vec<Tensor>,
    mut observe: impl FnMut(LayerTrace<'_>),
) -> Result<Vec<Arc<Tensor>>, LocalError> {
    let mut inference = Inference::new(Arc::clone(plan), inputs, Pool::default())?;
    loop {
        match inference.advance()? {
            Next::Done(outputs) => return Ok(outputs),
            Next::Round(round) => {
                let round = &plan.rounds()[round];
                exact_round(plan, round, &mut inference, &mut observe)?;
            }
        }
    }
}

fn exact_round(
    plan: &Arc<Plan>,
    round: &PlannedRound,
    inference: &mut Inference,
    observe: &mut impl FnMut(LayerTrace<'_>),
) -> Result<(), InferError> {
    let checks = Checks::none();
    let mut scratch = Scratch::default();
    let mut sent = Vec::with_capacity(round.uploads.len());
    for upload in &round.uploads {
        let (x, maxima) = inference.activation(upload)?;
        let mut words = Words::from(vec![0; upload.elements()]);
        let zero = inference.is_poisoned();
        let (hidden, finite) = hide_upload(
            upload,
            &x,
            maxima.as_deref(),
            zero,
            Cover::Bare(Form::Words),
            &checks,
            &mut words,
            0,
            &mut scratch,
        );
        if !finite && let Some(layer) = upload.readers.first() {
            inference.poison(*layer);
        }
        sent.push((words.into_vec(), hidden));
    }
    let mut answers = Vec::with_capacity(round.calls.len());
    for (id, from) in &round.calls {
        let layer = &plan.layers()[id.index()];
        let (input, hidden) = &sent[*from];
        let output = plan.engine().apply(*id, input);
        observe(LayerTrace {
            name: &layer.placed.linear.name,
            spec: &layer.spec,
            weights: &layer.weights,
            input,
            output: &output,
        });
        let residual = layer
            .placed
            .residual
            .map(|slot| inference.floats(slot))
            .transpose()?;
        answers.push(open(
            *id,
            layer,
            &output.into(),
            0,
            None,
            hidden,
            0,
            &checks,
            residual,
            inference.pool(),
            &mut scratch,
        )?);
    }
    inference.settle(round, answers)
}
