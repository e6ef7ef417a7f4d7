//! A link whose frames a thread of its own reads.

use std::io::{self, BufReader, ErrorKind, Read};
use std::net::Shutdown;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use larvatus_proto::frame::{Frame, FrameLimits};

use crate::framing::{FrameReader, LinkError, Timely, write_frame};
use crate::inbox::{Closing, Inbox};
use crate::link::Link;

/// Bytes read at once where frames are small; larger ones are read into place.
const BUFFER: usize = 8 << 10;

/// A link and the thread that reads it.
#[derive(Debug)]
pub(crate) struct Stream {
    link: Arc<Link>,
    inbox: Arc<Inbox>,
    reader: Option<JoinHandle<()>>,
    write_timeout: Duration,
}

impl Stream {
    pub(crate) fn new(link: Link, room: u64, write_timeout: Duration) -> io::Result<Self> {
        link.set_write_timeout(Some(write_timeout))?;
        let (link, inbox) = (Arc::new(link), Arc::new(Inbox::new(room)));
        let reader = std::thread::Builder::new()
            .name("larvatus-read".into())
            .spawn({
                let (link, inbox) = (Arc::clone(&link), Arc::clone(&inbox));
                move || {
                    read(&link, &inbox);
                    inbox.reader_gone();
                }
            })?;
        Ok(Self {
            link,
            inbox,
            reader: Some(reader),
            write_timeout,
        })
    }

    /// What the peer may send from here on.
    pub(crate) fn allow(&self, limits: FrameLimits) {
        self.inbox.set_limits(limits);
    }

    /// CPU time of the thread that reads, up to the last frame that it handed over.
    pub(crate) fn reader_cpu(&self) -> Duration {
        self.inbox.reader_cpu()
    }

    pub(crate) fn pop(&self) -> Option<Frame> {
        self.inbox.pop()
    }

    pub(crate) fn take_end(&self) -> Option<LinkError> {
        self.inbox.take_end()
    }

    pub(crate) fn wait(&self, wait: Duration) {
        self.inbox.wait(wait);
    }

    pub(crate) fn write(&self, frame: &Frame) -> io::Result<()> {
        let mut stream = Timely::new(&*self.link, self.write_timeout, frame.size());
        write_frame(&mut stream, frame)
    }

    /// Says that nothing more will be sent and throws away what comes, until the peer has ended
    /// too or `wait` is over.
    pub(crate) fn finish(&self, wait: Duration) {
        let _ = self.link.shutdown(Shutdown::Write);
        self.inbox.close(Closing::Discard);
        self.inbox.wait_reader_gone(wait);
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.inbox.close(Closing::Stop);
        let _ = self.link.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn read(link: &Link, inbox: &Inbox) {
    let mut frames = FrameReader::new(BufReader::with_capacity(BUFFER, link));
    let nothing = FrameLimits { head: 0, words: 0 };
    let why = loop {
        match frames.read(|| inbox.limits().unwrap_or(nothing)) {
            Ok(frame) => inbox.push(frame),
            Err(why) => break why,
        }
        if inbox.closing().is_some() {
            break LinkError::Closed;
        }
    };
    inbox.end(why);
    let mut stream = frames.into_inner();
    let mut rest = [0; BUFFER];
    while inbox.closing() == Some(Closing::Discard) {
        match stream.read(&mut rest) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
}
