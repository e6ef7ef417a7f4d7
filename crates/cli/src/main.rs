//! `larvatus`: neural networks on hardware that its owner does not trust.

#![forbid(unsafe_code)]

mod args;
mod cmd;
mod driver;
mod input;
mod output;
mod report;
mod spawn;
mod table;

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
    match cmd::run(args) {
        Ok(Verdict::Accepted) => ExitCode::SUCCESS,
        Ok(Verdict::Rejected(why)) => {
            eprintln!("larvatus: {why}");
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
        let text = cause.to_string();
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
    }
    parts.join(": ")
}

/// A panic inside the graph engine is caught and reported as an error; its own message would only
/// be noise. `RUST_BACKTRACE` brings it back.
fn quiet_panics() {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
}
