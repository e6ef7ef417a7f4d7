//! What is said to one worker, and what it may say: greeting, upload of its model, numbered calls.

use std::collections::VecDeque;
use std::time::Duration;

use larvatus_proto::VERSION;
use larvatus_proto::commit::Root;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{CHUNK, Frame, FrameLimits, MAX_HEAD, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Now};
use larvatus_proto::program::WorkerModel;
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::Words;

use super::Settings;
use crate::error::{InferError, WorkerFailed, WorkerMisbehaved};

/// The trusted end of the protocol with one worker, without what is computed.
pub(crate) struct Conversation {
    state: State,
    worker: Option<String>,
    outbox: VecDeque<Frame>,
    answer_within: Duration,
    retry_after: Option<Duration>,
    next_call: u64,
    /// Replies that answered nothing that was open; a few are what retries cause.
    unasked: usize,
    /// Requests sent again.
    retries: usize,
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

/// What a reply means for the inferences.
pub(crate) enum Heard {
    /// Nothing.
    Nothing,
    /// The worker takes calls from here on.
    Ready,
    /// An answer to a call that was made; whether it still is open, the caller knows. With a root only where the program
    /// commits to its answers.
    Answer {
        call: u64,
        root: Option<Root>,
        words: Words,
    },
    /// Leaves that were asked for, or not; only where the program commits to its answers.
    Opened { number: u64, bytes: Vec<u8> },
}

/// Frames nobody asked for that are borne with: duplicates that crossed a retry.
const PATIENCE: usize = 256;

impl Conversation {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            state: State::Welcome(Await::NOTHING_SENT),
            worker: None,
            outbox: VecDeque::new(),
            answer_within: settings.answer_within,
            retry_after: settings.retry_after,
            next_call: 0,
            unasked: 0,
            retries: 0,
        }
    }

    /// Whether the worker holds the model and takes calls.
    pub(crate) fn is_ready(&self) -> bool {
        matches!(self.state, State::Answers)
    }

    /// Why no more calls are taken, if none are.
    pub(crate) fn over(&self) -> Option<InferError> {
        match &self.state {
            State::Over(why) => Some(why.clone()),
            State::Closed => Some(
                WorkerFailed::Disconnected {
                    awaited: self.awaited(),
                }
                .into(),
            ),
            State::Welcome(_) | State::Verdict(_) | State::Upload { .. } | State::Answers => None,
        }
    }

    /// What went wrong, if something did.
    pub(crate) fn failure(&self) -> Option<&InferError> {
        match &self.state {
            State::Over(why) => Some(why),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Upload { .. }
            | State::Answers
            | State::Closed => None,
        }
    }

    /// Bytes of the model sent, while it is being uploaded.
    pub(crate) fn uploaded(&self) -> Option<u64> {
        match &self.state {
            State::Upload { next, .. } => Some(*next),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Answers
            | State::Over(_)
            | State::Closed => None,
        }
    }

    /// What the worker calls itself, once it has said so.
    pub(crate) fn worker_name(&self) -> Option<&str> {
        self.worker.as_deref()
    }

    /// Ends it; `false` if it had ended before.
    pub(crate) fn end(&mut self, why: InferError) -> bool {
        if matches!(self.state, State::Over(_) | State::Closed) {
            return false;
        }
        self.outbox.clear();
        self.state = State::Over(why);
        true
    }

    fn awaited(&self) -> &'static str {
        match &self.state {
            State::Welcome(_) => "its welcome",
            State::Verdict(_) | State::Upload { .. } => "its word on the model",
            State::Answers => "an answer",
            State::Over(_) | State::Closed => "nothing",
        }
    }

    /// The number of the next call.
    pub(crate) fn next_call(&self) -> u64 {
        self.next_call
    }

    /// Makes the call that had the next number.
    pub(crate) fn call(&mut self, frame: Frame) {
        self.next_call += 1;
        self.outbox.push_back(frame);
    }

    /// Says something that is no call.
    pub(crate) fn say(&mut self, frame: Frame) {
        self.outbox.push_back(frame);
    }

    /// Sends a request again.
    pub(crate) fn repeat(&mut self, frame: Frame) {
        self.retries += 1;
        self.outbox.push_back(frame);
    }

    /// Takes a frame.
    ///
    /// # Errors
    /// Why the conversation must end.
    pub(crate) fn hear(
        &mut self,
        frame: Frame,
        model: &WorkerModel,
        now: Now,
    ) -> Result<Heard, InferError> {
        let reply = Reply::from_frame(frame).map_err(|err| self.malformed(err))?;
        match (&mut self.state, reply) {
            (State::Over(_) | State::Closed, _) => {}
            (_, Reply::Failed { call: _, message }) => {
                return Err(WorkerFailed::Refused { message }.into());
            }
            (State::Answers, Reply::Opened { call, bytes }) if model.program().commits() => {
                let number = call;
                return Ok(Heard::Opened { number, bytes });
            }
            (State::Answers, Reply::Committed { call, root, words })
                if model.program().commits() =>
            {
                self.made(call)?;
                let root = Some(root);
                return Ok(Heard::Answer { call, root, words });
            }
            (_, Reply::Committed { .. }) => {
                return Err(WorkerMisbehaved::OutOfTurn {
                    message: "a commitment",
                    awaited: self.awaited(),
                }
                .into());
            }
            (_, Reply::Signs { .. } | Reply::Ran { .. } | Reply::Opened { .. }) => {
                return Err(WorkerMisbehaved::OutOfTurn {
                    message: "a word on a whole graph",
                    awaited: self.awaited(),
                }
                .into());
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
            (State::Verdict(_) | State::Upload { .. }, Reply::Want { model: got, from }) => {
                same_model(model, got)?;
                let total = model.blob().len() as u64;
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
            (State::Verdict(_) | State::Upload { .. }, Reply::Ready { model: got }) => {
                same_model(model, got)?;
                self.state = State::Answers;
                return Ok(Heard::Ready);
            }
            (State::Answers, Reply::Answer { call, words }) => {
                self.made(call)?;
                let root = None;
                return Ok(Heard::Answer { call, root, words });
            }
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
                    Reply::Welcome { .. }
                    | Reply::Failed { .. }
                    | Reply::Signs { .. }
                    | Reply::Ran { .. }
                    | Reply::Committed { .. }
                    | Reply::Opened { .. } => "a reply",
                };
                return Err(WorkerMisbehaved::OutOfTurn {
                    message,
                    awaited: self.awaited(),
                }
                .into());
            }
        }
        Ok(Heard::Nothing)
    }

    /// That a call was made.
    fn made(&self, call: u64) -> Result<(), WorkerMisbehaved> {
        let made = self.next_call;
        match call < made {
            true => Ok(()),
            false => Err(WorkerMisbehaved::UnknownCall { call, made }),
        }
    }

    /// A frame that is none: of a worker a lie, of a stranger that has not greeted just noise.
    fn malformed(&self, err: DecodeError) -> InferError {
        match &self.state {
            State::Welcome(_) => WorkerFailed::NotAWorker(err).into(),
            State::Verdict(_)
            | State::Upload { .. }
            | State::Answers
            | State::Over(_)
            | State::Closed => WorkerMisbehaved::Malformed(err).into(),
        }
    }

    /// Bears with a frame that nobody asked for.
    ///
    /// # Errors
    /// [`WorkerMisbehaved::Flood`] after too many.
    pub(crate) fn unasked(&mut self) -> Result<(), WorkerMisbehaved> {
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

    /// What the worker may send now.
    pub(crate) fn limits(&self, model: Option<&WorkerModel>) -> FrameLimits {
        let words = match &self.state {
            State::Answers => model.map_or(0, |model| model.program().largest_answer()),
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

    /// What to say next. `done` says goodbye to a worker that is ready.
    pub(crate) fn transmit(&mut self, model: &WorkerModel, done: bool, now: Now) -> Option<Frame> {
        if let Some(frame) = self.outbox.pop_front() {
            return Some(frame);
        }
        match &mut self.state {
            State::Welcome(wait) if wait.sent.is_none() => {
                wait.send(now);
                Some(hello())
            }
            State::Verdict(wait) if wait.sent.is_none() => {
                wait.send(now);
                Some(offer(model))
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
            State::Answers if done => {
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

    /// When the request of the handshake that is open was sent first and last.
    pub(crate) fn awaited_since(&self) -> Option<(Now, Now)> {
        match &self.state {
            State::Welcome(wait) | State::Verdict(wait) => wait.since.zip(wait.sent),
            State::Upload { since, .. } => Some((*since, *since)),
            State::Answers | State::Over(_) | State::Closed => None,
        }
    }

    /// When a request sent first and last at these times is too old, and when it is sent again.
    pub(crate) fn times(&self, (since, sent): (Now, Now)) -> (Now, Option<Now>) {
        (
            since + self.answer_within,
            self.retry_after.map(|after| sent + after),
        )
    }

    /// Why it ends where a reply took too long.
    pub(crate) fn timed_out(&self) -> InferError {
        self.waited_for(self.awaited())
    }

    /// Why it ends where this took too long.
    pub(crate) fn waited_for(&self, awaited: &'static str) -> InferError {
        WorkerFailed::TimedOut {
            awaited,
            within: self.answer_within,
        }
        .into()
    }

    /// Says again what was said in the handshake, where it is time.
    pub(crate) fn retry(&mut self, model: &WorkerModel, now: Now) {
        let Some(after) = self.retry_after else {
            return;
        };
        let due = |sent: Option<Now>| sent.is_some_and(|sent| now >= sent + after);
        let frame = match &mut self.state {
            State::Welcome(wait) if due(wait.sent) => {
                wait.send(now);
                hello()
            }
            State::Verdict(wait) if due(wait.sent) => {
                wait.send(now);
                offer(model)
            }
            // The worker says how far it came; `since` stays, so that the deadline holds.
            State::Upload { next, since, .. }
                if due(Some(*since)) && *next == model.blob().len() as u64 =>
            {
                self.state = State::Verdict(Await {
                    since: Some(*since),
                    sent: Some(now),
                });
                offer(model)
            }
            State::Welcome(_)
            | State::Verdict(_)
            | State::Upload { .. }
            | State::Answers
            | State::Over(_)
            | State::Closed => return,
        };
        self.repeat(frame);
    }

    /// Why it ends where the link did.
    pub(crate) fn disconnected(&self, why: LinkEnd) -> InferError {
        let awaited = self.awaited();
        match why {
            LinkEnd::Closed => WorkerFailed::Disconnected { awaited }.into(),
            LinkEnd::Stalled => WorkerFailed::TimedOut {
                awaited: "our frames to be read",
                within: self.answer_within,
            }
            .into(),
            LinkEnd::Malformed(err) => self.malformed(err),
        }
    }

    /// Whether nothing more will be said or heard.
    pub(crate) fn finished(&self) -> bool {
        matches!(self.state, State::Over(_) | State::Closed) && self.outbox.is_empty()
    }
}

fn same_model(model: &WorkerModel, got: Digest) -> Result<(), WorkerMisbehaved> {
    let offered = model.digest();
    if got == offered {
        Ok(())
    } else {
        Err(WorkerMisbehaved::OtherModel { offered, got })
    }
}

fn hello() -> Frame {
    Request::Hello { version: VERSION }.into_frame()
}

fn offer(model: &WorkerModel) -> Frame {
    Request::Offer {
        model: model.digest(),
        program: u32::try_from(model.program_bytes()).unwrap_or(u32::MAX),
        total: model.blob().len() as u64,
    }
    .into_frame()
}
