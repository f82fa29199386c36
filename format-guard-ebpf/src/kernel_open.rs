//! The kernel's own opens for writing, as it makes a layer or takes a device into a file system. The kernel
//! then writes a header by itself and asks no hook of a security module. But it asks the device controller of
//! control groups: for every open of a block device, in the task that asked the kernel for the layer.
//!
//! The task's system call says what the open is for. Every other open by the kernel (mounts, layers without a
//! header) leaves by the second branch. The program refuses nothing whose purpose it does not know.

use aya_ebpf::{
    helpers::{bpf_get_current_pid_tgid, bpf_probe_read_user},
    macros::cgroup_device,
    programs::DeviceContext,
};
use format_guard_common::{
    NoContent, Operation, Request, State,
    header::{Header, Role},
};

use crate::{
    device_access::{ALLOWED, BLOCK, REFUSED, WRITE},
    gate,
    maps::{TABLES, UNKNOWN},
    place, stacking,
    table::DM_TABLE_LOAD,
};

// include/uapi/linux/btrfs.h; the device that takes the place of another is the only one that is opened for
// writing.
const BTRFS_IOC_ADD_DEV: u32 = 0x5000_940a;
const BTRFS_IOC_DEV_REPLACE: u32 = 0xca28_9435;
// include/uapi/linux/raid/md_u.h, and the member's number in the array in its `mdu_disk_info_t`.
const ADD_NEW_DISK: u32 = 0x4014_0921;
const RAID_DISK: u64 = 12;

#[cgroup_device]
pub(crate) fn kernel_open(ctx: DeviceContext) -> i32 {
    // SAFETY: the program's context.
    let (access, major, minor) =
        unsafe { ((*ctx.device).access_type, (*ctx.device).major, (*ctx.device).minor) };
    if access & 0xffff != BLOCK || access >> 16 & WRITE == 0 {
        return ALLOWED;
    }
    let (command, argument) = place::ioctl();
    let dev = major << 20 | minor;
    match command {
        DM_TABLE_LOAD => of_table(dev, argument),
        BTRFS_IOC_ADD_DEV | BTRFS_IOC_DEV_REPLACE => answer(judge(dev, Operation::Header, Header::BTRFS.0)),
        ADD_NEW_DISK => {
            // SAFETY: the helper checks the user address.
            let member = unsafe { bpf_probe_read_user(argument.wrapping_add(RAID_DISK) as *const u32) };
            if member == Ok(0) { ALLOWED } else { answer(judge(dev, Operation::Give, Header::MD.0)) }
        }
        _ => ALLOWED,
    }
}

const fn answer(verdict: i32) -> i32 {
    if verdict == 0 { ALLOWED } else { REFUSED }
}

/// A device of the table that this thread loads into device mapper.
#[inline(always)]
fn of_table(dev: u32, argument: u64) -> i32 {
    const HEADER: u32 = Role::Header as u32;
    const GIVEN: u32 = Role::Given as u32;
    let Some(plan) = TABLES.get_ptr_mut(bpf_get_current_pid_tgid()) else { return ALLOWED };
    // SAFETY: a map value that no other thread uses.
    let plan = unsafe { &mut *plan };
    if plan.argument != argument {
        return ALLOWED;
    }
    let role = plan.take(dev);
    if role == HEADER {
        let verdict = judge(dev, Operation::Header, plan.header);
        if verdict == 0 && is_found(dev) {
            plan.found = 1;
        }
        return answer(verdict);
    }
    if role == GIVEN && plan.found == 0 {
        return answer(judge(dev, Operation::Give, plan.header));
    }
    ALLOWED
}

/// Whether the kernel finds its header on a device, as far as that is known; never on a device where a format
/// may begin.
#[inline(always)]
fn is_found(dev: u32) -> bool {
    const BLANK: u32 = State::Blank as u32;
    const PERMITTED: u32 = State::Permitted as u32;
    target(dev).is_none_or(|target| !matches!(target.rule.state, BLANK | PERMITTED))
}

/// The device and its rule. A rule for an earlier device of the same number does not count: the new layer is
/// not known yet.
#[inline(always)]
fn target<'a>(dev: u32) -> Option<gate::Target<'a>> {
    let target = gate::target_of_dev(dev)?;
    if target.diskseq != 0 && stacking::is_newer(dev, target.diskseq) {
        return Some(gate::Target { diskseq: 0, rule: UNKNOWN.get(stacking::ALONE)?, ..target });
    }
    Some(target)
}

/// A function of its own, so that the verifier follows the verdict once for all branches that lead here.
#[inline(never)]
fn judge(dev: u32, operation: Operation, header: u32) -> i32 {
    let Some(target) = target(dev) else { return 0 };
    gate::judge(&target, Request { operation, offset: 0, length: header.into() }, &NoContent)
}
