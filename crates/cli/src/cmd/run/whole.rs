//! `larvatus run --preset whole-audited`: the whole network at the worker, in clear, audited later.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use indicatif::ProgressBar;
use larvatus::audit::{Done, Fraction, Ledger, Outcome, Provisional, Terms};
use larvatus::error::{InferError, WorkerMisbehaved};
use larvatus::model::Model;
use larvatus::tensor::Tensor;
use larvatus::whole::Whole;
use larvatus_host::{entropy, process_cpu, thread_cpu};
use larvatus_proto::receipt::PublicKey;

use super::{Args, Named, Names, Results, finish};
use crate::Verdict;
use crate::auditing::{Attempt, Line, Where, audit, give_up, ledger};
use crate::driver::{millis, progress};
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
    number: u64,
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
    let cpu = process_cpu();
    let whole = Whole::new(model, &named.policy)?;
    let terms = Arc::new(Terms::new(whole.model().clone(), fraction)?);
    let signer = Arc::new(receipt_key(auditing.receipt_key.as_deref(), "receipt.key")?);
    let ledger = Arc::new(ledger(folder, signer)?);
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
    };
    let mut failures = Vec::new();
    for address in workers {
        let tried = work.through(address, inputs.len())?;
        let Through {
            ran,
            worker,
            bytes,
            audits,
            online,
        } = match tried {
            Ok(done) => done,
            Err(End::Failed(why)) => {
                failures.push(format!("{address}: {why}"));
                continue;
            }
            Err(End::Lied(what)) => {
                report.worker = Some(address.clone());
                report.verdict = VerdictField::Lie {
                    worker: address.clone(),
                    layer: None,
                    lie: what.kind().to_owned(),
                };
                super::write_report(args, &report)?;
                return Ok(Verdict::Rejected(format!("worker {address} lied: {what}")));
            }
        };
        for failure in &failures {
            eprintln!("larvatus: worker failed, the next one stepped in: {failure}");
        }
        report.worker = Some(worker.name.clone());
        let records = ran.iter().map(|ran| ran.number).collect();
        let field = AuditField::new(&terms, folder, worker.key, records, &audits);
        if let Some((number, lie)) = audits.lies.first() {
            report.verdict = VerdictField::Lie {
                worker: worker.name.clone(),
                layer: None,
                lie: lie.clone(),
            };
            report.audit = Some(field);
            super::write_report(args, &report)?;
            let worker = &worker.name;
            return Ok(Verdict::Rejected(format!(
                "worker {worker} lied, record {number}: {lie}"
            )));
        }
        if let Some((number, why)) = audits.given_up.first() {
            bail!("the worker did not open record {number}, which is not settled: {why}");
        }
        report.verdict = VerdictField::Accepted(match auditing.audit_now {
            true => "settled",
            false => "provisional",
        });
        report.audit = Some(field);
        let mut results = Results {
            of: (0..inputs.len()).collect(),
            kept: None,
            tensors: vec![],
            singles: vec![],
            cpu: Cpu {
                online: millis(online),
                offline: millis((process_cpu() - cpu).saturating_sub(online)),
            },
            wall: before.elapsed(),
            memory: Memory::of_process(),
        };
        let each = ran.len().max(1) as u64;
        for ran in ran {
            results.singles.push(Single {
                input: String::new(),
                wall_ms: millis(ran.took),
                waiting_ms: millis(ran.took),
                bytes: Bytes {
                    up: bytes.up / each,
                    down: bytes.down / each,
                },
                round_trips: 1,
                top: None,
            });
            results.tensors.push(ran.tensors);
        }
        names.outputs = whole.outputs().to_vec();
        return finish(args, report, results, &names);
    }
    bail!("no worker could do it: {}", failures.join("; "))
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
}

/// What came through one worker.
struct Through {
    ran: Vec<Ran>,
    worker: Worker,
    bytes: Bytes,
    audits: Audits,
    /// CPU time of the inferences, audits in the background not counted.
    online: Duration,
}

impl Work<'_> {
    fn place<'a>(&'a self, address: &'a str, key: Option<PublicKey>) -> Where<'a> {
        Where {
            address,
            parties: self.parties,
            within: Duration::from_secs(self.args.timeout.max(1)),
            key,
        }
    }

    fn bar(&self, what: &'static str, length: u64, numbers: &str) -> ProgressBar {
        match self.args.json {
            true => ProgressBar::hidden(),
            false => progress(what, length, numbers),
        }
    }

    /// All inputs through one worker.
    fn through(&self, address: &str, inputs: usize) -> Result<Result<Through, End>> {
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
        let ran = self.infer(&mut line, inputs, background.as_ref())?;
        let now = line.traffic();
        let bytes = Bytes {
            up: now.sent_bytes - moved.sent_bytes,
            down: now.received_bytes - moved.received_bytes,
        };
        let audits = background.map_or_else(|| Ok(Audits::default()), Background::finish)?;
        let online = (process_cpu() - before).saturating_sub(audits.cpu);
        Ok(match ran {
            Ok(ran) => {
                line.close();
                Ok(Through {
                    ran,
                    worker: Worker { name, key },
                    bytes,
                    audits,
                    online,
                })
            }
            Err(why) => Err(why.into()),
        })
    }

    /// Runs the inputs, several in flight; a record is kept before its output is used.
    fn infer(
        &self,
        line: &mut Line,
        inputs: usize,
        background: Option<&Background>,
    ) -> Result<Result<Vec<Ran>, InferError>> {
        let mut numbers = self.ledger.reserve(inputs as u64)?;
        let mut waiting = self.packed.iter().enumerate();
        let mut flying = BTreeMap::new();
        let mut outputs = BTreeMap::new();
        let bar = self.bar("inferences", inputs as u64, "{pos}/{len}");
        while outputs.len() < inputs {
            while flying.len() < self.args.window
                && let Some((at, input)) = waiting.next()
            {
                let number = numbers.next().context("a number for each input")?;
                let now = line.clock.now();
                let call = line.remote.run(number, entropy()?, input.clone(), now);
                let call = call.context("an input that the graph does not take")?;
                flying.insert(call, at);
            }
            if let Err(why) = line.step(STEP)? {
                return Ok(Err(why));
            }
            while let Some(done) = line.remote.poll() {
                let Done::Ran { call, record, took } = done else {
                    bail!("an opening that nobody asked for");
                };
                // In whatever order the worker answers.
                let at = flying
                    .remove(&call)
                    .context("a run that nobody asked for")?;
                self.ledger.keep(&record)?;
                outputs.insert(at, self.output(&record, took)?);
                if let Some(background) = background {
                    background.audit(record.counter());
                }
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        Ok(Ok(outputs.into_values().collect()))
    }

    fn output(&self, record: &Provisional, took: Duration) -> Result<Ran> {
        let values = self.whole.model().graph().unpack_outputs(record.output());
        let tensors = values.and_then(|values| self.whole.tensors(&values));
        let tensors = tensors.context("an output that is not the graph's")?;
        Ok(Ran {
            tensors: tensors.into_iter().map(Arc::new).collect(),
            took,
            number: record.counter(),
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
                Ok(mut open) => match audit(&mut open, ledger, terms, number, until, &hidden)? {
                    Attempt::Over(outcome) => {
                        line = Some(open).filter(|open| open.remote.failure().is_none());
                        break outcome;
                    }
                    Attempt::Broken(why) => why,
                },
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
