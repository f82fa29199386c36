//! Volumes that come back under other numbers, by other paths, with other names; and devices that show
//! another's name.

use super::*;
use crate::record::Content;

const TARGET: &str = "iqn.2010-01.com.array:host-1";
const A: &str = "naa.6001405f0e7a4d1c2b3a4d5e6f708192";
const B: &str = "naa.6001405aaaaaaaabbbbbbbbccccccccd";
const COUNTER: &str = "naa.60000000000000000e00000000010001";

/// A disk in a made sysfs: a unit of an iSCSI target; of unit 0, a disk without a name of its own.
struct Unit<'a> {
    disk: &'a str,
    minor: u32,
    lun: u32,
    wwid: &'a str,
    diskseq: u64,
    sectors: u64,
}

impl Unit<'_> {
    fn new<'a>(disk: &'a str, minor: u32, lun: u32, wwid: &'a str) -> Unit<'a> {
        Unit { disk, minor, lun, wwid, diskseq: u64::from(minor) + 100, sectors: 2048 }
    }

    fn dev(&self) -> Dev {
        Dev { major: 8, minor: self.minor }
    }
}

impl Setting {
    fn plug(&mut self, unit: &Unit<'_>) {
        let root = self.sysfs.path().to_owned();
        let target = format!("devices/platform/host0/session3/target0:0:{}", unit.minor);
        let device = match unit.lun {
            0 => root.join(format!("devices/virtual/block/{}", unit.disk)),
            lun => root.join(format!("{target}/0:0:{}:{lun}/block/{}", unit.minor, unit.disk)),
        };
        let attributes = [
            ("dev", format!("8:{}", unit.minor)),
            ("size", unit.sectors.to_string()),
            ("diskseq", unit.diskseq.to_string()),
            ("device/wwid", unit.wwid.to_owned()),
        ];
        for (name, value) in attributes {
            fs::create_dir_all(device.join(name).parent().expect("a directory")).expect("directory");
            fs::write(device.join(name), value).expect("attribute");
        }
        let session = root.join("class/iscsi_session/session3");
        fs::create_dir_all(&session).expect("directory");
        fs::write(session.join("targetname"), TARGET).expect("attribute");
        for link in [format!("class/block/{}", unit.disk), format!("dev/block/8:{}", unit.minor)] {
            let _ = fs::remove_file(root.join(&link));
            std::os::unix::fs::symlink(&device, root.join(&link)).expect("link");
        }
        self.give(changed(unit.disk));
    }

    fn unplug(&mut self, unit: &Unit<'_>) {
        for link in [format!("class/block/{}", unit.disk), format!("dev/block/8:{}", unit.minor)] {
            fs::remove_file(self.sysfs.path().join(link)).expect("gone");
        }
        self.give(Input::Removed { name: unit.disk.to_owned() });
    }

    fn reads(&mut self, unit: &Unit<'_>, finding: Finding) {
        self.give(answer(unit.dev(), unit.diskseq, Ok(finding)));
    }

    fn record_of(&self, unit: &Unit<'_>) -> &Record {
        &self.reconciler.records[self.reconciler.graph.id(unit.dev()).expect("present")]
    }

    fn rule_at(&self, unit: &Unit<'_>) -> Rule {
        self.enforcer.rules.lock()[&unit.dev().to_kernel()]
    }

    /// A database that holds these.
    fn knows(&mut self, records: &[Record]) {
        for record in records {
            self.reconciler.store.put(record, &[]).expect("stored");
        }
        self.reconciler.load_names().expect("read");
    }
}

fn ext4(uuid: &str) -> Finding {
    Finding::Holds {
        found: vec![Found {
            name: "ext4".into(),
            uuid: Some(uuid.into()),
            label: None,
            magic_offset: Some(1080),
        }],
        marks: vec![Mark { offset: 1080, kind: MarkKind::Magic, bytes: vec![0x53, 0xef] }],
        partitions: None,
    }
}

fn formatted(id: &str, uuid: &str) -> Record {
    let mut record = Record::new(id.into(), "an earlier version".into(), false, 1);
    record.state = State::Formatted;
    record.ever_formatted = true;
    record.generation = 1;
    record.content = Some(Content { types: vec!["ext4".into()], uuid: Some(uuid.into()), label: None });
    record.marks = vec![Mark { offset: 1080, kind: MarkKind::Magic, bytes: vec![0x53, 0xef] }];
    record
}

#[test]
fn a_used_unit_number_is_a_new_volumes_and_the_old_one_is_known_under_another() {
    let mut setting = setting();
    let first = Unit::new("sda", 0, 5, A);
    setting.plug(&first);
    setting.reads(&first, ext4("a"));
    assert_eq!(setting.record_of(&first).id.as_str(), format!("scsi:{A}"));
    setting.unplug(&first);
    let second = Unit { diskseq: 200, ..Unit::new("sda", 0, 5, B) };
    setting.plug(&second);
    assert_eq!(setting.record_of(&second).state, State::Unverified);
    setting.reads(&second, Finding::Blank);
    setting.reads(&second, Finding::Blank);
    assert_eq!(
        (setting.record_of(&second).state, setting.rule_at(&second).state),
        (State::Blank, State::Blank as u32)
    );
    let moved = Unit::new("sdb", 16, 6, A);
    setting.plug(&moved);
    assert_eq!(setting.record_of(&moved).state, State::Formatted);
    setting.reads(&moved, Finding::Blank);
    assert!(setting.record_of(&moved).discrepancy.is_some(), "however blank it reads");
    assert_eq!(setting.rule_at(&moved).state, State::Formatted as u32);
}

#[test]
fn what_an_earlier_version_knew_by_target_and_unit_is_found_under_its_own_name() {
    let mut setting = setting();
    let old = format!("iscsi:{TARGET},lun=5");
    setting.knows(&[formatted(&old, "a"), formatted(&format!("part:{old}#2048"), "b")]);
    let unit = Unit::new("sda", 0, 5, A);
    setting.plug(&unit);
    let record = setting.record_of(&unit);
    assert_eq!((record.id.as_str(), record.state), (&*format!("scsi:{A}"), State::Formatted));
    assert_eq!(setting.rule_at(&unit).state, State::Formatted as u32);
    assert_eq!(setting.reconciler.names.volume(&old).map(VolumeId::as_str), Some(&*format!("scsi:{A}")));
    assert!(setting.reconciler.store.get(&old.as_str().into()).expect("read").is_none(), "one record");
    // What comes to that unit's number after it is another volume.
    setting.unplug(&unit);
    let next_one = Unit { diskseq: 200, ..Unit::new("sda", 0, 5, B) };
    setting.plug(&next_one);
    assert_eq!(setting.record_of(&next_one).state, State::Unverified);
    // And one that shows nothing better is, for all that is known, the one that was there last.
    setting.unplug(&next_one);
    let counted = Unit { diskseq: 300, ..Unit::new("sda", 0, 5, COUNTER) };
    setting.plug(&counted);
    assert_eq!(setting.record_of(&counted).id.as_str(), format!("scsi:{B}"));
}

#[test]
fn two_records_of_one_volume_become_one_with_the_protection_of_both() {
    are_merged(false);
}

#[test]
fn what_is_put_off_brings_no_record_back_that_was_merged() {
    are_merged(true);
}

fn are_merged(batched: bool) {
    let mut setting = setting();
    let mut by_path = formatted(&format!("iscsi:{TARGET},lun=5"), "a");
    by_path.strict = true;
    let mut other_path = formatted(&format!("iscsi:{TARGET},lun=7"), "a");
    other_path.marks = vec![Mark { offset: 1128, kind: MarkKind::Uuid, bytes: vec![7; 16] }];
    let mut by_map = formatted("dm:mpath-36001405f0e7a4d1c2b3a4d5e6f708192", "a");
    by_map.mounted = true;
    setting.knows(&[by_path, other_path, by_map]);
    setting.reconciler.batch = batched.then(Batch::default);
    let paths = [Unit::new("sda", 0, 5, A), Unit::new("sdb", 16, 7, A)];
    for path in &paths {
        setting.plug(path);
    }
    attach_at(setting.sysfs.path(), 3, "mpath-36001405f0e7a4d1c2b3a4d5e6f708192", 9);
    let slaves = setting.sysfs.path().join("devices/virtual/block/dm-3/slaves");
    fs::create_dir_all(&slaves).expect("directory");
    for path in &paths {
        fs::write(slaves.join(path.disk), "").expect("slave");
    }
    setting.give(changed("dm-3"));
    let entered = setting.runtime.enter();
    setting.reconciler.apply_batch();
    drop(entered);
    let id = VolumeId::from(&*format!("scsi:{A}"));
    assert_eq!(setting.reconciler.graph.of(&id).count(), 3, "two paths and their map");
    let stored = setting.reconciler.store.get(&id).expect("read").expect("a record");
    assert!(stored.strict && stored.mounted && stored.state == State::Formatted, "{stored:?}");
    let record = &setting.reconciler.records[&id];
    assert!(record.strict && record.mounted && record.state == State::Formatted, "{record:?}");
    assert_eq!(record.marks.len(), 2);
    assert_eq!(
        setting.reconciler.path(&id).map(|device| device.name.as_str()),
        Some("dm-3"),
        "the map is read"
    );
    let left: Vec<String> =
        setting.reconciler.store.list().expect("read").iter().map(|record| record.id.to_string()).collect();
    assert!(!left.iter().any(|id| id.starts_with("iscsi:") || id.starts_with("dm:mpath")), "{left:?}");
}

#[test]
fn a_name_that_cannot_be_stored_changes_nothing() {
    let mut setting = setting();
    let old = format!("iscsi:{TARGET},lun=5");
    setting.knows(&[formatted(&old, "a")]);
    *setting.broken.lock().expect("one thread") = true;
    let unit = Unit::new("sda", 0, 5, A);
    setting.plug(&unit);
    assert_eq!(
        (setting.record_of(&unit).id.as_str(), setting.record_of(&unit).state),
        (&*old, State::Formatted)
    );
    assert_eq!(setting.rule_at(&unit).state, State::Formatted as u32);
}

#[test]
fn two_volumes_under_one_name_are_told_and_both_protected() {
    let mut setting = setting();
    let first = Unit::new("sda", 0, 5, A);
    setting.plug(&first);
    setting.reads(&first, Finding::Blank);
    setting.reads(&first, Finding::Blank);
    assert_eq!(setting.record_of(&first).state, State::Blank);
    let second = Unit { sectors: 4096, ..Unit::new("sdb", 16, 6, A) };
    setting.plug(&second);
    assert_ne!(setting.record_of(&second).id, setting.record_of(&first).id);
    for _ in 0..3 {
        setting.reads(&second, Finding::Blank);
    }
    assert_eq!(setting.rule_at(&second).state, State::Unverified as u32, "not armed by another's name");
    setting.give(Input::Tick);
    assert_ne!(setting.record_of(&second).id, setting.record_of(&first).id, "and not by a second look");
    setting.reads(&second, ext4("b"));
    assert_eq!(setting.rule_at(&second).state, State::Formatted as u32);
}

#[test]
fn a_path_that_holds_another_file_system_is_no_path() {
    let mut setting = setting();
    let first = Unit::new("sda", 0, 5, A);
    setting.plug(&first);
    setting.reads(&first, ext4("a"));
    let (second, third) = (Unit::new("sdb", 16, 6, A), Unit::new("sdc", 32, 7, A));
    setting.plug(&third);
    setting.reads(&first, ext4("a"));
    setting.plug(&second);
    setting.reads(&third, ext4("a"));
    setting.reads(&second, ext4("b"));
    assert_ne!(setting.record_of(&second).id, setting.record_of(&first).id);
    assert_eq!(setting.record_of(&third).id, setting.record_of(&first).id);
    setting.reads(&second, ext4("b"));
    for unit in [&first, &second, &third] {
        assert_eq!(setting.rule_at(unit).state, State::Formatted as u32);
    }
    assert_eq!(setting.record_of(&first).discrepancy, None);
}

#[test]
fn the_names_of_a_volume_are_shown_with_what_they_are_worth() {
    let mut setting = setting();
    let unit = Unit::new("sda", 0, 5, A);
    setting.plug(&unit);
    let id = VolumeId::from(&*format!("scsi:{A}"));
    setting.give(Input::Tick);
    let names = setting.reconciler.volume(&id).expect("known").names;
    let told: Vec<(&str, &str)> =
        names.iter().map(|name| (name.name.as_str(), name.worth.as_str())).collect();
    assert_eq!(told, [(id.as_str(), "own"), (&*format!("iscsi:{TARGET},lun=5"), "address")]);
    assert!(names.iter().all(|name| !name.from.is_empty()));
    // Once it is gone, by any of them.
    setting.reads(&unit, ext4("a"));
    setting.unplug(&unit);
    let names = setting.reconciler.volume(&id).expect("known").names;
    assert!(names.iter().all(|name| name.worth == "earlier") && names.len() == 2, "{names:?}");
}

#[test]
fn another_medium_in_a_drive_without_a_name_is_another_volume_after_the_quarantine() {
    let mut setting = setting();
    let unit = |diskseq| Unit { diskseq, ..Unit::new("nullb0", 0, 0, "") };
    setting.plug(&unit(10));
    setting.reads(&unit(10), ext4("a"));
    let first = setting.record_of(&unit(10)).clone();
    assert_eq!(first.state, State::Formatted);
    setting.plug(&unit(11));
    setting.reads(&unit(11), Finding::Blank);
    setting.reads(&unit(11), Finding::Blank);
    let second = setting.record_of(&unit(11)).clone();
    assert_eq!((second.id == first.id, second.state), (true, State::Formatted), "not before");
    setting.reads(&unit(11), ext4("b"));
    let third = setting.record_of(&unit(11));
    assert_eq!(third.content.as_ref().and_then(|content| content.uuid.as_deref()), Some("b"));
    assert_eq!(third.discrepancy, None);
}
