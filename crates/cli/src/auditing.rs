//! A link to a worker that runs whole networks, and the audits that go over it.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::ProgressBar;
use larvatus::audit::{
    Audit, Done, JudgeKey, Ledger, Outcome, Provisional, Remote, RemoteSettings, Step, Terms,
};
use larvatus::error::{InferError, WorkerFailed};
use larvatus::secret::Entropy;
use larvatus_host::pump::Options;
use larvatus_host::store::Folder;
use larvatus_host::{Address, Clock, Pump, entropy};
use larvatus_proto::machine::Machine;
use larvatus_proto::receipt::{PublicKey, Signer};

use crate::parties::Parties;
use crate::store::InFolder;

/// Longest silence between two looks at the clock.
const STEP: Duration = Duration::from_millis(200);

/// The records in a folder, which is made where there is none; evidence goes to this judge only, where one is named.
pub(crate) fn ledger(folder: &Path, signer: Arc<Signer>, judge: Option<&str>) -> Result<Ledger> {
    let judge: Option<JudgeKey> = judge.map(str::parse).transpose()?;
    let about = || format!("records {}", folder.display());
    let files = Folder::open(folder).with_context(about)?;
    let ledger = Ledger::new(Box::new(InFolder(files)), signer);
    Ok(match judge {
        Some(judge) => ledger.sealing_to(judge, Entropy::new(entropy()?)),
        None => ledger,
    })
}

/// A worker, as it is connected to.
#[derive(Clone)]
pub(crate) struct Where<'a> {
    pub(crate) address: &'a str,
    pub(crate) parties: &'a Parties,
    /// How long it may take for any reply.
    pub(crate) within: Duration,
    /// The key it must sign with; any where not given.
    pub(crate) key: Option<PublicKey>,
}

/// A conversation and the link that it goes over.
pub(crate) struct Line {
    pub(crate) remote: Remote,
    pump: Pump,
    pub(crate) clock: Clock,
}

impl Line {
    /// Connects, and agrees on the graph; it is uploaded if it is wanted.
    ///
    /// # Errors
    /// The outer one is ours, the inner one the worker's.
    pub(crate) fn open(
        place: &Where<'_>,
        terms: &Arc<Terms>,
        signer: &Arc<Signer>,
        bar: &ProgressBar,
    ) -> Result<Result<Self, InferError>> {
        let address: Address = place.address.parse()?;
        let link = match place.parties.connect(&address, place.within) {
            Ok(link) => link,
            Err(err) => {
                let message = format!("{err:#}");
                return Ok(Err(WorkerFailed::Refused { message }.into()));
            }
        };
        let settings = RemoteSettings {
            answer_within: place.within,
            worker: place.key,
        };
        let clock = Clock::start();
        let options = Options {
            write_timeout: place.within,
            ..Options::default()
        };
        let mut line = Self {
            remote: Remote::new(Arc::clone(terms), Arc::clone(signer), settings),
            pump: Pump::new(link, clock, options)?,
            clock,
        };
        while !line.remote.is_ready() {
            if let Err(why) = line.step(STEP)? {
                return Ok(Err(why));
            }
            if let Some((sent, total)) = line.remote.uploading() {
                bar.set_length(total);
                bar.set_position(sent);
            }
        }
        Ok(Ok(line))
    }

    /// Lets the link move what it can.
    ///
    /// # Errors
    /// The outer one is ours, the inner one the worker's.
    pub(crate) fn step(&mut self, wait: Duration) -> Result<Result<(), InferError>> {
        let stepped = self.pump.step(&mut self.remote, wait);
        if let Some(why) = self.remote.failure() {
            return Ok(Err(why.clone()));
        }
        stepped.context("link to the worker")?;
        Ok(Ok(()))
    }

    /// The next thing that the worker has done, until a moment.
    pub(crate) fn next(&mut self, until: Instant) -> Result<Result<Done, InferError>> {
        loop {
            if let Some(done) = self.remote.poll() {
                return Ok(Ok(done));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Err(WorkerFailed::TimedOut {
                    awaited: "an opening",
                    within: Duration::ZERO,
                }
                .into()));
            }
            if let Err(why) = self.step(left.min(STEP))? {
                // What came before the end counts.
                return Ok(self.remote.poll().ok_or(why));
            }
        }
    }

    /// What the pump has moved.
    pub(crate) fn traffic(&self) -> larvatus_host::Traffic {
        self.pump.traffic()
    }

    /// Says goodbye.
    pub(crate) fn close(mut self) {
        self.remote.close();
        while !self.remote.finished() && matches!(self.step(STEP), Ok(Ok(()))) {}
    }
}

/// What an attempt to audit a record came to.
pub(crate) enum Attempt {
    /// The audit is over.
    Over(Box<Outcome>),
    /// The link broke or the worker was silent; the record stays as it is, its draw fixed.
    Broken(WorkerFailed),
}

/// A record of a ledger whose draw is fixed, durably.
pub(crate) fn drawn(ledger: &Ledger, number: u64) -> Result<Provisional> {
    let mut record = ledger.record(number)?;
    ledger.draw(&mut record, entropy()?)?;
    Ok(record)
}

/// Audits one record over a link.
pub(crate) fn audit(
    line: &mut Line,
    ledger: &Ledger,
    terms: &Arc<Terms>,
    number: u64,
    until: Instant,
    bar: &ProgressBar,
) -> Result<Attempt> {
    let record = drawn(ledger, number)?;
    let mut audit = Audit::new(record, Arc::clone(terms), Arc::clone(ledger.signer()))?;
    loop {
        let (trace, asked, known) = audit.ask();
        let now = line.clock.now();
        let call = line.remote.open(trace, asked, known, now);
        let call = call.context("the worker is asked for what the graph does not have")?;
        let step = match line.next(until)? {
            Ok(Done::Opened { call: of, bytes }) if of == call => audit.answered(&bytes)?,
            Ok(Done::Refused { call: of, why }) if of == call => {
                return Ok(Attempt::Over(Box::new(audit.failed(why)?)));
            }
            Ok(_) => anyhow::bail!("an answer to another request"),
            Err(InferError::Worker(what)) => {
                return Ok(Attempt::Over(Box::new(audit.misbehaved(what)?)));
            }
            Err(InferError::Failed(why)) => return Ok(Attempt::Broken(why)),
            Err(other) => return Err(other.into()),
        };
        match step {
            Step::Ask(next) => {
                audit = *next;
                let (seen, all) = audit.progress();
                bar.set_length(all as u64);
                bar.set_position(seen as u64);
            }
            Step::Over(outcome) => return Ok(Attempt::Over(outcome)),
        }
    }
}

/// Gives up a record: its worker did not open in time.
pub(crate) fn give_up(
    ledger: &Ledger,
    terms: &Arc<Terms>,
    number: u64,
    why: WorkerFailed,
) -> Result<Outcome> {
    let record = drawn(ledger, number)?;
    let audit = Audit::new(record, Arc::clone(terms), Arc::clone(ledger.signer()))?;
    Ok(audit.failed(why)?)
}
