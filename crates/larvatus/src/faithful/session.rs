//! A session of the float mode: one inference at a time, with one worker or two.
//!
//! Answers are used as they come. Where they are audited, workers commit to those of every inference; [`Session::audit`] draws
//! blocks of them afterwards and has them opened, each opening is a [`Provisional`] until somebody settles it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use larvatus_kernels::field::P;
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_proto::commit::Root;
use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::WorkerModel;
use larvatus_proto::words::{Heap, Memory, Words};

use super::audit::{Challenge, Sealed};
use super::flight::Flight;
use super::masks::{Maker, Ticket};
use super::plan::Plan;
use super::{Fraction, Provisional, Sharing, split};
use crate::error::{InferError, InputError};
use crate::inference::{Inference, Steps};
use crate::pool::Pool;
use crate::secret::Entropy;
use crate::session::conversation::{Conversation, Heard};
use crate::session::{self, InferenceId};
use crate::shares::Apart;
use crate::tensor::{Tensor, check_inputs};

const AUDITS: &str = "larvatus 2026 session key v1: float audits";

/// How a session behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a worker may take for any reply.
    pub answer_within: Duration,
    /// For shares of the weights: that the two workers do not collude.
    pub apart: Option<Apart>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            answer_within: Duration::from_secs(60),
            apart: None,
        }
    }
}

/// What an inference yields.
#[derive(Clone, Debug)]
pub struct Output {
    /// Tensors, bytes and times. The values are whatever the workers said.
    pub run: session::Output,
    /// Elements that were masked.
    pub masked: u64,
    /// Of these, elements whose mask failed: what a worker saw of them tells more than that they lie in [−A, A].
    pub failed: u64,
    /// Blocks of answers that may be drawn for an audit, those of all workers.
    pub blocks: usize,
}

/// The trusted end of connections to one worker, or to two.
pub struct Session {
    plan: Arc<Plan>,
    models: Arc<Vec<WorkerModel>>,
    maker: Option<Maker>,
    tickets: VecDeque<Ticket>,
    /// Inferences that were committed to and not drawn from.
    sealed: VecDeque<Sealed>,
    /// Questions that are open: when they were asked, oldest first.
    asked: Vec<(Challenge, Now)>,
    questions: u64,
    provisional: VecDeque<Provisional>,
    lines: Vec<Conversation>,
    memory: Arc<dyn Memory>,
    pool: Pool,
    waiting: VecDeque<(InferenceId, Vec<Tensor>, Now)>,
    flight: Option<Flight>,
    next: u64,
    finished: VecDeque<(InferenceId, Result<Output, InferError>)>,
    ended_by: Option<usize>,
    closing: bool,
}

impl Session {
    /// A session for a plan. `entropy` must be fresh.
    ///
    /// # Errors
    /// [`InferError::Local`] where the protocol does not carry the weights, or the plan shares them and nothing says
    /// that the workers are two.
    pub fn new(
        plan: Arc<Plan>,
        entropy: &Entropy,
        settings: &Settings,
    ) -> Result<Self, InferError> {
        let local = |message: String| InferError::Local { message };
        if matches!(plan.demand().sharing(), Sharing::TwoWorkers(_)) && settings.apart.is_none() {
            let message =
                "a plan that shares the weights needs two workers that are known to be apart";
            return Err(local(message.to_owned()));
        }
        let models = split::models(entropy, &plan).map_err(|err| local(err.to_string()))?;
        let conversation = session::Settings {
            answer_within: settings.answer_within,
            ..session::Settings::default()
        };
        Ok(Self {
            lines: models
                .iter()
                .map(|_| Conversation::new(&conversation))
                .collect(),
            models: Arc::new(models),
            maker: plan.demand().masks().map(|_| Maker::new(entropy, &plan)),
            tickets: VecDeque::new(),
            sealed: VecDeque::new(),
            asked: Vec::new(),
            questions: 0,
            provisional: VecDeque::new(),
            memory: Arc::new(Heap),
            pool: Pool::default(),
            waiting: VecDeque::new(),
            flight: None,
            next: 0,
            finished: VecDeque::new(),
            ended_by: None,
            closing: false,
            plan,
        })
    }

    /// Makes the masks of so many further inferences and W·ε: as much linear work as the inferences themselves, but off the
    /// latency path.
    pub fn provision(&mut self, inferences: usize) {
        if let Some(maker) = &mut self.maker {
            let tickets = (0..inferences).map(|_| maker.ticket(&self.plan));
            self.tickets.extend(tickets);
        }
    }

    /// Takes the inputs of an inference; it starts when those before it are done and the workers are ready.
    ///
    /// # Errors
    /// [`InputError`] where they are not what the plan was made for.
    pub fn begin(&mut self, inputs: Vec<Tensor>, now: Now) -> Result<InferenceId, InputError> {
        check_inputs(Steps::inputs(&*self.plan), &inputs)?;
        let id = InferenceId(self.next);
        self.next += 1;
        match self.lines.iter().find_map(Conversation::over) {
            Some(why) => self.finished.push_back((id, Err(why))),
            None => {
                self.waiting.push_back((id, inputs, now));
                self.start(now);
            }
        }
        Ok(id)
    }

    /// The next finished inference.
    pub fn poll(&mut self) -> Option<(InferenceId, Result<Output, InferError>)> {
        self.finished.pop_front()
    }

    /// Draws blocks among the answers of inferences whose roots have come, and asks the workers to open them; how many were
    /// drawn. `entropy` must be fresh: it decides what is drawn.
    ///
    /// Until it is called, the requests and answers of these inferences are kept; a worker keeps the last ones only, and then
    /// refuses.
    pub fn audit(&mut self, entropy: &Entropy, now: Now) -> usize {
        let Some(fraction) = self.plan.demand().audit() else {
            return 0;
        };
        let key = Key::new(*entropy.derive_for(AUDITS, self.plan.digest()));
        let (mut number, mut drawn) = (0, 0);
        while let Some(sealed) = self.sealed.pop_front() {
            for line in 0..self.lines.len() {
                let happens = || {
                    number += 1;
                    happens(&key, number, fraction)
                };
                for mut challenge in sealed.challenges(line, &self.plan, &self.models, happens) {
                    drawn += challenge.len();
                    challenge.number = self.questions;
                    self.questions += 1;
                    self.lines[line].say(challenge.question().into_frame());
                    self.asked.push((challenge, now));
                }
            }
        }
        drawn
    }

    /// Blocks that workers were asked to open and have not.
    pub fn owed(&self) -> usize {
        self.asked.iter().map(|(asked, _)| asked.len()).sum()
    }

    /// The oldest opening that has come and is not settled.
    pub fn take_provisional(&mut self) -> Option<Provisional> {
        self.provisional.pop_front()
    }

    /// Says goodbye once nothing is in flight.
    pub fn close(&mut self) {
        self.closing = true;
    }

    /// Whether every worker holds its model and takes calls.
    pub fn is_ready(&self) -> bool {
        self.lines.iter().all(Conversation::is_ready)
    }

    /// Bytes of models sent and to send, while one is being uploaded.
    pub fn uploading(&self) -> Option<(u64, u64)> {
        let lines = self.lines.iter().zip(self.models.iter());
        let open = lines.filter_map(|(line, model)| {
            let total = model.blob().len() as u64;
            line.uploaded().map(|sent| (sent, total))
        });
        open.reduce(|(sent, total), (more, of)| (sent + more, total + of))
    }

    /// What a worker calls itself, once it has said so.
    pub fn worker_name(&self, line: usize) -> Option<&str> {
        self.lines.get(line)?.worker_name()
    }

    /// Why the session is over, if it is.
    pub fn failure(&self) -> Option<&InferError> {
        self.lines.first()?.failure()
    }

    /// The line of the worker that the session ended with.
    pub fn ended_by(&self) -> Option<usize> {
        self.ended_by
    }

    /// The plan.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.plan
    }

    /// The end towards worker `line`, counted from 0; a pump drives each.
    ///
    /// # Panics
    /// If there are not so many workers.
    pub fn line(&mut self, line: usize) -> Line<'_> {
        assert!(line < self.lines.len(), "a session with fewer workers");
        Line {
            session: self,
            line,
        }
    }

    fn end(&mut self, line: usize, why: &InferError) {
        if self.failure().is_none() {
            self.ended_by = Some(line);
        }
        for line in &mut self.lines {
            line.end(why.clone());
        }
        let flying = self.flight.take().map(|flight| flight.id);
        let waiting = std::mem::take(&mut self.waiting);
        let ids = flying
            .into_iter()
            .chain(waiting.into_iter().map(|(id, ..)| id));
        self.finished.extend(ids.map(|id| (id, Err(why.clone()))));
        self.tickets.clear();
        self.maker = None;
        self.sealed.clear();
    }

    fn start(&mut self, now: Now) {
        if self.flight.is_some() || !self.is_ready() {
            return;
        }
        let Some((id, inputs, begun)) = self.waiting.pop_front() else {
            return;
        };
        if self.tickets.is_empty() {
            self.provision(1);
        }
        let ticket = self.tickets.pop_front();
        match Inference::new(Arc::clone(&self.plan), inputs, self.pool.clone()) {
            Ok(inference) => {
                self.flight = Some(Flight {
                    id,
                    inference,
                    ticket,
                    awaited: None,
                    past: Vec::new(),
                    begun,
                    output: Output {
                        run: session::Output {
                            tensors: Vec::new(),
                            up: 0,
                            down: 0,
                            round_trips: 0,
                            wall: Duration::ZERO,
                            waiting: Duration::ZERO,
                        },
                        masked: 0,
                        failed: 0,
                        blocks: self.plan.auditable(),
                    },
                });
                self.advance(now);
            }
            Err(err) => {
                let message = err.to_string();
                self.finished
                    .push_back((id, Err(InferError::Local { message })));
            }
        }
    }

    fn advance(&mut self, now: Now) {
        let Some(mut flight) = self.flight.take() else {
            return;
        };
        let call = self.lines.first().map_or(0, Conversation::next_call);
        match flight.advance(call, &self.plan, self.lines.len(), &*self.memory, now) {
            Ok(Some(frame)) => {
                for line in self.lines.iter_mut().skip(1) {
                    line.call(frame.clone());
                }
                if let Some(line) = self.lines.first_mut() {
                    line.call(frame);
                }
                self.flight = Some(flight);
            }
            Ok(None) => {
                self.finished.push_back((flight.id, Ok(flight.output)));
                self.start(now);
            }
            Err(why) => {
                self.finished.push_back((flight.id, Err(why)));
                self.start(now);
            }
        }
    }

    fn hear(&mut self, line: usize, frame: Frame, now: Now) -> Result<(), InferError> {
        match self.lines[line].hear(frame, &self.models[line], now)? {
            Heard::Nothing => Ok(()),
            Heard::Ready => {
                self.start(now);
                Ok(())
            }
            Heard::Answer { call, root, words } => self.answer(line, call, (root, &words), now),
            Heard::Opened { number, bytes } => self.opened(line, number, bytes),
        }
    }

    fn answer(
        &mut self,
        line: usize,
        call: u64,
        answer: (Option<Root>, &Words),
        now: Now,
    ) -> Result<(), InferError> {
        let flight = self.flight.as_mut();
        let open = flight.and_then(|flight| flight.awaited_by(line, call).then_some(flight));
        let Some(flight) = open else {
            return Ok(self.lines[line].unasked()?);
        };
        if flight.take(line, &self.plan, answer, now)? {
            if let Some(roots) = flight.open(&self.plan, &self.pool)? {
                self.sealed.push_back(Sealed {
                    inference: flight.id,
                    roots,
                    rounds: std::mem::take(&mut flight.past),
                });
            }
            self.advance(now);
        }
        Ok(())
    }

    /// Takes an opening; whether it holds is found when it is settled.
    fn opened(&mut self, line: usize, number: u64, bytes: Vec<u8>) -> Result<(), InferError> {
        let asked = |(challenge, _): &(Challenge, Now)| {
            challenge.number == number && challenge.line() == line
        };
        match self.asked.iter().position(asked) {
            Some(place) => {
                let (challenge, _) = self.asked.remove(place);
                self.provisional.push_back(challenge.opened(bytes));
                Ok(())
            }
            None => Ok(self.lines[line].unasked()?),
        }
    }
}

/// Whether the draw of this number falls on an audit.
fn happens(key: &Key, number: u64, fraction: Fraction) -> bool {
    let mut word = [0];
    key.stream(number, 0, Purpose::Channel).fill(0, &mut word);
    f64::from(word[0]) < fraction.get() * f64::from(P)
}

/// A session's end towards one of its workers.
pub struct Line<'a> {
    session: &'a mut Session,
    line: usize,
}

impl Line<'_> {
    fn conversation(&self) -> &Conversation {
        &self.session.lines[self.line]
    }

    /// When the oldest open request was sent.
    fn since(&self) -> Option<(Now, Now)> {
        let awaited = self
            .session
            .flight
            .as_ref()
            .and_then(|flight| flight.awaited.as_ref());
        let open = awaited.filter(|awaited| awaited.answers[self.line].is_none());
        let call = open.map(|awaited| (awaited.sent, awaited.sent));
        self.conversation().awaited_since().or(call)
    }

    /// Questions that are open.
    fn asked(&self) -> impl Iterator<Item = &(Challenge, Now)> {
        let asked = self.session.asked.iter();
        asked.filter(|(challenge, _)| challenge.line() == self.line)
    }

    /// When the oldest open question is too old.
    fn opening_due(&self) -> Option<Now> {
        let asked = self.asked().map(|(_, asked)| *asked).min()?;
        Some(self.conversation().times((asked, asked)).0)
    }
}

impl Machine for Line<'_> {
    fn limits(&self) -> FrameLimits {
        let mut limits = self
            .conversation()
            .limits(self.session.models.get(self.line));
        let openings = self.asked().map(|(challenge, _)| challenge.words());
        limits.words = openings.fold(limits.words, usize::max);
        limits
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        // What goes to two workers is written to memory of our own.
        if self.session.lines.len() == 1 {
            self.session.memory = memory;
        }
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        if let Err(why) = self.session.hear(self.line, frame, now) {
            self.session.end(self.line, &why);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let session = &mut *self.session;
        let done = session.closing
            && session.flight.is_none()
            && session.waiting.is_empty()
            && session.asked.is_empty();
        let model = session.models.get(self.line)?;
        session.lines[self.line].transmit(model, done, now)
    }

    fn deadline(&self) -> Option<Now> {
        let reply = self.since().map(|since| self.conversation().times(since).0);
        reply.into_iter().chain(self.opening_due()).min()
    }

    fn tick(&mut self, now: Now) {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return;
        }
        let why = match self.opening_due().is_some_and(|due| now >= due) {
            true => self.conversation().waited_for("an opening"),
            false => self.conversation().timed_out(),
        };
        self.session.end(self.line, &why);
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        let why = self.conversation().disconnected(why);
        self.session.end(self.line, &why);
    }

    fn finished(&self) -> bool {
        self.conversation().finished()
    }
}
