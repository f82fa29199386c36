//! Lines of the kernel programs, for whoever looks for the cause of a verdict that the records do not show.
//! The feature `log` builds them into an object of their own (`format-guard-programs`); the other object has
//! none of them. No line changes a verdict, and a full buffer loses lines and nothing else.
//!
//! A line has numbers where its reader needs words: text costs stack and instructions here. The agent puts
//! the word behind each `KEY=` of a line (`enforce/bpf/lines.rs`).
//!
//! The target of every line is `format_guard_ebpf`, which is what `FORMAT_GUARD_LOG` names.

/// Says how long a write is, where it goes, and in which form ([`crate::place::what`]) its bytes were found.
/// One line for each judged write, at level `trace`.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(crate) fn write(dev: u32, what: u64, offset: u64, bytes: u64) {
    #[cfg(feature = "log")]
    aya_log_ebpf::trace!(
        (),
        target: "format_guard_ebpf",
        "device {}:{}: the kernel asks about a write of {} bytes at {}, form={}",
        dev >> MINOR_BITS,
        dev & MINOR_MASK,
        bytes,
        offset,
        what
    );
    #[cfg(not(feature = "log"))]
    let _ = (dev, what, offset, bytes);
}

/// Says what was asked for and how the request was answered: numbers of `Operation`, `State`, `EventKind` and
/// `Reason`. One line for each verdict but `Allow` and `Later`, at level `debug`.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(crate) fn verdict(dev: u32, kind: u32, reason: u32, operation: u32, state: u32) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        (),
        target: "format_guard_ebpf",
        "device {}:{}: the programs judged operation={} state={} verdict={} reason={}",
        dev >> MINOR_BITS,
        dev & MINOR_MASK,
        operation,
        state,
        kind,
        reason
    );
    #[cfg(not(feature = "log"))]
    let _ = (dev, kind, reason, operation, state);
}

/// Says that a rule was made for another medium, by `diskseq`, and that it is ignored. At level `debug`.
#[cfg_attr(feature = "log", inline(never))]
#[cfg_attr(not(feature = "log"), inline(always))]
pub(crate) fn stale(dev: u32, ours: u64, theirs: u64) {
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        (),
        target: "format_guard_ebpf",
        "device {}:{}: the programs ignore the rule for diskseq {}, the medium has diskseq {}",
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
