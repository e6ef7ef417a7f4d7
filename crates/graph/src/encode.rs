//! The one encoding of a graph.
//!
//! Counts are 32-bit, sizes and strides too: what does not fit was refused before. Nothing is allocated for a count before it is
//! held against its limit, and whatever is decoded goes through [`Graph::new`].

use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::local::attention::{Attention, Products, Strides};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use larvatus_proto::program::{MAX_WORDS, decode_layer, encode_layer};
use larvatus_proto::wire::{DecodeError, Reader, Writer};

use crate::graph::{
    ConstantSpec, Element, Graph, GraphError, Input, MAX_NAME, MAX_NODES, MAX_PORTS, MAX_RANK,
    Node, Output,
};
use crate::op::{Axis, Linear, MAX_AXES, MAX_PARTS, Op, Spread, Step};
use crate::tensor::{ConstantId, Kind, Order, Source, TensorId, TensorSpec};

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

    /// Reads an encoded graph.
    ///
    /// # Errors
    /// [`GraphError`] where the bytes are not the canonical encoding of a well-formed graph.
    pub fn decode(bytes: &[u8]) -> Result<Self, GraphError> {
        if bytes.len() > MAX_GRAPH {
            return Err(GraphError::Decode(DecodeError::TooMany {
                what: "bytes of a graph",
                limit: MAX_GRAPH as u64,
                got: bytes.len() as u64,
            }));
        }
        let mut reader = In(Reader::new(bytes));
        let version = reader.0.u32()?;
        if version != VERSION {
            return Err(unknown("version of a graph", version).into());
        }
        let inputs = reader.list("inputs", MAX_PORTS, In::input)?;
        let constants = reader.list("constants", MAX_CONSTANTS, In::constant)?;
        let nodes = reader.list("nodes", MAX_NODES, In::node)?;
        let outputs = reader.list("outputs", MAX_PORTS, |reader| {
            Ok(Output {
                name: reader.name()?,
                shape: reader.shape()?,
                tensor: TensorId(reader.0.u32()?),
            })
        })?;
        reader.0.finish()?;
        Self::new(inputs, constants, nodes, outputs)
    }
}

fn unknown(what: &'static str, tag: u32) -> DecodeError {
    DecodeError::UnknownTag { what, tag }
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

type Decoded<T> = Result<T, DecodeError>;

/// A reader of a graph's parts.
struct In<'a>(Reader<'a>);

impl In<'_> {
    fn list<T>(
        &mut self,
        what: &'static str,
        limit: usize,
        mut each: impl FnMut(&mut Self) -> Decoded<T>,
    ) -> Decoded<Vec<T>> {
        let count = self.0.count(what, limit)?;
        // Grows with what is read.
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(each(self)?);
        }
        Ok(all)
    }

    fn size(&mut self) -> Decoded<usize> {
        self.0.count("a size", MAX_WORDS)
    }

    fn sizes<const N: usize>(&mut self) -> Decoded<[usize; N]> {
        let mut all = [0; N];
        for size in &mut all {
            *size = self.size()?;
        }
        Ok(all)
    }

    fn float(&mut self) -> Decoded<f32> {
        self.0.u32().map(f32::from_bits)
    }

    fn name(&mut self) -> Decoded<String> {
        self.0.text("a name", MAX_NAME)
    }

    fn shape(&mut self) -> Decoded<Vec<usize>> {
        self.list("axes", MAX_RANK, Self::size)
    }

    fn optional<T>(&mut self, read: impl FnOnce(&mut Self) -> Decoded<T>) -> Decoded<Option<T>> {
        match self.0.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            tag => Err(unknown("an option", tag.into())),
        }
    }

    fn tensor(&mut self) -> Decoded<TensorId> {
        self.0.u32().map(TensorId)
    }

    fn constant_id(&mut self) -> Decoded<ConstantId> {
        self.0.u32().map(ConstantId)
    }

    fn source(&mut self) -> Decoded<Source> {
        match self.0.u8()? {
            1 => self.tensor().map(Source::Tensor),
            2 => self.constant_id().map(Source::Constant),
            tag => Err(unknown("a source", tag.into())),
        }
    }

    fn order(&mut self) -> Decoded<Order> {
        match self.0.u8()? {
            0 => Ok(Order::Flat),
            1 => {
                let [images, channels, lines, width] = self.sizes()?;
                Ok(Order::Lines {
                    images,
                    channels,
                    lines,
                    width,
                })
            }
            tag => Err(unknown("an order", tag.into())),
        }
    }

    fn input(&mut self) -> Decoded<Input> {
        let (name, shape) = (self.name()?, self.shape()?);
        let kind = match self.0.u8()? {
            1 => Kind::F32,
            2 => Kind::I64,
            tag => return Err(unknown("a kind of element", tag.into())),
        };
        let elements = shape
            .iter()
            .fold(1_usize, |all, side| all.saturating_mul(*side));
        let order = self.order()?;
        Ok(Input {
            name,
            shape,
            spec: TensorSpec {
                kind,
                elements,
                order,
            },
        })
    }

    fn constant(&mut self) -> Decoded<ConstantSpec> {
        let element = match self.0.u8()? {
            1 => Element::I8,
            2 => Element::F32,
            3 => Element::I64,
            tag => return Err(unknown("a kind of constant", tag.into())),
        };
        let elements = self.size()?;
        Ok(ConstantSpec { element, elements })
    }

    fn activation(&mut self) -> Decoded<Activation> {
        Ok(match self.0.u8()? {
            0 => Activation::None,
            1 => Activation::Relu,
            2 => Activation::LeakyRelu {
                slope: self.float()?,
            },
            3 => Activation::Clip {
                low: self.float()?,
                high: self.float()?,
            },
            4 => Activation::HardSigmoid {
                slope: self.float()?,
                offset: self.float()?,
            },
            5 => Activation::HardSwish,
            6 => Activation::Sigmoid,
            7 => Activation::Silu,
            8 => Activation::Gelu,
            9 => Activation::GeluTanh,
            tag => return Err(unknown("a function", tag.into())),
        })
    }

    fn windows(&mut self) -> Decoded<Windows> {
        Ok(Windows {
            planes: self.size()?,
            input: self.sizes()?,
            output: self.sizes()?,
            kernel: self.sizes()?,
            stride: self.sizes()?,
            before: self.sizes()?,
        })
    }

    fn strides(&mut self) -> Decoded<Strides> {
        let [matrix, row, column] = self.sizes()?;
        Ok(Strides {
            matrix,
            row,
            column,
        })
    }

    fn node(&mut self) -> Decoded<Node> {
        Ok(Node {
            name: self.name()?,
            order: self.order()?,
            op: self.op()?,
        })
    }

    fn op(&mut self) -> Decoded<Op> {
        Ok(match self.0.u8()? {
            1 => Op::Linear(Box::new(self.linear()?)),
            2 => Op::Maxima {
                input: self.tensor()?,
                count: self.size()?,
            },
            3 => self.attention()?,
            4 => {
                let (batches, advance) = (self.size()?, self.sizes()?);
                let [matrices, rows, inner, cols] = self.sizes()?;
                let shape = Products {
                    matrices,
                    rows,
                    inner,
                    cols,
                    a: self.strides()?,
                    b: self.strides()?,
                    out: self.strides()?,
                };
                Op::Products {
                    shape,
                    batches,
                    advance,
                    inputs: [self.source()?, self.source()?],
                }
            }
            5 => Op::Chain {
                input: self.source()?,
                steps: self.list("steps", MAX_PARTS, Self::step)?,
            },
            6 => Op::Depthwise {
                input: self.source()?,
                windows: self.windows()?,
                filters: self.constant_id()?,
                bias: self.optional(Self::constant_id)?,
            },
            7 => Op::LayerNorm {
                input: self.source()?,
                cols: self.size()?,
                epsilon: self.float()?,
                gamma: self.optional(Self::constant_id)?,
                beta: self.optional(Self::constant_id)?,
            },
            8 => Op::Softmax {
                input: self.source()?,
                cols: self.size()?,
            },
            9 => Op::MaxPool {
                input: self.source()?,
                windows: self.windows()?,
            },
            10 => Op::SumPool {
                input: self.source()?,
                windows: self.windows()?,
                divisor: match self.0.u8()? {
                    1 => Divisor::One,
                    2 => Divisor::Window,
                    3 => Divisor::Present,
                    tag => return Err(unknown("a divisor", tag.into())),
                },
            },
            11 => Op::SumRows {
                input: self.source()?,
                cols: self.size()?,
                factor: self.float()?,
            },
            12 => Op::View {
                input: self.source()?,
                start: self.size()?,
                axes: self.list("axes", MAX_AXES, |reader| {
                    let [len, stride] = reader.sizes()?;
                    Ok(Axis { len, stride })
                })?,
            },
            13 => Op::Concat {
                outer: self.size()?,
                parts: self.list("parts", MAX_PARTS, |reader| {
                    Ok((reader.source()?, reader.size()?))
                })?,
            },
            14 => Op::Gather {
                table: self.constant_id()?,
                cols: self.size()?,
                indices: self.source()?,
            },
            15 => Op::Cast {
                input: self.source()?,
            },
            tag => return Err(unknown("an operator", tag.into())),
        })
    }

    fn step(&mut self) -> Decoded<Step> {
        let op = match self.0.u8()? {
            0 => return self.activation().map(Step::Activation),
            1 => Binary::Add,
            2 => Binary::Div,
            3 => Binary::Max,
            4 => Binary::Min,
            5 => Binary::Mul,
            6 => Binary::Sub,
            7 => Binary::SubFrom,
            tag => return Err(unknown("an operation", tag.into())),
        };
        let (source, run) = (self.source()?, self.size()?);
        Ok(Step::Binary(op, Spread { source, run }))
    }

    fn attention(&mut self) -> Decoded<Op> {
        let (batches, advance) = (self.size()?, self.sizes()?);
        let [heads, queries, keys, depth, width] = self.sizes()?;
        let shape = Attention {
            heads,
            queries,
            keys,
            depth,
            width,
            q: self.strides()?,
            k: self.strides()?,
            v: self.strides()?,
            out: self.strides()?,
            scale: self.optional(Self::float)?,
            mask: self.optional(Self::strides)?,
        };
        Ok(Op::Attention {
            shape,
            batches,
            advance,
            inputs: [self.source()?, self.source()?, self.source()?],
            mask: self.optional(Self::source)?,
        })
    }

    fn linear(&mut self) -> Decoded<Linear> {
        let spec = decode_layer(&mut self.0, 0)?;
        let (input, maxima, weights) = (self.tensor()?, self.tensor()?, self.constant_id()?);
        let steps = self.0.u32()?;
        let bound = Bound::new(steps).ok_or(DecodeError::TooMany {
            what: "steps of an activation",
            limit: Bound::LARGEST.steps().into(),
            got: steps.into(),
        })?;
        Ok(Linear {
            spec,
            input,
            maxima,
            weights,
            bound,
            factor: self.constant_id()?,
            bias: self.optional(Self::constant_id)?,
            pre: self.activation()?,
            residual: self.optional(Self::source)?,
            post: self.activation()?,
            pool: self.optional(Self::windows)?,
        })
    }
}
