//! The float mode of the `VeriSplit` paper, for comparison: masks and shares in IEEE floats, answers audited later.
//!
//! Nothing here is perfect, and that is the point of having it. A mask ε, uniform on [−B, B], hides a value of magnitude at
//! most A but for an observation beyond B − A, which has a chance of A/B: that many of the masked elements give
//! something away. A larger B costs precision, since W·(x + ε) − W·ε is a small difference of large floats. An answer
//! is believed when it comes; some are recomputed later, within what rounding explains. [`session`](crate::session) has none of these
//! faults, and shares no code with this module that could confuse the two.
//!
//! * [`Demand`]: which of the three services are taken, and how large the masks are; or a [`Preset`]'s name,
//! * [`Plan`]: which layers go, in floats,
//! * [`Session`]: inferences with one worker or two, as a state machine,
//! * [`Leak`]: what the masks give away, as numbers,
//! * [`Provisional`]: blocks of answers that were drawn for an audit, and what the worker opened.
//!
//! Source: Zhang et al., `VeriSplit` (arXiv 2406.00586), figures 2 and 4, theorems 7.2 and 7.3, as we read them: the text of the
//! theorems' proofs was not at hand.

mod audit;
mod flight;
mod leak;
mod masks;
mod plan;
mod session;
mod split;

use std::fmt;
use std::str::FromStr;

pub use audit::{Provisional, Settled};
pub use leak::{Leak, undetected};
pub use plan::Plan;
pub use session::{Line, Output, Session, Settings};

/// How many times larger masks are than the bound of what they hide; a power of two, so that scaling a mask is exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Times(u8);

impl Times {
    /// From the number itself; `None` unless it is a power of two from 2 to 2²³.
    pub fn new(times: u32) -> Option<Self> {
        let exponent = u8::try_from(times.trailing_zeros()).ok()?;
        (times.is_power_of_two() && (1..=23).contains(&exponent)).then_some(Self(exponent))
    }

    /// The number.
    pub fn get(self) -> u32 {
        1 << self.0
    }

    /// Its logarithm to base 2: bits of a float's 24 that the masks take.
    pub fn bits(self) -> u32 {
        u32::from(self.0)
    }
}

impl fmt::Display for Times {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// A share of all answers, more than none.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Fraction(f64);

impl Fraction {
    /// `None` unless it is above 0 and at most 1.
    pub fn new(fraction: f64) -> Option<Self> {
        (fraction > 0.0 && fraction <= 1.0).then_some(Self(fraction))
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

/// Who holds what of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One worker, all of them.
    Whole,
    /// Two that do not collude: (W + δ)/2 and (W − δ)/2, biases alike. δ is at most so many times as large as the
    /// weights, drawn once for a session.
    TwoWorkers(Times),
}

/// Where masks come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MaskSource {
    /// Each element uniform on a grid of 2⁻⁶¹ of B, for one inference; the sum with the value is taken in binary64 and
    /// rounded once.
    Fresh,
    /// Each element uniform on a grid of 2⁻²³ of B and added in binary32, as a generator of floats gives them. The low
    /// bits of the value survive where the sum is small.
    Coarse,
    /// Random combinations of so many vectors that are drawn once for the session.
    Pool(usize),
}

/// What the owner demands of this mode.
#[derive(Clone, Debug, PartialEq)]
pub struct Demand {
    masks: Option<Times>,
    source: MaskSource,
    sharing: Sharing,
    audit: Option<Fraction>,
    /// Layers that never leave, by name.
    pub keep: Vec<String>,
}

/// Why a demand is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DemandError {
    /// Weights are to be hidden from workers that see the inputs.
    #[error(
        "shares of the weights with inputs in clear: each worker sees what goes into a layer and, in the next \
         request, what came out, and solves for the weights"
    )]
    SharesInClear,
}

impl Demand {
    /// Masks so many times as large as the data, or none; who holds the weights; which share of the answers is audited.
    ///
    /// # Errors
    /// [`DemandError::SharesInClear`].
    pub fn new(
        masks: Option<Times>,
        sharing: Sharing,
        audit: Option<Fraction>,
    ) -> Result<Self, DemandError> {
        match (masks, sharing) {
            (None, Sharing::TwoWorkers(_)) => Err(DemandError::SharesInClear),
            (Some(_), _) | (None, Sharing::Whole) => Ok(Self {
                masks,
                source: MaskSource::Fresh,
                sharing,
                audit,
                keep: Vec::new(),
            }),
        }
    }

    /// How large masks are; `None` where the worker sees the inputs.
    pub fn masks(&self) -> Option<Times> {
        self.masks
    }

    /// Where masks come from.
    pub fn source(&self) -> MaskSource {
        self.source
    }

    /// Who holds the weights.
    pub fn sharing(&self) -> Sharing {
        self.sharing
    }

    /// Which share of the answers is recomputed later.
    pub fn audit(&self) -> Option<Fraction> {
        self.audit
    }

    /// Of a float's 24 bits, those that masks leave to a layer's answer.
    pub fn bits_left(&self) -> u32 {
        let weights = match self.sharing {
            Sharing::Whole => 0,
            Sharing::TwoWorkers(times) => times.bits(),
        };
        let data = self.masks.map_or(0, Times::bits);
        24_u32.saturating_sub(data + weights)
    }

    /// What is known to be broken, for experiments that break it.
    pub fn danger(self) -> Danger {
        Danger(self)
    }
}

/// A demand about to become one that is known to be broken; reviewers look for this word.
#[derive(Clone, Debug)]
pub struct Danger(Demand);

impl Danger {
    /// Inputs in clear, whatever is done about the weights.
    pub fn clear_input(self) -> Demand {
        Demand {
            masks: None,
            ..self.0
        }
    }

    /// Masks from somewhere else.
    pub fn masks_from(self, source: MaskSource) -> Demand {
        Demand { source, ..self.0 }
    }
}

/// A named demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// All three services.
    All,
    /// Masked inputs, one worker.
    Privacy,
    /// Shares of the weights for two workers. They are worth nothing without masked inputs, so these are masked, too.
    Weights,
    /// Audits, one worker, inputs in clear.
    Integrity,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::All, Self::Privacy, Self::Weights, Self::Integrity];

    /// The demand behind the name, with masks of these sizes and this share of audits where it has them.
    pub fn demand(self, data: Times, weights: Times, audit: Fraction) -> Demand {
        let (masks, sharing, audit) = match self {
            Self::All => (Some(data), Sharing::TwoWorkers(weights), Some(audit)),
            Self::Privacy => (Some(data), Sharing::Whole, None),
            Self::Weights => (Some(data), Sharing::TwoWorkers(weights), None),
            Self::Integrity => (None, Sharing::Whole, Some(audit)),
        };
        Demand {
            masks,
            source: MaskSource::Fresh,
            sharing,
            audit,
            keep: Vec::new(),
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::All => "verisplit",
            Self::Privacy => "verisplit-privacy",
            Self::Weights => "verisplit-weights",
            Self::Integrity => "verisplit-integrity",
        })
    }
}

/// No preset of this mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no preset of the float mode")]
pub struct NoSuchPreset;

impl FromStr for Preset {
    type Err = NoSuchPreset;

    fn from_str(name: &str) -> Result<Self, NoSuchPreset> {
        let mut all = Self::ALL.into_iter();
        all.find(|preset| preset.to_string() == name)
            .ok_or(NoSuchPreset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_go_with_masks_only() {
        let times = Times::new(64).expect("a power of two");
        let shares = Sharing::TwoWorkers(times);
        assert_eq!(
            Demand::new(None, shares, None),
            Err(DemandError::SharesInClear)
        );
        let masked = Demand::new(Some(times), shares, None).expect("both");
        assert_eq!(masked.bits_left(), 12);
        assert_eq!(masked.danger().clear_input().masks(), None);
    }

    #[test]
    fn presets_read_as_they_are_printed() {
        for preset in Preset::ALL {
            assert_eq!(preset.to_string().parse(), Ok(preset));
        }
        assert_eq!("verisplit-exact".parse::<Preset>(), Err(NoSuchPreset));
    }

    #[test]
    fn masks_are_powers_of_two() {
        assert_eq!(Times::new(1024).map(Times::get), Some(1024));
        for refused in [0, 1, 3, 1000, 1 << 24] {
            assert_eq!(Times::new(refused), None);
        }
        assert_eq!(Fraction::new(0.0), None);
        assert_eq!(Fraction::new(f64::NAN), None);
    }
}
