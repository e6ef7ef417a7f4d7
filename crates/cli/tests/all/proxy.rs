//! What stands between the trusted side and a worker: records, tampers, cuts; and peers that are
//! no worker at all.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use larvatus_proto::frame::{Frame, FrameLimits, HEADER, Header, Reply, Request};

const WIDE: FrameLimits = FrameLimits {
    head: 1 << 16,
    words: 1 << 24,
};

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    Worker,
    Trusted,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Pass,
    /// The connection ends before it.
    Cut,
    /// The connection ends in the middle of it.
    CutInside,
    /// It is kept, and nothing more goes this way.
    Hold,
}

/// Decides about a frame: which way, the number of frames before it on this way, the frame itself.
type Rule = dyn Fn(To, usize, &mut Frame) -> Fate + Send + Sync;

/// A proxy in front of a worker.
pub(crate) struct Proxy {
    pub(crate) address: String,
    requests: Arc<Mutex<Vec<Request>>>,
    streams: Streams,
}

/// Kept open until the end of the test, unless a rule ends them.
type Streams = Arc<Mutex<Vec<TcpStream>>>;

impl Proxy {
    /// Forwards every connection to `worker`, a TCP address, under a rule.
    pub(crate) fn new(
        worker: &str,
        rule: impl Fn(To, usize, &mut Frame) -> Fate + Send + Sync + 'static,
    ) -> Self {
        let worker = worker.strip_prefix("tcp://").unwrap().to_owned();
        let rule: Arc<Rule> = Arc::new(rule);
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let log = Arc::clone(&requests);
        let (address, streams) = listen(move |trusted| {
            let Ok(upstream) = TcpStream::connect(&worker) else {
                return;
            };
            let _ = upstream.set_nodelay(true);
            let _ = trusted.set_nodelay(true);
            let (up, back) = (upstream.try_clone(), trusted.try_clone());
            let (Ok(up), Ok(back)) = (up, back) else {
                return;
            };
            let (rule_up, log) = (Arc::clone(&rule), Arc::clone(&log));
            let rule = Arc::clone(&rule);
            thread::spawn(move || {
                let note = |frame: &Frame| {
                    if let Ok(request) = Request::from_frame(frame.clone()) {
                        log.lock().unwrap().push(request);
                    }
                };
                let _ = forward(To::Worker, trusted, up, &*rule_up, note);
            });
            let _ = forward(To::Trusted, upstream, back, &*rule, |_| {});
        });
        Self {
            address,
            requests,
            streams,
        }
    }

    /// Everything that came from the trusted side so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// The payloads of all calls so far, in order.
    pub(crate) fn uploads(&self) -> Vec<Vec<u32>> {
        let upload = |request| match request {
            Request::Call { words, .. } => Some(words.into_vec()),
            _ => None,
        };
        self.requests().into_iter().filter_map(upload).collect()
    }

    /// Takes what was recorded.
    pub(crate) fn forget(&self) {
        self.requests.lock().unwrap().clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for stream in self.streams.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn forward(
    to: To,
    mut from: TcpStream,
    mut into: TcpStream,
    rule: &Rule,
    note: impl Fn(&Frame),
) -> io::Result<()> {
    let end = |from: &TcpStream, into: &TcpStream| {
        let _ = from.shutdown(Shutdown::Both);
        let _ = into.shutdown(Shutdown::Both);
    };
    for count in 0.. {
        let Ok(mut frame) = read_frame(&mut from) else {
            end(&from, &into);
            break;
        };
        note(&frame);
        let fate = rule(to, count, &mut frame);
        let bytes = bytes(&frame);
        match fate {
            Fate::Pass => into.write_all(&bytes)?,
            Fate::Hold => break,
            Fate::Cut | Fate::CutInside => {
                if fate == Fate::CutInside {
                    into.write_all(&bytes[..bytes.len() / 2])?;
                }
                end(&from, &into);
                break;
            }
        }
    }
    Ok(())
}

/// A peer that does as it likes with each connection, which stays open until the test ends.
pub(crate) struct Peer {
    pub(crate) address: String,
    _streams: Streams,
}

impl Peer {
    pub(crate) fn new(act: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> Self {
        let (address, streams) = listen(move |mut stream| act(&mut stream));
        Self {
            address,
            _streams: streams,
        }
    }

    /// Answers the first frames with these replies, whatever they say, and then no more.
    pub(crate) fn replying(replies: Vec<Reply>) -> Self {
        Self::new(move |stream| {
            for reply in &replies {
                if read_frame(stream).is_err() {
                    return;
                }
                let _ = stream.write_all(&bytes(&reply.clone().into_frame()));
            }
        })
    }
}

/// Listens on a port of its own and gives each connection a thread.
fn listen(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> (String, Streams) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    let (streams, serve) = (Streams::default(), Arc::new(serve));
    let kept = Arc::clone(&streams);
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if let Ok(clone) = stream.try_clone() {
                kept.lock().unwrap().push(clone);
            }
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    (address, streams)
}

pub(crate) fn read_frame(stream: &mut impl Read) -> io::Result<Frame> {
    let mut header = [0; HEADER];
    stream.read_exact(&mut header)?;
    let Header { kind, head, words } = Header::decode(header, WIDE).map_err(io::Error::other)?;
    let mut fields = vec![0; head];
    stream.read_exact(&mut fields)?;
    let mut payload = vec![0; 4 * words];
    stream.read_exact(&mut payload)?;
    let words = payload.as_chunks::<4>().0.iter();
    Ok(Frame {
        kind,
        head: fields,
        words: words.map(|word| u32::from_le_bytes(*word)).collect(),
    })
}

pub(crate) fn bytes(frame: &Frame) -> Vec<u8> {
    let words = frame.words.to_vec().into_iter().flat_map(u32::to_le_bytes);
    let head = frame.header().into_iter().chain(frame.head.iter().copied());
    head.chain(words).collect()
}

/// Whether a frame is an answer to a call.
pub(crate) fn is_answer(frame: &Frame) -> bool {
    matches!(Reply::from_frame(frame.clone()), Ok(Reply::Answer { .. }))
}
