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
    /// Its first sector is a boot sector and ends as an MBR's does (FAT, NTFS, exFAT, GPT's protective MBR): that magic is
    /// not foreign to it.
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
    // No shorter magics in the first sectors than these: a random GUID of a partition table must not be one.
    format(
        &["bcachefs"],
        &[magic(4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef")],
        None,
    ),
    format(&["ocfs2"], &[magic(8192, b"OCFSV2")], None),
    format(&["gfs2"], &[magic(65536, b"\x01\x16\x19\x70")], None),
    format(&["jfs"], &[magic(32768, b"JFS1")], None),
    format(&["reiserfs"], &[magic(65588, b"ReIsEr")], None),
    format(&["udf"], &[magic(32769, b"BEA01")], None),
    format(&["iso9660"], &[magic(32769, b"CD001")], None),
    format(&["apfs"], &[magic(32, b"NXSB")], None),
    format(&["squashfs"], &[magic(0, b"hsqs")], None),
    format(&["erofs"], &[magic(1024, b"\xe2\xe1\xf5\xe0")], None),
    format(&["cramfs"], &[magic(0, b"\x45\x3d\xcd\x28")], None),
    format(&["bfs"], &[magic(0, b"\xce\xfa\xad\x1b")], None),
    boot(&["vfat"], &[magic(82, b"FAT32   "), magic(54, b"FAT16   "), magic(54, b"FAT12   ")], None),
    boot(&["ntfs"], &[magic(3, b"NTFS    ")], uuid(72, 8)),
    boot(&["BitLocker"], &[magic(3, b"-FVE-FS-")], None),
    boot(&["exfat"], &[magic(3, b"EXFAT   ")], uuid(100, 4)),
    boot(&["gpt"], &[magic(512, b"EFI PART")], uuid(568, 16)),
    boot(&[MBR], &[magic(510, b"\x55\xaa")], uuid(440, 4)),
];

/// The magics that formats keep at the end of a device of `size` bytes, with libblkid's name of each. Some tools write
/// them before anything else.
#[must_use]
pub fn at_end(size: u64) -> [(&'static str, Magic); 3] {
    const SECTOR: u64 = 512;
    const MD: &[u8] = b"\xfc\x4e\x2b\xa9";
    let sectors = size / SECTOR;
    // The last sector (UEFI specification 2.10, 5.3.2); include/uapi/linux/raid/md_p.h (MD_NEW_SIZE_SECTORS) and
    // drivers/md/md.c (super_1_load). What does not fit lies behind every device.
    let place = |sector: Option<u64>| sector.map_or(u64::MAX - SECTOR, |sector| sector * SECTOR);
    [
        ("gpt", magic(place(sectors.checked_sub(1)), b"EFI PART")),
        ("linux_raid_member", magic(place((sectors & !127).checked_sub(128)), MD)),
        ("linux_raid_member", magic(place(sectors.checked_sub(16).map(|sector| sector & !7)), MD)),
    ]
}

/// libblkid's name of the partition table whose magic every boot sector carries.
pub const MBR: &str = "dos";

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
        assert!(count + at_end(0).len() + 12 <= MAX_CHECKS, "{count} foreign magics");
    }

    #[test]
    fn the_ends_of_devices_are_where_their_formats_have_them() {
        let ends = |size| at_end(size).map(|(_, magic)| magic.offset);
        // 64 MiB, and a size that is no multiple of 64 KiB.
        assert_eq!(ends(64 << 20), [67_108_352, 67_043_328, 67_100_672]);
        assert_eq!(ends(1_000_000_000), [999_999_488, 999_882_752, 999_989_248]);
        assert!(ends(4096)[1] > 1 << 60, "too small for it");
    }
}
