//! A worker process of our own.

use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// A worker that lives as long as this value.
pub(crate) struct OwnWorker {
    child: Child,
    folder: PathBuf,
}

impl OwnWorker {
    /// Starts this program as a worker on a Unix socket in a fresh folder.
    pub(crate) fn start(threads: Option<usize>) -> Result<Self> {
        Self::start_with(threads, &[])
    }

    /// The same, with further arguments.
    pub(crate) fn start_with(threads: Option<usize>, further: &[&str]) -> Result<Self> {
        let folder = fresh_folder()?;
        let program = std::env::current_exe().context("cannot find this program's own file")?;
        let mut command = Command::new(program);
        command
            .args(["worker", "--until-stdin-ends", "--listen"])
            .arg(format!("unix:{}", folder.join("worker").display()))
            .args(further)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // A group of its own: Ctrl-C on a terminal is for us, and the worker, whose standard
            // input ends with us, removes its socket and folder.
            .process_group(0);
        if let Some(threads) = threads {
            command.args(["--threads", &threads.to_string()]);
        }
        let child = command.spawn().context("cannot start a worker process")?;
        let mut worker = Self { child, folder };
        worker.wait_until_listening()?;
        Ok(worker)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> String {
        format!("shm:{}", self.folder.join("worker").display())
    }

    /// CPU time that it has taken, to a hundredth of a second; nothing where the system does not tell.
    ///
    /// Source: fields 14 and 15 of proc_pid_stat(5), in hundredths of a second on Linux.
    pub(crate) fn cpu(&self) -> Option<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).ok()?;
        // The name before may hold anything, brackets too.
        let (_, fields) = stat.rsplit_once(") ")?;
        let mut fields = fields.split(' ').skip(11);
        let mut next = || fields.next()?.parse::<u64>().ok();
        Some(Duration::from_millis(10 * next()?.checked_add(next()?)?))
    }

    fn wait_until_listening(&mut self) -> Result<()> {
        let patience = Instant::now() + Duration::from_secs(10);
        // The file is there before anybody listens on it.
        while UnixStream::connect(self.folder.join("worker")).is_err() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the worker process ended at once ({status})");
            }
            if Instant::now() > patience {
                bail!("the worker process does not listen after 10 seconds");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for OwnWorker {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A folder that only this user can enter.
fn fresh_folder() -> Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let base = std::env::temp_dir();
    for attempt in 0..100 {
        let folder = base.join(format!("larvatus-{}-{attempt}", std::process::id()));
        match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(err) if err.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(err) => {
                return Err(err).with_context(|| format!("cannot make {}", folder.display()));
            }
        }
    }
    bail!(
        "{} is full of folders of ours; remove larvatus-* there",
        base.display()
    )
}
