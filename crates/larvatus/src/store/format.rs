//! How a store's files look, and what opens them.
//!
//! ```text
//! mark    "LRVMARK1" ‖ epoch 16 ‖ next u64 ‖ AEAD(plan 32 ‖ worker model 32 ‖ link 32)
//! ticket  "LRVTICK1" ‖ salt 32 ‖ AEAD(seed 32 ‖ words u64) ‖ words × u32, sealed by addition
//! ```
//!
//! Everything is little-endian. The AEAD is AES-256-GCM with nonce 0. Its keys serve one message
//! each: that of a mark is derived from epoch and `next`, of which its contents are a function; that of
//! a ticket from a fresh salt. The epoch tells one store from all others; a ticket's associated data
//! are epoch, digests and number.
//!
//! Link i + 1 of the chain is a one-way function of link i. A ticket's key needs the store's key and
//! the ticket's link.
//!
//! Source: NIST SP 800-38D for the AEAD; forward-secure keys by a one-way chain.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use larvatus_kernels::keystream::{Key, Purpose, Stream};
use larvatus_proto::digest::Digest;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::StoreKey;
use crate::error::StoreError;
use crate::plan::Plan;
use crate::secret::{Entropy, Seed, derive};

const EPOCH: &str = "larvatus 2026 store v1: epoch";
const FIRST: &str = "larvatus 2026 store v1: first link";
const STEP: &str = "larvatus 2026 store v1: next link";
const MARK: &str = "larvatus 2026 store v1: mark";
const TICKET: &str = "larvatus 2026 store v1: ticket header";
const UNMASK: &str = "larvatus 2026 store v1: unmask pad";
const SALT: &str = "larvatus 2026 store v1: salt";
const SEED: &str = "larvatus 2026 store v1: seed";

const MARK_MAGIC: &[u8; 8] = b"LRVMARK1";
const TICKET_MAGIC: &[u8; 8] = b"LRVTICK1";
const TAG: usize = 16;
/// Bytes of a ticket before its words.
pub(super) const HEADER: usize = 8 + 32 + 40 + TAG;

/// What all files of a store have in common.
#[derive(Clone, Copy)]
pub(super) struct Facts {
    epoch: [u8; 16],
    pub(super) plan: Digest,
    pub(super) worker_model: Digest,
}

impl Facts {
    pub(super) fn new(plan: &Plan, entropy: &Entropy) -> Self {
        let drawn = entropy.derive_alone(EPOCH);
        let mut epoch = [0; 16];
        epoch.copy_from_slice(&drawn[..16]);
        Self {
            epoch,
            plan: plan.digest(),
            worker_model: plan.worker_model().digest(),
        }
    }
}

/// One link of the chain of keys, with the number of its ticket. Overwritten when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(super) struct Link {
    number: u64,
    key: [u8; 32],
}

impl Link {
    pub(super) fn first(entropy: &Entropy, number: u64) -> Self {
        let key = *entropy.derive_alone(FIRST);
        Self { number, key }
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// A second holder of the same link.
    pub(super) fn duplicate(&self) -> Self {
        Self {
            number: self.number,
            key: self.key,
        }
    }

    /// Goes on to the next link; there is no way back.
    pub(super) fn step(&mut self) {
        let next = derive(STEP, &[&self.key]);
        self.key.copy_from_slice(&*next);
        self.number = self.number.saturating_add(1);
    }

    /// Goes on to the link of a later ticket.
    pub(super) fn go_to(&mut self, number: u64) {
        while self.number < number {
            self.step();
        }
    }
}

/// The first ticket that nobody has reserved.
pub(super) struct Mark {
    pub(super) facts: Facts,
    pub(super) next: Link,
}

impl Mark {
    const CLEAR: usize = 8 + 16 + 8;
    const SEALED: usize = 96;
    pub(super) const BYTES: usize = Self::CLEAR + Self::SEALED + TAG;

    pub(super) fn seal(&self, key: &StoreKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES);
        out.extend_from_slice(MARK_MAGIC);
        out.extend_from_slice(&self.facts.epoch);
        out.extend_from_slice(&self.next.number.to_le_bytes());
        let mut sealed = Zeroizing::new(Vec::with_capacity(Self::SEALED));
        sealed.extend_from_slice(&self.facts.plan.0);
        sealed.extend_from_slice(&self.facts.worker_model.0);
        sealed.extend_from_slice(&self.next.key);
        let key = derive(MARK, &[&key.0, &out[8..]]);
        let tag = seal(&key, &out, &mut sealed);
        out.extend_from_slice(&sealed);
        out.extend_from_slice(&tag);
        out
    }

    pub(super) fn open(bytes: &[u8], key: &StoreKey) -> Result<Self, StoreError> {
        let bytes: &[u8; Self::BYTES] = bytes.try_into().map_err(|_| StoreError::Mark)?;
        let (clear, rest) = bytes.split_at(Self::CLEAR);
        let (sealed, tag) = rest.split_at(Self::SEALED);
        if !clear.starts_with(MARK_MAGIC) {
            return Err(StoreError::Mark);
        }
        let mut sealed = Zeroizing::new(sealed.to_vec());
        let key = derive(MARK, &[&key.0, &clear[8..]]);
        open(&key, clear, &mut sealed, tag).ok_or(StoreError::Mark)?;
        let mut fields = Fields(&clear[8..]);
        let (epoch, number) = (fields.take(), u64::from_le_bytes(fields.take()));
        let mut fields = Fields(&sealed);
        let (plan, worker_model) = (Digest(fields.take()), Digest(fields.take()));
        let key = fields.take();
        Ok(Self {
            facts: Facts {
                epoch,
                plan,
                worker_model,
            },
            next: Link { number, key },
        })
    }
}

/// Fields of known sizes, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self
            .0
            .split_first_chunk()
            .expect("the fields were counted when the length was compared");
        self.0 = rest;
        *field
    }
}

/// What a ticket's header holds, and the key of its words.
pub(super) struct Opened {
    pub(super) seed: Seed,
    unmask: Key,
}

impl Opened {
    /// What seals the words of ticket `number`.
    pub(super) fn pad(&self, number: u64) -> Stream<'_> {
        self.unmask.stream(number, 0, Purpose::UnmaskPad)
    }
}

/// The header of a new ticket, with a seed of its own. `entropy` must be fresh.
pub(super) fn new_header(
    entropy: &Entropy,
    words: u64,
    key: &StoreKey,
    link: &Link,
    facts: &Facts,
) -> ([u8; HEADER], Opened) {
    let salt = entropy.derive_alone(SALT);
    let seed = entropy.derive_alone(SEED);
    let mut sealed = Zeroizing::new([0; 40]);
    sealed[..32].copy_from_slice(&*seed);
    sealed[32..].copy_from_slice(&words.to_le_bytes());
    let tag = seal(
        &ticket_key(TICKET, key, link, &salt),
        &about(link, facts),
        &mut sealed[..],
    );
    let mut header = [0; HEADER];
    for (out, byte) in header.iter_mut().zip(
        TICKET_MAGIC
            .iter()
            .chain(&*salt)
            .chain(&sealed[..])
            .chain(&tag),
    ) {
        *out = *byte;
    }
    let unmask = Key::new(*ticket_key(UNMASK, key, link, &salt));
    let seed = Seed::new(*seed);
    (header, Opened { seed, unmask })
}

/// # Errors
/// [`StoreError::Header`] where it does not open: altered, of another store, key or number.
pub(super) fn open_header(
    header: &[u8; HEADER],
    words: u64,
    key: &StoreKey,
    link: &Link,
    facts: &Facts,
) -> Result<Opened, StoreError> {
    let number = link.number;
    let mut fields = Fields(header);
    let (magic, salt): ([u8; 8], [u8; 32]) = (fields.take(), fields.take());
    let mut sealed = Zeroizing::new(fields.take::<40>());
    let tag: [u8; TAG] = fields.take();
    if magic != *TICKET_MAGIC {
        return Err(StoreError::Header { number });
    }
    let header_key = ticket_key(TICKET, key, link, &salt);
    open(&header_key, &about(link, facts), &mut sealed[..], &tag)
        .ok_or(StoreError::Header { number })?;
    let mut fields = Fields(&sealed[..]);
    let seed = Seed::new(fields.take());
    if u64::from_le_bytes(fields.take()) != words {
        return Err(StoreError::Header { number });
    }
    let unmask = Key::new(*ticket_key(UNMASK, key, link, &salt));
    Ok(Opened { seed, unmask })
}

fn ticket_key(label: &str, key: &StoreKey, link: &Link, salt: &[u8; 32]) -> Zeroizing<[u8; 32]> {
    derive(label, &[&key.0, &link.key, salt])
}

/// The facts that a ticket's header is bound to.
fn about(link: &Link, facts: &Facts) -> Vec<u8> {
    [
        &facts.epoch[..],
        &facts.plan.0,
        &facts.worker_model.0,
        &link.number.to_le_bytes(),
    ]
    .concat()
}

/// Encrypts in place and returns the tag. A key seals one message only.
fn seal(key: &[u8; 32], about: &[u8], message: &mut [u8]) -> [u8; TAG] {
    Aes256Gcm::new(key.into())
        .encrypt_inout_detached(&Nonce::default(), about, message.into())
        .expect("messages are far shorter than the cipher's limit")
        .into()
}

fn open(key: &[u8; 32], about: &[u8], message: &mut [u8], tag: &[u8]) -> Option<()> {
    let tag = Tag::try_from(tag).ok()?;
    Aes256Gcm::new(key.into())
        .decrypt_inout_detached(&Nonce::default(), about, message.into(), &tag)
        .ok()
}

/// Words of u of each call, in the plan's order.
pub(super) fn calls(plan: &Plan) -> impl Iterator<Item = usize> + '_ {
    let calls = plan.rounds().iter().flat_map(|round| &round.calls);
    calls.map(|(layer, _)| plan.layers()[layer.index()].spec.outputs())
}

/// Words of u of one inference.
pub(super) fn words(plan: &Plan) -> u64 {
    calls(plan).map(|words| words as u64).sum()
}

/// The name of a ticket's file.
pub(super) fn name(number: u64) -> String {
    format!("{number:020}.ticket")
}

/// The number in the name of a ticket's file, if it is one.
pub(super) fn number(file: &str) -> Option<u64> {
    let number = file.strip_suffix(".ticket")?.parse().ok()?;
    (name(number) == file).then_some(number)
}
