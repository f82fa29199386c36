//! Discards, zero-outs, resets of zones and holes: the bytes there are lost whatever they were.

use core::ffi::{c_int, c_ulong, c_void};

use format_guard_common::{
    NoContent, Operation, Request,
    erase::{WHOLE, erases, range},
};
use libc::off_t;

use crate::{
    gate::judge,
    next::{kernel, stand_before},
    system::words,
};

fn refused(fd: c_int, [offset, length]: [u64; 2]) -> bool {
    judge(fd, Request { operation: Operation::Erase, offset, length }, &NoContent).is_err()
}

/// Whether an ioctl is refused. The kernel takes the lower half of its number.
pub(crate) fn refused_ioctl(fd: c_int, command: c_ulong, argument: *mut c_void) -> bool {
    let command = command as u32;
    erases(command) && refused(fd, words(argument as usize).map_or(WHOLE, |words| range(command, words)))
}

/// Whether a `fallocate` is refused: whatever its mode, on a block device it zeroes or discards
/// (`blkdev_fallocate`, block/fops.c).
pub(crate) fn refused_fallocate(fd: c_int, offset: off_t, length: off_t) -> bool {
    match (u64::try_from(offset), u64::try_from(length)) {
        (Ok(offset), Ok(length)) => refused(fd, [offset, length]),
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
