//! `larvatus train`: a network like VGG or ResNet, alone or with a worker.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use larvatus_host::tls::Identity;
use larvatus_host::{Address, Link, entropy};
use larvatus_train::curves::{Curve, svg};
use larvatus_train::data::{Dataset, Part};
use larvatus_train::lowrank::Rank;
use larvatus_train::models::Architecture;
use larvatus_train::privacy::Ledger;
use larvatus_train::private::{self, Terms};
use larvatus_train::remote::Remote;
use larvatus_train::session::{Epoch, Recipe, Session, Standing};
use larvatus_train::split::{Mode, Spent, Split};
use larvatus_train::{TrainError, onnx, use_threads};
use serde_json::{Value, json};

use crate::Verdict;
use crate::driver::progress;
use crate::spawn::OwnWorker;
use crate::table::{bytes, table};

/// Train a network like VGG or ResNet.
#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// The family: vgg, resnet.
    #[arg(long, default_value = "vgg", value_name = "NAME")]
    arch: String,
    /// Channels of the first convolution.
    #[arg(long, default_value_t = 16, value_name = "N")]
    width: usize,
    /// The folder of a data set in IDX files, compressed or not: `python3 scripts/fetch.py fashion` makes one.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Who computes what: trusted-only, clear, asymml (residuals leave, gradients and weights too: leaks), asymml-private (what
    /// leaves is covered by an account).
    #[arg(long, default_value = "trusted-only", value_name = "MODE")]
    mode: String,
    /// A worker that was started with --training; one is started here where none is given.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) worker: Vec<String>,
    /// As whom to connect to a tls:// worker.
    #[arg(long, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Where checkpoint, curves, report and the trained model.onnx go; a run that was stopped goes on from there.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Passes over the data.
    #[arg(long, default_value_t = 2, value_name = "N")]
    epochs: usize,
    /// Images of a step.
    #[arg(long, default_value_t = 64, value_name = "N")]
    batch: usize,
    /// First learning rate; half a cosine leads to a hundredth of it.
    #[arg(long, default_value_t = 0.05, value_name = "RATE")]
    rate: f64,
    /// Seed of weights and orders.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Only so many images to learn from; all where not given.
    #[arg(long, value_name = "N")]
    images: Option<usize>,
    /// Only so many images to test with; all where not given.
    #[arg(long, value_name = "N")]
    test_images: Option<usize>,
    /// Rank of what stays (asymml): a number for all layers, `doubling`, or the part of the energy that may leave, such as 0.1.
    #[arg(long, default_value = "doubling", value_name = "RANK")]
    rank: String,
    /// asymml-private: rank of what stays of an image's 16 channels of blocks.
    #[arg(long, default_value_t = 2, value_name = "N")]
    kept_rank: usize,
    /// asymml-private: the norm that residuals of images in [0, 1] are clipped to.
    #[arg(long, default_value_t = 2.0, value_name = "NORM")]
    clip: f32,
    /// asymml-private: noise, in multiples of the clip.
    #[arg(long, default_value_t = 0.8, value_name = "TIMES")]
    noise: f64,
    /// asymml-private: e^ε of the randomized response that labels are released by.
    #[arg(long, default_value_t = 6, value_name = "ODDS")]
    label_odds: u32,
    /// The δ that the account is stated for.
    #[arg(long, default_value_t = 1e-5, value_name = "DELTA")]
    delta: f64,
    /// Threads here; those of a worker that is started here, too.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// Print the report as JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Images that decide how much the worker's network counts.
const HELD_OUT: usize = 2000;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    ensure!(
        args.delta > 0.0 && args.delta < 1.0,
        "--delta {}: a number between 0 and 1 is wanted",
        args.delta
    );
    ensure!(args.worker.len() < 2, "one --worker trains; two were named");
    if let Some(threads) = args.threads {
        use_threads(NonZeroUsize::new(threads).context("--threads must be at least 1")?)?;
    }
    let mode = match args.mode.as_str() {
        "trusted-only" => None,
        "clear" | "asymml-private" => Some(Mode::Clear),
        "asymml" => Some(Mode::Asymml(rank(&args.rank)?)),
        other => bail!("--mode {other}: trusted-only, clear, asymml or asymml-private is wanted"),
    };
    let architecture: Architecture = args.arch.parse().map_err(anyhow::Error::msg)?;
    let load = |part, most: Option<usize>| {
        let set = Dataset::load(&args.data, part)?;
        let most = most.unwrap_or(usize::MAX);
        ensure!(!set.is_empty() && most > 0, "a data set without images");
        Ok(set.first(most))
    };
    let train = load(Part::Train, args.images)?;
    let test = load(Part::Test, args.test_images)?;
    ensure!(
        test.shape() == train.shape() && test.classes() <= train.classes(),
        "images to test with are unlike those to learn from"
    );
    std::fs::create_dir_all(&args.output)
        .with_context(|| format!("cannot make {}", args.output.display()))?;
    let own = match mode.is_some() && args.worker.is_empty() {
        true => Some(OwnWorker::start_with(args.threads, &["--training"])?),
        false => None,
    };
    let address = own.as_ref().map(OwnWorker::address);
    let address = address.or_else(|| args.worker.first().cloned());
    let split = match (mode, &address) {
        (Some(mode), Some(address)) => {
            let remote = Remote::new(connect(args, address)?)?;
            let [a, b, c, d, e, f, g, h, ..] = entropy()?;
            Some(Split::new(
                remote,
                mode,
                u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            ))
        }
        _ => None,
    };
    let recipe = Recipe {
        architecture,
        width: args.width,
        epochs: args.epochs,
        batch: args.batch.max(1),
        rate: args.rate,
        seed: args.seed,
    };
    let mut run = Run {
        args,
        recipe,
        split,
        ledger: Ledger::default(),
        report: json!({}),
        curves: Vec::new(),
    };
    let done = match args.mode.as_str() {
        "asymml-private" => run.private(&train, &test),
        _ => run.open(&train, &test),
    };
    if let Err(error) = done {
        let caught = run.split.as_ref().and_then(Split::caught);
        return match caught {
            Some(refusal) => Ok(Verdict::Rejected(format!(
                "{} lied: {refusal}; nothing of it was used, and the last checkpoint stays",
                address.unwrap_or_default()
            ))),
            None => Err(error.into()),
        };
    }
    run.finish()?;
    drop(own);
    Ok(Verdict::Accepted)
}

fn rank(text: &str) -> Result<Rank> {
    if text == "doubling" {
        return Ok(Rank::Doubling);
    }
    if let Ok(rank) = text.parse::<usize>() {
        ensure!(rank > 0, "--rank 0: at least 1 is wanted");
        return Ok(Rank::Fixed(rank));
    }
    match text.parse::<f64>() {
        Ok(part) if part > 0.0 && part < 1.0 => Ok(Rank::Energy(part)),
        _ => bail!("--rank {text}: a number, `doubling`, or a part of the energy such as 0.1"),
    }
}

fn connect(args: &Args, address: &str) -> Result<Link> {
    let address: Address = address.parse()?;
    let identity = args.identity.as_deref().map(Identity::open).transpose()?;
    let within = Duration::from_secs(10);
    Ok(match &address {
        Address::Tls { .. } => Link::connect_tls(&address, identity.as_ref(), within)?,
        Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } | Address::Vsock { .. } => {
            Link::connect(&address, within)?
        }
    })
}

/// A run of the command.
struct Run<'a> {
    args: &'a Args,
    recipe: Recipe,
    split: Option<Split>,
    ledger: Ledger,
    report: Value,
    curves: Vec<(String, Vec<Epoch>)>,
}

impl Run<'_> {
    /// One network, alone or with a worker.
    fn open(&mut self, train: &Dataset, test: &Dataset) -> Result<(), TrainError> {
        let (args, split) = (self.args, self.split.clone());
        let mut session = self.session("checkpoint", &args.mode, split, train)?;
        let steps = self.learn(&args.mode, &mut session, train, test)?;
        self.book(train, steps);
        self.write("model.onnx", &onnx::export(session.network())?)
    }

    /// What the worker saw, of which nothing is covered.
    fn book(&mut self, train: &Dataset, steps: f64) {
        match self.args.mode.as_str() {
            "clear" => self
                .ledger
                .uncovered("every activation, gradient and weight in clear"),
            "asymml" => {
                self.ledger
                    .uncovered("residuals of all layers without noise");
                self.ledger
                    .uncovered("gradients and weights, from which hidden activations follow");
            }
            _ => {}
        }
        self.report["images"] = json!(train.len());
        self.report["seconds"] = json!(steps);
    }

    /// Two networks: one here, on what stays; one by the worker, on what is released.
    fn private(&mut self, train: &Dataset, test: &Dataset) -> Result<(), TrainError> {
        let args = self.args;
        let terms = Terms {
            rank: args.kept_rank,
            clip: args.clip,
            multiplier: args.noise,
            odds: args.label_odds,
        };
        let folder = args.output.join("released");
        let (kept, released) = self.release(train, terms, &folder)?;
        // Who is tested is no training image; its residual is clipped and noised alike.
        let tested = private::release(test, terms, false, &mut Ledger::default())?;
        let held = HELD_OUT.min(train.len() / 5);
        let count = train.len() - held;
        let learned = |set: &Dataset| set.clone().first(count);
        let start = Instant::now();
        let mut own = self.session("kept", "what stays", None, &learned(&kept))?;
        self.learn("what stays", &mut own, &learned(&kept), &tested.kept)?;
        let split = self.split.clone();
        let mut other = self.session(
            "checkpoint",
            "what was released",
            split,
            &learned(&released),
        )?;
        self.learn(
            "what was released",
            &mut other,
            &learned(&released),
            &tested.released,
        )?;
        let weights: Vec<f64> = (0..=20).map(|step| f64::from(step) * 0.05).collect();
        let last = |set: &Dataset| set.clone().last(held);
        let split = (last(&kept), last(&released));
        let on_held = private::together(
            (own.network(), &split.0),
            (other.network(), &split.1),
            &weights,
        )?;
        let best = (0..weights.len())
            .rev()
            .max_by(|a, b| on_held[*a].total_cmp(&on_held[*b]));
        let weight = weights[best.unwrap_or(0)];
        let found = private::together(
            (own.network(), &tested.kept),
            (other.network(), &tested.released),
            &[0.0, weight],
        )?;
        self.report["together"] = json!({
            "weight_of_the_worker": weight,
            "accuracy_of_what_stays": found[0],
            "accuracy": found[1],
            "energy_of_residuals": tested.energy,
            "clipped": tested.clipped,
        });
        self.report["images"] = json!(train.len());
        self.report["seconds"] = json!(start.elapsed().as_secs_f64());
        self.write("kept.onnx", &onnx::export(own.network())?)?;
        self.write("released.onnx", &onnx::export(other.network())?)
    }

    /// The halves of the training set, released once: a run that goes on takes what was released before.
    fn release(
        &mut self,
        train: &Dataset,
        terms: Terms,
        folder: &Path,
    ) -> Result<(Dataset, Dataset), TrainError> {
        let halves = private::release(train, terms, true, &mut self.ledger)?;
        let mark = folder.join("terms");
        let words = format!("{terms:?} {} images", train.len());
        if let Ok(before) = std::fs::read_to_string(&mark) {
            if before != words {
                return Err(TrainError::Data {
                    path: mark,
                    why: format!(
                        "images were released under other terms ({before}); a second release would cost as much again: name another --output"
                    ),
                });
            }
            return Ok((halves.kept, Dataset::load(folder, Part::Train)?));
        }
        halves.released.save(folder, Part::Train)?;
        std::fs::write(&mark, words).map_err(|source| TrainError::Io { path: mark, source })?;
        Ok((halves.kept, halves.released))
    }

    fn session(
        &self,
        file: &str,
        with: &str,
        split: Option<Split>,
        data: &Dataset,
    ) -> Result<Session, TrainError> {
        let path = self.args.output.join(format!("{file}.safetensors"));
        let with = format!(
            "{with} {}",
            if split.is_some() { &self.args.rank } else { "" }
        );
        Session::new(self.recipe.clone(), data, &with, split, Some(&path))
    }

    /// Trains to the end, with a bar.
    fn learn(
        &mut self,
        name: &str,
        session: &mut Session,
        train: &Dataset,
        test: &Dataset,
    ) -> Result<f64, TrainError> {
        let start = Instant::now();
        let steps = train.len().div_ceil(self.recipe.batch);
        let bar = progress(
            "training",
            (steps * self.recipe.epochs) as u64,
            "{pos}/{len}",
        );
        bar.set_position((session.epochs().len() * steps + session.step()) as u64);
        let mut said = session.epochs().len();
        session.train(
            train,
            test,
            |Standing {
                 epochs, step, loss, ..
             }| {
                bar.set_position((epochs.len() * steps + step.0) as u64);
                let last = epochs
                    .last()
                    .map(|e| format!(", accuracy {:.4}", e.accuracy));
                bar.set_message(format!(
                    "epoch {} loss {loss:.4}{}",
                    epochs.len() + 1,
                    last.unwrap_or_default()
                ));
                if epochs.len() > said {
                    said = epochs.len();
                    if let Some(e) = epochs.last() {
                        let took = e.took.as_secs_f64();
                        eprintln!(
                            "{name}: epoch {said}: loss {:.4}, accuracy {:.4}, {took:.1} s",
                            e.loss, e.accuracy
                        );
                    }
                }
            },
        )?;
        bar.finish_and_clear();
        self.curves
            .push((name.to_owned(), session.epochs().to_vec()));
        if let Some(spent) = session.spent() {
            let steps = steps * self.recipe.epochs;
            self.report["worker"] = in_json(&spent, steps);
        }
        Ok(start.elapsed().as_secs_f64())
    }

    fn write(&self, name: &str, contents: &[u8]) -> Result<(), TrainError> {
        let path = self.args.output.join(name);
        std::fs::write(&path, contents).map_err(|source| TrainError::Io { path, source })
    }

    /// Draws, reports and says what is guaranteed.
    fn finish(mut self) -> Result<()> {
        type Pick = fn(&Epoch) -> f64;
        let pictures: [(_, _, Pick); 2] = [
            ("loss.svg", "Mean loss of an epoch", |e| e.loss),
            ("accuracy.svg", "Accuracy on the test set", |e| e.accuracy),
        ];
        for (file, title, pick) in pictures {
            let curves: Vec<Curve> = self
                .curves
                .iter()
                .map(|(name, epochs)| Curve {
                    name: name.clone(),
                    points: (1u32..)
                        .zip(epochs)
                        .map(|(at, e)| (f64::from(at), pick(e)))
                        .collect(),
                })
                .collect();
            self.write(file, svg(title, "epoch", "", &curves).as_bytes())?;
        }
        let statement = match self.split {
            Some(_) => self.ledger.statement(self.args.delta),
            None => "nothing left this process".to_owned(),
        };
        let covered = self.split.is_none() || self.ledger.is_whole();
        self.report["mode"] = json!(self.args.mode);
        self.report["recipe"] = json!(format!("{:?}", self.recipe));
        self.report["privacy"] = json!({
            "statement": statement,
            "covers_all": covered,
            "rho": self.ledger.rho(),
            "epsilon": if covered { json!(self.ledger.epsilon(self.args.delta)) } else { Value::Null },
            "delta": self.args.delta,
        });
        let networks = self.curves.iter().map(|(name, epochs)| {
            let epochs = epochs.iter().map(|e| {
                json!({"loss": e.loss, "accuracy": e.accuracy, "seconds": e.took.as_secs_f64()})
            });
            json!({"name": name, "epochs": epochs.collect::<Vec<_>>()})
        });
        self.report["networks"] = networks.collect();
        let text = serde_json::to_string_pretty(&self.report)?;
        self.write("report.json", text.as_bytes())?;
        if self.args.json {
            println!("{text}");
            return Ok(());
        }
        let rows: Vec<Vec<String>> = self
            .curves
            .iter()
            .flat_map(|(name, epochs)| {
                (1..).zip(epochs).map(move |(at, e): (usize, &Epoch)| {
                    let took = e.took.as_secs_f64();
                    vec![
                        name.clone(),
                        at.to_string(),
                        format!("{:.4}", e.loss),
                        format!("{:.4}", e.accuracy),
                        format!("{took:.1}"),
                    ]
                })
            })
            .collect();
        print!(
            "{}",
            table(&["network", "epoch", "loss", "accuracy", "seconds"], &rows)
        );
        if let Some(spent) = self.split.as_ref().map(Split::spent) {
            let time = |d: Duration| format!("{:.1} s", d.as_secs_f64());
            println!(
                "splitting {}, convolving here {}, checking {}, waiting for the worker {}; {} sent, {} received",
                time(spent.splitting),
                time(spent.here),
                time(spent.checking),
                time(spent.waiting),
                bytes(spent.sent),
                bytes(spent.received)
            );
        }
        if let Value::Object(together) = &self.report["together"] {
            println!(
                "what stays alone {:.4}, with the worker's network {:.4} (its weight {})",
                together["accuracy_of_what_stays"].as_f64().unwrap_or(0.0),
                together["accuracy"].as_f64().unwrap_or(0.0),
                together["weight_of_the_worker"]
            );
        }
        println!("{statement}");
        println!("written to {}", self.args.output.display());
        Ok(())
    }
}

fn in_json(spent: &Spent, steps: usize) -> Value {
    json!({
        "steps": steps,
        "seconds": {
            "splitting": spent.splitting.as_secs_f64(),
            "here": spent.here.as_secs_f64(),
            "checking": spent.checking.as_secs_f64(),
            "waiting": spent.waiting.as_secs_f64(),
        },
        "bytes": {"up": spent.sent, "down": spent.received},
    })
}
