//! What is shown of a run, and a recorder that commits to it.

use std::fmt;

use larvatus_proto::commit::{Builder, CommitError, Commitment, LEAF, LeafId, Opening, Root};

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

/// Hashes a trace while it is made, and keeps its tensors so that parts of it can be opened.
pub struct Recorder {
    builder: Result<Builder, CommitError>,
    tensors: Vec<(TensorSpec, Values)>,
    room: Vec<u8>,
}

impl Recorder {
    /// A recorder for a run of this graph.
    pub fn new(graph: &Graph) -> Self {
        Self {
            builder: Ok(Builder::new(graph.layout().clone())),
            tensors: Vec::with_capacity(graph.tensors().len()),
            room: Vec::new(),
        }
    }

    /// The trace, when the run is over.
    ///
    /// # Errors
    /// [`CommitError`] where the run was not one of the graph.
    pub fn finish(self) -> Result<Recorded, CommitError> {
        Ok(Recorded {
            commitment: self.builder?.finish()?,
            tensors: self.tensors,
        })
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Recorder({} tensors)", self.tensors.len())
    }
}

impl Trace for Recorder {
    fn tensor(&mut self, _place: u32, spec: &TensorSpec, values: &Values) {
        if let Ok(builder) = &mut self.builder
            && let Err(why) = hash(builder, &mut self.room, spec, values)
        {
            self.builder = Err(why);
        }
        self.tensors.push((*spec, values.clone()));
    }
}

/// Pushes a tensor in its order; what lies apart is gathered, about a leaf at a time.
fn hash(
    builder: &mut Builder,
    room: &mut Vec<u8>,
    spec: &TensorSpec,
    values: &Values,
) -> Result<(), CommitError> {
    if spec.order == Order::Flat {
        return builder.push(values.bytes(0..spec.elements));
    }
    let mut result = Ok(());
    spec.walk(|range| {
        if room.len() >= LEAF {
            result = std::mem::replace(&mut result, Ok(())).and_then(|()| builder.push(room));
            room.clear();
        }
        room.extend_from_slice(values.bytes(range));
    });
    result?;
    builder.push(room)?;
    room.clear();
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
