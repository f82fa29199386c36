//! The protocol between the agent, its store, the kernel's rule, the disk and whoever formats it, for a model
//! checker: every interleaving of their steps at a small size, with the crash of each at any step.
//!
//! What decides is the product's own code: `transition::next` for records, `rule::of` for rules, `decide` for
//! verdicts. What carries between them (the reconciler, the kernel programs) is modelled here step by step,
//! and must be kept as they are.
//!
//! # What is checked
//!
//! One volume on one device; processes that go by a formatter's name, each of which may stop or fail at any
//! step; monitors of virtual machines, which do not, write a format all the same, and have data there from
//! that moment on; a format that is older than the guard; a database that is lost between two lives of the
//! agent; a wall clock that jumps; the agent killed, stopped and started between any two of its steps; the
//! power cut at any time; the store failing; kernel events lost; every probe answered with the truth, with
//! "blank", or with an error, as the checker likes. The invariants are [`Node`]'s properties.
//!
//! # What is not
//!
//! * Several volumes that share bytes (partitions, layers): the reconciler's tests and the scenarios hold
//!   those.
//! * Bytes: a mark is whole or not, a write hits it or does not. `decide()` has property tests of its own.
//! * A format that was on the volume before the guard first saw it, while every probe lies: nobody remembers
//!   that one.
//! * Copies of a formatter under another name: until a format is recorded another process may write a magic
//!   beside it.
//! * Formatters that do not open exclusively (`O_EXCL`), and a mount in the middle of their work.
//! * A false blank that outlasts the quarantine after a crash of the host with the volume armed: see
//!   [`Action::Calm`].
//! * Memory order between processors: the kernel's steps are atomic here.
//!
//! # Nodes that share a volume
//!
//! [`Cluster`] is the protocol of a record that several nodes share: a claim under a lease, a rule in the
//! kernel that ends before the lease can have, a record that is never lowered. Checked for two nodes, each
//! paused at any step for as long as it likes, answers that come late, clocks that are late by the margin,
//! and the death of an agent.
//!
//! [`Fleet`] is both together: two nodes, each with the product's own record, and what it asks of the store
//! decided by the product's own `shared::desired` and `shared::plan`. Probes lie, words of the store come
//! late, leases end, agents are killed and lose their records, a permit is given.
//!
//! Not checked: a clock that stands still with its machine (a paused virtual machine whose clock does not
//! count the pause); probes that read blank, after a quarantine, on a volume that a node that is gone may
//! have formatted; writes that a kernel had accepted before its claim ended and that reach the volume later;
//! the loss of the store itself.

mod cluster;
mod fleet;
mod node;

pub use cluster::{Cluster, ClusterAction, ClusterBreak};
pub use fleet::{Fleet, FleetAction, FleetBreak};
pub use node::{Action, Break, Node};
