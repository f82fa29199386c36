//! The one task that changes records and rules.
//!
//! Whatever happens comes in as an [`Input`]; the pure transition function says what follows; then, in this order and
//! no other: the record is stored, the rule is put, and the rest is done. If storing fails, nothing is loosened.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

use anyhow::{Context, Result};
use format_guard_common::{
    Operation, Reason, Rule, State,
    event::{EventKind, KernelEvent, Process},
};
use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::{
    formatter_end::Watcher,
    now,
    prober::{Answer, Prober},
};
use crate::{
    api::{self, Failure, FailureKind},
    config::Mode,
    enforce::{Enforcer, canary, lsm::PartReport, rule},
    record::{
        Formatter, Permit, Record, Seconds,
        store::{HistoryEvent, Refusal, Store},
        transition::{self, Effect, Event, Report},
    },
    volume::{
        Dev, VolumeId,
        marks::{Found, Mark},
        sysfs::{Device, Sysfs},
    },
};

/// Longest permit that is given, in seconds: a week.
const MAX_PERMIT: u64 = 7 * 24 * 3600;
/// Longest reason that is kept, in bytes.
const MAX_REASON: usize = 1000;
/// Ends of processes that are remembered until their pidfd tells, too.
const MAX_ENDS: usize = 4096;

/// What the reconciler reacts to.
pub enum Input {
    /// A block device appeared or changed.
    Changed {
        /// Its kernel name.
        name: String,
    },
    /// A block device is gone.
    Removed {
        /// Its kernel name.
        name: String,
    },
    /// The kernel programs tell something.
    Kernel(KernelEvent),
    /// A probe came back.
    Probed(Answer),
    /// A watched process has ended.
    Ended {
        /// Which.
        process: Process,
        /// Told for the last time: its exit status will not come any more.
        last: bool,
    },
    /// Time to compare the world with the records.
    Tick,
    /// A client asks.
    Asked(Question, oneshot::Sender<Result<Reply, Failure>>),
}

/// What clients ask.
pub enum Question {
    /// The state of the guard.
    Status,
    /// Every known volume.
    Volumes,
    /// One volume.
    Volume(String),
    /// The device that holds a volume.
    Device(String),
    /// Take what a probe found just now for the volume's content.
    Adopt {
        /// Which volume.
        volume: String,
        /// What was found.
        found: Vec<Found>,
        /// Its marks.
        marks: Vec<Mark>,
        /// Who asks.
        uid: u32,
    },
    /// Allow one re-format.
    Permit {
        /// The request.
        request: api::PermitRequest,
        /// Who asks.
        uid: u32,
    },
    /// The history.
    Events(api::EventsQuery),
}

/// What clients are answered.
pub enum Reply {
    /// To [`Question::Status`].
    Status(Box<api::Status>),
    /// To [`Question::Volumes`].
    Volumes(api::Volumes),
    /// To everything about one volume.
    Volume(Box<api::Volume>),
    /// To [`Question::Device`].
    Device(Box<Device>),
    /// To [`Question::Events`].
    Events(api::Events),
}

/// What the reconciler needs to know of where it runs.
pub struct World {
    /// The block devices.
    pub sysfs: Sysfs,
    /// This boot.
    pub boot: String,
    /// Refuse nothing.
    pub audit: bool,
    /// Why protection is less than it should be.
    pub degraded: Vec<String>,
    /// Records were lost: nothing is armed.
    pub never_arm: bool,
}

/// The task's state.
pub struct Reconciler<E> {
    store: Box<dyn Store + Send>,
    enforcer: E,
    world: World,
    prober: Prober,
    watcher: Watcher,
    devices: BTreeMap<Dev, Device>,
    /// Records of the volumes that are present.
    records: HashMap<VolumeId, Record>,
    /// Exit statuses that the kernel told, until the pidfd does.
    ends: HashMap<Process, u32>,
    parts: Vec<PartReport>,
    repaired: u64,
}

impl<E: Enforcer> Reconciler<E> {
    /// A reconciler that has not looked at the world yet.
    pub fn new(
        store: Box<dyn Store + Send>,
        enforcer: E,
        world: World,
        prober: Prober,
        watcher: Watcher,
    ) -> Self {
        Self {
            store,
            enforcer,
            world,
            prober,
            watcher,
            devices: BTreeMap::new(),
            records: HashMap::new(),
            ends: HashMap::new(),
            parts: Vec::new(),
            repaired: 0,
        }
    }

    /// Gives every present device its rule, before anything is attached.
    pub fn start(&mut self) -> Result<()> {
        self.compare_with_sysfs()?;
        for (dev, entry) in self.enforcer.holders() {
            let device = self.devices.get(&Dev::from_kernel(dev));
            if device.is_none_or(|device| device.diskseq != entry.diskseq) {
                self.enforcer.release_holder(dev)?;
            }
        }
        for dev in mounted_devices() {
            self.apply_to_device(dev, &Event::Mounted);
        }
        Ok(())
    }

    /// The kernel programs, to attach them.
    pub fn enforcer_mut(&mut self) -> &mut E {
        &mut self.enforcer
    }

    /// What is attached, once the canary has proven it.
    pub fn proven(&mut self, parts: Vec<PartReport>) {
        self.parts = parts;
        self.tell(String::new(), "started", "format-guard is in force, proven by its canary".to_owned());
    }

    /// Works until every sender is gone, or the kernel's maps fail.
    pub fn run(&mut self, mut inputs: mpsc::Receiver<Input>) -> Result<()> {
        while let Some(input) = inputs.blocking_recv() {
            self.handle(input)?;
        }
        Ok(())
    }

    fn handle(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Changed { name } => {
                if let Some(device) = self.world.sysfs.device(&name) {
                    self.device_changed(device);
                }
            }
            Input::Removed { name } => {
                let gone = self.devices.values().find(|device| device.name == name).map(|device| device.dev);
                // The number may be another device's already.
                if let Some(dev) = gone
                    && self.world.sysfs.by_number(dev).is_none_or(|device| device.name != name)
                {
                    self.device_gone(dev);
                }
            }
            Input::Kernel(event) => self.kernel_event(&event),
            Input::Probed(answer) => self.probed(answer),
            Input::Ended { process, last } => self.ended(process, last),
            Input::Tick => {
                self.compare_with_sysfs()?;
                self.repair();
                let ids: Vec<VolumeId> = self
                    .records
                    .values()
                    .filter(|record| transition::waits(record))
                    .map(|record| record.id.clone())
                    .collect();
                for id in ids {
                    self.apply(&id, Event::Tick);
                }
            }
            Input::Asked(question, reply) => {
                // The client may have gone.
                let _ = reply.send(self.answer(question));
            }
        }
        Ok(())
    }

    // Devices

    fn compare_with_sysfs(&mut self) -> Result<()> {
        let present = self.world.sysfs.devices().context("cannot list the block devices in sysfs")?;
        let gone: Vec<Dev> = self
            .devices
            .keys()
            .filter(|dev| !present.iter().any(|device| device.dev == **dev))
            .copied()
            .collect();
        for dev in gone {
            self.device_gone(dev);
        }
        for device in present {
            let known = self.devices.get(&device.dev);
            if known != Some(&device) && (known.is_some() || device.size > 0) {
                self.device_changed(device);
            }
        }
        Ok(())
    }

    /// A device appeared, or something about it changed.
    fn device_changed(&mut self, device: Device) {
        let dev = device.dev;
        let id = device.identity.id.clone();
        let known = self.devices.get(&dev);
        // Without a medium it holds no volume.
        if device.size == 0 {
            if known.is_some() {
                self.device_gone(dev);
            }
            return;
        }
        let same = known.is_some_and(|old| old.identity.id == id && old.diskseq == device.diskseq);
        if known.is_some() && !same {
            self.device_gone(dev);
        }
        if same {
            self.devices.insert(dev, device);
            let probed_by_now = self.records.get(&id).is_some_and(|record| record.state != State::Exempt);
            if probed_by_now {
                self.probe(&id);
            }
            return;
        }
        if !self.records.contains_key(&id) {
            match self.load(&device) {
                Ok(record) => drop(self.records.insert(id.clone(), record)),
                Err(error) => {
                    // Judged as unknown until the store answers: formatters are refused.
                    error!("{}: its record cannot be read: {error}", device.name);
                    return;
                }
            }
        }
        info!(device = device.name, volume = %id, "attached");
        let diskseq = device.diskseq;
        self.devices.insert(dev, device);
        // A format that began while no agent ran comes first: it may still go on, and must not be refused half-way.
        if let Some(entry) = self.enforcer.holder(dev.to_kernel()).filter(|entry| entry.diskseq == diskseq) {
            self.format_began(dev, entry.process, &entry.comm, entry.cgroup);
            if entry.mounted != 0 {
                self.apply(&id, Event::Mounted);
            }
        }
        let boot = self.world.boot.clone();
        self.apply(&id, Event::Attached { boot, records_lost: self.world.never_arm });
    }

    fn load(&self, device: &Device) -> Result<Record> {
        let identity = &device.identity;
        let mut record = match self.store.get(&identity.id)? {
            Some(record) => record,
            None => Record::new(identity.id.clone(), identity.origin.clone(), identity.weak, now()),
        };
        record.origin.clone_from(&identity.origin);
        Ok(record)
    }

    fn device_gone(&mut self, dev: Dev) {
        let Some(device) = self.devices.remove(&dev) else { return };
        info!(device = device.name, volume = %device.identity.id, "detached");
        for result in
            [self.enforcer.remove_rule(dev.to_kernel()), self.enforcer.release_holder(dev.to_kernel())]
        {
            if let Err(error) = result {
                error!("{error}");
            }
        }
        let id = device.identity.id;
        if !self.devices.values().any(|other| other.identity.id == id) {
            self.records.remove(&id);
        }
    }

    fn probe(&self, id: &VolumeId) {
        if let Some(device) = self.devices.values().find(|device| device.identity.id == *id) {
            self.prober.ask(device);
        }
    }

    fn probed(&mut self, answer: Answer) {
        // Of an attachment that is no more it says nothing.
        let Some(device) = self.devices.get(&answer.dev).filter(|device| device.diskseq == answer.diskseq)
        else {
            return;
        };
        let id = device.identity.id.clone();
        self.apply(&id, Event::Probed(answer.result));
    }

    // Records

    fn apply_to_device(&mut self, dev: Dev, event: &Event) {
        if let Some(device) = self.devices.get(&dev) {
            let id = device.identity.id.clone();
            self.apply(&id, event.clone());
        }
    }

    /// One step of one record: stored, then ruled, then the rest.
    fn apply(&mut self, id: &VolumeId, event: Event) {
        let Some(old) = self.records.get(id) else { return };
        let at = now();
        let (mut new, effects) = transition::next(old, event, at);
        let told: Vec<HistoryEvent> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Report(report) => Some(history(at, id, report)),
                _ => None,
            })
            .collect();
        for event in &told {
            info!(volume = %id, kind = event.kind, "{}", event.text);
        }
        if (new != *old || !told.is_empty())
            && let Err(error) = self.store.put(&new, &told)
        {
            error!("{id}: cannot be stored: {error}");
            if matches!(new.state, State::Blank | State::Permitted) {
                // Armed before allowed: what is not on disk is not allowed.
                new = old.clone();
                new.cause = format!("the store failed: {error}");
                new.state = if old.ever_formatted { State::Formatted } else { State::Unverified };
            }
        }
        self.records.insert(id.clone(), new);
        self.put_rules(id);
        for effect in effects {
            match effect {
                Effect::Probe => self.probe(id),
                Effect::ReleaseHolder => self.release(id),
                Effect::Report(_) => {}
            }
        }
    }

    fn rules(&self, id: &VolumeId) -> Vec<Rule> {
        let Some(record) = self.records.get(id) else { return Vec::new() };
        self.devices
            .values()
            .filter(|device| device.identity.id == *id)
            .map(|device| rule::of_record(record, device.dev.to_kernel(), device.diskseq, self.world.audit))
            .collect()
    }

    fn put_rules(&mut self, id: &VolumeId) {
        for rule in self.rules(id) {
            if let Err(error) = self.enforcer.put_rule(&rule) {
                error!("{id}: {error}");
            }
        }
    }

    fn release(&mut self, id: &VolumeId) {
        let devices: Vec<u32> = self.rules(id).iter().map(|rule| rule.dev).collect();
        for dev in devices {
            if let Err(error) = self.enforcer.release_holder(dev) {
                error!("{id}: {error}");
            }
        }
    }

    /// Puts back rules that are missing, and takes up formats whose event was lost.
    fn repair(&mut self) {
        let ruled = self.enforcer.ruled();
        let missing: Vec<VolumeId> = self
            .devices
            .values()
            .filter(|device| !ruled.contains(&device.dev.to_kernel()))
            .map(|device| device.identity.id.clone())
            .collect();
        for id in missing {
            warn!("{id}: its rule was missing");
            self.repaired += 1;
            self.put_rules(&id);
        }
        for dev in ruled.into_iter().filter(|dev| !self.devices.contains_key(&Dev::from_kernel(*dev))) {
            if let Err(error) = self.enforcer.remove_rule(dev) {
                error!("{error}");
            }
        }
        for (dev, entry) in self.enforcer.holders() {
            let dev = Dev::from_kernel(dev);
            let Some(record) =
                self.devices.get(&dev).and_then(|device| self.records.get(&device.identity.id))
            else {
                continue;
            };
            if matches!(record.state, State::Blank | State::Permitted) {
                warn!("{}: the event of a format was lost", record.id);
                self.repaired += 1;
                self.format_began(dev, entry.process, &entry.comm, entry.cgroup);
            }
        }
    }

    // What the kernel programs tell

    fn kernel_event(&mut self, event: &KernelEvent) {
        let dev = Dev::from_kernel(event.dev);
        match EventKind::from_raw(event.kind) {
            Some(EventKind::Denied) => self.refused(event, "denied"),
            Some(EventKind::WouldDeny) => self.refused(event, "would-deny"),
            Some(EventKind::FormatBegan) => self.format_began(dev, event.process, &event.comm, event.cgroup),
            Some(EventKind::FormatEnded) => {
                if self.ends.len() < MAX_ENDS {
                    self.ends.insert(event.process, event.status);
                }
            }
            Some(EventKind::Mounted) => {
                if let Some(device) = self.world.sysfs.by_number(dev)
                    && self.devices.get(&dev) != Some(&device)
                {
                    self.device_changed(device);
                }
                if self.devices.get(&dev).is_some_and(|device| device.diskseq == event.diskseq) {
                    self.apply_to_device(dev, &Event::Mounted);
                }
            }
            Some(EventKind::Relabelled) => self.tool_at_work(dev, event.process, &Event::Relabelled),
            Some(EventKind::OwnerWiped) => self.tool_at_work(dev, event.process, &Event::OwnerWiped),
            Some(EventKind::Gone) => {
                if self.world.sysfs.by_number(dev).is_none() {
                    self.device_gone(dev);
                }
            }
            None => warn!("the kernel told of something unknown ({})", event.kind),
        }
    }

    /// A tool that was let through: when it has ended, the volume is probed.
    fn tool_at_work(&mut self, dev: Dev, process: Process, event: &Event) {
        let record = self.devices.get(&dev).and_then(|device| self.records.get(&device.identity.id));
        // It tells of each of its writes.
        if record.is_some_and(|record| !record.tool_at_work) {
            self.apply_to_device(dev, event);
            self.watcher.watch(process);
        }
    }

    fn format_began(&mut self, dev: Dev, process: Process, comm: &[u8; 16], cgroup: u64) {
        let formatter = Formatter {
            pid: process.tgid,
            started: process.started,
            comm: text_of(comm),
            exe: exe_of(process.tgid),
            cgroup,
            at: now(),
        };
        self.apply_to_device(dev, &Event::FormatBegan(formatter));
        self.watcher.watch(process);
    }

    fn ended(&mut self, process: Process, last: bool) {
        let status = self.ends.get(&process).copied();
        if status.is_none() && !last {
            return;
        }
        if last {
            self.ends.remove(&process);
        }
        let formats = |record: &Record| {
            record.state == State::Formatting
                && record.running
                && record.formatter.as_ref().is_some_and(|formatter| {
                    formatter.pid == process.tgid && formatter.started == process.started
                })
        };
        let ended: Vec<VolumeId> =
            self.records.values().filter(|record| formats(record)).map(|record| record.id.clone()).collect();
        for id in ended {
            self.apply(&id, Event::FormatEnded(status));
        }
        let worked_on: Vec<VolumeId> = self
            .records
            .values()
            .filter(|record| record.tool_at_work)
            .map(|record| record.id.clone())
            .collect();
        for id in worked_on {
            self.apply(&id, Event::ToolEnded);
        }
    }

    /// One log line and one event for a refusal.
    fn refused(&mut self, event: &KernelEvent, kind: &str) {
        let dev = Dev::from_kernel(event.dev);
        let device = self.devices.get(&dev);
        let name = device.map_or_else(|| dev.to_string(), |device| device.name.clone());
        let volume = device.map_or_else(String::new, |device| device.identity.id.to_string());
        let record = device.and_then(|device| self.records.get(&device.identity.id));
        let holds = record.map_or_else(|| "unknown".to_owned(), describe);
        let reason = Reason::from_raw(event.reason).map_or("unknown", Reason::name);
        let operation = Operation::from_raw(event.operation).map_or("unknown", Operation::name);
        let comm = text_of(&event.comm);
        // Its refusal is the proof that it was made for.
        if comm == canary::NAME && device.is_none() {
            return;
        }
        let verb = if kind == "denied" { "refused" } else { "would have been refused" };
        let text = format!(
            "{comm} (pid {}) {verb} to {operation} {name} ({holds}): {reason}; to allow one re-format: format-guard \
             volume permit /dev/{name} --reason TEXT",
            event.process.tgid
        );
        let refusal = Refusal {
            reason: reason.to_owned(),
            operation: operation.to_owned(),
            offset: event.offset,
            length: event.length,
            device: name,
            pid: event.process.tgid,
            comm,
            exe: exe_of(event.process.tgid),
            cgroup: event.cgroup,
        };
        warn!(
            volume,
            kind,
            reason,
            operation,
            device = refusal.device,
            pid = refusal.pid,
            comm = refusal.comm,
            exe = refusal.exe.as_deref().unwrap_or("?"),
            cgroup = refusal.cgroup,
            offset = refusal.offset,
            length = refusal.length,
            "{text}"
        );
        let told =
            HistoryEvent { id: 0, at: now(), volume, kind: kind.to_owned(), text, refusal: Some(refusal) };
        if let Err(error) = self.store.tell(&[told]) {
            error!("an event cannot be stored: {error}");
        }
    }

    fn tell(&mut self, volume: String, kind: &str, text: String) {
        let told = HistoryEvent { id: 0, at: now(), volume, kind: kind.to_owned(), text, refusal: None };
        if let Err(error) = self.store.tell(&[told]) {
            error!("an event cannot be stored: {error}");
        }
    }

    // What clients ask

    fn answer(&mut self, question: Question) -> Result<Reply, Failure> {
        Ok(match question {
            Question::Status => Reply::Status(Box::new(self.status()?)),
            Question::Volumes => Reply::Volumes(self.volumes()?),
            Question::Volume(selector) => {
                let id = self.select(&selector)?;
                Reply::Volume(Box::new(self.volume(&id)?))
            }
            Question::Device(selector) => {
                let id = self.select(&selector)?;
                Reply::Device(Box::new(self.device_of(&id)?.clone()))
            }
            Question::Adopt { volume, found, marks, uid } => {
                let id = self.select(&volume)?;
                self.device_of(&id)?;
                self.apply(&id, Event::Adopted { found, marks, uid });
                Reply::Volume(Box::new(self.volume(&id)?))
            }
            Question::Permit { request, uid } => Reply::Volume(Box::new(self.permit(&request, uid)?)),
            Question::Events(query) => {
                let volume = query.volume.map(|selector| self.select(&selector)).transpose()?;
                let events = self
                    .store
                    .history(query.after, query.limit, volume.as_ref().map(VolumeId::as_str))
                    .map_err(|error| failed(&error))?;
                Reply::Events(api::Events { events })
            }
        })
    }

    fn status(&self) -> Result<api::Status, Failure> {
        let counts = self.enforcer.counts();
        let mut by_state: BTreeMap<State, u64> = BTreeMap::new();
        for (id, state) in self.store.list().map_err(|error| failed(&error))? {
            // What is present is known better than it is stored.
            let state = self.records.get(&id).map_or(state, |record| record.state);
            *by_state.entry(state).or_default() += 1;
        }
        Ok(api::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tier: "lsm".to_owned(),
            mode: if self.world.audit { Mode::Audit } else { Mode::Enforce },
            proven: !self.parts.is_empty(),
            degraded: self.world.degraded.clone(),
            programs: self.parts.clone(),
            devices: self.devices.len() as u64,
            volumes: by_state
                .into_iter()
                .map(|(state, count)| api::StateCount { state: state.name().to_owned(), count })
                .collect(),
            judged: counts.judged,
            stale_rules: counts.stale,
            lost_events: counts.lost_events,
            full_maps: counts.full_maps,
            repaired: self.repaired,
        })
    }

    fn volumes(&self) -> Result<api::Volumes, Failure> {
        let ids = self.store.list().map_err(|error| failed(&error))?;
        let volumes = ids.into_iter().map(|(id, _)| self.volume(&id)).collect::<Result<_, _>>()?;
        Ok(api::Volumes { volumes })
    }

    fn volume(&self, id: &VolumeId) -> Result<api::Volume, Failure> {
        let stored;
        let record = if let Some(record) = self.records.get(id) {
            record
        } else {
            stored = self
                .store
                .get(id)
                .map_err(|error| failed(&error))?
                .ok_or_else(|| Failure::new(FailureKind::NotFound, format!("no volume {id} is known")))?;
            &stored
        };
        let devices: Vec<&Device> =
            self.devices.values().filter(|device| device.identity.id == *id).collect();
        Ok(api::Volume::of(record, &devices))
    }

    fn device_of(&self, id: &VolumeId) -> Result<&Device, Failure> {
        self.devices.values().find(|device| device.identity.id == *id).ok_or_else(|| {
            Failure::new(FailureKind::NotFound, format!("volume {id} is not attached here: attach it first"))
        })
    }

    /// The volume that a selector means.
    fn select(&self, selector: &str) -> Result<VolumeId, Failure> {
        if let Some(dev) = selector.strip_prefix("dev=").and_then(Dev::parse) {
            return self.devices.get(&dev).map(|device| device.identity.id.clone()).ok_or_else(|| {
                Failure::new(FailureKind::NotFound, format!("device {dev} holds no volume that is known"))
            });
        }
        let ids = self.store.list().map_err(|error| failed(&error))?;
        let mut matching: Vec<&VolumeId> = Vec::new();
        for (id, _) in &ids {
            if id.as_str() == selector {
                return Ok(id.clone());
            }
            if !selector.is_empty() && id.as_str().starts_with(selector) {
                matching.push(id);
            }
        }
        match matching.as_slice() {
            [one] => Ok((*one).clone()),
            [] => Err(Failure::new(
                FailureKind::NotFound,
                format!("no volume begins with '{selector}': see format-guard volume list"),
            )),
            many => {
                let names: Vec<&str> = many.iter().take(10).map(|id| id.as_str()).collect();
                Err(Failure::new(
                    FailureKind::NotFound,
                    format!("'{selector}' may be any of {}: {}", many.len(), names.join(", ")),
                ))
            }
        }
    }

    fn permit(&mut self, request: &api::PermitRequest, uid: u32) -> Result<api::Volume, Failure> {
        let bad = |text: String| Failure::new(FailureKind::BadRequest, text);
        let reason = request.reason.trim();
        if reason.is_empty() || reason.len() > MAX_REASON {
            return Err(bad(format!("a permit needs a reason of 1 to {MAX_REASON} bytes")));
        }
        if !(1..=MAX_PERMIT).contains(&request.seconds) {
            return Err(bad(format!(
                "a permit lasts 1 to {MAX_PERMIT} seconds (a week), not {}",
                request.seconds
            )));
        }
        let id = self.select(&request.volume)?;
        self.device_of(&id)?;
        let state = self.records.get(&id).map(|record| record.state);
        match state {
            Some(State::Blank) => {
                return Err(bad(format!("{id} is blank: a format may begin without a permit")));
            }
            Some(State::Exempt) => return Err(bad(format!("{id} is exempt: nothing is refused on it"))),
            _ => {}
        }
        let at = now();
        let permit =
            Permit { reason: reason.to_owned(), uid, at, expires: at + request.seconds.cast_signed() };
        self.apply(&id, Event::Permitted(permit));
        let volume = self.volume(&id)?;
        if volume.state != State::Permitted.name() {
            return Err(Failure::new(FailureKind::Failed, format!("no permit: {}", volume.cause)));
        }
        Ok(volume)
    }
}

fn failed(error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureKind::Failed, error.to_string())
}

fn history(at: Seconds, id: &VolumeId, report: &Report) -> HistoryEvent {
    HistoryEvent {
        id: 0,
        at,
        volume: id.to_string(),
        kind: report.kind.to_owned(),
        text: report.text.clone(),
        refusal: None,
    }
}

/// What a volume holds, in a few words.
fn describe(record: &Record) -> String {
    match &record.content {
        Some(content) => format!("{} {}", record.state.name(), content.name()),
        None => record.state.name().to_owned(),
    }
}

fn text_of(comm: &[u8; 16]) -> String {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(comm.len());
    String::from_utf8_lossy(&comm[..end]).chars().filter(|c| !c.is_control()).collect()
}

fn exe_of(pid: u32) -> Option<String> {
    Some(fs::read_link(format!("/proc/{pid}/exe")).ok()?.to_string_lossy().into_owned())
}

/// Devices with a mounted file system, as the init process sees them.
fn mounted_devices() -> Vec<Dev> {
    use std::os::unix::fs::MetadataExt;

    let text = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            // proc_pid_mountinfo(5): the third field is the device; btrfs has an anonymous one there, and its real
            // one as the source after the hyphen.
            let dev = Dev::parse(line.split(' ').nth(2)?)?;
            if dev.major != 0 {
                return Some(dev);
            }
            let source =
                line.split(" - ").nth(1)?.split(' ').nth(1).filter(|path| path.starts_with("/dev/"))?;
            Some(Dev::from_user(fs::metadata(source).ok()?.rdev()))
        })
        .collect()
}

#[cfg(test)]
mod tests;
