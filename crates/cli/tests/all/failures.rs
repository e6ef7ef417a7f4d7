//! Workers that fail: a clean error, or the next worker steps in with fresh secrets.

use std::io::Write;
use std::net::Shutdown;

use larvatus_proto::VERSION;
use larvatus_proto::frame::Reply;

use crate::common::{Folder, Ran, TINY, Worker, input};
use crate::proxy::{Fate, Peer, Proxy, To, read_frame};
use crate::secrecy::{BY_CHANCE, equal_words};

fn run(here: &Folder, workers: &[&str], more: &[&str]) -> Ran {
    let x = input(here, 0);
    let mut args = vec!["run", TINY, "--input", &x];
    args.extend(workers.iter().flat_map(|address| ["--worker", address]));
    args.extend(more);
    here.larvatus(&args)
}

/// What was accepted before the first worker failed is not computed again.
#[test]
fn a_batch_goes_on_where_it_stood() {
    let here = Folder::new();
    let (one, two) = (Worker::tcp(&here), Worker::tcp(&here));
    // Two inferences of five answers each have passed, in a window of one.
    let mortal = Proxy::new(&one.address, |to, count, _| {
        if to == To::Trusted && count == 3 + 12 {
            Fate::Cut
        } else {
            Fate::Pass
        }
    });
    let spare = Proxy::new(&two.address, |_, _, _| Fate::Pass);
    let inputs: Vec<String> = (0..4).map(|seed| input(&here, seed)).collect();
    let mut args = vec!["run", TINY, "--window", "1", "--worker", &mortal.address];
    args.extend(["--worker", &spare.address]);
    args.extend(inputs.iter().flat_map(|x| ["--input", x]));
    let npz = here.at("out.npz");
    args.extend(["--output", &npz]);
    here.larvatus(&args).accepted();
    assert_eq!(spare.uploads().len(), 10);
    assert!(equal_words(&mortal.uploads(), &spare.uploads()) <= BY_CHANCE);
    for (run, x) in inputs.iter().enumerate() {
        let exact = here.logits(&["--input", x, "--preset", "local-exact"]);
        let key = format!("{run}/logits");
        assert_eq!(crate::common::bits(&npz, &key), exact, "{key}");
    }
}

#[test]
fn a_silent_worker_is_given_up_after_the_timeout() {
    let here = Folder::new();
    let silent = Peer::new(|_| {});
    let alone = run(&here, &[&silent.address], &["--timeout", "1"]);
    alone.refused(&[&silent.address, "within 1s", "--timeout"]);
    let worker = Worker::tcp(&here);
    let falls_silent = Proxy::new(&worker.address, |to, count, _| {
        if to == To::Trusted && count == 4 {
            Fate::Hold
        } else {
            Fate::Pass
        }
    });
    let address = &falls_silent.address;
    let alone = run(&here, &[address], &["--timeout", "1"]);
    alone.refused(&[address, "no answer", "within 1s", "--timeout"]);
    let helped = run(&here, &[address, &worker.address], &["--timeout", "1"]);
    helped.accepted();
}

#[test]
fn a_worker_of_another_version_is_told_from_a_liar() {
    let here = Folder::new();
    let next = Peer::replying(vec![Reply::Welcome {
        version: VERSION + 1,
        name: "newer".to_owned(),
    }]);
    let words = [
        next.address.as_str(),
        &format!("version {}", VERSION + 1),
        "update",
    ];
    run(&here, &[&next.address], &[]).refused(&words);
    let worker = Worker::tcp(&here);
    run(&here, &[&next.address, &worker.address], &[]).accepted();
}

#[test]
fn a_worker_that_refuses_is_quoted() {
    let here = Folder::new();
    let full = Peer::replying(vec![
        Reply::Welcome {
            version: VERSION,
            name: "full".to_owned(),
        },
        Reply::Failed {
            call: None,
            message: "no memory for 17 bytes".to_owned(),
        },
    ]);
    run(&here, &[&full.address], &[]).refused(&["refuses", "no memory for 17 bytes"]);
}

#[test]
fn a_peer_that_is_no_worker_is_told_from_a_liar() {
    let here = Folder::new();
    let speaks: [&'static [u8]; 4] = [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x01\x00\x02\x02\x16",
        b"A\0\x0a\0\0\0\0\0HTTP\x01\0\0\0\0\0",
    ];
    let worker = Worker::tcp(&here);
    for said in speaks {
        for closes in [true, false] {
            let other = Peer::new(move |stream| {
                let _ = read_frame(stream);
                let _ = stream.write_all(said);
                if closes {
                    let _ = stream.shutdown(Shutdown::Both);
                }
            });
            let name = String::from_utf8_lossy(said);
            let alone = run(&here, &[&other.address], &["--timeout", "1"]);
            assert_eq!(alone.code, Some(2), "{name}: {alone:?}");
            alone.refused(&[&other.address]);
            let both = [other.address.as_str(), &worker.address];
            run(&here, &both, &["--timeout", "1"]).accepted();
        }
    }
    let http = Peer::new(move |stream| {
        let _ = stream.write_all(speaks[0]);
    });
    run(&here, &[&http.address], &[]).refused(&["no larvatus worker"]);
}

#[test]
fn nobody_there_means_try_the_next_or_say_how_to_start_one() {
    let here = Folder::new();
    let nobody = format!("unix:{}", here.at("nobody"));
    let words = [
        nobody.as_str(),
        "nobody listens",
        "larvatus worker --listen",
    ];
    run(&here, &[&nobody], &[]).refused(&words);
    // A port that was just free.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("tcp://{}", port.local_addr().unwrap());
    drop(port);
    run(&here, &[&closed, &nobody], &[]).refused(&[&closed, &nobody, "nobody listens"]);
    let worker = Worker::tcp(&here);
    let ran = run(&here, &[&nobody, &worker.address], &[]).accepted();
    assert!(ran.err.contains(&nobody), "{ran:?}");
}
