//! What the trusted side asks of a worker, signed by it: to run a graph, and later to open what it computed.
//!
//! A worker runs an [`Order`] only if the key it names has signed it, so nobody has a worker sign a statement in another's name. It
//! opens a trace only for who signs a [`Summons`] with the key that had it made, so a root that somebody learns,
//! from a receipt say, opens nothing.
//!
//! Source: Ed25519 is RFC 8032.

use crate::commit::{LeafId, Root};
use crate::digest::Digest;
use crate::receipt::{Party, PublicKey, ReceiptError, SIGNATURE, Salted, Signer};
use crate::wire::Writer;

const ORDER: &[u8] = b"larvatus 2026 order v1: ";
const SUMMONS: &[u8] = b"larvatus 2026 summons v1: ";

/// A graph to run on an input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// Digest of the graph with its weights.
    pub model: Digest,
    /// Digest of the plan.
    pub plan: Digest,
    /// Number of the inference; the trusted side gives none twice.
    pub counter: u64,
    /// The input, under the salt that is sent with it.
    pub input: Salted,
    /// Who asks.
    pub trusted: PublicKey,
    /// Who is asked.
    pub worker: PublicKey,
}

impl Order {
    /// Signs it.
    ///
    /// # Errors
    /// [`ReceiptError::Key`] where it names another trusted side.
    pub fn sign(&self, trusted: &Signer) -> Result<[u8; SIGNATURE], ReceiptError> {
        own(self.trusted, trusted)?;
        Ok(trusted.sign(&self.message()))
    }

    /// That the trusted side which it names has signed it.
    ///
    /// # Errors
    /// [`ReceiptError::Signature`].
    pub fn verify(&self, signature: &[u8; SIGNATURE]) -> Result<(), ReceiptError> {
        self.trusted
            .verify(Party::Trusted, &self.message(), signature)
    }

    fn message(&self) -> Vec<u8> {
        let Self {
            model,
            plan,
            counter,
            input,
            trusted,
            worker,
        } = self;
        let mut out = Writer::default();
        out.bytes(ORDER)
            .bytes(&model.0)
            .bytes(&plan.0)
            .u64(*counter)
            .bytes(&input.0.0)
            .bytes(&trusted.0)
            .bytes(&worker.0);
        out.into_bytes()
    }
}

/// Leaves of a trace to open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summons {
    /// The trace.
    pub trace: Root,
    /// Leaves to open, in strictly increasing order.
    pub asked: Vec<LeafId>,
    /// Leaves whose bytes the asker has, in strictly increasing order.
    pub known: Vec<LeafId>,
}

impl Summons {
    /// Signs it.
    pub fn sign(&self, trusted: &Signer) -> [u8; SIGNATURE] {
        trusted.sign(&self.message())
    }

    /// That this trusted side has signed it.
    ///
    /// # Errors
    /// [`ReceiptError::Signature`].
    pub fn verify(
        &self,
        trusted: PublicKey,
        signature: &[u8; SIGNATURE],
    ) -> Result<(), ReceiptError> {
        trusted.verify(Party::Trusted, &self.message(), signature)
    }

    fn message(&self) -> Vec<u8> {
        let mut out = Writer::default();
        out.bytes(SUMMONS)
            .bytes(&self.trace.0.0)
            .count(self.asked.len())
            .count(self.known.len());
        for leaf in self.asked.iter().chain(&self.known) {
            out.u32(leaf.tensor).u32(leaf.leaf);
        }
        out.into_bytes()
    }
}

fn own(named: PublicKey, signer: &Signer) -> Result<(), ReceiptError> {
    if named == signer.public() {
        return Ok(());
    }
    Err(ReceiptError::Key {
        party: Party::Trusted,
        expected: signer.public(),
        got: named,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(trusted: &Signer) -> Order {
        Order {
            model: Digest([1; 32]),
            plan: Digest([2; 32]),
            counter: 3,
            input: Salted::input(&[4; 32], b"input"),
            trusted: trusted.public(),
            worker: Signer::new([5; 32]).public(),
        }
    }

    const REFUSED: Result<(), ReceiptError> = Err(ReceiptError::Signature {
        party: Party::Trusted,
    });

    #[test]
    fn an_order_holds_for_what_it_says_only() {
        let (trusted, other) = (Signer::new([6; 32]), Signer::new([7; 32]));
        let order = order(&trusted);
        let signature = order.sign(&trusted).unwrap();
        assert_eq!(order.verify(&signature), Ok(()));
        assert!(matches!(order.sign(&other), Err(ReceiptError::Key { .. })));
        let changes: [fn(&mut Order); 6] = [
            |order| order.model = Digest([9; 32]),
            |order| order.plan = Digest([9; 32]),
            |order| order.counter = 9,
            |order| order.input = Salted::input(&[9; 32], b"input"),
            |order| order.trusted = Signer::new([9; 32]).public(),
            |order| order.worker = Signer::new([9; 32]).public(),
        ];
        for change in changes {
            let mut changed = order.clone();
            change(&mut changed);
            assert_eq!(changed.verify(&signature), REFUSED);
        }
    }

    #[test]
    fn a_summons_holds_for_its_leaves_and_signer_only() {
        let (trusted, other) = (Signer::new([6; 32]), Signer::new([7; 32]));
        let leaf = |leaf| LeafId { tensor: 0, leaf };
        let summons = Summons {
            trace: Root(Digest([1; 32])),
            asked: vec![leaf(1), leaf(2)],
            known: vec![leaf(3)],
        };
        let signature = summons.sign(&trusted);
        assert_eq!(summons.verify(trusted.public(), &signature), Ok(()));
        assert_eq!(summons.verify(other.public(), &signature), REFUSED);
        let changes: [fn(&mut Summons); 3] = [
            |summons| summons.trace = Root(Digest([2; 32])),
            |summons| summons.known = vec![],
            |summons| {
                summons.known.insert(0, LeafId { tensor: 0, leaf: 2 });
                summons.asked.pop();
            },
        ];
        for change in changes {
            let mut changed = summons.clone();
            change(&mut changed);
            assert_eq!(changed.verify(trusted.public(), &signature), REFUSED);
        }
    }
}
