//! The threads that compute, and the queue before them.
//!
//! Inferences block, so they run on threads of their own; those that speak with clients never wait for one. The
//! queue is bounded: what does not fit is refused at once, not kept. A job whose client has gone, or whose deadline
//! has passed, is dropped before it starts.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::engine::EngineError;
use crate::metrics::Metrics;
use crate::refusal::Refusal;
use crate::repository::Loaded;
use crate::tensor::Tensor;

/// What an inference gave.
pub(crate) type Answer = Result<Vec<Tensor>, EngineError>;

struct Job {
    model: Arc<Loaded>,
    inputs: Vec<Tensor>,
    deadline: Instant,
    since: Instant,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    room: usize,
    metrics: Arc<Metrics>,
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pool of threads with a bounded queue.
pub(crate) struct Lanes {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Lanes {
    /// Starts `threads` of them, before which at most `room` inferences wait.
    pub(crate) fn start(
        threads: NonZeroUsize,
        room: usize,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            room,
            metrics,
        });
        let lanes = Self {
            shared: Arc::clone(&shared),
            threads: Mutex::default(),
        };
        for lane in 0..threads.get() {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("larvatus-lane-{lane}"))
                .spawn(move || work(&shared))?;
            lanes.threads().push(thread);
        }
        Ok(lanes)
    }

    fn threads(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts an inference in the queue.
    ///
    /// # Errors
    /// [`Refusal::Busy`] where it is full, [`Refusal::Draining`] after [`Lanes::close`].
    pub(crate) fn submit(
        &self,
        model: Arc<Loaded>,
        inputs: Vec<Tensor>,
        deadline: Instant,
    ) -> Result<oneshot::Receiver<Answer>, Refusal> {
        let (answer, receiver) = oneshot::channel();
        let mut queue = self.shared.queue();
        if queue.closed {
            return Err(Refusal::Draining);
        }
        if queue.jobs.len() >= self.shared.room {
            return Err(Refusal::Busy {
                limit: self.shared.room,
            });
        }
        queue.jobs.push_back(Job {
            model,
            inputs,
            deadline,
            since: Instant::now(),
            answer,
        });
        self.shared.metrics.queued(queue.jobs.len());
        drop(queue);
        self.shared.work.notify_one();
        Ok(receiver)
    }

    /// Takes no more; what waits is done. Returns when every thread has ended.
    pub(crate) fn close(&self) {
        self.shared.queue().closed = true;
        self.shared.work.notify_all();
        for thread in std::mem::take(&mut *self.threads()) {
            if thread.join().is_err() {
                tracing::error!("an inference thread ended early");
            }
        }
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue();
        let job = loop {
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.closed {
                return;
            }
            queue = shared
                .work
                .wait(queue)
                .unwrap_or_else(PoisonError::into_inner);
        };
        shared.metrics.queued(queue.jobs.len());
        drop(queue);
        let Job {
            model,
            inputs,
            deadline,
            since,
            answer,
        } = job;
        if answer.is_closed() {
            continue;
        }
        let started = Instant::now();
        shared.metrics.waited(started.duration_since(since));
        let answered = if started >= deadline {
            Err(EngineError::Deadline)
        } else {
            // A fault of an engine costs one answer, not a thread.
            let run = || model.engine().infer(inputs, deadline);
            catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| {
                Err(EngineError::Failed(
                    "the inference ended with a fault of this program".to_owned(),
                ))
            })
        };
        let took: Duration = started.elapsed();
        shared.metrics.inferred(model.name(), took);
        if let Err(EngineError::Broken(why)) = &answered {
            model.take_out(why);
        }
        // Whoever asked may have gone.
        drop(answer.send(answered));
    }
}
