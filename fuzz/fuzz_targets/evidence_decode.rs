#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| larvatus_testkit::fuzzing::evidence_decode(bytes));
