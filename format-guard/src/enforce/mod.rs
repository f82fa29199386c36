//! The enforcement in the kernel, as the rest of the agent sees it.
//!
//! Enforcers carry rules and never decide: a rule is derived from a record, and a verdict comes from
//! `decide()`.

pub mod bpf;
pub mod canary;
pub mod error;
pub mod preload;
mod programs;
pub mod report;
pub mod rule;

use std::{collections::BTreeMap, time::Duration};

use format_guard_common::{Rule, Windows, claim::Lease, event::FormatOwner};
use rustix::time::{ClockId, clock_gettime};

use crate::{tier::Tier, volume::Dev};
use error::{LoadError, MapError, ProgramStatus, ProtectionError};
use report::Report;

/// What the guard itself has counted since its maps were made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests judged.
    pub judged: u64,
    /// Rules met that belong to an earlier medium.
    pub stale: u64,
    /// Events lost to a full ring buffer.
    pub lost_events: u64,
    /// Entries that a full map could not take.
    pub full_maps: u64,
    /// Writes whose place could not be found.
    pub unplaced: u64,
}

/// The clock of the kernel's events (`CLOCK_BOOTTIME`).
#[must_use]
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs().try_into().unwrap_or(0))
}

/// Rules and owners of formats, where they are in force. One implementation loads BPF programs, one publishes
/// for the `LD_PRELOAD` library; the reconciler's tests record.
pub trait Enforcer {
    /// Puts in force what was put so far, and proves it by the canary. What an earlier agent left stays until
    /// then.
    fn attach(&mut self) -> Result<Vec<ProgramStatus>, LoadError>;
    /// Proves by the canary that what is in force refuses what it must and nothing else, under a rule that no
    /// device has.
    fn prove(&mut self) -> Result<(), LoadError>;
    /// Puts or replaces the rule for a device, and the windows to the volumes that lie on it.
    fn put_rule(&mut self, rule: &Rule, windows: &Windows) -> Result<(), MapError>;
    /// Puts the rule for devices that have none.
    fn put_unknown(&mut self, rule: &Rule) -> Result<(), MapError>;
    /// Takes the rule of a device away: it is judged as unknown from then on.
    fn remove_rule(&mut self, dev: Dev) -> Result<(), MapError>;
    /// Numbers of the devices that have a rule.
    fn ruled(&self) -> Vec<Dev>;
    /// The rule of a device, as it was put last; by an earlier agent, too.
    fn rule(&self, dev: Dev) -> Option<Rule>;
    /// Who formats the devices for which this one speaks, as far as not released.
    fn owner(&self, lock_dev: Dev) -> Option<FormatOwner>;
    /// Who formats what, by the device that speaks for it, as far as not released.
    fn owners(&self) -> Vec<(Dev, FormatOwner)>;
    /// Forgets the owner of the format under this lock device: another process may begin a format where the
    /// rules allow one.
    fn release_owner(&mut self, lock_dev: Dev) -> Result<(), MapError>;
    /// Forgets every refusal on a device: no process is cut off from it any more. How many were, in this
    /// attachment.
    fn untaint(&mut self, dev: Dev, diskseq: u64) -> Result<u64, MapError>;
    /// Completes a report with facts that the kernel programs cannot know.
    fn complete(&mut self, _report: &mut Report) {}
    /// Keeps others from taking the guard away, until this time in nanoseconds of `CLOCK_BOOTTIME`; zero: no
    /// longer.
    fn protect(&mut self, until: u64) -> Result<(), ProtectionError>;
    /// Under which volumes are claimed, as it was put last; by an earlier agent, too.
    fn lease(&self) -> Lease;
    /// Puts it, or lets it last longer. One of another number is put with its end in the past first: nobody
    /// may read the new number with the old end.
    fn put_lease(&mut self, lease: &Lease) -> Result<(), MapError>;
    /// Has known formatters wait for a volume to be read, for so long at most, where they can; it is read
    /// until this time in nanoseconds of `CLOCK_BOOTTIME`, as far as is known.
    fn let_wait(&mut self, _limit: Duration, _until: u64) -> Result<(), MapError> {
        Ok(())
    }
    /// The way in which it makes the kernel refuse.
    fn tier(&self) -> Tier;
    /// What the guard has counted.
    fn counts(&self) -> Counts;
    /// How often the kernel did not run a program, as another task's run of it stood on that CPU.
    fn skipped(&self) -> BTreeMap<String, u64> {
        BTreeMap::new()
    }
}
