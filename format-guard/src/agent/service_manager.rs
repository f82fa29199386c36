//! What the service manager is told (`sd_notify(3)`): that the guard is in force, and that it still answers.

use std::{
    env,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    process,
    time::Duration,
};

use anyhow::{Context, Result};
use tokio::{sync::mpsc, time};

use super::{
    message::{GuardRequest, Input, OWN_UID, Request},
    queue::ask,
};

/// The guard is in force, and every device has its rule.
pub(super) fn ready() {
    send("READY=1");
}

/// Without a service manager nothing happens, and a failure must not end the guard.
fn send(state: &str) {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    let bytes = path.as_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&path),
    };
    let sent = address.and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!("cannot report {state} to the service manager: {error}");
    }
}

/// Tells a watchdog that the reconciler answers, for as long as it does; enforcement stays when an agent is
/// restarted.
pub(super) async fn keep_alive(inputs: mpsc::Sender<Input>) -> Result<()> {
    let variable = |name| env::var(name).ok();
    let Some(interval) = watchdog(variable("WATCHDOG_USEC"), variable("WATCHDOG_PID"), process::id()) else {
        return std::future::pending().await;
    };
    loop {
        ask(&inputs, Request::Guard(GuardRequest::Alive), OWN_UID, None)
            .await
            .context("the reconciler does not answer")?;
        send("WATCHDOG=1");
        time::sleep(interval / 3).await;
    }
}

/// How often this process must be heard of (`sd_watchdog_enabled(3)`).
fn watchdog(microseconds: Option<String>, pid: Option<String>, ourselves: u32) -> Option<Duration> {
    if pid.is_some_and(|pid| pid != ourselves.to_string()) {
        return None;
    }
    let microseconds = microseconds?.parse().ok()?;
    (microseconds > 0).then(|| Duration::from_micros(microseconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watchdog_is_told_by_the_process_that_it_waits_for() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(watchdog(text("3000000"), None, 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), text("7"), 7), Some(Duration::from_secs(3)));
        assert_eq!(watchdog(text("3000000"), text("8"), 7), None);
        assert_eq!(watchdog(text("0"), None, 7), None);
        assert_eq!(watchdog(text("x"), None, 7), None);
        assert_eq!(watchdog(None, None, 7), None);
    }
}
