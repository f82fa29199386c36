//! Writes, and what moves bytes to a device from elsewhere.

use core::ffi::{c_int, c_uint, c_void};

use format_guard_common::{Operation, Request};
use libc::{iovec, off_t, size_t, ssize_t};

use crate::{
    content::Bytes,
    gate::{block_device, judge_device},
    next::{kernel, stand_before},
    system::{call3, words},
};

/// Where a write begins.
#[derive(Clone, Copy)]
pub(crate) enum Position {
    /// The descriptor's own.
    Own,
    At(off_t),
    /// Where this pointer says; null: the descriptor's own.
    Pointed(*const off_t),
}

impl Position {
    /// The first byte. What cannot be told is the start: a mark is always there, and the kernel will fail the
    /// call.
    fn first(self, fd: c_int) -> u64 {
        match self {
            Self::At(offset) => offset.cast_unsigned(),
            Self::Pointed(pointer) if !pointer.is_null() => {
                words(pointer as usize).map_or(0, |[offset]| offset)
            }
            Self::Own | Self::Pointed(_) => {
                // SAFETY: no memory.
                let offset = unsafe { call3(libc::SYS_lseek, fd as usize, 0, libc::SEEK_CUR as usize) };
                u64::try_from(offset).unwrap_or(0)
            }
        }
    }
}

/// Whether a write is refused; `length` counts for what is no array of pieces.
pub(crate) fn refused(fd: c_int, position: Position, bytes: Bytes, length: size_t) -> bool {
    let Some(dev) = block_device(fd) else { return false };
    let length = if matches!(bytes, Bytes::Pieces(..)) { bytes.total() } else { length as u64 };
    let request = Request { operation: Operation::Write, offset: position.first(fd), length };
    judge_device(fd, dev, request, &bytes).is_err()
}

/// The same of bytes in one piece.
pub(crate) fn refused_bytes(fd: c_int, position: Position, bytes: *const c_void, count: size_t) -> bool {
    refused(fd, position, Bytes::Whole(bytes as usize), count)
}

/// The same of bytes in some pieces.
pub(crate) fn refused_pieces(fd: c_int, position: Position, pieces: *const iovec, count: c_int) -> bool {
    refused(fd, position, Bytes::Pieces(pieces as usize, usize::try_from(count).unwrap_or(0)), 0)
}

/// The same of bytes that lie in another file.
pub(crate) fn refused_elsewhere(fd: c_int, position: Position, count: size_t) -> bool {
    refused(fd, position, Bytes::Elsewhere, count)
}

/// `pwritev2` takes -1 for the descriptor's own position.
pub(crate) const fn at_or_own(offset: off_t) -> Position {
    if offset == -1 { Position::Own } else { Position::At(offset) }
}

stand_before! {
    fn write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t,
        unless refused_bytes(fd, Position::Own, bytes, count) => -1, or kernel!(SYS_write(fd, bytes, count));
    fn __write(fd: c_int, bytes: *const c_void, count: size_t) -> ssize_t,
        unless refused_bytes(fd, Position::Own, bytes, count) => -1, or kernel!(SYS_write(fd, bytes, count));
    fn pwrite(fd: c_int, bytes: *const c_void, count: size_t, offset: off_t) -> ssize_t,
        unless refused_bytes(fd, Position::At(offset), bytes, count) => -1,
        or kernel!(SYS_pwrite64(fd, bytes, count, offset));
    fn pwrite64(fd: c_int, bytes: *const c_void, count: size_t, offset: off_t) -> ssize_t,
        unless refused_bytes(fd, Position::At(offset), bytes, count) => -1,
        or kernel!(SYS_pwrite64(fd, bytes, count, offset));
    fn __pwrite64(fd: c_int, bytes: *const c_void, count: size_t, offset: off_t) -> ssize_t,
        unless refused_bytes(fd, Position::At(offset), bytes, count) => -1,
        or kernel!(SYS_pwrite64(fd, bytes, count, offset));
    fn writev(fd: c_int, pieces: *const iovec, count: c_int) -> ssize_t,
        unless refused_pieces(fd, Position::Own, pieces, count) => -1, or kernel!(SYS_writev(fd, pieces, count));
    fn pwritev(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        unless refused_pieces(fd, Position::At(offset), pieces, count) => -1,
        or kernel!(SYS_pwritev(fd, pieces, count, offset));
    fn pwritev64(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t) -> ssize_t,
        unless refused_pieces(fd, Position::At(offset), pieces, count) => -1,
        or kernel!(SYS_pwritev(fd, pieces, count, offset));
    fn pwritev2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        unless refused_pieces(fd, at_or_own(offset), pieces, count) => -1,
        or kernel!(SYS_pwritev2(fd, pieces, count, offset, 0, flags));
    fn pwritev64v2(fd: c_int, pieces: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t,
        unless refused_pieces(fd, at_or_own(offset), pieces, count) => -1,
        or kernel!(SYS_pwritev2(fd, pieces, count, offset, 0, flags));
    fn sendfile(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t,
        unless refused_elsewhere(to, Position::Own, count) => -1, or kernel!(SYS_sendfile(to, from, offset, count));
    fn sendfile64(to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t,
        unless refused_elsewhere(to, Position::Own, count) => -1, or kernel!(SYS_sendfile(to, from, offset, count));
    fn splice(
        from: c_int, offset: *mut off_t, to: c_int, position: *mut off_t, count: size_t, flags: c_uint
    ) -> ssize_t,
        unless refused_elsewhere(to, Position::Pointed(position), count) => -1,
        or kernel!(SYS_splice(from, offset, to, position, count, flags));
    fn copy_file_range(
        from: c_int, offset: *mut off_t, to: c_int, position: *mut off_t, count: size_t, flags: c_uint
    ) -> ssize_t,
        unless refused_elsewhere(to, Position::Pointed(position), count) => -1,
        or kernel!(SYS_copy_file_range(from, offset, to, position, count, flags));
}
