//! Whole networks as one program: whether they equal `run_exact`, what a trace takes, and how long.
//!
//! `whole [--runs N] [--threads N] [--audit FRACTION] [--dump DIR] MODEL.onnx…`
//!
//! For each model: nodes, units, bytes of a trace and of the program without its weights; whether the outputs equal those of
//! `run_exact` bit for bit; wall-clock medians of `run_exact`, of the program without a trace, with one that is hashed, and
//! with one whose tensors are kept too, and the shares of CPU time that these take; and one audit of the units that are drawn for a fraction of them (0.05): how
//! many, the bytes of the opening, the time to verify it and to recompute them all. `--dump` writes these units' openings for `scripts/replay.py`.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use larvatus::exact::run_exact;
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::Preset;
use larvatus::tensor::Tensor;
use larvatus::whole::Whole;
use larvatus_graph::{Digester, Prepared, Recorder, UnitId};
use larvatus_host::process_cpu;
use larvatus_proto::commit::Opened;
use larvatus_testkit::inputs::sample;

fn main() -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    let (mut runs, mut threads, mut fraction) = (7, 0, 0.05);
    let mut dump: Option<PathBuf> = None;
    let mut arguments = std::env::args().skip(1);
    println!(
        "| model | nodes | units | trace MB | program KB | equal | run_exact ms | whole ms | hashed ms | hashing CPU | kept ms | keeping CPU | audit: units | MB | ms |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|");
    while let Some(argument) = arguments.next() {
        let mut number = || arguments.next().and_then(|n| n.parse().ok());
        match argument.as_str() {
            "--runs" => runs = number().unwrap_or(runs),
            "--threads" => threads = number().unwrap_or(threads),
            "--audit" => {
                fraction = arguments
                    .next()
                    .and_then(|f| f.parse().ok())
                    .unwrap_or(fraction)
            }
            "--dump" => dump = arguments.next().map(PathBuf::from),
            path => {
                let equal = on_threads(threads, || row(path, runs, fraction, dump.as_deref()));
                if !equal.unwrap_or_else(|err| {
                    println!("| {path} | {err} |");
                    false
                }) {
                    code = ExitCode::FAILURE;
                }
            }
        }
    }
    code
}

/// With so many threads for the linear maps; 0 are as many as there are cores.
fn on_threads(
    threads: usize,
    work: impl FnOnce() -> Result<bool, Box<dyn std::error::Error>> + Send,
) -> Result<bool, String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|err| err.to_string())?;
    pool.install(|| work().map_err(|err| err.to_string()))
}

fn row(
    path: &str,
    runs: usize,
    fraction: f64,
    dump: Option<&Path>,
) -> Result<bool, Box<dyn std::error::Error>> {
    let model = Model::load(&std::fs::read(path)?, &[])?;
    let plan = Plan::new(&model, &Preset::Slalom.policy())?;
    let whole = Whole::of_plan(&plan)?;
    let graph = whole.model().graph();
    let inputs: Vec<Tensor> = model
        .inputs()
        .iter()
        .map(sample)
        .collect::<Result<_, _>>()?;
    let values = whole.values(&inputs)?;
    let prepared = Prepared::new(whole.model())?;
    let expected = run_exact(&plan, inputs.clone())?;
    let got = prepared.run(values.clone(), &mut ())?;
    let got = whole.tensors(&got).ok_or("outputs of another shape")?;
    let equal = expected.len() == got.len() && expected.iter().zip(&got).all(|(a, b)| same(a, b));
    let exact = median(runs, || run_exact(&plan, inputs.clone()).map(drop))?;
    let plain = median(runs, || prepared.run(values.clone(), &mut ()).map(drop))?;
    let mut kept = None;
    let mut committing = || -> Result<(), Box<dyn std::error::Error>> {
        let mut recorder = Recorder::new(graph);
        kept = None;
        prepared.run(values.clone(), &mut recorder)?;
        kept = Some(recorder.finish()?);
        Ok(())
    };
    let committed = median(runs, &mut committing)?;
    let recorded = kept.ok_or("no run")?;
    let hashing = || -> Result<(), Box<dyn std::error::Error>> {
        let mut digester = Digester::new(graph);
        prepared.run(values.clone(), &mut digester)?;
        digester.finish()?;
        Ok(())
    };
    let hashed = median(runs, hashing)?;
    let share = |with: Duration| 100.0 * (1.0 - plain.1.as_secs_f64() / with.as_secs_f64());
    let units = graph.draw([7; 32], fraction);
    let mut leaves: Vec<_> = units.iter().flat_map(|unit| graph.needs(*unit)).collect();
    leaves.sort_unstable();
    leaves.dedup();
    let opening = recorded.open(&leaves, &[])?;
    let bytes = opening.encode().len();
    let start = Instant::now();
    let opened = opening.verify(recorded.root(), graph.layout(), &leaves, &[])?;
    for unit in &units {
        whole.model().replay(*unit, &opened)?;
    }
    let audit = start.elapsed();
    if let Some(dump) = dump {
        write(dump, whole.model(), &units, &opened)?;
    }
    let name = path.rsplit('/').next().unwrap_or(path);
    println!(
        "| {name} | {} | {} | {:.1} | {:.1} | {equal} | {:.1} | {:.1} | {:.1} | {:.1} % | {:.1} | {:.1} % | {} | {:.1} | {:.1} |",
        graph.nodes().len(),
        graph.unit_count(),
        graph.trace_bytes() as f64 / 1e6,
        whole.model().graph_bytes() as f64 / 1e3,
        millis(exact.0),
        millis(plain.0),
        millis(hashed.0),
        share(hashed.1),
        millis(committed.0),
        share(committed.1),
        units.len(),
        bytes as f64 / 1e6,
        millis(audit),
    );
    Ok(equal)
}

/// What an independent replay reads.
fn write(
    folder: &Path,
    model: &larvatus_graph::Model,
    units: &[UnitId],
    opened: &Opened,
) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("model.bin"), model.blob())?;
    let mut leaves = Vec::new();
    for (leaf, bytes) in opened.leaves() {
        for word in [leaf.tensor, leaf.leaf, u32::try_from(bytes.len())?] {
            leaves.extend(word.to_le_bytes());
        }
        leaves.extend(bytes);
    }
    std::fs::write(folder.join("leaves.bin"), leaves)?;
    let mut text = format!("{}\n", model.graph_bytes());
    for unit in units {
        let node = model
            .graph()
            .node_of(*unit)
            .ok_or("a unit without a node")?;
        write!(text, "{unit} {node}")?;
        let disclosed = model.graph().discloses(*unit);
        let (_, made) = disclosed.last().ok_or("a unit that makes nothing")?;
        for run in made {
            write!(text, " {} {}", run.start, run.end)?;
        }
        text.push('\n');
    }
    std::fs::write(folder.join("units.txt"), text)?;
    Ok(())
}

fn same(a: &Tensor, b: &Tensor) -> bool {
    match (larvatus::tensor::floats(a), larvatus::tensor::floats(b)) {
        (Some(x), Some(y)) => {
            a.shape() == b.shape()
                && x.iter()
                    .map(|x| x.to_bits())
                    .eq(y.iter().map(|y| y.to_bits()))
        }
        _ => a == b,
    }
}

/// Medians of wall-clock and CPU time of the process.
fn median<E>(
    runs: usize,
    mut work: impl FnMut() -> Result<(), E>,
) -> Result<(Duration, Duration), E> {
    let (mut wall, mut cpu) = (Vec::new(), Vec::new());
    for _ in 0..runs.max(1) {
        let (start, before) = (Instant::now(), process_cpu());
        work()?;
        cpu.push(process_cpu() - before);
        wall.push(start.elapsed());
    }
    wall.sort_unstable();
    cpu.sort_unstable();
    Ok((wall[wall.len() / 2], cpu[cpu.len() / 2]))
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
