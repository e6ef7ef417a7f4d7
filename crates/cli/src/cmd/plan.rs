//! `larvatus plan`: what would be done, layer by layer.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use larvatus::audit::{Fraction, Terms};
use larvatus::exact::{FloatNetwork, LocalTrace, local_work};
use larvatus::model::Model;
use larvatus::plan::{Estimate, Plan, Row};
use larvatus::policy::{Preset, Secrecy};
use larvatus::store::Store;
use larvatus::tensor::Tensor;
use larvatus::whole::Whole;
use serde_json::json;

use super::bench::sample;
use super::{Named, floats, load, nothing_pays, plan, shapes};
use crate::Verdict;
use crate::args::Plan as Args;
use crate::driver::millis;
use crate::store;
use crate::table::{bytes, count, shorten, table};

mod in_floats;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    if let Some(demand) = floats(&args.job)? {
        return in_floats::run(args, &demand);
    }
    let named = Named::of(&args.job)?;
    let model = load(&args.job.model, &shapes(&args.job.shape)?)?;
    if named.preset == Some(Preset::WholeAudited) {
        if args.stored.store.is_some() {
            named.by_layer("a store of tickets")?;
        }
        return whole(args, &named, &model);
    }
    let plan = plan(&model, &named.policy)?;
    let stored = args.stored.store.as_deref();
    let stored = stored
        .map(|folder| store::open(&plan, folder, args.stored.key.as_deref()))
        .transpose()?;
    let assumes = stored.as_ref().and_then(Store::assumes);
    let forecast = match args.job.rates {
        Some(_) => Some(Forecast::new(&model, &plan)?),
        None => None,
    };
    let (rows, estimate) = (plan.rows(), plan.estimate());
    let guarantees = plan.guarantees().with_store(assumes);
    let total = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
    // An upload counts at the first layer that reads it.
    let uploads = rows.iter().filter(|row| row.up > 0).count();
    let away: u64 = rows
        .iter()
        .filter(|row| row.placement == "worker")
        .map(|row| row.macs)
        .sum();
    if args.json {
        let report = json!({
            "model": plan.model().to_string(),
            "plan": plan.digest().to_string(),
            "preset": named.name,
            "layers": rows,
            "macs": total(|row| row.macs),
            "macs_at_worker": away,
            "uploads": uploads,
            "bytes": { "up": total(|row| row.up), "down": total(|row| row.down) },
            "upload_bytes": plan.worker_model().blob().len(),
            "round_trips": plan.round_trips(),
            "soundness_bits": guarantees.per_inference.bits(),
            "soundness_bits_lifetime": guarantees.lifetime.bits(),
            "lifetime": guarantees.inferences,
            "input_privacy": guarantees.input_privacy.to_string(),
            "weight_privacy": guarantees.weight_privacy(),
            "tickets": stored.as_ref().map(|store| json!({
                "stored": store.tickets(),
                "assumes": assumes,
            })),
            "expected": {
                "local_ms": estimate.local_ms,
                "trusted_ms": estimate.trusted_ms,
                "gain": estimate.gain(),
            },
            "predicted": forecast.as_ref().map(Forecast::json),
            "nothing_pays": nothing_pays(&plan),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(Verdict::Accepted);
    }
    if rows.is_empty() {
        println!(
            "no layer of this model is a linear map with constant weights; all of it runs here"
        );
        return Ok(Verdict::Accepted);
    }
    print_rows(&rows);
    println!();
    let all = total(|row| row.macs).max(1);
    println!(
        "{} of {} MACs ({:.1} %) at the worker; {} up in {uploads} uploads, {} down in {} round trips; \
         {} of weights sent once",
        count(away),
        count(all),
        100.0 * away as f64 / all as f64,
        bytes(total(|row| row.up)),
        bytes(total(|row| row.down)),
        plan.round_trips(),
        bytes(plan.worker_model().blob().len() as u64),
    );
    if let Some(store) = &stored {
        println!("tickets:   {} in the store", store.tickets());
    }
    println!("guarantee: {}", guarantees.sentence());
    if guarantees.per_check.bits() > 0.0 {
        println!(
            "           over {} inferences: below 2^-{:.1}{}",
            count(guarantees.inferences),
            guarantees.lifetime.bits(),
            match plan.policy().secrecy() {
                Secrecy::Public => "; weights are known to the worker",
                Secrecy::TwoWorkers => "",
            }
        );
    }
    match &forecast {
        Some(forecast) => forecast.print(),
        None => println!(
            "expected:  {:.1} ms of trusted CPU online instead of {:.1} ms for these layers ({:.1}x); {}",
            estimate.trusted_ms,
            estimate.local_ms,
            estimate.gain(),
            if estimate.gain() < 1.0 {
                "run it locally: nothing is gained"
            } else {
                "constants of one AVX-512 core, see `larvatus calibrate`"
            }
        ),
    }
    if nothing_pays(&plan) {
        println!("nothing pays: run it locally");
    } else if let Some(advice) = forecast.as_ref().and_then(Forecast::advice) {
        println!("{advice}");
    }
    Ok(Verdict::Accepted)
}

/// The same of a whole network: there are no layers to place, but units to audit.
fn whole(args: &Args, named: &Named, model: &Model) -> Result<Verdict> {
    let whole = Whole::new(model, &named.policy)?;
    let fraction = Fraction::new(args.audit).context("--audit is not above 0 and at most 1")?;
    let terms = Terms::new(whole.model().clone(), fraction)?;
    let graph = whole.model().graph();
    let units = graph.unit_count();
    let forecast = match args.job.rates {
        Some(_) => Some(Forecast::whole(
            model,
            &plan(model, &named.policy)?,
            &whole,
        )?),
        None => None,
    };
    if args.json {
        let report = json!({
            "model": model.digest().to_string(),
            "plan": terms.plan().to_string(),
            "preset": named.name,
            "graph": whole.model().digest().to_string(),
            "nodes": graph.nodes().len(),
            "units": units,
            "macs": graph.cost(),
            "trace_bytes": graph.trace_bytes(),
            "upload_bytes": whole.model().blob().len(),
            "fraction": fraction.part(),
            "alpha": terms.alpha(),
            "undetected_one": terms.undetected(1),
            "input_privacy": "none",
            "weight_privacy": "none",
            "round_trips": 1,
            "guarantee": terms.sentence(),
            "predicted": forecast.as_ref().map(Forecast::json),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(Verdict::Accepted);
    }
    println!(
        "{} nodes, {} multiplications, at the worker in one round trip; weights {} once",
        graph.nodes().len(),
        count(graph.cost()),
        bytes(whole.model().blob().len() as u64)
    );
    println!(
        "a trace of {} in {units} units, α = {:.4}",
        bytes(graph.trace_bytes()),
        terms.alpha()
    );
    println!("guarantee: {}", terms.sentence());
    tell(forecast.as_ref());
    Ok(Verdict::Accepted)
}

/// Says what is predicted, and what to do about it.
fn tell(forecast: Option<&Forecast>) {
    if let Some(forecast) = forecast {
        forecast.print();
        if let Some(advice) = forecast.advice() {
            println!("{advice}");
        }
    }
}

/// The layers as a table.
fn print_rows(rows: &[Row]) {
    let cells = |row: &Row| {
        let away = row.placement == "worker";
        vec![
            shorten(&row.name, 36),
            row.op.clone(),
            row.shape.clone(),
            count(row.macs),
            if away { bytes(row.up) } else { "-".to_owned() },
            if away {
                bytes(row.down)
            } else {
                "-".to_owned()
            },
            row.round
                .map_or_else(|| "-".to_owned(), |round| round.to_string()),
            row.placement.to_owned(),
            row.guarantee.clone(),
            row.why.clone(),
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let head = [
        "layer",
        "op",
        "shape",
        "MACs",
        "up",
        "down",
        "round",
        "placement",
        "guarantee",
        "why",
    ];
    print!("{}", table(&head, &cells));
}

/// Local work is timed so often; the fastest counts.
const TIMES: usize = 3;

/// Nanoseconds to commit to one byte of a trace, measured on one core with AVX-512; see docs/verisplit.md.
const HASH_NS: f64 = 0.16;

/// What an inference is expected to take: rates for the layers that go, and a stopwatch for the
/// work that stays.
struct Forecast {
    estimate: Estimate,
    round_trips: usize,
    /// Local work between rounds.
    segments_ms: f64,
    /// The whole model here, in float.
    local_ms: f64,
}

impl Forecast {
    fn new(model: &Model, plan: &Arc<Plan>) -> Result<Self> {
        let input: Vec<Tensor> = model.inputs().iter().map(sample).collect::<Result<_>>()?;
        let network = FloatNetwork::new(model)?;
        let whole = network.trace(input.clone())?;
        let mut segments_ms = 0.0;
        for segment in local_work(plan, input)? {
            segments_ms += fastest(&segment)?;
        }
        Ok(Self {
            estimate: plan.estimate(),
            round_trips: plan.round_trips(),
            segments_ms,
            local_ms: fastest(&whole)?,
        })
    }

    /// A whole network at the worker: one round trip with input and output, then what stays with other presets is computed
    /// there, too, as slowly as here.
    fn whole(model: &Model, layers: &Arc<Plan>, whole: &Whole) -> Result<Self> {
        let Self {
            estimate,
            segments_ms,
            local_ms,
            ..
        } = Self::new(model, layers)?;
        let link = layers.policy().rates.link;
        let graph = whole.model().graph();
        let bytes = |tensor: usize| graph.tensors()[tensor].bytes() as f64;
        let up: f64 = (0..graph.inputs().len()).map(bytes).sum();
        let outputs = graph.outputs().iter();
        let down: f64 = outputs.map(|out| bytes(out.tensor.0 as usize)).sum();
        let link_ns = up * link.up_ns + down * link.down_ns;
        let estimate = Estimate {
            local_ms: estimate.local_ms,
            trusted_ms: 0.0,
            passes_ms: 0.0,
            link_ms: link.round_trip_us / 1e3 + link_ns / 1e6,
            worker_ms: estimate.worker_ms
                + segments_ms
                + graph.trace_bytes() as f64 * HASH_NS / 1e6,
        };
        Ok(Self {
            estimate,
            round_trips: 1,
            segments_ms: 0.0,
            local_ms,
        })
    }

    /// What to do, where sending it away takes longer than running it here.
    fn advice(&self) -> Option<String> {
        let (latency, local) = (self.latency_ms(), self.local_ms);
        if latency < local {
            return None;
        }
        let cpu = self.cpu_ms();
        Some(match cpu < local {
            true => format!(
                "run it locally: that takes {local:.1} ms; sending it away is slower, though it leaves {:.1} ms of CPU here",
                local - cpu
            ),
            false => format!("run it locally: that takes {local:.1} ms and as much CPU"),
        })
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "latency_p50_ms": self.latency_ms(),
            "segments_ms": self.segments_ms,
            "passes_ms": self.estimate.passes_ms,
            "link_ms": self.estimate.link_ms,
            "worker_ms": self.estimate.worker_ms,
            "trusted_cpu_ms": self.cpu_ms(),
            "local_ms": self.local_ms,
            "run_locally": self.advice().is_some(),
        })
    }

    fn latency_ms(&self) -> f64 {
        self.segments_ms + self.estimate.away_ms()
    }

    fn cpu_ms(&self) -> f64 {
        self.segments_ms + self.estimate.trusted_ms
    }

    fn print(&self) {
        let estimate = &self.estimate;
        println!(
            "predicted: {:.1} ms p50 (local work {:.1}, passes {:.1}, link {:.1}, worker {:.1}) in {} \
             round trips, {:.1} ms of trusted CPU; {:.1} ms if all of it runs here",
            self.latency_ms(),
            self.segments_ms,
            estimate.passes_ms,
            estimate.link_ms,
            estimate.worker_ms,
            self.round_trips,
            self.cpu_ms(),
            self.local_ms,
        );
    }
}

fn fastest(work: &LocalTrace) -> Result<f64> {
    work.replay(|_| {})?;
    let mut least = f64::INFINITY;
    for _ in 0..TIMES {
        let started = Instant::now();
        work.replay(|_| {})?;
        least = least.min(millis(started.elapsed()));
    }
    Ok(least)
}
