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
        let mut strides = vec![1_usize; self.shape.len()];
        for axis in (1..self.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * self.shape[axis];
        }
        let sizes: Vec<usize> = self.axes.iter().map(|&axis| self.shape[axis]).collect();
        let steps: Vec<usize> = self.axes.iter().map(|&axis| strides[axis]).collect();
        let (Some((&inner, outer)), Some((&step, outer_steps))) =
            (sizes.split_last(), steps.split_last())
        else {
            to.copy_from_slice(from);
            return;
        };
        let mut index = vec![0_usize; outer.len()];
        let mut base = 0;
        for row in to.chunks_exact_mut(inner) {
            row.iter_mut()
                .zip(from[base..].iter().step_by(step))
                .for_each(|(to, from)| *to = *from);
            for axis in (0..outer.len()).rev() {
                index[axis] += 1;
                base += outer_steps[axis];
                if index[axis] < outer[axis] {
                    break;
                }
                base -= outer[axis] * outer_steps[axis];
                index[axis] = 0;
            }
        }
    }
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
}
