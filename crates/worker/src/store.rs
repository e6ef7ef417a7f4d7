//! The models that a worker holds, shared by all its connections.
//!
//! A model is addressed by the digest of its upload, which the store has computed itself. A model
//! that no connection uses stays until its place is needed; then the one unused for longest goes.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use larvatus_proto::digest::Digest;
use larvatus_proto::program::{Program, WorkerModel};
use larvatus_proto::wire::DecodeError;

use crate::attention::Attention;
use crate::backend::{Backend, BackendError, Loaded};
use crate::limits::{Limits, TooMuch};
use crate::queue::{Answer, Batches, Input, Queue};

/// A model ready for calls.
pub struct Model {
    digest: Digest,
    program: Program,
    program_bytes: usize,
    total: u64,
    loaded: Box<dyn Loaded>,
    queue: Queue,
}

impl Model {
    /// Its address.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its program.
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Bytes of the program in its upload.
    pub fn program_bytes(&self) -> usize {
        self.program_bytes
    }

    /// Bytes of its upload.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Computes calls of one round; others that wait for the same round, of any connection, go with them.
    pub(crate) fn compute(&self, round: u32, inputs: Vec<Input>) -> Vec<Answer> {
        self.queue.compute(&*self.loaded, round, inputs)
    }

    /// The most calls of a round that are computed together.
    pub(crate) fn most(&self, round: u32) -> usize {
        self.queue.most(round)
    }

    /// How calls came together since it was loaded.
    pub fn batches(&self) -> Batches {
        self.queue.batches()
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Model({}, {} bytes)", self.digest, self.loaded.bytes())
    }
}

/// Why a store does not take a model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The upload is larger than one may be.
    #[error("model of {got} bytes, the limit is {limit}")]
    TooLarge {
        /// The worker's limit.
        limit: u64,
        /// Bytes of the upload.
        got: u64,
    },
    /// Everything held is in use.
    #[error("no room for {needed} bytes: {used} of {limit} bytes and {models} models are in use")]
    Full {
        /// Bytes wanted.
        needed: u64,
        /// Bytes in use by connections.
        used: u64,
        /// The worker's limit.
        limit: u64,
        /// Models in use by connections.
        models: usize,
    },
    /// The upload is not the model that was named.
    #[error("upload is refused: {0}")]
    Upload(#[source] DecodeError),
    /// The program asks for too much.
    #[error("program is refused: {0}")]
    Program(#[source] TooMuch),
    /// The engine refuses the model.
    #[error("model is refused: {0}")]
    Backend(#[source] BackendError),
}

/// What a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Held {
    /// Models ready for calls.
    pub models: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Unfinished uploads.
    pub uploads: usize,
    /// The bytes promised to them.
    pub reserved: u64,
}

/// The models of a worker. Connections share it in an [`Arc`].
pub struct Store {
    backend: Box<dyn Backend>,
    limits: Limits,
    attention: Attention,
    /// Held while a model is made ready, so that only one at a time is held several times over.
    loading: Mutex<()>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    models: BTreeMap<Digest, Entry>,
    uploads: usize,
    reserved: u64,
    clock: u64,
}

struct Entry {
    model: Arc<Model>,
    bytes: u64,
    used: u64,
}

impl Store {
    /// An empty store over an engine.
    pub fn new(backend: Box<dyn Backend>, limits: Limits) -> Arc<Self> {
        let (loading, inner) = (Mutex::default(), Mutex::default());
        Arc::new(Self {
            backend,
            limits,
            attention: Attention::default(),
            loading,
            inner,
        })
    }

    /// Its limits.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Whether it takes new work.
    pub fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Its engine.
    pub fn backend(&self) -> &dyn Backend {
        &*self.backend
    }

    /// What it holds now.
    pub fn held(&self) -> Held {
        let inner = self.inner();
        let bytes = inner.models.values().map(|entry| entry.bytes).sum();
        let (uploads, reserved) = (inner.uploads, inner.reserved);
        Held {
            models: inner.models.len(),
            bytes,
            uploads,
            reserved,
        }
    }

    /// The model of this address, if it is held. It is not evicted while the caller keeps it.
    pub fn find(&self, digest: Digest) -> Option<Arc<Model>> {
        let mut inner = self.inner();
        inner.clock += 1;
        let used = inner.clock;
        let entry = inner.models.get_mut(&digest)?;
        entry.used = used;
        Some(Arc::clone(&entry.model))
    }

    /// Promises room for an upload; unused models make way.
    ///
    /// # Errors
    /// [`StoreError::TooLarge`], or [`StoreError::Full`] where what is in use leaves no room.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Result<Reservation, StoreError> {
        if bytes > self.limits.model_bytes {
            return Err(StoreError::TooLarge {
                limit: self.limits.model_bytes,
                got: bytes,
            });
        }
        let mut inner = self.inner();
        inner.make_room(bytes, &self.limits)?;
        inner.uploads += 1;
        inner.reserved += bytes;
        Ok(Reservation {
            store: Arc::clone(self),
            bytes,
        })
    }

    /// Turns a complete upload into a model that all connections share.
    ///
    /// # Errors
    /// [`StoreError`] where the upload is not the model named `digest`, its program exceeds the
    /// limits, the engine refuses it or what the engine holds of it finds no room.
    pub fn admit(
        &self,
        mut reservation: Reservation,
        blob: Vec<u8>,
        program_bytes: usize,
        digest: Digest,
    ) -> Result<Arc<Model>, StoreError> {
        let _one_at_a_time = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = self.find(digest) {
            return Ok(model);
        }
        let upload = WorkerModel::from_blob(blob, program_bytes, digest);
        let upload = upload.map_err(StoreError::Upload)?;
        self.limits
            .admit(upload.program())
            .map_err(StoreError::Program)?;
        // A seed is small and what follows from it is not: room first.
        reservation.grow(upload.program().expanded_bytes())?;
        let loaded = self.backend.load(&upload).map_err(StoreError::Backend)?;
        let (bytes, total) = (loaded.bytes(), upload.blob().len() as u64);
        let program = upload.program().clone();
        let queue = Queue::new(&program, &*loaded, &self.limits);
        drop((upload, reservation));
        let model = Arc::new(Model {
            digest,
            program,
            program_bytes,
            total,
            loaded,
            queue,
        });

        tracing::info!(%digest, upload = total, memory = bytes, "model ready");
        let mut inner = self.inner();
        inner.make_room(bytes, &self.limits)?;
        inner.clock += 1;
        let used = inner.clock;
        inner.models.insert(
            digest,
            Entry {
                model: Arc::clone(&model),
                bytes,
                used,
            },
        );
        Ok(model)
    }

    /// No code that could panic runs while this is held, so a poisoned lock is a sound one.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Store({}, {:?})", self.backend.name(), self.held())
    }
}

impl Inner {
    /// Evicts unused models until one more of `bytes` fits, keeping those used last; evicts none
    /// where that would not do.
    fn make_room(&mut self, bytes: u64, limits: &Limits) -> Result<(), StoreError> {
        let mut used = self.reserved;
        let mut models = self.uploads;
        let mut idle = Vec::new();
        for (digest, entry) in &self.models {
            // The first clone is made by `find`, under the lock: a count of one stays one.
            if Arc::strong_count(&entry.model) == 1 {
                idle.push((entry.used, *digest, entry.bytes));
            } else {
                used += entry.bytes;
                models += 1;
            }
        }
        let fits = |used: u64, models: usize| {
            used.saturating_add(bytes) <= limits.store_bytes && models < limits.models
        };
        if !fits(used, models) {
            let limit = limits.store_bytes;
            return Err(StoreError::Full {
                needed: bytes,
                used,
                limit,
                models,
            });
        }
        idle.sort_unstable();
        while let Some((_, digest, held)) = idle.pop() {
            if fits(used + held, models + 1) {
                used += held;
                models += 1;
            } else {
                self.models.remove(&digest);
            }
        }
        Ok(())
    }
}

/// Room promised to an upload; given back when dropped.
pub struct Reservation {
    store: Arc<Store>,
    bytes: u64,
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reservation({} bytes)", self.bytes)
    }
}

impl Reservation {
    /// Promises room for what the upload grows to.
    ///
    /// # Errors
    /// [`StoreError::Full`] where what is in use leaves no room; what was promised stays so.
    fn grow(&mut self, bytes: u64) -> Result<(), StoreError> {
        let bytes = bytes.max(self.bytes);
        let mut inner = self.store.inner();
        // In the place of the promise that there is, not beside it.
        inner.uploads -= 1;
        inner.reserved -= self.bytes;
        let room = inner.make_room(bytes, &self.store.limits);
        if room.is_ok() {
            self.bytes = bytes;
        }
        inner.uploads += 1;
        inner.reserved += self.bytes;
        room
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut inner = self.store.inner();
        inner.uploads -= 1;
        inner.reserved -= self.bytes;
    }
}
