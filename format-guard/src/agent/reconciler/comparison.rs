//! The devices compared with sysfs, some at a time: reading thousands takes a second, and neither a new device nor an operator
//! waits for that.

use std::collections::HashSet;

use anyhow::{Context, Result};

use super::{Reconciler, lower_first, may_hold};
use crate::{
    agent::clocks,
    enforce::Enforcer,
    record::transition::{self, Event},
    volume::{Dev, VolumeId, device::Device},
};

/// Devices that are read between two inputs: some milliseconds.
const AT_ONCE: usize = 16;

/// A comparison that is under way.
#[derive(Default)]
pub(super) struct Comparison {
    /// Kernel names that are not read yet.
    names: Vec<String>,
    read: Vec<Device>,
    /// Devices that something was done about meanwhile: what was read of them may be older.
    overtaken: HashSet<Dev>,
}

impl<E: Enforcer> Reconciler<E> {
    /// Makes good what no event has told: from now on, between the inputs.
    pub(super) fn begin_resync(&mut self) -> Result<()> {
        self.keep_protected();
        self.keep_waited_for(self.world.first_format_wait);
        self.begin_comparison()
    }

    fn begin_comparison(&mut self) -> Result<()> {
        let names = self.world.devices.names().context("cannot list the block devices in sysfs")?;
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

    /// All of it at once.
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

    /// Reads so many of the devices, and makes the differences good once all are read; whether that was now.
    fn compare(&mut self, number: usize) -> bool {
        let Some(comparison) = &mut self.comparison else { return false };
        let now = number.min(comparison.names.len());
        let read = comparison.names.drain(..now).filter_map(|name| self.world.devices.device(&name));
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
        self.nameless.retain(|dev, _| numbers.contains(dev));
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
