//! Devices that were made over others: which process made them, and over what. Over a volume that holds a
//! format, only known programs may write until the agent has put the rule: until then nobody knows where the
//! marks of the lower volume lie on the new device. A device that a process makes over nothing but volumes
//! that it formats is the process's own as long as it formats them.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated::bpf_get_current_task_btf},
    macros::fentry,
    programs::{FEntryContext, LsmContext},
};
use format_guard_common::{
    State,
    event::{Layer, Process},
    flag,
};

use crate::{
    caller,
    kernel::{
        BDEV_BD_DEV, DISK_DISKSEQ, DISK_FIRST_MINOR, DISK_MAJOR, FDTABLE_FD, FDTABLE_MAX_FDS, FILES_FDT,
        TASK_FILES, block_device_probed, disk, field, probed,
    },
    maps::{self, FORMAT_OWNERS, LAYERS},
};

// include/uapi/linux/loop.h
const LOOP_SET_FD: u32 = 0x4c00;
const LOOP_CHANGE_FD: u32 = 0x4c06;
/// This ioctl passes a `struct loop_config`, which begins with the descriptor.
const LOOP_CONFIGURE: u32 = 0x4c0a;

/// A place in `UNKNOWN`: of devices of which nothing is known, of those that lie over a volume that holds a
/// format, and of those that are the caller's own.
pub(crate) const ALONE: u32 = 0;
const OVER_A_FORMAT: u32 = 1;
pub(crate) const OWN: u32 = 2;

/// Device mapper, md and bcache call this function for each device below one of theirs (block/holder.c).
#[fentry(function = "bd_link_disk_holder")]
pub(crate) fn bd_link_disk_holder(ctx: FEntryContext) -> i32 {
    let below: u32 = probed(ctx.arg::<*const u8>(0), BDEV_BD_DEV.load());
    let disk: *const u8 = ctx.arg(1);
    let (above, diskseq) = (number(disk), probed(disk, DISK_DISKSEQ.load()));
    note(above, diskseq, below);
    0
}

/// Notes that a device lies on another. If it lies on several, the one that allows least decides.
#[inline(always)]
fn note(above: u32, diskseq: u64, below: u32) {
    let bottom = bottom_of(below);
    let maker = if is_formatted_by_caller(bottom) {
        caller::process()
    } else if holds_format(below) {
        Layer::OVER_A_FORMAT
    } else {
        Layer::NOBODYS
    };
    // SAFETY: a torn entry is no process's own.
    let before = match unsafe { LAYERS.get(above) } {
        Some(layer) if layer.diskseq == diskseq => layer.maker,
        _ => maker,
    };
    let maker = if before == maker {
        maker
    } else if before == Layer::OVER_A_FORMAT || maker == Layer::OVER_A_FORMAT {
        Layer::OVER_A_FORMAT
    } else {
        Layer::NOBODYS
    };
    let _ = LAYERS.insert(above, Layer { diskseq, maker, bottom, zero: 0 }, 0);
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
    // The kernel may still refuse the request: a device that lies over something else must not become the
    // caller's own by it.
    if holds_format(block_device_probed(file_of_descriptor(descriptor))) {
        let _ = LAYERS.insert(above, Layer { maker: Layer::OVER_A_FORMAT, ..Layer::default() }, 0);
    } else {
        let _ = LAYERS.remove(above);
    }
}

/// The open file of a descriptor of the caller's; null where there is none.
#[inline(always)]
pub(crate) fn file_of_descriptor(descriptor: u32) -> *const u8 {
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

/// Whether a device was made over others after the medium with this attachment appeared: that medium is
/// then of an earlier device under the same number.
#[inline(always)]
pub(crate) fn is_newer(dev: u32, diskseq: u64) -> bool {
    // SAFETY: a torn entry is the old one or the new one.
    unsafe { LAYERS.get(dev) }.is_some_and(|layer| layer.diskseq > diskseq)
}

/// Number of a disk.
#[inline(always)]
fn number(disk: *const u8) -> u32 {
    probed::<u32>(disk, DISK_MAJOR.load()) << 20 | probed::<u32>(disk, DISK_FIRST_MINOR.load())
}

#[inline(always)]
fn holds_format(dev: u32) -> bool {
    const FORMATTED: u32 = State::Formatted as u32;
    maps::rule(dev).is_some_and(|rule| rule.state == FORMATTED) || maker(dev) == Layer::OVER_A_FORMAT
}

/// Who made a device over others.
#[inline(always)]
fn maker(dev: u32) -> Process {
    // SAFETY: a torn entry is no process's own.
    unsafe { LAYERS.get(dev) }.map_or(Layer::NOBODYS, |layer| layer.maker)
}

/// The volume at the bottom of a device that the caller made over what it formats; else the device itself.
#[inline(always)]
fn bottom_of(dev: u32) -> u32 {
    // SAFETY: as above.
    match unsafe { LAYERS.get(dev) } {
        Some(layer) if layer.maker == caller::process() => layer.bottom,
        _ => dev,
    }
}

/// Whether the caller formats a device, by the rule that is in force.
#[inline(always)]
fn is_formatted_by_caller(dev: u32) -> bool {
    const FORMATTED: u32 = State::Formatted as u32;
    let Some(rule) = maps::rule(dev) else { return false };
    // SAFETY: entries are written once and removed by the agent; a torn one is no process's.
    (rule.state != FORMATTED || rule.flags & flag::HELD != 0)
        && unsafe { FORMAT_OWNERS.get(rule.lock_dev) }
            .is_some_and(|entry| entry.diskseq == rule.lock_diskseq && entry.process == caller::process())
}

/// Whether a device without a recorded format is the caller's own. A function of its own, for the stack of
/// its callers.
#[inline(never)]
pub(crate) fn is_own(dev: u32, state: u32) -> bool {
    let bottom = bottom_of(dev);
    bottom != dev && state != State::Formatted as u32 && is_formatted_by_caller(bottom)
}

/// The place in `UNKNOWN` of an opened device that has no rule. A function of its own, for the stack of its
/// callers.
#[inline(never)]
pub(crate) fn of_unknown(file: *const u8, dev: u32) -> u32 {
    match maker(dev) {
        Layer::OVER_A_FORMAT => return OVER_A_FORMAT,
        _ if is_own(dev, State::Unverified as u32) => return OWN,
        _ => {}
    }
    let whole = number(disk(file));
    if whole != dev && holds_format(whole) { OVER_A_FORMAT } else { ALONE }
}
