//! The audit of one record: what to ask for, and what follows from what comes.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use larvatus_graph::{Mismatch, UnitId};
use larvatus_proto::commit::{LeafId, OpenError, Opened, Opening, Root};
use larvatus_proto::receipt::{Receipt, ReceiptError, Signer, Verdict};
use larvatus_proto::wire::DecodeError;

use super::evidence::{Evidence, Fault};
use super::{Ports, Provisional, Terms};
use crate::error::{WorkerFailed, WorkerMisbehaved};

/// Bytes of leaves that are asked for at once, where one unit does not need more.
const AT_ONCE: usize = 16 << 20;

/// What a worker was caught at.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Lie {
    /// A unit of its trace does not recompute. There is evidence.
    Unit {
        /// Which.
        unit: UnitId,
        /// Where it differs.
        mismatch: Mismatch,
    },
    /// Its trace does not begin with the input. There is evidence.
    Input {
        /// The first leaf that differs.
        leaf: LeafId,
    },
    /// Its trace does not end with the output that it gave. There is evidence.
    Output {
        /// The first leaf that differs.
        leaf: LeafId,
    },
    /// What it sent is not the opening that was asked for. Only who asked knows that it came from the worker, so there is
    /// no evidence.
    Opening(OpenError),
    /// What it sent is no opening at all. There is no evidence.
    Malformed(DecodeError),
    /// It broke the protocol when it was asked. There is no evidence.
    Protocol(WorkerMisbehaved),
}

impl Lie {
    /// The kind of lie, as a stable word for reports.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Unit { .. } => "unit",
            Self::Input { .. } => "input",
            Self::Output { .. } => "output",
            Self::Opening(_) => "opening",
            Self::Malformed(_) => "malformed",
            Self::Protocol(what) => what.kind(),
        }
    }
}

impl fmt::Display for Lie {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unit { mismatch, .. } => write!(f, "the trace does not recompute: {mismatch}"),
            Self::Input { leaf } => {
                write!(f, "the trace does not begin with the input (leaf {leaf})")
            }
            Self::Output { leaf } => {
                write!(f, "the trace does not end with the output (leaf {leaf})")
            }
            Self::Opening(why) => write!(f, "what came is not the opening asked for: {why}"),
            Self::Malformed(why) => write!(f, "what came is no opening: {why}"),
            Self::Protocol(why) => why.fmt(f),
        }
    }
}

/// How an audit ended. Made by [`Audit`] only.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "whoever audits handles each")]
pub enum Outcome {
    /// Everything drawn was found right.
    Settled(Settled),
    /// The worker lied.
    Rejected(Box<Rejected>),
    /// The worker did not open.
    Unopened(Unopened),
}

/// A run of which everything drawn was found right.
#[derive(Debug)]
pub struct Settled {
    receipt: Receipt,
    units: usize,
}

impl Settled {
    /// The receipt, signed by both.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Units that were recomputed.
    pub fn units(&self) -> usize {
        self.units
    }
}

/// A run that the worker lied about.
#[derive(Debug)]
pub struct Rejected {
    receipt: Receipt,
    lie: Lie,
    evidence: Option<Evidence>,
}

impl Rejected {
    /// The receipt, signed by both.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// What was found.
    pub fn lie(&self) -> &Lie {
        &self.lie
    }

    /// What shows it to others, if anything does.
    pub fn evidence(&self) -> Option<&Evidence> {
        self.evidence.as_ref()
    }
}

/// A run that the worker did not open in time. It is never settled; its receipt stays pending.
#[derive(Debug)]
pub struct Unopened {
    receipt: Receipt,
    why: WorkerFailed,
}

impl Unopened {
    /// The receipt as it was before.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Why not.
    pub fn why(&self) -> &WorkerFailed {
        &self.why
    }
}

/// Why a record cannot be audited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// It is about another graph, or was to be audited otherwise.
    #[error("the record is about another graph, or was to be audited otherwise")]
    OtherTerms,
    /// Its units are not drawn.
    #[error("the units of this record are not drawn yet")]
    NotDrawn,
    /// A unit cannot be recomputed here; that says nothing about the worker.
    #[error("a unit cannot be recomputed here: {mismatch}")]
    Cannot {
        /// Why.
        mismatch: Mismatch,
    },
    /// It was made under another key.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
}

/// What follows from an answer.
#[derive(Debug)]
#[expect(clippy::exhaustive_enums, reason = "whoever audits handles each")]
pub enum Step {
    /// There is more to ask.
    Ask(Box<Audit>),
    /// It is over.
    Over(Box<Outcome>),
}

/// The audit of one record.
#[derive(Debug)]
pub struct Audit {
    record: Provisional,
    terms: Arc<Terms>,
    signer: Arc<Signer>,
    batches: VecDeque<Batch>,
    units: usize,
    seen: usize,
    /// Why the trace does not fit the own input and output, once that is so; then these are asked for.
    misfit: Option<OpenError>,
}

/// What is asked for at once.
#[derive(Debug, Default)]
struct Batch {
    units: Vec<UnitId>,
    asked: Vec<LeafId>,
    known: Vec<LeafId>,
}

impl Audit {
    /// The audit of a record whose units are drawn.
    ///
    /// # Errors
    /// [`AuditError`].
    pub fn new(
        record: Provisional,
        terms: Arc<Terms>,
        signer: Arc<Signer>,
    ) -> Result<Self, AuditError> {
        if record.model() != terms.model().digest() || record.statement().plan != terms.plan() {
            return Err(AuditError::OtherTerms);
        }
        if record.statement().trusted != signer.public() {
            return Err(ReceiptError::Key {
                party: larvatus_proto::receipt::Party::Trusted,
                expected: signer.public(),
                got: record.statement().trusted,
            }
            .into());
        }
        let seed = record.seed().ok_or(AuditError::NotDrawn)?;
        let graph = terms.model().graph();
        let drawn = graph.draw(seed, terms.fraction().part());
        let own = Ports::new(graph, record.input(), record.output()).leaves();
        let batches = batches(&terms, &drawn, &own);
        Ok(Self {
            units: drawn.len(),
            record,
            terms,
            signer,
            batches,
            seen: 0,
            misfit: None,
        })
    }

    /// The record.
    pub fn record(&self) -> &Provisional {
        &self.record
    }

    /// Units recomputed so far, and drawn.
    pub fn progress(&self) -> (usize, usize) {
        (self.seen, self.units)
    }

    /// What is to be opened next: the trace, leaves to ask for, leaves that are known.
    pub fn ask(&self) -> (Root, Vec<LeafId>, Vec<LeafId>) {
        let trace = self.record.statement().trace;
        let batch = self.batches.front();
        let leaves = |batch: &Batch| (trace, batch.asked.clone(), batch.known.clone());
        batch.map_or((trace, vec![], vec![]), leaves)
    }

    /// Takes what the worker sent for [`Audit::ask`].
    ///
    /// # Errors
    /// [`AuditError::Cannot`] where a unit cannot be recomputed here.
    pub fn answered(mut self, bytes: &[u8]) -> Result<Step, AuditError> {
        let batch = self.batches.pop_front().unwrap_or_default();
        let opened = match self.open(&batch, bytes) {
            Ok(opened) => opened,
            Err(Lie::Opening(why @ OpenError::Root { .. }))
                if self.misfit.is_none() && self.seen == 0 && !batch.known.is_empty() =>
            {
                // Either this is no opening, or the trace does not hold the own input and output. The worker
                // may show which.
                self.misfit = Some(why);
                self.batches = in_full(&self.terms, &batch.known);
                return Ok(Step::Ask(Box::new(self)));
            }
            Err(lie) => {
                let lie = match self.misfit.take() {
                    Some(first) => Lie::Opening(first),
                    None => lie,
                };
                return self.rejected(lie, None).map(Step::over);
            }
        };
        if self.misfit.is_some() {
            return self.compare(&batch, &opened);
        }
        let graph = self.terms.model().graph();
        for unit in &batch.units {
            let replayed = self.terms.model().replay(*unit, &opened);
            if let Err(mismatch) = replayed {
                if !mismatch.is_lie() {
                    return Err(AuditError::Cannot { mismatch });
                }
                let fault = Fault::Unit(*unit);
                let evidence = self.evidence(fault, &opened, &graph.needs(*unit));
                let unit = *unit;
                let lie = Lie::Unit { unit, mismatch };
                return self.rejected(lie, evidence).map(Step::over);
            }
            self.seen += 1;
        }
        if self.batches.is_empty() {
            let receipt = self.record.conclude(Verdict::Settled, &self.signer)?;
            let units = self.units;
            return Ok(Step::Over(Box::new(Outcome::Settled(Settled {
                receipt,
                units,
            }))));
        }
        Ok(Step::Ask(Box::new(self)))
    }

    /// Ends it: the worker did not open. Where what it opened before did not fit, that is a lie already.
    ///
    /// # Errors
    /// None that [`Audit::new`] has not excluded.
    pub fn failed(mut self, why: WorkerFailed) -> Result<Outcome, AuditError> {
        if let Some(first) = self.misfit.take() {
            return self.rejected(Lie::Opening(first), None);
        }
        let receipt = self.record.receipt().clone();
        Ok(Outcome::Unopened(Unopened { receipt, why }))
    }

    /// Ends it: the worker broke the protocol instead of opening.
    ///
    /// # Errors
    /// None that [`Audit::new`] has not excluded.
    pub fn misbehaved(self, what: WorkerMisbehaved) -> Result<Outcome, AuditError> {
        self.rejected(Lie::Protocol(what), None)
    }

    fn ports(&self) -> Ports<'_> {
        let graph = self.terms.model().graph();
        Ports::new(graph, self.record.input(), self.record.output())
    }

    fn open(&self, batch: &Batch, bytes: &[u8]) -> Result<Opened, Lie> {
        let layout = self.terms.model().graph().layout();
        let ports = self.ports();
        let own = batch.known.iter();
        let own = own.filter_map(|leaf| Some((*leaf, ports.leaf(*leaf)?)));
        let own: Vec<(LeafId, &[u8])> = own.collect();
        let opening = Opening::decode(layout, batch.asked.len(), &batch.known, bytes);
        let opening = opening.map_err(Lie::Malformed)?;
        let root = self.record.statement().trace;
        opening
            .verify(root, layout, &batch.asked, &own)
            .map_err(Lie::Opening)
    }

    /// Holds the leaves of input and output that were committed to against the own ones.
    fn compare(mut self, batch: &Batch, opened: &Opened) -> Result<Step, AuditError> {
        let ports = self.ports();
        let differs = |leaf: &&LeafId| ports.leaf(**leaf) != opened.leaf(**leaf);
        if let Some(&leaf) = batch.asked.iter().find(differs) {
            let (fault, lie) = if ports.is_input(leaf) {
                let (salt, input) = (*self.record.salt(), self.record.input().to_vec());
                (Fault::Input { salt, input }, Lie::Input { leaf })
            } else {
                let (salt, output) = (*self.record.salt(), self.record.output().to_vec());
                (Fault::Output { salt, output }, Lie::Output { leaf })
            };
            let evidence = self.evidence(fault, opened, &[leaf]);
            return self.rejected(lie, evidence).map(Step::over);
        }
        match (self.batches.is_empty(), self.misfit.take()) {
            (true, Some(first)) => self.rejected(Lie::Opening(first), None).map(Step::over),
            (_, misfit) => {
                self.misfit = misfit;
                Ok(Step::Ask(Box::new(self)))
            }
        }
    }

    fn evidence(&self, fault: Fault, opened: &Opened, leaves: &[LeafId]) -> Option<Evidence> {
        let layout = self.terms.model().graph().layout();
        let opening = opened.narrow(layout, leaves).ok()?;
        Some(Evidence::new(self.record.claim(), fault, &opening))
    }

    fn rejected(self, lie: Lie, evidence: Option<Evidence>) -> Result<Outcome, AuditError> {
        let receipt = self.record.conclude(Verdict::Rejected, &self.signer)?;
        Ok(Outcome::Rejected(Box::new(Rejected {
            receipt,
            lie,
            evidence,
        })))
    }
}

impl Step {
    fn over(outcome: Outcome) -> Self {
        Self::Over(Box::new(outcome))
    }
}

/// Units by what is asked for at once; the first batch knows all own leaves.
fn batches(terms: &Terms, drawn: &[UnitId], own: &[LeafId]) -> VecDeque<Batch> {
    let layout = terms.model().graph().layout();
    let mut all = VecDeque::new();
    let mut units = Vec::new();
    let mut needed: BTreeSet<LeafId> = BTreeSet::new();
    let mut bytes = 0;
    let close = |units: &mut Vec<UnitId>, needed: &mut BTreeSet<LeafId>, first: bool| {
        let is_own = |leaf: &LeafId| own.binary_search(leaf).is_ok();
        let (known, asked): (Vec<LeafId>, Vec<LeafId>) =
            std::mem::take(needed).into_iter().partition(is_own);
        Batch {
            units: std::mem::take(units),
            asked,
            known: if first { own.to_vec() } else { known },
        }
    };
    for unit in drawn {
        let needs = terms.model().graph().needs(*unit);
        let fresh = needs.iter().filter(|leaf| !needed.contains(leaf));
        let more: usize = fresh.filter_map(|leaf| layout.bytes_of(*leaf).ok()).sum();
        if !units.is_empty() && bytes + more > AT_ONCE {
            all.push_back(close(&mut units, &mut needed, all.is_empty()));
            bytes = 0;
        }
        bytes += more;
        needed.extend(needs);
        units.push(*unit);
    }
    all.push_back(close(&mut units, &mut needed, all.is_empty()));
    all
}

/// Leaves to be opened in full.
fn in_full(terms: &Terms, leaves: &[LeafId]) -> VecDeque<Batch> {
    let layout = terms.model().graph().layout();
    let mut all = VecDeque::new();
    let mut batch = Batch::default();
    let mut bytes = 0;
    for leaf in leaves {
        let more = layout.bytes_of(*leaf).unwrap_or(0);
        if !batch.asked.is_empty() && bytes + more > AT_ONCE {
            all.push_back(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += more;
        batch.asked.push(*leaf);
    }
    all.push_back(batch);
    all
}
