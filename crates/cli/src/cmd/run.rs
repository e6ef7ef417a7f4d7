//! `larvatus run`: inputs through a model under a policy.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use larvatus::exact::{FloatNetwork, run_exact_observed};
use larvatus::model::{Model, ModelError, Port};
use larvatus::plan::Plan;
use larvatus::policy::{CheckDraw, Hiding, Preset, Secrecy};
use larvatus::session::Settings;
use larvatus::store::Store;
use larvatus::tensor::Tensor;
use larvatus_host::thread_cpu;

use super::{Named, floats, load, nothing_pays, plan, shapes};
use crate::Verdict;
use crate::args::Run as Args;
use crate::driver::{Lie, Manner, Outcome, Rescue, drive, millis, next_here};
use crate::feed::{Camera, Feed, Kept};
use crate::memory::Memory;
use crate::parties::Parties;
use crate::report::{Bytes, Cpu, Frames, Report, Single, Tickets, VerdictField};
use crate::spawn::OwnWorker;
use crate::store;
use crate::tickets::Sources;
use crate::{input, output};

mod dump;
mod in_floats;
mod print;
mod whole;

/// Everything a run yields, whoever computed it.
struct Results {
    /// The inputs that have results.
    of: Vec<usize>,
    kept: Option<Kept>,
    tensors: Vec<Vec<Arc<Tensor>>>,
    singles: Vec<Single>,
    cpu: Cpu,
    wall: Duration,
    memory: Memory,
}

pub(super) fn run(args: &Args) -> Result<Verdict> {
    if let Some(demand) = floats(&args.job)? {
        return in_floats::run(args, &demand);
    }
    let named = Named::of(&args.job)?;
    ensure!(
        args.dump_layers.is_none() || named.preset == Some(Preset::LocalExact),
        "--dump-layers needs --preset local-exact: only there the values are at hand in clear"
    );
    ensure!(
        args.stored.store.is_none() || named.offloads(),
        "--preset {} sends nothing away, so it needs no tickets",
        named.name
    );
    let labels = output::read_labels(args.labels.as_deref())?;
    let parties = Parties::of(&args.dealing, &args.worker)?;
    ensure!(
        parties.dealer.is_none() || (named.offloads() && named.policy.hiding() == Hiding::Field),
        "--dealer is of no use: {} hides nothing from a worker, so there are no tickets to make",
        named.name
    );
    let model = load_for_inputs(args)?;
    let (names, inputs) = read_inputs(args, &model)?;
    let camera = camera(args)?;
    let outputs = model.outputs().to_vec();
    if named.preset == Some(Preset::WholeAudited) {
        let names = Names {
            inputs: names,
            outputs,
            labels,
        };
        return whole::run(args, &named, &parties, &model, &inputs, names);
    }
    ensure!(
        args.auditing.audit_dir.is_none() && args.auditing.worker_key.is_none(),
        "--audit-dir and --worker-key are for --preset whole-audited"
    );
    let mut report;
    let results;
    let mut lie = None;
    match named.preset {
        Some(Preset::Local) => {
            results = local(&model, &inputs, camera)?;
            report = local_report(&model, &named.name);
        }
        Some(Preset::LocalExact) => {
            let plan = plan(&model, &named.policy)?;
            report = Report::of_plan(&plan, &named.name, false);
            results = exact(&plan, &inputs, camera, args.dump_layers.as_deref())?;
        }
        _ => {
            let plan = plan(&model, &named.policy)?;
            drop(model);
            report = Report::of_plan(&plan, &named.name, named.offloads());
            if plan.round_trips() == 0 {
                eprintln!(
                    "{}; all of it runs here",
                    if nothing_pays(&plan) {
                        "nothing pays at the worker"
                    } else {
                        "nothing of this model can go to a worker"
                    }
                );
                let results = exact(&plan, &inputs, camera, None)?;
                return finish(
                    args,
                    report,
                    results,
                    &Names {
                        inputs: names,
                        outputs,
                        labels,
                    },
                );
            }
            let store = match &args.stored.store {
                Some(folder) => Some(store::open(&plan, folder, args.stored.key.as_deref())?),
                None => None,
            };
            let outcome = split(args, &parties, store, &plan, &inputs)?;
            report.worker.clone_from(&outcome.worker);
            report.finished_here = outcome.here;
            let stored = outcome.sources.stored;
            tell_tickets(&mut report, &plan, &outcome.sources);
            for failure in &outcome.failures {
                let then = match outcome.worker {
                    Some(_) => "the next one stepped in",
                    None => "no other served",
                };
                eprintln!("larvatus: worker failed, {then}: {failure}");
            }
            if outcome.here > 0 {
                let (here, all) = (outcome.here, inputs.len());
                eprintln!(
                    "larvatus: {here} of {all} inferences were finished here, without a worker"
                );
            }
            let (split_results, split_lie) = from_outcome(outcome);
            results = split_results;
            if let Some(found) = split_lie {
                let (sentence, verdict) = of_lie(found, stored);
                lie = Some(sentence);
                report.verdict = verdict;
            }
        }
    }
    let names = Names {
        inputs: names,
        outputs,
        labels,
    };
    match lie {
        None => finish(args, report, results, &names),
        Some(why) if args.finish_locally => {
            finish(args, report, results, &names)?;
            Ok(Verdict::Rejected(why))
        }
        Some(why) => {
            fill(&mut report, &results);
            write_report(args, &report)?;
            Ok(Verdict::Rejected(why))
        }
    }
}

/// A lie as a sentence and as a verdict, in a run that used `stored` tickets of a store.
fn of_lie(lie: Lie, stored: usize) -> (String, VerdictField) {
    let place = |layer: &Option<String>| layer.clone().unwrap_or_else(|| "no layer".to_owned());
    let either = match stored {
        0 => "",
        _ => " (or a stored ticket was altered: that looks the same)",
    };
    match lie {
        Lie::Worker {
            worker,
            layer,
            what,
        } => (
            format!("worker {worker} lied in {}: {what}{either}", place(&layer)),
            VerdictField::Lie {
                worker,
                layer,
                lie: what.kind().to_owned(),
            },
        ),
        Lie::Dealer {
            dealer,
            layer,
            what,
        } => (
            format!("dealer {dealer} lied in {}: {what}", place(&layer)),
            VerdictField::DealerLie {
                dealer,
                layer,
                lie: what.kind().to_owned(),
            },
        ),
    }
}

/// Says where the tickets came from, and what that does to the guarantee.
fn tell_tickets(report: &mut Report, plan: &Plan, sources: &Sources) {
    if let (Some(dealer), Some(why)) = (&sources.dealer, &sources.dealer_gone) {
        eprintln!("larvatus: dealer {dealer} failed, tickets are made here: {why}");
    }
    let mut guarantees = plan.guarantees().with_store(sources.assumes);
    report.guarantee = guarantees.sentence();
    if sources.dealt > 0 {
        guarantees = guarantees.with_dealer();
        report.soundness_bits = guarantees.per_inference.bits();
        let believed = Tickets::NO_COLLUSION;
        report.guarantee = format!("{}; assumes that {believed}", guarantees.sentence());
    }
    report.tickets = Tickets::of(sources);
}

/// What to call things in the output.
struct Names {
    inputs: Vec<String>,
    outputs: Vec<Port>,
    labels: Vec<String>,
}

/// Writes and shows what an accepted run yields.
fn finish(args: &Args, mut report: Report, results: Results, names: &Names) -> Result<Verdict> {
    fill(&mut report, &results);
    let mut singles = results.singles;
    for ((single, of), tensors) in singles.iter_mut().zip(&results.of).zip(&results.tensors) {
        if let Some(name) = names.inputs.get(*of) {
            single.input.clone_from(name);
        }
        let first = tensors.first();
        let classes = first.and_then(|t| output::top_classes(t, args.top, &names.labels));
        single.top = classes.map(|all| {
            all.into_iter()
                .map(|c| (c.index, c.name, c.probability))
                .collect()
        });
    }
    if let Some(path) = &args.output {
        output::write_npz(path, &names.outputs, &results.tensors)?;
    }
    if !args.json {
        print::results(&singles, &results.tensors, &names.outputs);
        print::costs(&report, singles.len());
    }
    if singles.len() > 1 {
        report.inferences = singles;
    }
    write_report(args, &report)?;
    Ok(Verdict::Accepted)
}

/// Puts the report where the user wants it.
fn write_report(args: &Args, report: &Report) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    if let Some(path) = &args.report {
        std::fs::write(path, &text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if args.json {
        println!("{text}");
    }
    Ok(())
}

/// Reads the model; a shape that it leaves open and nobody gave comes from the input's file.
fn load_for_inputs(args: &Args) -> Result<Model> {
    ensure!(
        !(args.image.is_empty() && args.input.is_empty() && args.frames.is_none()),
        "nothing to run on: give --image FILE, --frames DIR or --input NAME=FILE.npy"
    );
    let mut shapes = shapes(&args.job.shape)?;
    let open = match load(&args.job.model, &shapes) {
        Err(err)
            if matches!(
                err.downcast_ref::<ModelError>(),
                Some(ModelError::OpenShape { .. })
            ) =>
        {
            err
        }
        done => return done,
    };
    let given = shapes.len();
    for text in &args.input {
        let Some((name, file)) = text.split_once('=') else {
            continue;
        };
        if shapes.iter().any(|(given, _)| given == name) {
            continue;
        }
        shapes.push((name.to_owned(), input::array_shape(file)?));
    }
    if shapes.len() == given {
        return Err(open);
    }
    load(&args.job.model, &shapes)
}

/// The inputs of every inference, and what to call them.
fn read_inputs(args: &Args, model: &Model) -> Result<(Vec<String>, Vec<Vec<Tensor>>)> {
    let ports = model.inputs();
    let frames = args.frames.as_deref().map(input::frames).transpose()?;
    let images = frames.as_ref().unwrap_or(&args.image);
    if !images.is_empty() {
        let read = |path: &std::path::PathBuf| {
            Ok((
                path.display().to_string(),
                input::picture(path, ports, &args.picture)?,
            ))
        };
        return Ok(images
            .iter()
            .map(read)
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .unzip());
    }
    let groups = input::groups(&args.input, ports)?;
    let read = |files: Vec<String>| {
        let tensors = files
            .iter()
            .zip(ports)
            .map(|(file, port)| input::array(file, port));
        Ok((files.join(", "), tensors.collect::<Result<_>>()?))
    };
    Ok(groups
        .into_iter()
        .map(read)
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .unzip())
}

/// The camera, where the inputs are its frames.
fn camera(args: &Args) -> Result<Option<Camera>> {
    if args.frames.is_none() {
        return Ok(None);
    }
    ensure!(
        args.fps.is_finite() && (1e-3..=1e6).contains(&args.fps),
        "--fps {} is no rate of frames",
        args.fps
    );
    ensure!(args.queue > 0, "--queue must be at least 1");
    Ok(Some(Camera {
        rate: args.fps,
        room: args.queue,
    }))
}

/// How long workers are waited for, all of them together, where that is said.
fn deadline(args: &Args) -> Result<Option<Duration>> {
    match args.deadline.map(Duration::try_from_secs_f64) {
        None => Ok(None),
        Some(Ok(deadline)) => Ok(Some(deadline)),
        Some(Err(_)) => bail!("--deadline must be a number of seconds"),
    }
}

fn local(model: &Model, inputs: &[Vec<Tensor>], camera: Option<Camera>) -> Result<Results> {
    let network = FloatNetwork::new(model)?;
    here(inputs, camera, |input, _| Ok(network.run(input)?))
}

fn exact(
    plan: &Arc<Plan>,
    inputs: &[Vec<Tensor>],
    camera: Option<Camera>,
    dump: Option<&Path>,
) -> Result<Results> {
    here(inputs, camera, |input, run| {
        let mut dump = dump
            .map(|folder| dump::Dump::new(folder, run))
            .transpose()?;
        let tensors = run_exact_observed(plan, input, |trace| {
            if let Some(dump) = &mut dump {
                dump.layer(&trace);
            }
        })?;
        dump.map_or(Ok(()), dump::Dump::finish)?;
        Ok(tensors)
    })
}

/// Runs every input on this side.
fn here(
    inputs: &[Vec<Tensor>],
    camera: Option<Camera>,
    run: impl Fn(Vec<Tensor>, usize) -> Result<Vec<Arc<Tensor>>>,
) -> Result<Results> {
    let mut feed = Feed::new(inputs.len(), camera);
    let mut results = Results {
        of: vec![],
        kept: None,
        tensors: vec![],
        singles: vec![],
        cpu: Cpu::default(),
        wall: Duration::ZERO,
        memory: Memory::default(),
    };
    let cpu = thread_cpu();
    while let Some(ix) = next_here(&mut feed) {
        let started = Instant::now();
        results.tensors.push(run(inputs[ix].clone(), ix)?);
        let wall = started.elapsed();
        results.of.push(ix);
        feed.finish(ix, Instant::now());
        results.wall += wall;
        results.singles.push(Single {
            input: String::new(),
            wall_ms: millis(wall),
            waiting_ms: 0.0,
            bytes: Bytes::default(),
            round_trips: 0,
            top: None,
        });
    }
    results.cpu.online = millis(thread_cpu() - cpu);
    results.memory = Memory::of_process();
    results.kept = feed.kept();
    Ok(results)
}

fn split(
    args: &Args,
    parties: &Parties,
    store: Option<Store>,
    plan: &Arc<Plan>,
    inputs: &[Vec<Tensor>],
) -> Result<Outcome> {
    ensure!(args.window > 0, "--window must be at least 1");
    let lifetime = plan.policy().lifetime;
    let unlimited = plan.repetitions() == 0 || plan.policy().check() == CheckDraw::Fresh;
    ensure!(
        unlimited || inputs.len() as u64 <= lifetime,
        "{} inputs, but the policy's bound on lies holds for lifetime = {lifetime}",
        inputs.len()
    );
    let settings = Settings {
        window: args.window,
        answer_within: Duration::from_secs(args.timeout.max(1)),
        ..Settings::default()
    };
    let two = plan.policy().secrecy() == Secrecy::TwoWorkers;
    let own = own_workers(args, two)?;
    let started: Vec<String> = own.iter().map(OwnWorker::address).collect();
    let workers = match started.is_empty() {
        true => &args.worker,
        false => &started,
    };
    let deadline = deadline(args)?;
    let manner = Manner {
        settings: &settings,
        show: !args.json,
        ahead: false,
        camera: camera(args)?,
        rescue: Rescue {
            here: args.finish_locally,
            deadline,
        },
    };
    drive(plan, workers, parties, store, inputs, &manner)
}

/// The workers that are started here, where the command line names none.
fn own_workers(args: &Args, two: bool) -> Result<Vec<OwnWorker>> {
    Ok(match (args.worker.len(), two) {
        (0, false) => vec![OwnWorker::start(None)?],
        (0, true) if args.dealing.danger_local_workers => {
            vec![OwnWorker::start(None)?, OwnWorker::start(None)?]
        }
        (0 | 1, true) => bail!(
            "{} needs two workers of different parties, --worker tls://HOST:PORT#PIN twice; \
             to try it out, --danger-local-workers starts two here",
            args.job.preset
        ),
        _ => Vec::new(),
    })
}

fn from_outcome(outcome: Outcome) -> (Results, Option<Lie>) {
    let single = |output: &larvatus::session::Output| Single {
        input: String::new(),
        wall_ms: millis(output.wall),
        waiting_ms: millis(output.waiting),
        bytes: Bytes {
            up: output.up,
            down: output.down,
        },
        round_trips: output.round_trips,
        top: None,
    };
    let singles = outcome.outputs.iter().map(single).collect();
    let tensors = outcome
        .outputs
        .into_iter()
        .map(|output| output.tensors)
        .collect();
    (
        Results {
            of: outcome.of,
            kept: outcome.kept,
            tensors,
            singles,
            cpu: outcome.cpu,
            wall: outcome.wall,
            memory: outcome.memory,
        },
        outcome.lie,
    )
}

fn local_report(model: &Model, preset: &str) -> Report {
    Report {
        input_privacy: "local".to_owned(),
        weight_privacy: "local".to_owned(),
        guarantee: Report::LOCAL.to_owned(),
        ..Report::blank(model.digest(), preset)
    }
}

fn fill(report: &mut Report, results: &Results) {
    report.trusted_cpu_ms = results.cpu;
    report.wall_ms = millis(results.wall);
    report.memory = results.memory;
    report.frames = results.kept.as_ref().map(Frames::of);
    for single in &results.singles {
        report.waiting_ms += single.waiting_ms;
        report.bytes.up += single.bytes.up;
        report.bytes.down += single.bytes.down;
        report.round_trips += single.round_trips;
    }
}
