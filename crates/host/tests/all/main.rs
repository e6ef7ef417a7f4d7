//! Links, pumps and servers over real sockets.

mod common;
mod links;
mod serving;
#[cfg(feature = "tls")]
mod tls;
mod vsock;
