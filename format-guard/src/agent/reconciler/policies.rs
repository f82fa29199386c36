//! Which declared policy holds for which volume. What is known of a volume is gathered here, and
//! [`policy::choose`] chooses; what follows is the transition function's, and the rule's.

use std::collections::HashMap;

use format_guard_common::State;

use super::{Reconciler, batch::Batch};
use crate::{
    policy::{self, Action, Choice, Fact, Facts, InForce, Policy},
    record::{
        Volume,
        transition::{self, Event},
    },
    volume::{
        VolumeId,
        device::Device,
        identity,
        probe::{Finding, Partition},
    },
};

/// The partition table of a disk, as a probe has read it.
enum Table {
    /// Its partitions, by their first sectors.
    Gpt(HashMap<u64, Partition>),
    /// It has no types that are UUIDs, and no labels.
    Other,
}

impl Table {
    /// Nothing, where the partitions are not known.
    fn of(finding: &Finding) -> Option<Self> {
        let Finding::Holds { found, partitions, .. } = finding else { return None };
        if !found.iter().any(|found| found.name == "gpt") {
            return Some(Self::Other);
        }
        let partitions = partitions.as_ref()?.iter();
        Some(Self::Gpt(partitions.map(|partition| (partition.start, partition.clone())).collect()))
    }

    /// What the table says of the partition that begins at this sector.
    fn of_partition(&self, start: u64, field: impl FnOnce(&Partition) -> Option<String>) -> Fact {
        match self {
            Self::Other => Fact::Known(None),
            // A partition that the table lacks has come since the table was read.
            Self::Gpt(partitions) => {
                partitions.get(&start).map_or(Fact::Unknown, |partition| Fact::Known(field(partition)))
            }
        }
    }
}

/// What probes have found that policies ask for.
#[derive(Default)]
pub(super) struct PolicyFacts {
    /// Labels of the file systems on volumes that are present.
    labels: HashMap<VolumeId, Option<String>>,
    /// Partition tables of disks that are present.
    tables: HashMap<VolumeId, Table>,
}

impl PolicyFacts {
    /// Nothing is known of a volume that is gone.
    pub(super) fn forget(&mut self, id: &VolumeId) {
        self.labels.remove(id);
        self.tables.remove(id);
    }
}

impl Reconciler {
    /// Puts other policies in force.
    pub(super) fn declare_policies(&mut self, policies: &[Policy]) {
        self.settings.policies = policies.to_vec();
        let ids: Vec<VolumeId> = self.records.keys().cloned().collect();
        self.batch = Some(Batch::default());
        for id in ids {
            self.choose_policy(&id);
        }
        self.apply_batch();
    }

    /// Keeps what a probe has found of what policies ask for, before the record is told of it.
    pub(super) fn learn_for_policies(&mut self, id: &VolumeId, finding: &Finding) {
        let label = match finding {
            Finding::Holds { found, .. } => found.iter().find_map(|found| found.label.clone()),
            Finding::Blank | Finding::Unwritten | Finding::Raw(_) => None,
        };
        self.policy_facts.labels.insert(id.clone(), label);
        self.choose_policy(id);
        if let Some(table) = Table::of(finding) {
            self.policy_facts.tables.insert(id.clone(), table);
            // Thousands may be recorded, and each probe would look through all of them.
            if self.settings.policies.is_empty() {
                return;
            }
            let of_it = |record: &&Volume| identity::disk_of(&record.id).as_ref() == Some(id);
            let partitions: Vec<VolumeId> =
                self.records.values().filter(of_it).map(|record| record.id.clone()).collect();
            for partition in partitions {
                self.choose_policy(&partition);
            }
        }
    }

    /// Has the policy of a volume that is attached follow what is known now.
    pub(super) fn choose_policy(&mut self, id: &VolumeId) {
        let Some(event) = self.policy_event(id) else { return };
        let exempt = |reconciler: &Self| {
            reconciler.records.get(id).is_some_and(|record| record.state == State::Exempt)
        };
        let was_exempt = exempt(self);
        self.apply(id, event);
        // What an exempt volume is attached as was not kept, and of others it matters to this action alone.
        let is_ephemeral = self.policy_of(id).is_some_and(|policy| policy.action == Action::Ephemeral);
        if (was_exempt || is_ephemeral) && !exempt(self) {
            let attached = self.graph.of(id).next().map(|device| self.attached_event(device));
            if let Some(event) = attached {
                self.apply(id, event);
            }
        }
    }

    /// What the volume is to be told of its policy, if anything.
    pub(super) fn policy_event(&self, id: &VolumeId) -> Option<Event> {
        let record = self.records.get(id)?;
        let choice = match self.settings.policies.as_slice() {
            [] => Choice::None,
            policies => policy::choose(policies, &self.facts(record)),
        };
        let is_stale = transition::is_exempt_by_policy(record)
            && !choice.is(Action::Exempt)
            && choice != Choice::Undecided;
        (choice != record.attachment.policy || is_stale).then_some(Event::PolicyChosen(choice))
    }

    /// What is known of a volume that policies ask for.
    fn facts(&self, record: &Volume) -> Facts {
        let id = &record.id;
        let devices: Vec<&Device> = self.graph.of(id).collect();
        let shown = devices.iter().flat_map(|device| &device.identity.names).map(|name| &name.id);
        let own: Vec<&VolumeId> = [id].into_iter().chain(shown).collect();
        let disks = own.iter().filter_map(|name| identity::disk_of(name)).map(|disk| disk.to_string());
        let mut names: Vec<String> = own.iter().map(ToString::to_string).chain(disks).collect();
        names.sort();
        names.dedup();
        let (gpt_type, partition_label) = match identity::partition_of(id) {
            Some((disk, start)) => {
                let table = self.policy_facts.tables.get(&disk);
                let of_table = |field: fn(&Partition) -> Option<String>| {
                    table.map_or(Fact::Unknown, |table| table.of_partition(start, field))
                };
                // The kernel knows no label of a partition that a program told it of (BLKPG: parted, partx).
                let of_kernel =
                    devices.iter().find_map(|device| self.host.devices.partition_label(device.dev));
                let label = of_kernel.map_or_else(
                    || of_table(|partition| partition.label.clone()),
                    |label| Fact::Known(Some(label)),
                );
                (of_table(|partition| partition.kind.clone()), label)
            }
            None => (Fact::Known(None), Fact::Known(None)),
        };
        // What is recorded outranks what is read.
        let label = match &record.content {
            Some(content) => Fact::Known(content.label.clone()),
            None => {
                self.policy_facts.labels.get(id).map_or(Fact::Unknown, |label| Fact::Known(label.clone()))
            }
        };
        Facts { names, gpt_type, partition_label, label }
    }

    /// The policy that holds for a volume that is attached.
    pub(super) fn policy_of(&self, id: &VolumeId) -> Option<&InForce> {
        self.records.get(id)?.attachment.policy.in_force()
    }
}
