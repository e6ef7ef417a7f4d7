//! Dealers that lie.

use std::collections::{BTreeMap, VecDeque};

use larvatus_kernels::field::P;
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, FrameLimits, MAX_HEAD, Reply, Request, Seed};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::{Program, WorkerModel};
use larvatus_proto::words::Words;
use larvatus_worker::Service;

use super::{NO_MODEL, Tamper};
use crate::pair::honest_dealer;

/// What a lying dealer does.
#[derive(Clone, Debug)]
pub enum DealerLie {
    /// None; it is honest.
    None,
    /// Alters the words of one answer.
    Answer {
        /// Which, counted from 0.
        nth: usize,
        /// How.
        how: Tamper,
    },
    /// Adds `first pad word + guess` to the first word of its first answer: together with a worker
    /// that adds the first word it is sent to the same word, the errors cancel if the guess is
    /// right.
    Guess(u32),
    /// Deals for the ticket before.
    OtherTicket,
    /// Deals from another seed.
    OtherSeed,
    /// Deals another round's pads for the first.
    OtherRound,
    /// Gives every answer the number of a call that is so much later.
    WrongCall {
        /// How much later.
        ahead: u64,
    },
    /// Exchanges the numbers of the first two answers.
    ExchangedNumbers,
    /// Sends the first two answers in the other order, each under its number.
    Reordered,
    /// Sends its first answer twice.
    Again,
    /// Takes deals and answers none.
    NeverAnswers,
    /// Is ready with another model.
    ReadyWithAnother,
    /// Wants the byte behind the model's last.
    WantsBeyondEnd,
    /// Wants the model from its first byte whenever it gets some of it.
    WantsForEver,
    /// Says its welcome twice.
    WelcomeTwice,
    /// Sends a frame of this kind, with nothing in it, instead of its first answer.
    Kind(u8),
}

/// A dealer that lies in one way.
pub struct LyingDealer {
    honest: Service,
    lie: DealerLie,
    model: Digest,
    program: Program,
    outbox: VecDeque<Frame>,
    /// Rounds, tickets and seeds of deals that have come.
    deals: BTreeMap<u64, (u32, u64, Seed)>,
    /// Every deal that has come.
    heard: Vec<Request>,
    history: Vec<(u32, Vec<u32>)>,
    held: Option<(u64, Vec<u32>)>,
}

impl LyingDealer {
    /// A liar that will be offered `model`.
    pub fn new(model: &WorkerModel, lie: DealerLie) -> Self {
        Self {
            honest: honest_dealer(),
            lie,
            model: model.digest(),
            program: model.program().clone(),
            outbox: VecDeque::new(),
            deals: BTreeMap::new(),
            heard: Vec::new(),
            history: Vec::new(),
            held: None,
        }
    }

    /// The deals that it was asked for, in order.
    pub fn deals(&self) -> &[Request] {
        &self.heard
    }

    fn say(&mut self, reply: Reply) {
        self.outbox.push_back(reply.into_frame());
    }

    /// What the honest dealer hears; `None` where it hears nothing.
    fn hears(&mut self, frame: Frame) -> Option<Frame> {
        let Ok(request) = Request::from_frame(frame.clone()) else {
            return Some(frame);
        };
        match (&self.lie, request) {
            (
                lie,
                Request::Deal {
                    call,
                    mut round,
                    mut ticket,
                    mut seed,
                },
            ) => {
                let deal = |round, ticket, seed: &Seed| Request::Deal {
                    call,
                    round,
                    ticket,
                    seed: seed.clone(),
                };
                self.heard.push(deal(round, ticket, &seed));
                self.deals.insert(call, (round, ticket, seed.clone()));
                match lie {
                    DealerLie::OtherTicket => ticket = ticket.wrapping_sub(1),
                    DealerLie::OtherSeed => seed.0[31] ^= 1,
                    DealerLie::OtherRound if round == 0 => round = 1,
                    _ => {}
                }
                Some(deal(round, ticket, &seed).into_frame())
            }
            (DealerLie::WantsBeyondEnd, Request::Offer { model, total, .. }) => {
                let from = total;
                self.say(Reply::Want { model, from });
                None
            }
            (DealerLie::WantsForEver, Request::Offer { model, .. }) => {
                self.say(Reply::Want { model, from: 0 });
                None
            }
            (DealerLie::WantsForEver, Request::Chunk { .. }) => {
                let model = self.model;
                self.say(Reply::Want { model, from: 0 });
                None
            }
            _ => Some(frame),
        }
    }

    fn says(&mut self, frame: Frame) {
        match (
            &self.lie,
            Reply::from_frame(frame).expect("the honest one's own"),
        ) {
            (_, Reply::Answer { call, words }) => self.answers(call, words.into_vec()),
            (DealerLie::ReadyWithAnother, Reply::Ready { .. }) => {
                self.say(Reply::Ready { model: NO_MODEL });
            }
            (DealerLie::WelcomeTwice, welcome @ Reply::Welcome { .. }) => {
                self.say(welcome.clone());
                self.say(welcome);
            }
            (_, reply) => self.say(reply),
        }
    }

    fn answers(&mut self, call: u64, mut words: Vec<u32>) {
        let (round, ticket, seed) = self.deals.remove(&call).expect("a deal that came");
        let first = self.history.is_empty();
        self.history.push((round, words.clone()));
        match self.lie.clone() {
            DealerLie::Answer { nth, how } if nth + 1 == self.history.len() => {
                let pads = pads(&self.program, round, ticket, &seed);
                words = how.apply(&self.program, round, &pads, &self.history);
            }
            DealerLie::Guess(guess) if first => {
                let pad = pads(&self.program, round, ticket, &seed)[0];
                let sum = u64::from(words[0]) + u64::from(pad) + u64::from(guess);
                words[0] = (sum % u64::from(P)) as u32;
            }
            DealerLie::WrongCall { ahead } => {
                return self.say(Reply::Answer {
                    call: call + ahead,
                    words: words.into(),
                });
            }
            DealerLie::ExchangedNumbers | DealerLie::Reordered if first => {
                self.held = Some((call, words));
                return;
            }
            DealerLie::Again if first => {
                let words = words.clone().into();
                self.say(Reply::Answer { call, words });
            }
            DealerLie::NeverAnswers => return,
            DealerLie::Kind(kind) if first => {
                return self.outbox.push_back(Frame {
                    kind,
                    head: Vec::new(),
                    words: Words::default(),
                });
            }
            _ => {}
        }
        let words = words.into();
        match self.held.take() {
            None => self.say(Reply::Answer { call, words }),
            Some((other, held)) if matches!(self.lie, DealerLie::Reordered) => {
                self.say(Reply::Answer { call, words });
                self.say(Reply::Answer {
                    call: other,
                    words: held.into(),
                });
            }
            Some((other, held)) => {
                self.say(Reply::Answer { call: other, words });
                self.say(Reply::Answer {
                    call,
                    words: held.into(),
                });
            }
        }
    }
}

/// The pads of a round, one upload after the other.
fn pads(program: &Program, round: u32, ticket: u64, seed: &Seed) -> Vec<u32> {
    let key = Key::new(seed.0);
    let first = program.first_upload(round as usize).expect("a round");
    let uploads = program.rounds()[round as usize].uploads.iter();
    let mut all = Vec::new();
    for (words, number) in uploads.zip(first..) {
        let mut pad = vec![0; *words];
        let number = u16::try_from(number).expect("few uploads");
        key.stream(ticket, number, Purpose::Mask).fill(0, &mut pad);
        all.extend(pad);
    }
    all
}

impl Machine for LyingDealer {
    fn limits(&self) -> FrameLimits {
        FrameLimits {
            head: MAX_HEAD,
            words: self.honest.limits().words,
        }
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        if let Some(frame) = self.hears(frame) {
            self.honest.receive(frame, now);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        while self.outbox.is_empty() {
            let frame = self.honest.transmit(now)?;
            self.says(frame);
        }
        self.outbox.pop_front()
    }

    fn deadline(&self) -> Option<Now> {
        self.honest.deadline()
    }

    fn tick(&mut self, now: Now) {
        self.honest.tick(now);
    }

    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.honest.disconnected(why, now);
    }

    fn finished(&self) -> bool {
        self.honest.finished() && self.outbox.is_empty()
    }
}
