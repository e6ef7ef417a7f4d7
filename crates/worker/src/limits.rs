//! What a peer may make a worker hold or compute.

use std::time::Duration;

use larvatus_graph::{Graph, Op};
use larvatus_kernels::linear::{Conv, Shape};
use larvatus_proto::program::{Held, LayerSpec, Program, Round};

/// Limits of a worker. Each default is what the common models need with room to spare; a worker
/// that serves one known model may be stricter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct Limits {
    /// Connections at a time; whoever accepts them enforces it. 8: each may hold about five
    /// times [`round_words`](Self::round_words) in requests and answers, and
    /// [`batch_words`](Self::batch_words) twice.
    pub connections: usize,
    /// Models held, unfinished uploads included. 8.
    pub models: usize,
    /// Bytes of one upload. 1 GiB: VGG16 in int8 is 138 MB, BERT-large 340 MB.
    pub model_bytes: u64,
    /// Bytes of all models, unfinished uploads included. 4 GiB. While one model is made ready it
    /// is held up to three times; only one is made ready at a time.
    pub store_bytes: u64,
    /// Words of a round in one direction. 2²⁵ (128 MiB): ten images of VGG16's largest layer.
    pub round_words: usize,
    /// Multiplications of a round. 2⁴⁰: seventy images of all of VGG16.
    pub round_macs: u64,
    /// Words of several calls that are computed together, requests and answers. 2²⁵ (128 MiB): five of VGG16's
    /// largest layer.
    pub batch_words: usize,
    /// Multiplications of several calls that are computed together: a call that comes meanwhile waits for them.
    /// 2³⁶: about a third of a second on one core with AVX-512, 37 of VGG16's largest layer.
    pub batch_macs: u64,
    /// Calls of one connection that wait to be computed: what the protocol allows.
    pub calls: usize,
    /// Traces of whole graphs that are kept for all peers together; the oldest go first. 256.
    pub traces: usize,
    /// Bytes of these traces; no graph may have a larger one. 1 GiB: about ten inferences of VGG16 or ResNet-50.
    pub trace_bytes: u64,
    /// Silence after which a connection is ended. Five minutes.
    pub idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8,
            models: 8,
            model_bytes: 1 << 30,
            store_bytes: 4 << 30,
            round_words: 1 << 25,
            round_macs: 1 << 40,
            batch_words: 1 << 25,
            batch_macs: 1 << 36,
            calls: larvatus_proto::frame::MAX_CALLS,
            traces: 256,
            trace_bytes: 1 << 30,
            idle: Duration::from_secs(300),
        }
    }
}

/// Most groups of a layer. Each takes the engine some memory of its own, however small its
/// matrix; real layers have at most a few thousand.
pub const MAX_GROUPS: usize = 1 << 16;

/// Engines pack the matrix of each group in blocks of at most this many rows and columns.
const BLOCK: usize = 64;

/// Channels are filled up to whole vectors where weights are no padded matrix.
const VECTOR: usize = 16;

/// A program that asks for more than the limits allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TooMuch {
    /// A layer has too many groups.
    #[error("layer {layer}: {got} groups, the limit is {MAX_GROUPS}")]
    Groups {
        /// Index in the program.
        layer: usize,
        /// Its groups.
        got: usize,
    },
    /// The layers would take too much memory: many small matrices take more than their bytes.
    #[error("weights may take {got} bytes when packed, the limit is {limit}")]
    Packed {
        /// The worker's limit for all models.
        limit: u64,
        /// Bytes that all layers may take.
        got: u64,
    },
    /// The seed of a share grows to more than a model may have.
    #[error("weights of {got} bytes follow from the seed, the limit for a model is {limit}")]
    Expanded {
        /// The worker's limit for one model.
        limit: u64,
        /// Bytes that the seed grows to.
        got: u64,
    },
    /// A whole graph asks for too much.
    #[error("a graph of {got} {what}, the limit is {limit}")]
    Graph {
        /// Of what.
        what: &'static str,
        /// The worker's limit.
        limit: u64,
        /// What it would take.
        got: u64,
    },
    /// A round carries too many words in one direction.
    #[error("round {round}: {got} words in one direction, the limit is {limit}")]
    Words {
        /// Index in the program.
        round: usize,
        /// The worker's limit.
        limit: usize,
        /// Words of the request or of the answer, whichever is more.
        got: usize,
    },
    /// A round multiplies too often.
    #[error("round {round}: {got} multiplications, the limit is {limit}")]
    Macs {
        /// Index in the program.
        round: usize,
        /// The worker's limit.
        limit: u64,
        /// Multiplications of its calls.
        got: u64,
    },
}

impl Limits {
    /// Holds every layer and every round of a program against the limits.
    ///
    /// # Errors
    /// [`TooMuch`] names the first layer or round that exceeds one.
    pub fn admit(&self, program: &Program) -> Result<(), TooMuch> {
        let got = program.expanded_bytes();
        if program.held() == Held::Seed && got > self.model_bytes {
            let limit = self.model_bytes;
            return Err(TooMuch::Expanded { limit, got });
        }
        let mut packed = 0_u64;
        for (layer, spec) in program.layers().iter().enumerate() {
            let (got, bytes) = layer_packed(spec, program.held());
            if got > MAX_GROUPS {
                return Err(TooMuch::Groups { layer, got });
            }
            packed = packed.saturating_add(bytes);
        }
        if packed > self.store_bytes {
            return Err(TooMuch::Packed {
                limit: self.store_bytes,
                got: packed,
            });
        }
        for (round, calls) in program.rounds().iter().enumerate() {
            let got = program
                .request_words(calls)
                .max(program.answer_words(calls));
            if got > self.round_words {
                return Err(TooMuch::Words {
                    round,
                    limit: self.round_words,
                    got,
                });
            }
            let got = macs(program, calls);
            if got > self.round_macs {
                return Err(TooMuch::Macs {
                    round,
                    limit: self.round_macs,
                    got,
                });
            }
        }
        Ok(())
    }

    /// Holds a whole graph against the limits: what a run multiplies, what it takes of memory, what it leaves, and what its
    /// weights take.
    ///
    /// # Errors
    /// [`TooMuch`] names the first that is exceeded.
    pub fn admit_graph(&self, graph: &Graph) -> Result<(), TooMuch> {
        let mut packed = 0_u64;
        for (layer, node) in graph.nodes().iter().enumerate() {
            if let Op::Linear(linear) = &node.op {
                let (got, bytes) = layer_packed(&linear.spec, Held::Planes);
                if got > MAX_GROUPS {
                    return Err(TooMuch::Groups { layer, got });
                }
                packed = packed.saturating_add(bytes);
            }
        }
        let within = |what, limit: u64, got: u64| match got <= limit {
            true => Ok(()),
            false => Err(TooMuch::Graph { what, limit, got }),
        };
        let weights = packed.saturating_add(graph.weight_bytes());
        within("bytes of weights when packed", self.store_bytes, weights)?;
        within("multiplications", self.round_macs, graph.cost())?;
        within("bytes of a trace", self.trace_bytes, graph.trace_bytes())?;
        let run = self.round_words as u64 * 4;
        let beside = graph.memory().saturating_sub(graph.trace_bytes());
        within("bytes that a run takes beside its trace", run, beside)
    }

    /// The most calls of a round that are computed together: as many as the limits of a batch leave room for, and
    /// one in any case.
    pub(crate) fn batch(&self, program: &Program, round: &Round) -> usize {
        let words = program.request_words(round) + program.answer_words(round);
        let by_words = self.batch_words / words.max(1);
        let by_macs = self.batch_macs / macs(program, round).max(1);
        by_words
            .min(usize::try_from(by_macs).unwrap_or(usize::MAX))
            .max(1)
    }
}

fn macs(program: &Program, round: &Round) -> u64 {
    let layers = round
        .calls
        .iter()
        .filter_map(|call| program.layer(call.layer));
    layers.map(layer_macs).fold(0, u64::saturating_add)
}

fn layer_macs(layer: &LayerSpec) -> u64 {
    let images = layer.images as u64 * u64::from(layer.planes);
    layer.shape.macs().saturating_mul(images)
}

/// Groups of a layer, and the most bytes that its weights take when packed.
fn layer_packed(layer: &LayerSpec, held: Held) -> (usize, u64) {
    let (groups, rows) = match &layer.shape {
        Shape::Conv(conv) => (conv.groups, conv.out_channels / conv.groups),
        Shape::MatMul(matmul) => (matmul.groups, matmul.columns),
    };
    let blocks = |extent: usize| extent.next_multiple_of(BLOCK) as u64;
    let matrix = blocks(rows).saturating_mul(blocks(layer.shape.taps()));
    let planes = groups as u64 * u64::from(layer.planes);
    let other = match &layer.shape {
        Shape::Conv(conv) if groups == 1 => other_forms(conv),
        _ => 0,
    };
    let (matrix, other) = match held {
        Held::Planes => (matrix.saturating_mul(planes), other),
        // As they are uploaded.
        Held::Floats => (4 * layer.float_count() as u64, 0),
        // A word for each weight, and at the points of a 3×3 kernel.
        Held::Words | Held::Seed => (
            matrix.saturating_mul(4 * groups as u64),
            other.saturating_mul(2),
        ),
    };
    (groups, matrix.max(other))
}

/// The most bytes of the forms that are no padded matrix: two bytes at 36 points for a 3×3 kernel, and rows of
/// bytes with each pixel and each row filled up to four.
fn other_forms(conv: &Conv) -> u64 {
    let vectors = |channels: usize| channels.next_multiple_of(VECTOR) as u64;
    let row = (conv.in_channels as u64 + 3).saturating_mul(conv.kernel[1] as u64);
    let bytes = (row.saturating_add(3)).saturating_mul(conv.kernel[0] as u64);
    let points = if conv.kernel == [3, 3] {
        vectors(conv.in_channels).saturating_mul(2 * 36)
    } else {
        0
    };
    let each = bytes.saturating_add(4).max(points);
    each.saturating_mul(vectors(conv.out_channels))
}

#[cfg(test)]
mod tests {
    use larvatus_kernels::isa::Isa;
    use larvatus_kernels::linear::{Linear, MatMul, Split, Weights, WideLinear};
    use larvatus_proto::program::Form;

    use super::*;

    /// Groups, rows of one group's matrix and taps, as both kinds of layer.
    fn shapes(groups: usize, rows: usize, taps: usize) -> [Shape; 2] {
        let conv = Conv {
            groups,
            in_channels: groups * taps,
            out_channels: groups * rows,
            input: [1, 20],
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pad_begin: [0, 0],
            pad_end: [0, 0],
        };
        let matmul = MatMul {
            groups,
            rows: 2,
            inner: taps,
            columns: rows,
        };
        [Shape::conv(conv).unwrap(), Shape::matmul(matmul).unwrap()]
    }

    #[test]
    fn packed_layers_take_no_more_than_is_counted() {
        for isa in Isa::available() {
            for (groups, rows, taps) in [
                (1, 1, 1),
                (99, 1, 1),
                (7, 17, 9),
                (3, 65, 130),
                (2, 6, 4097),
                (5, 3, 31),
            ] {
                for shape in shapes(groups, rows, taps) {
                    let weights = Weights::new(vec![vec![1; shape.weights()]; 2], 4).unwrap();
                    let spec = LayerSpec {
                        shape: shape.clone(),
                        images: 1,
                        planes: 2,
                        shift: 4,
                    };
                    let held = Linear::with_isa(isa, shape, &weights).unwrap().bytes() as u64;
                    let (counted_groups, counted) = layer_packed(&spec, Held::Planes);
                    assert_eq!(counted_groups, groups);
                    let name = isa.name();
                    assert!(held <= counted, "{name} {spec:?}: {held} of {counted}");
                    share_takes_no_more_than_is_counted(isa, &spec);
                }
            }
        }
    }

    fn share_takes_no_more_than_is_counted(isa: Isa, spec: &LayerSpec) {
        let share = Split::new([1; 32]).first(0, spec.shape.weights());
        let held = WideLinear::with_isa(isa, spec.shape.clone(), &share).unwrap();
        let (_, counted) = layer_packed(spec, Held::Words);
        let name = isa.name();
        assert!(held.bytes() as u64 <= counted, "{name} {spec:?}: {held:?}");
    }

    #[test]
    fn packed_kernels_take_no_more_than_is_counted() {
        for isa in Isa::available() {
            for (channels, side, kernel) in [
                ([32, 32], 12, 3),
                ([33, 49], 14, 3),
                ([5, 64], 7, 3),
                ([1, 64], 7, 5),
                ([3, 40], 33, 7),
                ([65, 7], 5, 2),
            ] {
                let shape = Shape::conv(Conv {
                    groups: 1,
                    in_channels: channels[0],
                    out_channels: channels[1],
                    input: [side; 2],
                    kernel: [kernel; 2],
                    stride: [1, 1],
                    dilation: [1, 1],
                    pad_begin: [kernel / 2; 2],
                    pad_end: [(kernel - 1) / 2; 2],
                })
                .unwrap();
                let weights = Weights::new(vec![vec![1; shape.weights()]], 0).unwrap();
                let spec = LayerSpec {
                    shape: shape.clone(),
                    images: 1,
                    planes: 1,
                    shift: 0,
                };
                let held = Linear::with_isa(isa, shape, &weights).unwrap().bytes() as u64;
                let (_, counted) = layer_packed(&spec, Held::Planes);
                let name = isa.name();
                assert!(held <= counted, "{name} {spec:?}: {held} of {counted}");
                share_takes_no_more_than_is_counted(isa, &spec);
            }
        }
    }

    #[test]
    fn a_seed_is_limited_by_what_it_grows_to() {
        let limits = Limits {
            model_bytes: 4 * 63 * 64,
            ..Limits::default()
        };
        for shape in shapes(1, 64, 64) {
            let layers = vec![LayerSpec {
                shape,
                images: 1,
                planes: 1,
                shift: 0,
            }];
            let plain = Program::new(Form::Words, layers, vec![]).unwrap();
            assert_eq!(limits.admit(&plain), Ok(()));
            let expanded = TooMuch::Expanded {
                limit: 4 * 63 * 64,
                got: 4 * 64 * 64,
            };
            assert_eq!(limits.admit(&plain.with_held(Held::Seed)), Err(expanded));
        }
    }

    #[test]
    fn many_small_matrices_are_refused() {
        let limits = Limits {
            store_bytes: 1 << 20,
            ..Limits::default()
        };
        for shape in shapes(MAX_GROUPS + 1, 1, 1) {
            let layers = vec![LayerSpec {
                shape,
                images: 1,
                planes: 1,
                shift: 0,
            }];
            let program = Program::new(Form::Words, layers, vec![]).unwrap();
            let groups = TooMuch::Groups {
                layer: 0,
                got: MAX_GROUPS + 1,
            };
            assert_eq!(limits.admit(&program), Err(groups));
        }
        for shape in shapes(257, 1, 1) {
            let layers = vec![LayerSpec {
                shape,
                images: 1,
                planes: 1,
                shift: 0,
            }];
            let program = Program::new(Form::Words, layers, vec![]).unwrap();
            let packed = TooMuch::Packed {
                limit: 1 << 20,
                got: 257 << 12,
            };
            assert_eq!(limits.admit(&program), Err(packed));
        }
    }
}
