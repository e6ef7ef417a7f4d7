//! What is asked of a worker that convolves for somebody's training.
//!
//! The conversation begins with the hello and the welcome of [`frame`](crate::frame), answers and failures are those of the same
//! module; a job is one of the frames below. Payloads are binary32 numbers by their bits. Nothing here is masked or committed to:
//! which of it a worker may see is for the side that asks.
//!
//! | kind | job | head | words | answer |
//! |---|---|---|---|---|
//! | 16 | a layer, held from now on | call, layer, seven extents | weights, then their speeds | none |
//! | 17 | y = W∗x | call, layer, whether x is kept | x | y |
//! | 18 | dx = Wᵀ∗dy and dW = Σ dy·xᵀ for the x that is kept | call, layer, whether dx is wanted | dy | dx, dW |
//! | 19 | a step of descent with dW plus what is sent | call, layer, rate, momentum, decay | the rest of dW, or nothing | none |

use larvatus_kernels::float::images::{Convolution, Descent};

use crate::frame::Frame;
use crate::wire::{DecodeError, Reader, Writer};
use crate::words::Words;

/// Most layers that a worker holds for one connection.
pub const MAX_LAYERS: usize = 1 << 10;

const LAYER: u8 = 16;
const FORWARD: u8 = 17;
const BACKWARD: u8 = 18;
const STEP: u8 = 19;

/// A job. Answers name its call.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "both sides write it as a literal"
)]
pub struct Job {
    /// Number of the call, never used twice in a connection.
    pub call: u64,
    /// Which layer, below [`MAX_LAYERS`].
    pub layer: u32,
    /// What is to be done.
    pub task: Task,
    /// Its numbers.
    pub words: Words,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a worker handles each")]
pub enum Task {
    /// Hold these weights, and the speeds of their descent.
    Layer(Convolution),
    /// Convolve.
    Forward {
        /// Whether the images are kept for the gradient.
        keep: bool,
    },
    /// Make gradients with the images that are kept, and keep that of the weights.
    Backward {
        /// Whether the gradient of the images is wanted, too.
        images: bool,
    },
    /// Move the weights by the gradient that is kept plus the one that is sent.
    Step(Descent),
}

impl Job {
    /// The frame that carries it.
    pub fn into_frame(self) -> Frame {
        let mut head = Writer::default();
        head.u64(self.call).u32(self.layer);
        let kind = match self.task {
            Task::Layer(convolution) => {
                for extent in convolution.extents() {
                    head.count(extent);
                }
                LAYER
            }
            Task::Forward { keep } => {
                head.u8(u8::from(keep));
                FORWARD
            }
            Task::Backward { images } => {
                head.u8(u8::from(images));
                BACKWARD
            }
            Task::Step(Descent {
                rate,
                momentum,
                decay,
            }) => {
                head.u32(rate.to_bits())
                    .u32(momentum.to_bits())
                    .u32(decay.to_bits());
                STEP
            }
        };
        Frame {
            kind,
            head: head.into_bytes(),
            words: self.words,
        }
    }

    /// Whether a frame of this kind is a job.
    pub fn is_kind(kind: u8) -> bool {
        (LAYER..=STEP).contains(&kind)
    }

    /// Reads a job.
    ///
    /// # Errors
    /// [`DecodeError`] where the frame is not exactly one job.
    pub fn from_frame(frame: Frame) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&frame.head);
        let call = reader.u64()?;
        let layer = u32::try_from(reader.count("layer", MAX_LAYERS - 1)?).unwrap_or(u32::MAX);
        let task = match frame.kind {
            LAYER => {
                let mut extents = [0; 7];
                for extent in &mut extents {
                    *extent = reader.count("extent", 1 << 16)?;
                }
                let convolution = Convolution::new(extents);
                Task::Layer(convolution.map_err(|_| DecodeError::Inconsistent {
                    what: "extents of a convolution",
                    expected: 1,
                    got: 0,
                })?)
            }
            FORWARD => Task::Forward {
                keep: flag(&mut reader)?,
            },
            BACKWARD => Task::Backward {
                images: flag(&mut reader)?,
            },
            STEP => {
                let mut number = || Ok::<_, DecodeError>(f32::from_bits(reader.u32()?));
                Task::Step(Descent {
                    rate: number()?,
                    momentum: number()?,
                    decay: number()?,
                })
            }
            kind => {
                return Err(DecodeError::UnknownTag {
                    what: "job",
                    tag: u32::from(kind),
                });
            }
        };
        reader.finish()?;
        Ok(Self {
            call,
            layer,
            task,
            words: frame.words,
        })
    }
}

fn flag(reader: &mut Reader<'_>) -> Result<bool, DecodeError> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        tag => Err(DecodeError::UnknownTag {
            what: "flag",
            tag: u32::from(tag),
        }),
    }
}

/// Numbers as the words that carry them.
pub fn words(numbers: &[f32]) -> Words {
    numbers.iter().map(|number| number.to_bits()).collect()
}

/// The numbers that words carry.
pub fn numbers(words: Words) -> Vec<f32> {
    let words = words.into_vec();
    words.into_iter().map(f32::from_bits).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read_as_they_were_written_and_nothing_else_is() {
        let convolution = Convolution::new([2, 3, 3, 1, 1, 5, 5]).expect("a convolution");
        let descent = Descent {
            rate: 0.1,
            momentum: 0.9,
            decay: 5e-4,
        };
        for task in [
            Task::Layer(convolution),
            Task::Forward { keep: true },
            Task::Backward { images: false },
            Task::Step(descent),
        ] {
            let job = Job {
                call: 7,
                layer: 5,
                task,
                words: words(&[1.5, -0.0]),
            };
            let frame = job.clone().into_frame();
            assert!(Job::is_kind(frame.kind));
            assert_eq!(Job::from_frame(frame.clone()), Ok(job));
            for cut in 0..frame.head.len() {
                let mut short = frame.clone();
                short.head.truncate(cut);
                assert!(Job::from_frame(short).is_err());
            }
            let mut long = frame.clone();
            long.head.push(0);
            assert!(matches!(
                Job::from_frame(long),
                Err(DecodeError::Trailing { extra: 1 })
            ));
            let mut far = frame;
            far.head
                .get_mut(8..12)
                .unwrap()
                .copy_from_slice(&1024u32.to_le_bytes());
            assert!(matches!(
                Job::from_frame(far),
                Err(DecodeError::TooMany { .. })
            ));
        }
    }
}
