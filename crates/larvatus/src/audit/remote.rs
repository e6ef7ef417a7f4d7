//! The trusted end of the protocol with a worker that runs a whole graph, as a state machine.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use larvatus_proto::VERSION;
use larvatus_proto::commit::{LeafId, Opening, Root};
use larvatus_proto::frame::{
    CHUNK, Frame, FrameLimits, MAX_HEAD, Reply, Request, Run, pack, unpack,
};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::order::{Order, Summons};
use larvatus_proto::receipt::{Claim, PublicKey, Salted, Signer, Statement};
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::Words;

use super::{Provisional, Terms, port_bytes};
use crate::error::{InferError, WorkerFailed, WorkerMisbehaved};

/// How a [`Remote`] goes about it.
#[derive(Clone, Debug)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct RemoteSettings {
    /// How long the worker may take for any reply.
    pub answer_within: Duration,
    /// The key that the worker must sign with; any where not given.
    pub worker: Option<PublicKey>,
}

/// What a worker has done.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "a caller handles each")]
pub enum Done {
    /// A run: its output may be used, what it is worth is told later.
    Ran {
        /// The call that asked for it.
        call: u64,
        /// The record to keep.
        record: Box<Provisional>,
        /// From request to answer.
        took: Duration,
    },
    /// What should be an opening.
    Opened {
        /// The call that asked for it.
        call: u64,
        /// Its bytes, to be held against what was asked.
        bytes: Vec<u8>,
    },
    /// The worker says that it does not open.
    Refused {
        /// The call that asked for it.
        call: u64,
        /// Why.
        why: WorkerFailed,
    },
}

/// A conversation with one worker about one graph.
pub struct Remote {
    terms: Arc<Terms>,
    signer: Arc<Signer>,
    settings: RemoteSettings,
    state: State,
    name: Option<String>,
    key: Option<PublicKey>,
    outbox: VecDeque<Frame>,
    calls: BTreeMap<u64, Asked>,
    done: VecDeque<Done>,
    next_call: u64,
    closing: bool,
    wishes: usize,
}

/// What the worker is awaited to do; times are when it was asked.
enum State {
    Welcome(Option<Now>),
    Verdict(Option<Now>),
    Upload { next: u64, since: Now },
    Ready,
    Over(InferError),
    Closed,
}

struct Asked {
    since: Now,
    what: What,
}

enum What {
    Run(Box<Input>),
    /// So many bytes.
    Open(usize),
}

/// What a run was asked for with.
struct Input {
    order: Order,
    salt: [u8; 32],
    input: Vec<u8>,
}

/// Wishes for the model that are borne with.
const WISHES: usize = 16;

impl Remote {
    /// A conversation that has not begun.
    pub fn new(terms: Arc<Terms>, signer: Arc<Signer>, settings: RemoteSettings) -> Self {
        Self {
            terms,
            signer,
            settings,
            state: State::Welcome(None),
            name: None,
            key: None,
            outbox: VecDeque::new(),
            calls: BTreeMap::new(),
            done: VecDeque::new(),
            next_call: 0,
            closing: false,
            wishes: 0,
        }
    }

    /// The worker's key, once it has the graph.
    pub fn worker_key(&self) -> Option<PublicKey> {
        self.key
    }

    /// What the worker calls itself, once it has said so.
    pub fn worker_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Bytes of the graph sent, and of all of it, while it is being uploaded.
    pub fn uploading(&self) -> Option<(u64, u64)> {
        match &self.state {
            State::Upload { next, .. } => Some((*next, self.total())),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Ready
            | State::Over(_)
            | State::Closed => None,
        }
    }

    /// Whether the worker has the graph.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    /// What went wrong, if something did.
    pub fn failure(&self) -> Option<&InferError> {
        match &self.state {
            State::Over(why) => Some(why),
            State::Welcome(_)
            | State::Verdict(_)
            | State::Upload { .. }
            | State::Ready
            | State::Closed => None,
        }
    }

    /// Asks for a run on an input as it is committed to, under a number that was never used and a salt of 32 fresh uniform
    /// bytes; the number of the call. `None` before the worker has the graph, or where the input has another length.
    pub fn run(&mut self, counter: u64, salt: [u8; 32], input: Vec<u8>, now: Now) -> Option<u64> {
        let worker = self.key.filter(|_| self.is_ready())?;
        if input.len() != port_bytes(self.terms.model().graph()).0 {
            return None;
        }
        let trusted = self.signer.public();
        let order = Order {
            model: self.terms.model().digest(),
            plan: self.terms.plan(),
            counter,
            input: Salted::input(&salt, &input),
            trusted,
            worker,
        };
        let signature = order.sign(&self.signer).ok()?;
        let run = |call| {
            Request::Run(Run {
                call,
                plan: order.plan,
                counter,
                salt,
                trusted,
                signature,
                input: pack(&input).into(),
            })
        };
        let frame = run(self.next_call).into_frame();
        let what = What::Run(Box::new(Input { order, salt, input }));
        Some(self.ask(frame, what, now))
    }

    /// Asks for leaves of a trace; the number of the call. `None` before the worker has the graph, or where the graph's
    /// traces have no such leaves.
    pub fn open(
        &mut self,
        trace: Root,
        asked: Vec<LeafId>,
        known: Vec<LeafId>,
        now: Now,
    ) -> Option<u64> {
        let layout = self.terms.model().graph().layout();
        let bytes = Opening::encoded_bytes(layout, &asked, &known).ok()?;
        if !self.is_ready() {
            return None;
        }
        let summons = Summons {
            trace,
            asked,
            known,
        };
        let signature = summons.sign(&self.signer);
        let call = self.next_call;
        let frame = Request::Open {
            call,
            summons,
            signature,
        };
        Some(self.ask(frame.into_frame(), What::Open(bytes), now))
    }

    fn ask(&mut self, frame: Frame, what: What, since: Now) -> u64 {
        let call = self.next_call;
        self.next_call += 1;
        self.calls.insert(call, Asked { since, what });
        self.outbox.push_back(frame);
        call
    }

    /// What the worker has done next.
    pub fn poll(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    /// Says goodbye once nothing is awaited any more.
    pub fn close(&mut self) {
        self.closing = true;
    }

    fn total(&self) -> u64 {
        self.terms.model().blob().len() as u64
    }

    fn end(&mut self, why: impl Into<InferError>) {
        if !matches!(self.state, State::Over(_) | State::Closed) {
            self.outbox.clear();
            self.state = State::Over(why.into());
        }
    }

    fn awaited(&self) -> &'static str {
        match &self.state {
            State::Welcome(_) => "its welcome",
            State::Verdict(_) | State::Upload { .. } => "its word on the graph",
            State::Ready => match self.calls.values().next().map(|asked| &asked.what) {
                Some(What::Run(_)) => "the result of a run",
                Some(What::Open(_)) => "an opening",
                None => "nothing",
            },
            State::Over(_) | State::Closed => "nothing",
        }
    }

    fn hear(&mut self, reply: Reply, now: Now) -> Result<(), InferError> {
        match (&self.state, reply) {
            (State::Over(_) | State::Closed, _) => {}
            (_, Reply::Failed { call, message }) => {
                let why = WorkerFailed::Refused { message };
                let open = |asked: &Asked| matches!(asked.what, What::Open(_));
                match call.filter(|call| self.calls.get(call).is_some_and(open)) {
                    Some(call) => {
                        self.calls.remove(&call);
                        self.done.push_back(Done::Refused { call, why });
                    }
                    None => return Err(why.into()),
                }
            }
            (State::Welcome(_), Reply::Welcome { version, name }) => {
                if version != VERSION {
                    let (ours, theirs) = (VERSION, version);
                    return Err(WorkerFailed::Version { ours, theirs }.into());
                }
                self.name = Some(name);
                self.state = State::Verdict(None);
            }
            (State::Verdict(_) | State::Upload { .. }, Reply::Want { model, from }) => {
                self.same_model(model)?;
                let total = self.total();
                if from >= total {
                    return Err(WorkerMisbehaved::BeyondModel { from, total }.into());
                }
                self.wishes += 1;
                if self.wishes > WISHES {
                    let frames = self.wishes;
                    return Err(WorkerMisbehaved::Flood { frames }.into());
                }
                self.state = State::Upload {
                    next: from,
                    since: now,
                };
            }
            (State::Verdict(_) | State::Upload { .. }, Reply::Signs { model, key }) => {
                self.same_model(model)?;
                if let Some(expected) = self.settings.worker.filter(|expected| *expected != key) {
                    return Err(WorkerFailed::OtherKey { expected, got: key }.into());
                }
                self.key = Some(key);
                self.state = State::Ready;
            }
            (
                State::Ready,
                Reply::Ran {
                    call,
                    claim,
                    output,
                },
            ) => self.ran(call, *claim, output, now)?,
            (State::Ready, Reply::Opened { call, bytes }) => {
                let asked = self.calls.remove(&call);
                match asked.map(|asked| asked.what) {
                    Some(What::Open(_)) => self.done.push_back(Done::Opened { call, bytes }),
                    Some(What::Run(_)) | None => return Err(self.unknown(call)),
                }
            }
            (
                State::Welcome(_) | State::Verdict(_) | State::Upload { .. } | State::Ready,
                Reply::Welcome { .. }
                | Reply::Want { .. }
                | Reply::Ready { .. }
                | Reply::Answer { .. }
                | Reply::Committed { .. }
                | Reply::Signs { .. }
                | Reply::Ran { .. }
                | Reply::Opened { .. },
            ) => {
                return Err(WorkerMisbehaved::OutOfTurn {
                    message: "another message",
                    awaited: self.awaited(),
                }
                .into());
            }
        }
        Ok(())
    }

    fn unknown(&self, call: u64) -> InferError {
        let made = self.next_call;
        WorkerMisbehaved::UnknownCall { call, made }.into()
    }

    fn same_model(&self, got: larvatus_proto::digest::Digest) -> Result<(), WorkerMisbehaved> {
        let offered = self.terms.model().digest();
        if got == offered {
            Ok(())
        } else {
            Err(WorkerMisbehaved::OtherModel { offered, got })
        }
    }

    /// Takes the result of a run: the worker must have signed this very run and output.
    fn ran(&mut self, call: u64, claim: Claim, output: Words, now: Now) -> Result<(), InferError> {
        let Some(Asked {
            since,
            what: What::Run(asked),
        }) = self.calls.remove(&call)
        else {
            return Err(self.unknown(call));
        };
        let Input { order, salt, input } = *asked;
        let (_, bytes) = port_bytes(self.terms.model().graph());
        let output = unpack(&output.into_vec(), bytes).map_err(WorkerMisbehaved::Malformed)?;
        let Order {
            model,
            plan,
            counter,
            input: salted,
            trusted,
            worker,
        } = order;
        let expected = Statement {
            model,
            plan,
            counter,
            input: salted,
            output: Salted::output(&salt, &output),
            trace: claim.unverified().trace,
            trusted,
            worker,
        };
        let (terms, signer) = (&self.terms, &self.signer);
        let record = Provisional::new(claim, &expected, terms, salt, (input, output), signer);
        let record = Box::new(record.map_err(WorkerMisbehaved::Claim)?);
        let took = now.saturating_sub(since);
        self.done.push_back(Done::Ran { call, record, took });
        Ok(())
    }

    /// When the reply that is awaited longest was asked for.
    fn since(&self) -> Option<Now> {
        match &self.state {
            State::Welcome(since) | State::Verdict(since) => *since,
            State::Upload { since, .. } => Some(*since),
            State::Ready => self.calls.values().map(|asked| asked.since).min(),
            State::Over(_) | State::Closed => None,
        }
    }

    fn malformed(&self, err: DecodeError) -> InferError {
        match self.state {
            State::Welcome(_) => WorkerFailed::NotAWorker(err).into(),
            State::Verdict(_)
            | State::Upload { .. }
            | State::Ready
            | State::Over(_)
            | State::Closed => WorkerMisbehaved::Malformed(err).into(),
        }
    }
}

impl Machine for Remote {
    fn limits(&self) -> FrameLimits {
        let words = |asked: &Asked| match &asked.what {
            What::Run(_) => port_bytes(self.terms.model().graph()).1.div_ceil(4),
            What::Open(bytes) => bytes.div_ceil(4),
        };
        FrameLimits {
            head: MAX_HEAD,
            words: self.calls.values().map(words).max().unwrap_or(0),
        }
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        let heard = match Reply::from_frame(frame) {
            Ok(reply) => self.hear(reply, now),
            Err(err) => Err(self.malformed(err)),
        };
        if let Err(why) = heard {
            self.end(why);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        match &mut self.state {
            State::Welcome(since @ None) => {
                *since = Some(now);
                Some(Request::Hello { version: VERSION }.into_frame())
            }
            State::Verdict(since @ None) => {
                *since = Some(now);
                let model = self.terms.model();
                let offer = Request::OfferGraph {
                    model: model.digest(),
                    program: u32::try_from(model.graph_bytes()).unwrap_or(u32::MAX),
                    total: model.blob().len() as u64,
                };
                Some(offer.into_frame())
            }
            State::Upload { next, since } => {
                let offset = usize::try_from(*next).ok()?;
                let rest = self.terms.model().blob().get(offset..)?;
                let bytes = rest.get(..CHUNK).unwrap_or(rest).to_vec();
                if bytes.is_empty() {
                    return None;
                }
                let offset = *next;
                *next += bytes.len() as u64;
                *since = now;
                Some(Request::Chunk { offset, bytes }.into_frame())
            }
            State::Ready if self.closing && self.calls.is_empty() => {
                self.state = State::Closed;
                Some(Request::Bye.into_frame())
            }
            State::Ready => self.outbox.pop_front(),
            State::Welcome(Some(_)) | State::Verdict(Some(_)) | State::Over(_) | State::Closed => {
                None
            }
        }
    }

    fn deadline(&self) -> Option<Now> {
        Some(self.since()? + self.settings.answer_within)
    }

    fn tick(&mut self, now: Now) {
        if self.deadline().is_some_and(|at| now >= at) {
            self.end(WorkerFailed::TimedOut {
                awaited: self.awaited(),
                within: self.settings.answer_within,
            });
        }
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        let awaited = self.awaited();
        let why = match why {
            LinkEnd::Closed => WorkerFailed::Disconnected { awaited }.into(),
            LinkEnd::Stalled => WorkerFailed::TimedOut {
                awaited: "our frames to be read",
                within: self.settings.answer_within,
            }
            .into(),
            LinkEnd::Malformed(err) => self.malformed(err),
        };
        self.end(why);
    }

    fn finished(&self) -> bool {
        matches!(self.state, State::Over(_) | State::Closed)
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({} calls open)", self.calls.len())
    }
}
