//! One connection of a peer that trains: layers in floats, convolved and derived on request.
//!
//! After the hello a peer may hold layers here, have images convolved with them, have gradients made, and have the weights moved
//! ([`Job`] has the meaning of each). Nothing is shared between connections. What a peer may make this side hold is limited before
//! anything is allocated: one payload at a time, and all that it holds together.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use larvatus_kernels::float::images::Convolution;
use larvatus_proto::VERSION;
use larvatus_proto::frame::{Frame, FrameLimits, MAX_HEAD, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::training::{Job, Task, numbers, words};
use larvatus_proto::words::Words;

/// Most replies that may wait; a peer asks for one thing at a time.
const MAX_REPLIES: usize = 64;

/// What peers may make a trainer hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "settings that callers write as a literal"
)]
pub struct TrainingLimits {
    /// Words of one payload, and of one answer. 2²⁶: 256 MiB.
    pub payload: usize,
    /// Words of all layers and images that are held for a connection. 2²⁸: 1 GiB.
    pub held: usize,
    /// How long a peer may be silent. An hour: it computes between two jobs.
    pub idle: Duration,
}

impl Default for TrainingLimits {
    fn default() -> Self {
        Self {
            payload: 1 << 26,
            held: 1 << 28,
            idle: Duration::from_secs(3600),
        }
    }
}

/// Why a job is not done; peers get its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refused {
    #[error("a hello of version {VERSION} comes first")]
    NoHello,
    #[error("not a job: {0}")]
    NotAJob(String),
    #[error("no layer {0} is held here")]
    NoLayer(u32),
    #[error("{got} words where {what} takes {expected}")]
    Length {
        what: &'static str,
        expected: usize,
        got: usize,
    },
    #[error("no images are kept for layer {0}")]
    NothingKept(u32),
    #[error("{what} of {asked} words, {limit} are the most here")]
    TooMuch {
        what: &'static str,
        asked: usize,
        limit: usize,
    },
}

/// A layer that is held.
#[derive(Debug)]
struct Layer {
    convolution: Convolution,
    weights: Vec<f32>,
    speeds: Vec<f32>,
    images: Vec<f32>,
    gradient: Vec<f32>,
}

impl Layer {
    fn held(&self) -> usize {
        2 * self.weights.len() + self.images.len() + self.gradient.len()
    }
}

/// Threads that all connections compute with.
#[derive(Clone, Debug)]
pub struct Threads(Arc<rayon::ThreadPool>);

impl Threads {
    /// So many.
    ///
    /// # Errors
    /// Where the system does not give them.
    pub fn new(threads: NonZeroUsize) -> std::io::Result<Self> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
        let pool = pool.build().map_err(std::io::Error::other)?;
        Ok(Self(Arc::new(pool)))
    }
}

/// One connection of a peer that trains. Make one for each link.
#[derive(Debug)]
pub struct Trainer {
    limits: TrainingLimits,
    name: String,
    pool: Option<Threads>,
    greeted: bool,
    over: bool,
    layers: BTreeMap<u32, Layer>,
    jobs: VecDeque<Job>,
    replies: VecDeque<Reply>,
    active: Now,
}

impl Trainer {
    /// A connection that begins now. It computes with these threads, or with rayon's own where none are given.
    pub fn new(limits: TrainingLimits, pool: Option<Threads>, now: Now) -> Self {
        Self {
            limits,
            name: "training in floats".to_owned(),
            pool,
            greeted: false,
            over: false,
            layers: BTreeMap::new(),
            jobs: VecDeque::new(),
            replies: VecDeque::new(),
            active: now,
        }
    }

    fn take(&mut self, frame: Frame) -> Result<(), Refused> {
        if !Job::is_kind(frame.kind) {
            match Request::from_frame(frame) {
                Ok(Request::Hello { version: VERSION }) => {
                    self.greeted = true;
                    self.replies.push_back(Reply::Welcome {
                        version: VERSION,
                        name: self.name.clone(),
                    });
                    return Ok(());
                }
                Ok(Request::Bye) => self.over = true,
                Ok(_) => return Err(Refused::NotAJob("this worker trains".to_owned())),
                Err(error) => return Err(Refused::NotAJob(error.to_string())),
            }
            return Ok(());
        }
        if !self.greeted {
            return Err(Refused::NoHello);
        }
        let job = Job::from_frame(frame).map_err(|error| Refused::NotAJob(error.to_string()))?;
        if self.jobs.len() >= MAX_REPLIES {
            return Err(Refused::NotAJob("too many jobs wait".to_owned()));
        }
        self.jobs.push_back(job);
        Ok(())
    }

    /// Does a job; its answer, if it has one.
    fn work(&mut self, job: Job) -> Result<Option<Words>, Refused> {
        let Job {
            layer,
            task,
            words: payload,
            ..
        } = job;
        let got = payload.len();
        let length = |what, expected: usize| match expected == got {
            true => Ok(()),
            false => Err(Refused::Length {
                what,
                expected,
                got,
            }),
        };
        let others: usize = self
            .layers
            .iter()
            .filter(|(at, _)| **at != layer)
            .map(|(_, layer)| layer.held())
            .sum();
        let (limits, pool) = (self.limits, self.pool.clone());
        let room = |what, asked: usize, limit: usize| match asked <= limit {
            true => Ok(()),
            false => Err(Refused::TooMuch { what, asked, limit }),
        };
        if let Task::Layer(convolution) = task {
            let count = convolution.weights();
            length("a layer", count.saturating_mul(2))?;
            room("layers", others.saturating_add(got), limits.held)?;
            room("patches", convolution.patches_len(), limits.payload)?;
            let mut weights = numbers(payload);
            let speeds = weights.split_off(count);
            let held = Layer {
                convolution,
                weights,
                speeds,
                images: Vec::new(),
                gradient: Vec::new(),
            };
            self.layers.insert(layer, held);
            return Ok(None);
        }
        let held = self.layers.get_mut(&layer).ok_or(Refused::NoLayer(layer))?;
        let convolution = held.convolution;
        let wrong = |what| {
            move |wrong: larvatus_kernels::WrongLength| Refused::Length {
                what,
                expected: wrong.expected,
                got: wrong.got,
            }
        };
        match task {
            Task::Layer(_) => Ok(None),
            Task::Forward { keep } => {
                let images = got / convolution.input_len();
                length("images", images * convolution.input_len())?;
                let makes = images.saturating_mul(convolution.output_len());
                room("an answer", makes, limits.payload)?;
                let held_then = others + 2 * held.weights.len() + got;
                room("images", held_then, limits.held)?;
                let x = numbers(payload);
                let mut y = vec![0.0; makes];
                within(&pool, || convolution.forward(&x, &held.weights, &mut y))
                    .map_err(wrong("a forward pass"))?;
                held.images = if keep { x } else { Vec::new() };
                Ok(Some(words(&y)))
            }
            Task::Backward { images } => {
                if held.images.is_empty() {
                    return Err(Refused::NothingKept(layer));
                }
                let count = held.images.len() / convolution.input_len();
                length("a gradient", count * convolution.output_len())?;
                let x = std::mem::take(&mut held.images);
                let dy = numbers(payload);
                let mut answer = vec![0.0; if images { x.len() } else { 0 }];
                let mut dw = vec![0.0; held.weights.len()];
                within(&pool, || {
                    if images {
                        convolution.input_gradient(&held.weights, &dy, &mut answer)?;
                    }
                    convolution.weight_gradient(&x, &dy, &mut dw)
                })
                .map_err(wrong("a backward pass"))?;
                answer.extend(&dw);
                held.gradient = dw;
                Ok(Some(words(&answer)))
            }
            Task::Step(descent) => {
                if got > 0 {
                    length("a step", held.gradient.len())?;
                }
                if held.gradient.is_empty() {
                    return Err(Refused::NothingKept(layer));
                }
                let mut gradient = std::mem::take(&mut held.gradient);
                let sent = numbers(payload);
                gradient
                    .iter_mut()
                    .zip(sent)
                    .for_each(|(g, sent)| *g += sent);
                descent
                    .step(&mut held.weights, &mut held.speeds, &gradient)
                    .map_err(wrong("a step"))?;
                Ok(None)
            }
        }
    }
}

fn within<T: Send>(pool: &Option<Threads>, work: impl FnOnce() -> T + Send) -> T {
    match pool {
        Some(Threads(pool)) => pool.install(work),
        None => work(),
    }
}

impl Machine for Trainer {
    fn limits(&self) -> FrameLimits {
        FrameLimits {
            head: MAX_HEAD,
            words: if self.greeted { self.limits.payload } else { 0 },
        }
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        self.active = now;
        if self.over {
            return;
        }
        if let Err(refused) = self.take(frame) {
            self.replies.push_back(Reply::Failed {
                call: None,
                message: refused.to_string(),
            });
            self.over = true;
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        loop {
            if let Some(reply) = self.replies.pop_front() {
                return Some(reply.into_frame());
            }
            let job = self.jobs.pop_front()?;
            let call = job.call;
            match self.work(job) {
                Ok(Some(words)) => self.replies.push_back(Reply::Answer { call, words }),
                Ok(None) => {}
                Err(refused) => self.replies.push_back(Reply::Failed {
                    call: Some(call),
                    message: refused.to_string(),
                }),
            }
            self.active = now;
        }
    }

    fn deadline(&self) -> Option<Now> {
        Some(self.active.saturating_add(self.limits.idle))
    }

    fn tick(&mut self, now: Now) {
        if self.active.saturating_add(self.limits.idle) <= now {
            self.over = true;
        }
    }

    fn disconnected(&mut self, _: LinkEnd, _: Now) {
        self.over = true;
    }

    fn finished(&self) -> bool {
        self.over && self.replies.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXTENTS: [usize; 7] = [1, 2, 3, 1, 1, 4, 4];

    fn trainer() -> Trainer {
        let limits = TrainingLimits {
            payload: 200,
            held: 220,
            idle: Duration::from_secs(1),
        };
        let mut trainer = Trainer::new(limits, None, Now::ZERO);
        trainer.receive(Request::Hello { version: VERSION }.into_frame(), Now::ZERO);
        assert!(matches!(reply(&mut trainer), Some(Reply::Welcome { .. })));
        trainer
    }

    fn reply(trainer: &mut Trainer) -> Option<Reply> {
        let frame = trainer.transmit(Now::ZERO)?;
        Some(Reply::from_frame(frame).expect("a reply"))
    }

    fn ask(trainer: &mut Trainer, task: Task, numbers: &[f32]) -> Option<Reply> {
        let job = Job {
            call: 3,
            layer: 1,
            task,
            words: words(numbers),
        };
        trainer.receive(job.into_frame(), Now::ZERO);
        reply(trainer)
    }

    fn message(reply: Option<Reply>) -> String {
        match reply {
            Some(Reply::Failed { message, .. }) => message,
            other => panic!("{other:?} is no failure"),
        }
    }

    #[test]
    fn a_layer_is_held_convolved_derived_and_moved() {
        let mut trainer = trainer();
        let convolution = Convolution::new(EXTENTS).expect("a convolution");
        assert_eq!(
            ask(&mut trainer, Task::Layer(convolution), &[0.5; 36]),
            None
        );
        let Some(Reply::Answer { call: 3, words: y }) =
            ask(&mut trainer, Task::Forward { keep: true }, &[1.0; 16])
        else {
            panic!("no answer");
        };
        assert_eq!(numbers(y)[5], 4.5);
        let Some(Reply::Answer { words: back, .. }) =
            ask(&mut trainer, Task::Backward { images: true }, &[1.0; 32])
        else {
            panic!("no answer");
        };
        let back = numbers(back);
        assert_eq!((back.len(), back[5], back[16 + 4]), (34, 9.0, 16.0));
        let descent = larvatus_kernels::float::images::Descent {
            rate: 0.25,
            momentum: 0.0,
            decay: 0.0,
        };
        assert_eq!(ask(&mut trainer, Task::Step(descent), &[2.0; 18]), None);
        let Some(Reply::Answer { words: y, .. }) =
            ask(&mut trainer, Task::Forward { keep: false }, &[1.0; 16])
        else {
            panic!("no answer");
        };
        // Weights went from 0.5 to 0.5 − (pixels + 2) / 4: 16 pixels in the middle, 12 beside it, 9 at corners.
        assert_eq!(numbers(y)[5], -4.0 - 4.0 * 3.0 - 4.0 * 2.25);
        assert!(
            message(ask(
                &mut trainer,
                Task::Backward { images: false },
                &[1.0; 32]
            ))
            .contains("kept")
        );
    }

    #[test]
    fn what_is_too_long_too_much_or_out_of_turn_is_refused() {
        let mut fresh = Trainer::new(TrainingLimits::default(), None, Now::ZERO);
        assert_eq!(fresh.limits().words, 0);
        let forward = Task::Forward { keep: false };
        assert!(message(ask(&mut fresh, forward, &[])).contains("hello"));
        assert!(fresh.finished());
        let mut trainer = trainer();
        assert!(message(ask(&mut trainer, forward, &[1.0; 16])).contains("no layer 1"));
        let convolution = Convolution::new(EXTENTS).expect("a convolution");
        assert!(message(ask(&mut trainer, Task::Layer(convolution), &[0.5; 35])).contains("36"));
        ask(&mut trainer, Task::Layer(convolution), &[0.5; 36]);
        assert!(message(ask(&mut trainer, forward, &[1.0; 17])).contains("17 words"));
        assert!(message(ask(&mut trainer, forward, &[1.0; 112])).contains("an answer of 224"));
        let wide = Convolution::new([1, 1, 9, 1, 4, 9, 9]).expect("a convolution");
        assert!(message(ask(&mut trainer, Task::Layer(wide), &[0.5; 162])).contains("patches"));
        trainer.tick(Duration::from_secs(2));
        assert!(trainer.finished());
    }
}
