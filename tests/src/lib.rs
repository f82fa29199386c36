//! Building blocks of scenario tests: a guard of their own, real block devices, real tools, and the sha256 of
//! a whole device before and after.
//!
//! Nothing here sleeps to wait for a state: it waits for the state, with a deadline. A guard that its canary
//! has not proven fails the test.

pub mod attack;
pub mod device;
pub mod guard;
pub mod ledger;
pub mod matrix;
pub mod road;
mod schema;
pub mod tool;

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

/// How long a state may take to come: emulation is slow, but a failure must be quick.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// Waits until `ready` gives a value.
///
/// # Errors
/// When the deadline has passed, or `ready` fails.
pub fn wait_for<T>(what: &str, ready: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_within(DEADLINE, what, ready)
}

/// The same, for states that take longer.
///
/// # Errors
/// As of [`wait_for`].
pub fn wait_within<T>(
    deadline: Duration,
    what: &str,
    mut ready: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready()? {
            return Ok(value);
        }
        if start.elapsed() > deadline {
            bail!("waited {} s in vain for {what}", deadline.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
