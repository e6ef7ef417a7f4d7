//! Pairing: two ends that know nothing of each other learn each other's key, and two people's eyes make sure of it.
//!
//! Both ends have a link that proves to each which key the other has, though not whose key that is. Then
//!
//! ```text
//! device                                worker
//!   commitment to a nonce          ──►
//!                                  ◄──  nonce
//!   nonce, opening the commitment  ──►
//!   code                                code
//! ```
//!
//! The [`Code`] has six digits, from both keys and both nonces. Each end shows it; each end is told what the *other* shows, and
//! says yes only if that is its own. An end has paired when both have said so.
//!
//! **What it promises.** Whoever sits between the two and ends both links has keys of its own, so it has two codes to make
//! equal. To the device it must say its nonce before it knows the device's, to the worker it must commit to its nonce before
//! it knows the worker's. Whichever nonce of an honest end is told last, the attacker's choices are made by then, and the code
//! that it yields is uniform: **the codes are equal with a chance of 10⁻⁶** (and at most 2⁻⁴⁴ more, from taking 64 bits modulo
//! 10⁶), if BLAKE3 behaves like a random function. Each attempt is one guess; a worker's attempt is spent as soon as its nonce
//! is told ([`Pairing::spent`]), so that nobody can try nonces until one fits.
//!
//! What remains to people is to compare codes, and to type the one that stands on the other device.
//!
//! Source: S. Vaudenay, *Secure Communications over Insecure Channels Based on Short Authenticated Strings* (CRYPTO 2005);
//! the same flow as Numeric Comparison in the Bluetooth Core Specification, volume 2, part H, 7.2.1.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::frame::{Frame, FrameLimits};
use crate::machine::{LinkEnd, Machine, Now};
use crate::wire::{DecodeError, Reader, Writer};
use crate::words::Words;

/// The version of this conversation; both ends must speak the same one.
pub const VERSION: u16 = 1;

/// First bytes of a commitment's message.
const MAGIC: u32 = u32::from_le_bytes(*b"LRVP");

/// Largest head of a message: magic, version, commitment.
const HEAD: usize = 4 + 2 + 32;

/// How many codes there are.
const CODES: u64 = 1_000_000;

/// Who an end is: the SHA-256 of its public key, as a pin has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "a hash is a hash")]
pub struct Key(pub [u8; 32]);

/// 32 fresh random bytes. Its contents are never printed, and no nonce serves twice.
pub struct Nonce([u8; 32]);

impl Nonce {
    /// Random bytes that nobody has seen.
    pub fn new(random: [u8; 32]) -> Self {
        Self(random)
    }
}

impl fmt::Debug for Nonce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Nonce(..)")
    }
}

/// Six digits that people compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Code(
    /// Below 10⁶.
    u32,
);

impl Code {
    fn of(keys: Keys, device: &[u8; 32], worker: &[u8; 32]) -> Self {
        let bytes = keys.with(&[device, worker]);
        let Digest(digest) = Digest::of_pairing_code(&bytes);
        let [a, b, c, d, e, f, g, h, ..] = digest;
        let number = u64::from_le_bytes([a, b, c, d, e, f, g, h]) % CODES;
        Self(u32::try_from(number).unwrap_or(0))
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:03} {:03}", self.0 / 1000, self.0 % 1000)
    }
}

/// What somebody typed is no code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a code has six digits")]
#[non_exhaustive]
pub struct NoCode;

impl FromStr for Code {
    type Err = NoCode;

    fn from_str(text: &str) -> Result<Self, NoCode> {
        let digits: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let all = digits.len() == 6 && digits.bytes().all(|byte| byte.is_ascii_digit());
        let number = digits.parse().ok().filter(|_| all);
        number.map(Self).ok_or(NoCode)
    }
}

/// Both keys, in an order that does not depend on who asks.
#[derive(Clone, Copy, Debug)]
struct Keys {
    device: Key,
    worker: Key,
}

impl Keys {
    fn with(self, nonces: &[&[u8; 32]]) -> Vec<u8> {
        let mut bytes = Writer::default();
        bytes.bytes(&self.device.0).bytes(&self.worker.0);
        for nonce in nonces {
            bytes.bytes(*nonce);
        }
        bytes.into_bytes()
    }

    fn commitment(self, nonce: &[u8; 32]) -> Digest {
        Digest::of_pairing_commitment(&self.with(&[nonce]))
    }
}

/// Why two ends are not paired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PairingError {
    /// Both ends have the same key.
    #[error("the other end has the key of this one")]
    OwnKey,
    /// The other end speaks another version.
    #[error("the other end speaks version {theirs} of pairing, this one {ours}; update the older")]
    Version {
        /// Ours.
        ours: u16,
        /// Theirs.
        theirs: u16,
    },
    /// A frame that is no message of this conversation.
    #[error("the other end does not pair ({0}); is it a worker with --pair?")]
    Malformed(#[source] DecodeError),
    /// A message that has no place here.
    #[error("the other end is out of turn")]
    OutOfTurn,
    /// The nonce is not the one that was committed to, or not for these two keys.
    #[error(
        "the other end did not keep its commitment: somebody between may have tried to choose the code"
    )]
    Commitment,
    /// The code that the other end shows is another one.
    #[error("the codes differ: whoever answers there is not the one whose code you read")]
    OtherCode,
    /// Nobody confirmed the code here.
    #[error("the code was not confirmed here")]
    NotConfirmed,
    /// The other end was told of another code, or its owner said no.
    #[error("the other end refuses: its code was not confirmed there")]
    Refused,
    /// Nothing within the time.
    #[error("not paired in time")]
    TimedOut,
    /// The link ended before both had confirmed.
    #[error("the other end has left")]
    Disconnected,
}

/// Both ends have confirmed their codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paired {
    with: Key,
}

impl Paired {
    /// Whose key from now on is trusted.
    pub fn with(&self) -> Key {
        self.with
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Device,
    Worker,
}

#[derive(Debug)]
enum State {
    /// A device that has committed awaits the worker's nonce.
    Nonce,
    /// A worker awaits a commitment.
    Commitment,
    /// A worker that has told its nonce awaits the opening.
    Opening {
        commitment: Digest,
    },
    /// People compare.
    Codes {
        code: Code,
        ours: bool,
        theirs: bool,
    },
    Over(Result<Paired, PairingError>),
}

/// One end of a pairing, as a state machine. A [`Nonce`] is moved in: a further attempt takes another.
#[derive(Debug)]
pub struct Pairing {
    role: Role,
    keys: Keys,
    nonce: Nonce,
    state: State,
    outbox: VecDeque<Frame>,
    until: Now,
    spent: bool,
}

impl Pairing {
    /// The end that has connected; `peer` is the key that the link has proved.
    pub fn device(own: Key, peer: Key, nonce: Nonce, until: Now) -> Self {
        let keys = Keys {
            device: own,
            worker: peer,
        };
        let mut pairing = Self::of(Role::Device, keys, nonce, until);
        if matches!(pairing.state, State::Nonce) {
            let commitment = keys.commitment(&pairing.nonce.0);
            pairing.say(Message::Commitment {
                version: VERSION,
                commitment,
            });
        }
        pairing
    }

    /// The end that has listened; `peer` is the key that the link has proved.
    pub fn worker(own: Key, peer: Key, nonce: Nonce, until: Now) -> Self {
        let keys = Keys {
            device: peer,
            worker: own,
        };
        Self::of(Role::Worker, keys, nonce, until)
    }

    fn of(role: Role, keys: Keys, nonce: Nonce, until: Now) -> Self {
        let state = match role {
            _ if keys.device == keys.worker => State::Over(Err(PairingError::OwnKey)),
            Role::Device => State::Nonce,
            Role::Worker => State::Commitment,
        };
        Self {
            role,
            keys,
            nonce,
            state,
            outbox: VecDeque::new(),
            until,
            spent: false,
        }
    }

    /// The code to show, as long as it is to be compared.
    pub fn code(&self) -> Option<Code> {
        match self.state {
            State::Codes { code, .. } => Some(code),
            State::Nonce | State::Commitment | State::Opening { .. } | State::Over(_) => None,
        }
    }

    /// Whether the right code was typed here.
    pub fn confirmed(&self) -> bool {
        match self.state {
            State::Codes { ours, .. } => ours,
            State::Over(Ok(_)) => true,
            State::Nonce | State::Commitment | State::Opening { .. } | State::Over(Err(_)) => false,
        }
    }

    /// Whether this end's nonce was told, so that another attempt would be another guess.
    pub fn spent(&self) -> bool {
        self.spent
    }

    /// Takes the code that was read from the *other* end.
    pub fn confirm(&mut self, seen: Code) {
        let State::Codes { code, ours, .. } = &mut self.state else {
            return;
        };
        if *ours {
            return;
        }
        if seen == *code {
            *ours = true;
            self.say(Message::Verdict { yes: true });
            self.settle();
        } else {
            self.refuse(PairingError::OtherCode);
        }
    }

    /// Says no.
    pub fn refuse(&mut self, why: PairingError) {
        if matches!(self.state, State::Over(_)) {
            return;
        }
        self.outbox.clear();
        self.say(Message::Verdict { yes: false });
        self.state = State::Over(Err(why));
    }

    /// How it ended, once it has. A peer to which our yes did not get through is not paired with us, though we are with it.
    pub fn outcome(&self) -> Option<Result<Paired, PairingError>> {
        match &self.state {
            State::Over(outcome) => Some(outcome.clone()),
            State::Nonce | State::Commitment | State::Opening { .. } | State::Codes { .. } => None,
        }
    }

    fn say(&mut self, message: Message) {
        self.outbox.push_back(message.into_frame(self.role));
    }

    fn settle(&mut self) {
        if let State::Codes {
            ours: true,
            theirs: true,
            ..
        } = self.state
        {
            let with = match self.role {
                Role::Device => self.keys.worker,
                Role::Worker => self.keys.device,
            };
            self.state = State::Over(Ok(Paired { with }));
        }
    }

    fn hear(&mut self, message: Message) -> Result<(), PairingError> {
        match (&mut self.state, message) {
            (State::Over(_), _) => {}
            (_, Message::Verdict { yes: false }) => return Err(PairingError::Refused),
            (
                State::Commitment,
                Message::Commitment {
                    version,
                    commitment,
                },
            ) => {
                if version != VERSION {
                    return Err(PairingError::Version {
                        ours: VERSION,
                        theirs: version,
                    });
                }
                self.spent = true;
                let nonce = self.nonce.0;
                self.say(Message::Nonce(nonce));
                self.state = State::Opening { commitment };
            }
            (State::Nonce, Message::Nonce(theirs)) => {
                self.spent = true;
                let ours = self.nonce.0;
                self.say(Message::Opening(ours));
                self.compare(Code::of(self.keys, &ours, &theirs));
            }
            (State::Opening { commitment }, Message::Opening(theirs)) => {
                if self.keys.commitment(&theirs) != *commitment {
                    return Err(PairingError::Commitment);
                }
                let code = Code::of(self.keys, &theirs, &self.nonce.0);
                self.compare(code);
            }
            (State::Codes { theirs, .. }, Message::Verdict { yes: true }) if !*theirs => {
                *theirs = true;
                self.settle();
            }
            (
                State::Nonce | State::Commitment | State::Opening { .. } | State::Codes { .. },
                Message::Commitment { .. }
                | Message::Nonce(_)
                | Message::Opening(_)
                | Message::Verdict { yes: true },
            ) => return Err(PairingError::OutOfTurn),
        }
        Ok(())
    }

    fn compare(&mut self, code: Code) {
        self.state = State::Codes {
            code,
            ours: false,
            theirs: false,
        };
    }
}

impl Machine for Pairing {
    fn limits(&self) -> FrameLimits {
        FrameLimits {
            head: HEAD,
            words: 0,
        }
    }

    fn receive(&mut self, frame: Frame, _now: Now) {
        let heard = Message::from_frame(frame, self.role);
        let heard = heard.map_err(PairingError::Malformed);
        if let Err(why) = heard.and_then(|message| self.hear(message)) {
            self.refuse(why);
        }
    }

    fn transmit(&mut self, _now: Now) -> Option<Frame> {
        self.outbox.pop_front()
    }

    fn deadline(&self) -> Option<Now> {
        match self.state {
            State::Over(_) => None,
            State::Nonce | State::Commitment | State::Opening { .. } | State::Codes { .. } => {
                Some(self.until)
            }
        }
    }

    fn tick(&mut self, now: Now) {
        if now >= self.until {
            self.refuse(PairingError::TimedOut);
        }
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        self.outbox.clear();
        if !matches!(self.state, State::Over(_)) {
            self.state = State::Over(Err(match why {
                LinkEnd::Closed => PairingError::Disconnected,
                LinkEnd::Stalled => PairingError::TimedOut,
                LinkEnd::Malformed(why) => PairingError::Malformed(why),
            }));
        }
    }

    fn finished(&self) -> bool {
        matches!(self.state, State::Over(_)) && self.outbox.is_empty()
    }
}

/// What the two say to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Message {
    /// The device's first.
    Commitment { version: u16, commitment: Digest },
    /// The worker's.
    Nonce([u8; 32]),
    /// The device's nonce.
    Opening([u8; 32]),
    /// Whether the codes agree.
    Verdict { yes: bool },
}

mod kind {
    pub(super) const COMMITMENT: u8 = 32;
    pub(super) const OPENING: u8 = 33;
    pub(super) const DEVICE_VERDICT: u8 = 34;
    pub(super) const NONCE: u8 = 96;
    pub(super) const WORKER_VERDICT: u8 = 97;
}

impl Message {
    /// The frame in which an end of this role says it.
    fn into_frame(self, says: Role) -> Frame {
        let mut head = Writer::default();
        let kind = match self {
            Self::Commitment {
                version,
                commitment,
            } => {
                head.u32(MAGIC).u16(version).bytes(&commitment.0);
                kind::COMMITMENT
            }
            Self::Nonce(nonce) => {
                head.bytes(&nonce);
                kind::NONCE
            }
            Self::Opening(nonce) => {
                head.bytes(&nonce);
                kind::OPENING
            }
            Self::Verdict { yes } => {
                head.u8(u8::from(yes));
                match says {
                    Role::Device => kind::DEVICE_VERDICT,
                    Role::Worker => kind::WORKER_VERDICT,
                }
            }
        };
        Frame {
            kind,
            head: head.into_bytes(),
            words: Words::default(),
        }
    }

    /// Reads what the other end says to an end of this role.
    fn from_frame(frame: Frame, hears: Role) -> Result<Self, DecodeError> {
        let Frame { kind, head, words } = frame;
        let mut reader = Reader::new(&head);
        let message = match (hears, kind) {
            (Role::Worker, kind::COMMITMENT) => {
                let magic = reader.u32()?;
                if magic != MAGIC {
                    return Err(DecodeError::Magic { got: magic });
                }
                Self::Commitment {
                    version: reader.u16()?,
                    commitment: reader.digest()?,
                }
            }
            (Role::Device, kind::NONCE) => Self::Nonce(reader.digest()?.0),
            (Role::Worker, kind::OPENING) => Self::Opening(reader.digest()?.0),
            (Role::Worker, kind::DEVICE_VERDICT) | (Role::Device, kind::WORKER_VERDICT) => {
                Self::Verdict {
                    yes: match reader.u8()? {
                        0 => false,
                        1 => true,
                        tag => {
                            return Err(DecodeError::UnknownTag {
                                what: "verdict",
                                tag: u32::from(tag),
                            });
                        }
                    },
                }
            }
            (Role::Device | Role::Worker, tag) => {
                return Err(DecodeError::UnknownTag {
                    what: "message of a pairing",
                    tag: u32::from(tag),
                });
            }
        };
        reader.finish()?;
        match words.len() {
            0 => Ok(message),
            extra => Err(DecodeError::Trailing { extra: 4 * extra }),
        }
    }
}

#[cfg(test)]
mod tests;
