//! Tickets from a dealer, by real processes over TLS.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use larvatus_host::tls::Identity;
use larvatus_host::{Clock, Listener, Options, serve};
use larvatus_proto::frame::{Frame, FrameLimits, Reply};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_worker::{Cpu, Limits, Service, Store};
use serde_json::Value;

use crate::common::{Folder, Ran, TINY, Worker, bits, input};
use crate::store::provision;

const INPUTS: u32 = 6;

/// Runs several inferences of the small model, and reports.
fn run(here: &Folder, parties: &[&str]) -> (Ran, Option<Value>) {
    let inputs: Vec<String> = (0..INPUTS).map(|seed| input(here, seed)).collect();
    let inputs: Vec<&str> = inputs.iter().flat_map(|x| ["--input", x]).collect();
    let (npz, report) = (here.at("out.npz"), here.at("report.json"));
    let _ = std::fs::remove_file(&npz);
    let _ = std::fs::remove_file(&report);
    let run = ["run", TINY, "--output", &npz, "--report", &report];
    let ran = here.larvatus(&[&run[..], &inputs, parties].concat());
    let report = std::fs::exists(&report)
        .unwrap()
        .then(|| here.json("report.json"));
    (ran, report)
}

/// The outputs of the last run are those of the network run here.
fn are_exact(here: &Folder) {
    for seed in 0..INPUTS {
        let exact = here.logits(&["--preset", "local-exact", "--input", &input(here, seed)]);
        assert_eq!(bits(here.at("out.npz"), &format!("{seed}/logits")), exact);
    }
}

#[test]
fn tickets_of_a_dealer_give_the_bits_of_the_network_run_here() {
    let here = Folder::new();
    let worker = Worker::tls(&here, "worker", "w.key");
    let dealer = Worker::tls(&here, "dealer", "d.key");
    let (ran, report) = run(
        &here,
        &["--worker", &worker.address, "--dealer", &dealer.address],
    );
    let (ran, report) = (ran.accepted(), report.unwrap());
    are_exact(&here);
    let tickets = &report["tickets"];
    assert_eq!(tickets["source"], "dealer");
    assert_eq!((&tickets["dealt"], &tickets["own"]), (&6.into(), &0.into()));
    assert_eq!(tickets["dealer"], dealer.address.as_str());
    for text in [&tickets["assumes"], &report["guarantee"]] {
        assert!(text.as_str().unwrap().contains("do not pool"), "{text}");
    }
    assert!(ran.out.contains(&dealer.address), "{ran:?}");
    assert_eq!(ran.err, "");
    // The dealer's answers are as many equations again.
    let alone = run(&here, &["--worker", &worker.address]).1.unwrap();
    assert_eq!(alone["tickets"]["source"], "own");
    assert_eq!(alone["tickets"]["own"], 6);
    let bits = |report: &Value| report["soundness_bits"].as_f64().unwrap();
    assert!((bits(&alone) - bits(&report) - 1.0).abs() < 0.11);
}

#[test]
fn stored_tickets_go_first_and_the_dealer_makes_the_rest() {
    let here = Folder::new();
    let store = provision(&here, "2");
    let worker = Worker::tls(&here, "worker", "w.key");
    let dealer = Worker::tls(&here, "dealer", "d.key");
    let parties = ["--worker", &worker.address, "--dealer", &dealer.address];
    let (ran, report) = run(&here, &[&parties[..], &["--store", &store]].concat());
    let (ran, report) = (ran.accepted(), report.unwrap());
    are_exact(&here);
    let tickets = &report["tickets"];
    assert_eq!(tickets["source"], "store, dealer");
    let counts = ["stored", "dealt", "own"].map(|source| tickets[source].as_u64());
    assert_eq!(counts, [Some(2), Some(4), Some(0)]);
    for text in [&tickets["assumes"], &report["guarantee"]] {
        for assumed in ["do not pool", "storage is not rolled back"] {
            assert!(text.as_str().unwrap().contains(assumed), "{text}");
        }
    }
    assert_eq!(ran.err, "");
}

#[test]
fn a_dealer_and_a_worker_must_be_known_to_be_two_and_their_links_encrypted() {
    let here = Folder::new();
    let worker = Worker::tls(&here, "worker", "w.key");
    let dealer = Worker::tls(&here, "dealer", "d.key");
    // The dealer's key at another address.
    let second = Worker::tls(&here, "worker", "d.key");
    let plain = Worker::tcp(&here);
    let nameless = worker.address.split_once('#').unwrap().0;
    let cases: [(&[&str], &[&str]); 6] = [
        (
            &["--dealer", &dealer.address, "--worker", &dealer.address],
            &["is the dealer itself"],
        ),
        (
            &[
                "--dealer",
                &dealer.address,
                "--worker",
                &worker.address,
                "--worker",
                &second.address,
            ],
            &[&second.address, "is the dealer itself"],
        ),
        (
            &["--dealer", &dealer.address, "--worker", &plain.address],
            &[&plain.address, "tls://HOST:PORT#PIN"],
        ),
        (
            &["--dealer", &plain.address, "--worker", &worker.address],
            &[&plain.address, "tls://HOST:PORT#PIN"],
        ),
        (
            &["--dealer", nameless, "--worker", &worker.address],
            &[nameless, "#PIN"],
        ),
        (
            &["--dealer", &dealer.address],
            &["--worker tls://HOST:PORT#PIN"],
        ),
    ];
    for (parties, words) in cases {
        let (ran, report) = run(&here, parties);
        ran.refused(words);
        assert_eq!(report, None);
    }
    let clear = [
        "--dealer",
        &dealer.address,
        "--worker",
        &worker.address,
        "--preset",
        "integrity",
    ];
    run(&here, &clear).0.refused(&["--dealer", "hides nothing"]);
}

#[test]
fn without_a_dealer_the_tickets_are_made_here_and_the_user_is_told() {
    let here = Folder::new();
    let worker = Worker::tls(&here, "worker", "w.key");
    let other = Worker::tls(&here, "worker", "o.key");
    let gone = Worker::tls(&here, "dealer", "d.key").address.clone();
    for (dealer, why) in [(&gone, "nobody listens"), (&other.address, "deals nothing")] {
        let (ran, report) = run(&here, &["--worker", &worker.address, "--dealer", dealer]);
        let (ran, report) = (ran.accepted(), report.unwrap());
        assert!(
            ran.err.contains(why) && ran.err.contains("made here"),
            "{ran:?}"
        );
        assert_eq!(report["tickets"]["source"], "own");
        assert_eq!(report["tickets"]["own"], 6);
        assert!(report["tickets"]["assumes"].is_null());
        are_exact(&here);
    }
}

#[test]
fn on_one_machine_a_dealer_takes_the_word_danger() {
    let here = Folder::new();
    let socket = |name: &str| format!("unix:{}", here.at(name));
    let worker = Worker::serving(&here, "worker", &socket("w"), &[]);
    let dealer = Worker::serving(&here, "dealer", &socket("d"), &[]);
    let parties = ["--dealer", &dealer.address, "--worker", &worker.address];
    run(&here, &parties)
        .0
        .refused(&[&dealer.address, "encrypted"]);
    let danger = "--danger-local-dealer";
    let (ran, report) = run(&here, &[&parties[..], &[danger]].concat());
    ran.accepted();
    assert_eq!(report.unwrap()["tickets"]["source"], "dealer");
    are_exact(&here);
    // With the worker that the run starts by itself.
    let (ran, report) = run(&here, &["--dealer", &dealer.address, danger]);
    ran.accepted();
    assert_eq!(report.unwrap()["tickets"]["dealt"], 6);
    // One socket under two names is one party.
    std::os::unix::fs::symlink(here.at("d"), here.at("e")).unwrap();
    let same = [
        "--dealer",
        &dealer.address,
        "--worker",
        &socket("e"),
        danger,
    ];
    run(&here, &same).0.refused(&["is the dealer itself"]);
}

/// A dealer in this process that does something else from its answer number `from` on.
struct Bent {
    honest: Service,
    answers: usize,
    from: usize,
    how: How,
    gone: bool,
}

#[derive(Clone, Copy)]
enum How {
    OneMore,
    Leaves,
}

impl Machine for Bent {
    fn limits(&self) -> FrameLimits {
        self.honest.limits()
    }
    fn receive(&mut self, frame: Frame, now: Now) {
        self.honest.receive(frame, now);
    }
    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let frame = self.honest.transmit(now)?;
        let Ok(Reply::Answer { call, mut words }) = Reply::from_frame(frame.clone()) else {
            return Some(frame);
        };
        self.answers += 1;
        if self.answers > self.from {
            match self.how {
                How::OneMore => words.own()[0] = (words.own()[0] + 1) % 0x7fff_ffff,
                How::Leaves => {
                    self.gone = true;
                    return None;
                }
            }
        }
        Some(Reply::Answer { call, words }.into_frame())
    }
    fn deadline(&self) -> Option<Now> {
        self.honest.deadline()
    }
    fn tick(&mut self, now: Now) {
        self.honest.tick(now);
    }
    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.honest.disconnected(why, now);
    }
    fn finished(&self) -> bool {
        self.gone || self.honest.finished()
    }
}

/// Where such a dealer listens; it ends with the test.
struct BentDealer {
    address: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BentDealer {
    fn new(here: &Folder, from: usize, how: How) -> Self {
        let identity = Identity::open(here.at("bent.key").as_ref()).unwrap();
        let anywhere = "tls://127.0.0.1:0".parse().unwrap();
        let listener = Listener::bind_tls(&anywhere, &identity, &[]).unwrap();
        let address = listener.address().to_string();
        let stop = Arc::<AtomicBool>::default();
        let thread = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || {
                let cpu = Cpu::new(std::num::NonZeroUsize::MIN).unwrap();
                let store = Store::new(Box::new(cpu), Limits::default());
                let make = |now: Duration| -> Box<dyn Machine + Send> {
                    Box::new(Bent {
                        honest: Service::dealer(Arc::clone(&store), now),
                        answers: 0,
                        from,
                        how,
                        gone: false,
                    })
                };
                serve(
                    &listener,
                    4,
                    Options::default(),
                    Clock::start(),
                    &make,
                    &stop,
                );
            }
        });
        Self {
            address,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for BentDealer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn a_dealer_that_lies_is_named_with_layer_and_lie_and_nothing_is_written() {
    let here = Folder::new();
    let plan = here
        .larvatus(&["plan", TINY, "--json"])
        .accepted()
        .document();
    let layers = plan["layers"].as_array().unwrap();
    let worker = Worker::tls(&here, "worker", "w.key");
    for from in [0, 1, layers.len()] {
        let dealer = BentDealer::new(&here, from, How::OneMore);
        let (ran, report) = run(
            &here,
            &["--worker", &worker.address, "--dealer", &dealer.address],
        );
        let layer = &layers[from % layers.len()]["name"];
        let words = [
            "dealer",
            &dealer.address,
            layer.as_str().unwrap(),
            "u for image 0",
        ];
        ran.sentence(1, &words);
        assert!(!std::fs::exists(here.at("out.npz")).unwrap());
        let verdict = &report.unwrap()["verdict"];
        assert_eq!(verdict["dealer"], dealer.address.as_str());
        assert_eq!(
            (&verdict["layer"], &verdict["lie"]),
            (layer, &"wrong-u".into())
        );
    }
}

#[test]
fn a_dealer_that_vanishes_is_made_up_for() {
    let here = Folder::new();
    let plan = here
        .larvatus(&["plan", TINY, "--json"])
        .accepted()
        .document();
    let rounds = plan["layers"].as_array().unwrap().len();
    let worker = Worker::tls(&here, "worker", "w.key");
    let dealer = BentDealer::new(&here, 2 * rounds + 1, How::Leaves);
    let (ran, report) = run(
        &here,
        &["--worker", &worker.address, "--dealer", &dealer.address],
    );
    let (ran, report) = (ran.accepted(), report.unwrap());
    assert!(
        ran.err.contains(&dealer.address) && ran.err.contains("made here"),
        "{ran:?}"
    );
    let tickets = &report["tickets"];
    assert_eq!(tickets["source"], "dealer, own");
    assert_eq!((&tickets["dealt"], &tickets["own"]), (&2.into(), &4.into()));
    are_exact(&here);
}

#[test]
fn a_worker_that_fails_is_replaced_with_tickets_of_the_same_dealer() {
    let here = Folder::new();
    let gone = Worker::tls(&here, "worker", "g.key").address.clone();
    let worker = Worker::tls(&here, "worker", "w.key");
    let dealer = Worker::tls(&here, "dealer", "d.key");
    let workers = ["--worker", &gone, "--worker", &worker.address];
    let (ran, report) = run(
        &here,
        &[&workers[..], &["--dealer", &dealer.address]].concat(),
    );
    ran.accepted();
    assert_eq!(report.unwrap()["tickets"]["dealt"], 6);
    are_exact(&here);
}

#[test]
fn bench_measures_a_dealer() {
    let here = Folder::new();
    let worker = Worker::tls(&here, "worker", "w.key");
    let dealer = Worker::tls(&here, "dealer", "d.key");
    let parties = ["--worker", &worker.address, "--dealer", &dealer.address];
    let bench = ["bench", TINY, "--runs", "2", "--json"];
    let rows = here
        .larvatus(&[&bench[..], &parties].concat())
        .accepted()
        .document();
    let modes: Vec<_> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["mode"])
        .collect();
    let dealt = [
        "local",
        "clear",
        "+hide",
        "+check",
        "+both",
        "+both, dealer",
    ];
    assert_eq!(modes, dealt.map(Value::from).iter().collect::<Vec<_>>());
}
