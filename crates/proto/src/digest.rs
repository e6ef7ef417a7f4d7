//! BLAKE3 digests, one domain per kind of thing.

use std::fmt;
use std::io::{self, Read};

/// A BLAKE3 digest of something both sides can recompute.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

const FILE: &str = "larvatus 2026 model file v1";

impl Digest {
    /// Digest of a program with its weights: the address of an upload.
    pub fn of_model(blob: &[u8]) -> Self {
        Self::derive("larvatus 2026 worker model v1", blob)
    }

    /// Digest of a whole network with its constants: the address of an upload that a worker runs by itself.
    pub fn of_graph(blob: &[u8]) -> Self {
        Self::derive("larvatus 2026 whole network v1", blob)
    }

    /// Digest of a plan: what will be done, for every layer.
    pub fn of_plan(encoded: &[u8]) -> Self {
        Self::derive("larvatus 2026 plan v1", encoded)
    }

    /// Digest of a model file as its owner received it.
    pub fn of_file(bytes: &[u8]) -> Self {
        Self::derive(FILE, bytes)
    }

    /// The same, taken while the file is read.
    pub fn while_read<R: Read>(file: R) -> FileDigest<R> {
        FileDigest {
            file,
            hasher: blake3::Hasher::new_derive_key(FILE),
        }
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

/// A file on its way to somebody who reads it.
#[derive(Debug)]
pub struct FileDigest<R> {
    file: R,
    hasher: blake3::Hasher,
}

impl<R> FileDigest<R> {
    /// The digest of what was read so far.
    pub fn finish(self) -> Digest {
        Digest(*self.hasher.finalize().as_bytes())
    }
}

impl<R: Read> Read for FileDigest<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(into)?;
        self.hasher.update(into.get(..count).unwrap_or_default());
        Ok(count)
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
