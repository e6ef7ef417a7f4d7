//! Drives a machine over a link.
//!
//! On a stream, a thread of the pump's own reads frames; everything else happens on the caller's
//! thread, inside [`Pump::step`]. While a frame is written the reader goes on reading, up to
//! [`Options::room`]: two sides that write at once do not wait for each other as long as one of
//! them has room for everything that it asked for. With shared memory there is little to read, and
//! the caller's thread does it.

use std::io::{self, ErrorKind};
use std::time::{Duration, Instant};

use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::Machine;

use crate::clock::Clock;
use crate::framing::LinkError;
use crate::link::Link;
use crate::shared::SharedLink;
use crate::stream::Stream;

/// Frames that one step moves at most, so that a caller gets its turn.
const TURN: usize = 256;

/// How long what the peer said last is waited for when it no longer reads.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// What a pump has moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Frames sent.
    pub sent_frames: u64,
    /// Their bytes, headers included.
    pub sent_bytes: u64,
    /// Frames that the machine received.
    pub received_frames: u64,
    /// Their bytes, headers included.
    pub received_bytes: u64,
    /// Time without anything to do but wait for the peer.
    pub waited: Duration,
}

impl Traffic {
    pub(crate) fn sent(&mut self, frame: &Frame) {
        self.sent_frames += 1;
        self.sent_bytes += frame.size();
    }

    pub(crate) fn received(&mut self, frame: &Frame) {
        self.received_frames += 1;
        self.received_bytes += frame.size();
    }
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_enums, reason = "a caller's loop handles each")]
pub enum Progress {
    /// Frames were moved, or time let pass that the machine had waited for.
    Moved,
    /// Nothing happened within the wait.
    Idle,
    /// The machine has nothing more to say or to hear.
    Finished,
}

/// What a pump allows its peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct Options {
    /// How long a peer may read nothing while something is written to it. 60 s: a peer reads no
    /// more than its room while its machine computes, so this exceeds the longest computation.
    /// A whole frame may take this and a second for each 64 KiB, looked at every 256 KiB.
    pub write_timeout: Duration,
    /// Bytes of frames that may have come and not been received by the machine; one more frame
    /// is read beyond it. 64 MiB. A side that asks for much at once gives itself room for all
    /// of it.
    pub room: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            write_timeout: Duration::from_secs(60),
            room: 64 << 20,
        }
    }
}

/// Drives one machine over one link.
///
/// Call [`step`](Self::step) in a loop, or [`run`](Self::run). Dropping the pump ends the link
/// at once; [`finish`](Self::finish) lets the peer read what was sent last.
#[derive(Debug)]
pub struct Pump {
    carrier: Carrier,
    peer: String,
    clock: Clock,
    write_timeout: Duration,
    traffic: Traffic,
    ended: bool,
    /// Whether the machine has been offered the link's memory.
    lent: bool,
}

/// How frames come and go.
#[derive(Debug)]
enum Carrier {
    Stream(Stream),
    Shared(SharedLink),
}

impl Carrier {
    /// What the peer may send from here on.
    fn allow(&self, limits: FrameLimits) {
        match self {
            Self::Stream(stream) => stream.allow(limits),
            // Limits are looked at when a frame is taken.
            Self::Shared(_) => {}
        }
    }

    fn pop(&mut self, limits: FrameLimits) -> Option<Frame> {
        match self {
            Self::Stream(stream) => stream.pop(),
            Self::Shared(shared) => shared.pop(limits),
        }
    }

    fn take_end(&mut self) -> Option<LinkError> {
        match self {
            Self::Stream(stream) => stream.take_end(),
            Self::Shared(shared) => shared.take_end(),
        }
    }

    fn wait(&mut self, wait: Duration) {
        match self {
            Self::Stream(stream) => stream.wait(wait),
            Self::Shared(shared) => shared.wait(wait),
        }
    }

    fn write(&mut self, frame: &Frame) -> io::Result<()> {
        match self {
            Self::Stream(stream) => stream.write(frame),
            Self::Shared(shared) => shared.write(frame),
        }
    }
}

impl Pump {
    /// A pump over a link.
    ///
    /// # Errors
    /// The system's error where it gives no thread or the timeout is zero.
    pub fn new(link: Link, clock: Clock, options: Options) -> io::Result<Self> {
        let Options {
            write_timeout,
            room,
        } = options;
        let peer = link.peer().to_owned();
        let carrier = match link.into_shared() {
            Ok((socket, shared)) => Carrier::Shared(SharedLink::new(socket, shared, write_timeout)),
            Err(link) => Carrier::Stream(Stream::new(link, room, write_timeout)?),
        };
        Ok(Self {
            carrier,
            peer,
            clock,
            write_timeout,
            traffic: Traffic::default(),
            ended: false,
            lent: false,
        })
    }

    /// What was moved so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// CPU time of the thread that reads, up to the last frame that it handed over.
    pub fn reader_cpu(&self) -> Duration {
        match &self.carrier {
            Carrier::Stream(stream) => stream.reader_cpu(),
            // The caller's thread reads.
            Carrier::Shared(_) => Duration::ZERO,
        }
    }

    /// The other end, for people.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends everything the machine has to say and hands it everything that has come; where
    /// there is neither, waits for a frame, the machine's deadline or the end of `wait`.
    ///
    /// # Errors
    /// [`LinkError`] when the link has ended before the machine had finished. The machine has
    /// received every frame that came before, and has been told, once.
    pub fn step(
        &mut self,
        machine: &mut dyn Machine,
        wait: Duration,
    ) -> Result<Progress, LinkError> {
        if !std::mem::replace(&mut self.lent, true)
            && let Carrier::Shared(shared) = &self.carrier
        {
            machine.lend(shared.memory());
        }
        let mut moved = self.exchange(machine)?;
        if !moved && !machine.finished() {
            let deadline = machine
                .deadline()
                .map(|at| at.saturating_sub(self.clock.now()));
            let start = Instant::now();
            self.carrier
                .wait(deadline.map_or(wait, |left| left.min(wait)));
            self.traffic.waited += start.elapsed();
            moved = self.exchange(machine)?;
        }
        let now = self.clock.now();
        if !machine.finished() && machine.deadline().is_some_and(|at| at <= now) {
            machine.tick(now);
            self.exchange(machine)?;
            moved = true;
        }
        Ok(match (machine.finished(), moved) {
            (true, _) => Progress::Finished,
            (false, true) => Progress::Moved,
            (false, false) => Progress::Idle,
        })
    }

    /// Steps until the machine has finished.
    ///
    /// # Errors
    /// As [`step`](Self::step).
    pub fn run(&mut self, machine: &mut dyn Machine) -> Result<(), LinkError> {
        while self.step(machine, Duration::MAX)? != Progress::Finished {}
        Ok(())
    }

    /// Says that nothing more will be sent and throws away what comes, until the peer has ended
    /// too or `wait` is over. Without it, a TCP peer that still sends may lose the last reply.
    pub fn finish(self, wait: Duration) {
        match &self.carrier {
            Carrier::Stream(stream) => stream.finish(wait),
            // A Unix socket loses nothing that was written.
            Carrier::Shared(_) => {}
        }
    }

    /// Moves frames both ways until there are none, or a turn is over. For each frame that comes
    /// one may go, so that a machine need not hold more answers than it is asked for; one that gathers
    /// gets those that have come.
    fn exchange(&mut self, machine: &mut dyn Machine) -> Result<bool, LinkError> {
        if machine.finished() {
            return Ok(false);
        }
        if self.ended {
            return Err(LinkError::Closed);
        }
        let mut moved = false;
        for _ in 0..TURN {
            let received = self.receive(machine);
            while machine.gathers() && self.receive(machine) {}
            let sent = match machine.transmit(self.clock.now()) {
                Some(frame) => {
                    // The answer may come before the write returns.
                    self.carrier.allow(machine.limits());
                    self.write(machine, &frame)?;
                    true
                }
                None => false,
            };
            if !received && !sent {
                break;
            }
            moved = true;
        }
        if !moved && let Some(why) = self.carrier.take_end() {
            return Err(self.ended(machine, why));
        }
        Ok(moved)
    }

    /// Hands over one frame, if one has come.
    fn receive(&mut self, machine: &mut dyn Machine) -> bool {
        self.carrier.allow(machine.limits());
        let Some(frame) = self.carrier.pop(machine.limits()) else {
            return false;
        };
        self.traffic.received(&frame);
        machine.receive(frame, self.clock.now());
        self.carrier.allow(machine.limits());
        true
    }

    fn write(&mut self, machine: &mut dyn Machine, frame: &Frame) -> Result<(), LinkError> {
        let Err(error) = self.carrier.write(frame) else {
            self.traffic.sent(frame);
            return Ok(());
        };
        let why = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => LinkError::Stalled {
                after: self.write_timeout,
            },
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
                // It may have said why before it left.
                let end = Instant::now() + LAST_WORDS;
                loop {
                    while self.receive(machine) {}
                    if let Some(why) = self.carrier.take_end() {
                        break why;
                    }
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break LinkError::Closed;
                    }
                    self.carrier.wait(left);
                }
            }
            _ => LinkError::Io(error),
        };
        Err(self.ended(machine, why))
    }

    fn ended(&mut self, machine: &mut dyn Machine, why: LinkError) -> LinkError {
        self.ended = true;
        machine.disconnected(why.end(), self.clock.now());
        why
    }
}
