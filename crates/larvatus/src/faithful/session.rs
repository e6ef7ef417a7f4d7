//! A session of the float mode: one inference at a time, with one worker or two.
//!
//! Answers are used as they come. Those that are drawn for an audit are kept as [`Provisional`] until somebody settles them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use larvatus_kernels::field::P;
use larvatus_kernels::float::floats;
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::WorkerModel;
use larvatus_proto::words::{Heap, Memory, Words};

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
    /// Answers that may be audited; one a call and worker.
    pub answers: usize,
    /// Answers that were drawn.
    pub drawn: usize,
}

/// The trusted end of connections to one worker, or to two.
pub struct Session {
    plan: Arc<Plan>,
    models: Arc<Vec<WorkerModel>>,
    maker: Option<Maker>,
    tickets: VecDeque<Ticket>,
    /// What draws audits; the session's own secret.
    draws: Key,
    drawn: u64,
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
            draws: Key::new(*entropy.derive_for(AUDITS, plan.digest())),
            drawn: 0,
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

    /// The oldest answer that was drawn for an audit and is not settled.
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
                        answers: self.plan.auditable(),
                        drawn: 0,
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
            Heard::Answer { call, words } => self.answer(line, call, &words, now),
        }
    }

    fn answer(
        &mut self,
        line: usize,
        call: u64,
        words: &Words,
        now: Now,
    ) -> Result<(), InferError> {
        let flight = self.flight.as_mut();
        let open = flight.and_then(|flight| flight.awaited_by(line, call).then_some(flight));
        let Some(flight) = open else {
            return Ok(self.lines[line].unasked()?);
        };
        if flight.take(line, &self.plan, words, now)? {
            self.draw();
            if let Some(flight) = &mut self.flight {
                flight.open(&self.plan, &self.pool)?;
            }
            self.advance(now);
        }
        Ok(())
    }

    /// Draws among the answers of the round that has just come in, before they are used.
    fn draw(&mut self) {
        let (Some(fraction), Some(flight)) = (self.plan.demand().audit(), &mut self.flight) else {
            return;
        };
        let Some(awaited) = &flight.awaited else {
            return;
        };
        let round = &self.plan.rounds()[awaited.round];
        let request = awaited.request.as_deref().unwrap_or_default();
        let starts: Vec<usize> = round
            .uploads
            .iter()
            .scan(0, |at, upload| {
                let start = *at;
                *at += upload.elements();
                Some(start)
            })
            .collect();
        for (line, answer) in awaited.answers.iter().enumerate() {
            let mut at = 0;
            for (id, from) in &round.calls {
                let spec = &self.plan.layers()[id.index()].spec;
                let place = at..at + spec.outputs();
                at = place.end;
                self.drawn += 1;
                if !happens(&self.draws, self.drawn, fraction) {
                    continue;
                }
                let request = request.get(starts[*from]..starts[*from] + spec.inputs());
                let answer = answer.as_deref().and_then(|answer| answer.get(place));
                if let (Some(request), Some(answer)) = (request, answer) {
                    flight.output.drawn += 1;
                    self.provisional.push_back(Provisional {
                        inference: flight.id,
                        line,
                        layer: *id,
                        models: Arc::clone(&self.models),
                        request: floats(request).to_vec(),
                        answer: floats(answer).to_vec(),
                    });
                }
            }
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
}

impl Machine for Line<'_> {
    fn limits(&self) -> FrameLimits {
        self.conversation()
            .limits(self.session.models.get(self.line))
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
        let done = session.closing && session.flight.is_none() && session.waiting.is_empty();
        let model = session.models.get(self.line)?;
        session.lines[self.line].transmit(model, done, now)
    }

    fn deadline(&self) -> Option<Now> {
        Some(self.conversation().times(self.since()?).0)
    }

    fn tick(&mut self, now: Now) {
        if self.deadline().is_some_and(|deadline| now >= deadline) {
            let why = self.conversation().timed_out();
            self.session.end(self.line, &why);
        }
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        let why = self.conversation().disconnected(why);
        self.session.end(self.line, &why);
    }

    fn finished(&self) -> bool {
        self.conversation().finished()
    }
}
