//! A session and a worker in virtual time: no sockets, no sleeps, the same in every run.
//!
//! Each direction is a [`Lane`] that delays, reorders, loses and repeats frames as its seed says.
//! Like a real link, it holds every header against the receiver's [`FrameLimits`] of that moment and
//! ends where one exceeds them. What leaves the session is kept, as what an adversary saw.
//!
//! [`FrameLimits`]: larvatus_proto::frame::FrameLimits

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use larvatus::error::InferError;
use larvatus::plan::Plan;
use larvatus::secret::Entropy;
use larvatus::session::{Output, Session, Settings};
use larvatus::tensor::Tensor;
use larvatus_kernels::isa::Isa;
use larvatus_proto::frame::{Frame, HEADER, Header};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_worker::{Cpu, Limits, Service, Store};

use crate::chance::Chance;

/// A worker's end: a machine that may also forge the headers of its frames.
pub trait Peer: Machine {
    /// The header that goes out with a frame.
    fn header(&self, frame: &Frame) -> [u8; HEADER] {
        frame.header()
    }
}

impl Peer for Service {}

/// An honest worker with a store of its own.
///
/// # Panics
/// Where the system gives no thread.
pub fn honest() -> Service {
    let cpu = Cpu::new(NonZeroUsize::MIN).expect("one thread");
    Service::new(Store::new(Box::new(cpu), Limits::default()), Duration::ZERO)
}

/// The same, computing on an instruction set.
///
/// # Panics
/// Where the system gives no thread.
pub fn honest_on(isa: Isa) -> Service {
    let cpu = Cpu::new(NonZeroUsize::MIN).expect("one thread").on(isa);
    Service::new(Store::new(Box::new(cpu), Limits::default()), Duration::ZERO)
}

/// An honest dealer with a store of its own.
///
/// # Panics
/// Where the system gives no thread.
pub fn honest_dealer() -> Service {
    let cpu = Cpu::new(NonZeroUsize::MIN).expect("one thread");
    Service::dealer(Store::new(Box::new(cpu), Limits::default()), Duration::ZERO)
}

/// Carries frames between a trusted side's machine and its peer, in order and at once, until
/// neither has more to say. A header beyond the receiver's limits ends the link, and so does a peer
/// that has finished.
pub fn converse(trusted: &mut dyn Machine, peer: &mut dyn Machine, now: Now) {
    let hand_over =
        |frame: Frame, to: &mut dyn Machine| match Header::decode(frame.header(), to.limits()) {
            Ok(_) => to.receive(frame, now),
            Err(why) => to.disconnected(LinkEnd::Malformed(why), now),
        };
    let mut moved = true;
    while std::mem::take(&mut moved) {
        while let Some(frame) = trusted.transmit(now) {
            hand_over(frame, peer);
            moved = true;
        }
        while let Some(frame) = peer.transmit(now) {
            hand_over(frame, trusted);
            moved = true;
        }
    }
    if peer.finished() {
        trusted.disconnected(LinkEnd::Closed, now);
    }
}

/// What a link does to frames.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Every frame takes at least so long.
    pub delay: Duration,
    /// And up to so much longer: frames overtake each other.
    pub jitter: Duration,
    /// Frames lost, of a thousand.
    pub lost: u32,
    /// Frames that come twice, of a thousand.
    pub twice: u32,
}

impl Conditions {
    /// In order, complete, at once.
    pub const PERFECT: Self = Self {
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        lost: 0,
        twice: 0,
    };
    /// Nothing that a datagram link does is missing.
    pub const ROUGH: Self = Self {
        delay: Duration::from_millis(2),
        jitter: Duration::from_millis(40),
        lost: 120,
        twice: 80,
    };
}

/// One direction of a link.
#[derive(Debug)]
pub struct Lane {
    conditions: Conditions,
    chance: Chance,
    /// By arrival, then order of sending.
    flying: BTreeMap<(Now, u64), ([u8; HEADER], Frame)>,
    sent: u64,
    bytes: u64,
}

impl Lane {
    fn new(conditions: Conditions, seed: u64) -> Self {
        Self {
            conditions,
            chance: Chance::new(seed),
            flying: BTreeMap::new(),
            sent: 0,
            bytes: 0,
        }
    }

    fn send(&mut self, header: [u8; HEADER], frame: Frame, now: Now) {
        let copies = 1 + u32::from(self.chance.happens(self.conditions.twice));
        for _ in 0..copies {
            let jitter = self.conditions.jitter.as_micros() as usize;
            let late = Duration::from_micros(self.chance.below(jitter) as u64);
            if self.chance.happens(self.conditions.lost) {
                continue;
            }
            self.sent += 1;
            self.bytes += frame.size();
            let at = now + self.conditions.delay + late;
            self.flying.insert((at, self.sent), (header, frame.clone()));
        }
    }

    fn arrival(&self) -> Option<Now> {
        self.flying.first_key_value().map(|((at, _), _)| *at)
    }

    fn take(&mut self) -> Option<([u8; HEADER], Frame)> {
        let (_, (header, frame)) = self.flying.pop_first()?;
        self.bytes -= frame.size();
        Some((header, frame))
    }
}

/// How a pair is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Of the session.
    pub settings: Settings,
    /// Of both directions.
    pub conditions: Conditions,
    /// What the session's secrets derive from; fixed, so that runs repeat.
    pub entropy: [u8; 32],
    /// Whether frames are kept for [`Pair::sent`] and [`Pair::received`].
    pub kept: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            settings: Settings::default(),
            conditions: Conditions::PERFECT,
            entropy: [7; 32],
            kept: true,
        }
    }
}

/// A session, a worker and the link between them.
pub struct Pair<P> {
    session: Session,
    peer: P,
    now: Now,
    up: Lane,
    down: Lane,
    linked: bool,
    kept: bool,
    sent: Vec<Frame>,
    received: Vec<Frame>,
    peak: u64,
}

/// Events after which a run counts as one that never ends.
const PATIENCE: usize = 200_000;
/// Frames that a side may send before the other is heard.
const BURST: usize = 512;

impl Pair<Service> {
    /// An honest worker over a perfect link.
    pub fn honest(plan: &Arc<Plan>) -> Self {
        Self::new(plan, honest(), Setup::default())
    }
}

impl<P: Peer> Pair<P> {
    /// A pair.
    pub fn new(plan: &Arc<Plan>, peer: P, setup: Setup) -> Self {
        let seed = setup
            .entropy
            .iter()
            .fold(0_u64, |sum, byte| sum.rotate_left(5) ^ u64::from(*byte));
        Self {
            session: Session::new(
                Arc::clone(plan),
                Entropy::new(setup.entropy),
                setup.settings,
            ),
            peer,
            now: Duration::ZERO,
            up: Lane::new(setup.conditions, seed),
            down: Lane::new(setup.conditions, !seed),
            linked: true,
            kept: setup.kept,
            sent: Vec::new(),
            received: Vec::new(),
            peak: 0,
        }
    }

    /// The session.
    pub fn session(&mut self) -> &mut Session {
        &mut self.session
    }

    /// The virtual time.
    pub fn now(&self) -> Now {
        self.now
    }

    /// Every frame that the session sent, in order, lost ones included.
    pub fn sent(&self) -> &[Frame] {
        &self.sent
    }

    /// Every frame that reached the session, in order.
    pub fn received(&self) -> &[Frame] {
        &self.received
    }

    /// Most bytes that were under way at once, both directions together.
    pub fn peak_under_way(&self) -> u64 {
        self.peak
    }

    /// One inference, from begin to end.
    ///
    /// # Errors
    /// What the session says.
    ///
    /// # Panics
    /// Where it refuses the input or never comes to an end.
    pub fn infer(&mut self, inputs: Vec<Tensor>) -> Result<Output, InferError> {
        self.run_many(vec![inputs]).remove(0)
    }

    /// Inferences begun together; results in the order of the inputs.
    ///
    /// # Panics
    /// Where the session refuses an input or never comes to an end.
    pub fn run_many(&mut self, inputs: Vec<Vec<Tensor>>) -> Vec<Result<Output, InferError>> {
        let begin = |inputs| {
            self.session
                .begin(inputs, self.now)
                .expect("inputs of the model")
        };
        let ids: Vec<_> = inputs.into_iter().map(begin).collect();
        let mut results = BTreeMap::new();
        for _ in 0..PATIENCE {
            while let Some((id, result)) = self.session.poll() {
                assert!(results.insert(id, result).is_none(), "{id:?} ended twice");
            }
            if results.len() == ids.len() {
                return ids.iter().filter_map(|id| results.remove(id)).collect();
            }
            assert!(
                self.step(),
                "{} of {} ended, then nothing happened",
                results.len(),
                ids.len()
            );
        }
        panic!(
            "{} of {} ended, then events without end",
            results.len(),
            ids.len()
        );
    }

    /// Delivers whatever is still under way, and lets nobody's time pass.
    pub fn drain(&mut self) {
        for _ in 0..PATIENCE {
            self.exchange();
            if self.up.flying.is_empty() && self.down.flying.is_empty() {
                return;
            }
            self.deliver();
        }
        panic!("frames without end");
    }

    /// The next event: a frame arrives or a deadline comes. False where there is none.
    pub fn step(&mut self) -> bool {
        self.exchange();
        let frame = [self.up.arrival(), self.down.arrival()]
            .into_iter()
            .flatten()
            .min();
        let deadlines = [self.session.deadline(), self.peer.deadline()];
        let deadline = deadlines
            .into_iter()
            .flatten()
            .min()
            .filter(|_| self.linked);
        match (frame, deadline) {
            (Some(frame), deadline) if deadline.is_none_or(|at| frame <= at) => self.deliver(),
            (_, Some(at)) => {
                self.now = self.now.max(at);
                self.session.tick(self.now);
                self.peer.tick(self.now);
            }
            (_, None) => return self.hang_up(),
        }
        true
    }

    /// Takes what both sides have to say.
    fn exchange(&mut self) {
        for _ in 0..BURST {
            let Some(frame) = self.session.transmit(self.now) else {
                break;
            };
            if self.kept {
                self.sent.push(frame.clone());
            }
            self.up.send(frame.header(), frame, self.now);
        }
        for _ in 0..BURST {
            let Some(frame) = self.peer.transmit(self.now) else {
                break;
            };
            self.down.send(self.peer.header(&frame), frame, self.now);
        }
        self.peak = self.peak.max(self.up.bytes + self.down.bytes);
        if self.peer.finished() && self.down.flying.is_empty() {
            self.hang_up();
        }
    }

    /// Hands over the frame that arrives first.
    fn deliver(&mut self) {
        let up = match (self.up.arrival(), self.down.arrival()) {
            (Some(up), Some(down)) => up <= down,
            (up, _) => up.is_some(),
        };
        let (lane, machine): (_, &mut dyn Machine) = if up {
            (&mut self.up, &mut self.peer)
        } else {
            (&mut self.down, &mut self.session)
        };
        self.now = self.now.max(lane.arrival().unwrap_or_default());
        let Some((header, frame)) = lane.take() else {
            return;
        };
        match Header::decode(header, machine.limits()) {
            Ok(_) => {
                if !up && self.kept {
                    self.received.push(frame.clone());
                }
                machine.receive(frame, self.now);
            }
            Err(why) => machine.disconnected(LinkEnd::Malformed(why), self.now),
        }
    }

    /// Ends the link for both, once. True where it was still up.
    fn hang_up(&mut self) -> bool {
        let linked = std::mem::replace(&mut self.linked, false);
        if linked {
            self.session.disconnected(LinkEnd::Closed, self.now);
            self.peer.disconnected(LinkEnd::Closed, self.now);
        }
        linked
    }
}
