//! Devices made over a volume that holds a format. Until the agent has put their rules only programs with a known name write
//! there: where the marks of the volume below come to lie is not known here.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated::bpf_get_current_task_btf},
    macros::fentry,
    programs::{FEntryContext, LsmContext},
};
use format_guard_common::State;

use crate::{
    kernel::{
        BDEV_BD_DEV, DISK_FIRST_MINOR, DISK_MAJOR, FDTABLE_FD, FDTABLE_MAX_FDS, FILES_FDT, TASK_FILES,
        block_device_probed, disk, field, probed,
    },
    maps::{self, LAYERS},
};

// include/uapi/linux/loop.h
const LOOP_SET_FD: u32 = 0x4c00;
const LOOP_CHANGE_FD: u32 = 0x4c06;
/// With a `struct loop_config`, which begins with the descriptor.
const LOOP_CONFIGURE: u32 = 0x4c0a;

/// A place in `UNKNOWN`: of devices of which nothing is known, and of those that lie over a volume that holds a format.
const ALONE: u32 = 0;
const OVER_A_FORMAT: u32 = 1;

/// Device mapper, md and bcache tell of each device below one of theirs (block/holder.c).
#[fentry(function = "bd_link_disk_holder")]
pub(crate) fn bd_link_disk_holder(ctx: FEntryContext) -> i32 {
    let below: u32 = probed(ctx.arg::<*const u8>(0), BDEV_BD_DEV.load());
    let above = number(ctx.arg(1));
    if holds_format(below) {
        let _ = LAYERS.insert(above, 1, 0);
    }
    0
}

/// Notes what a loop device is put over.
#[inline(always)]
pub(crate) fn by_ioctl(ctx: &LsmContext) {
    let request: u32 = ctx.arg(1);
    if request == LOOP_SET_FD || request == LOOP_CHANGE_FD || request == LOOP_CONFIGURE {
        put_over(ctx.arg(0), request, ctx.arg(2));
    }
}

#[inline(always)]
fn put_over(file: *const u8, request: u32, argument: u64) {
    let above = block_device_probed(file);
    let descriptor = if request == LOOP_CONFIGURE {
        // SAFETY: the helper checks the user address.
        let Ok(descriptor) = (unsafe { bpf_probe_read_user(argument as *const u32) }) else { return };
        descriptor
    } else {
        argument as u32
    };
    if above == 0 {
        return;
    }
    if holds_format(block_device_probed(opened(descriptor))) {
        let _ = LAYERS.insert(above, 1, 0);
    } else {
        let _ = LAYERS.remove(above);
    }
}

/// The open file of a descriptor of the caller's; null where there is none.
#[inline(always)]
pub(crate) fn opened(descriptor: u32) -> *const u8 {
    // SAFETY: a BTF pointer to the running task.
    let files: *const u8 = unsafe { field(bpf_get_current_task_btf() as *const u8, &TASK_FILES) };
    let table = probed::<u64>(files, FILES_FDT.load()) as *const u8;
    let count: u32 = probed(table, FDTABLE_MAX_FDS.load());
    if descriptor >= count {
        return core::ptr::null();
    }
    let array = probed::<u64>(table, FDTABLE_FD.load()) as *const u8;
    probed::<u64>(array, descriptor.wrapping_mul(8)) as *const u8
}

/// Number of a disk.
#[inline(always)]
fn number(disk: *const u8) -> u32 {
    probed::<u32>(disk, DISK_MAJOR.load()) << 20 | probed::<u32>(disk, DISK_FIRST_MINOR.load())
}

#[inline(always)]
fn holds_format(dev: u32) -> bool {
    const FORMATTED: u32 = State::Formatted as u32;
    // SAFETY: the value is of no interest.
    maps::rule(dev).is_some_and(|rule| rule.state == FORMATTED) || unsafe { LAYERS.get(dev) }.is_some()
}

/// The place in `UNKNOWN` of an opened device that has no rule. A function of its own, for the stack of its callers.
#[inline(never)]
pub(crate) fn of_unknown(file: *const u8, dev: u32) -> u32 {
    // SAFETY: as above.
    if unsafe { LAYERS.get(dev) }.is_some() {
        return OVER_A_FORMAT;
    }
    let whole = number(disk(file));
    if whole != dev && holds_format(whole) { OVER_A_FORMAT } else { ALONE }
}
