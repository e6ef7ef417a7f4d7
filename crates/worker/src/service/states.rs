//! The states of a connection; each transition takes the state and returns the next.

use std::sync::Arc;

use larvatus_graph::Graph;
use larvatus_graph::encode::MAX_GRAPH;
use larvatus_proto::commit::{LeafId, Root};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{CHUNK, Reply, Run, Seed};
use larvatus_proto::order::Summons;
use larvatus_proto::program::{Held, MAX_PROGRAM, Program, Round};
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::Words;

use larvatus_proto::receipt::SIGNATURE;

use super::deal::Pads;
use super::whole::AwaitRuns;
use super::{Context, Pending, Refused, Role};
use crate::backend::BackendError;
use crate::store::{Model, Reservation};

/// Where a connection stands.
#[derive(Debug)]
pub(super) enum State {
    Hello(AwaitHello),
    Offer(AwaitOffer),
    Chunks(AwaitChunks),
    Calls(AwaitCalls),
    Runs(AwaitRuns),
    Over(Over),
}

/// What an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Linear layers that are called round by round.
    Program,
    /// A whole network.
    Graph,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Program => "a program",
            Self::Graph => "a whole graph",
        }
    }
}

/// What a peer offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    pub(super) kind: Kind,
    pub(super) model: Digest,
    /// Bytes of the program or graph at the front.
    pub(super) program: u32,
    pub(super) total: u64,
}

impl Offer {
    fn program_bytes(&self) -> usize {
        usize::try_from(self.program).unwrap_or(usize::MAX)
    }
}

/// Nothing was said yet.
#[derive(Debug)]
pub(super) struct AwaitHello;

/// No model is offered.
#[derive(Debug)]
pub(super) struct AwaitOffer;

/// A model is offered whose upload is incomplete.
#[derive(Debug)]
pub(super) struct AwaitChunks {
    offer: Offer,
    blob: Vec<u8>,
    /// Whether the program has come and was found acceptable.
    program_seen: bool,
    room: Reservation,
}

/// A model is ready.
#[derive(Debug)]
pub(super) struct AwaitCalls {
    model: Arc<Model>,
}

/// The conversation has ended.
#[derive(Debug)]
pub(super) struct Over;

impl State {
    /// After a hello of the right version.
    pub(super) fn greeted(self) -> Self {
        match self {
            Self::Hello(AwaitHello) => Self::Offer(AwaitOffer),
            Self::Offer(_) | Self::Chunks(_) | Self::Calls(_) | Self::Runs(_) | Self::Over(_) => {
                self
            }
        }
    }

    pub(super) fn offer(self, cx: &mut Context, offer: Offer) -> Self {
        match self {
            Self::Hello(_) => {
                cx.fail(None, &Refused::NoHello);
                self
            }
            Self::Chunks(state) if state.offer == offer => state.want(cx),
            Self::Offer(_) | Self::Chunks(_) | Self::Calls(_) | Self::Runs(_) => {
                // What was offered before is let go first, so that it can make room.
                drop(self);
                match AwaitOffer::offer(cx, offer) {
                    Ok(state) => state,
                    Err(why) => {
                        cx.fail(None, &why);
                        Self::Offer(AwaitOffer)
                    }
                }
            }
            Self::Over(_) => self,
        }
    }

    pub(super) fn chunk(self, cx: &mut Context, offset: u64, bytes: &[u8]) -> Self {
        match self {
            Self::Hello(_) => {
                cx.fail(None, &Refused::NoHello);
                self
            }
            Self::Offer(_) => {
                cx.fail(None, &Refused::NoOffer);
                self
            }
            Self::Chunks(state) => match state.chunk(cx, offset, bytes) {
                Ok(state) => state,
                Err(why) => {
                    cx.fail(None, &why);
                    Self::Offer(AwaitOffer)
                }
            },
            Self::Calls(state) => state.ready(cx),
            Self::Runs(state) => state.ready(cx),
            Self::Over(_) => self,
        }
    }

    pub(super) fn run(self, cx: &mut Context, run: Run) -> Self {
        let call = run.call;
        self.of_graph(cx, call, "a run", |state, cx| state.run(cx, run))
    }

    pub(super) fn open(
        self,
        cx: &mut Context,
        call: u64,
        summons: Summons,
        signature: &[u8; SIGNATURE],
    ) -> Self {
        let open = |state: &AwaitRuns, cx: &mut Context| state.open(cx, call, summons, signature);
        self.of_graph(cx, call, "an opening", open)
    }

    /// Does what takes a graph, or says that there is none.
    fn of_graph(
        self,
        cx: &mut Context,
        call: u64,
        asked: &'static str,
        work: impl FnOnce(&AwaitRuns, &mut Context) -> Result<(), Refused>,
    ) -> Self {
        let refused = match &self {
            Self::Runs(state) => work(state, cx),
            Self::Calls(_) => Err(Refused::OtherKind {
                asked,
                offered: Kind::Program.name(),
            }),
            Self::Hello(_) | Self::Offer(_) | Self::Chunks(_) | Self::Over(_) => {
                return self.compute(cx, call, |_, _| Ok(()));
            }
        };
        if let Err(why) = refused {
            cx.fail(Some(call), &why);
        }
        self
    }

    pub(super) fn call(self, cx: &mut Context, call: u64, round: u32, words: Words) -> Self {
        let computed = |state: &AwaitCalls, cx: &mut Context| match cx.role {
            Role::Worker => state.call(cx, call, round, words),
            Role::Dealer => Err(Refused::OnlyDeals),
        };
        self.compute(cx, call, computed)
    }

    pub(super) fn show(
        self,
        cx: &mut Context,
        number: u64,
        root: Root,
        leaves: Vec<LeafId>,
    ) -> Self {
        self.compute(cx, number, |_, cx| {
            cx.has_room()?;
            cx.outbox.push_back(Pending::Show {
                number,
                root,
                leaves,
            });
            Ok(())
        })
    }

    pub(super) fn deal(
        self,
        cx: &mut Context,
        call: u64,
        round: u32,
        ticket: u64,
        seed: Seed,
    ) -> Self {
        let dealt = |state: &AwaitCalls, cx: &mut Context| match cx.role {
            Role::Dealer => state.deal(cx, call, round, ticket, seed),
            Role::Worker => Err(Refused::OnlyCalls),
        };
        self.compute(cx, call, dealt)
    }

    /// Does what takes a model, or says that there is none.
    fn compute(
        self,
        cx: &mut Context,
        call: u64,
        work: impl FnOnce(&AwaitCalls, &mut Context) -> Result<(), Refused>,
    ) -> Self {
        let refused = match &self {
            Self::Hello(_) => Err(Refused::NoHello),
            Self::Offer(_) => Err(Refused::NoOffer),
            Self::Chunks(state) => Err(Refused::Incomplete {
                got: state.got(),
                total: state.offer.total,
            }),
            Self::Calls(state) => work(state, cx),
            Self::Runs(_) => Err(Refused::OtherKind {
                asked: "a round",
                offered: Kind::Graph.name(),
            }),
            Self::Over(_) => Ok(()),
        };
        if let Err(why) = refused {
            cx.fail(Some(call), &why);
        }
        self
    }
}

impl AwaitOffer {
    fn offer(cx: &mut Context, offer: Offer) -> Result<State, Refused> {
        let Offer {
            kind,
            model,
            program,
            total,
        } = offer;
        // A graph that is held may be offered for openings of runs that are over.
        if kind == Kind::Program {
            cx.takes_new_work()?;
        }
        let sizes = Refused::OfferSizes { program, total };
        let program_bytes = offer.program_bytes();
        let most = match kind {
            Kind::Program => MAX_PROGRAM,
            Kind::Graph => MAX_GRAPH,
        };
        if program == 0 || program_bytes > most || u64::from(program) > total {
            return Err(sizes);
        }
        let same = |program: usize, held: u64| program == program_bytes && held == total;
        match kind {
            Kind::Program => {
                if let Some(held) = cx.store.find(model) {
                    if !same(held.program_bytes(), held.total()) {
                        return Err(sizes);
                    }
                    return Ok(AwaitCalls::new(held).ready(cx));
                }
            }
            Kind::Graph => {
                if cx.role == Role::Dealer {
                    return Err(Refused::OnlyDeals);
                }
                let key = cx.store.key().ok_or(Refused::NoKey)?;
                if let Some(held) = cx.store.find_graph(model) {
                    if !same(held.program_bytes(), held.total()) {
                        return Err(sizes);
                    }
                    return Ok(AwaitRuns::new(held, key).ready(cx));
                }
            }
        }
        cx.takes_new_work()?;
        let room = cx.store.reserve(total)?;
        let blob = Vec::new();
        Ok(AwaitChunks {
            offer,
            blob,
            program_seen: false,
            room,
        }
        .want(cx))
    }
}

impl AwaitChunks {
    fn got(&self) -> u64 {
        self.blob.len() as u64
    }

    fn want(self, cx: &mut Context) -> State {
        cx.reply(Reply::Want {
            model: self.offer.model,
            from: self.got(),
        });
        State::Chunks(self)
    }

    fn chunk(mut self, cx: &mut Context, offset: u64, bytes: &[u8]) -> Result<State, Refused> {
        if offset != self.got() || bytes.is_empty() {
            return Ok(self.want(cx));
        }
        let left = self.offer.total - self.got();
        if bytes.len() as u64 > left {
            return Err(Refused::PastEnd {
                left,
                got: bytes.len(),
            });
        }
        self.append(bytes)?;
        self.look_at_program(cx)?;
        if self.got() < self.offer.total {
            return Ok(State::Chunks(self));
        }
        let Self {
            offer, blob, room, ..
        } = self;
        let program_bytes = offer.program_bytes();
        match offer.kind {
            Kind::Program => {
                let model = cx.store.admit(room, blob, program_bytes, offer.model)?;
                Ok(AwaitCalls::new(model).ready(cx))
            }
            Kind::Graph => {
                let key = cx.store.key().ok_or(Refused::NoKey)?;
                let graph = cx
                    .store
                    .admit_graph(room, blob, program_bytes, offer.model)?;
                Ok(AwaitRuns::new(graph, key).ready(cx))
            }
        }
    }

    /// Memory follows what has arrived, at most twice that and a chunk.
    fn append(&mut self, bytes: &[u8]) -> Result<(), Refused> {
        let total = self.offer.total;
        let no_memory = Refused::Memory { total };
        if self.blob.capacity() - self.blob.len() < bytes.len() {
            let left = usize::try_from(total - self.got()).map_err(|_| no_memory.clone())?;
            let more = left.min(self.blob.len().max(CHUNK));
            self.blob.try_reserve_exact(more).map_err(|_| no_memory)?;
        }
        self.blob.extend_from_slice(bytes);
        Ok(())
    }

    /// Refuses a program or graph as soon as it has come, before its weights.
    fn look_at_program(&mut self, cx: &Context) -> Result<(), Refused> {
        let Offer {
            kind,
            program,
            total,
            ..
        } = self.offer;
        let Some(encoded) = self
            .blob
            .get(..self.offer.program_bytes())
            .filter(|_| !self.program_seen)
        else {
            return Ok(());
        };
        let limits = cx.store.limits();
        let weights = match kind {
            Kind::Program => {
                let program = Program::decode(encoded).map_err(Refused::Program)?;
                limits.admit(&program).map_err(Refused::TooMuch)?;
                program.weight_bytes()
            }
            Kind::Graph => {
                let graph = Graph::decode(encoded).map_err(Refused::Graph)?;
                limits.admit_graph(&graph).map_err(Refused::TooMuch)?;
                graph.weight_bytes()
            }
        };
        let expected = u64::from(program).saturating_add(weights);
        if expected != total {
            let what = "bytes of the upload";
            let got = total;
            return Err(Refused::Program(DecodeError::Inconsistent {
                what,
                expected,
                got,
            }));
        }
        self.program_seen = true;
        Ok(())
    }
}

impl AwaitCalls {
    fn new(model: Arc<Model>) -> Self {
        Self { model }
    }

    /// Words of the largest request.
    pub(super) fn largest(&self) -> usize {
        self.model.program().largest_request()
    }

    fn ready(self, cx: &mut Context) -> State {
        cx.reply(Reply::Ready {
            model: self.model.digest(),
        });
        State::Calls(self)
    }

    fn call(&self, cx: &mut Context, call: u64, round: u32, words: Words) -> Result<(), Refused> {
        let program = self.model.program();
        let (_, steps) = self.round(round)?;
        let (expected, got) = (program.request_words(steps), words.len());
        if got != expected {
            return Err(BackendError::Words {
                round,
                expected,
                got,
            }
            .into());
        }
        if round == 0 {
            cx.takes_new_work()?;
        }
        cx.has_room()?;
        let model = Arc::clone(&self.model);
        cx.outbox.push_back(Pending::Call {
            model,
            call,
            round,
            words,
        });
        Ok(())
    }

    fn deal(
        &self,
        cx: &mut Context,
        call: u64,
        round: u32,
        ticket: u64,
        seed: Seed,
    ) -> Result<(), Refused> {
        let (index, steps) = self.round(round)?;
        let program = self.model.program();
        if program.held() == Held::Floats {
            return Err(Refused::FloatPads);
        }
        // Pads are words: a program whose requests are clear has none.
        let (expected, got) = (program.request_words(steps), steps.uploads.iter().sum());
        if got != expected {
            return Err(BackendError::Words {
                round,
                expected,
                got,
            }
            .into());
        }
        let first = program.first_upload(index).unwrap_or(0);
        let pads = Box::new(Pads::new(seed, ticket, first, &steps.uploads)?);
        if round == 0 {
            cx.takes_new_work()?;
        }
        cx.has_room()?;
        let model = Arc::clone(&self.model);
        cx.outbox.push_back(Pending::Deal {
            model,
            call,
            round,
            pads,
        });
        Ok(())
    }

    /// A round of the program, and which it is.
    fn round(&self, round: u32) -> Result<(usize, &Round), Refused> {
        let rounds = self.model.program().rounds();
        let index = usize::try_from(round).unwrap_or(usize::MAX);
        let none = BackendError::Round {
            round,
            rounds: rounds.len(),
        };
        Ok((index, rounds.get(index).ok_or(none)?))
    }
}

impl Drop for AwaitCalls {
    /// Tells how calls came together up to here.
    fn drop(&mut self) {
        let batches = self.model.batches();
        if batches.calls > 0 {
            tracing::info!(
                model = %self.model.digest(),
                calls = batches.calls,
                batches = batches.batches,
                largest = batches.largest,
                "calls to the model, by all connections so far"
            );
        }
    }
}
