//! Pumps over real sockets.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{SOON, Talker, WIDE, connected, frame, listeners, path, pump, within};
use larvatus_host::framing::{FrameReader, write_frame};
use larvatus_host::{
    Address, Clock, Link, LinkError, Listener, OpenError, Options, Progress, Pump,
};
use larvatus_proto::frame::FrameLimits;
use larvatus_proto::machine::{LinkEnd, Machine};
use larvatus_proto::wire::DecodeError;

#[test]
fn frames_of_all_sizes_come_back() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        within(SOON, move || {
            let echo = thread::spawn(move || pump(far).run(&mut Talker::echo()));
            let sizes = [
                0,
                1,
                2,
                1000,
                2047,
                50_000,
                1 << 18,
                (1 << 18) + 1,
                2 << 20,
                0,
            ];
            let frames: Vec<_> = sizes.map(frame).into();
            let mut talker = Talker::saying(frames.clone(), sizes.len());
            let mut near = pump(near);
            near.run(&mut talker).unwrap();
            assert!(talker.heard == frames);
            let bytes = frames.iter().map(|frame| frame.size()).sum();
            let traffic = near.traffic();
            assert_eq!((traffic.sent_frames, traffic.received_frames), (10, 10));
            assert_eq!((traffic.sent_bytes, traffic.received_bytes), (bytes, bytes));
            drop(near);
            assert!(matches!(echo.join().unwrap(), Err(LinkError::Closed)));
        });
    }
}

#[test]
fn headers_beyond_the_limits_end_the_link() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        let mut talker = Talker::saying(vec![], 2);
        talker.limits = FrameLimits { head: 3, words: 9 };
        write_frame(&mut &near, &frame(9)).unwrap();
        (&near)
            .write_all(&[4, 0, 3, 0, 0xff, 0xff, 0xff, 0xff])
            .unwrap();
        let error = pump(far).run(&mut talker).unwrap_err();
        let why = DecodeError::TooMany {
            what: "payload words",
            limit: 9,
            got: u64::from(u32::MAX),
        };
        assert!(
            matches!(&error, LinkError::Malformed(got) if *got == why),
            "{error}"
        );
        assert_eq!(
            (talker.heard.len(), talker.ends()),
            (1, vec![LinkEnd::Malformed(why)])
        );
    }
}

#[test]
fn limits_are_those_of_the_moment_a_frame_is_sent() {
    /// Takes one word; when it has said something, a thousand.
    struct Growing(Talker);
    impl Machine for Growing {
        fn limits(&self) -> FrameLimits {
            FrameLimits {
                head: 3,
                words: if self.0.say.is_empty() { 1000 } else { 1 },
            }
        }
        fn receive(&mut self, frame: larvatus_proto::frame::Frame, now: Duration) {
            self.0.receive(frame, now);
        }
        fn transmit(&mut self, now: Duration) -> Option<larvatus_proto::frame::Frame> {
            self.0.transmit(now)
        }
        fn deadline(&self) -> Option<Duration> {
            None
        }
        fn tick(&mut self, _now: Duration) {}
        fn disconnected(&mut self, why: LinkEnd, now: Duration) {
            self.0.disconnected(why, now);
        }
        fn finished(&self) -> bool {
            self.0.finished()
        }
    }
    for listener in listeners() {
        for _ in 0..50 {
            let (near, far) = connected(&listener);
            let answer = thread::spawn(move || {
                FrameReader::new(&far).read(|| WIDE).unwrap();
                write_frame(&mut &far, &frame(1000)).unwrap();
            });
            let mut growing = Growing(Talker::saying(vec![frame(0)], 1));
            pump(near).run(&mut growing).unwrap();
            answer.join().unwrap();
        }
    }
}

#[test]
fn a_peer_that_said_its_last_still_hears() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        let echo = thread::spawn(move || pump(far).run(&mut Talker::echo()));
        write_frame(&mut &near, &frame(500_000)).unwrap();
        near.shutdown(Shutdown::Write).unwrap();
        assert!(FrameReader::new(&near).read(|| WIDE).unwrap() == frame(500_000));
        assert!(matches!(echo.join().unwrap(), Err(LinkError::Closed)));
    }
}

#[test]
fn a_peer_killed_inside_a_frame_is_reported_once() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        let mut bytes = vec![];
        write_frame(&mut bytes, &frame(1000)).unwrap();
        write_frame(&mut &near, &frame(2)).unwrap();
        (&near).write_all(&bytes[..2000]).unwrap();
        drop(near);
        let (mut talker, mut far) = (Talker::saying(vec![], 2), pump(far));
        assert!(matches!(far.run(&mut talker), Err(LinkError::CutOff)));
        assert!(matches!(far.run(&mut talker), Err(LinkError::Closed)));
        assert_eq!(
            (talker.heard.len(), talker.ends()),
            (1, vec![LinkEnd::Closed])
        );
    }
}

#[test]
fn a_slow_peer_is_waited_for() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        let sender = thread::spawn(move || {
            let mut bytes = vec![];
            write_frame(&mut bytes, &frame(20)).unwrap();
            for part in bytes.chunks(7) {
                (&near).write_all(part).unwrap();
                thread::sleep(Duration::from_millis(4));
            }
        });
        let (mut talker, mut far) = (Talker::saying(vec![], 1), pump(far));
        far.run(&mut talker).unwrap();
        assert!(talker.heard == [frame(20)]);
        assert!(far.traffic().waited > Duration::from_millis(20));
        sender.join().unwrap();
    }
}

#[test]
fn both_sides_may_write_much_at_once() {
    let large = || vec![frame(16 << 20)];
    let small_then_large = || {
        let mut frames = vec![frame(100); 5000];
        frames.extend([frame(4 << 20), frame(4 << 20)]);
        frames
    };
    for listener in listeners() {
        for frames in [large(), small_then_large()] {
            let (near, far) = connected(&listener);
            within(SOON * 2, move || {
                let talk = |link, frames: Vec<_>| {
                    move || {
                        let mut talker = Talker::saying(frames.clone(), frames.len());
                        pump(link).run(&mut talker).unwrap();
                        assert!(talker.heard == frames);
                    }
                };
                // Neither may leave before the other has heard everything.
                let (near, far) = (talk(near, frames.clone()), talk(far, frames));
                let other = thread::spawn(near);
                far();
                other.join().unwrap();
            });
        }
    }
}

#[test]
fn a_peer_that_does_not_read_is_given_up() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        let options = Options {
            write_timeout: Duration::from_millis(100),
            ..Options::default()
        };
        let mut pump = Pump::new(near, Clock::start(), options).unwrap();
        let mut talker = Talker::saying(vec![frame(16 << 20)], 1);
        let start = Instant::now();
        let error = pump.run(&mut talker).unwrap_err();
        assert!(matches!(error, LinkError::Stalled { after } if after == options.write_timeout));
        assert_eq!(talker.ends(), [LinkEnd::Stalled]);
        assert!(start.elapsed() >= options.write_timeout);
        drop(far);
    }
}

#[test]
fn what_a_peer_said_before_it_left_is_heard() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        let leaver = thread::spawn(move || {
            let mut pump = pump(far);
            pump.run(&mut Talker::saying(vec![frame(7)], 0)).unwrap();
            pump.finish(SOON);
        });
        let mut talker = Talker::saying(vec![frame(1 << 20); 9], 2);
        let error = pump(near).run(&mut talker).unwrap_err();
        assert!(matches!(error, LinkError::Closed), "{error}");
        assert!(talker.heard == [frame(7)]);
        leaver.join().unwrap();
    }
}

#[test]
fn what_a_peer_said_before_it_vanished_is_heard() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        write_frame(&mut &far, &frame(7)).unwrap();
        drop(far);
        let mut talker = Talker::saying(vec![frame(1 << 20); 9], 2);
        pump(near).run(&mut talker).unwrap_err();
        assert!(talker.heard == [frame(7)]);
        assert_eq!(talker.ends(), [LinkEnd::Closed]);
    }
}

#[test]
fn a_step_waits_no_longer_than_it_may() {
    let (near, _far) = std::os::unix::net::UnixStream::pair().unwrap();
    let clock = Clock::start();
    let mut pump = Pump::new(Link::from_unix(near), clock, Options::default()).unwrap();
    let mut talker = Talker::saying(vec![], 1);
    let wait = Duration::from_millis(20);
    assert_eq!(pump.step(&mut talker, wait).unwrap(), Progress::Idle);
    assert!(clock.now() >= wait);

    talker.deadline = Some(clock.now() + wait);
    assert_eq!(pump.step(&mut talker, SOON).unwrap(), Progress::Moved);
    assert_eq!(talker.ticks, 1);
    assert!(clock.now() < SOON);

    talker.enough = 0;
    assert_eq!(pump.step(&mut talker, SOON).unwrap(), Progress::Finished);
    assert!(clock.now() < SOON);
}

#[test]
fn socket_files_are_private_and_go_with_their_listener() {
    use std::os::unix::fs::PermissionsExt;
    let path = path();
    let address = Address::Unix(path.clone());
    let listener = Listener::bind(&address).unwrap();
    assert_eq!(
        std::fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    assert!(matches!(
        Listener::bind(&address),
        Err(OpenError::Taken { .. })
    ));
    drop(connected(&listener));
    drop(listener);
    assert!(!path.exists());
    let nobody = Link::connect(&address, SOON);
    assert!(matches!(nobody, Err(OpenError::Nobody { .. })));

    // Nobody answers on what a killed process leaves.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let nobody = Link::connect(&address, SOON);
    assert!(matches!(nobody, Err(OpenError::Nobody { .. })));
    let second = Listener::bind(&address).unwrap();
    drop(connected(&second));

    // Only its own file is removed.
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "precious").unwrap();
    drop(second);
    assert!(matches!(
        Listener::bind(&address),
        Err(OpenError::NotASocket { .. })
    ));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_taken_port_and_an_unknown_host_are_told_apart() {
    let listener = Listener::bind(&"tcp://127.0.0.1:0".parse().unwrap()).unwrap();
    let Address::Tcp { port, .. } = *listener.address() else {
        unreachable!()
    };
    assert_ne!(port, 0);
    assert!(matches!(
        Listener::bind(listener.address()),
        Err(OpenError::Taken { .. })
    ));
    let address = listener.address().clone();
    drop(listener);
    assert!(matches!(
        Link::connect(&address, SOON),
        Err(OpenError::Nobody { .. })
    ));
    let nowhere = "tcp://host.invalid:1".parse().unwrap();
    assert!(matches!(
        Link::connect(&nowhere, SOON),
        Err(OpenError::Unresolved { .. })
    ));
}

#[test]
fn a_full_queue_is_waited_for_no_longer_than_allowed() {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket};
    let path = path();
    let full = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    bind(&full, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&full, 0).unwrap();
    let wait = Duration::from_millis(50);
    let mut links = vec![];
    let error = loop {
        match Link::connect(&Address::Unix(path.clone()), wait) {
            Ok(link) => links.push(link),
            Err(error) => break error,
        }
        assert!(links.len() < 100);
    };
    assert!(
        matches!(error, OpenError::TimedOut { after, .. } if after == wait),
        "{error}"
    );
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn dropping_a_pump_ends_the_link() {
    for listener in listeners() {
        let (near, far) = connected(&listener);
        drop(pump(near));
        assert_eq!((&far).read(&mut [0]).unwrap(), 0);
    }
}
