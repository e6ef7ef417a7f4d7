//! What the user gets: outputs in a file, classes on the screen.

use std::io::{Cursor, Seek, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use larvatus::model::Port;
use larvatus::tensor::{DatumType, Tensor, floats};
use npyz::WriterBuilder;
use npyz::npz::NpzWriter;

/// Writes the outputs of every inference: `NAME` where there is one, `K/NAME` where there are more.
pub(crate) fn write_npz(path: &Path, ports: &[Port], runs: &[Vec<Arc<Tensor>>]) -> Result<()> {
    // In memory first: what cannot be written is known before the archive's end is.
    let mut npz = NpzWriter::new(Cursor::new(Vec::new()));
    for (run, tensors) in runs.iter().enumerate() {
        for (port, tensor) in ports.iter().zip(tensors) {
            let name = match runs.len() {
                1 => port.name.clone(),
                _ => format!("{run}/{}", port.name),
            };
            write_array(&mut npz, &name, tensor)
                .with_context(|| format!("output {:?} in {}", port.name, path.display()))?;
        }
    }
    let bytes = npz.zip_writer().finish()?.into_inner();
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// Adds one array to an .npz file.
fn write_array(npz: &mut NpzWriter<impl Write + Seek>, name: &str, tensor: &Tensor) -> Result<()> {
    macro_rules! write {
        ($($datum:ident => $type:ty),*) => {
            match tensor.datum_type() {
                $(DatumType::$datum => {
                    let values = tensor.try_as_plain_ram()?;
                    write_values(npz, name, tensor.shape(), values.as_slice::<$type>()?)
                })*
                other => bail!("type {other:?} has no place in an .npz file"),
            }
        };
    }
    write!(
        F32 => f32, F64 => f64, I8 => i8, I16 => i16, I32 => i32, I64 => i64,
        U8 => u8, U16 => u16, U32 => u32, U64 => u64, Bool => bool
    )
}

/// Adds values with a shape to an .npz file.
pub(crate) fn write_values<T: npyz::AutoSerialize + Copy>(
    npz: &mut NpzWriter<impl Write + Seek>,
    name: &str,
    shape: &[usize],
    values: &[T],
) -> Result<()> {
    let shape: Vec<u64> = shape.iter().map(|dim| *dim as u64).collect();
    let mut writer = npz
        .array(name, Default::default())?
        .default_dtype()
        .shape(&shape)
        .begin_nd()?;
    writer.extend(values.iter().copied())?;
    writer.finish()?;
    Ok(())
}

/// A class and how likely it is.
pub(crate) struct Class {
    pub(crate) index: usize,
    pub(crate) name: String,
    pub(crate) probability: f32,
}

/// Reads class names, one a line.
pub(crate) fn read_labels(path: Option<&Path>) -> Result<Vec<String>> {
    let Some(path) = path else {
        return Ok(Vec::new());
    };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read labels {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The most likely classes, if an output looks like scores of classes.
pub(crate) fn top_classes(output: &Tensor, top: usize, labels: &[String]) -> Option<Vec<Class>> {
    let scores = floats(output)?;
    let classes = *output.shape().last()?;
    if scores.len() != classes || classes < 2 {
        return None;
    }
    let peak = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    // Already probabilities, or logits.
    let sum: f32 = scores.iter().sum();
    let normal = scores.iter().all(|s| (0.0..=1.0).contains(s)) && (sum - 1.0).abs() < 1e-3;
    let weights: Vec<f32> = scores
        .iter()
        .map(|s| if normal { *s } else { (s - peak).exp() })
        .collect();
    let total: f32 = weights.iter().sum();
    let mut order: Vec<usize> = (0..classes).collect();
    order.sort_by(|a, b| weights[*b].total_cmp(&weights[*a]));
    let class = |index: usize| Class {
        index,
        name: labels
            .get(index)
            .cloned()
            .unwrap_or_else(|| format!("class {index}")),
        probability: weights[index] / total,
    };
    Some(order.into_iter().take(top).map(class).collect())
}
