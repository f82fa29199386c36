//! `format-guard events`: what happened, oldest first.

use std::{
    io::{self, Write},
    path::Path,
};

use super::{
    CommandError, client,
    format::{Colour, moment, paint, since, wrap},
    print_json,
};
use crate::{
    api::Events,
    record::history::{HistoryEvent, KubernetesFacts},
};

/// How long one question for news may wait, in seconds.
const WAIT: u64 = 30;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Only those of this volume: id, /dev path, mount point or unique prefix
    volume: Option<String>,
    /// Only this many of the newest
    #[arg(long, default_value_t = 100, value_name = "N")]
    limit: u32,
    /// Only those since: 15m, 2h or 7d (ago), or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<i64>,
    /// Keep running, and print each event as it happens
    #[arg(long, short)]
    follow: bool,
    /// Print JSON for programs; with --follow one event a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let mut query = vec![("limit", arguments.limit.to_string())];
    if let Some(volume) = &arguments.volume {
        query.push(("volume", client::selector(volume)?));
    }
    if let Some(since) = arguments.since {
        query.push(("since", since.to_string()));
    }
    let mut events: Events = client::get(socket, "/v1/events", &query)?;
    if !arguments.follow {
        if arguments.json {
            return print_json(&events);
        }
        events.events.iter().try_for_each(print).or_else(closed)?;
        return Ok(());
    }
    let mut newest = 0;
    loop {
        for event in &events.events {
            newest = newest.max(event.id);
            let printed = if arguments.json { print_line(event) } else { print(event) };
            if printed.is_err() {
                // The reader has gone: head(1), for example.
                return Ok(());
            }
        }
        let mut more = query.clone();
        more.extend([("after", newest.to_string()), ("wait", WAIT.to_string())]);
        events = client::get(socket, "/v1/events", &more)?;
    }
}

/// Treats it as success that nobody reads any more.
fn closed(error: io::Error) -> Result<(), CommandError> {
    if error.kind() == io::ErrorKind::BrokenPipe {
        return Ok(());
    }
    Err(anyhow::Error::from(error).into())
}

fn in_kubernetes(facts: &KubernetesFacts) -> String {
    let pods: Vec<String> = facts
        .pods
        .iter()
        .map(|pod| match (&pod.namespace, &pod.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => pod.uid.clone(),
        })
        .collect();
    let pods = if pods.is_empty() { "no pod here".to_owned() } else { format!("pod {}", pods.join(", ")) };
    format!("persistent volume {}, {pods}", facts.persistent_volume)
}

fn print_line(event: &HistoryEvent) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, event)?;
    writeln!(out)?;
    out.flush()
}

fn print(event: &HistoryEvent) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let colour = match event.kind.as_str() {
        "denied" | "discrepancy" => Colour::Red,
        "would-deny" | "unverified" | "overlaid" | "mode" | "mapped-before" => Colour::Yellow,
        _ => Colour::None,
    };
    writeln!(out, "{} {}", moment(event.at), paint(&event.kind, colour))?;
    if !event.volume.is_empty() {
        writeln!(out, "  {}", event.volume)?;
    }
    writeln!(out, "  {}", wrap(&event.text, 80, 2))?;
    if event.count > 1 {
        writeln!(out, "  {}", wrap(&format!("{} times since {}", event.count, moment(event.first)), 80, 4))?;
    }
    if let Some(refusal) = &event.refusal {
        let program = refusal.exe.as_deref().unwrap_or(&refusal.comm);
        let container = refusal
            .container
            .as_ref()
            .map_or_else(String::new, |id| format!(", container {}", &id[..12.min(id.len())]));
        writeln!(out, "  {}", wrap(&format!("by {program}{container}"), 80, 4))?;
        if let Some(facts) = &refusal.kubernetes {
            writeln!(out, "  {}", wrap(&in_kubernetes(facts), 80, 4))?;
        }
        if !refusal.cause.is_empty() {
            let since = moment(refusal.since);
            writeln!(
                out,
                "  {}",
                wrap(&format!("{} since {since}: {}", refusal.state, refusal.cause), 80, 4)
            )?;
        }
    }
    out.flush()
}
