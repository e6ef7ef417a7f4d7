//! `larvatus worker` and `larvatus dealer`: the untrusted engine behind a socket.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use larvatus_host::pump::Options;
use larvatus_host::{Address, Clock, Listener, Pin, entropy, serve};
use larvatus_proto::receipt::Signer;
use larvatus_worker::cpu::Cpu;
use larvatus_worker::{Backend, Limits, Service, Store};

use crate::Verdict;
use crate::args::Serve as Args;
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
    let listener = listen(args, &address)?;
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
    let make = move |now| {
        let store = Arc::clone(&store);
        Box::new(match role {
            Role::Worker => Service::new(store, now),
            Role::Dealer => Service::dealer(store, now),
        }) as Box<_>
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

/// Starts to listen, over TLS with this machine's identity.
fn listen(args: &Args, address: &Address) -> Result<Listener> {
    let allow = args.allow.iter().map(|pin| pin.parse());
    let allow = allow.collect::<Result<Vec<Pin>, _>>()?;
    match address {
        Address::Tls { .. } => {
            let identity = parties::own_identity(args.identity.as_deref())?;
            Ok(Listener::bind_tls(address, &identity, &allow)?)
        }
        Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } | Address::Vsock { .. } => {
            ensure!(
                allow.is_empty() && args.identity.is_none(),
                "--identity and --allow need a tls:// address to listen on"
            );
            Ok(Listener::bind(address)?)
        }
    }
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
