//! Splitting weights into two shares, each uniform by itself.

use std::fmt;

use zeroize::Zeroizing;

use crate::erase;
use crate::field::{Fp, P};
use crate::keystream::{Key, NotCanonical, Purpose};
use crate::linear::weights::Weights;

/// Full-width weights, in the order that the shape states. Overwritten when dropped; not `Clone`, not printable.
pub struct Share(
    /// Canonical words, each below p.
    Vec<u32>,
);

impl Share {
    /// Takes words as they came.
    ///
    /// Errors: a word is p or more; then all are overwritten.
    pub fn new(words: Vec<u32>) -> Result<Self, NotCanonical> {
        let share = Self(words);
        if share.0.iter().all(|&word| word < P) {
            Ok(share)
        } else {
            Err(NotCanonical)
        }
    }

    /// The words.
    pub fn words(&self) -> &[u32] {
        &self.0
    }

    pub(super) fn copy(&self) -> Self {
        Self(self.0.clone())
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        erase(&mut self.0);
    }
}

impl fmt::Debug for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Share({})", self.0.len())
    }
}

/// What the weights of a model are split with: `W = W₁ + W₂ mod p` with W₁ expanded from a seed.
///
/// W₁ is uniform given that AES-256 is a pseudorandom permutation, and then so is W₂, whatever W is. Either share alone says
/// nothing about W; the two together, or W₂ and the seed, are W. So a seed serves one pair of workers, and no worker
/// ever gets both shares, over all time. Layers are told apart by number: no number is used for two layers of one seed.
pub struct Split {
    key: Key,
}

impl Split {
    /// The split of a fresh seed of 32 uniform bytes.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            key: Key::new(seed),
        }
    }

    /// W₁ of layer `layer`, `count` weights: words 0.. of the keystream (layer, 0, [`Purpose::Share`]).
    pub fn first(&self, layer: u64, count: usize) -> Share {
        let mut words = vec![0; count];
        self.key
            .stream(layer, 0, Purpose::Share)
            .fill(0, &mut words);
        Share(words)
    }

    /// W₂ = W − W₁ of layer `layer`.
    ///
    /// Exactness: exact mod p, for weights of any planes.
    pub fn second(&self, layer: u64, weights: &Weights) -> Share {
        let stream = self.key.stream(layer, 0, Purpose::Share);
        let mut share = Share(vec![0; weights.len()]);
        let mut first = Zeroizing::new([0; PIECE]);
        for (piece, words) in share.0.chunks_mut(PIECE).enumerate() {
            let at = piece * PIECE;
            let first = &mut first[..words.len()];
            stream.fill(at as u64, first);
            for (plane, place) in weights.places() {
                for (word, &weight) in words.iter_mut().zip(&plane[at..]) {
                    let weight = Fp::from_signed(i64::from(weight) << place);
                    *word = Fp::from_u64(u64::from(*word) + u64::from(weight.word())).word();
                }
            }
            for (word, &first) in words.iter_mut().zip(&*first) {
                *word = Fp::from_u64(u64::from(*word) + u64::from(P - first)).word();
            }
        }
        share
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Split(..)")
    }
}

/// Words of W₁ that are in the first-level cache while they are taken away.
const PIECE: usize = 2048;

#[cfg(test)]
mod tests {
    use aes::Aes256Enc;
    use aes::cipher::{BlockCipherEncrypt, KeyInit};

    use super::*;

    /// Word `index` of W₁ of layer `layer`, from the block that the layout names.
    fn word(seed: [u8; 32], layer: u64, index: usize) -> u32 {
        let cipher = Aes256Enc::new(&seed.into());
        let lane = |lane: u8| {
            let mut block = [0; 16];
            block[..8].copy_from_slice(&layer.to_be_bytes());
            block[10..12].copy_from_slice(&[5, lane]);
            block[12..].copy_from_slice(&((index / 4) as u32).to_be_bytes());
            let mut block = block.into();
            cipher.encrypt_block(&mut block);
            let from = 4 * (index % 4);
            u32::from_le_bytes(block[from..from + 4].try_into().unwrap()) & P
        };
        (0..=255).map(lane).find(|&word| word < P).unwrap()
    }

    #[test]
    fn the_first_share_is_the_stated_stream() {
        let seed = std::array::from_fn(|byte| byte as u8);
        for layer in [0, 1, 1 << 40] {
            let share = Split::new(seed).first(layer, 5000);
            for (index, &got) in share.words().iter().enumerate() {
                assert_eq!(got, word(seed, layer, index), "layer {layer} word {index}");
            }
        }
    }

    #[test]
    fn the_shares_add_up_to_the_weights() {
        let split = Split::new([1; 32]);
        let plane = |step: usize| (0..5000).map(|i| (i * step) as i8).collect::<Vec<i8>>();
        for (planes, shift) in [
            (vec![plane(1)], 0),
            (vec![plane(3), plane(7)], 6),
            (vec![plane(3), plane(7)], 30),
        ] {
            let weights = Weights::new(planes, shift).unwrap();
            let (first, second) = (split.first(3, weights.len()), split.second(3, &weights));
            for (index, (&a, &b)) in first.words().iter().zip(second.words()).enumerate() {
                assert!(b < P);
                let sum = Fp::from_u64(u64::from(a) + u64::from(b));
                assert_eq!(sum, Fp::from_signed(weights.value(index)), "weight {index}");
            }
        }
    }

    #[test]
    fn layers_and_seeds_have_shares_of_their_own() {
        let share = |seed: u8, layer| Split::new([seed; 32]).first(layer, 64).words().to_vec();
        let shares = [share(1, 0), share(1, 1), share(2, 0)];
        let equal = |a: &[u32], b: &[u32]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        assert_eq!(equal(&shares[0], &shares[1]), 0);
        assert_eq!(equal(&shares[0], &shares[2]), 0);
        assert_eq!(share(1, 1), shares[1]);
    }
}
