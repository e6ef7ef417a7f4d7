//! Convolutions of 3×3 with a border of zeros, as a product of matrices: patches side by side, and their gradient.
//!
//! Tensors are channels × images × rows × columns, so a product gives the next layer's input without moving anything.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

use crate::front::slice;

#[derive(Clone, Copy)]
struct Patches {
    channels: usize,
    images: usize,
    rows: usize,
    columns: usize,
    back: bool,
}

impl Patches {
    /// Calls `each` with (place among the patches, place in the image, length of a run).
    fn walk(&self, mut each: impl FnMut(usize, usize, usize)) {
        let plane = self.rows * self.columns;
        let line = self.images * plane;
        for channel in 0..self.channels {
            for tap in 0..9 {
                let (down, across) = (tap / 3, tap % 3);
                let first = 1_usize.saturating_sub(across);
                let end = self.columns.min(self.columns + 1 - across);
                for image in 0..self.images {
                    for row in 0..self.rows {
                        let source = row + down;
                        if source == 0 || source > self.rows || first >= end {
                            continue;
                        }
                        let to = (channel * 9 + tap) * line + image * plane + row * self.columns;
                        let from = channel * line + image * plane + (source - 1) * self.columns;
                        each(to + first, from + first + across - 1, end - first);
                    }
                }
            }
        }
    }
}

impl CustomOp1 for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = slice(storage, layout)?;
        let pixels = self.images * self.rows * self.columns;
        if self.back {
            let mut image = vec![0.0; self.channels * pixels];
            self.walk(|patch, place, len| {
                let into = &mut image[place..place + len];
                for (into, x) in into.iter_mut().zip(&x[patch..patch + len]) {
                    *into += x;
                }
            });
            let shape = (self.channels, self.images, self.rows, self.columns);
            return Ok((CpuStorage::F32(image), Shape::from(shape)));
        }
        let mut patches = vec![0.0; 9 * self.channels * pixels];
        self.walk(|patch, place, len| {
            patches[patch..patch + len].copy_from_slice(&x[place..place + len]);
        });
        Ok((
            CpuStorage::F32(patches),
            Shape::from((9 * self.channels, pixels)),
        ))
    }

    fn bwd(&self, _arg: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let back = Self {
            back: true,
            ..*self
        };
        Ok(Some(grad.contiguous()?.apply_op1_no_bwd(&back)?))
    }
}

/// `weights` (outputs × 9·channels) and `bias` (outputs × 1) over x (channels × images × rows × columns).
pub(super) fn convolve(x: &Tensor, weights: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let (channels, images, rows, columns) = x.dims4()?;
    let patches = Patches {
        channels,
        images,
        rows,
        columns,
        back: false,
    };
    let y = weights.matmul(&x.contiguous()?.apply_op1(patches)?)?;
    let outputs = weights.dim(0)?;
    y.broadcast_add(bias)?
        .reshape((outputs, images, rows, columns))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    /// Against the definition, and the gradient against differences.
    #[test]
    fn convolution_and_its_gradient_are_those_of_the_definition() -> Result<()> {
        let (channels, images, rows, columns, outputs) = (2, 3, 4, 5, 3);
        let value = |at: usize| ((at * 37 + 11) % 23) as f32 / 23.0 - 0.5;
        let x: Vec<f32> = (0..channels * images * rows * columns).map(value).collect();
        let w: Vec<f32> = (0..outputs * channels * 9)
            .map(|at| value(at + 5))
            .collect();
        let at = |x: &[f32], c: usize, i: usize, y: isize, z: isize| {
            let inside = (0..rows as isize).contains(&y) && (0..columns as isize).contains(&z);
            if !inside {
                return 0.0;
            }
            x[((c * images + i) * rows + y as usize) * columns + z as usize]
        };
        let shape = (channels, images, rows, columns);
        let variable = Var::from_vec(x.clone(), shape, &Device::Cpu)?;
        let weights = Tensor::from_slice(&w, (outputs, channels * 9), &Device::Cpu)?;
        let bias = Tensor::zeros((outputs, 1), candle_core::DType::F32, &Device::Cpu)?;
        let y = convolve(variable.as_tensor(), &weights, &bias)?;
        let got = y.flatten_all()?.to_vec1::<f32>()?;
        let mut place = 0;
        for o in 0..outputs {
            for i in 0..images {
                for row in 0..rows as isize {
                    for column in 0..columns as isize {
                        let mut sum = 0.0;
                        for c in 0..channels {
                            for tap in 0..9_isize {
                                let (down, across) = (tap / 3 - 1, tap % 3 - 1);
                                sum += w[(o * channels + c) * 9 + tap as usize]
                                    * at(&x, c, i, row + down, column + across);
                            }
                        }
                        assert!(
                            (got[place] - sum).abs() < 1e-5,
                            "{place}: {} {sum}",
                            got[place]
                        );
                        place += 1;
                    }
                }
            }
        }
        // ⟨y, y⟩ is quadratic in x, so differences are exact but for rounding.
        let gradients = y.sqr()?.sum_all()?.backward()?;
        let gradient = gradients.get(variable.as_tensor()).expect("of x");
        let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
        let energy = |x: &[f32]| -> Result<f32> {
            let x = Tensor::from_slice(x, shape, &Device::Cpu)?;
            convolve(&x, &weights, &bias)?.sqr()?.sum_all()?.to_scalar()
        };
        for place in [0, 7, 33, 119] {
            let mut more = x.clone();
            more[place] += 0.1;
            let mut less = x.clone();
            less[place] -= 0.1;
            let slope = (energy(&more)? - energy(&less)?) / 0.2;
            assert!((slope - gradient[place]).abs() < 1e-2 * (1.0 + slope.abs()));
        }
        Ok(())
    }
}
