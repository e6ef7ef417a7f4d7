//! A dealer and its tickets, made in the background while the worker works.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use larvatus::dealer::{Dealing, Settings};
use larvatus::error::{DealError, DealerMisbehaved};
use larvatus::plan::Plan;
use larvatus::policy::Secrecy;
use larvatus::secret::{Entropy, TicketSet};
use larvatus_host::pump::Options;
use larvatus_host::{Clock, Link, Progress, Pump, entropy, thread_cpu};

use crate::parties::Parties;

/// Longest silence between two looks at what is wanted.
const STEP: Duration = Duration::from_millis(20);

/// How long a dealer may take to answer at all; without one, tickets are made here.
const CONNECT: Duration = Duration::from_secs(10);

/// How long the dealer may take to read the goodbye.
const FAREWELL: Duration = Duration::from_millis(200);

/// A dealer and the tickets that have come from it.
pub(crate) struct Dealer {
    pub(crate) address: String,
    sets: Receiver<Message>,
    shared: Arc<Shared>,
    /// Sets that are ordered and were not taken.
    awaited: usize,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Inferences to order.
    wanted: AtomicUsize,
    stop: AtomicBool,
    /// CPU time of the thread and of its link's, in nanoseconds.
    cpu: AtomicU64,
}

enum Message {
    Set(Box<TicketSet>),
    Lied(Option<String>, DealerMisbehaved),
    Gone(String),
}

/// What there is to take.
pub(crate) enum Taken {
    Set(Box<TicketSet>),
    /// Nothing yet.
    Nothing,
    /// The dealer lied about this layer, if it is one.
    Lied(Option<String>, DealerMisbehaved),
    /// There is no dealer any more, and this is why.
    Gone(String),
}

impl Dealer {
    /// Connects to the dealer, if there is one, and lets it work. At most four sets are held: two
    /// that are ready or being made, and two that are handed over.
    pub(crate) fn start(
        plan: &Arc<Plan>,
        parties: &Parties,
        within: Duration,
    ) -> Result<Option<Self>> {
        let Some(address) = &parties.dealer else {
            return Ok(None);
        };
        ensure!(
            plan.policy().secrecy() == Secrecy::Public,
            "--dealer {address}: the plan hides the weights, so no dealer may have them; leave it out"
        );
        let who = parties.known(address).context("a dealer without a key")?;
        let entropy = Entropy::new(entropy()?);
        let settings = Settings {
            ahead: 2,
            answer_within: within,
        };
        let dealing = Dealing::new(Arc::clone(plan), who, entropy, settings);
        let (parties, address) = (parties.clone(), address.clone());
        let named = address.to_string();
        let shared = Arc::<Shared>::default();
        let (sender, sets) = sync_channel(1);
        let thread = std::thread::Builder::new().name("larvatus-tickets".into());
        let thread = thread.spawn({
            let (plan, shared) = (Arc::clone(plan), Arc::clone(&shared));
            move || {
                let link = parties.connect(&address, within.min(CONNECT));
                let link = link.map_err(|error| error.to_string());
                let last =
                    link.and_then(|link| deal(dealing, link, within, &plan, &shared, &sender));
                let last = match last {
                    Ok(message) => message,
                    Err(why) => Some(Message::Gone(why)),
                };
                // Nobody may be left to hear it.
                let _ = last.map(|message| sender.send(message));
            }
        })?;
        Ok(Some(Self {
            address: named,
            sets,
            shared,
            awaited: 0,
            thread: Some(thread),
        }))
    }

    /// Wants tickets for so many inferences, those that are on their way included.
    pub(crate) fn want(&mut self, inferences: usize) {
        let more = inferences.saturating_sub(self.awaited);
        self.awaited += more;
        self.shared.wanted.fetch_add(more, Ordering::Relaxed);
    }

    /// The next set, if it comes within `wait`.
    pub(crate) fn take(&mut self, wait: Duration) -> Taken {
        match self.sets.recv_timeout(wait) {
            Ok(Message::Set(set)) => {
                self.awaited -= 1;
                Taken::Set(set)
            }
            Ok(Message::Lied(layer, what)) => Taken::Lied(layer, what),
            Ok(Message::Gone(why)) => Taken::Gone(why),
            Err(RecvTimeoutError::Timeout) => Taken::Nothing,
            Err(RecvTimeoutError::Disconnected) => Taken::Gone("it has ended".to_owned()),
        }
    }

    /// CPU time that went into tickets so far, off the latency path; what is going on right now comes
    /// a little later.
    pub(crate) fn cpu(&self) -> Duration {
        Duration::from_nanos(self.shared.cpu.load(Ordering::Relaxed))
    }
}

impl Drop for Dealer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // A thread that hands over a set waits for somebody to take it.
        while self.sets.try_recv().is_ok() {}
        let (_, nobody) = sync_channel(0);
        self.sets = nobody;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Drives the dealing until nobody wants more; returns what is to be said at its end.
fn deal(
    mut dealing: Dealing,
    link: Link,
    within: Duration,
    plan: &Plan,
    shared: &Shared,
    sender: &SyncSender<Message>,
) -> Result<Option<Message>, String> {
    let options = Options {
        write_timeout: within,
        ..Options::default()
    };
    let mut pump = Pump::new(link, Clock::start(), options).map_err(|error| error.to_string())?;
    while !shared.stop.load(Ordering::Relaxed) {
        dealing.order(shared.wanted.swap(0, Ordering::Relaxed));
        let stepped = pump.step(&mut dealing, STEP);
        let cpu = (thread_cpu() + pump.reader_cpu()).as_nanos();
        let cpu = u64::try_from(cpu).unwrap_or(u64::MAX);
        shared.cpu.store(cpu, Ordering::Relaxed);
        while let Some(set) = dealing.poll() {
            if sender.send(Message::Set(Box::new(set))).is_err() {
                return Ok(None);
            }
        }
        match (dealing.failure(), stepped) {
            (Some(DealError::Dealer(lie)), _) => {
                let layer = lie.layer().map(|id| plan.layer_name(id).to_owned());
                return Ok(Some(Message::Lied(layer, lie.clone())));
            }
            (Some(why), Err(link)) => return Err(format!("{why} ({link})")),
            (Some(why), Ok(_)) => return Err(why.to_string()),
            (None, Err(link)) => return Err(link.to_string()),
            (None, Ok(Progress::Finished)) => break,
            (None, Ok(Progress::Moved | Progress::Idle)) => {}
        }
    }
    dealing.close();
    while let Ok(Progress::Moved) = pump.step(&mut dealing, Duration::ZERO) {}
    pump.finish(FAREWELL);
    Ok(None)
}
