//! Lines of the kernel programs, for whoever looks for the cause of a verdict that the records do not show.
//! They are built with the feature `log`, in an object of their own (`format-guard-programs`): without it
//! nothing is left of them. A line must never decide anything, and a buffer that is full loses lines and
//! nothing else.
//!
//! The target of every line is `format_guard_ebpf`, which is what `FORMAT_GUARD_LOG` names.

/// A judged write: what was found of it ([`crate::place::what`]), and where it goes. One line each, at level
/// `trace`.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(crate) fn write(dev: u32, what: u64, offset: u64, bytes: u64) {
    #[cfg(feature = "log")]
    aya_log_ebpf::trace!(
        (),
        target: "format_guard_ebpf",
        "device {}:{}: a write of {} bytes at {}, found as {}",
        dev >> MINOR_BITS,
        dev & MINOR_MASK,
        bytes,
        offset,
        what
    );
    #[cfg(not(feature = "log"))]
    let _ = (dev, what, offset, bytes);
}

/// A verdict other than a plain yes: numbers of `EventKind`, `Reason` and `Operation`. One line each, at
/// level `debug`.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(crate) fn verdict(dev: u32, kind: u32, reason: u32, operation: u32, state: u32) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        (),
        target: "format_guard_ebpf",
        "device {}:{} in state {}: operation {} is answered with {}, reason {}",
        dev >> MINOR_BITS,
        dev & MINOR_MASK,
        state,
        operation,
        kind,
        reason
    );
    #[cfg(not(feature = "log"))]
    let _ = (dev, kind, reason, operation, state);
}

/// The rule of a device that was made for another medium (`diskseq`) and counts no more. At level `debug`.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(crate) fn stale(dev: u32, ours: u64, theirs: u64) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        (),
        target: "format_guard_ebpf",
        "device {}:{}: its rule is of diskseq {}, the medium is {}",
        dev >> MINOR_BITS,
        dev & MINOR_MASK,
        ours,
        theirs
    );
    #[cfg(not(feature = "log"))]
    let _ = (dev, ours, theirs);
}

/// The kernel's `dev_t` (include/linux/kdev_t.h).
#[cfg(feature = "log")]
const MINOR_BITS: u32 = 20;
#[cfg(feature = "log")]
const MINOR_MASK: u32 = (1 << MINOR_BITS) - 1;
