//! Small ONNX models, encoded by hand.

/// An element type of ONNX.
pub(crate) const FLOAT: u64 = 1;
pub(crate) const INT64: u64 = 7;

/// A model `y = a + b` (or `y = a` where there is one input) over inputs with names, types and
/// dimensions; `None` leaves a dimension open.
pub(crate) fn sum(inputs: &[(&str, u64, &[Option<u64>])]) -> Vec<u8> {
    let op = if inputs.len() == 1 { "Identity" } else { "Add" };
    let mut node = Vec::new();
    for (name, ..) in inputs {
        field(&mut node, 1, name.as_bytes());
    }
    field(&mut node, 2, b"y");
    field(&mut node, 3, b"sum");
    field(&mut node, 4, op.as_bytes());
    let mut graph = Vec::new();
    field(&mut graph, 1, &node);
    field(&mut graph, 2, b"sum");
    for (name, datum, dims) in inputs {
        field(&mut graph, 11, &port(name, *datum, dims));
    }
    let (_, datum, dims) = inputs[0];
    field(&mut graph, 12, &port("y", datum, dims));
    let mut opset = Vec::new();
    field(&mut opset, 1, b"");
    number(&mut opset, 2, 17);
    let mut model = Vec::new();
    number(&mut model, 1, 8);
    field(&mut model, 7, &graph);
    field(&mut model, 8, &opset);
    model
}

fn port(name: &str, datum: u64, dims: &[Option<u64>]) -> Vec<u8> {
    let mut shape = Vec::new();
    for dim in dims {
        let mut inner = Vec::new();
        match dim {
            Some(size) => number(&mut inner, 1, *size),
            None => field(&mut inner, 2, b"open"),
        }
        field(&mut shape, 1, &inner);
    }
    let mut tensor = Vec::new();
    number(&mut tensor, 1, datum);
    field(&mut tensor, 2, &shape);
    let mut kind = Vec::new();
    field(&mut kind, 1, &tensor);
    let mut out = Vec::new();
    field(&mut out, 1, name.as_bytes());
    field(&mut out, 2, &kind);
    out
}

fn field(out: &mut Vec<u8>, tag: u64, bytes: &[u8]) {
    varint(out, tag << 3 | 2);
    varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn number(out: &mut Vec<u8>, tag: u64, value: u64) {
    varint(out, tag << 3);
    varint(out, value);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
