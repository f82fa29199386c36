//! Ends enforcement on this host, by an operator's word.
//!
//! It must never do so beside a running agent, which would go on in the belief that it enforces; nor leave a
//! volume trusted to be blank that may be formatted unseen from then on.

use std::fs;

use anyhow::{Context, Result};
use format_guard_common::State;

use super::now;
use crate::{
    config::Config,
    enforce::bpf::pins,
    record::{
        Volume,
        history::HistoryEvent,
        sqlite::SqliteStore,
        store::Store,
        transition::{self, Event},
    },
};

/// Takes the kernel programs away that agents of any version have pinned; false where there were none.
pub fn run(config: &Config, reason: &str, uid: u32) -> Result<bool> {
    if !pins::are_there(&config.pin_dir)? {
        return Ok(false);
    }
    record(config, reason, uid).with_context(|| {
        format!("enforcement stays (rm -r {} ends enforcement without a record)", config.pin_dir.display())
    })?;
    pins::take_away(&config.pin_dir)
        .with_context(|| format!("cannot take away the pins at {}", config.pin_dir.display()))?;
    // The folder stays if there is anything else in it.
    let _ = fs::remove_dir(&config.pin_dir);
    Ok(true)
}

/// Stored before the first program is gone.
fn record(config: &Config, reason: &str, uid: u32) -> Result<()> {
    let at = now();
    let (mut store, _) = SqliteStore::open(&config.state_dir, at)?;
    for record in store.list()? {
        if !matches!(record.state, State::Formatted | State::Exempt) {
            store.put(
                &transition::next(&Volume::of(record), Event::MissedFormatSuspected, super::clocks())
                    .0
                    .record,
                &[],
            )?;
        }
    }
    let text = format!("enforcement was ended by user {uid}: {reason}");
    Ok(store.append_history(&[HistoryEvent::new(at, String::new(), "detached", text).by_operator()])?)
}
