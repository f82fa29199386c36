//! Volumes of every kind, made once before a guard exists, and copied for the rows.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use super::{has, shell};
use crate::{
    attack::LUKS_FORMAT,
    device::{Device, Image, Loop},
    guard::{PRELOAD, tier},
    tool::{must, must_with, run},
};

/// Size of every volume.
pub(super) const MIB: u64 = 64;
/// Bytes of a disk in front of a volume that is a partition.
pub(super) const HEAD: u64 = 1 << 20;

/// A kind of volume.
pub(super) struct Kind {
    pub(super) name: &'static str,
    /// The program that makes it; without the program there is no such volume.
    needs: &'static str,
    /// Lines for the shell; `$N` is the node.
    make: &'static str,
    /// The type to mount it by, so that data can be put in.
    pub(super) mount: Option<&'static str>,
}

const fn kind(name: &'static str, needs: &'static str, make: &'static str) -> Kind {
    Kind { name, needs, make, mount: None }
}

const fn mounted(name: &'static str, needs: &'static str, make: &'static str) -> Kind {
    Kind { name, needs, make, mount: Some(name) }
}

/// Every kind that Debian's packages can make.
pub(super) const KINDS: &[Kind] = &[
    mounted("ext4", "mkfs.ext4", "mkfs.ext4 -F -q $N"),
    mounted("xfs", "mkfs.xfs", "mkfs.xfs -f -q --unsupported $N"),
    mounted("btrfs", "mkfs.btrfs", "mkfs.btrfs -f -q -M $N"),
    mounted("f2fs", "mkfs.f2fs", "mkfs.f2fs -f -q $N"),
    mounted("vfat", "mkfs.vfat", "mkfs.vfat -F 32 $N"),
    mounted("exfat", "mkfs.exfat", "mkfs.exfat $N"),
    Kind { name: "ntfs", needs: "mkfs.ntfs", make: "mkfs.ntfs -F -Q -q $N", mount: Some("ntfs3") },
    mounted("nilfs2", "mkfs.nilfs2", "mkfs.nilfs2 -f -q -B 256 $N"),
    mounted("udf", "mkfs.udf", "mkfs.udf $N"),
    kind("swap", "mkswap", "mkswap -f $N"),
    kind("luks1", "cryptsetup", "$LUKS --type luks1 $N"),
    kind("luks2", "cryptsetup", "$LUKS --type luks2 $N"),
    kind("lvm", "pvcreate", "pvcreate -ff -y $N && vgcreate fgmatrix $N"),
    kind("md-1.2", "mdadm", "$MD --metadata=1.2 $N && mdadm --stop /dev/md90"),
    kind("md-1.0", "mdadm", "$MD --metadata=1.0 $N && mdadm --stop /dev/md90"),
    kind("md-0.90", "mdadm", "$MD --metadata=0.90 $N && mdadm --stop /dev/md90"),
    kind("gpt", "sfdisk", "printf 'label: gpt\\n,20M\\n,\\n' | sfdisk -q --no-reread --no-tell-kernel $N"),
    kind("mbr", "sfdisk", "printf 'label: dos\\n,20M\\n,\\n' | sfdisk -q --no-reread --no-tell-kernel $N"),
    kind("bcache", "make-bcache", "make-bcache -B $N"),
];

/// A finished volume, in a file.
pub(super) struct Golden {
    pub(super) kind: &'static Kind,
    image: Image,
    /// First byte of the volume: not zero if the volume is a partition.
    pub(super) start: u64,
}

impl Golden {
    /// Makes a volume, with data in it if it can be mounted; `None` if its tools are missing.
    pub(super) fn make(kind: &'static Kind) -> Result<Option<Self>> {
        if !has(kind.needs) {
            return Ok(None);
        }
        let image = Image::new(MIB)?;
        let device = Loop::over(image.path())?;
        let node = device.path().display();
        let md = "mdadm --create /dev/md90 --run --force --assume-clean --level=1 --raid-devices=1";
        let luks = format!("printf secret | {LUKS_FORMAT} --key-file -");
        let line = format!("N={node}; {}", kind.make.replace("$LUKS", &luks).replace("$MD", md));
        if kind.name.starts_with("md-") {
            let raid = shell("modprobe raid1")?;
            // The library's tables run on the host's own kernel, which may lack a module; guests have every
            // module.
            if raid.status != 0 && tier() == PRELOAD {
                return Ok(None);
            }
            ensure!(raid.status == 0, "{raid:?}");
        }
        let made = shell(&line)?;
        ensure!(made.status == 0, "{} cannot be made: {made:?}", kind.name);
        if let Some(mount) = kind.mount {
            put_data(device.path(), mount);
        }
        device.detach()?;
        Ok(Some(Self { kind, image, start: 0 }))
    }

    /// The file.
    pub(super) fn path(&self) -> &Path {
        self.image.path()
    }

    /// The same volume as the only partition of a disk.
    pub(super) fn in_partition(&self) -> Result<Self> {
        let image = Image::new(MIB + 2)?;
        let (from, to) = (self.path().display(), image.path().display());
        must_with(&format!("sfdisk -q {to}"), &format!("label: gpt\n{},{}\n", HEAD / 512, MIB * 2048))?;
        must(&format!("dd if={from} of={to} bs={HEAD} seek=1 conv=notrunc,sparse"))?;
        Ok(Self { kind: self.kind, image, start: HEAD })
    }

    /// A device of its own with the same bytes.
    pub(super) fn copy(&self) -> Result<Copy> {
        let free = must("losetup --find")?;
        self.copy_at(Path::new(free.trim()))
    }

    /// The same, at this node of a free loop device.
    pub(super) fn copy_at(&self, node: &Path) -> Result<Copy> {
        let image = Image::new(0)?;
        must(&format!("cp --sparse=always {} {}", self.path().display(), image.path().display()))?;
        let device = Loop::at(node, image.path())?;
        let partition = if self.start > 0 {
            must(&format!("addpart {} 1 {} {}", node.display(), self.start / 512, MIB * 2048))?;
            Some(PathBuf::from(format!("{}p1", node.display())))
        } else {
            None
        };
        Ok(Copy { partition, device, image })
    }
}

/// A device that may be destroyed.
pub(super) struct Copy {
    partition: Option<PathBuf>,
    device: Loop,
    image: Image,
}

impl Copy {
    /// The file behind it.
    pub(super) fn file(&self) -> &Path {
        self.image.path()
    }

    /// The node of the volume, which is the device or its partition.
    pub(super) fn volume(&self) -> &Path {
        self.partition.as_deref().unwrap_or_else(|| self.path())
    }
}

impl Device for Copy {
    fn path(&self) -> &Path {
        self.device.path()
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A loop device with partitions would stay.
        if self.partition.as_ref().is_some_and(|partition| partition.exists()) {
            let _ = shell(&format!("N={}; {}", self.path().display(), until!("delpart $N 1")));
        }
    }
}

/// Files of some size: whatever is in the way of a mount, the volume is good without them.
fn put_data(device: &Path, kind: &str) {
    let point = point();
    let mounted = run(&format!("mount -t {kind} {} {}", device.display(), point.display()));
    if mounted.is_ok_and(|ran| ran.status == 0) {
        for number in 0..8 {
            let _ = fs::write(point.join(format!("file-{number}")), vec![number; 300_000]);
        }
        let _ = run(&format!("umount {}", point.display()));
    }
}

/// A directory to mount on.
pub(super) fn point() -> PathBuf {
    let point = PathBuf::from("/run/fg-matrix");
    let _ = fs::create_dir_all(&point);
    point
}

/// Key file of the LUKS volumes.
pub(super) fn key_file() -> Result<PathBuf> {
    let path = PathBuf::from("/run/fg-matrix-key");
    fs::write(&path, "secret").context("key file")?;
    Ok(path)
}
