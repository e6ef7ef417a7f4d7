//! From activations to what is sent, and from a worker's claim to values that may be used.

use larvatus_kernels::check::agree;
use larvatus_kernels::field::Fp;
use larvatus_kernels::fixed::{MaxAbs, max_abs, scale};
use larvatus_kernels::hide::{Activations, Folded, hide};
use larvatus_kernels::linear::Shape;
use larvatus_kernels::reveal::{Bias, Claim, Epilogue, RankOne, reveal};
use subtle::Choice;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::WorkerMisbehaved;
use crate::plan::{Layer, Upload};
use crate::secret::{Checks, Masks, Ticket, Unmask};
use larvatus_proto::program::LayerId;

/// What the trusted side remembers of an upload until its answers come; cleared when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Hidden {
    /// Of a step, by image and row (one a row where rows have scales of their own).
    scales: Vec<f32>,
    /// ⟨a, q⟩ by image, then reader, then repetition.
    dots: Vec<Fp>,
    repetitions: usize,
}

/// Quantises an activation, hides it with the ticket's pad and writes it to `out`.
///
/// `x` and `out` have the upload's words. `maxima` are the largest magnitudes by image and scale
/// where they are known already. `zero` sends q = 0 whatever `x` is; it is also what a value that
/// is not finite does, and the second result then is `false`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn hide_upload(
    upload: &Upload,
    x: &[f32],
    maxima: Option<&[MaxAbs]>,
    zero: bool,
    secrets: Option<(Ticket, &Masks)>,
    checks: &Checks,
    out: &mut [u32],
) -> (Hidden, bool) {
    let words = upload.image_words();
    let per_image = upload.scales();
    let row = words / per_image;
    let measured: Vec<MaxAbs>;
    let maxima = match maxima {
        Some(known) if known.len() == upload.images * per_image => known,
        _ => {
            measured = x.chunks_exact(row).map(max_abs).collect();
            &measured
        }
    };
    let finite = maxima.iter().all(|max| max.is_finite());
    let (scales, inverses): (Vec<f32>, Vec<f32>) = maxima
        .iter()
        .map(|max| {
            scale(
                if finite && !zero {
                    *max
                } else {
                    MaxAbs::default()
                },
                upload.bound,
            )
        })
        .map(|scale| (scale.step, scale.inverse))
        .unzip();
    let readers = upload.readers.iter().filter_map(|id| checks.layer(*id));
    let folds: Vec<&Folded> = readers.flat_map(|checks| &checks.a).collect();
    let pad = secrets.map(|(ticket, masks)| ticket.pad(masks));
    let mut dots = vec![Fp::ZERO; upload.images * folds.len()];
    for image in 0..upload.images {
        let at = image * words..(image + 1) * words;
        let inverse = &inverses[image * per_image..(image + 1) * per_image];
        let x = &x[at.clone()];
        let activations = Activations::new(x, upload.rows, upload.cols, inverse, upload.bound)
            .expect("an upload has the words of its images");
        let dots = &mut dots[image * folds.len()..(image + 1) * folds.len()];
        hide(
            &activations,
            pad.as_ref(),
            at.start as u64,
            &folds,
            &mut out[at],
            dots,
        );
    }
    let repetitions = folds.len() / upload.readers.len().max(1);
    (
        Hidden {
            scales,
            dots,
            repetitions,
        },
        finite,
    )
}

/// Values that passed the check that their plan demands, in the layer's layout.
///
/// Built only by [`open`].
pub(crate) struct Checked {
    values: Vec<f32>,
    maxima: Vec<MaxAbs>,
}

impl Checked {
    /// The values, and the largest magnitude of each row (or channel) by image.
    pub(crate) fn into_parts(self) -> (Vec<f32>, Vec<MaxAbs>) {
        (self.values, self.maxima)
    }
}

/// Opens one call's claim: uncovers, checks, scales, and applies what rides along.
///
/// `words` has the layer's outputs (the caller has compared the length). `reader` is the layer's
/// place among the upload's readers. One combined check of the worker's answer and `u` is right
/// here, because `u` is the trusted side's own: it holds no relation between two parties' secrets.
///
/// # Errors
/// [`WorkerMisbehaved`] where a word is no field element or an image's equation does not hold; the
/// values are dropped unread.
#[allow(clippy::too_many_arguments)]
pub(crate) fn open(
    id: LayerId,
    layer: &Layer,
    words: &[u32],
    unmask: Option<Unmask>,
    hidden: &Hidden,
    reader: usize,
    checks: &Checks,
    residual: Option<&[f32]>,
) -> Result<Checked, WorkerMisbehaved> {
    let (rows, cols) = layer.spec.shape.output_rows_cols();
    let v: Vec<&RankOne> = checks
        .layer(id)
        .iter()
        .flat_map(|checks| &checks.v)
        .collect();
    let per_image = rows * cols;
    let folds = hidden.dots.len() / layer.spec.images;
    let mut values = vec![0.0; words.len()];
    let mut maxima = vec![MaxAbs::default(); layer.spec.images * rows];
    let mut verdict = Choice::from(1);
    let mut lie = None;
    for image in 0..layer.spec.images {
        let at = image * per_image..(image + 1) * per_image;
        let from = image * folds + reader * hidden.repetitions;
        let expected = &hidden.dots[from..from + v.len()];
        let part = Part {
            layer,
            words: &words[at.clone()],
            u: unmask.as_ref().map(|u| &u.0[at.clone()]),
            residual: residual.map(|all| &all[at.clone()]),
            scales: hidden.image_scales(image, layer.spec.images),
            rows,
            cols,
        };
        let maxima = &mut maxima[image * rows..(image + 1) * rows];
        let (dots, canonical) = part.reveal(&v, &mut values[at], maxima);
        let dots = Zeroizing::new(dots);
        // No branch on data before every image has been looked at.
        let mut equal = Choice::from(u8::from(canonical));
        if !v.is_empty() {
            equal &= agree(expected, &dots);
        }
        if !bool::from(equal) && lie.is_none() {
            let differs = |(dot, expected): (&Fp, &Fp)| dot != expected;
            lie = Some(if canonical {
                let repetition = dots.iter().zip(expected).position(differs).unwrap_or(0);
                WorkerMisbehaved::ProductMismatch {
                    layer: id,
                    image,
                    repetition,
                }
            } else {
                WorkerMisbehaved::NotCanonical { layer: id, image }
            });
        }
        verdict &= equal;
    }
    match lie {
        None if bool::from(verdict) => Ok(Checked { values, maxima }),
        lie => Err(lie.unwrap_or(WorkerMisbehaved::NotCanonical {
            layer: id,
            image: 0,
        })),
    }
}

impl Hidden {
    fn image_scales(&self, image: usize, images: usize) -> &[f32] {
        let each = self.scales.len() / images;
        &self.scales[image * each..(image + 1) * each]
    }
}

/// One image of a claim.
struct Part<'a> {
    layer: &'a Layer,
    words: &'a [u32],
    u: Option<&'a [u32]>,
    residual: Option<&'a [f32]>,
    scales: &'a [f32],
    rows: usize,
    cols: usize,
}

impl Part<'_> {
    fn reveal(&self, v: &[&RankOne], out: &mut [f32], maxima: &mut [MaxAbs]) -> (Vec<Fp>, bool) {
        let tail = &self.layer.placed.tail;
        let bias = tail.bias.as_deref();
        match &self.layer.spec.shape {
            Shape::Conv(_) => {
                let scale = self.scales.first().copied().unwrap_or(0.0);
                let factor: Vec<f32> = self.layer.factor.iter().map(|f| f * scale).collect();
                let epilogue = Epilogue {
                    factor_row: Some(&factor),
                    factor_col: None,
                    bias: bias.map_or(Bias::None, Bias::PerRow),
                    pre: tail.pre,
                    residual: self.residual,
                    post: tail.post,
                };
                let claim = Claim::new(self.words, self.u, self.rows, self.cols)
                    .expect("a claim has the words of its layer");
                let revealed = reveal(&claim, v, &epilogue, out, maxima);
                (revealed.dots, revealed.canonical)
            }
            Shape::MatMul(matmul) => {
                let mut total = vec![Fp::ZERO; v.len()];
                let mut canonical = true;
                for group in 0..matmul.groups {
                    let rows = group * matmul.rows..(group + 1) * matmul.rows;
                    let cells = rows.start * self.cols..rows.end * self.cols;
                    let columns = group * self.cols..(group + 1) * self.cols;
                    let epilogue = Epilogue {
                        factor_row: Some(&self.scales[rows.clone()]),
                        factor_col: Some(&self.layer.factor[columns.clone()]),
                        bias: bias.map_or(Bias::None, |bias| Bias::PerColumn(&bias[columns])),
                        pre: tail.pre,
                        residual: self.residual.map(|all| &all[cells.clone()]),
                        post: tail.post,
                    };
                    let words = &self.words[cells.clone()];
                    let u = self.u.map(|u| &u[cells.clone()]);
                    let claim = Claim::new(words, u, matmul.rows, self.cols)
                        .expect("a group has its share of the words");
                    let group_v: Vec<RankOne>;
                    let borrowed: Vec<&RankOne>;
                    let v = if matmul.groups == 1 {
                        v
                    } else {
                        group_v = v
                            .iter()
                            .map(|v| RankOne {
                                outer: v.outer[rows.clone()].to_vec(),
                                inner: v.inner.clone(),
                            })
                            .collect();
                        borrowed = group_v.iter().collect();
                        &borrowed[..]
                    };
                    let revealed = reveal(&claim, v, &epilogue, &mut out[cells], &mut maxima[rows]);
                    canonical &= revealed.canonical;
                    total
                        .iter_mut()
                        .zip(&revealed.dots[..])
                        .for_each(|(sum, dot)| *sum += *dot);
                }
                (total, canonical)
            }
        }
    }
}
