//! `larvatus run` for the presets in floats: one inference at a time, audits behind each.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use larvatus::error::{InferError, WorkerMisbehaved};
use larvatus::faithful::{Demand, Output, Plan, Session, Settings, undetected};
use larvatus::secret::Entropy;
use larvatus::tensor::Tensor;
use larvatus_host::pump::{Options, Progress};
use larvatus_host::{Address, Clock, Pump, entropy, process_cpu};
use larvatus_proto::machine::Machine;

use super::{Names, Results, finish, load_for_inputs, own_workers, read_inputs, write_report};
use crate::Verdict;
use crate::args::Run as Args;
use crate::driver::millis;
use crate::memory::Memory;
use crate::output;
use crate::parties::Parties;
use crate::report::{
    Bytes, Cpu, FloatAudit, Floats, LeakField, Report, Single, VerdictField, layers,
};
use crate::spawn::OwnWorker;

/// Longest silence between two looks at the clock.
const STEP: Duration = Duration::from_millis(200);
/// Longest look at one of two workers before the other's turn.
const BRIEF: Duration = Duration::from_millis(5);

pub(super) fn run(args: &Args, demand: &Demand) -> Result<Verdict> {
    let preset = &args.job.preset;
    ensure!(
        args.dump_layers.is_none() && args.stored.store.is_none() && args.dealing.dealer.is_none(),
        "--dump-layers, --store and --dealer are not for {preset}"
    );
    ensure!(
        args.frames.is_none() && args.deadline.is_none() && !args.finish_locally,
        "--frames, --deadline and --finish-locally are not for {preset}"
    );
    let labels = output::read_labels(args.labels.as_deref())?;
    let parties = Parties::of(&args.dealing, &args.worker)?;
    let model = load_for_inputs(args)?;
    let (names, inputs) = read_inputs(args, &model)?;
    let outputs = model.outputs().to_vec();
    let plan = Plan::new(&model, demand)?;
    drop(model);
    ensure!(
        plan.round_trips() > 0,
        "nothing of this model can go to a worker; --preset local runs it here"
    );
    let own = own_workers(args, plan.workers() == 2)?;
    let started: Vec<String> = own.iter().map(OwnWorker::address).collect();
    let workers = if started.is_empty() {
        &args.worker
    } else {
        &started
    };
    let Some(crew) = workers.get(..plan.workers()) else {
        bail!("{preset} needs {} workers", plan.workers());
    };
    let mut home = Home::connect(args, &plan, &parties, crew)?;
    let (results, mut report, lie) = home.infer(args, &inputs)?;
    if let Some((line, what)) = lie {
        let worker = home.name(line, crew);
        let layer = what.layer().map(|id| plan.layer_name(id).to_owned());
        let place = layer.clone().unwrap_or_else(|| "no layer".to_owned());
        let why = format!("worker {worker} lied in {place}: {what}");
        report.verdict = VerdictField::Lie {
            worker,
            layer,
            lie: what.kind().to_owned(),
        };
        super::fill(&mut report, &results);
        write_report(args, &report)?;
        return Ok(Verdict::Rejected(why));
    }
    let all = (0..crew.len()).map(|line| home.name(line, crew));
    report.worker = Some(all.collect::<Vec<_>>().join(" and "));
    let names = Names {
        inputs: names,
        outputs,
        labels,
    };
    finish(args, report, results, &names)
}

/// A session and a link to each of its workers.
struct Home {
    session: Session,
    pumps: Vec<Pump>,
    clock: Clock,
    offline: Duration,
}

/// Who lied, and how.
type Lie = (usize, WorkerMisbehaved);

impl Home {
    fn connect(args: &Args, plan: &Arc<Plan>, parties: &Parties, crew: &[String]) -> Result<Self> {
        let before = process_cpu();
        let within = Duration::from_secs(args.timeout.max(1));
        let addresses = crew.iter().map(|address| address.parse());
        let addresses = addresses.collect::<Result<Vec<Address>, _>>()?;
        let apart = match &addresses[..] {
            [first, second] => Some(parties.apart(first, second)?),
            _ => None,
        };
        let settings = Settings {
            answer_within: within,
            apart,
        };
        let session = Session::new(Arc::clone(plan), &Entropy::new(entropy()?), &settings)?;
        let clock = Clock::start();
        let largest = 4 * plan.program().largest_answer() as u64 + 1024;
        let options = Options {
            write_timeout: within,
            room: Options::default().room.max(largest),
        };
        let pump = |address: &Address| {
            let link = parties.connect(address, within)?;
            anyhow::Ok(Pump::new(link, clock, options)?)
        };
        let pumps = addresses
            .iter()
            .map(|address| pump(address).with_context(|| address.to_string()));
        let pumps = pumps.collect::<Result<_>>()?;
        let mut home = Self {
            session,
            pumps,
            clock,
            offline: Duration::ZERO,
        };
        while !home.session.is_ready() {
            home.step(STEP)?;
            if let Some(why) = home.session.failure() {
                bail!(
                    "worker {}: {why}",
                    home.name(home.session.ended_by().unwrap_or(0), crew)
                );
            }
        }
        home.offline = process_cpu().saturating_sub(before);
        Ok(home)
    }

    fn name(&self, line: usize, crew: &[String]) -> String {
        let name = self.session.worker_name(line).unwrap_or("unnamed");
        format!("{} ({name})", crew.get(line).map_or("?", String::as_str))
    }

    /// Lets every link move what it can; where none can, waits for a worker that owes something.
    fn step(&mut self, wait: Duration) -> Result<()> {
        let several = self.pumps.len() > 1;
        let mut idle = true;
        for line in 0..self.pumps.len() {
            let wait = if several { Duration::ZERO } else { wait };
            idle &= self.step_line(line, wait)?;
        }
        let owes = |line: &usize| self.session.line(*line).deadline().is_some();
        if several
            && idle
            && let Some(line) = (0..self.pumps.len()).find(owes)
        {
            self.step_line(line, wait.min(BRIEF))?;
        }
        Ok(())
    }

    fn step_line(&mut self, line: usize, wait: Duration) -> Result<bool> {
        match self.pumps[line].step(&mut self.session.line(line), wait) {
            // The session knows why the link ended and says it better.
            Err(_) if self.session.failure().is_some() => Ok(true),
            stepped => {
                let stepped = stepped.context("link to the worker")?;
                Ok(matches!(stepped, Progress::Idle | Progress::Finished))
            }
        }
    }

    /// Runs all inputs. Blocks of each one's answers are drawn once its output is there, and settled as they are opened.
    fn infer(
        &mut self,
        args: &Args,
        inputs: &[Vec<Tensor>],
    ) -> Result<(Results, Report, Option<Lie>)> {
        let plan = Arc::clone(self.session.plan());
        let mut report = blank(&plan, &args.job.preset);
        let mut audit = FloatAudit::default();
        let mut results = Results {
            of: Vec::new(),
            kept: None,
            tensors: Vec::new(),
            singles: Vec::new(),
            cpu: Cpu::default(),
            wall: Duration::ZERO,
            memory: Memory::default(),
        };
        let mut failed = 0;
        let mut lie = None;
        for (index, input) in inputs.iter().enumerate() {
            let before = process_cpu();
            self.session.provision(1);
            let provisioned = process_cpu();
            self.offline += provisioned.saturating_sub(before);
            let started = Instant::now();
            let run = self.one(input.clone());
            results.wall += started.elapsed();
            results.cpu.online += millis(process_cpu().saturating_sub(provisioned));
            let output = match run? {
                Ok(output) => output,
                Err(InferError::Worker(what)) => {
                    lie = Some((self.session.ended_by().unwrap_or(0), what));
                    break;
                }
                Err(why) => {
                    return Err(anyhow::Error::from(why).context(format!("input {}", index + 1)));
                }
            };
            failed += output.failed;
            audit.blocks += output.blocks;
            self.session
                .audit(&Entropy::new(entropy()?), self.clock.now());
            results.singles.push(single(&output));
            results.of.push(index);
            results.tensors.push(output.run.tensors);
            lie = self.settle(&mut audit)?;
            if lie.is_some() {
                break;
            }
        }
        while lie.is_none() && self.session.owed() > 0 {
            self.step(STEP)?;
            if let Some(why) = self.session.failure() {
                let why = anyhow::Error::from(why.clone());
                let owed = self.session.owed();
                return Err(why.context(format!("{owed} blocks of answers were not opened")));
            }
            lie = self.settle(&mut audit)?;
        }
        if lie.is_none() {
            self.goodbye();
        }
        results.cpu.offline = millis(self.offline);
        results.memory = Memory::of_process();
        report.floats = Some(Floats {
            bits_left: plan.demand().bits_left(),
            data: plan
                .data_leak()
                .map(|leak| LeakField::of(leak, Some(failed))),
            weights: plan.weight_leak().map(|leak| LeakField::of(leak, None)),
            audit: plan.demand().audit().map(|fraction| FloatAudit {
                share: fraction.get(),
                undetected: [1, 10, 100].map(|cheats| undetected(fraction, cheats)),
                ..audit
            }),
        });
        Ok((results, report, lie))
    }

    fn one(&mut self, input: Vec<Tensor>) -> Result<Result<Output, InferError>> {
        self.session.begin(input, self.clock.now())?;
        loop {
            if let Some((_, result)) = self.session.poll() {
                return Ok(result);
            }
            self.step(STEP)?;
        }
    }

    /// Settles the openings that have come.
    fn settle(&mut self, audit: &mut FloatAudit) -> Result<Option<Lie>> {
        let before = process_cpu();
        let mut lie = None;
        while let Some(provisional) = self.session.take_provisional() {
            let line = provisional.line();
            match provisional.settle() {
                Ok(settled) => {
                    audit.settled += settled.blocks;
                    audit.deviation = audit.deviation.max(settled.used);
                }
                Err(what) => {
                    lie = Some((line, what));
                    break;
                }
            }
        }
        audit.cpu_ms += millis(process_cpu().saturating_sub(before));
        Ok(lie)
    }

    fn goodbye(&mut self) {
        self.session.close();
        let lines = self.pumps.len();
        let done = |session: &mut Session| (0..lines).all(|line| session.line(line).finished());
        // Everything is there; a worker that no longer hears the goodbye may miss it.
        while !done(&mut self.session) && self.step(STEP).is_ok() {}
    }
}

fn single(output: &Output) -> Single {
    Single {
        input: String::new(),
        wall_ms: millis(output.run.wall),
        waiting_ms: millis(output.run.waiting),
        bytes: Bytes {
            up: output.run.up,
            down: output.run.down,
        },
        round_trips: output.run.round_trips,
        top: None,
    }
}

/// A report before anything was measured.
fn blank(plan: &Plan, preset: &str) -> Report {
    Report {
        plan: plan.digest().to_string(),
        input_privacy: match plan.demand().masks() {
            Some(_) => "leaks".to_owned(),
            None => "none".to_owned(),
        },
        weight_privacy: match plan.workers() {
            1 => "none".to_owned(),
            _ => "leaks".to_owned(),
        },
        guarantee: plan.guarantee(),
        layers: layers(plan.rows(), preset),
        ..Report::blank(plan.model(), preset)
    }
}
