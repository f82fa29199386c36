//! `/metrics`, `/healthz` and `/readyz` over HTTP.
//!
//! Over TCP nobody but a scraper and a kubelet asks, and nothing can be changed there.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
    time,
};
use tracing::{error, info, warn};

use crate::{
    agent::{
        message::{GuardRequest, Input, OWN_UID, Reply, Request},
        metrics::Metrics,
        queue::ask,
    },
    api::{Failure, FailureKind, Status},
};

/// What `Registry` encodes (<https://prometheus.io/docs/specs/om/open_metrics_spec/>).
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Connections at a time: whoever reaches the port must not use up the agent's descriptors.
const CONNECTIONS: usize = 32;
/// When a connection is ended.
const LONGEST: Duration = Duration::from_secs(10);
/// How long a kubelet is kept waiting: the reconciler may be in the middle of a commit.
const PATIENCE: Duration = Duration::from_secs(5);

/// What answers a scraper.
#[derive(Clone)]
pub(in crate::agent) struct Scraped {
    /// The reconciler.
    pub(in crate::agent) inputs: mpsc::Sender<Input>,
    /// What is counted.
    pub(in crate::agent) metrics: Metrics,
}

impl Scraped {
    async fn status(&self) -> Result<Box<Status>, Failure> {
        match ask(&self.inputs, Request::Guard(GuardRequest::Status), OWN_UID, Some(PATIENCE)).await? {
            Reply::Status(status) => Ok(status),
            _ => Err(Failure::new(FailureKind::Failed, "the agent gave no status")),
        }
    }
}

/// Listens, however long it takes until the address is free: nobody's volume is without a guard for want of
/// metrics.
async fn listen(address: SocketAddr) -> TcpListener {
    let mut told = false;
    loop {
        let error = match bind(address).await {
            Ok(listener) => return listener,
            Err(error) => error,
        };
        if !told {
            error!(
                "metrics are not served: cannot listen on {address} (metrics_listen): {error}; it is tried again"
            );
            told = true;
        }
        time::sleep(PATIENCE).await;
    }
}

/// A host without IPv6 (`ipv6.disable=1`) has every address of IPv4.
async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let error = match TcpListener::bind(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip() == Ipv6Addr::UNSPECIFIED {
        return TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await;
    }
    Err(error)
}

/// `/metrics`, `/healthz` and `/readyz` until the agent ends.
pub(in crate::agent) async fn run(address: SocketAddr, scraped: Scraped) -> Result<()> {
    let listener = listen(address).await;
    info!(address = %listener.local_addr()?, "metrics are served");
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(healthy))
        .route("/readyz", get(ready))
        .with_state(scraped);
    let service = TowerToHyperService::new(router);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of that connection, or of descriptors that are all in use: no reason to end the guard.
                warn!("a connection for metrics could not be taken: {error}");
                time::sleep(PATIENCE).await;
                continue;
            }
        };
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service.clone());
        tokio::spawn(async move {
            // Who asks nothing, or reads nothing, is cut off.
            drop(time::timeout(LONGEST, connection).await);
            drop(place);
        });
    }
}

/// As [`run`] serves it; for the control socket, too.
pub(super) async fn metrics(State(scraped): State<Scraped>) -> Response {
    let status = match scraped.status().await {
        Ok(status) => status,
        Err(failure) => return failure.into_response(),
    };
    match scraped.metrics.render(&status) {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => Failure::new(FailureKind::Failed, error.to_string()).into_response(),
    }
}

/// Whether the one task that changes records and rules goes on.
async fn healthy(State(scraped): State<Scraped>) -> Response {
    match ask(&scraped.inputs, Request::Guard(GuardRequest::Alive), OWN_UID, Some(PATIENCE)).await {
        Ok(_) => "ok\n".into_response(),
        Err(failure) => (StatusCode::SERVICE_UNAVAILABLE, failure.error + "\n").into_response(),
    }
}

/// Whether refusals are carried out: by which tier, and in words what that one leaves open.
async fn ready(State(scraped): State<Scraped>) -> Response {
    match scraped.status().await {
        Ok(status) if status.store.as_ref().is_some_and(|store| store.required && !store.answers) => {
            (StatusCode::SERVICE_UNAVAILABLE, "the cluster's store does not answer\n").into_response()
        }
        Ok(status) if status.proven => readiness(&status).into_response(),
        Ok(_) => (StatusCode::SERVICE_UNAVAILABLE, "not proven by the canary\n").into_response(),
        Err(failure) => (StatusCode::SERVICE_UNAVAILABLE, failure.error + "\n").into_response(),
    }
}

fn readiness(status: &Status) -> String {
    let mut text = format!("mode {}, tier {}\n", status.mode.name(), status.tier);
    if let Some(reason) = status.store.as_ref().and_then(|store| store.reason.as_ref()) {
        text.push_str("store: ");
        text.push_str(reason);
        text.push('\n');
    }
    for (word, lines) in [("open", &status.open), ("degraded", &status.degraded)] {
        for line in lines {
            text.push_str(word);
            text.push_str(": ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::metrics::tests::status;

    #[test]
    fn readiness_names_the_tier_and_what_it_leaves_open() {
        let text = readiness(&status());
        assert_eq!(
            text,
            "mode audit, tier cgroup\nstore: no answer\nopen: dd goes on\ndegraded: the database was damaged\n"
        );
    }
}
