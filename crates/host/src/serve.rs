//! A thread and a machine for each connection of a listener.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use larvatus_proto::machine::{Machine, Now};

use crate::clock::Clock;
use crate::framing::LinkError;
use crate::link::Link;
use crate::listener::Listener;
use crate::pump::{Options, Progress, Pump};

/// How often the stop flag is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How long a peer may take to read what was said last.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a connection on a Unix socket may say nothing at all.
const SILENT: Duration = Duration::from_secs(30);

/// How long accepting pauses when the system has no resources for a connection.
const PAUSE: Duration = Duration::from_millis(50);

/// What became of the connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Served {
    /// Connections that got a machine.
    pub accepted: usize,
    /// Connections that were closed at once, because the limit was reached or no thread was
    /// to be had.
    pub refused: usize,
    /// Connections whose machine panicked.
    pub panicked: usize,
}

/// Serves a listener until `stop` is set: a thread for each connection, at most `connections` at
/// a time. `make` makes the machine of a connection and is told the time on `clock`.
///
/// A connection ends when its machine has finished or its link has ended; after `stop`, each ends
/// when the step it is in is over, and this returns when all have. A machine that panics ends
/// its own connection only.
pub fn serve(
    listener: &Listener,
    connections: usize,
    options: Options,
    clock: Clock,
    make: &(dyn Fn(Now) -> Box<dyn Machine + Send> + Sync),
    stop: &AtomicBool,
) -> Served {
    let mut served = Served::default();
    let open = AtomicUsize::new(0);
    let panicked = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        while !stop.load(Ordering::Relaxed) {
            let link = match listener.accept(LOOK) {
                Ok(Some(link)) => link,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    std::thread::sleep(PAUSE);
                    continue;
                }
            };
            if open.load(Ordering::Acquire) >= connections {
                tracing::warn!(
                    peer = link.peer(),
                    connections,
                    "refused: too many connections"
                );
                served.refused += 1;
                continue;
            }
            let slot = Slot::take(&open);
            let panicked = &panicked;
            let connection = move || {
                let _slot = slot;
                let peer = link.peer().to_owned();
                let work = || converse(link, options, clock, make, stop);
                match catch_unwind(AssertUnwindSafe(work)) {
                    Ok(Ok(())) => tracing::debug!(peer, "connection finished"),
                    Ok(Err(error)) => tracing::info!(peer, %error, "connection ended"),
                    Err(_) => {
                        tracing::error!(peer, "connection panicked");
                        panicked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            };
            let thread = std::thread::Builder::new().name("larvatus-serve".into());
            match thread.spawn_scoped(scope, connection) {
                Ok(_) => served.accepted += 1,
                Err(error) => {
                    tracing::warn!(%error, "refused: no thread for a connection");
                    served.refused += 1;
                }
            }
        }
    });
    served.panicked = panicked.into_inner();
    served
}

fn converse(
    mut link: Link,
    options: Options,
    clock: Clock,
    make: &dyn Fn(Now) -> Box<dyn Machine + Send>,
    stop: &AtomicBool,
) -> Result<(), LinkError> {
    let patience = Instant::now() + SILENT;
    while !link.greet(LOOK).map_err(LinkError::Io)? {
        if stop.load(Ordering::Relaxed) || Instant::now() > patience {
            return Ok(());
        }
    }
    let mut pump = Pump::new(link, clock, options).map_err(LinkError::Io)?;
    let mut machine = make(clock.now());
    while !stop.load(Ordering::Relaxed) {
        if pump.step(&mut *machine, LOOK)? == Progress::Finished {
            break;
        }
    }
    pump.finish(FAREWELL);
    Ok(())
}

/// A connection that counts against the limit until dropped.
struct Slot<'a>(&'a AtomicUsize);

impl<'a> Slot<'a> {
    fn take(open: &'a AtomicUsize) -> Self {
        open.fetch_add(1, Ordering::AcqRel);
        Self(open)
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
