//! Which layers go to workers in floats.

use std::sync::Arc;

use larvatus_kernels::fixed::Bound;
use larvatus_kernels::float::{FloatLinear, channels};
use larvatus_proto::commit::Layout;
use larvatus_proto::digest::Digest;
use larvatus_proto::program::{Form, Held, LayerId, LayerSpec, Program};
use larvatus_proto::wire::Writer;

use super::{Demand, Leak, MaskSource, Sharing};
use crate::inference::Steps;
use crate::model::linear::{Linear, StaysLocal, share_uploads};
use crate::model::rounds::{Cut, Placed};
use crate::model::{Model, Port};
use crate::plan::{Kept, PlanError, PlannedRound, Row, Upload, place_all, program, rounds, row};
use crate::quantise::Channels;

/// A layer that goes to a worker.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    pub(super) spec: LayerSpec,
    /// Weights and bias with what is folded into them, such as a batch norm.
    pub(super) linear: FloatLinear,
}

impl Layer {
    /// W·x of all images.
    pub(super) fn without_bias(&self, x: &[f32], y: &mut [f32]) {
        let shape = &self.spec.shape;
        let images = x.chunks_exact(shape.inputs());
        for (x, y) in images.zip(y.chunks_exact_mut(shape.outputs())) {
            self.linear.apply_without_bias(x, y);
        }
    }
}

/// What is done about a model in floats.
pub struct Plan {
    model: Digest,
    digest: Digest,
    demand: Demand,
    layers: Vec<Layer>,
    kept: Vec<Kept>,
    rounds: Vec<PlannedRound>,
    cut: Cut,
    program: Program,
    /// What workers commit to of an inference, where answers are audited.
    answers: Option<Arc<Layout>>,
    ports: (Vec<Port>, Vec<Port>),
}

impl std::fmt::Debug for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plan")
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Plan {
    /// Plans a model: every linear layer with constant weights goes, unless the demand keeps it.
    ///
    /// # Errors
    /// [`PlanError`] where the model cannot be cut or the plan cannot be carried.
    pub fn new(model: &Model, demand: &Demand) -> Result<Arc<Self>, PlanError> {
        let graph = model.graph();
        let order = graph
            .eval_order()
            .map_err(|err| crate::model::engine(&err))?;
        let bound =
            |linear: &mut Linear| match linear.weights.iter().all(|weight| weight.is_finite()) {
                // Nothing is rounded to steps here.
                true => Ok(Bound::LARGEST),
                false => Err(StaysLocal::NotFinite),
            };
        let (mut found, kept) = place_all(graph, &order, &demand.keep, bound)?;
        share_uploads(graph, found.iter_mut().map(|(linear, _)| linear));
        let mut cut = Cut::new(graph, found)?;
        let layers: Vec<Layer> = cut.calls.iter_mut().map(layer).collect();
        let rounds = rounds(&cut)?;
        let specs = layers.iter().map(|layer| layer.spec.clone()).collect();
        let program = program(Form::Words, specs, &rounds)?.with_held(Held::Floats);
        let (program, answers) = match demand.audit() {
            // A plan that sends nothing has no answers to commit to.
            Some(_) if !rounds.is_empty() => {
                let program = program.committing();
                let answers = program.answers().map_err(PlanError::Commitment)?;
                (program, Some(Arc::new(answers)))
            }
            Some(_) | None => (program, None),
        };
        let mut plan = Self {
            model: model.digest(),
            digest: model.digest(),
            demand: demand.clone(),
            layers,
            kept,
            rounds,
            cut,
            program,
            answers,
            ports: (model.inputs().to_vec(), model.outputs().to_vec()),
        };
        plan.digest = Digest::of_plan(&plan.encode());
        Ok(Arc::new(plan))
    }

    /// Digest of the model file.
    pub fn model(&self) -> Digest {
        self.model
    }

    /// Digest of the plan.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The demand it answers.
    pub fn demand(&self) -> &Demand {
        &self.demand
    }

    /// The model's outputs.
    pub fn outputs(&self) -> &[Port] {
        &self.ports.1
    }

    /// Requests of one inference to each worker.
    pub fn round_trips(&self) -> usize {
        self.rounds.len()
    }

    /// Workers that take part.
    pub fn workers(&self) -> usize {
        match self.demand.sharing() {
            Sharing::Whole => 1,
            Sharing::TwoWorkers(_) => 2,
        }
    }

    /// How the answers of an inference are laid out in what a worker commits to; `None` where nothing is audited.
    pub(super) fn answers(&self) -> Option<&Arc<Layout>> {
        self.answers.as_ref()
    }

    /// The program of each worker.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// The name of a layer.
    pub fn layer_name(&self, id: LayerId) -> &str {
        let placed = self.cut.calls.get(id.index());
        placed.map_or("?", |placed| &placed.linear.name)
    }

    /// What the masks of one inference give away to a worker; `None` where there are none.
    pub fn data_leak(&self) -> Option<Leak> {
        let uploads = self.rounds.iter().flat_map(|round| &round.uploads);
        let elements = uploads.map(|upload| upload.elements() as u64).sum();
        Some(Leak::new(self.demand.masks()?, elements))
    }

    /// What the shares give away to each worker, for ever; `None` where a worker holds all weights.
    pub fn weight_leak(&self) -> Option<Leak> {
        let Sharing::TwoWorkers(times) = self.demand.sharing() else {
            return None;
        };
        let elements = self.layers.iter();
        let elements = elements.map(|layer| layer.spec.float_count() as u64).sum();
        Some(Leak::new(times, elements))
    }

    /// One sentence for people.
    pub fn guarantee(&self) -> String {
        if self.layers.is_empty() {
            return "nothing left this machine, and nobody else computed".to_owned();
        }
        let data = match self.demand.masks() {
            Some(times) => format!(
                "a worker saw floats under one-time masks {times} times as large as the data, which leaks (1 of {times} elements, and \
                 how large each tensor is)"
            ),
            None => "the worker saw every activation in clear".to_owned(),
        };
        let integrity = match self.demand.audit() {
            Some(fraction) => format!(
                "every answer was used before it was checked; {:.1} % are recomputed later, up to rounding",
                100.0 * fraction.get()
            ),
            None => "every answer was believed without a check".to_owned(),
        };
        let weights = match self.demand.sharing() {
            Sharing::Whole => String::new(),
            Sharing::TwoWorkers(times) => format!(
                "; each of two workers held floats around half the weights, {times} times as large, which leaks 1 of {times} of them \
                 and all where the two collude"
            ),
        };
        format!("{data}, and {integrity}{weights}")
    }

    /// Every linear layer, in the order of the graph.
    pub fn rows(&self) -> Vec<Row> {
        let words = |count: usize| 4 * (count * self.workers()) as u64;
        let calls = self.cut.calls.iter().zip(&self.layers).enumerate();
        let away = calls.map(|(index, (placed, layer))| {
            let upload = self.upload_of(index);
            let first = upload
                .is_some_and(|upload| upload.readers.first().map(|id| id.index()) == Some(index));
            let (hiding, privacy) = match self.demand.masks() {
                Some(times) => ("float mask", format!("1/{times} of the elements leak")),
                None => ("clear", "input visible".to_owned()),
            };
            let integrity = match self.demand.audit() {
                Some(fraction) => format!("audit {:.1} %", 100.0 * fraction.get()),
                None => "unverified".to_owned(),
            };
            let tail = placed.tail.describe();
            let plus = if tail.is_empty() { "" } else { "+" };
            Row {
                name: placed.linear.name.clone(),
                op: format!("{}{plus}{tail}", placed.linear.kind),
                shape: row::shape(&layer.spec, placed.linear.kind),
                macs: placed.linear.macs() * self.workers() as u64,
                up: if first { words(layer.spec.inputs()) } else { 0 },
                down: words(layer.spec.outputs()),
                placement: "worker",
                why: format!("floats, {} bits left", self.demand.bits_left()),
                hiding,
                guarantee: format!("{privacy}, {integrity}"),
                integrity,
                round: Some(placed.round),
            }
        });
        let mut rows: Vec<Row> = away.collect();
        for (earlier, kept) in self.kept.iter().enumerate() {
            rows.insert(kept.before + earlier, row::here(kept));
        }
        rows
    }

    fn upload_of(&self, layer: usize) -> Option<&Upload> {
        let round = self.rounds.get(self.cut.calls.get(layer)?.round)?;
        let call = round.calls.iter().find(|(id, _)| id.index() == layer)?;
        round.uploads.get(call.1)
    }

    pub(super) fn layers(&self) -> &[Layer] {
        &self.layers
    }

    pub(super) fn rounds(&self) -> &[PlannedRound] {
        &self.rounds
    }

    pub(super) fn placed(&self, id: LayerId) -> &Placed {
        &self.cut.calls[id.index()]
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        let Demand {
            masks,
            source,
            sharing,
            audit,
            keep: _,
        } = &self.demand;
        out.bytes(&self.model.0).bytes(&self.program.encode());
        out.u32(masks.map_or(0, super::Times::get));
        out.u32(match sharing {
            Sharing::Whole => 0,
            Sharing::TwoWorkers(times) => times.get(),
        });
        out.count(match source {
            MaskSource::Fresh => 0,
            MaskSource::Coarse => 1,
            MaskSource::Pool(vectors) => 2 + vectors,
        });
        out.u64(audit.map_or(0, |fraction| fraction.get().to_bits()));
        for placed in &self.cut.calls {
            out.text(&placed.linear.name);
        }
        out.into_bytes()
    }
}

impl Steps for Plan {
    type Answer = super::flight::Believed;

    fn inputs(&self) -> &[Port] {
        &self.ports.0
    }

    fn cut(&self) -> &Cut {
        &self.cut
    }

    fn rounds(&self) -> &[PlannedRound] {
        &self.rounds
    }
}

/// Takes the weights out of a call, and folds into them what rides along by channel.
fn layer(placed: &mut Placed) -> Layer {
    let shape = placed.linear.shape.clone();
    let mut weights = std::mem::take(&mut placed.linear.weights);
    let of = Channels::of(&shape);
    for (index, weight) in weights.iter_mut().enumerate() {
        *weight *= placed.tail.factor[of.of_weight(index)];
    }
    let bias = placed.tail.bias.clone();
    let bias = bias.unwrap_or_else(|| vec![0.0; channels(&shape)]);
    let linear = FloatLinear::new(shape.clone(), weights, bias);
    Layer {
        linear: linear.expect("the graph's weights are those of the shape"),
        spec: LayerSpec {
            shape,
            images: placed.linear.images,
            planes: 1,
            shift: 0,
        },
    }
}
