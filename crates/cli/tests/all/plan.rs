//! `larvatus plan`: the table and the document say the same.

use serde_json::Value;

use crate::common::{Folder, TINY, input};

#[test]
fn the_table_names_every_layer_and_the_totals() {
    let here = Folder::new();
    let table = here.larvatus(&["plan", TINY]).accepted();
    assert_eq!(table.err, "");
    let plan = here.larvatus(&["plan", TINY, "--json"]).accepted();
    assert_eq!(plan.err, "");
    let plan = plan.document();
    let head = table.out.lines().next().unwrap();
    for column in [
        "layer",
        "op",
        "shape",
        "MACs",
        "up",
        "down",
        "placement",
        "guarantee",
        "why",
    ] {
        assert!(head.contains(column), "{column} is not in: {head}");
    }
    let layers = plan["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 5);
    for layer in layers {
        let name = layer["name"].as_str().unwrap();
        let line = table.out.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no row for {name}"));
        assert!(line.contains(layer["op"].as_str().unwrap()), "{line}");
        assert!(line.contains(layer["why"].as_str().unwrap()), "{line}");
    }
    for word in ["guarantee:", "expected:", "round trips"] {
        assert!(table.out.contains(word), "{word} is not in: {}", table.out);
    }
}

#[test]
fn a_reader_that_leaves_is_no_fault() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let child = std::process::Command::new(env!("CARGO_BIN_EXE_larvatus"))
        .args(["plan", TINY, "--json"])
        .env("RUST_BACKTRACE", "1")
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(141));
    assert_eq!(String::from_utf8(ended.stderr).unwrap(), "");
}

#[test]
fn the_document_adds_up() {
    let here = Folder::new();
    let plan = |preset: &str| {
        let ran = here.larvatus(&["plan", TINY, "--json", "--preset", preset]);
        ran.accepted().document()
    };
    let slalom = plan("slalom");
    let sum = |key: &str| -> u64 {
        let layers = slalom["layers"].as_array().unwrap().iter();
        layers.map(|layer| layer[key].as_u64().unwrap()).sum()
    };
    // conv1, depthwise, pointwise, strided, dense.
    let macs = 256 * 8 * 27 + 256 * 8 * 9 + 256 * 8 * 8 + 64 * 16 * 72 + 160;
    assert_eq!(sum("macs"), macs);
    assert_eq!(slalom["macs"], macs);
    assert_eq!(slalom["macs_at_worker"], macs);
    assert_eq!(slalom["bytes"]["up"], sum("up"));
    assert_eq!(slalom["bytes"]["down"], sum("down"));
    assert_eq!(
        (&slalom["round_trips"], &slalom["uploads"]),
        (&5.into(), &5.into())
    );
    assert_eq!(slalom["input_privacy"], "perfect");
    assert_eq!(slalom["weight_privacy"], "none");
    let bits = |plan: &Value, key: &str| plan[key].as_f64().unwrap();
    assert!(bits(&slalom, "soundness_bits") > bits(&slalom, "soundness_bits_lifetime"));
    assert!(bits(&slalom, "soundness_bits_lifetime") >= 20.0);
    let clear = plan("clear");
    assert_eq!(clear["input_privacy"], "none");
    assert_eq!(bits(&clear, "soundness_bits"), 0.0);
    assert_eq!(plan("integrity")["input_privacy"], "none");
    assert_eq!(
        bits(&plan("integrity"), "soundness_bits"),
        bits(&slalom, "soundness_bits")
    );
}

#[test]
fn fresh_checks_hold_their_bits_for_each_inference() {
    let here = Folder::new();
    let repetitions = |text: &str, flag: &[&str]| {
        let policy = here.write("fresh.toml", text);
        let args = [&["plan", TINY, "--json", "--policy", &policy], flag].concat();
        let plan = here.larvatus(&args).accepted().document();
        plan["layers"][0]["integrity"].as_str().unwrap().to_owned()
    };
    // Five equations: 57 bits with two repetitions, over a million inferences 37.
    let demand = "soundness-bits = 50";
    assert_eq!(repetitions(demand, &[]), "Freivalds ×3");
    assert_eq!(
        repetitions(demand, &["--fresh-check"]),
        "Freivalds ×2, fresh"
    );
    let demand = "soundness-bits = 50\ncheck = \"fresh\"";
    assert_eq!(repetitions(demand, &[]), "Freivalds ×2, fresh");
}

#[test]
fn a_layer_that_the_policy_keeps_stays() {
    let here = Folder::new();
    let first = here.larvatus(&["plan", TINY, "--json"]).accepted();
    let name = first.document()["layers"][0]["name"].clone();
    let policy = here.write("keep.toml", format!("keep = [{name}]"));
    let kept = here.larvatus(&["plan", TINY, "--json", "--policy", &policy]);
    let kept = kept.accepted().document();
    let layers = kept["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 5);
    for layer in layers {
        let stays = layer["name"] == name;
        let placement = if stays { "trusted" } else { "worker" };
        assert_eq!(layer["placement"], placement, "{layer}");
    }
    assert!(kept["macs_at_worker"].as_u64() < kept["macs"].as_u64());
}

#[test]
fn rows_stand_in_the_order_of_the_graph_wherever_they_run() {
    let here = Folder::new();
    let names = |document: &Value| -> Vec<String> {
        let layers = document["layers"].as_array().unwrap().iter();
        let name = |layer: &Value| layer["name"].as_str().unwrap().to_owned();
        layers.map(name).collect()
    };
    let all = here.larvatus(&["plan", TINY, "--json"]).accepted();
    let all = names(&all.document());
    let x = input(&here, 0);
    for keep in [&[0][..], &[1], &[1, 3], &[0, 1, 2, 3, 4]] {
        let keep: Vec<&str> = keep.iter().map(|ix: &usize| all[*ix].as_str()).collect();
        let policy = here.write("keep.toml", format!("keep = {keep:?}"));
        let plan = here.larvatus(&["plan", TINY, "--policy", &policy, "--json"]);
        assert_eq!(names(&plan.accepted().document()), all, "{keep:?} kept");
        let run = ["run", TINY, "--policy", &policy, "--input", &x, "--json"];
        let report = here.larvatus(&run).accepted();
        assert_eq!(names(&report.document()), all, "{keep:?} kept");
    }
}

#[test]
fn over_a_slow_link_nothing_pays_and_the_answer_says_so() {
    let here = Folder::new();
    let rates = here.write("rates.toml", "[link]\nround-trip-us = 1e9\n");
    let policy = here.write("policy.toml", "offload = \"paying\"\n");
    let args = ["plan", TINY, "--policy", &policy, "--rates", &rates];
    let table = here.larvatus(&args).accepted();
    assert!(
        table.out.contains("nothing pays: run it locally"),
        "{}",
        table.out
    );
    let plan = here.larvatus(&[&args[..], &["--json"]].concat());
    let plan = plan.accepted().document();
    assert_eq!(plan["nothing_pays"], true);
    assert_eq!(plan["round_trips"], 0);
}

#[test]
fn rates_that_are_no_costs_are_refused() {
    let here = Folder::new();
    let rates = here.write("rates.toml", "[link]\nup-ns = -1.0\n");
    here.larvatus(&["plan", TINY, "--rates", &rates])
        .refused(&["rates.toml", "link.up-ns", "-1"]);
}

#[test]
fn a_link_that_is_slower_than_the_network_is_here_is_told_whatever_the_preset() {
    let here = Folder::new();
    let slow = here.write("slow.toml", "[link]\nround-trip-us = 1e9\n");
    let quick = here.write("quick.toml", "[local]\nconv-ns = 1.0\n");
    for preset in [
        "slalom",
        "verisplit-exact",
        "whole-audited",
        "verisplit",
        "verisplit-integrity",
    ] {
        let plan = |rates: &str, more: &[&str]| {
            let args = ["plan", TINY, "--preset", preset, "--rates", rates];
            here.larvatus(&[&args[..], more].concat()).accepted()
        };
        let told = plan(&slow, &[]).out;
        assert!(told.contains("run it locally"), "{preset}: {told}");
        assert!(told.contains("predicted: "), "{preset}: {told}");
        let predicted = plan(&slow, &["--json"]).document()["predicted"].clone();
        assert_eq!(predicted["run_locally"], true, "{preset}");
        let link = predicted["link_ms"].as_f64().unwrap();
        assert!(link >= 1e6, "{preset}: {predicted}");
        let predicted = plan(&quick, &["--json"]).document()["predicted"].clone();
        assert_eq!(predicted["link_ms"], 0.0, "{preset}");
    }
}
