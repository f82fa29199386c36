//! The one function that decides: everything else carries to it and from it.

use crate::{
    Caller, Check, CheckKind, Content, MAX_CHECK_BYTES, MAX_CHECKS, Operation, Owner, Reason, Request, Rule,
    State, Verdict, each::each, flag, opaque, program::Class,
};

/// Judges one request to a device under its rule.
///
/// A device without a rule is judged under one of state [`State::Unverified`] that holds the foreign magics.
#[inline(always)]
pub fn decide<C: Caller, B: Content>(rule: &Rule, request: &Request, caller: &C, content: &B) -> Verdict {
    let touch = touched(rule, request, content);
    match judge(rule, request, touch, caller, content) {
        Verdict::Deny(reason) if rule.flags & flag::AUDIT != 0 => Verdict::WouldDeny(reason),
        verdict => verdict,
    }
}

#[inline(always)]
fn judge<C: Caller, B: Content>(
    rule: &Rule,
    request: &Request,
    touch: Touch,
    caller: &C,
    content: &B,
) -> Verdict {
    const EXEMPT: u32 = State::Exempt as u32;
    const FORMATTED: u32 = State::Formatted as u32;
    const BLANK: u32 = State::Blank as u32;
    const PERMITTED: u32 = State::Permitted as u32;
    const FORMATTING: u32 = State::Formatting as u32;

    let operation = request.operation;
    let state = if rule.state == PERMITTED && rule.permit_ends != 0 && !caller.permit_lasts() {
        // An agent that runs takes the permit away itself.
        FORMATTED
    } else {
        rule.state
    };
    // What was found is unknown to the verifier: else it follows both ways apart.
    let state = opaque(u64::from(state), rule.diskseq) as u32;
    if state == EXEMPT {
        return Verdict::Allow;
    }
    if matches!(operation, Operation::Later) {
        return Verdict::Later;
    }
    // What it writes where is not known here, and on a blank volume nobody would notice a format made by it.
    if matches!(operation, Operation::Passthrough) {
        return Verdict::Deny(Reason::Passthrough);
    }
    if caller.tainted() {
        return Verdict::Deny(Reason::Tainted);
    }
    let class = caller.class();
    let harmless = is_dry(class, operation) || adds_to_journal(rule, request, class);
    let destroyer = class.is(Class::FORMATTER.with(Class::ERASER)) && !harmless;
    match state {
        FORMATTED if destroyer => Verdict::Deny(Reason::Formatter),
        FORMATTED if class.is(Class::REBUILDER) && rule.tools != 0 && !rebuilds(rule, class) => {
            Verdict::Deny(Reason::Formatter)
        }
        FORMATTED if rule.flags & flag::HELD != 0 && matches!(caller.owner(), Owner::Caller) => {
            Verdict::Allow
        }
        FORMATTED if rule.flags & flag::STRICT != 0 && !keeps(rule, class) => Verdict::Deny(Reason::Strict),
        // Raw content has no bytes that identify it: its user may write by every road.
        FORMATTED
            if rule.flags & flag::RAW != 0 && matches!(operation, Operation::Map | Operation::Unplaced) =>
        {
            Verdict::Allow
        }
        FORMATTED if joins_again(rule, operation, touch, class) => Verdict::OwnerWipe,
        FORMATTED if is_at_home(rule, request) || rebuilds(rule, class) => Verdict::Allow,
        FORMATTED => keep(operation, touch, class, Class(rule.tools)),
        BLANK | PERMITTED | FORMATTING if rule.claim != 0 && !caller.claim_lasts() => {
            // Another node may format it by now, or hold data on it.
            if destroyer || matches!(caller.owner(), Owner::Caller) {
                return Verdict::Deny(Reason::Claim);
            }
            unverified(rule, operation, touch, class)
        }
        BLANK | PERMITTED | FORMATTING => match caller.owner() {
            Owner::Caller => Verdict::Allow,
            Owner::None if state != FORMATTING => {
                if destroyer && class.is(Class::FORMATTER) {
                    Verdict::Begin
                } else if destroyer && state == PERMITTED && matches!(operation, Operation::Open) {
                    // What it takes away is not to be remembered.
                    Verdict::OwnerWipe
                } else if destroyer {
                    Verdict::Allow
                } else {
                    let raw = rule.flags & flag::RAW != 0 && class.is_no_tool();
                    first(state == BLANK, raw, request, touch, content)
                }
            }
            _ if destroyer => Verdict::Deny(Reason::BeingFormatted),
            owner => bystander(owner, operation, touch, class),
        },
        // Unverified, and whatever a damaged rule may say.
        _ if destroyer => Verdict::Deny(doubt(rule)),
        // Where the marks of the volume below lie on it, the agent will have found out in a moment.
        _ if rule.flags & flag::LAYER != 0 && class.is_unknown() && !matches!(operation, Operation::Open) => {
            Verdict::Deny(doubt(rule))
        }
        _ => unverified(rule, operation, touch, class),
    }
}

/// Whether a program that says it will write nothing opens the device. A write of such a program is judged by
/// the program's name.
#[inline(always)]
fn is_dry(class: Class, operation: Operation) -> bool {
    class.is(Class::DRY_RUN) && matches!(operation, Operation::Open)
}

/// Bytes that mke2fs writes to the journal of another volume, at once: its superblock, with one UUID more
/// (`ext2fs_add_journal_device`, e2fsprogs 1.47).
const JOURNAL_SUPERBLOCK: u64 = 1024;

/// Whether a formatter does no more than to add a file system to the journal that the volume holds, or is
/// about to hold.
#[inline(always)]
fn adds_to_journal(rule: &Rule, request: &Request, class: Class) -> bool {
    let journal = rule.flags & flag::JOURNAL != 0 || rule.state == State::Formatting as u32;
    let little = match request.operation {
        Operation::Open => true,
        Operation::Write => request.length <= JOURNAL_SUPERBLOCK,
        _ => false,
    };
    class.is(Class::JOURNAL_USER) && journal && little
}

/// Whether a member that its running array has dropped is about to be added to it: `mdadm` wipes its
/// superblock before it writes another of the same UUID (`write_init_super1`, mdadm 4.2). One that the array
/// has not dropped it cannot open.
#[inline(always)]
fn joins_again(rule: &Rule, operation: Operation, touch: Touch, class: Class) -> bool {
    class.is(Class::JOINS)
        && class.is(Class(rule.tools))
        && rule.flags & flag::ARRAY_RUNS != 0
        && matches!(operation, Operation::Write)
        && touch.has(Touch::MAGIC)
        && !touch.has(Touch::UNREADABLE | Touch::FOREIGN)
}

/// Whether the kernel finds its own header there, and writes none.
#[inline(always)]
fn is_at_home(rule: &Rule, request: &Request) -> bool {
    matches!(request.operation, Operation::Header | Operation::Give)
        && u64::from(rule.at_home) & request.length != 0
}

/// Whether the device holds metadata of device mapper, and the program is one that rebuilds such metadata or
/// LVM, which hands the device out.
#[inline(always)]
fn rebuilds(rule: &Rule, class: Class) -> bool {
    Class(rule.tools).is(Class::DM_METADATA) && class.is(Class::REBUILDER.with(Class::OWNER))
}

/// Whether a program may write to a strict volume: the tools of what it holds, where that is known, and those
/// that are trusted.
#[inline(always)]
fn keeps(rule: &Rule, class: Class) -> bool {
    if rule.tools == 0 { !class.is_unknown() } else { class.is(Class(rule.tools).with(Class::TRUSTED)) }
}

/// A volume that holds a format, whose tools these are, where that is known: its marks stay.
#[inline(always)]
fn keep(operation: Operation, touch: Touch, class: Class, tools: Class) -> Verdict {
    let known = !tools.is_unknown();
    let relabels = class.is(Class::RELABELLER) && (!known || class.is(tools));
    match operation {
        Operation::Open => Verdict::Allow,
        Operation::Map => Verdict::Deny(Reason::Mapping),
        Operation::Unplaced | Operation::Later => Verdict::Deny(Reason::Unplaced),
        Operation::Across | Operation::Passthrough => Verdict::Deny(Reason::Across),
        // What was not read yet may be known by what lies on it alone: then whether the header is there is
        // not known, and who asks has looked for it (vgchange -ay of a volume group with a dm-writecache, LVM
        // 2.03).
        Operation::Header | Operation::Give if !known && class.is(Class::ASSEMBLER) => Verdict::Allow,
        Operation::Header | Operation::Give => Verdict::Deny(Reason::KernelFormat),
        // cryptsetup gives up both headers of a LUKS2 before it has the LUKS1 that it converts it to
        // (fallocate, 2.6).
        Operation::Erase if touch.has(Touch::MARKS) && relabels && tools.is(Class::LUKS) => Verdict::Relabel,
        Operation::Erase if touch.has(Touch::MAGIC | Touch::START) => Verdict::Deny(Reason::Discard),
        Operation::Erase if touch.has(Touch::UUID) && relabels => Verdict::Relabel,
        Operation::Erase if touch.has(Touch::UUID) => Verdict::Deny(Reason::Discard),
        Operation::Erase => Verdict::Allow,
        Operation::Write if touch.has(Touch::UNREADABLE) => Verdict::Deny(Reason::Unreadable),
        Operation::Write if touch.has(Touch::MAGIC) => Verdict::Deny(Reason::Identity),
        // What a volume holds may be known by its mount alone for a moment: then its own magic is foreign.
        Operation::Write if touch.has(Touch::FOREIGN) && (known || !class.is(Class::MAINTAINER)) => {
            Verdict::Deny(Reason::ForeignFormat)
        }
        Operation::Write if touch.has(Touch::UUID) => {
            if relabels {
                Verdict::Relabel
            } else {
                Verdict::Deny(Reason::Identity)
            }
        }
        Operation::Write => Verdict::Allow,
    }
}

/// A blank or permitted volume that nobody formats yet, and a caller that is no known formatter. `raw`: what
/// he writes is content, whatever it is.
#[inline(always)]
fn first<B: Content>(blank: bool, raw: bool, request: &Request, touch: Touch, content: &B) -> Verdict {
    let begins = match request.operation {
        Operation::Open | Operation::Give => false,
        // What it writes is not seen, and may be a format. A permit is not used up by what may be none.
        Operation::Unplaced | Operation::Later | Operation::Map if blank => return Verdict::Fill,
        Operation::Write if blank && raw && !touch.has(Touch::ANY) => {
            return match content.is_zero(request.length) {
                Some(true) => Verdict::Allow,
                Some(false) => Verdict::Raw,
                None => Verdict::Fill,
            };
        }
        Operation::Write if blank && touch.has(Touch::HIDDEN) && !touch.has(Touch::ANY) => {
            return Verdict::Fill;
        }
        Operation::Unplaced | Operation::Later | Operation::Map => false,
        Operation::Across | Operation::Passthrough | Operation::Header => true,
        Operation::Write => touch.has(Touch::ANY),
        Operation::Erase => touch.has(Touch::MARKS),
    };
    if begins { Verdict::Begin } else { Verdict::Allow }
}

/// A volume that another process formats or has formatted just now: what comes next on it (vgcreate after
/// pvcreate, a partition after a label) goes on, a second format does not.
#[inline(always)]
fn bystander(owner: Owner, operation: Operation, touch: Touch, class: Class) -> Verdict {
    let mounted = matches!(owner, Owner::Another { mounted: true });
    let refused = match operation {
        Operation::Open => false,
        Operation::Map | Operation::Unplaced | Operation::Later | Operation::Give => mounted,
        Operation::Across | Operation::Passthrough => true,
        // cryptsetup opens a header that it has just written.
        Operation::Header => mounted || !class.is(Class::ASSEMBLER),
        // e2fsck -E discard behind mkfs.ext4 erases what is free, up to the device's end.
        Operation::Erase if class.is(Class::MAINTAINER) => touch.has(Touch::MARKS | Touch::START),
        Operation::Erase => touch.has(Touch::ANY),
        Operation::Write => {
            touch.has(Touch::MARKS)
                // Two formats may share a place: one's magic is no wiping of the other's.
                || touch.has(Touch::WIPE) && !touch.has(Touch::FOREIGN) && !class.is(Class::MAINTAINER)
                || mounted && touch.has(Touch::FOREIGN) && !class.is(Class::MAINTAINER)
        }
    };
    if refused { Verdict::Deny(Reason::BeingFormatted) } else { Verdict::Allow }
}

/// A volume of which nothing is known for certain: no format may appear on it, and none may vanish at once.
#[inline(always)]
fn unverified(rule: &Rule, operation: Operation, touch: Touch, class: Class) -> Verdict {
    let refused = match operation {
        Operation::Open | Operation::Map | Operation::Unplaced | Operation::Later | Operation::Give => false,
        Operation::Across | Operation::Passthrough => true,
        // An assembler has looked for the header itself, on a device of its own layer or one that it has just
        // found.
        Operation::Header => !class.is(Class::ASSEMBLER),
        // lvcreate zeroes the start of a volume that it has made this moment (BLKZEROOUT, LVM 2.03).
        Operation::Erase if touch.has(Touch::ANY) && class.is(Class::OWNER) => return Verdict::OwnerWipe,
        Operation::Write if touch.has(Touch::WIPE) && class.is(Class::OWNER) => return Verdict::OwnerWipe,
        Operation::Erase => touch.has(Touch::ANY),
        // luksFormat and copies of wipefs wipe the old signature before they are anything else.
        Operation::Write => touch.has(Touch::ANY | Touch::WIPE) && !class.is(Class::MAINTAINER),
    };
    if refused { Verdict::Deny(doubt(rule)) } else { Verdict::Allow }
}

/// Why nothing is known for certain of what a volume holds: who came a moment too early is told so.
#[inline(always)]
fn doubt(rule: &Rule) -> Reason {
    if rule.flags & flag::UNREAD != 0 { Reason::NotReadYet } else { Reason::Unverified }
}

/// What of a rule's checks a request would change: a set of bits.
#[derive(Clone, Copy)]
struct Touch(u64);

impl Touch {
    /// The magic of the volume's own format.
    const MAGIC: u64 = 1;
    /// Its UUID.
    const UUID: u64 = 2;
    /// A foreign magic appears at its place; for an erasure, the place of one is covered.
    const FOREIGN: u64 = 4;
    /// A mark lies under bytes that cannot be read.
    const UNREADABLE: u64 = 8;
    /// An erasure begins in the first [`START`] bytes.
    const START: u64 = 16;
    /// The write is nothing but bytes at the place of a magic, and not that magic: what wiping a signature
    /// looks like.
    const WIPE: u64 = 32;
    /// The place of a foreign magic lies under bytes that cannot be read.
    const HIDDEN: u64 = 64;
    /// Any mark.
    const MARKS: u64 = Self::MAGIC | Self::UUID | Self::UNREADABLE;
    /// Any check.
    const ANY: u64 = Self::MARKS | Self::FOREIGN;

    #[inline(always)]
    const fn has(self, bits: u64) -> bool {
        self.0 & bits != 0
    }
}

/// No format has free space in its first bytes, so nothing but a new format erases them. mkfs.ext4 tries
/// there whether the device discards (BLKDISCARD of [0, 1024), e2fsprogs 1.47) and goes on to write
/// everywhere else if it does not.
const START: u64 = 1024;

/// Walks the checks that lie under the request's range.
#[inline(always)]
fn touched<C: Content>(rule: &Rule, request: &Request, content: &C) -> Touch {
    let erase = matches!(request.operation, Operation::Erase);
    let touch = if erase && request.offset < START && request.length > 0 { Touch::START } else { 0 };
    let end = request.offset.saturating_add(request.length);
    if !matches!(request.operation, Operation::Write | Operation::Erase)
        || request.offset >= rule.high
        || end <= rule.low
    {
        return Touch(touch);
    }
    let first = first_behind(rule, request.offset);
    let mut walk = Walk { rule, content, first, offset: request.offset, end, erase: u64::from(erase), touch };
    each(rule.count.wrapping_sub(first as u32), &mut walk, look::<C>);
    Touch(walk.touch)
}

/// The number of the first check that may end behind this byte, by bisection: six steps for 64. A function of
/// its own, for the stack of its caller.
#[inline(never)]
fn first_behind(rule: &Rule, offset: u64) -> u64 {
    const LAST: u64 = MAX_CHECKS as u64 - 1;
    let Some(before) = offset.checked_sub(MAX_CHECK_BYTES as u64) else { return 0 };
    let mut found = 0;
    let mut step = MAX_CHECKS as u64 / 2;
    while step > 0 {
        let probe = found + step;
        let check = &rule.checks[((probe - 1) & LAST) as usize];
        if probe <= u64::from(rule.count) && check.offset <= before {
            found = probe;
        }
        // Else the verifier follows each of them apart.
        found = opaque(found, rule.diskseq);
        step /= 2;
    }
    found
}

/// A request on its way along the checks.
struct Walk<'a, C> {
    rule: &'a Rule,
    content: &'a C,
    /// The first check that is looked at.
    first: u64,
    offset: u64,
    end: u64,
    /// One for an erasure, zero for a write.
    erase: u64,
    touch: u64,
}

/// Looks at one check.
extern "C" fn look<C: Content>(number: u32, walk: *mut Walk<'_, C>) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let walk = unsafe { &mut *walk };
    let number = walk.first.wrapping_add(u64::from(number));
    let Some(check) = walk.rule.checks.get(number as usize) else { return 1 };
    if check.offset >= walk.end {
        return 1;
    }
    let start = if walk.offset > check.offset { walk.offset } else { check.offset };
    let stop = if walk.end < check.end() { walk.end } else { check.end() };
    if start >= stop {
        return 0;
    }
    let bits = if walk.erase != 0 {
        match check.kind {
            FOREIGN => Touch::FOREIGN,
            UUID => Touch::UUID,
            _ => Touch::MAGIC,
        }
    } else {
        let bits = changed(check, start, stop - start, walk.offset, walk.content);
        let wipe = stop - start == walk.end - walk.offset && bits != Touch::FOREIGN;
        if wipe { bits | Touch::WIPE } else { bits }
    };
    // What was found is unknown to the verifier: else it follows each of the bits apart.
    walk.touch = opaque(walk.touch | bits, walk.rule.diskseq);
    0
}

const FOREIGN: u32 = CheckKind::Foreign as u32;
const UUID: u32 = CheckKind::Uuid as u32;

/// What writing the `length` bytes at `start` does to `check`, which lies under all of them.
#[inline(always)]
fn changed<C: Content>(check: &Check, start: u64, length: u64, offset: u64, content: &C) -> u64 {
    // A part of a foreign magic is not that magic.
    if check.kind == FOREIGN && length != u64::from(check.length) {
        return 0;
    }
    let Some(new) = content.read(start - offset, length) else {
        return if check.kind == FOREIGN { Touch::HIDDEN } else { Touch::UNREADABLE };
    };
    let old = shifted(check.bytes, start - check.offset);
    let [low, high] = mask(length);
    let same = ((new[0] ^ old[0]) & low) | ((new[1] ^ old[1]) & high) == 0;
    match (check.kind, same) {
        (FOREIGN, true) => Touch::FOREIGN,
        (FOREIGN, false) | (_, true) => 0,
        (UUID, false) => Touch::UUID,
        (_, false) => Touch::MAGIC,
    }
}

/// `bytes` without its first `n` (below 16).
#[inline(always)]
fn shifted(bytes: [u64; 2], n: u64) -> [u64; 2] {
    let [low, high] = bytes;
    let n = n & 15;
    if n >= 8 {
        [high >> (8 * (n & 7)), 0]
    } else if n > 0 {
        [low >> (8 * n) | high << (64 - 8 * n), high >> (8 * n)]
    } else {
        [low, high]
    }
}

/// All bits of the first `n` bytes (1 to 16).
#[inline(always)]
fn mask(n: u64) -> [u64; 2] {
    const fn word(n: u64) -> u64 {
        if n >= 8 { u64::MAX } else { (1 << (8 * (n & 7))) - 1 }
    }
    if n >= 8 { [u64::MAX, word(n - 8)] } else { [word(n), 0] }
}

#[cfg(test)]
mod tests;
