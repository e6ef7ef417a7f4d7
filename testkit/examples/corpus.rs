//! Writes the seeds of the fuzz targets to `fuzz/corpus`, one directory a target.

use std::fs;
use std::path::Path;

use larvatus::policy::Hiding;
use larvatus::whole::Whole;
use larvatus_proto::VERSION;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, Reply, Request, Seed};
use larvatus_testkit::models;

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
