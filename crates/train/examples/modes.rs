//! Trains the same network in every mode, with a worker in a second process, and prints what docs/asymml.md says of it.
//!
//!     cargo run -p larvatus-train --example modes -- FASHION_MNIST_FOLDER vgg|resnet IMAGES EPOCHS

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use larvatus_host::pump::Options;
use larvatus_host::{Clock, Link, Pump, entropy};
use larvatus_train::data::{Dataset, Part};
use larvatus_train::lowrank::Rank;
use larvatus_train::models::Architecture;
use larvatus_train::privacy::Ledger;
use larvatus_train::private::{Terms, release, together};
use larvatus_train::remote::Remote;
use larvatus_train::session::{Recipe, Session};
use larvatus_train::split::{Mode, Split};
use larvatus_worker::Trainer;
use larvatus_worker::training::TrainingLimits;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

/// A worker process, which ends with this value.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn worker(path: &Path) -> Outcome<(Worker, Remote)> {
    let child = Command::new(std::env::current_exe()?)
        .arg("worker")
        .arg(path)
        .spawn()?;
    let worker = Worker(child);
    let start = Instant::now();
    let stream = loop {
        match UnixStream::connect(path) {
            Ok(stream) => break stream,
            Err(error) if start.elapsed() > Duration::from_secs(10) => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    Ok((worker, Remote::new(Link::from_unix(stream))?))
}

fn serve(path: &str) -> Outcome<()> {
    // Where there is none, there is nothing to remove.
    let _ = std::fs::remove_file(path);
    let (stream, _) = UnixListener::bind(path)?.accept()?;
    let clock = Clock::start();
    let mut trainer = Trainer::new(TrainingLimits::default(), None, clock.now());
    Pump::new(Link::from_unix(stream), clock, Options::default())?.run(&mut trainer)?;
    Ok(())
}

fn seed() -> Outcome<u64> {
    let [a, b, c, d, e, f, g, h, ..] = entropy()?;
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

fn learn(
    name: &str,
    recipe: &Recipe,
    split: Option<Split>,
    train: &Dataset,
    test: &Dataset,
) -> Outcome<Session> {
    let mut session = Session::new(recipe.clone(), train, name, split, None)?;
    session.train(train, test, |_| {})?;
    let steps = (train.len().div_ceil(recipe.batch) * recipe.epochs) as f64;
    for (at, epoch) in (1..).zip(session.epochs()) {
        let took = epoch.took.as_secs_f64();
        println!(
            "{name:16} epoch {at}: loss {:.4}, accuracy {:.4}, {took:.1} s",
            epoch.loss, epoch.accuracy
        );
    }
    if let Some(spent) = session.spent() {
        let each = |d: Duration| 1e3 * d.as_secs_f64() / steps;
        println!(
            "{name:16} a step: splitting {:.1} ms, here {:.1}, checking {:.1}, waiting {:.1}; {:.2} MB up, {:.2} MB down",
            each(spent.splitting),
            each(spent.here),
            each(spent.checking),
            each(spent.waiting),
            spent.sent as f64 / steps / 1e6,
            spent.received as f64 / steps / 1e6
        );
    }
    Ok(session)
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [role, path] = &args[..]
        && role == "worker"
    {
        return serve(path);
    }
    let [folder, architecture, images, epochs] = &args[..] else {
        return Err("FOLDER vgg|resnet IMAGES EPOCHS are wanted".into());
    };
    let architecture: Architecture = architecture.parse()?;
    let train = Dataset::load(Path::new(folder), Part::Train)?.first(images.parse()?);
    let test = Dataset::load(Path::new(folder), Part::Test)?;
    let recipe = Recipe {
        architecture,
        width: 16,
        epochs: epochs.parse()?,
        batch: 64,
        rate: 0.05,
        seed: 1,
    };
    let socket = std::env::temp_dir().join(format!("larvatus-modes-{}", std::process::id()));
    println!("{recipe:?}, {} images", train.len());
    learn("trusted-only", &recipe, None, &train, &test)?;
    for (name, mode) in [
        ("clear", Mode::Clear),
        ("asymml", Mode::Asymml(Rank::Doubling)),
    ] {
        let (_worker, remote) = worker(&socket)?;
        let split = Split::new(remote, mode, seed()?);
        learn(name, &recipe, Some(split.clone()), &train, &test)?;
        for (number, rank, left) in split.ranks() {
            println!("{name:16} layer {number}: rank {rank}, {left:.3} of the energy leaves");
        }
    }
    let terms = Terms {
        rank: 2,
        clip: 2.0,
        multiplier: 0.8,
        odds: 6,
    };
    let mut ledger = Ledger::default();
    let start = Instant::now();
    let halves = release(&train, terms, true, &mut ledger)?;
    let tested = release(&test, terms, false, &mut Ledger::default())?;
    println!(
        "releasing {} images took {:.1} s; residuals have {:.3} of the energy, {:.3} of them are clipped",
        train.len() + test.len(),
        start.elapsed().as_secs_f64(),
        halves.energy,
        halves.clipped
    );
    let held = train.len() / 6;
    let learned = |set: &Dataset| set.clone().first(train.len() - held);
    let last = |set: &Dataset| set.clone().last(held);
    let mut own = learn(
        "private, here",
        &recipe,
        None,
        &learned(&halves.kept),
        &tested.kept,
    )?;
    let (_worker, remote) = worker(&socket)?;
    let split = Split::new(remote, Mode::Clear, seed()?);
    let released = learned(&halves.released);
    let mut other = learn(
        "private, worker",
        &recipe,
        Some(split),
        &released,
        &tested.released,
    )?;
    let weights: Vec<f64> = (0..=20).map(|step| f64::from(step) * 0.05).collect();
    let pair = (last(&halves.kept), last(&halves.released));
    let on_held = together(
        (own.network(), &pair.0),
        (other.network(), &pair.1),
        &weights,
    )?;
    let best = (0..weights.len())
        .rev()
        .max_by(|a, b| on_held[*a].total_cmp(&on_held[*b]));
    let weight = weights[best.unwrap_or(0)];
    let found = together(
        (own.network(), &tested.kept),
        (other.network(), &tested.released),
        &[0.0, weight],
    )?;
    println!(
        "what stays alone {:.4}, with the worker's network {:.4} (weight {weight})",
        found[0], found[1]
    );
    println!("{}", ledger.statement(1e-5));
    // Where there is none, there is nothing to remove.
    let _ = std::fs::remove_file(socket);
    Ok(())
}
