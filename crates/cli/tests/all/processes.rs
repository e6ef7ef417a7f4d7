//! What is left when a run ends, however it ends: nothing.

use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::common::{Folder, TINY, ended, input, within};

/// The processes whose command line names this folder's place for temporary files: workers of
/// runs in it.
fn workers(here: &Folder) -> Vec<Pid> {
    let place = here.tmp().to_str().unwrap().to_owned();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    processes
        .filter_map(number)
        .filter(|process: &i32| {
            let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&place)
        })
        .filter_map(Pid::from_raw)
        .collect()
}

/// Starts a run that is long enough to be ended in its middle, and waits until its worker is
/// there and listens.
fn in_the_middle(here: &Folder) -> (Child, Pid) {
    let x = input(here, 0);
    let args = [&["run", TINY][..], &["--input", x.as_str()].repeat(10_000)].concat();
    let mut command = here.command(&args);
    // A group of its own, as a shell with job control makes it.
    command.process_group(0);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let child = command.spawn().unwrap();
    let found = AtomicUsize::new(0);
    assert!(within(|| {
        found.store(workers(here).len(), Ordering::SeqCst);
        found.load(Ordering::SeqCst) == 1 && sockets(here) == 1
    }));
    (child, workers(here)[0])
}

/// Files that are not folders under the place for temporary files.
fn sockets(here: &Folder) -> usize {
    let folders = fs::read_dir(here.tmp()).unwrap().filter_map(Result::ok);
    let inside = folders.filter_map(|folder| fs::read_dir(folder.path()).ok());
    inside.map(Iterator::count).sum()
}

fn nothing_is_left(here: &Folder) {
    assert!(within(|| workers(here).is_empty()), "a worker is left");
    let empty = || fs::read_dir(here.tmp()).unwrap().next().is_none();
    assert!(within(empty), "a file is left");
}

#[test]
fn a_run_has_a_worker_while_it_runs_and_none_after() {
    let here = Folder::new();
    let x = input(&here, 0);
    here.larvatus(&["run", TINY, "--input", &x]).accepted();
    nothing_is_left(&here);
    let unwritable = ["run", TINY, "--input", &x, "--output", "/nowhere/x.npz"];
    here.larvatus(&unwritable).sentence(2, &["/nowhere"]);
    nothing_is_left(&here);
    here.larvatus(&["bench", TINY, "--runs", "1"]).accepted();
    nothing_is_left(&here);
}

#[test]
fn a_run_that_is_ended_takes_its_worker_along() {
    type End = fn(Pid);
    let ends: [(&str, End, Signal); 4] = [
        (
            "terminated",
            |pid| kill_process(pid, Signal::TERM).unwrap(),
            Signal::TERM,
        ),
        (
            "interrupted",
            |pid| kill_process(pid, Signal::INT).unwrap(),
            Signal::INT,
        ),
        // As by Ctrl-C on a terminal: everything in the group hears it.
        (
            "group interrupted",
            |pid| kill_process_group(pid, Signal::INT).unwrap(),
            Signal::INT,
        ),
        (
            "killed",
            |pid| kill_process(pid, Signal::KILL).unwrap(),
            Signal::KILL,
        ),
    ];
    for (what, end, signal) in ends {
        let here = Folder::new();
        let (mut child, _) = in_the_middle(&here);
        end(Pid::from_child(&child));
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(signal.as_raw()), "{what}");
        nothing_is_left(&here);
    }
}

#[test]
fn a_run_whose_worker_is_killed_says_so_and_cleans_up() {
    let here = Folder::new();
    let (mut child, worker) = in_the_middle(&here);
    kill_process(worker, Signal::KILL).unwrap();
    assert_eq!(ended(&mut child), Some(Some(2)));
    nothing_is_left(&here);
}
