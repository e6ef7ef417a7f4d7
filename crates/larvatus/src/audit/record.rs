//! What is left of a run until it is audited.

use larvatus_proto::digest::Digest;
use larvatus_proto::receipt::{
    Claim, PublicKey, RECEIPT, Receipt, ReceiptError, Signer, Statement, Verdict,
};
use larvatus_proto::wire::{DecodeError, Reader, Writer};

use super::{Fraction, Terms};

/// First bytes of a record: its kind and version.
const MAGIC: u32 = u32::from_le_bytes(*b"LRP1");

/// Most bytes of an input or an output that a record holds.
const MOST: usize = 1 << 30;

/// A run whose output was released and whose trace has not been looked at.
///
/// It holds all that is needed to settle it but the graph: the worker's signed claim, the salt, the input and the output.
/// Whoever reads it sees the input.
#[derive(PartialEq)]
pub struct Provisional {
    receipt: Receipt,
    salt: [u8; 32],
    fraction: Fraction,
    input: Vec<u8>,
    output: Vec<u8>,
    /// What the audit's units are drawn from, once that is fixed.
    seed: Option<[u8; 32]>,
}

/// A record has its draw already: another would give the worker another chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the units of this record are drawn already")]
pub struct Redrawn;

impl Provisional {
    /// The record of a claim that holds: signed by the worker, for this very input and output.
    pub(super) fn new(
        claim: Claim,
        expected: &Statement,
        terms: &Terms,
        salt: [u8; 32],
        (input, output): (Vec<u8>, Vec<u8>),
        trusted: &Signer,
    ) -> Result<Self, ReceiptError> {
        Ok(Self {
            receipt: claim.receipt(expected, Verdict::Pending, trusted)?,
            salt,
            fraction: terms.fraction(),
            input,
            output,
            seed: None,
        })
    }

    /// What the worker has signed.
    pub fn statement(&self) -> &Statement {
        self.receipt.unverified()
    }

    /// The receipt so far: both signatures, nothing audited.
    pub fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// The number of the inference.
    pub fn counter(&self) -> u64 {
        self.statement().counter
    }

    /// The graph that was run.
    pub fn model(&self) -> Digest {
        self.statement().model
    }

    /// The part of the units that is to be looked at.
    pub fn fraction(&self) -> Fraction {
        self.fraction
    }

    /// The output, as it is committed to.
    pub fn output(&self) -> &[u8] {
        &self.output
    }

    /// The input, as it is committed to.
    pub fn input(&self) -> &[u8] {
        &self.input
    }

    /// What input and output are salted with in the statement.
    pub fn salt(&self) -> &[u8; 32] {
        &self.salt
    }

    /// What the units are drawn from, if they are drawn.
    pub fn seed(&self) -> Option<[u8; 32]> {
        self.seed
    }

    /// Draws the units to look at from 32 fresh uniform bytes. **Keep the record before the worker is asked**, so that
    /// a worker that saw the draw does not get another one.
    ///
    /// # Errors
    /// [`Redrawn`] where that was done.
    pub fn draw(&mut self, fresh: [u8; 32]) -> Result<(), Redrawn> {
        match self.seed {
            Some(_) => Err(Redrawn),
            None => {
                self.seed = Some(fresh);
                Ok(())
            }
        }
    }

    /// The claim, apart from what the trusted side signed.
    pub(super) fn claim(&self) -> Claim {
        self.receipt.claim().clone()
    }

    /// Ends the record.
    pub(super) fn conclude(
        self,
        verdict: Verdict,
        trusted: &Signer,
    ) -> Result<Receipt, ReceiptError> {
        self.receipt.conclude(verdict, trusted)
    }

    /// The one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.u32(MAGIC)
            .bytes(&self.receipt.encode())
            .bytes(&self.salt)
            .u64(self.fraction.part().to_bits());
        out.u8(u8::from(self.seed.is_some()));
        out.bytes(&self.seed.unwrap_or_default());
        for bytes in [&self.input, &self.output] {
            out.count(bytes.len()).bytes(bytes);
        }
        out.into_bytes()
    }

    /// Reads a record of this trusted side's and holds its signatures against the keys it names.
    ///
    /// # Errors
    /// [`RecordError`] where the bytes are no record of this key's.
    pub fn decode(bytes: &[u8], trusted: PublicKey) -> Result<Self, RecordError> {
        let mut reader = Reader::new(bytes);
        match reader.u32()? {
            MAGIC => {}
            got => return Err(DecodeError::Magic { got }.into()),
        }
        let receipt = Receipt::decode(reader.take(RECEIPT)?)?;
        let salt = reader.digest()?.0;
        let fraction = f64::from_bits(reader.u64()?);
        let fraction = Fraction::new(fraction).ok_or(RecordError::Fraction)?;
        let (drawn, seed) = (reader.u8()?, reader.digest()?.0);
        let seed = match (drawn, seed) {
            (0, [0, ..]) if seed == [0; 32] => None,
            (1, seed) => Some(seed),
            (tag, _) => {
                let (what, tag) = ("draw of a record", tag.into());
                return Err(DecodeError::UnknownTag { what, tag }.into());
            }
        };
        let mut port = |what| {
            let count = reader.count(what, MOST)?;
            Ok::<_, DecodeError>(reader.take(count)?.to_vec())
        };
        let (input, output) = (port("bytes of an input")?, port("bytes of an output")?);
        reader.finish()?;
        let worker = receipt.unverified().worker;
        let verified = receipt.clone().verify(trusted, worker)?;
        if verified.verdict() != Verdict::Pending {
            let verdict = verified.verdict();
            return Err(ReceiptError::Final { verdict }.into());
        }
        verified.has_input(&salt, &input)?;
        verified.has_output(&salt, &output)?;
        Ok(Self {
            receipt,
            salt,
            fraction,
            input,
            output,
            seed,
        })
    }
}

impl std::fmt::Debug for Provisional {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Provisional({:?})", self.statement())
    }
}

/// Why bytes are no record.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// They are none.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It is not signed as it should be, or not about what it holds.
    #[error(transparent)]
    Receipt(#[from] ReceiptError),
    /// The part to look at is none.
    #[error("a part of the units that is not above 0 and at most 1")]
    Fraction,
}
