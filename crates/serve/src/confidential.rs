//! Clients that want to know to whom they speak: evidence about this process, requests sealed to it, and keys of models
//! that owners release to it. What all that means is `larvatus-attest`; here it meets HTTP.
//!
//! | request | answer |
//! |---|---|
//! | `GET /attestation?…` | evidence, about the TLS connection that asks, a key for sealed requests, or one for a model's key |
//! | `POST /release` | takes the key of a sealed model, and loads it |
//! | `POST /v2/models/M/infer` with sealed content | an inference whose request and reply only the two ends can read |
//!
//! A sealed body is, once opened, a frame: the length of the JSON as u32, little-endian, the JSON, then what follows it
//! in binary form. So is a sealed reply; errors are JSON in such a frame.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, RawQuery, Request, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use larvatus_attest::channel::Identity;
use larvatus_attest::mailbox::{self, MailError, Reply, Target};
use larvatus_attest::memory::Locked;
use larvatus_attest::release::GRANT;
use larvatus_attest::seal::ContentKey;
use larvatus_attest::service::{AnswerError, Question, Service as Attested};
use larvatus_attest::statement::{Exporter, ModelId, UnixTime};

use crate::http::collect;
use crate::refusal::Refusal;
use crate::service::Service;

/// Who keeps the keys of sealed models.
pub trait Keyring: Send + Sync {
    /// Takes a key; the name of the model that can be loaded now, if the repository has one of that id.
    fn take(&self, model: ModelId, key: Locked<ContentKey>) -> Option<String>;
}

/// What makes a server a confidential one.
pub struct Confidential {
    /// Its TLS key, as old as the process.
    pub identity: Identity,
    /// The platform that vouches for it.
    pub service: Arc<Attested>,
    /// Where released keys go.
    pub keyring: Box<dyn Keyring>,
}

/// How a request came: over TLS that ends in this process, with this exporter, or not.
#[derive(Clone, Copy)]
pub(crate) struct Came(pub(crate) Option<Exporter>);

/// Routes of a confidential server.
pub(crate) fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/attestation", get(attestation))
        .route("/release", post(release))
        .with_state(service)
}

fn none() -> Refusal {
    Refusal::NotFound(
        "this service has no platform that vouches for it; it was started without --attest"
            .to_owned(),
    )
}

/// Seconds since 1970.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

async fn attestation(
    State(service): State<Arc<Service>>,
    came: Option<Extension<Came>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Refusal> {
    let confidential = service.confidential.as_ref().ok_or_else(none)?;
    let question = Question::parse(query.as_deref().unwrap_or_default());
    let question = question.map_err(|why| Refusal::Invalid(why.to_string()))?;
    let exporter = came.and_then(|came| came.0.0);
    // Platforms are slow, and cannot be asked without end.
    let _admission = service.admit()?;
    let platform = Arc::clone(&confidential.service);
    let asked = tokio::task::spawn_blocking(move || platform.answer(question, exporter));
    let answer = asked
        .await
        .map_err(|_| Refusal::Failed("no evidence: a fault of this program".to_owned()))?;
    let evidence = answer.map_err(|why| match why {
        AnswerError::Question | AnswerError::NoChannel => Refusal::Invalid(why.to_string()),
        other => {
            tracing::error!(%other, "no evidence");
            Refusal::Unavailable("the platform gives no evidence now".to_owned())
        }
    })?;
    service.metrics.attested();
    Ok(([(CONTENT_TYPE, "application/json")], evidence).into_response())
}

async fn release(
    State(service): State<Arc<Service>>,
    request: Request,
) -> Result<Response, Refusal> {
    let confidential = service.confidential.as_ref().ok_or_else(none)?;
    let deadline = service.deadline(None);
    let body = collect(request.into_body(), None, GRANT, deadline).await?;
    let accepted = confidential.service.accept(&body);
    let (model, key) = accepted.map_err(|why| Refusal::Invalid(why.to_string()))?;
    let name = confidential.keyring.take(model, key);
    let name = name.ok_or_else(|| {
        Refusal::NotFound(format!(
            "the key of model {model} is taken, but the repository has no such file"
        ))
    })?;
    let loading = Arc::clone(&service);
    let loaded = tokio::task::spawn_blocking(move || loading.repository.load(&name).map(|()| name));
    let name = loaded
        .await
        .map_err(|_| Refusal::Failed("loading ended with a fault of this program".to_owned()))??;
    let said = serde_json::json!({ "loaded": name }).to_string();
    Ok(([(CONTENT_TYPE, "application/json")], said).into_response())
}

/// Whether a request's content is sealed.
pub(crate) fn is_sealed(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == mailbox::CONTENT_TYPE.as_bytes())
}

/// A sealed request, opened.
pub(crate) struct Opened {
    body: Locked<Vec<u8>>,
    reply: Reply,
}

/// Opens a request to a path for a model.
pub(crate) fn open(
    service: &Service,
    path: &str,
    model: &str,
    sealed: &[u8],
) -> Result<Opened, Refusal> {
    let confidential = service.confidential.as_ref().ok_or_else(none)?;
    let target = Target {
        method: "POST",
        path,
        model,
    };
    let (body, reply) = confidential
        .service
        .inbox()
        .open(&target, sealed, now())
        .map_err(|why| match why {
            MailError::Busy => Refusal::Busy {
                limit: service.settings.admit,
            },
            other => Refusal::Invalid(other.to_string()),
        })?;
    Ok(Opened { body, reply })
}

impl Opened {
    /// How many bytes are JSON, and these with what follows.
    pub(crate) fn frame(&self) -> Result<(usize, &[u8]), Refusal> {
        let (length, rest) = self.body.split_first_chunk().ok_or_else(|| {
            Refusal::Invalid("the sealed body is shorter than the length of its JSON".to_owned())
        })?;
        Ok((u32::from_le_bytes(*length) as usize, rest))
    }

    /// Seals an answer.
    pub(crate) fn seal(self, status: StatusCode, length: usize, body: &[u8]) -> Response {
        let Ok(short) = u32::try_from(length) else {
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        };
        let frame = zeroize::Zeroizing::new([&short.to_le_bytes(), body].concat());
        match self.reply.seal(status.as_u16(), &frame) {
            Ok(sealed) => (
                status,
                [(CONTENT_TYPE, mailbox::CONTENT_TYPE)],
                Body::from(sealed),
            )
                .into_response(),
            Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        }
    }
}

/// Holds the inputs of clients that know nothing of attestation off, where they came without TLS of this process.
pub(crate) fn may_be_in_clear(service: &Service, came: Option<Came>) -> Result<(), Refusal> {
    let over_tls = came.is_some_and(|came| came.0.is_some());
    match &service.confidential {
        Some(_) if !over_tls => Err(Refusal::Forbidden(
            "this service takes inputs over its own TLS, or sealed; not in clear".to_owned(),
        )),
        _ => Ok(()),
    }
}
