//! Which inputs are to be run, and when they come: all at once, or frame by frame as from a camera.
//!
//! A camera does not wait. Frame k comes k ÷ rate after the first; those that nobody has taken wait in a queue of a few
//! places, and where it is full, the oldest one is dropped: a late answer about an old frame is worth less than
//! one about a new frame. So memory and latency stay bounded however slow the rest is.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Frames that come by themselves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Camera {
    /// Frames a second.
    pub(crate) rate: f64,
    /// Frames that may wait.
    pub(crate) room: usize,
}

/// What became of the inputs, and which is next.
pub(crate) struct Feed {
    count: usize,
    camera: Option<Camera>,
    /// When the first frame came.
    began: Option<Instant>,
    /// The first that has not come.
    next: usize,
    queue: VecDeque<usize>,
    /// Taken and not finished.
    taken: Vec<usize>,
    /// From coming to finishing, of those that are.
    latencies: Vec<Duration>,
    finished: Option<Instant>,
    dropped: usize,
}

/// How a camera's frames fared.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Kept {
    pub(crate) camera: Camera,
    pub(crate) done: usize,
    pub(crate) dropped: usize,
    /// Frames finished a second.
    pub(crate) rate: f64,
    /// Of those that were finished, from coming to finishing.
    pub(crate) p50: Duration,
    pub(crate) p95: Duration,
}

impl Feed {
    /// So many inputs: at hand at once, or as a camera's frames.
    pub(crate) fn new(count: usize, camera: Option<Camera>) -> Self {
        Self {
            count,
            camera,
            began: None,
            next: 0,
            queue: VecDeque::new(),
            taken: Vec::new(),
            latencies: Vec::new(),
            finished: None,
            dropped: 0,
        }
    }

    /// When frame `at` comes.
    fn comes(&self, at: usize) -> Option<Instant> {
        let (camera, began) = (self.camera?, self.began?);
        Some(began + Duration::from_secs_f64(at as f64 / camera.rate))
    }

    /// Lets come what has come by now; the first call starts the camera.
    pub(crate) fn arrive(&mut self, now: Instant) {
        self.began.get_or_insert(now);
        while self.next < self.count && self.comes(self.next).is_none_or(|comes| comes <= now) {
            self.queue.push_back(self.next);
            self.next += 1;
        }
        if let Some(camera) = self.camera {
            while self.queue.len() > camera.room.max(1) {
                self.queue.pop_front();
                self.dropped += 1;
            }
        }
    }

    /// Whether an input waits.
    pub(crate) fn has_one(&self) -> bool {
        !self.queue.is_empty()
    }

    /// The input that waits longest.
    pub(crate) fn take(&mut self) -> Option<usize> {
        let at = self.queue.pop_front()?;
        self.taken.push(at);
        Some(at)
    }

    /// An input that was taken is done with.
    pub(crate) fn finish(&mut self, at: usize, now: Instant) {
        let before = self.taken.len();
        self.taken.retain(|taken| *taken != at);
        if self.taken.len() == before {
            return;
        }
        self.finished = Some(now);
        let came = self.comes(at).or(self.began).unwrap_or(now);
        self.latencies.push(now.saturating_duration_since(came));
    }

    /// An input that was taken cannot be finished.
    pub(crate) fn put_aside(&mut self, at: usize) {
        self.taken.retain(|taken| *taken != at);
    }

    /// Inputs that were put aside are open after all.
    pub(crate) fn take_up(&mut self, inputs: Vec<usize>) {
        self.taken.extend(inputs);
    }

    /// Whoever took the inputs that are not finished is gone: they wait again, before all others.
    pub(crate) fn give_back(&mut self) {
        self.taken.sort_unstable();
        for at in self.taken.drain(..).rev() {
            self.queue.push_front(at);
        }
    }

    /// Inputs that are neither finished nor dropped nor taken.
    pub(crate) fn upcoming(&self) -> usize {
        self.queue.len() + (self.count - self.next)
    }

    /// Whether every input is finished or dropped.
    pub(crate) fn is_over(&self) -> bool {
        self.upcoming() == 0 && self.taken.is_empty()
    }

    /// How long until the next frame comes.
    pub(crate) fn pause(&self, now: Instant) -> Option<Duration> {
        let next = (self.next < self.count).then(|| self.comes(self.next))??;
        Some(next.saturating_duration_since(now))
    }

    /// How a camera's frames fared; nothing where there is none.
    pub(crate) fn kept(&self) -> Option<Kept> {
        let camera = self.camera?;
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let quantile = |q: f64| {
            let at = (q * latencies.len() as f64) as usize;
            let last = latencies.len().checked_sub(1)?;
            latencies.get(at.min(last)).copied()
        };
        let took = self
            .finished
            .zip(self.began)
            .map(|(end, start)| end - start);
        // The last frame has its gap, too.
        let came = self.next.max(1) as f64 / camera.rate;
        let took = took.unwrap_or_default().as_secs_f64().max(came);
        Some(Kept {
            camera,
            done: latencies.len(),
            dropped: self.dropped,
            rate: latencies.len() as f64 / took,
            p50: quantile(0.5).unwrap_or_default(),
            p95: quantile(0.95).unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GAP: Duration = Duration::from_millis(100);

    fn camera(count: usize, room: usize) -> Feed {
        Feed::new(count, Some(Camera { rate: 10.0, room }))
    }

    #[test]
    fn inputs_without_a_camera_are_all_there_and_none_is_dropped() {
        let mut feed = Feed::new(3, None);
        let now = Instant::now();
        assert_eq!(feed.upcoming(), 3);
        feed.arrive(now);
        let taken: Vec<usize> = std::iter::from_fn(|| feed.take()).collect();
        assert_eq!(taken, [0, 1, 2]);
        assert!(!feed.is_over());
        feed.finish(1, now);
        feed.put_aside(0);
        feed.take_up(vec![0]);
        feed.give_back();
        assert_eq!(
            (feed.take(), feed.take(), feed.take()),
            (Some(0), Some(2), None)
        );
        feed.finish(0, now);
        feed.finish(2, now);
        assert!(feed.is_over());
        assert_eq!((feed.kept(), feed.pause(now)), (None, None));
    }

    #[test]
    fn frames_come_at_their_rate_and_the_oldest_ones_are_dropped() {
        let start = Instant::now();
        let mut feed = camera(10, 2);
        feed.arrive(start);
        assert_eq!((feed.take(), feed.take()), (Some(0), None));
        assert_eq!(feed.pause(start), Some(GAP));
        // Frame 0 takes until frame 5 has come; 1, 2 and 3 had no place.
        let later = start + 5 * GAP + GAP / 2;
        feed.finish(0, later);
        feed.arrive(later);
        assert_eq!(feed.take(), Some(4));
        feed.finish(4, later + GAP);
        feed.arrive(start + 20 * GAP);
        assert_eq!((feed.take(), feed.take()), (Some(8), Some(9)));
        assert!(!feed.is_over());
        feed.finish(8, start + 20 * GAP);
        feed.finish(9, start + 20 * GAP);
        // What is told twice counts once.
        feed.finish(9, start + 30 * GAP);
        assert!(feed.is_over());
        let kept = feed.kept().unwrap();
        assert_eq!((kept.done, kept.dropped), (4, 6));
        assert_eq!(kept.rate, 2.0);
        // 550, 250, 1200 and 1100 ms.
        assert_eq!((kept.p50, kept.p95), (11 * GAP, 12 * GAP));
    }

    #[test]
    fn frames_of_a_worker_that_failed_wait_again_but_not_for_ever() {
        let start = Instant::now();
        let mut feed = camera(4, 1);
        feed.arrive(start);
        feed.take();
        feed.give_back();
        feed.arrive(start);
        assert_eq!(feed.take(), Some(0));
        feed.give_back();
        feed.arrive(start + GAP);
        assert_eq!((feed.take(), feed.take()), (Some(1), None));
    }

    #[test]
    fn nothing_finished_is_no_rate() {
        let kept = camera(1, 1).kept().unwrap();
        assert_eq!((kept.done, kept.rate, kept.p95), (0, 0.0, Duration::ZERO));
    }
}
