//! One table for each type that libblkid knows: what tells a volume from another of its type.
//!
//! A magic alone says what a volume holds, not whose: an image of another volume carries the same one. Where
//! a format has a UUID at a fixed place, that is in `format_guard_common::format`; here is the rest, by
//! libblkid's names (util-linux 2.38, libblkid/src/superblocks/*.c, whose structures say the places, unless a
//! row says otherwise).

/// What tells a volume from another of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tells {
    /// Its UUID at a fixed place (`format_guard_common::format`).
    Table,
    /// The UUID that libblkid reads, wherever it lies near the magic.
    Uuid,
    /// What stays for its life: first byte counted from the magic, and bytes.
    Fields(&'static [(i64, usize)]),
    /// It is written out in `marks`.
    Own,
    /// Nothing that this guard knows: an image of the same type passes for it. The reason.
    Nothing(&'static str),
}

const NO_IDENTITY: &str = "its superblock holds nothing that another's does not";
const VENDOR: &str =
    "firmware's own metadata at the end of a disk: no tool of this host writes it but to erase it";
const OBSOLETE: &str = "no kernel of today mounts it";

use Tells::{Fields, Nothing, Own, Table, Uuid};

/// The row of a type.
pub(super) fn identity_of(name: &str) -> Option<&'static Tells> {
    TYPES.iter().find(|(of, _)| *of == name).map(|(_, tells)| tells)
}

/// A row for each type.
const TYPES: &[(&str, Tells)] = &[
    // `set_uuid`.
    ("linux_raid_member", Own),
    // mdadm makes these two, too. The header's GUID (SNIA, Common RAID Disk Data Format 2.0, 4.2.1), and the
    // family that the array was of when it was made (mdadm 4.2, super-intel.c: `orig_family_num`).
    ("ddf_raid_member", Fields(&[(8, 16)])),
    ("isw_raid_member", Fields(&[(64, 4)])),
    ("lsi_mega_raid_member", Nothing(VENDOR)),
    ("via_raid_member", Nothing(VENDOR)),
    ("silicon_medley_raid_member", Nothing(VENDOR)),
    ("nvidia_raid_member", Nothing(VENDOR)),
    ("promise_fasttrack_raid_member", Nothing(VENDOR)),
    ("hpt45x_raid_member", Nothing(VENDOR)),
    ("hpt37x_raid_member", Nothing(VENDOR)),
    ("adaptec_raid_member", Nothing(VENDOR)),
    ("jmicron_raid_member", Nothing(VENDOR)),
    ("bcache", Uuid),
    // Behind the line "bluestore block device" stands the OSD's UUID as text
    // (src/os/bluestore/bluestore_types.cc).
    ("ceph_bluestore", Fields(&[(23, 16)])),
    // `device_uuid`, before the magic.
    ("drbd", Uuid),
    ("drbdmanage_control_volume", Uuid),
    ("drbdproxy_datalog", Uuid),
    ("LVM2_member", Table),
    ("LVM1_member", Nothing(OBSOLETE)),
    ("DM_snapshot_cow", Nothing(NO_IDENTITY)),
    // And the salt (cryptsetup, lib/verity/verity.c): two trees over the same data differ in nothing else.
    ("DM_verity_hash", Uuid),
    // Geometry and salt (`struct superblock`, drivers/md/dm-integrity.c); the kernel alone changes the rest.
    ("DM_integrity", Fields(&[(8, 8), (48, 16)])),
    ("crypto_LUKS", Table),
    ("VMFS_volume_member", Fields(&[(130, 16)])),
    ("VMFS", Fields(&[(9, 16)])),
    // `image_seq` (drivers/mtd/ubi/ubi-media.h).
    ("ubi", Fields(&[(24, 4)])),
    ("ubifs", Uuid),
    ("vdo", Uuid),
    ("stratis", Uuid),
    // Where its three copies of metadata lie.
    ("BitLocker", Fields(&[(173, 16)])),
    // Its serial number is `Marks::fat`'s.
    ("vfat", Own),
    ("swsuspend", Table),
    ("swap", Table),
    ("xfs", Table),
    // The file system's UUID, in the header of each record (fs/xfs/libxfs/xfs_log_format.h, `h_fs_uuid`).
    ("xfs_external_log", Own),
    ("exfs", Table),
    ("ext4dev", Table),
    ("ext4", Table),
    ("ext3", Table),
    ("ext2", Table),
    ("jbd", Table),
    ("reiserfs", Uuid),
    ("reiser4", Uuid),
    ("jfs", Uuid),
    // The volume set's identifier.
    ("udf", Own),
    // When it was made, and its size (ECMA-119, 8.4): fields 27 and 9 of the primary volume descriptor.
    ("iso9660", Fields(&[(812, 16), (79, 8)])),
    // The pool's number, in the list of names and values of the first label.
    ("zfs_member", Own),
    ("hfsplus", Own),
    ("hfs", Own),
    // `fs_id`: time of creation and a random number.
    ("ufs", Fields(&[(144 - 1372, 8)])),
    ("hpfs", Nothing(OBSOLETE)),
    ("sysv", Nothing(OBSOLETE)),
    ("xenix", Nothing(OBSOLETE)),
    ("ntfs", Table),
    ("ReFS", Nothing("no kernel of this system writes it")),
    // Size, and what fsck.cramfs checks: sum, edition, blocks, files (fs/cramfs, `struct cramfs_super`).
    ("cramfs", Fields(&[(4, 4), (32, 16)])),
    // Size and sum; name.
    ("romfs", Fields(&[(8, 8), (16, 16)])),
    // Inodes, zones and where they begin: it has no more (include/uapi/linux/minix_fs.h).
    ("minix", Fields(&[(-16, 16)])),
    ("gfs", Uuid),
    ("gfs2", Uuid),
    ("ocfs", Nothing(OBSOLETE)),
    ("ocfs2", Uuid),
    // The disk's name.
    ("oracleasm", Fields(&[(8, 16)])),
    // Time of creation.
    ("vxfs", Fields(&[(8, 8)])),
    // Inodes, time, sizes; root and bytes in all (fs/squashfs/squashfs_fs.h): an image is never changed.
    ("squashfs", Fields(&[(4, 16), (32, 16)])),
    ("squashfs3", Fields(&[(4, 16), (32, 16)])),
    ("nss", Nothing(OBSOLETE)),
    ("btrfs", Table),
    // Where its files begin and end; names.
    ("bfs", Fields(&[(4, 8), (28, 12)])),
    // Blocks in all.
    ("befs", Fields(&[(16, 8)])),
    ("nilfs2", Table),
    ("exfat", Table),
    ("f2fs", Table),
    ("mpool", Uuid),
    ("apfs", Uuid),
    ("zonefs", Uuid),
    ("erofs", Uuid),
];

#[cfg(test)]
mod tests {
    use format_guard_common::format::by_name;

    use super::*;

    /// `blkid -k` of util-linux 2.38.
    const KNOWN: &str = "linux_raid_member ddf_raid_member isw_raid_member lsi_mega_raid_member via_raid_member \
        silicon_medley_raid_member nvidia_raid_member promise_fasttrack_raid_member hpt45x_raid_member \
        hpt37x_raid_member adaptec_raid_member jmicron_raid_member bcache ceph_bluestore drbd \
        drbdmanage_control_volume drbdproxy_datalog LVM2_member LVM1_member DM_snapshot_cow DM_verity_hash \
        DM_integrity crypto_LUKS VMFS_volume_member ubi vdo stratis BitLocker vfat swsuspend swap xfs \
        xfs_external_log exfs ext4dev ext4 ext3 ext2 jbd reiserfs reiser4 jfs udf iso9660 zfs_member hfsplus hfs \
        ufs hpfs sysv xenix ntfs ReFS cramfs romfs minix gfs gfs2 ocfs ocfs2 oracleasm vxfs squashfs squashfs3 nss \
        btrfs ubifs bfs VMFS befs nilfs2 exfat f2fs mpool apfs zonefs erofs";

    #[test]
    fn every_type_of_the_libblkid_that_is_installed_has_a_row() {
        let listed = std::process::Command::new("blkid").arg("-k").output().expect("blkid, of util-linux");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let names: Vec<&str> = listed.split_whitespace().collect();
        assert!(names.len() > 50, "{listed}");
        let without: Vec<&&str> = names.iter().filter(|name| identity_of(name).is_none()).collect();
        assert!(without.is_empty(), "{without:?}");
    }

    #[test]
    fn every_type_has_a_row_and_what_the_row_says() {
        for name in KNOWN.split_whitespace() {
            let tells = identity_of(name).unwrap_or_else(|| panic!("{name} has no row"));
            let in_table = by_name(name).is_some_and(|format| format.uuid.is_some());
            assert_eq!(*tells == Table, in_table, "{name}");
        }
        for (i, (name, tells)) in TYPES.iter().enumerate() {
            assert!(TYPES[i + 1..].iter().all(|(other, _)| name != other), "{name} is there twice");
            if let Fields(fields) = tells {
                assert!(fields.iter().all(|(_, length)| (1..=16).contains(length)), "{name}");
            }
        }
    }
}
