//! The table by operator.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::Serialize;

use super::judge::{Judged, Verdict};

/// Counts of verdicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Cases.
    pub cases: usize,
    /// Right as stored.
    pub right: usize,
    /// Right with every input but the first as a constant.
    pub right_with_constants: usize,
    /// With at least one layer at a worker; these are among the right ones.
    pub offloaded: usize,
    /// Refused in a sentence.
    pub not_supported: usize,
    /// Wrong.
    pub wrong: usize,
    /// Panicked, died or hung.
    pub panics: usize,
}

impl Counts {
    fn add(&mut self, judged: &Judged) {
        self.cases += 1;
        self.offloaded += usize::from(judged.layers > 0);
        match &judged.verdict {
            Verdict::Right => self.right += 1,
            Verdict::RightWithConstants(_) => self.right_with_constants += 1,
            Verdict::NotSupported(_) => self.not_supported += 1,
            Verdict::Wrong(_) => self.wrong += 1,
            Verdict::Panic(_) => self.panics += 1,
        }
    }
}

/// All verdicts of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of all cases.
    pub total: Counts,
    /// By operator.
    pub operators: BTreeMap<String, Counts>,
    /// Every case, by name.
    pub cases: Vec<Judged>,
}

impl Report {
    /// Counts the verdicts.
    pub fn new(mut cases: Vec<Judged>) -> Self {
        cases.sort_by(|a, b| a.case.cmp(&b.case));
        let mut total = Counts::default();
        let mut operators: BTreeMap<String, Counts> = BTreeMap::new();
        for case in &cases {
            total.add(case);
            operators
                .entry(case.operator.clone())
                .or_default()
                .add(case);
        }
        Self {
            total,
            operators,
            cases,
        }
    }

    /// Why the run does not pass; empty where it does.
    pub fn failures(&self) -> Vec<String> {
        let wrong = self.cases.iter().filter_map(|case| match &case.verdict {
            Verdict::Wrong(what) => Some(format!("{}: wrong: {what}", case.case)),
            Verdict::Panic(what) => Some(format!("{}: panic: {what}", case.case)),
            Verdict::Right | Verdict::RightWithConstants(_) | Verdict::NotSupported(_) => None,
        });
        let mut failures: Vec<String> = wrong.collect();
        if self.total.offloaded == 0 {
            failures.push("no case had a layer at a worker".to_owned());
        }
        failures
    }

    /// The largest error of an answer from a worker, as a part of what the bound allows.
    pub fn of_bound(&self) -> f64 {
        self.cases
            .iter()
            .filter_map(|case| case.of_bound)
            .fold(0.0, f64::max)
    }

    /// The table for a terminal and for the documentation.
    pub fn table(&self) -> String {
        let mut out = String::new();
        out.push_str(
            "| operator | cases | right | right, parameters constant | at a worker | not supported | wrong | panic |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        let total = ("**all**".to_owned(), &self.total);
        let rows = self
            .operators
            .iter()
            .map(|(name, counts)| (name.clone(), counts));
        for (name, c) in std::iter::once(total).chain(rows) {
            let numbers = [
                c.cases,
                c.right,
                c.right_with_constants,
                c.offloaded,
                c.not_supported,
                c.wrong,
                c.panics,
            ];
            let numbers = numbers.map(|n| {
                if n == 0 {
                    "·".to_owned()
                } else {
                    n.to_string()
                }
            });
            let _ = writeln!(out, "| {name} | {} |", numbers.join(" | "));
        }
        out
    }

    /// What is refused: operator, reason, number of cases.
    pub fn refusals(&self) -> Vec<(String, String, usize)> {
        let mut found: BTreeMap<(String, String), usize> = BTreeMap::new();
        for case in &self.cases {
            if let Verdict::NotSupported(why) = &case.verdict {
                *found
                    .entry((case.operator.clone(), why.clone()))
                    .or_default() += 1;
            }
        }
        found
            .into_iter()
            .map(|((operator, why), count)| (operator, why, count))
            .collect()
    }
}

/// What stands above the figures of the page.
const PREFACE: &str = "# Conformance\n\n\
`make conformance` writes this page: the 1325 plain node cases of the `onnx` 1.22.0 package, each through the \
float network (`local`), through the integer network here (`local-exact`) and through a session with a worker that \
hides and checks (`slalom`).\n\n\
In these cases no operator holds its weights, so where the weight operand of a linear node is an input of the \
graph, it is made a constant first, with the case's own data; *at a worker* counts the cases that then had a layer \
at a worker. *Right*: the float network is within the suite's tolerance, the split run equals the integer network \
bit for bit, and one offloaded layer is within the bound that its quantisation proves, |error| ≤ Σ (|w|·s_x/2 + \
|x|·s_w/2 + s_x·s_w/4) with the steps s_x and s_w of activations and weights; recurrent operators, several layers \
with functions between them, are held against a hundredth of their largest value. *Right, parameters constant*: \
the engine wants some inputs (axes, shapes) as constants. *Not supported* is refused with a sentence, never answered \
wrongly.\n\n";

impl Report {
    /// The page of the documentation.
    pub fn page(&self) -> String {
        let mut page = String::from(PREFACE);
        page.push_str(&self.table());
        page.push_str(
            "\n## What is refused, and why\n\n| operator | cases | reason |\n|---|---:|---|\n",
        );
        for (operator, why, count) in self.refusals() {
            let _ = writeln!(
                page,
                "| {operator} | {count} | {} |",
                why.replace('|', "\\|")
            );
        }
        page
    }
}
