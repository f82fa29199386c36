//! The devices that are present now, and how they lie on one another.
//!
//! Two devices share bytes where both come down to the same bytes of the same device at the base. Devices
//! with one volume id are paths to the same volume, and count as one base.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::{Dev, VolumeId, device::Device, topology::Extent};

/// Layers that are followed at most: a loop in what sysfs says must not be one here.
pub const MAX_DEPTH: usize = 16;

/// A run of bytes that two devices share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// First byte on the device that is looked at.
    pub ours: u64,
    /// First byte on the other.
    pub theirs: u64,
    /// Bytes.
    pub length: u64,
}

/// How another device lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// The device that is looked at lies on it.
    Below,
    /// It lies on the device that is looked at.
    Above,
    /// Neither, but they share bytes of a third.
    Beside,
}

/// A device that shares bytes with the one that is looked at, or that lies on or below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Related {
    /// Which.
    pub dev: Dev,
    /// Where.
    pub relation: Relation,
    /// How many layers lie below it.
    pub layer: usize,
    /// The bytes that they share unchanged; none where a layer between transforms or scatters them.
    pub shared: Vec<Shared>,
    /// They share none, but what is written to the device that is looked at is written over it, as other
    /// bytes or elsewhere.
    pub transformed: bool,
}

/// A run of bytes of a device, as bytes of the device at the base.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct BaseExtent {
    start: u64,
    base: Dev,
    length: u64,
    below: u64,
}

/// Before every other in order.
const FIRST: Dev = Dev { major: 0, minor: 0 };

/// What lies on a device, with no other between.
#[derive(Debug, Default)]
struct Stacked {
    devices: BTreeSet<Dev>,
    /// Each extent of theirs by its first byte on the device that they lie on, and the place of what says so.
    extents: BTreeSet<(u64, Dev, usize, usize)>,
    /// Bytes of the longest extent that there was.
    longest: u64,
}

impl Stacked {
    fn add(&mut self, upper: &Device, of: Dev) {
        self.devices.insert(upper.dev);
        for (key, extent) in places(upper, of) {
            self.extents.insert(key);
            self.longest = self.longest.max(extent.length);
        }
    }

    fn forget(&mut self, upper: &Device, of: Dev) {
        self.devices.remove(&upper.dev);
        for (key, _) in places(upper, of) {
            self.extents.remove(&key);
        }
    }

    /// Places of the extents that may have a byte of this region: thousands may lie on one disk.
    fn near(&self, start: u64, end: u64) -> impl Iterator<Item = (Dev, usize, usize)> {
        let first = start.saturating_sub(self.longest);
        let range = self.extents.range((first, FIRST, 0, 0)..(end, FIRST, 0, 0));
        range.map(|(_, upper, below, extent)| (*upper, *below, *extent))
    }
}

/// The extents by which a device lies on this one.
fn places(upper: &Device, of: Dev) -> impl Iterator<Item = ((u64, Dev, usize, usize), &Extent)> {
    let lies_on = upper.below.iter().enumerate().filter(move |(_, below)| below.dev == of);
    lies_on.flat_map(move |(i, below)| {
        below.extents.iter().enumerate().map(move |(j, extent)| ((extent.below, upper.dev, i, j), extent))
    })
}

/// The devices.
#[derive(Debug, Default)]
pub struct DeviceGraph {
    devices: BTreeMap<Dev, Device>,
    paths: HashMap<VolumeId, BTreeSet<Dev>>,
    above: HashMap<Dev, Stacked>,
}

impl DeviceGraph {
    /// Adds a device, or replaces what is known of it.
    pub fn insert(&mut self, device: Device) {
        self.remove(device.dev);
        self.paths.entry(device.identity.id.clone()).or_default().insert(device.dev);
        for below in &device.below {
            self.above.entry(below.dev).or_default().add(&device, below.dev);
        }
        self.devices.insert(device.dev, device);
    }

    /// Takes a device out.
    pub fn remove(&mut self, dev: Dev) -> Option<Device> {
        let device = self.devices.remove(&dev)?;
        let id = &device.identity.id;
        if let Some(paths) = self.paths.get_mut(id) {
            paths.remove(&dev);
            if paths.is_empty() {
                self.paths.remove(id);
            }
        }
        for below in &device.below {
            if let Some(uppers) = self.above.get_mut(&below.dev) {
                uppers.forget(&device, below.dev);
                if uppers.devices.is_empty() {
                    self.above.remove(&below.dev);
                }
            }
        }
        Some(device)
    }

    /// The device of this number.
    #[must_use]
    pub fn get(&self, dev: Dev) -> Option<&Device> {
        self.devices.get(&dev)
    }

    /// Every device, by number.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.devices.len()
    }

    /// The devices that hold a volume: more than one are paths to it.
    pub fn of(&self, id: &VolumeId) -> impl Iterator<Item = &Device> {
        self.paths.get(id).into_iter().flatten().filter_map(|dev| self.devices.get(dev))
    }

    /// The volume of the device of this number.
    #[must_use]
    pub fn id(&self, dev: Dev) -> Option<&VolumeId> {
        Some(&self.devices.get(&dev)?.identity.id)
    }

    /// Every device that shares bytes with this one or lies on or below it, but no other path to its own
    /// volume; lower layers first.
    #[must_use]
    pub fn related(&self, dev: Dev) -> Vec<Related> {
        let Some(device) = self.devices.get(&dev) else { return Vec::new() };
        let paths = self.paths.get(&device.identity.id);
        let ours = self.extents_on_base(dev, &|_| false);
        let below = reach(dev, &|dev| self.below(dev));
        let written = reach(dev, &|dev| self.written_through(dev));
        let above = reach(dev, &|dev| self.above(dev));
        // Thousands may lie on one disk: none is looked at that has no byte of these.
        let mut others: BTreeSet<Dev> = below.union(&above).copied().collect();
        let mut looked_at = BTreeSet::new();
        for run in &ours {
            self.collect_on(run.base, (run.below, run.length), MAX_DEPTH, &mut looked_at, &mut others);
        }
        let mut related: Vec<Related> = others
            .into_iter()
            .filter(|other| !paths.is_some_and(|paths| paths.contains(other)))
            .filter_map(|other| {
                let shared = shared(&ours, &self.extents_on_base(other, &|_| false));
                let relation = if below.contains(&other) {
                    Relation::Below
                } else if above.contains(&other) {
                    Relation::Above
                } else if shared.is_empty() {
                    return None;
                } else {
                    Relation::Beside
                };
                let transformed = shared.is_empty() && written.contains(&other);
                Some(Related {
                    dev: other,
                    relation,
                    layer: self.layer(other, MAX_DEPTH),
                    shared,
                    transformed,
                })
            })
            .collect();
        related.sort_by_key(|related| (related.layer, related.dev));
        related
    }

    /// The bytes that a device shares with a region of another one that it lies on, or that it is.
    #[must_use]
    pub fn shared_with(&self, dev: Dev, below: Dev, region: &Extent) -> Vec<Shared> {
        if dev != below && !reach(dev, &|dev| self.below(dev)).contains(&below) {
            return Vec::new();
        }
        let inside = self.extents_on_base(below, &|_| false).into_iter().filter_map(|run| {
            let start = region.below.max(run.start);
            let end = region.below.saturating_add(region.length).min(run.start + run.length);
            (start < end).then(|| BaseExtent {
                base: run.base,
                start: start - region.below,
                length: end - start,
                below: run.below + (start - run.start),
            })
        });
        shared(&self.extents_on_base(dev, &|_| false), &inside.collect::<Vec<_>>())
    }

    fn layer(&self, dev: Dev, depth: usize) -> usize {
        if depth == 0 {
            return 0;
        }
        self.below(dev).into_iter().map(|below| 1 + self.layer(below, depth - 1)).max().unwrap_or(0)
    }

    /// The device under which the owner of a format is kept for this one and all that share its bytes: the
    /// lowest of them. It is followed no further down than to a device that `is_container`: an array, a
    /// volume group or a partition table hands out its bytes separately.
    #[must_use]
    pub fn lock_dev(&self, dev: Dev, is_container: &dyn Fn(Dev) -> bool) -> Dev {
        let runs = self.extents_on_base(dev, is_container);
        runs.iter().min_by_key(|run| (run.start, run.base)).map_or(dev, |run| run.base)
    }

    /// Collects the device, its other paths, and every device that maps bytes of this region. A region is
    /// looked at once: a map over paths to one volume lies on each path, and is a path itself.
    fn collect_on(
        &self,
        dev: Dev,
        (start, length): (u64, u64),
        depth: usize,
        looked_at: &mut BTreeSet<(Dev, u64, u64)>,
        found: &mut BTreeSet<Dev>,
    ) {
        if !looked_at.insert((self.base(dev), start, length)) {
            return;
        }
        let paths = self.id(dev).and_then(|id| self.paths.get(id));
        for path in paths.into_iter().flatten().copied() {
            found.insert(path);
            let end = start.saturating_add(length);
            for (upper, below, extent) in
                self.above.get(&path).into_iter().flat_map(|all| all.near(start, end))
            {
                let below = self.devices.get(&upper).and_then(|upper| upper.below.get(below));
                let Some(extent) = below.and_then(|below| below.extents.get(extent)) else { continue };
                let first = extent.below.max(start);
                let end = extent.below.saturating_add(extent.length).min(end);
                if first < end && depth > 0 {
                    let there = extent.start + (first - extent.below);
                    self.collect_on(upper, (there, end - first), depth - 1, looked_at, found);
                }
            }
        }
    }

    fn below(&self, dev: Dev) -> Vec<Dev> {
        let below = self.devices.get(&dev).map_or(&[][..], |device| &device.below);
        below.iter().map(|below| below.dev).filter(|dev| self.devices.contains_key(dev)).collect()
    }

    /// The devices right below at whose places it is known that this one writes: in a pool or behind a cache
    /// it is not.
    fn written_through(&self, dev: Dev) -> Vec<Dev> {
        let below = self.devices.get(&dev).map_or(&[][..], |device| &device.below);
        let written = below.iter().filter(|below| below.transformed || !below.extents.is_empty());
        written.map(|below| below.dev).filter(|dev| self.devices.contains_key(dev)).collect()
    }

    /// The devices that lie on this one, with no other between.
    #[must_use]
    pub fn above(&self, dev: Dev) -> Vec<Dev> {
        self.above.get(&dev).into_iter().flat_map(|uppers| &uppers.devices).copied().collect()
    }

    fn base(&self, dev: Dev) -> Dev {
        let paths = self.id(dev).and_then(|id| self.paths.get(id));
        paths.and_then(|paths| paths.first().copied()).unwrap_or(dev)
    }

    fn extents_on_base(&self, dev: Dev, is_container: &dyn Fn(Dev) -> bool) -> Vec<BaseExtent> {
        self.extents_on_base_to(dev, is_container, MAX_DEPTH)
    }

    fn extents_on_base_to(
        &self,
        dev: Dev,
        is_container: &dyn Fn(Dev) -> bool,
        depth: usize,
    ) -> Vec<BaseExtent> {
        let Some(device) = self.devices.get(&dev) else { return Vec::new() };
        let mut runs = Vec::new();
        for below in device.below.iter().filter(|below| depth > 0 && !is_container(below.dev)) {
            let lower = self.extents_on_base_to(below.dev, is_container, depth - 1);
            for extent in &below.extents {
                for run in &lower {
                    let start = extent.below.max(run.start);
                    let end =
                        extent.below.saturating_add(extent.length).min(run.start.saturating_add(run.length));
                    if start < end {
                        runs.push(BaseExtent {
                            base: run.base,
                            start: extent.start + (start - extent.below),
                            length: end - start,
                            below: run.below + (start - run.start),
                        });
                    }
                }
            }
        }
        // A map over paths to one volume reaches the same bytes by each of them.
        runs.sort_unstable();
        runs.dedup();
        if runs.is_empty() {
            runs.push(BaseExtent { base: self.base(dev), start: 0, length: device.size, below: 0 });
        }
        runs
    }
}

/// Everything that is reached from a device by `next`.
fn reach(dev: Dev, next: &dyn Fn(Dev) -> Vec<Dev>) -> BTreeSet<Dev> {
    let mut found = BTreeSet::new();
    let mut open = next(dev);
    while let Some(dev) = open.pop() {
        if found.insert(dev) {
            open.extend(next(dev));
        }
    }
    found
}

fn shared(ours: &[BaseExtent], theirs: &[BaseExtent]) -> Vec<Shared> {
    let mut all = Vec::new();
    for our in ours {
        for their in theirs.iter().filter(|their| their.base == our.base) {
            let start = our.below.max(their.below);
            let end = (our.below + our.length).min(their.below + their.length);
            if start < end {
                let shared = Shared {
                    ours: our.start + (start - our.below),
                    theirs: their.start + (start - their.below),
                    length: end - start,
                };
                // Two legs of a mirror say the same twice.
                if !all.contains(&shared) {
                    all.push(shared);
                }
            }
        }
    }
    all.sort_by_key(|shared| (shared.ours, shared.theirs));
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::volume::{
        identity::Identity,
        topology::{Below, Extent},
    };

    const MIB: u64 = 1 << 20;

    /// In the order of the fields of `Extent` and `Shared`.
    type Bytes = (u64, u64, u64);

    fn dev(minor: u32) -> Dev {
        Dev { major: 7, minor }
    }

    fn device(minor: u32, id: &str, size: u64, below: &[(u32, &[Bytes])]) -> Device {
        Device {
            name: format!("d{minor}"),
            dev: dev(minor),
            diskseq: 1,
            size,
            identity: Identity::strong("t", id, ""),
            below: below
                .iter()
                .map(|(minor, extents)| Below {
                    dev: dev(*minor),
                    extents: extents
                        .iter()
                        .map(|(start, length, below)| Extent {
                            start: *start,
                            length: *length,
                            below: *below,
                        })
                        .collect(),
                    transformed: extents.is_empty(),
                })
                .collect(),
        }
    }

    fn present(devices: impl IntoIterator<Item = Device>) -> DeviceGraph {
        let mut present = DeviceGraph::default();
        devices.into_iter().for_each(|device| present.insert(device));
        present
    }

    fn related(present: &DeviceGraph, of: u32) -> Vec<(u32, Relation, Vec<Bytes>)> {
        present
            .related(dev(of))
            .into_iter()
            .map(|related| {
                let shared = related.shared.iter().map(|s| (s.ours, s.theirs, s.length)).collect();
                (related.dev.minor, related.relation, shared)
            })
            .collect()
    }

    #[test]
    fn a_partition_lies_on_its_disk_and_beside_nothing() {
        let present = present([
            device(1, "disk", 100 * MIB, &[]),
            device(2, "p1", 10 * MIB, &[(1, &[(0, 10 * MIB, MIB)])]),
            device(3, "p2", 10 * MIB, &[(1, &[(0, 10 * MIB, 11 * MIB)])]),
        ]);
        assert_eq!(
            related(&present, 1),
            [
                (2, Relation::Above, vec![(MIB, 0, 10 * MIB)]),
                (3, Relation::Above, vec![(11 * MIB, 0, 10 * MIB)])
            ]
        );
        assert_eq!(related(&present, 2), [(1, Relation::Below, vec![(0, MIB, 10 * MIB)])]);
    }

    #[test]
    fn two_mappings_of_the_same_bytes_are_beside_each_other() {
        let present = present([
            device(1, "disk", 100 * MIB, &[]),
            device(2, "a", 20 * MIB, &[(1, &[(0, 20 * MIB, 0)])]),
            device(3, "b", 20 * MIB, &[(1, &[(0, 20 * MIB, 10 * MIB)])]),
        ]);
        assert_eq!(related(&present, 2)[1], (3, Relation::Beside, vec![(10 * MIB, 0, 10 * MIB)]));
    }

    #[test]
    fn a_region_of_a_disk_is_shared_with_what_lies_there_and_with_the_disk() {
        let present = present([
            device(1, "disk", 100 * MIB, &[]),
            device(2, "p1", 10 * MIB, &[(1, &[(0, 10 * MIB, 4 * MIB)])]),
            device(3, "other", 100 * MIB, &[]),
        ]);
        let region = Extent { start: 0, length: 8 * MIB, below: 2 * MIB };
        let shared = |minor| -> Vec<Bytes> {
            let shared = present.shared_with(dev(minor), dev(1), &region);
            shared.iter().map(|shared| (shared.ours, shared.theirs, shared.length)).collect()
        };
        assert_eq!(shared(1), [(2 * MIB, 0, 8 * MIB)]);
        assert_eq!(shared(2), [(0, 2 * MIB, 6 * MIB)]);
        assert_eq!(shared(3), []);
    }

    #[test]
    fn layers_add_up() {
        let present = present([
            device(1, "disk", 100 * MIB, &[]),
            device(2, "part", 50 * MIB, &[(1, &[(0, 50 * MIB, MIB)])]),
            device(3, "lv", 8 * MIB, &[(2, &[(0, 4 * MIB, 8 * MIB), (4 * MIB, 4 * MIB, 2 * MIB)])]),
        ]);
        let lv = related(&present, 1).pop().expect("the logical volume");
        assert_eq!(lv, (3, Relation::Above, vec![(3 * MIB, 4 * MIB, 4 * MIB), (9 * MIB, 0, 4 * MIB)]));
    }

    #[test]
    fn a_layer_that_transforms_shares_nothing_but_lies_there() {
        let present = present([device(1, "luks", MIB, &[]), device(2, "crypt", MIB, &[(1, &[])])]);
        assert_eq!(related(&present, 1), [(2, Relation::Above, vec![])]);
        assert_eq!(present.lock_dev(dev(2), &|_| false), dev(2));
        assert!(present.related(dev(2)).iter().all(|related| related.transformed));
    }

    #[test]
    fn paths_to_one_volume_are_one_bottom() {
        let present = present([
            device(1, "lun", MIB, &[]),
            device(2, "lun", MIB, &[]),
            device(3, "mpath", MIB, &[(1, &[(0, MIB, 0)]), (2, &[(0, MIB, 0)])]),
        ]);
        assert_eq!(related(&present, 2), [(3, Relation::Above, vec![(0, 0, MIB)])]);
        assert!([1, 2, 3].iter().all(|minor| present.lock_dev(dev(*minor), &|_| false) == dev(1)));
    }

    #[test]
    fn what_lies_on_a_device_apart_leads_itself() {
        let present =
            present([device(1, "pv", 100 * MIB, &[]), device(2, "lv", MIB, &[(1, &[(0, MIB, MIB)])])]);
        assert_eq!(present.lock_dev(dev(2), &|_| false), dev(1));
        assert_eq!(present.lock_dev(dev(2), &|lower| lower == dev(1)), dev(2));
    }

    #[test]
    fn a_circle_ends() {
        let present = present([
            device(1, "a", MIB, &[(2, &[(0, MIB, 0)])]),
            device(2, "b", MIB, &[(1, &[(0, MIB, 0)])]),
        ]);
        assert_eq!(present.related(dev(1)).len(), 1);
    }

    #[test]
    fn what_is_removed_is_forgotten() {
        let mut present =
            present([device(1, "disk", MIB, &[]), device(2, "part", MIB, &[(1, &[(0, MIB, 0)])])]);
        present.remove(dev(2));
        assert!(present.related(dev(1)).is_empty());
        assert_eq!(present.of(&"t:part".into()).count(), 0);
    }

    /// Some devices, each on earlier ones, some of them paths to one volume.
    fn stacks() -> impl Strategy<Value = DeviceGraph> {
        let extent = (0..8_u64, 1..8_u64, 0..8_u64).prop_map(|(start, length, below)| (start, length, below));
        let below = (any::<prop::sample::Index>(), prop::collection::vec(extent, 0..2));
        let one = (0..12_u32, prop::collection::vec(below, 0..3));
        prop::collection::vec(one, 1..8).prop_map(|devices| {
            present(devices.into_iter().enumerate().map(|(i, (volume, below))| {
                let minor = u32::try_from(i).expect("few");
                let below: Vec<(u32, Vec<Bytes>)> = below
                    .into_iter()
                    .filter(|_| i > 0)
                    .map(|(lower, extents)| (u32::try_from(lower.index(i)).expect("few"), extents))
                    .collect();
                let below: Vec<(u32, &[Bytes])> =
                    below.iter().map(|(minor, extents)| (*minor, extents.as_slice())).collect();
                device(minor, &volume.to_string(), 16, &below)
            }))
        })
    }

    /// With each path looked at by way of each other one, eight paths would be 8 to the power of 16 looks.
    #[test]
    fn a_map_over_many_paths_is_looked_at_once() {
        const WHOLE: &[Bytes] = &[(0, 64 * MIB, 0)];
        const PATHS: std::ops::Range<u32> = 1..9;
        let mut graph = DeviceGraph::default();
        for path in PATHS {
            graph.insert(device(path, "unit", 64 * MIB, &[]));
        }
        let below: Vec<(u32, &[Bytes])> = PATHS.map(|path| (path, WHOLE)).collect();
        graph.insert(device(20, "unit", 64 * MIB, &below));
        graph.insert(device(21, "volume", 32 * MIB, &[(20, &[(0, 32 * MIB, MIB)])]));
        let on_the_unit = vec![Shared { ours: MIB, theirs: 0, length: 32 * MIB }];
        for path in PATHS.chain([20]) {
            let related = graph.related(dev(path));
            assert_eq!(related.len(), 1, "{related:?}");
            assert_eq!((related[0].dev, &related[0].shared), (dev(21), &on_the_unit));
        }
        let below: Vec<Dev> = graph.related(dev(21)).iter().map(|related| related.dev).collect();
        assert_eq!(below, PATHS.chain([20]).map(dev).collect::<Vec<_>>());
        let base = graph.lock_dev(dev(1), &|_| false);
        assert!(PATHS.chain([20, 21]).all(|any| graph.lock_dev(dev(any), &|_| false) == base));
    }

    proptest! {
        #[test]
        fn whatever_shares_a_byte_is_related(present in stacks()) {
            for device in present.iter() {
                let related = present.related(device.dev);
                for other in present.iter().filter(|other| other.identity.id != device.identity.id) {
                    let bytes = shared(
                        &present.extents_on_base(device.dev, &|_| false),
                        &present.extents_on_base(other.dev, &|_| false),
                    );
                    let found = related.iter().find(|related| related.dev == other.dev);
                    prop_assert_eq!(found.map_or(&[][..], |found| &found.shared), bytes.as_slice());
                }
            }
        }
    }
}
