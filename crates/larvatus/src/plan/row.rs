//! A plan as a list that people and machines read.

use larvatus_kernels::linear::Shape;
use larvatus_proto::program::LayerSpec;
use serde::Serialize;

use super::{Kept, Plan};
use crate::model::linear::Kind;
use crate::policy::{CheckDraw, Hiding};

/// One linear layer of a plan.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// Its name in the graph.
    pub name: String,
    /// What it is, and what rides along with it.
    pub op: String,
    /// Its sizes.
    pub shape: String,
    /// Multiply-accumulates of one inference.
    pub macs: u64,
    /// Bytes to the worker; an upload that several layers read counts at the first.
    pub up: u64,
    /// Bytes back.
    pub down: u64,
    /// `worker` or `trusted`.
    pub placement: &'static str,
    /// Why it is placed there.
    pub why: String,
    /// How its input is hidden.
    pub hiding: &'static str,
    /// How its answer is checked.
    pub integrity: String,
    /// What that gives.
    pub guarantee: String,
    /// Round in which it is called.
    pub round: Option<usize>,
}

impl Plan {
    /// Every linear layer, in the order of the graph.
    pub fn rows(&self) -> Vec<Row> {
        let costs = self.costs();
        let away = self.layers().iter().zip(costs).map(|(layer, cost)| {
            let hiding = match self.policy().hiding() {
                Hiding::Clear => "clear",
                Hiding::Field => "one-time pad",
            };
            let repetitions = self.repetitions();
            let (integrity, soundness) = match repetitions {
                0 => ("unverified".to_owned(), "believed".to_owned()),
                n => (
                    match self.policy().check() {
                        CheckDraw::Session => format!("Freivalds ×{n}"),
                        CheckDraw::Fresh => format!("Freivalds ×{n}, fresh"),
                    },
                    format!("2^-{:.1} a lie", super::ErrorBits::of_check(n).bits()),
                ),
            };
            let privacy = match self.policy().hiding() {
                Hiding::Clear => "input visible",
                Hiding::Field => "perfect",
            };
            let placed = &layer.placed;
            let tail = placed.tail.describe();
            let op = if tail.is_empty() {
                String::new()
            } else {
                format!("+{tail}")
            };
            Row {
                name: placed.linear.name.clone(),
                op: format!("{}{op}", placed.linear.kind),
                shape: shape(&layer.spec, placed.linear.kind),
                macs: cost.macs,
                up: cost.up,
                down: cost.down,
                placement: "worker",
                why: format!(
                    "{}-bit weights, ±{} steps",
                    layer.bits,
                    placed.bound.steps()
                ),
                hiding,
                integrity,
                guarantee: format!("{privacy}, {soundness}"),
                round: Some(placed.round),
            }
        });
        let mut rows: Vec<Row> = away.collect();
        // They are in the order of the graph themselves, so each moves the later ones by one.
        for (earlier, kept) in self.kept().iter().enumerate() {
            rows.insert(kept.before + earlier, here(kept));
        }
        rows
    }
}

/// A layer that stays.
pub(crate) fn here(kept: &Kept) -> Row {
    Row {
        name: kept.name.clone(),
        op: kept.kind.to_string(),
        shape: String::new(),
        macs: kept.macs.unwrap_or(0),
        up: 0,
        down: 0,
        placement: "trusted",
        why: kept.why.to_string(),
        hiding: "local",
        integrity: "local".to_owned(),
        guarantee: "never leaves".to_owned(),
        round: None,
    }
}

/// Sizes, for people.
pub(crate) fn shape(spec: &LayerSpec, kind: Kind) -> String {
    let images = match spec.images {
        1 => String::new(),
        images => format!("{images}× "),
    };
    match &spec.shape {
        Shape::Conv(conv) => {
            let [kh, kw] = conv.kernel;
            let [h, w] = conv.input;
            let (from, to) = (conv.in_channels, conv.out_channels);
            let groups = match (conv.groups, kind) {
                (1, _) | (_, Kind::Depthwise) => String::new(),
                (groups, _) => format!(" ÷{groups}"),
            };
            format!("{images}{from}→{to} {kh}×{kw}{groups} @{h}×{w}")
        }
        Shape::MatMul(matmul) => {
            let groups = match matmul.groups {
                1 => String::new(),
                groups => format!("{groups}× "),
            };
            format!(
                "{images}{groups}{}×{}→{}",
                matmul.rows, matmul.inner, matmul.columns
            )
        }
    }
}
