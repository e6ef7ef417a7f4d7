//! The trusted side's passes alone, on a million elements.

use std::time::Instant;

use anyhow::{Context, Result};
use larvatus_kernels::field::Fp;
use larvatus_kernels::fixed::{Bound, MaxAbs};
use larvatus_kernels::hide::{Activations, Folded, View, hide};
use larvatus_kernels::keystream::{Key, Purpose, Stream};
use larvatus_kernels::reveal::{Claim, Epilogue, Factors, RankOne, reveal};

use super::median;

const ROWS: usize = 1024;
const COLS: usize = 1024;
const RUNS: usize = 15;

/// Nanoseconds for one element, median over runs.
pub(super) struct Passes {
    /// The pad.
    pub(super) hide: f64,
    /// Two repetitions of a check whose vectors have two factors, mean of both ways.
    pub(super) check: f64,
    /// Two repetitions of one whose vectors have a word for each element, on the way out.
    pub(super) check_dense: f64,
}

pub(super) fn measure() -> Result<Passes> {
    let key = Key::new([7; 32]);
    let words = |ticket, len| {
        let mut words = vec![0; len];
        key.stream(ticket, 0, Purpose::Mask).fill(0, &mut words);
        words
    };
    let x: Vec<f32> = words(1, ROWS * COLS)
        .into_iter()
        .map(|word| word as f32 * f32::powi(2.0, -31) - 0.5)
        .collect();
    let bound = Bound::new(8000).context("a bound")?;
    let acts = Activations::new(&x, ROWS, COLS, &[16000.0], bound)?;
    let mask = key.stream(2, 0, Purpose::Mask);
    let folded = [3, 4].map(|ticket| Folded::RankOne {
        outer: words(ticket, ROWS),
        inner: words(ticket + 2, COLS),
    });
    let folds = [folded[0].view(), folded[1].view()];
    let mut out = vec![0; ROWS * COLS];
    let mut dots = [Fp::ZERO; 2];
    let mut sent = |mask: Option<&Stream<'_>>, folds: &[View<'_>]| {
        each(|| hide(&acts, mask, 0, folds, &mut out, &mut dots[..folds.len()]))
    };
    let plain = sent(None, &[]);
    let hidden = sent(Some(&mask), &[]);
    let hidden_and_checked = sent(Some(&mask), &folds);
    let dense = [11, 12].map(|ticket| Folded::Dense(words(ticket, ROWS * COLS)));
    let hidden_and_checked_dense = sent(Some(&mask), &[dense[0].view(), dense[1].view()]);

    let (answer, u) = (words(7, ROWS * COLS), words(8, ROWS * COLS));
    let claim = Claim::new(&answer, Some(&u), ROWS, COLS)?;
    let v = [9, 10].map(|ticket| RankOne {
        outer: words(ticket, ROWS),
        inner: words(ticket + 2, COLS),
    });
    let mut y = vec![0.0; ROWS * COLS];
    let mut largest = [MaxAbs::default()];
    let mut taken = |v: &[Factors<'_>]| {
        each(|| {
            drop(reveal(
                &claim,
                v,
                &Epilogue::default(),
                &mut y,
                &mut largest,
            ))
        })
    };
    let believed = taken(&[]);
    let checked = taken(&[v[0].factors(), v[1].factors()]);
    Ok(Passes {
        hide: (hidden - plain).max(0.0),
        check_dense: (hidden_and_checked_dense - hidden).max(0.0),
        check: ((hidden_and_checked - hidden).max(0.0) + (checked - believed).max(0.0)) / 2.0,
    })
}

/// Nanoseconds an element.
fn each(mut pass: impl FnMut()) -> f64 {
    pass();
    let runs = (0..RUNS).map(|_| {
        let started = Instant::now();
        pass();
        started.elapsed().as_secs_f64() * 1e9 / (ROWS * COLS) as f64
    });
    median(runs.collect())
}
