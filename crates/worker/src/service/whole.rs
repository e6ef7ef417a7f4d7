//! Whole graphs: run, commit to everything, sign, and open parts of it later.
//!
//! A run's input is in clear. Its trace (every tensor that the graph commits to) is kept for who had it made, among the
//! last ones of all peers, as long as [`Limits::traces`](crate::Limits::traces) and
//! [`Limits::trace_bytes`](crate::Limits::trace_bytes) leave room.

use std::sync::Arc;

use larvatus_proto::commit::Opening;
use larvatus_proto::frame::{MAX_OPENING, Reply, Run, pack, unpack};
use larvatus_proto::order::{Order, Summons};
use larvatus_proto::receipt::{PublicKey, SIGNATURE, Salted, Statement};
use larvatus_proto::words::Words;

use super::states::State;
use super::{Context, Pending, Refused};
use crate::backend::BackendError;
use crate::store::{HeldGraph, Store};
use crate::traces::Trace;

/// A graph is ready.
#[derive(Debug)]
pub(super) struct AwaitRuns {
    graph: Arc<HeldGraph>,
    key: PublicKey,
}

/// Something that is to be computed when its turn comes; it was found acceptable before.
#[derive(Debug)]
pub(super) enum Whole {
    Run {
        graph: Arc<HeldGraph>,
        call: u64,
        order: Order,
        salt: [u8; 32],
        input: Vec<u8>,
    },
    Open {
        trace: Arc<Trace>,
        call: u64,
        summons: Summons,
    },
}

impl AwaitRuns {
    pub(super) fn new(graph: Arc<HeldGraph>, key: PublicKey) -> Self {
        Self { graph, key }
    }

    /// Words of the largest request.
    pub(super) fn largest(&self) -> usize {
        self.graph.input_bytes().div_ceil(4)
    }

    pub(super) fn ready(self, cx: &mut Context) -> State {
        cx.reply(Reply::Signs {
            model: self.graph.digest(),
            key: self.key,
        });
        State::Runs(self)
    }

    pub(super) fn run(&self, cx: &mut Context, run: Run) -> Result<(), Refused> {
        let Run {
            call,
            plan,
            counter,
            salt,
            trusted,
            signature,
            input,
        } = run;
        let (expected, got) = (self.largest(), input.len());
        if got != expected {
            return Err(Refused::Input { expected, got });
        }
        let input = unpack(&input.into_vec(), self.graph.input_bytes());
        let input = input.map_err(Refused::NotARequest)?;
        let order = Order {
            model: self.graph.digest(),
            plan,
            counter,
            input: Salted::input(&salt, &input),
            trusted,
            worker: self.key,
        };
        order.verify(&signature).map_err(Refused::Order)?;
        cx.takes_new_work()?;
        cx.has_room()?;
        cx.outbox.push_back(Pending::Whole(Box::new(Whole::Run {
            graph: Arc::clone(&self.graph),
            call,
            order,
            salt,
            input,
        })));
        Ok(())
    }

    pub(super) fn open(
        &self,
        cx: &mut Context,
        call: u64,
        summons: Summons,
        signature: &[u8; SIGNATURE],
    ) -> Result<(), Refused> {
        let root = summons.trace;
        // Whoever asks for another's trace learns as much as who asks for one that is gone.
        let made_for = |trace: &Trace| summons.verify(trace.trusted(), signature).is_ok();
        let trace = cx.store.traces().find(root, made_for);
        let trace = trace.ok_or(Refused::NoTrace { trace: root })?;
        let bytes = Opening::encoded_bytes(trace.layout(), &summons.asked, &summons.known);
        let got = bytes.map_err(Refused::Summons)?;
        if got > MAX_OPENING {
            return Err(Refused::Opening { got });
        }
        cx.has_room()?;
        cx.outbox.push_back(Pending::Whole(Box::new(Whole::Open {
            trace,
            call,
            summons,
        })));
        Ok(())
    }
}

impl Whole {
    /// Does it.
    pub(super) fn answer(self, store: &Store) -> Reply {
        let (call, reply) = match self {
            Self::Run {
                graph,
                call,
                order,
                salt,
                input,
            } => (call, run(store, &graph, call, order, &salt, &input)),
            Self::Open {
                trace,
                call,
                summons,
            } => {
                let opening = trace.open(&summons).map_err(Refused::Summons);
                let reply = opening.map(|opening| Reply::Opened {
                    call,
                    bytes: opening.encode(),
                });
                (call, reply)
            }
        };
        reply.unwrap_or_else(|why| {
            tracing::debug!(call, %why, "refused");
            Reply::Failed {
                call: Some(call),
                message: why.to_string(),
            }
        })
    }
}

fn run(
    store: &Store,
    graph: &HeldGraph,
    call: u64,
    order: Order,
    salt: &[u8; 32],
    input: &[u8],
) -> Result<Reply, Refused> {
    let signer = store.signer().ok_or(Refused::NoKey)?;
    let recorded = store.run(graph, input)?;
    let outputs = graph.graph().outputs().iter();
    let outputs =
        outputs.map(|output| recorded.tensor(graph.graph().place(output.tensor)).cloned());
    let outputs: Option<Vec<_>> = outputs.collect();
    let output = outputs.and_then(|outputs| graph.graph().pack_outputs(&outputs));
    let output = output.ok_or(BackendError::Panicked)?;
    let Order {
        model,
        plan,
        counter,
        input,
        trusted,
        worker,
    } = order;
    let statement = Statement {
        model,
        plan,
        counter,
        input,
        output: Salted::output(salt, &output),
        trace: recorded.root(),
        trusted,
        worker,
    };
    let claim = statement.claim(signer).map_err(Refused::Order)?;
    let output = Words::from(pack(&output));
    store.traces().keep(Trace::new(recorded, trusted));
    Ok(Reply::Ran {
        call,
        claim: Box::new(claim),
        output,
    })
}
