//! Activations that nothing hides, as signed words of 16 bits, and the same sums.

use super::{Activations, Fp, Isa, Pass, TILE, Tiles, Vector, View, add_tile, quantise_run};
use crate::erase;
use crate::fixed::{Bound, quantise_one};

/// Writes q to `out` and ⟨a, q⟩ for each check vector to `dots`.
///
/// **Shapes**: as [`hide()`](super::hide()). **Domain**: the bound of `acts` is at most 32 767; the words of `folds` must
/// be canonical. **Exactness**: exact, the q and the sums of [`hide()`](super::hide()), equal on every instruction set.
///
/// # Panics
/// If lengths disagree or the bound is larger: both are settled when a plan is made.
pub fn quantise_short(
    acts: &Activations<'_>,
    folds: &[View<'_>],
    out: &mut [i16],
    dots: &mut [Fp],
) {
    quantise_short_with(Isa::best(), acts, folds, out, dots);
}

/// [`quantise_short`] with a given instruction set.
///
/// # Panics
/// As [`quantise_short`] does.
pub fn quantise_short_with(
    isa: Isa,
    acts: &Activations<'_>,
    folds: &[View<'_>],
    out: &mut [i16],
    dots: &mut [Fp],
) {
    assert_eq!(
        out.len(),
        acts.x.len(),
        "output and activations differ in length"
    );
    assert_eq!(dots.len(), folds.len(), "one sum for each check vector");
    assert!(acts.bound <= Bound::SHORT, "the bound is beyond 16 bits");
    for fold in folds {
        fold.assert_shape(acts.rows, acts.cols);
    }
    isa.run(Clear {
        acts,
        folds,
        out,
        dots,
    });
}

struct Clear<'a> {
    acts: &'a Activations<'a>,
    folds: &'a [View<'a>],
    out: &'a mut [i16],
    dots: &'a mut [Fp],
}

impl Pass for Clear<'_> {
    type Output = ();

    fn scalar(self) {
        let Self {
            acts,
            folds,
            out,
            dots,
        } = self;
        dots.fill(Fp::ZERO);
        for row in 0..acts.rows {
            let inverse = acts.row_inverse(row);
            for col in 0..acts.cols {
                let at = row * acts.cols + col;
                let q = quantise_one(acts.x[at], inverse, acts.bound);
                out[at] = q as i16;
                let q = Fp::from_signed(q.into());
                for (dot, fold) in dots.iter_mut().zip(folds) {
                    let a = match *fold {
                        View::Dense(a) => Fp::from_u64(a[at].into()),
                        View::RankOne { outer, inner } => {
                            Fp::from_u64(u64::from(outer[row]) * u64::from(inner[col]))
                        }
                    };
                    *dot += a * q;
                }
            }
        }
    }

    #[inline(always)]
    fn vector<V: Vector>(self, v: V) {
        let Self {
            acts,
            folds,
            out,
            dots,
        } = self;
        let limit = v.splat_f(acts.bound.steps() as f32);
        let mut steps = [0; TILE];
        let mut used = 0;
        let mut sums = vec![v.zero_w(); folds.len()];
        for tile in Tiles::new(acts.rows, acts.cols) {
            let (start, len) = (tile.row * acts.cols + tile.col, tile.rows * tile.cols);
            let x = &acts.x[start..start + len];
            let q = &mut steps[..len];
            used = used.max(len);
            if acts.inverse.len() == 1 {
                quantise_run(v, x, acts.inverse[0], limit, q);
            } else {
                let rows = x.chunks(tile.cols).zip(q.chunks_mut(tile.cols));
                for ((x, q), inverse) in rows.zip(&acts.inverse[tile.row..]) {
                    quantise_run(v, x, *inverse, limit, q);
                }
            }
            // The compiler narrows whole vectors here.
            for (half, q) in out[start..start + len].iter_mut().zip(&*q) {
                *half = *q as i16;
            }
            add_tile(v, &tile, start, q, folds, &mut sums);
        }
        for (dot, sum) in dots.iter_mut().zip(sums) {
            *dot = Fp::from_u64(v.sum_w(sum));
        }
        erase(&mut steps[..used]);
    }
}
