//! Milliseconds of the float operators that stay on the trusted side, beside a plain copy of their input in the same run.
//!
//! One thread; each row is the least and the median thread CPU time of one call on the same buffers. Arguments are names of
//! instruction sets; without any, the best is measured. `scripts/operators.py` measures ONNX Runtime on the same cases.

use std::hint::black_box;
use std::time::Duration;

use larvatus_kernels::activation::Activation;
use larvatus_kernels::isa::Isa;
use larvatus_kernels::local::attention::{
    Attention, Inputs, Products, Strides, attention_with, products_with,
};
use larvatus_kernels::local::chain::{Binary, Operand, Step, chain_with};
use larvatus_kernels::local::depthwise::depthwise_with;
use larvatus_kernels::local::norm::{LayerNorm, layer_norm_with};
use larvatus_kernels::local::pool::{Windows, max_pool_with, sum_rows_with, thin_with};
use larvatus_kernels::local::softmax::softmax_with;

fn main() {
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let chosen = |isa: &Isa| match named.is_empty() {
        true => *isa == Isa::best(),
        false => named.iter().any(|name| name == isa.name()),
    };
    for isa in Isa::available().into_iter().filter(chosen) {
        println!(
            "{}: milliseconds, least and median; a copy of the input",
            isa.name()
        );
        pools(isa);
        rows(isa);
        chains(isa);
        matrices(isa);
        depthwise(isa);
    }
}

fn pools(isa: Isa) {
    for (channels, side, kernel, before) in [
        (64, 224, 2, 0),
        (128, 112, 2, 0),
        (256, 56, 2, 0),
        (512, 28, 2, 0),
        (512, 14, 2, 0),
        (64, 112, 3, 1),
    ] {
        let windows = Windows {
            planes: channels,
            input: [side; 2],
            output: [side / 2; 2],
            kernel: [kernel; 2],
            stride: [2; 2],
            before: [before; 2],
        };
        let x = floats(channels * side * side);
        let mut y = vec![0.0; x.len() / 4];
        row(
            &format!("max pool {kernel}x{kernel}/2 {channels}@{side}"),
            &x,
            &mut |x| {
                max_pool_with(isa, &windows, x, &mut y).expect("lengths agree");
            },
        );
    }
    let x = floats(2048 * 49);
    let mut y = vec![0.0; 2048];
    row("global average 2048@7", &x, &mut |x| {
        sum_rows_with(isa, 49, 1.0 / 49.0, x, &mut y).expect("lengths agree");
    });
    let x = floats(256 * 56 * 56);
    let mut y = vec![0.0; x.len() / 4];
    row("every second pixel 256@56", &x, &mut |x| {
        thin_with(isa, [56; 2], [2; 2], x, &mut y).expect("lengths agree");
    });
}

fn rows(isa: Isa) {
    let x = floats(12 * 197 * 197);
    let mut y = x.clone();
    row("softmax 2364x197, copied first", &x, &mut |x| {
        y.copy_from_slice(x);
        softmax_with(isa, 197, &mut y).expect("whole rows");
    });
    let x = floats(197 * 768);
    let mut y = x.clone();
    let norm = LayerNorm {
        epsilon: 1e-6,
        gamma: Some(floats(768)),
        beta: Some(floats(768)),
    };
    row("layer norm 197x768", &x, &mut |x| {
        layer_norm_with(isa, &norm, 768, x, &mut y).expect("lengths agree");
    });
}

fn chains(isa: Isa) {
    let x = floats(64 * 3072);
    let mut y = x.clone();
    for activation in [
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Sigmoid,
        Activation::Silu,
        Activation::HardSwish,
    ] {
        row(
            &format!("{activation:?} 64x3072, copied first"),
            &x,
            &mut |x| {
                y.copy_from_slice(x);
                chain_with(isa, &[Step::Activation(activation)], &[], &mut y)
                    .expect("lengths agree");
            },
        );
    }
    let x = floats(256 * 56 * 56);
    let other = floats(x.len());
    let mut y = x.clone();
    let steps = [
        Step::Binary(
            Binary::Add,
            Operand::Runs {
                values: floats(256),
                run: 56 * 56,
            },
        ),
        Step::Binary(Binary::Add, Operand::Input(0)),
        Step::Binary(Binary::Max, Operand::Number(0.0)),
    ];
    for (name, steps) in [
        ("+ residual", &steps[1..2]),
        ("+ bias + residual, ReLU", &steps),
    ] {
        row(&format!("{name} 256@56, copied first"), &x, &mut |x| {
            y.copy_from_slice(x);
            chain_with(isa, steps, &[&other], &mut y).expect("lengths agree");
        });
    }
}

fn matrices(isa: Isa) {
    for (heads, tokens, depth) in [(12, 197, 64), (12, 128, 64), (12, 64, 32)] {
        let interleaved = Strides {
            matrix: depth,
            row: heads * depth,
            column: 1,
        };
        let shape = Attention {
            heads,
            queries: tokens,
            keys: tokens,
            depth,
            width: depth,
            q: interleaved,
            k: interleaved,
            v: interleaved,
            out: interleaved,
            scale: Some(0.125),
            mask: None,
        };
        let (q, k, v) = (
            floats(heads * tokens * depth),
            floats(heads * tokens * depth),
            floats(heads * tokens * depth),
        );
        let mut y = q.clone();
        row(
            &format!("attention {heads} heads, {tokens} tokens, {depth}"),
            &q,
            &mut |q| {
                let inputs = Inputs {
                    q,
                    k: &k,
                    v: &v,
                    mask: &[],
                };
                attention_with(isa, &shape, inputs, &mut y).expect("lengths agree");
            },
        );
        let mut scores = vec![0.0; heads * tokens * tokens];
        let products = Products {
            matrices: heads,
            rows: tokens,
            inner: depth,
            cols: tokens,
            a: interleaved,
            b: Strides {
                matrix: depth,
                row: 1,
                column: heads * depth,
            },
            out: Strides {
                matrix: tokens * tokens,
                row: tokens,
                column: 1,
            },
        };
        row(
            &format!("Q·Kt {heads} heads, {tokens} tokens, {depth}"),
            &q,
            &mut |q| {
                products_with(isa, &products, q, &k, &mut scores).expect("lengths agree");
            },
        );
        row("  the same by the gemm crate", &q, &mut |q| {
            for head in 0..heads {
                let (q, k) = (&q[head * depth..], &k[head * depth..]);
                let stride = (heads * depth) as isize;
                let out = &mut scores[head * tokens * tokens..(head + 1) * tokens * tokens];
                // SAFETY: the strides stay within the slices: rows of `stride`, `depth` columns, from the head's first.
                unsafe {
                    gemm::gemm(
                        tokens,
                        tokens,
                        depth,
                        out.as_mut_ptr(),
                        1,
                        tokens as isize,
                        false,
                        q.as_ptr(),
                        1,
                        stride,
                        k.as_ptr(),
                        stride,
                        1,
                        0.0_f32,
                        1.0,
                        false,
                        false,
                        false,
                        gemm::Parallelism::None,
                    );
                }
            }
        });
    }
}

fn depthwise(isa: Isa) {
    for (channels, side, kernel, stride) in [
        (32, 112, 3, 1),
        (96, 112, 3, 2),
        (144, 56, 3, 1),
        (512, 14, 3, 1),
        (960, 7, 3, 1),
        (240, 28, 5, 1),
        (240, 28, 5, 2),
    ] {
        let windows = Windows {
            planes: channels,
            input: [side; 2],
            output: [side / stride; 2],
            kernel: [kernel; 2],
            stride: [stride; 2],
            before: [kernel / 2; 2],
        };
        let x = floats(channels * side * side);
        let (filters, bias) = (floats(channels * kernel * kernel), floats(channels));
        let mut y = vec![0.0; x.len() / stride / stride];
        row(
            &format!("depthwise {kernel}x{kernel}/{stride} {channels}@{side}"),
            &x,
            &mut |x| {
                depthwise_with(isa, &windows, &filters, &bias, x, &mut y).expect("lengths agree");
            },
        );
    }
}

fn row(name: &str, x: &[f32], call: &mut dyn FnMut(&[f32])) {
    let mut copy = x.to_vec();
    let measure = |call: &mut dyn FnMut()| {
        let repetitions = (40_000_000 / x.len()).clamp(15, 400);
        let mut times: Vec<Duration> = (0..repetitions)
            .map(|_| {
                let start = cpu();
                call();
                cpu() - start
            })
            .collect();
        times.sort();
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        (millis(times[0]), millis(times[repetitions / 2]))
    };
    let (least, median) = measure(&mut || call(black_box(x)));
    let (plain, _) = measure(&mut || copy.copy_from_slice(black_box(x)));
    println!("{name:44} {least:8.4} {median:8.4} {plain:8.4}");
}

/// CPU time of this thread.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Numbers in (−1, 1).
fn floats(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}
