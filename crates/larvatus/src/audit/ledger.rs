//! A folder of records: what was run, what of it was audited, and how that ended.
//!
//! | file | what |
//! |---|---|
//! | `counter` | the first number that no inference has |
//! | `DIGEST.graph` | a graph with its weights, for audits and judges |
//! | `NUMBER.provisional` | a record that awaits its audit |
//! | `NUMBER.receipt` | the receipt of a record that is settled, rejected or was not opened |
//! | `NUMBER.evidence` | what shows a lie to others, or to one judge |
//! | `NUMBER.unopened` | why a worker did not open |
//!
//! Every file is there whole or not at all, so a process that is killed at any point leaves a folder that the next one goes on
//! with: a record without a receipt is audited again, with the same draw; one with a receipt has ended.

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::ops::Range;
use std::sync::Arc;

use larvatus_graph::{Model, ModelError};
use larvatus_proto::digest::Digest;
use larvatus_proto::receipt::{Receipt, ReceiptError, Signer, Verdict};
use larvatus_proto::wire::{DecodeError, Reader, Writer};

use super::{CannotSeal, JudgeKey, Outcome, Provisional, RecordError, Redrawn};
use crate::secret::Entropy;
use crate::store::Files;

/// First bytes of a graph's file: its kind and version.
const GRAPH: u32 = u32::from_le_bytes(*b"LRG1");

const COUNTER: &str = "counter";

/// Why a ledger does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LedgerError {
    /// The storage fails.
    #[error("the ledger's file {name}: {source}")]
    Files {
        /// Which file.
        name: String,
        /// The system's error.
        source: io::Error,
    },
    /// A file is not there.
    #[error("the ledger has no file {name}")]
    Missing {
        /// Which.
        name: String,
    },
    /// A record is not one of this key's.
    #[error("record {number}: {source}")]
    Record {
        /// Which.
        number: u64,
        /// What is wrong with it.
        source: RecordError,
    },
    /// A file is damaged.
    #[error("the ledger's file {name}: {source}")]
    Damaged {
        /// Which file.
        name: String,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// A receipt that does not hold.
    #[error("the ledger's file {name}: {source}")]
    Receipt {
        /// Which file.
        name: String,
        /// What is wrong with it.
        source: ReceiptError,
    },
    /// A graph that is none.
    #[error("the ledger's file {name}: {source}")]
    Graph {
        /// Which file.
        name: String,
        /// What is wrong with it.
        source: ModelError,
    },
    /// Evidence that is to be sealed to what is no key.
    #[error(transparent)]
    Judge(#[from] CannotSeal),
    /// A record's units are drawn already.
    #[error(transparent)]
    Redrawn(#[from] Redrawn),
}

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Its audit is to be done.
    Provisional,
    /// All that was drawn was right.
    Settled,
    /// The worker lied.
    Rejected {
        /// Whether there is evidence for others.
        evidence: bool,
    },
    /// The worker did not open.
    Unopened {
        /// Why.
        why: String,
    },
}

/// A record of a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Entry {
    /// The number of the inference.
    pub number: u64,
    /// Where it stands.
    pub state: State,
}

/// A folder of records of one trusted side.
pub struct Ledger {
    files: Box<dyn Files>,
    signer: Arc<Signer>,
    /// Whom evidence is sealed to, and what from.
    judge: Option<(JudgeKey, Entropy)>,
}

impl Ledger {
    /// The ledger in these files, empty where there are none.
    pub fn new(files: Box<dyn Files>, signer: Arc<Signer>) -> Self {
        Self {
            files,
            signer,
            judge: None,
        }
    }

    /// The same ledger that puts evidence down for one judge only. `entropy` must be fresh.
    #[must_use]
    pub fn sealing_to(self, judge: JudgeKey, entropy: Entropy) -> Self {
        let judge = Some((judge, entropy));
        Self { judge, ..self }
    }

    /// The key that its records are signed with.
    pub fn signer(&self) -> &Arc<Signer> {
        &self.signer
    }

    /// Numbers for so many inferences that no other has or will have.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn reserve(&self, count: u64) -> Result<Range<u64>, LedgerError> {
        let first = match self.read(COUNTER, 8)? {
            None => 0,
            Some(bytes) => {
                let mut reader = Reader::new(&bytes);
                let first = reader.u64();
                let first = first.and_then(|first| reader.finish().map(|()| first));
                first.map_err(|source| damaged(COUNTER, source))?
            }
        };
        // A counter that is gone gives no number that a record has.
        let taken = self.files_of_records()?;
        let first = first.max(taken.last_key_value().map_or(0, |(last, _)| last + 1));
        let next = first.saturating_add(count);
        self.write(COUNTER, &[&next.to_le_bytes()])?;
        Ok(first..next)
    }

    /// Keeps a graph, if it is not there.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn keep_model(&self, model: &Model) -> Result<(), LedgerError> {
        let name = graph_name(model.digest());
        if self.read(&name, 4)?.is_some() {
            return Ok(());
        }
        self.write(&name, &[&graph_header(model), model.blob()])
    }

    /// A graph that was kept.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn model(&self, digest: Digest) -> Result<Model, LedgerError> {
        let name = graph_name(digest);
        let bytes = self.read(&name, u64::MAX)?;
        let bytes = bytes.ok_or_else(|| LedgerError::Missing { name: name.clone() })?;
        read_graph(bytes, digest).map_err(|source| match source {
            GraphFileError::Decode(source) => damaged(&name, source),
            GraphFileError::Graph(source) => LedgerError::Graph { name, source },
        })
    }

    /// Keeps a record before its output is used.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn keep(&self, record: &Provisional) -> Result<(), LedgerError> {
        self.write(&provisional_name(record.counter()), &[&record.encode()])
    }

    /// A record that awaits its audit.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn record(&self, number: u64) -> Result<Provisional, LedgerError> {
        let name = provisional_name(number);
        let bytes = self.read(&name, u64::MAX)?;
        let bytes = bytes.ok_or(LedgerError::Missing { name })?;
        Provisional::decode(&bytes, self.signer.public())
            .map_err(|source| LedgerError::Record { number, source })
    }

    /// Fixes what will be looked at of a record, durably; what was fixed before stays.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn draw(&self, record: &mut Provisional, fresh: [u8; 32]) -> Result<(), LedgerError> {
        if record.seed().is_none() {
            record.draw(fresh)?;
            self.keep(record)?;
        }
        Ok(())
    }

    /// Puts down how a record ended.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn conclude(&self, outcome: &Outcome) -> Result<(), LedgerError> {
        let receipt = match outcome {
            Outcome::Settled(settled) => settled.receipt(),
            Outcome::Rejected(rejected) => {
                let number = rejected.receipt().unverified().counter;
                if let Some(evidence) = rejected.evidence() {
                    let bytes = match &self.judge {
                        None => evidence.encode(),
                        // A key of its own for each piece of evidence: no two of a ledger have one number.
                        Some((judge, entropy)) => {
                            let label = format!("larvatus 2026 evidence {number} v1");
                            let entropy = Entropy::new(*entropy.derive_alone(&label));
                            evidence.seal(*judge, &entropy)?
                        }
                    };
                    self.write(&evidence_name(number), &[&bytes])?;
                }
                rejected.receipt()
            }
            Outcome::Unopened(unopened) => {
                let number = unopened.receipt().unverified().counter;
                let why = unopened.why().to_string();
                self.write(&unopened_name(number), &[why.as_bytes()])?;
                unopened.receipt()
            }
        };
        let number = receipt.unverified().counter;
        self.write(&receipt_name(number), &[&receipt.encode()])?;
        self.erase(&provisional_name(number))
    }

    /// The numbers of records that await their audit.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn pending(&self) -> Result<Vec<u64>, LedgerError> {
        let entries = self.entries()?.into_iter();
        let pending = entries.filter(|entry| entry.state == State::Provisional);
        Ok(pending.map(|entry| entry.number).collect())
    }

    /// All records, in the order of their numbers.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn entries(&self) -> Result<Vec<Entry>, LedgerError> {
        let found = self.files_of_records()?;
        let mut entries = Vec::with_capacity(found.len());
        for (number, kinds) in found {
            let has = |kind: &str| kinds.iter().any(|other| other == kind);
            let state = if has("receipt") {
                if has("provisional") {
                    // A process ended between the two.
                    self.erase(&provisional_name(number))?;
                }
                self.ended(number, has("evidence"))?
            } else if has("provisional") {
                State::Provisional
            } else {
                continue;
            };
            entries.push(Entry { number, state });
        }
        Ok(entries)
    }

    /// Kinds of files by the number of their record.
    fn files_of_records(&self) -> Result<BTreeMap<u64, Vec<String>>, LedgerError> {
        let files = self.files.list();
        let files = files.map_err(|source| LedgerError::Files {
            name: "list".to_owned(),
            source,
        })?;
        let mut found: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        for (name, _) in files {
            let Some((number, kind)) = name.split_once('.') else {
                continue;
            };
            let canonical = |number: &u64| file_name(*number, kind) == name;
            if let Some(number) = number.parse().ok().filter(canonical) {
                found.entry(number).or_default().push(kind.to_owned());
            }
        }
        Ok(found)
    }

    /// How a record ended, by its receipt.
    fn ended(&self, number: u64, evidence: bool) -> Result<State, LedgerError> {
        let name = receipt_name(number);
        let bytes = self.read(&name, 4096)?.unwrap_or_default();
        let receipt = Receipt::decode(&bytes).map_err(|source| damaged(&name, source))?;
        let worker = receipt.unverified().worker;
        let verified = receipt.verify(self.signer.public(), worker);
        let verified = verified.map_err(|source| LedgerError::Receipt { name, source })?;
        Ok(match verified.verdict() {
            Verdict::Settled => State::Settled,
            Verdict::Rejected => State::Rejected { evidence },
            Verdict::Pending => {
                let why = self.read(&unopened_name(number), 4096)?.unwrap_or_default();
                let why = String::from_utf8_lossy(&why).into_owned();
                State::Unopened { why }
            }
        })
    }

    fn read(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>, LedgerError> {
        let failed = |source| LedgerError::Files {
            name: name.to_owned(),
            source,
        };
        let Some(file) = self.files.open(name).map_err(failed)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(most).read_to_end(&mut bytes).map_err(failed)?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, parts: &[&[u8]]) -> Result<(), LedgerError> {
        let written = self.files.write(name, parts);
        written.map_err(|source| LedgerError::Files {
            name: name.to_owned(),
            source,
        })
    }

    fn erase(&self, name: &str) -> Result<(), LedgerError> {
        let erased = self.files.erase(name);
        erased.map_err(|source| LedgerError::Files {
            name: name.to_owned(),
            source,
        })
    }
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ledger({})", self.signer.public())
    }
}

/// Why a file is no graph's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GraphFileError {
    /// It is no such file.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// It is not the graph that was named.
    #[error(transparent)]
    Graph(#[from] ModelError),
}

/// Reads the file of the graph with this digest, as a ledger keeps it.
///
/// # Errors
/// [`GraphFileError`] where it is another one, or none.
pub fn read_graph(mut bytes: Vec<u8>, digest: Digest) -> Result<Model, GraphFileError> {
    let graph_bytes = {
        let mut reader = Reader::new(&bytes);
        match reader.u32()? {
            GRAPH => {}
            got => return Err(DecodeError::Magic { got }.into()),
        }
        reader.count("bytes of a graph", larvatus_graph::encode::MAX_GRAPH)?
    };
    bytes.drain(..8);
    Ok(Model::from_blob(bytes, graph_bytes, digest)?)
}

fn graph_header(model: &Model) -> Vec<u8> {
    let mut header = Writer::default();
    header.u32(GRAPH).count(model.graph_bytes());
    header.into_bytes()
}

/// The name of a graph's file.
pub fn graph_name(digest: Digest) -> String {
    format!("{digest}.graph")
}

fn file_name(number: u64, kind: &str) -> String {
    format!("{number:08}.{kind}")
}

fn provisional_name(number: u64) -> String {
    file_name(number, "provisional")
}

/// The name of a record's receipt.
pub fn receipt_name(number: u64) -> String {
    file_name(number, "receipt")
}

/// The name of a record's evidence.
pub fn evidence_name(number: u64) -> String {
    file_name(number, "evidence")
}

fn unopened_name(number: u64) -> String {
    file_name(number, "unopened")
}

fn damaged(name: &str, source: DecodeError) -> LedgerError {
    let name = name.to_owned();
    LedgerError::Damaged { name, source }
}
