//! Integer weights, one or more planes of eight bits.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::shape::ShapeError;

/// Weights `w = Σ_j planes[j]·2^(shift·j)`, in the order that the shape states.
///
/// One plane is the usual int8. Two planes hold 10 to 12 bits for a model that loses accuracy with eight.
/// −128 is allowed and exact, though symmetric quantisation never produces it.
#[derive(Clone, PartialEq, Eq)]
pub struct Weights {
    /// Never empty; all of one length.
    planes: Vec<Plane>,
    /// `shift · (planes − 1) ≤ 30`.
    shift: u32,
}

/// One plane: bytes in two's complement, perhaps a part of memory that holds more. Copies share it.
#[derive(Clone)]
pub struct Plane {
    memory: Arc<Vec<u8>>,
    /// Within the memory.
    place: Range<usize>,
}

impl Plane {
    /// A part of some memory; `None` where it ends before.
    pub fn of(memory: &Arc<Vec<u8>>, place: Range<usize>) -> Option<Self> {
        memory.get(place.clone())?;
        Some(Self {
            memory: Arc::clone(memory),
            place,
        })
    }
}

impl From<Vec<i8>> for Plane {
    fn from(weights: Vec<i8>) -> Self {
        // The standard library does this in place.
        let memory: Vec<u8> = weights.into_iter().map(i8::cast_unsigned).collect();
        Self {
            place: 0..memory.len(),
            memory: Arc::new(memory),
        }
    }
}

impl Deref for Plane {
    type Target = [i8];

    fn deref(&self) -> &[i8] {
        bytemuck::cast_slice(&self.memory[self.place.clone()])
    }
}

impl PartialEq for Plane {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Plane {}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plane({})", self.len())
    }
}

impl Weights {
    /// Checks the planes.
    ///
    /// Errors: no plane; several with a shift of 0 or places beyond 2³⁰; planes of different lengths.
    pub fn new(planes: Vec<impl Into<Plane>>, shift: u32) -> Result<Self, ShapeError> {
        let planes: Vec<Plane> = planes.into_iter().map(Into::into).collect();
        let refused = ShapeError::Planes {
            planes: planes.len(),
            shift,
        };
        let Some(first) = planes.first().map(|plane| plane.len()) else {
            return Err(refused);
        };
        let places = u64::from(shift) * (planes.len() as u64 - 1);
        if places > MAX_PLACES || (planes.len() > 1 && shift == 0) {
            return Err(refused);
        }
        if let Some(other) = planes
            .iter()
            .map(|plane| plane.len())
            .find(|&len| len != first)
        {
            return Err(ShapeError::UnevenPlanes { first, other });
        }
        Ok(Self { planes, shift })
    }

    /// The planes, lowest first.
    pub fn planes(&self) -> &[Plane] {
        &self.planes
    }

    /// Binary places from one plane to the next.
    pub fn shift(&self) -> u32 {
        self.shift
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.planes[0].len()
    }

    /// Whether there is no weight at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The weight at `index`: |w| < 2³⁸.
    pub fn value(&self, index: usize) -> i64 {
        let planes = self.planes.iter().zip(0..);
        planes
            .map(|(plane, j): (_, u32)| i64::from(plane[index]) << (self.shift * j))
            .sum()
    }

    /// Each plane with its binary places.
    pub(super) fn places(&self) -> impl Iterator<Item = (&[i8], u32)> {
        self.planes
            .iter()
            .zip(0..)
            .map(|(plane, j): (_, u32)| (&**plane, self.shift * j))
    }
}

impl fmt::Debug for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Weights({} in {} planes, shift {})",
            self.len(),
            self.planes.len(),
            self.shift
        )
    }
}

/// Places of the highest plane.
const MAX_PLACES: u64 = 30;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_recombine_and_bad_ones_are_refused() {
        let weights = Weights::new(vec![vec![3, -128], vec![-1, 127]], 6).unwrap();
        assert_eq!(
            (weights.value(0), weights.value(1)),
            (3 - 64, -128 + 127 * 64)
        );
        assert_eq!(
            Weights::new(Vec::<Plane>::new(), 0),
            Err(ShapeError::Planes {
                planes: 0,
                shift: 0
            })
        );
        assert_eq!(
            Weights::new(vec![vec![], vec![]], 0),
            Err(ShapeError::Planes {
                planes: 2,
                shift: 0
            })
        );
        assert_eq!(
            Weights::new(vec![vec![], vec![]], 31),
            Err(ShapeError::Planes {
                planes: 2,
                shift: 31
            })
        );
        let uneven = ShapeError::UnevenPlanes { first: 1, other: 2 };
        assert_eq!(Weights::new(vec![vec![1], vec![1, 2]], 4), Err(uneven));
    }
}
