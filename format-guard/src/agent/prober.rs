//! Probes devices: one probe at a time per device, each with a deadline, each in a process of its own.
//!
//! A read that hangs in the kernel cannot be cut off, and a process does not end before the last of its threads has
//! come back from there. So the agent reads no device itself: it runs its own program as `format-guard probe` and
//! leaves one that hangs behind. Its device stays without an answer; no other device waits for it, nor does the agent's
//! stop. A few run at a time: thousands at once would take the processors from whoever puts the rules.
//! What parses a device's hostile content is not what holds the records either.

use std::{
    collections::HashMap,
    path::PathBuf,
    process::Stdio,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{metrics::Metrics, reconciler::Input};
use crate::volume::{
    Dev,
    probe::{Finding, ProbeError},
    sysfs::Device,
};

/// Probes that run at a time, those that take long not counted.
const AT_A_TIME: usize = 8;
/// When a probe takes long: the device hangs, or lags, and costs nobody a processor.
const LONG: Duration = Duration::from_secs(1);
/// Longest answer that is read, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// What came back of a probe of one attachment.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The device.
    pub dev: Dev,
    /// The attachment that was probed.
    pub diskseq: u64,
    /// When the probe began: what was there before may have been read.
    pub begun: Instant,
    /// What it holds, or why that is not known.
    pub result: Result<Finding, ProbeError>,
}

/// Asks for probes.
#[derive(Clone)]
pub struct Prober {
    program: PathBuf,
    /// Milliseconds: may be changed at run time.
    deadline: Arc<AtomicU64>,
    answers: mpsc::UnboundedSender<Answer>,
    metrics: Metrics,
    /// Devices being probed; true: to be probed once more, as something has changed meanwhile.
    busy: Arc<Mutex<HashMap<Dev, bool>>>,
    places: Arc<Semaphore>,
}

/// The answers, before they are passed on.
pub(super) type Answers = mpsc::UnboundedReceiver<Answer>;

impl Prober {
    /// A prober that runs `program probe` and gives each device so long.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, deadline: Duration, metrics: Metrics) -> (Self, Answers) {
        // One answer per device at most is under way.
        let (answers, receiver) = mpsc::unbounded_channel();
        let prober = Self {
            program: program.into(),
            deadline: Arc::default(),
            answers,
            metrics,
            busy: Arc::default(),
            places: Arc::new(Semaphore::new(AT_A_TIME)),
        };
        prober.set_deadline(deadline);
        (prober, receiver)
    }

    /// Gives each device so long from now on.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline.store(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Devices that are being probed, those that hang among them.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
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
            let (answer, hanging) = self.in_its_place(&device).await;
            // A closed channel means that the agent stops.
            let _ = self.answers.send(answer);
            if let Some(mut child) = hanging {
                // Its device is free again when it has come back. That it ends is all that is waited for.
                let _ = child.wait().await;
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

    /// Waits for a place, and gives it back when the probe is over, or takes long.
    async fn in_its_place(&self, device: &Device) -> (Answer, Option<Child>) {
        // Never closed.
        let place = self.places.acquire().await;
        let probe = self.once_or_hanging(device);
        tokio::pin!(probe);
        if let Ok(answer) = timeout(LONG, &mut probe).await {
            return answer;
        }
        drop(place);
        probe.await
    }

    /// Probes a device now, beside what else is under way; for an operator who waits.
    pub async fn once(&self, device: &Device) -> Answer {
        self.once_or_hanging(device).await.0
    }

    /// The answer; with the process, if that has not ended.
    async fn once_or_hanging(&self, device: &Device) -> (Answer, Option<Child>) {
        let begun = Instant::now();
        let (result, hanging) = self.read(device).await;
        self.metrics.probed(&result, begun.elapsed());
        (Answer { dev: device.dev, diskseq: device.diskseq, begun, result }, hanging)
    }

    async fn read(&self, device: &Device) -> (Result<Finding, ProbeError>, Option<Child>) {
        let deadline = Duration::from_millis(self.deadline.load(Ordering::Relaxed));
        let spawned = Command::new(&self.program)
            .arg("probe")
            .args([&device.name, &device.dev.to_string(), &device.size.to_string()])
            .env_clear()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => return (Err(ProbeError::Library(format!("cannot start a probe: {error}"))), None),
        };
        match timeout(deadline, answer_of(&mut child)).await {
            Ok(Ok(answer)) => (answer, None),
            Ok(Err(error)) => (Err(ProbeError::Library(format!("the probe broke off: {error:#}"))), None),
            Err(_) => {
                // Where it hangs in the kernel it dies when it comes back.
                let _ = child.start_kill();
                (Err(ProbeError::Deadline), Some(child))
            }
        }
    }
}

async fn answer_of(child: &mut Child) -> Result<Result<Finding, ProbeError>> {
    let output = child.stdout.take().context("no output")?;
    let mut text = Vec::new();
    output.take(MAX_ANSWER).read_to_end(&mut text).await?;
    let status = child.wait().await?;
    serde_json::from_slice(&text).with_context(|| format!("it ended with {status}"))
}

pub(super) async fn run(mut answers: Answers, inputs: mpsc::Sender<Input>) -> Result<()> {
    while let Some(answer) = answers.recv().await {
        inputs.send(Input::Probed(answer)).await.context("the reconciler is gone")?;
    }
    Ok(())
}
