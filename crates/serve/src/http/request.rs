//! A request for an inference: JSON, behind which tensors may follow in binary form.
//!
//! The JSON is read twice. First everything but the elements, so that types, shapes and limits are known; then the
//! elements, straight into the bytes of their tensors.

use std::fmt;
use std::time::Duration;

use axum::http::HeaderMap;
use axum::http::header::CONTENT_LENGTH;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use zeroize::Zeroizing;

use super::JSON_LENGTH;
use super::elements::Elements;
use crate::refusal::Refusal;
use crate::service::shorten;
use crate::tensor::{self, Datatype, Tensor};

/// Most tensors of a request.
pub(crate) const MAX_TENSORS: usize = 256;

/// Longest name that a client may give its request.
pub(crate) const LONGEST_ID: usize = 256;

/// What the client wants beyond the inference itself.
pub(super) struct Wish {
    pub(super) id: String,
    pub(super) timeout: Option<Duration>,
    /// Whether outputs that say nothing about it are wanted in binary form.
    pub(super) binary: bool,
    outputs: Vec<WantedOutput>,
}

impl Wish {
    pub(super) fn names(&self) -> Vec<String> {
        self.outputs
            .iter()
            .map(|output| output.name.clone())
            .collect()
    }

    /// Whether an output goes out in binary form.
    pub(super) fn is_binary(&self, output: &str) -> bool {
        let wanted = self.outputs.iter().find(|wanted| wanted.name == output);
        let said = wanted.and_then(|wanted| wanted.parameters.binary_data);
        said.unwrap_or(self.binary)
    }
}

/// A request, read.
pub(super) struct Parsed {
    pub(super) wish: Wish,
    pub(super) inputs: Vec<Tensor>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    id: String,
    #[serde(default)]
    parameters: RequestParameters,
    inputs: Vec<InputHead>,
    #[serde(default)]
    outputs: Vec<WantedOutput>,
}

#[derive(Deserialize, Default)]
struct RequestParameters {
    #[serde(default)]
    binary_data_output: bool,
    /// Microseconds.
    timeout: Option<u64>,
}

#[derive(Deserialize)]
struct InputHead {
    name: String,
    datatype: String,
    shape: Vec<i64>,
    #[serde(default)]
    parameters: InputParameters,
    data: Option<IgnoredAny>,
}

#[derive(Deserialize, Default)]
struct InputParameters {
    binary_data_size: Option<u64>,
}

#[derive(Deserialize)]
struct WantedOutput {
    name: String,
    #[serde(default)]
    parameters: OutputParameters,
}

#[derive(Deserialize, Default)]
struct OutputParameters {
    binary_data: Option<bool>,
}

/// The length of the body that a request declares.
pub(super) fn declared(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// How many bytes of the body are JSON, where it says so.
pub(super) fn json_length(headers: &HeaderMap) -> Result<Option<usize>, Refusal> {
    let Some(value) = headers.get(JSON_LENGTH) else {
        return Ok(None);
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| {
        Refusal::Invalid("Inference-Header-Content-Length is no number of bytes".to_owned())
    })
}

/// What is wrong with JSON, for the client alone: it may repeat a piece of the request.
pub(super) fn malformed(err: &serde_json::Error) -> Refusal {
    Refusal::Invalid(format!(
        "the JSON of the request is not what it should be: {err}"
    ))
}

/// Reads a request, of which `length` bytes are JSON.
pub(super) fn parse(body: &[u8], length: usize) -> Result<Parsed, Refusal> {
    let Some((json, mut binary)) = body.split_at_checked(length) else {
        return Err(Refusal::Invalid(format!(
            "the body has {} bytes, fewer than the {length} that are said to be JSON",
            body.len()
        )));
    };
    let head: Head = serde_json::from_slice(json).map_err(|err| malformed(&err))?;
    if head.inputs.len() > MAX_TENSORS || head.outputs.len() > MAX_TENSORS {
        return Err(Refusal::Invalid(format!("more than {MAX_TENSORS} tensors")));
    }
    if head.id.len() > LONGEST_ID {
        return Err(Refusal::Invalid(format!(
            "an id of more than {LONGEST_ID} bytes"
        )));
    }
    let mut wanted = Vec::with_capacity(head.inputs.len());
    for input in &head.inputs {
        let of = |why: tensor::TensorError| {
            Refusal::Invalid(format!("input `{}`: {why}", shorten(&input.name)))
        };
        let datatype: Datatype = input.datatype.parse().map_err(of)?;
        let (_, elements) = tensor::shape(&input.shape).map_err(of)?;
        wanted.push(Slot {
            datatype,
            elements,
            bytes: Zeroizing::new(Vec::new()),
        });
    }
    if head.inputs.iter().any(|input| input.data.is_some()) {
        let mut from = serde_json::Deserializer::from_slice(json);
        Body(&mut wanted)
            .deserialize(&mut from)
            .map_err(|err| malformed(&err))?;
    }
    let mut inputs = Vec::with_capacity(head.inputs.len());
    for (input, slot) in head.inputs.into_iter().zip(wanted) {
        let name = shorten(&input.name);
        let bytes = match (input.data, input.parameters.binary_data_size) {
            (Some(_), None) => slot.bytes,
            (None, Some(size)) => {
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                let Some((taken, rest)) = binary.split_at_checked(size) else {
                    return Err(Refusal::Invalid(format!(
                        "input `{name}`: binary_data_size is {size}, but {} bytes are left behind the JSON",
                        binary.len()
                    )));
                };
                binary = rest;
                Zeroizing::new(taken.to_vec())
            }
            (Some(_), Some(_)) => {
                return Err(Refusal::Invalid(format!(
                    "input `{name}` has both data and binary_data_size"
                )));
            }
            (None, None) => {
                return Err(Refusal::Invalid(format!(
                    "input `{name}` has neither data nor binary_data_size"
                )));
            }
        };
        let (shape, _) = tensor::shape(&input.shape)?;
        let tensor = Tensor::new(input.name, slot.datatype, shape, bytes)
            .map_err(|why| Refusal::Invalid(format!("input `{name}`: {why}")))?;
        inputs.push(tensor);
    }
    if !binary.is_empty() {
        return Err(Refusal::Invalid(format!(
            "{} bytes behind the JSON belong to no input",
            binary.len()
        )));
    }
    let timeout = head.parameters.timeout;
    Ok(Parsed {
        wish: Wish {
            id: head.id,
            // None, as Triton has it, where it is 0.
            timeout: timeout.filter(|time| *time > 0).map(Duration::from_micros),
            binary: head.parameters.binary_data_output,
            outputs: head.outputs,
        },
        inputs,
    })
}

/// Where the elements of an input go.
struct Slot {
    datatype: Datatype,
    elements: usize,
    bytes: Zeroizing<Vec<u8>>,
}

/// The second reading: `inputs` of the object, everything else unread.
struct Body<'a>(&'a mut [Slot]);

impl<'de> DeserializeSeed<'de> for Body<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Body<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a request")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "inputs" => map.next_value_seed(Inputs(&mut *self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

struct Inputs<'a>(&'a mut [Slot]);

impl<'de> DeserializeSeed<'de> for Inputs<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Inputs<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of inputs")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for slot in self.0 {
            if seq.next_element_seed(Input(slot))?.is_none() {
                break;
            }
        }
        Ok(())
    }
}

struct Input<'a>(&'a mut Slot);

impl<'de> DeserializeSeed<'de> for Input<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Input<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an input")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "data" => map.next_value_seed(MayBeNull(&mut *self.0))?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }
}

/// `data`, where `null` means that there is none.
struct MayBeNull<'a>(&'a mut Slot);

impl<'de> DeserializeSeed<'de> for MayBeNull<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for MayBeNull<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of elements")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        let slot = self.0;
        Elements {
            datatype: slot.datatype,
            expected: slot.elements,
            bytes: &mut slot.bytes,
        }
        .deserialize(from)
    }
}
