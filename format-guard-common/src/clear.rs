//! Where a device has no check: what is asked first of every write to it.

use crate::{Check, Rule, State, flag, program::Class};

/// Slots of the map `CLEAR`.
pub const CLEAR_SLOTS: u32 = 4096;
/// Stretches that are named at most: five of an XFS with four allocation groups, whose marks lie in each, and
/// two around a magic that another format has behind the end of the device.
pub const MAX_GAPS: usize = 7;

/// Slots of the map `TAINTED`.
pub const TAINT_SLOTS: u32 = 8192;

/// The slots of which a device (kernel `dev_t`) has one in the map `CLEAR`: with two to choose from, and an
/// occupant that may move to its other one, some hundred devices do not get in each other's way.
#[inline(always)]
#[must_use]
pub const fn slots(dev: u32) -> [u32; 2] {
    // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4), of which two stretches of bits
    // serve.
    let hash = dev.wrapping_mul(0x9e37_79b9);
    [hash >> 20, (hash >> 8) & (CLEAR_SLOTS - 1)]
}

/// The slot of a process (thread group id) in the map `TAINTED`.
#[inline(always)]
#[must_use]
pub const fn taint_slot(tgid: u32) -> u32 {
    tgid & (TAINT_SLOTS - 1)
}

/// A stretch of a device without a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Gap {
    /// First byte.
    pub start: u64,
    /// First byte after it.
    pub end: u64,
}

/// The longest stretches of a device in which [`decide`](crate::decide) allows every write: value of the map
/// `CLEAR`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Clear {
    /// Kernel `dev_t`; zero: of no device. Written before the gaps and read after them: one that is being
    /// taken away passes nothing.
    pub dev: u32,
    /// Bits of a [`Class`] of which a caller must have one; zero: none of them.
    pub only: u32,
    /// Longest first; where fewer are in use the rest is empty.
    pub gaps: [Gap; MAX_GAPS],
}

impl Clear {
    /// Those of a rule: whatever the state, a write that touches no check means nothing. None where other
    /// volumes lie on the device, which have rules of their own, of a layer over a format, of a blank volume
    /// whose first bytes are content, and of one that is claimed, whose formatter is cut off with the claim;
    /// nor where the rule for `unknown` devices has a check, should this rule be out of date.
    #[must_use]
    pub fn of(rule: &Rule, unknown: &Rule) -> Self {
        let fills = rule.state == State::Blank as u32 && rule.flags & flag::RAW != 0;
        if rule.flags & (flag::STACKED | flag::LAYER) != 0 || rule.claim != 0 || fills {
            return Self::default();
        }
        let checks = || rule.checks().iter().chain(unknown.checks());
        let mut gaps = [Gap::default(); MAX_GAPS];
        let mut start = 0;
        loop {
            // Over every check that begins before the end of those that were passed.
            let over = |start: u64| checks().filter(|check| check.offset <= start).map(Check::end).max();
            while let Some(end) = over(start).filter(|end| *end > start) {
                start = end;
            }
            let next = checks().map(|check| check.offset).filter(|offset| *offset > start).min();
            keep_longest(&mut gaps, Gap { start, end: next.unwrap_or(u64::MAX) });
            match next {
                Some(next) => start = next,
                None => break,
            }
        }
        gaps.sort_unstable_by_key(|gap| core::cmp::Reverse(gap.end - gap.start));
        let only = match Class(rule.tools) {
            _ if rule.flags & flag::STRICT == 0 => Class::UNKNOWN,
            Class::UNKNOWN => Class::KNOWN,
            tools => tools.with(Class::TRUSTED),
        };
        Self { gaps, dev: rule.dev, only: only.0 }
    }

    /// Whether a write lies in one of them. It passes whatever its bytes are, by any process that is
    /// [taken](Self::takes) and was not refused on the device before.
    #[inline(always)]
    #[must_use]
    pub fn passes(&self, dev: u32, offset: u64, length: u64) -> bool {
        let end = offset.saturating_add(length);
        let mut i = 0;
        while i < MAX_GAPS {
            let gap = &self.gaps[i];
            if gap.start <= offset && end <= gap.end {
                // SAFETY: a field of ours; volatile, so that it is read here and not before.
                return unsafe { core::ptr::read_volatile(&raw const self.dev) } == dev;
            }
            i += 1;
        }
        false
    }

    /// Whether writes of a program pass that is known as this by its name, where a caller must have one of
    /// these bits.
    #[inline(always)]
    #[must_use]
    pub const fn takes(only: u32, class: Class) -> bool {
        const NEVER: Class = Class::FORMATTER.with(Class::ERASER).with(Class::REBUILDER);
        !class.is(NEVER) && class.grammar() == 0 && (only == 0 || class.is(Class(only)))
    }
}

/// Where the stretches of a device may be put in the map `CLEAR`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Into this slot, which is its own or nobody's.
    Slot(u32),
    /// Into this slot, once its occupant has moved to another.
    After {
        /// The slot.
        slot: u32,
        /// Where its occupant can go.
        to: u32,
    },
    /// Nowhere, before another device gives up its slot.
    Nowhere,
}

/// Chooses one of the slots of a device (kernel `dev_t`); `occupant` knows whose a slot is, zero for
/// nobody's.
pub fn choose(dev: u32, occupant: impl Fn(u32) -> u32) -> Choice {
    let own = slots(dev);
    let first = |wanted: u32| own.into_iter().find(|slot| occupant(*slot) == wanted);
    if let Some(slot) = first(dev).or_else(|| first(0)) {
        return Choice::Slot(slot);
    }
    let moves = own.into_iter().flat_map(|slot| slots(occupant(slot)).map(|to| (slot, to)));
    moves
        .into_iter()
        .find(|(_, to)| occupant(*to) == 0)
        .map_or(Choice::Nowhere, |(slot, to)| Choice::After { slot, to })
}

/// Keeps a gap in the place of the shortest one, if it is longer.
fn keep_longest(gaps: &mut [Gap; MAX_GAPS], gap: Gap) {
    let length = |gap: &Gap| gap.end - gap.start;
    if let Some(shortest) = gaps.iter_mut().min_by_key(|gap| length(gap))
        && length(shortest) < length(&gap)
    {
        *shortest = gap;
    }
}

#[cfg(feature = "aya")]
// SAFETY: repr(C), integers only, no padding.
unsafe impl aya::Pod for Clear {}

const _: () = assert!(size_of::<Clear>() == 16 * MAX_GAPS + 8);

#[cfg(test)]
mod tests {
    extern crate std;

    use std::{collections::BTreeMap, vec::Vec};

    use super::*;

    /// Disks, their partitions and mappings, as large hosts number them.
    fn devices() -> Vec<u32> {
        let of = |major: u32, minors: u32, step: usize| {
            (0..minors).step_by(step).map(move |minor| major << 20 | minor)
        };
        of(8, 1600, 16)
            .chain(of(253, 200, 1))
            .chain(of(254, 640, 16))
            .chain(of(259, 120, 1))
            .chain(of(7, 256, 8))
            .collect()
    }

    #[test]
    fn some_hundred_devices_have_a_slot_each_and_keep_it() {
        let mut occupants = BTreeMap::new();
        let devices = devices();
        for dev in &devices {
            match choose(*dev, |slot| occupants.get(&slot).copied().unwrap_or(0)) {
                Choice::Slot(slot) => assert_eq!(occupants.insert(slot, *dev), None),
                Choice::After { slot, to } => {
                    let moved = occupants.insert(slot, *dev).expect("an occupant");
                    assert!(slots(moved).contains(&to));
                    assert_eq!(occupants.insert(to, moved), None);
                }
                Choice::Nowhere => panic!("{dev:#x} has no slot"),
            }
        }
        assert_eq!(occupants.len(), devices.len());
        for dev in devices {
            let Choice::Slot(slot) = choose(dev, |slot| occupants.get(&slot).copied().unwrap_or(0)) else {
                panic!("{dev:#x} lost its slot")
            };
            assert_eq!(occupants[&slot], dev);
        }
    }

    #[test]
    fn who_finds_no_slot_waits() {
        assert_eq!(
            choose(1 << 20, |slot| if slots(1 << 20).contains(&slot) { 2 << 20 } else { 3 << 20 }),
            Choice::Nowhere
        );
    }
}
