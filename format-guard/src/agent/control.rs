//! The control API: JSON over HTTP on a Unix socket. `curl --unix-socket` works.
//!
//! Only root may ask: the socket has mode 0600, and the kernel says who is at the other end.

use std::{
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
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
    sync::{mpsc, oneshot},
};

use super::{
    prober::Prober,
    reconciler::{Input, Question, Reply},
};
use crate::{
    api::{EventsQuery, Failure, FailureKind, PermitRequest, Selector},
    volume::probe::Finding,
};

/// Largest request body, in bytes.
const MAX_BODY: usize = 64 << 10;

/// Who is at the other end, as the kernel says.
#[derive(Clone, Copy, Debug)]
struct Peer {
    uid: Option<u32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self { uid: stream.io().peer_cred().ok().map(|credentials| credentials.uid()) }
    }
}

#[derive(Clone)]
struct Agent {
    inputs: mpsc::Sender<Input>,
    prober: Prober,
}

/// Makes the socket, for root alone. One that an earlier agent left is replaced, one in use is not.
pub(super) fn listen(path: &Path) -> Result<UnixListener> {
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => bail!("another agent listens on {}; stop that one first", path.display()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
        }
        Err(_) => {}
    }
    let listener =
        UnixListener::bind(path).with_context(|| format!("cannot listen on {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

pub(super) async fn run(listener: UnixListener, inputs: mpsc::Sender<Input>, prober: Prober) -> Result<()> {
    let router = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/volumes", get(volumes))
        .route("/v1/volume", get(volume))
        .route("/v1/volume/adopt", post(adopt))
        .route("/v1/volume/permit", post(permit))
        .route("/v1/events", get(events))
        .layer(middleware::from_fn(root_only))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(Agent { inputs, prober });
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
            Self::Events(events) => Json(events).into_response(),
            // Asked for inside the agent only.
            Self::Device(_) => StatusCode::NO_CONTENT.into_response(),
        }
    }
}

type Answer = Result<Reply, Failure>;

impl Agent {
    async fn ask(&self, question: Question) -> Answer {
        let (sender, receiver) = oneshot::channel();
        let stopping = || Failure::new(FailureKind::Failed, "the agent is stopping");
        self.inputs.send(Input::Asked(question, sender)).await.map_err(|_| stopping())?;
        receiver.await.map_err(|_| stopping())?
    }
}

fn body<T>(body: Result<Json<T>, JsonRejection>) -> Result<T, Failure> {
    body.map(|Json(value)| value).map_err(|error| Failure::new(FailureKind::BadRequest, error.body_text()))
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Result<T, Failure> {
    query.map(|Query(value)| value).map_err(|error| Failure::new(FailureKind::BadRequest, error.body_text()))
}

async fn status(State(agent): State<Agent>) -> Answer {
    agent.ask(Question::Status).await
}

async fn volumes(State(agent): State<Agent>) -> Answer {
    agent.ask(Question::Volumes).await
}

async fn volume(State(agent): State<Agent>, selector: Result<Query<Selector>, QueryRejection>) -> Answer {
    agent.ask(Question::Volume(query(selector)?.volume)).await
}

async fn events(State(agent): State<Agent>, events: Result<Query<EventsQuery>, QueryRejection>) -> Answer {
    agent.ask(Question::Events(query(events)?)).await
}

async fn permit(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    request: Result<Json<PermitRequest>, JsonRejection>,
) -> Answer {
    let uid = peer.uid.unwrap_or(u32::MAX);
    agent.ask(Question::Permit { request: body(request)?, uid }).await
}

/// Probes first: what is adopted is what is there now.
async fn adopt(
    State(agent): State<Agent>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    selector: Result<Json<Selector>, JsonRejection>,
) -> Answer {
    let volume = body(selector)?.volume;
    let Reply::Device(device) = agent.ask(Question::Device(volume.clone())).await? else {
        return Err(Failure::new(FailureKind::Failed, "the agent gave no device"));
    };
    match agent.prober.once(&device).await {
        Ok(Finding::Holds { found, marks }) => {
            let uid = peer.uid.unwrap_or(u32::MAX);
            agent.ask(Question::Adopt { volume, found, marks, uid }).await
        }
        Ok(Finding::Blank) => Err(Failure::new(
            FailureKind::Refused,
            format!("{} reads blank: there is nothing to adopt; its record stays as it is", device.name),
        )),
        Err(error) => Err(Failure::new(
            FailureKind::Failed,
            format!("{} cannot be probed: {error}; its record stays as it is", device.name),
        )),
    }
}
