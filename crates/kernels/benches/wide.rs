//! Full-width weights against eight-bit ones, one thread, same run.
//!
//! `cargo bench -p larvatus-kernels --bench wide [-- [--isa=NAME] [FILTER..]]` prints, for each layer of VGG16, ResNet-50 and
//! ViT-B/16, milliseconds with int8 weights ([`Linear`]), with the full-width weights of a share ([`WideLinear`]), with the
//! same cut into four planes of bytes for the int8 kernels, the ratios to int8, and sums over each network. Times are the
//! best of several repetitions, the three alternating, in CPU time of the thread where the system tells it.

use std::hint::black_box;
use std::time::{Duration, Instant};

use larvatus_kernels::isa::Isa;
use larvatus_kernels::linear::{
    Conv, Linear, MatMul, Shape, Share, Split, Weights, WideLinear, adjoint_of_share_with,
};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter: Vec<&String> = args.iter().filter(|arg| !arg.starts_with('-')).collect();
    let named = args.iter().find_map(|arg| arg.strip_prefix("--isa="));
    let isa = named.map_or_else(Isa::best, |name| {
        let mut available = Isa::available().into_iter();
        available
            .find(|isa| isa.name() == name)
            .expect("this CPU has it")
    });
    println!("{}, one thread; ms", isa.name());
    println!(
        "{:<28}{:>6}{:>10}{:>10}{:>10}{:>8}{:>8}",
        "layer", "times", "int8", "full", "4 planes", "full/8", "planes/8"
    );
    for (network, layers) in networks() {
        let mut totals = [0.0; 3];
        let mut whole = true;
        for (name, times, shape) in layers {
            let name = format!("{network} {name}");
            if !filter.is_empty() && !filter.iter().any(|part| name.contains(part.as_str())) {
                whole = false;
                continue;
            }
            let ms = row(isa, &shape);
            print(&name, times, ms);
            for (total, ms) in totals.iter_mut().zip(ms) {
                *total += ms * times as f64;
            }
        }
        if whole {
            print(&format!("{network} in all"), 1, totals);
        }
    }
    if filter.is_empty() || filter.iter().any(|part| part.as_str() == "setup") {
        setup(isa);
    }
}

fn print(name: &str, times: usize, [int8, full, planes]: [f64; 3]) {
    println!(
        "{name:<28}{times:>6}{int8:>10.3}{full:>10.3}{planes:>10.3}{:>8.2}{:>8.2}",
        full / int8,
        planes / int8
    );
}

/// Name, how often the network has it, shape.
type Layers = Vec<(String, usize, Shape)>;

fn networks() -> [(&'static str, Layers); 3] {
    [("vgg", vgg()), ("resnet", resnet()), ("vit", vit())]
}

fn vgg() -> Layers {
    let mut layers: Layers = [
        (1, [3, 64], 224),
        (1, [64, 64], 224),
        (1, [64, 128], 112),
        (1, [128, 128], 112),
        (1, [128, 256], 56),
        (2, [256, 256], 56),
        (1, [256, 512], 28),
        (2, [512, 512], 28),
        (3, [512, 512], 14),
    ]
    .map(|(times, channels, side)| conv(times, channels, side, 3, 1))
    .into();
    layers.extend(
        [[1, 25_088, 4096], [1, 4096, 4096], [1, 4096, 1000]].map(|sizes| product(1, sizes)),
    );
    layers
}

fn resnet() -> Layers {
    // Stage by stage: channels inside, channels outside, side, blocks.
    let stages = [
        (64, 256, 56, 3),
        (128, 512, 28, 4),
        (256, 1024, 14, 6),
        (512, 2048, 7, 3),
    ];
    let mut layers = vec![conv(1, [3, 64], 224, 7, 2)];
    let mut before = (64, 56);
    for (inside, outside, side, blocks) in stages {
        let (channels, from) = before;
        let stride = from / side;
        layers.push(conv(1, [channels, inside], from, 1, 1));
        layers.push(conv(1, [inside, inside], from, 3, stride));
        layers.push(conv(1, [channels, outside], from, 1, stride));
        layers.push(conv(blocks, [inside, outside], side, 1, 1));
        layers.push(conv(blocks - 1, [outside, inside], side, 1, 1));
        layers.push(conv(blocks - 1, [inside, inside], side, 3, 1));
        before = (outside, side);
    }
    layers.push(product(1, [1, 2048, 1000]));
    layers
}

fn vit() -> Layers {
    let (input, kernel, none) = ([224; 2], [16; 2], [0; 2]);
    let patches = Conv {
        groups: 1,
        in_channels: 3,
        out_channels: 768,
        input,
        kernel,
        stride: kernel,
        dilation: [1; 2],
        pad_begin: none,
        pad_end: none,
    };
    let patches = Shape::conv(patches).expect("valid");
    vec![
        ("16x16/16 3>768 224".into(), 1, patches),
        product(48, [197, 768, 768]),
        product(12, [197, 768, 3072]),
        product(12, [197, 3072, 768]),
        product(1, [1, 768, 1000]),
    ]
}

fn conv(
    times: usize,
    channels: [usize; 2],
    side: usize,
    kernel: usize,
    stride: usize,
) -> (String, usize, Shape) {
    let [in_channels, out_channels] = channels;
    let conv = Conv {
        groups: 1,
        in_channels,
        out_channels,
        input: [side; 2],
        kernel: [kernel; 2],
        stride: [stride; 2],
        dilation: [1; 2],
        pad_begin: [kernel / 2; 2],
        pad_end: [kernel / 2; 2],
    };
    let slash = if stride == 1 {
        String::new()
    } else {
        format!("/{stride}")
    };
    let name = format!("{kernel}x{kernel}{slash} {in_channels}>{out_channels} {side}");
    (name, times, Shape::conv(conv).expect("valid"))
}

fn product(times: usize, [rows, inner, columns]: [usize; 3]) -> (String, usize, Shape) {
    let shape = Shape::matmul(MatMul {
        groups: 1,
        rows,
        inner,
        columns,
    });
    let name = format!("{rows}x{inner}x{columns}");
    (name, times, shape.expect("valid"))
}

/// Milliseconds with int8 weights, full-width ones, and full-width ones in four planes.
fn row(isa: Isa, shape: &Shape) -> [f64; 3] {
    let share = Split::new([1; 32]).first(0, shape.weights());
    let int8 = Linear::with_isa(isa, shape.clone(), &weights(shape)).expect("weights fit");
    let full = WideLinear::with_isa(isa, shape.clone(), &share).expect("weights fit");
    let planes = Linear::with_isa(isa, shape.clone(), &planes(&share)).expect("weights fit");
    drop(share);
    let x = Split::new([2; 32]).first(1, shape.inputs());
    let mut y = [(); 3].map(|()| vec![0; shape.outputs()]);
    let mut best = [Duration::MAX; 3];
    let budget = Instant::now();
    for round in 0.. {
        let x = black_box(x.words());
        best[0] = best[0].min(time(|| int8.apply(x, &mut y[0])));
        best[1] = best[1].min(time(|| full.apply(x, &mut y[1])));
        best[2] = best[2].min(time(|| planes.apply(x, &mut y[2])));
        if round >= 3 && budget.elapsed() > Duration::from_millis(600) {
            break;
        }
    }
    assert_eq!(y[1], y[2], "both are exact");
    best.map(|time| time.as_secs_f64() * 1e3)
}

/// What it costs to split VGG16's largest layer, and the adjoint of a share.
fn setup(isa: Isa) {
    let (_, _, shape) = product(1, [1, 25_088, 4096]);
    let weights = weights(&shape);
    let count = weights.len() as f64;
    let split = Split::new([1; 32]);
    let each = |time: Duration| time.as_nanos() as f64 / count;
    let first = (0..3).map(|_| time(|| drop(split.first(0, weights.len()))));
    println!(
        "first share: {:.2} ns a weight",
        each(first.min().unwrap_or_default())
    );
    let second = (0..3).map(|_| time(|| drop(split.second(0, &weights))));
    println!(
        "second share: {:.2} ns a weight",
        each(second.min().unwrap_or_default())
    );
    let share = split.first(0, weights.len());
    for shape in [shape, conv(1, [512, 512], 14, 3, 1).2] {
        let (rows, cols) = shape.output_rows_cols();
        let share = if shape.weights() == share.words().len() {
            Share::new(share.words().to_vec()).expect("canonical")
        } else {
            split.first(1, shape.weights())
        };
        let v = split.first(2, rows + cols);
        let (outer, inner) = v.words().split_at(rows);
        let run = || drop(adjoint_of_share_with(isa, &shape, &share, outer, inner));
        let best = (0..3).map(|_| time(run)).min().unwrap_or_default();
        println!(
            "adjoint of a share, {shape:?}: {:.2} ms",
            best.as_secs_f64() * 1e3
        );
    }
}

/// `w = Σ plane_j·2^(8j)` with each plane in [−128, 127], for the representative in [−2³⁰, 2³⁰].
fn planes(share: &Share) -> Weights {
    let mut planes = [(); 4].map(|()| Vec::with_capacity(share.words().len()));
    for &word in share.words() {
        let mut rest = word as i32;
        if rest > 1 << 30 {
            rest -= i32::MAX;
        }
        for plane in &mut planes {
            let byte = rest as i8;
            plane.push(byte);
            rest = (rest - i32::from(byte)) >> 8;
        }
    }
    Weights::new(planes.into(), 8).expect("four planes")
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
