//! A worker runs a whole graph in clear, signs what it claims, and is audited later.
//!
//! The order of things, each a type:
//!
//! 1. [`Remote`] asks for a run. The worker answers with the output, the root of its trace and its signature of both: from
//!    here on it is held to every tensor that it computed. The output may be used; what there is, is a [`Provisional`]
//!    record.
//! 2. [`Provisional::draw`] fixes, from randomness that is drawn only now, which units will be looked at. The draw belongs to
//!    the record for good: who is asked twice is asked for the same.
//! 3. [`Audit`] says which leaves to ask for, holds what comes against the root, recomputes each drawn unit and compares with
//!    `==`. The input and the output are never sampled: the trusted side hashes its own into the tree, and what was
//!    committed to must begin and end with them.
//! 4. An [`Outcome`]: [`Settled`], [`Rejected`] or [`Unopened`], each with a receipt. Nothing else makes one.
//!
//! **Promised**: a run with a wrong unit is settled with probability at most 1 − α, where α is the chance that the draw has
//! that unit ([`Terms::alpha`]); k such runs all with at most (1 − α)ᵏ. **Not promised**: the worker sees the input,
//! and a wrong output may be acted on before the audit. A worker that sees the draw hit its lie can refuse to open: then the
//! record is not settled, and there is no evidence.
//!
//! [`Evidence`] convinces others: the worker's signed claim, and the opening of the one unit that does not recompute. Whoever
//! has the worker's key and the graph judges it ([`Evidence::judge`]) without secrets. It can be sealed to one judge
//! ([`Evidence::seal`]), so that nobody else learns what it discloses.
//!
//! Nothing here is for the modes that hide inputs: a worker's answers there are checked before they are used, and an
//! opening of what a dealer has dealt would tell the dealer the input.
//!
//! Source: VeriSplit (arXiv 2406.00586), Fig. 5 and Theorem 7.3, with leaves of fixed size, exact comparison and signatures.

mod auditor;
mod evidence;
mod ledger;
mod record;
mod remote;
mod sealed;

use std::fmt;

use larvatus_graph::{Graph, Model};
use larvatus_proto::commit::{CommitError, LEAF, LeafId, Opening};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{MAX_OPENED, MAX_OPENING};
use larvatus_proto::wire::Writer;

pub use auditor::{Audit, AuditError, Lie, Outcome, Rejected, Settled, Step, Unopened};
pub use evidence::{Disclosed, Evidence, NotShown, Shown};
pub use ledger::{
    Entry, GraphFileError, Ledger, LedgerError, State, evidence_name, graph_name, read_graph,
    receipt_name,
};
pub use record::{Provisional, RecordError, Redrawn};
pub use remote::{Done, Remote, RemoteSettings};
pub use sealed::{CannotOpen, CannotSeal, JudgeKey, JudgeSecret, NotAJudge, is_sealed};

/// What part of the units of a run an audit looks at: above 0, at most 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fraction(f64);

impl Fraction {
    /// A part; `None` where it is not above 0 and at most 1.
    pub fn new(part: f64) -> Option<Self> {
        (part > 0.0 && part <= 1.0).then_some(Self(part))
    }

    /// The part.
    pub fn part(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Fraction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", 100.0 * self.0)
    }
}

/// Why a graph cannot be audited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TermsError {
    /// A unit needs more than one opening holds.
    #[error("unit {unit} needs {bytes} bytes, an opening holds {MAX_OPENING}")]
    UnitTooLarge {
        /// Which.
        unit: u32,
        /// Bytes that it needs.
        bytes: usize,
    },
    /// Input and output have more leaves than one opening knows.
    #[error("input and output have {leaves} leaves, an opening knows {MAX_OPENED}")]
    PortsTooLarge {
        /// How many leaves.
        leaves: usize,
    },
    /// A unit needs what the trace does not have.
    #[error("unit {unit}: {source}")]
    Leaves {
        /// Which.
        unit: u32,
        /// What is missing.
        source: CommitError,
    },
}

/// A graph whose runs are audited, and how much of them.
#[derive(Clone, Debug)]
pub struct Terms {
    model: Model,
    fraction: Fraction,
    plan: Digest,
}

impl Terms {
    /// Terms for a graph.
    ///
    /// # Errors
    /// [`TermsError`] where a unit cannot be opened at once.
    pub fn new(model: Model, fraction: Fraction) -> Result<Self, TermsError> {
        let graph = model.graph();
        for unit in graph.units() {
            let leaves = graph.needs(unit);
            let bytes = Opening::encoded_bytes(graph.layout(), &leaves, &[]);
            let bytes = bytes.map_err(|source| TermsError::Leaves {
                unit: unit.0,
                source,
            })?;
            if bytes > MAX_OPENING || leaves.len() > MAX_OPENED {
                let unit = unit.0;
                return Err(TermsError::UnitTooLarge { unit, bytes });
            }
        }
        let leaves = Ports::new(graph, &[], &[]).leaves().len();
        if leaves > MAX_OPENED {
            return Err(TermsError::PortsTooLarge { leaves });
        }
        let mut plan = Writer::default();
        plan.bytes(b"whole-audited v1")
            .bytes(&model.digest().0)
            .u64(fraction.0.to_bits());
        let plan = Digest::of_plan(&plan.into_bytes());
        Ok(Self {
            model,
            fraction,
            plan,
        })
    }

    /// The graph with its weights.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// The part of its units that is looked at.
    pub fn fraction(&self) -> Fraction {
        self.fraction
    }

    /// The digest of all this.
    pub fn plan(&self) -> Digest {
        self.plan
    }

    /// The least chance that an audit looks at a given unit.
    pub fn alpha(&self) -> f64 {
        self.model.graph().alpha(self.fraction.0)
    }

    /// The greatest chance that `runs` runs with a wrong unit each are all settled: (1 − α)ᵏ.
    pub fn undetected(&self, runs: u64) -> f64 {
        (1.0 - self.alpha()).powf(runs as f64)
    }

    /// The least number of runs with a wrong unit each that are all settled with a chance of at most `chance`.
    pub fn runs_until(&self, chance: f64) -> u64 {
        (chance.ln() / (1.0 - self.alpha()).ln()).ceil().max(1.0) as u64
    }

    /// What is guaranteed, and what is not.
    pub fn sentence(&self) -> String {
        format!(
            "the worker sees the input; a wrong output may be acted on before the audit; {} of all units are audited, so a run \
             with a wrong unit is settled with probability at most {:.4}, {} of them all at most 1e-6; a worker that does not \
             open is never settled",
            self.fraction,
            self.undetected(1),
            self.runs_until(1e-6)
        )
    }
}

/// The leaves whose bytes the trusted side has itself: those of its input and of the output that it was given.
struct Ports<'a> {
    graph: &'a Graph,
    /// Packed one after the other.
    input: &'a [u8],
    output: &'a [u8],
}

impl<'a> Ports<'a> {
    fn new(graph: &'a Graph, input: &'a [u8], output: &'a [u8]) -> Self {
        Self {
            graph,
            input,
            output,
        }
    }

    /// The first tensor of the outputs.
    fn first_output(&self) -> usize {
        self.graph.layout().lengths().len() - self.graph.outputs().len()
    }

    /// All of them, in order.
    fn leaves(&self) -> Vec<LeafId> {
        let layout = self.graph.layout();
        let inputs = self.graph.inputs().len();
        let tensors = layout.lengths().iter().zip(0_u32..).enumerate();
        let ports = tensors.filter(|(ix, _)| *ix < inputs || *ix >= self.first_output());
        ports
            .flat_map(|(_, (length, tensor))| {
                layout.covering(tensor, 0..*length).unwrap_or_default()
            })
            .collect()
    }

    /// Bytes of one, if it is one of them.
    fn leaf(&self, leaf: LeafId) -> Option<&'a [u8]> {
        let lengths = self.graph.layout().lengths();
        let tensor = leaf.tensor as usize;
        let (first, bytes) = if tensor < self.graph.inputs().len() {
            (0, self.input)
        } else {
            (self.first_output(), self.output)
        };
        let before = lengths.get(first..tensor)?.iter().sum::<u64>();
        let from = usize::try_from(before).ok()? + leaf.leaf as usize * LEAF;
        let length = self.graph.layout().bytes_of(leaf).ok()?;
        bytes.get(from..from.checked_add(length)?)
    }

    /// Whether a tensor is an input.
    fn is_input(&self, leaf: LeafId) -> bool {
        (leaf.tensor as usize) < self.graph.inputs().len()
    }
}

/// Bytes of all inputs, and of all outputs.
fn port_bytes(graph: &Graph) -> (usize, usize) {
    let lengths = graph.layout().lengths();
    let sum = |lengths: &[u64]| usize::try_from(lengths.iter().sum::<u64>()).unwrap_or(usize::MAX);
    let last = lengths.len() - graph.outputs().len();
    (
        sum(lengths.get(..graph.inputs().len()).unwrap_or_default()),
        sum(lengths.get(last..).unwrap_or_default()),
    )
}
