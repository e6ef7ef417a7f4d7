//! When an operator is well formed: every size and place is held against what there is.

use larvatus_kernels::activation::Activation;
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::attention::{Attention, Products, Strides};
use larvatus_kernels::local::pool::Windows;
use larvatus_proto::program::{MAX_IMAGES, MAX_WORDS};

use super::{Linear, MAX_AXES, MAX_PARTS, MAX_WINDOW, Op, Step};
use crate::graph::{Element, Problem};
use crate::tensor::{ConstantId, Kind, Source};

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
