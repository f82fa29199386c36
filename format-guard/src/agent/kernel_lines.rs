//! Hands the lines of the kernel programs to the agent's log. No line changes what the agent does.

use anyhow::Result;
use tokio::io::unix::AsyncFd;

use crate::enforce::bpf::lines::Lines;

pub(super) async fn run(lines: Lines) -> Result<()> {
    // SAFETY: its one descriptor stays open as long as it lives.
    let mut lines = unsafe { AsyncFd::register(lines) }?;
    loop {
        let mut ready = lines.readable_mut().await?;
        ready.get_inner_mut().flush();
        ready.clear_ready();
    }
}
