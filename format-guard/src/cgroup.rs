//! Control groups of version 2 on this host.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

/// Where they are mounted: alone, or beside those of version 1 (systemd's hybrid hierarchy).
const PLACES: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// `CGROUP2_SUPER_MAGIC` of include/uapi/linux/magic.h.
const CGROUP2: i64 = 0x6367_7270;

/// The root of the hierarchy, if it is mounted.
#[must_use]
pub fn mount() -> Option<&'static Path> {
    let is_cgroup2 = |path: &&Path| rustix::fs::statfs(*path).is_ok_and(|stat| stat.f_type == CGROUP2);
    PLACES.into_iter().map(Path::new).find(is_cgroup2)
}

/// Whether every process of the host is in this control group: a container may see one of its own in that
/// place.
#[must_use]
pub fn is_root(group: &Path) -> bool {
    /// Number of a hierarchy's first inode (fs/kernfs/dir.c: `kernfs_create_root`).
    const ROOT: u64 = 1;
    fs::metadata(group).is_ok_and(|group| group.ino() == ROOT)
}
