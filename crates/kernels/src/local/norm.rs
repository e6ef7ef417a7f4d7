//! Layer normalisation of rows: y = (x − mean) / √(variance + ε) · gamma + beta.

use super::{Plain, Term, sum, sum_scalar};
use crate::WrongLength;
use crate::isa::Isa;
use crate::isa::vector::{Pass, Vector, load_f, store_f};

/// What normalises a row.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// A factor for each column, if any.
    pub gamma: Option<Vec<f32>>,
    /// A summand for each column, if any.
    pub beta: Option<Vec<f32>>,
}

/// Normalises each of the rows of `x`.
///
/// **Shapes**: `x` and `y` rows × `cols`, row-major; gamma and beta `cols`.
/// **Exactness**: with n = `cols`, the mean is Σx·(1/n), the variance Σ(x − mean)²·(1/n), sums in the order of this
/// module, the other operations correctly rounded one by one; ≤ 4·2⁻²⁴·max|x|/deviation + 8 ULP of y before beta.
/// **Errors**: [`WrongLength`] if lengths disagree or `cols` is 0.
///
/// **Source**: Ba, Kiros, Hinton (2016), equation 3.
pub fn layer_norm(
    norm: &LayerNorm,
    cols: usize,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    layer_norm_with(Isa::best(), norm, cols, x, y)
}

/// [`layer_norm`] with a given instruction set.
pub fn layer_norm_with(
    isa: Isa,
    norm: &LayerNorm,
    cols: usize,
    x: &[f32],
    y: &mut [f32],
) -> Result<(), WrongLength> {
    WrongLength::check(x.len(), y.len())?;
    WrongLength::check_product(
        x.len().checked_div(cols).unwrap_or(usize::MAX),
        cols,
        x.len(),
    )?;
    for vector in [&norm.gamma, &norm.beta].into_iter().flatten() {
        WrongLength::check(cols, vector.len())?;
    }
    isa.run(Normalise { norm, cols, x, y });
    Ok(())
}

struct Normalise<'a> {
    norm: &'a LayerNorm,
    cols: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

/// (x − mean)²
#[derive(Clone, Copy)]
struct Deviation(f32);

impl Term for Deviation {
    fn scalar(self, x: f32) -> f32 {
        (x - self.0) * (x - self.0)
    }
    #[inline(always)]
    fn lanes<V: Vector>(self, v: V, x: V::F) -> V::F {
        let d = v.sub_f(x, v.splat_f(self.0));
        v.mul_f(d, d)
    }
}

impl Pass for Normalise<'_> {
    type Output = ();

    fn scalar(self) {
        let Self { norm, cols, x, y } = self;
        let share = 1.0 / cols as f32;
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
            let mean = sum_scalar(x, Plain) * share;
            let variance = sum_scalar(x, Deviation(mean)) * share;
            let factor = 1.0 / (variance + norm.epsilon).sqrt();
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                *y = (x - mean) * factor;
                if let Some(gamma) = &norm.gamma {
                    *y *= gamma[i];
                }
                if let Some(beta) = &norm.beta {
                    *y += beta[i];
                }
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self { norm, cols, x, y } = self;
        let share = 1.0 / cols as f32;
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
            let mean = sum(v, x, Plain) * share;
            let variance = sum(v, x, Deviation(mean)) * share;
            let factor = 1.0 / (variance + norm.epsilon).sqrt();
            let (mean, factor) = (v.splat_f(mean), v.splat_f(factor));
            let mut at = 0;
            while at + V::LANES <= cols {
                scale::<V, false>(v, norm, mean, factor, x, y, at);
                at += V::LANES;
            }
            scale::<V, true>(v, norm, mean, factor, x, y, at);
        }
    }
}

#[inline(always)]
fn scale<V: Vector, const PART: bool>(
    v: V,
    norm: &LayerNorm,
    mean: V::F,
    factor: V::F,
    x: &[f32],
    y: &mut [f32],
    at: usize,
) {
    let mut out = v.mul_f(v.sub_f(load_f::<V, PART>(v, x, at), mean), factor);
    if let Some(gamma) = &norm.gamma {
        out = v.mul_f(out, load_f::<V, PART>(v, gamma, at));
    }
    if let Some(beta) = &norm.beta {
        out = v.add_f(out, load_f::<V, PART>(v, beta, at));
    }
    store_f::<V, PART>(v, out, y, at);
}

#[cfg(test)]
mod tests {
    use super::{LayerNorm, layer_norm, layer_norm_with};
    use crate::isa::Isa;
    use crate::testing::{LENGTHS, Random};

    fn case(random: &mut Random, cols: usize) -> (LayerNorm, Vec<f32>) {
        let norm = LayerNorm {
            epsilon: 1e-5,
            gamma: (!cols.is_multiple_of(3)).then(|| random.floats(cols)),
            beta: (!cols.is_multiple_of(2)).then(|| random.floats(cols)),
        };
        let x = random
            .floats(3 * cols)
            .iter()
            .map(|x| 3.0 * x + 2.0)
            .collect();
        (norm, x)
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let mut random = Random::new(31);
        for cols in LENGTHS.into_iter().filter(|cols| *cols > 0) {
            let (norm, x) = case(&mut random, cols);
            let mut expected = vec![0.0; x.len()];
            layer_norm_with(Isa::Scalar, &norm, cols, &x, &mut expected).expect("lengths agree");
            for isa in Isa::available() {
                let mut y = vec![0.0; x.len()];
                layer_norm_with(isa, &norm, cols, &x, &mut y).expect("lengths agree");
                assert!(
                    y.iter()
                        .zip(&expected)
                        .all(|(y, e)| y.to_bits() == e.to_bits()),
                    "{} {cols}",
                    isa.name()
                );
            }
        }
    }

    #[test]
    fn errors_stay_within_what_is_stated() {
        let mut random = Random::new(32);
        let mut worst = 0.0_f64;
        for cols in [2, 17, 64, 768, 3072] {
            let (norm, x) = case(&mut random, cols);
            let mut y = vec![0.0; x.len()];
            layer_norm(&norm, cols, &x, &mut y).expect("lengths agree");
            for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact(cols)) {
                let n = cols as f64;
                let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
                let square = |x: &f32| (f64::from(*x) - mean).powi(2);
                let variance = x.iter().map(square).sum::<f64>() / n + f64::from(norm.epsilon);
                let largest = x.iter().fold(0.0_f64, |a, x| a.max(f64::from(x.abs())));
                for i in 0..cols {
                    let gamma = norm.gamma.as_ref().map_or(1.0, |g| f64::from(g[i]));
                    let beta = norm.beta.as_ref().map_or(0.0, |b| f64::from(b[i]));
                    let scaled = (f64::from(x[i]) - mean) / variance.sqrt() * gamma;
                    let error = (f64::from(y[i]) - scaled - beta).abs();
                    let unit = f64::from(f32::EPSILON) / 2.0;
                    let allowed = 4.0 * unit * largest / variance.sqrt() * gamma.abs()
                        + 16.0 * unit * scaled.abs()
                        + unit * (scaled + beta).abs();
                    worst = worst.max(error / allowed);
                }
            }
        }
        println!("{worst:.2} of what is allowed");
        assert!(worst <= 1.0, "{worst}");
    }

    #[test]
    fn lengths_that_disagree_are_refused() {
        let norm = LayerNorm {
            epsilon: 0.0,
            gamma: None,
            beta: None,
        };
        assert!(layer_norm(&norm, 0, &[1.0], &mut [0.0]).is_err());
        assert!(layer_norm(&norm, 2, &[1.0; 3], &mut [0.0; 3]).is_err());
        assert!(layer_norm(&norm, 1, &[1.0; 3], &mut [0.0; 2]).is_err());
        let norm = LayerNorm {
            gamma: Some(vec![1.0]),
            ..norm
        };
        assert!(layer_norm(&norm, 2, &[1.0; 2], &mut [0.0; 2]).is_err());
    }
}
