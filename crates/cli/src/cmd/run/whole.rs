//! `larvatus run --preset whole-audited`: the whole network at the worker, in clear, audited later.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use larvatus::audit::{self, Fraction, Ledger, Outcome, Provisional, Terms};
use larvatus::error::{InferError, WorkerMisbehaved};
use larvatus::exact::run_exact;
use larvatus::model::Model;
use larvatus::tensor::Tensor;
use larvatus::whole::Whole;
use larvatus_host::{entropy, process_cpu, thread_cpu};
use larvatus_proto::receipt::PublicKey;

use super::{Args, Named, Names, Results, finish, plan};
use crate::Verdict;
use crate::auditing::{Attempt, Line, Where, give_up, ledger};
use crate::driver::{millis, next_here, overdue, progress};
use crate::feed::Feed;
use crate::memory::Memory;
use crate::parties::{Parties, receipt_key};
use crate::report::{AuditField, Bytes, Cpu, Report, Single, VerdictField};
use crate::spawn::OwnWorker;

/// Longest silence between two looks at the clock.
const STEP: Duration = Duration::from_millis(200);

/// One output, and what it took.
struct Ran {
    tensors: Vec<Arc<Tensor>>,
    took: Duration,
    /// The record that is kept of it; none where it was computed here.
    number: Option<u64>,
}

pub(super) fn run(
    args: &Args,
    named: &Named,
    parties: &Parties,
    model: &Model,
    inputs: &[Vec<Tensor>],
    mut names: Names,
) -> Result<Verdict> {
    ensure!(args.window > 0, "--window must be at least 1");
    if args.stored.store.is_some() {
        named.by_layer("a store of tickets")?;
    }
    let auditing = &args.auditing;
    let folder = auditing.audit_dir.as_deref().context(
        "--preset whole-audited needs --audit-dir DIR, where records are kept until they are audited",
    )?;
    ensure!(
        !args.worker.is_empty() || auditing.audit_now,
        "a worker that is started here takes its traces along when it ends; name one with --worker, or audit at once \
         with --audit-now"
    );
    let fraction = Fraction::new(auditing.audit)
        .ok_or_else(|| anyhow!("--audit {} is not above 0 and at most 1", auditing.audit))?;
    let key = auditing.worker_key.as_deref().map(str::parse).transpose()?;
    let deadline = super::deadline(args)?;
    let cpu = process_cpu();
    let whole = Whole::new(model, &named.policy)?;
    let terms = Arc::new(Terms::new(whole.model().clone(), fraction)?);
    let signer = Arc::new(receipt_key(auditing.receipt_key.as_deref(), "receipt.key")?);
    let ledger = Arc::new(ledger(folder, signer, auditing.judge.as_deref())?);
    ledger.keep_model(whole.model())?;
    let mut packed = Vec::with_capacity(inputs.len());
    for input in inputs {
        let values = whole.values(input)?;
        let bytes = whole.model().graph().pack_inputs(&values);
        packed.push(bytes.context("an input that the graph does not take")?);
    }
    let own = match args.worker.is_empty() {
        true => Some(OwnWorker::start(None)?),
        false => None,
    };
    let started = own.iter().map(OwnWorker::address).collect();
    let workers: &Vec<String> = if own.is_some() {
        &started
    } else {
        &args.worker
    };
    let mut report = report(model, named, &terms);
    let before = Instant::now();
    let work = Work {
        args,
        parties,
        whole: &whole,
        terms: &terms,
        ledger: &ledger,
        key,
        packed: &packed,
        until: deadline.map(|within| (before + within, within)),
    };
    let mut done = Done {
        feed: Feed::new(inputs.len(), super::camera(args)?),
        outputs: inputs.iter().map(|_| None).collect(),
        bytes: Bytes::default(),
        audits: Audits::default(),
        online: Duration::ZERO,
        worker: None,
    };
    let mut failures = Vec::new();
    let mut lie = None;
    for address in workers {
        if let Some(why) = work.overdue() {
            failures.push(why);
            break;
        }
        match work.through(address, &mut done)? {
            Ok(()) => break,
            Err(End::Failed(why)) => failures.push(format!("{address}: {why}")),
            Err(End::Lied(what)) => {
                report.verdict = VerdictField::Lie {
                    worker: address.clone(),
                    layer: None,
                    lie: what.kind().to_owned(),
                };
                report.worker = Some(address.clone());
                lie = Some(format!("worker {address} lied: {what}"));
                break;
            }
        }
        done.feed.give_back();
    }
    let over = done.feed.is_over();
    if !over && lie.is_none() && !args.finish_locally {
        bail!("no worker could do it: {}", failures.join("; "));
    }
    for failure in &failures {
        let then = match over {
            true => "the next one stepped in",
            false => "no other served",
        };
        eprintln!("larvatus: worker failed, {then}: {failure}");
    }
    if args.finish_locally {
        done.distrust(lie.is_some());
        report.finished_here = finish_here(model, named, inputs, &mut done)?;
        if report.finished_here > 0 {
            let (here, all) = (report.finished_here, inputs.len());
            eprintln!("larvatus: {here} of {all} inferences were finished here, without a worker");
        }
    }
    if let Some(worker) = &done.worker {
        let records = done.outputs.iter().flatten().filter_map(|ran| ran.number);
        let audits = &done.audits;
        let field = AuditField::new(&terms, folder, worker.key, records.collect(), audits);
        report.audit = Some(field);
        let name = &worker.name;
        if let Some((number, what)) = audits.lies.first() {
            report.verdict = VerdictField::Lie {
                worker: name.clone(),
                layer: None,
                lie: what.clone(),
            };
            lie.get_or_insert_with(|| format!("worker {name} lied, record {number}: {what}"));
        }
        report.worker.get_or_insert_with(|| name.clone());
    }
    if lie.is_some() && !args.finish_locally {
        super::write_report(args, &report)?;
    }
    match lie {
        Some(why) if !args.finish_locally => return Ok(Verdict::Rejected(why)),
        Some(_) => {}
        None => {
            if let Some((number, why)) = done.audits.given_up.first() {
                bail!("the worker did not open record {number}, which is not settled: {why}");
            }
            report.verdict =
                VerdictField::Accepted(match (report.finished_here, auditing.audit_now) {
                    (here, _) if here == inputs.len() => "accepted",
                    (_, true) => "settled",
                    (_, false) => "provisional",
                });
        }
    }
    let cpu = Cpu {
        online: millis(done.online),
        offline: millis((process_cpu() - cpu).saturating_sub(done.online)),
    };
    let results = done.results(cpu, before.elapsed());
    names.outputs = whole.outputs().to_vec();
    let verdict = finish(args, report, results, &names)?;
    Ok(lie.map_or(verdict, Verdict::Rejected))
}

/// Computes what is open without a worker: the same integer network, so the same bits. How many.
fn finish_here(
    model: &Model,
    named: &Named,
    inputs: &[Vec<Tensor>],
    done: &mut Done,
) -> Result<usize> {
    let mut here = 0;
    let mut split = None;
    while let Some(at) = next_here(&mut done.feed) {
        let layers = match split.take() {
            Some(layers) => layers,
            None => plan(model, &named.policy)?,
        };
        let (started, cpu) = (Instant::now(), process_cpu());
        let tensors = run_exact(&layers, inputs[at].clone());
        split = Some(layers);
        done.online += process_cpu() - cpu;
        done.outputs[at] = Some(Ran {
            tensors: tensors.with_context(|| format!("input {}", at + 1))?,
            took: started.elapsed(),
            number: None,
        });
        done.feed.finish(at, Instant::now());
        here += 1;
    }
    Ok(here)
}

/// What is done so far, whoever did it.
struct Done {
    feed: Feed,
    outputs: Vec<Option<Ran>>,
    bytes: Bytes,
    audits: Audits,
    /// CPU time of the inferences, audits in the background not counted.
    online: Duration,
    /// The last that ran something.
    worker: Option<Worker>,
}

impl Done {
    /// Opens what is not to be believed: everything where a worker was caught lying meanwhile, otherwise what an audit found wrong
    /// or could not settle; and what was taken and not finished.
    fn distrust(&mut self, everything: bool) {
        let Audits { lies, given_up, .. } = &self.audits;
        let found = |number| lies.iter().chain(given_up).any(|(of, _)| *of == number);
        for (at, ran) in self.outputs.iter_mut().enumerate() {
            let number = ran.as_ref().and_then(|ran| ran.number);
            if number.is_some_and(|number| everything || found(number)) {
                *ran = None;
                self.feed.take_up(vec![at]);
            }
        }
        self.feed.give_back();
    }

    /// What there is, in the order of the inputs.
    fn results(self, cpu: Cpu, wall: Duration) -> Results {
        let mut results = Results {
            of: vec![],
            kept: self.feed.kept(),
            tensors: vec![],
            singles: vec![],
            cpu,
            wall,
            memory: Memory::of_process(),
        };
        let sent = |ran: &Ran| ran.number.is_some();
        let all = self.outputs.iter().flatten().filter(|ran| sent(ran));
        let each = all.count().max(1) as u64;
        for (of, ran) in self.outputs.into_iter().enumerate() {
            let Some(ran) = ran else { continue };
            let (waited, bytes) = match sent(&ran) {
                true => (ran.took, &self.bytes),
                false => (Duration::ZERO, &Bytes { up: 0, down: 0 }),
            };
            results.of.push(of);
            results.singles.push(Single {
                input: String::new(),
                wall_ms: millis(ran.took),
                waiting_ms: millis(waited),
                bytes: Bytes {
                    up: bytes.up / each,
                    down: bytes.down / each,
                },
                round_trips: usize::from(sent(&ran)),
                top: None,
            });
            results.tensors.push(ran.tensors);
        }
        results
    }
}

fn report(model: &Model, named: &Named, terms: &Terms) -> Report {
    let mut report = super::local_report(model, &named.name);
    report.plan = terms.plan().to_string();
    report.input_privacy = "none".to_owned();
    report.weight_privacy = "none".to_owned();
    report.guarantee = terms.sentence();
    report
}

/// Why a worker's turn is over.
enum End {
    Failed(String),
    Lied(WorkerMisbehaved),
}

impl From<InferError> for End {
    fn from(why: InferError) -> Self {
        match why {
            InferError::Worker(lie) => Self::Lied(lie),
            other => Self::Failed(other.to_string()),
        }
    }
}

/// Who did it.
struct Worker {
    name: String,
    key: PublicKey,
}

/// What audits in the background found.
#[derive(Default)]
pub(crate) struct Audits {
    pub(crate) settled: u64,
    pub(crate) lies: Vec<(u64, String)>,
    pub(crate) given_up: Vec<(u64, String)>,
    /// CPU time of their thread.
    cpu: Duration,
}

struct Work<'a> {
    args: &'a Args,
    parties: &'a Parties,
    whole: &'a Whole,
    terms: &'a Arc<Terms>,
    ledger: &'a Arc<Ledger>,
    key: Option<PublicKey>,
    packed: &'a [Vec<u8>],
    /// When workers are not waited for any longer, and how long that is.
    until: Option<(Instant, Duration)>,
}

impl Work<'_> {
    /// Why workers are not waited for any longer, if that is so.
    fn overdue(&self) -> Option<String> {
        let (_, within) = self.until.filter(|(end, _)| Instant::now() >= *end)?;
        Some(overdue(within))
    }

    /// What is left of the time for workers, at most this.
    fn left(&self, most: Duration) -> Duration {
        let left = |(end, _): (Instant, _)| end.saturating_duration_since(Instant::now());
        self.until.map_or(most, |until| most.min(left(until)))
    }

    fn place<'a>(&'a self, address: &'a str, key: Option<PublicKey>) -> Where<'a> {
        Where {
            address,
            parties: self.parties,
            within: self.left(Duration::from_secs(self.args.timeout.max(1))),
            key,
        }
    }

    fn bar(&self, what: &'static str, length: u64, numbers: &str) -> ProgressBar {
        match self.args.json {
            true => ProgressBar::hidden(),
            false => progress(what, length, numbers),
        }
    }

    /// All inputs that are open through one worker.
    fn through(&self, address: &str, done: &mut Done) -> Result<Result<(), End>> {
        let bar = self.bar("the network to the worker", 0, "{bytes}/{total_bytes}");
        let place = self.place(address, self.key);
        let line = Line::open(&place, self.terms, self.ledger.signer(), &bar)?;
        bar.finish_and_clear();
        let mut line = match line {
            Ok(line) => line,
            Err(why) => return Ok(Err(why.into())),
        };
        let key = line.remote.worker_key().context("a worker without a key")?;
        let name = line.remote.worker_name().unwrap_or("unnamed");
        let name = format!("{address} ({name})");
        let background = match self.args.auditing.audit_now {
            true => Some(Background::start(self, address, key)?),
            false => None,
        };
        let (moved, before) = (line.traffic(), process_cpu());
        let audited = done.audits.cpu;
        let ran = self.infer(&mut line, done, background.as_ref())?;
        let now = line.traffic();
        done.bytes.up += now.sent_bytes - moved.sent_bytes;
        done.bytes.down += now.received_bytes - moved.received_bytes;
        done.worker = Some(Worker { name, key });
        if let Some(background) = background {
            let audits = background.finish()?;
            done.audits.settled += audits.settled;
            done.audits.lies.extend(audits.lies);
            done.audits.given_up.extend(audits.given_up);
            done.audits.cpu += audits.cpu;
        }
        done.online += (process_cpu() - before).saturating_sub(done.audits.cpu - audited);
        if ran.is_ok() {
            line.close();
        }
        Ok(ran)
    }

    /// Runs the inputs that come, several in flight; a record is kept before its output is used.
    fn infer(
        &self,
        line: &mut Line,
        done: &mut Done,
        background: Option<&Background>,
    ) -> Result<Result<(), End>> {
        let feed = &mut done.feed;
        let open = feed.upcoming() as u64;
        let mut numbers = self.ledger.reserve(open)?;
        let mut flying = BTreeMap::new();
        let bar = self.bar("inferences", open, "{pos}/{len}");
        loop {
            feed.arrive(Instant::now());
            if feed.is_over() {
                break;
            }
            if let Some(why) = self.overdue() {
                return Ok(Err(End::Failed(why)));
            }
            while flying.len() < self.args.window
                && let Some(at) = feed.take()
            {
                let number = numbers.next().context("a number for each input")?;
                let now = line.clock.now();
                let input = self.packed[at].clone();
                let call = line.remote.run(number, entropy()?, input, now);
                let call = call.context("an input that the graph does not take")?;
                flying.insert(call, at);
            }
            let pause = feed.pause(Instant::now()).unwrap_or(STEP);
            if let Err(why) = line.step(self.left(STEP.min(pause)))? {
                return Ok(Err(why.into()));
            }
            while let Some(answered) = line.remote.poll() {
                let audit::Done::Ran { call, record, took } = answered else {
                    bail!("an opening that nobody asked for");
                };
                // In whatever order the worker answers.
                let at = flying
                    .remove(&call)
                    .context("a run that nobody asked for")?;
                self.ledger.keep(&record)?;
                done.outputs[at] = Some(self.output(&record, took)?);
                feed.finish(at, Instant::now());
                if let Some(background) = background {
                    background.audit(record.counter());
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(Ok(()))
    }

    fn output(&self, record: &Provisional, took: Duration) -> Result<Ran> {
        let values = self.whole.model().graph().unpack_outputs(record.output());
        let tensors = values.and_then(|values| self.whole.tensors(&values));
        let tensors = tensors.context("an output that is not the graph's")?;
        Ok(Ran {
            tensors: tensors.into_iter().map(Arc::new).collect(),
            took,
            number: Some(record.counter()),
        })
    }
}

/// Audits on a thread and a link of their own.
struct Background {
    numbers: Sender<u64>,
    thread: JoinHandle<Result<Audits>>,
}

impl Background {
    fn start(work: &Work<'_>, address: &str, key: PublicKey) -> Result<Self> {
        let (numbers, waiting) = channel();
        let (terms, ledger) = (Arc::clone(work.terms), Arc::clone(work.ledger));
        let (parties, address) = (work.parties.clone(), address.to_owned());
        let within = Duration::from_secs(work.args.timeout.max(1));
        let thread = std::thread::Builder::new().spawn(move || {
            let place = Where {
                address: &address,
                parties: &parties,
                within,
                key: Some(key),
            };
            background(&place, &terms, &ledger, &waiting)
        })?;
        Ok(Self { numbers, thread })
    }

    fn audit(&self, number: u64) {
        // Where the thread has ended, its end tells why.
        let _ = self.numbers.send(number);
    }

    fn finish(self) -> Result<Audits> {
        drop(self.numbers);
        let done = self.thread.join();
        done.map_err(|_| anyhow!("the audits in the background broke down"))?
    }
}

fn background(
    place: &Where<'_>,
    terms: &Arc<Terms>,
    ledger: &Arc<Ledger>,
    waiting: &Receiver<u64>,
) -> Result<Audits> {
    let hidden = ProgressBar::hidden();
    let mut audits = Audits::default();
    let mut line = None;
    for number in waiting {
        let until = Instant::now() + place.within;
        let outcome = loop {
            let open = match line.take() {
                Some(open) => Ok(open),
                None => Line::open(place, terms, ledger.signer(), &hidden)?,
            };
            let why = match open {
                Ok(mut open) => {
                    match crate::auditing::audit(&mut open, ledger, terms, number, until, &hidden)?
                    {
                        Attempt::Over(outcome) => {
                            line = Some(open).filter(|open| open.remote.failure().is_none());
                            break outcome;
                        }
                        Attempt::Broken(why) => why,
                    }
                }
                Err(InferError::Failed(why)) => why,
                Err(other) => return Err(other.into()),
            };
            if Instant::now() >= until {
                break Box::new(give_up(ledger, terms, number, why)?);
            }
            std::thread::sleep(STEP);
        };
        ledger.conclude(&outcome)?;
        match *outcome {
            Outcome::Settled(_) => audits.settled += 1,
            Outcome::Rejected(rejected) => audits.lies.push((number, rejected.lie().to_string())),
            Outcome::Unopened(unopened) => {
                audits.given_up.push((number, unopened.why().to_string()));
            }
        }
    }
    if let Some(line) = line {
        line.close();
    }
    audits.cpu = thread_cpu();
    Ok(audits)
}

impl AuditField {
    fn new(
        terms: &Terms,
        folder: &Path,
        worker: PublicKey,
        records: Vec<u64>,
        audits: &Audits,
    ) -> Self {
        let runs = records.len() as u64;
        Self {
            folder: folder.display().to_string(),
            worker_key: worker.to_string(),
            fraction: terms.fraction().part(),
            units: terms.model().graph().unit_count(),
            alpha: terms.alpha(),
            undetected_one: terms.undetected(1),
            undetected_all: terms.undetected(runs),
            settled: audits.settled,
            rejected: audits.lies.len() as u64,
            worker_failed: audits.given_up.len() as u64,
            records,
        }
    }
}
