//! A session, a worker's address and inputs: runs them through, and measures what it took.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use larvatus::error::{DealerMisbehaved, InferError, WorkerFailed, WorkerMisbehaved};
use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::secret::Entropy;
use larvatus::session::{InferenceId, Output, Session, Settings};
use larvatus::store::Store;
use larvatus::tensor::Tensor;
use larvatus_host::pump::{Options, Progress};
use larvatus_host::{Address, Clock, LinkError, OpenError, Pump, entropy, process_cpu};
use larvatus_proto::machine::Machine;

use crate::crews::Crews;
use crate::dealer::Dealer;
use crate::memory::Memory;
use crate::parties::Parties;
use crate::report::Cpu;
use crate::tickets::{Sources, Supplied, Tickets};

/// Longest silence between two looks at the clock.
const STEP: Duration = Duration::from_millis(200);

/// Longest look at one of two workers before the other's turn.
const BRIEF: Duration = Duration::from_millis(20);

/// How long a link is tried whose time is over.
const INSTANT: Duration = Duration::from_millis(1);

/// The same while tickets are awaited.
const SOON: Duration = Duration::from_millis(2);

/// How a run over workers ended.
pub(crate) struct Outcome {
    /// One output an input, in order; fewer where a worker lied.
    pub(crate) outputs: Vec<Output>,
    pub(crate) cpu: Cpu,
    pub(crate) wall: Duration,
    /// Address and name of the worker that answered last, where one was reached.
    pub(crate) worker: Option<String>,
    pub(crate) lie: Option<Lie>,
    /// Workers that failed before, and why.
    pub(crate) failures: Vec<String>,
    /// Inferences that no worker finished and that were computed here.
    pub(crate) here: usize,
    /// Where the tickets came from.
    pub(crate) sources: Sources,
    /// From the first inference to the last output on the worker that answered last; with tickets made ahead, these
    /// not counted.
    pub(crate) inferring: Duration,
    /// Of that, how long there was nothing to do but wait for the worker.
    pub(crate) idle: Duration,
    pub(crate) memory: Memory,
}

/// How a run goes about it.
pub(crate) struct Manner<'a> {
    pub(crate) settings: &'a Settings,
    /// Whether progress is shown.
    pub(crate) show: bool,
    /// Whether all tickets are at hand before the first inference begins.
    pub(crate) ahead: bool,
    pub(crate) rescue: Rescue,
}

/// What is done where workers do not get through.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rescue {
    /// Computes here what no worker has finished, a liar's inferences too.
    pub(crate) here: bool,
    /// Workers are not waited for any longer than this, all together.
    pub(crate) deadline: Option<Duration>,
}

/// A party caught lying.
pub(crate) enum Lie {
    Worker {
        worker: String,
        layer: Option<String>,
        what: WorkerMisbehaved,
    },
    Dealer {
        dealer: String,
        layer: Option<String>,
        what: DealerMisbehaved,
    },
}

/// Runs `inputs` on the first of `workers` that serves, or on the first two where the plan takes two;
/// the next step in where one fails, those that have not failed yet before others. Tickets are those of
/// `store` while it has some.
pub(crate) fn drive(
    plan: &Arc<Plan>,
    workers: &[String],
    parties: &Parties,
    store: Option<Store>,
    inputs: &[Vec<Tensor>],
    manner: &Manner<'_>,
) -> Result<Outcome> {
    let settings = manner.settings;
    let before = process_cpu();
    let until = manner
        .rescue
        .deadline
        .map(|within| (Instant::now() + within, within));
    let dealer = Dealer::start(plan, parties, settings.answer_within)?;
    let mut tickets = Tickets::new(store, dealer);
    let mut outputs: Vec<Option<Output>> = inputs.iter().map(|_| None).collect();
    let mut outcome = Outcome {
        outputs: Vec::new(),
        cpu: Cpu {
            online: 0.0,
            offline: millis(process_cpu() - before),
        },
        wall: Duration::ZERO,
        worker: None,
        lie: None,
        failures: Vec::new(),
        here: 0,
        sources: Sources::default(),
        inferring: Duration::ZERO,
        idle: Duration::ZERO,
        memory: Memory::default(),
    };
    let mut crews = Crews::of(plan, workers);
    let mut done = false;
    while let Some(crew) = crews.next() {
        let open: Vec<usize> = (0..inputs.len())
            .filter(|ix| outputs[*ix].is_none())
            .collect();
        if let Some((_, within)) = until.filter(|(end, _)| Instant::now() >= *end) {
            let why = overdue(within);
            let told = |last: &String| last.ends_with(&why);
            if !outcome.failures.last().is_some_and(told) {
                outcome.failures.push(why);
            }
            break;
        }
        let mut run = match Run::connect(plan, &crew, parties, manner, until) {
            Ok(run) => run,
            Err(Unreached { line, why }) => {
                outcome.failures.push(why);
                crews.failed(line.map(|line| crew[line]));
                continue;
            }
        };
        let started = Instant::now();
        let end = match run.agree()? {
            End::Done => run.infer(inputs, &mut tickets, &open, &mut outputs, manner.ahead)?,
            other => other,
        };
        outcome.wall += started.elapsed();
        outcome.cpu.online += run.cpu.online;
        outcome.cpu.offline += run.cpu.offline;
        let named = |line: usize| {
            let name = run.session.worker_name(line).unwrap_or("unnamed");
            format!("{} ({name})", crew[line])
        };
        // Whoever lied or failed first, where somebody did.
        let ended_by = run.session.ended_by();
        let worker = match ended_by {
            Some(line) => named(line),
            None => (0..crew.len()).map(named).collect::<Vec<_>>().join(" and "),
        };
        outcome.inferring = run.inferring;
        outcome.idle = run.idle;
        outcome.memory = run.memory;
        outcome.lie = match end {
            End::Done => None,
            End::Failed(why) => {
                let who = crew[ended_by.or(run.denied_by).unwrap_or(0)];
                outcome.failures.push(of_worker(who, &why));
                crews.failed(Some(who));
                continue;
            }
            End::Lied(what) => {
                let layer = what.layer().map(|id| plan.layer_name(id).to_owned());
                Some(Lie::Worker {
                    worker: worker.clone(),
                    layer,
                    what,
                })
            }
            End::DealerLied(layer, what) => Some(Lie::Dealer {
                dealer: tickets.sources.dealer.clone().unwrap_or_default(),
                layer,
                what,
            }),
        };
        outcome.worker = Some(worker);
        done = true;
        break;
    }
    if manner.rescue.here {
        outcome.finish_here(plan, inputs, &mut outputs)?;
    } else if !done {
        bail!("no worker could do it: {}", outcome.failures.join("; "));
    }
    outcome.outputs = outputs.into_iter().flatten().collect();
    outcome.sources = tickets.sources;
    Ok(outcome)
}

impl Outcome {
    /// Computes what is open without any worker: the same integer network, so the same bits.
    fn finish_here(
        &mut self,
        plan: &Arc<Plan>,
        inputs: &[Vec<Tensor>],
        outputs: &mut [Option<Output>],
    ) -> Result<()> {
        for (at, (output, input)) in outputs.iter_mut().zip(inputs).enumerate() {
            if output.is_some() {
                continue;
            }
            let (started, cpu) = (Instant::now(), process_cpu());
            let tensors = run_exact(plan, input.clone());
            let tensors = tensors.with_context(|| format!("input {}", at + 1))?;
            let wall = started.elapsed();
            self.wall += wall;
            self.cpu.online += millis(process_cpu() - cpu);
            self.here += 1;
            *output = Some(Output {
                tensors,
                up: 0,
                down: 0,
                round_trips: 0,
                wall,
                waiting: Duration::ZERO,
            });
        }
        if self.worker.is_none() && self.memory.peak_resident.is_none() {
            self.memory = Memory::of_process();
        }
        Ok(())
    }
}

/// Why workers are not waited for any longer.
fn overdue(within: Duration) -> String {
    format!("not done within {within:?}; --deadline allows more")
}

/// Why there is no conversation with a crew, and whose fault that is.
struct Unreached {
    line: Option<usize>,
    why: String,
}

/// A failure, with the worker's address in it.
fn of_worker(address: &str, why: &str) -> String {
    if why.contains(address) {
        why.to_owned()
    } else {
        format!("{address}: {why}")
    }
}

/// Why there is no link to a worker, and what to do about it.
fn next_step(address: &str, err: &anyhow::Error) -> String {
    match err.downcast_ref() {
        Some(OpenError::Nobody { .. }) => {
            format!("{err:#}; start a worker there with `larvatus worker --listen {address}`")
        }
        Some(OpenError::TimedOut { .. }) => format!("{err:#}; --timeout allows it more"),
        _ => format!("{err:#}"),
    }
}

enum End {
    Done,
    Failed(String),
    Lied(WorkerMisbehaved),
    DealerLied(Option<String>, DealerMisbehaved),
}

/// One session, on a link to each of its workers.
struct Run {
    session: Session,
    pumps: Vec<Pump>,
    clock: Clock,
    cpu: Cpu,
    inferring: Duration,
    idle: Duration,
    memory: Memory,
    show: bool,
    /// Why the other end does not talk to us.
    denied: Option<String>,
    /// Which end that is.
    denied_by: Option<usize>,
    /// When workers are not waited for any longer, and how long that was at first.
    until: Option<(Instant, Duration)>,
}

impl Run {
    /// Connects, and draws the session's secrets.
    ///
    /// # Errors
    /// What went wrong, with the worker's address in it.
    fn connect(
        plan: &Arc<Plan>,
        crew: &[&str],
        parties: &Parties,
        manner: &Manner<'_>,
        until: Option<(Instant, Duration)>,
    ) -> Result<Self, Unreached> {
        let before = process_cpu();
        let settings = manner.settings;
        let patience = || match until {
            None => settings.answer_within,
            Some((end, _)) => {
                let left = end.saturating_duration_since(Instant::now());
                // Zero is no timeout for a socket.
                settings.answer_within.min(left).max(INSTANT)
            }
        };
        let failed = |line: usize, why: &str| Unreached {
            line: Some(line),
            why: of_worker(crew[line], why),
        };
        let mut links = Vec::with_capacity(crew.len());
        for (line, address) in crew.iter().enumerate() {
            let connect = || {
                let parsed: Address = address.parse()?;
                let link = parties.connect(&parsed, patience())?;
                anyhow::Ok((parsed, link))
            };
            links.push(connect().map_err(|err| failed(line, &next_step(address, &err)))?);
        }
        let addresses: Vec<&Address> = links.iter().map(|(address, _)| address).collect();
        let apart = match addresses[..] {
            [first, second] => {
                let apart = parties.apart(first, second);
                Some(apart.map_err(|err| Unreached {
                    line: None,
                    why: format!("{err:#}"),
                })?)
            }
            _ => None,
        };
        let settings = &Settings {
            worker: addresses.first().and_then(|only| parties.known(only)),
            apart,
            ..settings.clone()
        };
        let entropy = entropy().map_err(|err| failed(0, &err.to_string()))?;
        let session = Session::new(Arc::clone(plan), Entropy::new(entropy), settings.clone());
        let clock = Clock::start();
        // Room for every answer that may be on its way, so that both sides can write at once.
        let program = plan.worker_model().program();
        let largest = 4 * program.largest_answer() as u64 + 1024;
        let options = Options {
            write_timeout: patience(),
            room: Options::default()
                .room
                .max(settings.window as u64 * largest),
        };
        let pumps = links.into_iter().enumerate().map(|(line, (_, link))| {
            let pump = Pump::new(link, clock, options);
            pump.map_err(|err| failed(line, &err.to_string()))
        });
        let pumps = pumps.collect::<Result<_, _>>()?;
        let cpu = Cpu {
            online: 0.0,
            offline: millis(process_cpu() - before),
        };
        Ok(Self {
            session,
            pumps,
            clock,
            cpu,
            inferring: Duration::ZERO,
            idle: Duration::ZERO,
            memory: Memory::default(),
            show: manner.show,
            denied: None,
            denied_by: None,
            until,
        })
    }

    /// Agrees on the model and uploads it if it is wanted.
    fn agree(&mut self) -> Result<End> {
        let before = process_cpu();
        let bar = self.bar("weights to the worker", 0, "{bytes}/{total_bytes}");
        let end = loop {
            if self.session.is_ready() {
                break End::Done;
            }
            if let Some(end) = self.failure() {
                break end;
            }
            self.step(STEP)?;
            if let Some((sent, total)) = self.session.uploading() {
                bar.set_length(total);
                bar.set_position(sent);
            }
        };
        bar.finish_and_clear();
        self.cpu.offline += millis(process_cpu() - before);
        Ok(end)
    }

    /// How the session has failed, if it has.
    fn failure(&self) -> Option<End> {
        if let Some(why) = &self.denied {
            return Some(End::Failed(format!(
                "{why}; --identity names the one to use"
            )));
        }
        let Some(why) = self.session.failure() else {
            let late = self.until.filter(|(end, _)| Instant::now() >= *end);
            return late.map(|(_, within)| End::Failed(overdue(within)));
        };
        Some(match why {
            InferError::Worker(lie) => End::Lied(lie.clone()),
            InferError::Failed(slow @ WorkerFailed::TimedOut { .. }) => {
                End::Failed(format!("{slow}; --timeout allows it more"))
            }
            other => End::Failed(other.to_string()),
        })
    }

    /// Lets every link move what it can; where none can, waits for a worker that owes something.
    fn step(&mut self, wait: Duration) -> Result<()> {
        let wait = match self.until {
            None => wait,
            Some((end, _)) => wait.min(end.saturating_duration_since(Instant::now())),
        };
        if let [pump] = &mut self.pumps[..] {
            let stepped = pump.step(&mut self.session, wait);
            return self.stepped(0, stepped);
        }
        let mut idle = true;
        for line in 0..self.pumps.len() {
            let stepped = self.pumps[line].step(&mut self.session.line(line), Duration::ZERO);
            idle &= matches!(stepped, Ok(Progress::Idle | Progress::Finished));
            self.stepped(line, stepped)?;
        }
        let owes = |line: &usize| self.session.line(*line).deadline().is_some();
        if idle && let Some(line) = (0..self.pumps.len()).find(owes) {
            let stepped = self.pumps[line].step(&mut self.session.line(line), wait.min(BRIEF));
            self.stepped(line, stepped)?;
        }
        Ok(())
    }

    /// How long there was nothing to do so far.
    fn waited(&self) -> Duration {
        self.pumps.iter().map(|pump| pump.traffic().waited).sum()
    }

    fn stepped(&mut self, line: usize, stepped: Result<Progress, LinkError>) -> Result<()> {
        match stepped {
            Err(LinkError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
                self.denied = Some(error.to_string());
                self.denied_by = Some(line);
                Ok(())
            }
            // The session knows why the link ended and says it better.
            Err(error) if self.session.failure().is_some() => {
                tracing::debug!(?error, "the link ended");
                Ok(())
            }
            other => other.map(|_| ()).context("link to the worker"),
        }
    }

    /// Runs the inputs numbered in `open` and puts their outputs where they belong.
    fn infer(
        &mut self,
        inputs: &[Vec<Tensor>],
        tickets: &mut Tickets,
        open: &[usize],
        outputs: &mut [Option<Output>],
        ahead: bool,
    ) -> Result<End> {
        let before = process_cpu();
        let dealt_before = tickets.dealing();
        tickets.want(open.len());
        let mut offline = Duration::ZERO;
        if ahead {
            for upcoming in (1..=open.len()).rev() {
                if let Some(end) = self.supply(tickets, upcoming, &mut offline)? {
                    return Ok(end);
                }
            }
        }
        let started = Instant::now();
        let waited = self.waited();
        let mut begun: Vec<(InferenceId, usize)> = Vec::new();
        let mut waiting = open.iter().copied();
        let mut done = 0;
        let mut local = None;
        let bar = self.bar("inferences", open.len() as u64, "{pos}/{len}");
        let end = loop {
            if done == open.len() {
                break End::Done;
            }
            let mut wait = STEP;
            while self.session.has_room() && waiting.len() > 0 {
                let idle = self.session.pending() == 0;
                let patience = if idle { STEP } else { Duration::ZERO };
                // Reading a stored ticket is part of the inference, making one is not.
                let mut now = self.clock.now();
                if ahead {
                    let Some(input) = waiting.next() else { break };
                    begun.push((self.session.begin(inputs[input].clone(), now)?, input));
                    continue;
                }
                match tickets.supply(&mut self.session, waiting.len(), patience)? {
                    Supplied::Stored => {}
                    Supplied::Dealt => now = self.clock.now(),
                    Supplied::Own(cpu) => {
                        offline += cpu;
                        now = self.clock.now();
                    }
                    Supplied::NotYet => {
                        wait = SOON;
                        break;
                    }
                    Supplied::Lied(layer, what) => return Ok(End::DealerLied(layer, what)),
                }
                let Some(input) = waiting.next() else { break };
                begun.push((self.session.begin(inputs[input].clone(), now)?, input));
            }
            self.step(wait)?;
            while let Some((id, result)) = self.session.poll() {
                done += 1;
                bar.inc(1);
                match result {
                    Ok(output) => {
                        if let Some((_, input)) = begun.iter().find(|(begun, _)| *begun == id) {
                            outputs[*input] = Some(output);
                        }
                    }
                    Err(InferError::Worker(_) | InferError::Failed(_)) => {}
                    // Told at the end, so that the worker sees the same run either way.
                    Err(other) => local = local.or(Some((id, other))),
                }
            }
            if let Some(end) = self.failure() {
                break end;
            }
        };
        bar.finish_and_clear();
        self.inferring = started.elapsed();
        self.idle = self.waited().saturating_sub(waited);
        self.memory = Memory::of(self.session.plan(), self.session.memory());
        if matches!(end, End::Done) {
            self.session.close();
            // Everything is accepted; a worker that no longer hears the goodbye may miss it.
            let lines = self.pumps.len();
            let done = |session: &mut Session| (0..lines).all(|line| session.line(line).finished());
            while !done(&mut self.session) && self.step(STEP).is_ok() {}
        }
        offline += tickets.dealing().saturating_sub(dealt_before);
        let total = process_cpu() - before;
        self.cpu.offline += millis(offline);
        self.cpu.online += millis(total.saturating_sub(offline));
        match local {
            Some((id, why)) if matches!(end, End::Done) => {
                let input = begun
                    .iter()
                    .find(|(begun, _)| *begun == id)
                    .map_or(0, |(_, at)| *at);
                Err(anyhow::Error::from(why).context(format!("input {}", input + 1)))
            }
            _ => Ok(end),
        }
    }

    /// Gives the session the tickets of one inference, however long a dealer takes; an end, where it lies.
    fn supply(
        &mut self,
        tickets: &mut Tickets,
        upcoming: usize,
        offline: &mut Duration,
    ) -> Result<Option<End>> {
        loop {
            match tickets.supply(&mut self.session, upcoming, STEP)? {
                Supplied::Stored | Supplied::Dealt => return Ok(None),
                Supplied::Own(cpu) => {
                    *offline += cpu;
                    return Ok(None);
                }
                // The worker's link wants attention, too.
                Supplied::NotYet => self.step(SOON)?,
                Supplied::Lied(layer, what) => return Ok(Some(End::DealerLied(layer, what))),
            }
        }
    }

    /// A progress bar that appears where somebody looks.
    fn bar(&self, what: &'static str, length: u64, numbers: &str) -> ProgressBar {
        if !self.show {
            return ProgressBar::hidden();
        }
        progress(what, length, numbers)
    }
}

/// A progress bar.
pub(crate) fn progress(what: &'static str, length: u64, numbers: &str) -> ProgressBar {
    let template = format!("{{msg}} {{bar:32}} {numbers} {{elapsed}}");
    let style =
        ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length)
        .with_style(style)
        .with_message(what)
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
