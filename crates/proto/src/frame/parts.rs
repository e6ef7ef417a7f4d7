//! Parts that several messages have.

use super::{MAGIC, MAX_TEXT};
use crate::commit::LeafId;
use crate::receipt::SIGNATURE;
use crate::wire::{DecodeError, Reader};
use crate::words::Words;

pub(super) fn hello(reader: &mut Reader<'_>) -> Result<u16, DecodeError> {
    match reader.u32()? {
        MAGIC => reader.u16(),
        got => Err(DecodeError::Magic { got }),
    }
}

pub(super) fn no_payload(words: &Words) -> Result<(), DecodeError> {
    match words.len() {
        0 => Ok(()),
        count => Err(DecodeError::Trailing { extra: 4 * count }),
    }
}

pub(super) fn signature(reader: &mut Reader<'_>) -> Result<[u8; SIGNATURE], DecodeError> {
    let mut signature = [0; SIGNATURE];
    signature.copy_from_slice(reader.take(SIGNATURE)?);
    Ok(signature)
}

/// Leaves as two words each; [`leaves`] reads them.
pub(super) fn places<'a>(leaves: impl IntoIterator<Item = &'a LeafId>) -> Words {
    let words = leaves.into_iter().flat_map(|leaf| [leaf.tensor, leaf.leaf]);
    words.collect::<Vec<_>>().into()
}

pub(super) fn leaves(words: Words, count: usize) -> Result<Vec<LeafId>, DecodeError> {
    if words.len() != 2 * count {
        return Err(DecodeError::Inconsistent {
            what: "words of leaves",
            expected: 2 * count as u64,
            got: words.len() as u64,
        });
    }
    let words = words.into_vec();
    let (pairs, _) = words.as_chunks::<2>();
    let leaf = |&[tensor, leaf]: &[u32; 2]| LeafId { tensor, leaf };
    Ok(pairs.iter().map(leaf).collect())
}

/// Bytes as words, the last one padded with zeros.
pub fn pack(bytes: &[u8]) -> Vec<u32> {
    bytes
        .chunks(4)
        .map(|chunk| {
            let mut word = [0; 4];
            word.iter_mut()
                .zip(chunk)
                .for_each(|(to, from)| *to = *from);
            u32::from_le_bytes(word)
        })
        .collect()
}

/// The first `count` bytes of words that [`pack`] made.
///
/// # Errors
/// [`DecodeError::Inconsistent`] where there are more or fewer words than that takes, or the padding is not zero.
pub fn unpack(words: &[u32], count: usize) -> Result<Vec<u8>, DecodeError> {
    if words.len() != count.div_ceil(4) {
        return Err(DecodeError::Inconsistent {
            what: "words of bytes",
            expected: count.div_ceil(4) as u64,
            got: words.len() as u64,
        });
    }
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    if let Some(padding) = bytes
        .get(count..)
        .and_then(|rest| rest.iter().find(|&&b| b != 0))
    {
        return Err(DecodeError::Inconsistent {
            what: "padding of bytes",
            expected: 0,
            got: u64::from(*padding),
        });
    }
    bytes.truncate(count);
    Ok(bytes)
}

pub(super) fn printable(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > MAX_TEXT {
            break;
        }
        out.push(c);
    }
    out
}
