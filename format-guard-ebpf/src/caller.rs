//! The facts about the calling process.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid,
    generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_task_btf},
};
use format_guard_common::{
    arguments::{self, ARGUMENTS},
    event::{ArgumentClass, Counter, Process},
    program::{Class, name_slot},
};

use crate::{
    kernel::{
        MM_ARG_END, MM_ARG_START, TASK_COMM, TASK_GROUP_LEADER, TASK_MM, TASK_START_BOOTTIME, field,
        from_user,
    },
    maps::{ARG_CLASSES, NAMES, PROGRAMS, count},
};

/// Name of the calling thread.
#[inline(always)]
pub(crate) fn comm() -> [u8; 16] {
    let mut comm = MaybeUninit::<[u64; 2]>::uninit();
    let start: *mut u64 = comm.as_mut_ptr().cast();
    // SAFETY: 16 bytes of stack. Each word is zeroed by itself, else LLVM calls a loop of bytes; zeroed at
    // all, as Linux 6.1 writes no more than the name and its NUL (strscpy in bpf_get_current_comm,
    // kernel/bpf/helpers.c).
    unsafe {
        start.write_volatile(0);
        start.add(1).write_volatile(0);
        bpf_get_current_comm(start.cast(), 16);
        comm.as_ptr().cast::<[u8; 16]>().read()
    }
}

/// The same as two words, without a helper.
#[inline(always)]
pub(crate) fn name() -> [u64; 2] {
    // SAFETY: a BTF pointer to the running task.
    unsafe { field(bpf_get_current_task_btf() as *const u8, &TASK_COMM) }
}

/// What the caller's program is known as, by its name and by what its arguments said when it opened a device.
#[inline(always)]
pub(crate) fn class() -> Class {
    if NAMES.get(name_slot(name())) == Some(&0) {
        return Class::UNKNOWN;
    }
    let class = class_by_name();
    if class.grammar() == 0 { class } else { Class(class.0 | class_at_open()) }
}

#[inline(always)]
pub(crate) fn class_by_name() -> Class {
    // SAFETY: copied at once; the agent changes an entry at its start only.
    unsafe { PROGRAMS.get(comm()) }.map_or(Class::UNKNOWN, |bits| Class(*bits))
}

/// What the arguments of this process said. A function of its own: judging a write leaves no room on the
/// stack.
#[inline(never)]
fn class_at_open() -> u32 {
    let process = process();
    // SAFETY: a torn entry fails the comparison.
    match unsafe { ARG_CLASSES.get(process.tgid) } {
        Some(entry) if entry.started == process.started => entry.class,
        _ => 0,
    }
}

/// Reads what the caller's arguments make of its program, and keeps the result for the caller's writes. Only
/// programs whose arguments tell their purpose are looked up, and only at a hook that may wait for the
/// caller's memory.
#[inline(always)]
pub(crate) fn class_by_arguments() -> Class {
    let class = class_by_name();
    if class.grammar() == 0 {
        return Class::UNKNOWN;
    }
    Class(ask_arguments(class.0))
}

/// A function of its own, for the stack of the program that calls it.
#[inline(never)]
fn ask_arguments(class: u32) -> u32 {
    let mut arguments = [0_u8; ARGUMENTS];
    // SAFETY: BTF pointers of the running task, and as many bytes of stack; the helper checks the user
    // address.
    unsafe {
        let mm: *const u8 = field(bpf_get_current_task_btf() as *const u8, &TASK_MM);
        let (start, end): (u64, u64) = (field(mm, &MM_ARG_START), field(mm, &MM_ARG_END));
        let length = end.wrapping_sub(start);
        let length = if length > ARGUMENTS as u64 { ARGUMENTS as u64 } else { length };
        from_user(arguments.as_mut_ptr().cast(), length as u32, start);
    }
    let class = arguments::class_of(Class(class), &arguments).0;
    let process = process();
    let entry = ArgumentClass { started: process.started, class, zero: 0 };
    if ARG_CLASSES.insert(process.tgid, entry, 0).is_err() {
        count(Counter::FullMaps);
    }
    class
}

/// Thread group id of the caller, in the initial pid namespace.
#[inline(always)]
pub(crate) fn tgid() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// The calling process.
#[inline(always)]
pub(crate) fn process() -> Process {
    // SAFETY: BTF pointers of the running task.
    let started = unsafe {
        let task = bpf_get_current_task_btf() as *const u8;
        let leader: *const u8 = field(task, &TASK_GROUP_LEADER);
        field(leader, &TASK_START_BOOTTIME)
    };
    Process { started, tgid: tgid(), zero: 0 }
}

/// The caller's control group (v2).
#[inline(always)]
pub(crate) fn cgroup() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_cgroup_id() }
}
