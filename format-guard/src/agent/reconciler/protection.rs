//! Keeps others from taking the guard away, and tells of it: while it enforces, unless the configuration or
//! an operator says otherwise.

use std::time::Duration;

use format_guard_common::protection::Tampering;
use tracing::{error, warn};

use super::{
    Reconciler,
    kernel_events::{exe_of, text_of},
};
use crate::{
    agent::now,
    api,
    enforce::{report::Report, since_boot},
    mode::Mode,
    record::history::HistoryEvent,
};

/// Added to two ticks, which may be late: an agent that hangs for longer protects nothing.
const MARGIN: Duration = Duration::from_secs(10);
/// The operator's way out.
const WAY_OUT: &str = "to allow it: format-guard protect off --reason TEXT";

/// Whether others are kept from taking the guard away.
#[derive(Default)]
pub(super) struct Protection {
    /// An operator lets them.
    off_by_operator: bool,
    /// The kernel programs keep them from it.
    active: bool,
    /// Why they do not.
    failure: Option<String>,
}

impl Protection {
    pub(super) const fn is_active(&self) -> bool {
        self.active
    }
}

impl Reconciler {
    /// Puts off the end of the protection, or ends it now.
    pub(super) fn keep_protected(&mut self) {
        let wanted =
            self.settings.protect && !self.protection.off_by_operator && self.mode() == Mode::Enforce;
        let until = since_boot() + 2 * self.settings.resync_interval + MARGIN;
        let until = if wanted { u64::try_from(until.as_nanos()).unwrap_or(u64::MAX) } else { 0 };
        let result = self.enforcer.protect(until).map_err(|error| error.to_string());
        self.protection.active = wanted && result.is_ok();
        let failure = result.err();
        if let Some(failure) = failure.as_ref().filter(|_| failure != self.protection.failure) {
            error!("nothing keeps others from taking the guard away: {failure}");
        }
        self.protection.failure = failure;
    }

    /// Puts off the time until which formatters wait for this agent; with `Duration::ZERO` none does.
    pub(super) fn keep_waited_for(&mut self, limit: Duration) {
        let until = since_boot() + 2 * self.settings.resync_interval + MARGIN;
        if let Err(error) = self.enforcer.let_wait(limit, u64::try_from(until.as_nanos()).unwrap_or(u64::MAX))
        {
            error!("{error}");
        }
    }

    /// An operator's word, until the agent starts anew.
    pub(super) fn set_protection(&mut self, on: bool, reason: &str, uid: u32) -> api::Done {
        self.protection.off_by_operator = !on;
        self.keep_protected();
        let word = if on { "on" } else { "off" };
        let text = format!("protection of the guard {word} by user {uid}: {reason}");
        warn!(uid, "{text}");
        self.append_event(HistoryEvent::new(now(), String::new(), "protect", text).by_operator());
        let text = match (on, self.protection.active, &self.protection.failure) {
            (false, ..) => "root may take the guard away until its agent starts anew".to_owned(),
            (true, true, _) => "others are kept from taking the guard away".to_owned(),
            (true, false, Some(failure)) => {
                format!("nothing keeps others from taking the guard away: {failure}")
            }
            (true, false, None) => {
                "the guard does not protect itself: it does not enforce, or protect = false".to_owned()
            }
        };
        api::Done { text }
    }

    /// Tells of somebody who was kept from taking the guard away.
    pub(super) fn tampered(&mut self, report: &Report, tried: Option<Tampering>, number: u64) {
        let tried = tried.map_or("to take the guard away", Tampering::name);
        let (comm, pid) = (text_of(&report.comm), report.process.tgid);
        let exe = exe_of(pid);
        let text = format!("{comm} (pid {pid}) was refused {tried}; {WAY_OUT}");
        warn!(kind = "tampering", pid, comm, exe = exe.as_deref().unwrap_or("?"), number, "{text}");
        self.append_history(String::new(), "tampering", text);
    }
}
