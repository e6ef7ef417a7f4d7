//! Running a graph.

mod nodes;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larvatus_kernels::fixed::max_abs_with;
use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{ShapeError, ShortLinear};

use crate::graph::{Element, Graph};
use crate::model::{Model, ModelError};
use crate::op::Op;
use crate::pool::Pool;
use crate::tensor::{ConstantId, Source, TensorId, Values};
use crate::trace::Trace;
use nodes::{Live, Run, Scratch};

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
    /// Memory of runs that are over.
    shelf: Mutex<Vec<Scratch>>,
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
            shelf: Mutex::default(),
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
    /// With the feature `parallel`, its work is shared through the current rayon pool.
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
            scratch: self.shelf().pop().unwrap_or_default(),
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
        run.scratch.forget();
        self.shelf().push(run.scratch);
        Ok(results)
    }

    fn shelf(&self) -> MutexGuard<'_, Vec<Scratch>> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
