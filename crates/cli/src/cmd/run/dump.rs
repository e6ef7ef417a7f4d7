//! Integer linear layers of a run as an .npz file, for evaluation by somebody else's code.
//!
//! One file an inference, `RUN.npz`; keys by layer, `0000.spec` and so on: `spec` (JSON as bytes),
//! `q` and `y` (int32, the input and the answer, image by image), `w0` and for wide weights `w1`
//! (int8 planes). `scripts/layers.py` documents and reads it.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use larvatus::exact::LayerTrace;
use larvatus_kernels::field::Fp;
use larvatus_kernels::linear::Shape;
use npyz::npz::NpzWriter;
use serde_json::{Value, json};

use crate::output::write_values;

/// The layers of one inference on their way to a file.
pub(super) struct Dump {
    npz: NpzWriter<BufWriter<File>>,
    layers: usize,
    result: Result<()>,
}

impl Dump {
    pub(super) fn new(folder: &Path, run: usize) -> Result<Self> {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(format!("{run}.npz"));
        let file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self {
            npz: NpzWriter::new(BufWriter::new(file)),
            layers: 0,
            result: Ok(()),
        })
    }

    /// Writes one layer; the first failure is kept for [`finish`](Self::finish).
    pub(super) fn layer(&mut self, trace: &LayerTrace<'_>) {
        if self.result.is_ok() {
            self.result = self
                .write(trace)
                .with_context(|| format!("cannot dump layer {}", trace.name));
        }
        self.layers += 1;
    }

    pub(super) fn finish(mut self) -> Result<()> {
        self.result?;
        let mut file = self.npz.zip_writer().finish()?;
        file.flush().context("cannot dump layers")
    }

    fn write(&mut self, trace: &LayerTrace<'_>) -> Result<()> {
        let key = |part: &str| format!("{:04}.{part}", self.layers);
        let spec = spec(trace).to_string();
        let (q, y) = (centred(trace.input), centred(trace.output));
        let names = [key("spec"), key("q"), key("y")];
        write_values(&mut self.npz, &names[0], &[spec.len()], spec.as_bytes())?;
        write_values(&mut self.npz, &names[1], &[q.len()], &q)?;
        write_values(&mut self.npz, &names[2], &[y.len()], &y)?;
        for (ix, plane) in trace.weights.planes().iter().enumerate() {
            let name = format!("{:04}.w{ix}", self.layers);
            write_values(&mut self.npz, &name, &[plane.len()], plane)?;
        }
        Ok(())
    }
}

fn centred(words: &[u32]) -> Vec<i32> {
    words
        .iter()
        .map(|word| Fp::from_u64(u64::from(*word)).centred())
        .collect()
}

fn spec(trace: &LayerTrace<'_>) -> Value {
    match &trace.spec.shape {
        Shape::Conv(conv) => {
            let ([top, left], [bottom, right]) = (conv.pad_begin, conv.pad_end);
            json!({
                "name": trace.name,
                "op": "conv",
                "groups": conv.groups,
                "in": conv.in_channels,
                "out": conv.out_channels,
                "input": conv.input,
                "kernel": conv.kernel,
                "stride": conv.stride,
                "dilation": conv.dilation,
                "pads": [top, left, bottom, right],
                "shift": trace.weights.shift(),
            })
        }
        Shape::MatMul(matmul) => json!({
            "name": trace.name,
            "op": "matmul",
            "side": "right",
            "groups": matmul.groups,
            "rows": matmul.rows,
            "inner": matmul.inner,
            "columns": matmul.columns,
            "shift": trace.weights.shift(),
        }),
    }
}
