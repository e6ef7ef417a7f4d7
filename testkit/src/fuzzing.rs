//! What fuzz targets do with bytes, as plain functions: a fuzzer calls them, and so does a test that
//! replays the committed corpus and [`Mutations`] of it on a stable toolchain.
//!
//! Each panics where a promise is broken, and only there.

use std::sync::OnceLock;

use larvatus::audit::{Evidence, Provisional};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::{Hiding, Integrity, Policy};
use larvatus_proto::commit::{LeafId, Opening};
use larvatus_proto::frame::{Frame, FrameLimits, HEADER, Header, MAX_HEAD, Reply, Request};
use larvatus_proto::program::Program;
use larvatus_proto::receipt::{Receipt, Signer};
use larvatus_worker::Limits;

use crate::chance::Chance;
use crate::whole;

/// Larger files are not tried: they take longer and find the same.
const LARGEST_MODEL: usize = 1 << 16;

/// Loads a model and plans it: no panic escapes.
///
/// # Panics
/// Where one does.
pub fn onnx_load(bytes: &[u8]) {
    if bytes.len() > LARGEST_MODEL {
        return;
    }
    if let Ok(model) = Model::load(bytes, &[]) {
        let _ = Plan::new(&model, &Policy::default());
    }
}

/// Reads a frame as a link does, then as a request and as a reply: what is one is written again as
/// the very bytes that came, and no length exceeds its limit.
///
/// # Panics
/// Where that is not so.
pub fn frame_decode(bytes: &[u8]) {
    const LIMITS: FrameLimits = FrameLimits {
        head: MAX_HEAD,
        words: 1 << 16,
    };
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER>() else {
        return;
    };
    let Ok(decoded) = Header::decode(*header, LIMITS) else {
        return;
    };
    assert!(decoded.head <= LIMITS.head && decoded.words <= LIMITS.words);
    let Some((head, payload)) = rest.split_at_checked(decoded.head) else {
        return;
    };
    let (words, _) = payload.as_chunks::<4>();
    let Some(words) = words.get(..decoded.words) else {
        return;
    };
    let words = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let frame = Frame {
        kind: decoded.kind,
        head: head.to_vec(),
        words,
    };
    assert_eq!(frame.header(), *header);
    if let Ok(request) = Request::from_frame(frame.clone()) {
        assert_eq!(request.into_frame(), frame);
    }
    if let Ok(reply) = Reply::from_frame(frame.clone()) {
        assert_eq!(reply.into_frame(), frame);
    }
}

/// Reads a program: what is one has these bytes as its only encoding, and a worker can hold it
/// against its limits.
///
/// # Panics
/// Where that is not so.
pub fn program_decode(bytes: &[u8]) {
    let Ok(program) = Program::decode(bytes) else {
        return;
    };
    assert_eq!(program.encode(), bytes);
    if Limits::default().admit(&program).is_ok() {
        let most = Limits::default().round_words;
        for round in program.rounds() {
            assert!(program.request_words(round) <= most && program.answer_words(round) <= most);
        }
    }
    let _ = program.weight_bytes();
}

/// Reads a whole network: what is one has these bytes as its only encoding, and units that can be named.
///
/// # Panics
/// Where that is not so.
pub fn graph_decode(bytes: &[u8]) {
    let Ok(graph) = larvatus_graph::Graph::decode(bytes) else {
        return;
    };
    assert_eq!(graph.encode(), bytes);
    assert!(graph.trace_bytes() <= graph.memory() && graph.cost() > 0);
    for unit in graph.draw([3; 32], 0.0) {
        assert!(
            graph
                .node_of(unit)
                .is_some_and(|node| node < graph.nodes().len())
        );
        assert!(!graph.describe(unit).is_empty());
    }
    for place in [0, graph.tensors().len() as u32 - 1] {
        assert!(!graph.describe_place(place).starts_with("no tensor"));
    }
    // Small ones as a judge takes them: nothing is opened, so nothing is shown.
    if graph.trace_bytes() < 1 << 20 && graph.weight_bytes() < 1 << 20 {
        let weights = vec![0; graph.weight_bytes() as usize];
        let nothing = std::collections::BTreeMap::new();
        for unit in graph.units().take(64) {
            assert!(!graph.needs(unit).is_empty());
            let verdict = graph.replay(&weights, unit, &nothing);
            assert!(verdict.is_err_and(|why| !why.is_lie()));
        }
    }
}

/// Reads evidence, a receipt, a record of a run and an opening: what is one is written again as the very bytes that came, and
/// nothing is believed that the worker of the tests has not signed.
///
/// # Panics
/// Where that is not so.
pub fn evidence_decode(bytes: &[u8]) {
    static MODEL: OnceLock<larvatus_graph::Model> = OnceLock::new();
    let model = MODEL.get_or_init(|| whole::tower(FUZZED_FLOORS, 1));
    let worker = Signer::new(whole::WORKER).public();
    if let Ok(evidence) = Evidence::decode(bytes) {
        assert_eq!(evidence.encode(), bytes);
        if evidence.judge(worker, model).is_ok() {
            assert!(evidence.claim().of(worker).is_ok());
        }
    }
    if let Ok(receipt) = Receipt::decode(bytes) {
        assert_eq!(receipt.encode(), bytes);
    }
    if let Ok(record) = Provisional::decode(bytes, Signer::new(whole::TRUSTED).public()) {
        assert_eq!(record.encode(), bytes);
    }
    let layout = model.graph().layout();
    let first = LeafId { tensor: 0, leaf: 0 };
    for known in [&[][..], &[first]] {
        if let Ok(opening) = Opening::decode(layout, layout.leaves(), known, bytes) {
            assert_eq!(opening.encode(), bytes);
        }
    }
}

/// Floors of the tower that evidence is held against.
pub const FUZZED_FLOORS: usize = 4;

/// Reads a policy: none gives up a guarantee without the word for it.
///
/// # Panics
/// Where one does.
pub fn policy_parse(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(policy) = Policy::from_toml(text) else {
        return;
    };
    // An escape in a string may spell a word otherwise.
    let says = |word: &str| text.contains(word) || text.contains('\\');
    assert!(policy.hiding() == Hiding::Field || says("clear-input"));
    match policy.integrity() {
        Integrity::Unverified => assert!(says("unverified")),
        Integrity::Checked { bits } => assert!(bits > 0),
    }
    assert!(policy.lifetime > 0);
}

/// A fuzz target.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Name of its binary and its corpus.
    pub name: &'static str,
    /// What it does with bytes.
    pub run: fn(&[u8]),
    /// Whether its bytes are a protocol buffers message, of which fields are altered too.
    pub message: bool,
}

/// All targets.
pub const TARGETS: [Target; 6] = [
    Target {
        name: "evidence_decode",
        run: evidence_decode,
        message: false,
    },
    Target {
        name: "frame_decode",
        run: frame_decode,
        message: false,
    },
    Target {
        name: "graph_decode",
        run: graph_decode,
        message: false,
    },
    Target {
        name: "onnx_load",
        run: onnx_load,
        message: true,
    },
    Target {
        name: "policy_parse",
        run: policy_parse,
        message: false,
    },
    Target {
        name: "program_decode",
        run: program_decode,
        message: false,
    },
];

/// Seeds altered at random: an endless iterator, the same in every run.
#[derive(Clone, Debug)]
pub struct Mutations<'a> {
    seeds: &'a [Vec<u8>],
    message: bool,
    chance: Chance,
}

impl<'a> Mutations<'a> {
    /// Mutations of these seeds for a target.
    pub fn new(target: &Target, seeds: &'a [Vec<u8>], seed: u64) -> Self {
        Self {
            seeds,
            message: target.message,
            chance: Chance::new(seed),
        }
    }

    fn any(&mut self) -> &'a [u8] {
        match self.seeds {
            [] => &[],
            seeds => &seeds[self.chance.below(seeds.len())],
        }
    }

    fn mutate(&mut self, case: &mut Vec<u8>) {
        let at = self.chance.below(case.len());
        let length = 1 + self
            .chance
            .below(16.min(case.len().saturating_sub(at + 1)).max(1));
        let end = (at + length).min(case.len());
        match self.chance.below(8) {
            0 => case.truncate(at),
            1 => drop(case.drain(at..end)),
            2 => {
                let again = case[at..end].to_vec();
                case.splice(at..at, again);
            }
            3 => {
                let other = self.any();
                let from = self.chance.below(other.len());
                case.truncate(at);
                case.extend_from_slice(&other[from..]);
            }
            4 => {
                // A long number, as protocol buffers write one.
                let bytes = 1 + self.chance.below(9);
                let mut number = vec![0xff; bytes];
                number.push(self.chance.below(128) as u8);
                case.splice(at..end, number);
            }
            5 => {
                const EDGES: [u8; 6] = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
                let edge = EDGES[self.chance.below(EDGES.len())];
                case[at..end].fill(edge);
            }
            6 => {
                let byte = self.chance.bits() as u8;
                case[at..end].iter_mut().take(1).for_each(|to| *to = byte);
            }
            _ => {
                let bit = self.chance.below(8);
                case[at..end]
                    .iter_mut()
                    .take(1)
                    .for_each(|to| *to ^= 1 << bit);
            }
        }
    }

    /// A message with one of its fields altered, the lengths around it right; `None` where the
    /// bytes are no message.
    fn restructure(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        let mut fields = fields(message)?;
        let at = self.chance.below(fields.len());
        let other = self.chance.below(fields.len());
        match self.chance.below(20) {
            0 => drop(fields.remove(at)),
            1 => fields.insert(at, fields[other].clone()),
            2 => fields.swap(at, other),
            3 => fields[at].1 = fields[other].1.clone(),
            _ => {
                let mut value = fields[at].1.clone();
                match &mut value {
                    Value::Number(number) => *number = self.number(*number),
                    Value::Fixed(bytes) => self.overwrite(bytes),
                    Value::Bytes(bytes) => {
                        let inner = self.restructure(bytes).filter(|_| bytes.len() > 2);
                        match inner.filter(|_| self.chance.happens(950)) {
                            Some(inner) => *bytes = inner,
                            None if self.chance.happens(300) => {
                                let word = WORDS[self.chance.below(WORDS.len())];
                                *bytes = word.as_bytes().to_vec();
                            }
                            None => self.mutate(bytes),
                        }
                    }
                }
                fields[at].1 = value;
            }
        }
        Some(
            fields
                .iter()
                .flat_map(|(tag, value)| value.encode(*tag))
                .collect(),
        )
    }

    fn number(&mut self, number: u64) -> u64 {
        let power = 1_u64 << self.chance.below(64);
        match self.chance.below(6) {
            0 => number.wrapping_add(1),
            1 => number.wrapping_sub(1),
            2 => power,
            3 => power.wrapping_sub(1),
            4 => power.wrapping_neg(),
            _ => self.chance.below(20) as u64,
        }
    }

    fn overwrite(&mut self, bytes: &mut [u8]) {
        let at = self.chance.below(bytes.len());
        let byte = self.chance.bits() as u8;
        bytes[at..].iter_mut().take(1).for_each(|to| *to = byte);
    }
}

/// Words that mean something in a model: operators and attributes, above all those that make
/// tensors of any size.
const WORDS: [&str; 32] = [
    "",
    "AveragePool",
    "BatchNormalization",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "DequantizeLinear",
    "Einsum",
    "Expand",
    "Gather",
    "Gemm",
    "LSTM",
    "Loop",
    "MatMul",
    "NonZero",
    "OneHot",
    "Pad",
    "Range",
    "Reshape",
    "Resize",
    "Scan",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Tile",
    "TopK",
    "Transpose",
    "Unsqueeze",
    "value",
];

/// A value of a protocol buffers field.
#[derive(Clone, Debug)]
enum Value {
    Number(u64),
    Fixed(Vec<u8>),
    Bytes(Vec<u8>),
}

impl Value {
    fn encode(&self, tag: u64) -> Vec<u8> {
        let mut out = Vec::new();
        varint(tag & !7 | self.wire(), &mut out);
        match self {
            Self::Number(number) => varint(*number, &mut out),
            Self::Fixed(bytes) => out.extend(bytes),
            Self::Bytes(bytes) => {
                varint(bytes.len() as u64, &mut out);
                out.extend(bytes);
            }
        }
        out
    }

    fn wire(&self) -> u64 {
        match self {
            Self::Number(_) => 0,
            Self::Bytes(_) => 2,
            Self::Fixed(bytes) if bytes.len() == 8 => 1,
            Self::Fixed(_) => 5,
        }
    }
}

fn varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// The fields of a message; `None` where the bytes are none, or one without fields.
fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = take_varint(&mut bytes)?;
        let value = match tag & 7 {
            0 => Value::Number(take_varint(&mut bytes)?),
            1 => Value::Fixed(take(&mut bytes, 8)?),
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                Value::Bytes(take(&mut bytes, length)?)
            }
            5 => Value::Fixed(take(&mut bytes, 4)?),
            _ => return None,
        };
        // A text may look like a message; a field's number is small.
        if tag >> 3 == 0 || tag >> 3 > 30 {
            return None;
        }
        fields.push((tag, value));
    }
    (!fields.is_empty()).then_some(fields)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn take(bytes: &mut &[u8], count: usize) -> Option<Vec<u8>> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken.to_vec())
}

impl Iterator for Mutations<'_> {
    type Item = Vec<u8>;

    fn next(&mut self) -> Option<Vec<u8>> {
        let mut case = self.any().to_vec();
        for _ in 0..=self.chance.below(4) {
            if !self.message || self.chance.happens(100) {
                self.mutate(&mut case);
            } else if let Some(other) = self.restructure(&case) {
                case = other;
            }
        }
        Some(case)
    }
}
