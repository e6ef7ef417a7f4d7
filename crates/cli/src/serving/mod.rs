//! Models as the inference service wants them: files become engines, and engines run on this side alone or as split
//! runs with workers.

mod keyring;
mod split;
mod tensors;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use larvatus::exact::{FloatNetwork, LocalError, run_exact};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::Preset;
use larvatus::tensor;
use larvatus_serve::engine::{Engine, EngineError, Loader};
use larvatus_serve::tensor::{Port, Tensor};

use crate::cmd::Named;
pub(crate) use keyring::{Keys, Ring};
use keyring::{SEALED, is_sealed};
pub(crate) use split::{Crew, Split};
pub(crate) use tensors::{model_port, read, write};

/// The model that a file holds, by its name: `NAME.onnx`, `NAME.onnx.sealed` or `NAME.sealed`.
fn name(file: &Path) -> Option<String> {
    let file = file.file_name()?.to_str()?;
    let name = match file.strip_suffix(SEALED) {
        Some(sealed) => sealed.strip_suffix(PLAIN).unwrap_or(sealed),
        None => file.strip_suffix(PLAIN)?,
    };
    Some(name.to_owned())
}

/// How the files of models that are not sealed end.
const PLAIN: &str = ".onnx";

/// Makes engines under one policy.
pub(crate) struct Models {
    pub(crate) named: Named,
    /// Shapes that models leave open: the model's name, its input's, the shape.
    pub(crate) shapes: Vec<(String, (String, Vec<usize>))>,
    /// Who does the linear layers, where the policy sends them away.
    pub(crate) crew: Option<Arc<Crew>>,
    /// Keys of sealed models.
    pub(crate) keys: Arc<Keys>,
}

impl Models {
    /// The engine of a model's bytes.
    fn engine(&self, name: &str, bytes: &[u8]) -> Result<Box<dyn Engine>, String> {
        let shapes = self.shapes.iter().filter(|(model, _)| model == name);
        let shapes: Vec<_> = shapes.map(|(_, shape)| shape.clone()).collect();
        let model = Model::load(bytes, &shapes).map_err(|err| err.to_string())?;
        let inputs = model.inputs().iter().map(|port| {
            let known = tensors::port(port)?;
            match port.shape {
                Some(_) => Ok(known),
                None => Err(format!(
                    "the model leaves the shape of input {:?} open; give it with --shape {name}:{}=DxD",
                    port.name, port.name
                )),
            }
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        let outputs = model.outputs().iter().map(tensors::port);
        let outputs = outputs.collect::<Result<Vec<_>, _>>()?;
        let mut guarantee = "no worker: everything runs on the trusted side".to_owned();
        let work = if self.named.preset == Some(Preset::Local) {
            let network = FloatNetwork::new(&model).map_err(|err| err.to_string())?;
            Work::Float(network)
        } else {
            let plan = Plan::new(&model, &self.named.policy).map_err(|err| err.to_string())?;
            match &self.crew {
                Some(crew) if plan.round_trips() > 0 => {
                    guarantee = plan.guarantees().sentence();
                    Work::Split(Split::new(plan, Arc::clone(crew))?)
                }
                _ => Work::Exact(plan),
            }
        };
        Ok(Box::new(Running {
            inputs,
            outputs,
            platform: format!("larvatus_{}", self.named.name.replace(['/', '.', '-'], "_")),
            guarantee,
            work,
        }))
    }
}

impl Loader for Models {
    fn name(&self, file: &Path) -> Option<String> {
        name(file)
    }

    fn load(&self, file: &Path) -> Result<Box<dyn Engine>, String> {
        let name = name(file).ok_or("no file of a model")?;
        let shown: PathBuf = file.file_name().map(PathBuf::from).unwrap_or_default();
        if is_sealed(file) {
            return self.engine(&name, &self.keys.open(file)?);
        }
        let bytes = std::fs::read(file)
            .map_err(|err| format!("{} cannot be read: {err}", shown.display()))?;
        self.engine(&name, &bytes)
    }
}

/// What computes.
enum Work {
    Float(FloatNetwork),
    Exact(Arc<Plan>),
    Split(Split),
}

/// A model that is served.
struct Running {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    platform: String,
    guarantee: String,
    work: Work,
}

impl Engine for Running {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn platform(&self) -> &str {
        &self.platform
    }

    fn properties(&self) -> Vec<(String, String)> {
        vec![("guarantee".to_owned(), self.guarantee.clone())]
    }

    fn infer(&self, inputs: Vec<Tensor>, deadline: Instant) -> Result<Vec<Tensor>, EngineError> {
        let read = inputs.into_iter().map(|input| tensors::read(&input));
        let read = read.collect::<Result<Vec<tensor::Tensor>, _>>();
        let inputs = read.map_err(EngineError::Input)?;
        let outputs = match &self.work {
            Work::Float(network) => network.run(inputs).map_err(local)?,
            Work::Exact(plan) => run_exact(plan, inputs).map_err(local)?,
            Work::Split(split) => split.infer(inputs, deadline)?,
        };
        let written = self.outputs.iter().zip(&outputs);
        let written = written.map(|(port, tensor)| tensors::write(&port.name, tensor));
        written
            .collect::<Result<_, _>>()
            .map_err(EngineError::Failed)
    }
}

fn local(why: LocalError) -> EngineError {
    match why {
        LocalError::Input(why) => EngineError::Input(why.to_string()),
        // The graph engine's own words may hold values; they are of no use to a client.
        LocalError::Infer(why) => {
            tracing::debug!(%why, "an inference failed");
            EngineError::Failed("the inference failed on this input".to_owned())
        }
        _ => EngineError::Failed("the inference failed".to_owned()),
    }
}
