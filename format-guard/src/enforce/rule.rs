//! Derives the kernel's rule for a device from its volume's record and from those of the volumes that lie on
//! it, below it and beside it. Nothing else makes rules.

use format_guard_common::{
    Check, CheckKind, MAX_WINDOWS, Rule, State, Window, Windows, flag,
    format::{FORMATS, Format, MBR, at_end, by_name},
    header::Header,
    program::Class,
};

use crate::{
    config::RawContent,
    policy::Action,
    record::{Content, Overlap, Progress, Record, Volume, transition},
    volume::{
        Dev,
        graph::{Relation, Shared},
        marks::{MAX_MARKS, Mark},
    },
};

/// A device and what its rule is made of.
pub struct Subject<'a> {
    /// Kernel `dev_t`.
    pub dev: u32,
    /// The attachment.
    pub diskseq: u64,
    /// Its size in bytes.
    pub size: u64,
    /// The device under which the owner of a format is kept for all that share its bytes, and its attachment.
    pub lock_dev: (Dev, u64),
    /// Its volume.
    pub record: &'a Volume,
    /// It is strict by the configuration.
    pub strict: bool,
    /// The md array runs that it is, or was, a member of.
    pub array_runs: bool,
    /// The volumes that share bytes with it, lower layers first.
    pub others: Vec<Other<'a>>,
}

/// A volume that shares bytes with the one that is looked at.
pub struct Other<'a> {
    /// Kernel `dev_t` of its device.
    pub dev: u32,
    /// Its volume.
    pub record: &'a Volume,
    /// Where it lies.
    pub relation: Relation,
    /// The bytes that both have, unchanged.
    pub shared: Vec<Shared>,
}

/// The rule for a device of which nothing is known.
#[must_use]
pub fn unknown(audit: bool) -> Rule {
    let mut rule = Rule::new(0, 0, State::Unverified);
    push_foreign(&mut rule, &[]);
    rule.flags = flag::UNREAD;
    if audit {
        rule.flags |= flag::AUDIT;
    }
    rule
}

/// A volume whose bytes must not be formatted under another name.
#[must_use]
pub fn holds_format(record: &Record) -> bool {
    match record.state {
        State::Formatted | State::Formatting => true,
        State::Permitted => record.ever_formatted,
        State::Unverified | State::Blank | State::Exempt => false,
    }
}

/// The other's marks where they lie on the device that is looked at.
pub fn shifted<'a>(marks: &'a [Mark], shared: &'a [Shared]) -> impl Iterator<Item = Mark> + 'a {
    marks.iter().flat_map(move |mark| {
        let end = mark.offset.saturating_add(mark.bytes.len() as u64);
        shared
            .iter()
            .filter(move |shared| {
                shared.theirs <= mark.offset && end <= shared.theirs.saturating_add(shared.length)
            })
            .map(move |shared| Mark { offset: shared.ours + (mark.offset - shared.theirs), ..mark.clone() })
    })
}

/// The rule for a device, and the windows through which others are reached by it.
#[must_use]
pub fn of(subject: &Subject<'_>, audit: bool) -> (Rule, Windows) {
    let record = subject.record;
    let carries =
        subject.others.iter().any(|other| other.relation == Relation::Above && holds_format(other.record));
    let is = |action| record.attachment.policy.is(action);
    let state =
        match record.state {
            _ if is(Action::Slot) => State::Exempt,
            State::Blank | State::Permitted if is(Action::NeverFormat) => {
                if carries || record.ever_formatted { State::Formatted } else { State::Unverified }
            }
            State::Unverified | State::Blank if carries => State::Formatted,
            // The formatter has exited and the content is not known: no process may go on with this format.
            State::Formatting if record.attachment.progress == Progress::Past => State::Unverified,
            // Its use could not be recorded.
            State::Permitted if record.armed.is_none() && record.ever_formatted => State::Formatted,
            State::Permitted if record.armed.is_none() => State::Unverified,
            state => state,
        };
    let mut rule = Rule::new(subject.dev, subject.diskseq, state);
    (rule.lock_dev, rule.lock_diskseq) = (subject.lock_dev.0.to_kernel(), subject.lock_dev.1);
    if matches!(state, State::Blank | State::Permitted | State::Formatting) {
        rule.claim = record.attachment.claim.number();
    }
    if state == State::Permitted
        && let Some(end) = record.attachment.permit_ends
    {
        // Zero is no end; none lasts longer than a week.
        rule.permit_ends = u32::try_from(end).unwrap_or(u32::MAX).max(1);
    }
    for mark in marks(subject, state) {
        // A mark that does not fit was refused when it was read or stored.
        if let Some(check) = Check::new(mark.offset, &mark.bytes, mark.kind.into()) {
            let _ = rule.push(check);
        }
    }
    let own: Vec<&Format> = record
        .content
        .iter()
        .flat_map(|content| content.types.iter().filter_map(|name| by_name(name)))
        .collect();
    rule.tools = tools(record, &own);
    let names = record.content.iter().flat_map(|content| &content.types);
    rule.at_home = names.fold(Header::NONE, |headers, name| headers.with(Header::at_home(name))).0;
    // A blank volume, or one that may be re-formatted, begins anew by any format's magic.
    let mut own = if state == State::Formatted { own } else { Vec::new() };
    if state == State::Formatted && has_room_for_table(subject) {
        own.extend(by_name("gpt"));
    }
    push_foreign(&mut rule, &own);
    push_ends(&mut rule, &own, subject.size);
    if audit || record.audit || is(Action::Audit) {
        rule.flags |= flag::AUDIT;
    }
    // Where its bytes come to lie on the format below, the kernel programs do not know.
    if state == State::Unverified
        && record.attachment.overlay.as_ref().is_some_and(|overlay| overlay.overlap == Overlap::Transformed)
    {
        rule.flags |= flag::LAYER;
    }
    if state == State::Unverified && transition::is_unread(record) {
        rule.flags |= flag::UNREAD;
    }
    if record.state == State::Formatted && record.attachment.is_running() {
        rule.flags |= flag::HELD;
    }
    let raw = record.content.as_ref().is_some_and(Content::is_raw);
    let fills = state == State::Blank && record.attachment.raw_content != RawContent::Ignored;
    if fills || state == State::Formatted && raw {
        rule.flags |= flag::RAW;
    }
    // A member of an md array holds the array's data, wherever its superblock lies: only the kernel and md's
    // own tools write there.
    let strict = record.strict || subject.strict || is(Action::Strict);
    if strict || record.content.as_ref().is_some_and(Content::is_md_member) {
        rule.flags |= flag::STRICT;
    }
    if subject.array_runs {
        rule.flags |= flag::ARRAY_RUNS;
    }
    let holds =
        |name| record.content.as_ref().is_some_and(|content| content.types.iter().any(|of| of == name));
    if holds("jbd") {
        rule.flags |= flag::JOURNAL;
    }
    // Whoever may format a device may format what lies on it.
    let windows = match state {
        State::Permitted | State::Formatting | State::Exempt => Windows::new(),
        State::Unverified | State::Blank | State::Formatted => windows(&subject.others),
    };
    if windows.count > 0 {
        rule.flags |= flag::STACKED;
    }
    (rule, windows)
}

/// Whether a volume is known by what lies on it alone, and that lies where no partition table does: what
/// makes partitions first and the table last (`systemd-repart` formats each through a loop device over the
/// disk) goes on. What begins where the volume begins is found on the volume itself.
fn has_room_for_table(subject: &Subject<'_>) -> bool {
    // The protective MBR, header and table at the start; table and header at the end (UEFI specification
    // 2.10, 5.3.1).
    const FIRST: u64 = 34 * 512;
    const LAST: u64 = 33 * 512;
    let Subject { record, others, size, .. } = subject;
    let lies_inside = |mark: &Mark| {
        mark.offset >= FIRST && mark.offset + mark.bytes.len() as u64 <= size.saturating_sub(LAST)
    };
    let is_placed = |other: &Other<'_>| other.relation != Relation::Above || !other.shared.is_empty();
    record.state == State::Formatted
        && record.content.is_none()
        && !record.mounted
        && record.discrepancy.is_none()
        && record.attachment.looked_at.is_some()
        && !record.marks.is_empty()
        && record.marks.iter().all(lies_inside)
        && others.iter().all(is_placed)
}

/// Whose tools keep what a volume holds; zero while that is not known.
fn tools(record: &Record, own: &[&Format]) -> u32 {
    let tools = own.iter().fold(Class::UNKNOWN, |tools, format| tools.with(format.tools));
    let raw = record.content.as_ref().is_some_and(Content::is_raw);
    let known = record.content.is_some() && (raw || !record.marks.is_empty());
    if tools == Class::UNKNOWN && known { Class::NO_TOOLS.0 } else { tools.0 }
}

/// The volume's own marks first; while its content is not known, the marks of the volumes it maps as well.
fn marks(subject: &Subject<'_>, state: State) -> Vec<Mark> {
    let mut marks = Vec::new();
    if matches!(subject.record.state, State::Formatted | State::Permitted | State::Formatting) {
        marks.extend(subject.record.marks.iter().cloned());
    }
    if matches!(state, State::Unverified | State::Formatted) {
        let others = subject
            .others
            .iter()
            .filter(|other| other.relation != Relation::Above && holds_format(other.record));
        for mark in others.flat_map(|other| shifted(&other.record.marks, &other.shared)) {
            let end = mark.offset + mark.bytes.len() as u64;
            let overlaps = marks
                .iter()
                .any(|own: &Mark| own.offset < end && mark.offset < own.offset + own.bytes.len() as u64);
            if !overlaps {
                marks.push(mark);
            }
        }
    }
    marks.truncate(MAX_MARKS);
    marks
}

/// Where others lie on a device: the window of a later one is cut out of those before it.
fn windows(others: &[Other<'_>]) -> Windows {
    let mut all: Vec<Window> = Vec::new();
    // A volume that is unverified because the format below leaves it no room (a partition that outlived its
    // table) is not guarded.
    let guarded = others.iter().filter(|other| {
        other.relation == Relation::Above
            && other.record.state != State::Exempt
            && (other.record.state != State::Unverified || other.record.attachment.overlay.is_none())
    });
    let mut seen = Vec::new();
    for other in guarded {
        // Another path to a volume that is there already.
        if seen.contains(&&other.record.id) {
            continue;
        }
        seen.push(&other.record.id);
        for shared in &other.shared {
            let window = Window {
                start: shared.ours,
                end: shared.ours.saturating_add(shared.length),
                offset: shared.theirs,
                dev: other.dev,
                zero: 0,
            };
            all = all.into_iter().flat_map(|old| cut(old, &window)).collect();
            all.push(window);
        }
    }
    all.sort_by_key(|window| window.start);
    let mut windows = Windows::new();
    for (i, window) in all.iter().enumerate().take(MAX_WINDOWS) {
        windows.windows[i] = *window;
        windows.count += 1;
    }
    if all.len() > MAX_WINDOWS {
        // What has no room of its own is refused rather than let through; what lies behind all of it (LVM's
        // second copy of its metadata, at the end of a physical volume) is nobody's but the device's.
        let end = all.iter().map(|window| window.end).max().unwrap_or(u64::MAX);
        let last = &mut windows.windows[MAX_WINDOWS - 1];
        (last.end, last.dev) = (end, 0);
    }
    windows
}

/// What is left of a window beside another.
fn cut(old: Window, by: &Window) -> impl Iterator<Item = Window> + use<> {
    let before = Window { end: old.end.min(by.start), ..old };
    let start = old.start.max(by.end);
    let after = Window { start, offset: old.offset.saturating_add(start - old.start), ..old };
    [before, after].into_iter().filter(|window| window.start < window.end)
}

fn push_foreign(rule: &mut Rule, own: &[&Format]) {
    let boot = own.iter().any(|format| format.boot_sector);
    for format in FORMATS {
        let related = own.iter().any(|own| own.names == format.names) || boot && format.names.contains(&MBR);
        if related {
            continue;
        }
        for magic in format.magics {
            if let Some(check) = Check::new(magic.offset, magic.bytes, CheckKind::Foreign) {
                // Room is a property of the tables (format.rs) and of the bound on marks (marks.rs).
                let _ = rule.push(check);
            }
        }
    }
}

/// What other formats keep at the end of the device: sfdisk and mdadm write it before all else.
fn push_ends(rule: &mut Rule, own: &[&Format], size: u64) {
    for (name, magic) in at_end(size) {
        let related = own.iter().any(|own| own.names.contains(&name));
        if !related && let Some(check) = Check::new(magic.offset, magic.bytes, CheckKind::Foreign) {
            // There is room, as in `push_foreign`.
            let _ = rule.push(check);
        }
    }
}

#[cfg(test)]
mod tests {
    use format_guard_common::{
        Caller, MAX_CHECKS, NoContent, Operation, Owner, Placement, Request, Verdict, decide,
    };

    use super::*;
    use crate::{
        policy::{Choice, InForce},
        record::Overlay,
        volume::marks::MarkKind,
    };

    const MIB: u64 = 1 << 20;

    /// A program that begins to format, whom nobody keeps from it.
    struct Mkfs;

    impl Caller for Mkfs {
        fn class(&self) -> Class {
            Class::FORMATTER
        }

        fn tainted(&self) -> bool {
            false
        }

        fn owner(&self) -> Owner {
            Owner::None
        }

        fn claim_lasts(&self) -> bool {
            true
        }

        fn permit_lasts(&self) -> bool {
            true
        }
    }

    fn opened_by_mkfs(rule: &Rule) -> Verdict {
        let open = Request { operation: Operation::Open, offset: 0, length: 0 };
        decide(rule, &open, &Mkfs, &NoContent)
    }

    /// A volume in each state, permitted ones with and without something that is recorded.
    fn in_each_state() -> Vec<Volume> {
        let mut all: Vec<Volume> = State::ALL.into_iter().map(|state| record("dm:x", state)).collect();
        let mut permitted = record("dm:x", State::Permitted);
        permitted.armed = Some("boot".into());
        all.push(permitted.clone());
        permitted.ever_formatted = true;
        all.push(permitted);
        all
    }

    #[test]
    fn a_policy_lets_a_format_through_where_it_says_so_and_nowhere_else() {
        for volume in in_each_state() {
            let by = |choice: Choice| {
                let mut volume = volume.clone();
                volume.attachment.policy = choice;
                opened_by_mkfs(&of(&subject(&volume, Vec::new()), false).0)
            };
            let without = by(Choice::None);
            for action in Action::ALL {
                let with = by(Choice::Policy(InForce { name: "x".into(), action }));
                match (action, without) {
                    (Action::Slot, _) => assert_eq!(with, Verdict::Allow),
                    (Action::NeverFormat, _) if volume.state != State::Exempt => {
                        assert!(matches!(with, Verdict::Deny(_)), "{:?}: {with:?}", volume.state);
                    }
                    (Action::Audit, Verdict::Deny(reason)) => assert_eq!(with, Verdict::WouldDeny(reason)),
                    // What they change, they change in the record.
                    _ => assert_eq!(with, without, "{action:?}, {:?}", volume.state),
                }
            }
        }
    }

    fn record(id: &str, state: State) -> Volume {
        let mut record = Volume::of(Record::new(id.into(), "test".into(), false, 0));
        record.state = state;
        if state == State::Formatted {
            record.marks = vec![Mark { offset: 0, kind: MarkKind::Magic, bytes: b"XFSB".to_vec() }];
            record.content = Some(Content { types: vec!["xfs".into()], uuid: None, label: None });
        }
        record
    }

    fn subject<'a>(record: &'a Volume, others: Vec<Other<'a>>) -> Subject<'a> {
        Subject {
            dev: 7,
            diskseq: 9,
            size: 64 << 20,
            lock_dev: (Dev::from_kernel(7), 9),
            record,
            strict: false,
            array_runs: false,
            others,
        }
    }

    fn above(dev: u32, record: &Volume, ours: u64, length: u64) -> Other<'_> {
        Other { dev, record, relation: Relation::Above, shared: vec![Shared { ours, theirs: 0, length }] }
    }

    #[test]
    fn marks_and_every_foreign_magic_fit_together() {
        let unknown = unknown(false);
        assert!(unknown.count as usize + at_end(0).len() + MAX_MARKS <= MAX_CHECKS, "{}", unknown.count);
    }

    #[test]
    fn a_formatted_volume_keeps_its_marks_and_is_not_foreign_to_itself() {
        let record = record("dm:x", State::Formatted);
        let (rule, windows) = of(&subject(&record, Vec::new()), true);
        assert_eq!(rule.checks()[0].kind, CheckKind::Magic as u32);
        assert!(!rule.checks()[1..].iter().any(|check| check.bytes[0] == rule.checks()[0].bytes[0]));
        assert_eq!((rule.flags, windows.count), (flag::AUDIT, 0));
    }

    #[test]
    fn a_rule_says_whose_tools_keep_what_the_volume_holds() {
        let tools = |types: &[&str], marks: bool| {
            let mut record = record("dm:x", State::Formatted);
            record.content = Some(Content {
                types: types.iter().map(|name| (*name).to_owned()).collect(),
                uuid: None,
                label: None,
            });
            if !marks {
                record.marks.clear();
            }
            Class(of(&subject(&record, Vec::new()), false).0.tools)
        };
        assert_eq!(tools(&["ext4"], true), Class::EXT);
        assert_eq!(tools(&["dos", "vfat"], true), Class::PARTITIONS.with(Class::FAT));
        assert_eq!(tools(&["exotic"], true), Class::NO_TOOLS);
        assert_eq!(tools(&[], false), Class::UNKNOWN, "its mount alone is known");
        let mut carrier = record("dm:z", State::Formatted);
        carrier.content = None;
        assert_eq!(of(&subject(&carrier, Vec::new()), false).0.tools, 0, "what lies on it alone is known");
        let blank = record("dm:y", State::Blank);
        assert_eq!(of(&subject(&blank, Vec::new()), false).0.tools, 0);
    }

    #[test]
    fn what_only_carries_others_takes_a_table_where_they_leave_it_room() {
        let takes = |change: &dyn Fn(&mut Volume)| {
            let mut disk = record("disk", State::Formatted);
            disk.content = None;
            disk.attachment.looked_at = Some(1);
            disk.marks[0].offset = MIB;
            change(&mut disk);
            let (rule, _) = of(&subject(&disk, Vec::new()), false);
            let foreign = |offset: u64, bytes: &[u8]| {
                let wanted = Check::new(offset, bytes, CheckKind::Foreign).expect("a check");
                rule.checks().contains(&wanted)
            };
            assert!(foreign(1080, &[0x53, 0xef]), "an ext4 is as foreign as before");
            let [start, end] = [512, (64 << 20) - 512].map(|offset| foreign(offset, b"EFI PART"));
            assert_eq!(start, end);
            !start
        };
        assert!(takes(&|_| {}));
        let refused: [&dyn Fn(&mut Volume); 6] = [
            &|disk| disk.marks[0].offset = 0,
            &|disk| disk.marks[0].offset = (64 << 20) - 512,
            &|disk| disk.marks.clear(),
            &|disk| disk.attachment.looked_at = None,
            &|disk| disk.mounted = true,
            &|disk| disk.discrepancy = Some("it cannot be read".into()),
        ];
        for change in refused {
            assert!(!takes(change));
        }
        // Where what lies on it writes is not known.
        let mut disk = record("disk", State::Formatted);
        (disk.content, disk.attachment.looked_at, disk.marks[0].offset) = (None, Some(1), MIB);
        let upper = record("upper", State::Formatted);
        let opaque = Other { dev: 8, record: &upper, relation: Relation::Above, shared: Vec::new() };
        assert!(!has_room_for_table(&subject(&disk, vec![opaque])));
    }

    #[test]
    fn audit_of_one_volume_is_of_its_rule_alone() {
        let mut audited = record("dm:x", State::Formatted);
        audited.audit = true;
        assert_eq!(of(&subject(&audited, Vec::new()), false).0.flags, flag::AUDIT);
        assert_eq!(of(&subject(&record("dm:y", State::Formatted), Vec::new()), false).0.flags, 0);
    }

    #[test]
    fn a_blank_disk_under_a_formatted_volume_is_not_blank() {
        let (disk, upper) = (record("disk", State::Blank), record("upper", State::Formatted));
        let (rule, windows) = of(&subject(&disk, vec![above(8, &upper, MIB, MIB)]), false);
        assert_eq!(rule.state, State::Formatted as u32);
        assert_ne!(rule.flags & flag::STACKED, 0);
        assert_eq!(windows.place(MIB + 10, 1), Placement::In { dev: 8, offset: 10 });
    }

    #[test]
    fn whoever_may_format_the_disk_may_format_what_lies_on_it() {
        let upper = record("upper", State::Formatted);
        for state in [State::Permitted, State::Formatting] {
            let mut disk = record("disk", state);
            disk.armed = Some("boot".into());
            disk.attachment.progress = Progress::Running;
            let (rule, windows) = of(&subject(&disk, vec![above(8, &upper, MIB, MIB)]), false);
            assert_eq!((rule.state, windows.count), (state as u32, 0));
        }
    }

    #[test]
    fn a_permit_counts_only_while_its_use_would_be_recorded() {
        for (ever_formatted, state) in [(true, State::Formatted), (false, State::Unverified)] {
            let mut disk = record("disk", State::Permitted);
            disk.ever_formatted = ever_formatted;
            assert_eq!(of(&subject(&disk, Vec::new()), false).0.state, state as u32);
        }
    }

    #[test]
    fn a_format_that_was_broken_off_by_a_crash_is_gone_on_with_by_nobody() {
        let mut broken_off = record("disk", State::Formatting);
        assert_eq!(of(&subject(&broken_off, Vec::new()), false).0.state, State::Unverified as u32);
        broken_off.attachment.progress = Progress::Exited { status: None };
        assert_eq!(of(&subject(&broken_off, Vec::new()), false).0.state, State::Formatting as u32);
    }

    #[test]
    fn who_formatted_it_goes_on_as_long_as_it_runs() {
        let mut held = record("disk", State::Formatted);
        assert_eq!(of(&subject(&held, Vec::new()), false).0.flags, 0);
        held.attachment.progress = Progress::Running;
        assert_eq!(of(&subject(&held, Vec::new()), false).0.flags, flag::HELD);
    }

    #[test]
    fn an_exempt_volume_has_no_window() {
        let (disk, upper) = (record("disk", State::Formatted), record("upper", State::Exempt));
        assert_eq!(of(&subject(&disk, vec![above(8, &upper, MIB, MIB)]), false).1.count, 0);
    }

    #[test]
    fn a_partition_that_outlived_its_table_has_no_window_in_what_took_its_place() {
        let (disk, mut stale) = (record("disk", State::Formatted), record("part", State::Unverified));
        let windows = |stale: &Volume| of(&subject(&disk, vec![above(8, stale, MIB, MIB)]), false).1.count;
        assert_eq!(windows(&stale), 1, "not probed yet, it may hold anything");
        stale.attachment.overlay =
            Some(Overlay { by: "disk, which holds xfs".into(), overlap: Overlap::Inside });
        assert_eq!(windows(&stale), 0);
    }

    #[test]
    fn a_new_layer_has_the_marks_of_what_it_maps() {
        let (upper, disk) = (record("upper", State::Unverified), record("disk", State::Formatted));
        let below = |ours, theirs| Other {
            dev: 8,
            record: &disk,
            relation: Relation::Below,
            shared: vec![Shared { ours, theirs, length: MIB }],
        };
        let (rule, _) = of(&subject(&upper, vec![below(4096, 0)]), false);
        let own = |rule: &Rule| -> Vec<u64> {
            let own = rule.checks().iter().filter(|check| check.kind != CheckKind::Foreign as u32);
            own.map(|check| check.offset).collect()
        };
        assert_eq!(own(&rule), [4096]);
        let (rule, _) = of(&subject(&upper, vec![below(0, 512)]), false);
        assert_eq!(own(&rule), [0; 0], "the mark lies before what is mapped");
    }

    #[test]
    fn a_higher_layer_is_cut_out_of_a_lower_one() {
        let disk = record("disk", State::Formatted);
        let (part, volume) = (record("part", State::Formatted), record("lv", State::Formatted));
        let others = vec![above(8, &part, MIB, 10 * MIB), above(9, &volume, 3 * MIB, MIB)];
        let (_, windows) = of(&subject(&disk, others), false);
        assert_eq!(windows.count, 3);
        assert_eq!(windows.place(MIB, 1), Placement::In { dev: 8, offset: 0 });
        assert_eq!(windows.place(3 * MIB, 1), Placement::In { dev: 9, offset: 0 });
        assert_eq!(windows.place(5 * MIB, 1), Placement::In { dev: 8, offset: 4 * MIB });
        assert_eq!(windows.place(4 * MIB - 1, 2), Placement::Across);
    }

    #[test]
    fn what_has_no_room_is_nobodys() {
        let disk = record("disk", State::Formatted);
        let uppers: Vec<Volume> = (0..100).map(|i| record(&format!("lv{i}"), State::Formatted)).collect();
        let others =
            (0_u32..).zip(&uppers).map(|(i, upper)| above(8 + i, upper, u64::from(i) * MIB, MIB)).collect();
        let (_, windows) = of(&subject(&disk, others), false);
        assert_eq!(windows.count as usize, MAX_WINDOWS);
        assert_eq!(windows.place(90 * MIB, 1), Placement::Across);
        assert_eq!(windows.place(100 * MIB, MIB), Placement::Own, "behind the last of them");
        assert_eq!(windows.place(100 * MIB - 1, 2), Placement::Across);
        assert_eq!(windows.place(10 * MIB, 1), Placement::In { dev: 18, offset: 0 });
    }
}
