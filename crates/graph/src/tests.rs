//! A graph by hand with the operators that few networks have.

use std::collections::BTreeMap;

use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::linear::{MatMul, Shape};
use larvatus_kernels::local::attention::{Attention, Products, Strides};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use larvatus_proto::commit::LeafId;
use larvatus_proto::program::LayerSpec;

use crate::op::{Axis, Spread, Step};
use crate::trace::Recorded;
use crate::*;

fn constant(id: u32) -> Source {
    Source::Constant(ConstantId(id))
}

fn tensor(id: u32) -> Source {
    Source::Tensor(TensorId(id))
}

fn strides(matrix: usize, row: usize, column: usize) -> Strides {
    Strides {
        matrix,
        row,
        column,
    }
}

/// Numbers in [−1, 1), the same in every run.
fn floats(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(next).collect()
}

fn windows(stride: usize) -> Windows {
    Windows {
        planes: 6,
        input: [4, 4],
        output: [4_usize.div_ceil(stride); 2],
        kernel: [3, 3],
        stride: [stride; 2],
        before: [1, 1],
    }
}

/// Tensors: 0 numbers of rows, 1 planes, then one for each node.
fn parts() -> (Vec<Input>, Vec<Data>, Vec<Node>, Vec<Output>) {
    let input = |name: &str, shape: &[usize], kind, order| Input {
        name: name.to_owned(),
        shape: shape.to_vec(),
        spec: TensorSpec {
            kind,
            elements: shape.iter().product(),
            order,
        },
    };
    let inputs = vec![
        input("rows", &[5], Kind::I64, Order::Flat),
        input("x", &[2, 3, 4, 4], Kind::F32, Order::lines(2, 3, 4, 4)),
    ];
    let heads = strides(3, 6, 1);
    let attention = Attention {
        heads: 2,
        queries: 8,
        keys: 8,
        depth: 3,
        width: 3,
        q: heads,
        k: heads,
        v: heads,
        out: heads,
        scale: Some(0.5),
        mask: Some(strides(0, 8, 1)),
    };
    let products = Products {
        matrices: 1,
        rows: 8,
        inner: 6,
        cols: 8,
        a: strides(0, 6, 1),
        b: strides(0, 1, 6),
        out: strides(0, 8, 1),
    };
    let shape = Shape::matmul(MatMul {
        groups: 2,
        rows: 3,
        inner: 12,
        columns: 5,
    });
    let linear = Linear {
        spec: LayerSpec {
            shape: shape.expect("a small product"),
            images: 1,
            planes: 1,
            shift: 0,
        },
        input: TensorId(15),
        maxima: TensorId(17),
        weights: ConstantId(6),
        bound: Bound::SHORT,
        factor: ConstantId(7),
        bias: Some(ConstantId(8)),
        pre: Activation::Gelu,
        residual: Some(constant(9)),
        post: Activation::Clip {
            low: -1.0,
            high: f32::INFINITY,
        },
        pool: None,
    };
    let ops = vec![
        // 2, 3: numbers of rows, moved and joined.
        Op::View {
            input: tensor(0),
            start: 4,
            axes: vec![Axis { len: 3, stride: 0 }],
        },
        Op::Concat {
            outer: 1,
            parts: vec![(tensor(0), 5), (tensor(2), 3)],
        },
        // 4, 5, 6: rows of a table, each times its own number.
        Op::Gather {
            table: ConstantId(0),
            cols: 6,
            indices: tensor(3),
        },
        Op::Cast { input: tensor(3) },
        Op::Chain {
            input: tensor(4),
            steps: vec![
                Step::Binary(
                    Binary::Mul,
                    Spread {
                        source: tensor(5),
                        run: 6,
                    },
                ),
                Step::Activation(Activation::HardSwish),
                Step::Binary(
                    Binary::SubFrom,
                    Spread {
                        source: constant(1),
                        run: 1,
                    },
                ),
            ],
        },
        // 7, 8, 9, 10
        Op::Attention {
            shape: attention,
            batches: 1,
            advance: [0; 5],
            inputs: [tensor(6); 3],
            mask: Some(constant(2)),
        },
        Op::Products {
            shape: products,
            batches: 1,
            advance: [0; 3],
            inputs: [tensor(7), tensor(7)],
        },
        Op::Softmax {
            input: tensor(8),
            cols: 8,
        },
        Op::SumRows {
            input: tensor(9),
            cols: 4,
            factor: 0.25,
        },
        // 11, 12, 13: pooling, 14 beside each other, 15 normalised.
        Op::SumPool {
            input: tensor(1),
            windows: windows(2),
            divisor: Divisor::Present,
        },
        Op::SumPool {
            input: tensor(1),
            windows: windows(2),
            divisor: Divisor::Window,
        },
        Op::MaxPool {
            input: tensor(1),
            windows: windows(2),
        },
        Op::Concat {
            outer: 6,
            parts: vec![(tensor(11), 4), (tensor(12), 4), (tensor(13), 4)],
        },
        Op::LayerNorm {
            input: tensor(14),
            cols: 12,
            epsilon: 1e-5,
            gamma: Some(ConstantId(3)),
            beta: None,
        },
        // 16, 17, 18
        Op::Depthwise {
            input: tensor(1),
            windows: windows(1),
            filters: ConstantId(4),
            bias: Some(ConstantId(5)),
        },
        Op::Maxima {
            input: TensorId(15),
            count: 6,
        },
        Op::Linear(Box::new(linear)),
    ];
    let order = |index: usize| match index {
        9 | 10 => Order::lines(1, 6, 2, 2),
        14 => Order::lines(2, 3, 4, 4),
        _ => Order::Flat,
    };
    let nodes = ops.into_iter().enumerate().map(|(index, op)| Node {
        name: format!("node {index}"),
        op,
        order: order(index),
    });
    let output = |name: &str, shape: &[usize], id| Output {
        name: name.to_owned(),
        shape: shape.to_vec(),
        tensor: TensorId(id),
    };
    let outputs = vec![
        output("sums", &[16], 10),
        output("planes", &[2, 3, 4, 4], 16),
        output("y", &[2, 3, 5], 18),
    ];
    let weights = floats(7, 120).iter().map(|w| (w * 127.0) as i8).collect();
    let constants = vec![
        Data::F32(floats(1, 42)),
        Data::F32(floats(2, 6)),
        Data::F32(floats(3, 64)),
        Data::F32(floats(4, 12)),
        Data::F32(floats(5, 27)),
        Data::F32(floats(6, 3)),
        Data::I8(weights),
        Data::F32(floats(8, 10)),
        Data::F32(floats(9, 10)),
        Data::F32(floats(10, 30)),
    ];
    (inputs, constants, nodes.collect(), outputs)
}

fn model() -> Model {
    let (inputs, constants, nodes, outputs) = parts();
    let specs = constants.iter().map(Data::spec).collect();
    let graph = Graph::new(inputs, specs, nodes, outputs).expect("well formed");
    Model::new(graph, &constants).expect("its own constants")
}

fn inputs(rows: [i64; 5]) -> Vec<Values> {
    vec![rows.to_vec().into(), floats(11, 96).into()]
}

fn record(model: &Model) -> Recorded {
    let prepared = Prepared::new(model).expect("weights fit");
    let mut recorder = Recorder::new(model.graph());
    let outputs = prepared.run(inputs([0, -1, 6, -7, 3]), &mut recorder);
    assert_eq!(outputs.expect("runs").len(), 3);
    recorder.finish().expect("a trace of this graph")
}

/// Every leaf, through an opening.
fn leaves(model: &Model, recorded: &Recorded) -> BTreeMap<LeafId, Vec<u8>> {
    let layout = model.graph().layout();
    let all: Vec<LeafId> = (0..layout.leaves())
        .filter_map(|n| layout.leaf(n))
        .collect();
    let opening = recorded.open(&all, &[]).expect("in order");
    let opened = opening
        .verify(recorded.root(), layout, &all, &[])
        .expect("its own");
    let pairs = opened.leaves();
    pairs.map(|(leaf, bytes)| (leaf, bytes.to_vec())).collect()
}

#[test]
fn every_byte_of_every_tensor_is_seen_by_the_unit_that_makes_it() {
    let small = Grain {
        multiplications: 40,
        elements: 7,
    };
    for model in [model(), model().with_grain(small).expect("few units")] {
        let graph = model.graph();
        let recorded = record(&model);
        let honest = leaves(&model, &recorded);
        for unit in graph.units() {
            assert_eq!(
                model.replay(unit, &honest),
                Ok(()),
                "{}",
                graph.describe(unit)
            );
        }
        for unit in graph.units() {
            let disclosed = graph.discloses(unit);
            let (own, runs) = disclosed.last().expect("what it makes");
            let spec = graph.tensors()[own.index()];
            let each = spec.kind.bytes();
            let leaf = LeafId {
                tensor: graph.place(*own),
                leaf: 0,
            };
            for run in runs {
                for (_, place, len) in spec.pieces(run.clone()) {
                    for byte in place * each..(place + len) * each {
                        let mut lie = honest.clone();
                        lie.get_mut(&leaf).expect("one leaf")[byte] ^= 0x10;
                        let seen = model.replay(unit, &lie).expect_err("a lie");
                        assert!(seen.is_lie(), "{seen}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_run_done_again_opens_what_was_hashed_alone() {
    let model = model();
    let prepared = Prepared::new(&model).expect("weights fit");
    let run = |trace: &mut dyn Trace| {
        let outputs = prepared.run(inputs([0, -1, 6, -7, 3]), trace);
        outputs.expect("runs");
    };
    let recorded = record(&model);
    let mut digester = Digester::new(model.graph());
    run(&mut digester);
    let commitment = digester.finish().expect("a trace of this graph");
    assert_eq!(commitment.root(), recorded.root());
    let unit = model.graph().units().last().expect("a unit");
    let needs = model.graph().needs(unit);
    let mut collector = Collector::new(&needs);
    run(&mut collector);
    let honest = leaves(&model, &recorded);
    for leaf in &needs {
        assert_eq!(collector.leaf(*leaf), honest[leaf]);
    }
    assert_eq!(Digester::new(model.graph()).finish().err(), {
        let missing = model.graph().trace_bytes();
        Some(larvatus_proto::commit::CommitError::Short { missing })
    });
}

#[test]
fn rows_that_a_table_does_not_have_end_a_run() {
    let model = model();
    let prepared = Prepared::new(&model).expect("weights fit");
    for row in [7, -8, i64::MAX, i64::MIN] {
        let why = prepared.run(inputs([0, 1, row, 2, 3]), &mut ());
        let expected = RunError::Row {
            node: 2,
            name: "node 2".to_owned(),
            index: row,
        };
        assert_eq!(why.err(), Some(expected));
    }
}

#[test]
fn encodings_with_any_byte_changed_are_refused_or_canonical() {
    let model = model();
    let bytes = &model.blob()[..model.graph_bytes()];
    assert_eq!(&Graph::decode(bytes).expect("its own"), &**model.graph());
    for end in 0..bytes.len() {
        assert!(Graph::decode(&bytes[..end]).is_err(), "{end}");
    }
    let mut decoded = 0;
    for at in 0..bytes.len() {
        for change in [1, 2, 0x80, 0xff] {
            let mut other = bytes.to_vec();
            other[at] ^= change;
            if let Ok(graph) = Graph::decode(&other) {
                assert_eq!(graph.encode(), other, "byte {at}");
                decoded += 1;
            }
        }
    }
    // Names and numbers without a constraint.
    assert!(decoded > 100, "{decoded}");
}

#[test]
fn graphs_that_contradict_themselves_are_refused() {
    type Change = fn(&mut Vec<Input>, &mut Vec<Data>, &mut Vec<Node>, &mut Vec<Output>);
    let changes: [(&str, Change); 10] = [
        ("no outputs", |_, _, _, outputs| outputs.clear()),
        ("an output twice", |_, _, _, outputs| {
            outputs[1] = outputs[0].clone()
        }),
        ("an input as an output", |_, _, _, outputs| {
            outputs[1].tensor = TensorId(1);
        }),
        ("a shape of another size", |_, _, _, outputs| {
            outputs[0].shape = vec![17]
        }),
        ("a constant that nobody reads", |_, constants, _, _| {
            constants.push(Data::F32(vec![1.0]));
        }),
        ("a node that reads a later one", |_, _, nodes, _| {
            nodes.swap(7, 8)
        }),
        ("lines of another size", |inputs, _, _, _| {
            inputs[1].spec.order = Order::lines(2, 3, 4, 5);
        }),
        ("a view beyond the end", |_, _, nodes, _| {
            if let Op::View { start, .. } = &mut nodes[0].op {
                *start = 5;
            }
        }),
        ("an output that is not written once", |_, _, nodes, _| {
            if let Op::Attention { shape, .. } = &mut nodes[5].op {
                shape.out.matrix = 2;
            }
        }),
        ("windows beyond the input", |_, _, nodes, _| {
            if let Op::Depthwise { windows, .. } = &mut nodes[14].op {
                windows.output = [4, 6];
            }
        }),
    ];
    for (what, change) in changes {
        let (mut inputs, mut constants, mut nodes, mut outputs) = parts();
        change(&mut inputs, &mut constants, &mut nodes, &mut outputs);
        let specs = constants.iter().map(Data::spec).collect();
        assert!(Graph::new(inputs, specs, nodes, outputs).is_err(), "{what}");
    }
    let (inputs, mut constants, nodes, outputs) = parts();
    let specs = constants.iter().map(Data::spec).collect();
    let graph = Graph::new(inputs, specs, nodes, outputs).expect("well formed");
    constants[1] = Data::F32(vec![f32::NAN; 6]);
    let refused = Model::new(graph, &constants);
    assert!(matches!(
        refused,
        Err(ModelError::NotANumber { constant: 1 })
    ));
}
