//! Inversion: gradient descent on the picture until the front gives what was seen, with a prior for smooth pictures.
//!
//! Source: Mahendran and Vedaldi, "Understanding deep image representations by inverting them" (CVPR 2015): total variation
//! as the prior. Ours starts from several pictures where there are some (grey, the decoder's) and keeps for each
//! image the one whose front fits best; the true picture is never consulted.

use candle_core::{Device, Tensor, Var};

use super::{Adam, pictures, sigmoid};
use crate::Result;
use crate::front::Front;
use crate::subject::Geometry;

/// What an inversion starts from and how long it takes.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Budget {
    /// Images that are attacked.
    pub images: usize,
    /// Steps for each start.
    pub steps: usize,
    /// The weight of the prior.
    pub smooth: f64,
}

/// What the inversion knows.
#[derive(Debug)]
pub struct Inversion<'a> {
    /// The front's weights.
    pub front: &'a Front,
    /// Of the pictures.
    pub frame: Geometry,
    /// Factor and summand of each channel, from pixels to what the front takes.
    pub affine: Vec<(f32, f32)>,
}

impl Inversion<'_> {
    /// What the front takes, of pictures.
    fn fed(&self, pictures: &Tensor) -> Result<Tensor> {
        let [channels, ..] = self.frame;
        let column = |values: Vec<f32>| Tensor::from_vec(values, (1, channels, 1, 1), &Device::Cpu);
        let factor = column(self.affine.iter().map(|pair| pair.0).collect())?;
        let summand = column(self.affine.iter().map(|pair| pair.1).collect())?;
        let fed = pictures.broadcast_mul(&factor)?.broadcast_add(&summand)?;
        Ok(fed.flatten_from(1)?)
    }

    /// Pictures whose front is close to what was seen, by image and tensor.
    ///
    /// # Errors
    /// [`crate::AssessError::Framework`], [`crate::AssessError::Stopped`] where `tick` says so; it hears of every step.
    pub fn run(
        &self,
        seen: &[Vec<Vec<f32>>],
        starts: &[Vec<Vec<f32>>],
        budget: Budget,
        tick: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Vec<f32>>> {
        let images = seen.len();
        let mut best: Vec<(f32, Vec<f32>)> = vec![(f32::INFINITY, Vec::new()); images];
        let targets: Vec<Tensor> = (0..seen.first().map_or(0, Vec::len))
            .map(|tensor| {
                let all: Vec<f32> = seen
                    .iter()
                    .flat_map(|image| &image[tensor])
                    .copied()
                    .collect();
                let elements = all.len() / images;
                Tensor::from_vec(all, (images, elements), &Device::Cpu)
            })
            .collect::<Result<_, _>>()?;
        // The spread of each tensor makes their distances comparable.
        let mut weights = Vec::new();
        for target in &targets {
            let centred = target.broadcast_sub(&target.mean_keepdim(1)?)?;
            weights
                .push(1.0 / f64::from(centred.sqr()?.mean_all()?.to_scalar::<f32>()?).max(1e-12));
        }
        for start in starts {
            let (distance, found) = self.descend(&targets, &weights, start, budget, tick)?;
            for ((best, distance), found) in best.iter_mut().zip(distance).zip(found) {
                if distance < best.0 || best.1.is_empty() {
                    *best = (distance, found);
                }
            }
        }
        Ok(best.into_iter().map(|(_, found)| found).collect())
    }

    fn descend(
        &self,
        targets: &[Tensor],
        weights: &[f64],
        start: &[Vec<f32>],
        budget: Budget,
        tick: &mut dyn FnMut() -> bool,
    ) -> Result<(Vec<f32>, Vec<Vec<f32>>)> {
        let [channels, height, width] = self.frame;
        // Pixels are a sigmoid of what is varied, so they stay between 0 and 1.
        let logit = |pixel: f32| {
            let pixel = pixel.clamp(0.02, 0.98);
            (pixel / (1.0 - pixel)).ln()
        };
        let flat: Vec<f32> = start.iter().flatten().map(|pixel| logit(*pixel)).collect();
        let shape = (start.len(), channels, height, width);
        let varied = Var::from_vec(flat, shape, &Device::Cpu)?;
        let mut adam = Adam::new(vec![varied.clone()])?;
        let distance = |picture: &Tensor| -> Result<Tensor> {
            let made = self.front.forward(&self.fed(picture)?)?;
            let mut sum: Option<Tensor> = None;
            for ((made, target), weight) in made.iter().zip(targets).zip(weights) {
                let apart = ((made - target)?.sqr()?.mean(1)? * *weight)?;
                sum = Some(match sum {
                    None => apart,
                    Some(sum) => (sum + apart)?,
                });
            }
            Ok(sum.unwrap_or(Tensor::zeros(
                start.len(),
                candle_core::DType::F32,
                &Device::Cpu,
            )?))
        };
        for step in 0..budget.steps {
            let picture = sigmoid(varied.as_tensor())?;
            let apart = distance(&picture)?;
            let down = (picture.narrow(2, 1, height - 1)? - picture.narrow(2, 0, height - 1)?)?;
            let across = (picture.narrow(3, 1, width - 1)? - picture.narrow(3, 0, width - 1)?)?;
            let rough = (down.abs()?.mean_all()? + across.abs()?.mean_all()?)?;
            let images = start.len() as f64;
            let loss = (apart.sum_all()? + (rough * (budget.smooth * images))?)?;
            let part = step as f64 / budget.steps as f64;
            adam.step(&loss.backward()?, 0.2 * (0.05 + 0.95 * (1.0 - part)))?;
            if !tick() {
                return Err(crate::AssessError::Stopped);
            }
        }
        let picture = sigmoid(varied.as_tensor())?.detach();
        let apart = distance(&picture)?.to_vec1::<f32>()?;
        Ok((apart, pictures(&picture)?))
    }
}
