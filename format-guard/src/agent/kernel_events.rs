//! Reads the kernel programs' ring buffer. Records are checked for their size and kind; what they tell is the
//! kernel's own word.

use anyhow::{Context, Result};
use aya::maps::{MapData, RingBuf};
use format_guard_common::event::KernelEvent;
use tokio::{io::unix::AsyncFd, sync::mpsc};
use tracing::warn;

use super::message::Input;
use crate::enforce::report::Report;

pub(super) async fn run(ring: RingBuf<MapData>, inputs: mpsc::Sender<Input>) -> Result<()> {
    // SAFETY: its one descriptor stays open as long as it lives.
    let mut ring = unsafe { AsyncFd::register(ring) }?;
    loop {
        let mut ready = ring.readable_mut().await?;
        let mut reports = Vec::new();
        while let Some(item) = ready.get_inner_mut().next() {
            match parse(&item) {
                Ok(report) => reports.push(report),
                Err(reason) => warn!("the agent dropped an event of the kernel programs: {reason}"),
            }
        }
        ready.clear_ready();
        for report in reports {
            inputs.send(Input::Kernel(report)).await.context("the reconciler is gone")?;
        }
    }
}

/// The report in these bytes, or why there is none.
pub(crate) fn parse(bytes: &[u8]) -> Result<Report, String> {
    if bytes.len() != size_of::<KernelEvent>() {
        return Err(format!("the event has {} bytes", bytes.len()));
    }
    // SAFETY: as many bytes as the structure has, integers only, read without alignment.
    let record = unsafe { bytes.as_ptr().cast::<KernelEvent>().read_unaligned() };
    Report::decode(&record).ok_or_else(|| format!("the kind of the event is unknown ({})", record.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enforce::report::Happened;

    #[test]
    fn only_a_whole_record_is_one() {
        assert!(parse(&[1; size_of::<KernelEvent>() - 1]).is_err());
        assert!(parse(&[]).is_err());
        let mut record = [0; size_of::<KernelEvent>()];
        assert_eq!(parse(&record), Err("the kind of the event is unknown (0)".to_owned()));
        record[0] = 8;
        assert_eq!(parse(&record).map(|report| report.what), Ok(Happened::Gone));
    }
}
