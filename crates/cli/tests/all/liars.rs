//! Workers that lie: exit code 1, and the report says who, where and how.

use larvatus_proto::VERSION;
use larvatus_proto::digest::Digest;
use larvatus_proto::frame::{Frame, Reply};
use serde_json::Value;

use crate::common::{Folder, TINY, Worker, input};
use crate::proxy::{Fate, Peer, Proxy, To, is_answer};

/// Runs the small model on a worker whose `which`-th answer `tamper` changes.
fn lied(
    here: &Folder,
    args: &[&str],
    which: usize,
    tamper: fn(&mut Frame),
) -> (crate::common::Ran, Value, Proxy) {
    let worker = Worker::tcp(here);
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let liar = Proxy::new(&worker.address, move |to, _, frame| {
        if to == To::Trusted && is_answer(frame) {
            let count = seen.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if count == which {
                tamper(frame);
            }
        }
        Fate::Pass
    });
    let (x, npz, report) = (input(here, 0), here.at("out.npz"), here.at("report.json"));
    let run = ["run", TINY, "--input", &x, "--output", &npz];
    let tell = ["--report", &report, "--worker", &liar.address];
    let ran = here.larvatus(&[&run[..], &tell, args].concat());
    (ran, here.json("report.json"), liar)
}

#[test]
fn one_bit_is_caught_in_every_layer_and_the_layer_is_named() {
    let here = Folder::new();
    let plan = here.larvatus(&["plan", TINY, "--json"]).accepted();
    let plan = plan.document();
    let layers = plan["layers"].as_array().unwrap();
    for (round, layer) in layers.iter().enumerate() {
        assert_eq!(layer["round"], round);
        let name = layer["name"].as_str().unwrap();
        // Also where the word was zero, the highest bit stays clear of the modulus.
        let (ran, report, liar) = lied(&here, &[], round, |frame| frame.words.own()[0] ^= 1);
        ran.sentence(1, &[&liar.address, name, "is not the product"]);
        assert_eq!(ran.out, "", "round {round}");
        let verdict = &report["verdict"];
        let who = verdict["worker"].as_str().unwrap();
        assert!(who.starts_with(&liar.address), "{who}");
        assert_eq!(verdict["layer"], name);
        assert_eq!(verdict["lie"], "product-mismatch");
        let output = here.at("out.npz");
        assert!(!std::path::Path::new(&output).exists(), "round {round}");
    }
}

#[test]
fn every_kind_of_wrong_answer_has_its_name() {
    let here = Folder::new();
    type Tamper = fn(&mut Frame);
    let cases: [(&str, bool, Tamper); 6] = [
        ("product-mismatch", true, |frame| {
            let last = frame.words.len() - 1;
            frame.words.own()[last] ^= 1;
        }),
        ("product-mismatch", true, |frame| frame.words.own().fill(0)),
        ("not-canonical", true, |frame| {
            frame.words.own()[5] = u32::MAX
        }),
        ("not-canonical", true, |frame| {
            frame.words.own()[5] = (1 << 31) - 1;
        }),
        ("answer-length", false, |frame| {
            frame.words.own().pop();
        }),
        ("unknown-call", false, |frame| {
            frame.head.copy_from_slice(&[0xff; 8]);
        }),
    ];
    for (lie, layer, tamper) in cases {
        for preset in ["slalom", "integrity"] {
            let (ran, report, _) = lied(&here, &["--preset", preset], 1, tamper);
            ran.sentence(1, &["lied"]);
            assert_eq!(report["verdict"]["lie"], lie, "{preset}");
            assert_eq!(report["verdict"]["layer"].is_string(), layer, "{lie}");
        }
    }
}

/// What `clear` gives up, so that the tests above are known to see a difference.
#[test]
fn clear_believes_a_lie() {
    let here = Folder::new();
    let (ran, report, _) = lied(&here, &["--preset", "clear"], 0, |frame| {
        frame.words.own()[0] ^= 1;
    });
    ran.accepted();
    assert_eq!(report["verdict"], "accepted");
}

#[test]
fn a_liar_ends_the_run_and_no_other_worker_is_asked() {
    let here = Folder::new();
    let honest = Worker::tcp(&here);
    let spare = Proxy::new(&honest.address, |_, _, _| Fate::Pass);
    let (ran, ..) = lied(&here, &["--worker", &spare.address], 2, |frame| {
        frame.words.own()[7] ^= 1 << 20;
    });
    ran.sentence(1, &["lied"]);
    assert_eq!(spare.requests(), []);
}

#[test]
fn a_lie_with_json_is_told_in_the_document_too() {
    let here = Folder::new();
    let (ran, report, _) = lied(&here, &["--json"], 0, |frame| frame.words.own()[9] ^= 4);
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert_eq!(ran.document(), report);
    assert_eq!(report["verdict"]["lie"], "product-mismatch");
}

#[test]
fn a_worker_that_names_another_model_lies() {
    let here = Folder::new();
    let peer = Peer::replying(vec![
        Reply::Welcome {
            version: VERSION,
            name: "other".to_owned(),
        },
        Reply::Ready {
            model: Digest([7; 32]),
        },
    ]);
    let (x, report) = (input(&here, 0), here.at("report.json"));
    let run = ["run", TINY, "--input", &x, "--report", &report];
    let ran = here.larvatus(&[&run[..], &["--worker", &peer.address]].concat());
    ran.sentence(1, &[&peer.address, "lied"]);
    let verdict = &here.json("report.json")["verdict"];
    assert_eq!(verdict["lie"], "other-model");
    assert!(verdict["layer"].is_null());
}
