//! `syscall`: the same requests, by their numbers.

use core::ffi::{c_char, c_int, c_long};

use crate::{
    aio, erase, mapping,
    next::stand_before,
    open::{CREAT, opened},
    system::{call, returned, words},
    write::{self, Position},
};

type Arguments = [usize; 6];

/// Whether a call is refused before it is made.
fn refused(number: c_long, arguments: Arguments) -> bool {
    let [a, b, c, d, e, _] = arguments;
    match number {
        libc::SYS_write => write::refused_bytes(a as c_int, Position::Own, b as _, c),
        libc::SYS_pwrite64 => write::refused_bytes(a as c_int, Position::At(d as _), b as _, c),
        libc::SYS_writev => write::refused_pieces(a as c_int, Position::Own, b as _, c as c_int),
        libc::SYS_pwritev => write::refused_pieces(a as c_int, Position::At(d as _), b as _, c as c_int),
        libc::SYS_pwritev2 => write::refused_pieces(a as c_int, write::at_or_own(d as _), b as _, c as c_int),
        libc::SYS_sendfile => write::refused_elsewhere(a as c_int, Position::Own, d),
        libc::SYS_splice | libc::SYS_copy_file_range => {
            write::refused_elsewhere(c as c_int, Position::Pointed(d as _), e)
        }
        libc::SYS_io_submit => aio::refused(b as _, c as _),
        libc::SYS_ioctl => erase::refused_ioctl(a as c_int, b as _, c as _),
        libc::SYS_fallocate => erase::refused_fallocate(a as c_int, c as _, d as _),
        libc::SYS_mmap => mapping::refused_mmap(c as c_int, d as c_int, e as c_int),
        libc::SYS_mprotect => mapping::refused_mprotect(a as _, b, c as c_int),
        _ => false,
    }
}

/// The flags with which a call opens a file, if it does.
fn flags(number: c_long, arguments: Arguments) -> Option<c_int> {
    let [_, b, c, ..] = arguments;
    #[cfg(target_arch = "x86_64")]
    match number {
        libc::SYS_open => return Some(b as c_int),
        libc::SYS_creat => return Some(CREAT),
        _ => {}
    }
    match number {
        libc::SYS_openat => Some(c as c_int),
        libc::SYS_openat2 => {
            // struct open_how, include/uapi/linux/openat2.h: it begins with the flags.
            words(c).map(|[flags]| flags as c_int)
        }
        _ => None,
    }
}

fn done(result: c_long, number: c_long, arguments: Arguments) -> c_long {
    match flags(number, arguments) {
        Some(flags) => c_long::from(opened(result as c_int, flags)),
        None => result,
    }
}

stand_before! {
    fn syscall(number: c_long, a: usize, b: usize, c: usize, d: usize, e: usize, f: usize) -> c_long,
        unless refused(number, [a, b, c, d, e, f]) => -1,
        // SAFETY: the program's own call.
        or returned(unsafe { call(number, [a, b, c, d, e, f]) }) as c_long,
        then |result| done(result, number, [a, b, c, d, e, f]);
}

const _: () = assert!(size_of::<*const c_char>() == size_of::<usize>() && size_of::<c_long>() == 8);
