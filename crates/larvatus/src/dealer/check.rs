//! Whether a dealer's u is what the layers make of the pads.
//!
//! u = L(r) is checked by itself: ⟨v, u⟩ = ⟨a, r⟩ for secret v of its own and a = Lᵀv. Both sides of
//! the equation depend on the dealer's answer and on values that the worker never sees, so whether
//! it holds says nothing about what is hidden with r, whatever dealer and worker have agreed on.
//! Checking a worker's answer together with a u from somebody else would: an error of the worker
//! that is a function of q + r and one of the dealer that is a function of r cancel for some q only.

use larvatus_kernels::hide::Folded;
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_kernels::reveal::RankOne;
use larvatus_proto::program::LayerId;
use larvatus_proto::words::Words;
use zeroize::Zeroizing;

use crate::equations::{Equations, Wrong};
use crate::error::DealerMisbehaved;
use crate::plan::{Layer, Plan};
use crate::secret::{Checks, Seed, Unmask};

/// What every u is checked with, by layer.
pub(super) struct PadChecks(Vec<Equations>);

impl PadChecks {
    /// Takes vectors that serve nothing else.
    pub(super) fn new(checks: Checks) -> Self {
        let layer = |layer: crate::secret::LayerChecks| {
            let a = layer.a.into_iter().map(as_rank_one);
            Equations::new(layer.v.into_iter().zip(a))
        };
        Self(checks.into_layers().map(layer).collect())
    }

    /// No vectors.
    pub(super) fn none() -> Self {
        Self(Vec::new())
    }

    /// Checks a dealer's answer to one round of one inference and takes it apart, by call.
    ///
    /// Every word, image and repetition is looked at before anything is decided.
    ///
    /// # Errors
    /// [`DealerMisbehaved`] where the answer is not as long as the round's, holds a word of p or
    /// more, or is not what a layer makes of its pad; nothing of it is left.
    pub(super) fn open(
        &self,
        plan: &Plan,
        round: usize,
        number: u64,
        seed: &Seed,
        words: Words,
    ) -> Result<Vec<Unmask>, DealerMisbehaved> {
        let mut words = Unmask(words.into_vec());
        let planned = &plan.rounds()[round];
        let layers = plan.layers();
        let outputs = planned
            .calls
            .iter()
            .map(|(id, _)| layers[id.index()].spec.outputs());
        let (expected, got) = (outputs.clone().sum(), words.0.len());
        if got != expected {
            return Err(DealerMisbehaved::AnswerLength {
                round,
                expected,
                got,
            });
        }
        let mut rest = &words.0[..];
        let mut answers = Vec::with_capacity(planned.calls.len());
        for outputs in outputs.clone() {
            let (answer, tail) = rest.split_at(outputs);
            answers.push(answer);
            rest = tail;
        }
        let key = Key::new(*seed.expose());
        let mut lie = None;
        let uploads = planned.uploads.iter().zip(planned.first_upload..);
        for (index, (upload, upload_number)) in uploads.enumerate() {
            let mut pad = Zeroizing::new(vec![0; upload.elements()]);
            key.stream(number, upload_number, Purpose::Mask)
                .fill(0, &mut pad);
            for ((id, from), answer) in planned.calls.iter().zip(&answers) {
                if *from == index {
                    let found = self.layer(*id, &layers[id.index()], &pad, answer).err();
                    lie = lie.or(found);
                }
            }
        }
        if let Some(lie) = lie {
            return Err(lie);
        }
        if answers.len() == 1 {
            return Ok(vec![Unmask(std::mem::take(&mut words.0))]);
        }
        Ok(answers.into_iter().map(|u| Unmask(u.to_vec())).collect())
    }

    /// The equations of one layer's u, image by image.
    fn layer(
        &self,
        id: LayerId,
        layer: &Layer,
        pad: &[u32],
        u: &[u32],
    ) -> Result<(), DealerMisbehaved> {
        let equations = &self.0[id.index()];
        let shape = &layer.spec.shape;
        let images = pad
            .chunks_exact(shape.inputs())
            .zip(u.chunks_exact(shape.outputs()));
        let mut lie = None;
        for (image, (pad, u)) in images.enumerate() {
            let found = equations.holds(u, &equations.expect(pad));
            let found = found.map_err(|wrong| match wrong {
                Wrong::NotCanonical => DealerMisbehaved::NotCanonical { layer: id, image },
                Wrong::Product { repetition } => DealerMisbehaved::WrongU {
                    layer: id,
                    image,
                    repetition,
                },
            });
            lie = lie.or_else(|| found.err());
        }
        lie.map_or(Ok(()), Err)
    }
}

/// A dense vector is the product of itself and 1.
fn as_rank_one(mut a: Folded) -> RankOne {
    match &mut a {
        Folded::RankOne { outer, inner } => RankOne {
            outer: std::mem::take(outer),
            inner: std::mem::take(inner),
        },
        Folded::Dense(dense) => RankOne {
            outer: vec![1],
            inner: std::mem::take(dense),
        },
        other => unreachable!("a form of vector that no layer has: {other:?}"),
    }
}
