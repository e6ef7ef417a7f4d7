//! What a service says about itself, behind two HTTP paths.
//!
//! | request | answer |
//! |---|---|
//! | `GET /attestation?purpose=channel&nonce=N` | evidence about the TLS key and this very connection |
//! | `GET /attestation?purpose=mailbox&nonce=N` | evidence about the key that requests are sealed to |
//! | `GET /attestation?purpose=release&nonce=N&model=M` | evidence about a key made for this question |
//! | `POST /release`, body: a [`Grant`] | takes the model's key |
//!
//! N and M have 64 hexadecimal digits. The exporter comes from the connection that the request came
//! on ([`crate::channel::exporter`]), never from the request.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, PoisonError};

use crate::attester::{AttestError, Attester};
use crate::channel::Identity;
use crate::mailbox::Inbox;
use crate::memory::{Locked, Memory};
use crate::platform::Platform;
use crate::release::{Grant, Recipient, ReleaseError};
use crate::seal::ContentKey;
use crate::statement::{Channel, Exporter, KeyHash, ModelId, NoRandomness, Nonce, Statement};

/// Questions for a release that may be open; the oldest makes way.
const OPEN: usize = 64;

/// Where grants are taken.
pub const RELEASE_PATH: &str = "/release";

/// A question for evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Question {
    /// About the connection.
    Channel(Nonce),
    /// About the key for sealed requests.
    Mailbox(Nonce),
    /// About a key for a model's key.
    Release(Nonce, ModelId),
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// Not a question. HTTP 400.
    #[error(
        "purpose=channel|mailbox|release and nonce=<64 hexadecimal digits> are wanted, and with \
         release model=<64 digits>; nothing else"
    )]
    Question,
    /// Asked on a connection without TLS of the service's own. HTTP 400.
    #[error("there is no TLS connection with this service to attest; ask for purpose=mailbox")]
    NoChannel,
    /// The platform gives no evidence. HTTP 503.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The system gives no randomness. HTTP 503.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

impl Question {
    /// Reads the query of a URL, without the question mark.
    ///
    /// # Errors
    /// [`AnswerError::Question`].
    pub fn parse(query: &str) -> Result<Self, AnswerError> {
        let (mut purpose, mut nonce, mut model) = (None, None, None);
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').ok_or(AnswerError::Question)?;
            let place = match name {
                "purpose" => &mut purpose,
                "nonce" => &mut nonce,
                "model" => &mut model,
                _ => return Err(AnswerError::Question),
            };
            if place.replace(value).is_some() {
                return Err(AnswerError::Question);
            }
        }
        let nonce = nonce.and_then(Nonce::from_hex);
        let nonce = nonce.ok_or(AnswerError::Question)?;
        match (purpose, model) {
            (Some("channel"), None) => Ok(Self::Channel(nonce)),
            (Some("mailbox"), None) => Ok(Self::Mailbox(nonce)),
            (Some("release"), Some(model)) => {
                let model = ModelId::from_hex(model).ok_or(AnswerError::Question)?;
                Ok(Self::Release(nonce, model))
            }
            _ => Err(AnswerError::Question),
        }
    }
}

/// The keys of one process and the platform that vouches for them.
pub struct Service {
    attester: Box<dyn Attester>,
    key: KeyHash,
    inbox: Inbox,
    memory: Memory,
    waiting: Mutex<VecDeque<Recipient>>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Service");
        shown.field("key", &self.key).finish_non_exhaustive()
    }
}

impl Service {
    /// A service with this TLS key.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn new(
        attester: Box<dyn Attester>,
        identity: &Identity,
        memory: Memory,
    ) -> Result<Self, NoRandomness> {
        Ok(Self {
            attester,
            key: identity.key(),
            inbox: Inbox::fresh(memory)?,
            memory,
            waiting: Mutex::default(),
        })
    }

    /// The platform.
    pub fn platform(&self) -> Platform {
        self.attester.platform()
    }

    /// Whether memory is locked, for metadata.
    pub fn memory(&self) -> Memory {
        self.memory
    }

    /// Opens sealed requests.
    pub fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// Answers with encoded evidence (`application/json`). `exporter` is that of the connection that
    /// the question came on. May take as long as the platform takes: call it off the event loop.
    ///
    /// # Errors
    /// [`AnswerError`].
    pub fn answer(
        &self,
        question: Question,
        exporter: Option<Exporter>,
    ) -> Result<Vec<u8>, AnswerError> {
        match question {
            Question::Channel(nonce) => {
                let exporter = exporter.ok_or(AnswerError::NoChannel)?;
                let channel = Channel {
                    key: self.key,
                    exporter,
                };
                self.evidence(&Statement::channel(&channel, nonce))
            }
            Question::Mailbox(nonce) => self.evidence(&self.inbox.statement(nonce)),
            Question::Release(nonce, model) => {
                let recipient = Recipient::fresh(model, nonce)?;
                let evidence = self.evidence(&recipient.statement())?;
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                if waiting.len() >= OPEN {
                    waiting.pop_front();
                }
                waiting.push_back(recipient);
                Ok(evidence)
            }
        }
    }

    fn evidence(&self, statement: &Statement) -> Result<Vec<u8>, AnswerError> {
        Ok(self.attester.attest(statement)?.encode())
    }

    /// Takes the body of `POST /release`: a model's key, and which model.
    ///
    /// # Errors
    /// [`ReleaseError`]. HTTP 400.
    pub fn accept(&self, body: &[u8]) -> Result<(ModelId, Locked<ContentKey>), ReleaseError> {
        let grant = Grant::from_bytes(body)?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.is_empty() {
            return Err(ReleaseError::NotAwaited);
        }
        for at in 0..waiting.len() {
            if let Ok(key) = waiting[at].accept(&grant, self.memory) {
                let model = waiting[at].model();
                waiting.remove(at);
                return Ok((model, key));
            }
        }
        Err(ReleaseError::DoesNotOpen)
    }
}
