//! Sealed models: files that only their owner, and whom the owner gives the key, can read.
//!
//! ```text
//! header, 104 bytes
//!   0    8  "LRVSEAL" and the version, 1
//!   8    1  log2 of the bytes of a chunk, 12 to 24
//!   9    7  zero
//!   16   8  bytes of the model, u64
//!   24   12 nonce of the wrapping
//!   36   4  zero
//!   40   48 content key, wrapped: AES-256-GCM under the owner's key, over bytes 0..40 and 88..104
//!   88   16 which owner's key: the first bytes of BLAKE3("larvatus/owner/1", key)
//! chunks
//!   AES-256-GCM, tag of 16 bytes behind each. All but the last have the full length; a model of no
//!   bytes has one empty chunk. Nonce: number u64 (big-endian) ‖ 0 ‖ 0 ‖ 0 ‖ (1 if last, else 0).
//!   Key: BLAKE3 keyed by the content key, over "larvatus/model/1" ‖ header.
//! ```
//!
//! Numbers are little-endian where nothing else is said. The chunks' key depends on every byte of the header, and their
//! nonces on place and end, so nothing can be cut, put elsewhere, exchanged, added or changed. The
//! length of a file follows from its header and is held against it before memory is taken. The id of
//! a sealed model ([`ModelId`]) is SHA-256 of its header.
//!
//! Source: Hoang, Reyhanitabar, Rogaway, Vizár, *Online Authenticated-Encryption and its Nonce-Reuse
//! Misuse-Resistance* (STREAM), CRYPTO 2015.

use std::fmt;
use std::io::{self, Read, Write};

use aes_gcm::aead::{AeadInOut, KeyInit, inout::InOutBuf};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::memory::{Locked, Memory};
use crate::statement::{ModelId, NoRandomness};

/// Bytes of a header.
pub const HEADER: usize = 104;

const MAGIC: &[u8; 8] = b"LRVSEAL\x01";

/// Chunks that [`seal`] makes have a MiB.
const CHUNK_LOG2: u8 = 20;

const TAG: usize = 16;

/// The owner's key: whoever has it opens all models that were sealed with it.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct OwnerKey([u8; 32]);

/// The key of one sealed model. Not `Clone`, never printed, overwritten when dropped; it leaves a
/// process only sealed to an attested key ([`crate::release`]).
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct ContentKey(pub(crate) [u8; 32]);

impl fmt::Debug for OwnerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerKey(…)")
    }
}

impl fmt::Debug for ContentKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ContentKey(…)")
    }
}

/// Why a model cannot be sealed or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// Reading or writing fails.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The system gives no randomness.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The model has not the length that was said.
    #[error("the model has not the {expected} bytes that were announced; it changed meanwhile")]
    Length {
        /// Bytes announced.
        expected: u64,
    },
    /// Not a sealed model.
    #[error("not a sealed model: it does not begin as one")]
    NotSealed,
    /// A header that [`seal`] would not write.
    #[error("the header of the sealed model is not in order")]
    Header,
    /// The file is shorter or longer than its header says.
    #[error("the sealed model should have {expected} bytes: it was cut, or something was added")]
    FileLength {
        /// Bytes that follow from the header.
        expected: u64,
    },
    /// Larger than this machine addresses.
    #[error("the sealed model holds {got} bytes, more than this machine addresses")]
    TooLarge {
        /// Bytes named.
        got: u64,
    },
    /// Sealed with another owner's key.
    #[error("the model was sealed with another owner's key")]
    OtherOwner,
    /// The content key does not unwrap: the header was changed.
    #[error("the key in the sealed model does not unwrap: its header was changed")]
    Wrap,
    /// A chunk does not open.
    #[error(
        "chunk {chunk} of the sealed model does not open: it was changed, or the key is another's"
    )]
    Chunk {
        /// Which one, from 0.
        chunk: u64,
    },
    /// An owner's key file has 64 hexadecimal digits.
    #[error("not an owner's key: 64 hexadecimal digits are wanted")]
    OwnerKey,
}

impl OwnerKey {
    /// A new key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn fresh() -> Result<Self, NoRandomness> {
        Ok(Self(*random()?))
    }

    /// Reads a key file's text: 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`SealError::OwnerKey`].
    pub fn from_text(text: &str) -> Result<Self, SealError> {
        let mut key = Zeroizing::new([0; 32]);
        hex::decode_to_slice(text.trim(), &mut *key).map_err(|_| SealError::OwnerKey)?;
        Ok(Self(*key))
    }

    /// The text for a key file.
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(hex::encode(self.0));
        text.push('\n');
        text
    }

    fn id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        let hash = blake3::derive_key("larvatus/owner/1", &self.0);
        id.copy_from_slice(&hash[..16]);
        id
    }

    /// Takes the content key out of a header, to release it.
    ///
    /// # Errors
    /// [`SealError::OtherOwner`], [`SealError::Wrap`].
    pub fn unwrap(&self, header: &Header) -> Result<ContentKey, SealError> {
        let bytes = &header.bytes;
        if !bool::from(bytes[88..].ct_eq(&self.id())) {
            return Err(SealError::OtherOwner);
        }
        let mut key = ContentKey([0; 32]);
        key.0.copy_from_slice(&bytes[40..72]);
        let (mut tag, mut nonce) = (Tag::default(), Nonce::default());
        tag.copy_from_slice(&bytes[72..88]);
        nonce.copy_from_slice(&bytes[24..36]);
        let cipher = Aes256Gcm::new(&self.0.into());
        let buffer = InOutBuf::from(&mut key.0[..]);
        let opened = cipher.decrypt_inout_detached(&nonce, &wrapped_over(bytes), buffer, &tag);
        opened.map_err(|_| SealError::Wrap)?;
        Ok(key)
    }
}

fn wrapped_over(header: &[u8; HEADER]) -> Vec<u8> {
    [&header[..40], &header[88..]].concat()
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, NoRandomness> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(&mut *bytes).map_err(|_| NoRandomness)?;
    Ok(bytes)
}

/// The header of a sealed model: in order, but not yet believed.
#[derive(Clone)]
pub struct Header {
    bytes: [u8; HEADER],
    chunk: usize,
    length: u64,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// [`SealError::NotSealed`], [`SealError::Header`].
    pub fn parse(bytes: &[u8; HEADER]) -> Result<Self, SealError> {
        if &bytes[..8] != MAGIC {
            return Err(SealError::NotSealed);
        }
        let zero = |range: &[u8]| range.iter().all(|byte| *byte == 0);
        if !(12..=24).contains(&bytes[8]) || !zero(&bytes[9..16]) || !zero(&bytes[36..40]) {
            return Err(SealError::Header);
        }
        let mut length = [0; 8];
        length.copy_from_slice(&bytes[16..24]);
        let header = Self {
            bytes: *bytes,
            chunk: 1 << bytes[8],
            length: u64::from_le_bytes(length),
        };
        header.file_length().ok_or(SealError::Header)?;
        Ok(header)
    }

    /// Reads the header of a file.
    ///
    /// # Errors
    /// As [`parse`](Self::parse); [`SealError::NotSealed`] where the file is shorter.
    pub fn read(from: &mut impl Read) -> Result<Self, SealError> {
        let mut bytes = [0; HEADER];
        from.read_exact(&mut bytes)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => SealError::NotSealed,
                _ => SealError::Io(error),
            })?;
        Self::parse(&bytes)
    }

    /// Which model this is.
    pub fn model(&self) -> ModelId {
        let mut id = [0; 32];
        id.copy_from_slice(digest(&SHA256, &self.bytes).as_ref());
        ModelId(id)
    }

    /// Bytes of the model in clear.
    pub fn length(&self) -> u64 {
        self.length
    }

    fn chunks(&self) -> u64 {
        self.length.div_ceil(self.chunk as u64).max(1)
    }

    fn file_length(&self) -> Option<u64> {
        let tags = self.chunks().checked_mul(TAG as u64)?;
        self.length.checked_add(tags)?.checked_add(HEADER as u64)
    }

    fn cipher(&self, key: &ContentKey) -> Aes256Gcm {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        hasher.update(b"larvatus/model/1");
        hasher.update(&self.bytes);
        let key = Zeroizing::new(*hasher.finalize().as_bytes());
        Aes256Gcm::new(&(*key).into())
    }
}

fn nonce(chunk: u64, last: bool) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = Nonce::default();
    nonce[..8].copy_from_slice(&chunk.to_be_bytes());
    nonce[11] = u8::from(last);
    nonce
}

/// Seals a model of `length` bytes. Returns its id.
///
/// # Errors
/// [`SealError`]; what was written until then is of no use to anybody.
pub fn seal(
    from: &mut impl Read,
    length: u64,
    to: &mut impl Write,
    owner: &OwnerKey,
    mut on_bytes: impl FnMut(u64),
) -> Result<ModelId, SealError> {
    let content = ContentKey(*random()?);
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8] = CHUNK_LOG2;
    bytes[16..24].copy_from_slice(&length.to_le_bytes());
    bytes[24..36].copy_from_slice(&*random::<12>()?);
    bytes[88..].copy_from_slice(&owner.id());
    let mut wrapped = Zeroizing::new(content.0);
    let mut at = Nonce::default();
    at.copy_from_slice(&bytes[24..36]);
    let tag = Aes256Gcm::new(&owner.0.into())
        .encrypt_inout_detached(&at, &wrapped_over(&bytes), InOutBuf::from(&mut wrapped[..]))
        .map_err(|_| SealError::Header)?;
    bytes[40..72].copy_from_slice(&*wrapped);
    bytes[72..88].copy_from_slice(&tag);
    let header = Header::parse(&bytes)?;

    to.write_all(&bytes)?;
    let cipher = header.cipher(&content);
    let mut buffer = Zeroizing::new(vec![0; header.chunk]);
    let chunks = header.chunks();
    let mut left = length;
    for chunk in 0..chunks {
        let size = usize::try_from(left.min(header.chunk as u64)).map_err(|_| SealError::Header)?;
        let part = &mut buffer[..size];
        from.read_exact(part).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => SealError::Length { expected: length },
            _ => SealError::Io(error),
        })?;
        let tag = cipher
            .encrypt_inout_detached(
                &nonce(chunk, chunk + 1 == chunks),
                &[],
                InOutBuf::from(&mut *part),
            )
            .map_err(|_| SealError::Chunk { chunk })?;
        to.write_all(part)?;
        to.write_all(&tag)?;
        left -= size as u64;
        on_bytes(length - left);
    }
    if from.read(&mut [0])? != 0 {
        return Err(SealError::Length { expected: length });
    }
    Ok(header.model())
}

/// Opens a sealed model whose header was read from `from`; `file_length` is that of the whole file.
///
/// # Errors
/// [`SealError`]; nothing of a model that was changed anywhere is returned.
pub fn open(
    header: &Header,
    from: &mut impl Read,
    key: &ContentKey,
    file_length: u64,
    memory: Memory,
) -> Result<Locked<Vec<u8>>, SealError> {
    let expected = header.file_length().ok_or(SealError::Header)?;
    if file_length != expected {
        return Err(SealError::FileLength { expected });
    }
    let got = header.length;
    let whole = usize::try_from(got).map_err(|_| SealError::TooLarge { got })?;
    let mut model = Locked::new(Vec::new(), memory);
    let cipher = header.cipher(key);
    let chunks = header.chunks();
    let cut = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SealError::FileLength { expected },
        _ => SealError::Io(error),
    };
    model.reserve_exactly(whole)?;
    for chunk in 0..chunks {
        let begin = model.len();
        let size = (whole - begin).min(header.chunk);
        model.grow(size);
        let part = &mut model.bytes_mut()[begin..];
        from.read_exact(part).map_err(cut)?;
        let mut tag = Tag::default();
        from.read_exact(&mut tag).map_err(cut)?;
        cipher
            .decrypt_inout_detached(
                &nonce(chunk, chunk + 1 == chunks),
                &[],
                InOutBuf::from(part),
                &tag,
            )
            .map_err(|_| SealError::Chunk { chunk })?;
    }
    if from.read(&mut [0])? != 0 {
        return Err(SealError::FileLength { expected });
    }
    Ok(model)
}
