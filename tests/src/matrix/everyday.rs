//! What must go on as without the guard: the same work on two copies of a volume, one without a guard and one with it.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    Outcome, Row, Selection, shell,
    volume::{Golden, KINDS, Kind, MIB, key_file, point},
};
use crate::{
    device::{Device, Loop},
    guard::Guard,
};

/// A piece of work. `$N` is the node, `$M` a directory to mount on, `$K` the key file of the LUKS volumes. Each line is
/// one step: its exit status must be the same.
struct Work {
    /// The kind of volume; a blank one where it is empty.
    on: &'static str,
    name: &'static str,
    steps: &'static [&'static str],
    /// The state that its record must come to have.
    state: &'static str,
}

const fn work(on: &'static str, name: &'static str, steps: &'static [&'static str]) -> Work {
    Work { on, name, steps, state: "formatted" }
}

/// A probe opens a device for a moment, as udev's does, and what is open stays.
const GONE: &str = "for i in $(seq 50); do partx -d $N && exit 0; sleep 0.1; done; exit 1";

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
            "debugfs -w -R 'ssv state 0' $N; umount $M",
            "e2fsck -fy $N",
            "e2fsck -fn $N",
        ],
    ),
    work("ext4", "e2fsck -E discard", &["e2fsck -fy -E discard $N"]),
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
    work("ext4", "debugfs -w", &["debugfs -w -R 'mkdir d' $N", "e2fsck -fn $N"]),
    work("xfs", "mount, write, umount", &["mount $N $M", "cp /etc/passwd $M/x", "fstrim $M", "umount $M"]),
    work("xfs", "xfs_repair", &["xfs_repair $N", "xfs_repair -L $N", "xfs_repair -n $N"]),
    work("xfs", "xfs_admin -L", &["xfs_admin -L data $N", "xfs_repair -n $N"]),
    work("xfs", "xfs_admin -U", &["xfs_admin -U generate $N", "xfs_repair -n $N"]),
    work("xfs", "xfs_growfs", &["mount $N $M", "xfs_growfs $M", "umount $M"]),
    work("xfs", "xfs_db -x", &["xfs_db -x -c 'sb 0' -c 'write fname \"x\"' $N", "xfs_repair -n $N"]),
    work("btrfs", "mount, write, umount", &["mount $N $M", "cp /etc/passwd $M/x", "fstrim $M", "umount $M"]),
    work("btrfs", "check --repair", &["btrfs check --repair --force $N", "btrfs check $N"]),
    work("btrfs", "filesystem label", &["btrfs filesystem label $N data", "btrfs check $N"]),
    work("btrfs", "filesystem resize", &["mount $N $M", "btrfs filesystem resize max $M", "umount $M"]),
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
    work("exfat", "fsck.exfat, exfatlabel", &["fsck.exfat -y $N", "exfatlabel $N DATA", "fsck.exfat -n $N"]),
    work("ntfs", "ntfsfix, ntfsresize", &["ntfsfix $N", "ntfsresize -i -f $N", "ntfslabel $N DATA"]),
    work("nilfs2", "mount, write, umount", &["mount -t nilfs2 $N $M", "cp /etc/passwd $M/x", "umount $M"]),
    work("nilfs2", "nilfs-tune -L", &["nilfs-tune -L data $N"]),
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
        &["parted -s $N rm 2", "parted -s $N mkpart two 30MiB 40MiB", GONE],
    ),
    work(
        "mbr",
        "sfdisk adds and deletes",
        &[
            "sfdisk -q --no-reread --no-tell-kernel --delete $N 2",
            "echo ',10M' | sfdisk -q --no-reread --no-tell-kernel --append $N",
        ],
    ),
    work("mbr", "boot code before the table", &["dd if=/bin/true of=$N bs=440 count=1 conv=notrunc,fsync"]),
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
    },
];

/// The exit status of each step, on a copy of a volume.
fn statuses(work: &Work, path: &Path) -> Result<Vec<(i32, String)>> {
    let environment = format!("N={} M={} K={}", path.display(), point().display(), key_file()?.display());
    work.steps
        .iter()
        .map(|step| {
            let ran = shell(&format!("export {environment}; {step}"))?;
            Ok((ran.status, ran.message().to_owned()))
        })
        .collect()
}

/// Runs every row, and hands each to `done` as it is there.
pub fn run(only: &Selection, done: &mut dyn FnMut(Row)) -> Result<()> {
    let wanted = |work: &&Work| {
        let place = KINDS.iter().position(|kind| kind.name == work.on);
        place.map_or_else(|| only.has("blank", KINDS.len()), |place| only.has(work.on, place))
    };
    let rows: Vec<&Work> = WORK.iter().filter(wanted).collect();
    let mut golden: Vec<Golden> = Vec::new();
    let needed = |kind: &&Kind| rows.iter().any(|work| work.on == kind.name);
    for kind in KINDS.iter().filter(needed) {
        golden.extend(Golden::make(kind).with_context(|| format!("volume {}", kind.name))?);
    }
    // Before there is a guard.
    let mut without = Vec::new();
    for work in &rows {
        without.push(on_a_copy(work, &golden, None)?);
    }
    let guard = Guard::start()?;
    for (work, without) in rows.iter().zip(without) {
        let row = |outcome, note| Row {
            table: "everyday",
            volume: if work.on.is_empty() { "blank".to_owned() } else { work.on.to_owned() },
            name: work.name.to_owned(),
            outcome,
            changed: 0,
            note,
        };
        let Some(without) = without else {
            done(row(Outcome::NotTried, "its tools are not there".to_owned()));
            continue;
        };
        // 127: the shell finds no such program.
        if let Some((i, (_, said))) = without.iter().enumerate().find(|(_, (status, _))| *status == 127) {
            done(row(Outcome::NotTried, format!("{}: {said}", work.steps[i])));
            continue;
        }
        let before = guard.events("denied")?.len();
        let with = on_a_copy(work, &golden, Some(&guard))?.unwrap_or_default();
        let denied = guard.events("denied")?.split_off(before);
        let differs = without.iter().zip(&with).position(|(without, with)| without.0 != with.0);
        done(if let Some(i) = differs {
            let note = format!(
                "{}: {} without, {} with the guard ({})",
                work.steps[i], without[i].0, with[i].0, with[i].1
            );
            row(Outcome::Failed, note)
        } else if let Some(event) = denied.first() {
            row(Outcome::Failed, format!("refused all the same: {}", event["text"]))
        } else {
            let failing = without.iter().position(|(status, _)| *status != 0);
            let note = failing.map_or_else(String::new, |i| {
                format!("{}: {} with and without: {}", work.steps[i], without[i].0, without[i].1)
            });
            row(Outcome::Held, note)
        });
    }
    Ok(())
}

fn on_a_copy(work: &Work, golden: &[Golden], guard: Option<&Guard>) -> Result<Option<Vec<(i32, String)>>> {
    let (copy, blank);
    let device: &dyn Device = if work.on.is_empty() {
        blank = Loop::new(MIB)?;
        &blank
    } else {
        let Some(golden) = golden.iter().find(|golden| golden.kind.name == work.on) else { return Ok(None) };
        copy = golden.copy()?;
        &copy
    };
    if let Some(guard) = guard {
        let state = if work.on.is_empty() { "blank" } else { "formatted" };
        guard.wait_for_state(device.path(), state)?;
    }
    let statuses = statuses(work, device.path())?;
    if let Some(guard) = guard {
        guard
            .wait_for_volume(device.path(), work.state, |volume| {
                volume["state"] == work.state && volume["discrepancy"].is_null()
            })
            .with_context(|| format!("{} on {}", work.name, work.on))?;
    }
    Ok(Some(statuses))
}
