//! The fuzz targets on a stable toolchain: every committed seed and 10,000 mutations of each corpus.

use std::alloc::System;
use std::fs;
use std::path::Path;

use cap::Cap;
use larvatus_testkit::fuzzing::{Mutations, TARGETS, Target};

/// An allocation beyond it fails, which ends the process: no few kilobytes may ask for so much.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, 1 << 30);

const CASES: usize = 10_000;

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../fuzz/corpus")
        .join(target.name);
    let files = fs::read_dir(&corpus).unwrap_or_else(|why| panic!("{}: {why}", corpus.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn replay(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = seeds(target);
    assert!(seeds.len() >= 5, "{name}: a corpus of {}", seeds.len());
    seeds.iter().for_each(|seed| (target.run)(seed));
    for (number, case) in Mutations::new(target, &seeds, 1).take(CASES).enumerate() {
        if std::panic::catch_unwind(|| (target.run)(&case)).is_err() {
            panic!("{name}: mutation {number} breaks a promise: {case:02x?}");
        }
    }
}

#[test]
fn frames_are_canonical_or_refused() {
    replay("frame_decode");
}

#[test]
fn evidence_is_canonical_or_refused() {
    replay("evidence_decode");
}

#[test]
fn models_are_loaded_or_refused() {
    // The graph engine's panics are caught; there is no need to see them.
    std::panic::set_hook(Box::new(|_| {}));
    replay("onnx_load");
    drop(std::panic::take_hook());
}

#[test]
fn policies_give_nothing_up_without_the_word() {
    replay("policy_parse");
}

#[test]
fn programs_are_canonical_or_refused() {
    replay("program_decode");
}

#[test]
fn whole_networks_are_canonical_or_refused() {
    replay("graph_decode");
}
