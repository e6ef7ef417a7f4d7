//! One worker's end of a session, as a machine that a pump drives.

use std::collections::BTreeMap;
use std::sync::Arc;

use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::words::Memory;

use super::conversation::Conversation;
use super::{InferenceId, Session, Settings, model};
use crate::error::InferError;

/// What a session has for each of its workers.
pub(super) struct Line {
    pub(super) conversation: Conversation,
    /// Which inference a call belongs to.
    pub(super) calls: BTreeMap<u64, InferenceId>,
}

impl Line {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            conversation: Conversation::new(settings),
            calls: BTreeMap::new(),
        }
    }

    pub(super) fn call(&mut self, call: u64, id: InferenceId, frame: Frame) {
        self.calls.insert(call, id);
        self.conversation.call(frame);
    }
}

/// A session's end towards one of its workers.
pub struct WorkerLine<'a> {
    session: &'a mut Session,
    line: usize,
}

impl Session {
    /// How many workers it talks to.
    pub fn workers(&self) -> usize {
        self.lines.len()
    }

    /// The end towards worker `line`, counted from 0; a pump drives each.
    ///
    /// # Panics
    /// If there are not so many workers.
    pub fn line(&mut self, line: usize) -> WorkerLine<'_> {
        assert!(line < self.lines.len(), "a session with fewer workers");
        WorkerLine {
            session: self,
            line,
        }
    }

    fn end_by(&mut self, line: usize, why: InferError) {
        if self.failure().is_none() {
            self.ended_by = Some(line);
        }
        self.end(why);
    }

    /// When the oldest request to a worker is too old, and when the next retry is due.
    fn times(&self, line: usize) -> impl Iterator<Item = (Now, Option<Now>)> + '_ {
        let conversation = &self.lines[line].conversation;
        let flights = self.flights.values();
        let flights = flights.filter_map(move |flight| flight.awaited_since(line));
        let open = conversation.awaited_since().into_iter().chain(flights);
        open.map(|times| conversation.times(times))
    }
}

impl Machine for WorkerLine<'_> {
    fn limits(&self) -> FrameLimits {
        let conversation = &self.session.lines[self.line].conversation;
        conversation.limits(self.session.model(self.line))
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        // What goes to two workers is written to memory of our own.
        if self.session.lines.len() == 1 {
            self.session.desk.memory = memory;
        }
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        if let Err(why) = self.session.hear(self.line, frame, now) {
            self.session.end_by(self.line, why);
        }
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let Session {
            plan,
            lines,
            shares,
            flights,
            waiting,
            closing,
            ..
        } = &mut *self.session;
        let done = *closing && flights.is_empty() && waiting.is_empty();
        let model = model(plan, shares.as_ref(), self.line)?;
        lines[self.line].conversation.transmit(model, done, now)
    }

    fn deadline(&self) -> Option<Now> {
        let times = self.session.times(self.line);
        times
            .flat_map(|(end, retry)| [Some(end), retry])
            .flatten()
            .min()
    }

    fn tick(&mut self, now: Now) {
        if self.session.times(self.line).any(|(end, _)| now >= end) {
            let why = self.session.lines[self.line].conversation.timed_out();
            self.session.end_by(self.line, why);
            return;
        }
        let Session {
            plan,
            settings,
            lines,
            shares,
            flights,
            ..
        } = &mut *self.session;
        let Some(after) = settings.retry_after else {
            return;
        };
        let Some(model) = model(plan, shares.as_ref(), self.line) else {
            return;
        };
        let conversation = &mut lines[self.line].conversation;
        conversation.retry(model, now);
        for flight in flights.values_mut() {
            if let Some(frame) = flight.retry(self.line, now, after) {
                conversation.repeat(frame);
            }
        }
    }

    fn disconnected(&mut self, why: LinkEnd, _now: Now) {
        let why = self.session.lines[self.line].conversation.disconnected(why);
        self.session.end_by(self.line, why);
    }

    fn finished(&self) -> bool {
        self.session.lines[self.line].conversation.finished()
    }
}

/// The end towards the first worker: all there is, where the plan does not hide its weights.
impl Machine for Session {
    fn limits(&self) -> FrameLimits {
        self.lines[0].conversation.limits(self.model(0))
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        self.line(0).lend(memory);
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        self.line(0).receive(frame, now);
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        self.line(0).transmit(now)
    }

    fn deadline(&self) -> Option<Now> {
        self.times(0)
            .flat_map(|(end, retry)| [Some(end), retry])
            .flatten()
            .min()
    }

    fn tick(&mut self, now: Now) {
        self.line(0).tick(now);
    }

    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.line(0).disconnected(why, now);
    }

    fn finished(&self) -> bool {
        self.lines[0].conversation.finished()
    }
}
