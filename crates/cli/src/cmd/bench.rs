//! `larvatus bench`: a model in every mode, side by side in one run.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use larvatus::exact::FloatNetwork;
use larvatus::model::{Model, Port};
use larvatus::plan::Plan;
use larvatus::policy::{Policy, Preset};
use larvatus::session::Settings;
use larvatus::store::Store;
use larvatus::tensor::{DatumType, Tensor, from_floats};
use larvatus_host::thread_cpu;
use serde::Serialize;

use super::{load, plan, shapes};
use crate::Verdict;
use crate::args::Bench as Args;
use crate::driver::{drive, millis};
use crate::parties::Parties;
use crate::report::Bytes;
use crate::spawn::OwnWorker;
use crate::store;
use crate::table::{bytes, table};

/// One mode, measured.
#[derive(Serialize)]
struct Row {
    mode: &'static str,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
    trusted_cpu_ms: f64,
    offline_cpu_ms: f64,
    bytes: Bytes,
    round_trips: usize,
    guarantee: String,
}

pub(super) fn run(args: &Args) -> Result<Verdict> {
    ensure!(args.runs > 0, "--runs must be at least 1");
    ensure!(args.threads > 0, "--threads must be at least 1");
    let model = load(&args.model, &shapes(&args.shape)?)?;
    let input: Vec<Tensor> = model.inputs().iter().map(sample).collect::<Result<_>>()?;
    let mut rows = vec![local(&model, &input, args.runs)?];
    let mut modes = vec![
        ("clear", Preset::Clear.policy()),
        ("+hide", Policy::default().danger().unverified()),
        ("+check", Preset::Integrity.policy()),
        ("+both", Preset::Slalom.policy()),
    ];
    if args.fresh_check {
        let fresh = |preset: Preset| preset.policy().with_fresh_checks();
        modes.push(("+check, fresh", fresh(Preset::Integrity)?));
        modes.push(("+both, fresh", fresh(Preset::Slalom)?));
    }
    let named: Vec<String> = args.worker.iter().cloned().collect();
    let parties = Parties::of(&args.dealing, &named)?;
    let own;
    let worker = match &args.worker {
        Some(worker) => worker.clone(),
        None => {
            own = OwnWorker::start(Some(args.threads))?;
            own.address()
        }
    };
    let here = parties.without_dealer();
    for (mode, policy) in modes {
        let plan = plan(&model, &policy)?;
        rows.push(split(mode, &plan, &worker, &here, None, &input, args.runs)?);
    }
    if let Some(folder) = &args.stored.store {
        let plan = plan(&model, &Preset::Slalom.policy())?;
        let stored = store::open(&plan, folder, args.stored.key.as_deref())?;
        ensure!(
            stored.tickets() >= args.runs,
            "store {} has {} tickets, --runs {} takes as many; make them with `larvatus provision`",
            folder.display(),
            stored.tickets(),
            args.runs
        );
        let mode = "+both, stored u";
        let store = Some(stored);
        rows.push(split(
            mode, &plan, &worker, &here, store, &input, args.runs,
        )?);
    }
    if parties.dealer.is_some() {
        let plan = plan(&model, &Preset::Slalom.policy())?;
        let mode = "+both, dealer";
        rows.push(split(
            mode, &plan, &worker, &parties, None, &input, args.runs,
        )?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print_rows(&rows);
    }
    Ok(Verdict::Accepted)
}

/// A fixed pseudo-random input of a port's type and shape.
fn sample(port: &Port) -> Result<Tensor> {
    let shape = port.shape.as_deref().with_context(|| {
        format!(
            "input {:?} has no fixed shape; give --shape {}=…",
            port.name, port.name
        )
    })?;
    let size: usize = shape.iter().product();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    match port.datum {
        DatumType::F32 => {
            let values: Vec<f32> = (0..size)
                .map(|_| (next() >> 40) as f32 / (1 << 23) as f32 - 1.0)
                .collect();
            from_floats(shape, &values).context("a sample input")
        }
        // Token numbers, masks: small and valid in any vocabulary.
        DatumType::I64 => {
            let values: Vec<i64> = (0..size).map(|_| i64::from(next() % 2 == 1)).collect();
            Tensor::from_shape(shape, &values)
        }
        DatumType::I32 => {
            let values: Vec<i32> = (0..size).map(|_| i32::from(next() % 2 == 1)).collect();
            Tensor::from_shape(shape, &values)
        }
        other => anyhow::bail!(
            "input {:?} is of type {other:?}, which bench does not make up",
            port.name
        ),
    }
}

fn local(model: &Model, input: &[Tensor], runs: usize) -> Result<Row> {
    let network = FloatNetwork::new(model)?;
    network.run(input.to_vec())?;
    let mut walls = Vec::new();
    let cpu = thread_cpu();
    for _ in 0..runs {
        let started = Instant::now();
        network.run(input.to_vec())?;
        walls.push(millis(started.elapsed()));
    }
    let cpu = millis(thread_cpu() - cpu) / runs as f64;
    let (p50, p99) = quantiles(walls);
    Ok(Row {
        mode: "local",
        latency_p50_ms: p50,
        latency_p99_ms: p99,
        trusted_cpu_ms: cpu,
        offline_cpu_ms: 0.0,
        bytes: Bytes::default(),
        round_trips: 0,
        guarantee: "nothing leaves".to_owned(),
    })
}

fn split(
    mode: &'static str,
    plan: &std::sync::Arc<Plan>,
    address: &str,
    parties: &Parties,
    store: Option<Store>,
    input: &[Tensor],
    runs: usize,
) -> Result<Row> {
    let settings = Settings {
        window: 1,
        ..Settings::default()
    };
    let workers = [address.to_owned()];
    let one = vec![input.to_vec()];
    // Uploads the weights and warms both sides up.
    drive(plan, &workers, parties, None, &one, &settings, false)?;
    let inputs = vec![input.to_vec(); runs];
    let outcome = drive(plan, &workers, parties, store, &inputs, &settings, false)?;
    ensure!(
        outcome.lie.is_none(),
        "a party lied: run the model to see which"
    );
    ensure!(
        outcome.sources.dealer.is_none() || outcome.sources.own == 0,
        "the dealer failed: {}",
        outcome.sources.dealer_gone.unwrap_or_default()
    );
    let (p50, p99) = quantiles(
        outcome
            .outputs
            .iter()
            .map(|output| millis(output.wall))
            .collect(),
    );
    let first = outcome.outputs.first().context("no inference ran")?;
    let mut guarantees = plan.guarantees().with_store(outcome.sources.assumes);
    if parties.dealer.is_some() {
        guarantees = guarantees.with_dealer();
    }
    let integrity = match plan.repetitions() {
        0 => "believed".to_owned(),
        _ => format!("lie < 2^-{:.0}", guarantees.per_inference.bits()),
    };
    Ok(Row {
        mode,
        latency_p50_ms: p50,
        latency_p99_ms: p99,
        trusted_cpu_ms: outcome.cpu.online / runs as f64,
        offline_cpu_ms: outcome.cpu.offline / runs as f64,
        bytes: Bytes {
            up: first.up,
            down: first.down,
        },
        round_trips: first.round_trips,
        guarantee: match guarantees.assumes {
            None => format!("input privacy {}, {integrity}", guarantees.input_privacy),
            Some(assumes) => format!(
                "input privacy {}, {integrity}; assumes {assumes}",
                guarantees.input_privacy
            ),
        },
    })
}

/// Median and 99th percentile.
fn quantiles(mut values: Vec<f64>) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    let at = |q: f64| values[((values.len() - 1) as f64 * q).round() as usize];
    (at(0.5), at(0.99))
}

fn print_rows(rows: &[Row]) {
    let cell = |row: &Row| {
        vec![
            row.mode.to_owned(),
            format!("{:.1}", row.latency_p50_ms),
            format!("{:.1}", row.latency_p99_ms),
            format!("{:.1}", row.trusted_cpu_ms),
            format!("{:.1}", row.offline_cpu_ms),
            bytes(row.bytes.up),
            bytes(row.bytes.down),
            row.round_trips.to_string(),
            row.guarantee.clone(),
        ]
    };
    let head = [
        "mode",
        "p50 ms",
        "p99 ms",
        "trusted CPU ms",
        "offline CPU ms",
        "up",
        "down",
        "trips",
        "guarantee",
    ];
    print!(
        "{}",
        table(&head, &rows.iter().map(cell).collect::<Vec<_>>())
    );
    println!(
        "trusted CPU and offline CPU per inference; offline is tickets, check vectors, connecting \
         and weights, which nothing hides here"
    );
}
