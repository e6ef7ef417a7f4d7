//! Made-up inputs for models whose answers nobody looks at.

use larvatus::model::Port;
use larvatus::tensor::{DatumType, Tensor, from_floats};

/// Numbers in (−1, 1), or ones; the same for every port of a shape.
///
/// # Errors
/// Where the port's shape is open or its type is none of these.
pub fn sample(port: &Port) -> Result<Tensor, Box<dyn std::error::Error>> {
    let shape = port.shape.as_deref().ok_or("an input without a shape")?;
    let size: usize = shape.iter().product();
    let mut state = 1_u32;
    let values = (0..size).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    });
    Ok(match port.datum {
        DatumType::F32 => {
            from_floats(shape, &values.collect::<Vec<_>>()).ok_or("a shape that does not fit")?
        }
        DatumType::I32 => Tensor::from_shape(shape, &vec![1_i32; size])?,
        DatumType::I64 => Tensor::from_shape(shape, &vec![1_i64; size])?,
        _ => return Err("an input of another type".into()),
    })
}
