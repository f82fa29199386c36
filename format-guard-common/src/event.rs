//! Records that the kernel programs keep in maps and send through the ring buffer.

/// Which process: a thread group id is reused, together with its start time it is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Process {
    /// Nanoseconds of `CLOCK_BOOTTIME` when the thread group's leader started (`task_struct.start_boottime`).
    pub started: u64,
    /// Thread group id in the initial pid namespace.
    pub tgid: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

/// The one process that formats a volume: value of the map `FORMAT_OWNERS`, keyed by the kernel `dev_t` in
/// [`Rule::lock_dev`](crate::Rule).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FormatOwner {
    /// Who.
    pub process: Process,
    /// The attachment of the device [`Rule::lock_dev`](crate::Rule).
    pub diskseq: u64,
    /// Kernel `dev_t` of the device that it formats.
    pub dev: u32,
    /// Bits of [`wrote`]; zero: it only looked, and has not formatted.
    pub wrote: u32,
    /// Not zero once a file system on the device was mounted after the format began.
    pub mounted: u64,
    /// Name of the program (`task_struct.comm`), NUL-padded.
    pub comm: [u8; 16],
    /// The control group (v2) of the process.
    pub cgroup: u64,
}

/// Bits of [`FormatOwner::wrote`], and of the `reason` of an event [`EventKind::FormatBegan`].
pub mod wrote {
    use crate::Operation;

    /// It wrote or erased anything, or may have.
    pub const BYTES: u32 = 1;
    /// The magic of a format went through.
    pub const MAGIC: u32 = 2;
    /// Bytes that are not zero and no known format's went through, of one that is no known formatter.
    pub const RAW: u32 = 4;

    /// What has gone through where a format began ([`Verdict::Begin`](crate::Verdict)) with this operation.
    #[inline(always)]
    #[must_use]
    pub const fn begun(operation: Operation) -> u32 {
        match operation {
            Operation::Open => 0,
            Operation::Write => BYTES | MAGIC,
            _ => BYTES,
        }
    }
}

/// Key of the map `TAINTS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TaintKey {
    /// Thread group id in the initial pid namespace.
    pub tgid: u32,
    /// Kernel `dev_t`.
    pub dev: u32,
}

/// Value of the map `LAYERS`: how a device lies over others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Layer {
    /// The attachment; zero where it is not known.
    pub diskseq: u64,
    /// Who made it over nothing but what it formatted at that time, or [`Layer::OVER_A_FORMAT`], or
    /// [`Layer::NOBODYS`].
    pub maker: Process,
    /// Kernel `dev_t` of the volume at the bottom that its maker formatted.
    pub bottom: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

impl Layer {
    /// In place of who made a device that lies over a volume that holds a format. No process has these
    /// numbers.
    pub const OVER_A_FORMAT: Process = Process { started: 1, tgid: 0, zero: 0 };
    /// In place of who made a device over whatever else.
    pub const NOBODYS: Process = Process { started: 0, tgid: 0, zero: 0 };
}

/// Value of the map `TAINTS`: what must still be so for the taint to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Taint {
    /// Start of the process, as in [`Process::started`].
    pub started: u64,
    /// The attachment on which it was refused.
    pub diskseq: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME` until which it holds; each further refusal moves it on.
    pub until: u64,
}

impl Taint {
    /// For how long a process must not try to write before it may do so again, in nanoseconds. A virtual
    /// machine's monitor goes on where its guest has given up to format its disk; what fails at each block
    /// and goes on all the same (badblocks) never pauses for so long.
    pub const QUIET: u64 = 10_000_000_000;
}

/// What a [`KernelEvent`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventKind {
    /// A request was refused; `reason` says why.
    Denied = 1,
    /// Audit: a request would have been refused.
    WouldDeny = 2,
    /// A process has begun to format a blank or permitted volume; `reason` is what it has written, bits of
    /// [`wrote`].
    FormatBegan = 3,
    /// The process that formatted has ended; `status` is its wait status.
    FormatEnded = 4,
    /// A re-labelling tool changes the UUID.
    Relabelled = 5,
    /// The owner of a logical volume wipes an old signature.
    OwnerWiped = 6,
    /// A file system on the device was mounted.
    Mounted = 7,
    /// The device is gone.
    Gone = 8,
    /// Somebody was kept from taking the guard away: `operation` is a
    /// [`Tampering`](crate::protection::Tampering), `offset` the number of the object or signal.
    Tampered = 9,
    /// A known formatter waits until the device is read.
    Waits = 10,
}

impl EventKind {
    /// The word for it in the log.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::WouldDeny => "would-deny",
            Self::FormatBegan => "format-began",
            Self::FormatEnded => "format-ended",
            Self::Relabelled => "relabelled",
            Self::OwnerWiped => "owner-wiped",
            Self::Mounted => "mounted",
            Self::Gone => "gone",
            Self::Tampered => "tampered",
            Self::Waits => "waits",
        }
    }

    /// The kind with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Denied,
            2 => Self::WouldDeny,
            3 => Self::FormatBegan,
            4 => Self::FormatEnded,
            5 => Self::Relabelled,
            6 => Self::OwnerWiped,
            7 => Self::Mounted,
            8 => Self::Gone,
            9 => Self::Tampered,
            10 => Self::Waits,
            _ => return None,
        })
    }
}

/// One record of the ring buffer. Integers are of native byte order; fields that mean nothing to a kind are
/// zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KernelEvent {
    /// An [`EventKind`].
    pub kind: u32,
    /// A [`crate::Reason`], or zero; of a format that began, bits of [`wrote`].
    pub reason: u32,
    /// A [`crate::Operation`], or zero.
    pub operation: u32,
    /// Kernel `dev_t`.
    pub dev: u32,
    /// The attachment.
    pub diskseq: u64,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes in the range.
    pub length: u64,
    /// Who asked.
    pub process: Process,
    /// Its control group (v2).
    pub cgroup: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME` at which it happened.
    pub at: u64,
    /// Wait status of an ended process.
    pub status: u32,
    /// Kernel `dev_t` of the device through which it was tried, where that lies below `dev`; else zero.
    pub through: u32,
    /// Its name (`task_struct.comm`), NUL-padded.
    pub comm: [u8; 16],
}

/// What the arguments of a process said: value of the map `ARG_CLASSES`, keyed by thread group id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ArgumentClass {
    /// When the process started, as in [`Process`].
    pub started: u64,
    /// A [`Class`](crate::program::Class).
    pub class: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

/// Slots of the per-CPU map `COUNTERS`: the guard shows when it is blind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Requests to guarded devices that were judged.
    Judged = 0,
    /// Rules left over from an earlier medium under the same number.
    Stale = 1,
    /// Events that the full ring buffer could not take.
    LostEvents = 2,
    /// Taints or owners of formats that a full map could not take.
    FullMaps = 3,
    /// Writes whose place on the device could not be found.
    Unplaced = 4,
}

/// Slots in `COUNTERS`.
pub const COUNTERS: u32 = 5;

#[cfg(feature = "aya")]
mod pod {
    use super::{FormatOwner, Taint, TaintKey};

    // SAFETY: repr(C), integers only, no padding.
    unsafe impl aya::Pod for FormatOwner {}
    // SAFETY: repr(C), integers only, no padding.
    unsafe impl aya::Pod for TaintKey {}
    // SAFETY: repr(C), integers only, no padding.
    unsafe impl aya::Pod for Taint {}
}

const _: () = assert!(size_of::<KernelEvent>() == 16 + 24 + 16 + 16 + 8 + 16);
const _: () = assert!(size_of::<FormatOwner>() == 16 + 16 + 8 + 16 + 8);
