//! `larvatus bench`: a model in every mode, side by side in one run.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use larvatus::exact::FloatNetwork;
use larvatus::model::{Model, Port};
use larvatus::plan::Plan;
use larvatus::policy::{Offload, Policy, Preset};
use larvatus::session::Settings;
use larvatus::store::Store;
use larvatus::tensor::{DatumType, Tensor, from_floats};
use larvatus_host::{forget_peak_resident, thread_cpu};
use larvatus_proto::frame::MAX_CALLS;
use serde::Serialize;

use super::{load, nothing_pays, plan, rates, shapes};
use crate::Verdict;
use crate::args::Bench as Args;
use crate::driver::{Manner, Outcome, Rescue, drive, millis};
use crate::memory::Memory;
use crate::parties::Parties;
use crate::report::Bytes;
use crate::spawn::OwnWorker;
use crate::store;
use crate::table::{bytes, table};

/// Inferences of a session before those that are measured: they take the memory that all later ones use again.
const WARM_UP: usize = 3;

/// One mode, measured one inference at a time.
#[derive(Serialize)]
struct Row {
    mode: &'static str,
    latency_p50_ms: f64,
    latency_p99_ms: f64,
    /// Median.
    trusted_cpu_ms: f64,
    /// Of a session's first inference.
    first_cpu_ms: f64,
    /// Mean, a session's own beginnings included.
    offline_cpu_ms: f64,
    bytes: Bytes,
    round_trips: usize,
    memory: Memory,
    guarantee: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    throughput: Vec<Throughput>,
}

/// The same with several inferences in flight, their tickets made beforehand.
#[derive(Serialize)]
struct Throughput {
    window: usize,
    inferences: usize,
    per_second: f64,
    trusted_cpu_ms: f64,
    /// CPU time of the worker that was started here, for one inference.
    worker_cpu_ms: Option<f64>,
    /// Of the wall time, how much the trusted side had nothing to do.
    idle: f64,
}

pub(super) fn run(args: &Args) -> Result<Verdict> {
    ensure!(args.runs > 0, "--runs must be at least 1");
    ensure!(args.threads > 0, "--threads must be at least 1");
    for window in &args.window {
        ensure!(
            (1..=MAX_CALLS).contains(window),
            "--window {window}: 1 to {MAX_CALLS} inferences can be in flight"
        );
    }
    let model = load(&args.model, &shapes(&args.shape)?)?;
    let input: Vec<Tensor> = model.inputs().iter().map(sample).collect::<Result<_>>()?;
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
    let names = || std::iter::once("local").chain(modes.iter().map(|(mode, _)| *mode));
    if let Some(name) = args
        .mode
        .iter()
        .find(|name| names().all(|known| known != *name))
    {
        let names: Vec<&str> = names().collect();
        anyhow::bail!("no mode {name:?}; there are {}", names.join(", "));
    }
    let wanted = |mode: &str| args.mode.is_empty() || args.mode.iter().any(|name| name == mode);
    let mut rows = Vec::new();
    if wanted("local") {
        rows.push(local(&model, &input, args)?);
    }
    let named: Vec<String> = args.worker.iter().cloned().collect();
    let parties = Parties::of(&args.dealing, &named)?;
    let (own, worker) = match &args.worker {
        Some(worker) => (None, worker.clone()),
        None => {
            let own = OwnWorker::start(Some(args.threads))?;
            let address = own.address();
            (Some(own), address)
        }
    };
    let bench = Bench {
        args,
        worker,
        own,
        input,
    };
    let here = parties.without_dealer();
    for (mode, policy) in modes.into_iter().filter(|(mode, _)| wanted(mode)) {
        let plan = plan(&model, &policy)?;
        let mut row = bench.split(mode, &plan, &here, None)?;
        for window in &args.window {
            row.throughput
                .push(bench.throughput(&plan, &here, *window)?);
        }
        rows.push(row);
    }
    if let Some(path) = &args.rates {
        let mut policy = Preset::Slalom.policy();
        policy.offload = Offload::Paying;
        policy.rates = rates(path)?;
        let plan = plan(&model, &policy)?;
        if nothing_pays(&plan) {
            eprintln!("nothing pays: run it locally");
        } else {
            let mode = "+both, paying";
            rows.push(bench.split(mode, &plan, &here, None)?);
        }
    }
    if let Some(folder) = &args.stored.store {
        let plan = plan(&model, &Preset::Slalom.policy())?;
        let stored = store::open(&plan, folder, args.stored.key.as_deref())?;
        ensure!(
            stored.tickets() >= WARM_UP + args.runs,
            "store {} has {} tickets, --runs {} takes {}; make them with `larvatus provision`",
            folder.display(),
            stored.tickets(),
            args.runs,
            WARM_UP + args.runs
        );
        rows.push(bench.split("+both, stored u", &plan, &here, Some(stored))?);
    }
    if parties.dealer.is_some() {
        let plan = plan(&model, &Preset::Slalom.policy())?;
        rows.push(bench.split("+both, dealer", &plan, &parties, None)?);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        print_rows(&rows);
        print_throughput(&rows);
        print_memory(&rows);
    }
    Ok(Verdict::Accepted)
}

/// A fixed pseudo-random input of a port's type and shape.
pub(super) fn sample(port: &Port) -> Result<Tensor> {
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

fn local(model: &Model, input: &[Tensor], args: &Args) -> Result<Row> {
    let runs = args.runs;
    forget_peak_resident();
    let network = FloatNetwork::new(model)?;
    let (mut walls, mut cpus) = (Vec::new(), Vec::new());
    for _ in 0..WARM_UP + runs {
        let (started, cpu) = (Instant::now(), thread_cpu());
        network.run(input.to_vec())?;
        walls.push(millis(started.elapsed()));
        cpus.push(millis(thread_cpu() - cpu));
    }
    let (p50, p99) = quantiles(&walls[WARM_UP..]);
    Ok(Row {
        mode: "local",
        latency_p50_ms: p50,
        latency_p99_ms: p99,
        trusted_cpu_ms: quantiles(&cpus[WARM_UP..]).0,
        first_cpu_ms: cpus[0],
        offline_cpu_ms: 0.0,
        bytes: Bytes::default(),
        round_trips: 0,
        memory: Memory::of_process(),
        guarantee: "nothing leaves".to_owned(),
        throughput: Vec::new(),
    })
}

/// What all modes are measured with.
struct Bench<'a> {
    args: &'a Args,
    worker: String,
    own: Option<OwnWorker>,
    input: Vec<Tensor>,
}

impl Bench<'_> {
    /// One inference, which uploads the weights and warms the worker up.
    fn warm_up(&self, plan: &Arc<Plan>, parties: &Parties, manner: &Manner<'_>) -> Result<()> {
        let workers = [self.worker.clone()];
        let one = vec![self.input.clone()];
        drive(plan, &workers, parties, None, &one, manner)?;
        Ok(())
    }

    /// Runs so many inferences.
    fn drive(
        &self,
        plan: &Arc<Plan>,
        parties: &Parties,
        store: Option<Store>,
        runs: usize,
        manner: &Manner<'_>,
    ) -> Result<Outcome> {
        let workers = [self.worker.clone()];
        let inputs = vec![self.input.clone(); runs];
        let outcome = drive(plan, &workers, parties, store, &inputs, manner)?;
        ensure!(
            outcome.lie.is_none(),
            "a party lied: run the model to see which"
        );
        Ok(outcome)
    }

    /// One inference at a time.
    fn split(
        &self,
        mode: &'static str,
        plan: &Arc<Plan>,
        parties: &Parties,
        store: Option<Store>,
    ) -> Result<Row> {
        let runs = self.args.runs;
        let settings = Settings {
            window: 1,
            ..Settings::default()
        };
        let manner = Manner {
            settings: &settings,
            show: false,
            ahead: false,
            camera: None,
            rescue: Rescue::default(),
        };
        forget_peak_resident();
        self.warm_up(plan, parties, &manner)?;
        let outcome = self.drive(plan, parties, store, WARM_UP + runs, &manner)?;
        ensure!(
            outcome.sources.dealer.is_none() || outcome.sources.own == 0,
            "the dealer failed: {}",
            outcome.sources.dealer_gone.unwrap_or_default()
        );
        row(mode, plan, parties, &outcome)
    }

    /// Several in flight, their tickets made beforehand.
    fn throughput(&self, plan: &Arc<Plan>, parties: &Parties, window: usize) -> Result<Throughput> {
        let inferences = self.args.runs.max(2 * window);
        let settings = Settings {
            window,
            ..Settings::default()
        };
        let manner = Manner {
            settings: &settings,
            show: false,
            ahead: true,
            camera: None,
            rescue: Rescue::default(),
        };
        self.warm_up(plan, parties, &manner)?;
        let worker = || self.own.as_ref().and_then(OwnWorker::cpu);
        let before = worker();
        let outcome = self.drive(plan, parties, None, inferences, &manner)?;
        let worker_cpu = worker().zip(before);
        let wall = outcome.inferring.as_secs_f64();
        Ok(Throughput {
            window,
            inferences,
            per_second: inferences as f64 / wall,
            trusted_cpu_ms: outcome.cpu.online / inferences as f64,
            worker_cpu_ms: worker_cpu
                .map(|(after, before)| millis(after.saturating_sub(before)) / inferences as f64),
            idle: outcome.idle.as_secs_f64() / wall,
        })
    }
}

fn row(mode: &'static str, plan: &Plan, parties: &Parties, outcome: &Outcome) -> Result<Row> {
    let walls: Vec<f64> = outcome
        .outputs
        .iter()
        .skip(WARM_UP)
        .map(|output| millis(output.wall))
        .collect();
    let (p50, p99) = quantiles(&walls);
    let each = &outcome.each;
    ensure!(
        each.len() > WARM_UP,
        "a worker failed meanwhile: {}",
        outcome.failures.join("; ")
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
        trusted_cpu_ms: quantiles(&each[WARM_UP..]).0,
        first_cpu_ms: each[0],
        offline_cpu_ms: outcome.cpu.offline / each.len() as f64,
        bytes: Bytes {
            up: first.up,
            down: first.down,
        },
        round_trips: first.round_trips,
        memory: outcome.memory,
        throughput: Vec::new(),
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
fn quantiles(values: &[f64]) -> (f64, f64) {
    let mut values = values.to_vec();
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
            format!("{:.1}", row.first_cpu_ms),
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
        "first",
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
        "trusted CPU is the median of the inferences after the first {WARM_UP} of a session, first is its first; offline is \
         tickets, check vectors, connecting and weights by inference, which nothing hides here"
    );
}

fn print_throughput(rows: &[Row]) {
    let cell = |row: &Row, one: &Throughput| {
        vec![
            row.mode.to_owned(),
            one.window.to_string(),
            format!("{:.1}", one.per_second),
            format!("{:.1}", one.trusted_cpu_ms),
            one.worker_cpu_ms
                .map_or_else(|| "-".to_owned(), |cpu| format!("{cpu:.1}")),
            format!("{:.0} %", 100.0 * one.idle),
        ]
    };
    let cells: Vec<_> = rows
        .iter()
        .flat_map(|row| row.throughput.iter().map(move |one| cell(row, one)))
        .collect();
    if cells.is_empty() {
        return;
    }
    let head = [
        "mode",
        "in flight",
        "inferences/s",
        "trusted CPU ms",
        "trusted side waits",
    ];
    print!("\n{}", table(&head, &cells));
    println!("tickets made beforehand and not counted; CPU per inference");
}

fn print_memory(rows: &[Row]) {
    let cell = |row: &Row| {
        let memory = &row.memory;
        vec![
            row.mode.to_owned(),
            memory.peak_resident.map_or_else(|| "-".to_owned(), bytes),
            bytes(memory.checks),
            bytes(memory.tickets),
            bytes(memory.activations),
            bytes(memory.largest_round),
            bytes(memory.weights_integers),
            bytes(memory.weights_engine),
        ]
    };
    let head = [
        "mode",
        "peak resident",
        "check vectors",
        "u of tickets",
        "activations",
        "largest round",
        "weights",
        "weights for u",
    ];
    print!(
        "\n{}",
        table(&head, &rows.iter().map(cell).collect::<Vec<_>>())
    );
    println!(
        "peak resident is this whole process, the float model included; weights are kept to upload them and to make \
         check vectors"
    );
}
