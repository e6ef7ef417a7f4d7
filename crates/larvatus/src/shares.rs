//! Weights that no single worker may see: split in two for one session, and what is checked then.
//!
//! W = W₁ + W₂ mod p with W₁ from a seed of the session's own, so that each share alone is uniform. Both
//! workers get the same hidden request. Each answer is checked by itself, against the share that its
//! worker holds, before the two are added: a check of the sum would be an oracle for workers that have
//! agreed on what they add, one an error that depends on W₁, the other one that depends on W₂.

use larvatus_kernels::field::{Fp, P};
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_kernels::linear::{Adjoint, Share, Split, adjoint_of_share};
use larvatus_kernels::reveal::RankOne;
use larvatus_proto::program::{LayerId, SEED, WorkerModel};
use larvatus_proto::words::{Lent, Words};
use zeroize::Zeroizing;

use crate::equations::{Equations, Wrong};
use crate::error::WorkerMisbehaved;
use crate::plan::{Layer, Plan, PlannedRound};
use crate::secret::{Entropy, Identity};

/// Two workers that are told apart, and trusted not to pool what they know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Apart(());

/// Two workers are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("both workers are known by the same key: one party would hold both shares of the weights")]
pub struct SameParty;

impl Apart {
    /// Two workers that have proved different keys.
    ///
    /// # Errors
    /// [`SameParty`] where they have not.
    pub fn known(first: Identity, second: Identity) -> Result<Self, SameParty> {
        if first == second {
            return Err(SameParty);
        }
        Ok(Self(()))
    }

    /// Two workers of which nothing proves that they are two: for tests, and for trying out on one machine.
    pub fn danger_believed() -> Self {
        Self(())
    }
}

const SPLIT: &str = "larvatus 2026 session key v1: split of the weights";
const CHECKS: [&str; 2] = [
    "larvatus 2026 session key v1: check vectors of the first share",
    "larvatus 2026 session key v1: check vectors of the second share",
];

/// What the two workers of a session are sent once, and what their answers are checked with.
pub(crate) struct Shares {
    models: [WorkerModel; 2],
    checks: [Vec<Equations>; 2],
}

impl Shares {
    /// Splits the weights of a plan for one session.
    pub(crate) fn new(entropy: &Entropy, plan: &Plan) -> Self {
        let seed: Zeroizing<[u8; SEED]> = entropy.derive(SPLIT, plan);
        let split = Split::new(*seed);
        let keys = CHECKS.map(|label| Key::new(*entropy.derive(label, plan)));
        let repetitions = plan.repetitions();
        let mut checks = [Vec::new(), Vec::new()];
        let numbered = plan.layers().iter().zip(0_u64..);
        let second = numbered.map(|(layer, number)| {
            let first = split.first(number, layer.spec.shape.weights());
            let second = split.second(number, &layer.weights);
            for ((share, key), checks) in [&first, &second].into_iter().zip(&keys).zip(&mut checks)
            {
                checks.push(equations(key, number, layer, share, repetitions));
            }
            second
        });
        let program = plan.worker_model().program();
        let second = WorkerModel::of_share(program, second);
        let second = second.expect("a share is as long as the weights that it is one of");
        let models = [WorkerModel::of_seed(program, &seed), second];
        Self { models, checks }
    }

    /// Memory of the vectors that both workers are checked with.
    pub(crate) fn check_bytes(&self) -> u64 {
        let checks = self.checks.iter().flatten();
        checks.map(Equations::bytes).sum()
    }

    /// What a worker is sent.
    pub(crate) fn model(&self, line: usize) -> &WorkerModel {
        &self.models[line]
    }

    /// ⟨a, x⟩ of each call and image of a round, for a worker's share. `words` are the round's uploads.
    pub(crate) fn expect(
        &self,
        line: usize,
        plan: &Plan,
        round: &PlannedRound,
        words: &[u32],
    ) -> Vec<Zeroizing<Vec<Fp>>> {
        let starts = round.uploads.iter().scan(0, |at, upload| {
            let start = *at;
            *at += upload.elements();
            Some(start..*at)
        });
        let uploads: Vec<&[u32]> = starts.map(|place| &words[place]).collect();
        let calls = round.calls.iter();
        calls
            .flat_map(|(id, from)| {
                let inputs = plan.layers()[id.index()].spec.shape.inputs();
                let check = &self.checks[line][id.index()];
                let images = uploads[*from].chunks_exact(inputs);
                images.map(|x| check.expect(x))
            })
            .collect()
    }

    /// Checks one worker's answer to a round.
    ///
    /// Every image of every call is looked at before anything is decided.
    ///
    /// # Errors
    /// [`WorkerMisbehaved`] where it is not as long as the round's answers, holds a word of p or more,
    /// or is not what the worker's share makes of the request; nothing of it is left.
    pub(crate) fn verify(
        &self,
        line: usize,
        plan: &Plan,
        (number, round): (usize, &PlannedRound),
        expected: &[Zeroizing<Vec<Fp>>],
        words: &Words,
    ) -> Result<Verified, WorkerMisbehaved> {
        let specs = round.calls.iter().map(|(id, _)| {
            let spec = &plan.layers()[id.index()].spec;
            (*id, spec.images, spec.shape.outputs())
        });
        let length = specs.clone().map(|(_, images, each)| images * each).sum();
        if words.len() != length {
            return Err(WorkerMisbehaved::AnswerLength {
                round: number,
                expected: length,
                got: words.len(),
            });
        }
        let mut own = Vec::with_capacity(length);
        let mut lie = None;
        let mut expected = expected.iter();
        for (id, images, each) in specs {
            let check = &self.checks[line][id.index()];
            for image in 0..images {
                let expected = expected.next().expect("one for each image");
                let found = check.take((words, each), &mut own, expected);
                let found = found.map_err(|wrong| misbehaved(wrong, id, image)).err();
                lie = lie.or(found);
            }
        }
        lie.map_or(Ok(Verified(own)), Err)
    }
}

fn misbehaved(wrong: Wrong, layer: LayerId, image: usize) -> WorkerMisbehaved {
    match wrong {
        Wrong::NotCanonical => WorkerMisbehaved::NotCanonical { layer, image },
        Wrong::Product { repetition } => WorkerMisbehaved::ProductMismatch {
            layer,
            image,
            repetition,
        },
    }
}

fn equations(
    key: &Key,
    number: u64,
    layer: &Layer,
    share: &Share,
    repetitions: usize,
) -> Equations {
    let shape = &layer.spec.shape;
    let (rows, cols) = shape.output_rows_cols();
    let draw = |repetition, purpose, count| {
        let mut words = vec![0; count];
        key.stream(number, repetition, purpose).fill(0, &mut words);
        words
    };
    let pairs = (0..repetitions).filter_map(|r| u16::try_from(r).ok());
    Equations::new(pairs.map(|repetition| {
        let v = RankOne {
            outer: draw(repetition, Purpose::Channel, rows),
            inner: draw(repetition, Purpose::Space, cols),
        };
        let a = adjoint_of_share(shape, share, &v.outer, &v.inner);
        let a = match a.expect("a share is as long as the weights that it is one of") {
            Adjoint::Dense(dense) => RankOne {
                outer: vec![1],
                inner: dense,
            },
            Adjoint::RankOne { outer, inner } => RankOne { outer, inner },
        };
        (v, a)
    }))
}

/// One worker's answer to a round, checked by itself. Built only by [`Shares::verify`].
pub(crate) struct Verified(Vec<u32>);

impl Verified {
    /// What the model's own weights make of the request: the sum of both workers' answers, added where it is read.
    pub(crate) fn join(self, other: Self) -> Words {
        Words::lent(Box::new(Sum(self.0, other.0)))
    }
}

/// Two answers as their sum mod p. Both are canonical and of one length.
struct Sum(Vec<u32>, Vec<u32>);

impl Lent for Sum {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn read(&self, at: usize, into: &mut [u32]) {
        let rest = |words: &'_ Vec<u32>| at.min(words.len())..words.len();
        let pairs = self.0[rest(&self.0)].iter().zip(&self.1[rest(&self.1)]);
        for (into, (first, second)) in into.iter_mut().zip(pairs) {
            // Both are below p, so the sum fits and one subtraction makes it canonical.
            let sum = first + second;
            *into = sum.min(sum.wrapping_sub(P));
        }
    }

    /// Nobody writes to what was verified.
    fn write(&mut self, _: usize, _: &[u32]) {}
}
