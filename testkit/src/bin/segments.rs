//! What stays on the trusted side, by operator: milliseconds of CPU an inference.
//!
//! `segments MODEL.onnx…`
//!
//! First the local segments of the preset `slalom`: a run with made-up inputs gives every segment its tensors, and the
//! segments are then repeated by themselves. Then the whole network in float, the preset `local`, and the same with the
//! graph engine's own operators. A total is the sum of medians, on one thread; the rows are taken in runs of their own,
//! since reading the clock costs too.

use std::collections::BTreeMap;
use std::time::Duration;

use larvatus::exact::{FloatNetwork, LocalTrace, local_work};
use larvatus::model::Model;
use larvatus::plan::Plan;
use larvatus::policy::Preset;
use larvatus::tensor::Tensor;
use larvatus_host::thread_cpu;
use larvatus_testkit::inputs::sample;

const RUNS: usize = 11;

fn main() -> std::process::ExitCode {
    let mut code = std::process::ExitCode::SUCCESS;
    for path in std::env::args().skip(1) {
        if let Err(err) = measure(&path) {
            println!("{path}: {err}");
            code = std::process::ExitCode::FAILURE;
        }
    }
    code
}

fn measure(path: &str) -> Result<(), Box<dyn std::error::Error>> {
    let model = Model::load(&std::fs::read(path)?, &[])?;
    let plan = Plan::new(&model, &Preset::Slalom.policy())?;
    let inputs = || -> Result<Vec<Tensor>, _> { model.inputs().iter().map(sample).collect() };
    report(path, "segments", &local_work(&plan, inputs()?)?)?;
    let whole = FloatNetwork::new(&model)?.trace(inputs()?)?;
    report(path, "whole network", &[whole])?;
    let engine = FloatNetwork::of_engine(&model)?.trace(inputs()?)?;
    report(path, "whole network, the engine's operators", &[engine])
}

fn report(path: &str, what: &str, traces: &[LocalTrace]) -> Result<(), Box<dyn std::error::Error>> {
    let mut total = Duration::ZERO;
    let mut rows: BTreeMap<String, (usize, Duration)> = BTreeMap::new();
    for trace in traces {
        total += median(trace)?;
        let mut times: Vec<Vec<(String, Duration)>> = Vec::new();
        for _ in 0..RUNS {
            let mut row = Vec::new();
            let mut last = thread_cpu();
            trace.replay(|name| {
                let now = thread_cpu();
                row.push((name.to_owned(), now - last));
                last = thread_cpu();
            })?;
            times.push(row);
        }
        for (ix, (name, _)) in times[0].iter().enumerate() {
            let mut each: Vec<Duration> = times.iter().map(|row| row[ix].1).collect();
            each.sort();
            let row = rows.entry(name.clone()).or_default();
            row.0 += 1;
            row.1 += each[RUNS / 2];
        }
    }
    println!("{path}: {what}: {:.3} ms", millis(total));
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.1.1));
    for (name, (count, time)) in rows.iter().take(12) {
        println!("  {:9.3}  {count:4} × {name}", millis(*time));
    }
    Ok(())
}

/// The median over repetitions.
fn median(trace: &LocalTrace) -> Result<Duration, Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    for _ in 0..RUNS {
        let start = thread_cpu();
        trace.replay(|_| {})?;
        times.push(thread_cpu() - start);
    }
    times.sort();
    Ok(times[RUNS / 2])
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
