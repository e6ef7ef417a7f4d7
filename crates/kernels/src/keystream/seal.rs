//! Field elements that are kept where others read and write: c = x + k mod p, and back.
//!
//! With k uniform and used for one x only, c says nothing about x. It proves nothing either: adding d to c adds d to what
//! comes back. This is for values that a check authenticates later; there d meets no secret, so whether the check passes
//! tells nothing about x.
//!
//! Source: one-time pad in a field, as in [`crate::hide`].
#![forbid(unsafe_code)]

use core::fmt;

use zeroize::Zeroize;

use super::Stream;
use crate::field::P;
use crate::isa::Isa;
use crate::isa::vector::{AHEAD, Pass, Vector, load, store};

/// A sealed word is p or more, so nobody sealed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotCanonical;

impl fmt::Display for NotCanonical {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a sealed word is p or more")
    }
}

impl core::error::Error for NotCanonical {}

impl Stream<'_> {
    /// Adds the words from index `first` on to `words`, which must be canonical and stay so.
    ///
    /// **Exactness**: exact mod p, on every instruction set.
    ///
    /// # Panics
    /// As [`Stream::fill`] does.
    pub fn seal(&self, first: u64, words: &mut [u32]) {
        self.seal_with(Isa::best(), first, words);
    }

    /// [`Stream::seal`] with a given instruction set.
    ///
    /// # Panics
    /// As [`Stream::fill`] does.
    pub fn seal_with(&self, isa: Isa, first: u64, words: &mut [u32]) {
        self.assert_range(first, words.len());
        isa.run(Shift::<false> {
            stream: self,
            first,
            words,
        });
    }

    /// Takes the words from index `first` on away from `words`, which may be any; they are canonical afterwards.
    ///
    /// **Errors**: [`NotCanonical`] if one was p or more; then all are zero.
    ///
    /// # Panics
    /// As [`Stream::fill`] does.
    pub fn unseal(&self, first: u64, words: &mut [u32]) -> Result<(), NotCanonical> {
        self.unseal_with(Isa::best(), first, words)
    }

    /// [`Stream::unseal`] with a given instruction set.
    ///
    /// **Errors**: as [`Stream::unseal`].
    ///
    /// # Panics
    /// As [`Stream::fill`] does.
    pub fn unseal_with(&self, isa: Isa, first: u64, words: &mut [u32]) -> Result<(), NotCanonical> {
        self.assert_range(first, words.len());
        let largest = isa.run(Shift::<true> {
            stream: self,
            first,
            words,
        });
        if largest < P {
            return Ok(());
        }
        words.zeroize();
        Err(NotCanonical)
    }
}

/// Words of a tile; its keystream stays in the first-level cache.
const TILE: usize = 1024;

/// Adds a stream to words, or takes it away. Returns the largest word there was.
struct Shift<'a, const BACK: bool> {
    stream: &'a Stream<'a>,
    first: u64,
    words: &'a mut [u32],
}

impl<const BACK: bool> Pass for Shift<'_, BACK> {
    type Output = u32;

    fn scalar(self) -> u32 {
        let mut largest = 0;
        let mut pad = [0; TILE];
        for (tile, first) in self
            .words
            .chunks_mut(TILE)
            .zip((self.first..).step_by(TILE))
        {
            let pad = &mut pad[..tile.len()];
            self.stream.fill_with(Isa::Scalar, first, pad);
            for (word, pad) in tile.iter_mut().zip(pad) {
                largest = largest.max(*word);
                let shifted = if BACK {
                    let difference = word.wrapping_sub(*pad);
                    difference.min(difference.wrapping_add(P))
                } else {
                    let sum = word.wrapping_add(*pad);
                    sum.min(sum.wrapping_sub(P))
                };
                *word = shifted;
            }
        }
        pad.zeroize();
        largest
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) -> u32 {
        let mut largest = v.splat(0);
        let mut pads = [0; Stream::room(TILE)];
        for (tile, first) in self
            .words
            .chunks_mut(TILE)
            .zip((self.first..).step_by(TILE))
        {
            let pad = self.stream.tile(v, first, tile.len(), &mut pads);
            let mut at = 0;
            while at + V::LANES <= tile.len() {
                v.prefetch(tile, at + AHEAD);
                largest = shift::<V, BACK, false>(v, largest, pad, tile, at);
                at += V::LANES;
            }
            if at < tile.len() {
                largest = shift::<V, BACK, true>(v, largest, pad, tile, at);
            }
        }
        pads.zeroize();
        v.largest(largest)
    }
}

#[inline(always)]
fn shift<V: Vector, const BACK: bool, const PART: bool>(
    v: V,
    largest: V::I,
    pad: &[u32],
    words: &mut [u32],
    at: usize,
) -> V::I {
    let p = v.splat(P);
    let (word, pad) = (load::<V, PART>(v, words, at), load::<V, PART>(v, pad, at));
    let shifted = if BACK {
        let difference = v.sub(word, pad);
        v.min(difference, v.add(difference, p))
    } else {
        let sum = v.add(word, pad);
        v.min(sum, v.sub(sum, p))
    };
    store::<V, PART>(v, shifted, words, at);
    v.max(largest, word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keystream::{Key, Purpose};
    use crate::testing::{LENGTHS, Random};

    #[test]
    fn every_variant_adds_and_takes_away_the_stream() {
        let key = Key::new([9; 32]);
        let stream = key.stream(5, 0, Purpose::UnmaskPad);
        let mut random = Random::new(1);
        for isa in Isa::available() {
            for len in LENGTHS {
                for first in [0, 1, 6, 1023] {
                    let mut x = random.words(len);
                    if let Some(word) = x.first_mut() {
                        *word = P - 1;
                    }
                    let mut pad = vec![0; len];
                    stream.fill_with(Isa::Scalar, first, &mut pad);
                    let expected: Vec<u32> = x
                        .iter()
                        .zip(&pad)
                        .map(|(x, k)| ((u64::from(*x) + u64::from(*k)) % u64::from(P)) as u32)
                        .collect();
                    let mut words = x.clone();
                    stream.seal_with(isa, first, &mut words);
                    assert_eq!(words, expected, "{} {first} {len}", isa.name());
                    assert_eq!(stream.unseal_with(isa, first, &mut words), Ok(()));
                    assert_eq!(words, x, "{} {first} {len}", isa.name());
                }
            }
        }
    }

    #[test]
    fn a_word_of_p_or_more_is_refused_wherever_it_is() {
        let key = Key::new([9; 32]);
        let stream = key.stream(5, 0, Purpose::UnmaskPad);
        for isa in Isa::available() {
            for at in [0, 1, 15, 1023, 1024, 1030] {
                for wrong in [P, P + 1, u32::MAX] {
                    let mut words = vec![1; 1031];
                    words[at] = wrong;
                    let got = stream.unseal_with(isa, 3, &mut words);
                    assert_eq!(got, Err(NotCanonical), "{} {at}", isa.name());
                    assert!(words.iter().all(|word| *word == 0));
                }
            }
        }
    }
}
