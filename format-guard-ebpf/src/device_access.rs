//! The tier `cgroup`: opens for writing by known formatters, for kernels that have neither type information
//! nor trampolines.
//!
//! The kernel asks for its own opens, too (device mapper, mounts), and passes only the device's number, the
//! access and the caller. So this program refuses known formatters and erasers alone. Of the process it knows
//! only the id; the agent finds the rest.

use aya_ebpf::{
    bindings::BPF_NOEXIST, helpers::generated::bpf_ktime_get_boot_ns, macros::cgroup_device,
    programs::DeviceContext,
};
use format_guard_common::{
    Caller, NoContent, Operation, Owner, Reason, Request, Rule, Verdict, decide,
    event::{Counter, EventKind, FormatOwner, KernelEvent, Process},
    program::Class,
};

use crate::{
    caller,
    gate::{claim_lasts, permit_lasts, send},
    maps::{FORMAT_OWNERS, UNKNOWN, count, rule},
};

// include/uapi/linux/bpf.h: BPF_DEVCG_DEV_BLOCK in the lower half of access_type, BPF_DEVCG_ACC_WRITE in the
// upper one.
pub(crate) const BLOCK: u32 = 1;
pub(crate) const WRITE: u32 = 4;

pub(crate) const ALLOWED: i32 = 1;
pub(crate) const REFUSED: i32 = 0;

/// A known formatter or eraser that opens a device.
struct Opener<'a> {
    rule: &'a Rule,
    class: Class,
}

impl Caller for Opener<'_> {
    #[inline(always)]
    fn class(&self) -> Class {
        self.class
    }

    #[inline(always)]
    fn tainted(&self) -> bool {
        false
    }

    #[inline(always)]
    fn owner(&self) -> Owner {
        // SAFETY: entries are written once and removed by the agent; a torn one reads as another's.
        match unsafe { FORMAT_OWNERS.get(self.rule.lock_dev) } {
            Some(entry) if entry.diskseq == self.rule.lock_diskseq => {
                if entry.process.tgid == caller::tgid() {
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

#[cgroup_device]
pub(crate) fn device_access(ctx: DeviceContext) -> i32 {
    // SAFETY: the program's context.
    let (access, major, minor) =
        unsafe { ((*ctx.device).access_type, (*ctx.device).major, (*ctx.device).minor) };
    if access & 0xffff != BLOCK || access >> 16 & WRITE == 0 {
        return ALLOWED;
    }
    // By the name of the program alone: its arguments are found by fields of the kernel, and this tier works
    // without the kernel's types.
    let class = caller::class_by_name();
    if !class.is(Class::FORMATTER.with(Class::ERASER)) {
        return ALLOWED;
    }
    let dev = major << 20 | minor;
    let Some(rule) = rule(dev).or_else(|| UNKNOWN.get(0)) else { return ALLOWED };
    count(Counter::Judged);
    let request = Request { operation: Operation::Open, offset: 0, length: 0 };
    let (kind, reason) = match decide(rule, &request, &Opener { rule, class }, &NoContent) {
        Verdict::Allow
        | Verdict::Later
        | Verdict::Fill
        | Verdict::Raw
        | Verdict::Relabel
        | Verdict::OwnerWipe => {
            return ALLOWED;
        }
        Verdict::Begin if begin(rule, dev) => (EventKind::FormatBegan, 0),
        Verdict::Begin => (EventKind::Denied, Reason::BeingFormatted as u32),
        Verdict::WouldDeny(reason) => (EventKind::WouldDeny, reason as u32),
        Verdict::Deny(reason) => (EventKind::Denied, reason as u32),
    };
    send(|| KernelEvent {
        kind: kind as u32,
        reason,
        operation: Operation::Open as u32,
        dev,
        diskseq: rule.diskseq,
        process: process(),
        cgroup: caller::cgroup(),
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        comm: caller::comm(),
        ..KernelEvent::default()
    });
    if matches!(kind, EventKind::Denied) { REFUSED } else { ALLOWED }
}

/// The calling process, without its start.
#[inline(always)]
fn process() -> Process {
    Process { started: 0, tgid: caller::tgid(), zero: 0 }
}

/// Makes the caller the one process that formats the device; false when another was faster.
#[inline(always)]
fn begin(rule: &Rule, dev: u32) -> bool {
    let entry = FormatOwner {
        process: process(),
        diskseq: rule.lock_diskseq,
        dev,
        // The tier sees no writes, so any format may have begun.
        wrote: 1,
        mounted: 0,
        comm: caller::comm(),
        cgroup: caller::cgroup(),
    };
    // An entry of an earlier medium under this number says nothing about this one.
    // SAFETY: as in `Opener::owner`.
    if let Some(old) = unsafe { FORMAT_OWNERS.get(rule.lock_dev) }
        && old.diskseq != rule.lock_diskseq
    {
        let _ = FORMAT_OWNERS.remove(rule.lock_dev);
    }
    FORMAT_OWNERS.insert(rule.lock_dev, entry, u64::from(BPF_NOEXIST)).is_ok()
}
