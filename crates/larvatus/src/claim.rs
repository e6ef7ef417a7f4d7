//! From activations to what is sent, and from a worker's claim to values that may be used.
//!
//! Words that lie in a link's memory are never looked at in place: what is sent is written to
//! memory of our own and copied out, what came is copied and then checked and used, band by band
//! of rows, so that the copy stays in the cache.

use std::ops::Range;

use larvatus_kernels::check::agree;
use larvatus_kernels::field::Fp;
use larvatus_kernels::fixed::{MaxAbs, max_abs, scale};
use larvatus_kernels::hide::{Activations, Folded, View, hide};
use larvatus_kernels::keystream::Stream;
use larvatus_kernels::linear::Shape;
use larvatus_kernels::local::pool::{Windows, max_pool};
use larvatus_kernels::reveal::{Bias, Claim, Epilogue, Factors, RankOne, reveal};
use larvatus_proto::program::LayerId;
use larvatus_proto::words::Words;
use subtle::Choice;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::WorkerMisbehaved;
use crate::plan::{Layer, Upload};
use crate::pool::{Floats, Pool};
use crate::secret::{Checks, Unmask};

/// Words of a band, unless a row has more: 128 KiB.
const BAND: usize = 1 << 15;

/// What the trusted side remembers of an upload until its answers come; cleared when dropped.
#[derive(Zeroize, ZeroizeOnDrop)]
pub(crate) struct Hidden {
    /// Of a step, by image and row (one a row where rows have scales of their own).
    scales: Vec<f32>,
    /// ⟨a, q⟩ by image, then reader, then repetition.
    dots: Vec<Fp>,
    repetitions: usize,
}

/// Quantises an activation, hides it with the pad and writes it to `out` from `first` on.
///
/// `x` has the upload's words, and `out` room for them. `maxima` are the largest magnitudes by
/// image and scale where they are known already. `zero` sends q = 0 whatever `x` is; it is also
/// what a value that is not finite does, and the second result then is `false`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn hide_upload(
    upload: &Upload,
    x: &[f32],
    maxima: Option<&[MaxAbs]>,
    zero: bool,
    pad: Option<&Stream<'_>>,
    checks: &Checks,
    out: &mut Words,
    first: usize,
    scratch: &mut Scratch,
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
    let folds: Vec<View<'_>> = readers
        .flat_map(|checks| checks.a.iter().map(Folded::view))
        .collect();
    let mut dots = vec![Fp::ZERO; upload.images * folds.len()];
    let mut band_dots = vec![Fp::ZERO; folds.len()];
    for image in 0..upload.images {
        let inverse = &inverses[image * per_image..(image + 1) * per_image];
        let dots = &mut dots[image * folds.len()..(image + 1) * folds.len()];
        for rows in bands(upload.rows, upload.cols, out.as_slice().is_some()) {
            let at =
                image * words + rows.start * upload.cols..image * words + rows.end * upload.cols;
            let inverse = match inverse {
                [_] => inverse,
                each => &each[rows.clone()],
            };
            let x = &x[at.clone()];
            let activations = Activations::new(x, rows.len(), upload.cols, inverse, upload.bound)
                .expect("an upload has the words of its images");
            let folds: Vec<View<'_>> = folds
                .iter()
                .map(|fold| fold.rows(rows.clone(), upload.cols))
                .collect();
            let place = first + at.start..first + at.end;
            let from = at.start as u64;
            match out.as_mut_slice() {
                Some(out) => hide(
                    &activations,
                    pad,
                    from,
                    &folds,
                    &mut out[place],
                    &mut band_dots,
                ),
                None => {
                    let hidden = scratch.words(x.len());
                    hide(&activations, pad, from, &folds, hidden, &mut band_dots);
                    out.write(place.start, hidden);
                }
            }
            add(dots, &band_dots);
        }
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

/// Memory for a band on its way to or from a link; kept from call to call.
#[derive(Default)]
pub(crate) struct Scratch(Vec<u32>);

impl Scratch {
    fn words(&mut self, count: usize) -> &mut [u32] {
        if self.0.len() < count {
            self.0.resize(count, 0);
        }
        &mut self.0[..count]
    }
}

/// All rows in bands that fit the cache, or in one where nothing is copied.
fn bands(rows: usize, cols: usize, in_place: bool) -> impl Iterator<Item = Range<usize>> {
    let height = if in_place {
        rows.max(1)
    } else {
        (BAND / cols.max(1)).max(1)
    };
    (0..rows)
        .step_by(height)
        .map(move |start| start..rows.min(start + height))
}

fn add(sums: &mut [Fp], terms: &[Fp]) {
    sums.iter_mut()
        .zip(terms)
        .for_each(|(sum, term)| *sum += *term);
}

/// Values that passed the check that their plan demands, in the layer's layout.
///
/// Built only by [`open`].
pub(crate) struct Checked {
    values: Floats,
    maxima: Vec<MaxAbs>,
}

impl Checked {
    /// The values, and the largest magnitude of each row (or channel) by image.
    pub(crate) fn into_parts(self) -> (Floats, Vec<MaxAbs>) {
        (self.values, self.maxima)
    }
}

/// Opens one call's claim: uncovers, checks, scales, and applies what rides along.
///
/// `words` has the layer's outputs from `first` on (the caller has compared the length). `reader`
/// is the layer's place among the upload's readers. One combined check of the worker's answer and
/// `u` is right here, because `u` is the trusted side's own or was checked by itself when it came
/// from a dealer: it holds no relation between two parties' secrets.
///
/// # Errors
/// [`WorkerMisbehaved`] where a word is no field element or an image's equation does not hold; the
/// values are dropped unread.
#[allow(clippy::too_many_arguments)]
pub(crate) fn open(
    id: LayerId,
    layer: &Layer,
    words: &Words,
    first: usize,
    unmask: Option<Unmask>,
    hidden: &Hidden,
    reader: usize,
    checks: &Checks,
    residual: Option<&[f32]>,
    pool: &Pool,
    scratch: &mut Scratch,
) -> Result<Checked, WorkerMisbehaved> {
    let (rows, cols) = layer.spec.shape.output_rows_cols();
    let v: Vec<Factors<'_>> = checks
        .layer(id)
        .iter()
        .flat_map(|checks| checks.v.iter().map(RankOne::factors))
        .collect();
    let images = layer.spec.images;
    let folds = hidden.dots.len() / images;
    // Elements of a row of what the layer yields in the end.
    let windows = layer.placed.tail.pool.as_ref();
    let pooled = windows.map_or(cols, |windows| windows.output.iter().product());
    let mut values = pool.take(images * rows * pooled);
    let mut maxima = vec![MaxAbs::default(); images * rows];
    let mut verdict = Choice::from(1);
    let mut lie = None;
    for image in 0..images {
        let from = image * folds + reader * hidden.repetitions;
        let expected = &hidden.dots[from..from + v.len()];
        let scales = hidden.image_scales(image, images);
        let factors: Vec<f32> = match &layer.spec.shape {
            Shape::Conv(_) => {
                let scale = scales.first().copied().unwrap_or(0.0);
                layer.factor.iter().map(|f| f * scale).collect()
            }
            Shape::MatMul(_) => scales.to_vec(),
        };
        let groups = match &layer.spec.shape {
            Shape::Conv(_) => 1,
            Shape::MatMul(matmul) => matmul.groups,
        };
        let mut dots = Zeroizing::new(vec![Fp::ZERO; v.len()]);
        let mut canonical = true;
        for group in 0..groups {
            let height = rows / groups;
            let in_place = words.as_slice().is_some() && windows.is_none();
            for band in bands(height, cols, in_place) {
                let band = group * height + band.start..group * height + band.end;
                let at =
                    image * rows * cols + band.start * cols..image * rows * cols + band.end * cols;
                let place = first + at.start..first + at.end;
                let words = match words.as_slice() {
                    Some(words) => &words[place],
                    None => {
                        let copy = scratch.words(at.len());
                        words.read(place.start, copy);
                        copy
                    }
                };
                let u = unmask.as_ref().map(|u| &u.0[at.clone()]);
                let claim = Claim::new(words, u, band.len(), cols)
                    .expect("a band has its share of the words");
                let v: Vec<Factors<'_>> = v.iter().map(|v| v.rows(band.clone())).collect();
                let residual = residual.map(|all| &all[at.clone()]);
                let epilogue = epilogue(layer, &factors, band.clone(), group, cols, residual);
                let rows = image * rows + band.start..image * rows + band.end;
                let maxima = &mut maxima[rows.clone()];
                let values = &mut values[rows.start * pooled..rows.end * pooled];
                let revealed = match windows {
                    None => reveal(&claim, &v, &epilogue, values, maxima),
                    Some(windows) => {
                        let mut full = pool.take(at.len());
                        let revealed = reveal(&claim, &v, &epilogue, &mut full, maxima);
                        pool_rows(windows, &full, values, maxima);
                        revealed
                    }
                };
                canonical &= revealed.canonical;
                add(&mut dots, &revealed.dots);
            }
        }
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

/// Pools a band of channels. Maxima become those of the result, but where a channel has a value
/// that is not finite they go on saying so.
fn pool_rows(windows: &Windows, x: &[f32], y: &mut [f32], maxima: &mut [MaxAbs]) {
    let windows = Windows {
        planes: maxima.len(),
        ..windows.clone()
    };
    max_pool(&windows, x, y).expect("the plan computed these windows for this layer");
    let rows = y.chunks_exact(y.len() / maxima.len());
    for (max, row) in maxima.iter_mut().zip(rows) {
        // Nothing is checked yet, so every row is looked at, whatever it holds.
        let pooled = max_abs(row);
        *max = if max.is_finite() { pooled } else { *max };
    }
}

/// What follows the linear map, for a band of rows of one group. `factors` are those of the rows.
fn epilogue<'a>(
    layer: &'a Layer,
    factors: &'a [f32],
    band: Range<usize>,
    group: usize,
    cols: usize,
    residual: Option<&'a [f32]>,
) -> Epilogue<'a> {
    let tail = &layer.placed.tail;
    let bias = tail.bias.as_deref();
    let (factor_col, bias) = match &layer.spec.shape {
        Shape::Conv(_) => (
            None,
            bias.map_or(Bias::None, |bias| Bias::PerRow(&bias[band.clone()])),
        ),
        Shape::MatMul(_) => {
            let columns = group * cols..(group + 1) * cols;
            (
                Some(&layer.factor[columns.clone()]),
                bias.map_or(Bias::None, |bias| Bias::PerColumn(&bias[columns])),
            )
        }
    };
    Epilogue {
        factor_row: Some(&factors[band]),
        factor_col,
        bias,
        pre: tail.pre,
        residual,
        post: tail.post,
    }
}
