//! Carries a request to `decide()` and carries out the verdict: the only place that refuses.

use aya_ebpf::{bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_boot_ns};
use format_guard_common::{
    Caller, Content, NoContent, Operation, Owner, Placement, Reason, Request, Rule, State, Verdict,
    clear::{Clear, slots, taint_slot},
    decide,
    event::{Counter, EventKind, FormatOwner, KernelEvent, Process, Taint, TaintKey, wrote},
    flag, opaque,
    program::{Class, name_slot},
};

use crate::{
    caller,
    kernel::diskseq,
    log,
    maps::{
        self, CLEAR, EVENTS, FORMAT_OWNERS, FORMATTERS, LEASE, NAMES, TAINTED, TAINTS, UNKNOWN, WINDOWS,
        count,
    },
    stacking,
};

pub(crate) const EPERM: i32 = 1;
pub(crate) const EAGAIN: i32 = 11;

/// A block device and the rule that is in force for it.
#[derive(Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) dev: u32,
    /// The lower device through which it was reached; else zero.
    pub(crate) through: u32,
    /// The attachment: the medium's own where it is known, the rule's otherwise.
    pub(crate) diskseq: u64,
    pub(crate) rule: &'a Rule,
}

/// A field of a map value as it is now.
#[inline(always)]
pub(crate) fn read<T: Copy>(field: &T) -> T {
    // SAFETY: a reference; volatile, so that it is read at this place in the program.
    unsafe { core::ptr::read_volatile(field) }
}

/// The rule for an opened device: only if it was made for this very medium, else the one for unknown devices.
#[inline(always)]
pub(crate) fn target_of_file<'a>(file: *const u8, dev: u32) -> Option<Target<'a>> {
    let diskseq = diskseq(file);
    if let Some(rule) = maps::rule(dev) {
        if rule.diskseq == diskseq {
            let rule = if stacking::is_own(dev, rule.state) { UNKNOWN.get(stacking::OWN)? } else { rule };
            return Some(Target { dev, through: 0, diskseq, rule });
        }
        count(Counter::Stale);
        log::stale(dev, rule.diskseq, diskseq);
    }
    Some(Target { dev, through: 0, diskseq, rule: UNKNOWN.get(stacking::of_unknown(file, dev))? })
}

/// Whether a write passes whatever bytes it carries: it touches no check of the rule, and its caller was not
/// refused here, is no formatter, and may write to a strict volume.
#[inline(always)]
pub(crate) fn fast_path(dev: u32, offset: u64, length: u64) -> bool {
    is_clear(dev, offset, length) != 0
}

/// Exported, so that the verifier follows it by itself and once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn is_clear(dev: u32, offset: u64, length: u64) -> u64 {
    let [first, second] = slots(dev);
    let clear = CLEAR.get(first).filter(|clear| clear.dev == dev).or_else(|| CLEAR.get(second));
    let Some(clear) = clear else { return 0 };
    // These values are read before the device is compared: a moment later the slot may belong to another
    // device.
    let only = read(&clear.only);
    if !clear.passes(dev, offset, length) || TAINTED.get(taint_slot(caller::tgid())) != Some(&0) {
        return 0;
    }
    let named = only != 0 || NAMES.get(name_slot(caller::name())) != Some(&0);
    u64::from(!named || Clear::takes(only, caller::class_by_name()))
}

/// The rule for a device that is being opened, of which only the number is known.
#[inline(always)]
pub(crate) fn target_of_dev<'a>(dev: u32) -> Option<Target<'a>> {
    let rule = maps::rule(dev);
    if stacking::is_own(dev, rule.map_or(State::Unverified as u32, |rule| rule.state)) {
        return Some(Target { dev, through: 0, diskseq: 0, rule: UNKNOWN.get(stacking::OWN)? });
    }
    if let Some(rule) = rule {
        return Some(Target { dev, through: 0, diskseq: rule.diskseq, rule });
    }
    Some(Target { dev, through: 0, diskseq: 0, rule: UNKNOWN.get(stacking::ALONE)? })
}

/// Where a range of a device lies; `None` if the agent replaced the windows during the look-up.
#[inline(always)]
fn window_of(dev: u32, request: &Request) -> Option<Placement> {
    // SAFETY: the value counts only if the slot is still this device's afterwards.
    let Some(windows) = (unsafe { WINDOWS.get(dev) }) else { return Some(Placement::Own) };
    let placement = windows.place(request.offset, request.length);
    (read(&windows.dev) == dev).then_some(placement)
}

/// The volume to which a range of a device belongs, and the request in that volume's own offsets: either the
/// device's volume, or one that lies on the device and has a rule of its own.
#[inline(always)]
pub(crate) fn resolve_window(target: Target<'_>, mut request: Request) -> (Target<'_>, Request) {
    if target.rule.flags & flag::STACKED == 0
        || !matches!(request.operation, Operation::Write | Operation::Erase)
    {
        return (target, request);
    }
    let placement = window_of(target.dev, &request).or_else(|| window_of(target.dev, &request));
    match placement.unwrap_or(Placement::Across) {
        Placement::Own => {}
        Placement::Across => request.operation = Operation::Across,
        Placement::In { dev, offset } => {
            if let Some(rule) = maps::rule(dev) {
                request.offset = offset;
                return (Target { dev, through: target.dev, diskseq: rule.diskseq, rule }, request);
            }
            request.operation = Operation::Across;
        }
    }
    (target, request)
}

/// Whether the claim of this number lasts. A function of its own: judging a write leaves no room on the
/// stack.
#[inline(never)]
pub(crate) fn claim_lasts(claim: u32) -> bool {
    // SAFETY: no arguments.
    LEASE.get(0).is_some_and(|lease| lease.covers(claim, unsafe { bpf_ktime_get_boot_ns() }))
}

/// Whether the permit that a rule is put for lasts. A function of its own, for the stack of its caller.
#[inline(never)]
pub(crate) fn permit_lasts(rule: &Rule) -> bool {
    // SAFETY: no arguments.
    rule.permit_lasts(unsafe { bpf_ktime_get_boot_ns() })
}

impl Caller for Target<'_> {
    #[inline(always)]
    fn class(&self) -> Class {
        caller::class()
    }

    #[inline(always)]
    fn tainted(&self) -> bool {
        if TAINTED.get(taint_slot(caller::tgid())) == Some(&0) {
            return false;
        }
        let process = caller::process();
        // SAFETY: a torn entry fails the comparison.
        match unsafe { TAINTS.get(TaintKey { tgid: process.tgid, dev: self.dev }) } {
            Some(taint) => {
                taint.started == process.started
                    && taint.diskseq == self.diskseq
                    // SAFETY: no arguments.
                    && unsafe { bpf_ktime_get_boot_ns() } < taint.until
            }
            None => false,
        }
    }

    #[inline(always)]
    fn owner(&self) -> Owner {
        // SAFETY: entries are written once and removed by the agent; a torn one reads as another's.
        match unsafe { FORMAT_OWNERS.get(self.rule.lock_dev) } {
            Some(entry) if entry.diskseq == self.rule.lock_diskseq => {
                if entry.process == caller::process() {
                    Owner::Caller
                } else {
                    Owner::Another { mounted: entry.mounted != 0 }
                }
            }
            _ => Owner::None,
        }
    }

    #[inline(always)]
    fn claim_lasts(&self) -> bool {
        claim_lasts(self.rule.claim)
    }

    #[inline(always)]
    fn permit_lasts(&self) -> bool {
        permit_lasts(self.rule)
    }
}

/// A caller whose program is known by its arguments, too.
struct WithArguments<'a> {
    target: &'a Target<'a>,
    arguments: Class,
}

impl Caller for WithArguments<'_> {
    #[inline(always)]
    fn class(&self) -> Class {
        self.target.class().with(self.arguments)
    }

    #[inline(always)]
    fn tainted(&self) -> bool {
        self.target.tainted()
    }

    #[inline(always)]
    fn owner(&self) -> Owner {
        self.target.owner()
    }

    #[inline(always)]
    fn claim_lasts(&self) -> bool {
        self.target.claim_lasts()
    }

    #[inline(always)]
    fn permit_lasts(&self) -> bool {
        self.target.permit_lasts()
    }
}

/// Judges an open by a caller whose arguments make its program this class; the hook's return value.
#[inline(always)]
pub(crate) fn judge_open(target: &Target<'_>, arguments: Class) -> i32 {
    let request = Request { operation: Operation::Open, offset: 0, length: 0 };
    judge_by(target, &WithArguments { target, arguments }, request, &NoContent)
}

/// Judges a mapping; the hook's return value.
#[inline(always)]
pub(crate) fn judge_map(target: &Target<'_>) -> i32 {
    judge(target, Request { operation: Operation::Map, offset: 0, length: 0 }, &NoContent)
}

/// Judges a request with the bytes that it carries; the hook's return value.
#[inline(always)]
pub(crate) fn judge<B: Content>(target: &Target<'_>, request: Request, content: &B) -> i32 {
    judge_by(target, target, request, content)
}

#[inline(always)]
fn judge_by<C: Caller, B: Content>(target: &Target<'_>, caller: &C, request: Request, content: &B) -> i32 {
    const BLANK: u32 = State::Blank as u32;
    const PERMITTED: u32 = State::Permitted as u32;
    const FORMATTING: u32 = State::Formatting as u32;

    count(Counter::Judged);
    let (kind, reason) = match decide(target.rule, &request, caller, content) {
        Verdict::Allow => {
            let open = matches!(request.operation, Operation::Open);
            if !open && matches!(target.rule.state, BLANK | PERMITTED | FORMATTING) {
                mark_written(target);
            }
            return 0;
        }
        Verdict::Later => return -EAGAIN,
        Verdict::Begin => (EventKind::FormatBegan, wrote::begun(request.operation)),
        Verdict::Fill => (EventKind::FormatBegan, wrote::BYTES),
        Verdict::Raw => (EventKind::FormatBegan, wrote::BYTES | wrote::RAW),
        Verdict::Relabel => (EventKind::Relabelled, 0),
        Verdict::OwnerWipe => (EventKind::OwnerWiped, 0),
        Verdict::WouldDeny(reason) => (EventKind::WouldDeny, reason as u32),
        Verdict::Deny(reason) => (EventKind::Denied, reason as u32),
    };
    // Every verdict meets here: what follows is verified once, not for each of them.
    let unknown = target.rule.diskseq;
    let mut kind = opaque(kind as u64, unknown) as u32;
    let mut reason = opaque(u64::from(reason), unknown) as u32;
    if kind == EventKind::FormatBegan as u32 && !begin(target, reason) {
        (kind, reason) = (EventKind::Denied as u32, Reason::BeingFormatted as u32);
    }
    enforce(target, &request, kind, reason)
}

/// Does what a verdict other than Allow asks for; the hook's return value. A function of its own: the stack
/// of a program that judges a write has no room for the records that are filled here.
#[inline(never)]
fn enforce(target: &Target<'_>, request: &Request, kind: u32, reason: u32) -> i32 {
    const DENIED: u32 = EventKind::Denied as u32;
    log::verdict(target.dev, kind, reason, request.operation as u32, target.rule.state);
    let process = caller::process();
    if kind == DENIED {
        // Two kinds of callers are not cut off: who writes to a layer that the agent will know in a moment,
        // and who could not even open a volume that the agent has not read yet.
        let early = reason == Reason::NotReadYet as u32 && matches!(request.operation, Operation::Open);
        if target.rule.flags & flag::LAYER == 0 && !early {
            taint(target, process);
        }
        // The agent got the refusal that tainted the process; every later one would only flood the ring
        // buffer.
        if reason == Reason::Tainted as u32 {
            return -EPERM;
        }
    }
    send(|| KernelEvent {
        kind,
        reason,
        operation: request.operation as u32,
        dev: target.dev,
        diskseq: target.diskseq,
        offset: request.offset,
        length: request.length,
        process,
        cgroup: caller::cgroup(),
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        status: 0,
        through: target.through,
        comm: caller::comm(),
    });
    if kind == DENIED { -EPERM } else { 0 }
}

/// Notes with the format owner of a device that the device was changed.
#[inline(never)]
fn mark_written(target: &Target<'_>) {
    let process = caller::process();
    if let Some(entry) = FORMAT_OWNERS.get_ptr_mut(target.rule.lock_dev) {
        // SAFETY: a map value; one aligned store.
        unsafe {
            if (*entry).process == process && (*entry).diskseq == target.rule.lock_diskseq {
                (*entry).wrote |= wrote::BYTES;
            }
        }
    }
}

/// Cuts the caller off from the device.
#[inline(always)]
fn taint(target: &Target<'_>, process: Process) {
    // SAFETY: no arguments.
    let until = unsafe { bpf_ktime_get_boot_ns() }.wrapping_add(Taint::QUIET);
    let taint = Taint { started: process.started, diskseq: target.diskseq, until };
    if TAINTS.insert(TaintKey { tgid: process.tgid, dev: target.dev }, taint, 0).is_err() {
        count(Counter::FullMaps);
    }
    if let Some(tainted) = TAINTED.get_ptr_mut(taint_slot(process.tgid)) {
        // SAFETY: one aligned store into a map value.
        unsafe { tainted.write_volatile(1) };
    }
}

/// Makes the caller the one process that formats the device; false if another process was faster. A function
/// of its own, for the stack of its caller.
#[inline(never)]
fn begin(target: &Target<'_>, wrote: u32) -> bool {
    let process = caller::process();
    let entry = FormatOwner {
        process,
        diskseq: target.rule.lock_diskseq,
        dev: target.dev,
        wrote,
        mounted: 0,
        comm: caller::comm(),
        cgroup: caller::cgroup(),
    };
    // An entry of an earlier medium under this number says nothing about this one.
    // SAFETY: as in `Target::owner`.
    if let Some(old) = unsafe { FORMAT_OWNERS.get(target.rule.lock_dev) }
        && old.diskseq != target.rule.lock_diskseq
    {
        let _ = FORMAT_OWNERS.remove(target.rule.lock_dev);
    }
    if FORMAT_OWNERS.insert(target.rule.lock_dev, entry, u64::from(BPF_NOEXIST)).is_err() {
        // A second thread of the same process may have been faster.
        return matches!(target.owner(), Owner::Caller);
    }
    if FORMATTERS.insert(process.tgid, process.started, 0).is_err() {
        count(Counter::FullMaps);
    }
    true
}

/// Sends one record, which is made in the ring buffer itself: the stack has no room for it. A full ring
/// buffer is counted, and the agent's resync repairs what the lost record would have said.
#[inline(always)]
pub(crate) fn send(event: impl FnOnce() -> KernelEvent) {
    match EVENTS.reserve::<KernelEvent>(0) {
        Some(mut entry) => {
            entry.write(event());
            entry.submit(0);
        }
        None => count(Counter::LostEvents),
    }
}
