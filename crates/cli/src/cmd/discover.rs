//! `larvatus discover`: who announces itself on the local network.

use std::time::Duration;

use anyhow::{Result, ensure};
use larvatus_host::Address;
use larvatus_host::discovery::{Found, discover};
use serde::Serialize;

use crate::Verdict;
use crate::args::Discover as Args;
use crate::known::Workers;
use crate::table::table;

/// An announcement, held against what is known.
#[derive(Serialize)]
struct Row {
    name: String,
    /// Where it says to listen.
    address: String,
    /// The name of the known worker whose key it claims to have; a handshake shows whether it does.
    known_as: Option<String>,
    /// Whether that worker is known at another address.
    moved: bool,
}

pub(super) fn run(args: &Args) -> Result<Verdict> {
    ensure!(
        args.timeout.is_finite() && (0.0..=3600.0).contains(&args.timeout),
        "--timeout must be a number of seconds"
    );
    let workers = Workers::open(args.workers.as_deref())?;
    let found = discover(Duration::from_secs_f64(args.timeout), args.mdns_port)?;
    let rows: Vec<Row> = found.into_iter().map(|one| row(one, &workers)).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
        return Ok(Verdict::Accepted);
    }
    if rows.is_empty() {
        println!("no worker announces itself; `larvatus worker --announce` does");
        return Ok(Verdict::Accepted);
    }
    let cells: Vec<Vec<String>> = rows.into_iter().map(cells).collect();
    print!("{}", table(&["name", "address", "says to be"], &cells));
    Ok(Verdict::Accepted)
}

fn row(found: Found, workers: &Workers) -> Row {
    let known = found.claims.and_then(|pin| workers.with_key(pin));
    let moved = known.is_some_and(|name| {
        let stored = workers.address(name).unwrap_or_default().parse();
        !stored.is_ok_and(|stored| same_place(&stored, &found.address))
    });
    Row {
        name: found.name,
        address: found.address.to_string(),
        known_as: known.map(str::to_owned),
        moved,
    }
}

/// Whether two addresses are one but for the pin.
fn same_place(one: &Address, other: &Address) -> bool {
    match (one, other) {
        (
            Address::Tls { host, port, .. },
            Address::Tls {
                host: its,
                port: at,
                ..
            },
        ) => host == its && port == at,
        _ => false,
    }
}

fn cells(row: Row) -> Vec<String> {
    let known = match (&row.known_as, row.moved) {
        (None, _) => "nobody known; `larvatus pair` makes it known".to_owned(),
        (Some(name), false) => name.clone(),
        (Some(name), true) => format!("{name}, at another address"),
    };
    vec![row.name, row.address, known]
}
