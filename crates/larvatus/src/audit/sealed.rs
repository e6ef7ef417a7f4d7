//! Evidence for one judge only.
//!
//! Evidence holds parts of what the user's input became, in clear. Whoever wants to tell them to a named judge and to nobody
//! else seals it to the judge's public key. The judge opens it with the key's other half and goes on as with any evidence: sealing
//! neither adds nor takes proof, since anybody can seal to a public key.
//!
//! The file is the magic, the judge's key, the encapsulated key, and the ciphertext with its tag; the judge's key is bound as
//! associated data.
//!
//! Source: HPKE (RFC 9180), base mode, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256 as Kem;
use hpke::rand_core::{TryCryptoRng, TryRng};
use hpke::{Deserializable, Kem as _, OpModeR, OpModeS, Serializable};
use larvatus_proto::receipt::PublicKey;
use larvatus_proto::wire::{DecodeError, Reader, Writer};
use zeroize::Zeroizing;

use super::Evidence;
use crate::secret::Entropy;

/// First bytes of a file of sealed evidence: its kind and version.
const MAGIC: [u8; 4] = *b"LRS1";
const INFO: &[u8] = b"larvatus 2026 sealed evidence v1";
const RANDOM: &str = "larvatus 2026 sealing to a judge v1";

/// Whom evidence is sealed to: an X25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct JudgeKey([u8; 32]);

/// What opens evidence that was sealed to its [`JudgeKey`]. Never printed.
pub struct JudgeSecret {
    secret: <Kem as hpke::Kem>::PrivateKey,
    public: JudgeKey,
}

/// A text that is no judge's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a judge's key is 64 hexadecimal digits, as `larvatus judge --new-key` prints it")]
pub struct NotAJudge;

/// Why evidence cannot be sealed to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{judge} is no key to seal to")]
pub struct CannotSeal {
    /// The key.
    pub judge: JudgeKey,
}

/// Why sealed evidence does not open.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CannotOpen {
    /// It is no sealed evidence, or what was sealed is no evidence.
    #[error("not sealed evidence: {0}")]
    Malformed(#[from] DecodeError),
    /// It names another judge.
    #[error("sealed to judge {to}, this key is {key}")]
    OtherJudge {
        /// Whom it was sealed to.
        to: JudgeKey,
        /// The key at hand.
        key: JudgeKey,
    },
    /// It was altered, or never sealed to this key.
    #[error(
        "it does not open: altered after it was sealed, or sealed to another key than it names"
    )]
    Altered,
}

impl JudgeSecret {
    /// A key that follows from 32 random bytes.
    pub fn new(seed: &[u8; 32]) -> Self {
        let (secret, public) = Kem::derive_keypair(seed);
        let public = JudgeKey(public.to_bytes().into());
        Self { secret, public }
    }

    /// What evidence is sealed to.
    pub fn public(&self) -> JudgeKey {
        self.public
    }
}

impl fmt::Debug for JudgeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JudgeSecret(of {})", self.public)
    }
}

impl fmt::Display for JudgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        PublicKey(self.0).fmt(f)
    }
}

impl fmt::Debug for JudgeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JudgeKey {
    type Err = NotAJudge;

    fn from_str(text: &str) -> Result<Self, NotAJudge> {
        let key: PublicKey = text.parse().map_err(|_| NotAJudge)?;
        Ok(Self(key.0))
    }
}

/// Whether a file begins as sealed evidence does.
pub fn is_sealed(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

impl Evidence {
    /// The evidence for one judge's eyes. `entropy` must be fresh for every piece of evidence.
    ///
    /// # Errors
    /// [`CannotSeal`] where the key is no point to agree with.
    pub fn seal(&self, judge: JudgeKey, entropy: &Entropy) -> Result<Vec<u8>, CannotSeal> {
        let refused = CannotSeal { judge };
        let key = <Kem as hpke::Kem>::PublicKey::from_bytes(&judge.0).map_err(|_| refused)?;
        let mut random = Random(Zeroizing::new([0; 32]), 0);
        random.0.copy_from_slice(&*entropy.derive_alone(RANDOM));
        let plain = Zeroizing::new(self.encode());
        let head = head(judge);
        let sealed = hpke::single_shot_seal_with_rng::<AesGcm256, HkdfSha256, Kem>(
            &OpModeS::Base,
            &key,
            INFO,
            &plain,
            &head,
            &mut random,
        );
        let (encapsulated, sealed) = sealed.map_err(|_| refused)?;
        let mut out = Writer::default();
        out.bytes(&head)
            .bytes(&encapsulated.to_bytes())
            .bytes(&sealed);
        Ok(out.into_bytes())
    }

    /// Opens what was sealed to this judge. What comes out is evidence like any other: a claim until it is judged.
    ///
    /// # Errors
    /// [`CannotOpen`].
    pub fn unseal(bytes: &[u8], judge: &JudgeSecret) -> Result<Self, CannotOpen> {
        let mut reader = Reader::new(bytes);
        let magic = reader.u32()?;
        if magic != u32::from_le_bytes(MAGIC) {
            return Err(DecodeError::Magic { got: magic }.into());
        }
        let to = JudgeKey(reader.digest()?.0);
        let key = judge.public;
        if to != key {
            return Err(CannotOpen::OtherJudge { to, key });
        }
        let encapsulated = reader.digest()?.0;
        let at = MAGIC.len() + 64;
        let sealed = bytes.get(at..).unwrap_or_default();
        let encapsulated = <Kem as hpke::Kem>::EncappedKey::from_bytes(&encapsulated);
        let plain = hpke::single_shot_open::<AesGcm256, HkdfSha256, Kem>(
            &OpModeR::Base,
            &judge.secret,
            &encapsulated.map_err(|_| CannotOpen::Altered)?,
            INFO,
            sealed,
            &head(to),
        );
        let plain = Zeroizing::new(plain.map_err(|_| CannotOpen::Altered)?);
        Ok(Self::decode(&plain)?)
    }
}

/// What stands in clear before the encapsulated key.
fn head(judge: JudgeKey) -> Vec<u8> {
    [&MAGIC[..], &judge.0].concat()
}

/// Bytes that follow from fresh ones, for a library that asks for a generator.
struct Random(Zeroizing<[u8; 32]>, u64);

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        let mut reader = blake3::Hasher::new_keyed(&self.0).finalize_xof();
        reader.set_position(self.1);
        reader.fill(out);
        self.1 += out.len() as u64;
        Ok(())
    }
}

impl TryCryptoRng for Random {}
