//! `format-guard report`: sums up refusals on one page, and says whether a guard that audits may enforce.

use std::{collections::BTreeMap, fmt::Write, path::Path};

use serde::Serialize;

use super::{
    CommandError, client,
    format::{Colour, ago, fit, lasted, moment, paint, since, wrap},
    print_json,
};
use crate::{
    agent::now,
    api::{Events, MAX_LINES, Status},
    mode::Mode,
    record::history::{HistoryEvent, Refusal},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The start of the report: 15m, 2h or 7d (ago), or 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = since)]
    since: i64,
    /// Print JSON for programs
    #[arg(long)]
    json: bool,
}

/// What was refused, or would have been refused.
#[derive(Debug, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub(super) struct Report {
    /// The start of the report, in seconds since 1970.
    since: i64,
    /// The mode in force now.
    mode: Mode,
    /// Requests that would have been refused.
    would_be: u64,
    /// Requests that were refused.
    carried_out: u64,
    /// There are more refusals than one report counts: the oldest are left out.
    cut_off: bool,
    /// The start of the history that the report covers, in seconds since 1970.
    observed_since: i64,
    /// Formats that began on blank or permitted volumes.
    formats: u64,
    /// Whether the guard may enforce, judged by these refusals.
    verdict: Verdict,
    /// The verdict is `safe`.
    safe: bool,
    /// One line for each program, volume and reason: first those that need a look, then by number.
    lines: Vec<Line>,
}

/// Whether the guard may enforce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    /// The guard has observed enough, and would have refused nothing.
    Safe,
    /// The guard has observed too little.
    NotYetKnown,
    /// The guard refused the listed requests, or would have refused them.
    WouldBreak,
}

/// How long a host must be observed, in seconds, before an empty report proves anything: work that is done
/// once a day was then seen.
const ENOUGH: i64 = 24 * 3600;

/// Refusals of one kind.
#[derive(Debug, Serialize, PartialEq, Eq)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Line {
    /// The program's name, as the kernel keeps it.
    program: String,
    /// Path of its executable, where it is known.
    exe: Option<String>,
    /// The volume, or the device where no volume is known.
    volume: String,
    /// The reason of the refusals.
    reason: String,
    /// How often.
    times: u64,
    /// The refusals were carried out.
    carried_out: bool,
    /// Time of the last refusal, in seconds since 1970.
    last: i64,
    /// The program is no known formatter: look at it before the guard enforces.
    look: bool,
}

pub(super) fn run(socket: &Path, arguments: &Arguments) -> Result<(), CommandError> {
    let status: Status = client::get(socket, "/v1/status", &[])?;
    let query = [("limit", MAX_LINES.to_string()), ("since", arguments.since.to_string())];
    let events: Events = client::get(socket, "/v1/events", &query)?;
    let report = report(&events.events, arguments.since, status.mode, now());
    if arguments.json {
        return print_json(&report);
    }
    print!("{}", page(&report, now()));
    Ok(())
}

/// Whether a refusal needs a look. A refused format over another one, or over a volume that is not verified
/// yet, is what a guard is for. Any other refusal may be of work that nobody foresaw.
fn needs_a_look(refusal: &Refusal) -> bool {
    !matches!(
        refusal.reason.as_str(),
        "formatter" | "being-formatted" | "not-read-yet" | "unverified" | "tainted"
    )
}

fn report(events: &[HistoryEvent], since: i64, mode: Mode, now: i64) -> Report {
    let mut lines: BTreeMap<(String, String, String, bool), Line> = BTreeMap::new();
    let refusals = events.iter().filter_map(|event| Some((event, event.refusal.as_ref()?)));
    for (event, refusal) in refusals {
        let volume =
            if event.volume.is_empty() { format!("/dev/{}", refusal.device) } else { event.volume.clone() };
        let carried_out = event.kind == "denied";
        let key = (refusal.comm.clone(), volume.clone(), refusal.reason.clone(), carried_out);
        let line = lines.entry(key).or_insert_with(|| Line {
            program: refusal.comm.clone(),
            exe: None,
            volume,
            reason: refusal.reason.clone(),
            times: 0,
            carried_out,
            last: event.at,
            look: !carried_out && needs_a_look(refusal),
        });
        line.times += event.count;
        line.last = line.last.max(event.at);
        line.exe = refusal.exe.clone().or(line.exe.take());
    }
    let mut lines: Vec<Line> = lines.into_values().collect();
    lines.sort_by(|a, b| b.look.cmp(&a.look).then(b.times.cmp(&a.times)));
    let count = |carried_out| {
        lines.iter().filter(|line| line.carried_out == carried_out).map(|line| line.times).sum()
    };
    let (would_be, carried_out) = (count(false), count(true));
    let observed_since = events.iter().map(|event| event.at).min().unwrap_or(now).max(since);
    let formats = events.iter().filter(|event| event.kind == "format-began").count() as u64;
    let verdict = if would_be + carried_out > 0 {
        Verdict::WouldBreak
    } else if formats == 0 || now - observed_since < ENOUGH {
        Verdict::NotYetKnown
    } else {
        Verdict::Safe
    };
    Report {
        since,
        mode,
        would_be,
        carried_out,
        cut_off: events.len() >= MAX_LINES as usize,
        observed_since,
        formats,
        verdict,
        safe: verdict == Verdict::Safe,
        lines,
    }
}

/// The verdict in words, and what to do next.
fn advice(report: &Report) -> String {
    let look = report.lines.iter().filter(|line| line.look).count();
    match report.verdict {
        Verdict::Safe => "Enforcing is safe by this report: nothing would have been refused.".to_owned(),
        Verdict::NotYetKnown => {
            "It is not known yet whether enforcing is safe: observe for a day at least, and until volumes were formatted as they are \
             every day."
                .to_owned()
        }
        Verdict::WouldBreak if report.would_be == 0 => {
            "These were refused. Each names its way out: format-guard events --json".to_owned()
        }
        Verdict::WouldBreak if look > 0 => format!(
            "Enforcing would break these. Look at the first {look}: they are no known formatters. If it is their work, let it \
             be: format-guard mode audit --volume VOLUME --reason TEXT, or format-guard volume exempt VOLUME --reason TEXT."
        ),
        Verdict::WouldBreak => {
            "Enforcing would refuse these: formats of volumes that hold data, or that were not verified yet. If such a format is \
             meant, it needs format-guard volume permit from then on."
                .to_owned()
        }
    }
}

fn page(report: &Report, now: i64) -> String {
    let mut text = String::new();
    let head = format!(
        "since {} ({}): {} would have been refused, {} were; mode {}",
        moment(report.since),
        ago(report.since, now),
        report.would_be,
        report.carried_out,
        report.mode.name()
    );
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{}", wrap(&head, 80, 2));
    if report.cut_off {
        let _ = writeln!(text, "there are more than {MAX_LINES} lines of history: the oldest are left out");
    }
    if !report.lines.is_empty() {
        let _ = writeln!(text, "\n{:<15} {:<31} {:<15} {:>5} LAST", "PROGRAM", "VOLUME", "REASON", "TIMES");
    }
    for line in &report.lines {
        let colour = if line.look { Colour::Yellow } else { Colour::None };
        let _ = writeln!(
            text,
            "{} {:<31} {:<15} {:>5} {}",
            paint(&format!("{:<15}", fit(&line.program, 15)), colour),
            fit(&line.volume, 31),
            fit(&line.reason, 15),
            line.times,
            fit(&ago(line.last, now), 10)
        );
    }
    let seen =
        format!("observed for {}, {} formats seen", lasted(now - report.observed_since), report.formats);
    let _ = writeln!(text, "\n{}", wrap(&seen, 80, 2));
    let _ = writeln!(text, "{}", wrap(&advice(report), 80, 0));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(kind: &str, comm: &str, reason: &str, at: i64) -> HistoryEvent {
        let mut event =
            HistoryEvent::new(at, "dm:a-volume-with-a-very-long-name-of-its-own".into(), kind, String::new());
        event.refusal = Some(
            serde_json::from_value(serde_json::json!({
                "reason": reason, "operation": "write", "offset": 0, "length": 512, "device": "dm-3", "pid": 7,
                "comm": comm, "exe": null, "cgroup": 1,
            }))
            .expect("a refusal"),
        );
        event
    }

    fn at(events: &[HistoryEvent], now: i64) -> Report {
        report(events, 0, Mode::Audit, now)
    }

    #[test]
    fn nothing_refused_is_safe_once_enough_was_seen() {
        let began = HistoryEvent::new(100, "dm:a".into(), "format-began", String::new());
        let started = HistoryEvent::new(50, String::new(), "started", String::new());
        let verdict = |events: &[HistoryEvent], now| at(events, now).verdict;
        assert_eq!(verdict(&[], ENOUGH), Verdict::NotYetKnown);
        assert_eq!(
            verdict(std::slice::from_ref(&started), 50 + ENOUGH),
            Verdict::NotYetKnown,
            "no format was seen"
        );
        let seen = [started, began];
        assert_eq!(verdict(&seen, 49 + ENOUGH), Verdict::NotYetKnown);
        assert_eq!(verdict(&seen, 50 + ENOUGH), Verdict::Safe);
        let text = page(&at(&seen, 50 + ENOUGH), 50 + ENOUGH);
        assert!(
            text.contains("observed for 1 d, 1 formats seen") && text.contains("is safe by this"),
            "{text}"
        );
    }

    #[test]
    fn no_refusal_is_safe_and_what_no_formatter_did_is_looked_at_first() {
        let mut events = vec![
            event("would-deny", "mkfs.ext4", "formatter", 100),
            HistoryEvent { count: 7, ..event("would-deny", "mkfs.ext4", "formatter", 200) },
            HistoryEvent::new(1, String::new(), "started", String::new()),
        ];
        let formatters = at(&events, 400);
        assert!(!formatters.safe && formatters.verdict == Verdict::WouldBreak, "{formatters:?}");
        assert!(formatters.would_be == 8 && formatters.lines.len() == 1, "{formatters:?}");
        assert_eq!(formatters.lines[0].last, 200);
        assert!(page(&formatters, 400).contains("Enforcing would refuse these"));
        let carried_out = at(&[event("denied", "dd", "identity", 250)], 400);
        assert!(!carried_out.safe && page(&carried_out, 400).contains("These were refused"));
        events.push(event("denied", "dd", "identity", 250));
        events.push(event("would-deny", "qemu-system-x86", "mapping", 300));
        let looked = at(&events, 400);
        assert!(looked.carried_out == 1 && looked.would_be == 9);
        assert!(looked.lines[0].look, "first what is to be looked at");
        let text = page(&looked, 400);
        assert!(text.contains("Look at the first 1"), "{text}");
        for line in text.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
