//! Workers that run whole graphs and lie: engines that compute something else, and services that say something else.

use larvatus_graph::run::Changing;
use larvatus_graph::trace::{Recorded, Recorder};
use larvatus_graph::{Model, Prepared, RunError, TensorId, TensorSpec, Trace, Values};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, FrameLimits, Reply, Request, pack, unpack};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::WorkerModel;
use larvatus_proto::receipt::{CLAIM, Claim, Salted, Signer, Statement};
use larvatus_worker::{Backend, BackendError, Loaded, LoadedGraph, Service};

use super::{EXCUSE, NO_MODEL};
use crate::whole::{TRUSTED, WORKER};

/// What an engine does wrong in every run.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// Nothing.
    Nothing,
    /// Adds something to one element of what a node makes, and goes on from there.
    Made {
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// Commits to another element of a tensor than it goes on with.
    Committed {
        /// The tensor's place in the trace.
        place: u32,
        /// The element.
        element: usize,
    },
}

/// An engine that computes whole graphs wrong.
#[derive(Clone, Copy, Debug)]
pub struct Crooked(pub Wrong);

struct CrookedGraph {
    prepared: Prepared,
    wrong: Wrong,
}

impl Backend for Crooked {
    fn name(&self) -> String {
        "crooked".into()
    }

    fn load(&self, _model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError> {
        Err(BackendError::Panicked)
    }

    fn load_graph(&self, model: &Model) -> Result<Box<dyn LoadedGraph>, BackendError> {
        let prepared = Prepared::new(model);
        let prepared = prepared.map_err(|source| BackendError::Graph { source })?;
        let wrong = self.0;
        Ok(Box::new(CrookedGraph { prepared, wrong }))
    }
}

/// Shows another element of one tensor.
struct Shown {
    recorder: Recorder,
    wrong: Wrong,
}

impl Trace for Shown {
    fn tensor(&mut self, place: u32, spec: &TensorSpec, values: &Values) {
        match (self.wrong, values.floats()) {
            (Wrong::Committed { place: at, element }, Some(floats)) if at == place => {
                let mut floats = floats.to_vec();
                floats[element] += 0.25;
                self.recorder.tensor(place, spec, &floats.into());
            }
            _ => self.recorder.tensor(place, spec, values),
        }
    }
}

impl LoadedGraph for CrookedGraph {
    fn run(&self, input: &[u8]) -> Result<Recorded, BackendError> {
        let graph = self.prepared.graph();
        let inputs = graph.unpack_inputs(input).ok_or(BackendError::Run {
            source: RunError::Input { input: 0 },
        })?;
        let mut shown = Shown {
            recorder: Recorder::new(graph),
            wrong: self.wrong,
        };
        let mut alter = |tensor: TensorId, changing: Changing<'_>| {
            if let (
                Wrong::Made {
                    tensor: at,
                    element,
                },
                Changing::F32(values),
            ) = (self.wrong, changing)
                && at == tensor.0
            {
                values[element] += 0.25;
            }
        };
        let ran = self.prepared.run_altered(inputs, &mut alter, &mut shown);
        ran.map_err(|source| BackendError::Run { source })?;
        let recorded = shown.recorder.finish();
        recorded.map_err(|source| BackendError::Trace { source })
    }

    fn bytes(&self) -> u64 {
        self.prepared.bytes()
    }
}

/// What a service says wrong; the engine below it is honest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WholeLie {
    /// Gives another output than it computed, and signs it.
    OutputOnly,
    /// The same, and opens once only.
    OutputThenSilence,
    /// Gives another output than it signed.
    OutputUnsigned,
    /// Gives the output and the trace of its first run whatever the input.
    Stale,
    /// Names another model in what it signs.
    SignsAnotherModel,
    /// Names another input in what it signs.
    SignsAnotherInput,
    /// Names another number in what it signs.
    SignsAnotherCounter,
    /// Sends a claim whose signature is zeros.
    DoesNotSign,
    /// Signs with another key than it named.
    SignsWithAnotherKey,
    /// Never answers a run.
    NeverRuns,
    /// Says that it does not open.
    RefusesToOpen,
    /// Never opens.
    NeverOpens,
    /// Opens with one byte changed.
    OpensOtherBytes,
    /// Opens all leaves but the last that is asked for.
    OpensFewer,
    /// Opens the leaf behind each that is asked for.
    OpensOthers,
    /// Opens other leaves than it has bytes for.
    OpensRenamed,
    /// Opens what is no opening.
    OpensGarbage,
    /// Opens with bytes cut off.
    OpensTruncated,
    /// Answers a request for an opening with an answer to a call.
    AnswersOtherwise,
    /// Offers to sign another graph than the one that it was offered.
    SignsForAnother,
}

/// A worker that lies about whole runs.
pub struct WholeLiar {
    honest: Service,
    lie: WholeLie,
    first: Option<(Statement, Vec<u8>)>,
    opened: bool,
}

impl WholeLiar {
    /// A liar over an honest service, whose key is that of the tests.
    pub fn new(honest: Service, lie: WholeLie) -> Self {
        Self {
            honest,
            lie,
            first: None,
            opened: false,
        }
    }

    fn ran(&mut self, call: u64, claim: &Claim, output: Vec<u32>) -> Option<Reply> {
        let mut statement = claim.unverified().clone();
        let bytes = unpack(&output, 4 * output.len()).expect("whole words");
        // The tests' salt of this counter.
        let salt = crate::chance::Chance::new(statement.counter).bytes();
        let mut said = bytes;
        let (mut signer, mut raw) = (Signer::new(WORKER), None);
        match self.lie {
            WholeLie::OutputOnly | WholeLie::OutputThenSilence => {
                said[0] ^= 1;
                statement.output = Salted::output(&salt, &said);
            }
            WholeLie::OutputUnsigned => said[0] ^= 1,
            WholeLie::Stale => match &self.first {
                None => self.first = Some((statement.clone(), said.clone())),
                Some((first, output)) => {
                    statement.trace = first.trace;
                    said.clone_from(output);
                    statement.output = Salted::output(&salt, &said);
                }
            },
            WholeLie::SignsAnotherModel => statement.model = NO_MODEL,
            WholeLie::SignsAnotherInput => statement.input = Salted::input(&salt, b"another"),
            WholeLie::SignsAnotherCounter => statement.counter += 1,
            WholeLie::DoesNotSign => {
                let mut bytes = claim.encode();
                bytes[CLAIM - 64..].fill(0);
                raw = Claim::decode(&bytes).ok();
            }
            WholeLie::SignsWithAnotherKey => {
                signer = Signer::new([9; 32]);
                statement.worker = signer.public();
            }
            WholeLie::NeverRuns => return None,
            _ => raw = Some(claim.clone()),
        }
        let claim = raw.unwrap_or_else(|| statement.claim(&signer).expect("its own"));
        Some(Reply::Ran {
            call,
            claim: Box::new(claim),
            output: pack(&said).into(),
        })
    }

    fn opened(&mut self, call: u64, mut bytes: Vec<u8>) -> Option<Reply> {
        match self.lie {
            WholeLie::RefusesToOpen => {
                return Some(Reply::Failed {
                    call: Some(call),
                    message: EXCUSE.into(),
                });
            }
            WholeLie::NeverOpens => return None,
            WholeLie::OutputThenSilence if std::mem::replace(&mut self.opened, true) => {
                return None;
            }
            WholeLie::OpensOtherBytes => {
                // Behind the table, within what is opened.
                let at = bytes.len() - 40;
                bytes[at] ^= 1;
            }
            WholeLie::OpensRenamed => bytes[4] ^= 1,
            WholeLie::OpensGarbage => bytes = vec![0xff; bytes.len()],
            WholeLie::OpensTruncated => bytes.truncate(bytes.len() / 2),
            WholeLie::AnswersOtherwise => {
                return Some(Reply::Answer {
                    call,
                    words: vec![].into(),
                });
            }
            _ => {}
        }
        Some(Reply::Opened { call, bytes })
    }
}

impl Machine for WholeLiar {
    fn limits(&self) -> FrameLimits {
        self.honest.limits()
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        let fewer = self.lie == WholeLie::OpensFewer;
        if (fewer || self.lie == WholeLie::OpensOthers)
            && let Ok(Request::Open {
                call, mut summons, ..
            }) = Request::from_frame(frame.clone())
        {
            if fewer {
                summons.asked.pop();
            } else {
                for leaf in &mut summons.asked {
                    leaf.tensor += 1;
                }
            }
            let signature = summons.sign(&Signer::new(TRUSTED));
            let other = Request::Open {
                call,
                summons,
                signature,
            };
            return self.honest.receive(other.into_frame(), now);
        }
        self.honest.receive(frame, now);
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        while let Some(frame) = self.honest.transmit(now) {
            let reply = match Reply::from_frame(frame).expect("the honest worker's own") {
                Reply::Ran {
                    call,
                    claim,
                    output,
                } => self.ran(call, &claim, output.into_vec()),
                Reply::Opened { call, bytes } => self.opened(call, bytes),
                Reply::Signs { key, .. } if self.lie == WholeLie::SignsForAnother => {
                    let model: Digest = NO_MODEL;
                    Some(Reply::Signs { model, key })
                }
                other => Some(other),
            };
            if let Some(reply) = reply {
                return Some(reply.into_frame());
            }
        }
        None
    }

    fn deadline(&self) -> Option<Now> {
        self.honest.deadline()
    }

    fn tick(&mut self, now: Now) {
        self.honest.tick(now);
    }

    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.honest.disconnected(why, now);
    }

    fn finished(&self) -> bool {
        self.honest.finished()
    }
}
