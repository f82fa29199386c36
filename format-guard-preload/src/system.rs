//! System calls by themselves: the C library's functions may be ours, and set errno.

use core::mem::MaybeUninit;

use libc::c_long;

/// Calls the kernel; a negative result is an errno.
///
/// # Safety
/// As of the system call.
#[inline]
pub(crate) unsafe fn call(number: c_long, arguments: [usize; 6]) -> isize {
    let [a, b, c, d, e, f] = arguments;
    let result;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention (entry_64.S): rcx and r11 are lost.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number as isize => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
            options(nostack)
        );
    }
    result
}

/// The same for calls of three arguments at most.
///
/// # Safety
/// As of the system call.
#[inline]
pub(crate) unsafe fn call3(number: c_long, a: usize, b: usize, c: usize) -> isize {
    // SAFETY: the caller's.
    unsafe { call(number, [a, b, c, 0, 0, 0]) }
}

/// The result as the C library gives it: errno is set for a failure.
pub(crate) fn returned(result: isize) -> isize {
    // include/linux/err.h: MAX_ERRNO.
    if (-4095..0).contains(&result) {
        set_errno(-result as i32);
        return -1;
    }
    result
}

pub(crate) fn errno() -> i32 {
    // SAFETY: as below.
    unsafe { *libc::__errno_location() }
}

pub(crate) fn set_errno(errno: i32) {
    // SAFETY: the C library's own place for this thread.
    unsafe { *libc::__errno_location() = errno };
}

/// A descriptor of ours, closed with the value.
pub(crate) struct Descriptor(pub(crate) i32);

impl Descriptor {
    /// What a system call gave.
    pub(crate) fn from(result: isize) -> Option<Self> {
        i32::try_from(result).ok().filter(|fd| *fd >= 0).map(Self)
    }

    /// Opens a file to read; the path ends with a NUL.
    pub(crate) fn open(path: &[u8]) -> Option<Self> {
        if path.last() != Some(&0) {
            return None;
        }
        let flags = (libc::O_RDONLY | libc::O_CLOEXEC) as usize;
        let at = libc::AT_FDCWD as isize as usize;
        // SAFETY: a path that ends with a NUL.
        Self::from(unsafe { call(libc::SYS_openat, [at, path.as_ptr() as usize, flags, 0, 0, 0]) })
    }

    pub(crate) const fn number(&self) -> usize {
        self.0 as usize
    }

    /// Reads on; the number of bytes.
    pub(crate) fn read(&self, into: &mut [u8]) -> Option<usize> {
        // SAFETY: as many bytes as the slice has.
        let read = unsafe { call3(libc::SYS_read, self.number(), into.as_mut_ptr() as usize, into.len()) };
        usize::try_from(read).ok()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: opened by us.
        unsafe { call3(libc::SYS_close, self.number(), 0, 0) };
    }
}

/// What `fstat` says of a descriptor.
pub(crate) fn status(fd: i32) -> Option<libc::stat> {
    let mut status = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: the kernel fills the structure, which is the C library's on 64-bit machines.
    let result = unsafe { call3(libc::SYS_fstat, fd as usize, status.as_mut_ptr() as usize, 0) };
    // SAFETY: filled, where the call succeeded.
    (result == 0).then(|| unsafe { status.assume_init() })
}

/// Process id, as the process itself sees it.
pub(crate) fn process() -> u32 {
    // SAFETY: no arguments.
    unsafe { call3(libc::SYS_getpid, 0, 0, 0) as u32 }
}

/// Name of the calling thread.
pub(crate) fn comm() -> [u8; 16] {
    let mut comm = [0_u8; 16];
    // SAFETY: the kernel writes 16 bytes (PR_GET_NAME, prctl(2)).
    unsafe { call3(libc::SYS_prctl, libc::PR_GET_NAME as usize, comm.as_mut_ptr() as usize, 0) };
    comm
}

/// Seconds of the monotonic clock.
pub(crate) fn seconds() -> i64 {
    time_of(libc::CLOCK_MONOTONIC).tv_sec
}

/// Nanoseconds of `CLOCK_BOOTTIME`.
pub(crate) fn since_boot() -> u64 {
    let now = time_of(libc::CLOCK_BOOTTIME);
    (now.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(now.tv_nsec as u64)
}

fn time_of(clock: libc::clockid_t) -> libc::timespec {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel fills the structure.
    unsafe {
        call3(libc::SYS_clock_gettime, clock as usize, &raw mut now as usize, 0);
    }
    now
}

/// So many words of the program's memory; `None` where it is not there.
pub(crate) fn words<const N: usize>(from: usize) -> Option<[u64; N]> {
    let mut bytes = [[0; 8]; N];
    copy(from, bytes.as_flattened_mut()).then(|| bytes.map(u64::from_ne_bytes))
}

/// Copies the program's memory, which may not be there: false where that is so.
pub(crate) fn copy(from: usize, into: &mut [u8]) -> bool {
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let remote = libc::iovec { iov_base: from as *mut _, iov_len: into.len() };
    let (local, remote) = (&raw const local as usize, &raw const remote as usize);
    // SAFETY: the kernel checks the address to read from; as many bytes as the slice has are written.
    let copied = unsafe { call(libc::SYS_process_vm_readv, [process() as usize, local, 1, remote, 1, 0]) };
    if copied == -(libc::ENOSYS as isize) || copied == -(libc::EPERM as isize) {
        // Container runtimes forbid the call (Docker's seccomp profile on kernels before 4.8): a wrong
        // address ends the program here, which its own call would have told of by EFAULT. SAFETY: bytes that
        // the program is about to hand to the kernel.
        unsafe { core::ptr::copy_nonoverlapping(from as *const u8, into.as_mut_ptr(), into.len()) };
        return true;
    }
    copied == into.len() as isize
}
