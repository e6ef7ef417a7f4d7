//! What the owner demands.
//!
//! A [`Policy`] says what must hold; the plan says what is done about it. A [`Preset`] is a named
//! policy. Anything weaker than privacy and integrity together has to be spelt out: a policy file
//! without them needs the word `danger`.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;

use crate::plan::Rates;

/// What must hold for the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hiding {
    /// Nothing: the worker sees quantised activations.
    Clear,
    /// Every upload is hidden by a one-time pad over the field.
    Field,
}

/// What must hold for the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integrity {
    /// A Freivalds check of every layer and image, with at least so many bits for the whole plan,
    /// over as many inferences as [`CheckDraw`] says.
    Checked {
        /// `−log₂` of the chance that any lie ever passes.
        bits: u16,
    },
    /// Nothing: the worker is believed.
    Unverified,
}

/// Who may see the weights of layers that go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Secrecy {
    /// The worker.
    Public,
    /// No worker: two of them hold shares, each uniform by itself. They must not pool what they know.
    TwoWorkers,
}

/// How long the secret vectors of a check serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckDraw {
    /// They are drawn when a session starts and serve all its inferences: Freivalds' check with
    /// preprocessing. The bits hold over [`Policy::lifetime`] inferences.
    Session,
    /// Every inference draws its own, and pays for it: the check without preprocessing. The bits hold
    /// for each inference, whatever became known of the vectors of others, so there may be any number
    /// of them.
    Fresh,
}

/// How many bits a weight keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightBits {
    /// One int8 plane.
    Int8,
    /// Up to 12 bits in two planes: twice the worker's work, for models that int8 hurts.
    Wide,
}

/// Which of the layers that could go to a worker do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// All of them.
    All,
    /// Those that cost less away than here by [`Policy::rates`], in processor time of the trusted
    /// side and in latency.
    Paying,
}

/// Whether stored tickets may rest on a storage that its host could roll back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rollback {
    /// It is assumed not to, and said so.
    Assumed,
    /// No: a store needs a counter that nobody rolls back.
    Refused,
}

/// What the owner demands of a plan. The default demands privacy and integrity; only
/// [`danger`](Self::danger) gives one up.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    hiding: Hiding,
    integrity: Integrity,
    secrecy: Secrecy,
    check: CheckDraw,
    /// Of the accuracy.
    pub weights: WeightBits,
    /// Of the cost.
    pub offload: Offload,
    /// What work costs, where `offload` asks. A policy file cannot set them: they are facts about
    /// machines, not demands.
    pub rates: Rates,
    /// Inferences over which the bits must hold with [`CheckDraw::Session`]; a session that checks begins
    /// no more. With [`CheckDraw::Fresh`] it limits nothing.
    pub lifetime: u64,
    /// Of stored tickets.
    pub rollback: Rollback,
    /// Layers that never leave, by name.
    pub keep: Vec<String>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            hiding: Hiding::Field,
            integrity: Integrity::Checked { bits: 20 },
            secrecy: Secrecy::Public,
            check: CheckDraw::Session,
            weights: WeightBits::Int8,
            offload: Offload::All,
            rates: Rates::default(),
            lifetime: 1_000_000,
            rollback: Rollback::Assumed,
            keep: Vec::new(),
        }
    }
}

/// A policy about to give something up; reviewers look for this word.
#[derive(Clone, Debug)]
pub struct Danger(Policy);

impl Danger {
    /// The worker may see every activation, and so the weights.
    pub fn clear_input(self) -> Policy {
        Policy {
            hiding: Hiding::Clear,
            secrecy: Secrecy::Public,
            ..self.0
        }
    }

    /// The worker is believed.
    pub fn unverified(self) -> Policy {
        Policy {
            integrity: Integrity::Unverified,
            ..self.0
        }
    }
}

/// Why a policy file is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// It is no policy file.
    #[error("policy: {message}")]
    Syntax {
        /// What the parser says.
        message: String,
    },
    /// It gives something up without saying so.
    #[error("policy: {what} gives up a guarantee; write danger = [\"{word}\"] if that is meant")]
    NeedsDanger {
        /// The setting.
        what: &'static str,
        /// The word that allows it.
        word: &'static str,
    },
    /// A preset's name is unknown.
    #[error(
        "no preset {given:?}; there are local, local-exact, clear, integrity, slalom, verisplit-exact and whole-audited; and in floats \
         verisplit, verisplit-privacy, verisplit-weights and verisplit-integrity"
    )]
    NoSuchPreset {
        /// The name given.
        given: String,
    },
    /// Weights are to be hidden from workers that see the inputs.
    #[error(
        "policy: secret-weights needs input-privacy = \"perfect\": a worker that sees what goes in and what \
         comes out solves for the weights"
    )]
    SecretWeightsInClear,
    /// Two settings that do not go together in this version.
    #[error("policy: secret-weights does not go with check = \"fresh\"")]
    SecretWeightsFresh,
    /// What two workers cost is not in the rates.
    #[error("policy: secret-weights does not go with offload = \"paying\"")]
    SecretWeightsPaying,
    /// The number of repetitions that would be needed is beyond reason.
    #[error("policy: soundness_bits = {bits} is beyond the {most} bits that a plan can state")]
    TooManyBits {
        /// The demand.
        bits: u16,
        /// The most.
        most: u16,
    },
}

/// Most bits of soundness that a policy may ask for.
const MOST_BITS: u16 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    #[serde(default)]
    input_privacy: Privacy,
    #[serde(default = "default_bits")]
    soundness_bits: u16,
    #[serde(default = "default_lifetime")]
    lifetime: u64,
    #[serde(default)]
    secret_weights: bool,
    #[serde(default)]
    check: CheckWord,
    #[serde(default)]
    weights: WeightsWord,
    #[serde(default)]
    offload: OffloadWord,
    #[serde(default)]
    rollback: RollbackWord,
    #[serde(default)]
    keep: Vec<String>,
    #[serde(default)]
    danger: Vec<DangerWord>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum Privacy {
    None,
    #[default]
    Perfect,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum CheckWord {
    #[default]
    Session,
    Fresh,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum WeightsWord {
    #[default]
    Int8,
    Wide,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum OffloadWord {
    #[default]
    All,
    Paying,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
enum RollbackWord {
    #[default]
    Assumed,
    Refused,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum DangerWord {
    ClearInput,
    Unverified,
}

fn default_bits() -> u16 {
    20
}

fn default_lifetime() -> u64 {
    1_000_000
}

impl Policy {
    /// What must hold for the input.
    pub fn hiding(&self) -> Hiding {
        self.hiding
    }

    /// What must hold for the answers.
    pub fn integrity(&self) -> Integrity {
        self.integrity
    }

    /// Who may see the weights.
    pub fn secrecy(&self) -> Secrecy {
        self.secrecy
    }

    /// How long the vectors of the checks serve, where there are some.
    pub fn check(&self) -> CheckDraw {
        self.check
    }

    /// The same with check vectors that every inference draws anew.
    ///
    /// # Errors
    /// [`PolicyError::SecretWeightsFresh`].
    pub fn with_fresh_checks(self) -> Result<Self, PolicyError> {
        Self {
            check: CheckDraw::Fresh,
            ..self
        }
        .consistent()
    }

    /// The same with weights that no worker may see.
    ///
    /// # Errors
    /// [`PolicyError::SecretWeightsInClear`], [`PolicyError::SecretWeightsFresh`].
    pub fn with_secret_weights(self) -> Result<Self, PolicyError> {
        Self {
            secrecy: Secrecy::TwoWorkers,
            ..self
        }
        .consistent()
    }

    fn consistent(self) -> Result<Self, PolicyError> {
        match (self.secrecy, self.hiding, self.check, self.offload) {
            (Secrecy::TwoWorkers, Hiding::Clear, _, _) => Err(PolicyError::SecretWeightsInClear),
            (Secrecy::TwoWorkers, _, CheckDraw::Fresh, _) => Err(PolicyError::SecretWeightsFresh),
            (Secrecy::TwoWorkers, _, _, Offload::Paying) => Err(PolicyError::SecretWeightsPaying),
            (Secrecy::Public, ..) | (_, Hiding::Field, CheckDraw::Session, Offload::All) => {
                Ok(self)
            }
        }
    }

    /// The way to give something up.
    pub fn danger(self) -> Danger {
        Danger(self)
    }

    /// Reads a policy file.
    ///
    /// Keys, all optional: `input-privacy = "perfect" | "none"`, `soundness-bits`, `lifetime`,
    /// `secret-weights = true | false`, `check = "session" | "fresh"`, `weights = "int8" | "wide"`, `offload = "all" | "paying"`,
    /// `rollback = "assumed" | "refused"`, `keep = ["layer", …]`,
    /// `danger = ["clear-input", "unverified"]`.
    ///
    /// # Errors
    /// [`PolicyError`] where the text is no policy, or gives up a guarantee without the word.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let file: File = toml::from_str(text).map_err(|err| PolicyError::Syntax {
            message: err
                .to_string()
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
        })?;
        let hiding = match file.input_privacy {
            Privacy::Perfect => Hiding::Field,
            Privacy::None if file.danger.contains(&DangerWord::ClearInput) => Hiding::Clear,
            Privacy::None => {
                return Err(PolicyError::NeedsDanger {
                    what: "input-privacy = \"none\"",
                    word: "clear-input",
                });
            }
        };
        let integrity = match file.soundness_bits {
            0 if file.danger.contains(&DangerWord::Unverified) => Integrity::Unverified,
            0 => {
                return Err(PolicyError::NeedsDanger {
                    what: "soundness-bits = 0",
                    word: "unverified",
                });
            }
            bits if bits > MOST_BITS => {
                return Err(PolicyError::TooManyBits {
                    bits,
                    most: MOST_BITS,
                });
            }
            bits => Integrity::Checked { bits },
        };
        Self {
            hiding,
            integrity,
            secrecy: match file.secret_weights {
                true => Secrecy::TwoWorkers,
                false => Secrecy::Public,
            },
            check: match file.check {
                CheckWord::Session => CheckDraw::Session,
                CheckWord::Fresh => CheckDraw::Fresh,
            },
            weights: match file.weights {
                WeightsWord::Int8 => WeightBits::Int8,
                WeightsWord::Wide => WeightBits::Wide,
            },
            offload: match file.offload {
                OffloadWord::All => Offload::All,
                OffloadWord::Paying => Offload::Paying,
            },
            rates: Rates::default(),
            lifetime: file.lifetime.max(1),
            rollback: match file.rollback {
                RollbackWord::Assumed => Rollback::Assumed,
                RollbackWord::Refused => Rollback::Refused,
            },
            keep: file.keep,
        }
        .consistent()
    }
}

/// A named policy, and where its plan runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// Everything here, in float.
    Local,
    /// Everything here, the linear layers in integers: what a split run must equal bit for bit.
    LocalExact,
    /// Offloaded without protection.
    Clear,
    /// Offloaded and checked; the worker sees activations.
    Integrity,
    /// Offloaded, hidden by one-time pads and checked (Slalom, ICLR 2019).
    Slalom,
    /// As `slalom`, with weights that no worker sees: two workers that do not collude hold shares of
    /// them (the services of VeriSplit, arXiv 2406.00586, with masks over a field).
    VerisplitExact,
    /// The whole network by a worker that sees the input, commits to every tensor, signs, and is audited later
    /// ([`crate::audit`]). Its policy says how weights are quantised; layers are not placed one by one.
    WholeAudited,
}

impl Preset {
    /// The policy behind the name.
    pub fn policy(self) -> Policy {
        let default = Policy::default();
        match self {
            Self::Local | Self::LocalExact | Self::Slalom => default,
            Self::Clear | Self::WholeAudited => {
                default.danger().clear_input().danger().unverified()
            }
            Self::Integrity => default.danger().clear_input(),
            Self::VerisplitExact => Policy {
                secrecy: Secrecy::TwoWorkers,
                ..default
            },
        }
    }

    /// Whether a worker is called.
    pub fn offloads(self) -> bool {
        match self {
            Self::Local | Self::LocalExact => false,
            Self::Clear
            | Self::Integrity
            | Self::Slalom
            | Self::VerisplitExact
            | Self::WholeAudited => true,
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Local => "local",
            Self::LocalExact => "local-exact",
            Self::Clear => "clear",
            Self::Integrity => "integrity",
            Self::Slalom => "slalom",
            Self::VerisplitExact => "verisplit-exact",
            Self::WholeAudited => "whole-audited",
        })
    }
}

impl FromStr for Preset {
    type Err = PolicyError;

    fn from_str(name: &str) -> Result<Self, PolicyError> {
        [
            Self::Local,
            Self::LocalExact,
            Self::Clear,
            Self::Integrity,
            Self::Slalom,
            Self::VerisplitExact,
            Self::WholeAudited,
        ]
        .into_iter()
        .find(|preset| preset.to_string() == name)
        .ok_or_else(|| PolicyError::NoSuchPreset {
            given: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_file_demands_everything() {
        assert_eq!(Policy::from_toml(""), Ok(Policy::default()));
    }

    #[test]
    fn giving_up_privacy_takes_the_word() {
        let err = Policy::from_toml("input-privacy = \"none\"").unwrap_err();
        assert!(
            matches!(
                err,
                PolicyError::NeedsDanger {
                    word: "clear-input",
                    ..
                }
            ),
            "{err}"
        );
        let text = "input-privacy = \"none\"\ndanger = [\"clear-input\"]";
        assert_eq!(Policy::from_toml(text).map(|p| p.hiding), Ok(Hiding::Clear));
    }

    #[test]
    fn giving_up_integrity_takes_the_word() {
        let err = Policy::from_toml("soundness-bits = 0").unwrap_err();
        assert!(
            matches!(
                err,
                PolicyError::NeedsDanger {
                    word: "unverified",
                    ..
                }
            ),
            "{err}"
        );
    }

    #[test]
    fn fresh_checks_take_the_word() {
        let drawn = |text| Policy::from_toml(text).map(|policy| policy.check());
        assert_eq!(drawn("check = \"fresh\""), Ok(CheckDraw::Fresh));
        assert_eq!(drawn("check = \"session\""), Ok(CheckDraw::Session));
        assert!(drawn("check = \"none\"").is_err());
    }

    #[test]
    fn secret_weights_need_hidden_inputs_and_lasting_checks() {
        let secret = |text: &str| Policy::from_toml(text).map(|policy| policy.secrecy());
        assert_eq!(secret("secret-weights = true"), Ok(Secrecy::TwoWorkers));
        assert_eq!(secret(""), Ok(Secrecy::Public));
        let clear = "secret-weights = true\ninput-privacy = \"none\"\ndanger = [\"clear-input\"]";
        assert_eq!(secret(clear), Err(PolicyError::SecretWeightsInClear));
        let fresh = "secret-weights = true\ncheck = \"fresh\"";
        assert_eq!(secret(fresh), Err(PolicyError::SecretWeightsFresh));
        let paying = "secret-weights = true\noffload = \"paying\"";
        assert_eq!(secret(paying), Err(PolicyError::SecretWeightsPaying));
    }

    #[test]
    fn an_unknown_key_is_named() {
        let err = Policy::from_toml("privacy = 1").unwrap_err();
        assert!(err.to_string().contains("privacy"), "{err}");
    }

    #[test]
    fn every_preset_is_found_by_its_name() {
        for preset in [
            Preset::Local,
            Preset::LocalExact,
            Preset::Clear,
            Preset::Slalom,
            Preset::WholeAudited,
        ] {
            assert_eq!(preset.to_string().parse(), Ok(preset));
        }
    }
}
