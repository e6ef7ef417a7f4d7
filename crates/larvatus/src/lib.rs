//! The trusted side of Larvatus: it keeps the secrets and the non-linear arithmetic, and lets a
//! worker that it does not trust do the linear layers of a neural network.
//!
//! In the order of the data's way:
//!
//! * [`model`]: ONNX bytes become a typed graph whose linear layers are known,
//! * [`policy`]: what the owner demands, or a preset's name,
//! * [`plan`]: what is done about it, layer by layer, with guarantees that are computed,
//! * [`secret`]: entropy, one-time tickets, check vectors,
//! * [`dealer`]: tickets from a second machine that works for this one,
//! * [`store`]: tickets made ahead and kept on a disk that is not trusted to keep quiet,
//! * [`session`]: many inferences with one worker, as a state machine without sockets or clocks,
//! * [`audit`]: a worker runs the whole network in clear, signs it and is audited later,
//! * [`exact`]: the same network, all of it here,
//! * [`whole`]: the same network as one program, for a worker that runs all of it,
//! * [`ternary`]: the same in three parts, the middle at a worker in clear,
//! * [`faithful`]: a mode that masks with floats and leaks, to be compared with,
//! * [`error`]: what can go wrong, split by whose fault it is.
//!
//! Load, plan, run, and print what is guaranteed, with a worker in the same process:
//!
//! ```
//! # use std::num::NonZeroUsize;
//! use larvatus::{model::Model, plan::Plan, policy::Preset, session::{Session, Settings}};
//! use larvatus_host::{Clock, Pair, entropy};
//! use larvatus_worker::{Limits, Service, Store, cpu::Cpu};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let bytes = std::fs::read("../../testkit/models/tiny-cnn.onnx")?;
//! let model = Model::load(&bytes, &[])?;
//! let plan = Plan::new(&model, &Preset::Slalom.policy())?;
//! let image = larvatus::tensor::from_floats(&[1, 3, 16, 16], &[0.5; 768]).ok_or("shape")?;
//! let store = Store::new(Box::new(Cpu::new(NonZeroUsize::MIN)?), Limits::default());
//! let clock = Clock::start();
//! let mut worker = Service::new(store, clock.now());
//! let entropy = larvatus::secret::Entropy::new(entropy()?);
//! let mut session = Session::new(plan, entropy, Settings::default());
//! session.begin(vec![image], clock.now())?;
//! Pair::new(clock).exchange(&mut session, &mut worker)?;
//! let (_, output) = session.poll().ok_or("no answer")?;
//! println!("{:?}: {}", output?.tensors[0], session.plan().guarantees().sentence());
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

pub mod audit;
mod claim;
pub mod dealer;
mod engine;
mod equations;
pub mod error;
pub mod exact;
pub mod faithful;
mod inference;
pub mod model;
pub mod plan;
pub mod policy;
mod pool;
mod quantise;
pub mod secret;
pub mod session;
pub mod shares;
pub mod store;
pub mod tensor;
pub mod ternary;
pub mod whole;
