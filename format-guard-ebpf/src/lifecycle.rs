//! What the agent learns from: a mount proves a format, a formatter ends, a device is removed. These programs
//! refuse nothing.

use aya_ebpf::{
    helpers::generated::bpf_ktime_get_boot_ns,
    macros::{btf_tracepoint, lsm},
    programs::{BtfTracePointContext, LsmContext},
};
use format_guard_common::event::{EventKind, KernelEvent, Process};

use crate::{
    caller,
    gate::send,
    kernel::{
        BDEV_BD_DEV, BDEV_BD_DISK, DISK_DISKSEQ, SIGNAL_LIVE, SUPER_S_BDEV, TASK_EXIT_CODE, TASK_SIGNAL,
        TASK_TGID, field, probed,
    },
    maps::{self, FORMAT_OWNERS, FORMATTERS, SLOTS},
    protect,
};

// int sb_kern_mount(const struct super_block *sb): after a mount by mount(2) or fsmount succeeded.
#[lsm(hook = "sb_kern_mount", sleepable)]
pub(crate) fn sb_kern_mount(ctx: LsmContext) -> i32 {
    let super_block: *const u8 = ctx.arg(0);
    // SAFETY: fields of a program argument; through a NULL s_bdev (no block device) they read as zero.
    let (dev, diskseq): (u32, u64) = unsafe {
        let bdev: *const u8 = field(super_block, &SUPER_S_BDEV);
        let disk: *const u8 = field(bdev, &BDEV_BD_DISK);
        (field(bdev, &BDEV_BD_DEV), field(disk, &DISK_DISKSEQ))
    };
    if dev == 0 {
        return 0;
    }
    let lock_dev = maps::rule(dev).map_or(dev, |rule| rule.lock_dev);
    if let Some(entry) = FORMAT_OWNERS.get_ptr_mut(lock_dev) {
        // SAFETY: one aligned store into a map value; the agent only removes entries.
        unsafe { (*entry).mounted = 1 };
    }
    send(|| KernelEvent {
        kind: EventKind::Mounted as u32,
        dev,
        diskseq,
        process: caller::process(),
        cgroup: caller::cgroup(),
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        comm: caller::comm(),
        ..KernelEvent::default()
    });
    0
}

// void bdev_free_security(struct block_device *bdev), from 6.12: called late, with the last reference. The
// number may be in use again, so only a rule for this very medium is removed.
#[lsm(hook = "bdev_free_security")]
pub(crate) fn bdev_free_security(ctx: LsmContext) -> i32 {
    let bdev: u64 = ctx.arg(0);
    let bdev = bdev as *const u8;
    let dev: u32 = probed(bdev, BDEV_BD_DEV.load());
    let disk: u64 = probed(bdev, BDEV_BD_DISK.load());
    let diskseq: u64 = probed(disk as *const u8, DISK_DISKSEQ.load());
    let Some(rule) = maps::rule(dev) else { return 0 };
    if diskseq == 0 || rule.diskseq != diskseq {
        return 0;
    }
    let _ = SLOTS.remove(dev);
    send(|| KernelEvent {
        kind: EventKind::Gone as u32,
        dev,
        diskseq,
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        ..KernelEvent::default()
    });
    0
}

// sched_process_exit(struct task_struct *p, ...): called for every thread; only the last one of the group
// counts.
#[btf_tracepoint(function = "sched_process_exit")]
pub(crate) fn sched_process_exit(ctx: BtfTracePointContext) -> i32 {
    let task: *const u8 = ctx.arg(0);
    // SAFETY: fields of a program argument.
    let (tgid, live, status): (u32, u32, u32) = unsafe {
        let signal: *const u8 = field(task, &TASK_SIGNAL);
        (field(task, &TASK_TGID), field(signal, &SIGNAL_LIVE), field(task, &TASK_EXIT_CODE))
    };
    if live != 0 {
        return 0;
    }
    protect::ended(tgid);
    // SAFETY: only the start time is read.
    let Some(started) = (unsafe { FORMATTERS.get(tgid) }) else { return 0 };
    let process = Process { started: *started, tgid, zero: 0 };
    let _ = FORMATTERS.remove(tgid);
    send(|| KernelEvent {
        kind: EventKind::FormatEnded as u32,
        process,
        status,
        // SAFETY: no arguments.
        at: unsafe { bpf_ktime_get_boot_ns() },
        comm: caller::comm(),
        ..KernelEvent::default()
    });
    0
}
