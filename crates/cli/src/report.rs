//! The report of a run; its keys are a contract with scripts.

use larvatus::plan::{Plan, Row};
use larvatus::policy::Preset;
use serde::Serialize;

use crate::store::Tickets;

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
    pub(crate) layers: Vec<LayerField>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tickets: Option<TicketsField>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) worker: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) inferences: Vec<Single>,
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

/// Where the one-time pads came from.
#[derive(Serialize)]
pub(crate) struct TicketsField {
    /// `own`, `store`, or `store, own`.
    pub(crate) source: &'static str,
    /// How many inferences had tickets from a store, and how many from this run.
    pub(crate) stored: usize,
    pub(crate) own: usize,
    /// What has to be assumed for none to be used twice; null if nothing.
    pub(crate) assumes: Option<&'static str>,
}

impl TicketsField {
    /// Nothing where nothing was hidden.
    pub(crate) fn of(tickets: &Tickets) -> Option<Self> {
        let source = match (tickets.stored, tickets.own) {
            (0, 0) => return None,
            (0, _) => "own",
            (_, 0) => "store",
            (_, _) => "store, own",
        };
        Some(Self {
            source,
            stored: tickets.stored,
            own: tickets.own,
            assumes: tickets.assumes(),
        })
    }
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
            model: plan.model().to_string(),
            plan: plan.digest().to_string(),
            preset: preset.to_owned(),
            verdict: VerdictField::Accepted("accepted"),
            soundness_bits,
            input_privacy,
            weight_privacy,
            guarantee,
            trusted_cpu_ms: Cpu::default(),
            wall_ms: 0.0,
            waiting_ms: 0.0,
            bytes: Bytes::default(),
            round_trips: 0,
            layers: layers(plan.rows(), preset),
            tickets: None,
            worker: None,
            inferences: Vec::new(),
        }
    }
}

fn layers(rows: Vec<Row>, preset: &str) -> Vec<LayerField> {
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
