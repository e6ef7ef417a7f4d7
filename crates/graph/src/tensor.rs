//! Tensors of a graph: what they hold, and in which order their bytes are committed to.

use std::ops::Range;
use std::sync::Arc;

use larvatus_proto::program::MAX_WORDS;

use crate::graph::Problem;
use crate::pool::Floats;

/// Number of a tensor: the inputs first, then what each node makes, in the order of the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorId(pub u32);

/// Number of a constant: in the order in which nodes first name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConstantId(pub u32);

impl TensorId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl ConstantId {
    /// The index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Where a node reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// A tensor of this run.
    Tensor(TensorId),
    /// The same for all runs.
    Constant(ConstantId),
}

impl From<TensorId> for Source {
    fn from(tensor: TensorId) -> Self {
        Self::Tensor(tensor)
    }
}

/// What a tensor's elements are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// IEEE-754 binary32.
    F32,
    /// 64-bit integers: numbers of rows of a table.
    I64,
}

impl Kind {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }
}

/// The order in which a tensor's elements are committed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they lie.
    Flat,
    /// Images of channels of lines, committed to line by line with all channels side by side, so that the lines that a
    /// window covers are neighbours.
    Lines {
        /// Images.
        images: usize,
        /// Channels of an image; more than one.
        channels: usize,
        /// Lines of a channel; more than one.
        lines: usize,
        /// Elements of a line.
        width: usize,
    },
}

impl Order {
    /// Lines where there are several of several channels, otherwise flat, which is then the same.
    pub fn lines(images: usize, channels: usize, lines: usize, width: usize) -> Self {
        if channels > 1 && lines > 1 {
            Self::Lines {
                images,
                channels,
                lines,
                width,
            }
        } else {
            Self::Flat
        }
    }
}

/// A tensor: dense, row-major in memory. Nodes say themselves how they see its axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// What its elements are.
    pub kind: Kind,
    /// How many.
    pub elements: usize,
    /// How they are committed to.
    pub order: Order,
}

impl TensorSpec {
    /// Bytes that are committed to.
    pub fn bytes(&self) -> u64 {
        self.elements as u64 * self.kind.bytes() as u64
    }

    /// That it is not empty, not too large, and that the order fits.
    pub(crate) fn check(&self) -> Result<(), Problem> {
        if self.elements == 0 || self.elements > MAX_WORDS {
            return Err(Problem("a tensor that is empty or too large"));
        }
        let Order::Lines {
            images,
            channels,
            lines,
            width,
        } = self.order
        else {
            return Ok(());
        };
        let product = [images, channels, lines, width]
            .into_iter()
            .try_fold(1_usize, usize::checked_mul);
        if product == Some(self.elements) && channels > 1 && lines > 1 {
            Ok(())
        } else {
            Err(Problem("an order of lines that is not the tensor's"))
        }
    }

    /// Where a run of elements lies among the committed ones, piece by piece: (first element in memory, committed place,
    /// length).
    pub(crate) fn pieces(&self, run: Range<usize>) -> impl Iterator<Item = (usize, usize, usize)> {
        exchanged(run, self.sides())
    }

    /// Where committed elements lie in memory, piece by piece.
    pub(crate) fn memory(&self, places: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let back = self
            .sides()
            .map(|[channels, lines, width]| [lines, channels, width]);
        exchanged(places, back).map(|(_, element, len)| element..element + len)
    }

    /// Channels, lines and width, where lines are committed to with all channels.
    fn sides(&self) -> Option<[usize; 3]> {
        match self.order {
            Order::Flat => None,
            Order::Lines {
                channels,
                lines,
                width,
                ..
            } => Some([channels, lines, width]),
        }
    }

    /// Calls `each` with the pieces of memory in the order in which they are committed to.
    pub(crate) fn walk(&self, mut each: impl FnMut(Range<usize>)) {
        let Order::Lines {
            images,
            channels,
            lines,
            width,
        } = self.order
        else {
            return each(0..self.elements);
        };
        for image in 0..images {
            for line in 0..lines {
                for channel in 0..channels {
                    let at = ((image * channels + channel) * lines + line) * width;
                    each(at..at + width);
                }
            }
        }
    }
}

/// A place in an array with sides […, outer, inner, width]. It is counted on, not divided out line by line: lines are short,
/// and a trace has many.
struct Lines {
    sides: [usize; 3],
    image: usize,
    x: usize,
    y: usize,
    column: usize,
}

impl Lines {
    fn from(sides: [usize; 3], at: usize) -> Self {
        let [outer, inner, width] = sides;
        let (row, column) = (at / width, at % width);
        let (rest, y) = (row / inner, row % inner);
        Self {
            sides,
            image: rest / outer,
            x: rest % outer,
            y,
            column,
        }
    }

    /// The rest of the line, at most so much: where it lies in […, inner, outer, width], and how much it is. Goes on behind it.
    fn take(&mut self, most: usize) -> (usize, usize) {
        let [outer, inner, width] = self.sides;
        let place = ((self.image * inner + self.y) * outer + self.x) * width + self.column;
        let len = (width - self.column).min(most);
        self.column += len;
        if self.column == width {
            (self.column, self.y) = (0, self.y + 1);
        }
        if self.y == inner {
            (self.y, self.x) = (0, self.x + 1);
        }
        if self.x == outer {
            (self.x, self.image) = (0, self.image + 1);
        }
        (place, len)
    }
}

/// A run of an array with sides […, outer, inner, width], piece by piece: (first, where it lies in […, inner, outer, width],
/// length). Without sides nothing changes places.
fn exchanged(
    run: Range<usize>,
    sides: Option<[usize; 3]>,
) -> impl Iterator<Item = (usize, usize, usize)> {
    let mut at = run.start;
    let mut lines = sides.map(|sides| Lines::from(sides, at));
    std::iter::from_fn(move || {
        if at >= run.end {
            return None;
        }
        let most = run.end - at;
        let (place, len) = match &mut lines {
            None => (at, most),
            Some(lines) => lines.take(most),
        };
        let piece = (at, place, len);
        at += len;
        Some(piece)
    })
}

/// A tensor's elements, as they lie in memory.
#[derive(Clone, Debug)]
pub enum Values {
    /// [`Kind::F32`]
    F32(Arc<Floats>),
    /// [`Kind::I64`]
    I64(Arc<Vec<i64>>),
}

impl From<Vec<f32>> for Values {
    fn from(values: Vec<f32>) -> Self {
        Self::F32(Arc::new(Floats::from(values)))
    }
}

impl From<Vec<i64>> for Values {
    fn from(values: Vec<i64>) -> Self {
        Self::I64(Arc::new(values))
    }
}

impl Values {
    /// What the elements are.
    pub fn kind(&self) -> Kind {
        match self {
            Self::F32(_) => Kind::F32,
            Self::I64(_) => Kind::I64,
        }
    }

    /// How many elements there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::I64(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The floats, if that is what they are.
    pub fn floats(&self) -> Option<&[f32]> {
        match self {
            Self::F32(values) => Some(values),
            Self::I64(_) => None,
        }
    }

    /// The integers, if that is what they are.
    pub fn integers(&self) -> Option<&[i64]> {
        match self {
            Self::I64(values) => Some(values),
            Self::F32(_) => None,
        }
    }

    /// Some of the elements as bytes, little-endian as they lie; none where they are not there.
    pub(crate) fn bytes(&self, range: Range<usize>) -> &[u8] {
        match self {
            Self::F32(values) => bytemuck::cast_slice(values.get(range).unwrap_or_default()),
            Self::I64(values) => bytemuck::cast_slice(values.get(range).unwrap_or_default()),
        }
    }

    /// All elements as they are committed to.
    ///
    /// `None` where they are not those of the tensor.
    pub fn pack(&self, spec: &TensorSpec) -> Option<Vec<u8>> {
        if self.kind() != spec.kind || self.len() != spec.elements {
            return None;
        }
        let mut out = Vec::with_capacity(spec.elements * spec.kind.bytes());
        spec.walk(|range| out.extend_from_slice(self.bytes(range)));
        Some(out)
    }

    /// The elements from their committed bytes.
    ///
    /// `None` where there are more or fewer bytes than the tensor has.
    pub fn unpack(spec: &TensorSpec, bytes: &[u8]) -> Option<Self> {
        let each = spec.kind.bytes();
        if bytes.len() as u64 != spec.bytes() {
            return None;
        }
        let mut rest = bytes;
        Some(match spec.kind {
            Kind::F32 => {
                let mut values = vec![0.0; spec.elements];
                spec.walk(|range| {
                    let (now, later) = rest.split_at(range.len() * each);
                    rest = later;
                    let to = values.get_mut(range).unwrap_or_default();
                    for (to, from) in to.iter_mut().zip(now.as_chunks::<4>().0) {
                        *to = f32::from_le_bytes(*from);
                    }
                });
                values.into()
            }
            Kind::I64 => {
                let mut values = vec![0; spec.elements];
                spec.walk(|range| {
                    let (now, later) = rest.split_at(range.len() * each);
                    rest = later;
                    let to = values.get_mut(range).unwrap_or_default();
                    for (to, from) in to.iter_mut().zip(now.as_chunks::<8>().0) {
                        *to = i64::from_le_bytes(*from);
                    }
                });
                values.into()
            }
        })
    }
}

#[cfg(not(target_endian = "little"))]
compile_error!("tensors lie in memory as they are committed to on little-endian machines only");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_all_channels_are_neighbours_and_come_back() {
        let spec = TensorSpec {
            kind: Kind::F32,
            elements: 2 * 3 * 4 * 5,
            order: Order::lines(2, 3, 4, 5),
        };
        spec.check().expect("its own order");
        let values: Vec<f32> = (0..120_u8).map(f32::from).collect();
        let packed = Values::from(values.clone()).pack(&spec).expect("fits");
        let at = |place: usize| {
            let bytes = packed[4 * place..4 * place + 4].try_into().expect("four");
            f32::from_le_bytes(bytes)
        };
        // Image 1, line 2: channel 0, then channel 1.
        assert_eq!(at(60 + 2 * 15), values[60 + 2 * 5]);
        assert_eq!(at(60 + 2 * 15 + 5 + 4), values[60 + 20 + 2 * 5 + 4]);
        let back = Values::unpack(&spec, &packed).expect("fits");
        assert_eq!(back.floats(), Some(&values[..]));
        for places in [0..120, 7..8, 3..41, 58..62] {
            let pieces: Vec<f32> = spec
                .memory(places.clone())
                .flat_map(|piece| values[piece].to_vec())
                .collect();
            assert_eq!(pieces, places.map(at).collect::<Vec<_>>());
        }
        for run in [0..120, 7..8, 3..41, 58..62] {
            let pieces: Vec<_> = spec.pieces(run.clone()).collect();
            assert_eq!(pieces.iter().map(|piece| piece.2).sum::<usize>(), run.len());
            for (element, place, len) in pieces {
                for i in 0..len {
                    assert_eq!(at(place + i), values[element + i]);
                }
            }
        }
    }

    #[test]
    fn an_order_that_is_flat_anyway_has_one_form() {
        assert_eq!(Order::lines(3, 1, 4, 5), Order::Flat);
        assert_eq!(Order::lines(3, 4, 1, 5), Order::Flat);
        let wrong = TensorSpec {
            kind: Kind::F32,
            elements: 20,
            order: Order::Lines {
                images: 1,
                channels: 1,
                lines: 4,
                width: 5,
            },
        };
        assert!(wrong.check().is_err());
    }
}
