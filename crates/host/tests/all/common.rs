//! Machines and places for tests of links.

use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use larvatus_host::{Address, Clock, Link, Listener, Options, Pump};
use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};

pub(crate) const WIDE: FrameLimits = FrameLimits {
    head: 512,
    words: 1 << 25,
};
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// Says some frames, hears some frames, and is finished when it has heard enough.
pub(crate) struct Talker {
    pub(crate) say: std::collections::VecDeque<Frame>,
    /// Says every frame that it hears again.
    pub(crate) echo: bool,
    pub(crate) enough: usize,
    pub(crate) limits: FrameLimits,
    pub(crate) heard: Vec<Frame>,
    pub(crate) deadline: Option<Now>,
    pub(crate) ticks: usize,
    pub(crate) ends: Arc<Mutex<Vec<LinkEnd>>>,
}

impl Talker {
    pub(crate) fn saying(frames: Vec<Frame>, enough: usize) -> Self {
        Self {
            say: frames.into(),
            echo: false,
            enough,
            limits: WIDE,
            heard: vec![],
            deadline: None,
            ticks: 0,
            ends: Arc::default(),
        }
    }

    /// Hears for ever and says it again.
    pub(crate) fn echo() -> Self {
        let mut talker = Self::saying(vec![], usize::MAX);
        talker.echo = true;
        talker
    }

    pub(crate) fn ends(&self) -> Vec<LinkEnd> {
        self.ends.lock().unwrap().clone()
    }
}

impl Machine for Talker {
    fn limits(&self) -> FrameLimits {
        self.limits
    }
    fn receive(&mut self, frame: Frame, _now: Now) {
        if self.echo {
            self.say.push_back(frame);
        } else {
            self.heard.push(frame);
        }
    }
    fn transmit(&mut self, _now: Now) -> Option<Frame> {
        self.say.pop_front()
    }
    fn deadline(&self) -> Option<Now> {
        self.deadline
    }
    fn tick(&mut self, _now: Now) {
        self.ticks += 1;
        self.deadline = None;
    }
    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        self.ends.lock().unwrap().push(why);
    }
    fn finished(&self) -> bool {
        self.say.is_empty() && self.heard.len() >= self.enough
    }
}

pub(crate) fn frame(words: usize) -> Frame {
    let words = (0..words).map(|word| (word as u32).wrapping_mul(2_654_435_761));
    Frame {
        kind: 4,
        head: vec![1, 2, 3],
        words: words.collect(),
    }
}

/// A path that no other test uses, removed by nobody but its owner.
pub(crate) fn path() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("larvatus-{}-{number}.sock", std::process::id()))
}

/// A listener of each kind.
pub(crate) fn listeners() -> Vec<Listener> {
    let addresses = [Address::Unix(path()), "tcp://127.0.0.1:0".parse().unwrap()];
    let plain = addresses.map(|address| Listener::bind(&address).unwrap());
    #[cfg(feature = "tls")]
    let plain = plain.into_iter().chain([crate::tls::listener(&[])]);
    plain.into_iter().collect()
}

/// Both ends of a link.
pub(crate) fn connected(listener: &Listener) -> (Link, Link) {
    connected_by(listener, || {
        Link::connect(listener.address(), SOON).unwrap()
    })
}

/// Both ends of a link that `connect` makes.
pub(crate) fn connected_by(
    listener: &Listener,
    connect: impl FnOnce() -> Link + Send,
) -> (Link, Link) {
    std::thread::scope(|scope| {
        let near = scope.spawn(connect);
        let far = listener.accept(SOON).unwrap().unwrap();
        // Whoever writes first waits for the handshake, where there is one.
        let _ = (&far).write(&[]);
        (near.join().unwrap(), far)
    })
}

pub(crate) fn pump(link: Link) -> Pump {
    Pump::new(link, Clock::start(), Options::default()).unwrap()
}

/// Whatever happens, a test ends.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let (done, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || done.send(work()));
    wait.recv_timeout(limit)
        .expect("ends in time and without a panic")
}
