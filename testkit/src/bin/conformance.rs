//! Runs the operator cases of ONNX and says of each whether it is right.
//!
//! The cases run in child processes, so that one that kills its process, or never ends, is a
//! verdict and not the end of the run. Exit codes: 0 all right or refused, 1 something is wrong,
//! 2 the run itself failed.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use larvatus_testkit::conformance::judge::{Judged, Verdict, judge, store};
use larvatus_testkit::conformance::report::Report;

/// Cases of onnx 1.22.0 under `node/`, functions' expansions not counted.
const CASES: usize = 1325;

/// After this long a case hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Runs the operator cases of ONNX through `local`, `local-exact` and `slalom`.
#[derive(Parser)]
struct Args {
    /// Folder with a folder for each case.
    cases: PathBuf,
    /// Prints every verdict as JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// Writes the page of the documentation.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Only cases whose name holds this.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Judges the cases named on standard input, a line of JSON for each.
    #[arg(long, hide = true)]
    child: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = if args.child {
        child(&args.cases)
    } else {
        parent(&args)
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(err) => {
            eprintln!("conformance: {err:#}");
            ExitCode::from(2)
        }
    }
}

fn parent(args: &Args) -> Result<bool> {
    let names = names(&args.cases)?;
    if names.len() != CASES {
        bail!(
            "{} holds {} cases, onnx 1.22.0 has {CASES}; run scripts/fetch.py conformance",
            args.cases.display(),
            names.len()
        );
    }
    let chosen: VecDeque<String> = names
        .into_iter()
        .filter(|n| n.contains(&args.only))
        .collect();
    if chosen.is_empty() {
        bail!("no case is named like {:?}", args.only);
    }
    let (count, queue) = (chosen.len(), Mutex::new(chosen));
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(count);
    let judged = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|_| scope.spawn(|| work(&args.cases, &queue)))
            .collect();
        let mut all = Vec::with_capacity(count);
        for worker in workers {
            all.extend(
                worker
                    .join()
                    .map_err(|_| anyhow::anyhow!("a thread died"))??,
            );
        }
        Ok::<_, anyhow::Error>(all)
    })?;
    let report = Report::new(judged);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print!("{}", report.table());
    }
    if let Some(path) = &args.write {
        if !args.only.is_empty() {
            bail!(
                "a page is written of all cases, not of those like {:?}",
                args.only
            );
        }
        std::fs::write(path, report.page()).with_context(|| path.display().to_string())?;
    }
    let failures = report.failures();
    failures.iter().for_each(|failure| eprintln!("{failure}"));
    Ok(failures.is_empty())
}

/// Names of the cases, in order.
fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).with_context(|| {
        format!(
            "{}: run scripts/fetch.py conformance first",
            folder.display()
        )
    })?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with("_expanded") && entry.path().join("model.onnx").is_file() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Judges cases of the queue in a child process, and in another where that one ends.
fn work(folder: &Path, queue: &Mutex<VecDeque<String>>) -> Result<Vec<Judged>> {
    let next = || {
        queue
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop_front()
    };
    let mut judged = Vec::new();
    let mut process = Process::start(folder)?;
    while let Some(case) = next() {
        match process.judge(&case) {
            Ok(verdict) => judged.push(verdict),
            Err(end) => {
                let why = process.end(end);
                let verdict = Verdict::Panic(why);
                let operator = "?".to_owned();
                judged.push(Judged {
                    case,
                    operator,
                    verdict,
                    layers: 0,
                    of_bound: None,
                });
                process = Process::start(folder)?;
            }
        }
    }
    process.end(End::Died);
    Ok(judged)
}

/// How a child failed a case.
enum End {
    Died,
    Hung,
}

struct Process {
    child: Child,
    lines: Receiver<String>,
}

impl Process {
    fn start(folder: &Path) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(folder)
            .arg("--child")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let stdout = child.stdout.take().context("no pipe")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, lines })
    }

    fn judge(&mut self, case: &str) -> Result<Judged, End> {
        let stdin = self.child.stdin.as_mut().ok_or(End::Died)?;
        writeln!(stdin, "{case}")
            .and_then(|()| stdin.flush())
            .map_err(|_| End::Died)?;
        let line = self.lines.recv_timeout(PATIENCE).map_err(|err| match err {
            RecvTimeoutError::Timeout => End::Hung,
            RecvTimeoutError::Disconnected => End::Died,
        })?;
        serde_json::from_str(&line).map_err(|_| End::Died)
    }

    /// Ends the child and says how it ended.
    fn end(mut self, end: End) -> String {
        drop(self.child.stdin.take());
        if matches!(end, End::Hung) {
            // It may have ended just now.
            let _ = self.child.kill();
        }
        let status = self
            .child
            .wait()
            .map_or_else(|err| err.to_string(), |s| s.to_string());
        match end {
            End::Died => format!("the process ended: {status}"),
            End::Hung => format!("no verdict within {} s", PATIENCE.as_secs()),
        }
    }
}

fn child(folder: &Path) -> Result<bool> {
    let store = store().map_err(anyhow::Error::msg)?;
    for case in std::io::stdin().lines() {
        let case = case?;
        let path = folder.join(&case);
        let verdict = catch_unwind(AssertUnwindSafe(|| judge(&path, &store)));
        let verdict = verdict.unwrap_or_else(|panic| Judged {
            case,
            operator: "?".to_owned(),
            verdict: Verdict::Panic(said(&*panic)),
            layers: 0,
            of_bound: None,
        });
        println!("{}", serde_json::to_string(&verdict)?);
    }
    Ok(true)
}

fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default()
}
