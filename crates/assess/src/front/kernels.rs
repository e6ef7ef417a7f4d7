//! The operators of a program in floats, each with its gradient.

use larvatus_graph::op::Axis;
use larvatus_kernels::activation::Activation;
use larvatus_kernels::linear::{Conv, MatMul};
use larvatus_kernels::local::chain::Binary;
use larvatus_kernels::local::pool::{Divisor, Windows};
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2};

use super::rows::Kernel;

/// C = A·B, or C += A·B; matrices row-major, either operand perhaps transposed.
fn product(a: ArrayView2<'_, f32>, b: ArrayView2<'_, f32>, c: &mut [f32], keep: f32) {
    let shape = (a.nrows(), b.ncols());
    if let Ok(mut c) = ArrayViewMut2::from_shape(shape, c) {
        general_mat_mul(1.0, &a, &b, keep, &mut c);
    }
}

fn matrix(values: &[f32], rows: usize, cols: usize) -> ArrayView2<'_, f32> {
    ArrayView2::from_shape((rows, cols), values).expect("callers slice what they give to this size")
}

/// A convolution of one image, with a summand for each channel.
pub(super) struct Convolution {
    groups: usize,
    channels: [usize; 2],
    input: [usize; 2],
    output: [usize; 2],
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    before: [usize; 2],
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Convolution {
    pub(super) fn new(conv: &Conv, weights: Vec<f32>, bias: Vec<f32>) -> Self {
        Self {
            groups: conv.groups,
            channels: [conv.in_channels, conv.out_channels],
            input: conv.input,
            output: [0, 1].map(|axis| {
                let padded = conv.input[axis] + conv.pad_begin[axis] + conv.pad_end[axis];
                let reach = conv.dilation[axis] * (conv.kernel[axis] - 1) + 1;
                (padded - reach) / conv.stride[axis] + 1
            }),
            kernel: conv.kernel,
            stride: conv.stride,
            dilation: conv.dilation,
            before: conv.pad_begin,
            weights,
            bias,
        }
    }

    pub(super) fn depthwise(windows: &Windows, weights: Vec<f32>, bias: Vec<f32>) -> Self {
        Self {
            groups: windows.planes,
            channels: [windows.planes; 2],
            input: windows.input,
            output: windows.output,
            kernel: windows.kernel,
            stride: windows.stride,
            dilation: [1, 1],
            before: windows.before,
            weights,
            bias,
        }
    }

    fn pixels(&self) -> usize {
        self.output[0] * self.output[1]
    }

    /// Taps of a group's kernels.
    fn taps(&self) -> usize {
        self.channels[0] / self.groups * self.kernel[0] * self.kernel[1]
    }

    /// Calls `each` with (tap, place in the output, place in the input, length of a run, step in the input) for a group.
    fn walk(&self, group: usize, mut each: impl FnMut(usize, usize, usize, usize, usize)) {
        let own = self.channels[0] / self.groups;
        let plane = self.input[0] * self.input[1];
        for tap in 0..self.taps() {
            let channel = group * own + tap / (self.kernel[0] * self.kernel[1]);
            let at = tap % (self.kernel[0] * self.kernel[1]);
            let (down, across) = (
                at / self.kernel[1] * self.dilation[0],
                at % self.kernel[1] * self.dilation[1],
            );
            // Columns of the output whose source lies inside.
            let stride = self.stride[1];
            let first = self.before[1].saturating_sub(across).div_ceil(stride);
            let end = (self.input[1] + self.before[1]).saturating_sub(across);
            let end = end.div_ceil(stride).min(self.output[1]);
            if first >= end {
                continue;
            }
            for row in 0..self.output[0] {
                let source = row * self.stride[0] + down;
                let Some(source) = source.checked_sub(self.before[0]) else {
                    continue;
                };
                if source >= self.input[0] {
                    continue;
                }
                let start = first * stride + across - self.before[1];
                let from = channel * plane + source * self.input[1] + start;
                each(tap, row * self.output[1] + first, from, end - first, stride);
            }
        }
    }

    fn single(&self) -> bool {
        self.channels == [self.groups; 2]
    }

    fn patches(&self, group: usize, x: &[f32]) -> Vec<f32> {
        let pixels = self.pixels();
        let mut patches = vec![0.0; self.taps() * pixels];
        self.walk(group, |tap, to, from, len, step| {
            let to = &mut patches[tap * pixels + to..][..len];
            let source = x[from..].iter().step_by(step);
            to.iter_mut().zip(source).for_each(|(to, x)| *to = *x);
        });
        patches
    }
}

impl Kernel for Convolution {
    fn inputs(&self) -> usize {
        self.channels[0] * self.input[0] * self.input[1]
    }

    fn outputs(&self) -> usize {
        self.channels[1] * self.pixels()
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (pixels, taps) = (self.pixels(), self.taps());
        for (plane, bias) in y.chunks_exact_mut(pixels).zip(&self.bias) {
            plane.fill(*bias);
        }
        let own = self.channels[1] / self.groups;
        for group in 0..self.groups {
            let y = &mut y[group * own * pixels..][..own * pixels];
            let weights = &self.weights[group * own * taps..][..own * taps];
            if self.single() {
                self.walk(group, |tap, to, from, len, step| {
                    let source = x[from..].iter().step_by(step);
                    for (y, x) in y[to..to + len].iter_mut().zip(source) {
                        *y += weights[tap] * x;
                    }
                });
            } else {
                let patches = self.patches(group, x);
                let patches = matrix(&patches, taps, pixels);
                product(matrix(weights, own, taps), patches, y, 1.0);
            }
        }
    }

    fn backward(&self, _x: &[f32], gy: &[f32], gx: &mut [f32]) {
        let (pixels, taps) = (self.pixels(), self.taps());
        let own = self.channels[1] / self.groups;
        for group in 0..self.groups {
            let gy = &gy[group * own * pixels..][..own * pixels];
            let weights = &self.weights[group * own * taps..][..own * taps];
            let mut patches = Vec::new();
            if !self.single() {
                patches = vec![0.0; taps * pixels];
                let gy = matrix(gy, own, pixels);
                product(
                    matrix(weights, own, taps).reversed_axes(),
                    gy,
                    &mut patches,
                    0.0,
                );
            }
            self.walk(group, |tap, to, from, len, step| {
                let into = gx[from..].iter_mut().step_by(step);
                if patches.is_empty() {
                    for (gx, gy) in into.zip(&gy[to..to + len]) {
                        *gx += weights[tap] * gy;
                    }
                } else {
                    for (gx, patch) in into.zip(&patches[tap * pixels + to..][..len]) {
                        *gx += patch;
                    }
                }
            });
        }
    }
}

/// Products with a constant right matrix, with a summand for each column.
pub(super) struct Matrix {
    groups: usize,
    rows: usize,
    inner: usize,
    columns: usize,
    weights: Vec<f32>,
    bias: Vec<f32>,
}

impl Matrix {
    pub(super) fn new(matmul: &MatMul, weights: Vec<f32>, bias: Vec<f32>) -> Self {
        Self {
            groups: matmul.groups,
            rows: matmul.rows,
            inner: matmul.inner,
            columns: matmul.columns,
            weights,
            bias,
        }
    }

    fn weights(&self, group: usize) -> ArrayView2<'_, f32> {
        let each = self.inner * self.columns;
        matrix(
            &self.weights[group * each..][..each],
            self.inner,
            self.columns,
        )
    }
}

impl Kernel for Matrix {
    fn inputs(&self) -> usize {
        self.groups * self.rows * self.inner
    }

    fn outputs(&self) -> usize {
        self.groups * self.rows * self.columns
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        let (from, to) = (self.rows * self.inner, self.rows * self.columns);
        for group in 0..self.groups {
            let y = &mut y[group * to..][..to];
            for row in y.chunks_exact_mut(self.columns) {
                row.copy_from_slice(&self.bias[group * self.columns..][..self.columns]);
            }
            let x = matrix(&x[group * from..][..from], self.rows, self.inner);
            product(x, self.weights(group), y, 1.0);
        }
    }

    fn backward(&self, _x: &[f32], gy: &[f32], gx: &mut [f32]) {
        let (from, to) = (self.rows * self.inner, self.rows * self.columns);
        for group in 0..self.groups {
            let gy = matrix(&gy[group * to..][..to], self.rows, self.columns);
            let weights = self.weights(group).reversed_axes();
            product(gy, weights, &mut gx[group * from..][..from], 1.0);
        }
    }
}

/// An activation of each element.
pub(super) struct Unary(pub(super) Activation, pub(super) usize);

/// The value and the derivative.
fn activation(activation: Activation, x: f32) -> (f32, f32) {
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let between = |inside: bool, slope: f32| if inside { slope } else { 0.0 };
    match activation {
        Activation::Relu => (x.max(0.0), between(x > 0.0, 1.0)),
        Activation::LeakyRelu { slope } if x < 0.0 => (slope * x, slope),
        Activation::Clip { low, high } => (x.max(low).min(high), between(x > low && x < high, 1.0)),
        Activation::HardSigmoid { slope, offset } => {
            let y = slope * x + offset;
            (y.clamp(0.0, 1.0), between(y > 0.0 && y < 1.0, slope))
        }
        Activation::HardSwish => {
            let gate = (x / 6.0 + 0.5).clamp(0.0, 1.0);
            (x * gate, gate + between(x.abs() < 3.0, x / 6.0))
        }
        Activation::Sigmoid => {
            let y = sigmoid(x);
            (y, y * (1.0 - y))
        }
        Activation::Silu => {
            let gate = sigmoid(x);
            (x * gate, gate + x * gate * (1.0 - gate))
        }
        // The others are the identity, or not taken.
        _ => (x, 1.0),
    }
}

impl Kernel for Unary {
    fn inputs(&self) -> usize {
        self.1
    }

    fn outputs(&self) -> usize {
        self.1
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        for (x, y) in x.iter().zip(y) {
            *y = activation(self.0, *x).0;
        }
    }

    fn backward(&self, x: &[f32], gy: &[f32], gx: &mut [f32]) {
        for ((x, gy), gx) in x.iter().zip(gy).zip(gx) {
            *gx += activation(self.0, *x).1 * gy;
        }
    }
}

/// An operation of each element with a number of its own.
pub(super) struct Elementwise(pub(super) Binary, pub(super) Vec<f32>);

impl Elementwise {
    fn at(&self, x: f32, c: f32) -> (f32, f32) {
        let one = |taken: bool| if taken { 1.0 } else { 0.0 };
        match self.0 {
            Binary::Add => (x + c, 1.0),
            Binary::Sub => (x - c, 1.0),
            Binary::SubFrom => (c - x, -1.0),
            Binary::Mul => (x * c, c),
            Binary::Div => (x / c, c.recip()),
            Binary::Max => (x.max(c), one(x > c)),
            Binary::Min => (x.min(c), one(x < c)),
        }
    }
}

impl Kernel for Elementwise {
    fn inputs(&self) -> usize {
        self.1.len()
    }

    fn outputs(&self) -> usize {
        self.1.len()
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        for ((x, c), y) in x.iter().zip(&self.1).zip(y) {
            *y = self.at(*x, *c).0;
        }
    }

    fn backward(&self, x: &[f32], gy: &[f32], gx: &mut [f32]) {
        for (((x, c), gy), gx) in x.iter().zip(&self.1).zip(gy).zip(gx) {
            *gx += self.at(*x, *c).1 * gy;
        }
    }
}

/// The places of the input that window `at` covers along an axis.
fn covered(windows: &Windows, axis: usize, at: usize) -> std::ops::Range<usize> {
    let start = at * windows.stride[axis];
    let end = (start + windows.kernel[axis]).saturating_sub(windows.before[axis]);
    start.saturating_sub(windows.before[axis])..end.min(windows.input[axis])
}

/// Calls `each` with every output and the places that its window covers.
fn over(windows: &Windows, mut each: impl FnMut(usize, &mut dyn Iterator<Item = usize>)) {
    let [height, width] = windows.input;
    let mut output = 0;
    for plane in 0..windows.planes {
        for y in 0..windows.output[0] {
            for x in 0..windows.output[1] {
                let columns = covered(windows, 1, x);
                let rows = covered(windows, 0, y);
                let mut places = rows.flat_map(|row| {
                    let start = (plane * height + row) * width;
                    columns.clone().map(move |column| start + column)
                });
                each(output, &mut places);
                output += 1;
            }
        }
    }
}

/// Maxima over windows.
pub(super) struct Largest(pub(super) Windows);

impl Largest {
    fn pick(x: &[f32], places: &mut dyn Iterator<Item = usize>) -> Option<usize> {
        places.reduce(|best, place| if x[place] > x[best] { place } else { best })
    }
}

impl Kernel for Largest {
    fn inputs(&self) -> usize {
        self.0.planes * self.0.input[0] * self.0.input[1]
    }

    fn outputs(&self) -> usize {
        self.0.planes * self.0.output[0] * self.0.output[1]
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        over(&self.0, |output, places| {
            y[output] = Self::pick(x, places).map_or(f32::NEG_INFINITY, |place| x[place]);
        });
    }

    fn backward(&self, x: &[f32], gy: &[f32], gx: &mut [f32]) {
        over(&self.0, |output, places| {
            if let Some(place) = Self::pick(x, places) {
                gx[place] += gy[output];
            }
        });
    }
}

/// Sums over windows or rows, times a factor.
pub(super) struct Sums {
    windows: Windows,
    divisor: Divisor,
    factor: f32,
}

impl Sums {
    pub(super) fn windows(windows: Windows, divisor: Divisor) -> Self {
        Self {
            windows,
            divisor,
            factor: 1.0,
        }
    }

    pub(super) fn rows(elements: usize, cols: usize, factor: f32) -> Self {
        Self {
            windows: Windows {
                planes: elements / cols.max(1),
                input: [1, cols],
                output: [1, 1],
                kernel: [1, cols],
                stride: [1, 1],
                before: [0, 0],
            },
            divisor: Divisor::One,
            factor,
        }
    }

    fn share(&self, present: usize) -> f32 {
        let window = self.windows.kernel[0] * self.windows.kernel[1];
        self.factor
            / match self.divisor {
                Divisor::One => 1.0,
                Divisor::Window => window as f32,
                Divisor::Present => present.max(1) as f32,
            }
    }
}

impl Kernel for Sums {
    fn inputs(&self) -> usize {
        self.windows.planes * self.windows.input[0] * self.windows.input[1]
    }

    fn outputs(&self) -> usize {
        self.windows.planes * self.windows.output[0] * self.windows.output[1]
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        over(&self.windows, |output, places| {
            let (mut sum, mut present) = (0.0, 0);
            for place in places {
                sum += x[place];
                present += 1;
            }
            y[output] = sum * self.share(present);
        });
    }

    fn backward(&self, _x: &[f32], gy: &[f32], gx: &mut [f32]) {
        over(&self.windows, |output, places| {
            let places: Vec<usize> = places.collect();
            let share = self.share(places.len());
            for place in places {
                gx[place] += gy[output] * share;
            }
        });
    }
}

/// Elements moved, cut out or repeated.
pub(super) struct Gather {
    inputs: usize,
    places: Vec<u32>,
}

impl Gather {
    pub(super) fn new(inputs: usize, start: usize, axes: &[Axis]) -> Self {
        let mut places = vec![u32::try_from(start).unwrap_or(u32::MAX)];
        for axis in axes {
            let (len, stride) = (axis.len as u32, axis.stride as u32);
            let more = places
                .iter()
                .flat_map(|place| (0..len).map(move |at| place + at * stride));
            places = more.collect();
        }
        Self { inputs, places }
    }
}

impl Kernel for Gather {
    fn inputs(&self) -> usize {
        self.inputs
    }

    fn outputs(&self) -> usize {
        self.places.len()
    }

    fn forward(&self, x: &[f32], y: &mut [f32]) {
        for (place, y) in self.places.iter().zip(y) {
            *y = x[*place as usize];
        }
    }

    fn backward(&self, _x: &[f32], gy: &[f32], gx: &mut [f32]) {
        for (place, gy) in self.places.iter().zip(gy) {
            gx[*place as usize] += gy;
        }
    }
}
