//! Whether refusals are carried out: what the configuration says, unless an operator has set something else,
//! for good or for a time. The configuration never outranks an operator's word, and every answer says which
//! of both holds.

use anyhow::{Context, Result};
use format_guard_common::State;
use tracing::warn;

use super::{
    Reconciler,
    failure::{bad, failed, reason_of},
};
use crate::{
    agent::{clocks, now},
    api::{self, Failure, FailureKind},
    enforce::rule,
    mode::Mode,
    record::{self, Now, Seconds, Volume, history::HistoryEvent, transition::Event},
    volume::Dev,
};

/// Name of the setting that holds an [`api::SetMode`], or `null`.
const SETTING: &str = "mode";
/// For how long a mode is set at most, in seconds: four weeks. What is to hold for longer belongs into the
/// configuration.
const LONGEST: u64 = 28 * 24 * 3600;

/// An operator's word, and when it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Override {
    pub(super) word: api::SetMode,
    /// By [`Now::boot`]; `None`: not by itself.
    ends: Option<Seconds>,
}

impl Override {
    /// It never lasts longer than it was given for, however the wall clock was set since.
    fn new(word: api::SetMode, now: Now) -> Self {
        let ends = word.ends.map(|ends| now.boot + record::rest(word.at, ends, now.wall));
        Self { word, ends }
    }

    fn is_over(&self, now: Now) -> bool {
        self.ends.is_some_and(|ends| ends <= now.boot)
    }
}

/// What whoever changed the configuration is told.
pub(super) fn outranks(set: &Override) -> String {
    format!(
        ", set by user {}, which outranks the configuration: to end that: format-guard mode --clear --reason TEXT",
        set.word.uid
    )
}

impl Reconciler {
    /// The mode that is in force.
    pub(super) fn mode(&self) -> Mode {
        if self.audits() { Mode::Audit } else { Mode::Enforce }
    }

    pub(super) fn audits(&self) -> bool {
        let chosen = self.set_mode.as_ref().map_or(self.settings.mode, |set| set.word.mode);
        self.settings.forced_audit || chosen == Mode::Audit
    }

    /// What an operator set before a restart.
    pub(super) fn restore_mode(&mut self) -> Result<()> {
        if let Some(text) = self.store.setting(SETTING)? {
            let word: Option<api::SetMode> =
                serde_json::from_str(&text).context("the stored mode cannot be read")?;
            self.set_mode = word.map(|word| Override::new(word, clocks()));
        }
        self.end_mode_in_time();
        self.enforcer.put_unknown(&rule::unknown(self.audits()))?;
        Ok(())
    }

    /// Ends what an operator has set for a time, once that is over.
    pub(super) fn end_mode_in_time(&mut self) {
        let Some(set) = self.set_mode.as_ref().filter(|set| set.is_over(clocks())) else { return };
        let text = format!("mode {} set by user {} has ended", set.word.mode.name(), set.word.uid);
        let failure = match self.override_mode(None, text) {
            Ok(()) => return,
            Err(failure) => failure.error,
        };
        // It is tried again at the next tick. Until then the mode stays as the operator set it.
        warn!("the mode that was set for a time cannot be ended: {failure}");
    }

    pub(super) fn set_mode(&mut self, request: &api::ModeRequest, uid: u32) -> Result<api::Done, Failure> {
        let reason = reason_of(&request.reason, "a change of mode")?;
        if let Some(selector) = &request.volume {
            return self.set_mode_of_volume(selector, request, reason, uid);
        }
        let configured = self.settings.mode.name();
        let Some(mode) = request.mode else {
            if self.set_mode.is_none() {
                return Err(bad(format!(
                    "no mode was set by a command: the configuration's holds, {configured}"
                )));
            }
            let text = format!("mode {configured} of the configuration again, by user {uid}: {reason}");
            warn!(uid, "{text}");
            self.override_mode(None, text)?;
            return Ok(api::Done { text: format!("mode {}, by the configuration", self.mode().name()) });
        };
        if mode == Mode::Strict {
            return Err(bad("strict is a mode of single volumes: name one with --volume".to_owned()));
        }
        if self.settings.forced_audit && mode == Mode::Enforce {
            return Err(Failure::new(
                FailureKind::Refused,
                "the agent was started with --audit: start it without to enforce",
            ));
        }
        let now = clocks();
        let ends = match request.lasts {
            Some(0) => return Err(bad("a mode that is set for no time at all changes nothing".to_owned())),
            Some(lasts) if lasts > LONGEST => {
                return Err(bad(format!("a mode is set for {} days at most", LONGEST / 86400)));
            }
            lasts => lasts.map(|lasts| now.wall.saturating_add_unsigned(lasts)),
        };
        let lasting = request.lasts.map_or_else(String::new, |lasts| format!(" for {lasts} s"));
        let text = format!("mode {}{lasting} by user {uid}: {reason}", mode.name());
        warn!(mode = mode.name(), uid, "{text}");
        let word = api::SetMode { mode, reason, uid, at: now.wall, ends };
        self.override_mode(Some(Override::new(word, now)), text)?;
        let then =
            if lasting.is_empty() { String::new() } else { format!("{lasting}, then {configured} again") };
        Ok(api::Done { text: format!("mode {}{then}", mode.name()) })
    }

    fn set_mode_of_volume(
        &mut self,
        selector: &str,
        request: &api::ModeRequest,
        reason: String,
        uid: u32,
    ) -> Result<api::Done, Failure> {
        let Some(mode) = request.mode else {
            return Err(bad(
                "a volume's own mode ends with: format-guard mode enforce --volume VOLUME".to_owned()
            ));
        };
        if request.lasts.is_some() {
            return Err(bad(
                "a time is for the mode of the whole guard: leave out --for or --volume".to_owned()
            ));
        }
        let id = self.select(selector)?;
        self.device_of(&id)?;
        self.apply(&id, Event::ModeChosen { mode, reason, uid });
        let holds_nothing = |record: &Volume| matches!(record.state, State::Unverified | State::Blank);
        let note = if mode == Mode::Strict && self.records.get(&id).is_some_and(holds_nothing) {
            format!(
                ", as soon as it is known to hold something; if it does already: format-guard volume adopt {id} --raw --reason TEXT"
            )
        } else {
            String::new()
        };
        Ok(api::Done { text: format!("{id}: mode {}{note}", mode.name()) })
    }

    /// Stores what is set before it is in force.
    fn override_mode(&mut self, set: Option<Override>, text: String) -> Result<(), Failure> {
        let word = set.as_ref().map(|set| &set.word);
        let value = serde_json::to_string(&word).map_err(|error| failed(&error))?;
        let told = HistoryEvent::new(now(), String::new(), "mode", text).by_operator();
        self.store.set(SETTING, &value, &[told]).map_err(|error| failed(&error))?;
        self.history.advance();
        self.set_mode = set;
        self.keep_protected();
        self.put_every_rule().map_err(|error| failed(&*error))
    }

    pub(super) fn put_every_rule(&mut self) -> Result<()> {
        self.enforcer.put_unknown(&rule::unknown(self.audits()))?;
        let devices: Vec<Dev> = self.graph.iter().map(|device| device.dev).collect();
        for dev in devices {
            self.put_rule(dev);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_for_a_time_ends_by_the_clock_that_does_not_jump() {
        let word = |ends| api::SetMode { mode: Mode::Audit, reason: "test".into(), uid: 0, at: 1000, ends };
        let set = |ends, wall, boot| Override::new(word(ends), Now { wall, boot });
        let over = |set: &Override, boot| set.is_over(Now { wall: 0, boot });
        let fresh = set(Some(1600), 1000, 50);
        assert!(!over(&fresh, 649) && over(&fresh, 650));
        // After a restart it is the rest, and never more than it was given for.
        assert!(over(&set(Some(1600), 1500, 50), 150) && !over(&set(Some(1600), 1500, 50), 149));
        assert!(over(&set(Some(1600), 0, 50), 650), "the wall clock was set back");
        assert!(over(&set(Some(1600), 9000, 50), 50), "it was over before the start");
        assert!(!over(&set(None, 1000, 50), i64::MAX));
    }
}
