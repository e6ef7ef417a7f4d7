//! Bytes that a peer, a file or a host sends to whoever verifies evidence: never a panic, and what decodes
//! encodes to the same evidence again.

#![no_main]

use std::sync::LazyLock;

use larvatus_attest::evidence::Evidence;
use larvatus_attest::policy::Policy;
use larvatus_attest::seal::Header;
use larvatus_attest::service::Question;
use larvatus_attest::statement::UnixTime;
use larvatus_attest::verify::Verifier;
use libfuzzer_sys::fuzz_target;

static VERIFIER: LazyLock<Verifier> = LazyLock::new(|| {
    let image = "00".repeat(48);
    let text = format!(
        "version = 1\nfreshness = 60\n[[simulated-not-a-tee.image]]\nmeasurement = \"{image}\"\n"
    );
    Verifier::new(Policy::from_toml(&text).unwrap()).unwrap()
});

fuzz_target!(|data: &[u8]| {
    if let Ok(evidence) = Evidence::decode(data) {
        assert_eq!(Evidence::decode(&evidence.encode()).unwrap(), evidence);
        let _ = VERIFIER.genuine(&evidence, UnixTime(1_767_225_600));
    }
    if let Some(header) = data.first_chunk() {
        let _ = Header::parse(header);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Policy::from_toml(text);
        let _ = Question::parse(text);
    }
});
