//! Reordering the axes of a dense tensor.

/// A permutation of axes between two dense layouts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Order {
    /// Shape before.
    shape: Vec<usize>,
    /// For each axis after, which axis before.
    axes: Vec<usize>,
}

impl Order {
    /// A reordering, or `None` where the elements stay where they are.
    pub(crate) fn new(shape: Vec<usize>, axes: Vec<usize>) -> Option<Self> {
        let moving: Vec<usize> = axes
            .iter()
            .copied()
            .filter(|&axis| shape.get(axis).is_some_and(|&n| n != 1))
            .collect();
        (!moving.is_sorted()).then_some(Self { shape, axes })
    }

    /// Elements of the tensor.
    pub(crate) fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Length and step in the tensor before, for each axis after.
    pub(crate) fn axes(&self) -> Vec<(usize, usize)> {
        let step = |axis: usize| self.shape.iter().skip(axis + 1).product();
        let axes = self.axes.iter();
        axes.map(|&axis| (self.shape[axis], step(axis))).collect()
    }

    /// Copies `from` (in the order before) to `to` (in the order after).
    ///
    /// Both must have [`len`](Self::len) elements.
    pub(crate) fn apply<T: Copy>(&self, from: &[T], to: &mut [T]) {
        assert_eq!(
            (from.len(), to.len()),
            (self.len(), self.len()),
            "a reordering keeps its size"
        );
        if to.is_empty() {
            return;
        }
        let mut axes = self.moves();
        let Some(row) = axes.pop() else {
            to.copy_from_slice(from);
            return;
        };
        // Where neighbours in a row after are far apart before, so are neighbours in a column after where there are near ones
        // before: squares of both stay in the cache.
        let column = match row.before {
            1 => None,
            _ => axes.iter().position(|axis| axis.before == 1),
        };
        let column = column.map_or(Move::NONE, |at| axes.remove(at));
        let mut index = vec![0_usize; axes.len()];
        let (mut here, mut there) = (0, 0);
        loop {
            let (from, to) = (&from[here..], &mut to[there..]);
            for high in (0..column.size).step_by(SQUARE) {
                for wide in (0..row.size).step_by(SQUARE) {
                    let end = row.size.min(wide + SQUARE);
                    for line in high..column.size.min(high + SQUARE) {
                        let from = &from[line * column.before + wide * row.before..];
                        let to = &mut to[line * column.after..];
                        let to = to[wide..end].iter_mut();
                        to.zip(from.iter().step_by(row.before))
                            .for_each(|(to, from)| *to = *from);
                    }
                }
            }
            let mut done = true;
            for (axis, at) in axes.iter().zip(&mut index).rev() {
                *at += 1;
                here += axis.before;
                there += axis.after;
                if *at < axis.size {
                    done = false;
                    break;
                }
                here -= axis.size * axis.before;
                there -= axis.size * axis.after;
                *at = 0;
            }
            if done {
                return;
            }
        }
    }

    /// The axes in the order after.
    fn moves(&self) -> Vec<Move> {
        let mut after = 1;
        let mut moves: Vec<Move> = self
            .axes()
            .into_iter()
            .rev()
            .map(|(size, before)| {
                let this = Move {
                    size,
                    before,
                    after,
                };
                after *= size;
                this
            })
            .collect();
        moves.reverse();
        moves
    }
}

/// Elements of a side of the squares that are moved at a time.
const SQUARE: usize = 32;

/// An axis: its length, and its steps before and after.
#[derive(Clone, Copy)]
struct Move {
    size: usize,
    before: usize,
    after: usize,
}

impl Move {
    const NONE: Self = Self {
        size: 1,
        before: 0,
        after: 0,
    };
}

#[cfg(test)]
mod tests {
    use super::Order;

    #[test]
    fn a_transpose_moves_every_element() {
        let order = Order::new(vec![2, 3], vec![1, 0]).expect("moves");
        let mut to = [0; 6];
        order.apply(&[1, 2, 3, 4, 5, 6], &mut to);
        assert_eq!(to, [1, 4, 2, 5, 3, 6]);
    }

    #[test]
    fn axes_of_size_one_move_nothing() {
        assert_eq!(Order::new(vec![1, 3, 1, 4], vec![2, 1, 0, 3]), None);
    }

    #[test]
    fn three_axes_follow_the_index_law() {
        let (a, b, c) = (2, 3, 4);
        let order = Order::new(vec![a, b, c], vec![2, 0, 1]).expect("moves");
        let from: Vec<usize> = (0..a * b * c).collect();
        let mut to = vec![0; from.len()];
        order.apply(&from, &mut to);
        for (x, y, z) in
            (0..a).flat_map(|x| (0..b).flat_map(move |y| (0..c).map(move |z| (x, y, z))))
        {
            assert_eq!(to[(z * a + x) * b + y], from[(x * b + y) * c + z]);
        }
    }

    #[test]
    fn more_than_a_square_moves_as_one() {
        for (shape, axes) in [
            (vec![70, 45], vec![1, 0]),
            (vec![3, 70, 45], vec![0, 2, 1]),
            (vec![3, 70, 45], vec![2, 1, 0]),
            (vec![40, 2, 33, 3], vec![2, 1, 0, 3]),
            (vec![40, 2, 33, 3], vec![3, 0, 2, 1]),
        ] {
            let order = Order::new(shape.clone(), axes.clone()).expect("moves");
            let from: Vec<usize> = (0..order.len()).collect();
            let mut to = vec![usize::MAX; from.len()];
            order.apply(&from, &mut to);
            // The index of each element after, digit by digit.
            for (place, element) in to.iter().enumerate() {
                let mut rest = place;
                let mut before = vec![0; shape.len()];
                for axis in axes.iter().rev() {
                    before[*axis] = rest % shape[*axis];
                    rest /= shape[*axis];
                }
                let index = before.iter().zip(&shape).fold(0, |at, (i, n)| at * n + i);
                assert_eq!(*element, index, "{shape:?} {axes:?}");
            }
        }
    }
}
