//! Probes devices: one probe at a time per device, each with a deadline.
//!
//! A read that hangs cannot be cut off: it costs its thread, and its device stays without an answer, until the kernel
//! lets it go. It never holds up another device nor the agent's stop.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::reconciler::Input;
use crate::volume::{
    Dev,
    probe::{Finding, ProbeError, probe},
    sysfs::Device,
};

/// What came back of a probe of one attachment.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The device.
    pub dev: Dev,
    /// The attachment that was probed.
    pub diskseq: u64,
    /// What it holds, or why that is not known.
    pub result: Result<Finding, ProbeError>,
}

/// Asks for probes.
#[derive(Clone)]
pub struct Prober {
    deadline: Duration,
    answers: mpsc::UnboundedSender<Answer>,
    /// Devices being probed; true: to be probed once more, as something has changed meanwhile.
    busy: Arc<Mutex<HashMap<Dev, bool>>>,
}

/// The answers, before they are passed on.
pub(super) type Answers = mpsc::UnboundedReceiver<Answer>;

impl Prober {
    /// A prober that gives each device so long.
    #[must_use]
    pub fn new(deadline: Duration) -> (Self, Answers) {
        // One answer per device at most is under way.
        let (answers, receiver) = mpsc::unbounded_channel();
        (Self { deadline, answers, busy: Arc::default() }, receiver)
    }

    /// Probes a device; the answer goes to the reconciler.
    pub fn ask(&self, device: &Device) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(again) = busy.get_mut(&device.dev) {
            *again = true;
            return;
        }
        busy.insert(device.dev, false);
        drop(busy);
        let (prober, device) = (self.clone(), device.clone());
        let handle = tokio::runtime::Handle::try_current();
        if let Ok(handle) = handle {
            drop(handle.spawn(async move { prober.answer(device).await }));
        } else {
            tracing::error!("no runtime to probe {} in", device.name);
        }
    }

    async fn answer(self, device: Device) {
        loop {
            let result = self.once(&device).await;
            let hangs = result == Err(ProbeError::Deadline);
            // A closed channel means that the agent stops.
            let _ = self.answers.send(Answer { dev: device.dev, diskseq: device.diskseq, result });
            if hangs {
                // Its thread still sits in the read: it frees the device itself.
                return;
            }
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            match busy.get_mut(&device.dev) {
                Some(again) if *again => *again = false,
                _ => {
                    busy.remove(&device.dev);
                    return;
                }
            }
        }
    }

    /// Probes a device now, beside what else is under way; for an operator who waits.
    pub async fn once(&self, device: &Device) -> Result<Finding, ProbeError> {
        let (sender, receiver) = oneshot::channel();
        let (busy, device) = (Arc::clone(&self.busy), device.clone());
        let spawned = thread::Builder::new().name(format!("probe {}", device.name)).spawn(move || {
            let result = probe(&device.name, device.dev, device.size);
            if sender.send(result).is_err() {
                busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&device.dev);
            }
        });
        if let Err(error) = spawned {
            return Err(ProbeError::Library(format!("cannot start a thread: {error}")));
        }
        match timeout(self.deadline, receiver).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(ProbeError::Library("the probe broke off".to_owned())),
            Err(_) => Err(ProbeError::Deadline),
        }
    }
}

pub(super) async fn run(mut answers: Answers, inputs: mpsc::Sender<Input>) -> Result<()> {
    while let Some(answer) = answers.recv().await {
        inputs.send(Input::Probed(answer)).await.context("the reconciler is gone")?;
    }
    Ok(())
}
