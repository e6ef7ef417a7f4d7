//! Connected streams and the places where they are accepted.

use std::fs;
use std::io::{self, IoSlice, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, Timespec, fchmod, flock};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};

use crate::address::{Address, Pin};
use crate::shared::{self, Shared};
#[cfg(feature = "tls")]
use crate::tls::{self, HandshakeError, Identity};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How long a full queue of a Unix socket is left alone before the next attempt.
const RETRY: Duration = Duration::from_millis(5);

/// How long a peer that wishes for shared memory has to say so whole.
const GREETED: Duration = Duration::from_secs(5);

/// How long a socket file that exists already is given to answer.
const STALE: Duration = Duration::from_millis(500);

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

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
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
        let stream = connect_tcp(address, host, *port, timeout, end)?;
        let left = end.saturating_duration_since(Instant::now());
        let stream = tls::Stream::connect(stream, *pin, identity, left).map_err(|error| {
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
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.write_vectored(&[IoSlice::new(from)]),
        }
    }

    fn write_vectored(&mut self, from: &[IoSlice<'_>]) -> io::Result<usize> {
        match &self.socket {
            Socket::Unix(stream) => (&*stream).write_vectored(from),
            Socket::Tcp(stream) => (&*stream).write_vectored(from),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.write_vectored(from),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A place where connections are accepted. A Unix socket's file is readable and writable by its
/// owner only, and goes with the listener.
#[derive(Debug)]
pub struct Listener {
    socket: Bound,
    address: Address,
    /// Dropped last: removes the file.
    _file: Option<SocketFile>,
}

#[derive(Debug)]
enum Bound {
    Unix(UnixListener),
    Tcp(TcpListener),
    #[cfg(feature = "tls")]
    Tls(TcpListener, tls::Acceptor),
}

impl Listener {
    /// Starts to listen. A socket file on which nobody answers is replaced.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn bind(address: &Address) -> Result<Self, OpenError> {
        match address {
            Address::Unix(path) | Address::Shared(path) => Self::bind_unix(address, path),
            Address::Tcp { host, port } => {
                let (socket, port) = bind_tcp(address, host, *port)?;
                let host = host.clone();
                Ok(Self {
                    socket: Bound::Tcp(socket),
                    address: Address::Tcp { host, port },
                    _file: None,
                })
            }
            Address::Tls { .. } if cfg!(feature = "tls") => Err(OpenError::NoIdentity {
                address: address.clone(),
            }),
            Address::Tls { .. } => Err(OpenError::NoTls {
                address: address.clone(),
            }),
        }
    }

    /// Starts to listen over TLS as `identity`, whose pin becomes part of the address. With keys
    /// in `allow`, only whoever has one of them is served.
    ///
    /// # Errors
    /// [`OpenError`]; of another kind of address, and of one with another pin,
    /// [`OpenError::NoIdentity`].
    #[cfg(feature = "tls")]
    pub fn bind_tls(
        address: &Address,
        identity: &Identity,
        allow: &[Pin],
    ) -> Result<Self, OpenError> {
        let own = identity.pin();
        let address = address.clone();
        let (host, port) = match &address {
            Address::Tls { host, port, pin } if pin.is_none_or(|pin| pin == own) => (host, *port),
            Address::Tls { .. } | Address::Tcp { .. } | Address::Unix(_) | Address::Shared(_) => {
                return Err(OpenError::NoIdentity { address });
            }
        };
        let (socket, port) = bind_tcp(&address, host, port)?;
        let acceptor = tls::Acceptor::new(identity, allow).map_err(|error| OpenError::Io {
            address: address.clone(),
            source: io::Error::other(error),
        })?;
        Ok(Self {
            socket: Bound::Tls(socket, acceptor),
            address: Address::Tls {
                host: host.clone(),
                port,
                pin: Some(own),
            },
            _file: None,
        })
    }

    fn bind_unix(address: &Address, path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io {
            address: address.clone(),
            source,
        };
        let _one_at_a_time = lock_directory(path);
        let bound = match bind_new(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let file = fs::symlink_metadata(path).map_err(failed)?;
                if !file.file_type().is_socket() {
                    return Err(OpenError::NotASocket {
                        address: address.clone(),
                    });
                }
                match connect_unix(path, Instant::now() + STALE) {
                    Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                    Ok(_) | Err(_) => {
                        return Err(OpenError::Taken {
                            address: address.clone(),
                        });
                    }
                }
                fs::remove_file(path).map_err(failed)?;
                bind_new(path)
            }
            other => other,
        };
        let (socket, file) = bound.map_err(failed)?;
        Ok(Self {
            socket: Bound::Unix(socket),
            address: address.clone(),
            _file: Some(file),
        })
    }

    /// Where it listens; the port is the one that the system chose.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection, or `None` when none came within `wait`. Over TLS its handshake is
    /// still to come: whoever reads or writes first waits for it, at most 10 s.
    ///
    /// # Errors
    /// The system's error; the listener may be used further.
    pub fn accept(&self, wait: Duration) -> io::Result<Option<Link>> {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        let wait = Timespec::try_from(wait).unwrap_or(Timespec {
            tv_sec: 3600,
            tv_nsec: 0,
        });
        match poll(&mut ready, Some(&wait)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let accepted = match &self.socket {
            Bound::Unix(socket) => socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                Ok(Link {
                    socket: Socket::Unix(stream),
                    peer: self.address.to_string(),
                    shared: None,
                })
            }),
            Bound::Tcp(socket) => socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                Link::from_tcp(stream)
            }),
            #[cfg(feature = "tls")]
            Bound::Tls(socket, acceptor) => socket.accept().and_then(|(stream, peer)| {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                Ok(Link {
                    socket: Socket::Tls(Box::new(acceptor.accept(stream)?)),
                    peer: format!("tls://{peer}"),
                    shared: None,
                })
            }),
        };
        match accepted {
            Ok(link) => Ok(Some(link)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(socket) => socket.as_fd(),
            Self::Tcp(socket) => socket.as_fd(),
            #[cfg(feature = "tls")]
            Self::Tls(socket, _) => socket.as_fd(),
        }
    }
}

/// A socket's file, known by device and inode, so that only our own is ever removed.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path);
        if now.is_ok_and(|file| (file.dev(), file.ino()) == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps others of our kind from judging a socket between its binding and its listening. Where
/// the directory cannot be opened, they may.
fn lock_directory(path: &Path) -> Option<fs::File> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = fs::File::open(parent.unwrap_or_else(|| ".".as_ref())).ok()?;
    flock(&directory, FlockOperation::LockExclusive).ok()?;
    Some(directory)
}

fn bind_tcp(address: &Address, host: &str, port: u16) -> Result<(TcpListener, u16), OpenError> {
    let socket = TcpListener::bind((host, port)).and_then(|socket| {
        socket.set_nonblocking(true)?;
        let port = socket.local_addr()?.port();
        Ok((socket, port))
    });
    socket.map_err(|source| {
        let address = address.clone();
        match source.kind() {
            io::ErrorKind::AddrInUse => OpenError::Taken { address },
            _ => OpenError::Io { address, source },
        }
    })
}

fn bind_new(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    let at = SocketAddrUnix::new(path)?;
    let socket = unix_socket()?;
    // On Linux the file takes its mode from the socket, so that it is at no time open to others;
    // elsewhere this may fail and the mode is set below.
    let _ = fchmod(&socket, Mode::RUSR | Mode::WUSR);
    rustix::net::bind(&socket, &at)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    let file = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (file.dev(), file.ino()),
    };
    rustix::net::listen(&socket, BACKLOG)?;
    let socket = UnixListener::from(socket);
    socket.set_nonblocking(true)?;
    Ok((socket, file))
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
fn connect_unix(path: &Path, end: Instant) -> io::Result<UnixStream> {
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

fn unix_socket() -> io::Result<OwnedFd> {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::STREAM, None)?;
    fcntl_setfd(&socket, FdFlags::CLOEXEC)?;
    Ok(socket)
}
