//! How far an operator's word on a disk reaches: a permit or an exemption holds for its partitions, too,
//! since whoever may write over the disk may write over them. It must never reach what has a name of its own
//! (logical volumes, arrays, mappings).

use format_guard_common::State;

use super::{super::clocks, Reconciler};
use crate::{
    record::{
        Claim, Permit, Volume,
        transition::{self, Event},
    },
    volume::{VolumeId, identity},
};

impl Reconciler {
    /// Gives the partitions of a disk the permit that it has.
    pub(super) fn permit_partitions(&mut self, disk: &VolumeId) {
        let Some(permit) = self.records.get(disk).and_then(|record| record.permit.clone()) else { return };
        for partition in self.partitions(disk, |record| record.state != State::Exempt) {
            self.permit_with(&partition, disk, &permit);
        }
    }

    /// Takes from the partitions of a disk the permit that they have of it.
    pub(super) fn revoke_of_partitions(&mut self, disk: &VolumeId, permit: &Permit, reason: &str, uid: u32) {
        for partition in self.partitions(disk, |record| record.permit.is_some()) {
            let own = self.records.get(&partition).and_then(|record| record.permit.as_ref());
            if own.is_some_and(|own| own.reason == of_disk(&permit.reason, disk) && own.at == permit.at) {
                self.apply(&partition, Event::Revoked { reason: reason.to_owned(), uid });
            }
        }
    }

    /// Exempts the partitions of a disk that an operator has exempted.
    pub(super) fn exempt_partitions(&mut self, disk: &VolumeId) {
        for partition in self.partitions(disk, |record| record.state != State::Exempt) {
            self.apply(&partition, exempted_with(disk));
        }
    }

    /// Guards the partitions again that were exempt with their disk alone.
    pub(super) fn guard_partitions(&mut self, disk: &VolumeId) {
        let exempt = |record: &Volume| record.state == State::Exempt;
        for partition in self.partitions(disk, exempt) {
            self.apply(&partition, Event::DiskAdopted { disk: disk.to_string() });
        }
    }

    /// An operator's word on a disk holds for a partition that has appeared on it, by the label that was just
    /// written.
    pub(super) fn word_on_disk(&mut self, partition: &VolumeId) {
        let Some(disk) = identity::disk_of(partition) else { return };
        let Some(record) = self.records.get(&disk) else { return };
        let passed_on = record
            .attachment
            .passed_on
            .as_ref()
            .filter(|(_, end)| clocks().boot < *end)
            .map(|(permit, _)| permit);
        let (state, permit) = (record.state, record.permit.as_ref().or(passed_on).cloned());
        let by_policy = transition::is_exempt_by_policy(record);
        let unverified =
            || self.records.get(partition).is_some_and(|record| record.state == State::Unverified);
        match (state, permit) {
            (State::Permitted | State::Formatting | State::Formatted, Some(permit)) => {
                self.permit_with(partition, &disk, &permit);
            }
            // A partition with a format on record was adopted since, or never was exempt. A disk in memory is
            // exempt by itself.
            // A policy that exempts the disk is matched against its partitions, too.
            (State::Exempt, _) if !by_policy && unverified() => self.apply(partition, exempted_with(&disk)),
            _ => {}
        }
    }

    fn permit_with(&mut self, partition: &VolumeId, disk: &VolumeId, permit: &Permit) {
        let takes = self.records.get(partition).is_some_and(|record| {
            matches!(record.state, State::Formatted | State::Unverified)
                && !record.attachment.is_running()
                && record.attachment.claim == Claim::Unneeded
        });
        if takes {
            let reason = of_disk(&permit.reason, disk);
            self.apply(partition, Event::Permitted(Permit { reason, used: false, ..permit.clone() }));
        }
    }

    fn partitions(&self, disk: &VolumeId, which: fn(&Volume) -> bool) -> Vec<VolumeId> {
        let partitions = self.records.values().filter(|record| which(record));
        partitions
            .map(|record| &record.id)
            .filter(|id| identity::disk_of(id).as_ref() == Some(disk) && self.graph.of(id).next().is_some())
            .cloned()
            .collect()
    }
}

/// Why a partition has a permit.
fn of_disk(reason: &str, disk: &VolumeId) -> String {
    format!("{reason} (said of its disk, {disk})")
}

fn exempted_with(disk: &VolumeId) -> Event {
    Event::ExemptedWith { disk: disk.to_string() }
}
