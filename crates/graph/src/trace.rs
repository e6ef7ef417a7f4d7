//! What is shown of a run, and a recorder that commits to it.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use larvatus_proto::commit::{
    Builder, CommitError, Commitment, LEAF, LeafDigest, LeafId, Opening, Root,
};
#[cfg(feature = "parallel")]
use rayon::prelude::*;

use crate::graph::Graph;
use crate::tensor::{Order, TensorSpec, Values};

/// Sees every tensor of a run once, in the order in which they are committed to.
pub trait Trace {
    /// A tensor that will not change any more: its place in the trace, what it is, its elements. Cloning `values` keeps them.
    fn tensor(&mut self, place: u32, spec: &TensorSpec, values: &Values);
}

/// Sees nothing.
impl Trace for () {
    fn tensor(&mut self, _place: u32, _spec: &TensorSpec, _values: &Values) {}
}

/// Hashes a trace while it is made, and keeps nothing else of it: the same run gives the same trace again.
pub struct Digester {
    builder: Result<Builder, CommitError>,
    room: Vec<u8>,
}

impl Digester {
    /// For a run of this graph.
    pub fn new(graph: &Graph) -> Self {
        Self {
            builder: Ok(Builder::new(graph.layout().clone())),
            room: Vec::new(),
        }
    }

    /// The commitment, when the run is over.
    ///
    /// # Errors
    /// [`CommitError`] where the run was not one of the graph.
    pub fn finish(self) -> Result<Commitment, CommitError> {
        self.builder?.finish()
    }
}

impl fmt::Debug for Digester {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digester({:?})", self.builder)
    }
}

impl Trace for Digester {
    fn tensor(&mut self, place: u32, spec: &TensorSpec, values: &Values) {
        if let Ok(builder) = &mut self.builder
            && let Err(why) = hash(builder, &mut self.room, place, spec, values)
        {
            self.builder = Err(why);
        }
    }
}

/// Takes chosen leaves from a run that is done again, to open a commitment whose tensors were not kept.
pub struct Collector {
    leaves: BTreeMap<LeafId, Vec<u8>>,
}

impl Collector {
    /// For these leaves.
    pub fn new(leaves: &[LeafId]) -> Self {
        Self {
            leaves: leaves.iter().map(|leaf| (*leaf, Vec::new())).collect(),
        }
    }

    /// The bytes of a leaf; empty where it was not chosen or the run did not come to it.
    pub fn leaf(&self, leaf: LeafId) -> &[u8] {
        self.leaves
            .get(&leaf)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

impl fmt::Debug for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Collector({} leaves)", self.leaves.len())
    }
}

impl Trace for Collector {
    fn tensor(&mut self, place: u32, spec: &TensorSpec, values: &Values) {
        let from = |leaf| LeafId {
            tensor: place,
            leaf,
        };
        for (leaf, bytes) in self.leaves.range_mut(from(0)..=from(u32::MAX)) {
            gather(leaf.leaf as usize, spec, values, bytes);
        }
    }
}

/// Hashes a trace while it is made, and keeps its tensors so that parts of it can be opened.
#[derive(Debug)]
pub struct Recorder {
    digester: Digester,
    tensors: Vec<(TensorSpec, Values)>,
}

impl Recorder {
    /// A recorder for a run of this graph.
    pub fn new(graph: &Graph) -> Self {
        Self {
            digester: Digester::new(graph),
            tensors: Vec::with_capacity(graph.tensors().len()),
        }
    }

    /// The trace, when the run is over.
    ///
    /// # Errors
    /// [`CommitError`] where the run was not one of the graph.
    pub fn finish(self) -> Result<Recorded, CommitError> {
        Ok(Recorded {
            commitment: self.digester.finish()?,
            tensors: self.tensors,
        })
    }
}

impl Trace for Recorder {
    fn tensor(&mut self, place: u32, spec: &TensorSpec, values: &Values) {
        self.digester.tensor(place, spec, values);
        self.tensors.push((*spec, values.clone()));
    }
}

/// Appends the committed bytes of a leaf; none where there is no such leaf.
fn gather(leaf: usize, spec: &TensorSpec, values: &Values, out: &mut Vec<u8>) {
    for range in spec.memory(elements(leaf, spec)) {
        out.extend_from_slice(values.bytes(range));
    }
}

/// The elements of a leaf, in the order in which they are committed to.
fn elements(leaf: usize, spec: &TensorSpec) -> Range<usize> {
    let each = LEAF / spec.kind.bytes();
    let first = leaf.saturating_mul(each).min(spec.elements);
    first..(first + each).min(spec.elements)
}

/// The digest of a leaf: of the bytes where they lie, or of lines that are brought together in `room`, which the cache holds.
fn digest(room: &mut Vec<u8>, id: LeafId, spec: &TensorSpec, values: &Values) -> LeafDigest {
    let leaf = id.leaf as usize;
    if spec.order == Order::Flat {
        return LeafDigest::of(id, values.bytes(elements(leaf, spec)));
    }
    room.clear();
    gather(leaf, spec, values, room);
    LeafDigest::of(id, room)
}

/// Takes in a tensor leaf by leaf; several threads share the leaves where there are any.
fn hash(
    builder: &mut Builder,
    room: &mut Vec<u8>,
    place: u32,
    spec: &TensorSpec,
    values: &Values,
) -> Result<(), CommitError> {
    let id = |leaf: usize| LeafId {
        tensor: place,
        leaf: u32::try_from(leaf).unwrap_or(u32::MAX),
    };
    let leaves = usize::try_from(spec.bytes().div_ceil(LEAF as u64)).unwrap_or(usize::MAX);
    #[cfg(feature = "parallel")]
    if leaves > 1 && rayon::current_num_threads() > 1 {
        let digest = |room: &mut Vec<u8>, leaf: usize| digest(room, id(leaf), spec, values);
        let digests = (0..leaves).into_par_iter().map_init(Vec::new, digest);
        let digests: Vec<LeafDigest> = digests.collect();
        return digests
            .into_iter()
            .try_for_each(|one| builder.push_digest(one));
    }
    if spec.order == Order::Flat {
        return builder.push(values.bytes(0..spec.elements));
    }
    for leaf in 0..leaves {
        builder.push_digest(digest(room, id(leaf), spec, values))?;
    }
    Ok(())
}

/// A run that was committed to, kept so that it can be opened.
pub struct Recorded {
    commitment: Commitment,
    /// By their place in the trace.
    tensors: Vec<(TensorSpec, Values)>,
}

impl Recorded {
    /// What is told to the other side.
    pub fn root(&self) -> Root {
        self.commitment.root()
    }

    /// The tree.
    pub fn commitment(&self) -> &Commitment {
        &self.commitment
    }

    /// Bytes that it holds, all but the tree's.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(spec, _)| spec.bytes()).sum()
    }

    /// A tensor of the trace, by its place.
    pub fn tensor(&self, place: u32) -> Option<&Values> {
        self.tensors.get(place as usize).map(|(_, values)| values)
    }

    /// Opens leaves for who has the `known` ones already; see [`Commitment::open`].
    ///
    /// # Errors
    /// [`CommitError::Order`], [`CommitError::NoLeaf`].
    pub fn open(&self, leaves: &[LeafId], known: &[LeafId]) -> Result<Opening, CommitError> {
        self.commitment
            .open(leaves, known, |leaf, length| self.leaf(leaf, length))
    }

    /// The committed bytes of a leaf.
    fn leaf(&self, leaf: LeafId, length: usize) -> Vec<u8> {
        let mut out = Vec::with_capacity(length);
        if let Some((spec, values)) = self.tensors.get(leaf.tensor as usize) {
            let each = spec.kind.bytes();
            let first = leaf.leaf as usize * (LEAF / each);
            for range in spec.memory(first..first + length / each) {
                out.extend_from_slice(values.bytes(range));
            }
        }
        out
    }
}

impl fmt::Debug for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorded({:?})", self.commitment)
    }
}
