//! `larvatus bench`: every mode, in order, none dropped.

use crate::common::{Folder, TINY};

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
