//! `larvatus plan`: what would be done, layer by layer.

use anyhow::Result;
use larvatus::plan::Row;
use larvatus::policy::Secrecy;
use larvatus::store::Store;
use serde_json::json;

use super::{Named, load, plan, shapes};
use crate::Verdict;
use crate::args::Plan as Args;
use crate::store;
use crate::table::{bytes, count, shorten, table};

pub(super) fn run(args: &Args) -> Result<Verdict> {
    let named = Named::of(&args.job)?;
    let model = load(&args.job.model, &shapes(&args.job.shape)?)?;
    let plan = plan(&model, &named.policy)?;
    let stored = args.stored.store.as_deref();
    let stored = stored
        .map(|folder| store::open(&plan, folder, args.stored.key.as_deref()))
        .transpose()?;
    let assumes = stored.as_ref().and_then(Store::assumes);
    let (rows, estimate) = (plan.rows(), plan.estimate());
    let guarantees = plan.guarantees().with_store(assumes);
    let total = |of: fn(&Row) -> u64| rows.iter().map(of).sum::<u64>();
    // An upload counts at the first layer that reads it.
    let uploads = rows.iter().filter(|row| row.up > 0).count();
    let away: u64 = rows
        .iter()
        .filter(|row| row.placement == "worker")
        .map(|row| row.macs)
        .sum();
    if args.json {
        let report = json!({
            "model": plan.model().to_string(),
            "plan": plan.digest().to_string(),
            "preset": named.name,
            "layers": rows,
            "macs": total(|row| row.macs),
            "macs_at_worker": away,
            "uploads": uploads,
            "bytes": { "up": total(|row| row.up), "down": total(|row| row.down) },
            "upload_bytes": plan.worker_model().blob().len(),
            "round_trips": plan.round_trips(),
            "soundness_bits": guarantees.per_inference.bits(),
            "soundness_bits_lifetime": guarantees.lifetime.bits(),
            "lifetime": guarantees.inferences,
            "input_privacy": guarantees.input_privacy.to_string(),
            "weight_privacy": guarantees.weight_privacy(),
            "tickets": stored.as_ref().map(|store| json!({
                "stored": store.tickets(),
                "assumes": assumes,
            })),
            "expected": {
                "local_ms": estimate.local_ms,
                "trusted_ms": estimate.trusted_ms,
                "gain": estimate.gain(),
            },
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(Verdict::Accepted);
    }
    let cells = |row: &Row| {
        let away = row.placement == "worker";
        vec![
            shorten(&row.name, 36),
            row.op.clone(),
            row.shape.clone(),
            count(row.macs),
            if away { bytes(row.up) } else { "-".to_owned() },
            if away {
                bytes(row.down)
            } else {
                "-".to_owned()
            },
            row.round
                .map_or_else(|| "-".to_owned(), |round| round.to_string()),
            row.placement.to_owned(),
            row.guarantee.clone(),
            row.why.clone(),
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let head = [
        "layer",
        "op",
        "shape",
        "MACs",
        "up",
        "down",
        "round",
        "placement",
        "guarantee",
        "why",
    ];
    if rows.is_empty() {
        println!(
            "no layer of this model is a linear map with constant weights; all of it runs here"
        );
        return Ok(Verdict::Accepted);
    }
    print!("{}", table(&head, &cells));
    println!();
    let all = total(|row| row.macs).max(1);
    println!(
        "{} of {} MACs ({:.1} %) at the worker; {} up in {uploads} uploads, {} down in {} round trips; \
         {} of weights sent once",
        count(away),
        count(all),
        100.0 * away as f64 / all as f64,
        bytes(total(|row| row.up)),
        bytes(total(|row| row.down)),
        plan.round_trips(),
        bytes(plan.worker_model().blob().len() as u64),
    );
    if let Some(store) = &stored {
        println!("tickets:   {} in the store", store.tickets());
    }
    println!("guarantee: {}", guarantees.sentence());
    if guarantees.per_check.bits() > 0.0 {
        println!(
            "           over {} inferences: below 2^-{:.1}{}",
            count(guarantees.inferences),
            guarantees.lifetime.bits(),
            match plan.policy().secrecy() {
                Secrecy::Public => "; weights are known to the worker",
                Secrecy::TwoWorkers => "",
            }
        );
    }
    println!(
        "expected:  {:.1} ms of trusted CPU online instead of {:.1} ms for these layers ({:.1}x); {}",
        estimate.trusted_ms,
        estimate.local_ms,
        estimate.gain(),
        if estimate.gain() < 1.0 {
            "run it locally: nothing is gained"
        } else {
            "constants of one AVX-512 core, see `larvatus bench`"
        }
    );
    Ok(Verdict::Accepted)
}
