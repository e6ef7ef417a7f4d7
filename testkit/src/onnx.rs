//! Writes ONNX files: as much of the format as small networks need.
//!
//! Source: `onnx.proto3` of ONNX 1.17 (field numbers), the protocol buffers encoding guide.

/// Bytes of a protocol buffers message.
#[derive(Clone, Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value.cast_unsigned());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.varint(field << 3 | 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, value: &[u8]) -> Self {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }
}

/// An attribute of a node.
#[derive(Clone, Debug)]
pub struct Attribute(Message);

impl Attribute {
    fn message(name: &str, kind: i64) -> Message {
        Message::default().bytes(1, name.as_bytes()).int(20, kind)
    }

    /// A float.
    pub fn float(name: &str, value: f32) -> Self {
        Self(Self::message(name, 1).float(2, value))
    }

    /// An integer.
    pub fn int(name: &str, value: i64) -> Self {
        Self(Self::message(name, 2).int(3, value))
    }

    /// A list of integers.
    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self(
            values
                .iter()
                .fold(Self::message(name, 7), |message, value| {
                    message.int(8, *value)
                }),
        )
    }

    /// A graph: the branch of an `If`.
    pub fn graph(name: &str, graph: &Graph) -> Self {
        Self(Self::message(name, 5).bytes(6, &graph.message.0))
    }
}

/// A graph under construction.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    message: Message,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// A float input.
    #[must_use]
    pub fn input(self, name: &str, shape: &[usize]) -> Self {
        self.port(11, name, shape)
    }

    /// A float output.
    #[must_use]
    pub fn output(self, name: &str, shape: &[usize]) -> Self {
        self.port(12, name, shape)
    }

    /// A float output whose shape is left open.
    #[must_use]
    pub fn open_output(mut self, name: &str) -> Self {
        let tensor = Message::default().int(1, FLOAT);
        let port = Message::default().bytes(1, name.as_bytes());
        let port = port.bytes(2, &Message::default().bytes(1, &tensor.0).0);
        self.message = self.message.bytes(12, &port.0);
        self
    }

    fn port(mut self, field: u64, name: &str, shape: &[usize]) -> Self {
        let dims = shape.iter().fold(Message::default(), |dims, size| {
            dims.bytes(1, &Message::default().int(1, *size as i64).0)
        });
        let tensor = Message::default().int(1, FLOAT).bytes(2, &dims.0);
        let port = Message::default().bytes(1, name.as_bytes());
        let port = port.bytes(2, &Message::default().bytes(1, &tensor.0).0);
        self.message = self.message.bytes(field, &port.0);
        self
    }

    /// A constant tensor of floats.
    #[must_use]
    pub fn floats(self, name: &str, shape: &[usize], values: &[f32]) -> Self {
        let raw: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, shape, FLOAT, &raw)
    }

    /// A constant tensor of integers.
    #[must_use]
    pub fn ints(self, name: &str, shape: &[usize], values: &[i64]) -> Self {
        let raw: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.constant(name, shape, INT64, &raw)
    }

    fn constant(mut self, name: &str, shape: &[usize], kind: i64, raw: &[u8]) -> Self {
        let tensor = shape
            .iter()
            .fold(Message::default(), |t, size| t.int(1, *size as i64));
        let tensor = tensor.int(2, kind).bytes(8, name.as_bytes()).bytes(9, raw);
        self.message = self.message.bytes(5, &tensor.0);
        self
    }

    /// A node with one output, named after it.
    #[must_use]
    pub fn node(mut self, op: &str, inputs: &[&str], output: &str, with: &[Attribute]) -> Self {
        let node = inputs
            .iter()
            .fold(Message::default(), |n, name| n.bytes(1, name.as_bytes()));
        let node = node.bytes(2, output.as_bytes()).bytes(3, output.as_bytes());
        let node = node.bytes(4, op.as_bytes());
        let node = with
            .iter()
            .fold(node, |node, attribute| node.bytes(5, &attribute.0.0));
        self.message = self.message.bytes(1, &node.0);
        self
    }

    /// The bytes of a model with this graph, in operator set 17.
    pub fn model(&self) -> Vec<u8> {
        let opset = Message::default().bytes(1, b"").int(2, 17);
        let graph = self.message.clone().bytes(2, b"testkit");
        Message::default()
            .int(1, 8)
            .bytes(8, &opset.0)
            .bytes(7, &graph.0)
            .0
    }
}

const FLOAT: i64 = 1;
const INT64: i64 = 7;
