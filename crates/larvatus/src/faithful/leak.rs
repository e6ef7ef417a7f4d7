//! What float masks give away, and how long a cheat goes unnoticed.

/// The failures of a mask that is `times` as large as what it hides, over so many elements.
///
/// A failure is an observation that not every hidden value could have caused: x + ε outside [−(B − A), B − A]. It has a chance of
/// (2B − 2(B − A)) / 2B = A/B for every x of magnitude at most A. What a failing element gives away is an interval for x that is
/// smaller than [−A, A].
///
/// Source: `VeriSplit` theorem 7.2 and corollary 7.2.1 (failure rates of masking with ε), as we read them; the formula is derived
/// here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Leak {
    /// A/B: the chance that one element's mask fails.
    pub per_element: f64,
    /// Elements that are masked.
    pub elements: u64,
}

impl Leak {
    /// Masks B = `times`·A.
    pub fn new(times: super::Times, elements: u64) -> Self {
        Self {
            per_element: 1.0 / f64::from(times.get()),
            elements,
        }
    }

    /// Elements whose mask is expected to fail.
    pub fn expected(&self) -> f64 {
        self.per_element * self.elements as f64
    }

    /// log₂ of the chance that no mask fails, (1 − A/B)^d.
    pub fn log2_none(&self) -> f64 {
        (-self.per_element).ln_1p() / std::f64::consts::LN_2 * self.elements as f64
    }

    /// The chance that some mask fails, 1 − (1 − A/B)^d.
    pub fn any(&self) -> f64 {
        -(self.log2_none() * std::f64::consts::LN_2).exp_m1()
    }
}

/// The chance that `cheats` false answers go unnoticed where each is audited with a chance of `audited`: (1 − α)^k. A false
/// answer that rounding could explain is not noticed at all.
///
/// Source: `VeriSplit` theorem 7.3, as we read it.
pub fn undetected(audited: super::Fraction, cheats: u32) -> f64 {
    (1.0 - audited.get()).powf(f64::from(cheats))
}

#[cfg(test)]
mod tests {
    use super::super::{Fraction, Times};
    use super::*;

    #[test]
    fn one_picture_under_masks_of_a_thousand_fails_somewhere() {
        let leak = Leak::new(Times::new(1024).expect("a power of two"), 3 * 224 * 224);
        assert_eq!(leak.expected(), 147.0);
        assert!(
            (leak.log2_none() + 212.2).abs() < 0.1,
            "{}",
            leak.log2_none()
        );
        assert_eq!(leak.any(), 1.0);
    }

    #[test]
    fn auditing_one_in_twenty_takes_270_cheats_to_a_millionth() {
        let alpha = Fraction::new(0.05).expect("a fraction");
        assert!(undetected(alpha, 270) < 1e-6 && undetected(alpha, 268) > 1e-6);
    }
}
