//! How long a known formatter waits that comes before a volume was read: the agent will have read it in a
//! moment.

/// Formatters that wait at a time: each takes a processor while nobody else wants it.
pub const WAITERS: u32 = 16;

/// The one value of the map `WAIT`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Wait {
    /// For how long one waits at most, in nanoseconds; zero: none does.
    pub limit: u64,
    /// Nanoseconds of `CLOCK_BOOTTIME` until which there is an agent to wait for. It puts that off again and
    /// again: nobody waits for one that has ended, or hangs.
    pub until: u64,
}

impl Wait {
    /// When one who begins to wait now ends it, however little is known then; `None` where nobody waits.
    #[inline(always)]
    #[must_use]
    pub const fn end(&self, now: u64) -> Option<u64> {
        let end = now.saturating_add(self.limit);
        let end = if end < self.until { end } else { self.until };
        if self.limit > 0 && now < end { Some(end) } else { None }
    }
}

// SAFETY: repr(C), integers only, no padding.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for Wait {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_longer_than_there_is_an_agent() {
        let end = |limit, until| Wait { limit, until }.end(1000);
        assert_eq!(end(100, 5000), Some(1100));
        assert_eq!(end(100, 1050), Some(1050));
        assert_eq!(end(u64::MAX, 5000), Some(5000));
        assert_eq!((end(0, 5000), end(100, 1000), end(100, 0)), (None, None, None));
    }
}
