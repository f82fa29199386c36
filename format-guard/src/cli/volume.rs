//! `format-guard volume`: shows what is known of volumes, and takes an operator's decisions about them.

use std::{
    fmt::Write,
    io::{self, IsTerminal},
    path::Path,
};

use super::{
    CommandError, Json, client,
    consent::Consent,
    done,
    format::{Colour, ago, duration, fit, moment, paint, wrap},
    print_json, rescue,
};
use crate::{
    agent::now,
    api::{AdoptRequest, PermitRequest, ReasonRequest, Volume, Volumes},
    record::Content,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List every known volume
    #[command(
        after_help = "Examples:\n  format-guard volume list --json\n  format-guard volume list --output name"
    )]
    List(List),
    /// Show what is known of a volume
    #[command(after_help = "Example: format-guard volume show /dev/sdb")]
    Show {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        json: Json,
    },
    /// Take what is on a volume now for its content, and end its permit
    #[command(
        after_help = "Examples:\n  format-guard volume adopt /dev/sdb --reason \"restored\"\n  format-guard volume adopt /dev/sdc --raw \
                      --reason \"a database\""
    )]
    Adopt {
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        consent: Consent,
        /// The content is no known format: a database, the disk of a virtual machine
        #[arg(long)]
        raw: bool,
    },
    /// Allow one job to re-format a volume: ITS DATA WILL BE LOST by it
    #[command(after_help = "Example: format-guard volume permit /dev/sdb --reason \"new array\" --for 2h")]
    Permit {
        #[command(flatten)]
        which: Which,
        /// Why; kept with the volume's history
        #[arg(long, value_name = "TEXT")]
        reason: String,
        /// How long, as 90s, 15m, 2h or 1d
        #[arg(long = "for", default_value = "15m", value_name = "TIME", value_parser = duration)]
        seconds: u64,
        #[command(flatten)]
        consent: Consent,
        #[command(flatten)]
        json: Json,
    },
    /// Take back a volume's permit, and those of its partitions
    #[command(after_help = "Example: format-guard volume revoke /dev/sdb --reason \"the wrong disk\"")]
    Revoke {
        #[command(flatten)]
        why: Why,
    },
    /// Take a volume out of the guard until it is adopted or forgotten
    #[command(
        after_help = "Example: format-guard volume exempt /dev/sdb --reason \"a virtual machine has it\""
    )]
    Exempt {
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        consent: Consent,
    },
    /// Let processes that were refused on a volume write to it again
    #[command(
        after_help = "Example: format-guard volume untaint /dev/sdb --reason \"the machine formats its disk\""
    )]
    Untaint {
        #[command(flatten)]
        why: Why,
    },
    /// Show what differs from the copy of a volume, and put the copy back
    #[command(
        after_help = "Examples:\n  format-guard volume rescue /dev/sdb --to /root/sdb.marks\n  format-guard volume rescue /dev/sdb --write"
    )]
    Rescue(rescue::Arguments),
    /// Delete what is known of a volume that is detached or holds nothing
    #[command(after_help = "Example: format-guard volume forget iscsi:iqn --reason \"returned to the pool\"")]
    Forget {
        #[command(flatten)]
        why: Why,
        #[command(flatten)]
        consent: Consent,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Whole columns (wide), ids alone (name) or JSON (json) [default: the columns that fit the terminal;
    /// wide elsewhere]
    #[arg(long, short, value_name = "LAYOUT", conflicts_with = "json")]
    output: Option<Layout>,
    /// Leave the line of headings out
    #[arg(long)]
    no_headers: bool,
    #[command(flatten)]
    json: Json,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Layout {
    Wide,
    Name,
    Json,
}

/// A volume, and the reason for what is done to it.
#[derive(Debug, clap::Args)]
pub(super) struct Why {
    #[command(flatten)]
    which: Which,
    /// Why; kept with the volume's history
    #[arg(long, value_name = "TEXT")]
    reason: String,
    #[command(flatten)]
    json: Json,
}

impl Why {
    fn request(&self) -> Result<ReasonRequest, CommandError> {
        Ok(ReasonRequest { volume: client::selector(&self.which.volume)?, reason: self.reason.clone() })
    }
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// Id, /dev path or mount point; a command that cannot lose data takes the unique beginning of an id, too
    volume: String,
}

pub(super) fn run(socket: &Path, command: Command) -> Result<(), CommandError> {
    match command {
        Command::List(list) => {
            let volumes: Volumes = client::get(socket, "/v1/volumes", &[])?;
            if list.json.json {
                return print_json(&volumes);
            }
            // A line that is copied, or cut out of a pipe, must be whole.
            let whole = !io::stdout().is_terminal();
            match list.output {
                Some(Layout::Json) => return print_json(&volumes),
                Some(Layout::Name) => volumes.volumes.iter().for_each(|volume| println!("{}", volume.id)),
                layout => {
                    let text = table(&volumes.volumes, now(), whole || layout == Some(Layout::Wide));
                    let headings = usize::from(list.no_headers);
                    text.lines().skip(headings).for_each(|line| println!("{line}"));
                }
            }
            Ok(())
        }
        Command::Show { which, json } => {
            let query = [("volume", client::selector(&which.volume)?)];
            show(&client::get(socket, "/v1/volume", &query)?, json.json)
        }
        Command::Adopt { why, consent, raw } => {
            let ReasonRequest { volume, reason } = why.request()?;
            consent.to(
                socket,
                &volume,
                "What is on it now is its content from now on, and a permit that it has ends.",
            )?;
            let request = AdoptRequest { volume, raw, reason };
            show(&client::post(socket, "/v1/volume/adopt", &request)?, why.json.json)
        }
        Command::Permit { which, reason, seconds, consent, json } => {
            let volume = client::selector(&which.volume)?;
            consent.to(socket, &volume, "Whoever formats it next DESTROYS WHAT IT HOLDS.")?;
            let request = PermitRequest { volume, reason, seconds };
            show(&client::post(socket, "/v1/volume/permit", &request)?, json.json)
        }
        Command::Revoke { why } => {
            show(&client::post(socket, "/v1/volume/revoke", &why.request()?)?, why.json.json)
        }
        Command::Exempt { why, consent } => {
            let request = why.request()?;
            consent.to(socket, &request.volume, "Nothing is refused on it from now on.")?;
            show(&client::post(socket, "/v1/volume/exempt", &request)?, why.json.json)
        }
        Command::Untaint { why } => {
            done(&client::post(socket, "/v1/volume/untaint", &why.request()?)?, why.json.json)
        }
        Command::Rescue(arguments) => rescue::run(socket, &arguments),
        Command::Forget { why, consent } => {
            let request = why.request()?;
            consent.to(socket, &request.volume, "It is as if it had never been seen.")?;
            done(&client::post(socket, "/v1/volume/forget", &request)?, why.json.json)
        }
    }
}

fn holds(volume: &Volume) -> String {
    volume.content.as_ref().map_or_else(|| "-".to_owned(), |content| content.name().to_owned())
}

fn colour_of(volume: &Volume) -> Colour {
    match volume.state.as_str() {
        _ if volume.discrepancy.is_some() => Colour::Red,
        "formatted" => Colour::Green,
        "blank" => Colour::None,
        _ => Colour::Yellow,
    }
}

/// One line for each volume, below their headings: either 80 columns wide, or with every column whole.
fn table(volumes: &[Volume], now: i64, whole: bool) -> String {
    let devices = |volume: &Volume| {
        if volume.devices.is_empty() { "-".to_owned() } else { volume.devices.join(",") }
    };
    let widest = |least: usize, length: &dyn Fn(&Volume) -> usize| {
        volumes.iter().map(length).filter(|_| whole).fold(least, usize::max)
    };
    let of_holds = widest(12, &|volume| holds(volume).chars().count() + 1);
    let of_device = widest(9, &|volume| devices(volume).chars().count());
    let room = |text: &str, columns: usize| if whole { text.to_owned() } else { fit(text, columns) };
    let mut text = format!(
        "{:<11} {:<of_holds$} {:<11} {:<of_device$} {}\n",
        "STATE", "HOLDS", "SINCE", "DEVICE", "VOLUME"
    );
    for volume in volumes {
        let alarm = if volume.discrepancy.is_some() { "!" } else { "" };
        let weak = if volume.weak { " (weak)" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{} {:<of_holds$} {:<11} {:<of_device$} {}{weak}",
            paint(&format!("{:<11}", volume.state), colour_of(volume)),
            room(&format!("{}{alarm}", holds(volume)), 12),
            ago(volume.since, now),
            room(&devices(volume), 9),
            room(&volume.id, 33 - weak.len())
        );
    }
    text
}

fn show(volume: &Volume, json: bool) -> Result<(), CommandError> {
    if json {
        return print_json(volume);
    }
    let line = |name: &str, value: &str| println!("{name:<12} {}", wrap(value, 80, 13));
    println!("{:<12} {}", "volume", volume.id);
    line("identity", &format!("{}{}", volume.origin, if volume.weak { " (weak)" } else { "" }));
    for name in &volume.names {
        let from = if name.from.is_empty() { String::new() } else { format!(", from {}", name.from) };
        line("name", &format!("{} ({}{from})", name.name, name.worth));
    }
    line("state", &format!("{} since {}: {}", volume.state, moment(volume.since), volume.cause));
    if let Some(content) = &volume.content {
        let label = content.label.as_deref().map_or_else(String::new, |label| format!(" label {label}"));
        let uuid = content.uuid.as_deref().unwrap_or("-");
        line("holds", &format!("{} uuid {uuid}{label}", content.types.join(" + ")));
    }
    if let Some(ends) = volume.ends.as_ref().filter(|_| volume.content.as_ref().is_some_and(Content::is_raw))
    {
        line("its ends", ends);
    }
    if let Some(discrepancy) = &volume.discrepancy {
        println!(
            "{} {}",
            paint(&format!("{:<12}", "DISCREPANCY"), Colour::Red),
            wrap(&format!("{discrepancy}; it stays protected"), 80, 13)
        );
    }
    if let Some(permit) = &volume.permit {
        let text = format!(
            "{} {}, {}: {}",
            if permit.used { "in use until it has settled, at the latest" } else { "one re-purposing until" },
            moment(permit.expires),
            permit.giver(),
            permit.reason
        );
        line("permit", &text);
    }
    if let Some(formatter) = &volume.formatter {
        let exe = formatter.exe.as_deref().unwrap_or(&formatter.comm);
        line("formatted by", &format!("{exe} (pid {}) at {}", formatter.pid, moment(formatter.at)));
    }
    if let Some(policy) = &volume.policy {
        line("policy", &format!("{} ({}): {}", policy.name, policy.action.name(), policy.action.meaning()));
    }
    if volume.audit {
        line("audit", "its refusals are told and not carried out");
    }
    if volume.strict {
        line("strict", "while it holds a format, its own tools alone may write to it");
    }
    line("mounted", if volume.mounted { "since it was formatted" } else { "not since it was formatted" });
    line(
        "devices",
        &if volume.devices.is_empty() { "not attached".to_owned() } else { volume.devices.join(", ") },
    );
    line("first seen", &moment(volume.first_seen));
    for mark in &volume.marks {
        let bytes = mark.bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        line("mark", &format!("{} at {}: {bytes}", mark.kind.name(), mark.offset));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_fits_80_columns() {
        let volume = Volume {
            id: "iscsi:iqn.2019-10.io.longhorn:pvc-0123456789abcdef0123456789abcdef,lun=1".into(),
            origin: String::new(),
            weak: true,
            state: "unverified".into(),
            since: 0,
            cause: String::new(),
            content: Some(Content { types: vec!["linux_raid_member".into()], uuid: None, label: None }),
            marks: Vec::new(),
            ends: None,
            mounted: false,
            audit: false,
            strict: false,
            policy: None,
            formatter: None,
            permit: None,
            discrepancy: Some("it reads blank".into()),
            generation: 1,
            first_seen: 0,
            devices: vec!["sda".into(), "sdb".into(), "dm-13".into()],
            names: Vec::new(),
        };
        let volumes = [volume];
        for line in table(&volumes, 1_700_000_000, false).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        let whole = table(&volumes, 1_700_000_000, true);
        let [headings, line] = whole.lines().collect::<Vec<_>>()[..] else { panic!("{whole}") };
        assert!(line.ends_with(&format!("{} (weak)", volumes[0].id)), "{line}");
        assert_eq!(line.find("sda,sdb,dm-13"), headings.find("DEVICE"), "{whole}");
    }
}
