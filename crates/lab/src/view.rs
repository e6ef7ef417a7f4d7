//! What a worker sees: a session and its workers in one process, every request kept.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use larvatus::faithful::{self, Demand};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::Preset;
use larvatus::secret::Entropy;
use larvatus::session::{Session, Settings};
use larvatus::shares::Apart;
use larvatus::tensor::Tensor;
use larvatus_kernels::field::P;
use larvatus_kernels::linear::halves;
use larvatus_proto::machine::Machine;
use larvatus_proto::program::WorkerModel;
use larvatus_testkit::pair::converse;
use larvatus_worker::{Backend, BackendError, Cpu, Limits, Loaded, Service, Store};

/// A mode that is attacked.
#[derive(Clone, Debug)]
pub enum Mode {
    /// One of the exact presets.
    Exact(Preset),
    /// Masks in floats.
    Floats(Demand),
}

impl Mode {
    /// Workers that take part.
    pub fn workers(&self) -> usize {
        match self {
            Self::Exact(Preset::VerisplitExact) => 2,
            Self::Exact(_) => 1,
            Self::Floats(demand) => match demand.sharing() {
                faithful::Sharing::Whole => 1,
                faithful::Sharing::TwoWorkers(_) => 2,
            },
        }
    }
}

/// A request as a worker got it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its round.
    pub round: u32,
    /// Its words.
    pub words: Vec<u32>,
}

/// Requests that one worker got.
pub type Seen = Arc<Mutex<Vec<Request>>>;

/// An engine that keeps what it is asked.
pub struct Recorder {
    cpu: Cpu,
    seen: Seen,
}

impl Recorder {
    /// One that keeps it here.
    ///
    /// # Errors
    /// Where the system gives no thread.
    pub fn new(seen: &Seen) -> Result<Self> {
        Ok(Self {
            cpu: Cpu::new(NonZeroUsize::MIN)?,
            seen: Arc::clone(seen),
        })
    }
}

impl Backend for Recorder {
    fn name(&self) -> String {
        format!("{}, which keeps what it is asked", self.cpu.name())
    }

    fn load(&self, model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError> {
        Ok(Box::new(Recording {
            inner: self.cpu.load(model)?,
            seen: Arc::clone(&self.seen),
        }))
    }
}

struct Recording {
    inner: Box<dyn Loaded>,
    seen: Seen,
}

impl Loaded for Recording {
    fn call(&self, round: u32, words: &[u32]) -> Result<Vec<u32>, BackendError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.push(Request {
            round,
            words: words.to_vec(),
        });
        drop(seen);
        self.inner.call(round, words)
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}

/// A session with its workers.
pub struct Home {
    trusted: Trusted,
    workers: Vec<Service>,
    seen: Vec<Seen>,
    halves: bool,
}

enum Trusted {
    Exact(Box<Session>),
    Floats(Box<faithful::Session>),
}

const NOW: Duration = Duration::ZERO;

impl Home {
    /// A network in a mode, with workers that keep what they see. Equal seeds give equal secrets.
    ///
    /// # Errors
    /// Where the network cannot be planned.
    pub fn new(network: &[u8], mode: &Mode, seed: u8) -> Result<Self> {
        let seen: Vec<Seen> = (0..mode.workers()).map(|_| Seen::default()).collect();
        let backends = seen.iter().map(|seen| {
            let backend: Box<dyn Backend> = Box::new(Recorder::new(seen)?);
            Ok(backend)
        });
        let backends = backends.collect::<Result<_>>()?;
        let model = Model::load(network, &[])?;
        Self::with(&model, mode, [seed; 32], seen, backends)
    }

    /// The same with engines of the caller's.
    ///
    /// # Errors
    /// As [`Home::new`].
    pub fn with(
        model: &Model,
        mode: &Mode,
        seed: [u8; 32],
        seen: Vec<Seen>,
        backends: Vec<Box<dyn Backend>>,
    ) -> Result<Self> {
        let entropy = Entropy::new(seed);
        let apart = (mode.workers() > 1).then(Apart::danger_believed);
        let trusted = match mode {
            Mode::Exact(preset) => {
                let plan = Plan::new(model, &preset.policy())?;
                let settings = Settings {
                    apart,
                    ..Settings::default()
                };
                Trusted::Exact(Box::new(Session::new(plan, entropy, settings)))
            }
            Mode::Floats(demand) => {
                let plan = faithful::Plan::new(model, demand)?;
                let settings = faithful::Settings {
                    apart,
                    ..faithful::Settings::default()
                };
                let session = faithful::Session::new(plan, &entropy, &settings)?;
                Trusted::Floats(Box::new(session))
            }
        };
        let service = |backend| Service::new(Store::new(backend, Limits::default()), NOW);
        Ok(Self {
            trusted,
            workers: backends.into_iter().map(service).collect(),
            seen,
            halves: matches!(mode, Mode::Exact(Preset::Clear | Preset::Integrity)),
        })
    }

    /// Runs one inference.
    ///
    /// # Errors
    /// Where it fails.
    pub fn infer(&mut self, input: Tensor) -> Result<Vec<Arc<Tensor>>> {
        match &mut self.trusted {
            Trusted::Exact(session) => {
                session.begin(vec![input], NOW)?;
            }
            Trusted::Floats(session) => {
                session.begin(vec![input], NOW)?;
            }
        }
        // Each round takes a turn of every line, and the beginning a few.
        for _ in 0..10_000 {
            for (line, worker) in self.workers.iter_mut().enumerate() {
                let mut exact;
                let mut floats;
                let machine: &mut dyn Machine = match &mut self.trusted {
                    Trusted::Exact(session) => {
                        exact = session.line(line);
                        &mut exact
                    }
                    Trusted::Floats(session) => {
                        floats = session.line(line);
                        &mut floats
                    }
                };
                converse(machine, worker, NOW);
            }
            match &mut self.trusted {
                Trusted::Exact(session) => {
                    if let Some((_, output)) = session.poll() {
                        return Ok(output?.tensors);
                    }
                }
                Trusted::Floats(session) => {
                    if let Some((_, output)) = session.poll() {
                        return Ok(output?.run.tensors);
                    }
                }
            }
        }
        Err(anyhow!("the inference does not end"))
    }

    /// Has every block of the answers opened that an audit draws, and recomputes it; how many, and the largest deviation as a
    /// fraction of what is allowed.
    ///
    /// # Errors
    /// Where one is refuted.
    pub fn settle(&mut self) -> Result<(usize, f64)> {
        let Trusted::Floats(session) = &mut self.trusted else {
            return Ok((0, 0.0));
        };
        session.audit(&Entropy::new([1; 32]), NOW);
        for (line, worker) in self.workers.iter_mut().enumerate() {
            converse(&mut session.line(line), worker, NOW);
        }
        let (mut settled, mut used) = (0, 0.0_f64);
        while let Some(provisional) = session.take_provisional() {
            let found = provisional.settle().context("audit")?;
            used = used.max(found.used);
            settled += found.blocks;
        }
        Ok((settled, used))
    }

    /// Workers that take part.
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// Takes the requests that a worker has seen so far.
    pub fn take(&self, line: usize) -> Vec<Request> {
        let mut seen = self.seen[line]
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *seen)
    }

    /// A request's words as the numbers they stand for: floats, 16-bit numbers, or centred field elements.
    pub fn values(&self, request: &Request, elements: usize) -> Vec<f64> {
        let words = &request.words;
        match &self.trusted {
            Trusted::Floats(_) => {
                let floats = words.iter().map(|word| f64::from(f32::from_bits(*word)));
                floats.collect()
            }
            Trusted::Exact(_) if self.halves => {
                let halves = halves(words).iter().take(elements);
                halves.map(|half| f64::from(*half)).collect()
            }
            Trusted::Exact(_) => words.iter().map(|word| centred(*word)).collect(),
        }
    }
}

/// The representative of a field element around zero.
pub fn centred(word: u32) -> f64 {
    let word = f64::from(word);
    let p = f64::from(P);
    if word > p / 2.0 { word - p } else { word }
}
