//! A worker that computes one element of whole networks wrong, for trying out audits and judges.
//!
//! `crooked unix:PATH TENSOR ELEMENT` serves until it is killed, and prints its receipt key. Tensors are numbered as the graph has
//! them: inputs first, then what each node makes.

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use larvatus_host::pump::Options;
use larvatus_host::{Clock, Listener, serve};
use larvatus_testkit::adversary::{Crooked, Wrong};
use larvatus_testkit::whole::{WORKER, service, store};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let mut next = |what| args.next().context(what);
    let listener = Listener::bind(&next("an address")?.parse()?)?;
    let wrong = Wrong::Made {
        tensor: next("a tensor's number")?.parse()?,
        element: next("an element")?.parse()?,
    };
    let store = store(Box::new(Crooked(wrong)));
    println!("{}", larvatus_proto::receipt::Signer::new(WORKER).public());
    let make = move |_| Box::new(service(&store)) as Box<_>;
    let stop = AtomicBool::new(false);
    serve(
        &listener,
        4,
        Options::default(),
        Clock::start(),
        &make,
        &stop,
    );
    Ok(())
}
