//! `larvatus provision`: tickets made ahead.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use larvatus::plan::InputPrivacy;
use larvatus::secret::Entropy;
use larvatus::store::Provisioner;
use larvatus_host::{entropy, process_cpu};

use super::{Named, load, plan, shapes};
use crate::Verdict;
use crate::args::Provision as Args;
use crate::driver::{millis, progress};
use crate::store::open_or_create;
use crate::table::bytes;

pub(super) fn run(args: &Args) -> Result<Verdict> {
    let named = Named::of(&args.job)?;
    named.by_layer("a store of tickets")?;
    ensure!(
        named.offloads(),
        "--preset {} sends nothing away, so it needs no tickets",
        named.name
    );
    ensure!(args.threads != Some(0), "--threads must be at least 1");
    let most = size(&args.max_size)?;
    let plan = plan(
        &load(&args.job.model, &shapes(&args.job.shape)?)?,
        &named.policy,
    )?;
    ensure!(
        plan.round_trips() > 0,
        "nothing of this model can go to a worker, so it needs no tickets"
    );
    // Before anything is written.
    ensure!(
        plan.guarantees().input_privacy == InputPrivacy::Perfect,
        "this plan hides nothing, so it needs no tickets"
    );
    let store = open_or_create(&plan, &args.store, args.key.as_deref())?;
    let (there, each) = (store.tickets(), store.ticket_bytes());
    let needed = each.saturating_mul(args.tickets.max(there) as u64);
    ensure!(
        needed <= most,
        "{} tickets of {} take {}, --max-size allows {}",
        args.tickets,
        bytes(each),
        bytes(needed),
        bytes(most)
    );
    let missing = args.tickets.saturating_sub(there);
    let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let threads = args.threads.unwrap_or(cores);
    let bar = progress("tickets", missing as u64, "{pos}/{len} {eta}");
    let (started, cpu) = (Instant::now(), process_cpu());
    make(&store.provisioner(), missing, threads, &bar)?;
    let (wall, cpu) = (started.elapsed(), process_cpu() - cpu);
    bar.finish_and_clear();
    println!(
        "store {}: {} tickets for plan {}, {missing} of them new",
        args.store.display(),
        there + missing,
        plan.digest()
    );
    if missing > 0 {
        println!(
            "price: {} and {:.1} ms of CPU a ticket; {:.1} s on {threads} threads",
            bytes(each),
            millis(cpu) / missing as f64,
            wall.as_secs_f64()
        );
    }
    if let Some(assumes) = store.assumes() {
        println!("assumes {assumes}");
    }
    Ok(Verdict::Accepted)
}

/// Makes `missing` tickets on some threads; the first error ends all of them.
fn make(
    provisioner: &Provisioner<'_>,
    missing: usize,
    threads: usize,
    bar: &ProgressBar,
) -> Result<()> {
    let begun = AtomicUsize::new(0);
    let work = || -> Result<()> {
        while begun.fetch_add(1, Ordering::Relaxed) < missing {
            let made = entropy()
                .context("no randomness")
                .and_then(|drawn| Ok(provisioner.make(&Entropy::new(drawn))?));
            if let Err(err) = made {
                begun.fetch_max(missing, Ordering::Relaxed);
                return Err(err);
            }
            bar.inc(1);
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads.min(missing))
            .map(|_| scope.spawn(work))
            .collect();
        let ends = handles.into_iter().map(|handle| {
            let end = handle.join();
            end.unwrap_or_else(|_| Err(anyhow::anyhow!("a thread that makes tickets died")))
        });
        // Every thread is joined before one is believed.
        ends.collect::<Vec<_>>().into_iter().collect()
    })
}

/// A size such as `500M` or `10G`.
fn size(text: &str) -> Result<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => Some(1),
        "K" => Some(1 << 10),
        "M" => Some(1 << 20),
        "G" => Some(1 << 30),
        "T" => Some(1 << 40),
        _ => None,
    };
    let size = digits.parse::<u64>().ok().zip(unit);
    size.and_then(|(count, unit): (u64, u64)| count.checked_mul(unit))
        .with_context(|| format!("--max-size {text:?} is no size; write 500M or 10G"))
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("10G").ok(), Some(10 << 30));
        assert_eq!(size("7").ok(), Some(7));
        for wrong in ["", "G", "1X", "-1", "1.5G", "99999999999T", "1 G"] {
            assert!(size(wrong).is_err(), "{wrong:?}");
        }
    }
}
