//! Commitments to the answers of inferences in floats: made round by round, shown later on the same connection.
//!
//! What is kept is bounded for each connection: the last [`KEPT`] inferences, and no more bytes than a connection's part of
//! [`Limits::trace_bytes`](crate::Limits::trace_bytes). Answers are kept as they were sent, not as they were computed, so what is
//! opened is what went out.

use std::collections::VecDeque;

use larvatus_proto::commit::{Builder, Commitment, LEAF, LeafId, Opening, Root};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::MAX_OPENING;
use larvatus_proto::program::Program;

use super::Refused;
use crate::limits::Limits;

/// Inferences of one connection that can be opened; the oldest make way.
const KEPT: usize = 16;

/// What a connection has committed to.
#[derive(Debug, Default)]
pub(super) struct Answers {
    under_way: Option<UnderWay>,
    kept: VecDeque<Kept>,
}

/// An inference whose last round has not come.
#[derive(Debug)]
struct UnderWay {
    model: Digest,
    next: usize,
    builder: Builder,
    words: Vec<u32>,
}

/// An inference that was committed to.
#[derive(Debug)]
struct Kept {
    commitment: Commitment,
    /// The tensors one after the other.
    words: Vec<u32>,
}

impl Answers {
    /// Takes in the answer of a round; the root where it is the last of an inference. A first round begins another one.
    ///
    /// # Errors
    /// [`Refused::Turn`] where it is not the next round, [`Refused::Summons`] where the program's answers cannot be committed to,
    /// [`Refused::Kept`] where an inference has more than a connection may keep.
    pub(super) fn take(
        &mut self,
        (model, program): (Digest, &Program),
        limits: &Limits,
        round: u32,
        answer: &[u32],
    ) -> Result<Option<Root>, Refused> {
        let before = self.under_way.take();
        let most = limits.trace_bytes / limits.connections.max(1) as u64;
        let mut now = match before {
            _ if round == 0 => {
                let layout = program.answers().map_err(Refused::Summons)?;
                let got: u64 = layout.lengths().iter().sum();
                if got > most {
                    return Err(Refused::Kept { limit: most, got });
                }
                // What is under way has its room from the beginning.
                let bytes = |kept: &VecDeque<Kept>| kept.iter().map(Kept::bytes).sum::<u64>();
                while self.kept.len() >= KEPT || bytes(&self.kept) > most - got {
                    self.kept.pop_front();
                }
                UnderWay {
                    model,
                    next: 0,
                    builder: Builder::new(layout),
                    words: Vec::new(),
                }
            }
            Some(before) if before.model == model && before.next == round as usize => before,
            Some(_) | None => return Err(Refused::Turn { round }),
        };
        now.builder.push_words(answer).map_err(Refused::Summons)?;
        now.words.extend_from_slice(answer);
        now.next += 1;
        if now.next < program.rounds().len() {
            self.under_way = Some(now);
            return Ok(None);
        }
        let UnderWay { builder, words, .. } = now;
        let commitment = builder.finish().map_err(Refused::Summons)?;
        let root = commitment.root();
        self.kept.push_back(Kept { commitment, words });
        Ok(Some(root))
    }

    /// Opens leaves of what this root commits to.
    ///
    /// # Errors
    /// [`Refused::NoTrace`], [`Refused::Summons`], [`Refused::Opening`].
    pub(super) fn open(&self, root: Root, leaves: &[LeafId]) -> Result<Opening, Refused> {
        let kept = self.kept.iter().find(|kept| kept.commitment.root() == root);
        let Kept { commitment, words } = kept.ok_or(Refused::NoTrace { trace: root })?;
        let layout = commitment.layout();
        let bytes = Opening::encoded_bytes(layout, leaves, &[]);
        let got = bytes.map_err(Refused::Summons)?;
        if got > MAX_OPENING {
            return Err(Refused::Opening { got });
        }
        let opening = commitment.open(leaves, &[], |leaf, length| {
            let before = layout.lengths().iter().take(leaf.tensor as usize);
            let first = (before.sum::<u64>() as usize + leaf.leaf as usize * LEAF) / 4;
            let words = words.get(first..first + length / 4).unwrap_or_default();
            words.iter().flat_map(|word| word.to_le_bytes()).collect()
        });
        opening.map_err(Refused::Summons)
    }
}

impl Kept {
    /// Memory that it takes: its words, and two digests for each leaf.
    fn bytes(&self) -> u64 {
        4 * self.words.len() as u64 + 64 * self.commitment.layout().leaves() as u64
    }
}
