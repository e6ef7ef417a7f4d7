//! Exact layers against a float product of the same size, one thread, same run.
//!
//! `cargo bench -p larvatus-kernels --bench linear [-- [--isa=NAME] FILTER..]` prints, for each layer, 2·multiplications per
//! nanosecond of the exact path (words in, canonical words out, packing of x and reduction included), the same
//! for the crate `gemm` in f32 (which for a convolution gets its im2col matrix for free), and their ratio.
//! Each figure is the best of several repetitions, the two alternating, in CPU time of the thread where the
//! system tells it: other programs then disturb caches and memory only.

use std::hint::black_box;
use std::time::{Duration, Instant};

use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{Conv, Linear, MatMul, Shape, Weights, adjoint_with};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let named = args.iter().find_map(|arg| arg.strip_prefix("--isa="));
    let available = Isa::available();
    let isa = match named {
        Some(name) => available
            .into_iter()
            .find(|isa| isa.name() == name)
            .expect("this CPU has it"),
        None => Isa::best(),
    };
    println!(
        "exact {}, float gemm 0.19 f32 with x86-v4, one thread",
        isa.name()
    );
    println!(
        "{:<34}{:>9}{:>12}{:>12}{:>8}",
        "layer", "ms", "exact GOP/s", "float GOP/s", "ratio"
    );
    for (name, shape) in layers() {
        if filter.is_empty() || filter.iter().any(|part| name.contains(part.as_str())) {
            row(isa, name, &shape);
        }
    }
    if filter.is_empty() || filter.iter().any(|part| part.as_str() == "adjoint") {
        adjoints(isa);
    }
}

fn layers() -> Vec<(&'static str, Shape)> {
    let matmul = |rows, inner, columns| {
        Shape::matmul(MatMul {
            groups: 1,
            rows,
            inner,
            columns,
        })
        .expect("valid")
    };
    vec![
        ("matmul 512x512x512", matmul(512, 512, 512)),
        ("matmul 197x768x3072", matmul(197, 768, 3072)),
        ("matmul 197x3072x768", matmul(197, 3072, 768)),
        ("matmul 128x768x768", matmul(128, 768, 768)),
        ("matmul 1x25088x4096", matmul(1, 25_088, 4096)),
        ("vgg 3x3 3>64 224", conv(1, [3, 64], 224, 3, 1)),
        ("vgg 3x3 64>64 224", conv(1, [64, 64], 224, 3, 1)),
        ("vgg 3x3 256>256 56", conv(1, [256, 256], 56, 3, 1)),
        ("vgg 3x3 512>512 14", conv(1, [512, 512], 14, 3, 1)),
        ("resnet 7x7/2 3>64 224", conv(1, [3, 64], 224, 7, 2)),
        ("resnet 1x1 64>256 56", conv(1, [64, 256], 56, 1, 1)),
        ("resnet 1x1 256>64 56", conv(1, [256, 64], 56, 1, 1)),
        ("resnet 3x3 128>128 28", conv(1, [128, 128], 28, 3, 1)),
        ("resnet 3x3/2 128>128 56", conv(1, [128, 128], 56, 3, 2)),
        ("resnet 1x1 1024>256 14", conv(1, [1024, 256], 14, 1, 1)),
        ("resnet 3x3 512>512 7", conv(1, [512, 512], 7, 3, 1)),
        ("resnet 1x1 2048>512 7", conv(1, [2048, 512], 7, 1, 1)),
        ("resnet 1x1 512>2048 7", conv(1, [512, 2048], 7, 1, 1)),
        ("vit 16x16/16 3>768 224", patches()),
        ("depthwise 3x3 32 112", conv(32, [32, 32], 112, 3, 1)),
        ("depthwise 3x3/2 96 112", conv(96, [96, 96], 112, 3, 2)),
        ("depthwise 3x3 512 14", conv(512, [512, 512], 14, 3, 1)),
        ("depthwise 3x3 960 7", conv(960, [960, 960], 7, 3, 1)),
        ("depthwise 5x5 240 28", conv(240, [240, 240], 28, 5, 1)),
    ]
}

fn conv(groups: usize, channels: [usize; 2], side: usize, kernel: usize, stride: usize) -> Shape {
    let [in_channels, out_channels] = channels;
    let (kernel, pad) = ([kernel; 2], [kernel / 2; 2]);
    let (input, stride, dilation, pad_begin, pad_end) = ([side; 2], [stride; 2], [1; 2], pad, pad);
    let conv = Conv {
        groups,
        in_channels,
        out_channels,
        input,
        kernel,
        stride,
        dilation,
        pad_begin,
        pad_end,
    };
    Shape::conv(conv).expect("valid")
}

fn patches() -> Shape {
    let (input, kernel, none) = ([224; 2], [16; 2], [0; 2]);
    let (groups, in_channels, out_channels) = (1, 3, 768);
    let (stride, dilation, pad_begin, pad_end) = ([16; 2], [1; 2], none, none);
    let conv = Conv {
        groups,
        in_channels,
        out_channels,
        input,
        kernel,
        stride,
        dilation,
        pad_begin,
        pad_end,
    };
    Shape::conv(conv).expect("valid")
}

fn row(isa: Isa, name: &str, shape: &Shape) {
    let weights = weights(shape);
    let linear = Linear::with_isa(isa, shape.clone(), &weights).expect("weights fit");
    let x = words(shape.inputs());
    let mut y = vec![0; shape.outputs()];
    let depthwise = matches!(shape, Shape::Conv(conv) if conv.groups > 1);
    let mut float = (!depthwise).then(|| Float::new(shape));
    let budget = Instant::now();
    let (mut exact, mut baseline) = (Duration::MAX, Duration::MAX);
    for round in 0.. {
        exact = exact.min(time(|| linear.apply(black_box(&x), &mut y)));
        if let Some(float) = &mut float {
            baseline = baseline.min(time(|| float.multiply()));
        }
        if round >= 3 && budget.elapsed() > Duration::from_millis(600) {
            break;
        }
    }
    let rate = |time: Duration| 2.0 * shape.macs() as f64 / time.as_nanos() as f64;
    let ms = exact.as_secs_f64() * 1e3;
    if depthwise {
        println!(
            "{name:<34}{ms:>9.3}{:>12.1}{:>12}{:>8}",
            rate(exact),
            "-",
            "-"
        );
    } else {
        let ratio = rate(exact) / rate(baseline);
        println!(
            "{name:<34}{ms:>9.3}{:>12.1}{:>12.1}{ratio:>8.2}",
            rate(exact),
            rate(baseline)
        );
    }
    black_box(&y);
}

/// A product of floats with the sizes of a layer.
struct Float {
    sizes: [usize; 3],
    left: Vec<f32>,
    right: Vec<f32>,
    product: Vec<f32>,
}

impl Float {
    fn new(shape: &Shape) -> Self {
        let (rows, columns) = shape.output_rows_cols();
        let inner = shape.taps();
        let fill = |len| (0..len).map(|i| (i % 251) as f32).collect();
        let (left, right, product) = (
            fill(rows * inner),
            fill(inner * columns),
            fill(rows * columns),
        );
        Self {
            sizes: [rows, inner, columns],
            left,
            right,
            product,
        }
    }

    fn multiply(&mut self) {
        let [rows, inner, columns] = self.sizes;
        // SAFETY: the three row-major matrices have the sizes that are passed.
        unsafe {
            gemm::gemm(
                rows,
                columns,
                inner,
                self.product.as_mut_ptr(),
                1,
                columns as isize,
                false,
                self.left.as_ptr(),
                1,
                inner as isize,
                self.right.as_ptr(),
                1,
                columns as isize,
                0.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::None,
            );
        }
        black_box(&self.product);
    }
}

/// The transposed vectors of whole networks, one repetition.
fn adjoints(isa: Isa) {
    let vgg = [
        ([3, 64], 224),
        ([64, 64], 224),
        ([64, 128], 112),
        ([128, 128], 112),
        ([128, 256], 56),
        ([256, 256], 56),
        ([256, 256], 56),
        ([256, 512], 28),
        ([512, 512], 28),
        ([512, 512], 28),
        ([512, 512], 14),
        ([512, 512], 14),
        ([512, 512], 14),
    ];
    let mut shapes: Vec<Shape> = vgg
        .map(|(channels, side)| conv(1, channels, side, 3, 1))
        .into();
    for (inner, columns) in [(25_088, 4096), (4096, 4096), (4096, 1000)] {
        shapes.push(
            Shape::matmul(MatMul {
                groups: 1,
                rows: 1,
                inner,
                columns,
            })
            .expect("valid"),
        );
    }
    let mut total = Duration::ZERO;
    for shape in &shapes {
        let weights = weights(shape);
        let (rows, cols) = shape.output_rows_cols();
        let (outer, inner) = (words(rows), words(cols));
        let run =
            || black_box(adjoint_with(isa, shape, &weights, &outer, &inner).expect("weights fit"));
        total += (0..3)
            .map(|_| time(|| drop(run())))
            .min()
            .unwrap_or_default();
    }
    println!(
        "adjoint of VGG16, one repetition: {:.1} ms",
        total.as_secs_f64() * 1e3
    );
}

fn time(work: impl FnOnce()) -> Duration {
    let start = now();
    work();
    now() - start
}

#[cfg(unix)]
fn now() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(unix))]
fn now() -> Duration {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed()
}

fn words(count: usize) -> Vec<u32> {
    (0..count as u32)
        .map(|i| i.wrapping_mul(0x9e37_79b9) >> 1)
        .collect()
}

/// Weights as a trained layer has them: bell-shaped, the largest near 127.
fn weights(shape: &Shape) -> Weights {
    let word =
        |i: usize| (i as u32).wrapping_mul(0x9e37_79b9) ^ (i as u32).wrapping_mul(0x85eb_ca6b) >> 7;
    let byte =
        |word: u32, at: u32| (word.wrapping_mul(0xc2b2_ae35) >> (8 * at) & 0xff) as i32 - 128;
    let plane: Vec<i8> = (0..shape.weights())
        .map(|i| ((0..4).map(|at| byte(word(i), at)).sum::<i32>() / 4) as i8)
        .collect();
    Weights::new(vec![plane], 0).expect("one plane")
}
