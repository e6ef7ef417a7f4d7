//! `larvatus bench`: every mode, in order, none dropped.

use crate::common::{Folder, TINY};
use serde_json::Value;

const MODES: [&str; 5] = ["local", "clear", "+hide", "+check", "+both"];
const FRESH: [&str; 2] = ["+check, fresh", "+both, fresh"];

#[test]
fn the_rows_are_there_in_order() {
    let here = Folder::new();
    let ran = here.larvatus(&["bench", TINY, "--runs", "2", "--json", "--fresh-check"]);
    let ran = ran.accepted();
    assert_eq!(ran.err, "");
    let document = ran.document();
    let rows = document.as_array().unwrap();
    let modes: Vec<_> = rows
        .iter()
        .map(|row| row["mode"].as_str().unwrap())
        .collect();
    assert_eq!(modes, [&MODES[..], &FRESH].concat());
    for row in rows {
        let mode = row["mode"].as_str().unwrap();
        let number = |key: &str| row[key].as_f64().unwrap_or_else(|| panic!("{key}: {row}"));
        assert!(number("latency_p50_ms") > 0.0);
        assert!(number("latency_p99_ms") >= number("latency_p50_ms"));
        assert!(number("trusted_cpu_ms") >= 0.0);
        let away = mode != "local";
        assert_eq!(number("round_trips"), if away { 5.0 } else { 0.0 });
        assert_eq!(row["bytes"]["up"].as_u64() > Some(0), away, "{mode}");
        assert_eq!(row["bytes"]["down"].as_u64() > Some(0), away, "{mode}");
        assert_eq!(number("offline_cpu_ms") > 0.0, away, "{mode}");
        let guarantee = row["guarantee"].as_str().unwrap();
        let hides = mode == "+hide" || mode.starts_with("+both");
        let checks = mode.starts_with("+check") || mode.starts_with("+both");
        assert_eq!(guarantee.contains("perfect"), hides, "{mode}: {guarantee}");
        assert_eq!(guarantee.contains("2^-"), checks, "{mode}: {guarantee}");
    }
}

#[test]
fn the_table_has_the_same_rows() {
    let here = Folder::new();
    let ran = here.larvatus(&["bench", TINY, "--runs", "1"]).accepted();
    let first = |line: &str| line.split_whitespace().next().unwrap_or("").to_owned();
    let lines: Vec<String> = ran.out.lines().map(first).collect();
    assert_eq!(lines[1..6], MODES);
}

#[test]
fn several_in_flight_are_measured_where_that_is_asked_for() {
    let here = Folder::new();
    let args = ["bench", TINY, "--runs", "1", "--window", "1,4"];
    let ran = here.larvatus(&[&args[..], &["--json"]].concat()).accepted();
    let document = ran.document();
    for row in document.as_array().unwrap() {
        if row["mode"] == "local" {
            assert!(row.get("throughput").is_none());
            continue;
        }
        let windows = row["throughput"].as_array().unwrap();
        let number = |one: &Value, key: &str| one[key].as_f64().unwrap();
        for (one, (window, inferences)) in windows.iter().zip([(1.0, 2.0), (4.0, 8.0)]) {
            assert_eq!(number(one, "window"), window);
            assert_eq!(number(one, "inferences"), inferences);
            assert!(number(one, "per_second") > 0.0);
            assert!((0.0..=1.0).contains(&number(one, "idle")));
        }
        assert_eq!(windows.len(), 2);
        let hides = row["mode"] == "+hide" || row["mode"] == "+both";
        assert_eq!(row["memory"]["tickets"].as_u64() > Some(0), hides, "{row}");
    }
    let ran = here.larvatus(&args).accepted();
    assert!(ran.out.contains("trusted side waits") && ran.out.contains("check vectors"));
    for wrong in ["0", "17"] {
        let ran = here.larvatus(&["bench", TINY, "--window", wrong]);
        ran.refused(&["1 to 16"]);
    }
}
