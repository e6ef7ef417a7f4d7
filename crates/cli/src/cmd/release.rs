//! `larvatus release`: the key of a sealed model, to an attested service alone.

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use larvatus_attest::channel::PATH;
use larvatus_attest::evidence::{Evidence, MAX_ENCODED};
use larvatus_attest::release::release;
use larvatus_attest::seal::Header;
use larvatus_attest::service::RELEASE_PATH;
use larvatus_attest::statement::Challenge;

use crate::Verdict;
use crate::cmd::evidence::{Trust, Unattested, now};
use crate::cmd::seal::read_key;

/// Longest answer to a grant that is read.
const ANSWER: usize = 64 << 10;

#[derive(clap::Args, Debug)]
pub(crate) struct Release {
    /// The sealed model, as `larvatus seal` wrote it; only its header is read.
    pub(crate) sealed: PathBuf,
    /// The key that it was sealed with.
    #[arg(long, value_name = "FILE")]
    pub(crate) owner_key: PathBuf,
    #[command(flatten)]
    pub(crate) trust: Trust,
}

pub(crate) fn run(args: &Release) -> Result<Verdict> {
    let owner = read_key(&args.owner_key)?;
    let what = || format!("sealed model {}", args.sealed.display());
    let mut file = File::open(&args.sealed).with_context(what)?;
    let header = Header::read(&mut file).with_context(what)?;
    let key = owner.unwrap(&header).with_context(what)?;
    let model = header.model();
    let verifier = args.trust.verifier()?;
    let mut stream = match args.trust.connect(&verifier) {
        Ok(stream) => stream,
        Err(Unattested::Refused(why)) => return Ok(Verdict::Rejected(why)),
        Err(Unattested::Failed(why)) => return Err(why),
    };
    let challenge = Challenge::fresh(now())?;
    let path = format!(
        "{PATH}?purpose=release&nonce={}&model={model}",
        challenge.nonce()
    );
    let answer = stream.exchange("GET", &path, &[], &[], MAX_ENCODED)?;
    if answer.status != 200 {
        bail!(
            "the service gives no evidence for this model (status {})",
            answer.status
        );
    }
    let evidence = Evidence::decode(&answer.body)?;
    let attested = match verifier.release(&evidence, challenge, model, now()) {
        Ok(attested) => attested,
        Err(why) => {
            let service = &args.trust.service;
            return Ok(Verdict::Rejected(format!("{service} is refused: {why}")));
        }
    };
    let grant = release(&attested, &key)?;
    let kind = [("Content-Type", "application/octet-stream")];
    let answer = stream.exchange("POST", RELEASE_PATH, &kind, grant.as_bytes(), ANSWER)?;
    if !(200..300).contains(&answer.status) {
        bail!(
            "the service does not take the key (status {}): {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
    }
    println!("released      {model}");
    println!("to            {}", args.trust.service);
    Ok(Verdict::Accepted)
}
