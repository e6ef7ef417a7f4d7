//! A session, a worker's address and inputs: runs them through, and measures what it took.

mod run;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use larvatus::error::{DealerMisbehaved, WorkerMisbehaved};
use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::session::{Output, Settings};
use larvatus::store::Store;
use larvatus::tensor::Tensor;
use larvatus_host::process_cpu;

use crate::crews::Crews;
use crate::dealer::Dealer;
use crate::feed::{Camera, Feed, Kept};
use crate::memory::Memory;
use crate::parties::Parties;
use crate::report::Cpu;
use crate::tickets::{Sources, Tickets};
pub(crate) use run::overdue;
use run::{End, Run, Unreached, of_worker};

/// How long workers that are all busy are left alone.
const AGAIN: Duration = Duration::from_millis(500);

/// How a run over workers ended.
pub(crate) struct Outcome {
    /// One output an input, in order; fewer where a worker lied or a camera's frames were dropped.
    pub(crate) outputs: Vec<Output>,
    /// The inputs that have them.
    pub(crate) of: Vec<usize>,
    /// How a camera's frames fared, where there is one.
    pub(crate) kept: Option<Kept>,
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
    /// Where the inputs are frames that come by themselves.
    pub(crate) camera: Option<Camera>,
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
        of: Vec::new(),
        kept: None,
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
        each: Vec::new(),
        memory: Memory::default(),
    };
    let mut crews = Crews::of(plan, workers);
    let mut feed = Feed::new(inputs.len(), manner.camera);
    let mut done = false;
    loop {
        let Some(crew) = crews.next() else {
            // Who was only busy is asked again, as long as there is time and nothing better to do.
            let left = until.map(|(end, _)| end.saturating_duration_since(Instant::now()));
            let left = left.filter(|left| !manner.rescue.here && !left.is_zero());
            match left {
                Some(left) if crews.again() => std::thread::sleep(AGAIN.min(left)),
                _ => break,
            }
            continue;
        };
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
            End::Done => run.infer(inputs, &mut tickets, &mut feed, &mut outputs, manner.ahead)?,
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
        let busy = matches!(end, End::Busy(_));
        outcome.inferring = run.inferring;
        outcome.idle = run.idle;
        outcome.each = std::mem::take(&mut run.each);
        outcome.memory = run.memory;
        feed.give_back();
        outcome.lie = match end {
            End::Done => None,
            End::Failed(why) | End::Busy(why) => {
                let who = crew[ended_by.or(run.denied_by).unwrap_or(0)];
                let why = of_worker(who, &why);
                if !outcome.failures.contains(&why) {
                    outcome.failures.push(why);
                }
                crews.failed(Some(who));
                if busy {
                    crews.busy(crew);
                }
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
        outcome.finish_here(plan, inputs, &mut feed, &mut outputs)?;
    } else if !done {
        bail!("no worker could do it: {}", outcome.failures.join("; "));
    }
    outcome.kept = feed.kept();
    let all = outputs.into_iter().enumerate();
    (outcome.of, outcome.outputs) = all.filter_map(|(at, output)| Some((at, output?))).unzip();
    outcome.sources = tickets.sources;
    Ok(outcome)
}

impl Outcome {
    /// Computes what is open without any worker: the same integer network, so the same bits.
    fn finish_here(
        &mut self,
        plan: &Arc<Plan>,
        inputs: &[Vec<Tensor>],
        feed: &mut Feed,
        outputs: &mut [Option<Output>],
    ) -> Result<()> {
        while let Some(at) = next_here(feed) {
            let (started, cpu) = (Instant::now(), process_cpu());
            let tensors = run_exact(plan, inputs[at].clone());
            let tensors = tensors.with_context(|| format!("input {}", at + 1))?;
            let wall = started.elapsed();
            self.wall += wall;
            self.cpu.online += millis(process_cpu() - cpu);
            self.here += 1;
            feed.finish(at, Instant::now());
            outputs[at] = Some(Output {
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

/// The next input to run on this side, when it has come.
pub(crate) fn next_here(feed: &mut Feed) -> Option<usize> {
    loop {
        let now = Instant::now();
        feed.arrive(now);
        if let Some(at) = feed.take() {
            return Some(at);
        }
        std::thread::sleep(feed.pause(now)?);
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
