//! Drives two machines against each other: no link, no thread, no copy.

use std::time::Instant;

use larvatus_proto::frame::{Frame, Header};
use larvatus_proto::machine::{LinkEnd, Machine, Now};

use crate::clock::Clock;
use crate::framing::LinkError;
use crate::pump::Traffic;

/// Joins a near machine to a far one in the same process. Frames are moved, never encoded, and
/// counted as a link would carry them.
#[derive(Debug)]
pub struct Pair {
    clock: Clock,
    traffic: Traffic,
    ended: bool,
}

impl Pair {
    /// A pair that tells its machines this time.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            traffic: Traffic::default(),
            ended: false,
        }
    }

    /// What was moved so far, as the near machine sees it; it waits while the far one works.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    /// Moves frames both ways until neither machine has anything to say. A deadline that has
    /// come is ticked, once in each exchange.
    ///
    /// # Errors
    /// As a link would: [`LinkError::Malformed`] where a frame exceeds the limits of its
    /// receiver, [`LinkError::Closed`] where the far machine has finished and the near one has
    /// not. Whoever had not finished has been told, once.
    pub fn exchange(
        &mut self,
        near: &mut dyn Machine,
        far: &mut dyn Machine,
    ) -> Result<(), LinkError> {
        let mut ticked = false;
        while !self.ended {
            if self.turn(near, far)? {
                continue;
            }
            if !ticked {
                ticked = true;
                self.tick(near);
                self.tick(far);
                continue;
            }
            match (near.finished(), far.finished()) {
                (false, false) => return Ok(()),
                (true, true) => self.ended = true,
                (true, false) => {
                    self.ended = true;
                    far.disconnected(LinkEnd::Closed, self.clock.now());
                }
                (false, true) => {
                    self.ended = true;
                    near.disconnected(LinkEnd::Closed, self.clock.now());
                    return Err(LinkError::Closed);
                }
            }
        }
        if near.finished() {
            Ok(())
        } else {
            Err(LinkError::Closed)
        }
    }

    /// Moves one frame out and what it brings back.
    fn turn(&mut self, near: &mut dyn Machine, far: &mut dyn Machine) -> Result<bool, LinkError> {
        let mut moved = false;
        if let Some(frame) = near.transmit(self.clock.now()) {
            self.traffic.sent(&frame);
            moved = true;
            let checked = self.check(frame, far, near)?;
            self.waiting(|now| far.receive(checked, now));
        }
        while let Some(frame) = self.waiting(|now| far.transmit(now)) {
            self.traffic.received(&frame);
            moved = true;
            let checked = self.check(frame, near, far)?;
            near.receive(checked, self.clock.now());
        }
        Ok(moved)
    }

    /// Holds a frame against its receiver's limits, as a link does.
    fn check(
        &mut self,
        frame: Frame,
        receiver: &mut dyn Machine,
        sender: &mut dyn Machine,
    ) -> Result<Frame, LinkError> {
        let Err(error) = Header::decode(frame.header(), receiver.limits()) else {
            return Ok(frame);
        };
        let now = self.clock.now();
        self.ended = true;
        receiver.disconnected(LinkEnd::Malformed(error.clone()), now);
        sender.disconnected(LinkEnd::Closed, now);
        Err(LinkError::Malformed(error))
    }

    fn tick(&self, machine: &mut dyn Machine) {
        let now = self.clock.now();
        if machine.deadline().is_some_and(|at| at <= now) {
            machine.tick(now);
        }
    }

    fn waiting<T>(&mut self, work: impl FnOnce(Now) -> T) -> T {
        let start = Instant::now();
        let result = work(self.clock.now());
        self.traffic.waited += start.elapsed();
        result
    }
}
