//! Holds a known formatter until the agent has read the device, for a bounded time. The formatter opened a
//! device that the agent has not read yet, or one where an earlier formatter has ended and the agent does not
//! know yet what it left. Waiting changes no verdict: the question is only asked later.
//!
//! Between two looks at the rule the program reads a byte of the caller's own arguments through the caller's
//! page tables. The read gives up the processor, and fails at once if the process is being killed. A loop
//! that only looks at the rule does neither (Linux 6.1 and 6.12).

use aya_ebpf::{
    Global,
    helpers::generated::{bpf_copy_from_user_task, bpf_get_current_task_btf, bpf_ktime_get_boot_ns},
};
use format_guard_common::{
    Operation, Rule, State, each,
    event::{EventKind, KernelEvent, Process},
    flag,
    program::Class,
    wait::WAITERS as WAITER_SLOTS,
};

use crate::{
    caller,
    gate::{read, send},
    kernel::{MM_ARG_START, TASK_MM, field},
    maps::{self, FORMAT_OWNERS, FORMATTERS, UNKNOWN, WAIT, WAITERS},
    stacking,
};

/// Not zero: the program may wait, and this kernel has the helper that it waits by. Set before load.
#[unsafe(no_mangle)]
pub(crate) static MAY_WAIT: Global<u32> = Global::new(0);

/// Turns of one loop at most (`BPF_MAX_LOOPS`, include/linux/bpf.h).
const MAX_TURNS: u32 = 1 << 23;

struct Waiting {
    dev: u64,
    until: u64,
}

/// Waits until a device is read, if the caller is a known formatter that would be refused for being early.
#[inline(always)]
pub(crate) fn until_read(dev: u32, arguments: Class) {
    if MAY_WAIT.load() != 0 {
        wait_until_read(dev, arguments.0);
    }
}

/// Exported, so that the verifier follows it by itself and once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn wait_until_read(dev: u32, arguments: u32) -> u64 {
    if MAY_WAIT.load() == 0 || !is_awaited(dev) {
        return 0;
    }
    let class = caller::class_by_name().with(Class(arguments));
    if !class.is(Class::FORMATTER.with(Class::ERASER)) || class.is(Class::DRY_RUN) {
        return 0;
    }
    if stacking::is_own(dev, State::Unverified as u32) {
        return 0;
    }
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let Some(until) = WAIT.get(0).and_then(|wait| wait.end(now)) else { return 0 };
    let Some(slot) = WAITERS.get_ptr_mut(caller::tgid() & (WAITER_SLOTS - 1)) else { return 0 };
    // SAFETY: aligned words of a map value; if two formatters take one slot at the same moment, one more
    // waits than the limit says.
    unsafe {
        if slot.read_volatile() > now {
            return 0;
        }
        slot.write_volatile(until);
    }
    announce(dev, now);
    let mut waiting = Waiting { dev: u64::from(dev), until };
    each(MAX_TURNS, &mut waiting, turn);
    // SAFETY: as above.
    unsafe { slot.write_volatile(0) };
    0
}

/// Whether the agent will know more of a device in a moment. In audit mode no formatter waits, as none is
/// refused.
#[inline(always)]
fn is_awaited(dev: u32) -> bool {
    let Some(rule) = maps::rule(dev).or_else(|| UNKNOWN.get(0)) else { return false };
    // The agent clears the flag after it has put all other parts of the rule.
    let flags = read(&rule.flags);
    flags & flag::AUDIT == 0 && (flags & flag::UNREAD != 0 || format_ended(rule))
}

/// Whether a format has ended and the agent does not know yet what it left.
#[inline(always)]
fn format_ended(rule: &Rule) -> bool {
    const FORMATTED: u32 = State::Formatted as u32;
    // SAFETY: entries are written once and removed by the agent; a torn one is no process's.
    let Some(entry) = (unsafe { FORMAT_OWNERS.get(rule.lock_dev) }) else { return false };
    let of_another = entry.diskseq == rule.lock_diskseq && entry.process != caller::process();
    of_another && entry.mounted == 0 && read(&rule.state) != FORMATTED && !is_running(&entry.process)
}

/// Whether a process that formats still runs: the program at its exit removes the entry.
#[inline(always)]
fn is_running(process: &Process) -> bool {
    // SAFETY: one word.
    unsafe { FORMATTERS.get(process.tgid) }.is_some_and(|started| *started == process.started)
}

extern "C" fn turn(_number: u32, waiting: *mut Waiting) -> i64 {
    // SAFETY: `each` passes what it was given; the helpers check the user address, and `into` is stack.
    unsafe {
        let waiting = &*waiting;
        if bpf_ktime_get_boot_ns() >= waiting.until || !is_awaited(waiting.dev as u32) {
            return 1;
        }
        let mut into = 0_u64;
        let into = &raw mut into;
        let task = bpf_get_current_task_btf();
        let mm: *const u8 = field(task as *const u8, &TASK_MM);
        let start: u64 = field(mm, &MM_ARG_START);
        i64::from(bpf_copy_from_user_task(into.cast(), 1, start as *const _, task.cast(), 0) != 0)
    }
}

/// Informs the agent that a formatter waits. A function of its own, for the stack of its caller.
#[inline(never)]
fn announce(dev: u32, now: u64) {
    send(|| KernelEvent {
        kind: EventKind::Waits as u32,
        operation: Operation::Open as u32,
        dev,
        process: caller::process(),
        at: now,
        ..KernelEvent::default()
    });
}
