use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::*;

/// Says what it is given, waits for leave, and answers with the sum of each call's words.
struct Engine {
    started: Sender<(u32, usize)>,
    leave: Mutex<Receiver<()>>,
}

/// A word that no engine likes.
const BAD: u32 = 666;
/// A word at which it panics.
const FATAL: u32 = 667;

impl Loaded for Engine {
    fn call(&self, _round: u32, words: &[u32]) -> Answer {
        assert!(!words.contains(&FATAL), "a panic that the test wants");
        if words.contains(&BAD) {
            return Err(BackendError::Memory { words: words.len() });
        }
        Ok(vec![words.iter().sum()])
    }

    fn call_many(&self, round: u32, requests: &[&[u32]]) -> Result<Vec<Vec<u32>>, BackendError> {
        let _ = self.started.send((round, requests.len()));
        let _ = self.leave.lock().unwrap().recv();
        requests
            .iter()
            .map(|words| self.call(round, words))
            .collect()
    }

    fn bytes(&self) -> u64 {
        0
    }
}

/// An engine that stops at every call until it gets leave, and the queue before it.
struct Stage {
    engine: Engine,
    queue: Queue,
    started: Mutex<Receiver<(u32, usize)>>,
    leave: Sender<()>,
}

impl Stage {
    fn new(most: &[usize]) -> Self {
        let ((started, heard), (leave, left)) = (channel(), channel());
        Self {
            engine: Engine {
                started,
                leave: Mutex::new(left),
            },
            queue: Queue {
                most: most.to_vec(),
                inner: Mutex::default(),
                changed: Condvar::new(),
            },
            started: Mutex::new(heard),
            leave,
        }
    }

    fn call(&self, round: u32, calls: &[&[u32]]) -> Vec<Answer> {
        let inputs = calls.iter().map(|words| Box::new(words.to_vec()) as Input);
        self.queue.compute(&self.engine, round, inputs.collect())
    }

    /// The next batch that the engine begins.
    fn begins(&self) -> (u32, usize) {
        let started = self.started.lock().unwrap();
        started.recv_timeout(Duration::from_secs(10)).unwrap()
    }

    fn go_on(&self) {
        self.leave.send(()).unwrap();
    }

    /// Returns when so many calls wait.
    fn until_waiting(&self, calls: usize) {
        let end = Instant::now() + Duration::from_secs(10);
        while self.queue.inner().waiting.len() != calls {
            assert!(Instant::now() < end, "{calls} calls should wait");
            thread::yield_now();
        }
    }
}

#[test]
fn a_call_alone_is_computed_at_once() {
    let stage = Stage::new(&[9]);
    stage.go_on();
    assert_eq!(stage.call(0, &[&[1, 2]]), [Ok(vec![3])]);
    assert_eq!(stage.begins(), (0, 1));
    let alone = Batches {
        calls: 1,
        batches: 1,
        largest: 1,
    };
    assert_eq!(stage.queue.batches(), alone);
    assert_eq!(stage.call(0, &[]), []);
    assert_eq!(stage.queue.batches(), alone);
}

#[test]
fn calls_that_wait_for_the_same_round_are_computed_together_oldest_first() {
    let stage = &Stage::new(&[9, 9]);
    thread::scope(|scope| {
        let first = scope.spawn(|| stage.call(0, &[&[1]]));
        assert_eq!(stage.begins(), (0, 1));
        // While the engine is busy, five calls come from four others.
        let mut others = Vec::new();
        let calls: [(u32, &[&[u32]]); 4] =
            [(1, &[&[2]]), (0, &[&[3]]), (1, &[&[4], &[5]]), (0, &[&[6]])];
        let mut waiting = 0;
        for (round, words) in calls {
            others.push(scope.spawn(move || stage.call(round, words)));
            waiting += words.len();
            stage.until_waiting(waiting);
        }
        stage.go_on();
        assert_eq!(first.join().unwrap(), [Ok(vec![1])]);
        assert_eq!(stage.begins(), (1, 3));
        stage.go_on();
        assert_eq!(stage.begins(), (0, 2));
        stage.go_on();
        let answers: Vec<Vec<Answer>> = others
            .into_iter()
            .map(|other| other.join().unwrap())
            .collect();
        let right = [vec![2], vec![3], vec![4, 5], vec![6]];
        for (answers, right) in answers.into_iter().zip(right) {
            let right: Vec<Answer> = right.into_iter().map(|sum| Ok(vec![sum])).collect();
            assert_eq!(answers, right);
        }
    });
    let batches = Batches {
        calls: 6,
        batches: 3,
        largest: 3,
    };
    assert_eq!(stage.queue.batches(), batches);
    assert!(stage.queue.inner().answers.is_empty());
}

#[test]
fn a_batch_has_as_many_calls_as_it_may() {
    let stage = &Stage::new(&[2]);
    thread::scope(|scope| {
        let many = scope.spawn(|| stage.call(0, &[&[1], &[2], &[3], &[4], &[5]]));
        for calls in [2, 2, 1] {
            assert_eq!(stage.begins(), (0, calls));
            stage.go_on();
        }
        let right: Vec<Answer> = (1..=5).map(|word| Ok(vec![word])).collect();
        assert_eq!(many.join().unwrap(), right);
    });
}

#[test]
fn what_breaks_the_engine_breaks_nobody_elses_call() {
    for (bad, why) in [
        (BAD, BackendError::Memory { words: 1 }),
        (FATAL, BackendError::Panicked),
    ] {
        let stage = Stage::new(&[9]);
        // The batch, then each alone.
        (0..4).for_each(|_| stage.go_on());
        let answers = stage.call(0, &[&[1], &[bad], &[2]]);
        assert_eq!(answers, [Ok(vec![1]), Err(why.clone()), Ok(vec![2])]);
        stage.go_on();
        assert_eq!(stage.call(0, &[&[bad]]), [Err(why)]);
        stage.go_on();
        assert_eq!(stage.call(0, &[&[7]]), [Ok(vec![7])]);
    }
}
