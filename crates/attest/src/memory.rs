//! Memory that is neither swapped nor dumped.
//!
//! [`Memory::protect`] turns core dumps off and locks all memory of the process, present and
//! future. Secrets are made with its witness: a [`Locked`] cannot be had without asking first.
//! The whole process is locked, and not single pages, because a model, an input and what follows
//! from it lie in ordinary memory of many owners.
//!
//! What this does not do: registers, caches and copies on the stack are not followed; a hibernating
//! machine writes locked memory out; the host of a machine that is no TEE reads it.

use std::fmt;
use std::io;
use std::ops::Deref;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};
use zeroize::Zeroize;

/// What to do where memory cannot be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlocked {
    /// Refuse.
    Refuse,
    /// Go on, and say so wherever the state of the service is shown.
    Allow,
}

/// Proof that memory was protected, and how far. Copies are proofs of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    locked: bool,
}

/// Why memory is not protected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotProtected {
    /// The limit on locked memory is too low, and this process may not raise it.
    #[error(
        "memory cannot be locked: the limit is {limit} bytes; raise it (ulimit -l unlimited, or \
         LimitMEMLOCK=infinity, or CAP_IPC_LOCK), or say that it may stay unlocked"
    )]
    Limit {
        /// `RLIMIT_MEMLOCK`, in bytes.
        limit: u64,
    },
    /// The system refuses to lock.
    #[error("memory cannot be locked: {0}")]
    Lock(io::Error),
    /// Core dumps cannot be turned off.
    #[error("core dumps cannot be turned off: {0}")]
    CoreDumps(io::Error),
}

impl Memory {
    /// Turns core dumps off, and locks the memory of this process. Call it before any secret exists.
    ///
    /// # Errors
    /// [`NotProtected`]. Core dumps must go off in any case; `unlocked` says whether unlocked memory
    /// is put up with.
    pub fn protect(unlocked: Unlocked) -> Result<Self, NotProtected> {
        no_core_dumps().map_err(NotProtected::CoreDumps)?;
        match (lock(), unlocked) {
            (Ok(()), _) => Ok(Self { locked: true }),
            (Err(_), Unlocked::Allow) => Ok(Self { locked: false }),
            (Err(why), Unlocked::Refuse) => Err(why),
        }
    }

    /// Whether memory is locked; services show this.
    pub fn is_locked(self) -> bool {
        self.locked
    }
}

fn no_core_dumps() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn lock() -> Result<(), NotProtected> {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    if setrlimit(Resource::Memlock, unlimited).is_err() && !may_lock_anyway() {
        // With a limit, the next allocation beyond it would end the process.
        if let Some(limit) = getrlimit(Resource::Memlock).current {
            return Err(NotProtected::Limit { limit });
        }
    }
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)
        .map_err(|error| NotProtected::Lock(error.into()))
}

/// Whether the limit does not bind this process.
fn may_lock_anyway() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK))
}

/// A secret in protected memory, overwritten when it is dropped. Not `Clone`; never printed.
pub struct Locked<T: Zeroize>(T);

impl<T: Zeroize> Locked<T> {
    /// Takes a secret in; the witness says that memory was protected first.
    pub fn new(secret: T, _: Memory) -> Self {
        Self(secret)
    }
}

impl Locked<Vec<u8>> {
    /// Makes room once, so that growing leaves no copies behind.
    pub(crate) fn reserve_exactly(&mut self, bytes: usize) -> io::Result<()> {
        let reserved = self.0.try_reserve_exact(bytes);
        reserved.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))
    }

    /// Adds zeros, within the room that was made.
    pub(crate) fn grow(&mut self, bytes: usize) {
        debug_assert!(self.0.capacity() - self.0.len() >= bytes, "it would move");
        self.0.resize(self.0.len() + bytes, 0);
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl<T: Zeroize> Deref for Locked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Zeroize> Drop for Locked<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize> fmt::Debug for Locked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Locked(…)")
    }
}
