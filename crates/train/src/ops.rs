//! Operators with their gradients, for candle's automatic differentiation.
//!
//! candle multiplies matrices fast, but convolves slowly on a CPU and has no batch norm or pooling whose gradient is more than a
//! chain of small steps (docs/asymml.md has the measurement). Each operator here is one pass forward and one back.

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, Error, Layout, Result, Shape, Storage, Tensor,
    bail,
};
use larvatus_kernels::float::images::Convolution;

/// The values of a storage that lie side by side.
pub(crate) fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((from, to)) => Ok(&storage.as_slice::<f32>()?[from..to]),
        None => bail!("values that lie side by side are wanted"),
    }
}

/// Looks at the values of a tensor of floats, in order.
///
/// # Errors
/// candle's, where it holds no binary32 or does not lie in memory.
pub fn read<T>(tensor: &Tensor, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => Ok(look(values(storage, layout)?)),
        Storage::Cuda(_) | Storage::Metal(_) => bail!("a tensor in memory is wanted"),
    }
}

fn tensor(values: Vec<f32>, like: &Tensor) -> Result<Tensor> {
    Tensor::from_vec(values, like.shape(), like.device())
}

/// The shape of what a convolution makes.
pub(crate) fn output_shape(convolution: &Convolution, images: usize) -> Shape {
    let [rows, columns] = convolution.output();
    let [_, outputs, ..] = convolution.extents();
    Shape::from((images, outputs, rows, columns))
}

/// y = W∗x, with images × channels × rows × columns and outputs × inputs × kernel × kernel.
///
/// # Errors
/// candle's, where shapes do not fit the convolution.
pub fn convolve(x: &Tensor, weights: &Tensor, convolution: Convolution) -> Result<Tensor> {
    let op = Convolve { convolution };
    x.contiguous()?.apply_op2(&weights.contiguous()?, op)
}

struct Convolve {
    convolution: Convolution,
}

impl CustomOp2 for Convolve {
    fn name(&self) -> &'static str {
        "convolve"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, w) = (values(x, x_layout)?, values(w, w_layout)?);
        let images = x.len() / self.convolution.input_len();
        let mut y = vec![0.0; images * self.convolution.output_len()];
        self.convolution
            .forward(x, w, &mut y)
            .map_err(Error::wrap)?;
        Ok((CpuStorage::F32(y), output_shape(&self.convolution, images)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut dx = vec![0.0; x.elem_count()];
        let mut dw = vec![0.0; w.elem_count()];
        read(dy, |dy| {
            // What nothing was derived for, an image that comes in, needs no gradient.
            if x.track_op() {
                read(w, |w| self.convolution.input_gradient(w, dy, &mut dx))?
                    .map_err(Error::wrap)?;
            }
            read(x, |x| self.convolution.weight_gradient(x, dy, &mut dw))?.map_err(Error::wrap)
        })??;
        let dx = x.track_op().then(|| tensor(dx, x)).transpose()?;
        Ok((dx, Some(tensor(dw, w)?)))
    }
}

/// max(x, 0).
///
/// # Errors
/// candle's.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    x.contiguous()?.apply_op1(Relu)
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let y = values(x, layout)?.iter().map(|x| x.max(0.0)).collect();
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let dx = read(y, |y| {
            read(dy, |dy| {
                let pairs = y.iter().zip(dy);
                pairs
                    .map(|(y, dy)| if *y > 0.0 { *dy } else { 0.0 })
                    .collect()
            })
        })??;
        Ok(Some(tensor(dx, y)?))
    }
}

/// Maxima over windows of `size` × `size` that do not overlap; rows and columns that are left over are dropped.
///
/// # Errors
/// candle's, where `x` is no batch of images or an image is smaller than a window.
pub fn max_pool(x: &Tensor, size: usize) -> Result<Tensor> {
    let (_, _, rows, columns) = x.dims4()?;
    if size == 0 || rows < size || columns < size {
        bail!("maxima over {size} x {size} of an image of {rows} x {columns}");
    }
    x.contiguous()?.apply_op1(MaxPool { size })
}

struct MaxPool {
    size: usize,
}

impl MaxPool {
    /// The place of the first largest value of each window.
    fn places(&self, x: &[f32], rows: usize, columns: usize) -> Vec<usize> {
        let mut places = Vec::with_capacity(x.len() / (self.size * self.size));
        for plane in (0..x.len()).step_by(rows * columns) {
            for row in 0..rows / self.size {
                for column in 0..columns / self.size {
                    let first = plane + (row * columns + column) * self.size;
                    let mut best = first;
                    for step in 0..self.size * self.size {
                        let at = first + step / self.size * columns + step % self.size;
                        if x[at] > x[best] {
                            best = at;
                        }
                    }
                    places.push(best);
                }
            }
        }
        places
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "max-pool"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (images, channels, rows, columns) = layout.shape().dims4()?;
        let x = values(x, layout)?;
        let places = self.places(x, rows, columns);
        let y = places.iter().map(|at| x[*at]).collect();
        let shape = (images, channels, rows / self.size, columns / self.size);
        Ok((CpuStorage::F32(y), Shape::from(shape)))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, dy: &Tensor) -> Result<Option<Tensor>> {
        let (_, _, rows, columns) = x.dims4()?;
        let mut dx = vec![0.0; x.elem_count()];
        let places = read(x, |x| self.places(x, rows, columns))?;
        read(dy, |dy| {
            places.iter().zip(dy).for_each(|(at, dy)| dx[*at] += dy);
        })?;
        Ok(Some(tensor(dx, x)?))
    }
}

/// Mean and variance (of the batch, divided by its size) of each channel.
///
/// # Errors
/// candle's, where `x` is no batch of images.
pub fn channel_statistics(x: &Tensor) -> Result<(Vec<f32>, Vec<f32>)> {
    let (_, channels, rows, columns) = x.dims4()?;
    read(x, |x| {
        let planes = x.chunks_exact(rows * columns).enumerate();
        let mut sums = vec![(0f64, 0f64); channels];
        for (plane, x) in planes {
            let sum: f64 = x.iter().map(|x| f64::from(*x)).sum();
            let squares: f64 = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            let (total, total_squares) = &mut sums[plane % channels];
            *total += sum;
            *total_squares += squares;
        }
        let count = (x.len() / channels.max(1)).max(1) as f64;
        sums.iter()
            .map(|(sum, squares)| {
                let mean = sum / count;
                (mean as f32, (squares / count - mean * mean).max(0.0) as f32)
            })
            .unzip()
    })
}

/// γ·(x − mean)/√(variance + ε) + β by channel. Where the statistics are the batch's own, gradients go through them, too.
///
/// # Errors
/// candle's, where shapes do not fit.
pub fn batch_norm(
    x: &Tensor,
    (gamma, beta): (&Tensor, &Tensor),
    statistics: (Vec<f32>, Vec<f32>),
    own: bool,
) -> Result<Tensor> {
    let (_, channels, ..) = x.dims4()?;
    let (means, variances) = statistics;
    let fits = [
        means.len(),
        variances.len(),
        gamma.elem_count(),
        beta.elem_count(),
    ];
    if fits != [channels; 4] {
        bail!(
            "a norm of {} channels of images with {channels}",
            means.len()
        );
    }
    let scales = variances
        .iter()
        .map(|variance| 1.0 / (variance + NORM_EPSILON).sqrt());
    let op = BatchNorm {
        scales: scales.collect(),
        means,
        own,
    };
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    x.contiguous()?.apply_op3(&gamma, &beta, op)
}

/// What is added to a variance before its root is taken.
pub const NORM_EPSILON: f32 = 1e-5;

struct BatchNorm {
    means: Vec<f32>,
    scales: Vec<f32>,
    own: bool,
}

impl CustomOp3 for BatchNorm {
    fn name(&self) -> &'static str {
        "batch-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        layout: &Layout,
        gamma: &CpuStorage,
        gamma_layout: &Layout,
        beta: &CpuStorage,
        beta_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, channels, rows, columns) = layout.shape().dims4()?;
        let (gamma, beta) = (values(gamma, gamma_layout)?, values(beta, beta_layout)?);
        let mut y = values(x, layout)?.to_vec();
        for (plane, y) in y.chunks_exact_mut(rows * columns).enumerate() {
            let c = plane % channels;
            let factor = gamma[c] * self.scales[c];
            let shift = beta[c] - self.means[c] * factor;
            y.iter_mut().for_each(|y| *y = *y * factor + shift);
        }
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        gamma: &Tensor,
        _: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (images, channels, rows, columns) = x.dims4()?;
        let pixels = rows * columns;
        let gammas: Vec<f32> = read(gamma, <[f32]>::to_vec)?;
        let mut sums = vec![(0f64, 0f64); channels];
        let mut dx = vec![0f32; x.elem_count()];
        read(x, |x| {
            read(dy, |dy| {
                let planes = x.chunks_exact(pixels).zip(dy.chunks_exact(pixels));
                for (plane, (x, dy)) in planes.clone().enumerate() {
                    let c = plane % channels;
                    let (mean, scale) = (self.means[c], self.scales[c]);
                    let (mut sum, mut along) = (0f32, 0f32);
                    for (x, dy) in x.iter().zip(dy) {
                        sum += dy;
                        along += dy * (x - mean) * scale;
                    }
                    sums[c].0 += f64::from(sum);
                    sums[c].1 += f64::from(along);
                }
                let count = (images * pixels) as f64;
                for ((plane, (x, dy)), dx) in planes.enumerate().zip(dx.chunks_exact_mut(pixels)) {
                    let c = plane % channels;
                    let (mean, scale) = (self.means[c], self.scales[c]);
                    let (sum, along) = match self.own {
                        true => ((sums[c].0 / count) as f32, (sums[c].1 / count) as f32),
                        false => (0.0, 0.0),
                    };
                    let factor = gammas[c] * scale;
                    for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
                        *dx = factor * (dy - sum - (x - mean) * scale * along);
                    }
                }
            })
        })??;
        let (dbeta, dgamma): (Vec<f32>, Vec<f32>) = sums
            .iter()
            .map(|(sum, along)| (*sum as f32, *along as f32))
            .unzip();
        Ok((
            Some(tensor(dx, x)?),
            Some(tensor(dgamma, gamma)?),
            Some(tensor(dbeta, gamma)?),
        ))
    }
}

/// The mean of −log softmax of each row at its class: rows × classes, one class for each row.
///
/// # Errors
/// candle's, where there is no class for each row, or one beyond the columns.
pub fn cross_entropy(logits: &Tensor, classes: &[u32]) -> Result<Tensor> {
    let (rows, columns) = logits.dims2()?;
    if rows == 0 || rows != classes.len() || classes.iter().any(|c| *c as usize >= columns) {
        bail!("{} classes for {rows} rows of {columns}", classes.len());
    }
    let classes = classes.to_vec();
    logits.contiguous()?.apply_op1(CrossEntropy { classes })
}

struct CrossEntropy {
    classes: Vec<u32>,
}

/// exp(x − largest), and the sum of it.
fn exponentials(row: &[f32]) -> (Vec<f32>, f32) {
    let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let e: Vec<f32> = row.iter().map(|x| (x - largest).exp()).collect();
    let sum = e.iter().sum();
    (e, sum)
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross-entropy"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (rows, columns) = layout.shape().dims2()?;
        let x = values(x, layout)?;
        let mut loss = 0f64;
        for (row, class) in x.chunks_exact(columns).zip(&self.classes) {
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (_, sum) = exponentials(row);
            loss += f64::from(largest + sum.ln() - row[*class as usize]);
        }
        let loss = (loss / rows as f64) as f32;
        Ok((CpuStorage::F32(vec![loss]), Shape::from(())))
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let (rows, columns) = x.dims2()?;
        let scale = grad.to_scalar::<f32>()? / rows as f32;
        let dx = read(x, |x| {
            let mut dx = Vec::with_capacity(x.len());
            for (row, class) in x.chunks_exact(columns).zip(&self.classes) {
                let (e, sum) = exponentials(row);
                let at = dx.len() + *class as usize;
                dx.extend(e.iter().map(|e| e / sum * scale));
                dx[at] -= scale;
            }
            dx
        })?;
        Ok(Some(tensor(dx, x)?))
    }
}
