mod policies;
mod raw;

use proptest::prelude::*;

use super::*;

fn record() -> Volume {
    Volume::of(Record::new("dm:uuid-1".into(), "dm".into(), false, 0))
}

fn found(name: &str, uuid: &str) -> Finding {
    Finding::Holds {
        found: vec![Found { name: name.into(), uuid: Some(uuid.into()), label: None, magic_offset: Some(0) }],
        marks: vec![Mark { offset: 0, kind: crate::volume::marks::MarkKind::Magic, bytes: vec![1] }],
        partitions: None,
    }
}

fn formatter() -> Formatter {
    Formatter { pid: 7, started: 1, comm: "mkfs.ext4".into(), exe: None, cgroup: 1, at: 0 }
}

/// A known formatter is let through when it opens the volume.
fn began() -> Event {
    Event::FormatBegan { formatter: formatter(), wrote: Wrote::Nothing }
}

/// One that is none is, when it writes a magic.
fn monitor() -> Formatter {
    Formatter { pid: 9, comm: "qemu-nbd".into(), ..formatter() }
}

fn monitor_began() -> Event {
    Event::FormatBegan { formatter: monitor(), wrote: Wrote::Magic }
}

fn tool() -> Process {
    Process { started: 2, tgid: 8, zero: 0 }
}

/// Both clocks tell the same.
fn clock(at: Seconds) -> Now {
    Now { wall: at, boot: at }
}

fn permit(expires: Seconds) -> Permit {
    Permit { reason: "test".into(), uid: 0, at: 0, expires, used: false }
}

fn blank() -> Event {
    Event::Probed(Ok(Finding::Blank))
}

fn unwritten() -> Event {
    Event::Probed(Ok(Finding::Unwritten))
}

fn holds(name: &str, uuid: &str) -> Event {
    Event::Probed(Ok(found(name, uuid)))
}

/// The record after all events, and every effect on the way.
fn run(mut record: Volume, events: impl IntoIterator<Item = Event>) -> (Volume, Vec<Effect>) {
    let mut all = Vec::new();
    for event in events {
        let (next, effects) = next(&record, event, clock(10));
        record = next;
        all.extend(effects);
    }
    (record, all)
}

fn ended(status: Option<u32>) -> Event {
    Event::FormatEnded { status, wrote: Wrote::Bytes, unseen: false }
}

fn attached() -> Event {
    Event::Attached {
        boot: "boot-1".into(),
        strength: Strength::Strong,
        records_lost: false,
        quarantine: 100,
        raw_content: RawContent::Written,
        claim: Claim::Unneeded,
        diskseq: 5,
    }
}

#[test]
fn two_clean_probes_arm_and_one_does_not() {
    let (once, effects) = run(record(), [attached(), blank()]);
    assert_eq!(once.state, State::Unverified);
    assert_eq!(effects.iter().filter(|effect| **effect == Effect::Probe).count(), 2);
    let (twice, _) = run(once, [blank()]);
    assert_eq!(twice.state, State::Blank);
}

#[test]
fn an_error_between_two_clean_probes_starts_over() {
    let error = Event::Probed(Err(ProbeError::Deadline));
    let (record, _) = run(record(), [attached(), blank(), error, blank()]);
    assert_eq!(record.state, State::Unverified);
}

#[test]
fn what_a_probe_could_not_settle_is_probed_again() {
    let probes = |record: &Volume| next(record, Event::Tick, clock(10)).1.contains(&Effect::Probe);
    let error = || Event::Probed(Err(ProbeError::Read("EIO".into())));
    assert!(probes(&run(record(), [attached(), error()]).0), "a data path that comes back sends no uevent");
    let formatted = run(record(), [holds("ext4", "a")]).0;
    assert!(!probes(&formatted));
    assert!(probes(&run(formatted, [error()]).0));
    let blank = run(record(), [attached(), blank(), blank()]).0;
    assert!(!probes(&blank));
    let formatting = run(blank, [began()]).0;
    assert!(!probes(&formatting));
    assert!(probes(&run(formatting, [ended(Some(0)), error()]).0));
}

#[test]
fn an_armed_volume_is_not_trusted_when_it_is_attached_again() {
    let (record, _) = run(record(), [attached(), blank(), blank(), attached()]);
    assert_eq!((record.state, record.attachment.clean_passes), (State::Unverified, 0));
}

fn attached_in(boot: &str) -> Event {
    Event::Attached {
        boot: boot.into(),
        strength: Strength::Strong,
        records_lost: false,
        quarantine: 100,
        raw_content: RawContent::Written,
        claim: Claim::Unneeded,
        diskseq: 5,
    }
}

/// The record after one event at a time.
fn at(record: &Volume, event: Event, now: Seconds) -> Volume {
    next(record, event, clock(now)).0
}

#[test]
fn what_was_armed_when_the_host_went_down_must_read_blank_for_the_quarantine() {
    let (armed, _) = run(record(), [attached(), blank(), blank()]);
    assert_eq!(armed.armed.as_deref(), Some("boot-1"));
    let (doubted, _) = run(armed.clone(), [attached_in("boot-2"), blank(), blank(), blank()]);
    assert_eq!(doubted.state, State::Unverified);
    assert!(waits(&doubted, clock(10)) && doubted.cause.contains("quarantine"), "{}", doubted.cause);
    assert_eq!(at(&doubted, blank(), 109).state, State::Unverified);
    assert_eq!(at(&doubted, blank(), 110).state, State::Blank);
    // It must read blank all the time.
    let error = at(&doubted, Event::Probed(Err(ProbeError::Deadline)), 100);
    let later = at(&at(&error, blank(), 111), blank(), 112);
    assert_eq!(later.state, State::Unverified);
    assert_eq!(at(&later, blank(), 200).state, State::Blank);
    // Detached and attached in the second boot, it is as doubtful.
    let again = at(&at(&doubted, Event::Disarmed, 20), attached_in("boot-2"), 30);
    assert_eq!(at(&at(&again, blank(), 31), blank(), 32).state, State::Unverified);
    // Closed before the host went down, it is not.
    let (closed, _) = run(armed, [Event::Disarmed, attached_in("boot-2"), blank(), blank()]);
    assert_eq!(closed.state, State::Blank);
}

#[test]
fn a_format_that_ended_well_is_there_however_blank_it_reads() {
    let begun = [attached(), blank(), blank(), began()];
    let (complete, _) = run(record(), begun.clone().into_iter().chain([ended(Some(0)), blank(), blank()]));
    assert_eq!(complete.state, State::Formatted);
    assert!(complete.discrepancy.is_some());
    assert_eq!(at(&complete, holds("ext4", "a"), 9).content.as_ref().map(Content::name), Some("ext4"));
    // One reading may be older than the end of the format.
    let (once, _) =
        run(record(), begun.clone().into_iter().chain([ended(Some(0)), blank(), holds("ext4", "a")]));
    assert_eq!(
        (once.state, &once.discrepancy, &*once.cause),
        (State::Formatted, &None, "formatted by mkfs.ext4")
    );
    // One that wrote nothing has left nothing.
    let untouched = Event::FormatEnded { status: Some(0), wrote: Wrote::Nothing, unseen: false };
    assert_eq!(run(record(), begun.into_iter().chain([untouched, blank(), blank()])).0.state, State::Blank);
}

#[test]
fn a_permit_ends_with_the_boot_in_which_it_could_be_used() {
    let permitted = [attached(), holds("ext4", "a"), Event::Permitted(permit(1000))];
    let (record, _) = run(record(), permitted);
    assert_eq!((record.state, record.armed.as_deref()), (State::Permitted, Some("boot-1")));
    let (restarted, _) = run(record.clone(), [attached()]);
    assert_eq!(restarted.state, State::Permitted);
    let (later, _) = run(record.clone(), [attached_in("boot-2")]);
    assert_eq!((later.state, later.record.permit), (State::Formatted, None));
    let (closed, _) = run(record, [Event::Disarmed, attached_in("boot-2")]);
    assert_eq!((closed.state, closed.armed.as_deref()), (State::Permitted, Some("boot-2")));
}

#[test]
fn a_first_format_is_recorded_with_its_marks() {
    let events = [blank(), blank(), began(), ended(Some(0)), holds("ext4", "a")];
    let (record, effects) = run(record(), events);
    assert_eq!(record.state, State::Formatted);
    assert_eq!(record.content.as_ref().map(Content::name), Some("ext4"));
    assert!(!record.marks.is_empty());
    assert!(effects.contains(&Effect::ReleaseOwner));
}

#[test]
fn a_first_format_that_failed_may_be_tried_again_unless_it_was_mounted() {
    let begun = [blank(), blank(), began()];
    let failed = [ended(Some(256)), holds("ext4", "a")];
    let (again, _) = run(record(), begun.clone().into_iter().chain(failed.clone()));
    assert_eq!(again.state, State::Blank);
    let mounted = begun.into_iter().chain([Event::Mounted]).chain(failed);
    assert_eq!(run(record(), mounted).0.state, State::Formatted);
}

/// What it found in the way is not what it has left.
#[test]
fn a_formatter_that_failed_and_wrote_nothing_leaves_what_a_probe_finds() {
    let nothing = Event::FormatEnded { status: Some(256), wrote: Wrote::Nothing, unseen: false };
    let begun = [attached(), blank(), blank(), began(), nothing.clone()];
    let (found, _) = run(record(), begun.clone().into_iter().chain([holds("ext4", "old")]));
    assert_eq!((found.state, found.marks.is_empty()), (State::Formatted, false));
    assert_eq!(run(record(), begun.into_iter().chain([blank(), blank()])).0.state, State::Blank);
    // Nor under a permit for a volume that could never be read.
    let error = Event::Probed(Err(ProbeError::Read("EIO".into())));
    let permitted =
        [attached(), error, Event::Permitted(permit(1000)), began(), nothing, holds("ext4", "old")];
    let (failed, _) = run(record(), permitted);
    assert_eq!(next(&failed, Event::Tick, clock(1000)).0.state, State::Formatted);
}

#[test]
fn a_failed_writer_over_which_the_volume_reads_blank_begins_the_quarantine() {
    for status in [Some(256), Some(9), None] {
        let (failed, _) =
            run(record(), [attached(), blank(), blank(), began(), ended(status), blank(), blank()]);
        assert_ne!(failed.state, State::Blank, "{status:?}");
        assert!(waits(&failed, clock(10)));
        assert_eq!(at(&failed, blank(), 109).state, State::Formatting, "{status:?}");
        assert_eq!(at(&failed, blank(), 110).state, State::Blank, "{status:?}");
    }
}

/// What is used without a mount (memory is swapped to it, volumes lie on it) is remembered whatever became of
/// its formatter.
#[test]
fn what_is_in_use_without_a_mount_is_no_half_of_a_format() {
    for name in ["LVM2_member", "crypto_LUKS", "linux_raid_member", "swap", "gpt"] {
        let events = [attached(), blank(), blank(), began(), ended(Some(256)), holds(name, "a")];
        assert_eq!(run(record(), events).0.state, State::Formatted, "{name}");
    }
}

#[test]
fn what_a_failed_first_format_has_left_stays_as_good_as_blank() {
    let (failed, _) =
        run(record(), [attached(), blank(), blank(), began(), ended(Some(9)), holds("ext4", "half")]);
    assert_eq!(failed.state, State::Blank);
    // udevd tells of the close, and it is probed again.
    assert_eq!(run(failed.clone(), [holds("ext4", "half")]).0.state, State::Blank);
    assert_eq!(run(failed.clone(), [holds("ext4", "other")]).0.state, State::Formatted);
    assert_eq!(
        run(failed, [attached(), holds("ext4", "half")]).0.state,
        State::Formatted,
        "nobody remembers it then"
    );
}

#[test]
fn a_magic_of_one_that_is_no_formatter_is_recorded_while_it_lives() {
    let (running, _) = run(record(), [attached(), blank(), blank(), monitor_began()]);
    assert!(waits(&running, clock(10)) && is_held(&running) && running.ever_formatted);
    let (settled, effects) = run(running, [holds("gpt", "a")]);
    assert_eq!(
        (settled.state, settled.attachment.is_running(), settled.marks.is_empty()),
        (State::Formatted, true, false)
    );
    assert!(!effects.contains(&Effect::ReleaseOwner), "it goes on");
    // What its guest makes of the disk meanwhile is followed, and not taken back by a reading of zeros.
    let (followed, _) = run(settled.clone(), [holds("gpt", "b"), blank()]);
    assert_eq!(followed.content.as_ref().and_then(|content| content.uuid.as_deref()), Some("b"));
    assert!(followed.discrepancy.is_some());
    // Killed while the storage reads zeros, thirty days later.
    for status in [Some(9), Some(0), None] {
        let (killed, effects) = run(followed.clone(), [ended(status), blank(), blank(), blank()]);
        assert_eq!((killed.state, killed.attachment.is_running()), (State::Formatted, false), "{status:?}");
        assert!(effects.contains(&Effect::ReleaseOwner));
        let (back, _) = run(killed, [Event::Disarmed, attached_in("boot-2"), blank(), blank()]);
        assert_eq!(back.state, State::Formatted);
    }
    // What it left is read once more, and then nothing is followed.
    let (last, _) = run(settled, [ended(Some(0)), holds("gpt", "c"), holds("gpt", "d")]);
    assert_eq!(last.content.as_ref().and_then(|content| content.uuid.as_deref()), Some("c"));
    assert!(last.discrepancy.is_some());
}

#[test]
fn a_magic_of_one_that_is_no_formatter_is_remembered_though_no_probe_saw_it() {
    for status in [Some(9), Some(256), Some(0), None] {
        let begun = [attached(), blank(), blank(), monitor_began(), ended(status)];
        let (zeros, _) = run(record(), begun.clone().into_iter().chain([blank(), blank(), blank()]));
        assert_eq!(zeros.state, State::Formatted, "{status:?}");
        assert!(zeros.discrepancy.is_some());
        let (half, _) = run(record(), begun.into_iter().chain([holds("gpt", "a")]));
        assert_eq!(half.state, State::Formatted, "{status:?}");
    }
    // The host goes down with it.
    let crashed = [attached(), blank(), blank(), monitor_began()];
    let mut stored = run(record(), crashed).0;
    stored.attachment.progress = Progress::Past;
    let (later, _) = run(stored, [attached_in("boot-2"), blank(), blank(), blank()]);
    assert_eq!(later.state, State::Formatted);
}

#[test]
fn one_that_is_no_formatter_goes_on_after_a_restart_of_the_agent() {
    let (mut settled, _) = run(record(), [attached(), blank(), blank(), monitor_began(), holds("gpt", "a")]);
    settled.attachment.progress = Progress::Past;
    assert!(is_untold(&settled, monitor().process()));
    assert!(!is_untold(&settled, formatter().process()), "nobody else does");
    let (again, _) = run(settled.clone(), [monitor_began(), attached()]);
    assert_eq!((again.state, again.attachment.is_running()), (State::Formatted, true));
    // A format that is told late is let do no more than others, and is not left in another one's way.
    let (late, effects) = run(settled, [began()]);
    assert_eq!((late.state, late.attachment.is_running()), (State::Formatted, false));
    assert!(effects.contains(&Effect::ReleaseOwner));
}

#[test]
fn a_format_whose_end_nobody_saw_is_taken_for_complete() {
    let events = [blank(), blank(), began(), ended(None), holds("xfs", "a")];
    assert_eq!(run(record(), events).0.state, State::Formatted);
}

#[test]
fn a_recorded_volume_that_reads_blank_or_wrong_or_not_at_all_stays_formatted() {
    let (formatted, _) = run(record(), [holds("ext4", "a")]);
    for event in [blank(), holds("crypto_LUKS", "b"), Event::Probed(Err(ProbeError::Read("EIO".into())))] {
        let (after, effects) = run(formatted.clone(), [event.clone(), event.clone(), event]);
        assert_eq!(after.state, State::Formatted);
        assert_eq!((&after.content, &after.marks), (&formatted.content, &formatted.marks));
        let reports = effects.iter().filter(|effect| matches!(effect, Effect::Report(_))).count();
        assert_eq!(reports, 1, "one discrepancy, told once: {effects:?}");
        let (back, _) = run(after, [holds("ext4", "a")]);
        assert_eq!(back.discrepancy, None);
    }
}

#[test]
fn a_journal_makes_no_other_file_system_of_it() {
    let (formatted, _) = run(record(), [holds("ext2", "a"), holds("ext3", "a"), holds("ext4", "a")]);
    assert_eq!(formatted.discrepancy, None);
    assert_eq!(formatted.content.as_ref().map(Content::name), Some("ext4"));
    assert!(run(formatted, [holds("exfat", "a")]).0.discrepancy.is_some());
}

#[test]
fn a_mark_that_is_missing_is_kept_and_one_that_has_moved_is_followed() {
    let mark = |offset| Mark { offset, kind: crate::volume::marks::MarkKind::Magic, bytes: vec![1, 2] };
    let reads = |offsets: &[u64]| {
        let found = vec![Found { name: "gpt".into(), uuid: None, label: None, magic_offset: None }];
        Event::Probed(Ok(Finding::Holds {
            found,
            marks: offsets.iter().copied().map(mark).collect(),
            partitions: None,
        }))
    };
    let (recorded, _) = run(record(), [reads(&[512, 9000])]);
    let offsets = |record: &Volume| record.marks.iter().map(|mark| mark.offset).collect::<Vec<_>>();
    assert_eq!(offsets(&run(recorded.clone(), [reads(&[512])]).0), [512, 9000]);
    assert_eq!(offsets(&run(recorded, [reads(&[512, 20_000])]).0), [512, 20_000]);
}

/// One that was given on an ext4 at this moment, and what came next.
fn permitted(events: impl IntoIterator<Item = Event>) -> Volume {
    let (permitted, _) = run(record(), [attached(), holds("ext4", "a"), Event::Permitted(permit(1000))]);
    run(permitted, events).0
}

#[test]
fn a_permit_that_nobody_uses_expires() {
    let permitted = permitted([]);
    assert_eq!(permitted.state, State::Permitted);
    let (expired, effects) = next(&permitted, Event::Tick, clock(1000));
    assert_eq!((expired.state, &expired.permit), (State::Formatted, &None));
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Report(report) if report.kind == "permit-expired"))
    );
    assert_eq!(next(&permitted, Event::Tick, clock(999)).0.state, State::Permitted);
}

/// What one job does until that has settled: `wipefs` and then `mkfs`, or the other way round, or a first try
/// that failed.
#[test]
fn a_permit_is_for_one_job_and_ends_when_that_has_settled() {
    let at = |record: &Volume, event, at| next(record, event, clock(at)).0;
    let formatted = permitted([began(), ended(Some(0)), holds("xfs", "b")]);
    assert_eq!(formatted.state, State::Permitted, "the job may go on");
    assert_eq!(formatted.content.as_ref().map(Content::name), Some("xfs"));
    assert_eq!(at(&formatted, Event::Tick, 19).state, State::Permitted);
    let settled = at(&formatted, Event::Tick, 20);
    assert_eq!((settled.state, &settled.permit), (State::Formatted, &None));
    assert_eq!(settled.content.as_ref().map(Content::name), Some("xfs"));
    let mounted = at(&formatted, Event::Mounted, 11);
    assert_eq!((mounted.state, &mounted.permit), (State::Formatted, &None), "it is in use");

    let wiped = [Event::OwnerWiped(tool()), blank(), Event::ToolEnded, blank(), blank()];
    let wiped_then = run(formatted, wiped.clone()).0;
    assert_eq!((wiped_then.state, wiped_then.content.is_some()), (State::Permitted, false));

    let wiped = permitted(wiped);
    assert_eq!(
        (wiped.state, wiped.content.is_some(), wiped.discrepancy.is_some()),
        (State::Permitted, false, false)
    );
    assert_eq!(at(&wiped, Event::Tick, 999).state, State::Permitted, "nothing is there that could settle");
    let (then, _) = run(wiped.clone(), [began(), ended(Some(0)), holds("xfs", "b")]);
    assert_eq!(at(&then, Event::Tick, 20).content.as_ref().map(Content::name), Some("xfs"));
    // What was wiped is not what is remembered; but nobody knows for sure.
    let expired = at(&wiped, Event::Tick, 1000);
    assert_eq!((expired.state, expired.attachment.suspect_since), (State::Unverified, Some(1000)));

    let failed = permitted([began(), ended(Some(256)), holds("xfs", "b")]);
    assert_eq!(at(&failed, Event::Tick, 999).state, State::Permitted, "it may be tried again");
    let nothing = Event::FormatEnded { status: Some(256), wrote: Wrote::Nothing, unseen: false };
    let declined = permitted([began(), nothing, holds("ext4", "a")]);
    assert_eq!(at(&declined, Event::Tick, 999).state, State::Permitted);
    assert_eq!(declined.content.as_ref().map(Content::name), Some("ext4"));
}

#[test]
fn a_permit_that_is_revoked_leaves_what_was_recorded() {
    let revoked = || Event::Revoked { reason: "the wrong disk".into(), uid: 0 };
    let unused = permitted([revoked()]);
    assert_eq!((unused.state, &unused.permit), (State::Formatted, &None));
    assert_eq!(unused.content.as_ref().map(Content::name), Some("ext4"));
    let begun = permitted([began(), revoked()]);
    assert_eq!((begun.state, &begun.permit), (State::Formatting, &None), "it goes on");
    assert_eq!(run(begun, [ended(Some(0)), holds("xfs", "b")]).0.state, State::Formatted);
    let made = permitted([began(), ended(Some(0)), holds("xfs", "b"), revoked()]);
    assert_eq!((made.state, made.content.as_ref().map(Content::name)), (State::Formatted, Some("xfs")));
    let wiped = permitted([Event::OwnerWiped(tool()), Event::ToolEnded, blank(), blank(), revoked()]);
    assert_eq!((wiped.state, wiped.attachment.suspect_since), (State::Unverified, Some(10)));
}

/// The storage may have failed behind it.
#[test]
fn a_permitted_format_that_ended_well_and_reads_blank_is_not_taken_for_wiped() {
    let lost = permitted([began(), ended(Some(0)), blank(), blank()]);
    assert_eq!((lost.state, lost.content.as_ref().map(Content::name)), (State::Permitted, Some("ext4")));
    let (settled, _) = next(&lost, Event::Tick, clock(1000));
    assert_eq!(settled.state, State::Formatted);
}

/// The device is detached, or the agent that saw it is not there any more.
#[test]
fn a_job_ends_with_its_attachment() {
    let formatted = permitted([began(), ended(Some(0)), holds("xfs", "b"), Event::Disarmed, attached()]);
    assert_eq!((formatted.state, &formatted.permit), (State::Formatted, &None));
    let begun = permitted([began(), ended(Some(0)), Event::Disarmed, attached(), holds("xfs", "b")]);
    assert_eq!((begun.state, &begun.permit), (State::Formatted, &None));
    let unused = permitted([Event::Disarmed, attached()]);
    assert_eq!(unused.state, State::Permitted);
}

#[test]
fn a_permit_ends_with_its_boot_also_while_its_job_goes_on() {
    // Whether it still runs is not on disk.
    let mut begun = permitted([began()]);
    begun.attachment.progress = Progress::Past;
    let (later, _) = run(begun, [attached_in("boot-2"), holds("xfs", "b")]);
    assert_eq!((later.state, later.record.permit), (State::Formatted, None));
}

/// A host whose clock is set while it runs (no battery, a virtual machine, NTP after the boot).
#[test]
fn what_lasts_is_measured_by_the_clock_that_nobody_sets() {
    let then = |record: &Volume, event, wall, boot| next(record, event, Now { wall, boot }).0;
    for wall in [-1_000_000, 1_000_000] {
        // The quarantine.
        let failed = [attached(), blank(), blank(), began(), ended(Some(256)), blank()];
        let (failed, _) = run(record(), failed);
        assert_eq!(then(&failed, blank(), wall, 109).state, State::Formatting);
        assert_eq!(then(&failed, blank(), wall, 110).state, State::Blank);
        // A permit.
        let (permitted, _) = run(record(), [attached(), holds("ext4", "a"), Event::Permitted(permit(110))]);
        assert_eq!(then(&permitted, Event::Tick, wall, 109).state, State::Permitted);
        assert_eq!(then(&permitted, Event::Tick, wall, 110).state, State::Formatted);
        // A new logical volume.
        let mut volume = record();
        (volume.id, volume.attachment.unrecorded_past) = ("dm:LVM-abc".into(), true);
        let new = then(&volume, attached(), 0, 10);
        assert_eq!(then(&new, holds("ext4", "a"), wall, 19).state, State::Unverified);
        assert_eq!(then(&new, holds("ext4", "a"), wall, 20).state, State::Formatted);
    }
}

/// Where its boot is over only the wall clock tells how much of it is left, and it may have been set.
#[test]
fn a_permit_outlives_a_boot_by_the_shorter_of_both_clocks() {
    let permitted = [attached(), holds("ext4", "a"), Event::Permitted(permit(1000)), Event::Disarmed];
    let (mut stored, _) = run(record(), permitted);
    stored.attachment.permit_ends = None;
    let later =
        |wall, boot| next(&stored, attached_in("boot-2"), Now { wall, boot }).0.attachment.permit_ends;
    assert_eq!(later(900, 50), Some(150), "100 seconds are left");
    assert_eq!(later(5000, 50), Some(50), "none");
    assert_eq!(later(-5000, 50), Some(1050), "never more than it was given for");
}

#[test]
fn an_armed_volume_is_looked_at_again_at_a_slow_pace() {
    let (armed, _) = run(record(), [attached(), blank(), blank()]);
    assert!(!waits(&armed, clock(10 + PACE - 1)));
    assert!(next(&armed, Event::Tick, clock(10 + PACE)).1.contains(&Effect::Probe));
    assert_eq!(at(&armed, holds("ext4", "a"), 10 + PACE).state, State::Formatted);
    let looked = at(&armed, blank(), 10 + PACE);
    assert!(looked.state == State::Blank && !waits(&looked, clock(10 + PACE)));
    // And what a monitor has in its hands, as its guest may format it anew.
    let (held, _) = run(record(), [attached(), blank(), blank(), monitor_began(), holds("gpt", "a")]);
    assert!(!waits(&held, clock(11)) && waits(&held, clock(10 + PACE)));
}

#[test]
fn a_format_that_is_let_through_in_audit_is_what_the_volume_holds_from_then_on() {
    let mkfs = || Formatter { pid: 12, comm: "mkfs.xfs".into(), ..formatter() };
    let (formatted, _) = run(record(), [attached(), holds("ext4", "a")]);
    // What lies there half-way is neither followed nor told.
    let (at_work, effects) =
        run(formatted.clone(), [Event::LetThrough(mkfs()), blank(), holds("xfs", "half")]);
    assert_eq!((at_work.content.as_ref().map(Content::name), &at_work.discrepancy), (Some("ext4"), &None));
    assert!(effects.is_empty(), "{effects:?}");
    let (after, effects) = run(at_work.clone(), [Event::ToolEnded, holds("xfs", "b")]);
    assert_eq!((after.state, after.content.as_ref().map(Content::name)), (State::Formatted, Some("xfs")));
    assert_eq!((&after.discrepancy, after.formatter.as_ref().map(|by| by.pid)), (&None, Some(12)));
    let told = |effect: &Effect| matches!(effect, Effect::Report(report) if report.text.contains("would have been refused"));
    assert!(effects.iter().any(told), "{effects:?}");
    // Only once, and nothing that comes of nobody.
    assert!(run(after, [holds("ext4", "c")]).0.discrepancy.is_some());
    assert!(run(formatted, [holds("xfs", "b")]).0.discrepancy.is_some());
    // A wipe leaves what is recorded, until a format takes its place.
    let (wiped, _) = run(at_work, [Event::ToolEnded, blank()]);
    assert_eq!((wiped.state, wiped.discrepancy.is_some()), (State::Formatted, true));
    assert_eq!(run(wiped, [holds("xfs", "b")]).0.content.as_ref().map(Content::name), Some("xfs"));
}

/// Where neither ends nor mounts are told it may have ended well, and hold data.
#[test]
fn a_format_whose_end_cannot_be_seen_is_there_however_blank_it_reads() {
    let begun = [attached(), blank(), blank(), began()];
    let unseen = Event::FormatEnded { status: None, wrote: Wrote::Bytes, unseen: true };
    let (record, _) =
        run(record(), begun.into_iter().chain([unseen, Event::Disarmed, attached(), blank(), blank()]));
    assert_eq!((record.state, record.discrepancy.is_some()), (State::Formatted, true));
}

/// Attached by its place alone, in this boot and under this number.
fn weakly(boot: &str, diskseq: u64) -> Event {
    Event::Attached {
        boot: boot.into(),
        strength: Strength::Weak,
        records_lost: false,
        quarantine: 100,
        raw_content: RawContent::Written,
        claim: Claim::Unneeded,
        diskseq,
    }
}

#[test]
fn what_was_at_a_place_in_an_earlier_boot_must_read_blank_for_the_quarantine() {
    let (armed, _) = run(record(), [weakly("boot-1", 5), blank(), blank()]);
    assert_eq!((armed.state, armed.weak), (State::Blank, true));
    let (later, _) = run(armed, [weakly("boot-2", 5), blank(), blank(), blank()]);
    assert_eq!(later.state, State::Unverified);
    assert!(later.cause.contains("quarantine"), "{}", later.cause);
    let restarted = at(&at(&later, weakly("boot-2", 5), 60), blank(), 61);
    assert_eq!(
        at(&restarted, blank(), 111).state,
        State::Unverified,
        "a restart of the agent begins it anew"
    );
    assert_eq!(at(&restarted, blank(), 160).state, State::Blank);
    let (permitted, _) = run(later, [Event::Permitted(permit(1000))]);
    assert_eq!(permitted.state, State::Permitted, "or at once");
}

#[test]
fn another_medium_at_a_place_is_another_volume() {
    let (first, _) = run(record(), [weakly("boot-1", 5), holds("ext4", "a"), Event::Detached]);
    // The same one comes back.
    let (same, effects) = run(first.clone(), [weakly("boot-1", 6), holds("ext4", "a")]);
    assert_eq!(
        (same.state, same.medium.as_deref(), same.attachment.unconfirmed.as_ref()),
        (State::Formatted, Some("boot-1/6"), None)
    );
    assert!(
        !effects
            .iter()
            .any(|effect| matches!(effect, Effect::Report(report) if report.kind == "another-medium"))
    );
    // One that holds something else.
    let (other, effects) = run(first.clone(), [weakly("boot-1", 6), holds("xfs", "b")]);
    assert_eq!((other.state, other.discrepancy.as_ref()), (State::Formatted, None));
    assert_eq!(other.content.as_ref().map(Content::name), Some("xfs"));
    assert!(
        effects
            .iter()
            .any(|effect| matches!(effect, Effect::Report(report) if report.kind == "another-medium"))
    );
    // And then it is known: what reads otherwise in this attachment is a discrepancy.
    assert!(run(other, [holds("ext4", "a")]).0.discrepancy.is_some());
    // One that reads blank stays what it was for the quarantine.
    let (blank_now, _) = run(first.clone(), [weakly("boot-1", 6), blank(), blank(), blank()]);
    assert_eq!((blank_now.state, blank_now.marks.is_empty()), (State::Formatted, false));
    assert!(blank_now.discrepancy.is_some() && waits(&blank_now, clock(10)));
    assert_eq!(at(&blank_now, holds("ext4", "a"), 50).discrepancy, None, "it was it after all");
    let unread = at(&blank_now, Event::Probed(Err(ProbeError::Deadline)), 109);
    assert_eq!(at(&at(&unread, blank(), 111), blank(), 112).state, State::Formatted, "all the time");
    let emptied = at(&blank_now, blank(), 110);
    assert_eq!(
        (emptied.state, emptied.content.as_ref(), emptied.ever_formatted),
        (State::Blank, None, false)
    );
    assert_eq!(emptied.medium.as_deref(), Some("boot-1/6"));
    // The place is one of which nothing is taken at its first word any more.
    let next_one = run(emptied, [Event::Detached, weakly("boot-1", 7), blank(), blank()]).0;
    assert_eq!(next_one.state, State::Unverified);
    // A mount proves what it is.
    let (mounted, _) = run(first.clone(), [weakly("boot-1", 6), Event::Mounted, blank(), blank()]);
    assert_eq!(at(&mounted, blank(), 500).state, State::Formatted);
    // Of one attachment nothing becomes another one, and neither does what has a name of its own.
    let (restarted, _) =
        run(record(), [weakly("boot-1", 5), holds("ext4", "a"), weakly("boot-1", 5), blank(), blank()]);
    assert_eq!(at(&restarted, blank(), 500).state, State::Formatted);
    let (strong, _) =
        run(record(), [attached(), holds("ext4", "a"), Event::Detached, attached_in("boot-2"), blank()]);
    assert_eq!(at(&strong, blank(), 500).state, State::Formatted);
    // A medium of which an earlier version has told stays the one that it was as long as the host runs.
    let mut earlier = first;
    earlier.record.medium = None;
    let (earlier, _) = run(earlier, [weakly("boot-1", 5), blank(), blank()]);
    assert_eq!(at(&earlier, blank(), 500).state, State::Formatted);
}

#[test]
fn what_an_operator_allows_at_a_place_ends_with_the_attachment() {
    let exempt = Event::Exempted { reason: "vm".into(), uid: 0 };
    let (exempted, _) = run(record(), [weakly("boot-1", 5), holds("ext4", "a"), exempt, weakly("boot-1", 5)]);
    assert_eq!(exempted.state, State::Exempt, "a restart of the agent");
    for next_one in [weakly("boot-1", 6), weakly("boot-2", 5)] {
        assert_eq!(run(exempted.clone(), [Event::Detached, next_one]).0.state, State::Formatted);
    }
    let exempt = Event::Exempted { reason: "vm".into(), uid: 0 };
    let (never, _) = run(record(), [weakly("boot-1", 5), exempt, Event::Detached, weakly("boot-1", 6)]);
    assert_eq!(never.state, State::Unverified);
    let permitted = [weakly("boot-1", 5), holds("ext4", "a"), Event::Permitted(permit(1000))];
    let (permitted, _) = run(record(), permitted);
    let (ended, _) = run(permitted, [Event::Detached, weakly("boot-1", 6)]);
    assert_eq!((ended.state, ended.record.permit), (State::Formatted, None));
}

#[test]
fn swap_space_on_a_plain_mapping_is_forgotten_when_it_is_opened_anew() {
    let mut plain = record();
    plain.record.id = "path:dm/CRYPT-PLAIN-swap".into();
    let noise = || raw::raw("noise");
    let (first, _) = run(
        plain.clone(),
        [weakly("boot-1", 5), noise(), noise(), began(), ended(Some(0)), holds("swap", "a")],
    );
    assert_eq!(first.state, State::Formatted);
    let (again, _) = run(first.clone(), [Event::Detached, weakly("boot-1", 6)]);
    assert_eq!(again.state, State::Unverified);
    let (again, _) = run(again, [noise(), noise()]);
    assert_eq!(again.state, State::Blank, "with another key it is noise");
    let (same, _) = run(first, [Event::Detached, weakly("boot-2", 6), holds("swap", "a")]);
    assert_eq!(same.state, State::Formatted, "with the same key it is what it was");
    // What is no swap space is not given up so, and neither is what lies over something else.
    let (data, _) = run(
        plain.clone(),
        [weakly("boot-1", 5), holds("ext4", "a"), Event::Detached, weakly("boot-1", 6), noise(), noise()],
    );
    assert_eq!(data.state, State::Formatted);
    let over = [
        weakly("boot-1", 5),
        holds("swap", "a"),
        Event::Detached,
        weakly("boot-1", 6),
        overlaid(false),
        noise(),
        noise(),
        noise(),
    ];
    assert_eq!(run(plain, over).0.state, State::Unverified);
}

#[test]
fn what_nothing_is_stored_of_any_more_is_a_new_volume_where_nothing_happened_since_it_was_attached() {
    let recorded = || run(record(), [attached(), holds("ext4", "a"), Event::Disarmed]).0;
    let (once, _) = run(recorded(), [attached(), unwritten()]);
    assert_eq!((once.state, once.record.discrepancy.is_some()), (State::Formatted, false));
    let (cut, effects) = run(once.clone(), [unwritten()]);
    assert_eq!((cut.state, &cut.content, cut.ever_formatted), (State::Unverified, &None, false));
    assert!(cut.cause.contains("ext4") && cut.marks.is_empty(), "{}", cut.cause);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Report(Report { kind: "unwritten", .. }))));
    assert_eq!(run(cut.clone(), [blank()]).0.state, State::Blank, "zeros, twice more");
    assert_eq!(run(cut, [holds("xfs", "b")]).0.state, State::Formatted);
    // Whatever has happened meanwhile may come back to the file.
    for between in [
        Event::Mounted,
        began(),
        Event::ToolEnded,
        blank(),
        Event::Probed(Err(ProbeError::Deadline)),
        holds("ext4", "a"),
    ] {
        let (kept, _) = run(once.clone(), [between.clone(), unwritten(), unwritten(), unwritten()]);
        assert_eq!(kept.state, State::Formatted, "{between:?}");
    }
    let (late, _) = run(recorded(), [unwritten(), unwritten(), unwritten()]);
    assert_eq!(late.state, State::Formatted, "it is attached all the while");
    let (below, _) = run(recorded(), [attached(), overlaid(false), unwritten(), unwritten(), unwritten()]);
    assert_eq!(below.state, State::Formatted);
    // Time alone changes nothing.
    assert_eq!(run(once, [Event::Tick, unwritten(), unwritten()]).0.state, State::Blank);
    // Where other nodes may have it, too, their word is asked for.
    let (shared, _) = run(recorded(), [attached_among_others(), unwritten(), unwritten(), unwritten()]);
    assert_eq!((shared.state, shared.wants_claim()), (State::Unverified, true));
}

#[test]
fn a_volume_whose_identity_is_pending_is_never_armed() {
    let pending = Event::Attached {
        boot: "boot-1".into(),
        strength: Strength::Pending,
        records_lost: false,
        quarantine: 100,
        raw_content: RawContent::Written,
        claim: Claim::Unneeded,
        diskseq: 5,
    };
    assert_eq!(run(record(), [pending, blank(), blank(), blank()]).0.state, State::Unverified);
}

#[test]
fn memory_is_not_guarded() {
    let memory = Event::Attached {
        boot: "boot-1".into(),
        strength: Strength::Memory,
        records_lost: false,
        quarantine: 100,
        raw_content: RawContent::Written,
        claim: Claim::Unneeded,
        diskseq: 5,
    };
    assert_eq!(run(record(), [memory, holds("swap", "a")]).0.state, State::Exempt);
}

fn overlaid(inside: bool) -> Event {
    let overlap = if inside { Overlap::Inside } else { Overlap::Start };
    Event::OverlapChanged(Some(Overlay { by: "dm:other, which holds ext4".into(), overlap }))
}

#[test]
fn what_is_found_inside_of_another_format_is_no_format() {
    let (inside, _) = run(record(), [attached(), overlaid(true), holds("ext4", "a")]);
    assert_eq!(inside.state, State::Unverified);
    assert_eq!(run(inside, [Event::OverlapChanged(None), holds("ext4", "a")]).0.state, State::Formatted);
    assert_eq!(run(record(), [attached(), overlaid(false), holds("ext4", "a")]).0.state, State::Formatted);
    let (recorded, _) = run(record(), [holds("ext4", "a"), overlaid(true), attached(), holds("ext4", "b")]);
    assert_eq!(recorded.state, State::Formatted, "what was recorded is kept");
}

#[test]
fn what_shares_its_bytes_with_a_format_is_not_armed_until_it_no_longer_does() {
    let by = || overlaid(false);
    let (overlaid, effects) = run(record(), [attached(), blank(), blank(), by()]);
    assert_eq!(overlaid.state, State::Unverified);
    assert!(overlaid.cause.contains("dm:other"), "{}", overlaid.cause);
    assert!(effects.iter().any(|effect| matches!(effect, Effect::Report(Report { kind: "overlaid", .. }))));
    assert_eq!(run(overlaid.clone(), [blank(), blank(), blank()]).0.state, State::Unverified);
    assert_eq!(run(overlaid, [Event::OverlapChanged(None), blank(), blank()]).0.state, State::Blank);
}

#[test]
fn what_carries_a_format_is_formatted_and_reads_blank_without_a_discrepancy() {
    let marks = vec![Mark { offset: 4096, kind: crate::volume::marks::MarkKind::Magic, bytes: vec![1] }];
    let carries = Event::UpperFormatSeen { volume: "dm:upper".into(), marks: marks.clone() };
    let (lower, _) = run(record(), [attached(), blank(), blank(), carries, blank(), blank()]);
    assert_eq!((lower.state, &lower.discrepancy), (State::Formatted, &None));
    assert_eq!(lower.marks, marks);
    let (known, _) = run(lower, [holds("ext4", "a"), blank()]);
    assert!(known.discrepancy.is_some(), "once a format was seen there, its absence is told");
}

#[test]
fn an_exempt_volume_stays_exempt_until_an_operator_takes_it_back() {
    let exempt = Event::Exempted { reason: "vm".into(), uid: 0 };
    let (exempt, _) = run(record(), [holds("ext4", "a"), exempt, attached(), blank(), holds("xfs", "b")]);
    assert_eq!(exempt.state, State::Exempt);
    let found = vec![Found { name: "xfs".into(), uuid: None, label: None, magic_offset: Some(0) }];
    let (back, _) = run(exempt, [Event::Adopted { found, marks: Vec::new(), reason: "test".into(), uid: 0 }]);
    assert_eq!(back.state, State::Formatted);
}

#[test]
fn nothing_is_armed_after_the_records_were_lost() {
    let (record, _) = run(
        record(),
        [
            Event::Attached {
                boot: "boot-1".into(),
                strength: Strength::Strong,
                records_lost: true,
                quarantine: 100,
                raw_content: RawContent::Written,
                claim: Claim::Unneeded,
                diskseq: 5,
            },
            blank(),
            blank(),
            blank(),
        ],
    );
    assert_eq!(record.state, State::Unverified);
    assert_eq!(run(record, [holds("ext4", "a")]).0.state, State::Formatted);
}

#[test]
fn a_new_uuid_is_learnt_after_a_relabelling_tool_only() {
    let (formatted, _) = run(record(), [holds("ext4", "a")]);
    let (changed, _) = run(formatted.clone(), [holds("ext4", "b")]);
    assert!(changed.discrepancy.is_some());
    let (relabelled, _) = run(formatted, [Event::Relabelled(tool()), holds("ext4", "b")]);
    assert_eq!(relabelled.record.content.and_then(|content| content.uuid).as_deref(), Some("b"));
}

#[test]
fn a_probe_that_still_read_the_old_uuid_does_not_make_the_new_one_a_discrepancy() {
    let events = [
        holds("ext4", "a"),
        Event::Relabelled(tool()),
        holds("ext4", "a"),
        Event::ToolEnded,
        holds("ext4", "a"),
    ];
    let (record, _) = run(record(), events.into_iter().chain([holds("ext4", "b")]));
    assert_eq!(record.discrepancy, None);
    assert_eq!(record.content.as_ref().and_then(|content| content.uuid.as_deref()), Some("b"));
    let (changed, _) = run(record, [holds("ext4", "c")]);
    assert!(changed.discrepancy.is_some(), "one tool changes it once");
}

#[test]
fn a_structure_that_a_relabelling_tool_gave_up_is_no_mark_any_more() {
    let mark = |offset| Mark { offset, kind: crate::volume::marks::MarkKind::Uuid, bytes: b"SKUL".to_vec() };
    let holds = |marks: Vec<Mark>| {
        Event::Probed(Ok(Finding::Holds {
            found: vec![Found {
                name: "crypto_LUKS".into(),
                uuid: Some("a".into()),
                label: None,
                magic_offset: Some(0),
            }],
            marks,
            partitions: None,
        }))
    };
    let both = || holds(vec![mark(0), mark(0x4000)]);
    let (formatted, _) = run(record(), [both()]);
    let (missing, _) = run(formatted.clone(), [holds(vec![mark(0)])]);
    assert_eq!(missing.marks.len(), 2, "it may be so for the data path's sake");
    let (converted, _) = run(formatted, [Event::Relabelled(tool()), Event::ToolEnded, holds(vec![mark(0)])]);
    assert_eq!((converted.marks.len(), converted.discrepancy.as_ref()), (1, None));
}

#[test]
fn swap_space_with_an_image_of_a_hibernation_is_the_same_swap_space() {
    let (swap, _) = run(record(), [holds("swap", "a"), holds("swsuspend", "a")]);
    assert_eq!((swap.state, swap.discrepancy.as_ref()), (State::Formatted, None));
    let (changed, _) = run(swap, [holds("ext4", "a")]);
    assert!(changed.discrepancy.is_some());
}

#[test]
fn what_a_new_logical_volume_reads_as_is_recorded_once_lvm_can_no_longer_wipe_it() {
    let mut volume = record();
    volume.id = "dm:LVM-abc".into();
    volume.attachment.unrecorded_past = true;
    let at = |record: &Volume, event, now| next(record, event, clock(now)).0;
    let new = at(&at(&volume, attached(), 1), holds("ext4", "old"), 1);
    assert_eq!(new.state, State::Unverified);
    assert!(next(&new, Event::Tick, clock(2)).1.contains(&Effect::Probe));
    let wiped =
        at(&at(&at(&at(&new, Event::OwnerWiped(tool()), 2), Event::ToolEnded, 2), blank(), 2), blank(), 2);
    assert_eq!(wiped.state, State::Blank);
    assert_eq!(at(&new, holds("ext4", "old"), 1 + SETTLING).state, State::Formatted);
    assert_eq!(at(&new, Event::Mounted, 2).state, State::Formatted);
}

/// A record in each state, and what brought it there.
fn samples() -> Vec<(&'static str, Volume)> {
    let armed = || vec![attached(), blank(), blank()];
    let after = |events: Vec<Event>| run(record(), events).0;
    let with = |mut events: Vec<Event>, more: Vec<Event>| {
        events.extend(more);
        after(events)
    };
    vec![
        ("unverified", after(vec![attached()])),
        ("unverified, read blank once", after(vec![attached(), blank()])),
        (
            "unverified, may have been formatted unseen",
            with(armed(), vec![attached_in("boot-2"), blank(), blank()]),
        ),
        ("unverified, its identity is not sure or its record may be lost", {
            let Event::Attached { boot, strength, quarantine, raw_content, claim, .. } = attached() else {
                unreachable!()
            };
            after(vec![Event::Attached {
                boot,
                strength,
                records_lost: true,
                quarantine,
                raw_content,
                claim,
                diskseq: 5,
            }])
        }),
        ("blank", after(armed())),
        ("formatting, by a known formatter", with(armed(), vec![began()])),
        ("formatting, a known formatter ended well", with(armed(), vec![began(), ended(Some(0))])),
        ("formatting, a known formatter wrote and failed", with(armed(), vec![began(), ended(Some(256))])),
        ("formatting, a known formatter failed and wrote nothing", {
            let end = Event::FormatEnded { status: Some(256), wrote: Wrote::Nothing, unseen: false };
            with(armed(), vec![began(), end])
        }),
        ("formatting, the end of a known formatter was not seen", with(armed(), vec![began(), ended(None)])),
        ("formatting, by another that wrote a magic", with(armed(), vec![monitor_began()])),
        (
            "formatting, another that wrote a magic has ended",
            with(armed(), vec![monitor_began(), ended(Some(9))]),
        ),
        ("formatting, by another whose writes are not seen", with(armed(), vec![raw::fills(Wrote::Bytes)])),
        ("formatted", after(vec![attached(), holds("ext4", "a")])),
        (
            "formatted, attached anew, and said to have nothing stored once",
            after(vec![attached(), holds("ext4", "a"), attached(), unwritten()]),
        ),
        ("formatted, raw content", {
            let filled = vec![raw::fills(Wrote::Raw), raw::raw("a"), ended(Some(0)), raw::raw("b")];
            with(armed(), filled)
        }),
        (
            "formatted, and open in the hands of who did it",
            with(armed(), vec![monitor_began(), holds("ext4", "a")]),
        ),
        ("formatted, re-formatted in audit", {
            let through = Event::LetThrough(formatter());
            after(vec![attached(), holds("ext4", "a"), through, Event::ToolEnded])
        }),
        ("permitted", after(vec![attached(), holds("ext4", "a"), Event::Permitted(permit(1000))])),
        ("formatted, known by its place alone, and something else may be there", {
            after(vec![weakly("boot-1", 5), holds("ext4", "a"), Event::Detached, weakly("boot-1", 6)])
        }),
        ("permitted, never read", after(vec![attached(), Event::Permitted(permit(1000))])),
        ("exempt", after(vec![attached(), Event::Exempted { reason: "test".into(), uid: 0 }])),
        ("exempt, by a policy", after(vec![policies::chosen(Action::Exempt), attached()])),
    ]
}

/// What may happen, in words.
fn happenings() -> Vec<(&'static str, Event, Now)> {
    let now = clock(11);
    let found =
        vec![Found { name: "ext4".into(), uuid: Some("a".into()), label: None, magic_offset: Some(1080) }];
    vec![
        ("reads blank", blank(), now),
        ("reads blank after the quarantine", blank(), clock(500)),
        ("reads blank, and nothing is stored of it", unwritten(), now),
        ("reads as no known format, and not as zeros", raw::raw("c"), now),
        ("reads as ext4", holds("ext4", "a"), now),
        ("reads as another ext4", holds("ext4", "b"), now),
        ("reads as LVM2_member", holds("LVM2_member", "c"), now),
        ("cannot be read", Event::Probed(Err(ProbeError::Deadline)), now),
        ("a known formatter is let through", began(), now),
        ("another writes a magic", monitor_began(), now),
        ("another writes bytes that are not zero", raw::fills(Wrote::Raw), now),
        ("another writes unseen", raw::fills(Wrote::Bytes), now),
        ("who formats it ends well", ended(Some(0)), now),
        ("who formats it fails", ended(Some(256)), now),
        ("who formats it ends unseen", ended(None), now),
        ("is mounted", Event::Mounted, now),
        ("is detached", Event::Disarmed, now),
        ("is attached again", attached(), now),
        ("is attached in another boot", attached_in("boot-2"), now),
        ("lies on what holds a format", overlaid(true), now),
        (
            "what lies on it holds a format",
            Event::UpperFormatSeen { volume: "dm:upper".into(), marks: Vec::new() },
            now,
        ),
        ("another node tells of a format", Event::Shared(told(9)), now),
        ("an operator permits a re-format", Event::Permitted(permit(1000)), now),
        ("an operator takes its permit back", Event::Revoked { reason: "a reason".into(), uid: 0 }, now),
        ("its permit's time is over", Event::Tick, clock(5000)),
        (
            "an operator adopts it",
            Event::Adopted { found, marks: Vec::new(), reason: "test".into(), uid: 0 },
            now,
        ),
        ("an operator adopts it as raw content", Event::AdoptedRaw { reason: "test".into(), uid: 0 }, now),
        ("an operator exempts it", Event::Exempted { reason: "a reason".into(), uid: 0 }, now),
        ("a policy exempts it", policies::chosen(Action::Exempt), now),
        ("a policy has nobody format it", policies::chosen(Action::NeverFormat), now),
        ("no policy holds for it any more", policies::none_chosen(), now),
    ]
}

/// `FORMAT_GUARD_WRITE_SCHEMAS=1 cargo test` writes it anew.
#[test]
fn the_page_of_the_book_is_what_the_code_does() {
    use std::fmt::Write;

    let mut text = "# What a record becomes\n\nEvery state of a record, and what may happen to it: which state follows, and the reason that \
         `format-guard volume show`\ngives. What is not listed changes neither. Written by a test, from `transition::next` itself; the quarantine \
         is 100 seconds here.\n"
        .to_owned();
    for (state, record) in samples() {
        let _ = write!(text, "\n## {state}\n\n| what happens | becomes | reason |\n|---|---|---|\n");
        for (what, event, now) in happenings() {
            let (new, _) = next(&record, event, now);
            let reason = match (&new.discrepancy, &record.discrepancy) {
                (Some(text), None) => format!("discrepancy: {text}"),
                (None, Some(_)) => "it reads as recorded again".to_owned(),
                _ => new.cause.clone(),
            };
            if new.state != record.state || new.cause != record.cause || new.discrepancy != record.discrepancy
            {
                let _ = writeln!(text, "| {what} | {} | {reason} |", new.state.name());
            }
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/states.md");
    if std::env::var_os("FORMAT_GUARD_WRITE_SCHEMAS").is_some() {
        std::fs::write(path, &text).expect("written");
    }
    assert!(std::fs::read_to_string(path).unwrap_or_default() == text, "{path} is not what the code does");
}

/// What the kernel may say of a formatter's writes.
fn any_wrote() -> impl Strategy<Value = Wrote> {
    prop_oneof![Just(Wrote::Nothing), Just(Wrote::Bytes), Just(Wrote::Raw), Just(Wrote::Magic)]
}

/// An end of any kind.
fn any_end() -> impl Strategy<Value = Event> {
    let status = prop_oneof![Just(Some(0)), Just(Some(256)), Just(Some(9)), Just(None)];
    (status, any_wrote(), any::<bool>()).prop_map(|(status, wrote, unseen)| Event::FormatEnded {
        status,
        wrote,
        unseen,
    })
}

/// An attachment: of the same medium, or another under a weak name; with records, or after their loss; in
/// either boot.
fn any_attachment() -> impl Strategy<Value = Event> {
    let strength =
        prop_oneof![4 => Just(Strength::Strong), 1 => Just(Strength::Weak), 1 => Just(Strength::Pending)];
    let claim = prop_oneof![3 => Just(Claim::Unneeded), 1 => Just(Claim::Wanted)];
    (any::<bool>(), strength, prop::bool::weighted(0.1), claim, 5_u64..7).prop_map(
        |(first, strength, records_lost, claim, diskseq)| Event::Attached {
            boot: if first { "boot-1" } else { "boot-2" }.into(),
            strength,
            records_lost,
            quarantine: 100,
            raw_content: RawContent::Written,
            claim,
            diskseq,
        },
    )
}

/// One after the other, each at its time: by the clock that runs, and by one that jumps.
fn any_history(length: usize) -> impl Strategy<Value = Vec<(Event, Now)>> {
    let step = (any_event(), prop_oneof![8 => 0_i64..3, 1 => 50_i64..150], -1_000_000_i64..1_000_000);
    prop::collection::vec(step, 0..length).prop_map(|steps| {
        let mut boot = 10;
        let timed = steps.into_iter().map(|(event, passed, wall)| {
            boot += passed;
            (event, Now { wall, boot })
        });
        timed.collect()
    })
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => any_end(),
        2 => any_attachment(),
        1 => Just(Event::Disarmed),
        1 => Just(Event::Detached),
        1 => Just(Event::MissedFormatSuspected),
        2 => Just(monitor_began()),
        1 => Just(Event::FormatBegan { formatter: monitor(), wrote: Wrote::Bytes }),
        1 => Just(raw::fills(Wrote::Raw)),
        1 => Just(holds("gpt", "c")),
        1 => prop_oneof![Just(raw::raw("a")), Just(raw::raw("b"))],
        3 => Just(blank()),
        2 => Just(holds("ext4", "a")),
        1 => Just(holds("xfs", "b")),
        1 => Just(Event::Probed(Err(ProbeError::Read("EIO".into())))),
        1 => Just(Event::Probed(Err(ProbeError::Deadline))),
        2 => Just(attached()),
        1 => Just(Event::Attached { boot: "boot-2".into(), strength: Strength::Strong, records_lost: false, quarantine: 100, raw_content: RawContent::Written, claim: Claim::Unneeded, diskseq: 5 }),
        2 => Just(began()),
        1 => Just(ended(Some(0))),
        1 => Just(ended(Some(256))),
        1 => Just(ended(None)),
        1 => Just(Event::Mounted),
        1 => any::<bool>().prop_map(overlaid),
        1 => Just(Event::OverlapChanged(None)),
        1 => Just(Event::UpperFormatSeen { volume: "dm:upper".into(), marks: Vec::new() }),
        1 => prop_oneof![Just(Mode::Enforce), Just(Mode::Audit), Just(Mode::Strict)]
            .prop_map(|mode| Event::ModeChosen { mode, reason: "test".into(), uid: 0 }),
        1 => Just(Event::Relabelled(tool())),
        1 => Just(Event::OwnerWiped(tool())),
        1 => Just(Event::Revoked { reason: "x".into(), uid: 0 }),
        1 => Just(Event::ToolEnded),
        2 => Just(Event::Tick),
        1 => Just(Event::Attached { boot: "boot-1".into(), strength: Strength::Strong, records_lost: false, quarantine: 100, raw_content: RawContent::Written, claim: Claim::Wanted, diskseq: 5 }),
        1 => any::<bool>().prop_map(|doubted| Event::Claimed { lease: 3, doubted, permit: None }),
        1 => Just(Event::ClaimLost),
        1 => Just(Event::PermitLost),
        1 => (1_u64..4).prop_map(|generation| Event::Shared(told(generation))),
    ]
}

/// What another node tells of a format.
fn told(generation: u64) -> Format {
    let content = Content { types: vec!["ext4".into()], uuid: Some("a".into()), label: None };
    Format { generation, content: Some(content), marks: Vec::new(), node: "b".into(), at: 0 }
}

/// Attached where other nodes may have it, too.
fn attached_among_others() -> Event {
    Event::Attached {
        boot: "boot-1".into(),
        strength: Strength::Strong,
        records_lost: false,
        quarantine: 100,
        raw_content: RawContent::Written,
        claim: Claim::Wanted,
        diskseq: 5,
    }
}

const CLAIMED: Event = Event::Claimed { lease: 3, doubted: false, permit: None };

#[test]
fn what_others_reach_is_armed_by_a_claim_and_two_probes_after_it() {
    let (volume, _) = run(record(), [attached_among_others(), blank(), blank(), blank()]);
    assert_eq!((volume.state, volume.wants_claim()), (State::Unverified, true));
    assert!(volume.cause.starts_with("store: ") && !waits(&volume, clock(10)), "{}", volume.cause);
    let (claimed, _) = run(volume.clone(), [CLAIMED, blank()]);
    assert_eq!(claimed.state, State::Unverified, "what was read before the claim does not count");
    let (armed, _) = run(claimed, [blank()]);
    assert_eq!((armed.state, armed.attachment.claim), (State::Blank, Claim::Held(3)));
    let (lost, _) = run(armed.clone(), [Event::ClaimLost]);
    assert_eq!(
        (lost.state, lost.attachment.claim, lost.wants_claim()),
        (State::Unverified, Claim::Wanted, true)
    );
    // Taken over from a node that is gone: the quarantine begins.
    let (doubted, _) =
        run(volume, [Event::Claimed { lease: 3, doubted: true, permit: None }, blank(), blank()]);
    assert_eq!(doubted.state, State::Unverified);
    assert_eq!(next(&doubted, blank(), clock(200)).0.state, State::Blank);
    // What holds a format gives the claim up.
    let (formatted, _) = run(armed, [Event::Shared(told(1))]);
    assert_eq!(
        (formatted.state, formatted.attachment.claim, formatted.generation),
        (State::Formatted, Claim::Wanted, 1)
    );
}

#[test]
fn a_newer_format_of_another_node_replaces_what_is_recorded_and_an_older_one_does_not() {
    let (volume, _) = run(record(), [attached_among_others(), holds("xfs", "old")]);
    assert_eq!(volume.generation, 1);
    let (same, _) = run(volume.clone(), [Event::Shared(told(1))]);
    assert_eq!(same.content.as_ref().map(Content::name), Some("xfs"));
    let (newer, _) = run(volume, [blank(), Event::Shared(told(2))]);
    assert_eq!(newer.content.as_ref().map(Content::name), Some("ext4"));
    assert_eq!((newer.generation, newer.record.discrepancy), (2, None));
}

#[test]
fn a_permit_of_the_cluster_is_this_nodes_as_long_as_its_claim() {
    let (volume, _) = run(record(), [attached_among_others(), holds("ext4", "a")]);
    let claimed = Event::Claimed { lease: 3, doubted: false, permit: Some(permit(1000)) };
    let (permitted, _) = run(volume, [claimed.clone()]);
    assert_eq!((permitted.state, permitted.attachment.claim), (State::Permitted, Claim::Held(3)));
    assert_eq!(run(permitted.clone(), [claimed.clone()]).0, permitted, "told again");
    for event in [Event::ClaimLost, Event::PermitLost] {
        let (lost, _) = run(permitted.clone(), [event]);
        assert_eq!(
            (lost.state, lost.record.permit, lost.attachment.claim),
            (State::Formatted, None, Claim::Wanted)
        );
    }
    let (begun, _) = run(permitted, [began(), claimed]);
    assert_eq!((begun.state, begun.record.permit), (State::Formatting, None), "there is no second one");
}

/// What is known of a volume by what happened to it, whatever the record says: that somebody may have put
/// data there.
fn is_precious(before: &Volume, event: &Event) -> bool {
    let by = before.formatter.as_ref();
    match event {
        Event::Mounted => before.state != State::Exempt,
        Event::FormatBegan { formatter, wrote } => *wrote >= Wrote::Raw && !formatter.is_known(),
        Event::FormatEnded { status, wrote, unseen } => {
            before.state == State::Formatting
                && by.is_some_and(Formatter::is_known)
                && before.attachment.wrote.max(*wrote) != Wrote::Nothing
                && (*status == Some(0) || *unseen && status.is_none())
        }
        _ => before.state == State::Formatted,
    }
}

/// The same, of a volume that shows a name of its own.
fn by_its_name(event: Event) -> Event {
    match event {
        Event::Attached {
            boot,
            strength: Strength::Weak,
            records_lost,
            quarantine,
            raw_content,
            claim,
            diskseq,
        } => Event::Attached {
            boot,
            strength: Strength::Strong,
            records_lost,
            quarantine,
            raw_content,
            claim,
            diskseq,
        },
        event => event,
    }
}

proptest! {
    /// What is known by its place alone is Formatted until another attachment has read blank, twice in a row
    /// and to the end of the quarantine, with nothing else found or tried meanwhile; or until another format
    /// is found in its place.
    #[test]
    fn a_place_is_given_up_for_another_medium_alone(events in any_history(60)) {
        let (mut volume, _) = run(record(), [weakly("boot-1", 5), holds("ext4", "a")]);
        // Since when it may be another medium, and since when it has read blank all the time.
        let (mut another, mut blank_since, mut passes) = (None::<Seconds>, None::<Seconds>, 0);
        for (event, now) in events {
            let before = volume.clone();
            match &event {
                Event::Attached { .. } => (another, blank_since, passes) = (Some(now.boot), Some(now.boot), 0),
                Event::Probed(Ok(Finding::Blank | Finding::Raw(_))) => passes += 1,
                Event::Probed(_) => (blank_since, passes) = (Some(now.boot), 0),
                _ => {}
            }
            let probed = matches!(event, Event::Probed(_));
            volume = next(&before, event, now).0;
            if before.state == State::Formatted && volume.state != State::Formatted {
                // Where other nodes may have it, too, it waits for the claim, as every blank volume does
                // there.
                let armed = if before.attachment.claim == Claim::Wanted { State::Unverified } else { State::Blank };
                prop_assert_eq!(volume.state, armed);
                prop_assert!(probed && before.attachment.unconfirmed.is_some() && another.is_some(), "{before:?}");
                prop_assert!(passes >= CLEAN_PASSES && blank_since.is_some_and(|since| now.boot >= since + 100), "{before:?}");
                break;
            }
        }
    }

    /// Nothing but a permit, or the word that nothing is stored of it, leaves Formatted, of what has a name
    /// of its own; and nobody but who formatted it, and has it in its hands, changes what is recorded.
    #[test]
    fn no_sequence_without_a_permit_leaves_formatted(events in any_history(40), weak: bool) {
        let mut volume = record();
        volume.weak = weak;
        let (mut volume, _) = run(volume, [attached(), holds("ext4", "a")]);
        for (event, now) in events.into_iter().map(|(event, now)| (by_its_name(event), now)) {
            let told = matches!(event, Event::Shared(_));
            volume = next(&volume, event, now).0;
            prop_assert_eq!(volume.state, State::Formatted);
            prop_assert!(told || volume.content.as_ref().map(Content::name) == Some("ext4"), "{volume:?}");
        }
    }

    /// A volume becomes Blank by the second of two clean probes in a row; or by a first format of a known
    /// formatter that wrote and failed, was never mounted, and left what is in use by a mount alone. Where
    /// data may lie on it, it never does.
    #[test]
    fn blank_is_earned(events in any_history(60)) {
        // Nothing is probed or formatted that is not there, and its quarantine is told with its attachment.
        let (mut volume, _) = run(record(), [attached()]);
        let (mut clean, mut precious, mut writer) = (0, false, None::<Seconds>);
        let mut strange = None::<Seconds>;
        for (event, now) in events {
            let before = volume.clone();
            precious |= is_precious(&before, &event);
            if matches!(event, Event::Attached { strength: Strength::Weak, .. }) {
                strange = Some(now.boot);
            }
            match &event {
                Event::Probed(Ok(Finding::Blank | Finding::Raw(_))) => clean += 1,
                Event::Probed(_) | Event::Attached { .. } | Event::FormatBegan { .. } => clean = 0,
                Event::FormatEnded { .. } if before.attachment.is_running() => clean = 0,
                Event::FormatEnded { .. } if before.state == State::Formatting => clean = 0,
                Event::OverlapChanged(by) if before.attachment.overlay != *by => clean = 0,
                Event::Claimed { .. } if before.attachment.claim == Claim::Wanted => clean = 0,
                _ => {}
            }
            if let Event::FormatEnded { wrote, .. } = &event
                && before.state == State::Formatting
            {
                writer = (before.attachment.wrote.max(*wrote) != Wrote::Nothing).then_some(now.boot);
            }
            let found = matches!(event, Event::Probed(Ok(Finding::Holds { .. })));
            volume = next(&before, event, now).0;
            if volume.state == State::Blank && before.state != State::Blank {
                // Where only its place is known, it was another volume's.
                let anothers = before.attachment.unconfirmed.is_some() && strange.is_some_and(|since| now.boot >= since + 100);
                prop_assert!(!precious || anothers, "{before:?}");
                precious = false;
                prop_assert!(before.attachment.not_armed_because.is_none() && before.attachment.overlay.is_none(), "{before:?}");
                if found {
                    let known = before.formatter.as_ref().is_some_and(Formatter::is_known);
                    let failed = before.attachment.exit_status().is_some_and(|status| status != 0) && before.attachment.wrote != Wrote::Nothing;
                    prop_assert!(known && failed, "{before:?}");
                    prop_assert!(!volume.attachment.left.as_ref().is_none_or(Content::is_used_unmounted), "{before:?}");
                } else {
                    prop_assert!(clean >= CLEAN_PASSES, "{before:?}");
                    let waited = writer.is_none_or(|since| now.boot >= since + 100);
                    prop_assert!(waited || before.state != State::Formatting, "{before:?}");
                }
            }
            prop_assert!(volume.state != State::Blank || volume.attachment.claim != Claim::Wanted, "{before:?}");
        }
    }

    /// With any number of permits, used or expired: what carried a format is never armed as if it were blank,
    /// and an unused permit leads back to where it came from.
    #[test]
    fn what_carried_a_format_is_never_blank_again(
        events in prop::collection::vec(
            prop_oneof![8 => any_event(), 1 => Just(Event::Permitted(permit(5))), 1 => Just(Event::Permitted(permit(50)))],
            0..60,
        ),
        by_mount: bool,
    ) {
        let proof = if by_mount { Event::Mounted } else { holds("ext4", "a") };
        let (mut volume, _) = run(record(), [attached(), proof]);
        for event in events {
            let before = volume.clone();
            volume = next(&volume, event, clock(10)).0;
            // But what a program that does nothing but wipe has wiped, as it was permitted to.
            if before.state == State::Permitted && before.cause == WIPED && volume.state == State::Unverified {
                prop_assert!(before.content.is_none() && !before.ever_formatted, "{before:?}");
                break;
            }
            prop_assert!(!matches!(volume.state, State::Blank | State::Unverified), "{before:?}");
        }
    }

    /// However a job goes on under its permit: what is there in the end is never armed as blank at once, and
    /// the permit ends.
    #[test]
    fn every_permit_ends(events in prop::collection::vec(any_event(), 0..40)) {
        let begun = [attached(), holds("ext4", "a"), Event::Permitted(permit(1000)), began()];
        let (mut volume, _) = run(record(), begun);
        for event in events {
            let before = volume.clone();
            volume = next(&volume, event, clock(10)).0;
            prop_assert!(volume.state != State::Blank, "{before:?}");
            prop_assert!(volume.permit.is_some() || volume.state != State::Permitted, "{before:?}");
        }
        if volume.state == State::Permitted {
            volume = next(&volume, Event::Tick, clock(1000)).0;
        }
        prop_assert!(matches!(volume.state, State::Formatted | State::Formatting | State::Unverified), "{volume:?}");
    }
}
