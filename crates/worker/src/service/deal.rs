//! The pads of a round, drawn from a seed.

use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_proto::frame::Seed;
use zeroize::Zeroizing;

use super::Refused;
use crate::backend::BackendError;

/// What the pads of one round come from.
#[derive(Debug)]
pub(super) struct Pads {
    key: Key,
    ticket: u64,
    /// Number and words of each upload.
    uploads: Vec<(u16, usize)>,
}

impl Pads {
    /// The pads of uploads of these lengths, numbered from `first` on.
    pub(super) fn new(
        seed: Seed,
        ticket: u64,
        first: usize,
        uploads: &[usize],
    ) -> Result<Self, Refused> {
        let numbered = |(got, words): (usize, &usize)| {
            let number = u16::try_from(got).map_err(|_| Refused::UploadNumber { got })?;
            Ok::<_, Refused>((number, *words))
        };
        Ok(Self {
            key: Key::new(seed.0),
            ticket,
            uploads: (first..)
                .zip(uploads)
                .map(numbered)
                .collect::<Result<_, _>>()?,
        })
    }

    /// The words.
    pub(super) fn draw(&self) -> Result<Zeroizing<Vec<u32>>, BackendError> {
        let words = self.uploads.iter().map(|(_, words)| words).sum();
        let mut pads = Zeroizing::new(Vec::new());
        let no_memory = |_| BackendError::Memory { words };
        pads.try_reserve_exact(words).map_err(no_memory)?;
        pads.resize(words, 0);
        let mut rest = pads.as_mut_slice();
        for (number, words) in &self.uploads {
            let Some((pad, tail)) = rest.split_at_mut_checked(*words) else {
                break;
            };
            self.key
                .stream(self.ticket, *number, Purpose::Mask)
                .fill(0, pad);
            rest = tail;
        }
        Ok(pads)
    }
}
