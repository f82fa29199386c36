//! Ioctls, those of 32-bit callers, and commands of `io_uring`: discards, zero-outs and resets of zones are
//! judged here, commands past the block layer by `passthrough`.

use aya_ebpf::{
    helpers::{bpf_probe_read_user, generated::bpf_probe_read_user as probe_read_user},
    macros::lsm,
    programs::LsmContext,
};
use format_guard_common::{
    NoContent, Operation, Request,
    erase::{WHOLE, erases, range},
};

use crate::{
    gate,
    kernel::{
        URING_CMD_FILE, URING_CMD_OP, URING_CMD_SQE, block_device, block_device_probed, field, from_user,
        probed,
    },
    passthrough::{self, Memory},
    stacking, table,
};

// include/uapi/linux/blkdev.h (6.12): _IO(0x12, 0), start in sqe->addr, length in sqe->addr3.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;
const SQE_ADDR: u32 = 16;
const SQE_ADDR3: u32 = 48;

/// The file, its device and the user address of the range, if this ioctl erases a block device.
#[inline(always)]
fn asked(ctx: &LsmContext) -> Option<(*const u8, u32, u64)> {
    if !erases(ctx.arg(1)) {
        return None;
    }
    let file: *const u8 = ctx.arg(0);
    let dev = block_device(file);
    if dev == 0 {
        return None;
    }
    Some((file, dev, ctx.arg(2)))
}

/// The caller's memory; a page that is not there is brought in.
struct Faulting;

impl Memory for Faulting {
    #[inline(always)]
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        // SAFETY: as many bytes of stack; only `file_ioctl` uses it.
        unsafe { from_user(into.as_mut_ptr().cast(), into.len() as u32, address) == 0 }
    }
}

/// The caller's memory as far as it is there: this program may not wait for a page.
struct Resident;

impl Memory for Resident {
    #[inline(always)]
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        // SAFETY: as many bytes of stack; the helper checks the user address.
        unsafe { probe_read_user(into.as_mut_ptr().cast(), into.len() as u32, address as *const _) == 0 }
    }
}

#[inline(always)]
fn judge(file: *const u8, dev: u32, range: [u64; 2]) -> i32 {
    let Some(target) = gate::target_of_file(file, dev) else { return 0 };
    let request = Request { operation: Operation::Erase, offset: range[0], length: range[1] };
    let (target, request) = gate::resolve_window(target, request);
    gate::judge(&target, request, &NoContent)
}

#[lsm(hook = "file_ioctl", sleepable)]
pub(crate) fn file_ioctl(ctx: LsmContext) -> i32 {
    if table::by_ioctl(&ctx, &Faulting) {
        return 0;
    }
    stacking::by_ioctl(&ctx);
    let Some((file, dev, argument)) = asked(&ctx) else {
        return passthrough::by_ioctl(&ctx, &Faulting, false);
    };
    let mut words = [0_u64; 2];
    // SAFETY: 16 bytes of stack.
    let failed = unsafe { from_user(words.as_mut_ptr().cast(), 16, argument) } != 0;
    judge(file, dev, if failed { WHOLE } else { range(ctx.arg(1), words) })
}

#[lsm(hook = "file_ioctl_compat")]
pub(crate) fn file_ioctl_compat(ctx: LsmContext) -> i32 {
    if table::by_ioctl(&ctx, &Resident) {
        return 0;
    }
    stacking::by_ioctl(&ctx);
    let Some((file, dev, argument)) = asked(&ctx) else {
        return passthrough::by_ioctl(&ctx, &Resident, true);
    };
    // SAFETY: the helper checks the user address.
    let words = unsafe { bpf_probe_read_user(argument as *const [u64; 2]) };
    judge(file, dev, words.map_or(WHOLE, |words| range(ctx.arg(1), words)))
}

#[lsm(hook = "uring_cmd")]
pub(crate) fn uring_cmd(ctx: LsmContext) -> i32 {
    let command: *const u8 = ctx.arg(0);
    // SAFETY: fields of a program argument.
    let (file, operation, sqe): (*const u8, u32, *const u8) = unsafe {
        (field(command, &URING_CMD_FILE), field(command, &URING_CMD_OP), field(command, &URING_CMD_SQE))
    };
    if operation != BLOCK_URING_CMD_DISCARD {
        return passthrough::by_ring(file, operation, sqe);
    }
    let dev = block_device_probed(file);
    if dev == 0 {
        return 0;
    }
    judge(file, dev, [probed(sqe, SQE_ADDR), probed(sqe, SQE_ADDR3)])
}
