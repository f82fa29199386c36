//! The one task that changes records and rules.
//!
//! Whatever happens comes in as an [`Input`]; the pure transition function says what follows; then, in this
//! order and no other: the record is stored, the rule is put, and the rest is done. If storing fails, nothing
//! is loosened.

mod batch;
mod copying;
mod devices;
mod dropped_partitions;
mod failure;
mod health;
mod history;
mod kernel_events;
mod loss;
mod mode;
mod names;
mod partitions;
mod paths;
mod policies;
mod proof;
mod protection;
mod refusals;
mod requests;
mod resync;
mod settling;
mod sharing;
mod simulation;
mod stacks;
mod unstored;
mod way_out;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use format_guard_common::event::FormatOwner;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
};
use tracing::{error, info, warn};

use batch::Batch;
use copying::Copied;
use dropped_partitions::DroppedPartition;
use health::Health;
use history::History;
use kernel_events::Formats;
use loss::LostRecords;
use names::Names;
use paths::Paths;
use policies::PolicyFacts;
use proof::Proof;
use protection::Protection;
use resync::{Comparison, mounted_devices};
use settling::Settler;
use sharing::Sharing;
use unstored::{Change, Unstored};

use super::{
    clocks, closing::Closing, desired_claims::DesiredClaims, kernel_log::KernelLog, kubernetes, mappings,
    message::Input, metrics::Metrics, prober::Prober, process_exit::Watcher, queue::Inputs,
};
use crate::{
    config::RawContent,
    enforce::{Enforcer, error::ProgramStatus, rule},
    mode::Mode,
    policy::Policy,
    record::{
        Seconds, Volume,
        history::HistoryEvent,
        store::Store,
        transition::{self, Effect, Event, Report},
    },
    volume::{Dev, VolumeId, copies::Wanted, device::Devices, graph::DeviceGraph},
};

/// Inputs that a resync waits for at most before it goes on.
const INPUTS_BETWEEN: u32 = 16;
/// Ends of processes that are remembered until their pidfd tells, too: the oldest is dropped.
const MAX_ENDS: usize = 4096;

/// What the configuration says of the reconciler's work.
pub struct Settings {
    /// Enforce or audit.
    pub mode: Mode,
    /// Audit, whatever anybody has set.
    pub forced_audit: bool,
    /// How long a volume must read blank that may have been formatted unseen, in seconds.
    pub quarantine: Seconds,
    /// Which bytes without a known format are content.
    pub raw_content: RawContent,
    /// Keep others from taking the guard away.
    pub protect: bool,
    /// How long a known formatter waits for a volume to be read.
    pub first_format_wait: Duration,
    /// How often the devices are compared with the records.
    pub resync_interval: Duration,
    /// After how many seconds a volume is forgotten that was not attached and never held a format; zero:
    /// never.
    pub forget_after: Seconds,
    /// What is copied of each volume that holds a format; nothing, if that is none.
    pub copied: Option<Wanted>,
    /// Ids of volumes that are strict by the configuration, or their beginnings before a `*`.
    pub strict: Vec<String>,
    /// What is done with volumes that match.
    pub policies: Vec<Policy>,
    /// Programs that may write to strict volumes.
    pub trusted: Vec<String>,
}

/// Where the agent runs, and to whom it speaks there.
pub struct Host {
    /// The block devices.
    pub devices: Devices,
    /// This boot.
    pub boot: String,
    /// Where kubelet keeps its pods.
    pub kubelet_dir: Option<PathBuf>,
    /// Reports closes.
    pub closing: Closing,
    /// The kernel's log, if refusals are to be written there.
    pub kernel_log: Option<KernelLog>,
    /// Reports refusals to a cluster; what finds no place there is dropped.
    pub cluster: Option<mpsc::Sender<HistoryEvent>>,
}

/// The task's state.
pub struct Reconciler {
    store: Box<dyn Store + Send>,
    enforcer: Box<dyn Enforcer + Send>,
    settings: Settings,
    host: Host,
    prober: Prober,
    watcher: Watcher,
    metrics: Metrics,
    node: kubernetes::Node,
    /// The devices that are known to be present.
    graph: DeviceGraph,
    /// Records of the volumes that are present.
    records: HashMap<VolumeId, Volume>,
    /// What an operator has set for the whole guard; outranks the configuration.
    set_mode: Option<mode::Override>,
    lost: LostRecords,
    /// The store that nodes share, if they do.
    sharing: Option<Sharing>,
    history: History,
    formats: Formats,
    /// Attachment and first sight (by [`Now::boot`](crate::record::Now)) of devices that a node may come to
    /// name.
    unnamed_since: HashMap<Dev, (u64, Seconds)>,
    /// Devices on which a formatter waits, or did a moment ago.
    awaited: HashMap<Dev, Instant>,
    /// Every name of every volume.
    names: Names,
    /// By which of several devices a volume is read.
    paths: HashMap<VolumeId, Paths>,
    policy_facts: PolicyFacts,
    /// What is copied of the volumes that are present.
    copies: HashMap<VolumeId, Copied>,
    /// When volumes were forgotten last that were not attached for long.
    pruned: Option<Instant>,
    /// Partitions that were dropped and not deleted.
    dropped_partitions: Vec<DroppedPartition>,
    proof: Proof,
    protection: Protection,
    health: Health,
    /// What could not be stored.
    unstored: Unstored,
    /// Volumes with nothing on record that were not read yet: they are stored together with what is read
    /// first.
    unread: HashSet<VolumeId>,
    /// Who waits until a device is read.
    settlers: Vec<Settler>,
    /// Work that is put off while many things happen at once.
    batch: Option<Batch>,
    /// The comparison with sysfs that is under way.
    comparison: Option<Comparison>,
}

impl Reconciler {
    /// A reconciler that has not looked at its host yet.
    #[must_use]
    pub fn new(
        store: Box<dyn Store + Send>,
        enforcer: Box<dyn Enforcer + Send>,
        settings: Settings,
        host: Host,
        prober: Prober,
        watcher: Watcher,
        metrics: Metrics,
    ) -> Self {
        Self {
            store,
            enforcer,
            settings,
            node: kubernetes::Node::new(host.kubelet_dir.clone()),
            host,
            prober,
            watcher,
            metrics,
            graph: DeviceGraph::default(),
            records: HashMap::new(),
            set_mode: None,
            lost: LostRecords::default(),
            sharing: None,
            history: History::default(),
            formats: Formats::default(),
            unnamed_since: HashMap::new(),
            awaited: HashMap::new(),
            names: Names::default(),
            paths: HashMap::new(),
            policy_facts: PolicyFacts::default(),
            copies: HashMap::new(),
            pruned: None,
            dropped_partitions: Vec::new(),
            proof: Proof::default(),
            protection: Protection::default(),
            health: Health::default(),
            unstored: Unstored::default(),
            unread: HashSet::new(),
            settlers: Vec::new(),
            batch: None,
            comparison: None,
        }
    }

    /// Goes up with every line of the history.
    #[must_use]
    pub fn history_seq(&self) -> watch::Receiver<u64> {
        self.history.seq()
    }

    /// Shares records with other nodes from now on, through their store. `required`: the host is not ready
    /// while that store is away.
    pub fn share(&mut self, desired_claims: DesiredClaims, required: bool) {
        self.sharing = Some(Sharing::new(desired_claims, required));
    }

    /// The lease of that store under which an earlier agent has claimed volumes.
    #[must_use]
    pub fn lease(&self) -> Option<u64> {
        let lease = self.enforcer.lease();
        (lease.number != 0).then_some(lease.id)
    }

    /// Gives every present device its rule, before anything is attached.
    pub fn start(&mut self) -> Result<()> {
        self.restore_mode()?;
        self.restore_loss()?;
        self.load_names()?;
        let gone = |(lock_dev, entry): &(Dev, FormatOwner)| {
            let device = self.host.devices.by_number(*lock_dev);
            device.is_none_or(|device| device.diskseq != entry.diskseq)
                || self.host.devices.by_number(Dev::from_kernel(entry.dev)).is_none()
        };
        let unseen: Vec<_> = self.enforcer.owners().into_iter().filter(gone).collect();
        if !unseen.is_empty() {
            self.suspect_armed()?;
        }
        for (lock_dev, _) in unseen {
            self.enforcer.release_owner(lock_dev)?;
        }
        self.batch = Some(Batch::default());
        self.compare_with_sysfs()?;
        for dev in mounted_devices() {
            self.apply_to_device(dev, &Event::Mounted);
        }
        self.apply_batch();
        self.remove_rules_of_nobody();
        Ok(())
    }

    /// The kernel let a format through while no agent ran, and its volume was detached since: any volume that
    /// was armed may be that one.
    fn suspect_armed(&mut self) -> Result<()> {
        for id in self.store.armed(&self.host.boot)? {
            if let Some(record) = self.store.get(&id)? {
                let suspect =
                    transition::next(&Volume::of(record), Event::MissedFormatSuspected, clocks()).0.record;
                if let Err(error) = self.store.put(&suspect, &[]) {
                    self.keep_unstored(suspect, &error);
                }
            }
        }
        Ok(())
    }

    /// No format may begin that no agent would record. Formats that are under way go on.
    pub fn disarm_for_stop(&mut self) {
        self.settings.protect = false;
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
                // The volume is untouched: another node, or the next agent, need not suspect it.
                self.desire_nothing_more(&new, true);
                self.store_all(vec![Change { old, new, told: Vec::new() }]);
            }
        }
        self.store_unstored();
        self.store_names();
    }

    /// The kernel programs, to attach them.
    pub fn enforcer_mut(&mut self) -> &mut dyn Enforcer {
        &mut *self.enforcer
    }

    /// Puts every rule by another way to refuse.
    pub fn replace_enforcer(&mut self, enforcer: Box<dyn Enforcer + Send>) -> Result<()> {
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
        self.health.degraded.extend(reasons);
    }

    /// The canary has proven these programs.
    pub fn proven(&mut self, programs: Vec<ProgramStatus>) {
        self.proof = Proof::of(programs, clocks());
        self.keep_protected();
        self.keep_waited_for(self.settings.first_format_wait);
        self.append_history(
            String::new(),
            "started",
            "format-guard is in force, proven by its canary".to_owned(),
        );
        // New mappings are judged from here on: none is missed between.
        for mapping in mappings::present() {
            let Some(device) = self.graph.get(mapping.dev) else { continue };
            let text = format!(
                "{} (pid {}) has a shared writable mapping of /dev/{} that is older than this agent: what it stores there \
                 is not judged; end it, or restart it under the guard",
                mapping.comm, mapping.pid, device.name
            );
            let volume = device.identity.id.to_string();
            warn!(volume, pid = mapping.pid, "{text}");
            self.append_history(volume, "mapped-before", text);
        }
    }

    /// Works until a stop is asked for, every sender is gone, or the kernel's maps fail.
    pub fn run(&mut self, mut inputs: Inputs, runtime: &Handle) -> Result<()> {
        let mut in_a_row = 0;
        loop {
            let comparing = self.comparison.is_some();
            let input = if comparing { inputs.waiting() } else { inputs.next(runtime) };
            match input {
                Some(Input::Stop(done)) => {
                    self.disarm_for_stop();
                    // Whoever asked may have gone.
                    let _ = done.send(());
                    break;
                }
                Some(Input::Probed(first)) => self.apply_probe_batch(inputs.together(first)),
                Some(other) => self.handle(other)?,
                None if comparing => {}
                None => break,
            }
            self.answer_settlers();
            // Inputs that wait come first; but a flood of them does not keep a resync from its end.
            in_a_row += 1;
            if inputs.is_empty() || in_a_row >= INPUTS_BETWEEN {
                in_a_row = 0;
                self.go_on_with_resync();
            }
            if inputs.is_empty() {
                self.store_history();
            }
        }
        self.store_history();
        Ok(())
    }

    fn handle(&mut self, input: Input) -> Result<()> {
        match input {
            Input::Changed { name, received_at } => {
                if let Some(device) = self.host.devices.device(&name) {
                    let (dev, diskseq) = (device.dev, device.diskseq);
                    let attached =
                        |devices: &DeviceGraph| devices.get(dev).is_some_and(|one| one.diskseq == diskseq);
                    let known = attached(&self.graph);
                    self.device_changed(device);
                    if !known && attached(&self.graph) {
                        self.metrics.ruled(received_at.elapsed());
                    }
                }
            }
            Input::Removed { name } => {
                let gone = self.graph.iter().find(|device| device.name == name).map(|device| device.dev);
                // The number may be another device's already.
                if let Some(dev) = gone
                    && self.host.devices.by_number(dev).is_none_or(|device| device.name != name)
                {
                    self.device_gone(dev);
                }
            }
            Input::ClosedByWriter { dev } => self.closed_by_writer(dev),
            Input::Kernel(mut report) => {
                self.enforcer.complete(&mut report);
                self.kernel_event(&report);
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
                // A resync that is under way is enough.
                if self.comparison.is_none() {
                    self.begin_resync()?;
                }
            }
            Input::UeventsLost => {
                self.health.lost_uevents += 1;
                self.begin_resync()?;
            }
            Input::Store(update) => self.store_updated(update),
            Input::Reloaded(config) => self.reloaded(&config)?,
            // The last input of all: see `run`.
            Input::Stop(_) => {}
            Input::Settle(selector, reply) => self.settle_for(&selector, reply),
            Input::Asked { request, uid, reply } => {
                self.store_history();
                self.serve(request, uid, reply);
            }
        }
        Ok(())
    }

    fn apply_to_device(&mut self, dev: Dev, event: &Event) {
        if let Some(id) = self.graph.id(dev) {
            let id = id.clone();
            self.apply(&id, event.clone());
        }
    }

    /// Applies an event to a volume: its record is stored, its rule is put, the rest is done; then the
    /// volumes that share its bytes follow.
    fn apply(&mut self, id: &VolumeId, event: Event) {
        if self.step(id, event) {
            let first = self.graph.of(id).next().map(|device| device.dev);
            if let Some(dev) = first {
                self.put_rules_around(dev);
                self.propagate(dev);
            }
        }
    }

    /// Applies an event to one volume alone. Whether its meaning for others may have changed.
    fn step(&mut self, id: &VolumeId, event: Event) -> bool {
        self.store_history();
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
        if self.batch.is_none()
            && told.is_empty()
            && new.attachment.unrecorded_past
            && transition::is_unread(&new)
        {
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
            self.history.advance();
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
                Effect::ReleaseOwner => match &mut self.batch {
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
}

fn history(at: Seconds, id: &VolumeId, report: &Report) -> HistoryEvent {
    HistoryEvent::new(at, id.to_string(), report.kind, report.text.clone())
}

#[cfg(test)]
mod tests;
