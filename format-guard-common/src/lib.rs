//! What the kernel programs and user space share: the rule for a device, the request that is judged, the one
//! function that judges it, and the records that tell of it.
//!
//! This crate decides and nothing else. It must never allocate, panic, loop without a bound or reach outside
//! its arguments: the same code runs inside the kernel's verifier, in the agent and under the tests.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod arguments;
pub mod claim;
pub mod clear;
mod decide;
mod each;
pub mod erase;
pub mod event;
pub mod form;
pub mod format;
pub mod header;
mod opaque;
pub mod passthrough;
pub mod preload_request;
pub mod program;
pub mod protection;
mod request;
mod rule;
pub mod snapshot;
pub mod wait;
mod windows;

pub use decide::decide;
pub use each::{Turn, each};
pub use opaque::opaque;
pub use request::{Caller, Content, NoContent, Operation, Owner, Reason, Request, Verdict};
pub use rule::{
    Check, CheckKind, DEVICES, MAX_CHECK_BYTES, MAX_CHECKS, RULES_IN_SEGMENT, Rule, RuleError, State, flag,
};
pub use windows::{MAX_WINDOWS, Placement, Window, Windows};
