//! Products of float matrices at the speed of the machine, behind slices whose lengths are checked.
//!
//! The `gemm` crate computes them; it takes pointers. [`product`] looks at every extent before it hands any over, which is all that
//! its `unsafe` relies on. One thread: callers share work among threads by image. Nothing is exact: as [`gamma`](crate::float::gamma).

use gemm::Parallelism;

/// A matrix that lies in a slice, read by rows or by columns.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    steps: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// The matrix of `rows` by `columns` whose rows lie one after the other.
    ///
    /// # Panics
    /// If there are fewer values than that.
    pub fn new(values: &'a [f32], rows: usize, columns: usize) -> Self {
        let count = rows.checked_mul(columns);
        assert!(
            count.is_some_and(|count| count <= values.len()),
            "a matrix of {rows} x {columns} in {} values",
            values.len()
        );
        Self {
            values,
            rows,
            columns,
            steps: [columns, 1],
        }
    }

    /// Its transpose, in the same place.
    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            steps: [self.steps[1], self.steps[0]],
            ..self
        }
    }
}

/// `into = keep · into + left · right`, where `into` is a matrix whose rows lie one after the other. With `keep` 0 what lies
/// there is not read.
///
/// Exactness: each element is within γ(n)·Σ|left||right| of the exact result, n its number of terms.
///
/// # Panics
/// If the inner extents differ, or `into` has another length.
pub fn product(keep: f32, left: Matrix<'_>, right: Matrix<'_>, into: &mut [f32]) {
    let (m, n, k) = (left.rows, right.columns, left.columns);
    assert_eq!(k, right.rows, "inner extents agree");
    assert_eq!(Some(into.len()), m.checked_mul(n), "the product fills it");
    if into.is_empty() {
        return;
    }
    let step = |step: usize| isize::try_from(step).expect("a step within a slice");
    #[expect(unsafe_code, reason = "the crate that multiplies takes pointers")]
    // SAFETY: `Matrix::new` is the only constructor and has seen that rows · columns values are there, and the steps are those of
    // that extent or of its transpose; `into` has m · n values, is written by rows and is borrowed for us alone.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            into.as_mut_ptr(),
            1,
            step(n),
            keep != 0.0,
            left.values.as_ptr(),
            step(left.steps[1]),
            step(left.steps[0]),
            right.values.as_ptr(),
            step(right.steps[1]),
            step(right.steps[0]),
            keep,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_of_all_four_layouts_agree_with_the_definition() {
        let (m, n, k) = (5, 7, 9);
        let a: Vec<f32> = (0..m * k).map(|i| (i % 11) as f32 - 5.0).collect();
        let b: Vec<f32> = (0..k * n).map(|i| (i % 13) as f32 - 6.0).collect();
        let turned = |x: &[f32], rows: usize, columns: usize| -> Vec<f32> {
            (0..rows * columns)
                .map(|i| x[i % rows * columns + i / rows])
                .collect()
        };
        let (at, bt) = (turned(&a, m, k), turned(&b, k, n));
        let expected: Vec<f32> = (0..m * n)
            .map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum())
            .collect();
        for left in [Matrix::new(&a, m, k), Matrix::new(&at, k, m).transposed()] {
            for right in [Matrix::new(&b, k, n), Matrix::new(&bt, n, k).transposed()] {
                let mut got = vec![f32::NAN; m * n];
                product(0.0, left, right, &mut got);
                assert_eq!(got, expected);
                product(2.0, left, right, &mut got);
                assert!(got.iter().zip(&expected).all(|(got, e)| *got == 3.0 * e));
            }
        }
    }
}
