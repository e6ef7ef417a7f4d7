//! One connection of a worker, as a state machine.
//!
//! | state | awaits | answers |
//! |---|---|---|
//! | `AwaitHello` | a hello | welcome |
//! | `AwaitOffer` | an offer | want or ready |
//! | `AwaitChunks` | the bytes of an upload | ready when complete, want when out of order |
//! | `AwaitCalls` | calls, or deals where it is a dealer's; leaves of what was committed to | an answer to each, in order |
//! | `AwaitRuns` | runs of a whole graph, and openings of their traces | what each asks for, in order |
//! | `Over` | nothing | |
//!
//! Whatever is repeated is answered again, so that a peer may retry anything whose answer it did
//! not see. A hello is welcome in every state, and an offer replaces the one before it. Every
//! request that a state cannot serve is answered by a failure that says why; only a frame that is
//! no request, another version, silence and replies that nobody takes end the conversation.
//!
//! A dealer is a worker that is sent no uploads: it draws pads from seeds and answers with what the
//! layers make of them. One service is the one or the other: who deals for an inference knows its
//! pads and must not see its uploads.
//!
//! A call is computed when its answer is transmitted, and with it those of the same round behind it, as many as a
//! batch may have (`queue`). So a peer that does not read makes the worker hold the answers of one batch, and
//! of its calls no more than [`Limits::calls`](crate::Limits::calls).

mod answers;
mod deal;
mod states;
#[cfg(test)]
mod tests;
mod whole;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use larvatus_graph::GraphError;
use larvatus_proto::VERSION;
use larvatus_proto::commit::{CommitError, LeafId, Opening, Root};
use larvatus_proto::frame::{
    BUSY, CHUNK, Frame, FrameLimits, MAX_HEAD, MAX_OPENING, Reply, Request,
};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::receipt::ReceiptError;
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::{Heap, Memory, Words};

use crate::backend::BackendError;
use crate::limits::TooMuch;
use crate::queue::{Answer, Input};
use crate::store::{Model, Store, StoreError};
use answers::Answers;
use deal::Pads;
use states::{AwaitHello, Kind, Offer, Over, State};
use whole::Whole;

/// Replies that may wait to be sent; a peer that lets more wait does not read.
const MAX_REPLIES: usize = 64;

/// Why a worker does not do what it was asked; peers get its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The frame is no request.
    #[error("not a request: {0}")]
    NotARequest(#[source] DecodeError),
    /// The peer speaks another version.
    #[error("version {got} is asked for, this worker speaks {speaks}")]
    Version {
        /// The version of this worker.
        speaks: u16,
        /// The peer's version.
        got: u16,
    },
    /// A request before the hello.
    #[error("a hello comes first")]
    NoHello,
    /// A chunk or a call before an offer.
    #[error("no model has been offered")]
    NoOffer,
    /// A call while the upload is incomplete.
    #[error("the model is not complete: {got} of {total} bytes")]
    Incomplete {
        /// Bytes held.
        got: u64,
        /// Bytes of the upload.
        total: u64,
    },
    /// An offer whose sizes cannot be.
    #[error("offer of a program of {program} bytes in an upload of {total}")]
    OfferSizes {
        /// Bytes of the program.
        program: u32,
        /// Bytes of the upload.
        total: u64,
    },
    /// A chunk that goes beyond the upload's end.
    #[error("chunk of {got} bytes where {left} are left")]
    PastEnd {
        /// Bytes that lack.
        left: u64,
        /// Bytes of the chunk.
        got: usize,
    },
    /// The program of the upload is not well formed.
    #[error("program is refused: {0}")]
    Program(#[source] DecodeError),
    /// The graph of the upload is not well formed.
    #[error("graph is refused: {0}")]
    Graph(#[source] GraphError),
    /// The program asks for too much.
    #[error("program is refused: {0}")]
    TooMuch(#[source] TooMuch),
    /// The store does not take the model.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The system has no memory for the upload.
    #[error("no memory for {total} bytes")]
    Memory {
        /// Bytes of the upload.
        total: u64,
    },
    /// The call is not one of the program, or the engine failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A call where only deals are served.
    #[error("this is a dealer, it computes no calls; a worker does")]
    OnlyDeals,
    /// A deal where only calls are served.
    #[error("this is a worker, it deals nothing; `larvatus dealer` does")]
    OnlyCalls,
    /// A call where a whole graph is offered, or a run where a program is.
    #[error("{asked} where {offered} was offered")]
    OtherKind {
        /// What was asked for.
        asked: &'static str,
        /// What was offered.
        offered: &'static str,
    },
    /// A worker without a key to sign with.
    #[error("this worker has no receipt key, so it runs no whole graphs")]
    NoKey,
    /// What the peer signed, or should have.
    #[error("the order is refused: {0}")]
    Order(#[source] ReceiptError),
    /// An input of another size.
    #[error("input of {got} words, the graph takes {expected}")]
    Input {
        /// Words of the graph's inputs.
        expected: usize,
        /// Words that came.
        got: usize,
    },
    /// A trace that is not kept, never was, or was made for somebody else.
    #[error("no trace {trace} is kept here for who asks; a worker keeps the last ones only")]
    NoTrace {
        /// Its root.
        trace: Root,
    },
    /// Leaves that the trace does not have.
    #[error("the summons is refused: {0}")]
    Summons(#[source] CommitError),
    /// A round out of turn, where the answers of an inference are committed to together.
    #[error(
        "round {round} is not the next; this program's rounds are called in order, since their answers are committed to"
    )]
    Turn {
        /// The round asked for.
        round: u32,
    },
    /// An inference with larger answers than a connection's part of what is kept.
    #[error(
        "answers of {got} bytes to commit to, a connection may keep {limit}; a worker with more --trace-memory can"
    )]
    Kept {
        /// The worker's limit.
        limit: u64,
        /// Bytes of one inference's answers.
        got: u64,
    },
    /// An opening larger than one may be.
    #[error("an opening of {got} bytes, {MAX_OPENING} are the most; ask several times")]
    Opening {
        /// Bytes that it would have.
        got: usize,
    },
    /// A deal for a program in floats, which has no pads in the field.
    #[error("this program computes with floats, a dealer's pads are field elements")]
    FloatPads,
    /// The program has more uploads than streams have names for.
    #[error(
        "upload {got} of a program whose pads can be numbered up to {}",
        u16::MAX
    )]
    UploadNumber {
        /// The number.
        got: usize,
    },
    /// Too many calls wait.
    #[error("{limit} calls wait already")]
    Busy {
        /// The worker's limit.
        limit: usize,
    },
    /// The machine is wanted for something else.
    #[error("{BUSY}this machine has other work")]
    Paused,
    /// The peer sends and does not read.
    #[error("replies are not read")]
    NotRead,
    /// The peer was silent for too long.
    #[error("nothing came for {} s", idle.as_secs())]
    Idle {
        /// The worker's limit.
        idle: Duration,
    },
}

/// One connection of a worker. Make one for each link; they share a [`Store`].
#[derive(Debug)]
pub struct Service {
    cx: Context,
    state: State,
    active: Now,
    /// Whether it worked since it was last told the time: working is not silence.
    worked: bool,
}

/// What all states share.
#[derive(Debug)]
struct Context {
    store: Arc<Store>,
    role: Role,
    outbox: VecDeque<Pending>,
    /// Where answers are written.
    memory: Arc<dyn Memory>,
    /// What this connection has committed to.
    answers: Answers,
}

/// Something to send.
#[derive(Debug)]
enum Pending {
    Reply(Reply),
    Call {
        model: Arc<Model>,
        call: u64,
        round: u32,
        words: Words,
    },
    Deal {
        model: Arc<Model>,
        call: u64,
        round: u32,
        pads: Box<Pads>,
    },
    /// A run of a whole graph, or an opening of its trace.
    Whole(Box<Whole>),
    /// A call that was computed, perhaps together with one before it.
    Answer {
        model: Arc<Model>,
        call: u64,
        round: u32,
        answer: Answer,
    },
    /// Leaves of what was committed to.
    Show {
        number: u64,
        root: Root,
        leaves: Vec<LeafId>,
    },
}

impl Pending {
    /// Takes the words of a call of this round, and leaves it without: the caller puts the answer in its place.
    fn take(&mut self, round_of: (&Arc<Model>, u32)) -> Option<(u64, Result<Input, BackendError>)> {
        match self {
            Self::Call {
                model,
                call,
                round,
                words,
            } if Arc::ptr_eq(model, round_of.0) && *round == round_of.1 => {
                let words = std::mem::replace(words, Vec::new().into());
                Some((*call, Ok(Box::new(words.into_vec()))))
            }
            Self::Deal {
                model,
                call,
                round,
                pads,
            } if Arc::ptr_eq(model, round_of.0) && *round == round_of.1 => {
                let pads = pads.draw();
                Some((*call, pads.map(|pads| Box::new(pads) as Input)))
            }
            Self::Call { .. }
            | Self::Deal { .. }
            | Self::Reply(_)
            | Self::Whole(_)
            | Self::Answer { .. }
            | Self::Show { .. } => None,
        }
    }
}

/// What a service computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Rounds of uploads.
    Worker,
    /// Rounds of pads.
    Dealer,
}

impl Context {
    fn reply(&mut self, reply: Reply) {
        self.outbox.push_back(Pending::Reply(reply));
    }

    fn fail(&mut self, call: Option<u64>, why: &Refused) {
        tracing::debug!(?call, %why, "refused");
        self.reply(Reply::Failed {
            call,
            message: why.to_string(),
        });
    }

    /// Refuses new work where none is taken.
    fn takes_new_work(&self) -> Result<(), Refused> {
        match self.store.attention().is_paused() {
            true => Err(Refused::Paused),
            false => Ok(()),
        }
    }

    /// Refuses one more call than may wait.
    fn has_room(&self) -> Result<(), Refused> {
        let limit = self.store.limits().calls;
        if self.calls() < limit {
            Ok(())
        } else {
            Err(Refused::Busy { limit })
        }
    }

    fn calls(&self) -> usize {
        self.outbox
            .iter()
            .filter(|pending| !matches!(pending, Pending::Reply(_)))
            .count()
    }

    /// Words of the uploads that wait.
    fn waiting_words(&self) -> usize {
        let words = self.outbox.iter().map(|pending| match pending {
            Pending::Call { words, .. } => words.len(),
            Pending::Deal { .. }
            | Pending::Reply(_)
            | Pending::Whole(_)
            | Pending::Answer { .. }
            | Pending::Show { .. } => 0,
        });
        words.sum()
    }

    /// Computes the call that is to be answered next, and with it those of the same round that wait.
    fn compute(&mut self) {
        let (model, round) = match self.outbox.front() {
            Some(Pending::Call { model, round, .. } | Pending::Deal { model, round, .. }) => {
                (Arc::clone(model), *round)
            }
            Some(
                Pending::Reply(_)
                | Pending::Whole(_)
                | Pending::Answer { .. }
                | Pending::Show { .. },
            )
            | None => return,
        };
        let (mut places, mut inputs) = (Vec::new(), Vec::new());
        let waiting = self.outbox.iter_mut().enumerate();
        let taken =
            waiting.filter_map(|(place, pending)| Some((place, pending.take((&model, round))?)));
        for (place, (call, input)) in taken.take(model.most(round)).collect::<Vec<_>>() {
            match input {
                Ok(input) => {
                    places.push((place, call));
                    inputs.push(input);
                }
                Err(why) => self.answered(place, (&model, call, round), Err(why)),
            }
        }
        let answers = model.compute(round, inputs);
        for ((place, call), answer) in places.into_iter().zip(answers) {
            self.answered(place, (&model, call, round), answer);
        }
    }

    fn answered(
        &mut self,
        place: usize,
        (model, call, round): (&Arc<Model>, u64, u32),
        answer: Answer,
    ) {
        if let Some(pending) = self.outbox.get_mut(place) {
            *pending = Pending::Answer {
                model: Arc::clone(model),
                call,
                round,
                answer,
            };
        }
    }

    /// The reply to a call that was computed.
    ///
    /// # Errors
    /// [`Refused`] where it could not be, or not be committed to.
    fn reply_to(
        &mut self,
        model: &Model,
        (call, round): (u64, u32),
        answer: Answer,
    ) -> Result<Reply, Refused> {
        let answer = answer.map_err(Refused::Backend)?;
        let program = model.program();
        let root = match program.commits() {
            true => {
                let of = (model.digest(), program);
                self.answers.take(of, self.store.limits(), round, &answer)?
            }
            false => None,
        };
        let mut words = self.memory.words(answer.len());
        match words.as_slice() {
            Some(_) => words = answer.into(),
            None => words.write(0, &answer),
        }
        Ok(match root {
            Some(root) => Reply::Committed { call, root, words },
            None => Reply::Answer { call, words },
        })
    }
}

impl Service {
    /// A worker's service over a store; `now` starts the time of silence.
    pub fn new(store: Arc<Store>, now: Now) -> Self {
        Self::of(Role::Worker, store, now)
    }

    /// A dealer's service over a store; `now` starts the time of silence.
    pub fn dealer(store: Arc<Store>, now: Now) -> Self {
        Self::of(Role::Dealer, store, now)
    }

    fn of(role: Role, store: Arc<Store>, now: Now) -> Self {
        let cx = Context {
            store,
            role,
            outbox: VecDeque::new(),
            memory: Arc::new(Heap),
            answers: Answers::default(),
        };
        Self {
            cx,
            state: State::Hello(AwaitHello),
            active: now,
            worked: false,
        }
    }

    fn handle(&mut self, request: Request) {
        let state = std::mem::replace(&mut self.state, State::Over(Over));
        self.state = match request {
            Request::Hello { version: VERSION } => {
                let name = self.cx.store.backend().name();
                let role = match self.cx.role {
                    Role::Worker => "larvatus",
                    Role::Dealer => "larvatus dealer",
                };
                let name = format!("{role} {}, {name}", env!("CARGO_PKG_VERSION"));
                self.cx.reply(Reply::Welcome {
                    version: VERSION,
                    name,
                });
                state.greeted()
            }
            Request::Hello { version: got } => self.end(&Refused::Version {
                speaks: VERSION,
                got,
            }),
            Request::Bye => {
                self.cx.outbox.clear();
                State::Over(Over)
            }
            Request::Offer {
                model,
                program,
                total,
            } => state.offer(
                &mut self.cx,
                Offer {
                    kind: Kind::Program,
                    model,
                    program,
                    total,
                },
            ),
            Request::OfferGraph {
                model,
                program,
                total,
            } => state.offer(
                &mut self.cx,
                Offer {
                    kind: Kind::Graph,
                    model,
                    program,
                    total,
                },
            ),
            Request::Run(run) => state.run(&mut self.cx, run),
            Request::Open {
                call,
                summons,
                signature,
            } => state.open(&mut self.cx, call, summons, &signature),
            Request::Show {
                number,
                root,
                leaves,
            } => state.show(&mut self.cx, number, root, leaves),
            Request::Chunk { offset, bytes } => state.chunk(&mut self.cx, offset, &bytes),
            Request::Call { call, round, words } => state.call(&mut self.cx, call, round, words),
            Request::Deal {
                call,
                round,
                ticket,
                seed,
            } => state.deal(&mut self.cx, call, round, ticket, seed),
        };
    }

    /// Drops the calls that wait, says why and ends.
    fn end(&mut self, why: &Refused) -> State {
        self.cx
            .outbox
            .retain(|pending| matches!(pending, Pending::Reply(_)));
        self.cx.fail(None, why);
        State::Over(Over)
    }

    fn deadline_at(&self) -> Now {
        self.active.saturating_add(self.cx.store.limits().idle)
    }
}

impl Machine for Service {
    fn limits(&self) -> FrameLimits {
        let words = match &self.state {
            State::Over(_) => return FrameLimits { head: 0, words: 0 },
            State::Calls(state) if self.cx.role == Role::Worker => state.largest().max(CHUNK / 4),
            State::Calls(_) => CHUNK / 4,
            State::Runs(state) => state.largest().max(CHUNK / 4),
            State::Hello(_) | State::Offer(_) | State::Chunks(_) => CHUNK / 4,
        };
        FrameLimits {
            head: MAX_HEAD,
            words,
        }
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        self.cx.memory = memory;
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        self.active = now;
        self.worked = true;
        if matches!(self.state, State::Over(_)) {
            return;
        }
        match Request::from_frame(frame) {
            Ok(request) => self.handle(request),
            Err(error) => self.state = self.end(&Refused::NotARequest(error)),
        }
        if self.cx.outbox.len() > MAX_REPLIES {
            self.state = self.end(&Refused::NotRead);
        }
    }

    fn gathers(&self) -> bool {
        let limits = self.cx.store.limits();
        let computes = matches!(
            self.cx.outbox.front(),
            Some(Pending::Call { .. } | Pending::Deal { .. })
        );
        computes
            && self.cx.outbox.len() < limits.calls
            && self.cx.waiting_words() < limits.batch_words
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        if std::mem::take(&mut self.worked) {
            self.active = now;
        }
        self.cx.compute();
        let (call, reply) = match self.cx.outbox.pop_front()? {
            Pending::Reply(reply) => return Some(reply.into_frame()),
            Pending::Answer {
                model,
                call,
                round,
                answer,
            } => (call, self.cx.reply_to(&model, (call, round), answer)),
            Pending::Whole(whole) => {
                self.worked = true;
                return Some(whole.answer(&self.cx.store).into_frame());
            }
            Pending::Show {
                number,
                root,
                leaves,
            } => {
                let opening = self.cx.answers.open(root, &leaves);
                let opened = |opening: Opening| Reply::Opened {
                    call: number,
                    bytes: opening.encode(),
                };
                (number, opening.map(opened))
            }
            Pending::Call { call, .. } | Pending::Deal { call, .. } => {
                (call, Err(Refused::Backend(BackendError::Panicked)))
            }
        };
        self.worked = true;
        let reply = reply.unwrap_or_else(|why| Reply::Failed {
            call: Some(call),
            message: why.to_string(),
        });
        Some(reply.into_frame())
    }

    fn deadline(&self) -> Option<Now> {
        match self.state {
            State::Over(_) => None,
            State::Hello(_)
            | State::Offer(_)
            | State::Chunks(_)
            | State::Calls(_)
            | State::Runs(_) => Some(self.deadline_at()),
        }
    }

    fn tick(&mut self, now: Now) {
        if !matches!(self.state, State::Over(_)) && now >= self.deadline_at() {
            let idle = self.cx.store.limits().idle;
            self.state = self.end(&Refused::Idle { idle });
        }
    }

    fn disconnected(&mut self, _why: LinkEnd, _now: Now) {
        self.cx.outbox.clear();
        self.state = State::Over(Over);
    }

    fn finished(&self) -> bool {
        matches!(self.state, State::Over(_)) && self.cx.outbox.is_empty()
    }
}
