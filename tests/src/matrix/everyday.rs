//! Work that must go on as without the guard: the same work runs on two copies of a volume, one without a
//! guard and one with it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{
    Outcome, Row, Selection, shell_with,
    volume::{Golden, KINDS, Kind, MIB, key_file, point},
    work::{Work, refused, work},
    writers::WRITERS,
};
use crate::{
    device::{Device, Loop},
    guard::{Guard, PRELOAD, tier},
    tool,
};

/// What kubernetes' mount-utils (`SafeFormatAndMount`, `mount_linux.go`) run to stage a volume: they format a
/// volume if blkid finds nothing, check it, and mount it.
macro_rules! stage {
    ($type:literal, $options:literal) => {
        concat!(
            "blkid -p -s TYPE -s PTTYPE -o export $N; case $? in 2) mkfs.",
            $type,
            " ",
            $options,
            " $N || exit 1;; 0) ;; *) exit 1;; esac; fsck -a $N; [ $? -le 1 ] && mount -t ",
            $type,
            " -o defaults $N $M"
        )
    };
}

/// Puts back the copy of the file behind the device that was made before the unmount, as a crash would leave
/// the file.
const CRASHED: &str =
    "dd if=/var/tmp/fg-crashed of=$F bs=1M conv=notrunc,sparse,fsync && blockdev --flushbufs $N";

/// Steps for a failed member of an array.
const ADDED_AGAIN: &[&str] = &[
    "mdadm --assemble --run /dev/md92 $N",
    "mdadm --grow /dev/md92 --raid-devices=2 --force",
    "mdadm /dev/md92 --add $B",
    IS_WHOLE,
    "mdadm /dev/md92 --fail $B",
    until!("mdadm /dev/md92 --remove $B"),
    "mdadm /dev/md92 --add $B",
    IS_WHOLE,
    "mdadm --grow /dev/md92 --bitmap=internal",
    "mdadm /dev/md92 --fail $B",
    until!("mdadm /dev/md92 --remove $B"),
    "mdadm /dev/md92 --re-add $B",
    IS_WHOLE,
    until!("mdadm --stop /dev/md92"),
    "mdadm --assemble --run /dev/md92 $N $B",
    IS_WHOLE,
    until!("mdadm --stop /dev/md92"),
];
const IS_WHOLE: &str = "mdadm --wait /dev/md92; mdadm --detail /dev/md92 | grep 'active sync.*'$B";

const WORK: &[Work] = &[
    work(
        "ext4",
        "mount, write, umount",
        &["mount $N $M", "cp /etc/passwd $M/x", "umount $M", "e2fsck -fn $N"],
    ),
    work(
        "ext4",
        "remount, fsfreeze, fstrim",
        &[
            "mount $N $M",
            "mount -o remount,ro $M",
            "mount -o remount,rw $M",
            "fsfreeze -f $M && fsfreeze -u $M",
            "fstrim $M",
            "umount $M",
        ],
    ),
    work("ext4", "e2fsck -fy", &["e2fsck -fy $N"]),
    work(
        "ext4",
        "e2fsck of a journal to replay",
        &[
            "mount $N $M",
            "cp /etc/passwd $M/y",
            "sync; cp $F /var/tmp/fg-crashed",
            "umount $M",
            CRASHED,
            "e2fsck -fy $N",
            "e2fsck -fn $N",
        ],
    ),
    work(
        "ext4",
        "e2fsck -b on a damaged superblock",
        &[
            "dd if=/dev/zero of=$F bs=1024 seek=1 count=1 conv=notrunc,fsync && blockdev --flushbufs $N",
            "e2fsck -fn $N",
            "e2fsck -fy -b 8193 -B 1024 $N",
            "e2fsck -fn $N",
        ],
    ),
    work("ext4", "e2fsck -E discard", &["e2fsck -fy -E discard $N"]),
    work(
        "",
        "e2fsck -E discard on a large volume",
        &[
            "truncate -s 3G $F && losetup -c $N",
            until!("mkfs.ext4 -F -q $N"),
            "e2fsck -fy -E discard $N",
            "e2fsck -fn $N",
        ],
    ),
    work(
        "ext4",
        "tune2fs -L, -O, -c",
        &[
            "tune2fs -L data $N",
            "tune2fs -O ^has_journal $N",
            "tune2fs -c 5 $N",
            "tune2fs -j $N",
            "e2fsck -fy $N",
        ],
    ),
    work(
        "ext4",
        "tune2fs -U",
        &[
            "tune2fs -U 11111111-2222-3333-4444-555555555555 $N",
            "e2fsck -fy $N",
            "blkid -p -s UUID -o value $N | grep 11111111",
        ],
    ),
    work("ext4", "e2label", &["e2label $N data", "e2fsck -fn $N"]),
    work("ext4", "resize2fs", &["e2fsck -fy $N", "resize2fs $N 40M", "resize2fs $N", "e2fsck -fn $N"]),
    work(
        "ext4",
        "fio beyond the marks",
        &[
            "fio --name=x --filename=$N --offset=9M --size=1M --rw=randwrite --bs=4k --ioengine=psync --end_fsync=1",
            "fio --name=x --filename=$N --offset=9M --size=1M --rw=randwrite --bs=4k --ioengine=libaio --direct=1 --iodepth=8",
            "fio --name=x --filename=$N --offset=9M --size=1M --rw=randwrite --bs=4k --ioengine=io_uring --direct=1 --iodepth=8",
        ],
    ),
    work(
        "ext4",
        "a virtual machine's writes beyond the marks",
        &[
            "qemu-io -f raw -t none -i threads -c 'write -P 1 9M 64k' -c 'discard 10M 64k' -c flush $N",
            "qemu-io -f raw -t none -i native -c 'write -P 2 9M 64k' -c 'write -z 10M 64k' -c flush $N",
            "qemu-io -f raw -t none -i io_uring -c 'write -P 3 9M 64k' -c flush $N",
        ],
    ),
    work("ext4", "the same bytes", &["dd if=$N of=$N bs=4096 conv=notrunc,fsync"]),
    work("ext4", "debugfs -w", &["debugfs -w -R 'mkdir d' $N", "e2fsck -fn $N"]),
    work("xfs", "mount, write, umount", &["mount $N $M", "cp /etc/passwd $M/x", "fstrim $M", "umount $M"]),
    work("xfs", "xfs_repair", &["xfs_repair $N", "xfs_repair -L $N", "xfs_repair -n $N"]),
    work(
        "xfs",
        "xfs_repair of a log to replay",
        &[
            "mount $N $M",
            "cp /etc/passwd $M/y; sync; cp /etc/passwd $M/z; sync $M/z",
            "cp $F /var/tmp/fg-crashed",
            "umount $M",
            CRASHED,
            "xfs_repair $N",
            "xfs_repair -L $N",
            "xfs_repair -n $N",
        ],
    ),
    work("xfs", "the same bytes", &["dd if=$N of=$N bs=4096 conv=notrunc,fsync"]),
    work("xfs", "xfs_admin -L", &["xfs_admin -L data $N", "xfs_repair -n $N"]),
    work("xfs", "xfs_admin -U", &["xfs_admin -U generate $N", "xfs_repair -n $N"]),
    work("xfs", "xfs_growfs", &["mount $N $M", "xfs_growfs $M", "umount $M"]),
    work("xfs", "xfs_db -x", &["xfs_db -x -c 'sb 0' -c 'write fname \"x\"' $N", "xfs_repair -n $N"]),
    work("btrfs", "mount, write, umount", &["mount $N $M", "cp /etc/passwd $M/x", "fstrim $M", "umount $M"]),
    work("btrfs", "check --repair", &["btrfs check --repair --force $N", "btrfs check $N"]),
    work("btrfs", "filesystem label", &["btrfs filesystem label $N data", "btrfs check $N"]),
    work("btrfs", "filesystem resize", &["mount $N $M", "btrfs filesystem resize max $M", "umount $M"]),
    work(
        "btrfs",
        "a second device",
        &[
            "mount $N $M",
            "btrfs device add $B $M",
            "btrfs device remove $B $M",
            "umount $M",
            "btrfs check $N",
        ],
    ),
    work("btrfs", "btrfstune -u", &["btrfstune -f -u $N", "btrfs check $N"]),
    work("f2fs", "mount, write, umount", &["mount $N $M", "cp /etc/passwd $M/x", "umount $M"]),
    work("f2fs", "fsck.f2fs, resize.f2fs", &["fsck.f2fs -f $N", "resize.f2fs $N", "fsck.f2fs --dry-run $N"]),
    work(
        "vfat",
        "mount, write, umount",
        &["mount $N $M", "cp /etc/passwd $M/x", "umount $M", "fsck.vfat -n $N"],
    ),
    work("vfat", "fsck.vfat, fatlabel", &["fsck.vfat -a $N", "fatlabel $N DATA", "fsck.vfat -n $N"]),
    work("vfat", "fatlabel -i", &["fatlabel -i $N 12345678", "fsck.vfat -n $N"]),
    work("exfat", "mount, write, umount", &["mount $N $M", "cp /etc/passwd $M/x", "umount $M"]),
    work("exfat", "exfatlabel -i", &["exfatlabel -i $N 0x12345678", "fsck.exfat -n $N"]),
    work("exfat", "fsck.exfat, exfatlabel", &["fsck.exfat -y $N", "exfatlabel $N DATA", "fsck.exfat -n $N"]),
    work("ntfs", "ntfsfix, ntfsresize", &["ntfsfix $N", "ntfsresize -i -f $N", "ntfslabel $N DATA"]),
    work("ntfs", "ntfslabel --new-serial", &["ntfslabel --new-serial=1122334455667788 $N", "ntfsinfo -m $N"]),
    work("nilfs2", "mount, write, umount", &["mount -t nilfs2 $N $M", "cp /etc/passwd $M/x", "umount $M"]),
    work("nilfs2", "nilfs-tune -L", &["nilfs-tune -L data $N"]),
    work("nilfs2", "nilfs-tune -U", &["nilfs-tune -U 11111111-2222-3333-4444-555555555555 $N"]),
    work("swap", "swapon, swapoff, swaplabel", &["swapon $N", "swapoff $N", "swaplabel -L data $N"]),
    work(
        "swap",
        "swaplabel -U",
        &["swaplabel -U 11111111-2222-3333-4444-555555555555 $N", "swapon $N; swapoff $N"],
    ),
    work(
        "luks1",
        "open, add a key, close",
        &[
            "cryptsetup open --key-file $K $N fgm",
            "cryptsetup close fgm",
            "cryptsetup luksAddKey --pbkdf-force-iterations 1000 --key-file $K $N /etc/hostname",
            "cryptsetup luksKillSlot --batch-mode --key-file $K $N 1",
        ],
    ),
    work(
        "luks2",
        "open, add a key, close",
        &[
            "cryptsetup open --key-file $K $N fgm",
            "cryptsetup resize --key-file $K fgm",
            "cryptsetup close fgm",
            "cryptsetup luksAddKey --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K $N /etc/hostname",
            "cryptsetup luksKillSlot --batch-mode --key-file $K $N 1",
            "cryptsetup config $N --label data",
        ],
    ),
    work(
        "luks2",
        "reencrypt",
        &[
            "cryptsetup reencrypt --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K $N",
            "cryptsetup open --key-file $K $N fgm && cryptsetup close fgm",
        ],
    ),
    work(
        "lvm",
        "vgchange, lvcreate, lvextend, lvremove",
        &[
            "vgchange -ay fgmatrix",
            "lvcreate -y -L 8M -n one fgmatrix",
            "lvextend -L 16M fgmatrix/one",
            "lvremove -y fgmatrix/one",
            "pvresize $N",
            "vgchange -an fgmatrix",
        ],
    ),
    work(
        "lvm",
        "a snapshot, merged",
        &[
            "vgchange -ay fgmatrix",
            "lvcreate -y -L 8M -n one fgmatrix",
            until!("mkfs.ext4 -F -q /dev/fgmatrix/one"),
            "lvcreate -s -L 4M -n snap fgmatrix/one",
            "mount /dev/fgmatrix/one $M && cp /etc/passwd $M/x && umount $M",
            "lvconvert --merge fgmatrix/snap",
            until!("e2fsck -fn /dev/fgmatrix/one"),
            until!("vgchange -an fgmatrix"),
        ],
    ),
    work(
        "lvm",
        "vgextend, pvmove, vgreduce",
        &[
            "vgchange -ay fgmatrix",
            "lvcreate -y -L 8M -n one fgmatrix",
            "vgextend -y fgmatrix $B",
            "pvmove -i 1 $N $B",
            "pvmove -i 1 $B $N",
            "vgreduce fgmatrix $B",
            "lvremove -y fgmatrix/one",
        ],
    ),
    work(
        "lvm",
        "lvcreate where a file system was",
        &[
            "vgchange -ay fgmatrix",
            "lvcreate -y -L 24M -n one fgmatrix",
            until!("mkfs.ext4 -F -q /dev/fgmatrix/one"),
            "lvremove -y fgmatrix/one",
            "lvcreate -y -Wy -L 24M -n two fgmatrix",
            until!("mkfs.ext4 -F -q /dev/fgmatrix/two"),
            "e2fsck -fn /dev/fgmatrix/two",
            until!("vgchange -an fgmatrix"),
        ],
    ),
    work(
        "md-1.2",
        "grow, add, fail, remove",
        &[
            "mdadm --assemble --run /dev/md92 $N",
            "mdadm --grow /dev/md92 --raid-devices=2 --force",
            "mdadm /dev/md92 --add $B",
            "mdadm --wait /dev/md92; mdadm --detail /dev/md92 | grep 'active sync.*'$B",
            "mdadm /dev/md92 --fail $B",
            until!("mdadm /dev/md92 --remove $B"),
            "mdadm --grow /dev/md92 --raid-devices=1 --force",
            until!("mdadm --stop /dev/md92"),
        ],
    ),
    work("md-1.2", "a member removed and added again", ADDED_AGAIN),
    work("md-1.0", "a member removed and added again", ADDED_AGAIN),
    work("md-0.90", "a member removed and added again", ADDED_AGAIN),
    work("md-1.2", "assemble, stop", &["mdadm --assemble --run /dev/md92 $N", "mdadm --stop /dev/md92"]),
    work("md-1.0", "assemble, stop", &["mdadm --assemble --run /dev/md92 $N", "mdadm --stop /dev/md92"]),
    work("md-0.90", "assemble, stop", &["mdadm --assemble --run /dev/md92 $N", "mdadm --stop /dev/md92"]),
    work(
        "gpt",
        "sfdisk adds and deletes",
        &[
            "sfdisk -q --no-reread --no-tell-kernel --delete $N 2",
            "echo ',10M' | sfdisk -q --no-reread --no-tell-kernel --append $N",
            "sfdisk --verify --no-reread $N",
        ],
    ),
    work("gpt", "sgdisk adds and deletes", &["sgdisk -d 2 $N", "sgdisk -n 2:0:+8M $N", "sgdisk -v $N"]),
    work(
        "gpt",
        "parted adds and deletes",
        &["parted -s $N rm 2", "parted -s $N mkpart two 30MiB 40MiB", until!("partx -d $N")],
    ),
    work(
        "gpt",
        "growpart",
        &[
            "sfdisk -q --no-reread --no-tell-kernel --delete $N 2",
            "growpart --update off $N 1",
            "sgdisk -v $N",
        ],
    ),
    work(
        "gpt",
        "a partition beside one with a file system",
        &[
            "sgdisk -d 2 $N && partx -a $N",
            until!("mkfs.ext4 -F -q ${N}p1"),
            "echo ',10M' | sfdisk -q --no-reread --no-tell-kernel --append $N",
            "parted -s $N mkpart three 40MiB 50MiB",
            "mount ${N}p1 $M && cp /etc/passwd $M/x && umount $M",
            until!("partx -d $N"),
        ],
    ),
    work(
        "gpt",
        "mkfs on a partition made anew elsewhere",
        &[
            "partx -a $N",
            until!("mkfs.ext4 -F -q ${N}p1"),
            until!("partx -d $N"),
            "sgdisk -d 1 -n 1:10M:+8M $N && partx -a $N",
            until!("mkfs.xfs -f -q --unsupported ${N}p2"),
            until!("partx -d $N"),
        ],
    ),
    refused(
        "gpt",
        "mkfs on a partition made anew where a file system was",
        &[
            "partx -a $N",
            until!("mkfs.ext4 -F -q ${N}p1"),
            until!("partx -d $N"),
            "sgdisk -d 1 -n 1:2048:+10M $N && partx -a --nr 1 $N",
            until!("blkid -p ${N}p1"),
            "mkfs.ext4 -F -q ${N}p1",
        ],
    ),
    work(
        "mbr",
        "sfdisk adds and deletes",
        &[
            "sfdisk -q --no-reread --no-tell-kernel --delete $N 2",
            "echo ',10M' | sfdisk -q --no-reread --no-tell-kernel --append $N",
        ],
    ),
    work(
        "mbr",
        "boot code before the table and behind it",
        &[
            "dd if=/bin/true of=$N bs=440 count=1 conv=notrunc,fsync",
            "dd if=/bin/ls of=$N bs=512 seek=1 count=62 conv=notrunc,fsync",
            "sfdisk --verify --no-reread $N",
        ],
    ),
    work("ext4", "mke2fs -n", &["mke2fs -n $N", "mkfs.ext4 -F -n $N", "e2fsck -fn $N"]),
    work(
        "xfs",
        "mkfs.xfs -N, wipefs -n",
        &["mkfs.xfs -N -f --unsupported $N", "wipefs -n -a $N", "xfs_repair -n $N"],
    ),
    work(
        "lvm",
        "pvchange -u, vgimportclone",
        &[
            "vgchange -an fgmatrix",
            "pvchange -u $N",
            "vgck fgmatrix && pvck $N",
            "lvm pvchange -u $N",
            "vgck fgmatrix && pvck $N",
            "vgimportclone -n fgclone $N",
            "vgck fgclone && pvck $N",
            "vgchange -ay fgclone && lvcreate -y -L 8M -n one fgclone",
            until!("vgchange -an fgclone"),
        ],
    ),
    work("gpt", "sgdisk -G", &["sgdisk -G $N", "sgdisk -v $N"]),
    work(
        "gpt",
        "sfdisk --disk-id",
        &["sfdisk --disk-id $N 11111111-2222-3333-4444-555555555555", "sgdisk -v $N"],
    ),
    work(
        "luks1",
        "luksUUID, convert",
        &[
            "cryptsetup luksUUID --batch-mode --uuid 11111111-2222-3333-4444-555555555555 $N",
            "cryptsetup convert --batch-mode --type luks2 $N",
            "cryptsetup open --key-file $K $N fgm && cryptsetup close fgm",
            "cryptsetup convert --batch-mode --type luks1 $N",
            "cryptsetup open --key-file $K $N fgm && cryptsetup close fgm",
            "cryptsetup luksAddKey --pbkdf-force-iterations 1000 --key-file $K $N /etc/hostname",
            "cryptsetup luksKillSlot --batch-mode --key-file $K $N 1",
        ],
    ),
    work(
        "luks2",
        "luksUUID",
        &[
            "cryptsetup luksUUID --batch-mode --uuid 11111111-2222-3333-4444-555555555555 $N",
            "cryptsetup open --key-file $K $N fgm && cryptsetup close fgm",
        ],
    ),
    work(
        "",
        "a journal on another device",
        &[
            "mke2fs -F -q -b 4096 -O journal_dev $B",
            until!("mkfs.ext4 -F -q -b 4096 -J device=$B $N"),
            "e2fsck -fn $N",
            "mount $N $M && cp /etc/passwd $M/x && umount $M",
            "mkfs.ext4 -n -F -b 4096 -J device=$B $N",
            "e2fsck -fn $N",
        ],
    ),
    work(
        "",
        "integritysetup",
        &[
            "integritysetup format -q $N",
            "integritysetup open $N fgm",
            until!("mkfs.ext4 -F -q /dev/mapper/fgm"),
            "mount /dev/mapper/fgm $M && cp /etc/passwd $M/x && umount $M",
            until!("integritysetup close fgm"),
            "integritysetup open $N fgother && mount /dev/mapper/fgother $M && cmp /etc/passwd $M/x && umount $M",
            until!("integritysetup close fgother"),
        ],
    ),
    work(
        "",
        "luksFormat --integrity",
        &[
            "cryptsetup luksFormat --type luks2 --integrity hmac-sha256 --batch-mode --pbkdf pbkdf2 \
             --pbkdf-force-iterations 1000 --key-file $K $N",
            "cryptsetup open --key-file $K $N fgm",
            until!("mkfs.ext4 -F -q /dev/mapper/fgm"),
            "mount /dev/mapper/fgm $M && cp /etc/passwd $M/x && umount $M",
            until!("cryptsetup close fgm"),
        ],
    ),
    work(
        "",
        "a tree of hashes over a file system, mounted",
        &[
            "mkfs.ext4 -F -q -d /etc/apt $N",
            "veritysetup format --root-hash-file /var/tmp/fg-root $N $B",
            "veritysetup open --root-hash-file /var/tmp/fg-root $N fgm $B",
            "mount -t ext4 -o ro,noload /dev/mapper/fgm $M && ls $M && umount $M",
            until!("veritysetup close fgm"),
        ],
    ),
    work("", "mkfs.ext4 -d", &["mkfs.ext4 -F -q -d /etc/apt $N", "e2fsck -fn $N"]),
    work(
        "",
        "mkfs.xfs with a log and a real-time part on other devices",
        &[
            "rm -f /var/tmp/fg-realtime; truncate -s 64M /var/tmp/fg-realtime && losetup -f --show /var/tmp/fg-realtime > /var/tmp/fg-node",
            until!("mkfs.xfs -f -q --unsupported -l logdev=$B -r rtdev=$(cat /var/tmp/fg-node) $N"),
            "mount -o logdev=$B,rtdev=$(cat /var/tmp/fg-node) $N $M && cp /etc/passwd $M/x && umount $M",
            "xfs_repair -l $B -r $(cat /var/tmp/fg-node) $N",
            "losetup -d $(cat /var/tmp/fg-node); rm /var/tmp/fg-realtime",
        ],
    ),
    work("ext4", "tune2fs -U time", &["tune2fs -U time $N", "e2fsck -fy $N"]),
    work(
        "ext4",
        "quotacheck",
        &["mount -o usrquota $N $M && quotacheck -um $M; umount $M", "tune2fs -O quota $N", "e2fsck -fy $N"],
    ),
    work(
        "ext4",
        "dump, restore",
        &[
            "dump -0 -q -f /var/tmp/fg-dump $N",
            until!("mkfs.ext4 -F -q $B"),
            "mount $B $M && cd $M && restore -r -f /var/tmp/fg-dump; cd /; umount $M",
            "e2fsck -fn $B",
        ],
    ),
    work(
        "xfs",
        "xfsdump, xfsrestore",
        &[
            "mount $N $M && xfsdump -l 0 -L x -M y -J -f /var/tmp/fg-dump $M; umount $M",
            until!("mkfs.xfs -f -q --unsupported $B"),
            "mount $B $M && xfsrestore -J -f /var/tmp/fg-dump $M; umount $M",
            "xfs_repair -n $B",
        ],
    ),
    work(
        "btrfs",
        "a device replaced",
        &[
            "mount $N $M",
            "btrfs device add $B $M",
            "rm -f /var/tmp/fg-third; truncate -s 64M /var/tmp/fg-third && losetup -f --show /var/tmp/fg-third > /var/tmp/fg-node",
            until!("btrfs replace start -B -f 2 $(cat /var/tmp/fg-node) $M"),
            "btrfs device remove $(cat /var/tmp/fg-node) $M",
            "umount $M",
            "btrfs check $N",
            until!("losetup -d $(cat /var/tmp/fg-node)"),
        ],
    ),
    refused("ext4", "btrfs-convert", &["btrfs-convert $N"]),
    work(
        "",
        "a cache attached and detached",
        &[
            "modprobe bcache && make-bcache -B $N && make-bcache -C $B && { echo $N > /sys/fs/bcache/register; \
             echo $B > /sys/fs/bcache/register; udevadm --version; }",
            until!("test -b /dev/bcache0"),
            until!("mkfs.ext4 -F -q /dev/bcache0"),
            "bcache-super-show $B | sed -n 's/^cset.uuid[[:space:]]*//p' > /sys/block/bcache0/bcache/attach",
            "mount /dev/bcache0 $M && cp /etc/passwd $M/x && umount $M",
            "echo 1 > /sys/block/bcache0/bcache/detach",
            "mount /dev/bcache0 $M && cmp /etc/passwd $M/x && umount $M",
            until!("echo 1 > /sys/block/bcache0/bcache/stop; test ! -e /sys/block/bcache0"),
            "for set in /sys/fs/bcache/*-*; do echo 1 > $set/stop; done",
        ],
    ),
    work(
        "",
        "raid5, grown",
        &[
            "modprobe raid456",
            "mdadm --create /dev/md93 --run --level=5 --raid-devices=2 --assume-clean --metadata=1.2 $N $B",
            until!("mkfs.ext4 -F -q /dev/md93"),
            "rm -f /var/tmp/fg-third; truncate -s 64M /var/tmp/fg-third && losetup -f --show /var/tmp/fg-third > /var/tmp/fg-node",
            until!("mdadm /dev/md93 --add $(cat /var/tmp/fg-node)"),
            "mdadm --grow /dev/md93 --raid-devices=3 --backup-file=/run/fg-backup",
            "mdadm --wait /dev/md93; mdadm --detail /dev/md93 | grep 'Raid Devices : 3'",
            "resize2fs /dev/md93 && e2fsck -fn /dev/md93",
            until!("mdadm --stop /dev/md93"),
            until!("losetup -d $(cat /var/tmp/fg-node)"),
        ],
    ),
    refused("ext4", "another format", &["mkfs.ext4 -F -q $N"]),
    refused("ext4", "badblocks -n", &["badblocks -n -f -b 1024 $N 16"]),
    refused("ext4", "a shared writable mapping", &["python3 -c \"$MAP\" $N"]),
    refused("ext4", "the same bytes, from pages that are not resident", &["python3 -c \"$ABSENT\" $N"]),
    work("ext4", "the same bytes, in many iovecs", &["python3 -c \"$PIECES\" $N"]),
    work("", "mkfs.ext2", &["mkfs.ext2 -F -q $N"]),
    work("", "mkfs.ext3", &["mkfs.ext3 -F -q $N"]),
    work("", "mkfs.ext4", &["mkfs.ext4 -F -q $N"]),
    work("", "mkfs.xfs", &["mkfs.xfs -f -q --unsupported $N"]),
    work("", "mkfs.btrfs", &["mkfs.btrfs -f -q -M $N"]),
    work("", "mkfs.f2fs", &["mkfs.f2fs -f -q $N"]),
    work("", "mkfs.vfat", &["mkfs.vfat $N"]),
    work("", "mkfs.exfat", &["mkfs.exfat $N"]),
    work("", "mkfs.ntfs", &["mkfs.ntfs -F -Q -q $N"]),
    work("", "mkfs.nilfs2", &["mkfs.nilfs2 -f -q -B 256 $N"]),
    work("", "mkfs.minix", &["mkfs.minix $N"]),
    work("", "mkfs.udf", &["mkfs.udf $N"]),
    work("", "mkfs.bfs", &["mkfs.bfs $N"]),
    work("", "mkfs.cramfs", &["mkfs.cramfs /etc/apt $N"]),
    work("", "make-bcache", &["make-bcache -B $N"]),
    work(
        "",
        "staged twice, ext4",
        &[
            stage!("ext4", "-F -m0"),
            "cp /etc/passwd $M/x && umount $M",
            stage!("ext4", "-F -m0"),
            "cmp /etc/passwd $M/x && umount $M",
        ],
    ),
    work(
        "",
        "staged twice, xfs",
        &[
            stage!("xfs", "-f -q --unsupported"),
            "cp /etc/passwd $M/x && umount $M",
            stage!("xfs", "-f -q --unsupported"),
            "cmp /etc/passwd $M/x && umount $M",
        ],
    ),
    work("", "mkswap", &["mkswap $N"]),
    work(
        "",
        "luksFormat",
        &["cryptsetup luksFormat --batch-mode --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --key-file $K $N"],
    ),
    work("", "pvcreate, vgcreate", &["pvcreate -y $N", "vgcreate fgblank $N", "vgremove -y fgblank"]),
    work(
        "",
        "mdadm --create",
        &[
            "mdadm --create /dev/md93 --run --force --level=1 --raid-devices=1 --metadata=1.2 $N",
            "mdadm --stop /dev/md93",
        ],
    ),
    work("", "sfdisk, a new label", &["echo label: gpt | sfdisk -q --no-reread $N"]),
    Work {
        on: "",
        name: "zeros, and a format after them",
        steps: &["dd if=/dev/zero of=$N bs=1M count=4 conv=notrunc,fsync", "wipefs -a $N"],
        state: "blank",
        refused: false,
    },
];

/// Programs for `python3 -c`, which write the bytes of a device over themselves. Each goes by a name that no
/// shell knows, since it holds quotes.
const PROGRAMS: &[(&str, &str)] = &[
    ("MAP", "import mmap, os, sys; mmap.mmap(os.open(sys.argv[1], os.O_RDWR), 4096)[0:4] = b'none'"),
    (
        "ABSENT",
        "import mmap, os, sys; d = os.open(sys.argv[1], os.O_RDWR); f = os.open('/var/tmp/fg-page', os.O_RDWR | os.O_CREAT); \
         os.pwrite(f, os.pread(d, 4096, 0), 0); os.pwrite(d, mmap.mmap(f, 4096), 0)",
    ),
    (
        "PIECES",
        "import os, sys; d = os.open(sys.argv[1], os.O_RDWR); b = os.pread(d, 4096, 0); \
         os.pwritev(d, [b[i : i + 100] for i in range(0, 4096, 100)], 0)",
    ),
];

/// The volume that a piece of work is done on.
struct Place {
    device: Box<dyn Device>,
    file: PathBuf,
    /// Another volume, which is blank.
    other: Option<Loop>,
}

impl Place {
    /// A copy of the volume that the work needs, or a blank volume; `None` if there is no such volume.
    fn new(work: &Work, golden: &[Golden]) -> Result<Option<Self>> {
        let other = work.steps.iter().any(|step| step.contains("$B")).then(|| Loop::new(MIB)).transpose()?;
        if work.on.is_empty() {
            let device = Loop::new(MIB)?;
            let file = device.file().context("no file")?.to_owned();
            return Ok(Some(Self { device: Box::new(device), file, other }));
        }
        let Some(golden) = golden.iter().find(|golden| golden.kind.name == work.on) else { return Ok(None) };
        let copy = golden.copy()?;
        let file = copy.file().to_owned();
        Ok(Some(Self { device: Box::new(copy), file, other }))
    }

    /// Runs the steps, and returns the exit status and message of each.
    fn run(&self, steps: &[&str]) -> Result<Vec<(i32, String)>> {
        let mut variables = vec![
            ("N", self.device.path().display().to_string()),
            ("F", self.file.display().to_string()),
            ("M", point().display().to_string()),
            ("K", key_file()?.display().to_string()),
        ];
        if let Some(other) = &self.other {
            variables.push(("B", other.path().display().to_string()));
        }
        variables.extend(PROGRAMS.iter().map(|(name, text)| (*name, (*text).to_owned())));
        let step = |step: &&str| -> Result<(i32, String)> {
            let ran = shell_with(step, &variables)?;
            Ok((ran.status, ran.message().to_owned()))
        };
        steps.iter().map(step).collect()
    }
}

impl Drop for Place {
    /// A loop device that is detached keeps partitions which partx has added: they would lie over the next
    /// volume of that number.
    fn drop(&mut self) {
        let _ = tool::run(&format!("partx -d {}", self.device.path().display()));
    }
}

/// Runs every row, and passes each to `done` when it is there.
pub fn run(only: &Selection, done: &mut dyn FnMut(Row)) -> Result<()> {
    let wanted = |work: &&Work| {
        let place = KINDS.iter().position(|kind| kind.name == work.on);
        place.map_or_else(|| only.has("blank", KINDS.len()), |place| only.has(work.on, place))
    };
    let rows: Vec<&Work> = WORK.iter().chain(WRITERS).filter(wanted).collect();
    let mut golden: Vec<Golden> = Vec::new();
    let needed = |kind: &&Kind| rows.iter().any(|work| work.on == kind.name);
    for kind in KINDS.iter().filter(needed) {
        golden.extend(Golden::make(kind).with_context(|| format!("volume {}", kind.name))?);
    }
    // The volumes are made before a guard exists.
    let mut without = Vec::new();
    for work in &rows {
        let place = Place::new(work, &golden)?;
        without.push(place.map(|place| Without::of(&place, work)).transpose()?);
    }
    let guard = Guard::start()?;
    for (work, without) in rows.iter().zip(without) {
        let (outcome, note) = match without {
            None => (Outcome::NotTried, "its tools are not there".to_owned()),
            Some(without) => with_guard(&guard, work, &golden, &without)?,
        };
        let volume = if work.on.is_empty() { "blank" } else { work.on }.to_owned();
        done(Row { table: "everyday", volume, name: work.name.to_owned(), outcome, changed: 0, note });
    }
    Ok(())
}

/// The outcome of a piece of work without a guard.
struct Without {
    /// Exit status and message of each step.
    steps: Vec<(i32, String)>,
    /// Whether libblkid found something on the volume afterwards.
    found: bool,
}

impl Without {
    fn of(place: &Place, work: &Work) -> Result<Self> {
        let steps = place.run(work.steps)?;
        let found = tool::run(&format!("blkid -p {}", place.device.path().display()))?.status == 0;
        Ok(Self { steps, found })
    }

    /// Whether the work cannot do here what its row is about: a tool needs device mapper, and the host has
    /// none.
    fn fails(&self, work: &Work) -> bool {
        let nothing_made = work.state == "formatted" && !self.found;
        (work.refused || nothing_made) && self.steps.iter().any(|(status, _)| *status != 0)
    }
}

/// Does the work again under the guard, and compares it with the outcome without one.
fn with_guard(guard: &Guard, work: &Work, golden: &[Golden], without: &Without) -> Result<(Outcome, String)> {
    let done = &without.steps;
    // 127: the shell finds no such program.
    if let Some((i, (_, said))) = done.iter().enumerate().find(|(_, (status, _))| *status == 127) {
        return Ok((Outcome::NotTried, format!("{}: {said}", work.steps[i])));
    }
    if without.fails(work) {
        return Ok((Outcome::NotTried, format!("it fails without the guard, too: {done:?}")));
    }
    let place = Place::new(work, golden)?.context("no volume")?;
    let device = place.device.path();
    guard.wait_for_state(device, if work.on.is_empty() { "blank" } else { "formatted" })?;
    if let Some(other) = &place.other {
        guard.wait_for_state(other.path(), "blank")?;
    }
    let before = guard.events("denied")?.len();
    let with = place.run(work.steps)?;
    let denied = guard.events("denied")?.split_off(before);
    // The record follows a tool that changed the UUID.
    let reads_as =
        tool::run(&format!("blkid -p -s UUID -o value {}", device.display()))?.text.trim().to_owned();
    guard
        .wait_for_volume(device, work.state, |volume| {
            volume["state"] == work.state
                && volume["discrepancy"].is_null()
                && (reads_as.is_empty() || volume["content"]["uuid"] == reads_as.as_str())
        })
        .with_context(|| format!("{} on {}", work.name, work.on))?;
    let last = work.steps.len() - 1;
    let differs = done.iter().zip(&with).position(|(without, with)| without.0 != with.0);
    if work.refused {
        // The library is in the program that writes, and reads everything that the program writes.
        if tier() == PRELOAD
            && work.name.starts_with("the same bytes")
            && denied.is_empty()
            && differs.is_none()
        {
            return Ok((Outcome::Held, "the library compares all of it, and lets it pass".to_owned()));
        }
        // The event must name the way out, which for a mapping is no permit.
        let way_out = |event: &Value| event["refusal"]["way_out"].as_str().map(str::to_owned);
        let told = denied.iter().find(|event| {
            let way_out = way_out(event).filter(|way_out| !way_out.is_empty());
            way_out.is_some_and(|way_out| event["text"].as_str().is_some_and(|text| text.ends_with(&way_out)))
        });
        // Some tools do not report that they failed.
        return Ok(match (differs, told) {
            (_, Some(event)) if differs.is_none_or(|i| i == last) => {
                (Outcome::Held, format!("refused, and told: {}", event["text"].as_str().unwrap_or_default()))
            }
            _ => (Outcome::Failed, format!("step {differs:?} differs; {denied:?}")),
        });
    }
    if let Some(i) = differs {
        let ((before, _), (after, said)) = (&done[i], &with[i]);
        let refusals: Vec<&str> = denied.iter().filter_map(|event| event["text"].as_str()).collect();
        let note = format!(
            "{}: {before} without, {after} with the guard ({said}); {}",
            work.steps[i],
            refusals.join("; ")
        );
        return Ok((Outcome::Failed, note));
    }
    // Work that was repeated until the volume was verified, and until the end of the try before was known,
    // was refused in between and gave nothing up.
    let tried_again = |event: &Value| {
        ["not-read-yet", "unverified", "being-formatted"]
            .iter()
            .any(|reason| event["refusal"]["reason"] == *reason)
            && work.steps.iter().any(|step| step.starts_with("for i in"))
    };
    if let Some(event) = denied.iter().find(|event| !tried_again(event)) {
        return Ok((Outcome::Failed, format!("refused all the same: {}", event["text"])));
    }
    let failing = done.iter().position(|(status, _)| *status != 0);
    let note = failing.map_or_else(String::new, |i| {
        format!("{}: {} with and without: {}", work.steps[i], done[i].0, done[i].1)
    });
    Ok((Outcome::Held, note))
}
