//! Opens for writing. The device is opened first and judged then: what was opened is what is judged, by the
//! number of its attachment, and a refused descriptor is closed before the program sees it.

use core::ffi::{c_char, c_int, c_uint};

use format_guard_common::{NoContent, Operation};

use crate::{
    gate::{close, judge, whole},
    next::{kernel, stand_before},
};

/// What `creat` opens with (creat(2)).
pub(crate) const CREAT: c_int = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
const HERE: c_int = libc::AT_FDCWD;

/// What an open gave, unless it may not be.
pub(crate) fn opened(fd: c_int, flags: c_int) -> c_int {
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0;
    if fd >= 0 && writes && judge(fd, whole(Operation::Open), &NoContent).is_err() {
        close(fd);
        return -1;
    }
    fd
}

stand_before! {
    fn open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(HERE, path, flags, mode)), then |fd| opened(fd, flags);
    fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(HERE, path, flags, mode)), then |fd| opened(fd, flags);
    fn __open(path: *const c_char, flags: c_int, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(HERE, path, flags, mode)), then |fd| opened(fd, flags);
    fn __open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(HERE, path, flags, mode)), then |fd| opened(fd, flags);
    fn openat(at: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(at, path, flags, mode)), then |fd| opened(fd, flags);
    fn openat64(at: c_int, path: *const c_char, flags: c_int, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(at, path, flags, mode)), then |fd| opened(fd, flags);
    fn creat(path: *const c_char, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(HERE, path, CREAT, mode)), then |fd| opened(fd, CREAT);
    fn creat64(path: *const c_char, mode: c_uint) -> c_int,
        or kernel!(SYS_openat(HERE, path, CREAT, mode)), then |fd| opened(fd, CREAT);
    // What the fortified forms of the above call (_FORTIFY_SOURCE, glibc's io/bits/fcntl2.h).
    fn __open_2(path: *const c_char, flags: c_int) -> c_int,
        or kernel!(SYS_openat(HERE, path, flags)), then |fd| opened(fd, flags);
    fn __open64_2(path: *const c_char, flags: c_int) -> c_int,
        or kernel!(SYS_openat(HERE, path, flags)), then |fd| opened(fd, flags);
    fn __openat_2(at: c_int, path: *const c_char, flags: c_int) -> c_int,
        or kernel!(SYS_openat(at, path, flags)), then |fd| opened(fd, flags);
    fn __openat64_2(at: c_int, path: *const c_char, flags: c_int) -> c_int,
        or kernel!(SYS_openat(at, path, flags)), then |fd| opened(fd, flags);
}
