//! Whole graphs: what a worker refuses, and what it signs and opens.

use larvatus_graph::{
    Graph, Input, Kind, Model, Node, Op, Order, Output, TensorId, TensorSpec, Values,
};
use larvatus_proto::commit::{LeafId, OpenError, Opening};
use larvatus_proto::frame::{Run, pack};
use larvatus_proto::order::{self, Summons};
use larvatus_proto::receipt::{Claim, Salted, Signer};

use super::*;

/// Softmax of two rows of four.
fn graph() -> Model {
    let spec = TensorSpec {
        kind: Kind::F32,
        elements: 8,
        order: Order::Flat,
    };
    let graph = Graph::new(
        vec![Input {
            name: "x".into(),
            shape: vec![2, 4],
            spec,
        }],
        vec![],
        vec![Node {
            name: "y".into(),
            op: Op::Softmax {
                input: TensorId(0).into(),
                cols: 4,
            },
            order: Order::Flat,
        }],
        vec![Output {
            name: "y".into(),
            shape: vec![2, 4],
            tensor: TensorId(1),
        }],
    );
    Model::new(graph.unwrap(), &[]).unwrap()
}

fn signing(limits: Limits) -> Service {
    let cpu = Cpu::new(std::num::NonZeroUsize::MIN).unwrap();
    let store = Store::signing(Box::new(cpu), limits, worker());
    Service::new(store, NOW)
}

fn worker() -> Signer {
    Signer::new([2; 32])
}

fn trusted() -> Signer {
    Signer::new([1; 32])
}

fn offer_graph(model: &Model) -> Request {
    Request::OfferGraph {
        model: model.digest(),
        program: u32::try_from(model.graph_bytes()).unwrap(),
        total: model.blob().len() as u64,
    }
}

fn upload(model: &Model) -> Request {
    Request::Chunk {
        offset: 0,
        bytes: model.blob().to_vec(),
    }
}

/// A service that has the graph.
fn ready(limits: Limits) -> (Service, Model) {
    let (mut service, model) = (signing(limits), graph());
    ask(&mut service, Request::Hello { version: VERSION });
    let digest = model.digest();
    assert_eq!(
        ask(&mut service, offer_graph(&model)),
        [Reply::Want {
            model: digest,
            from: 0
        }]
    );
    let key = worker().public();
    let signs = [Reply::Signs { model: digest, key }];
    assert_eq!(ask(&mut service, upload(&model)), signs);
    assert_eq!(ask(&mut service, offer_graph(&model)), signs);
    (service, model)
}

fn input(model: &Model, values: [f32; 8]) -> Vec<u8> {
    let values = Values::from(values.to_vec());
    model.graph().pack_inputs(&[values]).unwrap()
}

const X: [f32; 8] = [0.0, 1.0, 2.0, 3.0, -1.0, 0.5, 0.25, 8.0];
const SALT: [u8; 32] = [3; 32];

/// A run that is signed as it should be.
fn run_of(model: &Model, call: u64, x: [f32; 8]) -> Run {
    let input = input(model, x);
    let order = order::Order {
        model: model.digest(),
        plan: Digest([4; 32]),
        counter: call,
        input: Salted::input(&SALT, &input),
        trusted: trusted().public(),
        worker: worker().public(),
    };
    Run {
        call,
        plan: order.plan,
        counter: call,
        salt: SALT,
        trusted: order.trusted,
        signature: order.sign(&trusted()).unwrap(),
        input: pack(&input).into(),
    }
}

fn ran(service: &mut Service, model: &Model, call: u64) -> (Claim, Vec<u32>) {
    let mut replies = ask(service, Request::Run(run_of(model, call, X)));
    match replies.pop() {
        Some(Reply::Ran { claim, output, .. }) if replies.is_empty() => (*claim, output.into_vec()),
        other => panic!("{other:?}"),
    }
}

fn open(claim: &Claim, asked: Vec<LeafId>, known: Vec<LeafId>, signer: &Signer) -> Request {
    let summons = Summons {
        trace: claim.unverified().trace,
        asked,
        known,
    };
    Request::Open {
        call: 9,
        signature: summons.sign(signer),
        summons,
    }
}

const FIRST: LeafId = LeafId { tensor: 0, leaf: 0 };
const LAST: LeafId = LeafId { tensor: 1, leaf: 0 };

#[test]
fn a_run_is_signed_and_its_trace_opened() {
    let (mut service, model) = ready(Limits::default());
    let (claim, output) = ran(&mut service, &model, 5);
    let statement = claim.of(worker().public()).unwrap();
    assert_eq!(statement.counter, 5);
    let bytes: Vec<u8> = output.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(statement.output, Salted::output(&SALT, &bytes));
    let known = (FIRST, &input(&model, X)[..]);
    let replies = ask(
        &mut service,
        open(&claim, vec![LAST], vec![FIRST], &trusted()),
    );
    let [
        Reply::Opened {
            call: 9,
            bytes: opening,
        },
    ] = &replies[..]
    else {
        panic!("{replies:?}");
    };
    let layout = model.graph().layout();
    let opening = Opening::decode(layout, 1, &[FIRST], opening).unwrap();
    let opened = opening
        .clone()
        .verify(statement.trace, layout, &[LAST], &[known]);
    assert_eq!(opened.unwrap().leaf(LAST), Some(&bytes[..]));
    let other = input(&model, [0.0; 8]);
    let refused = opening.verify(statement.trace, layout, &[LAST], &[(FIRST, &other)]);
    assert!(matches!(refused, Err(OpenError::Root { .. })));
}

#[test]
fn what_is_not_signed_by_who_asks_is_not_run() {
    let (mut service, model) = ready(Limits::default());
    let not_signed = failed(
        Some(1),
        Refused::Order(ReceiptError::Signature {
            party: larvatus_proto::receipt::Party::Trusted,
        }),
    );
    let changes: [fn(&mut Run); 5] = [
        |run| run.signature[0] ^= 1,
        |run| run.counter += 1,
        |run| run.salt = [0; 32],
        |run| run.trusted = Signer::new([7; 32]).public(),
        |run| run.input = vec![0; 8].into(),
    ];
    for change in changes {
        let mut run = run_of(&model, 1, X);
        change(&mut run);
        assert_eq!(ask(&mut service, Request::Run(run)), not_signed);
    }
}

#[test]
fn inputs_of_another_size_and_runs_without_a_result_are_refused() {
    let (mut service, model) = ready(Limits::default());
    let mut run = run_of(&model, 1, X);
    run.input = vec![0; 9].into();
    let wrong = Refused::Input {
        expected: 8,
        got: 9,
    };
    assert_eq!(ask(&mut service, Request::Run(run)), failed(Some(1), wrong));
    let mut x = X;
    x[3] = f32::NAN;
    let replies = ask(&mut service, Request::Run(run_of(&model, 2, x)));
    let source = larvatus_graph::RunError::InputNotFinite { input: 0 };
    let no_result = Refused::Backend(BackendError::Run { source });
    assert_eq!(replies, failed(Some(2), no_result));
    // It goes on.
    ran(&mut service, &model, 3);
}

#[test]
fn traces_are_opened_for_who_had_them_made_while_they_are_kept() {
    let limits = Limits {
        traces: 1,
        ..Limits::default()
    };
    let (mut service, model) = ready(limits);
    let (claim, _) = ran(&mut service, &model, 1);
    let trace = claim.unverified().trace;
    let stranger = open(&claim, vec![LAST], vec![], &worker());
    let gone = failed(Some(9), Refused::NoTrace { trace });
    assert_eq!(ask(&mut service, stranger), gone);
    for (asked, known) in [
        (vec![], vec![]),
        (vec![LAST, FIRST], vec![]),
        (vec![LAST], vec![LAST]),
    ] {
        let wrong = open(&claim, asked, known, &trusted());
        let refused = failed(Some(9), Refused::Summons(CommitError::Order));
        assert_eq!(ask(&mut service, wrong), refused);
    }
    let leaf = LeafId { tensor: 2, leaf: 0 };
    let refused = failed(Some(9), Refused::Summons(CommitError::NoLeaf { leaf }));
    assert_eq!(
        ask(&mut service, open(&claim, vec![leaf], vec![], &trusted())),
        refused
    );
    let mut other = X;
    other[0] = 4.0;
    ask(&mut service, Request::Run(run_of(&model, 2, other)));
    assert_eq!(
        ask(&mut service, open(&claim, vec![LAST], vec![], &trusted())),
        gone
    );
}

#[test]
fn a_graph_is_no_program_and_a_program_no_graph() {
    let (mut service, _) = ready(Limits::default());
    let other = Refused::OtherKind {
        asked: "a round",
        offered: "a whole graph",
    };
    assert_eq!(
        ask(&mut service, call(1, &[1, 2, 3])),
        failed(Some(1), other)
    );
    let rounds = model();
    ask(&mut service, offer(&rounds));
    ask(&mut service, whole(&rounds));
    let other = Refused::OtherKind {
        asked: "a run",
        offered: "a program",
    };
    let run = Request::Run(run_of(&graph(), 1, X));
    assert_eq!(ask(&mut service, run), failed(Some(1), other));
    // Bytes of one are not the other, whatever they are offered as.
    let offered = Request::OfferGraph {
        model: rounds.digest(),
        program: u32::try_from(rounds.program_bytes()).unwrap(),
        total: rounds.blob().len() as u64,
    };
    ask(&mut service, offered);
    let replies = ask(&mut service, whole(&rounds));
    let [
        Reply::Failed {
            call: None,
            message,
        },
    ] = &replies[..]
    else {
        panic!("{replies:?}");
    };
    assert!(message.starts_with("graph is refused"), "{message}");
}

#[test]
fn graphs_beyond_the_limits_are_refused_before_their_weights() {
    let model = graph();
    for (limits, what) in [
        (
            Limits {
                trace_bytes: 63,
                ..Limits::default()
            },
            "bytes of a trace",
        ),
        (
            Limits {
                round_macs: 0,
                ..Limits::default()
            },
            "multiplications",
        ),
    ] {
        let mut service = signing(limits);
        ask(&mut service, Request::Hello { version: VERSION });
        ask(&mut service, offer_graph(&model));
        let replies = ask(&mut service, upload(&model));
        let [Reply::Failed { message, .. }] = &replies[..] else {
            panic!("{replies:?}");
        };
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn without_a_key_and_at_a_dealer_no_graph_is_taken() {
    let model = graph();
    let mut unsigned = service();
    ask(&mut unsigned, Request::Hello { version: VERSION });
    let refused = ask(&mut unsigned, offer_graph(&model));
    assert_eq!(refused, failed(None, Refused::NoKey));
    let mut dealer = Service::dealer(store(Limits::default()), NOW);
    ask(&mut dealer, Request::Hello { version: VERSION });
    let refused = ask(&mut dealer, offer_graph(&model));
    assert_eq!(refused, failed(None, Refused::OnlyDeals));
}
