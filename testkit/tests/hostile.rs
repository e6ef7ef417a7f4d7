//! Model files of a few hundred bytes that ask for the moon: refused, at once and without a panic.

use std::alloc::System;
use std::time::{Duration, Instant};

use cap::Cap;
use larvatus::model::{Model, ModelError};
use larvatus_testkit::onnx::{Attribute, Graph};

/// More is not given, which ends the process where it is asked for without asking whether.
#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, 1 << 30);

/// A tensor `c` is added to the input; `c` is what the caller makes it.
fn with_constant(graph: Graph) -> Vec<u8> {
    graph
        .input("x", &[1, 4])
        .node("ReduceMax", &["c"], "m", &[Attribute::int("keepdims", 0)])
        .node("Add", &["x", "m"], "y", &[])
        .output("y", &[1, 4])
        .model()
}

fn load(bytes: &[u8]) -> Result<Model, ModelError> {
    let start = Instant::now();
    let result = Model::load(bytes, &[]);
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    result
}

fn refused_by_size(bytes: &[u8], name: &str) {
    match load(bytes) {
        Err(ModelError::Tensor { tensor, .. }) => assert_eq!(tensor, name),
        other => panic!("{name}: {:?}", other.err()),
    }
}

const HUGE: [i64; 3] = [1 << 33, 1 << 40, i64::MAX];

#[test]
fn a_declared_size_that_no_machine_holds_is_refused() {
    for huge in HUGE {
        let bytes = Graph::new()
            .input("x", &[1, huge as usize])
            .output("x", &[1])
            .model();
        refused_by_size(&bytes, "x");
        let bytes = Graph::new()
            .input("x", &[1])
            .floats("w", &[huge as usize], &[1.0])
            .model();
        refused_by_size(&bytes, "w");
        let graph = Graph::new().ints("s", &[1], &[huge]);
        refused_by_size(
            &with_constant(graph.node("ConstantOfShape", &["s"], "c", &[])),
            "c",
        );
    }
}

#[test]
fn padding_of_any_size_is_refused_whether_of_a_window_or_of_a_constant() {
    for huge in HUGE {
        for name in ["pads", "strides", "dilations", "kernel_shape"] {
            let count = if name == "pads" { 4 } else { 2 };
            let bytes = Graph::new()
                .input("x", &[1, 1, 4, 4])
                .floats("w", &[1, 1, 3, 3], &[1.0; 9])
                .node(
                    "Conv",
                    &["x", "w"],
                    "y",
                    &[Attribute::ints(name, &vec![huge; count])],
                )
                .open_output("y")
                .model();
            refused_by_size(&bytes, "y");
        }
        let graph = Graph::new()
            .ints("s", &[2], &[huge, 0])
            .floats("o", &[1], &[1.0]);
        refused_by_size(
            &with_constant(graph.node("Pad", &["o", "s"], "c", &[])),
            "c",
        );
    }
}

#[test]
fn a_shape_that_the_graph_only_computes_is_refused() {
    let graph = Graph::new()
        .input("x", &[1, 4])
        .ints("s", &[2], &[1 << 30, 4])
        .node("Expand", &["x", "s"], "c", &[])
        .node("ReduceMax", &["c"], "y", &[Attribute::int("keepdims", 0)])
        .output("y", &[]);
    refused_by_size(&graph.model(), "c");
}

#[test]
fn constants_that_grow_while_they_are_folded_are_refused() {
    std::panic::set_hook(Box::new(|_| {}));
    let graph = || Graph::new().floats("o", &[1], &[1.0]);
    let sized = |huge: i64| graph().ints("s", &[1], &[huge]);
    let cases = |huge: i64| {
        let ends = graph()
            .floats("from", &[], &[0.0])
            .floats("to", &[], &[huge as f32]);
        let hot = graph()
            .ints("i", &[1], &[0])
            .ints("d", &[1], &[huge])
            .floats("v", &[2], &[0.0, 1.0]);
        [
            sized(huge).node("Expand", &["o", "s"], "c", &[]),
            sized(huge).node("Tile", &["o", "s"], "c", &[]),
            ends.floats("by", &[], &[1.0])
                .node("Range", &["from", "to", "by"], "c", &[]),
            hot.node("OneHot", &["i", "d", "v"], "c", &[]),
        ]
    };
    let mut outcomes = Vec::new();
    for huge in [1 << 29, 1 << 31, 1_000_000_000_000] {
        outcomes.extend(cases(huge).map(|graph| load(&with_constant(graph)).map(|_| ())));
    }
    drop(std::panic::take_hook());
    for (index, outcome) in outcomes.iter().enumerate() {
        let refused = matches!(
            outcome,
            Err(ModelError::Engine { .. } | ModelError::Tensor { .. })
        );
        assert!(refused, "case {index}: {outcome:?}");
    }
}
