//! `larvatus worker` and `larvatus dealer`: the untrusted engine behind a socket.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larvatus_host::discovery::Announcement;
use larvatus_host::load::{Others, Source, System};
use larvatus_host::pump::Options;
use larvatus_host::tls::Identity;
use larvatus_host::{Address, Clock, Listener, Pin, entropy, serve};
use larvatus_proto::machine::Machine;
use larvatus_proto::receipt::Signer;
use larvatus_worker::cpu::Cpu;
use larvatus_worker::training::{Threads, TrainingLimits};
use larvatus_worker::{Attention, Backend, Limits, Service, Store, Trainer};

use crate::Verdict;
use crate::args::Serve as Args;
use crate::cmd::pair;
use crate::known::Devices;
use crate::parties;

/// What the engine is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Rounds of uploads.
    Worker,
    /// Rounds of pads.
    Dealer,
}

pub(super) fn run(args: &Args, role: Role) -> Result<Verdict> {
    let address: Address = args.listen.parse()?;
    ensure!(
        !args.training || role == Role::Worker,
        "--training is for workers: a dealer deals for inferences"
    );
    let threads = match args.threads {
        Some(threads) => NonZeroUsize::new(threads).context("--threads must be at least 1")?,
        None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let backend = Cpu::new(threads)?;
    let name = backend.name();
    let limits = Limits {
        store_bytes: args.memory << 20,
        trace_bytes: args.trace_memory << 20,
        ..Limits::default()
    };
    let connections = limits.connections;
    let backend = Box::new(backend);
    let store = match role {
        Role::Worker => Store::signing(backend, limits, signer(args)?),
        Role::Dealer => Store::new(backend, limits),
    };
    let key = store.key();
    if let Some(most) = args.max_load {
        let source = System::new(&args.load_from);
        watch(most, source, store.attention().clone())
            .with_context(|| format!("--max-load: {}", args.load_from.display()))?;
    }
    let (mut listener, gate) = listen(args, &address)?;
    let stop = Arc::new(AtomicBool::new(false));
    if args.until_stdin_ends {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut sink = [0; 64];
            while std::io::stdin().read(&mut sink).is_ok_and(|read| read > 0) {}
            stop.store(true, Ordering::Relaxed);
        });
    }
    let what = match role {
        Role::Worker => "worker",
        Role::Dealer => "dealer",
    };
    let key = key.map(|key| format!(", receipt key {key}"));
    println!(
        "{what} on {}: {name}, {} MiB for models{}",
        listener.address(),
        args.memory,
        key.unwrap_or_default()
    );
    let announced = args
        .announce
        .as_deref()
        .map(|name| announce(args, name, &listener));
    let announced = announced.transpose()?;
    if let Some(gate) = gate {
        gate.open(args, &mut listener)?;
    }
    let training = match args.training {
        true => Some(Threads::new(threads)?),
        false => None,
    };
    let make = move |now| -> Box<dyn Machine + Send> {
        let store = Arc::clone(&store);
        match (&training, role) {
            (Some(threads), _) => {
                let limits = TrainingLimits::default();
                Box::new(Trainer::new(limits, Some(threads.clone()), now))
            }
            (None, Role::Worker) => Box::new(Service::new(store, now)),
            (None, Role::Dealer) => Box::new(Service::dealer(store, now)),
        }
    };
    serve(
        &listener,
        connections,
        Options::default(),
        Clock::start(),
        &make,
        &stop,
    );
    let folder = own_folder(args, listener.address());
    drop(announced);
    drop(listener);
    if let Some(folder) = folder {
        // The caller may have removed it already; what is not empty stays.
        let _ = std::fs::remove_dir(folder);
    }
    Ok(Verdict::Accepted)
}

/// The key that whole runs are signed with. A worker that its caller started, or that has no place for a key, signs with one
/// that goes with it.
fn signer(args: &Args) -> Result<Signer> {
    if args.receipt_key.is_none() && args.until_stdin_ends {
        return Ok(Signer::new(entropy()?));
    }
    let kept = parties::receipt_key(args.receipt_key.as_deref(), "worker-receipt.key");
    match &args.receipt_key {
        None if kept.is_err() => {
            eprintln!(
                "larvatus: no place for a receipt key; this process signs with one of its own"
            );
            Ok(Signer::new(entropy()?))
        }
        _ => kept,
    }
}

/// Over TLS: as whom it listens, and whom it serves.
struct Gate {
    identity: Identity,
    allow: Vec<Pin>,
    devices: Option<Devices>,
}

/// Starts to listen, over TLS with this machine's identity. Nobody is served before its gate opens.
fn listen(args: &Args, address: &Address) -> Result<(Listener, Option<Gate>)> {
    match address {
        Address::Tls { .. } => {
            let identity = parties::own_identity(args.identity.as_deref())?;
            let file = args.devices.as_deref();
            let devices = match args.pair {
                true => Some(Devices::open_or_begin(file)?),
                false => Devices::open(file)?,
            };
            if let (None, Some(file)) = (&devices, file) {
                bail!("there is no file {}; `--pair` makes it", file.display());
            }
            let allow = args.allow.iter().map(|pin| pin.parse());
            let allow = allow.collect::<Result<Vec<Pin>, _>>()?;
            if let Some(devices) = &devices {
                // An empty list would let in everybody.
                ensure!(
                    args.pair || !devices.pins().is_empty() || !allow.is_empty(),
                    "{} names no device; `--pair` adds one",
                    devices.path().display()
                );
            }
            let listener = Listener::bind_tls(address, &identity, &[])?;
            let gate = Gate {
                identity,
                allow,
                devices,
            };
            Ok((listener, Some(gate)))
        }
        Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } | Address::Vsock { .. } => {
            ensure!(
                args.allow.is_empty() && args.identity.is_none(),
                "--identity and --allow need a tls:// address to listen on"
            );
            ensure!(
                !args.pair && args.devices.is_none() && args.announce.is_none(),
                "--pair, --devices and --announce need a tls:// address to listen on"
            );
            Ok((Listener::bind(address)?, None))
        }
    }
}

impl Gate {
    /// Pairs with a device, if that is wished, and from then on lets in whoever is known.
    fn open(mut self, args: &Args, listener: &mut Listener) -> Result<()> {
        if let Some(devices) = self.devices.as_mut().filter(|_| args.pair) {
            let within = Duration::from_secs(args.pair_within);
            pair::admit_one(listener, &self.identity, devices, within)?;
        }
        let devices = self.devices.iter().flat_map(Devices::pins);
        self.allow.extend(devices);
        Ok(listener.admit(&self.identity, &self.allow)?)
    }
}

/// Announces where it listens.
fn announce(args: &Args, name: &str, listener: &Listener) -> Result<Announcement> {
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let machine = machine.unwrap_or_else(|_| "larvatus".to_owned());
    let name = if name.is_empty() {
        machine.trim()
    } else {
        name
    };
    let announced = Announcement::new(name, listener.address(), args.mdns_port)?;
    println!("announced as {}", announced.name());
    Ok(announced)
}

/// How often the load is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Takes new work only while others make no more load than `most`, from the first look on.
fn watch(most: f64, mut source: impl Source + Send + 'static, attention: Attention) -> Result<()> {
    let clock = Clock::start();
    let mut others = Others::default();
    let mut look = move || {
        let load = others.load(clock.now(), source.sample()?);
        if attention.is_paused() != (load > most) {
            tracing::info!(load, most, paused = load > most, "load of others");
        }
        attention.pause(load > most);
        std::io::Result::Ok(())
    };
    look()?;
    std::thread::Builder::new()
        .name("larvatus-load".into())
        .spawn(move || {
            loop {
                std::thread::sleep(LOOK);
                if let Err(error) = look() {
                    tracing::warn!(%error, "the load cannot be read");
                }
            }
        })?;
    Ok(())
}

/// The folder that our caller made for this worker's socket.
fn own_folder(args: &Args, address: &Address) -> Option<PathBuf> {
    match address {
        Address::Unix(path) | Address::Shared(path) if args.until_stdin_ends => {
            path.parent().map(Path::to_owned)
        }
        Address::Unix(_)
        | Address::Shared(_)
        | Address::Tcp { .. }
        | Address::Vsock { .. }
        | Address::Tls { .. } => None,
    }
}
