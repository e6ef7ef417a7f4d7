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

mod conversation;
mod flight;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use larvatus_proto::frame::{Frame, FrameLimits, MAX_CALLS};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::words::{Memory, Words};

use crate::error::{InferError, InputError, SupplyError};
use crate::plan::Plan;
use crate::policy::{CheckDraw, Hiding};
use crate::secret::{Checking, Entropy, Identity, Origin, Provisioner, TicketSet};
use crate::tensor::Tensor;
use conversation::{Conversation, Heard};
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
    checking: Checking,
    tickets: VecDeque<TicketSet>,
    conversation: Conversation,
    /// Not yet started: their inputs.
    waiting: VecDeque<(InferenceId, Vec<Tensor>, Now)>,
    flights: BTreeMap<InferenceId, Flight>,
    /// Which inference a call belongs to.
    calls: BTreeMap<u64, InferenceId>,
    desk: Desk,
    next_inference: u64,
    finished: VecDeque<(InferenceId, Result<Output, InferError>)>,
    closing: bool,
}

impl Session {
    /// A session for a plan. `entropy` must be fresh; see [`Entropy`].
    pub fn new(plan: Arc<Plan>, entropy: Entropy, settings: Settings) -> Self {
        let provisioner = match plan.policy().hiding() {
            Hiding::Field => Some(Provisioner::new(&entropy, &plan)),
            Hiding::Clear => None,
        };
        let checking = Checking::new(&entropy, &plan);
        let conversation = Conversation::new(&settings);
        Self {
            plan,
            settings,
            provisioner,
            checking,
            tickets: VecDeque::new(),
            conversation,
            waiting: VecDeque::new(),
            flights: BTreeMap::new(),
            calls: BTreeMap::new(),
            desk: Desk::new(),
            next_inference: 0,
            finished: VecDeque::new(),
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
    /// [`InputError`] where they are not what the plan was made for, or where answers are checked
    /// with the session's vectors and it has begun as many inferences as its policy's lifetime; nothing
    /// is sent.
    pub fn begin(&mut self, inputs: Vec<Tensor>, now: Now) -> Result<InferenceId, InputError> {
        crate::tensor::check_inputs(self.plan.inputs(), &inputs)?;
        let lifetime = self.plan.policy().lifetime;
        let lasts = match self.plan.policy().check {
            CheckDraw::Session => self.plan.repetitions() > 0,
            CheckDraw::Fresh => false,
        };
        if lasts && self.next_inference >= lifetime {
            return Err(InputError::LifetimeOver { lifetime });
        }
        let id = InferenceId(self.next_inference);
        self.next_inference += 1;
        match self.conversation.over() {
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
        self.conversation.is_ready()
    }

    /// Bytes of the model sent and to send, while it is being uploaded.
    pub fn uploading(&self) -> Option<(u64, u64)> {
        let total = self.plan.worker_model().blob().len() as u64;
        self.conversation.uploaded().map(|sent| (sent, total))
    }

    /// What the worker calls itself, once it has said so.
    pub fn worker_name(&self) -> Option<&str> {
        self.conversation.worker_name()
    }

    /// Why the session is over, if it is.
    pub fn failure(&self) -> Option<&InferError> {
        self.conversation.failure()
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// Ends the session: everything in flight fails with `why`, no secret outlives it.
    fn end(&mut self, why: InferError) {
        if !self.conversation.end(why.clone()) {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting)
            .into_iter()
            .map(|(id, ..)| id);
        let flying = std::mem::take(&mut self.flights).into_keys();
        let ids: Vec<InferenceId> = flying.chain(waiting).collect();
        self.finished
            .extend(ids.into_iter().map(|id| (id, Err(why.clone()))));
        self.calls.clear();
        self.tickets.clear();
        self.provisioner = None;
        self.checking = Checking::none();
    }

    /// Starts inferences while the window has room. Without a worker that is ready, none starts.
    fn start_waiting(&mut self, now: Now) {
        while self.conversation.is_ready() && self.flights.len() < self.window() {
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
        let call = self.conversation.next_call();
        let keep_request = self.settings.retry_after.is_some();
        let desk = &mut self.desk;
        match flight.advance(call, &self.checking, keep_request, desk, now) {
            Ok(flight::Progress::Request(frame)) => {
                self.calls.insert(call, id);
                self.conversation.call(frame);
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

    fn hear(&mut self, frame: Frame, now: Now) -> Result<(), InferError> {
        let model = self.plan.worker_model();
        match self.conversation.hear(frame, model, now)? {
            Heard::Nothing => Ok(()),
            Heard::Ready => {
                self.start_waiting(now);
                Ok(())
            }
            Heard::Answer { call, words } => self.answer(call, words, now),
        }
    }

    fn answer(&mut self, call: u64, words: Words, now: Now) -> Result<(), InferError> {
        let Some(id) = self.calls.remove(&call) else {
            return Ok(self.conversation.unasked()?);
        };
        let Some(flight) = self.flights.get_mut(&id) else {
            return Ok(());
        };
        flight.open(&words, &self.checking, &mut self.desk, now)?;
        drop(words);
        self.advance(id, now);
        self.start_waiting(now);
        Ok(())
    }

    /// When the oldest request is too old, and when the next retry is due.
    fn times(&self) -> impl Iterator<Item = (Now, Option<Now>)> + '_ {
        let handshake = self.conversation.awaited_since();
        let flights = self.flights.values().filter_map(Flight::awaited_since);
        let open = handshake.into_iter().chain(flights);
        open.map(|times| self.conversation.times(times))
    }
}

impl Machine for Session {
    fn limits(&self) -> FrameLimits {
        self.conversation.limits(self.plan.worker_model())
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        self.desk.memory = memory;
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        if let Err(why) = self.hear(frame, now) {
            self.end(why);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let done = self.closing && self.flights.is_empty() && self.waiting.is_empty();
        self.conversation
            .transmit(self.plan.worker_model(), done, now)
    }

    fn deadline(&self) -> Option<Now> {
        self.times()
            .flat_map(|(end, retry)| [Some(end), retry])
            .flatten()
            .min()
    }

    fn tick(&mut self, now: Now) {
        if self.times().any(|(end, _)| now >= end) {
            self.end(self.conversation.timed_out());
            return;
        }
        let Some(after) = self.settings.retry_after else {
            return;
        };
        self.conversation.retry(self.plan.worker_model(), now);
        for flight in self.flights.values_mut() {
            if let Some(frame) = flight.retry(now, after) {
                self.conversation.repeat(frame);
            }
        }
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        self.end(self.conversation.disconnected(why));
    }

    fn finished(&self) -> bool {
        self.conversation.finished()
    }
}
