//! What is known of a volume for as long as it is attached here, and never stored: found out at each attach,
//! or anew after a restart.

use std::ops::{Deref, DerefMut};

use format_guard_common::{State, event::Process};

use super::{Claim, Content, Formatter, Overlay, Permit, Record, Seconds, Wrote};
use crate::{config::RawContent, policy};

/// Whether the process that the record names as formatter is still at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Progress {
    /// As far as is known nobody formats the volume: nobody ever did, or the formatter is one of the past.
    /// After a restart of the agent its end is found out anew.
    #[default]
    Past,
    /// It runs; of what is formatted: it may go on.
    Running,
    /// Its end was seen.
    Exited {
        /// Its wait status, where the kernel told it.
        status: Option<u32>,
    },
}

/// What is known of a volume while it is attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "independent facts, not a state: the state is the record's"
)]
pub struct Attachment {
    /// Why it is not armed, however blank it reads.
    pub not_armed_because: Option<&'static str>,
    /// It shares its bytes with a volume that holds a format: not armed either.
    pub overlay: Option<Overlay>,
    /// Nothing that this node may have done to the volume was on record when it was attached.
    pub unrecorded_past: bool,
    /// Whether this node may arm it.
    pub claim: Claim,
    /// Clean and blank probes in a row.
    pub clean_passes: u32,
    /// The boot in which it is attached; empty while it is not.
    pub attached_in: String,
    /// Since when it must read blank all the time to be armed, by [`Now::boot`](super::Now): a format may
    /// have gone unseen.
    pub suspect_since: Option<Seconds>,
    /// For how long then, in seconds; by the configuration.
    pub quarantine: Seconds,
    /// Which bytes without a known format are content; by the configuration.
    pub raw_content: RawContent,
    /// The declared policy that holds for it.
    pub policy: policy::Choice,
    /// When it was attached with nothing on record, by [`Now::boot`](super::Now).
    pub appeared: Option<Seconds>,
    /// When its permit ends, by [`Now::boot`](super::Now).
    pub permit_ends: Option<Seconds>,
    /// When a probe looked at it last, by [`Now::boot`](super::Now).
    pub looked_at: Option<Seconds>,
    /// Nothing is known to have happened to it since it was attached.
    pub untouched: bool,
    /// What the record's formatter does.
    pub progress: Progress,
    /// What the kernel saw of the formatter's writes.
    pub wrote: Wrote,
    /// What a first format that failed has left: the volume is as good as blank.
    pub left: Option<Content>,
    /// Who may have written over it and was let do so: the next format that a probe finds is what it holds.
    pub rewritten: Option<Formatter>,
    /// A re-labelling tool was let through: the next probe's UUID is the new one.
    pub relabelled: bool,
    /// A tool that was let through is at work: what it did is probed when it has ended.
    pub tool_at_work: Option<Process>,
    /// A program that does nothing but wipe was let through by the permit.
    pub wiped: bool,
    /// The permit under which it was formatted, and until when it holds for partitions that appear on it, by
    /// [`Now::boot`](super::Now).
    pub passed_on: Option<(Permit, Seconds)>,
    /// Its place is all that is known of what is attached there now, in an attachment of this name: it may be
    /// another volume.
    pub unconfirmed: Option<String>,
}

impl Attachment {
    /// Whether the formatter runs.
    #[must_use]
    pub const fn is_running(&self) -> bool {
        matches!(self.progress, Progress::Running)
    }

    /// Whether the formatter's end was seen.
    #[must_use]
    pub const fn has_exited(&self) -> bool {
        matches!(self.progress, Progress::Exited { .. })
    }

    /// The formatter's wait status, once its end was seen and the kernel told it.
    #[must_use]
    pub const fn exit_status(&self) -> Option<u32> {
        match self.progress {
            Progress::Exited { status } => status,
            Progress::Past | Progress::Running => None,
        }
    }

    /// The formatter counts as running no longer.
    pub(super) const fn stop_running(&mut self) {
        if self.is_running() {
            self.progress = Progress::Past;
        }
    }

    /// However blank the volume reads, it is not armed.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.is_doubtful() || self.policy.holds_back()
    }

    /// The same, whatever a policy says: what is read may be another volume's.
    #[must_use]
    pub const fn is_doubtful(&self) -> bool {
        self.not_armed_because.is_some() || self.overlay.is_some()
    }
}

/// A volume: its record, and what is known of it while it is attached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Volume {
    /// What is stored.
    pub record: Record,
    /// What is not.
    pub attachment: Attachment,
}

impl Volume {
    /// A volume of which this is on record, before it is attached.
    #[must_use]
    pub fn of(record: Record) -> Self {
        Self { record, attachment: Attachment::default() }
    }

    /// It reads blank, and nothing but the claim is wanting.
    #[must_use]
    pub fn awaits_claim(&self) -> bool {
        self.attachment.claim == Claim::Wanted && self.wants_claim()
    }

    /// It is to be armed on this node: the claim is to be asked for, or kept.
    #[must_use]
    pub fn wants_claim(&self) -> bool {
        self.record.state == State::Unverified
            && !self.attachment.is_held_back()
            && match self.attachment.claim {
                Claim::Unneeded => false,
                Claim::Wanted => self.attachment.clean_passes > 0,
                // What cannot be read for a moment is not given to others.
                Claim::Held(_) => true,
            }
    }
}

/// A volume is what is recorded of it, and more.
impl Deref for Volume {
    type Target = Record;

    fn deref(&self) -> &Record {
        &self.record
    }
}

impl DerefMut for Volume {
    fn deref_mut(&mut self) -> &mut Record {
        &mut self.record
    }
}
