//! A session of the float mode: one inference at a time, with one worker or two.
//!
//! Answers are used as they come. Those that are drawn for an audit are kept as [`Provisional`] until somebody settles them.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use larvatus_kernels::activation::activate;
use larvatus_kernels::float::floats;
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_kernels::local::pool::{Windows, max_pool};
use larvatus_proto::frame::{Frame, FrameLimits, HEADER, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::{LayerId, WorkerModel};
use larvatus_proto::words::{Heap, Memory, Words};

use super::masks::{Maker, Ticket, Unmask};
use super::plan::Plan;
use super::{Fraction, Provisional, Sharing, split};
use crate::error::{InferError, InputError, WorkerMisbehaved};
use crate::inference::{Inference, Next, Steps};
use crate::pool::{Floats, Pool};
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

/// The inference on its way.
struct Flight {
    id: InferenceId,
    inference: Inference<Plan>,
    ticket: Option<Ticket>,
    awaited: Option<Awaited>,
    begun: Now,
    output: Output,
}

/// A request that is out.
struct Awaited {
    round: usize,
    call: u64,
    /// B, an upload each; 0 without masks.
    bounds: Vec<f32>,
    unmasks: Vec<Unmask>,
    /// The request, where answers may be audited.
    request: Option<Vec<u32>>,
    answers: Vec<Option<Vec<u32>>>,
    sent: Now,
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
    f64::from(word[0]) < fraction.get() * f64::from(larvatus_kernels::field::P)
}

impl Flight {
    /// Works up to the next request or the end.
    fn advance(
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
        let mut rest = larvatus_kernels::float::floats_mut(&mut request);
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
            sent: now,
        });
        Ok(Some(frame))
    }

    fn awaited_by(&self, line: usize, call: u64) -> bool {
        let awaited = self.awaited.as_ref();
        awaited.is_some_and(|awaited| awaited.call == call && awaited.answers[line].is_none())
    }

    /// Takes a worker's answer; `true` once all are here.
    fn take(
        &mut self,
        line: usize,
        plan: &Plan,
        words: &Words,
        now: Now,
    ) -> Result<bool, InferError> {
        let Some(awaited) = &mut self.awaited else {
            return Ok(false);
        };
        self.output.run.down += (HEADER + 8 + 4 * words.len()) as u64;
        let round = &plan.rounds()[awaited.round];
        let specs = round
            .calls
            .iter()
            .map(|(id, _)| &plan.layers()[id.index()].spec);
        let expected = specs.map(larvatus_proto::program::LayerSpec::outputs).sum();
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

    /// Adds what the workers said, takes W·ε away and does what rides along.
    fn open(&mut self, plan: &Plan, pool: &Pool) -> Result<(), InferError> {
        let Some(awaited) = self.awaited.take() else {
            return Ok(());
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
        self.inference.settle(round, opened)
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

impl Believed {
    pub(super) fn into_values(self) -> Floats {
        self.0
    }
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
