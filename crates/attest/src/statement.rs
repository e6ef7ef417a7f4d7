//! What evidence is about: 64 bytes that a platform signs with its report.
//!
//! A statement names a purpose, a key and what ties the key to this conversation. Its digest is
//! what the platform signs (`REPORT_DATA`, `REPORTDATA` or `user_data`):
//!
//! ```text
//! SHA-512("larvatus/attest/1\0" ‖ purpose ‖ nonce ‖ key ‖ third)
//!   purpose 1, channel: key = SHA-256(SubjectPublicKeyInfo), third = TLS exporter
//!   purpose 2, mailbox: key = HPKE public key (X25519),      third = zeros
//!   purpose 3, release: key = HPKE public key (X25519),      third = id of the sealed model
//! ```
//!
//! All parts but the label have 32 bytes (the purpose one), so no two statements have one encoding.
//!
//! Source: RA-TLS without a nonce and a channel binding can be relayed; hence both are signed here.

use std::fmt;

use ring::digest::{SHA256, SHA512, digest};
use serde::{Deserialize, Serialize};

use crate::verify::Refused;

/// Begins what is hashed; its number is the version of the format.
const LABEL: &[u8] = b"larvatus/attest/1\0";

/// Seconds since 1970-01-01 UTC. This crate reads no clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnixTime(pub u64);

/// The system gives no randomness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the system gives no randomness")]
pub struct NoRandomness;

macro_rules! bytes32 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(pub [u8; 32]);

        impl $name {
            /// The value that 64 hexadecimal digits write.
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0; 32];
                hex::decode_to_slice(text, &mut bytes).ok()?;
                Some(Self(bytes))
            }
        }

        impl TryFrom<String> for $name {
            type Error = &'static str;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                Self::from_hex(&text).ok_or("64 hexadecimal digits are wanted")
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> Self {
                hex::encode(value.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), hex::encode(self.0))
            }
        }
    };
}

bytes32! {
    /// Drawn by whoever wants evidence, so that evidence cannot be older than the wish.
    Nonce
}
bytes32! {
    /// SHA-256 of a key's SubjectPublicKeyInfo.
    KeyHash
}
bytes32! {
    /// What a TLS connection gives both of its ends and nobody else (RFC 8446, §7.5).
    Exporter
}
bytes32! {
    /// An X25519 public key for HPKE.
    KemPublic
}
bytes32! {
    /// Which sealed model: SHA-256 of its header.
    ModelId
}

impl Nonce {
    /// A nonce that nobody could foresee.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn fresh() -> Result<Self, NoRandomness> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|_| NoRandomness)?;
        Ok(Self(bytes))
    }
}

impl KeyHash {
    /// The hash of a key in DER.
    pub fn of_spki(der: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, der).as_ref());
        Self(hash)
    }
}

/// A nonce and when it was drawn. Not `Clone`: it is good for one verdict.
#[derive(Debug)]
pub struct Challenge {
    pub(crate) nonce: Nonce,
    pub(crate) issued: UnixTime,
}

impl Challenge {
    /// Draws a nonce.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn fresh(now: UnixTime) -> Result<Self, NoRandomness> {
        Ok(Self::new(Nonce::fresh()?, now))
    }

    /// A challenge of a nonce that the caller has drawn at that time.
    pub fn new(nonce: Nonce, issued: UnixTime) -> Self {
        Self { nonce, issued }
    }

    /// What to send.
    pub fn nonce(&self) -> Nonce {
        self.nonce
    }
}

/// The 64 bytes that a platform signs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ReportData(pub [u8; 64]);

impl fmt::Debug for ReportData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReportData({})", hex::encode(self.0))
    }
}

/// A TLS connection: its key, and what only its two ends know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Channel {
    /// The service's TLS key.
    pub key: KeyHash,
    /// The connection.
    pub exporter: Exporter,
}

/// A key to which clients seal single requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mailbox {
    /// The service's HPKE key.
    pub key: KemPublic,
}

/// A key to which an owner seals the key of one model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Release {
    /// The service's HPKE key.
    pub key: KemPublic,
    /// The model.
    pub model: ModelId,
}

/// A statement in full, as evidence carries it. What the peer says here is only held against what
/// the verifier knows, to say which part differs; what counts is the digest that was signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "purpose", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Statement {
    /// See [`Channel`].
    Channel {
        /// The verifier's nonce.
        nonce: Nonce,
        /// Hash of the TLS key.
        key: KeyHash,
        /// The connection.
        exporter: Exporter,
    },
    /// See [`Mailbox`].
    Mailbox {
        /// The verifier's nonce.
        nonce: Nonce,
        /// The HPKE key.
        key: KemPublic,
    },
    /// See [`Release`].
    Release {
        /// The verifier's nonce.
        nonce: Nonce,
        /// The HPKE key.
        key: KemPublic,
        /// The model.
        model: ModelId,
    },
}

impl Statement {
    /// A channel's statement.
    pub fn channel(channel: &Channel, nonce: Nonce) -> Self {
        Self::Channel {
            nonce,
            key: channel.key,
            exporter: channel.exporter,
        }
    }

    /// A mailbox's statement.
    pub fn mailbox(mailbox: &Mailbox, nonce: Nonce) -> Self {
        Self::Mailbox {
            nonce,
            key: mailbox.key,
        }
    }

    /// A release's statement.
    pub fn release(release: &Release, nonce: Nonce) -> Self {
        Self::Release {
            nonce,
            key: release.key,
            model: release.model,
        }
    }

    /// What the platform signs.
    pub fn report_data(&self) -> ReportData {
        let none = [0; 32];
        let (purpose, nonce, key, third) = match self {
            Self::Channel {
                nonce,
                key,
                exporter,
            } => (1, nonce, &key.0, &exporter.0),
            Self::Mailbox { nonce, key } => (2, nonce, &key.0, &none),
            Self::Release { nonce, key, model } => (3, nonce, &key.0, &model.0),
        };
        let mut text = Vec::with_capacity(LABEL.len() + 1 + 3 * 32);
        text.extend_from_slice(LABEL);
        text.push(purpose);
        for part in [&nonce.0, key, third] {
            text.extend_from_slice(part);
        }
        let mut data = [0; 64];
        data.copy_from_slice(digest(&SHA512, &text).as_ref());
        ReportData(data)
    }

    /// Its purpose, by name.
    pub fn purpose(&self) -> &'static str {
        match self {
            Self::Channel { .. } => "channel",
            Self::Mailbox { .. } => "mailbox",
            Self::Release { .. } => "release",
        }
    }

    /// Its nonce.
    pub fn nonce(&self) -> Nonce {
        match self {
            Self::Channel { nonce, .. }
            | Self::Mailbox { nonce, .. }
            | Self::Release { nonce, .. } => *nonce,
        }
    }

    /// Holds what a peer says against what must be, and names the part that differs.
    pub(crate) fn hold_against(&self, wanted: &Self) -> Result<(), Refused> {
        if self.nonce() != wanted.nonce() && self.purpose() == wanted.purpose() {
            return Err(Refused::StaleNonce);
        }
        match (self, wanted) {
            (
                Self::Channel { key, exporter, .. },
                Self::Channel {
                    key: own_key,
                    exporter: own,
                    ..
                },
            ) => {
                if key != own_key {
                    return Err(Refused::OtherKey {
                        expected: *own_key,
                        got: *key,
                    });
                }
                if exporter != own {
                    return Err(Refused::OtherConnection);
                }
                Ok(())
            }
            (Self::Mailbox { .. }, Self::Mailbox { .. }) => Ok(()),
            (
                Self::Release { model, .. },
                Self::Release {
                    model: wanted_model,
                    ..
                },
            ) => {
                if model != wanted_model {
                    return Err(Refused::OtherModel {
                        expected: *wanted_model,
                        got: *model,
                    });
                }
                Ok(())
            }
            _ => Err(Refused::OtherPurpose {
                expected: wanted.purpose(),
                got: self.purpose(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_and_the_purpose_change_the_digest() {
        let channel = |nonce, key, exporter| {
            let channel = Channel {
                key: KeyHash([key; 32]),
                exporter: Exporter([exporter; 32]),
            };
            Statement::channel(&channel, Nonce([nonce; 32])).report_data()
        };
        let release = |nonce, key, model| {
            let release = Release {
                key: KemPublic([key; 32]),
                model: ModelId([model; 32]),
            };
            Statement::release(&release, Nonce([nonce; 32])).report_data()
        };
        let mailbox = Mailbox {
            key: KemPublic([2; 32]),
        };
        let all = [
            channel(1, 2, 3),
            channel(0, 2, 3),
            channel(1, 0, 3),
            channel(1, 2, 0),
            release(1, 2, 3),
            release(1, 2, 0),
            Statement::mailbox(&mailbox, Nonce([1; 32])).report_data(),
        ];
        for (i, a) in all.iter().enumerate() {
            for b in &all[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn the_digest_is_the_documented_one() {
        // printf 'larvatus/attest/1\0\002' then 32 × 01, 32 × 02, 32 × 00, through sha512sum.
        let mailbox = Mailbox {
            key: KemPublic([2; 32]),
        };
        let data = Statement::mailbox(&mailbox, Nonce([1; 32])).report_data();
        assert_eq!(hex::encode(data.0), EXPECTED);
    }

    const EXPECTED: &str = "d475cbaccf6888b671c9ea52f8d982e086599ffdfe987e5881730d3fff80832cc0b38863ae70ee373ae1d440d07e5162717e77c222a386fc3f095f598cdd466b";
}
