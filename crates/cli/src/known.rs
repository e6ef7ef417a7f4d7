//! Who is known here: workers by names of their owner's choice, and the devices that a worker serves.
//!
//! Both are small files in the user's folder for configuration, written as a whole. They hold public keys only, but whoever may
//! change them decides whom this program believes; so others must not be able to.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use larvatus_host::{Address, Pin};
use serde::{Deserialize, Serialize};

use crate::parties;

/// Largest file that is read.
const MAX: u64 = 1 << 20;

/// Longest name.
const MAX_NAME: usize = 63;

/// Workers that were paired with this device.
pub(crate) struct Workers {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    /// A tls:// address with its pin.
    address: String,
}

impl Workers {
    /// Reads them; without a file there are none.
    pub(crate) fn open(file: Option<&Path>) -> Result<Self> {
        let path = place(file, "workers.toml")?;
        let entries = match read(&path)? {
            None => BTreeMap::new(),
            Some(text) => toml::from_str(&text)
                .with_context(|| format!("known workers in {}", path.display()))?,
        };
        Ok(Self { path, entries })
    }

    /// The address of a worker.
    pub(crate) fn address(&self, name: &str) -> Option<&str> {
        self.entries.get(name).map(|entry| entry.address.as_str())
    }

    /// The name of the worker with this key.
    pub(crate) fn with_key(&self, pin: Pin) -> Option<&str> {
        let of = |entry: &Entry| entry.address.parse::<Address>().ok()?.pin();
        let mut all = self.entries.iter();
        all.find(|(_, entry)| of(entry) == Some(pin))
            .map(|(name, _)| name.as_str())
    }

    /// That a worker with this key may be called so.
    pub(crate) fn may_be_called(&self, name: &str) -> Result<()> {
        let usual = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let named = !name.is_empty() && name.len() <= MAX_NAME && name.chars().all(usual);
        ensure!(
            named,
            "{name:?} is no name for a worker: letters, digits, dots, dashes and underscores; give one with --name"
        );
        ensure!(
            !self.entries.contains_key(name),
            "a worker named {name} is known already; give another --name, or remove it from {}",
            self.path.display()
        );
        Ok(())
    }

    /// Remembers a worker.
    pub(crate) fn add(&mut self, name: &str, address: &Address) -> Result<()> {
        self.may_be_called(name)?;
        let address = address.to_string();
        self.entries.insert(name.to_owned(), Entry { address });
        let head = "# Workers that this device was paired with. Each is known by its key.\n\n";
        write(
            &self.path,
            &(head.to_owned() + &toml::to_string(&self.entries)?),
        )
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Puts addresses in the place of names. Who is named was paired with this machine's own key, so that is the one to use where
/// none is given.
pub(crate) fn resolve<'a>(
    workers: impl IntoIterator<Item = &'a mut String>,
    identity: &mut Option<PathBuf>,
) -> Result<()> {
    let mut known = None;
    for worker in workers {
        if worker.contains(':') {
            continue;
        }
        let known = match &known {
            Some(known) => known,
            None => known.insert(match parties::configuration() {
                Some(_) => Some(Workers::open(None)?),
                None => None,
            }),
        };
        let Some(address) = known.as_ref().and_then(|known| known.address(worker)) else {
            bail!(
                "no worker named {worker:?} is known; pair with it (`larvatus pair`), or give an address: unix:PATH, \
                 shm:PATH, tcp://HOST:PORT, tls://HOST:PORT#PIN or vsock://CID:PORT"
            );
        };
        address.clone_into(worker);
        if identity.is_none() {
            *identity = Some(place(None, "identity.key")?);
        }
    }
    Ok(())
}

/// Devices that this worker serves: their pins, one a line.
pub(crate) struct Devices {
    path: PathBuf,
    pins: Vec<Pin>,
}

impl Devices {
    /// Reads them; `None` where there is no file, nor a folder for one.
    pub(crate) fn open(file: Option<&Path>) -> Result<Option<Self>> {
        if file.is_none() && parties::configuration().is_none() {
            return Ok(None);
        }
        let path = place(file, "devices")?;
        let Some(text) = read(&path)? else {
            return Ok(None);
        };
        let pin = |(at, line): (usize, &str)| {
            let text = line.split('#').next().unwrap_or_default().trim();
            let pin = (!text.is_empty()).then(|| text.parse::<Pin>()).transpose();
            pin.with_context(|| format!("{}, line {}", path.display(), at + 1))
                .transpose()
        };
        let pins = text.lines().enumerate().filter_map(pin);
        let pins = pins.collect::<Result<_>>()?;
        Ok(Some(Self { path, pins }))
    }

    /// Reads them, or begins with none.
    pub(crate) fn open_or_begin(file: Option<&Path>) -> Result<Self> {
        match Self::open(file)? {
            Some(devices) => Ok(devices),
            None => Ok(Self {
                path: place(file, "devices")?,
                pins: Vec::new(),
            }),
        }
    }

    /// Their keys.
    pub(crate) fn pins(&self) -> &[Pin] {
        &self.pins
    }

    /// Remembers a device.
    pub(crate) fn add(&mut self, pin: Pin) -> Result<()> {
        if !self.pins.contains(&pin) {
            self.pins.push(pin);
        }
        let lines = self.pins.iter().map(|pin| format!("{pin}\n"));
        let head = "# Devices that this worker was paired with, by the pins of their keys.\n";
        write(&self.path, &(head.to_owned() + &lines.collect::<String>()))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The file, or the one of this name in the user's folder for configuration.
fn place(file: Option<&Path>, name: &str) -> Result<PathBuf> {
    match file {
        Some(file) => Ok(file.to_owned()),
        None => parties::configuration()
            .map(|folder| folder.join(name))
            .with_context(|| {
                format!("no folder for {name}: neither XDG_CONFIG_HOME nor HOME is set")
            }),
    }
}

/// The text of a file that nobody else may change; `None` where there is none.
fn read(path: &Path) -> Result<Option<String>> {
    let about = || format!("cannot read {}", path.display());
    let file = match fs::File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        other => other.with_context(about)?,
    };
    let state = file.metadata().with_context(about)?;
    let mode = state.permissions().mode() & 0o777;
    ensure!(
        mode & 0o022 == 0,
        "{} can be changed by others (mode {mode:o}); chmod 600 it",
        path.display()
    );
    ensure!(state.len() <= MAX, "{} is too large", path.display());
    Ok(Some(std::io::read_to_string(file).with_context(about)?))
}

/// Replaces a file: whoever reads it sees the old one or the new one.
fn write(path: &Path, text: &str) -> Result<()> {
    let about = || format!("cannot write {}", path.display());
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        parties::make_private(folder)?;
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let draft = PathBuf::from(name);
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, path)
        });
    if written.is_err() {
        let _ = fs::remove_file(&draft);
    }
    written.with_context(about)
}
