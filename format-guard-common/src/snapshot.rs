//! The rules as the agent publishes them for the `LD_PRELOAD` library: one file, replaced by rename, mapped
//! by its readers.
//!
//! A reader takes nothing of a file whose length, version or checksum is not as it should be. Integers are of
//! native byte order: the file never leaves the host.

use core::{fmt, mem::align_of, slice};

use crate::{Rule, Windows, claim::Lease, event::FormatOwner, program::Class};

/// Name of the file in the agent's run directory.
pub const FILE: &str = "rules";
/// What it begins with.
pub const MAGIC: [u8; 8] = *b"fgrules\0";
/// Goes up when the layout or the meaning of anything in it changes, that of [`Rule`] included.
pub const VERSION: u32 = 4;
/// Where [`Header::superseded`] lies in the file.
pub const SUPERSEDED: u64 = 12;

/// The start of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: u32,
    /// Not zero once another file has this one's name: the one field that changes, and no part of the
    /// checksum.
    pub superseded: u32,
    /// Bytes in the file.
    pub length: u64,
    /// Of everything but itself and `superseded`.
    pub checksum: u64,
    /// Entries, which follow the rule for unknown devices.
    pub entries: u32,
    /// Tables of windows, which follow the entries.
    pub windows: u32,
    /// Programs, which follow the windows.
    pub programs: u32,
    /// Not zero: the library lets everything pass, as the kernel refuses.
    pub passes: u32,
    /// Under which volumes are claimed; all zero: under none.
    pub lease: Lease,
}

impl Header {
    /// The header of a file with this body: the rule for unknown devices, then so many entries, tables of
    /// windows and programs.
    #[must_use]
    pub fn of(body: &[u8], [entries, windows, programs]: [u32; 3], passes: bool, lease: Lease) -> Self {
        let mut header = Self {
            magic: MAGIC,
            version: VERSION,
            superseded: 0,
            length: (size_of::<Self>() + body.len()) as u64,
            checksum: 0,
            entries,
            windows,
            programs,
            passes: u32::from(passes),
            lease,
        };
        header.checksum = header.sum(body);
        header
    }

    /// The checksum of a file that begins with this header: of what follows, and of the header itself but for
    /// the checksum and what changes.
    fn sum(&self, body: &[u8]) -> u64 {
        let header = Self { superseded: 0, checksum: 0, ..*self };
        checksum(bytes(&header)).rotate_left(1) ^ checksum(body)
    }
}

/// What is known of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Entry {
    /// Its rule.
    pub rule: Rule,
    /// The owner of the format on the device or on one that shares its bytes; thread group zero means no
    /// owner.
    pub owner: FormatOwner,
    /// Goes up when an operator has the refusals on the device forgotten.
    pub forgotten: u64,
    /// Number of its table of windows, from one; zero: nothing lies on it.
    pub windows: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

/// A program that is known by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Known {
    /// The name, as the kernel keeps it.
    pub comm: [u8; 16],
    /// A [`Class`].
    pub class: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

/// Structures that a snapshot is made of.
///
/// # Safety
/// `repr(C)` of integers without padding: any bytes are a value, and every byte of a value is initialised.
pub unsafe trait Plain: Copy {}

// SAFETY: as the trait asks; the sizes are asserted below.
unsafe impl Plain for Header {}
// SAFETY: as above.
unsafe impl Plain for Entry {}
// SAFETY: as above.
unsafe impl Plain for Known {}
// SAFETY: as above.
unsafe impl Plain for Rule {}
// SAFETY: as above.
unsafe impl Plain for Windows {}

/// The bytes of a value.
#[must_use]
pub fn bytes<T: Plain>(value: &T) -> &[u8] {
    // SAFETY: as many initialised bytes as the type has.
    unsafe { slice::from_raw_parts(core::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// Why a file is no snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotError {
    /// It does not begin as one, or lies at an odd address.
    NoSnapshot,
    /// It is of another version.
    Version(u32),
    /// The snapshot's length is not the one that its header states.
    Length,
    /// The snapshot's checksum is not the one that its header states.
    Checksum,
}

impl fmt::Display for SnapshotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSnapshot => write!(f, "it is no snapshot of rules"),
            Self::Version(version) => write!(f, "it is of version {version}, not of {VERSION}"),
            Self::Length => write!(f, "its length is wrong"),
            Self::Checksum => write!(f, "its checksum is wrong"),
        }
    }
}

impl core::error::Error for SnapshotError {}

/// A snapshot that was found whole.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot<'a> {
    passes: bool,
    lease: &'a Lease,
    unknown: &'a Rule,
    entries: &'a [Entry],
    windows: &'a [Windows],
    programs: &'a [Known],
}

impl<'a> Snapshot<'a> {
    /// Reads one.
    ///
    /// # Errors
    /// When these bytes are none, or not whole.
    pub fn read(bytes: &'a [u8]) -> Result<Self, SnapshotError> {
        let snapshot = Self::of_whole(bytes)?;
        let (header, body) = bytes.split_at_checked(size_of::<Header>()).ok_or(SnapshotError::Length)?;
        let [header] = array::<Header>(&mut &*header, 1)? else { return Err(SnapshotError::NoSnapshot) };
        if header.checksum != header.sum(body) {
            return Err(SnapshotError::Checksum);
        }
        Ok(snapshot)
    }

    /// Reads one whose checksum was found right before.
    ///
    /// # Errors
    /// When these bytes are none.
    pub fn of_whole(bytes: &'a [u8]) -> Result<Self, SnapshotError> {
        let mut rest = bytes;
        let [header] = array::<Header>(&mut rest, 1)? else { return Err(SnapshotError::NoSnapshot) };
        if header.magic != MAGIC {
            return Err(SnapshotError::NoSnapshot);
        }
        if header.version != VERSION {
            return Err(SnapshotError::Version(header.version));
        }
        if header.length != bytes.len() as u64 {
            return Err(SnapshotError::Length);
        }
        let [unknown] = array(&mut rest, 1)? else { return Err(SnapshotError::Length) };
        Ok(Self {
            passes: header.passes != 0,
            lease: &header.lease,
            unknown,
            entries: array(&mut rest, header.entries)?,
            windows: array(&mut rest, header.windows)?,
            programs: array(&mut rest, header.programs)?,
        })
    }

    /// Whether the library lets everything pass, as the kernel refuses.
    #[must_use]
    pub const fn passes(&self) -> bool {
        self.passes
    }

    /// Under which volumes are claimed.
    #[must_use]
    pub const fn lease(&self) -> &'a Lease {
        self.lease
    }

    /// The rule for devices that have none.
    #[must_use]
    pub const fn unknown(&self) -> &'a Rule {
        self.unknown
    }

    /// What is known of a device (kernel `dev_t`).
    #[must_use]
    pub fn entry(&self, dev: u32) -> Option<&'a Entry> {
        let found = self.entries.binary_search_by_key(&dev, |entry| entry.rule.dev).ok()?;
        self.entries.get(found)
    }

    /// The windows to what lies on a device.
    #[must_use]
    pub fn windows(&self, entry: &Entry) -> Option<&'a Windows> {
        self.windows.get((entry.windows as usize).checked_sub(1)?)
    }

    /// What a program of this name is known as.
    #[must_use]
    pub fn class(&self, comm: [u8; 16]) -> Class {
        let found = self.programs.binary_search_by_key(&comm, |known| known.comm);
        found
            .ok()
            .and_then(|found| self.programs.get(found))
            .map_or(Class::UNKNOWN, |known| Class(known.class))
    }
}

/// Takes so many values from the front of these bytes.
fn array<'a, T: Plain>(bytes: &mut &'a [u8], count: u32) -> Result<&'a [T], SnapshotError> {
    let length = (count as usize).checked_mul(size_of::<T>()).ok_or(SnapshotError::Length)?;
    let (front, rest) = bytes.split_at_checked(length).ok_or(SnapshotError::Length)?;
    if front.as_ptr().align_offset(align_of::<T>()) != 0 {
        return Err(SnapshotError::NoSnapshot);
    }
    *bytes = rest;
    // SAFETY: aligned, as many bytes as the values have, and any bytes are a value.
    Ok(unsafe { slice::from_raw_parts(front.as_ptr().cast(), count as usize) })
}

/// Tells a file that is torn or cut from a whole one; no proof against somebody who can write it. Eight bytes
/// at a time, as FNV-1a takes one (its 64-bit offset basis and prime: RFC 9923), and a turn, so that high
/// bits come to count.
#[must_use]
fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let mix = |sum: u64, word: &[u8; 8]| {
        (sum ^ u64::from_ne_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29)
    };
    words.iter().chain([&last]).fold(0xcbf2_9ce4_8422_2325 ^ bytes.len() as u64, mix)
}

const _: () = assert!(
    size_of::<Header>() == 8 + 8 + 16 + 16 + size_of::<Lease>()
        && size_of::<Entry>() == size_of::<Rule>() + size_of::<FormatOwner>() + 16
        && size_of::<Known>() == 24
        && align_of::<Entry>() == 8
);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::State;

    /// Bytes at an address like that of a mapping.
    #[repr(align(8))]
    struct Aligned([u8; 1 << 14]);

    fn snapshot() -> (Aligned, usize) {
        let mut body = Vec::from(bytes(&Rule::new(0, 0, State::Unverified)));
        for dev in [1, 5, 9] {
            let entry = Entry {
                rule: Rule::new(dev, 3, State::Formatted),
                owner: FormatOwner::default(),
                forgotten: 0,
                windows: u32::from(dev == 5),
                zero: 0,
            };
            body.extend(bytes(&entry));
        }
        body.extend(bytes(&Windows { count: 1, ..Windows::new() }));
        body.extend(bytes(&Known { comm: *b"mkfs\0\0\0\0\0\0\0\0\0\0\0\0", class: 1, zero: 0 }));
        let header = Header::of(&body, [3, 1, 1], false, Lease { until: 9, number: 7, ..Lease::default() });
        let whole = [bytes(&header), &body].concat();
        let mut aligned = Aligned([0; 1 << 14]);
        aligned.0[..whole.len()].copy_from_slice(&whole);
        (aligned, whole.len())
    }

    #[test]
    fn what_was_written_is_read() {
        let (aligned, length) = snapshot();
        let snapshot = Snapshot::read(&aligned.0[..length]).expect("whole");
        let of = |dev| snapshot.entry(dev).map(|entry| (entry.rule.dev, snapshot.windows(entry).is_some()));
        assert_eq!(
            [0, 1, 5, 9, 10].map(of),
            [None, Some((1, false)), Some((5, true)), Some((9, false)), None]
        );
        assert!(snapshot.class(crate::program::comm("mkfs")).is(Class::FORMATTER));
        assert_eq!(snapshot.class(crate::program::comm("fsck")), Class::UNKNOWN);
    }

    proptest! {
        /// Whatever becomes of a file, it is found out; only the note that it was replaced may change.
        #[test]
        fn what_is_cut_or_changed_is_no_snapshot(at in 0_usize..10_000, bit in 0_u32..8, cut in 0_usize..10_000) {
            let (mut aligned, length) = snapshot();
            let (at, cut) = (at % length, cut % length);
            prop_assert!(Snapshot::read(&aligned.0[..cut]).is_err());
            aligned.0[at] ^= 1_u8 << bit;
            let superseded = (12..16).contains(&at);
            prop_assert_eq!(Snapshot::read(&aligned.0[..length]).is_ok(), superseded);
        }
    }
}
