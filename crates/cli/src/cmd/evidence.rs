//! What commands share that hold a service against a policy.

use std::net::{TcpStream, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use larvatus_attest::channel::{AttestedStream, Attesting, ChannelError};
use larvatus_attest::policy::Policy;
use larvatus_attest::statement::UnixTime;
use larvatus_attest::verify::Verifier;

/// How long a service may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Which service, and what it must be.
#[derive(clap::Args, Debug)]
pub(crate) struct Trust {
    /// The service, HOST:PORT. It is attested before a byte is sent to it.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) service: String,
    /// What its evidence must say, a TOML file; see docs/serving.md.
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: PathBuf,
    /// Intel's collateral for SGX and TDX (.json), instead of what the service sends.
    #[arg(long, value_name = "FILE")]
    pub(crate) collateral: Option<PathBuf>,
    /// Certificates of AMD chips (VCEK, DER), for services that send none.
    #[arg(long, value_name = "FILE")]
    pub(crate) vcek: Vec<PathBuf>,
    /// AMD's lists of revoked certificates (DER).
    #[arg(long, value_name = "FILE")]
    pub(crate) amd_crl: Vec<PathBuf>,
}

impl Trust {
    pub(crate) fn verifier(&self) -> Result<Verifier> {
        let path = &self.policy;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read policy {}", path.display()))?;
        let policy =
            Policy::from_toml(&text).with_context(|| format!("policy {}", path.display()))?;
        if policy.names_simulated() {
            eprintln!(
                "larvatus: WARNING: the policy {} takes simulated evidence, which anybody can make",
                path.display()
            );
        }
        let mut verifier = Verifier::new(policy)?;
        if let Some(path) = &self.collateral {
            let json = bytes(path)?;
            let collateral = serde_json::from_slice(&json)
                .with_context(|| format!("collateral {}", path.display()))?;
            verifier = verifier.with_collateral(collateral);
        }
        for path in &self.vcek {
            verifier = verifier.with_vcek(bytes(path)?);
        }
        for path in &self.amd_crl {
            verifier = verifier.with_amd_crl(bytes(path)?);
        }
        Ok(verifier)
    }

    /// Connects. An error says whether the service was refused.
    pub(crate) fn connect(&self, verifier: &Verifier) -> Result<AttestedStream, Unattested> {
        let socket = self.socket().map_err(Unattested::Failed)?;
        let attested =
            Attesting::handshake(socket, &self.service).and_then(|end| end.attest(verifier, now));
        let stream = attested.map_err(|error| match error {
            ChannelError::Refused(why) => {
                Unattested::Refused(format!("{} is refused: {why}", self.service))
            }
            other => Unattested::Failed(
                anyhow::Error::new(other).context(format!("service {}", self.service)),
            ),
        })?;
        let attested = stream.attested();
        eprintln!(
            "attested: {} is {}, image {}, {}",
            self.service,
            attested.platform(),
            attested.measurement(),
            attested.level()
        );
        Ok(stream)
    }

    fn socket(&self) -> Result<TcpStream> {
        let addresses = self.service.to_socket_addrs();
        let mut addresses = addresses.with_context(|| format!("service {}", self.service))?;
        let address = addresses
            .next()
            .with_context(|| format!("service {} has no address", self.service))?;
        let socket = TcpStream::connect_timeout(&address, PATIENCE)
            .with_context(|| format!("cannot connect to {}", self.service))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(socket)
    }
}

/// Why there is no connection.
pub(crate) enum Unattested {
    /// The service is not what the policy demands.
    Refused(String),
    /// Something else.
    Failed(anyhow::Error),
}

/// Now, by the system's clock.
pub(crate) fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    UnixTime(since.map_or(0, |since| since.as_secs()))
}

pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
