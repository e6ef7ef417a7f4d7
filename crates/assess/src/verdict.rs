//! What a policy makes of the scores: a cut, or none.

use serde::{Deserialize, Serialize};

use crate::report::CutReport;

/// What an owner is content with. Every bound is on the best of the attackers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Mean structural similarity of reconstructions, at most.
    pub ssim: f64,
    /// The same of the one image in a hundred that fares worst.
    pub ssim_worst: f64,
    /// The part of images that a reconstruction finds among all that are scored, at most.
    pub found: f64,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            ssim: 0.2,
            ssim_worst: 0.4,
            found: 0.1,
        }
    }
}

/// What comes of it. Numbers are places among the cuts that were assessed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// From this cut on, no attacker of this report broke the policy.
    Cut {
        /// Which.
        index: usize,
    },
    /// Keep all inside.
    NoSafeCut {
        /// Why.
        why: String,
    },
}

/// What the paper's test would choose: the first cut from which on it is passed.
pub fn legacy_cut(cuts: &[CutReport]) -> Option<usize> {
    from_there(cuts, |cut| {
        cut.legacy
            .as_ref()
            .is_some_and(|legacy| legacy.margin >= 0.0)
    })
}

fn from_there(cuts: &[CutReport], good: impl Fn(&CutReport) -> bool) -> Option<usize> {
    let bad = cuts.iter().rposition(|cut| !good(cut));
    let first = bad.map_or(0, |bad| bad + 1);
    (first < cuts.len()).then_some(first)
}

/// Why a cut breaks the policy; none where it does not.
pub fn breach(cut: &CutReport, policy: Policy) -> Option<String> {
    for attack in &cut.attacks {
        let by = attack.kind;
        let over = [
            ("mean SSIM", attack.ssim.mean, policy.ssim),
            ("worst SSIM", attack.ssim.worst, policy.ssim_worst),
            ("images found again", attack.found.mean, policy.found),
        ];
        for (what, got, most) in over {
            if got > most {
                return Some(format!(
                    "{by}: {what} {got:.2}, at most {most:.2} is wanted"
                ));
            }
        }
    }
    None
}

/// The first cut from which on no attacker breaks the policy, if any attacker is worth the name.
pub fn verdict(cuts: &[CutReport], policy: Policy) -> Verdict {
    let tried = cuts.iter().flat_map(|cut| &cut.attacks);
    if !tried.clone().any(|attack| !attack.failed) {
        let why = "no attacker saw through the first cut, so their failure at deeper ones is no evidence; give them more \
                   images or steps";
        return Verdict::NoSafeCut {
            why: why.to_owned(),
        };
    }
    match from_there(cuts, |cut| {
        !cut.attacks.is_empty() && breach(cut, policy).is_none()
    }) {
        Some(index) => Verdict::Cut { index },
        None => {
            let why = cuts.last().and_then(|cut| breach(cut, policy));
            let why = why.unwrap_or_else(|| "nothing was attacked".to_owned());
            Verdict::NoSafeCut {
                why: format!("even at the deepest cut, {why}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::test_cut;

    /// Cuts whose decoder reaches these similarities.
    fn cuts(ssims: &[f64]) -> Vec<CutReport> {
        ssims.iter().map(|ssim| test_cut(*ssim, *ssim)).collect()
    }

    #[test]
    fn a_cut_is_safe_if_all_deeper_ones_are() {
        let policy = Policy::default();
        let of = |ssims: &[f64]| verdict(&cuts(ssims), policy);
        assert_eq!(of(&[0.9, 0.1, 0.3, 0.1, 0.05]), Verdict::Cut { index: 3 });
        assert!(matches!(of(&[0.9, 0.1, 0.3]), Verdict::NoSafeCut { .. }));
        assert_eq!(of(&[0.1, 0.1]), Verdict::Cut { index: 0 });
    }

    #[test]
    fn attackers_that_fail_support_nothing() {
        let mut weak = cuts(&[0.1, 0.1]);
        for cut in &mut weak {
            cut.attacks
                .iter_mut()
                .for_each(|attack| attack.failed = true);
        }
        let said = verdict(&weak, Policy::default());
        assert!(
            matches!(&said, Verdict::NoSafeCut { why } if why.contains("no evidence")),
            "{said:?}"
        );
        // One that is worth the name is enough, and the other's success counts all the same.
        let mut mixed = cuts(&[0.9, 0.1]);
        let mut lucky = mixed[1].attacks[0].clone();
        (lucky.failed, lucky.ssim.mean) = (true, 0.5);
        mixed[1].attacks.push(lucky);
        assert!(matches!(
            verdict(&mixed, Policy::default()),
            Verdict::NoSafeCut { .. }
        ));
    }

    #[test]
    fn the_worst_image_and_those_found_again_count() {
        let mut some = cuts(&[0.9, 0.1]);
        some[1].attacks[0].ssim.worst = 0.6;
        assert!(
            breach(&some[1], Policy::default()).is_some_and(|why| why.contains("worst SSIM 0.60"))
        );
        some[1].attacks[0].ssim.worst = 0.1;
        some[1].attacks[0].found.mean = 0.5;
        assert!(breach(&some[1], Policy::default()).is_some_and(|why| why.contains("found again")));
    }
}
