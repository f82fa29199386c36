//! Whether nothing is stored of a device: a loop device over a file, or a partition of one, of which the file
//! system that the file lies on says so.
//!
//! That a device reads as zeros proves nothing: a data path that is degraded reads so, too. That a file has
//! no data is what the file system keeps beside the data, in a structure that it knows by a magic or a
//! checksum: a medium that lies breaks it, and leaves an error and no hole. It is what cutting the file to
//! zero leaves.

use std::{
    fs::{self, File},
    path::Path,
};

use rustix::{
    fs::{IFlags, SeekFrom, fstatfs, ioctl_getflags, seek},
    io::Errno,
};

use super::{identity::file_behind, topology::SECTOR};

/// Whether nothing is stored of the device of this name, which is open, and has so many bytes.
pub(super) fn is_unwritten(device: &File, name: &str, size: u64) -> bool {
    region(device, name).is_some_and(|(file, start)| {
        tells_truly(&file)
            && match seek(&file, SeekFrom::Data(start)) {
                Ok(first) => first >= start.saturating_add(size),
                // No data to the end of the file.
                Err(error) => error == Errno::NXIO,
            }
    })
}

/// The file in which a device lies, and its first byte there.
fn region(device: &File, name: &str) -> Option<(File, u64)> {
    let node = Path::new("/sys/class/block").join(name);
    if let Ok(file) = fs::read_to_string(node.join("loop/backing_file")) {
        return file_behind(device, Path::new(file.trim_end_matches('\n')));
    }
    let start: u64 = fs::read_to_string(node.join("start")).ok()?.trim().parse().ok()?;
    let disk = fs::canonicalize(node).ok()?.parent()?.to_owned();
    let file = fs::read_to_string(disk.join("loop/backing_file")).ok()?;
    let whole = File::open(Path::new("/dev").join(disk.file_name()?)).ok()?;
    let (file, offset) = file_behind(&whole, Path::new(file.trim_end_matches('\n')))?;
    Some((file, offset.checked_add(start.checked_mul(SECTOR)?)?))
}

/// Whether the file system of a file keeps where its data lie so that it finds out when that is not what it
/// wrote. Not one whose blocks of pointers are numbers alone (ext2, ext3: zeros there are a hole), nor one
/// that asks a server or another one.
fn tells_truly(file: &File) -> bool {
    // statfs(2); ext2, ext3 and ext4 share theirs.
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const BTRFS: u64 = 0x9123_683e;
    const TMPFS: u64 = 0x0102_1994;
    let Ok(statfs) = fstatfs(file) else { return false };
    match u64::from_ne_bytes(statfs.f_type.to_ne_bytes()) {
        // Each node of a tree of extents begins with a magic, that in the inode too (fs/ext4/extents.c,
        // __ext4_ext_check).
        EXT4 => ioctl_getflags(file).is_ok_and(|flags| flags.contains(IFlags::from_bits_retain(EXTENTS))),
        XFS | BTRFS | TMPFS => true,
        _ => false,
    }
}

/// `FS_EXTENT_FL`, include/uapi/linux/fs.h.
const EXTENTS: u32 = 0x0008_0000;
