//! A side of the protocol as a state machine: frames and time in, frames out.

use std::sync::Arc;
use std::time::Duration;

use crate::frame::{Frame, FrameLimits};
use crate::wire::DecodeError;
use crate::words::Memory;

/// Time since a fixed origin of the caller's choice; never a clock of our own.
pub type Now = Duration;

/// Why a link ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEnd {
    /// The peer closed it, or it broke.
    Closed,
    /// The peer did not read for longer than the link waits.
    Stalled,
    /// The peer sent a header that no message within the limits has.
    Malformed(DecodeError),
}

/// One end of one connection, without a socket and without a clock.
///
/// A pump calls [`transmit`](Self::transmit) until it is empty, reads frames no larger than
/// [`limits`](Self::limits) and hands them to [`receive`](Self::receive), and calls
/// [`tick`](Self::tick) when [`deadline`](Self::deadline) has come.
pub trait Machine {
    /// The largest frame that the peer may send now; a link refuses anything larger before it
    /// allocates.
    fn limits(&self) -> FrameLimits;
    /// Offers the link's own memory for what goes out; machines that do without ignore it.
    fn lend(&mut self, _memory: Arc<dyn Memory>) {}
    /// Takes a frame of the peer.
    fn receive(&mut self, frame: Frame, now: Now);
    /// Whether it gains from frames that have come already, before it is asked for the next to send.
    fn gathers(&self) -> bool {
        false
    }
    /// The next frame to send, if any.
    fn transmit(&mut self, now: Now) -> Option<Frame>;
    /// When [`tick`](Self::tick) is wanted although no frame came.
    fn deadline(&self) -> Option<Now>;
    /// Lets time pass.
    fn tick(&mut self, now: Now);
    /// The link has ended: no further frame will come or go.
    fn disconnected(&mut self, why: LinkEnd, now: Now);
    /// Whether this side has nothing more to say or to hear.
    fn finished(&self) -> bool;
}
