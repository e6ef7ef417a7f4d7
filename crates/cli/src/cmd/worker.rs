//! `larvatus worker`: the untrusted engine behind a socket.

use std::io::Read;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use larvatus_host::pump::Options;
use larvatus_host::{Address, Clock, Listener, serve};
use larvatus_worker::cpu::Cpu;
use larvatus_worker::{Backend, Limits, Service, Store};

use crate::Verdict;
use crate::args::Worker as Args;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    let address: Address = args.listen.parse()?;
    let threads = match args.threads {
        Some(threads) => NonZeroUsize::new(threads).context("--threads must be at least 1")?,
        None => std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
    };
    let backend = Cpu::new(threads)?;
    let name = backend.name();
    let limits = Limits {
        store_bytes: args.memory << 20,
        ..Limits::default()
    };
    let connections = limits.connections;
    let store = Store::new(Box::new(backend), limits);
    let listener = Listener::bind(&address)?;
    let stop = Arc::new(AtomicBool::new(false));
    if args.until_stdin_ends {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            let mut sink = [0; 64];
            while std::io::stdin().read(&mut sink).is_ok_and(|read| read > 0) {}
            stop.store(true, Ordering::Relaxed);
        });
    }
    println!(
        "worker on {}: {name}, {} MiB for models",
        listener.address(),
        args.memory
    );
    let make = move |now| Box::new(Service::new(Arc::clone(&store), now)) as Box<_>;
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

/// The folder that our caller made for this worker's socket.
fn own_folder(args: &Args, address: &Address) -> Option<PathBuf> {
    match address {
        Address::Unix(path) | Address::Shared(path) if args.until_stdin_ends => {
            path.parent().map(Path::to_owned)
        }
        Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } => None,
    }
}
