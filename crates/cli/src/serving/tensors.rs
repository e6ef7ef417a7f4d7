//! Tensors of the protocol and of the graph engine.

use larvatus::model;
use larvatus::tensor::{self, Datum, DatumType};
use larvatus_serve::tensor::{Datatype, Port, Tensor};

/// The types that both have.
const TYPES: [(Datatype, DatumType); 11] = [
    (Datatype::Bool, DatumType::Bool),
    (Datatype::Uint8, DatumType::U8),
    (Datatype::Uint16, DatumType::U16),
    (Datatype::Uint32, DatumType::U32),
    (Datatype::Uint64, DatumType::U64),
    (Datatype::Int8, DatumType::I8),
    (Datatype::Int16, DatumType::I16),
    (Datatype::Int32, DatumType::I32),
    (Datatype::Int64, DatumType::I64),
    (Datatype::Fp32, DatumType::F32),
    (Datatype::Fp64, DatumType::F64),
];

fn datatype(datum: DatumType) -> Option<Datatype> {
    TYPES.iter().find(|of| of.1 == datum).map(|of| of.0)
}

/// An input or output as clients see it.
pub(super) fn port(port: &model::Port) -> Result<Port, String> {
    let datatype = datatype(port.datum).ok_or_else(|| {
        format!(
            "{:?} is of type {:?}, which is not served",
            port.name, port.datum
        )
    })?;
    let shape = match &port.shape {
        Some(shape) => shape.iter().copied().map(Some).collect(),
        None => vec![None],
    };
    Ok(Port {
        name: port.name.clone(),
        datatype,
        shape,
    })
}

/// An input or output of a service, as those of a model here.
pub(crate) fn model_port(port: &Port) -> Result<model::Port, String> {
    let found = TYPES.iter().find(|of| of.0 == port.datatype);
    let datum = found
        .map(|of| of.1)
        .ok_or_else(|| format!("{:?} is of a type that is not known here", port.name))?;
    Ok(model::Port {
        name: port.name.clone(),
        datum,
        shape: port.shape.iter().copied().collect(),
    })
}

/// A client's tensor, for the graph engine.
pub(crate) fn read(given: &Tensor) -> Result<tensor::Tensor, String> {
    macro_rules! of {
        ($type:ty) => {
            plain(
                given,
                given
                    .bytes()
                    .as_chunks()
                    .0
                    .iter()
                    .map(|value| <$type>::from_le_bytes(*value)),
            )
        };
    }
    match given.datatype() {
        Datatype::Bool => plain(given, given.bytes().iter().map(|byte| *byte == 1)),
        Datatype::Uint8 => of!(u8),
        Datatype::Uint16 => of!(u16),
        Datatype::Uint32 => of!(u32),
        Datatype::Uint64 => of!(u64),
        Datatype::Int8 => of!(i8),
        Datatype::Int16 => of!(i16),
        Datatype::Int32 => of!(i32),
        Datatype::Int64 => of!(i64),
        Datatype::Fp32 => of!(f32),
        Datatype::Fp64 => of!(f64),
        Datatype::Fp16 => Err("FP16 is taken by no model here".to_owned()),
    }
}

fn plain<T: Datum + Copy>(
    given: &Tensor,
    values: impl Iterator<Item = T>,
) -> Result<tensor::Tensor, String> {
    let values: Vec<T> = values.collect();
    tensor::Tensor::from_shape(given.shape(), &values).map_err(|err| err.to_string())
}

/// An output, for a client.
pub(crate) fn write(name: &str, made: &tensor::Tensor) -> Result<Tensor, String> {
    let datatype = datatype(made.datum_type())
        .ok_or_else(|| format!("output {name:?} is of a type that is not served"))?;
    let plain = made.try_as_plain_ram().map_err(|err| err.to_string())?;
    macro_rules! of {
        ($type:ty) => {{
            let values = plain.as_slice::<$type>().map_err(|err| err.to_string())?;
            let mut bytes = Vec::with_capacity(size_of_val(values));
            for value in values {
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            bytes
        }};
    }
    let bytes = match datatype {
        Datatype::Bool => {
            let values = plain.as_slice::<bool>().map_err(|err| err.to_string())?;
            values.iter().map(|value| u8::from(*value)).collect()
        }
        Datatype::Uint8 => of!(u8),
        Datatype::Uint16 => of!(u16),
        Datatype::Uint32 => of!(u32),
        Datatype::Uint64 => of!(u64),
        Datatype::Int8 => of!(i8),
        Datatype::Int16 => of!(i16),
        Datatype::Int32 => of!(i32),
        Datatype::Int64 => of!(i64),
        Datatype::Fp32 => of!(f32),
        Datatype::Fp64 => of!(f64),
        Datatype::Fp16 => return Err(format!("output {name:?} is of a type that is not served")),
    };
    Tensor::new(
        name.to_owned(),
        datatype,
        made.shape().to_vec(),
        bytes.into(),
    )
    .map_err(|err| err.to_string())
}
