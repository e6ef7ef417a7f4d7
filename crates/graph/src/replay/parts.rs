//! What a part of a node reads and makes.

use std::ops::Range;

use larvatus_kernels::linear::{Conv, Shape, ShapeError, Valid};
use larvatus_kernels::local::attention::Strides;
use larvatus_kernels::local::pool::Windows;

use crate::graph::Graph;
use crate::local;
use crate::op::{Linear, Op};
use crate::tensor::{Order, Source, TensorSpec};
use crate::units::Part;

/// What a part of a node reads and makes, as runs of elements in memory.
pub(crate) struct Reads {
    /// In the order in which [`Audit::compute`] takes them.
    pub(crate) inputs: Vec<(Source, Vec<Range<usize>>)>,
    /// In the order in which it makes them.
    pub(crate) output: Vec<Range<usize>>,
}

/// The same rectangle of several planes, as runs.
fn rectangle(
    planes: Range<usize>,
    [height, width]: [usize; 2],
    rows: &Range<usize>,
    cols: &Range<usize>,
) -> Vec<Range<usize>> {
    if *cols == (0..width) {
        let plane = |plane: usize| {
            let base = plane * height * width;
            base + rows.start * width..base + rows.end * width
        };
        return planes.map(plane).collect();
    }
    let lines = planes.flat_map(|plane| rows.clone().map(move |row| plane * height + row));
    let line = |line: usize| line * width + cols.start..line * width + cols.end;
    lines.map(line).collect()
}

/// A matrix in a buffer, row by row, as runs; columns that are no neighbours one by one.
fn matrix(start: usize, strides: Strides, rows: Range<usize>, columns: usize) -> Vec<Range<usize>> {
    let mut all = Vec::new();
    for row in rows {
        let at = start + row * strides.row;
        if strides.column == 1 {
            all.push(at..at + columns);
        } else {
            all.extend((0..columns).map(|column| {
                let at = at + column * strides.column;
                at..at + 1
            }));
        }
    }
    all
}

/// What a range of windows' outputs along one axis covers of the input: (first, end, before the first).
fn covered(
    input: usize,
    kernel: usize,
    stride: usize,
    before: usize,
    out: &Range<usize>,
) -> (Range<usize>, usize) {
    let start = out.start * stride;
    let end = out.end.saturating_sub(1) * stride + kernel;
    let first = start.saturating_sub(before).min(input);
    let last = end.saturating_sub(before).min(input);
    (first..last.max(first), before.saturating_sub(start))
}

/// A convolution's part: what it reads, and the convolution that makes it.
pub(super) struct ConvPart {
    /// Lines and columns of the result before pooling.
    pub(super) out: [Range<usize>; 2],
    pub(super) input: [Range<usize>; 2],
    pub(super) shape: Result<Shape, ShapeError>,
    /// The pooling of the part.
    pub(super) pool: Option<Windows>,
}

pub(super) fn conv_part(
    conv: &Valid<Conv>,
    pool: Option<&Windows>,
    channels: &Range<usize>,
    rows: &Range<usize>,
    cols: &Range<usize>,
) -> ConvPart {
    let full = conv.output();
    let mut out = [rows.clone(), cols.clone()];
    let mut pooling = None;
    if let Some(windows) = pool {
        let mut before = [0; 2];
        let mut within = [0..0, 0..0];
        for (axis, range) in [rows, cols].into_iter().enumerate() {
            let (covers, ahead) = covered(
                windows.input[axis],
                windows.kernel[axis],
                windows.stride[axis],
                windows.before[axis],
                range,
            );
            before[axis] = ahead;
            within[axis] = covers;
        }
        let [lines, columns] = &within;
        pooling = Some(Windows {
            planes: channels.len(),
            input: [lines.len(), columns.len()],
            output: [rows.len(), cols.len()],
            kernel: windows.kernel,
            stride: windows.stride,
            before,
        });
        // A product over planes sees all lines as one.
        out = if windows.input == full {
            within
        } else {
            let width = windows.input[1];
            [0..1, lines.start * width..lines.end * width]
        };
    }
    let mut input = [0..0, 0..0];
    let (mut sizes, mut begin, mut end) = ([0; 2], [0; 2], [0; 2]);
    for axis in 0..2 {
        let reach = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1;
        let (range, ahead) = covered(
            conv.input[axis],
            reach,
            conv.stride[axis],
            conv.pad_begin[axis],
            &out[axis],
        );
        let wanted = (out[axis].len().max(1) - 1) * conv.stride[axis] + reach;
        sizes[axis] = range.len();
        begin[axis] = ahead;
        end[axis] = wanted.saturating_sub(ahead + range.len());
        input[axis] = range;
    }
    let shape = Shape::conv(Conv {
        groups: conv.groups,
        in_channels: conv.in_channels,
        out_channels: channels.len(),
        input: sizes,
        kernel: conv.kernel,
        stride: conv.stride,
        dilation: conv.dilation,
        pad_begin: begin,
        pad_end: end,
    });
    ConvPart {
        out,
        input,
        shape,
        pool: pooling,
    }
}

/// Windows of some lines of the output, and the lines of the input that they cover.
pub(super) fn windows_part(windows: &Windows, rows: &Range<usize>) -> (Windows, Range<usize>) {
    let (lines, before) = covered(
        windows.input[0],
        windows.kernel[0],
        windows.stride[0],
        windows.before[0],
        rows,
    );
    let part = Windows {
        planes: windows.planes,
        input: [lines.len(), windows.input[1]],
        output: [rows.len(), windows.output[1]],
        kernel: windows.kernel,
        stride: windows.stride,
        before: [before, windows.before[1]],
    };
    (part, lines)
}

/// Where lines of all channels of an image, or elements, lie.
pub(super) fn placed(spec: &TensorSpec, image: usize, steps: &Range<usize>) -> Vec<Range<usize>> {
    match spec.order {
        Order::Flat => vec![steps.clone()],
        Order::Lines {
            channels,
            lines,
            width,
            ..
        } => rectangle(
            image * channels..(image + 1) * channels,
            [lines, width],
            steps,
            &(0..width),
        ),
    }
}

/// Joins elements that follow each other in the same source.
fn join(all: &mut Vec<(Source, Vec<Range<usize>>)>, source: Source, range: Range<usize>) {
    if let Some((last, runs)) = all.last_mut()
        && *last == source
    {
        match runs.last_mut() {
            Some(run) if run.end == range.start => run.end = range.end,
            _ => runs.push(range),
        }
        return;
    }
    all.push((source, vec![range]));
}

/// What a part reads and makes.
pub(crate) fn reads(graph: &Graph, node: usize, op: &Op, part: &Part) -> Reads {
    let own = graph.tensors().get(graph.made_by(node).index());
    let len = |source: Source| match source {
        Source::Tensor(id) => graph
            .tensors()
            .get(id.index())
            .map_or(0, |spec| spec.elements),
        Source::Constant(id) => graph
            .constants()
            .get(id.index())
            .map_or(0, |spec| spec.elements),
    };
    let mut inputs: Vec<(Source, Vec<Range<usize>>)> = Vec::new();
    let mut output = Vec::new();
    match (op, part) {
        (Op::Linear(linear), part) => return reads_linear(linear, part),
        (Op::Maxima { input, count }, Part::Rows(rows)) => {
            let each = len((*input).into()) / count;
            inputs.push(((*input).into(), vec![rows.start * each..rows.end * each]));
            output.push(rows.clone());
        }
        (
            Op::Attention {
                shape,
                advance,
                inputs: [q, k, v],
                mask,
                ..
            },
            Part::Head { batch, head, rows },
        ) => {
            let at = |index: usize, strides: Strides| {
                batch * advance.get(index).copied().unwrap_or(0) + head * strides.matrix
            };
            let keys = 0..shape.keys;
            inputs.push((
                *q,
                matrix(at(0, shape.q), shape.q, rows.clone(), shape.depth),
            ));
            inputs.push((
                *k,
                matrix(at(1, shape.k), shape.k, keys.clone(), shape.depth),
            ));
            inputs.push((*v, matrix(at(2, shape.v), shape.v, keys, shape.width)));
            if let (Some(mask), Some(strides)) = (mask, shape.mask) {
                inputs.push((
                    *mask,
                    matrix(at(3, strides), strides, rows.clone(), shape.keys),
                ));
            }
            output = matrix(at(4, shape.out), shape.out, rows.clone(), shape.width);
        }
        (
            Op::Products {
                shape,
                advance,
                inputs: [a, b],
                ..
            },
            Part::Head { batch, head, rows },
        ) => {
            let at = |index: usize, strides: Strides| {
                batch * advance.get(index).copied().unwrap_or(0) + head * strides.matrix
            };
            inputs.push((
                *a,
                matrix(at(0, shape.a), shape.a, rows.clone(), shape.inner),
            ));
            inputs.push((
                *b,
                matrix(at(1, shape.b), shape.b, 0..shape.inner, shape.cols),
            ));
            output = matrix(at(2, shape.out), shape.out, rows.clone(), shape.cols);
        }
        (
            Op::Depthwise { input, windows, .. }
            | Op::MaxPool { input, windows }
            | Op::SumPool { input, windows, .. },
            Part::Rows(rows),
        ) => {
            let (_, lines) = windows_part(windows, rows);
            let (planes, [_, width]) = (0..windows.planes, windows.input);
            inputs.push((
                *input,
                rectangle(planes.clone(), windows.input, &lines, &(0..width)),
            ));
            output = rectangle(planes, windows.output, rows, &(0..windows.output[1]));
        }
        (Op::LayerNorm { input, cols, .. } | Op::Softmax { input, cols }, Part::Rows(rows)) => {
            let run = rows.start * cols..rows.end * cols;
            inputs.push((*input, vec![run.clone()]));
            output.push(run);
        }
        (Op::SumRows { input, cols, .. }, Part::Rows(rows)) => {
            inputs.push((*input, vec![rows.start * cols..rows.end * cols]));
            output.push(rows.clone());
        }
        (Op::Gather { cols, indices, .. }, Part::Rows(rows)) => {
            inputs.push((*indices, vec![rows.clone()]));
            output.push(rows.start * cols..rows.end * cols);
        }
        (op, Part::Places { image, steps }) => {
            output = own.map_or(Vec::new(), |spec| placed(spec, *image, steps));
            match op {
                Op::Chain { input, .. } => {
                    inputs.push((*input, output.clone()));
                    for source in op.sources().into_iter().skip(1) {
                        let all = len(source);
                        let same = own.is_some_and(|spec| spec.elements == all);
                        let runs = if same { output.clone() } else { vec![0..all] };
                        inputs.push((source, runs));
                    }
                }
                Op::View { input, start, axes } => {
                    for element in output.iter().cloned().flatten() {
                        let at = local::view_element(*start, axes, element);
                        join(&mut inputs, *input, at..at + 1);
                    }
                }
                Op::Concat { parts, .. } => {
                    let inner: usize = parts.iter().map(|part| part.1).sum();
                    for element in output.iter().cloned().flatten() {
                        let (outer, mut within) = (element / inner, element % inner);
                        for (source, len) in parts {
                            if within < *len {
                                let at = outer * len + within;
                                join(&mut inputs, *source, at..at + 1);
                                break;
                            }
                            within -= len;
                        }
                    }
                }
                Op::Cast { input } => inputs.push((*input, output.clone())),
                _ => {}
            }
        }
        _ => {}
    }
    Reads { inputs, output }
}

fn reads_linear(linear: &Linear, part: &Part) -> Reads {
    let (mut inputs, mut output) = (Vec::new(), Vec::new());
    match (&linear.spec.shape, part) {
        (
            Shape::Conv(conv),
            Part::Conv {
                image,
                channels,
                rows,
                cols,
            },
        ) => {
            let geometry = conv_part(conv, linear.pool.as_ref(), channels, rows, cols);
            let of = |channels: usize, some: Range<usize>| {
                image * channels + some.start..image * channels + some.end
            };
            let [lines, columns] = &geometry.input;
            inputs.push((
                linear.input.into(),
                rectangle(
                    of(conv.in_channels, 0..conv.in_channels),
                    conv.input,
                    lines,
                    columns,
                ),
            ));
            inputs.push((linear.maxima.into(), vec![*image..image + 1]));
            let planes = of(conv.out_channels, channels.clone());
            if let Some(residual) = linear.residual {
                let [lines, columns] = &geometry.out;
                inputs.push((
                    residual,
                    rectangle(planes.clone(), conv.output(), lines, columns),
                ));
            }
            let plane = linear
                .pool
                .as_ref()
                .map_or(conv.output(), |pool| pool.output);
            output = rectangle(planes, plane, rows, cols);
        }
        (
            Shape::MatMul(matmul),
            Part::Product {
                image,
                group,
                rows,
                cols,
            },
        ) => {
            let first = (image * matmul.groups + group) * matmul.rows;
            let rows = first + rows.start..first + rows.end;
            inputs.push((
                linear.input.into(),
                vec![rows.start * matmul.inner..rows.end * matmul.inner],
            ));
            inputs.push((linear.maxima.into(), vec![rows.clone()]));
            output = rectangle(0..1, [rows.end, matmul.columns], &rows, cols);
            if let Some(residual) = linear.residual {
                inputs.push((residual, output.clone()));
            }
        }
        _ => {}
    }
    Reads { inputs, output }
}
