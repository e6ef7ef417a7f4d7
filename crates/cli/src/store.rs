//! A store of tickets in a folder.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use larvatus::plan::Plan;
use larvatus::secret::Entropy;
use larvatus::store::{Files, PlainFiles, Store, StoreKey};
use larvatus_host::entropy;
use larvatus_host::store::{Folder, read_key, write_key};

/// A folder of this process, for what the trusted side keeps.
pub(crate) struct InFolder(pub(crate) Folder);

impl Files for InFolder {
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>> {
        let file = self.0.read(name)?;
        Ok(file.map(|file| Box::new(file) as Box<dyn Read>))
    }

    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        self.0.write(name, parts)
    }

    fn erase(&self, name: &str) -> io::Result<()> {
        self.0.erase(name)
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.0.list()
    }
}

/// Where the key of a store lies if nobody says.
fn key_path(folder: &Path, key: Option<&Path>) -> PathBuf {
    key.map_or_else(|| folder.join("key"), Path::to_owned)
}

/// Opens the store in a folder.
pub(crate) fn open(plan: &Arc<Plan>, folder: &Path, key: Option<&Path>) -> Result<Store> {
    let path = key_path(folder, key);
    let about = || format!("store {}", folder.display());
    ensure!(
        folder.is_dir(),
        "there is no store {}; `larvatus provision` makes one",
        folder.display()
    );
    let files = Folder::open(folder).with_context(about)?;
    let key = read_key(&path)?.with_context(|| {
        format!(
            "there is no key file {}; give --key FILE, or make a store with `larvatus provision`",
            path.display()
        )
    })?;
    let (files, key) = (Box::new(InFolder(files)), StoreKey::new(key));
    Store::open(plan, key, files, Box::new(PlainFiles)).with_context(about)
}

/// Opens the store in a folder, or makes one, with its key, where there is none.
pub(crate) fn open_or_create(plan: &Arc<Plan>, folder: &Path, key: Option<&Path>) -> Result<Store> {
    let path = key_path(folder, key);
    let about = || format!("store {}", folder.display());
    let files = Folder::open(folder).with_context(about)?;
    let made = files.read("mark").with_context(about)?.is_some();
    let key = match read_key(&path)? {
        Some(key) => key,
        None => {
            ensure!(
                !made,
                "store {} is there, its key file {} is not",
                folder.display(),
                path.display()
            );
            let key = entropy()?;
            write_key(&path, &key)?;
            key
        }
    };
    let (files, key) = (Box::new(InFolder(files)), StoreKey::new(key));
    if made {
        return Store::open(plan, key, files, Box::new(PlainFiles)).with_context(about);
    }
    let fresh = Entropy::new(entropy()?);
    Store::create(plan, key, files, Box::new(PlainFiles), &fresh).with_context(about)
}
