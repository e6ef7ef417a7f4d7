//! `larvatus pair`: learns a worker's key by a code that people compare; and the worker's end of it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larvatus_host::discovery::discover;
use larvatus_host::tls::Identity;
use larvatus_host::{Address, Clock, Link, Listener, Pin, entropy};
use larvatus_proto::pairing::{Key, Nonce, Pairing};

use crate::Verdict;
use crate::args::Pair as Args;
use crate::compare::{Typed, compare, say};
use crate::known::{Devices, Workers};
use crate::parties;

/// How long a worker may take to answer at all.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a name is looked for on the network.
const LOOK: Duration = Duration::from_secs(3);

/// How often the time is looked at while nobody connects.
const WAIT: Duration = Duration::from_millis(100);

pub(super) fn run(args: &Args) -> Result<Verdict> {
    let identity = parties::own_identity(args.identity.as_deref())?;
    let mut workers = Workers::open(args.workers.as_deref())?;
    let address = match args.worker.contains(':') {
        true => args.worker.parse()?,
        false => found(&args.worker, args.mdns_port)?,
    };
    let Address::Tls { host, port, .. } = &address else {
        bail!("{address}: only who listens on tls://HOST:PORT has a key to learn");
    };
    let name = match &args.name {
        Some(name) => name.clone(),
        None if args.worker.contains(':') => host.clone(),
        None => args.worker.clone(),
    };
    workers.may_be_called(&name)?;
    let link = Link::meet(&address, &identity, CONNECT)?;
    let peer = link.peer_pin().with_context(|| address.to_string())?;
    let peer = peer.with_context(|| format!("{address} shows no key"))?;
    ensure!(
        workers.with_key(peer).is_none(),
        "that worker is known already, as {}",
        workers.with_key(peer).unwrap_or_default()
    );
    let clock = Clock::start();
    let nonce = Nonce::new(entropy()?);
    let until = Duration::from_secs(args.within);
    let pairing = Pairing::device(key(identity.pin()), key(peer), nonce, until);
    let attempt = compare(pairing, link, clock, &Typed::lines(), "worker")?;
    let paired = attempt.outcome.with_context(|| address.to_string())?;
    let address = Address::Tls {
        host: host.clone(),
        port: *port,
        pin: Some(Pin(paired.with().0)),
    };
    workers.add(&name, &address)?;
    say(&format!(
        "\npaired: --worker {name} is {address} from now on ({})\n",
        workers.path().display()
    ))?;
    Ok(Verdict::Accepted)
}

/// The address of whoever announces itself so.
fn found(name: &str, port: u16) -> Result<Address> {
    let mut all = discover(LOOK, port)?;
    all.retain(|found| found.name == name);
    match &all[..] {
        [one] => Ok(one.address.clone()),
        [] => bail!(
            "nobody announces itself as {name:?}; give an address, tls://HOST:PORT, or look with `larvatus discover`"
        ),
        _ => bail!(
            "{} workers announce themselves as {name:?}; give the address of one, tls://HOST:PORT",
            all.len()
        ),
    }
}

fn key(pin: Pin) -> Key {
    Key(pin.0)
}

/// Waits for one device on a listener that admits everybody, and remembers it. Strangers that do not pair are sent
/// away; whoever has been told a nonce is the only one, since each is a guess.
pub(super) fn admit_one(
    listener: &Listener,
    identity: &Identity,
    devices: &mut Devices,
    within: Duration,
) -> Result<()> {
    let clock = Clock::start();
    let typed = Typed::lines();
    let own = key(identity.pin());
    let place = listener.address().to_string();
    let place = place.split('#').next().unwrap_or_default();
    say(&format!(
        "pairing for {} s: on the device, larvatus pair {place}\n",
        within.as_secs()
    ))?;
    while clock.now() < within {
        let Some(link) = listener.accept(WAIT)? else {
            continue;
        };
        let peer = link.peer().to_owned();
        let Ok(Some(pin)) = link.peer_pin() else {
            tracing::info!(peer, "no key was shown");
            continue;
        };
        let pairing = Pairing::worker(own, key(pin), Nonce::new(entropy()?), within);
        let attempt = compare(pairing, link, clock, &typed, "device")?;
        match attempt.outcome {
            Ok(paired) => {
                devices.add(Pin(paired.with().0))?;
                return say(&format!(
                    "\npaired: {} may connect from now on ({})\n",
                    Pin(paired.with().0),
                    devices.path().display()
                ));
            }
            Err(why) if attempt.spent => return Err(why).with_context(|| peer),
            Err(why) => tracing::info!(peer, %why, "sent away"),
        }
    }
    bail!("no device paired within {} s", within.as_secs())
}
