//! Tickets from a dealer: a second machine, which knows pads and never sees what they hide.
//!
//! The trusted side sends a dealer the [`Seed`] of one inference after the
//! other; the dealer answers with u = L(r), round by round. Each u is checked by itself when it
//! comes, with vectors that serve nothing else, and becomes part of a [`TicketSet`] only then. So
//! the trusted side spends two passes on it instead of the linear work.
//!
//! A dealer learns the model and how many inferences there are. It knows r: **together with
//! whoever sees q + r it knows the input.** So a set names its dealer, and a
//! [`Session`](crate::session::Session) takes it only where its worker is known to be somebody else.
//! Who listens on the dealer's link learns u, so the link must be encrypted.
//!
//! Call order: [`Dealing::new`], [`order`](Dealing::order), then [`poll`](Dealing::poll) while a pump
//! drives the [`Machine`] side. A lie ends it: everything that the dealer made is erased.
//!
//! Source: precomputed unblinding factors of Slalom (ICLR 2019), outsourced; the check is Freivalds'.

mod check;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use larvatus_proto::VERSION;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{self, CHUNK, Frame, FrameLimits, MAX_HEAD, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::Words;

use crate::error::{DealError, DealerFailed, DealerMisbehaved};
use crate::plan::Plan;
use crate::policy::Secrecy;
use crate::secret::{Checks, Entropy, Identity, Origin, Provisioner, Seed, TicketSet, Unmask};
use check::PadChecks;

/// Rounds that are asked for at a time.
const UNDER_WAY: usize = 4;

/// Wishes for the model that a dealer may have: one, and one for a model that it lost.
const WISHES: usize = 2;

/// How dealing behaves.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Ticket sets that are made or under way before anybody polls them, at least one. Two: one is
    /// ready while the next is made. Each holds all u of an inference.
    pub ahead: usize,
    /// How long the dealer may take for any reply.
    pub answer_within: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            ahead: 2,
            answer_within: Duration::from_secs(60),
        }
    }
}

/// The trusted end of a connection to a dealer.
pub struct Dealing {
    plan: Arc<Plan>,
    dealer: Identity,
    settings: Settings,
    seeds: Provisioner,
    checks: PadChecks,
    state: State,
    name: Option<String>,
    /// When a message of the handshake was sent whose answer is awaited.
    asked: Option<Now>,
    wishes: usize,
    /// Inferences ordered and not begun.
    ordered: usize,
    making: VecDeque<Making>,
    ready: VecDeque<TicketSet>,
    /// Rounds that are asked for, by call.
    calls: BTreeMap<u64, Asked>,
    next_call: u64,
    closing: bool,
}

/// Where the conversation stands; each state is named for what it awaits.
enum State {
    Welcome,
    /// `Want` or `Ready`.
    Verdict,
    /// Sends the model from `next` on.
    Upload {
        next: u64,
    },
    Answers,
    Over(DealError),
    Closed,
}

/// The secrets of an inference while its u come.
struct Making {
    number: u64,
    seed: Seed,
    /// Rounds asked for.
    asked: usize,
    /// u of each round, once it has come.
    rounds: Vec<Option<Vec<Unmask>>>,
}

impl Making {
    fn is_whole(&self) -> bool {
        self.rounds.iter().all(Option::is_some)
    }
}

/// A round that is asked for.
struct Asked {
    number: u64,
    round: usize,
    since: Now,
}

impl Dealing {
    /// Asks `dealer` for tickets of `plan`. `entropy` must be fresh and serve nothing else.
    ///
    /// Every u is checked with as many repetitions as the plan has, two at the least.
    pub fn new(plan: Arc<Plan>, dealer: Identity, entropy: Entropy, settings: Settings) -> Self {
        let state = match plan.policy().secrecy() {
            Secrecy::Public => State::Welcome,
            Secrecy::TwoWorkers => State::Over(DealerFailed::SecretWeights.into()),
        };
        let seeds = Provisioner::for_dealer(&entropy, &plan);
        let checks = PadChecks::new(Checks::for_dealer(&entropy, &plan));
        Self {
            plan,
            dealer,
            settings,
            seeds,
            checks,
            state,
            name: None,
            asked: None,
            wishes: 0,
            ordered: 0,
            making: VecDeque::new(),
            ready: VecDeque::new(),
            calls: BTreeMap::new(),
            next_call: 0,
            closing: false,
        }
    }

    /// Asks for the tickets of so many further inferences.
    pub fn order(&mut self, inferences: usize) {
        self.ordered += inferences;
    }

    /// The next ticket set, all of whose u were checked.
    pub fn poll(&mut self) -> Option<TicketSet> {
        self.ready.pop_front()
    }

    /// Says goodbye once nothing is under way; what was ordered and not begun is dropped.
    pub fn close(&mut self) {
        self.closing = true;
        self.ordered = 0;
    }

    /// What the dealer calls itself, once it has said so.
    pub fn dealer_name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Why dealing is over, if it is.
    pub fn failure(&self) -> Option<&DealError> {
        match &self.state {
            State::Over(why) => Some(why),
            State::Welcome
            | State::Verdict
            | State::Upload { .. }
            | State::Answers
            | State::Closed => None,
        }
    }

    /// Ends dealing. After a lie nothing that the dealer made is used; sets that were polled before
    /// were checked and stand.
    fn end(&mut self, why: DealError) {
        if matches!(self.state, State::Over(_) | State::Closed) {
            return;
        }
        self.making.clear();
        self.calls.clear();
        self.ordered = 0;
        if matches!(why, DealError::Dealer(_)) {
            self.ready.clear();
        }
        self.checks = PadChecks::none();
        self.state = State::Over(why);
    }

    fn awaited(&self) -> &'static str {
        match &self.state {
            State::Welcome => "its welcome",
            State::Verdict | State::Upload { .. } => "its word on the model",
            State::Answers => "u",
            State::Over(_) | State::Closed => "nothing",
        }
    }

    fn handle(&mut self, reply: Reply) -> Result<(), DealError> {
        match (&self.state, reply) {
            (State::Over(_) | State::Closed, _) => {}
            (_, Reply::Failed { call: _, message }) => {
                return Err(DealerFailed::Refused { message }.into());
            }
            (State::Welcome, Reply::Welcome { version, name }) => {
                if version != VERSION {
                    let (ours, theirs) = (VERSION, version);
                    return Err(DealerFailed::Version { ours, theirs }.into());
                }
                self.name = Some(name);
                self.turn(State::Verdict);
            }
            (State::Verdict | State::Upload { .. }, Reply::Want { model, from }) => {
                self.same_model(model)?;
                let total = self.plan.worker_model().blob().len() as u64;
                if from >= total {
                    return Err(DealerMisbehaved::BeyondModel { from, total }.into());
                }
                self.wishes += 1;
                if self.wishes > WISHES {
                    return Err(DealerMisbehaved::OutOfTurn {
                        message: "one more wish for the model",
                        awaited: self.awaited(),
                    }
                    .into());
                }
                self.turn(State::Upload { next: from });
            }
            (State::Verdict | State::Upload { .. }, Reply::Ready { model }) => {
                self.same_model(model)?;
                self.turn(State::Answers);
            }
            (State::Answers, Reply::Answer { call, words }) => self.answer(call, words)?,
            (State::Verdict | State::Upload { .. } | State::Answers, Reply::Welcome { .. })
            | (State::Welcome | State::Answers, Reply::Want { .. } | Reply::Ready { .. })
            | (State::Welcome | State::Verdict | State::Upload { .. }, Reply::Answer { .. })
            | (
                _,
                Reply::Signs { .. }
                | Reply::Ran { .. }
                | Reply::Opened { .. }
                | Reply::Committed { .. },
            ) => {
                return Err(DealerMisbehaved::OutOfTurn {
                    message: "another message",
                    awaited: self.awaited(),
                }
                .into());
            }
        }
        Ok(())
    }

    fn turn(&mut self, to: State) {
        self.state = to;
        self.asked = None;
    }

    fn same_model(&self, got: Digest) -> Result<(), DealerMisbehaved> {
        let offered = self.plan.worker_model().digest();
        if got == offered {
            Ok(())
        } else {
            Err(DealerMisbehaved::OtherModel { offered, got })
        }
    }

    /// Takes the u of one round; a set whose last it is becomes ready.
    fn answer(&mut self, call: u64, words: Words) -> Result<(), DealError> {
        let made = self.next_call;
        let Some(Asked { number, round, .. }) = self.calls.remove(&call) else {
            return Err(match call < made {
                true => DealerMisbehaved::AnsweredAgain { call },
                false => DealerMisbehaved::UnknownCall { call, made },
            }
            .into());
        };
        let making = self
            .making
            .iter_mut()
            .find(|making| making.number == number);
        let making = making.expect("a call belongs to a set that is being made");
        let seed = &making.seed;
        let u = self.checks.open(&self.plan, round, number, seed, words)?;
        making.rounds[round] = Some(u);
        while self.making.front().is_some_and(Making::is_whole)
            && let Some(whole) = self.making.pop_front()
        {
            let Making {
                number,
                seed,
                rounds,
                ..
            } = whole;
            let u = rounds.into_iter().flatten().flatten().collect();
            let set = TicketSet::new(&self.plan, number, Origin::Dealer(self.dealer), &seed, u);
            self.ready
                .push_back(set.expect("each round has the u of its calls"));
        }
        Ok(())
    }

    /// The next round to ask for: of a set that is being made, else of a new one.
    fn next_deal(&mut self, now: Now) -> Option<Request> {
        let rounds = self.plan.rounds().len();
        if self.calls.len() >= UNDER_WAY || rounds == 0 {
            return None;
        }
        let more = |making: &Making| making.asked < rounds;
        if !self.making.iter().any(more) {
            let kept = self.making.len() + self.ready.len();
            if self.ordered == 0 || kept >= self.settings.ahead.max(1) {
                return None;
            }
            self.ordered -= 1;
            let (number, seed) = self.seeds.next_seed();
            self.making.push_back(Making {
                number,
                seed,
                asked: 0,
                rounds: (0..rounds).map(|_| None).collect(),
            });
        }
        let making = self.making.iter_mut().find(|making| more(making))?;
        let (call, round, number) = (self.next_call, making.asked, making.number);
        self.next_call += 1;
        making.asked += 1;
        let since = now;
        self.calls.insert(
            call,
            Asked {
                number,
                round,
                since,
            },
        );
        Some(Request::Deal {
            call,
            round: u32::try_from(round).unwrap_or(u32::MAX),
            ticket: number,
            seed: frame::Seed(*making.seed.expose()),
        })
    }

    /// A frame that is none: of a dealer a lie, of a stranger that has not greeted just noise.
    fn malformed(&self, why: DecodeError) -> DealError {
        match &self.state {
            State::Welcome => DealerFailed::NotADealer(why).into(),
            State::Verdict
            | State::Upload { .. }
            | State::Answers
            | State::Over(_)
            | State::Closed => DealerMisbehaved::Malformed(why).into(),
        }
    }
}

impl Machine for Dealing {
    fn limits(&self) -> FrameLimits {
        let words = match &self.state {
            State::Answers => self.plan.worker_model().program().largest_answer(),
            State::Welcome
            | State::Verdict
            | State::Upload { .. }
            | State::Over(_)
            | State::Closed => 0,
        };
        FrameLimits {
            head: MAX_HEAD,
            words,
        }
    }

    fn receive(&mut self, frame: Frame, _now: Now) {
        let result = Reply::from_frame(frame)
            .map_err(|why| self.malformed(why))
            .and_then(|reply| self.handle(reply));
        if let Err(why) = result {
            self.end(why);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let model = self.plan.worker_model();
        let request = match &mut self.state {
            State::Welcome if self.asked.is_none() => {
                self.asked = Some(now);
                Request::Hello { version: VERSION }
            }
            State::Verdict if self.asked.is_none() => {
                self.asked = Some(now);
                Request::Offer {
                    model: model.digest(),
                    program: u32::try_from(model.program_bytes()).unwrap_or(u32::MAX),
                    total: model.blob().len() as u64,
                }
            }
            State::Upload { next } => {
                let offset = *next;
                let rest = usize::try_from(offset).ok();
                let rest = rest.and_then(|from| model.blob().get(from..))?;
                let bytes = rest.get(..CHUNK).unwrap_or(rest).to_vec();
                if bytes.is_empty() {
                    return None;
                }
                *next += bytes.len() as u64;
                self.asked = Some(now);
                Request::Chunk { offset, bytes }
            }
            State::Answers => match self.next_deal(now) {
                Some(deal) => deal,
                None if self.closing && self.calls.is_empty() => {
                    self.state = State::Closed;
                    Request::Bye
                }
                None => return None,
            },
            State::Welcome | State::Verdict | State::Over(_) | State::Closed => return None,
        };
        Some(request.into_frame())
    }

    fn deadline(&self) -> Option<Now> {
        let since = match &self.state {
            State::Welcome | State::Verdict | State::Upload { .. } => self.asked,
            State::Answers => self.calls.values().map(|asked| asked.since).min(),
            State::Over(_) | State::Closed => None,
        };
        since.map(|since| since.saturating_add(self.settings.answer_within))
    }

    fn tick(&mut self, now: Now) {
        if self.deadline().is_some_and(|end| now >= end) {
            let (awaited, within) = (self.awaited(), self.settings.answer_within);
            self.end(DealerFailed::TimedOut { awaited, within }.into());
        }
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        let (awaited, within) = (self.awaited(), self.settings.answer_within);
        self.end(match why {
            LinkEnd::Closed => DealerFailed::Disconnected { awaited }.into(),
            LinkEnd::Stalled => {
                let awaited = "our frames to be read";
                DealerFailed::TimedOut { awaited, within }.into()
            }
            LinkEnd::Malformed(why) => self.malformed(why),
        });
    }

    fn finished(&self) -> bool {
        matches!(self.state, State::Over(_) | State::Closed)
    }
}
