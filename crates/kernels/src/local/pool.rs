//! Pooling of planes: maxima and means over windows, sums of rows, and every n-th pixel.
//!
//! A window is folded first down its columns, then along the row of results, each from the start (−∞ or 0) in the
//! order of the elements; that fixes sums and the sign of a zero.

use super::{Plain, sum, sum_scalar};
use crate::WrongLength;
use crate::isa::Isa;
use crate::isa::vector::{Pass, Vector, store_f};

/// The geometry of pooling. Pixels beyond the border are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Images times channels.
    pub planes: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of a window.
    pub kernel: [usize; 2],
    /// From one window to the next.
    pub stride: [usize; 2],
    /// Rows above and columns before the input that the first window covers.
    pub before: [usize; 2],
}

impl Windows {
    pub(super) fn check(&self, x: usize, y: usize) -> Result<(), WrongLength> {
        let plane = |[height, width]: [usize; 2]| height.saturating_mul(width);
        WrongLength::check_product(self.planes, plane(self.input), x)?;
        WrongLength::check_product(self.planes, plane(self.output), y)?;
        // A window of nothing, or one that stays where it is, has no meaning.
        let least = [self.kernel, self.stride]
            .as_flattened()
            .iter()
            .copied()
            .min();
        WrongLength::check(1, least.unwrap_or(0).min(1))
    }

    /// The input positions along an axis that window `at` covers.
    fn covered(&self, axis: usize, at: usize) -> core::ops::Range<usize> {
        let start = at * self.stride[axis];
        let end = (start + self.kernel[axis]).saturating_sub(self.before[axis]);
        let start = start.saturating_sub(self.before[axis]);
        start.min(self.input[axis])..end.min(self.input[axis])
    }
}

/// What a sum over a window is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// 1: the sum itself.
    One,
    /// The size of the window.
    Window,
    /// The pixels of the window that are there.
    Present,
}

/// The largest element of each window, −∞ where there is none; NaN is ignored.
///
/// **Shapes**: `x` planes × input, `y` planes × output, row-major. **Exactness**: exact.
/// **Errors**: [`WrongLength`] if lengths disagree, or a window or stride is 0.
pub fn max_pool(windows: &Windows, x: &[f32], y: &mut [f32]) -> Result<(), WrongLength> {
    max_pool_with(Isa::best(), windows, x, y)
}

/// [`max_pool`] with a given instruction set.
pub fn max_pool_with(
    isa: Isa,
    windows: &Windows,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    windows.check(x.len(), y.len())?;
    isa.run(Pool {
        fold: Largest,
        windows,
        divisor: Divisor::One,
        x,
        y,
    });
    Ok(())
}

/// The sum of each window, divided.
///
/// **Shapes**: as [`max_pool`]. **Exactness**: sums in the order of this module, ≤ (kernel height + width)·2⁻²⁴·Σ|x|;
/// the quotient correctly rounded.
/// **Errors**: as [`max_pool`].
pub fn sum_pool(
    windows: &Windows,
    divisor: Divisor,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    sum_pool_with(Isa::best(), windows, divisor, x, y)
}

/// [`sum_pool`] with a given instruction set.
pub fn sum_pool_with(
    isa: Isa,
    windows: &Windows,
    divisor: Divisor,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    windows.check(x.len(), y.len())?;
    isa.run(Pool {
        fold: Total,
        windows,
        divisor,
        x,
        y,
    });
    Ok(())
}

trait Fold: Copy {
    const START: f32;
    fn scalar(self, all: f32, x: f32) -> f32;
    fn lanes<V: Vector>(self, v: V, all: V::F, x: V::F) -> V::F;
}

#[derive(Clone, Copy)]
struct Largest;

impl Fold for Largest {
    const START: f32 = f32::NEG_INFINITY;
    fn scalar(self, all: f32, x: f32) -> f32 {
        if x > all { x } else { all }
    }
    #[inline(always)]
    fn lanes<V: Vector>(self, v: V, all: V::F, x: V::F) -> V::F {
        v.max_f(x, all)
    }
}

#[derive(Clone, Copy)]
struct Total;

impl Fold for Total {
    const START: f32 = 0.0;
    fn scalar(self, all: f32, x: f32) -> f32 {
        all + x
    }
    #[inline(always)]
    fn lanes<V: Vector>(self, v: V, all: V::F, x: V::F) -> V::F {
        v.add_f(all, x)
    }
}

struct Pool<'a, F> {
    fold: F,
    windows: &'a Windows,
    divisor: Divisor,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl<F> Pool<'_, F> {
    /// What the results of row `i` are divided by, if anything.
    fn divisors(&self, i: usize) -> Option<Vec<f32>> {
        let w = self.windows;
        let present = |j| (w.covered(0, i).len() * w.covered(1, j).len()) as f32;
        let columns = 0..w.output[1];
        match self.divisor {
            Divisor::One => None,
            Divisor::Window => Some(
                columns
                    .map(|_| (w.kernel[0] * w.kernel[1]) as f32)
                    .collect(),
            ),
            Divisor::Present => Some(columns.map(present).collect()),
        }
    }
}

impl<F: Fold> Pass for Pool<'_, F> {
    type Output = ();

    fn scalar(self) {
        let Windows { input, output, .. } = *self.windows;
        let divisors: Vec<_> = (0..output[0]).map(|i| self.divisors(i)).collect();
        let planes = self.x.chunks_exact((input[0] * input[1]).max(1));
        let outs = self.y.chunks_exact_mut((output[0] * output[1]).max(1));
        for (x, y) in planes.zip(outs) {
            for (i, j) in (0..output[0]).flat_map(|i| (0..output[1]).map(move |j| (i, j))) {
                let column = |column: usize| {
                    let rows = self.windows.covered(0, i);
                    let x = rows.map(|row| x[row * input[1] + column]);
                    x.fold(F::START, |all, x| self.fold.scalar(all, x))
                };
                let columns = self.windows.covered(1, j).map(column);
                let all = columns.fold(F::START, |all, x| self.fold.scalar(all, x));
                let divisor = divisors[i].as_ref().map_or(1.0, |divisors| divisors[j]);
                y[i * output[1] + j] = all / divisor;
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Windows {
            input,
            output,
            kernel,
            stride,
            before,
            ..
        } = *self.windows;
        let divisors: Vec<_> = (0..output[0]).map(|i| self.divisors(i)).collect();
        let (width, cols) = (input[1], output[1]);
        // The folded row with the columns beyond its borders, and room for the last vectors.
        let reach = (cols.max(1) - 1) * stride[1] + kernel[1];
        let mut folded =
            vec![F::START; reach.max(before[1] + width) + 4 * V::LANES * stride[1].min(2)];
        let planes = self.x.chunks_exact((input[0] * width).max(1));
        let outs = self.y.chunks_exact_mut((output[0] * cols).max(1));
        for (x, y) in planes.zip(outs) {
            for (i, y) in y.chunks_exact_mut(cols).enumerate() {
                let rows = self.windows.covered(0, i);
                let rows = &x[rows.start * width..rows.end * width];
                fold_rows(
                    v,
                    self.fold,
                    rows,
                    width,
                    &mut folded[before[1]..before[1] + width],
                );
                match stride[1] {
                    1 => along::<V, F, 1>(v, self.fold, kernel[1], &folded, y),
                    2 => along::<V, F, 2>(v, self.fold, kernel[1], &folded, y),
                    step => {
                        for (j, y) in y.iter_mut().enumerate() {
                            let window = &folded[j * step..j * step + kernel[1]];
                            *y = window
                                .iter()
                                .fold(F::START, |all, x| self.fold.scalar(all, *x));
                        }
                    }
                }
                if let Some(divisors) = &divisors[i] {
                    divide(v, y, divisors);
                }
            }
        }
    }
}

/// Folds rows of `width` elements into one.
#[inline(always)]
fn fold_rows<V: Vector, F: Fold>(v: V, fold: F, rows: &[f32], width: usize, out: &mut [f32]) {
    let mut at = 0;
    while at + V::LANES <= width {
        let mut all = v.splat_f(F::START);
        for row in rows.chunks_exact(width) {
            all = fold.lanes(v, all, v.load_f(row, at));
        }
        v.store_f(all, out, at);
        at += V::LANES;
    }
    if at < width {
        let mut all = v.splat_f(F::START);
        for row in rows.chunks_exact(width) {
            all = fold.lanes(v, all, v.load_part_f(row, at));
        }
        v.store_part_f(all, out, at);
    }
}

/// Folds windows of `kernel` neighbours, `STEP` (1 or 2) apart.
#[inline(always)]
fn along<V: Vector, F: Fold, const STEP: usize>(
    v: V,
    fold: F,
    kernel: usize,
    x: &[f32],
    y: &mut [f32],
) {
    let mut at = 0;
    while at < y.len() {
        let mut all = v.splat_f(F::START);
        for t in 0..kernel {
            let lanes = strided::<V, STEP>(v, x, at * STEP + t);
            all = fold.lanes(v, all, lanes);
        }
        if at + V::LANES <= y.len() {
            v.store_f(all, y, at);
        } else {
            v.store_part_f(all, y, at);
        }
        at += V::LANES;
    }
}

/// Every `STEP`-th (1 or 2) element from `at` on.
#[inline(always)]
fn strided<V: Vector, const STEP: usize>(v: V, x: &[f32], at: usize) -> V::F {
    if STEP == 1 {
        v.load_f(x, at)
    } else {
        v.evens_f(v.load_f(x, at), v.load_f(x, at + V::LANES))
    }
}

#[inline(always)]
fn divide<V: Vector>(v: V, y: &mut [f32], divisors: &[f32]) {
    let mut at = 0;
    while at + V::LANES <= y.len() {
        v.store_f(v.div_f(v.load_f(y, at), v.load_f(divisors, at)), y, at);
        at += V::LANES;
    }
    if at < y.len() {
        let quotient = v.div_f(v.load_part_f(y, at), v.load_part_f(divisors, at));
        store_f::<V, true>(v, quotient, y, at);
    }
}

/// The sum of each row of `cols` elements, times `factor`.
///
/// **Shapes**: `x` is `y.len()` × `cols`. **Exactness**: sums in the order of [`super`], ≤ (cols/32 + 5)·2⁻²⁴·Σ|x|; the
/// product correctly rounded. **Errors**: [`WrongLength`] if lengths disagree.
pub fn sum_rows(cols: usize, factor: f32, x: &[f32], y: &mut [f32]) -> Result<(), WrongLength> {
    sum_rows_with(Isa::best(), cols, factor, x, y)
}

/// [`sum_rows`] with a given instruction set.
pub fn sum_rows_with(
    isa: Isa,
    cols: usize,
    factor: f32,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    WrongLength::check_product(y.len(), cols, x.len())?;
    isa.run(SumRows { cols, factor, x, y });
    Ok(())
}

struct SumRows<'a> {
    cols: usize,
    factor: f32,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Pass for SumRows<'_> {
    type Output = ();

    fn scalar(self) {
        for (i, y) in self.y.iter_mut().enumerate() {
            *y = sum_scalar(&self.x[i * self.cols..(i + 1) * self.cols], Plain) * self.factor;
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        for (i, y) in self.y.iter_mut().enumerate() {
            *y = sum(v, &self.x[i * self.cols..(i + 1) * self.cols], Plain) * self.factor;
        }
    }
}

/// Every n-th row and column of planes, from the first on.
///
/// **Shapes**: `x` planes × `input`, `y` planes × ⌈input / stride⌉. **Exactness**: a copy.
/// **Errors**: [`WrongLength`] if lengths disagree or a stride is 0.
pub fn thin(
    input: [usize; 2],
    stride: [usize; 2],
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    thin_with(Isa::best(), input, stride, x, y)
}

/// [`thin`] with a given instruction set.
pub fn thin_with(
    isa: Isa,
    input: [usize; 2],
    stride: [usize; 2],
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    WrongLength::check(1, stride[0].min(stride[1]).min(1))?;
    let output = [input[0].div_ceil(stride[0]), input[1].div_ceil(stride[1])];
    let plane = input[0].saturating_mul(input[1]);
    let planes = x.len().checked_div(plane).unwrap_or(0);
    WrongLength::check_product(planes, plane, x.len())?;
    WrongLength::check_product(planes, output[0].saturating_mul(output[1]), y.len())?;
    if !y.is_empty() {
        isa.run(Thin {
            input,
            output,
            stride,
            x,
            y,
        });
    }
    Ok(())
}

struct Thin<'a> {
    input: [usize; 2],
    output: [usize; 2],
    stride: [usize; 2],
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Pass for Thin<'_> {
    type Output = ();

    fn scalar(self) {
        let planes = self.x.chunks_exact(self.input[0] * self.input[1]);
        let outs = self.y.chunks_exact_mut(self.output[0] * self.output[1]);
        for (x, y) in planes.zip(outs) {
            let rows = x.chunks_exact(self.input[1]).step_by(self.stride[0]);
            for (x, y) in rows.zip(y.chunks_exact_mut(self.output[1])) {
                for (x, y) in x.iter().step_by(self.stride[1]).zip(y) {
                    *y = *x;
                }
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        if self.stride[1] != 2 {
            return self.scalar();
        }
        let planes = self.x.chunks_exact(self.input[0] * self.input[1]);
        let outs = self.y.chunks_exact_mut(self.output[0] * self.output[1]);
        for (x, y) in planes.zip(outs) {
            let rows = x.chunks_exact(self.input[1]).step_by(self.stride[0]);
            for (x, y) in rows.zip(y.chunks_exact_mut(self.output[1])) {
                let mut at = 0;
                while at + V::LANES <= y.len() && 2 * (at + V::LANES) <= x.len() {
                    v.store_f(strided::<V, 2>(v, x, 2 * at), y, at);
                    at += V::LANES;
                }
                for (x, y) in x[2 * at..].iter().step_by(2).zip(&mut y[at..]) {
                    *y = *x;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
