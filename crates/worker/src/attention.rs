//! Whether a worker takes new work just now: its owner may want the machine for something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether new work is taken; whoever watches the machine sets it. Clones are one and the same.
///
/// While it is paused, offers and the first rounds of inferences are refused, and the peer hears that it may ask again.
/// Later rounds are computed: an inference that has begun costs least when it is finished.
#[derive(Clone, Debug, Default)]
pub struct Attention(Arc<AtomicBool>);

impl Attention {
    /// Takes new work, or none.
    pub fn pause(&self, paused: bool) {
        self.0.store(paused, Ordering::Relaxed);
    }

    /// Whether none is taken.
    pub fn is_paused(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
