//! The key of a sealed model goes to an attested service, and to nobody else.
//!
//! ```text
//! owner                                            service
//!   nonce, model id                  ────────►       Recipient::fresh, evidence over
//!                                                    (nonce, its HPKE key, model id)
//!   Verifier::release → Attested     ◄────────
//!   release(&Attested, key)  = Grant ────────►       Recipient::accept → Locked<ContentKey>
//! ```
//!
//! A grant is HPKE (RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM) to the
//! key in the evidence; `info` and the associated data name the model and the owner's nonce. It is
//! 32 bytes of encapsulated key and 48 of ciphertext behind an 8-byte head, so any transport will do.

use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{
    Deserializable, Kem, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal,
};
use zeroize::Zeroizing;

use crate::memory::{Locked, Memory};
use crate::seal::ContentKey;
use crate::statement::{KemPublic, ModelId, NoRandomness, Nonce, Release, Statement};
use crate::verify::Attested;

type Dh = X25519HkdfSha256;

/// Bytes of a grant.
pub const GRANT: usize = 8 + 32 + 48;

const MAGIC: &[u8; 8] = b"LRVGRNT\x01";

/// Separates these messages from all others to the same key.
const INFO: &[u8] = b"larvatus/release/1";

/// A model's key, sealed to a service that was attested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant([u8; GRANT]);

/// Why no key is granted or taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The system gives no randomness.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The attested key is no point to seal to.
    #[error("the attested key cannot be sealed to")]
    Key,
    /// Not a grant.
    #[error("not a grant: {GRANT} bytes with its mark are wanted, these are {got}")]
    NotAGrant {
        /// The bytes.
        got: usize,
    },
    /// Sealed to another key, for another model or nonce, or changed.
    #[error(
        "the grant does not open: it is for another service, model or challenge, or was changed"
    )]
    DoesNotOpen,
    /// No evidence was asked for this model with such a nonce.
    #[error("no grant is awaited")]
    NotAwaited,
}

/// Hands a model's key to an attested service.
///
/// # Errors
/// [`ReleaseError::Key`].
pub fn release(to: &Attested<Release>, key: &ContentKey) -> Result<Grant, ReleaseError> {
    let Release { key: kem, model } = *to.statement();
    let public = <Dh as Kem>::PublicKey::from_bytes(&kem.0).map_err(|_| ReleaseError::Key)?;
    let aad = bound_to(model, to.nonce());
    let (encapped, ciphertext) =
        single_shot_seal::<AesGcm256, HkdfSha256, Dh>(&OpModeS::Base, &public, INFO, &key.0, &aad)
            .map_err(|_| ReleaseError::Key)?;
    let mut grant = [0; GRANT];
    grant[..8].copy_from_slice(MAGIC);
    grant[8..40].copy_from_slice(&encapped.to_bytes());
    grant[40..].copy_from_slice(&ciphertext);
    Ok(Grant(grant))
}

fn bound_to(model: ModelId, nonce: Nonce) -> [u8; 64] {
    let mut aad = [0; 64];
    aad[..32].copy_from_slice(&model.0);
    aad[32..].copy_from_slice(&nonce.0);
    aad
}

impl Grant {
    /// Reads a grant.
    ///
    /// # Errors
    /// [`ReleaseError::NotAGrant`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ReleaseError> {
        let wrong = ReleaseError::NotAGrant { got: bytes.len() };
        let grant: [u8; GRANT] = bytes.try_into().map_err(|_| wrong)?;
        if &grant[..8] != MAGIC {
            return Err(wrong);
        }
        Ok(Self(grant))
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A service's key pair for one grant, in one process. Never stored.
pub struct Recipient {
    private: <Dh as Kem>::PrivateKey,
    public: KemPublic,
    model: ModelId,
    nonce: Nonce,
}

impl std::fmt::Debug for Recipient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = f.debug_struct("Recipient");
        shown.field("model", &self.model).finish_non_exhaustive()
    }
}

impl Recipient {
    /// A new key pair, for the owner's nonce and this model.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn fresh(model: ModelId, nonce: Nonce) -> Result<Self, NoRandomness> {
        let (private, public) = key_pair()?;
        Ok(Self {
            private,
            public,
            model,
            nonce,
        })
    }

    /// What to have the platform sign.
    pub fn statement(&self) -> Statement {
        let release = Release {
            key: self.public,
            model: self.model,
        };
        Statement::release(&release, self.nonce)
    }

    /// The model that is waited for.
    pub fn model(&self) -> ModelId {
        self.model
    }

    /// Takes a key; drop the recipient then.
    ///
    /// # Errors
    /// [`ReleaseError::DoesNotOpen`]; it goes on waiting for the right one.
    pub fn accept(
        &self,
        grant: &Grant,
        memory: Memory,
    ) -> Result<Locked<ContentKey>, ReleaseError> {
        let key = self.open(grant).ok_or(ReleaseError::DoesNotOpen)?;
        Ok(Locked::new(key, memory))
    }

    fn open(&self, grant: &Grant) -> Option<ContentKey> {
        let encapped = <Dh as Kem>::EncappedKey::from_bytes(&grant.0[8..40]).ok()?;
        let opened = single_shot_open::<AesGcm256, HkdfSha256, Dh>(
            &OpModeR::Base,
            &self.private,
            &encapped,
            INFO,
            &grant.0[40..],
            &bound_to(self.model, self.nonce),
        );
        let opened = Zeroizing::new(opened.ok()?);
        let mut key = ContentKey([0; 32]);
        if opened.len() != key.0.len() {
            return None;
        }
        key.0.copy_from_slice(&opened);
        Some(key)
    }
}

/// An HPKE key pair from the system's randomness.
pub(crate) fn key_pair() -> Result<(<Dh as Kem>::PrivateKey, KemPublic), NoRandomness> {
    let mut seed = Zeroizing::new([0; 32]);
    getrandom::fill(&mut *seed).map_err(|_| NoRandomness)?;
    let (private, public) = Dh::derive_keypair(&*seed);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(&public.to_bytes());
    Ok((private, KemPublic(bytes)))
}
