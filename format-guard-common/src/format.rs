//! The formats whose magic and UUID are known by place: for foreign magics, and for UUID marks.
//!
//! Places and bytes are those of libblkid's probers (util-linux 2.38, libblkid/src/superblocks/*.c and
//! partitions/*.c). A format that is not listed is still probed and kept by the magic that libblkid reports; it is
//! only not recognised while it is being written.

/// Bytes at a place that say "this format begins here".
#[derive(Clone, Copy, Debug)]
pub struct Magic {
    /// First byte, from the start of the device.
    pub offset: u64,
    /// The bytes, at most 16.
    pub bytes: &'static [u8],
}

/// Where a format keeps its UUID.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// First byte, from the start of the device.
    pub offset: u64,
    /// Bytes, at most 16 (of a longer textual one the first 16).
    pub length: u32,
}

/// One known format.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    /// The names that libblkid gives it (`TYPE` or `PTTYPE`).
    pub names: &'static [&'static str],
    /// Any of these marks it.
    pub magics: &'static [Magic],
    /// Its UUID, where it has one.
    pub uuid: Option<Place>,
    /// Shares its first sector with boot code and other formats of that kind (FAT, NTFS, MBR, GPT's protective
    /// MBR): their magics are not foreign to each other.
    pub boot_sector: bool,
}

const fn magic(offset: u64, bytes: &'static [u8]) -> Magic {
    Magic { offset, bytes }
}

#[expect(clippy::unnecessary_wraps, reason = "the table below reads the better for it")]
const fn uuid(offset: u64, length: u32) -> Option<Place> {
    Some(Place { offset, length })
}

const fn format(names: &'static [&'static str], magics: &'static [Magic], uuid: Option<Place>) -> Format {
    Format { names, magics, uuid, boot_sector: false }
}

const fn boot(names: &'static [&'static str], magics: &'static [Magic], uuid: Option<Place>) -> Format {
    Format { names, magics, uuid, boot_sector: true }
}

/// Every format known by place.
pub const FORMATS: &[Format] = &[
    format(&["ext2", "ext3", "ext4", "ext4dev", "jbd"], &[magic(1080, b"\x53\xef")], uuid(1128, 16)),
    format(&["xfs"], &[magic(0, b"XFSB")], uuid(32, 16)),
    format(&["btrfs"], &[magic(65600, b"_BHRfS_M")], uuid(65568, 16)),
    format(&["crypto_LUKS"], &[magic(0, b"LUKS\xba\xbe")], uuid(168, 16)),
    format(&["LVM2_member"], &[magic(512, b"LABELONE")], uuid(544, 16)),
    format(&["swap", "swsuspend"], &[magic(4086, b"SWAPSPACE2")], uuid(1036, 16)),
    format(&["linux_raid_member"], &[magic(4096, b"\xfc\x4e\x2b\xa9"), magic(0, b"\xfc\x4e\x2b\xa9")], None),
    format(&["f2fs"], &[magic(1024, b"\x10\x20\xf5\xf2")], uuid(1132, 16)),
    format(&["nilfs2"], &[magic(1030, b"\x34\x34")], uuid(1176, 16)),
    format(
        &["bcache"],
        &[magic(4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")],
        None,
    ),
    format(&["ceph_bluestore"], &[magic(0, b"bluestore block ")], None),
    boot(&["vfat"], &[magic(82, b"FAT32   "), magic(54, b"FAT16   "), magic(54, b"FAT12   ")], None),
    boot(&["ntfs"], &[magic(3, b"NTFS    ")], uuid(72, 8)),
    boot(&["exfat"], &[magic(3, b"EXFAT   ")], uuid(100, 4)),
    boot(&["gpt"], &[magic(512, b"EFI PART")], uuid(568, 16)),
    boot(&["dos"], &[magic(510, b"\x55\xaa")], uuid(440, 4)),
];

/// The known format of this libblkid name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().find(|format| format.names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{MAX_CHECK_BYTES, MAX_CHECKS};

    #[test]
    fn every_magic_fits_a_check_and_all_leave_room_for_marks() {
        let mut count = 0;
        for format in FORMATS {
            for magic in format.magics {
                assert!((1..=MAX_CHECK_BYTES).contains(&magic.bytes.len()), "{:?}", format.names);
                count += 1;
            }
            assert!(format.uuid.is_none_or(|place| place.length as usize <= MAX_CHECK_BYTES));
        }
        assert!(count + 10 <= MAX_CHECKS, "{count} foreign magics");
    }
}
