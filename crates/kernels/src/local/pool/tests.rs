use super::{Divisor, Windows, max_pool_with, sum_pool_with, sum_rows_with, thin_with};
use crate::isa::Isa;
use crate::testing::{LENGTHS, Random, WindowCase, windows};

const CASES: [WindowCase; 8] = [
    ([8, 8], [2, 2], [2, 2], [0, 0], [0, 0]),
    ([7, 9], [2, 2], [2, 2], [0, 0], [1, 1]),
    ([112, 112], [3, 3], [2, 2], [1, 1], [1, 1]),
    ([5, 70], [3, 3], [1, 1], [1, 1], [1, 1]),
    ([1, 33], [1, 5], [1, 2], [0, 2], [0, 2]),
    ([13, 13], [5, 4], [3, 3], [2, 1], [0, 2]),
    ([4, 4], [4, 4], [1, 1], [0, 0], [0, 0]),
    ([3, 40], [2, 3], [1, 4], [1, 2], [0, 0]),
];

#[test]
fn every_instruction_set_gives_the_same_bits_and_close_to_exact_ones() {
    let mut random = Random::new(61);
    for case in CASES {
        let w = windows(3, case);
        let mut x = random.floats(3 * w.input[0] * w.input[1]);
        x[1] = f32::NAN;
        let finite: Vec<f32> = x
            .iter()
            .map(|x| if x.is_nan() { 0.5 } else { *x })
            .collect();
        for isa in Isa::available() {
            for divisor in [
                None,
                Some(Divisor::One),
                Some(Divisor::Window),
                Some(Divisor::Present),
            ] {
                let run = |isa| {
                    let mut y = vec![0.0; 3 * w.output[0] * w.output[1]];
                    match divisor {
                        None => max_pool_with(isa, &w, &x, &mut y),
                        Some(divisor) => sum_pool_with(isa, &w, divisor, &finite, &mut y),
                    }
                    .expect("lengths agree");
                    y
                };
                let (expected, y) = (run(Isa::Scalar), run(isa));
                let same = y
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{} {case:?} {divisor:?}", isa.name());
                for (index, y) in y.into_iter().enumerate() {
                    close(
                        &w,
                        divisor,
                        if divisor.is_none() { &x } else { &finite },
                        index,
                        y,
                    );
                }
            }
        }
    }
}

/// Holds one result against the definition.
fn close(w: &Windows, divisor: Option<Divisor>, x: &[f32], index: usize, y: f32) {
    let (plane, i, j) = (
        index / w.output[1] / w.output[0],
        index / w.output[1] % w.output[0],
        index % w.output[1],
    );
    let mut inside = Vec::new();
    for r in 0..w.kernel[0] {
        for c in 0..w.kernel[1] {
            let row = (i * w.stride[0] + r).checked_sub(w.before[0]);
            let column = (j * w.stride[1] + c).checked_sub(w.before[1]);
            if let (Some(row), Some(column)) = (row, column)
                && row < w.input[0]
                && column < w.input[1]
            {
                inside.push(x[(plane * w.input[0] + row) * w.input[1] + column]);
            }
        }
    }
    let Some(divisor) = divisor else {
        let largest = inside.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(y, largest, "{w:?} {index}");
        return;
    };
    let sum: f64 = inside.iter().map(|x| f64::from(*x)).sum();
    let size: f64 = inside.iter().map(|x| f64::from(x.abs())).sum();
    let divisor = match divisor {
        Divisor::One => 1,
        Divisor::Window => w.kernel[0] * w.kernel[1],
        Divisor::Present => inside.len(),
    } as f64;
    let allowed =
        (w.kernel[0] + w.kernel[1] + 1) as f64 * f64::from(f32::EPSILON) / 2.0 * size / divisor;
    assert!(
        (f64::from(y) - sum / divisor).abs() <= allowed,
        "{w:?} {index} {y} {}",
        sum / divisor
    );
}

#[test]
fn sums_of_rows_are_the_same_on_every_instruction_set_and_close_to_exact() {
    let mut random = Random::new(62);
    for cols in LENGTHS {
        let x = random.floats(5 * cols);
        let mut expected = [0.0; 5];
        sum_rows_with(Isa::Scalar, cols, 0.1, &x, &mut expected).expect("lengths agree");
        for isa in Isa::available() {
            let mut y = [1.0; 5];
            sum_rows_with(isa, cols, 0.1, &x, &mut y).expect("lengths agree");
            assert_eq!(y, expected, "{} {cols}", isa.name());
        }
        for (i, y) in expected.into_iter().enumerate() {
            let row = &x[i * cols..(i + 1) * cols];
            let exact: f64 = row.iter().map(|x| f64::from(*x)).sum();
            let size: f64 = row.iter().map(|x| f64::from(x.abs())).sum();
            let allowed = (cols as f64 / 32.0 + 7.0) * f64::from(f32::EPSILON) / 2.0 * size * 0.1;
            assert!(
                (f64::from(y) - exact * f64::from(0.1_f32)).abs() <= allowed,
                "{cols}"
            );
        }
    }
}

#[test]
fn thinning_takes_every_nth_pixel() {
    let mut random = Random::new(63);
    for (input, stride) in [
        ([56, 56], [2, 2]),
        ([7, 33], [1, 2]),
        ([5, 31], [3, 2]),
        ([9, 10], [2, 3]),
        ([1, 1], [2, 2]),
    ] {
        let x = random.floats(2 * input[0] * input[1]);
        let output = [input[0].div_ceil(stride[0]), input[1].div_ceil(stride[1])];
        for isa in Isa::available() {
            let mut y = vec![0.0; 2 * output[0] * output[1]];
            thin_with(isa, input, stride, &x, &mut y).expect("lengths agree");
            for (index, y) in y.iter().enumerate() {
                let (row, column) = (index / output[1], index % output[1]);
                let (plane, row) = (row / output[0], row % output[0] * stride[0]);
                let from = (plane * input[0] + row) * input[1] + column * stride[1];
                assert_eq!(*y, x[from], "{} {input:?} {stride:?}", isa.name());
            }
        }
    }
}

#[test]
fn shapes_that_make_no_sense_are_refused() {
    let w = windows(3, CASES[0]);
    let (x, mut y) = (vec![0.0; 192], vec![0.0; 48]);
    assert!(max_pool_with(Isa::best(), &w, &x, &mut y).is_ok());
    assert!(max_pool_with(Isa::best(), &w, &x[1..], &mut y).is_err());
    assert!(max_pool_with(Isa::best(), &w, &x, &mut y[1..]).is_err());
    let still = Windows {
        stride: [0, 1],
        ..w
    };
    assert!(max_pool_with(Isa::best(), &still, &x, &mut y).is_err());
    assert!(thin_with(Isa::best(), [8, 8], [0, 1], &x, &mut y).is_err());
    assert!(thin_with(Isa::best(), [8, 8], [2, 2], &x, &mut y[1..]).is_err());
    assert!(sum_rows_with(Isa::best(), 5, 1.0, &x, &mut y).is_err());
}
