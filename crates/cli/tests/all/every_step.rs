//! Workers that vanish, lag or lie at every frame of the protocol: the right bits or a clear error, in time, and
//! no pad twice. With `--finish-locally` it is always the right bits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use larvatus_proto::frame::Frame;

use crate::common::{Folder, Ran, TINY, Worker, bits, input, plain};
use crate::proxy::{Fate, Proxy, To, is_answer};
use crate::secrecy::{BY_CHANCE, equal_words};
use crate::store::{numbers, provision};

/// Runs at the same time; most of them wait.
const AT_ONCE: usize = 6;

/// What a run may take that is told to wait for a second: processes start slowly on a busy machine.
const SLOW: Duration = Duration::from_secs(15);

/// One worker of the small model, or two that see no weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Crew {
    One,
    Two,
}

impl Crew {
    fn args(self) -> &'static [&'static str] {
        match self {
            Self::One => &["--preset", "slalom"],
            Self::Two => &["--preset", "verisplit-exact", "--danger-local-workers"],
        }
    }

    /// Workers that serve together.
    fn size(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }
}

/// A place in the conversation with one of the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    crew: Crew,
    victim: usize,
    way: To,
    at: usize,
}

/// Workers that hold no model yet, or only shares of sessions that are over.
struct Stage {
    here: Folder,
    workers: Vec<Worker>,
}

impl Stage {
    fn of(workers: usize) -> Self {
        let here = Folder::new();
        let workers = (0..workers).map(|_| Worker::tcp(&here)).collect();
        Self { here, workers }
    }

    /// The workers behind proxies; `fate` decides about the frames of the `victim`.
    fn proxies(
        &self,
        victim: usize,
        fate: impl Fn(To, usize, &mut Frame) -> Fate + Clone + Send + Sync + 'static,
    ) -> Vec<Proxy> {
        let proxies = self.workers.iter().enumerate().map(|(at, worker)| {
            let fate = fate.clone();
            Proxy::new(&worker.address, move |to, count, frame| {
                match at == victim {
                    true => fate(to, count, frame),
                    false => Fate::Pass,
                }
            })
        });
        proxies.collect()
    }

    /// One inference; its first output, where it wrote one.
    fn run(&self, crew: Crew, proxies: &[Proxy], more: &[&str]) -> (Ran, Option<Vec<u32>>) {
        let (x, npz) = (input(&self.here, 0), self.here.at("out.npz"));
        let _ = std::fs::remove_file(&npz);
        let mut args = vec!["run", TINY, "--input", &x, "--output", &npz];
        args.extend(crew.args());
        args.extend(proxies.iter().flat_map(|one| ["--worker", &one.address]));
        args.extend(more);
        let ran = self.here.larvatus(&args);
        let written = std::path::Path::new(&npz).exists();
        (ran, written.then(|| bits(&npz, "logits")))
    }

    fn exact(&self) -> Vec<u32> {
        let x = input(&self.here, 0);
        self.here
            .logits(&["--input", &x, "--preset", "local-exact"])
    }
}

/// How many frames go each way between the trusted side and each worker of a crew.
fn frames(crew: Crew) -> Vec<BTreeMap<&'static str, usize>> {
    let counted = (0..crew.size()).map(|victim| {
        let stage = Stage::of(crew.size());
        let counts = Arc::<Mutex<BTreeMap<&str, usize>>>::default();
        let log = Arc::clone(&counts);
        let proxies = stage.proxies(victim, move |to, count, _| {
            let way = if to == To::Worker { "up" } else { "down" };
            log.lock().unwrap().insert(way, count + 1);
            Fate::Pass
        });
        stage.run(crew, &proxies, &[]).0.accepted();
        let counts = counts.lock().unwrap();
        counts.clone()
    });
    counted.collect()
}

/// Every frame of every conversation of a crew, but the goodbye.
fn steps(crew: Crew) -> Vec<Step> {
    let of_worker = |(victim, counts): (usize, BTreeMap<&str, usize>)| {
        let up = (0..counts["up"] - 1).map(|at| (To::Worker, at));
        let down = (0..counts["down"]).map(|at| (To::Trusted, at));
        let all: Vec<_> = up.chain(down).collect();
        let step = move |(way, at)| Step {
            crew,
            victim,
            way,
            at,
        };
        all.into_iter().map(step)
    };
    let steps: Vec<Step> = frames(crew)
        .into_iter()
        .enumerate()
        .flat_map(of_worker)
        .collect();
    // Hello, offer, chunk and five calls; welcome, want, ready and five answers.
    assert_eq!(steps.len(), 16 * crew.size(), "{steps:?}");
    steps
}

fn all_steps() -> Vec<Step> {
    [Crew::One, Crew::Two].into_iter().flat_map(steps).collect()
}

/// Does all of `work`, several at a time.
fn together<T: Sync>(work: &[T], does: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(one) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    does(one);
                }
            });
        }
    });
}

/// No two uploads share more words than by chance, whatever session they belong to. Only the two workers of a
/// session get the same one, each of them once.
fn no_pad_twice(step: &Step, proxies: &[Proxy]) {
    let of_worker = |(at, one): (usize, &Proxy)| {
        let uploads = one.uploads();
        uploads.into_iter().map(move |upload| (at, upload))
    };
    let all: Vec<(usize, Vec<u32>)> = proxies.iter().enumerate().flat_map(of_worker).collect();
    for (at, (who, one)) in all.iter().enumerate() {
        for (other, two) in &all[at + 1..] {
            let same = equal_words(std::slice::from_ref(one), std::slice::from_ref(two));
            let sent_to_both = step.crew == Crew::Two && who != other && one == two;
            assert!(sent_to_both || same <= BY_CHANCE, "{step:?}: {same} words");
        }
    }
}

#[test]
fn a_worker_may_vanish_at_every_step() {
    let exact = Stage::of(0).exact();
    let fates = [Fate::Cut, Fate::CutInside];
    let cases = all_steps();
    let cases = cases
        .into_iter()
        .flat_map(|step| fates.map(|fate| (step, fate)));
    together(&cases.collect::<Vec<_>>(), |(step, fate)| {
        let (step, fate) = (*step, *fate);
        let doomed = move |to, count, _: &mut Frame| match (to, count) == (step.way, step.at) {
            true => fate,
            false => Fate::Pass,
        };
        // Nobody steps in: it says who is gone, and writes nothing.
        let stage = Stage::of(step.crew.size());
        let proxies = stage.proxies(step.victim, doomed);
        let (ran, output) = stage.run(step.crew, &proxies, &[]);
        let words = [
            "no worker could do it",
            &proxies[step.victim].address,
            "link ended",
        ];
        ran.refused(&words);
        assert_eq!(output, None, "{step:?} {fate:?}");
        no_pad_twice(&step, &proxies);
        // Or it is done here.
        let stage = Stage::of(step.crew.size());
        let proxies = stage.proxies(step.victim, doomed);
        let report = stage.here.at("report.json");
        let (ran, output) = stage.run(
            step.crew,
            &proxies,
            &["--finish-locally", "--report", &report],
        );
        let ran = ran.accepted();
        assert_eq!(output.as_ref(), Some(&exact), "{step:?} {fate:?}");
        assert!(ran.err.contains("1 of 1 inferences"), "{ran:?}");
        assert_eq!(stage.here.json("report.json")["finished_here"], 1);
        // One more worker steps in, in a session with other secrets.
        let stage = Stage::of(step.crew.size() + 1);
        let proxies = stage.proxies(step.victim, doomed);
        let (ran, output) = stage.run(step.crew, &proxies, &[]);
        let ran = ran.accepted();
        assert_eq!(output.as_ref(), Some(&exact), "{step:?} {fate:?}");
        assert!(ran.err.contains(&proxies[step.victim].address), "{ran:?}");
        plain(&ran.err);
        no_pad_twice(&step, &proxies);
        let served = proxies.iter().filter(|one| one.uploads().len() >= 5);
        assert!(served.count() >= step.crew.size(), "{step:?} {fate:?}");
    });
}

#[test]
fn a_worker_may_vanish_after_the_last_answer() {
    let exact = Stage::of(0).exact();
    for crew in [Crew::One, Crew::Two] {
        for (victim, counts) in frames(crew).into_iter().enumerate() {
            let goodbye = counts["up"] - 1;
            let stage = Stage::of(crew.size());
            let proxies = stage.proxies(victim, move |to, count, _| {
                match (to, count) == (To::Worker, goodbye) {
                    true => Fate::Cut,
                    false => Fate::Pass,
                }
            });
            let (ran, output) = stage.run(crew, &proxies, &[]);
            ran.accepted();
            assert_eq!(output.as_ref(), Some(&exact), "{crew:?} {victim}");
        }
    }
}

/// From a step on it neither reads nor answers.
#[test]
fn a_worker_may_lag_at_every_step() {
    let exact = Stage::of(0).exact();
    together(&all_steps(), |step| {
        let step = *step;
        let lags = move |to, count, _: &mut Frame| match (to, count) == (step.way, step.at) {
            true => Fate::Hold,
            false => Fate::Pass,
        };
        let stage = Stage::of(step.crew.size() + 1);
        let proxies = stage.proxies(step.victim, lags);
        let started = Instant::now();
        let (ran, output) = stage.run(step.crew, &proxies, &["--timeout", "1"]);
        assert!(
            started.elapsed() < SLOW,
            "{step:?}: {:?}",
            started.elapsed()
        );
        ran.accepted();
        assert_eq!(output.as_ref(), Some(&exact), "{step:?}");
        no_pad_twice(&step, &proxies);
        // One deadline for all workers together, whatever each reply may take.
        let stage = Stage::of(step.crew.size());
        let proxies = stage.proxies(step.victim, lags);
        let started = Instant::now();
        let (ran, output) = stage.run(
            step.crew,
            &proxies,
            &["--deadline", "1.5", "--finish-locally"],
        );
        assert!(
            started.elapsed() < SLOW,
            "{step:?}: {:?}",
            started.elapsed()
        );
        let ran = ran.accepted();
        assert_eq!(output.as_ref(), Some(&exact), "{step:?}");
        assert!(ran.err.contains("--deadline"), "{step:?}: {ran:?}");
    });
}

/// Changes a frame; the frame before it on the same way is at hand.
type Tamper = fn(&mut Frame, Option<&Frame>);

const TAMPERS: [(&str, Tamper); 11] = [
    ("another kind", |frame, _| frame.kind ^= 1),
    ("no kind", |frame, _| frame.kind = 0),
    ("first field", |frame, _| {
        if let Some(byte) = frame.head.first_mut() {
            *byte ^= 1;
        }
    }),
    ("last field", |frame, _| {
        if let Some(byte) = frame.head.last_mut() {
            *byte ^= 0x80;
        }
    }),
    ("short head", |frame, _| {
        frame.head.pop();
    }),
    ("one bit", |frame, _| {
        if let Some(word) = frame.words.own().last_mut() {
            *word ^= 1;
        }
    }),
    ("zeros", |frame, _| frame.words.own().fill(0)),
    ("no field elements", |frame, _| {
        frame.words.own().fill(u32::MAX);
    }),
    ("one word less", |frame, _| {
        frame.words.own().pop();
    }),
    ("the words it said before", |frame, before| {
        if let Some(before) = before {
            frame.words = before.words.clone();
        }
    }),
    // To a call that is answered already: no lie, but then the answer lacks.
    ("what it said before", |frame, before| {
        if let Some(before) = before {
            *frame = before.clone();
        }
    }),
];

#[test]
fn a_worker_may_lie_at_every_step() {
    let exact = Stage::of(0).exact();
    let steps = all_steps();
    let steps = steps.into_iter().filter(|step| step.way == To::Trusted);
    let cases: Vec<_> = steps
        .flat_map(|step| TAMPERS.map(|tamper| (step, tamper)))
        .collect();
    let lies = AtomicUsize::new(0);
    together(&cases, |(step, (name, tamper))| {
        let (step, tamper) = (*step, *tamper);
        let before = Arc::<Mutex<Option<Frame>>>::default();
        let changed = Arc::<Mutex<bool>>::default();
        let seen = Arc::clone(&changed);
        let liar = move |to, count, frame: &mut Frame| {
            if to == To::Trusted {
                let honest = frame.clone();
                let mut before = before.lock().unwrap();
                if count == step.at {
                    tamper(frame, before.as_ref());
                    // An answer to this call, and another one.
                    let same_call = frame.head == honest.head && is_answer(&honest);
                    *seen.lock().unwrap() = same_call && frame.words != honest.words;
                }
                *before = Some(honest);
            }
            Fate::Pass
        };
        let stage = Stage::of(step.crew.size());
        let proxies = stage.proxies(step.victim, liar);
        let report = stage.here.at("report.json");
        let more = ["--finish-locally", "--timeout", "2", "--report", &report];
        let (ran, output) = stage.run(step.crew, &proxies, &more);
        let about = || format!("{step:?} {name}: {ran:?}");
        // The right bits whatever happened, and a lie is never passed over.
        assert_eq!(output.as_ref(), Some(&exact), "{}", about());
        let verdict = &stage.here.json("report.json")["verdict"];
        match ran.code {
            Some(0) => {
                assert_eq!(verdict, "accepted", "{}", about());
                assert!(!*changed.lock().unwrap(), "{}", about());
            }
            Some(1) => {
                lies.fetch_add(1, Ordering::Relaxed);
                let who = verdict["worker"].as_str().unwrap();
                assert!(who.contains(&proxies[step.victim].address), "{}", about());
                plain(&ran.err);
            }
            _ => panic!("{}", about()),
        }
    });
    // Three workers in all; of each, five answers with at least five ways to change their words.
    assert!(lies.into_inner() >= 3 * 5 * 5);
}

/// A stored ticket that went out with a worker that vanished is spent; one that nobody saw is not.
#[test]
fn no_stored_ticket_is_lost_or_used_twice() {
    let exact = Stage::of(0).exact();
    for answer in 0..5 {
        let stage = Stage::of(2);
        let store = provision(&stage.here, "3");
        let proxies = stage.proxies(0, move |to, count, _| {
            match (to, count) == (To::Trusted, 3 + answer) {
                true => Fate::Cut,
                false => Fate::Pass,
            }
        });
        let (ran, output) = stage.run(Crew::One, &proxies, &["--store", &store]);
        ran.accepted();
        assert_eq!(output.as_ref(), Some(&exact), "answer {answer}");
        assert_eq!(numbers(&store), [2], "answer {answer}");
        let step = Step {
            crew: Crew::One,
            victim: 0,
            way: To::Trusted,
            at: 3 + answer,
        };
        no_pad_twice(&step, &proxies);
    }
    let stage = Stage::of(1);
    let store = provision(&stage.here, "1");
    let proxies = stage.proxies(0, |_, _, _| Fate::Cut);
    let (ran, output) = stage.run(
        Crew::One,
        &proxies,
        &["--store", &store, "--finish-locally"],
    );
    ran.accepted();
    assert_eq!(output.as_ref(), Some(&exact));
    assert_eq!(numbers(&store), [0]);
}

#[test]
fn a_deadline_that_is_over_asks_nobody() {
    let stage = Stage::of(1);
    let proxies = stage.proxies(0, |_, _, _| Fate::Pass);
    let (ran, _) = stage.run(Crew::One, &proxies, &["--deadline", "0"]);
    ran.refused(&["no worker could do it", "--deadline"]);
    assert_eq!(proxies[0].requests(), []);
    let (ran, _) = stage.run(Crew::One, &proxies, &["--deadline", "nan"]);
    ran.refused(&["--deadline", "seconds"]);
}
