//! A training run: epochs over a data set, checkpoints, and what was reached.
//!
//! A checkpoint is one file, written aside and renamed, so that a run that is killed at any point goes on from the last one. It holds
//! parameters, speeds, running statistics and the place in the epoch; orders of images follow from the seed. A run alone, resumed,
//! ends with the same bits as one that was never stopped; with a worker, bases of low rank start anew, so the last bits differ.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};

use crate::TrainError;
use crate::data::Dataset;
use crate::models::Architecture;
use crate::net::Network;
use crate::ops::{cross_entropy, read};
use crate::optim::{Sgd, cosine};
use crate::split::{Spent, Split};

/// What a run is to do. Two runs of equal recipes on equal data make equal networks.
#[derive(Clone, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct Recipe {
    /// Family of the network.
    pub architecture: Architecture,
    /// Channels of its first convolution.
    pub width: usize,
    /// Passes over the data.
    pub epochs: usize,
    /// Images of a step.
    pub batch: usize,
    /// First rate; the last is a hundredth of it.
    pub rate: f64,
    /// Of weights and orders.
    pub seed: u64,
}

impl Recipe {
    /// In words that a checkpoint keeps.
    fn words(&self, with: &str, data: &Dataset) -> String {
        format!(
            "{self:?} with {with} on {} images of {:?}",
            data.len(),
            data.shape()
        )
    }
}

/// What an epoch came to.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Epoch {
    /// Mean loss of its steps.
    pub loss: f64,
    /// Part of the test set that is classified rightly.
    pub accuracy: f64,
    /// How long it took, the test included.
    pub took: Duration,
}

/// Where a run stands, after each step.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Standing<'a> {
    /// Epochs that are over.
    pub epochs: &'a [Epoch],
    /// Steps done of the present epoch, and how many it has.
    pub step: (usize, usize),
    /// Mean loss of the present epoch so far.
    pub loss: f64,
}

/// A run, and the network that it trains.
#[derive(Debug)]
pub struct Session {
    recipe: Recipe,
    with: String,
    network: Network,
    sgd: Sgd,
    split: Option<Split>,
    checkpoint: Option<PathBuf>,
    epochs: Vec<Epoch>,
    step: usize,
    losses: f64,
    elapsed: Duration,
}

/// Steps between two checkpoints.
const STEPS_KEPT: usize = 100;

/// Images that are tested at a time.
const TESTED: usize = 250;

impl Session {
    /// A run of this recipe; where the file `checkpoint` is there, it goes on from there. `with` names who convolves, for the
    /// checkpoint.
    ///
    /// # Errors
    /// [`TrainError`] where the images are too small, or the checkpoint is of another run.
    pub fn new(
        recipe: Recipe,
        data: &Dataset,
        with: &str,
        split: Option<Split>,
        checkpoint: Option<&Path>,
    ) -> Result<Self, TrainError> {
        let mut network =
            recipe
                .architecture
                .network(data.shape(), data.classes(), recipe.width, recipe.seed)?;
        if let Some(split) = &split {
            network.convolve_by(Arc::new(split.clone()));
        }
        let mut session = Self {
            with: recipe.words(with, data),
            recipe,
            network,
            sgd: Sgd::new(0.9, 5e-4),
            split,
            checkpoint: checkpoint.map(Path::to_owned),
            epochs: Vec::new(),
            step: 0,
            losses: 0.0,
            elapsed: Duration::ZERO,
        };
        if let Some(path) = checkpoint
            && path.exists()
        {
            session.resume(path)?;
        }
        Ok(session)
    }

    /// The network.
    pub fn network(&mut self) -> &mut Network {
        &mut self.network
    }

    /// Epochs that are over.
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    /// Steps done of the present epoch.
    pub fn step(&self) -> usize {
        self.step
    }

    /// Where the time of split convolutions went.
    pub fn spent(&self) -> Option<Spent> {
        self.split.as_ref().map(Split::spent)
    }

    /// Trains to the end; `see` is told after each step.
    ///
    /// # Errors
    /// [`TrainError`] where the worker fails or lies, or a checkpoint cannot be written. The last checkpoint stays.
    pub fn train(
        &mut self,
        train: &Dataset,
        test: &Dataset,
        mut see: impl FnMut(Standing<'_>),
    ) -> Result<(), TrainError> {
        let mut start = Instant::now();
        while self.epochs.len() < self.recipe.epochs {
            let epoch = self.epochs.len();
            let batches = train.batches(self.recipe.batch, self.recipe.seed, epoch as u64);
            let of = batches.len();
            for batch in batches.iter().skip(self.step) {
                let done = epoch * of + self.step;
                let rate = self.recipe.rate;
                let rate = cosine(rate, rate / 100.0, done, of * self.recipe.epochs);
                self.losses += self.learn(train, batch, rate)?;
                self.step += 1;
                see(Standing {
                    epochs: &self.epochs,
                    step: (self.step, of),
                    loss: self.losses / self.step as f64,
                });
                if self.step.is_multiple_of(STEPS_KEPT) && self.step < of {
                    self.elapsed += start.elapsed();
                    start = Instant::now();
                    self.keep()?;
                }
            }
            let accuracy = self.test(test)?;
            self.epochs.push(Epoch {
                loss: self.losses / of.max(1) as f64,
                accuracy,
                took: self.elapsed + start.elapsed(),
            });
            start = Instant::now();
            (self.step, self.losses, self.elapsed) = (0, 0.0, Duration::ZERO);
            self.keep()?;
            see(Standing {
                epochs: &self.epochs,
                step: (0, of),
                loss: 0.0,
            });
        }
        Ok(())
    }

    /// One step; its loss.
    fn learn(&mut self, data: &Dataset, batch: &[usize], rate: f64) -> Result<f64, TrainError> {
        let (x, labels) = data.batch(batch)?;
        if let Some(split) = &self.split {
            split.train(true);
            split.descend(self.sgd.descent("convolution.weight", rate as f32));
        }
        let y = self.network.forward(&x, true)?;
        let loss = cross_entropy(&y, &labels)?;
        self.sgd.step(&self.network, &loss.backward()?, rate)?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    /// The part of a set that is classified rightly.
    ///
    /// # Errors
    /// As [`train`](Self::train).
    pub fn test(&mut self, data: &Dataset) -> Result<f64, TrainError> {
        if let Some(split) = &self.split {
            split.train(false);
        }
        let all: Vec<usize> = (0..data.len()).collect();
        let mut right = 0;
        for batch in all.chunks(TESTED) {
            let (x, labels) = data.batch(batch)?;
            right += self.network.correct(&x, &labels)?;
        }
        Ok(right as f64 / data.len().max(1) as f64)
    }

    /// Writes a checkpoint, where one is kept.
    fn keep(&self) -> Result<(), TrainError> {
        let Some(path) = &self.checkpoint else {
            return Ok(());
        };
        let mut tensors = HashMap::new();
        for (name, parameter) in self.network.parameters() {
            tensors.insert(format!("p.{name}"), parameter.as_detached_tensor());
        }
        let lists = (self.sgd.speeds().iter().map(|of| ("v", of)))
            .chain(self.network.statistics().iter().map(|of| ("s", of)));
        for (kind, (name, values)) in lists {
            let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
            tensors.insert(format!("{kind}.{name}"), tensor);
        }
        let past = self.epochs.iter().flat_map(|epoch| {
            let took = epoch.took.as_secs_f64();
            [epoch.loss, epoch.accuracy, took]
        });
        let now = [self.step as f64, self.losses, self.elapsed.as_secs_f64()];
        let history: Vec<f64> = now.into_iter().chain(past).collect();
        tensors.insert(
            "history".to_owned(),
            Tensor::from_slice(&history, history.len(), &Device::Cpu)?,
        );
        let recipe = self.with.as_bytes();
        tensors.insert(
            "recipe".to_owned(),
            Tensor::from_slice(recipe, recipe.len(), &Device::Cpu)?,
        );
        let aside = path.with_extension("new");
        candle_core::safetensors::save(&tensors, &aside)?;
        let io = |source| TrainError::Io {
            path: path.clone(),
            source,
        };
        std::fs::File::open(&aside)
            .and_then(|file| file.sync_all())
            .map_err(io)?;
        std::fs::rename(&aside, path).map_err(io)
    }

    fn resume(&mut self, path: &Path) -> Result<(), TrainError> {
        let fault = |why: String| TrainError::Data {
            path: path.to_owned(),
            why,
        };
        let other = || {
            fault("no checkpoint of such a run; name another file or remove this one".to_owned())
        };
        let mut tensors = candle_core::safetensors::load(path, &Device::Cpu)
            .map_err(|error| fault(format!("no checkpoint: {error}")))?;
        let recipe: Vec<u8> = tensors.remove("recipe").ok_or_else(other)?.to_vec1()?;
        if recipe != self.with.as_bytes() {
            let recipe = String::from_utf8_lossy(&recipe);
            return Err(fault(format!(
                "a checkpoint of another run ({recipe}), this one is {}",
                self.with
            )));
        }
        let history: Vec<f64> = tensors.remove("history").ok_or_else(other)?.to_vec1()?;
        let (rows, rest) = history.as_chunks::<3>();
        let ([now, past @ ..], []) = (rows, rest) else {
            return Err(other());
        };
        let time = |seconds: f64| Duration::try_from_secs_f64(seconds).unwrap_or_default();
        (self.step, self.losses, self.elapsed) = (now[0] as usize, now[1], time(now[2]));
        self.epochs = past
            .iter()
            .map(|[loss, accuracy, took]| Epoch {
                loss: *loss,
                accuracy: *accuracy,
                took: time(*took),
            })
            .collect();
        let (mut speeds, mut statistics) = (BTreeMap::new(), BTreeMap::new());
        for (name, tensor) in tensors {
            match name.split_once('.') {
                Some(("p", name)) => {
                    let parameter = self.network.parameters().get(name).ok_or_else(other)?;
                    parameter.set(&tensor)?;
                }
                Some(("v", name)) => {
                    let fits = self.network.parameters().get(name);
                    let fits = fits.is_some_and(|p| p.elem_count() == tensor.elem_count());
                    speeds.insert(
                        name.to_owned(),
                        fits.then(|| read(&tensor, <[f32]>::to_vec))
                            .ok_or_else(other)??,
                    );
                }
                Some(("s", name)) => {
                    statistics.insert(name.to_owned(), read(&tensor, <[f32]>::to_vec)?);
                }
                _ => return Err(other()),
            }
        }
        if let Some(split) = &self.split {
            for site in self.network.sites() {
                if let Some(speeds) = speeds.get(&format!("{}.weight", site.name)) {
                    split.resume(site.number, speeds.clone());
                }
            }
        }
        self.sgd.resume(speeds);
        self.network.resume_statistics(statistics);
        Ok(())
    }
}
