//! Times the exact kernels, and tract's float ones, on the layers that `scripts/kernels.py` describes.
//!
//! `kernels layers.json [THREADS]` prints one JSON object for each layer and number of threads: seconds of the least
//! repetition of `exact` (words), `short` (inputs of 16 bits), and with one thread `tract`. With one thread that is
//! CPU time of the thread, with several wall time.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use larvatus_kernels::linear::{Conv, Linear, MatMul, Shape, ShortLinear, Weights};
use serde::Deserialize;
use tract_onnx::prelude::*;

/// A layer as the script describes it.
#[derive(Deserialize)]
struct Layer {
    name: String,
    /// The same layer in float, an ONNX file.
    onnx: String,
    /// Inputs that are computed together.
    batch: usize,
    conv: Option<ConvLayer>,
    matmul: Option<[usize; 3]>,
}

#[derive(Deserialize)]
struct ConvLayer {
    groups: usize,
    channels: [usize; 2],
    side: usize,
    kernel: usize,
    stride: usize,
    pad: usize,
}

impl Layer {
    fn shape(&self) -> Result<Shape> {
        let shape = match (&self.conv, self.matmul) {
            (Some(conv), None) => Shape::conv(Conv {
                groups: conv.groups,
                in_channels: conv.channels[0],
                out_channels: conv.channels[1],
                input: [conv.side; 2],
                kernel: [conv.kernel; 2],
                stride: [conv.stride; 2],
                dilation: [1; 2],
                pad_begin: [conv.pad; 2],
                pad_end: [conv.pad; 2],
            }),
            (None, Some([rows, inner, columns])) => Shape::matmul(MatMul {
                groups: 1,
                rows,
                inner,
                columns,
            }),
            _ => anyhow::bail!("{} is neither one thing nor the other", self.name),
        };
        Ok(shape?)
    }
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let path = args.next().context("kernels layers.json [THREADS]")?;
    let most: usize = args.next().map_or(Ok(1), |threads| threads.parse())?;
    let layers: Vec<Layer> = serde_json::from_reader(std::fs::File::open(&path)?)?;
    let beside = Path::new(&path).parent().unwrap_or_else(|| Path::new("."));
    let mut threads = vec![1];
    threads.extend((most > 1).then_some(most));
    for layer in &layers {
        let shape = layer.shape()?;
        let weights = weights(&shape);
        let linear = Linear::new(shape.clone(), &weights)?;
        let short = ShortLinear::new(shape.clone(), &weights)?;
        let float = float(&beside.join(&layer.onnx))?;
        for &threads in &threads {
            let pool = rayon(threads)?;
            let times = pool.install(|| measure(layer, threads, &linear, &short, &float))?;
            let [exact, short, tract] = times.map(|time| time.map(|time| time.as_secs_f64()));
            let row = serde_json::json!({
                "name": layer.name, "threads": threads, "exact": exact, "short": short, "tract": tract,
            });
            println!("{row}");
        }
    }
    Ok(())
}

fn measure(
    layer: &Layer,
    threads: usize,
    linear: &Linear,
    short: &ShortLinear,
    float: &Float,
) -> Result<[Option<Duration>; 3]> {
    let (inputs, outputs) = (linear.shape().inputs(), linear.shape().outputs());
    let word = |i: usize| (i as u32).wrapping_mul(0x9e37_79b9) >> 1;
    let x: Vec<u32> = (0..inputs * layer.batch).map(word).collect();
    let q: Vec<i16> = x.iter().map(|&word| (word >> 15) as i16).collect();
    let mut y = vec![0; outputs * layer.batch];
    let x: Vec<&[u32]> = x.chunks_exact(inputs).collect();
    let mut y: Vec<&mut [u32]> = y.chunks_exact_mut(outputs).collect();
    let exact = least(threads, || linear.apply_many(black_box(&x), &mut y));
    let short = (layer.batch == 1).then(|| least(threads, || short.apply(black_box(&q), y[0])));
    let mut tract = None;
    if threads == 1 {
        float.run()?;
        tract = Some(least(threads, || drop(black_box(float.run()))));
    }
    Ok([Some(exact), short, tract])
}

/// The least time of several repetitions, one right after the other.
fn least(threads: usize, mut work: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    for round in 0.. {
        best = best.min(time(threads, &mut work));
        if round >= 4 && start.elapsed() > Duration::from_millis(400) {
            break;
        }
    }
    best
}

/// tract's plan of the float layer.
struct Float {
    plan: Arc<TypedRunnableModel>,
    input: TValue,
}

impl Float {
    fn run(&self) -> TractResult<TVec<TValue>> {
        self.plan.run(tvec![self.input.clone()])
    }
}

fn float(path: &Path) -> Result<Float> {
    let model = onnx().model_for_path(path)?.into_optimized()?;
    let fact = model.input_fact(0)?.clone();
    let shape = fact.shape.as_concrete().context("fixed sizes")?.to_vec();
    let len = shape.iter().product::<usize>();
    let values: Vec<f32> = (0..len).map(|i| (i % 251) as f32 / 251.0).collect();
    let input = Tensor::from_shape(&shape, &values)?.into_tvalue();
    let plan = model.into_runnable()?;
    Ok(Float { plan, input })
}

fn rayon(threads: usize) -> Result<rayon::ThreadPool> {
    Ok(rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()?)
}

/// Weights as a trained layer has them: bell-shaped, the largest near 127.
fn weights(shape: &Shape) -> Weights {
    let mut state = 1u32;
    let mut byte = || {
        state = state.wrapping_mul(0x915f_77f5).wrapping_add(12345);
        (state >> 24) as i32 - 128
    };
    let mut weight = || ((0..4).map(|_| byte()).sum::<i32>() / 4) as i8;
    let plane: Vec<i8> = (0..shape.weights()).map(|_| weight()).collect();
    Weights::new(vec![plane], 0).expect("one plane")
}

/// CPU time of this thread where it works alone, wall time otherwise.
fn time(threads: usize, work: impl FnOnce()) -> Duration {
    let clock = if threads == 1 {
        rustix::time::ClockId::ThreadCPUTime
    } else {
        rustix::time::ClockId::Monotonic
    };
    let now = || {
        let time = rustix::time::clock_gettime(clock);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    };
    let start = now();
    work();
    now() - start
}
