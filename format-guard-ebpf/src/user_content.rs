//! The bytes of a write, in the caller's memory. No copy is kept: the iovecs are read again for every check
//! that lies under the write.

use core::mem::MaybeUninit;

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use format_guard_common::{Content, each, opaque};

/// Iovecs that are read at once.
const FEW: u64 = 4;
/// Iovecs that the kernel takes in one call (`UIO_MAXIOV`, include/uapi/linux/uio.h): more of them fail
/// before any hook.
const UIO_MAXIOV: u64 = 1024;
/// The length of an iovec that cannot be read: it reaches everything behind its start. The kernel has read
/// the array a moment ago, so the array is there.
const UNKNOWN: u64 = 1 << 40;
/// Bytes of a `struct iovec`.
const IOVEC: u64 = 16;
/// The longest iovec (`MAX_RW_COUNT`, include/linux/fs.h), as a mask.
const LONGEST: u64 = 0x7fff_ffff;

/// Zeroes words one by one: for an array LLVM calls a loop of bytes, which the verifier follows byte by byte.
#[inline(always)]
fn zeroed<const WORDS: usize>(words: &mut MaybeUninit<[u64; WORDS]>) -> &mut [u64; WORDS] {
    let start: *mut u64 = words.as_mut_ptr().cast();
    // SAFETY: as many words as the array has.
    unsafe {
        let mut word = 0;
        while word < WORDS {
            start.add(word).write_volatile(0);
            word += 1;
        }
        words.assume_init_mut()
    }
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
    [iovec[0], iovec[1] & LONGEST]
}

/// Bytes in so many iovecs at a user address. A function of its own, for the stack of its callers.
#[inline(never)]
pub(crate) fn total(address: u64, count: u64) -> u64 {
    let bytes = hidden(count.wrapping_mul(IOVEC));
    if count > FEW || bytes > FEW * IOVEC {
        return total_of_many(address, count);
    }
    let mut iovecs = MaybeUninit::<[u64; 8]>::uninit();
    let iovecs = zeroed(&mut iovecs);
    // SAFETY: at most as many bytes of stack, all of them zeroed; the helper checks the user address.
    let failed =
        unsafe { bpf_probe_read_user(iovecs.as_mut_ptr().cast(), bytes as u32, address as *const _) };
    if failed != 0 {
        return UNKNOWN;
    }
    (iovecs[1] & LONGEST) + (iovecs[3] & LONGEST) + (iovecs[5] & LONGEST) + (iovecs[7] & LONGEST)
}

/// A sum that is being built along the iovecs.
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
    // The verifier must not know the result of a turn: otherwise it follows each turn apart.
    sum.total = opaque(sum.total.wrapping_add(more), sum.address);
    0
}

/// The same, for any number of iovecs.
#[inline(never)]
fn total_of_many(address: u64, count: u64) -> u64 {
    let mut sum = Sum { address, total: 0 };
    each(at_most(count), &mut sum, add);
    sum.total
}

#[inline(always)]
fn at_most(count: u64) -> u32 {
    if count > UIO_MAXIOV { UIO_MAXIOV as u32 } else { count as u32 }
}

/// The same value, without what the compiler knows of it: the compiler would drop a bound that the verifier
/// must see.
#[inline(always)]
fn hidden(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: adds zero to a register.
    unsafe {
        core::arch::asm!("{0} += 0", inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// `value` with a bound below 32 that the verifier sees. LLVM drops a plain mask, since the mask changes
/// nothing.
#[inline(always)]
fn bounded(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: masks a register.
    unsafe {
        core::arch::asm!("{0} &= 31", inout(reg) value, options(pure, nomem, nostack));
    }
    value
}

/// Bytes that one turn looks at: the largest number of whole words below the mask of [`short`].
const PIECE: u64 = 56;
/// Turns at most: 29 MB, about ten milliseconds. Of a longer write, evenly spaced pieces are looked at.
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
    // The verifier must not know the result of a turn: otherwise it follows each turn apart.
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

/// A look at the bytes of iovecs, one by one.
struct Vector {
    address: u64,
    found: u64,
}

/// Looks at one iovec.
extern "C" fn look_in(number: u32, vector: *mut Vector) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let vector = unsafe { &mut *vector };
    let [base, length] = iovec(vector.address, u64::from(number));
    let bits = if base | length == 0 { Look::HIDDEN } else { found(base, length) };
    vector.found = opaque(vector.found | bits, vector.address);
    i64::from(bits & Look::BYTES != 0)
}

/// What is found in the bytes of so many iovecs.
#[inline(never)]
fn found_in_vector(address: u64, count: u64) -> u64 {
    let mut vector = Vector { address, found: 0 };
    each(at_most(count), &mut vector, look_in);
    vector.found
}

/// The bytes of one write.
pub(crate) struct UserContent {
    address: u64,
    /// Iovecs at `address`; zero: the bytes themselves lie there.
    iovecs: u64,
}

impl UserContent {
    /// The bytes at `address`, or in the `iovecs` there; an address of zero means no bytes. `unknown` comes
    /// from a map value.
    #[inline(always)]
    pub(crate) fn new(address: u64, iovecs: u64, unknown: u64) -> Self {
        Self { address: opaque(address, unknown), iovecs: opaque(iovecs, unknown) }
    }
}

/// Room for what a check compares with, and more: the verifier assumes 16 bytes at place 15.
#[repr(C)]
struct Bytes([u64; 4]);

impl Content for UserContent {
    #[inline(always)]
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        if self.address == 0 {
            return None;
        }
        let mut bytes = MaybeUninit::uninit();
        let bytes: *mut [u64; 4] = zeroed(&mut bytes);
        let read = read_bytes(self.address, self.iovecs, at, length, bytes.cast());
        // SAFETY: two of four words of stack.
        (read != 0).then(|| unsafe { bytes.cast::<[u64; 2]>().read() })
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

/// Bytes that are gathered from the iovecs that hold them.
struct Gathered<'a> {
    address: u64,
    /// The first wanted byte, counted from the start of the write.
    first: u64,
    end: u64,
    /// Where the next iovec starts.
    start: u64,
    /// Bytes that were gathered until now.
    count: u64,
    into: &'a mut Bytes,
}

/// Takes what one iovec holds of the wanted bytes.
extern "C" fn gather(number: u32, gathered: *mut Gathered<'_>) -> i64 {
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let gathered = unsafe { &mut *gathered };
    let [base, length] = iovec(gathered.address, number.into());
    let (start, end) = (gathered.start, gathered.start.wrapping_add(length));
    let from = if start > gathered.first { start } else { gathered.first };
    let to = if end < gathered.end { end } else { gathered.end };
    if from < to {
        let (place, count) = (hidden(from - gathered.first), hidden(to - from));
        if place > 15 || count > 16 {
            return 1;
        }
        // SAFETY: at most 31 bytes into 32; the helper checks the user address.
        let failed = unsafe {
            let into = (&raw mut *gathered.into).cast::<u8>().add(place as usize);
            bpf_probe_read_user(into.cast(), count as u32, base.wrapping_add(from - start) as *const _)
        };
        if failed == 0 {
            gathered.count = opaque(gathered.count.wrapping_add(count), gathered.address);
        }
    }
    gathered.start = opaque(end, gathered.address);
    i64::from(end >= gathered.end)
}

/// Reads the `length` bytes at `at` of a write; zero if they cannot be read. Exported, so that the verifier
/// follows it by itself and once, and not again in each turn of the loop over the checks.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn read_bytes(address: u64, iovecs: u64, at: u64, length: u64, into: *mut Bytes) -> u64 {
    // SAFETY: null or what the caller has on its stack, which the verifier has proven.
    let Some(into) = (unsafe { into.as_mut() }) else { return 0 };
    if iovecs == 0 {
        // SAFETY: at most 31 bytes into 32; the helper checks the user address.
        let failed = unsafe {
            let place = address.wrapping_add(at) as *const _;
            bpf_probe_read_user((&raw mut *into).cast(), bounded(length) as u32, place)
        };
        return u64::from(failed == 0);
    }
    let mut gathered =
        Gathered { address, first: at, end: at.wrapping_add(length), start: 0, count: 0, into };
    each(at_most(iovecs), &mut gathered, gather);
    u64::from(gathered.count == length)
}
