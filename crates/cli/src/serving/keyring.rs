//! Keys of sealed models, in memory only.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use larvatus_attest::memory::{Locked, Memory};
use larvatus_attest::seal::{self, ContentKey, Header};
use larvatus_attest::statement::ModelId;
use larvatus_serve::confidential::Keyring;

/// How the files of sealed models end.
pub(super) const SEALED: &str = ".sealed";

/// Whether a file is one of them.
pub(super) fn is_sealed(file: &Path) -> bool {
    let name = file.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.ends_with(SEALED))
}

/// The keys that owners have released to this process.
pub(crate) struct Keys {
    folder: PathBuf,
    memory: Memory,
    keys: Mutex<HashMap<ModelId, Arc<Locked<ContentKey>>>>,
}

impl Keys {
    pub(crate) fn new(folder: PathBuf, memory: Memory) -> Arc<Self> {
        Arc::new(Self {
            folder,
            memory,
            keys: Mutex::default(),
        })
    }

    /// A sealed model in clear, in memory; its key must have come.
    pub(super) fn open(&self, file: &Path) -> Result<Locked<Vec<u8>>, String> {
        let shown = file.file_name().unwrap_or_default().display();
        let failed = |why: String| format!("{shown}: {why}");
        let mut opened = File::open(file).map_err(|why| failed(why.to_string()))?;
        let length = opened
            .metadata()
            .map_err(|why| failed(why.to_string()))?
            .len();
        let header = Header::read(&mut opened).map_err(|why| failed(why.to_string()))?;
        let model = header.model();
        let key = {
            let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
            keys.get(&model).cloned()
        };
        let key = key.ok_or_else(|| {
            format!("it is sealed, and its owner has not released its key yet (model {model}); see `larvatus release`")
        })?;
        seal::open(&header, &mut opened, &key, length, self.memory)
            .map_err(|why| failed(why.to_string()))
    }
}

/// For a server, which owns its keyring.
pub(crate) struct Ring(pub(crate) Arc<Keys>);

impl Keyring for Ring {
    fn take(&self, model: ModelId, key: Locked<ContentKey>) -> Option<String> {
        let mut keys = self.0.keys.lock().unwrap_or_else(PoisonError::into_inner);
        keys.insert(model, Arc::new(key));
        drop(keys);
        let files = std::fs::read_dir(&self.0.folder).ok()?;
        files.filter_map(Result::ok).find_map(|entry| {
            let path = entry.path();
            if !is_sealed(&path) {
                return None;
            }
            let header = Header::read(&mut File::open(&path).ok()?).ok()?;
            if header.model() != model {
                return None;
            }
            super::name(&path)
        })
    }
}
