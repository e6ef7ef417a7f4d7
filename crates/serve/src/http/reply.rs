//! The reply to an inference: JSON, behind it the outputs that were asked for in binary form.

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::JSON_LENGTH;
use super::elements::Flat;
use super::request::Wish;
use crate::refusal::Refusal;
use crate::repository::VERSION;
use crate::tensor::{Datatype, Tensor};

#[derive(Serialize)]
struct Head<'a> {
    model_name: &'a str,
    model_version: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    outputs: Vec<Output<'a>>,
}

#[derive(Serialize)]
struct Output<'a> {
    name: &'a str,
    datatype: &'a str,
    shape: &'a [usize],
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<Parameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Flat<'a>>,
}

#[derive(Serialize)]
struct Parameters {
    binary_data_size: usize,
}

/// Writes it: how many bytes are JSON, and all bytes.
pub(super) fn write(
    model: &str,
    wish: &Wish,
    outputs: &[Tensor],
) -> Result<(usize, Vec<u8>), Refusal> {
    let mut tail: Vec<&[u8]> = Vec::new();
    let mut heads = Vec::with_capacity(outputs.len());
    for output in outputs {
        let binary = wish.is_binary(output.name());
        if binary {
            tail.push(output.bytes());
        } else {
            in_json(output)?;
        }
        heads.push(Output {
            name: output.name(),
            datatype: output.datatype().name(),
            shape: output.shape(),
            parameters: binary.then(|| Parameters {
                binary_data_size: output.bytes().len(),
            }),
            data: (!binary).then_some(Flat(output)),
        });
    }
    let head = Head {
        model_name: model,
        model_version: VERSION,
        id: &wish.id,
        outputs: heads,
    };
    let mut body = serde_json::to_vec(&head)
        .map_err(|err| Refusal::Failed(format!("the reply cannot be written: {err}")))?;
    let length = body.len();
    body.reserve_exact(tail.iter().map(|bytes| bytes.len()).sum());
    for bytes in tail {
        body.extend_from_slice(bytes);
    }
    Ok((length, body))
}

/// A response of these bytes, of which so many are JSON.
pub(super) fn respond(length: usize, body: Vec<u8>) -> Response {
    if length == body.len() {
        return ([(CONTENT_TYPE, "application/json")], body).into_response();
    }
    let mut response = ([(CONTENT_TYPE, "application/octet-stream")], body).into_response();
    response.headers_mut().insert(
        HeaderName::from_static(JSON_LENGTH),
        HeaderValue::from(length),
    );
    response
}

/// That JSON can carry it.
fn in_json(output: &Tensor) -> Result<(), Refusal> {
    let bytes = output.bytes();
    let fits = match output.datatype() {
        Datatype::Fp16 => false,
        Datatype::Fp32 => {
            let (values, _) = bytes.as_chunks();
            values
                .iter()
                .all(|value| f32::from_le_bytes(*value).is_finite())
        }
        Datatype::Fp64 => {
            let (values, _) = bytes.as_chunks();
            values
                .iter()
                .all(|value| f64::from_le_bytes(*value).is_finite())
        }
        _ => true,
    };
    match fits {
        true => Ok(()),
        false => Err(Refusal::Invalid(format!(
            "output `{}` cannot be written in JSON (FP16, or values that are not finite); ask for it in binary form",
            output.name()
        ))),
    }
}
