//! Convolutions of which a part is computed by a worker, forward and backward.
//!
//! Under [`Mode::Asymml`] each image X of a layer becomes U·V + R. V's few channels are convolved here with Uᵀ·W, R by the worker;
//! their sum is taken before anything non-linear. Backward, the worker is sent dy, makes dx = Wᵀ∗dy and its part of dW, and is sent
//! the other part, as the paper has it. **So it learns more than the residual**: dy, all of dW, and the weights
//! (docs/asymml.md measures what that gives away). The first layer never leaves. Under [`Mode::Clear`] everything is sent as it is.
//!
//! Every answer is checked before it is used ([`crate::check`]).
//!
//! Source: Niu, Ali, Avestimehr, *3LegRace: Privacy-Preserving DNN Training over TEEs and GPUs* (PETS 2022).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use candle_core::{CpuStorage, CustomOp2, Error, Layout, Result, Shape, Tensor};
use larvatus_kernels::float::images::{Convolution, Descent};
use larvatus_kernels::product::{Matrix, product};
use larvatus_proto::training::Task;
use rayon::prelude::*;

use crate::check::{self, Checked, Refusal};
use crate::lowrank::{Part, Rank, Splitter};
use crate::net::{Convolve, Site};
use crate::ops::{self, output_shape, read, values};
use crate::random::Random;
use crate::remote::Remote;

/// What a worker is sent.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::exhaustive_enums, reason = "a command line names each")]
pub enum Mode {
    /// Activations, gradients and weights as they are.
    Clear,
    /// Residuals of activations; gradients and weights as they are.
    Asymml(Rank),
}

/// Where the time of split convolutions went, and what crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Spent {
    /// Splitting activations.
    pub splitting: Duration,
    /// Convolving the low-rank parts, and the layers that stay.
    pub here: Duration,
    /// Checking answers.
    pub checking: Duration,
    /// Waiting for answers.
    pub waiting: Duration,
    /// Bytes to the worker.
    pub sent: u64,
    /// Bytes from it.
    pub received: u64,
}

/// What a layer is known by besides its site.
#[derive(Debug, Default)]
struct Layer {
    splitter: Option<Splitter>,
    /// Whether the worker has the weights that we have.
    held: bool,
    /// What weights were when they were sent, or what both sides moved them to; another value is sent anew.
    weights: Vec<f32>,
    speeds: Vec<f32>,
}

#[derive(Debug)]
struct State {
    remote: Remote,
    layers: Vec<Layer>,
    random: Random,
    spent: Spent,
    caught: Option<Refusal>,
}

/// Convolutions by a worker.
#[derive(Clone, Debug)]
pub struct Split(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    mode: Mode,
    training: AtomicBool,
    descent: Mutex<Descent>,
    state: Mutex<State>,
}

/// Before a rate is known.
const STILL: Descent = Descent {
    rate: 0.0,
    momentum: 0.0,
    decay: 0.0,
};

impl Split {
    /// With this worker. `seed` is what its answers are checked with: 64 bits that it cannot guess.
    pub fn new(remote: Remote, mode: Mode, seed: u64) -> Self {
        Self(Arc::new(Shared {
            mode,
            training: AtomicBool::new(true),
            descent: Mutex::new(STILL),
            state: Mutex::new(State {
                remote,
                layers: Vec::new(),
                random: Random::new(seed, 0x0c4e),
                spent: Spent::default(),
                caught: None,
            }),
        }))
    }

    /// Whether what comes is to be learned from; otherwise the worker keeps nothing for gradients.
    pub fn train(&self, training: bool) {
        self.0.training.store(training, Ordering::Relaxed);
    }

    /// The step that follows the next gradients, for the worker to take, too.
    pub fn descend(&self, descent: Descent) {
        *self
            .0
            .descent
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = descent;
    }

    /// Speeds of the optimiser for the layer of this number, before the worker has been sent it.
    pub fn resume(&self, number: usize, speeds: Vec<f32>) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.layer(number).speeds = speeds;
    }

    /// Where time went so far, and what crossed.
    pub fn spent(&self) -> Spent {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (waiting, sent, received) = state.remote.traffic();
        Spent {
            waiting,
            sent,
            received,
            ..state.spent
        }
    }

    /// Why an answer was refused, once one was.
    pub fn caught(&self) -> Option<Refusal> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.caught.clone()
    }

    /// Number of each split layer, with its rank and the part of the energy that the last residual had.
    pub fn ranks(&self) -> Vec<(usize, usize, f64)> {
        let state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = state.layers.iter().enumerate();
        layers
            .filter_map(|(number, layer)| {
                let splitter = layer.splitter.as_ref()?;
                Some((number, splitter.rank(), splitter.residual_energy()))
            })
            .collect()
    }
}

impl Convolve for Split {
    fn convolve(&self, site: &Site, x: &Tensor, weights: &Tensor) -> Result<Tensor> {
        if site.first && self.0.mode != Mode::Clear {
            let start = Instant::now();
            let y = ops::convolve(x, weights, site.convolution);
            self.0
                .state
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .spent
                .here += start.elapsed();
            return y;
        }
        let op = SplitOp {
            shared: Arc::clone(&self.0),
            site: site.clone(),
            parts: Mutex::new(Vec::new()),
        };
        x.contiguous()?.apply_op2(&weights.contiguous()?, op)
    }
}

struct SplitOp {
    shared: Arc<Shared>,
    site: Site,
    /// The low-rank parts of the batch, for the way back.
    parts: Mutex<Vec<Part>>,
}

impl CustomOp2 for SplitOp {
    fn name(&self) -> &'static str {
        "split-convolve"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let convolution = self.site.convolution;
        let (x, w) = (values(x, x_layout)?, values(w, w_layout)?);
        let images = x.len() / convolution.input_len();
        let mut state = self
            .shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let y = state.forward(&self.shared, &self.site, x, w, &self.parts)?;
        Ok((CpuStorage::F32(y), output_shape(&convolution, images)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _: &Tensor,
        dy: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let wants = x.track_op();
        let (dx, dw) = read(x, |x| {
            read(w, |w| {
                read(dy, |dy| {
                    let mut state = self
                        .shared
                        .state
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner);
                    let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
                    state.backward(&self.shared, &self.site, (x, w, dy), &parts, wants)
                })
            })
        })????;
        let dx = wants.then(|| Tensor::from_vec(dx, x.shape(), x.device()));
        Ok((
            dx.transpose()?,
            Some(Tensor::from_vec(dw, w.shape(), w.device())?),
        ))
    }
}

impl State {
    /// The numbers of an accepted answer; a refusal is noted.
    fn accept(&mut self, checked: std::result::Result<Checked, Refusal>) -> Result<Vec<f32>> {
        checked.map(Checked::into_inner).map_err(|refusal| {
            self.caught = Some(refusal.clone());
            Error::wrap(refusal)
        })
    }

    fn layer(&mut self, number: usize) -> &mut Layer {
        if self.layers.len() <= number {
            self.layers.resize_with(number + 1, Layer::default);
        }
        &mut self.layers[number]
    }

    /// Has the worker hold these weights, where it does not.
    fn provide(&mut self, site: &Site, w: &[f32]) -> Result<u32> {
        let number = u32::try_from(site.number).map_err(Error::wrap)?;
        let layer = self.layer(site.number);
        if !layer.held || layer.weights != w {
            layer.held = true;
            layer.weights = w.to_vec();
            // Speeds that both sides had are kept; a worker that is new here gets those of the optimiser by `resume`.
            layer.speeds.resize(w.len(), 0.0);
            let payload = [w, layer.speeds.as_slice()].concat();
            let task = Task::Layer(site.convolution);
            let _none = self
                .remote
                .send(number, task, &payload, 0)
                .map_err(Error::wrap)?;
        }
        Ok(number)
    }

    fn forward(
        &mut self,
        shared: &Shared,
        site: &Site,
        x: &[f32],
        w: &[f32],
        parts: &Mutex<Vec<Part>>,
    ) -> Result<Vec<f32>> {
        let convolution = site.convolution;
        let number = self.provide(site, w)?;
        let images = x.len() / convolution.input_len();
        let answer = images * convolution.output_len();
        let keep = shared.training.load(Ordering::Relaxed);
        let start = Instant::now();
        let mut sent = x.to_vec();
        let mut low = Vec::new();
        if let Mode::Asymml(rank) = shared.mode {
            low = self.splitter(site, rank).split(&mut sent);
            self.spent.splitting += start.elapsed();
        }
        let task = Task::Forward { keep };
        let awaited = self
            .remote
            .send(number, task, &sent, answer)
            .map_err(Error::wrap)?;
        let start = Instant::now();
        let here = match low.is_empty() {
            true => Vec::new(),
            false => convolve_parts(&convolution, w, &low)?,
        };
        self.spent.here += start.elapsed();
        let y = self.remote.receive(awaited).map_err(Error::wrap)?;
        let start = Instant::now();
        let y = check::forward(&convolution, w, &sent, y, &mut self.random);
        let mut y = self.accept(y)?;
        self.spent.checking += start.elapsed();
        y.iter_mut().zip(&here).for_each(|(y, here)| *y += here);
        *parts.lock().unwrap_or_else(PoisonError::into_inner) = low;
        Ok(y)
    }

    fn splitter(&mut self, site: &Site, rank: Rank) -> &mut Splitter {
        let [channels, _, _, _, _, rows, columns] = site.convolution.extents();
        let number = site.number;
        let layer = self.layer(number);
        let fresh = || {
            Splitter::new(
                channels,
                rows * columns,
                rank,
                number.saturating_sub(1),
                true,
            )
        };
        layer.splitter.get_or_insert_with(fresh)
    }

    fn backward(
        &mut self,
        shared: &Shared,
        site: &Site,
        (x, w, dy): (&[f32], &[f32], &[f32]),
        parts: &[Part],
        wants: bool,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let convolution = site.convolution;
        let number = u32::try_from(site.number).map_err(Error::wrap)?;
        let inputs = if wants { x.len() } else { 0 };
        let task = Task::Backward { images: wants };
        let awaited = self
            .remote
            .send(number, task, dy, inputs + w.len())
            .map_err(Error::wrap)?;
        let start = Instant::now();
        let mut own = Vec::new();
        let mut residual = x.to_vec();
        if !parts.is_empty() {
            own = gradient_of_parts(&convolution, parts, dy)?;
            for (x, part) in residual
                .chunks_exact_mut(convolution.input_len())
                .zip(parts)
            {
                let whole = reconstruct(&convolution, part);
                x.iter_mut().zip(&whole).for_each(|(x, low)| *x -= low);
            }
        }
        self.spent.here += start.elapsed();
        let mut dx = self.remote.receive(awaited).map_err(Error::wrap)?;
        let start = Instant::now();
        let dw = dx.split_off(inputs);
        let dw = check::weight_gradient(&convolution, &residual, dy, dw, &mut self.random);
        let mut dw = self.accept(dw)?;
        if wants {
            let checked = check::input_gradient(&convolution, w, dy, dx, &mut self.random);
            dx = self.accept(checked)?;
        }
        self.spent.checking += start.elapsed();
        dw.iter_mut().zip(&own).for_each(|(dw, own)| *dw += own);
        let descent = *shared
            .descent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let _none = self
            .remote
            .send(number, Task::Step(descent), &own, 0)
            .map_err(Error::wrap)?;
        // Both sides take the same step in the same arithmetic; where we do not, `provide` sees it.
        let layer = self.layer(site.number);
        layer.follow(descent, &dw)?;
        Ok((dx, dw))
    }
}

/// U·V, channels × pixels.
fn reconstruct(convolution: &Convolution, part: &Part) -> Vec<f32> {
    let [channels, ..] = convolution.extents();
    let rank = part.left.len() / channels;
    let mut whole = vec![0.0; convolution.input_len()];
    let left = Matrix::new(&part.left, channels, rank);
    let right = Matrix::new(&part.right, rank, convolution.input_len() / channels);
    product(0.0, left, right, &mut whole);
    whole
}

/// Whether weights are combined with U, or images put together: what multiplies less.
fn combines(convolution: &Convolution, rank: usize) -> bool {
    let [channels, outputs, kernel, ..] = convolution.extents();
    let combined = rank as u64 * (outputs * kernel * kernel * channels) as u64;
    let few = convolution.macs() / channels as u64 * rank as u64;
    combined + few < convolution.macs()
}

/// Multiplications here for one image of a layer, split at this rank: convolving forward, without the splitting itself.
pub fn macs_here(convolution: &Convolution, rank: usize) -> u64 {
    let [channels, outputs, kernel, ..] = convolution.extents();
    let combined = rank as u64 * (outputs * kernel * kernel * channels) as u64;
    let few = convolution.macs() / channels as u64 * rank as u64;
    (combined + few).min(convolution.macs() + (rank * convolution.input_len()) as u64)
}

/// W∗(U·V) of each image.
fn convolve_parts(convolution: &Convolution, w: &[f32], parts: &[Part]) -> Result<Vec<f32>> {
    let [channels, outputs, kernel, ..] = convolution.extents();
    let square = kernel * kernel;
    let rank = parts[0].left.len() / channels;
    let mut y = vec![0.0; parts.len() * convolution.output_len()];
    if !combines(convolution, rank) {
        let whole: Vec<f32> = parts
            .iter()
            .flat_map(|part| reconstruct(convolution, part))
            .collect();
        convolution
            .forward(&whole, w, &mut y)
            .map_err(Error::wrap)?;
        return Ok(y);
    }
    let turned = turn(w, outputs, channels, square);
    let few = convolution
        .with_channels(rank, outputs)
        .map_err(Error::wrap)?;
    let done: std::result::Result<Vec<()>, _> = y
        .par_chunks_exact_mut(convolution.output_len())
        .zip(parts)
        .map(|(y, part)| {
            let mut combined = vec![0.0; rank * outputs * square];
            let left = Matrix::new(&part.left, channels, rank).transposed();
            product(
                0.0,
                left,
                Matrix::new(&turned, channels, outputs * square),
                &mut combined,
            );
            few.forward(&part.right, &turn(&combined, rank, outputs, square), y)
        })
        .collect();
    done.map_err(Error::wrap)?;
    Ok(y)
}

/// Σ dy·(U·V)ᵀ over the images.
fn gradient_of_parts(convolution: &Convolution, parts: &[Part], dy: &[f32]) -> Result<Vec<f32>> {
    let [channels, outputs, kernel, ..] = convolution.extents();
    let square = kernel * kernel;
    let rank = parts[0].left.len() / channels;
    let mut dw = vec![0.0; convolution.weights()];
    if !combines(convolution, rank) {
        let whole: Vec<f32> = parts
            .iter()
            .flat_map(|part| reconstruct(convolution, part))
            .collect();
        convolution
            .weight_gradient(&whole, dy, &mut dw)
            .map_err(Error::wrap)?;
        return Ok(dw);
    }
    let few = convolution
        .with_channels(rank, outputs)
        .map_err(Error::wrap)?;
    let each: std::result::Result<Vec<Vec<f32>>, _> = parts
        .par_iter()
        .zip(dy.par_chunks_exact(convolution.output_len()))
        .map(|(part, dy)| {
            let mut small = vec![0.0; few.weights()];
            few.weight_gradient(&part.right, dy, &mut small)?;
            Ok(turn(&small, outputs, rank, square))
        })
        .collect();
    // One product over all images and their ranks: [U₁ U₂ …] · [dV₁; dV₂; …].
    let stacked: Vec<f32> = each
        .map_err(|e: larvatus_kernels::WrongLength| Error::wrap(e))?
        .concat();
    let mut left = vec![0.0; channels * rank * parts.len()];
    for (at, part) in parts.iter().enumerate() {
        for (row, values) in part.left.chunks_exact(rank).enumerate() {
            let to = (row * parts.len() + at) * rank;
            left[to..to + rank].copy_from_slice(values);
        }
    }
    let mut turned = vec![0.0; dw.len()];
    let inner = rank * parts.len();
    product(
        0.0,
        Matrix::new(&left, channels, inner),
        Matrix::new(&stacked, inner, outputs * square),
        &mut turned,
    );
    Ok(turn(&turned, channels, outputs, square))
}

/// Exchanges the first two of three axes.
fn turn(x: &[f32], first: usize, second: usize, third: usize) -> Vec<f32> {
    let mut turned = Vec::with_capacity(x.len());
    for b in 0..second {
        for a in 0..first {
            let from = (a * second + b) * third;
            turned.extend_from_slice(&x[from..from + third]);
        }
    }
    turned
}

impl Layer {
    /// What the worker's weights become.
    fn follow(&mut self, descent: Descent, dw: &[f32]) -> Result<()> {
        let Self {
            weights, speeds, ..
        } = self;
        descent.step(weights, speeds, dw).map_err(Error::wrap)
    }
}
