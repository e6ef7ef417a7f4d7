//! `larvatus serve`: the trusted side as a service.

use std::io::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larvatus::policy::Secrecy;
use larvatus_attest::attester::{Attester, ConfigfsTsm, Simulated};
use larvatus_attest::channel::Identity;
use larvatus_attest::memory::{Memory, Unlocked};
use larvatus_attest::platform::Platform;
use larvatus_attest::service::Service;
use larvatus_serve::confidential::Confidential;
use larvatus_serve::server::Server;
use larvatus_serve::settings::Settings;

use crate::Verdict;
use crate::args::{Floats, Inference as Args, Job};
use crate::cmd::Named;
use crate::parties::Parties;
use crate::serving::{Crew, Keys, Models, Ring};
use crate::spawn::OwnWorker;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    // Before there is anything to protect.
    let memory = Memory::protect(match args.allow_unlocked {
        true => Unlocked::Allow,
        false => Unlocked::Refuse,
    })
    .context("--allow-unlocked serves all the same, and metadata show it")?;
    ensure!(
        args.models.is_dir(),
        "{} is no folder; give the folder that holds the models",
        args.models.display()
    );
    ensure!(args.admit > 0, "--admit must be at least 1");
    let named = Named::of(&job(args))?;
    named.by_layer("serve")?;
    let crew = crew(args, &named)?;
    let lanes = match args.lanes {
        Some(lanes) => NonZeroUsize::new(lanes).context("--lanes must be at least 1")?,
        None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let settings = Settings {
        listen: args.listen.clone(),
        listen_tls: args.listen_tls.clone(),
        models: args.models.clone(),
        load: (!args.load.is_empty()).then(|| args.load.clone()),
        model_control: args.model_control,
        lanes,
        admit: args.admit,
        max_request: args.max_request << 20,
        deadline: seconds("--deadline", args.deadline)?,
        drain: seconds("--drain", args.drain)?,
        connections: args.connections,
        memory_locked: memory.is_locked(),
    };
    let name = named.name.clone();
    let keys = Keys::new(args.models.clone(), memory);
    let confidential = match &args.attest {
        Some(platform) => Some(confidential(platform, Arc::clone(&keys), memory)?),
        None => None,
    };
    let mut about = format!("{lanes} lanes, {name}");
    about += match memory.is_locked() {
        true => ", memory locked",
        false => ", MEMORY NOT LOCKED",
    };
    if let Some(confidential) = &confidential {
        let platform = confidential.service.platform();
        about += &format!(", vouched for by {platform}");
        if platform == Platform::SimulatedNotATee {
            eprintln!(
                "larvatus: {platform} vouches for nothing: anybody can make its evidence; for development only"
            );
        }
    }
    let models = Models {
        named,
        shapes: shapes(&args.shape)?,
        crew,
        keys,
    };
    let plain = settings.listen.len();
    let server = Server::bind(settings, Box::new(models), confidential)?;
    let mut out = std::io::stdout().lock();
    for (at, address) in server.addresses().into_iter().enumerate() {
        let over = if at < plain { "" } else { " over TLS" };
        writeln!(out, "serving on {address}{over}: {about}")?;
    }
    out.flush()?;
    drop(out);
    server.run()?;
    Ok(Verdict::Accepted)
}

/// The keys of this process, and who vouches for them.
fn confidential(platform: &str, keys: Arc<Keys>, memory: Memory) -> Result<Confidential> {
    let attester: Box<dyn Attester> = match platform.split_once(':') {
        None if platform == "tsm" => Box::new(ConfigfsTsm::open()?),
        Some(("simulated", measurement)) => {
            let mut bytes = [0; 48];
            hex::decode_to_slice(measurement, &mut bytes)
                .context("--attest simulated:HEX: 96 hexadecimal digits are wanted")?;
            Box::new(Simulated::new(bytes))
        }
        _ => bail!("--attest {platform}: tsm, or simulated:HEX"),
    };
    let identity = Identity::fresh(vec!["localhost".to_owned()])?;
    let service = Service::new(attester, &identity, memory)?;
    Ok(Confidential {
        identity,
        service: Arc::new(service),
        keyring: Box::new(Ring(keys)),
    })
}

fn job(args: &Args) -> Job {
    Job {
        model: args.models.clone(),
        preset: args.preset.clone(),
        policy: args.policy.clone(),
        rates: args.rates.clone(),
        fresh_check: args.fresh_check,
        shape: Vec::new(),
        floats: Floats::default(),
    }
}

/// Who does the linear layers, where the policy sends them away.
fn crew(args: &Args, named: &Named) -> Result<Option<Arc<Crew>>> {
    if !named.offloads() {
        ensure!(
            args.worker.is_empty(),
            "--worker is of no use: under {} no worker is called",
            named.name
        );
        return Ok(None);
    }
    let parties = Parties::workers_only(args.identity.as_deref())?;
    let two = named.policy.secrecy() == Secrecy::TwoWorkers;
    let mut workers = args.worker.clone();
    let mut own = Vec::new();
    if workers.is_empty() {
        if two {
            bail!(
                "{} needs two workers: --worker tls://HOST:PORT#PIN, twice",
                named.name
            );
        }
        let worker = OwnWorker::start(args.worker_threads)?;
        workers.push(worker.address());
        own.push(worker);
    }
    ensure!(
        !two || workers.len() >= 2,
        "{} needs two workers, one is named",
        named.name
    );
    Ok(Some(Arc::new(Crew {
        workers,
        parties,
        _own: own,
        answer_within: seconds("--timeout", args.timeout)?,
    })))
}

pub(super) fn seconds(what: &str, given: f64) -> Result<Duration> {
    let time = Duration::try_from_secs_f64(given)
        .ok()
        .filter(|time| !time.is_zero());
    time.with_context(|| format!("{what} {given}: a number of seconds above 0 is wanted"))
}

/// `MODEL:INPUT=1x3x224x224`.
fn shapes(given: &[String]) -> Result<Vec<(String, (String, Vec<usize>))>> {
    let one = |text: &String| {
        let (model, shape) = text.split_once(':').with_context(|| {
            format!("--shape {text:?} is not of the form MODEL:INPUT=1x3x224x224")
        })?;
        Ok((model.to_owned(), crate::input::parse_shape(shape)?))
    };
    given.iter().map(one).collect()
}
