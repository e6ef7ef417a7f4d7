//! Tickets made ahead, and kept until they are used.
//!
//! A store belongs to one plan. Each of its files holds what one inference needs: a seed, and u of
//! every call. u is sealed by adding a keystream, so whoever alters it adds a constant that he knows:
//! the check of the inference notices, and its verdict says nothing about a secret. The seed and all
//! facts about a ticket are encrypted and authenticated.
//!
//! **No ticket is used twice.** The *mark* says which is the first ticket that nobody has reserved. It
//! is durably moved on before any ticket behind it is used; what was reserved and not used when a
//! process dies is burned. A storage that its host rolls back, mark and tickets together, brings used
//! tickets back: only a [`Counter`] outside of the host's reach notices. Without one ([`PlainFiles`])
//! a store says what it assumes, and a policy can refuse that.
//!
//! **Used tickets stay closed.** Each is sealed under a link of a chain of keys; the mark holds the
//! link of the first unreserved ticket only, and nothing leads back from it. Whoever takes the store
//! and its key file opens what is in the store, and no traffic of before.
//!
//! Call order: [`Store::create`] or [`Store::open`], then [`Store::take`], or [`Store::provisioner`].
//! Effects are the caller's: [`Files`].

mod format;
mod provisioner;

use std::collections::BTreeSet;
use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use larvatus_proto::digest::Digest;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::error::{StoreError, SupplyError};
use crate::plan::Plan;
use crate::policy::{Hiding, Rollback};
use crate::secret::{Entropy, Origin, TicketSet, Unmask};
use format::{Facts, Link, Mark};

pub use provisioner::{Made, Provisioner};

/// Where a store's bytes lie: a folder that this process has for itself.
pub trait Files: Send + Sync {
    /// Opens a file for reading; `None` where there is none.
    ///
    /// # Errors
    /// The system's.
    fn open(&self, name: &str) -> io::Result<Option<Box<dyn Read>>>;

    /// Puts a file in place, all of it or nothing, and returns when it would survive a power cut. A
    /// file of that name is replaced, its bytes overwritten as far as the system allows.
    ///
    /// # Errors
    /// The system's; then the old file, or none, is there.
    fn write(&self, name: &str, parts: &[&[u8]]) -> io::Result<()>;

    /// Removes a file if it is there.
    ///
    /// # Errors
    /// The system's.
    fn erase(&self, name: &str) -> io::Result<()>;

    /// Name and size of each file.
    ///
    /// # Errors
    /// The system's.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
}

/// A number that only grows, kept where whoever can restore an old storage cannot restore it: in a
/// TPM, a sealed counter, or with a witness elsewhere. One counter serves one store.
pub trait Counter: Send {
    /// What has to be assumed for the counter to be right; `None` if nothing.
    fn assumes(&self) -> Option<&'static str>;

    /// The number.
    ///
    /// # Errors
    /// Where it cannot be read.
    fn value(&mut self) -> io::Result<u64>;

    /// Raises the number to `to`; returns when that would survive a power cut. Never lowers it.
    ///
    /// # Errors
    /// Where it cannot be raised.
    fn advance(&mut self, to: u64) -> io::Result<()>;
}

/// No counter at all: whoever restores an old storage is believed.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainFiles;

impl PlainFiles {
    /// What a store without a counter assumes.
    pub const ASSUMES: &str = "storage is not rolled back";
}

impl Counter for PlainFiles {
    fn assumes(&self) -> Option<&'static str> {
        Some(Self::ASSUMES)
    }

    fn value(&mut self) -> io::Result<u64> {
        Ok(0)
    }

    fn advance(&mut self, _to: u64) -> io::Result<()> {
        Ok(())
    }
}

/// The key of a store. Whoever has it and the store opens every ticket in it.
///
/// Not `Clone`, no `Debug`.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct StoreKey([u8; 32]);

impl StoreKey {
    /// Takes 32 bytes that the operating system's generator gave once, for this store only.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

/// A store of tickets for one plan.
pub struct Store {
    plan: Arc<Plan>,
    key: StoreKey,
    files: Box<dyn Files>,
    counter: Box<dyn Counter>,
    facts: Facts,
    /// The first ticket that is not reserved, and its link.
    next: Link,
    /// Numbers of unreserved tickets that there are.
    unused: BTreeSet<u64>,
    /// Taken from the mark, not yet from the store.
    reserved: VecDeque<Link>,
}

/// Most tickets that are reserved at once: what a crash may burn.
const BLOCK: usize = 16;
/// Most tickets a store may hold, so that foreign file names cannot make it count for long.
const MOST: u64 = 1 << 20;
/// Words that are unsealed while they are still in the cache.
const PIECE: usize = 1 << 14;
const MARK: &str = "mark";

impl Store {
    /// Makes an empty store. `entropy` must be fresh.
    ///
    /// # Errors
    /// [`StoreError`] where the plan needs no tickets, its policy refuses such a store, one is there
    /// already, or it cannot be written.
    pub fn create(
        plan: &Arc<Plan>,
        key: StoreKey,
        files: Box<dyn Files>,
        mut counter: Box<dyn Counter>,
        entropy: &Entropy,
    ) -> Result<Self, StoreError> {
        suits(plan, &*counter)?;
        if files.open(MARK).map_err(reading)?.is_some() {
            return Err(StoreError::Exists);
        }
        let first = counter.value().map_err(counting)?;
        let facts = Facts::new(plan, entropy);
        let mark = Mark {
            facts,
            next: Link::first(entropy, first),
        };
        files
            .write(MARK, &[&mark.seal(&key)])
            .map_err(writing(MARK))?;
        Ok(Self {
            plan: Arc::clone(plan),
            key,
            files,
            counter,
            facts: mark.facts,
            next: mark.next,
            unused: BTreeSet::new(),
            reserved: VecDeque::new(),
        })
    }

    /// Opens a store, and removes tickets that were reserved and are burned.
    ///
    /// # Errors
    /// [`StoreError`] where there is none, it does not open, it is another plan's, it was rolled back,
    /// or the plan's policy refuses such a store.
    pub fn open(
        plan: &Arc<Plan>,
        key: StoreKey,
        files: Box<dyn Files>,
        mut counter: Box<dyn Counter>,
    ) -> Result<Self, StoreError> {
        suits(plan, &*counter)?;
        let mut bytes = Vec::new();
        files
            .open(MARK)
            .map_err(reading)?
            .ok_or(StoreError::NoStore)?
            .take(Mark::BYTES as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(reading)?;
        let Mark { facts, next } = Mark::open(&bytes, &key)?;
        belongs(plan, &facts)?;
        let (mark, value) = (next.number(), counter.value().map_err(counting)?);
        if mark < value {
            return Err(StoreError::RolledBack {
                mark,
                counter: value,
            });
        }
        // After a crash between the two: nothing behind the mark has been used.
        counter.advance(mark).map_err(counting)?;
        let mut store = Self {
            plan: Arc::clone(plan),
            key,
            files,
            counter,
            facts,
            next,
            unused: BTreeSet::new(),
            reserved: VecDeque::new(),
        };
        store.look()?;
        Ok(store)
    }

    /// Finds the unused tickets and removes the others.
    fn look(&mut self) -> Result<(), StoreError> {
        let names = self.files.list().map_err(reading)?;
        let first = self.next.number();
        for number in names.iter().filter_map(|(name, _)| format::number(name)) {
            if number < first {
                self.erase(number)?;
            } else if number - first < MOST {
                self.unused.insert(number);
            } else {
                return Err(StoreError::Number {
                    number,
                    first,
                    most: MOST,
                });
            }
        }
        Ok(())
    }

    /// Tickets that can still be taken.
    pub fn tickets(&self) -> usize {
        self.unused.len() + self.reserved.len()
    }

    /// Bytes of one ticket's file.
    pub fn ticket_bytes(&self) -> u64 {
        format::HEADER as u64 + 4 * format::words(&self.plan)
    }

    /// What has to be assumed for no ticket to be used twice; `None` if nothing.
    pub fn assumes(&self) -> Option<&'static str> {
        self.counter.assumes()
    }

    /// Takes a ticket set, or nothing where the store is empty. `upcoming` is how many the caller is
    /// going to take, this one included: so many are reserved at once, up to 16.
    ///
    /// # Errors
    /// [`StoreError`] where the mark or the counter cannot be moved, or the ticket does not open. The
    /// ticket is burned then.
    pub fn take(&mut self, upcoming: usize) -> Result<Option<TicketSet>, StoreError> {
        if self.reserved.is_empty() {
            self.reserve(upcoming.clamp(1, BLOCK))?;
        }
        let Some(link) = self.reserved.pop_front() else {
            return Ok(None);
        };
        let set = self.load(&link);
        self.erase(link.number())?;
        set.map(Some)
    }

    /// Moves the mark behind the next `count` tickets, durably, and only then hands them out.
    fn reserve(&mut self, count: usize) -> Result<(), StoreError> {
        let mut links = VecDeque::new();
        let mut next = self.next.duplicate();
        for &number in self.unused.iter().take(count) {
            next.go_to(number);
            links.push_back(next.duplicate());
            next.step();
        }
        if links.is_empty() {
            return Ok(());
        }
        let mark = Mark {
            facts: self.facts,
            next,
        };
        self.files
            .write(MARK, &[&mark.seal(&self.key)])
            .map_err(writing(MARK))?;
        self.next = mark.next;
        self.unused = self.unused.split_off(&self.next.number());
        self.counter.advance(self.next.number()).map_err(counting)?;
        self.reserved = links;
        Ok(())
    }

    /// Reads and unseals one ticket.
    fn load(&self, link: &Link) -> Result<TicketSet, StoreError> {
        let number = link.number();
        let file = self.files.open(&format::name(number)).map_err(reading)?;
        let mut file = file.ok_or(StoreError::Missing { number })?;
        let mut header = [0; format::HEADER];
        read(&mut *file, &mut header, number)?;
        let words = format::words(&self.plan);
        let opened = format::open_header(&header, words, &self.key, link, &self.facts)?;
        let pad = opened.pad(number);
        let mut unmasks = Vec::new();
        let mut at = 0;
        for words in format::calls(&self.plan) {
            let mut u = Unmask(vec![0; words]);
            for piece in u.0.chunks_mut(PIECE) {
                read(&mut *file, bytemuck::cast_slice_mut(piece), number)?;
                if cfg!(target_endian = "big") {
                    piece.iter_mut().for_each(|word| *word = word.swap_bytes());
                }
                pad.unseal(at, piece)
                    .map_err(|_| StoreError::NotCanonical { number })?;
                at += piece.len() as u64;
            }
            unmasks.push(u);
        }
        if file.read(&mut [0]).map_err(reading)? != 0 {
            return Err(StoreError::TooLong { number });
        }
        let set = TicketSet::new(&self.plan, number, Origin::Stored, &opened.seed, unmasks);
        Ok(set?)
    }

    fn erase(&self, number: u64) -> Result<(), StoreError> {
        let name = format::name(number);
        self.files.erase(&name).map_err(writing(&name))
    }

    /// What makes further tickets. Their numbers follow those that there are; gaps stay gaps.
    pub fn provisioner(&self) -> Provisioner<'_> {
        let mut link = self.next.duplicate();
        if let Some(last) = self.unused.last() {
            link.go_to(*last);
            link.step();
        }
        Provisioner::new(&self.plan, &self.key, &*self.files, self.facts, link)
    }
}

/// Reads as many bytes as `out` has.
fn read(file: &mut dyn Read, out: &mut [u8], number: u64) -> Result<(), StoreError> {
    file.read_exact(out).map_err(|err| match err.kind() {
        io::ErrorKind::UnexpectedEof => StoreError::Truncated { number },
        _ => reading(err),
    })
}

/// Whether a plan can have such a store at all.
fn suits(plan: &Plan, counter: &dyn Counter) -> Result<(), StoreError> {
    match plan.policy().hiding() {
        Hiding::Clear => return Err(StoreError::NothingHidden),
        Hiding::Field => {}
    }
    match (plan.policy().rollback, counter.assumes()) {
        (Rollback::Refused, Some(assumes)) => Err(StoreError::Refused { assumes }),
        (Rollback::Refused, None) | (Rollback::Assumed, _) => Ok(()),
    }
}

fn belongs(plan: &Plan, facts: &Facts) -> Result<(), SupplyError> {
    let (expected, got): (Digest, Digest) = (plan.digest(), facts.plan);
    if expected != got {
        return Err(SupplyError::OtherPlan { expected, got });
    }
    let (expected, got) = (plan.worker_model().digest(), facts.worker_model);
    if expected != got {
        return Err(SupplyError::OtherModel { expected, got });
    }
    Ok(())
}

fn reading(source: io::Error) -> StoreError {
    StoreError::Read { source }
}

fn writing(name: &str) -> impl Fn(io::Error) -> StoreError + '_ {
    move |source| StoreError::Write {
        name: name.to_owned(),
        source,
    }
}

fn counting(source: io::Error) -> StoreError {
    StoreError::Counter { source }
}
