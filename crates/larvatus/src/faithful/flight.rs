//! One inference of the float mode on its way.

use larvatus_kernels::activation::activate;
use larvatus_kernels::fixed::MaxAbs;
use larvatus_kernels::float::{floats, floats_mut};
use larvatus_kernels::local::pool::{Windows, max_pool};
use larvatus_proto::commit::Root;
use larvatus_proto::frame::{Frame, HEADER, Request};
use larvatus_proto::machine::Now;
use larvatus_proto::program::{LayerId, LayerSpec};
use larvatus_proto::words::{Memory, Words};

use super::audit::Past;
use super::masks::{Ticket, Unmask};
use super::plan::Plan;
use super::session::Output;
use crate::error::{InferError, WorkerMisbehaved};
use crate::inference::{Inference, Next, Opened};
use crate::pool::{Floats, Pool};
use crate::session::InferenceId;

/// The inference on its way.
pub(super) struct Flight {
    pub(super) id: InferenceId,
    pub(super) inference: Inference<Plan>,
    pub(super) ticket: Option<Ticket>,
    pub(super) awaited: Option<Awaited>,
    /// The rounds that are over, where answers may be audited.
    pub(super) past: Vec<Past>,
    pub(super) begun: Now,
    pub(super) output: Output,
}

/// A request that is out.
pub(super) struct Awaited {
    pub(super) round: usize,
    pub(super) call: u64,
    /// B, an upload each; 0 without masks.
    pub(super) bounds: Vec<f32>,
    pub(super) unmasks: Vec<Unmask>,
    /// The request, where answers may be audited.
    pub(super) request: Option<Vec<u32>>,
    pub(super) answers: Vec<Option<Vec<u32>>>,
    /// What each worker commits to, in the last round.
    pub(super) roots: Vec<Option<Root>>,
    pub(super) sent: Now,
}

impl Flight {
    /// Works up to the next request or the end.
    pub(super) fn advance(
        &mut self,
        call: u64,
        plan: &Plan,
        workers: usize,
        memory: &dyn Memory,
        now: Now,
    ) -> Result<Option<Frame>, InferError> {
        let round = match self.inference.advance()? {
            Next::Round(round) => round,
            Next::Done(tensors) => {
                self.output.run.tensors = tensors;
                self.output.run.wall = now.saturating_sub(self.begun);
                return Ok(None);
            }
        };
        let planned = &plan.rounds()[round];
        let masks = self.ticket.as_mut().and_then(Ticket::next_round);
        let (units, unmasks) = match masks {
            Some(masks) => (masks.units.into_iter().map(Some).collect(), masks.unmasks),
            None if plan.demand().masks().is_some() => {
                return Err(InferError::Local {
                    message: "an upload without a mask".to_owned(),
                });
            }
            None => (planned.uploads.iter().map(|_| None).collect(), Vec::new()),
        };
        let units: Vec<_> = units;
        let elements = planned.uploads.iter().map(|upload| upload.elements()).sum();
        let mut request = vec![0_u32; elements];
        let mut bounds = Vec::with_capacity(units.len());
        let mut rest = floats_mut(&mut request);
        for (upload, unit) in planned.uploads.iter().zip(units) {
            let (out, tail) = rest.split_at_mut(upload.elements());
            rest = tail;
            let (x, _) = self.inference.activation(upload)?;
            let finite = x.iter().all(|x| x.is_finite());
            // The worker sees masks around nothing from here on.
            let blank = self.inference.is_poisoned() || !finite;
            let zeros = blank.then(|| vec![0.0; x.len()]);
            let values = zeros.as_deref().unwrap_or(&x);
            match unit.zip(plan.demand().masks()) {
                Some((unit, times)) => {
                    let (bound, failed) = unit.hide(plan.demand().source(), times, values, out);
                    bounds.push(bound);
                    self.output.masked += values.len() as u64;
                    self.output.failed += failed;
                }
                None => {
                    out.copy_from_slice(values);
                    bounds.push(0.0);
                }
            }
            if !finite && let Some(layer) = upload.readers.first() {
                self.inference.poison(*layer);
            }
        }
        let mut words = memory.words(request.len());
        words.write(0, &request);
        let frame = Request::Call {
            call,
            round: u32::try_from(round).unwrap_or(u32::MAX),
            words,
        };
        let frame = frame.into_frame();
        self.output.run.up += frame.size() * workers as u64;
        self.output.run.round_trips += 1;
        self.awaited = Some(Awaited {
            round,
            call,
            bounds,
            unmasks,
            request: plan.demand().audit().map(|_| request),
            answers: vec![None; workers],
            roots: vec![None; workers],
            sent: now,
        });
        Ok(Some(frame))
    }

    pub(super) fn awaited_by(&self, line: usize, call: u64) -> bool {
        let awaited = self.awaited.as_ref();
        awaited.is_some_and(|awaited| awaited.call == call && awaited.answers[line].is_none())
    }

    /// Takes a worker's answer; `true` once all are here.
    pub(super) fn take(
        &mut self,
        line: usize,
        plan: &Plan,
        (root, words): (Option<Root>, &Words),
        now: Now,
    ) -> Result<bool, InferError> {
        let Some(awaited) = &mut self.awaited else {
            return Ok(false);
        };
        let commits = plan.answers().is_some() && awaited.round + 1 == plan.rounds().len();
        let (message, due) = match (commits, root) {
            (true, None) => ("an answer alone", "the last answer and its root"),
            (false, Some(_)) => ("a root", "an answer to an earlier round"),
            (true, Some(_)) | (false, None) => {
                awaited.roots[line] = root;
                ("", "")
            }
        };
        if !due.is_empty() {
            return Err(WorkerMisbehaved::OutOfTurn {
                message,
                awaited: due,
            }
            .into());
        }
        self.output.run.down += (HEADER + 8 + 4 * words.len()) as u64;
        let round = &plan.rounds()[awaited.round];
        let specs = round
            .calls
            .iter()
            .map(|(id, _)| &plan.layers()[id.index()].spec);
        let expected = specs.map(LayerSpec::outputs).sum();
        if words.len() != expected {
            let (round, got) = (awaited.round, words.len());
            return Err(WorkerMisbehaved::AnswerLength {
                round,
                expected,
                got,
            }
            .into());
        }
        awaited.answers[line] = Some(words.to_vec());
        let whole = awaited.answers.iter().all(Option::is_some);
        if whole {
            self.output.run.waiting += now.saturating_sub(awaited.sent);
        }
        Ok(whole)
    }

    /// Adds what the workers said, takes W·ε away and does what rides along. The roots, where this was the last round of an
    /// inference that is committed to.
    pub(super) fn open(
        &mut self,
        plan: &Plan,
        pool: &Pool,
    ) -> Result<Option<Vec<Root>>, InferError> {
        let Some(awaited) = self.awaited.take() else {
            return Ok(None);
        };
        let round = &plan.rounds()[awaited.round];
        let answers: Vec<&[u32]> = awaited
            .answers
            .iter()
            .flatten()
            .map(Vec::as_slice)
            .collect();
        let mut opened = Vec::with_capacity(round.calls.len());
        let mut at = 0;
        let mut unmasks = awaited.unmasks.iter();
        for (id, from) in &round.calls {
            let outputs = plan.layers()[id.index()].spec.outputs();
            let place = at..at + outputs;
            at = place.end;
            let parts = answers.iter().map(|answer| floats(&answer[place.clone()]));
            let mut y = pool.take(outputs);
            y.fill(0.0);
            for part in parts {
                y.iter_mut().zip(part).for_each(|(y, part)| *y += part);
            }
            if let Some(unmask) = unmasks.next() {
                let bound = awaited.bounds[*from];
                let each = y.iter_mut().zip(unmask.values());
                each.for_each(|(y, unmask)| *y -= bound * unmask);
            }
            let residual = plan.placed(*id).residual;
            let residual = residual
                .map(|slot| self.inference.floats(slot))
                .transpose()?;
            opened.push(follow(plan, *id, y, residual, pool));
        }
        self.inference.settle(round, opened)?;
        if let Some(request) = awaited.request {
            let answers = awaited.answers.into_iter().flatten().collect();
            self.past.push(Past { request, answers });
        }
        Ok(awaited.roots.into_iter().collect())
    }
}

/// What rides along behind a layer: activation, residual, activation, pooling.
fn follow(
    plan: &Plan,
    id: LayerId,
    mut y: Floats,
    residual: Option<&[f32]>,
    pool: &Pool,
) -> Believed {
    let tail = &plan.placed(id).tail;
    activate(tail.pre, &mut y);
    if let Some(residual) = residual {
        y.iter_mut()
            .zip(residual)
            .for_each(|(y, other)| *y += other);
    }
    activate(tail.post, &mut y);
    let Some(windows) = &tail.pool else {
        return Believed(y);
    };
    let spec = &plan.layers()[id.index()].spec;
    let planes = spec.images * spec.shape.output_rows_cols().0;
    let windows = Windows {
        planes,
        ..windows.clone()
    };
    let mut pooled = pool.take(planes * windows.output.iter().product::<usize>());
    max_pool(&windows, &y, &mut pooled).expect("the plan computed these windows for this layer");
    Believed(pooled)
}

/// Values that nobody has checked. Only this mode uses such.
pub(crate) struct Believed(Floats);

impl Opened for Believed {
    fn into_parts(self) -> (Floats, Vec<MaxAbs>) {
        (self.0, Vec::new())
    }
}
