//! Echo round trips of one frame through two pumps: time and CPU time of both ends together.
//!
//! `cargo bench -p larvatus-host --features tls --bench links`

use std::collections::VecDeque;
use std::error::Error;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use larvatus_host::{Address, Clock, Link, Listener, Options, Pump, process_cpu};
use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};

/// Says again what it hears, or says one frame and is finished when it is back.
struct Echo {
    say: VecDeque<Frame>,
    asks: bool,
    back: Option<Frame>,
}

impl Machine for Echo {
    fn limits(&self) -> FrameLimits {
        FrameLimits {
            head: 0,
            words: 1 << 26,
        }
    }
    fn receive(&mut self, frame: Frame, _now: Now) {
        if self.asks {
            self.back = Some(frame);
        } else {
            self.say.push_back(frame);
        }
    }
    fn transmit(&mut self, _now: Now) -> Option<Frame> {
        self.say.pop_front()
    }
    fn deadline(&self) -> Option<Now> {
        None
    }
    fn tick(&mut self, _now: Now) {}
    fn disconnected(&mut self, _why: LinkEnd, _now: Now) {}
    fn finished(&self) -> bool {
        self.back.is_some()
    }
}

fn echo() -> Echo {
    Echo {
        say: VecDeque::new(),
        asks: false,
        back: None,
    }
}

/// The least time of `rounds` round trips, and the CPU time of the average one.
fn measure(
    bytes: usize,
    rounds: u32,
    mut trip: impl FnMut(&mut Echo) -> Result<(), Box<dyn Error>>,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    let frame = Frame {
        kind: 1,
        head: vec![],
        words: vec![7; bytes / 4].into(),
    };
    let mut machine = Echo {
        say: VecDeque::from([frame]),
        asks: true,
        back: None,
    };
    let mut least = Duration::MAX;
    let cpu = process_cpu();
    for _ in 0..rounds {
        let start = Instant::now();
        trip(&mut machine)?;
        least = least.min(start.elapsed());
        machine.say.extend(machine.back.take());
    }
    Ok((least, (process_cpu() - cpu) / rounds))
}

fn linked(
    near: Link,
    far: Link,
    bytes: usize,
    rounds: u32,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    let clock = Clock::start();
    let mut far = Pump::new(far, clock, Options::default())?;
    let peer = thread::spawn(move || far.run(&mut echo()));
    let mut near = Pump::new(near, clock, Options::default())?;
    let result = measure(bytes, rounds, |machine| Ok(near.run(machine)?));
    drop(near);
    let _closed = peer.join();
    result
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("echo round trip, least ms (CPU ms of both ends)");
    println!("{:>10} {:>18} {:>18} {:>18}", "bytes", "unix", "tcp", "tls");
    let wait = Duration::from_secs(5);
    for (bytes, rounds) in [
        (0, 2000),
        (100_000, 500),
        (1_000_000, 100),
        (10_000_000, 30),
        (50_000_000, 8),
    ] {
        let (near, far) = UnixStream::pair()?;
        let unix = linked(Link::from_unix(near), Link::from_unix(far), bytes, rounds)?;
        let listener = Listener::bind(&Address::Tcp {
            host: "127.0.0.1".into(),
            port: 0,
        })?;
        let near = Link::connect(listener.address(), wait)?;
        let far = listener.accept(wait)?.ok_or("nobody connected")?;
        let tcp = linked(near, far, bytes, rounds)?;
        print!("{bytes:>10}");
        for (least, cpu) in [unix, tcp].into_iter().chain(tls(bytes, rounds)?) {
            let [least, cpu] = [least, cpu].map(|time| time.as_secs_f64() * 1e3);
            print!(" {:>18}", format!("{least:.3} ({cpu:.3})"));
        }
        println!();
    }
    Ok(())
}

#[cfg(feature = "tls")]
fn tls(bytes: usize, rounds: u32) -> Result<Option<(Duration, Duration)>, Box<dyn Error>> {
    use larvatus_host::tls::Identity;
    let wait = Duration::from_secs(5);
    let key = std::env::temp_dir().join(format!("larvatus-bench-{}.key", std::process::id()));
    let identity = Identity::open(&key)?;
    std::fs::remove_file(key)?;
    let listener = Listener::bind_tls(&"tls://127.0.0.1:0".parse()?, &identity, &[])?;
    let address = listener.address().clone();
    let near = thread::spawn(move || Link::connect(&address, wait));
    let far = listener.accept(wait)?.ok_or("nobody connected")?;
    // The handshake.
    let _ = std::io::Write::write(&mut &far, &[])?;
    let near = near.join().map_err(|_| "a thread panicked")??;
    linked(near, far, bytes, rounds).map(Some)
}

#[cfg(not(feature = "tls"))]
fn tls(_bytes: usize, _rounds: u32) -> Result<Option<(Duration, Duration)>, Box<dyn Error>> {
    Ok(None)
}
