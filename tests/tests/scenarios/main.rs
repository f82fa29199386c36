//! Scenario tests: each on real block devices, under a guard that its canary has proven.
//!
//! Run as root in a guest: `cargo xtask test`.

mod audit;
mod command_line;
mod database;
mod everyday;
mod faults;
mod first_formats;
mod formats_once;
mod handover;
mod hanging;
mod identity;
mod incidents;
mod kernel_formats;
mod kernel_lines;
mod kernel_memory;
mod kubernetes;
mod life;
mod memory;
mod metrics;
mod passthrough;
mod permit;
mod policies;
mod protection;
mod raw;
mod rescue;
mod roads;
mod stacks;
mod states;
mod store;
mod storm;
mod tools;
mod units;
mod without_guard;
mod world;
mod writers;
mod zoned;

use std::path::Path;

use anyhow::{Context, Result};
use format_guard_tests::{guard::Guard, tool::must};

/// Waits until a volume is armed, makes an ext4 on it, and waits until that is recorded.
fn make_ext4(guard: &Guard, path: &Path) -> Result<()> {
    guard.wait_for_state(path, "blank")?;
    must(&format!("mkfs.ext4 -F -m0 -q {}", path.display())).with_context(|| guard.log())?;
    guard.wait_for_state(path, "formatted").map(drop)
}
