//! The report of a run; its keys are a contract with scripts.

use larvatus::plan::{Plan, Row};
use larvatus::policy::Preset;
use larvatus_proto::digest::Digest;
use serde::Serialize;

use crate::driver::millis;
use crate::feed::Kept;
use crate::memory::Memory;
use crate::tickets::Sources;

pub(crate) use floats::{FloatAudit, Floats, LeakField};

mod floats;

/// What a run did and what it guarantees. Totals first, one object an inference under
/// `inferences` where there are several.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) model: String,
    pub(crate) plan: String,
    pub(crate) preset: String,
    pub(crate) verdict: VerdictField,
    pub(crate) soundness_bits: f64,
    pub(crate) input_privacy: String,
    pub(crate) weight_privacy: String,
    pub(crate) guarantee: String,
    pub(crate) trusted_cpu_ms: Cpu,
    pub(crate) wall_ms: f64,
    pub(crate) waiting_ms: f64,
    pub(crate) bytes: Bytes,
    pub(crate) round_trips: usize,
    pub(crate) memory: Memory,
    pub(crate) layers: Vec<LayerField>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tickets: Option<Tickets>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) audit: Option<AuditField>,
    /// What masks in floats leak, and what was audited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) floats: Option<Floats>,
    /// How a camera's frames fared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) frames: Option<Frames>,
    /// Inferences that no worker finished and that were computed here.
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) finished_here: usize,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) inferences: Vec<Single>,
}

/// What is audited of whole runs, and what that is worth.
#[derive(Serialize)]
pub(crate) struct AuditField {
    /// Where the records are.
    pub(crate) folder: String,
    pub(crate) worker_key: String,
    /// The part of the units that is looked at, of so many.
    pub(crate) fraction: f64,
    pub(crate) units: usize,
    /// The chance that an audit looks at a given unit.
    pub(crate) alpha: f64,
    /// The greatest chance that one run with a wrong unit is settled, and that all of this report's are.
    pub(crate) undetected_one: f64,
    pub(crate) undetected_all: f64,
    pub(crate) settled: u64,
    pub(crate) rejected: u64,
    pub(crate) worker_failed: u64,
    /// Their numbers.
    pub(crate) records: Vec<u64>,
}

/// `"accepted"`, or who lied where and how.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum VerdictField {
    Accepted(&'static str),
    Lie {
        worker: String,
        layer: Option<String>,
        lie: String,
    },
    DealerLie {
        dealer: String,
        layer: Option<String>,
        lie: String,
    },
}

/// Where the one-time pads and what opens them came from.
#[derive(Serialize)]
pub(crate) struct Tickets {
    /// Those of `store`, `dealer` and `own` that were used, in this order, joined by `, `.
    pub(crate) source: String,
    /// Inferences by source.
    pub(crate) stored: usize,
    pub(crate) dealt: usize,
    pub(crate) own: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) dealer: Option<String>,
    /// What the secrecy of the inputs rests on beside the plan; null if nothing.
    pub(crate) assumes: Option<String>,
}

impl Tickets {
    /// What whoever uses a dealer believes.
    pub(crate) const NO_COLLUSION: &'static str =
        "dealer and worker do not pool what they know: together they know the input";

    /// Nothing where nothing was hidden.
    pub(crate) fn of(sources: &Sources) -> Option<Self> {
        let Sources {
            stored,
            dealt,
            own,
            assumes,
            dealer,
            dealer_gone: _,
        } = sources.clone();
        let all = [(stored, "store"), (dealt, "dealer"), (own, "own")];
        let used = all.iter().filter(|(inferences, _)| *inferences > 0);
        let used: Vec<&str> = used.map(|(_, source)| *source).collect();
        let no_collusion = (dealt > 0).then_some(Self::NO_COLLUSION);
        let assumes: Vec<&str> = assumes.into_iter().chain(no_collusion).collect();
        (!used.is_empty()).then(|| Self {
            source: used.join(", "),
            stored,
            dealt,
            own,
            dealer,
            assumes: (!assumes.is_empty()).then(|| assumes.join("; ")),
        })
    }
}

#[derive(Serialize, Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) online: f64,
    pub(crate) offline: f64,
}

#[derive(Serialize, Clone, Copy, Default)]
pub(crate) struct Bytes {
    pub(crate) up: u64,
    pub(crate) down: u64,
}

/// One inference of several.
#[derive(Serialize)]
pub(crate) struct Single {
    pub(crate) input: String,
    pub(crate) wall_ms: f64,
    pub(crate) waiting_ms: f64,
    pub(crate) bytes: Bytes,
    pub(crate) round_trips: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) top: Option<Vec<(usize, String, f32)>>,
}

#[derive(Serialize)]
pub(crate) struct LayerField {
    name: String,
    op: String,
    macs: u64,
    placement: String,
    hiding: String,
    integrity: String,
    guarantee: String,
}

impl Report {
    /// A report before anything was promised or measured.
    pub(crate) fn blank(model: Digest, preset: &str) -> Self {
        Self {
            model: model.to_string(),
            plan: String::new(),
            preset: preset.to_owned(),
            verdict: VerdictField::Accepted("accepted"),
            soundness_bits: 0.0,
            input_privacy: String::new(),
            weight_privacy: String::new(),
            guarantee: String::new(),
            trusted_cpu_ms: Cpu::default(),
            wall_ms: 0.0,
            waiting_ms: 0.0,
            bytes: Bytes::default(),
            round_trips: 0,
            memory: Memory::default(),
            layers: Vec::new(),
            worker: None,
            tickets: None,
            audit: None,
            floats: None,
            frames: None,
            finished_here: 0,
            inferences: Vec::new(),
        }
    }

    /// What a run without a worker guarantees.
    pub(crate) const LOCAL: &'static str = "nothing left this machine, and nobody else computed";

    /// A report of a plan, before anything was measured.
    pub(crate) fn of_plan(plan: &Plan, preset: &str, offloads: bool) -> Self {
        let guarantees = plan.guarantees();
        let (soundness_bits, input_privacy, weight_privacy) = if offloads {
            (
                guarantees.per_inference.bits(),
                guarantees.input_privacy.to_string(),
                guarantees.weight_privacy().to_owned(),
            )
        } else {
            (0.0, "local".to_owned(), "local".to_owned())
        };
        let guarantee = if offloads {
            guarantees.sentence()
        } else {
            Self::LOCAL.to_owned()
        };
        Self {
            plan: plan.digest().to_string(),
            soundness_bits,
            input_privacy,
            weight_privacy,
            guarantee,
            layers: layers(plan.rows(), preset),
            ..Self::blank(plan.model(), preset)
        }
    }
}

/// A camera's frames.
#[derive(Serialize)]
pub(crate) struct Frames {
    /// Frames a second that came, and that were finished.
    pub(crate) fps: f64,
    pub(crate) kept_fps: f64,
    pub(crate) done: usize,
    pub(crate) dropped: usize,
    /// Places of the queue.
    pub(crate) queue: usize,
    /// From coming to finishing, of those that were finished.
    pub(crate) latency_p50_ms: f64,
    pub(crate) latency_p95_ms: f64,
}

impl Frames {
    pub(crate) fn of(kept: &Kept) -> Self {
        Self {
            fps: kept.camera.rate,
            kept_fps: kept.rate,
            done: kept.done,
            dropped: kept.dropped,
            queue: kept.camera.room,
            latency_p50_ms: millis(kept.p50),
            latency_p95_ms: millis(kept.p95),
        }
    }

    /// One line for people.
    pub(crate) fn sentence(&self) -> String {
        format!(
            "frames: {} done, {} dropped; {:.1} of {:.1} a second kept; latency p50 {:.1} ms, p95 {:.1} ms",
            self.done,
            self.dropped,
            self.kept_fps,
            self.fps,
            self.latency_p50_ms,
            self.latency_p95_ms
        )
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

pub(crate) fn layers(rows: Vec<Row>, preset: &str) -> Vec<LayerField> {
    let field = |row: Row| {
        let local = |word: &str| (word.to_owned(), "local".to_owned(), "local".to_owned());
        let (placement, hiding, integrity) = if preset == Preset::LocalExact.to_string() {
            local("trusted")
        } else {
            (
                row.placement.to_owned(),
                row.hiding.to_owned(),
                row.integrity,
            )
        };
        let guarantee = match placement.as_str() {
            "trusted" => "never leaves".to_owned(),
            _ => row.guarantee,
        };
        LayerField {
            name: row.name,
            op: row.op,
            macs: row.macs,
            placement,
            hiding,
            integrity,
            guarantee,
        }
    };
    rows.into_iter().map(field).collect()
}
