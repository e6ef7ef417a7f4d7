//! Just enough ONNX for a chain of matrix products and convolutions with made-up weights.
//!
//! Source: field numbers of `onnx.proto3`, ONNX 1.17; the protocol buffers encoding guide.

/// A protocol buffers message under construction.
#[derive(Default)]
struct Proto(Vec<u8>);

impl Proto {
    fn varint(&mut self, mut value: u64) {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                return self.0.push(low);
            }
            self.0.push(low | 0x80);
        }
    }

    fn number(mut self, field: u64, value: usize) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    fn field(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }
}

/// ONNX's number for tensors of 32-bit floats.
const FLOAT: usize = 1;

/// A linear layer.
pub(super) enum Layer {
    /// Rows of `from` features to `to` features.
    Product { from: usize, to: usize },
    /// A convolution, stride 1, padded to keep the size, `channels` on both sides.
    Conv {
        channels: usize,
        groups: usize,
        /// Side of the kernel, odd.
        side: usize,
    },
}

/// The bytes of a model: `layers` one after the other with ReLU between them, `times` copies of
/// the whole beside each other on the same input `x`.
pub(super) fn model(input: &[usize], layers: &[Layer], times: usize) -> Vec<u8> {
    let mut graph = port(Proto::default(), 11, "x", Some(input));
    for copy in 0..times {
        let mut from = "x".to_owned();
        for (at, layer) in layers.iter().enumerate() {
            if at > 0 {
                let name = format!("relu{copy}.{at}");
                graph = node(graph, "Relu", &[&from], &name, Proto::default());
                from = name;
            }
            let (name, weights) = (format!("y{copy}.{at}"), format!("w{copy}.{at}"));
            let (op, shape, with) = match *layer {
                Layer::Product { from, to } => ("MatMul", vec![from, to], Proto::default()),
                Layer::Conv {
                    channels,
                    groups,
                    side,
                } => {
                    let with = numbers(Proto::default(), "pads", &[side / 2; 4]);
                    let with = with.field(5, &group(groups).0);
                    let shape = vec![channels, channels / groups, side, side];
                    ("Conv", shape, with)
                }
            };
            graph = constant(graph, &weights, &shape);
            graph = node(graph, op, &[&from, &weights], &name, with);
            from = name;
        }
        graph = port(graph, 12, &from, None);
    }
    let graph = graph.field(2, b"calibration");
    let operators = Proto::default().field(1, b"").number(2, 17);
    let model = Proto::default().number(1, 8).field(8, &operators.0);
    model.field(7, &graph.0).0
}

fn port(graph: Proto, field: u64, name: &str, shape: Option<&[usize]>) -> Proto {
    let mut tensor = Proto::default().number(1, FLOAT);
    if let Some(shape) = shape {
        let dims = shape.iter().fold(Proto::default(), |dims, size| {
            dims.field(1, &Proto::default().number(1, *size).0)
        });
        tensor = tensor.field(2, &dims.0);
    }
    let port = Proto::default().field(1, name.as_bytes());
    let port = port.field(2, &Proto::default().field(1, &tensor.0).0);
    graph.field(field, &port.0)
}

/// Pseudo-random weights, so that nothing is folded away.
fn constant(graph: Proto, name: &str, shape: &[usize]) -> Proto {
    let mut state = 0x2545_f491_u32;
    let weight = |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 24) as f32 - 0.5
    };
    let raw: Vec<u8> = (0..shape.iter().product())
        .map(weight)
        .flat_map(f32::to_le_bytes)
        .collect();
    let tensor = shape
        .iter()
        .fold(Proto::default(), |tensor, size| tensor.number(1, *size));
    let tensor = tensor.number(2, FLOAT).field(8, name.as_bytes());
    graph.field(5, &tensor.field(9, &raw).0)
}

fn node(graph: Proto, op: &str, inputs: &[&str], output: &str, with: Proto) -> Proto {
    let mut node = inputs
        .iter()
        .fold(Proto::default(), |node, name| {
            node.field(1, name.as_bytes())
        })
        .field(2, output.as_bytes())
        .field(3, output.as_bytes())
        .field(4, op.as_bytes());
    node.0.extend(with.0);
    graph.field(1, &node.0)
}

/// Adds an attribute that is a list of integers to a node.
fn numbers(node: Proto, name: &str, values: &[usize]) -> Proto {
    let attribute = Proto::default().field(1, name.as_bytes()).number(20, 7);
    let attribute = values
        .iter()
        .fold(attribute, |attribute, value| attribute.number(8, *value));
    node.field(5, &attribute.0)
}

fn group(groups: usize) -> Proto {
    let attribute = Proto::default().field(1, b"group").number(20, 2);
    attribute.number(3, groups)
}
