//! Scores of reconstructions, and measures that need none.
//!
//! * [`pictures`]: how like two pictures are,
//! * [`legacy`]: the paper's test by Kullback–Leibler divergence,
//! * [`features`]: what tensors say about classes: recovery of labels, linkage, radius,
//! * [`fisher`]: the bound where noise is added.

pub mod features;
pub mod fisher;
pub mod legacy;
pub mod pictures;

use serde::{Deserialize, Serialize};

use crate::rng::Rng;

/// A measure over images.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stat {
    /// The mean.
    pub mean: f64,
    /// 95 % confidence interval of the mean, by resampling.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// The mean of the one image in a hundred (at least one) whose owner has it worst.
    pub worst: f64,
    /// Images.
    pub count: usize,
}

impl Stat {
    /// Of some values; `worst_is_high` where large values are bad for the owner of the image.
    pub fn of(values: &[f64], worst_is_high: bool) -> Option<Self> {
        if values.is_empty() || values.iter().any(|value| !value.is_finite()) {
            return None;
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        if worst_is_high {
            sorted.reverse();
        }
        let most = values.len().div_ceil(100);
        let mut rng = Rng::new(0xb007);
        let mut means: Vec<f64> = (0..400)
            .map(|_| {
                let drawn = (0..values.len()).map(|_| values[rng.below(values.len())]);
                drawn.sum::<f64>() / values.len() as f64
            })
            .collect();
        means.sort_by(f64::total_cmp);
        Some(Self {
            mean: mean(values),
            low: means[10],
            high: means[389],
            worst: mean(&sorted[..most]),
            count: values.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_is_what_the_owner_fears() {
        let values: Vec<f64> = (0..200).map(f64::from).collect();
        let high = Stat::of(&values, true).expect("values");
        assert_eq!((high.mean, high.worst, high.count), (99.5, 198.5, 200));
        assert!(high.low < 99.5 && high.high > 99.5 && high.low > 85.0 && high.high < 115.0);
        assert_eq!(Stat::of(&values, false).map(|low| low.worst), Some(0.5));
        assert_eq!(Stat::of(&[], true), None);
        assert_eq!(Stat::of(&[f64::NAN], true), None);
    }
}
