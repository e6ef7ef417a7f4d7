//! What a plan guarantees, computed from what it does.

use std::fmt;

use larvatus_kernels::field::P;

use super::Plan;
use crate::policy::{CheckDraw, Hiding, Secrecy};

/// A probability as `−log₂ p`. Larger is safer.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct ErrorBits(f64);

impl ErrorBits {
    /// No safety at all.
    pub const NONE: Self = Self(0.0);

    /// Of one Freivalds equation with `repetitions` secret rank-one vectors over F_p: a wrong
    /// answer passes each with a chance of at most 2/p.
    pub fn of_check(repetitions: usize) -> Self {
        Self(repetitions as f64 * (f64::from(P) / 2.0).log2())
    }

    /// Union bound over `events` of this chance each.
    pub fn any_of(self, events: u64) -> Self {
        Self((self.0 - (events.max(1) as f64).log2()).max(0.0))
    }

    /// The bits, rounded down to a tenth: a bound may only be conservative.
    pub fn bits(self) -> f64 {
        (self.0 * 10.0).floor() / 10.0
    }
}

impl fmt::Display for ErrorBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} bits", self.bits()))
    }
}

/// Repetitions that reach `bits` for `equations` per inference over `lifetime` inferences; two at
/// the least.
pub(super) fn repetitions(bits: u16, equations: u64, lifetime: u64) -> usize {
    let events = equations.max(1).saturating_mul(lifetime);
    (2..64)
        .find(|repetitions| ErrorBits::of_check(*repetitions).any_of(events).0 >= f64::from(bits))
        .unwrap_or(64)
}

/// What a worker learns about the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputPrivacy {
    /// Nothing, ever: no layer goes to a worker.
    Local,
    /// Nothing, given uniform pads; the pads come from AES-256-CTR, so the bound is computational.
    Perfect,
    /// Everything: quantised activations go out in clear.
    None,
}

impl fmt::Display for InputPrivacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::Perfect => "perfect",
            Self::None => "none",
        })
    }
}

/// What a plan guarantees.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guarantees {
    /// What a worker learns about the input.
    pub input_privacy: InputPrivacy,
    /// Who may see the weights. Shares are uniform given uniform keystreams; they come from AES-256-CTR.
    pub secrecy: Secrecy,
    /// Against one wrong answer of one layer and image going unnoticed.
    pub per_check: ErrorBits,
    /// Against any wrong answer in one inference going unnoticed.
    pub per_inference: ErrorBits,
    /// How long the secret vectors of a check serve. Where they are fresh, `per_inference` holds whatever
    /// became known of those of other inferences.
    pub check: CheckDraw,
    /// Against any wrong answer in the plan's lifetime going unnoticed.
    pub lifetime: ErrorBits,
    /// Inferences of that lifetime.
    pub inferences: u64,
    /// What has to be assumed of where stored tickets lie; `None` without such tickets.
    pub assumes: Option<&'static str>,
}

impl Guarantees {
    /// What a worker learns of the weights, for reports.
    pub fn weight_privacy(&self) -> &'static str {
        match (self.input_privacy, self.secrecy) {
            (InputPrivacy::Local, _) => "local",
            (InputPrivacy::Perfect | InputPrivacy::None, Secrecy::Public) => "none",
            (InputPrivacy::Perfect | InputPrivacy::None, Secrecy::TwoWorkers) => "perfect",
        }
    }

    /// The same where a dealer makes u: its answers are checked by as many equations again.
    pub fn with_dealer(self) -> Self {
        Self {
            per_inference: self.per_inference.any_of(2),
            lifetime: self.lifetime.any_of(2),
            ..self
        }
    }

    /// The same where tickets come from a store, which assumes something, or nothing.
    pub fn with_store(self, assumes: Option<&'static str>) -> Self {
        Self { assumes, ..self }
    }

    /// One sentence for people.
    pub fn sentence(&self) -> String {
        let privacy = match self.input_privacy {
            InputPrivacy::Local => "nothing left this machine",
            InputPrivacy::Perfect => {
                "the worker saw uniform noise only (one-time pads from AES-256-CTR)"
            }
            InputPrivacy::None => "the worker saw every activation in clear",
        };
        let integrity = if self.input_privacy == InputPrivacy::Local {
            "and nobody else computed".to_owned()
        } else if self.per_check == ErrorBits::NONE {
            "and was believed without a check".to_owned()
        } else {
            let how = match self.check {
                CheckDraw::Session => "checked",
                CheckDraw::Fresh => "checked with vectors drawn for its inference alone",
            };
            format!(
                "and every answer was {how}: a lie passes with a chance below 2^-{:.1} an inference",
                self.per_inference.bits()
            )
        };
        let weights = match (self.input_privacy, self.secrecy) {
            (InputPrivacy::Perfect | InputPrivacy::None, Secrecy::TwoWorkers) => {
                "; each of the two workers held a uniform share of the weights, which hides them from both \
                 as long as the two do not pool what they know"
            }
            _ => "",
        };
        let assumes = self.assumes.map(|assumes| format!("; assumes {assumes}"));
        format!(
            "{privacy}, {integrity}{weights}{}",
            assumes.unwrap_or_default()
        )
    }
}

impl Plan {
    /// What this plan guarantees.
    pub fn guarantees(&self) -> Guarantees {
        let (hiding, lifetime) = (self.policy().hiding(), self.policy().lifetime);
        let (check, secrecy) = (self.policy().check(), self.policy().secrecy());
        let images = self.layers().iter().map(|layer| layer.spec.images as u64);
        // Two workers are checked one by one.
        let equations = images.sum::<u64>()
            * match secrecy {
                Secrecy::Public => 1,
                Secrecy::TwoWorkers => 2,
            };
        if equations == 0 {
            return Guarantees {
                input_privacy: InputPrivacy::Local,
                secrecy,
                per_check: ErrorBits::NONE,
                per_inference: ErrorBits::NONE,
                check,
                lifetime: ErrorBits::NONE,
                inferences: lifetime,
                assumes: None,
            };
        }
        let per_check = ErrorBits::of_check(self.repetitions());
        Guarantees {
            input_privacy: match hiding {
                Hiding::Clear => InputPrivacy::None,
                Hiding::Field => InputPrivacy::Perfect,
            },
            secrecy,
            per_check,
            per_inference: per_check.any_of(equations),
            check,
            lifetime: per_check.any_of(equations.saturating_mul(lifetime)),
            inferences: lifetime,
            assumes: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_repetitions_give_just_under_sixty_bits() {
        assert_eq!(ErrorBits::of_check(2).bits(), 59.9);
    }

    #[test]
    fn fifty_layers_cost_their_logarithm() {
        let bits = ErrorBits::of_check(2).any_of(64).bits();
        assert_eq!(bits, 53.9);
    }

    #[test]
    fn a_demand_beyond_two_repetitions_takes_a_third() {
        assert_eq!(repetitions(20, 100, 1_000_000), 2);
        assert_eq!(repetitions(50, 100, 1_000_000), 3);
    }
}
