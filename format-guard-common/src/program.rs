//! The tables of programs that are known by name, each entry with its reason.
//!
//! A name is `task_struct.comm`, which the kernel cuts to 15 bytes. It is a convenience for the honest
//! caller: a formatter that goes by another name meets the marks instead. No entry may widen what an unknown
//! program may do to a mark's magic.

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
    /// May change the UUID of its own format, whose magic stays: refusing it half-way tears the file system.
    pub const RELABELLER: Self = Self(4);
    /// Acts on what its own layer hands out: may wipe a logical volume that it has just made.
    pub const OWNER: Self = Self(8);
    /// Repairs or resizes an existing format and rewrites its magic as it is, also on a volume of which the
    /// guard does not know yet which format it holds: holding it up there would be an outage.
    pub const MAINTAINER: Self = Self(16);
    /// May write to strict volumes of any format, by these tables or by an operator's word. No more than
    /// that.
    pub const TRUSTED: Self = Self(32);

    /// The program says that it writes nothing (`mke2fs -n`): its opening of a device is let through, and a
    /// write is judged by the program's name.
    pub const DRY_RUN: Self = Self(64);
    /// A formatter that names a journal on another device (`mke2fs -J device=`), to which it adds its
    /// volume's UUID.
    pub const JOURNAL_USER: Self = Self(128);

    /// Makes a device a member of an array that runs (`mdadm --add`): what the device was as a member it
    /// begins anew.
    pub const JOINS: Self = Self(1 << 12);

    /// Writes the metadata of a thin pool or a cache anew over a whole device, block 0 last: refused where
    /// another format is known to lie. What such a tool repairs is a logical volume that holds no known
    /// format.
    pub const REBUILDER: Self = Self(1 << 13);

    /// Puts layers together: it has read the header of its own layer when it gives a device to the kernel, or
    /// has just made the logical volume that it gives.
    pub const ASSEMBLER: Self = Self(1 << 14);

    /// Where the number of a [`Grammar`] stands: such a program's arguments say more.
    pub const GRAMMAR_SHIFT: u32 = 8;
    const GRAMMAR: u32 = 0xf << Self::GRAMMAR_SHIFT;

    // Whose tool it is, or which formats a volume holds (`Rule::tools`): a strict volume takes writes of its
    // own tools.
    /// e2fsprogs.
    pub const EXT: Self = Self(1 << 16);
    /// xfsprogs.
    pub const XFS: Self = Self(1 << 17);
    /// btrfs-progs.
    pub const BTRFS: Self = Self(1 << 18);
    /// f2fs-tools.
    pub const F2FS: Self = Self(1 << 19);
    /// dosfstools, mtools.
    pub const FAT: Self = Self(1 << 20);
    /// exfatprogs, exfat-utils.
    pub const EXFAT: Self = Self(1 << 21);
    /// ntfs-3g.
    pub const NTFS: Self = Self(1 << 22);
    /// nilfs-tools.
    pub const NILFS: Self = Self(1 << 23);
    /// Swap space.
    pub const SWAP: Self = Self(1 << 24);
    /// LVM.
    pub const LVM: Self = Self(1 << 25);
    /// mdadm.
    pub const MD: Self = Self(1 << 26);
    /// cryptsetup.
    pub const LUKS: Self = Self(1 << 27);
    /// sgdisk, sfdisk.
    pub const PARTITIONS: Self = Self(1 << 28);
    /// Of a volume alone: metadata of a thin pool, dm-cache or dm-era.
    pub const DM_METADATA: Self = Self(1 << 29);
    /// Of a volume, and of tools of such formats that re-label them: a known format that none of these tools
    /// keeps.
    pub const NO_TOOLS: Self = Self(1 << 31);

    /// Whether any bit of `other` is in this set.
    #[inline(always)]
    #[must_use]
    pub const fn is(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Every bit by which something is known of a program.
    pub const KNOWN: Self = Self(!(Self::GRAMMAR | Self::ASSEMBLER.0));

    /// Neither a name nor arguments say anything of it.
    #[inline(always)]
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        !self.is(Self::KNOWN)
    }

    /// The same, but for an operator's word: it may do more, and is no better known by that.
    #[inline(always)]
    #[must_use]
    pub const fn is_no_tool(self) -> bool {
        self.0 & !(Self::GRAMMAR | Self::ASSEMBLER.0 | Self::TRUSTED.0) == 0
    }

    /// How its arguments are read; zero where they say nothing.
    #[inline(always)]
    #[must_use]
    pub const fn grammar(self) -> u32 {
        (self.0 & Self::GRAMMAR) >> Self::GRAMMAR_SHIFT
    }

    /// Both sets together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// How a program reads its arguments: a number, in [`Class`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grammar(pub(crate) u32);

impl Grammar {
    /// cryptsetup(8), veritysetup(8), integritysetup(8) 2.6: an action, and what it is done to.
    pub const CRYPTSETUP: Self = Self(1);
    /// sgdisk(8), gptfdisk 1.0.9 (gptcl.cc): options of popt, of which short ones may be bundled.
    pub const SGDISK: Self = Self(2);
    /// sfdisk(8), util-linux 2.38.
    pub const SFDISK: Self = Self(3);
    /// mdadm(8) 4.2 (ReadMe.c).
    pub const MDADM: Self = Self(4);
    /// lvm(8): the command comes first.
    pub const LVM: Self = Self(5);
    /// mke2fs(8), e2fsprogs 1.47 (misc/mke2fs.c).
    pub const MKE2FS: Self = Self(6);
    /// mkfs.xfs(8), xfsprogs 6.1 (`mkfs/xfs_mkfs.c`).
    pub const MKFS_XFS: Self = Self(7);
    /// mkfs.nilfs2(8), nilfs-utils 2.2 (sbin/mkfs/mkfs.c).
    pub const MKFS_NILFS2: Self = Self(8);
    /// wipefs(8), util-linux 2.38.
    pub const WIPEFS: Self = Self(9);
    /// drbdmeta(8) 9: a device, a version, where the metadata are, a command.
    pub const DRBDMETA: Self = Self(10);
    /// blkzone(8), util-linux 2.38: a command first.
    pub const BLKZONE: Self = Self(11);

    /// As a part of a class.
    #[must_use]
    pub const fn class(self) -> Class {
        Class(self.0 << Class::GRAMMAR_SHIFT)
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

/// One whose arguments say what it does.
const fn reads(grammar: Grammar, program: Program) -> Program {
    Program { class: program.class.with(grammar.class()), ..program }
}

const fn unknown(name: &'static str) -> Program {
    Program { name, class: Class::UNKNOWN }
}

const fn assembler(program: Program) -> Program {
    Program { class: program.class.with(Class::ASSEMBLER), ..program }
}

/// One of LVM's commands, which activate logical volumes, hidden ones among them.
const fn lvm(name: &'static str) -> Program {
    assembler(Program { name, class: Class::LVM })
}

const fn rebuilder(name: &'static str) -> Program {
    Program { name, class: Class::REBUILDER }
}

const fn maintainer(of: Class, name: &'static str) -> Program {
    Program { name, class: Class::MAINTAINER.with(of) }
}

const fn relabeller(of: Class, name: &'static str) -> Program {
    Program { name, class: Class::RELABELLER.with(Class::MAINTAINER).with(of) }
}

/// Every program that is known by name.
///
/// Of some the arguments say what they are there for ([`crate::arguments`]). `dd`, `cp`, `shred`-like copies,
/// `parted`, `fdisk` do everyday work, too, and are judged by what they write.
pub const PROGRAMS: &[Program] = &[
    // mkfs(8) and what it calls; the names that CSI plugins run (kubernetes mount-utils: mkfs.TYPE).
    formatter("mkfs"),
    reads(Grammar::MKE2FS, formatter("mke2fs")),
    reads(Grammar::MKE2FS, formatter("mkfs.ext2")),
    reads(Grammar::MKE2FS, formatter("mkfs.ext3")),
    reads(Grammar::MKE2FS, formatter("mkfs.ext4")),
    reads(Grammar::MKE2FS, formatter("mkfs.ext4dev")),
    reads(Grammar::MKFS_XFS, formatter("mkfs.xfs")),
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
    reads(Grammar::MKFS_NILFS2, formatter("mkfs.nilfs2")),
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
    // Makes a btrfs of an ext or reiserfs file system, and back: another format either way, of which a half
    // is none.
    formatter("btrfs-convert"),
    formatter("make-bcache"),
    formatter("jfs_mkfs"),
    formatter("mkfs.reiser4"),
    formatter("mkfs.hfs"),
    formatter("mkfs.hfsplus"),
    formatter("newfs_hfs"),
    formatter("hformat"),
    formatter("mkfs.zonefs"),
    formatter("mkzonefs"),
    // They write files, as a rule; here they open a block device.
    formatter("genisoimage"),
    formatter("mkisofs"),
    formatter("xorrisofs"),
    formatter("mksquashfs"),
    formatter("gensquashfs"),
    formatter("tar2sqfs"),
    formatter("genromfs"),
    // Swap space and LVM physical volumes are formats like any other.
    formatter("mkswap"),
    formatter("pvcreate"),
    // Programs whose one purpose is to make a device's content unreadable.
    reads(Grammar::WIPEFS, Program { name: "wipefs", class: Class::ERASER }),
    Program { name: "blkdiscard", class: Class::ERASER },
    Program { name: "shred", class: Class::ERASER },
    Program { name: "pvremove", class: Class::ERASER },
    // tune2fs -U, xfs_admin -U (which runs xfs_db), btrfstune -u, swaplabel -U, fatlabel -i, mlabel,
    // exfatlabel -i, tune.exfat -I, ntfslabel --new-serial, nilfs-tune -U.
    relabeller(Class::EXT, "tune2fs"),
    relabeller(Class::EXT, "e2label"),
    relabeller(Class::XFS, "xfs_db"),
    relabeller(Class::BTRFS, "btrfstune"),
    relabeller(Class::SWAP, "swaplabel"),
    relabeller(Class::FAT, "fatlabel"),
    relabeller(Class::FAT, "mlabel"),
    relabeller(Class::EXFAT, "exfatlabel"),
    relabeller(Class::EXFAT, "tune.exfat"),
    relabeller(Class::NTFS, "ntfslabel"),
    relabeller(Class::NILFS, "nilfs-tune"),
    relabeller(Class::NO_TOOLS, "jfs_tune"),
    relabeller(Class::NO_TOOLS, "reiserfstune"),
    relabeller(Class::NO_TOOLS, "tunefs.ocfs2"),
    relabeller(Class::NO_TOOLS, "tunegfs2"),
    relabeller(Class::NO_TOOLS, "udflabel"),
    // pvchange -u, and what makes a copied physical volume another one: they write their metadata area before
    // the label.
    relabeller(Class::LVM, "pvchange"),
    relabeller(Class::LVM, "vgimportclone"),
    // Puts back the signature that a hibernation left in the place of its own.
    relabeller(Class::SWAP, "swapon"),
    // Programs whose purpose is told by their arguments.
    reads(Grammar::CRYPTSETUP, assembler(unknown("cryptsetup"))),
    reads(Grammar::CRYPTSETUP, assembler(unknown("veritysetup"))),
    reads(Grammar::CRYPTSETUP, assembler(unknown("integritysetup"))),
    reads(Grammar::SGDISK, unknown("sgdisk")),
    reads(Grammar::SFDISK, unknown("sfdisk")),
    reads(Grammar::DRBDMETA, unknown("drbdmeta")),
    reads(Grammar::BLKZONE, unknown("blkzone")),
    // LVM wipes stale signatures on a logical volume that it has just made.
    // Not a maintainer by this name: `lvm pvcreate` is the same program.
    reads(Grammar::LVM, assembler(Program { name: "lvm", class: Class::OWNER.with(Class::LVM) })),
    assembler(Program { name: "lvcreate", class: Class::OWNER.with(Class::MAINTAINER).with(Class::LVM) }),
    assembler(Program { name: "lvconvert", class: Class::OWNER.with(Class::MAINTAINER).with(Class::LVM) }),
    // They label a device that holds none as pvcreate does, and maintain nothing: what is not theirs they
    // leave alone.
    lvm("vgcreate"),
    lvm("vgextend"),
    lvm("vgreduce"),
    lvm("vgremove"),
    lvm("vgrename"),
    lvm("vgcfgrestore"),
    lvm("lvremove"),
    lvm("lvextend"),
    lvm("lvreduce"),
    lvm("lvresize"),
    lvm("lvchange"),
    lvm("pvmove"),
    lvm("dmeventd"),
    // They load the tables of logical volumes and write nothing themselves.
    assembler(unknown("pvscan")),
    assembler(unknown("lvrename")),
    assembler(unknown("vgsplit")),
    assembler(unknown("vgmerge")),
    // By libcryptsetup, which looks for the header: crypttab, integritytab, homes.
    assembler(unknown("systemd-cryptsetup")),
    assembler(unknown("systemd-integritysetup")),
    assembler(unknown("systemd-homework")),
    // These rewrite superblocks with the magic that is there.
    maintainer(Class::EXT, "e2fsck"),
    maintainer(Class::EXT, "fsck.ext2"),
    maintainer(Class::EXT, "fsck.ext3"),
    maintainer(Class::EXT, "fsck.ext4"),
    maintainer(Class::EXT, "resize2fs"),
    // `ssv uuid`: it writes what has changed of the superblock word by word, and its sum last.
    relabeller(Class::EXT, "debugfs"),
    maintainer(Class::XFS, "xfs_repair"),
    maintainer(Class::BTRFS, "btrfs"),
    maintainer(Class::FAT, "fsck.vfat"),
    maintainer(Class::FAT, "fsck.fat"),
    maintainer(Class::FAT, "dosfsck"),
    maintainer(Class::EXFAT, "fsck.exfat"),
    maintainer(Class::F2FS, "fsck.f2fs"),
    maintainer(Class::F2FS, "resize.f2fs"),
    maintainer(Class::NTFS, "ntfsfix"),
    maintainer(Class::NTFS, "ntfsresize"),
    // File systems in user space: what the kernel does for others.
    maintainer(Class::NTFS, "ntfs-3g"),
    maintainer(Class::NTFS, "lowntfs-3g"),
    maintainer(Class::NTFS, "mount.ntfs"),
    maintainer(Class::NTFS, "mount.ntfs-3g"),
    maintainer(Class::NTFS, "mount.lowntfs-3g"),
    maintainer(Class::EXT, "fuse2fs"),
    maintainer(Class::EXFAT, "mount.exfat"),
    maintainer(Class::EXFAT, "mount.exfat-fuse"),
    assembler(maintainer(Class::LVM, "vgchange")),
    maintainer(Class::LVM, "pvresize"),
    // thin-provisioning-tools 0.9 and 1.0.
    rebuilder("thin_restore"),
    rebuilder("thin_repair"),
    rebuilder("cache_restore"),
    rebuilder("cache_repair"),
    rebuilder("cache_writeback"),
    rebuilder("era_restore"),
    rebuilder("era_repair"),
    // They keep the superblocks of arrays, whose members nobody else writes to.
    reads(Grammar::MDADM, assembler(Program { name: "mdadm", class: Class::MD })),
    Program { name: "mdmon", class: Class::MD },
    // Puts boot code on every member of a mirror that a BIOS starts from.
    Program { name: "grub-bios-setup", class: Class::TRUSTED },
];

/// What a program of this name is known as, by [`PROGRAMS`].
#[must_use]
pub fn class_of(name: &str) -> Class {
    let comm = comm(name);
    PROGRAMS.iter().find(|known| self::comm(known.name) == comm).map_or(Class::UNKNOWN, |known| known.class)
}

/// Slots of the map `NAMES`.
pub const NAME_SLOTS: u32 = 4096;

/// The slot of a name (its 16 bytes as two words of native byte order). A slot that no known program has
/// tells that the name is none of theirs, without a look-up.
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
    fn a_long_name_is_cut_as_the_kernel_cuts_it() {
        assert_eq!(&comm("mkfs.a_very_long_name"), b"mkfs.a_very_lon\0");
    }
}
