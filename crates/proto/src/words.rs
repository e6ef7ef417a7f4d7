//! Payload words, wherever they lie: in memory of our own, or in memory that a link shares with
//! the peer.
//!
//! Shared memory may change under our eyes for as long as the peer likes. So it is never looked at
//! in place: [`Words::read`] copies words out, and what is copied is what is checked and used.

use std::any::Any;
use std::fmt;

/// Memory that a link lends for a payload.
pub trait Lent: Any + Send + Sync {
    /// Words of it.
    fn len(&self) -> usize;

    /// Whether it has no words.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the words from `at` on; those beyond the end are left as they are.
    fn read(&self, at: usize, into: &mut [u32]);

    /// Copies words to `at`; those beyond the end, and all words where the peer is the writer, are
    /// dropped.
    fn write(&mut self, at: usize, from: &[u32]);
}

/// Where a machine gets memory for what it sends.
pub trait Memory: fmt::Debug + Send + Sync {
    /// `count` words to be written; their content is arbitrary.
    fn words(&self, count: usize) -> Words;
}

/// Memory of the process's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Heap;

impl Memory for Heap {
    fn words(&self, count: usize) -> Words {
        vec![0; count].into()
    }
}

/// The payload of a frame.
pub struct Words(Place);

enum Place {
    Own(Vec<u32>),
    Lent(Box<dyn Lent>),
}

impl Words {
    /// Words in a link's memory.
    pub fn lent(memory: Box<dyn Lent>) -> Self {
        Self(Place::Lent(memory))
    }

    /// How many.
    pub fn len(&self) -> usize {
        match &self.0 {
            Place::Own(words) => words.len(),
            Place::Lent(memory) => memory.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the words from `at` on; those beyond the end are left as they are.
    pub fn read(&self, at: usize, into: &mut [u32]) {
        match &self.0 {
            Place::Own(words) => {
                let words = words.get(at..).unwrap_or_default();
                let count = words.len().min(into.len());
                if let (Some(into), Some(words)) = (into.get_mut(..count), words.get(..count)) {
                    into.copy_from_slice(words);
                }
            }
            Place::Lent(memory) => memory.read(at, into),
        }
    }

    /// Copies words to `at`; those beyond the end are dropped.
    pub fn write(&mut self, at: usize, from: &[u32]) {
        match &mut self.0 {
            Place::Own(words) => {
                let words = words.get_mut(at..).unwrap_or_default();
                let count = words.len().min(from.len());
                if let (Some(words), Some(from)) = (words.get_mut(..count), from.get(..count)) {
                    words.copy_from_slice(from);
                }
            }
            Place::Lent(memory) => memory.write(at, from),
        }
    }

    /// The words themselves, unless they lie in a link's memory.
    pub fn as_slice(&self) -> Option<&[u32]> {
        match &self.0 {
            Place::Own(words) => Some(words),
            Place::Lent(_) => None,
        }
    }

    /// The words themselves, unless they lie in a link's memory.
    pub fn as_mut_slice(&mut self) -> Option<&mut [u32]> {
        match &mut self.0 {
            Place::Own(words) => Some(words),
            Place::Lent(_) => None,
        }
    }

    /// The words in memory of our own, moved there if need be.
    pub fn own(&mut self) -> &mut Vec<u32> {
        if let Place::Lent(_) = self.0 {
            self.0 = Place::Own(self.to_vec());
        }
        match &mut self.0 {
            Place::Own(words) => words,
            Place::Lent(_) => unreachable!("moved above"),
        }
    }

    /// What a link lent, for that link to recognise.
    pub fn as_lent(&self) -> Option<&dyn Any> {
        match &self.0 {
            Place::Own(_) => None,
            Place::Lent(memory) => Some(&**memory),
        }
    }

    /// The words in memory of our own: a copy, where they lie in a link's.
    pub fn into_vec(self) -> Vec<u32> {
        match self.0 {
            Place::Own(words) => words,
            Place::Lent(_) => self.to_vec(),
        }
    }

    /// A copy.
    pub fn to_vec(&self) -> Vec<u32> {
        let mut words = vec![0; self.len()];
        self.read(0, &mut words);
        words
    }
}

impl From<Vec<u32>> for Words {
    fn from(words: Vec<u32>) -> Self {
        Self(Place::Own(words))
    }
}

impl FromIterator<u32> for Words {
    fn from_iter<I: IntoIterator<Item = u32>>(words: I) -> Self {
        words.into_iter().collect::<Vec<u32>>().into()
    }
}

impl Default for Words {
    fn default() -> Self {
        Vec::new().into()
    }
}

/// The copy lies in memory of our own.
impl Clone for Words {
    fn clone(&self) -> Self {
        self.to_vec().into()
    }
}

impl PartialEq for Words {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.to_vec() == other.to_vec()
    }
}

impl Eq for Words {}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = match self.0 {
            Place::Own(_) => "",
            Place::Lent(_) => ", lent",
        };
        write!(f, "Words({}{place})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Board(Vec<u32>);

    impl Lent for Board {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read(&self, at: usize, into: &mut [u32]) {
            Words::from(self.0.clone()).read(at, into);
        }
        fn write(&mut self, at: usize, from: &[u32]) {
            let mut words = Words::from(self.0.clone());
            words.write(at, from);
            self.0 = words.into_vec();
        }
    }

    #[test]
    fn lent_and_own_words_behave_alike() {
        let mut own = Words::from(vec![0; 4]);
        let mut lent = Words::lent(Box::new(Board(vec![0; 4])));
        for words in [&mut own, &mut lent] {
            words.write(1, &[7, 8]);
            words.write(3, &[9, 10]);
            words.write(9, &[11]);
            let mut tail = [5; 3];
            words.read(2, &mut tail);
            assert_eq!(tail, [8, 9, 5]);
            assert_eq!(words.to_vec(), [0, 7, 8, 9]);
        }
        assert_eq!(own, lent);
        assert_eq!(lent.clone().as_slice(), Some(&[0, 7, 8, 9][..]));
        assert!(lent.as_slice().is_none() && lent.as_lent().is_some_and(|any| any.is::<Board>()));
        lent.own().insert(0, 1);
        assert_eq!(lent.into_vec(), [1, 0, 7, 8, 9]);
    }
}
