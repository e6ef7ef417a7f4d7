//! A session with one worker: a state machine that many inferences run through.
//!
//! Call order: [`Session::new`], then any mix of [`provision`](Session::provision) (off the latency
//! path), [`begin`](Session::begin) and [`poll`](Session::poll), while a pump drives the
//! [`Machine`](larvatus_proto::machine::Machine) side. At most [`Settings::window`] inferences are in flight; further ones wait as
//! their inputs. Memory is bounded by the window times an inference's live tensors, its tickets and,
//! where retries are on, its last request.
//!
//! A lie ends the session: its check vectors might no longer be secret, so every inference in
//! flight is discarded, its tickets with it, and another session draws everything afresh.

pub(crate) mod conversation;
mod flight;
mod line;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use larvatus_proto::frame::{Frame, MAX_CALLS};
use larvatus_proto::machine::Now;
use larvatus_proto::program::WorkerModel;
use larvatus_proto::words::Words;

use crate::error::{InferError, InputError, SupplyError};
use crate::plan::Plan;
use crate::policy::{CheckDraw, Hiding, Secrecy};
use crate::secret::{Checking, Checks, Entropy, Identity, Origin, Provisioner, TicketSet};
use crate::shares::{Apart, Shares};
use crate::tensor::Tensor;
use conversation::Heard;
use flight::{Desk, Flight, Kit};
use line::Line;

pub use line::WorkerLine;

/// How a session behaves; every field has a default that suits a worker on the same network.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Inferences in flight at the same time, at most [`MAX_CALLS`]. Four keep both sides busy on
    /// two cores.
    pub window: usize,
    /// How long the worker may take for any reply.
    pub answer_within: Duration,
    /// When to send a request again, byte for byte, if no answer came. Links that lose nothing
    /// (sockets) need none.
    pub retry_after: Option<Duration>,
    /// Who the worker is, where its link has proved it. Tickets whose pads somebody else knows are
    /// used with a worker that is known to be another.
    pub worker: Option<Identity>,
    /// For plans that hide the weights from workers: that the session has two, who do not collude.
    pub apart: Option<Apart>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: 4,
            answer_within: Duration::from_secs(60),
            retry_after: None,
            worker: None,
            apart: None,
        }
    }
}

/// Number of an inference in its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InferenceId(pub u64);

/// What an inference yields and what it took.
#[derive(Clone, Debug)]
pub struct Output {
    /// The model's outputs, in its order.
    pub tensors: Vec<Arc<Tensor>>,
    /// Bytes to the worker, frames included.
    pub up: u64,
    /// Bytes back.
    pub down: u64,
    /// Requests made.
    pub round_trips: usize,
    /// From begin to end.
    pub wall: Duration,
    /// Of that, how long its answers were awaited.
    pub waiting: Duration,
}

/// Bytes that a session holds, at the most so far; what it can count of them. Shares of hidden weights, kept to
/// be uploaded, are not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Memory {
    /// Check vectors that serve all inferences; those that are drawn for one are not counted.
    pub checks: u64,
    /// u of the tickets at hand, those of inferences in flight counted whole.
    pub tickets: u64,
    /// Buffers of activations.
    pub activations: u64,
}

/// The trusted end of a connection to one worker, or to two that hold shares of the weights.
pub struct Session {
    plan: Arc<Plan>,
    settings: Settings,
    /// Makes own tickets, where the plan hides and the session is not over.
    provisioner: Option<Provisioner>,
    checking: Checking,
    tickets: VecDeque<TicketSet>,
    /// Ticket sets at hand and in flight, the most so far.
    most_tickets: usize,
    /// One a worker.
    lines: Vec<Line>,
    /// What the workers of a plan that hides its weights are sent and checked with.
    shares: Option<Shares>,
    /// Not yet started: their inputs.
    waiting: VecDeque<(InferenceId, Vec<Tensor>, Now)>,
    flights: BTreeMap<InferenceId, Flight>,
    desk: Desk,
    next_inference: u64,
    finished: VecDeque<(InferenceId, Result<Output, InferError>)>,
    ended_by: Option<usize>,
    closing: bool,
}

impl Session {
    /// A session for a plan. `entropy` must be fresh; see [`Entropy`].
    pub fn new(plan: Arc<Plan>, entropy: Entropy, settings: Settings) -> Self {
        let provisioner = match plan.policy().hiding() {
            Hiding::Field => Some(Provisioner::new(&entropy, &plan)),
            Hiding::Clear => None,
        };
        let (checking, shares) = match (plan.policy().secrecy(), settings.apart) {
            (Secrecy::Public, _) => (Checking::new(&entropy, &plan), None),
            (Secrecy::TwoWorkers, None) => (Checking::none(), None),
            (Secrecy::TwoWorkers, Some(_)) => {
                (Checking::none(), Some(Shares::new(&entropy, &plan)))
            }
        };
        let workers = if shares.is_some() { 2 } else { 1 };
        let lines = (0..workers).map(|_| Line::new(&settings)).collect();
        let mut session = Self {
            plan,
            settings,
            provisioner,
            checking,
            tickets: VecDeque::new(),
            most_tickets: 0,
            lines,
            shares,
            waiting: VecDeque::new(),
            flights: BTreeMap::new(),
            desk: Desk::new(),
            next_inference: 0,
            finished: VecDeque::new(),
            ended_by: None,
            closing: false,
        };
        if session.plan.policy().secrecy() == Secrecy::TwoWorkers && session.shares.is_none() {
            let message =
                "a plan that hides the weights needs two workers that are known to be apart";
            session.end(InferError::Local {
                message: message.to_owned(),
            });
        }
        session
    }

    /// What the worker at the end of a line is sent; where the plan hides its weights, a share or nothing.
    fn model(&self, line: usize) -> Option<&WorkerModel> {
        model(&self.plan, self.shares.as_ref(), line)
    }

    /// Makes the tickets of `inferences` further inferences: as much linear work as those
    /// inferences themselves, but off the latency path. What is missing at
    /// [`begin`](Self::begin) is made then. Does nothing where the plan hides nothing.
    pub fn provision(&mut self, inferences: usize) {
        if let Some(provisioner) = &mut self.provisioner {
            for _ in 0..inferences {
                self.tickets.push_back(provisioner.provision(&self.plan));
            }
        }
        self.count_tickets();
    }

    fn count_tickets(&mut self) {
        let now = self.tickets.len() + self.flights.len();
        self.most_tickets = self.most_tickets.max(now);
    }

    /// What it holds, at the most so far. A session that is over has given its check vectors up.
    pub fn memory(&self) -> Memory {
        Memory {
            checks: self.checking.shared().map_or(0, Checks::bytes)
                + self.shares.as_ref().map_or(0, Shares::check_bytes),
            tickets: self.plan.ticket_bytes() * self.most_tickets as u64,
            activations: self.desk.pool.bytes(),
        }
    }

    /// Takes a ticket set that was made elsewhere; the next inference that has none yet uses it. A
    /// session that is over erases it.
    ///
    /// # Errors
    /// [`SupplyError`] where it was made for another plan or other weights, or by a dealer who is
    /// the worker or might be; it is erased.
    pub fn supply(&mut self, set: TicketSet) -> Result<(), SupplyError> {
        set.belongs_to(&self.plan)?;
        let dealt = matches!(set.origin(), Origin::Dealer(_));
        if dealt && self.plan.policy().secrecy() == Secrecy::TwoWorkers {
            return Err(SupplyError::SecretWeights);
        }
        match (set.origin(), self.settings.worker) {
            (Origin::Own | Origin::Stored, _) => {}
            (Origin::Dealer(_), None) => return Err(SupplyError::WorkerUnknown),
            (Origin::Dealer(dealer), Some(worker)) if dealer == worker => {
                return Err(SupplyError::DealerIsWorker);
            }
            (Origin::Dealer(_), Some(_)) => {}
        }
        if self.provisioner.is_some() {
            self.tickets.push_back(set);
            self.count_tickets();
        }
        Ok(())
    }

    /// Inferences whose tickets are ready.
    pub fn provisioned(&self) -> usize {
        self.tickets.len()
    }

    /// Takes the inputs of one inference. In a session that is over it ends at once, for the
    /// reason for which the session did.
    ///
    /// # Errors
    /// [`InputError`] where they are not what the plan was made for, or where answers are checked
    /// with the session's vectors and it has begun as many inferences as its policy's lifetime; nothing
    /// is sent.
    pub fn begin(&mut self, inputs: Vec<Tensor>, now: Now) -> Result<InferenceId, InputError> {
        crate::tensor::check_inputs(self.plan.inputs(), &inputs)?;
        let lifetime = self.plan.policy().lifetime;
        let lasts = match self.plan.policy().check() {
            CheckDraw::Session => self.plan.repetitions() > 0,
            CheckDraw::Fresh => false,
        };
        if lasts && self.next_inference >= lifetime {
            return Err(InputError::LifetimeOver { lifetime });
        }
        let id = InferenceId(self.next_inference);
        self.next_inference += 1;
        match self.lines.iter().find_map(|line| line.conversation.over()) {
            Some(why) => self.finished.push_back((id, Err(why))),
            None => {
                self.waiting.push_back((id, inputs, now));
                self.start_waiting(now);
            }
        }
        Ok(id)
    }

    /// Inferences begun and not yet polled.
    pub fn pending(&self) -> usize {
        self.waiting.len() + self.flights.len() + self.finished.len()
    }

    /// Whether one more [`begin`](Self::begin) would start at once.
    pub fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.flights.len() < self.window()
    }

    fn window(&self) -> usize {
        self.settings.window.clamp(1, MAX_CALLS)
    }

    /// The next finished inference, in the order in which they finish.
    pub fn poll(&mut self) -> Option<(InferenceId, Result<Output, InferError>)> {
        self.finished.pop_front()
    }

    /// Says goodbye once nothing is in flight.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether every worker holds its model and takes calls.
    pub fn is_ready(&self) -> bool {
        self.lines.iter().all(|line| line.conversation.is_ready())
    }

    /// Bytes of models sent and to send, while one is being uploaded.
    pub fn uploading(&self) -> Option<(u64, u64)> {
        let lines = self.lines.iter().enumerate();
        let open = lines.filter_map(|(line, of)| {
            let total = self.model(line)?.blob().len() as u64;
            of.conversation.uploaded().map(|sent| (sent, total))
        });
        open.reduce(|(sent, total), (more, of)| (sent + more, total + of))
    }

    /// What a worker calls itself, once it has said so.
    pub fn worker_name(&self, line: usize) -> Option<&str> {
        self.lines.get(line)?.conversation.worker_name()
    }

    /// Why the session is over, if it is.
    pub fn failure(&self) -> Option<&InferError> {
        self.lines.first()?.conversation.failure()
    }

    /// The line of the worker that the session ended with: the first that lied or failed.
    pub fn ended_by(&self) -> Option<usize> {
        self.ended_by
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Ends the session: everything in flight fails with `why`, no secret outlives it.
    fn end(&mut self, why: InferError) {
        let mut ended = false;
        for line in &mut self.lines {
            ended |= line.conversation.end(why.clone());
            line.calls.clear();
        }
        if !ended {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|(id, ..)| id);
        let flying = std::mem::take(&mut self.flights).into_keys();
        let ids: Vec<InferenceId> = flying.chain(waiting).collect();
        self.finished
            .extend(ids.into_iter().map(|id| (id, Err(why.clone()))));
        self.tickets.clear();
        self.provisioner = None;
        self.checking = Checking::none();
        self.shares = None;
    }

    /// Starts inferences while the window has room. Without workers that are ready, none starts.
    fn start_waiting(&mut self, now: Now) {
        while self.is_ready() && self.flights.len() < self.window() {
            let Some((id, inputs, begun)) = self.waiting.pop_front() else {
                return;
            };
            if self.tickets.is_empty() {
                self.provision(1);
            }
            let tickets = self.tickets.pop_front();
            let key = self.checking.key(id.0);
            match Flight::new(&self.plan, inputs, tickets, key, &self.desk, begun) {
                Ok(flight) => {
                    self.flights.insert(id, flight);
                    self.advance(id, now);
                }
                Err(err) => {
                    let message = err.to_string();
                    self.finished
                        .push_back((id, Err(InferError::Local { message })));
                }
            }
        }
    }

    /// Lets an inference work up to its next request or its end.
    fn advance(&mut self, id: InferenceId, now: Now) {
        let Some(flight) = self.flights.get_mut(&id) else {
            return;
        };
        let Some((first, others)) = self.lines.split_first_mut() else {
            return;
        };
        // All workers get all requests, under the same numbers.
        let call = first.conversation.next_call();
        let kit = Kit {
            checking: &self.checking,
            shares: self.shares.as_ref(),
            keep_request: self.settings.retry_after.is_some(),
        };
        match flight.advance(call, &kit, &mut self.desk, now) {
            Ok(flight::Progress::Request(frame)) => {
                for line in others {
                    line.call(call, id, frame.clone());
                }
                first.call(call, id, frame);
            }
            Ok(flight::Progress::Done(output)) => {
                self.flights.remove(&id);
                self.finished.push_back((id, Ok(output)));
            }
            Err(why) => {
                self.flights.remove(&id);
                self.finished.push_back((id, Err(why)));
            }
        }
    }

    /// Takes a frame of the worker at the end of a line.
    fn hear(&mut self, line: usize, frame: Frame, now: Now) -> Result<(), InferError> {
        let Some(model) = model(&self.plan, self.shares.as_ref(), line) else {
            return Ok(());
        };
        match self.lines[line].conversation.hear(frame, model, now)? {
            Heard::Nothing => Ok(()),
            Heard::Ready => {
                self.start_waiting(now);
                Ok(())
            }
            // These programs commit to nothing, so nothing comes with a root or is opened.
            Heard::Answer { call, words, .. } => self.answer(line, call, words, now),
            Heard::Opened { .. } => Ok(self.lines[line].conversation.unasked()?),
        }
    }

    fn answer(&mut self, line: usize, call: u64, words: Words, now: Now) -> Result<(), InferError> {
        let Some(id) = self.lines[line].calls.remove(&call) else {
            return Ok(self.lines[line].conversation.unasked()?);
        };
        let Some(flight) = self.flights.get_mut(&id) else {
            return Ok(());
        };
        let kit = Kit {
            checking: &self.checking,
            shares: self.shares.as_ref(),
            keep_request: self.settings.retry_after.is_some(),
        };
        let whole = flight.open(line, &words, &kit, &mut self.desk, now)?;
        drop(words);
        if whole {
            self.advance(id, now);
            self.start_waiting(now);
        }
        Ok(())
    }
}

fn model<'a>(plan: &'a Plan, shares: Option<&'a Shares>, line: usize) -> Option<&'a WorkerModel> {
    match plan.policy().secrecy() {
        Secrecy::Public => Some(plan.worker_model()),
        Secrecy::TwoWorkers => shares.map(|shares| shares.model(line)),
    }
}
