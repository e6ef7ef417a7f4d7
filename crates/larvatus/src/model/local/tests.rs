use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::Downsample;
use tract_onnx::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_core::ops::cast::{Cast, cast};
use tract_onnx::tract_core::ops::change_axes::AxisOp;
use tract_onnx::tract_core::ops::cnn::{
    Conv, KernelFormat, MaxPool, PaddingSpec, PoolSpec, SumPool,
};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_core::ops::nn::{
    DataFormat, GeluApproximate, Reduce, Reducer, RmsNorm, Softmax, SoftmaxKind, sigmoid,
};

use super::{floats, name_functions, replace};

/// A graph in the making.
struct Graph(TypedModel);

impl Graph {
    fn new() -> Self {
        Self(TypedModel::default())
    }

    fn source(&mut self, shape: &[usize]) -> OutletId {
        let name = format!("source{}", self.0.nodes.len());
        self.0.add_source(name, f32::fact(shape)).expect("a source")
    }

    fn constant(&mut self, shape: &[usize], values: &[f32]) -> OutletId {
        let name = format!("constant{}", self.0.nodes.len());
        let tensor = Tensor::from_shape(shape, values).expect("a tensor");
        self.0.add_const(name, tensor).expect("a constant")
    }

    fn op(&mut self, op: impl Into<Box<dyn TypedOp>>, inputs: &[OutletId]) -> OutletId {
        let name = format!("node{}", self.0.nodes.len());
        self.0.wire_node(name, op, inputs).expect("a node")[0]
    }

    fn einsum(&mut self, axes: &str, inputs: &[OutletId]) -> OutletId {
        let axes = axes.parse().expect("axes");
        self.op(EinSum::new(axes, DatumType::F32), inputs)
    }

    fn softmax(&mut self, axis: usize, x: OutletId) -> OutletId {
        self.op(
            Softmax {
                axes: tvec!(axis),
                quant_output_dt: None,
                kind: SoftmaxKind::Softmax,
            },
            &[x],
        )
    }

    /// Names of the operators after replacing, where they are ours, and whether results agree with the engine's.
    fn replaced(mut self, outputs: &[OutletId]) -> Vec<String> {
        self.0.select_output_outlets(outputs).expect("outputs");
        let mut ours = self.0.clone();
        replace(&mut ours).expect("rules");
        let names = ours.nodes.iter().map(|node| node.op().name().to_string());
        let mut names: Vec<String> = names
            .filter_map(|name| name.strip_prefix("Larvatus.").map(str::to_owned))
            .collect();
        names.sort();
        let inputs: TVec<TValue> = (0..self.0.inputs.len())
            .map(|ix| input(&self.0, ix).into_tvalue())
            .collect();
        let run = |model: TypedModel| {
            let plan = model
                .into_optimized()
                .and_then(|model| model.into_runnable());
            plan.and_then(|plan| plan.run(inputs.clone()))
                .expect("a run")
        };
        for (ours, theirs) in run(ours).into_iter().zip(run(self.0)) {
            assert_eq!(ours.shape(), theirs.shape());
            let pairs = floats(&ours)
                .expect("f32")
                .iter()
                .zip(floats(&theirs).expect("f32"));
            for (ours, theirs) in pairs {
                // Sums of at most fifty products of numbers below ten, in another order.
                assert!(
                    (ours - theirs).abs() <= 1e-5 * (1.0 + theirs.abs()),
                    "{ours} {theirs}"
                );
            }
        }
        names
    }
}

/// Numbers in (−2, 2), different for each input.
fn input(model: &TypedModel, ix: usize) -> Tensor {
    let shape = model
        .input_fact(ix)
        .expect("an input")
        .shape
        .as_concrete()
        .expect("fixed");
    let mut state = 7 + ix as u32;
    let values: Vec<f32> = (0..shape.iter().product())
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 22) as f32 - 2.0
        })
        .collect();
    Tensor::from_shape(shape, &values).expect("a tensor")
}

fn binary(op: impl BinMiniOp) -> TypedBinOp {
    TypedBinOp(Box::new(op), None)
}

fn ramp(len: usize, step: f32) -> Vec<f32> {
    (0..len).map(|i| 0.5 + step * i as f32).collect()
}

#[test]
fn layer_normalisation_in_pieces_is_one_operator() {
    for (gamma, beta) in [(false, false), (true, false), (true, true)] {
        let mut graph = Graph::new();
        let x = graph.source(&[1, 5, 48]);
        let sum = graph.op(Reduce::new(tvec!(2), Reducer::Sum), &[x]);
        let share = graph.constant(&[1, 1, 1], &[1.0 / 48.0]);
        let mean = graph.op(binary(math::Mul), &[sum, share]);
        let difference = graph.op(binary(math::Sub), &[x, mean]);
        let eps = Arc::new(tensor0(1e-5_f32));
        let mut y = graph.op(RmsNorm { axis: 2, eps }, &[difference]);
        if gamma {
            let gamma = graph.constant(&[1, 1, 48], &ramp(48, 0.1));
            y = graph.op(binary(math::Mul), &[y, gamma]);
        }
        if beta {
            let beta = graph.constant(&[1, 1, 48], &ramp(48, -0.2));
            y = graph.op(binary(math::Add), &[beta, y]);
        }
        assert_eq!(graph.replaced(&[y]), ["LayerNorm"]);
    }
}

/// Attention of two heads, by the axes of both products.
struct Case {
    qk: &'static str,
    pv: &'static str,
    /// Shapes of Q and K as their product takes them, and of V.
    shapes: [&'static [usize]; 3],
    mask: Option<&'static [usize]>,
    scores: usize,
}

const CASES: [Case; 6] = [
    Case {
        qk: "mbk,nbk->bmn",
        pv: "bmn,nbc->mbc",
        shapes: [&[5, 2, 8], &[7, 2, 8], &[7, 2, 6]],
        mask: None,
        scores: 3,
    },
    Case {
        qk: "mbk,nbk->abmn",
        pv: "abmn,nbc->mbc",
        shapes: [&[5, 2, 8], &[7, 2, 8], &[7, 2, 6]],
        mask: Some(&[1, 1, 1, 7]),
        scores: 4,
    },
    Case {
        qk: "bmk,bkn->bmn",
        pv: "bmn,bnc->bmc",
        shapes: [&[2, 5, 8], &[2, 8, 7], &[2, 7, 6]],
        mask: Some(&[1, 5, 7]),
        scores: 3,
    },
    Case {
        qk: "nbk,mbk->bmn",
        pv: "nbc,bmn->mbc",
        shapes: [&[7, 2, 8], &[5, 2, 8], &[7, 2, 6]],
        mask: Some(&[2, 5, 7]),
        scores: 3,
    },
    Case {
        qk: "ambk,anbk->abmn",
        pv: "abmn,anbc->ambc",
        shapes: [&[3, 5, 2, 8], &[3, 7, 2, 8], &[3, 7, 2, 6]],
        mask: Some(&[3, 1, 1, 7]),
        scores: 4,
    },
    // Both heads read the same keys and values.
    Case {
        qk: "mbk,nk->bmn",
        pv: "bmn,nc->mbc",
        shapes: [&[5, 2, 8], &[7, 8], &[7, 6]],
        mask: None,
        scores: 3,
    },
];

/// The graph of a case, with its scores after the softmax and its result.
fn attention(case: &Case) -> (Graph, OutletId, OutletId) {
    let mut graph = Graph::new();
    let [q, k, v] = case.shapes.map(|shape| graph.source(shape));
    let mut scores = graph.einsum(case.qk, &[q, k]);
    let scale = graph.constant(&vec![1; case.scores], &[0.3]);
    scores = graph.op(binary(math::Mul), &[scores, scale]);
    if let Some(mask) = case.mask {
        let mask = graph.source(mask);
        scores = graph.op(binary(math::Add), &[scores, mask]);
    }
    let weights = graph.softmax(case.scores - 1, scores);
    let inputs = if case.pv.starts_with("nbc") {
        [v, weights]
    } else {
        [weights, v]
    };
    let y = graph.einsum(case.pv, &inputs);
    (graph, weights, y)
}

#[test]
fn attention_is_one_operator_whatever_the_order_of_axes() {
    for case in CASES {
        let (graph, _, y) = attention(&case);
        assert_eq!(graph.replaced(&[y]), ["Attention"], "{}", case.qk);
    }
}

#[test]
fn attention_whose_weights_somebody_else_reads_stays_in_pieces() {
    let (graph, weights, y) = attention(&CASES[0]);
    assert_eq!(
        graph.replaced(&[y, weights]),
        ["Products", "Products", "Softmax"]
    );
}

#[test]
fn a_product_is_read_and_written_where_its_operands_lie() {
    for (axes, a, b) in [
        ("mbk,nbk->bmn", [4, 3, 5], [6, 3, 5]),
        ("bmk,bkn->mbn", [3, 4, 5], [3, 5, 6]),
        // The rows of the result are neighbours.
        ("bmk,bkn->bnm", [3, 4, 5], [3, 5, 6]),
    ] {
        let mut graph = Graph::new();
        let inputs = [graph.source(&a), graph.source(&b)];
        let y = graph.einsum(axes, &inputs);
        assert_eq!(graph.replaced(&[y]), ["Products"], "{axes}");
    }
}

#[test]
fn products_with_axes_that_do_not_fit_stay_with_the_engine() {
    // Neither the rows nor the columns of the result are neighbours.
    let mut graph = Graph::new();
    let inputs = [graph.source(&[3, 4, 5]), graph.source(&[3, 5, 6])];
    let y = graph.einsum("bmk,bkn->mnb", &inputs);
    assert!(graph.replaced(&[y]).is_empty());
    // A constant operand: the engine packs it once.
    let mut graph = Graph::new();
    let x = graph.source(&[4, 5]);
    let w = graph.constant(&[5, 6], &ramp(30, 0.1));
    let y = graph.einsum("mk,kn->mn", &[x, w]);
    assert!(graph.replaced(&[y]).is_empty());
}

#[test]
fn softmax_is_ours_along_the_last_axis_only() {
    for (axis, expected) in [(2, vec!["Softmax"]), (1, vec![])] {
        let mut graph = Graph::new();
        let x = graph.source(&[2, 3, 40]);
        let y = graph.softmax(axis, x);
        assert_eq!(graph.replaced(&[y]), expected);
    }
}

fn spec(channels: usize, padding: PaddingSpec, dilation: usize) -> PoolSpec {
    PoolSpec {
        data_format: DataFormat::NCHW,
        kernel_shape: tvec!(3, 2),
        padding,
        dilations: Some(tvec!(dilation, 1)),
        strides: Some(tvec!(1, 2)),
        input_channels: channels,
        output_channels: channels,
    }
}

#[test]
fn pools_are_ours_without_dilation() {
    let explicit = || PaddingSpec::Explicit(tvec!(1, 0), tvec!(1, 1));
    let max = |spec| MaxPool::new(spec, None);
    let mut graph = Graph::new();
    let x = graph.source(&[2, 3, 9, 11]);
    let largest = graph.op(max(spec(3, explicit(), 1)), &[x]);
    let outputs = [
        largest,
        graph.op(SumPool::new(spec(3, explicit(), 1), false, true), &[x]),
        graph.op(
            SumPool::new(spec(3, PaddingSpec::SameUpper, 1), true, true),
            &[x],
        ),
        graph.op(
            SumPool::new(spec(3, PaddingSpec::Valid, 1), false, false),
            &[x],
        ),
    ];
    assert_eq!(
        graph.replaced(&outputs),
        ["MaxPool", "SumPool", "SumPool", "SumPool"]
    );
    let mut graph = Graph::new();
    let x = graph.source(&[2, 3, 9, 11]);
    let y = graph.op(max(spec(3, explicit(), 2)), &[x]);
    assert!(graph.replaced(&[y]).is_empty());
}

#[test]
fn depthwise_convolutions_with_constant_filters_are_ours() {
    for (group, expected) in [(6, vec!["Depthwise"]), (3, vec![])] {
        let mut graph = Graph::new();
        let x = graph.source(&[2, 6, 9, 11]);
        let filters = graph.constant(&[6, 6 / group, 3, 2], &ramp(36 * 6 / group, -0.05));
        let bias = graph.constant(&[6], &ramp(6, 1.0));
        let conv = Conv {
            pool_spec: spec(6, PaddingSpec::SameUpper, 1),
            kernel_fmt: KernelFormat::OIHW,
            group,
            q_params: None,
        };
        let y = graph.op(conv, &[x, filters, bias]);
        assert_eq!(graph.replaced(&[y]), expected);
    }
}

#[test]
fn sums_of_the_last_axes_take_the_factor_along() {
    let mut graph = Graph::new();
    let x = graph.source(&[2, 3, 5, 7]);
    let sum = graph.op(Reduce::new(tvec!(2, 3), Reducer::Sum), &[x]);
    let share = graph.constant(&[1, 1, 1, 1], &[1.0 / 35.0]);
    let mean = graph.op(binary(math::Mul), &[sum, share]);
    let first = graph.op(Reduce::new(tvec!(1), Reducer::Sum), &[x]);
    assert_eq!(graph.replaced(&[mean, first]), ["SumRows"]);
}

#[test]
fn every_nth_pixel_is_one_operator() {
    let mut graph = Graph::new();
    let x = graph.source(&[1, 3, 9, 40]);
    let rows = graph.op(Downsample::new(2, 2, 0), &[x]);
    let both = graph.op(Downsample::new(3, 2, 0), &[rows]);
    let columns = graph.op(Downsample::new(3, 3, 0), &[x]);
    let later = graph.op(Downsample::new(3, 3, 1), &[x]);
    assert_eq!(graph.replaced(&[both, columns, later]), ["Thin", "Thin"]);
}

#[test]
fn elementwise_nodes_in_a_row_are_one_operator() {
    let mut graph = Graph::new();
    let x = graph.source(&[1, 4, 3, 5]);
    let other = graph.source(&[1, 4, 3, 5]);
    let channels = graph.constant(&[1, 4, 1, 1], &ramp(4, 1.0));
    let columns = graph.constant(&[1, 1, 1, 5], &ramp(5, -1.0));
    let zero = graph.constant(&[1, 1, 1, 1], &[0.0]);
    let y = graph.op(binary(math::Add), &[x, channels]);
    let y = graph.op(binary(math::Sub), &[columns, y]);
    let y = graph.op(binary(math::Mul), &[y, other]);
    let y = graph.op(binary(math::Max), &[y, zero]);
    let y = graph.op(sigmoid(), &[y]);
    assert_eq!(graph.replaced(&[y]), ["Chain"]);
}

#[test]
fn what_the_engine_fuses_with_a_product_stays_there() {
    for residual in [false, true] {
        let mut graph = Graph::new();
        let x = graph.source(&[4, 5]);
        let w = graph.constant(&[5, 6], &ramp(30, 0.1));
        let bias = graph.constant(&[1, 6], &ramp(6, 0.1));
        let product = graph.einsum("mk,kn->mn", &[x, w]);
        let mut y = graph.op(binary(math::Add), &[product, bias]);
        if residual {
            let other = graph.source(&[4, 6]);
            y = graph.op(binary(math::Add), &[y, other]);
        }
        let expected = if residual { vec!["Chain"] } else { vec![] };
        assert_eq!(graph.replaced(&[y]), expected);
    }
}

#[test]
fn operators_read_through_nodes_that_only_rename_the_shape() {
    let mut graph = Graph::new();
    let flat = graph.source(&[5, 16]);
    let split = |graph: &mut Graph| {
        graph.op(
            AxisOp::Reshape(1, tvec!(16.to_dim()), tvec!(2.to_dim(), 8.to_dim())),
            &[flat],
        )
    };
    let (a, b) = (split(&mut graph), split(&mut graph));
    let y = graph.einsum("mbk,nbk->bmn", &[a, b]);
    assert_eq!(graph.replaced(&[y]), ["Products"]);
}

#[test]
fn gelu_by_tanh_with_a_cube_gets_its_name() {
    for half_first in [false, true] {
        let mut graph = Graph::new();
        let x = graph.source(&[2, 50]);
        let mut number = |value| graph.constant(&[1, 1], &[value]);
        let [small, root, one, half] = [0.044_715, 0.797_884_6, 1.0, 0.5].map(&mut number);
        let cube = math::pow_const(3.0);
        let cube = graph.op(cube, &[x]);
        let cube = graph.op(binary(math::Mul), &[cube, small]);
        let sum = graph.op(binary(math::Add), &[x, cube]);
        let inner = graph.op(binary(math::Mul), &[sum, root]);
        let tanh = graph.op(math::tanh(), &[inner]);
        let plus = graph.op(binary(math::Add), &[tanh, one]);
        let y = if half_first {
            let halved = graph.op(binary(math::Mul), &[x, half]);
            graph.op(binary(math::Mul), &[halved, plus])
        } else {
            let product = graph.op(binary(math::Mul), &[x, plus]);
            graph.op(binary(math::Mul), &[product, half])
        };
        graph.0.select_output_outlets(&[y]).expect("outputs");
        name_functions(&mut graph.0).expect("a rule");
        let last = graph.0.node(graph.0.outputs[0].node);
        let op = last.op_as::<ElementWiseOp>().expect("an elementwise node");
        assert!(
            op.0.downcast_ref::<GeluApproximate>()
                .is_some_and(|gelu| !gelu.fast_impl)
        );
        let outputs = graph.0.outputs.clone();
        assert!(graph.replaced(&outputs).is_empty());
    }
}

#[test]
fn inputs_of_another_type_or_length_are_errors() {
    let op = super::LocalOp::new(super::Work::Softmax { cols: 4 }, &[2, 4]);
    let run = |input: Tensor| op.eval(&EvalContext::out_of_plan(), tvec!(input.into_tvalue()));
    let fits = run(Tensor::zero::<f32>(&[2, 4]).expect("zeros")).expect("a result");
    assert_eq!(floats(&fits[0]), Some(&[0.25; 8][..]));
    assert!(run(Tensor::zero::<f32>(&[2, 3]).expect("zeros")).is_err());
    assert!(run(Tensor::zero::<i32>(&[2, 4]).expect("zeros")).is_err());
}

#[test]
fn weights_of_eight_bits_are_widened_once() {
    // More than the engine folds by itself.
    let (rows, cols) = (3 << 10, 1 << 10);
    let mut graph = Graph::new();
    let x = graph.source(&[rows, cols]);
    let bytes: Vec<i8> = (0..rows * cols).map(|i| (i % 251) as u8 as i8).collect();
    let bytes = Tensor::from_shape(&[rows, cols], &bytes).expect("a tensor");
    let kept = graph.0.add_const("kept", bytes).expect("a constant");
    let wide = graph.op(cast(DatumType::F32), &[kept]);
    let step = graph.constant(&[1, 1], &[1.0 / 128.0]);
    let table = graph.op(binary(math::Mul), &[wide, step]);
    let y = graph.op(binary(math::Add), &[x, table]);
    graph.0.select_output_outlets(&[y]).expect("outputs");
    let engine = graph.0.clone().into_decluttered().expect("engine");
    let casts = |model: &TypedModel| model.nodes.iter().filter(|n| n.op_is::<Cast>()).count();
    assert_eq!(casts(&engine), 1, "the engine folds it by now");
    let mut ours = engine.clone();
    replace(&mut ours).expect("rules");
    ours.compact().expect("compacted");
    assert_eq!(casts(&ours), 0);
    let x = input(&engine, 0).into_tvalue();
    let run = |model: TypedModel| {
        let plan = model
            .into_optimized()
            .and_then(|model| model.into_runnable());
        plan.and_then(|plan| plan.run(tvec!(x.clone())))
            .expect("a run")
    };
    assert_eq!(run(ours), run(engine));
}
