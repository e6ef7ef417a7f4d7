//! Tensors as the suite stores them.
//!
//! Decoded here and not by the graph engine, so that an error of its decoder cannot hide itself.

use half::f16;
use larvatus::tensor::{Datum, Tensor};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::prelude::tract_ndarray::Array;

/// Decodes a stored tensor.
///
/// # Errors
/// What is not supported about it.
pub fn tensor(proto: &TensorProto) -> Result<Tensor, String> {
    let kind = DataType::try_from(proto.data_type)
        .map_err(|_| format!("element type {}", proto.data_type))?;
    let shape = proto
        .dims
        .iter()
        .map(|dim| usize::try_from(*dim).map_err(|_| format!("dimension {dim}")))
        .collect::<Result<Vec<_>, _>>()?;
    let from = Stored { proto, shape };
    // The fields that small types share hold one element an entry.
    match kind {
        DataType::Float => from.tensor(f32::from_le_bytes, &proto.float_data, |v| v),
        DataType::Double => from.tensor(f64::from_le_bytes, &proto.double_data, |v| v),
        DataType::Float16 => from.tensor(
            |bytes| f16::from_bits(u16::from_le_bytes(bytes)),
            &proto.int32_data,
            |v| f16::from_bits(v as u16),
        ),
        DataType::Int8 => from.tensor(i8::from_le_bytes, &proto.int32_data, |v| v as i8),
        DataType::Int16 => from.tensor(i16::from_le_bytes, &proto.int32_data, |v| v as i16),
        DataType::Int32 => from.tensor(i32::from_le_bytes, &proto.int32_data, |v| v),
        DataType::Int64 => from.tensor(i64::from_le_bytes, &proto.int64_data, |v| v),
        DataType::Uint8 => from.tensor(u8::from_le_bytes, &proto.int32_data, |v| v as u8),
        DataType::Uint16 => from.tensor(u16::from_le_bytes, &proto.int32_data, |v| v as u16),
        DataType::Uint32 => from.tensor(u32::from_le_bytes, &proto.uint64_data, |v| v as u32),
        DataType::Uint64 => from.tensor(u64::from_le_bytes, &proto.uint64_data, |v| v),
        DataType::Bool => from.tensor(|[byte]| byte != 0, &proto.int32_data, |v| v != 0),
        DataType::String => {
            let text = |bytes: &Vec<u8>| {
                String::from_utf8(bytes.clone()).map_err(|_| "text that is not UTF-8".to_owned())
            };
            let texts = proto
                .string_data
                .iter()
                .map(text)
                .collect::<Result<Vec<_>, _>>()?;
            from.finish(texts)
        }
        other => Err(format!(
            "element type {}",
            other.as_str_name().to_lowercase()
        )),
    }
}

struct Stored<'a> {
    proto: &'a TensorProto,
    shape: Vec<usize>,
}

impl Stored<'_> {
    fn tensor<T: Datum, F: Copy, const N: usize>(
        &self,
        raw: impl Fn([u8; N]) -> T,
        field: &[F],
        listed: impl Fn(F) -> T,
    ) -> Result<Tensor, String> {
        let (chunks, rest) = self.proto.raw_data.as_chunks::<N>();
        if !rest.is_empty() {
            return Err(format!(
                "{} bytes of elements of {N} bytes",
                self.proto.raw_data.len()
            ));
        }
        let values: Vec<T> = if chunks.is_empty() {
            field.iter().copied().map(listed).collect()
        } else {
            chunks.iter().copied().map(raw).collect()
        };
        self.finish(values)
    }

    fn finish<T: Datum>(&self, values: Vec<T>) -> Result<Tensor, String> {
        if self.shape.iter().product::<usize>() != values.len() {
            return Err(format!(
                "{} elements in shape {:?}",
                values.len(),
                self.shape
            ));
        }
        let array = Array::from_shape_vec(&*self.shape, values).map_err(|err| err.to_string())?;
        Ok(Tensor::from(array))
    }
}

/// How far a float may be from the suite's answer, relative to it: as in the suite's own runner.
pub const RELATIVE: f64 = 1e-3;

/// How far a float may be from the suite's answer in any case. The suite's own runner has 1e-7,
/// which sums in another order miss where the answer is 0.
pub const ABSOLUTE: f64 = 1e-5;

/// Compares an answer with the suite's; `Err` says the first difference.
///
/// Integers, truth values and texts must be equal, floats within
/// [`RELATIVE`] and [`ABSOLUTE`]; NaN equals NaN.
///
/// # Errors
/// What differs.
pub fn compare(got: &Tensor, wanted: &Tensor) -> Result<(), String> {
    same_form(got, wanted)?;
    if let (Some(got), Some(wanted)) = (doubles(got), doubles(wanted)) {
        let far = |(got, wanted): (&f64, &f64)| {
            let allowed = ABSOLUTE + RELATIVE * wanted.abs();
            let near = (got - wanted).abs() <= allowed || got == wanted;
            !(near || (got.is_nan() && wanted.is_nan()))
        };
        return match got.iter().zip(&wanted).position(far) {
            None => Ok(()),
            Some(ix) => Err(format!(
                "element {ix} is {}, wanted {}",
                got[ix], wanted[ix]
            )),
        };
    }
    if got == wanted {
        Ok(())
    } else {
        Err("elements differ".to_owned())
    }
}

/// Compares type and shape.
///
/// # Errors
/// What differs.
pub fn same_form(got: &Tensor, wanted: &Tensor) -> Result<(), String> {
    if got.datum_type() != wanted.datum_type() {
        let (got, wanted) = (got.datum_type(), wanted.datum_type());
        return Err(format!("type {got:?}, wanted {wanted:?}"));
    }
    if got.shape() != wanted.shape() {
        return Err(format!(
            "shape {:?}, wanted {:?}",
            got.shape(),
            wanted.shape()
        ));
    }
    Ok(())
}

/// Whether two tensors have the same bits, NaN included.
pub fn same_bits(one: &Tensor, other: &Tensor) -> bool {
    if same_form(one, other).is_err() {
        return false;
    }
    match (one.as_plain_ram(), other.as_plain_ram()) {
        (Some(a), Some(b)) if one.datum_type().is_copy() => a.as_bytes() == b.as_bytes(),
        _ => one == other,
    }
}

/// The elements of a float tensor.
pub fn doubles(tensor: &Tensor) -> Option<Vec<f64>> {
    let plain = tensor.as_plain_ram()?;
    if let Ok(values) = plain.as_slice::<f32>() {
        return Some(values.iter().copied().map(f64::from).collect());
    }
    if let Ok(values) = plain.as_slice::<f16>() {
        return Some(values.iter().copied().map(f64::from).collect());
    }
    plain.as_slice::<f64>().ok().map(<[f64]>::to_vec)
}
