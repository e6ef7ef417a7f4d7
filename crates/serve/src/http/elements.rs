//! Elements of a tensor in JSON, straight to and from bytes: nothing in between is larger than the tensor.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Unexpected, Visitor};
use serde::ser::{SerializeSeq, Serializer};
use zeroize::Zeroizing;

use crate::tensor::{Datatype, Tensor};

/// Reads `data`: numbers, flat or in nested arrays, of which at most `expected` are taken.
pub(super) struct Elements<'a> {
    pub(super) datatype: Datatype,
    pub(super) expected: usize,
    pub(super) bytes: &'a mut Zeroizing<Vec<u8>>,
}

impl<'de> DeserializeSeed<'de> for Elements<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Elements<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of {}", self.datatype)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Elements {
            datatype,
            expected,
            bytes,
        } = self;
        while let Some(()) = seq.next_element_seed(One {
            datatype,
            expected,
            bytes: &mut *bytes,
        })? {}
        Ok(())
    }
}

/// An element, or an array of them.
struct One<'a> {
    datatype: Datatype,
    expected: usize,
    bytes: &'a mut Zeroizing<Vec<u8>>,
}

impl One<'_> {
    fn put<E: Error>(self, element: &[u8]) -> Result<(), E> {
        if self.bytes.len() >= self.expected * self.datatype.size() {
            let expected = self.expected;
            return Err(E::custom(format_args!(
                "more than {expected} elements, which the shape holds"
            )));
        }
        // Grows by doubling from within a limit that the request's size sets; what is left behind is erased.
        if self.bytes.capacity() - self.bytes.len() < element.len() {
            let mut grown = Zeroizing::new(Vec::with_capacity((self.bytes.len() * 2).max(1024)));
            grown.extend_from_slice(self.bytes);
            *self.bytes = grown;
        }
        self.bytes.extend_from_slice(element);
        Ok(())
    }

    fn integer<E: Error>(self, value: i128) -> Result<(), E> {
        let datatype = self.datatype;
        let outside = || E::custom(format_args!("a value outside the range of {datatype}"));
        macro_rules! of {
            ($kind:ty) => {{
                let value = <$kind>::try_from(value).map_err(|_| outside())?;
                self.put(&value.to_le_bytes())
            }};
        }
        match datatype {
            Datatype::Bool => match value {
                0 | 1 => self.put(&[u8::from(value == 1)]),
                _ => Err(outside()),
            },
            Datatype::Uint8 => of!(u8),
            Datatype::Uint16 => of!(u16),
            Datatype::Uint32 => of!(u32),
            Datatype::Uint64 => of!(u64),
            Datatype::Int8 => of!(i8),
            Datatype::Int16 => of!(i16),
            Datatype::Int32 => of!(i32),
            Datatype::Int64 => of!(i64),
            #[expect(clippy::cast_precision_loss, reason = "JSON has numbers, floats round")]
            Datatype::Fp16 | Datatype::Fp32 | Datatype::Fp64 => self.float(value as f64),
        }
    }

    fn float<E: Error>(self, value: f64) -> Result<(), E> {
        match self.datatype {
            Datatype::Fp64 => self.put(&value.to_le_bytes()),
            Datatype::Fp32 => {
                #[expect(
                    clippy::cast_possible_truncation,
                    reason = "rounds, and is looked at next"
                )]
                let narrow = value as f32;
                if !narrow.is_finite() {
                    return Err(E::custom("a value outside the range of FP32"));
                }
                self.put(&narrow.to_le_bytes())
            }
            Datatype::Fp16 => Err(E::custom(
                "FP16 has no form in JSON; send it in binary form",
            )),
            _ => Err(E::invalid_type(
                Unexpected::Other("a number with a fraction"),
                &self,
            )),
        }
    }
}

impl<'de> DeserializeSeed<'de> for One<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for One<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.datatype)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        match self.datatype {
            Datatype::Bool => self.put(&[u8::from(value)]),
            _ => Err(E::invalid_type(Unexpected::Other("a boolean"), &self)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        self.integer(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        self.float(value)
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        // Not shown: it is somebody's input.
        Err(E::invalid_type(Unexpected::Other("a string"), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<(), A::Error> {
        let Self {
            datatype,
            expected,
            bytes,
        } = self;
        Elements {
            datatype,
            expected,
            bytes,
        }
        .visit_seq(seq)
    }
}

/// Writes a tensor's elements as a flat array. Floats must be finite.
pub(super) struct Flat<'a>(pub(super) &'a Tensor);

impl serde::Serialize for Flat<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.bytes();
        let size = self.0.datatype().size();
        let mut seq = to.serialize_seq(Some(bytes.len() / size))?;
        macro_rules! of {
            ($kind:ty) => {
                for value in bytes.as_chunks().0 {
                    seq.serialize_element(&<$kind>::from_le_bytes(*value))?;
                }
            };
        }
        match self.0.datatype() {
            Datatype::Bool => {
                for value in bytes {
                    seq.serialize_element(&(*value == 1))?;
                }
            }
            Datatype::Uint8 => of!(u8),
            Datatype::Uint16 => of!(u16),
            Datatype::Uint32 => of!(u32),
            Datatype::Uint64 => of!(u64),
            Datatype::Int8 => of!(i8),
            Datatype::Int16 => of!(i16),
            Datatype::Int32 => of!(i32),
            Datatype::Int64 => of!(i64),
            Datatype::Fp16 => return Err(serde::ser::Error::custom("FP16 has no form in JSON")),
            Datatype::Fp32 => of!(f32),
            Datatype::Fp64 => of!(f64),
        }
        seq.end()
    }
}
