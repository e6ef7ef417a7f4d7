//! Tensors in and out of gRPC's messages.

use std::time::{Duration, Instant};

use bytes::Bytes;
use zeroize::Zeroizing;

use super::timeout_parameter;
use super::wire::model_infer_request::InferInputTensor;
use super::wire::model_infer_response::InferOutputTensor;
use super::wire::{InferTensorContents, ModelInferRequest, ModelInferResponse};
use crate::http::{LONGEST_ID, MAX_TENSORS};
use crate::refusal::Refusal;
use crate::repository::VERSION;
use crate::service::{self, shorten};
use crate::tensor::{self, Datatype, Tensor};

/// A message's inference. `deadline` makes one of what the message wishes.
pub(super) fn request(
    message: ModelInferRequest,
    deadline: impl FnOnce(Option<Duration>) -> Instant,
) -> Result<service::Request, Refusal> {
    let ModelInferRequest {
        model_name,
        model_version,
        id,
        parameters,
        inputs,
        outputs,
        raw_input_contents: raw,
    } = message;
    if inputs.len() > MAX_TENSORS || outputs.len() > MAX_TENSORS {
        return Err(Refusal::Invalid(format!("more than {MAX_TENSORS} tensors")));
    }
    if id.len() > LONGEST_ID {
        return Err(Refusal::Invalid(format!(
            "an id of more than {LONGEST_ID} bytes"
        )));
    }
    if !raw.is_empty() && raw.len() != inputs.len() {
        return Err(Refusal::Invalid(format!(
            "{} raw contents for {} inputs; each has one, or none has",
            raw.len(),
            inputs.len()
        )));
    }
    let deadline = deadline(timeout_parameter(parameters.get("timeout"))?);
    let mut raw = raw.into_iter();
    let inputs = inputs.into_iter().map(|input| read(input, raw.next()));
    Ok(service::Request {
        model: model_name,
        version: model_version,
        inputs: inputs.collect::<Result<_, _>>()?,
        outputs: outputs.into_iter().map(|output| output.name).collect(),
        deadline,
    })
}

fn read(input: InferInputTensor, raw: Option<Bytes>) -> Result<Tensor, Refusal> {
    let named = |why: String| Refusal::Invalid(format!("input `{}`: {why}", shorten(&input.name)));
    let of = |why: tensor::TensorError| named(why.to_string());
    let datatype: Datatype = input.datatype.parse().map_err(of)?;
    let (shape, elements) = tensor::shape(&input.shape).map_err(of)?;
    let bytes = match (raw, &input.contents) {
        (Some(raw), None) => Zeroizing::new(raw.to_vec()),
        (Some(_), Some(_)) => return Err(named("both contents and raw contents".to_owned())),
        (None, None) if elements == 0 => Zeroizing::new(Vec::new()),
        (None, None) => return Err(named("no contents".to_owned())),
        (None, Some(contents)) => typed(contents, datatype).map_err(named)?,
    };
    Tensor::new(input.name.clone(), datatype, shape, bytes).map_err(of)
}

/// The bytes of typed contents; those of other types must be empty.
fn typed(contents: &InferTensorContents, datatype: Datatype) -> Result<Zeroizing<Vec<u8>>, String> {
    let of = contents;
    let fields = [
        ("bool_contents", of.bool_contents.len()),
        ("int_contents", of.int_contents.len()),
        ("int64_contents", of.int64_contents.len()),
        ("uint_contents", of.uint_contents.len()),
        ("uint64_contents", of.uint64_contents.len()),
        ("fp32_contents", of.fp32_contents.len()),
        ("fp64_contents", of.fp64_contents.len()),
        ("bytes_contents", of.bytes_contents.len()),
    ];
    let own = match datatype {
        Datatype::Bool => "bool_contents",
        Datatype::Int8 | Datatype::Int16 | Datatype::Int32 => "int_contents",
        Datatype::Int64 => "int64_contents",
        Datatype::Uint8 | Datatype::Uint16 | Datatype::Uint32 => "uint_contents",
        Datatype::Uint64 => "uint64_contents",
        Datatype::Fp32 => "fp32_contents",
        Datatype::Fp64 => "fp64_contents",
        Datatype::Fp16 => return Err("FP16 has no typed contents; send them raw".to_owned()),
    };
    let stray = fields.iter().find(|(name, len)| *name != own && *len > 0);
    if let Some((name, _)) = stray {
        return Err(format!("{name} are given, but {datatype} is in {own}"));
    }
    let count = fields
        .iter()
        .find(|(name, _)| *name == own)
        .map_or(0, |of| of.1);
    let mut bytes = Zeroizing::new(Vec::with_capacity(count * datatype.size()));
    macro_rules! narrow {
        ($values:expr, $kind:ty) => {
            for value in $values {
                let value = <$kind>::try_from(*value)
                    .map_err(|_| format!("a value outside the range of {datatype}"))?;
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        };
    }
    macro_rules! plain {
        ($values:expr) => {
            for value in $values {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
        };
    }
    match datatype {
        Datatype::Bool => bytes.extend(of.bool_contents.iter().map(|value| u8::from(*value))),
        Datatype::Int8 => narrow!(&of.int_contents, i8),
        Datatype::Int16 => narrow!(&of.int_contents, i16),
        Datatype::Int32 => plain!(&of.int_contents),
        Datatype::Int64 => plain!(&of.int64_contents),
        Datatype::Uint8 => narrow!(&of.uint_contents, u8),
        Datatype::Uint16 => narrow!(&of.uint_contents, u16),
        Datatype::Uint32 => plain!(&of.uint_contents),
        Datatype::Uint64 => plain!(&of.uint64_contents),
        Datatype::Fp32 => plain!(&of.fp32_contents),
        Datatype::Fp64 => plain!(&of.fp64_contents),
        Datatype::Fp16 => {}
    }
    Ok(bytes)
}

/// The message of a reply: raw contents where the request had them, or where typed ones cannot carry an output.
pub(super) fn response(
    model: String,
    id: String,
    outputs: Vec<Tensor>,
    raw: bool,
) -> Result<ModelInferResponse, Refusal> {
    let raw = raw
        || outputs
            .iter()
            .any(|output| output.datatype() == Datatype::Fp16);
    let mut message = ModelInferResponse {
        model_name: model,
        model_version: VERSION.to_owned(),
        id,
        ..ModelInferResponse::default()
    };
    for output in outputs {
        let dims = output.shape().iter().map(|dim| i64::try_from(*dim));
        let shape = dims.collect::<Result<_, _>>();
        let shape =
            shape.map_err(|_| Refusal::Failed("an output of an impossible shape".to_owned()))?;
        message.outputs.push(InferOutputTensor {
            name: output.name().to_owned(),
            datatype: output.datatype().name().to_owned(),
            shape,
            contents: (!raw).then(|| contents(&output)),
            ..InferOutputTensor::default()
        });
        if raw {
            message
                .raw_output_contents
                .push(Bytes::copy_from_slice(output.bytes()));
        }
    }
    Ok(message)
}

fn contents(tensor: &Tensor) -> InferTensorContents {
    let mut of = InferTensorContents::default();
    let bytes = tensor.bytes();
    macro_rules! into {
        ($field:ident, $kind:ty) => {
            of.$field = bytes
                .as_chunks()
                .0
                .iter()
                .map(|value| <$kind>::from_le_bytes(*value).into())
                .collect()
        };
    }
    match tensor.datatype() {
        Datatype::Bool => of.bool_contents = bytes.iter().map(|byte| *byte == 1).collect(),
        Datatype::Int8 => into!(int_contents, i8),
        Datatype::Int16 => into!(int_contents, i16),
        Datatype::Int32 => into!(int_contents, i32),
        Datatype::Int64 => into!(int64_contents, i64),
        Datatype::Uint8 => into!(uint_contents, u8),
        Datatype::Uint16 => into!(uint_contents, u16),
        Datatype::Uint32 => into!(uint_contents, u32),
        Datatype::Uint64 => into!(uint64_contents, u64),
        Datatype::Fp32 => into!(fp32_contents, f32),
        Datatype::Fp64 => into!(fp64_contents, f64),
        // Raw, always.
        Datatype::Fp16 => {}
    }
    of
}

#[cfg(test)]
mod tests {
    use super::super::wire::infer_parameter::ParameterChoice;
    use super::*;

    fn input(
        datatype: &str,
        shape: &[i64],
        contents: Option<InferTensorContents>,
    ) -> InferInputTensor {
        InferInputTensor {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_vec(),
            contents,
            ..InferInputTensor::default()
        }
    }

    #[test]
    fn typed_contents_must_be_of_the_type_and_in_its_range() {
        let ints = |values: &[i32]| {
            Some(InferTensorContents {
                int_contents: values.to_vec(),
                ..InferTensorContents::default()
            })
        };
        let tensor = read(input("INT8", &[2], ints(&[-1, 2])), None).expect("in range");
        assert_eq!(tensor.bytes(), [255, 2]);
        for (of, contents) in [
            ("INT8", ints(&[1, 300])),
            ("FP32", ints(&[1, 2])),
            ("INT8", None),
        ] {
            assert!(matches!(
                read(input(of, &[2], contents), None),
                Err(Refusal::Invalid(_))
            ));
        }
        let both = read(
            input("INT8", &[2], ints(&[1, 2])),
            Some(Bytes::from_static(&[1, 2])),
        );
        assert!(matches!(both, Err(Refusal::Invalid(_))));
    }

    #[test]
    fn every_type_comes_back_as_it_went() {
        for (datatype, size) in [
            (Datatype::Bool, 1),
            (Datatype::Int8, 1),
            (Datatype::Int16, 2),
            (Datatype::Int32, 4),
            (Datatype::Int64, 8),
            (Datatype::Uint8, 1),
            (Datatype::Uint16, 2),
            (Datatype::Uint32, 4),
            (Datatype::Uint64, 8),
            (Datatype::Fp32, 4),
            (Datatype::Fp64, 8),
        ] {
            let bytes: Vec<u8> = (0..3 * size).map(|at| u8::from(at % size == 0)).collect();
            let tensor = Tensor::new("x".into(), datatype, vec![3], Zeroizing::new(bytes));
            let tensor = tensor.expect("three elements");
            let back = typed(&contents(&tensor), datatype).expect("its own contents");
            assert_eq!(&back[..], tensor.bytes(), "{datatype}");
        }
    }

    #[test]
    fn a_timeout_is_a_number() {
        let of = |choice| {
            timeout_parameter(Some(&super::super::wire::InferParameter {
                parameter_choice: Some(choice),
            }))
        };
        assert_eq!(
            of(ParameterChoice::Int64Param(5)),
            Ok(Some(Duration::from_micros(5)))
        );
        assert_eq!(of(ParameterChoice::Uint64Param(0)), Ok(None));
        assert!(of(ParameterChoice::Int64Param(-5)).is_err());
        assert!(of(ParameterChoice::StringParam("5".into())).is_err());
    }
}
