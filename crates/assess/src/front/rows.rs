//! A kernel over the rows of a tensor, as an operator of candle with its gradient.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

/// A differentiable map of one row to one row.
pub(super) trait Kernel: Send + Sync {
    /// Elements of a row that comes in.
    fn inputs(&self) -> usize;
    /// Elements of a row that goes out.
    fn outputs(&self) -> usize;
    /// y of x.
    fn forward(&self, x: &[f32], y: &mut [f32]);
    /// Adds to `gx`, which is zeros, the gradient of x where that of y is `gy`.
    fn backward(&self, x: &[f32], gy: &[f32], gx: &mut [f32]);
}

/// The elements of a tensor that lies in one piece.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    let all = storage.as_slice::<f32>()?;
    let range = layout.contiguous_offsets();
    let found = range.and_then(|(start, end)| all.get(start..end));
    found.ok_or_else(|| candle_core::Error::Msg("a tensor in pieces".to_owned()))
}

#[derive(Clone)]
pub(super) struct Rows(Arc<dyn Kernel>);

impl Rows {
    pub(super) fn apply(kernel: &Arc<dyn Kernel>, x: &Tensor) -> Result<Tensor> {
        x.contiguous()?.apply_op1(Self(Arc::clone(kernel)))
    }
}

impl CustomOp1 for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let (inputs, outputs) = (self.0.inputs(), self.0.outputs());
        let rows = x.len() / inputs.max(1);
        if rows * inputs != x.len() {
            candle_core::bail!("{} elements are no rows of {inputs}", x.len());
        }
        let mut y = vec![0.0; rows * outputs];
        for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs)) {
            self.0.forward(x, y);
        }
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs))))
    }

    fn bwd(&self, arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Back(Arc::clone(&self.0));
        let gradient = arg
            .contiguous()?
            .apply_op2_no_bwd(&grad.contiguous()?, &back)?;
        Ok(Some(gradient))
    }
}

struct Back(Arc<dyn Kernel>);

impl CustomOp2 for Back {
    fn name(&self) -> &'static str {
        "rows, backwards"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        grad: &CpuStorage,
        grad_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, grad) = (slice(x, x_layout)?, slice(grad, grad_layout)?);
        let (inputs, outputs) = (self.0.inputs(), self.0.outputs());
        let mut gx = vec![0.0; x.len()];
        let rows = x.chunks_exact(inputs).zip(grad.chunks_exact(outputs));
        for ((x, gy), gx) in rows.zip(gx.chunks_exact_mut(inputs)) {
            self.0.backward(x, gy, gx);
        }
        Ok((CpuStorage::F32(gx), x_layout.shape().clone()))
    }
}
