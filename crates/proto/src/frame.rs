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
//! [`Program::first_upload`]: crate::program::Program::first_upload

use std::fmt;

use crate::digest::Digest;
use crate::wire::{DecodeError, Reader, Writer};
use crate::words::Words;

/// Bytes of a frame's header.
pub const HEADER: usize = 8;

/// Largest chunk of a model upload, in bytes.
pub const CHUNK: usize = 1 << 20;

/// Calls of one connection that may be unanswered at a time; a worker refuses more.
pub const MAX_CALLS: usize = 16;

/// First bytes of a hello: `LRVT`.
const MAGIC: u32 = u32::from_le_bytes(*b"LRVT");

/// Longest text a worker may send: its name, or why it failed.
const MAX_TEXT: usize = 256;

/// How the text of a failure begins that passes: the worker has other work just now. Whoever reads it may ask again later, and
/// believes it for nothing else.
pub const BUSY: &str = "busy: ";

/// Largest head of any message.
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
    /// Ends the conversation.
    Bye,
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
    pub(super) const WELCOME: u8 = 65;
    pub(super) const WANT: u8 = 66;
    pub(super) const READY: u8 = 67;
    pub(super) const ANSWER: u8 = 68;
    pub(super) const FAILED: u8 = 69;
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

fn hello(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    match reader.u32()? {
        MAGIC => reader.u16(),
        got => Err(DecodeError::Magic { got }),
    }
}

fn no_payload(words: &Words) -> Result<(), DecodeError> {
    match words.len() {
        0 => Ok(()),
        count => Err(DecodeError::Trailing { extra: 4 * count }),
    }
}

/// Bytes as words, the last one padded with zeros.
fn pack(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word.iter_mut()
                .zip(chunk)
                .for_each(|(to, from)| *to = *from);
            u32::from_le_bytes(word)
        })
        .collect()
}

fn unpack(words: &[u32], count: usize) -> Result<Vec<u8>, DecodeError> {
    if words.len() != count.div_ceil(4) {
        return Err(DecodeError::Inconsistent {
            what: "chunk words",
            expected: count.div_ceil(4) as u64,
            got: words.len() as u64,
        });
    }
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    if let Some(padding) = bytes
        .get(count..)
        .and_then(|rest| rest.iter().find(|&&b| b != 0))
    {
        return Err(DecodeError::Inconsistent {
            what: "chunk padding",
            expected: 0,
            got: u64::from(*padding),
        });
    }
    bytes.truncate(count);
    Ok(bytes)
}

fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > MAX_TEXT {
            break;
        }
        out.push(c);
    }
    out
}
