//! The one task that changes records and rules.
//!
//! Whatever happens comes in as an [`Input`]; the pure transition function says what follows; then, in this order and
//! no other: the record is stored, the rule is put, and the rest is done. If storing fails, nothing is loosened.

mod answers;
mod batch;
mod comparison;
mod copying;
mod loss;
mod mode;
mod names;
mod paths;
mod proof;
mod protection;
mod reach;
mod refusals;
mod settling;
mod sharing;
mod stacks;
mod unstored;
mod vacated;
mod way_out;

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use format_guard_common::{
    Reason, Rule, State,
    event::{EventKind, FormatOwner, KernelEvent, Process},
};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
};
use tracing::{error, info, warn};

use batch::Batch;
use comparison::Comparison;
use copying::{Copied, Taken};
use names::Names;
use paths::Paths;
use proof::Proof;
use settling::Settler;
use sharing::Sharing;
use unstored::{Change, Unstored};
use vacated::Vacated;

use super::{
    claims::{StoreUpdate, DesiredClaims},
    clocks,
    closing::Closing,
    formatter_end::Watcher,
    holding,
    inputs::Inputs,
    kernel_log::KernelLog,
    kubernetes, mappings,
    metrics::Metrics,
    now,
    prober::{Answer, Prober},
};
use crate::{
    api::{self, Failure},
    config::{Config, MAX_WAIT, RawContent},
    enforce::{Enforcer, error::ProgramStatus, rule, since_boot},
    mode::Mode,
    record::{
        Claim, Formatter, Record, Seconds, Wrote,
        store::{HistoryEvent, Loss, Store},
        transition::{self, Effect, Event, Report},
    },
    volume::{
        Dev, VolumeId,
        copies::Wanted,
        identity::{self, Strength},
        marks::{Found, Mark},
        graph::{DeviceGraph, MAX_DEPTH},
        probe::{Finding, ProbeError},
        device::{Device, Devices},
    },
};

/// Inputs that a resync waits for at most before it goes on.
const INPUTS_BETWEEN: u32 = 16;
/// For how long a formatter waits at most.
const AWAITED: Duration = Duration::from_millis(MAX_WAIT);
/// How long a device without an identity of its own may wait for a node that names it, in seconds: Longhorn makes the
/// node after the device, and no uevent tells of it.
const NAMING: Seconds = 10;
/// Lines of the history that wait to be stored together at most.
const MAX_UNTOLD: usize = 256;
/// Lines that wait while the store takes none: the oldest are dropped.
const MAX_WAITING: usize = 4096;
/// Ends of processes that are remembered until their pidfd tells, too: the oldest is dropped.
const MAX_ENDS: usize = 4096;
/// For how long: of most processes nobody waits for the end. A format whose event was lost is taken up by the resync after.
const ENDS_LAST: Duration = Duration::from_mins(1);
/// How often volumes are forgotten that were not seen for long.
const PRUNE_EVERY: Duration = Duration::from_hours(1);

/// What the reconciler reacts to.
pub enum Input {
    /// A block device appeared or changed.
    Changed {
        /// Its kernel name.
        name: String,
        /// When the kernel's word of it was read.
        told: Instant,
    },
    /// A block device is gone.
    Removed {
        /// Its kernel name.
        name: String,
    },
    /// Somebody has closed a device that he had open for writing.
    ClosedByWriter {
        /// Which.
        dev: Dev,
    },
    /// The kernel programs tell something.
    Kernel(KernelEvent),
    /// A probe came back.
    Probed(Answer),
    /// A watched process has ended.
    Ended {
        /// Which.
        process: Process,
        /// Its wait status, where the kernel keeps it.
        status: Option<u32>,
        /// Told for the last time: its exit status will not come any more.
        last: bool,
    },
    /// Time to compare the world with the records.
    Tick,
    /// The kernel could not tell of all devices that appeared, changed or went.
    UeventsLost,
    /// The store that nodes share, or the way to it, tells something.
    Store(StoreUpdate),
    /// The configuration was read again and is sound.
    Reloaded(Box<Config>),
    /// The agent stops, and is waited for.
    Stop(oneshot::Sender<()>),
    /// A client waits until this device (`dev=MAJOR:MINOR`) is read.
    Settle(String, oneshot::Sender<Result<api::Settled, Failure>>),
    /// A client asks.
    Asked(Question, oneshot::Sender<Result<Reply, Failure>>),
}

/// What clients ask.
pub enum Question {
    /// Whether anybody answers.
    Alive,
    /// The state of the guard.
    Status,
    /// Every known volume.
    Volumes,
    /// One volume.
    Volume(String),
    /// What is copied of a volume.
    Copy(String),
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
        /// Why.
        reason: String,
        /// Who asks.
        uid: u32,
    },
    /// Take whatever is there for its content, though it is no known format.
    AdoptRaw {
        /// Which volume.
        volume: String,
        /// It reads as zeros at both ends.
        zeros: bool,
        /// Why.
        reason: String,
        /// Who asks.
        uid: u32,
    },
    /// Allow one re-purposing.
    Permit {
        /// The request.
        request: api::PermitRequest,
        /// Who asks.
        uid: u32,
    },
    /// Take a permit back.
    Revoke {
        /// The request.
        request: api::ReasonRequest,
        /// Who asks.
        uid: u32,
    },
    /// Take a volume out of the guard.
    Exempt {
        /// The request.
        request: api::ReasonRequest,
        /// Who asks.
        uid: u32,
    },
    /// Delete what is known of a volume.
    Forget {
        /// The request.
        request: api::ReasonRequest,
        /// Who asks.
        uid: u32,
    },
    /// Forget the refusals on a volume's devices.
    Untaint {
        /// The request.
        request: api::ReasonRequest,
        /// Who asks.
        uid: u32,
    },
    /// Keep others from taking the guard away, or let them.
    Protect {
        /// The request.
        request: api::ProtectRequest,
        /// Who asks.
        uid: u32,
    },
    /// Enforce or audit, everywhere or on one volume.
    Mode {
        /// The request.
        request: api::ModeRequest,
        /// Who asks.
        uid: u32,
    },
    /// Arm what reads blank again, though records were lost.
    EndLoss {
        /// The request.
        request: api::EndLossRequest,
        /// Who asks.
        uid: u32,
    },
    /// The history.
    Events(api::EventsQuery),
}

/// What clients are answered.
pub enum Reply {
    /// To [`Question::Alive`].
    Alive,
    /// To [`Question::Status`].
    Status(Box<api::Status>),
    /// To [`Question::Volumes`].
    Volumes(api::Volumes),
    /// To [`Question::Copy`].
    Copy(Box<api::Copy>),
    /// To everything about one volume.
    Volume(Box<api::Volume>),
    /// To [`Question::Device`].
    Device(Box<Device>),
    /// To [`Question::Forget`], [`Question::Untaint`], [`Question::Mode`], [`Question::Protect`] and [`Question::EndLoss`].
    Done(api::Done),
    /// To [`Question::Events`].
    Events(api::Events),
}

/// What the reconciler needs to know of where it runs.
pub struct World {
    /// The block devices.
    pub devices: Devices,
    /// This boot.
    pub boot: String,
    /// Enforce or audit, by the configuration.
    pub mode: Mode,
    /// Audit, whatever anybody has set.
    pub forced_audit: bool,
    /// Why protection is less than it should be.
    pub degraded: Vec<String>,
    /// How long a volume must read blank that may have been formatted unseen, in seconds.
    pub quarantine: Seconds,
    /// Which bytes without a known format are content.
    pub raw_content: RawContent,
    /// Keep others from taking the guard away.
    pub protect: bool,
    /// How long a known formatter waits for a volume to be read.
    pub first_format_wait: Duration,
    /// How often the world is compared with the records.
    pub resync_interval: Duration,
    /// After how many seconds a volume is forgotten that was not seen and never held a format; zero: never.
    pub forget_after: Seconds,
    /// What is copied of each volume that holds a format; nothing, if that is none.
    pub copied: Option<Wanted>,
    /// Ids of volumes that are strict by the configuration, or their beginnings before a `*`.
    pub strict: Vec<String>,
    /// Where kubelet keeps its pods.
    pub kubelet_dir: Option<PathBuf>,
    /// Who tells of closes.
    pub closing: Closing,
    /// Where whoever was refused finds why, if it is to be told there.
    pub kernel_log: Option<KernelLog>,
    /// Who tells refusals to a cluster; what finds no place there is dropped.
    pub cluster: Option<mpsc::Sender<HistoryEvent>>,
}

/// The task's state.
pub struct Reconciler<E> {
    store: Box<dyn Store + Send>,
    enforcer: E,
    world: World,
    prober: Prober,
    watcher: Watcher,
    metrics: Metrics,
    node: kubernetes::Node,
    graph: DeviceGraph,
    /// What an operator has set for the whole guard; outranks the configuration.
    set_mode: Option<mode::Override>,
    /// Records were lost: nothing is armed but by a permit.
    loss: Option<Loss>,
    /// Rules that an earlier agent of this boot left, by kernel `dev_t`; while records are lost.
    pinned: HashMap<u32, Rule>,
    /// The store that nodes share, if they do.
    sharing: Option<Sharing>,
    /// Goes up with every line of the history.
    told: watch::Sender<u64>,
    /// Records of the volumes that are present.
    records: HashMap<VolumeId, Record>,
    /// Those of volumes that went while somebody formatted them: what came of that is not known before its end.
    departed: HashMap<VolumeId, Record>,
    /// Attachment and first sight (by [`Now::boot`]) of devices that a node may come to name.
    nameless: HashMap<Dev, (u64, Seconds)>,
    /// When the newest format of a device, or of one that shares its bytes, was over: what was read before is what it
    /// overwrote, or half of it.
    format_over: HashMap<Dev, Instant>,
    /// Exit statuses that the kernel told, and when, until the pidfd does.
    ends: HashMap<Process, (u32, Instant)>,
    /// Devices on which a formatter waits, or did a moment ago.
    awaited: HashMap<Dev, Instant>,
    /// Every name of every volume.
    names: Names,
    /// By which of several devices a volume is read.
    paths: HashMap<VolumeId, Paths>,
    /// What is copied of the volumes that are present.
    copies: HashMap<VolumeId, Copied>,
    /// When volumes were forgotten last that were not seen for long.
    pruned: Option<Instant>,
    /// Partitions that were dropped and not deleted.
    vacated: Vec<Vacated>,
    parts: Vec<ProgramStatus>,
    /// When the canary proved them.
    proof: Proof,
    repaired: u64,
    /// An operator lets others take the guard away.
    unprotected: bool,
    /// They are kept from it.
    protected: bool,
    /// Why they are not.
    protect_failure: Option<String>,
    /// Lines of the history that are not stored yet.
    untold: Vec<HistoryEvent>,
    /// The store took none of them: they wait for the next resync.
    untold_waits: bool,
    /// What could not be stored.
    unstored: Unstored,
    /// Of which nothing is on record, and nothing was read yet: stored with what is read first.
    unread: HashSet<VolumeId>,
    /// Who waits until a device is read.
    settlers: Vec<Settler>,
    /// What is put off, while many things happen at once.
    batch: Option<Batch>,
    /// What is compared with sysfs at the moment.
    comparison: Option<Comparison>,
    /// How often uevents were lost.
    lost_uevents: u64,
    /// How long the newest kernel event waited.
    lag: Duration,
}

impl<E: Enforcer> Reconciler<E> {
    /// A reconciler that has not looked at the world yet.
    pub fn new(
        store: Box<dyn Store + Send>,
        enforcer: E,
        world: World,
        prober: Prober,
        watcher: Watcher,
        metrics: Metrics,
    ) -> Self {
        let node = kubernetes::Node::new(world.kubelet_dir.clone());
        Self {
            store,
            enforcer,
            world,
            node,
            prober,
            watcher,
            metrics,
            graph: DeviceGraph::default(),
            set_mode: None,
            loss: None,
            pinned: HashMap::new(),
            sharing: None,
            told: watch::Sender::new(0),
            records: HashMap::new(),
            departed: HashMap::new(),
            nameless: HashMap::new(),
            format_over: HashMap::new(),
            ends: HashMap::new(),
            awaited: HashMap::new(),
            names: Names::default(),
            paths: HashMap::new(),
            copies: HashMap::new(),
            pruned: None,
            vacated: Vec::new(),
            parts: Vec::new(),
            proof: Proof::default(),
            repaired: 0,
            unprotected: false,
            protected: false,
            protect_failure: None,
            untold: Vec::new(),
            untold_waits: false,
            unstored: Unstored::default(),
            unread: HashSet::new(),
            settlers: Vec::new(),
            batch: None,
            comparison: None,
            lost_uevents: 0,
            lag: Duration::ZERO,
        }
    }

    /// Shares its records with other nodes from now on, by this way to their store. `required`: the host is not ready without.
    pub fn share(&mut self, desired_claims: DesiredClaims, required: bool) {
        self.sharing = Some(Sharing::new(desired_claims, required));
    }

    /// Under which lease of that store an earlier agent has claimed volumes.
    pub fn lease(&self) -> Option<u64> {
        let lease = self.enforcer.lease();
        (lease.number != 0).then_some(lease.id)
    }

    /// Gives every present device its rule, before anything is attached.
    pub fn start(&mut self) -> Result<()> {
        self.take_up_mode()?;
        self.take_up_loss()?;
        self.take_up_names()?;
        let gone = |(lock_dev, entry): &(u32, FormatOwner)| {
            let device = self.world.devices.by_number(Dev::from_kernel(*lock_dev));
            device.is_none_or(|device| device.diskseq != entry.diskseq)
                || self.world.devices.by_number(Dev::from_kernel(entry.dev)).is_none()
        };
        let unseen: Vec<_> = self.enforcer.owners().into_iter().filter(gone).collect();
        if !unseen.is_empty() {
            self.doubt_what_is_armed()?;
        }
        for (lock_dev, _) in unseen {
            self.enforcer.release_owner(lock_dev)?;
        }
        self.batch = Some(Batch::default());
        self.compare_with_sysfs()?;
        for dev in mounted_devices() {
            self.apply_to_device(dev, &Event::Mounted);
        }
        self.carry_out_batch();
        self.remove_rules_of_nobody();
        Ok(())
    }

    /// A mount proves a format, also one whose event was lost.
    fn repair_mounts(&mut self) {
        for dev in mounted_devices() {
            let record = self.graph.id(dev).and_then(|id| self.records.get(id));
            if record.is_some_and(transition::is_mount_untold) {
                if self.enforcer.tier().tells_of_mounts() {
                    warn!("device {dev}: the event of a mount was lost");
                    self.repaired += 1;
                }
                self.apply_to_device(dev, &Event::Mounted);
            }
        }
    }

    /// A format that the kernel let through while no agent ran was on a volume that was detached since: on one of these.
    fn doubt_what_is_armed(&mut self) -> Result<()> {
        for id in self.store.armed(&self.world.boot)? {
            if let Some(record) = self.store.get(&id)? {
                let doubted = transition::next(&record, Event::Doubted, clocks()).0;
                if let Err(error) = self.store.put(&doubted, &[]) {
                    self.keep_unstored(doubted, &error);
                }
            }
        }
        Ok(())
    }

    /// Lets nobody begin a format any more that no agent would record. Volumes that are formatted at this moment go on.
    pub fn close(&mut self) {
        self.world.protect = false;
        self.keep_protected();
        self.keep_waited_for(Duration::ZERO);
        let ids: Vec<VolumeId> = self
            .records
            .values()
            .filter(|record| record.armed.is_some())
            .map(|record| record.id.clone())
            .collect();
        for id in ids {
            if let Some((old, new)) = self.disarm(&id) {
                // Untouched: another node, or the next agent, need not wonder.
                self.desire_nothing_more(&new, true);
                self.store_all(vec![Change { old, new, told: Vec::new() }]);
            }
        }
        self.store_unstored();
        self.store_names();
    }

    /// Goes up with every line of the history.
    pub fn told(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    /// The kernel programs, to attach them.
    pub fn enforcer_mut(&mut self) -> &mut E {
        &mut self.enforcer
    }

    /// Puts every rule by another way to refuse.
    pub fn replace_enforcer(&mut self, enforcer: E) -> Result<()> {
        self.enforcer = enforcer;
        self.enforcer.put_unknown(&rule::unknown(self.audits()))?;
        let devices: Vec<Dev> = self.graph.iter().map(|device| device.dev).collect();
        for dev in devices {
            self.put_rule(dev);
        }
        Ok(())
    }

    /// Why protection is less than it could be.
    pub fn degrade(&mut self, reasons: Vec<String>) {
        self.world.degraded.extend(reasons);
    }

    /// What is attached, once the canary has proven it.
    pub fn proven(&mut self, parts: Vec<ProgramStatus>) {
        self.parts = parts;
        self.proof = Proof::of(clocks());
        self.keep_protected();
        self.keep_waited_for(self.world.first_format_wait);
        self.tell(String::new(), "started", "format-guard is in force, proven by its canary".to_owned());
        // Once new ones are judged: none is missed between.
        for mapping in mappings::present() {
            let Some(device) = self.graph.get(mapping.dev) else { continue };
            let text = format!(
                "{} (pid {}) has a shared writable mapping of /dev/{} that is older than this agent: what it stores there \
                 is not judged; end it, or restart it under the guard",
                mapping.comm, mapping.pid, device.name
            );
            let volume = device.identity.id.to_string();
            warn!(volume, pid = mapping.pid, "{text}");
            self.tell(volume, "mapped-before", text);
        }
    }

    /// Works until it is told to stop, or every sender is gone, or the kernel's maps fail.
    pub fn run(&mut self, mut inputs: Inputs, runtime: &Handle) -> Result<()> {
        let mut in_a_row = 0;
        loop {
            let comparing = self.comparison.is_some();
            let input = if comparing { inputs.waiting() } else { inputs.next(runtime) };
            match input {
                Some(Input::Stop(done)) => {
                    self.close();
                    // Whoever asked may have gone.
                    let _ = done.send(());
                    break;
                }
                Some(Input::Probed(first)) => self.probed_together(inputs.together(first)),
                Some(other) => self.handle(other)?,
                None if comparing => {}
                None => break,
            }
            self.answer_settlers();
            // What waits comes first; but a flood does not keep a resync from its end.
            in_a_row += 1;
            if inputs.is_empty() || in_a_row >= INPUTS_BETWEEN {
                in_a_row = 0;
                self.go_on_with_resync();
            }
            if inputs.is_empty() {
                self.store_untold();
            }
        }
        self.store_untold();
        Ok(())
    }

    fn probed_together(&mut self, answers: Vec<Answer>) {
        self.batch = (answers.len() > 1).then(Batch::default);
        for answer in answers {
            self.probed(answer);
        }
        self.carry_out_batch();
    }

    fn handle(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Changed { name, told } => {
                if let Some(device) = self.world.devices.device(&name) {
                    let (dev, diskseq) = (device.dev, device.diskseq);
                    let attached =
                        |devices: &DeviceGraph| devices.get(dev).is_some_and(|one| one.diskseq == diskseq);
                    let known = attached(&self.graph);
                    self.device_changed(device);
                    if !known && attached(&self.graph) {
                        self.metrics.ruled(told.elapsed());
                    }
                }
            }
            Input::Removed { name } => {
                let gone = self.graph.iter().find(|device| device.name == name).map(|device| device.dev);
                // The number may be another device's already.
                if let Some(dev) = gone
                    && self.world.devices.by_number(dev).is_none_or(|device| device.name != name)
                {
                    self.device_gone(dev);
                }
            }
            Input::ClosedByWriter { dev } => self.closed_by_writer(dev),
            Input::Kernel(mut event) => {
                self.enforcer.complete(&mut event);
                self.kernel_event(&event);
            }
            Input::Probed(answer) => self.probed(answer),
            Input::Ended { process, status, last } => self.ended(process, status, last),
            Input::Tick => {
                self.check_lease();
                self.end_mode_in_time();
                self.prove_again();
                self.store_unstored();
                self.store_names();
                self.prune();
                self.forget_ends();
                // One that is under way will do.
                if self.comparison.is_none() {
                    self.begin_resync()?;
                }
            }
            Input::UeventsLost => {
                self.lost_uevents += 1;
                self.begin_resync()?;
            }
            Input::Store(update) => self.store_updated(update),
            Input::Reloaded(config) => self.reloaded(&config)?,
            // The last input of all: see `run`.
            Input::Stop(_) => {}
            Input::Settle(selector, reply) => self.settle_for(&selector, reply),
            Input::Asked(question, reply) => {
                self.store_untold();
                // The client may have gone.
                if let Some((question, reply)) = self.ask_cluster(question, reply) {
                    let _ = reply.send(self.answer(question));
                }
            }
        }
        Ok(())
    }

    // Devices

    /// What sysfs alone does not tell: an array goes by the UUID that its members' superblocks carry, once one of them was
    /// probed; and what a node may come to name goes by no other name meanwhile.
    fn identify(&mut self, device: &mut Device) {
        match device.identity.strength {
            Strength::Pending if device.name.starts_with("md") => {
                let uuid = device.below.iter().find_map(|member| {
                    let content = self.records.get(self.graph.id(member.dev)?)?.content.as_ref()?;
                    content.is_md_member().then(|| content.uuid.clone())?
                });
                if let Some(uuid) = uuid {
                    device.identity = identity::md_of_uuid(&uuid, "a member's superblock");
                }
            }
            Strength::Weak if self.world.devices.names_devices() => {
                let at = clocks().boot;
                let seen = self.nameless.entry(device.dev).or_insert((device.diskseq, at));
                if seen.0 != device.diskseq {
                    *seen = (device.diskseq, at);
                }
                if at < seen.1 + NAMING {
                    device.identity.strength = Strength::Pending;
                }
            }
            Strength::Pending | Strength::Weak | Strength::Strong | Strength::Memory => {}
        }
        self.find_by_names(device);
    }

    /// A device appeared, or something about it changed.
    fn device_changed(&mut self, mut device: Device) {
        self.identify(&mut device);
        let dev = device.dev;
        self.overtake_comparison(dev);
        let id = device.identity.id.clone();
        let known = self.graph.get(dev).cloned();
        if !may_hold(&device) {
            if known.is_some() {
                self.device_gone(dev);
            }
            return;
        }
        let same = known.as_ref().is_some_and(|old| {
            old.identity.id == id
                && old.identity.strength == device.identity.strength
                && old.diskseq == device.diskseq
        });
        // A better identity of the same medium must not take it out of the hands of who formats it.
        let formatting = known.as_ref().is_some_and(|old| {
            old.diskseq == device.diskseq
                && self
                    .records
                    .get(&old.identity.id)
                    .is_some_and(|record| record.state == State::Formatting && record.running)
        });
        if !same && formatting {
            return;
        }
        if known.is_some() && !same {
            // What shows a better name, or none any more, is the same medium.
            let stays =
                known.as_ref().is_some_and(|old| old.diskseq == device.diskseq && device.diskseq != 0);
            self.device_leaves(dev, if stays { Event::Closed } else { Event::Detached });
        }
        if same {
            let moved = known.is_some_and(|old| old.below != device.below || old.size != device.size);
            let mut around: Vec<Dev> = vec![dev];
            if moved {
                around.extend(self.graph.related(dev).into_iter().map(|related| related.dev));
            }
            self.graph.insert(device);
            if moved {
                self.put_rules_around(dev);
                for dev in around {
                    self.put_rule(dev);
                    self.settle(dev);
                }
            }
            let probed_by_now = self.records.get(&id).is_some_and(|record| record.state != State::Exempt);
            if probed_by_now && let Some(device) = self.path(&id) {
                self.prober.ask_changed(device, self.wanted_copy(&id));
            }
            return;
        }
        let mut on_record = true;
        if !self.records.contains_key(&id) {
            self.look_for_copy(&id);
            match self.load(&device) {
                Ok((record, found)) => {
                    on_record = found;
                    self.records.insert(id.clone(), record);
                }
                Err(error) => {
                    // Judged as unknown until the store answers: formatters are refused.
                    error!("{}: its record cannot be read: {error}", device.name);
                    return;
                }
            }
        }
        // Of another medium they are other volumes: a partition is known by its disk.
        let above = self.graph.above(dev);
        for upper in &above {
            self.device_gone(*upper);
        }
        info!(device = device.name, volume = %id, "attached");
        self.share_names(&device);
        let (boot, strength, diskseq) = (self.world.boot.clone(), device.identity.strength, device.diskseq);
        self.occupy(None, Some(&id));
        self.graph.insert(device);
        // A format that began while no agent ran comes first: it may still go on, and must not be refused half-way.
        if let Some(entry) = self.formatter_of(dev) {
            self.format_began(&entry);
            if entry.mounted != 0 {
                self.apply(&id, Event::Mounted);
            }
        }
        let (records_lost, quarantine) = (self.loss.is_some(), self.world.quarantine);
        let claim = self.graph.get(dev).map_or(Claim::Unneeded, |device| self.claim_needed(device));
        let raw_content = self.world.raw_content;
        let event = Event::Attached { boot, strength, records_lost, quarantine, raw_content, claim, diskseq };
        self.step(&id, event);
        self.probe_new_path(&id, dev);
        if !on_record {
            self.take_over_rule(dev);
        }
        self.word_on_disk(&id);
        self.put_rules_around(dev);
        self.put_rules_of_members(&id);
        self.settle(dev);
        for upper in above {
            if let Some(device) = self.world.devices.by_number(upper) {
                self.device_changed(device);
            }
        }
    }

    /// The record of a device's volume, and whether there was one.
    fn load(&mut self, device: &Device) -> Result<(Record, bool)> {
        let identity = &device.identity;
        if let Some(record) = self.departed.remove(&identity.id) {
            return Ok((record, true));
        }
        let weak = identity.strength != Strength::Strong;
        let put_off = self.batch.as_ref().and_then(|batch| batch.record(&identity.id));
        let put_off = put_off.or_else(|| self.unstored.record(&identity.id));
        let stored =
            put_off.map_or_else(|| self.store.get(&identity.id), |record| Ok(Some(record.clone())))?;
        let found = stored.is_some();
        let mut record =
            stored.unwrap_or_else(|| Record::new(identity.id.clone(), identity.origin.clone(), weak, now()));
        // Also where an agent that found nothing on record was killed before it claimed the volume.
        record.new = record.state == State::Unverified && record.armed.is_none();
        record.origin.clone_from(&identity.origin);
        Ok((record, found))
    }

    fn device_gone(&mut self, dev: Dev) {
        self.device_leaves(dev, Event::Detached);
    }

    /// The same; `event` is what that means for a volume to which it was the last path.
    fn device_leaves(&mut self, dev: Dev, event: Event) {
        self.overtake_comparison(dev);
        self.take_up_on(dev);
        let lock_dev = self.lock_dev(dev);
        let around: Vec<Dev> = self.graph.related(dev).into_iter().map(|related| related.dev).collect();
        self.format_over.remove(&dev);
        let Some(device) = self.graph.remove(dev) else { return };
        self.world.closing.watch(dev, None);
        self.occupy(Some(dev), None);
        self.vacate(&device);
        info!(device = device.name, volume = %device.identity.id, "detached");
        if let Err(error) = self.enforcer.remove_rule(dev.to_kernel()) {
            error!("{error}");
        }
        let owner = self.enforcer.owner(lock_dev.0).filter(|entry| entry.dev == dev.to_kernel());
        let held = owner.is_some();
        let id = device.identity.id;
        if self.graph.of(&id).next().is_none() {
            self.step(&id, event);
            self.paths.remove(&id);
            self.copies.remove(&id);
            self.unread.remove(&id);
            if let Some(mut record) = self.records.remove(&id) {
                self.desire_nothing_more(&record, !held);
                if record.state == State::Formatting && record.running && self.departed.len() < MAX_ENDS {
                    record.wrote =
                        record.wrote.max(owner.map_or(Wrote::Bytes, |entry| Wrote::of(entry.wrote)));
                    self.departed.insert(id.clone(), record);
                }
            }
        }
        if let Some(FormatOwner { process, .. }) = owner
            && !self.unstored.release_later(&id, &[(lock_dev.0, process)])
        {
            self.release_owner(lock_dev.0, process);
        }
        for dev in around {
            self.put_rule(dev);
            self.settle(dev);
        }
        self.put_rules_of_members(&id);
    }

    /// What may be formatted is read again when somebody may have written to it: by a road that nobody sees, or as one whose
    /// writes mean nothing by themselves.
    fn closed_by_writer(&self, dev: Dev) {
        let Some(id) = self.graph.id(dev) else { return };
        let armed = self.records.get(id).is_some_and(|record| record.state == State::Blank);
        if armed && let Some(device) = self.path(id) {
            self.prober.ask_changed(device, self.wanted_copy(id));
        }
    }

    /// Somebody waits for what a device holds, whose uevent may still wait behind those of thousands.
    fn hurry(&mut self, dev: Dev) {
        if let Some(device) = self.world.devices.by_number(dev)
            && self.graph.get(dev).is_none_or(|known| known.diskseq != device.diskseq)
        {
            self.device_changed(device);
        }
        let Some(id) = self.graph.id(dev).cloned() else { return };
        self.awaited.retain(|_, told| told.elapsed() < AWAITED);
        self.awaited.insert(dev, Instant::now());
        // It may be left alone for a moment, for whoever has just formatted it.
        if self.records.get(&id).is_some_and(|record| record.state == State::Formatting && record.over) {
            self.probe(&id);
        }
        if let Some(device) = self.path(&id) {
            self.prober.hurry(device);
        }
    }

    fn is_awaited(&self, id: &VolumeId) -> bool {
        let told = |device: &Device| self.awaited.get(&device.dev);
        self.graph.of(id).filter_map(told).any(|told| told.elapsed() < AWAITED)
    }

    fn probe(&self, id: &VolumeId) {
        let Some(device) = self.path(id) else { return };
        let unread = self.records.get(id).is_some_and(|record| record.looked_at.is_none());
        if unread && self.world.devices.is_part_of_lvm(device.dev) {
            self.prober.ask_later(device, self.wanted_copy(id));
        } else {
            self.prober.ask(device, self.wanted_copy(id));
        }
    }

    fn probed(&mut self, answer: Answer) {
        // Of an attachment that is no more it says nothing.
        let Some(device) = self.graph.get(answer.dev).filter(|device| device.diskseq == answer.diskseq)
        else {
            return;
        };
        let id = device.identity.id.clone();
        // Asked before the map was there.
        if self.map_over(&id).is_some_and(|map| map.dev != answer.dev) {
            self.probe(&id);
            return;
        }
        if self.format_over.get(&answer.dev).is_some_and(|over| answer.begun <= *over) {
            self.probe(&id);
            return;
        }
        if let Ok(finding) = &answer.result
            && self.is_anothers(&id, answer.dev, finding)
        {
            self.set_apart(answer.dev, "holds another file system");
            return;
        }
        let is_map = self.is_map(&id, answer.dev);
        if !is_map && self.is_read_by_another_path(&id, answer.dev, answer.result.is_ok()) {
            return;
        }
        if let Ok(finding) = &answer.result {
            self.compare_with_table(answer.dev, finding);
        }
        // The kernel may have let a formatter through whose event is still under way, here or on what lies above: what was
        // read is half of its work.
        if let Some(entry) = self.formatter_around(answer.dev) {
            self.take_up(&entry);
        }
        // Half of a format of what lies on it is no format of its own.
        if self.is_being_formatted_from_above(answer.dev) {
            return;
        }
        let marks = match &answer.result {
            Ok(Finding::Holds { marks, .. }) => marks.clone(),
            _ => Vec::new(),
        };
        if answer.twice {
            self.count_first_reading(&id, &answer.result);
        }
        for id in self.read_by_map(answer.dev) {
            self.apply(&id, Event::Probed(answer.result.clone()));
        }
        self.apply(&id, Event::Probed(answer.result));
        if let Some(packed) = answer.copy {
            let taken = Taken { id, marks, packed };
            match &mut self.batch {
                Some(batch) => batch.copy_later(taken),
                None => self.keep_copies(vec![taken]),
            }
        }
    }

    /// What was read twice counts twice, and is stored and ruled once.
    fn count_first_reading(&mut self, id: &VolumeId, result: &Result<Finding, ProbeError>) {
        let Some(old) = self.records.get(id).filter(|record| record.state == State::Unverified) else {
            return;
        };
        let (new, effects) = transition::next(old, Event::Probed(result.clone()), clocks());
        if effects == [Effect::Probe] {
            self.records.insert(id.clone(), new);
        }
    }

    // Records

    fn apply_to_device(&mut self, dev: Dev, event: &Event) {
        if let Some(id) = self.graph.id(dev) {
            let id = id.clone();
            self.apply(&id, event.clone());
        }
    }

    /// One step of one record: stored, then ruled, then the rest; then what shares bytes with it.
    fn apply(&mut self, id: &VolumeId, event: Event) {
        if self.step(id, event) {
            let first = self.graph.of(id).next().map(|device| device.dev);
            if let Some(dev) = first {
                self.put_rules_around(dev);
                self.settle(dev);
            }
        }
    }

    /// One step of one record alone; whether what it means for others may have changed.
    fn step(&mut self, id: &VolumeId, event: Event) -> bool {
        self.store_untold();
        let Some(old) = self.records.get(id).cloned() else { return false };
        let by_operator = event.is_an_operators();
        let clocks = clocks();
        let at = clocks.wall;
        let (mut new, effects) = transition::next(&old, event, clocks);
        let mut told: Vec<HistoryEvent> = effects
            .iter()
            .filter_map(|effect| match effect {
                Effect::Report(report) => Some(HistoryEvent { by_operator, ..history(at, id, report) }),
                _ => None,
            })
            .collect();
        let was_whole = self.unstored.count() == 0;
        let differs = !new.is_stored_as(&old) || self.unread.contains(id);
        if self.batch.is_none() && told.is_empty() && new.new && transition::is_unread(&new) {
            self.unread.insert(id.clone());
        } else if (differs || !told.is_empty()) && !transition::is_provisional(&new) {
            self.unread.remove(id);
            if let Some(batch) = &mut self.batch {
                batch.store_later(&old, &new, &told);
            } else {
                let change = Change { old: old.clone(), new: new.clone(), told: told.clone() };
                if let Some(held_back) = self.store_all(vec![change]).pop() {
                    new = held_back;
                    told.clear();
                }
            }
        }
        for event in &told {
            info!(volume = %id, kind = event.kind, "{}", event.text);
        }
        let changed = new.state != old.state || new.marks != old.marks || new.content != old.content;
        self.records.insert(id.clone(), new);
        if !told.is_empty() {
            self.told.send_modify(|count| *count += 1);
        }
        self.put_rules(id);
        match &mut self.batch {
            Some(batch) => batch.update_desired_later(id),
            None => self.update_desired(id, false),
        }
        for effect in effects {
            match effect {
                Effect::Probe => match &mut self.batch {
                    Some(batch) => batch.probe_later(id),
                    None => self.probe(id),
                },
                Effect::ProbeSoon if self.is_awaited(id) => self.probe(id),
                Effect::ProbeSoon => {
                    if let Some(device) = self.path(id) {
                        self.prober.ask_soon(device, self.wanted_copy(id));
                    }
                }
                Effect::ReleaseHolder => match &mut self.batch {
                    Some(batch) => batch.release_later(id),
                    None => self.release(id),
                },
                Effect::Untaint => {
                    if let Err(error) = self.forget_refusals(id) {
                        error!("{error}");
                    }
                }
                Effect::Report(_) => {}
            }
        }
        if was_whole && self.unstored.count() > 0 {
            self.disarm_all();
        }
        changed
    }

    fn put_rules(&mut self, id: &VolumeId) {
        let devices: Vec<Dev> = self.graph.of(id).map(|device| device.dev).collect();
        for dev in devices {
            self.put_rule(dev);
        }
    }

    fn release(&mut self, id: &VolumeId) {
        let formatter = self.records.get(id).and_then(|record| record.formatter.clone());
        // Of all that share its bytes another one may be the one that is formatted; and one who began since is taken up,
        // and not let go of.
        let told =
            |entry: &FormatOwner| formatter.as_ref().is_some_and(|formatter| formatter.is(entry.process));
        let owners: Vec<(u32, Process)> = self
            .graph
            .of(id)
            .filter_map(|device| {
                let (lock_dev, _) = self.lock_dev(device.dev);
                let entry = self.enforcer.owner(lock_dev)?;
                (entry.dev == device.dev.to_kernel() && told(&entry)).then_some((lock_dev, entry.process))
            })
            .collect();
        if self.unstored.release_later(id, &owners) {
            return;
        }
        for (lock_dev, process) in owners {
            self.release_owner(lock_dev, process);
        }
    }

    /// Lets go of who is held there, if it is this process.
    fn release_owner(&mut self, lock_dev: u32, process: Process) {
        if self.enforcer.owner(lock_dev).is_some_and(|entry| entry.process == process)
            && let Err(error) = self.enforcer.release_owner(lock_dev)
        {
            error!("{error}");
        }
    }

    /// Puts back rules that are missing, and takes up formats whose event was lost.
    fn repair(&mut self) {
        let ruled: HashSet<u32> = self.enforcer.ruled().into_iter().collect();
        let missing: Vec<Dev> = self
            .graph
            .iter()
            .map(|device| device.dev)
            .filter(|dev| !ruled.contains(&dev.to_kernel()))
            .collect();
        for dev in missing {
            warn!("device {dev}: its rule was missing");
            self.repaired += 1;
            self.put_rule(dev);
        }
        self.remove_rules_of_nobody();
        for (lock_dev, entry) in self.enforcer.owners() {
            let lock_dev = self.graph.get(Dev::from_kernel(lock_dev));
            if lock_dev.is_some_and(|lock_dev| lock_dev.diskseq == entry.diskseq) && self.take_up(&entry) {
                warn!("device {}: the event of a format was lost", Dev::from_kernel(entry.dev));
                self.repaired += 1;
            }
        }
    }

    /// Of devices that are gone: what comes under such a number next would be judged by it.
    fn remove_rules_of_nobody(&mut self) {
        let ruled = self.enforcer.ruled();
        for dev in ruled.into_iter().filter(|dev| self.graph.get(Dev::from_kernel(*dev)).is_none()) {
            if let Err(error) = self.enforcer.remove_rule(dev) {
                error!("{error}");
            }
        }
    }

    /// Records a format that the kernel let through, if that was not told yet.
    fn take_up(&mut self, entry: &FormatOwner) -> bool {
        let dev = Dev::from_kernel(entry.dev);
        let record = self.graph.id(dev).and_then(|id| self.records.get(id));
        let untold = record.is_some_and(|record| transition::is_untold(record, entry.process))
            && !self.unstored.is_to_be_released(entry.process);
        if untold {
            self.format_began(entry);
        }
        untold
    }

    /// Records a format of this very device whose event is still under way, or was lost.
    fn take_up_on(&mut self, dev: Dev) {
        if let Some(entry) = self.formatter_of(dev) {
            self.take_up(&entry);
        }
    }

    // What the kernel programs tell

    fn kernel_event(&mut self, event: &KernelEvent) {
        self.lag = since_boot().saturating_sub(Duration::from_nanos(event.at));
        let dev = Dev::from_kernel(event.dev);
        match EventKind::from_raw(event.kind) {
            Some(EventKind::Denied) => {
                self.refused(event, "denied");
                if event.reason == Reason::NotReadYet as u32 {
                    self.hurry(dev);
                }
            }
            Some(EventKind::Waits) => self.hurry(dev),
            Some(EventKind::WouldDeny) => {
                self.refused(event, "would-deny");
                if self.graph.get(dev).is_some_and(|device| device.diskseq == event.diskseq) {
                    let process = formatter(event.process, &event.comm, event.cgroup);
                    self.tool_at_work(dev, event.process, &Event::LetThrough(process));
                }
            }
            // What was formatted under this number is another volume than the one that is there now: its holder tells of it.
            Some(EventKind::FormatBegan | EventKind::Relabelled | EventKind::OwnerWiped)
                if self.graph.get(dev).is_none_or(|device| device.diskseq != event.diskseq) => {}
            Some(EventKind::FormatBegan) => self.format_began(&FormatOwner {
                process: event.process,
                dev: event.dev,
                wrote: event.reason,
                comm: event.comm,
                cgroup: event.cgroup,
                ..FormatOwner::default()
            }),
            Some(EventKind::FormatEnded) => {
                if self.ends.len() >= MAX_ENDS
                    && let Some(oldest) =
                        self.ends.iter().min_by_key(|(_, (_, told))| *told).map(|(process, _)| *process)
                {
                    self.ends.remove(&oldest);
                }
                self.ends.insert(event.process, (event.status, Instant::now()));
            }
            Some(EventKind::Mounted) => {
                if let Some(device) = self.world.devices.by_number(dev)
                    && self.graph.get(dev).is_none_or(|known| known.diskseq != device.diskseq)
                {
                    self.device_changed(device);
                }
                if self.graph.get(dev).is_some_and(|device| device.diskseq == event.diskseq) {
                    // What was mounted is what was formatted, also where the event of that was lost.
                    self.take_up_on(dev);
                    self.apply_to_device(dev, &Event::Mounted);
                }
            }
            Some(EventKind::Relabelled) => {
                self.tool_at_work(dev, event.process, &Event::Relabelled(event.process));
            }
            Some(EventKind::OwnerWiped) => {
                self.tool_at_work(dev, event.process, &Event::OwnerWiped(event.process));
            }
            Some(EventKind::Gone) => {
                if self.world.devices.by_number(dev).is_none() {
                    self.device_gone(dev);
                }
            }
            Some(EventKind::Tampered) => self.tampered(event),
            None => warn!("the kernel told of something unknown ({})", event.kind),
        }
    }

    /// A tool that was let through: when it has ended, the volume is probed.
    fn tool_at_work(&mut self, dev: Dev, process: Process, event: &Event) {
        let record = self.graph.id(dev).and_then(|id| self.records.get(id));
        // It tells of each of its writes.
        if record.is_some_and(|record| record.tool_at_work != Some(process)) {
            self.apply_to_device(dev, event);
            self.watcher.watch(process);
        }
    }

    fn format_began(&mut self, entry: &FormatOwner) {
        let process = entry.process;
        let formatter = formatter(process, &entry.comm, entry.cgroup);
        let wrote = Wrote::of(entry.wrote);
        self.apply_to_device(Dev::from_kernel(entry.dev), &Event::FormatBegan { formatter, wrote });
        self.watcher.watch(process);
    }

    /// One that is no known formatter may live for months: what it has closed is not its own any more. Looked at by the resync
    /// alone: some close a volume for a moment in the middle of their work.
    fn see_whether_held(&mut self, id: &VolumeId) {
        let Some(record) = self.records.get(id).filter(|record| transition::is_held(record)) else { return };
        let Some(process) = record.formatter.as_ref().map(Formatter::process) else { return };
        let devices: Vec<Dev> = self.graph.of(id).map(|device| device.dev).collect();
        // It may have opened the disk of a partition.
        let around = devices.iter().flat_map(|dev| self.graph.related(*dev)).map(|related| related.dev);
        let all: Vec<Dev> = around.chain(devices.iter().copied()).collect();
        if holding::has_open(process, &all) == Some(false) {
            self.format_ended(id, process, None);
        }
    }

    fn ended(&mut self, process: Process, status: Option<u32>, last: bool) {
        let status = self.ends.get(&process).map(|(status, _)| *status).or(status);
        if status.is_none() && !last {
            return;
        }
        if last {
            self.ends.remove(&process);
        }
        let formats = |record: &Record| {
            record.running && record.formatter.as_ref().is_some_and(|formatter| formatter.is(process))
        };
        let ended: Vec<VolumeId> =
            self.records.values().filter(|record| formats(record)).map(|record| record.id.clone()).collect();
        // What no event tells of is asked.
        if !ended.is_empty() && !self.enforcer.tier().tells_of_mounts() {
            self.repair_mounts();
        }
        for id in ended {
            self.format_ended(&id, process, status);
        }
        self.ended_after_departure(process, status);
        let worked_on: Vec<VolumeId> = self
            .records
            .values()
            .filter(|record| record.tool_at_work == Some(process))
            .map(|record| record.id.clone())
            .collect();
        for id in worked_on {
            self.apply(&id, Event::ToolEnded);
        }
    }

    /// Of processes for whose end nobody has waited.
    fn forget_ends(&mut self) {
        let lasts = ENDS_LAST.max(3 * self.world.resync_interval);
        self.ends.retain(|_, (_, told)| told.elapsed() < lasts);
    }

    /// Forgets volumes that were not seen for long and hold nothing worth a record.
    fn prune(&mut self) {
        if self.world.forget_after == 0 || self.pruned.is_some_and(|last| last.elapsed() < PRUNE_EVERY) {
            return;
        }
        self.pruned = Some(Instant::now());
        let present: Vec<&VolumeId> = self.records.keys().collect();
        match self.store.prune(&present, now(), now() - self.world.forget_after) {
            Ok(0) => {}
            Ok(count) => {
                info!("{count} volumes are forgotten that were not seen for long and never held a format");
                if let Err(error) = self.take_up_names() {
                    error!("the names of volumes cannot be read: {error}");
                }
            }
            Err(error) => error!("volumes that were not seen for long cannot be forgotten: {error}"),
        }
    }

    /// What was read of the volume until now is what was there before, or half of it.
    fn format_ended(&mut self, id: &VolumeId, process: Process, status: Option<u32>) {
        let devices: Vec<Dev> = self.graph.of(id).map(|device| device.dev).collect();
        for dev in &devices {
            let around = self.graph.related(*dev).into_iter().map(|related| related.dev);
            let over = around.chain([*dev]).map(|dev| (dev, Instant::now()));
            self.format_over.extend(over);
        }
        let entry =
            devices.first().and_then(|dev| self.formatter_of(*dev)).filter(|entry| entry.process == process);
        let wrote = entry.map_or(Wrote::Bytes, |entry| Wrote::of(entry.wrote));
        let unseen = !self.enforcer.tier().tells_of_mounts();
        self.apply(id, Event::FormatEnded { status, wrote, unseen });
    }

    /// What it formatted was gone before it ended.
    fn ended_after_departure(&mut self, process: Process, status: Option<u32>) {
        let unseen = !self.enforcer.tier().tells_of_mounts();
        let formats = |record: &Record| record.formatter.as_ref().is_some_and(|by| by.is(process));
        let ended: Vec<Record> =
            self.departed.extract_if(|_, record| formats(record)).map(|(_, record)| record).collect();
        for old in ended {
            let event = Event::FormatEnded { status, wrote: old.wrote, unseen };
            let (new, _) = transition::next(&old, event, clocks());
            if let Err(error) = self.store.put(&new, &[]) {
                self.keep_unstored(new, &error);
            }
        }
    }

    fn tell(&mut self, volume: String, kind: &str, text: String) {
        self.tell_event(HistoryEvent::new(now(), volume, kind, text));
    }

    /// Keeps a line until nothing else waits: a flood of refusals must not hold up what follows it by a commit for each.
    fn tell_event(&mut self, told: HistoryEvent) {
        self.untold.push(told);
        if self.untold.len() >= MAX_UNTOLD {
            self.store_untold();
        }
        if self.untold.len() > MAX_WAITING {
            error!("{MAX_UNTOLD} events are dropped: the store takes none");
            self.untold.drain(..MAX_UNTOLD);
        }
    }

    fn store_untold(&mut self) {
        if self.untold.is_empty() || self.untold_waits {
            return;
        }
        if let Err(error) = self.store.tell(&self.untold) {
            error!("{} events cannot be stored yet: {error}", self.untold.len());
            self.untold_waits = true;
            return;
        }
        self.untold.clear();
        self.told.send_modify(|count| *count += 1);
    }
}

/// Devices in an order in which none comes before one that it lies on.
fn lower_first(mut devices: Vec<Device>) -> Vec<Device> {
    let below: HashMap<Dev, Vec<Dev>> = devices
        .iter()
        .map(|device| (device.dev, device.below.iter().map(|below| below.dev).collect()))
        .collect();
    let mut layers: HashMap<Dev, usize> = HashMap::new();
    // A loop in what sysfs says ends with the number of passes.
    for _ in 0..MAX_DEPTH {
        for device in &devices {
            let lower = below[&device.dev].iter().map(|dev| layers.get(dev).map_or(0, |layer| layer + 1));
            layers.insert(device.dev, lower.max().unwrap_or(0));
        }
    }
    devices.sort_by_key(|device| layers.get(&device.dev).copied());
    devices
}

fn history(at: Seconds, id: &VolumeId, report: &Report) -> HistoryEvent {
    HistoryEvent::new(at, id.to_string(), report.kind, report.text.clone())
}

/// Without a medium a device holds no volume; memory gets one later, and nobody waits for it.
fn may_hold(device: &Device) -> bool {
    device.size > 0 || device.identity.strength == Strength::Memory
}

fn formatter(process: Process, comm: &[u8; 16], cgroup: u64) -> Formatter {
    Formatter {
        pid: process.tgid,
        started: process.started,
        comm: text_of(comm),
        exe: exe_of(process.tgid),
        cgroup,
        at: now(),
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
