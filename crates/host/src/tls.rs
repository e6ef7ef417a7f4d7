//! TLS 1.3 between pinned keys.
//!
//! There is no authority, no certificate and no name: each end is known by its raw Ed25519 key
//! (RFC 7250), and a [`Pin`] is the SHA-256 of that key's SubjectPublicKeyInfo. Who connects
//! accepts exactly the key whose pin the address has; who listens may demand one of some keys in
//! turn. Earlier versions of TLS, resumption and early data do not exist here.
//!
//! Reading and writing go on at the same time: neither waits for the other while it waits for the
//! socket. An end without the goodbye that TLS has for it (`close_notify`) is an error, since
//! anybody on the way can cause one.
//!
//! Source: RFC 8446, RFC 7250; the protocol itself is rustls'.

mod pinned;

use std::fmt;
use std::fs;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::net::{SendFlags, send};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, ClientConnection, Resumption};
use rustls::crypto::ring as provider;
use rustls::crypto::ring::sign::any_eddsa_type;
use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, NoServerSessionStorage, ServerConnection};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{AlertDescription, ClientConfig, Connection, Error, ServerConfig};

use crate::address::Pin;
use pinned::Pinned;

/// Ciphertext read at once.
const READ: usize = 64 << 10;

/// Plaintext that is encrypted at once.
const WRITE: usize = 256 << 10;

/// Longest key file that is read; ours have 83 bytes.
const KEY_FILE: u64 = 4096;

/// How long the handshake of a connection that was accepted may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// How long a peer that is refused may take to leave.
const LINGER: Duration = Duration::from_millis(500);

/// How long the goodbye may wait for the peer to read.
const GOODBYE: Duration = Duration::from_secs(1);

/// Who this end is: an Ed25519 key.
#[derive(Clone)]
pub struct Identity {
    key: Arc<CertifiedKey>,
    pin: Pin,
}

/// Why there is no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The key file cannot be read or made.
    #[error("key file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Others than its owner may read or change the key file.
    #[error("key file {} is open to others (mode {mode:o}); chmod 600 it", path.display())]
    OpenToOthers {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file holds no Ed25519 key.
    #[error("key file {} holds no Ed25519 key in PKCS#8 (DER)", path.display())]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
    /// The system gives no randomness.
    #[error("cannot make a key: no randomness")]
    Randomness,
}

impl Identity {
    /// Reads the key file, or makes one with a fresh key, readable by its owner only.
    ///
    /// # Errors
    /// [`IdentityError`]; a file that exists is never changed.
    pub fn open(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::File {
            path: path.to_owned(),
            source,
        };
        let not_a_key = || IdentityError::NotAKey {
            path: path.to_owned(),
        };
        let file = match fs::File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make_key_file(path)?;
                fs::File::open(path)
            }
            other => other,
        };
        let file = file.map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            let path = path.to_owned();
            return Err(IdentityError::OpenToOthers { path, mode });
        }
        let mut der = Vec::new();
        file.take(KEY_FILE).read_to_end(&mut der).map_err(failed)?;
        Self::from_der(der).ok_or_else(not_a_key)
    }

    /// An identity that nobody knows, kept nowhere.
    fn fresh() -> Result<Self, IdentityError> {
        Self::from_der(new_key()?).ok_or(IdentityError::Randomness)
    }

    fn from_der(der: Vec<u8>) -> Option<Self> {
        let key = any_eddsa_type(&PrivatePkcs8KeyDer::from(der)).ok()?;
        let public = key.public_key()?.to_vec();
        let pin = pin_of(&public);
        let key = Arc::new(CertifiedKey::new(vec![public.into()], key));
        Some(Self { key, pin })
    }

    /// The pin by which others know this end.
    pub fn pin(&self) -> Pin {
        self.pin
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.pin).finish()
    }
}

/// Writes a fresh key under a name of its own first: a file of the right name is always whole, and
/// of two processes that make it at once both use the same.
fn make_key_file(path: &Path) -> Result<(), IdentityError> {
    static DRAFTS: AtomicUsize = AtomicUsize::new(0);
    let key = new_key()?;
    let mut name = path.as_os_str().to_owned();
    let draft = DRAFTS.fetch_add(1, Ordering::Relaxed);
    name.push(format!(".{}-{draft}.new", std::process::id()));
    let draft = PathBuf::from(name);
    let write = || {
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&key)?;
        file.sync_all()?;
        match fs::hard_link(&draft, path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    };
    let written = write();
    let _ = fs::remove_file(&draft);
    written.map_err(|source| IdentityError::File {
        path: path.to_owned(),
        source,
    })
}

/// A fresh key in PKCS#8.
fn new_key() -> Result<Vec<u8>, IdentityError> {
    let random = ring::rand::SystemRandom::new();
    let key = ring::signature::Ed25519KeyPair::generate_pkcs8(&random)
        .map_err(|_| IdentityError::Randomness)?;
    Ok(key.as_ref().to_vec())
}

fn pin_of(public: &[u8]) -> Pin {
    let digest = ring::digest::digest(&ring::digest::SHA256, public);
    let mut pin = [0; 32];
    pin.iter_mut()
        .zip(digest.as_ref())
        .for_each(|(to, from)| *to = *from);
    Pin(pin)
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    /// The other end has this key, not the one that was asked for.
    OtherKey(Pin),
    /// Not within the time.
    TimedOut,
    /// Anything else.
    Io(io::Error),
}

impl From<HandshakeError> for io::Error {
    fn from(error: HandshakeError) -> Self {
        match error {
            HandshakeError::OtherKey(_) => ErrorKind::PermissionDenied.into(),
            HandshakeError::TimedOut => ErrorKind::TimedOut.into(),
            HandshakeError::Io(error) => error,
        }
    }
}

/// How connections of a listener begin.
#[derive(Clone, Debug)]
pub(crate) struct Acceptor(Arc<ServerConfig>);

impl Acceptor {
    /// Serves as `identity`; with keys in `allow`, only whoever has one of them.
    pub(crate) fn new(identity: &Identity, allow: &[Pin]) -> Result<Self, Error> {
        let provider = Arc::new(provider::default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?;
        // A key is demanded of everybody, so that an unknown one hears why it is refused.
        let admitted = (!allow.is_empty()).then(|| allow.to_vec());
        let verifier = Arc::new(Pinned::new(provider, admitted));
        let config = config.with_client_cert_verifier(verifier);
        let key = AlwaysResolvesServerRawPublicKeys::new(Arc::clone(&identity.key));
        let mut config = config.with_cert_resolver(Arc::new(key));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Self(Arc::new(config)))
    }

    /// The stream of an accepted connection, before its handshake.
    pub(crate) fn accept(&self, socket: TcpStream) -> io::Result<Stream> {
        let connection = ServerConnection::new(Arc::clone(&self.0)).map_err(io::Error::other)?;
        Ok(Stream::new(socket, connection.into()))
    }
}

/// A TLS connection. Reading and writing go through a shared reference.
pub(crate) struct Stream {
    socket: TcpStream,
    /// After the handshake held for computation only, never while the socket is waited for.
    connection: Mutex<Connection>,
    /// Whether the handshake is over.
    ready: AtomicBool,
    /// The reader's. Taken before `connection`.
    incoming: Mutex<Incoming>,
    /// The writer's: records go out in the order in which they were made. Taken before
    /// `connection`.
    outgoing: Mutex<Outgoing>,
}

/// Ciphertext that has come and was not looked at.
struct Incoming {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

/// Ciphertext on its way out.
struct Outgoing {
    bytes: Vec<u8>,
    /// A record was lost on its way out, so nothing may follow it.
    broken: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.socket).finish()
    }
}

impl Stream {
    fn new(socket: TcpStream, mut connection: Connection) -> Self {
        connection.set_buffer_limit(Some(WRITE));
        Self {
            socket,
            connection: Mutex::new(connection),
            ready: AtomicBool::new(false),
            incoming: Mutex::new(Incoming {
                bytes: vec![0; READ].into(),
                from: 0,
                to: 0,
            }),
            outgoing: Mutex::new(Outgoing {
                bytes: Vec::new(),
                broken: false,
            }),
        }
    }

    /// Connects to whoever has the key with this pin, or to anybody without one, as `identity` if one is
    /// given and else as nobody in particular.
    pub(crate) fn connect(
        socket: TcpStream,
        pin: Option<Pin>,
        identity: Option<&Identity>,
        within: Duration,
    ) -> Result<Self, HandshakeError> {
        let other = |error: Error| HandshakeError::Io(io::Error::other(error));
        let provider = Arc::new(provider::default_provider());
        let verifier = Arc::new(Pinned::new(Arc::clone(&provider), pin.map(|pin| vec![pin])));
        let config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(other)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<_>);
        // Without any key, one that demands one would not come as far as to say so.
        let own = match identity {
            Some(identity) => Arc::clone(&identity.key),
            None => {
                Identity::fresh()
                    .map_err(|error| HandshakeError::Io(io::Error::other(error)))?
                    .key
            }
        };
        let own = AlwaysResolvesClientRawPublicKeys::new(own);
        let mut config = config.with_client_cert_resolver(Arc::new(own));
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        let nobody = ServerName::try_from("larvatus")
            .map_err(|error| HandshakeError::Io(io::Error::new(ErrorKind::InvalidInput, error)))?;
        let connection = ClientConnection::new(Arc::new(config), nobody).map_err(other)?;
        let stream = Self::new(socket, connection.into());
        match stream.handshake(within) {
            Ok(()) => Ok(stream),
            Err(error) => Err(match *lock(&verifier.refused) {
                Some(got) => HandshakeError::OtherKey(got),
                None => error,
            }),
        }
    }

    /// Who the other end is, after the handshake.
    pub(crate) fn peer(&self) -> Result<Option<Pin>, HandshakeError> {
        self.handshake(HANDSHAKE)?;
        let connection = lock(&self.connection);
        let keys = connection.peer_certificates().unwrap_or_default();
        Ok(keys.first().map(|key| pin_of(key)))
    }

    /// Completes the handshake, if that is still to be done; whoever reads or writes first does.
    fn handshake(&self, within: Duration) -> Result<(), HandshakeError> {
        if self.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let end = Instant::now() + within;
        let mut connection = lock(&self.connection);
        let write_timeout = self.socket.write_timeout().map_err(HandshakeError::Io)?;
        let mut socket = &self.socket;
        let waited = |error: io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => HandshakeError::TimedOut,
            _ => HandshakeError::Io(error),
        };
        let left = || match end.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(HandshakeError::TimedOut),
            left => Ok(Some(left)),
        };
        while connection.is_handshaking() || connection.wants_write() {
            if connection.wants_write() {
                socket
                    .set_write_timeout(left()?)
                    .map_err(HandshakeError::Io)?;
                connection.write_tls(&mut socket).map_err(waited)?;
                continue;
            }
            socket
                .set_read_timeout(left()?)
                .map_err(HandshakeError::Io)?;
            match connection.read_tls(&mut socket) {
                Ok(0) => {
                    let why = "the other end left in the handshake; does it speak TLS?";
                    let error = io::Error::new(ErrorKind::ConnectionAborted, why);
                    return Err(HandshakeError::Io(error));
                }
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(waited(error)),
            }
            if let Err(error) = connection.process_new_packets() {
                // Says why before it goes.
                let _ = connection.write_tls(&mut socket);
                self.linger();
                return Err(HandshakeError::Io(refused(error)));
            }
        }
        let timeouts = [
            socket.set_read_timeout(None),
            socket.set_write_timeout(write_timeout),
        ];
        timeouts
            .into_iter()
            .collect::<io::Result<()>>()
            .map_err(HandshakeError::Io)?;
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends a connection that did not come about so that the peer hears why: a socket that is closed
    /// with something unread takes back what it said last.
    fn linger(&self) {
        let end = Instant::now() + LINGER;
        let mut socket = &self.socket;
        let _ = socket.shutdown(Shutdown::Write);
        let mut rest = [0; 4096];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timed = !left.is_zero() && socket.set_read_timeout(Some(left)).is_ok();
            if !timed || !matches!(socket.read(&mut rest), Ok(1..)) {
                break;
            }
        }
    }

    pub(crate) fn read(&self, to: &mut [u8]) -> io::Result<usize> {
        if to.is_empty() {
            return Ok(0);
        }
        self.handshake(HANDSHAKE)?;
        let mut incoming = lock(&self.incoming);
        let Incoming {
            bytes,
            from,
            to: until,
        } = &mut *incoming;
        loop {
            let mut connection = lock(&self.connection);
            match connection.reader().read(to) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(ErrorKind::ConnectionAborted.into());
                }
                done => return done,
            }
            if let Some(mut rest) = bytes.get(*from..*until).filter(|rest| !rest.is_empty()) {
                connection.read_tls(&mut rest)?;
                *from = *until - rest.len();
                if let Err(error) = connection.process_new_packets() {
                    drop(connection);
                    self.last_words();
                    return Err(refused(error));
                }
                continue;
            }
            drop(connection);
            (*from, *until) = (0, 0);
            *until = (&self.socket).read(bytes)?;
            if *until == 0 {
                lock(&self.connection).read_tls(&mut io::empty())?;
            }
        }
    }

    pub(crate) fn write_vectored(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.handshake(HANDSHAKE)?;
        let mut outgoing = lock(&self.outgoing);
        let mut connection = lock(&self.connection);
        // Where reading has failed, the reader says why.
        let taken = connection.writer().write_vectored(parts);
        let taken = taken.map_err(|_| io::Error::from(ErrorKind::BrokenPipe))?;
        outgoing.take(&mut connection)?;
        drop(connection);
        outgoing.send(&self.socket)?;
        Ok(taken)
    }

    pub(crate) fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.socket.set_write_timeout(timeout)
    }

    /// Ends one direction or both, with a goodbye where the peer reads it soon enough.
    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match how {
            Shutdown::Read => {}
            Shutdown::Write => {
                let mut outgoing = lock(&self.outgoing);
                if self.goodbye(&mut outgoing) {
                    let _ = self.socket.set_write_timeout(Some(GOODBYE));
                    let _ = outgoing.send(&self.socket);
                }
            }
            Shutdown::Both => self.last_words(),
        }
        self.socket.shutdown(how)
    }

    /// What is left to say goes out if the socket takes it at once.
    fn last_words(&self) {
        // Whoever writes just now is in the middle of a record.
        if let Ok(mut outgoing) = self.outgoing.try_lock()
            && self.goodbye(&mut outgoing)
        {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _ = send(&self.socket, &outgoing.bytes, flags);
            outgoing.broken = true;
        }
    }

    /// Puts a goodbye into `outgoing`; false where there is no use in one.
    fn goodbye(&self, outgoing: &mut Outgoing) -> bool {
        if outgoing.broken || !self.ready.load(Ordering::Acquire) {
            return false;
        }
        let mut connection = lock(&self.connection);
        connection.send_close_notify();
        outgoing.take(&mut connection).is_ok()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.last_words();
    }
}

impl Outgoing {
    /// Takes what the connection has to send.
    fn take(&mut self, connection: &mut Connection) -> io::Result<()> {
        if self.broken {
            return Err(ErrorKind::BrokenPipe.into());
        }
        while connection.wants_write() {
            connection.write_tls(&mut self.bytes)?;
        }
        Ok(())
    }

    fn send(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        let sent = socket.write_all(&self.bytes);
        self.bytes.clear();
        self.broken = sent.is_err();
        sent
    }
}

/// What a stream's user is told of what TLS refuses.
fn refused(error: Error) -> io::Error {
    let (kind, why) = match error {
        Error::AlertReceived(
            AlertDescription::AccessDenied
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired,
        ) => (
            ErrorKind::PermissionDenied,
            "the other end does not admit this key, or the lack of one",
        ),
        Error::InvalidMessage(_) => (ErrorKind::InvalidData, "what came is not TLS"),
        Error::AlertReceived(
            AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure,
        )
        | Error::PeerIncompatible(_) => (
            ErrorKind::InvalidData,
            "the other end does not speak TLS 1.3 with a raw Ed25519 key",
        ),
        other => return io::Error::new(ErrorKind::InvalidData, other),
    };
    io::Error::new(kind, why)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
