//! Which container a process runs in, by its control group: what container runtimes name their groups after.

use std::{
    fs::{self, File},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt,
    },
};

use crate::cgroup;

/// Hexadecimal digits of a container's id, as Docker, containerd, CRI-O and Podman make them.
const ID: usize = 64;

/// The container's id; `None` for a process of the host. The process may have ended: then its group tells, if
/// that is still there.
pub(super) fn of(pid: u32, cgroup: u64) -> Option<String> {
    let path = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok().or_else(|| path_of(cgroup))?;
    in_path(&path)
}

/// The id of a process's control group (v2): the inode of its directory.
pub(super) fn group_of(pid: u32) -> Option<u64> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(fs::metadata(cgroup::mount()?.join(path)).ok()?.ino())
}

/// The last id in a path, alone or between a runtime's prefix and suffix (`cri-containerd-ID.scope`).
fn in_path(path: &str) -> Option<String> {
    path.rsplit(['/', '-', '.', ':', '\n'])
        .find(|part| part.len() == ID && part.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map(str::to_owned)
}

/// The path of the control group with this id, which is its file handle on cgroupfs (kernel 5.5 and later).
fn path_of(cgroup: u64) -> Option<String> {
    /// `struct file_handle` with an id of kernfs (`FILEID_KERNFS`, include/linux/exportfs.h).
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        id: u64,
    }
    let mount = File::open(cgroup::mount()?).ok()?;
    let mut handle = Handle { bytes: 8, kind: 0xfe, id: cgroup };
    // SAFETY: a file_handle with as many bytes behind its header as it says.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast(), libc::O_PATH | libc::O_CLOEXEC)
    };
    if fd < 0 {
        return None;
    }
    // SAFETY: a new descriptor, owned by nobody else.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()?;
    Some(path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "3f4e1c2a9b8d7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f";

    #[test]
    fn runtimes_name_their_groups_after_the_container() {
        for path in [
            format!("0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{CONTAINER}.scope\n"),
            format!("0::/system.slice/docker-{CONTAINER}.scope\n"),
            format!("0::/kubepods/besteffort/pod8d2f0f6e-1111-2222-3333-444455556666/{CONTAINER}\n"),
            format!("0::/machine.slice/libpod-{CONTAINER}.scope/container\n"),
        ] {
            assert_eq!(in_path(&path).as_deref(), Some(CONTAINER), "{path}");
        }
    }

    #[test]
    fn a_process_of_the_host_is_in_none() {
        assert_eq!(in_path("0::/system.slice/ssh.service\n"), None);
        assert_eq!(in_path("0::/\n"), None);
    }

    #[test]
    fn a_group_that_is_gone_has_no_path() {
        assert_eq!(path_of(u64::MAX), None);
    }
}
