//! What many events at once mean for records and rules: carried out once, when all of them are known. So are
//! the first look at the world, and the answers of probes.
//!
//! Thousands of volumes on one disk would each have its rule put again and again, and a commit for each. The
//! order stays: all is stored before the first rule is put, and every rule before the first formatter is let
//! go of or a device is probed.

use std::collections::{BTreeMap, BTreeSet};

use super::{Reconciler, copying::Taken, unstored::Change};
use crate::{
    record::{Volume, history::HistoryEvent},
    volume::{Dev, VolumeId},
};

/// What is put off.
#[derive(Default)]
pub(super) struct Batch {
    records: BTreeMap<VolumeId, Unstored>,
    unpropagated: BTreeSet<Dev>,
    unruled: BTreeSet<Dev>,
    unreleased: BTreeSet<VolumeId>,
    unprobed: BTreeSet<VolumeId>,
    undesired: BTreeSet<VolumeId>,
    copies: Vec<Taken>,
}

/// A record that is not stored yet.
struct Unstored {
    /// The volume as its record is stored now.
    old: Volume,
    new: Volume,
    told: Vec<HistoryEvent>,
}

impl Batch {
    /// The newest record of a volume, if it is one of those that are not stored yet.
    pub(super) fn record(&self, id: &VolumeId) -> Option<&Volume> {
        self.records.get(id).map(|unstored| &unstored.new)
    }

    pub(super) fn store_later(&mut self, old: &Volume, new: &Volume, told: &[HistoryEvent]) {
        let unstored = self.records.entry(new.id.clone()).or_insert_with(|| Unstored {
            old: old.clone(),
            new: new.clone(),
            told: Vec::new(),
        });
        unstored.new.clone_from(new);
        unstored.told.extend_from_slice(told);
    }

    pub(super) fn propagate_later(&mut self, devs: BTreeSet<Dev>) {
        self.unpropagated.extend(devs);
    }

    pub(super) fn rule_later(&mut self, dev: Dev) {
        self.unruled.insert(dev);
    }

    pub(super) fn release_later(&mut self, id: &VolumeId) {
        self.unreleased.insert(id.clone());
    }

    pub(super) fn update_desired_later(&mut self, id: &VolumeId) {
        self.undesired.insert(id.clone());
    }

    pub(super) fn copy_later(&mut self, taken: Taken) {
        self.copies.push(taken);
    }

    pub(super) fn probe_later(&mut self, id: &VolumeId) {
        self.unprobed.insert(id.clone());
    }
}

impl Reconciler {
    /// Ends the batch: stores, rules, releases and probes all that was put off.
    pub(super) fn apply_batch(&mut self) {
        let unpropagated = self.batch.as_mut().map(|batch| std::mem::take(&mut batch.unpropagated));
        self.propagate_all(unpropagated.unwrap_or_default());
        let Some(batch) = self.batch.take() else { return };
        let changes =
            batch.records.into_values().map(|Unstored { old, new, told }| Change { old, new, told });
        let changes: Vec<Change> = changes.collect();
        let was_whole = self.unstored.count() == 0;
        if !changes.is_empty() {
            for held_back in self.store_all(changes) {
                self.records.entry(held_back.id.clone()).and_modify(|record| *record = held_back);
            }
        }
        for dev in batch.unruled {
            self.put_rule(dev);
        }
        // Volumes that no rule arms any more are given to other nodes.
        for id in batch.undesired {
            self.update_desired(&id, false);
        }
        for id in batch.unreleased {
            self.release(&id);
        }
        for id in batch.unprobed {
            self.probe(&id);
        }
        self.keep_copies(batch.copies);
        if was_whole && self.unstored.count() > 0 {
            self.disarm_all();
        }
    }
}
