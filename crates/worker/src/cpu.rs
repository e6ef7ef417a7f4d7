//! The engine for processors: the kernels' exact layers on a pool of threads.

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;

use larvatus_graph::trace::{Recorded, Recorder};
use larvatus_graph::{Model, RunError};
use larvatus_kernels::float::{FloatLinear, floats, floats_mut};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{Linear, Shape, ShapeError, ShortLinear, WideLinear, halves};
use larvatus_proto::program::{Form, Held, Program, WorkerModel};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::backend::{Backend, BackendError, Loaded, LoadedGraph};

/// The engine for processors. Its threads are its own: with one thread it computes on that
/// thread, never on the caller's.
#[derive(Clone, Debug)]
pub struct Cpu {
    pool: Arc<ThreadPool>,
    isa: Isa,
}

impl Cpu {
    /// Starts the threads.
    ///
    /// # Errors
    /// [`BackendError::Threads`] where the system does not give them.
    pub fn new(threads: NonZeroUsize) -> Result<Self, BackendError> {
        let threads = threads.get();
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("larvatus-cpu-{index}"))
            .build()
            .map_err(|error| BackendError::Threads {
                threads,
                reason: error.to_string(),
            })?;
        Ok(Self {
            pool: Arc::new(pool),
            isa: Isa::best(),
        })
    }

    /// The same on another instruction set than the best: all give the same words.
    #[must_use]
    pub fn on(self, isa: Isa) -> Self {
        Self { isa, ..self }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        let threads = self.pool.current_num_threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("cpu {}, {threads} thread{plural}", self.isa.name())
    }

    fn load(&self, model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError> {
        let (program, isa) = (model.program(), self.isa);
        let layers = self.pool.install(|| match program.held() {
            Held::Planes => {
                let weights = model.weights().map_err(BackendError::Weights)?;
                prepare(program, weights, |shape, weights| match program.form() {
                    Form::Words => Linear::with_isa(isa, shape, weights).map(Layer::Words),
                    Form::Halves => ShortLinear::with_isa(isa, shape, weights).map(Layer::Halves),
                })
            }
            Held::Words | Held::Seed => {
                let shares = model.shares().map_err(BackendError::Weights)?;
                if program.form() != Form::Words {
                    return Err(BackendError::ShareInClear);
                }
                prepare(program, shares, |shape, share| {
                    WideLinear::with_isa(isa, shape, share).map(Layer::Share)
                })
            }
            Held::Floats => {
                let floats = model.floats().map_err(BackendError::Weights)?;
                Ok(floats.into_iter().map(Layer::Floats).collect())
            }
        })?;
        Ok(Box::new(Prepared {
            pool: Arc::clone(&self.pool),
            layers,
            rounds: rounds(program),
        }))
    }

    fn load_graph(&self, model: &Model) -> Result<Box<dyn LoadedGraph>, BackendError> {
        let loaded = self
            .pool
            .install(|| larvatus_graph::Prepared::with_isa(self.isa, model));
        let graph = loaded.map_err(|source| BackendError::Graph { source })?;
        let pool = Arc::clone(&self.pool);
        Ok(Box::new(PreparedGraph { pool, graph }))
    }
}

/// A whole graph.
struct PreparedGraph {
    pool: Arc<ThreadPool>,
    graph: larvatus_graph::Prepared,
}

impl LoadedGraph for PreparedGraph {
    fn run(&self, input: &[u8]) -> Result<Recorded, BackendError> {
        let graph = self.graph.graph();
        let inputs = graph.unpack_inputs(input);
        let inputs = inputs.ok_or(BackendError::Run {
            source: RunError::Input { input: 0 },
        })?;
        let mut recorder = Recorder::new(graph);
        let run = || self.graph.run(inputs, &mut recorder);
        let ran = self.pool.install(run);
        ran.map_err(|source| BackendError::Run { source })?;
        recorder
            .finish()
            .map_err(|source| BackendError::Trace { source })
    }

    fn bytes(&self) -> u64 {
        self.graph.bytes()
    }
}

/// The layers of a program, each with its weights.
fn prepare<W>(
    program: &Program,
    weights: Vec<W>,
    layer_of: impl Fn(Shape, &W) -> Result<Layer, ShapeError>,
) -> Result<Vec<Layer>, BackendError> {
    let layers = program.layers().iter().zip(weights).enumerate();
    layers
        .map(|(layer, (spec, weights))| {
            layer_of(spec.shape.clone(), &weights)
                .map_err(|source| BackendError::Layer { layer, source })
        })
        .collect()
}

/// A program as slices of its words: nothing in it is looked up by a peer's number but the round.
struct Prepared {
    pool: Arc<ThreadPool>,
    layers: Vec<Layer>,
    rounds: Vec<Steps>,
}

/// By the form of its inputs.
enum Layer {
    Words(Linear),
    Halves(ShortLinear),
    Share(WideLinear),
    Floats(FloatLinear),
}

impl Layer {
    /// The images of all requests' parts go through together.
    fn apply(&self, step: &Step, parts: &[&[u32]], y: &mut [&mut [u32]]) {
        match self {
            Self::Words(layer) => layer.apply_many(&images(step, parts), y),
            Self::Share(layer) => layer.apply_many(&images(step, parts), y),
            Self::Floats(layer) => {
                let images = images(step, parts).into_iter().zip(y);
                images.for_each(|(x, y)| layer.apply(floats(x), floats_mut(y)));
            }
            Self::Halves(layer) => {
                let images = parts
                    .iter()
                    .filter_map(|words| halves(words).get(..step.elements))
                    .flat_map(|halves| halves.chunks_exact(step.inputs));
                images.zip(y).for_each(|(x, y)| layer.apply(x, y));
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Words(layer) => layer.bytes(),
            Self::Halves(layer) => layer.bytes(),
            Self::Share(layer) => layer.bytes(),
            Self::Floats(layer) => layer.bytes(),
        }
    }
}

/// The images of words that several requests have for a layer.
fn images<'a>(step: &Step, parts: &[&'a [u32]]) -> Vec<&'a [u32]> {
    let images = parts
        .iter()
        .flat_map(|words| words.chunks_exact(step.inputs));
    images.collect()
}

struct Steps {
    /// Calls that are worth computing together.
    together: usize,
    request: usize,
    answer: usize,
    calls: Vec<Step>,
}

struct Step {
    layer: usize,
    /// Elements of one image.
    inputs: usize,
    outputs: usize,
    /// Elements of all images of a request.
    elements: usize,
    /// Where in the request and in the answer.
    from: Range<usize>,
    to: Range<usize>,
}

fn rounds(program: &Program) -> Vec<Steps> {
    let rounds = program.rounds().iter();
    rounds
        .map(|round| {
            let uploads: Vec<Range<usize>> = ranges(
                round
                    .uploads
                    .iter()
                    .map(|elements| program.form().words(*elements)),
            );
            let layers = round
                .calls
                .iter()
                .filter_map(|call| program.layer(call.layer));
            let answers = ranges(layers.clone().map(|layer| layer.outputs()));
            let calls = round.calls.iter().zip(layers).zip(answers);
            let calls = calls
                .filter_map(|((call, layer), to)| {
                    Some(Step {
                        layer: call.layer.index(),
                        inputs: layer.shape.inputs(),
                        outputs: layer.shape.outputs(),
                        elements: layer.inputs(),
                        from: uploads.get(usize::from(call.upload))?.clone(),
                        to,
                    })
                })
                .collect();
            let (request, answer) = (program.request_words(round), program.answer_words(round));
            let layers = round.calls.iter();
            let layers = layers.filter_map(|call| program.layer(call.layer));
            let weights: usize = layers
                .map(|layer| layer.shape.weights().saturating_mul(layer.planes.into()))
                .fold(0, usize::saturating_add);
            let weights = weights.saturating_mul(match program.held() {
                Held::Planes => 1,
                Held::Words | Held::Seed | Held::Floats => 4,
            });
            Steps {
                together: match (program.form(), program.held()) {
                    // These layers take one input after the other.
                    (Form::Halves, _) | (_, Held::Floats) => 1,
                    (Form::Words, Held::Planes | Held::Words | Held::Seed) => {
                        together(weights, 4 * (request + answer))
                    }
                },
                request,
                answer,
                calls,
            }
        })
        .collect()
}

/// Calls of a round with so many bytes of weights and of words that are worth computing together. Reading the weights
/// once saves their time for each further call; once the words of all take more than the weights do, they leave the
/// cache between one step and the next, which costs more than that.
fn together(weights: usize, words: usize) -> usize {
    (weights.max(SMALL) / words.max(1)).max(1)
}

/// Bytes of words that stay in the cache of any core in question.
const SMALL: usize = 1 << 19;

fn ranges(lengths: impl Iterator<Item = usize>) -> Vec<Range<usize>> {
    let place = |at: &mut usize, length: usize| {
        let start = *at;
        *at += length;
        Some(start..*at)
    };
    lengths.scan(0, place).collect()
}

impl Loaded for Prepared {
    fn call(&self, round: u32, words: &[u32]) -> Result<Vec<u32>, BackendError> {
        let answers = self.call_many(round, &[words])?;
        Ok(answers.into_iter().next().unwrap_or_default())
    }

    fn call_many(&self, round: u32, requests: &[&[u32]]) -> Result<Vec<Vec<u32>>, BackendError> {
        let none = BackendError::Round {
            round,
            rounds: self.rounds.len(),
        };
        let steps = usize::try_from(round)
            .ok()
            .and_then(|index| self.rounds.get(index));
        let steps = steps.ok_or(none)?;
        if let Some(words) = requests.iter().find(|words| words.len() != steps.request) {
            let (expected, got) = (steps.request, words.len());
            return Err(BackendError::Words {
                round,
                expected,
                got,
            });
        }
        let answers = requests.iter().map(|_| zeros(steps.answer));
        let mut answers = answers.collect::<Result<Vec<_>, _>>()?;
        self.pool.install(|| {
            for step in &steps.calls {
                let Some(layer) = self.layers.get(step.layer) else {
                    continue;
                };
                let parts: Vec<&[u32]> = requests
                    .iter()
                    .filter_map(|words| words.get(step.from.clone()))
                    .collect();
                let mut y: Vec<&mut [u32]> = answers
                    .iter_mut()
                    .filter_map(|words| words.get_mut(step.to.clone()))
                    .flat_map(|words| words.chunks_exact_mut(step.outputs))
                    .collect();
                layer.apply(step, &parts, &mut y);
            }
        });
        Ok(answers)
    }

    fn together(&self, round: u32) -> usize {
        let steps = usize::try_from(round)
            .ok()
            .and_then(|round| self.rounds.get(round));
        steps.map_or(1, |steps| steps.together)
    }

    fn bytes(&self) -> u64 {
        self.layers.iter().map(|layer| layer.bytes() as u64).sum()
    }
}

/// So many zeros, if there is memory for them.
fn zeros(words: usize) -> Result<Vec<u32>, BackendError> {
    let mut zeros = Vec::new();
    let no_memory = |_| BackendError::Memory { words };
    zeros.try_reserve_exact(words).map_err(no_memory)?;
    zeros.resize(words, 0);
    Ok(zeros)
}

#[cfg(test)]
mod tests {
    use larvatus_kernels::linear::{Conv, MatMul, Weights};
    use larvatus_proto::program::{LayerCall, LayerId, LayerSpec, Round};

    use super::*;

    fn loaded(images: usize) -> Box<dyn Loaded> {
        loaded_as(Form::Words, images)
    }

    fn loaded_as(form: Form, images: usize) -> Box<dyn Loaded> {
        let pointwise = Conv {
            groups: 1,
            in_channels: 2,
            out_channels: 1,
            input: [1, 3],
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pad_begin: [0, 0],
            pad_end: [0, 0],
        };
        let spec = |shape| LayerSpec {
            shape,
            images,
            planes: 1,
            shift: 0,
        };
        let layers = vec![
            spec(Shape::conv(pointwise).unwrap()),
            spec(
                Shape::matmul(MatMul {
                    groups: 1,
                    rows: 2,
                    inner: 3,
                    columns: 1,
                })
                .unwrap(),
            ),
        ];
        let call = |layer, upload| LayerCall {
            layer: LayerId(layer),
            upload,
        };
        let uploads = vec![6 * images];
        let rounds = vec![
            Round {
                uploads: uploads.clone(),
                calls: vec![call(0, 0), call(1, 0)],
            },
            Round {
                uploads: vec![6 * images; 2],
                calls: vec![call(1, 1), call(0, 0)],
            },
        ];
        let weights =
            [vec![1, 10], vec![1, 2, -1]].map(|plane| Weights::new(vec![plane], 0).unwrap());
        let program = Program::new(form, layers, rounds).unwrap();
        let model = WorkerModel::new(program, &[&weights[0], &weights[1]]).unwrap();
        Cpu::new(NonZeroUsize::MIN).unwrap().load(&model).unwrap()
    }

    #[test]
    fn calls_of_a_round_answer_in_order_from_their_uploads() {
        let model = loaded(1);
        let x = [1, 2, 3, 4, 5, 6];
        assert_eq!(model.call(0, &x).unwrap(), [41, 52, 63, 2, 8]);
        let both = [1, 2, 3, 4, 5, 6, 1, 0, 0, 0, 0, 1];
        assert_eq!(
            model.call(1, &both).unwrap(),
            [1, (1 << 31) - 2, 41, 52, 63]
        );
    }

    #[test]
    fn images_are_computed_one_by_one() {
        let model = loaded(2);
        let x = [1, 2, 3, 4, 5, 6, 0, 0, 0, 1, 1, 1];
        assert_eq!(
            model.call(0, &x).unwrap(),
            [41, 52, 63, 10, 10, 10, 2, 8, 0, 2]
        );
    }

    #[test]
    fn requests_together_are_answered_like_each_alone() {
        for images in [1, 2] {
            let model = loaded(images);
            let requests: Vec<Vec<u32>> = (0..5)
                .map(|request| (0..6 * images as u32).map(|i| i * i + request).collect())
                .collect();
            let together: Vec<&[u32]> = requests.iter().map(Vec::as_slice).collect();
            let alone: Vec<Vec<u32>> = together
                .iter()
                .map(|words| model.call(0, words).unwrap())
                .collect();
            assert_eq!(model.call_many(0, &together).unwrap(), alone);
            assert_eq!(model.call_many(0, &[]).unwrap(), Vec::<Vec<u32>>::new());
            let short = [together[0], &[0; 5]];
            let words = BackendError::Words {
                round: 0,
                expected: 6 * images,
                got: 5,
            };
            assert_eq!(model.call_many(0, &short), Err(words));
        }
    }

    #[test]
    fn halves_are_answered_like_the_words_they_stand_for() {
        for images in [1, 3] {
            let x: Vec<i16> = (0..6 * images as i16).map(|i| 1 - 7 * i).collect();
            let words: Vec<u32> = x
                .iter()
                .map(|x| i32::from(*x).rem_euclid(i32::MAX) as u32)
                .collect();
            let pair = |pair: &[i16]| {
                let [low, high] = [pair[0], pair.get(1).copied().unwrap_or(0)];
                u32::from(low.cast_unsigned()) | u32::from(high.cast_unsigned()) << 16
            };
            let packed: Vec<u32> = x.chunks(2).map(pair).collect();
            let short = loaded_as(Form::Halves, images);
            let expected = loaded(images).call(0, &words).unwrap();
            assert_eq!(short.call(0, &packed).unwrap(), expected);
            let two = short.call_many(0, &[&packed, &packed]).unwrap();
            assert_eq!(two, [expected.clone(), expected]);
            let wrong = BackendError::Words {
                round: 0,
                expected: 3 * images,
                got: words.len(),
            };
            assert_eq!(short.call(0, &words), Err(wrong));
        }
    }

    #[test]
    fn calls_go_together_where_weights_outweigh_words() {
        // VGG16's first product, its first convolution, a small one.
        assert_eq!(together(25088 * 4096, 4 * (25088 + 4096)), 880);
        assert_eq!(together(1728, 4 * (3 + 64) * 224 * 224), 1);
        assert_eq!(together(100, 1 << 16), 8);
        assert_eq!(together(0, 0), 1 << 19);
        let model = loaded(1);
        assert_eq!([model.together(0), model.together(2)], [(1 << 19) / 44, 1]);
        assert_eq!(loaded_as(Form::Halves, 1).together(0), 1);
    }

    #[test]
    fn rounds_and_lengths_that_are_not_there_are_refused() {
        let model = loaded(1);
        assert_eq!(
            model.call(2, &[]),
            Err(BackendError::Round {
                round: 2,
                rounds: 2
            })
        );
        let words = BackendError::Words {
            round: 0,
            expected: 6,
            got: 5,
        };
        assert_eq!(model.call(0, &[0; 5]), Err(words));
        assert!(model.bytes() >= 5);
    }
}
