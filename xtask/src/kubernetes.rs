//! `cargo xtask kubernetes`: the suite of the store in Kubernetes, which runs against a double in every run of the tests, against a real
//! API server. That is built from its Go module, once, and runs with an etcd of its own in a namespace without a way out.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::{self, NetNs};
use loden_linux::rt::link;
use loden_linux::{LinuxError, spawn};
use loden_testkit::certificates;

use crate::{peers, shell, suite};

const VERSION: &str = "1.37.0";
/// Who speaks to it: an administrator, and the suite as an agent; with the subjects of their certificates.
const USERS: [(&str, &str); 2] = [("admin", "/O=system:masters/CN=admin"), ("loden-suite", "/CN=loden-suite")];
/// How long the API server may take to be ready; it takes five seconds on an idle machine.
const READY: Duration = Duration::from_secs(120);

/// Runs the suite.
pub fn run() -> Result<()> {
    suite::install_tools()?;
    let program = build()?;
    let dir = Scratch::new()?;
    let server = Server::start(&program, &dir)?;
    server.wait_ready()?;
    let args = ["test", "-p", "loden-store", "--features", "etcd,kubernetes", "--test", "it", "kubernetes::"];
    let mut command = shell::cargo(&args);
    // What is left of one test must not be another's.
    command.args(["--", "--test-threads=1"]).env("LODEN_KUBERNETES", server.kubeconfig("admin"));
    command.env("LODEN_KUBERNETES_AGENT", server.kubeconfig("loden-suite"));
    command.env("CARGO_NET_OFFLINE", "true");
    spawn::in_netns(&mut command, &server.ns, true)?;
    let status = command.status().context("cargo")?;
    if status.success() { Ok(()) } else { bail!("the suite ended with {status}") }
}

/// Builds the API server where it is not there yet.
fn build() -> Result<PathBuf> {
    let program = shell::target().join("peers").join(format!("kube-apiserver-{VERSION}/kube-apiserver"));
    if program.exists() {
        return Ok(program);
    }
    shell::say(&format!("· the API server of Kubernetes {VERSION} is built, once: a quarter of an hour"));
    let package = "k8s.io/component-base/version";
    // Clients ask for it, and without it they warn of a server that is a development version.
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    let flags =
        format!("-s -w -X {package}.gitVersion=v{VERSION} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}");
    let mut go = peers::go()?;
    go.args(["build", "-ldflags", &flags, "-o"]).arg(&program).arg(".");
    peers::made(go.current_dir(shell::root().join("labs/peers/kube-apiserver")))?;
    Ok(program)
}

/// A directory that goes with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self> {
        let dir = std::env::temp_dir().join(format!("loden-kubernetes-{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it is in the way of nobody.
        let _ = netns::remove(&self.path("netns"));
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// etcd and the API server.
struct Server<'a> {
    dir: &'a Scratch,
    ns: NetNs,
    children: Vec<Child>,
}

impl<'a> Server<'a> {
    fn start(program: &Path, dir: &'a Scratch) -> Result<Self> {
        make_certificates(&dir.0)?;
        let ns = NetNs::create(&dir.path("netns"))?;
        ns.run(loopback)??;
        let mut server = Self { dir, ns, children: Vec::new() };
        for user in USERS {
            server.write_kubeconfig(user.0)?;
        }
        let data = dir.path("etcd").display().to_string();
        server.spawn(Path::new("etcd"), &["--data-dir", &data, "--logger", "zap"])?;
        let file = |name: &str| dir.path(name).display().to_string();
        let flags = [
            ("etcd-servers", "http://127.0.0.1:2379".to_owned()),
            ("advertise-address", "127.0.0.1".to_owned()),
            ("secure-port", "6443".to_owned()),
            ("tls-cert-file", file("server.pem")),
            ("tls-private-key-file", file("server.key")),
            ("client-ca-file", file("ca.pem")),
            ("service-account-key-file", file("accounts.key")),
            ("service-account-signing-key-file", file("accounts.key")),
            ("service-account-issuer", "https://kubernetes.default.svc.cluster.local".to_owned()),
            ("service-cluster-ip-range", "10.96.0.0/16".to_owned()),
            ("authorization-mode", "Node,RBAC".to_owned()),
            ("endpoint-reconciler-type", "none".to_owned()),
            ("cert-dir", file("made")),
        ];
        let flags = flags.map(|(name, value)| format!("--{name}={value}"));
        server.spawn(program, &flags.each_ref().map(String::as_str))?;
        Ok(server)
    }

    fn spawn(&mut self, program: &Path, args: &[&str]) -> Result<()> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = File::create(self.dir.path(&format!("{name}.log")))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        spawn::in_netns(&mut command, &self.ns, true)?;
        self.children.push(command.spawn().with_context(|| name)?);
        Ok(())
    }

    /// Waits until it listens; the suite itself waits until it serves.
    fn wait_ready(&self) -> Result<()> {
        let begun = Instant::now();
        while !self.ns.run(|| TcpStream::connect("127.0.0.1:6443").is_ok())? {
            if begun.elapsed() > READY {
                let log = fs::read_to_string(self.dir.path("kube-apiserver.log")).unwrap_or_default();
                let end: Vec<&str> = log.lines().rev().take(5).collect();
                bail!("the API server does not listen:\n{}", end.join("\n"));
            }
            thread::sleep(Duration::from_millis(200));
        }
        shell::say(&format!("· Kubernetes {VERSION} listens after {:.1} s", begun.elapsed().as_secs_f64()));
        Ok(())
    }

    fn kubeconfig(&self, user: &str) -> PathBuf {
        self.dir.path(&format!("{user}.conf"))
    }

    fn write_kubeconfig(&self, user: &str) -> Result<()> {
        let file = |name: &str| self.dir.path(name).display().to_string();
        let (cert, key) = (file(&format!("{user}.pem")), file(&format!("{user}.key")));
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{ "name": "it", "cluster": { "server": "https://127.0.0.1:6443", "certificate-authority": file("ca.pem") } }],
            "users": [{ "name": "u", "user": { "client-certificate": cert, "client-key": key } }],
            "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "u" } }],
        });
        // JSON is YAML.
        fs::write(self.kubeconfig(user), config.to_string()).context("the kubeconfig")
    }
}

impl Drop for Server<'_> {
    fn drop(&mut self) {
        for child in &mut self.children {
            // One that has gone by itself is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn loopback() -> Result<(), LinuxError> {
    let lo = "lo".parse().map_err(|error: loden_core::model::NameError| LinuxError::File {
        path: "lo".to_owned(),
        cause: error.to_string(),
    })?;
    let mut w = Writer::default();
    link::set_up(&mut w, lo, true);
    Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect()
}

/// The server's certificate, the users', and the key that accounts' tokens are signed with.
fn make_certificates(dir: &Path) -> Result<()> {
    let users = USERS.map(|(name, subject)| (name, subject, "DNS:user"));
    let holders: Vec<_> = users.into_iter().chain([("server", "/CN=kube-apiserver", "IP:127.0.0.1")]).collect();
    certificates::make(dir, &holders).and_then(|()| certificates::make_key(dir, "accounts")).map_err(anyhow::Error::msg)
}
