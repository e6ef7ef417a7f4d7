//! What checking a layer costs beside computing it, on the shapes of Slalom's micro-benchmark (ICLR 2019, §4.3).
//!
//! `cargo bench -p larvatus-kernels --bench verify`, one thread, thread CPU time, the median of several rounds in which the
//! three take turns. *Compute* is the float product of the crate `gemm` with AVX-512, which gets the im2col matrix of
//! a convolution for nothing; depthwise convolutions are our exact ones. *Check* quantises the input, takes the sums
//! that the check expects and those of the answer (two repetitions); *with preprocessing* a = Lᵀv is there already,
//! *fresh* it is computed for this one call, as it is where a secret must serve once.

use std::hint::black_box;
use std::time::Duration;

use larvatus_kernels::field::{Fp, P};
use larvatus_kernels::fixed::Bound;
use larvatus_kernels::hide::{Activations, Folded, View, hide};
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_kernels::linear::{Adjoint, Conv, Linear, MatMul, Shape, Weights, adjoint};
use larvatus_kernels::reveal::{Claim, Factors, RankOne, check_sums};

const ROUNDS: usize = 9;

fn main() {
    println!(
        "{:<28}{:>12}{:>12}{:>12}{:>16}{:>10}",
        "layer", "compute ms", "check ms", "fresh ms", "compute/check", "/fresh"
    );
    for size in [256, 512, 1024, 2048, 4096] {
        let product = MatMul {
            groups: 1,
            rows: size,
            inner: size,
            columns: size,
        };
        let shape = Shape::matmul(product).expect("valid");
        row(&format!("dense {size}, batch {size}"), &[shape]);
    }
    for (side, channels) in [(224, 64), (112, 128), (56, 256), (28, 512), (14, 512)] {
        let name = format!("3×3 {channels}→{channels} @{side}");
        row(&name, &[conv(1, channels, side, 3)]);
    }
    for (side, channels) in [(112, 32), (56, 128), (28, 256), (14, 512)] {
        let parts = [
            conv(channels, channels, side, 3),
            conv(1, channels, side, 1),
        ];
        row(&format!("separable {channels} @{side}"), &parts);
    }
}

fn conv(groups: usize, channels: usize, side: usize, kernel: usize) -> Shape {
    Shape::conv(Conv {
        groups,
        in_channels: channels,
        out_channels: channels,
        input: [side, side],
        kernel: [kernel, kernel],
        stride: [1, 1],
        dilation: [1, 1],
        pad_begin: [kernel / 2; 2],
        pad_end: [kernel / 2; 2],
    })
    .expect("valid")
}

/// One layer, or several one after the other.
fn row(name: &str, shapes: &[Shape]) {
    let mut layers: Vec<Layer> = shapes.iter().map(Layer::new).collect();
    let mut times = [const { Vec::new() }; 3];
    for round in 0..=ROUNDS {
        let mut sums = [Duration::ZERO; 3];
        for layer in &mut layers {
            sums[0] += timed(|| layer.compute());
            let a = std::mem::take(&mut layer.a);
            sums[1] += timed(|| layer.check(&a));
            sums[2] += timed(|| {
                let fresh = layer.preprocess();
                layer.check(&fresh);
            });
            layer.a = a;
        }
        // The first round warms up.
        if round > 0 {
            for (times, sum) in times.iter_mut().zip(sums) {
                times.push(sum.as_secs_f64() * 1e3);
            }
        }
    }
    let [compute, check, fresh] = times.map(|mut times| {
        times.sort_by(f64::total_cmp);
        times[ROUNDS / 2]
    });
    println!(
        "{name:<28}{compute:>12.3}{check:>12.3}{fresh:>12.3}{:>16.1}{:>10.1}",
        compute / check,
        compute / fresh
    );
}

struct Layer {
    shape: Shape,
    weights: Weights,
    linear: Linear,
    x: Vec<f32>,
    /// The input in integers, and the honest answer to it.
    words: Vec<u32>,
    y: Vec<u32>,
    v: Vec<RankOne>,
    a: Vec<Folded>,
    float: Option<Float>,
}

/// A float product of the layer's size.
struct Float {
    /// Rows, terms, columns.
    size: [usize; 3],
    left: Vec<f32>,
    right: Vec<f32>,
    result: Vec<f32>,
}

impl Layer {
    fn new(shape: &Shape) -> Self {
        let key = Key::new([7; 32]);
        let draw = |ticket, count| {
            let mut words = vec![0; count];
            key.stream(ticket, 0, Purpose::Mask).fill(0, &mut words);
            words
        };
        let weight = |word: u32| (word % 255) as i16 - 127;
        let plane: Vec<i8> = draw(1, shape.weights())
            .into_iter()
            .map(|word| weight(word) as i8)
            .collect();
        let weights = Weights::new(vec![plane], 0).expect("one plane");
        let linear = Linear::new(shape.clone(), &weights).expect("weights fit");
        let (rows, cols) = shape.output_rows_cols();
        let vector = |ticket: u64| RankOne {
            outer: draw(2 * ticket, rows),
            inner: draw(2 * ticket + 1, cols),
        };
        let size = match shape {
            Shape::MatMul(m) => Some([m.rows, m.inner, m.columns]),
            Shape::Conv(c) if c.groups == 1 => {
                let taps = c.in_channels * c.kernel.iter().product::<usize>();
                Some([c.out_channels, taps, cols])
            }
            Shape::Conv(_) => None,
        };
        let mut layer = Self {
            x: draw(2, shape.inputs())
                .into_iter()
                .map(|word| word as f32 / P as f32 - 0.5)
                .collect(),
            words: vec![0; shape.inputs()],
            y: vec![0; shape.outputs()],
            v: vec![vector(3), vector(4)],
            a: Vec::new(),
            float: size.map(|[m, k, n]| Float {
                size: [m, k, n],
                left: vec![0.5; m * k],
                right: vec![0.25; k * n],
                result: vec![0.0; m * n],
            }),
            shape: shape.clone(),
            weights,
            linear,
        };
        layer.sums(&[]);
        layer.linear.apply(&layer.words, &mut layer.y);
        layer.a = layer.preprocess();
        layer
    }

    /// a = Lᵀv for each repetition.
    fn preprocess(&self) -> Vec<Folded> {
        let fold = |v: &RankOne| {
            let a = adjoint(&self.shape, &self.weights, &v.outer, &v.inner);
            match a.expect("weights fit") {
                Adjoint::Dense(a) => Folded::Dense(a),
                Adjoint::RankOne { outer, inner } => Folded::RankOne { outer, inner },
            }
        };
        self.v.iter().map(fold).collect()
    }

    fn compute(&mut self) {
        let Some(Float {
            size: [m, k, n],
            left,
            right,
            result,
        }) = &mut self.float
        else {
            self.linear.apply(black_box(&self.words), &mut self.y);
            return;
        };
        // SAFETY: all three are row-major and as long as their sizes say.
        unsafe {
            gemm::gemm(
                *m,
                *n,
                *k,
                result.as_mut_ptr(),
                1,
                *n as isize,
                false,
                left.as_ptr(),
                1,
                *k as isize,
                right.as_ptr(),
                1,
                *n as isize,
                0.0_f32,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        black_box(result);
    }

    /// Quantises the input and takes the sums that the check expects.
    fn sums(&mut self, a: &[Folded]) -> Vec<Fp> {
        let (rows, cols) = self.shape.input_rows_cols();
        let bound = Bound::new(1000).expect("below the largest");
        let inverse = [2000.0];
        let acts = Activations::new(&self.x, rows, cols, &inverse, bound).expect("lengths agree");
        let views: Vec<View<'_>> = a.iter().map(Folded::view).collect();
        let mut dots = vec![Fp::ZERO; views.len()];
        hide(&acts, None, 0, &views, &mut self.words, &mut dots);
        dots
    }

    fn check(&mut self, a: &[Folded]) {
        let expected = self.sums(a);
        let (rows, cols) = self.shape.output_rows_cols();
        let claim = Claim::new(&self.y, None, rows, cols).expect("lengths agree");
        let v: Vec<Factors<'_>> = self.v.iter().map(RankOne::factors).collect();
        assert_eq!(check_sums(&claim, &v).dots, expected, "an honest answer");
    }
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = thread_cpu();
    work();
    thread_cpu() - start
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanos) = (time.tv_sec as u64, time.tv_nsec as u32);
    Duration::new(seconds, nanos)
}
