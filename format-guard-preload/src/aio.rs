//! Linux aio, as libaio submits it (LVM's tools write by it), and POSIX aio, which the C library makes in
//! threads of its own.

use core::{
    ffi::{c_int, c_long, c_void},
    mem::offset_of,
};

use libc::{aiocb, iovec};

use crate::{
    next::{kernel, stand_before},
    system::{set_errno, words},
    write::{Position, refused_bytes, refused_pieces},
};

/// Requests of one call that are looked at: more than a context of libaio's users has.
const MAX_REQUESTS: usize = 1024;

// include/uapi/linux/aio_abi.h: IOCB_CMD_PWRITE and IOCB_CMD_PWRITEV.
const PWRITE: u16 = 1;
const PWRITEV: u16 = 8;

/// Whether one of these requests is refused: then none is made.
pub(crate) fn refused(count: c_long, requests: *const *const c_void) -> bool {
    let count = usize::try_from(count).unwrap_or(0).min(MAX_REQUESTS);
    (0..count).any(|number| {
        let place = (requests as usize).wrapping_add(number * size_of::<usize>());
        words(place).and_then(|[request]| words(request as usize)).is_some_and(is_refused)
    })
}

/// Whether a `struct iocb` (where bytes are little-endian) is refused.
fn is_refused([_, _, operation, address, count, offset, _, _]: [u64; 8]) -> bool {
    let fd = (operation >> 32) as c_int;
    let position = Position::At(offset.cast_signed());
    match operation as u16 {
        PWRITE => refused_bytes(fd, position, address as *const c_void, count as usize),
        PWRITEV => refused_pieces(fd, position, address as *const iovec, count as c_int),
        _ => false,
    }
}

/// Words of a `struct aiocb` (aio.h of glibc) up to its offset, which is the last of what is read.
const REQUEST: usize = offset_of!(aiocb, aio_offset) / 8 + 1;
const _: () = assert!(
    offset_of!(aiocb, aio_fildes) == 0
        && offset_of!(aiocb, aio_lio_opcode) == 4
        && offset_of!(aiocb, aio_buf) == 16
        && offset_of!(aiocb, aio_nbytes) == 24
);

/// Whether a request of POSIX aio to write is refused.
fn is_refused_write(request: usize) -> bool {
    let Some(request) = words::<REQUEST>(request) else { return false };
    let (fd, address, count) = (request[0] as c_int, request[2] as usize, request[3] as usize);
    refused_bytes(fd, Position::At(request[REQUEST - 1].cast_signed()), address as *const c_void, count)
}

/// Whether one of a list of such requests is to write, and refused: then none is made.
fn is_refused_list(list: *const *const c_void, count: c_int) -> bool {
    let count = usize::try_from(count).unwrap_or(0).min(MAX_REQUESTS);
    (0..count).any(|number| {
        let place = (list as usize).wrapping_add(number * size_of::<usize>());
        words(place).is_some_and(|[request]| {
            let to_write =
                words(request as usize).is_some_and(|[first]| (first >> 32) as c_int == libc::LIO_WRITE);
            to_write && is_refused_write(request as usize)
        })
    })
}

/// A function of the C library alone, which is not there.
fn absent() -> c_int {
    set_errno(libc::ENOSYS);
    -1
}

stand_before! {
    fn aio_write(request: *mut c_void) -> c_int,
        unless is_refused_write(request as usize) => -1, or absent();
    fn aio_write64(request: *mut c_void) -> c_int,
        unless is_refused_write(request as usize) => -1, or absent();
    fn lio_listio(mode: c_int, list: *const *const c_void, count: c_int, event: *mut c_void) -> c_int,
        unless is_refused_list(list, count) => -1, or absent();
    fn lio_listio64(mode: c_int, list: *const *const c_void, count: c_int, event: *mut c_void) -> c_int,
        unless is_refused_list(list, count) => -1, or absent();
    // libaio gives an errno as a negative result.
    fn io_submit(context: usize, count: c_long, requests: *mut *mut c_void) -> c_int,
        unless refused(count, requests.cast_const().cast()) => -libc::EPERM,
        or {
            let result: c_int = kernel!(SYS_io_submit(context, count, requests));
            if result < 0 { -crate::system::errno() } else { result }
        };
}
