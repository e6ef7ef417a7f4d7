//! Virtual sockets. Where the kernel has no loopback for them, only what leads to an error is run.

use std::thread;

use crate::common::{SOON, Talker, frame, pump, within};
use larvatus_host::address::ANY;
use larvatus_host::{Address, Link, LinkError, Listener, OpenError};

/// This machine's own end.
const HERE: u32 = 1;

/// A listener that can be reached from this machine, where the kernel allows it.
fn loopback() -> Option<Listener> {
    match Listener::bind(&Address::Vsock { cid: HERE, port: 0 }) {
        Ok(listener) => Some(listener),
        Err(OpenError::Io { source, .. }) => {
            eprintln!("skipped: no loopback for virtual sockets here ({source})");
            None
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn frames_come_back_where_there_is_a_loopback() {
    let Some(listener) = loopback() else { return };
    let address = listener.address().clone();
    assert!(matches!(address, Address::Vsock { cid: HERE, port } if port != 0));
    let near = Link::connect(&address, SOON).unwrap();
    assert_eq!(near.peer(), address.to_string());
    let far = listener.accept(SOON).unwrap().expect("the connection");
    within(SOON, move || {
        let echo = thread::spawn(move || pump(far).run(&mut Talker::echo()));
        let frames: Vec<_> = [0, 1, 2000, 1 << 18, 2 << 20].map(frame).into();
        let mut talker = Talker::saying(frames.clone(), frames.len());
        let mut near = pump(near);
        near.run(&mut talker).unwrap();
        assert!(talker.heard == frames);
        drop(near);
        assert!(matches!(echo.join().unwrap(), Err(LinkError::Closed)));
    });
    let again = Listener::bind(&address).unwrap_err();
    assert!(matches!(again, OpenError::Taken { .. }), "{again}");
    drop(listener);
    let nobody = Link::connect(&address, SOON).unwrap_err();
    assert!(matches!(nobody, OpenError::Nobody { .. }), "{nobody}");
}

#[test]
fn what_cannot_be_reached_is_an_error_that_names_the_address() {
    // Nobody has the number of a machine that does not exist.
    let address = Address::Vsock {
        cid: 4_000_000_000,
        port: 7777,
    };
    let begun = std::time::Instant::now();
    let error = Link::connect(&address, SOON).unwrap_err();
    assert!(begun.elapsed() < SOON);
    assert!(
        error.to_string().contains("vsock://4000000000:7777"),
        "{error}"
    );
    let foreign = Listener::bind(&address).unwrap_err();
    assert!(matches!(foreign, OpenError::Io { .. }), "{foreign}");
    let anybody = Link::connect(&Address::Vsock { cid: ANY, port: 7 }, SOON).unwrap_err();
    assert!(anybody.to_string().contains("vsock://any:7"), "{anybody}");
}

#[test]
fn a_listener_for_anybody_waits() {
    let listener = match Listener::bind(&Address::Vsock { cid: ANY, port: 0 }) {
        Ok(listener) => listener,
        Err(OpenError::Io { source, .. }) => {
            eprintln!("skipped: no virtual sockets here ({source})");
            return;
        }
        Err(other) => panic!("{other}"),
    };
    let Address::Vsock { cid: ANY, port } = *listener.address() else {
        panic!("{}", listener.address())
    };
    assert!(port != 0 && port != ANY);
    let wait = std::time::Duration::from_millis(20);
    assert!(listener.accept(wait).unwrap().is_none());
    let again = Listener::bind(listener.address()).unwrap_err();
    assert!(matches!(again, OpenError::Taken { .. }), "{again}");
}
