//! Where the rules lie in the kernel: in segments of the map `RULES`, each made when it is needed, so that a
//! host with three devices keeps one of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::fd::AsFd,
    path::Path,
};

use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError as AyaMapError};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_ARRAY;
use format_guard_common::{RULES_IN_SEGMENT, Rule};

use super::syscall;

/// The map of rules.
pub(super) struct Rules(ArrayOfMaps<MapData>);

/// A segment that nobody uses yet.
fn new_segment() -> Result<MapData, AyaMapError> {
    let (key, value) = (size_of::<u32>() as u32, size_of::<Rule>() as u32);
    let segment = aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY as u32, key, value, RULES_IN_SEGMENT, 0);
    MapData::create(segment, "RULES.segment", None)
}

impl Rules {
    /// Makes the map for so many devices and pins it, unless it is there. aya would make the sample of a
    /// segment with type information, and before Linux 6.3 no segment without it is like that one
    /// (`timer_off` in `bpf_map_meta_equal`, `kernel/bpf/map_in_map.c`).
    pub(super) fn make(pin: &Path, devices: u32) -> io::Result<()> {
        if pin.exists() {
            return Ok(());
        }
        let sample = new_segment().map_err(io::Error::other)?;
        let map = syscall::array_of(sample.fd().as_fd(), devices.div_ceil(RULES_IN_SEGMENT))?;
        syscall::pin(&map, pin)
    }

    pub(super) const fn new(segments: ArrayOfMaps<MapData>) -> Self {
        Self(segments)
    }

    fn segment(&self, slot: u32) -> Result<Array<MapData, Rule>, AyaMapError> {
        Array::try_from(Map::Array(self.0.get(&(slot / RULES_IN_SEGMENT), 0)?))
    }

    /// What lies in a slot; zeros where nothing ever did.
    pub(super) fn get(&self, slot: u32) -> Result<Rule, AyaMapError> {
        self.segment(slot)?.get(&(slot % RULES_IN_SEGMENT), 0)
    }

    /// Puts a rule into a slot, whose segment must be there.
    pub(super) fn set(&self, slot: u32, rule: &Rule) -> Result<(), AyaMapError> {
        self.segment(slot)?.set(slot % RULES_IN_SEGMENT, rule, 0)
    }

    /// Makes the segment of a slot where there is none yet; returns the id of a new segment.
    pub(super) fn make_segment(&mut self, slot: u32) -> Result<Option<u32>, AyaMapError> {
        let number = slot / RULES_IN_SEGMENT;
        if self.id(number)?.is_some() {
            return Ok(None);
        }
        self.0.set(number, &new_segment()?, 0)?;
        self.id(number)
    }

    fn id(&self, number: u32) -> Result<Option<u32>, AyaMapError> {
        match self.0.get(&number, 0) {
            Err(AyaMapError::KeyNotFound) => Ok(None),
            segment => Ok(Some(segment?.info()?.id())),
        }
    }

    /// Ids of the segments that there are.
    pub(super) fn ids(&self) -> Result<Vec<u32>, AyaMapError> {
        (0..self.0.len()).filter_map(|number| self.id(number).transpose()).collect()
    }
}

/// Slots that are free at least when one is taken again, where there may be more of them.
const RESERVE: usize = 32;

/// Which slot is whose. A kernel program may still read a slot that has just become free, so the next one
/// taken is always the one that has been free the longest; and segments are taken into use one by one.
#[derive(Debug)]
pub(super) struct Slots {
    of: BTreeMap<u32, u32>,
    /// The one free the longest first.
    free: VecDeque<u32>,
    /// The first slot of no segment in use.
    next: u32,
    /// Devices that may have one.
    limit: u32,
}

impl Slots {
    /// Those that an earlier agent has taken, by device, of so many.
    pub(super) fn new(taken: impl Iterator<Item = (u32, u32)>, limit: u32) -> Self {
        let of: BTreeMap<u32, u32> = taken.collect();
        let taken: BTreeSet<u32> = of.values().copied().collect();
        let next = taken.last().map_or(0, |last| (last / RULES_IN_SEGMENT + 1) * RULES_IN_SEGMENT).min(limit);
        let free = (0..next).filter(|slot| !taken.contains(slot)).collect();
        Self { of, free, next, limit }
    }

    /// The slot of a device, taken now if it has none; `None` where all are taken.
    pub(super) fn of(&mut self, dev: u32) -> Option<u32> {
        if let Some(slot) = self.of.get(&dev) {
            return Some(*slot);
        }
        while self.free.len() <= RESERVE && self.next < self.limit {
            let end = (self.next + RULES_IN_SEGMENT).min(self.limit);
            self.free.extend(self.next..end);
            self.next = end;
        }
        let slot = self.free.pop_front()?;
        self.of.insert(dev, slot);
        Some(slot)
    }

    pub(super) fn release(&mut self, dev: u32) {
        self.free.extend(self.of.remove(&dev));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_a_devices_own_and_comes_to_another_after_many_others() {
        let mut slots = Slots::new([(7, 3)].into_iter(), 2 * RULES_IN_SEGMENT);
        assert_eq!((slots.of(7), slots.of(8), slots.of(7)), (Some(3), Some(0), Some(3)));
        slots.release(7);
        slots.release(9);
        let others: Vec<u32> =
            (100..100 + 2 * RULES_IN_SEGMENT - 1).filter_map(|dev| slots.of(dev)).collect();
        assert_eq!(others.iter().collect::<BTreeSet<_>>().len(), 2 * RULES_IN_SEGMENT as usize - 1);
        assert!(others.iter().position(|slot| *slot == 3) >= Some(RESERVE), "{others:?}");
        assert_eq!(slots.of(9), None);
    }

    #[test]
    fn a_segment_is_taken_into_use_when_the_others_have_few_free_slots() {
        let mut slots = Slots::new(std::iter::empty(), 3 * RULES_IN_SEGMENT);
        let most = RULES_IN_SEGMENT - RESERVE as u32;
        assert!((0..most).filter_map(|dev| slots.of(dev)).eq(0..most));
        // Devices that come and go, for as long as a host runs.
        for dev in most..10_000 {
            slots.release(dev - 1);
            slots.of(dev);
        }
        assert_eq!(slots.next, RULES_IN_SEGMENT);
        slots.of(10_000);
        assert_eq!(slots.next, 2 * RULES_IN_SEGMENT);
    }

    #[test]
    fn no_slot_is_beyond_the_limit() {
        let mut slots = Slots::new(std::iter::empty(), RULES_IN_SEGMENT + 3);
        assert_eq!((0..1000).filter_map(|dev| slots.of(dev)).count(), RULES_IN_SEGMENT as usize + 3);
    }
}
