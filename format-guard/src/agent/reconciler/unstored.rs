//! Records that could not be stored: kept here, and stored once that is possible again.
//!
//! Until then the kernel keeps its own note of who formatted such a volume, for an agent that starts anew;
//! and nothing is armed that is not stored together with all of them.

use std::collections::BTreeMap;

use format_guard_common::{State, event::Process};
use tracing::{error, info};

use super::Reconciler;
use crate::{
    agent::{clocks, now},
    record::{
        Record, Seconds, Volume,
        history::HistoryEvent,
        store::StoreError,
        transition::{self, Event},
    },
    volume::{Dev, VolumeId},
};

/// Lines of the history that wait with one record at most: the oldest are dropped.
const MAX_TOLD: usize = 64;

/// Everything that is not stored.
#[derive(Default)]
pub(super) struct Unstored {
    records: BTreeMap<VolumeId, Kept>,
    /// When the first of them could not be stored, and what the store said last.
    failure: Option<(Seconds, String)>,
}

#[derive(Default)]
struct Kept {
    record: Option<Record>,
    told: Vec<HistoryEvent>,
    /// Format owners to be released once the record is stored, by lock device.
    owners: Vec<(Dev, Process)>,
}

/// A record that is to be stored.
pub(super) struct Change {
    /// As it was before.
    pub(super) old: Volume,
    pub(super) new: Volume,
    pub(super) told: Vec<HistoryEvent>,
}

impl Change {
    /// Whether the kernel would let a formatter through by the new record that it refuses by the old one.
    fn loosens(&self) -> bool {
        matches!(self.new.state, State::Blank | State::Permitted | State::Exempt)
            && (self.new.state != self.old.state || self.new.armed != self.old.armed)
    }

    /// Armed before allowed: what is not on disk is not allowed.
    fn held_back(self, error: &StoreError) -> Volume {
        let mut held_back = self.old;
        let record = &mut held_back.record;
        record.cause = format!("the store failed: {error}");
        record.state = if record.ever_formatted { State::Formatted } else { State::Unverified };
        record.armed = None;
        held_back
    }
}

impl Unstored {
    /// The newest record of a volume, if that is not stored.
    pub(super) fn record(&self, id: &VolumeId) -> Option<&Record> {
        self.records.get(id)?.record.as_ref()
    }

    pub(super) fn count(&self) -> usize {
        self.records.len()
    }

    /// Forgets what is kept of a volume.
    pub(super) fn forget(&mut self, id: &VolumeId) {
        self.records.remove(id);
    }

    /// Puts off the release of format owners until the record is stored. False where nothing of the volume
    /// waits to be stored.
    pub(super) fn release_later(&mut self, id: &VolumeId, owners: &[(Dev, Process)]) -> bool {
        let Some(kept) = self.records.get_mut(id) else { return false };
        for owner in owners {
            if !kept.owners.contains(owner) {
                kept.owners.push(*owner);
            }
        }
        true
    }

    /// Whether the release of this process is put off: its format is known already.
    pub(super) fn is_to_be_released(&self, process: Process) -> bool {
        self.records.values().any(|kept| kept.owners.iter().any(|(_, held)| *held == process))
    }

    /// Why protection is less than it should be.
    pub(super) fn degraded(&self) -> Option<String> {
        let (_, reason) = self.failure.as_ref().filter(|_| !self.records.is_empty())?;
        Some(format!(
            "{} records could not be stored ({reason}): they are kept in memory and tried again, and nothing is armed \
             meanwhile; see that the file system of state_dir is sound and has room",
            self.records.len()
        ))
    }

    fn keep(&mut self, record: Record, told: Vec<HistoryEvent>, error: &StoreError) {
        let reason = error.to_string();
        match &mut self.failure {
            Some((_, last)) => *last = reason,
            None => self.failure = Some((now(), reason)),
        }
        let kept = self.records.entry(record.id.clone()).or_default();
        kept.record = Some(record);
        kept.told.extend(told);
        let surplus = kept.told.len().saturating_sub(MAX_TOLD);
        kept.told.drain(..surplus);
    }
}

impl Reconciler {
    /// Stores records in one transaction. Returns the volumes that may not become what they were to become,
    /// because that could not be stored.
    pub(super) fn store_all(&mut self, changes: Vec<Change>) -> Vec<Volume> {
        let none = BTreeMap::new();
        // Nothing is armed while a record is known here alone.
        let rest = if changes.iter().any(Change::loosens) { &self.unstored.records } else { &none };
        let ours = |id: &VolumeId| changes.iter().any(|change| change.new.id == *id);
        let before: Vec<&[HistoryEvent]> = changes
            .iter()
            .map(|change| self.unstored.records.get(&change.new.id).map_or(&[][..], |kept| &kept.told))
            .collect();
        let told: Vec<Vec<HistoryEvent>> =
            changes.iter().zip(before).map(|(change, before)| [before, &change.told].concat()).collect();
        let stored: Vec<(&Record, &[HistoryEvent])> = rest
            .iter()
            .filter(|(id, _)| !ours(id))
            .filter_map(|(_, kept)| Some((kept.record.as_ref()?, kept.told.as_slice())))
            .chain(changes.iter().zip(&told).map(|(change, told)| (&change.new.record, told.as_slice())))
            .collect();
        let ids: Vec<VolumeId> = stored.iter().map(|(record, _)| record.id.clone()).collect();
        match self.store.put_all(&stored) {
            Ok(()) => {
                self.are_stored(&ids);
                Vec::new()
            }
            Err(error) => {
                error!("{} records cannot be stored: {error}", changes.len());
                let mut held_back = Vec::new();
                for change in changes {
                    if change.loosens() {
                        let volume = change.held_back(&error);
                        self.unstored.keep(volume.record.clone(), Vec::new(), &error);
                        held_back.push(volume);
                    } else {
                        self.unstored.keep(change.new.record, change.told, &error);
                    }
                }
                held_back
            }
        }
    }

    /// The records of these volumes are on disk: their format owners are released.
    fn are_stored(&mut self, ids: &[VolumeId]) {
        for id in ids {
            for (lock_dev, process) in self.unstored.records.remove(id).unwrap_or_default().owners {
                self.release_owner(lock_dev, process);
            }
        }
        if self.unstored.records.is_empty()
            && let Some((since, reason)) = self.unstored.failure.take()
        {
            let text = format!("all records are stored again, after {} s: {reason}", now() - since);
            info!("{text}");
            self.append_history(String::new(), "stored", text);
        }
    }

    /// Tries once more to store what could not be stored.
    pub(super) fn store_unstored(&mut self) {
        self.history.try_again();
        if self.unstored.records.is_empty() {
            return;
        }
        let kept = self.unstored.records.iter();
        let stored: Vec<(&Record, &[HistoryEvent])> =
            kept.filter_map(|(_, kept)| Some((kept.record.as_ref()?, kept.told.as_slice()))).collect();
        match self.store.put_all(&stored) {
            Ok(()) => {
                let ids: Vec<VolumeId> = self.unstored.records.keys().cloned().collect();
                self.are_stored(&ids);
            }
            Err(error) => {
                error!("{} records cannot be stored yet: {error}", self.unstored.count());
                self.disarm_all();
            }
        }
    }

    /// Keeps a record that is not attached, and that could not be stored.
    pub(super) fn keep_unstored(&mut self, record: Record, error: &StoreError) {
        error!("the record of {} cannot be stored: {error}", record.id);
        self.unstored.keep(record, Vec::new(), error);
    }

    /// While a format could not be recorded, none may begin.
    pub(super) fn disarm_all(&mut self) {
        let armed = self.records.values().filter(|record| record.state == State::Blank);
        let ids: Vec<VolumeId> = armed.map(|record| record.id.clone()).collect();
        for id in ids {
            if let Some((old, new)) = self.disarm(&id) {
                self.store_all(vec![Change { old, new, told: Vec::new() }]);
                self.update_desired(&id, false);
            }
        }
    }

    /// Lets nobody begin a format of a volume any more. Its record before and after, unless somebody had
    /// begun one.
    pub(super) fn disarm(&mut self, id: &VolumeId) -> Option<(Volume, Volume)> {
        let old = self.records.get(id)?.clone();
        let (new, _) = transition::next(&old, Event::Disarmed, clocks());
        self.records.insert(id.clone(), new.clone());
        self.put_rules(id);
        let device = self.graph.of(id).next().map(|device| device.dev);
        // A formatter may have begun until the rule was put.
        let Some(entry) = device.and_then(|dev| self.formatter_of(dev)) else { return Some((old, new)) };
        self.records.insert(id.clone(), old);
        self.recover_format(&entry);
        None
    }
}
