//! Who announces itself on the local network, and announcing oneself: DNS-SD over multicast DNS.
//!
//! An announcement is a name, a port and the pin of a key, for anybody to read and for anybody to forge. So it is **believed
//! for nothing but an address to try**: who really listens there shows in the TLS handshake. Nothing secret is in it, and
//! what others put into theirs is bounded before it is kept.
//!
//! Source: RFC 6762 and RFC 6763; the protocols themselves are the crate `mdns-sd`'s.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, ToSocketAddrs};
use std::time::{Duration, Instant};

use mdns_sd::{ResolvedService, ServiceDaemon, ServiceEvent, ServiceInfo};

use crate::address::{Address, Pin};

/// What workers are announced as.
const SERVICE: &str = "_larvatus._tcp.local.";

/// The port of multicast DNS.
pub const PORT: u16 = 5353;

/// Longest name, in bytes; longer ones are cut. A DNS label has no more.
const MAX_NAME: usize = 63;

/// Announcements that are kept, whoever fills the network.
const MAX_FOUND: usize = 256;

/// How long the goodbye may take.
const GOODBYE: Duration = Duration::from_millis(500);

/// Why there is no announcement, or nothing is found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// Multicast DNS is not to be had.
    #[error("no multicast DNS: {why}")]
    Unavailable {
        /// The crate's words.
        why: String,
    },
    /// Only what speaks TLS is announced: others could not prove that they are who was found.
    #[error("{address} cannot be announced; listen on tls://HOST:PORT")]
    NotTls {
        /// The address.
        address: Address,
    },
    /// The address has no number.
    #[error("{address} has no network address to announce")]
    Unresolved {
        /// The address.
        address: Address,
    },
}

fn unavailable(error: mdns_sd::Error) -> DiscoveryError {
    DiscoveryError::Unavailable {
        why: error.to_string(),
    }
}

/// This process is announced as long as this lives.
pub struct Announcement {
    daemon: ServiceDaemon,
    name: String,
    service: String,
}

impl fmt::Debug for Announcement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Announcement").field(&self.service).finish()
    }
}

impl Announcement {
    /// Announces a listener of this address, which has its pin, under a name for people. `port` is multicast DNS's,
    /// [`PORT`] but for tests.
    ///
    /// # Errors
    /// [`DiscoveryError`].
    pub fn new(name: &str, address: &Address, port: u16) -> Result<Self, DiscoveryError> {
        let Address::Tls {
            host,
            port: listens,
            pin: Some(pin),
        } = address
        else {
            return Err(DiscoveryError::NotTls {
                address: address.clone(),
            });
        };
        let name = presentable(name);
        let unresolved = || DiscoveryError::Unresolved {
            address: address.clone(),
        };
        let all = (host.as_str(), *listens).to_socket_addrs();
        let all: Vec<IpAddr> = all
            .map_err(|_| unresolved())?
            .map(|socket| socket.ip())
            .collect();
        let anywhere = all.iter().any(IpAddr::is_unspecified);
        let addresses = if anywhere { Vec::new() } else { all };
        let text = pin.to_string();
        // One host name for each key, so that two workers of one machine do not dispute about it.
        let machine = format!("larvatus-{}.local.", text.get(..12).unwrap_or_default());
        let properties = [("v", "1"), ("pin", &text)];
        let service = ServiceInfo::new(
            SERVICE,
            &name,
            &machine,
            &addresses[..],
            *listens,
            &properties[..],
        );
        let mut service = service.map_err(unavailable)?;
        if anywhere {
            service = service.enable_addr_auto();
        }
        let full = service.get_fullname().to_owned();
        let daemon = ServiceDaemon::new_with_port(port).map_err(unavailable)?;
        daemon.register(service).map_err(unavailable)?;
        Ok(Self {
            daemon,
            name,
            service: full,
        })
    }

    /// The name, as it goes out.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        if let Ok(done) = self.daemon.unregister(&self.service) {
            let _ = done.recv_timeout(GOODBYE);
        }
        if let Ok(done) = self.daemon.shutdown() {
            let _ = done.recv_timeout(GOODBYE);
        }
    }
}

/// What somebody on the network says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Found {
    /// What it calls itself: printable, at most 63 bytes.
    pub name: String,
    /// Where it says to listen, without a pin: whose key is there, the announcement does not prove.
    pub address: Address,
    /// The key that it claims; good for no more than to look a worker up that is known already.
    pub claims: Option<Pin>,
}

/// Listens for announcements for so long. `port` is multicast DNS's, [`PORT`] but for tests.
///
/// # Errors
/// [`DiscoveryError::Unavailable`].
pub fn discover(within: Duration, port: u16) -> Result<Vec<Found>, DiscoveryError> {
    let end = Instant::now() + within;
    let daemon = ServiceDaemon::new_with_port(port).map_err(unavailable)?;
    let events = daemon.browse(SERVICE).map_err(unavailable)?;
    let mut found = BTreeMap::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match events.recv_timeout(left) {
            Ok(ServiceEvent::ServiceResolved(service)) => {
                let full = found.len() >= MAX_FOUND && !found.contains_key(&service.fullname);
                if !full && let Some(one) = read(&service) {
                    found.insert(service.fullname.clone(), one);
                }
            }
            Ok(ServiceEvent::ServiceRemoved(_, service)) => {
                found.remove(&service);
            }
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if let Ok(done) = daemon.shutdown() {
        let _ = done.recv_timeout(GOODBYE);
    }
    Ok(found.into_values().collect())
}

/// What an announcement says, where it says something that can be connected to.
fn read(service: &ResolvedService) -> Option<Found> {
    let name = service.fullname.strip_suffix(SERVICE)?;
    let name = presentable(name.strip_suffix('.')?);
    let addresses = service.get_addresses().iter();
    let numbers = addresses.map(|scoped| scoped.to_ip_addr());
    // A link-local number of version 6 means nothing without its interface, which an address does not have.
    let usable = numbers.filter(|number| match number {
        IpAddr::V4(_) => true,
        IpAddr::V6(number) => !number.is_unicast_link_local(),
    });
    let best = usable.min_by_key(|number| (number.is_loopback(), number.is_ipv6(), *number))?;
    Some(Found {
        name,
        address: Address::Tls {
            host: best.to_string(),
            port: service.port,
            pin: None,
        },
        claims: service
            .get_property_val_str("pin")
            .and_then(|text| text.parse().ok()),
    })
}

/// A name without anything that a terminal would obey, and no longer than a label.
fn presentable(name: &str) -> String {
    let shown = name.chars().map(|c| match c {
        c if c.is_control() => ' ',
        // Those that change the direction of what follows.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => ' ',
        '\\' => ' ',
        c => c,
    });
    let mut text = String::new();
    for c in shown {
        if text.len() + c.len_utf8() > MAX_NAME {
            break;
        }
        text.push(c);
    }
    let text = text.trim();
    if text.is_empty() { "unnamed" } else { text }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_strangers_are_harmless() {
        assert_eq!(presentable("study"), "study");
        assert_eq!(presentable("\u{1b}[31mred\n"), "[31mred");
        assert_eq!(presentable("a\u{202e}b\\c"), "a b c");
        assert_eq!(presentable(" \t"), "unnamed");
        let long = presentable(&"é".repeat(100));
        assert_eq!((long.len(), long.chars().count()), (62, 31));
    }
}
