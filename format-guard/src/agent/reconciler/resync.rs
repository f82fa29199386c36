//! Makes good what no event has told: the devices are compared with sysfs, the rules and owners with the
//! kernel's maps.
//!
//! Some devices at a time: reading thousands takes a second, and neither a new device nor an operator waits
//! for that.

use std::{
    collections::{HashMap, HashSet},
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use tracing::{error, info, warn};

use super::{Reconciler, devices::may_hold};
use crate::{
    agent::{clocks, now},
    record::transition::{self, Event},
    volume::{Dev, VolumeId, device::Device, graph::MAX_DEPTH},
};

/// How often volumes are forgotten that were not seen for long.
const PRUNE_EVERY: Duration = Duration::from_hours(1);
/// Devices that are read between two inputs: some milliseconds.
const AT_ONCE: usize = 16;

/// A comparison that is under way.
#[derive(Default)]
pub(super) struct Comparison {
    /// Kernel names that are not read yet.
    names: Vec<String>,
    read: Vec<Device>,
    /// Devices that an event has changed meanwhile: what the comparison has read of them may be older.
    overtaken: HashSet<Dev>,
}

impl Reconciler {
    /// Begins a comparison of devices, rules and records; it goes on between the inputs.
    pub(super) fn begin_resync(&mut self) -> Result<()> {
        self.keep_protected();
        self.keep_waited_for(self.settings.first_format_wait);
        self.begin_comparison()
    }

    fn begin_comparison(&mut self) -> Result<()> {
        let names = self.host.devices.names().context("cannot list the block devices in sysfs")?;
        self.comparison = Some(Comparison { names, ..Comparison::default() });
        Ok(())
    }

    /// Goes on with what [`Self::begin_resync`] began, if it is not over.
    pub(super) fn go_on_with_resync(&mut self) {
        if !self.compare(AT_ONCE) {
            return;
        }
        self.repair();
        self.repair_mounts();
        let held = self.records.values().filter(|record| transition::is_held(record));
        let held: Vec<VolumeId> = held.map(|record| record.id.clone()).collect();
        for id in held {
            self.see_whether_held(&id);
        }
        let now = clocks();
        let waiting = self.records.values().filter(|record| transition::waits(record, now));
        let ids: Vec<VolumeId> = waiting.map(|record| record.id.clone()).collect();
        for id in ids {
            self.apply(&id, Event::Tick);
        }
    }

    /// A mount proves a format, also one whose event was lost.
    pub(super) fn repair_mounts(&mut self) {
        for dev in mounted_devices() {
            let record = self.graph.id(dev).and_then(|id| self.records.get(id));
            if record.is_some_and(|record| transition::is_mount_untold(record)) {
                if self.enforcer.tier().tells_of_mounts() {
                    warn!("device {dev}: the event of a mount was lost");
                    self.health.repaired += 1;
                }
                self.apply_to_device(dev, &Event::Mounted);
            }
        }
    }

    /// Puts rules that are missing, and records formats whose event was lost.
    pub(super) fn repair(&mut self) {
        let ruled: HashSet<Dev> = self.enforcer.ruled().into_iter().collect();
        let missing: Vec<Dev> =
            self.graph.iter().map(|device| device.dev).filter(|dev| !ruled.contains(dev)).collect();
        for dev in missing {
            warn!("device {dev}: its rule was missing");
            self.health.repaired += 1;
            self.put_rule(dev);
        }
        self.remove_rules_of_nobody();
        for (lock_dev, entry) in self.enforcer.owners() {
            let lock_dev = self.graph.get(lock_dev);
            if lock_dev.is_some_and(|lock_dev| lock_dev.diskseq == entry.diskseq)
                && self.recover_format(&entry)
            {
                warn!("device {}: the event of a format was lost", Dev::from_kernel(entry.dev));
                self.health.repaired += 1;
            }
        }
    }

    /// Removes the rules of devices that are gone: the next device under such a number would be judged by the
    /// old rule.
    pub(super) fn remove_rules_of_nobody(&mut self) {
        let ruled = self.enforcer.ruled();
        for dev in ruled.into_iter().filter(|dev| self.graph.get(*dev).is_none()) {
            if let Err(error) = self.enforcer.remove_rule(dev) {
                error!("{error}");
            }
        }
    }

    /// Forgets volumes that were not seen for long and hold nothing worth a record.
    pub(super) fn prune(&mut self) {
        if self.settings.forget_after == 0 || self.pruned.is_some_and(|last| last.elapsed() < PRUNE_EVERY) {
            return;
        }
        self.pruned = Some(Instant::now());
        let present: Vec<&VolumeId> = self.records.keys().collect();
        match self.store.prune(&present, now(), now() - self.settings.forget_after) {
            Ok(0) => {}
            Ok(count) => {
                info!("the agent forgot {count} volumes that were long unseen and never held a format");
                if let Err(error) = self.load_names() {
                    error!("the names of volumes cannot be read: {error}");
                }
            }
            Err(error) => error!("the agent cannot forget volumes that were long unseen: {error}"),
        }
    }

    /// A whole comparison at once, without its repairs.
    pub(super) fn compare_with_sysfs(&mut self) -> Result<()> {
        self.begin_comparison()?;
        self.compare(usize::MAX);
        Ok(())
    }

    /// What is known of a device from now on is newer than what a comparison has read of it.
    pub(super) fn overtake_comparison(&mut self, dev: Dev) {
        if let Some(comparison) = &mut self.comparison {
            comparison.overtaken.insert(dev);
        }
    }

    /// Reads so many more devices, and acts on the differences once all are read. Whether that was now.
    fn compare(&mut self, number: usize) -> bool {
        let Some(comparison) = &mut self.comparison else { return false };
        let now = number.min(comparison.names.len());
        let read = comparison.names.drain(..now).filter_map(|name| self.host.devices.device(&name));
        comparison.read.extend(read);
        if !comparison.names.is_empty() {
            return false;
        }
        let Comparison { read, overtaken, .. } = self.comparison.take().unwrap_or_default();
        let numbers: HashSet<Dev> =
            read.iter().map(|device| device.dev).chain(overtaken.iter().copied()).collect();
        let gone: Vec<Dev> =
            self.graph.iter().map(|device| device.dev).filter(|dev| !numbers.contains(dev)).collect();
        for dev in gone {
            self.device_gone(dev);
        }
        self.unnamed_since.retain(|dev, _| numbers.contains(dev));
        let present = read.into_iter().filter(|device| !overtaken.contains(&device.dev)).collect();
        for mut device in lower_first(present) {
            self.identify(&mut device);
            let known = self.graph.get(device.dev);
            if known != Some(&device) && (known.is_some() || may_hold(&device)) {
                self.device_changed(device);
            }
        }
        true
    }
}

/// Devices in an order in which none comes before one that it lies on.
pub(super) fn lower_first(mut devices: Vec<Device>) -> Vec<Device> {
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

/// Devices with a mounted file system, as the init process sees them.
pub(super) fn mounted_devices() -> Vec<Dev> {
    use std::os::unix::fs::MetadataExt;

    let text = fs::read_to_string("/proc/1/mountinfo").unwrap_or_default();
    text.lines()
        .filter_map(|line| {
            // proc_pid_mountinfo(5): the third field is the device; btrfs has an anonymous one there, and its
            // real one as the source after the hyphen.
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
