//! What a peer may make a worker hold or compute.

use std::time::Duration;

use larvatus_proto::program::{LayerSpec, Program, Round};

/// Limits of a worker. Each default is what the common models need with room to spare; a worker
/// that serves one known model may be stricter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct Limits {
    /// Connections at a time; whoever accepts them enforces it. 8: each may hold about five
    /// times [`round_words`](Self::round_words) in requests and answers.
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
    /// Calls of one connection that wait to be computed. 2: one travels while one is computed.
    pub calls: usize,
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
            calls: 2,
            idle: Duration::from_secs(300),
        }
    }
}

/// A program that asks for more than the limits allow.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TooMuch {
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
    /// Holds every round of a program against the limits.
    ///
    /// # Errors
    /// [`TooMuch`] names the first round that exceeds one.
    pub fn admit(&self, program: &Program) -> Result<(), TooMuch> {
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
