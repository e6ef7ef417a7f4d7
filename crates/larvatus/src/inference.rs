//! One inference: the tensors that are alive and the round it stands at.

use std::ops::Deref;
use std::sync::Arc;

use larvatus_kernels::fixed::MaxAbs;
use larvatus_proto::program::LayerId;
use tract_onnx::prelude::{IntoTValue, Tensor};

use crate::error::{InferError, InputError};
use crate::model::linear::floats;
use crate::model::rounds::{Cut, Segment, Slot};
use crate::model::{ModelError, Port, engine, guarded};
use crate::plan::{Plan, PlannedRound, Upload};
use crate::pool::{Floats, Pool};
use crate::tensor::check_inputs;

/// What an inference follows: the same cut of a graph, whoever computes its linear calls and in which numbers.
pub(crate) trait Steps {
    /// The only values that answers may become: what a session must have made of them before they are used.
    type Answer: Opened;

    /// The model's inputs.
    fn inputs(&self) -> &[Port];
    /// The cut.
    fn cut(&self) -> &Cut;
    /// The rounds.
    fn rounds(&self) -> &[PlannedRound];
}

/// An answer's values, in the layer's layout.
pub(crate) trait Opened {
    /// The values, and the largest magnitude of each of equal runs of them, where known.
    fn into_parts(self) -> (Floats, Vec<MaxAbs>);
}

/// What an inference needs next.
pub(crate) enum Next {
    /// The answers of this round.
    Round(usize),
    /// Nothing: these are the outputs.
    Done(Vec<Arc<Tensor>>),
}

/// The live tensors of one inference.
pub(crate) struct Inference<P = Plan> {
    plan: Arc<P>,
    values: Vec<Option<Value>>,
    /// Where opened answers lie.
    pool: Pool,
    round: usize,
    /// What went wrong first; from there on zeros were sent.
    failed: Option<InferError>,
}

/// The elements of an upload in the layer's order, and their magnitudes where they are known.
pub(crate) type Outgoing<'a> = (Elements<'a>, Option<Vec<MaxAbs>>);

/// Elements as they lie, or reordered.
pub(crate) enum Elements<'a> {
    Borrowed(&'a [f32]),
    Reordered(Floats),
}

impl Deref for Elements<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match self {
            Self::Borrowed(elements) => elements,
            Self::Reordered(elements) => elements,
        }
    }
}

/// A tensor that is alive.
enum Value {
    /// The graph engine's own.
    Tensor(Arc<Tensor>),
    /// An opened answer of a layer. `maxima[i]` is the largest magnitude of the `i`-th of equal
    /// runs of elements.
    Opened {
        layer: LayerId,
        values: Floats,
        maxima: Vec<MaxAbs>,
    },
}

impl<P: Steps> Inference<P> {
    /// Takes the inputs, if the plan was made for them.
    pub(crate) fn new(plan: Arc<P>, inputs: Vec<Tensor>, pool: Pool) -> Result<Self, InputError> {
        check_inputs(plan.inputs(), &inputs)?;
        let mut values: Vec<Option<Value>> = Vec::new();
        values.resize_with(plan.cut().slots, || None);
        let constants = plan
            .cut()
            .constants
            .iter()
            .map(|(slot, value)| (*slot, value.clone()));
        let given = plan
            .cut()
            .inputs
            .iter()
            .copied()
            .zip(inputs.into_iter().map(Arc::new));
        for (slot, tensor) in constants.chain(given) {
            values[slot.0] = Some(Value::Tensor(tensor));
        }
        Ok(Self {
            plan,
            values,
            pool,
            round: 0,
            failed: None,
        })
    }

    /// Does the local work up to the next round.
    ///
    /// Local work may fail for some inputs and not for others, so a failure goes on with zeros and
    /// is told at the end: the worker sees the same rounds either way.
    pub(crate) fn advance(&mut self) -> Result<Next, InferError> {
        let plan = Arc::clone(&self.plan);
        if let Some(Some(segment)) = plan.cut().segments.get(self.round)
            && let Err(why) = self.run(segment)
        {
            self.failed.get_or_insert(why);
            self.blank(segment);
        }
        self.forget(2 * self.round);
        if self.round < plan.rounds().len() {
            return Ok(Next::Round(self.round));
        }
        if let Some(why) = &self.failed {
            return Err(why.clone());
        }
        let outputs = plan.cut().outputs.iter().map(|slot| self.tensor(*slot));
        Ok(Next::Done(outputs.collect::<Result<_, InferError>>()?))
    }

    /// The local work that [`advance`](Self::advance) does next.
    pub(crate) fn segment(&self) -> Option<&Segment> {
        self.plan.cut().segments.get(self.round)?.as_ref()
    }

    /// What a segment reads.
    pub(crate) fn inputs_of(&self, segment: &Segment) -> Result<Vec<Arc<Tensor>>, InferError> {
        let inputs = segment.inputs.iter();
        inputs.map(|slot| self.tensor(*slot)).collect()
    }

    fn run(&mut self, segment: &Segment) -> Result<(), InferError> {
        let inputs = self.inputs_of(segment)?.into_iter();
        let inputs = inputs.map(IntoTValue::into_tvalue).collect();
        let outputs = guarded(|| segment.plan.run(inputs).map_err(|err| engine(&err))).map_err(
            |err: ModelError| InferError::Local {
                message: err.to_string(),
            },
        )?;
        for (slot, output) in segment.outputs.iter().zip(outputs) {
            self.values[slot.0] = output
                .as_arc_tensor()
                .map(|tensor| Value::Tensor(Arc::clone(tensor)));
        }
        Ok(())
    }

    /// Zeros for what a segment should have made. What goes out, and what is added to an answer,
    /// has a shape that the plan knows; anything else may be missing.
    fn blank(&mut self, segment: &Segment) {
        let model = segment.plan.model();
        for (slot, outlet) in segment.outputs.iter().zip(&model.outputs) {
            let zeros = model.outlet_fact(*outlet).ok().and_then(|fact| {
                let shape = fact.shape.as_concrete()?;
                Tensor::zero_dt(fact.datum_type, shape).ok()
            });
            self.values[slot.0] = zeros.map(|zeros| Value::Tensor(Arc::new(zeros)));
        }
    }

    fn value(&self, slot: Slot) -> Result<&Value, InferError> {
        self.values
            .get(slot.0)
            .and_then(Option::as_ref)
            .ok_or_else(|| InferError::Local {
                message: "a tensor is wanted that was never made".to_owned(),
            })
    }

    /// A tensor as the graph engine takes it; an opened answer is copied.
    fn tensor(&self, slot: Slot) -> Result<Arc<Tensor>, InferError> {
        let (layer, values) = match self.value(slot)? {
            Value::Tensor(tensor) => return Ok(Arc::clone(tensor)),
            Value::Opened { layer, values, .. } => (layer, values),
        };
        let shape = &self.plan.cut().calls[layer.index()].tail.shape;
        let tensor = Tensor::from_shape(shape, values).map_err(|err| InferError::Local {
            message: err.to_string(),
        })?;
        Ok(Arc::new(tensor))
    }

    /// Drops the tensors that nobody reads after this step.
    fn forget(&mut self, step: usize) {
        for (value, last) in self.values.iter_mut().zip(&self.plan.cut().last_use) {
            if *last <= step {
                *value = None;
            }
        }
    }

    /// The elements of an upload in the layer's order, and their magnitudes where known.
    pub(crate) fn activation(&self, upload: &Upload) -> Result<Outgoing<'_>, InferError> {
        let elements = self.floats(upload.slot)?;
        if elements.len() != upload.elements() {
            return Err(InferError::Local {
                message: format!(
                    "{} elements where {} go out",
                    elements.len(),
                    upload.elements()
                ),
            });
        }
        let Some(order) = &upload.order else {
            let maxima = match self.value(upload.slot)? {
                Value::Tensor(_) => None,
                Value::Opened { maxima, .. } => regroup(maxima, upload.images * upload.scales()),
            };
            return Ok((Elements::Borrowed(elements), maxima));
        };
        let mut ordered = self.pool.take(elements.len());
        order.apply(elements, &mut ordered);
        Ok((Elements::Reordered(ordered), None))
    }

    /// The elements of a tensor.
    pub(crate) fn floats(&self, slot: Slot) -> Result<&[f32], InferError> {
        match self.value(slot)? {
            Value::Tensor(tensor) => floats(tensor),
            Value::Opened { values, .. } => Some(&**values),
        }
        .ok_or_else(|| InferError::Local {
            message: "a tensor that is not f32".to_owned(),
        })
    }

    /// Where opened answers lie.
    pub(crate) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Notes that a value on its way to `layer` was not finite.
    pub(crate) fn poison(&mut self, layer: LayerId) {
        self.failed.get_or_insert(InferError::NotFinite { layer });
    }

    /// Whether zeros are sent from here on.
    pub(crate) fn is_poisoned(&self) -> bool {
        self.failed.is_some()
    }

    /// Takes the opened answers of the round's calls, in their order, and goes on to the next.
    pub(crate) fn settle(
        &mut self,
        round: &PlannedRound,
        answers: Vec<P::Answer>,
    ) -> Result<(), InferError> {
        let plan = Arc::clone(&self.plan);
        for ((id, _), answer) in round.calls.iter().zip(answers) {
            let placed = &plan.cut().calls[id.index()];
            let (values, maxima) = answer.into_parts();
            let (values, maxima) = match &placed.linear.output_order {
                None => (values, maxima),
                Some(order) => {
                    let mut ordered = self.pool.take(values.len());
                    order.apply(&values, &mut ordered);
                    (ordered, Vec::new())
                }
            };
            self.values[placed.output.0] = Some(Value::Opened {
                layer: *id,
                values,
                maxima,
            });
        }
        self.forget(2 * self.round + 1);
        self.round += 1;
        Ok(())
    }
}

/// Magnitudes of `wanted` equal runs from those of a multiple of them.
fn regroup(maxima: &[MaxAbs], wanted: usize) -> Option<Vec<MaxAbs>> {
    if maxima.is_empty() || !maxima.len().is_multiple_of(wanted) {
        return None;
    }
    let run = maxima.len() / wanted;
    Some(
        maxima
            .chunks_exact(run)
            .filter_map(|run| run.iter().max().copied())
            .collect(),
    )
}
