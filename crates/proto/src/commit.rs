//! A commitment to a trace: what a worker says that it computed, fixed before anybody says which part will be looked at.
//!
//! A trace is a list of tensors. Each is cut into leaves of [`LEAF`] bytes, the last one shorter, and a binary tree of BLAKE3
//! digests stands over the leaves of all of them. A leaf's digest covers its tensor, its place in it, its length and its
//! bytes; leaves, nodes and the root have domains of their own, so none can stand for another. A node without a
//! sibling is passed up as it is, never paired with itself. The [`Root`] covers the number of tensors and the length of
//! each, hence the form of the tree.
//!
//! Who verifies knows the [`Layout`] and says which leaves are asked for; an [`Opening`] brings these leaves and the
//! fewest digests that lead from them to the root. Given that BLAKE3 is collision resistant, an opening that verifies holds
//! the bytes that were committed to. A commitment hides nothing.
//!
//! Source: Merkle (1987); domains as in RFC 6962 §2.1; opening parts of a trace as in VeriSplit (arXiv 2406.00586, Fig. 5).

use std::fmt;

use crate::digest::Digest;
use crate::wire::{DecodeError, Reader, Writer};

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
    /// Leaves that are not in strictly increasing order, or none.
    #[error("leaves to open are not in increasing order")]
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

    /// Lengths and numbers of leaves that must be in strictly increasing order.
    fn places(&self, leaves: &[LeafId]) -> Result<Vec<(usize, usize)>, CommitError> {
        if leaves.is_empty() || !leaves.is_sorted_by(|a, b| a < b) {
            return Err(CommitError::Order);
        }
        leaves.iter().map(|&leaf| self.place(leaf)).collect()
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
        let mut hasher = Domains::new().leaf;
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

    /// Opens `leaves`, in strictly increasing order; `read(leaf, length)` gives the bytes that were committed to.
    ///
    /// # Errors
    /// [`CommitError::Order`], [`CommitError::NoLeaf`].
    pub fn open(
        &self,
        leaves: &[LeafId],
        mut read: impl FnMut(LeafId, usize) -> Vec<u8>,
    ) -> Result<Opening, CommitError> {
        let places = self.layout.places(leaves)?;
        let known = places.iter().map(|&(_, number)| (number, ())).collect();
        let mut path = Vec::new();
        climb(
            known,
            self.layout.leaves(),
            |(), ()| (),
            |level, number| {
                path.push(*self.levels.get(level)?.get(number)?);
                Some(())
            },
        );
        let bytes = leaves.iter().zip(places);
        let leaves = bytes.map(|(&leaf, (length, _))| (leaf, read(leaf, length)));
        Ok(Opening {
            leaves: leaves.collect(),
            path,
        })
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

/// Leaves of a trace and the digests that lead from them to its root: a claim until it is verified.
///
/// One leaf of n takes its own bytes, 12 bytes, and 32 for each of at most log₂ n levels.
#[derive(Clone, PartialEq, Eq)]
pub struct Opening {
    /// In strictly increasing order.
    leaves: Vec<(LeafId, Vec<u8>)>,
    /// Level by level from the leaves up, from left to right.
    path: Vec<Node>,
}

impl Opening {
    /// Holds an opening against a root.
    ///
    /// `layout` and `asked` are the asker's own. The result is the proof that the leaves are those that were committed
    /// to; there is no other way to one.
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub fn verify(
        self,
        root: Root,
        layout: &Layout,
        asked: &[LeafId],
    ) -> Result<Opened, OpenError> {
        let places = layout.places(asked)?;
        if self.leaves.len() != asked.len() {
            let (expected, got) = (asked.len(), self.leaves.len());
            return Err(OpenError::Count { expected, got });
        }
        let domains = Domains::new();
        let mut known = Vec::with_capacity(asked.len());
        for ((&leaf, (length, number)), (got, bytes)) in asked.iter().zip(places).zip(&self.leaves)
        {
            if *got != leaf {
                let (expected, got) = (leaf, *got);
                return Err(OpenError::NotAsked { expected, got });
            }
            if bytes.len() != length {
                let (expected, got) = (length, bytes.len());
                return Err(OpenError::Length {
                    leaf,
                    expected,
                    got,
                });
            }
            let mut hasher = domains.leaf.clone();
            hasher.update(bytes);
            known.push((number, Domains::leaf(hasher, leaf, length)));
        }
        let expected = path_length(&known, layout.leaves());
        let mut path = self.path.iter().copied();
        let join = |left: &Node, right: &Node| domains.node(left, right);
        let top = climb(known, layout.leaves(), join, |_, _| path.next());
        let (Some(top), None) = (top, path.next()) else {
            let got = self.path.len();
            return Err(OpenError::Path { expected, got });
        };
        let got = layout.root(&top);
        if got != root {
            let expected = root;
            return Err(OpenError::Root { expected, got });
        }
        Ok(Opened {
            leaves: self.leaves,
        })
    }

    /// The one encoding: count, places, bytes, path.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.count(self.leaves.len());
        for (leaf, _) in &self.leaves {
            out.u32(leaf.tensor).u32(leaf.leaf);
        }
        for (_, bytes) in &self.leaves {
            out.bytes(bytes);
        }
        for node in &self.path {
            out.bytes(node);
        }
        out.into_bytes()
    }

    /// Decodes an opening of at most `limit` leaves of a trace of this layout, from which every length follows.
    ///
    /// Nothing is allocated beyond the size of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are not the one encoding of an opening.
    pub fn decode(layout: &Layout, limit: usize, bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let count = reader.count("leaves of an opening", limit)?;
        let mut table = Reader::new(reader.take(count.saturating_mul(8))?);
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            let (tensor, leaf) = (table.u32()?, table.u32()?);
            ids.push(LeafId { tensor, leaf });
        }
        let places = layout.places(&ids).map_err(|_| DecodeError::Inconsistent {
            what: "leaves of an opening that exist and are in order",
            expected: count as u64,
            got: in_order(layout, &ids),
        })?;
        let mut leaves = Vec::with_capacity(count);
        for (&leaf, &(length, _)) in ids.iter().zip(&places) {
            leaves.push((leaf, reader.take(length)?.to_vec()));
        }
        let known: Vec<_> = places.iter().map(|&(_, number)| (number, ())).collect();
        let length = path_length(&known, layout.leaves());
        let nodes = reader.take(length * size_of::<Node>())?;
        let path = nodes.as_chunks().0.to_vec();
        reader.finish()?;
        Ok(Self { leaves, path })
    }
}

impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (leaves, path) = (self.leaves.len(), self.path.len());
        write!(f, "Opening({leaves} leaves, {path} digests)")
    }
}

/// Leaves that are those that were committed to. Made by [`Opening::verify`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Opened {
    leaves: Vec<(LeafId, Vec<u8>)>,
}

impl Opened {
    /// The leaves that were asked for, in order.
    pub fn leaves(&self) -> impl Iterator<Item = (LeafId, &[u8])> {
        self.leaves
            .iter()
            .map(|(leaf, bytes)| (*leaf, bytes.as_slice()))
    }

    /// The bytes of one leaf; `None` if it was not asked for.
    pub fn leaf(&self, leaf: LeafId) -> Option<&[u8]> {
        let found = self.leaves.binary_search_by_key(&leaf, |(leaf, _)| *leaf);
        let (_, bytes) = self.leaves.get(found.ok()?)?;
        Some(bytes)
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opened({} leaves)", self.leaves.len())
    }
}

/// Leads known leaves up to the top of a tree of `width` leaves, fetching what is missing: level and number.
///
/// `None` where a fetch fails or nothing is known. Known leaves are in increasing order.
fn climb<T>(
    mut known: Vec<(usize, T)>,
    mut width: usize,
    join: impl Fn(&T, &T) -> T,
    mut fetch: impl FnMut(usize, usize) -> Option<T>,
) -> Option<T> {
    let mut level = 0;
    while width > 1 {
        let mut parents = Vec::with_capacity(known.len());
        let mut nodes = known.into_iter().peekable();
        while let Some((number, node)) = nodes.next() {
            let parent = if number % 2 == 1 {
                join(&fetch(level, number - 1)?, &node)
            } else if let Some((_, right)) = nodes.next_if(|(next, _)| *next == number + 1) {
                join(&node, &right)
            } else if number + 1 < width {
                join(&node, &fetch(level, number + 1)?)
            } else {
                node
            };
            parents.push((number / 2, parent));
        }
        known = parents;
        width = width.div_ceil(2);
        level += 1;
    }
    known.into_iter().next().map(|(_, top)| top)
}

/// Digests that lead from known leaves to the top.
fn path_length<T>(known: &[(usize, T)], width: usize) -> usize {
    let known = known.iter().map(|&(number, _)| (number, ())).collect();
    let mut count = 0;
    climb(
        known,
        width,
        |(), ()| (),
        |_, _| {
            count += 1;
            Some(())
        },
    );
    count
}

/// How many leaves exist and are in order, from the first on.
fn in_order(layout: &Layout, leaves: &[LeafId]) -> u64 {
    let mut last = None;
    let good = leaves.iter().take_while(|&&leaf| {
        let good = last < Some(leaf) && layout.place(leaf).is_ok();
        last = Some(leaf);
        good
    });
    good.count() as u64
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests;
