//! Probes devices: one probe at a time per device, each with a deadline, each in a process of its own.
//!
//! A read that hangs in the kernel cannot be cut off, and a process does not end before the last of its
//! threads has come back from there. So the agent reads no device itself: it runs its own program as
//! `format-guard probe` and leaves one that hangs behind. Its device stays without an answer; no other device
//! waits for it, nor does the agent's stop. A few run at a time: thousands at once would take the processors
//! from whoever puts the rules. What parses a device's hostile content is not what holds the records either.

mod places;
mod workers;

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tokio::{
    process::Child,
    sync::mpsc,
    time::{sleep_until, timeout},
};

use places::{Place, Places, Rank};
use workers::Workers;

use super::{
    message::{Input, ProbeAnswer},
    metrics::Metrics,
};
use crate::volume::{
    Dev,
    copies::{Wanted, hexadecimal},
    device::Device,
    probe::{Answered, ProbeError, Request},
};

/// Probes that run at a time, those that take long not counted.
const AT_A_TIME: usize = 8;
/// When a probe takes long: the device hangs, or lags, and costs nobody a processor.
const LONG: Duration = Duration::from_secs(1);
/// For how long a device that has changed is left alone before it is probed for another change: each time for
/// twice as long, while it changes without a pause. Whoever opens it for writing and closes it again changes
/// it.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long whoever has formatted a device may take to take it away without meeting a probe.
const SOON: Duration = Duration::from_millis(200);
/// How long LVM may take to wipe what it makes for itself.
const LATER: Duration = Duration::from_secs(5);

/// Attachments: a device and its sequence number, with what is to be probed next of each.
type Busy = HashMap<(Dev, u64), Option<Asked>>;

/// Asks for probes.
#[derive(Clone)]
pub struct Prober {
    workers: Workers,
    /// Milliseconds: may be changed at run time.
    deadline: Arc<AtomicU64>,
    answers: mpsc::UnboundedSender<ProbeAnswer>,
    metrics: Metrics,
    /// Attachments being probed; with a device: to be probed once more, as this one, which has changed
    /// meanwhile.
    busy: Arc<Mutex<Busy>>,
    /// Devices that have changed a short while ago.
    changes: Arc<Mutex<HashMap<Dev, Changes>>>,
    places: Places,
}

/// What is probed, and how much of it is to be copied.
type Asked = (Device, Option<Wanted>);

/// How often a device is probed that changes again and again.
struct Changes {
    diskseq: u64,
    /// Until then it is left alone.
    until: Instant,
    pause: Duration,
    /// It is probed then, as this one.
    waiting: Option<Asked>,
}

/// The answers, before they are passed on.
pub(super) type Answers = mpsc::UnboundedReceiver<ProbeAnswer>;

impl Prober {
    /// A prober that runs `program probe` and gives each device so long.
    #[must_use]
    pub fn new(program: impl Into<PathBuf>, deadline: Duration, metrics: Metrics) -> (Self, Answers) {
        // One answer per device at most is under way.
        let (answers, receiver) = mpsc::unbounded_channel();
        let prober = Self {
            workers: Workers::new(program.into()),
            deadline: Arc::default(),
            answers,
            metrics,
            busy: Arc::default(),
            changes: Arc::default(),
            places: Places::new(AT_A_TIME),
        };
        prober.set_deadline(deadline);
        (prober, receiver)
    }

    /// Gives each device so long from now on.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline.store(u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Has a process wait for the first device.
    pub fn prepare(&self) {
        self.workers.prepare();
    }

    /// Somebody waits for what a device holds: it comes before all others.
    pub fn hurry(&self, device: &Device) {
        self.places.hurry((device.dev, device.diskseq));
    }

    /// Devices that are being probed, those that hang among them.
    #[must_use]
    pub fn under_way(&self) -> u64 {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner).len() as u64
    }

    /// Probes a device; the answer goes to the reconciler.
    pub fn ask(&self, device: &Device, copied: Option<Wanted>) {
        self.ask_as(device, copied, Rank::First);
    }

    fn ask_as(&self, device: &Device, copied: Option<Wanted>, rank: Rank) {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(again) = busy.get_mut(&(device.dev, device.diskseq)) {
            *again = Some((device.clone(), copied));
            return;
        }
        busy.insert((device.dev, device.diskseq), None);
        drop(busy);
        let (prober, asked) = (self.clone(), (device.clone(), copied));
        let handle = tokio::runtime::Handle::try_current();
        if let Ok(handle) = handle {
            drop(handle.spawn(async move { prober.answer(asked, rank).await }));
        } else {
            tracing::error!("no runtime to probe {} in", device.name);
        }
    }

    /// Probes a device in a moment.
    pub fn ask_soon(&self, device: &Device, copied: Option<Wanted>) {
        self.ask_after(SOON, device, copied);
    }

    /// Probes a device later: the program that makes the device may take it away again at once.
    pub fn ask_later(&self, device: &Device, copied: Option<Wanted>) {
        self.ask_after(LATER, device, copied);
    }

    fn ask_after(&self, time: Duration, device: &Device, copied: Option<Wanted>) {
        let (prober, asked) = (self.clone(), (device.clone(), copied));
        let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
        drop(handle.spawn(async move {
            tokio::time::sleep(time).await;
            prober.ask(&asked.0, asked.1);
        }));
    }

    /// Probes a device that has changed: at once, or when it was left alone for a while.
    pub fn ask_changed(&self, device: &Device, copied: Option<Wanted>) {
        let now = Instant::now();
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        changes.retain(|_, changes| changes.waiting.is_some() || now < changes.until + changes.pause);
        let known = changes.get_mut(&device.dev).filter(|changes| changes.diskseq == device.diskseq);
        let mut pause = SHORTEST_PAUSE;
        if let Some(changes) = known {
            if now < changes.until {
                if changes.waiting.replace((device.clone(), copied)).is_none() {
                    self.ask_at(changes.until, device.dev);
                }
                return;
            }
            pause = LONGEST_PAUSE.min(changes.pause * 2);
        }
        let fresh = Changes { diskseq: device.diskseq, until: now + pause, pause, waiting: None };
        changes.insert(device.dev, fresh);
        drop(changes);
        self.ask_as(device, copied, Rank::Again);
    }

    /// Probes what waits under this number then.
    fn ask_at(&self, then: Instant, dev: Dev) {
        let prober = self.clone();
        let Ok(handle) = tokio::runtime::Handle::try_current() else { return };
        drop(handle.spawn(async move {
            sleep_until(then.into()).await;
            let mut changes = prober.changes.lock().unwrap_or_else(PoisonError::into_inner);
            let waiting = changes.get_mut(&dev).and_then(|changes| changes.waiting.take());
            drop(changes);
            if let Some((device, copied)) = waiting {
                prober.ask_changed(&device, copied);
            }
        }));
    }

    async fn answer(self, (mut device, mut copied): Asked, mut rank: Rank) {
        loop {
            let place = self.places.acquire((device.dev, device.diskseq), rank).await;
            // A request that came while this one waited is answered by the same probe.
            if let Some(newest) = self.asked_again(&device) {
                (device, copied) = newest;
            }
            let (answer, hanging) = self.in_its_place(place, &device, copied).await;
            // A closed channel means that the agent stops.
            let _ = self.answers.send(answer);
            if let Some(mut child) = hanging {
                // Its device is free again when it has come back. That it ends is all that is waited for.
                let _ = child.wait().await;
            }
            let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
            let attachment = (device.dev, device.diskseq);
            let Some(newest) = busy.get_mut(&attachment).and_then(Option::take) else {
                busy.remove(&attachment);
                return;
            };
            (device, copied) = newest;
            rank = Rank::Again;
        }
    }

    /// Takes the newest request for the device, if one came since the last call.
    fn asked_again(&self, device: &Device) -> Option<Asked> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        busy.get_mut(&(device.dev, device.diskseq)).and_then(Option::take)
    }

    /// Gives the place back when the probe is over, or takes long.
    async fn in_its_place(
        &self,
        place: Place,
        device: &Device,
        copied: Option<Wanted>,
    ) -> (ProbeAnswer, Option<Child>) {
        let probe = self.once_or_hanging(device, copied);
        tokio::pin!(probe);
        if let Ok(answer) = timeout(LONG, &mut probe).await {
            return answer;
        }
        drop(place);
        probe.await
    }

    /// Probes a device now, beside what else is under way; for an operator who waits.
    pub async fn once(&self, device: &Device) -> ProbeAnswer {
        self.once_or_hanging(device, None).await.0
    }

    /// The answer; with the process, if that has not ended.
    async fn once_or_hanging(&self, device: &Device, copied: Option<Wanted>) -> (ProbeAnswer, Option<Child>) {
        let begun = Instant::now();
        let (Answered { result, twice, copy }, hanging) = self.read(device, copied).await;
        self.metrics.probed(&result, begun.elapsed());
        let copy = copy.as_deref().and_then(hexadecimal::bytes);
        (ProbeAnswer { dev: device.dev, diskseq: device.diskseq, begun, result, twice, copy }, hanging)
    }

    async fn read(&self, device: &Device, copied: Option<Wanted>) -> (Answered, Option<Child>) {
        let failed = |error| Answered { result: Err(error), twice: false, copy: None };
        let broken = |text: String| (failed(ProbeError::Library(text)), None);
        let deadline = Duration::from_millis(self.deadline.load(Ordering::Relaxed));
        let request = Request { name: device.name.clone(), dev: device.dev, size: device.size, copied };
        let mut worker = self.workers.take();
        loop {
            let mut asked = match worker {
                Ok(worker) => worker,
                Err(error) => return broken(format!("cannot start a probe: {error}")),
            };
            match timeout(deadline, asked.ask(&request)).await {
                Ok(Ok(answer)) => {
                    self.workers.give_back(asked);
                    return (answer, None);
                }
                Ok(Err(_)) if asked.may_have_ended() => worker = self.workers.start(),
                Ok(Err(error)) => return broken(format!("the probe broke off: {error:#}")),
                Err(_) => return (failed(ProbeError::Deadline), Some(asked.kill())),
            }
        }
    }
}

pub(super) async fn run(mut answers: Answers, inputs: mpsc::Sender<Input>) -> Result<()> {
    while let Some(answer) = answers.recv().await {
        inputs.send(Input::Probed(answer)).await.context("the reconciler is gone")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, path::Path};

    use tokio::time::sleep;

    use super::*;
    use crate::volume::identity::Identity;

    fn device(diskseq: u64, size: u64) -> Device {
        let identity = Identity::strong("t", "1", "");
        Device {
            name: "t".into(),
            dev: Dev { major: 7, minor: 1 },
            diskseq,
            size,
            identity,
            below: Vec::new(),
        }
    }

    /// A program in the place of a probe: writes down for which size it was asked, and waits while there is a
    /// file `wait`.
    fn prober(directory: &Path) -> (Prober, Answers) {
        let program = directory.join("probe");
        let place = directory.display();
        let text = format!(
            "#!/bin/sh\nPATH=/bin:/usr/bin\nwhile read line; do\nsize=${{line#*size\\\":}}\necho ${{size%%,*}} >> {place}/asked\n\
             while [ -e {place}/wait ]; do sleep 0.01; done\n\
             echo '{{\"result\":{{\"Ok\":\"Blank\"}},\"twice\":true,\"copy\":null}}'\ndone\n"
        );
        fs::write(&program, text).expect("program");
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("executable");
        Prober::new(program, Duration::from_mins(1), Metrics::default())
    }

    fn asked(directory: &Path) -> Vec<String> {
        let text = fs::read_to_string(directory.join("asked")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    async fn wait_for_asked(directory: &Path, count: usize) {
        let start = Instant::now();
        while asked(directory).len() < count {
            assert!(start.elapsed() < Duration::from_secs(30), "{:?}", asked(directory));
            sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn what_is_asked_for_again_is_probed_as_it_is_then() {
        let directory = tempfile::tempdir().expect("directory");
        let (prober, mut answers) = prober(directory.path());
        fs::write(directory.path().join("wait"), "").expect("file");
        prober.ask(&device(5, 1), None);
        wait_for_asked(directory.path(), 1).await;
        for size in [2, 3] {
            prober.ask(&device(5, size), None);
        }
        // Another medium under the number waits for nobody.
        prober.ask(&device(6, 4), None);
        wait_for_asked(directory.path(), 2).await;
        fs::remove_file(directory.path().join("wait")).expect("removed");
        let mut seen = Vec::new();
        for _ in 0..3 {
            seen.push(answers.recv().await.expect("an answer").diskseq);
        }
        seen.sort_unstable();
        assert_eq!((asked(directory.path()).join(" "), seen), ("1 4 3".to_owned(), vec![5, 5, 6]));
        assert_eq!(prober.under_way(), 0);
    }

    #[tokio::test]
    async fn what_is_asked_for_again_before_it_has_its_turn_is_probed_once() {
        let directory = tempfile::tempdir().expect("directory");
        let (prober, mut answers) = prober(directory.path());
        fs::write(directory.path().join("wait"), "").expect("file");
        for diskseq in 1..=AT_A_TIME as u64 {
            prober.ask(&device(diskseq, 1), None);
        }
        wait_for_asked(directory.path(), AT_A_TIME).await;
        for size in [7, 8, 9] {
            prober.ask(&device(100, size), None);
            tokio::task::yield_now().await;
        }
        fs::remove_file(directory.path().join("wait")).expect("removed");
        for _ in 0..=AT_A_TIME {
            answers.recv().await.expect("an answer");
        }
        while prober.under_way() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(asked(directory.path())[AT_A_TIME..], ["9"]);
    }

    #[tokio::test]
    async fn a_device_that_changes_without_a_pause_is_probed_now_and_then_and_once_at_the_end() {
        let directory = tempfile::tempdir().expect("directory");
        let (prober, _answers) = prober(directory.path());
        let start = Instant::now();
        let mut size = 0;
        while start.elapsed() < Duration::from_secs(1) {
            size += 1;
            prober.ask_changed(&device(5, size), None);
            sleep(Duration::from_millis(2)).await;
        }
        let deadline = Duration::from_secs(30);
        while asked(directory.path()).last() != Some(&size.to_string()) {
            assert!(
                start.elapsed() < deadline,
                "the last change is not probed: {:?}",
                asked(directory.path())
            );
            sleep(Duration::from_millis(5)).await;
        }
        // At 0, 0.1, 0.3, 0.7 and 1.5 s.
        assert!(asked(directory.path()).len() <= 6 && size > 20, "{size} {:?}", asked(directory.path()));
    }
}
