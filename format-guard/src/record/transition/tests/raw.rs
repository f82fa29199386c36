//! Content that is no known format: what makes it, what it outlives, and what is none.

use super::*;
use crate::volume::probe::Digest;

pub(super) fn raw(digest: &str) -> Event {
    Event::Probed(Ok(Finding::Raw(Digest(digest.into()))))
}

fn armed() -> Volume {
    run(record(), [attached(), blank(), blank()]).0
}

/// What the kernel says of somebody's first bytes.
pub(super) fn fills(wrote: Wrote) -> Event {
    Event::FormatBegan { formatter: Formatter { comm: "postgres".into(), ..monitor() }, wrote }
}

fn under(raw_content: RawContent) -> Event {
    let Event::Attached { boot, strength, records_lost, quarantine, claim, .. } = attached() else {
        unreachable!()
    };
    Event::Attached { boot, strength, records_lost, quarantine, raw_content, claim, diskseq: 5 }
}

fn is_raw(record: &Volume) -> bool {
    record.state == State::Formatted && record.content.as_ref().is_some_and(Content::is_raw)
}

#[test]
fn what_is_filled_is_content_from_its_first_byte_on() {
    let (record, effects) = run(armed(), [fills(Wrote::Raw)]);
    assert!(is_raw(&record) && record.attachment.is_running() && record.armed.is_none(), "{record:?}");
    assert!(effects.contains(&Effect::Probe));
    // Killed in the middle, in either boot, however it reads.
    for end in [ended(Some(0)), ended(Some(9)), ended(None), attached_in("boot-2")] {
        let (record, _) = run(record.clone(), [end, blank(), blank(), blank()]);
        assert!(is_raw(&record), "{record:?}");
        assert_eq!(record.discrepancy, None, "what it wrote may lie in the middle");
    }
}

#[test]
fn raw_content_is_its_users_to_change_and_does_not_vanish() {
    let (record, _) = run(armed(), [fills(Wrote::Raw), raw("a"), ended(Some(0)), raw("b")]);
    assert_eq!((record.ends.as_ref().map(Ends::text), &record.discrepancy), (Some("b"), &None));
    let (record, effects) = run(record, [attached_in("boot-2"), raw("c"), blank(), blank(), blank()]);
    assert!(is_raw(&record));
    assert_eq!(record.discrepancy.as_deref(), Some("it reads blank"));
    assert!(
        effects.iter().any(|effect| matches!(effect, Effect::Report(told) if told.kind == "discrepancy"))
    );
    let (record, _) = run(record, [raw("d")]);
    assert_eq!((record.ends.as_ref().map(Ends::text), &record.discrepancy), (Some("d"), &None));
}

#[test]
fn what_was_written_unseen_is_content_once_it_is_read() {
    let (running, _) = run(armed(), [fills(Wrote::Bytes), raw("a")]);
    assert!(is_raw(&running) && running.attachment.is_running(), "{running:?}");
    let (over, _) = run(armed(), [fills(Wrote::Bytes), ended(Some(0)), raw("a")]);
    assert!(is_raw(&over) && !over.attachment.is_running(), "{over:?}");
    let (nothing, _) = run(armed(), [fills(Wrote::Bytes), ended(Some(0)), blank(), blank()]);
    assert_eq!(nothing.state, State::Formatting);
    assert_eq!(at(&nothing, blank(), 200).state, State::Blank, "it has written nothing but zeros");
}

#[test]
fn an_earlier_volumes_bytes_are_content_where_a_policy_says_so() {
    let old = |policy| run(record(), [under(policy), raw("old"), raw("old")]).0;
    let written = old(RawContent::Written);
    assert_eq!(written.state, State::Blank);
    assert!(is_raw(&old(RawContent::Found)));
    assert_eq!(old(RawContent::Ignored).state, State::Blank);
    // Written over them: that what is there is as it was tells that nothing was.
    let (nothing, _) = run(written.clone(), [fills(Wrote::Bytes), ended(Some(0)), raw("old"), raw("old")]);
    assert_eq!(nothing.state, State::Formatting);
    assert!(is_raw(&run(written, [fills(Wrote::Bytes), ended(Some(0)), raw("new")]).0));
}

/// The host goes down before the agent has stored what the kernel let through.
#[test]
fn what_was_filled_while_the_host_went_down_is_content() {
    for (before, after, filled) in
        [(blank(), "new", true), (raw("old"), "new", true), (raw("old"), "old", false)]
    {
        let (armed, _) = run(record(), [attached(), before.clone(), before]);
        assert_eq!(armed.state, State::Blank);
        let (record, _) = run(armed.clone(), [attached_in("boot-2"), raw(after)]);
        assert_eq!(is_raw(&record), filled, "{record:?}");
        let Event::Attached { strength, records_lost, quarantine, claim, .. } = attached() else {
            unreachable!()
        };
        let boot = "boot-2".to_owned();
        let raw_content = RawContent::Ignored;
        let ignored =
            Event::Attached { boot, strength, records_lost, quarantine, raw_content, claim, diskseq: 5 };
        assert!(!is_raw(&run(armed, [ignored, raw(after)]).0));
    }
}

#[test]
fn half_of_a_known_formatters_work_is_no_content() {
    let (failed, _) = run(armed(), [began(), ended(Some(256)), raw("half"), raw("half")]);
    assert_eq!(failed.state, State::Formatting);
    let again = at(&failed, raw("half"), 200);
    assert_eq!(again.state, State::Blank);
    let (crashed, _) = run(armed(), [began()]);
    let mut stored = crashed;
    stored.attachment.progress = Progress::Past;
    let (crashed, _) = run(stored, [attached_in("boot-2"), raw("half"), raw("half")]);
    assert!(!is_raw(&crashed), "{crashed:?}");
    // What shred leaves of a blank volume is none either.
    let (shredded, _) = run(armed(), [raw("noise"), attached(), raw("noise"), raw("noise")]);
    assert_eq!(shredded.state, State::Blank);
}

#[test]
fn who_fills_it_may_make_a_format_of_it_and_nobody_else() {
    let (record, _) = run(armed(), [fills(Wrote::Raw), raw("a"), holds("gpt", "c")]);
    assert_eq!(record.content.as_ref().map(Content::name), Some("gpt"));
    assert_eq!((record.state, &record.ends, &record.discrepancy), (State::Formatted, &None, &None));
    let (record, _) = run(armed(), [fills(Wrote::Raw), ended(Some(0)), raw("a"), holds("gpt", "c")]);
    assert!(is_raw(&record) && record.discrepancy.is_some(), "{record:?}");
}

#[test]
fn an_operator_adopts_raw_content_and_permits_what_comes_after_it() {
    let (record, effects) = run(
        record(),
        [attached(), raw("old"), raw("old"), Event::AdoptedRaw { reason: "test".into(), uid: 0 }, raw("old")],
    );
    assert!(is_raw(&record) && effects.contains(&Effect::Probe));
    assert_eq!(record.ends.as_ref().map(Ends::text), Some("old"));
    let (permitted, _) = run(record, [Event::Permitted(permit(1000))]);
    let unused = at(&permitted, Event::Tick, 5000);
    assert!(is_raw(&unused) && unused.discrepancy.is_none(), "{unused:?}");
    let (failed, _) = run(permitted.clone(), [began(), ended(Some(256)), raw("old"), raw("old")]);
    assert_eq!(failed.state, State::Permitted, "it may be tried again");
    let failed = at(&failed, Event::Tick, 5000);
    assert!(is_raw(&failed) && failed.discrepancy.is_none(), "{failed:?}");
    let (formatted, _) = run(permitted, [began(), ended(Some(0)), holds("ext4", "a")]);
    assert_eq!(formatted.content.as_ref().map(Content::name), Some("ext4"));
    assert_eq!(formatted.ends, None);
    assert_eq!(at(&formatted, Event::Tick, 5000).state, State::Formatted);
}
