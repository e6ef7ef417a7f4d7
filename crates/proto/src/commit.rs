//! A commitment to a trace: what a worker says that it computed, fixed before anybody says which part will be looked at.
//!
//! A trace is a list of tensors. Each is cut into leaves of [`LEAF`] bytes, the last one shorter, and a binary tree of BLAKE3
//! digests stands over the leaves of all of them. A leaf's digest covers its tensor, its place in it, its length and its
//! bytes; leaves, nodes and the root have domains of their own, so none can stand for another. A node without a
//! sibling is passed up as it is, never paired with itself. The [`Root`] covers the number of tensors and the length of
//! each, hence the form of the tree.
//!
//! Who verifies knows the [`Layout`] and says which leaves are asked for, and which it knows the bytes of: these are not
//! sent. An [`Opening`] brings the leaves asked for and the fewest digests that lead from these and the known ones to the
//! root. Given that BLAKE3 is collision resistant, an opening that verifies holds the bytes that were committed to, and the
//! known bytes are those, too. A commitment hides nothing.
//!
//! Source: Merkle (1987); domains as in RFC 6962 §2.1; opening parts of a trace as in VeriSplit (arXiv 2406.00586, Fig. 5).

mod opening;

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use crate::digest::Digest;
use opening::climb;
pub use opening::{Opened, Opening};

/// Bytes of a leaf.
pub const LEAF: usize = 64 << 10;
/// Most tensors of a trace.
pub const MAX_TENSORS: usize = 1 << 16;
/// Most leaves of a trace: 256 GiB.
pub const MAX_LEAVES: usize = 1 << 22;

/// Why a trace cannot be committed to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommitError {
    /// A trace without tensors.
    #[error("a trace has no tensors")]
    NoTensors,
    /// More tensors than [`MAX_TENSORS`].
    #[error("{got} tensors exceed the limit of {MAX_TENSORS}")]
    Tensors {
        /// How many.
        got: usize,
    },
    /// A tensor without bytes.
    #[error("tensor {tensor} is empty")]
    EmptyTensor {
        /// Its index.
        tensor: usize,
    },
    /// More leaves than [`MAX_LEAVES`].
    #[error("the leaves up to tensor {tensor} exceed the limit of {MAX_LEAVES}")]
    Leaves {
        /// The tensor that is too much.
        tensor: usize,
    },
    /// The bytes end before the last tensor does.
    #[error("the trace ends {missing} bytes early")]
    Short {
        /// How many bytes are missing.
        missing: u64,
    },
    /// Bytes follow the last tensor.
    #[error("{extra} bytes follow the last tensor")]
    Long {
        /// How many.
        extra: u64,
    },
    /// A digest that is not the next leaf's, or comes in the middle of one.
    #[error("a digest of leaf {leaf} out of its turn")]
    Turn {
        /// Its leaf.
        leaf: LeafId,
    },
    /// A leaf that the layout does not have.
    #[error("there is no leaf {leaf}")]
    NoLeaf {
        /// The leaf.
        leaf: LeafId,
    },
    /// Leaves that are not in strictly increasing order, named twice, or none.
    #[error("leaves to open are not in increasing order, or there are none")]
    Order,
}

/// Why an opening does not prove what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The asker asks for what the layout does not have, or not in order.
    #[error(transparent)]
    Asked(#[from] CommitError),
    /// Another number of leaves than was asked for.
    #[error("{got} leaves opened, {expected} asked for")]
    Count {
        /// Leaves asked for.
        expected: usize,
        /// Leaves there are.
        got: usize,
    },
    /// Another leaf than was asked for.
    #[error("leaf {got} opened where {expected} was asked for")]
    NotAsked {
        /// The leaf asked for.
        expected: LeafId,
        /// The leaf there is.
        got: LeafId,
    },
    /// A leaf of another length than its tensor gives it.
    #[error("leaf {leaf} has {got} bytes, {expected} by the layout")]
    Length {
        /// The leaf.
        leaf: LeafId,
        /// Bytes by the layout.
        expected: usize,
        /// Bytes there are.
        got: usize,
    },
    /// Another number of digests than lead to the root.
    #[error("path of {got} digests, {expected} lead to the root")]
    Path {
        /// Digests needed.
        expected: usize,
        /// Digests there are.
        got: usize,
    },
    /// The leaves are not those under the root.
    #[error("the opening leads to root {got}, not {expected}")]
    Root {
        /// The root that was committed to.
        expected: Root,
        /// Where the opening leads.
        got: Root,
    },
}

/// A leaf's place: which tensor, and which of its leaves. Ordered as in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeafId {
    /// Index of the tensor.
    pub tensor: u32,
    /// Index of the leaf within it.
    pub leaf: u32,
}

impl fmt::Display for LeafId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.tensor, self.leaf)
    }
}

/// What a trace is committed to with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Root(pub Digest);

impl fmt::Display for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The lengths of a trace's tensors, from which the tree's form follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Bytes of each tensor; never empty, never 0.
    lengths: Vec<u64>,
    /// Index of each tensor's first leaf, then the number of leaves: at most [`MAX_LEAVES`].
    first: Vec<usize>,
}

impl Layout {
    /// The layout of tensors of these many bytes.
    ///
    /// # Errors
    /// [`CommitError`] where there is no tensor, an empty one, or a limit is exceeded.
    pub fn new(lengths: Vec<u64>) -> Result<Self, CommitError> {
        if lengths.is_empty() {
            return Err(CommitError::NoTensors);
        }
        if lengths.len() > MAX_TENSORS {
            let got = lengths.len();
            return Err(CommitError::Tensors { got });
        }
        let mut first = Vec::with_capacity(lengths.len() + 1);
        let mut leaves = 0_usize;
        for (tensor, &length) in lengths.iter().enumerate() {
            if length == 0 {
                return Err(CommitError::EmptyTensor { tensor });
            }
            first.push(leaves);
            let of_tensor = usize::try_from(length.div_ceil(LEAF as u64)).ok();
            leaves = of_tensor
                .and_then(|more| leaves.checked_add(more))
                .filter(|&leaves| leaves <= MAX_LEAVES)
                .ok_or(CommitError::Leaves { tensor })?;
        }
        first.push(leaves);
        Ok(Self { lengths, first })
    }

    /// Bytes of each tensor.
    pub fn lengths(&self) -> &[u64] {
        &self.lengths
    }

    /// Leaves of all tensors.
    pub fn leaves(&self) -> usize {
        self.first.last().copied().unwrap_or(0)
    }

    /// The leaf with this number in the tree; `None` beyond the last.
    pub fn leaf(&self, number: usize) -> Option<LeafId> {
        if number >= self.leaves() {
            return None;
        }
        let tensor = self.first.partition_point(|&first| first <= number) - 1;
        let leaf = number - self.first.get(tensor)?;
        Some(LeafId {
            tensor: u32::try_from(tensor).ok()?,
            leaf: u32::try_from(leaf).ok()?,
        })
    }

    /// Bytes of a leaf, and its number in the tree.
    ///
    /// # Errors
    /// [`CommitError::NoLeaf`].
    fn place(&self, leaf: LeafId) -> Result<(usize, usize), CommitError> {
        let missing = CommitError::NoLeaf { leaf };
        let (tensor, index) = (leaf.tensor as usize, leaf.leaf as usize);
        let (Some(length), Some(first), Some(next)) = (
            self.lengths.get(tensor),
            self.first.get(tensor),
            self.first.get(tensor + 1),
        ) else {
            return Err(missing);
        };
        let number = first + index;
        if number >= *next {
            return Err(missing);
        }
        let rest = length - index as u64 * LEAF as u64;
        Ok((rest.min(LEAF as u64) as usize, number))
    }

    /// The numbers of leaves that are opened and of those that are known, in order.
    ///
    /// # Errors
    /// [`CommitError::Order`] where one of the two is not in strictly increasing order, a leaf is in both or there is
    /// none; [`CommitError::NoLeaf`].
    fn numbers(&self, leaves: &[LeafId], known: &[LeafId]) -> Result<Vec<usize>, CommitError> {
        let rising = |leaves: &[LeafId]| leaves.is_sorted_by(|a, b| a < b);
        if !rising(leaves) || !rising(known) {
            return Err(CommitError::Order);
        }
        let all = leaves.iter().chain(known);
        let numbers = all.map(|&leaf| Ok(self.place(leaf)?.1));
        let mut numbers = numbers.collect::<Result<Vec<_>, CommitError>>()?;
        numbers.sort_unstable();
        if numbers.is_empty() || !numbers.is_sorted_by(|a, b| a < b) {
            return Err(CommitError::Order);
        }
        Ok(numbers)
    }

    /// The leaves that hold the bytes `range` of a tensor, in order.
    ///
    /// # Errors
    /// [`CommitError::NoLeaf`] where the tensor does not reach so far; an empty range has no leaves.
    pub fn covering(&self, tensor: u32, range: Range<u64>) -> Result<Vec<LeafId>, CommitError> {
        let leaf = |byte: u64| u32::try_from(byte / LEAF as u64).unwrap_or(u32::MAX);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let last = LeafId {
            tensor,
            leaf: leaf(range.end - 1),
        };
        self.place(last)?;
        let leaves = leaf(range.start)..=last.leaf;
        Ok(leaves.map(|leaf| LeafId { tensor, leaf }).collect())
    }

    /// Bytes of a leaf.
    ///
    /// # Errors
    /// [`CommitError::NoLeaf`].
    pub fn bytes_of(&self, leaf: LeafId) -> Result<usize, CommitError> {
        Ok(self.place(leaf)?.0)
    }

    fn root(&self, top: &Node) -> Root {
        let mut hasher = blake3::Hasher::new_derive_key("larvatus 2026 trace root v1");
        hasher.update(&(LEAF as u64).to_le_bytes());
        hasher.update(&(self.lengths.len() as u64).to_le_bytes());
        for length in &self.lengths {
            hasher.update(&length.to_le_bytes());
        }
        hasher.update(top);
        Root(Digest(*hasher.finalize().as_bytes()))
    }
}

/// A digest within the tree.
type Node = [u8; 32];

/// Hashers that have taken in their domain.
struct Domains {
    leaf: blake3::Hasher,
    node: blake3::Hasher,
}

impl Domains {
    fn new() -> Self {
        Self {
            leaf: blake3::Hasher::new_derive_key("larvatus 2026 trace leaf v1"),
            node: blake3::Hasher::new_derive_key("larvatus 2026 trace node v1"),
        }
    }

    /// The digest of a leaf whose bytes `hasher` has taken in. What follows them has a fixed length, and comes after so that
    /// the bytes fill whole chunks.
    fn leaf(mut hasher: blake3::Hasher, leaf: LeafId, length: usize) -> Node {
        hasher.update(&leaf.tensor.to_le_bytes());
        hasher.update(&leaf.leaf.to_le_bytes());
        hasher.update(&(length as u64).to_le_bytes());
        *hasher.finalize().as_bytes()
    }

    fn node(&self, left: &Node, right: &Node) -> Node {
        let mut hasher = self.node.clone();
        hasher.update(left);
        hasher.update(right);
        *hasher.finalize().as_bytes()
    }
}

/// A leaf's digest, for [`Builder::push_digest`].
#[derive(Clone, Copy, Debug)]
pub struct LeafDigest {
    leaf: LeafId,
    length: usize,
    node: Node,
}

impl LeafDigest {
    /// The digest of a leaf that holds these bytes.
    pub fn of(leaf: LeafId, bytes: &[u8]) -> Self {
        // Deriving a domain costs as much as hashing a few hundred bytes.
        static DOMAINS: LazyLock<Domains> = LazyLock::new(Domains::new);
        let mut hasher = DOMAINS.leaf.clone();
        hasher.update(bytes);
        Self {
            leaf,
            length: bytes.len(),
            node: Domains::leaf(hasher, leaf, bytes.len()),
        }
    }
}

/// Takes in a trace piece by piece. Memory: 32 bytes for each leaf.
pub struct Builder {
    layout: Layout,
    domains: Domains,
    /// The leaf that is being taken in, and bytes of it that are missing; `None` after the last.
    current: Option<(LeafId, usize, blake3::Hasher)>,
    leaves: Vec<Node>,
}

impl Builder {
    /// A builder at the first byte of the first tensor.
    pub fn new(layout: Layout) -> Self {
        let mut builder = Self {
            leaves: Vec::with_capacity(layout.leaves()),
            layout,
            domains: Domains::new(),
            current: None,
        };
        builder.start();
        builder
    }

    /// Begins the next leaf.
    fn start(&mut self) {
        self.current = self.layout.leaf(self.leaves.len()).and_then(|leaf| {
            let (length, _) = self.layout.place(leaf).ok()?;
            Some((leaf, length, self.domains.leaf.clone()))
        });
    }

    /// Takes in the next bytes; pieces may be of any size and cross tensors.
    ///
    /// # Errors
    /// [`CommitError::Long`] where they go beyond the last tensor.
    pub fn push(&mut self, mut bytes: &[u8]) -> Result<(), CommitError> {
        while !bytes.is_empty() {
            let extra = bytes.len() as u64;
            let (leaf, missing, mut hasher) =
                self.current.take().ok_or(CommitError::Long { extra })?;
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            hasher.update(now);
            bytes = later;
            if now.len() == missing {
                let (length, _) = self.layout.place(leaf)?;
                self.leaves.push(Domains::leaf(hasher, leaf, length));
                self.start();
            } else {
                self.current = Some((leaf, missing - now.len(), hasher));
            }
        }
        Ok(())
    }

    /// Takes in words, little-endian.
    ///
    /// # Errors
    /// As [`Builder::push`].
    pub fn push_words(&mut self, words: &[u32]) -> Result<(), CommitError> {
        if cfg!(target_endian = "little") {
            return self.push(bytemuck::cast_slice(words));
        }
        let mut piece = [0; 1024];
        for words in words.chunks(piece.len()) {
            for (to, word) in piece.iter_mut().zip(words) {
                *to = word.to_le();
            }
            let piece = piece.get(..words.len()).unwrap_or_default();
            self.push(bytemuck::cast_slice(piece))?;
        }
        Ok(())
    }

    /// Takes in the next leaf by its digest, which another thread may have computed.
    ///
    /// # Errors
    /// [`CommitError::Turn`] where it is not the next leaf's, or that one is begun.
    pub fn push_digest(&mut self, digest: LeafDigest) -> Result<(), CommitError> {
        let leaf = digest.leaf;
        match &self.current {
            Some((next, missing, _)) if (*next, *missing) == (leaf, digest.length) => {}
            _ => return Err(CommitError::Turn { leaf }),
        }
        let (length, _) = self.layout.place(leaf)?;
        if length != digest.length {
            return Err(CommitError::Turn { leaf });
        }
        self.leaves.push(digest.node);
        self.start();
        Ok(())
    }

    /// The commitment.
    ///
    /// # Errors
    /// [`CommitError::Short`] where bytes are missing.
    pub fn finish(self) -> Result<Commitment, CommitError> {
        if let Some((leaf, rest, _)) = self.current {
            let (tensor, index) = (leaf.tensor as usize, u64::from(leaf.leaf));
            let mut later = self.layout.lengths.iter().skip(tensor).copied();
            let (length, _) = self.layout.place(leaf)?;
            let done = index * LEAF as u64 + (length - rest) as u64;
            let missing = later.next().unwrap_or(0) - done + later.sum::<u64>();
            return Err(CommitError::Short { missing });
        }
        let mut levels = vec![self.leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let parents = level.chunks(2).map(|pair| match pair {
                [left, right] => self.domains.node(left, right),
                alone => alone.first().copied().unwrap_or_default(),
            });
            levels.push(parents.collect());
        }
        let top = levels.last().and_then(|level| level.first());
        let root = self.layout.root(top.unwrap_or(&[0; 32]));
        Ok(Commitment {
            layout: self.layout,
            levels,
            root,
        })
    }
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Builder({} of {} leaves)",
            self.leaves.len(),
            self.layout.leaves()
        )
    }
}

/// A trace's tree, kept by who committed to it. The trace itself is kept elsewhere.
pub struct Commitment {
    layout: Layout,
    /// The leaves' digests, then level by level up to a single one.
    levels: Vec<Vec<Node>>,
    root: Root,
}

impl Commitment {
    /// What is told to the other side.
    pub fn root(&self) -> Root {
        self.root
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Opens `leaves` for who has the `known` ones already; `read(leaf, length)` gives the bytes that were committed to.
    ///
    /// Both are in strictly increasing order, and no leaf is in both; one of them may be empty.
    ///
    /// # Errors
    /// [`CommitError::Order`], [`CommitError::NoLeaf`].
    pub fn open(
        &self,
        leaves: &[LeafId],
        known: &[LeafId],
        mut read: impl FnMut(LeafId, usize) -> Vec<u8>,
    ) -> Result<Opening, CommitError> {
        let numbers = self.layout.numbers(leaves, known)?;
        let mut path = Vec::new();
        climb(
            numbers.into_iter().map(|number| (number, ())).collect(),
            self.layout.leaves(),
            |(), ()| (),
            |level, number| {
                path.push(*self.levels.get(level)?.get(number)?);
                Some(())
            },
        );
        let mut opened = Vec::with_capacity(leaves.len());
        for &leaf in leaves {
            let (length, _) = self.layout.place(leaf)?;
            opened.push((leaf, read(leaf, length)));
        }
        Ok(Opening::new(opened, path))
    }
}

impl fmt::Debug for Commitment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Commitment({}, {} leaves)",
            self.root,
            self.layout.leaves()
        )
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests;
