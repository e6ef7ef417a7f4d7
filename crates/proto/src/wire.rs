//! Little-endian, fixed-width encoding with one valid form for every value.

/// Why bytes are not an encoding of what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end before the value does.
    #[error("{needed} bytes needed at offset {offset}, {left} left")]
    Truncated {
        /// Where the reader stood.
        offset: usize,
        /// Bytes the value needs.
        needed: usize,
        /// Bytes there are.
        left: usize,
    },
    /// Bytes follow where the value is complete.
    #[error("{extra} bytes follow a complete value")]
    Trailing {
        /// How many.
        extra: usize,
    },
    /// A count is larger than the reader allows.
    #[error("{what}: {got} exceeds the limit of {limit}")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// The reader's limit.
        limit: u64,
        /// The count in the bytes.
        got: u64,
    },
    /// A tag names nothing this version knows.
    #[error("{what}: unknown tag {tag}")]
    UnknownTag {
        /// What the tag selects.
        what: &'static str,
        /// The tag.
        tag: u32,
    },
    /// The peer does not speak this protocol.
    #[error("the peer does not speak the larvatus protocol (magic {got:#010x})")]
    Magic {
        /// The first four bytes.
        got: u32,
    },
    /// A layer's shape is impossible or too large.
    #[error("layer {layer}: {source}")]
    Shape {
        /// Index in the program.
        layer: usize,
        /// What is wrong with it.
        source: larvatus_kernels::linear::ShapeError,
    },
    /// A word of a layer's weights is no field element.
    #[error("layer {layer}: a weight is not below p")]
    NotCanonical {
        /// Index in the program.
        layer: usize,
    },
    /// Two parts of a value contradict each other.
    #[error("{what}: {got} where {expected} follows from the rest")]
    Inconsistent {
        /// Which part.
        what: &'static str,
        /// What the rest implies.
        expected: u64,
        /// What it says.
        got: u64,
    },
    /// A string is not UTF-8 without control characters.
    #[error("{what} is not printable text")]
    Text {
        /// Which string.
        what: &'static str,
    },
}

/// Reads values from the front of a slice.
#[derive(Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
}

impl<'a> Reader<'a> {
    /// A reader at the first byte.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, offset: 0 }
    }

    /// Takes `count` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let rest = self.bytes.get(self.offset..).unwrap_or_default();
        let taken = rest.get(..count).ok_or(DecodeError::Truncated {
            offset: self.offset,
            needed: count,
            left: rest.len(),
        })?;
        self.offset += count;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A digest.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn digest(&mut self) -> Result<crate::digest::Digest, DecodeError> {
        Ok(crate::digest::Digest(self.array()?))
    }

    /// A count of things, at most `limit`; check before allocating for them.
    ///
    /// # Errors
    /// [`DecodeError::TooMany`], [`DecodeError::Truncated`].
    pub fn count(&mut self, what: &'static str, limit: usize) -> Result<usize, DecodeError> {
        let got = self.u32()?;
        match usize::try_from(got) {
            Ok(count) if count <= limit => Ok(count),
            _ => Err(DecodeError::TooMany {
                what,
                limit: limit as u64,
                got: u64::from(got),
            }),
        }
    }

    /// Printable text of at most `limit` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Text`], [`DecodeError::TooMany`], [`DecodeError::Truncated`].
    pub fn text(&mut self, what: &'static str, limit: usize) -> Result<String, DecodeError> {
        let count = self.count(what, limit)?;
        let text =
            std::str::from_utf8(self.take(count)?).map_err(|_| DecodeError::Text { what })?;
        if text.chars().any(char::is_control) {
            return Err(DecodeError::Text { what });
        }
        Ok(text.to_owned())
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] where bytes are left.
    pub fn finish(self) -> Result<(), DecodeError> {
        match self.bytes.len() - self.offset {
            0 => Ok(()),
            extra => Err(DecodeError::Trailing { extra }),
        }
    }
}

/// Writes what [`Reader`] reads.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Appends bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// Appends one byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// Appends two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a count; saturates, so that a reader's limit refuses what does not fit.
    pub fn count(&mut self, value: usize) -> &mut Self {
        self.u32(u32::try_from(value).unwrap_or(u32::MAX))
    }

    /// Appends text with its length.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.count(text.len()).bytes(text.as_bytes())
    }

    /// The bytes written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}
