//! Whether a process has a device in its hands.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::OpenOptionsExt,
};

use format_guard_common::event::Process;
use rustix::fs::{AtFlags, FileType, StatxFlags, statx};

use super::mappings;
use crate::{
    process::{start_of, tick},
    volume::Dev,
};

/// Whether a process has one of these devices open, or mapped for writing; `None` where that cannot be seen:
/// it has ended, or is not ours to look at.
pub(super) fn has_open(process: Process, devices: &[Dev]) -> Option<bool> {
    let pid = process.tgid;
    let path = format!("/proc/{pid}/fd");
    let flags = libc::O_DIRECTORY | libc::O_CLOEXEC;
    let directory = OpenOptions::new().read(true).custom_flags(flags).open(&path).ok()?;
    let numbers: Vec<_> =
        fs::read_dir(&path).ok()?.map(|entry| Some(entry.ok()?.file_name())).collect::<Option<_>>()?;
    // The list is of this very process: the id was not reused while the list was read.
    if start_of(pid)? != process.started / tick() {
        return None;
    }
    let opened = numbers.iter().any(|number| {
        // The server of a remote file is not asked: it may be away.
        let found = statx(&directory, number.as_os_str(), AtFlags::STATX_DONT_SYNC, StatxFlags::TYPE);
        found.is_ok_and(|found| {
            let dev = Dev { major: found.stx_rdev_major, minor: found.stx_rdev_minor };
            FileType::from_raw_mode(found.stx_mode.into()) == FileType::BlockDevice && devices.contains(&dev)
        })
    });
    Some(opened || mappings::of(pid).iter().any(|mapping| devices.contains(&mapping.dev)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::identity;

    #[test]
    fn what_this_process_does_not_have_open_it_does_not_have_open() {
        let this = identity(std::process::id()).expect("this process");
        let nobodys = Dev { major: 4000, minor: 1 };
        assert_eq!(has_open(this, &[nobodys]), Some(false));
        assert_eq!(
            has_open(Process { started: this.started + tick(), ..this }, &[nobodys]),
            None,
            "another's id"
        );
    }
}
