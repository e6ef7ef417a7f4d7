//! How much others want this machine.
//!
//! The system's load is the number of threads that run or want to, averaged over a minute. This process's own part is taken
//! away: its CPU time, averaged in the same way. Where cores are short, its threads wait too, which counts as
//! others' load: so one errs towards leaving the machine to them.
//!
//! Source: `/proc/loadavg` in proc_loadavg(5).

use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use larvatus_proto::machine::Now;

use crate::clock::process_cpu;

/// Where Linux tells its load.
pub const LOADAVG: &str = "/proc/loadavg";

/// What the load is averaged over, in seconds.
const MINUTE: f64 = 60.0;

/// The load at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "sources of load write it as a literal"
)]
pub struct Sample {
    /// Of the whole machine, over a minute.
    pub load: f64,
    /// CPU time that this process has used so far.
    pub cpu: Duration,
}

/// Tells the load.
pub trait Source {
    /// The load now.
    ///
    /// # Errors
    /// The system's, where it does not tell.
    fn sample(&mut self) -> io::Result<Sample>;
}

/// The load of this machine.
#[derive(Clone, Debug)]
pub struct System(PathBuf);

impl System {
    /// Reads it from [`LOADAVG`], or from another file in the same form.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Self(file.into())
    }
}

impl Source for System {
    fn sample(&mut self) -> io::Result<Sample> {
        let text = fs::read_to_string(&self.0)?;
        let first = text.split_whitespace().next().unwrap_or_default();
        let load = first.parse().ok().filter(|load: &f64| load.is_finite());
        let load = load.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no load"))?;
        let cpu = process_cpu();
        Ok(Sample { load, cpu })
    }
}

/// The load that others make.
#[derive(Clone, Copy, Debug, Default)]
pub struct Others {
    /// Cores that this process used, averaged over a minute.
    own: f64,
    last: Option<(Now, Duration)>,
}

impl Others {
    /// The load of others by a sample taken `now`; call it every few seconds.
    pub fn load(&mut self, now: Now, sample: Sample) -> f64 {
        if let Some((then, before)) = self.last {
            let passed = now.saturating_sub(then).as_secs_f64();
            let used = sample.cpu.saturating_sub(before).as_secs_f64();
            if passed > 0.0 {
                let keep = (-passed / MINUTE).exp();
                self.own = self.own * keep + used / passed * (1.0 - keep);
            }
        }
        self.last = Some((now, sample.cpu));
        (sample.load - self.own).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// The load of others after so many seconds, in which the machine has `load` and this process uses `own` cores.
    fn after(seconds: u32, load: f64, own: f64) -> f64 {
        let mut others = Others::default();
        let mut last = 0.0;
        for second in 0..=seconds {
            let cpu = Duration::from_secs_f64(own * f64::from(second));
            last = others.load(second * SECOND, Sample { load, cpu });
        }
        last
    }

    #[test]
    fn what_this_process_does_is_not_held_against_it() {
        // Nothing is known at first.
        assert_eq!(after(0, 2.0, 2.0), 2.0);
        assert!((after(60, 2.0, 2.0) - 2.0 * (-1.0_f64).exp()).abs() < 1e-9);
        assert!(after(600, 2.0, 2.0) < 1e-3);
        assert!((after(600, 3.0, 1.0) - 2.0).abs() < 1e-3);
        assert_eq!(after(600, 0.5, 0.0), 0.5);
        // More of our own than there is load: others make none.
        assert_eq!(after(600, 0.5, 2.0), 0.0);
    }

    #[test]
    fn time_that_stands_still_is_borne_with() {
        let mut others = Others::default();
        let sample = Sample {
            load: 1.0,
            cpu: SECOND,
        };
        assert_eq!(others.load(SECOND, sample), 1.0);
        assert_eq!(others.load(SECOND, sample), 1.0);
    }

    #[test]
    fn this_machine_tells_its_load() {
        let sample = System::new(LOADAVG).sample().unwrap();
        assert!(sample.load >= 0.0);
        let file = std::env::temp_dir().join(format!("larvatus-load-{}", std::process::id()));
        for (text, load) in [("1.50 0 0", Some(1.5)), ("", None), ("NaN", None)] {
            fs::write(&file, text).unwrap();
            let sample = System::new(&file).sample();
            assert_eq!(sample.ok().map(|sample| sample.load), load, "{text}");
        }
        fs::remove_file(file).unwrap();
    }
}
