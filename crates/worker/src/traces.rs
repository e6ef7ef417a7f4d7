//! What a worker computed lately, kept so that it can be opened.
//!
//! All connections share it: who asks for an opening may come back on another one. The oldest traces make way for
//! new ones, whosever they are; a peer that runs much makes others' traces go sooner.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larvatus_graph::trace::Recorded;
use larvatus_proto::commit::{CommitError, Layout, Opening, Root};
use larvatus_proto::order::Summons;
use larvatus_proto::receipt::PublicKey;

/// Everything that a run committed to, and who may have it opened.
pub(crate) struct Trace {
    recorded: Recorded,
    trusted: PublicKey,
}

impl Trace {
    pub(crate) fn new(recorded: Recorded, trusted: PublicKey) -> Self {
        Self { recorded, trusted }
    }

    pub(crate) fn root(&self) -> Root {
        self.recorded.root()
    }

    pub(crate) fn layout(&self) -> &Layout {
        self.recorded.commitment().layout()
    }

    pub(crate) fn trusted(&self) -> PublicKey {
        self.trusted
    }

    /// Opens leaves.
    ///
    /// # Errors
    /// [`CommitError`] where the trace does not have them.
    pub(crate) fn open(&self, summons: &Summons) -> Result<Opening, CommitError> {
        self.recorded.open(&summons.asked, &summons.known)
    }

    /// Memory that it takes: its bytes, and two digests for each leaf.
    fn memory(&self) -> u64 {
        self.recorded.bytes() + 64 * self.layout().leaves() as u64
    }
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Trace({}, {} bytes)", self.root(), self.recorded.bytes())
    }
}

/// The last traces, the oldest first.
pub(crate) struct Traces {
    most: usize,
    most_bytes: u64,
    kept: Mutex<VecDeque<Arc<Trace>>>,
}

impl Traces {
    pub(crate) fn new(most: usize, most_bytes: u64) -> Self {
        Self {
            most,
            most_bytes,
            kept: Mutex::default(),
        }
    }

    /// Keeps a trace; the oldest make way.
    pub(crate) fn keep(&self, trace: Trace) {
        let mut kept = self.kept();
        // The same run again takes the place of the one before.
        let same =
            |other: &Arc<Trace>| (other.root(), other.trusted()) == (trace.root(), trace.trusted());
        kept.retain(|other| !same(other));
        kept.push_back(Arc::new(trace));
        let mut bytes: u64 = kept.iter().map(|trace| trace.memory()).sum();
        while kept.len() > self.most || bytes > self.most_bytes {
            let Some(gone) = kept.pop_front() else { break };
            bytes -= gone.memory();
        }
    }

    /// The trace with this root that `may` says yes to.
    pub(crate) fn find(&self, root: Root, may: impl Fn(&Trace) -> bool) -> Option<Arc<Trace>> {
        let found: Vec<Arc<Trace>> = {
            let kept = self.kept();
            let of = kept.iter().filter(|trace| trace.root() == root);
            of.map(Arc::clone).collect()
        };
        found.into_iter().find(|trace| may(trace))
    }

    /// Nothing that could panic runs while this is held.
    fn kept(&self) -> MutexGuard<'_, VecDeque<Arc<Trace>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Traces({} kept)", self.kept().len())
    }
}
