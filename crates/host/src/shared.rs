//! Payloads in shared memory, for a peer on the same machine.
//!
//! Frames travel over a Unix socket as ever, but the words of a payload stay where their sender
//! wrote them: in memory that it made, passed over the socket as a sealed file, and mapped by the
//! receiver to be read. The socket also rings the bell. There are no indices in the shared memory:
//! the sender alone knows what is free, and learns with the frames that come back what the
//! receiver no longer reads. So whatever a peer scribbles, it scribbles on its own payload.
//!
//! In front of each frame stands a preamble: `place: u64` (the byte at which the payload lies, or
//! all ones where the words follow the head), `count: u32, zero: u32`, then `count` places, `u64`
//! each, that the sender has read and gives back.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use larvatus_proto::frame::{Frame, FrameLimits, HEADER, Header};
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::{Heap, Lent, Memory, Words};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recv, recvmsg, send, sendmsg,
};

use crate::framing::{LinkError, with_bytes};
use crate::memory::Mapping;

/// First bytes on a socket whose payloads shall lie in shared memory; no frame begins so.
const GREETING: [u8; 8] = *b"LRVTSHM1";

/// Bytes of a side's memory. Pages that were never written take no space.
const ROOM: u64 = 2 << 30;

/// Payloads begin at multiples of this.
const ALIGN: u64 = 4096;

/// Bytes of a preamble without its places.
const PREAMBLE: usize = 16;

/// Places that one frame gives back at most.
const MAX_RETURNS: usize = 64;

/// Bytes taken from the socket at once.
const READ: usize = 64 << 10;

/// Bytes that may be read while a write waits.
const BACKLOG: usize = 64 << 20;

/// Both sides' memory.
#[derive(Debug)]
pub(crate) struct Shared {
    ours: Arc<Arena>,
    theirs: Arc<Mapping>,
}

/// Whether what a new connection says first is the wish for shared memory; `None` while nothing
/// has come within `wait`.
pub(crate) fn is_wished(socket: &UnixStream, wait: Duration) -> io::Result<Option<bool>> {
    if !ready(socket, PollFlags::IN, wait)? {
        return Ok(None);
    }
    let mut first = [0];
    let (_, count) = recv(socket, &mut first[..], RecvFlags::PEEK)?;
    Ok(Some(count == 1 && first[0] == GREETING[0]))
}

impl Shared {
    /// Says the greeting and hears the peer's, within `wait`. Both sides do the same.
    pub(crate) fn agree(socket: &UnixStream, wait: Duration) -> io::Result<Self> {
        let (ours, file) = Mapping::create(ROOM)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = SendAncillaryBuffer::new(&mut space);
        let files = [file.as_fd()];
        passed.push(SendAncillaryMessage::ScmRights(&files));
        let greeting = [IoSlice::new(&GREETING)];
        let sent = sendmsg(socket, &greeting, &mut passed, SendFlags::NOSIGNAL)?;
        if sent != GREETING.len() || !ready(socket, PollFlags::IN, wait)? {
            return Err(ErrorKind::TimedOut.into());
        }
        let theirs = Mapping::of_peer(&greeted(socket)?)?;
        Ok(Self {
            ours: Arc::new(Arena::new(ours)),
            theirs: Arc::new(theirs),
        })
    }
}

/// The file that came with the peer's greeting.
fn greeted(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut greeting = [0; GREETING.len()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut passed = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut greeting)];
    let message = recvmsg(socket, &mut parts, &mut passed, RecvFlags::CMSG_CLOEXEC)?;
    if message.bytes == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    let file = passed.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut files) => files.next(),
        _ => None,
    });
    match file {
        Some(file) if message.bytes == GREETING.len() && greeting == GREETING => Ok(file),
        _ => Err(io::Error::new(
            ErrorKind::InvalidData,
            "the peer does not offer shared memory",
        )),
    }
}

/// Waits for the socket; an error of the socket makes it ready.
fn ready(socket: &UnixStream, what: PollFlags, wait: Duration) -> io::Result<bool> {
    let wait = Timespec::try_from(wait).unwrap_or(Timespec {
        tv_sec: 3600,
        tv_nsec: 0,
    });
    let mut polled = [PollFd::new(socket, what)];
    match poll(&mut polled, Some(&wait)) {
        Ok(count) => Ok(count > 0),
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Our memory: what of it is free, and what the peer may still read.
#[derive(Debug)]
struct Arena {
    memory: Mapping,
    space: Mutex<Space>,
}

#[derive(Debug)]
struct Space {
    /// Free runs of bytes: start and length, no two adjacent.
    free: BTreeMap<u64, u64>,
    /// Runs that a payload lies in which was not sent.
    drafts: BTreeMap<u64, u64>,
    /// Runs that the peer may read until it gives them back.
    sent: BTreeMap<u64, u64>,
}

impl Arena {
    fn new(memory: Mapping) -> Self {
        let free = BTreeMap::from([(0, memory.bytes() as u64)]);
        let (drafts, sent) = (BTreeMap::new(), BTreeMap::new());
        Self {
            memory,
            space: Mutex::new(Space { free, drafts, sent }),
        }
    }

    fn space(&self) -> MutexGuard<'_, Space> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest free run that is long enough: what was used is used again.
    fn take(&self, words: usize) -> Option<u64> {
        let bytes = (4 * words as u64).next_multiple_of(ALIGN).max(ALIGN);
        let mut space = self.space();
        let (at, length) = space
            .free
            .iter()
            .find(|(_, length)| **length >= bytes)
            .map(|(at, length)| (*at, *length))?;
        space.free.remove(&at);
        if length > bytes {
            space.free.insert(at + bytes, length - bytes);
        }
        space.drafts.insert(at, bytes);
        Some(at)
    }

    /// From here on the peer may read a draft, and give it back.
    fn send(&self, at: u64) {
        let mut space = self.space();
        if let Some(length) = space.drafts.remove(&at) {
            space.sent.insert(at, length);
        }
    }

    /// Makes a draft that was not sent free again.
    fn discard(&self, at: u64) {
        let mut space = self.space();
        if let Some(length) = space.drafts.remove(&at) {
            space.release(at, length);
        }
    }

    /// Makes a run free that the peer has read; `false` where none that was sent begins there.
    fn give_back(&self, at: u64) -> bool {
        let mut space = self.space();
        let Some(length) = space.sent.remove(&at) else {
            return false;
        };
        space.release(at, length);
        true
    }
}

impl Space {
    fn release(&mut self, at: u64, mut length: u64) {
        let mut start = at;
        if let Some(after) = self.free.remove(&(at + length)) {
            length += after;
        }
        let before = self.free.range(..at).next_back().map(|(s, l)| (*s, *l));
        if let Some((before, bytes)) = before
            && before + bytes == at
        {
            start = before;
            length += bytes;
        }
        self.free.insert(start, length);
    }
}

/// Hands out memory for payloads; where there is none, memory of the process's own.
#[derive(Debug)]
struct Lender(Arc<Arena>);

impl Memory for Lender {
    fn words(&self, count: usize) -> Words {
        match self.0.take(count) {
            None => Heap.words(count),
            Some(at) => Words::lent(Box::new(Draft {
                arena: Arc::clone(&self.0),
                at,
                words: count,
                sent: AtomicBool::new(false),
            })),
        }
    }
}

/// A payload of ours. Once it was sent, it is the peer who gives it back.
struct Draft {
    arena: Arc<Arena>,
    at: u64,
    words: usize,
    sent: AtomicBool,
}

impl Lent for Draft {
    fn len(&self) -> usize {
        self.words
    }

    fn read(&self, at: usize, into: &mut [u32]) {
        let count = into.len().min(self.words.saturating_sub(at));
        if let (Some(from), Some(into)) = (place(self.at, at), into.get_mut(..count)) {
            self.arena.memory.read(from, into);
        }
    }

    fn write(&mut self, at: usize, from: &[u32]) {
        let count = from.len().min(self.words.saturating_sub(at));
        if let (Some(to), Some(from)) = (place(self.at, at), from.get(..count)) {
            self.arena.memory.write(to, from);
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.sent.load(Ordering::Relaxed) {
            self.arena.discard(self.at);
        }
    }
}

/// A payload of the peer's, which it may change as it likes.
struct Arrived {
    memory: Arc<Mapping>,
    at: u64,
    words: usize,
    returns: Arc<Mutex<Vec<u64>>>,
}

impl Lent for Arrived {
    fn len(&self) -> usize {
        self.words
    }

    fn read(&self, at: usize, into: &mut [u32]) {
        let count = into.len().min(self.words.saturating_sub(at));
        if let (Some(from), Some(into)) = (place(self.at, at), into.get_mut(..count)) {
            self.memory.read(from, into);
        }
    }

    fn write(&mut self, _at: usize, _from: &[u32]) {}
}

impl Drop for Arrived {
    fn drop(&mut self) {
        lock(&self.returns).push(self.at);
    }
}

fn lock(returns: &Mutex<Vec<u64>>) -> MutexGuard<'_, Vec<u64>> {
    returns.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The byte of the `word`-th word of a payload.
fn place(at: u64, word: usize) -> Option<usize> {
    usize::try_from(at).ok()?.checked_add(word.checked_mul(4)?)
}

/// A socket and both sides' memory, driven by one thread.
#[derive(Debug)]
pub(crate) struct SharedLink {
    socket: UnixStream,
    ours: Arc<Arena>,
    theirs: Arc<Mapping>,
    /// Payloads of the peer's that were read.
    returns: Arc<Mutex<Vec<u64>>>,
    /// Bytes that came and belong to no frame yet, from `start` on.
    buffer: Vec<u8>,
    start: usize,
    /// Why no more will come.
    ended: Option<LinkError>,
    write_timeout: Duration,
}

impl SharedLink {
    pub(crate) fn new(socket: UnixStream, shared: Shared, write_timeout: Duration) -> Self {
        Self {
            socket,
            ours: shared.ours,
            theirs: shared.theirs,
            returns: Arc::default(),
            buffer: Vec::new(),
            start: 0,
            ended: None,
            write_timeout,
        }
    }

    /// Where payloads to the peer are to be written.
    pub(crate) fn memory(&self) -> Arc<dyn Memory> {
        Arc::new(Lender(Arc::clone(&self.ours)))
    }

    /// The next frame that has come whole, if it is within the limits.
    pub(crate) fn pop(&mut self, limits: FrameLimits) -> Option<Frame> {
        loop {
            match self.parse(limits) {
                Ok(Parsed::Frame(frame)) => return Some(frame),
                Ok(Parsed::Needs(more)) => {
                    if self.ended.is_some() || !self.fill(more) {
                        return None;
                    }
                }
                Err(error) => {
                    self.buffer.clear();
                    self.start = 0;
                    self.ended = Some(LinkError::Malformed(error));
                    return None;
                }
            }
        }
    }

    /// Why no more will come, once.
    pub(crate) fn take_end(&mut self) -> Option<LinkError> {
        self.ended.take()
    }

    /// Waits until something has come or `wait` is over.
    pub(crate) fn wait(&mut self, wait: Duration) {
        if self.ended.is_none() {
            // An error shows when the socket is read.
            let _ = ready(&self.socket, PollFlags::IN, wait);
        }
    }

    /// Sends a frame. While the peer does not take it, what comes is read.
    pub(crate) fn write(&mut self, frame: &Frame) -> io::Result<()> {
        let too_long = |_| io::Error::from(ErrorKind::InvalidInput);
        u16::try_from(frame.head.len()).map_err(too_long)?;
        u32::try_from(frame.words.len()).map_err(too_long)?;
        let draft = frame
            .words
            .as_lent()
            .and_then(|lent| lent.downcast_ref::<Draft>())
            .filter(|draft| Arc::ptr_eq(&draft.arena, &self.ours));
        let returns: Vec<u64> = {
            let mut all = lock(&self.returns);
            let count = all.len().min(MAX_RETURNS);
            all.drain(..count).collect()
        };
        let mut bytes = Vec::with_capacity(PREAMBLE + 8 * returns.len() + HEADER + 64);
        bytes.extend(draft.map_or(u64::MAX, |draft| draft.at).to_le_bytes());
        bytes.extend((returns.len() as u64).to_le_bytes());
        bytes.extend(returns.iter().flat_map(|place| place.to_le_bytes()));
        bytes.extend(frame.header());
        bytes.extend_from_slice(&frame.head);
        // From here on the peer may read it and give it back.
        if let Some(draft) = draft {
            draft.sent.store(true, Ordering::Relaxed);
            self.ours.send(draft.at);
        }
        let end = Instant::now() + self.write_timeout;
        self.send(&bytes, end)?;
        if draft.is_none() && !frame.words.is_empty() {
            with_bytes(&frame.words, |bytes| self.send(bytes, end))?;
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8], end: Instant) -> io::Result<()> {
        while !bytes.is_empty() {
            match send(
                &self.socket,
                bytes,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let left = end.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Err(ErrorKind::TimedOut.into());
                    }
                    let room = self.buffer.len() < BACKLOG && self.ended.is_none();
                    let both = if room {
                        PollFlags::IN | PollFlags::OUT
                    } else {
                        PollFlags::OUT
                    };
                    ready(&self.socket, both, left)?;
                    if room {
                        self.fill(READ);
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads what has come, up to about `more` bytes; `false` if that is nothing.
    fn fill(&mut self, more: usize) -> bool {
        self.buffer.drain(..self.start);
        self.start = 0;
        let held = self.buffer.len();
        self.buffer.resize(held + more.clamp(READ, 16 * READ), 0);
        let space = self.buffer.get_mut(held..).unwrap_or_default();
        let result = recv(&self.socket, space, RecvFlags::DONTWAIT);
        let count = match result {
            Ok((_, 0)) => {
                let inside = held > 0;
                self.ended = Some(if inside {
                    LinkError::CutOff
                } else {
                    LinkError::Closed
                });
                0
            }
            Ok((_, count)) => count,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(error) => {
                self.ended = Some(LinkError::Io(error.into()));
                0
            }
        };
        self.buffer.truncate(held + count);
        count > 0
    }

    fn parse(&mut self, limits: FrameLimits) -> Result<Parsed, DecodeError> {
        let bytes = self.buffer.get(self.start..).unwrap_or_default();
        let Some((place, rest)) = bytes.split_first_chunk() else {
            return Ok(Parsed::Needs(PREAMBLE));
        };
        let Some((count, rest)) = rest.split_first_chunk() else {
            return Ok(Parsed::Needs(PREAMBLE));
        };
        let (place, count) = (u64::from_le_bytes(*place), u64::from_le_bytes(*count));
        if count > MAX_RETURNS as u64 {
            return Err(DecodeError::TooMany {
                what: "places given back",
                limit: MAX_RETURNS as u64,
                got: count,
            });
        }
        let returned = 8 * usize::try_from(count).unwrap_or(MAX_RETURNS);
        let Some((returns, rest)) = rest.split_at_checked(returned) else {
            return Ok(Parsed::Needs(returned));
        };
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(Parsed::Needs(HEADER));
        };
        let Header { kind, head, words } = Header::decode(*header, limits)?;
        let Some((head, rest)) = rest.split_at_checked(head) else {
            return Ok(Parsed::Needs(head));
        };
        let front = PREAMBLE + returned + HEADER + head.len();
        let (words, inline) = if place == u64::MAX {
            let Some((words, _)) = rest.split_at_checked(4 * words) else {
                return Ok(Parsed::Needs(4 * words - rest.len()));
            };
            let mut read: Vec<u32> = bytemuck::pod_collect_to_vec(words);
            if cfg!(target_endian = "big") {
                read.iter_mut().for_each(|word| *word = u32::from_le(*word));
            }
            (read.into(), words.len())
        } else {
            (self.arrived(place, words)?, 0)
        };
        let (places, _) = returns.as_chunks::<8>();
        for place in places {
            let place = u64::from_le_bytes(*place);
            if !self.ours.give_back(place) {
                return Err(DecodeError::Inconsistent {
                    what: "place given back",
                    expected: 0,
                    got: place,
                });
            }
        }
        let frame = Frame {
            kind,
            head: head.to_vec(),
            words,
        };
        self.start += front + inline;
        Ok(Parsed::Frame(frame))
    }

    /// A payload in the peer's memory.
    fn arrived(&self, at: u64, words: usize) -> Result<Words, DecodeError> {
        let room = self.theirs.bytes() as u64;
        let end = at.checked_add(4 * words as u64);
        if !at.is_multiple_of(ALIGN) || end.is_none_or(|end| end > room) {
            return Err(DecodeError::Inconsistent {
                what: "end of a payload in shared memory",
                expected: room,
                got: at,
            });
        }
        Ok(Words::lent(Box::new(Arrived {
            memory: Arc::clone(&self.theirs),
            at,
            words,
            returns: Arc::clone(&self.returns),
        })))
    }
}

/// What the bytes that have come amount to.
enum Parsed {
    Frame(Frame),
    /// About so many bytes are missing.
    Needs(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gives_back_what_was_sent_to_it_and_nothing_else() {
        let arena = Arena::new(Mapping::create(8 * ALIGN).unwrap().0);
        let (draft, sent) = (arena.take(1).unwrap(), arena.take(1).unwrap());
        arena.send(sent);
        assert!(!arena.give_back(draft), "a draft is ours alone");
        assert_ne!(arena.take(1), Some(draft), "nobody else writes there");
        assert!(arena.give_back(sent));
        assert!(!arena.give_back(sent), "once");
        assert_eq!(arena.take(1), Some(sent));
        arena.discard(draft);
        assert_eq!(arena.take(1), Some(draft));
    }
}
