//! The presets in floats, by real processes.

use crate::common::{Folder, TINY, Worker, input};

/// The largest difference of two outputs, as a part of the largest value.
fn apart(left: &[u32], right: &[u32]) -> f32 {
    let value = |bits: &u32| f32::from_bits(*bits);
    let most = left
        .iter()
        .map(|bits| value(bits).abs())
        .fold(0.0, f32::max);
    let pairs = left.iter().zip(right);
    pairs
        .map(|(a, b)| (value(a) - value(b)).abs())
        .fold(0.0, f32::max)
        / most
}

#[test]
fn every_service_runs_and_says_what_it_leaks() {
    let here = Folder::new();
    let x = input(&here, 0);
    let truth = here.logits(&["--input", &x, "--preset", "local"]);
    let report = here.at("report.json");
    for (preset, data, weights, audit) in [
        ("verisplit", true, true, true),
        ("verisplit-privacy", true, false, false),
        ("verisplit-weights", true, true, false),
        ("verisplit-integrity", false, false, true),
    ] {
        let logits = here.logits(&[
            "--input",
            &x,
            "--preset",
            preset,
            "--danger-local-workers",
            "--mask-times",
            "32",
            "--weight-mask-times",
            "8",
            "--audit-share",
            "1",
            "--report",
            &report,
        ]);
        assert!(
            apart(&truth, &logits) < 2e-3,
            "{preset}: {}",
            apart(&truth, &logits)
        );
        let report = here.json("report.json");
        let floats = &report["floats"];
        assert_eq!(floats["data"].is_object(), data, "{preset}");
        assert_eq!(floats["weights"].is_object(), weights, "{preset}");
        assert_eq!(floats["audit"].is_object(), audit, "{preset}");
        assert_eq!(report["soundness_bits"], 0.0);
        if data {
            assert_eq!(floats["data"]["per_element"], 1.0 / 32.0);
            let elements = floats["data"]["elements"].as_f64().unwrap();
            assert_eq!(
                floats["data"]["expected"].as_f64().unwrap(),
                elements / 32.0
            );
            assert_eq!(report["input_privacy"], "leaks");
        }
        if audit {
            assert_eq!(floats["audit"]["settled"], floats["audit"]["blocks"]);
            assert!(floats["audit"]["deviation"].as_f64().unwrap() < 1.0);
        }
    }
}

#[test]
fn a_plan_in_floats_shows_its_leak() {
    let here = Folder::new();
    let args = [
        "plan",
        TINY,
        "--preset",
        "verisplit",
        "--mask-times",
        "1024",
    ];
    let shown = here.larvatus(&args).accepted();
    for words in ["1/1024", "two workers", "leaks with a chance of", "bits"] {
        assert!(shown.out.contains(words), "{}", shown.out);
    }
    let json = [&args[..], &["--json"]].concat();
    let plan = here.larvatus(&json).accepted().document();
    assert_eq!(plan["floats"]["data"]["mask_times"], 1024.0);
    assert_eq!(plan["floats"]["bits_left"], 10);
}

#[test]
fn what_makes_no_sense_in_floats_is_refused() {
    let here = Folder::new();
    let x = input(&here, 0);
    let one = Worker::listening(&here, &format!("unix:{}", here.at("one")));
    let run = |more: &[&str]| {
        let args = [&["run", TINY, "--input", &x, "--preset"], more].concat();
        here.larvatus(&args)
    };
    run(&["verisplit"]).refused(&["needs two workers"]);
    run(&["verisplit", "--worker", &one.address]).refused(&["needs two workers"]);
    run(&["verisplit-privacy", "--mask-times", "100"]).refused(&["power of two"]);
    run(&["verisplit-integrity", "--audit-share", "0"]).refused(&["--audit-share"]);
    run(&["verisplit-privacy", "--fresh-check"]).refused(&["not for verisplit-privacy"]);
    let store = here.at("store");
    run(&["verisplit-privacy", "--store", &store]).refused(&["not for verisplit-privacy"]);
    let provision = [
        "provision",
        TINY,
        "--preset",
        "verisplit",
        "--tickets",
        "1",
        "--store",
        &store,
    ];
    here.larvatus(&provision).refused(&["run and plan only"]);
}
