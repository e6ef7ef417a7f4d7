//! Small whole graphs, workers that run them, and audits of these without a socket.

use std::sync::Arc;
use std::time::Duration;

use larvatus::audit::{
    Audit, Done, Fraction, Outcome, Provisional, Remote, RemoteSettings, Step, Terms,
};
use larvatus::error::InferError;
use larvatus_graph::graph::{ConstantSpec, Element};
use larvatus_graph::{
    ConstantId, Data, Graph, Input, Kind, Linear, Model, Node, Op, Order, Output, Source, TensorId,
    TensorSpec, Values,
};
use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::linear::{MatMul, Shape};
use larvatus_proto::machine::{Machine, Now};
use larvatus_proto::program::LayerSpec;
use larvatus_proto::receipt::Signer;
use larvatus_worker::{Backend, Limits, Service, Store};

use crate::chance::Chance;
use crate::pair::converse;

/// Rows of a tower's tensors.
pub const ROWS: usize = 6;
/// Columns of a tower's tensors.
pub const COLS: usize = 16;

/// What the trusted side signs with in tests.
pub const TRUSTED: [u8; 32] = [1; 32];
/// What workers sign with in tests.
pub const WORKER: [u8; 32] = [2; 32];

/// A product with weights, then layer normalisation and softmax by turns, `floors` of them.
///
/// The tensors of its trace: the input, the maxima, the product, then one for each floor, the last of which is the output.
/// Each that is made is one unit.
///
/// # Panics
/// Never, where the graph crate takes well formed graphs.
pub fn tower(floors: usize, seed: u64) -> Model {
    let mut chance = Chance::new(seed);
    let spec = |elements| TensorSpec {
        kind: Kind::F32,
        elements,
        order: Order::Flat,
    };
    let shape = MatMul {
        groups: 1,
        rows: ROWS,
        inner: COLS,
        columns: COLS,
    };
    let weights = (0..COLS * COLS).map(|_| (chance.float() * 100.0) as i8);
    let constants = [
        Data::I8(weights.collect()),
        Data::F32(chance.floats(COLS)),
        Data::F32(chance.floats(COLS)),
    ];
    let node = |name: String, op| Node {
        name,
        op,
        order: Order::Flat,
    };
    let input = TensorId(0);
    let mut nodes = vec![
        node("scales".into(), Op::Maxima { input, count: ROWS }),
        node(
            "product".into(),
            Op::Linear(Box::new(Linear {
                spec: LayerSpec {
                    shape: Shape::matmul(shape).expect("a shape"),
                    images: 1,
                    planes: 1,
                    shift: 0,
                },
                input,
                maxima: TensorId(1),
                weights: ConstantId(0),
                bound: Bound::SHORT,
                factor: ConstantId(1),
                bias: Some(ConstantId(2)),
                pre: Activation::None,
                residual: None,
                post: Activation::None,
                pool: None,
            })),
        ),
    ];
    for floor in 0..floors {
        let below = Source::Tensor(TensorId(u32::try_from(nodes.len()).expect("few")));
        let op = match floor % 2 {
            0 => Op::LayerNorm {
                input: below,
                cols: COLS,
                epsilon: 1e-5,
                gamma: None,
                beta: None,
            },
            _ => Op::Softmax {
                input: below,
                cols: COLS,
            },
        };
        nodes.push(node(format!("floor {floor}"), op));
    }
    let specs = constants
        .iter()
        .map(Data::spec)
        .collect::<Vec<ConstantSpec>>();
    assert_eq!(specs.first().map(|spec| spec.element), Some(Element::I8));
    let last = u32::try_from(nodes.len()).expect("few");
    let graph = Graph::new(
        vec![Input {
            name: "x".into(),
            shape: vec![ROWS, COLS],
            spec: spec(ROWS * COLS),
        }],
        specs,
        nodes,
        vec![Output {
            name: "y".into(),
            shape: vec![ROWS, COLS],
            tensor: TensorId(last),
        }],
    );
    Model::new(graph.expect("a graph"), &constants).expect("its constants")
}

/// A random input of a tower, as it is committed to.
///
/// # Panics
/// Where the graph is no tower.
pub fn input(model: &Model, seed: u64) -> Vec<u8> {
    let values = Values::from(Chance::new(seed).floats(ROWS * COLS));
    model.graph().pack_inputs(&[values]).expect("fits")
}

/// Terms over a tower.
///
/// # Panics
/// Where the part is none.
pub fn terms(model: &Model, part: f64) -> Arc<Terms> {
    let fraction = Fraction::new(part).expect("a part");
    Arc::new(Terms::new(model.clone(), fraction).expect("small units"))
}

/// What the trusted side signs with.
pub fn trusted() -> Arc<Signer> {
    Arc::new(Signer::new(TRUSTED))
}

/// A worker's store over an engine.
pub fn store(engine: Box<dyn Backend>) -> Arc<Store> {
    Store::signing(engine, Limits::default(), Signer::new(WORKER))
}

/// A worker's service over a store.
pub fn service(store: &Arc<Store>) -> Service {
    Service::new(Arc::clone(store), Duration::ZERO)
}

const NOW: Now = Duration::from_secs(5);

/// The trusted end, after it has agreed with a worker on the graph, or why not.
///
/// # Errors
/// What ended the conversation.
pub fn agreed(terms: &Arc<Terms>, peer: &mut dyn Machine) -> Result<Remote, InferError> {
    let settings = RemoteSettings {
        answer_within: Duration::from_secs(60),
        worker: None,
    };
    let mut remote = Remote::new(Arc::clone(terms), trusted(), settings);
    talk(&mut remote, peer)?;
    assert!(remote.is_ready(), "neither ready nor over");
    Ok(remote)
}

/// Lets both talk until neither has more to say; then the time is over for who owes something.
fn talk(remote: &mut Remote, peer: &mut dyn Machine) -> Result<(), InferError> {
    converse(remote, peer, NOW);
    if let Some(at) = remote.deadline() {
        remote.tick(at);
    }
    remote.failure().map_or(Ok(()), |why| Err(why.clone()))
}

/// One run.
///
/// # Errors
/// What ended the conversation.
///
/// # Panics
/// Where nothing came of it.
pub fn run(
    remote: &mut Remote,
    peer: &mut dyn Machine,
    counter: u64,
    input: Vec<u8>,
) -> Result<Provisional, InferError> {
    let salt = Chance::new(counter).bytes();
    let call = remote.run(counter, salt, input, NOW).expect("ready");
    talk(remote, peer)?;
    match remote.poll() {
        Some(Done::Ran {
            call: done, record, ..
        }) if done == call => Ok(*record),
        other => panic!("{other:?}"),
    }
}

/// The audit of one record with a draw from `seed`.
///
/// # Panics
/// Where the record is not one of these terms', or is drawn already.
pub fn audit(
    terms: &Arc<Terms>,
    remote: &mut Remote,
    peer: &mut dyn Machine,
    mut record: Provisional,
    seed: [u8; 32],
) -> Outcome {
    record.draw(seed).expect("not drawn");
    let mut audit = Audit::new(record, Arc::clone(terms), trusted()).expect("of these terms");
    loop {
        let (trace, asked, known) = audit.ask();
        let call = remote.open(trace, asked, known, NOW).expect("ready");
        let over = match (talk(remote, peer), remote.poll()) {
            (_, Some(Done::Opened { call: done, bytes })) if done == call => {
                match audit.answered(&bytes) {
                    Ok(Step::Ask(next)) => {
                        audit = *next;
                        continue;
                    }
                    Ok(Step::Over(outcome)) => Ok(*outcome),
                    Err(why) => Err(why),
                }
            }
            (_, Some(Done::Refused { call: done, why })) if done == call => audit.failed(why),
            (Err(InferError::Failed(why)), _) => audit.failed(why),
            (Err(InferError::Worker(what)), _) => audit.misbehaved(what),
            other => panic!("{other:?}"),
        };
        return over.expect("an audit that can be done");
    }
}
