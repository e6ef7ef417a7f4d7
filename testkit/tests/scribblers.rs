//! Workers that write to shared memory when they should not, over a link written here once more:
//! what is accepted is right, whatever they do and whenever.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larvatus::error::{InferError, WorkerMisbehaved};
use larvatus::exact::run_exact;
use larvatus::plan::Plan;
use larvatus::policy::Hiding;
use larvatus::session::Output;
use larvatus::tensor::floats;
use larvatus_host::{Address, Link};
use larvatus_proto::frame::{Frame, FrameLimits, HEADER, Header};
use larvatus_proto::machine::Machine;
use larvatus_proto::wire::DecodeError;
use larvatus_testkit::models::{Network, small_cnn};
use larvatus_testkit::pair::honest;
use larvatus_testkit::shared::{socket, trusted};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::{pread, pwrite};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

const GREETING: &[u8; 8] = b"LRVTSHM1";
const ROOM: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker's end of the link, without any of the care that ours takes.
struct Peer {
    socket: UnixStream,
    theirs: OwnedFd,
    ours: OwnedFd,
    /// Where the next answer goes.
    next: u64,
}

impl Peer {
    fn accept(listener: &UnixListener) -> Self {
        let (socket, _) = listener.accept().unwrap();
        let mut greeting = [0; 8];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut greeting)];
        recvmsg(&socket, &mut parts, &mut passed, RecvFlags::empty()).unwrap();
        assert_eq!(&greeting, GREETING);
        let theirs = passed.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next(),
            _ => None,
        });
        let ours = memfd_create("scribbler", MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&ours, ROOM).unwrap();
        fcntl_add_seals(&ours, SealFlags::SHRINK).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut passed = SendAncillaryBuffer::new(&mut space);
        let files = [ours.as_fd()];
        passed.push(SendAncillaryMessage::ScmRights(&files));
        let parts = [IoSlice::new(GREETING)];
        sendmsg(&socket, &parts, &mut passed, SendFlags::empty()).unwrap();
        Self {
            socket,
            theirs: theirs.expect("a file"),
            ours,
            next: 0,
        }
    }

    fn read(&mut self) -> Option<Frame> {
        let mut preamble = [0; 16];
        self.socket.read_exact(&mut preamble).ok()?;
        let (place, count) = preamble.split_at(8);
        let place = u64::from_le_bytes(place.try_into().unwrap());
        let count = u64::from_le_bytes(count.try_into().unwrap());
        let mut returns = vec![0; 8 * usize::try_from(count).unwrap()];
        self.socket.read_exact(&mut returns).ok()?;
        let mut header = [0; HEADER];
        self.socket.read_exact(&mut header).ok()?;
        let limits = FrameLimits {
            head: 1 << 16,
            words: 1 << 24,
        };
        let Header { kind, head, words } = Header::decode(header, limits).unwrap();
        let mut head = vec![0; head];
        self.socket.read_exact(&mut head).ok()?;
        let mut bytes = vec![0; 4 * words];
        if place == u64::MAX {
            self.socket.read_exact(&mut bytes).ok()?;
        } else {
            assert_eq!(pread(&self.theirs, &mut bytes, place).unwrap(), bytes.len());
        }
        let (words, _) = bytes.as_chunks::<4>();
        let words = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        Some(Frame { kind, head, words })
    }

    /// Writes the frame's words to `place` of our memory and announces them there.
    fn write(&mut self, frame: &Frame, place: u64, returns: &[u64]) {
        let words = frame.words.to_vec();
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let place = if bytes.is_empty() { u64::MAX } else { place };
        if place < ROOM {
            pwrite(&self.ours, &bytes, place).unwrap();
        }
        let mut front = place.to_le_bytes().to_vec();
        front.extend((returns.len() as u64).to_le_bytes());
        front.extend(returns.iter().flat_map(|place| place.to_le_bytes()));
        front.extend(frame.header());
        front.extend_from_slice(&frame.head);
        let _ = self.socket.write_all(&front);
    }

    /// An honest worker's conversation; `answer` says how an answer is sent.
    fn serve(mut self, mut answer: impl FnMut(&mut Self, &Frame)) {
        let mut worker = honest();
        while let Some(frame) = self.read() {
            worker.receive(frame, Duration::ZERO);
            while let Some(frame) = worker.transmit(Duration::ZERO) {
                if frame.words.is_empty() {
                    self.write(&frame, 0, &[]);
                } else {
                    answer(&mut self, &frame);
                }
            }
        }
    }
}

/// Two inferences with such a worker.
fn infer(
    network: &Network,
    plan: &Arc<Plan>,
    serve: impl FnOnce(Peer) + Send,
) -> Vec<Result<Output, InferError>> {
    let path = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let results = std::thread::scope(|scope| {
        scope.spawn(|| serve(Peer::accept(&listener)));
        let link = Link::connect(&Address::Shared(path.clone()), PATIENCE).unwrap();
        trusted(plan, link, vec![network.random(1), network.random(2)])
    });
    std::fs::remove_file(path).unwrap();
    results
}

fn right(network: &Network, plan: &Arc<Plan>, results: &[Result<Output, InferError>]) {
    for (result, seed) in results.iter().zip(1..) {
        let exact = run_exact(plan, network.random(seed)).unwrap();
        let tensors = &result.as_ref().unwrap().tensors;
        assert_eq!(floats(&tensors[0]), floats(&exact[0]));
    }
}

#[test]
fn the_link_written_here_is_understood() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let results = infer(&network, &plan, |peer| {
        peer.serve(|peer, frame| {
            let place = peer.next;
            peer.next = (place + 4096 * frame.words.len() as u64) % (ROOM / 2) / 4096 * 4096;
            peer.write(frame, place, &[]);
        });
    });
    right(&network, &plan, &results);
}

#[test]
fn an_answer_that_changes_all_the_time_is_right_or_rejected() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let mut rejected = 0;
    for round in 0..12 {
        let results = infer(&network, &plan, |peer| {
            let stop = AtomicBool::new(false);
            let ours = peer.ours.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    // Single bits, here and there, back and forth.
                    let mut at = 4 * round;
                    while !stop.load(Ordering::Relaxed) {
                        let mut byte = [0];
                        pread(&ours, &mut byte, at).unwrap();
                        pwrite(&ours, &[byte[0] ^ 1], at).unwrap();
                        at = (at + 236) % 4096;
                    }
                });
                peer.serve(|peer, frame| peer.write(frame, 0, &[]));
                stop.store(true, Ordering::Relaxed);
            });
        });
        for (result, seed) in results.into_iter().zip(1..) {
            match result {
                Ok(output) => {
                    let exact = run_exact(&plan, network.random(seed)).unwrap();
                    assert_eq!(floats(&output.tensors[0]), floats(&exact[0]));
                }
                Err(InferError::Worker(
                    WorkerMisbehaved::ProductMismatch { .. }
                    | WorkerMisbehaved::NotCanonical { .. },
                )) => rejected += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!(rejected > 0, "never in time");
}

#[test]
fn places_outside_the_memory_and_false_returns_end_the_session() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let end = "end of a payload in shared memory";
    let given = "place given back";
    let cases: [(u64, &[u64], &str, u64, u64); 6] = [
        (ROOM, &[], end, ROOM, ROOM),
        (ROOM - 4096 + 4, &[], end, ROOM, ROOM - 4092),
        (u64::MAX - 4095, &[], end, ROOM, u64::MAX - 4095),
        (4, &[], end, ROOM, 4),
        (0, &[8192 * 4096], given, 0, 8192 * 4096),
        (0, &[0, 0], given, 0, 0),
    ];
    for (place, returns, what, expected, got) in cases {
        let results = infer(&network, &plan, |peer| {
            peer.serve(|peer, frame| peer.write(frame, place, returns));
        });
        let malformed = WorkerMisbehaved::Malformed(DecodeError::Inconsistent {
            what,
            expected,
            got,
        });
        for result in results {
            assert_eq!(result.unwrap_err(), malformed.clone().into(), "{place}");
        }
    }
    let results = infer(&network, &plan, |peer| {
        peer.serve(|peer, frame| peer.write(frame, 0, &[0; 65]));
    });
    let too_many = WorkerMisbehaved::Malformed(DecodeError::TooMany {
        what: "places given back",
        limit: 64,
        got: 65,
    });
    assert_eq!(results[0].clone().unwrap_err(), too_many.into());
}

#[test]
fn giving_back_too_early_only_spoils_the_worker_s_own_answer() {
    let network = small_cnn(1);
    let plan = network.plan(Hiding::Field);
    // The first answer gives back what the second call will be written over, before it is read.
    let results = infer(&network, &plan, |peer| {
        let mut first = true;
        peer.serve(|peer, frame| {
            let returns: &[u64] = if first { &[0] } else { &[] };
            first = false;
            peer.write(frame, 4096, returns);
        });
    });
    for (result, seed) in results.iter().zip(1..) {
        match result {
            Ok(output) => {
                let exact = run_exact(&plan, network.random(seed)).unwrap();
                assert_eq!(floats(&output.tensors[0]), floats(&exact[0]));
            }
            Err(why) => assert!(matches!(why, InferError::Worker(_)), "{why}"),
        }
    }
}

#[test]
fn a_listener_that_gives_no_memory_is_told_apart() {
    let path = socket();
    let listener = UnixListener::bind(&path).unwrap();
    let error = std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"LRVTSHM1").unwrap();
            let _ = stream.read(&mut [0; 64]);
        });
        Link::connect(&Address::Shared(path.clone()), PATIENCE).unwrap_err()
    });
    std::fs::remove_file(path).unwrap();
    let text = error.to_string();
    assert!(text.contains("gives no shared memory"), "{text}");
}
