//! The parts of a run that can be audited one by one.
//!
//! Every element of every tensor that a node makes belongs to one unit. A unit recomputes its elements from the tensors
//! before, so a lie in any of them is seen by the unit that it belongs to, however consistently the run went on after it.
//! Units are blocks of rows, lines or heads, cut so that each is a few milliseconds of work.
//!
//! **Drawing** is uniform without replacement: of n units, m = ⌈fraction · n⌉ (at least one) are drawn, and each is among them
//! with probability m/n, whatever its cost. That is α of VeriSplit's Theorem 7.3: one wrong unit is missed with
//! probability 1 − α, and an inference with several wrong units, or several such inferences, with less.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;

use larvatus_kernels::linear::Shape;
use larvatus_proto::commit::{LEAF, LeafId};

use crate::graph::{Graph, Input, MAX_UNITS, Node, Problem};
use crate::op::{Linear, Op};
use crate::replay::reads;
use crate::tensor::{Order, Source, TensorId, TensorSpec};

/// Most elements of a unit that multiplies little, unless a single row has more.
pub const MAX_ELEMENTS: u32 = 1 << 22;

/// How large units are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grain {
    /// Multiplications of a unit, unless a single row has more.
    pub multiplications: u32,
    /// Elements of a unit that multiplies little.
    pub elements: u32,
}

impl Default for Grain {
    /// A few milliseconds of one core; openings of about a megabyte.
    fn default() -> Self {
        Self {
            multiplications: 1 << 24,
            elements: 1 << 18,
        }
    }
}

/// Number of a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitId(pub u32);

impl UnitId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A length cut into equal steps, the last one shorter.
#[derive(Clone, Copy, Debug)]
struct Steps {
    len: usize,
    each: usize,
}

impl Steps {
    /// Steps of at most `most` of `whole` cost in all, in multiples of `align`.
    fn new(len: usize, whole: u64, most: u64, align: usize) -> Self {
        let one = whole.div_ceil(len.max(1) as u64).max(1);
        let each = usize::try_from(most / one).unwrap_or(usize::MAX);
        let each = (each / align * align).max(align);
        Self {
            len,
            each: each.min(len.max(1)),
        }
    }

    /// Not cut.
    fn whole(len: usize) -> Self {
        Self {
            len,
            each: len.max(1),
        }
    }

    fn count(self) -> usize {
        self.len.div_ceil(self.each)
    }

    fn range(self, index: usize) -> Range<usize> {
        index * self.each..self.len.min((index + 1) * self.each)
    }
}

/// How a node's output is cut.
#[derive(Clone, Debug)]
enum Cut {
    Conv {
        images: usize,
        channels: Steps,
        rows: Steps,
        cols: Steps,
    },
    Product {
        images: usize,
        groups: usize,
        rows: Steps,
        cols: Steps,
    },
    Heads {
        batches: usize,
        heads: usize,
        rows: Steps,
    },
    /// Rows of an operator that takes each by itself.
    Rows(Steps),
    /// Elements as they are committed to.
    Places { images: usize, steps: Steps },
}

impl Cut {
    fn count(&self) -> usize {
        match self {
            Self::Conv {
                images,
                channels,
                rows,
                cols,
            } => images * channels.count() * rows.count() * cols.count(),
            Self::Product {
                images,
                groups,
                rows,
                cols,
            } => images * groups * rows.count() * cols.count(),
            Self::Heads {
                batches,
                heads,
                rows,
            } => batches * heads * rows.count(),
            Self::Rows(rows) => rows.count(),
            Self::Places { images, steps } => images * steps.count(),
        }
    }

    fn part(&self, index: usize) -> Part {
        match self {
            Self::Conv {
                channels,
                rows,
                cols,
                ..
            } => {
                let (index, col) = (index / cols.count(), index % cols.count());
                let (index, row) = (index / rows.count(), index % rows.count());
                let (image, channel) = (index / channels.count(), index % channels.count());
                Part::Conv {
                    image,
                    channels: channels.range(channel),
                    rows: rows.range(row),
                    cols: cols.range(col),
                }
            }
            Self::Product {
                groups, rows, cols, ..
            } => {
                let (index, col) = (index / cols.count(), index % cols.count());
                let (index, row) = (index / rows.count(), index % rows.count());
                Part::Product {
                    image: index / groups,
                    group: index % groups,
                    rows: rows.range(row),
                    cols: cols.range(col),
                }
            }
            Self::Heads { heads, rows, .. } => {
                let (index, row) = (index / rows.count(), index % rows.count());
                Part::Head {
                    batch: index / heads,
                    head: index % heads,
                    rows: rows.range(row),
                }
            }
            Self::Rows(rows) => Part::Rows(rows.range(index)),
            Self::Places { steps, .. } => Part::Places {
                image: index / steps.count(),
                steps: steps.range(index % steps.count()),
            },
        }
    }
}

/// A part of a node's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// A rectangle of some channels of one image, behind the pooling.
    Conv {
        image: usize,
        channels: Range<usize>,
        rows: Range<usize>,
        cols: Range<usize>,
    },
    Product {
        image: usize,
        group: usize,
        rows: Range<usize>,
        cols: Range<usize>,
    },
    Head {
        batch: usize,
        head: usize,
        rows: Range<usize>,
    },
    Rows(Range<usize>),
    /// Lines of an image with all channels, or elements where the order is flat.
    Places {
        image: usize,
        steps: Range<usize>,
    },
}

/// All units, by node.
#[derive(Clone, Debug)]
pub(crate) struct Units {
    cuts: Vec<Cut>,
    /// Number of each node's first unit, then the number of all.
    first: Vec<u32>,
}

impl Units {
    pub(crate) fn new(
        grain: Grain,
        inputs: &[Input],
        nodes: &[Node],
        tensors: &[TensorSpec],
    ) -> Result<Self, Problem> {
        if grain.multiplications == 0 || !(1..=MAX_ELEMENTS).contains(&grain.elements) {
            return Err(Problem("units of nothing, or too large"));
        }
        let specs = tensors.iter().skip(inputs.len());
        let cuts: Vec<Cut> = nodes
            .iter()
            .zip(specs)
            .map(|(node, spec)| cut(grain, &node.op, spec, tensors))
            .collect();
        let mut first = vec![0_u32];
        let mut last = 0;
        for cut in &cuts {
            let count = u32::try_from(cut.count()).unwrap_or(u32::MAX);
            last = count.saturating_add(last);
            if last > MAX_UNITS {
                return Err(Problem("more units than can be numbered"));
            }
            first.push(last);
        }
        Ok(Self { cuts, first })
    }

    fn count(&self) -> u32 {
        self.first.last().copied().unwrap_or(0)
    }

    /// The node of a unit, and its part.
    pub(crate) fn find(&self, unit: UnitId) -> Option<(usize, Part)> {
        if unit.0 >= self.count() {
            return None;
        }
        let node = self.first.partition_point(|first| *first <= unit.0) - 1;
        let index = unit.0 - self.first.get(node)?;
        Some((node, self.cuts.get(node)?.part(index as usize)))
    }

    fn of_node(&self, node: usize) -> u32 {
        match (self.first.get(node), self.first.get(node + 1)) {
            (Some(first), Some(next)) => next - first,
            _ => 0,
        }
    }
}

/// Places where a tensor is cut: lines, or elements.
fn places(grain: Grain, spec: &TensorSpec) -> Cut {
    match spec.order {
        Order::Flat => Cut::Places {
            images: 1,
            steps: Steps::new(
                spec.elements,
                spec.elements as u64,
                grain.elements.into(),
                1,
            ),
        },
        Order::Lines { images, lines, .. } => {
            let of_image = (spec.elements / images) as u64;
            Cut::Places {
                images,
                steps: Steps::new(lines, of_image, grain.elements.into(), 1),
            }
        }
    }
}

fn cut(grain: Grain, op: &Op, spec: &TensorSpec, tensors: &[TensorSpec]) -> Cut {
    let input_len = |source: &Source| match source {
        Source::Tensor(id) => tensors.get(id.index()).map_or(1, |spec| spec.elements),
        Source::Constant(_) => spec.elements,
    };
    match op {
        Op::Linear(linear) => cut_linear(grain, linear, spec),
        Op::Maxima { input, count } => {
            let len = input_len(&Source::Tensor(*input));
            Cut::Rows(Steps::new(*count, len as u64, grain.elements.into(), 1))
        }
        Op::Attention { shape, batches, .. } => {
            let row = shape.keys as u64 * (shape.depth + shape.width) as u64;
            let whole = row.saturating_mul(shape.queries as u64);
            Cut::Heads {
                batches: *batches,
                heads: shape.heads,
                rows: Steps::new(shape.queries, whole, grain.multiplications.into(), 1),
            }
        }
        Op::Products { shape, batches, .. } => {
            let whole = (shape.inner * shape.cols) as u64;
            let whole = whole.saturating_mul(shape.rows as u64);
            Cut::Heads {
                batches: *batches,
                heads: shape.matrices,
                rows: Steps::new(shape.rows, whole, grain.multiplications.into(), 1),
            }
        }
        Op::Depthwise { windows, .. } => {
            let taps = (windows.kernel[0] * windows.kernel[1]) as u64;
            let whole = taps.saturating_mul(spec.elements as u64);
            Cut::Rows(Steps::new(
                windows.output[0],
                whole,
                u64::from(grain.multiplications / 4),
                1,
            ))
        }
        Op::MaxPool { windows, .. } | Op::SumPool { windows, .. } => {
            let whole = windows.planes * windows.input[0] * windows.input[1];
            Cut::Rows(Steps::new(
                windows.output[0],
                whole as u64,
                grain.elements.into(),
                1,
            ))
        }
        Op::LayerNorm { input, cols, .. }
        | Op::Softmax { input, cols }
        | Op::SumRows { input, cols, .. } => {
            let len = input_len(input);
            Cut::Rows(Steps::new(len / cols, len as u64, grain.elements.into(), 1))
        }
        Op::Gather { cols, .. } => {
            let rows = spec.elements / cols;
            Cut::Rows(Steps::new(
                rows,
                spec.elements as u64,
                grain.elements.into(),
                1,
            ))
        }
        Op::Chain { .. } | Op::View { .. } | Op::Concat { .. } | Op::Cast { .. } => {
            places(grain, spec)
        }
    }
}

fn cut_linear(grain: Grain, linear: &Linear, spec: &TensorSpec) -> Cut {
    let images = linear.spec.images;
    match &linear.spec.shape {
        Shape::Conv(conv) => {
            let macs = linear.spec.shape.macs();
            let [height, width] = linear
                .pool
                .as_ref()
                .map_or(conv.output(), |pool| pool.output);
            let mut channels = Steps::whole(conv.out_channels);
            let (mut rows, mut cols) = (Steps::whole(height), Steps::whole(width));
            if height > 1 {
                rows = Steps::new(height, macs, grain.multiplications.into(), 1);
            } else if width > 1 {
                // Whole lines as they are committed to.
                let line = match spec.order {
                    Order::Lines { width: line, .. } if width % line == 0 => line,
                    _ => 1,
                };
                cols = Steps::new(width, macs, grain.multiplications.into(), line);
            } else if conv.groups == 1 {
                channels = Steps::new(conv.out_channels, macs, grain.multiplications.into(), 1);
            }
            Cut::Conv {
                images,
                channels,
                rows,
                cols,
            }
        }
        Shape::MatMul(matmul) => {
            let row = (matmul.inner * matmul.columns) as u64;
            let whole = row.saturating_mul(matmul.rows as u64);
            let rows = Steps::new(matmul.rows, whole, grain.multiplications.into(), 1);
            let cols = if row > u64::from(grain.multiplications) {
                Steps::new(matmul.columns, row, grain.multiplications.into(), 1)
            } else {
                Steps::whole(matmul.columns)
            };
            Cut::Product {
                images,
                groups: matmul.groups,
                rows,
                cols,
            }
        }
    }
}

impl Graph {
    /// How many units there are.
    pub fn unit_count(&self) -> usize {
        self.units_table().count() as usize
    }

    /// All units, in the order of the nodes.
    pub fn units(&self) -> impl Iterator<Item = UnitId> + use<> {
        (0..self.units_table().count()).map(UnitId)
    }

    /// The node that a unit is a part of.
    pub fn node_of(&self, unit: UnitId) -> Option<usize> {
        self.units_table().find(unit).map(|(node, _)| node)
    }

    /// About what a unit costs: the node's multiplications or elements, shared equally.
    pub fn unit_cost(&self, unit: UnitId) -> u64 {
        self.node_of(unit).map_or(0, |node| {
            let units = self.units_table().of_node(node).max(1);
            self.node_cost(node) / u64::from(units)
        })
    }

    /// What a unit is, for people: the node's name and kind, and the part of it.
    pub fn describe(&self, unit: UnitId) -> String {
        let found = self.units_table().find(unit);
        let Some((node, part)) = found else {
            return format!("no unit {unit}");
        };
        let node = self.nodes().get(node);
        let (name, kind) = node.map_or(("?", "?"), |node| (&node.name, node.op.kind()));
        format!("{name} ({kind}), {part}")
    }

    /// What the tensor at a place of the trace is, for people.
    pub fn describe_place(&self, place: u32) -> String {
        let index = (0..).map(TensorId).take(self.tensors().len());
        let mut found = index.filter(|tensor| self.place(*tensor) == place);
        let Some(tensor) = found.next() else {
            return format!("no tensor {place}");
        };
        match self
            .maker(tensor)
            .map(|node| (node, self.nodes().get(node)))
        {
            Some((number, Some(node))) => format!("node {number} ({})", node.name),
            _ => {
                let input = self.inputs().get(tensor.index());
                format!("input {}", input.map_or("?", |input| &input.name))
            }
        }
    }

    /// The leaves that show whether a unit was computed right, in increasing order; none where there is no such unit.
    pub fn needs(&self, unit: UnitId) -> Vec<LeafId> {
        let mut leaves = BTreeSet::new();
        for (tensor, runs) in self.discloses(unit) {
            for run in runs {
                self.leaves_of(tensor, run, &mut leaves);
            }
        }
        leaves.into_iter().collect()
    }

    /// The elements of tensors that a unit reads and makes: what an opening of it has to show. Leaves are coarser and
    /// show their neighbours too.
    pub fn discloses(&self, unit: UnitId) -> Vec<(TensorId, Vec<Range<usize>>)> {
        let Some((index, part)) = self.units_table().find(unit) else {
            return Vec::new();
        };
        let Some(node) = self.nodes().get(index) else {
            return Vec::new();
        };
        let read = reads(self, index, &node.op, &part);
        let sources = read.inputs.into_iter();
        let tensors = sources.filter_map(|(source, runs)| match source {
            Source::Tensor(id) => Some((id, runs)),
            Source::Constant(_) => None,
        });
        tensors
            .chain([(self.made_by(index), read.output)])
            .collect()
    }

    fn leaves_of(&self, tensor: TensorId, run: Range<usize>, leaves: &mut BTreeSet<LeafId>) {
        let Some(spec) = self.tensors().get(tensor.index()) else {
            return;
        };
        let each = spec.kind.bytes();
        let place = self.place(tensor);
        let mut done = None;
        for (_, at, len) in spec.pieces(run) {
            let (first, last) = (at * each / LEAF, ((at + len) * each - 1) / LEAF);
            if done == Some((first, last)) {
                continue;
            }
            for leaf in first..=last {
                leaves.insert(LeafId {
                    tensor: place,
                    leaf: u32::try_from(leaf).unwrap_or(u32::MAX),
                });
            }
            done = Some((first, last));
        }
    }

    /// Draws units: uniformly, without replacement, ⌈`fraction` · units⌉ of them and at least one. The same seed draws the
    /// same units. In increasing order.
    pub fn draw(&self, seed: [u8; 32], fraction: f64) -> Vec<UnitId> {
        let count = self.units_table().count();
        let wanted = drawn(count, fraction);
        let mut hasher = blake3::Hasher::new_derive_key("larvatus 2026 units to audit v1");
        hasher.update(&seed);
        hasher.update(&count.to_le_bytes());
        let mut words = hasher.finalize_xof();
        let mut below = |bound: u32| loop {
            let mut word = [0; 4];
            words.fill(&mut word);
            let word = u32::from_le_bytes(word);
            // The largest multiple of the bound that fits, so that no remainder is more likely.
            if word < u32::MAX - u32::MAX % bound {
                return word % bound;
            }
        };
        // Floyd's way to a uniform subset (Bentley and Floyd, 1987).
        let mut all = BTreeSet::new();
        for last in count - wanted..count {
            let one = below(last + 1);
            if !all.insert(UnitId(one)) {
                all.insert(UnitId(last));
            }
        }
        all.into_iter().collect()
    }

    /// α: the probability that [`draw`](Self::draw) takes a given unit, the same for all.
    pub fn alpha(&self, fraction: f64) -> f64 {
        let count = self.units_table().count();
        f64::from(drawn(count, fraction)) / f64::from(count.max(1))
    }
}

/// Units that are drawn of so many.
fn drawn(count: u32, fraction: f64) -> u32 {
    let wanted = (f64::from(count) * fraction.clamp(0.0, 1.0)).ceil();
    (wanted as u32).clamp(count.min(1), count)
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conv {
                image,
                channels,
                rows,
                cols,
            } => write!(
                f,
                "image {image}, channels {channels:?}, lines {rows:?}, columns {cols:?}"
            ),
            Self::Product {
                image,
                group,
                rows,
                cols,
            } => write!(
                f,
                "image {image}, group {group}, rows {rows:?}, columns {cols:?}"
            ),
            Self::Head { batch, head, rows } => {
                write!(f, "batch {batch}, matrix {head}, rows {rows:?}")
            }
            Self::Rows(rows) => write!(f, "rows {rows:?}"),
            Self::Places { image, steps } => write!(f, "image {image}, lines {steps:?}"),
        }
    }
}
