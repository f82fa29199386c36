//! Partitions that the kernel has dropped while their disk's table still names them: their bytes stay
//! guarded, as nobody has deleted them. Dropping one (partx -d, a table that is read again) takes no more
//! than an ioctl, and so does making another in its place.

use tracing::info;

use super::Reconciler;
use crate::{
    enforce::rule::{Other, holds_format, shifted},
    record::{Overlap, Overlay, Volume},
    volume::{
        Dev, VolumeId,
        device::Device,
        graph::Relation,
        probe::{Finding, Partition},
        topology::{Extent, SECTOR},
    },
};

/// A partition without a device.
pub(super) struct DroppedPartition {
    disk: Dev,
    /// Where it lies on its disk.
    region: Extent,
    record: Volume,
}

impl DroppedPartition {
    /// Whether a table that names partitions at these sectors names it.
    fn is_named(&self, partitions: &[Partition]) -> bool {
        partitions.iter().any(|partition| partition.start == self.region.below / SECTOR)
    }
}

impl Reconciler {
    /// Remembers a partition that is gone. A probe of the disk tells whether the table still names it.
    pub(super) fn remember_dropped(&mut self, device: &Device) {
        let Some(record) = self.records.get(&device.identity.id) else { return };
        let [below] = device.below.as_slice() else { return };
        let [region] = below.extents.as_slice() else { return };
        let is_partition = device.identity.id.as_str().starts_with("part:");
        if is_partition
            && holds_format(record)
            && let Some(disk) = self.graph.get(below.dev)
        {
            self.prober.ask(disk, None);
            self.dropped_partitions.push(DroppedPartition {
                disk: below.dev,
                region: *region,
                record: record.clone(),
            });
        }
    }

    /// Forgets dropped partitions: those of a disk that is gone, one that is there again, one that an
    /// operator forgets.
    pub(super) fn forget_dropped(&mut self, disk: Option<Dev>, id: Option<&VolumeId>) {
        self.dropped_partitions
            .retain(|dropped| Some(dropped.disk) != disk && Some(&dropped.record.id) != id);
    }

    /// Forgets dropped partitions that the table of their disk does not name any more. A table that cannot be
    /// read names all of them.
    pub(super) fn compare_with_table(&mut self, disk: Dev, finding: &Finding) {
        let Finding::Holds { partitions: Some(partitions), .. } = finding else { return };
        let before = self.dropped_partitions.len();
        self.dropped_partitions.retain(|dropped| dropped.disk != disk || dropped.is_named(partitions));
        if self.dropped_partitions.len() < before {
            info!("disk {disk}: the partition table no longer names a partition that the kernel has dropped");
            self.put_rule(disk);
            for dev in self.graph.above(disk) {
                self.put_rule(dev);
                self.propagate(dev);
            }
        }
    }

    /// The dropped partitions that share bytes with a device, for its rule.
    pub(super) fn dropped_on(&self, dev: Dev) -> Vec<Other<'_>> {
        let mut others = Vec::new();
        for DroppedPartition { disk, region, record } in &self.dropped_partitions {
            let shared = self.graph.shared_with(dev, *disk, region);
            if !shared.is_empty() {
                others.push(Other { dev: dev.to_kernel(), record, relation: Relation::Beside, shared });
            }
        }
        others
    }

    /// The dropped partition whose format a device's own would destroy.
    pub(super) fn over_dropped(&self, dev: Dev) -> Option<Overlay> {
        // The disk itself hands out the bytes of its partitions.
        if self.dropped_partitions.iter().any(|dropped| dropped.disk == dev) {
            return None;
        }
        self.dropped_on(dev).first().map(|other| {
            let first = other.record.marks.get(..1).unwrap_or_default();
            let begins = shifted(first, &other.shared).next().is_some();
            let content = other.record.content.as_ref().map_or("a format", |content| content.name());
            let id = &other.record.id;
            let by = format!("{id}, a partition that its disk's table still names, which holds {content}");
            Overlay { by, overlap: if begins { Overlap::Start } else { Overlap::Inside } }
        })
    }
}
