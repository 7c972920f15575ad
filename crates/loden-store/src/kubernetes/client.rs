//! Requests to the Kubernetes API: the one place that sends, waits, tries again, and says what went wrong.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use http::{Method, Response, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use loden_core::config::store::KubernetesAddress;
use serde_json::Value;

use super::fault::Fault;
use super::object::{Answer, Form, Kind, List, Meta, ONE_PARTIAL, Object};

/// How long an answer may take, and a whole page of a list.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a request is sent at most, and the pause before the second time.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// The longest pause that a server's `Retry-After` is followed in: a server that asks for more is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// Objects in a page of a list, as client-go has it.
const PAGE: u32 = 500;

const JSON: &str = "application/json";
const MERGE_PATCH: &str = "application/merge-patch+json";
const STRATEGIC_PATCH: &str = "application/strategic-merge-patch+json";

/// A connection to one API server, with the credentials as they were when it was made.
#[derive(Clone)]
pub struct Client {
    inner: kube::Client,
    /// The server's URL.
    pub place: String,
}

/// One request.
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    /// What it does to what, in the words of RBAC.
    pub verb: &'static str,
    /// What it is done to.
    pub resource: String,
    uri: String,
    accept: &'static str,
    body: Option<(&'static str, Vec<u8>)>,
}

impl Client {
    /// Reads the credentials anew (they may have been renewed) and connects with the first request.
    ///
    /// # Errors
    /// [`Fault`] when there are none, or they cannot be read.
    pub async fn open(address: &KubernetesAddress) -> Result<Self, Fault> {
        let mut config = match &address.kubeconfig {
            Some(file) => read_kubeconfig(Path::new(file)).await?,
            None => infer().await?,
        };
        if let Some(server) = &address.server {
            config.cluster_url =
                server.parse().map_err(|error| Fault::Config(format!("`server` {server:?}: {error}")))?;
        }
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        // A watch is silent for long; each call has its own deadline.
        config.read_timeout = None;
        config.default_retry = false;
        let place = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let inner = kube::Client::try_from(config).map_err(|error| Fault::Config(chain(&error)))?;
        Ok(Self { inner, place })
    }

    /// All objects of a kind, page by page, and the revision that they are of.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn list(&self, kind: Kind) -> Result<(Vec<Object>, String), Fault> {
        match self.pages(kind, Some(PAGE)).await {
            // The pages' revision was compacted before the last one was read: at one go, then, as client-go does it.
            Err(fault) if fault.is_gone() => self.pages(kind, None).await,
            done => done,
        }
    }

    async fn pages(&self, kind: Kind, limit: Option<u32>) -> Result<(Vec<Object>, String), Fault> {
        let (mut all, mut token) = (Vec::new(), String::new());
        loop {
            let mut query: Vec<(&str, String)> = limit.iter().map(|limit| ("limit", limit.to_string())).collect();
            if !token.is_empty() {
                query.push(("continue", token));
            }
            let request = Request::new(Method::GET, "list", kind, None, &query).accepting(kind.list_type());
            let page: List = self.ask(&request, PAGE_TIMEOUT).await?;
            all.extend(page.items);
            token = page.metadata.token;
            if token.is_empty() {
                return Ok((all, page.metadata.resource_version));
            }
        }
    }

    /// One object whole; `None` when it is not there.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn get(&self, kind: Kind, name: &str) -> Result<Option<Object>, Fault> {
        self.get_as(JSON, kind, name).await
    }

    /// One object's metadata; `None` when it is not there.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn get_meta(&self, kind: Kind, name: &str) -> Result<Option<Meta>, Fault> {
        Ok(self.get_as(ONE_PARTIAL, kind, name).await?.map(|object| object.metadata))
    }

    async fn get_as(&self, accept: &'static str, kind: Kind, name: &str) -> Result<Option<Object>, Fault> {
        let request = Request::new(Method::GET, "get", kind, Some(name), &[]).accepting(accept);
        match self.ask(&request, CALL_TIMEOUT).await {
            Ok(object) => Ok(Some(object)),
            Err(fault) if fault.is_missing_object(name) => Ok(None),
            Err(fault) => Err(fault),
        }
    }

    /// One object whole, and the time by the server's clock, as HTTP writes it.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn get_with_date(&self, kind: Kind, name: &str) -> Result<(Object, Option<String>), Fault> {
        let request = Request::new(Method::GET, "get", kind, Some(name), &[]);
        let response = within(CALL_TIMEOUT, self.send(&request)).await?;
        let date = response.headers().get(header::DATE).and_then(|date| date.to_str().ok()).map(str::to_owned);
        Ok((within(CALL_TIMEOUT, read(response)).await?, date))
    }

    /// Sends an object that must not be there yet.
    ///
    /// # Errors
    /// [`Fault`]; see [`Fault::is_conflict`].
    pub async fn create(&self, kind: Kind, object: &Value) -> Result<Object, Fault> {
        let request = Request::new(Method::POST, "create", kind, None, &[]).with(JSON, object);
        self.ask(&request, CALL_TIMEOUT).await
    }

    /// Changes an object by a merge patch; one that names a `resourceVersion` is done only to that. A Node is changed through its
    /// status: that is all that flannel's role lets a network do to it.
    ///
    /// # Errors
    /// [`Fault`]; see [`Fault::is_conflict`].
    pub async fn patch(&self, kind: Kind, name: &str, patch: &Value) -> Result<Object, Fault> {
        self.patch_as(MERGE_PATCH, kind, name, patch).await
    }

    /// Changes a condition of a Node: each has its place by its type.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn patch_condition(&self, node: &str, condition: &Value) -> Result<Object, Fault> {
        let patch = serde_json::json!({"status": {"conditions": [condition]}});
        self.patch_as(STRATEGIC_PATCH, Kind::Node, node, &patch).await
    }

    /// Changes how an object is, by a merge patch.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn patch_status(&self, kind: Kind, name: &str, patch: &Value) -> Result<Object, Fault> {
        let request = Request::new(Method::PATCH, "patch", kind, Some(name), &[]).with(MERGE_PATCH, patch);
        self.ask(&request.of_status(), CALL_TIMEOUT).await
    }

    async fn patch_as(&self, content: &'static str, kind: Kind, name: &str, patch: &Value) -> Result<Object, Fault> {
        let request = Request::new(Method::PATCH, "patch", kind, Some(name), &[]).with(content, patch);
        // Of a Node that was written its metadata tell enough.
        let request = if kind == Kind::Node { request.of_status().accepting(ONE_PARTIAL) } else { request };
        self.ask(&request, CALL_TIMEOUT).await
    }

    /// Removes the object if it still is what was read.
    ///
    /// # Errors
    /// [`Fault`]; see [`Fault::is_conflict`].
    pub async fn delete(&self, kind: Kind, name: &str, revision: u64) -> Result<(), Fault> {
        let options = serde_json::json!({"preconditions": {"resourceVersion": revision.to_string()}});
        let request = Request::new(Method::DELETE, "delete", kind, Some(name), &[]).with(JSON, &options);
        match self.ask::<Value>(&request, CALL_TIMEOUT).await {
            Ok(_) => Ok(()),
            Err(fault) if fault.is_missing_object(name) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// The uid of a namespace, which tells clusters apart.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn namespace_uid(&self, name: &str) -> Result<String, Fault> {
        let request = Request {
            method: Method::GET,
            verb: "get",
            resource: "namespaces".to_owned(),
            uri: format!("/api/v1/namespaces/{name}"),
            accept: ONE_PARTIAL,
            body: None,
        };
        Ok(self.ask::<Object>(&request, CALL_TIMEOUT).await?.metadata.uid)
    }

    /// The name of the node that a pod is on.
    ///
    /// # Errors
    /// [`Fault`].
    pub async fn node_of_pod(&self, namespace: &str, pod: &str) -> Result<String, Fault> {
        let request = Request {
            method: Method::GET,
            verb: "get",
            resource: "pods".to_owned(),
            uri: format!("/api/v1/namespaces/{namespace}/pods/{pod}"),
            accept: JSON,
            body: None,
        };
        let spec = self.ask::<Object>(&request, CALL_TIMEOUT).await?.spec;
        Ok(spec.get("nodeName").and_then(Value::as_str).unwrap_or_default().to_owned())
    }

    /// The stream of changes behind a revision, and how it is written.
    ///
    /// # Errors
    /// [`Fault`]; see [`Fault::is_gone`].
    pub async fn watch(&self, kind: Kind, after: &str, lasting: Duration) -> Result<(Body, Form), Fault> {
        let query = [
            ("watch", "1".to_owned()),
            ("allowWatchBookmarks", "true".to_owned()),
            ("resourceVersion", after.to_owned()),
            ("timeoutSeconds", lasting.as_secs().to_string()),
        ];
        let request = Request::new(Method::GET, "watch", kind, None, &query).accepting(kind.object_type());
        let response = within(CALL_TIMEOUT, self.send_once(&request)).await?;
        let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let form = if kind.starts_with("application/vnd.kubernetes.protobuf") { Form::Frames } else { Form::Lines };
        Ok((response.into_body(), form))
    }

    async fn ask<T: Answer>(&self, request: &Request, timeout: Duration) -> Result<T, Fault> {
        within(timeout, async { read(self.send(request).await?).await }).await
    }

    /// Sends it, again where that can do no harm and may help: a write that may have been done is not repeated.
    async fn send(&self, request: &Request) -> Result<Response<Body>, Fault> {
        let mut pause = PAUSE;
        for _ in 1..TRIES {
            let fault = match self.send_once(request).await {
                Err(fault) if fault.is_passing() => fault,
                done => return done,
            };
            if request.method == Method::POST && !fault.is_throttled() {
                return Err(fault);
            }
            match fault.retry_after() {
                Some(asked) if asked > LONGEST_PAUSE => return Err(fault),
                asked => tokio::time::sleep(asked.unwrap_or(Duration::ZERO) + jittered(pause)).await,
            }
            pause *= 2;
        }
        self.send_once(request).await
    }

    async fn send_once(&self, request: &Request) -> Result<Response<Body>, Fault> {
        let mut builder = http::Request::builder()
            .method(request.method.clone())
            .uri(&request.uri)
            .header(header::ACCEPT, request.accept)
            .header(header::USER_AGENT, concat!("loden/", env!("CARGO_PKG_VERSION")));
        let body = match &request.body {
            Some((content, bytes)) => {
                builder = builder.header(header::CONTENT_TYPE, *content);
                Body::from(bytes.clone())
            }
            None => Body::empty(),
        };
        let built = builder.body(body).map_err(|error| Fault::Config(error.to_string()))?;
        let response = self.inner.send(built).await.map_err(|error| match &error {
            kube::Error::Service(inner) => Fault::Transport(chain(&**inner)),
            error => Fault::Transport(chain(error)),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let text = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        Err(Fault::from_answer(&parts, &text, request))
    }
}

impl Request {
    fn new(method: Method, verb: &'static str, kind: Kind, name: Option<&str>, query: &[(&str, String)]) -> Self {
        let mut uri = kind.path().to_owned();
        if let Some(name) = name {
            uri.push('/');
            uri.push_str(name);
        }
        for (n, (key, value)) in query.iter().enumerate() {
            uri.push_str(if n == 0 { "?" } else { "&" });
            uri.push_str(&format!("{key}={}", escaped(value)));
        }
        Self { method, verb, resource: kind.resource().to_owned(), uri, accept: JSON, body: None }
    }

    fn accepting(mut self, accept: &'static str) -> Self {
        self.accept = accept;
        self
    }

    fn of_status(mut self) -> Self {
        self.uri.push_str("/status");
        self.resource = match self.resource.split_once('.') {
            Some((plural, group)) => format!("{plural}/status.{group}"),
            None => format!("{}/status", self.resource),
        };
        self
    }

    fn with(mut self, content: &'static str, body: &Value) -> Self {
        self.body = Some((content, body.to_string().into_bytes()));
        self
    }
}

/// A pause of about that length, so that a thousand clients do not come back at one moment.
pub fn jittered(pause: Duration) -> Duration {
    let mut bytes = [0_u8; 4];
    // Without randomness all come at once, which is still right.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    pause.mul_f64(0.5 + f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

/// What went wrong and what was behind it, each said once.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if let Some(last) = said.last_mut()
            && let Some(head) = last.strip_suffix(&text)
        {
            *last = head.trim_end_matches([' ', ':']).to_owned();
        }
        said.push(text);
        next = error.source();
    }
    said.retain(|text| !text.is_empty());
    said.dedup();
    said.join(": ")
}

async fn within<T>(timeout: Duration, work: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
    let late = || Fault::Transport(format!("no answer within {} s", timeout.as_secs()));
    tokio::time::timeout(timeout, work).await.map_err(|_| late())?
}

async fn read<T: Answer>(response: Response<Body>) -> Result<T, Fault> {
    let body = response.into_body().collect().await.map_err(|error| Fault::Transport(chain(&error)))?.to_bytes();
    T::read(&body).map_err(Fault::Body)
}

async fn read_kubeconfig(file: &Path) -> Result<kube::Config, Fault> {
    let fault = |error: kube::config::KubeconfigError| Fault::Config(format!("{}: {}", file.display(), chain(&error)));
    let kubeconfig = Kubeconfig::read_from(file).map_err(fault)?;
    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(fault)
}

/// The pod's own service account, else what `$KUBECONFIG` says.
async fn infer() -> Result<kube::Config, Fault> {
    let own = match kube::Config::incluster() {
        Ok(config) => return Ok(config),
        Err(error) => chain(&error),
    };
    kube::Config::from_kubeconfig(&KubeConfigOptions::default()).await.map_err(|error| {
        Fault::Config(format!("there is neither a pod's service account ({own}) nor a kubeconfig ({})", chain(&error)))
    })
}

/// A value as it may stand in a query (RFC 3986 section 2.3).
fn escaped(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}
