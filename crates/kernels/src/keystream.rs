//! Uniform field elements from a key, with random access: the masks, and the secret vectors of the check.
//!
//! Word i of a stream is word i mod 4, little-endian, of AES-256 applied to the block
//!
//! ```text
//! ticket u64 ‖ upload u16 ‖ purpose u8 ‖ retry lane u8 ‖ i div 4 as u32      (big-endian)
//! ```
//!
//! masked to 31 bits. If that equals p it is not a field element: then the word at the same place of the next retry
//! lane is taken, and so on. So a word depends on its index alone, and every instruction set, every tile size and every
//! party with the key agrees on it. The layout is injective: no two words of a key's streams come from one place.
//!
//! Given that AES-256 is a pseudorandom permutation, words are uniform on [0, p): computationally, not perfectly. (As a
//! permutation never repeats a block, an adversary distinguishes n blocks from uniform with advantage n²/2¹²⁹.)
//! A word for which all 256 lanes hold p would be 0; that happens with probability 2⁻⁷⁹³⁶.
//!
//! Source: AES is FIPS 197, counter mode is NIST SP 800-38A §6.5.
#![forbid(unsafe_code)]

mod seal;

pub use seal::NotCanonical;

use core::fmt;

use aes::Aes256Enc;
use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};
use zeroize::{Zeroize, Zeroizing};

use crate::field::P;
use crate::isa::Isa;
use crate::isa::vector::{Pass, Vector};
#[cfg(target_arch = "x86_64")]
use crate::isa::{Avx512, avx512};

/// Words a stream has: 2³² blocks of four.
pub const WORDS: u64 = 1 << 34;

/// A secret key, expanded once. Not `Clone`; overwritten when dropped.
pub struct Key {
    schedule: Schedule,
}

/// What a stream is for. Streams of different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum Purpose {
    /// Masks of an upload.
    Mask = 1,
    /// The factor of a check vector over positions (the second factor of `v = outer ⊗ inner` for a convolution).
    Space = 2,
    /// The factor of a check vector over channels.
    Channel = 3,
    /// What seals stored answers to pads.
    UnmaskPad = 4,
    /// The first share of weights that are split between two workers; the ticket is the layer.
    Share = 5,
}

/// The words of one ticket, upload and purpose.
///
/// Deliberately not `Clone`: it stands for one use. That no use repeats is for whoever hands out tickets to ensure.
pub struct Stream<'key> {
    schedule: &'key Schedule,
    counter: Counter,
}

impl Key {
    /// Expands a key.
    pub fn new(key: [u8; 32]) -> Self {
        let key = Zeroizing::new(key);
        Self {
            schedule: Schedule::new(&key),
        }
    }

    /// The stream of one ticket, upload and purpose.
    pub fn stream(&self, ticket: u64, upload: u16, purpose: Purpose) -> Stream<'_> {
        let counter = Counter {
            ticket,
            upload,
            purpose: purpose as u8,
            lane: 0,
        };
        Stream {
            schedule: &self.schedule,
            counter,
        }
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl fmt::Debug for Stream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.counter).finish()
    }
}

impl Stream<'_> {
    /// Writes the words from index `first` on.
    ///
    /// **Domain**: canonical words, uniform. **Exactness**: the definition above, on every instruction set.
    ///
    /// # Panics
    /// If the words end beyond [`WORDS`]: going on would repeat the stream. Whoever plans an upload bounds its size.
    pub fn fill(&self, first: u64, out: &mut [u32]) {
        self.fill_with(Isa::best(), first, out);
    }

    /// [`Stream::fill`] with a given instruction set.
    ///
    /// # Panics
    /// As [`Stream::fill`] does.
    pub fn fill_with(&self, isa: Isa, first: u64, out: &mut [u32]) {
        self.assert_range(first, out.len());
        isa.run(Fill {
            stream: self,
            first,
            out,
        });
    }

    /// Panics unless `len` words from `first` on exist.
    pub(crate) fn assert_range(&self, first: u64, len: usize) {
        let end = u64::try_from(len)
            .ok()
            .and_then(|len| first.checked_add(len));
        assert!(
            end.is_some_and(|end| end <= WORDS),
            "keystream index overflow"
        );
    }

    /// The words from `first` on, `len` of them, in `buffer`, which has room for [`Self::room`] words.
    #[inline(always)]
    pub(crate) fn tile<'b, V: Vector>(
        &self,
        v: V,
        first: u64,
        len: usize,
        buffer: &'b mut [u32],
    ) -> &'b [u32] {
        let skip = (first % 4) as usize;
        let filled = (skip + len).next_multiple_of(BATCH).min(buffer.len());
        self.fill_blocks(v, (first / 4) as u32, &mut buffer[..filled]);
        &buffer[skip..skip + len]
    }

    /// The buffer that [`Self::tile`] needs for `len` words.
    pub(crate) const fn room(len: usize) -> usize {
        (len + 3).next_multiple_of(BATCH)
    }

    /// The words from block `block` on.
    #[inline(always)]
    fn fill_blocks<V: Vector>(&self, v: V, block: u32, out: &mut [u32]) {
        if v.keystream(self.schedule, self.counter, block, out) == P {
            self.retry(block, out);
        }
    }

    /// Replaces words equal to p, in words that start with block `block`.
    #[cold]
    #[inline(never)]
    fn retry(&self, block: u32, out: &mut [u32]) {
        for (index, word) in out.iter_mut().enumerate().filter(|(_, word)| **word == P) {
            let block = block.wrapping_add((index / 4) as u32);
            *word = first_below_p(|lane| {
                let counter = Counter {
                    lane,
                    ..self.counter
                };
                let mut words = [0; 4];
                self.schedule.keystream(counter, block, &mut words);
                words[index % 4]
            });
        }
    }
}

/// The first of the retry lanes' words, from lane 1 on, that is a field element.
fn first_below_p(mut word: impl FnMut(u8) -> u32) -> u32 {
    (1..=u8::MAX)
        .map(&mut word)
        .find(|&word| word < P)
        .unwrap_or(0)
}

/// Words that a vector form makes at once.
const BATCH: usize = 128;

struct Fill<'a> {
    stream: &'a Stream<'a>,
    first: u64,
    out: &'a mut [u32],
}

impl Pass for Fill<'_> {
    type Output = ();

    fn scalar(self) {
        let Self { stream, first, out } = self;
        from_word(first, out, |block, words| {
            if stream.schedule.keystream(stream.counter, block, words) == P {
                stream.retry(block, words);
            }
        });
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self { stream, first, out } = self;
        from_word(first, out, |block, words| {
            stream.fill_blocks(v, block, words)
        });
    }
}

/// Fills `out` from word `first` on with a function that fills from the first word of a block on.
#[inline(always)]
fn from_word(first: u64, out: &mut [u32], mut fill: impl FnMut(u32, &mut [u32])) {
    let head = out.len().min((first.wrapping_neg() % 4) as usize);
    let (head, rest) = out.split_at_mut(head);
    if !head.is_empty() {
        let mut words = [0; 4];
        fill((first / 4) as u32, &mut words);
        head.copy_from_slice(&words[(first % 4) as usize..][..head.len()]);
        words.zeroize();
    }
    fill(first.div_ceil(4) as u32, rest);
}

/// All of a counter block but its last word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counter {
    ticket: u64,
    upload: u16,
    purpose: u8,
    lane: u8,
}

impl Counter {
    /// The block with number `block`.
    pub(crate) fn block(self, block: u32) -> [u8; 16] {
        let prefix = u128::from(self.ticket) << 64
            | u128::from(self.upload) << 48
            | u128::from(self.purpose) << 40
            | u128::from(self.lane) << 32;
        (prefix | u128::from(block)).to_be_bytes()
    }
}

/// The expanded key, in the forms that the variants want. Overwritten when dropped.
pub(crate) struct Schedule {
    cipher: Aes256Enc,
    #[cfg(target_arch = "x86_64")]
    rounds: Option<Box<Zeroizing<avx512::RoundKeys>>>,
}

impl Schedule {
    fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: Aes256Enc::new(key.into()),
            #[cfg(target_arch = "x86_64")]
            rounds: Avx512::detect().map(|token| {
                let mut rounds = Box::new(Zeroizing::new([[0; 16]; 15]));
                avx512::expand_key(token, key, &mut rounds);
                rounds
            }),
        }
    }

    /// The round keys in order.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn rounds(&self, _token: Avx512) -> &avx512::RoundKeys {
        self.rounds
            .as_ref()
            .expect("a token exists, so detection succeeded")
    }

    /// Masked words from block `first_block` on, words equal to p included. Returns the largest.
    pub(crate) fn keystream(&self, counter: Counter, first_block: u32, out: &mut [u32]) -> u32 {
        /// Words that are in the first-level cache between the steps.
        const CHUNK: usize = 1024;
        let (whole, rest) = out.split_at_mut(out.len() / 4 * 4);
        let mut largest = 0;
        let mut number = first_block;
        for words in whole.chunks_mut(CHUNK) {
            // In place: counters, ciphertext, words.
            let blocks: &mut [[u8; 16]] = bytemuck::cast_slice_mut(words);
            for block in blocks.iter_mut() {
                *block = counter.block(number);
                number = number.wrapping_add(1);
            }
            self.cipher
                .encrypt_blocks(Array::cast_slice_from_core_mut(blocks));
            for word in words {
                *word = u32::from_le(*word) & P;
                largest = largest.max(*word);
            }
        }
        if !rest.is_empty() {
            let mut words = [0; 4];
            largest = largest.max(self.keystream(counter, number, &mut words));
            rest.copy_from_slice(&words[..rest.len()]);
            words.zeroize();
        }
        largest
    }
}

#[cfg(test)]
mod tests {
    use aes::Aes256Enc;
    use aes::cipher::{BlockCipherEncrypt, KeyInit};

    use super::{Counter, Key, Purpose, Stream, WORDS, first_below_p};
    use crate::field::P;
    use crate::isa::Isa;
    use crate::testing::LENGTHS;

    /// 0, 1, .. 31.
    fn key() -> [u8; 32] {
        core::array::from_fn(|byte| byte as u8)
    }

    /// Words of [`key`]'s stream (7, 3, Mask) whose first lane holds p, with what the next lane holds. Found by search;
    /// the values are from another implementation.
    const RETRIED: [(u64, u32); 5] = [
        (347_444_590, 852_052_211),
        (4_481_608_416, 712_966_036),
        (7_347_048_601, 675_232_209),
        (8_944_013_784, 996_179_897),
        (9_242_502_844, 1_511_605_414),
    ];

    /// The definition in other words: one block at a time.
    fn word(ticket: u64, upload: u16, purpose: u8, index: u64) -> u32 {
        let cipher = Aes256Enc::new(&key().into());
        let in_lane = |lane: u8| {
            let mut block = [0; 16];
            block[..8].copy_from_slice(&ticket.to_be_bytes());
            block[8..10].copy_from_slice(&upload.to_be_bytes());
            block[10..12].copy_from_slice(&[purpose, lane]);
            block[12..].copy_from_slice(&u32::try_from(index / 4).unwrap().to_be_bytes());
            let mut block = block.into();
            cipher.encrypt_block(&mut block);
            let from = 4 * (index % 4) as usize;
            u32::from_le_bytes(block[from..from + 4].try_into().unwrap()) & P
        };
        (0..=255).map(in_lane).find(|&word| word != P).unwrap()
    }

    #[test]
    fn blocks_are_those_of_the_standard() {
        // NIST SP 800-38A, F.5.5: output blocks 1 to 4.
        let nist = [
            0x603d_eb10_15ca_71be_2b73_aef0_857d_7781_u128,
            0x1f35_2c07_3b61_08d7_2d98_10a3_0914_dff4,
        ];
        let output = [
            0x0bdf_7df1_5917_1633_5e9a_8b15_c860_c502_u128,
            0x5a6e_699d_5361_1906_5433_863c_8f65_7b94,
            0x1bc1_2c9c_0161_0d5d_0d8b_d6a3_378e_ca62,
            0x2956_e1c8_6935_36b1_bee9_9c73_a315_76b6,
        ];
        let expected: Vec<u32> = output
            .iter()
            .flat_map(|block| block.to_be_bytes().as_chunks::<4>().0.to_vec())
            .map(|bytes| u32::from_le_bytes(bytes) & P)
            .collect();
        let key = Key::new(
            nist.map(u128::to_be_bytes)
                .as_flattened()
                .try_into()
                .unwrap(),
        );
        let counter = Counter {
            ticket: 0xf0f1_f2f3_f4f5_f6f7,
            upload: 0xf8f9,
            purpose: 0xfa,
            lane: 0xfb,
        };
        let stream = Stream {
            schedule: &key.schedule,
            counter,
        };
        for isa in Isa::available() {
            let mut words = [0; 16];
            stream.fill_with(isa, 0xfcfd_feff * 4, &mut words);
            assert_eq!(words.as_slice(), expected, "{}", isa.name());
        }
    }

    #[test]
    fn words_are_those_of_another_implementation() {
        let key = Key::new(key());
        for isa in Isa::available() {
            let mut words = [0; 6];
            key.stream(7, 3, Purpose::Mask)
                .fill_with(isa, 0, &mut words);
            let first = [
                736_246_540,
                639_825_611,
                471_640_771,
                1_035_095_924,
                2_095_919_326,
                765_334_500,
            ];
            assert_eq!(words, first);
            key.stream(7, 3, Purpose::Mask)
                .fill_with(isa, WORDS - 2, &mut words[..2]);
            assert_eq!(words[..2], [1_501_304_996, 471_632_974]);
            let other = key.stream(0x0102_0304_0506_0708, 0x090a, Purpose::Space);
            other.fill_with(isa, 1, &mut words[..3]);
            assert_eq!(words[..3], [845_363_754, 894_008_877, 139_321_822]);
        }
    }

    #[test]
    fn any_piece_of_a_stream_is_the_same() {
        let key = Key::new(key());
        let stream = key.stream(u64::MAX, 9, Purpose::Channel);
        let whole: Vec<u32> = (0..3300).map(|index| word(u64::MAX, 9, 3, index)).collect();
        for isa in Isa::available() {
            for len in LENGTHS {
                for first in [0, 1, 2, 3, 4, 61, 127] {
                    let mut piece = vec![0; len];
                    stream.fill_with(isa, first as u64, &mut piece);
                    assert_eq!(
                        piece,
                        whole[first..first + len],
                        "{} {first} {len}",
                        isa.name()
                    );
                }
            }
        }
    }

    #[test]
    fn a_word_equal_to_p_is_replaced_wherever_it_falls() {
        let key = Key::new(key());
        let stream = key.stream(7, 3, Purpose::Mask);
        for isa in Isa::available() {
            for (index, replacement) in RETRIED {
                for before in [
                    0, 1, 2, 3, 4, 5, 15, 16, 124, 127, 128, 511, 512, 1023, 1024,
                ] {
                    for after in [0, 1, 200] {
                        let mut words = vec![0; before + 1 + after];
                        stream.fill_with(isa, index - before as u64, &mut words);
                        assert_eq!(words[before], replacement, "{} {before}", isa.name());
                        if after > 0 {
                            assert_eq!(words[before + 1], word(7, 3, 1, index + 1));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn retry_lanes_go_on_until_a_word_is_below_p() {
        assert_eq!(
            first_below_p(|lane| if lane < 5 { P } else { u32::from(lane) }),
            5
        );
        assert_eq!(first_below_p(|lane| if lane < 255 { P } else { 42 }), 42);
        assert_eq!(first_below_p(|_| P), 0);
    }

    #[test]
    fn streams_do_not_share_words() {
        let key = Key::new(key());
        let streams = [
            key.stream(0, 0, Purpose::Mask),
            key.stream(1, 0, Purpose::Mask),
            key.stream(0, 1, Purpose::Mask),
            key.stream(0, 0, Purpose::Space),
            key.stream(0, 0, Purpose::Channel),
            key.stream(0, 0, Purpose::UnmaskPad),
        ];
        let firsts = streams.map(|stream| {
            let mut words = [0; 4];
            stream.fill(0, &mut words);
            words
        });
        for (index, words) in firsts.iter().enumerate() {
            assert!(!firsts[..index].contains(words), "{index}");
        }
    }

    #[test]
    #[should_panic(expected = "keystream index overflow")]
    fn a_stream_ends() {
        Key::new(key())
            .stream(0, 0, Purpose::Mask)
            .fill(WORDS - 1, &mut [0; 2]);
    }

    #[test]
    fn a_key_is_not_printed() {
        assert_eq!(format!("{:?}", Key::new(key())), "Key(..)");
    }
}
