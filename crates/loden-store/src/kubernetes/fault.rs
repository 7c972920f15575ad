//! What goes wrong with a request, in one line that says what to do.

use std::time::Duration;

use http::{StatusCode, header, response};
use serde::Deserialize;

use super::client::Request;
use super::wire;
use crate::StoreError;

/// Why a request has no answer, or not the one that was hoped for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The server says so.
    Status {
        /// The HTTP status.
        code: u16,
        /// Kubernetes' word for it, such as `AlreadyExists`.
        reason: String,
        /// The server's own words.
        message: String,
        /// The name of the object that they are about, if they are about one.
        name: String,
        /// When to come again.
        retry_after: Option<Duration>,
        /// What was asked for, in the words of RBAC.
        verb: &'static str,
        /// Of what.
        resource: String,
    },
    /// There is no answer.
    Transport(String),
    /// It is not to be understood.
    Body(String),
    /// Nothing was asked: the settings do not do.
    Config(String),
}

/// `metav1.Status`, as far as it matters here.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The HTTP status.
    pub code: u16,
    /// Kubernetes' word for it.
    pub reason: String,
    /// The server's own words.
    pub message: String,
    /// What it is about.
    pub details: Details,
}

/// What a [`Status`] is about.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Details {
    /// The object's name.
    pub name: String,
    /// When to come again.
    pub retry_after_seconds: Option<u64>,
}

impl Fault {
    /// What an answer says that is no success. Proxies and a server that is overloaded answer in plain text.
    pub fn from_answer(parts: &response::Parts, body: &[u8], request: &Request) -> Self {
        let read = if wire::is_enveloped(body) { wire::status(body).ok() } else { serde_json::from_slice(body).ok() };
        let status = read.unwrap_or_else(|| Status {
            message: String::from_utf8_lossy(body).trim().to_owned(),
            ..Status::default()
        });
        let header = parts.headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
        Self::Status {
            code: parts.status.as_u16(),
            reason: status.reason,
            message: status.message,
            name: status.details.name,
            retry_after: header.or(status.details.retry_after_seconds).map(Duration::from_secs),
            verb: request.verb,
            resource: request.resource.clone(),
        }
    }

    /// What a watch says at its end.
    pub fn from_status(status: Status, resource: &str) -> Self {
        Self::Status {
            code: status.code,
            reason: status.reason,
            message: status.message,
            name: String::new(),
            retry_after: status.details.retry_after_seconds.map(Duration::from_secs),
            verb: "watch",
            resource: resource.to_owned(),
        }
    }

    fn code(&self) -> Option<StatusCode> {
        match self {
            Self::Status { code, .. } => StatusCode::from_u16(*code).ok(),
            _ => None,
        }
    }

    /// Whether the revision that was asked for is no longer kept.
    pub fn is_gone(&self) -> bool {
        self.code() == Some(StatusCode::GONE)
    }

    /// Whether somebody else was quicker.
    pub fn is_conflict(&self) -> bool {
        self.code() == Some(StatusCode::CONFLICT)
    }

    /// Whether the server has no time for it now and has not done it.
    pub fn is_throttled(&self) -> bool {
        self.code() == Some(StatusCode::TOO_MANY_REQUESTS)
    }

    /// Whether this very object is not there; the sort of objects that nobody has installed is something else.
    pub fn is_missing_object(&self, wanted: &str) -> bool {
        let is_named = matches!(self, Self::Status { name, .. } if name == wanted);
        is_named && self.code() == Some(StatusCode::NOT_FOUND)
    }

    /// Whether the same request may well succeed in a moment.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Transport(cause) => hint(cause).is_none(),
            Self::Status { code, .. } => *code == 429 || *code >= 500,
            Self::Body(_) | Self::Config(_) => false,
        }
    }

    /// When the server wants to be asked again.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// As callers of the store see it.
    pub fn at(self, place: &str) -> StoreError {
        let place = format!("Kubernetes at {place}");
        match self {
            Self::Transport(cause) => {
                let advice = hint(&cause).map(|advice| format!(": {advice}")).unwrap_or_default();
                StoreError::Unavailable { place, cause: format!("{cause}{advice}") }
            }
            Self::Body(cause) => {
                let cause = format!("its answer is not to be understood ({cause}): is that a Kubernetes API server?");
                StoreError::Unavailable { place, cause }
            }
            Self::Config(cause) => StoreError::Unavailable { place, cause },
            Self::Status { code, reason, message, verb, resource, retry_after, .. } => {
                let words = if message.is_empty() { reason } else { message };
                let cause = format!("{code}: {words}");
                match code {
                    401 => StoreError::Denied { place, cause, advice: UNKNOWN.to_owned() },
                    403 => {
                        let advice =
                            format!("it may not {verb} {resource}; give its account the role of deploy/rbac.yaml");
                        StoreError::Denied { place, cause, advice }
                    }
                    _ => StoreError::Unavailable {
                        place,
                        cause: status_text(code, &cause, verb, &resource, retry_after),
                    },
                }
            }
        }
    }
}

const UNKNOWN: &str = "its token or certificate is missing, of another cluster, or has expired. Renew it where the kubeconfig or the \
                       service account has it: it is read anew with each try";

fn status_text(code: u16, cause: &str, verb: &str, resource: &str, retry_after: Option<Duration>) -> String {
    match code {
        404 if resource.ends_with(".loden.dev") => format!(
            "it has no {resource} ({cause}): apply deploy/crds.yaml, or say `net_conf` to be served by the nodes' podCIDRs"
        ),
        422 => format!("it refuses to {verb} {resource} ({cause})"),
        429 => {
            let when = retry_after.map_or(String::new(), |wait| format!(" for {} s", wait.as_secs()));
            format!("it is overloaded{when} ({cause}); it is tried again")
        }
        500.. => format!("it failed to {verb} {resource} ({cause}); it is tried again"),
        _ => format!("it did not {verb} {resource} ({cause})"),
    }
}

/// What to do about a connection that will not come about by waiting.
fn hint(cause: &str) -> Option<&'static str> {
    let is = |words: &[&str]| words.iter().any(|word| cause.contains(word));
    if is(&["UnknownIssuer", "BadSignature"]) {
        Some(
            "the server is not vouched for by the CA that the kubeconfig or the service account names: is it another cluster's?",
        )
    } else if is(&["Expired", "certificate expired", "NotValidYet", "not valid yet"]) {
        Some("renew the server's certificate, or set this host's clock")
    } else if is(&["NotValidForName", "not valid for name"]) {
        Some("the server's certificate is for other names: use one of them in `server` or the kubeconfig")
    } else if is(&["CertificateRequired", "CertificateUnknown", "BadCertificate", "CertificateExpired", "UnknownCa"]) {
        Some("the server refuses this client's certificate: renew it where the kubeconfig has it")
    } else {
        None
    }
}
