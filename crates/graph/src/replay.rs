//! Recomputing a unit from what was opened of it, and comparing bit for bit.

use std::ops::Range;

use larvatus_kernels::WrongLength;
use larvatus_kernels::fixed::{MaxAbs, max_abs};
use larvatus_kernels::linear::{Conv, MatMul, Shape, ShapeError, ShortLinear, Valid};
use larvatus_kernels::local::attention::{
    Attention, Inputs, Products, Strides, attention, products,
};
use larvatus_kernels::local::depthwise::depthwise;
use larvatus_kernels::local::norm::{LayerNorm, layer_norm};
use larvatus_kernels::local::pool::{Windows, max_pool, sum_pool, sum_rows};
use larvatus_kernels::local::softmax::softmax;
use larvatus_proto::commit::{LEAF, LeafId, Opened};

use crate::graph::Graph;
use crate::local::{self, Around};
use crate::model::{Constants, Model};
use crate::op::{Linear, Op, Step};
use crate::tensor::{Kind, Order, Source, TensorId, TensorSpec};
use crate::units::{Part, UnitId};

/// Why a unit is not what its inputs give.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Mismatch {
    /// A value is another than the one that follows.
    #[error(
        "unit {unit}: element {element} of tensor {tensor} is {claimed:#018x}, {computed:#018x} follows"
    )]
    Differs {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element, as it lies in memory.
        element: usize,
        /// The bits that were committed to.
        claimed: u64,
        /// The bits that follow.
        computed: u64,
    },
    /// What is not a number. A run that makes such a value fails, so that no honest trace holds one.
    #[error("unit {unit}: element {element} of tensor {tensor} is not a number")]
    NotANumber {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// A value is larger than the maximum of its image or row.
    #[error(
        "unit {unit}: element {element} of tensor {tensor} exceeds the maximum that was committed to"
    )]
    AboveMaximum {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// A maximum that is none: negative, or not finite.
    #[error("unit {unit}: element {element} of tensor {tensor} is no maximum")]
    NoMaximum {
        /// The unit.
        unit: UnitId,
        /// The tensor's number.
        tensor: u32,
        /// The element.
        element: usize,
    },
    /// A number of a row that its table does not have.
    #[error("unit {unit}: no row {index} in its table")]
    Row {
        /// The unit.
        unit: UnitId,
        /// The number.
        index: i64,
    },
    /// A leaf that is needed was not opened. This shows no lie.
    #[error("unit {unit}: leaf {leaf} is not opened")]
    Missing {
        /// The unit.
        unit: UnitId,
        /// The leaf.
        leaf: LeafId,
    },
    /// There is no such unit, or the constants are not those of the graph. This shows no lie.
    #[error("unit {unit}: {problem}")]
    Refused {
        /// The unit.
        unit: UnitId,
        /// Why.
        problem: String,
    },
}

impl Mismatch {
    /// Whether it shows that who committed to the trace did not run the graph.
    pub fn is_lie(&self) -> bool {
        !matches!(self, Self::Missing { .. } | Self::Refused { .. })
    }
}

/// Where committed bytes are read from.
pub trait Leaves {
    /// The bytes of a leaf, if it is there.
    fn leaf(&self, leaf: LeafId) -> Option<&[u8]>;
}

impl Leaves for Opened {
    fn leaf(&self, leaf: LeafId) -> Option<&[u8]> {
        Self::leaf(self, leaf)
    }
}

impl Leaves for std::collections::BTreeMap<LeafId, Vec<u8>> {
    fn leaf(&self, leaf: LeafId) -> Option<&[u8]> {
        self.get(&leaf).map(Vec::as_slice)
    }
}

impl Model {
    /// Recomputes a unit from what was opened of it.
    ///
    /// `opened` must hold the leaves that [`Graph::needs`] names; that they are those that were committed to is for
    /// [`larvatus_proto::commit::Opening::verify`] to show.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn replay(&self, unit: UnitId, opened: &impl Leaves) -> Result<(), Mismatch> {
        self.graph().replay(self.weights(), unit, opened)
    }
}

impl Graph {
    /// [`Model::replay`] with the bytes of the constants, of which only those of one node are read.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn replay(
        &self,
        weights: &[u8],
        unit: UnitId,
        opened: &impl Leaves,
    ) -> Result<(), Mismatch> {
        let refused = |problem: &str| Mismatch::Refused {
            unit,
            problem: problem.to_owned(),
        };
        if weights.len() as u64 != self.weight_bytes() {
            return Err(refused("constants of another graph"));
        }
        let found = self.units_table().find(unit);
        let (index, part) = found.ok_or_else(|| refused("no such unit"))?;
        let node = self.nodes().get(index);
        let node = node.ok_or_else(|| refused("no such node"))?;
        let read = reads(self, index, &node.op, &part);
        let audit = Audit {
            graph: self,
            constants: Constants::new(self, weights),
            unit,
            opened,
        };
        let own = self.made_by(index);
        let claimed = audit.words(own, &read.output)?;
        let computed = audit.compute(&node.op, &part, &read)?;
        if claimed.len() != computed.len() {
            return Err(refused("a part of another size"));
        }
        let elements = read.output.iter().cloned().flatten();
        let is_float = self
            .tensors()
            .get(own.index())
            .is_some_and(|spec| spec.kind == Kind::F32);
        for (element, (claimed, computed)) in elements.zip(claimed.into_iter().zip(computed)) {
            if is_float && f32::from_bits(claimed as u32).is_nan() {
                return Err(Mismatch::NotANumber {
                    unit,
                    tensor: own.0,
                    element,
                });
            }
            if claimed != computed {
                return Err(Mismatch::Differs {
                    unit,
                    tensor: own.0,
                    element,
                    claimed,
                    computed,
                });
            }
        }
        Ok(())
    }
}

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
struct ConvPart {
    /// Lines and columns of the result before pooling.
    out: [Range<usize>; 2],
    input: [Range<usize>; 2],
    shape: Result<Shape, ShapeError>,
    /// The pooling of the part.
    pool: Option<Windows>,
}

fn conv_part(
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
fn windows_part(windows: &Windows, rows: &Range<usize>) -> (Windows, Range<usize>) {
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
fn placed(spec: &TensorSpec, image: usize, steps: &Range<usize>) -> Vec<Range<usize>> {
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

/// One unit, while it is recomputed.
struct Audit<'a, L> {
    graph: &'a Graph,
    constants: Constants<'a>,
    unit: UnitId,
    opened: &'a L,
}

impl<L: Leaves> Audit<'_, L> {
    fn refused(&self, problem: impl std::fmt::Display) -> Mismatch {
        Mismatch::Refused {
            unit: self.unit,
            problem: problem.to_string(),
        }
    }

    /// Committed bytes of elements.
    fn bytes(&self, tensor: TensorId, runs: &[Range<usize>]) -> Result<Vec<u8>, Mismatch> {
        let spec = self.graph.tensors().get(tensor.index());
        let spec = spec.ok_or_else(|| self.refused("no such tensor"))?;
        let each = spec.kind.bytes();
        let place = self.graph.place(tensor);
        let mut all = Vec::new();
        for run in runs {
            for (_, at, len) in spec.pieces(run.clone()) {
                let (mut from, to) = (at * each, (at + len) * each);
                while from < to {
                    let leaf = LeafId {
                        tensor: place,
                        leaf: u32::try_from(from / LEAF).unwrap_or(u32::MAX),
                    };
                    let unit = self.unit;
                    let missing = Mismatch::Missing { unit, leaf };
                    let within = from % LEAF;
                    let some = (to - from).min(LEAF - within);
                    let bytes = self.opened.leaf(leaf);
                    let bytes = bytes.and_then(|bytes| bytes.get(within..within + some));
                    all.extend_from_slice(bytes.ok_or(missing)?);
                    from += some;
                }
            }
        }
        Ok(all)
    }

    /// The bits of elements.
    fn words(&self, tensor: TensorId, runs: &[Range<usize>]) -> Result<Vec<u64>, Mismatch> {
        let bytes = self.bytes(tensor, runs)?;
        let spec = self.graph.tensors().get(tensor.index());
        Ok(match spec.map(|spec| spec.kind) {
            Some(Kind::I64) => {
                let words = bytes.as_chunks::<8>().0;
                words.iter().map(|word| u64::from_le_bytes(*word)).collect()
            }
            _ => {
                let words = bytes.as_chunks::<4>().0;
                words
                    .iter()
                    .map(|word| u32::from_le_bytes(*word).into())
                    .collect()
            }
        })
    }

    fn floats(&self, source: Source, runs: &[Range<usize>]) -> Result<Vec<f32>, Mismatch> {
        match source {
            Source::Constant(id) => {
                let runs = runs.iter().cloned();
                Ok(runs
                    .flat_map(|run| self.constants.floats(id, run))
                    .collect())
            }
            Source::Tensor(id) => {
                let bytes = self.bytes(id, runs)?;
                let words = bytes.as_chunks::<4>().0;
                Ok(words.iter().map(|word| f32::from_le_bytes(*word)).collect())
            }
        }
    }

    fn integers(&self, source: Source, runs: &[Range<usize>]) -> Result<Vec<i64>, Mismatch> {
        match source {
            Source::Constant(id) => {
                let runs = runs.iter().cloned();
                Ok(runs
                    .flat_map(|run| self.constants.integers(id, run))
                    .collect())
            }
            Source::Tensor(id) => {
                let words = self.words(id, runs)?;
                Ok(words.into_iter().map(u64::cast_signed).collect())
            }
        }
    }

    /// The bits that follow.
    fn compute(&self, op: &Op, part: &Part, read: &Reads) -> Result<Vec<u64>, Mismatch> {
        if let Op::View { .. } | Op::Concat { .. } = op {
            return self.moved(read);
        }
        if let Op::Cast { input } = op {
            let runs = read.inputs.first().map_or(&[][..], |input| &input.1);
            let x = self.integers(*input, runs)?;
            return Ok(x
                .into_iter()
                .map(|x| local::cast(x).to_bits().into())
                .collect());
        }
        if let (
            Op::Gather {
                table,
                cols,
                indices,
            },
            Part::Rows(rows),
        ) = (op, part)
        {
            let numbers = self.integers(*indices, std::slice::from_ref(rows))?;
            let height = self.constants.spec(*table).map_or(0, |spec| spec.elements) / cols;
            let mut all = Vec::new();
            for index in numbers {
                let unit = self.unit;
                let row = local::row(index, height).ok_or(Mismatch::Row { unit, index })?;
                all.extend(self.constants.floats(*table, row * cols..(row + 1) * cols));
            }
            return Ok(bits(&all));
        }
        let gathered = read
            .inputs
            .iter()
            .map(|(source, runs)| self.floats(*source, runs));
        let gathered = gathered.collect::<Result<Vec<_>, _>>()?;
        let size: usize = read.output.iter().map(ExactSizeIterator::len).sum();
        let mut y = vec![0.0; size];
        if let Op::Linear(linear) = op {
            self.linear(linear, part, read, &gathered, &mut y)?;
        } else {
            self.local(op, part, &gathered, &mut y)
                .map_err(|err| self.refused(err))?;
        }
        Ok(bits(&y))
    }

    /// Movements: the bits as they are.
    fn moved(&self, read: &Reads) -> Result<Vec<u64>, Mismatch> {
        let mut all = Vec::new();
        for (source, runs) in &read.inputs {
            match source {
                Source::Tensor(id) => all.extend(self.words(*id, runs)?),
                Source::Constant(id) => {
                    let is_float = self
                        .constants
                        .spec(*id)
                        .is_some_and(|spec| spec.element == crate::graph::Element::F32);
                    if is_float {
                        all.extend(bits(&self.floats(*source, runs)?));
                    } else {
                        let integers = self.integers(*source, runs)?;
                        all.extend(integers.into_iter().map(i64::cast_unsigned));
                    }
                }
            }
        }
        Ok(all)
    }

    fn local(
        &self,
        op: &Op,
        part: &Part,
        gathered: &[Vec<f32>],
        y: &mut [f32],
    ) -> Result<(), WrongLength> {
        let input = |index: usize| gathered.get(index).map(Vec::as_slice).unwrap_or_default();
        let x = input(0);
        let dense = |columns: usize| Strides {
            matrix: 0,
            row: columns,
            column: 1,
        };
        match (op, part) {
            (Op::Maxima { .. }, Part::Rows(rows)) => {
                let each = x.len() / rows.len().max(1);
                for (y, run) in y.iter_mut().zip(x.chunks_exact(each.max(1))) {
                    *y = max_abs(run).value();
                }
                Ok(())
            }
            (Op::Attention { shape, mask, .. }, Part::Head { rows, .. }) => {
                let shape = Attention {
                    heads: 1,
                    queries: rows.len(),
                    q: dense(shape.depth),
                    k: dense(shape.depth),
                    v: dense(shape.width),
                    out: dense(shape.width),
                    mask: mask.map(|_| dense(shape.keys)),
                    ..shape.clone()
                };
                let inputs = Inputs {
                    q: x,
                    k: input(1),
                    v: input(2),
                    mask: input(3),
                };
                attention(&shape, inputs, y)
            }
            (Op::Products { shape, .. }, Part::Head { rows, .. }) => {
                let shape = Products {
                    matrices: 1,
                    rows: rows.len(),
                    a: dense(shape.inner),
                    b: dense(shape.cols),
                    out: dense(shape.cols),
                    ..shape.clone()
                };
                products(&shape, x, input(1), y)
            }
            (Op::Chain { steps, .. }, Part::Places { .. }) => {
                y.copy_from_slice(x);
                self.chain(op, steps, part, gathered, y)
            }
            (
                Op::Depthwise {
                    windows,
                    filters,
                    bias,
                    ..
                },
                Part::Rows(rows),
            ) => {
                let (windows, _) = windows_part(windows, rows);
                let filters = self.constants.all_floats(*filters);
                let bias = bias.map(|bias| self.constants.all_floats(bias));
                depthwise(
                    &windows,
                    &filters,
                    bias.as_deref().unwrap_or_default(),
                    x,
                    y,
                )
            }
            (Op::MaxPool { windows, .. }, Part::Rows(rows)) => {
                max_pool(&windows_part(windows, rows).0, x, y)
            }
            (
                Op::SumPool {
                    windows, divisor, ..
                },
                Part::Rows(rows),
            ) => sum_pool(&windows_part(windows, rows).0, *divisor, x, y),
            (
                Op::LayerNorm {
                    cols,
                    epsilon,
                    gamma,
                    beta,
                    ..
                },
                _,
            ) => {
                let norm = LayerNorm {
                    epsilon: *epsilon,
                    gamma: gamma.map(|id| self.constants.all_floats(id)),
                    beta: beta.map(|id| self.constants.all_floats(id)),
                };
                layer_norm(&norm, *cols, x, y)
            }
            (Op::Softmax { cols, .. }, _) => {
                y.copy_from_slice(x);
                softmax(*cols, y)
            }
            (Op::SumRows { cols, factor, .. }, _) => sum_rows(*cols, *factor, x, y),
            _ => Ok(()),
        }
    }

    /// A chain's steps on some elements: operands that repeat are spread over them.
    fn chain(
        &self,
        op: &Op,
        steps: &[Step],
        part: &Part,
        gathered: &[Vec<f32>],
        y: &mut [f32],
    ) -> Result<(), WrongLength> {
        let own = self
            .graph
            .nodes()
            .iter()
            .position(|node| std::ptr::eq(&node.op, op))
            .and_then(|node| self.graph.tensors().get(self.graph.made_by(node).index()));
        let (Some(spec), Part::Places { image, steps: some }) = (own, part) else {
            return Ok(());
        };
        let places = placed(spec, *image, some);
        let mut operands = gathered.iter().skip(1);
        let mut spread_out = Vec::new();
        for step in steps {
            let Step::Binary(_, spread) = step else {
                continue;
            };
            let values = operands.next().map(Vec::as_slice).unwrap_or_default();
            let here = self.len(spread.source);
            if here == spec.elements {
                spread_out.push(values.to_vec());
                continue;
            }
            let elements = places.iter().cloned().flatten();
            let value = |element: usize| values.get(element / spread.run % here.max(1)).copied();
            spread_out.push(elements.filter_map(value).collect());
        }
        let aligned: Vec<Step> = steps
            .iter()
            .map(|step| match step {
                Step::Binary(op, spread) => {
                    let spread = crate::op::Spread { run: 1, ..*spread };
                    Step::Binary(*op, spread)
                }
                Step::Activation(_) => *step,
            })
            .collect();
        let others: Vec<&[f32]> = spread_out.iter().map(Vec::as_slice).collect();
        local::steps(&aligned, &others, y)
    }

    fn len(&self, source: Source) -> usize {
        match source {
            Source::Tensor(id) => {
                let spec = self.graph.tensors().get(id.index());
                spec.map_or(0, |spec| spec.elements)
            }
            Source::Constant(id) => self.constants.spec(id).map_or(0, |spec| spec.elements),
        }
    }

    /// A rectangle of a convolution, or rows and columns of a product.
    fn linear(
        &self,
        linear: &Linear,
        part: &Part,
        read: &Reads,
        gathered: &[Vec<f32>],
        y: &mut [f32],
    ) -> Result<(), Mismatch> {
        let input = |index: usize| gathered.get(index).map(Vec::as_slice).unwrap_or_default();
        let (x, maxima) = (input(0), input(1));
        let residual = linear.residual.map(|_| input(2));
        self.below_maxima(linear, read, x, maxima)?;
        let factor = self.constants.all_floats(linear.factor);
        let bias = linear.bias.map(|bias| self.constants.all_floats(bias));
        let (shape, pool, channels, weights) = match (&linear.spec.shape, part) {
            (
                Shape::Conv(conv),
                Part::Conv {
                    channels,
                    rows,
                    cols,
                    ..
                },
            ) => {
                let part = conv_part(conv, linear.pool.as_ref(), channels, rows, cols);
                let shape = part.shape.map_err(|err| self.refused(err))?;
                let taps = linear.spec.shape.taps();
                let some = channels.start * taps..channels.end * taps;
                let weights = self.constants.weights(linear, |plane| {
                    plane.get(some.clone()).unwrap_or_default().into()
                });
                (shape, part.pool, channels.clone(), weights)
            }
            (
                Shape::MatMul(matmul),
                Part::Product {
                    group, rows, cols, ..
                },
            ) => {
                let shape = Shape::matmul(MatMul {
                    groups: 1,
                    rows: rows.len(),
                    inner: matmul.inner,
                    columns: cols.len(),
                });
                let shape = shape.map_err(|err| self.refused(err))?;
                let each = matmul.inner * matmul.columns;
                let weights = self.constants.weights(linear, |plane| {
                    let group = plane
                        .get(group * each..(group + 1) * each)
                        .unwrap_or_default();
                    if cols.len() == matmul.columns {
                        return group.into();
                    }
                    let rows = group.chunks_exact(matmul.columns);
                    let some = rows.filter_map(|row| row.get(cols.clone()));
                    some.flatten().copied().collect::<Vec<u8>>().into()
                });
                let first = group * matmul.columns;
                (shape, None, first + cols.start..first + cols.end, weights)
            }
            _ => return Err(self.refused("a part of another operator")),
        };
        let weights = weights.map_err(|err| self.refused(err))?;
        let some = |values: &[f32]| values.get(channels.clone()).map(<[f32]>::to_vec);
        let factor = some(&factor).unwrap_or_default();
        let bias = bias.and_then(|bias| some(&bias));
        let mut halves = vec![0; shape.inputs()];
        let mut words = vec![0; shape.outputs()];
        let mut row_max = vec![MaxAbs::default(); shape.output_rows_cols().0];
        let around = Around {
            shape: &shape,
            bound: linear.bound,
            factor: &factor,
            bias: bias.as_deref(),
            pre: linear.pre,
            post: linear.post,
            pool: pool.as_ref(),
        };
        let wrong = |err: WrongLength| self.refused(err);
        around.quantise(x, maxima, &mut halves).map_err(wrong)?;
        let layer = ShortLinear::new(shape.clone(), &weights).map_err(|err| self.refused(err))?;
        layer.apply(&halves, &mut words);
        let mut room = Vec::new();
        around
            .finish(&words, maxima, residual, &mut room, y, &mut row_max)
            .map_err(wrong)
    }

    /// That maxima are maxima, and nothing that was opened exceeds its own.
    fn below_maxima(
        &self,
        linear: &Linear,
        read: &Reads,
        x: &[f32],
        maxima: &[f32],
    ) -> Result<(), Mismatch> {
        let unit = self.unit;
        let elements = |input: usize| {
            let runs = read.inputs.get(input).map_or(&[][..], |input| &input.1);
            runs.iter().cloned().flatten()
        };
        for (max, element) in maxima.iter().zip(elements(1)) {
            if !MaxAbs::of(*max).is_finite() || max.is_sign_negative() {
                return Err(Mismatch::NoMaximum {
                    unit,
                    tensor: linear.maxima.0,
                    element,
                });
            }
        }
        let each = x.len() / maxima.len().max(1);
        let runs = x.chunks_exact(each.max(1)).zip(maxima).enumerate();
        for (index, (run, max)) in runs {
            let max = MaxAbs::of(*max);
            if max_abs(run) > max {
                let within = run.iter().position(|x| MaxAbs::of(*x) > max).unwrap_or(0);
                let element = elements(0).nth(index * each + within).unwrap_or(0);
                return Err(Mismatch::AboveMaximum {
                    unit,
                    tensor: linear.input.0,
                    element,
                });
            }
        }
        Ok(())
    }
}

fn bits(values: &[f32]) -> Vec<u64> {
    values.iter().map(|value| value.to_bits().into()).collect()
}
