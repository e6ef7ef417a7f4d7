//! Receipts: what was computed, with what, and how it was judged, signed so that anybody can hold it against two keys.
//!
//! A [`Statement`] names the model, the plan, the inference, salted commitments to its input and its output, the root of
//! the worker's trace and the two keys. The worker signs it with its answer, before it knows what will be looked at. The trusted
//! side adds a [`Verdict`] and signs the whole, the worker's signature included. So a receipt whose verdict is
//! [`Verdict::Rejected`] still holds the worker to what it claimed; that the claim was wrong is not shown by the receipt but by
//! an opening of its trace root that does not recompute (see [`crate::commit`]). A trusted side that says
//! `Rejected` without one has shown nothing.
//!
//! Verifying needs the two public keys and no secret. Commitments are salted: a receipt tells nothing about an input
//! that somebody could guess, until its salt is told.
//!
//! Source: Ed25519 is RFC 8032; verified strictly, so that keys of small order and second encodings are refused.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use crate::commit::Root;
use crate::digest::Digest;
use crate::wire::{DecodeError, Reader, Writer};

/// Bytes of an encoded receipt.
pub const RECEIPT: usize = 4 + CLAIM + 1 + SIGNATURE;

/// Bytes of an encoded claim: a statement and the worker's signature.
pub const CLAIM: usize = STATEMENT + SIGNATURE;

const STATEMENT: usize = 5 * 32 + 8 + 2 * 32;
/// Bytes of a signature.
pub const SIGNATURE: usize = 64;
const _: () = assert!(RECEIPT <= 1024);

/// The first bytes of a receipt: its kind and version.
const MAGIC: [u8; 4] = *b"LRR1";

/// Who signs; nobody's signature can stand for another's.
const WORKER: &[u8] = b"larvatus 2026 receipt v1, worker: ";
const TRUSTED: &[u8] = b"larvatus 2026 receipt v1, trusted side: ";

/// Why a receipt does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiptError {
    /// It names another key than the one it is held against, or was to be signed with.
    #[error("the {party} has key {got}, not {expected}")]
    Key {
        /// Whose key.
        party: Party,
        /// The key it should be.
        expected: PublicKey,
        /// The key it is.
        got: PublicKey,
    },
    /// A signature is not that key's for these bytes.
    #[error("the signature of the {party} does not hold")]
    Signature {
        /// Whose signature.
        party: Party,
    },
    /// A claim for another statement than was expected.
    #[error("the {field} of the claim is not the expected one")]
    Statement {
        /// The first field that differs.
        field: &'static str,
    },
    /// The verdict is final.
    #[error("the verdict is {verdict}, which is final")]
    Final {
        /// It.
        verdict: Verdict,
    },
    /// Bytes or salt are not those that were committed to.
    #[error("the {what} is not the one committed to")]
    Content {
        /// Input or output.
        what: &'static str,
    },
}

/// One of the two that sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The trusted side.
    Trusted,
    /// The worker.
    Worker,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Trusted => "trusted side",
            Self::Worker => "worker",
        })
    }
}

/// An Ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(pub [u8; 32]);

impl PublicKey {
    pub(crate) fn verify(
        &self,
        party: Party,
        message: &[u8],
        signature: &[u8; SIGNATURE],
    ) -> Result<(), ReceiptError> {
        let refused = ReceiptError::Signature { party };
        let Ok(key) = VerifyingKey::from_bytes(&self.0) else {
            return Err(refused);
        };
        key.verify_strict(message, &Signature::from_bytes(signature))
            .map_err(|_| refused)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Digest(self.0), f)
    }
}

impl FromStr for PublicKey {
    type Err = NotAKey;

    fn from_str(text: &str) -> Result<Self, NotAKey> {
        let digits = text.as_bytes().as_chunks::<2>();
        let mut key = [0; 32];
        if text.len() != 64 {
            return Err(NotAKey);
        }
        for (byte, pair) in key.iter_mut().zip(digits.0) {
            let [high, low] = pair.map(|digit| char::from(digit).to_digit(16));
            let value = high.zip(low).map(|(high, low)| 16 * high + low);
            *byte = value.and_then(|v| u8::try_from(v).ok()).ok_or(NotAKey)?;
        }
        Ok(Self(key))
    }
}

/// A text that is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a receipt key is 64 hexadecimal digits")]
pub struct NotAKey;

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A secret key that signs receipts. Not `Clone`, not printable; overwritten when dropped.
pub struct Signer(SigningKey);

impl Signer {
    /// The key of 32 uniform bytes.
    pub fn new(seed: [u8; 32]) -> Self {
        Self(SigningKey::from_bytes(&seed))
    }

    /// Its public key.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; SIGNATURE] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.public())
    }
}

/// How an inference was judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The output was released; what the plan looks at later has not been looked at.
    Pending,
    /// All that the plan looks at was found right.
    Settled,
    /// Something was found wrong.
    Rejected,
}

impl Verdict {
    fn tag(self) -> u8 {
        match self {
            Self::Pending => 1,
            Self::Settled => 2,
            Self::Rejected => 3,
        }
    }

    fn from_tag(tag: u8) -> Result<Self, DecodeError> {
        match tag {
            1 => Ok(Self::Pending),
            2 => Ok(Self::Settled),
            3 => Ok(Self::Rejected),
            tag => Err(DecodeError::UnknownTag {
                what: "verdict",
                tag: tag.into(),
            }),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pending => "pending",
            Self::Settled => "settled",
            Self::Rejected => "rejected",
        })
    }
}

/// A commitment to an input or an output under a salt of 32 uniform bytes, which hides it until the salt is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Salted(pub Digest);

impl Salted {
    /// Commits to an input.
    pub fn input(salt: &[u8; 32], bytes: &[u8]) -> Self {
        Self::derive("larvatus 2026 receipt input v1", salt, bytes)
    }

    /// Commits to an output.
    pub fn output(salt: &[u8; 32], bytes: &[u8]) -> Self {
        Self::derive("larvatus 2026 receipt output v1", salt, bytes)
    }

    fn derive(domain: &str, salt: &[u8; 32], bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(domain);
        hasher.update(salt).update(bytes);
        Self(Digest(*hasher.finalize().as_bytes()))
    }
}

/// What a receipt is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// Digest of the model; salted where the worker is not to recognise it.
    pub model: Digest,
    /// Digest of the plan.
    pub plan: Digest,
    /// Number of the inference; the trusted side gives none twice.
    pub counter: u64,
    /// The input.
    pub input: Salted,
    /// The output.
    pub output: Salted,
    /// What the worker's trace is committed to with.
    pub trace: Root,
    /// The key of the trusted side.
    pub trusted: PublicKey,
    /// The worker's key.
    pub worker: PublicKey,
}

impl Statement {
    /// The worker's claim that this is what it computed.
    ///
    /// # Errors
    /// [`ReceiptError::Key`] where the statement names another worker.
    pub fn claim(self, worker: &Signer) -> Result<Claim, ReceiptError> {
        same_key(Party::Worker, worker.public(), self.worker)?;
        let signature = worker.sign(&self.message());
        Ok(Claim {
            statement: self,
            signature,
        })
    }

    fn encode(&self, out: &mut Writer) {
        out.bytes(&self.model.0)
            .bytes(&self.plan.0)
            .u64(self.counter)
            .bytes(&self.input.0.0)
            .bytes(&self.output.0.0)
            .bytes(&self.trace.0.0)
            .bytes(&self.trusted.0)
            .bytes(&self.worker.0);
    }

    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            model: reader.digest()?,
            plan: reader.digest()?,
            counter: reader.u64()?,
            input: Salted(reader.digest()?),
            output: Salted(reader.digest()?),
            trace: Root(reader.digest()?),
            trusted: PublicKey(reader.digest()?.0),
            worker: PublicKey(reader.digest()?.0),
        })
    }

    /// What the worker signs.
    fn message(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(WORKER);
        self.encode(&mut out);
        out.into_bytes()
    }

    /// The first field in which another statement differs.
    fn differs(&self, other: &Self) -> Option<&'static str> {
        let Self {
            model,
            plan,
            counter,
            input,
            output,
            trace,
            trusted,
            worker,
        } = self;
        [
            ("model", *model == other.model),
            ("plan", *plan == other.plan),
            ("counter", *counter == other.counter),
            ("input", *input == other.input),
            ("output", *output == other.output),
            ("trace", *trace == other.trace),
            ("trusted side's key", *trusted == other.trusted),
            ("worker's key", *worker == other.worker),
        ]
        .into_iter()
        .find_map(|(field, same)| (!same).then_some(field))
    }
}

/// A statement with the worker's signature.
#[derive(Clone, PartialEq, Eq)]
pub struct Claim {
    statement: Statement,
    signature: [u8; SIGNATURE],
}

impl Claim {
    /// Makes a receipt of a claim for the statement that the trusted side expects.
    ///
    /// # Errors
    /// [`ReceiptError::Statement`] for another statement, [`ReceiptError::Key`] where it names another trusted side,
    /// [`ReceiptError::Signature`] where the worker's does not hold.
    pub fn receipt(
        self,
        expected: &Statement,
        verdict: Verdict,
        trusted: &Signer,
    ) -> Result<Receipt, ReceiptError> {
        if let Some(field) = self.statement.differs(expected) {
            return Err(ReceiptError::Statement { field });
        }
        same_key(Party::Trusted, trusted.public(), expected.trusted)?;
        self.check()?;
        Ok(Receipt::sign(self, verdict, trusted))
    }

    /// What it says, whoever signed it.
    pub fn unverified(&self) -> &Statement {
        &self.statement
    }

    /// What it says, where that is signed by the worker with this key.
    ///
    /// # Errors
    /// [`ReceiptError::Key`] where it names another worker, [`ReceiptError::Signature`].
    pub fn of(&self, worker: PublicKey) -> Result<&Statement, ReceiptError> {
        same_key(Party::Worker, worker, self.statement.worker)?;
        self.check()?;
        Ok(&self.statement)
    }

    fn check(&self) -> Result<(), ReceiptError> {
        let message = self.statement.message();
        let key = self.statement.worker;
        key.verify(Party::Worker, &message, &self.signature)
    }

    /// The one encoding, [`CLAIM`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        self.write(&mut out);
        out.into_bytes()
    }

    /// Decodes a claim; its signature is not looked at.
    ///
    /// # Errors
    /// [`DecodeError`] for another length.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let claim = Self::read(&mut reader)?;
        reader.finish()?;
        Ok(claim)
    }

    fn write(&self, out: &mut Writer) {
        self.statement.encode(out);
        out.bytes(&self.signature);
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            statement: Statement::decode(reader)?,
            signature: signature(reader)?,
        })
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Claim({:?})", self.statement)
    }
}

/// A statement that both sides signed, with a verdict; a claim until it is verified.
#[derive(Clone, PartialEq, Eq)]
pub struct Receipt {
    claim: Claim,
    verdict: Verdict,
    signature: [u8; SIGNATURE],
}

impl Receipt {
    fn sign(claim: Claim, verdict: Verdict, trusted: &Signer) -> Self {
        let signature = trusted.sign(&Self::message(&claim, verdict));
        Self {
            claim,
            verdict,
            signature,
        }
    }

    /// What the trusted side signs.
    fn message(claim: &Claim, verdict: Verdict) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(TRUSTED);
        claim.write(&mut out);
        out.u8(verdict.tag());
        out.into_bytes()
    }

    /// What it says, whoever signed it.
    pub fn unverified(&self) -> &Statement {
        &self.claim.statement
    }

    /// The worker's part of it.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The final receipt of a pending one.
    ///
    /// # Errors
    /// [`ReceiptError::Final`] where it is not pending, [`ReceiptError::Key`] for another trusted side.
    pub fn conclude(self, verdict: Verdict, trusted: &Signer) -> Result<Self, ReceiptError> {
        if self.verdict != Verdict::Pending {
            let verdict = self.verdict;
            return Err(ReceiptError::Final { verdict });
        }
        let key = self.claim.statement.trusted;
        same_key(Party::Trusted, trusted.public(), key)?;
        Ok(Self::sign(self.claim, verdict, trusted))
    }

    /// Holds a receipt against the keys that the reader trusts to be the two sides'.
    ///
    /// # Errors
    /// [`ReceiptError::Key`] where it names others, [`ReceiptError::Signature`] where one does not hold.
    pub fn verify(self, trusted: PublicKey, worker: PublicKey) -> Result<Verified, ReceiptError> {
        let statement = &self.claim.statement;
        same_key(Party::Trusted, trusted, statement.trusted)?;
        same_key(Party::Worker, worker, statement.worker)?;
        self.claim.check()?;
        let message = Self::message(&self.claim, self.verdict);
        trusted.verify(Party::Trusted, &message, &self.signature)?;
        Ok(Verified(self))
    }

    /// The one encoding, [`RECEIPT`] bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(&MAGIC);
        self.claim.write(&mut out);
        out.u8(self.verdict.tag()).bytes(&self.signature);
        out.into_bytes()
    }

    /// Decodes a receipt; its signatures are not looked at.
    ///
    /// # Errors
    /// [`DecodeError`] where the bytes are not the encoding of a receipt.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        if magic != u32::from_le_bytes(MAGIC) {
            return Err(DecodeError::Magic { got: magic });
        }
        let receipt = Self {
            claim: Claim::read(&mut reader)?,
            verdict: Verdict::from_tag(reader.u8()?)?,
            signature: signature(&mut reader)?,
        };
        reader.finish()?;
        Ok(receipt)
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Receipt({}, {:?})", self.verdict, self.claim.statement)
    }
}

/// A receipt that holds. Made by [`Receipt::verify`] only.
#[derive(Clone, PartialEq, Eq)]
pub struct Verified(Receipt);

impl Verified {
    /// What both sides signed.
    pub fn statement(&self) -> &Statement {
        &self.0.claim.statement
    }

    /// What the trusted side says of it.
    pub fn verdict(&self) -> Verdict {
        self.0.verdict
    }

    /// That an input, with the salt that its owner tells, is the one committed to.
    ///
    /// # Errors
    /// [`ReceiptError::Content`].
    pub fn has_input(&self, salt: &[u8; 32], bytes: &[u8]) -> Result<(), ReceiptError> {
        same_content("input", self.statement().input, Salted::input(salt, bytes))
    }

    /// That an output, with its salt, is the one committed to.
    ///
    /// # Errors
    /// [`ReceiptError::Content`].
    pub fn has_output(&self, salt: &[u8; 32], bytes: &[u8]) -> Result<(), ReceiptError> {
        same_content(
            "output",
            self.statement().output,
            Salted::output(salt, bytes),
        )
    }
}

impl fmt::Debug for Verified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verified({:?})", self.0)
    }
}

fn same_key(party: Party, expected: PublicKey, got: PublicKey) -> Result<(), ReceiptError> {
    if expected == got {
        Ok(())
    } else {
        Err(ReceiptError::Key {
            party,
            expected,
            got,
        })
    }
}

fn same_content(what: &'static str, expected: Salted, got: Salted) -> Result<(), ReceiptError> {
    if expected == got {
        Ok(())
    } else {
        Err(ReceiptError::Content { what })
    }
}

fn signature(reader: &mut Reader<'_>) -> Result<[u8; SIGNATURE], DecodeError> {
    let mut signature = [0; SIGNATURE];
    signature.copy_from_slice(reader.take(SIGNATURE)?);
    Ok(signature)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing)]
mod tests;
