//! Tensors in and out: the graph engine's own type.

pub use tract_onnx::prelude::{Datum, DatumType, Tensor};

use crate::error::InputError;
use crate::model::Port;

/// A dense f32 tensor.
///
/// # Errors
/// `None` where the shape does not hold exactly `values`.
pub fn from_floats(shape: &[usize], values: &[f32]) -> Option<Tensor> {
    let size = shape
        .iter()
        .try_fold(1_usize, |size, dim| size.checked_mul(*dim))?;
    (size == values.len())
        .then(|| Tensor::from_shape(shape, values).ok())
        .flatten()
}

/// The elements of a dense f32 tensor, row-major; `None` for any other type.
pub fn floats(tensor: &Tensor) -> Option<&[f32]> {
    crate::model::linear::floats(tensor)
}

/// Holds inputs against what the plan was made for.
pub(crate) fn check_inputs(ports: &[Port], inputs: &[Tensor]) -> Result<(), InputError> {
    if inputs.len() != ports.len() {
        return Err(InputError::Count {
            expected: ports.len(),
            got: inputs.len(),
            names: ports.iter().map(|port| port.name.clone()).collect(),
        });
    }
    for (port, input) in ports.iter().zip(inputs) {
        let name = || port.name.clone();
        if input.datum_type() != port.datum {
            return Err(InputError::Datum {
                input: name(),
                expected: format!("{:?}", port.datum).to_lowercase(),
                got: format!("{:?}", input.datum_type()).to_lowercase(),
            });
        }
        if let Some(shape) = &port.shape
            && shape != input.shape()
        {
            return Err(InputError::Shape {
                input: name(),
                expected: shape.clone(),
                got: input.shape().to_vec(),
            });
        }
        let values = floats(input).unwrap_or_default();
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(InputError::NotFinite {
                input: name(),
                index,
                value: values[index],
            });
        }
    }
    Ok(())
}
