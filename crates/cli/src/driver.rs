//! A session, a worker's address and inputs: runs them through, and measures what it took.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressStyle};
use larvatus::error::{DealerMisbehaved, InferError, WorkerFailed, WorkerMisbehaved};
use larvatus::plan::Plan;
use larvatus::policy::Secrecy;
use larvatus::secret::Entropy;
use larvatus::session::{InferenceId, Output, Session, Settings};
use larvatus::store::Store;
use larvatus::tensor::Tensor;
use larvatus_host::pump::{Options, Progress};
use larvatus_host::{Address, Clock, LinkError, OpenError, Pump, entropy, process_cpu};
use larvatus_proto::machine::Machine;

use crate::dealer::Dealer;
use crate::memory::Memory;
use crate::parties::Parties;
use crate::report::Cpu;
use crate::tickets::{Sources, Supplied, Tickets};

/// Longest silence between two looks at the clock.
const STEP: Duration = Duration::from_millis(200);

/// Longest look at one of two workers before the other's turn.
const BRIEF: Duration = Duration::from_millis(20);

/// The same while tickets are awaited.
const SOON: Duration = Duration::from_millis(2);

/// How a run over workers ended.
pub(crate) struct Outcome {
    /// One output an input, in order; fewer where a worker lied.
    pub(crate) outputs: Vec<Output>,
    pub(crate) cpu: Cpu,
    pub(crate) wall: Duration,
    /// Address and name of the worker that answered last.
    pub(crate) worker: String,
    pub(crate) lie: Option<Lie>,
    /// Workers that failed before, and why.
    pub(crate) failures: Vec<String>,
    /// Where the tickets came from.
    pub(crate) sources: Sources,
    /// From the first inference to the last output on the worker that answered last; with tickets made ahead, these
    /// not counted.
    pub(crate) inferring: Duration,
    /// Of that, how long there was nothing to do but wait for the worker.
    pub(crate) idle: Duration,
    /// Milliseconds of CPU from one output to the next on the worker that answered last, offline work not
    /// counted: what each inference took where one is in flight at a time.
    pub(crate) each: Vec<f64>,
    pub(crate) memory: Memory,
}

/// How a run goes about it.
pub(crate) struct Manner<'a> {
    pub(crate) settings: &'a Settings,
    /// Whether progress is shown.
    pub(crate) show: bool,
    /// Whether all tickets are at hand before the first inference begins.
    pub(crate) ahead: bool,
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
/// the next step in where one fails. Tickets are those of `store` while it has some.
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
    let dealer = Dealer::start(plan, parties, settings.answer_within)?;
    let mut tickets = Tickets::new(store, dealer);
    let mut outputs: Vec<Option<Output>> = inputs.iter().map(|_| None).collect();
    let mut cpu = Cpu {
        online: 0.0,
        offline: millis(process_cpu() - before),
    };
    let mut wall = Duration::ZERO;
    let mut failures = Vec::new();
    for crew in crews(plan, workers) {
        let open: Vec<usize> = (0..inputs.len())
            .filter(|ix| outputs[*ix].is_none())
            .collect();
        let mut run = match Run::connect(plan, &crew, parties, settings, manner.show) {
            Ok(run) => run,
            Err(why) => {
                failures.push(why);
                continue;
            }
        };
        let started = Instant::now();
        let end = match run.agree()? {
            End::Done => run.infer(inputs, &mut tickets, &open, &mut outputs, manner.ahead)?,
            other => other,
        };
        wall += started.elapsed();
        cpu.online += run.cpu.online;
        cpu.offline += run.cpu.offline;
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
        let lie = match end {
            End::Done => None,
            End::Failed(why) => {
                failures.push(of_worker(crew[ended_by.unwrap_or(0)], &why));
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
        let outputs = outputs.into_iter().flatten().collect();
        return Ok(Outcome {
            outputs,
            cpu,
            wall,
            worker,
            lie,
            failures,
            sources: tickets.sources,
            inferring: run.inferring,
            idle: run.idle,
            each: run.each,
            memory: run.memory,
        });
    }
    anyhow::bail!("no worker could do it: {}", failures.join("; "))
}

/// Who serves together, in the order in which they are tried: one worker, or two of them.
fn crews<'a>(plan: &Plan, workers: &'a [String]) -> Vec<Vec<&'a str>> {
    match plan.policy().secrecy() {
        Secrecy::Public => workers.iter().map(|one| vec![one.as_str()]).collect(),
        Secrecy::TwoWorkers => {
            let pairs = workers.iter().enumerate().flat_map(|(index, first)| {
                let others = workers[index + 1..].iter();
                others.map(move |second| vec![first.as_str(), second.as_str()])
            });
            pairs.collect()
        }
    }
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
    each: Vec<f64>,
    memory: Memory,
    show: bool,
    /// Why the other end does not talk to us.
    denied: Option<String>,
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
        settings: &Settings,
        show: bool,
    ) -> Result<Self, String> {
        let before = process_cpu();
        let mut links = Vec::with_capacity(crew.len());
        for address in crew {
            let connect = || {
                let parsed: Address = address.parse()?;
                let link = parties.connect(&parsed, settings.answer_within)?;
                anyhow::Ok((parsed, link))
            };
            let failed = |err| of_worker(address, &next_step(address, &err));
            links.push(connect().map_err(failed)?);
        }
        let addresses: Vec<&Address> = links.iter().map(|(address, _)| address).collect();
        let apart = match addresses[..] {
            [first, second] => Some(
                parties
                    .apart(first, second)
                    .map_err(|err| format!("{err:#}"))?,
            ),
            _ => None,
        };
        let settings = &Settings {
            worker: addresses.first().and_then(|only| parties.known(only)),
            apart,
            ..settings.clone()
        };
        let open = |err: anyhow::Error| of_worker(crew[0], &format!("{err:#}"));
        let entropy = entropy().map_err(|err| open(err.into()))?;
        let session = Session::new(Arc::clone(plan), Entropy::new(entropy), settings.clone());
        let clock = Clock::start();
        // Room for every answer that may be on its way, so that both sides can write at once.
        let program = plan.worker_model().program();
        let largest = 4 * program.largest_answer() as u64 + 1024;
        let options = Options {
            write_timeout: settings.answer_within,
            room: Options::default()
                .room
                .max(settings.window as u64 * largest),
        };
        let pumps = links.into_iter().zip(crew).map(|((_, link), address)| {
            let pump = Pump::new(link, clock, options);
            pump.map_err(|err| of_worker(address, &err.to_string()))
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
            each: Vec::new(),
            memory: Memory::default(),
            show,
            denied: None,
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

    /// How the session has failed, if it has. Who never introduced itself as a worker does not
    /// lie: it is something else.
    fn failure(&self) -> Option<End> {
        if let Some(why) = &self.denied {
            return Some(End::Failed(format!(
                "{why}; --identity names the one to use"
            )));
        }
        Some(match self.session.failure()? {
            InferError::Worker(WorkerMisbehaved::Malformed(why))
                if self.session.worker_name(0).is_none() =>
            {
                End::Failed(format!(
                    "what answers there is no larvatus worker ({why}); check the address"
                ))
            }
            InferError::Worker(lie) => End::Lied(lie.clone()),
            InferError::Failed(slow @ WorkerFailed::TimedOut { .. }) => {
                End::Failed(format!("{slow}; --timeout allows it more"))
            }
            other => End::Failed(other.to_string()),
        })
    }

    /// Lets every link move what it can; where none can, waits for a worker that owes something.
    fn step(&mut self, wait: Duration) -> Result<()> {
        if let [pump] = &mut self.pumps[..] {
            let stepped = pump.step(&mut self.session, wait);
            return self.stepped(stepped);
        }
        let mut idle = true;
        for line in 0..self.pumps.len() {
            let stepped = self.pumps[line].step(&mut self.session.line(line), Duration::ZERO);
            idle &= matches!(stepped, Ok(Progress::Idle | Progress::Finished));
            self.stepped(stepped)?;
        }
        let owes = |line: &usize| self.session.line(*line).deadline().is_some();
        if idle && let Some(line) = (0..self.pumps.len()).find(owes) {
            let stepped = self.pumps[line].step(&mut self.session.line(line), wait.min(BRIEF));
            self.stepped(stepped)?;
        }
        Ok(())
    }

    /// How long there was nothing to do so far.
    fn waited(&self) -> Duration {
        self.pumps.iter().map(|pump| pump.traffic().waited).sum()
    }

    fn stepped(&mut self, stepped: Result<Progress, LinkError>) -> Result<()> {
        match stepped {
            Err(LinkError::Io(error)) if error.kind() == ErrorKind::PermissionDenied => {
                self.denied = Some(error.to_string());
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
        let mut counted = Duration::ZERO;
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
                let dealt = tickets.dealing().saturating_sub(dealt_before);
                let online = (process_cpu() - before).saturating_sub(offline + dealt);
                self.each.push(millis(online.saturating_sub(counted)));
                counted = online;
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
