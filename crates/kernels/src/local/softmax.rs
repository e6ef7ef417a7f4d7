//! Softmax of rows: exp(x − max) / Σ exp(x − max).

use super::{Partial, WAYS, first, plus, tree};
use crate::WrongLength;
use crate::activation::exp;
use crate::isa::Isa;
use crate::isa::vector::{OneLane, Pass, Vector, load_f, store_f};

/// Replaces each of the rows of `x` by its softmax.
///
/// **Shapes**: `x` rows × `cols`, row-major.
/// **Domain**: a row with +∞ or NaN, or of −∞ alone, gives NaN; −∞ beside numbers gives 0.
/// **Exactness**: ≤ (8 + (max − x)/2)·2⁻²³ of a result whose exponential is at least 2⁻¹¹⁸ (the difference is rounded,
/// and its error becomes one of the exponential); smaller exponentials may be 0.
/// **Errors**: [`WrongLength`] if `x` is not whole rows.
pub fn softmax(cols: usize, x: &mut [f32]) -> Result<(), WrongLength> {
    softmax_with(Isa::best(), cols, x)
}

/// [`softmax`] with a given instruction set.
pub fn softmax_with(isa: Isa, cols: usize, x: &mut [f32]) -> Result<(), WrongLength> {
    WrongLength::check_product(
        x.len().checked_div(cols).unwrap_or(usize::MAX),
        cols,
        x.len(),
    )?;
    isa.run(Softmax { cols, x });
    Ok(())
}

struct Softmax<'a> {
    cols: usize,
    x: &'a mut [f32],
}

impl Pass for Softmax<'_> {
    type Output = ();

    fn scalar(self) {
        self.x.chunks_exact_mut(self.cols).for_each(row_scalar);
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        for x in self.x.chunks_exact_mut(self.cols) {
            row(v, x);
        }
    }
}

/// The definition for one row.
pub(super) fn row_scalar(x: &mut [f32]) {
    let max = x
        .iter()
        .fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
    let mut partial = [0.0; WAYS];
    for (i, x) in x.iter_mut().enumerate() {
        *x = exp(OneLane, *x - max, 0.0);
        partial[i % WAYS] += *x;
    }
    let factor = 1.0 / tree(partial, plus);
    x.iter_mut().for_each(|x| *x *= factor);
}

/// [`row_scalar`] with vectors.
#[inline(always)]
pub(super) fn row<V: Vector>(v: V, x: &mut [f32]) {
    let max = v.splat_f(maximum(v, x));
    let mut partial = Partial::new(v);
    let mut at = 0;
    while at + WAYS <= x.len() {
        for way in 0..WAYS / V::LANES {
            let e = exponential::<V, false>(v, x, max, at + way * V::LANES);
            partial.add(v, way, e);
        }
        at += WAYS;
    }
    for way in 0..WAYS / V::LANES {
        if at + V::LANES <= x.len() {
            let e = exponential::<V, false>(v, x, max, at);
            partial.add(v, way, e);
        } else if at < x.len() {
            let e = exponential::<V, true>(v, x, max, at);
            partial.add(v, way, first(v, e, x.len() - at));
        }
        at += V::LANES;
    }
    let factor = v.splat_f(1.0 / partial.total(v));
    let mut at = 0;
    while at + V::LANES <= x.len() {
        v.store_f(v.mul_f(v.load_f(x, at), factor), x, at);
        at += V::LANES;
    }
    store_f::<V, true>(v, v.mul_f(load_f::<V, true>(v, x, at), factor), x, at);
}

#[inline(always)]
fn exponential<V: Vector, const PART: bool>(v: V, x: &mut [f32], max: V::F, at: usize) -> V::F {
    let e = exp(v, v.sub_f(load_f::<V, PART>(v, x, at), max), v.splat_f(0.0));
    store_f::<V, PART>(v, e, x, at);
    e
}

/// The larger; of two where one is NaN, the second.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest element that is a number, −∞ if there is none. The order does not matter, but for the sign of a zero,
/// and that does not matter to a difference whose exponential is taken.
#[inline(always)]
fn maximum<V: Vector>(v: V, x: &[f32]) -> f32 {
    if x.len() < V::LANES {
        return x.iter().fold(f32::NEG_INFINITY, |max, x| larger(*x, max));
    }
    let mut largest = [v.splat_f(f32::NEG_INFINITY); WAYS / 8];
    let mut at = 0;
    while at + WAYS <= x.len() {
        for (way, largest) in largest.iter_mut().take(WAYS / V::LANES).enumerate() {
            *largest = v.max_f(v.load_f(x, at + way * V::LANES), *largest);
        }
        at += WAYS;
    }
    // Elements may count twice.
    for (way, largest) in largest.iter_mut().take(WAYS / V::LANES).enumerate() {
        let at = (at + way * V::LANES).min(x.len() - V::LANES);
        *largest = v.max_f(v.load_f(x, at), *largest);
    }
    let mut lanes = [f32::NEG_INFINITY; WAYS];
    for (way, largest) in largest.into_iter().take(WAYS / V::LANES).enumerate() {
        v.store_f(largest, &mut lanes, way * V::LANES);
    }
    tree(lanes, larger)
}

#[cfg(test)]
mod tests {
    use super::{softmax, softmax_with};
    use crate::isa::Isa;
    use crate::testing::{LENGTHS, Random};

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut random = Random::new(41);
        for cols in LENGTHS.into_iter().filter(|cols| *cols > 0) {
            let mut x: Vec<f32> = random.floats(3 * cols).iter().map(|x| 20.0 * x).collect();
            x[0] = f32::NEG_INFINITY;
            x[cols] = -10_000.0;
            x[2 * cols] = f32::NAN;
            let mut expected = x.clone();
            softmax_with(Isa::Scalar, cols, &mut expected).expect("whole rows");
            assert!(expected[2 * cols..].iter().all(|y| y.is_nan()));
            for isa in Isa::available() {
                let mut y = x.clone();
                softmax_with(isa, cols, &mut y).expect("whole rows");
                for (y, e) in y.iter().zip(&expected) {
                    let same = y.to_bits() == e.to_bits() || y.is_nan() && e.is_nan();
                    assert!(same, "{} {cols}: {y:e} {e:e}", isa.name());
                }
            }
        }
    }

    #[test]
    fn errors_stay_within_what_is_stated() {
        let mut random = Random::new(42);
        let mut worst = 0.0_f64;
        for (cols, spread) in [(1, 1.0), (5, 3.0), (197, 8.0), (1000, 40.0), (4096, 1.0)] {
            let x: Vec<f32> = random.floats(4 * cols).iter().map(|x| spread * x).collect();
            let mut y = x.clone();
            softmax(cols, &mut y).expect("whole rows");
            for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact(cols)) {
                let max = x.iter().fold(f64::MIN, |max, x| max.max((*x).into()));
                let each: Vec<f64> = x.iter().map(|x| (f64::from(*x) - max).exp()).collect();
                let sum: f64 = each.iter().sum();
                for ((x, e), y) in x.iter().zip(&each).zip(y) {
                    let exact = e / sum;
                    let unit = exact * f64::from(f32::EPSILON);
                    let allowed = unit * (8.0 + (max - f64::from(*x)) / 2.0);
                    worst = worst.max((f64::from(*y) - exact).abs() / allowed);
                }
            }
        }
        println!("{worst:.2} of what is allowed");
        assert!(worst <= 1.0, "{worst}");
    }
}
