//! Recomputing a unit from what was opened of it, and comparing bit for bit.

mod audit;
mod parts;

use larvatus_kernels::isa::Isa;
use larvatus_proto::commit::{LeafId, Opened};

use crate::graph::Graph;
use crate::model::{Constants, Model};
use crate::tensor::Kind;
use crate::units::UnitId;
use audit::Audit;
pub(crate) use parts::reads;

/// Why a unit is not what its inputs give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// A value is another than the one that follows.
    #[error(
        "unit {unit}: element {element} of tensor {tensor} is {claimed:#018x}, {computed:#018x} follows"
    )]
    Differs {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element, as it lies in memory.
        element: usize,
        /// The bits that were committed to.
        claimed: u64,
        /// The bits that follow.
        computed: u64,
    },
    /// What is not a number. A run that makes such a value fails, so that no honest trace holds one.
    #[error("unit {unit}: element {element} of tensor {tensor} is not a number")]
    NotANumber {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// A value is larger than the maximum of its image or row.
    #[error(
        "unit {unit}: element {element} of tensor {tensor} exceeds the maximum that was committed to"
    )]
    AboveMaximum {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// A maximum that is none: negative, or not finite.
    #[error("unit {unit}: element {element} of tensor {tensor} is no maximum")]
    NoMaximum {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// A number of a row that its table does not have.
    #[error("unit {unit}: no row {index} in its table")]
    Row {
        /// The unit.
        unit: UnitId,
        /// The number.
        index: i64,
    },
    /// A leaf that is needed was not opened. This shows no lie.
    #[error("unit {unit}: leaf {leaf} is not opened")]
    Missing {
        /// The unit.
        unit: UnitId,
        /// The leaf.
        leaf: LeafId,
    },
    /// There is no such unit, or the constants are not those of the graph. This shows no lie.
    #[error("unit {unit}: {problem}")]
    Refused {
        /// The unit.
        unit: UnitId,
        /// Why.
        problem: String,
    },
}

impl Mismatch {
    /// Whether it shows that who committed to the trace did not run the graph.
    pub fn is_lie(&self) -> bool {
        !matches!(self, Self::Missing { .. } | Self::Refused { .. })
    }
}

/// Where committed bytes are read from.
pub trait Leaves {
    /// The bytes of a leaf, if it is there.
    fn leaf(&self, leaf: LeafId) -> Option<&[u8]>;
}

impl Leaves for Opened {
    fn leaf(&self, leaf: LeafId) -> Option<&[u8]> {
        Self::leaf(self, leaf)
    }
}

impl Leaves for std::collections::BTreeMap<LeafId, Vec<u8>> {
    fn leaf(&self, leaf: LeafId) -> Option<&[u8]> {
        self.get(&leaf).map(Vec::as_slice)
    }
}

impl Model {
    /// Recomputes a unit from what was opened of it.
    ///
    /// `opened` must hold the leaves that [`Graph::needs`] names; that they are those that were committed to is for
    /// [`larvatus_proto::commit::Opening::verify`] to show.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn replay(&self, unit: UnitId, opened: &impl Leaves) -> Result<(), Mismatch> {
        self.graph().replay(self.weights(), unit, opened)
    }
}

impl Graph {
    /// [`Model::replay`] with the bytes of the constants, of which only those of one node are read.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn replay(
        &self,
        weights: &[u8],
        unit: UnitId,
        opened: &impl Leaves,
    ) -> Result<(), Mismatch> {
        let refused = |problem: &str| Mismatch::Refused {
            unit,
            problem: problem.to_owned(),
        };
        if weights.len() as u64 != self.weight_bytes() {
            return Err(refused("constants of another graph"));
        }
        let found = self.units_table().find(unit);
        let (index, part) = found.ok_or_else(|| refused("no such unit"))?;
        let node = self.nodes().get(index);
        let node = node.ok_or_else(|| refused("no such node"))?;
        let read = reads(self, index, &node.op, &part);
        let audit = Audit {
            isa: Isa::best(),
            graph: self,
            constants: Constants::new(self, weights),
            unit,
            own: self.made_by(index),
            opened,
        };
        let own = audit.own;
        let claimed = audit.words(own, &read.output)?;
        let computed = audit.compute(&node.op, &part, &read)?;
        if claimed.len() != computed.len() {
            return Err(refused("a part of another size"));
        }
        let elements = read.output.iter().cloned().flatten();
        let is_float = self
            .tensors()
            .get(own.index())
            .is_some_and(|spec| spec.kind == Kind::F32);
        for (element, (claimed, computed)) in elements.zip(claimed.into_iter().zip(computed)) {
            if is_float && f32::from_bits(claimed as u32).is_nan() {
                return Err(Mismatch::NotANumber {
                    unit,
                    tensor: own.0,
                    element,
                });
            }
            if claimed != computed {
                return Err(Mismatch::Differs {
                    unit,
                    tensor: own.0,
                    element,
                    claimed,
                    computed,
                });
            }
        }
        Ok(())
    }
}
