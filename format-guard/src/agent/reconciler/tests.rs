#[cfg(feature = "etcd")]
mod cluster;
mod copying;
mod loss;
mod names;
mod paths;
mod policies;
mod unstored;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use format_guard_common::{
    Rule, State, Windows,
    claim::Lease,
    event::{EventKind, KernelEvent, Process, wrote},
    flag,
};

use super::{devices::NAMING, requests::MAX_PERMIT, resync::lower_first, *};
use crate::{
    agent::{
        message::{GuardRequest, ProbeAnswer, Reply, VolumeRequest},
        now,
    },
    api::{self, Condition},
    enforce::{
        Counts,
        canary::CanaryError,
        error::{LoadError, MapError, ProtectionError},
        report::Report,
    },
    record::{
        Now, Permit, Progress, Record,
        store::{StoreError, StoredCopy, Wanted},
    },
    tier::Tier,
    volume::{
        copies,
        device::Device,
        marks::{Found, Mark, MarkKind},
        probe::{Finding, ProbeError},
        topology::Below,
    },
};

/// What was done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Deed {
    Stored(State),
    Ruled(State),
    Released,
}

#[derive(Clone, Default)]
struct Deeds(Arc<Mutex<Vec<Deed>>>);

impl Deeds {
    fn add(&self, deed: Deed) {
        self.0.lock().expect("one thread").push(deed);
    }

    fn take(&self) -> Vec<Deed> {
        std::mem::take(&mut self.0.lock().expect("one thread"))
    }
}

struct RecordingStore {
    deeds: Deeds,
    records: BTreeMap<VolumeId, Record>,
    settings: BTreeMap<String, String>,
    broken: Arc<Mutex<bool>>,
    pruned: Pruned,
    copies: BTreeMap<VolumeId, StoredCopy>,
    names: BTreeMap<VolumeId, VolumeId>,
}

/// How many volumes were present each time, and whether the times were sound.
type Pruned = Arc<Mutex<Vec<(usize, bool)>>>;

impl Store for RecordingStore {
    fn get(&self, id: &VolumeId) -> Result<Option<Record>, StoreError> {
        Ok(self.records.get(id).cloned())
    }

    fn put_all(&mut self, records: &[(&Record, &[HistoryEvent])]) -> Result<(), StoreError> {
        for (record, _) in records {
            if *self.broken.lock().expect("one thread") {
                return Err(StoreError::Row { volume: record.id.to_string(), reason: "disk full".into() });
            }
            self.deeds.add(Deed::Stored(record.state));
            self.records.insert(record.id.clone(), (*record).clone());
        }
        Ok(())
    }

    fn replace(&mut self, gone: &[VolumeId], record: &Record, _: &[HistoryEvent]) -> Result<(), StoreError> {
        if *self.broken.lock().expect("one thread") {
            return Err(StoreError::Row { volume: record.id.to_string(), reason: "disk full".into() });
        }
        self.names.values_mut().filter(|id| gone.contains(id)).for_each(|id| id.clone_from(&record.id));
        for id in gone {
            self.records.remove(id);
            self.names.insert(id.clone(), record.id.clone());
        }
        self.records.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn names(&self) -> Result<Vec<(VolumeId, VolumeId)>, StoreError> {
        let ids = self.records.keys().map(|id| (id.clone(), id.clone()));
        Ok(ids.chain(self.names.clone()).collect())
    }

    fn put_names(&mut self, names: &[(VolumeId, VolumeId)]) -> Result<(), StoreError> {
        self.names.extend(names.iter().filter(|(name, id)| name != id).cloned());
        Ok(())
    }

    fn list(&self) -> Result<Vec<Record>, StoreError> {
        Ok(self.records.values().cloned().collect())
    }

    fn counts(&self) -> Result<Vec<(State, u64)>, StoreError> {
        let mut counts: BTreeMap<State, u64> = BTreeMap::new();
        for record in self.records.values() {
            *counts.entry(record.state).or_default() += 1;
        }
        Ok(counts.into_iter().collect())
    }

    fn beginning_with(&self, prefix: &str, limit: usize) -> Result<Vec<VolumeId>, StoreError> {
        let ids = self.records.keys().filter(|id| id.as_str().starts_with(prefix));
        Ok(ids.take(limit).cloned().collect())
    }

    fn armed(&self, boot: &str) -> Result<Vec<VolumeId>, StoreError> {
        let armed = |record: &&Record| record.armed.as_deref() == Some(boot);
        Ok(self.records.values().filter(armed).map(|record| record.id.clone()).collect())
    }

    fn formatted_after(&self, after: Option<&VolumeId>, limit: usize) -> Result<Vec<Record>, StoreError> {
        let after = |record: &&Record| {
            record.state == State::Formatted && after.is_none_or(|after| record.id > *after)
        };
        Ok(self.records.values().filter(after).take(limit).cloned().collect())
    }

    fn append_history(&mut self, _: &[HistoryEvent]) -> Result<(), StoreError> {
        Ok(())
    }

    fn history(&self, _: &Wanted) -> Result<Vec<HistoryEvent>, StoreError> {
        Ok(Vec::new())
    }

    fn forget(&mut self, id: &VolumeId, _: &[HistoryEvent]) -> Result<(), StoreError> {
        self.records.remove(id);
        Ok(())
    }

    fn prune(&mut self, present: &[&VolumeId], now: Seconds, before: Seconds) -> Result<u64, StoreError> {
        self.pruned.lock().expect("one thread").push((present.len(), before < now));
        Ok(0)
    }

    fn put_copies(&mut self, copies: &[(VolumeId, StoredCopy)]) -> Result<(), StoreError> {
        self.copies.extend(copies.iter().filter(|(id, _)| self.records.contains_key(id)).cloned());
        Ok(())
    }

    fn copied(&self, id: &VolumeId) -> Result<Option<(u64, Seconds)>, StoreError> {
        Ok(self.copies.get(id).map(|copy| (copy.generation, copy.at)))
    }

    fn copy(&self, id: &VolumeId) -> Result<Option<StoredCopy>, StoreError> {
        Ok(self.copies.get(id).cloned())
    }

    fn setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        Ok(self.settings.get(name).cloned())
    }

    fn set(&mut self, name: &str, value: &str, _: &[HistoryEvent]) -> Result<(), StoreError> {
        if *self.broken.lock().expect("one thread") {
            return Err(StoreError::Row { volume: String::new(), reason: "disk full".into() });
        }
        self.settings.insert(name.into(), value.into());
        Ok(())
    }
}

/// What the test and the reconciler both see.
#[derive(Default)]
struct Kept<T>(Arc<Mutex<T>>);

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Kept<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().expect("one thread")
    }
}

impl<T: Copy> Kept<T> {
    fn get(&self) -> T {
        *self.lock()
    }

    fn set(&self, value: T) {
        *self.lock() = value;
    }
}

#[derive(Clone, Default)]
struct RecordingEnforcer {
    deeds: Deeds,
    rules: Kept<BTreeMap<u32, Rule>>,
    windows: Kept<BTreeMap<u32, Windows>>,
    unknown: Kept<Option<Rule>>,
    owners: Kept<BTreeMap<u32, FormatOwner>>,
    protected: Kept<u64>,
    lease: Kept<Lease>,
    /// The canary is not refused.
    broken: Kept<bool>,
}

impl Enforcer for RecordingEnforcer {
    fn attach(&mut self) -> Result<Vec<ProgramStatus>, LoadError> {
        Ok(Vec::new())
    }

    fn prove(&mut self) -> Result<(), LoadError> {
        let let_through = CanaryError::NotEnforced(rustix::io::Errno::NXIO);
        if self.broken.get() { Err(let_through.into()) } else { Ok(()) }
    }

    fn put_rule(&mut self, rule: &Rule, windows: &Windows) -> Result<(), MapError> {
        let state = State::ALL.into_iter().find(|state| *state as u32 == rule.state).expect("a state");
        self.deeds.add(Deed::Ruled(state));
        self.rules.lock().insert(rule.dev, *rule);
        self.windows.lock().insert(rule.dev, *windows);
        Ok(())
    }

    fn put_unknown(&mut self, rule: &Rule) -> Result<(), MapError> {
        *self.unknown.lock() = Some(*rule);
        Ok(())
    }

    fn remove_rule(&mut self, dev: Dev) -> Result<(), MapError> {
        self.rules.lock().remove(&dev.to_kernel());
        Ok(())
    }

    fn ruled(&self) -> Vec<Dev> {
        self.rules.lock().keys().copied().map(Dev::from_kernel).collect()
    }

    fn rule(&self, dev: Dev) -> Option<Rule> {
        self.rules.lock().get(&dev.to_kernel()).copied()
    }

    fn owner(&self, dev: Dev) -> Option<FormatOwner> {
        self.owners.lock().get(&dev.to_kernel()).copied()
    }

    fn owners(&self) -> Vec<(Dev, FormatOwner)> {
        self.owners.lock().iter().map(|(dev, entry)| (Dev::from_kernel(*dev), *entry)).collect()
    }

    fn release_owner(&mut self, dev: Dev) -> Result<(), MapError> {
        self.deeds.add(Deed::Released);
        self.owners.lock().remove(&dev.to_kernel());
        Ok(())
    }

    fn untaint(&mut self, _: Dev, _: u64) -> Result<u64, MapError> {
        Ok(1)
    }

    fn protect(&mut self, until: u64) -> Result<(), ProtectionError> {
        self.protected.set(until);
        Ok(())
    }

    fn lease(&self) -> Lease {
        self.lease.get()
    }

    fn put_lease(&mut self, lease: &Lease) -> Result<(), MapError> {
        self.lease.set(*lease);
        Ok(())
    }

    fn tier(&self) -> Tier {
        Tier::Lsm
    }

    fn counts(&self) -> Counts {
        Counts::default()
    }
}

struct Setting {
    runtime: tokio::runtime::Runtime,
    sysfs: tempfile::TempDir,
    deeds: Deeds,
    broken: Arc<Mutex<bool>>,
    pruned: Pruned,
    enforcer: RecordingEnforcer,
    reconciler: Reconciler,
}

const DEV: Dev = Dev { major: 253, minor: 0 };

/// One dm volume in a made sysfs. Its probes fail (there is no such node); the test answers in their place.
fn setting() -> Setting {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let sysfs = tempfile::tempdir().expect("directory");
    attach(sysfs.path(), 5);
    let deeds = Deeds::default();
    let broken = Arc::new(Mutex::new(false));
    let pruned = Pruned::default();
    let enforcer = RecordingEnforcer { deeds: deeds.clone(), ..RecordingEnforcer::default() };
    let store = RecordingStore {
        deeds: deeds.clone(),
        records: BTreeMap::new(),
        settings: BTreeMap::new(),
        broken: Arc::clone(&broken),
        pruned: Arc::clone(&pruned),
        copies: BTreeMap::new(),
        names: BTreeMap::new(),
    };
    let settings = Settings {
        mode: Mode::Enforce,
        forced_audit: false,
        quarantine: 100,
        raw_content: crate::config::RawContent::Written,
        protect: true,
        first_format_wait: Duration::from_millis(250),
        resync_interval: Duration::from_secs(5),
        forget_after: 1000,
        copied: Some(copies::Wanted { limit: 1 << 20, key_areas: false }),
        strict: Vec::new(),
        policies: Vec::new(),
        trusted: Vec::new(),
    };
    let host = Host {
        devices: Devices::recorded(sysfs.path()),
        boot: "boot-1".into(),
        kubelet_dir: None,
        closing: Closing::default(),
        kernel_log: None,
        cluster: None,
    };
    let entered = runtime.enter();
    let (prober, _) = Prober::new("/bin/false", Duration::from_secs(1), Metrics::default());
    let (watcher, _) = Watcher::new();
    let mut reconciler = Reconciler::new(
        Box::new(store),
        Box::new(enforcer.clone()),
        settings,
        host,
        prober,
        watcher,
        Metrics::default(),
    );
    reconciler.compare_with_sysfs().expect("sysfs");
    drop(entered);
    Setting { runtime, sysfs, deeds, broken, pruned, enforcer, reconciler }
}

fn reported(record: &KernelEvent) -> Input {
    Input::Kernel(Report::decode(record).expect("a known kind"))
}

fn changed(name: &str) -> Input {
    Input::Changed { name: name.to_owned(), received_at: Instant::now() }
}

fn answer(dev: Dev, diskseq: u64, result: Result<Finding, ProbeError>) -> Input {
    Input::Probed(ProbeAnswer { dev, diskseq, begun: Instant::now(), result, twice: false, copy: None })
}

fn attach(root: &Path, diskseq: u64) {
    attach_at(root, 0, "UUID-1", diskseq);
}

fn attach_at(root: &Path, minor: u32, uuid: &str, diskseq: u64) {
    let (kernel_name, dev, diskseq) = (format!("dm-{minor}"), format!("253:{minor}"), diskseq.to_string());
    let device = root.join("devices/virtual/block").join(&kernel_name);
    fs::create_dir_all(device.join("dm")).expect("directory");
    for (name, value) in
        [("dev", &*dev), ("size", "2048"), ("diskseq", &*diskseq), ("dm/name", "x"), ("dm/uuid", uuid)]
    {
        fs::write(device.join(name), value).expect("attribute");
    }
    for (class, name) in [("class/block", kernel_name), ("dev/block", dev)] {
        fs::create_dir_all(root.join(class)).expect("directory");
        let _ = std::os::unix::fs::symlink(&device, root.join(class).join(name));
    }
}

impl Setting {
    fn give(&mut self, input: Input) {
        let _entered = self.runtime.enter();
        self.reconciler.handle(input).expect("handled");
        while self.reconciler.comparison.is_some() {
            self.reconciler.go_on_with_resync();
        }
    }

    fn probed(&mut self, diskseq: u64, finding: Finding) {
        self.give(answer(DEV, diskseq, Ok(finding)));
    }

    fn state(&self) -> State {
        self.reconciler.records[&VolumeId::from("dm:UUID-1")].state
    }

    fn rule(&self) -> Rule {
        self.enforcer.rules.lock()[&DEV.to_kernel()]
    }
}

fn holds() -> Finding {
    Finding::Holds {
        found: vec![Found { name: "ext4".into(), uuid: None, label: None, magic_offset: Some(1080) }],
        marks: vec![Mark { offset: 1080, kind: MarkKind::Magic, bytes: vec![0x53, 0xef] }],
        partitions: None,
    }
}

#[test]
fn armed_is_stored_before_it_is_allowed() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.deeds.take();
    setting.probed(5, Finding::Blank);
    assert_eq!(setting.deeds.take(), [Deed::Stored(State::Blank), Deed::Ruled(State::Blank)]);
}

#[test]
fn answers_that_come_together_are_stored_once_before_the_rule_is_put_once() {
    let mut setting = setting();
    let answers = [Finding::Blank, Finding::Blank].map(|finding| ProbeAnswer {
        dev: DEV,
        diskseq: 5,
        begun: Instant::now(),
        result: Ok(finding),
        twice: false,
        copy: None,
    });
    setting.deeds.take();
    let entered = setting.runtime.enter();
    setting.reconciler.apply_probe_batch(answers.to_vec());
    drop(entered);
    assert_eq!(setting.deeds.take(), [Deed::Stored(State::Blank), Deed::Ruled(State::Blank)]);
    *setting.broken.lock().expect("one thread") = true;
    setting.give(Input::Removed { name: "dm-0".to_owned() });
    let holding = ProbeAnswer {
        dev: DEV,
        diskseq: 5,
        begun: Instant::now(),
        result: Ok(holds()),
        twice: false,
        copy: None,
    };
    let entered = setting.runtime.enter();
    setting.reconciler.apply_probe_batch(vec![holding.clone(), holding]);
    drop(entered);
    assert_eq!((setting.state(), setting.rule().state), (State::Formatted, State::Formatted as u32));
}

#[test]
fn a_fresh_volume_is_stored_once_and_armed_by_one_answer() {
    let mut setting = setting();
    attach_at(setting.sysfs.path(), 1, "UUID-2", 7);
    setting.deeds.take();
    setting.give(changed("dm-1"));
    assert_eq!(setting.deeds.take(), [Deed::Ruled(State::Unverified)]);
    let dev = Dev { major: 253, minor: 1 };
    let unread = |setting: &Setting| setting.rule_of(dev).flags & flag::UNREAD != 0;
    assert!(unread(&setting));
    let result = Ok(Finding::Blank);
    let answer = ProbeAnswer { dev, diskseq: 7, begun: Instant::now(), result, twice: true, copy: None };
    setting.give(Input::Probed(answer));
    assert_eq!(setting.deeds.take(), [Deed::Stored(State::Blank), Deed::Ruled(State::Blank)]);
    assert!(!unread(&setting));
}

#[test]
fn a_volume_that_cannot_be_read_is_on_record_and_nobody_is_told_to_try_again() {
    let mut setting = setting();
    attach_at(setting.sysfs.path(), 1, "UUID-2", 7);
    setting.give(changed("dm-1"));
    setting.deeds.take();
    let dev = Dev { major: 253, minor: 1 };
    setting.give(answer(dev, 7, Err(ProbeError::Deadline)));
    assert_eq!(setting.deeds.take(), [Deed::Stored(State::Unverified), Deed::Ruled(State::Unverified)]);
    assert_eq!(setting.rule_of(dev).flags & flag::UNREAD, 0);
    // What comes to nothing is not stored again.
    setting.give(answer(dev, 7, Err(ProbeError::Deadline)));
    assert_eq!(setting.deeds.take(), [Deed::Ruled(State::Unverified)]);
}

#[test]
fn what_cannot_be_stored_is_not_armed() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    *setting.broken.lock().expect("one thread") = true;
    setting.probed(5, Finding::Blank);
    assert_eq!((setting.state(), setting.rule().state), (State::Unverified, State::Unverified as u32));
}

#[test]
fn what_cannot_be_stored_is_protected_all_the_same() {
    let mut setting = setting();
    *setting.broken.lock().expect("one thread") = true;
    setting.probed(5, holds());
    assert_eq!((setting.state(), setting.rule().state), (State::Formatted, State::Formatted as u32));
}

/// The same world, seen for the first time by an agent that starts.
fn start_again(setting: &mut Setting) {
    setting.reconciler.graph = DeviceGraph::default();
    setting.reconciler.records.clear();
    setting.reconciler.unstored = Unstored::default();
    setting.deeds.take();
    let _entered = setting.runtime.enter();
    setting.reconciler.start().expect("started");
}

#[test]
fn at_the_start_all_is_stored_before_the_first_rule_and_each_is_ruled_once() {
    let mut setting = setting();
    attach_partition(setting.sysfs.path());
    start_again(&mut setting);
    let deeds = setting.deeds.take();
    let stored = deeds.iter().filter(|deed| matches!(deed, Deed::Stored(_))).count();
    assert_eq!(stored, 2, "both are new, and were never read: {deeds:?}");
    assert!(matches!(&deeds[stored..], [Deed::Ruled(_), Deed::Ruled(_)]), "{deeds:?}");
}

#[test]
fn an_agent_that_starts_leaves_no_rule_of_a_device_that_is_gone() {
    let mut setting = setting();
    let gone = Rule::new(Dev { major: 7, minor: 9 }.to_kernel(), 3, State::Blank);
    setting.enforcer.rules.lock().insert(gone.dev, gone);
    start_again(&mut setting);
    assert_eq!(setting.enforcer.ruled(), [DEV]);
}

#[test]
fn what_cannot_be_stored_at_the_start_is_not_armed() {
    let mut setting = setting();
    setting.probed(5, holds());
    let permit = Permit { reason: "test".into(), uid: 0, at: now(), expires: now() + 600, used: false };
    setting.reconciler.apply(&"dm:UUID-1".into(), Event::Permitted(permit));
    assert_eq!(setting.state(), State::Permitted);
    let id = VolumeId::from("dm:UUID-1");
    setting.reconciler.step(&id, Event::Disarmed);
    *setting.broken.lock().expect("one thread") = true;
    start_again(&mut setting);
    assert_eq!((setting.state(), setting.rule().state), (State::Formatted, State::Formatted as u32));
    *setting.broken.lock().expect("one thread") = false;
    start_again(&mut setting);
    assert_eq!(setting.state(), State::Permitted);
}

#[test]
fn a_device_comes_after_what_it_lies_on() {
    let device = |minor, below: &[u32]| Device {
        name: format!("d{minor}"),
        dev: Dev { major: 7, minor },
        diskseq: 1,
        size: 1,
        identity: crate::volume::identity::Identity::strong("t", &minor.to_string(), ""),
        below: below
            .iter()
            .map(|minor| Below {
                dev: Dev { major: 7, minor: *minor },
                extents: Vec::new(),
                transformed: false,
            })
            .collect(),
    };
    let order = |devices| lower_first(devices).iter().map(|device| device.dev.minor).collect::<Vec<_>>();
    assert_eq!(order(vec![device(1, &[2, 3]), device(2, &[3]), device(3, &[])]), [3, 2, 1]);
    assert_eq!(order(vec![device(1, &[2]), device(2, &[1])]).len(), 2, "a circle ends");
}

#[test]
fn an_answer_about_an_earlier_medium_says_nothing() {
    let mut setting = setting();
    setting.probed(4, Finding::Blank);
    setting.probed(4, Finding::Blank);
    assert_eq!(setting.state(), State::Unverified);
}

#[test]
fn a_new_medium_under_the_number_gets_a_new_rule() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    assert_eq!(setting.state(), State::Blank);
    attach(setting.sysfs.path(), 6);
    setting.give(changed("dm-0"));
    assert_eq!((setting.rule().diskseq, setting.rule().state), (6, State::Unverified as u32));
}

#[test]
fn a_format_whose_event_was_lost_is_taken_up_by_the_resync() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    let entry = FormatOwner {
        process: Process { started: 1, tgid: u32::MAX, zero: 0 },
        diskseq: 5,
        dev: DEV.to_kernel(),
        wrote: 0,
        mounted: 0,
        comm: *b"mkfs.ext4\0\0\0\0\0\0\0",
        cgroup: 1,
    };
    setting.enforcer.owners.lock().insert(DEV.to_kernel(), entry);
    setting.give(Input::Tick);
    assert_eq!(setting.state(), State::Formatting);
    setting.give(Input::Ended { process: entry.process, status: None, last: true });
    setting.probed(5, holds());
    assert_eq!(setting.state(), State::Formatted);
    assert!(setting.enforcer.owners.lock().is_empty());
}

/// What comes while thousands are compared is newer than what was read.
#[test]
fn a_comparison_undoes_nothing_that_was_told_meanwhile() {
    let mut setting = setting();
    let (root, runtime) = (setting.sysfs.path().to_owned(), &setting.runtime);
    let _entered = runtime.enter();
    // Behind the volume, so that it is read before the comparison is over; without a number they are no
    // devices.
    for i in 0..40 {
        fs::create_dir_all(root.join(format!("class/block/loop{i}"))).expect("directory");
    }
    let reconciler = &mut setting.reconciler;
    reconciler.handle(Input::Tick).expect("handled");
    reconciler.go_on_with_resync();
    assert!(reconciler.comparison.is_some(), "it was over at once");
    let other = Dev { major: 253, minor: 1 };
    attach(&root, 6);
    attach_at(&root, 1, "UUID-2", 7);
    for name in ["dm-0", "dm-1"] {
        reconciler.handle(changed(name)).expect("handled");
    }
    while reconciler.comparison.is_some() {
        reconciler.go_on_with_resync();
    }
    assert_eq!(reconciler.graph.get(DEV).map(|device| device.diskseq), Some(6));
    assert_eq!(reconciler.graph.get(other).map(|device| device.diskseq), Some(7));
    assert!(setting.enforcer.ruled().contains(&other));
}

#[test]
fn a_rule_that_vanished_is_put_back_and_one_of_nobody_is_removed() {
    let mut setting = setting();
    setting.enforcer.rules.lock().clear();
    setting.enforcer.rules.lock().insert(99, Rule::new(99, 1, State::Blank));
    setting.give(Input::Tick);
    assert_eq!(setting.enforcer.ruled(), [DEV]);
    assert_eq!(setting.reconciler.health.repaired, 1);
}

#[test]
fn a_device_that_is_gone_leaves_no_rule_and_keeps_its_record() {
    let mut setting = setting();
    setting.probed(5, holds());
    fs::remove_file(setting.sysfs.path().join("class/block/dm-0")).expect("gone");
    fs::remove_file(setting.sysfs.path().join("dev/block/253:0")).expect("gone");
    setting.give(Input::Removed { name: "dm-0".into() });
    assert!(setting.enforcer.ruled().is_empty());
    attach(setting.sysfs.path(), 9);
    setting.give(changed("dm-0"));
    assert_eq!((setting.state(), setting.rule().diskseq), (State::Formatted, 9));
}

#[test]
fn hostile_kernel_records_change_nothing() {
    let mut setting = setting();
    setting.probed(5, holds());
    for kind in 0..64 {
        let event = KernelEvent {
            kind,
            dev: DEV.to_kernel(),
            diskseq: 4,
            reason: 77,
            operation: 99,
            ..KernelEvent::default()
        };
        if let Some(report) = Report::decode(&event) {
            setting.give(Input::Kernel(report));
        }
        assert_eq!(setting.state(), State::Formatted);
    }
}

#[test]
fn a_permit_is_asked_for_properly_or_not_given() {
    let mut setting = setting();
    setting.probed(5, holds());
    let ask = |setting: &mut Setting, volume: &str, reason: &str, seconds| {
        let what = VolumeRequest::Permit { seconds, reason: reason.into() };
        let id = setting.reconciler.resolve(volume, &what)?;
        setting.reconciler.answer_of(&id, what, 0)
    };
    for (volume, reason, seconds) in [
        ("dm:UUID-1", " ", 60),
        ("dm:UUID-1", "x", 0),
        ("dm:UUID-1", "x", MAX_PERMIT + 1),
        ("dm:", "x", 60),
        ("nobody", "x", 60),
        ("", "x", 60),
    ] {
        assert!(ask(&mut setting, volume, reason, seconds).is_err(), "{volume} {reason} {seconds}");
        assert_eq!(setting.state(), State::Formatted);
    }
    *setting.broken.lock().expect("one thread") = true;
    assert!(ask(&mut setting, "dm:UUID-1", "x", 60).is_err());
    assert_eq!(setting.rule().state, State::Formatted as u32);
    *setting.broken.lock().expect("one thread") = false;
    assert!(ask(&mut setting, "dm:UUID-1", "x", 60).is_ok());
    assert_eq!(setting.rule().state, State::Permitted as u32);
}

/// A partition of the volume in `dm-0`, as sysfs shows it.
fn attach_partition(root: &Path) {
    let part = root.join("devices/virtual/block/dm-0/dm-0p1");
    fs::create_dir_all(&part).expect("directory");
    for (name, value) in [("dev", "259:1"), ("size", "1024"), ("partition", "1"), ("start", "8")] {
        fs::write(part.join(name), value).expect("attribute");
    }
    let _ = std::os::unix::fs::symlink(&part, root.join("class/block/dm-0p1"));
    let _ = std::os::unix::fs::symlink(&part, root.join("dev/block/259:1"));
}

const PART: Dev = Dev { major: 259, minor: 1 };

impl Setting {
    fn rule_of(&self, dev: Dev) -> Rule {
        self.enforcer.rules.lock()[&dev.to_kernel()]
    }
}

#[test]
fn a_partition_is_reached_through_its_disk_and_makes_it_no_blank_one() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    assert_eq!(setting.rule().state, State::Blank as u32);
    assert_eq!(setting.rule_of(PART).lock_dev, DEV.to_kernel(), "one of them may be formatted");
    setting.give(answer(PART, 5, Ok(holds())));
    assert_eq!((setting.state(), setting.rule().state), (State::Formatted, State::Formatted as u32));
    let windows = setting.enforcer.windows.lock()[&DEV.to_kernel()];
    assert_eq!(windows.windows()[0].dev, PART.to_kernel());
    assert_eq!((windows.windows()[0].start, windows.windows()[0].end), (4096, 4096 + 512 * 1024));
    let magic = (4096 + 1080, format_guard_common::CheckKind::Magic as u32);
    let rule = setting.rule();
    let there = rule.checks().iter().any(|check| (check.offset, check.kind) == magic);
    assert!(there, "its magic, as it lies on the disk: {:?}", rule.checks());
}

#[test]
fn what_answers_that_come_together_mean_is_carried_to_what_shares_the_bytes() {
    let mut setting = setting();
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    let overlaid = |setting: &Setting| {
        let id = setting.reconciler.graph.id(PART).expect("attached");
        setting.reconciler.records[id].attachment.overlay.is_some()
    };
    assert!(!overlaid(&setting));
    let holding = ProbeAnswer {
        dev: DEV,
        diskseq: 5,
        begun: Instant::now(),
        result: Ok(holds()),
        twice: false,
        copy: None,
    };
    let entered = setting.runtime.enter();
    setting.reconciler.apply_probe_batch(vec![holding.clone(), holding]);
    drop(entered);
    assert!(overlaid(&setting), "a format of the partition would destroy what its disk holds");
}

#[test]
fn a_partition_of_another_medium_is_another_volume() {
    let mut setting = setting();
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    setting.give(answer(PART, 5, Ok(holds())));
    let uuid = setting.sysfs.path().join("devices/virtual/block/dm-0/dm/uuid");
    fs::write(uuid, "UUID-2").expect("attribute");
    attach(setting.sysfs.path(), 6);
    fs::write(setting.sysfs.path().join("devices/virtual/block/dm-0/dm/uuid"), "UUID-2").expect("attribute");
    setting.give(changed("dm-0"));
    assert_eq!(setting.reconciler.graph.id(PART), Some(&"part:dm:UUID-2#8".into()));
    assert_eq!(setting.rule_of(PART).state, State::Unverified as u32);
    assert_eq!(setting.rule_of(DEV).state, State::Unverified as u32, "nothing recorded lies on it");
}

#[test]
fn the_mode_is_stored_before_it_is_in_force_and_holds_for_every_rule() {
    let mut setting = setting();
    setting.probed(5, holds());
    let ask = |mode| api::ModeRequest { mode, reason: "test".into(), volume: None, lasts: None };
    let audits = |setting: &Setting| {
        let unknown = setting.enforcer.unknown.lock().map_or(0, |rule| rule.flags);
        [setting.rule().flags, unknown].map(|flags| flags & format_guard_common::flag::AUDIT != 0)
    };
    *setting.broken.lock().expect("one thread") = true;
    let question = |mode| GuardRequest::Mode(ask(Some(mode)));
    let clear = GuardRequest::Mode(ask(None));
    assert!(setting.reconciler.answer(question(Mode::Audit), 0).is_err());
    assert_eq!(audits(&setting), [false, false], "what is not stored is not in force");
    *setting.broken.lock().expect("one thread") = false;
    assert!(setting.reconciler.answer(question(Mode::Audit), 0).is_ok());
    assert_eq!(audits(&setting), [true, true]);
    assert!(setting.reconciler.answer(clear, 0).is_ok());
    assert_eq!(audits(&setting), [false, false], "the configuration's");
    assert!(setting.reconciler.answer(question(Mode::Enforce), 0).is_ok());
    assert_eq!(audits(&setting), [false, false]);
}

#[test]
fn a_proof_is_made_again_and_one_that_fails_is_told_until_it_does_not() {
    let mut setting = setting();
    let condition = |setting: &mut Setting| {
        let Ok(Reply::Status(status)) = setting.reconciler.answer(GuardRequest::Status, 0) else {
            panic!("no status")
        };
        (status.condition, status.degraded.join(";"))
    };
    assert_eq!(condition(&mut setting).0, Condition::NotEnforcing, "never proven");
    let now = clocks();
    setting.reconciler.proof = Proof::of(Vec::new(), now);
    setting.enforcer.broken.set(true);
    setting.give(Input::Tick);
    assert_eq!(condition(&mut setting).0, Condition::Enforcing, "the proof lasts");
    setting.reconciler.proof = Proof::of(Vec::new(), Now { boot: now.boot - proof::LASTS, ..now });
    setting.give(Input::Tick);
    let (word, why) = condition(&mut setting);
    assert!(word == Condition::NotEnforcing && why.contains("does not run it"), "{word:?} {why}");
    setting.enforcer.broken.set(false);
    setting.give(Input::Tick);
    assert_eq!(condition(&mut setting), (Condition::Enforcing, String::new()));
}

#[test]
fn an_ambiguous_beginning_lists_its_candidates() {
    let mut setting = setting();
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    setting.give(answer(PART, 5, Ok(holds())));
    setting.probed(5, holds());
    let ask = |setting: &Setting, text: &str| {
        setting.reconciler.resolve(text, &VolumeRequest::Show).err().map(|failure| failure.error)
    };
    assert_eq!(ask(&setting, "dm:"), None);
    assert_eq!(ask(&setting, "part:"), None);
    assert!(ask(&setting, "").is_some_and(|error| error.contains("begins with ''")));
    let mut other = Record::new("dm:UUID-10".into(), "dm".into(), false, 0);
    other.state = State::Blank;
    setting.reconciler.store.put(&other, &[]).expect("stored");
    let error = ask(&setting, "dm:UUID-").expect("ambiguous");
    assert!(
        error.contains("is the beginning of 2 ids") && error.contains("\n  dm:UUID-1\n  dm:UUID-10"),
        "{error}"
    );
    assert_eq!(ask(&setting, "dm:UUID-1"), None, "a whole id is never ambiguous");
}

#[test]
fn a_volume_that_is_here_and_holds_a_format_is_not_forgotten() {
    let mut setting = setting();
    setting.probed(5, holds());
    let forget = |setting: &mut Setting| {
        let what = VolumeRequest::Forget { reason: "test".into() };
        let id = setting.reconciler.resolve("dm:UUID-1", &what)?;
        setting.reconciler.answer_of(&id, what, 0)
    };
    let failure = forget(&mut setting).err().expect("refused");
    assert_eq!(failure.kind, crate::api::FailureKind::Refused);
    fs::remove_file(setting.sysfs.path().join("class/block/dm-0")).expect("gone");
    fs::remove_file(setting.sysfs.path().join("dev/block/253:0")).expect("gone");
    setting.give(Input::Removed { name: "dm-0".into() });
    assert!(forget(&mut setting).is_ok());
    assert!(forget(&mut setting).is_err(), "it is not known any more");
}

/// A process that formats a device; held where `lock_dev` says.
fn begin(setting: &mut Setting, dev: Dev, lock_dev: Dev) {
    begin_by(setting, dev, lock_dev, NOBODY, MKFS, wrote::BYTES);
}

/// A known formatter.
const MKFS: [u8; 16] = *b"mkfs.ext4\0\0\0\0\0\0\0";
/// No process has this id.
const NOBODY: Process = Process { started: 1, tgid: u32::MAX, zero: 0 };

fn begin_by(setting: &mut Setting, dev: Dev, lock_dev: Dev, process: Process, comm: [u8; 16], wrote: u32) {
    let entry = FormatOwner { process, diskseq: 5, dev: dev.to_kernel(), wrote, mounted: 0, comm, cgroup: 1 };
    setting.enforcer.owners.lock().insert(lock_dev.to_kernel(), entry);
    let (kind, reason) = (EventKind::FormatBegan as u32, wrote);
    let event = KernelEvent {
        kind,
        reason,
        dev: dev.to_kernel(),
        diskseq: 5,
        process,
        comm,
        ..KernelEvent::default()
    };
    setting.give(reported(&event));
}

/// A virtual machine's monitor writes a magic to an armed volume.
fn begin_by_monitor(setting: &mut Setting, process: Process) {
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    begin_by(setting, DEV, DEV, process, *b"qemu-system-x86\0", wrote::BYTES | wrote::MAGIC);
    assert_eq!(setting.state(), State::Formatting);
}

#[test]
fn what_a_monitor_writes_is_recorded_while_it_lives_and_it_goes_on() {
    let mut setting = setting();
    begin_by_monitor(&mut setting, NOBODY);
    setting.probed(5, holds());
    let rule = setting.rule();
    assert_eq!((rule.state, rule.flags & flag::HELD), (State::Formatted as u32, flag::HELD));
    assert!(!setting.enforcer.owners.lock().is_empty());
    setting.give(Input::Ended { process: NOBODY, status: None, last: true });
    assert_eq!(setting.rule().flags & flag::HELD, 0);
    assert!(setting.enforcer.owners.lock().is_empty());
    for _ in 0..3 {
        setting.probed(5, Finding::Blank);
    }
    assert_eq!(setting.state(), State::Formatted);
}

/// udisksd lives as long as the host: what it has closed is not its own any more.
#[test]
fn what_one_that_is_no_formatter_has_closed_is_not_its_own_though_it_lives() {
    let mut setting = setting();
    let this = crate::process::identity(std::process::id()).expect("this process");
    begin_by_monitor(&mut setting, this);
    setting.probed(5, holds());
    assert_eq!(setting.rule().flags & flag::HELD, flag::HELD, "it may have closed it for a moment");
    setting.give(Input::Tick);
    let rule = setting.rule();
    assert_eq!((rule.state, rule.flags & flag::HELD), (State::Formatted as u32, 0));
    assert!(setting.enforcer.owners.lock().is_empty());
}

#[test]
fn an_agent_that_starts_anew_lets_a_monitor_go_on_and_waits_for_its_end() {
    let mut setting = setting();
    begin_by_monitor(&mut setting, NOBODY);
    setting.probed(5, holds());
    let id = VolumeId::from("dm:UUID-1");
    setting.reconciler.records.entry(id).and_modify(|record| record.attachment.progress = Progress::Past);
    setting.give(Input::Tick);
    assert_eq!(setting.rule().flags & flag::HELD, flag::HELD);
    setting.give(Input::Ended { process: NOBODY, status: None, last: true });
    assert!(setting.enforcer.owners.lock().is_empty());
}

#[test]
fn a_format_of_the_medium_that_was_there_before_says_nothing_of_the_one_that_is_there_now() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    attach(setting.sysfs.path(), 9);
    setting.give(changed("dm-0"));
    assert_eq!(setting.state(), State::Unverified);
    // With the attachment of the first one: both what waited in the ring buffer and what the kernel still
    // has.
    begin(&mut setting, DEV, DEV);
    setting.give(Input::Tick);
    assert_eq!(setting.state(), State::Unverified);
}

#[test]
fn a_format_of_a_partition_stays_with_who_began_it_whatever_the_disk_reads_as_meanwhile() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    let probed_part = |setting: &mut Setting, finding| {
        setting.give(answer(PART, 5, Ok(finding)));
    };
    probed_part(&mut setting, Finding::Blank);
    probed_part(&mut setting, Finding::Blank);
    begin(&mut setting, PART, DEV);
    assert_eq!(setting.rule_of(PART).state, State::Formatting as u32);
    assert_eq!(setting.rule().state, State::Formatted as u32, "nobody formats the disk meanwhile");
    setting.probed(5, holds());
    assert_eq!(setting.state(), State::Blank, "half of a format is none");
    assert_eq!(setting.rule_of(PART).lock_dev, DEV.to_kernel());
    let process = Process { started: 1, tgid: u32::MAX, zero: 0 };
    setting.give(reported(&KernelEvent {
        kind: EventKind::FormatEnded as u32,
        process,
        status: 256,
        ..KernelEvent::default()
    }));
    setting.give(Input::Ended { process, status: None, last: true });
    probed_part(&mut setting, holds());
    assert_eq!(setting.rule_of(PART).state, State::Blank as u32, "it failed: it may be tried again");
    assert_eq!(setting.rule().state, State::Blank as u32);
    assert!(setting.enforcer.owners.lock().is_empty());
}

#[test]
fn a_better_identity_waits_until_the_format_is_over() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    begin(&mut setting, DEV, DEV);
    fs::write(setting.sysfs.path().join("devices/virtual/block/dm-0/dm/uuid"), "UUID-2").expect("attribute");
    setting.give(changed("dm-0"));
    assert_eq!((setting.state(), setting.rule().state), (State::Formatting, State::Formatting as u32));
    assert!(!setting.enforcer.owners.lock().is_empty(), "it is still in its hands");
    setting.give(Input::Ended {
        process: Process { started: 1, tgid: u32::MAX, zero: 0 },
        status: None,
        last: true,
    });
    setting.probed(5, holds());
    setting.give(Input::Tick);
    assert_eq!(setting.reconciler.graph.id(DEV), Some(&"dm:UUID-2".into()));
}

#[test]
fn a_probe_that_overtakes_the_event_of_a_format_does_not_take_it_from_its_formatter() {
    for result in [Ok(holds()), Err(ProbeError::Deadline)] {
        let mut setting = setting();
        setting.probed(5, Finding::Blank);
        setting.probed(5, Finding::Blank);
        let process = Process { started: 1, tgid: u32::MAX, zero: 0 };
        let entry =
            FormatOwner { process, diskseq: 5, dev: DEV.to_kernel(), comm: MKFS, ..FormatOwner::default() };
        setting.enforcer.owners.lock().insert(DEV.to_kernel(), entry);
        setting.give(answer(DEV, 5, result));
        assert_eq!((setting.state(), setting.rule().state), (State::Formatting, State::Formatting as u32));
        assert!(!setting.enforcer.owners.lock().is_empty(), "it is still in its hands");
    }
}

#[test]
fn a_probe_from_before_the_end_of_a_format_is_not_what_the_format_left() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    begin(&mut setting, DEV, DEV);
    let begun = Instant::now();
    setting.give(Input::Ended {
        process: Process { started: 1, tgid: u32::MAX, zero: 0 },
        status: None,
        last: true,
    });
    setting.give(Input::Probed(ProbeAnswer {
        dev: DEV,
        diskseq: 5,
        begun,
        result: Ok(holds()),
        twice: false,
        copy: None,
    }));
    assert_eq!(setting.state(), State::Formatting, "what it holds is not known yet");
    setting.probed(5, holds());
    assert_eq!(setting.state(), State::Formatted);
}

#[test]
fn a_probe_of_what_lies_below_that_overtakes_the_event_of_a_format_does_not_stop_it() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    attach_partition(setting.sysfs.path());
    setting.give(changed("dm-0p1"));
    for _ in 0..2 {
        setting.give(answer(PART, 5, Ok(Finding::Blank)));
    }
    let process = Process { started: 1, tgid: u32::MAX, zero: 0 };
    let entry = FormatOwner { process, diskseq: 5, dev: PART.to_kernel(), ..FormatOwner::default() };
    setting.enforcer.owners.lock().insert(DEV.to_kernel(), entry);
    setting.probed(5, holds());
    assert_eq!(setting.state(), State::Blank, "half of a format is none");
    assert_eq!(setting.rule_of(PART).state, State::Formatting as u32, "its formatter goes on");
}

/// The agent looks at a device without a uuid where nodes name devices, and none names this one yet.
#[test]
fn what_a_node_may_come_to_name_is_not_armed_meanwhile() {
    let mut setting = setting();
    let nodes = setting.sysfs.path().join("nodes");
    fs::create_dir(&nodes).expect("directory");
    fs::remove_file(setting.sysfs.path().join("devices/virtual/block/dm-0/dm/uuid")).expect("no uuid");
    setting.reconciler.host.devices = Devices::recorded(setting.sysfs.path()).naming(Some(nodes));
    setting.give(changed("dm-0"));
    let state = |setting: &Setting| setting.reconciler.records[&VolumeId::from("path:dm/x")].state;
    for _ in 0..3 {
        setting.probed(5, Finding::Blank);
    }
    assert_eq!(state(&setting), State::Unverified);
    setting.reconciler.unnamed_since.insert(DEV, (5, clocks().boot - NAMING));
    setting.give(Input::Tick);
    for _ in 0..2 {
        setting.probed(5, Finding::Blank);
    }
    assert_eq!(state(&setting), State::Blank, "no node came");
}
