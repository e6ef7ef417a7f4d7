//! Places where connections are accepted.

use std::fs;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, Timespec, fchmod, flock};
use rustix::io::Errno;
use rustix::net::SocketAddrUnix;
use socket2::{Domain, SockAddr, Type};

#[cfg(feature = "tls")]
use crate::address::Pin;
use crate::address::{ANY, Address};
use crate::link::{Link, OpenError, Socket, connect_unix, unix_socket};
#[cfg(feature = "tls")]
use crate::tls::{self, Identity};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How long a socket file that exists already is given to answer.
const STALE: Duration = Duration::from_millis(500);

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
    Vsock(socket2::Socket),
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
            Address::Vsock { cid, port } => {
                let (socket, port) = bind_vsock(address, *cid, *port)?;
                Ok(Self {
                    socket: Bound::Vsock(socket),
                    address: Address::Vsock { cid: *cid, port },
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
            Address::Tls { .. }
            | Address::Tcp { .. }
            | Address::Vsock { .. }
            | Address::Unix(_)
            | Address::Shared(_) => {
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

    /// From the next connection on, serves only whoever has one of the keys in `allow`, or everybody where
    /// there are none. Of no effect where TLS is not spoken.
    ///
    /// # Errors
    /// [`OpenError::Io`] where TLS cannot be set up.
    #[cfg(feature = "tls")]
    pub fn admit(&mut self, identity: &Identity, allow: &[Pin]) -> Result<(), OpenError> {
        if let Bound::Tls(_, acceptor) = &mut self.socket {
            *acceptor = tls::Acceptor::new(identity, allow).map_err(|error| OpenError::Io {
                address: self.address.clone(),
                source: io::Error::other(error),
            })?;
        }
        Ok(())
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
                let peer = self.address.to_string();
                Ok(Link::accepted(Socket::Unix(stream), peer))
            }),
            Bound::Tcp(socket) => socket.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                Link::from_tcp(stream)
            }),
            Bound::Vsock(socket) => socket.accept().and_then(|(stream, peer)| {
                stream.set_nonblocking(false)?;
                let (cid, port) = peer.as_vsock_address().unwrap_or_default();
                let peer = Address::Vsock { cid, port };
                Ok(Link::accepted(Socket::Vsock(stream), peer.to_string()))
            }),
            #[cfg(feature = "tls")]
            Bound::Tls(socket, acceptor) => socket.accept().and_then(|(stream, peer)| {
                stream.set_nonblocking(false)?;
                stream.set_nodelay(true)?;
                let socket = Socket::Tls(Box::new(acceptor.accept(stream)?));
                Ok(Link::accepted(socket, format!("tls://{peer}")))
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
            Self::Vsock(socket) => socket.as_fd(),
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

/// Listens on a virtual socket; the port is the one that the system chose where it is 0.
fn bind_vsock(address: &Address, cid: u32, port: u32) -> Result<(socket2::Socket, u32), OpenError> {
    let wanted = if port == 0 { ANY } else { port };
    let bound = socket2::Socket::new(Domain::VSOCK, Type::STREAM, None).and_then(|socket| {
        socket.bind(&SockAddr::vsock(cid, wanted))?;
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let (_, port) = socket
            .local_addr()?
            .as_vsock_address()
            .unwrap_or((cid, port));
        Ok((socket, port))
    });
    bound.map_err(|source| {
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
