//! Tickets made ahead: sold once, whatever happens to the processes that make and use them.

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{Folder, TINY, Worker, input, within};
use crate::proxy::{Fate, Proxy, To, is_answer};
use crate::secrecy::{BY_CHANCE, equal_words};

const ASSUMES: &str = "assumes storage is not rolled back";

pub(crate) fn provision(here: &Folder, tickets: &str) -> String {
    let store = here.at("store");
    let args = ["provision", TINY, "--tickets", tickets, "--store", &store];
    let ran = here.larvatus(&args).accepted();
    assert!(ran.out.contains(ASSUMES), "{ran:?}");
    store
}

/// Numbers of the tickets that lie in a store.
pub(crate) fn numbers(store: &str) -> Vec<u64> {
    let names = fs::read_dir(store).unwrap().map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.strip_suffix(".ticket")
            .map(|number| number.parse().unwrap())
    });
    let mut numbers: Vec<u64> = names.flatten().collect();
    numbers.sort_unstable();
    numbers
}

#[test]
fn a_run_from_a_store_equals_one_that_runs_here() {
    let here = Folder::new();
    let store = provision(&here, "3");
    let plan = here.larvatus(&["plan", TINY, "--json", "--store", &store]);
    let tickets = plan.accepted().document()["tickets"].clone();
    assert_eq!(tickets["stored"], 3);
    assert_eq!(tickets["assumes"], "storage is not rolled back");
    let plan = here.larvatus(&["plan", TINY, "--store", &store]).accepted();
    assert!(plan.out.contains(ASSUMES), "{plan:?}");
    let x = input(&here, 0);
    let expected = here.logits(&["--input", &x, "--preset", "local-exact"]);
    assert_eq!(here.logits(&["--input", &x, "--store", &store]), expected);
    assert_eq!(numbers(&store), [1, 2]);
    // Three inferences, two tickets: the run makes the third.
    let npz = here.at("three.npz");
    let args = ["run", TINY, "--store", &store, "--json", "--output", &npz];
    let args = [&args[..], &["--input", &x].repeat(3)].concat();
    let report = here.larvatus(&args).accepted().document();
    for key in ["0/logits", "1/logits", "2/logits"] {
        assert_eq!(crate::common::bits(&npz, key), expected, "{key}");
    }
    let tickets = &report["tickets"];
    assert_eq!(tickets["source"], "store, own");
    assert_eq!(
        (&tickets["stored"], &tickets["own"]),
        (&2.into(), &1.into())
    );
    assert_eq!(tickets["assumes"], "storage is not rolled back");
    assert!(report["guarantee"].as_str().unwrap().ends_with(ASSUMES));
    assert!(numbers(&store).is_empty());
    let report = here.larvatus(&["run", TINY, "--json", "--input", &x]);
    let report = report.accepted().document();
    assert_eq!(report["tickets"]["source"], "own");
    assert!(report["tickets"]["assumes"].is_null());
    assert!(!report["guarantee"].as_str().unwrap().contains("assumes"));
}

#[test]
fn provisioning_goes_on_where_kill_9_ended_it() {
    let here = Folder::new();
    let store = here.at("store");
    let args = ["provision", TINY, "--tickets", "100000", "--store", &store];
    let mut command = here.command(&[&args[..], &["--threads", "3"]].concat());
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let there = || fs::read_dir(&store).map_or(0, Iterator::count);
    assert!(within(|| there() > 30));
    child.kill().unwrap();
    child.wait().unwrap();
    let whole = numbers(&store);
    // At most one number a thread is missing among them.
    let (made, last) = (whole.len() as u64, *whole.last().unwrap());
    assert!(made >= 20 && last + 1 - made <= 3, "{whole:?}");
    let more = (made + 2).to_string();
    provision(&here, &more);
    let all = numbers(&store);
    assert_eq!(all[..whole.len()], whole);
    assert_eq!(all[whole.len()..], [last + 1, last + 2]);
    let left: Vec<_> = fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "part"))
        .collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    let x = input(&here, 0);
    let expected = here.logits(&["--input", &x, "--preset", "local-exact"]);
    assert_eq!(here.logits(&["--input", &x, "--store", &store]), expected);
}

#[test]
fn after_kill_9_while_serving_no_ticket_is_used_again() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let stuck = Arc::new(AtomicBool::new(true));
    let answers = Arc::clone(&stuck);
    let proxy = Proxy::new(&worker.address, move |to, count, frame| {
        let third = to == To::Trusted && is_answer(frame) && count >= 5;
        if third && answers.load(Ordering::SeqCst) {
            Fate::Hold
        } else {
            Fate::Pass
        }
    });
    let store = provision(&here, "6");
    let x = input(&here, 0);
    let args = ["run", TINY, "--worker", &proxy.address, "--store", &store];
    let two = [&args[..], &["--window", "1"], &["--input", &x].repeat(2)].concat();
    let mut command = here.command(&two);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    assert!(within(|| proxy.uploads().len() == 3));
    // While it lives, nobody else opens the store.
    let second = here.larvatus(&[&args[..], &["--input", &x]].concat());
    second.refused(&["store", "in use by another process"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let before = proxy.uploads();
    proxy.forget();
    stuck.store(false, Ordering::SeqCst);
    // Two were reserved; both are gone, one of them unused.
    here.larvatus(&[&args[..], &["--input", &x]].concat())
        .accepted();
    assert_eq!(numbers(&store), [3, 4, 5]);
    let after = proxy.uploads();
    assert_eq!((before.len(), after.len()), (3, 5));
    assert!(equal_words(&before, &after) <= BY_CHANCE);
}

#[test]
fn an_altered_ticket_ends_the_run() {
    let here = Folder::new();
    let store = provision(&here, "2");
    let x = input(&here, 0);
    let path = |number: u64| format!("{store}/{number:020}.ticket");
    let flip = |number, at: usize| {
        let mut bytes = fs::read(path(number)).unwrap();
        bytes[at] ^= 1;
        fs::write(path(number), bytes).unwrap();
    };
    let args = ["run", TINY, "--input", &x, "--store", &store];
    flip(0, 96);
    let ran = here.larvatus(&args);
    ran.sentence(1, &["is not the product", "or a stored ticket was altered"]);
    flip(1, 50);
    let ran = here.larvatus(&args);
    ran.refused(&["ticket 1", "its header does not open"]);
}

#[test]
fn what_cannot_be_is_refused_with_a_sentence() {
    let here = Folder::new();
    let x = input(&here, 0);
    let store = here.at("store");
    let run = ["run", TINY, "--input", &x, "--store", &store];
    let with = |more: &[&str]| here.larvatus(&[&run[..], more].concat());
    with(&[]).refused(&["there is no store", "larvatus provision"]);
    provision(&here, "1");
    with(&["--preset", "local-exact"]).refused(&["local-exact", "needs no tickets"]);
    with(&["--preset", "integrity"]).refused(&["hides nothing"]);
    let other = here.write("other.toml", "lifetime = 7");
    with(&["--policy", &other]).refused(&["tickets of plan"]);
    let strict = here.write("strict.toml", "rollback = \"refused\"");
    with(&["--policy", &strict]).refused(&["storage is not rolled back", "rollback"]);
    let another = here.write("key", [9; 32]);
    with(&["--key", &another]).refused(&["mark does not open"]);
    let short = here.write("short", [9; 31]);
    with(&["--key", &short]).refused(&["31 bytes"]);
    let make = ["provision", TINY, "--store", &store, "--tickets", "9"];
    let with = |more: &[&str]| here.larvatus(&[&make[..], more].concat());
    with(&["--max-size", "1K"]).refused(&["9 tickets", "--max-size allows 1.0 KiB"]);
    with(&["--max-size", "much"]).refused(&["\"much\" is no size"]);
    with(&["--preset", "local"]).refused(&["needs no tickets"]);
    with(&["--preset", "integrity"]).refused(&["hides nothing"]);
    with(&["--threads", "0"]).refused(&["--threads"]);
    fs::remove_file(here.at("store/key")).unwrap();
    with(&[]).refused(&["key file", "is not"]);
    assert_eq!(numbers(&store), [0]);
}

#[test]
fn bench_has_a_row_for_stored_tickets() {
    let here = Folder::new();
    let store = provision(&here, "5");
    let args = ["bench", TINY, "--json", "--store", &store, "--runs"];
    let ran = here.larvatus(&[&args[..], &["3"]].concat());
    ran.refused(&["has 5 tickets", "larvatus provision"]);
    let ran = here.larvatus(&[&args[..], &["2"]].concat()).accepted();
    let document = ran.document();
    let row = document.as_array().unwrap().last().unwrap().clone();
    assert_eq!(row["mode"], "+both, stored u");
    assert!(row["guarantee"].as_str().unwrap().ends_with(ASSUMES));
    assert!(numbers(&store).is_empty());
}
