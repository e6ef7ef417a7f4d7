//! What a node does.
//!
//! Linear maps are exact in integers; every other operator is a sequence of IEEE-754 binary32 operations in the order that
//! [`larvatus_kernels`] states, without fused multiply-add. Movements of data copy. So an operator has one result, bit for
//! bit, on every machine.

use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::attention::{Attention, Products, Strides};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use larvatus_proto::program::{LayerSpec, MAX_IMAGES, MAX_WORDS};

use crate::graph::{Element, Problem};
use crate::tensor::{ConstantId, Kind, Source, TensorId};

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

/// What an operator makes, and what it costs in multiplications or elements touched.
pub(crate) struct Made {
    pub(crate) kind: Kind,
    pub(crate) elements: usize,
    pub(crate) cost: u64,
}

/// What a source holds.
pub(crate) trait Lookup {
    fn source(&self, source: Source) -> Result<(Element, usize), Problem>;
}

fn times(factors: &[usize]) -> Result<usize, Problem> {
    let product = factors
        .iter()
        .try_fold(1_usize, |all, f| all.checked_mul(*f));
    match product {
        Some(product) if (1..=MAX_WORDS).contains(&product) => Ok(product),
        _ => Err(Problem("a size that is zero or too large")),
    }
}

fn equal(a: usize, b: usize) -> Result<(), Problem> {
    if a == b {
        Ok(())
    } else {
        Err(Problem("sizes that contradict each other"))
    }
}

fn ensure(holds: bool, what: &'static str) -> Result<(), Problem> {
    if holds { Ok(()) } else { Err(Problem(what)) }
}

/// That all elements lie within `len`: axes of (length, stride).
fn within(len: usize, start: usize, axes: &[(usize, usize)]) -> Result<(), Problem> {
    let mut last = Some(start);
    for &(count, stride) in axes {
        ensure(count > 0, "an axis without elements")?;
        last = last
            .zip((count - 1).checked_mul(stride))
            .and_then(|(last, step)| last.checked_add(step));
    }
    ensure(
        last.is_some_and(|last| last < len),
        "elements beyond the end",
    )
}

/// That the axes reach every one of `len` elements once.
fn dense(len: usize, axes: &[(usize, usize)]) -> Result<(), Problem> {
    let mut axes: Vec<_> = axes.iter().filter(|axis| axis.0 != 1).collect();
    axes.sort_by_key(|axis| axis.1);
    let mut next = 1_usize;
    for &&(count, stride) in &axes {
        ensure(stride == next, "an output that is not written once")?;
        next = next
            .checked_mul(count)
            .ok_or(Problem("a size that is too large"))?;
    }
    equal(len, next)
}

fn strides(of: Strides, rows: usize, columns: usize) -> [(usize, usize); 2] {
    [(rows, of.row), (columns, of.column)]
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

    /// Holds every size and place against what there is.
    pub(crate) fn check(&self, of: &impl Lookup) -> Result<Made, Problem> {
        let floats = |source: Source| match of.source(source)? {
            (Element::F32, len) => Ok(len),
            _ => Err(Problem("an operand that is not of floats")),
        };
        let table = |id: &ConstantId| floats(Source::Constant(*id));
        let made = |elements: usize, cost: usize| Made {
            kind: Kind::F32,
            elements,
            cost: cost as u64,
        };
        match self {
            Self::Linear(linear) => check_linear(linear, of),
            Self::Maxima { input, count } => {
                let len = floats((*input).into())?;
                ensure(
                    *count > 0 && len.is_multiple_of(*count),
                    "runs that are not equal",
                )?;
                Ok(made(*count, len))
            }
            Self::Attention {
                shape,
                batches,
                advance,
                inputs,
                mask,
            } => {
                let Attention {
                    heads,
                    queries,
                    keys,
                    depth,
                    width,
                    ..
                } = *shape;
                let elements = times(&[*batches, heads, queries, width])?;
                let operand = |source, at: usize, strided: Strides, rows, columns| {
                    let len = floats(source)?;
                    // Each matrix is packed: it may not grow by reading elements again.
                    ensure(times(&[rows, columns])? <= len, "an operand that repeats")?;
                    let [row, column] = strides(strided, rows, columns);
                    let step = advance.get(at).copied().unwrap_or(0);
                    within(
                        len,
                        0,
                        &[(*batches, step), (heads, strided.matrix), row, column],
                    )
                };
                let [q, k, v] = *inputs;
                operand(q, 0, shape.q, queries, depth)?;
                operand(k, 1, shape.k, keys, depth)?;
                operand(v, 2, shape.v, keys, width)?;
                match (mask, shape.mask) {
                    (None, None) => equal(0, advance[3])?,
                    (Some(mask), Some(strided)) => {
                        let len = floats(*mask)?;
                        let [row, column] = strides(strided, queries, keys);
                        ensure(
                            strided.column == 1 && keys <= len,
                            "a mask whose columns are no neighbours",
                        )?;
                        within(
                            len,
                            0,
                            &[(*batches, advance[3]), (heads, strided.matrix), row, column],
                        )?;
                    }
                    _ => return Err(Problem("a mask and no place for it")),
                }
                ensure(shape.out.column == 1, "columns that are no neighbours")?;
                let [row, column] = strides(shape.out, queries, width);
                dense(
                    elements,
                    &[
                        (*batches, advance[4]),
                        (heads, shape.out.matrix),
                        row,
                        column,
                    ],
                )?;
                ensure(
                    shape.scale.is_none_or(f32::is_finite),
                    "a factor that is not finite",
                )?;
                let scores = times(&[*batches, heads, queries, keys])?;
                Ok(Made {
                    kind: Kind::F32,
                    elements,
                    cost: scores as u64 * (depth + width) as u64,
                })
            }
            Self::Products {
                shape,
                batches,
                advance,
                inputs,
            } => {
                let Products {
                    matrices,
                    rows,
                    inner,
                    cols,
                    ..
                } = *shape;
                let elements = times(&[*batches, matrices, rows, cols])?;
                let operand = |source, step, strided: Strides, rows, columns| {
                    let len = floats(source)?;
                    ensure(times(&[rows, columns])? <= len, "an operand that repeats")?;
                    let [row, column] = strides(strided, rows, columns);
                    within(
                        len,
                        0,
                        &[(*batches, step), (matrices, strided.matrix), row, column],
                    )
                };
                operand(inputs[0], advance[0], shape.a, rows, inner)?;
                operand(inputs[1], advance[1], shape.b, inner, cols)?;
                ensure(shape.out.column == 1, "columns that are no neighbours")?;
                let [row, column] = strides(shape.out, rows, cols);
                dense(
                    elements,
                    &[
                        (*batches, advance[2]),
                        (matrices, shape.out.matrix),
                        row,
                        column,
                    ],
                )?;
                Ok(Made {
                    kind: Kind::F32,
                    elements,
                    cost: elements as u64 * inner as u64,
                })
            }
            Self::Chain { input, steps } => {
                let len = floats(*input)?;
                ensure(
                    (1..=MAX_PARTS).contains(&steps.len()),
                    "a chain without steps or with too many",
                )?;
                for step in steps {
                    match step {
                        Step::Activation(activation) => check_activation(*activation)?,
                        Step::Binary(_, spread) => {
                            let period = times(&[floats(spread.source)?, spread.run])?;
                            ensure(len.is_multiple_of(period), "an operand that does not cover")?;
                        }
                    }
                }
                Ok(made(len, len.saturating_mul(steps.len())))
            }
            Self::Depthwise {
                input,
                windows,
                filters,
                bias,
            } => {
                let elements = check_windows(windows, floats(*input)?)?;
                let taps = windows.kernel[0] * windows.kernel[1];
                let filters = table(filters)?;
                let channels = filters / taps;
                ensure(
                    (1..=2).contains(&windows.stride[1]) && channels > 0,
                    "windows further apart than two",
                )?;
                equal(filters, channels * taps)?;
                ensure(
                    windows.planes.is_multiple_of(channels),
                    "planes without a filter",
                )?;
                if let Some(bias) = bias {
                    equal(channels, table(bias)?)?;
                }
                Ok(Made {
                    kind: Kind::F32,
                    elements,
                    cost: elements as u64 * taps as u64,
                })
            }
            Self::LayerNorm {
                input,
                cols,
                epsilon,
                gamma,
                beta,
            } => {
                let len = floats(*input)?;
                rows(len, *cols)?;
                ensure(epsilon.is_finite(), "an epsilon that is not finite")?;
                for vector in gamma.iter().chain(beta) {
                    equal(*cols, table(vector)?)?;
                }
                Ok(made(len, len))
            }
            Self::Softmax { input, cols } => {
                let len = floats(*input)?;
                rows(len, *cols)?;
                Ok(made(len, len))
            }
            Self::MaxPool { input, windows } => {
                let len = floats(*input)?;
                Ok(made(check_windows(windows, len)?, len))
            }
            Self::SumPool {
                input,
                windows,
                divisor: _,
            } => {
                let len = floats(*input)?;
                Ok(made(check_windows(windows, len)?, len))
            }
            Self::SumRows {
                input,
                cols,
                factor,
            } => {
                let len = floats(*input)?;
                ensure(factor.is_finite(), "a factor that is not finite")?;
                Ok(made(rows(len, *cols)?, len))
            }
            Self::View { input, start, axes } => {
                let (kind, len) = tensor_kind(of.source(*input)?)?;
                ensure(axes.len() <= MAX_AXES, "too many axes")?;
                let lens: Vec<usize> = axes.iter().map(|axis| axis.len).collect();
                let elements = times(&lens)?;
                let axes: Vec<_> = axes.iter().map(|axis| (axis.len, axis.stride)).collect();
                within(len, *start, &axes)?;
                Ok(Made {
                    kind,
                    elements,
                    cost: elements as u64,
                })
            }
            Self::Concat { outer, parts } => {
                ensure(
                    (2..=MAX_PARTS).contains(&parts.len()),
                    "a concatenation of too few or too many",
                )?;
                let mut inner = 0_usize;
                let mut kinds = Vec::new();
                for (source, len) in parts {
                    let (kind, elements) = tensor_kind(of.source(*source)?)?;
                    equal(elements, times(&[*outer, *len])?)?;
                    inner = inner.saturating_add(*len);
                    kinds.push(kind);
                }
                let kind = kinds.first().copied().unwrap_or(Kind::F32);
                ensure(kinds.iter().all(|k| *k == kind), "parts of two kinds")?;
                let elements = times(&[*outer, inner])?;
                Ok(Made {
                    kind,
                    elements,
                    cost: elements as u64,
                })
            }
            Self::Gather {
                table: values,
                cols,
                indices,
            } => {
                rows(table(values)?, *cols)?;
                let (Element::I64, count) = of.source(*indices)? else {
                    return Err(Problem("numbers of rows that are no integers"));
                };
                let elements = times(&[count, *cols])?;
                Ok(made(elements, elements))
            }
            Self::Cast { input } => {
                let (Element::I64, count) = of.source(*input)? else {
                    return Err(Problem("an operand that is not of integers"));
                };
                Ok(made(count, count))
            }
        }
    }
}

/// The number of rows.
fn rows(len: usize, cols: usize) -> Result<usize, Problem> {
    ensure(
        cols > 0 && len.is_multiple_of(cols),
        "rows that are not equal",
    )?;
    Ok(len / cols)
}

fn tensor_kind((element, len): (Element, usize)) -> Result<(Kind, usize), Problem> {
    match element {
        Element::F32 => Ok((Kind::F32, len)),
        Element::I64 => Ok((Kind::I64, len)),
        Element::I8 => Err(Problem("weights that are moved")),
    }
}

/// Elements of the output.
fn check_windows(windows: &Windows, input: usize) -> Result<usize, Problem> {
    let Windows {
        planes,
        input: [height, width],
        output,
        kernel,
        stride,
        before,
    } = windows;
    equal(input, times(&[*planes, *height, *width])?)?;
    for axis in 0..2 {
        let (kernel, stride, before) = (kernel[axis], stride[axis], before[axis]);
        ensure(
            (1..=MAX_WINDOW).contains(&kernel)
                && (1..=MAX_WINDOW).contains(&stride)
                && before < kernel,
            "a window without a size or too large",
        )?;
        // Every window has something of the input.
        let last = output[axis]
            .checked_sub(1)
            .and_then(|n| n.checked_mul(stride));
        let reach = windows.input[axis] + before;
        ensure(
            last.is_some_and(|last| last < reach),
            "windows beyond the input",
        )?;
    }
    times(&[*planes, output[0], output[1]])
}

/// That a function is one that is known here and its numbers are usable.
fn check_activation(activation: Activation) -> Result<(), Problem> {
    let good = match activation {
        Activation::None
        | Activation::Relu
        | Activation::HardSwish
        | Activation::Sigmoid
        | Activation::Silu
        | Activation::Gelu
        | Activation::GeluTanh => true,
        Activation::LeakyRelu { slope } => slope.is_finite(),
        Activation::Clip { low, high } => low <= high,
        Activation::HardSigmoid { slope, offset } => slope.is_finite() && offset.is_finite(),
        _ => false,
    };
    ensure(good, "a function that is not known")
}

fn check_linear(linear: &Linear, of: &impl Lookup) -> Result<Made, Problem> {
    let Linear {
        spec,
        input,
        maxima,
        weights,
        bound,
        factor,
        bias,
        pre,
        residual,
        post,
        pool,
    } = linear;
    let floats = |source: Source, expected: usize| match of.source(source)? {
        (Element::F32, len) => equal(expected, len),
        _ => Err(Problem("an operand that is not of floats")),
    };
    ensure(
        (1..=MAX_IMAGES).contains(&spec.images),
        "no images or too many",
    )?;
    let inputs = times(&[spec.images, spec.shape.inputs()])?;
    let outputs = times(&[spec.images, spec.shape.outputs()])?;
    let (planes, shift) = (usize::from(spec.planes), usize::from(spec.shift));
    ensure(
        matches!((planes, shift), (1, 0))
            || (2..=4).contains(&planes) && shift > 0 && shift * (planes - 1) <= 30,
        "planes of weights that do not go together",
    )?;
    ensure(*bound <= Bound::SHORT, "a bound beyond 16 bits")?;
    floats((*input).into(), inputs)?;
    floats((*maxima).into(), linear.scales())?;
    let (Element::I8, count) = of.source(Source::Constant(*weights))? else {
        return Err(Problem("weights that are no bytes"));
    };
    equal(count, times(&[planes, spec.shape.weights()])?)?;
    floats(Source::Constant(*factor), linear.channels())?;
    if let Some(bias) = bias {
        floats(Source::Constant(*bias), linear.channels())?;
    }
    if let Some(residual) = residual {
        floats(*residual, outputs)?;
    }
    check_activation(*pre)?;
    check_activation(*post)?;
    if let Shape::Conv(conv) = &spec.shape {
        // Every window has something of the input, so that a part of the output is a convolution too.
        for axis in 0..2 {
            let reach = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1;
            let last = (conv.output()[axis] - 1) * conv.stride[axis];
            ensure(
                conv.pad_begin[axis] < reach && last < conv.input[axis] + conv.pad_begin[axis],
                "windows beyond the input",
            )?;
        }
    }
    let elements = match pool {
        None => outputs,
        Some(windows) => {
            let Shape::Conv(conv) = &spec.shape else {
                return Err(Problem("pooling of what is no plane"));
            };
            let [height, width] = conv.output();
            equal(windows.planes, times(&[spec.images, conv.out_channels])?)?;
            // A plane may be seen as another rectangle of as many pixels.
            equal(height * width, times(&windows.input)?)?;
            ensure(
                windows.input == [height, width] || height == 1 && conv.kernel == [1, 1],
                "pooling of another plane",
            )?;
            check_windows(windows, outputs)?
        }
    };
    let cost = spec.shape.macs().saturating_mul(spec.images as u64);
    Ok(Made {
        kind: Kind::F32,
        elements,
        cost,
    })
}
