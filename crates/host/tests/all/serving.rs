//! Servers, and machines joined without a link.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{SOON, Talker, WIDE, connected, frame, listeners, pump};
use larvatus_host::{Clock, Link, LinkError, OpenError, Options, Pair, serve};
use larvatus_proto::frame::FrameLimits;
use larvatus_proto::machine::{LinkEnd, Machine};
use larvatus_proto::wire::DecodeError;

/// Whether a connection, if it came about, serves.
fn serves(link: Result<Link, OpenError>) -> bool {
    let mut talker = Talker::saying(vec![frame(3)], 1);
    link.is_ok_and(|link| pump(link).run(&mut talker).is_ok())
}

#[test]
fn connections_are_limited_survive_panics_and_stop() {
    for listener in listeners() {
        let (stop, made) = (AtomicBool::new(false), AtomicUsize::new(0));
        let make = |_now| -> Box<dyn Machine + Send> {
            assert_ne!(made.fetch_add(1, Ordering::SeqCst), 1, "the second panics");
            Box::new(Talker::echo())
        };
        let options = Options::default();
        let served = thread::scope(|scope| {
            let server = || serve(&listener, 2, options, Clock::start(), &make, &stop);
            let server = scope.spawn(server);
            let connect = || Link::connect(listener.address(), SOON);

            let mut first = pump(connect().unwrap());
            first.run(&mut Talker::saying(vec![frame(3)], 1)).unwrap();
            assert!(!serves(connect()), "its machine panics");
            // The panicked connection's place is free when its thread has ended.
            let end = Instant::now() + SOON;
            let mut second = loop {
                let mut talker = Talker::saying(vec![frame(3)], 1);
                let mut second = connect().map(pump);
                if second
                    .as_mut()
                    .is_ok_and(|pump| pump.run(&mut talker).is_ok())
                {
                    break second.unwrap();
                }
                assert!(Instant::now() < end);
            };
            assert!(!serves(connect()), "beyond the limit");
            first.run(&mut Talker::saying(vec![frame(3)], 1)).unwrap();
            drop(first);
            let end = Instant::now() + SOON;
            while !serves(connect()) {
                assert!(Instant::now() < end);
            }
            second.run(&mut Talker::saying(vec![frame(3)], 1)).unwrap();

            stop.store(true, Ordering::SeqCst);
            let mut talker = Talker::saying(vec![], 1);
            assert!(matches!(second.run(&mut talker), Err(LinkError::Closed)));
            assert_eq!(talker.ends(), [LinkEnd::Closed]);
            drop(second);
            server.join().unwrap()
        });
        assert_eq!(served.panicked, 1);
        assert_eq!(served.accepted, 4);
        assert!(served.refused >= 1);
    }
}

#[test]
fn a_pair_counts_what_a_link_counts() {
    let frames = || vec![frame(0), frame(1000), frame(50_000)];
    let mut near = Talker::saying(frames(), 3);
    let mut pair = Pair::new(Clock::start());
    let mut far = Talker::echo();
    assert!(matches!(pair.exchange(&mut near, &mut far), Ok(())));
    assert!(near.heard == frames());
    assert_eq!((near.ends(), far.ends()), (vec![], vec![LinkEnd::Closed]));

    let (link, other) = connected(&listeners()[0]);
    let echo = thread::spawn(move || pump(other).run(&mut Talker::echo()));
    let mut linked = pump(link);
    linked.run(&mut Talker::saying(frames(), 3)).unwrap();
    let (mut inside, mut outside) = (pair.traffic(), linked.traffic());
    drop(linked);
    assert!(echo.join().unwrap().is_err());
    (inside.waited, outside.waited) = (Duration::ZERO, Duration::ZERO);
    assert_eq!(inside, outside);
}

#[test]
fn a_pair_holds_frames_against_their_receivers_limits() {
    let why = DecodeError::TooMany {
        what: "payload words",
        limit: 4,
        got: 5,
    };
    for far_is_strict in [true, false] {
        let mut near = Talker::saying(vec![frame(5)], 9);
        let mut far = Talker::echo();
        let strict = if far_is_strict { &mut far } else { &mut near };
        strict.limits = FrameLimits { head: 3, words: 4 };
        let mut pair = Pair::new(Clock::start());
        let error = pair.exchange(&mut near, &mut far).unwrap_err();
        assert!(matches!(error, LinkError::Malformed(got) if got == why));
        let ends = [vec![LinkEnd::Malformed(why.clone())], vec![LinkEnd::Closed]];
        let got = if far_is_strict {
            [far.ends(), near.ends()]
        } else {
            [near.ends(), far.ends()]
        };
        assert_eq!(got, ends);
        let again = pair.exchange(&mut near, &mut far);
        assert!(matches!(again, Err(LinkError::Closed)));
    }
}

#[test]
fn a_pair_ticks_and_tells_who_is_left() {
    let mut near = Talker::saying(vec![], 1);
    let mut far = Talker::saying(vec![], 1);
    (near.deadline, far.deadline) = (Some(Duration::ZERO), Some(Duration::MAX));
    near.limits = WIDE;
    let mut pair = Pair::new(Clock::start());
    pair.exchange(&mut near, &mut far).unwrap();
    assert_eq!((near.ticks, far.ticks), (1, 0));
    far.enough = 0;
    assert!(matches!(
        pair.exchange(&mut near, &mut far),
        Err(LinkError::Closed)
    ));
    assert_eq!((near.ends(), far.ends()), (vec![LinkEnd::Closed], vec![]));
}
