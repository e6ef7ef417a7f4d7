//! Calls that wait for the engine; those of one round are computed together.
//!
//! Whoever brings calls and finds nobody computing leads: it takes the oldest call that waits and all others of the
//! same round, whoever brought them, as many as a batch may have, and computes them in one call of the engine,
//! until its own are answered. Whoever comes meanwhile waits; when the leader goes, one that waits leads. So a call
//! that is alone is computed at once, nobody waits for company, and the oldest call is always in the next batch.
//!
//! Promises: each answer is what [`Loaded::call`] gives for that call alone; an error or a panic of the engine in a
//! batch is kept to the calls that cause it; whoever computes waits for no peer, so a connection that is slow or gone
//! holds up nobody.
//!
//! Source: flat combining (Hendler and others, SPAA 2010), with an engine that gains from calls of the same kind.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use larvatus_proto::program::Program;

use crate::backend::{BackendError, Loaded};
use crate::limits::Limits;

/// The words of a call; whoever computes it reads them.
pub(crate) type Input = Box<dyn AsRef<[u32]> + Send>;

/// What the engine made of a call.
pub(crate) type Answer = Result<Vec<u32>, BackendError>;

/// How calls came together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batches {
    /// Calls computed.
    pub calls: u64,
    /// In so many calls of the engine.
    pub batches: u64,
    /// The most that were computed together.
    pub largest: usize,
}

/// The calls to one model, of all connections.
pub(crate) struct Queue {
    /// The most calls in a batch, by round.
    most: Vec<usize>,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
    /// Answers that nobody has fetched yet, by the call's number.
    answers: BTreeMap<u64, Answer>,
    next: u64,
    computing: bool,
    batches: Batches,
}

struct Waiting {
    number: u64,
    round: u32,
    input: Input,
}

impl Queue {
    /// An empty queue of the calls to a program that is loaded.
    pub(crate) fn new(program: &Program, loaded: &dyn Loaded, limits: &Limits) -> Self {
        let rounds = (0..).zip(program.rounds());
        let most = rounds.map(|(number, round)| {
            let worth = loaded.together(number);
            limits.batch(program, round).min(worth).max(1)
        });
        Self {
            most: most.collect(),
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The most calls of a round that are computed together; at least one.
    pub(crate) fn most(&self, round: u32) -> usize {
        let index = usize::try_from(round).unwrap_or(usize::MAX);
        self.most.get(index).copied().unwrap_or(1)
    }

    /// Computes calls of one round, together with those of others that wait; the answers in order.
    pub(crate) fn compute(
        &self,
        loaded: &dyn Loaded,
        round: u32,
        inputs: Vec<Input>,
    ) -> Vec<Answer> {
        let mut inner = self.inner();
        let own = inner.push(round, inputs);
        loop {
            if let Some(answers) = inner.fetch(own.clone()) {
                return answers;
            }
            if inner.computing {
                let woken = self.changed.wait(inner);
                inner = woken.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let Some((round, batch)) = inner.take(|round| self.most(round)) else {
                // Own calls are waiting or answered, so there is something to take.
                continue;
            };
            inner.computing = true;
            drop(inner);
            let (numbers, inputs): (Vec<u64>, Vec<Input>) = batch.into_iter().unzip();
            let answers = compute(loaded, round, &inputs);
            drop(inputs);
            inner = self.inner();
            inner.computing = false;
            inner.answers.extend(numbers.into_iter().zip(answers));
            self.changed.notify_all();
        }
    }

    /// How calls came together so far.
    pub(crate) fn batches(&self) -> Batches {
        self.inner().batches
    }

    /// Nothing that could panic runs while this is held, so a poisoned lock is a sound one.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn push(&mut self, round: u32, inputs: Vec<Input>) -> Range<u64> {
        let first = self.next;
        for input in inputs {
            let number = self.next;
            self.next += 1;
            self.waiting.push_back(Waiting {
                number,
                round,
                input,
            });
        }
        first..self.next
    }

    /// The answers of these calls, once all are there.
    fn fetch(&mut self, own: Range<u64>) -> Option<Vec<Answer>> {
        if !own.clone().all(|number| self.answers.contains_key(&number)) {
            return None;
        }
        Some(
            own.filter_map(|number| self.answers.remove(&number))
                .collect(),
        )
    }

    /// The oldest call and those of the same round behind it.
    fn take(&mut self, most: impl Fn(u32) -> usize) -> Option<(u32, Vec<(u64, Input)>)> {
        let round = self.waiting.front()?.round;
        let most = most(round);
        let (mut batch, mut rest) = (Vec::new(), VecDeque::with_capacity(self.waiting.len()));
        for waiting in self.waiting.drain(..) {
            if waiting.round == round && batch.len() < most {
                batch.push((waiting.number, waiting.input));
            } else {
                rest.push_back(waiting);
            }
        }
        self.waiting = rest;
        self.batches.calls += batch.len() as u64;
        self.batches.batches += 1;
        self.batches.largest = self.batches.largest.max(batch.len());
        Some((round, batch))
    }
}

/// An answer to each of several calls; where they fail together, each is computed alone.
fn compute(loaded: &dyn Loaded, round: u32, inputs: &[Input]) -> Vec<Answer> {
    let words: Vec<&[u32]> = inputs.iter().map(|input| (**input).as_ref()).collect();
    match attempt(loaded, round, &words) {
        Ok(answers) => answers.into_iter().map(Ok).collect(),
        Err(_) if words.len() > 1 => {
            let alone = |words: &&[u32]| {
                let mut answers = attempt(loaded, round, &[words])?;
                answers.pop().ok_or(BackendError::Panicked)
            };
            words.iter().map(alone).collect()
        }
        Err(why) => vec![Err(why)],
    }
}

/// One call of the engine: an answer to each of `words`, or why not.
fn attempt(
    loaded: &dyn Loaded,
    round: u32,
    words: &[&[u32]],
) -> Result<Vec<Vec<u32>>, BackendError> {
    let work = || loaded.call_many(round, words);
    let answers = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(BackendError::Panicked))?;
    if answers.len() == words.len() {
        Ok(answers)
    } else {
        Err(BackendError::Panicked)
    }
}

#[cfg(test)]
mod tests;
