//! Single requests, sealed end to end, for clients whose TLS ends at a proxy.
//!
//! ```text
//! request:  "LRVREQ\0\x01" ‖ time u64 (little-endian) ‖ encapsulated key, 32 ‖ ciphertext
//! response: "LRVRSP\0\x01" ‖ ciphertext
//! ```
//!
//! A request is HPKE (RFC 9180, base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM) to
//! an attested key. Its associated data are time, method, path and model, so a proxy cannot send it elsewhere. A
//! response is AES-256-GCM under a key that the request's context exports, for that request alone;
//! its associated data are those of the request and the HTTP status.
//!
//! A service takes a request once: it remembers the encapsulated keys of [`WINDOW`] seconds and
//! refuses what is older or from the future.
//!
//! Source: RFC 9180; the response's key as in RFC 9458 (Oblivious HTTP), §4.4.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, PoisonError};

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce as GcmNonce};
use hpke::aead::AesGcm256;
use hpke::kdf::HkdfSha256;
use hpke::kem::X25519HkdfSha256;
use hpke::{Deserializable, Kem, OpModeR, OpModeS, Serializable, setup_receiver, setup_sender};
use zeroize::{Zeroize, Zeroizing};

use crate::memory::{Locked, Memory};
use crate::release::key_pair;
use crate::statement::{KemPublic, Mailbox, NoRandomness, Nonce, Statement, UnixTime};
use crate::verify::Attested;

type Dh = X25519HkdfSha256;

/// Seconds by which a request's time may differ from the service's, either way.
pub const WINDOW: u64 = 60;

/// Requests that are remembered; while there are more, new ones are refused.
const REMEMBERED: usize = 1 << 18;

/// Bytes before the ciphertext of a request.
const REQUEST_HEAD: usize = 8 + 8 + 32;

const REQUEST: &[u8; 8] = b"LRVREQ\0\x01";
const RESPONSE: &[u8; 8] = b"LRVRSP\0\x01";
const INFO: &[u8] = b"larvatus/mailbox/1";
const EXPORT: &[u8] = b"larvatus/response/1";

/// Media type of sealed requests and responses.
pub const CONTENT_TYPE: &str = "application/vnd.larvatus.sealed";

/// Where a request goes. Both ends must mean the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'a> {
    /// Such as `POST`.
    pub method: &'a str,
    /// The path, with its query.
    pub path: &'a str,
    /// The model's name.
    pub model: &'a str,
}

impl Target<'_> {
    fn bound(&self, time: u64) -> Vec<u8> {
        let mut aad = time.to_le_bytes().to_vec();
        for part in [self.method, self.path, self.model] {
            aad.extend_from_slice(&(part.len() as u64).to_le_bytes());
            aad.extend_from_slice(part.as_bytes());
        }
        aad
    }
}

/// Why a request or a response is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MailError {
    /// The attested key is no point to seal to.
    #[error("the attested key cannot be sealed to")]
    Key,
    /// Not a sealed message of this kind.
    #[error("not a sealed message of this kind")]
    Malformed,
    /// Sealed to another key or for another target, or changed.
    #[error("the message does not open: it is for another key, path or model, or was changed")]
    DoesNotOpen,
    /// Too old, or from the future.
    #[error("the request's time differs from the service's by more than {WINDOW} s")]
    OutsideWindow,
    /// It came before.
    #[error("the request was played again")]
    Replayed,
    /// Too many requests are remembered.
    #[error("too many requests came within the window; ask again later")]
    Busy,
}

/// Seals a request to an attested service. What comes back opens the response.
///
/// # Errors
/// [`MailError::Key`].
pub fn seal_request(
    to: &Attested<Mailbox>,
    target: &Target<'_>,
    body: &[u8],
    now: UnixTime,
) -> Result<(Vec<u8>, AwaitResponse), MailError> {
    let key = to.statement().key;
    let public = <Dh as Kem>::PublicKey::from_bytes(&key.0).map_err(|_| MailError::Key)?;
    let (encapped, mut context) =
        setup_sender::<AesGcm256, HkdfSha256, Dh>(&OpModeS::Base, &public, INFO)
            .map_err(|_| MailError::Key)?;
    let aad = target.bound(now.0);
    let ciphertext = context.seal(body, &aad).map_err(|_| MailError::Key)?;
    let mut request = Vec::with_capacity(REQUEST_HEAD + ciphertext.len());
    request.extend_from_slice(REQUEST);
    request.extend_from_slice(&now.0.to_le_bytes());
    request.extend_from_slice(&encapped.to_bytes());
    request.extend_from_slice(&ciphertext);
    let mut secret = Secret([0; 44]);
    let exported = context.export(EXPORT, &mut secret.0);
    exported.map_err(|_| MailError::Key)?;
    Ok((request, AwaitResponse { secret, aad }))
}

/// Key and nonce of one response.
struct Secret([u8; 44]);

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl Secret {
    fn cipher(&self) -> (Aes256Gcm, GcmNonce<aes_gcm::aead::consts::U12>) {
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(&self.0[..32]);
        let mut nonce = GcmNonce::default();
        nonce.copy_from_slice(&self.0[32..]);
        (Aes256Gcm::new(&(*key).into()), nonce)
    }
}

fn bound_response(request: &[u8], status: u16) -> Vec<u8> {
    [request, &status.to_le_bytes()].concat()
}

/// A client that waits for the response to one request.
pub struct AwaitResponse {
    secret: Secret,
    aad: Vec<u8>,
}

impl fmt::Debug for AwaitResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AwaitResponse(…)")
    }
}

impl AwaitResponse {
    /// Opens the response that came with an HTTP status.
    ///
    /// # Errors
    /// [`MailError::Malformed`], [`MailError::DoesNotOpen`].
    pub fn open(self, status: u16, response: &[u8]) -> Result<Vec<u8>, MailError> {
        let ciphertext = response
            .strip_prefix(RESPONSE)
            .ok_or(MailError::Malformed)?;
        let (cipher, nonce) = self.secret.cipher();
        let payload = Payload {
            msg: ciphertext,
            aad: &bound_response(&self.aad, status),
        };
        let opened = cipher.decrypt(&nonce, payload);
        opened.map_err(|_| MailError::DoesNotOpen)
    }
}

/// A service that owes the response to one request. Sealing takes it, so its nonce serves once.
pub struct Reply {
    secret: Secret,
    aad: Vec<u8>,
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply(…)")
    }
}

impl Reply {
    /// Seals the response that goes out with an HTTP status.
    ///
    /// # Errors
    /// [`MailError::Malformed`] for a body that AES-GCM cannot take, of 64 GiB or more.
    pub fn seal(self, status: u16, body: &[u8]) -> Result<Vec<u8>, MailError> {
        let (cipher, nonce) = self.secret.cipher();
        let payload = Payload {
            msg: body,
            aad: &bound_response(&self.aad, status),
        };
        let ciphertext = cipher.encrypt(&nonce, payload);
        let ciphertext = ciphertext.map_err(|_| MailError::Malformed)?;
        Ok([&RESPONSE[..], &ciphertext].concat())
    }
}

/// A service's key for requests, and the requests that came lately. One process, never stored.
pub struct Inbox {
    private: <Dh as Kem>::PrivateKey,
    public: KemPublic,
    memory: Memory,
    seen: Mutex<Seen>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Inbox");
        shown.field("public", &self.public).finish_non_exhaustive()
    }
}

#[derive(Default)]
struct Seen {
    keys: HashSet<[u8; 32]>,
    /// When each may be forgotten, in the order of arrival.
    order: VecDeque<(u64, [u8; 32])>,
}

impl Seen {
    fn forget(&mut self, now: u64) {
        while let Some((until, key)) = self.order.front() {
            if *until >= now {
                break;
            }
            self.keys.remove(key);
            self.order.pop_front();
        }
    }

    fn remember(&mut self, key: [u8; 32], now: u64) -> Result<(), MailError> {
        self.forget(now);
        if self.keys.contains(&key) {
            return Err(MailError::Replayed);
        }
        if self.keys.len() >= REMEMBERED {
            return Err(MailError::Busy);
        }
        self.keys.insert(key);
        // A request's time is at most a window ahead, and is good for a window after that.
        self.order.push_back((now.saturating_add(2 * WINDOW), key));
        Ok(())
    }
}

impl Inbox {
    /// A new key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn fresh(memory: Memory) -> Result<Self, NoRandomness> {
        let (private, public) = key_pair()?;
        Ok(Self {
            private,
            public,
            memory,
            seen: Mutex::default(),
        })
    }

    /// What to have the platform sign for a client's nonce.
    pub fn statement(&self, nonce: Nonce) -> Statement {
        Statement::mailbox(&Mailbox { key: self.public }, nonce)
    }

    /// Opens a request that came to this target.
    ///
    /// # Errors
    /// [`MailError`]; only a request that opens is remembered.
    pub fn open(
        &self,
        target: &Target<'_>,
        request: &[u8],
        now: UnixTime,
    ) -> Result<(Locked<Vec<u8>>, Reply), MailError> {
        let Some((head, ciphertext)) = request.split_at_checked(REQUEST_HEAD) else {
            return Err(MailError::Malformed);
        };
        if &head[..8] != REQUEST {
            return Err(MailError::Malformed);
        }
        let (mut time, mut encapped) = ([0; 8], [0; 32]);
        time.copy_from_slice(&head[8..16]);
        encapped.copy_from_slice(&head[16..]);
        let time = u64::from_le_bytes(time);
        if time.abs_diff(now.0) > WINDOW {
            return Err(MailError::OutsideWindow);
        }
        let key =
            <Dh as Kem>::EncappedKey::from_bytes(&encapped).map_err(|_| MailError::Malformed)?;
        let mut context =
            setup_receiver::<AesGcm256, HkdfSha256, Dh>(&OpModeR::Base, &self.private, &key, INFO)
                .map_err(|_| MailError::DoesNotOpen)?;
        let aad = target.bound(time);
        let body = context
            .open(ciphertext, &aad)
            .map_err(|_| MailError::DoesNotOpen)?;
        let body = Locked::new(body, self.memory);
        let mut secret = Secret([0; 44]);
        let exported = context.export(EXPORT, &mut secret.0);
        exported.map_err(|_| MailError::DoesNotOpen)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.remember(encapped, now.0)?;
        Ok((body, Reply { secret, aad }))
    }
}
