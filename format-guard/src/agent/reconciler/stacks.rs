//! What the record of one volume means for the volumes that share its bytes: their rules, their overlaps,
//! formats seen through layers.

use std::collections::BTreeSet;

use format_guard_common::{Rule, State, Windows, claim::Lease, event::FormatOwner};
use tracing::error;

use super::Reconciler;
use crate::{
    enforce::rule::{self, Other, Subject, holds_format, shifted},
    policy::Action,
    record::{Claim, Overlap, Overlay, Record, Volume, transition::Event},
    volume::{
        Dev, VolumeId,
        graph::{Related, Relation},
        identity,
        marks::Mark,
        probe,
    },
};

/// Whether a volume's id is one of these, or begins as one that ends in `*`.
fn is_of(patterns: &[String], id: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(beginning) => id.starts_with(beginning),
        None => id == pattern,
    })
}

impl Reconciler {
    /// The lock device of a device, and its attachment: under it the format owner is kept for all that share
    /// bytes with the device.
    pub(super) fn lock_dev(&self, dev: Dev) -> (Dev, u64) {
        let is_container =
            |lower: Dev| self.record_at(lower).is_some_and(|record| record.state == State::Formatted);
        let attachment = |lock_dev: Dev| self.graph.get(lock_dev).map_or(0, |device| device.diskseq);
        // A format owner stays under the lock device where it began until it is released.
        let bottom = self.graph.lock_dev(dev, &|_| false);
        let began_there = self
            .enforcer
            .owner(bottom)
            .is_some_and(|entry| entry.dev == dev.to_kernel() && entry.diskseq == attachment(bottom));
        let lock_dev = if began_there { bottom } else { self.graph.lock_dev(dev, &is_container) };
        (lock_dev, attachment(lock_dev))
    }

    /// The format owner of this very device, by the kernel's map.
    pub(super) fn formatter_of(&self, dev: Dev) -> Option<FormatOwner> {
        self.formatter_around(dev).filter(|entry| entry.dev == dev.to_kernel())
    }

    /// The format owner of this device or of one that shares its bytes, by the kernel's map.
    pub(super) fn formatter_around(&self, dev: Dev) -> Option<FormatOwner> {
        let (lock_dev, attachment) = self.lock_dev(dev);
        self.enforcer.owner(lock_dev).filter(|entry| entry.diskseq == attachment)
    }

    /// Whether a volume that lies on a device, which holds nothing of its own yet, is formatted at this
    /// moment.
    pub(super) fn is_being_formatted_from_above(&self, dev: Dev) -> bool {
        self.record_at(dev).is_some_and(|record| matches!(record.state, State::Blank | State::Unverified))
            && self.graph.related(dev).iter().any(|related| {
                related.relation == Relation::Above
                    && self.record_at(related.dev).is_some_and(|upper| upper.state == State::Formatting)
            })
    }

    fn record_at(&self, dev: Dev) -> Option<&Volume> {
        self.records.get(self.graph.id(dev)?)
    }

    /// The rule for a device, and the windows through which others are reached by it.
    pub(super) fn rule_for(&self, dev: Dev) -> Option<(Rule, Windows)> {
        let (device, record) = (self.graph.get(dev)?, self.record_at(dev)?);
        let others = self.graph.related(dev).into_iter().filter_map(|related| {
            let record = self.record_at(related.dev)?;
            Some(Other {
                dev: related.dev.to_kernel(),
                record,
                relation: related.relation,
                shared: related.shared,
            })
        });
        let others = others.chain(self.dropped_on(dev)).collect();
        let subject = Subject {
            dev: dev.to_kernel(),
            diskseq: device.diskseq,
            size: device.size,
            lock_dev: self.lock_dev(dev),
            record,
            strict: self.is_strict_by_configuration(record),
            array_runs: Self::array_of(record).is_some_and(|array| self.graph.of(&array).next().is_some()),
            others,
        };
        Some(rule::of(&subject, self.audits()))
    }

    /// Puts the rule for one device.
    pub(super) fn put_rule(&mut self, dev: Dev) {
        if let Some(batch) = &mut self.batch {
            batch.rule_later(dev);
            return;
        }
        let (Some(device), Some(record)) = (self.graph.get(dev), self.record_at(dev)) else { return };
        let Some((rule, windows)) = self.rule_for(dev) else { return };
        let claim = record.attachment.claim;
        let is_followed = record.state == State::Blank || record.attachment.policy.is(Action::Slot);
        let node = is_followed.then(|| probe::node_path(&device.name));
        self.host.closing.watch(dev, node.as_deref());
        if let Err(error) = self.enforcer.put_rule(&rule, &windows) {
            error!("{error}");
            // The rule that could not be replaced may let a formatter through, and the claim may be another
            // node's soon: the lease ends now.
            if claim != Claim::Unneeded
                && let Err(error) = self.enforcer.put_lease(&Lease { until: 0, ..self.enforcer.lease() })
            {
                error!("{error}");
            }
        }
    }

    /// Whether it is one of a class of volumes that are strict.
    pub(super) fn is_strict_by_configuration(&self, record: &Record) -> bool {
        is_of(&self.settings.strict, record.id.as_str())
    }

    /// The md array that a volume is a member of, or was until the array dropped it.
    fn array_of(record: &Record) -> Option<VolumeId> {
        let content = record.content.as_ref().filter(|content| content.is_md_member())?;
        Some(identity::md_of_uuid(content.uuid.as_deref()?, "").id)
    }

    /// Puts the rules of all members of an array that has come or gone, and of those that it has dropped.
    pub(super) fn put_rules_of_members(&mut self, array: &VolumeId) {
        if !array.as_str().starts_with("md:") {
            return;
        }
        let is_member = |record: &Volume| Self::array_of(record).as_ref() == Some(array);
        let members: Vec<VolumeId> = self
            .records
            .values()
            .filter(|record| is_member(record))
            .map(|record| record.id.clone())
            .collect();
        for member in members {
            self.put_rules(&member);
        }
    }

    /// Puts the rules of every device that shares bytes with this one.
    pub(super) fn put_rules_around(&mut self, dev: Dev) {
        for related in self.graph.related(dev) {
            self.put_rule(related.dev);
        }
    }

    /// Propagates what is known of a volume to all that share its bytes, until nothing changes any more. Each
    /// step only adds protection or takes back what it added, so there is an end to it.
    pub(super) fn propagate(&mut self, dev: Dev) {
        let around = self.graph.related(dev);
        let mut open: BTreeSet<Dev> = around.into_iter().map(|related| related.dev).collect();
        if open.is_empty() && self.record_at(dev).is_none_or(|record| record.attachment.overlay.is_none()) {
            return;
        }
        open.insert(dev);
        match &mut self.batch {
            Some(batch) => batch.propagate_later(open),
            None => self.propagate_all(open),
        }
    }

    /// The same for several devices.
    pub(super) fn propagate_all(&mut self, mut open: BTreeSet<Dev>) {
        while let Some(dev) = open.pop_first() {
            let Some(id) = self.graph.id(dev).cloned() else { continue };
            let related = self.graph.related(dev);
            let format_above = self.format_above(&related);
            let overlaid = self.overlaid(&related).or_else(|| self.over_dropped(dev));
            let mut changed = false;
            if let Some((volume, marks)) = format_above
                && self
                    .record_at(dev)
                    .is_some_and(|record| matches!(record.state, State::Unverified | State::Blank))
            {
                changed |= self.step(&id, Event::UpperFormatSeen { volume: volume.to_string(), marks });
            }
            if self.record_at(dev).is_some_and(|record| record.attachment.overlay != overlaid) {
                changed |= self.step(&id, Event::OverlapChanged(overlaid));
            }
            if changed {
                for other in related {
                    self.put_rule(other.dev);
                    open.insert(other.dev);
                }
            }
        }
    }

    /// The volume that lies on a device and holds a format, with its marks as they lie on the device.
    fn format_above(&self, related: &[Related]) -> Option<(VolumeId, Vec<Mark>)> {
        related.iter().filter(|related| related.relation == Relation::Above).find_map(|related| {
            let record = self.record_at(related.dev).filter(|record| record.state == State::Formatted)?;
            Some((record.id.clone(), shifted(&record.marks, &related.shared).collect()))
        })
    }

    /// What a device reads as is the format of a volume that lies on it: the rest of the device is not its.
    fn is_explained(&self, dev: Dev, record: &Record) -> bool {
        let Some(content) = &record.content else { return false };
        self.graph.related(dev).iter().filter(|related| related.relation == Relation::Above).any(|related| {
            self.record_at(related.dev).is_some_and(|upper| {
                upper.state == State::Formatted
                    && upper
                        .content
                        .as_ref()
                        .is_some_and(|above| above.types == content.types && above.uuid == content.uuid)
            })
        })
    }

    /// The volume below or beside a device whose format the device's own would destroy.
    fn overlaid(&self, related: &[Related]) -> Option<Overlay> {
        related.iter().find_map(|related| {
            if related.relation == Relation::Above || related.shared.is_empty() && !related.transformed {
                return None;
            }
            let record = self.record_at(related.dev).filter(|record| holds_format(record))?;
            if related.transformed {
                return self.transforms(related.dev, record);
            }
            let formatting = record.state == State::Formatting;
            let marked = shifted(&record.marks, &related.shared).next().is_some();
            let what = match &record.content {
                _ if formatting => "is being formatted".to_owned(),
                // What a container hands out is not its own, but its marks are.
                Some(content) if content.is_container() && !marked => return None,
                Some(content) => format!("holds {}", content.name()),
                // The lower volume is known by its mount alone, or by a layer on it, which may be this very
                // device.
                None if !record.mounted => return None,
                None => "is mounted".to_owned(),
            };
            if related.relation == Relation::Below && !formatting && self.is_explained(related.dev, record) {
                return None;
            }
            // Copies of a superblock lie all over a file system: only its first mark is where it begins.
            let first = record.marks.get(..1).unwrap_or_default();
            let begins = shifted(first, &related.shared).next().is_some();
            let overlap = if formatting || !begins { Overlap::Inside } else { Overlap::Start };
            Some(Overlay { by: format!("{}, which {what}", record.id), overlap })
        })
    }

    /// A volume below a layer that writes over it, where that layer is not what the volume is for.
    fn transforms(&self, dev: Dev, record: &Record) -> Option<Overlay> {
        // While it is formatted it is not known yet what for, and what is swapped out is worth nothing once
        // it is opened anew.
        let content = record.content.as_ref().filter(|_| record.state != State::Formatting)?;
        if content.is_container() || content.is_swap_space() || self.is_explained(dev, record) {
            return None;
        }
        let by =
            format!("{}, which holds {}, through a layer that writes over it", record.id, content.name());
        Some(Overlay { by, overlap: Overlap::Transformed })
    }
}
