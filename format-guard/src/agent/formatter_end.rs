//! Waits for the end of processes that format or re-label, by pidfd: what they wrote is complete then.

use std::{os::fd::OwnedFd, time::Duration};

use anyhow::{Context, Result};
use format_guard_common::event::Process;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{io::unix::AsyncFd, sync::mpsc, time};

use super::reconciler::Input;
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
            wait(process).await;
            // First with patience, for the status to arrive; then whatever is known. A closed channel means that
            // the agent stops.
            let _ = inputs.send(Input::Ended { process, last: false }).await;
            time::sleep(PATIENCE).await;
            let _ = inputs.send(Input::Ended { process, last: true }).await;
        });
    }
    Err(anyhow::anyhow!("nobody asks for ends any more")).context("the reconciler is gone")
}

/// Returns when the process has ended, at once where it cannot be seen.
async fn wait(process: Process) {
    let Some(fd) = open(process) else { return };
    // SAFETY: its one descriptor stays open as long as it lives.
    if let Ok(fd) = unsafe { AsyncFd::register(fd) } {
        // Readable once the process has ended (pidfd_open(2)).
        let _ = fd.readable().await;
    }
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
