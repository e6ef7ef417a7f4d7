//! Where a peer listens: `unix:PATH`, `shm:PATH`, `tcp://HOST:PORT`, `tls://HOST:PORT#PIN` or `vsock://CID:PORT`.

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
    /// A port of a virtual socket, between a virtual machine and its host. Unencrypted.
    Vsock {
        /// The machine: 2 is the host, 1 this one, [`ANY`] whichever this one is, to listen only.
        cid: u32,
        /// Port; 0 lets the system choose one to listen on.
        port: u32,
    },
    /// A TCP port that speaks TLS 1.3.
    Tls {
        /// Name or number; an IPv6 number without its brackets.
        host: String,
        /// Port; 0 lets the system choose one to listen on.
        port: u16,
        /// Who listens there. Needed to connect.
        pin: Option<Pin>,
    },
}

/// The `any` of `vsock://any:PORT`.
pub const ANY: u32 = u32::MAX;

/// Who a peer is: the SHA-256 of its public key (SubjectPublicKeyInfo). Its text is 64
/// hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a hash is a hash, whoever computed it"
)]
pub struct Pin(pub [u8; 32]);

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Pin {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Pin {
            text: text.to_owned(),
        };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(wrong());
        }
        let mut pin = Self([0; 32]);
        for (byte, digits) in pin.0.iter_mut().zip(digits.chunks_exact(2)) {
            for digit in digits {
                let value = char::from(*digit)
                    .to_digit(16)
                    .filter(|_| !digit.is_ascii_uppercase());
                let value = value.and_then(|value| u8::try_from(value).ok());
                *byte = *byte << 4 | value.ok_or_else(wrong)?;
            }
        }
        Ok(pin)
    }
}

impl Address {
    /// Who listens there, where the address says so.
    pub fn pin(&self) -> Option<Pin> {
        match self {
            Self::Tls { pin, .. } => *pin,
            Self::Unix(_) | Self::Shared(_) | Self::Tcp { .. } | Self::Vsock { .. } => None,
        }
    }
}

/// Why a text is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It starts with none of `unix:`, `shm:`, `tcp://`, `tls://` and `vsock://`.
    #[error(
        "{text:?} is none of unix:PATH, shm:PATH, tcp://HOST:PORT, tls://HOST:PORT#PIN and vsock://CID:PORT"
    )]
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
    /// No host, or with an IPv6 number that is not in brackets.
    #[error("{text:?} names no host; an IPv6 number goes in brackets")]
    Host {
        /// The text.
        text: String,
    },
    /// A host without a port from 0 to 65535.
    #[error("{text:?} does not end in a port, :0 to :65535")]
    Port {
        /// The text.
        text: String,
    },
    /// `vsock://` without two numbers.
    #[error("{text:?} is not vsock://CID:PORT: a number or `any`, and a port, 0 to 4294967294")]
    Vsock {
        /// The text.
        text: String,
    },
    /// What names a key is not 64 lower-case hexadecimal digits.
    #[error("{text:?} is no pin: 64 hexadecimal digits, as a listener prints them")]
    Pin {
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
        if let Some(rest) = text.strip_prefix("vsock://") {
            return vsock(rest).ok_or_else(|| AddressError::Vsock { text: owned() });
        }
        let (rest, pin) = if let Some(rest) = text.strip_prefix("tcp://") {
            (rest, None)
        } else if let Some(rest) = text.strip_prefix("tls://") {
            let (rest, pin) = rest
                .split_once('#')
                .map_or((rest, None), |(rest, pin)| (rest, Some(pin)));
            (rest, Some(pin.map(str::parse).transpose()?))
        } else {
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
        let host = host.to_owned();
        Ok(match pin {
            None => Self::Tcp { host, port },
            Some(pin) => Self::Tls { host, port, pin },
        })
    }
}

/// `CID:PORT`, where the machine may be `any`.
fn vsock(text: &str) -> Option<Address> {
    let (cid, port) = text.split_once(':')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse().ok().filter(|_| digits);
        number.filter(|number| *number != ANY)
    };
    let cid = match cid {
        "any" => ANY,
        cid => number(cid)?,
    };
    let port = number(port)?;
    Some(Address::Vsock { cid, port })
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Shared(path) => write!(f, "shm:{}", path.display()),
            Self::Tcp { host, port } => write!(f, "tcp://{}:{port}", Host(host)),
            Self::Vsock { cid: ANY, port } => write!(f, "vsock://any:{port}"),
            Self::Vsock { cid, port } => write!(f, "vsock://{cid}:{port}"),
            Self::Tls { host, port, pin } => {
                write!(f, "tls://{}:{port}", Host(host))?;
                pin.iter().try_for_each(|pin| write!(f, "#{pin}"))
            }
        }
    }
}

/// A host as it stands in an address.
struct Host<'a>(&'a str);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') {
            write!(f, "[{}]", self.0)
        } else {
            f.write_str(self.0)
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
            "vsock://2:7777",
            "vsock://any:0",
            "vsock://4294967294:4294967294",
            "tls://localhost:0",
            "tls://[::1]:80",
            concat!(
                "tls://10.0.0.7:7777#00112233445566778899aabbccddeeff",
                "00112233445566778899aabbccddeeff"
            ),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_pin_says_so() {
        let digits = "0123456789abcdef".repeat(4);
        let pin: Pin = digits.parse().unwrap();
        assert_eq!(pin.0[..3], [0x01, 0x23, 0x45]);
        for pin in [
            "",
            "00",
            &digits[1..],
            &digits.replace('a', "A"),
            &digits.replace('0', "g"),
            &format!("{digits}00"),
            &digits.replace("01", "é"),
        ] {
            let error = AddressError::Pin {
                text: pin.to_owned(),
            };
            assert_eq!(format!("tls://host:1#{pin}").parse::<Address>(), Err(error));
        }
    }

    #[test]
    fn what_is_no_address_says_why() {
        type Why = fn(String) -> AddressError;
        let cases: [(&str, Why); 24] = [
            ("", |text| AddressError::Scheme { text }),
            ("/run/x", |text| AddressError::Scheme { text }),
            ("http://h:1", |text| AddressError::Scheme { text }),
            ("unix:", |text| AddressError::Path { text }),
            ("shm:", |text| AddressError::Path { text }),
            ("unix:a\0b", |text| AddressError::Path { text }),
            ("tls://host", |text| AddressError::Port { text }),
            ("tcp://host", |text| AddressError::Port { text }),
            ("tcp://host:", |text| AddressError::Port { text }),
            ("tcp://host:+1", |text| AddressError::Port { text }),
            ("tcp://host:65536", |text| AddressError::Port { text }),
            ("tcp://:1", |text| AddressError::Host { text }),
            ("tcp://::1:80", |text| AddressError::Host { text }),
            ("tcp://[host]:80", |text| AddressError::Host { text }),
            ("tcp://a b:80", |text| AddressError::Host { text }),
            ("vsock:2:1", |text| AddressError::Scheme { text }),
            ("vsock://", |text| AddressError::Vsock { text }),
            ("vsock://2", |text| AddressError::Vsock { text }),
            ("vsock://2:", |text| AddressError::Vsock { text }),
            ("vsock://host:1", |text| AddressError::Vsock { text }),
            ("vsock://-1:1", |text| AddressError::Vsock { text }),
            ("vsock://2:+1", |text| AddressError::Vsock { text }),
            ("vsock://4294967295:1", |text| AddressError::Vsock { text }),
            ("vsock://2:4294967295", |text| AddressError::Vsock { text }),
        ];
        for (text, error) in cases {
            assert_eq!(text.parse::<Address>(), Err(error(text.to_owned())));
        }
    }
}
