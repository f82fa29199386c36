//! What a zoned device holds that a copy of its bytes does not tell: btrfs keeps no superblock at a fixed
//! place there, but appends each to two zones in turn, and how far they are written is the device's word
//! (`BLKREPORTZONE`).

use std::{fmt::Write, fs::File, os::fd::AsRawFd};

use super::marks::{Found, Mark, MarkKind, ReadAt};

// include/uapi/linux/blkzoned.h: _IOR(0x12, 132, __u32) and _IOWR(0x12, 130, struct blk_zone_report).
const BLKGETZONESZ: libc::c_ulong = 0x8004_1284;
const BLKREPORTZONE: libc::c_ulong = 0xc010_1282;
/// Values of `struct blk_zone`.
const CONVENTIONAL: u8 = 1;
const EMPTY: u8 = 1;
const FULL: u8 = 14;
/// Of `struct blk_zone_report`: the zones tell how much of them can be written.
const REPORTS_CAPACITY: u32 = 1;
const SECTOR: u64 = 512;

/// Zones that btrfs appends its first superblock to (`BTRFS_NR_SB_LOG_ZONES`, fs/btrfs/zoned.h): the device's
/// first ones.
const LOG_ZONES: usize = 2;
/// Bytes of a superblock, each of which begins a write of its own (`BTRFS_SUPER_INFO_SIZE`).
const SUPERBLOCK: u64 = 4096;
/// Places in `struct btrfs_super_block` (`include/uapi/linux/btrfs_tree.h`), little-endian.
const FSID: usize = 0x20;
const MAGIC: usize = 0x40;
const GENERATION: usize = 0x48;
const LABEL: usize = 0x12b;
const LABEL_BYTES: usize = 256;

/// `struct blk_zone`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Zone {
    /// First sector.
    start: u64,
    /// Sectors.
    length: u64,
    /// The sector that is written next.
    next: u64,
    kind: u8,
    condition: u8,
    unused: [u8; 6],
    /// Sectors that can be written.
    capacity: u64,
    reserved: [u8; 24],
}

/// `struct blk_zone_report`.
#[repr(C)]
#[derive(Debug, Default)]
struct Report {
    sector: u64,
    /// Zones that there is room for, and then that there are.
    count: u32,
    flags: u32,
    zones: [Zone; LOG_ZONES],
}

const _: () = assert!(size_of::<Zone>() == 64 && size_of::<Report>() == 16 + 64 * LOG_ZONES);

/// Whether the device has zones.
pub(super) fn is_zoned(device: &File) -> bool {
    let mut sectors = 0_u32;
    // SAFETY: the kernel writes four bytes. One that knows no zones gives zero or fails.
    let failed = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETZONESZ, &raw mut sectors) };
    failed == 0 && sectors != 0
}

/// The first zones of a device; none where it has no zones.
///
/// # Errors
/// A sentence where it has zones, and does not tell of them.
fn zones(device: &File) -> Result<Vec<Zone>, String> {
    if !is_zoned(device) {
        return Ok(Vec::new());
    }
    let mut report = Report { count: LOG_ZONES as u32, ..Report::default() };
    // SAFETY: the kernel writes the head and as many zones as `count` says.
    if unsafe { libc::ioctl(device.as_raw_fd(), BLKREPORTZONE, &raw mut report) } != 0 {
        let error = std::io::Error::last_os_error();
        return Err(format!("it does not tell of its zones: {error}"));
    }
    let mut zones = report.zones.to_vec();
    zones.truncate(report.count as usize);
    for zone in &mut zones {
        if report.flags & REPORTS_CAPACITY == 0 {
            zone.capacity = zone.length;
        }
    }
    Ok(zones)
}

/// The btrfs of a zoned device, and its marks; `None` where there is none, or where its superblock does not
/// move, as it is found there by all others.
///
/// # Errors
/// A sentence where the device does not tell of its zones, or a written superblock cannot be read.
pub(super) fn btrfs(device: &File, read: &dyn ReadAt) -> Result<Option<(Found, Vec<Mark>)>, String> {
    in_zones(&zones(device)?, read)
}

fn in_zones(zones: &[Zone], read: &dyn ReadAt) -> Result<Option<(Found, Vec<Mark>)>, String> {
    let superblock = |at: u64| {
        read.read_at(at, SUPERBLOCK as usize)
            .ok_or_else(|| format!("the zone's superblock at {at} cannot be read"))
    };
    let mut newest: Option<(u64, Vec<u8>, u64)> = None;
    let mut marks = Vec::new();
    let appended = zones.iter().filter(|zone| zone.kind != CONVENTIONAL && zone.condition != EMPTY);
    for zone in appended {
        let start = zone.start.saturating_mul(SECTOR);
        let first = superblock(start)?;
        if &first[MAGIC..MAGIC + 8] != b"_BHRfS_M" {
            continue;
        }
        // Each zone of the log begins with one: what resets the zone takes it away, and nothing else can.
        marks.push(mark(start, &first, MAGIC, 8, MarkKind::Magic));
        marks.push(mark(start, &first, FSID, 16, MarkKind::Uuid));
        let end = if zone.condition == FULL { zone.start + zone.capacity } else { zone.next };
        let last = end.saturating_mul(SECTOR).saturating_sub(SUPERBLOCK);
        let last = if last > start { superblock(last)? } else { first.clone() };
        // A zone that was finished ends with what was never written.
        let last = if &last[MAGIC..MAGIC + 8] == b"_BHRfS_M" { last } else { first };
        let generation = last[GENERATION..GENERATION + 8].iter().rev().fold(0, |n, b| n << 8 | u64::from(*b));
        if newest.as_ref().is_none_or(|(other, ..)| *other < generation) {
            newest = Some((generation, last, start + MAGIC as u64));
        }
    }
    Ok(newest.map(|(_, superblock, magic_offset)| {
        let label =
            superblock[LABEL..LABEL + LABEL_BYTES].split(|byte| *byte == 0).next().unwrap_or_default();
        let label = String::from_utf8_lossy(label).into_owned();
        let found = Found {
            name: "btrfs".to_owned(),
            uuid: Some(uuid(&superblock[FSID..FSID + 16])),
            label: (!label.is_empty()).then_some(label),
            magic_offset: Some(magic_offset),
        };
        (found, marks)
    }))
}

fn mark(start: u64, superblock: &[u8], at: usize, length: usize, kind: MarkKind) -> Mark {
    Mark { offset: start + at as u64, kind, bytes: superblock[at..at + length].to_vec() }
}

/// A UUID as libblkid writes it.
fn uuid(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (i, byte) in bytes.iter().enumerate() {
        if [4, 6, 8, 10].contains(&i) {
            text.push('-');
        }
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two zones of 1 MiB, and whatever was written there.
    struct Device(Vec<u8>);

    impl ReadAt for Device {
        fn read_at(&self, offset: u64, length: usize) -> Option<Vec<u8>> {
            let start = usize::try_from(offset).ok()?;
            self.0.get(start..start.checked_add(length)?).map(<[u8]>::to_vec)
        }
    }

    impl Device {
        fn new() -> Self {
            Self(vec![0; 2 << 20])
        }

        fn append(&mut self, at: usize, generation: u8, label: &str) {
            self.0[at + MAGIC..at + MAGIC + 8].copy_from_slice(b"_BHRfS_M");
            self.0[at + FSID..at + FSID + 16].copy_from_slice(&[0xab; 16]);
            self.0[at + GENERATION] = generation;
            self.0[at + LABEL..at + LABEL + label.len()].copy_from_slice(label.as_bytes());
        }
    }

    fn zone(number: u64, written: u64, condition: u8) -> Zone {
        let start = number * 2048;
        Zone {
            start,
            length: 2048,
            next: start + written,
            kind: 2,
            condition,
            capacity: 2048,
            ..Zone::default()
        }
    }

    const OPEN: u8 = 2;

    #[test]
    fn the_newest_superblock_tells_and_the_first_of_each_zone_is_marked() {
        let mut device = Device::new();
        device.append(0, 1, "old");
        device.append(4096, 2, "data");
        let zones = [zone(0, 16, OPEN), zone(1, 0, EMPTY)];
        let (found, marks) = in_zones(&zones, &device).expect("read").expect("found");
        assert_eq!((found.label.as_deref(), found.magic_offset), (Some("data"), Some(64)));
        assert_eq!(found.uuid.as_deref(), Some("abababab-abab-abab-abab-abababababab"));
        assert_eq!(marks.iter().map(|mark| mark.offset).collect::<Vec<_>>(), [64, 32]);
        // The second zone, when the first is full.
        device.append(1 << 20, 9, "next");
        let zones = [zone(0, 2048, FULL), zone(1, 8, OPEN)];
        let (found, marks) = in_zones(&zones, &device).expect("read").expect("found");
        assert_eq!((found.label.as_deref(), marks.len()), (Some("next"), 4));
        assert_eq!(marks[2].offset, (1 << 20) + 64);
    }

    #[test]
    fn an_empty_log_and_a_conventional_zone_hold_none() {
        let mut device = Device::new();
        let none = |zones: &[Zone], device: &Device| in_zones(zones, device).expect("read").is_none();
        assert!(none(&[zone(0, 0, EMPTY), zone(1, 0, EMPTY)], &device));
        assert!(none(&[zone(0, 8, OPEN), zone(1, 0, EMPTY)], &device), "something else");
        device.append(0, 1, "x");
        assert!(none(&[Zone { kind: CONVENTIONAL, condition: 0, ..zone(0, 0, 0) }], &device));
        assert!(none(&[], &device));
    }

    #[test]
    fn what_was_written_and_cannot_be_read_is_an_error() {
        assert!(in_zones(&[zone(0, 8, OPEN)], &Device(Vec::new())).is_err());
    }
}
