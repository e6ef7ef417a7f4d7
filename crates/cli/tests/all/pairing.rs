//! Pairing by a code: the real binary on both ends, and somebody between.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use larvatus_host::pump::Options;
use larvatus_host::tls::Identity;
use larvatus_host::{Address, Clock, Link, Listener, Pump, entropy};
use larvatus_proto::machine::Machine;
use larvatus_proto::pairing::{Key, Nonce, Pairing};

use crate::common::{Folder, PATIENCE, TINY, ended, input};

/// A process that is talked to: its standard output, line by line, and its input.
struct Talk {
    child: Child,
    lines: Receiver<String>,
    input: Option<ChildStdin>,
}

impl Talk {
    fn start(mut command: Command) -> Self {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let out = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let input = child.stdin.take();
        Self {
            child,
            lines,
            input,
        }
    }

    /// What follows `start` on the first line that begins so.
    fn told(&self, start: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("never said {start:?}"));
            if let Some(rest) = line.strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    fn types(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Its exit code and what it said on standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let code = ended(&mut self.child).expect("it hangs");
        let err = std::io::read_to_string(self.child.stderr.take().unwrap()).unwrap();
        (code, err)
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two machines, each with a folder for configuration of its own.
struct Two {
    here: Folder,
    there: Folder,
}

impl Two {
    fn new() -> Self {
        Self {
            here: Folder::new(),
            there: Folder::new(),
        }
    }

    fn on(folder: &Folder, args: &[&str]) -> Command {
        let mut command = folder.command(args);
        command.env("XDG_CONFIG_HOME", folder.at("config"));
        command
    }

    /// A worker that waits for a device, and its address without the pin.
    fn worker(&self, more: &[&str]) -> (Talk, String) {
        let args = ["worker", "--threads", "1", "--listen", "tls://127.0.0.1:0"];
        let worker = Talk::start(Self::on(&self.there, &[&args, more].concat()));
        let address = worker.told("worker on ");
        let address = address.split('#').next().unwrap().to_owned();
        (worker, address)
    }

    fn pair(&self, args: &[&str]) -> Talk {
        Talk::start(Self::on(&self.here, &[&["pair"], args].concat()))
    }

    fn run(&self, folder: &Folder, worker: &str, more: &[&str]) -> crate::common::Ran {
        let x = input(folder, 0);
        let args = ["run", TINY, "--input", &x, "--worker", worker];
        crate::common::finish(Self::on(folder, &[&args[..], more].concat()))
    }

    /// What both machines remember.
    fn known(&self) -> (Option<String>, Option<String>) {
        let read = |folder: &Folder, name| {
            std::fs::read_to_string(folder.at(&format!("config/larvatus/{name}"))).ok()
        };
        (
            read(&self.here, "workers.toml"),
            read(&self.there, "devices"),
        )
    }
}

#[test]
fn two_people_who_compare_codes_pair_a_device_with_a_worker() {
    let two = Two::new();
    let (mut worker, address) = two.worker(&["--pair"]);
    let mut device = two.pair(&[&address, "--name", "study"]);
    let (its, ours) = (worker.told("code "), device.told("code "));
    assert_eq!(its, ours);
    // A slip of the finger is no answer.
    device.types("12345");
    device.types(&its);
    worker.types(&ours.replace(' ', ""));
    assert!(device.told("paired: ").contains("--worker study"));
    assert_eq!(device.end(), (Some(0), String::new()));
    worker.told("paired: ");
    two.run(&two.here, "study", &[]).accepted();
    // By its address and pin it is the same worker; a stranger gets nothing, even if it knows them.
    let known = two.known().0.unwrap();
    let pinned = known.split('"').nth(1).unwrap().to_owned();
    assert!(pinned.starts_with(&address), "{known}");
    let key = two.here.at("config/larvatus/identity.key");
    two.run(&two.here, &pinned, &["--identity", &key])
        .accepted();
    let stranger = Folder::new();
    two.run(&stranger, &pinned, &[])
        .refused(&["does not admit this key"]);
    two.run(&stranger, "study", &[])
        .refused(&["no worker named \"study\"", "larvatus pair"]);
    // It is known now, and is not overwritten by another.
    let again = two.pair(&[&address, "--name", "study"]).end();
    assert_eq!(again.0, Some(2), "{again:?}");
    assert!(again.1.contains("known already"), "{again:?}");
    // Started again on the same machine, the worker remembers without being told.
    drop(worker);
    let port = address.rsplit_once(':').unwrap().1;
    let listen = format!("tls://127.0.0.1:{port}");
    let args = ["worker", "--threads", "1", "--listen", &listen];
    let worker = Talk::start(Two::on(&two.there, &args));
    worker.told("worker on ");
    two.run(&two.here, "study", &[]).accepted();
    two.run(&stranger, &pinned, &[])
        .refused(&["does not admit this key"]);
}

#[test]
fn a_code_that_differs_pairs_nobody() {
    for who in ["device", "worker", "no", "nobody"] {
        let two = Two::new();
        let (mut worker, address) = two.worker(&["--pair"]);
        let mut device = two.pair(&[&address]);
        let code = worker.told("code ");
        device.told("code ");
        let wrong = if code == "123 456" {
            "123 457"
        } else {
            "123 456"
        };
        match who {
            "device" => {
                worker.types(&code);
                device.types(wrong);
            }
            "worker" => {
                device.types(&code);
                worker.types(wrong);
            }
            "no" => device.types("no"),
            _ => drop(device.input.take()),
        }
        let (device, worker) = (device.end(), worker.end());
        assert_eq!((device.0, worker.0), (Some(2), Some(2)), "{who}");
        let (refuses, hears) = match who {
            "worker" => (&worker.1, &device.1),
            _ => (&device.1, &worker.1),
        };
        let why = match who {
            "no" | "nobody" => "not confirmed",
            _ => "the codes differ",
        };
        assert!(refuses.contains(why), "{who}: {refuses}");
        assert!(hears.contains("the other end refuses"), "{who}: {hears}");
        assert_eq!(two.known(), (None, None), "{who}");
    }
}

/// An end of a pairing over a real link, driven until it has a code or an end.
fn play(link: Link, pairing: impl FnOnce(Key) -> Pairing) -> (Pump, Pairing) {
    let peer = link.peer_pin().unwrap().unwrap();
    let mut pairing = pairing(Key(peer.0));
    let mut pump = Pump::new(link, Clock::start(), Options::default()).unwrap();
    while pairing.code().is_none() && !pairing.finished() {
        let _ = pump.step(&mut pairing, Duration::from_millis(20));
    }
    (pump, pairing)
}

/// Somebody ends both links and plays along on each: the owners see two codes.
#[test]
fn somebody_between_shows_in_the_codes() {
    let two = Two::new();
    let (mut worker, address) = two.worker(&["--pair"]);
    let identity = |name| Identity::open(two.here.at(name).as_ref()).unwrap();
    let (as_worker, as_device) = (identity("as-worker.key"), identity("as-device.key"));
    let listener = Listener::bind_tls(&"tls://127.0.0.1:0".parse().unwrap(), &as_worker, &[]);
    let listener = listener.unwrap();
    let between = listener.address().to_string();
    let mut device = two.pair(&[between.split('#').next().unwrap()]);
    let own = |identity: &Identity| Key(identity.pin().0);
    let nonce = || Nonce::new(entropy().unwrap());
    let link = listener.accept(PATIENCE).unwrap().unwrap();
    let (_to_device, mut false_worker) = play(link, |peer| {
        Pairing::worker(own(&as_worker), peer, nonce(), PATIENCE)
    });
    let address: Address = address.parse().unwrap();
    let link = Link::meet(&address, &as_device, PATIENCE).unwrap();
    let (_to_worker, false_device) = play(link, |peer| {
        Pairing::device(own(&as_device), peer, nonce(), PATIENCE)
    });
    let (device_shows, worker_shows) = (device.told("code "), worker.told("code "));
    assert_eq!(
        device_shows,
        false_worker.code().unwrap().to_string(),
        "the attacker did play along"
    );
    assert_eq!(worker_shows, false_device.code().unwrap().to_string());
    // Once in 10⁶.
    assert_ne!(device_shows, worker_shows);
    device.types(&worker_shows);
    worker.types(&device_shows);
    assert!(device.end().1.contains("the codes differ"));
    assert!(worker.end().1.contains("the codes differ"));
    false_worker.tick(PATIENCE);
    assert_eq!(two.known(), (None, None));
}

/// A worker gives one guess away, not more: whoever leaves after it was told a nonce has had it.
#[test]
fn a_guess_that_was_made_ends_the_waiting_and_strangers_do_not() {
    let two = Two::new();
    let (worker, address) = two.worker(&["--pair"]);
    let address: Address = address.parse().unwrap();
    let identity = Identity::open(two.here.at("guesser.key").as_ref()).unwrap();
    // A stranger that asks for work instead, one that says nothing and leaves, and one without TLS.
    let pinless = address.to_string();
    let plain = pinless.replace("tls://", "tcp://");
    let x = input(&two.here, 0);
    let asks = [
        "run",
        TINY,
        "--input",
        &x,
        "--worker",
        &plain,
        "--timeout",
        "1",
    ];
    assert_eq!(two.here.larvatus(&asks).code, Some(2));
    for _ in 0..2 {
        let link = Link::meet(&address, &identity, PATIENCE).unwrap();
        link.peer_pin().unwrap();
        drop(link);
    }
    // It still waits. Then somebody takes a nonce, does not like the code, and leaves.
    let link = Link::meet(&address, &identity, PATIENCE).unwrap();
    let (pump, guess) = play(link, |peer| {
        let nonce = Nonce::new(entropy().unwrap());
        Pairing::device(Key(identity.pin().0), peer, nonce, PATIENCE)
    });
    assert!(guess.code().is_some());
    drop(pump);
    let (code, err) = worker.end();
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("has left"), "{err}");
    assert_eq!(two.known(), (None, None));
}

#[test]
fn what_cannot_pair_says_so() {
    let two = Two::new();
    let (worker, address) = two.worker(&["--pair", "--pair-within", "1"]);
    let (code, err) = worker.end();
    assert_eq!(code, Some(2));
    assert!(err.contains("no device paired within 1 s"), "{err}");
    let refused = |folder: &Folder, args: &[&str], words: &[&str]| {
        crate::common::finish(Two::on(folder, args)).refused(words);
    };
    refused(&two.here, &["pair", &address], &["nobody listens"]);
    refused(&two.here, &["pair", "tcp://127.0.0.1:1"], &["tls://"]);
    let odd = ["pair", &address, "--name", "a b"];
    refused(&two.here, &odd, &["\"a b\" is no name"]);
    let listen = ["worker", "--listen", "tcp://127.0.0.1:0", "--pair"];
    refused(&two.there, &listen, &["--pair", "tls://"]);
    let devices = two.there.at("devices");
    let listen = [
        "worker",
        "--listen",
        "tls://127.0.0.1:0",
        "--devices",
        &devices,
    ];
    refused(&two.there, &listen, &["there is no file", "--pair"]);
    two.there.write("devices", "# nobody\n\n");
    refused(&two.there, &listen, &["names no device"]);
    two.there.write("devices", "abc\n");
    refused(&two.there, &listen, &["line 1", "64 hexadecimal digits"]);
    // A worker that serves and does not pair.
    let (worker, address) = two.worker(&[]);
    let (code, err) = two.pair(&[&address]).end();
    assert_eq!(code, Some(2));
    assert!(err.contains("does not pair"), "{err}");
    drop(worker);
    assert_eq!(two.known(), (None, None));
}

/// Over multicast on this machine's own interfaces.
#[test]
fn a_worker_announces_itself_and_is_believed_for_an_address_only() {
    let port = {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.local_addr().unwrap().port().to_string()
    };
    let two = Two::new();
    let announce = ["--announce", "study", "--pair", "--mdns-port", &port];
    let (mut worker, address) = two.worker(&announce);
    worker.told("announced as study");
    let mut device = two.pair(&["study", "--mdns-port", &port]);
    device.types("early");
    let code = worker.told("code ");
    assert_eq!(device.told("code "), code);
    device.types(&code);
    worker.types(&code);
    assert_eq!(device.end().0, Some(0));
    let args = ["discover", "--json", "--timeout", "2", "--mdns-port", &port];
    let found = crate::common::finish(Two::on(&two.here, &args)).accepted();
    let found = found.document();
    let row = &found.as_array().unwrap()[0];
    assert_eq!(row["name"], "study");
    // No pin that somebody could paste and believe.
    assert_eq!(row["address"], address);
    assert_eq!(
        (&row["known_as"], &row["moved"]),
        (&"study".into(), &false.into())
    );
    // On another device it is nobody.
    let other = Folder::new();
    let found = crate::common::finish(Two::on(&other, &args)).accepted();
    assert!(found.document()[0]["known_as"].is_null());
    two.run(&two.here, "study", &[]).accepted();
}
