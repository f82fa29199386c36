//! Linux aio, as libaio submits it: LVM's tools write by it.

use core::ffi::{c_int, c_long, c_void};

use libc::iovec;

use crate::{
    next::{kernel, stand_before},
    system::copy,
    write::{Position, refused_bytes, refused_pieces},
};

/// Requests of one call that are looked at: more than a context of libaio's users has.
const MAX_REQUESTS: usize = 1024;

// include/uapi/linux/aio_abi.h: IOCB_CMD_PWRITE and IOCB_CMD_PWRITEV, and where in a struct iocb of 64 bytes what is (where
// bytes are little-endian).
const PWRITE: u16 = 1;
const PWRITEV: u16 = 8;
const OPERATION: usize = 16;
const DESCRIPTOR: usize = 20;
const ADDRESS: usize = 24;
const COUNT: usize = 32;
const OFFSET: usize = 40;

/// Whether one of these requests is refused: then none is made.
pub(crate) fn refused(count: c_long, requests: *const *const c_void) -> bool {
    let count = usize::try_from(count).unwrap_or(0).min(MAX_REQUESTS);
    (0..count).any(|number| {
        let mut address = [0; size_of::<usize>()];
        let mut request = [0; 64];
        let place = (requests as usize).wrapping_add(number * size_of::<usize>());
        copy(place, &mut address) && copy(usize::from_ne_bytes(address), &mut request) && is_refused(&request)
    })
}

fn is_refused(request: &[u8; 64]) -> bool {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.iter_mut().zip(request.iter().skip(at)).for_each(|(to, from)| *to = *from);
        u64::from_ne_bytes(word)
    };
    let (fd, address, count) = (word(DESCRIPTOR) as c_int, word(ADDRESS) as usize, word(COUNT));
    let position = Position::At(word(OFFSET).cast_signed());
    match word(OPERATION) as u16 {
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
