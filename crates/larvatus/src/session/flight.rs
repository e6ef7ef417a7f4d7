//! One inference on its way through a session.

use std::sync::Arc;
use std::time::Duration;

use larvatus_kernels::field::Fp;
use larvatus_proto::frame::{Frame, HEADER, Request};
use larvatus_proto::machine::Now;
use larvatus_proto::words::{Heap, Memory, Words};
use zeroize::Zeroizing;

use super::Output;
use crate::claim::{Cover, Hidden, Scratch, hide_upload, open};
use crate::error::{InferError, InputError, WorkerMisbehaved};
use crate::inference::{Inference, Next};
use crate::plan::Plan;
use crate::policy::Hiding;
use crate::pool::Pool;
use crate::secret::{CheckKey, Checking, Checks, TicketSet, Unmask};
use crate::shares::{Shares, Verified};
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

/// What a session hides and checks with.
pub(super) struct Kit<'a> {
    pub(super) checking: &'a Checking,
    /// In the place of `checking`, where two workers hold shares of the weights.
    pub(super) shares: Option<&'a Shares>,
    /// Whether requests may have to be sent again.
    pub(super) keep_request: bool,
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
    /// What each of two workers is expected to answer, and what they have.
    halves: Vec<Half>,
    first_sent: Now,
    last_sent: [Now; 2],
}

/// What the words that are opened are.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// One worker's, to be checked with these vectors or with the round's own.
    Claim(Option<&'a Checks>),
    /// The sum of two answers that were checked one by one.
    Verified,
}

/// One of two workers' part in a round.
struct Half {
    /// ⟨a, x⟩ by call and image.
    expected: Vec<Zeroizing<Vec<Fp>>>,
    answer: Option<Verified>,
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
        kit: &Kit<'_>,
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
            .or_else(|| kit.checking.shared())
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
        let halves = match kit.shares {
            None => Vec::new(),
            Some(shares) => {
                let words = words.own();
                let half = |line| Half {
                    expected: shares.expect(line, &self.plan, planned, words),
                    answer: None,
                };
                vec![half(0), half(1)]
            }
        };
        let round_number = u32::try_from(round).unwrap_or(u32::MAX);
        let frame = Request::Call {
            call,
            round: round_number,
            words,
        }
        .into_frame();
        self.up += frame.size() * halves.len().max(1) as u64;
        self.round_trips += 1;
        let kept = kit.keep_request.then(|| frame.clone());
        self.awaited = Some(Awaited {
            round,
            hidden,
            unmasks,
            fresh,
            frame: kept,
            halves,
            first_sent: now,
            last_sent: [now; 2],
        });
        Ok(Progress::Request(frame))
    }

    /// Takes the answer of the worker at the end of a line. Once all have answered, opens what they
    /// said together and says so. A lie leaves nothing behind.
    pub(super) fn open(
        &mut self,
        line: usize,
        words: &Words,
        kit: &Kit<'_>,
        desk: &mut Desk,
        now: Now,
    ) -> Result<bool, InferError> {
        let Some(awaited) = &mut self.awaited else {
            return Err(nothing_awaited());
        };
        self.down += (HEADER + 8 + 4 * words.len()) as u64;
        let shares = match (kit.shares, awaited.halves.is_empty()) {
            (None, true) => {
                self.open_whole(words, Source::Claim(kit.checking.shared()), desk, now)?;
                return Ok(true);
            }
            (Some(shares), false) => shares,
            (None, false) | (Some(_), true) => return Err(nothing_awaited()),
        };
        // Each by itself, before anything is added.
        let round = (awaited.round, &self.plan.rounds()[awaited.round]);
        let Some(half) = awaited.halves.get_mut(line) else {
            return Err(nothing_awaited());
        };
        let verified = shares.verify(line, &self.plan, round, &half.expected, words)?;
        half.answer = Some(verified);
        let mut answers = awaited.halves.iter_mut().map(|half| half.answer.take());
        match (answers.next().flatten(), answers.next().flatten()) {
            (Some(first), Some(second)) => {
                self.open_whole(&first.join(second), Source::Verified, desk, now)?;
                Ok(true)
            }
            (first, second) => {
                for (half, answer) in awaited.halves.iter_mut().zip([first, second]) {
                    half.answer = answer;
                }
                Ok(false)
            }
        }
    }

    /// Opens the answer that is awaited: the worker's, or the sum of two that were verified.
    fn open_whole(
        &mut self,
        words: &Words,
        source: Source<'_>,
        desk: &mut Desk,
        now: Now,
    ) -> Result<(), InferError> {
        let Some(awaited) = self.awaited.take() else {
            return Err(nothing_awaited());
        };
        self.waiting += now.saturating_sub(awaited.first_sent);
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
        let checks = match source {
            Source::Claim(shared) => fresh.or(shared).unwrap_or(&none),
            Source::Verified => &none,
        };
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
            let wanted = match source {
                Source::Claim(_) => self.plan.repetitions(),
                Source::Verified => 0,
            };
            if vectors != wanted {
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

    /// When the request was sent first and last that a worker has not answered.
    pub(super) fn awaited_since(&self, line: usize) -> Option<(Now, Now)> {
        let awaited = self.awaited.as_ref()?;
        let half = awaited.halves.get(line);
        let open = half.is_none_or(|half| half.answer.is_none());
        open.then_some((awaited.first_sent, *awaited.last_sent.get(line)?))
    }

    /// The awaited request to a worker once more, byte for byte, if its time has come.
    pub(super) fn retry(&mut self, line: usize, now: Now, after: Duration) -> Option<Frame> {
        let (_, sent) = self.awaited_since(line)?;
        let awaited = self.awaited.as_mut().filter(|_| now >= sent + after)?;
        let frame = awaited.frame.clone()?;
        *awaited.last_sent.get_mut(line)? = now;
        self.up += frame.size();
        Some(frame)
    }
}

fn nothing_awaited() -> InferError {
    InferError::Local {
        message: "an answer that nothing awaits".to_owned(),
    }
}
