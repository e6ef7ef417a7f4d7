//! What will be done, layer by layer, frozen and digested.

mod cost;
mod guarantee;
mod paying;
mod placing;
mod rates;
pub(crate) mod row;

use std::sync::{Arc, OnceLock};

use larvatus_kernels::fixed::Bound;
use larvatus_kernels::linear::{Shape, Weights};
use larvatus_proto::commit::CommitError;
use larvatus_proto::digest::Digest;
use larvatus_proto::program::{Form, LayerCall, LayerId, LayerSpec, Program, Round, WorkerModel};
use larvatus_proto::wire::{DecodeError, Writer};

pub use cost::{Cost, Estimate, WeightBytes};
pub use guarantee::{ErrorBits, Guarantees, InputPrivacy};
pub(crate) use placing::place_all;
pub use rates::{LinkRates, LocalRates, Rates, RatesError, TrustedRates, WorkerRates};
pub use row::Row;

use crate::claim::Checked;
use crate::engine::Engine;
use crate::inference::Steps;
use crate::model::linear::{Kind, Linear, StaysLocal, share_uploads};
use crate::model::order::Order;
use crate::model::rounds::{Cut, Placed, Slot};
use crate::model::{Model, ModelError};
use crate::policy::{CheckDraw, Hiding, Integrity, Offload, Policy, Secrecy};
use crate::quantise::{Quantised, quantise};

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// The model cannot be cut.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// A layer that the policy keeps is not in the model.
    #[error("policy: no layer {name:?} to keep; see `larvatus plan` for the names")]
    NoSuchLayer {
        /// The name.
        name: String,
    },
    /// The plan exceeds what the protocol carries.
    #[error("plan: {0}")]
    Protocol(#[from] DecodeError),
    /// The answers of an inference are more than a worker can commit to.
    #[error("plan: answers to commit to: {0}")]
    Commitment(CommitError),
    /// The plan has more uploads than tickets can number.
    #[error("plan: {got} uploads, {most} can be numbered")]
    TooManyUploads {
        /// Uploads of the plan.
        got: usize,
        /// The most.
        most: usize,
    },
}

/// A layer that goes to a worker.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) placed: Placed,
    pub(crate) spec: LayerSpec,
    pub(crate) weights: Weights,
    pub(crate) bits: u32,
    /// Of a step of the answer, per output channel: the weights' scale and what is folded in.
    pub(crate) factor: Vec<f32>,
}

/// A linear layer that stays, and why.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name in the graph.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Multiply-accumulates of one inference, where they are known.
    pub macs: Option<u64>,
    /// Why it stays.
    pub why: StaysLocal,
    /// How many layers that go come before it in the graph.
    pub(crate) before: usize,
}

/// One tensor on its way to the worker.
#[derive(Clone, Debug)]
pub(crate) struct Upload {
    pub(crate) slot: Slot,
    pub(crate) order: Option<Order>,
    pub(crate) images: usize,
    /// Of one image.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    /// Whether each row has a scale of its own.
    pub(crate) row_scales: bool,
    pub(crate) bound: Bound,
    /// Layers that read it, in the order of their checks.
    pub(crate) readers: Vec<LayerId>,
}

impl Upload {
    pub(crate) fn image_elements(&self) -> usize {
        self.rows * self.cols
    }

    pub(crate) fn elements(&self) -> usize {
        self.images * self.image_elements()
    }

    /// Scales of one image.
    pub(crate) fn scales(&self) -> usize {
        if self.row_scales { self.rows } else { 1 }
    }
}

/// One request and its answer.
#[derive(Clone, Debug)]
pub(crate) struct PlannedRound {
    /// Number of its first upload in the plan.
    pub(crate) first_upload: u16,
    pub(crate) uploads: Vec<Upload>,
    /// Layer and index of its upload, in the order of the answers.
    pub(crate) calls: Vec<(LayerId, usize)>,
}

/// What is done about a model under a policy.
pub struct Plan {
    model: Digest,
    digest: Digest,
    policy: Policy,
    repetitions: usize,
    layers: Vec<Layer>,
    kept: Vec<Kept>,
    rounds: Vec<PlannedRound>,
    cut: Cut,
    worker_model: WorkerModel,
    ports: (Vec<crate::model::Port>, Vec<crate::model::Port>),
    engine: OnceLock<Engine>,
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Plans a model under a policy.
    ///
    /// # Errors
    /// [`PlanError`] where the model cannot be cut or the plan cannot be carried.
    pub fn new(model: &Model, policy: &Policy) -> Result<Arc<Self>, PlanError> {
        let graph = model.graph();
        let order = graph
            .eval_order()
            .map_err(|err| crate::model::engine(&err))?;
        let quantised = |linear: &mut Linear| {
            // From here on the integers stand for the weights.
            let weights = std::mem::take(&mut linear.weights);
            quantise(&linear.shape, &weights, policy.weights)
        };
        let (mut found, mut kept) = place_all(graph, &order, &policy.keep, quantised)?;
        if policy.offload == Offload::Paying {
            let linears: Vec<&Linear> = found.iter().map(|(linear, _)| linear).collect();
            let away = paying::choose(graph, &order, &linears, policy);
            (found, kept) = split(found, kept, &away);
        }
        share_uploads(graph, found.iter_mut().map(|(linear, _)| linear));
        let (linears, quantised): (Vec<_>, Vec<_>) = found
            .into_iter()
            .map(|(linear, quantised): (Linear, Quantised)| ((linear, quantised.bound), quantised))
            .unzip();
        let cut = Cut::new(graph, linears)?;
        let mut layers = layers(&cut, quantised);
        let rounds = rounds(&cut)?;
        let form = form(policy);
        let specs = layers.iter().map(|layer| layer.spec.clone()).collect();
        let program = program(form, specs, &rounds)?;
        let weights: Vec<&Weights> = layers.iter().map(|layer| &layer.weights).collect();
        let worker_model = WorkerModel::new(program, &weights)?;
        // Kept once: what is uploaded.
        for (layer, weights) in layers.iter_mut().zip(worker_model.weights()?) {
            layer.weights = weights;
        }
        let repetitions = match policy.integrity() {
            Integrity::Unverified => 0,
            Integrity::Checked { bits } => {
                let equations = layers.iter().map(|layer| layer.spec.images as u64).sum();
                let inferences = match policy.check() {
                    CheckDraw::Session => policy.lifetime,
                    CheckDraw::Fresh => 1,
                };
                guarantee::repetitions(bits, equations, inferences)
            }
        };
        let mut plan = Self {
            model: model.digest(),
            digest: model.digest(),
            policy: policy.clone(),
            repetitions,
            layers,
            kept,
            rounds,
            cut,
            worker_model,
            ports: (model.inputs().to_vec(), model.outputs().to_vec()),
            engine: OnceLock::new(),
        };
        plan.digest = Digest::of_plan(&plan.encode());
        Ok(Arc::new(plan))
    }

    /// Digest of the model file.
    pub fn model(&self) -> Digest {
        self.model
    }

    /// Digest of the plan: of the same version of this program, equal digests do equal things.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The policy it answers.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Freivalds repetitions of every check; 0 where nothing is checked.
    pub fn repetitions(&self) -> usize {
        self.repetitions
    }

    /// The model's inputs.
    pub fn inputs(&self) -> &[crate::model::Port] {
        &self.ports.0
    }

    /// The model's outputs.
    pub fn outputs(&self) -> &[crate::model::Port] {
        &self.ports.1
    }

    /// Requests of one inference.
    pub fn round_trips(&self) -> usize {
        self.rounds.len()
    }

    /// What the worker is sent once.
    pub fn worker_model(&self) -> &WorkerModel {
        &self.worker_model
    }

    /// Linear layers that stay on the trusted side.
    pub fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// The name of a layer.
    pub fn layer_name(&self, id: LayerId) -> &str {
        self.layers
            .get(id.index())
            .map_or("?", |layer| &layer.placed.linear.name)
    }

    pub(crate) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(crate) fn rounds(&self) -> &[PlannedRound] {
        &self.rounds
    }

    pub(crate) fn cut(&self) -> &Cut {
        &self.cut
    }

    /// The exact linear maps, prepared on first use and shared by all sessions of the plan.
    pub(crate) fn engine(&self) -> &Engine {
        self.engine.get_or_init(|| Engine::new(&self.layers))
    }

    /// The same, if they were used.
    pub(crate) fn prepared(&self) -> Option<&Engine> {
        self.engine.get()
    }

    /// Uploads of one inference.
    pub(crate) fn uploads(&self) -> impl Iterator<Item = &Upload> {
        self.rounds.iter().flat_map(|round| &round.uploads)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let hiding = match self.policy.hiding() {
            Hiding::Clear => 0,
            Hiding::Field => 1,
        };
        out.bytes(&self.model.0)
            .bytes(&self.worker_model.digest().0)
            .u8(hiding);
        let check = match self.policy.check() {
            CheckDraw::Session => 0,
            CheckDraw::Fresh => 1,
        };
        let secrecy = match self.policy.secrecy() {
            Secrecy::Public => 0,
            Secrecy::TwoWorkers => 1,
        };
        out.count(self.repetitions)
            .u8(check)
            .u8(secrecy)
            .u64(self.policy.lifetime);
        for port in self.ports.0.iter().chain(&self.ports.1) {
            out.text(&port.name);
            let dims = port.shape.as_deref().unwrap_or_default();
            out.count(dims.len());
            dims.iter().for_each(|dim| {
                out.count(*dim);
            });
        }
        for layer in &self.layers {
            out.text(&layer.placed.linear.name);
        }
        for upload in self.uploads() {
            out.u32(upload.bound.steps())
                .u8(u8::from(upload.row_scales));
        }
        out.into_bytes()
    }
}

impl Steps for Plan {
    type Answer = Checked;

    fn inputs(&self) -> &[crate::model::Port] {
        self.inputs()
    }

    fn cut(&self) -> &Cut {
        self.cut()
    }

    fn rounds(&self) -> &[PlannedRound] {
        self.rounds()
    }
}

/// Keeps the layers that are not `away`, at their place among those that stay anyway.
fn split(
    found: Vec<(Linear, Quantised)>,
    kept: Vec<Kept>,
    away: &[bool],
) -> (Vec<(Linear, Quantised)>, Vec<Kept>) {
    let (mut goes, mut stays) = (Vec::new(), Vec::with_capacity(kept.len()));
    let mut kept = kept.into_iter().peekable();
    for (at, (layer, away)) in found.into_iter().zip(away).enumerate() {
        while let Some(kept) = kept.next_if(|kept| kept.before <= at) {
            stays.push(Kept {
                before: goes.len(),
                ..kept
            });
        }
        if *away {
            goes.push(layer);
        } else {
            let (linear, _) = layer;
            stays.push(Kept {
                macs: Some(linear.macs()),
                kind: linear.kind,
                name: linear.name,
                why: StaysLocal::DoesNotPay,
                before: goes.len(),
            });
        }
    }
    let before = goes.len();
    stays.extend(kept.map(|kept| Kept { before, ..kept }));
    (goes, stays)
}

/// How requests travel. What is hidden is uniform over the field; what is not fits 16 bits, as
/// [`quantise`] sees to.
fn form(policy: &Policy) -> Form {
    match policy.hiding() {
        Hiding::Clear => Form::Halves,
        Hiding::Field => Form::Words,
    }
}

fn layers(cut: &Cut, quantised: Vec<Quantised>) -> Vec<Layer> {
    let layer = |(placed, quantised): (&Placed, Quantised)| {
        let planes = quantised.weights.planes().len();
        let spec = LayerSpec {
            shape: placed.linear.shape.clone(),
            images: placed.linear.images,
            planes: u8::try_from(planes).unwrap_or(u8::MAX),
            shift: u8::try_from(quantised.weights.shift()).unwrap_or(u8::MAX),
        };
        let scales = quantised.scales.iter().zip(&placed.tail.factor);
        Layer {
            factor: scales.map(|(scale, folded)| scale * folded).collect(),
            placed: placed.clone(),
            spec,
            weights: quantised.weights,
            bits: quantised.bits,
        }
    };
    cut.calls.iter().zip(quantised).map(layer).collect()
}

pub(crate) fn rounds(cut: &Cut) -> Result<Vec<PlannedRound>, PlanError> {
    let mut rounds = Vec::new();
    let mut uploads = 0_usize;
    for round in 0..cut.rounds() {
        let first_upload = u16::try_from(uploads).map_err(|_| PlanError::TooManyUploads {
            got: uploads,
            most: usize::from(u16::MAX),
        })?;
        let mut planned = PlannedRound {
            first_upload,
            uploads: Vec::new(),
            calls: Vec::new(),
        };
        let calls = cut.calls.iter().zip(0..);
        for (placed, id) in calls.filter(|(placed, _)| placed.round == round) {
            let upload = planned.join(LayerId(id), placed);
            planned.calls.push((LayerId(id), upload));
        }
        uploads += planned.uploads.len();
        rounds.push(planned);
    }
    match uploads <= usize::from(u16::MAX) {
        true => Ok(rounds),
        false => Err(PlanError::TooManyUploads {
            got: uploads,
            most: usize::from(u16::MAX),
        }),
    }
}

impl PlannedRound {
    /// Finds the upload that a layer reads, or adds it.
    fn join(&mut self, id: LayerId, placed: &Placed) -> usize {
        let linear = &placed.linear;
        let (rows, cols) = linear.shape.input_rows_cols();
        let upload = Upload {
            slot: placed.input,
            order: linear.input_order.clone(),
            images: linear.images,
            rows,
            cols,
            row_scales: matches!(linear.shape, Shape::MatMul(_)),
            bound: placed.bound,
            readers: vec![id],
        };
        let same = |other: &Upload| {
            (
                other.slot,
                &other.order,
                other.images,
                other.rows,
                other.cols,
                other.row_scales,
            ) == (
                upload.slot,
                &upload.order,
                upload.images,
                rows,
                cols,
                upload.row_scales,
            )
        };
        match self.uploads.iter().position(same) {
            Some(index) => {
                if let Some(shared) = self.uploads.get_mut(index) {
                    shared.bound = shared.bound.min(upload.bound);
                    shared.readers.push(id);
                }
                index
            }
            None => {
                self.uploads.push(upload);
                self.uploads.len() - 1
            }
        }
    }
}

pub(crate) fn program(
    form: Form,
    specs: Vec<LayerSpec>,
    rounds: &[PlannedRound],
) -> Result<Program, PlanError> {
    let rounds = rounds
        .iter()
        .map(|round| Round {
            uploads: round.uploads.iter().map(Upload::elements).collect(),
            calls: round
                .calls
                .iter()
                .map(|(layer, upload)| LayerCall {
                    layer: *layer,
                    upload: u16::try_from(*upload).unwrap_or(u16::MAX),
                })
                .collect(),
        })
        .collect();
    Ok(Program::new(form, specs, rounds)?)
}
