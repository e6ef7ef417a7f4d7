//! Time, CPU time and entropy: what state machines are given, never take.

use std::io;
use std::time::{Duration, Instant};

use larvatus_proto::machine::Now;
use rustix::time::{ClockId, Timespec, clock_gettime};

/// A monotonic clock that started when it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock at zero.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since its start.
    pub fn now(&self) -> Now {
        self.0.elapsed()
    }
}

/// CPU time that the calling thread has used.
pub fn thread_cpu() -> Duration {
    duration(clock_gettime(ClockId::ThreadCPUTime))
}

/// CPU time that all threads of this process have used.
pub fn process_cpu() -> Duration {
    duration(clock_gettime(ClockId::ProcessCPUTime))
}

fn duration(time: Timespec) -> Duration {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanos)
}

/// 32 bytes from the operating system's generator.
///
/// # Errors
/// The system's error where it has no entropy to give.
pub fn entropy() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_counts_work_and_not_sleep() {
        let (thread, process) = (thread_cpu(), process_cpu());
        std::thread::sleep(Duration::from_millis(60));
        let slept = thread_cpu() - thread;
        assert!(slept < Duration::from_millis(30), "{slept:?}");
        let clock = Clock::start();
        let mut x = 1_u64;
        while thread_cpu() - thread < slept + Duration::from_millis(5) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(clock.now() >= Duration::from_millis(4));
        assert!(process_cpu() - process >= Duration::from_millis(5));
    }

    #[test]
    fn entropy_differs() {
        assert_ne!(entropy().unwrap(), entropy().unwrap());
    }
}
