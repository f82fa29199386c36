//! What is wrong with the guard itself, and how often it had to make something good.

use std::time::Duration;

/// Figures and reasons that `status` shows.
#[derive(Default)]
pub(super) struct Health {
    /// Why protection is less than it should be.
    pub(super) degraded: Vec<String>,
    /// How often a resync had to repair something.
    pub(super) repaired: u64,
    /// How often the kernel could not pass on all uevents.
    pub(super) lost_uevents: u64,
    /// How long the newest kernel event waited.
    pub(super) lag: Duration,
}
