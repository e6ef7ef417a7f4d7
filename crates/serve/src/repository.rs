//! The models of a folder, and which of them are served.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use crate::engine::{Engine, Loader};
use crate::refusal::Refusal;

/// The one version of every model.
pub(crate) const VERSION: &str = "1";

/// Longest name of a model.
const LONGEST_NAME: usize = 128;

/// A model that is served, or was when somebody began to use it.
pub(crate) struct Loaded {
    name: String,
    engine: Box<dyn Engine>,
    broken: OnceLock<String>,
}

impl Loaded {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Serves it no more, for a reason that stays.
    pub(crate) fn take_out(&self, why: &str) {
        tracing::error!(model = self.name, why, "taken out of service");
        // The first reason stays.
        let _ = self.broken.set(why.to_owned());
    }
}

enum State {
    Loading,
    Ready(Arc<Loaded>),
    /// Nobody asked for it, or somebody asked for it to go.
    Aside,
    /// It should be served and cannot be.
    Unavailable(String),
}

/// A model as an index shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) ready: bool,
    /// Whether nobody wants it served.
    aside: bool,
    /// `READY`, `LOADING` or `UNAVAILABLE`.
    pub(crate) state: &'static str,
    pub(crate) reason: String,
}

/// A folder of models.
pub(crate) struct Repository {
    folder: PathBuf,
    loader: Box<dyn Loader>,
    states: RwLock<BTreeMap<String, State>>,
    /// Held by whoever loads: one at a time.
    loading: Mutex<()>,
}

/// Why a model is not served that could be.
const ASIDE: &str = "not loaded";

impl Repository {
    /// Reads which models a folder has; none is loaded.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub(crate) fn open(folder: &Path, loader: Box<dyn Loader>) -> std::io::Result<Self> {
        let repository = Self {
            folder: folder.to_owned(),
            loader,
            states: RwLock::default(),
            loading: Mutex::default(),
        };
        let names = repository.files()?.into_keys();
        let states = names.map(|name| (name, State::Aside));
        *repository.write() = states.collect();
        Ok(repository)
    }

    /// The files of models, by name. Names that would not survive a path or a label are left out.
    fn files(&self) -> std::io::Result<BTreeMap<String, PathBuf>> {
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let Some(name) = self.loader.name(&path).filter(|name| may_be_named(name)) else {
                continue;
            };
            if path.is_file() && files.insert(name.clone(), path).is_some() {
                tracing::warn!(name, "two files for one model; one of them is taken");
            }
        }
        Ok(files)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, State>> {
        self.states.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, State>> {
        self.states.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> MutexGuard<'_, ()> {
        self.loading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All models, by name.
    pub(crate) fn index(&self) -> Vec<Entry> {
        let states = self.read();
        let entries = states.iter().map(|(name, of)| {
            let (state, reason) = match of {
                State::Loading => ("LOADING", String::new()),
                State::Ready(loaded) => match loaded.broken.get() {
                    None => ("READY", String::new()),
                    Some(why) => ("UNAVAILABLE", why.clone()),
                },
                State::Aside => ("UNAVAILABLE", ASIDE.to_owned()),
                State::Unavailable(why) => ("UNAVAILABLE", why.clone()),
            };
            Entry {
                name: name.clone(),
                ready: state == "READY",
                aside: matches!(of, State::Aside),
                state,
                reason,
            }
        });
        entries.collect()
    }

    /// A model that is served.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] where there is none of that name and version, or it is not served.
    pub(crate) fn get(&self, name: &str, version: &str) -> Result<Arc<Loaded>, Refusal> {
        if !matches!(version, "" | VERSION) {
            let shown: String = version.chars().take(32).collect();
            return Err(Refusal::NotFound(format!(
                "there is no version `{}` of a model here; every model has version {VERSION}",
                shown.escape_debug()
            )));
        }
        match self.read().get(name) {
            None => Err(unknown(name)),
            Some(State::Loading) => Err(Refusal::NotFound(format!(
                "model `{name}` is being loaded; ask again"
            ))),
            Some(State::Aside) => Err(Refusal::NotFound(format!("model `{name}` is {ASIDE}"))),
            Some(State::Unavailable(why)) => Err(Refusal::NotFound(format!(
                "model `{name}` is not served: {why}"
            ))),
            Some(State::Ready(loaded)) => match loaded.broken.get() {
                None => Ok(Arc::clone(loaded)),
                Some(why) => Err(Refusal::NotFound(format!(
                    "model `{name}` was taken out of service: {why}"
                ))),
            },
        }
    }

    /// Loads a model, or loads it anew; the one that is there serves until then. Takes seconds.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] where the folder has no such file, [`Refusal::Invalid`] where it cannot be loaded.
    pub(crate) fn load(&self, name: &str) -> Result<(), Refusal> {
        let _alone = self.alone();
        let files = self.files().map_err(|err| {
            Refusal::Failed(format!("the model repository cannot be read: {err}"))
        })?;
        let file = files.get(name).ok_or_else(|| unknown(name))?;
        {
            let mut states = self.write();
            let there = states.get(name);
            if !matches!(there, Some(State::Ready(_))) {
                states.insert(name.to_owned(), State::Loading);
            }
        }
        tracing::info!(name, "loading");
        let loaded = self.loader.load(file);
        let mut states = self.write();
        match loaded {
            Ok(engine) => {
                let loaded = Loaded {
                    name: name.to_owned(),
                    engine,
                    broken: OnceLock::new(),
                };
                states.insert(name.to_owned(), State::Ready(Arc::new(loaded)));
                Ok(())
            }
            Err(why) => {
                // A model that serves goes on serving as it was.
                if !matches!(states.get(name), Some(State::Ready(_))) {
                    states.insert(name.to_owned(), State::Unavailable(why.clone()));
                }
                Err(Refusal::Invalid(format!("model `{name}`: {why}")))
            }
        }
    }

    /// Serves a model no more; inferences that have begun are finished.
    ///
    /// # Errors
    /// [`Refusal::NotFound`] where there is none of that name.
    pub(crate) fn unload(&self, name: &str) -> Result<(), Refusal> {
        let _alone = self.alone();
        let mut states = self.write();
        let state = states.get_mut(name).ok_or_else(|| unknown(name))?;
        *state = State::Aside;
        Ok(())
    }

    /// Whether everything that should be served is: nothing is being loaded, nothing failed, and something is there.
    pub(crate) fn is_ready(&self) -> bool {
        let index = self.index();
        index.iter().any(|entry| entry.ready)
            && index.iter().all(|entry| entry.ready || entry.aside)
    }

    /// Whether there is a model of that name, served or not.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.read().contains_key(name)
    }
}

fn unknown(name: &str) -> Refusal {
    let shown: String = name.chars().take(LONGEST_NAME).collect();
    Refusal::NotFound(format!(
        "there is no model `{}` here; POST /v2/repository/index lists them",
        shown.escape_debug()
    ))
}

/// Letters, digits, `.`, `_` and `-`, not beginning with a point.
fn may_be_named(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !name.is_empty()
        && name.len() <= LONGEST_NAME
        && !name.starts_with('.')
        && name.bytes().all(plain)
}
