//! A session's secrets: keys, one-time tickets, check vectors.
//!
//! Everything derives from entropy drawn when the session starts and is never stored, so no crash,
//! clone or restored disk can bring a pad back. Masks and check vectors come from separate keys.

use std::sync::Arc;

use larvatus_kernels::hide::Folded;
use larvatus_kernels::keystream::{Key, Purpose, Stream};
use larvatus_kernels::linear::{Adjoint, adjoint, wipe};
use larvatus_kernels::reveal::RankOne;
use larvatus_proto::program::LayerId;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::plan::{Layer, Plan};

/// Fresh randomness for one session: 32 bytes that were never used and never will be again.
///
/// Not `Clone`, no `Debug`: using it twice would repeat every pad.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Entropy([u8; 32]);

impl Entropy {
    /// Takes bytes that the operating system's generator has just drawn.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    fn derive(&self, label: &str, plan: &Plan) -> Key {
        let mut hasher = blake3::Hasher::new_derive_key(label);
        hasher.update(&self.0).update(&plan.digest().0);
        Key::new(*hasher.finalize().as_bytes())
    }
}

const MASKS: &str = "larvatus 2026 session key v1: masks";
const CHECKS: &str = "larvatus 2026 session key v1: check vectors";

/// The right to hide one upload of one inference, once.
///
/// Not `Clone`: it is moved into the hiding, and a second use does not compile, because the worker
/// would learn the difference of two inputs.
///
/// ```compile_fail,E0382
/// fn twice(ticket: larvatus::secret::Ticket) {
///     let first = ticket;
///     let second = ticket;
/// }
/// ```
pub struct Ticket {
    inference: u64,
    upload: u16,
}

impl Ticket {
    /// The pad of this ticket; ends the ticket.
    pub(crate) fn pad(self, masks: &Masks) -> Stream<'_> {
        masks.pad(self.inference, self.upload)
    }
}

/// Numbers tickets; no number is given twice by one session.
#[derive(Default)]
pub(crate) struct TicketBook {
    next: u64,
}

/// What hides and opens one round: a ticket an upload, a `u` a call.
pub(crate) struct RoundSecrets {
    pub(crate) tickets: Vec<Ticket>,
    /// `u = L(r)`, by call; empty where nothing is hidden.
    pub(crate) unmasks: Vec<Unmask>,
}

/// `u = L(r)` of one call, cleared when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Unmask(pub(crate) Vec<u32>);

/// The key of all pads of a session.
pub(crate) struct Masks(Key);

impl Masks {
    pub(crate) fn new(entropy: &Entropy, plan: &Plan) -> Self {
        Self(entropy.derive(MASKS, plan))
    }

    fn pad(&self, inference: u64, upload: u16) -> Stream<'_> {
        self.0.stream(inference, upload, Purpose::Mask)
    }

    /// Issues the tickets of one inference and computes what opens its answers.
    pub(crate) fn provision(&self, plan: &Plan, book: &mut TicketBook) -> Vec<RoundSecrets> {
        let inference = book.next;
        book.next += 1;
        let engine = plan.engine();
        let mut rounds = Vec::with_capacity(plan.rounds().len());
        for round in plan.rounds() {
            let mut unmasks: Vec<Option<Unmask>> = round.calls.iter().map(|_| None).collect();
            let numbers = round.first_upload..;
            for (index, (upload, number)) in round.uploads.iter().zip(numbers.clone()).enumerate() {
                let mut pad = vec![0; upload.words()];
                self.pad(inference, number).fill(0, &mut pad);
                for ((layer, from), unmask) in round.calls.iter().zip(&mut unmasks) {
                    if *from == index {
                        *unmask = Some(Unmask(engine.apply(*layer, &pad)));
                    }
                }
                pad.zeroize();
            }
            let tickets = round.uploads.iter().zip(numbers);
            rounds.push(RoundSecrets {
                tickets: tickets
                    .map(|(_, upload)| Ticket { inference, upload })
                    .collect(),
                unmasks: unmasks.into_iter().flatten().collect(),
            });
        }
        // The pads went through the buffers of the threads that computed u.
        wipe();
        rounds
    }
}

/// A session's check vectors, by layer and repetition. Whoever knows them can forge.
pub(crate) struct Checks(Vec<LayerChecks>);

pub(crate) struct LayerChecks {
    /// v = t ⊗ s over the answer.
    pub(crate) v: Vec<RankOne>,
    /// a = Lᵀ v over the upload.
    pub(crate) a: Vec<Folded>,
}

impl Checks {
    /// Draws the vectors: each entry of t and s uniform over F_p, so that a wrong answer passes
    /// one repetition with a chance of at most 2/p.
    pub(crate) fn new(entropy: &Entropy, plan: &Arc<Plan>) -> Self {
        let key = entropy.derive(CHECKS, plan);
        let layers = plan.layers().iter().zip(0_u64..);
        Self(
            layers
                .map(|(layer, id)| LayerChecks::new(&key, id, layer, plan.repetitions()))
                .collect(),
        )
    }

    /// No vectors: for plans and runs that check nothing.
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn layer(&self, id: LayerId) -> Option<&LayerChecks> {
        self.0.get(id.index())
    }
}

impl LayerChecks {
    fn new(key: &Key, layer_id: u64, layer: &Layer, repetitions: usize) -> Self {
        let (rows, cols) = layer.spec.shape.output_rows_cols();
        let mut checks = Self {
            v: Vec::new(),
            a: Vec::new(),
        };
        for repetition in (0..repetitions).filter_map(|r| u16::try_from(r).ok()) {
            let draw = |purpose, count| {
                let mut words = vec![0; count];
                key.stream(layer_id, repetition, purpose)
                    .fill(0, &mut words);
                words
            };
            let (outer, inner) = (draw(Purpose::Channel, rows), draw(Purpose::Space, cols));
            let folded = adjoint(&layer.spec.shape, &layer.weights, &outer, &inner)
                .expect("the plan checked these weights and this shape");
            checks.a.push(match folded {
                Adjoint::Dense(a) => Folded::Dense(a),
                Adjoint::RankOne { outer, inner } => Folded::RankOne { outer, inner },
            });
            checks.v.push(RankOne { outer, inner });
        }
        checks
    }
}
