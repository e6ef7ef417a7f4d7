//! Evidence about oneself: what a service asks its platform for.
//!
//! | platform | interface | here |
//! |---|---|---|
//! | SEV-SNP, TDX | configfs-tsm (`/sys/kernel/config/tsm/report`) | [`ConfigfsTsm`] |
//! | Nitro | `/dev/nsm` | [`Nsm`], over a [`NsmDevice`] |
//! | none | | [`Simulated`] |

mod nsm;
mod simulated;
mod tsm;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use nsm::{Nsm, NsmDevice};
pub use simulated::Simulated;
pub use tsm::ConfigfsTsm;

use crate::evidence::Evidence;
use crate::platform::Platform;
use crate::statement::Statement;

/// Something that has the platform sign a statement.
pub trait Attester: Send + Sync {
    /// The platform.
    fn platform(&self) -> Platform;

    /// Evidence about a statement.
    ///
    /// # Errors
    /// [`AttestError`].
    fn attest(&self, statement: &Statement) -> Result<Evidence, AttestError>;
}

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttestError {
    /// A file of the kernel's interface cannot be used.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel names a provider that is not known.
    #[error(
        "the kernel's report interface has the provider {got:?}; sev_guest and tdx_guest are known"
    )]
    Provider {
        /// What it names.
        got: String,
    },
    /// Another process used the same entry at the same time.
    #[error("another process wrote to {}", path.display())]
    Interfered {
        /// The entry.
        path: PathBuf,
    },
    /// No report came in time.
    #[error("no report came within {} s", limit.as_secs())]
    Silent {
        /// How long it was waited for.
        limit: Duration,
    },
    /// A report is larger than any is.
    #[error("{} has more than {limit} bytes", path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: u64,
    },
    /// The Nitro device refuses, or answers what cannot be read.
    #[error("the Nitro device refuses: {why}")]
    Nsm {
        /// What it says.
        why: String,
    },
}
