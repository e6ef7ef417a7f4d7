//! The one encoding of a graph.
//!
//! Counts are 32-bit, sizes and strides too: what does not fit was refused before. Nothing is allocated for a count before it is
//! held against its limit, and whatever is decoded goes through [`Graph::new`].

mod decode;

use larvatus_kernels::activation::Activation;
use larvatus_kernels::local::attention::{Attention, Strides};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use larvatus_proto::program::encode_layer;
use larvatus_proto::wire::Writer;

use crate::graph::{Element, Graph};
use crate::op::{Linear, Op, Step};
use crate::tensor::{ConstantId, Kind, Order, Source};

/// Most bytes of an encoded graph.
pub const MAX_GRAPH: usize = 8 << 20;
/// Most constants of a graph.
pub const MAX_CONSTANTS: usize = 1 << 16;

/// The first bytes of every graph: what its numbers mean.
const VERSION: u32 = 1;

impl Graph {
    /// The canonical encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(VERSION);
        let grain = self.grain();
        out.u32(grain.multiplications).u32(grain.elements);
        out.count(self.inputs().len());
        for input in self.inputs() {
            out.text(&input.name);
            shape(&mut out, &input.shape);
            out.u8(match input.spec.kind {
                Kind::F32 => 1,
                Kind::I64 => 2,
            });
            order(&mut out, input.spec.order);
        }
        out.count(self.constants().len());
        for constant in self.constants() {
            out.u8(match constant.element {
                Element::I8 => 1,
                Element::F32 => 2,
                Element::I64 => 3,
            });
            out.count(constant.elements);
        }
        out.count(self.nodes().len());
        for node in self.nodes() {
            out.text(&node.name);
            order(&mut out, node.order);
            op(&mut out, &node.op);
        }
        out.count(self.outputs().len());
        for output in self.outputs() {
            out.text(&output.name);
            shape(&mut out, &output.shape);
            out.u32(output.tensor.0);
        }
        out.into_bytes()
    }
}

fn shape(out: &mut Writer, sides: &[usize]) {
    out.count(sides.len());
    sizes(out, sides);
}

fn sizes(out: &mut Writer, sizes: &[usize]) {
    for size in sizes {
        out.count(*size);
    }
}

fn float(out: &mut Writer, value: f32) {
    out.u32(value.to_bits());
}

fn order(out: &mut Writer, order: Order) {
    match order {
        Order::Flat => {
            out.u8(0);
        }
        Order::Lines {
            images,
            channels,
            lines,
            width,
        } => {
            out.u8(1);
            sizes(out, &[images, channels, lines, width]);
        }
    }
}

fn source(out: &mut Writer, source: Source) {
    match source {
        Source::Tensor(id) => out.u8(1).u32(id.0),
        Source::Constant(id) => out.u8(2).u32(id.0),
    };
}

fn optional<T>(out: &mut Writer, value: Option<T>, write: impl FnOnce(&mut Writer, T)) {
    out.u8(u8::from(value.is_some()));
    if let Some(value) = value {
        write(out, value);
    }
}

fn constant(out: &mut Writer, id: ConstantId) {
    out.u32(id.0);
}

fn activation(out: &mut Writer, activation: Activation) {
    let (tag, numbers): (u8, &[f32]) = match activation {
        Activation::None => (0, &[]),
        Activation::Relu => (1, &[]),
        Activation::LeakyRelu { slope } => (2, &[slope]),
        Activation::Clip { low, high } => (3, &[low, high]),
        Activation::HardSigmoid { slope, offset } => (4, &[slope, offset]),
        Activation::HardSwish => (5, &[]),
        Activation::Sigmoid => (6, &[]),
        Activation::Silu => (7, &[]),
        Activation::Gelu => (8, &[]),
        Activation::GeluTanh => (9, &[]),
        // Refused when the graph was made.
        _ => (u8::MAX, &[]),
    };
    out.u8(tag);
    numbers.iter().for_each(|number| float(out, *number));
}

fn windows(out: &mut Writer, windows: &Windows) {
    let Windows {
        planes,
        input,
        output,
        kernel,
        stride,
        before,
    } = windows;
    out.count(*planes);
    for pair in [input, output, kernel, stride, before] {
        sizes(out, pair);
    }
}

fn strides(out: &mut Writer, strides: Strides) {
    sizes(out, &[strides.matrix, strides.row, strides.column]);
}

fn binary(op: Binary) -> u8 {
    match op {
        Binary::Add => 1,
        Binary::Div => 2,
        Binary::Max => 3,
        Binary::Min => 4,
        Binary::Mul => 5,
        Binary::Sub => 6,
        Binary::SubFrom => 7,
    }
}

fn op(out: &mut Writer, op: &Op) {
    match op {
        Op::Linear(linear) => {
            out.u8(1);
            linear_op(out, linear);
        }
        Op::Maxima { input, count } => {
            out.u8(2).u32(input.0).count(*count);
        }
        Op::Attention {
            shape,
            batches,
            advance,
            inputs,
            mask,
        } => {
            out.u8(3).count(*batches);
            sizes(out, advance);
            let Attention {
                heads,
                queries,
                keys,
                depth,
                width,
                q,
                k,
                v,
                out: result,
                scale,
                mask: place,
            } = shape;
            sizes(out, &[*heads, *queries, *keys, *depth, *width]);
            for each in [q, k, v, result] {
                strides(out, *each);
            }
            optional(out, *scale, float);
            optional(out, *place, strides);
            inputs.iter().for_each(|input| source(out, *input));
            optional(out, *mask, source);
        }
        Op::Products {
            shape,
            batches,
            advance,
            inputs,
        } => {
            out.u8(4).count(*batches);
            sizes(out, advance);
            sizes(out, &[shape.matrices, shape.rows, shape.inner, shape.cols]);
            for each in [shape.a, shape.b, shape.out] {
                strides(out, each);
            }
            inputs.iter().for_each(|input| source(out, *input));
        }
        Op::Chain { input, steps } => {
            out.u8(5);
            source(out, *input);
            out.count(steps.len());
            for step in steps {
                match step {
                    Step::Binary(op, spread) => {
                        out.u8(binary(*op));
                        source(out, spread.source);
                        out.count(spread.run);
                    }
                    Step::Activation(function) => {
                        out.u8(0);
                        activation(out, *function);
                    }
                }
            }
        }
        Op::Depthwise {
            input,
            windows: geometry,
            filters,
            bias,
        } => {
            out.u8(6);
            source(out, *input);
            windows(out, geometry);
            constant(out, *filters);
            optional(out, *bias, constant);
        }
        Op::LayerNorm {
            input,
            cols,
            epsilon,
            gamma,
            beta,
        } => {
            out.u8(7);
            source(out, *input);
            out.count(*cols);
            float(out, *epsilon);
            optional(out, *gamma, constant);
            optional(out, *beta, constant);
        }
        Op::Softmax { input, cols } => {
            out.u8(8);
            source(out, *input);
            out.count(*cols);
        }
        Op::MaxPool {
            input,
            windows: geometry,
        } => {
            out.u8(9);
            source(out, *input);
            windows(out, geometry);
        }
        Op::SumPool {
            input,
            windows: geometry,
            divisor,
        } => {
            out.u8(10);
            source(out, *input);
            windows(out, geometry);
            out.u8(match divisor {
                Divisor::One => 1,
                Divisor::Window => 2,
                Divisor::Present => 3,
            });
        }
        Op::SumRows {
            input,
            cols,
            factor,
        } => {
            out.u8(11);
            source(out, *input);
            out.count(*cols);
            float(out, *factor);
        }
        Op::View { input, start, axes } => {
            out.u8(12);
            source(out, *input);
            out.count(*start).count(axes.len());
            axes.iter()
                .for_each(|axis| sizes(out, &[axis.len, axis.stride]));
        }
        Op::Concat { outer, parts } => {
            out.u8(13).count(*outer).count(parts.len());
            for (part, len) in parts {
                source(out, *part);
                out.count(*len);
            }
        }
        Op::Gather {
            table,
            cols,
            indices,
        } => {
            out.u8(14);
            constant(out, *table);
            out.count(*cols);
            source(out, *indices);
        }
        Op::Cast { input } => {
            out.u8(15);
            source(out, *input);
        }
    }
}

fn linear_op(out: &mut Writer, linear: &Linear) {
    encode_layer(out, &linear.spec);
    out.u32(linear.input.0)
        .u32(linear.maxima.0)
        .u32(linear.weights.0)
        .u32(linear.bound.steps())
        .u32(linear.factor.0);
    optional(out, linear.bias, constant);
    activation(out, linear.pre);
    optional(out, linear.residual, source);
    activation(out, linear.post);
    optional(out, linear.pool.as_ref(), windows);
}
