//! What shows others that a worker lied, and who judges it.

use larvatus_graph::{Graph, Mismatch, Model, UnitId};
use larvatus_proto::commit::{LEAF, LeafId, OpenError, Opening};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::MAX_OPENING;
use larvatus_proto::receipt::{CLAIM, Claim, PublicKey, ReceiptError, Salted, Statement};
use larvatus_proto::wire::{DecodeError, Reader, Writer};

use super::{Ports, port_bytes};

/// First bytes of a file of evidence: its kind and version.
const MAGIC: u32 = u32::from_le_bytes(*b"LRE1");

/// Most bytes of an input or output in evidence.
const MOST: usize = 1 << 30;

/// What is said to be wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A unit does not recompute.
    Unit(UnitId),
    /// The trace does not begin with the input.
    Input { salt: [u8; 32], input: Vec<u8> },
    /// The trace does not end with the output.
    Output { salt: [u8; 32], output: Vec<u8> },
}

/// A worker's signed claim, and the opening of what is wrong with it.
///
/// It names the graph by its digest; whoever judges has the graph from elsewhere. It holds the opened leaves in clear: parts
/// of what the user's input became, for a unit of the first layers parts of the input itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Evidence {
    claim: Claim,
    fault: Fault,
    /// An encoded opening; its form follows from the graph.
    opening: Vec<u8>,
}

/// Why evidence shows no lie.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum NotShown {
    /// The worker did not sign this.
    Claim(ReceiptError),
    /// It is about another graph.
    OtherGraph {
        /// The graph of the claim.
        expected: Digest,
        /// The graph at hand.
        got: Digest,
    },
    /// The graph has no such unit.
    NoUnit {
        /// The unit named.
        unit: u32,
        /// How many there are.
        units: usize,
    },
    /// The input or output is not the one that was committed to.
    Content {
        /// Which.
        what: &'static str,
    },
    /// What should be an opening is none of this graph's traces.
    Malformed(DecodeError),
    /// The opening is not one of the claim's trace.
    Opening(OpenError),
    /// The unit recomputes: the worker did this right.
    Recomputes {
        /// Which.
        unit: u32,
    },
    /// The unit cannot be recomputed here.
    Cannot {
        /// Why.
        mismatch: Mismatch,
    },
    /// What was committed to is what it should be.
    Same {
        /// Input or output.
        what: &'static str,
    },
}

impl std::fmt::Display for NotShown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Claim(why) => write!(f, "the claim is not this worker's: {why}"),
            Self::OtherGraph { expected, got } => {
                write!(f, "the claim is about graph {expected}, this is {got}")
            }
            Self::NoUnit { unit, units } => write!(f, "there is no unit {unit} of {units}"),
            Self::Content { what } => write!(f, "the {what} is not the one committed to"),
            Self::Malformed(why) => write!(f, "the opening is none of this graph's: {why}"),
            Self::Opening(why) => write!(f, "the opening is not of the claim's trace: {why}"),
            Self::Recomputes { unit } => write!(f, "unit {unit} recomputes: it was done right"),
            Self::Cannot { mismatch } => write!(f, "it cannot be recomputed here: {mismatch}"),
            Self::Same { what } => write!(f, "the trace holds the right {what}"),
        }
    }
}

impl std::error::Error for NotShown {}

/// A lie that is shown. Made by [`Evidence::judge`] only.
#[derive(Clone, Debug, PartialEq)]
pub struct Shown {
    statement: Statement,
    what: String,
    unit: Option<(UnitId, Mismatch)>,
    disclosed: Vec<Disclosed>,
}

impl Shown {
    /// What the worker has signed.
    pub fn statement(&self) -> &Statement {
        &self.statement
    }

    /// What is wrong, as a sentence.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The unit that does not recompute, if it is one.
    pub fn unit(&self) -> Option<&(UnitId, Mismatch)> {
        self.unit.as_ref()
    }

    /// What the evidence tells about the user's data.
    pub fn disclosed(&self) -> &[Disclosed] {
        &self.disclosed
    }
}

/// Bytes of one tensor that evidence holds in clear.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disclosed {
    /// The tensor's place in the trace.
    pub tensor: u32,
    /// What it is, for people.
    pub name: String,
    /// Bytes of it that are disclosed.
    pub bytes: u64,
    /// Bytes that it has.
    pub of: u64,
}

impl Evidence {
    pub(super) fn new(claim: Claim, fault: Fault, opening: &Opening) -> Self {
        let opening = opening.encode();
        Self {
            claim,
            fault,
            opening,
        }
    }

    /// What the worker has signed, if the signature holds.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The digest of the graph that is needed to judge it.
    pub fn model(&self) -> Digest {
        self.claim.unverified().model
    }

    /// The one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(MAGIC).bytes(&self.claim.encode());
        match &self.fault {
            Fault::Unit(unit) => {
                out.u8(1).u32(unit.0);
            }
            Fault::Input {
                salt,
                input: content,
            } => {
                out.u8(2).bytes(salt).count(content.len()).bytes(content);
            }
            Fault::Output {
                salt,
                output: content,
            } => {
                out.u8(3).bytes(salt).count(content.len()).bytes(content);
            }
        }
        out.count(self.opening.len()).bytes(&self.opening);
        out.into_bytes()
    }

    /// Reads a file of evidence; nothing in it is believed. Nothing is allocated beyond the size of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are not the one encoding of evidence.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        match reader.u32()? {
            MAGIC => {}
            got => return Err(DecodeError::Magic { got }),
        }
        let claim = Claim::decode(reader.take(CLAIM)?)?;
        let content = |reader: &mut Reader<'_>| {
            let salt = reader.digest()?.0;
            let count = reader.count("bytes of an input or output", MOST)?;
            Ok::<_, DecodeError>((salt, reader.take(count)?.to_vec()))
        };
        let fault = match reader.u8()? {
            1 => Fault::Unit(UnitId(reader.u32()?)),
            2 => {
                let (salt, input) = content(&mut reader)?;
                Fault::Input { salt, input }
            }
            3 => {
                let (salt, output) = content(&mut reader)?;
                Fault::Output { salt, output }
            }
            tag => {
                let (what, tag) = ("fault", tag.into());
                return Err(DecodeError::UnknownTag { what, tag });
            }
        };
        let count = reader.count("bytes of an opening", MAX_OPENING)?;
        let opening = reader.take(count)?.to_vec();
        reader.finish()?;
        Ok(Self {
            claim,
            fault,
            opening,
        })
    }

    /// Judges whether the worker with this key lied: it signed the claim, and what is opened under its own root is not what
    /// the graph makes of the rest.
    ///
    /// No secret is needed, and nothing that an accuser could have made up counts: what is not signed by `worker` leads to its
    /// signature through collision resistant digests. Whose key `worker` is must be known from elsewhere.
    ///
    /// # Errors
    /// [`NotShown`], with the first thing that is missing.
    pub fn judge(&self, worker: PublicKey, model: &Model) -> Result<Shown, NotShown> {
        let statement = self.claim.of(worker).map_err(NotShown::Claim)?;
        let (expected, got) = (statement.model, model.digest());
        if got != expected {
            return Err(NotShown::OtherGraph { expected, got });
        }
        let graph = model.graph();
        let (what, unit, disclosed) = match &self.fault {
            Fault::Unit(unit) => self.unit(*unit, statement, model)?,
            Fault::Input { salt, input } => {
                if Salted::input(salt, input) != statement.input
                    || input.len() != port_bytes(graph).0
                {
                    return Err(NotShown::Content { what: "input" });
                }
                let ports = Ports::new(graph, input, &[]);
                self.port("input", statement, &ports)?
            }
            Fault::Output { salt, output } => {
                if Salted::output(salt, output) != statement.output
                    || output.len() != port_bytes(graph).1
                {
                    return Err(NotShown::Content { what: "output" });
                }
                let ports = Ports::new(graph, &[], output);
                self.port("output", statement, &ports)?
            }
        };
        let statement = statement.clone();
        Ok(Shown {
            statement,
            what,
            unit,
            disclosed,
        })
    }

    fn unit(&self, unit: UnitId, statement: &Statement, model: &Model) -> Result<Parts, NotShown> {
        let graph = model.graph();
        let units = graph.unit_count();
        if unit.index() >= units {
            let unit = unit.0;
            return Err(NotShown::NoUnit { unit, units });
        }
        let needs = graph.needs(unit);
        let layout = graph.layout();
        let opening = Opening::decode(layout, needs.len(), &[], &self.opening);
        let opening = opening.map_err(NotShown::Malformed)?;
        let opened = opening
            .verify(statement.trace, layout, &needs, &[])
            .map_err(NotShown::Opening)?;
        let mismatch = match model.replay(unit, &opened) {
            Ok(()) => return Err(NotShown::Recomputes { unit: unit.0 }),
            Err(mismatch) if mismatch.is_lie() => mismatch,
            Err(mismatch) => return Err(NotShown::Cannot { mismatch }),
        };
        let what = format!("{} does not recompute: {mismatch}", graph.describe(unit));
        Ok((what, Some((unit, mismatch)), disclosed(graph, &needs)))
    }

    /// An own leaf that the trace has otherwise.
    fn port(
        &self,
        what: &'static str,
        statement: &Statement,
        ports: &Ports<'_>,
    ) -> Result<Parts, NotShown> {
        let layout = ports.graph.layout();
        let mut reader = Reader::new(&self.opening);
        let place = |reader: &mut Reader<'_>| {
            reader.count("leaves of an opening", 1)?;
            let (tensor, leaf) = (reader.u32()?, reader.u32()?);
            Ok(LeafId { tensor, leaf })
        };
        let leaf = place(&mut reader).map_err(NotShown::Malformed)?;
        let opening = Opening::decode(layout, 1, &[], &self.opening);
        let opening = opening.map_err(NotShown::Malformed)?;
        let opened = opening
            .verify(statement.trace, layout, &[leaf], &[])
            .map_err(NotShown::Opening)?;
        let own = ports.leaves().contains(&leaf).then(|| ports.leaf(leaf));
        let wanted = ports.is_input(leaf) == (what == "input");
        match own.flatten().filter(|_| wanted) {
            Some(own) if opened.leaf(leaf) != Some(own) => {}
            _ => return Err(NotShown::Same { what }),
        }
        let mut of = ports.leaves();
        of.retain(|leaf| ports.is_input(*leaf) == (what == "input"));
        let sentence =
            format!("the trace holds another {what} than the one that was signed (leaf {leaf})");
        Ok((sentence, None, disclosed(ports.graph, &of)))
    }
}

type Parts = (String, Option<(UnitId, Mismatch)>, Vec<Disclosed>);

/// What leaves tell, tensor by tensor.
fn disclosed(graph: &Graph, leaves: &[LeafId]) -> Vec<Disclosed> {
    let layout = graph.layout();
    let mut all: Vec<Disclosed> = Vec::new();
    for leaf in leaves {
        let bytes = layout.bytes_of(*leaf).unwrap_or(LEAF) as u64;
        match all.last_mut() {
            Some(last) if last.tensor == leaf.tensor => last.bytes += bytes,
            _ => all.push(Disclosed {
                tensor: leaf.tensor,
                name: graph.describe_place(leaf.tensor),
                bytes,
                of: layout
                    .lengths()
                    .get(leaf.tensor as usize)
                    .copied()
                    .unwrap_or(0),
            }),
        }
    }
    all
}
