//! Shows a pairing's code and takes the one that somebody reads from the other end.

use std::io::{BufRead, Write};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use anyhow::Result;
use larvatus_host::pump::Options;
use larvatus_host::{Clock, Link, Pump};
use larvatus_proto::machine::{Machine, Now};
use larvatus_proto::pairing::{Code, Paired, Pairing, PairingError};

/// How often what was typed is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// How long the other end may take until there is a code.
const CODE: Duration = Duration::from_secs(10);

/// How long the other end may take to read the last word.
const FAREWELL: Duration = Duration::from_secs(1);

/// What somebody types, line by line.
pub(crate) struct Typed(Receiver<String>);

impl Typed {
    /// Reads standard input from here on.
    pub(crate) fn lines() -> Self {
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in std::io::stdin().lock().lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self(lines)
    }
}

/// How an attempt ended, and whether it was a guess that somebody between could have made.
pub(crate) struct Attempt {
    pub(crate) outcome: Result<Paired, PairingError>,
    pub(crate) spent: bool,
}

/// Drives one end of a pairing to its end. `other` is what people call the other end.
pub(crate) fn compare(
    mut pairing: Pairing,
    link: Link,
    clock: Clock,
    typed: &Typed,
    other: &str,
) -> Result<Attempt> {
    let mut pump = Pump::new(link, clock, Options::default())?;
    let patience: Now = clock.now() + CODE;
    let mut asked = false;
    let mut link_ended = false;
    while !pairing.finished() && !link_ended {
        link_ended = pump.step(&mut pairing, LOOK).is_err();
        let Some(code) = pairing.code() else {
            if pairing.outcome().is_none() && clock.now() >= patience && !asked {
                pairing.refuse(PairingError::TimedOut);
            }
            continue;
        };
        if !asked {
            asked = true;
            // What was typed before there was a code is no answer to it.
            while typed.0.try_recv().is_ok() {}
            say(&format!(
                "code {code}\ntype the code that the {other} shows, or `no`: "
            ))?;
        }
        match typed.0.try_recv() {
            Ok(line) => match line.parse::<Code>() {
                Ok(seen) => pairing.confirm(seen),
                Err(_) if line.trim().eq_ignore_ascii_case("no") => {
                    pairing.refuse(PairingError::NotConfirmed);
                }
                Err(why) => say(&format!("{why}; type them, or `no`: "))?,
            },
            Err(TryRecvError::Empty) => {}
            // Nobody is there; but who has confirmed already waits for the other end.
            Err(TryRecvError::Disconnected) if !pairing.confirmed() => {
                pairing.refuse(PairingError::NotConfirmed);
            }
            Err(TryRecvError::Disconnected) => {}
        }
    }
    pump.finish(FAREWELL);
    Ok(Attempt {
        spent: pairing.spent(),
        outcome: pairing.outcome().unwrap_or(Err(PairingError::Disconnected)),
    })
}

/// Writes to standard output at once.
pub(crate) fn say(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
