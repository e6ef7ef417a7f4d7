//! `larvatus judge` and `larvatus verify-receipt`: what anybody can see without secrets.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use larvatus::audit::{Evidence, JudgeSecret, graph_name, is_sealed, read_graph};
use larvatus_host::entropy;
use larvatus_host::store::{read_key, write_key};
use larvatus_proto::receipt::{PublicKey, Receipt, Statement};
use serde_json::json;

use crate::Verdict;
use crate::args::{Judge, VerifyReceipt};
use crate::driver::millis;
use crate::table::bytes;

pub(super) fn judge(args: &Judge) -> Result<Verdict> {
    let started = Instant::now();
    if let Some(file) = &args.new_key {
        return new_key(file, args.json);
    }
    let (Some(file), Some(worker)) = (&args.evidence, &args.worker_key) else {
        bail!("name the evidence and, with --worker-key, the worker's key");
    };
    let worker: PublicKey = worker.parse()?;
    let evidence = evidence(file, args.key.as_deref())?;
    let beside = || file.with_file_name(graph_name(evidence.model()));
    let path = args.graph.clone().unwrap_or_else(beside);
    let file = read(&path)?;
    let about = || format!("graph {}", path.display());
    let model = match read_graph(file, evidence.model()) {
        Ok(model) => model,
        Err(err) => return Err(err).with_context(about),
    };
    let judged = evidence.judge(worker, &model);
    let took = started.elapsed();
    match judged {
        Ok(shown) => {
            let disclosed = shown.disclosed();
            if args.json {
                let tensors: Vec<_> = disclosed
                    .iter()
                    .map(|d| json!({ "tensor": d.tensor, "name": d.name, "bytes": d.bytes, "of": d.of }))
                    .collect();
                let report = json!({
                    "lied": true,
                    "worker_key": worker.to_string(),
                    "model": shown.statement().model.to_string(),
                    "counter": shown.statement().counter,
                    "what": shown.what(),
                    "discloses": tensors,
                    "ms": millis(took),
                });
                println!("{}", serde_json::to_string_pretty(&report)?);
            } else {
                println!("the worker lied: {}", shown.what());
                print_statement(shown.statement());
                for d in disclosed {
                    println!(
                        "the evidence discloses {} of {} of {}",
                        bytes(d.bytes),
                        bytes(d.of),
                        d.name
                    );
                }
                println!("judged in {:.1} ms", millis(took));
            }
            Ok(Verdict::Accepted)
        }
        Err(why) => {
            if args.json {
                let report = json!({ "lied": false, "why": why.to_string(), "ms": millis(took) });
                println!("{}", serde_json::to_string_pretty(&report)?);
            }
            Ok(Verdict::Rejected(format!("no lie is shown: {why}")))
        }
    }
}

/// Makes a judge's key.
fn new_key(file: &Path, json: bool) -> Result<Verdict> {
    let seed = entropy()?;
    let judge = JudgeSecret::new(&seed).public();
    write_key(file, &seed)?;
    match json {
        true => println!("{}", json!({ "judge": judge.to_string() })),
        false => println!("judge {judge}"),
    }
    Ok(Verdict::Accepted)
}

/// The evidence in a file, opened with the judge's key where it is sealed.
fn evidence(file: &Path, key: Option<&Path>) -> Result<Evidence> {
    let (bytes, name) = (read(file)?, file.display());
    match (is_sealed(&bytes), key) {
        (false, None) => Evidence::decode(&bytes).with_context(|| format!("{name} is no evidence")),
        (false, Some(_)) => bail!("evidence {name} is not sealed; leave --key out"),
        (true, None) => {
            bail!("evidence {name} is sealed to a judge; give the judge's key with --key FILE")
        }
        (true, Some(key)) => {
            let seed = read_key(key)?.with_context(|| format!("no key {}", key.display()))?;
            let opened = Evidence::unseal(&bytes, &JudgeSecret::new(&seed));
            opened.with_context(|| format!("evidence {name}"))
        }
    }
}

pub(super) fn verify_receipt(args: &VerifyReceipt) -> Result<Verdict> {
    let about = || format!("receipt {}", args.file.display());
    let receipt = Receipt::decode(&read(&args.file)?).with_context(about)?;
    let statement = receipt.unverified();
    let key = |given: &Option<String>, named: PublicKey| match given {
        Some(text) => text.parse().map_err(anyhow::Error::from),
        None => Ok(named),
    };
    let trusted = key(&args.trusted_key, statement.trusted)?;
    let worker = key(&args.worker_key, statement.worker)?;
    let verified = match receipt.verify(trusted, worker) {
        Ok(verified) => verified,
        Err(why) => {
            return Ok(Verdict::Rejected(format!(
                "the receipt does not hold: {why}"
            )));
        }
    };
    let statement = verified.statement();
    if args.json {
        let report = json!({
            "verdict": verified.verdict().to_string(),
            "model": statement.model.to_string(),
            "plan": statement.plan.to_string(),
            "counter": statement.counter,
            "input": statement.input.0.to_string(),
            "output": statement.output.0.to_string(),
            "trace": statement.trace.to_string(),
            "trusted_key": statement.trusted.to_string(),
            "worker_key": statement.worker.to_string(),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}, signed by both sides", verified.verdict());
        print_statement(statement);
    }
    Ok(Verdict::Accepted)
}

fn print_statement(statement: &Statement) {
    println!("model    {}", statement.model);
    println!("plan     {}", statement.plan);
    println!("number   {}", statement.counter);
    println!("input    {} (salted)", statement.input.0);
    println!("output   {} (salted)", statement.output.0);
    println!("trace    {}", statement.trace);
    println!("trusted  {}", statement.trusted);
    println!("worker   {}", statement.worker);
}

fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
