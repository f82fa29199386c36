//! The formats whose magic and UUID are known by place: for foreign magics, and for UUID marks.
//!
//! Places and bytes are those of libblkid's probers (util-linux 2.38, libblkid/src/superblocks/*.c and
//! partitions/*.c). A format that is not listed is still probed and kept by the magic that libblkid reports;
//! it is only not recognised while it is being written.

use crate::program::Class;

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
pub struct Location {
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
    pub uuid: Option<Location>,
    /// Whose tools keep it ([`Class::EXT`] and its like).
    pub tools: Class,
    /// Its first sector is a boot sector and ends as an MBR's does (FAT, NTFS, exFAT, GPT's protective MBR):
    /// that magic is not foreign to it.
    pub boot_sector: bool,
}

const fn magic(offset: u64, bytes: &'static [u8]) -> Magic {
    Magic { offset, bytes }
}

#[expect(clippy::unnecessary_wraps, reason = "the table below reads the better for it")]
const fn uuid(offset: u64, length: u32) -> Option<Location> {
    Some(Location { offset, length })
}

const fn format(names: &'static [&'static str], magics: &'static [Magic], uuid: Option<Location>) -> Format {
    Format { names, magics, uuid, tools: Class::NO_TOOLS, boot_sector: false }
}

const fn boot(names: &'static [&'static str], magics: &'static [Magic], uuid: Option<Location>) -> Format {
    Format { names, magics, uuid, tools: Class::NO_TOOLS, boot_sector: true }
}

const fn by(tools: Class, format: Format) -> Format {
    Format { tools, ..format }
}

/// Every format known by place.
pub const FORMATS: &[Format] = &[
    by(
        Class::EXT,
        format(&["ext2", "ext3", "ext4", "ext4dev", "jbd"], &[magic(1080, b"\x53\xef")], uuid(1128, 16)),
    ),
    by(Class::XFS, format(&["xfs", "exfs"], &[magic(0, b"XFSB")], uuid(32, 16))),
    by(Class::XFS, format(&["xfs_external_log"], &[], None)),
    by(Class::BTRFS, format(&["btrfs"], &[magic(65600, b"_BHRfS_M")], uuid(65568, 16))),
    by(Class::LUKS, format(&["crypto_LUKS"], &[magic(0, b"LUKS\xba\xbe")], uuid(168, 16))),
    // Beside its label the header of its metadata area, where that usually lies (lib/format_text/layout.h):
    // LVM writes it first.
    by(
        Class::LVM,
        format(&["LVM2_member"], &[magic(512, b"LABELONE"), magic(4100, b" LVM2 x[5A%r0N*>")], uuid(544, 16)),
    ),
    by(Class::SWAP, format(&["swap", "swsuspend"], &[magic(4086, b"SWAPSPACE2")], uuid(1036, 16))),
    by(
        Class::MD,
        format(
            &["linux_raid_member"],
            &[magic(4096, b"\xfc\x4e\x2b\xa9"), magic(0, b"\xfc\x4e\x2b\xa9")],
            None,
        ),
    ),
    by(Class::F2FS, format(&["f2fs"], &[magic(1024, b"\x10\x20\xf5\xf2")], uuid(1132, 16))),
    by(Class::NILFS, format(&["nilfs2"], &[magic(1030, b"\x34\x34")], uuid(1176, 16))),
    format(
        &["bcache"],
        &[magic(4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81")],
        None,
    ),
    // veritysetup and integritysetup write their superblock last, over what is left of another format.
    format(&["DM_verity_hash"], &[magic(0, b"verity\0\0")], None),
    format(&["DM_integrity"], &[magic(0, b"integrt\0")], None),
    format(&["spdk_blobstore"], &[magic(0, b"SPDKBLOB")], None),
    // Its magic is at the device's end.
    format(&["drbd"], &[], None),
    format(&["reiser4"], &[magic(65536, b"ReIsEr4")], None),
    format(&["ceph_bluestore"], &[magic(0, b"bluestore block ")], None),
    // No shorter magics in the first sectors than these: a random GUID of a partition table must not be one.
    format(
        &["bcachefs"],
        &[magic(4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef")],
        uuid(4136, 16),
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
    by(
        Class::FAT,
        boot(&["vfat"], &[magic(82, b"FAT32   "), magic(54, b"FAT16   "), magic(54, b"FAT12   ")], None),
    ),
    by(Class::NTFS, boot(&["ntfs"], &[magic(3, b"NTFS    ")], uuid(72, 8))),
    boot(&["BitLocker"], &[magic(3, b"-FVE-FS-")], None),
    by(Class::EXFAT, boot(&["exfat"], &[magic(3, b"EXFAT   ")], uuid(100, 4))),
    by(Class::PARTITIONS, boot(&["gpt"], &[magic(512, b"EFI PART")], uuid(568, 16))),
    by(Class::PARTITIONS, boot(&[MBR], &[magic(510, b"\x55\xaa")], uuid(440, 4))),
];

/// Headers that the kernel alone writes when it makes a layer ([`crate::header`]), or device mapper's own
/// tools: no program is looked at for them while it writes.
pub const OF_THE_KERNEL: &[Format] = &[
    // struct thin_disk_superblock, drivers/md/dm-thin-metadata.c; cache_disk_superblock, dm-cache-metadata.c;
    // superblock_disk, dm-era-target.c and dm-clone-metadata.c: sum, flags, block, UUID, then the magic.
    by(Class::DM_METADATA, format(&["dm_thin_pool"], &[magic(32, &27_022_010_u64.to_le_bytes())], None)),
    by(Class::DM_METADATA, format(&["dm_cache"], &[magic(32, &0o6_142_003_u64.to_le_bytes())], None)),
    by(Class::DM_METADATA, format(&["dm_era"], &[magic(32, &2_126_579_579_u64.to_le_bytes())], None)),
    format(&["dm_clone"], &[magic(32, &0x8af2_7f64_u64.to_le_bytes())], None),
    // struct wc_memory_superblock, drivers/md/dm-writecache.c: the magic and version 1.
    format(&["dm_writecache"], &[magic(0, b"\x21\x93\x48\x23\x01\0\0\0")], None),
    // struct log_header_disk, drivers/md/dm-log.c: the magic and version 2.
    format(&["dm_mirror_log"], &[magic(0, b"\x72\x52\x69\x4d\x02\0\0\0")], None),
    // struct log_write_super, drivers/md/dm-log-writes.c.
    format(&["dm_log_writes"], &[magic(0, &0x006a_7366_7773_6872_u64.to_le_bytes())], None),
];

/// Formats that libblkid 2.38 does not know, by their magic at its place. None is short enough to be met by
/// chance.
pub const NOT_OF_LIBBLKID: &[&str] = &[
    "bcachefs",
    "spdk_blobstore",
    "dm_thin_pool",
    "dm_cache",
    "dm_era",
    "dm_clone",
    "dm_writecache",
    "dm_mirror_log",
    "dm_log_writes",
];

/// The magics that formats keep at the end of a device of `size` bytes, with libblkid's name of each. Some
/// tools write them before anything else.
#[must_use]
pub fn at_end(size: u64) -> [(&'static str, Magic); 6] {
    const SECTOR: u64 = 512;
    const MD: &[u8] = b"\xfc\x4e\x2b\xa9";
    let sectors = size / SECTOR;
    // The last sector (UEFI specification 2.10, 5.3.2); include/uapi/linux/raid/md_p.h (MD_NEW_SIZE_SECTORS)
    // and drivers/md/md.c (super_1_load); drivers/block/drbd/drbd_int.h (drbd_md_ss) and its magics of
    // version 8, 8.4 and 9, whose superblock is shorter. What does not fit lies behind every device.
    let place = |sector: Option<u64>| sector.map_or(u64::MAX - SECTOR, |sector| sector * SECTOR);
    let drbd = place((sectors & !7).checked_sub(8));
    [
        ("gpt", magic(place(sectors.checked_sub(1)), b"EFI PART")),
        ("linux_raid_member", magic(place((sectors & !127).checked_sub(128)), MD)),
        ("linux_raid_member", magic(place(sectors.checked_sub(16).map(|sector| sector & !7)), MD)),
        ("drbd", magic(drbd + 60, b"\x83\x74\x02\x6b")),
        ("drbd", magic(drbd + 60, b"\x83\x74\x02\x6c")),
        ("drbd", magic(drbd + 36, b"\x83\x74\x02\x6d")),
    ]
}

/// libblkid's name of the partition table whose magic every boot sector carries.
pub const MBR: &str = "dos";

/// The known format of this libblkid name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Format> {
    FORMATS.iter().chain(OF_THE_KERNEL).find(|format| format.names.contains(&name))
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
    fn what_lies_at_an_end_is_not_foreign_to_its_own_format() {
        for (name, _) in at_end(64 << 20) {
            assert!(by_name(name).is_some(), "{name} has no row");
        }
    }

    #[test]
    fn the_ends_of_devices_are_where_their_formats_have_them() {
        let ends = |size| at_end(size).map(|(_, magic)| magic.offset);
        // 64 MiB, and a size that is no multiple of 64 KiB.
        assert_eq!(ends(64 << 20)[..3], [67_108_352, 67_043_328, 67_100_672]);
        assert_eq!(ends(64 << 20)[3..], [67_104_828, 67_104_828, 67_104_804]);
        assert_eq!(ends(1_000_000_000)[..3], [999_999_488, 999_882_752, 999_989_248]);
        assert_eq!(ends(1_000_000_000)[5], 999_993_344 + 36);
        assert!(ends(4096)[1] > 1 << 60, "too small for it");
    }
}
