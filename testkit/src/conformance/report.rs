//! The table by operator.

use std::collections::{BTreeMap, BTreeSet};

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
            "| operator | cases | right | right, constant parameters | of these at a worker | not supported | wrong | panic |\n\
             |---|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        let total = ("**all**", &self.total);
        let rows = self
            .operators
            .iter()
            .map(|(name, counts)| (name.as_str(), counts));
        for (name, counts) in std::iter::once(total).chain(rows) {
            let numbers = [
                counts.cases,
                counts.right,
                counts.right_with_constants,
                counts.offloaded,
                counts.not_supported,
                counts.wrong,
                counts.panics,
            ];
            let numbers = numbers.map(|n| {
                if n == 0 {
                    "·".to_owned()
                } else {
                    n.to_string()
                }
            });
            out.push_str(&format!("| {name} | {} |\n", numbers.join(" | ")));
        }
        out
    }

    /// The page of the documentation.
    pub fn page(&self) -> String {
        let Counts {
            cases,
            right,
            right_with_constants,
            offloaded,
            not_supported,
            wrong,
            panics,
        } = self.total;
        let most = self.of_bound() * 100.0;
        let (table, refusals) = (self.table(), self.refusals());
        format!(
            "\
# Conformance

Written by `make conformance`, which is

```text
python3 scripts/fetch.py conformance
target/release/conformance .cache/onnx-node --write docs/conformance.md
```

The {cases} plain operator cases of onnx 1.22.0 (the expansions of functions left out), each through `local` (the float
network), `local-exact` (the integer network) and `slalom` (hidden, at a worker in the same process, checked):
**{right} right as stored, {right_with_constants} right with constant parameters, {not_supported} not supported, \
{wrong} wrong, {panics} panics; {offloaded} had a layer at a worker.**

- *Right*: type and shape of every output are the suite's, integers, truth values and texts are equal, floats are within
  1e-3 relative and 1e-5 absolute (the suite's own runner has 1e-7, which sums in another order miss where the answer
  is 0), through `local` and through `slalom`; `slalom` equals `local-exact` bit for bit.
- *Right with constant parameters*: the engine wants axes, shapes, scales and the like as constants, as exporters write
  them, where the suite gives them as inputs. These cases are right with every input but the first as a constant, or all
  of them where there are lists and scalars only.
- *At a worker*: a worker gets linear layers with constant weights, and no case of the suite has any. So the cases of Conv,
  Gemm, MatMul and Einsum run once more for each operand that can be the weights, turned into a constant. Each answer is
  then within what the quantisation can do: with |x̂ − x| ≤ dx and |ŵ − w| ≤ dw, half a step each, it is off by at most
  Σ (|w|·dx + |x|·dw + dx·dw), evaluated in f64 by a reference of its own; the largest error used {most:.0} % of it.
  Layers inside other operators are held to the float tolerance.

{table}
## Not supported

Each is refused in a sentence when the model is loaded, or where the values are to blame, when it is run.

{refusals}"
        )
    }

    /// What is refused, as lists by kind of reason.
    fn refusals(&self) -> String {
        let mut lacking: BTreeMap<&str, usize> = BTreeMap::new();
        let mut types: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        let mut sequences: BTreeSet<&str> = BTreeSet::new();
        let mut others: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for case in &self.cases {
            let (operator, Verdict::NotSupported(why)) = (case.operator.as_str(), &case.verdict)
            else {
                continue;
            };
            // The innermost cause; what follows names nodes of the case.
            let cause = why.split(" < ").next().unwrap_or(why);
            let unknown = cause
                .strip_prefix("Unknown DatumType ")
                .map(str::to_lowercase);
            let newer = cause.strip_prefix("unknown ONNX TensorProto.DataType (");
            let newer = newer
                .and_then(|rest| rest.split(')').next())
                .map(|number| match number {
                    "24" => "float8e8m0".to_owned(),
                    "25" => "uint2".to_owned(),
                    "26" => "int2".to_owned(),
                    other => format!("number {other}"),
                });
            if cause.starts_with("the graph engine has no operator") {
                *lacking.entry(operator).or_default() += 1;
            } else if let Some(name) = unknown.or(newer) {
                types.entry(name).or_default().insert(operator);
            } else if cause.ends_with("is a sequence or optional, not a tensor") {
                sequences.insert(operator);
            } else {
                *others.entry((operator, cause)).or_default() += 1;
            }
        }
        let counted = |(operator, cases): (&&str, &usize)| format!("{operator} ({cases})");
        let lacking: Vec<String> = lacking.iter().map(counted).collect();
        let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
        let mut out = format!(
            "**Operators that the graph engine lacks** (cases): {}.\n\n\
             **Sequences and optionals** as inputs or outputs: {}.\n\n\
             **Element types** that the graph engine lacks:\n\n",
            lacking.join(", "),
            list(&sequences)
        );
        for (name, operators) in &types {
            out.push_str(&format!("- {name}: {}\n", list(operators)));
        }
        out.push_str("\n**Other reasons**, in the words of the refusal:\n\n");
        for ((operator, cause), cases) in &others {
            out.push_str(&format!("- {operator} ({cases}): {cause}\n"));
        }
        out
    }
}
