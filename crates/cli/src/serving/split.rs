//! Split runs for many clients: each inference has a session with the workers to itself while it runs.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use larvatus::error::InferError;
use larvatus::plan::Plan;
use larvatus::policy::Secrecy;
use larvatus::secret::Entropy;
use larvatus::session::{Session, Settings};
use larvatus::tensor::Tensor;
use larvatus_host::pump::{Options, Progress};
use larvatus_host::{Address, Clock, Link, Pump, entropy};
use larvatus_proto::machine::Machine;
use larvatus_serve::engine::EngineError;

use crate::parties::Parties;
use crate::spawn::OwnWorker;

/// Longest silence between two looks at the deadline.
const STEP: Duration = Duration::from_millis(100);

/// Longest look at one of two workers before the other's turn.
const BRIEF: Duration = Duration::from_millis(5);

/// Who does the linear layers of all models.
pub(crate) struct Crew {
    pub(crate) workers: Vec<String>,
    pub(crate) parties: Parties,
    /// Workers that were started here; they end with this value.
    pub(crate) _own: Vec<OwnWorker>,
    /// How long a worker may take for any reply.
    pub(crate) answer_within: Duration,
}

/// A model whose linear layers are computed elsewhere.
pub(crate) struct Split {
    plan: Arc<Plan>,
    crew: Arc<Crew>,
    /// Sessions that nobody uses just now.
    idle: Mutex<Vec<Line>>,
    /// The worker that is tried first.
    first: AtomicUsize,
}

impl Split {
    /// Connects once, so that the weights are uploaded before anybody asks.
    pub(crate) fn new(plan: Arc<Plan>, crew: Arc<Crew>) -> Result<Self, String> {
        let split = Self {
            plan,
            crew,
            idle: Mutex::default(),
            first: AtomicUsize::new(0),
        };
        let until = Instant::now() + split.crew.answer_within.saturating_mul(4);
        let line = split.connect(until).map_err(|why| why.to_string())?;
        split.put_back(line);
        Ok(split)
    }

    /// One inference.
    pub(crate) fn infer(
        &self,
        inputs: Vec<Tensor>,
        deadline: Instant,
    ) -> Result<Vec<Arc<Tensor>>, EngineError> {
        // A session that lay idle may have lost its worker meanwhile; a new one is tried once then.
        if let Some(line) = self.take() {
            match self.attempt(line, inputs.clone(), deadline) {
                Err(EngineError::Unavailable(why)) => {
                    tracing::warn!(why, "a session ended; another is begun");
                }
                other => return other,
            }
        }
        self.attempt(self.connect(deadline)?, inputs, deadline)
    }

    fn attempt(
        &self,
        mut line: Line,
        inputs: Vec<Tensor>,
        deadline: Instant,
    ) -> Result<Vec<Arc<Tensor>>, EngineError> {
        let outputs = line.infer(inputs, deadline)?;
        self.put_back(line);
        Ok(outputs)
    }

    fn take(&self) -> Option<Line> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.pop()
    }

    fn put_back(&self, line: Line) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(line);
    }

    /// A session with the first workers that serve.
    fn connect(&self, deadline: Instant) -> Result<Line, EngineError> {
        let workers = &self.crew.workers;
        let needed = match self.plan.policy().secrecy() {
            Secrecy::Public => 1,
            Secrecy::TwoWorkers => 2,
        };
        let first = self.first.load(Ordering::Relaxed);
        let mut failures: Vec<String> = Vec::new();
        for shift in 0..workers.len() {
            let chosen = (0..needed).map(|at| &workers[(first + shift + at) % workers.len()]);
            let chosen: Vec<&str> = chosen.map(String::as_str).collect();
            match Line::connect(&self.plan, &self.crew, &chosen, deadline) {
                Ok(line) => {
                    self.first
                        .store((first + shift) % workers.len(), Ordering::Relaxed);
                    return Ok(line);
                }
                Err(EngineError::Unavailable(why)) => failures.push(why),
                Err(other) => return Err(other),
            }
        }
        tracing::error!(?failures, "no worker serves");
        Err(EngineError::Unavailable(
            "no worker serves this model now".to_owned(),
        ))
    }
}

/// A session, and a link to each of its workers.
struct Line {
    session: Session,
    pumps: Vec<Pump>,
    clock: Clock,
    name: String,
}

impl Line {
    fn connect(
        plan: &Arc<Plan>,
        crew: &Crew,
        workers: &[&str],
        deadline: Instant,
    ) -> Result<Self, EngineError> {
        let away =
            |why: String| EngineError::Unavailable(format!("{}: {why}", workers.join(" and ")));
        let mut links: Vec<(Address, Link)> = Vec::with_capacity(workers.len());
        for address in workers {
            let address: Address = address.parse().map_err(|why| away(format!("{why}")))?;
            let link = crew.parties.connect(&address, crew.answer_within);
            links.push((address, link.map_err(|why| away(why.to_string()))?));
        }
        let addresses: Vec<&Address> = links.iter().map(|(address, _)| address).collect();
        let apart = match addresses[..] {
            [first, second] => Some(
                crew.parties
                    .apart(first, second)
                    .map_err(|why| away(format!("{why:#}")))?,
            ),
            _ => None,
        };
        let settings = Settings {
            window: 1,
            answer_within: crew.answer_within,
            worker: addresses.first().and_then(|only| crew.parties.known(only)),
            apart,
            ..Settings::default()
        };
        let fresh = entropy().map_err(|why| EngineError::Failed(why.to_string()))?;
        let session = Session::new(Arc::clone(plan), Entropy::new(fresh), settings);
        let clock = Clock::start();
        let largest = 4 * plan.worker_model().program().largest_answer() as u64 + 1024;
        let options = Options {
            write_timeout: crew.answer_within,
            room: Options::default().room.max(largest),
        };
        let pumps = links
            .into_iter()
            .map(|(_, link)| Pump::new(link, clock, options));
        let pumps = pumps
            .collect::<Result<_, _>>()
            .map_err(|why| away(why.to_string()))?;
        let mut line = Self {
            session,
            pumps,
            clock,
            name: workers.join(" and "),
        };
        while !line.session.is_ready() {
            line.step(deadline)?;
        }
        Ok(line)
    }

    fn infer(
        &mut self,
        inputs: Vec<Tensor>,
        deadline: Instant,
    ) -> Result<Vec<Arc<Tensor>>, EngineError> {
        if self.session.provisioned() == 0 {
            self.session.provision(1);
        }
        let begun = self.session.begin(inputs, self.clock.now());
        begun.map_err(|why| match why {
            larvatus::error::InputError::LifetimeOver { .. } => {
                EngineError::Unavailable(why.to_string())
            }
            other => EngineError::Input(other.to_string()),
        })?;
        loop {
            if let Some((_, result)) = self.session.poll() {
                let output = result.map_err(|why| self.fault(&why))?;
                return Ok(output.tensors);
            }
            self.step(deadline)?;
        }
    }

    fn fault(&self, why: &InferError) -> EngineError {
        match why {
            InferError::Worker(lie) => EngineError::Broken(format!("{}: {lie}", self.name)),
            InferError::Failed(failed) => {
                EngineError::Unavailable(format!("{}: {failed}", self.name))
            }
            other => {
                tracing::debug!(%other, "an inference failed");
                EngineError::Failed("the inference failed on this input".to_owned())
            }
        }
    }

    /// Moves what can be moved.
    fn step(&mut self, deadline: Instant) -> Result<(), EngineError> {
        if let Some(why) = self.session.failure() {
            return Err(self.fault(why));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(EngineError::Deadline);
        }
        if let [pump] = &mut self.pumps[..] {
            let stepped = pump.step(&mut self.session, STEP.min(left));
            return self.stepped(stepped.err());
        }
        let mut idle = true;
        for at in 0..self.pumps.len() {
            let stepped = self.pumps[at].step(&mut self.session.line(at), Duration::ZERO);
            idle &= matches!(stepped, Ok(Progress::Idle | Progress::Finished));
            self.stepped(stepped.err())?;
        }
        let owes = |at: &usize| self.session.line(*at).deadline().is_some();
        if idle && let Some(at) = (0..self.pumps.len()).find(owes) {
            let stepped = self.pumps[at].step(&mut self.session.line(at), BRIEF.min(left));
            self.stepped(stepped.err())?;
        }
        Ok(())
    }

    fn stepped(&self, ended: Option<larvatus_host::LinkError>) -> Result<(), EngineError> {
        match (ended, self.session.failure()) {
            // The session knows why the link ended and says it better, at the next step.
            (None, _) | (Some(_), Some(_)) => Ok(()),
            (Some(why), None) => Err(EngineError::Unavailable(format!("{}: {why}", self.name))),
        }
    }
}
