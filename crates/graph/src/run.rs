//! Running a graph.

use std::fmt;
use std::sync::Arc;

use larvatus_kernels::WrongLength;
use larvatus_kernels::fixed::{MaxAbs, max_abs_with};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{ShapeError, ShortLinear};
use larvatus_kernels::local::attention::{Inputs, attention_with, products_with};
use larvatus_kernels::local::depthwise::depthwise_with;
use larvatus_kernels::local::norm::{LayerNorm, layer_norm_with};
use larvatus_kernels::local::pool::{Windows, max_pool_with, sum_pool_with, sum_rows_with};
use larvatus_kernels::local::softmax::softmax_with;

use crate::graph::{Element, Graph};
use crate::local::{self, Around};
use crate::model::{Model, ModelError};
use crate::op::{Linear, Op};
use crate::pool::{Floats, Pool};
use crate::tensor::{ConstantId, Kind, Source, TensorId, Values};
use crate::trace::Trace;

/// Why a run has no output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The inputs are not those of the graph.
    #[error("input {input} is not what the graph takes")]
    Input {
        /// Which; the number of inputs where there are more or fewer.
        input: usize,
    },
    /// An input holds what is not finite.
    #[error("input {input} holds a value that is not finite")]
    InputNotFinite {
        /// Which.
        input: usize,
    },
    /// What goes into a linear map is not finite, or a tensor holds what is not a number. Such a run has no trace.
    #[error("node {node} ({name}) made a value that is not finite")]
    NotFinite {
        /// Its number.
        node: usize,
        /// Its name.
        name: String,
    },
    /// The number of a row that its table does not have.
    #[error("node {node} ({name}): no row {index} in its table")]
    Row {
        /// The node.
        node: usize,
        /// Its name.
        name: String,
        /// The number.
        index: i64,
    },
    /// The kernels refuse what the graph was checked for.
    #[error("node {node}: {problem}")]
    Kernel {
        /// The node.
        node: usize,
        /// What they say.
        problem: String,
    },
}

/// A tensor that may be changed before anybody sees it.
#[derive(Debug)]
pub enum Changing<'a> {
    /// Floats.
    F32(&'a mut [f32]),
    /// Integers.
    I64(&'a mut [i64]),
}

/// Changes tensors as they are made.
pub type Alter<'a> = &'a mut dyn FnMut(TensorId, Changing<'_>);

/// A constant, as it is used.
enum Constant {
    F32(Vec<f32>),
    I64(Vec<i64>),
    /// Packed for the kernels.
    Weights,
}

/// A graph with its constants, ready to run; shared by threads.
pub struct Prepared {
    isa: Isa,
    graph: Arc<Graph>,
    constants: Vec<Constant>,
    /// One for each node that has weights.
    linears: Vec<Option<ShortLinear>>,
    /// The node after which a tensor is not read any more; none for outputs.
    last_use: Vec<Option<usize>>,
    pool: Pool,
}

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Prepared({} nodes)", self.graph.nodes().len())
    }
}

impl Prepared {
    /// Packs a model's weights. The model's bytes are not needed afterwards.
    ///
    /// # Errors
    /// [`ModelError::Weights`] where the kernels refuse them.
    pub fn new(model: &Model) -> Result<Self, ModelError> {
        Self::with_isa(Isa::best(), model)
    }

    /// [`new`](Self::new) for a given instruction set: all give the same bits.
    ///
    /// # Errors
    /// [`ModelError::Weights`].
    pub fn with_isa(isa: Isa, model: &Model) -> Result<Self, ModelError> {
        let graph = Arc::clone(model.graph());
        let bytes = model.constants();
        let constants = graph.constants().iter().zip(0..);
        let constants = constants.map(|(spec, id)| match spec.element {
            Element::I8 => Constant::Weights,
            Element::F32 => Constant::F32(bytes.all_floats(ConstantId(id))),
            Element::I64 => Constant::I64(bytes.integers(ConstantId(id), 0..spec.elements)),
        });
        let constants = constants.collect();
        let linears = graph.nodes().iter().map(|node| match &node.op {
            Op::Linear(linear) => {
                let weights = bytes.weights(linear, |plane| plane.into())?;
                ShortLinear::with_isa(isa, linear.spec.shape.clone(), &weights).map(Some)
            }
            _ => Ok(None),
        });
        let linears = linears.collect::<Result<_, ShapeError>>()?;
        let mut last_use = vec![Some(0); graph.tensors().len()];
        for (index, node) in graph.nodes().iter().enumerate() {
            if let Some(own) = last_use.get_mut(graph.made_by(index).index()) {
                *own = Some(index);
            }
            for source in node.op.sources() {
                if let Source::Tensor(id) = source
                    && let Some(last) = last_use.get_mut(id.index())
                {
                    *last = Some(index);
                }
            }
        }
        for output in graph.outputs() {
            if let Some(last) = last_use.get_mut(output.tensor.index()) {
                *last = None;
            }
        }
        Ok(Self {
            isa,
            graph,
            constants,
            linears,
            last_use,
            pool: Pool::default(),
        })
    }

    /// The graph.
    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// Bytes that it holds beside buffers of runs.
    pub fn bytes(&self) -> u64 {
        let constants = self.constants.iter().map(|constant| match constant {
            Constant::F32(values) => 4 * values.len() as u64,
            Constant::I64(values) => 8 * values.len() as u64,
            Constant::Weights => 0,
        });
        let linears = self.linears.iter().flatten();
        constants.sum::<u64>() + linears.map(|linear| linear.bytes() as u64).sum::<u64>()
    }

    /// Runs the graph and shows its tensors to `trace`.
    ///
    /// The linear maps share their work through the current rayon pool, if the kernels are built so.
    ///
    /// # Errors
    /// [`RunError`]. A run that fails has shown a part of its trace.
    pub fn run(&self, inputs: Vec<Values>, trace: &mut dyn Trace) -> Result<Vec<Values>, RunError> {
        self.run_with(inputs, None, trace)
    }

    /// [`run`](Self::run) in which every tensor that a node makes may be changed before it is shown and read: lies that
    /// are continued consistently, for tests of those who look for them.
    ///
    /// # Errors
    /// [`RunError`].
    pub fn run_altered(
        &self,
        inputs: Vec<Values>,
        alter: Alter<'_>,
        trace: &mut dyn Trace,
    ) -> Result<Vec<Values>, RunError> {
        self.run_with(inputs, Some(alter), trace)
    }

    fn run_with(
        &self,
        inputs: Vec<Values>,
        mut alter: Option<Alter<'_>>,
        trace: &mut dyn Trace,
    ) -> Result<Vec<Values>, RunError> {
        let graph = &*self.graph;
        if inputs.len() != graph.inputs().len() {
            let input = graph.inputs().len();
            return Err(RunError::Input { input });
        }
        for (input, (values, port)) in inputs.iter().zip(graph.inputs()).enumerate() {
            if (values.kind(), values.len()) != (port.spec.kind, port.spec.elements) {
                return Err(RunError::Input { input });
            }
            let finite = values
                .floats()
                .is_none_or(|x| max_abs_with(self.isa, x).is_finite());
            if !finite {
                return Err(RunError::InputNotFinite { input });
            }
        }
        let mut run = Run {
            prepared: self,
            values: Vec::with_capacity(graph.tensors().len()),
            scratch: Scratch::default(),
        };
        for (values, port) in inputs.into_iter().zip(graph.inputs()) {
            let place = u32::try_from(run.values.len()).unwrap_or(u32::MAX);
            trace.tensor(place, &port.spec, &values);
            run.values.push(Some(Live {
                values,
                maxima: Vec::new(),
            }));
        }
        let outputs = graph.tensors().len() - graph.outputs().len();
        for index in 0..graph.nodes().len() {
            let id = graph.made_by(index);
            let mut made = run.node(index)?;
            if let Some(alter) = &mut alter {
                made.change(id, alter);
            }
            run.check(index, &made)?;
            let place = graph.place(id);
            if let Some(spec) = graph.tensors().get(id.index())
                && (place as usize) < outputs
            {
                trace.tensor(place, spec, &made.values);
            }
            run.values.push(Some(made));
            run.forget(index);
        }
        let mut results = Vec::with_capacity(graph.outputs().len());
        for output in graph.outputs() {
            let spec = graph.tensors().get(output.tensor.index());
            let live = run.values.get(output.tensor.index());
            if let (Some(spec), Some(Some(live))) = (spec, live) {
                trace.tensor(graph.place(output.tensor), spec, &live.values);
                results.push(live.values.clone());
            }
        }
        Ok(results)
    }
}

/// A tensor that is alive, with the largest magnitudes of equal runs of it where they are known.
struct Live {
    values: Values,
    maxima: Vec<MaxAbs>,
}

impl Live {
    fn change(&mut self, id: TensorId, alter: &mut Alter<'_>) {
        match &mut self.values {
            Values::F32(values) => {
                if let Some(values) = Arc::get_mut(values) {
                    alter(id, Changing::F32(values));
                }
            }
            Values::I64(values) => {
                if let Some(values) = Arc::get_mut(values) {
                    alter(id, Changing::I64(values));
                }
            }
        }
        self.maxima.clear();
    }

    /// The largest magnitudes of `count` equal runs.
    fn maxima(&self, isa: Isa, count: usize) -> Vec<f32> {
        let x = self.values.floats().unwrap_or_default();
        if !self.maxima.is_empty() && self.maxima.len().is_multiple_of(count) {
            let each = self.maxima.chunks_exact(self.maxima.len() / count);
            let each = each.filter_map(|run| run.iter().max());
            return each.map(|max| max.value()).collect();
        }
        let each = x.chunks_exact((x.len() / count).max(1));
        each.map(|run| max_abs_with(isa, run).value()).collect()
    }
}

/// Memory that is used again from node to node.
#[derive(Default)]
struct Scratch {
    /// The last input in integers, and what it was made from.
    halves: Vec<i16>,
    of: Option<(TensorId, TensorId, u32, usize, usize)>,
    words: Vec<u32>,
    room: Vec<f32>,
}

struct Run<'a> {
    prepared: &'a Prepared,
    values: Vec<Option<Live>>,
    scratch: Scratch,
}

impl Run<'_> {
    fn live(&self, id: TensorId) -> Option<&Live> {
        self.values.get(id.index())?.as_ref()
    }

    fn floats(&self, source: Source) -> &[f32] {
        match source {
            Source::Tensor(id) => self.live(id).and_then(|live| live.values.floats()),
            Source::Constant(id) => self.constant(id),
        }
        .unwrap_or_default()
    }

    fn constant(&self, id: ConstantId) -> Option<&[f32]> {
        match self.prepared.constants.get(id.index())? {
            Constant::F32(values) => Some(values),
            Constant::I64(_) | Constant::Weights => None,
        }
    }

    fn integers(&self, source: Source) -> &[i64] {
        match source {
            Source::Tensor(id) => self.live(id).and_then(|live| live.values.integers()),
            Source::Constant(id) => match self.prepared.constants.get(id.index()) {
                Some(Constant::I64(values)) => Some(&values[..]),
                _ => None,
            },
        }
        .unwrap_or_default()
    }

    /// Nothing that is not a number is committed to, and no maximum that is not finite.
    fn check(&self, index: usize, made: &Live) -> Result<(), RunError> {
        let graph = &self.prepared.graph;
        let Some(values) = made.values.floats() else {
            return Ok(());
        };
        let node = graph.nodes().get(index);
        let is_maxima = node.is_some_and(|node| matches!(node.op, Op::Maxima { .. }));
        let good = if made.maxima.is_empty() || made.maxima.iter().any(|max| !max.is_finite()) {
            let largest = max_abs_with(self.prepared.isa, values);
            largest.is_finite() || !is_maxima && !largest.value().is_nan()
        } else {
            true
        };
        if good {
            return Ok(());
        }
        Err(RunError::NotFinite {
            node: index,
            name: node.map(|node| node.name.clone()).unwrap_or_default(),
        })
    }

    fn forget(&mut self, index: usize) {
        let last = &self.prepared.last_use;
        for (value, last) in self.values.iter_mut().zip(last) {
            if *last == Some(index) {
                *value = None;
            }
        }
    }

    fn node(&mut self, index: usize) -> Result<Live, RunError> {
        let graph = Arc::clone(&self.prepared.graph);
        let broken = |problem: &dyn fmt::Display| RunError::Kernel {
            node: index,
            problem: problem.to_string(),
        };
        let missing = || broken(&"a node that is not there");
        let node = graph.nodes().get(index).ok_or_else(missing)?;
        let spec = graph.tensors().get(graph.made_by(index).index());
        let spec = spec.ok_or_else(missing)?;
        if spec.kind == Kind::I64 {
            let mut y = vec![0; spec.elements];
            match &node.op {
                Op::View { input, start, axes } => {
                    local::view(*start, axes, self.integers(*input), &mut y);
                }
                Op::Concat { outer, parts } => {
                    let parts: Vec<_> = parts
                        .iter()
                        .map(|(source, len)| (self.integers(*source), *len))
                        .collect();
                    local::concat(*outer, &parts, &mut y);
                }
                _ => return Err(broken(&"integers that no operator makes")),
            }
            return Ok(Live {
                values: y.into(),
                maxima: Vec::new(),
            });
        }
        let mut y = self.prepared.pool.take(spec.elements);
        let mut maxima = Vec::new();
        let done = match &node.op {
            Op::Linear(linear) => self.linear(index, linear, &mut y, &mut maxima),
            Op::Gather {
                table,
                cols,
                indices,
            } => {
                let table = self.constant(*table).unwrap_or_default();
                let rows = table.len() / cols;
                for (y, number) in y.chunks_exact_mut(*cols).zip(self.integers(*indices)) {
                    let row = local::row(*number, rows)
                        .and_then(|row| table.get(row * cols..(row + 1) * cols));
                    y.copy_from_slice(row.ok_or_else(|| RunError::Row {
                        node: index,
                        name: node.name.clone(),
                        index: *number,
                    })?);
                }
                Ok(())
            }
            op => self.local(op, &mut y),
        };
        done.map_err(|err| broken(&err))?;
        Ok(Live {
            values: Values::F32(Arc::new(y)),
            maxima,
        })
    }

    fn local(&self, op: &Op, y: &mut Floats) -> Result<(), WrongLength> {
        match op {
            Op::Linear(_) | Op::Gather { .. } => {}
            Op::Maxima { input, count } => {
                let maxima = self
                    .live(*input)
                    .map(|live| live.maxima(self.prepared.isa, *count));
                let maxima = maxima.unwrap_or_default();
                y.iter_mut().zip(maxima).for_each(|(y, max)| *y = max);
            }
            Op::Attention {
                shape,
                batches,
                advance,
                inputs: [q, k, v],
                mask,
            } => {
                let mask = mask.map_or(&[][..], |mask| self.floats(mask));
                for batch in 0..*batches {
                    let part = |x, at: usize| from(x, batch * advance[at]);
                    let inputs = Inputs {
                        q: part(self.floats(*q), 0),
                        k: part(self.floats(*k), 1),
                        v: part(self.floats(*v), 2),
                        mask: part(mask, 3),
                    };
                    let out = y.get_mut(batch * advance[4]..).unwrap_or_default();
                    attention_with(self.prepared.isa, shape, inputs, out)?;
                }
            }
            Op::Products {
                shape,
                batches,
                advance,
                inputs: [a, b],
            } => {
                for batch in 0..*batches {
                    let a = from(self.floats(*a), batch * advance[0]);
                    let b = from(self.floats(*b), batch * advance[1]);
                    let out = y.get_mut(batch * advance[2]..).unwrap_or_default();
                    products_with(self.prepared.isa, shape, a, b, out)?;
                }
            }
            Op::Chain { input, steps } => {
                copy(self.floats(*input), y);
                let others: Vec<&[f32]> = op
                    .sources()
                    .iter()
                    .skip(1)
                    .map(|source| self.floats(*source))
                    .collect();
                local::steps(self.prepared.isa, steps, &others, y)?;
            }
            Op::Depthwise {
                input,
                windows,
                filters,
                bias,
            } => {
                let filters = self.constant(*filters).unwrap_or_default();
                let bias = bias
                    .and_then(|bias| self.constant(bias))
                    .unwrap_or_default();
                depthwise_with(
                    self.prepared.isa,
                    windows,
                    filters,
                    bias,
                    self.floats(*input),
                    y,
                )?;
            }
            Op::LayerNorm {
                input,
                cols,
                epsilon,
                gamma,
                beta,
            } => {
                let vector = |id: &Option<ConstantId>| {
                    let values = id.and_then(|id| self.constant(id));
                    values.map(<[f32]>::to_vec)
                };
                let norm = LayerNorm {
                    epsilon: *epsilon,
                    gamma: vector(gamma),
                    beta: vector(beta),
                };
                layer_norm_with(self.prepared.isa, &norm, *cols, self.floats(*input), y)?;
            }
            Op::Softmax { input, cols } => {
                copy(self.floats(*input), y);
                softmax_with(self.prepared.isa, *cols, y)?;
            }
            Op::MaxPool { input, windows } => {
                max_pool_with(self.prepared.isa, windows, self.floats(*input), y)?
            }
            Op::SumPool {
                input,
                windows,
                divisor,
            } => sum_pool_with(self.prepared.isa, windows, *divisor, self.floats(*input), y)?,
            Op::SumRows {
                input,
                cols,
                factor,
            } => sum_rows_with(self.prepared.isa, *cols, *factor, self.floats(*input), y)?,
            Op::View { input, start, axes } => {
                local::view(*start, axes, self.floats(*input), y);
            }
            Op::Concat { outer, parts } => {
                let parts: Vec<_> = parts
                    .iter()
                    .map(|(source, len)| (self.floats(*source), *len))
                    .collect();
                local::concat(*outer, &parts, y);
            }
            Op::Cast { input } => {
                let x = self.integers(*input);
                y.iter_mut().zip(x).for_each(|(y, x)| *y = local::cast(*x));
            }
        }
        Ok(())
    }

    fn linear(
        &mut self,
        index: usize,
        linear: &Linear,
        y: &mut [f32],
        maxima: &mut Vec<MaxAbs>,
    ) -> Result<(), WrongLength> {
        let wrong = |expected: usize| WrongLength { expected, got: 0 };
        let mut scratch = std::mem::take(&mut self.scratch);
        let layer = self.prepared.linears.get(index).and_then(Option::as_ref);
        let layer = layer.ok_or(wrong(1))?;
        let spec = &linear.spec;
        let around = Around {
            isa: self.prepared.isa,
            shape: &spec.shape,
            bound: linear.bound,
            factor: self.constant(linear.factor).unwrap_or_default(),
            bias: linear.bias.and_then(|bias| self.constant(bias)),
            pre: linear.pre,
            post: linear.post,
            pool: None,
        };
        let (inputs, outputs) = (spec.shape.inputs(), spec.shape.outputs());
        let (rows, cols) = spec.shape.input_rows_cols();
        let x = self.floats(linear.input.into());
        let scales = self.floats(linear.maxima.into());
        let each = scales.len() / spec.images;
        let of = (
            linear.input,
            linear.maxima,
            linear.bound.steps(),
            rows,
            cols,
        );
        if scratch.of != Some(of) {
            scratch.of = None;
            scratch.halves.resize(spec.inputs(), 0);
            let images = x.chunks_exact(inputs).zip(scales.chunks_exact(each));
            for ((x, scales), halves) in images.zip(scratch.halves.chunks_exact_mut(inputs)) {
                around.quantise(x, scales, halves)?;
            }
            scratch.of = Some(of);
        }
        if scratch.words.len() < outputs {
            scratch.words.resize(outputs, 0);
        }
        let words = scratch.words.get_mut(..outputs).ok_or(wrong(outputs))?;
        let out_rows = spec.shape.output_rows_cols().0;
        *maxima = vec![MaxAbs::default(); spec.images * out_rows];
        let pool = linear.pool.as_ref().map(|windows| Windows {
            planes: out_rows,
            ..windows.clone()
        });
        let around = Around {
            pool: pool.as_ref(),
            ..around
        };
        let residual = linear.residual.map(|residual| self.floats(residual));
        let images = scratch
            .halves
            .chunks_exact(inputs)
            .zip(scales.chunks_exact(each));
        let results = y
            .chunks_exact_mut(y.len() / spec.images)
            .zip(maxima.chunks_exact_mut(out_rows));
        for (image, ((halves, scales), (y, maxima))) in images.zip(results).enumerate() {
            layer.apply(halves, words);
            let residual = residual.and_then(|all| all.get(image * outputs..(image + 1) * outputs));
            around.finish(words, scales, residual, &mut scratch.room, y, maxima)?;
        }
        self.scratch = scratch;
        Ok(())
    }
}

fn from(x: &[f32], start: usize) -> &[f32] {
    x.get(start..).unwrap_or_default()
}

fn copy(x: &[f32], y: &mut [f32]) {
    if x.len() == y.len() {
        y.copy_from_slice(x);
    }
}
