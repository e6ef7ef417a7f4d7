//! What masks in floats leak, and what audits of them are worth, as a report has it.

use larvatus::faithful::Leak;
use serde::Serialize;

/// What a mode in floats gives away and how much of it was audited.
#[derive(Serialize)]
pub(crate) struct Floats {
    /// Of the 24 bits of a float, those that masks leave to an answer.
    pub(crate) bits_left: u32,
    /// Of one inference, to each worker that sees its requests.
    pub(crate) data: Option<LeakField>,
    /// Of the weights, to each of two workers, for ever.
    pub(crate) weights: Option<LeakField>,
    pub(crate) audit: Option<FloatAudit>,
}

impl Floats {
    pub(crate) fn print(&self) {
        if let Some(data) = &self.data {
            println!("leak:      {}", data.sentence("an inference's data"));
        }
        if let Some(weights) = &self.weights {
            println!("leak:      {}, for ever", weights.sentence("the weights"));
        }
        println!(
            "precision: masks leave {} of 24 bits to a layer's answer",
            self.bits_left
        );
        if let Some(audit) = &self.audit {
            println!(
                "audit:     {} of {} blocks of answers opened and recomputed, off by at most {:.1} % of what rounding explains, {:.1} ms of CPU; \
                 1, 10, 100 false blocks go unnoticed with a chance of {:.2e}, {:.2e}, {:.2e}",
                audit.settled,
                audit.blocks,
                100.0 * audit.deviation,
                audit.cpu_ms,
                audit.undetected[0],
                audit.undetected[1],
                audit.undetected[2],
            );
        }
    }
}

/// Theorem 7.2 and its corollary as numbers.
#[derive(Serialize)]
pub(crate) struct LeakField {
    pub(crate) mask_times: f64,
    pub(crate) per_element: f64,
    pub(crate) elements: u64,
    pub(crate) expected: f64,
    /// Chance that any element leaks.
    pub(crate) any: f64,
    /// Elements that did, in all inferences of this run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) failed: Option<u64>,
}

/// Theorem 7.3 as numbers.
#[derive(Serialize, Default)]
pub(crate) struct FloatAudit {
    pub(crate) share: f64,
    /// Blocks of answers that were used; each is a leaf of what workers committed to.
    pub(crate) blocks: usize,
    /// Of these, drawn, opened and recomputed.
    pub(crate) settled: usize,
    /// The largest deviation, as a fraction of what rounding explains.
    pub(crate) deviation: f64,
    /// CPU time of it, after the outputs were there.
    pub(crate) cpu_ms: f64,
    /// Chance that 1, 10 and 100 false blocks go unnoticed.
    pub(crate) undetected: [f64; 3],
}

impl LeakField {
    pub(crate) fn of(leak: Leak, failed: Option<u64>) -> Self {
        Self {
            mask_times: 1.0 / leak.per_element,
            per_element: leak.per_element,
            elements: leak.elements,
            expected: leak.expected(),
            any: leak.any(),
            failed,
        }
    }

    /// One line for people, about elements of `what`.
    pub(crate) fn sentence(&self, what: &str) -> String {
        let failed = match self.failed {
            Some(failed) => format!(", {failed} did in this run"),
            None => String::new(),
        };
        format!(
            "each of {} elements of {what} leaks with a chance of 1/{}: {:.0} are expected to{failed}",
            self.elements, self.mask_times, self.expected
        )
    }
}
