//! The tables of programs that are known by name, each entry with its reason.
//!
//! A name is `task_struct.comm`, which the kernel cuts to 15 bytes. It is a convenience for the honest caller: a
//! formatter that goes by another name meets the marks instead. No entry may widen what an unknown program may do
//! to a mark's magic.

use crate::each::each;

/// What a program is known as: a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Class(pub u32);

impl Class {
    /// Not in any table.
    pub const UNKNOWN: Self = Self(0);
    /// Its purpose is to write a new format. Refused at open where a format is or may be.
    pub const FORMATTER: Self = Self(1);
    /// Its purpose is to erase. Refused like a formatter, but on a blank volume it begins no format.
    pub const ERASER: Self = Self(2);
    /// May change the UUID of a format whose magic stays: refusing it half-way tears the file system.
    pub const RELABELLER: Self = Self(4);
    /// Acts on what its own layer hands out: may wipe a logical volume that it has just made.
    pub const OWNER: Self = Self(8);
    /// Repairs or resizes an existing format and rewrites its magic as it is, also on a volume of which the guard
    /// does not know yet which format it holds: holding it up there would be an outage.
    pub const MAINTAINER: Self = Self(16);
    /// May write to strict volumes, by these tables or by an operator's word. No more than that.
    pub const TRUSTED: Self = Self(32);

    /// Whether any bit of `other` is in this set.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Bytes of a program's name that the kernel keeps, without the final NUL (`TASK_COMM_LEN` - 1).
pub const COMM_LEN: usize = 15;

/// One program known by name.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// The name as it is installed; longer ones are compared by their first [`COMM_LEN`] bytes.
    pub name: &'static str,
    /// What it is known as.
    pub class: Class,
}

const fn formatter(name: &'static str) -> Program {
    Program { name, class: Class::FORMATTER }
}

const fn maintainer(name: &'static str) -> Program {
    Program { name, class: Class::MAINTAINER }
}

/// Every program that is known by name.
///
/// `cryptsetup` is in none: `luksFormat` and `luksUUID` are one program, and only the marks tell them apart
/// (luksFormat overwrites the old header's magic with zeros first; luksUUID is refused at its first write, which
/// leaves the header whole). Its `erase` spares the header, and is told by its arguments ([`erases`]). `dd`, `cp`,
/// `shred`-like copies, `parted`, `fdisk` do everyday work, too, and are judged by what they write.
pub const PROGRAMS: &[Program] = &[
    // mkfs(8) and what it calls; the names that CSI plugins run (kubernetes mount-utils: mkfs.TYPE).
    formatter("mkfs"),
    formatter("mke2fs"),
    formatter("mkfs.ext2"),
    formatter("mkfs.ext3"),
    formatter("mkfs.ext4"),
    formatter("mkfs.ext4dev"),
    formatter("mkfs.xfs"),
    formatter("mkfs.btrfs"),
    formatter("mkfs.f2fs"),
    formatter("mkfs.vfat"),
    formatter("mkfs.fat"),
    formatter("mkfs.msdos"),
    formatter("mkdosfs"),
    formatter("mkfs.exfat"),
    formatter("mkexfatfs"),
    formatter("mkfs.ntfs"),
    formatter("mkntfs"),
    formatter("mkfs.nilfs2"),
    formatter("mkfs.minix"),
    formatter("mkfs.bfs"),
    formatter("mkfs.cramfs"),
    formatter("mkfs.udf"),
    formatter("mkudffs"),
    formatter("mkfs.jfs"),
    formatter("mkfs.reiserfs"),
    formatter("mkreiserfs"),
    formatter("mkfs.ocfs2"),
    formatter("mkfs.gfs2"),
    formatter("mkfs.bcachefs"),
    formatter("mkfs.erofs"),
    formatter("make-bcache"),
    // Swap space and LVM physical volumes are formats like any other.
    formatter("mkswap"),
    formatter("pvcreate"),
    // Their one purpose is to make what is there unreadable.
    Program { name: "wipefs", class: Class::ERASER },
    Program { name: "blkdiscard", class: Class::ERASER },
    Program { name: "shred", class: Class::ERASER },
    Program { name: "pvremove", class: Class::ERASER },
    // tune2fs -U, xfs_admin -U (which runs xfs_db), btrfstune -u, swaplabel -U, fatlabel -i, mlabel, exfatlabel -i,
    // tune.exfat -I, ntfslabel --new-serial, nilfs-tune -U.
    Program { name: "tune2fs", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "e2label", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "xfs_db", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "btrfstune", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "swaplabel", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "fatlabel", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "mlabel", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "exfatlabel", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "tune.exfat", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "ntfslabel", class: Class::RELABELLER.with(Class::MAINTAINER) },
    Program { name: "nilfs-tune", class: Class::RELABELLER.with(Class::MAINTAINER) },
    // LVM wipes stale signatures on a logical volume that it has just made.
    // Not a maintainer by this name: `lvm pvcreate` is the same program.
    Program { name: "lvm", class: Class::OWNER },
    Program { name: "lvcreate", class: Class::OWNER.with(Class::MAINTAINER) },
    Program { name: "lvconvert", class: Class::OWNER.with(Class::MAINTAINER) },
    // These rewrite superblocks with the magic that is there.
    maintainer("e2fsck"),
    maintainer("fsck.ext2"),
    maintainer("fsck.ext3"),
    maintainer("fsck.ext4"),
    maintainer("resize2fs"),
    maintainer("debugfs"),
    maintainer("xfs_repair"),
    maintainer("btrfs"),
    maintainer("fsck.vfat"),
    maintainer("fsck.fat"),
    maintainer("dosfsck"),
    maintainer("fsck.exfat"),
    maintainer("fsck.f2fs"),
    maintainer("resize.f2fs"),
    maintainer("ntfsfix"),
    maintainer("ntfsresize"),
    maintainer("vgcreate"),
    maintainer("vgextend"),
    maintainer("vgchange"),
    maintainer("pvresize"),
    maintainer("pvchange"),
    maintainer("swapon"),
    // They keep the superblocks of arrays, whose members nobody else writes to.
    Program { name: "mdadm", class: Class::TRUSTED },
    Program { name: "mdmon", class: Class::TRUSTED },
    // Puts boot code on every member of a mirror that a BIOS starts from.
    Program { name: "grub-bios-setup", class: Class::TRUSTED },
];

/// What a program of this name is known as, by [`PROGRAMS`].
#[must_use]
pub fn class_of(name: &str) -> Class {
    let comm = comm(name);
    PROGRAMS.iter().find(|known| self::comm(known.name) == comm).map_or(Class::UNKNOWN, |known| known.class)
}

/// `cryptsetup` and `sgdisk` as two words, as the kernel keeps names.
const CRYPTSETUP: [u64; 2] = [word(*b"cryptset"), word(*b"up\0\0\0\0\0\0")];
const SGDISK: [u64; 2] = [word(*b"sgdisk\0\0"), 0];

/// Bytes of a program's arguments that are looked at.
pub const ARGUMENTS: usize = 128;

const fn word(bytes: [u8; 8]) -> u64 {
    u64::from_ne_bytes(bytes)
}

/// Whether what a program of this name does is told by its arguments.
#[inline(always)]
#[must_use]
pub fn is_told_by_arguments(comm: [u64; 2]) -> bool {
    comm == CRYPTSETUP || comm == SGDISK
}

/// Whether a program with these arguments (each ends with a NUL) is there to erase, though others run it every day.
///
/// `cryptsetup erase`, also written `luksErase` (cryptsetup 2.6, src/cryptsetup.c), destroys every key slot: to the disk a
/// change of key slots like any other, and without them the data are lost. `sgdisk -Z` and `-z` (gptfdisk 1.0.9, gptcl.cc)
/// overwrite what is no partition table of theirs, the first key slot of a LUKS1 volume for one, before they reach a magic.
#[inline(always)]
#[must_use]
pub fn erases(comm: [u64; 2], arguments: &[u8; ARGUMENTS]) -> bool {
    let mut seen = Seen { arguments, last: 0, keys: 0, tables: 0 };
    each(ARGUMENTS as u32, &mut seen, look);
    comm == CRYPTSETUP && seen.keys != 0 || comm == SGDISK && seen.tables != 0
}

/// What was seen of a program's arguments.
struct Seen<'a> {
    arguments: &'a [u8; ARGUMENTS],
    /// The last eight bytes, as they lie in memory; shifted, the last seven, six or four.
    last: u64,
    /// Not zero: one erases key slots.
    keys: u64,
    /// Not zero: one erases partition tables.
    tables: u64,
}

/// Looks at one byte more.
extern "C" fn look(number: u32, seen: *mut Seen<'_>) -> i64 {
    const ERASE: u64 = word(*b"\0erase\0\0");
    const LUKS_ERASE: u64 = word(*b"\0luksEra");
    const ZAP: u64 = word(*b"\0--zap\0\0");
    const ZAP_ALL: u64 = word(*b"\0-Z\0\0\0\0\0");
    const ZAP_ONE: u64 = word(*b"\0-z\0\0\0\0\0");
    // SAFETY: `each` passes what it was given, which nothing else uses meanwhile.
    let seen = unsafe { &mut *seen };
    let Some(byte) = seen.arguments.get(number as usize) else { return 1 };
    let last = seen.last >> 8 | u64::from(*byte) << 56;
    seen.last = last;
    seen.keys |= u64::from(last >> 8 == ERASE || last == LUKS_ERASE);
    seen.tables |= u64::from(last >> 16 == ZAP || last >> 32 == ZAP_ALL || last >> 32 == ZAP_ONE);
    0
}

/// Slots of the map `NAMES`.
pub const NAME_SLOTS: u32 = 4096;

/// The slot of a name (its 16 bytes as two words of native byte order). A slot that no known program has tells that the
/// name is none of theirs, without a look-up.
#[inline(always)]
#[must_use]
pub const fn name_slot(comm: [u64; 2]) -> u32 {
    // Odd numbers without a pattern (the golden ratio's fraction, and another prime's).
    let mixed = comm[0].wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ comm[1].wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    (mixed >> 40) as u32 & (NAME_SLOTS - 1)
}

/// A program's name as the kernel keeps it: cut to [`COMM_LEN`] bytes, NUL-padded.
#[must_use]
pub fn comm(name: &str) -> [u8; 16] {
    let mut comm = [0; 16];
    for (to, from) in comm.iter_mut().take(COMM_LEN).zip(name.bytes()) {
        *to = from;
    }
    comm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_listed_twice() {
        for (i, a) in PROGRAMS.iter().enumerate() {
            for b in &PROGRAMS[i + 1..] {
                assert_ne!(comm(a.name), comm(b.name), "{}", a.name);
            }
        }
    }

    #[test]
    fn what_erases_is_told_by_its_arguments() {
        let erases = |comm, line: &str| {
            let mut arguments = [0; ARGUMENTS];
            for (to, from) in arguments.iter_mut().zip(line.bytes()) {
                *to = if from == b' ' { 0 } else { from };
            }
            super::erases(comm, &arguments)
        };
        for line in [
            "cryptsetup erase /dev/sda ",
            "cryptsetup -q luksErase /dev/sda ",
            "x --header y erase /dev/sda ",
        ] {
            assert!(erases(CRYPTSETUP, line) && !erases(SGDISK, line), "{line}");
        }
        for line in
            ["luksOpen /dev/mapper/erase x ", "x luksKillSlot /dev/sda 1 ", "x open /dev/erased x ", ""]
        {
            assert!(!erases(CRYPTSETUP, line), "{line}");
        }
        for line in
            ["sgdisk -Z /dev/sda ", "sgdisk --zap-all /dev/sda ", "sgdisk --zap /dev/sda ", "sgdisk -o -z x "]
        {
            assert!(erases(SGDISK, line) && !erases(CRYPTSETUP, line), "{line}");
        }
        for line in ["sgdisk -n 1:0:0 /dev/sda ", "sgdisk -p /dev/-Z ", ""] {
            assert!(!erases(SGDISK, line), "{line}");
        }
        assert_eq!(CRYPTSETUP.map(u64::to_ne_bytes).as_flattened(), comm("cryptsetup"));
        assert_eq!(SGDISK.map(u64::to_ne_bytes).as_flattened(), comm("sgdisk"));
    }

    #[test]
    fn a_long_name_is_cut_as_the_kernel_cuts_it() {
        assert_eq!(&comm("mkfs.a_very_long_name"), b"mkfs.a_very_lon\0");
    }
}
