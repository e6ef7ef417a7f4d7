//! Connected streams.

use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use socket2::{Domain, SockAddr, Type};

use crate::address::{Address, Pin};
use crate::shared::{self, Shared};
#[cfg(feature = "tls")]
use crate::tls::{self, HandshakeError, Identity};

/// How long a full queue of a Unix socket is left alone before the next attempt.
const RETRY: Duration = Duration::from_millis(5);

/// How long a peer that wishes for shared memory has to say so whole.
const GREETED: Duration = Duration::from_secs(5);

/// Why an address cannot be listened on or connected to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process listens there.
    #[error("{address} is taken: another process listens there")]
    Taken {
        /// The address.
        address: Address,
    },
    /// The path exists and is not a socket; it is left alone.
    #[error("{address} is a file that is not a socket")]
    NotASocket {
        /// The address.
        address: Address,
    },
    /// Nobody listens there.
    #[error("nobody listens on {address}")]
    Nobody {
        /// The address.
        address: Address,
    },
    /// The host's name has no number.
    #[error("{address} has no network address")]
    Unresolved {
        /// The address.
        address: Address,
        /// The resolver's error, if it gave one.
        source: Option<io::Error>,
    },
    /// An address to connect to over TLS does not say who listens there.
    #[error(
        "{address} does not say who listens there; give tls://HOST:PORT#PIN as the listener prints it"
    )]
    NoPin {
        /// The address.
        address: Address,
    },
    /// Somebody else listens there.
    #[error("{address} is answered by somebody else, whose pin is {got}")]
    OtherKey {
        /// The address.
        address: Address,
        /// Who it is.
        got: Pin,
    },
    /// What listens there does not speak TLS as it should.
    #[error("no TLS connection to {address}: {source}")]
    Handshake {
        /// The address.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// To listen over TLS takes an identity.
    #[error("{address} cannot be listened on without an identity")]
    NoIdentity {
        /// The address.
        address: Address,
    },
    /// This program was built without TLS.
    #[error("{address}: this program was built without TLS")]
    NoTls {
        /// The address.
        address: Address,
    },
    /// No connection within the time.
    #[error("{address} did not answer within {} s", after.as_secs_f32())]
    TimedOut {
        /// The address.
        address: Address,
        /// The time waited.
        after: Duration,
    },
    /// The peer gives no shared memory, or none that is acceptable.
    #[error("{address} gives no shared memory: {source}")]
    NoMemory {
        /// The address.
        address: Address,
        /// The error.
        source: io::Error,
    },
    /// The system's error.
    #[error("{address}: {source}")]
    Io {
        /// The address.
        address: Address,
        /// The error.
        source: io::Error,
    },
}

/// A connected stream. Reading and writing go through a shared reference, so that two threads
/// can do both at once.
#[derive(Debug)]
pub struct Link {
    socket: Socket,
    peer: String,
    /// Where payloads lie, if not on the stream.
    shared: Option<Shared>,
}

/// What carries a link's bytes.
#[derive(Debug)]
pub(crate) enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
    Vsock(socket2::Socket),
    #[cfg(feature = "tls")]
    Tls(Box<tls::Stream>),
}

impl Link {
    /// Connects to a listener. All network addresses of a host share the time.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn connect(address: &Address, timeout: Duration) -> Result<Self, OpenError> {
        let end = Instant::now() + timeout;
        let socket = match address {
            Address::Unix(path) | Address::Shared(path) => connect_unix(path, end)
                .map(Socket::Unix)
                .map_err(|source| not_open(address, timeout, source))?,
            Address::Tcp { host, port } => {
                Socket::Tcp(connect_tcp(address, host, *port, timeout, end)?)
            }
            Address::Vsock { cid, port } => connect_vsock(*cid, *port, timeout)
                .map(Socket::Vsock)
                .map_err(|source| not_open(address, timeout, source))?,
            Address::Tls { .. } => return Self::connect_tls(address, None, timeout),
        };
        let shared = match (&socket, address) {
            (Socket::Unix(stream), Address::Shared(_)) => {
                let left = end.saturating_duration_since(Instant::now());
                let agreed = Shared::agree(stream, left).map_err(|source| OpenError::NoMemory {
                    address: address.clone(),
                    source,
                })?;
                Some(agreed)
            }
            _ => None,
        };
        Ok(Self {
            socket,
            peer: address.to_string(),
            shared,
        })
    }

    /// Connects over TLS to the listener whose pin the address has, as `identity` if one is given.
    ///
    /// # Errors
    /// [`OpenError`]; of another kind of address, [`OpenError::NoPin`].
    #[cfg(feature = "tls")]
    pub fn connect_tls(
        address: &Address,
        identity: Option<&Identity>,
        timeout: Duration,
    ) -> Result<Self, OpenError> {
        let end = Instant::now() + timeout;
        let Address::Tls {
            host,
            port,
            pin: Some(pin),
        } = address
        else {
            return Err(OpenError::NoPin {
                address: address.clone(),
            });
        };
        Self::over_tls(address, (host, *port), Some(*pin), identity, (timeout, end))
    }

    /// Connects over TLS to whoever listens there, to learn its key ([`peer_pin`](Self::peer_pin)). Nobody has
    /// vouched for that key: this is for pairing, and for nothing else.
    ///
    /// # Errors
    /// [`OpenError`]; of another kind of address, [`OpenError::NoPin`]. A pin in the address is demanded.
    #[cfg(feature = "tls")]
    pub fn meet(
        address: &Address,
        identity: &Identity,
        timeout: Duration,
    ) -> Result<Self, OpenError> {
        let end = Instant::now() + timeout;
        match address {
            Address::Tls { host, port, pin } => {
                let times = (timeout, end);
                Self::over_tls(address, (host, *port), *pin, Some(identity), times)
            }
            Address::Unix(_) | Address::Shared(_) | Address::Tcp { .. } | Address::Vsock { .. } => {
                Err(OpenError::NoPin {
                    address: address.clone(),
                })
            }
        }
    }

    /// Who the other end is, where the link has proved it: over TLS, after the handshake.
    ///
    /// # Errors
    /// The handshake's; the link is of no use then.
    #[cfg(feature = "tls")]
    pub fn peer_pin(&self) -> io::Result<Option<Pin>> {
        match &self.socket {
            Socket::Tls(stream) => Ok(stream.peer()?),
            Socket::Unix(_) | Socket::Tcp(_) | Socket::Vsock(_) => Ok(None),
        }
    }

    #[cfg(feature = "tls")]
    fn over_tls(
        address: &Address,
        (host, port): (&str, u16),
        pin: Option<Pin>,
        identity: Option<&Identity>,
        (timeout, end): (Duration, Instant),
    ) -> Result<Self, OpenError> {
        let stream = connect_tcp(address, host, port, timeout, end)?;
        let left = end.saturating_duration_since(Instant::now());
        let stream = tls::Stream::connect(stream, pin, identity, left).map_err(|error| {
            let address = address.clone();
            match error {
                HandshakeError::OtherKey(got) => OpenError::OtherKey { address, got },
                HandshakeError::TimedOut => OpenError::TimedOut {
                    address,
                    after: timeout,
                },
                HandshakeError::Io(source) => OpenError::Handshake { address, source },
            }
        })?;
        Ok(Self {
            socket: Socket::Tls(Box::new(stream)),
            peer: address.to_string(),
            shared: None,
        })
    }

    #[cfg(not(feature = "tls"))]
    fn connect_tls(address: &Address, _: Option<()>, _: Duration) -> Result<Self, OpenError> {
        Err(OpenError::NoTls {
            address: address.clone(),
        })
    }

    /// On the listening side of a Unix socket, hears whether the peer wishes for shared memory
    /// and gives it; `false` while it has said nothing within `wait`. Other streams need none.
    ///
    /// # Errors
    /// The system's error, or that of memory which is not acceptable: the link is of no use.
    pub fn greet(&mut self, wait: Duration) -> io::Result<bool> {
        let Socket::Unix(stream) = &self.socket else {
            return Ok(true);
        };
        match shared::is_wished(stream, wait)? {
            None => return Ok(false),
            Some(false) => {}
            Some(true) => self.shared = Some(Shared::agree(stream, GREETED)?),
        }
        Ok(true)
    }

    /// The stream, and the memory in which payloads lie, where they do.
    pub(crate) fn into_shared(self) -> Result<(UnixStream, Shared), Self> {
        match self {
            Self {
                socket: Socket::Unix(stream),
                shared: Some(shared),
                ..
            } => Ok((stream, shared)),
            other => Err(other),
        }
    }

    /// A link over a connected Unix stream, for instance one of a pair.
    pub fn from_unix(stream: UnixStream) -> Self {
        let named = stream.peer_addr().ok();
        let path = named.as_ref().and_then(|peer| peer.as_pathname());
        let peer = path.map_or_else(
            || "unix".to_owned(),
            |path| format!("unix:{}", path.display()),
        );
        Self {
            socket: Socket::Unix(stream),
            peer,
            shared: None,
        }
    }

    /// A link over a connected TCP stream; small frames are sent at once.
    ///
    /// # Errors
    /// The system's error where the stream has ended already.
    pub fn from_tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let peer = format!("tcp://{}", stream.peer_addr()?);
        Ok(Self {
            socket: Socket::Tcp(stream),
            peer,
            shared: None,
        })
    }

    /// A link that a listener accepted.
    pub(crate) fn accepted(socket: Socket, peer: String) -> Self {
        Self {
            socket,
            peer,
            shared: None,
        }
    }

    /// The other end, for people.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// How long one write may wait for the peer to read.
    ///
    /// # Errors
    /// The system's error; a timeout of zero is one.
    pub fn set_write_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(stream) => stream.set_write_timeout(timeout),
            Socket::Tcp(stream) => stream.set_write_timeout(timeout),
            Socket::Vsock(socket) => socket.set_write_timeout(timeout),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.set_write_timeout(timeout),
        }
    }

    /// Ends one direction or both.
    ///
    /// # Errors
    /// The system's error where the stream has ended already.
    pub fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match &self.socket {
            Socket::Unix(stream) => stream.shutdown(how),
            Socket::Tcp(stream) => stream.shutdown(how),
            Socket::Vsock(socket) => socket.shutdown(how),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.shutdown(how),
        }
    }
}

impl Read for &Link {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        match &self.socket {
            Socket::Unix(stream) => (&*stream).read(to),
            Socket::Tcp(stream) => (&*stream).read(to),
            Socket::Vsock(socket) => (&*socket).read(to),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.read(to),
        }
    }
}

impl Write for &Link {
    fn write(&mut self, from: &[u8]) -> io::Result<usize> {
        match &self.socket {
            Socket::Unix(stream) => (&*stream).write(from),
            Socket::Tcp(stream) => (&*stream).write(from),
            Socket::Vsock(socket) => (&*socket).write(from),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.write_vectored(&[IoSlice::new(from)]),
        }
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.socket {
            Socket::Unix(stream) => (&*stream).write_vectored(from),
            Socket::Tcp(stream) => (&*stream).write_vectored(from),
            Socket::Vsock(socket) => (&*socket).write_vectored(from),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.write_vectored(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Connects to the first of a host's network addresses that answers; small frames are sent at
/// once.
fn connect_tcp(
    address: &Address,
    host: &str,
    port: u16,
    timeout: Duration,
    end: Instant,
) -> Result<TcpStream, OpenError> {
    let unresolved = |source| OpenError::Unresolved {
        address: address.clone(),
        source,
    };
    let all = (host, port).to_socket_addrs();
    let mut last = None;
    for one in all.map_err(|source| unresolved(Some(source)))? {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            last = Some(Err(io::ErrorKind::TimedOut.into()));
            break;
        }
        let result = TcpStream::connect_timeout(&one, left);
        let done = result.is_ok();
        last = Some(result);
        if done {
            break;
        }
    }
    let stream = last.ok_or_else(|| unresolved(None))?;
    let stream = stream.and_then(|stream| stream.set_nodelay(true).map(|()| stream));
    stream.map_err(|source| not_open(address, timeout, source))
}

/// Connects to a virtual machine, to the host, or to this machine by the address that is its own.
fn connect_vsock(cid: u32, port: u32, timeout: Duration) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(Domain::VSOCK, Type::STREAM, None)?;
    let connected = socket.connect_timeout(&SockAddr::vsock(cid, port), timeout);
    connected.map_err(|error| match error.kind() {
        // So a virtual socket says that nobody listens.
        io::ErrorKind::ConnectionReset => io::ErrorKind::ConnectionRefused.into(),
        _ => error,
    })?;
    Ok(socket)
}

/// Why nobody answers.
fn not_open(address: &Address, timeout: Duration, source: io::Error) -> OpenError {
    let address = address.clone();
    match source.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => OpenError::Nobody { address },
        io::ErrorKind::TimedOut => OpenError::TimedOut {
            address,
            after: timeout,
        },
        _ => OpenError::Io { address, source },
    }
}

/// Connects, and waits until `end` while the listener's queue is full.
pub(crate) fn connect_unix(path: &Path, end: Instant) -> io::Result<UnixStream> {
    let at = SocketAddrUnix::new(path)?;
    let stream = UnixStream::from(unix_socket()?);
    stream.set_nonblocking(true)?;
    loop {
        match rustix::net::connect(&stream, &at) {
            Ok(()) => break,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) if Instant::now() < end => std::thread::sleep(RETRY),
            Err(Errno::AGAIN) => return Err(io::ErrorKind::TimedOut.into()),
            Err(error) => return Err(error.into()),
        }
    }
    stream.set_nonblocking(false)?;
    Ok(stream)
}

pub(crate) fn unix_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    Ok(socket)
}
