//! Integer linear layers of a run as .npz files, for evaluation by somebody else's code.
//!
//! One file a layer, `RUN-NUMBER.npz`: `spec` (JSON as bytes), `input` and `output` (u32 words mod
//! p, image by image), and `weights0` … (int8 planes; a weight is `Σ weightsJ · 2^(shift·J)`).

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use larvatus::exact::LayerTrace;
use larvatus_kernels::linear::Shape;
use npyz::npz::NpzWriter;
use serde_json::{Value, json};

use crate::output::write_values;

/// The layers of one inference on their way to a folder.
pub(super) struct Dump {
    folder: PathBuf,
    run: usize,
    layers: usize,
    result: Result<()>,
}

impl Dump {
    pub(super) fn new(folder: &Path, run: usize) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            run,
            layers: 0,
            result: Ok(()),
        })
    }

    /// Writes one layer; the first failure is kept for [`finish`](Self::finish).
    pub(super) fn layer(&mut self, trace: &LayerTrace<'_>) {
        let path = self
            .folder
            .join(format!("{}-{:04}.npz", self.run, self.layers));
        self.layers += 1;
        if self.result.is_ok() {
            self.result = write(&path, trace).with_context(|| {
                format!("cannot write layer {} to {}", trace.name, path.display())
            });
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        self.result
    }
}

fn write(path: &Path, trace: &LayerTrace<'_>) -> Result<()> {
    let mut npz = NpzWriter::new(BufWriter::new(File::create(path)?));
    let spec = spec(trace).to_string();
    write_values(&mut npz, "spec", &[spec.len()], spec.as_bytes())?;
    write_values(&mut npz, "input", &[trace.input.len()], trace.input)?;
    write_values(&mut npz, "output", &[trace.output.len()], trace.output)?;
    for (ix, plane) in trace.weights.planes().iter().enumerate() {
        write_values(&mut npz, &format!("weights{ix}"), &[plane.len()], plane)?;
    }
    Ok(())
}

fn spec(trace: &LayerTrace<'_>) -> Value {
    let shape = match &trace.spec.shape {
        Shape::Conv(conv) => json!({
            "kind": "conv",
            "groups": conv.groups,
            "in_channels": conv.in_channels,
            "out_channels": conv.out_channels,
            "input": conv.input,
            "kernel": conv.kernel,
            "stride": conv.stride,
            "dilation": conv.dilation,
            "pad_begin": conv.pad_begin,
            "pad_end": conv.pad_end,
        }),
        Shape::MatMul(matmul) => json!({
            "kind": "matmul",
            "groups": matmul.groups,
            "rows": matmul.rows,
            "inner": matmul.inner,
            "columns": matmul.columns,
        }),
    };
    json!({
        "name": trace.name,
        "images": trace.spec.images,
        "planes": trace.spec.planes,
        "shift": trace.spec.shift,
        "shape": shape,
    })
}
