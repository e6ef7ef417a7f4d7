//! Convolutions of batches of images in floats, with their gradients: y = W∗x, dx = Wᵀ∗dy, dW = Σ dy·xᵀ.
//!
//! Patches are laid out as a matrix and multiplied ([`product`]). Images are shared among threads with the feature `parallel`;
//! sums over images are taken in parts of a fixed size and in a fixed order, so results do not depend on the number of threads.
//! Nothing is exact: each element is within γ(n)·Σ|terms| of the exact sum of its n terms.

use crate::WrongLength;
use crate::product::{Matrix, product};

/// Images whose weight gradients are summed one after the other, before parts are.
const PART: usize = 4;

/// Largest extent of anything here; products of three fit 64 bits.
const LARGEST: usize = 1 << 16;

/// A convolution of square kernel, stride and zero padding, without groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Convolution {
    inputs: usize,
    outputs: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
    image: [usize; 2],
}

/// No convolution has such extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoConvolution;

impl core::fmt::Display for NoConvolution {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no convolution has such extents")
    }
}

impl core::error::Error for NoConvolution {}

impl Convolution {
    /// From `[inputs, outputs, kernel, stride, pad, height, width]`; channels, then pixels.
    ///
    /// # Errors
    /// [`NoConvolution`] where an extent is 0 or above 65 536, the padding is as large as the kernel, or the kernel exceeds the
    /// padded image.
    pub fn new(extents: [usize; 7]) -> Result<Self, NoConvolution> {
        let [inputs, outputs, kernel, stride, pad, height, width] = extents;
        let positive = [inputs, outputs, kernel, stride, height, width];
        let fits = positive.iter().all(|e| (1..=LARGEST).contains(e));
        if !fits || pad >= kernel || kernel > height + 2 * pad || kernel > width + 2 * pad {
            return Err(NoConvolution);
        }
        Ok(Self {
            inputs,
            outputs,
            kernel,
            stride,
            pad,
            image: [height, width],
        })
    }

    /// As [`new`](Self::new) takes them.
    pub fn extents(&self) -> [usize; 7] {
        let [height, width] = self.image;
        let Self {
            inputs,
            outputs,
            kernel,
            stride,
            pad,
            ..
        } = *self;
        [inputs, outputs, kernel, stride, pad, height, width]
    }

    /// The same map with other numbers of channels.
    ///
    /// # Errors
    /// [`NoConvolution`] where either is 0 or above 65 536.
    pub fn with_channels(&self, inputs: usize, outputs: usize) -> Result<Self, NoConvolution> {
        let [_, _, kernel, stride, pad, height, width] = self.extents();
        Self::new([inputs, outputs, kernel, stride, pad, height, width])
    }

    /// Rows and columns of an output.
    pub fn output(&self) -> [usize; 2] {
        self.image
            .map(|e| (e + 2 * self.pad - self.kernel) / self.stride + 1)
    }

    /// Values of an input image.
    pub fn input_len(&self) -> usize {
        self.inputs * self.image[0] * self.image[1]
    }

    /// Values of an output image.
    pub fn output_len(&self) -> usize {
        self.outputs * self.pixels()
    }

    /// Weights: outputs × inputs × kernel × kernel.
    pub fn weights(&self) -> usize {
        self.outputs * self.taps()
    }

    /// Multiplications for one image.
    pub fn macs(&self) -> u64 {
        (self.weights() as u64).saturating_mul(self.pixels() as u64)
    }

    /// Values of the matrix of one image's patches.
    pub fn patches_len(&self) -> usize {
        self.taps().saturating_mul(self.pixels())
    }

    fn pixels(&self) -> usize {
        let [height, width] = self.output();
        height * width
    }

    fn taps(&self) -> usize {
        self.inputs * self.kernel * self.kernel
    }

    /// Whether the patches of an image are the image.
    fn is_pointwise(&self) -> bool {
        (self.kernel, self.stride, self.pad) == (1, 1, 0)
    }

    fn images(&self, x: usize, y: usize) -> Result<usize, WrongLength> {
        let images = x / self.input_len();
        WrongLength::check_product(images, self.input_len(), x)?;
        WrongLength::check_product(images, self.output_len(), y)?;
        Ok(images)
    }

    /// y = W∗x for each image.
    ///
    /// Shapes: `x` images × inputs × rows × columns, `weights` outputs × inputs × kernel × kernel, `y` images × outputs × …
    ///
    /// # Errors
    /// [`WrongLength`] where lengths do not agree.
    pub fn forward(&self, x: &[f32], weights: &[f32], y: &mut [f32]) -> Result<(), WrongLength> {
        self.images(x.len(), y.len())?;
        WrongLength::check(self.weights(), weights.len())?;
        let weights = Matrix::new(weights, self.outputs, self.taps());
        let pairs: Vec<_> = x
            .chunks_exact(self.input_len())
            .zip(y.chunks_exact_mut(self.output_len()))
            .collect();
        each(pairs, Vec::new, |patches: &mut Vec<f32>, (x, y)| {
            let patches = self.patches(x, patches);
            product(0.0, weights, patches, y);
        });
        Ok(())
    }

    /// dx = Wᵀ∗dy for each image.
    ///
    /// # Errors
    /// [`WrongLength`] where lengths do not agree.
    pub fn input_gradient(
        &self,
        weights: &[f32],
        dy: &[f32],
        dx: &mut [f32],
    ) -> Result<(), WrongLength> {
        self.images(dx.len(), dy.len())?;
        WrongLength::check(self.weights(), weights.len())?;
        let weights = Matrix::new(weights, self.outputs, self.taps()).transposed();
        let pairs: Vec<_> = dy
            .chunks_exact(self.output_len())
            .zip(dx.chunks_exact_mut(self.input_len()))
            .collect();
        each(pairs, Vec::new, |patches: &mut Vec<f32>, (dy, dx)| {
            let dy = Matrix::new(dy, self.outputs, self.pixels());
            if self.is_pointwise() {
                return product(0.0, weights, dy, dx);
            }
            patches.resize(self.patches_len(), 0.0);
            product(0.0, weights, dy, patches);
            dx.fill(0.0);
            self.runs(|patch, image, step, count| {
                let from = &patches[patch..patch + count];
                let into = dx[image..].iter_mut().step_by(step);
                into.zip(from).for_each(|(into, from)| *into += from);
            });
        });
        Ok(())
    }

    /// dW = Σ dy·xᵀ over all images.
    ///
    /// # Errors
    /// [`WrongLength`] where lengths do not agree.
    pub fn weight_gradient(
        &self,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
    ) -> Result<(), WrongLength> {
        self.images(x.len(), dy.len())?;
        WrongLength::check(self.weights(), dw.len())?;
        let mut parts: Vec<_> = x
            .chunks(PART * self.input_len())
            .zip(dy.chunks(PART * self.output_len()))
            .map(|(x, dy)| (x, dy, vec![0.0; dw.len()]))
            .collect();
        each(
            parts.iter_mut().collect(),
            Vec::new,
            |patches: &mut Vec<f32>, (x, dy, dw)| {
                let images = x.chunks_exact(self.input_len());
                for (x, dy) in images.zip(dy.chunks_exact(self.output_len())) {
                    let patches = self.patches(x, patches).transposed();
                    let dy = Matrix::new(dy, self.outputs, self.pixels());
                    product(1.0, dy, patches, dw);
                }
            },
        );
        dw.fill(0.0);
        for (_, _, part) in &parts {
            dw.iter_mut().zip(part).for_each(|(dw, part)| *dw += part);
        }
        Ok(())
    }

    /// The patches of an image, one column for each output pixel.
    fn patches<'a>(&self, x: &'a [f32], memory: &'a mut Vec<f32>) -> Matrix<'a> {
        if self.is_pointwise() {
            return Matrix::new(x, self.taps(), self.pixels());
        }
        // What lies under padding is zero and stays so: the same memory serves the same convolution alone.
        memory.resize(self.patches_len(), 0.0);
        self.runs(|patch, image, step, count| {
            let into = &mut memory[patch..patch + count];
            if step == 1 {
                into.copy_from_slice(&x[image..image + count]);
            } else {
                let from = x[image..].iter().step_by(step);
                into.iter_mut().zip(from).for_each(|(into, x)| *into = *x);
            }
        });
        Matrix::new(memory, self.taps(), self.pixels())
    }

    /// Names every run of pixels that lie side by side in the patches: its place there, in the image, the step in the image, and
    /// its length.
    fn runs(&self, mut run: impl FnMut(usize, usize, usize, usize)) {
        let [rows, columns] = self.output();
        let [height, width] = self.image;
        let inside = |tap: usize, extent: usize, count: usize| {
            let start = self.pad.saturating_sub(tap).div_ceil(self.stride);
            let end = (extent + self.pad)
                .saturating_sub(tap)
                .div_ceil(self.stride);
            (start.min(count), end.min(count))
        };
        for channel in 0..self.inputs {
            for tap in 0..self.kernel * self.kernel {
                let (down, across) = (tap / self.kernel, tap % self.kernel);
                let (first, last) = inside(across, width, columns);
                if first >= last {
                    continue;
                }
                let line = (channel * self.kernel * self.kernel + tap) * rows * columns;
                let column = first * self.stride + across - self.pad;
                let (top, bottom) = inside(down, height, rows);
                for row in top..bottom {
                    let y = row * self.stride + down - self.pad;
                    run(
                        line + row * columns + first,
                        (channel * height + y) * width + column,
                        self.stride,
                        last - first,
                    );
                }
            }
        }
    }
}

/// One step of descent: v ← μ·v + (g + λ·w), w ← w − η·v, the same bits wherever it is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "three numbers that both sides write"
)]
pub struct Descent {
    /// η.
    pub rate: f32,
    /// μ.
    pub momentum: f32,
    /// λ.
    pub decay: f32,
}

impl Descent {
    /// Moves the weights, and notes their speed.
    ///
    /// # Errors
    /// [`WrongLength`] where the three are not equally many.
    pub fn step(&self, w: &mut [f32], v: &mut [f32], g: &[f32]) -> Result<(), WrongLength> {
        WrongLength::check(w.len(), v.len())?;
        WrongLength::check(w.len(), g.len())?;
        for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
            *v = self.momentum * *v + (g + self.decay * *w);
            *w -= self.rate * *v;
        }
        Ok(())
    }
}

/// Does the work for each item, with memory that one thread uses again.
#[cfg(feature = "parallel")]
fn each<T: Send, M: Send>(
    items: Vec<T>,
    memory: impl Fn() -> M + Send + Sync,
    work: impl Fn(&mut M, T) + Send + Sync,
) {
    use rayon::prelude::*;
    items
        .into_par_iter()
        .for_each_init(memory, |memory, item| work(memory, item));
}

/// Does the work for each item, with memory that is used again.
#[cfg(not(feature = "parallel"))]
fn each<T, M>(items: Vec<T>, memory: impl Fn() -> M, work: impl Fn(&mut M, T)) {
    let mut memory = memory();
    items.into_iter().for_each(|item| work(&mut memory, item));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(len: usize, seed: usize) -> Vec<f32> {
        (0..len)
            .map(|i| ((i * 7919 + seed * 104_729) % 17) as f32 - 8.0)
            .collect()
    }

    fn dot(a: &[f32], b: &[f32]) -> f64 {
        a.iter()
            .zip(b)
            .map(|(a, b)| f64::from(*a) * f64::from(*b))
            .sum()
    }

    /// The definition, one output at a time; small integers make it exact.
    fn defined(c: &Convolution, x: &[f32], w: &[f32]) -> Vec<f32> {
        let [inputs, outputs, kernel, stride, pad, height, width] = c.extents();
        let [rows, columns] = c.output();
        let mut y = Vec::new();
        for x in x.chunks_exact(c.input_len()) {
            for at in 0..outputs * rows * columns {
                let (o, row, column) = (at / (rows * columns), at / columns % rows, at % columns);
                let mut sum = 0.0;
                for tap in 0..inputs * kernel * kernel {
                    let (i, down, across) =
                        (tap / kernel / kernel, tap / kernel % kernel, tap % kernel);
                    let (y, x_at) = (row * stride + down, column * stride + across);
                    if (pad..height + pad).contains(&y) && (pad..width + pad).contains(&x_at) {
                        let pixel = (i * height + y - pad) * width + x_at - pad;
                        sum += x[pixel] * w[o * inputs * kernel * kernel + tap];
                    }
                }
                y.push(sum);
            }
        }
        y
    }

    #[test]
    fn all_three_maps_are_those_of_the_definition() {
        for extents in [
            [3, 4, 3, 1, 1, 6, 5],
            [2, 3, 3, 2, 1, 7, 8],
            [4, 2, 1, 1, 0, 3, 3],
            [4, 2, 1, 2, 0, 5, 4],
            [1, 2, 5, 3, 2, 9, 9],
        ] {
            let c = Convolution::new(extents).expect("a convolution");
            let x = ramp(5 * c.input_len(), 1);
            let w = ramp(c.weights(), 2);
            let dy = ramp(5 * c.output_len(), 3);
            let mut y = vec![f32::NAN; dy.len()];
            c.forward(&x, &w, &mut y).expect("lengths");
            assert_eq!(y, defined(&c, &x, &w), "{extents:?}");
            // ⟨dy, W∗x⟩ = ⟨dx, x⟩ = ⟨dW, W⟩ for the adjoints, and for them alone, over enough x and W.
            let mut dx = vec![f32::NAN; x.len()];
            c.input_gradient(&w, &dy, &mut dx).expect("lengths");
            assert_eq!(dot(&dx, &x), dot(&dy, &y), "{extents:?}");
            let mut dw = vec![f32::NAN; w.len()];
            c.weight_gradient(&x, &dy, &mut dw).expect("lengths");
            assert_eq!(dot(&dw, &w), dot(&dy, &y), "{extents:?}");
            for seed in 4..10 {
                let (x2, w2) = (ramp(x.len(), seed), ramp(w.len(), seed + 20));
                assert_eq!(dot(&dx, &x2), dot(&dy, &defined(&c, &x2, &w)));
                assert_eq!(dot(&dw, &w2), dot(&dy, &defined(&c, &x, &w2)));
            }
            assert!(c.forward(&x[1..], &w, &mut y).is_err());
            assert!(c.weight_gradient(&x, &dy, &mut dw[1..]).is_err());
        }
    }

    #[test]
    fn impossible_extents_are_refused() {
        for extents in [
            [0, 1, 3, 1, 1, 4, 4],
            [1, 1, 3, 1, 3, 4, 4],
            [1, 1, 5, 1, 0, 4, 4],
            [1, usize::MAX, 1, 1, 0, 4, 4],
        ] {
            assert_eq!(Convolution::new(extents), Err(NoConvolution));
        }
    }
}
