#![no_main]

use libfuzzer_sys::fuzz_target;

// The fuzzer's own hook ends the process at any panic; those of the graph engine are caught, and
// one that escapes ends it all the same.
fuzz_target!(
    init: std::panic::set_hook(Box::new(|_| {})),
    |bytes: &[u8]| larvatus_testkit::fuzzing::onnx_load(bytes)
);
