//! Discards, zero-outs and holes: the bytes there are lost whatever they were.

use core::ffi::{c_int, c_ulong, c_void};

use format_guard_common::{NoContent, Operation, Request};
use libc::off_t;

use crate::{
    gate::judge,
    next::{kernel, stand_before},
    system::words,
};

// include/uapi/linux/fs.h: _IO(0x12, 119), _IO(0x12, 125), _IO(0x12, 127), each with a uint64_t range[2].
const BLKDISCARD: u32 = 0x1277;
const BLKSECDISCARD: u32 = 0x127d;
const BLKZEROOUT: u32 = 0x127f;

/// Where the range cannot be read, the whole device is meant: the kernel will fail the call itself.
const WHOLE: (u64, u64) = (0, u64::MAX);

fn erases(fd: c_int, (offset, length): (u64, u64)) -> bool {
    judge(fd, Request { operation: Operation::Erase, offset, length }, &NoContent).is_err()
}

/// Whether an ioctl is refused. The kernel takes the lower half of its number.
pub(crate) fn refused_ioctl(fd: c_int, command: c_ulong, argument: *mut c_void) -> bool {
    if !matches!(command as u32, BLKDISCARD | BLKSECDISCARD | BLKZEROOUT) {
        return false;
    }
    erases(fd, words(argument as usize).map_or(WHOLE, |[offset, length]| (offset, length)))
}

/// Whether a `fallocate` is refused: whatever its mode, on a block device it zeroes or discards (`blkdev_fallocate`,
/// block/fops.c).
pub(crate) fn refused_fallocate(fd: c_int, offset: off_t, length: off_t) -> bool {
    match (u64::try_from(offset), u64::try_from(length)) {
        (Ok(offset), Ok(length)) => erases(fd, (offset, length)),
        // The kernel will fail it.
        _ => false,
    }
}

stand_before! {
    fn ioctl(fd: c_int, command: c_ulong, argument: *mut c_void) -> c_int,
        unless refused_ioctl(fd, command, argument) => -1, or kernel!(SYS_ioctl(fd, command, argument));
    fn fallocate(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int,
        unless refused_fallocate(fd, offset, length) => -1, or kernel!(SYS_fallocate(fd, mode, offset, length));
    fn fallocate64(fd: c_int, mode: c_int, offset: off_t, length: off_t) -> c_int,
        unless refused_fallocate(fd, offset, length) => -1, or kernel!(SYS_fallocate(fd, mode, offset, length));
}
