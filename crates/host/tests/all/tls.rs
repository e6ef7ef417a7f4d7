//! Links over TLS: who may talk to whom, and what whoever sits between them can do.

use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{SOON, Talker, WIDE, connected_by, frame, path, pump, within};
use larvatus_host::framing::{FrameReader, write_frame};
use larvatus_host::tls::{Identity, IdentityError};
use larvatus_host::{Address, Link, LinkError, Listener, OpenError, Pin};

/// A fresh identity.
fn identity() -> Identity {
    let path = path();
    let identity = Identity::open(&path).unwrap();
    fs::remove_file(path).unwrap();
    identity
}

fn anywhere() -> Address {
    "tls://127.0.0.1:0".parse().unwrap()
}

/// A listener that admits these keys, or everybody.
pub(crate) fn listener(allow: &[Pin]) -> Listener {
    static IDENTITY: OnceLock<Identity> = OnceLock::new();
    Listener::bind_tls(&anywhere(), IDENTITY.get_or_init(identity), allow).unwrap()
}

fn at(address: &Address, to: Option<Pin>) -> Address {
    let Address::Tls { host, port, .. } = address.clone() else {
        unreachable!()
    };
    Address::Tls {
        host,
        port,
        pin: to,
    }
}

/// The same listener as a plain TCP address.
fn plain(address: &Address) -> Address {
    let Address::Tls { host, port, .. } = address.clone() else {
        unreachable!()
    };
    Address::Tcp { host, port }
}

/// Connects while the listener accepts; what the accepting end then reads comes back too.
fn attempt(
    listener: &Listener,
    connect: impl FnOnce() -> Result<Link, OpenError> + Send,
) -> (Result<Link, OpenError>, io::Result<usize>) {
    thread::scope(|scope| {
        let near = scope.spawn(connect);
        let far = listener.accept(SOON).unwrap().unwrap();
        let read = (&far).read(&mut [0; 8]);
        drop(far);
        (near.join().unwrap(), read)
    })
}

#[test]
fn an_identity_is_made_once_and_kept_private() {
    let path = path();
    let first = Identity::open(&path).unwrap();
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(Identity::open(&path).unwrap().pin(), first.pin());
    assert_ne!(identity().pin(), first.pin());
    assert!(!format!("{first:?}").contains("key"), "{first:?}");

    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let open = Identity::open(&path).unwrap_err();
    assert!(matches!(
        open,
        IdentityError::OpenToOthers { mode: 0o640, .. }
    ));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "no key").unwrap();
    let no_key = Identity::open(&path).unwrap_err();
    assert!(matches!(no_key, IdentityError::NotAKey { .. }));
    assert_eq!(fs::read(&path).unwrap(), b"no key");
    fs::remove_file(&path).unwrap();
    let nowhere = Identity::open(&PathBuf::from("/nowhere/key")).unwrap_err();
    assert!(matches!(nowhere, IdentityError::File { .. }));
}

#[test]
fn whoever_makes_the_same_identity_at_once_agrees() {
    let path = path();
    let pins: Vec<_> = thread::scope(|scope| {
        let open = || Identity::open(&path).unwrap().pin();
        let all: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let kept = Identity::open(&path).unwrap().pin();
    assert_eq!(pins, [kept; 8]);
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_pin_is_what_other_tools_compute() {
    // The key of RFC 8032, 7.1, test 1, as PKCS#8; its pin is the SHA-256 of its
    // SubjectPublicKeyInfo, `openssl pkey -pubout -outform DER | sha256sum`.
    let seed = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    let der = format!("302e020100300506032b657004220420{seed}");
    let bytes: Vec<u8> = (0..der.len() / 2)
        .map(|at| u8::from_str_radix(&der[2 * at..2 * at + 2], 16).unwrap())
        .collect();
    let path = path();
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let pin = Identity::open(&path).unwrap().pin();
    fs::remove_file(&path).unwrap();
    assert_eq!(
        pin.to_string(),
        "06e3fd8fda29bb60ab59557de61edb0aecdb231134be30e75b455f8e1b792fa9"
    );
}

#[test]
fn addresses_carry_the_pin_of_their_listener() {
    let own = identity();
    let listener = Listener::bind_tls(&anywhere(), &own, &[]).unwrap();
    assert_eq!(listener.address().pin(), Some(own.pin()));
    let no_identity = Listener::bind(&anywhere());
    assert!(matches!(no_identity, Err(OpenError::NoIdentity { .. })));
    let of_another = at(&anywhere(), Some(Pin([7; 32])));
    let refused = Listener::bind_tls(&of_another, &own, &[]);
    assert!(matches!(refused, Err(OpenError::NoIdentity { .. })));
    let not_tls = Listener::bind_tls(&"tcp://127.0.0.1:0".parse().unwrap(), &own, &[]);
    assert!(matches!(not_tls, Err(OpenError::NoIdentity { .. })));
}

#[test]
fn nobody_is_talked_to_without_a_pin_or_with_another() {
    let listener = listener(&[]);
    let nameless = at(listener.address(), None);
    let refused = Link::connect(&nameless, SOON);
    assert!(matches!(refused, Err(OpenError::NoPin { .. })));

    let wrong = at(listener.address(), Some(Pin([7; 32])));
    let (refused, read) = attempt(&listener, || Link::connect(&wrong, SOON));
    let Err(OpenError::OtherKey { address, got }) = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(address, wrong);
    assert_eq!(Some(got), listener.address().pin());
    assert_eq!(read.unwrap_err().kind(), ErrorKind::PermissionDenied);
}

#[test]
fn only_keys_that_are_allowed_are_served() {
    let (friend, stranger) = (identity(), identity());
    let listener = listener(&[Pin([9; 32]), friend.pin()]);
    let connect =
        |identity: Option<&Identity>| Link::connect_tls(listener.address(), identity, SOON);
    let (near, far) = connected_by(&listener, || connect(Some(&friend)).unwrap());
    write_frame(&mut &near, &frame(5)).unwrap();
    assert!(FrameReader::new(&far).read(|| WIDE).unwrap() == frame(5));

    for identity in [None, Some(&stranger)] {
        // In TLS 1.3 who connects learns it with the first thing it reads.
        let (near, read) = attempt(&listener, || {
            let near = connect(identity)?;
            let _ = (&near).write(&[1; 8]);
            Ok(near)
        });
        assert!(read.is_err(), "served");
        let refused = (&near.unwrap()).read(&mut [0; 8]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::PermissionDenied, "{refused}");
    }
}

#[test]
fn who_does_not_speak_tls_is_refused() {
    // A plain peer at a TLS listener.
    let listener = listener(&[]);
    let plain = plain(listener.address());
    let (near, read) = attempt(&listener, || {
        let near = Link::connect(&plain, SOON)?;
        write_frame(&mut &near, &frame(50)).unwrap();
        Ok(near)
    });
    let error = read.unwrap_err();
    assert!(error.to_string().contains("not TLS"), "{error}");
    let mut rest = vec![];
    let _ = (&near.unwrap()).read_to_end(&mut rest);
    assert!(rest.len() < 100, "an alert at the most");

    // A TLS peer at a plain listener, which says nothing, something else, or goodbye.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = deaf.local_addr().unwrap().port();
    let address: Address = format!("tls://127.0.0.1:{port}#{}", Pin([1; 32]))
        .parse()
        .unwrap();
    let soon = Duration::from_millis(200);
    let start = Instant::now();
    let silent = Link::connect(&address, soon);
    assert!(matches!(silent, Err(OpenError::TimedOut { .. })));
    assert!(start.elapsed() >= soon);
    drop(deaf.accept().unwrap());
    for says in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], b""] {
        thread::scope(|scope| {
            scope.spawn(|| {
                let (mut stream, _) = deaf.accept().unwrap();
                stream.read_exact(&mut [0; 20]).unwrap();
                stream.write_all(says).unwrap();
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.read_to_end(&mut vec![]);
            });
            let other = Link::connect(&address, SOON);
            assert!(
                matches!(other, Err(OpenError::Handshake { .. })),
                "{other:?}"
            );
        });
    }
}

#[test]
fn earlier_versions_of_tls_are_refused() {
    let listener = listener(&[]);
    let Address::Tls { port, .. } = *listener.address() else {
        unreachable!()
    };
    // A client hello of TLS 1.2: no extension says otherwise. Cipher suites
    // ECDHE-ECDSA-AES128-GCM-SHA256 and ECDHE-RSA-AES128-GCM-SHA256; groups and signatures.
    let mut hello = vec![0x03, 0x03];
    hello.extend([0x5a; 32]);
    hello.extend([0, 0, 4, 0xc0, 0x2b, 0xc0, 0x2f, 1, 0]);
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 29][..],
        &[0, 13, 0, 6, 0, 4, 8, 7, 4, 3],
        &[0, 23, 0, 0],
    ]
    .concat();
    hello.extend([0, extensions.len() as u8]);
    hello.extend(extensions);
    let mut record = vec![
        22,
        3,
        1,
        0,
        hello.len() as u8 + 4,
        1,
        0,
        0,
        hello.len() as u8,
    ];
    record.extend(hello);
    let mut old = TcpStream::connect(("127.0.0.1", port)).unwrap();
    old.write_all(&record).unwrap();
    let far = listener.accept(SOON).unwrap().unwrap();
    assert!((&far).read(&mut [0; 8]).is_err());
    drop(far);
    let mut alert = vec![];
    old.read_to_end(&mut alert).unwrap();
    // A fatal alert, "protocol version".
    assert_eq!((alert[0], &alert[5..]), (21, &[2, 70][..]), "{alert:?}");
}

/// What becomes of the bytes of one direction of a connection.
type Tamper = fn(seen: usize, &mut Vec<u8>) -> bool;

/// Somebody between both ends: forwards everything, until `tamper` returns false for what goes to
/// who listens; then the connections just end.
fn between(to: &Address, tamper: Tamper) -> Address {
    let Address::Tls { port, .. } = *to else {
        unreachable!()
    };
    let here = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = here.local_addr().unwrap().port();
    thread::spawn(move || {
        let (mut near, _) = here.accept().unwrap();
        let mut far = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut back, mut into) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut back, &mut into));
        let mut buffer = vec![0; 4096];
        let mut seen = 0;
        while let Ok(count @ 1..) = near.read(&mut buffer) {
            let mut bytes = buffer[..count].to_vec();
            if !tamper(seen, &mut bytes) || far.write_all(&bytes).is_err() {
                break;
            }
            seen += count;
        }
        let _ = far.shutdown(Shutdown::Both);
        let _ = near.shutdown(Shutdown::Both);
    });
    let Address::Tls { host, pin, .. } = to.clone() else {
        unreachable!()
    };
    Address::Tls {
        host,
        port: own,
        pin,
    }
}

/// How reading ends for who listens where somebody tampers; one frame of 100 words comes before.
fn tampered(tamper: Tamper) -> LinkError {
    let listener = listener(&[]);
    let address = between(listener.address(), tamper);
    let (near, far) = connected_by(&listener, || Link::connect(&address, SOON).unwrap());
    let mut reader = FrameReader::new(&far);
    write_frame(&mut &near, &frame(100)).unwrap();
    assert!(reader.read(|| WIDE).unwrap() == frame(100));
    // Large enough that its first bytes are seen by themselves.
    let _ = write_frame(&mut &near, &frame(100_000));
    reader.read(|| WIDE).unwrap_err()
}

#[test]
fn who_sits_between_can_neither_end_nor_change_anything_unnoticed() {
    let cut = tampered(|seen, bytes| seen + bytes.len() < 20_000);
    assert!(matches!(cut, LinkError::CutOff), "{cut}");
    let changed = tampered(|seen, bytes| {
        if seen > 20_000 {
            bytes[0] ^= 1;
        }
        true
    });
    assert!(matches!(changed, LinkError::Io(_)), "{changed}");
}

#[test]
fn an_end_between_frames_without_a_goodbye_is_no_end() {
    let listener = listener(&[]);
    let address = between(listener.address(), |_, _| true);
    // Honest up to here: this end, through somebody else, just as by itself.
    let (near, far) = connected_by(&listener, || Link::connect(&address, SOON).unwrap());
    write_frame(&mut &near, &frame(3)).unwrap();
    near.shutdown(Shutdown::Write).unwrap();
    let mut reader = FrameReader::new(&far);
    assert!(reader.read(|| WIDE).unwrap() == frame(3));
    assert!(matches!(reader.read(|| WIDE), Err(LinkError::Closed)));

    // Ends as soon as it has seen the frame, which is what a small record after 200 bytes is.
    let address = between(listener.address(), |seen, bytes| {
        // Hello, key and first frame are longer together; the goodbye of 24 bytes never goes.
        !(seen > 200 && bytes.len() == 24)
    });
    let (near, far) = connected_by(&listener, || Link::connect(&address, SOON).unwrap());
    write_frame(&mut &near, &frame(3)).unwrap();
    let mut reader = FrameReader::new(&far);
    assert!(reader.read(|| WIDE).unwrap() == frame(3));
    near.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(reader.read(|| WIDE), Err(LinkError::CutOff)));
}

#[test]
fn what_crosses_cannot_be_read() {
    let seen = TcpListener::bind("127.0.0.1:0").unwrap();
    let listener = listener(&[]);
    let Address::Tls { port, .. } = *listener.address() else {
        unreachable!()
    };
    let own = seen.local_addr().unwrap().port();
    let recorder = thread::spawn(move || {
        let (mut near, _) = seen.accept().unwrap();
        let mut far = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let (mut back, mut into) = (far.try_clone().unwrap(), near.try_clone().unwrap());
        thread::spawn(move || io::copy(&mut back, &mut into));
        let (mut all, mut buffer) = (Vec::new(), vec![0_u8; 4096]);
        while let Ok(count @ 1..) = near.read(&mut buffer) {
            all.extend(&buffer[..count]);
            far.write_all(&buffer[..count]).unwrap();
        }
        all
    });
    let address = format!(
        "tls://127.0.0.1:{own}#{}",
        listener.address().pin().unwrap()
    );
    let address: Address = address.parse().unwrap();
    let (near, far) = connected_by(&listener, || Link::connect(&address, SOON).unwrap());
    let mut words = frame(0);
    words.words = vec![0x6c61_7276; 10_000].into();
    write_frame(&mut &near, &words).unwrap();
    assert!(FrameReader::new(&far).read(|| WIDE).unwrap() == words);
    drop(near);
    drop(far);
    let all = recorder.join().unwrap();
    assert!(all.len() > 40_000);
    let text = 0x6c61_7276_u32.to_le_bytes();
    assert!(!all.windows(4).any(|window: &[u8]| window == text));
}

#[test]
fn big_frames_go_both_ways_at_once() {
    let listener = listener(&[]);
    let connect = || Link::connect(listener.address(), SOON).unwrap();
    let (near, far) = connected_by(&listener, connect);
    within(SOON * 2, move || {
        let frames = vec![frame(8 << 20), frame(0), frame(8 << 20)];
        let talk = |link: Link, frames: Vec<_>| {
            move || {
                let mut talker = Talker::saying(frames.clone(), frames.len());
                pump(link).run(&mut talker).unwrap();
                assert!(talker.heard == frames);
            }
        };
        let (near, far) = (talk(near, frames.clone()), talk(far, frames));
        let other = thread::spawn(near);
        far();
        other.join().unwrap();
    });
}
