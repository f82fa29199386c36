//! Volumes that lie on a device: what is written there through the device below is judged as if it were
//! written to the volume itself.

use crate::opaque;

/// The most windows that one device has. Bytes behind them all count as the last one's, which belongs to no
/// device.
pub const MAX_WINDOWS: usize = 64;

/// A run of bytes of a device in which another device's bytes lie, unchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    /// First byte on the device below.
    pub start: u64,
    /// First byte after it on the device below.
    pub end: u64,
    /// The byte of the device that lies there which is at `start`.
    pub offset: u64,
    /// Kernel `dev_t` of the device that lies there; zero: more than one rule could hold.
    pub dev: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

/// The windows of one device: value of the map `WINDOWS`, keyed by kernel `dev_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Windows {
    /// Windows in use.
    pub count: u32,
    /// Kernel `dev_t` of the device: the map's key again, to notice an element that was reused.
    pub dev: u32,
    /// By their start; none overlaps another.
    pub windows: [Window; MAX_WINDOWS],
}

/// Where a range of a device lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In no window.
    Own,
    /// In one.
    In {
        /// Kernel `dev_t` of the device that lies there.
        dev: u32,
        /// The range's first byte on that device.
        offset: u64,
    },
    /// Over a window's border, or in one of which nothing is known.
    Across,
}

impl Windows {
    /// No windows.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            count: 0,
            dev: 0,
            windows: [Window { start: 0, end: 0, offset: 0, dev: 0, zero: 0 }; MAX_WINDOWS],
        }
    }

    /// The windows in use.
    #[must_use]
    pub fn windows(&self) -> &[Window] {
        &self.windows[..(self.count as usize).min(MAX_WINDOWS)]
    }

    /// Where the `length` bytes at `offset` lie.
    #[inline(always)]
    #[must_use]
    pub fn place(&self, offset: u64, length: u64) -> Placement {
        const LAST: usize = MAX_WINDOWS - 1;
        if self.count == 0 || length == 0 {
            return Placement::Own;
        }
        let count = self.count as usize;
        let end = offset.saturating_add(length);
        // The last window that starts at or before the range, by bisection: six steps for 64, in the kernel,
        // too.
        let mut found = 0_usize;
        let mut step = MAX_WINDOWS / 2;
        while step > 0 {
            let probe = found + step;
            if probe < count && self.windows[probe & LAST].start <= offset {
                found = probe;
            }
            // Else the verifier follows each of the windows apart through all that comes after.
            found = opaque(found as u64, u64::from(self.count)) as usize;
            step /= 2;
        }
        let window = &self.windows[found & LAST];
        if window.start <= offset && offset < window.end {
            return if end <= window.end && window.dev != 0 {
                Placement::In { dev: window.dev, offset: window.offset + (offset - window.start) }
            } else {
                Placement::Across
            };
        }
        let next = if window.start <= offset { found + 1 } else { found };
        if next < count && self.windows[next & LAST].start < end { Placement::Across } else { Placement::Own }
    }
}

impl Default for Windows {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(feature = "aya")]
// SAFETY: repr(C), integers only, no padding.
unsafe impl aya::Pod for Windows {}

const _: () = assert!(size_of::<Windows>() == 8 + 32 * MAX_WINDOWS && MAX_WINDOWS.is_power_of_two());

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn windows(ranges: &[(u64, u64)]) -> Windows {
        let mut windows = Windows::new();
        for (i, (start, end)) in ranges.iter().enumerate() {
            windows.windows[i] = Window { start: *start, end: *end, offset: 0, dev: i as u32 + 1, zero: 0 };
            windows.count += 1;
        }
        windows
    }

    #[test]
    fn a_range_lies_in_a_window_beside_it_or_across_its_border() {
        let windows = windows(&[(100, 200), (200, 300), (400, 500)]);
        for (offset, length, placement) in [
            (0, 100, Placement::Own),
            (0, 101, Placement::Across),
            (100, 100, Placement::In { dev: 1, offset: 0 }),
            (199, 1, Placement::In { dev: 1, offset: 99 }),
            (199, 2, Placement::Across),
            (200, 1, Placement::In { dev: 2, offset: 0 }),
            (300, 100, Placement::Own),
            (300, 101, Placement::Across),
            (450, u64::MAX, Placement::Across),
            (500, u64::MAX, Placement::Own),
            (150, 0, Placement::Own),
        ] {
            assert_eq!(windows.place(offset, length), placement, "{offset}+{length}");
        }
    }

    #[test]
    fn a_window_of_nobody_is_across() {
        let mut windows = windows(&[(100, 200)]);
        windows.windows[0].dev = 0;
        assert_eq!(windows.place(120, 1), Placement::Across);
    }

    proptest! {
        /// The same as looking at every window in turn.
        #[test]
        fn bisection_finds_what_a_walk_finds(
            lengths in prop::collection::vec((0_u64..20, 1_u64..20), 0..MAX_WINDOWS),
            offset in 0_u64..1500, length in 0_u64..100,
        ) {
            let mut ranges = Vec::new();
            let mut at = 0;
            for (gap, length) in lengths {
                ranges.push((at + gap, at + gap + length));
                at += gap + length;
            }
            let windows = windows(&ranges);
            let touched: Vec<usize> = (0..ranges.len())
                .filter(|i| length > 0 && ranges[*i].0 < offset + length && offset < ranges[*i].1)
                .collect();
            let expected = match touched.as_slice() {
                [] => Placement::Own,
                [i] if ranges[*i].0 <= offset && offset + length <= ranges[*i].1 =>
                    Placement::In { dev: *i as u32 + 1, offset: offset - ranges[*i].0 },
                _ => Placement::Across,
            };
            prop_assert_eq!(windows.place(offset, length), expected);
        }
    }
}
