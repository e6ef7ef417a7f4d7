//! Workers that lie, and dealers.
//!
//! A [`Liar`] has an honest worker inside and alters what it says in one way, its [`Lie`]. The
//! honest worker keeps the rest of the conversation right, so that nothing but the lie can be what
//! the session objects to.

mod dealer;
mod floats;
mod tamper;
mod whole;

use std::collections::{BTreeMap, VecDeque};

use larvatus_proto::VERSION;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, FrameLimits, HEADER, MAX_HEAD, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::{Program, WorkerModel};
use larvatus_worker::Service;

use crate::pair::{Peer, honest};
pub use dealer::{DealerLie, LyingDealer};
pub use floats::{FloatLiar, FloatLie};
pub use tamper::{At, Second, Tamper};
pub use whole::{Crooked, WholeLiar, WholeLie, Wrong};

/// What a liar does.
#[derive(Clone, Debug)]
pub enum Lie {
    /// Alters the words of one answer.
    Answer {
        /// Which, counted from 0.
        nth: usize,
        /// How.
        how: Tamper,
    },
    /// Gives every answer the number of a call that is so much later.
    WrongCall {
        /// How much later.
        ahead: u64,
    },
    /// Exchanges the first two answers.
    ExchangedAnswers,
    /// Is ready before it has said its welcome.
    ReadyBeforeWelcome,
    /// Answers before it has said that it is ready, with so many words.
    AnswerBeforeReady {
        /// Words of the answer.
        words: usize,
    },
    /// Says that it is ready with another model.
    ReadyWithAnother,
    /// Wants another model than the one that it was offered.
    WantsAnother,
    /// Wants the byte behind the model's last.
    WantsBeyondEnd,
    /// Wants the model from its first byte whenever it gets some of it.
    WantsForEver,
    /// Speaks another version.
    OtherVersion,
    /// Says that it cannot.
    Refuses,
    /// Says nothing at all.
    NeverWelcomes,
    /// Takes calls and answers none.
    NeverAnswers,
    /// Ends the link instead of its first answer.
    LeavesMidAnswer,
    /// Sends its first answer so many times more.
    RepeatsAnswer {
        /// How many times.
        times: usize,
    },
    /// Sends its welcome so many times more before its first answer.
    RepeatsWelcome {
        /// How many times.
        times: usize,
    },
    /// Answers a hello in another protocol.
    OtherProtocol,
    /// Has a name with a control character.
    UnprintableName,
    /// Sends a frame that is not well formed instead of its first answer.
    Malformed(Malformed),
}

/// How a frame is not well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// A kind that no reply has.
    Kind,
    /// The kind of a request.
    Request,
    /// A head that ends too early.
    ShortHead,
    /// A head that goes on.
    LongHead,
    /// A payload behind a message that has none.
    Payload,
    /// A reserved byte that is not zero.
    Reserved,
    /// A header that announces the longest head there is.
    HugeHead,
    /// A header that announces the longest payload there is.
    HugePayload,
}

/// A digest that is no model's.
pub const NO_MODEL: Digest = Digest([0xee; 32]);

/// What a liar that refuses says.
pub const EXCUSE: &str = "no";

/// A worker that lies in one way.
pub struct Liar {
    honest: Service,
    lie: Lie,
    model: Digest,
    program: Program,
    outbox: VecDeque<Frame>,
    /// Rounds and words of calls that have come.
    requests: BTreeMap<u64, (u32, Vec<u32>)>,
    /// Rounds and honest words of answers that have gone.
    history: Vec<(u32, Vec<u32>)>,
    held: Option<(u64, Vec<u32>)>,
    gone: bool,
}

impl Liar {
    /// A liar that will be offered `model`.
    pub fn new(model: &WorkerModel, lie: Lie) -> Self {
        Self {
            honest: honest(),
            lie,
            model: model.digest(),
            program: model.program().clone(),
            outbox: VecDeque::new(),
            requests: BTreeMap::new(),
            history: Vec::new(),
            held: None,
            gone: false,
        }
    }

    fn say(&mut self, reply: Reply) {
        self.outbox.push_back(reply.into_frame());
    }

    /// Hears a request; true where the honest worker shall not.
    fn hears(&mut self, frame: &Frame) -> bool {
        let Ok(request) = Request::from_frame(frame.clone()) else {
            return false;
        };
        match (&self.lie, request) {
            (_, Request::Call { call, round, words }) => {
                self.requests.insert(call, (round, words.into_vec()));
                false
            }
            (Lie::ReadyBeforeWelcome, Request::Hello { .. }) => {
                self.say(Reply::Ready { model: NO_MODEL });
                true
            }
            (Lie::OtherVersion, Request::Hello { .. }) => {
                self.say(Reply::Welcome {
                    version: VERSION + 1,
                    name: "newer".into(),
                });
                true
            }
            (Lie::Refuses, Request::Hello { .. }) => {
                self.say(Reply::Failed {
                    call: None,
                    message: EXCUSE.into(),
                });
                true
            }
            (Lie::NeverWelcomes, Request::Hello { .. }) => true,
            (Lie::AnswerBeforeReady { words }, Request::Offer { .. }) => {
                let words = vec![0; *words];
                self.say(Reply::Answer {
                    call: 0,
                    words: words.into(),
                });
                true
            }
            (Lie::WantsAnother, Request::Offer { .. }) => {
                self.say(Reply::Want {
                    model: NO_MODEL,
                    from: 0,
                });
                true
            }
            (Lie::WantsBeyondEnd, Request::Offer { model, total, .. }) => {
                self.say(Reply::Want { model, from: total });
                true
            }
            (Lie::WantsForEver, Request::Offer { .. } | Request::Chunk { .. }) => {
                self.say(Reply::Want {
                    model: self.model,
                    from: 0,
                });
                true
            }
            _ => false,
        }
    }

    /// Says what the honest worker would, or not.
    fn says(&mut self, frame: Frame) {
        let reply = Reply::from_frame(frame).expect("the honest worker's own");
        match (self.lie.clone(), reply) {
            (_, Reply::Answer { call, words }) => self.answers(call, words.into_vec()),
            (Lie::ReadyWithAnother, Reply::Ready { .. }) => {
                self.say(Reply::Ready { model: NO_MODEL });
            }
            (Lie::OtherProtocol, Reply::Welcome { .. }) => {
                let mut frame = Reply::Welcome {
                    version: VERSION,
                    name: String::new(),
                }
                .into_frame();
                frame.head[..4].copy_from_slice(b"HTTP");
                self.outbox.push_back(frame);
            }
            (Lie::UnprintableName, Reply::Welcome { .. }) => {
                let mut frame = Reply::Welcome {
                    version: VERSION,
                    name: "x".into(),
                }
                .into_frame();
                *frame.head.last_mut().expect("a name") = 0x1b;
                self.outbox.push_back(frame);
            }
            (_, reply) => self.say(reply),
        }
    }

    fn answers(&mut self, call: u64, words: Vec<u32>) {
        let (round, request) = self.requests.remove(&call).expect("a call that came");
        let first = self.history.is_empty();
        self.history.push((round, words.clone()));
        match self.lie.clone() {
            Lie::Answer { nth, how } if nth + 1 == self.history.len() => {
                let words = how.apply(&self.program, round, &request, &self.history);
                self.say(Reply::Answer {
                    call,
                    words: words.into(),
                });
            }
            Lie::WrongCall { ahead } => self.say(Reply::Answer {
                call: call + ahead,
                words: words.into(),
            }),
            Lie::ExchangedAnswers => match self.held.take() {
                None if first => self.held = Some((call, words)),
                None => self.say(Reply::Answer {
                    call,
                    words: words.into(),
                }),
                Some((other, others)) => {
                    self.say(Reply::Answer {
                        call: other,
                        words: words.into(),
                    });
                    self.say(Reply::Answer {
                        call,
                        words: others.into(),
                    });
                }
            },
            Lie::NeverAnswers => {}
            Lie::LeavesMidAnswer => self.gone = true,
            Lie::RepeatsAnswer { times } if first => {
                let frame = Reply::Answer {
                    call,
                    words: words.into(),
                }
                .into_frame();
                self.outbox.extend(std::iter::repeat_n(frame, times + 1));
            }
            Lie::RepeatsWelcome { times } if first => {
                let welcome = Reply::Welcome {
                    version: VERSION,
                    name: "again".into(),
                };
                self.outbox
                    .extend(std::iter::repeat_n(welcome.into_frame(), times));
                self.say(Reply::Answer {
                    call,
                    words: words.into(),
                });
            }
            Lie::Malformed(how) if first => {
                let mut frame = Reply::Answer {
                    call,
                    words: words.into(),
                }
                .into_frame();
                match how {
                    Malformed::Kind => frame.kind = 99,
                    Malformed::Request => frame = Request::Bye.into_frame(),
                    Malformed::ShortHead => frame.head.truncate(7),
                    Malformed::LongHead => frame.head.extend([0; 3]),
                    Malformed::Payload => {
                        frame = Reply::Ready { model: NO_MODEL }.into_frame();
                        frame.words = vec![0; 2].into();
                    }
                    Malformed::Reserved | Malformed::HugeHead | Malformed::HugePayload => {}
                }
                self.outbox.push_back(frame);
            }
            _ => self.say(Reply::Answer {
                call,
                words: words.into(),
            }),
        }
    }
}

impl Machine for Liar {
    fn limits(&self) -> FrameLimits {
        FrameLimits {
            head: MAX_HEAD,
            words: self.honest.limits().words,
        }
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        if !self.hears(&frame) {
            self.honest.receive(frame, now);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        while self.outbox.is_empty() && !self.gone {
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
        self.gone || (self.honest.finished() && self.outbox.is_empty())
    }
}

impl Peer for Liar {
    fn header(&self, frame: &Frame) -> [u8; HEADER] {
        let mut header = frame.header();
        if self.history.is_empty() {
            return header;
        }
        match self.lie {
            Lie::Malformed(Malformed::Reserved) => header[1] = 1,
            Lie::Malformed(Malformed::HugeHead) => header[2..4].fill(0xff),
            Lie::Malformed(Malformed::HugePayload) => header[4..].fill(0xff),
            _ => {}
        }
        header
    }
}
