//! A folder that one process has for itself: files that are there whole or not at all.
//!
//! Opening takes an exclusive lock, which the system lifts when the process ends, however it ends.
//! What a process left half-written is removed then. Names are chosen by the caller and are plain: no
//! part of them comes from a peer.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a folder or a key file is not opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Another process has it.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// A key file of another size.
    #[error("{} holds {got} bytes, a key has 32", path.display())]
    KeySize {
        /// The file.
        path: PathBuf,
        /// Bytes in it.
        got: usize,
    },
    /// The system's error.
    #[error("{}: {source}", path.display())]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// A folder of this process.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Holds the lock.
    _lock: File,
}

const LOCK: &str = "lock";
/// What is half-written has such a name.
const PART: &str = ".part";
/// Replaced files up to this size are overwritten.
const WIPED: u64 = 4096;

impl Folder {
    /// Opens a folder, makes it where there is none (for its user only), and removes what was left
    /// half-written.
    ///
    /// # Errors
    /// [`FolderError::InUse`] where another process has it, and the system's.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let fail = |source| FolderError::Io {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(fail)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK))
            .map_err(fail)?;
        lock.try_lock().map_err(|err| match err {
            TryLockError::WouldBlock => FolderError::InUse {
                path: path.to_owned(),
            },
            TryLockError::Error(source) => fail(source),
        })?;
        let folder = Self {
            path: path.to_owned(),
            _lock: lock,
        };
        for (name, _) in folder.list().map_err(fail)? {
            if name.ends_with(PART) {
                folder.erase(&name).map_err(fail)?;
            }
        }
        Ok(folder)
    }

    /// Opens a file for reading; `None` where there is none.
    ///
    /// # Errors
    /// The system's.
    pub fn read(&self, name: &str) -> io::Result<Option<File>> {
        match File::open(self.path.join(name)) {
            Ok(file) => Ok(Some(file)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(err) => Err(err),
        }
    }

    /// Puts a file in place, all of it or nothing, and returns when it is on the disk. A small file
    /// that it replaces is overwritten with zeros; a disk may keep copies that this does not reach.
    ///
    /// # Errors
    /// The system's; then the old file is there.
    pub fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()> {
        let (place, part) = (
            self.path.join(name),
            self.path.join(format!("{name}{PART}")),
        );
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&part)?;
        let written = parts.iter().try_for_each(|part| file.write_all(part));
        if let Err(err) = written.and_then(|()| file.sync_all()) {
            // The first error is the one to tell.
            let _ = fs::remove_file(&part);
            return Err(err);
        }
        let old = OpenOptions::new().write(true).open(&place).ok();
        fs::rename(&part, &place)?;
        self.sync()?;
        if let Some(mut old) = old {
            let size = old.metadata()?.len().min(WIPED);
            io::copy(&mut io::repeat(0).take(size), &mut old)?;
            old.sync_data()?;
        }
        Ok(())
    }

    /// Removes a file if it is there.
    ///
    /// # Errors
    /// The system's.
    pub fn erase(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.path.join(name)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }

    /// Name and size of each file whose name is text.
    ///
    /// # Errors
    /// The system's.
    pub fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                files.push((name, entry.metadata()?.len()));
            }
        }
        Ok(files)
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Reads a key of 32 bytes; `None` where there is no such file.
///
/// # Errors
/// [`FolderError::KeySize`] where it has another size (33 stands for more), and the system's.
pub fn read_key(path: &Path) -> Result<Option<[u8; 32]>, FolderError> {
    let fail = |source| FolderError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(fail(err)),
    };
    let mut bytes = Vec::with_capacity(64);
    file.take(33).read_to_end(&mut bytes).map_err(fail)?;
    let key = bytes.as_slice().try_into();
    key.map(Some).map_err(|_| FolderError::KeySize {
        path: path.to_owned(),
        got: bytes.len(),
    })
}

/// Writes a new key for its user's eyes only, durably. A file that is there stays as it is.
///
/// # Errors
/// The system's; [`io::ErrorKind::AlreadyExists`] where there is a file.
pub fn write_key(path: &Path, key: &[u8; 32]) -> Result<(), FolderError> {
    let write = || {
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        file.write_all(key)?;
        file.sync_all()?;
        let folder = path.parent().filter(|parent| *parent != Path::new(""));
        File::open(folder.unwrap_or_else(|| Path::new(".")))?.sync_all()
    };
    write().map_err(|source| FolderError::Io {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A folder that goes with the test.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let name = format!("larvatus-folder-{}-{name}", std::process::id());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn contents(folder: &Folder, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        folder.read(name).unwrap()?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    #[test]
    fn files_are_replaced_and_erased() {
        let place = Place::new("files");
        let folder = Folder::open(&place.0).unwrap();
        assert_eq!(contents(&folder, "a"), None);
        folder.write("a", &[b"one", b"", b"two"]).unwrap();
        assert_eq!(contents(&folder, "a").unwrap(), b"onetwo");
        // Whoever has the old file open sees what becomes of it.
        let mut old = folder.read("a").unwrap().unwrap();
        folder.write("a", &[b"three"]).unwrap();
        let mut wiped = Vec::new();
        old.read_to_end(&mut wiped).unwrap();
        assert_eq!(wiped, [0; 6]);
        assert_eq!(contents(&folder, "a").unwrap(), b"three");
        assert!(folder.list().unwrap().contains(&("a".to_owned(), 5)));
        folder.erase("a").unwrap();
        folder.erase("a").unwrap();
        assert_eq!(contents(&folder, "a"), None);
    }

    #[test]
    fn only_its_user_sees_it() {
        let place = Place::new("mode");
        let folder = Folder::open(&place.0).unwrap();
        folder.write("a", &[b"x"]).unwrap();
        write_key(&place.0.join("key"), &[7; 32]).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place.0), 0o700);
        for name in ["a", "key", LOCK] {
            assert_eq!(mode(&place.0.join(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn a_second_holder_is_refused_until_the_first_lets_go() {
        let place = Place::new("lock");
        let first = Folder::open(&place.0).unwrap();
        let second = Folder::open(&place.0);
        assert!(matches!(second, Err(FolderError::InUse { .. })));
        drop(first);
        Folder::open(&place.0).unwrap();
    }

    #[test]
    fn what_is_half_written_goes_when_the_folder_is_opened() {
        let place = Place::new("part");
        drop(Folder::open(&place.0).unwrap());
        fs::write(place.0.join("a.part"), b"x").unwrap();
        let folder = Folder::open(&place.0).unwrap();
        assert_eq!(folder.list().unwrap(), [(LOCK.to_owned(), 0)]);
    }

    #[test]
    fn a_key_has_32_bytes_and_is_never_replaced() {
        let place = Place::new("key");
        let _folder = Folder::open(&place.0).unwrap();
        let path = place.0.join("key");
        assert!(read_key(&path).unwrap().is_none());
        write_key(&path, &[7; 32]).unwrap();
        assert_eq!(read_key(&path).unwrap(), Some([7; 32]));
        let again = write_key(&path, &[8; 32]);
        assert!(matches!(again, Err(FolderError::Io { .. })));
        for wrong in [31, 33, 0] {
            fs::write(&path, vec![1; wrong]).unwrap();
            let read = read_key(&path);
            assert!(matches!(read, Err(FolderError::KeySize { got, .. }) if got == wrong));
        }
    }
}
