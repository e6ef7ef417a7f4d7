//! `larvatus client`: one request of the Open Inference Protocol, to an attested service alone.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::Verdict;
use crate::cmd::evidence::{Trust, Unattested, bytes};

/// Longest answer that is read.
const ANSWER: usize = 1 << 30;

#[derive(clap::Args, Debug)]
pub(crate) struct Client {
    /// The model's name at the service.
    pub(crate) model: String,
    /// The request, as the Open Inference Protocol has it (.json).
    #[arg(long, value_name = "FILE")]
    pub(crate) request: PathBuf,
    /// Where the answer goes; standard output where nothing is said.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) trust: Trust,
}

pub(crate) fn run(args: &Client) -> Result<Verdict> {
    let name = &args.model;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    ensure!(
        !name.is_empty() && name.chars().all(plain),
        "model {name:?}: letters, digits, '-', '_' and '.' are wanted"
    );
    let request = bytes(&args.request)?;
    let verifier = args.trust.verifier()?;
    let mut stream = match args.trust.connect(&verifier) {
        Ok(stream) => stream,
        Err(Unattested::Refused(why)) => return Ok(Verdict::Rejected(why)),
        Err(Unattested::Failed(why)) => return Err(why),
    };
    let path = format!("/v2/models/{name}/infer");
    let kind = [("Content-Type", "application/json")];
    let answer = stream.exchange("POST", &path, &kind, &request, ANSWER)?;
    if answer.status != 200 {
        bail!(
            "the service answers with status {}: {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    match &args.output {
        Some(path) => std::fs::write(path, &answer.body)
            .with_context(|| format!("cannot write {}", path.display()))?,
        None => {
            let mut out = std::io::stdout().lock();
            out.write_all(&answer.body)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(Verdict::Accepted)
}
