//! The lines that the kernel programs write themselves (aya-log): for whoever looks for the cause of a
//! verdict that the records do not show. The log filter asks for them; without it the agent loads programs
//! that write none. Nothing here may change what is refused.

use std::{fs, path::Path};

use aya::{Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, Level};
use format_guard_common::{
    Operation, Reason, State,
    event::{EventKind, wrote},
    form,
};
use log::{Log, Metadata, Record};

/// What `FORMAT_GUARD_LOG` calls them, as every line does.
const TARGET: &str = "format_guard_ebpf";
/// The map that holds them, of the name that aya-log looks for.
const MAP: &str = "AYA_LOGS";

/// Lines that have been written, handed to the agent's log.
pub type Lines = EbpfLogger<Worded>;

/// The agent's log, which gets each line with words for its numbers.
pub struct Worded(&'static dyn Log);

impl Log for Worded {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let text = worded(&record.args().to_string());
        self.0.log(
            &Record::builder()
                .metadata(record.metadata().clone())
                .module_path(record.module_path())
                .file(record.file())
                .line(record.line())
                .args(format_args!("{text}"))
                .build(),
        );
    }

    fn flush(&self) {
        self.0.flush();
    }
}

/// A line with the word for each number behind a `KEY=`. A number without a word stays as it is.
fn worded(line: &str) -> String {
    let mut began = false;
    let words = line.split(' ').map(|part| {
        let Some((key, number)) = part.split_once('=') else { return part.to_owned() };
        let Ok(number) = number.parse() else { return part.to_owned() };
        began |= key == "verdict" && number == EventKind::FormatBegan as u32;
        // The number of a format that began is of what was written, and of no reason.
        let key = if began && key == "reason" { "wrote" } else { key };
        word(key, number).map_or_else(|| format!("{key}={number}"), |word| format!("{key}={word}"))
    });
    words.collect::<Vec<_>>().join(" ")
}

/// What a number means behind this key.
fn word(key: &str, number: u32) -> Option<&'static str> {
    match key {
        "form" => form::name(number.into()),
        "operation" => Operation::from_raw(number).map(Operation::name),
        "state" => State::ALL.into_iter().find(|state| *state as u32 == number).map(State::name),
        "verdict" => EventKind::from_raw(number).map(EventKind::name),
        "wrote" if number & wrote::RAW != 0 => Some("raw"),
        "wrote" if number & wrote::MAGIC != 0 => Some("magic"),
        "wrote" if number & wrote::BYTES != 0 => Some("bytes"),
        "wrote" | "reason" if number == 0 => Some("none"),
        "reason" => Reason::from_raw(number).map(Reason::name),
        _ => None,
    }
}

/// The lowest level of lines that the log asks for: a number of [`Level`]; `None` where it asks for no lines.
pub(super) fn wanted() -> Option<u8> {
    if tracing::enabled!(target: TARGET, tracing::Level::TRACE) {
        Some(Level::Trace as u8)
    } else {
        tracing::enabled!(target: TARGET, tracing::Level::DEBUG).then_some(Level::Debug as u8)
    }
}

/// Has the lines written to one map, also by programs that an earlier agent attached; without them the map
/// goes.
pub(super) fn prepare<'a>(loader: &mut EbpfLoader<'a>, maps: &Path, lowest: Option<&'a u8>) {
    let pin = maps.join(MAP);
    match lowest {
        Some(lowest) => {
            loader.override_global(aya_log::LEVEL, lowest, true);
            loader.map_pin_path(MAP, pin);
        }
        // There is none to be taken away but after an agent that wrote lines.
        None => drop(fs::remove_file(pin)),
    }
}

/// Those of an object; `None` where its programs write none.
pub(super) fn of(ebpf: &mut Ebpf) -> Option<Lines> {
    EbpfLogger::init_with_logger(ebpf, Worded(log::logger())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_without_a_table_of_numbers() {
        let line = |kind, reason| {
            let operation = Operation::Write as u32;
            let state = State::Formatted as u32;
            worded(&format!(
                "device 7:0: judged operation={operation} state={state} verdict={kind} reason={reason}"
            ))
        };
        assert_eq!(
            line(EventKind::Denied as u32, Reason::Identity as u32),
            "device 7:0: judged operation=write state=formatted verdict=denied reason=identity"
        );
        assert_eq!(
            line(EventKind::FormatBegan as u32, wrote::BYTES | wrote::RAW),
            "device 7:0: judged operation=write state=formatted verdict=format-began wrote=raw"
        );
        assert_eq!(
            line(EventKind::OwnerWiped as u32, 0),
            "device 7:0: judged operation=write state=formatted verdict=owner-wiped reason=none"
        );
    }

    #[test]
    fn every_form_has_a_word_and_what_has_none_stays_a_number() {
        for form in form::KERNEL..=form::BATCH {
            assert!(form::name(form).is_some(), "{form}");
        }
        assert_eq!(worded("4096 bytes at 0, form=3"), "4096 bytes at 0, form=bytes");
        assert_eq!(worded("form=99 reason=99 other=1"), "form=99 reason=99 other=1");
    }
}
