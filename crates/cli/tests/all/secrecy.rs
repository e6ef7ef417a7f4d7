//! What workers see over several processes: no one-time pad comes twice.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Folder, TINY, Worker, input, within};
use crate::proxy::{Fate, Proxy, To, is_answer};

/// Positions in which two recordings hold the same word. Uploads are compared in the order in
/// which they were made, as far as both go.
pub(crate) fn equal_words(one: &[Vec<u32>], two: &[Vec<u32>]) -> usize {
    let pairs = one.iter().zip(two).flat_map(|(a, b)| a.iter().zip(b));
    pairs.filter(|(a, b)| a == b).count()
}

/// By chance two of some ten thousand words are equal once in 40 billion runs.
pub(crate) const BY_CHANCE: usize = 1;

#[test]
fn two_runs_share_no_upload() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let proxy = Proxy::new(&worker.address, |_, _, _| Fate::Pass);
    let x = input(&here, 0);
    let record = |preset: &str| {
        let with = ["--worker", &proxy.address, "--preset", preset];
        here.logits(&[&["--input", &x], &with[..]].concat());
        let uploads = proxy.uploads();
        proxy.forget();
        assert_eq!(uploads.len(), 5);
        uploads
    };
    let (one, two) = (record("slalom"), record("slalom"));
    assert!(equal_words(&one, &two) <= BY_CHANCE);
    // The recorder compares the same positions: without hiding, all are equal.
    let (one, two) = (record("integrity"), record("integrity"));
    assert_eq!(one, two);
}

#[test]
fn after_kill_9_no_ticket_is_issued_again() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let stuck = Arc::new(AtomicBool::new(true));
    let answers = Arc::clone(&stuck);
    // The third answer never arrives: the process stands in the middle of its inference.
    let proxy = Proxy::new(&worker.address, move |to, count, frame| {
        let third = to == To::Trusted && is_answer(frame) && count >= 5;
        if third && answers.load(Ordering::SeqCst) {
            Fate::Hold
        } else {
            Fate::Pass
        }
    });
    let x = input(&here, 0);
    let args = ["run", TINY, "--input", &x, "--worker", &proxy.address];
    let mut command = here.command(&args);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    assert!(within(|| proxy.uploads().len() == 3));
    assert_eq!(child.try_wait().unwrap(), None);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = proxy.uploads();
    proxy.forget();
    stuck.store(false, Ordering::SeqCst);
    here.larvatus(&args).accepted();
    let after = proxy.uploads();
    assert_eq!((before.len(), after.len()), (3, 5));
    assert!(before.iter().zip(&after).all(|(a, b)| a.len() == b.len()));
    assert!(equal_words(&before, &after) <= BY_CHANCE);
}
