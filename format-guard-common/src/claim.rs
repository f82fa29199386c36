//! Until when this node may let a formatter through on volumes that other nodes reach, too: by the kernel's
//! own clock, whatever becomes of the agent.

/// The lease of the cluster's store under which this node claims volumes, as sure as it is: value of the map
/// `LEASE`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    /// Nanoseconds of `CLOCK_BOOTTIME` at which it ends.
    pub until: u64,
    /// What the store knows it by. Kept here so that the next agent goes on with it: an upgrade ends no
    /// format.
    pub id: u64,
    /// What rules know it by ([`crate::Rule::claim`]); never zero, and never an earlier lease's.
    pub number: u32,
    /// Always zero; keeps the layout free of padding.
    pub zero: u32,
}

impl Lease {
    /// Whether a claim under the lease of this number still holds at this time.
    #[inline(always)]
    #[must_use]
    pub const fn covers(&self, claim: u32, now: u64) -> bool {
        self.number == claim && now < self.until
    }
}

// SAFETY: repr(C), integers only, no padding.
#[cfg(feature = "aya")]
unsafe impl aya::Pod for Lease {}

const _: () = assert!(size_of::<Lease>() == 2 * 8 + 2 * 4);
