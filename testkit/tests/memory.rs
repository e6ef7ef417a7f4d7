//! What a session holds, measured by the allocator; alone in its process, so that nothing else counts.

use std::alloc::System;

use cap::Cap;
use larvatus::policy::Hiding;
use larvatus::session::Settings;
use larvatus_testkit::models;
use larvatus_testkit::pair::{Pair, Setup, honest};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Most bytes held during `inferences` through a window of eight, beyond what was held before.
fn peak(inferences: u64) -> usize {
    let network = models::small_cnn(1);
    let plan = network.plan(Hiding::Field);
    let settings = Settings {
        window: 8,
        ..Settings::default()
    };
    let mut pair = Pair::new(
        &plan,
        honest(),
        Setup {
            settings,
            kept: false,
            ..Setup::default()
        },
    );
    pair.infer(network.random(0)).unwrap();
    let inputs: Vec<_> = (0..inferences).map(|seed| network.random(seed)).collect();
    // The allocator knows its highest mark only: a block brings what is held up to it.
    let block = std::hint::black_box(vec![0_u8; HEAP.max_allocated() - HEAP.allocated()]);
    let mark = HEAP.max_allocated();
    let results = pair.run_many(inputs);
    assert!(results.iter().all(Result::is_ok));
    drop(block);
    HEAP.max_allocated() - mark
}

#[test]
fn memory_follows_the_window_and_not_the_number_of_inferences() {
    let (few, many) = (peak(8), peak(256));
    println!("8 inferences: {few} bytes at most; 256: {many}");
    // This network's tickets, live tensors and frames take some 5.5 KiB an inference.
    assert!(few <= 8 * (8 << 10), "{few}");
    // One that waits or has ended takes its place in a queue, no more.
    assert!(many <= few + 248 * 128, "{many}");
}
