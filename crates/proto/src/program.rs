//! The program of a worker: its linear layers and the rounds in which they are called.

mod model;

use larvatus_kernels::float;
use larvatus_kernels::linear::{Conv, MatMul, Shape, ShapeError};

use crate::commit::{CommitError, Layout};
use crate::wire::{DecodeError, Reader, Writer};

pub use model::WorkerModel;

/// Most layers of a program.
pub const MAX_LAYERS: usize = 1 << 14;
/// Most uploads of a round, and most calls of a round.
pub const MAX_ROUND: usize = 1 << 10;
/// Most bytes of an encoded program.
pub const MAX_PROGRAM: usize = 8 << 20;
/// Most words that one round may carry in one direction (8 GiB).
pub const MAX_WORDS: usize = 1 << 31;
/// Most images in one call of a layer.
pub const MAX_IMAGES: usize = 1 << 16;

/// Index of a layer in its program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub u32);

impl LayerId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for LayerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A linear map that a worker holds the weights of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// The map of one image.
    pub shape: Shape,
    /// Images in one call, one after the other.
    pub images: usize,
    /// Planes of the weights: 1 for int8, 2 for wide ones.
    pub planes: u8,
    /// A weight is `Σ planes[j] · 2^(shift·j)`.
    pub shift: u8,
}

impl LayerSpec {
    /// Words that a call of this layer reads.
    pub fn inputs(&self) -> usize {
        self.images * self.shape.inputs()
    }

    /// Words that a call of this layer answers.
    pub fn outputs(&self) -> usize {
        self.images * self.shape.outputs()
    }

    /// Floats that stand for it where weights are floats: its weights and its bias.
    pub fn float_count(&self) -> usize {
        self.shape.weights() + float::channels(&self.shape)
    }

    /// Bytes of its weights in an upload.
    pub fn weight_bytes(&self) -> usize {
        usize::from(self.planes) * self.shape.weights()
    }
}

/// How the elements of requests travel. Answers are always words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A word each: canonical, or the bits of a float where the weights are floats.
    Words,
    /// 16 bits each, signed, two to a word with the first in the low half; where an upload has an
    /// odd number of elements, its last half is unused. For what is not hidden.
    Halves,
}

impl Form {
    /// Words that so many elements take.
    pub fn words(self, elements: usize) -> usize {
        match self {
            Self::Words => elements,
            Self::Halves => elements.div_ceil(2),
        }
    }
}

/// How a worker is given the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Planes of bytes: the model's own weights.
    Planes,
    /// A canonical word each: the second share of weights that are split between two workers.
    Words,
    /// A seed of [`SEED`] bytes: the first share, which follows from it.
    Seed,
    /// IEEE binary32, weights and then one bias for each output channel. Requests and answers are the bits of
    /// such floats, a word each, and nothing is computed modulo p.
    Floats,
}

/// Bytes of a seed in the place of weights.
pub const SEED: usize = 32;

/// One layer called on one of a round's uploads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerCall {
    /// Which layer.
    pub layer: LayerId,
    /// Which upload of the round it reads.
    pub upload: u16,
}

/// Calls that travel together: one request, one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Round {
    /// Elements of each upload.
    pub uploads: Vec<usize>,
    /// The calls, in the order of their answers.
    pub calls: Vec<LayerCall>,
}

/// A worker's program: well formed by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    form: Form,
    held: Held,
    /// Whether the answers of an inference are committed to; with floats only.
    commits: bool,
    layers: Vec<LayerSpec>,
    rounds: Vec<Round>,
    largest_request: usize,
    largest_answer: usize,
}

impl Program {
    /// Puts a program together, for a worker that is given the model's own weights.
    ///
    /// # Errors
    /// [`DecodeError`] where a count exceeds its limit, a call names a layer or an upload that is
    /// not there, or an upload's length is not what its readers take.
    pub fn new(
        form: Form,
        layers: Vec<LayerSpec>,
        rounds: Vec<Round>,
    ) -> Result<Self, DecodeError> {
        limit("layers", layers.len(), MAX_LAYERS)?;
        limit("rounds", rounds.len(), MAX_LAYERS)?;
        for layer in &layers {
            limit("images", layer.images, MAX_IMAGES)?;
            if layer.images == 0 {
                return Err(DecodeError::Inconsistent {
                    what: "images of a layer",
                    expected: 1,
                    got: 0,
                });
            }
            for words in [
                layer.images.checked_mul(layer.shape.inputs()),
                layer.images.checked_mul(layer.shape.outputs()),
            ] {
                limit("words of a layer", words.unwrap_or(usize::MAX), MAX_WORDS)?;
            }
        }
        let mut program = Self {
            form,
            held: Held::Planes,
            commits: false,
            layers,
            rounds,
            largest_request: 0,
            largest_answer: 0,
        };
        for round in &program.rounds {
            program.check_round(round)?;
        }
        let most = |words: fn(&Self, &Round) -> usize| {
            let all = program.rounds.iter().map(|round| words(&program, round));
            all.max().unwrap_or(0)
        };
        (program.largest_request, program.largest_answer) =
            (most(Self::request_words), most(Self::answer_words));
        Ok(program)
    }

    /// The same program for a worker that is given its weights in this way. Shares and floats have one plane.
    #[must_use]
    pub fn with_held(&self, held: Held) -> Self {
        let mut program = Self {
            held,
            commits: self.commits && held == Held::Floats,
            ..self.clone()
        };
        if held != Held::Planes {
            for layer in &mut program.layers {
                (layer.planes, layer.shift) = (1, 0);
            }
        }
        program
    }

    /// The same program in floats for a worker that commits to the answers of every inference: the rounds of one are
    /// called in order on one connection, and the answer of the last brings the root of the trace that
    /// [`answers`](Self::answers) lays out.
    #[must_use]
    pub fn committing(&self) -> Self {
        Self {
            commits: true,
            ..self.with_held(Held::Floats)
        }
    }

    /// Whether answers are committed to.
    pub fn commits(&self) -> bool {
        self.commits
    }

    /// What is committed to of one inference: the answers of all calls as little-endian words, one tensor each, in the order of
    /// rounds and of calls within them.
    ///
    /// # Errors
    /// [`CommitError`] where there are no answers, an empty one, or more than a trace may have.
    pub fn answers(&self) -> Result<Layout, CommitError> {
        let calls = self.rounds.iter().flat_map(|round| &round.calls);
        let layers = calls.filter_map(|call| self.layer(call.layer));
        Layout::new(layers.map(|layer| 4 * layer.outputs() as u64).collect())
    }

    fn check_round(&self, round: &Round) -> Result<(), DecodeError> {
        limit("uploads", round.uploads.len(), MAX_ROUND)?;
        limit("calls", round.calls.len(), MAX_ROUND)?;
        let mut down = 0_usize;
        let mut read = vec![false; round.uploads.len()];
        for call in &round.calls {
            let layer =
                self.layers
                    .get(call.layer.index())
                    .ok_or_else(|| DecodeError::TooMany {
                        what: "layer of a call",
                        limit: self.layers.len() as u64,
                        got: u64::from(call.layer.0),
                    })?;
            let upload = usize::from(call.upload);
            let (Some(&words), Some(read)) = (round.uploads.get(upload), read.get_mut(upload))
            else {
                return Err(DecodeError::TooMany {
                    what: "upload of a call",
                    limit: round.uploads.len() as u64,
                    got: upload as u64,
                });
            };
            *read = true;
            consistent("elements of an upload", layer.inputs(), words)?;
            down = down.saturating_add(layer.outputs());
        }
        consistent(
            "uploads that are read",
            round.uploads.len(),
            read.iter().filter(|r| **r).count(),
        )?;
        let up = round
            .uploads
            .iter()
            .fold(0_usize, |sum, words| sum.saturating_add(*words));
        limit("words of a request", up, MAX_WORDS)?;
        limit("words of an answer", down, MAX_WORDS)
    }

    /// How the elements of requests travel.
    pub fn form(&self) -> Form {
        self.form
    }

    /// How the weights are given.
    pub fn held(&self) -> Held {
        self.held
    }

    /// The layers.
    pub fn layers(&self) -> &[LayerSpec] {
        &self.layers
    }

    /// A layer.
    pub fn layer(&self, id: LayerId) -> Option<&LayerSpec> {
        self.layers.get(id.index())
    }

    /// The rounds, in the order in which an inference calls them.
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// Number of the first upload of a round, counted through all rounds; `None` where the program
    /// has no such round.
    pub fn first_upload(&self, round: usize) -> Option<usize> {
        let before = self
            .rounds
            .get(..round)
            .filter(|_| round < self.rounds.len())?;
        Some(before.iter().map(|round| round.uploads.len()).sum())
    }

    /// Words of the request of a round: its uploads together.
    pub fn request_words(&self, round: &Round) -> usize {
        let uploads = round.uploads.iter();
        uploads.map(|elements| self.form.words(*elements)).sum()
    }

    /// Words of the answer of a round: its calls together.
    pub fn answer_words(&self, round: &Round) -> usize {
        round
            .calls
            .iter()
            .filter_map(|call| self.layer(call.layer))
            .map(LayerSpec::outputs)
            .sum()
    }

    /// Words of the largest request of any round.
    pub fn largest_request(&self) -> usize {
        self.largest_request
    }

    /// Words of the largest answer of any round.
    pub fn largest_answer(&self) -> usize {
        self.largest_answer
    }

    /// Bytes in the place of the weights, in the order of layers and planes.
    pub fn weight_bytes(&self) -> u64 {
        let layers = self.layers.iter();
        let bytes = layers.map(|layer| layer.weight_bytes() as u64);
        match self.held {
            Held::Planes => bytes.fold(0, u64::saturating_add),
            Held::Words => bytes.fold(0, u64::saturating_add).saturating_mul(4),
            Held::Seed => SEED as u64,
            Held::Floats => {
                let layers = self.layers.iter();
                let bytes = layers.map(|layer| 4 * layer.float_count() as u64);
                bytes.fold(0, u64::saturating_add)
            }
        }
    }

    /// Bytes of the weights once a worker holds them: where they follow from a seed, what it grows to.
    pub fn expanded_bytes(&self) -> u64 {
        match self.held {
            Held::Planes | Held::Words | Held::Floats => self.weight_bytes(),
            Held::Seed => self.with_held(Held::Words).weight_bytes(),
        }
    }

    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u8(match self.form {
            Form::Words => WORDS,
            Form::Halves => HALVES,
        });
        out.u8(match (self.held, self.commits) {
            (Held::Planes, _) => PLANES,
            (Held::Words, _) => SHARE,
            (Held::Seed, _) => SEEDED,
            (Held::Floats, false) => FLOATS,
            (Held::Floats, true) => COMMITTED,
        });
        out.count(self.layers.len());
        for layer in &self.layers {
            encode_layer(&mut out, layer);
        }
        out.count(self.rounds.len());
        for round in &self.rounds {
            out.count(round.uploads.len());
            round.uploads.iter().for_each(|elements| {
                out.count(*elements);
            });
            out.count(round.calls.len());
            round.calls.iter().for_each(|call| {
                out.u32(call.layer.0).u16(call.upload);
            });
        }
        out.into_bytes()
    }

    /// Reads an encoded program.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are not the canonical encoding of a well-formed program.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        limit("program bytes", bytes.len(), MAX_PROGRAM)?;
        let mut reader = Reader::new(bytes);
        let form = match reader.u8()? {
            WORDS => Form::Words,
            HALVES => Form::Halves,
            tag => {
                return Err(DecodeError::UnknownTag {
                    what: "form",
                    tag: u32::from(tag),
                });
            }
        };
        let (held, commits) = match reader.u8()? {
            PLANES => (Held::Planes, false),
            SHARE => (Held::Words, false),
            SEEDED => (Held::Seed, false),
            FLOATS => (Held::Floats, false),
            COMMITTED => (Held::Floats, true),
            tag => {
                return Err(DecodeError::UnknownTag {
                    what: "way to give weights",
                    tag: u32::from(tag),
                });
            }
        };
        let count = reader.count("layers", MAX_LAYERS)?;
        let layers = (0..count)
            .map(|index| decode_layer(&mut reader, index))
            .collect::<Result<_, _>>()?;
        let count = reader.count("rounds", MAX_LAYERS)?;
        let rounds = (0..count)
            .map(|_| decode_round(&mut reader))
            .collect::<Result<_, _>>()?;
        reader.finish()?;
        let program = Self::new(form, layers, rounds)?;
        let shared = program.with_held(held);
        // Shares have one plane, and there is one encoding.
        if held != Held::Planes && shared.layers != program.layers {
            return Err(DecodeError::Inconsistent {
                what: "planes of a share",
                expected: 1,
                got: 2,
            });
        }
        if held == Held::Floats && form != Form::Words {
            return Err(DecodeError::Inconsistent {
                what: "form of floats",
                expected: u64::from(WORDS),
                got: u64::from(HALVES),
            });
        }
        Ok(Self { commits, ..shared })
    }
}

fn limit(what: &'static str, got: usize, limit: usize) -> Result<(), DecodeError> {
    if got > limit {
        return Err(DecodeError::TooMany {
            what,
            limit: limit as u64,
            got: got as u64,
        });
    }
    Ok(())
}

fn consistent(what: &'static str, expected: usize, got: usize) -> Result<(), DecodeError> {
    if got != expected {
        return Err(DecodeError::Inconsistent {
            what,
            expected: expected as u64,
            got: got as u64,
        });
    }
    Ok(())
}

const WORDS: u8 = 1;
const HALVES: u8 = 2;
const PLANES: u8 = 1;
const SHARE: u8 = 2;
const SEEDED: u8 = 3;
const FLOATS: u8 = 4;
const COMMITTED: u8 = 5;
const CONV: u8 = 1;
const MATMUL: u8 = 2;

/// Appends a layer's one encoding.
pub fn encode_layer(out: &mut Writer, layer: &LayerSpec) {
    match &layer.shape {
        Shape::Conv(conv) => {
            out.u8(CONV);
            for size in [conv.groups, conv.in_channels, conv.out_channels] {
                out.count(size);
            }
            for pair in [
                conv.input,
                conv.kernel,
                conv.stride,
                conv.dilation,
                conv.pad_begin,
                conv.pad_end,
            ] {
                pair.iter().for_each(|size| {
                    out.count(*size);
                });
            }
        }
        Shape::MatMul(matmul) => {
            out.u8(MATMUL);
            for size in [matmul.groups, matmul.rows, matmul.inner, matmul.columns] {
                out.count(size);
            }
        }
    }
    out.count(layer.images).u8(layer.planes).u8(layer.shift);
}

/// Reads what [`encode_layer`] wrote. Whether planes and shift go together, the weights will tell.
///
/// # Errors
/// [`DecodeError`] where the bytes are no layer; `layer` is its number for [`DecodeError::Shape`].
pub fn decode_layer(reader: &mut Reader<'_>, layer: usize) -> Result<LayerSpec, DecodeError> {
    let tag = reader.u8()?;
    let mut size = || reader.count("a layer's size", MAX_WORDS);
    let refused = |source: ShapeError| DecodeError::Shape { layer, source };
    let shape = match tag {
        CONV => {
            let (groups, in_channels, out_channels) = (size()?, size()?, size()?);
            let mut pair = || Ok::<_, DecodeError>([size()?, size()?]);
            Shape::conv(Conv {
                groups,
                in_channels,
                out_channels,
                input: pair()?,
                kernel: pair()?,
                stride: pair()?,
                dilation: pair()?,
                pad_begin: pair()?,
                pad_end: pair()?,
            })
            .map_err(refused)?
        }
        MATMUL => Shape::matmul(MatMul {
            groups: size()?,
            rows: size()?,
            inner: size()?,
            columns: size()?,
        })
        .map_err(refused)?,
        tag => {
            return Err(DecodeError::UnknownTag {
                what: "layer",
                tag: u32::from(tag),
            });
        }
    };
    let images = reader.count("images", MAX_IMAGES)?;
    Ok(LayerSpec {
        shape,
        images,
        planes: reader.u8()?,
        shift: reader.u8()?,
    })
}

fn decode_round(reader: &mut Reader<'_>) -> Result<Round, DecodeError> {
    let count = reader.count("uploads", MAX_ROUND)?;
    let uploads = (0..count)
        .map(|_| reader.count("elements of an upload", MAX_WORDS))
        .collect::<Result<_, _>>()?;
    let count = reader.count("calls", MAX_ROUND)?;
    let calls = (0..count)
        .map(|_| {
            Ok(LayerCall {
                layer: LayerId(reader.u32()?),
                upload: reader.u16()?,
            })
        })
        .collect::<Result<_, DecodeError>>()?;
    Ok(Round { uploads, calls })
}
