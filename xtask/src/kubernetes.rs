//! `cargo xtask kubernetes`: Kubernetes itself, built from its Go module, once. Without more, the suite of the store in Kubernetes, which
//! runs against a double in every run of the tests, runs against a real API server; with `--cluster`, a cluster of two nodes with real
//! kubelets has loden for its network.

mod bytes;
mod cluster;
mod flannel;
mod node;
mod pods;
mod pools;
mod server;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use loden_linux::netlink::{Protocol, Socket, Writer};
use loden_linux::netns::{self, NetNs};
use loden_linux::rt::link;
use loden_linux::{LinuxError, spawn};

use self::bytes::Bytes;
use self::server::Server;
use crate::{peers, shell, suite};

const VERSION: &str = "1.37.2";

/// What may be asked for.
#[derive(Debug, Args)]
pub struct Options {
    /// A cluster of two nodes, in place of the suite.
    #[arg(long)]
    cluster: bool,
    /// Of its parts only the one whose name holds this.
    #[arg(long, requires = "cluster")]
    only: Option<String>,
    /// Leaves each cluster up until a line comes in, to look around in it.
    #[arg(long, requires = "cluster")]
    keep: bool,
}

/// Runs the suite or the cluster.
pub fn run(options: &Options) -> Result<()> {
    suite::install_tools()?;
    let program = build()?;
    if options.cluster { cluster::run(&program, options) } else { run_suite(program) }
}

/// What a kubelet's Node costs to follow; `None` where Kubernetes has not been built.
pub fn bytes() -> Result<Option<Bytes>> {
    Some(place()).filter(|program| program.exists()).map(|program| cluster::bytes(&program)).transpose()
}

fn place() -> PathBuf {
    shell::target().join("peers").join(format!("kubernetes-{VERSION}/kubernetes"))
}

/// Builds Kubernetes where it is not there yet.
fn build() -> Result<PathBuf> {
    let program = place();
    if program.exists() {
        return Ok(program);
    }
    shell::say(&format!("· Kubernetes {VERSION} is built, once: a quarter of an hour"));
    let package = "k8s.io/component-base/version";
    // Clients ask for it, and without it they warn of a server that is a development version.
    let minor = VERSION.split('.').nth(1).unwrap_or_default();
    let flags =
        format!("-s -w -X {package}.gitVersion=v{VERSION} -X {package}.gitMajor=1 -X {package}.gitMinor={minor}");
    let mut go = peers::go()?;
    go.args(["build", "-trimpath", "-ldflags", &flags, "-o"]).arg(&program).arg(".");
    peers::made(go.current_dir(shell::root().join("labs/peers/kubernetes")))?;
    Ok(program)
}

/// Runs the suite in a namespace without a way out, as an administrator and as an agent.
fn run_suite(program: PathBuf) -> Result<()> {
    let dir = Scratch::new()?;
    let ns = NetNs::create(&dir.path("netns"))?;
    ns.run(loopback)??;
    let users = [("admin", "/O=system:masters/CN=admin", "DNS:user"), ("loden-suite", "/CN=loden-suite", "DNS:user")];
    let server = Server::start(program, &dir.0, ns, [127, 0, 0, 1].into(), &users)?;
    let args = ["test", "-p", "loden-store", "--features", "etcd,kubernetes", "--test", "it", "kubernetes::"];
    let mut command = shell::cargo(&args);
    // What is left of one test must not be another's.
    command.args(["--", "--test-threads=1"]).env("LODEN_KUBERNETES", server.kubeconfig("admin"));
    command.env("LODEN_KUBERNETES_AGENT", server.kubeconfig("loden-suite"));
    command.env("CARGO_NET_OFFLINE", "true");
    spawn::in_netns(&mut command, server.netns(), true)?;
    let status = command.status().context("cargo")?;
    if status.success() { Ok(()) } else { bail!("the suite ended with {status}") }
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

fn loopback() -> Result<(), LinuxError> {
    let lo = "lo".parse().map_err(|error: loden_core::model::NameError| LinuxError::File {
        path: "lo".to_owned(),
        cause: error.to_string(),
    })?;
    let mut w = Writer::default();
    link::set_up(&mut w, lo, true);
    Socket::open(Protocol::Route)?.batch(&mut w)?.into_iter().collect()
}
