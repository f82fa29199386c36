//! Who answers from outside: the control socket, the port for metrics, the socket of the `LD_PRELOAD`
//! library.
//!
//! Nothing is decided here: a question becomes a message to the reconciler, and its answer a response.

pub(super) mod control;
pub(super) mod metrics;
pub(super) mod preload;
