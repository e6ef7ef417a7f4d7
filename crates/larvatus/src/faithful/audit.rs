//! Answers that are believed first, committed to by the worker, and recomputed later.
//!
//! The answer of an inference's last round brings a root over the answers of all rounds. Only then are leaves drawn (blocks of
//! [`LEAF`] bytes of one layer's answer), so what is drawn cannot have told the worker where to lie. The worker opens
//! them; [`Provisional::settle`] holds the opening against the root, each leaf against what had been sent, and its values against the
//! layer, recomputed from the very request and with the very weights that the worker had, in binary64. An honest answer in
//! binary32 lies within a bound that is derived, not measured ([`Witness`]). Inside that bound a liar is free.

use std::ops::Range;
use std::sync::Arc;

use larvatus_kernels::float::{FloatLinear, Witness, floats};
use larvatus_proto::commit::{LEAF, Layout, LeafId, Opening, Root};
use larvatus_proto::frame::Request;
use larvatus_proto::program::{LayerId, WorkerModel};

use super::plan::Plan;
use crate::error::WorkerMisbehaved;
use crate::session::InferenceId;

/// Leaves that one question asks for: 32 MiB.
const ASKED: usize = 512;

/// A round of an inference that is over: what was sent, and what each worker answered.
pub(super) struct Past {
    pub(super) request: Vec<u32>,
    pub(super) answers: Vec<Vec<u32>>,
}

/// An inference whose workers have committed to all their answers. Nobody has drawn from it.
pub(super) struct Sealed {
    pub(super) inference: InferenceId,
    /// One for each worker.
    pub(super) roots: Vec<Root>,
    /// One for each round.
    pub(super) rounds: Vec<Past>,
}

/// A block of an answer that was drawn.
#[derive(Debug)]
struct Block {
    leaf: LeafId,
    layer: LayerId,
    /// What the layer was given, all images.
    request: Arc<Vec<u32>>,
    /// Which of the answer's words.
    place: Range<usize>,
    /// These words, as they came.
    answer: Vec<u32>,
}

/// Leaves that one worker is asked to open.
#[derive(Debug)]
pub(super) struct Challenge {
    pub(super) number: u64,
    inference: InferenceId,
    line: usize,
    root: Root,
    layout: Arc<Layout>,
    models: Arc<Vec<WorkerModel>>,
    blocks: Vec<Block>,
}

impl Sealed {
    /// What was drawn from one worker's answers, as questions without their numbers; `drawn` says of each leaf whether it is.
    pub(super) fn challenges(
        &self,
        line: usize,
        plan: &Plan,
        models: &Arc<Vec<WorkerModel>>,
        mut drawn: impl FnMut() -> bool,
    ) -> Vec<Challenge> {
        let (Some(layout), Some(root)) = (plan.answers(), self.roots.get(line)) else {
            return Vec::new();
        };
        let mut blocks = Vec::new();
        let mut tensor = 0;
        for (round, past) in plan.rounds().iter().zip(&self.rounds) {
            let answer = past.answers.get(line).map(Vec::as_slice);
            let answer = answer.unwrap_or_default();
            let mut at = 0;
            for (layer, from) in &round.calls {
                let spec = &plan.layers()[layer.index()].spec;
                let start = round.uploads[..*from]
                    .iter()
                    .map(|upload| upload.elements());
                let start: usize = start.sum();
                // Shared by the blocks of this answer, copied if there are any.
                let mut request = None;
                for (leaf, first) in (0..).zip((0..spec.outputs()).step_by(LEAF / 4)) {
                    let place = first..spec.outputs().min(first + LEAF / 4);
                    let sent = past.request.get(start..start + spec.inputs());
                    let came = answer.get(at + place.start..at + place.end);
                    let (true, Some(sent), Some(came)) = (drawn(), sent, came) else {
                        continue;
                    };
                    let request = request.get_or_insert_with(|| Arc::new(sent.to_vec()));
                    blocks.push(Block {
                        leaf: LeafId { tensor, leaf },
                        layer: *layer,
                        request: Arc::clone(request),
                        place,
                        answer: came.to_vec(),
                    });
                }
                at += spec.outputs();
                tensor += 1;
            }
        }
        let mut challenges = Vec::new();
        while !blocks.is_empty() {
            let later = blocks.split_off(blocks.len().min(ASKED));
            challenges.push(Challenge {
                number: 0,
                inference: self.inference,
                line,
                root: *root,
                layout: Arc::clone(layout),
                models: Arc::clone(models),
                blocks: std::mem::replace(&mut blocks, later),
            });
        }
        challenges
    }
}

impl Challenge {
    fn leaves(&self) -> Vec<LeafId> {
        self.blocks.iter().map(|block| block.leaf).collect()
    }

    /// What the worker is asked.
    pub(super) fn question(&self) -> Request {
        Request::Show {
            number: self.number,
            root: self.root,
            leaves: self.leaves(),
        }
    }

    /// The worker that is asked.
    pub(super) fn line(&self) -> usize {
        self.line
    }

    /// Blocks that it asks for.
    pub(super) fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Words of an honest opening.
    pub(super) fn words(&self) -> usize {
        let bytes = Opening::encoded_bytes(&self.layout, &self.leaves(), &[]);
        bytes.map_or(0, |bytes| bytes.div_ceil(4))
    }

    /// With what the worker opened.
    pub(super) fn opened(self, opening: Vec<u8>) -> Provisional {
        Provisional {
            challenge: self,
            opening,
        }
    }
}

/// Blocks of answers that were used before they were checked, and what their worker opened. Worth nothing until settled.
#[derive(Debug)]
pub struct Provisional {
    challenge: Challenge,
    opening: Vec<u8>,
}

/// Blocks that were committed to as they had been sent, recomputed, and found within rounding of what they should have been.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settled {
    /// The inference that used them.
    pub inference: InferenceId,
    /// The worker that gave them.
    pub line: usize,
    /// How many.
    pub blocks: usize,
    /// The largest of their deviations, as a fraction of what was allowed there.
    pub used: f64,
}

impl Provisional {
    /// The inference that used them.
    pub fn inference(&self) -> InferenceId {
        self.challenge.inference
    }

    /// The worker that gave them.
    pub fn line(&self) -> usize {
        self.challenge.line
    }

    /// How many blocks.
    pub fn blocks(&self) -> usize {
        self.challenge.len()
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> u64 {
        let mut words = 0;
        let mut last: Option<&Arc<Vec<u32>>> = None;
        for block in &self.challenge.blocks {
            words += block.answer.len();
            // Blocks of one answer share their request.
            if last.is_none_or(|last| !Arc::ptr_eq(last, &block.request)) {
                words += block.request.len();
            }
            last = Some(&block.request);
        }
        4 * words as u64 + self.opening.len() as u64
    }

    /// Verifies the opening and recomputes the blocks, in binary64: about as much work as these outputs of their layers.
    ///
    /// # Errors
    /// The first that is met of: [`WorkerMisbehaved::Malformed`] where the bytes are no opening,
    /// [`WorkerMisbehaved::Opening`] where it is not of these leaves or not under the root,
    /// [`WorkerMisbehaved::OtherAnswer`] where a leaf is not what had been sent, [`WorkerMisbehaved::BeyondRounding`] where
    /// its values are not the layer's.
    pub fn settle(self) -> Result<Settled, WorkerMisbehaved> {
        let Self { challenge, opening } = self;
        let leaves = challenge.leaves();
        let opening = Opening::decode(&challenge.layout, leaves.len(), &[], &opening);
        let opening = opening.map_err(WorkerMisbehaved::Malformed)?;
        let opened = opening
            .verify(challenge.root, &challenge.layout, &leaves, &[])
            .map_err(WorkerMisbehaved::Opening)?;
        let mut used = 0.0_f64;
        let mut layer = None;
        for (block, (leaf, bytes)) in challenge.blocks.iter().zip(opened.leaves()) {
            let sent = block.answer.iter().flat_map(|word| word.to_le_bytes());
            if !sent.eq(bytes.iter().copied()) {
                let layer = block.layer;
                return Err(WorkerMisbehaved::OtherAnswer { layer, leaf });
            }
            let layer = match &mut layer {
                Some((id, layer)) if *id == block.layer => layer,
                other => {
                    let layer = challenge.models[challenge.line].float_layer(block.layer);
                    let layer = layer.expect("the plan's own layer");
                    &mut other.insert((block.layer, layer)).1
                }
            };
            used = used.max(block.recompute(layer)?);
        }
        Ok(Settled {
            inference: challenge.inference,
            line: challenge.line,
            blocks: challenge.blocks.len(),
            used,
        })
    }
}

impl Block {
    /// The largest deviation, as a fraction of what is allowed.
    ///
    /// # Errors
    /// [`WorkerMisbehaved::BeyondRounding`].
    fn recompute(&self, layer: &FloatLinear) -> Result<f64, WorkerMisbehaved> {
        let shape = layer.shape();
        let (inputs, outputs) = (shape.inputs(), shape.outputs());
        let mut answer = floats(&self.answer);
        let mut used = 0.0_f64;
        let images = self.place.start / outputs..self.place.end.div_ceil(outputs);
        for image in images {
            let at = |word: usize| word.saturating_sub(image * outputs).min(outputs);
            let place = at(self.place.start)..at(self.place.end);
            let (y, rest) = answer.split_at(place.len());
            answer = rest;
            let x = floats(&self.request[image * inputs..(image + 1) * inputs]);
            let witness = Witness::of(layer, x, place.clone());
            if let Some(output) = witness.refutes(y) {
                return Err(WorkerMisbehaved::BeyondRounding {
                    layer: self.layer,
                    image,
                    output: place.start + output,
                });
            }
            let deviations = y.iter().zip(&witness.sums).enumerate();
            let part = |(output, (y, sum)): (usize, (&f32, &f64))| {
                (f64::from(*y) - sum).abs() / witness.tolerance(output)
            };
            used = deviations.map(part).fold(used, f64::max);
        }
        Ok(used)
    }
}

impl Plan {
    /// Blocks of one inference's answers that may be drawn for an audit, those of all workers.
    pub fn auditable(&self) -> usize {
        self.answers()
            .map_or(0, |layout| layout.leaves() * self.workers())
    }
}
