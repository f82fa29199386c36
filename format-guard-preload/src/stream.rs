//! Streams of the C library. What is written to them goes to the kernel by functions that nobody can stand
//! before: one that is opened for writing is judged as a write of which neither position nor bytes are known.

use core::ffi::{CStr, c_char, c_int};

use format_guard_common::{NoContent, Operation};
use libc::FILE;

use crate::{
    gate::{judge, whole},
    next::stand_before,
};

/// Whether a stream of this mode (fopen(3)) may be written to.
fn writes(mode: *const c_char) -> bool {
    if mode.is_null() {
        return false;
    }
    // SAFETY: the program's own argument, a string.
    let mode = unsafe { CStr::from_ptr(mode) }.to_bytes();
    mode.iter().take_while(|byte| **byte != b',').any(|byte| matches!(byte, b'w' | b'a' | b'+'))
}

fn refused(fd: c_int) -> bool {
    [Operation::Open, Operation::Unplaced]
        .into_iter()
        .any(|operation| judge(fd, whole(operation), &NoContent).is_err())
}

/// A stream that was opened, unless it may not be: closed then, as one whose open fails is.
fn opened(stream: *mut FILE, mode: *const c_char) -> *mut FILE {
    // SAFETY: a stream of the C library.
    if stream.is_null() || !writes(mode) || !refused(unsafe { libc::fileno(stream) }) {
        return stream;
    }
    // SAFETY: nobody else knows of the stream.
    unsafe { libc::fclose(stream) };
    crate::system::set_errno(libc::EPERM);
    core::ptr::null_mut()
}

/// `fdopen` gives no stream where it refuses, and leaves the descriptor to the program.
fn refused_fdopen(fd: c_int, mode: *const c_char) -> bool {
    writes(mode) && judge(fd, whole(Operation::Unplaced), &NoContent).is_err()
}

/// There is no stream without the C library.
const NONE: *mut FILE = core::ptr::null_mut();

stand_before! {
    fn fdopen(fd: c_int, mode: *const c_char) -> *mut FILE,
        unless refused_fdopen(fd, mode) => NONE, or NONE;
    fn fopen(path: *const c_char, mode: *const c_char) -> *mut FILE,
        or NONE, then |stream| opened(stream, mode);
    fn fopen64(path: *const c_char, mode: *const c_char) -> *mut FILE,
        or NONE, then |stream| opened(stream, mode);
    fn freopen(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE,
        or NONE, then |stream| opened(stream, mode);
    fn freopen64(path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE,
        or NONE, then |stream| opened(stream, mode);
}
