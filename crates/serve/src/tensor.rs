//! Tensors as the protocol names them: a datatype, a shape, and elements row-major, little-endian.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// Most dimensions that a tensor may have.
pub const MAX_RANK: usize = 16;

/// Types of elements, as the Open Inference Protocol names them; strings (`BYTES`) are not among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Datatype {
    /// One byte, 0 or 1.
    Bool,
    /// Unsigned, 8 bits.
    Uint8,
    /// Unsigned, 16 bits.
    Uint16,
    /// Unsigned, 32 bits.
    Uint32,
    /// Unsigned, 64 bits.
    Uint64,
    /// Signed, 8 bits.
    Int8,
    /// Signed, 16 bits.
    Int16,
    /// Signed, 32 bits.
    Int32,
    /// Signed, 64 bits.
    Int64,
    /// IEEE-754 binary16; in binary form only.
    Fp16,
    /// IEEE-754 binary32.
    Fp32,
    /// IEEE-754 binary64.
    Fp64,
}

/// All of them, with their names.
const NAMES: [(Datatype, &str, usize); 12] = [
    (Datatype::Bool, "BOOL", 1),
    (Datatype::Uint8, "UINT8", 1),
    (Datatype::Uint16, "UINT16", 2),
    (Datatype::Uint32, "UINT32", 4),
    (Datatype::Uint64, "UINT64", 8),
    (Datatype::Int8, "INT8", 1),
    (Datatype::Int16, "INT16", 2),
    (Datatype::Int32, "INT32", 4),
    (Datatype::Int64, "INT64", 8),
    (Datatype::Fp16, "FP16", 2),
    (Datatype::Fp32, "FP32", 4),
    (Datatype::Fp64, "FP64", 8),
];

impl Datatype {
    /// The name on the wire.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|of| of.0 == self).map_or("", |of| of.1)
    }

    /// Bytes of one element.
    pub fn size(self) -> usize {
        NAMES.iter().find(|of| of.0 == self).map_or(0, |of| of.2)
    }
}

impl fmt::Display for Datatype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Datatype {
    type Err = TensorError;

    fn from_str(name: &str) -> Result<Self, TensorError> {
        let found = NAMES.iter().find(|of| of.1 == name).map(|of| of.0);
        found.ok_or_else(|| TensorError::Datatype {
            got: name.chars().take(32).collect(),
        })
    }
}

/// Why something is no tensor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// No type of the protocol, or one that is not served.
    #[error(
        "datatype `{got}` is not served; BOOL, UINT8 to UINT64, INT8 to INT64, FP16, FP32 and FP64 are"
    )]
    Datatype {
        /// What was given.
        got: String,
    },
    /// A dimension below zero, too many of them, or more elements than memory has addresses.
    #[error("shape {shape:?} is none that a tensor can have")]
    Shape {
        /// What was given, its first dimensions.
        shape: Vec<i64>,
    },
    /// Not as many bytes as type and shape demand.
    #[error("{datatype} of shape {shape:?} takes {expected} bytes, got {got}")]
    Bytes {
        /// The type.
        datatype: Datatype,
        /// The shape.
        shape: Vec<usize>,
        /// What these demand.
        expected: usize,
        /// What was given.
        got: usize,
    },
    /// A byte of a `BOOL` that is neither 0 nor 1.
    #[error("element {index} of a BOOL is {got}; 0 and 1 are its values")]
    Bool {
        /// Which element.
        index: usize,
        /// Its byte.
        got: u8,
    },
}

/// A shape of the wire: every dimension at least zero, at most [`MAX_RANK`] of them, and a product that fits.
///
/// # Errors
/// [`TensorError::Shape`].
pub fn shape(given: &[i64]) -> Result<(Vec<usize>, usize), TensorError> {
    let refused = || TensorError::Shape {
        shape: given.iter().take(MAX_RANK).copied().collect(),
    };
    if given.len() > MAX_RANK {
        return Err(refused());
    }
    let mut elements = 1_usize;
    let mut dims = Vec::with_capacity(given.len());
    for dim in given {
        let dim = usize::try_from(*dim).map_err(|_| refused())?;
        elements = elements.checked_mul(dim).ok_or_else(refused)?;
        dims.push(dim);
    }
    // Room for the widest element.
    elements.checked_mul(8).ok_or_else(refused)?;
    Ok((dims, elements))
}

/// A named tensor. Its bytes are erased when it is dropped.
#[derive(Clone)]
pub struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    bytes: Zeroizing<Vec<u8>>,
}

impl Tensor {
    /// A tensor of these bytes: elements row-major, little-endian.
    ///
    /// # Errors
    /// [`TensorError`] where bytes, type and shape do not fit together.
    pub fn new(
        name: String,
        datatype: Datatype,
        shape: Vec<usize>,
        bytes: Zeroizing<Vec<u8>>,
    ) -> Result<Self, TensorError> {
        let dims: Vec<i64> = shape
            .iter()
            .map(|dim| i64::try_from(*dim).unwrap_or(-1))
            .collect();
        let (_, elements) = self::shape(&dims)?;
        let expected = elements * datatype.size();
        if bytes.len() != expected {
            return Err(TensorError::Bytes {
                datatype,
                shape,
                expected,
                got: bytes.len(),
            });
        }
        if datatype == Datatype::Bool
            && let Some(index) = bytes.iter().position(|byte| *byte > 1)
        {
            return Err(TensorError::Bool {
                index,
                got: bytes[index],
            });
        }
        Ok(Self {
            name,
            datatype,
            shape,
            bytes,
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Its dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements, row-major, little-endian.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

/// Values are nobody's business but the client's: neither logs nor errors show them.
impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}{:?}", self.name, self.datatype, self.shape)
    }
}

/// What a model takes or gives under a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its dimensions; `None` where any size is taken, or where it is not known ahead.
    pub shape: Vec<Option<usize>>,
}

impl Port {
    /// Dimensions as the protocol writes them: -1 for those that are open.
    pub fn wire_shape(&self) -> Vec<i64> {
        let dims = self.shape.iter();
        dims.map(|dim| dim.map_or(-1, |dim| i64::try_from(dim).unwrap_or(-1)))
            .collect()
    }

    /// Whether a tensor has this type and shape.
    pub fn takes(&self, tensor: &Tensor) -> bool {
        let fits = |(port, got): (&Option<usize>, &usize)| port.is_none_or(|dim| dim == *got);
        self.datatype == tensor.datatype
            && self.shape.len() == tensor.shape.len()
            && self.shape.iter().zip(&tensor.shape).all(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shapes_that_fit_in_memory() {
        assert_eq!(shape(&[2, 3]), Ok((vec![2, 3], 6)));
        assert_eq!(shape(&[]), Ok((vec![], 1)));
        assert_eq!(shape(&[0, 5]), Ok((vec![0, 5], 0)));
        for bad in [
            vec![-1],
            vec![i64::MAX, 4],
            vec![1 << 40, 1 << 40],
            vec![1; 17],
        ] {
            assert!(matches!(shape(&bad), Err(TensorError::Shape { .. })));
        }
    }

    #[test]
    fn bytes_must_fit() {
        let of = |bytes: Vec<u8>| {
            Tensor::new("x".into(), Datatype::Bool, vec![2], Zeroizing::new(bytes))
        };
        assert!(of(vec![0, 1]).is_ok());
        assert!(matches!(
            of(vec![0]),
            Err(TensorError::Bytes {
                expected: 2,
                got: 1,
                ..
            })
        ));
        assert_eq!(
            of(vec![0, 2]).err(),
            Some(TensorError::Bool { index: 1, got: 2 })
        );
    }

    #[test]
    fn a_tensor_does_not_show_its_values() {
        let bytes = Zeroizing::new(vec![41, 42]);
        let tensor = Tensor::new("x".into(), Datatype::Uint8, vec![2], bytes).expect("fits");
        assert_eq!(format!("{tensor:?}"), "x: UINT8[2]");
    }
}
