//! The lines that the kernel programs write themselves (aya-log): for whoever looks for the cause of a
//! verdict that the records do not show. Asked for by the log filter, and paid for only then: the programs
//! that write them are others. Nothing here may change what is refused.

use std::{fs, path::Path};

use aya::{Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, Level};
use log::Log;

/// What `FORMAT_GUARD_LOG` calls them, as every line does.
const TARGET: &str = "format_guard_ebpf";
/// The map that holds them, of the name that aya-log looks for.
const MAP: &str = "AYA_LOGS";

/// Lines that have been written, handed to the agent's log.
pub type Lines = EbpfLogger<&'static dyn Log>;

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
    EbpfLogger::init(ebpf).ok()
}
