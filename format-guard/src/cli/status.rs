//! `format-guard status`: prints how far this host is protected, the tier in force, what it leaves open, and
//! counts.

use std::path::Path;

use super::{
    CommandError, Json, client,
    format::{Colour, moment, paint, wrap},
    print_json,
};
use crate::api::{Condition, Status, StoreStatus};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Print only the first line, and exit with a status that says the same
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    json: Json,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let status: Status = client::get(socket, "/v1/status", &[])?;
    let checked = match status.condition {
        _ if !arguments.check => Ok(()),
        Condition::Enforcing => Ok(()),
        condition => Err(CommandError::Condition(condition)),
    };
    if arguments.json.json {
        print_json(&status)?;
        return checked;
    }
    let proof = if status.proven { "proven by its canary" } else { "not proven" };
    let colour = if status.condition == Condition::Enforcing { Colour::Green } else { Colour::Yellow };
    println!(
        "{}: format-guard {}, tier {}, {proof}",
        paint(status.condition.name(), colour),
        status.version,
        status.tier
    );
    if arguments.check {
        return checked;
    }
    if !status.protected {
        println!("the guard itself is not protected: root may take it away (see format-guard protect)");
    }
    for text in &status.open {
        println!("left open by tier {}: {}", status.tier, wrap(text, 80, 4));
    }
    for text in &status.degraded {
        println!("degraded: {}", wrap(text, 80, 10));
    }
    if status.set_mode.is_some() {
        println!("{}", wrap(&super::mode::origin(&status), 80, 2));
    }
    if status.discrepancies > 0 {
        let text = format!("discrepancies: {} (see format-guard volume list)", status.discrepancies);
        println!("{}", paint(&text, Colour::Red));
    }
    if let Some(store) = &status.store {
        println!("{}", wrap(&told_of_store(store), 80, 7));
    }
    println!("devices: {}", status.devices);
    let volumes: Vec<String> =
        status.volumes.iter().map(|each| format!("{} {}", each.count, each.state)).collect();
    println!("volumes: {}", if volumes.is_empty() { "none".to_owned() } else { volumes.join(", ") });
    let counts = format!(
        "kernel: {} requests judged, {} stale rules met, {} events lost, {} times uevents lost, {} maps full, \
         {} writes without a place, {} rules repaired",
        status.judged,
        status.stale_rules,
        status.lost_events,
        status.lost_uevents,
        status.full_maps,
        status.unplaced,
        status.repaired
    );
    println!("{}", wrap(&counts, 80, 8));
    println!("lag: {} ms at the newest kernel event, {} probes under way", status.lag, status.probing);
    for part in status.programs.iter().filter(|part| !part.attached) {
        println!("{}", wrap(&format!("left open without {}: {}", part.program, part.open), 80, 4));
    }
    for part in status.programs.iter().filter(|part| part.skipped > 0) {
        let skipped =
            format!("{} was skipped {} times by the kernel: see docs/tiers.md", part.program, part.skipped);
        println!("{}", wrap(&skipped, 80, 4));
    }
    Ok(())
}

fn told_of_store(store: &StoreStatus) -> String {
    let (since, claims) = (moment(store.since), store.claims);
    match &store.reason {
        None => {
            format!("store: answers since {since}, {claims} volumes claimed, {} wait for it", store.waiting)
        }
        Some(reason) => format!(
            "store: does not answer since {since} ({reason}): {} blank volumes are not armed",
            store.waiting
        ),
    }
}
