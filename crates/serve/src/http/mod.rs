//! The Open Inference Protocol over HTTP, with tensors as JSON or in the binary form of its extension.
//!
//! Source: Open Inference Protocol v2, HTTP/REST; Triton's binary tensor data extension, which its clients use where
//! nobody tells them otherwise.

mod body;
mod elements;
mod reply;
mod request;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::{ALLOW, CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::confidential::{self, Came};
use crate::engine::Engine;
use crate::refusal::{self, Refusal};
use crate::repository::VERSION;
use crate::service::Service;
use crate::tensor::Port;

pub(crate) use body::collect;
pub(crate) use request::{LONGEST_ID, MAX_TENSORS};

/// Says how many bytes of a binary request or reply are JSON.
const JSON_LENGTH: &str = "inference-header-content-length";

/// The most bytes of a request that asks for the index, or to load.
const SMALL: usize = 64 << 10;

/// What this server calls itself.
pub(crate) const SERVER: &str = "larvatus";

/// Extensions of the protocol that are here.
pub(crate) const EXTENSIONS: [&str; 2] = ["binary_tensor_data", "model_repository"];

/// The document that describes this interface.
const OPENAPI: &str = include_str!("openapi.json");

type Shared = State<Arc<Service>>;

/// All routes.
pub(crate) fn routes(service: Arc<Service>) -> Router {
    Router::new()
        .route("/v2", get(server))
        .route("/v2/health/live", get(live))
        .route("/v2/health/ready", get(ready))
        .route("/v2/models/{model}", get(model))
        .route("/v2/models/{model}/ready", get(model_ready))
        .route("/v2/models/{model}/infer", post(infer))
        .route("/v2/models/{model}/versions/{version}", get(model))
        .route(
            "/v2/models/{model}/versions/{version}/ready",
            get(model_ready),
        )
        .route("/v2/models/{model}/versions/{version}/infer", post(infer))
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .fallback(nothing)
        .method_not_allowed_fallback(wrong_method)
        .with_state(service)
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status(), &json!({ "error": self.to_string() }));
        if self.passes() {
            let headers = response.headers_mut();
            headers.insert(RETRY_AFTER, HeaderValue::from(refusal::RETRY_AFTER));
        }
        response
    }
}

/// A reply of JSON.
fn json_response(status: StatusCode, value: &Value) -> Response {
    let kind = [(CONTENT_TYPE, "application/json")];
    (status, kind, value.to_string()).into_response()
}

fn ok(value: &Value) -> Response {
    json_response(StatusCode::OK, value)
}

async fn nothing() -> Refusal {
    Refusal::NotFound("there is no such path; GET /openapi.json lists them".to_owned())
}

async fn wrong_method(method: Method, uri: axum::http::Uri) -> Response {
    let post = ["/infer", "/index", "/load", "/unload"];
    let allowed = match post.iter().any(|end| uri.path().ends_with(end)) {
        true => "POST",
        false => "GET, HEAD",
    };
    let error = format!("this path takes {allowed}, not {method}");
    let mut response = json_response(StatusCode::METHOD_NOT_ALLOWED, &json!({ "error": error }));
    response
        .headers_mut()
        .insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

async fn live() -> Response {
    ok(&json!({ "live": true }))
}

/// The specification wants a status of 4xx for "no".
fn whether(key: &str, yes: bool) -> Response {
    let status = if yes {
        StatusCode::OK
    } else {
        StatusCode::BAD_REQUEST
    };
    let mut said = json!({ "ready": yes });
    if !key.is_empty() {
        said["name"] = key.into();
    }
    json_response(status, &said)
}

async fn ready(State(service): Shared) -> Response {
    whether("", service.is_ready())
}

/// Who vouches for this process.
fn platform(service: &Service) -> &'static str {
    let confidential = service.confidential.as_ref();
    confidential.map_or("none", |confidential| {
        confidential.service.platform().name()
    })
}

async fn server(State(service): Shared) -> Response {
    ok(&json!({
        "name": SERVER,
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": EXTENSIONS,
        "memory_locked": service.settings.memory_locked,
        "platform": platform(&service),
    }))
}

/// Which model a path names.
#[derive(Deserialize)]
struct Which {
    model: String,
    #[serde(default)]
    version: String,
}

async fn model_ready(State(service): Shared, Path(which): Path<Which>) -> Response {
    let ready = service.model_is_ready(&which.model, &which.version);
    // A name that is no model's is not repeated.
    let name = if ready { which.model.as_str() } else { "" };
    whether(name, ready)
}

async fn model(State(service): Shared, Path(which): Path<Which>) -> Result<Response, Refusal> {
    let loaded = service.repository.get(&which.model, &which.version)?;
    let engine: &dyn Engine = loaded.engine();
    let ports = |ports: &[Port]| -> Vec<Value> {
        let port = |port: &Port| {
            json!({
                "name": port.name,
                "datatype": port.datatype.name(),
                "shape": port.wire_shape(),
            })
        };
        ports.iter().map(port).collect()
    };
    let properties: serde_json::Map<String, Value> = engine
        .properties()
        .into_iter()
        .map(|(key, value)| (key, value.into()))
        .collect();
    Ok(ok(&json!({
        "name": loaded.name(),
        "versions": [VERSION],
        "platform": engine.platform(),
        "inputs": ports(engine.inputs()),
        "outputs": ports(engine.outputs()),
        "properties": properties,
    })))
}

async fn metrics(State(service): Shared) -> Response {
    let kind = [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, service.metrics_page()).into_response()
}

async fn openapi() -> Response {
    ([(CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[derive(Deserialize, Default)]
struct IndexRequest {
    #[serde(default)]
    ready: bool,
}

async fn index(
    State(service): Shared,
    request: axum::http::Request<Body>,
) -> Result<Response, Refusal> {
    let deadline = service.deadline(None);
    let body = collect(request.into_body(), None, SMALL, deadline).await?;
    let wanted: IndexRequest = match body.is_empty() {
        true => IndexRequest::default(),
        false => serde_json::from_slice(&body).map_err(|err| request::malformed(&err))?,
    };
    let entries = service.repository.index();
    let entries = entries.iter().filter(|entry| entry.ready || !wanted.ready);
    let entries = entries.map(|entry| {
        json!({
            "name": entry.name,
            "version": VERSION,
            "state": entry.state,
            "reason": entry.reason,
        })
    });
    Ok(ok(&Value::Array(entries.collect())))
}

async fn load(
    State(service): Shared,
    Path(which): Path<Which>,
    request: axum::http::Request<Body>,
) -> Result<Response, Refusal> {
    control(&service, which, request, true).await
}

async fn unload(
    State(service): Shared,
    Path(which): Path<Which>,
    request: axum::http::Request<Body>,
) -> Result<Response, Refusal> {
    control(&service, which, request, false).await
}

async fn control(
    service: &Arc<Service>,
    which: Which,
    request: axum::http::Request<Body>,
    load: bool,
) -> Result<Response, Refusal> {
    // Parameters of other servers mean nothing here, but are read, so that the connection can be used again.
    let deadline = service.deadline(None);
    collect(request.into_body(), None, SMALL, deadline).await?;
    service.control(which.model, load).await?;
    Ok(ok(&json!({})))
}

async fn infer(
    State(service): Shared,
    Path(which): Path<Which>,
    request: axum::http::Request<Body>,
) -> Response {
    match attempt(&service, &which, request).await {
        Ok(response) => response,
        Err(stopped) => stopped.counted(&service, &which).into_response(),
    }
}

/// Whether a refusal has been counted.
enum Stopped {
    Early(Refusal),
    Counted(Refusal),
}

impl Stopped {
    /// Counts it, if nobody has.
    fn counted(self, service: &Service, which: &Which) -> Refusal {
        match self {
            Self::Counted(why) => why,
            Self::Early(why) => {
                let known = service.repository.knows(&which.model);
                let name = if known { which.model.as_str() } else { "" };
                service.count(name, Some(&why), Instant::now());
                why
            }
        }
    }
}

async fn attempt(
    service: &Arc<Service>,
    which: &Which,
    request: axum::http::Request<Body>,
) -> Result<Response, Stopped> {
    // Held until the answer is made.
    let _admission = service.admit().map_err(Stopped::Early)?;
    let latest = service.deadline(None);
    let (head, body) = request.into_parts();
    let headers = &head.headers;
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(Stopped::Early(Refusal::Invalid(
            "compressed requests are not taken; send the body as it is".to_owned(),
        )));
    }
    let sealed = confidential::is_sealed(headers);
    if !sealed {
        let came = head.extensions.get::<Came>().copied();
        confidential::may_be_in_clear(service, came).map_err(Stopped::Early)?;
    }
    let length = request::json_length(headers).map_err(Stopped::Early)?;
    let declared = request::declared(headers);
    let body = collect(body, declared, service.settings.max_request, latest)
        .await
        .map_err(Stopped::Early)?;
    if !sealed {
        let length = length.unwrap_or(body.len());
        let (length, reply) = work(service, which, &body, length, latest).await?;
        return Ok(reply::respond(length, reply));
    }
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let opened = confidential::open(service, path, &which.model, &body).map_err(Stopped::Early)?;
    drop(body);
    let answered = match opened.frame() {
        Ok((length, body)) => work(service, which, body, length, latest).await,
        Err(why) => Err(Stopped::Early(why)),
    };
    // What went wrong behind the seal is told behind the seal.
    Ok(match answered {
        Ok((length, reply)) => opened.seal(StatusCode::OK, length, &reply),
        Err(stopped) => {
            let why = stopped.counted(service, which);
            let said = json!({ "error": why.to_string() }).to_string();
            opened.seal(why.status(), said.len(), said.as_bytes())
        }
    })
}

/// An inference, from the bytes of a request to those of the reply: how many of them are JSON, and all.
async fn work(
    service: &Arc<Service>,
    which: &Which,
    body: &[u8],
    length: usize,
    latest: Instant,
) -> Result<(usize, Vec<u8>), Stopped> {
    let parsed = request::parse(body, length).map_err(Stopped::Early)?;
    let (wish, inputs) = (parsed.wish, parsed.inputs);
    let reply = service
        .infer(crate::service::Request {
            model: which.model.clone(),
            version: which.version.clone(),
            inputs,
            outputs: wish.names(),
            deadline: service.deadline(wish.timeout).min(latest),
        })
        .await
        .map_err(Stopped::Counted)?;
    reply::write(&which.model, &wish, &reply.outputs).map_err(Stopped::Counted)
}
