//! What is asked of a device, by whom, and what is answered.

use crate::program::Class;

/// What a process is about to do to a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Operation {
    /// An open for writing: `offset` and `length` mean nothing.
    Open = 1,
    /// A write of known position and length, whose bytes are looked at where a check lies under them.
    Write = 2,
    /// A write whose position or bytes cannot be known here (32-bit callers, system calls not listed).
    Unplaced = 3,
    /// A discard, zero-out or hole over a range: the bytes there are lost whatever they were.
    Erase = 4,
    /// A shared writable mapping: later stores into it are seen by nobody.
    Map = 5,
    /// A write or erasure over the border of a volume that lies on the device.
    Across = 6,
    /// A command that may write, past the block layer (`SG_IO`, `NVMe` passthrough), where the configuration
    /// refuses them. `offset` is the kernel `dev_t` of the character device that it goes to, or zero;
    /// `length` its number ([`crate::passthrough::Command::code`]).
    Passthrough = 7,
    /// A write of which nothing is known before the kernel has handed it to a worker (`io_uring`).
    Later = 8,
    /// The kernel is about to write a header of its own, unless it finds one, as a layer is made over the
    /// device or a file system takes it in. `length` is a [`Header`](crate::header::Header).
    Header = 9,
    /// The device is given to such a layer, which will write over it. `length` as of [`Operation::Header`].
    Give = 10,
}

impl Operation {
    /// The word for it in events and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Write => "write",
            Self::Unplaced => "unplaced-write",
            Self::Erase => "erase",
            Self::Map => "map",
            Self::Across => "write-across",
            Self::Passthrough => "passthrough",
            Self::Later => "write-later",
            Self::Header => "kernel-header",
            Self::Give => "give-to-layer",
        }
    }

    /// The operation with this number, if there is one.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            1 => Self::Open,
            2 => Self::Write,
            3 => Self::Unplaced,
            4 => Self::Erase,
            5 => Self::Map,
            6 => Self::Across,
            7 => Self::Passthrough,
            8 => Self::Later,
            9 => Self::Header,
            10 => Self::Give,
            _ => return None,
        })
    }
}

/// Whose format is in progress on a device that may be formatted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Nobody has begun.
    None,
    /// The process that asks.
    Caller,
    /// Another process, which may have ended already.
    Another {
        /// A file system on the device was mounted since the format began.
        mounted: bool,
    },
}

/// One question to [`decide`](crate::decide).
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// What is to be done.
    pub operation: Operation,
    /// First byte of the range, from the start of the device.
    pub offset: u64,
    /// Bytes in the range.
    pub length: u64,
}

/// Who asks. Asked for only after the range was looked at: in the kernel each answer known before would be
/// another path for the verifier through every check.
pub trait Caller {
    /// What the calling program is known as, from [`crate::program`].
    fn class(&self) -> Class;
    /// The process was refused on this device before.
    fn tainted(&self) -> bool;
    /// Whose format is in progress.
    fn owner(&self) -> Owner;
    /// The claim that the rule names lasts ([`crate::claim::Lease::covers`]). Asked for only where it names
    /// one.
    fn claim_lasts(&self) -> bool;
    /// The permit that the rule is put for lasts ([`crate::Rule::permit_lasts`]). Asked for only where the
    /// rule says when it ends.
    fn permit_lasts(&self) -> bool;
}

/// The bytes that a write carries.
pub trait Content {
    /// The `length` bytes (at most 16) that lie `at` bytes after the start of the write, first byte lowest;
    /// bytes beyond `length` are unspecified. `None` when they cannot be read.
    fn read(&self, at: u64, length: u64) -> Option<[u64; 2]>;
    /// Whether the `length` bytes from the start of the write are zero, all of them. `None` when they cannot
    /// be read, and none that can be is anything else.
    fn is_zero(&self, length: u64) -> Option<bool>;
}

/// No bytes at all: for requests that carry none, and for writes whose source cannot be read (splice,
/// sendfile).
#[derive(Clone, Copy, Debug)]
pub struct NoContent;

impl Content for NoContent {
    #[inline(always)]
    fn read(&self, _at: u64, _length: u64) -> Option<[u64; 2]> {
        None
    }

    #[inline(always)]
    fn is_zero(&self, _length: u64) -> Option<bool> {
        None
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// The process was refused on this device before.
    Tainted = 1,
    /// A formatter on a volume that holds a format.
    Formatter = 2,
    /// The volume is not verified, so it may hold a format.
    Unverified = 3,
    /// Another process is formatting, or has formatted, the volume.
    BeingFormatted = 4,
    /// The write changes bytes that identify the content.
    Identity = 5,
    /// The bytes to be written over a mark cannot be read.
    Unreadable = 6,
    /// The write puts the magic of another format at its place.
    ForeignFormat = 7,
    /// The discard, zero-out or hole covers a mark.
    Discard = 8,
    /// A shared writable mapping of a volume that holds a format.
    Mapping = 9,
    /// Position or bytes of the write cannot be known.
    Unplaced = 10,
    /// The write or erasure goes over the border of a volume that lies on the device.
    Across = 11,
    /// The volume is strict, and the program is none of those that are trusted.
    Strict = 12,
    /// A command past the block layer.
    Passthrough = 13,
    /// The node's claim on the volume may have run out: another node may have it by now.
    Claim = 14,
    /// What the volume holds was not read yet, and will be in a moment.
    NotReadYet = 15,
    /// The kernel would write over the volume: the header of a layer that is not at home there, or what that
    /// layer is used for.
    KernelFormat = 16,
}

impl Reason {
    /// Every reason, in the order of its number.
    pub const ALL: [Self; 16] = [
        Self::Tainted,
        Self::Formatter,
        Self::Unverified,
        Self::BeingFormatted,
        Self::Identity,
        Self::Unreadable,
        Self::ForeignFormat,
        Self::Discard,
        Self::Mapping,
        Self::Unplaced,
        Self::Across,
        Self::Strict,
        Self::Passthrough,
        Self::Claim,
        Self::NotReadYet,
        Self::KernelFormat,
    ];

    /// The word for it in events, JSON and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tainted => "tainted",
            Self::Formatter => "formatter",
            Self::Unverified => "unverified",
            Self::BeingFormatted => "being-formatted",
            Self::Identity => "identity",
            Self::Unreadable => "unreadable",
            Self::ForeignFormat => "foreign-format",
            Self::Discard => "discard",
            Self::Mapping => "mapping",
            Self::Unplaced => "unplaced",
            Self::Across => "across-volumes",
            Self::Strict => "strict",
            Self::Passthrough => "passthrough",
            Self::Claim => "claim",
            Self::NotReadYet => "not-read-yet",
            Self::KernelFormat => "kernel-format",
        }
    }

    /// The reason with this number, if there is one.
    #[must_use]
    pub fn from_raw(raw: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| *reason as u32 == raw)
    }
}

/// The answer of [`decide`](crate::decide).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Allow,
    /// It goes on, if the caller becomes the one process that formats the volume.
    Begin,
    /// As [`Verdict::Begin`]; but what the caller writes cannot be seen: it may be a format, or not.
    Fill,
    /// As [`Verdict::Begin`]; but what the caller writes is no known format: raw content, as of a database or
    /// a virtual machine.
    Raw,
    /// It goes on: a re-labelling tool changes the UUID.
    Relabel,
    /// It goes on: LVM wipes what an earlier logical volume left where it has just made a new one.
    OwnerWipe,
    /// The kernel is told to come again by a worker of its own, which nobody but the kernel sees; then it is
    /// judged.
    Later,
    /// It is refused, and the process is tainted.
    Deny(Reason),
    /// Audit: it goes on, and is reported as what would have been refused.
    WouldDeny(Reason),
}
