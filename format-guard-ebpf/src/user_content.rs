//! The bytes of a write, in the caller's memory. Nothing of it is kept on the stack, which is short of room: the iovecs
//! are read again for every check that lies under the write.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use format_guard_common::{Content, each, opaque};

/// Iovecs that are looked into; more of them over a mark are refused.
pub(crate) const MAX_IOVECS: u64 = 4;
/// Iovecs that the kernel takes in one call (`UIO_MAXIOV`, include/uapi/linux/uio.h): more of them fail before any hook.
const UIO_MAXIOV: u64 = 1024;
/// The length of what cannot be read, which reaches everything behind its start. The kernel has read the array a moment ago, so
/// that it is there.
const UNKNOWN: u64 = 1 << 40;
/// Bytes of a `struct iovec`.
const IOVEC: u64 = 16;

/// Where the bytes are.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// In one piece at `address`.
    Bytes,
    /// In `struct iovec`s at `address`.
    Vector,
    /// Nowhere that can be read.
    Unknown,
}

/// Base and length of one of the caller's iovecs; of one that cannot be read, zeros.
#[inline(always)]
fn iovec(address: u64, number: u64) -> [u64; 2] {
    let mut iovec = MaybeUninit::<[u64; 2]>::uninit();
    let place = address.wrapping_add(number * IOVEC);
    // SAFETY: 16 bytes of stack; the helper checks the user address, and zeroes all of them on failure.
    let iovec = unsafe {
        bpf_probe_read_user(iovec.as_mut_ptr().cast(), IOVEC as u32, place as *const _);
        iovec.assume_init()
    };
    [iovec[0], iovec[1] & 0x7fff_ffff]
}

/// Bytes in `count` iovecs (at most [`MAX_IOVECS`]) at a user address, without a branch: the verifier sees one path.
#[inline(always)]
pub(crate) fn total(address: u64, count: u64) -> u64 {
    let mut total = 0;
    for number in 0..MAX_IOVECS {
        total += iovec(address, number)[1] & used(number, count);
    }
    total
}

/// A sum on its way along the iovecs.
struct Sum {
    address: u64,
    total: u64,
}

/// Adds one.
extern "C" fn add(number: u32, sum: *mut Sum) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let sum = unsafe { &mut *sum };
    let [base, length] = iovec(sum.address, u64::from(number));
    let more = if base | length == 0 { UNKNOWN } else { length };
    // What a turn leaves to the next is unknown to the verifier: else it follows each turn apart.
    sum.total = opaque(sum.total.wrapping_add(more), sum.address);
    0
}

/// Bytes in however many iovecs at a user address. A function of its own, for the stack of its caller.
#[inline(never)]
pub(crate) fn total_of_many(address: u64, count: u64) -> u64 {
    let count = if count > UIO_MAXIOV { UIO_MAXIOV } else { count };
    let mut sum = Sum { address, total: 0 };
    each(count as u32, &mut sum, add);
    sum.total
}

/// All ones for an iovec that is one of `count`, else zero.
#[inline(always)]
fn used(number: u64, count: u64) -> u64 {
    0_u64.wrapping_sub(hidden(below(number, count & 0xffff)))
}

/// User address of the `length` bytes at `at`, zero where they do not lie in one iovec.
#[inline(always)]
fn find(address: u64, count: u64, at: u64, length: u64) -> u64 {
    let (mut found, mut start) = (0, 0);
    for number in 0..MAX_IOVECS {
        let [base, size] = iovec(address, number);
        let end = start + (size & used(number, count));
        let outside = hidden(below(at, start) | below(end, at + length));
        found |= base.wrapping_add(at.wrapping_sub(start)) & outside.wrapping_sub(1);
        start = end;
    }
    found
}

/// 1 where `a < b`, else 0, for values below 2^63.
#[inline(always)]
fn below(a: u64, b: u64) -> u64 {
    a.wrapping_sub(b) >> 63
}

/// The same value, of which the compiler forgets what it knew: it would make branches of the masks.
#[inline(always)]
fn hidden(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: adds zero to a register.
    unsafe {
        core::arch::asm!("{0} += 0", inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// `length` with a bound that the verifier sees; LLVM drops a plain mask, as it knows that it changes nothing.
#[inline(always)]
fn bounded(mut length: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: masks a register.
    unsafe {
        core::arch::asm!("{0} &= 31", inout(reg) length, options(pure, nomem, nostack));
    }
    length
}

/// Bytes that are looked at in one turn: the most whole words below the mask of [`short`].
const PIECE: u64 = 56;
/// Turns at most: 29 MB, some ten milliseconds. Of what is longer pieces are looked at that lie evenly apart.
const MAX_PIECES: u64 = 1 << 19;

/// The same as [`bounded`], for up to 63.
#[inline(always)]
fn short(mut length: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: masks a register.
    unsafe {
        core::arch::asm!("{0} &= 63", inout(reg) length, options(pure, nomem, nostack));
    }
    length
}

/// A look at bytes of the caller, piece by piece.
struct Look {
    address: u64,
    length: u64,
    /// From the start of one piece to that of the next.
    step: u64,
    /// What was found: bits of this type.
    found: u64,
}

impl Look {
    /// A byte that is not zero.
    const BYTES: u64 = 1;
    /// Bytes that cannot be read.
    const HIDDEN: u64 = 2;
}

/// Looks at one piece.
extern "C" fn look(number: u32, look: *mut Look) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let look = unsafe { &mut *look };
    let start = u64::from(number) * look.step;
    let rest = look.length.wrapping_sub(start);
    let length = if rest < PIECE { rest } else { PIECE };
    let mut bytes = MaybeUninit::<[u64; 8]>::uninit();
    let words: *mut u64 = bytes.as_mut_ptr().cast();
    // SAFETY: at most 63 bytes into 64 of stack, all of them zeroed; the helper checks the user address.
    let (failed, any) = unsafe {
        for word in 0..8 {
            words.add(word).write_volatile(0);
        }
        let place = look.address.wrapping_add(start);
        let failed = bpf_probe_read_user(words.cast(), short(length) as u32, place as *const _);
        let mut any = 0;
        for word in 0..8 {
            any |= words.add(word).read_volatile();
        }
        (failed, any)
    };
    let bits = if failed != 0 {
        Look::HIDDEN
    } else if any != 0 {
        Look::BYTES
    } else {
        0
    };
    // What a turn leaves to the next is unknown to the verifier: else it follows each turn apart.
    look.found = opaque(look.found | bits, look.address);
    i64::from(bits & Look::BYTES != 0)
}

/// What is found ([`Look`]) in bytes at a user address. A function of its own, for the stack of its caller.
#[inline(never)]
fn found(address: u64, length: u64) -> u64 {
    let pieces = length.div_ceil(PIECE);
    let (count, step) = if pieces > MAX_PIECES { (MAX_PIECES, length / MAX_PIECES) } else { (pieces, PIECE) };
    let mut state = Look { address, length, step, found: 0 };
    each(count as u32, &mut state, look);
    state.found
}

/// The same for the bytes in `count` iovecs.
#[inline(never)]
fn found_in_vector(address: u64, count: u64) -> u64 {
    let mut all = 0;
    for number in 0..MAX_IOVECS {
        let [base, length] = iovec(address, number);
        all |= found(base, length & used(number, count));
    }
    all
}

/// The bytes of one write.
pub(crate) struct UserContent {
    address: u64,
    /// Iovecs at `address`; zero: the bytes themselves lie there.
    iovecs: u64,
}

impl UserContent {
    /// The bytes at `address`, or in `count` iovecs there; `unknown` comes from a map value.
    #[inline(always)]
    pub(crate) fn new(source: Source, address: u64, count: u64, unknown: u64) -> Self {
        let (address, iovecs) = match source {
            Source::Bytes => (address, 0),
            Source::Vector => (address, count),
            Source::Unknown => (0, 0),
        };
        Self { address: opaque(address, unknown), iovecs: opaque(iovecs, unknown) }
    }
}

impl Content for UserContent {
    #[inline(always)]
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        let address = if self.address == 0 {
            0
        } else if self.iovecs == 0 {
            self.address.wrapping_add(at)
        } else {
            find(self.address, self.iovecs, at, length)
        };
        if address == 0 {
            return None;
        }
        // Twice what a check holds: the mask above allows up to 31.
        let mut bytes = MaybeUninit::<[u64; 4]>::uninit();
        let start: *mut u64 = bytes.as_mut_ptr().cast();
        // SAFETY: at most 31 bytes into 32 of stack, all of them zeroed; the helper checks the user address.
        let (failed, bytes) = unsafe {
            // Each by itself: for an array LLVM calls a loop of bytes, which the verifier follows byte by byte.
            for word in 0..4 {
                start.add(word).write_volatile(0);
            }
            let failed = bpf_probe_read_user(start.cast(), bounded(length) as u32, address as *const _);
            (failed, [start.read(), start.add(1).read()])
        };
        (failed == 0).then_some(bytes)
    }

    #[inline(always)]
    fn is_zero(&self, length: u64) -> Option<bool> {
        let found = if self.address == 0 {
            Look::HIDDEN
        } else if self.iovecs == 0 {
            found(self.address, length)
        } else {
            found_in_vector(self.address, self.iovecs)
        };
        if found & Look::BYTES != 0 { Some(false) } else { (found == 0).then_some(true) }
    }
}
