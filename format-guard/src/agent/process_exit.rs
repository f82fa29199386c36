//! Waits for the end of processes that format or re-label, by pidfd: what they wrote is complete then.

use std::{
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use format_guard_common::event::Process;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{io::unix::AsyncFd, sync::mpsc, time};

use super::message::Input;
use crate::process::{start_of, tick};

/// How long the kernel's record of the exit status may lag behind the end that the pidfd shows.
const PATIENCE: Duration = Duration::from_millis(200);

/// Asks for ends to be told.
#[derive(Clone)]
pub struct Watcher(mpsc::UnboundedSender<Process>);

/// Who is to be watched.
pub(super) type Watched = mpsc::UnboundedReceiver<Process>;

impl Watcher {
    /// A watcher, and what its task reads.
    #[must_use]
    pub fn new() -> (Self, Watched) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Tells the end of `process` to the reconciler.
    pub fn watch(&self, process: Process) {
        // A closed channel means that the agent stops.
        let _ = self.0.send(process);
    }
}

pub(super) async fn run(mut watched: Watched, inputs: mpsc::Sender<Input>) -> Result<()> {
    while let Some(process) = watched.recv().await {
        let inputs = inputs.clone();
        tokio::spawn(async move {
            let fd = wait(process).await;
            let status = || fd.as_ref().and_then(|fd| status_of(fd.as_fd()));
            // First with patience, for the status to arrive; then whatever is known. A closed channel means
            // that the agent stops.
            let _ = inputs.send(Input::Ended { process, status: status(), last: false }).await;
            time::sleep(PATIENCE).await;
            let _ = inputs.send(Input::Ended { process, status: status(), last: true }).await;
        });
    }
    Err(anyhow::anyhow!("nobody asks for ends any more")).context("the reconciler is gone")
}

/// Returns when the process has ended, with its pidfd; at once where it cannot be seen.
async fn wait(process: Process) -> Option<OwnedFd> {
    let fd = open(process)?;
    // SAFETY: its one descriptor stays open as long as it lives.
    let fd = unsafe { AsyncFd::register(fd) }.ok()?;
    // Readable once the process has ended (pidfd_open(2)).
    let _ = fd.readable().await;
    Some(fd.into_inner())
}

/// Wait status of a process that has ended and was waited for, where the kernel keeps it with the pidfd
/// (Linux 6.15: `PIDFD_GET_INFO` with `PIDFD_INFO_EXIT`, include/uapi/linux/pidfd.h).
fn status_of(fd: BorrowedFd<'_>) -> Option<u32> {
    /// `struct pidfd_info` in its first version: 64 bytes.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const EXIT: u64 = 1 << 3;
    // _IOWR(0xff, 11, struct pidfd_info)
    const GET_INFO: libc::c_ulong = 3 << 30 | (size_of::<Info>() as libc::c_ulong) << 16 | 0xff << 8 | 0x0b;
    const { assert!(size_of::<Info>() == 64) };
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the kernel writes no more than the size that the command names.
    let answer = unsafe { libc::ioctl(fd.as_raw_fd(), GET_INFO, &raw mut info) };
    (answer == 0 && info.mask & EXIT != 0).then_some(info.exit_code.cast_unsigned())
}

/// A pidfd of this very process: its id may be another's by now.
fn open(process: Process) -> Option<OwnedFd> {
    let pid = Pid::from_raw(process.tgid.cast_signed())?;
    let fd = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    (start_of(process.tgid)? == ticks(process.started)).then_some(fd)
}

/// Nanoseconds in the kernel's user-visible ticks, as it rounds them itself (`nsec_to_clock_t`).
fn ticks(nanoseconds: u64) -> u64 {
    nanoseconds / tick()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::identity;

    #[tokio::test]
    async fn a_process_that_ended_is_told_and_its_status_where_the_kernel_keeps_it() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read x; exit 3"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("sh");
        let process = identity(child.id()).expect("it runs");
        let waiting = tokio::spawn(wait(process));
        // It opens the pidfd, then waits.
        tokio::task::yield_now().await;
        drop(child.stdin.take());
        let fd = waiting.await.expect("waited").expect("a pidfd");
        child.wait().expect("waited");
        let status = status_of(fd.as_fd());
        assert!(matches!(status, None | Some(0x300)), "{status:?}");
    }
}
