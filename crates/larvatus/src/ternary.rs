//! A network in three parts: the front and the head here, the middle in clear at a worker that commits to it and is audited.
//!
//! **Promised**: the three parts one after the other give the bits of the whole ([`crate::whole`]), and a lie in the middle is
//! found as often as an audit of the middle says ([`crate::audit`]). The worker sees the tensors of the cut and what it computes
//! from them, and neither weights nor tensors of front and head. **Not promised**: that the cut says little about the input. That is
//! measured, never proved (`larvatus assess`); a plan says by which attacks.
//!
//! [`Design::Paper`] is the ternary paper's own: everything behind the cut is outside, and only the names of classes are inside.
//! It is here to be compared with.
//!
//! Source: "Confidential Inference via Ternary Model Partitioning" (arXiv 1807.00969); the head inside and the audit are ours.

use std::collections::BTreeMap;

use larvatus_graph::{
    Cut, Model, ModelError, Part, PartError, Prepared, RunError, TensorId, Values,
};

use crate::whole::Whole;

/// What is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Design {
    /// Front and head: the last linear layer and whatever follows it.
    Ternary,
    /// The front alone: the worker has the scores.
    Paper,
}

/// Why a network is not run in three parts.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TernaryError {
    /// The tensors are no cut of this network.
    #[error("tensors {0:?} do not cut this network in two; assess it again")]
    NoCut(Vec<u32>),
    /// It has no linear layer with something before it.
    #[error("this network has no head: no linear layer with something in front of it")]
    NoHead,
    /// A part cannot be made.
    #[error(transparent)]
    Part(#[from] PartError),
    /// A part's weights are refused.
    #[error(transparent)]
    Weights(#[from] ModelError),
    /// A part of the run failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// What came back is not what the middle gives.
    #[error("what came back is not what the middle gives")]
    Output,
}

struct Inner {
    part: Part,
    prepared: Prepared,
}

impl Inner {
    fn new(part: Part) -> Result<Self, TernaryError> {
        Ok(Self {
            prepared: Prepared::new(part.model())?,
            part,
        })
    }

    fn run(&self, known: &mut BTreeMap<TensorId, Values>) -> Result<(), TernaryError> {
        let inputs = self
            .part
            .inputs()
            .iter()
            .filter_map(|id| known.get(id).cloned());
        let outputs = self.prepared.run(inputs.collect(), &mut ())?;
        known.extend(self.part.outputs().iter().copied().zip(outputs));
        Ok(())
    }
}

/// What an inference keeps here while the worker has the middle. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Inside {
    known: BTreeMap<TensorId, Values>,
}

/// Where the work is, as [`larvatus_graph::Graph::cost`] counts, and what lies here for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Costs {
    /// In front, in the middle, in the head.
    pub work: [u64; 3],
    /// Bytes that cross to the worker and back.
    pub crossing: [u64; 2],
    /// Bytes of weights that are here.
    pub weights: u64,
    /// Most bytes of tensors that are here at one time.
    pub tensors: u64,
}

/// A network in three parts.
pub struct Ternary {
    whole: Whole,
    design: Design,
    front: Option<Inner>,
    middle: Part,
    head: Option<Inner>,
}

impl std::fmt::Debug for Ternary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let nodes = self.middle.model().graph().nodes().len();
        write!(f, "Ternary({:?}, {nodes} nodes in the middle)", self.design)
    }
}

impl Ternary {
    /// Cuts a network at these tensors.
    ///
    /// # Errors
    /// [`TernaryError`].
    pub fn new(whole: Whole, cut: &[TensorId], design: Design) -> Result<Self, TernaryError> {
        let model = whole.model();
        let graph = model.graph();
        let tensors = || cut.iter().map(|id| id.0).collect();
        let cut = graph
            .cut_at(cut)
            .ok_or_else(|| TernaryError::NoCut(tensors()))?;
        let second = match design {
            Design::Ternary => Some(graph.head().ok_or(TernaryError::NoHead)?),
            Design::Paper => None,
        };
        let second: Option<&Cut> = second.as_ref();
        let front = match cut.front().contains(&true) {
            true => Some(Inner::new(model.part(None, Some(&cut))?)?),
            false => None,
        };
        let head = second.map(|second| Inner::new(model.part(Some(second), None)?));
        Ok(Self {
            middle: model.part(Some(&cut), second)?,
            front,
            head: head.transpose()?,
            design,
            whole,
        })
    }

    /// The network.
    pub fn whole(&self) -> &Whole {
        &self.whole
    }

    /// What is inside.
    pub fn design(&self) -> Design {
        self.design
    }

    /// What the worker gets and runs.
    pub fn middle(&self) -> &Model {
        self.middle.model()
    }

    /// Runs the front: what goes to the worker, and what stays.
    ///
    /// # Errors
    /// [`TernaryError::Run`].
    pub fn enter(&self, inputs: Vec<Values>) -> Result<(Vec<u8>, Inside), TernaryError> {
        let mut known: BTreeMap<TensorId, Values> = (0..).map(TensorId).zip(inputs).collect();
        if let Some(front) = &self.front {
            front.run(&mut known)?;
        }
        let crossing = self
            .middle
            .inputs()
            .iter()
            .filter_map(|id| known.get(id).cloned());
        let crossing: Vec<Values> = crossing.collect();
        let packed = self.middle().graph().pack_inputs(&crossing);
        Ok((packed.ok_or(TernaryError::Output)?, Inside { known }))
    }

    /// Runs the head on what the worker gave: the outputs of the network.
    ///
    /// # Errors
    /// [`TernaryError::Output`], [`TernaryError::Run`].
    pub fn leave(&self, inside: Inside, output: &[u8]) -> Result<Vec<Values>, TernaryError> {
        let Inside { mut known } = inside;
        let values = self.middle().graph().unpack_outputs(output);
        let values = values.ok_or(TernaryError::Output)?;
        known.extend(self.middle.outputs().iter().copied().zip(values));
        if let Some(head) = &self.head {
            head.run(&mut known)?;
        }
        let graph = self.whole.model().graph();
        let outputs = graph
            .outputs()
            .iter()
            .map(|output| known.get(&output.tensor).cloned());
        let outputs: Option<Vec<Values>> = outputs.collect();
        outputs.ok_or(TernaryError::Output)
    }

    /// What is where.
    pub fn costs(&self) -> Costs {
        let inner = [&self.front, &self.head];
        let graph = |inner: &Option<Inner>| {
            inner
                .as_ref()
                .map(|inner| inner.part.model().graph().clone())
        };
        let own = inner.map(graph);
        let work = own
            .each_ref()
            .map(|graph| graph.as_ref().map_or(0, |graph| graph.cost()));
        let middle = self.middle().graph();
        let bytes = |ids: &[TensorId]| {
            let specs = ids
                .iter()
                .filter_map(|id| self.whole.model().graph().tensors().get(id.index()));
            specs.map(larvatus_graph::TensorSpec::bytes).sum::<u64>()
        };
        Costs {
            work: [work[0], middle.cost(), work[1]],
            crossing: [bytes(self.middle.inputs()), bytes(self.middle.outputs())],
            weights: own.iter().flatten().map(|graph| graph.weight_bytes()).sum(),
            tensors: own
                .iter()
                .flatten()
                .map(|graph| graph.peak())
                .max()
                .unwrap_or(0),
        }
    }
}
