//! Convolutions over bytes: lanes are output channels, the bytes of a pixel are broadcast.
//!
//! An image is taken apart once into planes of limbs, pixel by pixel with the channels side by side and the zero
//! padding in place. The taps of a kernel row are then consecutive bytes, and no pixel is packed more often than
//! once. This suits small images, whose pixels do not fill vectors, and images of very few channels.
//!
//! Short inputs, signed words of 16 bits, have two limbs instead of four: half the work. They are taken 2¹⁵ too
//! large, padding too, and 2¹⁵·Σw is subtracted from every output.

use std::cell::Cell;

use super::jobs::{self, Grid, Job};
use super::shape::{Conv, MatMul, Shape, Valid};
use super::tiles::Line;
use super::vectors::{Vectors, room, wipe};
use super::weights::Weights;
use super::window::Window;
use crate::field::P;
use crate::isa::Avx512;

const LANES: usize = 16;

/// Terms that one instruction adds up.
pub(super) const STEP: usize = 4;

/// Most vectors of output channels side by side.
pub(super) const VECTORS: usize = 2;

/// Pixels whose outputs are computed before they are transposed.
const PIXELS: usize = 63;

/// Most terms: their limb sums stay below 2³⁰.
const MOST: usize = 32_768;
const _: () = assert!(MOST as u64 * 255 * 128 + 255 < 1 << 30);

/// What a short input is moved by, and what stands for its zeros.
pub(super) const MOVED: u32 = 1 << 15;

/// A convolution with packed weights.
pub(super) struct Bytes {
    isa: Avx512,
    window: Window,
    out_channels: usize,
    layout: Layout,
    /// `[pair of vectors][kernel row][step][vector]`: four weights for each output channel.
    weights: Vec<Line>,
    /// −2¹⁵·Σw mod p of each output channel.
    moved: Vec<Line>,
}

/// How an image lies in bytes: `[row][limb][column][channel]`, from the first padding on.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    pub(super) channels: usize,
    /// Bytes of a pixel in one limb.
    pub(super) pixel: usize,
    /// Bytes of a row in one limb; a little more than its pixels take.
    pub(super) limb: usize,
    /// Rows and columns.
    pub(super) rows: usize,
    pub(super) columns: usize,
    /// Rows of the kernel, how many rows of the image apart they are, and steps of each.
    pub(super) kernel: usize,
    pub(super) apart: usize,
    pub(super) steps: usize,
}

impl Layout {
    fn new(conv: &Valid<Conv>) -> Self {
        let output = conv.output();
        let extent = |axis: usize| {
            (output[axis] - 1) * conv.stride[axis]
                + (conv.kernel[axis] - 1) * conv.dilation[axis]
                + 1
        };
        let (rows, columns) = (extent(0), extent(1));
        let pixel = if conv.in_channels == 3 {
            3
        } else {
            conv.in_channels.next_multiple_of(STEP)
        };
        Self {
            channels: conv.in_channels,
            pixel,
            limb: (columns * pixel + SLACK).next_multiple_of(64),
            rows,
            columns,
            kernel: conv.kernel[0],
            apart: conv.dilation[0],
            steps: (conv.kernel[1] * pixel).div_ceil(STEP),
        }
    }

    /// Terms of an output, those that only fill steps included.
    fn terms(&self) -> usize {
        self.kernel * self.steps * STEP
    }

    /// Lines of weights of one vector.
    fn lines(&self) -> usize {
        self.kernel * self.steps
    }
}

/// What inputs may be: words, or signed ones of 16 bits.
pub(super) trait Input: Copy + Send + Sync {
    /// Limbs of a word.
    const LIMBS: usize;
}

impl Input for u32 {
    const LIMBS: usize = 4;
}

impl Input for i16 {
    const LIMBS: usize = 2;
}

impl Bytes {
    /// Whether this way suits words: where pixels would leave many lanes of their vectors empty, or where a few
    /// channels under a wide kernel would be packed again and again.
    pub(super) fn suits(conv: &Valid<Conv>) -> bool {
        let pixels: usize = conv.output().iter().product();
        let uneven = pixels > LEAST_PIXELS && pixels * 8 < pixels.next_multiple_of(LANES) * 7;
        let row = conv.kernel[1] * conv.in_channels;
        let wide = conv.in_channels == 3 && conv.stride[1] < conv.kernel[1] / 2;
        uneven || wide && row.next_multiple_of(STEP) * 6 <= row * 7
    }

    /// The layer, if it can be computed so.
    pub(super) fn new(isa: Avx512, conv: &Valid<Conv>, weights: &Weights) -> Option<Self> {
        let window = Window::new(conv);
        let ([plane], 1, 1) = (weights.planes(), conv.dilation[1], conv.groups) else {
            return None;
        };
        let layout = Layout::new(conv);
        if (0..2).any(|axis| conv.stride[axis] > conv.kernel[axis]) {
            return None;
        }
        let terms = conv.in_channels * window.taps();
        let taps = window.taps();
        let at = |index: usize| {
            let (channel, tap) = (index / taps, index % taps);
            let [down, right] = [tap / conv.kernel[1], tap % conv.kernel[1]];
            (down, right * layout.pixel + channel)
        };
        let weight = |out: usize, index: usize| plane[out * terms + index];
        Self::pack(isa, window, layout, [conv.out_channels, terms], at, weight)
    }

    /// A product in one group, its rows taken as pixels, if it can be computed so.
    pub(super) fn tokens(isa: Avx512, matmul: &Valid<MatMul>, weights: &Weights) -> Option<Self> {
        let MatMul {
            groups,
            rows,
            inner,
            columns,
        } = **matmul;
        let ([plane], 1) = (weights.planes(), groups) else {
            return None;
        };
        let conv = Conv {
            groups: 1,
            in_channels: inner,
            out_channels: columns,
            input: [rows, 1],
            kernel: [1, 1],
            stride: [1, 1],
            dilation: [1, 1],
            pad_begin: [0, 0],
            pad_end: [0, 0],
        };
        let Ok(Shape::Conv(conv)) = Shape::conv(conv) else {
            return None;
        };
        let mut layout = Layout::new(&conv);
        layout.pixel = inner.next_multiple_of(STEP);
        layout.steps = layout.pixel / STEP;
        let weight = |out: usize, index: usize| plane[index * columns + out];
        Self::pack(
            isa,
            Window::new(&conv),
            layout,
            [columns, inner],
            |index| (0, index),
            weight,
        )
    }

    /// Packs `weight(out, index)`, which lies at `at(index)`: a kernel row and a byte in it.
    fn pack(
        isa: Avx512,
        window: Window,
        layout: Layout,
        [out_channels, terms]: [usize; 2],
        at: impl Fn(usize) -> (usize, usize),
        weight: impl Fn(usize, usize) -> i8,
    ) -> Option<Self> {
        if layout.terms() > MOST {
            return None;
        }
        let vectors = out_channels.div_ceil(LANES);
        let mut weights = vec![Line([0; LANES]); vectors * layout.lines()];
        let mut moved = vec![Line([0; LANES]); vectors];
        for out in 0..out_channels {
            let (vector, lane) = (out / LANES, out % LANES);
            let pair = vector / VECTORS * VECTORS;
            let together = VECTORS.min(vectors - pair);
            let mut sum = 0;
            for index in 0..terms {
                let (weight, (down, byte)) = (weight(out, index), at(index));
                let step = down * layout.steps + byte / STEP;
                let line = &mut weights[pair * layout.lines() + step * together + vector - pair];
                line.0[lane] |= u32::from(weight.cast_unsigned()) << (8 * (byte % STEP));
                sum += i64::from(weight);
            }
            moved[vector].0[lane] = (-sum * i64::from(MOVED)).rem_euclid(P.into()) as u32;
        }
        Some(Self {
            isa,
            window,
            out_channels,
            layout,
            weights,
            moved,
        })
    }

    /// `y = L(x)` for a layer made by [`Bytes::tokens`].
    pub(super) fn run_tokens(&self, wanted: usize, x: &[i16], y: &mut [u32]) {
        let (layout, rows) = (&self.layout, self.layout.rows);
        let inner = self.layout.channels;
        let row = i16::LIMBS * layout.limb;
        let mut image = IMAGE.take();
        room(&mut image, rows * row);
        image.resize(rows * row, 0);
        let jobs: Vec<_> = image
            .chunks_exact_mut(row)
            .zip(x.chunks_exact(inner))
            .collect();
        jobs::share(wanted, jobs, |(image, x)| {
            self.isa.token_in(layout.limb, x, image)
        });
        let grid = Grid {
            rows,
            columns: self.out_channels,
            step: [6, VECTORS * LANES],
            columns_first: rows < PIXELS,
        };
        jobs::share(wanted, grid.cut(y, wanted), |mut job| {
            self.isa.scratch(|scratch| {
                let first = job.row;
                for (index, rows) in job.rows.chunks_mut(PIXELS).enumerate() {
                    let first = first + index * PIXELS;
                    let offsets: [usize; PIXELS] =
                        std::array::from_fn(|pixel| (first + pixel) * row);
                    self.token_rows(
                        &image,
                        &offsets[..rows.len()],
                        job.column,
                        rows,
                        &mut scratch.lines,
                    );
                }
            });
        });
        IMAGE.set(image);
    }

    fn token_rows(
        &self,
        image: &[u8],
        offsets: &[usize],
        first: usize,
        rows: &mut [&mut [u32]],
        lines: &mut Vec<Line>,
    ) {
        let count = rows.len();
        let columns = rows[0].len();
        for column in (0..columns).step_by(VECTORS * LANES) {
            let vector = (first + column) / LANES;
            let (weights, moved) = self.vectors_from(vector);
            lines.resize(count * VECTORS, Line([0; LANES]));
            let lines = &mut lines[..count * moved.len()];
            Limbs::<i16>::bytes_multiply(
                self.isa,
                image,
                &self.layout,
                offsets,
                weights,
                moved,
                lines,
            );
            for (index, lines) in lines.chunks_exact(count).enumerate() {
                let column = column + index * LANES;
                let width = LANES.min(columns - column);
                for (row, line) in rows.iter_mut().zip(lines) {
                    row[column..][..width].copy_from_slice(&line.0[..width]);
                }
            }
        }
    }

    /// Weights and moves of the vectors that lie together from `vector` on.
    fn vectors_from(&self, vector: usize) -> (&[Line], &[Line]) {
        let together = VECTORS.min(self.moved.len() - vector);
        let lines = self.layout.lines();
        (
            &self.weights[vector * lines..][..together * lines],
            &self.moved[vector..][..together],
        )
    }

    /// `y = L(x)` for one image.
    pub(super) fn run<T: Input>(&self, wanted: usize, x: &[T], y: &mut [u32])
    where
        Avx512: Limbs<T>,
    {
        let layout = self.layout;
        let mut image = IMAGE.take();
        room(&mut image, layout.rows * T::LIMBS * layout.limb);
        image.resize(layout.rows * T::LIMBS * layout.limb, 0);
        let rows = layout.rows.div_ceil(wanted);
        let jobs: Vec<_> = image
            .chunks_mut(rows * T::LIMBS * layout.limb)
            .enumerate()
            .collect();
        jobs::share(wanted, jobs, |(job, image)| {
            for (index, row) in image.chunks_exact_mut(T::LIMBS * layout.limb).enumerate() {
                self.isa
                    .bytes_in(&self.window, &layout, job * rows + index, x, row);
            }
        });
        let grid = Grid {
            rows: self.out_channels,
            columns: self.window.pixels(),
            step: [VECTORS * LANES, PIXELS],
            columns_first: true,
        };
        jobs::share(wanted, grid.cut(y, wanted), |job| {
            self.isa
                .scratch(|scratch| self.work::<T>(&image, job, &mut scratch.lines));
        });
        IMAGE.set(image);
    }

    fn work<T: Input>(&self, image: &[u8], mut job: Job<'_>, lines: &mut Vec<Line>)
    where
        Avx512: Limbs<T>,
    {
        let (layout, window) = (&self.layout, &self.window);
        let row = T::LIMBS * layout.limb;
        let pixels = job.rows[0].len();
        let at_once = pixels.div_ceil(pixels.div_ceil(PIXELS));
        let mut offsets = [0; PIXELS];
        for first in (0..pixels).step_by(at_once) {
            let count = at_once.min(pixels - first);
            let [mut oy, mut ox] = window.coordinates(job.column + first);
            for offset in &mut offsets[..count] {
                *offset = oy * window.stride[0] * row + ox * window.stride[1] * layout.pixel;
                ox += 1;
                if ox == window.output[1] {
                    (oy, ox) = (oy + 1, 0);
                }
            }
            for (index, rows) in job.rows.chunks_mut(VECTORS * LANES).enumerate() {
                let vector = job.row / LANES + index * VECTORS;
                self.isa.expect_lines(count, first, rows);
                let (weights, moved) = self.vectors_from(vector);
                lines.resize(count * VECTORS, Line([0; LANES]));
                let lines = &mut lines[..count * moved.len()];
                self.isa
                    .bytes_multiply(image, layout, &offsets[..count], weights, moved, lines);
                self.isa.lines_out(lines, count, first, rows);
            }
        }
    }
}

/// What an input's limbs need of an instruction set.
pub(super) trait Limbs<T: Input> {
    /// Takes row `row` of an image, counted from the first padding, apart.
    fn bytes_in(self, window: &Window, layout: &Layout, row: usize, x: &[T], out: &mut [u8]);

    /// `lines[vector][pixel] = Σ bytes·weights` for the pixels whose bytes begin at `offsets`, canonical.
    fn bytes_multiply(
        self,
        image: &[u8],
        layout: &Layout,
        offsets: &[usize],
        weights: &[Line],
        moved: &[Line],
        lines: &mut [Line],
    );
}

impl super::Packed for Bytes {
    fn bytes(&self) -> usize {
        size_of_val(&*self.weights) + size_of_val(&*self.moved)
    }

    fn apply(&self, wanted: usize, x: &[&[u32]], y: &mut [&mut [u32]]) {
        for (x, y) in x.iter().zip(y) {
            self.run(wanted, x, y);
        }
    }
}

thread_local! {
    /// An image in bytes. Taken while in use: a thread that waits for others may start another layer.
    static IMAGE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Overwrites this thread's image.
pub(super) fn wipe_thread() {
    let mut image = IMAGE.take();
    wipe(&mut image);
    IMAGE.set(image);
}

/// With fewer pixels an image takes longer to rearrange than its products take.
const LEAST_PIXELS: usize = 16;

/// Bytes after the pixels of a row: the last step reads past a pixel, and vectors are written whole.
const SLACK: usize = 64;
