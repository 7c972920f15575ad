//! A double of the Kubernetes API server, over TLS: lists in pages, watches with bookmarks, conflicts, roles, and faults to order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method};
use axum::response::Response;
use futures_util::stream;
use rcgen::{CertificateParams, Issuer, KeyPair};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::server::TlsStream;

use super::cluster::{Cluster, Event, Part, Refusal};
use super::roles::Role;
use super::wire;

/// What is to go wrong.
#[derive(Default)]
pub struct Faults {
    /// The answers to the next requests, with `Retry-After` in seconds.
    pub answers: VecDeque<(u16, Option<u32>)>,
    /// How many events are cut in their middle, and their watches with them.
    pub cut: u32,
    /// Whether every event is said twice, and the one before it again behind it.
    pub repeat: bool,
    /// How late events come.
    pub delay: Duration,
    /// Whether no protobuf is spoken.
    pub only_json: bool,
}

/// What was asked for and how much was answered.
#[derive(Default)]
pub struct Log {
    /// `verb resource` of agents, in order.
    pub requests: Vec<String>,
    /// Bytes of answers, by `verb resource`.
    pub bytes: BTreeMap<String, usize>,
    /// What agents asked for and may not.
    pub refused: BTreeSet<String>,
    /// `resource/name` of objects that were read whole.
    pub whole: Vec<String>,
}

struct Inner {
    cluster: Mutex<Cluster>,
    faults: Mutex<Faults>,
    log: Mutex<Log>,
    role: Mutex<Option<Role>>,
    changed: watch::Sender<u64>,
    is_down: AtomicBool,
    bookmark: Duration,
}

/// The server.
pub struct Double {
    inner: Arc<Inner>,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

const AGENT: &str = "agents-token";
const ADMIN: &str = "admins-token";

impl Double {
    /// One that lets agents do what the role says.
    pub async fn start(role: Role) -> Self {
        Self::start_with(role, (2020, 2040)).await
    }

    /// One whose certificate is good in these years.
    pub async fn start_with(role: Role, years: (i32, i32)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let (ca_key, key) = (KeyPair::generate().expect("a key"), KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::new([]).expect("parameters");
        params.distinguished_name.push(rcgen::DnType::CommonName, dir.path().display().to_string());
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("a certificate");
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).expect("written");
        let issuer = Issuer::new(params, ca_key);
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("parameters");
        params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
        params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        let leaf = params.signed_by(&key, &issuer).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let tls =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key).expect("TLS");

        let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = tcp.local_addr().expect("an address");
        let inner = Arc::new(Inner {
            cluster: Mutex::new(Cluster::new()),
            faults: Mutex::default(),
            log: Mutex::default(),
            role: Mutex::new(Some(role)),
            changed: watch::Sender::new(0),
            is_down: AtomicBool::new(false),
            bookmark: Duration::from_millis(300),
        });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&inner));
        let (sender, greeted) = mpsc::unbounded_channel();
        tokio::spawn(greet(tcp, TlsAcceptor::from(Arc::new(tls)), Arc::clone(&inner), sender));
        let listener = Listener { greeted, address };
        tokio::spawn(async move { axum::serve(listener, app).await });
        let double = Self { inner, dir, address };
        double.kubeconfig("agent", AGENT, "ca.pem");
        double.kubeconfig("admin", ADMIN, "ca.pem");
        double
    }

    /// Writes a kubeconfig under a name: this token, and whom to trust by a file of the double's directory.
    pub fn kubeconfig(&self, name: &str, token: &str, ca: &str) -> PathBuf {
        let ca = self.dir.path().join(ca);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://{}", self.address), "certificate-authority": ca}}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        let path = self.path(name);
        std::fs::write(&path, config.to_string()).expect("written");
        path
    }

    /// A kubeconfig by its name, or another file of the double's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What it keeps.
    pub fn cluster(&self) -> MutexGuard<'_, Cluster> {
        self.inner.cluster.lock().expect("no panic")
    }

    /// What is to go wrong.
    pub fn faults(&self) -> MutexGuard<'_, Faults> {
        self.inner.faults.lock().expect("no panic")
    }

    /// What was asked for.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        self.inner.log.lock().expect("no panic")
    }

    /// Lets agents do something else from now on.
    pub fn set_role(&self, role: Role) {
        *self.inner.role.lock().expect("no panic") = Some(role);
    }

    /// Nobody gets through, and what was connected is cut off.
    pub fn set_down(&self, is_down: bool) {
        self.inner.is_down.store(is_down, Ordering::SeqCst);
        self.inner.changed.send_modify(|n| *n += 1);
    }
}

/// Takes connections. A client that is slow to greet keeps no other from it.
async fn greet(
    tcp: TcpListener,
    tls: TlsAcceptor,
    inner: Arc<Inner>,
    greeted: mpsc::UnboundedSender<(Io, SocketAddr)>,
) {
    while !greeted.is_closed() {
        let Ok((stream, address)) = tcp.accept().await else { continue };
        if inner.is_down.load(Ordering::SeqCst) {
            continue;
        }
        let (handshake, inner, greeted) = (tls.accept(stream), Arc::clone(&inner), greeted.clone());
        tokio::spawn(async move {
            if let Ok(stream) = handshake.await {
                // A server that has ended serves nobody.
                let _ = greeted.send((Io { stream, inner }, address));
            }
        });
    }
}

struct Listener {
    greeted: mpsc::UnboundedReceiver<(Io, SocketAddr)>,
    address: SocketAddr,
}

impl axum::serve::Listener for Listener {
    type Io = Io;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Io, SocketAddr) {
        match self.greeted.recv().await {
            Some(greeted) => greeted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// A connection that breaks while the server is down.
struct Io {
    stream: TlsStream<TcpStream>,
    inner: Arc<Inner>,
}

impl Io {
    fn check(&self) -> io::Result<()> {
        if self.inner.is_down.load(Ordering::SeqCst) { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(()) }
    }
}

impl AsyncRead for Io {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check()?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A request, understood.
struct Asked {
    verb: &'static str,
    group: &'static str,
    resource: String,
    name: String,
    is_status: bool,
    query: BTreeMap<String, String>,
    is_partial: bool,
    is_protobuf: bool,
    content: String,
}

impl Asked {
    /// An answer as it was asked for.
    fn written(&self, value: &Value) -> Vec<u8> {
        let items = value["items"].as_array().filter(|_| self.is_partial);
        match items {
            Some(items) if self.is_protobuf => {
                let word = |key: &str| value["metadata"][key].as_str().unwrap_or_default();
                wire::list(word("resourceVersion"), word("continue"), items)
            }
            Some(items) => {
                let items: Vec<Value> = items.iter().map(partial).collect();
                json!({"kind": "List", "metadata": value["metadata"], "items": items}).to_string().into_bytes()
            }
            None if self.is_protobuf => wire::object(value),
            None if self.is_partial => partial(value).to_string().into_bytes(),
            None => value.to_string().into_bytes(),
        }
    }

    fn form(&self) -> &'static str {
        match (self.is_protobuf, self.verb) {
            (true, "watch") => "application/vnd.kubernetes.protobuf;stream=watch",
            (true, _) => "application/vnd.kubernetes.protobuf",
            (false, _) => "application/json",
        }
    }
}

async fn answer(State(inner): State<Arc<Inner>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let body = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(mut asked) =
        understand(&parts.method, parts.uri.path(), parts.uri.query().unwrap_or_default(), &parts.headers)
    else {
        return refuse((404, "", String::new()), "", None);
    };
    asked.is_protobuf &= !inner.faults.lock().expect("no panic").only_json;
    let what = format!("{} {}{}", asked.verb, asked.resource, if asked.is_status { "/status" } else { "" });
    match header("authorization").strip_prefix("Bearer ") {
        Some(ADMIN) => {}
        Some(AGENT) => {
            let mut log = inner.log.lock().expect("no panic");
            log.requests.push(what.clone());
            let role = inner.role.lock().expect("no panic").clone().expect("a role");
            let resource = what.split_once(' ').expect("two words").1;
            if !role.allows(asked.verb, asked.group, resource, &asked.name) {
                log.refused.insert(what.clone());
                let message = format!(
                    "User \"agent\" cannot {} resource \"{resource}\" in API group \"{}\"",
                    asked.verb, asked.group
                );
                return refuse((403, "Forbidden", message), &asked.name, None);
            }
            if asked.verb == "get" && !asked.is_partial {
                log.whole.push(format!("{}/{}", asked.resource, asked.name));
            }
            drop(log);
            if let Some((code, after)) = inner.faults.lock().expect("no panic").answers.pop_front() {
                return refuse((code, "", "ordered by the test".to_owned()), &asked.name, after);
            }
        }
        _ => return refuse((401, "Unauthorized", "Unauthorized".to_owned()), "", None),
    }
    if asked.group == "loden.dev" && !inner.cluster.lock().expect("no panic").has_crds {
        return plain(404, "404 page not found\n");
    }
    if asked.verb == "watch" {
        return follow(inner, asked);
    }
    let done = serve(&inner, &asked, &body);
    inner.changed.send_modify(|n| *n += 1);
    match done {
        Ok(value) => {
            let body = asked.written(&value);
            *inner.log.lock().expect("no panic").bytes.entry(what).or_default() += body.len();
            respond(if asked.verb == "create" { 201 } else { 200 }, asked.form(), Body::from(body), None)
        }
        Err(refusal) => refuse(refusal, &asked.name, None),
    }
}

fn understand(method: &Method, path: &str, query: &str, headers: &HeaderMap) -> Option<Asked> {
    let (group, rest) = match path.strip_prefix("/api/v1/") {
        Some(rest) => ("", rest),
        None => ("loden.dev", path.strip_prefix("/apis/loden.dev/v1alpha1/")?),
    };
    // Of what is in a namespace only pods are asked for.
    let rest = match rest.strip_prefix("namespaces/").and_then(|rest| rest.split_once('/')) {
        Some((_, pod)) => pod,
        None => rest,
    };
    let mut words = rest.split('/');
    let (resource, name) = (words.next()?.to_owned(), words.next().unwrap_or_default().to_owned());
    let is_status = words.next() == Some("status");
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|it| it.split_once('='))
        .map(|(key, value)| (key.to_owned(), decoded(value)))
        .collect();
    let verb = match *method {
        Method::GET if query.contains_key("watch") => "watch",
        Method::GET if name.is_empty() => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => return None,
    };
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let accept = text("accept");
    let is_partial = accept.contains("as=PartialObjectMetadata");
    let is_protobuf = is_partial && accept.starts_with("application/vnd.kubernetes.protobuf");
    let content = text("content-type");
    Some(Asked { verb, group, resource, name, is_status, query, is_partial, is_protobuf, content })
}

fn serve(inner: &Inner, asked: &Asked, body: &[u8]) -> Result<Value, Refusal> {
    let mut cluster = inner.cluster.lock().expect("no panic");
    let given = || -> Result<Value, Refusal> {
        serde_json::from_slice(body).map_err(|error| (400, "BadRequest", error.to_string()))
    };
    let (resource, name) = (asked.resource.as_str(), asked.name.as_str());
    match asked.verb {
        "list" => {
            let limit = asked.query.get("limit").and_then(|limit| limit.parse().ok());
            let token = asked.query.get("continue").map_or("", String::as_str);
            let (items, revision, next) = cluster.list(resource, limit, token)?;
            Ok(
                json!({"kind": "List", "metadata": {"resourceVersion": revision.to_string(), "continue": next}, "items": items}),
            )
        }
        "get" => cluster.get(resource, name),
        "create" => cluster.create(resource, given()?),
        "patch" => {
            let part = match asked.content.as_str() {
                "application/strategic-merge-patch+json" if asked.is_status => Part::Conditions,
                "application/merge-patch+json" if asked.is_status => Part::Status,
                "application/merge-patch+json" => Part::Whole,
                other => return Err((415, "UnsupportedMediaType", other.to_owned())),
            };
            cluster.patch(resource, name, &given()?, part)
        }
        "delete" => {
            let options = given().unwrap_or_default();
            cluster.delete(resource, name, options["preconditions"]["resourceVersion"].as_str())
        }
        other => Err((405, "MethodNotAllowed", other.to_owned())),
    }
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// What a watch has said so far.
struct Following {
    inner: Arc<Inner>,
    asked: Asked,
    at: u64,
    until: Instant,
    changed: watch::Receiver<u64>,
    former: Option<Event>,
    is_gone: bool,
    is_over: bool,
}

fn follow(inner: Arc<Inner>, asked: Asked) -> Response {
    let number = |key: &str| asked.query.get(key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(number("timeoutSeconds"));
    let (at, changed) = (number("resourceVersion"), inner.changed.subscribe());
    let is_gone = at < inner.cluster.lock().expect("no panic").oldest;
    let state = Following { inner, asked, at, until, changed, former: None, is_gone, is_over: false };
    let form = state.asked.form();
    respond(
        200,
        form,
        Body::from_stream(stream::unfold(state, |mut state| async { state.next().await.map(|said| (said, state)) })),
        None,
    )
}

impl Following {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.is_over || Instant::now() >= self.until {
                return None;
            }
            if self.inner.is_down.load(Ordering::SeqCst) {
                self.is_over = true;
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            }
            if self.is_gone {
                self.is_over = true;
                let status =
                    json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"});
                return Some(Ok(self.line("ERROR", &status)));
            }
            let is_next = |event: &&Event| event.revision > self.at && event.resource == self.asked.resource;
            let found = self.inner.cluster.lock().expect("no panic").history.iter().find(is_next).cloned();
            if let Some(event) = found {
                return Some(self.say(event).await);
            }
            tokio::select! {
                _ = self.changed.changed() => {}
                () = tokio::time::sleep_until(self.until) => {}
                () = tokio::time::sleep(self.inner.bookmark) => {
                    let cluster = self.inner.cluster.lock().expect("no panic");
                    let is_new = |event: &Event| event.revision > self.at && event.resource == self.asked.resource;
                    if cluster.history.iter().any(is_new) {
                        continue;
                    }
                    let revision = cluster.revision;
                    drop(cluster);
                    self.at = self.at.max(revision);
                    let object = json!({"metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null}});
                    return Some(Ok(self.line("BOOKMARK", &object)));
                }
            }
        }
    }

    async fn say(&mut self, event: Event) -> io::Result<Bytes> {
        let (is_cut, is_repeated, delay) = {
            let mut faults = self.inner.faults.lock().expect("no panic");
            let is_cut = faults.cut > 0;
            faults.cut -= u32::from(is_cut);
            (is_cut, faults.repeat, faults.delay)
        };
        tokio::time::sleep(delay).await;
        let line = self.event(&event);
        if is_cut {
            self.is_over = true;
            return Ok(line.slice(..line.len() / 2));
        }
        self.at = event.revision;
        let mut said = line.to_vec();
        if is_repeated {
            said.extend_from_slice(&line);
            said.extend(self.former.as_ref().map(|former| self.event(former)).unwrap_or_default());
        }
        self.former = Some(event);
        Ok(said.into())
    }

    fn event(&self, event: &Event) -> Bytes {
        self.line(event.word, &event.object)
    }

    fn line(&self, word: &str, object: &Value) -> Bytes {
        let shown = if self.asked.is_partial && word != "ERROR" { partial(object) } else { object.clone() };
        let line = if self.asked.is_protobuf {
            wire::event(word, object)
        } else {
            format!("{}\n", json!({"type": word, "object": shown})).into_bytes()
        };
        let what = format!("watch {}", self.asked.resource);
        *self.inner.log.lock().expect("no panic").bytes.entry(what).or_default() += line.len();
        line.into()
    }
}

fn refuse((code, reason, message): Refusal, name: &str, after: Option<u32>) -> Response {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason,
        "message": message, "details": {"name": name}});
    respond(code, "application/json", Body::from(status.to_string()), after)
}

fn plain(code: u16, text: &'static str) -> Response {
    respond(code, "text/plain", Body::from(text), None)
}

fn respond(code: u16, form: &str, body: Body, after: Option<u32>) -> Response {
    let mut builder = Response::builder().status(code).header("content-type", form);
    builder = builder.header("date", "Wed, 25 Nov 2026 14:52:44 GMT");
    if let Some(after) = after {
        builder = builder.header("retry-after", after);
    }
    builder.body(body).expect("a response")
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = (*first == b'%').then(|| std::str::from_utf8(&tail[..2]).ok()).flatten();
        match code.and_then(|code| u8::from_str_radix(code, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).expect("UTF-8")
}
