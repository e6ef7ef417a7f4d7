//! A trusted side cannot make an honest worker look like a liar, whatever it writes as evidence.

use std::sync::Arc;
use std::time::Duration;

use larvatus::audit::{Evidence, NotShown, Terms};
use larvatus_graph::{Model, UnitId};
use larvatus_proto::commit::{LeafId, OpenError, Opened, Opening};
use larvatus_proto::receipt::{CLAIM, Claim, Party, PublicKey, ReceiptError, Salted, Signer};
use larvatus_proto::wire::{DecodeError, Writer};
use larvatus_testkit::chance::Chance;
use larvatus_testkit::pair::converse;
use larvatus_testkit::whole::{WORKER, agreed, input, run, service, store, terms, tower, trusted};
use larvatus_worker::{Cpu, Service};

const FLOORS: usize = 18;
/// Units of a tower: maxima, product, floors.
const UNITS: u32 = 2 + FLOORS as u32;

fn worker_key() -> PublicKey {
    Signer::new(WORKER).public()
}

fn honest() -> Service {
    let cpu = Cpu::new(std::num::NonZeroUsize::MIN).unwrap();
    service(&store(Box::new(cpu)))
}

/// An honest run, all of it opened, and what an accuser could make of it.
struct Honest {
    model: Model,
    terms: Arc<Terms>,
    claim: Claim,
    salt: [u8; 32],
    input: Vec<u8>,
    opened: Opened,
}

impl Honest {
    fn run(counter: u64, seed: u64) -> Self {
        let model = tower(FLOORS, 1);
        let terms = terms(&model, 1.0);
        let mut peer = honest();
        let mut remote = agreed(&terms, &mut peer).unwrap();
        let record = run(&mut remote, &mut peer, counter, input(&model, seed)).unwrap();
        let layout = model.graph().layout();
        let every: Vec<LeafId> = (0..layout.leaves())
            .map(|number| layout.leaf(number).unwrap())
            .collect();
        let root = record.statement().trace;
        remote
            .open(root, every.clone(), vec![], Duration::ZERO)
            .unwrap();
        converse(&mut remote, &mut peer, Duration::ZERO);
        let Some(larvatus::audit::Done::Opened { bytes, .. }) = remote.poll() else {
            panic!("not opened");
        };
        let opening = Opening::decode(layout, every.len(), &[], &bytes).unwrap();
        let opened = opening.verify(root, layout, &every, &[]).unwrap();
        Self {
            claim: record.receipt().claim().clone(),
            salt: *record.salt(),
            input: record.input().to_vec(),
            model,
            terms,
            opened,
        }
    }

    fn opening(&self, unit: u32) -> Vec<u8> {
        let graph = self.model.graph();
        let needs = graph.needs(UnitId(unit));
        self.opened.narrow(graph.layout(), &needs).unwrap().encode()
    }

    fn one_leaf(&self, tensor: u32) -> Vec<u8> {
        let leaf = LeafId { tensor, leaf: 0 };
        let layout = self.model.graph().layout();
        self.opened.narrow(layout, &[leaf]).unwrap().encode()
    }

    fn accuse(&self, claim: &[u8], unit: u32, opening: &[u8]) -> Result<(), NotShown> {
        judged(&accusation(claim, unit, opening), &self.model)
    }
}

/// Evidence as an accuser writes it.
fn accusation(claim: &[u8], unit: u32, opening: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(b"LRE1").bytes(claim).u8(1).u32(unit);
    out.count(opening.len()).bytes(opening);
    out.into_bytes()
}

fn of_port(claim: &[u8], tag: u8, salt: &[u8], content: &[u8], opening: &[u8]) -> Vec<u8> {
    let mut out = Writer::default();
    out.bytes(b"LRE1").bytes(claim).u8(tag).bytes(salt);
    out.count(content.len()).bytes(content);
    out.count(opening.len()).bytes(opening);
    out.into_bytes()
}

fn judged(bytes: &[u8], model: &Model) -> Result<(), NotShown> {
    let evidence = Evidence::decode(bytes).expect("well formed");
    evidence.judge(worker_key(), model).map(|_| ())
}

const NOT_SIGNED: Result<(), NotShown> = Err(NotShown::Claim(ReceiptError::Signature {
    party: Party::Worker,
}));

#[test]
fn an_honest_worker_cannot_be_shown_to_lie() {
    let honest = Honest::run(7, 3);
    let claim = honest.claim.encode();
    for unit in 0..UNITS {
        let shown = honest.accuse(&claim, unit, &honest.opening(unit));
        assert_eq!(shown, Err(NotShown::Recomputes { unit }));
    }
    let none = honest.accuse(&claim, UNITS, &honest.opening(0));
    let (unit, units) = (UNITS, UNITS as usize);
    assert_eq!(none, Err(NotShown::NoUnit { unit, units }));

    // Any changed byte of an opening.
    let opening = honest.opening(4);
    let mut chance = Chance::new(1);
    for _ in 0..500 {
        let mut bytes = opening.clone();
        let at = chance.below(bytes.len());
        bytes[at] ^= 1 << chance.below(8);
        let shown = honest.accuse(&claim, 4, &bytes);
        let held = matches!(shown, Err(NotShown::Opening(_) | NotShown::Malformed(_)));
        assert!(held, "byte {at}: {shown:?}");
    }
    let table = 4 + 8 * 2;
    let mut bytes = opening.clone();
    bytes[table] ^= 1;
    let shown = honest.accuse(&claim, 4, &bytes);
    assert!(
        matches!(shown, Err(NotShown::Opening(OpenError::Root { .. }))),
        "{shown:?}"
    );

    // Another unit's number for this opening, and none at all.
    let (expected, got) = (LeafId { tensor: 5, leaf: 0 }, LeafId { tensor: 4, leaf: 0 });
    let shown = honest.accuse(&claim, 5, &opening);
    let swapped = NotShown::Opening(OpenError::NotAsked { expected, got });
    assert_eq!(shown, Err(swapped));
    let shown = honest.accuse(&claim, 4, &[]);
    assert!(matches!(
        shown,
        Err(NotShown::Malformed(DecodeError::Truncated { .. }))
    ));
}

#[test]
fn claims_cannot_be_altered_exchanged_or_made_up() {
    let (one, other) = (Honest::run(7, 3), Honest::run(8, 4));
    let claim = one.claim.encode();
    // The claim of another inference with this opening.
    let shown = one.accuse(&other.claim.encode(), 4, &one.opening(4));
    assert!(
        matches!(shown, Err(NotShown::Opening(OpenError::Root { .. }))),
        "{shown:?}"
    );
    // Another root, another model, another key, another anything in a claim.
    for at in [0, 40, 66, 80, 110, 140, 170, 235, CLAIM - 1] {
        let mut changed = claim.clone();
        changed[at] ^= 1;
        assert_eq!(
            one.accuse(&changed, 4, &one.opening(4)),
            NOT_SIGNED,
            "byte {at}"
        );
    }
    let mut foreign = claim.clone();
    foreign[136..168].copy_from_slice(&other.claim.unverified().trace.0.0);
    assert_eq!(one.accuse(&foreign, 4, &other.opening(4)), NOT_SIGNED);

    // A claim that the accuser signs itself: as itself, and in the worker's name.
    let accuser = trusted();
    let mut statement = one.claim.unverified().clone();
    statement.worker = accuser.public();
    let own = statement.claim(&accuser).unwrap().encode();
    let not_its = NotShown::Claim(ReceiptError::Key {
        party: Party::Worker,
        expected: worker_key(),
        got: accuser.public(),
    });
    assert_eq!(one.accuse(&own, 4, &one.opening(4)), Err(not_its));
    let mut in_its_name = own.clone();
    in_its_name[200..232].copy_from_slice(&worker_key().0);
    assert_eq!(one.accuse(&in_its_name, 4, &one.opening(4)), NOT_SIGNED);
}

#[test]
fn another_model_or_other_weights_show_nothing() {
    let honest = Honest::run(7, 3);
    let bytes = accusation(&honest.claim.encode(), 1, &honest.opening(1));
    // The same graph with other weights, and another graph.
    for model in [tower(FLOORS, 2), tower(FLOORS + 1, 1)] {
        let (expected, got) = (honest.model.digest(), model.digest());
        let other = NotShown::OtherGraph { expected, got };
        assert_eq!(judged(&bytes, &model), Err(other));
    }
    // With the other weights' digest in the claim.
    let model = tower(FLOORS, 2);
    let mut claim = honest.claim.encode();
    claim[..32].copy_from_slice(&model.digest().0);
    let bytes = accusation(&claim, 1, &honest.opening(1));
    assert_eq!(judged(&bytes, &model), NOT_SIGNED);
    assert_eq!(honest.terms.model().digest(), honest.model.digest());
}

#[test]
fn another_input_or_output_shows_nothing() {
    let honest = Honest::run(7, 3);
    let (claim, model) = (honest.claim.encode(), &honest.model);
    let salt = &honest.salt;
    let first = honest.one_leaf(0);
    let port = |tag, content: &[u8], opening: &[u8]| {
        judged(&of_port(&claim, tag, salt, content, opening), model)
    };
    let content = |what| Err(NotShown::Content { what });
    assert_eq!(port(2, &input(model, 4), &first), content("input"));
    assert_eq!(port(3, &honest.input, &first), content("output"));
    let same = |what| Err(NotShown::Same { what });
    assert_eq!(port(2, &honest.input, &first), same("input"));
    // A leaf that is no input's.
    assert_eq!(port(2, &honest.input, &honest.one_leaf(4)), same("input"));
    assert_eq!(
        port(2, &honest.input, &honest.one_leaf(UNITS)),
        same("input")
    );
    // The salt of another commitment.
    let other = of_port(&claim, 2, &[0; 32], &honest.input, &first);
    assert_eq!(judged(&other, model), content("input"));
    assert_ne!(
        Salted::input(&[0; 32], &honest.input),
        honest.claim.unverified().input
    );
}

#[test]
fn evidence_that_is_cut_off_or_mutated_is_none_or_shows_nothing() {
    let honest = Honest::run(7, 3);
    let bytes = accusation(&honest.claim.encode(), 4, &honest.opening(4));
    for cut in 0..bytes.len() {
        let refused = Evidence::decode(&bytes[..cut]);
        let truncated = matches!(refused, Err(DecodeError::Truncated { .. }));
        assert!(truncated, "{cut}: {refused:?}");
    }
    let mut longer = bytes.clone();
    longer.push(0);
    assert_eq!(
        Evidence::decode(&longer),
        Err(DecodeError::Trailing { extra: 1 })
    );
    let mut chance = Chance::new(5);
    for _ in 0..2000 {
        let mut mutated = bytes.clone();
        for _ in 0..1 + chance.below(3) {
            let at = chance.below(mutated.len());
            mutated[at] = mutated[at].wrapping_add(1 + chance.below(255) as u8);
        }
        if let Ok(evidence) = Evidence::decode(&mutated) {
            let shown = evidence.judge(worker_key(), &honest.model);
            assert!(shown.is_err(), "{shown:?}");
        }
    }
}
