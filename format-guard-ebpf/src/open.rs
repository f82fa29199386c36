//! `file_open`: every open of a block device node for writing, in any namespace; not the kernel's own opens.

use aya_ebpf::{macros::lsm, programs::LsmContext};

use crate::{
    caller, gate,
    kernel::{FILE_F_MODE, block_device, field},
    wait,
};

const FMODE_WRITE: u32 = 2;

#[lsm(hook = "file_open", sleepable)]
pub(crate) fn file_open(ctx: LsmContext) -> i32 {
    let file: *const u8 = ctx.arg(0);
    let dev = block_device(file);
    if dev == 0 {
        return 0;
    }
    // SAFETY: a program argument.
    let mode: u32 = unsafe { field(file, &FILE_F_MODE) };
    if mode & FMODE_WRITE == 0 {
        return 0;
    }
    let arguments = caller::class_by_arguments();
    wait::until_read(dev, arguments);
    let Some(target) = gate::target_of_dev(dev) else { return 0 };
    gate::judge_open(&target, arguments)
}
