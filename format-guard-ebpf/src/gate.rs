//! Carries a request to `decide()` and carries out the verdict: the only place that refuses.

use aya_ebpf::{EbpfContext, bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_boot_ns};
use aya_log_ebpf::debug;
use format_guard_common::{
    Caller, Content, Holder, NoContent, Operation, Reason, Request, Rule, Verdict, decide,
    event::{Counter, EventKind, HolderEntry, KernelEvent, Taint, TaintKey},
    program::Class,
};

use crate::{
    caller,
    kernel::diskseq,
    maps::{EVENTS, FORMATTERS, HOLDERS, RULES, TAINTS, UNKNOWN, count},
};

const EPERM: i32 = 1;

/// A block device and the rule that is in force for it.
pub(crate) struct Target<'a> {
    pub(crate) dev: u32,
    /// The attachment: the medium's own where it is known, the rule's otherwise.
    pub(crate) diskseq: u64,
    pub(crate) rule: &'a Rule,
}

/// The rule for an opened device: only if it was made for this very medium, else the one for unknown devices.
#[inline(always)]
pub(crate) fn opened<'a>(file: *const u8, dev: u32) -> Option<Target<'a>> {
    let seq = diskseq(file);
    // SAFETY: a rule is copied nowhere and judged at once; `dev` in it tells an element that was reused.
    if let Some(rule) = unsafe { RULES.get(dev) } {
        if rule.diskseq == seq && rule.dev == dev {
            return Some(Target { dev, diskseq: seq, rule });
        }
        count(Counter::Stale);
    }
    Some(Target { dev, diskseq: seq, rule: UNKNOWN.get(0)? })
}

/// The rule for a device that is being opened, of which only the number is known.
#[inline(always)]
pub(crate) fn opening<'a>(dev: u32) -> Option<Target<'a>> {
    // SAFETY: as in `opened`.
    if let Some(rule) = unsafe { RULES.get(dev) }
        && rule.dev == dev
    {
        return Some(Target { dev, diskseq: rule.diskseq, rule });
    }
    Some(Target { dev, diskseq: 0, rule: UNKNOWN.get(0)? })
}

impl Caller for Target<'_> {
    #[inline(always)]
    fn class(&self) -> Class {
        caller::class()
    }

    #[inline(always)]
    fn tainted(&self) -> bool {
        let process = caller::process();
        // SAFETY: a torn entry fails the comparison.
        match unsafe { TAINTS.get(TaintKey { tgid: process.tgid, dev: self.dev }) } {
            Some(taint) => taint.started == process.started && taint.diskseq == self.diskseq,
            None => false,
        }
    }

    #[inline(always)]
    fn holder(&self) -> Holder {
        // SAFETY: entries are written once and removed by the agent; a torn one reads as another's.
        match unsafe { HOLDERS.get(self.dev) } {
            Some(entry) if entry.diskseq == self.diskseq => {
                if entry.process == caller::process() {
                    Holder::Caller
                } else {
                    Holder::Another { mounted: entry.mounted != 0 }
                }
            }
            _ => Holder::None,
        }
    }
}

/// Judges a request whose bytes are not looked at; the hook's return value.
#[inline(always)]
pub(crate) fn judge<C: EbpfContext>(
    ctx: &C,
    target: &Target<'_>,
    operation: Operation,
    offset: u64,
    length: u64,
) -> i32 {
    judge_write(ctx, target, operation, offset, length, &NoContent)
}

/// Judges a request with the bytes that it carries; the hook's return value.
#[inline(always)]
pub(crate) fn judge_write<C: EbpfContext, B: Content>(
    ctx: &C,
    target: &Target<'_>,
    operation: Operation,
    offset: u64,
    length: u64,
    content: &B,
) -> i32 {
    count(Counter::Judged);
    let request = Request { operation, offset, length };
    match decide(target.rule, &request, target, content) {
        Verdict::Allow => 0,
        Verdict::Begin => begin(ctx, target, &request),
        Verdict::Relabel => pass(target, EventKind::Relabelled, &request),
        Verdict::OwnerWipe => pass(target, EventKind::OwnerWiped, &request),
        Verdict::WouldDeny(reason) => {
            emit(target, EventKind::WouldDeny, reason as u32, &request);
            0
        }
        Verdict::Deny(reason) => refuse(ctx, target, reason, &request),
    }
}

#[inline(always)]
fn pass(target: &Target<'_>, kind: EventKind, request: &Request) -> i32 {
    emit(target, kind, 0, request);
    0
}

#[inline(always)]
fn refuse<C: EbpfContext>(ctx: &C, target: &Target<'_>, reason: Reason, request: &Request) -> i32 {
    // The refusal that tainted was told; every later one would only flood the ring buffer.
    if !matches!(reason, Reason::Tainted) {
        let process = caller::process();
        let taint = Taint { started: process.started, diskseq: target.diskseq };
        if TAINTS.insert(TaintKey { tgid: process.tgid, dev: target.dev }, taint, 0).is_err() {
            count(Counter::FullMaps);
        }
        emit(target, EventKind::Denied, reason as u32, request);
        debug!(
            ctx,
            "refused on {}: reason {} at {}+{}", target.dev, reason as u32, request.offset, request.length
        );
    }
    -EPERM
}

/// Makes the caller the one process that formats the device, or refuses it when another was faster.
#[inline(always)]
fn begin<C: EbpfContext>(ctx: &C, target: &Target<'_>, request: &Request) -> i32 {
    let process = caller::process();
    let entry = HolderEntry {
        process,
        diskseq: target.diskseq,
        mounted: 0,
        comm: caller::comm(),
        cgroup: caller::cgroup(),
    };
    // An entry of an earlier medium under this number says nothing about this one.
    // SAFETY: as in `Target::holder`.
    if let Some(old) = unsafe { HOLDERS.get(target.dev) }
        && old.diskseq != target.diskseq
    {
        let _ = HOLDERS.remove(target.dev);
    }
    if HOLDERS.insert(target.dev, entry, u64::from(BPF_NOEXIST)).is_err() {
        // A second thread of the same process may have been the faster one.
        if matches!(target.holder(), Holder::Caller) {
            return 0;
        }
        count(Counter::FullMaps);
        return refuse(ctx, target, Reason::BeingFormatted, request);
    }
    if FORMATTERS.insert(process.tgid, process.started, 0).is_err() {
        count(Counter::FullMaps);
    }
    emit(target, EventKind::FormatBegan, 0, request);
    0
}

#[inline(always)]
fn emit(target: &Target<'_>, kind: EventKind, reason: u32, request: &Request) {
    let process = caller::process();
    send(&KernelEvent {
        kind: kind as u32,
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
        zero: 0,
        comm: caller::comm(),
    });
}

/// Sends one record; a full ring buffer is counted, and the agent's resync makes good for it.
#[inline(always)]
pub(crate) fn send(event: &KernelEvent) {
    match EVENTS.reserve::<KernelEvent>(0) {
        Some(mut entry) => {
            entry.write(*event);
            entry.submit(0);
        }
        None => count(Counter::LostEvents),
    }
}
