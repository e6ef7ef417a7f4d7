//! One inference on its way through a session.

use std::sync::Arc;
use std::time::Duration;

use larvatus_proto::frame::{Frame, HEADER, Request};
use larvatus_proto::machine::Now;
use larvatus_proto::words::{Heap, Memory, Words};

use super::Output;
use crate::claim::{Cover, Hidden, Scratch, hide_upload, open};
use crate::error::{InferError, InputError, WorkerMisbehaved};
use crate::inference::{Inference, Next};
use crate::plan::Plan;
use crate::policy::Hiding;
use crate::pool::Pool;
use crate::secret::{CheckKey, Checking, Checks, TicketSet, Unmask};
use crate::tensor::Tensor;

/// What all inferences of a session work with.
pub(super) struct Desk {
    /// Where requests are written.
    pub(super) memory: Arc<dyn Memory>,
    /// Where opened answers lie.
    pub(super) pool: Pool,
    pub(super) scratch: Scratch,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self {
            memory: Arc::new(Heap),
            pool: Pool::default(),
            scratch: Scratch::default(),
        }
    }
}

/// What an inference does next.
pub(super) enum Progress {
    /// It asks the worker.
    Request(Frame),
    /// It is over.
    Done(Output),
}

/// An inference, the secrets of the rounds before it, and the request it awaits the answer of.
pub(super) struct Flight {
    plan: Arc<Plan>,
    inference: Inference,
    secrets: Option<TicketSet>,
    /// Of its own check vectors, where the session has none that serve all.
    key: Option<CheckKey>,
    awaited: Option<Awaited>,
    begun: Now,
    waiting: Duration,
    up: u64,
    down: u64,
    round_trips: usize,
}

/// A request that is out.
struct Awaited {
    round: usize,
    hidden: Vec<Hidden>,
    unmasks: Vec<Unmask>,
    /// The round's own check vectors.
    fresh: Option<Checks>,
    /// The request's bytes, where retries are on: a retry sends these, never a fresh hiding with
    /// the same ticket.
    frame: Option<Frame>,
    first_sent: Now,
    last_sent: Now,
}

impl Flight {
    pub(super) fn new(
        plan: &Arc<Plan>,
        inputs: Vec<Tensor>,
        secrets: Option<TicketSet>,
        key: Option<CheckKey>,
        desk: &Desk,
        begun: Now,
    ) -> Result<Self, InputError> {
        Ok(Self {
            plan: Arc::clone(plan),
            inference: Inference::new(Arc::clone(plan), inputs, desk.pool.clone())?,
            secrets,
            key,
            awaited: None,
            begun,
            waiting: Duration::ZERO,
            up: 0,
            down: 0,
            round_trips: 0,
        })
    }

    /// Works up to the next request (numbered `call`) or the end.
    pub(super) fn advance(
        &mut self,
        call: u64,
        checking: &Checking,
        keep_request: bool,
        desk: &mut Desk,
        now: Now,
    ) -> Result<Progress, InferError> {
        let round = match self.inference.advance()? {
            Next::Round(round) => round,
            Next::Done(tensors) => {
                return Ok(Progress::Done(Output {
                    tensors,
                    up: self.up,
                    down: self.down,
                    round_trips: self.round_trips,
                    wall: now.saturating_sub(self.begun),
                    waiting: self.waiting,
                }));
            }
        };
        let planned = &self.plan.rounds()[round];
        let secrets = self.secrets.as_mut().and_then(TicketSet::next_round);
        let (masks, tickets, unmasks) = match secrets {
            Some(secrets) => (Some(secrets.masks), secrets.tickets, secrets.unmasks),
            None => (None, Vec::new(), Vec::new()),
        };
        let mut fresh = self.key.as_ref().map(|key| key.draw(&self.plan, planned));
        let none = Checks::none();
        let checks = fresh
            .as_ref()
            .or_else(|| checking.shared())
            .unwrap_or(&none);
        let mut tickets = tickets.into_iter();
        let form = self.plan.worker_model().program().form();
        let sent = planned.uploads.iter();
        let mut words = desk
            .memory
            .words(sent.map(|upload| form.words(upload.elements())).sum());
        let mut at = 0;
        let mut hidden = Vec::with_capacity(planned.uploads.len());
        for upload in &planned.uploads {
            let (x, maxima) = self.inference.activation(upload)?;
            let zero = self.inference.is_poisoned();
            let ticket = tickets.next().zip(masks.as_deref());
            let pad = ticket.map(|(ticket, masks)| ticket.pad(masks));
            // What the plan demands decides, not which keys are at hand.
            let cover = match (self.plan.policy().hiding(), &pad) {
                (Hiding::Field, Some(pad)) => Cover::Pad(pad),
                (Hiding::Clear, _) => Cover::Bare(form),
                (Hiding::Field, None) => {
                    return Err(InferError::Local {
                        message: "an upload without a ticket".to_owned(),
                    });
                }
            };
            let (kept, finite) = hide_upload(
                upload,
                &x,
                maxima.as_deref(),
                zero,
                cover,
                checks,
                &mut words,
                at,
                &mut desk.scratch,
            );
            at += form.words(upload.elements());
            if !finite && let Some(layer) = upload.readers.first() {
                self.inference.poison(*layer);
            }
            hidden.push(kept);
        }
        fresh.iter_mut().for_each(Checks::forget_folded);
        let round_number = u32::try_from(round).unwrap_or(u32::MAX);
        let frame = Request::Call {
            call,
            round: round_number,
            words,
        }
        .into_frame();
        self.up += frame.size();
        self.round_trips += 1;
        let kept = keep_request.then(|| frame.clone());
        self.awaited = Some(Awaited {
            round,
            hidden,
            unmasks,
            fresh,
            frame: kept,
            first_sent: now,
            last_sent: now,
        });
        Ok(Progress::Request(frame))
    }

    /// Opens the answer that is awaited; a lie leaves nothing behind.
    pub(super) fn open(
        &mut self,
        words: &Words,
        checking: &Checking,
        desk: &mut Desk,
        now: Now,
    ) -> Result<(), InferError> {
        let Some(awaited) = self.awaited.take() else {
            return Err(InferError::Local {
                message: "an answer that nothing awaits".to_owned(),
            });
        };
        self.waiting += now.saturating_sub(awaited.first_sent);
        self.down += (HEADER + 8 + 4 * words.len()) as u64;
        let planned = &self.plan.rounds()[awaited.round];
        let layers = self.plan.layers();
        let expected = planned
            .calls
            .iter()
            .map(|(id, _)| layers[id.index()].spec.outputs())
            .sum();
        if words.len() != expected {
            let (round, got) = (awaited.round, words.len());
            return Err(WorkerMisbehaved::AnswerLength {
                round,
                expected,
                got,
            }
            .into());
        }
        let none = Checks::none();
        let fresh = awaited.fresh.as_ref();
        let checks = fresh.or_else(|| checking.shared()).unwrap_or(&none);
        let mut unmasks = awaited.unmasks.into_iter();
        let mut at = 0;
        let mut answers = Vec::with_capacity(planned.calls.len());
        for (id, from) in &planned.calls {
            let layer = &layers[id.index()];
            let upload = &planned.uploads[*from];
            let reader = upload
                .readers
                .iter()
                .position(|reader| reader == id)
                .unwrap_or(0);
            let residual = layer
                .placed
                .residual
                .map(|slot| self.inference.floats(slot))
                .transpose()?;
            let vectors = checks.layer(*id).map_or(0, |checks| checks.v.len());
            if vectors != self.plan.repetitions() {
                return Err(InferError::Local {
                    message: "an answer without its check vectors".to_owned(),
                });
            }
            let unmask = unmasks.next();
            let hidden = &awaited.hidden[*from];
            answers.push(open(
                *id,
                layer,
                words,
                at,
                unmask,
                hidden,
                reader,
                checks,
                residual,
                &desk.pool,
                &mut desk.scratch,
            )?);
            at += layer.spec.outputs();
        }
        self.inference.settle(planned, answers)
    }

    /// When the awaited request was sent first and last.
    pub(super) fn awaited_since(&self) -> Option<(Now, Now)> {
        self.awaited
            .as_ref()
            .map(|awaited| (awaited.first_sent, awaited.last_sent))
    }

    /// The awaited request once more, byte for byte, if its time has come.
    pub(super) fn retry(&mut self, now: Now, after: Duration) -> Option<Frame> {
        let awaited = self
            .awaited
            .as_mut()
            .filter(|awaited| now >= awaited.last_sent + after)?;
        let frame = awaited.frame.clone()?;
        awaited.last_sent = now;
        self.up += frame.size();
        Some(frame)
    }
}
