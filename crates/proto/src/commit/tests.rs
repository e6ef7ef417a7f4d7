//! Trees against their definition, and every way in which an opening must be refused.

use super::*;
use crate::wire::DecodeError;

/// A small generator of reproducible bytes.
struct Chance(u64);

impl Chance {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        self.bits() as usize % limit
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.bits() as u8).collect()
    }
}

type Trace = Vec<Vec<u8>>;

fn layout(trace: &Trace) -> Layout {
    Layout::new(trace.iter().map(|tensor| tensor.len() as u64).collect()).unwrap()
}

fn commit(trace: &Trace) -> Commitment {
    let mut builder = Builder::new(layout(trace));
    for tensor in trace {
        builder.push(tensor).unwrap();
    }
    builder.finish().unwrap()
}

fn bytes_of(trace: &Trace, leaf: LeafId, length: usize) -> Vec<u8> {
    let from = leaf.leaf as usize * LEAF;
    trace[leaf.tensor as usize][from..from + length].to_vec()
}

fn open(trace: &Trace, leaves: &[LeafId]) -> Opening {
    let read = |leaf, length| bytes_of(trace, leaf, length);
    commit(trace).open(leaves, &[], read).unwrap()
}

fn id(tensor: u32, leaf: u32) -> LeafId {
    LeafId { tensor, leaf }
}

/// Tensors of 1, 3 and 2 leaves, with short last ones, and one of a single byte.
fn sample(chance: &mut Chance) -> Trace {
    [LEAF, 2 * LEAF + 5, LEAF + 1, 1]
        .map(|length| chance.bytes(length))
        .into()
}

fn all(layout: &Layout) -> Vec<LeafId> {
    (0..layout.leaves())
        .map(|number| layout.leaf(number).unwrap())
        .collect()
}

/// The tree by its definition, recursively, with digests made from scratch.
fn by_definition(trace: &Trace) -> Root {
    fn derive(domain: &str, parts: &[&[u8]]) -> Node {
        blake3::derive_key(domain, &parts.concat())
    }
    let mut nodes = Vec::new();
    for (tensor, bytes) in trace.iter().enumerate() {
        for (leaf, bytes) in bytes.chunks(LEAF).enumerate() {
            let place = [(tensor as u32).to_le_bytes(), (leaf as u32).to_le_bytes()].concat();
            let length = (bytes.len() as u64).to_le_bytes();
            nodes.push(derive(
                "larvatus 2026 trace leaf v1",
                &[bytes, &place, &length],
            ));
        }
    }
    while nodes.len() > 1 {
        let parent = |pair: &[Node]| match pair {
            [left, right] => derive("larvatus 2026 trace node v1", &[left, right]),
            _ => pair[0],
        };
        nodes = nodes.chunks(2).map(parent).collect();
    }
    let numbers = [LEAF as u64, trace.len() as u64];
    let lengths = trace.iter().map(|tensor| tensor.len() as u64);
    let numbers: Vec<u8> = numbers
        .into_iter()
        .chain(lengths)
        .flat_map(u64::to_le_bytes)
        .collect();
    Root(Digest(derive(
        "larvatus 2026 trace root v1",
        &[&numbers, &nodes[0]],
    )))
}

#[test]
fn roots_are_those_of_the_definition() {
    let mut chance = Chance(1);
    for lengths in [
        vec![1],
        vec![LEAF],
        vec![LEAF + 1],
        vec![1; 7],
        vec![3 * LEAF, 1, LEAF - 1, 4 * LEAF + 9],
    ] {
        let trace: Trace = lengths.iter().map(|&length| chance.bytes(length)).collect();
        assert_eq!(commit(&trace).root(), by_definition(&trace), "{lengths:?}");
    }
}

#[test]
fn pieces_of_any_size_give_the_same_root() {
    let mut chance = Chance(2);
    let trace = sample(&mut chance);
    let whole = trace.concat();
    for most in [1 << 12, LEAF, LEAF + 1, whole.len()] {
        let mut builder = Builder::new(layout(&trace));
        let mut rest = whole.as_slice();
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at((1 + chance.below(most)).min(rest.len()));
            builder.push(piece).unwrap();
            rest = tail;
        }
        assert_eq!(builder.finish().unwrap().root(), commit(&trace).root());
    }
    let words: Vec<u32> = (0..40_000).map(|_| chance.bits() as u32).collect();
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let trace = vec![bytes];
    let mut builder = Builder::new(layout(&trace));
    builder.push_words(&words).unwrap();
    assert_eq!(builder.finish().unwrap().root(), commit(&trace).root());
}

#[test]
fn digests_of_leaves_give_the_same_root_in_their_turn_only() {
    let trace = sample(&mut Chance(4));
    let layout = layout(&trace);
    let digest = |leaf: LeafId| {
        let (length, _) = layout.place(leaf).unwrap();
        LeafDigest::of(leaf, &bytes_of(&trace, leaf, length))
    };
    let mut builder = Builder::new(layout.clone());
    for (number, leaf) in all(&layout).into_iter().enumerate() {
        for other in all(&layout).into_iter().filter(|other| *other != leaf) {
            let refused = builder.push_digest(digest(other));
            assert_eq!(refused, Err(CommitError::Turn { leaf: other }));
        }
        let short = LeafDigest::of(leaf, &[]);
        assert_eq!(builder.push_digest(short), Err(CommitError::Turn { leaf }));
        if number % 2 == 0 {
            builder.push_digest(digest(leaf)).unwrap();
            continue;
        }
        let (length, _) = layout.place(leaf).unwrap();
        for byte in bytes_of(&trace, leaf, length) {
            builder.push(&[byte]).unwrap();
            // A leaf that is begun is not anybody's turn; the last byte ends it.
            let rest = LeafDigest::of(leaf, &vec![0; length - 1]);
            assert_eq!(builder.push_digest(rest), Err(CommitError::Turn { leaf }));
        }
    }
    assert_eq!(builder.finish().unwrap().root(), commit(&trace).root());
}

#[test]
fn every_choice_of_leaves_opens() {
    let mut chance = Chance(3);
    let trace: Trace = [5 * LEAF, 10, 2 * LEAF, 3]
        .map(|length| chance.bytes(length))
        .into();
    let (layout, commitment) = (layout(&trace), commit(&trace));
    let every = all(&layout);
    for choice in 1..1_usize << every.len() {
        let chosen = every
            .iter()
            .enumerate()
            .filter(|(at, _)| choice >> at & 1 == 1);
        let asked: Vec<LeafId> = chosen.map(|(_, &leaf)| leaf).collect();
        let opening = open(&trace, &asked);
        let encoded = opening.encode();
        let decoded = Opening::decode(&layout, every.len(), &[], &encoded).unwrap();
        assert_eq!((decoded.encode(), &decoded), (encoded, &opening));
        let opened = decoded
            .verify(commitment.root(), &layout, &asked, &[])
            .unwrap();
        for &leaf in &every {
            let (length, _) = layout.place(leaf).unwrap();
            let expected = asked
                .contains(&leaf)
                .then(|| bytes_of(&trace, leaf, length));
            assert_eq!(opened.leaf(leaf).map(<[u8]>::to_vec), expected);
        }
        assert!(opened.leaves().map(|(leaf, _)| leaf).eq(asked));
    }
}

#[test]
fn what_is_known_is_not_sent_and_must_be_right() {
    let mut chance = Chance(9);
    let trace: Trace = [5 * LEAF, 10, 2 * LEAF, 3]
        .map(|length| chance.bytes(length))
        .into();
    let (layout, commitment) = (layout(&trace), commit(&trace));
    let root = commitment.root();
    let of = |leaf: LeafId| bytes_of(&trace, leaf, layout.place(leaf).unwrap().0);
    for _ in 0..300 {
        let (mut asked, mut known) = (vec![], vec![]);
        for leaf in all(&layout) {
            match chance.below(3) {
                0 => asked.push(leaf),
                1 => known.push(leaf),
                _ => {}
            }
        }
        if asked.is_empty() && known.is_empty() {
            continue;
        }
        let read = |leaf, _| of(leaf);
        let opening = commitment.open(&asked, &known, read).unwrap();
        let encoded = opening.encode();
        let expected = Opening::encoded_bytes(&layout, &asked, &known);
        assert_eq!(Ok(encoded.len()), expected);
        assert_eq!(
            Opening::decode(&layout, 9, &known, &encoded),
            Ok(opening.clone())
        );
        let bytes: Vec<_> = known.iter().map(|&leaf| of(leaf)).collect();
        let own: Vec<(LeafId, &[u8])> = known
            .iter()
            .zip(&bytes)
            .map(|(leaf, bytes)| (*leaf, bytes.as_slice()))
            .collect();
        let opened = opening.clone().verify(root, &layout, &asked, &own).unwrap();
        let mut both = [asked.as_slice(), &known].concat();
        both.sort_unstable();
        assert!(opened.leaves().map(|(leaf, _)| leaf).eq(both.clone()));

        // Some of these alone, as the worker itself would have opened them.
        let some: Vec<LeafId> = both
            .iter()
            .copied()
            .filter(|_| chance.below(2) == 0)
            .collect();
        if !some.is_empty() {
            let narrow = opened.narrow(&layout, &some).unwrap();
            assert_eq!(narrow, commitment.open(&some, &[], read).unwrap());
            assert!(narrow.verify(root, &layout, &some, &[]).is_ok());
        }
        let absent = all(&layout).into_iter().find(|leaf| !both.contains(leaf));
        if let Some(leaf) = absent {
            let refused = opened.narrow(&layout, &[leaf]);
            assert_eq!(refused, Err(CommitError::NoLeaf { leaf }));
        }

        // Another byte of a known leaf leads elsewhere.
        if let Some((leaf, bytes)) = own.first() {
            let mut other = bytes.to_vec();
            other[0] ^= 1;
            let mut changed = own.clone();
            changed[0] = (*leaf, &other);
            let refused = opening.verify(root, &layout, &asked, &changed);
            assert!(
                matches!(refused, Err(OpenError::Root { .. })),
                "{refused:?}"
            );
        }
    }
}

#[test]
fn a_leaf_is_asked_for_or_known_not_both() {
    let mut chance = Chance(10);
    let trace = sample(&mut chance);
    let commitment = commit(&trace);
    let one = [id(0, 0)];
    let read = |_, _| vec![];
    assert_eq!(commitment.open(&one, &one, read), Err(CommitError::Order));
    assert_eq!(commitment.open(&[], &[], read), Err(CommitError::Order));
    let unsorted = [id(1, 0), id(0, 0)];
    assert_eq!(
        commitment.open(&[], &unsorted, read),
        Err(CommitError::Order)
    );
}

#[test]
fn ranges_are_covered_by_the_leaves_that_hold_them() {
    let mut chance = Chance(11);
    let layout = layout(&sample(&mut chance));
    let leaf = LEAF as u64;
    assert_eq!(layout.covering(1, 0..1), Ok(vec![id(1, 0)]));
    let middle = layout.covering(1, leaf - 1..leaf + 1);
    assert_eq!(middle, Ok(vec![id(1, 0), id(1, 1)]));
    assert_eq!(layout.covering(1, leaf..2 * leaf), Ok(vec![id(1, 1)]));
    assert_eq!(layout.covering(1, 7..7), Ok(vec![]));
    let beyond = layout.covering(2, leaf..2 * leaf + 1);
    assert_eq!(beyond, Err(CommitError::NoLeaf { leaf: id(2, 2) }));
    assert_eq!(layout.bytes_of(id(2, 1)), Ok(1));
}

#[test]
fn openings_are_as_short_as_can_be() {
    let trace: Trace = vec![vec![7; 64 * LEAF]];
    let one = open(&trace, &[id(0, 41)]);
    assert_eq!(one.path.len(), 6);
    assert!(one.encode().len() <= 2 * LEAF + 32 * 6);
    assert_eq!(open(&trace, &[id(0, 40), id(0, 41)]).path.len(), 5);
    assert_eq!(open(&trace, &all(&layout(&trace))).path.len(), 0);
    let first_and_last = open(&trace, &[id(0, 0), id(0, 63)]);
    assert_eq!(first_and_last.path.len(), 10);
}

#[test]
fn any_changed_byte_of_a_leaf_or_digest_is_another_root() {
    let mut chance = Chance(4);
    let trace = sample(&mut chance);
    let (layout, root) = (layout(&trace), commit(&trace).root());
    let asked = [id(1, 0), id(1, 2), id(3, 0)];
    let opening = open(&trace, &asked);
    let assert_refused = |changed: Opening| {
        let refused = changed.verify(root, &layout, &asked, &[]);
        let Err(OpenError::Root { expected, got }) = refused else {
            panic!("{refused:?}");
        };
        assert!(expected == root && got != root);
    };
    for _ in 0..200 {
        let mut changed = opening.clone();
        let leaf = chance.below(asked.len());
        let bytes = &mut changed.leaves[leaf].1;
        let at = chance.below(bytes.len());
        bytes[at] ^= 1 << chance.below(8);
        assert_refused(changed);
    }
    for at in 0..32 * opening.path.len() {
        let mut changed = opening.clone();
        changed.path[at / 32][at % 32] ^= 1 << chance.below(8);
        assert_refused(changed);
    }
}

#[test]
fn tricks_with_the_tree_are_refused() {
    let mut chance = Chance(5);
    let trace: Trace = [2 * LEAF, 2 * LEAF]
        .map(|length| chance.bytes(length))
        .into();
    let (own, commitment) = (layout(&trace), commit(&trace));
    let root = commitment.root();
    let refused = |opening: Opening, layout: &Layout, asked: &[LeafId]| {
        opening.verify(root, layout, asked, &[]).unwrap_err()
    };
    let is_root = |error| matches!(error, OpenError::Root { expected, .. } if expected == root);

    // Two nodes passed off as a leaf of a trace with a single one, and four as one of two.
    let joined = |level: usize| commitment.levels[level].concat();
    for (level, path) in [(1, vec![]), (0, vec![])] {
        let bytes = joined(level);
        let other = Layout::new(vec![bytes.len() as u64]).unwrap();
        let leaves = vec![(id(0, 0), bytes)];
        assert!(is_root(refused(
            Opening { leaves, path },
            &other,
            &[id(0, 0)]
        )));
    }
    // A leaf's digest in place of its parent's, a shorter path, a longer one.
    let opening = open(&trace, &[id(0, 0)]);
    let mut changed = opening.clone();
    changed.path.remove(0);
    let short = refused(changed, &own, &[id(0, 0)]);
    assert_eq!(
        short,
        OpenError::Path {
            expected: 2,
            got: 1
        }
    );
    let mut changed = opening.clone();
    changed.path.push([0; 32]);
    let long = refused(changed, &own, &[id(0, 0)]);
    assert_eq!(
        long,
        OpenError::Path {
            expected: 2,
            got: 3
        }
    );
    let mut changed = opening.clone();
    changed.path.swap(0, 1);
    assert!(is_root(refused(changed, &own, &[id(0, 0)])));

    // The leaf of another place: as itself, and under the name of the one that was asked for.
    let wrong = refused(open(&trace, &[id(0, 1)]), &own, &[id(0, 0)]);
    let (expected, got) = (id(0, 0), id(0, 1));
    assert_eq!(wrong, OpenError::NotAsked { expected, got });
    let mut changed = open(&trace, &[id(0, 1)]);
    changed.leaves[0].0 = id(0, 0);
    assert!(is_root(refused(changed, &own, &[id(0, 0)])));
    let mut changed = open(&trace, &[id(0, 0), id(1, 1)]);
    let bytes = changed.leaves[0].1.clone();
    changed.leaves[0].1 = std::mem::replace(&mut changed.leaves[1].1, bytes);
    assert!(is_root(refused(changed, &own, &[id(0, 0), id(1, 1)])));
    // The same leaf twice, one too few, one too many.
    let mut changed = open(&trace, &[id(0, 0), id(0, 1)]);
    changed.leaves[1] = changed.leaves[0].clone();
    let twice = refused(changed, &own, &[id(0, 0), id(0, 1)]);
    let (expected, got) = (id(0, 1), id(0, 0));
    assert_eq!(twice, OpenError::NotAsked { expected, got });
    let few = refused(opening.clone(), &own, &[id(0, 0), id(0, 1)]);
    assert_eq!(
        few,
        OpenError::Count {
            expected: 2,
            got: 1
        }
    );
    let many = refused(open(&trace, &[id(0, 0), id(0, 1)]), &own, &[id(0, 0)]);
    assert_eq!(
        many,
        OpenError::Count {
            expected: 1,
            got: 2
        }
    );

    // Other boundaries between the same bytes, and other lengths.
    for lengths in [[LEAF, 3 * LEAF], [3 * LEAF, LEAF], [2 * LEAF, 2 * LEAF - 1]] {
        let other = Layout::new(lengths.map(|length| length as u64).into()).unwrap();
        let asked = [id(0, 0)];
        assert!(
            is_root(refused(opening.clone(), &other, &asked)),
            "{lengths:?}"
        );
    }
    let other = Layout::new(vec![2 * LEAF as u64, LEAF as u64 + 9]).unwrap();
    let asked = [id(1, 1)];
    let length = OpenError::Length {
        leaf: id(1, 1),
        expected: 9,
        got: LEAF,
    };
    assert_eq!(refused(open(&trace, &asked), &other, &asked), length);

    // What was not committed to cannot be asked for, and neither can nothing.
    let leaf = id(0, 2);
    let none = OpenError::Asked(CommitError::NoLeaf { leaf });
    assert_eq!(refused(opening.clone(), &own, &[leaf]), none);
    let order = OpenError::Asked(CommitError::Order);
    assert_eq!(refused(opening.clone(), &own, &[]), order);
    assert_eq!(refused(opening, &own, &[id(0, 1), id(0, 0)]), order);
}

#[test]
fn traces_that_differ_in_form_alone_have_other_roots() {
    let (a, b, c) = (vec![1; LEAF], vec![2; LEAF], vec![3; LEAF]);
    let join = |parts: &[&Vec<u8>]| parts.iter().flat_map(|part| part.iter().copied()).collect();
    let traces: Vec<Trace> = vec![
        vec![a.clone(), b.clone(), c.clone()],
        // The last leaf twice, which a tree that pairs a node with itself could not tell apart.
        vec![a.clone(), b.clone(), c.clone(), c.clone()],
        vec![join(&[&a, &b, &c])],
        vec![join(&[&a, &b, &c, &c])],
        vec![join(&[&a, &b]), c.clone()],
        vec![a.clone(), join(&[&b, &c])],
        vec![b.clone(), a.clone(), c.clone()],
        vec![a.clone(), c.clone(), b.clone()],
        vec![a.clone(), b.clone(), c[1..].to_vec()],
        vec![a.clone(), b.clone(), [c.as_slice(), &[0]].concat()],
        vec![a, b],
    ];
    let roots: std::collections::HashSet<Root> =
        traces.iter().map(|trace| commit(trace).root()).collect();
    assert_eq!(roots.len(), traces.len());
}

#[test]
fn traces_that_do_not_fit_are_refused() {
    assert_eq!(Layout::new(vec![]), Err(CommitError::NoTensors));
    let empty = CommitError::EmptyTensor { tensor: 1 };
    assert_eq!(Layout::new(vec![1, 0]), Err(empty));
    let got = MAX_TENSORS + 1;
    assert_eq!(Layout::new(vec![1; got]), Err(CommitError::Tensors { got }));
    let most = (MAX_LEAVES * LEAF) as u64;
    assert!(Layout::new(vec![most]).is_ok());
    for lengths in [vec![1, most], vec![1, u64::MAX], vec![most, 1]] {
        let tensor = 1;
        assert_eq!(Layout::new(lengths), Err(CommitError::Leaves { tensor }));
    }
    let two = || Builder::new(Layout::new(vec![10, LEAF as u64 + 2]).unwrap());
    let missing = |pushed: usize| {
        let mut builder = two();
        builder.push(&vec![0; pushed]).unwrap();
        builder.finish().map(|_| ()).unwrap_err()
    };
    for pushed in [0, 9, 10, 11, LEAF + 10, LEAF + 11] {
        let missing_bytes = (LEAF + 12 - pushed) as u64;
        let expected = CommitError::Short {
            missing: missing_bytes,
        };
        assert_eq!(missing(pushed), expected);
    }
    let mut builder = two();
    let long = builder.push(&vec![0; LEAF + 15]);
    assert_eq!(long, Err(CommitError::Long { extra: 3 }));
}

#[test]
fn other_encodings_are_refused() {
    let mut chance = Chance(6);
    let trace = sample(&mut chance);
    let layout = layout(&trace);
    let encoded = open(&trace, &[id(2, 1), id(3, 0)]).encode();
    let decode = |bytes: &[u8]| Opening::decode(&layout, 3, &[], bytes);
    for cut in [0, 3, 4, 19, 20, encoded.len() - 33, encoded.len() - 1] {
        let refused = decode(&encoded[..cut]);
        let truncated = matches!(refused, Err(DecodeError::Truncated { .. }));
        assert!(truncated, "{cut}: {refused:?}");
    }
    let longer = [encoded.as_slice(), &[0]].concat();
    assert_eq!(decode(&longer), Err(DecodeError::Trailing { extra: 1 }));
    let too_many = Err(DecodeError::TooMany {
        what: "leaves of an opening",
        limit: 1,
        got: 2,
    });
    assert_eq!(Opening::decode(&layout, 1, &[], &encoded), too_many);
    let mut huge = encoded.clone();
    huge[..4].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = Opening::decode(&layout, usize::MAX, &[], &huge);
    assert!(matches!(refused, Err(DecodeError::Truncated { .. })));
    let unordered = |first: LeafId, second: LeafId| {
        let mut bytes = encoded.clone();
        let ids = [first.tensor, first.leaf, second.tensor, second.leaf];
        for (place, id) in bytes[4..].chunks_mut(4).zip(ids) {
            place.copy_from_slice(&id.to_le_bytes());
        }
        decode(&bytes)
    };
    for (first, second, got) in [
        (id(3, 0), id(2, 1), 1),
        (id(3, 0), id(3, 0), 1),
        (id(2, 2), id(3, 0), 0),
        (id(2, 1), id(4, 0), 1),
    ] {
        let expected = Err(DecodeError::Inconsistent {
            what: "leaves of an opening that exist and are in order",
            expected: 2,
            got,
        });
        assert_eq!(unordered(first, second), expected);
    }
}

#[test]
fn ten_thousand_mutations_prove_nothing() {
    let mut chance = Chance(7);
    // Small leaves only, so that most mutations meet the structure.
    let trace: Trace = (1..40).map(|length| chance.bytes(length)).collect();
    let (layout, root) = (layout(&trace), commit(&trace).root());
    let mut decoded = 0;
    for _ in 0..10_000 {
        let mut asked: Vec<LeafId> = (0..1 + chance.below(4))
            .map(|_| id(chance.below(trace.len()) as u32, 0))
            .collect();
        asked.sort();
        asked.dedup();
        let original = open(&trace, &asked).encode();
        let mut bytes = original.clone();
        for _ in 0..1 + chance.below(3) {
            let at = chance.below(bytes.len());
            match chance.below(5) {
                0 => bytes[at] ^= 1 << chance.below(8),
                1 => bytes[at] = chance.bits() as u8,
                2 => bytes.truncate(at),
                3 => bytes.insert(at, chance.bits() as u8),
                _ => {
                    let other = chance.below(bytes.len());
                    bytes.swap(at, other);
                }
            }
            if bytes.is_empty() {
                break;
            }
        }
        let Ok(opening) = Opening::decode(&layout, 4, &[], &bytes) else {
            continue;
        };
        decoded += 1;
        assert_eq!(opening.encode(), bytes, "one form");
        let verified = opening.verify(root, &layout, &asked, &[]);
        assert_eq!(verified.is_ok(), bytes == original);
    }
    assert!(decoded > 1000, "{decoded} reached the verifier");
}
