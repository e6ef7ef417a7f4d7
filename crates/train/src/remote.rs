//! The trusted side's end of a link to a worker that trains.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use larvatus_host::pump::{Options, Progress, Pump};
use larvatus_host::{Clock, Link, LinkError};
use larvatus_proto::VERSION;
use larvatus_proto::frame::{Frame, FrameLimits, MAX_HEAD, Reply, Request};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::training::{Job, Task, numbers, words};

/// Why a worker did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// The link has ended or gives no thread.
    #[error("the link to the worker has ended: {0}; start it again and resume")]
    Link(#[from] LinkError),
    /// The system gives no thread for the link.
    #[error("no link to the worker: {0}")]
    Io(#[from] std::io::Error),
    /// The worker says that it cannot.
    #[error("the worker refuses: {0}")]
    Refused(String),
    /// The worker sent what nobody asked for.
    #[error("the worker sent {0}; is it `larvatus worker --training`?")]
    OutOfTurn(&'static str),
    /// Nothing came in time.
    #[error("the worker did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Frames, without a link.
#[derive(Debug, Default)]
struct Client {
    outbox: VecDeque<Frame>,
    /// Calls that await so many words.
    awaited: BTreeMap<u64, usize>,
    answers: BTreeMap<u64, Vec<f32>>,
    fault: Option<RemoteError>,
    welcomed: Option<String>,
    over: bool,
}

impl Client {
    fn take(&mut self, frame: Frame) -> Result<(), RemoteError> {
        let reply = Reply::from_frame(frame).map_err(|_| RemoteError::OutOfTurn("no reply"))?;
        match reply {
            Reply::Welcome {
                version: VERSION,
                name,
            } => self.welcomed = Some(name),
            Reply::Answer { call, words } => match self.awaited.remove(&call) {
                Some(expected) if expected == words.len() => {
                    self.answers.insert(call, numbers(words));
                }
                Some(_) => return Err(RemoteError::OutOfTurn("an answer of another length")),
                None => return Err(RemoteError::OutOfTurn("an answer to no call")),
            },
            Reply::Failed { message, .. } => return Err(RemoteError::Refused(message)),
            _ => return Err(RemoteError::OutOfTurn("another kind of reply")),
        }
        Ok(())
    }
}

impl Machine for Client {
    fn limits(&self) -> FrameLimits {
        FrameLimits {
            head: MAX_HEAD,
            words: self.awaited.values().max().copied().unwrap_or(0),
        }
    }

    fn receive(&mut self, frame: Frame, _: Now) {
        if let Err(fault) = self.take(frame) {
            self.fault.get_or_insert(fault);
        }
    }

    fn transmit(&mut self, _: Now) -> Option<Frame> {
        self.outbox.pop_front()
    }

    fn deadline(&self) -> Option<Now> {
        None
    }

    fn tick(&mut self, _: Now) {}

    fn disconnected(&mut self, _: LinkEnd, _: Now) {
        self.over = true;
    }

    fn finished(&self) -> bool {
        self.over
    }
}

/// An answer that is on its way.
#[derive(Debug)]
#[must_use = "an answer is waited for"]
pub struct Awaited(u64);

/// A worker that trains, over a link.
#[derive(Debug)]
pub struct Remote {
    pump: Pump,
    client: Client,
    next: u64,
    waited: Duration,
}

impl Remote {
    /// Greets the worker at the other end.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn new(link: Link) -> Result<Self, RemoteError> {
        let pump = Pump::new(link, Clock::start(), Options::default())?;
        let mut client = Client::default();
        let hello = Request::Hello { version: VERSION };
        client.outbox.push_back(hello.into_frame());
        let mut remote = Self {
            pump,
            client,
            next: 0,
            waited: Duration::ZERO,
        };
        remote.wait(|client| client.welcomed.is_some().then_some(()))?;
        Ok(remote)
    }

    /// Sends a job; with `answer`, so many numbers are awaited.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn send(
        &mut self,
        layer: u32,
        task: Task,
        payload: &[f32],
        answer: usize,
    ) -> Result<Awaited, RemoteError> {
        let call = self.next;
        self.next += 1;
        if answer > 0 {
            self.client.awaited.insert(call, answer);
        }
        let job = Job {
            call,
            layer,
            task,
            words: words(payload),
        };
        self.client.outbox.push_back(job.into_frame());
        while !self.client.outbox.is_empty() {
            self.pump.step(&mut self.client, Duration::ZERO)?;
        }
        self.fault()?;
        Ok(Awaited(call))
    }

    /// The numbers of an answer. They are the worker's claim and nothing more.
    ///
    /// # Errors
    /// [`RemoteError`].
    pub fn receive(&mut self, awaited: Awaited) -> Result<Vec<f32>, RemoteError> {
        self.wait(|client| client.answers.remove(&awaited.0))
    }

    fn wait<T>(
        &mut self,
        mut done: impl FnMut(&mut Client) -> Option<T>,
    ) -> Result<T, RemoteError> {
        let start = Instant::now();
        loop {
            self.fault()?;
            if let Some(done) = done(&mut self.client) {
                self.waited += start.elapsed();
                return Ok(done);
            }
            if start.elapsed() > PATIENCE {
                return Err(RemoteError::TimedOut(PATIENCE));
            }
            if self
                .pump
                .step(&mut self.client, Duration::from_millis(200))?
                == Progress::Finished
            {
                return Err(RemoteError::OutOfTurn("its farewell"));
            }
        }
    }

    fn fault(&mut self) -> Result<(), RemoteError> {
        match self.client.fault.take() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Time spent waiting for answers, and bytes sent and received, frames included.
    pub fn traffic(&self) -> (Duration, u64, u64) {
        let traffic = self.pump.traffic();
        (self.waited, traffic.sent_bytes, traffic.received_bytes)
    }
}
