//! The kernel's report interface, configfs-tsm: SEV-SNP and TDX.
//!
//! An entry is a folder. What is written to `inblob` is what the report is about; `outblob` is then
//! the report, `auxblob` the certificates that the host gives (SNP), and `generation` counts writes,
//! so that a process sees if another wrote to its entry.
//!
//! Source: Linux, `Documentation/ABI/testing/configfs-tsm-report`; AMD 56421 (GHCB), §4.1.8.1, for
//! the table in `auxblob`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::{Duration, Instant};

use dcap_qvl::QuoteCollateralV3;

use crate::attester::{AttestError, Attester};
use crate::evidence::Evidence;
use crate::platform::Platform;
use crate::statement::{ReportData, Statement};

/// Where the kernel has it.
const ROOT: &str = "/sys/kernel/config/tsm/report";

/// Longest file that is read.
const LONGEST: u64 = 256 << 10;

/// How long a report may take. The kernel makes it while `inblob` is written.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The VCEK's place in the table of certificates: 63da758d-e664-4564-adc5-f4b93be8accd.
const VCEK: [u8; 16] = [
    0x63, 0xda, 0x75, 0x8d, 0xe6, 0x64, 0x45, 0x64, 0xad, 0xc5, 0xf4, 0xb9, 0x3b, 0xe8, 0xac, 0xcd,
];

/// One entry of configfs-tsm.
#[derive(Debug)]
pub struct ConfigfsTsm {
    entry: PathBuf,
    /// Whether the folder is ours to remove.
    made: bool,
    platform: Platform,
    collateral: Option<QuoteCollateralV3>,
    /// One report at a time.
    turn: Mutex<()>,
}

impl ConfigfsTsm {
    /// Opens the kernel's interface.
    ///
    /// # Errors
    /// [`AttestError`]: no such interface, no right to it, or a provider that is not known.
    pub fn open() -> Result<Self, AttestError> {
        let name = format!("larvatus-{}", std::process::id());
        Self::at(Path::new(ROOT), &name)
    }

    /// Opens an interface at another place. An entry of this name is used if there is one, and made if
    /// there is none.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn at(root: &Path, name: &str) -> Result<Self, AttestError> {
        let entry = root.join(name);
        let made = match fs::create_dir(&entry) {
            Ok(()) => true,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => false,
            Err(source) => {
                return Err(AttestError::File {
                    path: entry,
                    source,
                });
            }
        };
        let mut tsm = Self {
            entry,
            made,
            platform: Platform::SevSnp,
            collateral: None,
            turn: Mutex::new(()),
        };
        tsm.platform = match tsm.text("provider")?.as_str() {
            "sev_guest" => Platform::SevSnp,
            "tdx_guest" => Platform::Tdx,
            other => {
                return Err(AttestError::Provider {
                    got: other.chars().take(64).collect(),
                });
            }
        };
        Ok(tsm)
    }

    /// Sends this collateral of Intel's along with every quote.
    #[must_use]
    pub fn with_collateral(mut self, collateral: QuoteCollateralV3) -> Self {
        self.collateral = Some(collateral);
        self
    }

    fn report(&self, data: &ReportData) -> Result<(Vec<u8>, Vec<u8>), AttestError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.generation()?;
        self.write("inblob", &data.0)?;
        let until = Instant::now() + PATIENCE;
        let after = loop {
            let now = self.generation()?;
            if now != before {
                break now;
            }
            if Instant::now() >= until {
                return Err(AttestError::Silent { limit: PATIENCE });
            }
            thread::sleep(LOOK);
        };
        let report = self.read("outblob")?;
        let certificates = match self.read("auxblob") {
            Err(AttestError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {
                Vec::new()
            }
            other => other?,
        };
        if after != before.wrapping_add(1) || self.generation()? != after {
            return Err(AttestError::Interfered {
                path: self.entry.clone(),
            });
        }
        Ok((report, certificates))
    }

    fn generation(&self) -> Result<u64, AttestError> {
        let text = self.text("generation")?;
        text.parse().map_err(|_| AttestError::File {
            path: self.entry.join("generation"),
            source: io::Error::new(ErrorKind::InvalidData, "not a number"),
        })
    }

    fn text(&self, name: &str) -> Result<String, AttestError> {
        let bytes = self.read(name)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, AttestError> {
        let path = self.entry.join(name);
        let mut bytes = Vec::new();
        let read =
            File::open(&path).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
        match read {
            Err(source) => Err(AttestError::File { path, source }),
            Ok(_) if bytes.len() as u64 > LONGEST => Err(AttestError::TooLong {
                path,
                limit: LONGEST,
            }),
            Ok(_) => Ok(bytes),
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), AttestError> {
        let path = self.entry.join(name);
        // One write: the kernel takes a blob whole.
        let written = OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes));
        written.map_err(|source| AttestError::File { path, source })
    }
}

impl Drop for ConfigfsTsm {
    fn drop(&mut self) {
        if self.made {
            // A folder that stays behind is empty and harmless.
            let _ = fs::remove_dir(&self.entry);
        }
    }
}

impl Attester for ConfigfsTsm {
    fn platform(&self) -> Platform {
        self.platform
    }

    fn attest(&self, statement: &Statement) -> Result<Evidence, AttestError> {
        let (report, certificates) = self.report(&statement.report_data())?;
        let evidence = Evidence::new(self.platform, *statement, report);
        if self.platform == Platform::SevSnp {
            return Ok(match vcek(&certificates) {
                Some(der) => evidence.with_vcek(der.to_vec()),
                None => evidence,
            });
        }
        Ok(match &self.collateral {
            Some(collateral) => evidence.with_collateral(collateral.clone()),
            None => evidence,
        })
    }
}

/// The VCEK in a host's table of certificates: entries of 24 bytes (name, offset, length), the last of
/// zeros. A host may write anything there; what is not in order counts as missing.
fn vcek(table: &[u8]) -> Option<&[u8]> {
    for entry in table.chunks_exact(24) {
        let (name, place) = entry.split_at(16);
        if name.iter().all(|byte| *byte == 0) {
            return None;
        }
        if name == VCEK {
            let number = |at: usize| {
                let bytes = place.get(at..at + 4)?.try_into().ok()?;
                usize::try_from(u32::from_le_bytes(bytes)).ok()
            };
            let (offset, length) = (number(0)?, number(4)?);
            return table.get(offset..offset.checked_add(length)?);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_certificates_is_read_within_its_bounds() {
        let entry = |name: [u8; 16], offset: u32, length: u32| {
            [&name[..], &offset.to_le_bytes(), &length.to_le_bytes()].concat()
        };
        let other = [9; 16];
        let mut table = [entry(other, 0, 0), entry(VCEK, 72, 4), entry([0; 16], 0, 0)].concat();
        table.extend(b"vcek");
        assert_eq!(vcek(&table), Some(&b"vcek"[..]));
        assert_eq!(vcek(&table[..74]), None);
        assert_eq!(vcek(&entry(VCEK, u32::MAX, u32::MAX)), None);
        assert_eq!(vcek(&entry([0; 16], 0, 0)), None);
        assert_eq!(vcek(b"short"), None);
    }
}
