//! `larvatus plan` for the presets in floats.

use anyhow::{Result, ensure};
use larvatus::faithful::{Demand, Plan};
use larvatus::policy::Preset;
use serde_json::json;

use super::super::{load, rates, shapes};
use super::{Forecast, print_rows, tell};
use crate::Verdict;
use crate::args::Plan as Args;
use crate::report::{Floats, LeakField};
use crate::table::{bytes, count};

pub(super) fn run(args: &Args, demand: &Demand) -> Result<Verdict> {
    ensure!(
        args.stored.store.is_none(),
        "tickets of a store are not for {}",
        args.job.preset
    );
    let model = load(&args.job.model, &shapes(&args.job.shape)?)?;
    let plan = Plan::new(&model, demand)?;
    // The exact mode with as many workers sends the same layers in the same round trips, in as many words.
    let forecast = match &args.job.rates {
        Some(path) => {
            let preset = match (plan.demand().masks(), plan.workers()) {
                (None, _) => Preset::Clear,
                (Some(_), 1) => Preset::Slalom,
                (Some(_), _) => Preset::VerisplitExact,
            };
            let mut policy = preset.policy();
            policy.rates = rates(path)?;
            Some(Forecast::new(
                &model,
                &super::super::plan(&model, &policy)?,
            )?)
        }
        None => None,
    };
    let rows = plan.rows();
    let floats = Floats {
        bits_left: plan.demand().bits_left(),
        data: plan.data_leak().map(|leak| LeakField::of(leak, None)),
        weights: plan.weight_leak().map(|leak| LeakField::of(leak, None)),
        audit: None,
    };
    let up: u64 = rows.iter().map(|row| row.up).sum();
    let down: u64 = rows.iter().map(|row| row.down).sum();
    if args.json {
        let report = json!({
            "model": plan.model().to_string(),
            "plan": plan.digest().to_string(),
            "preset": args.job.preset,
            "layers": rows,
            "bytes": { "up": up, "down": down },
            "upload_bytes": plan.program().weight_bytes() * plan.workers() as u64,
            "round_trips": plan.round_trips(),
            "soundness_bits": 0.0,
            "floats": floats,
            "guarantee": plan.guarantee(),
            "predicted": forecast.as_ref().map(Forecast::json),
        });
        println!("{}", serde_json::to_string_pretty(&report)?);
        return Ok(Verdict::Accepted);
    }
    print_rows(&rows);
    println!();
    println!(
        "{} MACs at {} worker{}; {} up, {} down in {} round trips; {} of weights sent once",
        count(
            rows.iter()
                .filter(|row| row.placement == "worker")
                .map(|row| row.macs)
                .sum()
        ),
        plan.workers(),
        if plan.workers() == 1 { "" } else { "s" },
        bytes(up),
        bytes(down),
        plan.round_trips(),
        bytes(plan.program().weight_bytes() * plan.workers() as u64),
    );
    floats.print();
    println!("guarantee: {}", plan.guarantee());
    tell(forecast.as_ref());
    Ok(Verdict::Accepted)
}
