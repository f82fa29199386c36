use std::{
    cell::RefCell,
    collections::BTreeMap,
    path::Path,
    rc::Rc,
    sync::{Arc, Mutex},
    time::Duration,
};

use format_guard_common::event::HolderEntry;

use super::*;
use crate::{
    enforce::{Counts, MapError},
    record::store::StoreError,
    volume::{marks::MarkKind, probe::Finding},
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
    broken: Arc<Mutex<bool>>,
}

impl Store for RecordingStore {
    fn get(&self, id: &VolumeId) -> Result<Option<Record>, StoreError> {
        Ok(self.records.get(id).cloned())
    }

    fn put(&mut self, record: &Record, _told: &[HistoryEvent]) -> Result<(), StoreError> {
        if *self.broken.lock().expect("one thread") {
            return Err(StoreError::Row { volume: record.id.to_string(), reason: "disk full".into() });
        }
        self.deeds.add(Deed::Stored(record.state));
        self.records.insert(record.id.clone(), record.clone());
        Ok(())
    }

    fn list(&self) -> Result<Vec<(VolumeId, State)>, StoreError> {
        Ok(self.records.values().map(|record| (record.id.clone(), record.state)).collect())
    }

    fn tell(&mut self, _told: &[HistoryEvent]) -> Result<(), StoreError> {
        Ok(())
    }

    fn history(&self, _: i64, _: u32, _: Option<&str>) -> Result<Vec<HistoryEvent>, StoreError> {
        Ok(Vec::new())
    }
}

#[derive(Clone, Default)]
struct RecordingEnforcer {
    deeds: Deeds,
    rules: Rc<RefCell<BTreeMap<u32, Rule>>>,
    holders: Rc<RefCell<BTreeMap<u32, HolderEntry>>>,
}

impl Enforcer for RecordingEnforcer {
    fn put_rule(&mut self, rule: &Rule) -> Result<(), MapError> {
        let state = State::ALL.into_iter().find(|state| *state as u32 == rule.state).expect("a state");
        self.deeds.add(Deed::Ruled(state));
        self.rules.borrow_mut().insert(rule.dev, *rule);
        Ok(())
    }

    fn remove_rule(&mut self, dev: u32) -> Result<(), MapError> {
        self.rules.borrow_mut().remove(&dev);
        Ok(())
    }

    fn ruled(&self) -> Vec<u32> {
        self.rules.borrow().keys().copied().collect()
    }

    fn holder(&self, dev: u32) -> Option<HolderEntry> {
        self.holders.borrow().get(&dev).copied()
    }

    fn holders(&self) -> Vec<(u32, HolderEntry)> {
        self.holders.borrow().iter().map(|(dev, entry)| (*dev, *entry)).collect()
    }

    fn release_holder(&mut self, dev: u32) -> Result<(), MapError> {
        self.deeds.add(Deed::Released);
        self.holders.borrow_mut().remove(&dev);
        Ok(())
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
    enforcer: RecordingEnforcer,
    reconciler: Reconciler<RecordingEnforcer>,
}

const DEV: Dev = Dev { major: 253, minor: 0 };

/// One dm volume in a made sysfs. Its probes fail (there is no such node); the test answers in their place.
fn setting() -> Setting {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
    let sysfs = tempfile::tempdir().expect("directory");
    attach(sysfs.path(), 5);
    let deeds = Deeds::default();
    let broken = Arc::new(Mutex::new(false));
    let enforcer = RecordingEnforcer { deeds: deeds.clone(), ..RecordingEnforcer::default() };
    let store =
        RecordingStore { deeds: deeds.clone(), records: BTreeMap::new(), broken: Arc::clone(&broken) };
    let world = World {
        sysfs: Sysfs::at(sysfs.path()),
        boot: "boot-1".into(),
        audit: false,
        degraded: Vec::new(),
        never_arm: false,
    };
    let entered = runtime.enter();
    let (prober, _) = Prober::new(Duration::from_secs(1));
    let (watcher, _) = Watcher::new();
    let mut reconciler = Reconciler::new(Box::new(store), enforcer.clone(), world, prober, watcher);
    reconciler.compare_with_sysfs().expect("sysfs");
    drop(entered);
    Setting { runtime, sysfs, deeds, broken, enforcer, reconciler }
}

fn attach(root: &Path, diskseq: u64) {
    let device = root.join("devices/virtual/block/dm-0");
    fs::create_dir_all(device.join("dm")).expect("directory");
    let diskseq = diskseq.to_string();
    for (name, value) in
        [("dev", "253:0"), ("size", "2048"), ("diskseq", &*diskseq), ("dm/name", "x"), ("dm/uuid", "UUID-1")]
    {
        fs::write(device.join(name), value).expect("attribute");
    }
    for class in ["class/block", "dev/block"] {
        fs::create_dir_all(root.join(class)).expect("directory");
    }
    let _ = std::os::unix::fs::symlink(&device, root.join("class/block/dm-0"));
    let _ = std::os::unix::fs::symlink(&device, root.join("dev/block/253:0"));
}

impl Setting {
    fn give(&mut self, input: Input) {
        let _entered = self.runtime.enter();
        self.reconciler.handle(input).expect("handled");
    }

    fn probed(&mut self, diskseq: u64, finding: Finding) {
        self.give(Input::Probed(Answer { dev: DEV, diskseq, result: Ok(finding) }));
    }

    fn state(&self) -> State {
        self.reconciler.records[&VolumeId::from("dm:UUID-1")].state
    }

    fn rule(&self) -> Rule {
        self.enforcer.rules.borrow()[&DEV.to_kernel()]
    }
}

fn holds() -> Finding {
    Finding::Holds {
        found: vec![Found { name: "ext4".into(), uuid: None, label: None, magic_offset: Some(1080) }],
        marks: vec![Mark { offset: 1080, kind: MarkKind::Magic, bytes: vec![0x53, 0xef] }],
    }
}

#[test]
fn armed_is_stored_before_it_is_allowed() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.deeds.take();
    setting.probed(5, Finding::Blank);
    assert_eq!(setting.deeds.take(), [Deed::Stored(State::Blank), Deed::Ruled(State::Blank), Deed::Released]);
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
    setting.give(Input::Changed { name: "dm-0".into() });
    assert_eq!((setting.rule().diskseq, setting.rule().state), (6, State::Unverified as u32));
}

#[test]
fn a_format_whose_event_was_lost_is_taken_up_by_the_resync() {
    let mut setting = setting();
    setting.probed(5, Finding::Blank);
    setting.probed(5, Finding::Blank);
    let entry = HolderEntry {
        process: Process { started: 1, tgid: u32::MAX, zero: 0 },
        diskseq: 5,
        mounted: 0,
        comm: *b"mkfs.ext4\0\0\0\0\0\0\0",
        cgroup: 1,
    };
    setting.enforcer.holders.borrow_mut().insert(DEV.to_kernel(), entry);
    setting.give(Input::Tick);
    assert_eq!(setting.state(), State::Formatting);
    setting.give(Input::Ended { process: entry.process, last: true });
    setting.probed(5, holds());
    assert_eq!(setting.state(), State::Formatted);
    assert!(setting.enforcer.holders.borrow().is_empty());
}

#[test]
fn a_rule_that_vanished_is_put_back_and_one_of_nobody_is_removed() {
    let mut setting = setting();
    setting.enforcer.rules.borrow_mut().clear();
    setting.enforcer.rules.borrow_mut().insert(99, Rule::new(99, 1, State::Blank));
    setting.give(Input::Tick);
    assert_eq!(setting.enforcer.ruled(), [DEV.to_kernel()]);
    assert_eq!(setting.reconciler.repaired, 1);
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
    setting.give(Input::Changed { name: "dm-0".into() });
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
        setting.give(Input::Kernel(event));
        assert_eq!(setting.state(), State::Formatted);
    }
}

#[test]
fn a_permit_is_asked_for_properly_or_not_given() {
    let mut setting = setting();
    setting.probed(5, holds());
    let ask = |volume: &str, reason: &str, seconds| api::PermitRequest {
        volume: volume.into(),
        reason: reason.into(),
        seconds,
    };
    for (volume, reason, seconds) in
        [("dm:", " ", 60), ("dm:", "x", 0), ("dm:", "x", MAX_PERMIT + 1), ("nobody", "x", 60), ("", "x", 60)]
    {
        assert!(
            setting.reconciler.permit(&ask(volume, reason, seconds), 0).is_err(),
            "{volume} {reason} {seconds}"
        );
        assert_eq!(setting.state(), State::Formatted);
    }
    *setting.broken.lock().expect("one thread") = true;
    assert!(setting.reconciler.permit(&ask("dm:", "x", 60), 0).is_err());
    assert_eq!(setting.rule().state, State::Formatted as u32);
    *setting.broken.lock().expect("one thread") = false;
    assert!(setting.reconciler.permit(&ask("dm:", "x", 60), 0).is_ok());
    assert_eq!(setting.rule().state, State::Permitted as u32);
}
