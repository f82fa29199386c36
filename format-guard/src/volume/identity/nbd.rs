//! The image that `qemu-nbd` serves to an nbd device: the kernel's node is the same for one image after
//! another. What is not known for certain is nobody's identity.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use super::loop_device::{Backing, recorded};

/// Options by which it serves something else than the whole of one file (qemu-nbd(8) 7.2).
const IN_PART: &[&str] = &["-o", "--offset", "-l", "--load-snapshot", "-s", "--snapshot", "--image-opts"];

/// The file that process `pid` serves, as loop devices name theirs; `None` if that is no `qemu-nbd`, or if
/// there is any doubt.
pub(super) fn image(process: &Path) -> Option<String> {
    if fs::read_to_string(process.join("comm")).ok()?.trim() != "qemu-nbd" {
        return None;
    }
    let arguments = fs::read(process.join("cmdline")).ok()?;
    let in_part = |argument: &[u8]| IN_PART.iter().any(|option| argument.starts_with(option.as_bytes()));
    if arguments.split(|byte| *byte == 0).any(in_part) {
        return None;
    }
    let mut written: Option<(u64, u64, PathBuf)> = None;
    for entry in fs::read_dir(process.join("fd")).ok()? {
        let entry = entry.ok()?;
        let info = fs::read_to_string(process.join("fdinfo").join(entry.file_name())).ok()?;
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        if !metadata.is_file() || !is_written(&info)? {
            continue;
        }
        let (device, inode) = (metadata.dev(), metadata.ino());
        if written.as_ref().is_some_and(|(dev, ino, _)| (*dev, *ino) != (device, inode)) {
            return None;
        }
        written = Some((device, inode, entry.path()));
    }
    match recorded(&written?.2) {
        Backing::File(file) => Some(file),
        _ => None,
    }
}

/// Whether the identifier that a device shows was made up for this mapping alone: rbd-nbd does so unless it
/// is given one.
pub(super) fn is_made_up(process: &Path) -> bool {
    let comm = fs::read_to_string(process.join("comm")).unwrap_or_default();
    let arguments = fs::read(process.join("cmdline")).unwrap_or_default();
    comm.trim() == "rbd-nbd"
        && !arguments.split(|byte| *byte == 0).any(|argument| argument.starts_with(b"--cookie"))
}

/// Whether a descriptor was opened for writing (proc(5), fdinfo).
fn is_written(info: &str) -> Option<bool> {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    let flags = i32::from_str_radix(flags.trim(), 8).ok()?;
    Some(flags & libc::O_ACCMODE != libc::O_RDONLY)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_one_file_that_it_writes_is_the_image() {
        let root = tempfile::tempdir().expect("directory");
        let process = root.path().to_owned();
        let serves = |arguments: &str, files: &[(&str, &str)]| {
            for directory in ["fd", "fdinfo"] {
                let _ = fs::remove_dir_all(process.join(directory));
                fs::create_dir(process.join(directory)).expect("directory");
            }
            fs::write(process.join("cmdline"), arguments.replace(' ', "\0")).expect("file");
            for (number, (file, flags)) in files.iter().enumerate() {
                let path = process.join(file);
                fs::OpenOptions::new().create(true).append(true).open(&path).expect("file");
                symlink(path, process.join("fd").join(number.to_string())).expect("link");
                let info = format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t30\n");
                fs::write(process.join("fdinfo").join(number.to_string()), info).expect("file");
            }
            image(&process)
        };
        fs::write(process.join("comm"), "qemu-nbd\n").expect("file");
        let one = serves("qemu-nbd -c /dev/nbd0 a", &[("a", "02100002"), ("base", "0100000")]);
        assert!(one.is_some());
        assert_eq!(serves("qemu-nbd --connect=/dev/nbd1 a", &[("a", "02100002"), ("a", "02100002")]), one);
        assert_ne!(serves("qemu-nbd -c /dev/nbd0 b", &[("b", "02100002")]), one);
        assert_eq!(serves("qemu-nbd -c x a", &[("a", "02100002"), ("log", "0100001")]), None, "two");
        assert_eq!(serves("qemu-nbd -c x a", &[("a", "0100000")]), None, "none");
        assert_eq!(serves("qemu-nbd -c x --offset=512 a", &[("a", "02100002")]), None, "a part");
        fs::write(process.join("comm"), "rbd-nbd\n").expect("file");
        assert_eq!(serves("rbd-nbd map x", &[("log", "02100002")]), None, "another's log");
        assert!(is_made_up(&process));
        serves("rbd-nbd map x --cookie 0001-0009", &[]);
        assert!(!is_made_up(&process));
        fs::write(process.join("comm"), "nbd-client\n").expect("file");
        assert!(!is_made_up(&process), "whoever else gives one means it");
    }
}
