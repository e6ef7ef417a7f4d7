//! Networks in three parts: the same bits as in one, at every cut; lies in the middle are caught.

use larvatus::audit::Outcome;
use larvatus::ternary::{Design, Ternary, TernaryError};
use larvatus::whole::Whole;
use larvatus_graph::{Prepared, TensorId, Values};
use larvatus_testkit::adversary::{Crooked, Wrong};
use larvatus_testkit::models;
use larvatus_testkit::whole::{agreed, audit, run, service, store, terms};
use larvatus_worker::{Backend, Cpu};

/// Networks of one program each, by name.
fn wholes() -> Vec<(&'static str, Whole, Vec<Values>)> {
    let mut all = Vec::new();
    for network in models::all() {
        let plan = network.plan(larvatus::policy::Hiding::Clear);
        if let Ok(whole) = Whole::of_plan(&plan) {
            let values = whole.values(&network.random(3)).unwrap();
            let prepared = Prepared::new(whole.model()).unwrap();
            // A network that makes what is not finite has no result to compare with.
            if prepared.run(values.clone(), &mut ()).is_ok() {
                all.push((network.name, whole, values));
            }
        }
    }
    all
}

fn bits(values: &[Values]) -> Vec<u32> {
    let floats = values.iter().flat_map(|values| values.floats().unwrap());
    floats.map(|value| value.to_bits()).collect()
}

#[test]
fn three_parts_give_the_bits_of_the_whole_at_every_cut() {
    let mut tried = 0;
    for (name, whole, values) in wholes() {
        let expected = Prepared::new(whole.model())
            .unwrap()
            .run(values.clone(), &mut ());
        let expected = bits(&expected.unwrap());
        for design in [Design::Ternary, Design::Paper] {
            for cut in whole.model().graph().cuts(10_000).all {
                // A cut behind the beginning of the head leaves no middle.
                let Ok(parts) = Ternary::new(whole.clone(), cut.tensors(), design) else {
                    continue;
                };
                let (crossing, inside) = parts.enter(values.clone()).unwrap();
                let middle = parts.middle();
                let crossing = middle.graph().unpack_inputs(&crossing).unwrap();
                let given = Prepared::new(middle)
                    .unwrap()
                    .run(crossing, &mut ())
                    .unwrap();
                let given = middle.graph().pack_outputs(&given).unwrap();
                let outputs = parts.leave(inside, &given).unwrap();
                assert_eq!(
                    bits(&outputs),
                    expected,
                    "{name}, {design:?}, {:?}",
                    cut.tensors()
                );
                let costs = parts.costs();
                assert_eq!(costs.work[2] > 0, design == Design::Ternary, "{name}");
                tried += 1;
            }
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn what_is_no_cut_is_refused() {
    let network = models::small_cnn(1);
    let plan = network.plan(larvatus::policy::Hiding::Clear);
    let whole = Whole::of_plan(&plan).unwrap();
    let last = whole.model().graph().outputs()[0].tensor;
    for tensors in [
        vec![last],
        vec![TensorId(9999)],
        vec![TensorId(0), last],
        vec![],
    ] {
        let refused = Ternary::new(whole.clone(), &tensors, Design::Ternary).unwrap_err();
        let said = tensors.iter().map(|id| id.0).collect();
        assert_eq!(refused, TernaryError::NoCut(said));
    }
}

/// The middle of a small network behind its first layer.
fn middle() -> (Ternary, Vec<Values>) {
    let network = models::small_cnn(1);
    let plan = network.plan(larvatus::policy::Hiding::Clear);
    let whole = Whole::of_plan(&plan).unwrap();
    let values = whole.values(&network.random(3)).unwrap();
    let cuts = whole.model().graph().cuts(1000).all;
    let cut = cuts.into_iter().find(|cut| cut.linears() == 1).unwrap();
    (
        Ternary::new(whole, cut.tensors(), Design::Ternary).unwrap(),
        values,
    )
}

/// The middle at a worker, with everything audited; the network's outputs and what the audit says.
fn through(engine: Box<dyn Backend>) -> (Vec<u32>, Outcome) {
    let (parts, values) = middle();
    let (crossing, inside) = parts.enter(values).unwrap();
    let terms = terms(parts.middle(), 1.0);
    let mut peer = service(&store(engine));
    let mut remote = agreed(&terms, &mut peer).unwrap();
    let record = run(&mut remote, &mut peer, 1, crossing).unwrap();
    let outputs = parts.leave(inside, record.output()).unwrap();
    let outcome = audit(&terms, &mut remote, &mut peer, record, [7; 32]);
    (bits(&outputs), outcome)
}

#[test]
fn an_honest_middle_is_settled_and_gives_the_output_of_the_whole() {
    let (parts, values) = middle();
    let expected = Prepared::new(parts.whole().model())
        .unwrap()
        .run(values, &mut ())
        .unwrap();
    let engine = Cpu::new(std::num::NonZeroUsize::MIN).unwrap();
    let (outputs, outcome) = through(Box::new(engine));
    assert_eq!(outputs, bits(&expected));
    assert!(matches!(outcome, Outcome::Settled(_)), "{outcome:?}");
}

#[test]
fn every_lie_in_the_middle_is_caught() {
    let (parts, _) = middle();
    let graph = parts.middle().graph();
    let first = graph.inputs().len() as u32;
    let made = first..first + graph.nodes().len() as u32;
    assert!(made.len() >= 4);
    for tensor in made {
        let last = graph.tensors()[tensor as usize].elements - 1;
        let place = graph.place(TensorId(tensor));
        let lies = [
            Wrong::Made {
                tensor,
                element: last,
            },
            Wrong::Committed { place, element: 0 },
        ];
        for wrong in lies {
            let (_, outcome) = through(Box::new(Crooked(wrong)));
            assert!(
                matches!(outcome, Outcome::Rejected(_)),
                "{wrong:?}: {outcome:?}"
            );
        }
    }
}
