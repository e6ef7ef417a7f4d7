//! Frames on a stream.
//!
//! A header is held against the limits before anything is allocated for what it announces, and
//! memory follows the bytes that have arrived: at most twice those, 1 MiB, or as much as the
//! largest frame that came whole before. Words are read into the vector that the frame hands
//! out; on little-endian machines they are not touched again.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::time::{Duration, Instant};

use larvatus_proto::frame::{Frame, FrameLimits, HEADER, Header};
use larvatus_proto::machine::LinkEnd;
use larvatus_proto::wire::DecodeError;
use larvatus_proto::words::Words;

/// Words allocated ahead of those that have arrived, at the least: 1 MiB.
const AHEAD: usize = 1 << 18;

/// Why a link carries no further frame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LinkError {
    /// The peer closed it between frames.
    #[error("the peer closed the link")]
    Closed,
    /// It ended inside a frame or, where a link has goodbyes, without one.
    #[error("the link was cut off")]
    CutOff,
    /// The peer did not read.
    #[error("the peer read nothing for {} s", after.as_secs_f32())]
    Stalled {
        /// How long it was waited for.
        after: Duration,
    },
    /// The peer sent a header beyond the limits.
    #[error("the peer sent no frame that is acceptable now: {0}")]
    Malformed(#[source] DecodeError),
    /// The system's error.
    #[error("the link broke: {0}")]
    Io(#[source] io::Error),
}

impl LinkError {
    /// What a machine is told.
    pub fn end(&self) -> LinkEnd {
        match self {
            Self::Closed | Self::CutOff | Self::Io(_) => LinkEnd::Closed,
            Self::Stalled { .. } => LinkEnd::Stalled,
            Self::Malformed(error) => LinkEnd::Malformed(error.clone()),
        }
    }
}

/// Reads frames from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    /// Words allocated before they arrive, at the least.
    ahead: usize,
}

impl<R: Read> FrameReader<R> {
    /// A reader of frames; it reads no byte beyond the frame that it is asked for.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            ahead: AHEAD,
        }
    }

    /// Reads one frame. `limits` is asked when the header has arrived, not before.
    ///
    /// # Errors
    /// [`LinkError::Closed`] before the first byte, [`LinkError::CutOff`] after it,
    /// [`LinkError::Malformed`] where the header exceeds the limits, [`LinkError::Io`].
    pub fn read(&mut self, limits: impl FnOnce() -> FrameLimits) -> Result<Frame, LinkError> {
        let mut header = [0; HEADER];
        let (first, rest) = header.split_at_mut(1);
        self.stream
            .read_exact(first)
            .map_err(|error| match error.kind() {
                ErrorKind::UnexpectedEof => LinkError::Closed,
                _ => cut_off(error),
            })?;
        self.stream.read_exact(rest).map_err(cut_off)?;
        let Header { kind, head, words } =
            Header::decode(header, limits()).map_err(LinkError::Malformed)?;
        let mut bytes = vec![0; head];
        self.stream.read_exact(&mut bytes).map_err(cut_off)?;
        let words = self.words(words)?;
        self.ahead = self.ahead.max(words.len());
        Ok(Frame {
            kind,
            head: bytes,
            words: words.into(),
        })
    }

    fn words(&mut self, count: usize) -> Result<Vec<u32>, LinkError> {
        let mut words: Vec<u32> = Vec::new();
        while words.len() < count {
            let arrived = words.len();
            let left = count - arrived;
            if words.capacity() == arrived {
                let no_memory = |_| LinkError::Io(ErrorKind::OutOfMemory.into());
                let more = left.min(arrived.max(self.ahead));
                words.try_reserve_exact(more).map_err(no_memory)?;
            }
            words.resize(arrived + left.min(AHEAD).min(words.capacity() - arrived), 0);
            let space = words.get_mut(arrived..).unwrap_or_default();
            self.stream
                .read_exact(bytemuck::cast_slice_mut(space))
                .map_err(cut_off)?;
            if cfg!(target_endian = "big") {
                space
                    .iter_mut()
                    .for_each(|word| *word = u32::from_le(*word));
            }
        }
        Ok(words)
    }

    /// The stream itself.
    pub fn into_inner(self) -> R {
        self.stream
    }
}

fn cut_off(error: io::Error) -> LinkError {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::ConnectionAborted => LinkError::CutOff,
        _ => LinkError::Io(error),
    }
}

/// Writes one frame, its three parts together.
///
/// # Errors
/// The stream's error; [`ErrorKind::WriteZero`] where it takes nothing;
/// [`ErrorKind::InvalidInput`] where the frame's lengths do not fit its header.
pub fn write_frame(stream: &mut impl Write, frame: &Frame) -> io::Result<()> {
    if u16::try_from(frame.head.len()).is_err() || u32::try_from(frame.words.len()).is_err() {
        return Err(ErrorKind::InvalidInput.into());
    }
    let header = frame.header();
    with_bytes(&frame.words, |payload| {
        write_parts(stream, [&header, &frame.head, payload])
    })
}

/// The bytes of a payload as they travel.
pub(crate) fn with_bytes<T>(words: &Words, then: impl FnOnce(&[u8]) -> T) -> T {
    match words.as_slice() {
        Some(words) if cfg!(target_endian = "little") => then(bytemuck::cast_slice(words)),
        _ => {
            let words: Vec<u32> = words.to_vec().into_iter().map(u32::to_le).collect();
            then(bytemuck::cast_slice(&words))
        }
    }
}

fn write_parts(stream: &mut impl Write, parts: [&[u8]; 3]) -> io::Result<()> {
    let mut parts = parts.map(IoSlice::new);
    let mut parts = &mut parts[..];
    IoSlice::advance_slices(&mut parts, 0);
    while !parts.is_empty() {
        match stream.write_vectored(parts) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut parts, count),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    stream.flush()
}

/// Bytes a second that a peer must read of a frame, beyond the time for which it may read nothing.
const SLOWEST: u64 = 64 << 10;

/// Bytes handed to the system at once: a call waits for the peer by itself, part by part.
const PIECE: usize = 256 << 10;

/// A stream whose writes are over when the time for one frame is.
pub(crate) struct Timely<W> {
    stream: W,
    end: Option<Instant>,
}

impl<W> Timely<W> {
    /// For a frame of so many bytes, to a peer that may read nothing for `silence`.
    pub(crate) fn new(stream: W, silence: Duration, bytes: u64) -> Self {
        let time = silence.saturating_add(Duration::from_secs(bytes / SLOWEST));
        Self {
            stream,
            end: Instant::now().checked_add(time),
        }
    }
}

impl<W: Write> Write for Timely<W> {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(from)])
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.end.is_some_and(|end| Instant::now() >= end) {
            return Err(ErrorKind::TimedOut.into());
        }
        let mut left = PIECE;
        let mut parts = [IoSlice::new(&[]); 3];
        for (part, from) in parts.iter_mut().zip(from) {
            let (taken, _) = from.split_at(from.len().min(left));
            left -= taken.len();
            *part = IoSlice::new(taken);
        }
        self.stream.write_vectored(&parts)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDE: FrameLimits = FrameLimits {
        head: 512,
        words: 1 << 22,
    };

    /// Gives or takes one to three bytes at a time.
    struct Dribble(Vec<u8>, usize);

    impl Read for Dribble {
        fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
            let rest = &self.0[self.1..];
            let count = to.len().min(rest.len()).min(1 + self.1 % 3);
            to[..count].copy_from_slice(&rest[..count]);
            self.1 += count;
            Ok(count)
        }
    }

    impl Write for Dribble {
        fn write(&mut self, from: &[u8]) -> io::Result<usize> {
            let count = from.len().min(1 + self.0.len() % 3);
            self.0.extend_from_slice(&from[..count]);
            Ok(count)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn frames_survive_partial_reads_and_writes() {
        for (head, words) in [(0, 0), (1, 0), (0, 1), (512, 3), (3, 1000)] {
            let frame = Frame {
                kind: 9,
                head: vec![7; head],
                words: (0..words).collect::<Vec<u32>>().into(),
            };
            let mut stream = Dribble(vec![], 0);
            write_frame(&mut stream, &frame).unwrap();
            assert_eq!(stream.0.len() as u64, frame.size());
            assert_eq!(FrameReader::new(&mut stream).read(|| WIDE).unwrap(), frame);
            assert!(matches!(
                FrameReader::new(&mut stream).read(|| WIDE),
                Err(LinkError::Closed)
            ));
        }
    }

    #[test]
    fn a_frame_is_written_within_its_time_or_not_at_all() {
        /// Takes one byte at a time, and time for it.
        struct Slow(usize);
        impl Write for Slow {
            fn write(&mut self, from: &[u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(2));
                self.0 += 1;
                Ok(from.len().min(1))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let frame = Frame {
            kind: 1,
            head: vec![0; 512],
            words: vec![].into(),
        };
        let mut slow = Slow(0);
        let mut stream = Timely::new(&mut slow, Duration::from_millis(50), frame.size());
        let result = write_frame(&mut stream, &frame).map_err(|error| error.kind());
        assert_eq!(result, Err(ErrorKind::TimedOut));
        assert!((1..30).contains(&slow.0), "{} bytes", slow.0);
        let mut stream = Timely::new(Dribble(vec![], 0), Duration::MAX, frame.size());
        write_frame(&mut stream, &frame).unwrap();
        assert_eq!(stream.stream.0.len() as u64, frame.size());
    }

    #[test]
    fn large_frames_are_handed_over_in_pieces() {
        let frame = Frame {
            kind: 1,
            head: vec![5; 9],
            words: vec![0x0102_0304; PIECE].into(),
        };
        /// Takes everything that it is given and notes how much that is at the most.
        struct Greedy(Vec<u8>, usize);
        impl Write for Greedy {
            fn write(&mut self, from: &[u8]) -> io::Result<usize> {
                self.0.extend_from_slice(from);
                Ok(from.len())
            }
            fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
                let count = from
                    .iter()
                    .map(|part| self.write(part))
                    .sum::<io::Result<_>>()?;
                self.1 = self.1.max(count);
                Ok(count)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut greedy = Greedy(vec![], 0);
        let mut stream = Timely::new(&mut greedy, Duration::from_secs(60), frame.size());
        write_frame(&mut stream, &frame).unwrap();
        assert_eq!(greedy.1, PIECE);
        let read = FrameReader::new(&mut &greedy.0[..]).read(|| WIDE).unwrap();
        assert_eq!(read, frame);
    }

    #[test]
    fn every_cut_inside_a_frame_is_told_from_an_end() {
        let frame = Frame {
            kind: 1,
            head: vec![1, 2],
            words: vec![3].into(),
        };
        let mut bytes = vec![];
        write_frame(&mut bytes, &frame).unwrap();
        for cut in 1..bytes.len() {
            let result = FrameReader::new(&mut &bytes[..cut]).read(|| WIDE);
            assert!(matches!(result, Err(LinkError::CutOff)), "cut at {cut}");
        }
    }

    #[test]
    fn memory_follows_what_arrives() {
        /// Notes the largest piece that it is asked for.
        struct Nosy(usize, usize);
        impl Read for Nosy {
            fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
                self.1 = self.1.max(to.len());
                let count = to.len().min(self.0);
                self.0 -= count;
                Ok(count)
            }
        }
        let limits = FrameLimits {
            head: 0,
            words: u32::MAX as usize,
        };
        let mut header = &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff][..];
        let mut zeros = Nosy(10, 0);
        let result = FrameReader::new(&mut (&mut header).chain(&mut zeros)).read(|| limits);
        assert!(matches!(result, Err(LinkError::CutOff)));
        assert_eq!(zeros.1, 4 * AHEAD);
    }

    #[test]
    fn the_last_word_of_a_frame_is_the_last_of_its_memory() {
        for count in [1, AHEAD, AHEAD + 1, 5 * AHEAD + 3] {
            let frame = Frame {
                kind: 1,
                head: vec![],
                words: vec![0xfeed; count].into(),
            };
            let mut bytes = vec![];
            write_frame(&mut bytes, &frame).unwrap();
            let read = FrameReader::new(&mut &bytes[..]).read(|| WIDE).unwrap();
            assert_eq!(read, frame);
            assert_eq!(read.words.into_vec().capacity(), count);
        }
    }

    #[test]
    fn headers_beyond_the_limits_are_refused_unread() {
        let limits = FrameLimits { head: 2, words: 3 };
        for (head, words) in [(3, 0), (0, 4)] {
            let frame = Frame {
                kind: 1,
                head: vec![0; head],
                words: vec![0; words].into(),
            };
            let mut bytes = vec![];
            write_frame(&mut bytes, &frame).unwrap();
            let mut rest = &bytes[..];
            let result = FrameReader::new(&mut rest).read(|| limits);
            assert!(matches!(
                result,
                Err(LinkError::Malformed(DecodeError::TooMany { .. }))
            ));
            assert_eq!(rest.len(), bytes.len() - HEADER);
        }
    }

    #[test]
    fn lengths_that_a_header_cannot_say_are_not_sent() {
        let frame = Frame {
            kind: 1,
            head: vec![0; 1 << 16],
            words: vec![].into(),
        };
        let mut bytes = vec![];
        let error = write_frame(&mut bytes, &frame).unwrap_err();
        assert_eq!((error.kind(), bytes.len()), (ErrorKind::InvalidInput, 0));
    }
}
