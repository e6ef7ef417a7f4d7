//! `larvatus calibrate`: what work costs on this machine, on the link and at the worker.
//!
//! Small made-up models run through real sessions, each of them dominated by one cost. What is
//! known already is taken away from what a run took; the rest is that cost.

mod onnx;
mod passes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use larvatus::exact::FloatNetwork;
use larvatus::model::Model;
use larvatus::plan::{Plan, Rates, WorkerRates};
use larvatus::policy::Preset;
use larvatus::session::Settings;
use larvatus::tensor::Tensor;
use serde_json::json;

use super::bench::sample;
use super::plan;
use crate::Verdict;
use crate::args::{Calibrate as Args, Dealing};
use crate::driver::{Manner, Rescue, drive, millis, progress};
use crate::parties::Parties;
use crate::spawn::OwnWorker;
use crate::table::table;
use onnx::Layer;

/// Layers side by side in the model that measures what a layer costs whatever its size.
const SIDE_BY_SIDE: usize = 9;
/// Models that are measured, and the passes.
const STEPS: u64 = 15;
/// Pairs of layers in the model that measures traffic.
const CHAIN: usize = 4;
/// Inferences of each model, the median counts: the most, and the least where each is slow.
const RUNS: (usize, usize) = (31, 5);
/// Time for each model beyond the least.
const BUDGET: Duration = Duration::from_millis(1500);
/// After so many turns the figures stand still.
const TURNS: usize = 8;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    ensure!(args.threads > 0, "--threads must be at least 1");
    let named: Vec<String> = args.worker.iter().cloned().collect();
    let dealing = Dealing {
        dealer: None,
        identity: args.identity.clone(),
        danger_local_dealer: false,
        danger_local_workers: false,
    };
    let parties = Parties::of(&dealing, &named)?;
    let own;
    let address = match &args.worker {
        Some(address) => address.clone(),
        None => {
            own = OwnWorker::start(Some(args.threads))?;
            own.address()
        }
    };
    let rates = measure(&At { address, parties })?;
    let text = format!(
        "# Costs measured by `larvatus calibrate` with the worker {}.\n{}",
        match &args.worker {
            Some(address) => address.escape_default().to_string(),
            None => format!("that it starts, threads = {}", args.threads),
        },
        rates.to_toml()
    );
    if let Some(path) = &args.output {
        std::fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&json!(rates))?);
        return Ok(Verdict::Accepted);
    }
    let rows: Vec<Vec<String>> = rates.figures().into_iter().map(row).collect();
    print!("{}", table(&["cost", "value", "unit"], &rows));
    match &args.output {
        Some(path) => println!("written to {}", path.display()),
        None => println!("--output FILE writes them for `larvatus plan --rates FILE`"),
    }
    Ok(Verdict::Accepted)
}

/// Where the worker is.
struct At {
    address: String,
    parties: Parties,
}

fn row((name, value): (&'static str, f64)) -> Vec<String> {
    let unit = match name {
        _ if name.ends_with("-us") => "µs each",
        _ if name.starts_with("link.") => "ns/byte",
        _ if name.starts_with("trusted.") => "ns/element",
        _ if name.ends_with("weight-ns") => "ns/weight",
        _ => "ns/MAC",
    };
    vec![name.to_owned(), format!("{value:.4}"), unit.to_owned()]
}

fn measure(at: &At) -> Result<Rates> {
    let bar = progress("calibrating", STEPS, "{pos}/{len}");
    // The link and the worker cost nothing until they are measured.
    let mut rates = Rates::default();
    let passes = passes::measure()?;
    rates.trusted.hide_ns = passes.hide;
    rates.trusted.check_ns = passes.check;
    rates.trusted.check_dense_ns = passes.check_dense;
    rates.trusted.send_ns = 0.0;
    rates.trusted.take_ns = 0.0;
    bar.inc(1);

    let product = |from, to| Layer::Product { from, to };
    let conv = |channels, groups, side| Layer::Conv {
        channels,
        groups,
        side,
    };
    let run = |input: &[usize], layers: &[Layer], times: usize| {
        let split = Split::new(input, layers, times)?;
        let taken = split.run(at)?;
        bar.inc(1);
        Ok::<_, anyhow::Error>((split, taken))
    };
    // A round trip with next to nothing in it, and what each further layer adds.
    let (_, one) = run(&[1, 16], &[product(16, 16)], 1)?;
    let (_, many) = run(&[1, 16], &[product(16, 16)], SIDE_BY_SIDE)?;
    let more = 1e3 * (SIDE_BY_SIDE - 1) as f64;
    let call = ((many.wall - one.wall) / more).max(0.0);
    rates.trusted.call_us = ((many.cpu - one.cpu) / more).clamp(0.0, call);
    rates.worker.call_us = call - rates.trusted.call_us;
    rates.link.round_trip_us = (one.wall / 1e3 - call).max(0.0);
    rates.trusted.round_us = (one.cpu / 1e3 - rates.trusted.call_us).max(0.0);

    // Much one way and little the other, then much of both, and work.
    let up = run(&[1568, 256], &[product(256, 16)], 1)?;
    let down = run(&[1568, 16], &[product(16, 256)], 1)?;
    let chain: Vec<Layer> = (0..CHAIN)
        .flat_map(|_| [product(16, 256), product(256, 16)])
        .collect();
    let chain = run(&[1568, 16], &chain, 1)?;
    let rows = run(&[64, 2048], &[product(2048, 2048)], 1)?;
    let spatial = run(&[1, 256, 28, 28], &[conv(256, 1, 3)], 1)?;
    // The same traffic twice, with nine times the work.
    let depthwise = |side| vec![conv(96, 96, side), conv(96, 96, side)];
    let small = run(&[1, 96, 56, 56], &depthwise(3), 1)?;
    let large = run(&[1, 96, 56, 56], &depthwise(9), 1)?;
    // One row: each weight is used once, so that is the time to read it.
    let thin = run(&[1, 4096], &[product(4096, 4096)], 1)?;
    rates.worker.depthwise_ns =
        (large.1.wall - small.1.wall).max(0.0) / (large.0.macs() - small.0.macs());

    // Each run is dominated by one cost but not free of the others, so the costs are found by
    // turns: each from what the others leave of its run.
    for _ in 0..TURNS {
        rates.link.up_ns = 0.0;
        rates.link.down_ns = 0.0;
        rates.trusted.send_ns = 0.0;
        rates.trusted.take_ns = 0.0;
        let (sent, taken) = (up.0.rest(&up.1, &rates), down.0.rest(&down.1, &rates));
        let (both, words) = (chain.0.rest(&chain.1, &rates), chain.0.words());
        // The chain has as many elements either way. What goes in first and comes out last costs
        // more than what an inference makes and uses itself, so the single layers say only how the
        // ways share the cost.
        let wall = share(sent.wall, taken.wall);
        rates.link.up_ns = wall * both.wall / (4.0 * words.up);
        rates.link.down_ns = (1.0 - wall) * both.wall / (4.0 * words.down);
        let cpu = share(sent.cpu, taken.cpu);
        rates.trusted.send_ns = cpu * both.cpu / words.up;
        rates.trusted.take_ns = (1.0 - cpu) * both.cpu / words.down;
        rates.worker.product_ns = 0.0;
        rates.worker.product_ns = rows.0.rest(&rows.1, &rates).wall / rows.0.macs();
        rates.worker.conv_ns = 0.0;
        rates.worker.conv_ns = spatial.0.rest(&spatial.1, &rates).wall / spatial.0.macs();
    }
    rates.worker.weight_ns = {
        let without_work = Rates {
            worker: WorkerRates {
                call_us: rates.worker.call_us,
                ..WorkerRates::default()
            },
            ..rates
        };
        thin.0.rest(&thin.1, &without_work).wall / thin.0.macs()
    };
    rates.local.product_ns = rows.0.local()? / rows.0.macs();
    let by_size = |channels: usize, side: usize| {
        let split = Split::new(&[1, channels, side, side], &[conv(channels, 1, 3)], 1)?;
        let taken = split.local()? / split.macs();
        bar.inc(1);
        Ok::<_, anyhow::Error>(taken)
    };
    rates.local.conv_ns = by_size(512, 14)?;
    rates.local.conv_56_ns = by_size(128, 56)?;
    rates.local.conv_112_ns = by_size(128, 112)?;
    rates.local.conv_224_ns = by_size(64, 224)?;
    rates.local.depthwise_ns = small.0.local()? / small.0.macs();
    rates.local.weight_ns = thin.0.local()? / thin.0.macs();
    bar.finish_and_clear();
    Ok(rates)
}

/// The first of two costs as a share of both; half where there is none.
fn share(first: f64, second: f64) -> f64 {
    if first + second > 0.0 {
        first / (first + second)
    } else {
        0.5
    }
}

/// What one inference took: nanoseconds.
struct Taken {
    wall: f64,
    cpu: f64,
}

/// Elements of one inference.
struct Words {
    up: f64,
    down: f64,
}

/// A made-up model.
struct Split {
    model: Model,
    plan: Arc<Plan>,
}

impl Split {
    fn new(input: &[usize], layers: &[Layer], times: usize) -> Result<Self> {
        let model = Model::load(&onnx::model(input, layers, times), &[])?;
        let plan = plan(&model, &Preset::Slalom.policy())?;
        let wanted = layers.len() * times;
        ensure!(
            plan.costs().len() == wanted,
            "{} layers of a calibration model go to the worker, {wanted} should",
            plan.costs().len()
        );
        Ok(Self { model, plan })
    }

    fn input(&self) -> Result<Vec<Tensor>> {
        self.model.inputs().iter().map(sample).collect()
    }

    fn words(&self) -> Words {
        let costs = self.plan.costs();
        let words = |bytes: u64| bytes as f64 / 4.0;
        Words {
            up: words(costs.iter().map(|cost| cost.up).sum()),
            down: words(costs.iter().map(|cost| cost.down).sum()),
        }
    }

    fn macs(&self) -> f64 {
        self.plan.costs().iter().map(|cost| cost.macs as f64).sum()
    }

    /// Runs it on the worker, once to warm up and then as often as time allows.
    fn run(&self, at: &At) -> Result<Taken> {
        let settings = Settings {
            window: 1,
            ..Settings::default()
        };
        let (workers, input) = ([at.address.clone()], self.input()?);
        let manner = Manner {
            settings: &settings,
            show: false,
            ahead: false,
            camera: None,
            rescue: Rescue::default(),
        };
        let run = |runs| {
            let inputs = vec![input.clone(); runs];
            let outcome = drive(&self.plan, &workers, &at.parties, None, &inputs, &manner)?;
            ensure!(
                outcome.lie.is_none(),
                "worker {} lied while it was measured",
                at.address
            );
            Ok(outcome)
        };
        let once = run(1)?.wall;
        let runs = often(once);
        let outcome = run(runs)?;
        let walls = outcome.outputs.iter().map(|output| millis(output.wall));
        Ok(Taken {
            wall: 1e6 * median(walls.collect()),
            cpu: 1e6 * outcome.cpu.online / runs as f64,
        })
    }

    /// What was taken less what the rates explain.
    fn rest(&self, taken: &Taken, rates: &Rates) -> Taken {
        let known = self.plan.estimate_by(rates);
        Taken {
            wall: (taken.wall - 1e6 * known.away_ms()).max(0.0),
            cpu: (taken.cpu - 1e6 * known.trusted_ms).max(0.0),
        }
    }

    /// Nanoseconds here, in float.
    fn local(&self) -> Result<f64> {
        let network = FloatNetwork::new(&self.model)?;
        let input = self.input()?;
        let run = || {
            let started = Instant::now();
            network.run(input.clone())?;
            Ok::<_, anyhow::Error>(started.elapsed())
        };
        let runs = often(run()?);
        let walls = (0..runs).map(|_| run().map(|wall| 1e6 * millis(wall)));
        Ok(median(walls.collect::<Result<_>>()?))
    }
}

/// How often something that took so long is run.
fn often(once: Duration) -> usize {
    let fit = BUDGET.as_secs_f64() / once.as_secs_f64().max(1e-6);
    (fit as usize).clamp(RUNS.1, RUNS.0)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
