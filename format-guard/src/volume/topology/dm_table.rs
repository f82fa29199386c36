//! The live table of a device mapper device, by ioctl: sysfs names the devices below, but not where on them.
//!
//! A few kinds of targets matter, and one ioctl: the crates that wrap device mapper bring in far more than
//! that.

use std::{fs::OpenOptions, os::fd::AsRawFd};

use super::{Extent, SECTOR};
use crate::volume::Dev;

/// include/uapi/linux/dm-ioctl.h: `_IOWR(0xfd, 12, struct dm_ioctl)`.
const DM_TABLE_STATUS: libc::Ioctl = 0xc138_fd0c_u32 as libc::Ioctl;
/// The table instead of the status.
const DM_STATUS_TABLE_FLAG: u32 = 1 << 4;
/// The answer did not fit.
const DM_BUFFER_FULL_FLAG: u32 = 1 << 8;
/// Bytes of `struct dm_ioctl`, and where its fields lie.
const HEADER: usize = 312;
const DATA_SIZE: usize = 12;
const DATA_START: usize = 16;
const TARGET_COUNT: usize = 20;
const FLAGS: usize = 28;
const DEV: usize = 40;
/// Bytes of `struct dm_target_spec`, and where its fields lie.
const SPEC: usize = 40;
const SPEC_NEXT: usize = 20;
const SPEC_TYPE: usize = 24;
/// Answers that are read: from a page to tables of tens of thousands of targets.
const SIZES: [usize; 3] = [16 << 10, 256 << 10, 4 << 20];

/// What a table does with the devices below.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    /// Every run of bytes that it passes on unchanged, with the device that it lies on.
    pub(super) passed_on: Vec<(Dev, Extent)>,
    /// The devices on which it lays its bytes in other places or as other bytes, by a rule that never
    /// changes. Where they come to lie in a pool or a cache changes by what is written.
    pub(super) transformed: Vec<Dev>,
}

/// The table of a device; `None` where it cannot be had.
pub(super) fn live(dev: Dev) -> Option<Table> {
    let control = OpenOptions::new().read(true).write(true).open("/dev/mapper/control").ok()?;
    for size in SIZES {
        // As u64, for the alignment that the kernel's structure has.
        let mut buffer = vec![0_u64; size / 8];
        // SAFETY: the same memory as bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.as_mut_ptr().cast::<u8>(), size) };
        let put =
            |bytes: &mut [u8], at: usize, value: u32| bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        put(bytes, 0, 4);
        put(bytes, DATA_SIZE, u32::try_from(size).ok()?);
        put(bytes, DATA_START, u32::try_from(HEADER).ok()?);
        put(bytes, FLAGS, DM_STATUS_TABLE_FLAG);
        let number = dev.minor & 0xff | dev.major << 8 | (dev.minor & !0xff) << 12;
        bytes[DEV..DEV + 8].copy_from_slice(&u64::from(number).to_ne_bytes());
        // SAFETY: the buffer is as long as its data_size field says; the kernel writes no more.
        if unsafe { libc::ioctl(control.as_raw_fd(), DM_TABLE_STATUS, bytes.as_mut_ptr()) } != 0 {
            return None;
        }
        if word(bytes, FLAGS)? & DM_BUFFER_FULL_FLAG == 0 {
            return targets(bytes);
        }
    }
    None
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The targets of an answer.
fn targets(answer: &[u8]) -> Option<Table> {
    let start = usize::try_from(word(answer, DATA_START)?).ok()?;
    let data = answer.get(start..)?;
    let mut table = Table::default();
    let mut at = 0_usize;
    for _ in 0..word(answer, TARGET_COUNT)? {
        let spec = data.get(at..)?;
        let (start, length) = (long(spec, 0)?, long(spec, 8)?);
        let kind = text(spec.get(SPEC_TYPE..SPEC)?);
        let next = usize::try_from(word(spec, SPEC_NEXT)?).ok()?;
        let parameters = text(spec.get(SPEC..)?);
        table.passed_on.extend(passed_on(start, length, &kind, &parameters)?);
        table.transformed.extend(transformed(&kind, &parameters));
        // Relative to the first one (drivers/md/dm-ioctl.c, retrieve_status).
        if next <= at {
            break;
        }
        at = next;
    }
    Some(table)
}

/// What one target passes on unchanged: Documentation/admin-guide/device-mapper/*.rst. `None` for a table
/// that is no table.
fn passed_on(start: u64, length: u64, kind: &str, parameters: &str) -> Option<Vec<(Dev, Extent)>> {
    let words: Vec<&str> = parameters.split_whitespace().collect();
    let (start, length) = (start.checked_mul(SECTOR)?, length.checked_mul(SECTOR)?);
    let extent = |dev: &str, sector: u64| {
        let below = sector.checked_mul(SECTOR)?;
        below.checked_add(length)?;
        Some((Dev::parse(dev)?, Extent { start, length, below }))
    };
    Some(match kind {
        // DEVICE SECTOR ...
        "linear" | "flakey" | "delay" => vec![extent(words.first()?, words.get(1)?.parse().ok()?)?],
        // DEVICE ...
        "snapshot-origin" | "log-writes" | "dust" => vec![extent(words.first()?, 0)?],
        // Every path leads to the whole; numbers of features and arguments stand between them.
        "multipath" => {
            words.iter().filter(|word| word.contains(':')).filter_map(|path| extent(path, 0)).collect()
        }
        _ => Vec::new(),
    })
}

/// The devices on which one target lays other bytes, or the same ones elsewhere:
/// Documentation/admin-guide/device-mapper/dm-crypt.rst and striped.rst.
fn transformed(kind: &str, parameters: &str) -> Vec<Dev> {
    let words = parameters.split_whitespace();
    match kind {
        // CIPHER KEY IV_OFFSET DEVICE SECTOR ...
        "crypt" => words.skip(3).take(1).filter_map(Dev::parse).collect(),
        // STRIPES SECTORS DEVICE SECTOR DEVICE SECTOR ...
        "striped" => words.skip(2).step_by(2).filter_map(Dev::parse).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOP: Dev = Dev { major: 7, minor: 1 };

    #[test]
    fn a_linear_target_passes_its_range_on() {
        let extents = passed_on(8, 16, "linear", "7:1 2048").expect("a table");
        assert_eq!(extents, [(LOOP, Extent { start: 4096, length: 8192, below: 1 << 20 })]);
    }

    #[test]
    fn every_path_of_a_multipath_device_leads_to_all_of_it() {
        let table = "1 queue_if_no_path 0 1 1 service-time 0 2 2 7:1 1 1 7:2 1 1";
        let extents = passed_on(0, 8, "multipath", table).expect("a table");
        assert_eq!(extents.iter().map(|(dev, _)| dev.minor).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_transforms_or_scatters_passes_nothing_on() {
        for (kind, parameters, over) in [
            ("crypt", "aes-xts-plain64 :64:logon:x 0 7:1 32768", &[1][..]),
            ("striped", "2 128 7:1 0 7:2 2048", &[1, 2]),
            ("thin", "7:1 3", &[]),
            ("writecache", "s 7:1 7:2 4096 0", &[]),
            ("crypt", "aes-xts-plain64", &[]),
            ("zero", "", &[]),
        ] {
            assert_eq!(passed_on(0, 8, kind, parameters), Some(Vec::new()));
            let below: Vec<u32> = transformed(kind, parameters).iter().map(|dev| dev.minor).collect();
            assert_eq!(below, over, "{kind} {parameters}");
        }
    }

    #[test]
    fn an_answer_that_is_none_is_no_table() {
        assert_eq!(passed_on(0, 8, "linear", "7:1"), None);
        assert_eq!(passed_on(u64::MAX, 8, "linear", "7:1 0"), None);
        assert_eq!(passed_on(0, 8, "linear", "7:1 99999999999999999999"), None);
        assert_eq!(targets(&[0xff; 400]), None);
        assert_eq!(targets(&[]), None);
    }
}
