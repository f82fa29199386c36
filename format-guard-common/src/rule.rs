//! The kernel's copy of what matters of a record, for a device that is present now.

use core::fmt;

/// Checks that one rule holds at most: the known formats need 36 and the richest volume has 12 marks.
pub const MAX_CHECKS: usize = 64;
/// Rules in one segment of the map `RULES`.
pub const RULES_IN_SEGMENT: u32 = 64;
/// Devices that may have a rule, unless the configuration says otherwise (`max_devices`).
pub const DEVICES: u32 = 8192;
/// Bytes that one check compares at most.
pub const MAX_CHECK_BYTES: usize = 16;

/// State of a record, as the kernel needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum State {
    /// Nothing is known for certain: formatters are refused.
    Unverified = 0,
    /// Probed twice, clean and blank, and stored: one formatter is let through.
    Blank = 1,
    /// A format is in progress, or was when its process ended.
    Formatting = 2,
    /// Holds a format: its marks are kept.
    Formatted = 3,
    /// An operator allowed one re-format.
    Permitted = 4,
    /// An operator took the volume out of the guard.
    Exempt = 5,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Unverified, Self::Blank, Self::Formatting, Self::Formatted, Self::Permitted, Self::Exempt];

    /// The word for it in the database, JSON and messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unverified => "unverified",
            Self::Blank => "blank",
            Self::Formatting => "formatting",
            Self::Formatted => "formatted",
            Self::Permitted => "permitted",
            Self::Exempt => "exempt",
        }
    }

    /// The state of this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Bits of [`Rule::flags`].
pub mod flag {
    /// Refuse nothing, report what would have been refused.
    pub const AUDIT: u32 = 1;
    /// Other volumes lie on the device: where, the map `WINDOWS` says.
    pub const STACKED: u32 = 2;
    /// Nobody but the tools of what it holds opens the volume for writing while it holds a format.
    pub const STRICT: u32 = 4;
    /// It lies over a volume that holds a format, and where its bytes come to lie there is not known: it has
    /// no rule of its own yet, or a layer between encrypts or scatters them.
    pub const LAYER: u32 = 8;
    /// The process that formatted the volume still runs and has it open (a virtual machine's monitor, a
    /// target's daemon): what others must keep it may change.
    pub const HELD: u32 = 16;
    /// It holds a journal that ext file systems on other volumes use.
    pub const JOURNAL: u32 = 32;
    /// While it is blank, bytes that are not zero are content, whoever but a formatter writes them. While it
    /// holds something, that is raw content: no known format's, and its user's to change.
    pub const RAW: u32 = 64;
    /// The volume is a member of a running array, or was one until the array dropped it: its content is the
    /// array's.
    pub const ARRAY_RUNS: u32 = 128;
    /// The content was not read yet; a probe of the device is on its way.
    pub const UNREAD: u32 = 256;
}

/// What a check guards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum CheckKind {
    /// A mark: magic or structure of the volume's own format. Nobody changes it.
    Magic = 1,
    /// A mark: UUID of the volume's own format. Re-labelling tools may change it.
    Uuid = 2,
    /// The place and magic of another format, which must not appear here.
    Foreign = 3,
}

/// Bytes at a place on the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Check {
    /// First byte, from the start of the device.
    pub offset: u64,
    /// Bytes compared, 1 to [`MAX_CHECK_BYTES`].
    pub length: u32,
    /// A [`CheckKind`].
    pub kind: u32,
    /// The bytes, first byte lowest, zero beyond `length`.
    pub bytes: [u64; 2],
}

impl Check {
    /// A check for `bytes` at `offset`. `None` when there are none or more than [`MAX_CHECK_BYTES`].
    #[must_use]
    pub fn new(offset: u64, bytes: &[u8], kind: CheckKind) -> Option<Self> {
        if bytes.is_empty() || bytes.len() > MAX_CHECK_BYTES {
            return None;
        }
        let mut words = [0_u64; 2];
        for (i, byte) in bytes.iter().enumerate() {
            words[i / 8] |= u64::from(*byte) << (8 * (i % 8));
        }
        Some(Self { offset, length: bytes.len() as u32, kind: kind as u32, bytes: words })
    }

    /// First byte after the check.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.offset.wrapping_add(self.length as u64)
    }
}

/// What the kernel knows of the volume in a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// `diskseq` of the attachment that the rule is for; another one means another medium.
    pub diskseq: u64,
    /// The envelope of the checks: nothing of interest lies before this byte.
    pub low: u64,
    /// The envelope of the checks: nothing of interest lies at or after this byte.
    pub high: u64,
    /// Kernel `dev_t` (`MAJOR << 20 | MINOR`): a slot that was another device's is told by it.
    pub dev: u32,
    /// A [`State`].
    pub state: u32,
    /// `diskseq` of the device `lock_dev`.
    pub lock_diskseq: u64,
    /// Kernel `dev_t` of the one among the devices that share their bytes (paths to one logical unit, a layer
    /// and what it lies on) under which the process that formats them is held: only one of them may be
    /// formatted at a time.
    pub lock_dev: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Checks in use.
    pub count: u32,
    /// Number of the lease ([`crate::claim::Lease`]) without which nobody formats the volume; zero: none is
    /// needed.
    pub claim: u32,
    /// Whose tools keep what the volume holds ([`Class::EXT`](crate::program::Class::EXT) and its like);
    /// zero: that is not known.
    pub tools: u32,
    /// When the permit that the rule is put for ends, in whole seconds of `CLOCK_BOOTTIME`; zero: with the
    /// rule.
    pub permit_ends: u32,
    /// The headers that the kernel finds there as its own
    /// ([`Header::at_home`](crate::header::Header::at_home)).
    pub at_home: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
    /// By their offsets: those that lie under a request are found by bisection.
    pub checks: [Check; MAX_CHECKS],
}

/// Why checks do not fit into a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleError {
    /// More than [`MAX_CHECKS`].
    TooManyChecks,
}

impl fmt::Display for RuleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooManyChecks => write!(f, "more than {MAX_CHECKS} checks"),
        }
    }
}

impl core::error::Error for RuleError {}

impl Rule {
    /// A rule without checks.
    #[must_use]
    pub const fn new(dev: u32, diskseq: u64, state: State) -> Self {
        Self {
            diskseq,
            low: u64::MAX,
            high: 0,
            dev,
            state: state as u32,
            lock_diskseq: diskseq,
            lock_dev: dev,
            claim: 0,
            flags: 0,
            count: 0,
            tools: 0,
            permit_ends: 0,
            at_home: 0,
            zero: 0,
            checks: [Check { offset: 0, length: 0, kind: 0, bytes: [0; 2] }; MAX_CHECKS],
        }
    }

    /// Whether the permit that it is put for lasts at this moment, in nanoseconds of `CLOCK_BOOTTIME`.
    #[inline(always)]
    #[must_use]
    pub const fn permit_lasts(&self, now: u64) -> bool {
        now < self.permit_ends as u64 * 1_000_000_000
    }

    /// Adds a check in its place and widens the envelope.
    ///
    /// # Errors
    /// [`RuleError::TooManyChecks`] when the rule is full; it is unchanged then.
    pub fn push(&mut self, check: Check) -> Result<(), RuleError> {
        let count = self.count as usize;
        let Some(used) = self.checks.get(..count).filter(|_| count < MAX_CHECKS) else {
            return Err(RuleError::TooManyChecks);
        };
        let place = used.partition_point(|before| before.offset <= check.offset);
        self.checks.copy_within(place..count, place + 1);
        self.checks[place] = check;
        self.count += 1;
        self.low = self.low.min(check.offset);
        self.high = self.high.max(check.end());
        Ok(())
    }

    /// The checks in use.
    #[must_use]
    pub fn checks(&self) -> &[Check] {
        &self.checks[..(self.count as usize).min(MAX_CHECKS)]
    }
}

#[cfg(feature = "aya")]
// SAFETY: repr(C), integers only, no padding.
unsafe impl aya::Pod for Rule {}

const _: () = assert!(size_of::<Check>() == 32 && size_of::<Rule>() == 72 + 32 * MAX_CHECKS);
