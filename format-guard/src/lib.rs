//! format-guard: remembers that a volume was formatted, durably, under an identity that outlives device
//! numbers, and makes the kernel refuse to destroy it.
//!
//! # Layout
//!
//! A module uses those above it in this list and none below it (`xtask/tests/layers.rs` checks that).
//!
//! * [`fault`], [`process`], [`cgroup`]: points at which tests end the process; processes and control groups
//!   as the kernel tells of them.
//! * [`mode`], [`tier`]: enforce or audit; by which means the kernel refuses.
//! * [`policy`]: which declared policy holds for a volume.
//! * [`volume`]: block devices as sysfs shows them, what identifies a volume, how devices lie on each other,
//!   what a probe finds.
//! * [`config`]: the configuration file.
//! * [`record`]: what is known of a volume, the one function that changes it ([`record::transition`]), and
//!   the stores.
//! * [`enforce`]: the rule for a record, and what carries rules to the kernel or to the `LD_PRELOAD` library.
//! * [`api`]: what agent and clients say to each other.
//! * [`agent`]: the tasks. One of them, [`agent::reconciler`], changes records and rules.
//! * [`cli`]: the commands.

pub mod agent;
pub mod api;
pub mod cgroup;
pub mod cli;
pub mod config;
pub mod enforce;
pub mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod mode;
pub mod policy;
pub mod process;
pub mod record;
pub mod tier;
pub mod volume;
