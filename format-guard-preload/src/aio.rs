//! Linux aio, as libaio submits it: LVM's tools write by it.

use core::ffi::{c_int, c_long, c_void};

use libc::iovec;

use crate::{
    next::{kernel, stand_before},
    system::words,
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

stand_before! {
    // libaio gives an errno as a negative result.
    fn io_submit(context: usize, count: c_long, requests: *mut *mut c_void) -> c_int,
        unless refused(count, requests.cast_const().cast()) => -libc::EPERM,
        or {
            let result: c_int = kernel!(SYS_io_submit(context, count, requests));
            if result < 0 { -crate::system::errno() } else { result }
        };
}
