extern crate std;

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::MAX_CHECKS;
use crate::{NoContent, clear::Clear, format::FORMATS, header::Header, program::class_of};

/// The bytes of a write, all of them readable.
struct Bytes<'a>(&'a [u8]);

impl Content for Bytes<'_> {
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.0.get(at..at + usize::try_from(length).ok()?)?;
        // What lies beyond the length is unspecified: garbage here, so that nothing comes to rely on it.
        let mut words = [u64::MAX; 2];
        for (i, byte) in bytes.iter().enumerate() {
            words[i / 8] &= !(0xff << (8 * (i % 8)));
            words[i / 8] |= u64::from(*byte) << (8 * (i % 8));
        }
        Some(words)
    }

    fn is_zero(&self, length: u64) -> Option<bool> {
        Some(self.0.get(..usize::try_from(length).ok()?)?.iter().all(|byte| *byte == 0))
    }
}

const DEVICE: usize = 2048;

/// A device with an ext4-like magic and UUID on it, and the rule for it.
fn formatted() -> (Vec<u8>, Rule) {
    let mut device: Vec<u8> = (0..DEVICE).map(|i| (i % 251) as u8).collect();
    device[1080..1082].copy_from_slice(b"\x53\xef");
    let mut rule = Rule::new(0x70_0001, 77, State::Formatted);
    for (offset, length, kind) in [(1080, 2, CheckKind::Magic), (1128, 16, CheckKind::Uuid)] {
        rule.push(Check::new(offset as u64, &device[offset..offset + length], kind).expect("fits"))
            .expect("room");
    }
    foreign(&mut rule, "ext4");
    (device, rule)
}

fn foreign(rule: &mut Rule, own: &str) {
    for format in FORMATS.iter().filter(|format| !format.names.contains(&own)) {
        for magic in format.magics {
            rule.push(Check::new(magic.offset, magic.bytes, CheckKind::Foreign).expect("fits"))
                .expect("room");
        }
    }
}

fn with_state(state: State) -> Rule {
    let mut rule = Rule::new(0x70_0001, 77, state);
    foreign(&mut rule, "none");
    rule
}

/// A request together with who makes it.
#[derive(Clone, Copy, Debug)]
struct Asked {
    request: Request,
    class: Class,
    tainted: bool,
    owner: Owner,
    claim_lasts: bool,
    permit_lasts: bool,
}

impl Caller for Asked {
    fn class(&self) -> Class {
        self.class
    }

    fn tainted(&self) -> bool {
        self.tainted
    }

    fn owner(&self) -> Owner {
        self.owner
    }

    fn claim_lasts(&self) -> bool {
        self.claim_lasts
    }

    fn permit_lasts(&self) -> bool {
        self.permit_lasts
    }
}

fn request(operation: Operation, offset: u64, length: u64) -> Asked {
    let request = Request { operation, offset, length };
    Asked {
        request,
        class: Class::UNKNOWN,
        tainted: false,
        owner: Owner::None,
        claim_lasts: false,
        permit_lasts: false,
    }
}

/// Shadows the function under test with one that takes the caller from the request.
fn decide<B: Content>(rule: &Rule, asked: &Asked, content: &B) -> Verdict {
    super::decide(rule, &asked.request, asked, content)
}

fn write(rule: &Rule, offset: u64, bytes: &[u8]) -> Verdict {
    decide(rule, &request(Operation::Write, offset, bytes.len() as u64), &Bytes(bytes))
}

fn by(class: Class, rule: &Rule, operation: Operation) -> Verdict {
    decide(rule, &Asked { class, ..request(operation, 0, 4096) }, &NoContent)
}

proptest! {
    /// Whatever is written anywhere: if it was allowed, every mark is as it was, and no foreign magic came to
    /// be by this write.
    #[test]
    fn an_allowed_write_keeps_every_mark(
        offset in 1000_usize..1200,
        bytes in prop::collection::vec(prop_oneof![Just(0x53_u8), Just(0xef), any::<u8>()], 1..200),
    ) {
        let (mut device, rule) = formatted();
        let before = device.clone();
        let verdict = write(&rule, offset as u64, &bytes);
        device[offset..offset + bytes.len()].copy_from_slice(&bytes);
        let kept = device[1080..1082] == before[1080..1082] && device[1128..1144] == before[1128..1144];
        let foreign = device[1024..1028] == *b"\x10\x20\xf5\xf2" && offset <= 1024
            || device[1030..1032] == *b"\x34\x34" && offset <= 1030 && offset + bytes.len() >= 1032;
        prop_assert_eq!(verdict == Verdict::Allow, kept && !foreign);
    }

    /// A write that puts back what is there is everyday work, wherever it begins and ends.
    #[test]
    fn rewriting_what_is_there_is_allowed(offset in 0_usize..DEVICE, length in 1_usize..DEVICE) {
        let (device, rule) = formatted();
        let end = (offset + length).min(DEVICE);
        prop_assert_eq!(write(&rule, offset as u64, &device[offset..end]), Verdict::Allow);
    }

    /// One changed byte inside a mark is refused, whatever lies around it in the same write.
    #[test]
    fn one_byte_inside_a_mark_is_refused(
        at in prop_oneof![1080_usize..1082, 1128_usize..1144],
        before in 0_usize..300,
        after in 1_usize..300,
    ) {
        let (mut device, rule) = formatted();
        device[at] ^= 0x40;
        let verdict = write(&rule, (at - before) as u64, &device[at - before..at + after]);
        prop_assert_eq!(verdict, Verdict::Deny(Reason::Identity));
    }

    /// Audit refuses nothing, and says exactly what enforcement would have refused.
    #[test]
    fn audit_never_refuses_and_always_tells(
        state in prop::sample::select(State::ALL.to_vec()),
        operation in prop::sample::select(vec![
            Operation::Open, Operation::Write, Operation::Unplaced, Operation::Erase, Operation::Map]),
        class in 0_u32..32,
        tainted: bool,
        offset in 0_u64..70_000,
        length in 0_u64..70_000,
    ) {
        let (_, mut rule) = formatted();
        rule.state = state as u32;
        let request = Asked { class: Class(class), tainted, ..request(operation, offset, length) };
        let enforced = decide(&rule, &request, &NoContent);
        rule.flags |= flag::AUDIT;
        let audited = decide(&rule, &request, &NoContent);
        prop_assert!(!matches!(enforced, Verdict::WouldDeny(_)));
        match enforced {
            Verdict::Deny(reason) => prop_assert_eq!(audited, Verdict::WouldDeny(reason)),
            other => prop_assert_eq!(audited, other),
        }
    }

    /// Whatever a damaged or hostile rule holds: an answer comes, without a panic and without an endless
    /// loop.
    #[test]
    fn any_rule_and_any_request_get_an_answer(
        words in prop::collection::vec(any::<u64>(), 4 * MAX_CHECKS),
        head: [u64; 3], state: u32, flags: u32, count: u32, offset: u64, length: u64, class: u32,
    ) {
        let mut rule = Rule::new(1, head[0], State::Formatted);
        (rule.low, rule.high, rule.state, rule.flags, rule.count) = (head[1], head[2], state, flags, count);
        for (check, raw) in rule.checks.iter_mut().zip(words.chunks_exact(4)) {
            *check = Check { offset: raw[0], length: raw[1] as u32 % 17, kind: (raw[1] >> 32) as u32, bytes: [raw[2], raw[3]] };
        }
        let request = Asked { class: Class(class), ..request(Operation::Write, offset, length) };
        let _ = decide(&rule, &request, &Bytes(&[0; 64]));
    }
}

#[test]
fn who_comes_before_a_volume_was_read_is_told_so() {
    let unverified = with_state(State::Unverified);
    let unread = Rule { flags: flag::UNREAD, ..unverified };
    let layer = Rule { flags: flag::UNREAD | flag::LAYER, ..unverified };
    let reasons = |rule: &Rule| {
        [
            by(Class::FORMATTER, rule, Operation::Open),
            by(Class::UNKNOWN, rule, Operation::Erase),
            write(rule, 0, b"XFSB"),
        ]
    };
    assert_eq!(reasons(&unverified), [Verdict::Deny(Reason::Unverified); 3]);
    assert_eq!(reasons(&unread), [Verdict::Deny(Reason::NotReadYet); 3]);
    assert_eq!(by(Class::UNKNOWN, &layer, Operation::Map), Verdict::Deny(Reason::NotReadYet));
    // What is known of a volume outranks it.
    let formatted = Rule { flags: flag::UNREAD, ..formatted().1 };
    assert_eq!(by(Class::FORMATTER, &formatted, Operation::Open), Verdict::Deny(Reason::Formatter));
}

#[test]
fn formatters_and_erasers_are_refused_where_a_format_is_or_may_be() {
    let (_, formatted) = formatted();
    for class in [Class::FORMATTER, Class::ERASER] {
        for operation in [Operation::Open, Operation::Write, Operation::Erase, Operation::Map] {
            assert_eq!(by(class, &formatted, operation), Verdict::Deny(Reason::Formatter));
            assert_eq!(
                by(class, &with_state(State::Unverified), operation),
                Verdict::Deny(Reason::Unverified)
            );
            assert_eq!(
                by(class, &with_state(State::Formatting), operation),
                Verdict::Deny(Reason::BeingFormatted)
            );
        }
    }
}

#[test]
fn a_blank_volume_lets_one_formatter_begin_and_an_eraser_begins_nothing() {
    let blank = with_state(State::Blank);
    assert_eq!(by(Class::FORMATTER, &blank, Operation::Open), Verdict::Begin);
    assert_eq!(by(Class::ERASER, &blank, Operation::Open), Verdict::Allow);
    let second = Asked {
        class: Class::FORMATTER,
        owner: Owner::Another { mounted: false },
        ..request(Operation::Open, 0, 0)
    };
    assert_eq!(decide(&blank, &second, &NoContent), Verdict::Deny(Reason::BeingFormatted));
    assert_eq!(decide(&blank, &Asked { owner: Owner::Caller, ..second }, &NoContent), Verdict::Allow);
}

#[test]
fn an_unknown_program_that_writes_a_magic_begins_a_format_on_a_blank_volume() {
    let blank = with_state(State::Blank);
    assert_eq!(write(&blank, 0, b"LUKS\xba\xbe\0\x02"), Verdict::Begin);
    assert_eq!(write(&blank, 0, b"plain data"), Verdict::Allow);
}

/// A database, a virtual machine's disk without a table, a test pattern.
#[test]
fn bytes_that_are_not_zero_are_content_on_a_blank_volume_and_zeros_are_none() {
    let mut blank = with_state(State::Blank);
    blank.flags |= flag::RAW;
    let mut page = [0; 512];
    let at = |rule: &Rule, class, offset, bytes: &[u8]| {
        let request = Request { operation: Operation::Write, offset, length: bytes.len() as u64 };
        decide(rule, &Asked { request, class, ..self::request(Operation::Write, 0, 0) }, &Bytes(bytes))
    };
    for offset in [0, 1 << 30] {
        assert_eq!(at(&blank, Class::UNKNOWN, offset, &page), Verdict::Allow, "dd if=/dev/zero");
        page[511] = 1;
        assert_eq!(at(&blank, Class::UNKNOWN, offset, &page), Verdict::Raw);
        assert_eq!(at(&blank, Class::TRUSTED, offset, &page), Verdict::Raw, "trusted, and no tool");
        for class in [Class::ERASER, Class::LVM, Class::MAINTAINER] {
            assert_eq!(at(&blank, class, offset, &page), Verdict::Allow, "shred, and whoever keeps formats");
        }
        for state in [State::Unverified, State::Permitted, State::Formatting, State::Formatted] {
            let other = Rule { state: state as u32, ..blank };
            assert_eq!(at(&other, Class::UNKNOWN, offset, &page), Verdict::Allow, "{state:?}");
        }
        page[511] = 0;
    }
    assert_eq!(write(&blank, 0, b"LUKS\xba\xbe\0\x02"), Verdict::Begin, "a format is more than that");
    let unseen = request(Operation::Write, 1 << 30, 4096);
    assert_eq!(decide(&blank, &unseen, &NoContent), Verdict::Fill, "it may be anything");
    assert!(!Clear::of(&blank, &with_state(State::Unverified)).passes(blank.dev, 1 << 30, 512));
}

/// busybox cat and cp (sendfile), pv (splice), a mapping.
#[test]
fn what_is_written_to_a_blank_volume_unseen_begins_what_may_be_a_format() {
    let blank = with_state(State::Blank);
    let unseen = |rule: &Rule, operation, offset| decide(rule, &request(operation, offset, 4096), &NoContent);
    for (operation, offset) in [(Operation::Map, 0), (Operation::Unplaced, 0), (Operation::Write, 0)] {
        assert_eq!(unseen(&blank, operation, offset), Verdict::Fill, "{operation:?}");
        let permitted = with_state(State::Permitted);
        assert_eq!(unseen(&permitted, operation, offset), Verdict::Allow, "{operation:?}: it may be none");
    }
    assert_eq!(unseen(&blank, Operation::Write, 1 << 30), Verdict::Allow, "no magic has its place there");
    assert_eq!(
        unseen(&with_state(State::Formatted), Operation::Write, 0),
        Verdict::Allow,
        "no mark lies there"
    );
}

#[test]
fn who_formatted_it_goes_on_where_the_rule_says_so_and_nobody_else() {
    let (_, mut rule) = formatted();
    let asked = |operation, owner| Asked { owner, ..request(operation, 1024, 512) };
    let all = [Operation::Open, Operation::Write, Operation::Erase, Operation::Map, Operation::Unplaced];
    for operation in all {
        let without = decide(&rule, &asked(operation, Owner::Caller), &Bytes(&[0; 512]));
        rule.flags |= flag::HELD;
        assert_eq!(decide(&rule, &asked(operation, Owner::Caller), &Bytes(&[0; 512])), Verdict::Allow);
        for owner in [Owner::None, Owner::Another { mounted: false }] {
            assert_eq!(decide(&rule, &asked(operation, owner), &Bytes(&[0; 512])), without, "{operation:?}");
        }
        rule.flags = 0;
        assert_eq!(without == Verdict::Allow, operation == Operation::Open, "{operation:?}");
    }
    rule.flags |= flag::HELD;
    let formatter = Asked { class: Class::FORMATTER, ..asked(Operation::Open, Owner::Caller) };
    assert_eq!(decide(&rule, &formatter, &NoContent), Verdict::Deny(Reason::Formatter));
}

#[test]
fn a_permit_lets_an_unknown_program_overwrite_marks_as_the_one_holder() {
    let (_, mut rule) = formatted();
    rule.state = State::Permitted as u32;
    assert_eq!(write(&rule, 1024, &[0; 512]), Verdict::Begin);
    assert_eq!(decide(&rule, &request(Operation::Erase, 0, 4096), &NoContent), Verdict::Begin);
    assert_eq!(write(&rule, 1200, &[0; 100]), Verdict::Allow);
    let another = Asked { owner: Owner::Another { mounted: false }, ..request(Operation::Erase, 0, 4096) };
    assert_eq!(decide(&rule, &another, &NoContent), Verdict::Deny(Reason::BeingFormatted));
}

#[test]
fn after_a_format_the_next_layer_goes_on_until_a_mount_settles_it() {
    let blank = with_state(State::Blank);
    let bytes = b"LABELONE";
    assert_eq!(
        decide(
            &blank,
            &Asked { owner: Owner::Another { mounted: false }, ..request(Operation::Write, 1080, 2) },
            &Bytes(&[0; 2])
        ),
        Verdict::Deny(Reason::BeingFormatted)
    );
    let next = |mounted| Asked {
        owner: Owner::Another { mounted },
        ..request(Operation::Write, 512, bytes.len() as u64)
    };
    assert_eq!(decide(&blank, &next(false), &Bytes(bytes)), Verdict::Allow);
    assert_eq!(decide(&blank, &next(true), &Bytes(bytes)), Verdict::Deny(Reason::BeingFormatted));
    let fsck = Asked { class: Class::MAINTAINER, ..next(true) };
    assert_eq!(decide(&blank, &fsck, &Bytes(bytes)), Verdict::Allow);
    let erase = |class, offset| {
        let request = request(Operation::Erase, offset, 4096);
        decide(&blank, &Asked { class, owner: Owner::Another { mounted: false }, ..request }, &NoContent)
    };
    // Over the place of a foreign magic.
    assert_eq!(erase(Class::MAINTAINER, 1024), Verdict::Allow);
    assert_eq!(erase(Class::MAINTAINER, 0), Verdict::Deny(Reason::BeingFormatted));
    assert_eq!(erase(Class::UNKNOWN, 1024), Verdict::Deny(Reason::BeingFormatted));
}

#[test]
fn a_discard_is_refused_only_at_the_start_and_where_a_mark_is() {
    let (_, rule) = formatted();
    for (offset, length, verdict) in [
        (0, 1 << 30, Verdict::Deny(Reason::Discard)),
        (1081, 1, Verdict::Deny(Reason::Discard)),
        (0, u64::MAX, Verdict::Deny(Reason::Discard)),
        (0, 1024, Verdict::Deny(Reason::Discard)),
        (0, 0, Verdict::Allow),
        (1024, 56, Verdict::Allow),
        (1144, 1 << 30, Verdict::Allow),
        (1 << 20, 1 << 20, Verdict::Allow),
    ] {
        assert_eq!(
            decide(&rule, &request(Operation::Erase, offset, length), &NoContent),
            verdict,
            "{offset}+{length}"
        );
    }
}

#[test]
fn an_unverified_volume_takes_no_format_but_holds_nothing_else_up() {
    let rule = with_state(State::Unverified);
    assert_eq!(write(&rule, 0, b"XFSB"), Verdict::Deny(Reason::Unverified));
    assert_eq!(write(&rule, 0, b"some plain data, longer than any magic"), Verdict::Allow);
    assert_eq!(write(&rule, 1080, &[0; 2]), Verdict::Deny(Reason::Unverified), "a signature is wiped");
    assert_eq!(write(&rule, 1082, &[0; 2]), Verdict::Allow);
    assert_eq!(write(&rule, 4 << 20, &[0; 4096]), Verdict::Allow);
    assert_eq!(by(Class::UNKNOWN, &rule, Operation::Erase), Verdict::Deny(Reason::Unverified));
    assert_eq!(by(Class::UNKNOWN, &rule, Operation::Map), Verdict::Allow);
    let fsck = Asked { class: Class::MAINTAINER, ..request(Operation::Write, 1080, 2) };
    assert_eq!(decide(&rule, &fsck, &Bytes(b"\x53\xef")), Verdict::Allow);
}

#[test]
fn a_repair_tool_is_not_held_up_where_only_the_mount_is_known_and_keeps_every_mark() {
    let known_by_mount = with_state(State::Formatted);
    let fsck = Asked { class: Class::MAINTAINER, ..request(Operation::Write, 1080, 2) };
    assert_eq!(decide(&known_by_mount, &fsck, &Bytes(b"\x53\xef")), Verdict::Allow);
    assert_eq!(write(&known_by_mount, 1080, b"\x53\xef"), Verdict::Deny(Reason::ForeignFormat));
    let (_, formatted) = formatted();
    assert_eq!(decide(&formatted, &fsck, &Bytes(&[0; 2])), Verdict::Deny(Reason::Identity));
}

#[test]
fn a_relabelling_tool_changes_the_uuid_and_never_the_magic() {
    let (_, rule) = formatted();
    let tool =
        |offset, length| Asked { class: Class::RELABELLER, ..request(Operation::Write, offset, length) };
    assert_eq!(decide(&rule, &tool(1128, 16), &Bytes(&[7; 16])), Verdict::Relabel);
    assert_eq!(decide(&rule, &tool(1080, 64), &Bytes(&[7; 64])), Verdict::Deny(Reason::Identity));
}

#[test]
fn a_relabelling_tool_erases_what_it_may_change_and_no_more() {
    let (_, mut rule) = formatted();
    rule.tools = Class::EXT.0;
    let erase = |class, offset, length| {
        decide(&rule, &Asked { class, ..request(Operation::Erase, offset, length) }, &NoContent)
    };
    let own = Class::RELABELLER.with(Class::EXT);
    assert_eq!(erase(own, 1128, 4096), Verdict::Relabel);
    for (class, offset) in
        [(Class::UNKNOWN, 1128), (Class::RELABELLER.with(Class::LUKS), 1128), (own, 1080), (own, 0)]
    {
        assert_eq!(erase(class, offset, 4096), Verdict::Deny(Reason::Discard), "{offset}");
    }
}

#[test]
fn a_tool_relabels_its_own_format_alone() {
    let (_, mut rule) = formatted();
    rule.tools = Class::EXT.0;
    for known in crate::program::PROGRAMS.iter().filter(|known| known.class.is(Class::RELABELLER)) {
        let asked = Asked { class: known.class, ..request(Operation::Write, 1128, 16) };
        let own = known.class.is(Class::EXT);
        let wanted = if own { Verdict::Relabel } else { Verdict::Deny(Reason::Identity) };
        assert_eq!(decide(&rule, &asked, &Bytes(&[7; 16])), wanted, "{}", known.name);
    }
}

#[test]
fn what_converts_a_luks_gives_up_its_headers_and_no_other_format() {
    let (_, mut rule) = formatted();
    let converts = Class::RELABELLER.with(Class::LUKS);
    let mut erase = |class, tools: Class| {
        rule.tools = tools.0;
        decide(&rule, &Asked { class, ..request(Operation::Erase, 0, 4096) }, &NoContent)
    };
    assert_eq!(erase(converts, Class::LUKS), Verdict::Relabel);
    for (class, tools) in [
        (converts, Class::EXT),
        (converts, Class::UNKNOWN),
        (Class::LUKS, Class::LUKS),
        (Class::RELABELLER.with(Class::EXT), Class::EXT),
        (Class::UNKNOWN, Class::LUKS),
    ] {
        assert_eq!(erase(class, tools), Verdict::Deny(Reason::Discard), "{class:?} on {tools:?}");
    }
}

#[test]
fn what_builds_metadata_anew_is_kept_from_other_formats_and_from_nothing_else() {
    let (_, formatted) = formatted();
    let known = Rule { tools: Class::EXT.0, ..formatted };
    for operation in [Operation::Open, Operation::Write] {
        assert_eq!(by(Class::REBUILDER, &known, operation), Verdict::Deny(Reason::Formatter));
    }
    // A pool's metadata, known by the volumes that lie on it alone, and one of which nothing is known yet.
    for rule in [Rule { tools: 0, ..formatted }, with_state(State::Unverified), with_state(State::Blank)] {
        assert_eq!(by(Class::REBUILDER, &rule, Operation::Open), Verdict::Allow);
    }
}

#[test]
fn an_owner_wipes_what_is_not_recorded_yet_and_nothing_else() {
    let (_, formatted) = formatted();
    assert_eq!(by(Class::OWNER, &formatted, Operation::Erase), Verdict::Deny(Reason::Discard));
    let unverified = with_state(State::Unverified);
    assert_eq!(by(Class::OWNER, &unverified, Operation::Erase), Verdict::OwnerWipe);
    assert_eq!(by(Class::UNKNOWN, &unverified, Operation::Erase), Verdict::Deny(Reason::Unverified));
}

#[test]
fn unreadable_bytes_are_refused_on_a_mark_and_nowhere_else() {
    let (_, rule) = formatted();
    let blind = |offset| decide(&rule, &request(Operation::Write, offset, 64), &NoContent);
    assert_eq!(blind(1100), Verdict::Deny(Reason::Unreadable));
    assert_eq!(blind(1144), Verdict::Allow);
    assert_eq!(
        decide(&rule, &request(Operation::Unplaced, 0, 0), &NoContent),
        Verdict::Deny(Reason::Unplaced)
    );
    assert_eq!(decide(&rule, &request(Operation::Map, 0, 0), &NoContent), Verdict::Deny(Reason::Mapping));
}

#[test]
fn a_tainted_process_writes_nothing_and_an_exempt_volume_takes_everything() {
    let (_, mut rule) = formatted();
    let far = Asked { tainted: true, ..request(Operation::Write, 1 << 30, 512) };
    assert_eq!(decide(&rule, &far, &Bytes(&[0; 512])), Verdict::Deny(Reason::Tainted));
    rule.state = State::Exempt as u32;
    assert_eq!(decide(&rule, &far, &Bytes(&[0; 512])), Verdict::Allow);
}

proptest! {
    /// The short way says nothing that the long one does not.
    #[test]
    fn what_passes_is_allowed_by_this_rule_and_by_the_one_for_unknown_devices(
        marks in prop::collection::vec((0_u64..200_000, 1_usize..16), 0..10),
        offset in 0_u64..300_000, length in 1_u64..70_000, state in 0_u32..6, flags in 0_u32..256, magic in any::<bool>(),
        tools in prop_oneof![Just(0), any::<u32>()], class in prop_oneof![Just(0), any::<u32>()],
    ) {
        let unknown = with_state(State::Unverified);
        let mut rule = Rule::new(7, 77, State::Formatted);
        rule.state = state;
        // In audit a strict volume's rule would say no and let it through.
        rule.flags = flags & !flag::AUDIT;
        for (offset, length) in marks {
            let kind = if magic { CheckKind::Magic } else { CheckKind::Uuid };
            let _ = rule.push(Check::new(offset, &vec![0xee; length], kind).expect("fits"));
        }
        foreign(&mut rule, "ext4");
        rule.tools = tools;
        let clear = Clear::of(&rule, &unknown);
        if clear.passes(7, offset, length) && Clear::takes(clear.only, Class(class)) {
            for rule in [&rule, &unknown] {
                let asked = Asked { class: Class(class), ..request(Operation::Write, offset, length) };
                prop_assert_eq!(decide(rule, &asked, &NoContent), Verdict::Allow);
            }
        }
    }

    /// Bisection leaves out nothing that ends behind a byte, and little that does not.
    #[test]
    fn checks_that_lie_under_a_request_are_found(
        checks in prop::collection::vec((0_u64..2000, 1_usize..=16), 0..=MAX_CHECKS), offset in 0_u64..2100,
    ) {
        let mut rule = Rule::new(7, 77, State::Formatted);
        for (offset, length) in checks {
            rule.push(Check::new(offset, &vec![0xee; length], CheckKind::Magic).expect("fits")).expect("room");
        }
        prop_assert!(rule.checks().is_sorted_by_key(|check| check.offset));
        let first = usize::try_from(first_behind(&rule, offset)).expect("small");
        prop_assert!(rule.checks()[..first].iter().all(|check| check.end() <= offset));
        let next = rule.checks().get(first);
        prop_assert!(first == MAX_CHECKS - 1 || next.is_none_or(|check| check.offset + 16 > offset));
    }
}

#[test]
fn a_strict_volume_passes_writes_of_its_tools_alone() {
    let (_, mut rule) = formatted();
    rule.flags = flag::STRICT;
    for (tools, taken, refused) in [
        (Class::EXT, Class::EXT, Class::XFS),
        (Class::EXT, Class::TRUSTED, Class::MAINTAINER),
        (Class::UNKNOWN, Class::MAINTAINER, Class::ASSEMBLER),
    ] {
        rule.tools = tools.0;
        let clear = Clear::of(&rule, &Rule::new(0, 0, State::Unverified));
        assert!(clear.passes(rule.dev, 1 << 40, 4096));
        assert!(Clear::takes(clear.only, taken), "{tools:?}");
        for class in [Class::UNKNOWN, refused, taken.with(Class::FORMATTER)] {
            assert!(!Clear::takes(clear.only, class), "{tools:?} {class:?}");
        }
    }
}

#[test]
fn the_longest_stretches_without_a_check_are_clear() {
    let mut rule = Rule::new(7, 77, State::Formatted);
    for offset in [0, 1080, 8 << 20, 16 << 20] {
        rule.push(Check::new(offset, &[1; 8], CheckKind::Magic).expect("fits")).expect("room");
    }
    let clear = Clear::of(&rule, &Rule::new(0, 0, State::Unverified));
    let is_clear = |offset, length| clear.passes(7, offset, length);
    assert!(is_clear(1 << 20, 4096) && is_clear(12 << 20, 1 << 20) && is_clear(1 << 40, 1 << 50));
    assert!(is_clear(1088, 100) && !clear.passes(8, 1088, 100));
    for (offset, length) in [(0, 1), (1079, 2), (1087, 1), (1087, 4096), ((8 << 20) - 1, 2), (0, u64::MAX)] {
        assert!(!is_clear(offset, length), "{offset}+{length}");
    }
}

#[test]
fn a_strict_volume_takes_writes_of_known_programs_only() {
    let (_, mut rule) = formatted();
    rule.flags = flag::STRICT;
    for operation in [Operation::Open, Operation::Write, Operation::Erase, Operation::Map] {
        assert_eq!(by(Class::UNKNOWN, &rule, operation), Verdict::Deny(Reason::Strict));
    }
    for class in [Class::MAINTAINER, Class::RELABELLER, Class::OWNER, Class::TRUSTED] {
        assert_eq!(by(class, &rule, Operation::Open), Verdict::Allow);
    }
    assert_eq!(
        by(Class::TRUSTED.with(Class::FORMATTER), &rule, Operation::Open),
        Verdict::Deny(Reason::Formatter)
    );
    for state in [State::Blank, State::Unverified, State::Exempt] {
        let mut other = with_state(state);
        other.flags = flag::STRICT;
        assert_eq!(by(Class::UNKNOWN, &other, Operation::Open), Verdict::Allow, "{state:?}");
    }
}

#[test]
fn trust_is_no_leave_to_touch_a_mark() {
    let (_, rule) = formatted();
    assert_eq!(by(Class::TRUSTED, &rule, Operation::Erase), Verdict::Deny(Reason::Discard));
    assert_eq!(by(Class::TRUSTED, &rule, Operation::Map), Verdict::Deny(Reason::Mapping));
}

#[test]
fn a_command_past_the_block_layer_is_refused_in_every_state_but_exempt() {
    for state in State::ALL {
        let wanted = if state == State::Exempt { Verdict::Allow } else { Verdict::Deny(Reason::Passthrough) };
        for class in [Class::UNKNOWN, Class::MAINTAINER, Class::FORMATTER, Class::TRUSTED] {
            assert_eq!(by(class, &with_state(state), Operation::Passthrough), wanted, "{state:?}");
        }
    }
}

#[test]
fn a_write_that_is_known_later_is_judged_later_by_whomever_and_whatever_lies_there() {
    for state in State::ALL {
        let wanted = if state == State::Exempt { Verdict::Allow } else { Verdict::Later };
        for flags in [0, flag::AUDIT, flag::STRICT, flag::LAYER, flag::HELD] {
            let rule = Rule { flags, ..with_state(state) };
            for class in [Class::UNKNOWN, Class::MAINTAINER, Class::FORMATTER, Class::TRUSTED] {
                assert_eq!(by(class, &rule, Operation::Later), wanted, "{state:?}");
            }
        }
    }
}

#[test]
fn a_new_layer_over_a_format_takes_writes_of_known_programs_only() {
    let mut rule = with_state(State::Unverified);
    rule.flags = flag::LAYER;
    for operation in [Operation::Write, Operation::Erase, Operation::Map, Operation::Unplaced] {
        assert_eq!(by(Class::UNKNOWN, &rule, operation), Verdict::Deny(Reason::Unverified));
    }
    assert_eq!(by(Class::UNKNOWN, &rule, Operation::Open), Verdict::Allow);
    for class in [Class::TRUSTED, Class::OWNER, Class::MAINTAINER] {
        let verdict = by(class, &rule, Operation::Map);
        assert_eq!(verdict, by(class, &with_state(State::Unverified), Operation::Map), "{class:?}");
    }
    assert_eq!(by(Class::FORMATTER, &rule, Operation::Open), Verdict::Deny(Reason::Unverified));
}

#[test]
fn what_a_permitted_program_wipes_is_told() {
    let eraser = |state, operation| {
        decide(&with_state(state), &Asked { class: Class::ERASER, ..request(operation, 0, 4096) }, &NoContent)
    };
    assert_eq!(eraser(State::Permitted, Operation::Open), Verdict::OwnerWipe);
    assert_eq!(eraser(State::Permitted, Operation::Erase), Verdict::Allow);
    assert_eq!(eraser(State::Blank, Operation::Open), Verdict::Allow);
}

/// Where no agent takes it away: what was recorded is kept as it was before.
#[test]
fn a_permit_ends_in_the_kernel_too() {
    let rule = Rule { permit_ends: 100, ..with_state(State::Permitted) };
    let of = |permit_lasts, class, operation| {
        decide(&rule, &Asked { class, permit_lasts, ..request(operation, 0, 4096) }, &NoContent)
    };
    assert_eq!(of(true, Class::FORMATTER, Operation::Open), Verdict::Begin);
    assert_eq!(of(false, Class::FORMATTER, Operation::Open), Verdict::Deny(Reason::Formatter));
    let formatted = with_state(State::Formatted);
    for operation in
        [Operation::Open, Operation::Write, Operation::Erase, Operation::Map, Operation::Unplaced]
    {
        for class in [Class::UNKNOWN, Class::FORMATTER, Class::ERASER, Class::MAINTAINER] {
            let asked = Asked { class, ..request(operation, 0, 1 << 20) };
            assert_eq!(
                decide(&rule, &asked, &NoContent),
                decide(&formatted, &asked, &NoContent),
                "{asked:?}"
            );
        }
    }
    let without = Rule { permit_ends: 0, ..rule };
    let asked = Asked { class: Class::FORMATTER, ..request(Operation::Open, 0, 0) };
    assert_eq!(decide(&without, &asked, &NoContent), Verdict::Begin, "it lasts as long as the rule");
    assert!(rule.permit_lasts(100_000_000_000 - 1) && !rule.permit_lasts(100_000_000_000));
}

#[test]
fn without_its_claim_nobody_begins_a_format_or_goes_on_with_one() {
    for state in [State::Blank, State::Permitted, State::Formatting] {
        let rule = Rule { claim: 3, ..with_state(state) };
        let of = |claim_lasts, class, owner, operation, offset| {
            decide(
                &rule,
                &Asked { class, owner, claim_lasts, ..request(operation, offset, 4096) },
                &NoContent,
            )
        };
        let lost = Verdict::Deny(Reason::Claim);
        assert_eq!(of(false, Class::FORMATTER, Owner::None, Operation::Open, 0), lost);
        // Not at the place of a check either: what lies there may be another node's by now.
        assert_eq!(of(false, Class::UNKNOWN, Owner::Caller, Operation::Write, 1 << 40), lost);
        assert_eq!(of(false, Class::FORMATTER, Owner::Caller, Operation::Write, 1 << 40), lost);
        assert_eq!(of(false, Class::UNKNOWN, Owner::None, Operation::Write, 1 << 40), Verdict::Allow);
        assert_eq!(
            of(false, Class::UNKNOWN, Owner::None, Operation::Erase, 0),
            Verdict::Deny(Reason::Unverified)
        );
        assert_eq!(of(true, Class::UNKNOWN, Owner::Caller, Operation::Write, 0), Verdict::Allow);
        let clear = Clear::of(&rule, &Rule::new(0, 0, State::Unverified));
        assert!(!clear.passes(rule.dev, 1 << 40, 4096), "no write of it goes unasked");
        assert!(Clear::of(&Rule { claim: 0, ..rule }, &Rule::new(0, 0, State::Unverified)).passes(
            rule.dev,
            1 << 40,
            1
        ));
    }
    let lease = crate::claim::Lease { until: 10, number: 3, ..Default::default() };
    assert!(lease.covers(3, 9) && !lease.covers(3, 10) && !lease.covers(2, 9));
}

#[test]
fn a_strict_volume_takes_writes_of_its_own_tools_alone() {
    let (_, mut rule) = formatted();
    rule.flags = flag::STRICT;
    rule.tools = Class::MD.0;
    let known = |name: &str| {
        crate::program::PROGRAMS.iter().find(|program| program.name == name).expect("known").class
    };
    for name in ["tune2fs", "e2fsck", "debugfs", "vgchange", "vgcreate", "lvm", "xfs_repair", "swapon"] {
        for operation in [Operation::Open, Operation::Write, Operation::Erase, Operation::Map] {
            assert_eq!(by(known(name), &rule, operation), Verdict::Deny(Reason::Strict), "{name}");
        }
    }
    for name in ["mdadm", "mdmon", "grub-bios-setup"] {
        assert_eq!(by(known(name), &rule, Operation::Open), Verdict::Allow, "{name}");
    }
    rule.tools = Class::EXT.0;
    assert_eq!(by(known("e2fsck"), &rule, Operation::Open), Verdict::Allow);
    assert_eq!(by(known("mdadm"), &rule, Operation::Open), Verdict::Deny(Reason::Strict));
    rule.tools = Class::NO_TOOLS.0;
    assert_eq!(by(known("e2fsck"), &rule, Operation::Open), Verdict::Deny(Reason::Strict));
    assert_eq!(by(Class::TRUSTED, &rule, Operation::Open), Verdict::Allow);
    // Known by its mount alone for a moment: no repair tool is held up.
    rule.tools = 0;
    assert_eq!(by(known("e2fsck"), &rule, Operation::Open), Verdict::Allow);
}

#[test]
fn where_the_content_is_known_a_maintainer_writes_no_foreign_magic() {
    let (_, mut rule) = formatted();
    rule.tools = Class::EXT.0;
    for known in crate::program::PROGRAMS.iter().filter(|known| !known.class.is(Class::FORMATTER)) {
        let label = Asked { class: known.class, ..request(Operation::Write, 512, 8) };
        let verdict = decide(&rule, &label, &Bytes(b"LABELONE"));
        let at_open = known.class.is(Class::ERASER.with(Class::REBUILDER));
        let wanted = if at_open { Reason::Formatter } else { Reason::ForeignFormat };
        assert_eq!(verdict, Verdict::Deny(wanted), "{}", known.name);
    }
    let own = Asked { class: Class::MAINTAINER, ..request(Operation::Write, 1080, 2) };
    assert_eq!(decide(&rule, &own, &Bytes(b"\x53\xef")), Verdict::Allow);
}

#[test]
fn what_labels_a_device_is_no_maintainer_of_what_is_not_known() {
    let unverified = with_state(State::Unverified);
    for name in ["vgcreate", "vgextend", "pvcreate"] {
        let class = crate::program::PROGRAMS.iter().find(|known| known.name == name).expect("known").class;
        let label = Asked { class, ..request(Operation::Write, 512, 8) };
        let verdict = decide(&unverified, &label, &Bytes(b"LABELONE"));
        assert_eq!(verdict, Verdict::Deny(Reason::Unverified), "{name}");
    }
}

#[test]
fn a_dry_run_is_let_in_and_writes_nothing() {
    for state in [State::Formatted, State::Unverified, State::Blank, State::Formatting] {
        let rule = if state == State::Formatted { formatted().1 } else { with_state(state) };
        for name in [Class::FORMATTER, Class::ERASER] {
            let dry = name.with(Class::DRY_RUN);
            assert_eq!(by(dry, &rule, Operation::Open), Verdict::Allow, "{state:?}");
            for operation in [Operation::Write, Operation::Erase, Operation::Map] {
                let verdict = by(dry, &rule, operation);
                assert_eq!(verdict, by(name, &rule, operation), "it is what its name says: {state:?}");
            }
        }
    }
}

#[test]
fn a_formatter_adds_its_volume_to_a_journal_and_does_no_more_there() {
    let (_, mut rule) = formatted();
    rule.tools = Class::EXT.0;
    let user = Class::FORMATTER.with(Class::JOURNAL_USER);
    let of = |rule: &Rule, operation, offset, length| {
        let asked = Asked { class: user, ..request(operation, offset, length) };
        decide(rule, &asked, &Bytes(&[7; 4096][..length as usize]))
    };
    assert_eq!(of(&rule, Operation::Open, 0, 0), Verdict::Deny(Reason::Formatter), "no journal");
    rule.flags |= flag::JOURNAL;
    assert_eq!(of(&rule, Operation::Open, 0, 0), Verdict::Allow);
    assert_eq!(of(&rule, Operation::Write, 2048, 1024), Verdict::Allow);
    for (operation, offset, length, reason) in [
        (Operation::Write, 1024, 1024, Reason::Identity),
        (Operation::Write, 2048, 2048, Reason::Formatter),
        (Operation::Erase, 1 << 20, 1024, Reason::Formatter),
        (Operation::Map, 0, 0, Reason::Formatter),
    ] {
        assert_eq!(of(&rule, operation, offset, length), Verdict::Deny(reason));
    }
    assert_eq!(by(Class::FORMATTER, &rule, Operation::Open), Verdict::Deny(Reason::Formatter));
    assert_eq!(of(&with_state(State::Blank), Operation::Open, 0, 0), Verdict::Begin);
    assert_eq!(of(&with_state(State::Unverified), Operation::Open, 0, 0), Verdict::Deny(Reason::Unverified));
}

#[test]
fn a_member_that_its_running_array_has_dropped_is_begun_anew_by_who_adds_it() {
    let (_, mut rule) = formatted();
    (rule.tools, rule.flags) = (Class::MD.0, flag::STRICT | flag::ARRAY_RUNS);
    let of = |rule: &Rule, class: Class, offset, bytes: &[u8]| {
        decide(rule, &Asked { class, ..request(Operation::Write, offset, bytes.len() as u64) }, &Bytes(bytes))
    };
    let adds = Class::MD.with(Class::JOINS);
    let identity = Verdict::Deny(Reason::Identity);
    assert_eq!(of(&rule, adds, 1024, &[0; 512]), Verdict::OwnerWipe);
    assert_eq!(of(&rule, adds, 1128, &[7; 16]), identity, "a member of another array");
    assert_eq!(of(&rule, Class::MD, 1024, &[0; 512]), identity, "--zero-superblock");
    assert_eq!(of(&rule, Class::EXT.with(Class::JOINS), 1024, &[0; 512]), Verdict::Deny(Reason::Strict));
    rule.flags = flag::STRICT;
    assert_eq!(of(&rule, adds, 1024, &[0; 512]), identity, "its array does not run");
}

const SNAPSHOT: u64 = Header::SNAPSHOT.0 as u64;

fn given(rule: &Rule, operation: Operation, header: u64, class: Class, owner: Owner) -> Verdict {
    decide(rule, &Asked { class, owner, ..request(operation, 0, header) }, &NoContent)
}

fn any_class() -> impl Strategy<Value = Class> {
    let known = crate::program::PROGRAMS.iter().map(|program| program.class).collect::<Vec<_>>();
    prop_oneof![Just(Class::UNKNOWN), prop::sample::select(known), Just(Class::TRUSTED)]
}

proptest! {
    /// Whatever is recorded, whoever asks: the kernel writes no header, and over nothing, where it is not at
    /// home.
    #[test]
    fn the_kernel_writes_over_no_recorded_format_but_its_own(
        header in 0_u32..12,
        at_home in any::<u32>(),
        class in any_class(),
        operation in prop::sample::select(vec![Operation::Header, Operation::Give]),
    ) {
        let (_, mut rule) = formatted();
        rule.tools = Class::EXT.0;
        let header = 1 << header;
        rule.at_home = at_home & !header;
        let verdict = given(&rule, operation, header.into(), class, Owner::None);
        prop_assert!(matches!(verdict, Verdict::Deny(_)), "{verdict:?}");
        rule.at_home |= header;
        let verdict = given(&rule, operation, header.into(), class, Owner::None);
        let destroyer = class.is(Class::FORMATTER.with(Class::ERASER).with(Class::REBUILDER));
        prop_assert_eq!(verdict == Verdict::Allow, !destroyer, "{:?}", verdict);
    }

    /// In no state but the operator's exemption, and a permit, does a header come to lie where a format may
    /// be, unless who asks has looked for it.
    #[test]
    fn a_header_of_the_kernel_is_refused_where_a_format_may_be(class in any_class(), header in 0_u32..12) {
        let rule = with_state(State::Unverified);
        let verdict = given(&rule, Operation::Header, 1 << header, class, Owner::None);
        let looked = class.is(Class::ASSEMBLER) && !class.is(Class::FORMATTER.with(Class::ERASER));
        prop_assert_eq!(verdict, if looked { Verdict::Allow } else { Verdict::Deny(Reason::Unverified) });
        for state in [State::Blank, State::Permitted] {
            let verdict = given(&with_state(state), Operation::Header, 1 << header, class, Owner::None);
            prop_assert_eq!(verdict == Verdict::Begin, !class.is(Class::ERASER), "{:?}", verdict);
        }
        let exempt = with_state(State::Exempt);
        prop_assert_eq!(given(&exempt, Operation::Header, 1 << header, class, Owner::None), Verdict::Allow);
    }
}

#[test]
fn what_a_layer_is_given_is_not_asked_for_before_a_format_is_recorded() {
    for state in [State::Unverified, State::Blank, State::Permitted, State::Formatting] {
        let verdict = given(&with_state(state), Operation::Give, SNAPSHOT, Class::UNKNOWN, Owner::None);
        assert_eq!(verdict, Verdict::Allow, "{state:?}");
    }
    let (_, rule) = formatted();
    let verdict = given(&rule, Operation::Give, SNAPSHOT, Class::UNKNOWN, Owner::None);
    assert_eq!(verdict, Verdict::Deny(Reason::KernelFormat));
}

#[test]
fn who_has_looked_for_a_header_goes_on_where_only_what_lies_on_it_is_known() {
    let (_, mut rule) = formatted();
    rule.count = 0;
    for operation in [Operation::Header, Operation::Give] {
        let asked = |rule: &Rule, name| given(rule, operation, SNAPSHOT, class_of(name), Owner::None);
        rule.tools = 0;
        assert_eq!(asked(&rule, "lvm"), Verdict::Allow);
        assert_eq!(asked(&rule, "dmsetup"), Verdict::Deny(Reason::KernelFormat));
        // Read, and no format that has tools of its own.
        rule.tools = Class::NO_TOOLS.0;
        assert_eq!(asked(&rule, "lvm"), Verdict::Deny(Reason::KernelFormat));
    }
}

#[test]
fn who_formats_a_volume_has_the_kernel_write_its_header_and_a_second_one_has_not() {
    let rule = with_state(State::Formatting);
    let another = Owner::Another { mounted: false };
    let asked = |class, owner| given(&rule, Operation::Header, SNAPSHOT, class, owner);
    assert_eq!(asked(Class::UNKNOWN, Owner::Caller), Verdict::Allow);
    assert_eq!(asked(Class::UNKNOWN, another), Verdict::Deny(Reason::BeingFormatted));
    // cryptsetup open, this moment after luksFormat --integrity.
    assert_eq!(asked(class_of("cryptsetup"), another), Verdict::Allow);
    let mounted = Owner::Another { mounted: true };
    assert_eq!(asked(class_of("cryptsetup"), mounted), Verdict::Deny(Reason::BeingFormatted));
}

#[test]
fn in_audit_a_header_of_the_kernel_is_told_and_goes_on() {
    let (_, mut rule) = formatted();
    rule.flags |= flag::AUDIT;
    let verdict = given(&rule, Operation::Header, SNAPSHOT, Class::UNKNOWN, Owner::None);
    assert_eq!(verdict, Verdict::WouldDeny(Reason::KernelFormat));
}

#[test]
fn metadata_of_device_mapper_are_its_own_tools_to_make_anew() {
    let mut rule = Rule::new(0x70_0001, 77, State::Formatted);
    rule.push(Check::new(32, &[1; 8], CheckKind::Magic).expect("fits")).expect("room");
    rule.tools = Class::DM_METADATA.0;
    let zeros =
        |class| decide(&rule, &Asked { class, ..request(Operation::Write, 0, 512) }, &Bytes(&[0; 512]));
    for tool in ["thin_repair", "thin_restore", "lvconvert", "lvcreate"] {
        assert_eq!(zeros(class_of(tool)), Verdict::Allow, "{tool}");
    }
    assert_eq!(zeros(Class::UNKNOWN), Verdict::Deny(Reason::Identity));
    assert_eq!(by(class_of("mkfs.ext4"), &rule, Operation::Open), Verdict::Deny(Reason::Formatter));
}
