//! A session and a worker's machine over a real link with shared memory, in one process.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larvatus::error::InferError;
use larvatus::plan::Plan;
use larvatus::secret::Entropy;
use larvatus::session::{Output, Session, Settings};
use larvatus::tensor::Tensor;
use larvatus_host::pump::{Options, Progress, Pump};
use larvatus_host::{Address, Clock, Link, Listener};
use larvatus_proto::frame::{Frame, FrameLimits};
use larvatus_proto::machine::{LinkEnd, Machine, Now};
use larvatus_proto::words::Memory;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs inferences on a worker's machine whose every payload lies in shared memory.
///
/// # Panics
/// Where the system gives no socket, no memory or no thread, or nothing happens for long.
pub fn infer(
    plan: &Arc<Plan>,
    worker: impl Machine + Send,
    inputs: Vec<Vec<Tensor>>,
) -> Vec<Result<Output, InferError>> {
    let path = socket();
    let listener = Listener::bind(&Address::Unix(path.clone())).expect("a socket");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut link = listener.accept(PATIENCE).expect("a link").expect("in time");
            assert!(link.greet(PATIENCE).expect("a greeting"));
            let clock = Clock::start();
            let mut pump = Pump::new(link, clock, Options::default()).expect("a pump");
            let mut worker = Lending(worker, None);
            while let Ok(progress) = pump.step(&mut worker, PATIENCE) {
                if progress == Progress::Finished {
                    break;
                }
            }
            pump.finish(PATIENCE);
        });
        let link = Link::connect(&Address::Shared(path), PATIENCE).expect("a link");
        trusted(plan, link, inputs)
    })
}

/// The trusted end of a link.
///
/// # Panics
/// Where the system gives no thread, or nothing happens for long.
pub fn trusted(
    plan: &Arc<Plan>,
    link: Link,
    inputs: Vec<Vec<Tensor>>,
) -> Vec<Result<Output, InferError>> {
    let settings = Settings {
        answer_within: PATIENCE,
        ..Settings::default()
    };
    let entropy = Entropy::new(larvatus_host::entropy().expect("entropy"));
    let mut session = Session::new(Arc::clone(plan), entropy, settings);
    let clock = Clock::start();
    let mut pump = Pump::new(link, clock, Options::default()).expect("a pump");
    let mut ids = Vec::new();
    for input in inputs {
        ids.push(session.begin(input, clock.now()).expect("the plan's input"));
    }
    let mut results = Vec::new();
    while results.len() < ids.len() {
        // Why the link ended is what the session says.
        let _ = pump.step(&mut session, PATIENCE);
        results.extend(std::iter::from_fn(|| session.poll()));
    }
    session.close();
    while !session.finished() && pump.step(&mut session, PATIENCE).is_ok() {}
    results.sort_by_key(|(id, _)| *id);
    results.into_iter().map(|(_, result)| result).collect()
}

/// A path for a socket, never given twice.
pub fn socket() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("lvt-shm-{}-{next}", std::process::id()))
}

/// A machine that writes every payload of its own to the link's memory.
struct Lending<M>(M, Option<Arc<dyn Memory>>);

impl<M: Machine> Machine for Lending<M> {
    fn limits(&self) -> FrameLimits {
        self.0.limits()
    }

    fn lend(&mut self, memory: Arc<dyn Memory>) {
        self.1 = Some(memory);
    }

    fn receive(&mut self, frame: Frame, now: Now) {
        self.0.receive(frame, now);
    }

    fn transmit(&mut self, now: Now) -> Option<Frame> {
        let mut frame = self.0.transmit(now)?;
        if let (Some(memory), false) = (&self.1, frame.words.is_empty()) {
            let mut lent = memory.words(frame.words.len());
            assert!(lent.as_slice().is_none(), "no shared memory is left");
            lent.write(0, &frame.words.to_vec());
            frame.words = lent;
        }
        Some(frame)
    }

    fn deadline(&self) -> Option<Now> {
        self.0.deadline()
    }

    fn tick(&mut self, now: Now) {
        self.0.tick(now);
    }

    fn disconnected(&mut self, why: LinkEnd, now: Now) {
        self.0.disconnected(why, now);
    }

    fn finished(&self) -> bool {
        self.0.finished()
    }
}
