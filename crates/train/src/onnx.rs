//! Networks as ONNX files: operator set 17, one node for each module, a batch of one image.
//!
//! Source: `onnx.proto3` of ONNX 1.17, of which this declares the messages and fields that are written.

use prost::Message;

use crate::TrainError;
use crate::net::{Module, Network};
use crate::ops::{NORM_EPSILON, read};

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSet {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfo>,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "3")]
    name: String,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(bytes = "vec", tag = "4")]
    s: Vec<u8>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    kind: i32,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(bytes = "vec", tag = "9")]
    raw_data: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfo {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    kind: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TypeProto {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
    #[prost(message, optional, tag = "2")]
    shape: Option<ShapeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct ShapeProto {
    #[prost(message, repeated, tag = "1")]
    dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
struct Dimension {
    #[prost(int64, tag = "1")]
    value: i64,
}

const FLOAT: i32 = 1;

/// Signed, as the format has it.
fn signed(extent: usize) -> i64 {
    i64::try_from(extent).unwrap_or(i64::MAX)
}

fn float(name: &str, f: f32) -> Attribute {
    Attribute {
        name: name.to_owned(),
        f,
        kind: 1,
        ..Attribute::default()
    }
}

fn int(name: &str, value: usize) -> Attribute {
    Attribute {
        name: name.to_owned(),
        i: signed(value),
        kind: 2,
        ..Attribute::default()
    }
}

fn text(name: &str, value: &str) -> Attribute {
    Attribute {
        name: name.to_owned(),
        s: value.as_bytes().to_vec(),
        kind: 3,
        ..Attribute::default()
    }
}

fn ints(name: &str, values: &[usize]) -> Attribute {
    Attribute {
        name: name.to_owned(),
        ints: values.iter().map(|value| signed(*value)).collect(),
        kind: 7,
        ..Attribute::default()
    }
}

fn constant(name: String, shape: &[usize], values: &[f32]) -> TensorProto {
    TensorProto {
        dims: shape.iter().map(|extent| signed(*extent)).collect(),
        data_type: FLOAT,
        name,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn port(name: &str, shape: &[usize]) -> ValueInfo {
    let dim = std::iter::once(&1).chain(shape).map(|extent| Dimension {
        value: signed(*extent),
    });
    let tensor = TensorType {
        element: FLOAT,
        shape: Some(ShapeProto { dim: dim.collect() }),
    };
    ValueInfo {
        name: name.to_owned(),
        kind: Some(TypeProto {
            tensor: Some(tensor),
        }),
    }
}

/// The bytes of a model that computes what the network does without training. Its input is `input`, its output `output`.
///
/// # Errors
/// [`TrainError::Tensor`] where a parameter cannot be read.
pub fn export(network: &Network) -> Result<Vec<u8>, TrainError> {
    let mut graph = GraphProto {
        name: "larvatus".to_owned(),
        ..GraphProto::default()
    };
    for (name, parameter) in network.parameters() {
        let values = read(parameter.as_tensor(), <[f32]>::to_vec)?;
        graph
            .initializer
            .push(constant(name.clone(), parameter.dims(), &values));
    }
    for (name, values) in network.statistics() {
        graph
            .initializer
            .push(constant(name.clone(), &[values.len()], values));
    }
    let name_of = |node: usize| match node {
        _ if node == network.output() => "output".to_owned(),
        _ => network.nodes()[node].name().to_owned(),
    };
    for (at, node) in network.nodes().iter().enumerate() {
        let own = |what: &str| format!("{}.{what}", node.name());
        let mut input: Vec<String> = node.inputs().iter().map(|at| name_of(*at)).collect();
        let (op, attribute) = match node.module() {
            Module::Input => continue,
            Module::Conv {
                kernel,
                stride,
                pad,
                bias,
                ..
            } => {
                input.push(own("weight"));
                if bias {
                    input.push(own("bias"));
                }
                let attributes = vec![
                    ints("kernel_shape", &[kernel; 2]),
                    ints("strides", &[stride; 2]),
                    ints("pads", &[pad; 4]),
                ];
                ("Conv", attributes)
            }
            Module::BatchNorm => {
                input.extend(["gamma", "beta", "mean", "variance"].map(own));
                ("BatchNormalization", vec![float("epsilon", NORM_EPSILON)])
            }
            Module::Relu => ("Relu", vec![]),
            Module::Sigmoid => ("Sigmoid", vec![]),
            Module::MaxPool { size } => {
                let attributes = vec![
                    ints("kernel_shape", &[size; 2]),
                    ints("strides", &[size; 2]),
                ];
                ("MaxPool", attributes)
            }
            Module::GlobalPool => {
                let pooled = own("pooled");
                graph.node.push(NodeProto {
                    input,
                    output: vec![pooled.clone()],
                    name: pooled.clone(),
                    op_type: "GlobalAveragePool".to_owned(),
                    attribute: vec![],
                });
                input = vec![pooled];
                ("Flatten", vec![int("axis", 1)])
            }
            Module::Upsample { by } => {
                let scales = own("scales");
                let by = by as f32;
                graph
                    .initializer
                    .push(constant(scales.clone(), &[4], &[1.0, 1.0, by, by]));
                input.extend([String::new(), scales]);
                let attributes = vec![
                    text("mode", "nearest"),
                    text("coordinate_transformation_mode", "asymmetric"),
                    text("nearest_mode", "floor"),
                ];
                ("Resize", attributes)
            }
            Module::Flatten => ("Flatten", vec![int("axis", 1)]),
            Module::Linear { .. } => {
                input.extend(["weight", "bias"].map(own));
                ("Gemm", vec![int("transB", 1)])
            }
            Module::Add => ("Add", vec![]),
            Module::Concat => ("Concat", vec![int("axis", 1)]),
        };
        graph.node.push(NodeProto {
            input,
            output: vec![name_of(at)],
            name: node.name().to_owned(),
            op_type: op.to_owned(),
            attribute,
        });
    }
    graph.input.push(port("input", network.nodes()[0].shape()));
    let output = &network.nodes()[network.output()];
    graph.output.push(port("output", output.shape()));
    let model = ModelProto {
        ir_version: 8,
        producer_name: "larvatus".to_owned(),
        graph: Some(graph),
        opset_import: vec![OperatorSet {
            domain: String::new(),
            version: 17,
        }],
    };
    Ok(model.encode_to_vec())
}
