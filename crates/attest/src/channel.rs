//! TLS to an attested service.
//!
//! The service makes its key itself ([`Identity::fresh`]), so the key is as old as the process. The
//! client accepts any certificate in the handshake (it proves possession of its key, nothing else),
//! and then asks, as the first thing on the connection, for evidence about that key, its own nonce
//! and the connection's exporter. Nothing else is sent before the evidence has been verified:
//! [`Attesting`] can do nothing but that, and gives an [`AttestedStream`] only where it succeeds.
//!
//! ```text
//! GET /attestation?purpose=channel&nonce=<64 digits> HTTP/1.1        → 200, application/json: Evidence
//! ```
//!
//! TLS 1.3 only; no resumption and no early data, so every connection is attested by itself.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use ring::rand::SystemRandom;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, DigitallySignedStruct, ServerConfig,
    SignatureScheme, StreamOwned,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::evidence::{Evidence, EvidenceError, MAX_ENCODED};
use crate::http::{self, HttpError};
use crate::statement::{Challenge, Channel, Exporter, KeyHash, NoRandomness, UnixTime};
use crate::verify::{Attested, Refused, Verifier};

/// Label of the exporter, without context.
const EXPORTER: &[u8] = b"EXPORTER-larvatus-attest-1";

/// Where services answer.
pub const PATH: &str = "/attestation";

/// Why there is no attested connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChannelError {
    /// The connection fails.
    #[error("the connection fails: {0}")]
    Io(#[from] io::Error),
    /// TLS fails.
    #[error("TLS fails: {0}")]
    Tls(#[from] rustls::Error),
    /// The host's name cannot be one.
    #[error("{name:?} is neither a host's name nor an address")]
    Name {
        /// What was given.
        name: String,
    },
    /// The service's certificate cannot be read.
    #[error("the service's certificate cannot be read")]
    Certificate,
    /// A key or certificate of one's own cannot be made.
    #[error("no key or certificate can be made: {0}")]
    Identity(String),
    /// The system gives no randomness.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The service does not answer as it should.
    #[error("the service gives no evidence: {0}")]
    Http(#[from] HttpError),
    /// The service answers with another status.
    #[error("the service gives no evidence: it answers with status {status}")]
    Status {
        /// HTTP's number.
        status: u16,
    },
    /// What it answers is no evidence.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The evidence is refused. Nothing was sent.
    #[error("the service is refused: {0}")]
    Refused(#[from] Refused),
}

/// The exporter of either end of a connection whose handshake is over.
///
/// # Errors
/// rustls' where the handshake is not over.
pub fn exporter<D>(connection: &ConnectionCommon<D>) -> Result<Exporter, rustls::Error> {
    connection
        .export_keying_material([0; 32], EXPORTER, None)
        .map(Exporter)
}

fn crypto() -> Arc<CryptoProvider> {
    Arc::new(provider::default_provider())
}

/// A service's TLS key, with a certificate that it signed itself.
pub struct Identity {
    certificate: CertificateDer<'static>,
    key: rcgen::KeyPair,
    hash: KeyHash,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Identity").field(&self.hash).finish()
    }
}

impl Identity {
    /// A new key (ECDSA P-256), for these host names.
    ///
    /// # Errors
    /// [`ChannelError::Identity`].
    pub fn fresh(names: Vec<String>) -> Result<Self, ChannelError> {
        let failed = |error: rcgen::Error| ChannelError::Identity(error.to_string());
        // rcgen draws by itself; this asks first whether the system has randomness at all.
        ring::rand::generate::<[u8; 32]>(&SystemRandom::new()).map_err(|_| NoRandomness)?;
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let params = rcgen::CertificateParams::new(names).map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let hash = spki_hash(certificate.der())?;
        Ok(Self {
            certificate: certificate.der().clone(),
            key,
            hash,
        })
    }

    /// By which evidence names the key.
    pub fn key(&self) -> KeyHash {
        self.hash
    }

    /// The certificate (DER), for clients that pin it.
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// What a TLS server runs with.
    ///
    /// # Errors
    /// [`ChannelError::Tls`].
    pub fn server_config(&self, alpn: &[&[u8]]) -> Result<ServerConfig, ChannelError> {
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        let mut config = ServerConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], key)?;
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(config)
    }
}

fn spki_hash(certificate: &[u8]) -> Result<KeyHash, ChannelError> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(KeyHash::of_spki(certificate.public_key().raw)),
        _ => Err(ChannelError::Certificate),
    }
}

/// Accepts any key that its holder proves to hold. Only [`Attesting`] uses it.
#[derive(Debug)]
struct AnyKey(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is off".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection after its handshake, to nobody knows whom. It can be attested, and nothing else.
pub struct Attesting {
    stream: StreamOwned<ClientConnection, TcpStream>,
    host: String,
    channel: Channel,
}

impl std::fmt::Debug for Attesting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Attesting").field(&self.channel).finish()
    }
}

impl Attesting {
    /// Does the handshake. Timeouts are those of the socket. `host` goes into SNI and `Host`.
    ///
    /// # Errors
    /// [`ChannelError`].
    pub fn handshake(mut socket: TcpStream, host: &str) -> Result<Self, ChannelError> {
        let bare = host.rsplit_once(':').map_or(host, |(bare, _)| bare);
        let bare = bare.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(bare.to_owned()).map_err(|_| ChannelError::Name {
            name: host.to_owned(),
        })?;
        let provider = crypto();
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey(provider)))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut connection = ClientConnection::new(Arc::new(config), name)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        let certificates = connection.peer_certificates();
        let certificate = certificates.and_then(|all| all.first());
        let key = spki_hash(certificate.ok_or(ChannelError::Certificate)?)?;
        let exporter = exporter(&connection)?;
        Ok(Self {
            stream: StreamOwned::new(connection, socket),
            host: host.to_owned(),
            channel: Channel { key, exporter },
        })
    }

    /// What this end knows of the connection.
    pub fn channel(&self) -> Channel {
        self.channel
    }

    /// Asks for evidence and verifies it. `clock` is read before the question and after the answer.
    ///
    /// # Errors
    /// [`ChannelError`]; the connection is closed then, and nothing but the question was sent.
    pub fn attest(
        mut self,
        verifier: &Verifier,
        clock: impl Fn() -> UnixTime,
    ) -> Result<AttestedStream, ChannelError> {
        let challenge = Challenge::fresh(clock())?;
        let path = format!("{PATH}?purpose=channel&nonce={}", challenge.nonce());
        let question = http::Request {
            method: "GET",
            path: &path,
            host: &self.host,
            headers: &[("Accept", "application/json")],
            body: &[],
        };
        let answer = http::exchange(&mut self.stream, &question, MAX_ENCODED)?;
        if answer.status != 200 {
            return Err(ChannelError::Status {
                status: answer.status,
            });
        }
        let evidence = Evidence::decode(&answer.body)?;
        let attested = verifier.channel(&evidence, challenge, self.channel, clock())?;
        Ok(AttestedStream {
            stream: self.stream,
            host: self.host,
            attested,
        })
    }
}

/// A TLS connection whose far end was attested. Built by [`Attesting::attest`] alone.
pub struct AttestedStream {
    stream: StreamOwned<ClientConnection, TcpStream>,
    host: String,
    attested: Attested<Channel>,
}

impl std::fmt::Debug for AttestedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("AttestedStream")
            .field(&self.attested)
            .finish()
    }
}

impl AttestedStream {
    /// What was attested.
    pub fn attested(&self) -> &Attested<Channel> {
        &self.attested
    }

    /// One HTTP/1.1 exchange on the connection.
    ///
    /// # Errors
    /// [`HttpError`].
    pub fn exchange(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        limit: usize,
    ) -> Result<http::Response, HttpError> {
        let request = http::Request {
            method,
            path,
            host: &self.host,
            headers,
            body,
        };
        http::exchange(&mut self.stream, &request, limit)
    }
}

impl Read for AttestedStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stream.read(buffer)
    }
}

impl Write for AttestedStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
