//! Workers in floats that commit to their answers, and lie about these or about what they committed to.

use std::num::NonZeroUsize;
use std::time::Duration;

use larvatus_proto::commit::{LeafId, Root};
use larvatus_proto::frame::{Frame, FrameLimits, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::program::WorkerModel;
use larvatus_worker::{Backend, BackendError, Cpu, Limits, Loaded, Service, Store};

use super::{EXCUSE, NO_MODEL};

/// What is wrong with what a worker says of its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FloatLie {
    /// Computes a float of one round's answer wrong, and commits to that.
    Computes {
        /// Which round.
        round: u32,
        /// Which float of its answer.
        float: usize,
    },
    /// Sends another float than it commits to.
    SendsAnother {
        /// Which round.
        round: u32,
        /// Which float of its answer.
        float: usize,
    },
    /// Gives a root that nothing leads to, and opens the one that it should have given.
    OtherRoot,
    /// Gives the last answer without a root.
    NoRoot,
    /// Gives a root with the first answer.
    EarlyRoot,
    /// Opens its leaves with a byte changed.
    OpensOtherBytes,
    /// Opens the first leaf of a tensor, whatever is asked for.
    OpensAnother {
        /// Which tensor.
        tensor: u32,
    },
    /// Opens no leaf.
    OpensFewer,
    /// Opens with a path whose last digest is made up.
    ForgesPath,
    /// Opens with a path that ends early.
    CutsPath,
    /// Says that it does not open.
    RefusesToOpen,
    /// Never opens.
    NeverOpens,
}

/// A worker in floats that lies in one way; the rest of what it says is what an honest one would.
pub struct FloatLiar {
    inner: Service,
    lie: FloatLie,
    /// Answers that have gone.
    answers: u32,
    /// The root that it should have given.
    root: Root,
}

impl FloatLiar {
    /// One that lies in this way.
    ///
    /// # Panics
    /// Where the system gives no thread.
    pub fn new(lie: FloatLie) -> Self {
        let cpu = Cpu::new(NonZeroUsize::MIN).expect("one thread");
        let store = Store::new(Box::new(Wrong { cpu, lie }), Limits::default());
        Self {
            inner: Service::new(store, Duration::ZERO),
            lie,
            answers: 0,
            root: NO_ROOT,
        }
    }

    /// What it says instead, if it says something.
    fn says(&mut self, reply: Reply) -> Option<Reply> {
        match reply {
            Reply::Answer { call, mut words } => {
                self.alter(words.own());
                Some(match self.lie {
                    FloatLie::EarlyRoot => Reply::Committed {
                        call,
                        root: NO_ROOT,
                        words,
                    },
                    _ => Reply::Answer { call, words },
                })
            }
            Reply::Committed {
                call,
                root,
                mut words,
            } => {
                self.alter(words.own());
                // The next inference begins.
                self.answers = 0;
                let root = match self.lie {
                    FloatLie::OtherRoot => {
                        self.root = root;
                        NO_ROOT
                    }
                    _ => root,
                };
                Some(match self.lie {
                    FloatLie::NoRoot => Reply::Answer { call, words },
                    _ => Reply::Committed { call, root, words },
                })
            }
            Reply::Opened { call, bytes } => self.opens(call, bytes),
            other => Some(other),
        }
    }

    fn alter(&mut self, words: &mut [u32]) {
        if let FloatLie::SendsAnother { round, float } = self.lie
            && round == self.answers
        {
            add_one(&mut words[float]);
        }
        self.answers += 1;
    }

    /// An opening is the number of its leaves, two words for the place of each, their bytes, and the path.
    fn opens(&self, call: u64, mut bytes: Vec<u8>) -> Option<Reply> {
        let (count, _) = bytes.split_first_chunk::<4>().expect("a count");
        let count = u32::from_le_bytes(*count) as usize;
        let body = 4 + 8 * count;
        match self.lie {
            FloatLie::OpensOtherBytes => bytes[body] ^= 1,
            FloatLie::OpensFewer => {
                return Some(Reply::Opened {
                    call,
                    bytes: vec![0; 4],
                });
            }
            FloatLie::ForgesPath => *bytes.last_mut().expect("a path") ^= 1,
            FloatLie::CutsPath => bytes.truncate(bytes.len() - 32),
            FloatLie::RefusesToOpen => {
                return Some(Reply::Failed {
                    call: Some(call),
                    message: EXCUSE.to_owned(),
                });
            }
            FloatLie::NeverOpens => return None,
            FloatLie::Computes { .. }
            | FloatLie::SendsAnother { .. }
            | FloatLie::OtherRoot
            | FloatLie::NoRoot
            | FloatLie::EarlyRoot
            | FloatLie::OpensAnother { .. } => {}
        }
        Some(Reply::Opened { call, bytes })
    }
}

/// A root that nothing leads to.
const NO_ROOT: Root = Root(NO_MODEL);

/// Adds one to the float with these bits.
fn add_one(word: &mut u32) {
    *word = (f32::from_bits(*word) + 1.0).to_bits();
}

impl Machine for FloatLiar {
    fn limits(&self) -> FrameLimits {
        self.inner.limits()
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        let request = Request::from_frame(frame.clone());
        let frame = match (self.lie, request) {
            (FloatLie::OpensAnother { tensor }, Ok(Request::Show { number, root, .. })) => {
                let leaves = vec![LeafId { tensor, leaf: 0 }];
                Request::Show {
                    number,
                    root,
                    leaves,
                }
                .into_frame()
            }
            (FloatLie::OtherRoot, Ok(Request::Show { number, leaves, .. })) => {
                let root = self.root;
                Request::Show {
                    number,
                    root,
                    leaves,
                }
                .into_frame()
            }
            (_, _) => frame,
        };
        self.inner.receive(frame, now);
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        loop {
            let frame = self.inner.transmit(now)?;
            let reply = Reply::from_frame(frame).expect("the honest worker's own");
            if let Some(reply) = self.says(reply) {
                return Some(reply.into_frame());
            }
        }
    }

    fn deadline(&self) -> Option<Now> {
        self.inner.deadline()
    }

    fn tick(&mut self, now: Now) {
        self.inner.tick(now);
    }

    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.inner.disconnected(why, now);
    }

    fn finished(&self) -> bool {
        self.inner.finished()
    }
}

struct Wrong {
    cpu: Cpu,
    lie: FloatLie,
}

impl Backend for Wrong {
    fn name(&self) -> String {
        self.cpu.name()
    }

    fn load(&self, model: &WorkerModel) -> Result<Box<dyn Loaded>, BackendError> {
        let inner = self.cpu.load(model)?;
        let lie = self.lie;
        Ok(Box::new(WrongModel { inner, lie }))
    }
}

struct WrongModel {
    inner: Box<dyn Loaded>,
    lie: FloatLie,
}

impl Loaded for WrongModel {
    fn call(&self, round: u32, words: &[u32]) -> Result<Vec<u32>, BackendError> {
        let mut answer = self.inner.call(round, words)?;
        if let FloatLie::Computes { round: at, float } = self.lie
            && at == round
        {
            add_one(&mut answer[float]);
        }
        Ok(answer)
    }

    fn bytes(&self) -> u64 {
        self.inner.bytes()
    }
}
