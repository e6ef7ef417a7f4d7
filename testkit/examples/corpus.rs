//! Writes the seeds of the fuzz targets to `fuzz/corpus`, one directory a target.

use std::fs;
use std::path::Path;

use larvatus::audit::{Done, Outcome};
use larvatus::policy::Hiding;
use larvatus::whole::Whole;
use larvatus_proto::VERSION;
use larvatus_proto::commit::{LeafId, Root};
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, Reply, Request, Run, Seed};
use larvatus_proto::order::Summons;
use larvatus_proto::receipt::{PublicKey, Salted, Signer, Statement};
use larvatus_testkit::adversary::{Crooked, Wrong};
use larvatus_testkit::fuzzing::FUZZED_FLOORS;
use larvatus_testkit::pair::converse;
use larvatus_testkit::{models, whole};

fn main() -> std::io::Result<()> {
    for network in networks() {
        write("onnx_load", network.name, &network.bytes)?;
    }
    for network in models::all() {
        for (form, hiding) in [("", Hiding::Field), (" in clear", Hiding::Clear)] {
            let plan = network.plan(hiding);
            write(
                "program_decode",
                &format!("{}{form}", network.name),
                &plan.worker_model().program().encode(),
            )?;
        }
    }
    for network in models::all() {
        if let Ok(whole) = Whole::of_plan(&network.plan(Hiding::Field)) {
            let model = whole.model();
            let bytes = &model.blob()[..model.graph_bytes()];
            write("graph_decode", network.name, bytes)?;
        }
    }
    for (name, frame) in frames() {
        let words = frame.words.to_vec().into_iter().flat_map(u32::to_le_bytes);
        let bytes: Vec<u8> = frame
            .header()
            .into_iter()
            .chain(frame.head.clone())
            .chain(words)
            .collect();
        write("frame_decode", name, &bytes)?;
    }
    for (name, bytes) in audited() {
        write("evidence_decode", name, &bytes)?;
    }
    for (name, text) in POLICIES {
        write("policy_parse", name, text.as_bytes())?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target);
    fs::create_dir_all(&corpus)?;
    fs::write(corpus.join(name.replace(' ', "-")), bytes)
}

fn networks() -> Vec<models::Network> {
    let mut networks = models::all();
    networks.extend([
        models::non_zero(),
        models::branch_on_data(),
        models::long_sum(9).0,
    ]);
    networks
}

/// What runs of whole graphs leave: records, receipts, openings and evidence.
fn audited() -> Vec<(&'static str, Vec<u8>)> {
    let model = whole::tower(FUZZED_FLOORS, 1);
    let terms = whole::terms(&model, 1.0);
    let mut all = Vec::new();
    let wrong = Wrong::Made {
        tensor: 4,
        element: 1,
    };
    for (names, wrong) in [
        (["record", "receipt", "opening"], Wrong::Nothing),
        (["record of a lie", "receipt of a lie", "evidence"], wrong),
    ] {
        let mut peer = whole::service(&whole::store(Box::new(Crooked(wrong))));
        let mut remote = whole::agreed(&terms, &mut peer).expect("a worker");
        let input = whole::input(&model, 1);
        let record = whole::run(&mut remote, &mut peer, 1, input).expect("a run");
        all.push((names[0], record.encode()));
        let trace = record.statement().trace;
        let outcome = whole::audit(&terms, &mut remote, &mut peer, record, [1; 32]);
        match &outcome {
            Outcome::Rejected(rejected) => {
                all.push((names[1], rejected.receipt().encode()));
                let evidence = rejected.evidence().expect("of a unit");
                all.push((names[2], evidence.encode()));
            }
            Outcome::Settled(settled) => {
                all.push((names[1], settled.receipt().encode()));
                let leaves = vec![LeafId { tensor: 2, leaf: 0 }];
                let now = std::time::Duration::ZERO;
                remote.open(trace, leaves, vec![], now).expect("ready");
                converse(&mut remote, &mut peer, now);
                if let Some(Done::Opened { bytes, .. }) = remote.poll() {
                    all.push((names[2], bytes));
                }
            }
            Outcome::Unopened(unopened) => panic!("{unopened:?}"),
        }
    }
    all
}

fn frames() -> Vec<(&'static str, Frame)> {
    let model = Digest([0x5a; 32]);
    vec![
        ("hello", Request::Hello { version: VERSION }.into_frame()),
        (
            "offer",
            Request::Offer {
                model,
                program: 100,
                total: 1000,
            }
            .into_frame(),
        ),
        (
            "chunk",
            Request::Chunk {
                offset: 7,
                bytes: vec![1, 2, 3, 4, 5],
            }
            .into_frame(),
        ),
        (
            "call",
            Request::Call {
                call: 1,
                round: 2,
                words: vec![3, 4, 5].into(),
            }
            .into_frame(),
        ),
        (
            "deal",
            Request::Deal {
                call: 1,
                round: 2,
                ticket: 3,
                seed: Seed([4; 32]),
            }
            .into_frame(),
        ),
        (
            "offer-graph",
            Request::OfferGraph {
                model,
                program: 100,
                total: 1000,
            }
            .into_frame(),
        ),
        (
            "run",
            Request::Run(Run {
                call: 1,
                plan: model,
                counter: 2,
                salt: [3; 32],
                trusted: PublicKey([4; 32]),
                signature: [5; 64],
                input: vec![6, 7].into(),
            })
            .into_frame(),
        ),
        (
            "open",
            Request::Open {
                call: 1,
                summons: Summons {
                    trace: Root(model),
                    asked: vec![LeafId { tensor: 1, leaf: 2 }],
                    known: vec![LeafId { tensor: 0, leaf: 0 }],
                },
                signature: [5; 64],
            }
            .into_frame(),
        ),
        (
            "show",
            Request::Show {
                number: 1,
                root: Root(model),
                leaves: vec![LeafId { tensor: 1, leaf: 2 }],
            }
            .into_frame(),
        ),
        ("bye", Request::Bye.into_frame()),
        (
            "welcome",
            Reply::Welcome {
                version: VERSION,
                name: "cpu".into(),
            }
            .into_frame(),
        ),
        ("want", Reply::Want { model, from: 9 }.into_frame()),
        ("ready", Reply::Ready { model }.into_frame()),
        (
            "answer",
            Reply::Answer {
                call: 1,
                words: vec![6, 7].into(),
            }
            .into_frame(),
        ),
        (
            "committed",
            Reply::Committed {
                call: 1,
                root: Root(model),
                words: vec![6, 7].into(),
            }
            .into_frame(),
        ),
        (
            "signs",
            Reply::Signs {
                model,
                key: PublicKey([4; 32]),
            }
            .into_frame(),
        ),
        ("ran", ran().into_frame()),
        (
            "opened",
            Reply::Opened {
                call: 1,
                bytes: vec![1, 2, 3, 4, 5],
            }
            .into_frame(),
        ),
        (
            "failed",
            Reply::Failed {
                call: Some(3),
                message: "no".into(),
            }
            .into_frame(),
        ),
        (
            "failed-all",
            Reply::Failed {
                call: None,
                message: "no".into(),
            }
            .into_frame(),
        ),
    ]
}

fn ran() -> Reply {
    let model = Digest([0x5a; 32]);
    let (trusted, worker) = (Signer::new([1; 32]), Signer::new([2; 32]));
    let statement = Statement {
        model,
        plan: model,
        counter: 1,
        input: Salted::input(&[3; 32], b"input"),
        output: Salted::output(&[3; 32], b"output"),
        trace: Root(model),
        trusted: trusted.public(),
        worker: worker.public(),
    };
    Reply::Ran {
        call: 1,
        claim: Box::new(statement.claim(&worker).expect("its own")),
        output: vec![6, 7].into(),
    }
}

const POLICIES: [(&str, &str); 5] = [
    ("empty", ""),
    (
        "everything",
        "input-privacy = \"perfect\"\nsoundness-bits = 40\nlifetime = 1000\nweights = \"wide\"\noffload = \"paying\"\nkeep = [\"a\", \"b\"]\n",
    ),
    (
        "clear",
        "input-privacy = \"none\"\ndanger = [\"clear-input\"]\n",
    ),
    (
        "unverified",
        "soundness-bits = 0\ndanger = [\"unverified\", \"clear-input\"]\n",
    ),
    ("refused", "input-privacy = \"none\"\n"),
];
