//! What the server does, whichever protocol asked: admission, lookup, checks of inputs, the inference, its deadline.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::confidential::Confidential;
use crate::engine::Loader;
use crate::lanes::Lanes;
use crate::metrics::{Metrics, Standing};
use crate::refusal::Refusal;
use crate::repository::{Loaded, Repository};
use crate::settings::Settings;
use crate::tensor::{Port, Tensor};

/// An inference as a protocol's request says it.
pub(crate) struct Request {
    pub(crate) model: String,
    pub(crate) version: String,
    pub(crate) inputs: Vec<Tensor>,
    /// Names of the outputs that are wanted; all where empty.
    pub(crate) outputs: Vec<String>,
    pub(crate) deadline: Instant,
}

/// What comes of it.
pub(crate) struct Reply {
    pub(crate) outputs: Vec<Tensor>,
}

/// The right to be at work on one request.
pub(crate) struct Admission {
    service: Arc<Service>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.service
            .metrics
            .admitted()
            .fetch_sub(1, Ordering::Relaxed);
    }
}

/// The server without its protocols.
pub(crate) struct Service {
    pub(crate) settings: Settings,
    pub(crate) repository: Arc<Repository>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) confidential: Option<Confidential>,
    lanes: Lanes,
    admission: Arc<Semaphore>,
    draining: AtomicBool,
}

impl Service {
    pub(crate) fn start(
        settings: Settings,
        loader: Box<dyn Loader>,
        confidential: Option<Confidential>,
    ) -> std::io::Result<Arc<Self>> {
        let repository = Arc::new(Repository::open(&settings.models, loader)?);
        let metrics = Arc::new(Metrics::default());
        let lanes = Lanes::start(settings.lanes, settings.admit, Arc::clone(&metrics))?;
        Ok(Arc::new(Self {
            admission: Arc::new(Semaphore::new(settings.admit)),
            settings,
            repository,
            metrics,
            confidential,
            lanes,
            draining: AtomicBool::new(false),
        }))
    }

    /// Loads what should be served at the start; what cannot be loaded is in the index, with the reason.
    pub(crate) fn load_all(&self) {
        let names: Vec<String> = match &self.settings.load {
            Some(names) => names.clone(),
            None => self
                .repository
                .index()
                .into_iter()
                .map(|entry| entry.name)
                .collect(),
        };
        for name in names {
            if let Err(why) = self.repository.load(&name) {
                tracing::error!(name, %why, "not loaded");
            }
        }
    }

    /// Lets one more request in.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where as many are at work as the settings allow, [`Refusal::Draining`] at the end.
    pub(crate) fn admit(self: &Arc<Self>) -> Result<Admission, Refusal> {
        if self.is_draining() {
            return Err(Refusal::Draining);
        }
        let permit = Arc::clone(&self.admission).try_acquire_owned();
        let permit = permit.map_err(|_| Refusal::Busy {
            limit: self.settings.admit,
        })?;
        self.metrics.admitted().fetch_add(1, Ordering::Relaxed);
        Ok(Admission {
            service: Arc::clone(self),
            _permit: permit,
        })
    }

    /// When a request must be done that allows itself so long.
    pub(crate) fn deadline(&self, wished: Option<Duration>) -> Instant {
        let most = self.settings.deadline;
        Instant::now() + wished.map_or(most, |wished| wished.min(most))
    }

    /// One inference, counted.
    pub(crate) async fn infer(&self, request: Request) -> Result<Reply, Refusal> {
        let started = Instant::now();
        let name = match self.repository.knows(&request.model) {
            true => request.model.clone(),
            false => String::new(),
        };
        let answered = self.attempt(request).await;
        self.count(&name, answered.as_ref().err(), started);
        answered
    }

    /// Counts how a request ended.
    pub(crate) fn count(&self, model: &str, refused: Option<&Refusal>, started: Instant) {
        let outcome = refused.map_or("ok", Refusal::label);
        self.metrics.ended(model, outcome, started.elapsed());
    }

    async fn attempt(&self, request: Request) -> Result<Reply, Refusal> {
        let model = self.repository.get(&request.model, &request.version)?;
        let outputs = model.engine().outputs();
        let mut seen = BTreeSet::new();
        for wanted in &request.outputs {
            if !outputs.iter().any(|port| port.name == *wanted) {
                return Err(Refusal::Invalid(format!(
                    "model `{}` has no output `{}`; it has {}",
                    model.name(),
                    shorten(wanted),
                    names(outputs)
                )));
            }
            if !seen.insert(wanted) {
                return Err(Refusal::Invalid(format!(
                    "output `{}` is asked for twice",
                    shorten(wanted)
                )));
            }
        }
        let inputs = in_order(&model, request.inputs)?;
        let answer = self
            .lanes
            .submit(Arc::clone(&model), inputs, request.deadline)?;
        let until = tokio::time::Instant::from_std(request.deadline);
        let tensors = match tokio::time::timeout_at(until, answer).await {
            Err(_) => return Err(Refusal::Deadline),
            Ok(Err(_)) => return Err(Refusal::Draining),
            Ok(Ok(answered)) => answered?,
        };
        let mut outputs: Vec<Option<Tensor>> = tensors.into_iter().map(Some).collect();
        if request.outputs.is_empty() {
            return Ok(Reply {
                outputs: outputs.into_iter().flatten().collect(),
            });
        }
        let named = |output: &Option<Tensor>, name: &str| {
            output.as_ref().is_some_and(|tensor| tensor.name() == name)
        };
        let wanted = request.outputs.iter().map(|name| {
            let output = outputs.iter_mut().find(|output| named(output, name));
            output.and_then(Option::take).ok_or_else(|| {
                Refusal::Failed(format!("the inference gave no output `{}`", shorten(name)))
            })
        });
        let outputs = wanted.collect::<Result<_, _>>()?;
        Ok(Reply { outputs })
    }

    /// Loads or unloads a model, away from the threads that speak with clients.
    pub(crate) async fn control(self: &Arc<Self>, name: String, load: bool) -> Result<(), Refusal> {
        if !self.settings.model_control {
            return Err(Refusal::Forbidden(
                "models are not loaded and unloaded by clients here; the operator may allow it with --model-control"
                    .to_owned(),
            ));
        }
        let service = Arc::clone(self);
        let work = move || match load {
            true => service.repository.load(&name),
            false => service.repository.unload(&name),
        };
        tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
            Err(Refusal::Failed(
                "loading ended with a fault of this program".to_owned(),
            ))
        })
    }

    pub(crate) fn is_ready(&self) -> bool {
        !self.is_draining() && self.repository.is_ready()
    }

    /// Whether one model serves.
    pub(crate) fn model_is_ready(&self, name: &str, version: &str) -> bool {
        !self.is_draining() && self.repository.get(name, version).is_ok()
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// Takes nothing on any more.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Ends the threads that compute, after what they have begun and what waits.
    pub(crate) fn stop(&self) {
        self.lanes.close();
    }

    /// The page of metrics.
    pub(crate) fn metrics_page(&self) -> String {
        let index = self.repository.index();
        self.metrics.page(&Standing {
            ready: index.iter().filter(|entry| entry.ready).count(),
            known: index.len(),
            locked: self.settings.memory_locked,
            draining: self.is_draining(),
        })
    }
}

/// The inputs as the model takes them: each one, once, of its type and shape.
fn in_order(model: &Loaded, given: Vec<Tensor>) -> Result<Vec<Tensor>, Refusal> {
    let ports = model.engine().inputs();
    let mut places: Vec<Option<Tensor>> = ports.iter().map(|_| None).collect();
    for tensor in given {
        let Some(at) = ports.iter().position(|port| port.name == tensor.name()) else {
            return Err(Refusal::Invalid(format!(
                "model `{}` has no input `{}`; it has {}",
                model.name(),
                shorten(tensor.name()),
                names(ports)
            )));
        };
        let port = &ports[at];
        if !port.takes(&tensor) {
            return Err(Refusal::Invalid(format!(
                "input `{}` is {} of shape {:?}; model `{}` takes {} of shape {:?}",
                port.name,
                tensor.datatype(),
                tensor.shape(),
                model.name(),
                port.datatype,
                port.wire_shape()
            )));
        }
        if places[at].replace(tensor).is_some() {
            return Err(Refusal::Invalid(format!(
                "input `{}` is given twice",
                port.name
            )));
        }
    }
    let missing = ports.iter().zip(&places).find(|(_, place)| place.is_none());
    if let Some((port, _)) = missing {
        return Err(Refusal::Invalid(format!(
            "model `{}` takes an input `{}`, which is missing",
            model.name(),
            port.name
        )));
    }
    Ok(places.into_iter().flatten().collect())
}

fn names(ports: &[Port]) -> String {
    let names: Vec<String> = ports
        .iter()
        .map(|port| format!("`{}`", port.name))
        .collect();
    names.join(", ")
}

/// A name of a request, short and printable.
pub(crate) fn shorten(name: &str) -> String {
    let short: String = name.chars().take(64).collect();
    short.escape_debug().to_string()
}
