//! Nanoseconds an element of the trusted side's passes, beside a plain copy of as many bytes in the same run.
//!
//! One thread. Each row is the least and the median over repetitions of one call on the same buffers; 256 KB buffers
//! stay in cache, 64 MB ones do not. Arguments are names of instruction sets; without any, the best is measured.

use std::hint::black_box;
use std::time::{Duration, Instant};

use larvatus_kernels::activation::{Activation, activate_with};
use larvatus_kernels::field::{Fp, P};
use larvatus_kernels::fixed::{Bound, MaxAbs, max_abs_with};
use larvatus_kernels::hide::{Activations, Folded, View, hide_with, quantise_with};
use larvatus_kernels::isa::Isa;
use larvatus_kernels::keystream::{Key, Purpose};
use larvatus_kernels::reveal::{
    Bias, Claim, Epilogue, Factors, RankOne, check_sums_with, reveal_with,
};

fn main() {
    let named: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    let chosen = |isa: &Isa| {
        if named.is_empty() {
            *isa == Isa::best()
        } else {
            named.iter().any(|name| name == isa.name())
        }
    };
    for isa in Isa::available().into_iter().filter(chosen) {
        println!("{}: ns an element, least and median", isa.name());
        // 256 KB, 7x7 maps of 2048 channels, and 64 MB.
        for (rows, cols) in [(64, 1024), (2048, 49), (4096, 4096)] {
            measure(isa, rows, cols);
        }
    }
}

fn measure(isa: Isa, rows: usize, cols: usize) {
    let len = rows * cols;
    let key = Key::new([5; 32]);
    let words = |ticket, len| {
        let mut words = vec![0; len];
        key.stream(ticket, 0, Purpose::Mask).fill(0, &mut words);
        words
    };
    let floats = |ticket, len: usize| -> Vec<f32> {
        words(ticket, len)
            .into_iter()
            .map(|word| word as f32 / P as f32 - 0.5)
            .collect()
    };
    let row = |name: &str, call: &mut dyn FnMut()| {
        let repetitions = (20_000_000 / len).clamp(9, 300);
        let mut times: Vec<Duration> = (0..repetitions)
            .map(|_| {
                let start = Instant::now();
                call();
                start.elapsed()
            })
            .collect();
        times.sort();
        let each = |time: Duration| time.as_secs_f64() * 1e9 / len as f64;
        let (least, median) = (each(times[0]), each(times[repetitions / 2]));
        println!("{:>4}x{cols:<5} {name:44} {least:6.3} {median:6.3}", rows);
    };

    let x = floats(1, len);
    let mut out = vec![0; len];
    row("copy", &mut || {
        black_box(&mut out[..]).copy_from_slice(bytemuck::cast_slice(black_box(&x)))
    });
    row("maximum", &mut || {
        _ = black_box(max_abs_with(isa, black_box(&x)))
    });

    let stream = key.stream(2, 0, Purpose::Mask);
    row("keystream", &mut || {
        stream.fill_with(isa, 0, black_box(&mut out))
    });
    // What is unsealed is canonical, so the next call takes it again.
    row("unseal", &mut || {
        _ = stream.unseal_with(isa, 0, black_box(&mut out))
    });

    let bound = Bound::new(8000).expect("below the largest");
    let acts = Activations::new(&x, rows, cols, &[16000.0], bound).expect("lengths agree");
    let mut q = vec![0; len];
    row("quantise", &mut || {
        quantise_with(isa, black_box(&acts), &mut q)
    });
    let dense = [3, 4].map(|ticket| Folded::Dense(words(ticket, len)));
    let rank_one = [5, 6].map(|ticket| Folded::RankOne {
        outer: words(ticket, rows),
        inner: words(ticket + 2, cols),
    });
    let mut dots = [Fp::ZERO; 2];
    let mut hide = |name: &str, mask, folds: &[View<'_>]| {
        row(name, &mut || {
            hide_with(
                isa,
                black_box(&acts),
                mask,
                0,
                folds,
                &mut out,
                &mut dots[..folds.len()],
            );
        });
    };
    hide("hide: no mask, no check", None, &[]);
    hide("hide: mask, no check", Some(&stream), &[]);
    hide(
        "hide: mask, 2 dense vectors",
        Some(&stream),
        &[dense[0].view(), dense[1].view()],
    );
    hide(
        "hide: mask, 2 rank-one vectors",
        Some(&stream),
        &[rank_one[0].view(), rank_one[1].view()],
    );

    let (answer, u) = (words(9, len), words(10, len));
    let claim = Claim::new(&answer, Some(&u), rows, cols).expect("lengths agree");
    let v = [11, 12].map(|ticket| RankOne {
        outer: words(ticket, rows),
        inner: words(ticket + 2, cols),
    });
    let v = [v[0].factors(), v[1].factors()];
    // Outputs within ±4.
    let (bias, residual) = (floats(13, rows), floats(14, len));
    let factor = vec![4.0 / P as f32; rows];
    let plain = Epilogue {
        factor_row: Some(&factor),
        bias: Bias::PerRow(&bias),
        pre: Activation::Relu,
        ..Epilogue::default()
    };
    let added = Epilogue {
        pre: Activation::None,
        residual: Some(&residual),
        post: Activation::Relu,
        ..plain
    };
    let gelu = Epilogue {
        pre: Activation::Gelu,
        ..plain
    };
    let mut y = vec![0.0; len];
    let mut maxima = vec![MaxAbs::default(); rows];
    let mut reveal = |name: &str, v: &[Factors<'_>], epilogue, maxima: &mut [MaxAbs]| {
        row(name, &mut || {
            drop(black_box(reveal_with(
                isa,
                black_box(&claim),
                v,
                epilogue,
                &mut y,
                maxima,
            )))
        });
    };
    reveal(
        "reveal: no check, scale, bias, ReLU",
        &[],
        &plain,
        &mut maxima[..1],
    );
    reveal(
        "reveal: 2 vectors, scale, bias, ReLU",
        &v,
        &plain,
        &mut maxima[..1],
    );
    reveal("reveal: the same, a maximum a row", &v, &plain, &mut maxima);
    reveal(
        "reveal: 2 vectors, scale, bias, + res, ReLU",
        &v,
        &added,
        &mut maxima[..1],
    );
    reveal(
        "reveal: 2 vectors, scale, bias, GELU",
        &v,
        &gelu,
        &mut maxima[..1],
    );
    row("sums alone: 2 vectors", &mut || {
        drop(black_box(check_sums_with(isa, black_box(&claim), &v)))
    });
    row("copy, then GELU in place", &mut || {
        y.copy_from_slice(&x);
        activate_with(isa, Activation::Gelu, black_box(&mut y));
    });
}
