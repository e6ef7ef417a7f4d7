//! What a link's reader hands to its pump: frames, then the end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use larvatus_proto::frame::{Frame, FrameLimits};

use crate::clock::thread_cpu;
use crate::framing::LinkError;

/// Counted for a frame beside its bytes.
const OVERHEAD: u64 = 64;

/// A queue of frames between one reader and one pump.
#[derive(Debug)]
pub(crate) struct Inbox {
    /// Bytes of frames that may wait before the reader pauses.
    room: u64,
    /// CPU time of the reader, in nanoseconds, as it was when it last handed something over.
    cpu: AtomicU64,
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    frames: VecDeque<Frame>,
    bytes: u64,
    /// `None` until the pump has asked its machine.
    limits: Option<FrameLimits>,
    ended: Option<LinkError>,
    reader_gone: bool,
    closed: Option<Closing>,
}

/// What the reader does with what still comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// Throws it away until the peer has ended too.
    Discard,
    /// Stops.
    Stop,
}

impl Inbox {
    pub(crate) fn new(room: u64) -> Self {
        Self {
            room,
            cpu: AtomicU64::new(0),
            inner: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// The limits, once there are any; `None` when the pump has closed.
    pub(crate) fn limits(&self) -> Option<FrameLimits> {
        let inner = self.wait_while(|inner| inner.limits.is_none() && inner.closed.is_none());
        inner.limits.filter(|_| inner.closed.is_none())
    }

    /// CPU time that the reader has spent.
    pub(crate) fn reader_cpu(&self) -> Duration {
        Duration::from_nanos(self.cpu.load(Ordering::Relaxed))
    }

    /// Hands over a frame and waits for room for the next.
    pub(crate) fn push(&self, frame: Frame) {
        let cpu = u64::try_from(thread_cpu().as_nanos()).unwrap_or(u64::MAX);
        self.cpu.store(cpu, Ordering::Relaxed);
        let mut inner = self.lock();
        if inner.closed.is_none() {
            inner.bytes += frame.size() + OVERHEAD;
            inner.frames.push_back(frame);
        }
        drop(inner);
        self.changed.notify_all();
        drop(self.wait_while(|inner| inner.bytes > self.room && inner.closed.is_none()));
    }

    /// Says that no frame will follow, and waits until the pump has closed.
    pub(crate) fn end(&self, why: LinkError) {
        self.lock().ended = Some(why);
        self.changed.notify_all();
        drop(self.wait_while(|inner| inner.closed.is_none()));
    }

    /// How the pump has closed, if it has.
    pub(crate) fn closing(&self) -> Option<Closing> {
        self.lock().closed
    }

    /// The reader's last word.
    pub(crate) fn reader_gone(&self) {
        self.lock().reader_gone = true;
        self.changed.notify_all();
    }

    /// Sets what the reader may accept from now on.
    pub(crate) fn set_limits(&self, limits: FrameLimits) {
        let first = self.lock().limits.replace(limits).is_none();
        if first {
            self.changed.notify_all();
        }
    }

    /// The next frame that has come.
    pub(crate) fn pop(&self) -> Option<Frame> {
        let mut inner = self.lock();
        let frame = inner.frames.pop_front()?;
        let full = inner.bytes > self.room;
        inner.bytes -= frame.size() + OVERHEAD;
        let room = full && inner.bytes <= self.room;
        drop(inner);
        if room {
            self.changed.notify_all();
        }
        Some(frame)
    }

    /// Why no frame will follow those that wait; once.
    pub(crate) fn take_end(&self) -> Option<LinkError> {
        let mut inner = self.lock();
        if inner.frames.is_empty() {
            inner.ended.take()
        } else {
            None
        }
    }

    /// Waits until there is a frame or the end, or for as long as `wait`.
    pub(crate) fn wait(&self, wait: Duration) {
        self.wait_up_to(wait, |inner| {
            inner.frames.is_empty() && inner.ended.is_none()
        });
    }

    /// Waits until the reader is gone, or for as long as `wait`.
    pub(crate) fn wait_reader_gone(&self, wait: Duration) {
        self.wait_up_to(wait, |inner| !inner.reader_gone);
    }

    /// Drops what waits and tells the reader what to do with the rest.
    pub(crate) fn close(&self, how: Closing) {
        let mut inner = self.lock();
        inner.closed = Some(how);
        inner.bytes = 0;
        let frames = std::mem::take(&mut inner.frames);
        drop(inner);
        self.changed.notify_all();
        drop(frames);
    }

    fn wait_while(&self, mut blocked: impl FnMut(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let waited = self.changed.wait_while(self.lock(), |inner| blocked(inner));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_up_to(&self, wait: Duration, mut blocked: impl FnMut(&Inner) -> bool) {
        // A duration beyond the clock's range is as good as for ever.
        let end = Instant::now().checked_add(wait);
        let mut inner = self.lock();
        while blocked(&inner) {
            let left = end.map_or(Duration::from_secs(3600), |end| {
                end.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(inner, left);
            inner = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Nothing that could panic runs while this is held.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const ROOM: u64 = 1 << 20;

    fn frame(words: usize) -> Frame {
        Frame {
            kind: 1,
            head: vec![],
            words: vec![0; words].into(),
        }
    }

    #[test]
    fn the_end_comes_after_the_frames_and_once() {
        let inbox = Inbox::new(ROOM);
        inbox.push(frame(1));
        std::thread::scope(|scope| {
            scope.spawn(|| inbox.end(LinkError::CutOff));
            inbox.wait(Duration::from_secs(9));
            assert!(inbox.take_end().is_none());
            assert_eq!(inbox.pop(), Some(frame(1)));
            inbox.wait(Duration::from_secs(9));
            assert!(matches!(inbox.take_end(), Some(LinkError::CutOff)));
            assert!(inbox.take_end().is_none());
            inbox.close(Closing::Stop);
        });
    }

    #[test]
    fn a_reader_pauses_when_the_room_is_full() {
        let inbox = Arc::new(Inbox::new(ROOM));
        let pushed = Arc::new(AtomicUsize::new(0));
        let words = usize::try_from(ROOM / 8).unwrap();
        let reader = std::thread::spawn({
            let (inbox, pushed) = (Arc::clone(&inbox), Arc::clone(&pushed));
            move || {
                for _ in 0..5 {
                    inbox.push(frame(words));
                    pushed.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        for taken in 0..5 {
            inbox.wait(Duration::from_secs(9));
            std::thread::sleep(Duration::from_millis(5));
            // Half of the room each: the second does not fit whole, so the reader pauses on it.
            assert!(pushed.load(Ordering::SeqCst) <= taken + 1);
            assert_eq!(inbox.pop(), Some(frame(words)));
        }
        reader.join().unwrap();
    }

    #[test]
    fn closing_frees_a_reader_wherever_it_waits() {
        let waits: [fn(&Inbox); 3] = [
            |inbox| assert_eq!(inbox.limits(), None),
            |inbox| inbox.push(frame(usize::try_from(ROOM).unwrap() / 2)),
            |inbox| inbox.end(LinkError::Closed),
        ];
        for wait in waits {
            let inbox = Inbox::new(ROOM);
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| wait(&inbox));
                std::thread::sleep(Duration::from_millis(5));
                assert!(!reader.is_finished());
                inbox.close(Closing::Discard);
            });
            assert_eq!(inbox.pop(), None);
        }
    }
}
