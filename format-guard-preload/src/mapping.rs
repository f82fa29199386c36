//! Shared writable mappings: later stores into them are seen by nobody.

use core::{
    ffi::{c_int, c_void},
    sync::atomic::{AtomicBool, Ordering},
};

use format_guard_common::{NoContent, Operation};
use libc::{off_t, size_t};

use crate::{
    gate::{block_device, judge, whole},
    next::{kernel, stand_before},
    system::{Descriptor, call3},
};

/// Whether the process, or one that it was forked from, has ever mapped a block device that it may come to
/// write to.
static MAPPED: AtomicBool = AtomicBool::new(false);

const fn is_shared(flags: c_int) -> bool {
    // MAP_SHARED is one of the bits of MAP_SHARED_VALIDATE.
    flags & libc::MAP_SHARED != 0
}

/// Whether a mapping is refused.
pub(crate) fn refused_mmap(protection: c_int, flags: c_int, fd: c_int) -> bool {
    if !is_shared(flags) || flags & libc::MAP_ANONYMOUS != 0 || block_device(fd).is_none() {
        return false;
    }
    MAPPED.store(true, Ordering::SeqCst);
    protection & libc::PROT_WRITE != 0 && judge(fd, whole(Operation::Map), &NoContent).is_err()
}

/// Whether the right to write to these addresses is refused: a block device is mapped there, shared.
pub(crate) fn refused_mprotect(start: *mut c_void, length: size_t, protection: c_int) -> bool {
    if protection & libc::PROT_WRITE == 0 || !MAPPED.load(Ordering::SeqCst) {
        return false;
    }
    let Some(maps) = Descriptor::open(b"/proc/self/maps\0") else { return false };
    let (start, end) = (start as u64, (start as u64).saturating_add(length as u64));
    let mut lines = Lines { maps, line: [0; LINE], held: 0, taken: 0 };
    while let Some(line) = lines.next() {
        if mapped_node(line, start, end).is_some_and(is_refused) {
            return true;
        }
    }
    false
}

/// Bytes of a line that are looked at: a longer path is no device node's.
const LINE: usize = 512;

/// Lines of `/proc/self/maps`.
struct Lines {
    maps: Descriptor,
    line: [u8; LINE],
    /// Bytes in `line`, and those of them that were given.
    held: usize,
    taken: usize,
}

impl Lines {
    /// The next line without its end; a part of one that is too long.
    fn next(&mut self) -> Option<&[u8]> {
        self.line.copy_within(self.taken.min(self.held)..self.held, 0);
        self.held -= self.taken.min(self.held);
        self.taken = 0;
        loop {
            let end = self.line.get(..self.held)?.iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                self.taken = end + 1;
                return self.line.get(..end);
            }
            if self.held == LINE {
                self.taken = LINE;
                return self.line.get(..LINE);
            }
            match self.maps.read(self.line.get_mut(self.held..)?)? {
                0 => return None,
                read => self.held += read,
            }
        }
    }
}

/// The path of a shared mapping that lies between these addresses (`proc_pid_maps(5)`), if it may be a device
/// node.
fn mapped_node(line: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut bounds = fields.next()?.splitn(2, |byte| *byte == b'-');
    let (first, last) = (hexadecimal(bounds.next()?)?, hexadecimal(bounds.next()?)?);
    let shared = fields.next()?.get(3) == Some(&b's');
    let path = fields.nth(3)?.trim_ascii();
    (shared && first < end && last > start && path.first() == Some(&b'/')).then_some(path)
}

fn hexadecimal(digits: &[u8]) -> Option<u64> {
    digits
        .iter()
        .try_fold(0_u64, |number, digit| Some(number << 4 | u64::from(char::from(*digit).to_digit(16)?)))
}

/// Judges the right to write to what is mapped from this path.
fn is_refused(path: &[u8]) -> bool {
    let mut terminated = [0; LINE];
    let Some(to) = terminated.get_mut(..path.len()) else { return false };
    to.copy_from_slice(path);
    let Some(with_end) = terminated.get(..=path.len()) else { return false };
    // Without an effect on the device, as its driver is not asked.
    let flags = (libc::O_PATH | libc::O_CLOEXEC) as usize;
    let at = libc::AT_FDCWD as isize as usize;
    // SAFETY: a path that ends with a NUL.
    let node = Descriptor::from(unsafe { call3(libc::SYS_openat, at, with_end.as_ptr() as usize, flags) });
    node.is_some_and(|node| {
        // The attachment is asked of an opened device; one of a formatted volume is refused whichever it is.
        let Some(opened) = Descriptor::open(with_end).filter(|_| block_device(node.0).is_some()) else {
            return false;
        };
        judge(opened.0, whole(Operation::Map), &NoContent).is_err()
    })
}

stand_before! {
    fn mmap(
        address: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void,
        unless refused_mmap(protection, flags, fd) => libc::MAP_FAILED,
        or kernel!(SYS_mmap(address, length, protection, flags, fd, offset));
    fn mmap64(
        address: *mut c_void, length: size_t, protection: c_int, flags: c_int, fd: c_int, offset: off_t
    ) -> *mut c_void,
        unless refused_mmap(protection, flags, fd) => libc::MAP_FAILED,
        or kernel!(SYS_mmap(address, length, protection, flags, fd, offset));
    fn mprotect(start: *mut c_void, length: size_t, protection: c_int) -> c_int,
        unless refused_mprotect(start, length, protection) => -1,
        or kernel!(SYS_mprotect(start, length, protection));
}
