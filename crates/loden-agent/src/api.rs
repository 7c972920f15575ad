//! The local HTTP API, on a Unix socket for root alone, and health and metrics on a TCP port if one is configured.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use loden_core::api::BlockWish;
use loden_core::dhcp::LeaseRequest;
use loden_core::model::AttachmentKey;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::oneshot;

use crate::AgentError;
use crate::dhcp::Dhcp;
use crate::metrics::Metrics;
use crate::worker::{Inbox, Question};

/// How long the kernel's side may take for a turn before `/healthz` says that it hangs: far over the longest round, far under
/// what an operator waits.
const PULSE_PATIENCE: Duration = Duration::from_secs(15);
/// How long an answer is waited for.
const ANSWER_PATIENCE: Duration = Duration::from_secs(10);

/// What the handlers share.
#[derive(Debug, Clone)]
pub struct Api {
    /// To the kernel's side.
    pub inbox: Sender<Inbox>,
    /// Its pulse.
    pub pulse: Arc<Mutex<Instant>>,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// To the leases of DHCP servers.
    pub dhcp: Dhcp,
}

impl Api {
    /// Health and metrics.
    fn public(self) -> Router {
        Router::new()
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(self)
    }

    /// Everything.
    fn local(self) -> Router {
        Router::new()
            .route("/v1/status", get(status))
            .route("/v1/plan", get(plan))
            .route("/v1/events", get(events))
            .route("/v1/ipam", get(ipam))
            .route("/v1/ipam/wish", post(wish))
            .route("/v1/dhcp/lease", post(lease))
            .route("/v1/dhcp/release", post(release))
            .with_state(self.clone())
            .merge(self.public())
    }
}

/// Serves the Unix socket. A socket that a killed agent left is replaced: the run directory's lock says that it is dead.
///
/// # Errors
/// [`AgentError::Listen`].
pub fn serve_local(api: Api, path: &Path) -> Result<(), AgentError> {
    let fail =
        |error: std::io::Error| AgentError::Listen { address: path.display().to_string(), cause: error.to_string() };
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(fail(error)),
        _ => {}
    }
    // The directory is closed to others, so nobody can come in before the mode is set.
    let listener = UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(fail)?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, api.local()).await {
            tracing::error!(%error, "the local API has ended");
        }
    });
    Ok(())
}

/// Serves health and metrics on a TCP port.
///
/// # Errors
/// [`AgentError::Listen`].
pub async fn serve_public(api: Api, address: SocketAddr) -> Result<(), AgentError> {
    let fail = |error: std::io::Error| AgentError::Listen { address: address.to_string(), cause: error.to_string() };
    let listener = TcpListener::bind(address).await.map_err(fail)?;
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, api.public()).await {
            tracing::error!(%error, "the port for metrics has ended");
        }
    });
    Ok(())
}

async fn ask<T>(api: &Api, question: impl FnOnce(oneshot::Sender<T>) -> Question) -> Result<T, Failure> {
    let (sender, answer) = oneshot::channel();
    api.inbox.send(Inbox::Ask(question(sender))).map_err(|_| Failure::Stopping)?;
    match tokio::time::timeout(ANSWER_PATIENCE, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(Failure::Stopping),
        Err(_) => Err(Failure::Busy),
    }
}

/// Why there is no answer.
enum Failure {
    Stopping,
    Busy,
    Kernel(String),
    NoLease(String),
    NoBlock(String),
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let text = match self {
            Self::Stopping => "the agent is stopping".to_owned(),
            Self::Busy => format!("the kernel's side has not answered in {} s", ANSWER_PATIENCE.as_secs()),
            Self::Kernel(cause) | Self::NoLease(cause) | Self::NoBlock(cause) => cause,
        };
        (StatusCode::SERVICE_UNAVAILABLE, text + "\n").into_response()
    }
}

async fn status(State(api): State<Api>) -> Result<Response, Failure> {
    ask(&api, Question::Status).await.map(|status| Json(status).into_response())
}

async fn plan(State(api): State<Api>) -> Result<Response, Failure> {
    ask(&api, Question::Plan).await?.map(|plan| Json(plan).into_response()).map_err(Failure::Kernel)
}

async fn ipam(State(api): State<Api>) -> Result<Response, Failure> {
    ask(&api, Question::Ipam).await.map(|ipam| Json(ipam).into_response())
}

async fn wish(State(api): State<Api>, Json(wish): Json<BlockWish>) -> Result<Response, Failure> {
    let pools: Vec<String> = wish.pools.iter().map(ToString::to_string).collect();
    let (sender, answer) = oneshot::channel();
    api.inbox.send(Inbox::Ask(Question::Wish(wish, sender))).map_err(|_| Failure::Stopping)?;
    match tokio::time::timeout(BlockWish::PATIENCE, answer).await {
        Ok(Ok(answer)) => answer.map(|()| "there is one\n".into_response()).map_err(Failure::NoBlock),
        Ok(Err(_)) => Err(Failure::Stopping),
        Err(_) => Err(Failure::NoBlock(format!(
            "a further block of pool {} was waited for {} s: `loden status` says how the datastore is",
            pools.join(" or "),
            BlockWish::PATIENCE.as_secs()
        ))),
    }
}

async fn lease(State(api): State<Api>, Json(request): Json<LeaseRequest>) -> Result<Response, Failure> {
    api.dhcp.lease(request).await.map(|lease| Json(lease).into_response()).map_err(Failure::NoLease)
}

async fn release(State(api): State<Api>, Json(key): Json<AttachmentKey>) -> Response {
    api.dhcp.release(key).await;
    "released\n".into_response()
}

async fn events(
    State(api): State<Api>,
    Query(query): Query<std::collections::BTreeMap<String, String>>,
) -> Result<Response, Failure> {
    let after = query.get("after").and_then(|after| after.parse().ok()).unwrap_or(0);
    ask(&api, |answer| Question::Events(after, answer)).await.map(|events| Json(events).into_response())
}

async fn healthz(State(api): State<Api>) -> Response {
    let silent = api.pulse.lock().map_or(Duration::MAX, |pulse| pulse.elapsed());
    if silent < PULSE_PATIENCE {
        "ok\n".into_response()
    } else {
        let text = format!("the kernel's side has not turned for {} s\n", silent.as_secs());
        (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
    }
}

async fn readyz(State(api): State<Api>) -> Result<Response, Failure> {
    let status = ask(&api, Question::Status).await?;
    if status.ready {
        return Ok("ready\n".into_response());
    }
    let mut text: String = status.problems.iter().map(|problem| format!("{problem}\n")).collect();
    if text.is_empty() {
        text = "pods cannot be served yet: no block has been claimed, or the kernel is not as wanted\n".to_owned();
    }
    Ok((StatusCode::SERVICE_UNAVAILABLE, text).into_response())
}

async fn metrics(State(api): State<Api>) -> Response {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    // What is counted elsewhere stays as it was when the kernel's side is busy.
    if let Ok(tunnels) = ask(&api, Question::Tunnels).await {
        api.metrics.tunnels(&tunnels);
    }
    ([(header::CONTENT_TYPE, kind)], api.metrics.text()).into_response()
}
