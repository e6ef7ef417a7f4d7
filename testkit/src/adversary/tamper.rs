//! How the words of an answer are altered.

use larvatus_kernels::field::P;
use larvatus_kernels::linear::{Shape, halves};
use larvatus_proto::program::{Program, WorkerModel};
use larvatus_worker::Backend;
use larvatus_worker::Cpu;

use crate::chance::Chance;

/// A word of an answer: `row` is the channel of a convolution, `col` its pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Which of the round's calls.
    pub call: usize,
    /// Which image of that call.
    pub image: usize,
    /// Row of that image's answer.
    pub row: usize,
    /// Column of it.
    pub col: usize,
}

impl At {
    /// A word of the first call's first image.
    pub fn cell(row: usize, col: usize) -> Self {
        Self {
            call: 0,
            image: 0,
            row,
            col,
        }
    }

    /// The same word of another call.
    #[must_use]
    pub fn of_call(self, call: usize) -> Self {
        Self { call, ..self }
    }

    /// The same word of another image.
    #[must_use]
    pub fn of_image(self, image: usize) -> Self {
        Self { image, ..self }
    }
}

/// A word that is no field element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Second {
    /// p, which would be 0.
    P,
    /// p more than the right word: the right element in its second encoding.
    PlusP,
    /// 2³² − 1.
    Largest,
}

/// What happens to the words of an answer.
#[derive(Clone, Debug)]
pub enum Tamper {
    /// Numbers are added, modulo p.
    Add(Vec<(At, i64)>),
    /// A bit changes; below p the word stays.
    FlipBit(At, u32),
    /// A word becomes one that encodes nothing.
    NotCanonical(At, Second),
    /// An error of this rank is added to an image of a call.
    Rank {
        /// The call.
        call: usize,
        /// Rank of the error.
        rank: usize,
    },
    /// Every pixel at the border of a convolution's first image is one more.
    Border,
    /// Two rows of the first image change places: channels, or tokens.
    SwapRows(usize, usize),
    /// Two columns of the first image change places: pixels, or features.
    SwapCols(usize, usize),
    /// Two images change places.
    SwapImages(usize, usize),
    /// The answer for one image is given for another, too.
    CopyImage {
        /// Whose answer.
        from: usize,
        /// For which.
        to: usize,
    },
    /// Two calls of the round change places.
    SwapCalls(usize, usize),
    /// The answer before it that has its round.
    Stale,
    /// An answer before it, counted from 0, of whatever round.
    Earlier(usize),
    /// So many words are missing at its end.
    Truncated(usize),
    /// So many words more than there are.
    Longer(usize),
    /// No words.
    Empty,
    /// Zeros.
    Zero,
    /// The request's words, as many as fit.
    Echo,
    /// Computed with the weights of another model.
    OtherWeights(WorkerModel),
}

/// One image of a call in its round's answer.
struct Part {
    start: usize,
    rows: usize,
    cols: usize,
    /// Height and width of the pixels.
    spatial: [usize; 2],
}

/// The parts of a round's answer: by call, then image.
fn parts(program: &Program, round: u32) -> Vec<Vec<Part>> {
    let mut start = 0;
    let calls = program.rounds()[round as usize].calls.iter();
    calls
        .map(|call| {
            let layer = &program.layers()[call.layer.index()];
            let (rows, cols) = layer.shape.output_rows_cols();
            let spatial = match &layer.shape {
                Shape::Conv(_) => layer.shape.output_spatial(),
                Shape::MatMul(_) => [rows, cols],
            };
            let images = (0..layer.images).map(|_| {
                let part = Part {
                    start,
                    rows,
                    cols,
                    spatial,
                };
                start += rows * cols;
                part
            });
            images.collect()
        })
        .collect()
}

/// A word plus a number, modulo p.
fn plus(word: u32, number: i64) -> u32 {
    (i64::from(word) + number).rem_euclid(i64::from(P)) as u32
}

impl Tamper {
    /// What a liar says instead of the last answer of `history`, which is honest.
    pub(super) fn apply(
        &self,
        program: &Program,
        round: u32,
        request: &[u32],
        history: &[(u32, Vec<u32>)],
    ) -> Vec<u32> {
        let parts = parts(program, round);
        let part = |call: usize, image: usize| &parts[call][image];
        let place = |at: &At| {
            let part = part(at.call, at.image);
            assert!(
                at.row < part.rows && at.col < part.cols,
                "{at:?} is not in the answer"
            );
            part.start + at.row * part.cols + at.col
        };
        let ((_, honest), before) = history.split_last().expect("an honest answer");
        let mut words = honest.clone();
        match self {
            Self::Add(errors) => {
                for (at, number) in errors {
                    words[place(at)] = plus(words[place(at)], *number);
                }
            }
            Self::FlipBit(at, bit) => words[place(at)] = (words[place(at)] ^ 1 << bit) % P,
            Self::NotCanonical(at, Second::P) => words[place(at)] = P,
            Self::NotCanonical(at, Second::PlusP) => words[place(at)] += P,
            Self::NotCanonical(at, Second::Largest) => words[place(at)] = u32::MAX,
            Self::Rank { call, rank } => {
                let part = part(*call, 0);
                assert!(
                    *rank <= part.rows.min(part.cols),
                    "no error has rank {rank} here"
                );
                let mut chance = Chance::new(*rank as u64);
                // Row and column `k` have nothing of the terms before: the rank is what it says.
                for k in 0..*rank {
                    for row in k..part.rows {
                        let left = if row == k {
                            1
                        } else {
                            chance.below(1000) as i64
                        };
                        for col in k..part.cols {
                            let right = if col == k {
                                1
                            } else {
                                chance.below(1000) as i64
                            };
                            let word = &mut words[part.start + row * part.cols + col];
                            *word = plus(*word, left * right);
                        }
                    }
                }
            }
            Self::Border => {
                let part = part(0, 0);
                let [height, width] = part.spatial;
                for pixel in 0..part.cols {
                    let (y, x) = (pixel / width, pixel % width);
                    if y == 0 || x == 0 || y + 1 == height || x + 1 == width {
                        for row in 0..part.rows {
                            let word = &mut words[part.start + row * part.cols + pixel];
                            *word = plus(*word, 1);
                        }
                    }
                }
            }
            Self::SwapRows(a, b) => {
                let cols = part(0, 0).cols;
                (0..cols).for_each(|col| words.swap(a * cols + col, b * cols + col));
            }
            Self::SwapCols(a, b) => {
                let (rows, cols) = (part(0, 0).rows, part(0, 0).cols);
                (0..rows).for_each(|row| words.swap(row * cols + a, row * cols + b));
            }
            Self::SwapImages(a, b) => {
                let (a, b) = (part(0, *a), part(0, *b));
                (0..a.rows * a.cols).for_each(|ix| words.swap(a.start + ix, b.start + ix));
            }
            Self::CopyImage { from, to } => {
                let (from, to) = (part(0, *from), part(0, *to));
                words.copy_within(from.start..from.start + from.rows * from.cols, to.start);
            }
            Self::SwapCalls(a, b) => {
                let (a, b) = (part(*a, 0), part(*b, 0));
                assert_eq!((a.rows, a.cols), (b.rows, b.cols), "calls of one size");
                (0..a.rows * a.cols).for_each(|ix| words.swap(a.start + ix, b.start + ix));
            }
            Self::Stale => {
                let same = before.iter().rev().find(|(other, _)| *other == round);
                words.clone_from(&same.expect("an answer before it of its round").1);
            }
            Self::Earlier(nth) => words.clone_from(&before[*nth].1),
            Self::Truncated(missing) => words.truncate(words.len() - missing),
            Self::Longer(more) => words.resize(words.len() + more, 0),
            Self::Empty => words.clear(),
            Self::Zero => words.fill(0),
            Self::Echo => words
                .iter_mut()
                .zip(request.iter().cycle())
                .for_each(|(to, x)| *to = *x % P),
            Self::OtherWeights(model) => {
                let cpu = Cpu::new(std::num::NonZeroUsize::MIN).expect("one thread");
                let loaded = cpu.load(model).expect("a model");
                let round_of = &model.program().rounds()[round as usize];
                let request = as_words(request, round_of.uploads.iter().sum());
                words = loaded.call(round, &request).expect("a round of it");
            }
        }
        assert_ne!(&words, honest, "no lie at all");
        words
    }
}

/// The elements of a request as field elements, in whichever form they came.
fn as_words(request: &[u32], elements: usize) -> Vec<u32> {
    if request.len() == elements {
        return request.to_vec();
    }
    let word = |x: &i16| i32::from(*x).rem_euclid(P as i32) as u32;
    halves(request)[..elements].iter().map(word).collect()
}
