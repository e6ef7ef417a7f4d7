//! Whole networks as one program: equal to the integer network bit for bit, on every instruction set; every lie in a trace is
//! seen by a unit, and no unit sees one in an honest trace.

use std::collections::BTreeMap;

use larvatus::exact::run_exact;
use larvatus::model::Model;
use larvatus::policy::{Hiding, Policy};
use larvatus::tensor::floats;
use larvatus::whole::{Whole, WholeError};
use larvatus_graph::replay::Leaves;
use larvatus_graph::run::Changing;
use larvatus_graph::trace::Recorded;
use larvatus_graph::{
    Grain, Graph, Mismatch, ModelError, Op, Order, Prepared, Recorder, RunError, TensorId, UnitId,
};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::Shape;
use larvatus_proto::commit::LeafId;
use larvatus_proto::digest::Digest;
use larvatus_proto::program::LayerId;
use larvatus_testkit::chance::Chance;
use larvatus_testkit::models::{self, Network};
use larvatus_testkit::onnx::{Attribute, Graph as Onnx};

/// Units of a row or so.
const FINE: Grain = Grain {
    multiplications: 60,
    elements: 10,
};

/// The tiny networks whose operators all have a fixed meaning, and some with those that they lack.
fn networks() -> Vec<Network> {
    let mut all = models::all();
    all.retain(|network| network.name != "square root");
    all.extend([pooled(), tokens(), elementwise()]);
    all
}

fn whole(network: &Network) -> Whole {
    Whole::of_plan(&network.plan(Hiding::Field))
        .unwrap_or_else(|why| panic!("{}: {why}", network.name))
}

/// The same program with small units, and images committed to line by line however small they are.
fn fine(model: &larvatus_graph::Model) -> larvatus_graph::Model {
    let graph = model.graph();
    let (mut inputs, mut nodes) = (graph.inputs().to_vec(), graph.nodes().to_vec());
    for input in &mut inputs {
        if let [images, channels, lines, width] = input.shape[..] {
            input.spec.order = Order::lines(images, channels, lines, width);
        }
    }
    for node in &mut nodes {
        node.order = match &node.op {
            Op::Linear(linear) => match &linear.spec.shape {
                Shape::Conv(conv) => {
                    let plane = linear
                        .pool
                        .as_ref()
                        .map_or_else(|| conv.output(), |pool| pool.output);
                    let [lines, width] = match plane {
                        // Lines that a product over planes does not know of.
                        [1, pixels] if pixels % 3 == 0 => [3, pixels / 3],
                        [1, pixels] if pixels % 2 == 0 => [2, pixels / 2],
                        plane => plane,
                    };
                    Order::lines(linear.spec.images, conv.out_channels, lines, width)
                }
                Shape::MatMul(_) => Order::Flat,
            },
            Op::MaxPool { windows, .. }
            | Op::SumPool { windows, .. }
            | Op::Depthwise { windows, .. } => {
                Order::lines(1, windows.planes, windows.output[0], windows.output[1])
            }
            _ => node.order,
        };
    }
    let (constants, outputs) = (graph.constants().to_vec(), graph.outputs().to_vec());
    let graph = Graph::new(inputs, constants, nodes, outputs).expect("the same sizes");
    let mut blob = graph.with_grain(FINE).expect("few units").encode();
    let graph_bytes = blob.len();
    blob.extend(model.weights());
    let digest = Digest::of_graph(&blob);
    larvatus_graph::Model::from_blob(blob, graph_bytes, digest).expect("its own constants")
}

/// Maxima folded into a convolution with a residual, pooling of both kinds, a depthwise convolution, a strided view.
fn pooled() -> Network {
    let mut chance = Chance::new(51);
    let mut floats = |count| chance.floats(count);
    let window = |kernel: i64, stride: i64, pad: i64| {
        [
            Attribute::ints("kernel_shape", &[kernel; 2]),
            Attribute::ints("strides", &[stride; 2]),
            Attribute::ints("pads", &[pad; 4]),
        ]
    };
    let conv = |stride: i64, pad: i64, groups: i64| {
        [
            Attribute::ints("strides", &[stride; 2]),
            Attribute::ints("pads", &[pad; 4]),
            Attribute::int("group", groups),
        ]
    };
    let graph = Onnx::new()
        .input("x", &[2, 3, 13, 11])
        .floats("w0", &[6, 3, 3, 3], &floats(162))
        .floats("w1", &[6, 6, 1, 1], &floats(36))
        .floats("b1", &[6], &floats(6))
        .floats("w2", &[4, 6, 3, 3], &floats(216))
        .floats("w3", &[4, 4, 1, 1], &floats(16))
        .node("Conv", &["x", "w0"], "c0", &conv(1, 1, 1))
        .node("Relu", &["c0"], "r0", &[])
        .node("Conv", &["r0", "w1", "b1"], "c1", &conv(1, 0, 1))
        .node("Add", &["c1", "r0"], "a1", &[])
        .node("Relu", &["a1"], "r1", &[])
        .node("MaxPool", &["r1"], "p1", &window(3, 2, 1))
        .node("Conv", &["p1", "w2"], "c2", &conv(1, 1, 1))
        .node("AveragePool", &["c2"], "p2", &window(3, 1, 1))
        .node("MaxPool", &["p2"], "p3", &window(2, 2, 0))
        .node("Conv", &["p3", "w3"], "c3", &conv(1, 0, 1))
        .node("Mul", &["c3", "p3"], "m3", &[])
        .node("GlobalAveragePool", &["m3"], "y", &[])
        .output("y", &[2, 4, 1, 1]);
    Network {
        name: "pooled",
        bytes: graph.model(),
        input: vec![2, 3, 13, 11],
    }
}

/// Layer normalisation, a transposed product, GELU, a class token in front and taken out again.
fn tokens() -> Network {
    let mut chance = Chance::new(52);
    let mut floats = |count| chance.floats(count);
    let graph = Onnx::new()
        .input("x", &[1, 7, 6])
        .floats("gamma", &[6], &floats(6))
        .floats("beta", &[6], &floats(6))
        .floats("class", &[1, 1, 6], &floats(6))
        .floats("places", &[1, 8, 6], &floats(48))
        .floats("w0", &[6, 9], &floats(54))
        .floats("b0", &[9], &floats(9))
        .floats("w1", &[9, 6], &floats(54))
        .ints("first", &[], &[0])
        .node("Concat", &["class", "x"], "c", &[Attribute::int("axis", 1)])
        .node("Add", &["c", "places"], "p", &[])
        .node(
            "LayerNormalization",
            &["p", "gamma", "beta"],
            "n",
            &[Attribute::int("axis", -1)],
        )
        .node("MatMul", &["n", "w0"], "h", &[])
        .node("Add", &["h", "b0"], "hb", &[])
        .node("Relu", &["hb"], "g", &[])
        .node("MatMul", &["g", "w1"], "o", &[])
        .node("Add", &["o", "p"], "r", &[])
        .node("Softmax", &["r"], "s", &[Attribute::int("axis", -1)])
        .node("Gather", &["s", "first"], "y", &[Attribute::int("axis", 1)])
        .output("y", &[1, 6]);
    Network {
        name: "tokens",
        bytes: graph.model(),
        input: vec![1, 7, 6],
    }
}

/// A tensor that scales channels of another, and one that moves rows.
fn elementwise() -> Network {
    let mut chance = Chance::new(53);
    let mut floats = |count| chance.floats(count);
    let graph = Onnx::new()
        .input("x", &[1, 4, 6, 5])
        .floats("w0", &[4, 4, 3, 3], &floats(144))
        .floats("w1", &[4, 4, 1, 1], &floats(16))
        .node(
            "Conv",
            &["x", "w0"],
            "c",
            &[Attribute::ints("pads", &[1; 4])],
        )
        .node("GlobalAveragePool", &["c"], "g", &[])
        .node("Conv", &["g", "w1"], "s", &[])
        .node("Sigmoid", &["s"], "e", &[])
        .node("Mul", &["c", "e"], "m", &[])
        .node("Sub", &["m", "x"], "d", &[])
        .node(
            "Transpose",
            &["d"],
            "t",
            &[Attribute::ints("perm", &[0, 2, 3, 1])],
        )
        .output("t", &[1, 6, 5, 4]);
    Network {
        name: "elementwise",
        bytes: graph.model(),
        input: vec![1, 4, 6, 5],
    }
}

/// A run with its trace.
fn recorded(whole: &Whole, prepared: &Prepared, network: &Network, seed: u64) -> Recorded {
    let values = whole.values(&network.random(seed)).expect("its own inputs");
    let mut recorder = Recorder::new(prepared.graph());
    prepared.run(values, &mut recorder).expect("runs");
    recorder.finish().expect("a trace of this graph")
}

/// All leaves of a trace, through an opening.
fn all_leaves(recorded: &Recorded, graph: &Graph) -> BTreeMap<LeafId, Vec<u8>> {
    let layout = graph.layout();
    let leaves: Vec<LeafId> = (0..layout.leaves())
        .filter_map(|number| layout.leaf(number))
        .collect();
    let opening = recorded.open(&leaves, &[]).expect("leaves in order");
    let opened = opening
        .verify(recorded.root(), layout, &leaves, &[])
        .expect("its own root");
    let pairs = opened.leaves();
    pairs.map(|(leaf, bytes)| (leaf, bytes.to_vec())).collect()
}

fn first_lie(model: &larvatus_graph::Model, leaves: &impl Leaves) -> Option<(UnitId, Mismatch)> {
    let mut units = model.graph().units();
    units.find_map(|unit| model.replay(unit, leaves).err().map(|why| (unit, why)))
}

#[test]
fn a_whole_network_equals_the_integer_network_bit_for_bit() {
    for network in networks() {
        let plan = network.plan(Hiding::Field);
        let whole = whole(&network);
        let prepared = Prepared::new(whole.model()).expect("weights fit");
        for seed in 0..4 {
            let inputs = network.random(seed);
            let expected = run_exact(&plan, inputs.clone()).expect("runs");
            let values = whole.values(&inputs).expect("its own inputs");
            let outputs = prepared.run(values, &mut ()).expect("runs");
            let got = whole.tensors(&outputs).expect("its own outputs");
            assert_eq!(expected.len(), got.len());
            for (expected, got) in expected.iter().zip(&got) {
                assert_eq!(expected.shape(), got.shape(), "{}", network.name);
                let bits = |x| floats(x).expect("floats").iter().map(|x| x.to_bits());
                assert!(bits(expected).eq(bits(got)), "{} {seed}", network.name);
            }
            let graph = prepared.graph();
            let packed = graph.pack_outputs(&outputs).expect("its own outputs");
            let back = graph.unpack_outputs(&packed).expect("as many bytes");
            assert_eq!(graph.pack_outputs(&back), Some(packed));
        }
    }
}

#[test]
fn the_same_weights_in_two_planes_are_a_whole_network_too() {
    let policy = Policy::from_toml("weights = \"wide\"").expect("a policy");
    for network in networks() {
        let plan = network.plan_for(&policy);
        let whole = Whole::of_plan(&plan).expect("lowers");
        let fine = fine(whole.model());
        let prepared = Prepared::new(&fine).expect("weights fit");
        let expected = run_exact(&plan, network.random(3)).expect("runs");
        let values = whole.values(&network.random(3)).expect("its own inputs");
        let outputs = prepared.run(values, &mut ()).expect("runs");
        let got = whole.tensors(&outputs).expect("its own outputs");
        let bits = |x| floats(x).map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>());
        assert_eq!(bits(&expected[0]), bits(&got[0]), "{}", network.name);
        let recorded = recorded(&whole, &prepared, &network, 3);
        let leaves = all_leaves(&recorded, fine.graph());
        assert_eq!(first_lie(&fine, &leaves), None, "{}", network.name);
    }
}

#[test]
fn a_depthwise_convolution_that_stays_has_a_meaning_in_floats() {
    let network = models::small_cnn(1);
    let name = network
        .plan(Hiding::Field)
        .layer_name(LayerId(1))
        .to_owned();
    let policy = Policy::from_toml(&format!("keep = [{name:?}]")).expect("a policy");
    let plan = network.plan_for(&policy);
    let whole = Whole::of_plan(&plan).expect("lowers");
    let model = fine(whole.model());
    let nodes = model.graph().nodes();
    assert!(
        nodes
            .iter()
            .any(|node| matches!(node.op, Op::Depthwise { .. }))
    );
    let prepared = Prepared::new(&model).expect("weights fit");
    let expected = run_exact(&plan, network.random(3)).expect("runs");
    let values = whole.values(&network.random(3)).expect("its own inputs");
    let outputs = prepared.run(values, &mut ()).expect("runs");
    let got = whole.tensors(&outputs).expect("its own outputs");
    assert_eq!(floats(&expected[0]), floats(&got[0]));
    let recorded = recorded(&whole, &prepared, &network, 3);
    let leaves = all_leaves(&recorded, model.graph());
    assert_eq!(first_lie(&model, &leaves), None);
}

#[test]
fn operators_without_a_fixed_meaning_are_refused_by_name() {
    let plan = models::square_root().plan(Hiding::Field);
    let why = Whole::of_plan(&plan).expect_err("a square root of the engine's");
    let WholeError::Operator { operator, .. } = &why else {
        panic!("{why}");
    };
    assert_eq!(operator, "Sqrt");
    // A layer that stays becomes the engine's, which has no fixed meaning either.
    let network = models::small_cnn(1);
    let name = network
        .plan(Hiding::Field)
        .layer_name(LayerId(0))
        .to_owned();
    let policy = Policy::from_toml(&format!("keep = [{name:?}]")).expect("a policy");
    let model = Model::load(&network.bytes, &[]).expect("a model");
    let why = Whole::new(&model, &policy).expect_err("a convolution of the engine's");
    assert!(
        matches!(&why, WholeError::Operator { operator, .. } if operator == "Conv"),
        "{why}"
    );
}

#[test]
fn every_instruction_set_commits_to_the_same_trace() {
    for network in networks() {
        let whole = whole(&network);
        let root = |isa| {
            let prepared = Prepared::with_isa(isa, whole.model()).expect("weights fit");
            recorded(&whole, &prepared, &network, 5).root()
        };
        let expected = root(Isa::Scalar);
        for isa in Isa::available() {
            assert_eq!(root(isa), expected, "{} {}", network.name, isa.name());
        }
    }
}

#[test]
fn units_share_out_every_element_once_and_an_honest_run_has_no_lie() {
    for network in networks() {
        let whole = whole(&network);
        let large = Grain::default();
        let small = whole.model().with_grain(FINE).expect("few units");
        assert_ne!(small.digest(), whole.model().digest());
        assert_eq!(whole.model().graph().grain(), large);
        for model in [whole.model().clone(), small, fine(whole.model())] {
            let graph = model.graph();
            let mut met: BTreeMap<TensorId, Vec<u32>> = BTreeMap::new();
            for unit in graph.units() {
                let disclosed = graph.discloses(unit);
                let (tensor, runs) = disclosed.last().expect("what it makes");
                let spec = graph.tensors()[tensor.index()];
                let times = met.entry(*tensor).or_insert_with(|| vec![0; spec.elements]);
                runs.iter()
                    .cloned()
                    .flatten()
                    .for_each(|element| times[element] += 1);
            }
            assert_eq!(met.len(), graph.nodes().len());
            for (tensor, times) in met {
                let once = times.iter().all(|times| *times == 1);
                assert!(once, "{}: {tensor:?}", network.name);
            }
            let prepared = Prepared::new(&model).expect("weights fit");
            let recorded = recorded(&whole, &prepared, &network, 6);
            for unit in graph.units() {
                let needs = graph.needs(unit);
                let opening = recorded.open(&needs, &[]).expect("in order");
                let opened = opening
                    .verify(recorded.root(), graph.layout(), &needs, &[])
                    .expect("its own root");
                let verdict = model.replay(unit, &opened);
                let what = graph.describe(unit);
                assert_eq!(verdict, Ok(()), "{}: {what}", network.name);
                // No leaf of these is asked for in vain.
                let leaves: BTreeMap<LeafId, Vec<u8>> = opened
                    .leaves()
                    .map(|(leaf, bytes)| (leaf, bytes.to_vec()))
                    .collect();
                for leaf in &needs {
                    let mut fewer = leaves.clone();
                    fewer.remove(leaf);
                    let missing = Err(Mismatch::Missing { unit, leaf: *leaf });
                    assert_eq!(model.replay(unit, &fewer), missing, "{what}");
                }
            }
        }
    }
}

#[test]
fn a_changed_byte_of_any_tensor_is_seen_by_a_unit() {
    let mut chance = Chance::new(61);
    for network in networks() {
        let whole = whole(&network);
        let model = fine(whole.model());
        let graph = model.graph();
        let prepared = Prepared::new(&model).expect("weights fit");
        let recorded = recorded(&whole, &prepared, &network, 7);
        let honest = all_leaves(&recorded, graph);
        let leaves: Vec<LeafId> = honest.keys().copied().collect();
        let inputs = graph.inputs().len();
        for _ in 0..60 {
            let leaf = leaves[chance.below(leaves.len())];
            if (leaf.tensor as usize) < inputs {
                continue;
            }
            let mut lie = honest.clone();
            let bytes = lie.get_mut(&leaf).expect("a leaf");
            let at = chance.below(bytes.len());
            bytes[at] ^= 1 << chance.below(8);
            let seen = first_lie(&model, &lie);
            let seen = seen.unwrap_or_else(|| panic!("{}: byte {at} of {leaf}", network.name));
            assert!(seen.1.is_lie(), "{}: {}", network.name, seen.1);
        }
    }
}

#[test]
fn a_lie_that_is_continued_consistently_is_seen_where_it_was_told() {
    let mut chance = Chance::new(62);
    for network in networks() {
        let whole = whole(&network);
        let model = fine(whole.model());
        let graph = model.graph();
        let prepared = Prepared::new(&model).expect("weights fit");
        for node in 0..graph.nodes().len() {
            let wrong = graph.made_by(node);
            let spec = graph.tensors()[wrong.index()];
            let element = chance.below(spec.elements);
            let mut alter = |tensor: TensorId, changing: Changing<'_>| {
                if let Changing::F32(values) = changing
                    && tensor == wrong
                {
                    // One unit in the last place is enough.
                    values[element] = f32::from_bits(values[element].to_bits() ^ 1);
                }
            };
            let values = whole.values(&network.random(8)).expect("its own inputs");
            let mut recorder = Recorder::new(graph);
            prepared
                .run_altered(values, &mut alter, &mut recorder)
                .expect("runs on");
            let recorded = recorder.finish().expect("a trace of this graph");
            let leaves = all_leaves(&recorded, graph);
            let lies: Vec<_> = graph
                .units()
                .filter_map(|unit| model.replay(unit, &leaves).err())
                .collect();
            let name = &graph.nodes()[node].name;
            let own = lies.iter().any(|lie| {
                matches!(lie, Mismatch::Differs { tensor, element: at, .. }
                    if *tensor == wrong.0 && *at == element)
            });
            assert!(own, "{} {name}: {lies:?}", network.name);
            let elsewhere = lies
                .iter()
                .any(|lie| matches!(lie, Mismatch::Differs { tensor, .. } if *tensor != wrong.0));
            assert!(!elsewhere, "{} {name}: {lies:?}", network.name);
        }
    }
}

#[test]
fn a_maximum_that_is_too_small_is_seen_by_units_that_use_it() {
    let network = models::small_cnn(1);
    let whole = whole(&network);
    let model = fine(whole.model());
    let graph = model.graph();
    let prepared = Prepared::new(&model).expect("weights fit");
    let recorded = recorded(&whole, &prepared, &network, 9);
    // Of the input: the first maxima.
    let maxima = graph.place(graph.made_by(0));
    for (value, expected) in [(1e-3_f32, "above"), (-1.0, "none"), (f32::INFINITY, "none")] {
        let mut leaves = all_leaves(&recorded, graph);
        let leaf = LeafId {
            tensor: maxima,
            leaf: 0,
        };
        leaves.insert(leaf, value.to_le_bytes().to_vec());
        let users = graph.units().filter(|unit| graph.node_of(*unit) == Some(1));
        let verdicts: Vec<_> = users.map(|unit| model.replay(unit, &leaves)).collect();
        assert!(!verdicts.is_empty());
        for verdict in verdicts {
            let right = match verdict {
                Err(Mismatch::AboveMaximum { tensor: 0, .. }) => expected == "above",
                Err(Mismatch::NoMaximum { .. }) => expected == "none",
                _ => false,
            };
            assert!(right, "{value}: {verdict:?}");
        }
    }
}

#[test]
fn what_is_not_finite_has_no_trace() {
    let network = models::small_cnn(1);
    let whole = whole(&network);
    let prepared = Prepared::new(whole.model()).expect("weights fit");
    let huge = network.filled(f32::MAX);
    let values = whole.values(&huge).expect("finite");
    let why = prepared.run(values, &mut ()).expect_err("sums overflow");
    assert!(matches!(why, RunError::NotFinite { .. }), "{why}");
    let infinite = vec![f32::INFINITY; network.elements()];
    let why = prepared.run(vec![infinite.into()], &mut ());
    assert_eq!(why.err(), Some(RunError::InputNotFinite { input: 0 }));
    let why = prepared.run(vec![vec![0.0_f32; 3].into()], &mut ());
    assert_eq!(why.err(), Some(RunError::Input { input: 0 }));
}

#[test]
fn draws_are_uniform_and_as_many_as_they_say() {
    let network = models::residual();
    let model = fine(whole(&network).model());
    let graph = model.graph();
    let count = graph.unit_count();
    assert!(count > 50, "{count}");
    for (fraction, drawn) in [
        (0.0, 1),
        (1e-9, 1),
        (1.0, count),
        (7.0, count),
        (f64::NAN, 1),
    ] {
        let units = graph.draw([1; 32], fraction);
        assert_eq!(units.len(), drawn, "{fraction}");
        assert!(units.is_sorted_by(|a, b| a < b));
    }
    let mut chance = Chance::new(63);
    let (draws, fraction) = (4000, 0.1);
    let mut times = vec![0_u32; count];
    for _ in 0..draws {
        for unit in graph.draw(chance.bytes(), fraction) {
            times[unit.index()] += 1;
        }
    }
    let alpha = graph.alpha(fraction);
    assert!(alpha >= fraction && alpha < fraction + 1.0 / count as f64);
    let expected = f64::from(draws) * alpha;
    let deviation = (expected * (1.0 - alpha)).sqrt();
    for (unit, times) in times.iter().enumerate() {
        let off = (f64::from(*times) - expected).abs() / deviation;
        assert!(off < 5.0, "unit {unit}: {times} of {expected}");
    }
}

#[test]
fn encodings_come_back_under_their_digest_only() {
    for network in networks() {
        let whole = whole(&network);
        let model = whole.model();
        let bytes = &model.blob()[..model.graph_bytes()];
        assert_eq!(&Graph::decode(bytes).expect("its own"), &**model.graph());
        let load = |blob: Vec<u8>, digest| {
            larvatus_graph::Model::from_blob(blob, model.graph_bytes(), digest)
        };
        let again = load(model.blob().to_vec(), model.digest()).expect("its own");
        assert_eq!(again.digest(), model.digest());
        let mut other = model.blob().to_vec();
        *other.last_mut().expect("weights") ^= 1;
        let refused = load(other.clone(), model.digest());
        assert!(matches!(refused, Err(ModelError::Digest { .. })));
        other.pop();
        let digest = Digest::of_graph(&other);
        let refused = load(other, digest);
        assert!(matches!(refused, Err(ModelError::Length { .. })));
    }
}

#[test]
fn large_images_are_committed_to_line_by_line_and_small_ones_as_they_lie() {
    let mut chance = Chance::new(54);
    let pads = [Attribute::ints("pads", &[1; 4])];
    let graph = Onnx::new()
        .input("x", &[1, 3, 160, 150])
        .floats("w0", &[4, 3, 3, 3], &chance.floats(108))
        .floats("w1", &[2, 4, 1, 1], &chance.floats(8))
        .node("Conv", &["x", "w0"], "c", &pads)
        .node("Conv", &["c", "w1"], "y", &[])
        .output("y", &[1, 2, 160, 150]);
    let network = Network {
        name: "large",
        bytes: graph.model(),
        input: vec![1, 3, 160, 150],
    };
    let whole = whole(&network);
    let graph = whole.model().graph();
    let lines = |channels| Order::lines(1, channels, 160, 150);
    assert_eq!(graph.inputs()[0].spec.order, lines(3));
    // Maxima of x, c, maxima of c, y: 192 kB are opened whole.
    let orders: Vec<Order> = graph.nodes().iter().map(|node| node.order).collect();
    assert_eq!(orders, [Order::Flat, lines(4), Order::Flat, Order::Flat]);
    // A unit opens a part of the image.
    let prepared = Prepared::new(whole.model()).expect("weights fit");
    let recorded = recorded(&whole, &prepared, &network, 4);
    let leaves = all_leaves(&recorded, graph);
    assert_eq!(first_lie(whole.model(), &leaves), None);
    let small = whole.model().with_grain(Grain {
        multiplications: 1 << 18,
        elements: 1 << 14,
    });
    let small = small.expect("few units");
    let convolution = small
        .graph()
        .units()
        .filter(|unit| small.graph().node_of(*unit) == Some(1));
    for unit in convolution {
        assert!(
            small.graph().needs(unit).len() <= 5,
            "{}",
            small.graph().describe(unit)
        );
        assert_eq!(small.replay(unit, &leaves), Ok(()));
    }
}
