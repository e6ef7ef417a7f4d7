//! Frames and the messages in them.
//!
//! A frame is an 8-byte header (`kind: u8, zero: u8, head: u16, words: u32`, little-endian), then
//! `head` bytes, then `words` 32-bit words. Field elements travel as words, so that a receiver
//! reads them straight into an aligned buffer. The order of words is the order of the program's
//! round: uploads on the way out, answers of the calls on the way back.
//!
//! A worker is asked for rounds of uploads that it is sent (`Call`). A dealer is asked for the
//! same rounds of pads that it draws itself from a seed (`Deal`): word i of upload number n is word
//! i of the stream (ticket, n, mask) under the seed as key, see [`larvatus_kernels::keystream`].
//! Uploads are numbered through the whole program, see [`Program::first_upload`].
//!
//! A program may say that its answers are committed to. The answer of an inference's last round then brings a root
//! (`Committed`), and leaves under it are shown later to who asks on the same connection (`Show`).
//!
//! A worker may hold a whole graph instead of a program: it is offered as such (`OfferGraph`), uploaded alike, run on an
//! input in clear (`Run`), and its trace opened later (`Open`). Input and output travel as the bytes that are committed to,
//! filled up with zeros to whole words.
//!
//! [`Program::first_upload`]: crate::program::Program::first_upload

mod parts;

use std::fmt;

use crate::commit::{LeafId, Root};
use crate::digest::Digest;
use crate::order::Summons;
use crate::receipt::{CLAIM, Claim, PublicKey, SIGNATURE};
use crate::wire::{DecodeError, Reader, Writer};
use crate::words::Words;
use parts::{hello, leaves, no_payload, places, printable, signature};
pub use parts::{pack, unpack};

/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Largest chunk of a model upload, in bytes.
pub const CHUNK: usize = 1 << 20;

/// Calls of one connection that may be unanswered at a time; a worker refuses more.
pub const MAX_CALLS: usize = 16;

/// Most bytes of an opening; who asks for more asks several times.
pub const MAX_OPENING: usize = 64 << 20;

/// Most leaves that one request opens or knows.
pub const MAX_OPENED: usize = 1 << 16;

/// First bytes of a hello: `LRVT`.
const MAGIC: u32 = u32::from_le_bytes(*b"LRVT");

/// Longest text a worker may send: its name, or why it failed.
const MAX_TEXT: usize = 256;

/// How the text of a failure begins that passes: the worker has other work just now. Whoever reads it may ask again later, and
/// believes it for nothing else.
pub const BUSY: &str = "busy: ";

/// Largest head of any message: that of a claim is the largest there is.
pub const MAX_HEAD: usize = 512;

/// A message with its payload, before it is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Which message.
    pub kind: u8,
    /// Its fields.
    pub head: Vec<u8>,
    /// Its payload.
    pub words: Words,
}

/// The largest frame a side accepts at this point of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes of the head.
    pub head: usize,
    /// Words of the payload.
    pub words: usize,
}

/// A frame's header, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which message.
    pub kind: u8,
    /// Bytes of the head.
    pub head: usize,
    /// Words of the payload.
    pub words: usize,
}

impl Header {
    /// Reads a header and holds it against the limits.
    ///
    /// # Errors
    /// [`DecodeError::TooMany`] where a length exceeds its limit, [`DecodeError::Inconsistent`]
    /// where the reserved byte is not zero.
    pub fn decode(bytes: [u8; HEADER], limits: FrameLimits) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(&bytes);
        let kind = reader.u8()?;
        let zero = reader.u8()?;
        if zero != 0 {
            return Err(DecodeError::Inconsistent {
                what: "reserved byte",
                expected: 0,
                got: u64::from(zero),
            });
        }
        let head = usize::from(reader.u16()?);
        if head > limits.head {
            return Err(DecodeError::TooMany {
                what: "head bytes",
                limit: limits.head as u64,
                got: head as u64,
            });
        }
        let words = reader.count("payload words", limits.words)?;
        Ok(Self { kind, head, words })
    }
}

impl Frame {
    /// The header of this frame.
    pub fn header(&self) -> [u8; HEADER] {
        let head = u16::try_from(self.head.len())
            .unwrap_or(u16::MAX)
            .to_le_bytes();
        let words = u32::try_from(self.words.len())
            .unwrap_or(u32::MAX)
            .to_le_bytes();
        [
            self.kind, 0, head[0], head[1], words[0], words[1], words[2], words[3],
        ]
    }

    /// Bytes of the whole frame on a link.
    pub fn size(&self) -> u64 {
        (HEADER + self.head.len()) as u64 + 4 * self.words.len() as u64
    }
}

/// What the trusted side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Opens the conversation.
    Hello {
        /// Protocol version spoken.
        version: u16,
    },
    /// Names the model that calls will be about.
    Offer {
        /// Address of the program with its weights.
        model: Digest,
        /// Bytes of the encoded program at the front of the upload.
        program: u32,
        /// Bytes of the whole upload: program, then weights.
        total: u64,
    },
    /// A part of the upload.
    Chunk {
        /// First byte of the part.
        offset: u64,
        /// The part, at most [`CHUNK`] bytes.
        bytes: Vec<u8>,
    },
    /// Asks for one round.
    Call {
        /// Number of the call, never used twice in a connection.
        call: u64,
        /// Which round of the program.
        round: u32,
        /// The round's uploads, one after the other.
        words: Words,
    },
    /// Asks a dealer for one round of pads.
    Deal {
        /// Number of the call, never used twice in a connection.
        call: u64,
        /// Which round of the program.
        round: u32,
        /// Number of the inference, the first part of every stream's name.
        ticket: u64,
        /// What the pads of this inference come from.
        seed: Seed,
    },
    /// Names the graph that runs will be about; the worker is to sign what it computes.
    OfferGraph {
        /// Address of the graph with its weights.
        model: Digest,
        /// Bytes of the encoded graph at the front of the upload.
        program: u32,
        /// Bytes of the whole upload: graph, then weights.
        total: u64,
    },
    /// Asks for a whole run of the graph.
    Run(Run),
    /// Asks for leaves of a trace.
    Open {
        /// Number of the call, never used twice in a connection.
        call: u64,
        /// Which.
        summons: Summons,
        /// The trusted side's signature of it.
        signature: [u8; SIGNATURE],
    },
    /// Asks for leaves of what was committed to in this connection.
    Show {
        /// Number of the question; counted apart from calls.
        number: u64,
        /// The commitment.
        root: Root,
        /// The leaves, in strictly increasing order.
        leaves: Vec<LeafId>,
    },
    /// Ends the conversation.
    Bye,
}

/// A whole run of a graph, as it is asked for. With the model, and the worker's key, it is an [`Order`](crate::order::Order).
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "both sides write it as a literal"
)]
pub struct Run {
    /// Number of the call, never used twice in a connection.
    pub call: u64,
    /// Digest of the plan.
    pub plan: Digest,
    /// Number of the inference.
    pub counter: u64,
    /// What commitments to input and output are salted with.
    pub salt: [u8; 32],
    /// Who asks.
    pub trusted: PublicKey,
    /// Its signature of the order.
    pub signature: [u8; SIGNATURE],
    /// The input.
    pub input: Words,
}

/// The key of all pads of one inference. Its contents are never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Seed(pub [u8; 32]);

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(..)")
    }
}

/// What a worker or a dealer says; every word of it is its own claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Answers a hello.
    Welcome {
        /// Protocol version spoken.
        version: u16,
        /// What the worker calls itself and its engine.
        name: String,
    },
    /// The worker lacks bytes of the model.
    Want {
        /// The model offered.
        model: Digest,
        /// First byte it lacks.
        from: u64,
    },
    /// The worker holds the model and is ready for calls.
    Ready {
        /// The model it holds.
        model: Digest,
    },
    /// The answers of a round's calls, one after the other: to a `Call` or to a `Deal`.
    Answer {
        /// Number of the call.
        call: u64,
        /// The claimed values.
        words: Words,
    },
    /// The answers of an inference's last round, and what commits to those of all its rounds.
    Committed {
        /// Number of the call.
        call: u64,
        /// The commitment to the answers of all rounds, this one included.
        root: Root,
        /// The claimed values.
        words: Words,
    },
    /// The worker holds the graph, is ready for runs and signs with this key.
    Signs {
        /// The graph it holds.
        model: Digest,
        /// Its key.
        key: PublicKey,
    },
    /// A run is done.
    Ran {
        /// Number of the call.
        call: u64,
        /// What the worker says that it computed, signed.
        claim: Box<Claim>,
        /// The output.
        output: Words,
    },
    /// Leaves of a trace, as an encoded opening.
    Opened {
        /// Number of the call or question.
        call: u64,
        /// An [`Opening`](crate::commit::Opening), if the worker is honest.
        bytes: Vec<u8>,
    },
    /// The worker cannot do what it was asked.
    Failed {
        /// The call it concerns, if one.
        call: Option<u64>,
        /// Why, in its words.
        message: String,
    },
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const OFFER: u8 = 2;
    pub(super) const CHUNK: u8 = 3;
    pub(super) const CALL: u8 = 4;
    pub(super) const BYE: u8 = 5;
    pub(super) const DEAL: u8 = 6;
    pub(super) const OFFER_GRAPH: u8 = 7;
    pub(super) const RUN: u8 = 8;
    pub(super) const OPEN: u8 = 9;
    pub(super) const SHOW: u8 = 10;
    pub(super) const WELCOME: u8 = 65;
    pub(super) const WANT: u8 = 66;
    pub(super) const READY: u8 = 67;
    pub(super) const ANSWER: u8 = 68;
    pub(super) const FAILED: u8 = 69;
    pub(super) const SIGNS: u8 = 70;
    pub(super) const RAN: u8 = 71;
    pub(super) const OPENED: u8 = 72;
    pub(super) const COMMITTED: u8 = 73;
}

impl Request {
    /// The frame that carries this request.
    pub fn into_frame(self) -> Frame {
        let mut head = Writer::default();
        let mut payload = Words::default();
        let kind = match self {
            Self::Hello { version } => {
                head.u32(MAGIC).u16(version);
                kind::HELLO
            }
            Self::Offer {
                model,
                program,
                total,
            } => {
                head.bytes(&model.0).u32(program).u64(total);
                kind::OFFER
            }
            Self::Chunk { offset, bytes } => {
                head.u64(offset).count(bytes.len());
                payload = pack(&bytes).into();
                kind::CHUNK
            }
            Self::Call { call, round, words } => {
                head.u64(call).u32(round);
                payload = words;
                kind::CALL
            }
            Self::Deal {
                call,
                round,
                ticket,
                seed,
            } => {
                head.u64(call).u32(round).u64(ticket).bytes(&seed.0);
                kind::DEAL
            }
            Self::OfferGraph {
                model,
                program,
                total,
            } => {
                head.bytes(&model.0).u32(program).u64(total);
                kind::OFFER_GRAPH
            }
            Self::Run(run) => {
                head.u64(run.call)
                    .bytes(&run.plan.0)
                    .u64(run.counter)
                    .bytes(&run.salt)
                    .bytes(&run.trusted.0)
                    .bytes(&run.signature);
                payload = run.input;
                kind::RUN
            }
            Self::Open {
                call,
                summons,
                signature,
            } => {
                head.u64(call)
                    .bytes(&summons.trace.0.0)
                    .count(summons.asked.len())
                    .count(summons.known.len())
                    .bytes(&signature);
                payload = places(summons.asked.iter().chain(&summons.known));
                kind::OPEN
            }
            Self::Show {
                number,
                root,
                leaves,
            } => {
                head.u64(number).bytes(&root.0.0).count(leaves.len());
                payload = places(&leaves);
                kind::SHOW
            }
            Self::Bye => kind::BYE,
        };
        Frame {
            kind,
            head: head.into_bytes(),
            words: payload,
        }
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`DecodeError`] where the frame is not exactly one request.
    pub fn from_frame(frame: Frame) -> Result<Self, DecodeError> {
        let Frame { kind, head, words } = frame;
        let mut reader = Reader::new(&head);
        let request = match kind {
            kind::HELLO => Self::Hello {
                version: hello(&mut reader)?,
            },
            kind::OFFER => Self::Offer {
                model: reader.digest()?,
                program: reader.u32()?,
                total: reader.u64()?,
            },
            kind::CHUNK => {
                let offset = reader.u64()?;
                let count = reader.count("chunk bytes", CHUNK)?;
                reader.finish()?;
                return Ok(Self::Chunk {
                    offset,
                    bytes: unpack(&words.into_vec(), count)?,
                });
            }
            kind::CALL => {
                let (call, round) = (reader.u64()?, reader.u32()?);
                reader.finish()?;
                return Ok(Self::Call { call, round, words });
            }
            kind::DEAL => Self::Deal {
                call: reader.u64()?,
                round: reader.u32()?,
                ticket: reader.u64()?,
                seed: Seed(reader.digest()?.0),
            },
            kind::OFFER_GRAPH => Self::OfferGraph {
                model: reader.digest()?,
                program: reader.u32()?,
                total: reader.u64()?,
            },
            kind::RUN => {
                let run = Run {
                    call: reader.u64()?,
                    plan: reader.digest()?,
                    counter: reader.u64()?,
                    salt: reader.digest()?.0,
                    trusted: PublicKey(reader.digest()?.0),
                    signature: signature(&mut reader)?,
                    input: words,
                };
                reader.finish()?;
                return Ok(Self::Run(run));
            }
            kind::OPEN => {
                let (call, trace) = (reader.u64()?, Root(reader.digest()?));
                let asked = reader.count("leaves to open", MAX_OPENED)?;
                let known = reader.count("known leaves", MAX_OPENED)?;
                let signature = signature(&mut reader)?;
                reader.finish()?;
                let mut asked_ids = leaves(words, asked + known)?;
                let known = asked_ids.split_off(asked);
                return Ok(Self::Open {
                    call,
                    summons: Summons {
                        trace,
                        asked: asked_ids,
                        known,
                    },
                    signature,
                });
            }
            kind::SHOW => {
                let (number, root) = (reader.u64()?, Root(reader.digest()?));
                let count = reader.count("leaves to show", MAX_OPENED)?;
                reader.finish()?;
                return Ok(Self::Show {
                    number,
                    root,
                    leaves: leaves(words, count)?,
                });
            }
            kind::BYE => Self::Bye,
            tag => {
                return Err(DecodeError::UnknownTag {
                    what: "request",
                    tag: u32::from(tag),
                });
            }
        };
        reader.finish()?;
        no_payload(&words)?;
        Ok(request)
    }
}

impl Reply {
    /// The frame that carries this reply. A text longer than 256 bytes is cut.
    pub fn into_frame(self) -> Frame {
        let mut head = Writer::default();
        let mut payload = Words::default();
        let kind = match self {
            Self::Welcome { version, name } => {
                head.u32(MAGIC).u16(version).text(printable(&name).as_str());
                kind::WELCOME
            }
            Self::Want { model, from } => {
                head.bytes(&model.0).u64(from);
                kind::WANT
            }
            Self::Ready { model } => {
                head.bytes(&model.0);
                kind::READY
            }
            Self::Answer { call, words } => {
                head.u64(call);
                payload = words;
                kind::ANSWER
            }
            Self::Committed { call, root, words } => {
                head.u64(call).bytes(&root.0.0);
                payload = words;
                kind::COMMITTED
            }
            Self::Signs { model, key } => {
                head.bytes(&model.0).bytes(&key.0);
                kind::SIGNS
            }
            Self::Ran {
                call,
                claim,
                output,
            } => {
                head.u64(call).bytes(&claim.encode());
                payload = output;
                kind::RAN
            }
            Self::Opened { call, bytes } => {
                head.u64(call).count(bytes.len());
                payload = pack(&bytes).into();
                kind::OPENED
            }
            Self::Failed { call, message } => {
                head.u8(u8::from(call.is_some())).u64(call.unwrap_or(0));
                head.text(printable(&message).as_str());
                kind::FAILED
            }
        };
        Frame {
            kind,
            head: head.into_bytes(),
            words: payload,
        }
    }

    /// Reads a reply.
    ///
    /// # Errors
    /// [`DecodeError`] where the frame is not exactly one reply.
    pub fn from_frame(frame: Frame) -> Result<Self, DecodeError> {
        let Frame { kind, head, words } = frame;
        let mut reader = Reader::new(&head);
        let reply = match kind {
            kind::WELCOME => Self::Welcome {
                version: hello(&mut reader)?,
                name: reader.text("worker's name", MAX_TEXT)?,
            },
            kind::WANT => Self::Want {
                model: reader.digest()?,
                from: reader.u64()?,
            },
            kind::READY => Self::Ready {
                model: reader.digest()?,
            },
            kind::ANSWER => {
                let call = reader.u64()?;
                reader.finish()?;
                return Ok(Self::Answer { call, words });
            }
            kind::COMMITTED => {
                let (call, root) = (reader.u64()?, Root(reader.digest()?));
                reader.finish()?;
                return Ok(Self::Committed { call, root, words });
            }
            kind::SIGNS => Self::Signs {
                model: reader.digest()?,
                key: PublicKey(reader.digest()?.0),
            },
            kind::RAN => {
                let call = reader.u64()?;
                let claim = Box::new(Claim::decode(reader.take(CLAIM)?)?);
                reader.finish()?;
                return Ok(Self::Ran {
                    call,
                    claim,
                    output: words,
                });
            }
            kind::OPENED => {
                let call = reader.u64()?;
                let count = reader.count("bytes of an opening", MAX_OPENING)?;
                reader.finish()?;
                return Ok(Self::Opened {
                    call,
                    bytes: unpack(&words.into_vec(), count)?,
                });
            }
            kind::FAILED => {
                let (some, call) = (reader.u8()?, reader.u64()?);
                let call = match (some, call) {
                    (0, 0) => None,
                    (1, call) => Some(call),
                    (tag, _) => {
                        return Err(DecodeError::UnknownTag {
                            what: "failed call",
                            tag: u32::from(tag),
                        });
                    }
                };
                Self::Failed {
                    call,
                    message: reader.text("failure", MAX_TEXT)?,
                }
            }
            tag => {
                return Err(DecodeError::UnknownTag {
                    what: "reply",
                    tag: u32::from(tag),
                });
            }
        };
        reader.finish()?;
        no_payload(&words)?;
        Ok(reply)
    }
}
