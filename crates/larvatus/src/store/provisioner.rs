//! Making tickets for a store, on as many threads as there are.

use std::sync::{Mutex, PoisonError};

use super::format::{Facts, Link, name, new_header, words};
use super::{Files, StoreKey, writing};
use crate::error::StoreError;
use crate::plan::Plan;
use crate::secret::{Entropy, unmasks};

/// Makes tickets and puts them into a store; shared by threads.
pub struct Provisioner<'a> {
    plan: &'a Plan,
    key: &'a StoreKey,
    files: &'a dyn Files,
    facts: Facts,
    /// The link of the next ticket.
    next: Mutex<Link>,
}

/// A ticket that is in the store now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Its number.
    pub number: u64,
    /// Bytes of its file.
    pub bytes: u64,
}

impl<'a> Provisioner<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        key: &'a StoreKey,
        files: &'a dyn Files,
        facts: Facts,
        next: Link,
    ) -> Self {
        let next = Mutex::new(next);
        Self {
            plan,
            key,
            files,
            facts,
            next,
        }
    }

    /// Makes one ticket: as much linear work as an inference. `entropy` must be fresh, for this ticket
    /// alone. Whatever ends the process before this returns costs this ticket and no other.
    ///
    /// # Errors
    /// [`StoreError::Write`] where it cannot be written.
    pub fn make(&self, entropy: &Entropy) -> Result<Made, StoreError> {
        let link = {
            let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
            let link = next.duplicate();
            next.step();
            link
        };
        let number = link.number();
        let words = words(self.plan);
        let (header, opened) = new_header(entropy, words, self.key, &link, &self.facts);
        let mut sealed = unmasks(self.plan, number, &opened.seed);
        let pad = opened.pad(number);
        let mut at = 0;
        for u in &mut sealed {
            pad.seal(at, &mut u.0);
            at += u.0.len() as u64;
            if cfg!(target_endian = "big") {
                u.0.iter_mut().for_each(|word| *word = word.swap_bytes());
            }
        }
        let mut parts: Vec<&[u8]> = vec![&header];
        parts.extend(sealed.iter().map(|u| bytemuck::cast_slice::<u32, u8>(&u.0)));
        let name = name(number);
        self.files.write(&name, &parts).map_err(writing(&name))?;
        let bytes = parts.iter().map(|part| part.len() as u64).sum();
        Ok(Made { number, bytes })
    }
}
