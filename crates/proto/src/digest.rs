//! BLAKE3 digests, one domain per kind of thing.

use std::fmt;

/// A BLAKE3 digest of something both sides can recompute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// Digest of a program with its weights: the address of an upload.
    pub fn of_model(blob: &[u8]) -> Self {
        Self::derive("larvatus 2026 worker model v1", blob)
    }

    /// Digest of a plan: what will be done, for every layer.
    pub fn of_plan(encoded: &[u8]) -> Self {
        Self::derive("larvatus 2026 plan v1", encoded)
    }

    /// Digest of a model file as its owner received it.
    pub fn of_file(bytes: &[u8]) -> Self {
        Self::derive("larvatus 2026 model file v1", bytes)
    }

    /// What a device commits to when it pairs: both keys and its nonce.
    pub(crate) fn of_pairing_commitment(bytes: &[u8]) -> Self {
        Self::derive("larvatus 2026 pairing commitment v1", bytes)
    }

    /// What a pairing's code is taken from: both keys and both nonces.
    pub(crate) fn of_pairing_code(bytes: &[u8]) -> Self {
        Self::derive("larvatus 2026 pairing code v1", bytes)
    }

    fn derive(domain: &str, bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(domain);
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
