//! The bytes of a write, in the caller's memory.

use aya_ebpf::helpers::generated::bpf_probe_read_user;
use format_guard_common::{Content, opaque};

/// Iovecs that are looked into. More of them over a mark are refused: each costs the verifier a branchless step per
/// check.
pub(crate) const MAX_IOVECS: usize = 4;

/// Where the bytes are.
#[derive(Clone, Copy)]
pub(crate) enum Source {
    /// In one piece at `address`.
    Bytes,
    /// In `struct iovec`s, see [`Segments`].
    Vector,
    /// Nowhere that can be read.
    Unknown,
}

/// The caller's iovecs: user address, start within the write, length of each.
pub(crate) struct Segments {
    each: [[u64; 3]; MAX_IOVECS],
    /// Bytes in all of them.
    pub(crate) total: u64,
}

impl Segments {
    /// No iovecs; `unknown` comes from a map value, so that the verifier takes nothing for known.
    #[inline(always)]
    pub(crate) fn none(unknown: u64) -> Self {
        Self { each: [[unknown; 3]; MAX_IOVECS], total: 0 }
    }

    /// Reads `count` iovecs (at most [`MAX_IOVECS`]) at a user address, without a branch: the verifier sees one path.
    #[inline(always)]
    pub(crate) fn load(&mut self, address: u64, count: u64) {
        let count = count & 0xffff;
        let mut total = 0;
        for (i, segment) in self.each.iter_mut().enumerate() {
            let mut iovec = [0_u64; 2];
            // SAFETY: 16 bytes of stack; the helper checks the user address and zeroes on failure.
            let _ = unsafe {
                bpf_probe_read_user(iovec.as_mut_ptr().cast(), 16, (address + i as u64 * 16) as *const _)
            };
            let used = 0_u64.wrapping_sub(hidden(below(i as u64, count)));
            let length = (iovec[1] & 0x7fff_ffff) & used;
            *segment = [iovec[0], total, length];
            total += length;
        }
        self.total = total;
    }

    /// Makes the verifier forget what it knows of each value.
    #[inline(always)]
    pub(crate) fn forget(&mut self, unknown: u64) {
        for segment in &mut self.each {
            for value in segment {
                *value = opaque(*value, unknown);
            }
        }
    }

    /// User address of the `length` bytes at `at`, zero where they do not lie in one segment.
    #[inline(always)]
    fn find(&self, at: u64, length: u64) -> u64 {
        let mut address = 0;
        for [base, start, size] in self.each {
            let outside = hidden(below(at, start) | below(start + size, at + length));
            address |= base.wrapping_add(at.wrapping_sub(start)) & outside.wrapping_sub(1);
        }
        address
    }
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

/// The bytes of one write. Without a branch on where they lie: each would be a path through every check.
pub(crate) struct UserContent<'a> {
    /// All ones for [`Source::Bytes`], else zero.
    bytes: u64,
    /// All ones for [`Source::Vector`], else zero.
    vector: u64,
    address: u64,
    segments: &'a Segments,
}

impl<'a> UserContent<'a> {
    /// The bytes at `address`, or in `segments`; `unknown` comes from a map value.
    #[inline(always)]
    pub(crate) fn new(source: Source, address: u64, segments: &'a Segments, unknown: u64) -> Self {
        let (bytes, vector) = match source {
            Source::Bytes => (u64::MAX, 0),
            Source::Vector => (0, u64::MAX),
            Source::Unknown => (0, 0),
        };
        Self {
            bytes: opaque(bytes, unknown),
            vector: opaque(vector, unknown),
            address: opaque(address, unknown),
            segments,
        }
    }
}

impl Content for UserContent<'_> {
    #[inline(always)]
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]> {
        let address =
            self.address.wrapping_add(at) & self.bytes | self.segments.find(at, length) & self.vector;
        if address == 0 {
            return None;
        }
        // Twice what a check holds: the mask above allows up to 31.
        let mut bytes = [0_u64; 4];
        // SAFETY: at most 31 bytes into 32 of stack; the helper checks the user address.
        let failed = unsafe {
            bpf_probe_read_user(bytes.as_mut_ptr().cast(), bounded(length) as u32, address as *const _)
        };
        (failed == 0).then_some([bytes[0], bytes[1]])
    }
}
