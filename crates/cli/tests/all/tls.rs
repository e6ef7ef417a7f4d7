//! Workers over TLS, by real processes.

use crate::common::{Folder, TINY, Worker, input};

/// Runs the small model on a worker.
fn run(here: &Folder, worker: &str, more: &[&str]) -> crate::common::Ran {
    let x = input(here, 0);
    let args = ["run", TINY, "--input", &x, "--worker", worker];
    here.larvatus(&[&args[..], more].concat())
}

/// The port of an address.
fn port(address: &str) -> &str {
    let rest = address.rsplit_once(':').unwrap().1;
    rest.split('#').next().unwrap()
}

#[test]
fn a_worker_over_tls_gives_the_bits_of_one_without() {
    let here = Folder::new();
    let worker = Worker::tls(&here, "worker", "w.key");
    let x = input(&here, 0);
    let exact = here.logits(&["--input", &x, "--preset", "local-exact"]);
    assert_eq!(
        here.logits(&["--input", &x, "--worker", &worker.address]),
        exact
    );
}

#[test]
fn a_worker_keeps_its_pin_and_its_key_to_itself() {
    use std::os::unix::fs::PermissionsExt;
    let here = Folder::new();
    let pin = |worker: &Worker| worker.address.split_once('#').unwrap().1.to_owned();
    let first = pin(&Worker::tls(&here, "worker", "w.key"));
    assert_eq!(first.len(), 64);
    assert_eq!(pin(&Worker::tls(&here, "worker", "w.key")), first);
    assert_ne!(pin(&Worker::tls(&here, "worker", "v.key")), first);
    let key = here.at("w.key");
    let mode = std::fs::metadata(&key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let shown = here.larvatus(&["identity", &key]).accepted();
    assert_eq!(shown.out.trim(), first);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let listen = [
        "worker",
        "--listen",
        "tls://127.0.0.1:0",
        "--identity",
        &key,
    ];
    here.larvatus(&listen)
        .refused(&["w.key", "644", "chmod 600"]);
}

#[test]
fn somebody_else_at_the_address_is_not_talked_to() {
    let here = Folder::new();
    let worker = Worker::tls(&here, "worker", "w.key");
    let (address, pin) = worker.address.split_once('#').unwrap();
    let other = format!("{address}#{}", "7".repeat(64));
    run(&here, &other, &[]).refused(&[&other, "somebody else", pin]);
    run(&here, address, &[]).refused(&[address, "#PIN"]);
    run(&here, &format!("{address}#77"), &[]).refused(&["\"77\"", "64 hexadecimal digits"]);
}

#[test]
fn both_ends_must_speak_tls_or_neither() {
    let here = Folder::new();
    let (plain, tls) = (Worker::tcp(&here), Worker::tls(&here, "worker", "w.key"));
    let at =
        |scheme: &str, worker: &Worker| format!("{scheme}://127.0.0.1:{}", port(&worker.address));
    let pin = tls.address.split_once('#').unwrap().1;
    let to_plain = format!("{}#{pin}", at("tls", &plain));
    run(&here, &to_plain, &[]).refused(&[&to_plain, "TLS"]);
    run(&here, &at("tcp", &tls), &[]).refused(&[&at("tcp", &tls)]);
    // Both still serve.
    for worker in [&plain, &tls] {
        run(&here, &worker.address, &[]).accepted();
    }
}

#[test]
fn a_worker_may_serve_known_keys_only() {
    let here = Folder::new();
    let (friend, stranger) = (here.at("friend.key"), here.at("stranger.key"));
    let pin = here.larvatus(&["identity", &friend]).accepted().out;
    let key = here.at("w.key");
    let demand = ["--identity", &key, "--allow", pin.trim()];
    let worker = Worker::serving(&here, "worker", "tls://127.0.0.1:0", &demand);
    run(&here, &worker.address, &["--identity", &friend]).accepted();
    for other in [&["--identity", &stranger][..], &[]] {
        run(&here, &worker.address, other).refused(&["does not admit this key", "--identity"]);
    }
    let plain = [
        "worker",
        "--listen",
        "tcp://127.0.0.1:0",
        "--allow",
        pin.trim(),
    ];
    here.larvatus(&plain).refused(&["--allow", "tls://"]);
}
