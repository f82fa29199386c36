//! A volume that several devices lead to is read by one that answers: a standby path of a logical unit, or
//! one that hangs, says nothing of what the volume holds. Where multipath has the paths in its hands, its map
//! is read, which knows the good ones.

use format_guard_common::State;

use super::Reconciler;
use crate::volume::{Dev, VolumeId, device::Device, probe::Finding};

/// By which devices a volume can be read.
#[derive(Default)]
pub(super) struct Paths {
    /// The device that has answered last.
    good: Option<Dev>,
    /// Devices that have failed since.
    failed: Vec<Dev>,
}

impl Reconciler {
    /// The device by which a volume is read next.
    pub(super) fn path(&self, id: &VolumeId) -> Option<&Device> {
        if let Some(map) = self.map_over(id) {
            return Some(map);
        }
        let paths = self.paths.get(id);
        let is_good = |device: &&Device| paths.is_some_and(|paths| paths.good == Some(device.dev));
        let has_failed = |device: &Device| paths.is_some_and(|paths| paths.failed.contains(&device.dev));
        let untried = || self.graph.of(id).find(|device| !has_failed(device));
        self.graph.of(id).find(is_good).or_else(untried).or_else(|| self.graph.of(id).next())
    }

    /// The multipath map that has the paths to a volume: a path that lies on others, or one by a wwid that
    /// names nothing.
    pub(super) fn map_over(&self, id: &VolumeId) -> Option<&Device> {
        let lies_on_a_path =
            |device: &&Device| device.below.iter().any(|below| self.graph.id(below.dev) == Some(id));
        let above = || self.graph.of(id).flat_map(|path| self.graph.above(path.dev));
        self.graph.of(id).find(lies_on_a_path).or_else(|| {
            above()
                .filter_map(|dev| self.graph.get(dev))
                .find(|upper| upper.identity.id.as_str().starts_with("path:dm/mpath-"))
        })
    }

    /// Whether a device of a volume is the map that has the others.
    pub(super) fn is_map(&self, id: &VolumeId, dev: Dev) -> bool {
        self.map_over(id).is_some_and(|map| map.dev == dev)
    }

    /// Whether the first answer of a new path is of another volume than the one that the other paths lead to.
    pub(super) fn is_anothers(&self, id: &VolumeId, dev: Dev, finding: &Finding) -> bool {
        let Finding::Holds { found, .. } = finding else { return false };
        let (Some(record), Some(paths)) = (self.records.get(id), self.paths.get(id)) else { return false };
        let settled = record.state == State::Formatted
            && record.discrepancy.is_none()
            && !record.attachment.relabelled
            && record.attachment.rewritten.is_none()
            && !record.attachment.is_running();
        let recorded = record.content.as_ref().and_then(|content| content.uuid.as_ref());
        let other = found.iter().find_map(|each| each.uuid.as_ref());
        settled
            && paths.good.is_some_and(|good| good != dev)
            && recorded.zip(other).is_some_and(|(recorded, other)| recorded != other)
    }

    /// The other volumes that are read by this device: those to whose paths it is the map.
    pub(super) fn read_by_map(&self, dev: Dev) -> Vec<VolumeId> {
        let below = self.graph.get(dev).map_or(&[][..], |device| &device.below);
        let own = self.graph.id(dev);
        let mut ids: Vec<VolumeId> = below
            .iter()
            .filter_map(|path| self.graph.id(path.dev))
            .filter(|id| Some(*id) != own)
            .filter(|id| self.map_over(id).is_some_and(|map| map.dev == dev))
            .cloned()
            .collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whether a probe by this device came to nothing, and another device is probed in its place.
    pub(super) fn is_read_by_another_path(&mut self, id: &VolumeId, dev: Dev, answered: bool) -> bool {
        if self.graph.of(id).count() < 2 {
            self.paths.remove(id);
            return false;
        }
        let paths = self.paths.entry(id.clone()).or_default();
        if answered {
            *paths = Paths { good: Some(dev), failed: Vec::new() };
            return false;
        }
        paths.good = None;
        if !paths.failed.contains(&dev) {
            paths.failed.push(dev);
        }
        let failed = paths.failed.clone();
        if self.graph.of(id).all(|device| failed.contains(&device.dev)) {
            // All have failed: the next probe begins with the first one again.
            self.paths.remove(id);
            return false;
        }
        self.probe(id);
        true
    }
}
