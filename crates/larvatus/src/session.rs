//! A session with one worker: a state machine that many inferences run through.
//!
//! Call order: [`Session::new`], then any mix of [`provision`](Session::provision) (off the latency
//! path), [`begin`](Session::begin) and [`poll`](Session::poll), while a pump drives the
//! [`Machine`] side. At most [`Settings::window`] inferences are in flight; further ones wait as
//! their inputs. Memory is bounded by the window times an inference's live tensors, its tickets and,
//! where retries are on, its last request.
//!
//! A lie ends the session: its check vectors might no longer be secret, so every inference in
//! flight is discarded, its tickets with it, and another session draws everything afresh.

mod flight;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use larvatus_proto::VERSION;
use larvatus_proto::frame::{CHUNK, Frame, FrameLimits, MAX_CALLS, MAX_HEAD, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::words::{Memory, Words};

use crate::error::{InferError, InputError, SupplyError, WorkerFailed, WorkerMisbehaved};
use crate::plan::Plan;
use crate::policy::Hiding;
use crate::secret::{Checks, Entropy, Identity, Origin, Provisioner, TicketSet};
use crate::tensor::Tensor;
use flight::{Desk, Flight};

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
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            window: 4,
            answer_within: Duration::from_secs(60),
            retry_after: None,
            worker: None,
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

/// The trusted end of a connection to one worker.
pub struct Session {
    plan: Arc<Plan>,
    settings: Settings,
    /// Makes own tickets, where the plan hides and the session is not over.
    provisioner: Option<Provisioner>,
    checks: Checks,
    tickets: VecDeque<TicketSet>,
    state: State,
    worker: Option<String>,
    outbox: VecDeque<Frame>,
    /// Not yet started: their inputs.
    waiting: VecDeque<(InferenceId, Vec<Tensor>, Now)>,
    flights: BTreeMap<InferenceId, Flight>,
    /// Which inference a call belongs to.
    calls: BTreeMap<u64, InferenceId>,
    desk: Desk,
    next_call: u64,
    next_inference: u64,
    finished: VecDeque<(InferenceId, Result<Output, InferError>)>,
    /// Replies that answered nothing that was open; a few are what retries cause.
    unasked: usize,
    /// Requests sent again.
    retries: usize,
    closing: bool,
}

/// Where the conversation stands; each state is named for what it awaits.
enum State {
    Welcome(Await),
    /// `Want` or `Ready`.
    Verdict(Await),
    /// Sends the model from `start`; `next` is its next byte.
    Upload {
        start: u64,
        next: u64,
        since: Now,
    },
    Answers,
    Over(InferError),
    Closed,
}

/// When a request was sent first and last.
#[derive(Clone, Copy)]
struct Await {
    since: Option<Now>,
    sent: Option<Now>,
}

impl Await {
    const NOTHING_SENT: Self = Self {
        since: None,
        sent: None,
    };

    fn send(&mut self, now: Now) {
        self.since.get_or_insert(now);
        self.sent = Some(now);
    }
}

/// Frames nobody asked for that a session bears with: duplicates that crossed a retry.
const PATIENCE: usize = 256;

impl Session {
    /// A session for a plan. `entropy` must be fresh; see [`Entropy`].
    pub fn new(plan: Arc<Plan>, entropy: Entropy, settings: Settings) -> Self {
        let provisioner = match plan.policy().hiding() {
            Hiding::Field => Some(Provisioner::new(&entropy, &plan)),
            Hiding::Clear => None,
        };
        let checks = Checks::new(&entropy, &plan);
        Self {
            plan,
            settings,
            provisioner,
            checks,
            tickets: VecDeque::new(),
            state: State::Welcome(Await::NOTHING_SENT),
            worker: None,
            outbox: VecDeque::new(),
            waiting: VecDeque::new(),
            flights: BTreeMap::new(),
            calls: BTreeMap::new(),
            desk: Desk::new(),
            next_call: 0,
            next_inference: 0,
            finished: VecDeque::new(),
            unasked: 0,
            retries: 0,
            closing: false,
        }
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
    }

    /// Takes a ticket set that was made elsewhere; the next inference that has none yet uses it. A
    /// session that is over erases it.
    ///
    /// # Errors
    /// [`SupplyError`] where it was made for another plan or other weights, or by a dealer who is
    /// the worker or might be; it is erased.
    pub fn supply(&mut self, set: TicketSet) -> Result<(), SupplyError> {
        set.belongs_to(&self.plan)?;
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
    /// [`InputError`] where they are not what the plan was made for, or where answers are checked and
    /// this session has begun as many inferences as its policy's lifetime; nothing is sent.
    pub fn begin(&mut self, inputs: Vec<Tensor>, now: Now) -> Result<InferenceId, InputError> {
        crate::tensor::check_inputs(self.plan.inputs(), &inputs)?;
        let lifetime = self.plan.policy().lifetime;
        if self.plan.repetitions() > 0 && self.next_inference >= lifetime {
            return Err(InputError::LifetimeOver { lifetime });
        }
        let id = InferenceId(self.next_inference);
        self.next_inference += 1;
        let over = match &self.state {
            State::Over(why) => Some(why.clone()),
            State::Closed => Some(
                WorkerFailed::Disconnected {
                    awaited: self.awaited(),
                }
                .into(),
            ),
            State::Welcome(_) | State::Verdict(_) | State::Upload { .. } | State::Answers => None,
        };
        match over {
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

    /// Whether the worker holds the model and takes calls.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Answers)
    }

    /// Bytes of the model sent and to send, while it is being uploaded.
    pub fn uploading(&self) -> Option<(u64, u64)> {
        let total = self.plan.worker_model().blob().len() as u64;
        match &self.state {
            State::Upload { next, .. } => Some((*next, total)),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Answers
            | State::Over(_)
            | State::Closed => None,
        }
    }

    /// What the worker calls itself, once it has said so.
    pub fn worker_name(&self) -> Option<&str> {
        self.worker.as_deref()
    }

    /// Why the session is over, if it is.
    pub fn failure(&self) -> Option<&InferError> {
        match &self.state {
            State::Over(why) => Some(why),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Upload { .. }
            | State::Answers
            | State::Closed => None,
        }
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Ends the session: everything in flight fails with `why`, no secret outlives it.
    fn end(&mut self, why: impl Into<InferError>) {
        if matches!(self.state, State::Over(_) | State::Closed) {
            return;
        }
        let why = why.into();
        let waiting = std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|(id, ..)| id);
        let flying = std::mem::take(&mut self.flights).into_keys();
        let ids: Vec<InferenceId> = flying.chain(waiting).collect();
        self.finished
            .extend(ids.into_iter().map(|id| (id, Err(why.clone()))));
        self.calls.clear();
        self.outbox.clear();
        self.tickets.clear();
        self.provisioner = None;
        self.checks = Checks::none();
        self.state = State::Over(why);
    }

    fn awaited(&self) -> &'static str {
        match &self.state {
            State::Welcome(_) => "its welcome",
            State::Verdict(_) | State::Upload { .. } => "its word on the model",
            State::Answers => "an answer",
            State::Over(_) | State::Closed => "nothing",
        }
    }

    /// Starts inferences while the window has room. Without a worker that is ready, none starts.
    fn start_waiting(&mut self, now: Now) {
        while matches!(self.state, State::Answers) && self.flights.len() < self.window() {
            let Some((id, inputs, begun)) = self.waiting.pop_front() else {
                return;
            };
            if self.tickets.is_empty() {
                self.provision(1);
            }
            let tickets = self.tickets.pop_front();
            match Flight::new(&self.plan, inputs, tickets, &self.desk, begun) {
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
        let call = self.next_call;
        let keep_request = self.settings.retry_after.is_some();
        let desk = &mut self.desk;
        match flight.advance(call, &self.checks, keep_request, desk, now) {
            Ok(flight::Progress::Request(frame)) => {
                self.next_call += 1;
                self.calls.insert(call, id);
                self.outbox.push_back(frame);
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

    fn handle(&mut self, reply: Reply, now: Now) -> Result<(), InferError> {
        match (&mut self.state, reply) {
            (State::Over(_) | State::Closed, _) => {}
            (_, Reply::Failed { call: _, message }) => {
                return Err(WorkerFailed::Refused { message }.into());
            }
            (State::Welcome(_), Reply::Welcome { version, name }) => {
                if version != VERSION {
                    return Err(WorkerFailed::Version {
                        ours: VERSION,
                        theirs: version,
                    }
                    .into());
                }
                self.worker = Some(name);
                self.state = State::Verdict(Await::NOTHING_SENT);
            }
            (State::Verdict(_) | State::Upload { .. }, Reply::Want { model, from }) => {
                self.same_model(model)?;
                let total = self.plan.worker_model().blob().len() as u64;
                if from >= total {
                    return Err(WorkerMisbehaved::BeyondModel { from, total }.into());
                }
                // A worker that wants the model again and again would keep us busy for ever.
                self.unasked()?;
                // One lost chunk brings a wish for each chunk behind it; one of them is enough.
                let resent = matches!(&self.state, State::Upload { start, next, .. }
                    if *start == from && *next > from);
                if !resent {
                    self.state = State::Upload {
                        start: from,
                        next: from,
                        since: now,
                    };
                }
            }
            (State::Verdict(_) | State::Upload { .. }, Reply::Ready { model }) => {
                self.same_model(model)?;
                self.state = State::Answers;
                self.start_waiting(now);
            }
            (State::Answers, Reply::Answer { call, words }) => self.answer(call, words, now)?,
            // What crossed a retry of ours is old news, not a lie; a stream of it is.
            (State::Verdict(_) | State::Upload { .. } | State::Answers, Reply::Welcome { .. })
            | (State::Answers, Reply::Want { .. } | Reply::Ready { .. }) => self.unasked()?,
            (State::Welcome(_), reply @ (Reply::Want { .. } | Reply::Ready { .. }))
            | (
                State::Welcome(_) | State::Verdict(_) | State::Upload { .. },
                reply @ Reply::Answer { .. },
            ) => {
                let message = match reply {
                    Reply::Want { .. } => "a wish for the model",
                    Reply::Ready { .. } => "ready",
                    Reply::Answer { .. } => "an answer",
                    Reply::Welcome { .. } | Reply::Failed { .. } => "a reply",
                };
                return Err(WorkerMisbehaved::OutOfTurn {
                    message,
                    awaited: self.awaited(),
                }
                .into());
            }
        }
        Ok(())
    }

    fn same_model(&self, got: larvatus_proto::digest::Digest) -> Result<(), WorkerMisbehaved> {
        let offered = self.plan.worker_model().digest();
        if got == offered {
            Ok(())
        } else {
            Err(WorkerMisbehaved::OtherModel { offered, got })
        }
    }

    /// A frame that is none: of a worker a lie, of a stranger that has not greeted just noise.
    fn malformed(&self, err: larvatus_proto::wire::DecodeError) -> InferError {
        match &self.state {
            State::Welcome(_) => WorkerFailed::NotAWorker(err).into(),
            State::Verdict(_)
            | State::Upload { .. }
            | State::Answers
            | State::Over(_)
            | State::Closed => WorkerMisbehaved::Malformed(err).into(),
        }
    }

    fn unasked(&mut self) -> Result<(), WorkerMisbehaved> {
        self.unasked += 1;
        // A link that repeats frames may answer each request of ours twice.
        let calls = usize::try_from(self.next_call).unwrap_or(usize::MAX);
        if self.unasked > PATIENCE.saturating_add(calls).saturating_add(self.retries) {
            return Err(WorkerMisbehaved::Flood {
                frames: self.unasked,
            });
        }
        Ok(())
    }

    fn answer(&mut self, call: u64, words: Words, now: Now) -> Result<(), InferError> {
        if call >= self.next_call {
            return Err(WorkerMisbehaved::UnknownCall {
                call,
                made: self.next_call,
            }
            .into());
        }
        let Some(id) = self.calls.remove(&call) else {
            return Ok(self.unasked()?);
        };
        let Some(flight) = self.flights.get_mut(&id) else {
            return Ok(());
        };
        flight.open(&words, &self.checks, &mut self.desk, now)?;
        drop(words);
        self.advance(id, now);
        self.start_waiting(now);
        Ok(())
    }

    /// When the oldest request is too old, and when the next retry is due.
    fn times(&self) -> impl Iterator<Item = (Now, Option<Now>)> + '_ {
        let handshake = match &self.state {
            State::Welcome(wait) | State::Verdict(wait) => wait.since.zip(wait.sent),
            State::Upload { since, .. } => Some((*since, *since)),
            State::Answers | State::Over(_) | State::Closed => None,
        };
        let flights = self.flights.values().filter_map(Flight::awaited_since);
        handshake.into_iter().chain(flights).map(|(since, sent)| {
            let retry = self.settings.retry_after.map(|after| sent + after);
            (since + self.settings.answer_within, retry)
        })
    }
}

impl Machine for Session {
    fn limits(&self) -> FrameLimits {
        let words = match &self.state {
            State::Answers => self.plan.worker_model().program().largest_answer(),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Upload { .. }
            | State::Over(_)
            | State::Closed => 0,
        };
        FrameLimits {
            head: MAX_HEAD,
            words,
        }
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        self.desk.memory = memory;
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        let result = Reply::from_frame(frame)
            .map_err(|err| self.malformed(err))
            .and_then(|reply| self.handle(reply, now));
        if let Err(why) = result {
            self.end(why);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        if let Some(frame) = self.outbox.pop_front() {
            return Some(frame);
        }
        let model = self.plan.worker_model();
        match &mut self.state {
            State::Welcome(wait) if wait.sent.is_none() => {
                wait.send(now);
                Some(Request::Hello { version: VERSION }.into_frame())
            }
            State::Verdict(wait) if wait.sent.is_none() => {
                wait.send(now);
                Some(offer(model).into_frame())
            }
            State::Upload { next, since, .. } => {
                let offset = usize::try_from(*next).ok()?;
                let rest = model.blob().get(offset..).filter(|rest| !rest.is_empty())?;
                let bytes = rest.get(..CHUNK).unwrap_or(rest).to_vec();
                let chunk = Request::Chunk {
                    offset: *next,
                    bytes: bytes.clone(),
                };
                *next += bytes.len() as u64;
                *since = now;
                Some(chunk.into_frame())
            }
            State::Answers
                if self.closing && self.flights.is_empty() && self.waiting.is_empty() =>
            {
                self.state = State::Closed;
                Some(Request::Bye.into_frame())
            }
            State::Welcome(_)
            | State::Verdict(_)
            | State::Answers
            | State::Over(_)
            | State::Closed => None,
        }
    }

    fn deadline(&self) -> Option<Now> {
        self.times()
            .flat_map(|(end, retry)| [Some(end), retry])
            .flatten()
            .min()
    }

    fn tick(&mut self, now: Now) {
        if self.times().any(|(end, _)| now >= end) {
            let within = self.settings.answer_within;
            self.end(WorkerFailed::TimedOut {
                awaited: self.awaited(),
                within,
            });
            return;
        }
        let Some(after) = self.settings.retry_after else {
            return;
        };
        let due = |sent: Option<Now>| sent.is_some_and(|sent| now >= sent + after);
        let model = self.plan.worker_model();
        match &mut self.state {
            State::Welcome(wait) if due(wait.sent) => {
                wait.send(now);
                self.outbox
                    .push_back(Request::Hello { version: VERSION }.into_frame());
            }
            State::Verdict(wait) if due(wait.sent) => {
                wait.send(now);
                self.outbox.push_back(offer(model).into_frame());
            }
            // The worker says how far it came; `since` stays, so that the deadline holds.
            State::Upload { next, since, .. }
                if due(Some(*since)) && *next == model.blob().len() as u64 =>
            {
                self.state = State::Verdict(Await {
                    since: Some(*since),
                    sent: Some(now),
                });
                self.outbox.push_back(offer(model).into_frame());
            }
            State::Welcome(_)
            | State::Verdict(_)
            | State::Upload { .. }
            | State::Answers
            | State::Over(_)
            | State::Closed => {}
        }
        self.outbox.extend(
            self.flights
                .values_mut()
                .filter_map(|flight| flight.retry(now, after)),
        );
        self.retries += self.outbox.len();
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        let awaited = self.awaited();
        let within = self.settings.answer_within;
        match why {
            LinkEnd::Closed => self.end(WorkerFailed::Disconnected { awaited }),
            LinkEnd::Stalled => {
                self.end(WorkerFailed::TimedOut {
                    awaited: "our frames to be read",
                    within,
                });
            }
            LinkEnd::Malformed(err) => self.end(self.malformed(err)),
        }
    }

    fn finished(&self) -> bool {
        matches!(self.state, State::Over(_) | State::Closed) && self.outbox.is_empty()
    }
}

fn offer(model: &larvatus_proto::program::WorkerModel) -> Request {
    Request::Offer {
        model: model.digest(),
        program: u32::try_from(model.program_bytes()).unwrap_or(u32::MAX),
        total: model.blob().len() as u64,
    }
}
