//! Random graphs of one linear operator with constant weights: each goes to a worker, equals the
//! integer network bit for bit, and is off by no more than the quantisation may be.

use larvatus_testkit::conformance::case::Case;
use larvatus_testkit::conformance::judge::{Fault, part_of_bound, run, store, weights};
use larvatus_testkit::conformance::reference::{Array, Bilinear, Steps, bound};
use proptest::prelude::*;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// A node and the shapes of its operands.
#[derive(Clone, Debug)]
struct Subject {
    node: NodeProto,
    first: Vec<usize>,
    second: Vec<usize>,
    /// The shape of the third operand, if it has one.
    bias: Option<Vec<usize>>,
    seed: u64,
}

fn attribute(name: &str) -> AttributeProto {
    AttributeProto {
        name: name.to_owned(),
        ..AttributeProto::default()
    }
}

fn ints(name: &str, values: &[usize]) -> AttributeProto {
    let ints = values
        .iter()
        .map(|v| i64::try_from(*v).expect("a small size"))
        .collect();
    AttributeProto {
        ints,
        r#type: AttributeType::Ints.into(),
        ..attribute(name)
    }
}

fn int(name: &str, i: usize) -> AttributeProto {
    let i = i64::try_from(i).expect("a small number");
    AttributeProto {
        i,
        r#type: AttributeType::Int.into(),
        ..attribute(name)
    }
}

fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto {
        f,
        r#type: AttributeType::Float.into(),
        ..attribute(name)
    }
}

fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto {
        s: s.into(),
        r#type: AttributeType::String.into(),
        ..attribute(name)
    }
}

fn node(op: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        name: op.to_lowercase(),
        attribute,
        ..NodeProto::default()
    }
}

fn port(name: &str, shape: &[usize]) -> ValueInfoProto {
    let dim = |size: &usize| Dimension {
        value: Some(dimension::Value::DimValue(
            i64::try_from(*size).expect("a small size"),
        )),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float.into(),
        shape: Some(TensorShapeProto {
            dim: shape.iter().map(dim).collect(),
        }),
    };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..TypeProto::default()
        }),
        ..ValueInfoProto::default()
    }
}

fn stored(name: &str, array: &Array) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: array
            .shape
            .iter()
            .map(|d| i64::try_from(*d).expect("a small size"))
            .collect(),
        data_type: DataType::Float.into(),
        float_data: array.data.iter().map(|v| *v as f32).collect(),
        ..TensorProto::default()
    }
}

/// Values in (−1, 1) that f32 holds exactly; one seed, one array.
fn values(shape: &[usize], seed: u64) -> Array {
    let value = |ix: u64| {
        let mut z = seed.wrapping_add(ix.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let steps = (z >> 40) as u32;
        (f64::from(steps) + 0.5) * 2_f64.powi(-23) - 1.0
    };
    let count: usize = shape.iter().product();
    let data = (0..count as u64)
        .map(|ix| f64::from(value(ix) as f32))
        .collect();
    Array {
        shape: shape.to_vec(),
        data,
    }
}

impl Subject {
    /// The subject as a case: its answer is the reference's.
    fn case(&self) -> Case {
        let (first, second) = (
            values(&self.first, self.seed),
            values(&self.second, self.seed ^ 1),
        );
        let map = Bilinear::of(&self.node, &self.first, &self.second).expect("a linear operator");
        let mut answer = map.apply(&first, &second);
        let mut operands = vec![("x", first), ("w", second)];
        if let Some(shape) = &self.bias {
            let bias = values(shape, self.seed ^ 2);
            let beta = self.node.attribute.iter().find(|a| a.name == "beta");
            let beta = beta.map_or(1.0, |beta| f64::from(beta.f));
            // Conv: along the channels; Gemm: along the columns.
            let (period, count) = match self.node.op_type.as_str() {
                "Conv" => (answer.shape[2..].iter().product(), answer.shape[1]),
                _ => (1, answer.shape[1]),
            };
            for (ix, y) in answer.data.iter_mut().enumerate() {
                *y += beta * bias.data[ix / period % count];
            }
            operands.push(("b", bias));
        }
        let mut node = self.node.clone();
        node.input = operands
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect();
        node.output = vec!["y".to_owned()];
        let inputs = operands
            .iter()
            .map(|(name, array)| stored(name, array))
            .collect();
        let graph = GraphProto {
            name: "one".to_owned(),
            node: vec![node],
            input: operands
                .iter()
                .map(|(name, array)| port(name, &array.shape))
                .collect(),
            output: vec![port("y", &answer.shape)],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: 17,
            }],
            graph: Some(graph),
            ..ModelProto::default()
        };
        Case {
            model,
            file: None,
            foreign: None,
            inputs,
            outputs: vec![stored("y", &answer)],
        }
    }

    /// Runs it with each operand that may be constant as the constant.
    fn holds(&self) -> Result<(), TestCaseError> {
        let store = store().map_err(TestCaseError::fail)?;
        let case = self.case();
        let ways = weights(&case);
        prop_assert!(!ways.is_empty());
        for way in &ways {
            let shown = run(&case.with_constants(&way.fixed), Some((&case, way)), &store);
            let shown = shown.map_err(|fault| match fault {
                Fault::NotSupported(why) => TestCaseError::fail(format!("refused: {why}")),
                Fault::Wrong(what) => TestCaseError::fail(what),
            })?;
            prop_assert_eq!(
                shown.layers,
                1,
                "operand {} constant: not at a worker",
                way.side
            );
            prop_assert!(shown.of_bound.is_some_and(|part| part <= 1.0));
        }
        Ok(())
    }
}

/// Convolutions in one and two dimensions.
fn convolution() -> impl Strategy<Value = Subject> {
    let axis = (
        1..=4_usize,
        1..=3_usize,
        1..=3_usize,
        0..=9_usize,
        0..=2_usize,
        0..=2_usize,
    );
    let channels = (1..=3_usize, 1..=3_usize, 1..=4_usize, 1..=2_usize);
    let auto = prop::sample::select(vec!["NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"]);
    let axes = prop::collection::vec(axis, 1..=2);
    (axes, channels, auto, any::<bool>(), any::<u64>()).prop_map(
        |(axes, (group, inner, outer, images), auto, biased, seed)| {
            #[expect(
                clippy::type_complexity,
                reason = "one tuple a spatial axis, read by column"
            )]
            let column = |of: fn(&(usize, usize, usize, usize, usize, usize)) -> usize| {
                axes.iter().map(of).collect::<Vec<_>>()
            };
            let (kernel, strides) = (column(|a| a.0), column(|a| a.1));
            // One tap on one channel only scales: nothing to sum, so nothing for a worker.
            let taps = inner * kernel.iter().product::<usize>();
            let inner = if taps == 1 { 2 } else { inner };
            let dilations = column(|a| a.2);
            let pads = [column(|a| a.4), column(|a| a.5)].concat();
            // Large enough for one window without padding.
            let size = column(|a| a.2 * (a.0 - 1) + 1 + a.3);
            let mut attributes = vec![
                int("group", group),
                ints("kernel_shape", &kernel),
                ints("strides", &strides),
                ints("dilations", &dilations),
            ];
            attributes.push(match auto {
                "NOTSET" => ints("pads", &pads),
                auto => text("auto_pad", auto),
            });
            Subject {
                node: node("Conv", attributes),
                first: [vec![images, group * inner], size].concat(),
                second: [vec![group * outer, inner], kernel].concat(),
                bias: biased.then_some(vec![group * outer]),
                seed,
            }
        },
    )
}

/// Gemm in all orders, with factors.
fn gemm() -> impl Strategy<Value = Subject> {
    let sizes = (1..=7_usize, 2..=40_usize, 1..=7_usize);
    let factors = (
        prop::sample::select(vec![1.0_f32, 0.25, -2.5]),
        -2.0_f32..2.0,
    );
    (
        sizes,
        any::<(bool, bool)>(),
        factors,
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(
            |((rows, inner, columns), (trans_a, trans_b), (alpha, beta), biased, seed)| {
                let side =
                    |swap: bool, a: usize, b: usize| if swap { vec![b, a] } else { vec![a, b] };
                let attributes = vec![
                    int("transA", usize::from(trans_a)),
                    int("transB", usize::from(trans_b)),
                    float("alpha", alpha),
                    float("beta", beta),
                ];
                Subject {
                    node: node("Gemm", attributes),
                    first: side(trans_a, rows, inner),
                    second: side(trans_b, inner, columns),
                    bias: biased.then_some(vec![1, columns]),
                    seed,
                }
            },
        )
}

/// Matrix products of all ranks, batches spread over either side.
fn matmul() -> impl Strategy<Value = Subject> {
    let sizes = (1..=5_usize, 2..=40_usize, 1..=5_usize);
    // For each batch axis: its size, and whether each operand has it in full.
    let axis = (
        2..=3_usize,
        prop::sample::select(vec![(true, true), (true, false), (false, true)]),
    );
    let batch = prop::collection::vec(axis, 0..=2);
    (
        sizes,
        batch,
        0..=2_usize,
        any::<(bool, bool)>(),
        any::<u64>(),
    )
        .prop_map(
            |((rows, inner, columns), batch, cut, (flat_first, flat_second), seed)| {
                let side = |full: fn(&(bool, bool)) -> bool, own: [usize; 2]| -> Vec<usize> {
                    let axes = batch
                        .iter()
                        .map(|(size, has)| if full(has) { *size } else { 1 });
                    axes.chain(own).collect()
                };
                let mut first = side(|has| has.0, [rows, inner]);
                let mut second = side(|has| has.1, [inner, columns]);
                // An operand may lack leading axes, or be a vector where it has no batch at all.
                if flat_first && batch.is_empty() {
                    first = vec![inner];
                } else if flat_second && batch.iter().all(|(_, has)| !has.1) {
                    second = vec![inner];
                }
                while second.len() > 2 && second[0] == 1 && cut > 0 {
                    second.remove(0);
                }
                Subject {
                    node: node("MatMul", vec![]),
                    first,
                    second,
                    bias: None,
                    seed,
                }
            },
        )
}

/// Einsum equations in which either operand may be the weights.
fn einsum() -> impl Strategy<Value = Subject> {
    let equations = vec![
        "ij,jk->ik",
        "ij,jk->ki",
        "ij,kj->ik",
        "ji,jk",
        "bij,jk->bik",
        "bij,bjk->bik",
        "bij,ik->bjk",
        "bij,ik->bkj",
        "bij,kji->bk",
        "bij,jk->kib",
        "bthd,hde->bte",
        "bthd,hde->bthe",
        "bthd,hde->bhte",
        "bhtd,hde->bhte",
        "abcd,cbe->ade",
        "abcd,ce->eabd",
        "ij,ij->i",
    ];
    let equation = prop::sample::select(equations);
    (
        equation,
        prop::collection::vec(2..=5_usize, 26),
        any::<u64>(),
    )
        .prop_map(|(equation, sizes, seed)| {
            let (operands, _) = equation.split_once("->").unwrap_or((equation, ""));
            let (first, second) = operands.split_once(',').expect("two operands");
            let shape = |labels: &str| {
                labels
                    .bytes()
                    .map(|label| sizes[usize::from(label - b'a')])
                    .collect()
            };
            Subject {
                node: node("Einsum", vec![text("equation", equation)]),
                first: shape(first),
                second: shape(second),
                bias: None,
                seed,
            }
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn convolutions_of_every_form_go_to_a_worker_within_their_bound(subject in convolution()) {
        subject.holds()?;
    }

    #[test]
    fn gemm_in_every_order_goes_to_a_worker_within_its_bound(subject in gemm()) {
        subject.holds()?;
    }

    #[test]
    fn matrix_products_of_every_rank_go_to_a_worker_within_their_bound(subject in matmul()) {
        subject.holds()?;
    }

    #[test]
    fn einsum_equations_go_to_a_worker_within_their_bound(subject in einsum()) {
        subject.holds()?;
    }
}

#[test]
fn the_bound_is_not_idle() {
    // Weights that all lie half a step off, under an activation of one sign, use most of the bound.
    let (mut x, mut w) = (values(&[1, 64], 1), values(&[64, 1], 2));
    x.data.fill(1.0);
    w.data.fill(0.5 / 127.0);
    w.data[0] = 1.0;
    let subject = node("MatMul", vec![]);
    let map = Bilinear::of(&subject, &x.shape, &w.shape).expect("a product");
    let steps = Steps {
        activation: 1 << 13,
        weight: 127,
        rows: true,
    };
    let allowed = bound(&map, [&x, &w], 1, steps);
    let lost = 63.0 * 0.5 / 127.0;
    assert!(
        allowed.data[0] > lost && allowed.data[0] < 1.1 * lost,
        "{} for {lost}",
        allowed.data[0]
    );
}

#[test]
fn an_answer_that_is_off_is_wrong() {
    let subject = Subject {
        node: node("Gemm", vec![]),
        first: vec![3, 20],
        second: vec![20, 4],
        bias: None,
        seed: 7,
    };
    let store = store().expect("a worker");
    let case = subject.case();
    let way = &weights(&case)[1];
    let judge = |case: &Case| run(&case.with_constants(&way.fixed), Some((case, way)), &store);
    assert_eq!(judge(&case).map(|shown| shown.layers).ok(), Some(1));
    let mut other = case.clone();
    other.outputs[0].float_data[5] += 0.01;
    assert!(matches!(judge(&other), Err(Fault::Wrong(what)) if what.contains("local: output 0")));
    // Beyond what the quantisation may do, where the float network is not asked.
    let allowed = [0.02; 2];
    assert!(part_of_bound(&[1.0, 2.0], &[1.0, 2.01], &allowed).is_ok_and(|part| part > 0.49));
    assert!(part_of_bound(&[1.0, 2.0], &[1.0, 2.03], &allowed).is_err());
    assert!(part_of_bound(&[1.0, f64::NAN], &[1.0, 2.0], &allowed).is_err());
}
