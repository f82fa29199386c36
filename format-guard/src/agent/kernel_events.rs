//! Reads the kernel programs' ring buffer. Records are checked for their size and kind; what they tell is the
//! kernel's own word.

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use format_guard_common::event::KernelEvent;
use tokio::{io::unix::AsyncFd, sync::mpsc};
use tracing::warn;

use super::message::Input;

pub(super) async fn run(ring: RingBuf<MapData>, inputs: mpsc::Sender<Input>) -> Result<()> {
    // SAFETY: its one descriptor stays open as long as it lives.
    let mut ring = unsafe { AsyncFd::register(ring) }?;
    loop {
        let mut ready = ring.readable_mut().await?;
        let mut events = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            if let Some(event) = parse(&item) {
                events.push(event);
            } else {
                warn!("a kernel record of {} bytes was dropped", item.len());
            }
        }
        ready.clear_ready();
        for event in events {
            inputs.send(Input::Kernel(event)).await.context("the reconciler is gone")?;
        }
    }
}

/// The record in these bytes, if they are as long as one.
pub(crate) fn parse(bytes: &[u8]) -> Option<KernelEvent> {
    if bytes.len() != size_of::<KernelEvent>() {
        return None;
    }
    // SAFETY: as many bytes as the structure has, integers only, read without alignment.
    Some(unsafe { bytes.as_ptr().cast::<KernelEvent>().read_unaligned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_record_is_one() {
        assert!(parse(&[0; size_of::<KernelEvent>() - 1]).is_none());
        assert!(parse(&[]).is_none());
        assert_eq!(parse(&[0; size_of::<KernelEvent>()]), Some(KernelEvent::default()));
    }
}
