//! format-guard: remembers that a volume was formatted, durably, under an identity that outlives device numbers, and
//! makes the kernel refuse to destroy it.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod enforce;
pub mod fault;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod process;
pub mod record;
pub mod volume;
