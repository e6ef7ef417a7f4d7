//! Who is who: this program's key, the workers and the dealer.
//!
//! A dealer knows the pads of the inferences it deals for, so it must not be the worker, nor read
//! the worker's link, nor let the worker read its own. Parties are told apart by their keys.

use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use larvatus::secret;
use larvatus::shares::Apart;
use larvatus_host::tls::Identity;
use larvatus_host::{Address, Link, OpenError};
use larvatus_proto::digest::Digest;

use crate::args::Dealing;

/// The parties of a run, as the command line names them.
#[derive(Clone)]
pub(crate) struct Parties {
    /// As whom this program connects; nobody in particular where there is none.
    pub(crate) identity: Option<Identity>,
    pub(crate) dealer: Option<Address>,
    /// Unix sockets count as parties.
    local: bool,
    /// Two workers are believed to be two.
    believed: bool,
}

impl Parties {
    /// Reads the addresses and holds them against each other.
    pub(crate) fn of(args: &Dealing, workers: &[String]) -> Result<Self> {
        let workers = workers.iter().map(|address| address.parse());
        let workers = workers.collect::<Result<Vec<Address>, _>>()?;
        let dealer: Option<Address> = args.dealer.as_deref().map(str::parse).transpose()?;
        let identity = args.identity.as_deref().map(Identity::open).transpose()?;
        let local = args.danger_local_dealer;
        let parties = Self {
            identity,
            dealer,
            local,
            believed: args.danger_local_workers,
        };
        let Some(dealer) = &parties.dealer else {
            return Ok(parties);
        };
        let Some(dealing) = parties.known(dealer) else {
            bail!(
                "--dealer {dealer}: a dealer needs an encrypted link and a key, \
                 tls://HOST:PORT#PIN; whoever reads both links knows the input"
            );
        };
        ensure!(
            local || !workers.is_empty(),
            "--dealer needs --worker tls://HOST:PORT#PIN, to know that they are two parties"
        );
        for worker in &workers {
            let Some(working) = parties.known(worker) else {
                bail!(
                    "--worker {worker}: with a dealer, a worker needs an encrypted link and a key, \
                     tls://HOST:PORT#PIN; whoever reads both links knows the input"
                );
            };
            ensure!(
                working != dealing,
                "{worker} is the dealer itself: who knows the pads must not see what they hide; \
                 name a worker of another party"
            );
        }
        Ok(parties)
    }

    /// The same parties but the dealer.
    pub(crate) fn without_dealer(&self) -> Self {
        Self {
            dealer: None,
            ..self.clone()
        }
    }

    /// Who listens at an address, where that is known for sure.
    pub(crate) fn known(&self, address: &Address) -> Option<secret::Identity> {
        match address {
            Address::Tls { pin, .. } => pin.map(|pin| secret::Identity(pin.0)),
            Address::Unix(path) | Address::Shared(path) if self.local => {
                let path = path.canonicalize().unwrap_or_else(|_| path.clone());
                let name = path.as_os_str().as_encoded_bytes();
                Some(secret::Identity(Digest::of_file(name).0))
            }
            Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } | Address::Vsock { .. } => {
                None
            }
        }
    }

    /// That two workers may hold shares of the same weights.
    ///
    /// # Errors
    /// Where their keys do not tell them apart.
    pub(crate) fn apart(&self, first: &Address, second: &Address) -> Result<Apart> {
        match (self.known(first), self.known(second)) {
            (Some(one), Some(two)) => {
                Apart::known(one, two).with_context(|| format!("{first} and {second}"))
            }
            _ if self.believed => Ok(Apart::danger_believed()),
            _ => bail!(
                "{first} and {second}: workers that hold shares of the weights must be told apart by their \
                 keys; name them as tls://HOST:PORT#PIN (--danger-local-workers lifts this, for trying out)"
            ),
        }
    }

    /// Connects.
    pub(crate) fn connect(&self, to: &Address, within: Duration) -> Result<Link, OpenError> {
        match to {
            Address::Tls { .. } => Link::connect_tls(to, self.identity.as_ref(), within),
            Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } | Address::Vsock { .. } => {
                Link::connect(to, within)
            }
        }
    }
}

/// The identity of a listener: the key in the file, or in the user's folder for configuration.
pub(crate) fn own_identity(file: Option<&Path>) -> Result<Identity> {
    let file = match file {
        Some(file) => file.to_owned(),
        None => {
            let folder =
                configuration().context("no folder for the key; name a file with --identity")?;
            make_private(&folder)?;
            folder.join("identity.key")
        }
    };
    Ok(Identity::open(&file)?)
}

/// Makes a folder, where there is none, that only its owner may enter.
pub(crate) fn make_private(folder: &Path) -> Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    let made = builder.recursive(true).mode(0o700).create(folder);
    made.with_context(|| format!("cannot make {}", folder.display()))
}

/// The user's folder for configuration.
pub(crate) fn configuration() -> Option<PathBuf> {
    let folder = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = folder("XDG_CONFIG_HOME").or_else(|| Some(folder("HOME")?.join(".config")))?;
    Some(base.join("larvatus"))
}
