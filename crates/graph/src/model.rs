//! A graph with its constants, as it is uploaded.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use larvatus_kernels::linear::{ShapeError, Weights};
use larvatus_proto::digest::Digest;

use crate::encode::MAX_GRAPH;
use crate::graph::{ConstantSpec, Element, Graph, GraphError};
use crate::op::Linear;
use crate::tensor::ConstantId;
use crate::units::Grain;

/// Why a graph and its constants do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The graph is refused.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The blob has another digest.
    #[error("the upload has digest {got}, {expected} was named")]
    Digest {
        /// The digest that was named.
        expected: Digest,
        /// What the bytes have.
        got: Digest,
    },
    /// More or fewer bytes than the constants have.
    #[error("{got} bytes of constants, {expected} by the graph")]
    Length {
        /// By the graph.
        expected: u64,
        /// There are.
        got: u64,
    },
    /// A constant that is not a number.
    #[error("constant {constant} holds what is not a number")]
    NotANumber {
        /// Its number.
        constant: u32,
    },
    /// Constants of another type or number than the graph names.
    #[error("constant {constant} is not what the graph names")]
    Constant {
        /// Its number.
        constant: u32,
    },
    /// The kernels refuse weights.
    #[error("weights: {0}")]
    Weights(#[from] ShapeError),
}

/// A constant's elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Weights, plane by plane.
    I8(Vec<i8>),
    /// Floats.
    F32(Vec<f32>),
    /// Integers.
    I64(Vec<i64>),
}

impl Data {
    /// Its type and size.
    pub fn spec(&self) -> ConstantSpec {
        let (element, elements) = match self {
            Self::I8(values) => (Element::I8, values.len()),
            Self::F32(values) => (Element::F32, values.len()),
            Self::I64(values) => (Element::I64, values.len()),
        };
        ConstantSpec { element, elements }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::I8(values) => out.extend(values.iter().map(|value| value.cast_unsigned())),
            Self::F32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Self::I64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        }
    }
}

/// A graph with its constants: what an upload carries and its digest names.
///
/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct Model {
    graph: Arc<Graph>,
    blob: Arc<Vec<u8>>,
    graph_bytes: usize,
    digest: Digest,
}

impl Model {
    /// Joins a graph and its constants.
    ///
    /// # Errors
    /// [`ModelError`] where the constants are not those of the graph, or hold what is not a number.
    pub fn new(graph: Graph, constants: &[Data]) -> Result<Self, ModelError> {
        let mut blob = graph.encode();
        let graph_bytes = blob.len();
        let specs = graph.constants();
        for (constant, data) in (0..).zip(constants) {
            if specs.get(constant as usize) != Some(&data.spec()) {
                return Err(ModelError::Constant { constant });
            }
            data.write(&mut blob);
        }
        let digest = Digest::of_graph(&blob);
        Self::sealed(graph, blob, graph_bytes, digest)
    }

    /// Reads an upload whose first `graph_bytes` bytes are the graph.
    ///
    /// # Errors
    /// [`ModelError`] where the blob does not hash to `expected` or is no graph with its constants.
    pub fn from_blob(
        blob: Vec<u8>,
        graph_bytes: usize,
        expected: Digest,
    ) -> Result<Self, ModelError> {
        let got = Digest::of_graph(&blob);
        if got != expected {
            return Err(ModelError::Digest { expected, got });
        }
        let graph = Graph::decode(
            blob.get(..graph_bytes.min(MAX_GRAPH + 1))
                .unwrap_or_default(),
        )?;
        Self::sealed(graph, blob, graph_bytes, got)
    }

    fn sealed(
        graph: Graph,
        blob: Vec<u8>,
        graph_bytes: usize,
        digest: Digest,
    ) -> Result<Self, ModelError> {
        let (expected, got) = (graph.weight_bytes(), (blob.len() - graph_bytes) as u64);
        if expected != got {
            return Err(ModelError::Length { expected, got });
        }
        let model = Self {
            graph: Arc::new(graph),
            blob: Arc::new(blob),
            graph_bytes,
            digest,
        };
        let constants = model.constants();
        for (constant, spec) in (0..).zip(model.graph.constants()) {
            let bytes = constants.bytes(ConstantId(constant));
            let bad = |word: &[u8; 4]| f32::from_le_bytes(*word).is_nan();
            if spec.element == Element::F32 && bytes.as_chunks::<4>().0.iter().any(bad) {
                return Err(ModelError::NotANumber { constant });
            }
        }
        Ok(model)
    }

    /// The same with units of another size: another program, with another digest.
    ///
    /// # Errors
    /// [`ModelError::Graph`] where that makes too many of them.
    pub fn with_grain(&self, grain: Grain) -> Result<Self, ModelError> {
        let graph = Graph::clone(&self.graph).with_grain(grain)?;
        let mut blob = graph.encode();
        let graph_bytes = blob.len();
        blob.extend_from_slice(self.weights());
        let digest = Digest::of_graph(&blob);
        Self::sealed(graph, blob, graph_bytes, digest)
    }

    /// The graph.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// The bytes of an upload: the graph, then the constants.
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    /// How many of them are the graph.
    pub fn graph_bytes(&self) -> usize {
        self.graph_bytes
    }

    /// The bytes of the constants.
    pub fn weights(&self) -> &[u8] {
        self.blob.get(self.graph_bytes..).unwrap_or_default()
    }

    /// Their digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    pub(crate) fn constants(&self) -> Constants<'_> {
        Constants::new(&self.graph, self.weights())
    }
}

/// A graph's constants as bytes.
pub(crate) struct Constants<'a> {
    specs: &'a [ConstantSpec],
    starts: Vec<u64>,
    bytes: &'a [u8],
}

impl<'a> Constants<'a> {
    pub(crate) fn new(graph: &'a Graph, bytes: &'a [u8]) -> Self {
        let specs = graph.constants();
        let start = |at: &mut u64, spec: &ConstantSpec| {
            let start = *at;
            *at += spec.bytes();
            Some(start)
        };
        Self {
            specs,
            starts: specs.iter().scan(0, start).collect(),
            bytes,
        }
    }

    pub(crate) fn spec(&self, id: ConstantId) -> Option<ConstantSpec> {
        self.specs.get(id.index()).copied()
    }

    /// Its bytes, none where they are not there.
    pub(crate) fn bytes(&self, id: ConstantId) -> &'a [u8] {
        let found = || {
            let start = usize::try_from(*self.starts.get(id.index())?).ok()?;
            let len = usize::try_from(self.specs.get(id.index())?.bytes()).ok()?;
            self.bytes.get(start..start.checked_add(len)?)
        };
        found().unwrap_or_default()
    }

    /// Some of its floats.
    pub(crate) fn floats(&self, id: ConstantId, range: Range<usize>) -> Vec<f32> {
        let words = self.bytes(id).as_chunks::<4>().0;
        let words = words.get(range).unwrap_or_default();
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// All of its floats.
    pub(crate) fn all_floats(&self, id: ConstantId) -> Vec<f32> {
        self.floats(id, 0..self.spec(id).map_or(0, |spec| spec.elements))
    }

    /// Some of its integers.
    pub(crate) fn integers(&self, id: ConstantId, range: Range<usize>) -> Vec<i64> {
        let words = self.bytes(id).as_chunks::<8>().0;
        let words = words.get(range).unwrap_or_default();
        words.iter().map(|word| i64::from_le_bytes(*word)).collect()
    }

    /// Weights of a linear map, those of each plane picked by `pick` from all of the plane.
    pub(crate) fn weights(
        &self,
        linear: &Linear,
        pick: impl Fn(&[u8]) -> Cow<'_, [u8]>,
    ) -> Result<Weights, ShapeError> {
        let each = linear.spec.shape.weights();
        let planes = self.bytes(linear.weights).chunks_exact(each);
        let signed =
            |bytes: Cow<'_, [u8]>| bytes.iter().map(|w| w.cast_signed()).collect::<Vec<i8>>();
        let planes = planes.map(|plane| signed(pick(plane))).collect();
        Weights::new(planes, linear.spec.shift.into())
    }
}
