//! Counts and times, in the text format of Prometheus. No label and no value comes from a request but the names of
//! models that are there, so nobody can make the page grow or leave anything on it.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of a histogram's buckets, in seconds.
const BOUNDS: [f64; 14] = [
    0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
];

#[derive(Clone, Default)]
struct Histogram {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    seconds: f64,
}

impl Histogram {
    fn add(&mut self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bucket, bound) in self.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(seconds <= bound);
        }
        self.count += 1;
        self.seconds += seconds;
    }

    fn write(&self, out: &mut String, name: &str, labels: &str) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bucket, bound) in self.buckets.iter().zip(BOUNDS) {
            line(
                out,
                &format!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {bucket}"),
            );
        }
        line(
            out,
            &format!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", self.count),
        );
        let braces = match labels {
            "" => String::new(),
            _ => format!("{{{labels}}}"),
        };
        line(out, &format!("{name}_sum{braces} {}", self.seconds));
        line(out, &format!("{name}_count{braces} {}", self.count));
    }
}

#[derive(Default)]
struct Tables {
    /// By model and outcome.
    requests: BTreeMap<(String, &'static str), u64>,
    /// By model: from the last byte of a request to its answer.
    latency: BTreeMap<String, Histogram>,
    /// By model: the inference alone.
    inference: BTreeMap<String, Histogram>,
    waiting: Histogram,
}

/// All counters of a server.
#[derive(Default)]
pub(crate) struct Metrics {
    tables: Mutex<Tables>,
    queued: AtomicUsize,
    admitted: AtomicUsize,
    connections: AtomicUsize,
    attested: AtomicU64,
}

/// What the server is, for the page.
pub(crate) struct Standing {
    pub(crate) ready: usize,
    pub(crate) known: usize,
    pub(crate) locked: bool,
    pub(crate) draining: bool,
}

impl Metrics {
    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many inferences wait.
    pub(crate) fn queued(&self, now: usize) {
        self.queued.store(now, Ordering::Relaxed);
    }

    /// How long one waited.
    pub(crate) fn waited(&self, time: Duration) {
        self.tables().waiting.add(time);
    }

    /// How long one took.
    pub(crate) fn inferred(&self, model: &str, time: Duration) {
        let mut tables = self.tables();
        tables
            .inference
            .entry(model.to_owned())
            .or_default()
            .add(time);
    }

    /// How a request ended; `model` is empty where there is none of that name.
    pub(crate) fn ended(&self, model: &str, outcome: &'static str, time: Duration) {
        let mut tables = self.tables();
        *tables
            .requests
            .entry((model.to_owned(), outcome))
            .or_default() += 1;
        if outcome == "ok" {
            tables
                .latency
                .entry(model.to_owned())
                .or_default()
                .add(time);
        }
    }

    pub(crate) fn admitted(&self) -> &AtomicUsize {
        &self.admitted
    }

    pub(crate) fn connections(&self) -> &AtomicUsize {
        &self.connections
    }

    /// Evidence was made.
    pub(crate) fn attested(&self) {
        self.attested.fetch_add(1, Ordering::Relaxed);
    }

    /// The page.
    pub(crate) fn page(&self, standing: &Standing) -> String {
        let mut out = String::with_capacity(4096);
        let tables = self.tables();
        head(
            &mut out,
            "larvatus_requests_total",
            "counter",
            "Inference requests by outcome.",
        );
        for ((model, outcome), count) in &tables.requests {
            line(
                &mut out,
                &format!(
                    "larvatus_requests_total{{model=\"{model}\",outcome=\"{outcome}\"}} {count}"
                ),
            );
        }
        head(
            &mut out,
            "larvatus_request_seconds",
            "histogram",
            "From the last byte of a request to its answer.",
        );
        for (model, histogram) in &tables.latency {
            histogram.write(
                &mut out,
                "larvatus_request_seconds",
                &format!("model=\"{model}\""),
            );
        }
        head(
            &mut out,
            "larvatus_inference_seconds",
            "histogram",
            "Inferences alone.",
        );
        for (model, histogram) in &tables.inference {
            histogram.write(
                &mut out,
                "larvatus_inference_seconds",
                &format!("model=\"{model}\""),
            );
        }
        head(
            &mut out,
            "larvatus_queue_seconds",
            "histogram",
            "Waiting in the queue.",
        );
        tables.waiting.write(&mut out, "larvatus_queue_seconds", "");
        drop(tables);
        let mut gauge = |name: &str, help: &str, value: u64| {
            head(&mut out, name, "gauge", help);
            line(&mut out, &format!("{name} {value}"));
        };
        let now = |counter: &AtomicUsize| counter.load(Ordering::Relaxed) as u64;
        gauge(
            "larvatus_queued",
            "Inferences that wait.",
            now(&self.queued),
        );
        gauge(
            "larvatus_admitted",
            "Requests taken on and not yet answered.",
            now(&self.admitted),
        );
        gauge(
            "larvatus_connections",
            "Open connections.",
            now(&self.connections),
        );
        gauge(
            "larvatus_models_ready",
            "Models that are served.",
            standing.ready as u64,
        );
        gauge(
            "larvatus_models_known",
            "Models in the repository.",
            standing.known as u64,
        );
        gauge(
            "larvatus_memory_locked",
            "Whether memory is kept off the disk.",
            standing.locked.into(),
        );
        gauge(
            "larvatus_draining",
            "Whether the server is about to stop.",
            standing.draining.into(),
        );
        head(
            &mut out,
            "larvatus_evidence_total",
            "counter",
            "Evidence made for clients.",
        );
        line(
            &mut out,
            &format!(
                "larvatus_evidence_total {}",
                self.attested.load(Ordering::Relaxed)
            ),
        );
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    line(out, &format!("# HELP {name} {help}"));
    line(out, &format!("# TYPE {name} {kind}"));
}

fn line(out: &mut String, text: &str) {
    // Writing to a string does not fail.
    let _ = writeln!(out, "{text}");
}
