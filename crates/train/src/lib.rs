//! Training of small convolutional networks, alone or with an untrusted worker.
//!
//! * [`net`]: a [`Network`] is a list of [`Module`]s, each of which names the nodes that it reads; parameters have names,
//! * [`ops`]: operators with their gradients, for candle's automatic differentiation,
//! * [`models`]: networks like VGG and ResNet, of any width,
//! * [`data`]: data sets in IDX files, and batches of them,
//! * [`optim`]: stochastic gradient descent with momentum on a cosine schedule,
//! * [`onnx`]: writes a network as ONNX, with the statistics of its batch norms,
//! * [`lowrank`]: an activation as a part of low rank and a residual,
//! * [`session`]: a run with its checkpoints; [`curves`] draws what came of it,
//! * [`private`]: a run in which a worker sees each image once, through noise that [`privacy`] accounts for,
//! * [`split`]: convolutions of which a [`remote`] worker computes a part, whose answers are [checked](mod@check).
//!
//! ```
//! use larvatus_train::net::{Builder, Module};
//! use larvatus_train::{ops, optim::Sgd};
//! use candle_core::{Device, Tensor};
//!
//! let mut b = Builder::new([1, 8, 8]);
//! let x = b.push("conv", Module::Conv { outputs: 4, kernel: 3, stride: 1, pad: 1, bias: false }, &[b.input()])?;
//! let n = b.push("norm", Module::BatchNorm, &[x])?;
//! let y = b.push("both", Module::Concat, &[x, n])?;
//! let y = b.push("flat", Module::Flatten, &[y])?;
//! let y = b.push("head", Module::Linear { outputs: 3 }, &[y])?;
//! let mut network = b.finish(y, 7)?;
//! let mut sgd = Sgd::new(0.9, 5e-4);
//! let x = Tensor::rand(0f32, 1f32, (5, 1, 8, 8), &Device::Cpu)?;
//! let loss = ops::cross_entropy(&network.forward(&x, true)?, &[0, 1, 2, 0, 1])?;
//! sgd.step(&network, &loss.backward()?, 0.1)?;
//! let onnx = larvatus_train::onnx::export(&network)?;
//! # assert!(onnx.len() > 3 * 8 * 64 * 4);
//! # Ok::<(), larvatus_train::TrainError>(())
//! ```
//!
//! Everything is computed in binary32 on the CPU. For one number of threads or another, results are the same bits: sums over images
//! are taken in parts of a fixed size.
#![forbid(unsafe_code)]

pub mod check;
pub mod curves;
pub mod data;
pub mod lowrank;
pub mod models;
pub mod net;
pub mod onnx;
pub mod ops;
pub mod optim;
pub mod privacy;
pub mod private;
pub mod random;
pub mod remote;
pub mod session;
pub mod split;

use std::path::PathBuf;

pub use net::{Builder, Module, Network};

/// Why a network cannot be made, read or trained.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The framework refused an operation: shapes that do not fit, mostly.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// A network that cannot be.
    #[error("module {name}: {why}")]
    Module {
        /// Its name.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// A file that cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {why}", path.display())]
    Data {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
}

/// Has everything here compute with so many threads; to be called once, before anything else.
///
/// # Errors
/// Where the system does not give them, or it was called before.
pub fn use_threads(threads: std::num::NonZeroUsize) -> std::io::Result<()> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
    pool.build_global().map_err(std::io::Error::other)
}

impl TrainError {
    pub(crate) fn module(name: &str, why: impl Into<String>) -> Self {
        Self::Module {
            name: name.to_owned(),
            why: why.into(),
        }
    }
}
