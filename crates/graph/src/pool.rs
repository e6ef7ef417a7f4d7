//! Buffers that are kept for the next use.
//!
//! Activations are large and short-lived: a fresh buffer for each costs more in pages taken from
//! the system, and in writing zeros to them, than the arithmetic done on it.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Where buffers wait, by length; clones share them. Its memory is freed with the last clone.
#[derive(Clone, Default)]
pub struct Pool(Arc<Mutex<Shelf>>);

#[derive(Default)]
struct Shelf {
    kept: Vec<Vec<f32>>,
    /// Elements of all buffers, those that are out too.
    elements: usize,
}

impl Pool {
    /// A buffer of `len` elements of arbitrary content.
    pub fn take(&self, len: usize) -> Floats {
        let mut shelf = self.shelf();
        let at = shelf.kept.partition_point(|buffer| buffer.len() < len);
        // One that is much too large is left to whoever needs it.
        let kept = shelf.kept.get(at);
        let fits = kept.is_some_and(|buffer| buffer.len() / 2 <= len.max(1024));
        let data = if fits {
            shelf.kept.remove(at)
        } else {
            shelf.elements += len;
            vec![0.0; len]
        };
        drop(shelf);
        Floats {
            data,
            len,
            home: Some(self.clone()),
        }
    }

    fn put(&self, data: Vec<f32>) {
        let mut shelf = self.shelf();
        let at = shelf
            .kept
            .partition_point(|buffer| buffer.len() < data.len());
        shelf.kept.insert(at, data);
    }

    /// Bytes of all its buffers, those that are out too. They are kept, so this never falls.
    pub fn bytes(&self) -> u64 {
        4 * self.shelf().elements as u64
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer of a pool, which it goes back to.
pub struct Floats {
    /// At least `len`.
    data: Vec<f32>,
    len: usize,
    /// Where it waits afterwards, if anywhere.
    home: Option<Pool>,
}

impl From<Vec<f32>> for Floats {
    fn from(data: Vec<f32>) -> Self {
        Self {
            len: data.len(),
            data,
            home: None,
        }
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Floats {
    fn drop(&mut self) {
        if let Some(home) = &self.home {
            home.put(std::mem::take(&mut self.data));
        }
    }
}

impl fmt::Debug for Floats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Floats({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_and_is_taken_again() {
        let pool = Pool::default();
        let mut first = pool.take(5000);
        first.fill(7.0);
        let at = first.as_ptr();
        drop(first);
        // Smaller ones fit into it, unless it is far too large for them.
        let second = pool.take(4000);
        assert_eq!((second.as_ptr(), second.len()), (at, 4000));
        let third = pool.take(4000);
        assert_ne!(third.as_ptr(), at);
        assert_eq!(pool.bytes(), 4 * 9000);
        drop((second, third));
        assert_eq!(pool.take(10).len(), 10);
    }
}
