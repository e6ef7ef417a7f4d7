//! A session's secrets: keys, one-time tickets, check vectors.
//!
//! Every inference has a pad key of its own, the [`Seed`] of its [`TicketSet`]. The session derives
//! seeds one way from entropy drawn when it starts, which is never stored, so no crash, clone or
//! restored disk can bring a pad back. Sets may also come from elsewhere, made from fresh seeds; each
//! says who knows its pads. Check vectors come from a key of their own: one for the session, or one for each
//! inference.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use larvatus_kernels::erase;
use larvatus_kernels::hide::Folded;
use larvatus_kernels::keystream::{Key, Purpose, Stream};
use larvatus_kernels::linear::{Adjoint, adjoint, wipe};
use larvatus_kernels::reveal::RankOne;
use larvatus_proto::digest::Digest;
use larvatus_proto::program::LayerId;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::SupplyError;
use crate::plan::{Layer, Plan, PlannedRound};
use crate::policy::CheckDraw;

/// Fresh randomness for one session, one dealing, one store or one stored ticket: 32 bytes that were never used
/// and never will be again.
///
/// Not `Clone`, no `Debug`: using it twice would repeat every pad.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Entropy([u8; 32]);

impl Entropy {
    /// Takes bytes that the operating system's generator has just drawn.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub(crate) fn derive(&self, label: &str, plan: &Plan) -> Zeroizing<[u8; 32]> {
        derive(label, &[&self.0, &plan.digest().0])
    }

    /// The same for a plan that is named by its digest.
    pub(crate) fn derive_for(&self, label: &str, plan: Digest) -> Zeroizing<[u8; 32]> {
        derive(label, &[&self.0, &plan.0])
    }

    /// A key that is bound to no plan.
    pub(crate) fn derive_alone(&self, label: &str) -> Zeroizing<[u8; 32]> {
        derive(label, &[&self.0])
    }
}

const MASKS: &str = "larvatus 2026 session key v2: masks";
const SEED: &str = "larvatus 2026 inference seed v1";
const CHECKS: &str = "larvatus 2026 session key v1: check vectors";
const FRESH_CHECKS: &str = "larvatus 2026 session key v1: fresh check vectors";
const INFERENCE_CHECKS: &str = "larvatus 2026 inference key v1: check vectors";
const DEALT_MASKS: &str = "larvatus 2026 dealing key v1: masks";
const DEALT_CHECKS: &str = "larvatus 2026 dealing key v1: check vectors";

/// One-way derivation; `parts` have fixed lengths under each label.
pub(crate) fn derive(label: &str, parts: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut hasher = blake3::Hasher::new_derive_key(label);
    for part in parts {
        hasher.update(part);
    }
    let mut hash = hasher.finalize();
    let key = Zeroizing::new(*hash.as_bytes());
    hash.zeroize();
    hasher.zeroize();
    key
}

/// The key of one inference's pads: all that somebody needs who computes u for it, and nothing that
/// says anything about another inference.
///
/// Whoever holds it must never see what the inference sends. Not `Clone`, no `Debug`.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Seed([u8; 32]);

impl Seed {
    /// Takes 32 bytes that are uniform and serve one inference only.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, for whoever is to compute u.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A pinned key's digest: who a peer is, whatever its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(pub [u8; 32]);

/// Where a ticket set was made, and so who knows its pads besides this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// In this session. Nobody else knows them.
    Own,
    /// Earlier, and kept in a store. Whoever opens the store knows them.
    Stored,
    /// By a dealer, who knows them and so must never see what they hide.
    Dealer(Identity),
}

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

/// The pads of one inference.
pub(crate) struct Masks(Key);

impl Masks {
    fn new(seed: &Seed) -> Self {
        Self(Key::new(seed.0))
    }

    fn pad(&self, inference: u64, upload: u16) -> Stream<'_> {
        self.0.stream(inference, upload, Purpose::Mask)
    }
}

/// What hides and opens one round: a ticket an upload, a `u` a call.
pub(crate) struct RoundSecrets {
    /// The key of the tickets' pads.
    pub(crate) masks: Arc<Masks>,
    pub(crate) tickets: Vec<Ticket>,
    /// `u = L(r)`, by call.
    pub(crate) unmasks: Vec<Unmask>,
}

/// `u = L(r)` of one call, cleared when dropped.
pub(crate) struct Unmask(pub(crate) Vec<u32>);

impl Drop for Unmask {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

/// The secrets of one inference of one plan: the tickets of its uploads and what opens its answers.
///
/// Moved into the inference that uses it. Not `Clone`, no `Debug`, cleared when dropped.
///
/// ```compile_fail,E0382
/// fn twice(session: &mut larvatus::session::Session, set: larvatus::secret::TicketSet) {
///     let _ = session.supply(set);
///     let _ = session.supply(set);
/// }
/// ```
pub struct TicketSet {
    plan: Digest,
    worker_model: Digest,
    number: u64,
    origin: Origin,
    rounds: VecDeque<RoundSecrets>,
}

impl TicketSet {
    /// Puts a set together from its seed and the u of its calls, `unmasks`, in the plan's order.
    ///
    /// # Errors
    /// [`SupplyError`] where there are not as many u, or not as long ones, as the plan has calls.
    pub(crate) fn new(
        plan: &Plan,
        number: u64,
        origin: Origin,
        seed: &Seed,
        unmasks: Vec<Unmask>,
    ) -> Result<Self, SupplyError> {
        let calls = plan.rounds().iter().map(|round| round.calls.len()).sum();
        if unmasks.len() != calls {
            return Err(SupplyError::Calls {
                expected: calls,
                got: unmasks.len(),
            });
        }
        let masks = Arc::new(Masks::new(seed));
        let mut unmasks = unmasks.into_iter();
        let mut rounds = VecDeque::with_capacity(plan.rounds().len());
        for round in plan.rounds() {
            let unmasks: Vec<Unmask> = unmasks.by_ref().take(round.calls.len()).collect();
            for ((layer, _), unmask) in round.calls.iter().zip(&unmasks) {
                let expected = plan.layers()[layer.index()].spec.outputs();
                if unmask.0.len() != expected {
                    return Err(SupplyError::Words {
                        layer: *layer,
                        expected,
                        got: unmask.0.len(),
                    });
                }
            }
            let uploads = round.uploads.iter().zip(round.first_upload..);
            rounds.push_back(RoundSecrets {
                masks: Arc::clone(&masks),
                tickets: uploads
                    .map(|(_, upload)| Ticket {
                        inference: number,
                        upload,
                    })
                    .collect(),
                unmasks,
            });
        }
        Ok(Self {
            plan: plan.digest(),
            worker_model: plan.worker_model().digest(),
            number,
            origin,
            rounds,
        })
    }

    /// Its number among the sets of its origin.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Who knows its pads.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// Takes the secrets of the next round.
    pub(crate) fn next_round(&mut self) -> Option<RoundSecrets> {
        self.rounds.pop_front()
    }

    /// # Errors
    /// [`SupplyError`] where the set was made for another plan or other weights.
    pub(crate) fn belongs_to(&self, plan: &Plan) -> Result<(), SupplyError> {
        if self.plan != plan.digest() {
            return Err(SupplyError::OtherPlan {
                expected: plan.digest(),
                got: self.plan,
            });
        }
        let expected = plan.worker_model().digest();
        if self.worker_model != expected {
            return Err(SupplyError::OtherModel {
                expected,
                got: self.worker_model,
            });
        }
        Ok(())
    }
}

/// Makes a session's own ticket sets; no number is given twice.
pub(crate) struct Provisioner {
    masks: Zeroizing<[u8; 32]>,
    next: u64,
}

impl Provisioner {
    pub(crate) fn new(entropy: &Entropy, plan: &Plan) -> Self {
        Self {
            masks: entropy.derive(MASKS, plan),
            next: 0,
        }
    }

    /// Seeds that a dealer is told; they are no session's own, even of the same entropy.
    pub(crate) fn for_dealer(entropy: &Entropy, plan: &Plan) -> Self {
        Self {
            masks: entropy.derive(DEALT_MASKS, plan),
            next: 0,
        }
    }

    /// The number and the seed of the next inference. The seed says nothing about others.
    pub(crate) fn next_seed(&mut self) -> (u64, Seed) {
        let number = self.next;
        self.next += 1;
        let seed = derive(SEED, &[&*self.masks, &number.to_le_bytes()]);
        (number, Seed(*seed))
    }

    /// Makes the next set: computes all u of one inference.
    pub(crate) fn provision(&mut self, plan: &Plan) -> TicketSet {
        let (number, seed) = self.next_seed();
        let unmasks = unmasks(plan, number, &seed);
        TicketSet::new(plan, number, Origin::Own, &seed, unmasks)
            .expect("made for the calls of this plan")
    }
}

/// u = L(r) of every call of one inference, in the plan's order.
pub(crate) fn unmasks(plan: &Plan, number: u64, seed: &Seed) -> Vec<Unmask> {
    let masks = Masks::new(seed);
    let engine = plan.engine();
    let mut all = Vec::new();
    for round in plan.rounds() {
        let mut unmasks: Vec<Option<Unmask>> = round.calls.iter().map(|_| None).collect();
        let uploads = round.uploads.iter().zip(round.first_upload..);
        for (index, (upload, upload_number)) in uploads.enumerate() {
            let mut pad = Zeroizing::new(vec![0; upload.elements()]);
            masks.pad(number, upload_number).fill(0, &mut pad);
            for ((layer, from), unmask) in round.calls.iter().zip(&mut unmasks) {
                if *from == index {
                    *unmask = Some(Unmask(engine.apply(*layer, &pad)));
                }
            }
        }
        all.extend(unmasks.into_iter().flatten());
    }
    // The pads went through the buffers of the threads that computed u.
    wipe();
    all
}

/// What a session checks with.
pub(crate) enum Checking {
    /// Vectors that serve all inferences.
    Session(Checks),
    /// The key of the keys of single inferences.
    Fresh(Zeroizing<[u8; 32]>),
}

impl Checking {
    /// As the plan's policy says.
    pub(crate) fn new(entropy: &Entropy, plan: &Plan) -> Self {
        match plan.policy().check() {
            CheckDraw::Session => Self::Session(Checks::new(entropy, plan)),
            CheckDraw::Fresh => Self::Fresh(entropy.derive(FRESH_CHECKS, plan)),
        }
    }

    /// Nothing: for a session that is over.
    pub(crate) fn none() -> Self {
        Self::Session(Checks::none())
    }

    /// The key of an inference's own vectors, where it has some. It says nothing about others.
    pub(crate) fn key(&self, inference: u64) -> Option<CheckKey> {
        match self {
            Self::Session(_) => None,
            Self::Fresh(key) => {
                let key = derive(INFERENCE_CHECKS, &[&**key, &inference.to_le_bytes()]);
                Some(CheckKey(Key::new(*key)))
            }
        }
    }

    /// The vectors that serve all inferences.
    pub(crate) fn shared(&self) -> Option<&Checks> {
        match self {
            Self::Session(checks) => Some(checks),
            Self::Fresh(_) => None,
        }
    }
}

/// The key of one inference's check vectors.
pub(crate) struct CheckKey(Key);

impl CheckKey {
    /// The vectors of one round's layers; a layer is called in one round only.
    pub(crate) fn draw(&self, plan: &Plan, round: &PlannedRound) -> Checks {
        let layers = round.calls.iter().map(|(id, _)| *id);
        Checks::draw(&self.0, plan, layers, plan.repetitions())
    }
}

/// Check vectors by layer and repetition. Whoever knows them can forge.
pub(crate) struct Checks(BTreeMap<LayerId, LayerChecks>);

pub(crate) struct LayerChecks {
    /// v = t ⊗ s over the answer.
    pub(crate) v: Vec<RankOne>,
    /// a = Lᵀ v over the upload.
    pub(crate) a: Vec<Folded>,
    /// Of all of them.
    words: usize,
}

impl Checks {
    /// Draws the vectors: each entry of t and s uniform over F_p, so that a wrong answer passes
    /// one repetition with a chance of at most 2/p.
    fn new(entropy: &Entropy, plan: &Plan) -> Self {
        Self::of_all(entropy, CHECKS, plan, plan.repetitions())
    }

    /// Vectors for a dealer's u, in which the plan's worker has no part; two repetitions at least.
    pub(crate) fn for_dealer(entropy: &Entropy, plan: &Plan) -> Self {
        Self::of_all(entropy, DEALT_CHECKS, plan, plan.repetitions().max(2))
    }

    fn of_all(entropy: &Entropy, label: &str, plan: &Plan, repetitions: usize) -> Self {
        let key = Key::new(*entropy.derive(label, plan));
        let layers = (0..).map(LayerId).take(plan.layers().len());
        Self::draw(&key, plan, layers, repetitions)
    }

    fn draw(
        key: &Key,
        plan: &Plan,
        layers: impl Iterator<Item = LayerId>,
        repetitions: usize,
    ) -> Self {
        let of = |id: LayerId| {
            let layer = &plan.layers()[id.index()];
            (id, LayerChecks::new(key, id, layer, repetitions))
        };
        Self(layers.map(of).collect())
    }

    /// The vectors of each layer, in the plan's order.
    pub(crate) fn into_layers(self) -> impl Iterator<Item = LayerChecks> {
        self.0.into_values()
    }

    /// No vectors: for plans and runs that check nothing.
    pub(crate) fn none() -> Self {
        Self(BTreeMap::new())
    }

    pub(crate) fn layer(&self, id: LayerId) -> Option<&LayerChecks> {
        self.0.get(&id)
    }

    /// Erases every a: what they expect of answers is known.
    pub(crate) fn forget_folded(&mut self) {
        self.0.values_mut().for_each(|layer| layer.a.clear());
    }

    /// Memory of all vectors.
    pub(crate) fn bytes(&self) -> u64 {
        4 * self.0.values().map(|layer| layer.words).sum::<usize>() as u64
    }
}

impl LayerChecks {
    fn new(key: &Key, id: LayerId, layer: &Layer, repetitions: usize) -> Self {
        let (rows, cols) = layer.spec.shape.output_rows_cols();
        let mut checks = Self {
            v: Vec::new(),
            a: Vec::new(),
            words: 0,
        };
        for repetition in (0..repetitions).filter_map(|r| u16::try_from(r).ok()) {
            let draw = |purpose, count| {
                let mut words = vec![0; count];
                key.stream(id.0.into(), repetition, purpose)
                    .fill(0, &mut words);
                words
            };
            let (outer, inner) = (draw(Purpose::Channel, rows), draw(Purpose::Space, cols));
            let folded = adjoint(&layer.spec.shape, &layer.weights, &outer, &inner)
                .expect("the plan checked these weights and this shape");
            checks.words += rows + cols;
            checks.a.push(match folded {
                Adjoint::Dense(a) => {
                    checks.words += a.len();
                    Folded::Dense(a)
                }
                Adjoint::RankOne { outer, inner } => {
                    checks.words += outer.len() + inner.len();
                    Folded::RankOne { outer, inner }
                }
            });
            checks.v.push(RankOne { outer, inner });
        }
        checks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Model;
    use crate::policy::Policy;
    use crate::session::{Session, Settings};

    /// Two rounds of one call of four words each.
    fn plan(policy: &str) -> Arc<Plan> {
        let bytes = include_bytes!("../../../testkit/models/short-table.onnx");
        let model = Model::load(bytes, &[]).unwrap();
        Plan::new(&model, &Policy::from_toml(policy).unwrap()).unwrap()
    }

    fn set(plan: &Plan, unmasks: Vec<Unmask>) -> Result<TicketSet, SupplyError> {
        TicketSet::new(plan, 7, Origin::Stored, &Seed([1; 32]), unmasks)
    }

    #[test]
    fn every_inference_and_every_session_has_a_seed_of_its_own() {
        let plan = plan("");
        let mut seeds = Vec::new();
        for entropy in [[1; 32], [2; 32]] {
            let mut provisioner = Provisioner::new(&Entropy::new(entropy), &plan);
            for expected in 0..3 {
                let (number, seed) = provisioner.next_seed();
                assert_eq!(number, expected);
                seeds.push(*seed.expose());
            }
        }
        let all = seeds.len();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), all);
    }

    /// What every vector of a layer holds.
    fn words(checks: &Checks, layer: u32) -> Vec<Vec<u32>> {
        let vectors = checks.layer(LayerId(layer)).unwrap().v.iter();
        vectors.map(|v| [&*v.outer, &*v.inner].concat()).collect()
    }

    #[test]
    fn fresh_check_vectors_differ_by_session_inference_layer_and_repetition() {
        let plan = plan("check = \"fresh\"");
        let mut drawn = Vec::new();
        for entropy in [[1; 32], [2; 32]] {
            let checking = Checking::new(&Entropy::new(entropy), &plan);
            assert!(checking.shared().is_none());
            for inference in [0, 1, 1 << 40] {
                let key = checking.key(inference).unwrap();
                for round in plan.rounds() {
                    let checks = key.draw(&plan, round);
                    let layer = round.calls[0].0;
                    drawn.extend(words(&checks, layer.0));
                    // An inference's own vectors are the same however often they are drawn.
                    assert_eq!(
                        words(&checks, layer.0),
                        words(&key.draw(&plan, round), layer.0)
                    );
                }
            }
        }
        assert_eq!(drawn.len(), 2 * 3 * 2 * 2);
        let all = drawn.len();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!(drawn.len(), all);
    }

    #[test]
    fn vectors_of_a_session_serve_all_its_inferences() {
        let plan = plan("");
        let checking = Checking::new(&Entropy::new([1; 32]), &plan);
        assert!(checking.key(0).is_none() && checking.key(1).is_none());
        let shared = checking.shared().unwrap();
        assert_ne!(words(shared, 0), words(shared, 1));
    }

    #[test]
    fn a_set_of_another_plan_is_refused() {
        let (one, other) = (plan(""), plan("lifetime = 5"));
        let unmasks = unmasks(&one, 7, &Seed([1; 32]));
        let set = set(&one, unmasks).unwrap();
        let mut session = Session::new(
            Arc::clone(&other),
            Entropy::new([3; 32]),
            Settings::default(),
        );
        let expected = SupplyError::OtherPlan {
            expected: other.digest(),
            got: one.digest(),
        };
        assert_eq!(session.supply(set), Err(expected));
        assert_eq!(session.provisioned(), 0);
    }

    #[test]
    fn a_set_has_one_u_of_the_right_size_for_each_call() {
        let plan = plan("");
        let none = set(&plan, Vec::new()).err();
        let expected = SupplyError::Calls {
            expected: 2,
            got: 0,
        };
        assert_eq!(none, Some(expected));
        let mut short = unmasks(&plan, 7, &Seed([1; 32]));
        short[1].0.pop();
        let expected = SupplyError::Words {
            layer: LayerId(1),
            expected: 4,
            got: 3,
        };
        assert_eq!(set(&plan, short).err(), Some(expected));
    }
}
