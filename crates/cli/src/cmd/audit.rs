//! `larvatus audit`: records become settled, rejected or given up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use indicatif::ProgressBar;
use larvatus::audit::{Ledger, Outcome, State, Terms, evidence_name};
use larvatus::error::{InferError, WorkerFailed};
use larvatus_proto::receipt::PublicKey;
use serde_json::json;

use crate::Verdict;
use crate::args::Audit as Args;
use crate::auditing::{Attempt, Line, Where, audit, give_up, ledger};
use crate::driver::{millis, progress};
use crate::parties::{Parties, receipt_key};
use crate::table::{bytes, table};

/// How long to wait before a worker that is not there is tried again.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) fn run(args: &Args) -> Result<Verdict> {
    ensure!(
        args.folder.is_dir(),
        "there is no folder {}; `larvatus run --preset whole-audited --audit-dir` makes one",
        args.folder.display()
    );
    let signer = Arc::new(receipt_key(args.receipt_key.as_deref(), "receipt.key")?);
    let ledger = ledger(&args.folder, signer, args.judge.as_deref())?;
    let pending = ledger.pending()?;
    let mut facts = Facts::default();
    if let Some(worker) = args.worker.as_deref().filter(|_| !pending.is_empty()) {
        let parties = Parties::workers_only(args.identity.as_deref())?;
        let until = Instant::now() + Duration::from_secs(args.deadline);
        let bar = match args.json {
            true => ProgressBar::hidden(),
            false => progress("records", pending.len() as u64, "{pos}/{len}"),
        };
        let settle = Settle {
            worker,
            parties: &parties,
            ledger: &ledger,
            until,
            within: Duration::from_secs(args.deadline.max(1)),
            bar: &bar,
        };
        for ((_, key), (terms, numbers)) in grouped(&ledger, &pending)? {
            settle.group(&terms, key, &numbers, &mut facts)?;
        }
        bar.finish_and_clear();
    }
    report(args, &ledger, &facts)
}

/// What came of this call.
#[derive(Default)]
struct Facts {
    /// Units recomputed, by record.
    units: BTreeMap<u64, usize>,
    lies: BTreeMap<u64, String>,
    given_up: BTreeMap<u64, String>,
    /// Milliseconds from the first question to the verdict, and bytes received, by record.
    took: BTreeMap<u64, (f64, u64)>,
}

type Groups = BTreeMap<(String, [u8; 32]), (Arc<Terms>, Vec<u64>)>;

/// Records that one conversation serves: of one graph, audited alike, run by one worker.
fn grouped(ledger: &Ledger, pending: &[u64]) -> Result<Groups> {
    let mut groups: Groups = BTreeMap::new();
    for &number in pending {
        let record = ledger.record(number)?;
        let about = format!("{} {}", record.model(), record.fraction());
        let key = (about, record.statement().worker.0);
        if let Some((_, numbers)) = groups.get_mut(&key) {
            numbers.push(number);
            continue;
        }
        let model = ledger.model(record.model())?;
        let terms = Arc::new(Terms::new(model, record.fraction())?);
        groups.insert(key, (terms, vec![number]));
    }
    Ok(groups)
}

struct Settle<'a> {
    worker: &'a str,
    parties: &'a Parties,
    ledger: &'a Ledger,
    until: Instant,
    within: Duration,
    bar: &'a ProgressBar,
}

impl Settle<'_> {
    /// Audits records of one group until all are done or the time is over.
    fn group(
        &self,
        terms: &Arc<Terms>,
        key: [u8; 32],
        numbers: &[u64],
        facts: &mut Facts,
    ) -> Result<()> {
        let place = Where {
            address: self.worker,
            parties: self.parties,
            within: self.within,
            key: Some(PublicKey(key)),
        };
        let mut open = numbers.iter().copied().peekable();
        let mut why = WorkerFailed::TimedOut {
            awaited: "an opening",
            within: self.within,
        };
        while open.peek().is_some() && Instant::now() < self.until {
            let hidden = ProgressBar::hidden();
            let line = Line::open(&place, terms, self.ledger.signer(), &hidden)?;
            let mut line = match line {
                Ok(line) => line,
                Err(InferError::Failed(failed)) => {
                    why = failed;
                    self.pause();
                    continue;
                }
                // It lies before it is asked for anything: nothing that it says will settle a record.
                Err(InferError::Worker(lie)) => {
                    why = WorkerFailed::Refused {
                        message: lie.to_string(),
                    };
                    break;
                }
                Err(other) => return Err(other.into()),
            };
            while let Some(&number) = open.peek() {
                let (began, before) = (Instant::now(), line.traffic().received_bytes);
                match audit(&mut line, self.ledger, terms, number, self.until, &hidden)? {
                    Attempt::Over(outcome) => {
                        let received = line.traffic().received_bytes - before;
                        let took = (millis(began.elapsed()), received);
                        facts.took.insert(number, took);
                        self.conclude(number, &outcome, facts)?;
                        open.next();
                    }
                    Attempt::Broken(failed) => {
                        why = failed;
                        break;
                    }
                }
                if line.remote.failure().is_some() {
                    break;
                }
            }
            if line.remote.failure().is_none() {
                line.close();
            } else {
                self.pause();
            }
        }
        for number in open {
            let outcome = give_up(self.ledger, terms, number, why.clone())?;
            self.conclude(number, &outcome, facts)?;
        }
        Ok(())
    }

    fn pause(&self) {
        let left = self.until.saturating_duration_since(Instant::now());
        std::thread::sleep(PAUSE.min(left));
    }

    fn conclude(&self, number: u64, outcome: &Outcome, facts: &mut Facts) -> Result<()> {
        self.ledger.conclude(outcome)?;
        self.bar.inc(1);
        match outcome {
            Outcome::Settled(settled) => {
                facts.units.insert(number, settled.units());
            }
            Outcome::Rejected(rejected) => {
                facts.lies.insert(number, rejected.lie().to_string());
            }
            Outcome::Unopened(unopened) => {
                facts.given_up.insert(number, unopened.why().to_string());
            }
        }
        Ok(())
    }
}

/// Shows all records of the folder, and says what this call found.
fn report(args: &Args, ledger: &Ledger, facts: &Facts) -> Result<Verdict> {
    let entries = ledger.entries()?;
    let mut rows = Vec::new();
    let mut records = Vec::new();
    let mut count = BTreeMap::new();
    for entry in &entries {
        let (word, what) = match &entry.state {
            State::Provisional => ("provisional", "awaits its audit".to_owned()),
            State::Settled => {
                let units = facts.units.get(&entry.number);
                let units = units.zip(facts.took.get(&entry.number));
                let told = |(units, (ms, got)): (&usize, &(f64, u64))| {
                    format!(
                        "{units} units recomputed in {ms:.0} ms, {} opened",
                        bytes(*got)
                    )
                };
                let units = units.map(told);
                ("settled", units.unwrap_or_default())
            }
            State::Rejected { evidence } => {
                let lie = facts.lies.get(&entry.number).cloned().unwrap_or_default();
                let shown = match evidence {
                    true => format!("evidence: {}", evidence_name(entry.number)),
                    false => "no evidence for others".to_owned(),
                };
                let sep = if lie.is_empty() { "" } else { "; " };
                ("rejected", format!("{lie}{sep}{shown}"))
            }
            State::Unopened { why } => ("worker failed", why.clone()),
            _ => ("unknown", String::new()),
        };
        *count.entry(word).or_insert(0_u64) += 1;
        let took = facts.took.get(&entry.number);
        records.push(json!({
            "number": entry.number,
            "state": word,
            "what": what,
            "units": facts.units.get(&entry.number),
            "ms": took.map(|(ms, _)| ms),
            "bytes": took.map(|(_, bytes)| bytes),
        }));
        rows.push(vec![entry.number.to_string(), word.to_owned(), what]);
    }
    let of = |word: &str| count.get(word).copied().unwrap_or(0);
    if args.json {
        let report = json!({
            "trusted_key": ledger.signer().public().to_string(),
            "records": records,
            "settled": of("settled"),
            "rejected": of("rejected"),
            "worker_failed": of("worker failed"),
            "provisional": of("provisional"),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", table(&["record", "state", "what"], &rows));
        println!(
            "{} settled, {} rejected, {} not opened by the worker, {} provisional",
            of("settled"),
            of("rejected"),
            of("worker failed"),
            of("provisional")
        );
    }
    if let Some((number, lie)) = facts.lies.first_key_value() {
        return Ok(Verdict::Rejected(format!(
            "record {number} is rejected: {lie}"
        )));
    }
    if let Some((number, why)) = facts.given_up.first_key_value() {
        anyhow::bail!("the worker did not open record {number}, which is not settled: {why}");
    }
    Ok(Verdict::Accepted)
}
