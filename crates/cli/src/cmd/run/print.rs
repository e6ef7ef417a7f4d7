//! What `larvatus run` tells people.

use std::sync::Arc;

use larvatus::model::Port;
use larvatus::tensor::Tensor;

use crate::report::{AuditField, Report, Single, Tickets};
use crate::table::{bytes, table};

/// The likeliest classes of each input, or the forms of its outputs.
pub(super) fn results(singles: &[Single], tensors: &[Vec<Arc<Tensor>>], outputs: &[Port]) {
    for (single, tensors) in singles.iter().zip(tensors) {
        println!("{}", single.input);
        match &single.top {
            Some(classes) => {
                let rows: Vec<Vec<String>> = classes
                    .iter()
                    .map(|(ix, name, p)| {
                        vec![
                            format!("  {:.1} %", 100.0 * p),
                            ix.to_string(),
                            name.clone(),
                        ]
                    })
                    .collect();
                print!("{}", table(&["  likely", "class", "name"], &rows));
            }
            None => {
                for (port, tensor) in outputs.iter().zip(tensors) {
                    println!(
                        "  {}: {:?} {:?}",
                        port.name,
                        tensor.datum_type(),
                        tensor.shape()
                    );
                }
            }
        }
    }
}

/// A probability with the digits that it needs.
fn chance(p: f64) -> String {
    if p >= 1e-3 || p == 0.0 {
        format!("{p:.4}")
    } else {
        format!("{p:.1e}")
    }
}

/// What is audited, and what that is worth.
fn audited(audit: &AuditField) {
    let all = match audit.records.len() {
        1 => String::new(),
        runs => format!(
            ", {runs} wrong ones all with at most {}",
            chance(audit.undetected_all)
        ),
    };
    println!(
        "audit: {} of {} units each (α = {:.4}); a wrong run is missed with at most {:.4}{all}",
        (audit.alpha * audit.units as f64).round(),
        audit.units,
        audit.alpha,
        audit.undetected_one,
    );
    let done = audit.settled + audit.rejected + audit.worker_failed;
    match done {
        0 => println!(
            "records in {}: provisional until `larvatus audit {} --worker ADDR` settles them",
            audit.folder, audit.folder
        ),
        _ => println!("records in {}: {} settled", audit.folder, audit.settled),
    }
    println!("worker signs with {}", audit.worker_key);
}

/// Times, bytes, memory, and what is guaranteed.
pub(super) fn costs(report: &Report, inferences: usize) {
    let runs = if inferences > 1 {
        format!(" for {inferences}")
    } else {
        String::new()
    };
    println!(
        "{}: {:.1} ms wall, trusted CPU {:.1} ms online + {:.1} ms offline{runs}",
        report.preset, report.wall_ms, report.trusted_cpu_ms.online, report.trusted_cpu_ms.offline
    );
    if report.round_trips > 0 {
        println!(
            "worker {}: {} up, {} down, {} round trips, {:.1} ms waited",
            report.worker.as_deref().unwrap_or("?"),
            bytes(report.bytes.up),
            bytes(report.bytes.down),
            report.round_trips,
            report.waiting_ms
        );
    }
    if let Some(frames) = &report.frames {
        println!("{}", frames.sentence());
    }
    let elsewhere = |tickets: &&Tickets| tickets.stored + tickets.dealt > 0;
    if let Some(tickets) = report.tickets.as_ref().filter(elsewhere) {
        let dealer = match &tickets.dealer {
            Some(dealer) => format!("{} from dealer {dealer}, ", tickets.dealt),
            None => String::new(),
        };
        println!(
            "tickets: {} from the store, {dealer}{} made now",
            tickets.stored, tickets.own
        );
    }
    println!("{}", report.memory.sentence());
    if let Some(audit) = &report.audit {
        audited(audit);
    }
    if let Some(floats) = &report.floats {
        floats.print();
    }
    println!("guarantee: {}", report.guarantee);
}
