//! Several devices that lead to one volume, and what else must not be kept for ever.

use super::{super::kernel_events::ENDS_LAST, *};

const OTHER: Dev = Dev { major: 253, minor: 1 };

/// A second path to the volume in `dm-0`.
fn with_two_paths() -> Setting {
    let mut setting = setting();
    attach_at(setting.sysfs.path(), 1, "UUID-1", 7);
    setting.give(changed("dm-1"));
    setting
}

impl Setting {
    fn next_path(&self) -> Dev {
        self.reconciler.path(&"dm:UUID-1".into()).expect("a path").dev
    }

    fn fails(&mut self, dev: Dev, diskseq: u64) {
        self.give(answer(dev, diskseq, Err(ProbeError::Read("standby".into()))));
    }
}

#[test]
fn a_path_that_fails_says_nothing_while_another_one_answers() {
    let mut setting = with_two_paths();
    setting.probed(5, holds());
    setting.fails(DEV, 5);
    let record = |setting: &Setting| setting.reconciler.records[&VolumeId::from("dm:UUID-1")].clone();
    assert_eq!(record(&setting).record.discrepancy, None);
    assert_eq!(setting.next_path(), OTHER, "the next one is probed");
    setting.give(answer(OTHER, 7, Ok(holds())));
    assert_eq!(
        (record(&setting).record.discrepancy, setting.next_path()),
        (None, OTHER),
        "and stays the one"
    );
    // It fails, too: then nothing can be read.
    setting.fails(OTHER, 7);
    assert_eq!((record(&setting).record.discrepancy, setting.next_path()), (None, DEV));
    setting.fails(DEV, 5);
    assert!(record(&setting).discrepancy.is_some());
    setting.give(answer(OTHER, 7, Ok(holds())));
    assert_eq!(record(&setting).record.discrepancy, None);
}

#[test]
fn a_blank_volume_is_armed_by_the_path_that_can_be_read() {
    let mut setting = with_two_paths();
    setting.fails(DEV, 5);
    assert_eq!(setting.next_path(), OTHER);
    setting.give(answer(OTHER, 7, Ok(Finding::Blank)));
    // Asked before that: it says nothing of what the other has read.
    setting.fails(DEV, 5);
    assert_eq!(setting.next_path(), OTHER);
    setting.give(answer(OTHER, 7, Ok(Finding::Blank)));
    assert_eq!(setting.state(), State::Blank);
    setting.fails(DEV, 5);
    assert_eq!(setting.state(), State::Blank, "a path that fails takes nothing away");
}

const MAP: Dev = Dev { major: 253, minor: 2 };

/// A standby path cannot be read for ever, and each try is an error in the kernel's log.
#[test]
fn where_multipath_has_the_paths_its_map_is_read() {
    let mut setting = with_two_paths();
    attach_at(setting.sysfs.path(), 2, "mpath-36001405aaaaaaaabbbbbbbbccccccccdd", 8);
    let slaves = setting.sysfs.path().join("devices/virtual/block/dm-2/slaves");
    fs::create_dir_all(&slaves).expect("directory");
    for name in ["dm-0", "dm-1"] {
        fs::write(slaves.join(name), "").expect("slave");
    }
    setting.give(changed("dm-2"));
    assert_eq!(setting.next_path(), MAP);
    // Both were asked before the map was there.
    setting.fails(DEV, 5);
    setting.fails(OTHER, 7);
    let record = |setting: &Setting| setting.reconciler.records[&VolumeId::from("dm:UUID-1")].clone();
    assert!(record(&setting).cause.contains("not probed"), "{}", record(&setting).cause);
    setting.give(answer(MAP, 8, Ok(holds())));
    assert_eq!(record(&setting).state, State::Formatted);
    assert!(
        !setting.reconciler.records.contains_key(&"dm:mpath-36001405aaaaaaaabbbbbbbbccccccccdd".into()),
        "one volume"
    );
    setting.fails(DEV, 5);
    assert_eq!((record(&setting).record.discrepancy, setting.next_path()), (None, MAP));
    setting.fails(MAP, 8);
    assert!(record(&setting).discrepancy.is_some(), "nothing can be read");
    for link in ["class/block/dm-2", "dev/block/253:2"] {
        fs::remove_file(setting.sysfs.path().join(link)).expect("gone");
    }
    setting.give(Input::Removed { name: "dm-2".into() });
    assert_eq!(setting.next_path(), DEV, "the paths are on their own again");
}

#[test]
fn a_path_that_is_gone_is_not_asked_for() {
    let mut setting = with_two_paths();
    setting.give(answer(OTHER, 7, Ok(holds())));
    for link in ["class/block/dm-1", "dev/block/253:1"] {
        fs::remove_file(setting.sysfs.path().join(link)).expect("gone");
    }
    setting.give(Input::Removed { name: "dm-1".into() });
    assert_eq!(setting.next_path(), DEV);
    setting.fails(DEV, 5);
    assert!(setting.reconciler.records[&VolumeId::from("dm:UUID-1")].discrepancy.is_some());
}

#[test]
fn the_ends_of_processes_that_nobody_waits_for_are_forgotten() {
    let mut setting = setting();
    let ended = |started| KernelEvent {
        kind: EventKind::FormatEnded as u32,
        process: Process { started, tgid: 1, zero: 0 },
        ..KernelEvent::default()
    };
    for started in 0..MAX_ENDS as u64 + 10 {
        setting.give(reported(&ended(started)));
    }
    assert_eq!(setting.reconciler.formats.exit_statuses.len(), MAX_ENDS);
    let newest = Process { started: MAX_ENDS as u64 + 9, tgid: 1, zero: 0 };
    assert!(
        setting.reconciler.formats.exit_statuses.contains_key(&newest),
        "the newest is what somebody waits for"
    );
    setting.give(Input::Tick);
    assert_eq!(setting.reconciler.formats.exit_statuses.len(), MAX_ENDS);
    let Some(long_ago) = Instant::now().checked_sub(ENDS_LAST * 2) else { return };
    for (_, told) in setting.reconciler.formats.exit_statuses.values_mut() {
        *told = long_ago;
    }
    setting.give(Input::Tick);
    assert!(setting.reconciler.formats.exit_statuses.is_empty());
}

#[test]
fn what_is_present_is_not_forgotten_however_long_ago_it_was_stored() {
    let mut setting = setting();
    setting.give(Input::Tick);
    assert_eq!(*setting.pruned.lock().expect("one thread"), [(1, true)], "once, with what is present");
    setting.reconciler.pruned = None;
    setting.reconciler.settings.forget_after = 0;
    setting.give(Input::Tick);
    assert_eq!(setting.pruned.lock().expect("one thread").len(), 1, "never is never");
}
