//! One session, on a link to each of its workers: connects, agrees on the model, runs inferences through.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use larvatus::error::{DealerMisbehaved, InferError, WorkerFailed, WorkerMisbehaved};
use larvatus::plan::Plan;
use larvatus::secret::Entropy;
use larvatus::session::{InferenceId, Output, Session, Settings};
use larvatus::tensor::Tensor;
use larvatus_host::pump::{Options, Progress};
use larvatus_host::{Address, Clock, LinkError, OpenError, Pump, entropy, process_cpu};
use larvatus_proto::frame::BUSY;
use larvatus_proto::machine::Machine;

use super::{Manner, millis, progress};
use crate::feed::Feed;
use crate::memory::Memory;
use crate::parties::Parties;
use crate::report::Cpu;
use crate::tickets::{Supplied, Tickets};

/// Longest silence between two looks at the clock.
const STEP: Duration = Duration::from_millis(200);

/// Longest look at one of two workers before the other's turn.
const BRIEF: Duration = Duration::from_millis(20);

/// How long a link is tried whose time is over.
const INSTANT: Duration = Duration::from_millis(1);

/// The same while tickets are awaited.
const SOON: Duration = Duration::from_millis(2);

/// Why workers are not waited for any longer.
pub(crate) fn overdue(within: Duration) -> String {
    format!("not done within {within:?}; --deadline allows more")
}

/// Why there is no conversation with a crew, and whose fault that is.
pub(super) struct Unreached {
    pub(super) line: Option<usize>,
    pub(super) why: String,
}

/// A failure, with the worker's address in it.
pub(super) fn of_worker(address: &str, why: &str) -> String {
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

pub(super) enum End {
    Done,
    Failed(String),
    /// The worker does something else just now.
    Busy(String),
    Lied(WorkerMisbehaved),
    DealerLied(Option<String>, DealerMisbehaved),
}

/// One session, on a link to each of its workers.
pub(super) struct Run {
    pub(super) session: Session,
    pumps: Vec<Pump>,
    clock: Clock,
    pub(super) cpu: Cpu,
    pub(super) inferring: Duration,
    pub(super) idle: Duration,
    pub(super) each: Vec<f64>,
    pub(super) memory: Memory,
    show: bool,
    /// Why the other end does not talk to us.
    denied: Option<String>,
    /// Which end that is.
    pub(super) denied_by: Option<usize>,
    /// When workers are not waited for any longer, and how long that was at first.
    until: Option<(Instant, Duration)>,
}

impl Run {
    /// Connects, and draws the session's secrets.
    ///
    /// # Errors
    /// What went wrong, with the worker's address in it.
    pub(super) fn connect(
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
            each: Vec::new(),
            memory: Memory::default(),
            show: manner.show,
            denied: None,
            denied_by: None,
            until,
        })
    }

    /// Agrees on the model and uploads it if it is wanted.
    pub(super) fn agree(&mut self) -> Result<End> {
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
            InferError::Failed(WorkerFailed::Refused { message }) if message.starts_with(BUSY) => {
                End::Busy(format!("{why}; --deadline lets it be asked again"))
            }
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

    /// Steps; where nobody owes anything, a link has nothing to wait for, and the time passes here.
    fn wait(&mut self, wait: Duration) -> Result<()> {
        if self.session.pending() > 0 || self.pumps.len() == 1 {
            return self.step(wait);
        }
        self.step(Duration::ZERO)?;
        if self.session.pending() == 0 && self.session.failure().is_none() {
            std::thread::sleep(wait.min(BRIEF));
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

    /// Runs the inputs that come, and puts their outputs where they belong. What it does not finish stays taken.
    pub(super) fn infer(
        &mut self,
        inputs: &[Vec<Tensor>],
        tickets: &mut Tickets,
        feed: &mut Feed,
        outputs: &mut [Option<Output>],
        ahead: bool,
    ) -> Result<End> {
        let before = process_cpu();
        let dealt_before = tickets.dealing();
        let open = feed.upcoming();
        tickets.want(open);
        let mut offline = Duration::ZERO;
        if ahead {
            for upcoming in (1..=open).rev() {
                if let Some(end) = self.supply(tickets, upcoming, &mut offline)? {
                    return Ok(end);
                }
            }
        }
        let started = Instant::now();
        let waited = self.waited();
        let mut begun: Vec<(InferenceId, usize)> = Vec::new();
        let mut local = None;
        let mut counted = Duration::ZERO;
        // Inputs that fail on this side, whoever computes.
        let mut unfit = Vec::new();
        let bar = self.bar("inferences", open as u64, "{pos}/{len}");
        let end = loop {
            if feed.is_over() {
                break End::Done;
            }
            let mut wait = STEP;
            feed.arrive(Instant::now());
            // A camera leaves time between its frames: the next one finds its ticket made.
            let idle = !feed.has_one() && feed.pause(Instant::now()).is_some();
            if idle && self.session.provisioned() == 0 {
                match tickets.supply(&mut self.session, feed.upcoming(), Duration::ZERO)? {
                    Supplied::Own(cpu) => offline += cpu,
                    Supplied::Stored | Supplied::Dealt | Supplied::NotYet => {}
                    Supplied::Lied(layer, what) => return Ok(End::DealerLied(layer, what)),
                }
            }
            while self.session.has_room() && feed.has_one() {
                let idle = self.session.pending() == 0;
                let patience = if idle { STEP } else { Duration::ZERO };
                // Reading a stored ticket is part of the inference, making one is not.
                let mut now = self.clock.now();
                if ahead || self.session.provisioned() > 0 {
                    let Some(input) = feed.take() else { break };
                    begun.push((self.session.begin(inputs[input].clone(), now)?, input));
                    continue;
                }
                match tickets.supply(&mut self.session, feed.upcoming(), patience)? {
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
                // Making tickets takes time, in which frames come.
                feed.arrive(Instant::now());
                let Some(input) = feed.take() else { break };
                begun.push((self.session.begin(inputs[input].clone(), now)?, input));
            }
            let pause = feed.pause(Instant::now());
            self.wait(pause.map_or(wait, |pause| wait.min(pause)))?;
            while let Some((id, result)) = self.session.poll() {
                bar.inc(1);
                let dealt = tickets.dealing().saturating_sub(dealt_before);
                let online = (process_cpu() - before).saturating_sub(offline + dealt);
                self.each.push(millis(online.saturating_sub(counted)));
                counted = online;
                let input = begun.iter().find(|(begun, _)| *begun == id);
                match (result, input) {
                    (Ok(output), Some((_, input))) => {
                        feed.finish(*input, Instant::now());
                        outputs[*input] = Some(output);
                    }
                    (Ok(_), None) | (Err(InferError::Worker(_) | InferError::Failed(_)), _) => {}
                    // Told at the end, so that the worker sees the same run either way.
                    (Err(other), input) => {
                        if let Some((_, input)) = input {
                            feed.put_aside(*input);
                            unfit.push(*input);
                        }
                        local = local.or(Some((id, other)));
                    }
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
        } else {
            feed.take_up(unfit);
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
