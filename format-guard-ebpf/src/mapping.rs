//! Shared writable mappings of a block device: stores into them pass no hook, so they are judged when made.

use aya_ebpf::{macros::lsm, programs::LsmContext};

use crate::{
    gate,
    kernel::{MODIFY_RETURN, VMA_VM_FILE, VMA_VM_FLAGS, block_device_probed, probed},
};

// include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h
const PROT_WRITE: u64 = 2;
const MAP_TYPE: u64 = 0x0f;
const MAP_SHARED: u64 = 1;
const MAP_SHARED_VALIDATE: u64 = 3;
// include/linux/mm.h
const VM_SHARED: u64 = 8;

#[inline(always)]
fn judge(file: *const u8) -> i32 {
    let dev = block_device_probed(file);
    if dev == 0 {
        return 0;
    }
    let Some(target) = gate::target_of_file(file, dev) else { return 0 };
    gate::judge_map(&target)
}

#[lsm(hook = "mmap_file", sleepable)]
pub(crate) fn mmap_file(ctx: LsmContext) -> i32 {
    let file: *const u8 = ctx.arg(0);
    // An anonymous mapping; kernels from 7.0 want the check before any arithmetic.
    if file.is_null() {
        return 0;
    }
    // security_mmap_file(file, prot, flags) asks the hooks (file, reqprot, prot, flags), security/security.c.
    let (second, third): (u64, u64) = (ctx.arg(1), ctx.arg(2));
    let (protection, flags) = if MODIFY_RETURN.load() == 0 { (third, ctx.arg(3)) } else { (second, third) };
    if protection & PROT_WRITE == 0
        || (flags & MAP_TYPE != MAP_SHARED && flags & MAP_TYPE != MAP_SHARED_VALIDATE)
    {
        return 0;
    }
    judge(file)
}

#[lsm(hook = "file_mprotect")]
pub(crate) fn file_mprotect(ctx: LsmContext) -> i32 {
    let requested: u64 = ctx.arg(1);
    if requested & PROT_WRITE == 0 {
        return 0;
    }
    let vma: *const u8 = ctx.arg(0);
    // By helper: 7.2 refuses direct loads from this argument.
    let flags: u64 = probed(vma, VMA_VM_FLAGS.load());
    if flags & VM_SHARED == 0 {
        return 0;
    }
    let file: u64 = probed(vma, VMA_VM_FILE.load());
    judge(file as *const u8)
}
