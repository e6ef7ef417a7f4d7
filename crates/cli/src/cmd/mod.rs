//! The commands.

mod assess;
mod audit;
mod bench;
mod calibrate;
mod client;
mod discover;
mod evidence;
mod judge;
mod pair;
mod plan;
mod provision;
pub(crate) mod release;
mod run;
pub(crate) mod seal;
mod serve;
pub(crate) mod train;
mod worker;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use larvatus::faithful::{self, Demand, Fraction, Times};
use larvatus::model::Model;
use larvatus::model::linear::StaysLocal;
use larvatus::plan::{Kept, Plan, Rates};
use larvatus::policy::{Integrity, Policy, Preset};

use crate::args::{Args, Command, Dealing, Inference, Job};
use crate::{Verdict, known, parties};

pub(crate) fn run(args: Args) -> Result<Verdict> {
    match args.command {
        Command::Run(mut args) => {
            let Dealing {
                dealer, identity, ..
            } = &mut args.dealing;
            known::resolve(args.worker.iter_mut().chain(dealer), identity)?;
            run::run(&args)
        }
        Command::Assess(args) => assess::run(&args),
        Command::Plan(args) => plan::run(&args),
        Command::Provision(args) => provision::run(&args),
        Command::Serve(mut args) => {
            let Inference {
                worker, identity, ..
            } = &mut *args;
            known::resolve(worker, identity)?;
            serve::run(&args)
        }
        Command::Client(args) => client::run(&args),
        Command::Train(mut args) => {
            let args = &mut *args;
            known::resolve(&mut args.worker, &mut args.identity)?;
            train::run(args)
        }
        Command::Worker(args) => worker::run(&args, worker::Role::Worker),
        Command::Dealer(args) => worker::run(&args, worker::Role::Dealer),
        Command::Identity(args) => {
            println!("{}", parties::own_identity(args.file.as_deref())?.pin());
            Ok(Verdict::Accepted)
        }
        Command::Audit(mut args) => {
            known::resolve(&mut args.worker, &mut args.identity)?;
            audit::run(&args)
        }
        Command::VerifyReceipt(args) => judge::verify_receipt(&args),
        Command::Judge(args) => judge::judge(&args),
        Command::Bench(mut args) => {
            let Dealing {
                dealer, identity, ..
            } = &mut args.dealing;
            known::resolve(args.worker.iter_mut().chain(dealer), identity)?;
            bench::run(&args)
        }
        Command::Calibrate(mut args) => {
            known::resolve(&mut args.worker, &mut args.identity)?;
            calibrate::run(&args)
        }
        Command::Pair(args) => pair::run(&args),
        Command::Discover(args) => discover::run(&args),
        Command::Seal(args) => seal::run(&args),
        Command::Release(args) => release::run(&args),
    }
}

/// Reads a model file.
pub(crate) fn load(path: &Path, shapes: &[(String, Vec<usize>)]) -> Result<Model> {
    ensure!(
        !path.is_dir(),
        "model {} is a folder; give the ONNX file in it",
        path.display()
    );
    Model::open(path, shapes).with_context(|| format!("model {}", path.display()))
}

/// A job's policy, under the name that reports give it.
pub(crate) struct Named {
    pub(crate) name: String,
    pub(crate) preset: Option<Preset>,
    pub(crate) policy: Policy,
}

impl Named {
    pub(crate) fn of(job: &Job) -> Result<Self> {
        let mut named = Self::as_named(job)?;
        if job.fresh_check {
            ensure!(
                named.offloads() && named.policy.integrity() != Integrity::Unverified,
                "--fresh-check is of no use: {} checks nothing",
                named.name
            );
            named.policy = named.policy.with_fresh_checks()?;
        }
        if let Some(path) = &job.rates {
            named.policy.rates = rates(path)?;
        }
        Ok(named)
    }

    fn as_named(job: &Job) -> Result<Self> {
        if let Some(path) = &job.policy {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read policy {}", path.display()))?;
            let policy =
                Policy::from_toml(&text).with_context(|| format!("policy {}", path.display()))?;
            return Ok(Self {
                name: path.display().to_string(),
                preset: None,
                policy,
            });
        }
        if floats(job)?.is_some() {
            bail!("preset {} is for run and plan only", job.preset);
        }
        let preset: Preset = job.preset.parse()?;
        Ok(Self {
            name: preset.to_string(),
            preset: Some(preset),
            policy: preset.policy(),
        })
    }

    /// That layers go to a worker one by one, where something takes that.
    pub(crate) fn by_layer(&self, what: &str) -> Result<()> {
        ensure!(
            self.preset != Some(Preset::WholeAudited),
            "--preset {} sends the whole network; {what} is for presets that send layers",
            self.name
        );
        Ok(())
    }

    /// Whether a worker is called.
    pub(crate) fn offloads(&self) -> bool {
        self.preset.is_none_or(Preset::offloads)
    }
}

/// What a preset in floats demands; nothing where the job names none.
pub(crate) fn floats(job: &Job) -> Result<Option<Demand>> {
    let Ok(preset) = job.preset.parse::<faithful::Preset>() else {
        return Ok(None);
    };
    if job.policy.is_some() {
        return Ok(None);
    }
    ensure!(!job.fresh_check, "--fresh-check is not for {preset}");
    let times = |what, times| {
        Times::new(times)
            .with_context(|| format!("{what} {times}: a power of two from 2 to 8388608 is wanted"))
    };
    let data = times("--mask-times", job.floats.mask_times)?;
    let weights = times("--weight-mask-times", job.floats.weight_mask_times)?;
    let audit = Fraction::new(job.floats.audit_share)
        .context("--audit-share: a number above 0 and at most 1 is wanted")?;
    Ok(Some(preset.demand(data, weights, audit)))
}

/// Shapes given on the command line.
pub(crate) fn shapes(given: &[String]) -> Result<Vec<(String, Vec<usize>)>> {
    given
        .iter()
        .map(|text| crate::input::parse_shape(text))
        .collect()
}

/// Reads what work costs.
pub(crate) fn rates(path: &Path) -> Result<Rates> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read rates {}", path.display()))?;
    Rates::from_toml(&text).with_context(|| format!("rates {}", path.display()))
}

/// Whether a plan keeps everything because nothing pays.
pub(crate) fn nothing_pays(plan: &Plan) -> bool {
    let unpaid = |kept: &Kept| kept.why == StaysLocal::DoesNotPay;
    plan.round_trips() == 0 && plan.kept().iter().any(unpaid)
}

/// Plans a model.
pub(crate) fn plan(model: &Model, policy: &Policy) -> Result<Arc<Plan>> {
    Ok(Plan::new(model, policy)?)
}
