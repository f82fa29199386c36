//! In which form the kernel programs find what a write carries.

/// The write is of the kernel's own threads.
pub const KERNEL: u64 = 0;
/// Neither place nor bytes are known.
pub const UNPLACED: u64 = 1;
/// Nothing is known yet: told to come again, `io_uring` hands the write to a worker, and what the worker does
/// is known.
pub const LATER: u64 = 2;
/// Bytes at one address.
pub const BYTES: u64 = 3;
/// The iovecs at one address name the bytes.
pub const VECTOR: u64 = 4;
/// Bytes that cannot be read.
pub const HIDDEN: u64 = 5;
/// Bytes that are erased.
pub const ERASURE: u64 = 6;
/// One write of several that aio takes together.
pub const BATCH: u64 = 7;

/// The word for a form in the log, if the number is one.
#[must_use]
pub const fn name(form: u64) -> Option<&'static str> {
    Some(match form {
        KERNEL => "kernel-thread",
        UNPLACED => "unplaced",
        LATER => "later",
        BYTES => "bytes",
        VECTOR => "iovecs",
        HIDDEN => "unreadable",
        ERASURE => "erasure",
        BATCH => "aio-batch",
        _ => return None,
    })
}
