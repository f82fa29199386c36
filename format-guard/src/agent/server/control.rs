//! The control API: JSON over HTTP on a Unix socket. `curl --unix-socket` works.
//!
//! Only root may ask: the socket has mode 0600, and the kernel says who is at the other end.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use axum::{
    Json, Router,
    extract::{
        ConnectInfo, DefaultBodyLimit, Query, State,
        connect_info::Connected,
        rejection::{JsonRejection, QueryRejection},
    },
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use tokio::{
    net::UnixListener,
    sync::{mpsc, oneshot, watch},
    time::{Instant, timeout, timeout_at},
};

use super::metrics::{self, Scraped};
use crate::{
    agent::{
        message::{GuardRequest, Input, Reply, Request, VolumeRequest},
        metrics::Metrics,
        prober::Prober,
        queue::{ask, stopping},
    },
    api::{
        AdoptRequest, EndLossRequest, EventsQuery, Failure, FailureKind, ModeRequest, PermitRequest,
        ProtectRequest, ReasonRequest, Selector, SettleQuery, Settled, SimulateQuery,
    },
    volume::{device::Device, probe::Finding},
};

/// For root alone.
pub(in crate::agent) const MODE: u32 = 0o600;
/// Largest request body, in bytes.
const MAX_BODY: usize = 64 << 10;
/// Longest wait for a line of the history, or for a device to be read, in seconds.
const MAX_WAIT: u64 = 60;

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug)]
struct Peer {
    uid: Option<u32>,
}

impl Peer {
    fn uid(self) -> u32 {
        self.uid.unwrap_or(u32::MAX)
    }
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

/// What the API asks.
#[derive(Clone)]
pub(in crate::agent) struct Agent {
    /// The reconciler.
    pub(in crate::agent) inputs: mpsc::Sender<Input>,
    /// What is counted.
    pub(in crate::agent) metrics: Metrics,
    /// Probes for operators who wait.
    pub(in crate::agent) prober: Prober,
    /// Goes up with every line of the history.
    pub(in crate::agent) history_seq: watch::Receiver<u64>,
}

/// Makes a socket of this mode. One that an earlier agent left is replaced, one in use is not.
pub(in crate::agent) fn listen(path: &Path, mode: u32) -> Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another agent listens on {}; stop that one first", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    Ok(listener)
}

pub(in crate::agent) async fn run(listener: UnixListener, agent: Agent) -> Result<()> {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/volumes", get(volumes))
        .route("/v1/volume", get(volume))
        .route("/v1/volume/copy", get(copy))
        .route("/v1/simulate", get(simulate))
        .route("/v1/volume/adopt", post(adopt))
        .route("/v1/volume/probe", post(probe))
        .route("/v1/volume/permit", post(permit))
        .route("/v1/volume/exempt", post(exempt))
        .route("/v1/volume/forget", post(forget))
        .route("/v1/volume/untaint", post(untaint))
        .route("/v1/volume/revoke", post(revoke))
        .route("/v1/mode", post(mode))
        .route("/v1/protect", post(protect))
        .route("/v1/loss/end", post(end_loss))
        .route("/v1/settle", get(settle))
        .route("/v1/events", get(events))
        .route("/metrics", get(scraped))
        .fallback(unknown)
        .layer(middleware::from_fn(root_only))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(agent);
    axum::serve(listener, router.into_make_service_with_connect_info::<Peer>()).await?;
    Ok(())
}

async fn root_only(
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: axum::extract::Request,
    next: Next,
) -> Response {
    if peer.uid != Some(0) {
        return Failure::new(FailureKind::Refused, "only root may ask the agent").into_response();
    }
    next.run(request).await
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self.kind {
            FailureKind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
            FailureKind::BadRequest => StatusCode::BAD_REQUEST,
            FailureKind::NotFound => StatusCode::NOT_FOUND,
            FailureKind::Refused => StatusCode::FORBIDDEN,
        };
        (status, Json(self)).into_response()
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        match self {
            Self::Status(status) => Json(status).into_response(),
            Self::Volumes(volumes) => Json(volumes).into_response(),
            Self::Volume(volume) => Json(volume).into_response(),
            Self::Copy(copy) => Json(copy).into_response(),
            Self::Simulation(simulation) => Json(simulation).into_response(),
            Self::Events(events) => Json(events).into_response(),
            Self::Done(done) => Json(done).into_response(),
            // Asked for inside the agent only.
            Self::Device(_) | Self::Alive => StatusCode::NO_CONTENT.into_response(),
        }
    }
}

type Answer = Result<Reply, Failure>;

impl Agent {
    async fn ask(&self, peer: Peer, what: GuardRequest) -> Answer {
        ask(&self.inputs, Request::Guard(what), peer.uid(), None).await
    }

    async fn ask_of(&self, peer: Peer, selector: String, what: VolumeRequest) -> Answer {
        ask(&self.inputs, Request::Volume { selector, what }, peer.uid(), None).await
    }

    /// The device that holds a volume.
    async fn device(&self, peer: Peer, volume: &str) -> Result<Box<Device>, Failure> {
        match self.ask_of(peer, volume.to_owned(), VolumeRequest::Device).await? {
            Reply::Device(device) => Ok(device),
            _ => Err(Failure::new(FailureKind::Failed, "the agent gave no device")),
        }
    }
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Failure> {
    body.map(|Json(value)| value).map_err(|error| Failure::new(FailureKind::BadRequest, error.body_text()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    query.map(|Query(value)| value).map_err(|error| Failure::new(FailureKind::BadRequest, error.body_text()))
}

async fn status(State(agent): State<Agent>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    agent.ask(peer, GuardRequest::Status).await
}

async fn scraped(State(agent): State<Agent>) -> Response {
    metrics::metrics(State(Scraped { inputs: agent.inputs, metrics: agent.metrics })).await
}

async fn volumes(State(agent): State<Agent>, ConnectInfo(peer): ConnectInfo<Peer>) -> Answer {
    agent.ask(peer, GuardRequest::Volumes).await
}

async fn volume(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    selector: Result<Query<Selector>, QueryRejection>,
) -> Answer {
    agent.ask_of(peer, query(selector)?.volume, VolumeRequest::Show).await
}

async fn copy(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    selector: Result<Query<Selector>, QueryRejection>,
) -> Answer {
    agent.ask_of(peer, query(selector)?.volume, VolumeRequest::Copy).await
}

async fn simulate(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    simulated: Result<Query<SimulateQuery>, QueryRejection>,
) -> Answer {
    let SimulateQuery { volume, program } = query(simulated)?;
    agent.ask_of(peer, volume, VolumeRequest::Simulate { program }).await
}

/// Waits for a line to tell, if that is asked for.
async fn events(
    State(mut agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    events: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer {
    let query = query(events)?;
    let deadline = Instant::now() + Duration::from_secs(query.wait.min(MAX_WAIT));
    loop {
        agent.history_seq.mark_unchanged();
        let reply = agent.ask(peer, GuardRequest::Events(query.clone())).await?;
        let empty = matches!(&reply, Reply::Events(events) if events.events.is_empty());
        if !empty || timeout_at(deadline, agent.history_seq.changed()).await.is_err() {
            return Ok(reply);
        }
    }
}

/// Waits until a device is read, or the time is up.
async fn settle(
    State(agent): State<Agent>,
    asked: Result<Query<SettleQuery>, QueryRejection>,
) -> Result<Json<Settled>, Failure> {
    let SettleQuery { volume, wait } = query(asked)?;
    let answer = async {
        let (reply, answer) = oneshot::channel();
        agent.inputs.send(Input::Settle(volume, reply)).await.map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())?
    };
    match timeout(Duration::from_secs(wait.min(MAX_WAIT)), answer).await {
        Ok(settled) => settled.map(Json),
        Err(_) => Ok(Json(Settled { settled: false, state: None })),
    }
}

async fn unknown() -> Failure {
    let text = format!(
        "the agent (version {}) knows no such request: is the command of another version?",
        env!("CARGO_PKG_VERSION")
    );
    Failure::new(FailureKind::BadRequest, text)
}

async fn exempt(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<ReasonRequest>, JsonRejection>,
) -> Answer {
    let ReasonRequest { volume, reason } = body(request)?;
    agent.ask_of(peer, volume, VolumeRequest::Exempt { reason }).await
}

async fn forget(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<ReasonRequest>, JsonRejection>,
) -> Answer {
    let ReasonRequest { volume, reason } = body(request)?;
    agent.ask_of(peer, volume, VolumeRequest::Forget { reason }).await
}

async fn untaint(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<ReasonRequest>, JsonRejection>,
) -> Answer {
    let ReasonRequest { volume, reason } = body(request)?;
    agent.ask_of(peer, volume, VolumeRequest::Untaint { reason }).await
}

async fn revoke(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<ReasonRequest>, JsonRejection>,
) -> Answer {
    let ReasonRequest { volume, reason } = body(request)?;
    agent.ask_of(peer, volume, VolumeRequest::Revoke { reason }).await
}

async fn mode(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<ModeRequest>, JsonRejection>,
) -> Answer {
    agent.ask(peer, GuardRequest::Mode(body(request)?)).await
}

async fn protect(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<ProtectRequest>, JsonRejection>,
) -> Answer {
    agent.ask(peer, GuardRequest::Protect(body(request)?)).await
}

async fn end_loss(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<EndLossRequest>, JsonRejection>,
) -> Answer {
    agent.ask(peer, GuardRequest::EndLoss(body(request)?)).await
}

async fn permit(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<PermitRequest>, JsonRejection>,
) -> Answer {
    let PermitRequest { volume, seconds, reason } = body(request)?;
    agent.ask_of(peer, volume, VolumeRequest::Permit { seconds, reason }).await
}

/// Probes now, and answers with what is known then.
async fn probe(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    selector: Result<Json<Selector>, JsonRejection>,
) -> Answer {
    let volume = body(selector)?.volume;
    let device = agent.device(peer, &volume).await?;
    let answer = agent.prober.once(&device).await;
    agent.inputs.send(Input::Probed(answer)).await.map_err(|_| stopping())?;
    agent.ask_of(peer, volume, VolumeRequest::Show).await
}

/// Probes first, so that the content adopted is the one on the device now.
async fn adopt(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<AdoptRequest>, JsonRejection>,
) -> Answer {
    let AdoptRequest { volume, raw, reason } = body(request)?;
    let device = agent.device(peer, &volume).await?;
    match agent.prober.once(&device).await.result {
        Ok(Finding::Holds { found, .. }) if raw => {
            let name = found.first().map_or("a format", |found| found.name.as_str());
            Err(Failure::new(
                FailureKind::Refused,
                format!("{} holds {name}: adopt it without --raw; its record stays as it is", device.name),
            ))
        }
        Ok(finding @ (Finding::Blank | Finding::Unwritten | Finding::Raw(_))) if raw => {
            let zeros = !matches!(finding, Finding::Raw(_));
            agent.ask_of(peer, volume, VolumeRequest::AdoptRaw { zeros, reason }).await
        }
        Ok(Finding::Holds { found, marks, .. }) => {
            agent.ask_of(peer, volume, VolumeRequest::Adopt { found, marks, reason }).await
        }
        Ok(Finding::Blank | Finding::Unwritten) => Err(Failure::new(
            FailureKind::Refused,
            format!(
                "{} reads blank: there is nothing to adopt, unless you know of content that is no known format (--raw); its \
                 record stays as it is",
                device.name
            ),
        )),
        Ok(Finding::Raw(_)) => Err(Failure::new(
            FailureKind::Refused,
            format!(
                "{} holds no known format, but bytes that are not zero: adopt them with --raw, if they are content; its \
                 record stays as it is",
                device.name
            ),
        )),
        Err(error) => Err(Failure::new(
            FailureKind::Failed,
            format!("{} cannot be probed: {error}; its record stays as it is", device.name),
        )),
    }
}
