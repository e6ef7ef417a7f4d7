//! A decoder: a network that is trained to give the picture back, of all tensors of a cut together.
//!
//! The tensors are brought to one size of plane and laid side by side; convolutions and doublings lead to the size of the
//! picture. What comes as a vector is first multiplied to a small plane. It is trained with Adam on the mean distance of pixels,
//! on images that are never scored.

use candle_core::{DType, Device, Tensor, Var};

use super::patches::convolve;
use super::{Adam, leaky, pictures, sigmoid};
use crate::Result;
use crate::rng::Rng;
use crate::subject::Geometry;

/// How long it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Budget {
    /// Steps of the optimiser.
    pub steps: usize,
    /// Images in each.
    pub batch: usize,
}

/// Planes smaller than this are made from a vector.
const VECTOR: usize = 3;

struct Layer {
    weights: Var,
    bias: Var,
}

impl Layer {
    fn new(rng: &mut Rng, outputs: usize, taps: usize) -> Result<Self> {
        let values = rng.normals(outputs * taps, (1.6 / taps as f64).sqrt());
        Ok(Self {
            weights: Var::from_vec(values, (outputs, taps), &Device::Cpu)?,
            bias: Var::zeros((outputs, 1), DType::F32, &Device::Cpu)?,
        })
    }

    fn over(&self, x: &Tensor) -> Result<Tensor> {
        Ok(convolve(
            x,
            self.weights.as_tensor(),
            self.bias.as_tensor(),
        )?)
    }
}

/// A decoder for a cut.
pub struct Decoder {
    geometry: Vec<Geometry>,
    /// By tensor: mean and factor.
    scale: Vec<(f32, f32)>,
    frame: Geometry,
    base: [usize; 2],
    /// Where the cut has no planes: to the first plane.
    lift: Option<Layer>,
    /// One after the other; before each but the first two the plane doubles.
    layers: Vec<Layer>,
    grids: Vec<[usize; 2]>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Decoder of {} layers", self.layers.len())
    }
}

/// Channels at a size of plane: fewer where there are more pixels.
fn width(grid: [usize; 2]) -> usize {
    (1_000 / grid[0].max(grid[1]).max(1)).clamp(12, 48)
}

impl Decoder {
    /// An untrained one; `samples` are what crosses for some images, by image and tensor.
    ///
    /// # Errors
    /// [`crate::AssessError::Framework`].
    pub fn new(
        geometry: &[Geometry],
        frame: Geometry,
        samples: &[Vec<Vec<f32>>],
        seed: u64,
    ) -> Result<Self> {
        let mut rng = Rng::new(seed);
        let scale = (0..geometry.len()).map(|tensor| {
            let all = samples.iter().flat_map(|sample| &sample[tensor]);
            let (mut sum, mut square, mut count) = (0.0_f64, 0.0_f64, 0.0_f64);
            for value in all {
                let value = f64::from(*value);
                (sum, square, count) = (sum + value, square + value * value, count + 1.0);
            }
            let mean = sum / count.max(1.0);
            let spread = (square / count.max(1.0) - mean * mean).max(0.0).sqrt();
            (mean as f32, (1.0 / spread.max(1e-6)) as f32)
        });
        let largest = geometry
            .iter()
            .max_by_key(|[_, height, width]| height * width);
        let mut base = largest.map_or([1, 1], |[_, height, width]| [*height, *width]);
        let mut channels: usize = geometry.iter().map(|[channels, ..]| channels).sum();
        let mut lift = None;
        if base[0].min(base[1]) < VECTOR {
            let vector: usize = geometry
                .iter()
                .map(|all| all.iter().product::<usize>())
                .sum();
            base = [frame[1], frame[2]];
            while base[0].max(base[1]) > 8 {
                base = base.map(|side| side.div_ceil(2));
            }
            channels = width(base);
            lift = Some(Layer::new(&mut rng, channels * base[0] * base[1], vector)?);
        }
        let (mut layers, mut grids) = (Vec::new(), Vec::new());
        let mut grid = base;
        loop {
            let next = width(grid);
            layers.push(Layer::new(&mut rng, next, 9 * channels)?);
            grids.push(grid);
            channels = next;
            if grids.len() == 1 {
                continue;
            }
            if grid[0] >= frame[1] && grid[1] >= frame[2] {
                break;
            }
            grid = [
                (2 * grid[0]).min(frame[1]).max(grid[0].min(frame[1])),
                (2 * grid[1]).min(frame[2]).max(grid[1].min(frame[2])),
            ];
        }
        layers.push(Layer::new(&mut rng, frame[0], 9 * channels)?);
        grids.push([frame[1], frame[2]]);
        Ok(Self {
            geometry: geometry.to_vec(),
            scale: scale.collect(),
            frame,
            base,
            lift,
            layers,
            grids,
        })
    }

    /// How many numbers it has learned.
    pub fn parameters(&self) -> usize {
        let all = self.layers.iter().chain(&self.lift);
        all.map(|layer| layer.weights.elem_count() + layer.bias.elem_count())
            .sum()
    }

    fn variables(&self) -> Vec<Var> {
        let all = self.layers.iter().chain(&self.lift);
        all.flat_map(|layer| [layer.weights.clone(), layer.bias.clone()])
            .collect()
    }

    /// What crosses, as the first layer takes it.
    fn input(&self, samples: &[&Vec<Vec<f32>>]) -> Result<Tensor> {
        let images = samples.len();
        let mut values = Vec::new();
        if self.lift.is_some() {
            // Elements × images.
            for (tensor, (mean, factor)) in self.scale.iter().enumerate() {
                let elements: usize = self.geometry[tensor].iter().product();
                for at in 0..elements {
                    let each = samples.iter().map(|sample| sample[tensor][at]);
                    values.extend(each.map(|value| (value - mean) * factor));
                }
            }
            let rows = values.len() / images.max(1);
            return Ok(Tensor::from_vec(values, (rows, images), &Device::Cpu)?);
        }
        let [rows, columns] = self.base;
        let mut all = 0;
        for (tensor, (mean, factor)) in self.scale.iter().enumerate() {
            let [channels, height, width] = self.geometry[tensor];
            all += channels;
            for channel in 0..channels {
                for sample in samples {
                    let plane = &sample[tensor][channel * height * width..][..height * width];
                    for row in 0..rows {
                        let line = &plane[row * height / rows * width..][..width];
                        let each = (0..columns).map(|column| line[column * width / columns]);
                        values.extend(each.map(|value| (value - mean) * factor));
                    }
                }
            }
        }
        Ok(Tensor::from_vec(
            values,
            (all, images, rows, columns),
            &Device::Cpu,
        )?)
    }

    /// Channels × images × rows × columns of the pictures.
    fn forward(&self, samples: &[&Vec<Vec<f32>>]) -> Result<Tensor> {
        let mut x = self.input(samples)?;
        if let Some(lift) = &self.lift {
            let y = lift
                .weights
                .matmul(&x)?
                .broadcast_add(lift.bias.as_tensor())?;
            let [rows, columns] = self.base;
            let channels = y.dim(0)? / (rows * columns);
            let y = y.reshape((channels, rows * columns, samples.len()))?;
            let y = y.transpose(1, 2)?.contiguous()?;
            x = leaky(&y.reshape((channels, samples.len(), rows, columns))?)?;
        }
        let mut now = self.base;
        for (at, (layer, grid)) in self.layers.iter().zip(&self.grids).enumerate() {
            if *grid != now {
                for (axis, from, to) in [(2, now[0], grid[0]), (3, now[1], grid[1])] {
                    if from != to {
                        let places = (0..to).map(|place| (place * from / to) as u32);
                        let places = Tensor::from_iter(places, &Device::Cpu)?;
                        x = x.contiguous()?.index_select(&places, axis)?;
                    }
                }
                now = *grid;
            }
            x = layer.over(&x)?;
            x = match at + 1 == self.layers.len() {
                true => sigmoid(&x)?,
                false => leaky(&x)?,
            };
        }
        Ok(x)
    }

    /// Trains it on what crosses (by image and tensor) and the pictures.
    ///
    /// # Errors
    /// [`crate::AssessError::Framework`], [`crate::AssessError::Stopped`] where `tick` says so; it hears of every step.
    pub fn train(
        &mut self,
        samples: &[Vec<Vec<f32>>],
        images: &[&[f32]],
        budget: Budget,
        seed: u64,
        tick: &mut dyn FnMut() -> bool,
    ) -> Result<()> {
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut adam = Adam::new(self.variables())?;
        let mut order: Vec<usize> = Vec::new();
        let [channels, height, width] = self.frame;
        for step in 0..budget.steps {
            let mut batch = Vec::with_capacity(budget.batch);
            while batch.len() < budget.batch.min(samples.len()) {
                if order.is_empty() {
                    order = (0..samples.len()).collect();
                    rng.shuffle(&mut order);
                }
                batch.extend(order.pop());
            }
            let picked: Vec<&Vec<Vec<f32>>> = batch.iter().map(|at| &samples[*at]).collect();
            let mut target = Vec::with_capacity(batch.len() * channels * height * width);
            for channel in 0..channels {
                for at in &batch {
                    target.extend_from_slice(
                        &images[*at][channel * height * width..][..height * width],
                    );
                }
            }
            let target =
                Tensor::from_vec(target, (channels, batch.len(), height, width), &Device::Cpu)?;
            let loss = (self.forward(&picked)? - target)?.abs()?.mean_all()?;
            // A warm start, then down to a hundredth.
            let part = step as f64 / budget.steps as f64;
            let rate = 4e-3 * (step as f64 / 20.0).min(1.0) * (0.01 + 0.99 * (1.0 - part));
            adam.step(&loss.backward()?, rate)?;
            if !tick() {
                return Err(crate::AssessError::Stopped);
            }
        }
        Ok(())
    }

    /// The pictures that it makes of what crosses.
    ///
    /// # Errors
    /// [`crate::AssessError::Framework`].
    pub fn reconstruct(&self, samples: &[Vec<Vec<f32>>]) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(samples.len());
        for some in samples.chunks(16) {
            let some: Vec<&Vec<Vec<f32>>> = some.iter().collect();
            let made = self.forward(&some)?.detach();
            all.extend(pictures(&made.transpose(0, 1)?.contiguous()?)?);
        }
        Ok(all)
    }
}
