//! Sums, and how sure they are.

/// A count of successes with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Successes.
    pub hits: u32,
    /// Trials.
    pub trials: u32,
}

impl Rate {
    /// The rate.
    pub fn value(self) -> f64 {
        f64::from(self.hits) / f64::from(self.trials.max(1))
    }

    /// Wilson's interval of 95 %.
    pub fn interval(self) -> (f64, f64) {
        let (n, p, z) = (f64::from(self.trials.max(1)), self.value(), 1.96_f64);
        let scale = 1.0 + z * z / n;
        let middle = p + z * z / (2.0 * n);
        let half = z * (p * (1.0 - p) / n + z * z / (4.0 * n * n)).sqrt();
        ((middle - half) / scale, (middle + half) / scale)
    }

    /// Standard deviations between the rate and an expected one.
    pub fn deviations(self, expected: f64) -> f64 {
        let n = f64::from(self.trials.max(1));
        // An expectation of 0 or 1 leaves no room: one trial's worth is granted.
        let spread = (expected * (1.0 - expected) / n).sqrt().max(1.0 / n);
        (self.value() - expected) / spread
    }
}

/// Peak signal-to-noise ratio in decibels, for a peak of 1.
pub fn psnr(truth: &[f64], guess: &[f64]) -> f64 {
    let squares = truth.iter().zip(guess).map(|(t, g)| (t - g) * (t - g));
    -10.0 * (squares.sum::<f64>() / truth.len() as f64).log10()
}

/// Correlation, 0 where one side does not vary.
pub fn correlation(x: &[f64], y: &[f64]) -> f64 {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mx, my) = (mean(x), mean(y));
    let sum = |f: fn(f64, f64) -> f64| -> f64 {
        let pairs = x.iter().zip(y);
        pairs.map(|(x, y)| f(x - mx, y - my)).sum()
    };
    let spread = (sum(|x, _| x * x) * sum(|_, y| y * y)).sqrt();
    if spread > 0.0 {
        sum(|x, y| x * y) / spread
    } else {
        0.0
    }
}

/// The cosine of the angle between two vectors.
pub fn cosine(x: &[f64], y: &[f64]) -> f64 {
    let norm = (dot(x, x) * dot(y, y)).sqrt();
    if norm > 0.0 { dot(x, y) / norm } else { 0.0 }
}

/// Σ x·y.
pub fn dot(x: &[f64], y: &[f64]) -> f64 {
    x.iter().zip(y).map(|(x, y)| x * y).sum()
}

/// What is closest to `truth` among the images of `guess` under a·g + b: more than an attacker could know.
pub fn fitted(truth: &[f64], guess: &[f64]) -> Vec<f64> {
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (mt, mg) = (mean(truth), mean(guess));
    let pairs = || guess.iter().zip(truth).map(|(g, t)| (g - mg, t - mt));
    let square: f64 = pairs().map(|(g, _)| g * g).sum();
    let product: f64 = pairs().map(|(g, t)| g * t).sum();
    let slope = if square > 0.0 { product / square } else { 0.0 };
    guess.iter().map(|g| mt + slope * (g - mg)).collect()
}

/// Solves a·x = b for symmetric or other square `a` (n × n) and `b` (n × m), row-major, by elimination with pivots. Rows of
/// no weight give zeros.
pub fn solve(mut a: Vec<f64>, mut b: Vec<f64>, n: usize) -> Vec<f64> {
    let m = b.len() / n;
    for column in 0..n {
        let pivot = (column..n).max_by(|x, y| {
            let size = |row: &usize| a[row * n + column].abs();
            size(x).total_cmp(&size(y))
        });
        let pivot = pivot.unwrap_or(column);
        (0..n).for_each(|k| a.swap(column * n + k, pivot * n + k));
        (0..m).for_each(|k| b.swap(column * m + k, pivot * m + k));
        let head = a[column * n + column];
        if head.abs() < 1e-300 {
            continue;
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = a[row * n + column] / head;
            if factor != 0.0 {
                (column..n).for_each(|k| a[row * n + k] -= factor * a[column * n + k]);
                (0..m).for_each(|k| b[row * m + k] -= factor * b[column * m + k]);
            }
        }
    }
    for row in 0..n {
        let head = a[row * n + row];
        for value in &mut b[row * m..(row + 1) * m] {
            *value = if head.abs() < 1e-300 {
                0.0
            } else {
                *value / head
            };
        }
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elimination_solves() {
        let a = vec![0.0, 2.0, 1.0, 3.0];
        assert_eq!(solve(a, vec![4.0, 7.0], 2), [1.0, 2.0]);
    }

    #[test]
    fn an_interval_holds_its_rate() {
        let rate = Rate {
            hits: 5000,
            trials: 10_000,
        };
        let (low, high) = rate.interval();
        assert!(low > 0.490 && high < 0.510 && low < 0.5 && high > 0.5);
    }
}
