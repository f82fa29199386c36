//! What `io_uring` and Linux aio are about to write: in `file_permission` they run in a worker, or under a system call
//! whose arguments say nothing about the write.

use core::arch::asm;

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::bpf_get_current_pid_tgid,
    macros::{fentry, fexit},
    programs::{FEntryContext, FExitContext},
};
use format_guard_common::event::{Stash, StashKind};

use crate::{
    kernel::{
        IO_KIOCB_OPCODE, IO_RW_ADDR, IO_RW_LEN, KIOCB_KI_FILP, KIOCB_KI_POS, block_device_probed, probed,
    },
    maps::{STASHED, STASHES},
};

// include/uapi/linux/io_uring.h
const IORING_OP_WRITEV: u8 = 2;
const IORING_OP_WRITE_FIXED: u8 = 5;
const IORING_OP_WRITE: u8 = 23;
// struct iocb, include/uapi/linux/aio_abi.h
const IOCB_BUF: u32 = 24;
const IOCB_NBYTES: u32 = 32;
const IOCB_OFFSET: u32 = 40;

#[inline(always)]
fn keep(stash: &Stash) {
    let task = bpf_get_current_pid_tgid();
    // One that was left behind is counted already.
    if STASHES.insert(task, stash, u64::from(BPF_NOEXIST)).is_ok() {
        count(1);
    } else {
        let _ = STASHES.insert(task, stash, 0);
    }
}

/// Changes the number of stashes.
#[inline(always)]
fn count(by: i64) {
    if let Some(stashed) = STASHED.get_ptr_mut(0) {
        // The target's atomics of core lack this one.
        // SAFETY: adds to an aligned map value, which is changed nowhere else.
        unsafe {
            asm!("lock *(u64 *)({stashed} + 0) += {by}", stashed = in(reg) stashed, by = in(reg) by, options(nostack));
        }
    }
}

#[inline(always)]
fn drop_stash() -> i32 {
    // Writes to files, which are most: a look-up for each of them would be their cost.
    if STASHED.get(0) == Some(&0) {
        return 0;
    }
    if STASHES.remove(bpf_get_current_pid_tgid()).is_ok() {
        count(-1);
    }
    0
}

// int io_write(struct io_kiocb *req, unsigned int issue_flags): struct io_rw lies at req, its kiocb first.
#[fentry(function = "io_write")]
pub(crate) fn enter_io_write(ctx: FEntryContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    let file: u64 = probed(request, KIOCB_KI_FILP.load());
    if block_device_probed(file as *const u8) == 0 {
        return 0;
    }
    let length: u32 = probed(request, IO_RW_LEN.load());
    let opcode: u8 = probed(request, IO_KIOCB_OPCODE.load());
    let kind = match opcode {
        IORING_OP_WRITE | IORING_OP_WRITE_FIXED => StashKind::Bytes,
        IORING_OP_WRITEV => StashKind::Vector,
        _ => StashKind::Unknown,
    };
    keep(&Stash {
        file,
        position: probed(request, KIOCB_KI_POS.load()),
        count: u64::from(length),
        address: probed(request, IO_RW_ADDR.load()),
        kind: kind as u64,
    });
    0
}

#[fexit(function = "io_write")]
pub(crate) fn exit_io_write(_ctx: FExitContext) -> i32 {
    drop_stash()
}

// int aio_write(struct kiocb *req, const struct iocb *iocb, bool vectored, bool compat): the position is in the iocb.
#[fentry(function = "aio_write")]
pub(crate) fn enter_aio_write(ctx: FEntryContext) -> i32 {
    let request: *const u8 = ctx.arg(0);
    let file: u64 = probed(request, KIOCB_KI_FILP.load());
    if block_device_probed(file as *const u8) == 0 {
        return 0;
    }
    let iocb: *const u8 = ctx.arg(1);
    let vectored: u64 = ctx.arg(2);
    let kind = if vectored & 1 != 0 { StashKind::Vector } else { StashKind::Bytes };
    keep(&Stash {
        file,
        position: probed(iocb, IOCB_OFFSET),
        count: probed(iocb, IOCB_NBYTES),
        address: probed(iocb, IOCB_BUF),
        kind: kind as u64,
    });
    0
}

#[fexit(function = "aio_write")]
pub(crate) fn exit_aio_write(_ctx: FExitContext) -> i32 {
    drop_stash()
}
