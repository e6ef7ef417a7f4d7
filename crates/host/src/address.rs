//! Where a peer listens: `unix:PATH`, `shm:PATH` or `tcp://HOST:PORT`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a peer listens. Its text reads back as the same address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(
    clippy::exhaustive_enums,
    reason = "whoever adds a kind of link considers every use"
)]
pub enum Address {
    /// A Unix socket, by its file.
    Unix(PathBuf),
    /// A Unix socket on this machine, by its file; payloads lie in shared memory. Whoever listens
    /// on a Unix socket offers both.
    Shared(PathBuf),
    /// A TCP port. Unencrypted.
    Tcp {
        /// Name or number; an IPv6 number without its brackets.
        host: String,
        /// Port; 0 lets the system choose one to listen on.
        port: u16,
    },
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It starts with neither `unix:` nor `shm:` nor `tcp://`.
    #[error("{text:?} is none of unix:PATH, shm:PATH and tcp://HOST:PORT")]
    Scheme {
        /// The text.
        text: String,
    },
    /// `unix:` or `shm:` without a path, or with a zero byte in it.
    #[error("{text:?} names no path")]
    Path {
        /// The text.
        text: String,
    },
    /// `tcp://` without a host, or with an IPv6 number that is not in brackets.
    #[error("{text:?} names no host; an IPv6 number goes in brackets")]
    Host {
        /// The text.
        text: String,
    },
    /// `tcp://HOST` without a port from 0 to 65535.
    #[error("{text:?} does not end in a port, :0 to :65535")]
    Port {
        /// The text.
        text: String,
    },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let owned = || text.to_owned();
        let path = |path: &str| {
            let named = !path.is_empty() && !path.contains('\0');
            named
                .then(|| PathBuf::from(path))
                .ok_or_else(|| AddressError::Path { text: owned() })
        };
        if let Some(file) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path(file)?));
        }
        if let Some(file) = text.strip_prefix("shm:") {
            return Ok(Self::Shared(path(file)?));
        }
        let Some(rest) = text.strip_prefix("tcp://") else {
            return Err(AddressError::Scheme { text: owned() });
        };
        let Some((host, port)) = rest.rsplit_once(':') else {
            return Err(AddressError::Port { text: owned() });
        };
        let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits);
        let port = port.ok_or_else(|| AddressError::Port { text: owned() })?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let odd = |c: char| c.is_whitespace() || c.is_control() || "/[]@".contains(c);
        let bracketed = bare.is_some();
        let host = bare.unwrap_or(host);
        if host.is_empty() || host.contains(odd) || host.contains(':') != bracketed {
            return Err(AddressError::Host { text: owned() });
        }
        Ok(Self::Tcp {
            host: host.to_owned(),
            port,
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Shared(path) => write!(f, "shm:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back() {
        for text in [
            "unix:/run/larvatus.sock",
            "unix:here",
            "shm:/run/larvatus.sock",
            "tcp://localhost:0",
            "tcp://10.0.0.7:65535",
            "tcp://[::1]:80",
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        type Why = fn(String) -> AddressError;
        let cases: [(&str, Why); 14] = [
            ("", |text| AddressError::Scheme { text }),
            ("/run/x", |text| AddressError::Scheme { text }),
            ("http://h:1", |text| AddressError::Scheme { text }),
            ("unix:", |text| AddressError::Path { text }),
            ("shm:", |text| AddressError::Path { text }),
            ("unix:a\0b", |text| AddressError::Path { text }),
            ("tcp://host", |text| AddressError::Port { text }),
            ("tcp://host:", |text| AddressError::Port { text }),
            ("tcp://host:+1", |text| AddressError::Port { text }),
            ("tcp://host:65536", |text| AddressError::Port { text }),
            ("tcp://:1", |text| AddressError::Host { text }),
            ("tcp://::1:80", |text| AddressError::Host { text }),
            ("tcp://[host]:80", |text| AddressError::Host { text }),
            ("tcp://a b:80", |text| AddressError::Host { text }),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Address>(), Err(error(text.to_owned())));
        }
    }
}
