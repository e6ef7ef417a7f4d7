//! What a node does.
//!
//! Linear maps are exact in integers; every other operator is a sequence of IEEE-754 binary32 operations in the order that
//! [`larvatus_kernels`] states, without fused multiply-add. Movements of data copy. So an operator has one result, bit for
//! bit, on every machine.

mod check;

use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::attention::{Attention, Products};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use larvatus_proto::program::LayerSpec;

use crate::tensor::{ConstantId, Source, TensorId};
pub(crate) use check::{Lookup, Made};

/// Longest side or step of a window of pooling or of a depthwise convolution.
pub const MAX_WINDOW: usize = 1 << 10;
/// Most axes of a movement.
pub const MAX_AXES: usize = 12;
/// Most steps of a chain, and most parts of a concatenation.
pub const MAX_PARTS: usize = 1 << 10;

/// A linear map with constant weights, and what follows it directly:
/// `pool(post(pre(y·step·factor + bias) + residual))`.
///
/// The input x becomes integers: `q = round(x · inverse)` clamped to ± bound, where step and inverse follow from the
/// maximum of the image (of a convolution) or of the row (of a product) as [`larvatus_kernels::fixed::scale`] says; y is
/// the exact integer map of q. Factors are applied in the order of [`larvatus_kernels::reveal`]: a row's, a column's.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// The map.
    pub spec: LayerSpec,
    /// What it reads, in the layout of the map.
    pub input: TensorId,
    /// The largest magnitude of each image or row of the input.
    pub maxima: TensorId,
    /// Integers: planes of all weights.
    pub weights: ConstantId,
    /// Integers are clamped to this; at most [`Bound::SHORT`].
    pub bound: Bound,
    /// One float for each output channel (or group and column).
    pub factor: ConstantId,
    /// One float for each output channel (or group and column).
    pub bias: Option<ConstantId>,
    /// Applied next.
    pub pre: Activation,
    /// Added next, element by element.
    pub residual: Option<Source>,
    /// Applied next.
    pub post: Activation,
    /// Maxima over windows of each channel, at last.
    pub pool: Option<Windows>,
}

impl Linear {
    /// Runs of the input that have a maximum each.
    pub fn scales(&self) -> usize {
        match &self.spec.shape {
            Shape::Conv(_) => self.spec.images,
            Shape::MatMul(_) => self.spec.images * self.spec.shape.input_rows_cols().0,
        }
    }

    /// Output channels, or groups times columns.
    pub fn channels(&self) -> usize {
        match &self.spec.shape {
            Shape::Conv(conv) => conv.out_channels,
            Shape::MatMul(matmul) => matmul.groups * matmul.columns,
        }
    }
}

/// The second operand of an operation, spread over the elements of the first: element i takes value i / run mod count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    /// The values.
    pub source: Source,
    /// Neighbours that share one.
    pub run: usize,
}

/// One operation of a chain.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// An operation with another operand.
    Binary(Binary, Spread),
    /// A function.
    Activation(Activation),
}

/// An axis of a movement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Axis {
    /// Elements of the output along it.
    pub len: usize,
    /// From one to the next in the source; 0 repeats.
    pub stride: usize,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// A linear map with what follows it.
    Linear(Box<Linear>),
    /// The largest magnitude of each of `count` equal runs. It must be finite.
    Maxima {
        /// Of what.
        input: TensorId,
        /// How many runs.
        count: usize,
    },
    /// softmax(Q·Kᵀ·scale + mask)·V, `batches` times; `advance` says how far apart the batches are in Q, K, V, the mask and
    /// the output.
    Attention {
        /// The geometry of one batch.
        shape: Attention,
        /// How often.
        batches: usize,
        /// Of Q, K, V, the mask and the output.
        advance: [usize; 5],
        /// Q, K and V.
        inputs: [Source; 3],
        /// Where the geometry has one.
        mask: Option<Source>,
    },
    /// Products of matrices, `batches` times.
    Products {
        /// The geometry of one batch.
        shape: Products,
        /// How often.
        batches: usize,
        /// Of both operands and the output.
        advance: [usize; 3],
        /// Both operands.
        inputs: [Source; 2],
    },
    /// Elementwise steps.
    Chain {
        /// What they start from.
        input: Source,
        /// In their order.
        steps: Vec<Step>,
    },
    /// A convolution of each channel with a filter of its own, in floats.
    Depthwise {
        /// The planes.
        input: Source,
        /// The geometry.
        windows: Windows,
        /// One filter for each channel.
        filters: ConstantId,
        /// One number for each channel.
        bias: Option<ConstantId>,
    },
    /// Layer normalisation of rows.
    LayerNorm {
        /// The rows.
        input: Source,
        /// Elements of a row.
        cols: usize,
        /// Added to the variance.
        epsilon: f32,
        /// A factor for each column.
        gamma: Option<ConstantId>,
        /// A summand for each column.
        beta: Option<ConstantId>,
    },
    /// Softmax of rows.
    Softmax {
        /// The rows.
        input: Source,
        /// Elements of a row.
        cols: usize,
    },
    /// Maxima over windows.
    MaxPool {
        /// The planes.
        input: Source,
        /// The geometry.
        windows: Windows,
    },
    /// Sums over windows, divided.
    SumPool {
        /// The planes.
        input: Source,
        /// The geometry.
        windows: Windows,
        /// What a sum is divided by.
        divisor: Divisor,
    },
    /// Sums of rows, times a factor.
    SumRows {
        /// The rows.
        input: Source,
        /// Elements of a row.
        cols: usize,
        /// The factor.
        factor: f32,
    },
    /// Elements of the source at `start + Σ index·stride`: transposed, cut out, repeated.
    View {
        /// From where.
        input: Source,
        /// The first element.
        start: usize,
        /// The axes of the output, outermost first.
        axes: Vec<Axis>,
    },
    /// Parts side by side: `outer` times a piece of each.
    Concat {
        /// How often.
        outer: usize,
        /// What, and how many elements each time.
        parts: Vec<(Source, usize)>,
    },
    /// Rows of a table.
    Gather {
        /// The table.
        table: ConstantId,
        /// Elements of a row.
        cols: usize,
        /// Numbers of rows; negative ones count from the end.
        indices: Source,
    },
    /// Integers as floats, rounded to nearest.
    Cast {
        /// The integers.
        input: Source,
    },
}
impl Op {
    /// What it is, for people.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Linear(linear) => match &linear.spec.shape {
                Shape::Conv(_) => "convolution",
                Shape::MatMul(_) => "product with weights",
            },
            Self::Maxima { .. } => "maxima",
            Self::Attention { .. } => "attention",
            Self::Products { .. } => "product",
            Self::Chain { .. } => "elementwise",
            Self::Depthwise { .. } => "depthwise convolution",
            Self::LayerNorm { .. } => "layer normalisation",
            Self::Softmax { .. } => "softmax",
            Self::MaxPool { .. } => "maximum pooling",
            Self::SumPool { .. } => "pooling",
            Self::SumRows { .. } => "sums of rows",
            Self::View { .. } => "movement",
            Self::Concat { .. } => "concatenation",
            Self::Gather { .. } => "table",
            Self::Cast { .. } => "integers as floats",
        }
    }

    /// What it reads, each mention once more.
    pub fn sources(&self) -> Vec<Source> {
        let constant = |id: &ConstantId| Source::Constant(*id);
        match self {
            Self::Linear(linear) => {
                let mut all = vec![
                    linear.input.into(),
                    linear.maxima.into(),
                    constant(&linear.weights),
                    constant(&linear.factor),
                ];
                all.extend(linear.bias.iter().map(constant));
                all.extend(linear.residual);
                all
            }
            Self::Maxima { input, .. } => vec![(*input).into()],
            Self::Attention { inputs, mask, .. } => inputs.iter().copied().chain(*mask).collect(),
            Self::Products { inputs, .. } => inputs.to_vec(),
            Self::Chain { input, steps } => {
                let others = steps.iter().filter_map(|step| match step {
                    Step::Binary(_, spread) => Some(spread.source),
                    Step::Activation(_) => None,
                });
                std::iter::once(*input).chain(others).collect()
            }
            Self::Depthwise {
                input,
                filters,
                bias,
                ..
            } => {
                let mut all = vec![*input, constant(filters)];
                all.extend(bias.iter().map(constant));
                all
            }
            Self::LayerNorm {
                input, gamma, beta, ..
            } => {
                let vectors = gamma.iter().chain(beta).map(constant);
                std::iter::once(*input).chain(vectors).collect()
            }
            Self::Softmax { input, .. }
            | Self::MaxPool { input, .. }
            | Self::SumPool { input, .. }
            | Self::SumRows { input, .. }
            | Self::View { input, .. }
            | Self::Cast { input } => vec![*input],
            Self::Concat { parts, .. } => parts.iter().map(|part| part.0).collect(),
            Self::Gather { table, indices, .. } => vec![constant(table), *indices],
        }
    }

    /// Numbers the constants that it names anew.
    pub fn renumber(&mut self, number: impl Fn(ConstantId) -> ConstantId) {
        let source = |source: &mut Source| {
            if let Source::Constant(id) = source {
                *id = number(*id);
            }
        };
        let constant = |id: &mut ConstantId| *id = number(*id);
        match self {
            Self::Linear(linear) => {
                constant(&mut linear.weights);
                constant(&mut linear.factor);
                linear.bias.iter_mut().for_each(constant);
                linear.residual.iter_mut().for_each(source);
            }
            Self::Maxima { .. } => {}
            Self::Attention { inputs, mask, .. } => {
                inputs.iter_mut().chain(mask).for_each(source);
            }
            Self::Products { inputs, .. } => inputs.iter_mut().for_each(source),
            Self::Chain { input, steps } => {
                source(input);
                for step in steps {
                    if let Step::Binary(_, spread) = step {
                        source(&mut spread.source);
                    }
                }
            }
            Self::Depthwise {
                input,
                filters,
                bias,
                ..
            } => {
                source(input);
                constant(filters);
                bias.iter_mut().for_each(constant);
            }
            Self::LayerNorm {
                input, gamma, beta, ..
            } => {
                source(input);
                gamma.iter_mut().chain(beta).for_each(constant);
            }
            Self::Softmax { input, .. }
            | Self::MaxPool { input, .. }
            | Self::SumPool { input, .. }
            | Self::SumRows { input, .. }
            | Self::View { input, .. }
            | Self::Cast { input } => source(input),
            Self::Concat { parts, .. } => parts.iter_mut().for_each(|part| source(&mut part.0)),
            Self::Gather { table, indices, .. } => {
                constant(table);
                source(indices);
            }
        }
    }
}
