//! Reading the one encoding of a graph.

use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::local::attention::{Attention, Products, Strides};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use larvatus_proto::program::{MAX_WORDS, decode_layer};
use larvatus_proto::wire::{DecodeError, Reader};

use super::{MAX_CONSTANTS, MAX_GRAPH, VERSION};
use crate::graph::{
    ConstantSpec, Element, Graph, GraphError, Input, MAX_NAME, MAX_NODES, MAX_PORTS, MAX_RANK,
    Node, Output,
};
use crate::op::{Axis, Linear, MAX_AXES, MAX_PARTS, Op, Spread, Step};
use crate::tensor::{ConstantId, Kind, Order, Source, TensorId, TensorSpec};
use crate::units::Grain;

impl Graph {
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
        let grain = Grain {
            multiplications: reader.0.u32()?,
            elements: reader.0.u32()?,
        };
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
        Self::new(inputs, constants, nodes, outputs)?.with_grain(grain)
    }
}

fn unknown(what: &'static str, tag: u32) -> DecodeError {
    DecodeError::UnknownTag { what, tag }
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
