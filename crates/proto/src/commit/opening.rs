//! Openings: leaves of a trace, and the digests that lead from them to its root.

use std::collections::BTreeMap;
use std::fmt;

use super::{CommitError, Domains, Layout, LeafId, Node, OpenError, Root};
use crate::wire::{DecodeError, Reader, Writer};

/// Leaves of a trace and the digests that lead from them to its root: a claim until it is verified.
///
/// One leaf of n takes its own bytes, 12 bytes, and 32 for each of at most log₂ n levels.
#[derive(Clone, PartialEq, Eq)]
pub struct Opening {
    /// In strictly increasing order.
    pub(super) leaves: Vec<(LeafId, Vec<u8>)>,
    /// Level by level from the leaves up, from left to right.
    pub(super) path: Vec<Node>,
}

impl Opening {
    pub(super) fn new(leaves: Vec<(LeafId, Vec<u8>)>, path: Vec<Node>) -> Self {
        Self { leaves, path }
    }

    /// Holds an opening against a root.
    ///
    /// `layout`, `asked` and `known` are the asker's own; `known` are leaves whose bytes it has, in strictly increasing
    /// order and none of them asked for. The result is the proof that all these leaves are those that were committed to;
    /// there is no other way to one.
    ///
    /// # Errors
    /// [`OpenError`], with the first thing that is wrong.
    pub fn verify(
        self,
        root: Root,
        layout: &Layout,
        asked: &[LeafId],
        known: &[(LeafId, &[u8])],
    ) -> Result<Opened, OpenError> {
        let own: Vec<LeafId> = known.iter().map(|(leaf, _)| *leaf).collect();
        layout.numbers(asked, &own)?;
        if self.leaves.len() != asked.len() {
            let (expected, got) = (asked.len(), self.leaves.len());
            return Err(OpenError::Count { expected, got });
        }
        for (&expected, (got, _)) in asked.iter().zip(&self.leaves) {
            if *got != expected {
                let got = *got;
                return Err(OpenError::NotAsked { expected, got });
            }
        }
        let mut leaves = self.leaves;
        leaves.extend(known.iter().map(|(leaf, bytes)| (*leaf, bytes.to_vec())));
        leaves.sort_unstable_by_key(|(leaf, _)| *leaf);
        let domains = Domains::new();
        let mut hashed = Vec::with_capacity(leaves.len());
        for (leaf, bytes) in &leaves {
            let (expected, number) = layout.place(*leaf)?;
            if bytes.len() != expected {
                return Err(OpenError::Length {
                    leaf: *leaf,
                    expected,
                    got: bytes.len(),
                });
            }
            let mut hasher = domains.leaf.clone();
            hasher.update(bytes);
            hashed.push((number, Domains::leaf(hasher, *leaf, expected)));
        }
        let expected = path_length(hashed.iter().map(|(number, _)| *number), layout.leaves());
        let mut nodes: BTreeMap<(usize, usize), Node> = hashed
            .iter()
            .map(|(number, node)| ((0, *number), *node))
            .collect();
        let mut path = self.path.iter().copied();
        let top = climb(
            hashed,
            layout.leaves(),
            |left: &Node, right: &Node| domains.node(left, right),
            |level, number| {
                let node = path.next()?;
                nodes.insert((level, number), node);
                Some(node)
            },
        );
        let (Some(top), None) = (top, path.next()) else {
            let got = self.path.len();
            return Err(OpenError::Path { expected, got });
        };
        let got = layout.root(&top);
        if got != root {
            let expected = root;
            return Err(OpenError::Root { expected, got });
        }
        Ok(Opened { leaves, nodes })
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

    /// Decodes an opening of at most `limit` leaves of a trace of this layout, beside the `known` ones; every length
    /// follows from these.
    ///
    /// Nothing is allocated beyond the size of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are not the one encoding of an opening.
    pub fn decode(
        layout: &Layout,
        limit: usize,
        known: &[LeafId],
        bytes: &[u8],
    ) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let count = reader.count("leaves of an opening", limit)?;
        let mut table = Reader::new(reader.take(count.saturating_mul(8))?);
        let mut ids = Vec::with_capacity(count);
        for _ in 0..count {
            let (tensor, leaf) = (table.u32()?, table.u32()?);
            ids.push(LeafId { tensor, leaf });
        }
        let inconsistent = |_: CommitError| DecodeError::Inconsistent {
            what: "leaves of an opening that exist and are in order",
            expected: count as u64,
            got: in_order(layout, &ids),
        };
        let numbers = layout.numbers(&ids, known).map_err(inconsistent)?;
        let mut leaves = Vec::with_capacity(count);
        for &leaf in &ids {
            let (length, _) = layout.place(leaf).map_err(inconsistent)?;
            leaves.push((leaf, reader.take(length)?.to_vec()));
        }
        let length = path_length(numbers.into_iter(), layout.leaves());
        let nodes = reader.take(length * size_of::<Node>())?;
        let path = nodes.as_chunks().0.to_vec();
        reader.finish()?;
        Ok(Self { leaves, path })
    }

    /// The bytes that the opening of these leaves takes when it is encoded.
    ///
    /// # Errors
    /// [`CommitError::Order`], [`CommitError::NoLeaf`].
    pub fn encoded_bytes(
        layout: &Layout,
        asked: &[LeafId],
        known: &[LeafId],
    ) -> Result<usize, CommitError> {
        let numbers = layout.numbers(asked, known)?;
        let mut bytes = 4;
        for &leaf in asked {
            bytes += 8 + layout.place(leaf)?.0;
        }
        let path = path_length(numbers.into_iter(), layout.leaves());
        Ok(bytes + path * size_of::<Node>())
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
    /// In strictly increasing order.
    leaves: Vec<(LeafId, Vec<u8>)>,
    /// The digests of these leaves and those that came with them, by level and number: they lead to the root.
    nodes: BTreeMap<(usize, usize), Node>,
}

impl Opened {
    /// The leaves that were asked for or known, in order.
    pub fn leaves(&self) -> impl Iterator<Item = (LeafId, &[u8])> {
        self.leaves
            .iter()
            .map(|(leaf, bytes)| (*leaf, bytes.as_slice()))
    }

    /// The bytes of one leaf; `None` if it was neither asked for nor known.
    pub fn leaf(&self, leaf: LeafId) -> Option<&[u8]> {
        let found = self.leaves.binary_search_by_key(&leaf, |(leaf, _)| *leaf);
        let (_, bytes) = self.leaves.get(found.ok()?)?;
        Some(bytes)
    }

    /// The opening of some of these leaves alone, with nothing of the others but digests.
    ///
    /// `layout` is the one it was verified with.
    ///
    /// # Errors
    /// [`CommitError`] where a leaf is not among them, or they are not in order.
    pub fn narrow(&self, layout: &Layout, leaves: &[LeafId]) -> Result<Opening, CommitError> {
        let numbers = layout.numbers(leaves, &[])?;
        let mut kept = Vec::with_capacity(leaves.len());
        for &leaf in leaves {
            let bytes = self.leaf(leaf).ok_or(CommitError::NoLeaf { leaf })?;
            kept.push((leaf, bytes.to_vec()));
        }
        let domains = Domains::new();
        let mut path = Vec::new();
        climb(
            numbers.into_iter().map(|number| (number, ())).collect(),
            layout.leaves(),
            |(), ()| (),
            |level, number| {
                path.push(self.node(&domains, layout.leaves(), level, number)?);
                Some(())
            },
        )
        .ok_or(CommitError::Order)?;
        Ok(Opening::new(kept, path))
    }

    /// A digest of the tree, as far as what is known leads to it.
    fn node(&self, domains: &Domains, leaves: usize, level: usize, number: usize) -> Option<Node> {
        if let Some(node) = self.nodes.get(&(level, number)) {
            return Some(*node);
        }
        let below = level.checked_sub(1)?;
        let left = self.node(domains, leaves, below, 2 * number)?;
        if 2 * number + 1 == leaves.div_ceil(1 << below) {
            return Some(left);
        }
        let right = self.node(domains, leaves, below, 2 * number + 1)?;
        Some(domains.node(&left, &right))
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
pub(super) fn climb<T>(
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
fn path_length(known: impl Iterator<Item = usize>, width: usize) -> usize {
    let mut count = 0;
    climb(
        known.map(|number| (number, ())).collect(),
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
