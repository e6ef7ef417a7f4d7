//! Whole networks at a worker: run, killed, audited later, receipts and judges, as a user meets them.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use larvatus_host::pump::Options;
use larvatus_host::{Clock, Listener, serve};
use larvatus_testkit::adversary::{Crooked, Wrong};
use larvatus_testkit::whole::{WORKER, service, store};
use serde_json::Value;

use crate::common::{Folder, Ran, TINY, Worker, bits, input, within};

/// `larvatus run --preset whole-audited` with the records in `DIR/records`.
fn run(here: &Folder, more: &[&str]) -> Ran {
    let (key, records) = (here.at("receipt.key"), here.at("records"));
    let args = ["run", TINY, "--preset", "whole-audited"];
    let keys = ["--receipt-key", &key, "--audit-dir", &records];
    here.larvatus(&[&args, &keys, more].concat())
}

fn audit(here: &Folder, more: &[&str]) -> Ran {
    let (key, records) = (here.at("receipt.key"), here.at("records"));
    let args = ["audit", &records, "--receipt-key", &key, "--json"];
    here.larvatus(&[&args, more].concat())
}

fn states(report: &Value) -> Vec<String> {
    let records = report["records"].as_array().unwrap().iter();
    records
        .map(|record| record["state"].as_str().unwrap().to_owned())
        .collect()
}

fn files(here: &Folder, ending: &str) -> Vec<String> {
    let all = fs::read_dir(here.at("records")).unwrap();
    let names = all.map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort();
    names
}

/// A worker in this process, whose engine computes wrong. It ends with the test.
struct Wrongdoer {
    address: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Wrongdoer {
    fn start(here: &Folder, wrong: Wrong) -> Self {
        let address = format!("unix:{}", here.at("wrongdoer"));
        let listener = Listener::bind(&address.parse().unwrap()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let store = store(Box::new(Crooked(wrong)));
        let thread = std::thread::spawn(move || {
            let make = move |_| Box::new(service(&store)) as Box<_>;
            serve(
                &listener,
                4,
                Options::default(),
                Clock::start(),
                &make,
                &flag,
            );
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Wrongdoer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn outputs_are_those_of_every_preset_and_records_are_settled_later() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let (one, two) = (input(&here, 0), input(&here, 1));
    let (npz, report) = (here.at("out.npz"), here.at("report.json"));
    let inputs = ["--input", &one, "--input", &two, "--audit", "0.5"];
    let tell = [
        "--output",
        &npz,
        "--report",
        &report,
        "--worker",
        &worker.address,
    ];
    let ran = run(&here, &[&inputs[..], &tell].concat()).accepted();
    assert!(ran.out.contains("provisional until"), "{}", ran.out);
    let exact = here.at("exact.npz");
    let local = ["run", TINY, "--preset", "local-exact", "--output", &exact];
    here.larvatus(&[&local[..], &inputs[..4]].concat())
        .accepted();
    for key in ["0/logits", "1/logits"] {
        assert_eq!(bits(&npz, key), bits(&exact, key));
    }
    let report = here.json("report.json");
    assert_eq!(report["verdict"], "provisional");
    assert_eq!(report["input_privacy"], "none");
    let told = &report["audit"];
    let alpha = told["alpha"].as_f64().unwrap();
    assert!(
        alpha >= 0.5 && told["undetected_one"] == 1.0 - alpha,
        "{told}"
    );
    assert_eq!(told["undetected_all"], (1.0 - alpha).powi(2));

    // What there is, without a worker.
    let listed = audit(&here, &[]).accepted().document();
    assert_eq!(states(&listed), ["provisional", "provisional"]);
    // By another process, over another connection.
    let settled = audit(&here, &["--worker", &worker.address]).accepted();
    assert_eq!(states(&settled.document()), ["settled", "settled"]);
    assert_eq!(files(&here, ".provisional"), [""; 0]);
    // Again: there is nothing to do.
    let again = audit(&here, &["--worker", &worker.address]).accepted();
    assert_eq!(again.document()["settled"], 2);

    for name in files(&here, ".receipt") {
        let file = here.at(&format!("records/{name}"));
        let verified = here
            .larvatus(&["verify-receipt", &file, "--json"])
            .accepted();
        let verified = verified.document();
        assert_eq!(verified["verdict"], "settled");
        assert_eq!(verified["trusted_key"], listed["trusted_key"]);
        let key = verified["worker_key"].as_str().unwrap();
        assert_eq!(key, told["worker_key"]);
        let held = ["verify-receipt", &file, "--worker-key", key];
        here.larvatus(&held).accepted();
        let other = "00".repeat(32);
        let held = ["verify-receipt", &file, "--trusted-key", &other];
        here.larvatus(&held).sentence(1, &["does not hold", &other]);
        let mut bytes = fs::read(&file).unwrap();
        assert!(bytes.len() <= 1024, "{} bytes", bytes.len());
        bytes[300] ^= 1;
        let forged = here.write("forged.receipt", &bytes);
        here.larvatus(&["verify-receipt", &forged])
            .sentence(1, &["signature"]);
    }
}

#[test]
fn a_plan_says_what_audits_are_worth() {
    let here = Folder::new();
    let plan = ["plan", TINY, "--preset", "whole-audited", "--audit", "0.5"];
    let told = here.larvatus(&plan).accepted();
    assert!(
        told.out.contains("the worker sees the input"),
        "{}",
        told.out
    );
    let plan = here.larvatus(&[&plan[..], &["--json"]].concat());
    let plan = plan.accepted().document();
    let (units, alpha) = (&plan["units"], plan["alpha"].as_f64().unwrap());
    let drawn = alpha * units.as_f64().unwrap();
    assert!(
        alpha >= 0.5 && (drawn - drawn.round()).abs() < 1e-9,
        "{plan}"
    );
    assert_eq!(plan["undetected_one"], 1.0 - alpha);
    assert_eq!(plan["round_trips"], 1);
}

#[test]
fn audits_in_the_background_settle_at_once() {
    let here = Folder::new();
    let (one, two, three) = (input(&here, 0), input(&here, 1), input(&here, 2));
    let report = here.at("report.json");
    let inputs = ["--input", &one, "--input", &two, "--input", &three];
    let more = ["--audit-now", "--audit", "1", "--report", &report];
    run(&here, &[&inputs[..], &more].concat()).accepted();
    let report = here.json("report.json");
    assert_eq!(report["verdict"], "settled");
    assert_eq!(report["audit"]["settled"], 3);
    assert_eq!(report["audit"]["undetected_one"], 0.0);
    assert_eq!(files(&here, ".receipt").len(), 3);
}

#[test]
fn frames_of_a_camera_are_kept_dropped_and_finished_here() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let folder = here.at("frames");
    fs::create_dir(&folder).unwrap();
    for at in 0..6_u8 {
        let picture =
            image::GrayImage::from_fn(20, 20, |x, y| image::Luma([at * 40 + (x ^ y) as u8]));
        picture.save(format!("{folder}/{at}.png")).unwrap();
    }
    let (report, out) = (here.at("report.json"), here.at("out.npz"));
    let tell = ["--report", &report, "--output", &out];
    let camera = ["--frames", &folder, "--fps", "20", "--queue", "8"];
    let with = |more: &[&str]| run(&here, &[&camera[..], &tell, more].concat());
    let all = || -> Vec<Vec<u32>> {
        let each = |at| bits(here.at("out.npz"), &format!("{at}/logits"));
        (0..6).map(each).collect()
    };
    let ran = with(&["--worker", &worker.address]).accepted();
    assert!(ran.out.contains("frames: 6 done, 0 dropped"), "{ran:?}");
    assert_eq!(files(&here, ".provisional").len(), 6);
    let remote = all();
    // Two places in the queue, all frames at once: four are dropped, and have no record.
    let hurried = ["--frames", &folder, "--fps", "1000000", "--queue", "2"];
    let args = [&hurried[..], &tell, &["--worker", &worker.address]].concat();
    run(&here, &args).accepted();
    let frames = here.json("report.json")["frames"].clone();
    let number = |key: &str| frames[key].as_u64().unwrap();
    assert_eq!(number("done") + number("dropped"), 6);
    assert!(number("dropped") >= 2, "{frames}");
    assert_eq!(
        files(&here, ".provisional").len() as u64,
        6 + number("done")
    );
    // No worker is there: the same bits are computed here, and there is nothing to audit.
    let nobody = format!("unix:{}", here.at("nobody"));
    with(&["--worker", &nobody]).refused(&["no worker could do it"]);
    let ran = with(&["--worker", &nobody, "--finish-locally"]).accepted();
    assert!(
        ran.err.contains("6 of 6 inferences were finished here"),
        "{ran:?}"
    );
    assert_eq!(all(), remote);
    let told = here.json("report.json");
    assert_eq!(told["finished_here"], 6);
    assert_eq!(told["verdict"], "accepted");
    // A deadline that is over before anybody is asked.
    let late = ["--worker", &worker.address, "--deadline", "0"];
    with(&late).refused(&["--deadline allows more"]);
    with(&[&late[..], &["--finish-locally"]].concat()).accepted();
    assert_eq!(all(), remote);
}

#[test]
fn what_a_liar_answered_is_computed_here_where_that_is_asked_for() {
    let here = Folder::new();
    let wrong = Wrong::Made {
        tensor: 3,
        element: 0,
    };
    let worker = Wrongdoer::start(&here, wrong);
    let (one, two) = (input(&here, 0), input(&here, 1));
    let inputs = ["--input", &one, "--input", &two];
    let (out, report) = (here.at("out.npz"), here.at("report.json"));
    let tell = ["--output", &out, "--report", &report];
    let both = || ["0/logits", "1/logits"].map(|key| bits(here.at("out.npz"), key));
    let local = ["run", TINY, "--preset", "local-exact"];
    here.larvatus(&[&local[..], &inputs, &tell].concat())
        .accepted();
    let exact = both();
    let more = ["--worker", &worker.address, "--audit", "1", "--audit-now"];
    let args = [&inputs[..], &tell, &more, &["--finish-locally"]].concat();
    let ran = run(&here, &args);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("lied"), "{ran:?}");
    assert_eq!(both(), exact);
    let told = here.json("report.json");
    assert_eq!(
        (&told["finished_here"], &told["audit"]["rejected"]),
        (&2.into(), &2.into())
    );
}

#[test]
fn evidence_for_one_judge_is_read_by_that_judge_only() {
    let here = Folder::new();
    let wrong = Wrong::Made {
        tensor: 3,
        element: 0,
    };
    let worker = Wrongdoer::start(&here, wrong);
    let x = input(&here, 0);
    let [secret, other] = ["judge.key", "other.key"].map(|name| here.at(name));
    let new_key = |file: &str| {
        let made = here.larvatus(&["judge", "--new-key", file, "--json"]);
        let judge = made.accepted().document()["judge"].clone();
        judge.as_str().unwrap().to_owned()
    };
    let judge = new_key(&secret);
    new_key(&other);
    // A key that is there is not overwritten.
    here.larvatus(&["judge", "--new-key", &secret])
        .refused(&["judge.key"]);
    let args = ["--input", &x, "--worker", &worker.address, "--audit", "1"];
    run(&here, &args).accepted();
    let ran = audit(&here, &["--worker", &worker.address, "--judge", &judge]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let evidence = here.at("records/00000000.evidence");
    let key = larvatus_proto::receipt::Signer::new(WORKER).public();
    let key = key.to_string();
    let args = ["judge", &evidence, "--worker-key", &key];
    here.larvatus(&args).refused(&["sealed", "--key"]);
    let with = |file: &str| here.larvatus(&[&args[..], &["--key", file]].concat());
    with(&other).refused(&["sealed to judge", &judge]);
    with(&here.at("none")).refused(&["no key"]);
    assert!(with(&secret).accepted().out.contains("the worker lied"));
    audit(&here, &["--judge", "12"]).refused(&["64 hexadecimal digits"]);
}

#[test]
fn a_lie_is_rejected_and_anybody_can_judge_it() {
    let here = Folder::new();
    let wrong = Wrong::Made {
        tensor: 3,
        element: 0,
    };
    let worker = Wrongdoer::start(&here, wrong);
    let x = input(&here, 0);
    let args = ["--input", &x, "--worker", &worker.address, "--audit", "1"];
    run(&here, &args).accepted();
    let ran = audit(&here, &["--worker", &worker.address]);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.err.contains("record 0 is rejected"), "{ran:?}");
    assert_eq!(states(&ran.document()), ["rejected"]);
    assert_eq!(files(&here, ".evidence"), ["00000000.evidence"]);

    let evidence = here.at("records/00000000.evidence");
    let key = larvatus_proto::receipt::Signer::new(WORKER).public();
    let key = key.to_string();
    let judge =
        |file: &str, key: &str| here.larvatus(&["judge", file, "--worker-key", key, "--json"]);
    let shown = judge(&evidence, &key).accepted().document();
    assert_eq!(shown["lied"], true);
    assert!(
        !shown["discloses"].as_array().unwrap().is_empty(),
        "{shown}"
    );
    assert_eq!(shown["worker_key"], key);
    // Somewhere else, with the graph named.
    let moved = here.write("moved.evidence", fs::read(&evidence).unwrap());
    here.larvatus(&["judge", &moved, "--worker-key", &key])
        .refused(&["cannot read", ".graph"]);
    let graph = files(&here, ".graph").remove(0);
    let graph = here.at(&format!("records/{graph}"));
    let named = ["judge", &moved, "--worker-key", &key, "--graph", &graph];
    let told = here.larvatus(&named).accepted();
    assert!(told.out.contains("the worker lied"), "{}", told.out);
    assert!(told.out.contains("the evidence discloses"), "{}", told.out);

    // Nothing is sealed, so no key opens it.
    let secret = here.at("judge.key");
    let made = here.larvatus(&["judge", "--new-key", &secret, "--json"]);
    assert!(made.accepted().document()["judge"].is_string());
    here.larvatus(&["judge", &evidence, "--worker-key", &key, "--key", &secret])
        .refused(&["not sealed"]);

    // Not another's lie, not with other bytes, and no file of something else.
    let other = "11".repeat(32);
    let ran = judge(&evidence, &other);
    assert_eq!(
        (ran.code, &ran.document()["lied"]),
        (Some(1), &Value::Bool(false))
    );
    let mut bytes = fs::read(&evidence).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let forged = here.write("records/forged.evidence", &bytes);
    here.larvatus(&["judge", &forged, "--worker-key", &key])
        .sentence(1, &["no lie is shown"]);
    let cut = here.write("records/cut.evidence", &bytes[..last]);
    here.larvatus(&["judge", &cut, "--worker-key", &key])
        .refused(&["evidence", "needed"]);
    let receipt = here.at("records/00000000.receipt");
    here.larvatus(&["judge", &receipt, "--worker-key", &key])
        .refused(&["evidence"]);
    let rejected = here.larvatus(&["verify-receipt", &receipt, "--json"]);
    assert_eq!(rejected.accepted().document()["verdict"], "rejected");
}

#[test]
fn a_lie_is_told_by_audits_in_the_background() {
    let here = Folder::new();
    let wrong = Wrong::Made {
        tensor: 3,
        element: 0,
    };
    let worker = Wrongdoer::start(&here, wrong);
    let x = input(&here, 0);
    let args = ["--input", &x, "--worker", &worker.address];
    let ran = run(
        &here,
        &[&args[..], &["--audit", "1", "--audit-now"]].concat(),
    );
    ran.sentence(1, &["lied", "record 0", "does not recompute"]);
    assert_eq!(files(&here, ".evidence").len(), 1);
}

#[test]
fn a_worker_that_is_gone_is_never_settled() {
    let here = Folder::new();
    let x = input(&here, 0);
    let address = {
        let worker = Worker::tcp(&here);
        run(&here, &["--input", &x, "--worker", &worker.address]).accepted();
        worker.address.clone()
    };
    let ran = audit(&here, &["--worker", &address, "--deadline", "1"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("not settled"), "{ran:?}");
    assert_eq!(states(&ran.document()), ["worker failed"]);
    let receipt = here.at("records/00000000.receipt");
    let pending = here.larvatus(&["verify-receipt", &receipt, "--json"]);
    assert_eq!(pending.accepted().document()["verdict"], "pending");
    // It is over: nothing brings it back.
    let again = audit(&here, &[]).accepted();
    assert_eq!(states(&again.document()), ["worker failed"]);
}

#[test]
fn a_worker_that_has_lost_its_traces_is_not_settled() {
    let here = Folder::new();
    let key = here.at("worker.key");
    let x = input(&here, 0);
    let start = || {
        let more = ["--receipt-key", &key];
        Worker::serving(&here, "worker", "tcp://127.0.0.1:0", &more)
    };
    {
        let worker = start();
        run(&here, &["--input", &x, "--worker", &worker.address]).accepted();
    }
    // The same key, another process.
    let worker = start();
    let ran = audit(&here, &["--worker", &worker.address]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.contains("no trace"), "{ran:?}");
    assert_eq!(states(&ran.document()), ["worker failed"]);
}

#[test]
fn records_survive_a_kill() {
    let here = Folder::new();
    let worker = Worker::tcp(&here);
    let x = input(&here, 0);
    let (key, records) = (here.at("receipt.key"), here.at("records"));
    let mut args = vec![
        "run",
        TINY,
        "--preset",
        "whole-audited",
        "--receipt-key",
        &key,
    ];
    args.extend([
        "--audit-dir",
        &records,
        "--worker",
        &worker.address,
        "--window",
        "1",
    ]);
    for _ in 0..2000 {
        args.extend(["--input", &x]);
    }
    let mut child = here
        .command(&args)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let there = |name: &str| Path::new(&records).join(name).exists();
    assert!(within(|| there("00000003.provisional")), "no record came");
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = fs::remove_dir_all(here.tmp());
    fs::create_dir_all(here.tmp()).unwrap();
    let left = audit(&here, &[]).accepted().document();
    let left = left["provisional"].as_u64().unwrap();
    assert!((4..2000).contains(&left), "{left}");
    let settled = audit(&here, &["--worker", &worker.address]).accepted();
    assert_eq!(settled.document()["settled"], left);
    // The next run goes on with other numbers.
    run(&here, &["--input", &x, "--worker", &worker.address]).accepted();
    let names = files(&here, ".provisional");
    assert_eq!(names, ["00002000.provisional"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let here = Folder::new();
    let x = input(&here, 0);
    let no_folder = ["run", TINY, "--preset", "whole-audited", "--input", &x];
    here.larvatus(&no_folder).refused(&["--audit-dir"]);
    run(&here, &["--input", &x]).refused(&["--worker", "--audit-now"]);
    let tickets = ["--input", &x, "--audit-now", "--store", &here.at("store")];
    run(&here, &tickets).refused(&["a store of tickets"]);
    let part = ["--input", &x, "--audit-now", "--audit", "0"];
    run(&here, &part).refused(&["--audit 0"]);
    let records = here.at("records");
    here.larvatus(&["run", TINY, "--input", &x, "--audit-dir", &records])
        .refused(&["whole-audited"]);
    let store = here.at("store");
    let provision = [
        "provision",
        TINY,
        "--preset",
        "whole-audited",
        "--tickets",
        "1",
    ];
    here.larvatus(&[&provision[..], &["--store", &store]].concat())
        .refused(&["whole network"]);
    here.larvatus(&["plan", TINY, "--preset", "whole-audited", "--audit", "2"])
        .refused(&["--audit"]);
    here.larvatus(&["audit", &here.at("nowhere")])
        .refused(&["no folder"]);
    let evidence = here.write("evidence", b"what");
    here.larvatus(&["judge", &evidence, "--worker-key", "12"])
        .refused(&["64 hexadecimal digits"]);
    // A worker that signs with another key than the one named.
    let worker = Worker::tcp(&here);
    let other = "22".repeat(32);
    let named = [
        "--input",
        &x,
        "--worker",
        &worker.address,
        "--worker-key",
        &other,
    ];
    run(&here, &named).refused(&["signs with key"]);
}
