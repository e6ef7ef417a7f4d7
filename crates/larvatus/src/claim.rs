//! From activations to what is sent, and from a worker's claim to values that may be used.
//!
//! Words that lie in a link's memory are never looked at in place: what is sent is written to
//! memory of our own and copied out, what came is copied and then checked and used, band by band
//! of rows, so that the copy stays in the cache.

use std::ops::Range;

use larvatus_kernels::check::agree;
use larvatus_kernels::field::Fp;
use larvatus_kernels::fixed::{MaxAbs, max_abs, scale};
use larvatus_kernels::hide::{Activations, Folded, View, hide, quantise_short};
use larvatus_kernels::keystream::Stream;
use larvatus_kernels::linear::{Shape, halves_mut};
use larvatus_kernels::local::pool::{Windows, max_pool};
use larvatus_kernels::reveal::{Bias, Claim, Epilogue, Factors, RankOne, reveal};
use larvatus_proto::program::{Form, LayerId};
use larvatus_proto::words::Words;
use subtle::Choice;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::error::WorkerMisbehaved;
use crate::inference::Opened;
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

/// What an upload is sent as.
#[derive(Clone, Copy)]
pub(crate) enum Cover<'a> {
    /// Words under a pad.
    Pad(&'a Stream<'a>),
    /// As it is.
    Bare(Form),
}

impl Cover<'_> {
    /// Words that so many elements take.
    fn words(self, elements: usize) -> usize {
        match self {
            Self::Pad(_) => elements,
            Self::Bare(form) => form.words(elements),
        }
    }
}

/// Quantises an activation, covers it and writes it to `out` from word `first` on.
///
/// `x` has the upload's elements, and `out` room for them. `maxima` are the largest magnitudes by
/// image and scale where they are known already. `zero` sends q = 0 whatever `x` is; it is also
/// what a value that is not finite does, and the second result then is `false`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn hide_upload(
    upload: &Upload,
    x: &[f32],
    maxima: Option<&[MaxAbs]>,
    zero: bool,
    cover: Cover<'_>,
    checks: &Checks,
    out: &mut Words,
    first: usize,
    scratch: &mut Scratch,
) -> (Hidden, bool) {
    let elements = upload.image_elements();
    let per_image = upload.scales();
    let row = elements / per_image;
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
    let whole = first..first + cover.words(upload.elements());
    let mut sheet = Sheet {
        cover,
        in_place: out.as_slice().is_some(),
        out,
        whole,
        scratch,
        carry: None,
    };
    for image in 0..upload.images {
        let inverse = &inverses[image * per_image..(image + 1) * per_image];
        let dots = &mut dots[image * folds.len()..(image + 1) * folds.len()];
        for rows in bands(upload.rows, upload.cols, sheet.in_place) {
            let at = image * elements + rows.start * upload.cols
                ..image * elements + rows.end * upload.cols;
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
            sheet.write(&activations, at, &folds, &mut band_dots);
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

/// Where an upload is written, band by band.
struct Sheet<'a> {
    cover: Cover<'a>,
    out: &'a mut Words,
    in_place: bool,
    /// The upload's words.
    whole: Range<usize>,
    scratch: &'a mut Scratch,
    /// The last half so far, where it waits for the other one of its word.
    carry: Option<i16>,
}

impl Sheet<'_> {
    /// Writes the elements `at` of the upload, and ⟨a, q⟩ to `dots`.
    fn write(
        &mut self,
        x: &Activations<'_>,
        at: Range<usize>,
        folds: &[View<'_>],
        dots: &mut [Fp],
    ) {
        let pad = match self.cover {
            Cover::Pad(pad) => Some(pad),
            Cover::Bare(Form::Words) => None,
            Cover::Bare(Form::Halves) => return self.write_halves(x, at, folds, dots),
        };
        let from = at.start as u64;
        let place = self.whole.start + at.start..self.whole.start + at.end;
        match self.out.as_mut_slice() {
            Some(out) => hide(x, pad, from, folds, &mut out[place], dots),
            None => {
                let hidden = self.scratch.words(at.len());
                hide(x, pad, from, folds, hidden, dots);
                self.out.write(place.start, hidden);
            }
        }
    }

    fn write_halves(
        &mut self,
        x: &Activations<'_>,
        at: Range<usize>,
        folds: &[View<'_>],
        dots: &mut [Fp],
    ) {
        if let Some(out) = self.out.as_mut_slice() {
            let halves = halves_mut(&mut out[self.whole.clone()]);
            quantise_short(x, folds, &mut halves[at], dots);
            return;
        }
        // Whole words only: a half that is left over is written with the next band.
        let lead = usize::from(self.carry.is_some());
        let end = lead + at.len();
        let words = self.scratch.words(end.div_ceil(2));
        let halves = halves_mut(words);
        if let Some(carry) = self.carry.take() {
            halves[0] = carry;
        }
        quantise_short(x, folds, &mut halves[lead..end], dots);
        let place = self.whole.start + (at.start - lead) / 2;
        let mut count = end.div_ceil(2);
        if let Some(after) = halves.get_mut(end) {
            *after = 0;
            if place + count < self.whole.end {
                self.carry = Some(halves[end - 1]);
                count -= 1;
            }
        }
        self.out.write(place, &words[..count]);
    }
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
pub(crate) fn bands(
    rows: usize,
    cols: usize,
    in_place: bool,
) -> impl Iterator<Item = Range<usize>> {
    let height = if in_place {
        rows.max(1)
    } else {
        (BAND / cols.max(1)).max(1)
    };
    (0..rows)
        .step_by(height)
        .map(move |start| start..rows.min(start + height))
}

/// Adds sums of a band to those of the bands before.
pub(crate) fn add(sums: &mut [Fp], terms: &[Fp]) {
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

impl Opened for Checked {
    /// The values, and the largest magnitude of each row (or channel) by image.
    fn into_parts(self) -> (Floats, Vec<MaxAbs>) {
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

#[cfg(test)]
mod tests {
    use larvatus_kernels::fixed::Bound;
    use larvatus_proto::words::Lent;

    use super::*;
    use crate::model::rounds::Slot;

    /// Memory that can be copied into only.
    struct Board(Vec<u32>);

    impl Lent for Board {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn read(&self, at: usize, into: &mut [u32]) {
            into.copy_from_slice(&self.0[at..at + into.len()]);
        }
        fn write(&mut self, at: usize, from: &[u32]) {
            self.0[at..at + from.len()].copy_from_slice(from);
        }
    }

    #[test]
    fn halves_are_the_same_in_place_and_through_a_link_s_memory() {
        // Rows longer than a band, odd sizes everywhere, so that bands begin inside of words.
        for (images, rows, cols) in [(1, 1, 1), (3, 5, 7), (2, 3, BAND - 1), (3, 1, 2), (1, 4, 9)] {
            let upload = Upload {
                slot: Slot(0),
                order: None,
                images,
                rows,
                cols,
                row_scales: false,
                bound: Bound::new(3000).unwrap(),
                readers: Vec::new(),
            };
            let x: Vec<f32> = (0..upload.elements())
                .map(|i| (i as f32 + 1.0).sin())
                .collect();
            let whole = Form::Halves.words(x.len());
            let send = |mut words: Words| {
                let cover = Cover::Bare(Form::Halves);
                let (checks, scratch) = (Checks::none(), &mut Scratch::default());
                hide_upload(
                    &upload, &x, None, false, cover, &checks, &mut words, 3, scratch,
                );
                words.to_vec()
            };
            let room = vec![0xffff_ffff; whole + 5];
            let mut own = send(room.clone().into());
            let lent = send(Words::lent(Box::new(Board(room))));
            assert_eq!(own[..3], [u32::MAX; 3]);
            assert_eq!(own[3 + whole..], [u32::MAX; 2]);
            let q = halves_mut(&mut own[3..3 + whole]);
            let largest = x.iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            let steps = x.iter().map(|x| x * 3000.0 / largest);
            for (q, steps) in q.iter().zip(steps).filter(|_| images == 1) {
                assert!((f32::from(*q) - steps).abs() <= 0.51, "{q} {steps}");
            }
            if !x.len().is_multiple_of(2) {
                // The last half is nobody's.
                q[x.len()] = 0;
            }
            assert!(own == lent, "{images} {rows} {cols}");
        }
    }
}
