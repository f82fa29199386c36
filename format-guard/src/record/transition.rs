//! The states of a record and every way from one to another: a pure function.
//!
//! It must never let a record leave Formatted without an operator's permit, or the word of the file system
//! that a file behind it lies on that nothing is stored of it any more; nor make one Blank (armed) without
//! two clean probes since the volume was attached, nor at once where a format may have gone unseen. What it
//! returns is stored before the kernel's rule changes: armed before allowed.

use format_guard_common::{State, event::Process};

use super::{
    Attachment, Claim, Content, Ends, Formatter, Now, Overlap, Overlay, Permit, Progress, Record, Seconds,
    Volume, Wrote, shared::Format,
};
use crate::{
    config::RawContent,
    mode::Mode,
    policy::{Action, Choice},
    volume::{
        identity::Strength,
        marks::{Found, MAX_MARKS, Mark},
        probe::{Finding, ProbeError},
    },
};

/// Clean probes in a row that arm a blank volume.
pub const CLEAN_PASSES: u32 = 2;
/// How long after it was first seen a logical volume's signature may be an earlier volume's, in seconds:
/// lvcreate wipes it at once.
const SETTLING: Seconds = 10;
/// How long after a format that a permit let through ended well the job may go on that the permit is for, in
/// seconds: one that wipes what it has just made, or labels a disk and then formats it.
const REPURPOSING: Seconds = 10;
/// How often a volume is looked at that nothing is told of, in seconds: one that may be formatted, as what
/// writes to it may go by a road that nobody sees; and one that is formatted and still in the hands of who
/// did it, as it may be formatted anew.
const PACE: Seconds = 300;

/// What happened to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It appeared, or its medium changed.
    Attached {
        /// The running boot.
        boot: String,
        /// How far its identity can be trusted.
        strength: Strength,
        /// Records may have been lost: what reads blank need not be.
        records_lost: bool,
        /// How long it must read blank where a format may have gone unseen, in seconds.
        quarantine: Seconds,
        /// Which bytes without a known format are content.
        raw_content: RawContent,
        /// Whether the cluster's word is needed before it may be armed.
        claim: Claim,
        /// The kernel's number of the attachment; zero where it gives none.
        diskseq: u64,
    },
    /// The kernel lets nobody format it any more, and nobody had begun: it is gone, or the agent stops.
    Disarmed,
    /// The device is gone; the next device in its place may hold another volume.
    Detached,
    /// A format was let through that nobody saw, and it may have been on this volume.
    MissedFormatSuspected,
    /// A probe came back.
    Probed(Result<Finding, ProbeError>),
    /// The kernel let a formatter through.
    FormatBegan {
        /// Who.
        formatter: Formatter,
        /// What the kernel saw of its writes so far.
        wrote: Wrote,
    },
    /// The formatter has ended, or one that is no known formatter has closed the volume.
    FormatEnded {
        /// Its wait status where the kernel told it.
        status: Option<u32>,
        /// What the kernel saw of its writes.
        wrote: Wrote,
        /// Neither its end nor a mount is told by the way in which the guard is in force here.
        unseen: bool,
    },
    /// A file system on it was mounted.
    Mounted,
    /// A re-labelling tool was let through.
    Relabelled(Process),
    /// A process was let through that would have been refused: nothing is refused here.
    LetThrough(Formatter),
    /// LVM wipes what an earlier logical volume left; or a program that does nothing else wipes what a permit
    /// gives up.
    OwnerWiped(Process),
    /// The tool that was let through has ended.
    ToolEnded,
    /// It shares bytes with a volume that holds a format, or (`None`) no longer does.
    OverlapChanged(Option<Overlay>),
    /// A volume that lies on it holds a format.
    UpperFormatSeen {
        /// The other volume.
        volume: String,
        /// The other's marks, as they lie on this one.
        marks: Vec<Mark>,
    },
    /// This node has claimed it in the cluster.
    Claimed {
        /// Under the lease of this number.
        lease: u32,
        /// The claim was taken over from a node that is gone: a format may have gone unseen.
        doubted: bool,
        /// With the permit for one re-format.
        permit: Option<Permit>,
    },
    /// It has not, or no longer for sure.
    ClaimLost,
    /// Another node tells what it holds.
    Shared(Format),
    /// The rule that an earlier agent of this boot has left is all that is known of it: the records were
    /// lost.
    TakenOver {
        /// The content by the volume's marks, without UUID and label.
        content: Option<Content>,
        /// Its marks.
        marks: Vec<Mark>,
        /// Nobody but known programs may write to it.
        strict: bool,
    },
    /// The permit is no longer this node's.
    PermitLost,
    /// By the configuration another declared policy holds for it, or none.
    PolicyChosen(Choice),
    /// An operator's word that this volume is not guarded.
    Exempted {
        /// Why.
        reason: String,
        /// The operator's user id.
        uid: u32,
    },
    /// The same, said of the disk that it is a partition of.
    ExemptedWith {
        /// The disk's id.
        disk: String,
    },
    /// The disk that it is a partition of, and was exempt with, is guarded again.
    DiskAdopted {
        /// The disk's id.
        disk: String,
    },
    /// An operator's word on what is refused on it, and whether that is carried out.
    ModeChosen {
        /// What is in force on it from now on.
        mode: Mode,
        /// Why.
        reason: String,
        /// The operator's user id.
        uid: u32,
    },
    /// An operator takes what is on the volume now for its content.
    Adopted {
        /// What a probe found just now.
        found: Vec<Found>,
        /// Its marks.
        marks: Vec<Mark>,
        /// Why.
        reason: String,
        /// The operator's user id.
        uid: u32,
    },
    /// An operator says that it holds raw content.
    AdoptedRaw {
        /// Why.
        reason: String,
        /// The operator's user id.
        uid: u32,
    },
    /// An operator allows one re-purposing.
    Permitted(Permit),
    /// An operator takes a permit back.
    Revoked {
        /// Why.
        reason: String,
        /// The operator's user id.
        uid: u32,
    },
    /// Time has passed.
    Tick,
}

impl Event {
    /// Whether the event is an operator's word: its line in the history is kept for good.
    #[must_use]
    pub const fn is_an_operators(&self) -> bool {
        matches!(
            self,
            Self::Exempted { .. }
                | Self::ModeChosen { .. }
                | Self::Adopted { .. }
                | Self::AdoptedRaw { .. }
                | Self::Permitted(_)
                | Self::Revoked { .. }
                | Self::Claimed { permit: Some(_), .. }
        )
    }
}

/// What has to be done besides storing the record and putting its rule, which comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Probe the device.
    Probe,
    /// The same in a moment: whoever has just formatted a device may be about to take it away, and nothing
    /// depends on it.
    ProbeSoon,
    /// Forget who formatted it.
    ReleaseOwner,
    /// Forget who was refused on it.
    Untaint,
    /// Tell people.
    Report(Report),
}

/// What people are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// A stable word.
    pub kind: &'static str,
    /// A sentence.
    pub text: String,
}

/// The volume after `event`, and what else is to be done.
#[must_use]
pub fn next(volume: &Volume, event: Event, now: Now) -> (Volume, Vec<Effect>) {
    let Volume { record, attachment } = volume.clone();
    let mut step = Step { record, attachment, effects: Vec::new(), now };
    match &event {
        Event::Attached { .. } => step.attachment.untouched = true,
        Event::Probed(Ok(Finding::Unwritten)) => {}
        Event::Probed(_)
        | Event::Mounted
        | Event::FormatBegan { .. }
        | Event::FormatEnded { .. }
        | Event::Relabelled(_)
        | Event::LetThrough(_)
        | Event::OwnerWiped(_)
        | Event::ToolEnded => step.attachment.untouched = false,
        _ => {}
    }
    if matches!(event, Event::Probed(_)) {
        step.attachment.looked_at = Some(now.boot);
    }
    match event {
        Event::Attached { boot, strength, records_lost, quarantine, raw_content, claim, diskseq } => {
            step.attachment.quarantine = quarantine;
            step.attachment.raw_content = raw_content;
            // Another path to what is claimed already.
            if !matches!((step.attachment.claim, claim), (Claim::Held(_), Claim::Wanted)) {
                step.attachment.claim = claim;
            }
            if step.is(Action::Ephemeral) {
                step.see_ephemeral(&boot, diskseq);
            } else {
                step.see_medium(&boot, strength, diskseq);
            }
            step.attached(boot, strength, records_lost);
        }
        Event::Disarmed => step.disarmed(),
        Event::Detached => step.detached(),
        Event::MissedFormatSuspected => step.record.armed = Some(UNSEEN.to_owned()),
        Event::Probed(Ok(Finding::Blank)) => step.holds_nothing(Ends::Zeros),
        Event::Probed(Ok(Finding::Unwritten)) => step.is_unwritten(),
        Event::Probed(Ok(Finding::Raw(digest))) => step.holds_nothing(Ends::Bytes(digest)),
        Event::Probed(Ok(Finding::Holds { found, marks, .. })) => step.holds(&found, marks),
        Event::Probed(Err(error)) => step.unreadable(&error),
        Event::FormatBegan { formatter, wrote } => step.format_began(formatter, wrote),
        Event::FormatEnded { status, wrote, unseen } => step.format_ended(status, wrote, unseen),
        Event::Mounted => step.mounted(),
        Event::Relabelled(tool) => step.relabelled(tool),
        Event::LetThrough(process) => step.let_through(process),
        Event::OwnerWiped(tool) => step.owner_wiped(tool),
        Event::ToolEnded => step.tool_ended(),
        Event::OverlapChanged(by) => step.overlap_changed(by),
        Event::UpperFormatSeen { volume, marks } => step.upper_format_seen(&volume, marks),
        Event::Claimed { lease, doubted, permit } => step.claimed(lease, doubted, permit),
        Event::ClaimLost => step.claim_lost(),
        Event::Shared(format) => step.shared(format),
        Event::TakenOver { content, marks, strict } => step.taken_over(content, marks, strict),
        Event::PermitLost if volume.record.state == State::Permitted => {
            step.permit_ended("the permit is no longer this node's: it was used, or may have been");
        }
        Event::PermitLost => {}
        Event::PolicyChosen(choice) => step.policy_chosen(choice),
        Event::Exempted { reason, uid } => step.exempted(format!("exempted by user {uid}: {reason}")),
        Event::ExemptedWith { disk } => step.exempted(exempt_with(&disk)),
        Event::DiskAdopted { disk } => step.disk_adopted(&disk),
        Event::ModeChosen { mode, reason, uid } => step.mode_chosen(mode, &reason, uid),
        Event::Adopted { found, marks, reason, uid } => step.adopted(&found, marks, &reason, uid),
        Event::AdoptedRaw { reason, uid } => step.adopted_raw(&reason, uid),
        Event::Permitted(permit) => step.permitted(permit),
        Event::Revoked { reason, uid } => step.revoked(&reason, uid),
        Event::Tick => step.tick(waits(volume, now)),
    }
    step.keep_claim();
    (Volume { record: step.record, attachment: step.attachment }, step.effects)
}

/// Whether time changes anything about a volume: a permit expires, or what a probe could not settle is probed
/// again. A data path that comes back sends no uevent.
#[must_use]
pub fn waits(volume: &Volume, now: Now) -> bool {
    let Volume { record, attachment } = volume;
    let due = || attachment.looked_at.is_none_or(|looked| looked + PACE <= now.boot);
    let unresolved = match record.state {
        // It is never armed, and its content is to be known all the same.
        State::Unverified if attachment.policy.holds_back() && !attachment.is_doubtful() => due(),
        State::Unverified => !attachment.is_held_back() && !volume.awaits_claim(),
        State::Formatting => !attachment.is_running() || settles(record, attachment),
        State::Blank => due(),
        State::Formatted if attachment.is_running() => record.discrepancy.is_some() || due(),
        State::Formatted if attachment.policy.is(Action::Slot) => due(),
        State::Formatted => record.discrepancy.is_some() || attachment.unconfirmed.is_some(),
        State::Exempt if attachment.policy == Choice::Undecided => due(),
        _ => record.discrepancy.is_some(),
    };
    unresolved || record.state == State::Permitted
}

/// Whether a format by this process that the kernel has let through on it, as it says itself, was not told
/// yet.
#[must_use]
pub fn is_untold(volume: &Volume, process: Process) -> bool {
    let Volume { record, attachment } = volume;
    match record.state {
        State::Blank | State::Permitted | State::Unverified => true,
        State::Formatting => attachment.progress == Progress::Past,
        // After a restart of the agent: it may still go on.
        State::Formatted => attachment.progress == Progress::Past && goes_on(record, process),
        State::Exempt => false,
    }
}

/// Whether this process may go on with what it formatted: it formatted the volume and is no known formatter.
fn goes_on(record: &Record, process: Process) -> bool {
    record.formatter.as_ref().is_some_and(|formatter| formatter.is(process) && !formatter.is_known())
}

/// Whether a running format is recorded by what probes read: a process that is no known formatter may never
/// exit.
fn settles(record: &Record, attachment: &Attachment) -> bool {
    attachment.is_running() && record.formatter.as_ref().is_some_and(|formatter| !formatter.is_known())
}

/// Whether a process that is no known formatter formats the volume: the agent asks whether that process still
/// has the device open.
#[must_use]
pub fn is_held(volume: &Volume) -> bool {
    matches!(volume.record.state, State::Formatting | State::Formatted)
        && settles(&volume.record, &volume.attachment)
}

/// Whether a mount of it, which proves a format, was not told yet.
#[must_use]
pub fn is_mount_untold(record: &Record) -> bool {
    matches!(record.state, State::Unverified | State::Blank | State::Formatting)
}

/// Temporary identity: not to be stored.
#[must_use]
pub fn is_provisional(volume: &Volume) -> bool {
    volume.record.state == State::Unverified && volume.attachment.not_armed_because == Some(PENDING)
}

/// Whether the volume waits only for a reading: since the volume was attached, or since a tool was let change
/// it, nothing was read, or nothing under the volume's own name.
#[must_use]
pub fn is_unread(volume: &Volume) -> bool {
    let Attachment { not_armed_because, looked_at, clean_passes, overlay, suspect_since, .. } =
        &volume.attachment;
    let named = not_armed_because.is_none();
    let reading = looked_at.is_none() || *clean_passes > 0 || !named;
    volume.record.state == State::Unverified
        && reading
        && (named || *not_armed_because == Some(PENDING))
        && overlay.is_none()
        && suspect_since.is_none()
        && !volume.awaits_claim()
}

struct Step {
    record: Record,
    attachment: Attachment,
    effects: Vec<Effect>,
    now: Now,
}

impl Step {
    fn report(&mut self, kind: &'static str, text: impl Into<String>) {
        self.effects.push(Effect::Report(Report { kind, text: text.into() }));
    }

    fn to(&mut self, state: State, cause: impl Into<String>) {
        if self.record.state != state {
            self.record.since = self.now.wall;
        }
        self.record.state = state;
        self.record.cause = cause.into();
        match state {
            State::Blank | State::Permitted => self.arm(),
            State::Formatting | State::Formatted | State::Exempt => self.record.armed = None,
            // What the kernel was told before it may still do.
            State::Unverified => {}
        }
        if state != State::Unverified {
            self.attachment.suspect_since = None;
        }
        if !matches!(state, State::Unverified | State::Formatted) {
            self.confirm_medium();
        }
        if state != State::Blank {
            self.attachment.left = None;
        }
    }

    fn unverified(&mut self, cause: impl Into<String>) {
        self.attachment.clean_passes = 0;
        self.to(State::Unverified, cause);
    }

    /// Of what is not attached the kernel knows nothing.
    fn arm(&mut self) {
        let boot = &self.attachment.attached_in;
        self.record.armed = if self.is(Action::Slot) {
            Some(UNSEEN.to_owned())
        } else {
            (!boot.is_empty()).then(|| boot.clone())
        };
    }

    fn probe(&mut self) {
        self.effects.push(Effect::Probe);
    }

    /// Whether the policy that holds for it does this.
    fn is(&self, action: Action) -> bool {
        self.attachment.policy.is(action)
    }

    fn is_undecided(&self) -> bool {
        self.attachment.policy == Choice::Undecided
    }

    fn policy_name(&self) -> &str {
        self.attachment.policy.in_force().map_or("?", |policy| policy.name.as_str())
    }

    /// Whether an attachment of this name is the one that the record speaks of.
    fn is_known_medium(&self, medium: &str, boot: &str) -> bool {
        match &self.record.medium {
            Some(known) => known == medium,
            // Never attached, or by a version that did not keep it.
            None => self.record.boot.is_empty() || self.record.boot == boot,
        }
    }

    /// What it held in an earlier attachment is worth nothing. A second path to it is no new attachment.
    fn see_ephemeral(&mut self, boot: &str, diskseq: u64) {
        let medium = format!("{boot}/{diskseq}");
        let anew = self.attachment.attached_in.is_empty() && !self.is_known_medium(&medium, boot);
        let first = self.record.medium.as_ref() != Some(&medium);
        self.attachment.unconfirmed = None;
        self.attachment.claim = Claim::Unneeded;
        self.record.medium = Some(medium);
        if self.record.state == State::Exempt {
            return;
        }
        let held = self.record.content.as_ref().map(|content| content.name().to_owned());
        // Which is told is stored, and with it the attachment.
        if let Some(held) = held.or_else(|| self.record.ever_formatted.then(|| "a format".to_owned()))
            && first
        {
            let text = if anew {
                format!("it held {held} when it was attached before, {}", self.worth_nothing())
            } else {
                format!("holds {held}, {} once it is attached anew", self.worth_nothing())
            };
            self.report("ephemeral", text);
        }
        if !anew {
            return;
        }
        self.forget_content();
        self.record.generation = 0;
        self.record.permit = None;
        self.record.armed = None;
        self.attachment.progress = Progress::Past;
        self.unverified("attached anew, not probed yet");
    }

    fn worth_nothing(&self) -> String {
        format!("worth nothing by policy '{}'", self.policy_name())
    }

    /// Whether what is found on it may be formatted over: nobody has formatted or mounted it in this
    /// attachment.
    fn is_worth_nothing(&self) -> bool {
        self.is(Action::Ephemeral)
            && !self.record.ever_formatted
            && !self.record.mounted
            && !self.may_not_be_armed()
    }

    /// A volume known by its place alone is known for one attachment: the place may hold another volume now.
    fn see_medium(&mut self, boot: &str, strength: Strength, diskseq: u64) {
        self.attachment.unconfirmed = None;
        if strength != Strength::Weak {
            return;
        }
        let medium = format!("{boot}/{diskseq}");
        if self.is_known_medium(&medium, boot) || is_exempt_by_policy(&self.record) {
            self.record.medium = Some(medium);
            return;
        }
        match self.record.state {
            State::Permitted => {
                self.permit_ended("the permit ended with the attachment that it was given for");
            }
            State::Exempt => {
                let cause = "the exemption ended with the attachment that it was given for";
                if self.record.ever_formatted {
                    self.to(State::Formatted, cause);
                } else {
                    self.unverified(cause);
                }
                self.report("exemption-ended", cause);
            }
            State::Unverified | State::Blank | State::Formatting | State::Formatted => {}
        }
        // Swapped-out pages are worth nothing once the mapping is opened anew; under a random key they cannot
        // even be read.
        let is_plain = self.record.id.as_str().starts_with(PLAIN_MAPPING);
        if is_plain
            && self.record.state == State::Formatted
            && self.record.content.as_ref().is_some_and(Content::is_swap_space)
        {
            self.forget_content();
            self.record.generation = 0;
            self.unverified("swap space that was opened anew, not probed yet");
        }
        self.attachment.unconfirmed = Some(medium);
    }

    /// The record speaks of the medium that is attached now.
    fn confirm_medium(&mut self) {
        if let Some(medium) = self.attachment.unconfirmed.take() {
            self.record.medium = Some(medium);
        }
    }

    /// Of the volume that was in its place before.
    fn forget_content(&mut self) {
        self.record.content = None;
        self.record.marks.clear();
        self.record.discrepancy = None;
        self.record.ends = None;
        self.record.ever_formatted = false;
        self.record.mounted = false;
        self.record.formatter = None;
        self.attachment.rewritten = None;
    }

    fn detached(&mut self) {
        self.disarmed();
        if self.record.weak {
            self.record.medium = Some(String::new());
        }
    }

    fn attached(&mut self, boot: String, strength: Strength, records_lost: bool) {
        if self.record.state == State::Exempt {
            return;
        }
        self.record.weak = strength != Strength::Strong;
        if strength == Strength::Memory {
            self.to(State::Exempt, "it is memory: nothing on it outlives a reset or a reboot");
            return;
        }
        let other_boot = !self.record.boot.is_empty() && self.record.boot != boot;
        self.attachment.not_armed_because = if records_lost && !self.is(Action::Ephemeral) {
            Some(RECORDS_LOST)
        } else if strength == Strength::Pending {
            Some(PENDING)
        } else {
            None
        };
        // Where something else was, or may have been, what reads blank may be it.
        let strange = self.attachment.unconfirmed.is_some()
            && (other_boot || self.record.ever_formatted || self.record.generation > 0);
        // In the same boot the kernel itself tells of a format that has begun since.
        let unseen = self.record.armed.as_ref().is_some_and(|armed| *armed != boot);
        self.attachment.attached_in.clone_from(&boot);
        if self.attachment.not_armed_because.is_none() {
            self.record.boot = boot;
        }
        self.attachment.clean_passes = 0;
        self.attachment.looked_at = None;
        self.attachment.relabelled = false;
        // A job ends where its device is taken away, or nobody saw how it went on.
        if self.record.state == State::Permitted && self.has_settled() {
            self.permit_settled();
        } else if self.record.state == State::Formatting {
            self.record.permit = None;
        } else if self.attachment.permit_ends.is_none() {
            self.limit_permit();
        }
        if self.attachment.unrecorded_past {
            self.attachment.appeared.get_or_insert(self.now.boot);
        }
        let interrupted = self.record.state == State::Formatting && !self.attachment.is_running();
        self.attachment.suspect_since = (unseen || interrupted || strange).then_some(self.now.boot);
        match self.record.state {
            // An armed record is trusted for one attachment only.
            State::Blank | State::Unverified => {
                let cause = match (unseen, strange) {
                    (true, _) => DOUBT,
                    (false, true) => STRANGE,
                    (false, false) => "attached, not probed yet",
                };
                self.unverified(self.attachment.not_armed_because.unwrap_or(cause));
            }
            State::Permitted if unseen => {
                self.permit_ended("the permit ended with the boot: it may have been used");
            }
            State::Permitted => self.arm(),
            State::Formatting | State::Formatted | State::Exempt => {}
        }
        self.probe();
    }

    fn disarmed(&mut self) {
        if self.record.state == State::Blank {
            self.unverified("no longer armed");
        }
        // What was unseen in an earlier boot stays so, and so does what a policy lets pass.
        if self.attachment.suspect_since.is_none() && !self.is(Action::Slot) {
            self.record.armed = None;
        }
    }

    /// No format is known there.
    fn holds_nothing(&mut self, ends: Ends) {
        match self.record.state {
            State::Unverified if self.attachment.is_doubtful() => {}
            State::Unverified if self.is_found_raw(&ends) && !self.is_worth_nothing() => {
                self.holds_raw(Some(ends));
                self.formatted("bytes were found on it that are no known format's");
            }
            State::Unverified if self.attachment.policy.holds_back() => self.unverified(UNARMED_BY_POLICY),
            State::Unverified if self.attachment.claim == Claim::Wanted => self.await_claim(),
            State::Unverified => self.clean_pass("probed twice, clean and blank", ends),
            State::Formatting if self.is_filled(&ends) => {
                let cause = self.filled_by_whom();
                let running = self.attachment.is_running();
                self.holds_raw(Some(ends));
                if running { self.settled(cause) } else { self.formatted(cause) }
            }
            State::Formatting if self.attachment.is_running() => {}
            State::Formatting if self.record.ever_formatted || self.record.mounted => {
                // One reading may be older than the end of the format.
                if !self.reads_blank_again() {
                } else if self.is_repurposed() {
                    if self.record.content.as_ref().is_some_and(Content::is_raw) {
                        self.compare_raw(ends);
                    } else {
                        self.reads_as_nothing(&ends);
                    }
                    self.go_on(false);
                } else {
                    self.formatted("a format ended and the volume reads blank");
                    if self.record.content.as_ref().is_some_and(Content::is_raw) {
                        self.compare_raw(ends);
                    } else {
                        self.reads_as_nothing(&ends);
                    }
                }
            }
            State::Permitted if self.attachment.wiped => self.is_wiped(&ends),
            State::Formatting if self.may_not_be_armed() => {
                self.arm();
                self.unverified("the format left nothing");
                self.effects.push(Effect::ReleaseOwner);
                self.probe();
            }
            State::Formatting => self.clean_pass("the format left nothing, probed twice", ends),
            State::Formatted if self.may_be_anothers(&ends) => self.reads_as_anothers(ends),
            State::Formatted | State::Permitted
                if self.record.content.as_ref().is_some_and(Content::is_raw) =>
            {
                self.compare_raw(ends);
            }
            // Recorded for the volumes that lie on it: the device itself read blank before, too.
            State::Formatted | State::Permitted if self.record.content.is_none() && !self.record.mounted => {}
            State::Formatted | State::Permitted
                if self.attachment.rewritten.is_some() && self.attachment.tool_at_work.is_some() => {}
            State::Formatted | State::Permitted => self.reads_as_nothing(&ends),
            // What tools made of it that write no content.
            State::Blank => self.record.ends = Some(ends),
            State::Exempt => {}
        }
    }

    /// Nothing is stored of it, so there is nothing to lose: whoever had what was recorded has cut the file,
    /// and it is a new volume. Not once somebody may have mounted it: what a file system has in memory comes
    /// back to the file.
    fn is_unwritten(&mut self) {
        let anew = self.record.state == State::Formatted
            && self.attachment.untouched
            && !self.attachment.is_held_back();
        if anew && !self.reads_blank_again() {
            return;
        }
        if anew {
            let before = self.record.content.as_ref().map_or("a format", |content| content.name());
            let text =
                format!("its file was cut: nothing is stored of it any more, and {before} was there before");
            self.forget_content();
            self.record.generation = 0;
            self.unverified(text.clone());
            self.report("unwritten", text);
        }
        self.holds_nothing(Ends::Zeros);
    }

    /// Whether what is found where nobody is known to have written is content: where all of it is, or where
    /// it is not what was there when the volume was armed, and who wrote may have gone unseen.
    fn is_found_raw(&self, ends: &Ends) -> bool {
        let changed = self.record.ends.as_ref().is_some_and(|armed| armed != ends);
        *ends != Ends::Zeros
            && match self.attachment.raw_content {
                RawContent::Written => changed && self.attachment.suspect_since.is_some(),
                RawContent::Found => true,
                RawContent::Ignored => false,
            }
    }

    /// Whether one that is no known formatter has written what is found, of whose writes only that is known.
    fn is_filled(&self, ends: &Ends) -> bool {
        let formatter = self.record.formatter.as_ref();
        let over = !self.attachment.is_running();
        formatter.is_some_and(|formatter| !formatter.is_known())
            && *ends != Ends::Zeros
            && self.record.ends.as_ref() != Some(ends)
            && self.attachment.raw_content != RawContent::Ignored
            // A format that is under way may be known by its magic in a moment.
            && (over || self.attachment.wrote != Wrote::Magic)
    }

    fn holds_raw(&mut self, ends: Option<Ends>) {
        self.take(Content::raw(), Vec::new());
        self.record.ends = ends;
    }

    fn filled_by_whom(&self) -> String {
        format!("filled by {}", self.formatter_name())
    }

    /// Whether the volume is known by its place alone, so that another volume may be there now. Raw content
    /// counts as the recorded volume's, whatever the probe reads.
    fn may_be_anothers(&self, ends: &Ends) -> bool {
        let raw = self.record.content.as_ref().is_some_and(Content::is_raw) && *ends != Ends::Zeros;
        self.attachment.unconfirmed.is_some() && !self.attachment.is_held_back() && !raw
    }

    /// What reads blank where another volume was: it stays protected for the quarantine, and is another one
    /// then.
    fn reads_as_anothers(&mut self, ends: Ends) {
        let doubted = self
            .attachment
            .suspect_since
            .is_some_and(|since| self.now.boot < since + self.attachment.quarantine);
        if !self.reads_blank_again() || doubted {
            self.reads_as_nothing(&ends);
            return;
        }
        let before = self.record.content.as_ref().map_or("a format", |content| content.name()).to_owned();
        let text = format!("another medium is in its place: {before}, which was there before, is not on it");
        self.forget_content();
        self.report("another-medium", text.clone());
        if ends != Ends::Zeros && self.attachment.raw_content == RawContent::Found {
            self.holds_raw(Some(ends));
            self.formatted(text);
            return;
        }
        self.record.ends = Some(ends);
        self.effects.push(Effect::ReleaseOwner);
        // Where other nodes may have formatted the new one, too, their word is asked for.
        if self.attachment.claim == Claim::Wanted {
            self.await_claim();
            return;
        }
        self.to(State::Blank, text);
        self.report("blank", "blank: one format may begin");
    }

    /// The user of raw content may change it at will, but raw content does not vanish.
    fn compare_raw(&mut self, ends: Ends) {
        if ends == Ends::Zeros && matches!(self.record.ends, Some(Ends::Bytes(_))) {
            self.reads_as_nothing(&ends);
            return;
        }
        if self.record.discrepancy.take().is_some() {
            self.report("discrepancy-ended", "it reads as recorded again");
        }
        self.attachment.rewritten = None;
        self.record.ends = Some(ends);
        self.confirm_medium();
    }

    fn reads_as_nothing(&mut self, ends: &Ends) {
        let seen = match ends {
            Ends::Zeros => "it reads blank",
            Ends::Bytes(_) => "it reads as no known format",
        };
        self.discrepancy(seen.to_owned());
    }

    /// Whether it has read blank often enough; else it is probed once more.
    fn reads_blank_again(&mut self) -> bool {
        self.attachment.clean_passes = CLEAN_PASSES.min(self.attachment.clean_passes + 1);
        let enough = self.attachment.clean_passes == CLEAN_PASSES;
        if !enough {
            self.probe();
        }
        enough
    }

    fn clean_pass(&mut self, cause: &str, ends: Ends) {
        let doubted = self
            .attachment
            .suspect_since
            .is_some_and(|since| self.now.boot < since + self.attachment.quarantine);
        if !self.reads_blank_again() || doubted {
            return;
        }
        self.record.marks.clear();
        self.record.ends = Some(ends);
        self.to(State::Blank, cause);
        self.effects.push(Effect::ReleaseOwner);
        // Who was refused came a moment too early, and nothing was there to be destroyed.
        self.effects.push(Effect::Untaint);
        self.report("blank", "blank: one format may begin");
    }

    /// What must read blank for the quarantine did not.
    fn begin_quarantine_anew(&mut self) {
        if self.attachment.suspect_since.is_some() {
            self.attachment.suspect_since = Some(self.now.boot);
        }
    }

    fn holds(&mut self, found: &[Found], marks: Vec<Mark>) {
        self.attachment.clean_passes = 0;
        self.begin_quarantine_anew();
        let content = content_of(found);
        match self.record.state {
            State::Unverified if self.may_be_an_earlier_volumes() => {
                // The content of the new logical volume is not known before LVM has wiped it.
                self.attachment.looked_at = None;
                self.unverified(format!(
                    "a new logical volume that reads as {}: LVM may wipe it yet",
                    content.name()
                ));
            }
            State::Unverified
                if self
                    .attachment
                    .overlay
                    .as_ref()
                    .is_some_and(|overlay| overlay.overlap == Overlap::Inside) => {}
            State::Unverified if self.is_worth_nothing() => {
                self.record.marks.clear();
                let text =
                    format!("holds {}, {}: one format may begin", content.name(), self.worth_nothing());
                self.to(State::Blank, text.clone());
                self.attachment.left = Some(content);
                self.effects.push(Effect::ReleaseOwner);
                self.effects.push(Effect::Untaint);
                self.report("ephemeral", text);
            }
            State::Blank if self.attachment.left.as_ref() == Some(&content) => {}
            State::Unverified | State::Blank => {
                self.take(content, marks);
                self.formatted("a probe found it");
            }
            State::Formatting if settles(&self.record, &self.attachment) => {
                let cause = self.by_whom();
                self.take(content, marks);
                self.settled(cause);
            }
            State::Formatting if self.attachment.is_running() => {}
            State::Formatting if self.failed_first_format(&content) && self.may_not_be_armed() => {
                self.unverified(format!("a first format failed and left {}", content.name()));
                self.effects.push(Effect::ReleaseOwner);
            }
            State::Formatting if self.failed_first_format(&content) => {
                self.record.marks.clear();
                self.attachment.clean_passes = 0;
                let text =
                    format!("a first format failed and left {}: it may be tried again", content.name());
                self.to(State::Blank, text.clone());
                self.attachment.left = Some(content);
                self.effects.push(Effect::ReleaseOwner);
                self.report("format-failed", text);
            }
            State::Formatting => {
                let cause = self.by_whom();
                let as_before = self.attachment.wrote == Wrote::Nothing && self.record.content.is_some();
                if !as_before || !self.is_repurposed() {
                    self.take(content, marks);
                }
                if self.is_repurposed() { self.go_on(true) } else { self.formatted(cause) }
            }
            State::Formatted | State::Permitted => self.compare(content, marks),
            State::Exempt => {}
        }
    }

    /// What lvcreate finds on the extents that it hands out is not the new volume's.
    fn may_be_an_earlier_volumes(&self) -> bool {
        let new = self.attachment.appeared.is_some_and(|appeared| self.now.boot < appeared + SETTLING);
        self.record.id.as_str().starts_with("dm:LVM-") && new
    }

    /// A first format that has failed, as far as it is known that nothing but a half of it is there: it was
    /// made by a known formatter, which wrote (what is found is not what was there before) and whose end was
    /// seen, on a volume that never was mounted; and it is none that is in use without a mount.
    fn failed_first_format(&self, left: &Content) -> bool {
        let known = self.record.formatter.as_ref().is_some_and(Formatter::is_known);
        known
            && self.attachment.wrote != Wrote::Nothing
            && self.attachment.exit_status().is_some_and(|status| status != 0)
            && !self.record.ever_formatted
            && !self.record.mounted
            && !left.is_used_unmounted()
    }

    fn by_whom(&self) -> String {
        format!("formatted by {}", self.formatter_name())
    }

    fn formatter_name(&self) -> &str {
        self.record.formatter.as_ref().map_or("?", |formatter| formatter.comm.as_str())
    }

    fn take(&mut self, content: Content, marks: Vec<Mark>) {
        if self.record.content.as_ref() != Some(&content) || self.record.marks != marks {
            self.record.generation += 1;
        }
        self.record.content = Some(content);
        self.record.marks = marks;
        self.record.ends = None;
        self.record.discrepancy = None;
        self.confirm_medium();
    }

    fn formatted(&mut self, cause: impl Into<String>) {
        self.attachment.stop_running();
        self.effects.push(Effect::ReleaseOwner);
        self.settled(cause);
    }

    /// The same; but who formats it may go on.
    fn settled(&mut self, cause: impl Into<String>) {
        let used = self.record.permit.take().filter(|permit| permit.used);
        // A label, by a program that may go on: its partitions come in a moment.
        self.attachment.passed_on = used.map(|permit| (permit, self.now.boot + REPURPOSING));
        self.attachment.relabelled = false;
        self.attachment.rewritten = None;
        self.record.ever_formatted = true;
        self.record.generation = self.record.generation.max(1);
        self.confirm_medium();
        self.to(State::Formatted, cause);
        let name = self.record.content.as_ref().map_or("a format", |content| content.name()).to_owned();
        self.report("formatted", format!("holds {name}: {}", self.record.cause));
    }

    /// A recorded volume was probed: what the disk says now never outranks what was recorded.
    fn compare(&mut self, content: Content, marks: Vec<Mark>) {
        self.record.ever_formatted = true;
        let Some(recorded) = self.record.content.clone() else {
            // Known by its mount or its formatter's end alone until now.
            self.take(content, marks);
            return;
        };
        // The process that formatted the volume may change it while the process has it open; the volume is
        // read once more afterwards.
        if self.attachment.tool_at_work.is_some() && self.attachment.rewritten.is_some() {
            return;
        }
        let going_on = self.record.formatter.clone().filter(|_| self.attachment.is_running());
        let rewritten = going_on.or_else(|| self.attachment.rewritten.take());
        // A rule that was taken over tells no UUID in words: its marks do.
        let by_marks = recorded.uuid.is_none()
            && !self.record.marks.is_empty()
            && self.record.marks.iter().all(|mark| marks.contains(mark));
        if same_types(&recorded, &content) && (recorded.uuid == content.uuid || by_marks) {
            if self.record.discrepancy.is_some() {
                self.report("discrepancy-ended", "it reads as recorded again");
            }
            // A label may change, and a structure be repaired or moved. One that is only missing may be so
            // for the data path's sake, unless a tool that may take it away has been at work.
            let missing =
                !self.attachment.relabelled && marks.iter().all(|mark| self.record.marks.contains(mark));
            let marks = if missing { self.record.marks.clone() } else { marks };
            self.take(content, marks);
        } else if self.attachment.relabelled && same_types(&recorded, &content) {
            let uuid = content.uuid.clone().unwrap_or_default();
            // Not sooner: a probe that was under way may still have read the old one.
            self.attachment.relabelled = false;
            self.take(content, marks);
            self.report("relabelled", format!("its UUID is now {uuid}"));
        } else if let Some(by) = rewritten {
            let name = content.name().to_owned();
            let own = self.record.formatter.as_ref() == Some(&by);
            let cause = if own { "" } else { ", which would have been refused" };
            self.record.formatter = Some(by);
            let cause = format!("{}{cause}", self.by_whom());
            self.take(content, marks);
            // The mount was of the earlier content.
            self.record.mounted = false;
            self.record.cause.clone_from(&cause);
            self.report("formatted", format!("holds {name} now: {cause}"));
        } else if self.is(Action::Slot) {
            let text =
                format!("holds {}, written to it as policy '{}' lets it", content.name(), self.policy_name());
            self.take(content, marks);
            self.record.mounted = false;
            self.record.cause.clone_from(&text);
            self.report("formatted", text);
        } else if self.attachment.unconfirmed.is_some() && !self.attachment.is_held_back() {
            let cause = "another medium is in its place";
            self.forget_content();
            self.record.ever_formatted = true;
            cause.clone_into(&mut self.record.cause);
            self.report("another-medium", format!("{cause}, which holds {}", content.name()));
            self.take(content, marks);
        } else {
            let seen = content.uuid.as_deref().unwrap_or("no UUID");
            self.discrepancy(format!("it reads as {} {seen}", content.name()));
        }
    }

    fn discrepancy(&mut self, text: String) {
        // Half of what is being written to it.
        if self.is(Action::Slot) {
            return;
        }
        if self.record.discrepancy.as_ref() != Some(&text) {
            self.report("discrepancy", format!("recorded as formatted, but {text}; it stays protected"));
            self.record.discrepancy = Some(text);
        }
    }

    fn unreadable(&mut self, error: &ProbeError) {
        self.begin_quarantine_anew();
        match self.record.state {
            State::Unverified if self.attachment.is_doubtful() => {}
            State::Unverified | State::Blank => {
                let cause = error.to_string();
                if self.record.cause != cause {
                    self.report("unverified", format!("cannot be verified: {cause}"));
                }
                self.unverified(cause);
            }
            State::Formatting => self.attachment.clean_passes = 0,
            State::Formatted | State::Permitted => {
                self.attachment.clean_passes = 0;
                self.discrepancy(error.to_string());
            }
            State::Exempt => {}
        }
    }

    fn format_began(&mut self, formatter: Formatter, wrote: Wrote) {
        // Earlier readings say nothing of what this process writes.
        self.attachment.clean_passes = 0;
        // The magic stays written, however the process ends.
        let magic = wrote == Wrote::Magic && !formatter.is_known();
        self.record.ever_formatted |= magic && self.record.state != State::Exempt;
        // Of half a format nobody else need be the author.
        if formatter.is_known() && !matches!(self.record.state, State::Formatted | State::Exempt) {
            self.record.ends = None;
        }
        let fills = wrote == Wrote::Raw && !formatter.is_known();
        match self.record.state {
            State::Blank | State::Permitted | State::Unverified => {
                let text = format!("{} (pid {}) began to format", formatter.comm, formatter.pid);
                self.attachment.wrote = wrote;
                self.use_permit();
                self.attachment.wiped = false;
                self.record.formatter = Some(formatter);
                self.attachment.progress = Progress::Running;
                self.record.mounted = false;
                self.to(State::Formatting, text.clone());
                if fills {
                    self.fill();
                } else {
                    self.report("format-began", text);
                }
            }
            // After a restart of the agent: it may still run.
            State::Formatting => {
                self.attachment.wrote = self.attachment.wrote.max(wrote);
                self.record.formatter = Some(formatter);
                self.attachment.progress = Progress::Running;
                if fills {
                    self.fill();
                }
            }
            State::Formatted
                if !self.attachment.has_exited() && goes_on(&self.record, formatter.process()) =>
            {
                self.attachment.progress = Progress::Running;
            }
            // Told late: a later one must not find it in its place.
            State::Formatted if formatter.is_known() => {
                self.record.formatter = Some(formatter);
                self.effects.push(Effect::ReleaseOwner);
            }
            // It is let do no more than others.
            State::Formatted | State::Exempt => {}
        }
    }

    /// Raw content counts from its first byte on, however the process that writes it ends.
    fn fill(&mut self) {
        let cause = self.filled_by_whom();
        self.holds_raw(None);
        self.settled(cause);
        self.probe();
    }

    fn format_ended(&mut self, status: Option<u32>, wrote: Wrote, unseen: bool) {
        match self.record.state {
            State::Formatting => {
                self.attachment.wrote = self.attachment.wrote.max(wrote);
                let wrote = self.attachment.wrote != Wrote::Nothing;
                let known = self.record.formatter.as_ref().is_some_and(Formatter::is_known);
                // It is there, whatever a probe reads.
                let well = status.map_or(unseen, |status| status == 0);
                self.record.ever_formatted |= known && wrote && well;
                // A blank reading may be of what the formatter wrote.
                self.attachment.suspect_since = wrote.then_some(self.now.boot);
            }
            State::Formatted if self.attachment.is_running() => {
                self.attachment.rewritten.clone_from(&self.record.formatter);
                self.effects.push(Effect::ReleaseOwner);
            }
            _ => return,
        }
        self.attachment.progress = Progress::Exited { status };
        self.attachment.clean_passes = 0;
        let complete = self.record.state == State::Formatting
            && self.record.ever_formatted
            && status == Some(0)
            && self.record.formatter.as_ref().is_some_and(Formatter::is_known);
        if complete {
            self.effects.push(Effect::ProbeSoon);
        } else {
            self.probe();
        }
    }

    fn mounted(&mut self) {
        match self.record.state {
            State::Unverified | State::Blank | State::Formatting => {
                self.record.mounted = true;
                // The mount was of new content, not of the recorded one.
                self.record.content = None;
                self.formatted("it was mounted");
                self.probe();
            }
            State::Permitted if self.is_permit_used() => {
                self.record.mounted = true;
                self.permit_settled();
                self.probe();
            }
            State::Formatted | State::Permitted => {
                self.record.mounted = true;
                self.confirm_medium();
                // A label may have changed since, and without udevd no uevent tells.
                self.probe();
            }
            State::Exempt => {}
        }
    }

    fn relabelled(&mut self, tool: Process) {
        if matches!(self.record.state, State::Formatted | State::Permitted) {
            self.attachment.relabelled = true;
            self.attachment.tool_at_work = Some(tool);
        }
    }

    /// Earlier readings do not hold any more.
    fn owner_wiped(&mut self, tool: Process) {
        self.attachment.tool_at_work = Some(tool);
        self.attachment.looked_at = None;
        if self.record.state == State::Permitted && self.attachment.claim == Claim::Unneeded {
            self.attachment.wiped = true;
            self.attachment.clean_passes = 0;
            self.use_permit();
        }
    }

    /// The outcome is known when the tool has exited.
    fn let_through(&mut self, process: Formatter) {
        self.attachment.tool_at_work = Some(process.process());
        if matches!(self.record.state, State::Formatted | State::Permitted) {
            self.attachment.rewritten = Some(process);
        }
    }

    fn tool_ended(&mut self) {
        self.attachment.tool_at_work = None;
        self.attachment.looked_at = None;
        self.probe();
    }

    fn overlap_changed(&mut self, by: Option<Overlay>) {
        if self.attachment.overlay == by {
            return;
        }
        self.attachment.overlay = by;
        self.attachment.clean_passes = 0;
        match (&self.attachment.overlay, self.record.state) {
            (Some(overlay), State::Blank | State::Unverified) => {
                let cause = format!("it shares its bytes with {}", overlay.by);
                self.report("overlaid", cause.clone());
                self.unverified(cause);
                self.probe();
            }
            (None, State::Unverified) => {
                self.unverified("what it shared its bytes with is gone, not probed yet");
                self.probe();
            }
            _ => {}
        }
    }

    fn upper_format_seen(&mut self, volume: &str, marks: Vec<Mark>) {
        if matches!(self.record.state, State::Unverified | State::Blank) {
            // What it holds itself since then is not known.
            self.attachment.looked_at = None;
            self.record.content = None;
            self.record.marks = marks;
            self.record.marks.truncate(MAX_MARKS);
            self.record.generation += 1;
            self.formatted(format!("{volume} lies on it"));
            // It may be the very same format, if the other one begins where it begins.
            self.probe();
        }
    }

    /// Whether something stands in the way of a second try at once.
    fn may_not_be_armed(&self) -> bool {
        self.attachment.is_held_back() || self.attachment.claim == Claim::Wanted
    }

    /// Blank so far, and not to be armed before the cluster says so.
    fn await_claim(&mut self) {
        self.unverified(NO_CLAIM);
        self.attachment.clean_passes = 1;
    }

    /// What was read before is as old as another node's format may be.
    fn claimed(&mut self, lease: u32, doubted: bool, permit: Option<Permit>) {
        let before = std::mem::replace(&mut self.attachment.claim, Claim::Held(lease));
        // From now on nothing happens to it that is not on record.
        self.attachment.unrecorded_past = false;
        if let Some(permit) = permit {
            // The one that is being used is not given once more.
            if self.record.state != State::Formatting && self.record.permit.as_ref() != Some(&permit) {
                self.permitted(permit);
            }
            return;
        }
        if before == self.attachment.claim || self.record.state != State::Unverified {
            return;
        }
        if doubted && self.attachment.suspect_since.is_none() {
            self.attachment.suspect_since = Some(self.now.boot);
        }
        let doubted = self.attachment.suspect_since.is_some();
        self.unverified(if doubted { DOUBTED_CLAIM } else { "claimed in the cluster, not probed since" });
        self.probe();
    }

    /// Gives up the claim on a volume that cannot be armed in its state, so that another node may claim it.
    fn keep_claim(&mut self) {
        let kept = match self.record.state {
            State::Blank | State::Permitted | State::Formatting => true,
            State::Unverified => !self.attachment.is_held_back(),
            State::Formatted | State::Exempt => false,
        };
        if matches!(self.attachment.claim, Claim::Held(_)) && !kept {
            self.attachment.claim = Claim::Wanted;
        }
    }

    fn claim_lost(&mut self) {
        if self.attachment.claim == Claim::Unneeded {
            return;
        }
        self.attachment.claim = Claim::Wanted;
        match self.record.state {
            State::Blank => self.await_claim(),
            State::Unverified if !self.attachment.is_held_back() => self.await_claim(),
            State::Permitted => self.permit_ended("the claim to the permit is lost: it may have been used"),
            _ => {}
        }
    }

    /// What another node tells of a format outranks what was read here.
    fn shared(&mut self, format: Format) {
        let newer = format.generation > self.record.generation;
        let told = match self.record.state {
            _ if self.is(Action::Ephemeral) => false,
            State::Unverified | State::Blank => true,
            State::Formatting => !self.attachment.is_running() && newer,
            State::Formatted | State::Permitted => newer,
            State::Exempt => false,
        };
        if !told {
            return;
        }
        self.record.content = format.content;
        self.record.marks = format.marks;
        self.record.generation = format.generation;
        self.record.discrepancy = None;
        self.formatted(format!("formatted on another node, as {} tells", format.node));
        self.probe();
    }

    fn taken_over(&mut self, content: Option<Content>, marks: Vec<Mark>, strict: bool) {
        if !matches!(self.record.state, State::Unverified | State::Blank) {
            return;
        }
        self.record.content = content;
        self.record.marks = marks;
        self.record.marks.truncate(MAX_MARKS);
        self.record.strict = strict;
        self.record.generation += 1;
        self.formatted("taken over from the rule of an earlier agent: its record was lost");
        self.probe();
    }

    fn exempted(&mut self, cause: String) {
        self.record.permit = None;
        self.attachment.stop_running();
        self.to(State::Exempt, cause.clone());
        self.effects.push(Effect::ReleaseOwner);
        self.report("exempted", cause);
    }

    /// What a policy let pass nobody saw: when it holds no longer, nothing is armed by what was known before.
    fn policy_chosen(&mut self, choice: Choice) {
        let before = std::mem::replace(&mut self.attachment.policy, choice);
        let was_held_back = before.holds_back();
        let unseen = before.is(Action::Slot) && !self.is(Action::Slot);
        if self.is(Action::Slot) {
            self.record.discrepancy = None;
            if self.record.armed.is_some() {
                self.arm();
            }
        }
        match self.record.state {
            State::Exempt if is_exempt_by_policy(&self.record) && self.is(Action::Exempt) => {
                self.record.cause = exempt_by_policy(self.policy_name());
            }
            // Who has it in use is not held up by a restart.
            State::Exempt if is_exempt_by_policy(&self.record) && self.is_undecided() => self.probe(),
            State::Exempt if is_exempt_by_policy(&self.record) => {
                let cause = "the policy that it was exempt by holds no longer";
                self.unseen(cause);
                self.report("exemption-ended", cause);
            }
            State::Exempt => {}
            _ if self.is(Action::Exempt) => self.exempted(exempt_by_policy(self.policy_name())),
            State::Permitted if self.is(Action::NeverFormat) => {
                self.permit_ended("the permit ended: by a policy nobody formats the volume");
            }
            State::Blank if self.attachment.policy.holds_back() => {
                self.unverified("no longer armed: a policy holds for it, or may");
                self.probe();
            }
            State::Blank | State::Formatted if unseen => {
                self.unseen("the policy that anybody could write to it by holds no longer");
            }
            State::Unverified if was_held_back && !self.attachment.policy.holds_back() => {
                self.unverified("its policy was chosen, not probed yet");
                self.probe();
            }
            _ => {}
        }
    }

    /// What happened to it meanwhile nobody saw: what held a format is protected, and nothing else is armed
    /// before the quarantine.
    fn unseen(&mut self, cause: &str) {
        if self.record.ever_formatted {
            self.to(State::Formatted, cause);
        } else {
            self.unverified(cause);
            self.record.armed = Some(UNSEEN.to_owned());
            self.attachment.suspect_since = Some(self.now.boot);
        }
        self.probe();
    }

    /// What was written to it meanwhile nobody saw.
    fn disk_adopted(&mut self, disk: &str) {
        if self.record.state == State::Exempt && self.record.cause == exempt_with(disk) {
            self.unverified("its disk is guarded again, not probed yet");
            self.attachment.suspect_since = Some(self.now.boot);
            self.probe();
        }
    }

    fn mode_chosen(&mut self, mode: Mode, reason: &str, uid: u32) {
        self.record.audit = mode == Mode::Audit;
        self.record.strict = mode == Mode::Strict;
        self.report("mode", format!("its mode is {}, by user {uid}: {reason}", mode.name()));
    }

    fn adopted(&mut self, found: &[Found], marks: Vec<Mark>, reason: &str, uid: u32) {
        self.take(content_of(found), marks);
        self.formatted(format!("adopted by user {uid}: {reason}"));
    }

    fn adopted_raw(&mut self, reason: &str, uid: u32) {
        self.holds_raw(None);
        self.formatted(format!("adopted as raw content by user {uid}: {reason}"));
        self.probe();
    }

    fn permitted(&mut self, permit: Permit) {
        if self.record.state == State::Exempt || self.is(Action::NeverFormat) {
            return;
        }
        // What may have been formatted unseen is not blank again when the permit ends unused.
        self.record.ever_formatted |=
            self.record.state == State::Formatting || self.attachment.suspect_since.is_some();
        let cause = format!("permitted {}: {}", permit.giver(), permit.reason);
        self.record.permit = Some(permit);
        self.limit_permit();
        self.attachment.stop_running();
        self.attachment.wiped = false;
        self.to(State::Permitted, cause.clone());
        self.effects.push(Effect::ReleaseOwner);
        // Whoever was refused what is allowed now.
        self.effects.push(Effect::Untaint);
        self.report("permitted", cause);
    }

    /// A format that has begun under it goes on: of what is half written nobody has anything.
    fn revoked(&mut self, reason: &str, uid: u32) {
        let cause = format!("its permit was revoked by user {uid}: {reason}");
        if self.record.state != State::Permitted {
            self.record.permit = None;
        } else if self.has_settled() {
            self.permit_settled();
        } else {
            self.record.permit = None;
            self.unused(&cause);
        }
        self.probe();
        self.report("permit-revoked", cause);
    }

    /// The wall clock may be set while it lasts.
    fn limit_permit(&mut self) {
        let (wall, boot) = (self.now.wall, self.now.boot);
        self.attachment.permit_ends = self.record.permit.as_ref().map(|permit| boot + permit.rest(wall));
    }

    /// A permit is for one re-purposing by one job, which may take more than one format; where other nodes
    /// may reach the volume it is used up by the first.
    fn use_permit(&mut self) {
        let alone = self.record.state == State::Permitted && self.attachment.claim == Claim::Unneeded;
        match &mut self.record.permit {
            Some(permit) if alone => permit.used = true,
            permit => *permit = None,
        }
    }

    /// Whether the job goes on that a permit is for: nobody has taken into use yet what its format made.
    fn is_repurposed(&self) -> bool {
        let lasts = self.attachment.permit_ends.is_some_and(|end| self.now.boot < end);
        lasts && self.is_permit_used() && !self.record.mounted
    }

    /// Whether what was made under the permit is there to stay.
    fn has_settled(&self) -> bool {
        self.is_permit_used() && self.record.ever_formatted
    }

    fn is_permit_used(&self) -> bool {
        self.record.permit.as_ref().is_some_and(|permit| permit.used)
    }

    /// The operator's word was that what is there may go, a program that does nothing but wipe was let
    /// through, and it has ended.
    fn is_wiped(&mut self, ends: &Ends) {
        if self.attachment.tool_at_work.is_some() || !self.reads_blank_again() {
            return;
        }
        self.attachment.wiped = false;
        self.record.content = None;
        self.record.marks.clear();
        self.record.ends = Some(ends.clone());
        self.record.discrepancy = None;
        self.record.ever_formatted = false;
        self.to(State::Permitted, WIPED);
        self.report("wiped", WIPED);
    }

    /// The permit has served: it was for this format.
    fn permit_settled(&mut self) {
        let cause = self.record.cause.clone();
        self.record.permit = None;
        self.attachment.relabelled = false;
        self.attachment.rewritten = None;
        self.effects.push(Effect::ReleaseOwner);
        self.to(State::Formatted, cause);
    }

    /// A format that a permit let through has ended, and the next step of the job may begin. What is there
    /// counts for what was made of it when the permit has ended. `found`: a probe sees it.
    fn go_on(&mut self, found: bool) {
        let wrote = self.attachment.wrote != Wrote::Nothing;
        let well = self.attachment.exit_status().is_none_or(|status| status == 0);
        let cause =
            if wrote { self.by_whom() } else { format!("left as it was by {}", self.formatter_name()) };
        self.attachment.stop_running();
        self.effects.push(Effect::ReleaseOwner);
        self.record.ever_formatted |= found;
        if wrote && found {
            self.record.generation = self.record.generation.max(1);
            let name = self.record.content.as_ref().map_or("a format", |content| content.name());
            self.report(
                "formatted",
                format!("holds {name}: {cause}; its permit lasts until that has settled"),
            );
        }
        if wrote && well && self.record.content.is_some() {
            let end = self.now.boot + REPURPOSING;
            self.attachment.permit_ends = self.attachment.permit_ends.map(|before| before.min(end));
        }
        self.to(State::Permitted, cause);
    }

    fn permit_ended(&mut self, cause: &'static str) {
        self.record.permit = None;
        self.unused(cause);
        self.report("permit-expired", cause);
    }

    /// Takes the unused permit away: the volume is formatted as before, or unverified if it was wiped
    /// meanwhile.
    fn unused(&mut self, cause: &str) {
        if self.record.ever_formatted {
            self.to(State::Formatted, cause);
        } else {
            self.unverified(cause);
            self.attachment.suspect_since = Some(self.now.boot);
        }
    }

    /// `waits`: time changes something else about it.
    fn tick(&mut self, waits: bool) {
        let expired = self.attachment.permit_ends.is_some_and(|end| end <= self.now.boot);
        if self.record.state == State::Permitted && expired && self.has_settled() {
            self.permit_settled();
            self.probe();
        } else if self.record.state == State::Permitted && expired {
            self.permit_ended("the permit expired unused");
            self.probe();
        } else if waits {
            self.probe();
        }
    }
}

/// How the ids of plain mappings of dm-crypt begin, which cryptsetup makes of their names.
const PLAIN_MAPPING: &str = "path:dm/CRYPT-PLAIN-";
/// Why a volume is not armed at once that is known by its place alone.
const STRANGE: &str = "only its place is known, and another volume was or may have been there: armed when it has read blank for the \
     quarantine, or at once by a permit";
/// Why a volume is not armed that goes by another name meanwhile.
const PENDING: &str = "its own identity is not known yet";
/// Why a volume is not armed at once that nobody may have looked after.
const DOUBT: &str =
    "it may have been formatted while no agent saw it: armed again when it has read blank for the quarantine";
/// Why a blank volume is not armed that other nodes may reach, too. The first word is the reason's name.
const NO_CLAIM: &str =
    "store: it reads blank and is armed once the cluster's store has given this node the claim";
/// Why one is not armed at once whose claim was taken over.
const DOUBTED_CLAIM: &str =
    "a node that is gone may have formatted it: armed when it has read blank for the quarantine";
/// Why a volume is not armed that reads blank.
const UNARMED_BY_POLICY: &str = "it reads blank, and is not armed: a policy has nobody format it, or may";
/// In place of the boot in which a volume was armed: no boot has this id.
const UNSEEN: &str = "unseen";
/// Why a volume may be formatted of which a permitted program took away what it held.
const WIPED: &str = "wiped under its permit: it may be formatted until that ends";
/// Why no volume is armed after the database was lost.
const RECORDS_LOST: &str =
    "records were lost (the database was damaged, or missing); permit a format if it is blank";

/// How the cause of an exemption by a policy begins.
const EXEMPT_BY_POLICY: &str = "exempt by policy '";

/// Why a volume is exempt of which no operator said so.
fn exempt_by_policy(name: &str) -> String {
    format!("{EXEMPT_BY_POLICY}{name}'")
}

/// Whether the configuration exempted it, and not an operator.
#[must_use]
pub fn is_exempt_by_policy(record: &Record) -> bool {
    record.state == State::Exempt && record.cause.starts_with(EXEMPT_BY_POLICY)
}

/// Why a partition is exempt of which nobody said so itself.
fn exempt_with(disk: &str) -> String {
    format!("exempt as its disk is, {disk}")
}

/// Whether two probes saw the same formats: ext2, ext3 and ext4 are one, told apart by features that tune2fs
/// and a mount may add, and so is swap space while a hibernation's image lies in it.
fn same_types(one: &Content, other: &Content) -> bool {
    fn families(content: &Content) -> impl Iterator<Item = &str> {
        let family = |name| match name {
            "ext2" | "ext3" | "ext4" => "ext",
            "swsuspend" => "swap",
            other => other,
        };
        content.types.iter().map(String::as_str).map(family)
    }
    families(one).eq(families(other))
}

fn content_of(found: &[Found]) -> Content {
    Content {
        types: found.iter().map(|each| each.name.clone()).collect(),
        uuid: found.iter().find_map(|each| each.uuid.clone()),
        label: found.iter().find_map(|each| each.label.clone()),
    }
}

#[cfg(test)]
mod tests;
