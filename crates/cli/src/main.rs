//! `larvatus`: neural networks on hardware that its owner does not trust.

#![forbid(unsafe_code)]

mod args;
mod auditing;
mod cmd;
mod compare;
mod crews;
mod dealer;
mod driver;
mod feed;
mod input;
mod known;
mod memory;
mod output;
mod parties;
mod report;
mod serving;
mod spawn;
mod store;
mod table;
mod tickets;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

use clap::Parser;

/// How a command ended.
enum Verdict {
    /// What was asked for is done, and every answer was accepted.
    Accepted,
    /// A worker was caught lying; the sentence says who, where and what.
    Rejected(String),
}

fn main() -> ExitCode {
    quiet_panics();
    let args = args::Args::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("LARVATUS_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    let done = catch_unwind(AssertUnwindSafe(|| cmd::run(args)));
    if matches!(&done, Err(panic) if nobody_reads(&**panic)) {
        return ExitCode::from(NOBODY_READS);
    }
    match done.unwrap_or_else(|panic| Err(bug(&*panic))) {
        Ok(Verdict::Accepted) => ExitCode::SUCCESS,
        Ok(Verdict::Rejected(why)) => {
            eprintln!("larvatus: {}", one_line(&why));
            ExitCode::from(1)
        }
        Err(err) => {
            eprintln!("larvatus: {}", one_sentence(&err));
            ExitCode::from(2)
        }
    }
}

/// The error and its causes on one line.
fn one_sentence(err: &anyhow::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    for cause in err.chain() {
        let text = one_line(&cause.to_string());
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// Messages of libraries may have several lines.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What a panic says.
fn said(panic: &(dyn Any + Send)) -> Option<&str> {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
}

/// A panic of this program, as an error like any other.
fn bug(panic: &(dyn Any + Send)) -> anyhow::Error {
    anyhow::anyhow!(
        "this program has a fault ({}); set RUST_BACKTRACE=1 and report what it says then",
        said(panic).unwrap_or("no reason given")
    )
}

/// Exit status of a program whose output nobody reads any more, as shells have it: 128 + SIGPIPE.
const NOBODY_READS: u8 = 141;

/// Whether a panic is `println!` finding its pipe closed, as by `larvatus plan MODEL | head`.
fn nobody_reads(panic: &(dyn Any + Send)) -> bool {
    said(panic).is_some_and(|text| {
        text.starts_with("failed printing to stdout") && text.contains("Broken pipe")
    })
}

/// A panic inside the graph engine is caught and reported as an error; its own message would only
/// be noise. `RUST_BACKTRACE` brings it back, except where nobody reads.
fn quiet_panics() {
    let wanted = std::env::var_os("RUST_BACKTRACE").is_some();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if wanted && !nobody_reads(info.payload()) {
            usual(info);
        }
    }));
}
